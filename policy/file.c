/*
 * Opening and reading the files of a model directory.
 *
 * Not here: writing (base/fd.h, safetensors_write.c).
 */
#include "policy/file.h"

#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

int model_file_open(const char *path, guint64 *ret_bytes, GError **error)
{
    AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        if (errno == ENOENT)
            error_set(error, ASSAY_ERROR_NOT_FOUND, "%s: there is no such file", path);
        else
            error_set_errno(error, errno, "open %s", path);
        return -1;
    }
    if (!S_ISREG(st.st_mode)) {
        error_set(error, ASSAY_ERROR_INPUT, "%s: is not a regular file", path);
        return -1;
    }
    *ret_bytes = (guint64)st.st_size;
    return fd_take(&fd);
}

GBytes *model_file_read(const char *path, gsize len_max, GError **error)
{
    guint64 bytes;
    AUTO_FD fd = model_file_open(path, &bytes, error);
    if (fd < 0)
        return NULL;
    GBytes *all = fd_read_all(fd, len_max, error);
    if (all == NULL)
        g_prefix_error(error, "%s: ", path);
    return all;
}

char *model_file_in(const char *path, const char *name)
{
    return g_file_test(path, G_FILE_TEST_IS_DIR) ? g_build_filename(path, name, NULL)
                                                 : g_strdup(path);
}
