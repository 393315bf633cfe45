/*
 * The printable alphabet of tokenizer files: GPT-2's, one character for each byte.
 */
#pragma once

#include <glib.h>

/* Appends the bytes that `text` (UTF-8) spells; FALSE: a character is not of the alphabet. */
gboolean token_alphabet_read(const char *text, gsize len, GString *bytes);

/* Appends the spelling of `bytes`. */
void token_alphabet_write(const char *bytes, gsize len, GString *text);
