/*
 * Length windows: a turn's limit that grows in stages, as MiniMax-M1 was trained (arXiv 2506.13585,
 * 5). The next window is gone on to when both hold over the last batches: the perplexity of what
 * is generated has converged, and the 99th percentile of its lengths is near the limit. The paper
 * gives no thresholds: they are keys.
 */
#pragma once

#include "env/train_config.h"

#include "base/json.h"

/* What a batch says of it. */
typedef struct WindowSeen {
    guint window; /* that it was sampled in */
    double nll;   /* mean of -log-probability over sampled tokens: log of the perplexity */
    double p99;   /* of the tokens of a turn */
} WindowSeen;

typedef struct TrainWindow {
    guint at;     /* of rollout.windows, from 0 */
    GArray *seen; /* WindowSeen: the last batches of this window, oldest first */
} TrainWindow;

void window_init(TrainWindow *window);
void window_clear(TrainWindow *window);

/* Tokens that a turn may have in window `at`. */
gint64 window_tokens(const TrainConfig *config, guint at);

WindowSeen window_measure(guint at, const GPtrArray *groups);

/* Takes note of a batch that was learnt from; TRUE: the next window has begun. */
gboolean window_add(TrainWindow *window, const TrainConfig *config, const WindowSeen *seen);

json_t *window_seen_json(const WindowSeen *seen);
gboolean window_seen_read(const json_t *json, WindowSeen *seen, GError **error);
json_t *window_json(const TrainWindow *window);
/* NULL json: a run from before there were windows. */
gboolean window_read(TrainWindow *window, const json_t *json, GError **error);
