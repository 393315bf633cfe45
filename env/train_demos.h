/*
 * Demonstrations for the supervised warm-up: plain correct code, and episodes of a demonstrator who
 * is right only sometimes. Imitating it cannot be better than it is; the rest is left to the tests.
 *
 * A share `text` of the demonstrations is a prompt of fixed code, every token of which is learnt.
 * The others are episodes: each turn's action is the fix with probability `gold`, else a random
 * edit, after which the environment says "fail" and the next turn follows. Actions are learnt,
 * answers only read; a prompt weighs `read` times what its actions do. With `skip_wrong` random
 * edits are only read as well, and the last turn is right: how to go on after a mistake is learnt,
 * the mistake is not.
 */
#pragma once

#include "env/train_tasks.h"
#include "policy/rollout.h"

struct TrainDialect;

typedef struct DemoOptions {
    double gold, text; /* shares */
    double read;       /* weight of a prompt beside its actions */
    gboolean skip_wrong;
    guint turns;
    gint64 rows_max; /* a demonstration of more tokens is an error; 0: any */
} DemoOptions;

/* Demonstrations of about `tokens` in all, groups of one rollout; by the state of `rand`. */
GPtrArray *demos_make(const struct TrainDialect *dialect, const GPtrArray *tasks,
                      const Tokenizer *tokenizer, const DemoOptions *options, gint64 tokens,
                      GRand *rand, GError **error);

/* All that prompts, actions and answers may say of these tasks: to train a vocabulary on. */
gboolean demos_corpus(const struct TrainDialect *dialect, const GPtrArray *tasks, GString *out,
                      GError **error);
