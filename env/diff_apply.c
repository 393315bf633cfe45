/*
 * Diffs: lines are read once, from the front; every file is an array of lines that keep their ends.
 *
 * 1. A path is one that a task's files may have, so nothing outside the tree can be named.
 * 2. What is not part of a diff may stand before it and nowhere else.
 * 3. Work is bounded: lines of the diff times lines of the file, and both are bounded by callers.
 */
#include "env/diff_apply.h"

#include "tasks/task.h"

#include <string.h>

#define NUMBER_MAX 10000000u

typedef struct Diff {
    GStrv lines;
    guint at;
    const json_t *files;
    json_t *changes;
    char *why;
} Diff;

/* The lines of a file, with their newlines. */
typedef struct FileLines {
    GPtrArray *lines;
    guint free_from; /* hunks before have had what is above */
    gint64 shift;    /* lines that they added */
} FileLines;

static gboolean fail(Diff *diff, const char *why)
{
    if (!diff->why)
        diff->why = g_strdup_printf("line %u: %s", diff->at + 1, why);
    return FALSE;
}

static const char *line_now(const Diff *diff)
{
    return diff->lines[diff->at];
}

static gboolean begins(const Diff *diff, const char *prefix)
{
    return line_now(diff) && g_str_has_prefix(line_now(diff), prefix);
}

/* ---- lines of files ---- */

static GPtrArray *split_lines(const char *text)
{
    GPtrArray *lines = g_ptr_array_new_with_free_func(g_free);

    while (*text) {
        gsize len = strcspn(text, "\n");

        len += text[len] == '\n';
        g_ptr_array_add(lines, g_strndup(text, len));
        text += len;
    }
    return lines;
}

static char *join_lines(const GPtrArray *lines)
{
    GString *out = g_string_new(NULL);

    for (guint i = 0; i < lines->len; i++)
        g_string_append(out, lines->pdata[i]);
    return g_string_free(out, FALSE);
}

static gboolean matches_at(const GPtrArray *lines, const GPtrArray *old, gint64 at)
{
    if (at < 0 || at + old->len > lines->len)
        return FALSE;
    for (guint i = 0; i < old->len; i++)
        if (strcmp(lines->pdata[at + i], old->pdata[i]) != 0)
            return FALSE;
    return TRUE;
}

/* The place nearest to `wanted` where the old lines stand; -1: there is none. */
static gint64 find_place(const FileLines *file, const GPtrArray *old, gint64 wanted)
{
    gint64 most = (gint64)file->lines->len;

    wanted = CLAMP(wanted, 0, most);
    for (gint64 off = 0; off <= most; off++) {
        if (wanted - off >= file->free_from && matches_at(file->lines, old, wanted - off))
            return wanted - off;
        if (wanted + off >= file->free_from && matches_at(file->lines, old, wanted + off))
            return wanted + off;
    }
    return -1;
}

/* ---- hunks ---- */

static gboolean read_number(const char **text, guint *ret)
{
    guint64 value = 0;
    const char *from = *text;

    for (; g_ascii_isdigit(**text) && value <= NUMBER_MAX; (*text)++)
        value = value * 10 + (guint)(**text - '0');
    *ret = (guint)value;
    return *text > from && value <= NUMBER_MAX;
}

/* "LINE" or "LINE,COUNT". */
static gboolean read_range(const char **text, guint *ret_line, guint *ret_count)
{
    *ret_count = 1;
    if (!read_number(text, ret_line))
        return FALSE;
    if (**text != ',')
        return TRUE;
    ++*text;
    return read_number(text, ret_count);
}

static gboolean read_header(Diff *diff, guint *ret_line, guint *ret_old, guint *ret_new)
{
    const char *at = line_now(diff) + strlen("@@ -");
    guint ignored;

    if (!read_range(&at, ret_line, ret_old) || !g_str_has_prefix(at, " +"))
        return fail(diff, "no hunk header");
    at += strlen(" +");
    if (!read_range(&at, &ignored, ret_new) || !g_str_has_prefix(at, " @@"))
        return fail(diff, "no hunk header");
    diff->at++;
    return TRUE;
}

/* The newline of the line before it was not there. */
static void cut_newline(GPtrArray *lines)
{
    char *last = lines->len > 0 ? lines->pdata[lines->len - 1] : NULL;

    if (last && *last)
        last[strlen(last) - 1] = '\0';
}

/* The lines of a hunk: those it wants and those it makes of them. */
static gboolean read_body(Diff *diff, guint n_old, guint n_new, GPtrArray *old, GPtrArray *new)
{
    char mark = ' ';

    while (old->len < n_old || new->len < n_new || begins(diff, "\\")) {
        const char *line = line_now(diff);

        if (!line)
            return fail(diff, "the hunk is shorter than its header says");
        if (*line == '\\') {
            if (mark != '+')
                cut_newline(old);
            if (mark != '-')
                cut_newline(new);
        } else if (*line && !strchr(" +-", *line)) {
            return fail(diff, "the hunk is shorter than its header says");
        } else {
            mark = *line ? *line : ' ';
            if (mark != '+')
                g_ptr_array_add(old, g_strconcat(*line ? line + 1 : "", "\n", NULL));
            if (mark != '-')
                g_ptr_array_add(new, g_strconcat(*line ? line + 1 : "", "\n", NULL));
        }
        diff->at++;
    }
    return (old->len == n_old && new->len == n_new) ||
           fail(diff, "the hunk is longer than its header says");
}

/* Only the last line of a file may be without its newline. */
static gboolean ends_hold(const GPtrArray *lines, guint from, guint to)
{
    for (guint i = from; i < to && i + 1 < lines->len; i++)
        if (!g_str_has_suffix(lines->pdata[i], "\n"))
            return FALSE;
    return TRUE;
}

static gboolean apply_hunk(Diff *diff, FileLines *file)
{
    g_autoptr(GPtrArray) old = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) new = g_ptr_array_new_with_free_func(g_free);
    guint line, n_old, n_new;
    gint64 place;

    if (!read_header(diff, &line, &n_old, &n_new) || !read_body(diff, n_old, n_new, old, new))
        return FALSE;
    if (n_old == 0 && n_new == 0)
        return fail(diff, "an empty hunk");
    /* where nothing is taken away, the header names the line before */
    place = find_place(file, old, (gint64)line - (n_old > 0) + file->shift);
    if (place < 0)
        return fail(diff, "the hunk before this line does not fit the file");
    if (n_old > 0)
        g_ptr_array_remove_range(file->lines, (guint)place, n_old);
    for (guint i = 0; i < new->len; i++)
        g_ptr_array_insert(file->lines, (gint)place + (gint)i, g_strdup(new->pdata[i]));
    file->free_from = (guint)place + n_new;
    if (!ends_hold(file->lines, (guint)MAX(place - 1, 0), file->free_from))
        return fail(diff, "a line without its newline before others");
    file->shift += (gint64)n_new - n_old;
    return TRUE;
}

/* ---- files ---- */

/* "--- a/PATH" and the like: the path, or "" for /dev/null. */
static char *read_path(Diff *diff, const char *mark, const char *side)
{
    g_autofree char *path = NULL;
    const char *at;

    if (!begins(diff, mark)) {
        fail(diff, "a file's name is missing");
        return NULL;
    }
    path = g_strdup(line_now(diff) + strlen(mark));
    path[strcspn(path, "\t\r")] = '\0';
    at = path;
    if (g_str_equal(path, "/dev/null"))
        at = "";
    else if (g_str_has_prefix(path, side))
        at = path + strlen(side);
    if (*at && !task_path_ok(at)) {
        fail(diff, "a path outside the files");
        return NULL;
    }
    diff->at++;
    return g_strdup(at);
}

/* The file's text before; NULL: the diff and the files do not agree on whether it is there. */
static const char *text_before(Diff *diff, const char *from, const char *to)
{
    const char *path = *from ? from : to;
    const char *text = json_string_value(json_object_get(diff->files, path));
    gboolean is_new = !*from;

    if (!*path || (*from && *to && !g_str_equal(from, to)))
        fail(diff, "a renamed file");
    else if (json_object_get(diff->changes, path))
        fail(diff, "a file twice");
    else if (is_new == (json_object_get(diff->files, path) != NULL))
        fail(diff, is_new ? "a new file that is there" : "a file that is not there");
    else
        return is_new ? "" : text;
    return NULL;
}

static gboolean apply_file(Diff *diff)
{
    g_autofree char *from = read_path(diff, "--- ", "a/");
    g_autofree char *to = from ? read_path(diff, "+++ ", "b/") : NULL;
    const char *before = to ? text_before(diff, from, to) : NULL;
    g_autoptr(GPtrArray) lines = before ? split_lines(before) : NULL;
    g_autofree char *after = NULL;
    FileLines file = {.lines = lines};

    if (!before)
        return to ? fail(diff, "a file that is no text") : FALSE;
    if (!begins(diff, "@@ -"))
        return fail(diff, "no hunk");
    while (begins(diff, "@@ -"))
        if (!apply_hunk(diff, &file))
            return FALSE;
    after = join_lines(lines);
    if (!*to && *after)
        return fail(diff, "a removed file of which something is left");
    json_object_set_new(diff->changes, *to ? to : from, *to ? json_string(after) : json_null());
    return TRUE;
}

/* Lines of git between files, which say nothing that is needed. */
static gboolean is_between(const char *line)
{
    static const char *const heads[] = {"diff --git ", "index ", "new file mode 100644",
                                        "deleted file mode "};

    for (guint i = 0; i < G_N_ELEMENTS(heads); i++)
        if (g_str_has_prefix(line, heads[i]))
            return TRUE;
    return !*line;
}

static gboolean apply_all(Diff *diff)
{
    while (line_now(diff) && !begins(diff, "--- ")) /* words */
        diff->at++;
    if (!line_now(diff))
        return fail(diff, "no diff");
    while (line_now(diff)) {
        if (is_between(line_now(diff)))
            diff->at++;
        else if (!begins(diff, "--- "))
            return fail(diff, "something that is no diff after one");
        else if (json_object_size(diff->changes) >= DIFF_FILES_MAX)
            return fail(diff, "too many files");
        else if (!apply_file(diff))
            return FALSE;
    }
    return TRUE;
}

json_t *diff_apply(const json_t *files, const char *text, char **ret_why)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autoptr(json_t) changes = json_object();
    Diff diff = {.lines = lines, .files = files, .changes = changes};
    gboolean good = apply_all(&diff);

    if (ret_why)
        *ret_why = g_steal_pointer(&diff.why);
    g_free(diff.why);
    return good ? g_steal_pointer(&changes) : NULL;
}
