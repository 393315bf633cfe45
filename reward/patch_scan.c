/*
 * A reader of unified diffs that trusts nothing in them.
 *
 * Invariants:
 *   1. Inside a hunk only the hunk's own line counts decide what a line is, so text such as
 *      "--- a/x" in a changed file is not taken for a header.
 *   2. Every path that any header names is checked, whether or not git would use it.
 *   3. Nothing is opened or applied.
 *
 * Not here: applying (the box does), and what the added lines mean (witness.c).
 */
#include "reward/patch_scan.h"

#include "reward/text.h"

#include <string.h>

#define PATH_BYTES_MAX 4096

typedef struct Scanner {
    PatchScan *scan;
    PatchFile *file;            /* the one being read, or NULL */
    guint number;               /* of the line being read, from 1 */
    guint64 old_left, new_left; /* lines the open hunk still owes */
    guint new_line;             /* in the new file */
    GString *hunk;              /* the open hunk, or NULL */
} Scanner;

static void patch_line_free(gpointer ptr)
{
    PatchLine *line = ptr;
    g_free(line->text);
    g_free(line);
}

static void patch_file_free(gpointer ptr)
{
    PatchFile *file = ptr;
    g_free(file->old_path);
    g_free(file->new_path);
    g_ptr_array_unref(file->added_lines);
    g_string_free(file->hunks, TRUE);
    g_free(file);
}

static void patch_finding_free(gpointer ptr)
{
    PatchFinding *finding = ptr;
    g_free(finding->detail);
    g_free(finding);
}

void patch_scan_free(PatchScan *scan)
{
    if (scan == NULL)
        return;
    g_ptr_array_unref(scan->files);
    g_ptr_array_unref(scan->hostile);
    g_free(scan);
}

const char *patch_file_path(const PatchFile *file)
{
    if (file->new_path != NULL && !file->is_deleted)
        return file->new_path;
    return file->old_path != NULL ? file->old_path : file->new_path != NULL ? file->new_path : "";
}

const char *patch_hostile_to_str(PatchHostile kind)
{
    static const char *const names[] = {
        "none",    "too_big", "nul",       "too_many_files", "dot_dot", "absolute",
        "dot_git", "symlink", "submodule", "mode",           "path",
    };
    g_assert((gsize)kind < G_N_ELEMENTS(names));
    return names[kind];
}

static void hostile_add(Scanner *s, PatchHostile kind, const char *detail)
{
    PatchFinding *finding = g_new0(PatchFinding, 1);
    finding->kind = kind;
    finding->line = s->number;
    finding->detail = g_utf8_make_valid(detail, -1);
    g_ptr_array_add(s->scan->hostile, finding);
}

/* ---- paths ---- */

/* What C-style quoting in `text` (after its opening quote) stands for; NULL when ill-formed. */
static char *unquote(Span text)
{
    static const char letters[] = "abtnvfr\"\\", values[] = "\a\b\t\n\v\f\r\"\\";
    g_autoptr(GString) out = g_string_new(NULL);
    for (gsize i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (c == '"')
            return g_strdup(out->str);
        if (c != '\\') {
            g_string_append_c(out, c);
            continue;
        }
        if (++i >= text.len)
            return NULL;
        const char *known = memchr(letters, text.ptr[i], strlen(letters));
        if (known != NULL) {
            g_string_append_c(out, values[known - letters]);
            continue;
        }
        guint value = 0;
        gsize end = MIN(i + 3, text.len);
        for (; i < end && text.ptr[i] >= '0' && text.ptr[i] <= '7'; i++)
            value = value * 8 + (guint)(text.ptr[i] - '0');
        if (i != end || value == 0 || value > 255)
            return NULL;
        g_string_append_c(out, (char)value);
        i--;
    }
    return NULL;
}

static void check_path(Scanner *s, const char *path)
{
    if (*path == '/')
        hostile_add(s, PATCH_HOSTILE_ABSOLUTE, path);
    g_auto(GStrv) parts = g_strsplit(path, "/", -1);
    for (guint i = 0; parts[i] != NULL; i++) {
        g_autofree char *lower = g_ascii_strdown(parts[i], -1);
        if (strcmp(lower, "..") == 0)
            hostile_add(s, PATCH_HOSTILE_DOT_DOT, path);
        else if (strcmp(lower, ".git") == 0 || strcmp(lower, "git~1") == 0)
            hostile_add(s, PATCH_HOSTILE_DOT_GIT, path);
    }
}

/* A path as a header writes it: maybe quoted, maybe followed by a tab and a time. NULL for
 * /dev/null. `strip` drops one leading "a/" or "b/". */
static char *read_path(Scanner *s, Span text, gboolean strip)
{
    g_autofree char *path = NULL;
    if (span_starts(text, SPAN("\"")))
        path = unquote(span_from(text, 1));
    else
        span_split_once(text, SPAN("\t"), &text, NULL);
    if (path == NULL && text.len > 0 && text.ptr[0] != '"')
        path = span_dup(text);
    if (path == NULL || *path == '\0' || strlen(path) > PATH_BYTES_MAX) {
        hostile_add(s, PATCH_HOSTILE_PATH, "an empty, overlong or ill-quoted name");
        return NULL;
    }
    if (strcmp(path, "/dev/null") == 0)
        return NULL;
    gboolean prefixed = strip && (g_str_has_prefix(path, "a/") || g_str_has_prefix(path, "b/"));
    char *bare = g_strdup(path + (prefixed ? 2 : 0));
    check_path(s, bare);
    return bare;
}

/* ---- files ---- */

static void hunk_close(Scanner *s)
{
    if (s->hunk == NULL)
        return;
    if (s->old_left > 0 || s->new_left > 0)
        s->scan->malformed = TRUE;
    Span text = span_gstring(s->hunk);
    gsize len;
    g_autofree char *valid = text_decode(text.ptr, text.len, &len);
    if (s->file->hunks->len > 0)
        g_string_append_c(s->file->hunks, '\n');
    span_append(s->file->hunks, span_strip((Span){valid, len}));
    g_string_free(s->hunk, TRUE);
    s->hunk = NULL;
    s->old_left = s->new_left = 0;
}

static void file_open(Scanner *s)
{
    hunk_close(s);
    s->file = g_new0(PatchFile, 1);
    s->file->line = s->number;
    s->file->added_lines = g_ptr_array_new_with_free_func(patch_line_free);
    s->file->hunks = g_string_new(NULL);
    g_ptr_array_add(s->scan->files, s->file);
}

static void set_path(char **where, char *path)
{
    g_free(*where);
    *where = path;
}

/* "a/P b/P" of a "diff --git" line: the halves are equal unless a rename says otherwise. */
static void read_git_header(Scanner *s, Span text)
{
    file_open(s);
    gsize half = text.len / 2;
    Span first = text, second = {NULL, 0};
    if (span_starts(text, SPAN("\""))) {
        gssize end = span_find(text, SPAN("\" "), 1);
        if (end > 0)
            second = span_from(text, (gsize)end + 2);
    } else if (text.len % 2 == 1 && text.ptr[half] == ' ') {
        first = span_slice(text, 0, half);
        second = span_from(text, half + 1);
    } else {
        gssize gap = span_find(text, SPAN(" b/"), 0);
        gap = gap < 0 ? span_find(text, SPAN(" "), 0) : gap;
        if (gap > 0) {
            first = span_slice(text, 0, (gsize)gap);
            second = span_from(text, (gsize)gap + 1);
        }
    }
    set_path(&s->file->old_path, read_path(s, first, TRUE));
    if (second.ptr != NULL)
        set_path(&s->file->new_path, read_path(s, second, TRUE));
}

static void read_mode(Scanner *s, Span text, guint *ret_mode)
{
    g_autofree char *digits = span_dup(text);
    guint64 mode = g_ascii_strtoull(digits, NULL, 8);
    *ret_mode = (guint)MIN(mode, G_MAXUINT);
    if (mode == 0120000)
        hostile_add(s, PATCH_HOSTILE_SYMLINK, patch_file_path(s->file));
    else if (mode == 0160000)
        hostile_add(s, PATCH_HOSTILE_SUBMODULE, patch_file_path(s->file));
    else if (mode != 0100644 && mode != 0100755)
        hostile_add(s, PATCH_HOSTILE_MODE, digits);
}

/* "-12,3" or "+12": what follows the sign. Returns FALSE when that is no range. */
static gboolean read_range(const char **text, char sign, guint64 *ret_start, guint64 *ret_count)
{
    char *end;
    if (**text != sign || !g_ascii_isdigit((*text)[1]))
        return FALSE;
    *ret_start = g_ascii_strtoull(*text + 1, &end, 10);
    *ret_count = 1;
    if (*end == ',' && g_ascii_isdigit(end[1]))
        *ret_count = g_ascii_strtoull(end + 1, &end, 10);
    *text = end;
    return *ret_start <= G_MAXINT && *ret_count <= G_MAXINT;
}

static gboolean read_hunk_header(Scanner *s, Span line)
{
    g_autofree char *text = span_dup(line);
    const char *p = text + 3;
    guint64 old_start, old_count, new_start, new_count;
    if (!g_str_has_prefix(text, "@@ ") || !read_range(&p, '-', &old_start, &old_count) ||
        *p++ != ' ' || !read_range(&p, '+', &new_start, &new_count) || !g_str_has_prefix(p, " @@"))
        return FALSE;
    hunk_close(s);
    s->old_left = old_count;
    s->new_left = new_count;
    s->new_line = (guint)new_start;
    p += 3;
    while (g_ascii_isspace(*p))
        p++;
    s->hunk = g_string_new(NULL);
    g_string_append_printf(s->hunk,
                           "@@ -%" G_GUINT64_FORMAT ",%" G_GUINT64_FORMAT " +%" G_GUINT64_FORMAT
                           ",%" G_GUINT64_FORMAT " @@%s%s\n",
                           old_start, old_count, new_start, new_count, *p ? " " : "", p);
    return TRUE;
}

/* ---- lines ---- */

static void add_line(Scanner *s, Span text)
{
    PatchLine *line = g_new0(PatchLine, 1);
    line->number = s->number;
    line->file_line = s->new_line;
    line->text = span_dup(text);
    g_ptr_array_add(s->file->added_lines, line);
    s->file->added++;
}

/* TRUE when `line` belongs to the open hunk. */
static gboolean hunk_line(Scanner *s, Span line)
{
    char sign = line.len == 0 ? ' ' : line.ptr[0];
    gboolean old = sign == ' ' || sign == '-', fresh = sign == ' ' || sign == '+';
    if (s->hunk == NULL)
        return FALSE;
    if (sign != '\\') {
        if (s->old_left + s->new_left == 0)
            return FALSE;
        if ((!old && !fresh) || (old && s->old_left == 0) || (fresh && s->new_left == 0)) {
            s->scan->malformed = TRUE;
            s->old_left = s->new_left = 0;
            return FALSE;
        }
    }
    span_append(s->hunk, line);
    g_string_append_c(s->hunk, '\n');
    if (sign == '\\')
        return TRUE;
    s->old_left -= old;
    s->new_left -= fresh;
    if (sign == '+')
        add_line(s, span_from(line, 1));
    else if (sign == '-')
        s->file->removed++;
    s->new_line += fresh;
    return TRUE;
}

/* What follows `prefix`, when the line starts with it. */
static gboolean after(Span line, Span prefix, Span *ret_rest)
{
    if (!span_starts(line, prefix))
        return FALSE;
    *ret_rest = span_from(line, prefix.len);
    return TRUE;
}

static gboolean mode_header(Scanner *s, Span line)
{
    Span rest;
    PatchFile *file = s->file;
    if (after(line, SPAN("new file mode "), &rest)) {
        file->is_new = TRUE;
        read_mode(s, rest, &file->new_mode);
    } else if (after(line, SPAN("deleted file mode "), &rest)) {
        file->is_deleted = TRUE;
        read_mode(s, rest, &file->old_mode);
    } else if (after(line, SPAN("old mode "), &rest)) {
        read_mode(s, rest, &file->old_mode);
    } else if (after(line, SPAN("new mode "), &rest)) {
        read_mode(s, rest, &file->new_mode);
    } else if (after(line, SPAN("index "), &rest)) {
        span_split_once(rest, SPAN(" "), NULL, &rest);
        if (rest.ptr != NULL)
            read_mode(s, rest, &file->new_mode);
    } else {
        return FALSE;
    }
    return TRUE;
}

static gboolean name_header(Scanner *s, Span line)
{
    Span rest;
    PatchFile *file = s->file;
    if (after(line, SPAN("rename from "), &rest) || after(line, SPAN("copy from "), &rest)) {
        set_path(&file->old_path, read_path(s, rest, FALSE));
    } else if (after(line, SPAN("rename to "), &rest)) {
        file->is_renamed = TRUE;
        set_path(&file->new_path, read_path(s, rest, FALSE));
    } else if (after(line, SPAN("copy to "), &rest)) {
        file->is_copied = TRUE;
        set_path(&file->new_path, read_path(s, rest, FALSE));
    } else if (span_starts(line, SPAN("GIT binary patch")) ||
               span_starts(line, SPAN("Binary files "))) {
        file->is_binary = TRUE;
    } else {
        return FALSE;
    }
    return TRUE;
}

/* "--- X" or "+++ X". A "---" after hunks, or with no file open, begins a file of a plain diff. */
static gboolean file_header(Scanner *s, Span line)
{
    Span rest;
    if (after(line, SPAN("--- "), &rest)) {
        if (s->file == NULL || s->hunk != NULL || s->file->hunks->len > 0)
            file_open(s);
        char *path = read_path(s, rest, TRUE);
        s->file->is_new = s->file->is_new || path == NULL;
        set_path(&s->file->old_path, path);
        return TRUE;
    }
    if (s->file != NULL && s->hunk == NULL && after(line, SPAN("+++ "), &rest)) {
        char *path = read_path(s, rest, TRUE);
        s->file->is_deleted = s->file->is_deleted || path == NULL;
        set_path(&s->file->new_path, path);
        return TRUE;
    }
    return FALSE;
}

static void scan_line(Scanner *s, Span line)
{
    Span bare = line, rest;
    if (memchr(line.ptr, '\0', line.len) != NULL)
        hostile_add(s, PATCH_HOSTILE_NUL, "a NUL byte");
    if (span_ends(bare, SPAN("\r")))
        bare.len--;
    if (hunk_line(s, bare))
        return;
    if (after(bare, SPAN("diff --git "), &rest)) {
        read_git_header(s, rest);
        return;
    }
    if (file_header(s, bare) || s->file == NULL)
        return;
    if (read_hunk_header(s, bare) || s->hunk != NULL)
        return;
    if (!mode_header(s, bare))
        name_header(s, bare);
}

PatchScan *patch_scan(const void *bytes, gsize len)
{
    Scanner s = {.scan = g_new0(PatchScan, 1)};
    s.scan->files = g_ptr_array_new_with_free_func(patch_file_free);
    s.scan->hostile = g_ptr_array_new_with_free_func(patch_finding_free);
    if (len > PATCH_BYTES_MAX) {
        hostile_add(&s, PATCH_HOSTILE_TOO_BIG, "the patch is over 64 MiB");
        return s.scan;
    }
    Span rest = {len == 0 ? "" : bytes, len}, line;
    while (span_cut(&rest, '\n', &line)) {
        s.number++;
        if (rest.ptr == NULL && line.len == 0)
            break;
        scan_line(&s, line);
        if (s.scan->files->len > PATCH_FILES_MAX) {
            hostile_add(&s, PATCH_HOSTILE_TOO_MANY_FILES, "too many files");
            break;
        }
    }
    hunk_close(&s);
    return s.scan;
}
