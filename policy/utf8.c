/*
 * UTF-8 by the table of well-formed sequences (Unicode 15, table 3-7).
 *
 * Invariant: no surrogates, no overlong forms, nothing above U+10FFFF is ever UTF8_WHOLE.
 *
 * Not here: which characters are letters (token_split.c).
 */
#include "policy/utf8.h"

#define REPLACEMENT "\xef\xbf\xbd"

/* First bytes FROM..TO start characters of `len` bytes whose second byte is LOW..HIGH. */
static const struct {
    guint8 from, to, len, low, high;
} rows[] = {
    {0x00, 0x7f, 1, 0, 0},       {0xc2, 0xdf, 2, 0x80, 0xbf}, {0xe0, 0xe0, 3, 0xa0, 0xbf},
    {0xe1, 0xec, 3, 0x80, 0xbf}, {0xed, 0xed, 3, 0x80, 0x9f}, {0xee, 0xef, 3, 0x80, 0xbf},
    {0xf0, 0xf0, 4, 0x90, 0xbf}, {0xf1, 0xf3, 4, 0x80, 0xbf}, {0xf4, 0xf4, 4, 0x80, 0x8f},
};

guint utf8_step(const void *text, gsize len, Utf8Kind *kind)
{
    const guint8 *p = text;
    gsize row = 0;
    while (row < G_N_ELEMENTS(rows) && !(rows[row].from <= p[0] && p[0] <= rows[row].to))
        row++;
    *kind = UTF8_BROKEN;
    if (row == G_N_ELEMENTS(rows))
        return 1;
    for (guint n = 1; n < rows[row].len; n++) {
        guint8 low = n == 1 ? rows[row].low : 0x80, high = n == 1 ? rows[row].high : 0xbf;
        if (n == len)
            *kind = UTF8_OPEN;
        if (n == len || p[n] < low || p[n] > high)
            return n;
    }
    *kind = UTF8_WHOLE;
    return rows[row].len;
}

guint utf8_append(GString *out, const void *text, gsize len, gboolean last)
{
    const char *p = text;
    for (gsize at = 0; at < len;) {
        Utf8Kind kind;
        guint n = utf8_step(p + at, len - at, &kind);
        if (kind == UTF8_OPEN && !last)
            return n;
        if (kind == UTF8_WHOLE)
            g_string_append_len(out, p + at, n);
        else
            g_string_append(out, REPLACEMENT);
        at += n;
    }
    return 0;
}
