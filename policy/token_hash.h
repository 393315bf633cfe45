/*
 * Hashes that a file cannot be made against: they start from a number drawn by each process.
 */
#pragma once

#include <glib.h>

/* FNV-1a in 64 bits from the drawn number, folded. */
guint token_hash_bytes(const char *bytes, gsize len);

/* The top `bits` of the product with a drawn odd number (Dietzfelbinger and others 1997). */
guint64 token_hash_word(guint64 word, guint bits);
