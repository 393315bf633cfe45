/*
 * Files of a model directory. Links are followed: model caches are made of them.
 */
#pragma once

#include <glib.h>

/* Opens a regular file for reading; a pipe or device is refused and never waited for. -1: error. */
int model_file_open(const char *path, guint64 *ret_bytes, GError **error);

/* The whole file, at most `len_max` bytes. */
GBytes *model_file_read(const char *path, gsize len_max, GError **error);

/* NAME below PATH, or PATH itself when it is no directory. */
char *model_file_in(const char *path, const char *name);
