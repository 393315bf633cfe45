/*
 * Walks of trees whose content may be hostile: names come from readdir, every step is openat with
 * O_NOFOLLOW, and the walk stays on the device it began on.
 *
 * Invariants:
 *   1. No path string is ever joined and resolved.
 *   2. Depth is bounded (TREE_DEPTH_MAX), so a hostile tree cannot exhaust descriptors.
 */
#include "base/tree.h"

#include "base/error.h"
#include "base/fd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define TREE_DEPTH_MAX 512

static void dir_close_p(DIR **dir)
{
    if (*dir != NULL)
        closedir(*dir);
}
#define AUTO_DIR __attribute__((cleanup(dir_close_p))) DIR

static int tree_open_sub(int dir_fd, const char *name)
{
    int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(dir_fd, name, flags);
    if (fd < 0 && errno == EACCES && fchmodat(dir_fd, name, 0700, 0) == 0)
        fd = openat(dir_fd, name, flags);
    return fd;
}

static gboolean tree_remove_at(int dir_fd, const char *name, dev_t device, int depth,
                               GError **error);

static gboolean tree_empty(int fd, dev_t device, int depth, GError **error)
{
    AUTO_DIR *dir = fdopendir(dup(fd));
    if (dir == NULL)
        return error_set_errno(error, errno, "fdopendir");
    fchmod(fd, 0700); /* a mode without w or x would keep the owner out too */

    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (!tree_remove_at(fd, entry->d_name, device, depth + 1, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean tree_remove_at(int dir_fd, const char *name, dev_t device, int depth,
                               GError **error)
{
    if (depth > TREE_DEPTH_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "remove %s: deeper than %d directories", name,
                         TREE_DEPTH_MAX);
    if (unlinkat(dir_fd, name, 0) == 0 || errno == ENOENT)
        return TRUE;
    if (errno != EISDIR && errno != EPERM)
        return error_set_errno(error, errno, "remove %s", name);

    AUTO_FD fd = tree_open_sub(dir_fd, name);
    if (fd < 0)
        return errno == ENOENT ? TRUE : error_set_errno(error, errno, "open %s", name);
    struct stat st;
    if (fstat(fd, &st) < 0)
        return error_set_errno(error, errno, "stat %s", name);
    if (st.st_dev != device)
        return error_set(error, ASSAY_ERROR_SYSTEM, "remove %s: something is mounted there", name);
    if (!tree_empty(fd, device, depth, error)) {
        g_prefix_error(error, "%s/", name);
        return FALSE;
    }
    if (unlinkat(dir_fd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        return error_set_errno(error, errno, "rmdir %s", name);
    return TRUE;
}

gboolean tree_remove(int dir_fd, const char *name, GError **error)
{
    struct stat st;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? TRUE : error_set_errno(error, errno, "stat %s", name);
    return tree_remove_at(dir_fd, name, st.st_dev, 0, error);
}

int tree_open_dir(int dir_fd, const char *name, guint mode, GError **error)
{
    if (mkdirat(dir_fd, name, mode) < 0 && errno != EEXIST) {
        error_set_errno(error, errno, "mkdir %s", name);
        return -1;
    }
    int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        error_set_errno(error, errno, "open %s", name);
    return fd;
}

static guint64 tree_bytes_at(int fd, GHashTable *seen, int depth)
{
    AUTO_DIR *dir = depth < TREE_DEPTH_MAX ? fdopendir(dup(fd)) : NULL;
    guint64 sum = 0;

    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        struct stat st;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        gint64 inode = (gint64)st.st_ino;
        if (st.st_nlink == 1 || S_ISDIR(st.st_mode) ||
            g_hash_table_add(seen, g_memdup2(&inode, sizeof inode)))
            sum += (guint64)st.st_blocks * 512;
        if (!S_ISDIR(st.st_mode))
            continue;
        AUTO_FD sub = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (sub >= 0)
            sum += tree_bytes_at(sub, seen, depth + 1);
    }
    return sum;
}

guint64 tree_bytes(int dir_fd)
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    return tree_bytes_at(dir_fd, seen, 0);
}

static gboolean tree_chown_at(int dir_fd, const char *name, guint uid, guint gid, int depth,
                              GError **error)
{
    if (fchownat(dir_fd, name, uid, gid, AT_SYMLINK_NOFOLLOW) < 0)
        return error_set_errno(error, errno, "chown %s", name);
    AUTO_FD fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || depth > TREE_DEPTH_MAX)
        return TRUE;
    AUTO_DIR *dir = fdopendir(dup(fd));
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            !tree_chown_at(fd, entry->d_name, uid, gid, depth + 1, error))
            return FALSE;
    return TRUE;
}

gboolean tree_chown(int dir_fd, const char *name, guint uid, guint gid, GError **error)
{
    if (uid == geteuid() && gid == getegid())
        return TRUE;
    return tree_chown_at(dir_fd, name, uid, gid, 0, error);
}
