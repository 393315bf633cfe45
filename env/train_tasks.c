/*
 * Tasks for training: rows to sources as they are and as they should be, prompts.
 *
 * 1. Only the sources that the tests call are shown.
 * 2. Rows say what is wrong with them (tasks/repair.h); others are refused by name.
 */
#include "env/train_tasks.h"

#include "env/train_dialect.h"
#include "env/train_kind.h"

#include "base/error.h"
#include "tasks/dataset.h"

#include <string.h>

void train_task_free(TrainTask *task)
{
    if (!task)
        return;
    task_free(task->task);
    source_free(task->source);
    source_free(task->fixed);
    g_free(task->fix);
    g_clear_pointer(&task->prompt, g_array_unref);
    g_free(task);
}

static gboolean open_kind(TrainTask *task, GError **error)
{
    const char *kind = json_opt_str(task->task->json, "kind", kind_repair.name, error);

    if (!kind)
        return FALSE;
    if (!(task->kind = train_kind(kind)))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "there is no kind %s; assay train kinds lists them", kind);
    return task->kind->open(task, error);
}

TrainTask *train_task_new(json_t *row, GError **error)
{
    Task *task = task_from_json(row, error);
    TrainTask *made = task ? g_new0(TrainTask, 1) : NULL;

    if (!made)
        return NULL;
    made->task = task;
    made->rate = -1;
    made->is_canary = json_is_true(json_object_get(row, "canary"));
    if (open_kind(made, error))
        return made;
    g_prefix_error(error, "task %s: ", task->instance_id);
    train_task_free(made);
    return NULL;
}

typedef struct {
    GPtrArray *tasks;
    guint tasks_max;
    TrainUse use;
    GError *error;
} Reading;

static gboolean is_of_use(const TrainTask *task, TrainUse use, GError **error)
{
    const char *why = NULL;

    if (task->is_canary && use != TRAIN_TO_ALARM)
        why = "a canary cannot be solved; it belongs in tasks.canaries";
    else if (!task->is_canary && use == TRAIN_TO_ALARM)
        why = "it is no canary";
    else if (task->source && !json_object_get(task->task->json, "calls") && use != TRAIN_TO_IMITATE)
        why = "it has no tests and cannot be graded; it belongs in tasks.warmup";
    return !why || error_set(error, ASSAY_ERROR_INPUT, "task %s: %s", task->task->instance_id, why);
}

static gboolean on_row(Task *task, guint line, const GError *why, gpointer data)
{
    Reading *reading = data;
    TrainTask *made = NULL;

    if (task)
        made = train_task_new(task->json, &reading->error);
    else
        reading->error = g_error_copy(why);
    if (!made) {
        g_prefix_error(&reading->error, "line %u: ", line);
        return FALSE;
    }
    g_ptr_array_add(reading->tasks, made);
    if (!is_of_use(made, reading->use, &reading->error))
        return FALSE;
    return reading->tasks_max == 0 || reading->tasks->len < reading->tasks_max;
}

GPtrArray *train_tasks_read(const char *path, guint tasks_max, TrainUse use, GError **error)
{
    g_autoptr(GPtrArray) tasks = g_ptr_array_new_with_free_func((GDestroyNotify)train_task_free);
    Reading reading = {tasks, tasks_max, use, NULL};

    if (!dataset_read(path, NULL, on_row, &reading, error))
        return NULL;
    if (reading.error) {
        g_propagate_prefixed_error(error, reading.error, "%s: ", path);
        return NULL;
    }
    if (tasks->len == 0) {
        error_set(error, ASSAY_ERROR_INPUT, "%s: no tasks", path);
        return NULL;
    }
    return g_steal_pointer(&tasks);
}

gboolean train_tasks_encode(GPtrArray *tasks, const TrainPrompts *how, GError **error)
{
    for (guint i = 0; i < tasks->len; i++) {
        TrainTask *task = tasks->pdata[i];

        g_clear_pointer(&task->prompt, g_array_unref);
        task->prompt = tokens_new();
        task->shows = how->shows;
        if (!how->dialect->prompt(how->tokenizer, task, task->prompt, error))
            return FALSE;
        if (task->prompt->len > how->tokens_max)
            return error_set(error, ASSAY_ERROR_LIMIT,
                             "task %s: its prompt has %u tokens, the limit is %" G_GINT64_FORMAT,
                             task->task->instance_id, task->prompt->len, how->tokens_max);
    }
    return TRUE;
}
