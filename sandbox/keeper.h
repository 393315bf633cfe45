/*
 * The pieces of assay-box. One program, four roles, each forked from the one before:
 *
 *   starter  one per slot and worker: waits for "open", forks keepers (keeper_main.c)
 *   keeper   one per box: the tree, then one init per command (keeper.c, keeper_tree.c)
 *   init     PID 1 of one command, staged before it is asked for (keeper_init.c)
 *   payload  gives up every privilege, then waits to become the command (keeper_payload.c)
 */
#pragma once

#include "sandbox/spec.h"

#include <stdbool.h>
#include <sys/types.h>

#define KEEPER_SOCKET     3     /* the starter's socket to the library */
#define KEEPER_PROGRAM    4     /* the sealed program, closed at once */
#define KEEPER_INIT_ID    65533 /* the id init takes in a range map: never the payload's */
#define KEEPER_NOBODY_ID  65534
#define KEEPER_EXEC_STAGE "exec"

/* Why something failed: the first failure stays. */
typedef struct Fail {
    int err;
    bool by_command; /* what a command asked for or left behind is why, not this machine */
    char what[SPEC_WHAT_MAX];
} Fail;

/* Records errno and WHAT (with DETAIL, which may be NULL) and returns -1. */
int fail(Fail *failed, const char *what, const char *detail);

/* Names below /proc that init hides, and those that it makes read-only; the same for every box. */
typedef struct ProcMasks {
    int n_hidden, n_covered;
    const char *hidden[32], *covered[8];
    bool is_dir[32]; /* of hidden */
} ProcMasks;

/* Fills the table from this host's /proc. */
void keeper_choose_masks(ProcMasks *masks);

/* 0: this host has none. Asked once, by the starter, so that what is reported is what payloads
 * get: where it is not 0, none starts without. */
extern int keeper_landlock_abi;

/* One open box, as the keeper sees it. */
typedef struct Keeper {
    int sock;
    SpecOpen open;
    const void *spec; /* as it came */
    size_t spec_len;
    uint32_t layers; /* BoxLayer bits that are on */
    char tree[16];   /* the current tree, below the workshop */
    int copy_fd;     /* the directory with "work", "tmp", "home"; only in degraded mode, else -1 */
    const ProcMasks *masks;
} Keeper;

/* Where no cgroup counts, or no pid namespace kills, init does: it samples, and SIGTERM asks it to
 * end the command and report. */
#define KEEPER_INIT_WATCHES (SPEC_OPEN_SAMPLE | SPEC_OPEN_DEGRADED)

/* How many descriptors an open request carries; how many of them are directories of the tree. */
uint32_t keeper_open_fds(const SpecOpen *open);
uint32_t keeper_dir_fds(const SpecOpen *open);

/* Enters its namespaces, waits for one spec on `spec_sock` (flags: those that matter before it is
 * known), then serves that box until its peer closes. Never returns. */
void keeper_serve(int spec_sock, uint32_t flags, int maps_ready_fd, const ProcMasks *masks)
    __attribute__((noreturn));

/* What the library gets of a tree; borrowed from it. */
typedef struct KeeperTree {
    int fds[SPEC_TREE_FDS];
} KeeperTree;

/* The workshop; in it the first tree; another tree over other generations, after which `tidy` takes
 * the one before down; the merge of generations (none: a copy of the written one). 0, or -1 with
 * the reason. */
int keeper_tree_base(Keeper *keeper, uint32_t flags, Fail *failed);
int keeper_tree_open(Keeper *keeper, const int *fds, KeeperTree *ret, Fail *failed);
int keeper_tree_rebuild(Keeper *keeper, const int *gen_fds, const SpecTree *spec, KeeperTree *ret,
                        Fail *failed);
void keeper_tree_tidy(void);
/* A tree of no generations made before it is asked for; taking it, when it is what is asked for. */
void keeper_tree_make_spare(Keeper *keeper, const SpecTree *spec);
bool keeper_tree_use_spare(Keeper *keeper, const SpecTree *spec, KeeperTree *ret);
int keeper_tree_copy(Keeper *keeper, const int *gen_fds, uint32_t n_gens, int *ret_fd,
                     Fail *failed);

/* Removes whatever stands at NAME, down to that depth, following nothing. */
int keeper_remove_any(int dir_fd, const char *name, int depth);

/* Puts one layer in overlay form over another, whiteouts included (keeper_copy.c). */
int keeper_copy_layer(int from_fd, int to_fd);

/* The skeleton: what every box of these flags has, then what this one needs. */
int keeper_skeleton_base(uint32_t flags, Fail *failed);
int keeper_skeleton_box(const SpecOpen *open, Fail *failed);

/* Host directories below /etc that programs of /usr are useless without, shown through overlays;
 * the first two always, the others where the host's network is used, that is, for builds. */
extern const char *const keeper_etc_dirs[];
#define KEEPER_ETC_ALWAYS 2

/* PID 1: waits on `go` for the spec and the tree (in degraded mode the copy), gets a payload ready,
 * then serves `sock`. Never returns. */
void keeper_init(uint32_t flags, const ProcMasks *masks, int sock, int go)
    __attribute__((noreturn));

/* Writes the request's files; a failure here is the tree's state, which a command may have caused.
 * In the degraded mode below the copy (keeper_files.c). */
int keeper_put_files(const Keeper *keeper, const SpecExec *exec, Fail *failed);

/* Empties the bounding and ambient sets and locks the securebits, for this process and all that it
 * forks: what is held stays, nothing can be gained by execve, ids may be changed at no price. */
int keeper_lock_capabilities(Fail *failed);

/* Gives everything up, waits on `sock` for one exec request with stdin, stdout and stderr (or a
 * terminal), becomes the command. A failure goes to `error_fd` as a Fail. */
void keeper_payload(const Keeper *keeper, int sock, int error_fd) __attribute__((noreturn));

/* The ids of payloads as this process has to name them: inside ids, or in degraded mode, where
 * there is no map, the host's (root never stays root; an ordinary user stays itself). */
static inline uint32_t keeper_uid(const SpecOpen *open)
{
    return open->flags & SPEC_OPEN_DEGRADED ? open->uids.lines[0][1] : open->uid;
}
static inline uint32_t keeper_gid(const SpecOpen *open)
{
    return open->flags & SPEC_OPEN_DEGRADED ? open->gids.lines[0][1] : open->gid;
}

/* The command's processes: how many, their proportional memory, their time, their end
 * (keeper_procs.c). */
uint32_t keeper_procs_count(const Keeper *keeper);
uint64_t keeper_procs_memory(const Keeper *keeper);
/* User and system time of those alive. */
uint64_t keeper_procs_cpu_ms(const Keeper *keeper);
void keeper_procs_kill(const Keeper *keeper);
/* Those of one session only. */
void keeper_procs_kill_session(const Keeper *keeper, pid_t session);
/* Stops all and waits until they stand; lets them run again. */
void keeper_procs_freeze(const Keeper *keeper);
void keeper_procs_thaw(const Keeper *keeper);

/* A file written by a small helper: whole text to PATH. -1 with errno. */
int keeper_write_text(const char *path, const char *text);

/* Sends bytes and descriptors; a reply of that kind; it with descriptors (-1: absent), at most
 * SPEC_FDS_OF_REPLY; the reply that says why something failed. */
int keeper_send(int sock, const void *bytes, size_t len, const int *fds, int n_fds);
SpecReply keeper_reply_of(SpecReplyKind kind);
int keeper_reply(int sock, const SpecReply *reply, const int *fds, int n_fds);
void keeper_reply_failed(int sock, const Fail *failed);

/* One received request: its bytes and the descriptors that came with it. */
typedef struct Request {
    const void *bytes;
    size_t len;
    int fds[SPEC_FDS_MAX], n_fds;
    bool is_mapped; /* bytes are a mapping of `memfd`, else the message itself */
    int memfd;
} Request;

/* Waits for a request. -1 at the end of the stream or at malformed traffic. A small one lies in
 * `buffer` (SPEC_INLINE_MAX bytes), which must outlive it. */
int keeper_receive(int sock, uint8_t *buffer, Request *ret_request);
void keeper_request_free(Request *request);
