/*
 * Boxes where namespaces are refused: the workspace is a plain copy in a directory of our own.
 */
#pragma once

#include "sandbox/box_private.h"

/* Copies the workspace and prepares the spec's flags and ids. Only spec.work_fds can be honoured;
 * layers, roots, uppers and mounts need a mount namespace and are refused with a message. */
gboolean box_degraded_prepare(Box *box, const BoxSpec *spec, GError **error);

/* Removes the copy. */
void box_degraded_remove(Box *box);

/* envp with HOME and TMPDIR inside the copy; g_strfreev. */
char **box_degraded_envp(const Box *box, const char *const *envp);

/* The path of a BoxFile relative to the copy, as "/work/x" or "/tmp/x"; owned by the caller. */
char *box_degraded_file_path(const Box *box, const char *path);
