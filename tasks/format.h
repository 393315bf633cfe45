/*
 * The registry of row formats: each turns its rows into canonical ones (tasks/task.h).
 *
 * To add one: tasks/formats/NAME.c that defines `task_format_NAME`, and NAME in tasks/meson.build.
 */
#pragma once

#include "base/json.h"

typedef struct TaskFormat {
    const char *name;
    /* TRUE when the row is of this format; asked in the order of the list. */
    gboolean (*sniff)(const json_t *row);
    /* A new canonical row. `specs`: the parsed spec map, or NULL. */
    json_t *(*convert)(json_t *row, const json_t *specs, GError **error);
} TaskFormat;

/* NULL-terminated, in sniffing order. */
extern const TaskFormat *const task_formats[];
