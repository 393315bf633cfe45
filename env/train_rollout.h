/*
 * Rollouts: the policy's own episodes, many at once, from prompts to rewards.
 *
 * The sampler makes a turn of every open episode; turns that ended become tool calls, and what the
 * tests say is the reward or the next turn's observation. Everything a trainer needs is recorded
 * where it is made: ids, masks, log-probabilities, endings.
 */
#pragma once

#include "env/train_sampler.h"
#include "env/train_tasks.h"
#include "env/verdict.h"
#include "policy/rollout.h"

typedef struct RolloutOptions {
    guint samples, turns;
    gint64 tokens_max;       /* of a turn */
    gint64 repetition;       /* see EngineRequest; 0: never */
    gboolean mask_cut;       /* episodes with a turn that was cut train nothing */
    gint64 overlong_from;    /* sampled tokens from which the reward shrinks; 0: never */
    double overlong_penalty; /* taken at turns * tokens_max, linearly up to there (DAPO) */
    double temperature;      /* 0: greedy */
    guint routes;            /* layers K: each token's experts are recorded; 0: they are not */
    guint64 seed;
} RolloutOptions;

typedef struct RolloutStats {
    guint episodes, turns, invalid, cut; /* turns that said no action; that ran out of tokens */
    guint passed, passed_first;          /* at all; by the first turn */
    guint unscorable, repeated;          /* repeated: turns that the repetition stop ended */
    guint lost;                          /* of the unscorable: a server's doing */
    guint64 tokens;                      /* sampled */
    double sample_s;                     /* in the engine, or on a server */
    double wait_s;                       /* for tests, with nothing to sample */
} RolloutStats;

typedef struct Roller {
    Sampler *sampler;
    const Tokenizer *tokenizer;
    VerdictRunner *verdicts;
} Roller;

/* One group of `samples` episodes for each of `n` tasks, in that order. Adds to `stats`. */
GPtrArray *rollouts_make(Roller *roller, TrainTask *const *tasks, guint n,
                         const RolloutOptions *options, RolloutStats *stats, GError **error);
