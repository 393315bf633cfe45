/*
 * Generations: what a box wrote, frozen, stacked, given to other boxes, taken back.
 *
 * A generation is a tmpfs that one box writes. Frozen, it becomes a layer below fresh generations:
 * of the same box, which goes on, and of any number of others. Nothing is copied, except when kept
 * processes still have files of it open, and when a stack has grown too deep.
 *
 * Invariants:
 *   1. A generation that anything else refers to is never written again.
 *   2. Over a whole stack a box writes no more than its limits allow, however often it is frozen.
 *   3. After a failure the box is as it was, or its next command fails; it never has half a tree.
 *   4. A tmpfs lives as long as the last reference to its generation.
 *
 * Not here: mounting (keeper_tree.c), copying (keeper_copy.c).
 */
#include "sandbox/box_stage.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DEPTH_MAX     16         /* a lookup costs about a microsecond per layer */
#define BYTES_LEFT    (64 << 10) /* a generation has room for its directories, whatever is used */
#define INODES_LEFT   64
#define ROUND_UP(n)   (((n) + 4095) & ~(guint64)4095)
#define KERNEL_NEEDED "snapshots need detached mounts that can be cloned (Linux 6.15)"

struct BoxSnapshot {
    GPtrArray *gens; /* topmost first */
    guint uid, gid;
};

static void gen_clear(gpointer data)
{
    BoxGen *gen = data;
    if (gen->fd >= 0)
        close(gen->fd);
}

BoxGen *box_gen_ref(BoxGen *gen)
{
    return g_atomic_rc_box_acquire(gen);
}

void box_gen_unref(BoxGen *gen)
{
    g_atomic_rc_box_release_full(gen, gen_clear);
}

static gpointer copy_gen(gconstpointer gen, gpointer data)
{
    (void)data;
    return box_gen_ref((BoxGen *)(gsize)gen);
}

GPtrArray *box_gens_new(const GPtrArray *from)
{
    if (from != NULL)
        return g_ptr_array_copy((GPtrArray *)(gsize)from, copy_gen, NULL);
    return g_ptr_array_new_with_free_func((GDestroyNotify)box_gen_unref);
}

static BoxGen *gen_new(const Box *box, int fd)
{
    BoxGen *gen = g_atomic_rc_box_new0(BoxGen);
    *gen = (BoxGen){.fd = fd, .mode = box->ids.mode, .base = box->ids.base};
    return gen;
}

/* A view of a generation that this box can attach: its files as files of this box's range. */
static int show(const Box *box, const BoxGen *gen, GError **error)
{
    if (box->ids.mode != BOX_IDS_RANGE || gen->mode != BOX_IDS_RANGE) {
        if (box->ids.mode == gen->mode)
            return fcntl(gen->fd, F_DUPFD_CLOEXEC, 3);
        error_set(error, ASSAY_ERROR_UNSUPPORTED, "the snapshot has ids of another kind");
        return -1;
    }
    AUTO_FD tree = kernel_open_tree(
        gen->fd, "", KERNEL_OPEN_TREE_CLONE | KERNEL_OPEN_TREE_CLOEXEC | KERNEL_AT_EMPTY_PATH);
    if (tree < 0) {
        error_set(error, ASSAY_ERROR_UNSUPPORTED, KERNEL_NEEDED ": %s", g_strerror(errno));
        return -1;
    }
    if (gen->base == box->ids.base)
        return fd_take(&tree);
    /* The tmpfs belongs to the other box's user namespace: its ids start at 0. */
    SpecMap map = {.n = 1, .lines = {{0, box->ids.base, BOX_ID_COUNT}}};
    int userns = launch_idmap(box->starter, &map, &map, error);
    struct kernel_mount_attr attr = {.attr_set = KERNEL_MOUNT_ATTR_IDMAP,
                                     .userns_fd = (guint64)userns};
    if (userns < 0)
        return -1;
    if (kernel_mount_setattr(tree, 0, &attr) < 0) {
        error_set(error, ASSAY_ERROR_UNSUPPORTED, "idmap a snapshot: %s", g_strerror(errno));
        return -1;
    }
    return fd_take(&tree);
}

gboolean box_gens_show(const Box *box, const GPtrArray *gens, int *ret_fds, guint *ret_n,
                       GError **error)
{
    for (guint i = 0; gens != NULL && i < gens->len; i++) {
        int fd = show(box, g_ptr_array_index(gens, i), error);
        if (fd < 0)
            return FALSE;
        ret_fds[(*ret_n)++] = fd;
    }
    return TRUE;
}

static void add_usage(int fd, guint64 *bytes, guint64 *inodes)
{
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0)
        return;
    *bytes += (guint64)(fs.f_blocks - fs.f_bfree) * (guint64)fs.f_bsize;
    *inodes += (guint64)(fs.f_files - fs.f_ffree);
}

static guint64 left_of(guint64 limit, guint64 used, guint64 least)
{
    return limit == 0 ? 0 : limit > used + least ? limit - used : least;
}

static void add_all(const GPtrArray *gens, guint64 *bytes, guint64 *inodes)
{
    for (guint i = 0; i < gens->len; i++)
        add_usage(((const BoxGen *)g_ptr_array_index(gens, i))->fd, bytes, inodes);
}

static void left_over(const Box *box, guint64 bytes, guint64 inodes, guint64 *ret_bytes,
                      guint64 *ret_inodes)
{
    *ret_bytes = ROUND_UP(left_of(box->limits.disk_bytes, bytes, BYTES_LEFT));
    *ret_inodes = left_of(box->limits.inodes, inodes, INODES_LEFT);
}

void box_gens_left(const Box *box, guint64 *ret_bytes, guint64 *ret_inodes)
{
    guint64 bytes = 0, inodes = 0;
    add_all(box->below, &bytes, &inodes);
    left_over(box, bytes, inodes, ret_bytes, ret_inodes);
}

void box_take_tree(Box *box, int fds[SPEC_TREE_FDS])
{
    int *const places[] = {&box->root_fd, &box->written_fd};
    const SpecTreeFd kinds[] = {SPEC_TREE_FD_ROOT, SPEC_TREE_FD_GEN};
    for (gsize i = 0; i < G_N_ELEMENTS(places); i++) {
        if (fds[kinds[i]] < 0)
            continue;
        if (*places[i] >= 0)
            close(*places[i]);
        *places[i] = fds[kinds[i]];
    }
}

static void close_all(const int *fds, guint n)
{
    for (guint i = 0; i < n; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* Sends a request about generations to the keeper and waits for its answer. */
static gboolean ask_keeper(Box *box, GByteArray *bytes, const GPtrArray *gens, SpecReply *ret_reply,
                           int ret_fds[SPEC_TREE_FDS], GError **error)
{
    int shown[SPEC_GENS_MAX];
    guint n = 0;
    gboolean ok = box_gens_show(box, gens, shown, &n, error) &&
                  launch_send(box->sock, bytes, shown, n, error) &&
                  launch_receive(box->sock, ret_reply, ret_fds, SPEC_TREE_FDS, error);
    close_all(shown, n);
    return ok;
}

/* Asks for a new tree over these generations; what ran in the old one ends. */
static gboolean ask_tree(Box *box, const GPtrArray *gens, guint flags, int *ret_frozen,
                         GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    SpecWriter writer = launch_writer(bytes);
    SpecTree tree = {.flags = flags, .n_gens = gens->len};
    SpecReply reply;
    int fds[SPEC_TREE_FDS];
    guint64 bytes_used = 0, inodes_used = 0;
    add_all(gens, &bytes_used, &inodes_used);
    if (flags & SPEC_TREE_FREEZE)
        add_usage(box->written_fd, &bytes_used, &inodes_used);
    left_over(box, bytes_used, inodes_used, &tree.disk_bytes, &tree.inodes);
    spec_put_tree(&writer, &tree);
    box_stage_drop(box);
    if (!ask_keeper(box, bytes, gens, &reply, fds, error))
        return FALSE;
    if (reply.kind != SPEC_REPLY_TREE || fds[SPEC_TREE_FD_ROOT] < 0) {
        close_all(fds, SPEC_TREE_FDS);
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent an unexpected reply");
    }
    box_take_tree(box, fds);
    box->is_staging = TRUE;
    *ret_frozen = fds[SPEC_TREE_FD_FROZEN];
    return TRUE;
}

/* Sets the box to these generations (taken over). */
static gboolean rebuild(Box *box, GPtrArray *gens, guint flags, GError **error)
{
    int frozen;
    if (!ask_tree(box, gens, flags, &frozen, error)) {
        g_ptr_array_unref(gens);
        return FALSE;
    }
    g_ptr_array_unref(box->below);
    box->below = gens;
    return TRUE;
}

/* The written generation becomes the topmost of `gens`, and of what the box goes on over. */
static gboolean freeze(Box *box, GPtrArray *gens, GError **error)
{
    int frozen;
    if (!ask_tree(box, gens, SPEC_TREE_FREEZE, &frozen, error))
        return FALSE;
    if (frozen < 0)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent no generation");
    g_ptr_array_insert(gens, 0, gen_new(box, frozen));
    g_ptr_array_unref(box->below);
    box->below = box_gens_new(gens);
    return TRUE;
}

static gboolean ask_copy(Box *box, const GPtrArray *gens, int *ret_fd, GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    SpecWriter writer = launch_writer(bytes);
    SpecReply reply;
    int fds[SPEC_TREE_FDS];
    box_stage_drop_staged(box);
    spec_put_copy(&writer, gens == NULL ? 0 : gens->len);
    if (!ask_keeper(box, bytes, gens, &reply, fds, error))
        return FALSE;
    *ret_fd = fds[0];
    fds[0] = -1;
    close_all(fds, SPEC_TREE_FDS);
    return reply.kind == SPEC_REPLY_COPIED ||
           error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent an unexpected reply");
}

/* The merge of those generations as one; of none, a copy of the written one. */
static BoxGen *copy(Box *box, const GPtrArray *gens, GError **error)
{
    int fd;
    if (!ask_copy(box, gens, &fd, error))
        return NULL;
    if (fd >= 0)
        return gen_new(box, fd);
    error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent no generation");
    return NULL;
}

/* Before one more is put on it. */
static gboolean flatten(Box *box, GPtrArray *gens, GError **error)
{
    if (gens->len < DEPTH_MAX)
        return TRUE;
    BoxGen *one = copy(box, gens, error);
    if (one == NULL)
        return FALSE;
    g_ptr_array_set_size(gens, 0);
    g_ptr_array_add(gens, one);
    return TRUE;
}

static BoxSnapshot *snapshot_new(const Box *box, GPtrArray *gens)
{
    BoxSnapshot *snapshot = g_atomic_rc_box_new0(BoxSnapshot);
    *snapshot = (BoxSnapshot){.gens = gens, .uid = box->uid, .gid = box->gid};
    return snapshot;
}

/* Kept processes have files open: they stand still while what was written is copied. */
static BoxGen *freeze_by_copy(Box *box, GError **error)
{
    SpecReply reply;
    if (!box_init_order(&box->session, SPEC_ORDER_FREEZE, error) ||
        !launch_receive(box->session.sock, &reply, NULL, 0, error))
        return NULL;
    BoxGen *gen = copy(box, NULL, error);
    box_init_order(&box->session, SPEC_ORDER_THAW, NULL);
    return gen;
}

static gboolean can_rebuild(const Box *box, GError **error)
{
    if (box->written_fd < 0 || box->disk_by != BOX_BY_TMPFS)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "a box with directories of the caller's to write to, or without "
                         "namespaces, cannot be frozen or set back");
    if (box->n_running > 0)
        return error_set(error, ASSAY_ERROR_CONFLICT, "a command is running in the box");
    return TRUE;
}

static BoxSnapshot *take(Box *box, GError **error)
{
    g_autoptr(GPtrArray) gens = box_gens_new(box->below);
    if (!can_rebuild(box, error) || !flatten(box, gens, error))
        return NULL;
    if (box_stage_has_session(box)) {
        BoxGen *gen = freeze_by_copy(box, error);
        if (gen == NULL)
            return NULL;
        g_ptr_array_insert(gens, 0, gen);
        return snapshot_new(box, g_steal_pointer(&gens));
    }
    if (!freeze(box, gens, error))
        return NULL;
    return snapshot_new(box, g_steal_pointer(&gens));
}

BoxSnapshot *box_snapshot(Box *box, GError **error)
{
    BoxSnapshot *snapshot = take(box, error);
    if (snapshot == NULL)
        g_prefix_error(error, "take a snapshot: ");
    return snapshot;
}

BoxSnapshot *box_snapshot_ref(BoxSnapshot *snapshot)
{
    return g_atomic_rc_box_acquire(snapshot);
}

static void snapshot_clear(gpointer data)
{
    g_ptr_array_unref(((BoxSnapshot *)data)->gens);
}

void box_snapshot_unref(BoxSnapshot *snapshot)
{
    g_atomic_rc_box_release_full(snapshot, snapshot_clear);
}

guint64 box_snapshot_bytes(const BoxSnapshot *snapshot)
{
    guint64 bytes = 0, inodes = 0;
    add_all(snapshot->gens, &bytes, &inodes);
    return bytes;
}

gboolean box_snapshot_start(Box *box, const BoxSnapshot *snapshot, GError **error)
{
    if (snapshot->uid != box->uid || snapshot->gid != box->gid)
        return error_set(error, ASSAY_ERROR_CONFLICT, "the snapshot is of a box of uid %u, gid %u",
                         snapshot->uid, snapshot->gid);
    g_ptr_array_unref(box->below);
    g_ptr_array_unref(box->at_open);
    box->below = box_gens_new(snapshot->gens);
    box->at_open = box_gens_new(snapshot->gens);
    return TRUE;
}

gboolean box_rollback(Box *box, const BoxSnapshot *snapshot, GError **error)
{
    if (snapshot->uid != box->uid || snapshot->gid != box->gid)
        return error_set(error, ASSAY_ERROR_CONFLICT, "the snapshot is of a box of another user");
    if (can_rebuild(box, error) && rebuild(box, box_gens_new(snapshot->gens), 0, error))
        return TRUE;
    g_prefix_error(error, "roll a box back: ");
    return FALSE;
}

gboolean box_reset(Box *box, GError **error)
{
    if (can_rebuild(box, error) &&
        rebuild(box, box_gens_new(box->at_open), SPEC_TREE_NEW_NET, error))
        return TRUE;
    g_prefix_error(error, "reset a box: ");
    return FALSE;
}

gboolean box_snapshot_save(const BoxSnapshot *snapshot, guint slot, int root_fd, int work_fd,
                           GError **error)
{
    int fd;
    BoxSpec spec = {.uid = snapshot->uid,
                    .gid = snapshot->gid,
                    .slot = slot,
                    .root_upper_fd = root_fd,
                    .work_upper_fd = work_fd,
                    .snapshot = snapshot};
    g_autoptr(Box) box = box_open(&spec, error);
    if (box != NULL && ask_copy(box, snapshot->gens, &fd, error))
        return TRUE;
    g_prefix_error(error, "save a snapshot: ");
    return FALSE;
}
