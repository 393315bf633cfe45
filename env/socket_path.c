/*
 * Long socket names through a descriptor of their directory.
 */
#include "env/socket_path.h"

#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/un.h>

char *socket_path_short(const char *path, int *ret_dir_fd, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    g_autofree char *name = g_path_get_basename(path);
    AUTO_FD fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        error_set_errno(error, errno, "open %s", dir);
        return NULL;
    }
    struct sockaddr_un address;
    g_autofree char *text = strlen(path) < sizeof address.sun_path
                                ? g_strdup(path)
                                : g_strdup_printf("/proc/self/fd/%d/%s", fd, name);
    if (strlen(text) >= sizeof address.sun_path) {
        error_set(error, ASSAY_ERROR_LIMIT, "socket name %s: longer than %zu bytes", name,
                  sizeof address.sun_path - 30);
        return NULL;
    }
    *ret_dir_fd = fd_take(&fd);
    return g_steal_pointer(&text);
}
