/*
 * One changed file written down as `git diff` would.
 *
 *     GString *patch = g_string_new(NULL);
 *     repo_diff_add(patch, "src/a.c", &before, &after, error);
 */
#pragma once

#include <glib.h>

/* A file or a link at one side; mode as in stat(2), 0: absent. A link's bytes are its target. */
typedef struct RepoDiffSide {
    guint mode;
    const void *data;
    gsize len;
} RepoDiffSide;

/* Appends the change of PATH (relative, any bytes) to `patch`: text as hunks, else a binary patch,
 * with full object ids, so that `git apply` takes it without the objects. Equal sides add
 * nothing. */
gboolean repo_diff_add(GString *patch, const char *path, const RepoDiffSide *before,
                       const RepoDiffSide *after, GError **error);
