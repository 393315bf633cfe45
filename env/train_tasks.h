/*
 * The tasks of a training run: rows from a file, each with its prompt.
 */
#pragma once

#include "env/dialect.h"
#include "tasks/task.h"

struct TrainDialect;
struct TrainKind;

typedef struct TrainTask {
    Task *task;
    const struct TrainKind *kind;
    Source *source; /* as the agent finds it; NULL: the kind has none */
    Source *fixed;  /* without the bug; likewise */
    char *fix;      /* the action or answer that is right; NULL: none can be said */
    gboolean is_canary;
    gboolean shows; /* the files that tests call, in the prompt */
    GArray *prompt; /* gint32, once train_tasks_encode was called */
    double rate;    /* of passing, last time; below 0: never tried */
} TrainTask;

/* One row. */
TrainTask *train_task_new(json_t *row, GError **error);
void train_task_free(TrainTask *task);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TrainTask, train_task_free)

/* What tasks are read for. */
typedef enum TrainUse {
    TRAIN_TO_GRADE,   /* rollouts and evaluation */
    TRAIN_TO_IMITATE, /* tests are not needed */
    TRAIN_TO_ALARM,   /* canaries */
} TrainUse;

/* Reads rows of the kinds of env/train_kind.h. At most `tasks_max`, 0: all. A row that is no such
 * task is an error that names it; so is one that is of no use for this. */
GPtrArray *train_tasks_read(const char *path, guint tasks_max, TrainUse use, GError **error);

typedef struct TrainPrompts {
    const struct TrainDialect *dialect;
    const Tokenizer *tokenizer;
    gint64 tokens_max; /* of a prompt; one of more is an error with the numbers */
    gboolean is_canary;
    gboolean shows;
} TrainPrompts;

gboolean train_tasks_encode(GPtrArray *tasks, const TrainPrompts *how, GError **error);
