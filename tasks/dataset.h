/*
 * Dataset files and directories to tasks, whatever format their rows have.
 *
 *     dataset_read("verified.jsonl", NULL, on_row, state, &error)
 */
#pragma once

#include "tasks/task.h"

#define DATASET_BYTES_MAX (1u << 30)

/* Called per row, in order. A bad row has task == NULL and `why` set. Return FALSE to stop. */
typedef gboolean (*DatasetRowFn)(Task *task, guint line, const GError *why, gpointer user_data);

/*
 * Reads PATH: JSON lines, a JSON list or dict of rows, one task directory (task.conf inside), or a
 * directory of those. `spec_map` is the file that v4.1 rows need (docs/formats.md), or NULL. The
 * callback owns nothing: it takes a reference of task->json if it wants to keep the row. FALSE only
 * when PATH itself cannot be read.
 */
gboolean dataset_read(const char *path, const char *spec_map, DatasetRowFn fn, gpointer user_data,
                      GError **error);

/* One row of any known format to a task; `specs` is the parsed spec map or NULL. */
Task *dataset_row(json_t *row, const json_t *specs, GError **error);

/* One prediction line: {"instance_id", "model_name_or_path", "model_patch"}; extra keys ignored. */
typedef struct Prediction {
    char *instance_id;
    char *model;
    char *patch; /* NULL when the prediction was null */
} Prediction;
Prediction *prediction_from_json(const json_t *row, GError **error);
void prediction_free(Prediction *prediction);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Prediction, prediction_free)

/* Called per raw row of a file of predictions or tasks: JSON lines, list, or dict by id. */
typedef gboolean (*JsonRowFn)(json_t *row, guint line, const GError *why, gpointer user_data);
gboolean json_rows_read(const char *path, JsonRowFn fn, gpointer user_data, GError **error);
