/*
 * The digest of a tree: equal trees, whoever made them and when, have equal digests.
 *
 * Invariants:
 *   1. The walk is by descriptor, in byte order of names, through no link, on one device.
 *   2. Every field is length-prefixed (base/digest.h), so no two trees share an encoding.
 */
#include "sandbox/depot.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/fd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define DIGEST_DEPTH_MAX 300
#define XATTR_BYTES_MAX  65536

typedef struct Walk {
    Digest *digest;
    GHashTable *seen; /* inode -> path, for files with several names */
} Walk;

static void add_number(Digest *digest, guint64 value)
{
    value = GUINT64_TO_LE(value);
    digest_add(digest, &value, sizeof value);
}

static gint by_text(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* "user." attributes; what the host adds by itself is not the tree's: labels, and what overlayfs
 * notes on a layer that was once written. That a directory is opaque is. */
static gboolean is_content(const char *name)
{
    return g_str_has_prefix(name, "user.") &&
           (!g_str_has_prefix(name, "user.overlay.") || g_str_equal(name, "user.overlay.opaque"));
}

static gboolean add_xattrs(Walk *walk, int fd, GError **error)
{
    g_autofree char *names = g_malloc(XATTR_BYTES_MAX);
    g_autofree char *value = g_malloc(XATTR_BYTES_MAX);
    g_autoptr(GPtrArray) sorted = g_ptr_array_new();
    ssize_t len = flistxattr(fd, names, XATTR_BYTES_MAX);
    if (len < 0 && errno != ENOTSUP)
        return error_set_errno(error, errno, "list extended attributes");
    for (ssize_t at = 0; at < len; at += (ssize_t)strlen(names + at) + 1)
        if (is_content(names + at))
            g_ptr_array_add(sorted, names + at);
    g_ptr_array_sort(sorted, by_text);
    for (guint i = 0; i < sorted->len; i++) {
        ssize_t n = fgetxattr(fd, sorted->pdata[i], value, XATTR_BYTES_MAX);
        if (n < 0)
            return error_set_errno(error, errno, "read an extended attribute");
        digest_add_str(walk->digest, sorted->pdata[i]);
        digest_add(walk->digest, value, (gsize)n);
    }
    digest_add_str(walk->digest, NULL);
    return TRUE;
}

static gboolean add_content(Walk *walk, int fd, GError **error)
{
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    guint8 chunk[65536];
    ssize_t n;
    while ((n = read(fd, chunk, sizeof chunk)) > 0)
        g_checksum_update(sum, chunk, n);
    digest_add_str(walk->digest, g_checksum_get_string(sum));
    return n == 0 || error_set_errno(error, errno, "read");
}

/* Opens what is ours even when its mode keeps its owner out, and leaves the mode as it was. */
static int open_readable(int dir_fd, const char *name, const struct stat *st, int flags)
{
    flags |= O_RDONLY | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(dir_fd, name, flags);
    if (fd >= 0 || errno != EACCES || fchmodat(dir_fd, name, 0700, 0) < 0)
        return fd;
    fd = openat(dir_fd, name, flags);
    if (fchmodat(dir_fd, name, st->st_mode & 07777, 0) == 0 || fd < 0)
        return fd;
    close(fd);
    return -1;
}

static gboolean walk_dir(Walk *walk, int fd, const char *path, int depth, GError **error);

static gboolean walk_file(Walk *walk, int dir_fd, const char *name, const char *path,
                          const struct stat *st, GError **error)
{
    gint64 inode = (gint64)st->st_ino;
    const char *first = st->st_nlink > 1 ? g_hash_table_lookup(walk->seen, &inode) : NULL;
    digest_add_str(walk->digest, first);
    if (first != NULL)
        return TRUE;
    if (st->st_nlink > 1)
        g_hash_table_insert(walk->seen, g_memdup2(&inode, sizeof inode), g_strdup(path));
    AUTO_FD fd = open_readable(dir_fd, name, st, O_NONBLOCK);
    if (fd < 0)
        return error_set_errno(error, errno, "open %s", path);
    return add_content(walk, fd, error) && add_xattrs(walk, fd, error);
}

static gboolean walk_entry(Walk *walk, int dir_fd, const char *name, const char *path, int depth,
                           GError **error)
{
    struct stat st;
    char target[4097];
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return error_set_errno(error, errno, "stat %s", path);
    digest_add_str(walk->digest, path);
    add_number(walk->digest, st.st_mode);
    add_number(walk->digest, st.st_uid);
    add_number(walk->digest, st.st_gid);
    if (S_ISREG(st.st_mode))
        return walk_file(walk, dir_fd, name, path, &st, error);
    if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlinkat(dir_fd, name, target, sizeof target);
        if (n < 0)
            return error_set_errno(error, errno, "read the link %s", path);
        digest_add(walk->digest, target, (gsize)n);
        return TRUE;
    }
    if (!S_ISDIR(st.st_mode)) {
        add_number(walk->digest, st.st_rdev);
        return TRUE;
    }
    AUTO_FD fd = open_readable(dir_fd, name, &st, O_DIRECTORY);
    if (fd < 0)
        return error_set_errno(error, errno, "open %s", path);
    return add_xattrs(walk, fd, error) && walk_dir(walk, fd, path, depth + 1, error);
}

/* Names of a directory in byte order. */
static GPtrArray *names_of(int fd, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = again < 0 ? NULL : fdopendir(again);
    if (dir == NULL) {
        error_set_errno(error, errno, "list");
        return NULL;
    }
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            g_ptr_array_add(names, g_strdup(entry->d_name));
    closedir(dir);
    g_ptr_array_sort(names, by_text);
    return g_steal_pointer(&names);
}

static gboolean walk_dir(Walk *walk, int fd, const char *path, int depth, GError **error)
{
    if (depth > DIGEST_DEPTH_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "deeper than %d directories", DIGEST_DEPTH_MAX);
    g_autoptr(GPtrArray) names = names_of(fd, error);
    for (guint i = 0; names != NULL && i < names->len; i++) {
        const char *name = names->pdata[i];
        g_autofree char *sub = g_strdup_printf("%s/%s", path, name);
        if (!walk_entry(walk, fd, name, sub, depth, error))
            return FALSE;
    }
    return names != NULL;
}

char *depot_tree_digest(int dir_fd, GError **error)
{
    g_autoptr(Digest) digest = digest_new("assay.tree.v1");
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    Walk walk = {digest, seen};
    if (!add_xattrs(&walk, dir_fd, error) || !walk_dir(&walk, dir_fd, "", 0, error))
        return NULL;
    g_autofree char *hex = digest_finish(digest);
    return g_strconcat("sha256:", hex, NULL);
}
