/*
 * Changes as diffs, by libgit2.
 *
 * libgit2 compares two buffers without a repository, but knows no modes there: the header is ours,
 * the body (hunks or binary) is its.
 *
 * Invariants:
 *   1. What is written applies with `git apply` to a tree that has the side before.
 *   2. A change of kind (file, link) is a deletion and a creation, as git has it.
 *
 * Not here: which files have changed (sandbox, box_changes).
 */
#include "tasks/repo_diff.h"

#include "tasks/repo_priv.h"

#include <git2.h>
#include <string.h>
#include <sys/stat.h>

static const RepoDiffSide absent;

/* git knows two modes of files, and links. */
static guint git_mode(const RepoDiffSide *side)
{
    return S_ISLNK(side->mode) ? 0120000 : side->mode & 0100 ? 0100755 : 0100644;
}

/* "a/path", quoted as git does where it has to be: C escapes, octal for other bytes. */
static char *quoted(const char *prefix, const char *path)
{
    static const char escapes[] = "\aa\bb\tt\nn\vv\ff\rr\"\"\\\\";
    g_autoptr(GString) out = g_string_new(prefix);
    gboolean special = FALSE;
    for (const char *at = path; *at != '\0'; at++) {
        const guchar byte = (guchar)*at;
        const char *known = NULL;
        for (gsize i = 0; i + 1 < sizeof escapes; i += 2)
            if (escapes[i] == *at)
                known = &escapes[i + 1];
        special = special || known != NULL || byte < 0x20 || byte >= 0x7f;
        if (known != NULL)
            g_string_append_printf(out, "\\%c", *known);
        else if (byte < 0x20 || byte >= 0x7f)
            g_string_append_printf(out, "\\%03o", byte);
        else
            g_string_append_c(out, *at);
    }
    return special ? g_strdup_printf("\"%s\"", out->str) : g_strdup(out->str);
}

/* Where the line that begins with WORD is in `text`; NULL: nowhere before the first hunk. */
static const char *find_line(const char *text, const char *word)
{
    gsize len = strlen(word);
    for (const char *at = text; at != NULL && *at != '\0';) {
        if (strncmp(at, word, len) == 0)
            return at;
        if (strncmp(at, "@@", 2) == 0)
            return NULL;
        at = strchr(at, '\n');
        at = at == NULL ? NULL : at + 1;
    }
    return NULL;
}

static void add_modes(GString *patch, const RepoDiffSide *before, const RepoDiffSide *after)
{
    if (before->mode == 0)
        g_string_append_printf(patch, "new file mode %o\n", git_mode(after));
    else if (after->mode == 0)
        g_string_append_printf(patch, "deleted file mode %o\n", git_mode(before));
    else if (git_mode(before) != git_mode(after))
        g_string_append_printf(patch, "old mode %o\nnew mode %o\n", git_mode(before),
                               git_mode(after));
}

/* From its text: the ids, then everything after the file names, or a binary body. */
static void add_body(GString *patch, const char *text, const char *path, const RepoDiffSide *before,
                     const RepoDiffSide *after)
{
    const char *index = find_line(text, "index "), *hunks = strstr(text, "\n@@");
    const char *binary = strstr(text, "\nGIT binary patch\n");
    if (index == NULL)
        return; /* equal bytes, or nothing in them */
    gsize len = strcspn(index, "\n");
    const char *mode = memchr(index + 6, ' ', len - 6);
    g_string_append_len(patch, index, mode != NULL ? mode - index : (gssize)len);
    if (before->mode != 0 && after->mode != 0 && git_mode(before) == git_mode(after))
        g_string_append_printf(patch, " %o", git_mode(after));
    g_string_append_c(patch, '\n');
    if (binary != NULL && (hunks == NULL || binary < hunks)) {
        g_string_append(patch, binary + 1);
        return;
    }
    if (hunks == NULL)
        return;
    g_autofree char *old_name = before->mode != 0 ? quoted("a/", path) : g_strdup("/dev/null");
    g_autofree char *new_name = after->mode != 0 ? quoted("b/", path) : g_strdup("/dev/null");
    g_string_append_printf(patch, "--- %s\n+++ %s\n%s", old_name, new_name, hunks + 1);
}

static gboolean add_one(GString *patch, const char *path, const RepoDiffSide *before,
                        const RepoDiffSide *after, GError **error)
{
    git_diff_options options = GIT_DIFF_OPTIONS_INIT;
    git_patch *compared = NULL;
    git_buf text = GIT_BUF_INIT;
    options.flags = GIT_DIFF_SHOW_BINARY;
    options.id_abbrev = GIT_OID_HEXSZ;
    options.max_size = -1;
    int r = git_patch_from_buffers(&compared, before->mode != 0 ? before->data : NULL, before->len,
                                   path, after->mode != 0 ? after->data : NULL, after->len, path,
                                   &options);
    if (r == 0)
        r = git_patch_to_buf(&text, compared);
    if (r == 0) {
        g_autofree char *old_name = quoted("a/", path), *new_name = quoted("b/", path);
        g_string_append_printf(patch, "diff --git %s %s\n", old_name, new_name);
        add_modes(patch, before, after);
        add_body(patch, text.ptr != NULL ? text.ptr : "", path, before, after);
    }
    git_buf_dispose(&text);
    git_patch_free(compared);
    return r == 0 || repo_error(error, "compare two versions of a file");
}

gboolean repo_diff_add(GString *patch, const char *path, const RepoDiffSide *before,
                       const RepoDiffSide *after, GError **error)
{
    gboolean same_kind =
        before->mode == 0 || after->mode == 0 || S_ISLNK(before->mode) == S_ISLNK(after->mode);
    if (before->mode != 0 && after->mode != 0 && git_mode(before) == git_mode(after) &&
        before->len == after->len && memcmp(before->data, after->data, after->len) == 0)
        return TRUE;
    repo_library_init();
    return same_kind ? add_one(patch, path, before, after, error)
                     : add_one(patch, path, before, &absent, error) &&
                           add_one(patch, path, &absent, after, error);
}
