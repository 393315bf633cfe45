/*
 * Blobs: bytes named by their SHA-256. Small ones live in the database and so are made durable by
 * the turn's commit; large ones are files below blobs/, fsynced before their row is written.
 *
 * 1. A blob file appears under its name only by rename, whole.
 * 2. A file whose size is not the row's is not the blob: it is written again or reported.
 */
#include "db/store_internal.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "base/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#define BLOB_CHUNK 65536

static char *blob_file(Store *store, const char *sha)
{
    return g_strdup_printf("%s/blobs/%.2s/%s", store->dir, sha, sha + 2);
}

/* DIR/blobs/ab as a descriptor; made when absent. */
static int blob_dir(Store *store, const char *sha, GError **error)
{
    AUTO_FD blobs = tree_open_dir(store->dir_fd, "blobs", 0700, error);
    if (blobs < 0)
        return -1;
    char name[3] = {sha[0], sha[1], '\0'};
    return tree_open_dir(blobs, name, 0700, error);
}

static gboolean blob_file_write(Store *store, const char *sha, const void *data, gsize len,
                                gboolean durable, GError **error)
{
    AUTO_FD dir = blob_dir(store, sha, error);
    if (dir < 0)
        return FALSE;
    g_autofree char *tmp = g_strdup_printf("%s.tmp", sha + 2);
    AUTO_FD fd = openat(dir, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_set_errno(error, errno, "blob %s", sha);
    if (!fd_write_all(fd, data, len, error)) {
        unlinkat(dir, tmp, 0);
        return FALSE;
    }
    if ((durable && fdatasync(fd) < 0) || renameat(dir, tmp, dir, sha + 2) < 0 ||
        (durable && fsync(dir) < 0)) {
        int saved = errno;
        unlinkat(dir, tmp, 0);
        return error_set_errno(error, saved, "blob %s", sha);
    }
    return TRUE;
}

/* 1 found (size and perhaps data; the statement stays open), 0 absent, -1 error. */
static int blob_look(Store *store, const char *sha, sqlite3_stmt **ret, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_BLOB_FIND, error);
    if (s == NULL)
        return -1;
    store_bind_text(s, 1, sha);
    *ret = s;
    return store_step(store, s, error);
}

static gboolean blob_row_put(Store *store, const char *sha, const void *data, gsize len,
                             GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, STATEMENT_BLOB_INSERT, error);
    if (s == NULL)
        return FALSE;
    store_bind_text(s, 1, sha);
    sqlite3_bind_int64(s, 2, (gint64)len);
    if (len <= STORE_BLOB_INLINE_MAX)
        sqlite3_bind_blob64(s, 3, len > 0 ? data : "", len, SQLITE_STATIC);
    sqlite3_bind_int64(s, 4, clock_wall_ms());
    return store_exec(store, s, error);
}

char *blob_put(Store *store, const void *data, gsize len, GError **error)
{
    if (len > STORE_BLOB_MAX) {
        error_set(error, ASSAY_ERROR_LIMIT, "blob of %" G_GSIZE_FORMAT " bytes; the limit is %u",
                  len, STORE_BLOB_MAX);
        return NULL;
    }
    g_autofree char *sha = digest_bytes(data, len);
    sqlite3_stmt *s = NULL;
    int found = blob_look(store, sha, &s, error);
    if (found < 0)
        return NULL;
    sqlite3_reset(s);
    if (found == 1)
        return g_steal_pointer(&sha);
    if (len > STORE_BLOB_INLINE_MAX && !blob_file_write(store, sha, data, len, TRUE, error))
        return NULL;
    return blob_row_put(store, sha, data, len, error) ? g_steal_pointer(&sha) : NULL;
}

char *blob_put_fd(Store *store, int fd, gsize len_max, gint64 *ret_len, GError **error)
{
    g_autoptr(GBytes) bytes = fd_read_all(fd, MIN(len_max, STORE_BLOB_MAX), error);
    if (bytes == NULL)
        return NULL;
    gsize len;
    const void *data = g_bytes_get_data(bytes, &len);
    char *sha = blob_put(store, data, len, error);
    if (sha != NULL && ret_len != NULL)
        *ret_len = (gint64)len;
    return sha;
}

GBytes *blob_get(Store *store, const char *sha, GError **error)
{
    sqlite3_stmt *s = NULL;
    int found = blob_look(store, sha, &s, error);
    if (found == 0)
        error_set(error, ASSAY_ERROR_NOT_FOUND, "blob %s: not found", sha);
    if (found != 1)
        return NULL;
    gsize len = (gsize)sqlite3_column_int64(s, 0);
    GBytes *bytes = NULL;
    if (sqlite3_column_type(s, 1) != SQLITE_NULL)
        bytes = g_bytes_new(sqlite3_column_blob(s, 1), (gsize)sqlite3_column_bytes(s, 1));
    sqlite3_reset(s);
    if (bytes != NULL)
        return bytes;
    g_autofree char *path = blob_file(store, sha);
    bytes = file_read(path, STORE_BLOB_MAX, error);
    if (bytes != NULL && g_bytes_get_size(bytes) != len) {
        error_set(error, ASSAY_ERROR_SYSTEM, "blob %s: the file is damaged", sha);
        g_clear_pointer(&bytes, g_bytes_unref);
    }
    return bytes;
}

char *blob_path(Store *store, const char *sha, GError **error)
{
    g_autoptr(GBytes) bytes = NULL;
    sqlite3_stmt *s = NULL;
    int found = blob_look(store, sha, &s, error);
    if (found == 0)
        error_set(error, ASSAY_ERROR_NOT_FOUND, "blob %s: not found", sha);
    if (found != 1)
        return NULL;
    gint64 len = sqlite3_column_int64(s, 0);
    sqlite3_reset(s);
    g_autofree char *path = blob_file(store, sha);
    struct stat st;
    if (stat(path, &st) == 0 && (gint64)st.st_size == len)
        return g_steal_pointer(&path);
    bytes = blob_get(store, sha, error);
    if (bytes == NULL || !blob_file_write(store, sha, g_bytes_get_data(bytes, NULL),
                                          g_bytes_get_size(bytes), FALSE, error))
        return NULL;
    return g_steal_pointer(&path);
}
