/*
 * A thin layer between Python patterns and PCRE2.
 *
 * Invariants:
 *   1. Subjects are valid UTF-8 (text.c made them), so PCRE2's own check is skipped.
 *   2. Every match is bounded by MATCH_STEPS_MAX; passing it is told, never hidden.
 *   3. A pattern that does not compile is a bug of ours and aborts.
 *
 * Differences taken care of: Python's \s has U+001C-001F and not U+180E; its `.` and `$` know only
 * LF; its multiline `^` matches after a final newline (PCRE2_ALT_CIRCUMFLEX).
 *
 * Not here: what the patterns mean (parsers/).
 */
#include "reward/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string.h>

#define MATCH_STEPS_MAX 20000000
#define MATCH_HEAP_KIB  (256 * 1024)
#define JIT_STACK_BYTES (32 * 1024)
#define JIT_STACK_MAX   (16 * 1024 * 1024)

#define SPACES                                                                                     \
    "\\x{9}-\\x{d}\\x{1c}-\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"     \
    "\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACES                                                                                 \
    "\\x{0}-\\x{8}\\x{e}-\\x{1b}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}"                   \
    "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"                 \
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"

static const struct {
    char letter;
    const char *inside, *outside; /* of a character class */
} sets[] = {
    {'s', SPACES, "[" SPACES "]"},
    {'S', NOT_SPACES, "[" NOT_SPACES "]"},
    {'d', "\\p{Nd}", "\\p{Nd}"},
    {'w', "\\p{L}\\p{N}_", "[\\p{L}\\p{N}_]"},
};

/* Scratch of one thread: match data and a JIT stack. */
typedef struct Scratch {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
} Scratch;

static void scratch_free(gpointer ptr)
{
    Scratch *scratch = ptr;
    pcre2_match_data_free(scratch->data);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->stack);
    g_free(scratch);
}

static Scratch *scratch_get(void)
{
    static GPrivate key = G_PRIVATE_INIT(scratch_free);
    Scratch *scratch = g_private_get(&key);
    if (scratch != NULL)
        return scratch;

    scratch = g_new0(Scratch, 1);
    scratch->data = pcre2_match_data_create(MATCH_GROUPS_MAX, NULL);
    scratch->context = pcre2_match_context_create(NULL);
    scratch->stack = pcre2_jit_stack_create(JIT_STACK_BYTES, JIT_STACK_MAX, NULL);
    g_assert(scratch->data != NULL && scratch->context != NULL && scratch->stack != NULL);
    pcre2_set_match_limit(scratch->context, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(scratch->context, MATCH_HEAP_KIB);
    pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
    g_private_set(&key, scratch);
    return scratch;
}

static const char *set_find(char letter, gboolean in_class)
{
    for (gsize i = 0; i < G_N_ELEMENTS(sets); i++)
        if (sets[i].letter == letter)
            return in_class ? sets[i].inside : sets[i].outside;
    return NULL;
}

char *regex_translate(const char *pattern)
{
    GString *out = g_string_new(NULL);
    gboolean in_class = FALSE;
    for (const char *p = pattern; *p != '\0'; p++) {
        if (*p == '\\' && p[1] != '\0') {
            const char *set = set_find(p[1], in_class);
            if (set != NULL)
                g_string_append(out, set);
            else
                g_string_append_len(out, p, 2);
            p++;
            continue;
        }
        if (*p == '[' && in_class)
            g_string_append_c(out, '\\');
        else if (*p == '[')
            in_class = TRUE;
        else if (*p == ']')
            in_class = FALSE;
        g_string_append_c(out, *p);
    }
    return g_string_free(out, FALSE);
}

static pcre2_code *regex_compile(const Regex *regex)
{
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_ALT_CIRCUMFLEX | PCRE2_NEVER_BACKSLASH_C;
    if (regex->flags & REGEX_MULTILINE)
        options |= PCRE2_MULTILINE;
    if (regex->flags & REGEX_DOTALL)
        options |= PCRE2_DOTALL;

    g_autofree char *pattern = regex_translate(regex->pattern);
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    g_assert(context != NULL);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int why;
    PCRE2_SIZE where;
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &why, &where, context);
    pcre2_compile_context_free(context);
    if (code == NULL)
        g_error("pattern %s: error %d at %zu", regex->pattern, why, where);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without JIT the interpreter serves */
    return code;
}

static gboolean regex_run(Regex *regex, Span subject, gsize from, guint32 options,
                          gboolean *gave_up, Match *ret)
{
    if (g_once_init_enter(&regex->code))
        g_once_init_leave(&regex->code, (gsize)regex_compile(regex));
    const pcre2_code *code = (const pcre2_code *)regex->code;

    Scratch *scratch = scratch_get();
    PCRE2_SPTR text = (PCRE2_SPTR)(subject.len == 0 ? "" : subject.ptr);
    options |= PCRE2_NO_UTF_CHECK;
    int n = pcre2_match(code, text, subject.len, from, options, scratch->data, scratch->context);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT)
        n = pcre2_match(code, text, subject.len, from, options | PCRE2_NO_JIT, scratch->data,
                        scratch->context);
    if (n == PCRE2_ERROR_NOMATCH)
        return FALSE;
    if (n < 0) {
        *gave_up = TRUE;
        return FALSE;
    }

    g_assert(n > 0); /* 0 would mean more groups than MATCH_GROUPS_MAX */
    if (ret == NULL)
        return TRUE;
    *ret = (Match){0};
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(scratch->data);
    for (int i = 0; i < n; i++)
        if (at[2 * i] != PCRE2_UNSET)
            ret->group[i] = (Span){(const char *)text + at[2 * i], at[2 * i + 1] - at[2 * i]};
    return TRUE;
}

gboolean regex_match(Regex *regex, Span subject, gboolean *gave_up, Match *ret)
{
    return regex_run(regex, subject, 0, PCRE2_ANCHORED, gave_up, ret);
}

gboolean regex_search(Regex *regex, Span subject, gsize from, gboolean *gave_up, Match *ret)
{
    return regex_run(regex, subject, from, 0, gave_up, ret);
}

gboolean regex_next(Regex *regex, Span subject, gsize *pos, gboolean *gave_up, Match *ret)
{
    if (*pos > subject.len || !regex_run(regex, subject, *pos, 0, gave_up, ret))
        return FALSE;
    g_assert(ret->group[0].len > 0);
    *pos = (gsize)(ret->group[0].ptr - subject.ptr) + ret->group[0].len;
    return TRUE;
}

GString *regex_replace(Regex *regex, Span subject, Span with, gboolean *gave_up)
{
    GString *out = g_string_sized_new(subject.len + 1);
    gsize pos = 0, kept = 0;
    Match m;
    while (regex_next(regex, subject, &pos, gave_up, &m)) {
        span_append(out, span_slice(subject, kept, pos - m.group[0].len));
        span_append(out, with);
        kept = pos;
    }
    if (subject.len > 0)
        span_append(out, span_from(subject, kept));
    return out;
}
