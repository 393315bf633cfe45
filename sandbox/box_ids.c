/*
 * Host ids of boxes, and idmapped views of directories.
 *
 * On disk every tree that boxes write belongs to the store's range (range 0), whichever slot wrote
 * it. A slot has a range of its own, so that limits and signals are not shared; directories are
 * shown to it through a mount that maps the store's range to the slot's. The owner on disk, store
 * id 0, appears as the box's user, so one tree serves commands of any inside uid: the map swaps the
 * store's id 0 with the box's uid.
 *
 * Invariants:
 *   1. Host uid 0 is in no map, unless this process is itself in a user namespace where 0 is not
 *      the host's.
 *   2. A lower is never writable; an upper always belongs to the store's range.
 *
 * Not here: the box's own id map is written by the starter (keeper_main.c).
 */
#include "sandbox/box_ids.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/box.h"
#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

static void add_line(SpecMap *map, guint32 inside, guint32 outside, guint32 count)
{
    if (count == 0)
        return;
    g_assert(map->n < SPEC_MAPS_MAX);
    map->lines[map->n][0] = inside;
    map->lines[map->n][1] = outside;
    map->lines[map->n][2] = count;
    map->n++;
}

/* Does the map of our own user namespace contain the whole of our ranges? */
static gboolean own_map_has_ranges(const char *path)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return FALSE;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line != NULL; line++) {
        char *at = *line;
        guint64 inside = g_ascii_strtoull(at, &at, 10);
        g_ascii_strtoull(at, &at, 10);
        guint64 count = g_ascii_strtoull(at, &at, 10);
        if (inside <= BOX_ID_BASE && inside + count >= BOX_ID_BASE + BOX_ID_COUNT * 2048ull)
            return TRUE;
    }
    return FALSE;
}

/* Asked once: a process does not change its user namespace. */
static gboolean have_ranges(void)
{
    static int known = -1;
    if (known < 0)
        known =
            own_map_has_ranges("/proc/self/uid_map") && own_map_has_ranges("/proc/self/gid_map");
    return known && geteuid() == 0;
}

/* In the host's own user namespace uid 0 is the host's. */
static gboolean is_host_root(void)
{
    return geteuid() == 0 && own_map_has_ranges("/proc/self/uid_map");
}

guint box_store_uid(void)
{
    return have_ranges() ? BOX_ID_BASE : geteuid();
}

guint box_store_gid(void)
{
    return have_ranges() ? BOX_ID_BASE : getegid();
}

gboolean box_ids_choose(guint slot, guint uid, guint gid, gboolean shared, BoxIds *ret_ids,
                        GError **error)
{
    *ret_ids = (BoxIds){.uid = uid, .gid = gid};
    if (slot > BOX_SLOT_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "slot %u is above %u", slot, BOX_SLOT_MAX);
    if (uid >= 65533 || gid >= 65533)
        return error_set(error, ASSAY_ERROR_LIMIT, "inside ids must be below 65533");

    if (have_ranges()) {
        ret_ids->mode = shared ? BOX_IDS_SHARED : BOX_IDS_RANGE;
        ret_ids->base = shared ? BOX_ID_BASE : BOX_ID_BASE + (slot + 1) * BOX_ID_COUNT;
        add_line(&ret_ids->uids, 0, ret_ids->base, BOX_ID_COUNT);
        add_line(&ret_ids->gids, 0, ret_ids->base, BOX_ID_COUNT);
        return TRUE;
    }
    if (is_host_root())
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "the host's uid 0 never enters a box, and no id range can be mapped");
    ret_ids->mode = BOX_IDS_SINGLE;
    ret_ids->base = geteuid();
    add_line(&ret_ids->uids, uid, geteuid(), 1);
    add_line(&ret_ids->gids, gid, getegid(), 1);
    return TRUE;
}

static gboolean in_store(guint id)
{
    return id >= BOX_ID_BASE && id < BOX_ID_BASE + BOX_ID_COUNT;
}

/* Store id 0 <-> the box's id, everything else in place. */
static void swap_map(SpecMap *map, guint base, guint id)
{
    if (id == 0) {
        add_line(map, BOX_ID_BASE, base, BOX_ID_COUNT);
        return;
    }
    add_line(map, BOX_ID_BASE, base + id, 1);
    add_line(map, BOX_ID_BASE + 1, base + 1, id - 1);
    add_line(map, BOX_ID_BASE + id, base, 1);
    add_line(map, BOX_ID_BASE + id + 1, base + id + 1, BOX_ID_COUNT - id - 1);
}

static void dir_map(SpecMap *map, guint base, guint id, guint owner, BoxDirKind kind)
{
    if (kind == BOX_DIR_SYSTEM && (owner == 0 || in_store(owner)))
        add_line(map, owner == 0 ? 0 : BOX_ID_BASE, base, BOX_ID_COUNT);
    else if (in_store(owner))
        swap_map(map, base, id);
    else
        add_line(map, owner, base + (kind == BOX_DIR_SYSTEM ? 0 : id), 1);
}

int box_ids_show(const BoxIds *ids, Starter *starter, int dir_fd, BoxDirKind kind, GError **error)
{
    struct stat st;
    if (fstat(dir_fd, &st) < 0 || !S_ISDIR(st.st_mode)) {
        error_set_errno(error, errno, "a layer is not an open directory");
        return -1;
    }
    if (ids->mode != BOX_IDS_RANGE)
        return fcntl(dir_fd, F_DUPFD_CLOEXEC, 3);
    if (kind == BOX_DIR_UPPER && !in_store(st.st_uid)) {
        error_set(error, ASSAY_ERROR_INPUT, "an upper directory belongs to uid %u, not to %u",
                  st.st_uid, box_store_uid());
        return -1;
    }
    SpecMap uids = {0}, gids = {0};
    dir_map(&uids, ids->base, ids->uid, st.st_uid, kind);
    dir_map(&gids, ids->base, ids->gid, st.st_gid, kind);
    int userns = launch_idmap(starter, &uids, &gids, error);
    if (userns < 0)
        return -1;

    AUTO_FD tree = kernel_open_tree(
        dir_fd, "", KERNEL_OPEN_TREE_CLONE | KERNEL_OPEN_TREE_CLOEXEC | KERNEL_AT_EMPTY_PATH);
    struct kernel_mount_attr attr = {
        .attr_set = KERNEL_MOUNT_ATTR_IDMAP | KERNEL_MOUNT_ATTR_NOSUID | KERNEL_MOUNT_ATTR_NODEV |
                    (kind == BOX_DIR_UPPER ? 0 : KERNEL_MOUNT_ATTR_RDONLY),
        .userns_fd = (guint64)userns};
    if (tree < 0 || kernel_mount_setattr(tree, 0, &attr) < 0) {
        error_set(error, ASSAY_ERROR_UNSUPPORTED, "idmap a directory: %s", g_strerror(errno));
        return -1;
    }
    return fd_take(&tree);
}
