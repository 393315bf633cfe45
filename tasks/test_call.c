/*
 * Literal calls: a reader by descent, of bounded depth, over a text of bounded length.
 *
 * Invariant: what is let through is, character for character, what the reader has consumed.
 */
#include "tasks/test_call.h"

#include <string.h>

#define DIGITS_MAX 5u
#define DEPTH_MAX  4u

typedef struct Reader {
    const char *at;
    gboolean is_python;
    GString *shape;
} Reader;

static gboolean skip(Reader *r, const char *text)
{
    if (!g_str_has_prefix(r->at, text))
        return FALSE;
    r->at += strlen(text);
    return TRUE;
}

static gboolean read_value(Reader *r, guint depth);

static gboolean read_whole(Reader *r)
{
    guint n;

    skip(r, "-");
    n = (guint)strspn(r->at, "0123456789");
    r->at += n;
    return n > 0 && n <= DIGITS_MAX;
}

/* Printable ASCII without escapes. */
static gboolean read_quoted(Reader *r)
{
    char quote = *r->at++;

    while (*r->at && *r->at != quote) {
        if (!g_ascii_isprint(*r->at) || *r->at == '\\')
            return FALSE;
        r->at++;
    }
    return *r->at++ == quote;
}

/* What a value is, by how it begins. */
static char kind_of(char first)
{
    return first == '"' ? 's' : first == 'A' ? 'a' : 'w';
}

/* Values with commas between, up to and with `end`. */
static gboolean read_values(Reader *r, const char *end, guint depth)
{
    if (skip(r, end))
        return TRUE;
    do {
        while (skip(r, " "))
            continue;
        if (depth == 0 && !r->is_python)
            g_string_append_c(r->shape, kind_of(*r->at));
        if (!read_value(r, depth))
            return FALSE;
        while (skip(r, " "))
            continue;
    } while (skip(r, ","));
    return skip(r, end);
}

static gboolean read_word(Reader *r)
{
    static const char *const words[] = {"True", "False", "None"};

    for (guint i = 0; i < G_N_ELEMENTS(words); i++)
        if (skip(r, words[i]))
            return !g_ascii_isalnum(*r->at) && *r->at != '_' && *r->at != '(';
    return FALSE;
}

static gboolean read_value(Reader *r, guint depth)
{
    if (*r->at == '-' || g_ascii_isdigit(*r->at))
        return read_whole(r);
    if (*r->at == '"' || (*r->at == '\'' && r->is_python))
        return read_quoted(r);
    if (depth >= DEPTH_MAX)
        return FALSE;
    if (!r->is_python)
        return skip(r, "A(") && *r->at != ')' && read_values(r, ")", DEPTH_MAX);
    if (skip(r, "["))
        return read_values(r, "]", depth + 1);
    return skip(r, "(") ? read_values(r, ")", depth + 1) : read_word(r);
}

char *test_call_shape(const char *call, const char *name, gboolean is_python)
{
    g_autoptr(GString) shape = g_string_new(NULL);
    Reader reader = {call, is_python, shape};

    if (strlen(call) > TEST_CALL_BYTES || !skip(&reader, name) || !skip(&reader, "(") ||
        !read_values(&reader, ")", 0) || *reader.at != '\0')
        return NULL;
    return g_string_free(g_steal_pointer(&shape), FALSE);
}
