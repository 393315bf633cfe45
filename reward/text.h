/*
 * Text as the SWE-bench graders see it: Python's decoding, newlines, white space and splitting.
 *
 *     g_autofree char *text = text_read(log, log_len, &len);
 *     Span rest = {text, len}, line;
 *     while (span_cut(&rest, '\n', &line))
 *         ... span_strip(line) ...
 *
 * A Span borrows: it lives as long as the bytes it points at. NULs are ordinary characters.
 */
#pragma once

#include <glib.h>

typedef struct Span {
    const char *ptr; /* NULL marks "nothing left" in span_cut and "did not take part" in Match */
    gsize len;       /* bytes */
} Span;

#define SPAN(literal) ((Span){("" literal), sizeof(literal) - 1})

/* U+FFFD in UTF-8. */
#define TEXT_REPLACEMENT "\xEF\xBF\xBD"

/* bytes.decode("utf-8", "replace"): every maximal ill-formed subpart becomes one U+FFFD (Unicode
 * 15, section 3.9, table 3-8). The result is valid UTF-8, NUL-terminated, `*ret_len` bytes. */
char *text_decode(const void *bytes, gsize len, gsize *ret_len);

/* text_decode, then CR LF and lone CR become LF: a file read in Python's text mode. */
char *text_read(const void *bytes, gsize len, gsize *ret_len);

Span span_of(const char *str);
gboolean span_eq(Span a, Span b);
gboolean span_starts(Span text, Span prefix);
gboolean span_ends(Span text, Span suffix);

/* Byte index of `needle` at or after `from`, or -1; span_rfind gives the last one. */
gssize span_find(Span text, Span needle, gsize from);
gssize span_rfind(Span text, Span needle);
gboolean span_has(Span text, Span needle);

/* text[from:to] and text[from:], in bytes. */
Span span_slice(Span text, gsize from, gsize to);
Span span_from(Span text, gsize from);

/* What lies before the first `sep`, and what after it: str.split(sep, 1). `ret_after` is a NULL
 * span when there is no `sep`. Either may be NULL. */
void span_split_once(Span text, Span sep, Span *ret_before, Span *ret_after);
/* text.split(sep)[-1]: what follows the last `sep`, or all. */
Span span_after_last(Span text, Span sep);
/* text.rsplit(sep, 1)[0]: what precedes the last `sep`, or all. */
Span span_before_last(Span text, Span sep);

/* The pieces of str.split(sep), one per call, the empty ones too; FALSE after the last. */
gboolean span_cut(Span *rest, char sep, Span *ret_piece);
gboolean span_cut_str(Span *rest, Span sep, Span *ret_piece);

/* The words of str.split(), one per call. */
gboolean span_next_word(Span *rest, Span *ret_word);
/* The first `n` words; returns how many there were (at most n). */
gsize span_words(Span text, Span *ret_words, gsize n);

Span span_strip(Span text);
Span span_lstrip(Span text);
Span span_rstrip(Span text);

/* Characters, not bytes. */
gsize span_chars(Span text);
/* len(line) - len(line.lstrip()), in characters. */
gsize span_indent(Span line);

char *span_dup(Span text);
void span_append(GString *to, Span text);
/* str.replace(what, with). */
GString *span_replace(Span text, Span what, Span with);
/* " ".join(text.split()) with `sep` between. */
GString *span_join_words(Span text, Span sep);

/* The next character; g_utf8_next_char without the cast that drops const. */
static inline const char *text_next(const char *p)
{
    return p + g_utf8_skip[(guchar)*p];
}

static inline Span span_gstring(const GString *string)
{
    return (Span){string->str, string->len};
}

static inline void gstring_free_p(GString **string)
{
    if (*string != NULL)
        g_string_free(*string, TRUE);
}
#define AUTO_GSTRING __attribute__((cleanup(gstring_free_p))) GString *
