/*
 * What a run says of itself: metrics by name and step, as JSON lines, as TensorBoard events and as
 * lines for people.
 *
 *     train_log_put(log, "reward/mean", 0.31);
 *     train_log_end(log, step, error);          one line of metrics.jsonl, one event
 *
 * Names: docs/training.md lists them; `/` groups panels.
 */
#pragma once

#include "base/json.h"

#include <glib.h>

typedef struct TrainLog TrainLog;

/* Appends to DIR/metrics.jsonl; lines of steps after `step_last` (a run that died and goes on from
 * a checkpoint) are dropped first. */
TrainLog *train_log_open(const char *dir, gint64 step_last, GError **error);
void train_log_close(TrainLog *log);
/* A line on standard error for every so many steps of warm-up, every update and evaluation. */
void train_log_talk(TrainLog *log, guint warmup_every);
/* A line for people, where there are any. */
void train_log_say(const TrainLog *log, const char *format, ...) G_GNUC_PRINTF(2, 3);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TrainLog, train_log_close)

/* The step of the last evaluation that was there when the log was opened; -1: none. */
gint64 train_log_eval_last(const TrainLog *log);

void train_log_put(TrainLog *log, const char *name, double value);
/* NAN when it was not put since the last end. */
double train_log_get(const TrainLog *log, const char *name);
/* Writes what was put, if anything. `phase`: "warmup", "rl" or "eval". */
gboolean train_log_end(TrainLog *log, const char *phase, gint64 step, GError **error);

/* A row of metrics as a line for people. */
char *train_log_line(const json_t *row);

/* The lines of a run's metrics, or NULL. */
GPtrArray *train_log_read(const char *dir, GError **error);
