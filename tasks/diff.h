/*
 * Which files a unified diff of a dataset touches. For patches we trust; hostile ones are read by
 * reward/patch_scan.
 */
#pragma once

#include <glib.h>

typedef struct DiffFile {
    char *old_path; /* NULL: the patch creates it */
    char *new_path; /* NULL: the patch deletes it */
} DiffFile;

typedef struct DiffFiles {
    DiffFile *files;
    guint n;
} DiffFiles;

/* Files in order, from the `---`/`+++` lines (and the git header for pure renames, modes). */
DiffFiles *diff_files_read(const char *text);
void diff_files_free(DiffFiles *files);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DiffFiles, diff_files_free)

/* The `b/` side of every `diff --git a/... b/...` line, in order: swebench's test directives. */
GStrv diff_git_headers(const char *text);

/* An empty set of owned paths. */
GHashTable *diff_path_set_new(void);

/* Both sides of every file, as a set. */
GHashTable *diff_paths(const char *text);
