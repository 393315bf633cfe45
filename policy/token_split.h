/*
 * The first cut of a text: pieces that no token crosses.
 *
 * M1's cut is GPT-4o's (reference pattern below): words with an optional leading character and an
 * English contraction, up to three digits, punctuation with the line ends or slashes after it,
 * line ends, white space.
 */
#pragma once

#include <glib.h>

/* The pattern as tokenizer.json spells it. */
extern const char token_split_pattern[];

typedef void (*TokenPieceFn)(const char *piece, gsize len, gpointer data);

/* Calls `fn` with the pieces in order; together they are the text, byte for byte. Any bytes may
 * come: each one that is not UTF-8 is a piece by itself. ASSAY_ERROR_LIMIT when PCRE2 gives up
 * (no text is known that makes it). */
gboolean token_split(const char *text, gsize len, TokenPieceFn fn, gpointer data, GError **error);
