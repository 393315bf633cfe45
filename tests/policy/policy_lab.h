/*
 * What the tests of the tokenizer share.
 */
#pragma once

#include "policy/tokenizer.h"

/* tests/policy/corpus.txt. */
char *lab_corpus(gsize *ret_len);

/* A vocabulary trained on the corpus. */
Tokenizer *lab_tokenizer(guint vocab);

/* The directory of M1's published files ($ASSAY_M1_DATA). NULL: the test was skipped, with why. */
const char *lab_m1_data(void);

/* A fresh directory below the temporary one, and its end. */
char *lab_dir(void);
void lab_dir_remove(const char *dir);

/* splitmix64, so that a failing case can be found again by its seed. */
guint64 lab_random(guint64 *state);
guint lab_below(guint64 *state, guint n);

void lab_same(const void *a, gsize a_len, const void *b, gsize b_len);

/* "1 2 3" */
char *lab_ids(const GArray *ids);

/* The same cut as token_split and the same merges as tokenizer_encode, written the slow way: to
 * compare with. */
void lab_slow_split(const char *text, gsize len, GArray *ret_ends);
void lab_slow_encode(const Tokenizer *tokenizer, const char *text, gsize len, GArray *ids);
