/*
 * Reads a unified diff without applying it: what it touches, and whether its shape is hostile.
 *
 *     g_autoptr(PatchScan) scan = patch_scan(bytes, len);
 *     for (guint i = 0; i < scan->files->len; i++) ...
 *     if (scan->hostile->len > 0)      refuse: verdict patch_failed, with the line numbers
 */
#pragma once

#include <glib.h>

#define PATCH_BYTES_MAX (64u * 1024 * 1024)
#define PATCH_FILES_MAX 20000

typedef struct PatchLine {
    guint number;    /* of the line in the patch, from 1 */
    guint file_line; /* of the line in the new file, from 1 */
    char *text;      /* without the "+" and the line end; bytes as they came, NUL-free */
} PatchLine;

typedef struct PatchFile {
    char *old_path, *new_path; /* without a/ and b/; NULL for /dev/null or when not told */
    guint line;                /* where this file begins in the patch, from 1 */
    gboolean is_new, is_deleted, is_renamed, is_copied, is_binary;
    guint old_mode, new_mode; /* octal as a number, 0 when not told */
    guint added, removed;     /* lines */
    GPtrArray *added_lines;   /* PatchLine * */
    GString *hunks;           /* as unidiff prints them: counts always given, each hunk stripped */
} PatchFile;

typedef enum PatchHostile {
    PATCH_HOSTILE_NONE = 0,
    PATCH_HOSTILE_TOO_BIG,
    PATCH_HOSTILE_NUL,
    PATCH_HOSTILE_TOO_MANY_FILES,
    PATCH_HOSTILE_DOT_DOT,   /* a ".." component */
    PATCH_HOSTILE_ABSOLUTE,  /* a path that starts at the root */
    PATCH_HOSTILE_DOT_GIT,   /* a ".git" component in any case, or git~1 */
    PATCH_HOSTILE_SYMLINK,   /* mode 120000 */
    PATCH_HOSTILE_SUBMODULE, /* mode 160000 */
    PATCH_HOSTILE_MODE,      /* any mode but 100644 and 100755 */
    PATCH_HOSTILE_PATH,      /* an empty or unreadable name */
} PatchHostile;

typedef struct PatchFinding {
    PatchHostile kind;
    guint line; /* from 1; 0 for the patch as a whole */
    char *detail;
} PatchFinding;

typedef struct PatchScan {
    GPtrArray *files;   /* PatchFile * */
    GPtrArray *hostile; /* PatchFinding * */
    gboolean malformed; /* a hunk is not as long as its header says */
} PatchScan;

/* Never fails: text that is no diff has no files. CR LF line ends and diffs without "diff --git"
 * are read too. A patch over PATCH_BYTES_MAX is not read, only reported. */
PatchScan *patch_scan(const void *bytes, gsize len);
void patch_scan_free(PatchScan *scan);

/* The path the file has afterwards, or had when it is deleted; never NULL ("" when unknown). */
const char *patch_file_path(const PatchFile *file);

/* "dot_dot", "symlink" ... */
const char *patch_hostile_to_str(PatchHostile kind);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(PatchScan, patch_scan_free)
