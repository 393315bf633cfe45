/*
 * A reader of well-formed diffs: paths only.
 *
 * Invariant: hunk bodies are skipped by their counts, so a removed line that begins with "-- " is
 * never taken for a header.
 */
#include "tasks/diff.h"

#include <string.h>

/* "a/path<TAB>date" -> "path"; "/dev/null" -> NULL. */
static char *side_path(const char *text)
{
    gsize len = strcspn(text, "\t\r");
    g_autofree char *path = g_strndup(text, len);
    if (strcmp(path, "/dev/null") == 0)
        return NULL;
    gboolean prefixed = g_str_has_prefix(path, "a/") || g_str_has_prefix(path, "b/");
    return g_strdup(prefixed ? path + 2 : path);
}

/* The line counts of "@@ -l,OLD +l,NEW @@"; a missing count is 1. */
static void hunk_counts(const char *line, gint64 *ret_old, gint64 *ret_new)
{
    gint64 *out[] = {ret_old, ret_new};
    const char *at = line;
    for (int i = 0; i < 2; i++) {
        at += strcspn(at, i == 0 ? "-" : "+");
        at += strspn(at, "-+0123456789");
        *out[i] = *at == ',' ? g_ascii_strtoll(at + 1, NULL, 10) : 1;
    }
}

/* Takes both strings. A rename that also has hunks names the same pair twice: kept once. */
static void file_add(GArray *files, char *old_path, char *new_path)
{
    DiffFile file = {old_path, new_path};
    const DiffFile *last = files->len > 0 ? &g_array_index(files, DiffFile, files->len - 1) : NULL;
    if (last != NULL && g_strcmp0(last->old_path, old_path) == 0 &&
        g_strcmp0(last->new_path, new_path) == 0) {
        g_free(old_path);
        g_free(new_path);
        return;
    }
    g_array_append_val(files, file);
}

DiffFiles *diff_files_read(const char *text)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autoptr(GArray) files = g_array_new(FALSE, TRUE, sizeof(DiffFile));
    gint64 old_left = 0, new_left = 0;

    for (char **line = lines; *line != NULL; line++) {
        if (old_left > 0 || new_left > 0) {
            char kind = (*line)[0];
            old_left -= kind != '+' && kind != '\\';
            new_left -= kind != '-' && kind != '\\';
        } else if (g_str_has_prefix(*line, "@@ -")) {
            hunk_counts(*line, &old_left, &new_left);
        } else if (g_str_has_prefix(*line, "--- ") && line[1] != NULL &&
                   g_str_has_prefix(line[1], "+++ ")) {
            file_add(files, side_path(*line + 4), side_path(line[1] + 4));
        } else if (g_str_has_prefix(*line, "rename from ")) {
            gboolean named = line[1] != NULL && g_str_has_prefix(line[1], "rename to ");
            file_add(files, g_strdup(*line + 12), g_strdup(named ? line[1] + 10 : NULL));
        }
    }
    DiffFiles *result = g_new0(DiffFiles, 1);
    result->n = files->len;
    result->files = (DiffFile *)(void *)g_array_free(g_steal_pointer(&files), FALSE);
    return result;
}

void diff_files_free(DiffFiles *files)
{
    if (files == NULL)
        return;
    for (guint i = 0; i < files->n; i++) {
        g_free(files->files[i].old_path);
        g_free(files->files[i].new_path);
    }
    g_free(files->files);
    g_free(files);
}

GStrv diff_git_headers(const char *text)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autoptr(GStrvBuilder) paths = g_strv_builder_new();
    for (char **line = lines; *line != NULL; line++) {
        const char *header = strstr(*line, "diff --git a/");
        const char *side = header != NULL ? g_strrstr(header, " b/") : NULL;
        if (side != NULL)
            g_strv_builder_add(paths, side + 3);
    }
    return g_strv_builder_end(paths);
}

GHashTable *diff_path_set_new(void)
{
    return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
}

GHashTable *diff_paths(const char *text)
{
    GHashTable *set = diff_path_set_new();
    g_autoptr(DiffFiles) files = diff_files_read(text);
    for (guint i = 0; i < files->n; i++) {
        const DiffFile *file = &files->files[i];
        if (file->old_path != NULL)
            g_hash_table_add(set, g_strdup(file->old_path));
        if (file->new_path != NULL)
            g_hash_table_add(set, g_strdup(file->new_path));
    }
    return set;
}
