/*
 * Unpacking a layer: libarchive reads, we write.
 *
 * Two readers in a row: the first only decompresses, so that the uncompressed bytes can be hashed
 * and counted; the second reads tar headers from it.
 *
 * Invariants:
 *   1. Every path is split into plain components first; ".." and names too long or too deep
 *      are refused. Then every step is taken by descriptor, beneath the tree, through
 *      no symlink.
 *   2. Nothing is made twice, directories excepted, and nothing that exists is written to: a file
 *      is created with O_EXCL or it is an error.
 *   3. No device, no set-id bit, no xattr outside "user."; "user.overlay." would mean something to
 *      the kernel and is refused.
 *   4. Sizes are compared with what is left of a limit before anything is written.
 *
 * Not here: owners and whiteouts, which need what a box has not (image_unpack.c).
 */
#include "sandbox/unpack.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/kernel.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define CHUNK           65536
#define NAME_BYTES_MAX  255
#define STREAM_SLACK    (2ull << 30) /* headers and padding, over bytes_max */
#define XATTRS_MAX      64
#define XATTR_BYTES_MAX 65536
#define FILTERS_MAX     2 /* libarchive counts "none" as one */
#define BENEATH         (KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_SYMLINKS)

/* What a directory gets at the end: until then it must be writable, and its time changes. */
typedef struct DirMeta {
    mode_t mode;
    struct timespec mtime;
    gboolean has_mtime;
} DirMeta;

typedef struct Unpack {
    int out_fd;
    const UnpackLimits *limits;
    UnpackNoteFn note;
    gpointer data;
    struct archive *raw;
    GChecksum *sum;
    guint64 stream_bytes;
    gboolean at_end;  /* of the stream */
    gboolean is_cut;  /* the archive ends with the last file's last byte */
    GHashTable *dirs; /* path -> DirMeta */
    UnpackSums sums;
} Unpack;

static void archive_free_p(struct archive **archive)
{
    if (*archive != NULL)
        archive_read_free(*archive);
}
#define AUTO_ARCHIVE __attribute__((cleanup(archive_free_p))) struct archive

/* ---- paths ---- */

static gboolean component_ok(const char *name, gsize len, GError **error)
{
    if (len == 2 && memcmp(name, "..", 2) == 0)
        return error_set(error, ASSAY_ERROR_INPUT, "the path has a \"..\"");
    return len <= NAME_BYTES_MAX ||
           error_set(error, ASSAY_ERROR_LIMIT, "a name is longer than %d bytes", NAME_BYTES_MAX);
}

/* "./a//b/" and "/a/b" become "a/b": a layer's "/" is the tree, as for tar and docker. The top
 * itself is "". NULL: refused. */
static char *path_normal(const char *raw, GError **error)
{
    if (raw == NULL || strnlen(raw, UNPACK_PATH_MAX) == UNPACK_PATH_MAX) {
        error_set(error, ASSAY_ERROR_INPUT,
                  raw == NULL ? "the path has no readable name" : "the path is too long");
        return NULL;
    }
    g_autoptr(GString) path = g_string_new(NULL);
    guint depth = 0;
    for (const char *part = raw + strspn(raw, "/"); *part != '\0';) {
        gsize len = strcspn(part, "/");
        if (len > 0 && !(len == 1 && part[0] == '.')) {
            if (!component_ok(part, len, error))
                return NULL;
            if (++depth > UNPACK_DEPTH_MAX) {
                error_set(error, ASSAY_ERROR_LIMIT, "the path is deeper than %d directories",
                          UNPACK_DEPTH_MAX);
                return NULL;
            }
            g_string_append_printf(path, "%s%.*s", path->len > 0 ? "/" : "", (int)len, part);
        }
        part += len;
        part += strspn(part, "/");
    }
    return g_string_free(g_steal_pointer(&path), FALSE);
}

static gboolean set_walk_errno(GError **error, int err)
{
    if (err == ELOOP)
        return error_set(error, ASSAY_ERROR_INPUT, "the path goes through a symlink");
    if (err == ENOTDIR)
        return error_set(error, ASSAY_ERROR_INPUT, "the path goes through a file");
    return error_set_errno(error, err, "walk to its directory");
}

static int open_dir(const Unpack *unpack, const char *path, int flags)
{
    return kernel_openat2(unpack->out_fd, path[0] == '\0' ? "." : path,
                          (guint64)flags | O_DIRECTORY | O_CLOEXEC, 0, BENEATH);
}

static void dir_note(Unpack *unpack, const char *path, DirMeta meta)
{
    g_hash_table_replace(unpack->dirs, g_strdup(path), g_memdup2(&meta, sizeof meta));
}

/* Opens the directory PATH, making what is missing of it. -1 on error. */
static int ensure_dir(Unpack *unpack, const char *path, GError **error)
{
    int fd = open_dir(unpack, path, O_PATH);
    if (fd >= 0 || errno != ENOENT) {
        if (fd < 0)
            set_walk_errno(error, errno);
        return fd;
    }
    g_autofree char *part = g_strdup(path);
    for (char *at = part;; at++) {
        if (*at != '/' && *at != '\0')
            continue;
        char saved = *at;
        *at = '\0';
        const char *slash = strrchr(part, '/');
        g_autofree char *above =
            slash != NULL ? g_strndup(part, (gsize)(slash - part)) : g_strdup("");
        AUTO_FD up = open_dir(unpack, above, O_PATH);
        int r = up < 0 ? -1 : mkdirat(up, slash != NULL ? slash + 1 : part, 0700);
        if (r < 0 && errno != EEXIST) {
            set_walk_errno(error, errno);
            return -1;
        }
        if (r == 0)
            dir_note(unpack, part, (DirMeta){.mode = 0755});
        *at = saved;
        if (saved == '\0')
            break;
    }
    fd = open_dir(unpack, path, O_PATH);
    if (fd < 0)
        set_walk_errno(error, errno);
    return fd;
}

/* The directory that PATH is in; `ret_name` points into PATH. */
static int ensure_parent(Unpack *unpack, const char *path, const char **ret_name, GError **error)
{
    const char *slash = strrchr(path, '/');
    g_autofree char *above = slash != NULL ? g_strndup(path, (gsize)(slash - path)) : g_strdup("");
    *ret_name = slash != NULL ? slash + 1 : path;
    return ensure_dir(unpack, above, error);
}

static gboolean set_make_errno(GError **error, int err)
{
    return err == EEXIST ? error_set(error, ASSAY_ERROR_INPUT, "there are two entries of this name")
                         : error_set_errno(error, err, "make");
}

/* ---- one entry ---- */

static struct timespec mtime_of(struct archive_entry *entry)
{
    return (struct timespec){archive_entry_mtime(entry), archive_entry_mtime_nsec(entry)};
}

static gboolean set_xattrs(int fd, struct archive_entry *entry, GError **error)
{
    const char *name;
    const void *value;
    size_t size;
    if (archive_entry_xattr_reset(entry) > XATTRS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "more than %d extended attributes", XATTRS_MAX);
    while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
        if (name == NULL || size > XATTR_BYTES_MAX)
            return error_set(error, ASSAY_ERROR_LIMIT, "an extended attribute is too large");
        if (g_str_has_prefix(name, "user.overlay.") || g_str_has_prefix(name, "trusted."))
            return error_set(error, ASSAY_ERROR_INPUT, "the extended attribute %s is refused",
                             name);
        if (fd < 0 || !g_str_has_prefix(name, "user."))
            continue; /* file capabilities, labels, ACLs: they mean nothing in a box */
        if (fsetxattr(fd, name, value, size, 0) < 0 && errno != ENOTSUP)
            return error_set_errno(error, errno, "set the extended attribute %s", name);
    }
    return TRUE;
}

/* Some writers leave out the padding after the last file: all its bytes are there, and nothing can
 * follow. */
static gboolean is_cut_padding(Unpack *unpack, guint64 end, guint64 size)
{
    unpack->is_cut = end == size && unpack->at_end;
    return unpack->is_cut;
}

static gboolean write_data(Unpack *unpack, struct archive *tar, int fd, guint64 size,
                           GError **error)
{
    guint64 end = 0;
    for (;;) {
        const void *data;
        size_t len;
        la_int64_t offset;
        int r = archive_read_data_block(tar, &data, &len, &offset);
        if (r == ARCHIVE_EOF || (r != ARCHIVE_OK && is_cut_padding(unpack, end, size)))
            break;
        if (r != ARCHIVE_OK)
            return error_set(error, ASSAY_ERROR_INPUT, "%s", archive_error_string(tar));
        if (offset < 0 || (guint64)offset > size || len > size - (guint64)offset)
            return error_set(error, ASSAY_ERROR_INPUT, "there is more data than its size says");
        for (gsize done = 0; done < len;) {
            ssize_t n = pwrite(fd, (const char *)data + done, len - done, offset + (off_t)done);
            if (n < 0 && errno != EINTR)
                return error_set_errno(error, errno, "write");
            done += n > 0 ? (gsize)n : 0;
        }
        end = (guint64)offset + len;
    }
    return ftruncate(fd, (off_t)size) == 0 || error_set_errno(error, errno, "set its size");
}

static gboolean make_file(Unpack *unpack, struct archive *tar, struct archive_entry *entry,
                          const char *path, GError **error)
{
    const char *name;
    la_int64_t size = archive_entry_size(entry);
    if (size < 0 || (guint64)size > unpack->limits->bytes_max - unpack->sums.bytes)
        return error_set(error, ASSAY_ERROR_LIMIT,
                         "the files are larger than %" G_GUINT64_FORMAT " bytes",
                         unpack->limits->bytes_max);
    AUTO_FD dir = ensure_parent(unpack, path, &name, error);
    if (dir < 0)
        return FALSE;
    AUTO_FD fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return set_make_errno(error, errno);
    const struct timespec times[2] = {mtime_of(entry), mtime_of(entry)};
    unpack->sums.bytes += (guint64)size;
    if (!write_data(unpack, tar, fd, (guint64)size, error) || !set_xattrs(fd, entry, error))
        return FALSE;
    if (fchmod(fd, archive_entry_perm(entry) & 0777) < 0 || futimens(fd, times) < 0)
        return error_set_errno(error, errno, "set its mode and time");
    return TRUE;
}

static gboolean make_dir(Unpack *unpack, struct archive_entry *entry, const char *path,
                         GError **error)
{
    const char *name;
    AUTO_FD up = path[0] != '\0' ? ensure_parent(unpack, path, &name, error) : -1;
    if (path[0] != '\0' && up < 0)
        return FALSE;
    if (up >= 0 && mkdirat(up, name, 0700) < 0 && errno != EEXIST)
        return error_set_errno(error, errno, "make");
    AUTO_FD fd = open_dir(unpack, path, O_RDONLY);
    if (fd < 0)
        return errno == ENOTDIR || errno == ELOOP ? set_make_errno(error, EEXIST)
                                                  : error_set_errno(error, errno, "open");
    dir_note(unpack, path,
             (DirMeta){.mode = archive_entry_perm(entry) & 01777,
                       .mtime = mtime_of(entry),
                       .has_mtime = TRUE});
    return set_xattrs(fd, entry, error);
}

static gboolean make_symlink(Unpack *unpack, struct archive_entry *entry, const char *path,
                             GError **error)
{
    const char *name, *target = archive_entry_symlink(entry);
    if (target == NULL || target[0] == '\0' || strlen(target) >= UNPACK_PATH_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "the link's target is empty or too long");
    AUTO_FD dir = ensure_parent(unpack, path, &name, error);
    if (dir < 0 || !set_xattrs(-1, entry, error))
        return FALSE;
    if (symlinkat(target, dir, name) < 0)
        return set_make_errno(error, errno);
    const struct timespec times[2] = {mtime_of(entry), mtime_of(entry)};
    utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW);
    return TRUE;
}

static gboolean make_hardlink(Unpack *unpack, struct archive_entry *entry, const char *path,
                              GError **error)
{
    const char *name;
    g_autofree char *target = path_normal(archive_entry_hardlink(entry), error);
    if (target == NULL) {
        g_prefix_error(error, "hard link's target: ");
        return FALSE;
    }
    AUTO_FD dir = ensure_parent(unpack, path, &name, error);
    if (dir < 0)
        return FALSE;
    AUTO_FD at = target[0] == '\0' ? -1
                                   : kernel_openat2(unpack->out_fd, target,
                                                    O_PATH | O_NOFOLLOW | O_CLOEXEC, 0, BENEATH);
    struct stat st;
    if (at < 0 || fstat(at, &st) < 0 || S_ISDIR(st.st_mode))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "the hard link's target is no earlier file of this archive");
    /* The walk above saw no symlink on the way, and nobody else writes here. */
    if (linkat(unpack->out_fd, target, dir, name, 0) < 0)
        return set_make_errno(error, errno);
    return TRUE;
}

/* ".wh.NAME" and ".wh..wh..opq" are orders to the layers below. TRUE with *ret_is: it was one. */
static gboolean take_whiteout(Unpack *unpack, const char *path, gboolean *ret_is, GError **error)
{
    const char *name = strrchr(path, '/') != NULL ? strrchr(path, '/') + 1 : path;
    *ret_is = g_str_has_prefix(name, ".wh.");
    if (!*ret_is) {
        *ret_is = FALSE;
        if (g_str_has_prefix(path, ".wh.") || strstr(path, "/.wh.") != NULL)
            return error_set(error, ASSAY_ERROR_INPUT, "a whiteout is no directory");
        return TRUE;
    }
    const char *what = name + 4;
    gboolean opaque = strcmp(what, ".wh..opq") == 0;
    if (!opaque && g_str_has_prefix(what, ".wh.")) {
        unpack->note(UNPACK_SKIPPED, path, 0, 0, unpack->data); /* housekeeping of old AUFS */
        return TRUE;
    }
    if (*what == '\0' || strcmp(what, ".") == 0 || strcmp(what, "..") == 0)
        return error_set(error, ASSAY_ERROR_INPUT, "the whiteout names nothing");
    g_autofree char *above = g_strndup(path, (gsize)(name - path));
    AUTO_FD there = open_dir(unpack, above, O_PATH);
    if (there < 0 && errno == ENOTDIR) { /* the layer has a file there: nothing below shows */
        unpack->note(UNPACK_SKIPPED, path, 0, 0, unpack->data);
        return TRUE;
    }
    AUTO_FD dir = ensure_parent(unpack, path, &name, error);
    if (dir < 0)
        return FALSE;
    g_autofree char *target = opaque ? g_strndup(above, above[0] != '\0' ? strlen(above) - 1 : 0)
                                     : g_strconcat(above, what, NULL);
    unpack->note(opaque ? UNPACK_OPAQUE : UNPACK_WHITEOUT, target, 0, 0, unpack->data);
    return TRUE;
}

static void note_owner(const Unpack *unpack, struct archive_entry *entry, const char *path)
{
    la_int64_t uid = archive_entry_uid(entry), gid = archive_entry_gid(entry);
    guint own_uid = uid >= 0 && uid <= UNPACK_ID_NOBODY ? (guint)uid : UNPACK_ID_NOBODY;
    guint own_gid = gid >= 0 && gid <= UNPACK_ID_NOBODY ? (guint)gid : UNPACK_ID_NOBODY;
    if (own_uid != 0 || own_gid != 0)
        unpack->note(UNPACK_OWNER, path, own_uid, own_gid, unpack->data);
}

static gboolean make_entry(Unpack *unpack, struct archive *tar, struct archive_entry *entry,
                           GError **error)
{
    gboolean is_whiteout;
    g_autofree char *path = path_normal(archive_entry_pathname(entry), error);
    if (path == NULL || !take_whiteout(unpack, path, &is_whiteout, error))
        return FALSE;
    if (is_whiteout)
        return TRUE;
    if (archive_entry_hardlink(entry) != NULL)
        return make_hardlink(unpack, entry, path, error);

    gboolean ok = TRUE;
    mode_t type = archive_entry_filetype(entry);
    if (path[0] == '\0' && type != AE_IFDIR)
        return error_set(error, ASSAY_ERROR_INPUT, "the top is not a directory");
    if (type == AE_IFREG)
        ok = make_file(unpack, tar, entry, path, error);
    else if (type == AE_IFDIR)
        ok = make_dir(unpack, entry, path, error);
    else if (type == AE_IFLNK)
        ok = make_symlink(unpack, entry, path, error);
    else {
        unpack->note(UNPACK_SKIPPED, path, 0, 0, unpack->data);
        return TRUE;
    }
    if (ok)
        note_owner(unpack, entry, path);
    return ok;
}

/* ---- the archive ---- */

static la_ssize_t read_stream(struct archive *tar, void *data, const void **ret_chunk)
{
    Unpack *unpack = data;
    size_t len;
    la_int64_t offset;
    int r = archive_read_data_block(unpack->raw, ret_chunk, &len, &offset);
    if (r == ARCHIVE_EOF) {
        unpack->at_end = TRUE;
        return 0;
    }
    if (r != ARCHIVE_OK) {
        archive_set_error(tar, EINVAL, "%s", archive_error_string(unpack->raw));
        return ARCHIVE_FATAL;
    }
    unpack->stream_bytes += len;
    if (unpack->stream_bytes > unpack->limits->bytes_max + STREAM_SLACK) {
        archive_set_error(tar, EFBIG, "it is larger than the limit when uncompressed");
        return ARCHIVE_FATAL;
    }
    g_checksum_update(unpack->sum, *ret_chunk, (gssize)len);
    return (la_ssize_t)len;
}

static gboolean open_stream(Unpack *unpack, int in_fd, GError **error)
{
    struct archive *raw = unpack->raw;
    struct archive_entry *entry;
    archive_read_support_filter_gzip(raw);
    archive_read_support_filter_zstd(raw);
    archive_read_support_filter_xz(raw);
    archive_read_support_format_raw(raw);
    if (archive_read_open_fd(raw, in_fd, CHUNK) != ARCHIVE_OK ||
        archive_read_next_header(raw, &entry) != ARCHIVE_OK)
        return error_set(error, ASSAY_ERROR_INPUT, "it cannot be read: %s",
                         archive_error_string(raw) != NULL ? archive_error_string(raw)
                                                           : "it is empty");
    return archive_filter_count(raw) <= FILTERS_MAX ||
           error_set(error, ASSAY_ERROR_INPUT, "it is compressed more than once");
}

static gboolean make_entries(Unpack *unpack, struct archive *tar, GError **error)
{
    struct archive_entry *entry;
    int r;
    archive_read_support_format_tar(tar);
    if (archive_read_open(tar, unpack, NULL, read_stream, NULL) != ARCHIVE_OK)
        return error_set(error, ASSAY_ERROR_INPUT, "it is no tar: %s", archive_error_string(tar));
    while ((r = archive_read_next_header(tar, &entry)) == ARCHIVE_OK || r == ARCHIVE_WARN) {
        const char *name = archive_entry_pathname(entry);
        g_autofree char *shown = g_strescape(name != NULL ? name : "?", NULL);
        gboolean ok = ++unpack->sums.entries <= unpack->limits->entries_max ||
                      error_set(error, ASSAY_ERROR_LIMIT, "more than %" G_GUINT64_FORMAT " entries",
                                unpack->limits->entries_max);
        if (!ok || !make_entry(unpack, tar, entry, error)) {
            g_prefix_error(error, "entry \"%.200s\": ", shown);
            return FALSE;
        }
        if (unpack->is_cut)
            return TRUE;
    }
    if (r != ARCHIVE_EOF)
        return error_set(error, ASSAY_ERROR_INPUT, "after %" G_GUINT64_FORMAT " entries: %s",
                         unpack->sums.entries, archive_error_string(tar));
    const void *chunk; /* what follows the end mark is part of the digest */
    la_ssize_t n;
    while ((n = read_stream(tar, unpack, &chunk)) > 0)
        continue;
    return n == 0 || error_set(error, ASSAY_ERROR_INPUT, "%s", archive_error_string(tar));
}

static gint deepest_first(gconstpointer a, gconstpointer b)
{
    return -strcmp(*(const char *const *)a, *(const char *const *)b);
}

static gboolean finish_dirs(const Unpack *unpack, GError **error)
{
    guint n;
    g_autofree gpointer *paths = g_hash_table_get_keys_as_array(unpack->dirs, &n);
    qsort(paths, n, sizeof *paths, deepest_first);
    for (guint i = 0; i < n; i++) {
        const DirMeta *meta = g_hash_table_lookup(unpack->dirs, paths[i]);
        AUTO_FD fd = open_dir(unpack, paths[i], O_RDONLY);
        const struct timespec times[2] = {meta->mtime, meta->mtime};
        if (fd < 0 || (meta->has_mtime && futimens(fd, times) < 0) || fchmod(fd, meta->mode) < 0)
            return error_set_errno(error, errno, "finish directory %s", (const char *)paths[i]);
    }
    return TRUE;
}

gboolean unpack_tar(int in_fd, int out_fd, const UnpackLimits *limits, UnpackNoteFn note,
                    gpointer data, UnpackSums *ret_sums, GError **error)
{
    AUTO_ARCHIVE *raw = archive_read_new();
    AUTO_ARCHIVE *tar = archive_read_new();
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    g_autoptr(GHashTable) dirs = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    Unpack unpack = {.out_fd = out_fd,
                     .limits = limits,
                     .note = note,
                     .data = data,
                     .raw = raw,
                     .sum = sum,
                     .dirs = dirs};
    if (!open_stream(&unpack, in_fd, error) || !make_entries(&unpack, tar, error) ||
        !finish_dirs(&unpack, error))
        return FALSE;
    *ret_sums = unpack.sums;
    g_strlcpy(ret_sums->diff_id, g_checksum_get_string(sum), sizeof ret_sums->diff_id);
    return TRUE;
}
