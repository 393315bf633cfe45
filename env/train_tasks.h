/*
 * The tasks of a training run: rows from a file, each with what the compact dialect shows of it.
 */
#pragma once

#include "env/dialect.h"
#include "tasks/task.h"

typedef struct TrainTask {
    Task *task;
    Source *source; /* as the agent finds it */
    Source *fixed;  /* without the bug */
    char *fix;      /* the action that does it; NULL: the dialect cannot say it */
    GArray *prompt; /* gint32, once train_tasks_encode was called */
    double rate;    /* of passing, last time; below 0: never tried */
} TrainTask;

/* Reads rows of repair tasks (tasks/repair.h). At most `tasks_max`, 0: all. A row that is no such
 * task is an error that names it. */
GPtrArray *train_tasks_read(const char *path, guint tasks_max, GError **error);

/* Makes the prompts; one of more than `tokens_max` is an error with the numbers. */
gboolean train_tasks_encode(GPtrArray *tasks, const Tokenizer *tokenizer, gint64 tokens_max,
                            GError **error);
