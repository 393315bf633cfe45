/*
 * Making a Tokenizer from parts: for the reader of files, the trainer and tests.
 *
 * tokenizer_new, tokenizer_put for every token, tokenizer_merge in rank order, tokenizer_finish.
 */
#pragma once

#include "policy/tokenizer.h"

#include "base/json.h"

typedef struct TokenMerge {
    gint32 left, right, id; /* the pair, and the token it becomes */
} TokenMerge;

Tokenizer *tokenizer_new(void);

/* Adds a token. INPUT: the id is taken or out of range, the bytes are empty, too long or are those
 * of another token. */
gboolean tokenizer_put(Tokenizer *tokenizer, gint32 id, const char *bytes, gsize len,
                       gboolean special, GError **error);

/* Adds the next merge; the three ids must be tokens that fit. INPUT: the pair has a merge. */
gboolean tokenizer_merge(Tokenizer *tokenizer, gint32 left, gint32 right, gint32 id,
                         GError **error);

/* Checks that every byte has a token, and makes the tables. */
gboolean tokenizer_finish(Tokenizer *tokenizer, GError **error);

/* Puts M1's special tokens after `n_merges` merges (tokenizer_load says which). */
gboolean tokenizer_put_specials(Tokenizer *tokenizer, guint n_merges, GError **error);

/* The merges in rank order. */
const TokenMerge *tokenizer_merges(const Tokenizer *tokenizer, guint *ret_n);

/* The first token that its own bytes do not encode to, as one piece; -1 when all do. */
gint32 tokenizer_unreached(const Tokenizer *tokenizer);

/* The texts of files, as tokenizer_load reads them; `config` is tokenizer_config.json or NULL. */
Tokenizer *tokenizer_from_json(const char *text, gsize len, GError **error);
Tokenizer *tokenizer_from_merges(const char *text, gsize len, const json_t *config, GError **error);
