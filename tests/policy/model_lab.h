/*
 * What the tests of models share: the golden model of the specification, caches of one sequence,
 * and a plain way to run tokens through. Numbers come out as doubles, whatever the ops compute in.
 */
#pragma once

#include "policy/backward.h"
#include "policy/forward.h"
#include "policy/rollout.h"

#include <glib.h>

#define GOLDEN_TOKENS 20
#define GOLDEN_VOCAB  29

/* 16 wide, 4 heads of 8, 2 kv heads, 8 layers (the last softmax), 4 experts of 12, chunk as given.
 * Weights by the specification's sine formula. */
void lab_golden_config(ModelConfig *config, guint chunk);
Model *lab_golden_model(const Ops *ops, WeightFormat format, guint chunk);
void lab_golden_ids(int ids[GOLDEN_TOKENS]);

/* Normal numbers by seed for every tensor: a model of any shape. */
Model *lab_random_model(const Ops *ops, const ModelConfig *config, WeightFormat format, guint seed);

/* One sequence: caches for up to `tokens_max` positions, NaN where nothing was written yet. */
typedef struct LabSeq {
    const Model *model;
    void **pages, **dpages;
    gsize n_pages;
    void *state, *open;
    int64_t length;
} LabSeq;

LabSeq *lab_seq_new(const Model *model, int tokens_max);
void lab_seq_free(LabSeq *seq);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(LabSeq, lab_seq_free)
/* A copy with caches of its own, at the same position. */
LabSeq *lab_seq_copy(const LabSeq *seq);
OpsSpan lab_span(LabSeq *seq, int row0, int rows);

/* Runs `rows` more tokens; logits [rows, V] in the type of the ops. The caller frees them. */
void *lab_run(LabSeq *seq, Acts *acts, const int *ids, int rows);

double lab_number(const Model *model, const void *array, gsize index);
/* |a - b| / |b| over all, in the Euclidean norm. */
double lab_distance(const Model *a, const void *x, const Model *b, const void *y, gsize n);
/* `n` random rollouts of up to 19 tokens after a random prompt of `prompt_n` (at most 64), some
 * tokens masked, with advantages. */
RolloutGroup *lab_group(guint seed, int prompt_n, guint n);
