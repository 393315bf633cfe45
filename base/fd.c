/*
 * Reading and writing whole files and descriptors, with limits.
 *
 * Invariant: nothing here trusts st_size; a limit is on the bytes actually read.
 */
#include "base/fd.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>

void fd_ignore_sigpipe(void)
{
    struct sigaction now;
    if (sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);
}

gboolean fd_write_all(int fd, const void *data, gsize len, GError **error)
{
    const char *at = data;
    while (len > 0) {
        ssize_t n = write(fd, at, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(error, errno, "write");
        at += n;
        len -= (gsize)n;
    }
    return TRUE;
}

GBytes *fd_read_all(int fd, gsize len_max, GError **error)
{
    g_autoptr(GByteArray) all = g_byte_array_new();
    guint8 chunk[65536];

    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            error_set_errno(error, errno, "read");
            return NULL;
        }
        if (n == 0)
            break;
        if (all->len + (gsize)n > len_max) {
            error_set(error, ASSAY_ERROR_LIMIT, "more than %" G_GSIZE_FORMAT " bytes", len_max);
            return NULL;
        }
        g_byte_array_append(all, chunk, (guint)n);
    }
    gsize len = all->len;
    g_byte_array_append(all, (const guint8 *)"", 1);
    return g_bytes_new_take(g_byte_array_free(g_steal_pointer(&all), FALSE), len);
}

GBytes *file_read(const char *path, gsize len_max, GError **error)
{
    AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY);
    if (fd < 0) {
        error_set_errno(error, errno, "open %s", path);
        return NULL;
    }
    GBytes *bytes = fd_read_all(fd, len_max, error);
    if (bytes == NULL)
        g_prefix_error(error, "%s: ", path);
    return bytes;
}

gboolean file_write_atomic(const char *path, const void *data, gsize len, GError **error)
{
    g_autofree char *tmp = g_strdup_printf("%s.%d.tmp", path, (int)getpid());
    AUTO_FD fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return error_set_errno(error, errno, "create %s", tmp);

    if (!fd_write_all(fd, data, len, error)) {
        g_prefix_error(error, "%s: ", tmp);
        unlink(tmp);
        return FALSE;
    }
    if (fsync(fd) < 0 || rename(tmp, path) < 0) {
        int saved = errno;
        unlink(tmp);
        return error_set_errno(error, saved, "replace %s", path);
    }
    return TRUE;
}
