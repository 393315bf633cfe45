/*
 * File descriptors with an owner.
 *
 *     AUTO_FD fd = openat(dir_fd, "log", O_RDONLY | O_CLOEXEC);   closed on every exit
 *     *ret_fd = fd_take(&fd);                                     handed over
 */
#pragma once

#include <glib.h>
#include <unistd.h>

static inline void fd_close_p(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

#define AUTO_FD __attribute__((cleanup(fd_close_p))) int

static inline int fd_take(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}

/* Writes all of `data`, resuming after EINTR and short writes. */
gboolean fd_write_all(int fd, const void *data, gsize len, GError **error);

/* Writing to a peer that is gone becomes an errno, unless the program handles SIGPIPE itself. */
void fd_ignore_sigpipe(void);

/* Reads to end of file; more than `len_max` bytes is ASSAY_ERROR_LIMIT. The data is followed by a
 * NUL that is not counted. */
GBytes *fd_read_all(int fd, gsize len_max, GError **error);

/* Opens PATH (no symlink at its end) and reads it as above. */
GBytes *file_read(const char *path, gsize len_max, GError **error);

/* Writes PATH.tmp, fsyncs and renames over PATH: readers see the old or the new file, whole. */
gboolean file_write_atomic(const char *path, const void *data, gsize len, GError **error);
