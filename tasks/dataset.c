/*
 * Files of rows, read whole, reported row by row.
 *
 * Invariants:
 *   1. One bad row never hides another: each is reported with its line and why.
 *   2. A row is handed on only as a usable Task (tasks/task.c invariant 1).
 *
 * Not here: what rows of one format look like (formats/), task directories (taskdir.c).
 */
#include "tasks/dataset.h"

#include "base/error.h"
#include "base/fd.h"
#include "tasks/format.h"
#include "tasks/taskdir.h"

#include <string.h>

Task *dataset_row(json_t *row, const json_t *specs, GError **error)
{
    for (const TaskFormat *const *format = task_formats; *format != NULL; format++) {
        if (!(*format)->sniff(row))
            continue;
        g_autoptr(json_t) canonical = (*format)->convert(row, specs, error);
        return canonical != NULL ? task_from_json(canonical, error) : NULL;
    }
    error_set(error, ASSAY_ERROR_INPUT,
              "not a task row: expected repo, base_commit, test_patch (docs/formats.md)");
    return NULL;
}

static gboolean rows_by_line(const char *text, gsize len, JsonRowFn fn, gpointer user_data)
{
    guint number = 0;
    for (const char *at = text; at < text + len;) {
        const char *end = memchr(at, '\n', (gsize)(text + len - at));
        gsize line_len = end != NULL ? (gsize)(end - at) : (gsize)(text + len - at);
        number++;
        if (line_len > 0 && strspn(at, " \t\r") < line_len) {
            g_autoptr(GError) why = NULL;
            g_autoptr(json_t) row = json_parse(at, line_len, &why);
            if (!fn(row, number, why, user_data))
                return TRUE;
        }
        at += line_len + 1;
    }
    return TRUE;
}

/* A list of rows, a dict of rows by id, or one row. Rows of a list count as lines from 1. */
static void rows_of_value(json_t *value, JsonRowFn fn, gpointer user_data)
{
    guint number = 0;
    gsize i;
    json_t *row;
    const char *key;
    if (json_is_array(value)) {
        json_array_foreach(value, i, row) if (!fn(row, ++number, NULL, user_data)) return;
    } else if (json_object_get(value, "instance_id") != NULL) {
        fn(value, 1, NULL, user_data);
    } else {
        json_object_foreach(value, key, row)
        {
            if (json_is_object(row) && json_object_get(row, "instance_id") == NULL)
                json_object_set_new(row, "instance_id", json_string(key));
            if (!fn(row, ++number, NULL, user_data))
                return;
        }
    }
}

gboolean json_rows_read(const char *path, JsonRowFn fn, gpointer user_data, GError **error)
{
    g_autoptr(GBytes) bytes = file_read(path, DATASET_BYTES_MAX, error);
    if (bytes == NULL)
        return FALSE;
    gsize len = 0;
    const char *text = g_bytes_get_data(bytes, &len);
    if (len == 0)
        return error_set(error, ASSAY_ERROR_INPUT, "%s: the file is empty", path);

    g_autoptr(json_t) whole = NULL;
    if (!g_str_has_suffix(path, ".jsonl"))
        whole = json_parse(text, len, NULL);
    if (whole == NULL)
        return rows_by_line(text, len, fn, user_data);
    if (!json_is_array(whole) && !json_is_object(whole))
        return error_set(error, ASSAY_ERROR_INPUT, "%s: expected a list or an object of rows",
                         path);
    rows_of_value(whole, fn, user_data);
    return TRUE;
}

typedef struct ReadState {
    const json_t *specs;
    DatasetRowFn fn;
    gpointer user_data;
} ReadState;

static gboolean on_json_row(json_t *row, guint line, const GError *why, gpointer user_data)
{
    const ReadState *state = user_data;
    if (row == NULL)
        return state->fn(NULL, line, why, state->user_data);
    g_autoptr(GError) error = NULL;
    g_autoptr(Task) task = dataset_row(row, state->specs, &error);
    return state->fn(task, line, error, state->user_data);
}

static gboolean directory_read(const char *path, const ReadState *state, GError **error)
{
    g_auto(GStrv) dirs = taskdir_list(path, error);
    if (dirs == NULL)
        return FALSE;
    for (guint i = 0; dirs[i] != NULL; i++) {
        g_autoptr(GError) why = NULL;
        g_autoptr(json_t) row = taskdir_row(dirs[i], &why);
        g_autoptr(Task) task = row != NULL ? task_from_json(row, &why) : NULL;
        if (task == NULL)
            g_prefix_error(&why, "%s: ", dirs[i]);
        if (!state->fn(task, i + 1, why, state->user_data))
            break;
    }
    return TRUE;
}

gboolean dataset_read(const char *path, const char *spec_map, DatasetRowFn fn, gpointer user_data,
                      GError **error)
{
    g_autoptr(json_t) specs = NULL;
    if (spec_map != NULL) {
        g_autoptr(GBytes) bytes = file_read(spec_map, DATASET_BYTES_MAX, error);
        if (bytes == NULL)
            return FALSE;
        specs = json_parse(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), error);
        if (specs == NULL) {
            g_prefix_error(error, "%s: ", spec_map);
            return FALSE;
        }
    }
    ReadState state = {specs, fn, user_data};
    if (g_file_test(path, G_FILE_TEST_IS_DIR))
        return directory_read(path, &state, error);
    return json_rows_read(path, on_json_row, &state, error);
}

Prediction *prediction_from_json(const json_t *row, GError **error)
{
    if (!json_is_object(row)) {
        error_set(error, ASSAY_ERROR_INPUT, "a prediction must be a JSON object");
        return NULL;
    }
    const char *id = json_want_str(row, "instance_id", error);
    const char *model = id != NULL ? json_opt_str(row, "model_name_or_path", "None", error) : NULL;
    if (model == NULL)
        return NULL;
    const json_t *patch = json_object_get(row, "model_patch");
    if (patch == NULL) {
        error_set(error, ASSAY_ERROR_INPUT, "field model_patch: missing");
        return NULL;
    }
    if (!json_is_string(patch) && !json_is_null(patch)) {
        error_set(error, ASSAY_ERROR_INPUT, "field model_patch: must be a string or null");
        return NULL;
    }
    Prediction *prediction = g_new0(Prediction, 1);
    prediction->instance_id = g_strdup(id);
    prediction->model = g_strdup(model);
    prediction->patch = g_strdup(json_string_value(patch));
    return prediction;
}

void prediction_free(Prediction *prediction)
{
    if (prediction == NULL)
        return;
    g_free(prediction->instance_id);
    g_free(prediction->model);
    g_free(prediction->patch);
    g_free(prediction);
}
