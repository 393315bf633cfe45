/*
 * The field "calls" of a task, checked.
 *
 * Invariant: an expected value is one line; a source is a file of the task's own repository.
 */
#include "tasks/calls.h"

#include "base/error.h"

#include <string.h>

static const char *const languages[] = {[CALLS_C] = "c", [CALLS_PYTHON] = "python"};

/* A list of 1..n_max strings of one line each. */
static GStrv lines_read(const json_t *object, const char *key, gsize n_max, GError **error)
{
    const json_t *list = json_object_get(object, key);
    gsize i, n = json_array_size(list);
    json_t *item;
    if (n == 0 || n > n_max) {
        error_set(error, ASSAY_ERROR_INPUT, "field calls.%s: expected 1 to %zu strings", key,
                  n_max);
        return NULL;
    }
    g_autoptr(GStrvBuilder) lines = g_strv_builder_new();
    json_array_foreach(list, i, item)
    {
        const char *text = json_string_value(item);
        if (text == NULL || strlen(text) > TASK_CALL_BYTES_MAX || strchr(text, '\n') != NULL ||
            strlen(text) != json_string_length(item)) {
            error_set(error, ASSAY_ERROR_INPUT,
                      "field calls.%s: item %zu is not a string of one line and at most %u bytes",
                      key, i, TASK_CALL_BYTES_MAX);
            return NULL;
        }
        g_strv_builder_add(lines, text);
    }
    return g_strv_builder_end(lines);
}

static gboolean sources_ok(const Task *task, const TaskCalls *calls, GError **error)
{
    for (char **source = calls->sources; *source != NULL; source++)
        if (task->files == NULL || json_object_get(task->files, *source) == NULL || **source == '-')
            return error_set(error, ASSAY_ERROR_INPUT,
                             "field calls.sources: %s is no file of the task", *source);
    return TRUE;
}

TaskCalls *task_calls_read(const Task *task, GError **error)
{
    const json_t *object = json_object_get(task->json, "calls");
    if (object == NULL) {
        error_set(error, ASSAY_ERROR_NOT_FOUND, "task %s has no calls", task->instance_id);
        return NULL;
    }
    const char *language = json_want_str(object, "language", error);
    const char *driver = language != NULL ? json_want_str(object, "driver", error) : NULL;
    if (driver == NULL)
        return NULL;
    g_autoptr(TaskCalls) calls = g_new0(TaskCalls, 1);
    for (guint i = CALLS_C; i < G_N_ELEMENTS(languages); i++)
        if (g_str_equal(language, languages[i]))
            calls->language = i;
    if (calls->language == CALLS_NONE || strlen(driver) > TASK_DRIVER_BYTES_MAX) {
        error_set(error, ASSAY_ERROR_INPUT,
                  calls->language == CALLS_NONE ? "field calls.language: expected c or python"
                                                : "field calls.driver: too long");
        return NULL;
    }
    calls->driver = driver;
    calls->sources = lines_read(object, "sources", TASK_CALLS_SOURCES_MAX, error);
    calls->expected =
        calls->sources != NULL ? lines_read(object, "expected", TASK_CALLS_MAX, error) : NULL;
    if (calls->expected == NULL || !sources_ok(task, calls, error))
        return NULL;
    calls->n = g_strv_length(calls->expected);
    return g_steal_pointer(&calls);
}

void task_calls_free(TaskCalls *calls)
{
    if (calls == NULL)
        return;
    g_strfreev(calls->sources);
    g_strfreev(calls->expected);
    g_free(calls);
}

guint64 task_calls_named(const char *const *tests)
{
    guint64 calls = 0, number = 0;
    for (; tests != NULL && *tests != NULL; tests++)
        if (g_str_has_prefix(*tests, "call_") &&
            g_ascii_string_to_unsigned(*tests + strlen("call_"), 10, 1, TASK_CALLS_MAX, &number,
                                       NULL))
            calls |= G_GUINT64_CONSTANT(1) << (number - 1);
    return calls;
}
