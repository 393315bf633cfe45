/*
 * Calls: tests whose values are compared outside the box.
 *
 * A task may carry, beside its test patch, the field
 *
 *     calls: {"language": "c" | "python", "sources": ["a.c"], "driver": text,
 *             "expected": ["3", ...]}
 *
 * The driver, with the sources, prints one line per call: the value. What it should be never enters
 * the box: a program that prints "passed", exits early or rewrites the driver gains nothing.
 */
#pragma once

#include "tasks/task.h"

#define TASK_CALLS_MAX         64u
#define TASK_CALL_BYTES_MAX    4096u /* of one expected value */
#define TASK_CALLS_SOURCES_MAX 16u
#define TASK_DRIVER_BYTES_MAX  (64u << 10)

typedef enum CallsLanguage {
    CALLS_NONE = 0,
    CALLS_C = 1,
    CALLS_PYTHON = 2,
} CallsLanguage;

typedef struct TaskCalls {
    CallsLanguage language;
    GStrv sources;
    const char *driver; /* the task's */
    GStrv expected;
    guint n;
} TaskCalls;

/* NULL: the task has no calls (NOT_FOUND), or they are malformed (INPUT, names the field). */
TaskCalls *task_calls_read(const Task *task, GError **error);
void task_calls_free(TaskCalls *calls);
/* The calls that tests are named after: call_1 is bit 0. */
guint64 task_calls_named(const char *const *tests);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TaskCalls, task_calls_free)
