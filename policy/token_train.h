/*
 * Training a small vocabulary: bytes, the commonest merges, M1's special tokens.
 *
 *     g_autoptr(TokenTrainer) trainer = token_trainer_new();
 *     token_trainer_add(trainer, text, len, &error);                   any number of texts
 *     g_autoptr(Tokenizer) tokenizer = token_trainer_finish(trainer, 4096, &error);
 *
 * The same texts give the same vocabulary, in whatever order they come.
 */
#pragma once

#include "policy/tokenizer.h"

#define TOKEN_TRAIN_VOCAB_MIN   260u /* the bytes and the special tokens */
#define TOKEN_TRAIN_VOCAB_MAX   131072u
#define TOKEN_TRAIN_BYTES_MAX   (4ull << 30) /* of all texts; memory goes with distinct pieces */
#define TOKEN_TRAIN_PIECE_BYTES 256u         /* a longer piece counts as several: it is no word */

typedef struct TokenTrainer TokenTrainer;

TokenTrainer *token_trainer_new(void);
void token_trainer_free(TokenTrainer *trainer);

/* Counts the pieces of a text. LIMIT: too many bytes in all. */
gboolean token_trainer_add(TokenTrainer *trainer, const char *text, gsize len, GError **error);

/* Makes the vocabulary of `vocab` ids; fewer where no pair of tokens is left that occurs twice.
 * INPUT: `vocab` is out of range. The trainer can be finished again, with another size. */
Tokenizer *token_trainer_finish(const TokenTrainer *trainer, guint vocab, GError **error);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(TokenTrainer, token_trainer_free)
