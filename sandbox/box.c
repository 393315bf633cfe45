/*
 * Opening and closing boxes.
 *
 * Invariants:
 *   1. A box that does not have every layer of spec.require is closed again and refused.
 *   2. Nothing is forked here: the starter does it.
 *   3. No command outlives box_exec. Closing only tells the idle keeper to end; its death is waited
 *      for at shutdown, or at once when directories of the caller are its uppers.
 *
 * Not here: running commands (box_run.c), ids (box_ids.c), what is written (box_snapshot.c).
 */
#include "sandbox/box_degraded.h"
#include "sandbox/box_stage.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "sandbox/filter.h"
#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define CPU_MILLI_MIN  10u      /* the kernel's: 1 ms of each 100 ms */
#define CPU_MILLI_MAX  1000000u /* a thousand CPUs */
#define SIZE_LIMIT_MAX (1ull << 60)

typedef struct FdList {
    int fds[SPEC_FDS_MAX];
    guint n;
} FdList;

static void fd_list_clear(FdList *list)
{
    for (guint i = 0; i < list->n; i++)
        close(list->fds[i]);
    list->n = 0;
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(FdList, fd_list_clear)

static gboolean show(FdList *list, const Box *box, int dir_fd, BoxDirKind kind, GError **error)
{
    int fd = box_ids_show(&box->ids, box->starter, dir_fd, kind, error);
    if (fd < 0)
        return FALSE;
    list->fds[list->n++] = fd;
    return TRUE;
}

static gboolean show_root(FdList *list, const Box *box, const BoxSpec *spec, GError **error)
{
    for (gsize i = 0; i < spec->n_root; i++)
        if (!show(list, box, spec->root_fds[i], BOX_DIR_SYSTEM, error))
            return FALSE;
    if (spec->n_root > 0)
        return TRUE;
    AUTO_FD usr = open("/usr", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (usr < 0)
        return error_set_errno(error, errno, "open /usr");
    return show(list, box, usr, BOX_DIR_SYSTEM, error);
}

/* Every directory of the spec, in the order of spec.h. */
static gboolean show_all(FdList *list, const Box *box, const BoxSpec *spec, GError **error)
{
    if (!show_root(list, box, spec, error))
        return FALSE;
    for (gsize i = 0; i < spec->n_layers; i++)
        if (!show(list, box, spec->layer_fds[i], BOX_DIR_OWNED, error))
            return FALSE;
    for (gsize i = 0; i < spec->n_work; i++)
        if (!show(list, box, spec->work_fds[i], BOX_DIR_OWNED, error))
            return FALSE;
    if (spec->root_upper_fd > 0 && !show(list, box, spec->root_upper_fd, BOX_DIR_UPPER, error))
        return FALSE;
    if (spec->work_upper_fd > 0 && !show(list, box, spec->work_upper_fd, BOX_DIR_UPPER, error))
        return FALSE;
    for (gsize i = 0; i < spec->n_mounts; i++)
        if (!show(list, box, spec->mounts[i].dir_fd, BOX_DIR_SYSTEM, error))
            return FALSE;
    return TRUE;
}

static gboolean check_spec(const BoxSpec *spec, GError **error)
{
    if (spec->n_root > SPEC_LAYERS_MAX || spec->n_layers > SPEC_LAYERS_MAX ||
        spec->n_work > SPEC_LAYERS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "more than %u layers", SPEC_LAYERS_MAX);
    if (spec->n_mounts > SPEC_MOUNTS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "more than %u mounts", SPEC_MOUNTS_MAX);
    if (spec->work_path != NULL && (!spec_path_ok(spec->work_path) || !spec->work_path[1]))
        return error_set(error, ASSAY_ERROR_INPUT, "work_path %s is not an absolute, normal path",
                         spec->work_path);
    for (gsize i = 0; i < spec->n_mounts; i++)
        if (!spec_path_ok(spec->mounts[i].path) || !spec->mounts[i].path[1])
            return error_set(error, ASSAY_ERROR_INPUT, "mount %s is not an absolute, normal path",
                             spec->mounts[i].path);
    if (spec->limits.cpu_weight > 10000 || spec->limits.cpu_milli > CPU_MILLI_MAX ||
        (spec->limits.cpu_milli > 0 && spec->limits.cpu_milli < CPU_MILLI_MIN))
        return error_set(error, ASSAY_ERROR_LIMIT, "cpu_weight is 1..10000, cpu_milli %u..%u",
                         CPU_MILLI_MIN, CPU_MILLI_MAX);
    if (spec->limits.mem_bytes > SIZE_LIMIT_MAX || spec->limits.swap_bytes > SIZE_LIMIT_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "a memory limit is above 2^60");
    if (spec->net == BOX_NET_PROXY && !egress_check(&spec->egress, error))
        return FALSE;
    if (spec->hostname != NULL && strlen(spec->hostname) > 63)
        return error_set(error, ASSAY_ERROR_LIMIT, "the host name is longer than 63 bytes");
    return TRUE;
}

/* Where no group caps CPU time, commands get so many CPUs; 0: all. */
static guint64 affinity_cpus(const Box *box, const BoxLimits *limits)
{
    return cgroup_share_by(box->cgroup) == BOX_BY_NOBODY ? (limits->cpu_milli + 999) / 1000 : 0;
}

static gboolean encode_open(const Box *box, const BoxSpec *spec, GByteArray *bytes, GError **error)
{
    guint64 disk_bytes, inodes;
    box_gens_left(box, &disk_bytes, &inodes);
    GBytes *filter = filter_build(box->copy_dir != NULL ? FILTER_BARE : FILTER_BOX, error);
    if (filter == NULL)
        return FALSE;
    gsize filter_len;
    SpecOpen open = {
        .flags = (spec->n_root > 0 ? 0u : (guint)SPEC_OPEN_HOST_ROOT) |
                 (spec->root_read_only ? (guint)SPEC_OPEN_ROOT_READ_ONLY : 0u) |
                 (spec->net == BOX_NET_HOST ? (guint)SPEC_OPEN_NET_HOST : 0u) |
                 (box->ids.mode == BOX_IDS_RANGE ? (guint)SPEC_OPEN_MOUNT_FDS : 0u) |
                 (box->ids.mode != BOX_IDS_SINGLE || (box->copy_dir != NULL && geteuid() == 0)
                      ? (guint)SPEC_OPEN_SETGROUPS
                      : 0u) |
                 (spec->net == BOX_NET_PROXY ? (guint)SPEC_OPEN_NET_PROXY : 0u) |
                 (spec->root_upper_fd > 0 ? (guint)SPEC_OPEN_ROOT_UPPER : 0u) |
                 (spec->work_upper_fd > 0 ? (guint)SPEC_OPEN_WORK_UPPER : 0u) |
                 (cgroup_leaf_fd(box->cgroup) >= 0 ? (guint)SPEC_OPEN_CGROUP : 0u) |
                 (box->copy_dir != NULL ? (guint)SPEC_OPEN_DEGRADED : 0u) |
                 (box->is_sampled ? (guint)SPEC_OPEN_SAMPLE : 0u),
        .uid = spec->uid,
        .gid = spec->gid,
        .n_root = spec->n_root > 0 ? (guint32)spec->n_root : 1,
        .n_layers = (guint32)spec->n_layers,
        .n_work = (guint32)spec->n_work,
        .n_mounts = (guint32)spec->n_mounts,
        .n_gens = box->copy_dir != NULL ? 0 : box->below->len,
        .work_path = box->work_path,
        .hostname = spec->hostname != NULL ? spec->hostname : "sandbox",
        .uids = box->ids.uids,
        .gids = box->ids.gids,
        .limits = {spec->limits.cpu_ms, spec->limits.mem_bytes, disk_bytes, inodes,
                   spec->limits.tmp_bytes, spec->limits.file_bytes, spec->limits.pids,
                   spec->limits.nofile, spec->limits.stack_bytes, affinity_cpus(box, &spec->limits),
                   spec->slot * affinity_cpus(box, &spec->limits)},
        .filter = g_bytes_get_data(filter, &filter_len),
    };
    open.filter_len = (guint32)filter_len;
    for (gsize i = 0; i < spec->n_mounts; i++)
        open.mount_paths[i] = spec->mounts[i].path;
    SpecWriter writer = launch_writer(bytes);
    spec_put_open(&writer, &open);
    return TRUE;
}

/* The keeper's listener, then the proxy on it. */
static gboolean start_proxy(Box *box, const BoxSpec *spec, GError **error)
{
    SpecReply reply;
    AUTO_FD listener = -1;
    if (!launch_receive(box->sock, &reply, &listener, 1, error))
        return FALSE;
    if (reply.kind != SPEC_REPLY_LISTENER || listener < 0)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent an unexpected reply");
    box->egress = egress_start(&spec->egress, listener, error);
    return box->egress != NULL;
}

/* Hands the spec to the starter and waits until the keeper has built the tree. */
static gboolean start_keeper(Box *box, const BoxSpec *spec, const FdList *shown, GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    SpecReply reply;
    int sv[2], fds[SPEC_FDS_MAX], tree[SPEC_TREE_FDS], leaf = cgroup_leaf_fd(box->cgroup);
    guint n = 0;
    if (!encode_open(box, spec, bytes, error))
        return FALSE;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0)
        return error_set_errno(error, errno, "socketpair");
    box->sock = sv[0];
    fds[n++] = sv[1];
    if (leaf >= 0)
        fds[n++] = leaf;
    memcpy(fds + n, shown->fds, shown->n * sizeof(int));
    gboolean ok = launch_send(box->starter->sock, bytes, fds, n + shown->n, error) &&
                  launch_receive(box->starter->sock, &reply, &box->pidfd, 1, error);
    close(sv[1]); /* so that the keeper's death is seen as the end of the stream */
    if (!ok)
        return FALSE;
    if (spec->net == BOX_NET_PROXY && !start_proxy(box, spec, error))
        return FALSE;
    if (!launch_receive(box->sock, &reply, tree, SPEC_TREE_FDS, error))
        return FALSE;
    box->layers = reply.layers;
    box->landlock_abi = reply.landlock_abi;
    box_take_tree(box, tree);
    if (reply.kind != SPEC_REPLY_OPENED || box->root_fd < 0)
        return error_set(error, ASSAY_ERROR_SYSTEM, "assay-box sent an unexpected reply");
    box->is_staging = TRUE;
    return TRUE;
}

static gboolean open_with_ids(Box *box, const BoxSpec *spec, gboolean shared, GError **error)
{
    g_auto(FdList) shown = {0};
    if (!box_ids_choose(spec->slot, spec->uid, spec->gid, shared, &box->ids, error))
        return FALSE;
    return show_all(&shown, box, spec, error) &&
           box_gens_show(box, box->below, shown.fds, &shown.n, error) &&
           start_keeper(box, spec, &shown, error);
}

static gboolean open_cgroup(Box *box, const BoxSpec *spec, GError **error)
{
    box->cgroup = cgroup_slot(spec->slot);
    box->is_sampled =
        cgroup_mem_by(box->cgroup) == BOX_BY_NOBODY || cgroup_cpu_by(box->cgroup) == BOX_BY_NOBODY;
    if (!box->starter->attached) {
        if (!cgroup_attach(box->cgroup, box->starter->pid, error))
            return FALSE;
        box->starter->attached = TRUE;
    }
    cgroup_wait_drained(box->cgroup);
    box->oom_kills = box->last_oom_kills = cgroup_usage(box->cgroup).oom_kills;
    return cgroup_limits(box->cgroup, &spec->limits, error);
}

static gboolean open_namespaces(Box *box, const BoxSpec *spec, GError **error)
{
    g_autoptr(GError) local = NULL;
    const char *force = g_getenv("ASSAY_BOX_FORCE");
    if (g_strcmp0(force, "landlock") == 0)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "ASSAY_BOX_FORCE=landlock");
    if (g_strcmp0(force, "shared") == 0)
        return open_with_ids(box, spec, TRUE, error);
    if (open_with_ids(box, spec, FALSE, &local))
        return TRUE;
    if (!g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_UNSUPPORTED)) {
        g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    return open_with_ids(box, spec, TRUE, error);
}

/* Landlock, filter and limits only; asked for by allow_degraded, and never silent. */
static gboolean open_degraded(Box *box, const BoxSpec *spec, GError **error)
{
    g_auto(FdList) shown = {0};
    BoxSpec plain = *spec;
    plain.n_work = 0; /* copied */
    if (kernel_landlock_abi() <= 0)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "there is no Landlock either");
    if (!box_degraded_prepare(box, spec, error))
        return FALSE;
    shown.fds[0] = open(box->copy_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (shown.fds[0] < 0)
        return error_set_errno(error, errno, "open the copy");
    shown.n = 1;
    g_clear_pointer(&box->degraded_why, g_free);
    box->root_fd = fcntl(shown.fds[0], F_DUPFD_CLOEXEC, 3);
    return start_keeper(box, &plain, &shown, error);
}

static gboolean open_box(Box *box, const BoxSpec *spec, GError **error)
{
    g_autoptr(GError) local = NULL;
    box->starter = launch_starter(spec->slot, error);
    if (box->starter == NULL || !open_cgroup(box, spec, error))
        return FALSE;
    if (open_namespaces(box, spec, &local))
        return TRUE;
    if (!spec->allow_degraded || spec->net == BOX_NET_PROXY) { /* there is no network to proxy to */
        g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    if (box->sock >= 0)
        close(box->sock);
    if (box->pidfd >= 0)
        close(box->pidfd);
    box->sock = box->pidfd = -1;
    box->is_staging = FALSE;
    if (!open_degraded(box, spec, error)) {
        g_prefix_error(error, "%s; without namespaces: ", local->message);
        return FALSE;
    }
    box->degraded_why = g_strdup(local->message);
    return TRUE;
}

static gboolean check_required(const Box *box, guint require, GError **error)
{
    guint missing = require & ~box->layers;
    if (missing == 0)
        return TRUE;
    g_autoptr(GString) names = g_string_new(NULL);
    for (guint bit = 1; bit <= BOX_LAYER_CGROUP; bit <<= 1)
        if (missing & bit)
            g_string_append_printf(names, "%s%s", names->len > 0 ? ", " : "",
                                   box_layer_str((BoxLayer)bit));
    return error_set(error, ASSAY_ERROR_UNSUPPORTED, "required layers are missing: %s", names->str);
}

void box_shutdown(void)
{
    launch_stop_all();
    cgroup_remove_all();
}

/* The workspace's directories, for reading changes and files later. */
static gboolean keep_work_fds(Box *box, const BoxSpec *spec, GError **error)
{
    box->work_fds = g_array_new(FALSE, FALSE, sizeof(int));
    for (gsize i = 0; i < spec->n_work; i++) {
        int fd = fcntl(spec->work_fds[i], F_DUPFD_CLOEXEC, 3);
        if (fd < 0)
            return error_set_errno(error, errno, "a layer of the workspace");
        g_array_append_val(box->work_fds, fd);
    }
    if (spec->work_upper_fd <= 0)
        return TRUE;
    box->work_upper_fd = fcntl(spec->work_upper_fd, F_DUPFD_CLOEXEC, 3);
    return box->work_upper_fd >= 0 || error_set_errno(error, errno, "the workspace's upper");
}

Box *box_open(const BoxSpec *spec, GError **error)
{
    static gsize at_exit;
    if (!check_spec(spec, error))
        return NULL;
    if (g_once_init_enter(&at_exit)) {
        atexit(box_shutdown);
        fd_ignore_sigpipe(); /* a command may close its stdin while we write to it */
        g_once_init_leave(&at_exit, 1);
    }
    g_autoptr(Box) box = g_new0(Box, 1);
    box->sock = box->pidfd = box->root_fd = box->written_fd = box->work_upper_fd = -1;
    box->session = (BoxInit){-1, -1};
    box->limits = spec->limits;
    box->uid = spec->uid;
    box->gid = spec->gid;
    box->below = box_gens_new(NULL);
    box->at_open = box_gens_new(NULL);
    box->net = spec->net;
    box->disk_by =
        spec->root_upper_fd > 0 || spec->work_upper_fd > 0 ? BOX_BY_NOBODY : BOX_BY_TMPFS;
    box->work_path = g_strdup(spec->work_path != NULL ? spec->work_path : "/work");

    if (!keep_work_fds(box, spec, error) ||
        (spec->snapshot != NULL && !box_snapshot_start(box, spec->snapshot, error)) ||
        !open_box(box, spec, error)) {
        g_prefix_error(error, "open a box: ");
        return NULL;
    }
    if (cgroup_mem_by(box->cgroup) != BOX_BY_NOBODY && cgroup_pids_by(box->cgroup) != BOX_BY_NOBODY)
        box->layers |= BOX_LAYER_CGROUP;
    if (!check_required(box, spec->require, error))
        return NULL;
    return g_steal_pointer(&box);
}

static void close_fds(Box *box)
{
    int *const fds[] = {&box->root_fd, &box->written_fd, &box->work_upper_fd};
    for (gsize i = 0; i < G_N_ELEMENTS(fds); i++)
        if (*fds[i] >= 0)
            close(*fds[i]);
    for (guint i = 0; i < box->work_fds->len; i++)
        close(g_array_index(box->work_fds, int, i));
    g_array_unref(box->work_fds);
}

void box_close(Box *box)
{
    if (box == NULL)
        return;
    /* Before the keeper goes: whoever is last to let go of a file system takes it apart. */
    close_fds(box);
    box_init_clear(&box->session);
    if (box->sock >= 0)
        close(box->sock); /* the keeper sees the end of the stream and ends */
    if (box->pidfd >= 0) {
        launch_leave_keeper(box->starter, box->pidfd);
        if (box->disk_by == BOX_BY_NOBODY)
            launch_wait_keepers(box->starter); /* the caller's directories are free again */
        box_stage_next_box(box);
    }
    if (box->copy_dir != NULL && box->starter != NULL)
        launch_wait_keepers(box->starter);
    egress_stop(box->egress);
    box_degraded_remove(box);
    g_ptr_array_unref(box->below);
    g_ptr_array_unref(box->at_open);
    g_free(box->work_path);
    g_free(box->degraded_why);
    g_free(box);
}

guint box_enforced(const Box *box)
{
    return box->layers;
}
