/*
 * UTF-8 one character at a time, for text that may be cut or broken anywhere.
 */
#pragma once

#include <glib.h>

typedef enum Utf8Kind {
    UTF8_BROKEN = 0, /* can never become a character */
    UTF8_WHOLE = 1,
    UTF8_OPEN = 2, /* the head of a character that the text ends within */
} Utf8Kind;

/* Bytes of the character at `text` (len > 0), of its head, or of what one U+FFFD stands for:
 * the longest start of a character, else one byte (Unicode 15, 3.9, as Python replaces). */
guint utf8_step(const void *text, gsize len, Utf8Kind *kind);

/* Appends `text` to `out`, U+FFFD for what is not UTF-8. Returns how many bytes at the end were
 * left out because they are UTF8_OPEN (at most 3); with `last` they become U+FFFD as well. */
guint utf8_append(GString *out, const void *text, gsize len, gboolean last);
