/*
 * What an open box is; shared by the files box*.c only.
 */
#pragma once

#include "sandbox/box.h"
#include "sandbox/box_ids.h"
#include "sandbox/cgroup.h"
#include "sandbox/egress.h"
#include "sandbox/launch.h"

/* A staged init, or one that serves several commands; -1: none. */
typedef struct BoxInit {
    int pidfd, sock;
} BoxInit;

/* What a box wrote over some time, on a tmpfs of its own: root/upper and work/upper in overlay
 * form. Counted: snapshots, boxes that have it below. */
typedef struct BoxGen {
    int fd;         /* a detached mount of it, that other boxes can have a clone of */
    BoxIdMode mode; /* whose ids its files have */
    guint base;
} BoxGen;
BoxGen *box_gen_ref(BoxGen *gen);
void box_gen_unref(BoxGen *gen);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BoxGen, box_gen_unref)

struct Box {
    int sock, pidfd; /* of the keeper */
    Starter *starter;
    Cgroup *cgroup;
    BoxIds ids;
    BoxLimits limits;
    char *work_path;
    char *copy_dir; /* degraded mode: where the workspace was copied; else NULL */
    guint uid, gid, layers, landlock_abi;
    BoxNet net;
    Egress *egress;         /* the proxy of BOX_NET_PROXY */
    gboolean is_used_up;    /* the keeper was killed for memory: every command is OUT_OF_MEMORY */
    guint64 oom_kills;      /* of the slot's group when the box was opened */
    guint64 last_oom_kills; /* when the last command began */
    gboolean is_sampled;    /* init samples memory, since no cgroup counts it */
    BoxBy disk_by;
    char *degraded_why;

    int root_fd;        /* the merged tree as commands see it, without /proc; or the copy */
    GArray *work_fds;   /* our own descriptors of the workspace's layers, topmost first */
    int work_upper_fd;  /* the given one; else -1 */
    int written_fd;     /* the written generation; -1 where both uppers were given */
    GPtrArray *below;   /* BoxGen, topmost first */
    GPtrArray *at_open; /* the same when the box was opened */
    BoxInit session;    /* the init that kept processes live in */
    gboolean is_staging;
    guint n_taken;   /* inits */
    guint n_running; /* commands */
};

/* The GPtrArray for such a list, of the same generations. */
GPtrArray *box_gens_new(const GPtrArray *from);

/* Appends views of them that this box may attach to `ret_fds` (ours to close). */
gboolean box_gens_show(const Box *box, const GPtrArray *gens, int *ret_fds, guint *ret_n,
                       GError **error);

/* Bytes and inodes that are left of the box's limits over the generations it starts from. */
void box_gens_left(const Box *box, guint64 *ret_bytes, guint64 *ret_inodes);

/* Takes over the root and the generation of a new tree. */
void box_take_tree(Box *box, int fds[SPEC_TREE_FDS]);

/* Has the box start from it, before the keeper builds its tree. */
gboolean box_snapshot_start(Box *box, const BoxSnapshot *snapshot, GError **error);
