/*
 * Choosing a token from logits: a function of the logits, the settings, a seed and a position, so
 * that a sample can be made again whatever else was in its batch.
 */
#pragma once

#include <glib.h>

/* Zeros are safe: temperature 0 takes the most likely token. */
typedef struct SampleParams {
    double temperature; /* 0: greedy; at most 100 */
    double top_p;       /* 0 or 1: all; the fewest tokens of at least this much probability */
    double min_p;       /* 0: all; those of at least this share of the most likely one's */
    guint32 top_k;      /* 0: all; ties at the border by lower id */
    guint64 seed;
} SampleParams;

/* Refuses what is no number or out of range, naming the field. */
gboolean sample_params_check(const SampleParams *params, GError **error);

typedef struct Sampled {
    int id;
    float logprob;     /* under softmax(logits), temperature 1, nothing cut off */
    float logprob_own; /* under the distribution it was drawn from */
} Sampled;

/* logits [vocab]; ids from `valid` on never come. `lse` is log sum exp of the valid logits. `room`
 * must hold `valid` SampleEntry. */
typedef struct SampleEntry {
    float z; /* logit / temperature */
    int id;
} SampleEntry;

Sampled sample_token(const float *logits, int valid, float lse, const SampleParams *params,
                     gint64 position, SampleEntry *room);

/* Number in [0, 1) of (seed, position), 32 bits fine. */
double sample_uniform(guint64 seed, gint64 position);
