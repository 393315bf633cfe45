/*
 * Python text semantics over byte spans.
 *
 * Invariants:
 *   1. What text_decode gives is valid UTF-8 of its stated length; every other function here keeps
 *      that: it cuts only at character boundaries or at ASCII bytes.
 *   2. White space is Python's str.isspace, not C's and not PCRE's.
 *   3. Nothing here stops at a NUL.
 *
 * Not here: regular expressions (regex.c).
 */
#include "reward/text.h"

#include <string.h>

/* Length of the well-formed character at `p`, or 0 with the length of the maximal ill-formed
 * subpart in `ret_bad` (at least 1). */
static gsize utf8_len(const guchar *p, gsize left, gsize *ret_bad)
{
    *ret_bad = 1;
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xC2 || p[0] > 0xF4)
        return 0;

    gsize need = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    guchar low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
    guchar high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
    for (gsize i = 1; i < need; i++) {
        if (i >= left || p[i] < low || p[i] > high) {
            *ret_bad = i;
            return 0;
        }
        low = 0x80;
        high = 0xBF;
    }
    return need;
}

static GString *decode(const guchar *bytes, gsize len)
{
    GString *out = g_string_sized_new(len + 1);
    gsize plain = 0; /* start of the run not yet copied */
    for (gsize i = 0; i < len;) {
        gsize bad, n = utf8_len(bytes + i, len - i, &bad);
        if (n > 0) {
            i += n;
            continue;
        }
        g_string_append_len(out, (const char *)bytes + plain, (gssize)(i - plain));
        g_string_append(out, TEXT_REPLACEMENT);
        i += bad;
        plain = i;
    }
    if (plain < len)
        g_string_append_len(out, (const char *)bytes + plain, (gssize)(len - plain));
    return out;
}

char *text_decode(const void *bytes, gsize len, gsize *ret_len)
{
    GString *out = decode(bytes, len);
    *ret_len = out->len;
    return g_string_free(out, FALSE);
}

char *text_read(const void *bytes, gsize len, gsize *ret_len)
{
    GString *out = decode(bytes, len);
    gsize to = 0;
    for (gsize i = 0; i < out->len; i++) {
        char c = out->str[i];
        if (c == '\r') {
            c = '\n';
            if (i + 1 < out->len && out->str[i + 1] == '\n')
                i++;
        }
        out->str[to++] = c;
    }
    g_string_truncate(out, to);
    *ret_len = to;
    return g_string_free(out, FALSE);
}

Span span_of(const char *str)
{
    return (Span){str, strlen(str)};
}

gboolean span_eq(Span a, Span b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

gboolean span_starts(Span text, Span prefix)
{
    return text.len >= prefix.len &&
           (prefix.len == 0 || memcmp(text.ptr, prefix.ptr, prefix.len) == 0);
}

gboolean span_ends(Span text, Span suffix)
{
    return text.len >= suffix.len && (suffix.len == 0 || memcmp(text.ptr + text.len - suffix.len,
                                                                suffix.ptr, suffix.len) == 0);
}

gssize span_find(Span text, Span needle, gsize from)
{
    if (from > text.len)
        return -1;
    if (needle.len == 0)
        return (gssize)from;
    if (text.len - from < needle.len)
        return -1;
    const char *hit = memmem(text.ptr + from, text.len - from, needle.ptr, needle.len);
    return hit == NULL ? -1 : hit - text.ptr;
}

gssize span_rfind(Span text, Span needle)
{
    g_assert(needle.len > 0);
    for (gsize end = text.len; end >= needle.len;) {
        const char *hit = memrchr(text.ptr, needle.ptr[0], end - needle.len + 1);
        if (hit == NULL)
            return -1;
        if (memcmp(hit, needle.ptr, needle.len) == 0)
            return hit - text.ptr;
        end = (gsize)(hit - text.ptr) + needle.len - 1;
    }
    return -1;
}

gboolean span_has(Span text, Span needle)
{
    return span_find(text, needle, 0) >= 0;
}

Span span_slice(Span text, gsize from, gsize to)
{
    g_assert(from <= to && to <= text.len);
    return (Span){text.ptr + from, to - from};
}

Span span_from(Span text, gsize from)
{
    return span_slice(text, from, text.len);
}

void span_split_once(Span text, Span sep, Span *ret_before, Span *ret_after)
{
    gssize at = span_find(text, sep, 0);
    Span before = at < 0 ? text : span_slice(text, 0, (gsize)at);
    Span after = at < 0 ? (Span){NULL, 0} : span_from(text, (gsize)at + sep.len);
    if (ret_before != NULL)
        *ret_before = before;
    if (ret_after != NULL)
        *ret_after = after;
}

Span span_after_last(Span text, Span sep)
{
    gssize at = span_rfind(text, sep);
    return at < 0 ? text : span_from(text, (gsize)at + sep.len);
}

Span span_before_last(Span text, Span sep)
{
    gssize at = span_rfind(text, sep);
    return at < 0 ? text : span_slice(text, 0, (gsize)at);
}

gboolean span_cut_str(Span *rest, Span sep, Span *ret_piece)
{
    if (rest->ptr == NULL)
        return FALSE;
    span_split_once(*rest, sep, ret_piece, rest);
    return TRUE;
}

gboolean span_cut(Span *rest, char sep, Span *ret_piece)
{
    return span_cut_str(rest, (Span){&sep, 1}, ret_piece);
}

/* str.isspace of one character. */
static gboolean char_is_space(gunichar c)
{
    if (c < 0x80)
        return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
    switch (c) {
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
        return TRUE;
    default:
        return c >= 0x2000 && c <= 0x200A;
    }
}

/* Bytes of white space at the start of `text`. */
static gsize space_head(Span text)
{
    const char *p = text.ptr, *end = text.ptr + text.len;
    while (p < end && char_is_space(g_utf8_get_char(p)))
        p = text_next(p);
    return (gsize)(p - text.ptr);
}

Span span_lstrip(Span text)
{
    return text.len == 0 ? text : span_from(text, space_head(text));
}

Span span_rstrip(Span text)
{
    while (text.len > 0) {
        const char *last = text.ptr + text.len - 1;
        while (last > text.ptr && ((guchar)*last & 0xC0) == 0x80)
            last--;
        if (!char_is_space(g_utf8_get_char(last)))
            break;
        text.len = (gsize)(last - text.ptr);
    }
    return text;
}

Span span_strip(Span text)
{
    return span_rstrip(span_lstrip(text));
}

gboolean span_next_word(Span *rest, Span *ret_word)
{
    *rest = span_lstrip(*rest);
    if (rest->len == 0)
        return FALSE;
    const char *p = rest->ptr, *end = rest->ptr + rest->len;
    while (p < end && !char_is_space(g_utf8_get_char(p)))
        p = text_next(p);
    *ret_word = span_slice(*rest, 0, (gsize)(p - rest->ptr));
    *rest = span_from(*rest, (gsize)(p - rest->ptr));
    return TRUE;
}

gsize span_words(Span text, Span *ret_words, gsize n)
{
    gsize count = 0;
    while (count < n && span_next_word(&text, &ret_words[count]))
        count++;
    return count;
}

gsize span_chars(Span text)
{
    gsize count = 0;
    for (gsize i = 0; i < text.len; i++)
        count += ((guchar)text.ptr[i] & 0xC0) != 0x80;
    return count;
}

gsize span_indent(Span line)
{
    return line.len == 0 ? 0 : span_chars(span_slice(line, 0, space_head(line)));
}

char *span_dup(Span text)
{
    return g_strndup(text.ptr, text.len);
}

void span_append(GString *to, Span text)
{
    if (text.len > 0)
        g_string_append_len(to, text.ptr, (gssize)text.len);
}

GString *span_replace(Span text, Span what, Span with)
{
    GString *out = g_string_sized_new(text.len + 1);
    Span piece;
    for (gboolean first = TRUE; span_cut_str(&text, what, &piece); first = FALSE) {
        if (!first)
            span_append(out, with);
        span_append(out, piece);
    }
    return out;
}

GString *span_join_words(Span text, Span sep)
{
    GString *out = g_string_sized_new(text.len + 1);
    Span word;
    for (gboolean first = TRUE; span_next_word(&text, &word); first = FALSE) {
        if (!first)
            span_append(out, sep);
        span_append(out, word);
    }
    return out;
}
