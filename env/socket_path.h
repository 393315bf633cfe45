/*
 * Names of unix sockets that are longer than sun_path.
 */
#pragma once

#include <glib.h>

/* PATH when it fits in sun_path, else "/proc/self/fd/N/NAME" through an O_PATH descriptor of its
 * directory, which *ret_dir_fd keeps open: close it after bind or connect. The directory must
 * exist. ASSAY_ERROR_LIMIT: even the name alone is too long. */
char *socket_path_short(const char *path, int *ret_dir_fd, GError **error);
