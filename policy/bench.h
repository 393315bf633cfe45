/*
 * Benchmarks of the CPU path: every speed beside the ceiling it is held against, measured in the
 * same run. Medians of several rounds.
 *
 * The bound of a step is the larger of two times: its bytes over the read bandwidth, its
 * operations over the peak of multiply-adds. Bytes: dense weights, the experts that were touched,
 * states, keys and values. Source of the shapes: the presets of init.h.
 */
#pragma once

#include "policy/cache.h"

typedef struct BenchRow {
    const char *group; /* "ceiling", "kernel", "decode", "prefill", "context", "train", "dense" */
    char what[96];
    double value;
    const char *unit;
    double bound; /* in the same unit; 0: it is a ceiling itself */
} BenchRow;

/* Operations a second that all threads reach on multiply-adds in registers: the ceiling. */
double bench_peak(const Ops *ops);

typedef void (*BenchFunc)(const BenchRow *row, gpointer user);

/* Ceilings and kernels, then the model at batches 1, 16 and 64, its prefill, and the time of a
 * decoded token at contexts up to `context_max` (filled without computing them: their values do
 * not change the time), a training step of a model that is not too large, and decoding with one
 * expert for all rows. Nothing is read from files; the weights are random. */
gboolean bench_run(const Ops *ops, const ModelConfig *config, WeightFormat format, guint rounds,
                   gint64 context_max, BenchFunc func, gpointer user, GError **error);
