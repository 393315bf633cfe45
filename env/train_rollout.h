/*
 * Rollouts: the policy's own episodes, many at once, from prompts to rewards.
 *
 * The sampler makes a turn of every open episode; turns that ended become tool calls, and what the
 * tests say is the reward or the next turn's observation. Everything a trainer needs is recorded
 * where it is made: ids, masks, log-probabilities, endings.
 */
#pragma once

#include "env/train_dialect.h"
#include "env/train_sampler.h"
#include "policy/rollout.h"

typedef struct RolloutOptions {
    guint samples, turns;
    gint64 tokens_max;       /* of a turn */
    gint64 context_max;      /* of an episode, for dialects that answer at length */
    guint text_bytes_max;    /* of what a tool says */
    guint command_s;         /* seconds of a command */
    gint64 repetition;       /* see EngineRequest; 0: never */
    gboolean mask_cut;       /* episodes that a limit ended or cut train nothing */
    gint64 overlong_from;    /* sampled tokens from which the reward shrinks; 0: never */
    double overlong_penalty; /* taken at turns * tokens_max, linearly up to there (DAPO) */
    double temperature;      /* 0: greedy */
    guint routes;            /* layers K: each token's experts are recorded; 0: they are not */
    guint64 seed;
} RolloutOptions;

typedef struct Roller {
    Sampler *sampler;
    const Tokenizer *tokenizer;
    VerdictRunner *verdicts;
    const TrainDialect *dialect;
    Steps *steps; /* NULL: the dialect needs none */
} Roller;

/* One group of `samples` episodes for each of `n` tasks, in that order. Adds to `stats`. */
GPtrArray *rollouts_make(Roller *roller, TrainTask *const *tasks, guint n,
                         const RolloutOptions *options, RolloutStats *stats, GError **error);
