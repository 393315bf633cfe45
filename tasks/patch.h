/*
 * Which files a unified diff of a dataset touches. For patches we trust; hostile ones are read by
 * reward/patch_scan.
 */
#pragma once

#include <glib.h>

typedef struct PatchFile {
    char *old_path; /* NULL: the patch creates it */
    char *new_path; /* NULL: the patch deletes it */
} PatchFile;

typedef struct PatchFiles {
    PatchFile *files;
    guint n;
} PatchFiles;

/* Files in order, from the `---`/`+++` lines (and the git header for pure renames, modes). */
PatchFiles *patch_files_read(const char *text);
void patch_files_free(PatchFiles *files);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PatchFiles, patch_files_free)

/* The `b/` side of every `diff --git a/... b/...` line, in order: swebench's test directives. */
GStrv patch_git_headers(const char *text);
