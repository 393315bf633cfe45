/*
 * Pre-splitting with PCRE2.
 *
 * Invariants:
 *   1. Pieces are never empty and cover the text: every character matches some branch.
 *   2. PCRE2 sees only valid UTF-8 (its own check is skipped), a run at a time.
 *   3. Each match starts where the last one ended; every branch backtracks over its own piece at
 *      most twice, so the time is linear in the text.
 *
 * White space is spelled out: \s of PCRE2 has U+180E, which Unicode took out in 6.3 and the
 * engine behind Hugging Face's tokenizers does not have.
 */
#include "policy/token_split.h"

#include "base/error.h"
#include "policy/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define MATCH_STEPS_MAX 1000000000u /* above every text of TOKENIZER_TEXT_BYTES_MAX */
#define MATCH_HEAP_KIB  (1024u * 1024u)

#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LEAD  "[^\\r\\n\\p{L}\\p{N}]?"
#define SHORT "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
#define SPACE                                                                                      \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"             \
    "\\x{202f}\\x{205f}\\x{3000}"

#define PATTERN(space, not_space, other)                                                           \
    LEAD UPPER "*" LOWER "+" SHORT "|" LEAD UPPER "+" LOWER "*" SHORT "|\\p{N}{1,3}"               \
               "| ?" other "+[\\r\\n/]*|" space "*[\\r\\n]+|" space "+(?!" not_space ")|" space    \
               "+"

const char token_split_pattern[] = PATTERN("\\s", "\\S", "[^\\s\\p{L}\\p{N}]");
static const char pattern[] = PATTERN("[" SPACE "]", "[^" SPACE "]", "[^" SPACE "\\p{L}\\p{N}]");

static pcre2_code *compile(void)
{
    int why;
    PCRE2_SIZE where;
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C;
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &why, &where, NULL);
    if (code == NULL)
        g_error("token pattern: error %d at %zu", why, where);
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without JIT the interpreter serves */
    return code;
}

/* Scratch of one call. */
typedef struct Splitter {
    const pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *context;
    TokenPieceFn fn;
    gpointer fn_data;
} Splitter;

static gboolean split_run(const Splitter *splitter, const char *run, gsize len, GError **error)
{
    for (gsize at = 0; at < len;) {
        PCRE2_SPTR subject = (PCRE2_SPTR)run;
        int n = pcre2_match(splitter->code, subject, len, at, PCRE2_NO_UTF_CHECK, splitter->data,
                            splitter->context);
        if (n == PCRE2_ERROR_JIT_STACKLIMIT)
            n = pcre2_match(splitter->code, subject, len, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                            splitter->data, splitter->context);
        if (n < 0 && n != PCRE2_ERROR_NOMATCH)
            return error_set(error, ASSAY_ERROR_LIMIT, "text: splitting it gave up (PCRE2 %d)", n);
        gsize end = n < 0 ? at : pcre2_get_ovector_pointer(splitter->data)[1];
        g_assert(end > at);
        splitter->fn(run + at, end - at, splitter->fn_data);
        at = end;
    }
    return TRUE;
}

/* Bytes from `text` on that are UTF-8. */
static gsize valid_run(const char *text, gsize len)
{
    gsize at = 0;
    while (at < len) {
        Utf8Kind kind;
        guint n = utf8_step(text + at, len - at, &kind);
        if (kind != UTF8_WHOLE)
            break;
        at += n;
    }
    return at;
}

gboolean token_split(const char *text, gsize len, TokenPieceFn fn, gpointer data, GError **error)
{
    static gsize once;
    if (g_once_init_enter(&once))
        g_once_init_leave(&once, (gsize)compile());

    Splitter splitter = {.code = (const pcre2_code *)once, .fn = fn, .fn_data = data};
    splitter.data = pcre2_match_data_create(1, NULL);
    splitter.context = pcre2_match_context_create(NULL);
    g_assert(splitter.data != NULL && splitter.context != NULL);
    pcre2_set_match_limit(splitter.context, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(splitter.context, MATCH_HEAP_KIB);

    gboolean good = TRUE;
    for (gsize at = 0; good && at < len;) {
        gsize n = valid_run(text + at, len - at);
        good = split_run(&splitter, text + at, n, error);
        at += n;
        if (good && at < len) {
            fn(text + at, 1, data);
            at++;
        }
    }
    pcre2_match_data_free(splitter.data);
    pcre2_match_context_free(splitter.context);
    return good;
}
