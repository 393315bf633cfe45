/*
 * What a row is, for every engine of the store: plain structs, enums with stored numbers.
 *
 *     g_autoptr(GradeRow) grade = grade_find(store, "grd_01K...", error);
 *     verdict_str(grade->verdict)
 *
 * Times are wall-clock milliseconds; 0 is "not yet". Rows own their strings.
 */
#pragma once

#include <glib.h>

/* Did we manage to grade? Stored: never renumber. */
#define GRADE_STATES(X)                                                                            \
    X(GRADE_QUEUED, 0, "queued")                                                                   \
    X(GRADE_RUNNING, 1, "running")                                                                 \
    X(GRADE_DONE, 2, "done")                                                                       \
    X(GRADE_FAILED, 3, "failed")                                                                   \
    X(GRADE_CANCELLED, 4, "cancelled")                                                             \
    X(GRADE_STALE, 5, "stale")

/* What did we find? Stored: never renumber. Zero is "nothing found yet", never "passed". */
#define VERDICTS(X)                                                                                \
    X(VERDICT_NONE, 0, "none")                                                                     \
    X(VERDICT_RESOLVED, 1, "resolved")                                                             \
    X(VERDICT_UNRESOLVED, 2, "unresolved")                                                         \
    X(VERDICT_PATCH_FAILED, 3, "patch_failed")                                                     \
    X(VERDICT_NO_TESTS_RAN, 4, "no_tests_ran")                                                     \
    X(VERDICT_TIMED_OUT, 5, "timed_out")                                                           \
    X(VERDICT_OUT_OF_MEMORY, 6, "out_of_memory")                                                   \
    X(VERDICT_DISK_FULL, 7, "disk_full")                                                           \
    X(VERDICT_SUSPECT, 8, "suspect")

#define SWEEP_STATES(X)                                                                            \
    X(SWEEP_RUNNING, 0, "running")                                                                 \
    X(SWEEP_DONE, 1, "done")                                                                       \
    X(SWEEP_CANCELLED, 2, "cancelled")

/* What a task's own check said (gold resolves, empty does not). */
#define TASK_VALIDITIES(X)                                                                         \
    X(TASK_UNCHECKED, 0, "unchecked")                                                              \
    X(TASK_VALID, 1, "valid")                                                                      \
    X(TASK_INVALID, 2, "invalid")                                                                  \
    X(TASK_CHECKING, 3, "checking")

#define ROWS_ENUM(name, number, text) name = number,
typedef enum GradeState { GRADE_STATES(ROWS_ENUM) GRADE_STATE_COUNT = 6 } GradeState;
typedef enum Verdict { VERDICTS(ROWS_ENUM) VERDICT_COUNT = 9 } Verdict;
typedef enum SweepState { SWEEP_STATES(ROWS_ENUM) SWEEP_STATE_COUNT = 3 } SweepState;
typedef enum TaskValidity { TASK_VALIDITIES(ROWS_ENUM) TASK_VALIDITY_COUNT = 4 } TaskValidity;
#undef ROWS_ENUM

/* The word of the API for each number; an unknown number is "?". */
const char *grade_state_str(GradeState state);
const char *verdict_str(Verdict verdict);
const char *sweep_state_str(SweepState state);
const char *task_validity_str(TaskValidity validity);

/* The number for a word; FALSE leaves `ret` alone. */
gboolean grade_state_from_str(const char *text, GradeState *ret);
gboolean verdict_from_str(const char *text, Verdict *ret);

/* TRUE for the states that nothing leaves by itself. */
static inline gboolean grade_state_is_final(GradeState state)
{
    return state >= GRADE_DONE;
}

typedef struct TaskRow {
    gint64 id;
    char *public_id; /* task_... */
    char *dataset;
    char *instance_id;
    char *repo;
    char *base_commit;
    char *language; /* NULL when unknown */
    char *content_sha256;
    char *spec; /* canonical JSON row; NULL in listings */
    guint n_f2p, n_p2p;
    TaskValidity validity;
    gint64 created_ms;
} TaskRow;

typedef struct GradeRow {
    gint64 id;
    char *public_id; /* grd_... */
    char *key;       /* 64 hex digits, NULL: not reusable */
    gint64 repeat;   /* which run of that key */
    GradeState state;
    gint64 prio;    /* -100 ... 100, higher first */
    gint64 attempt; /* started so many times */
    gint64 attempts_max;
    gint64 lease_epoch; /* fence: who finishes must name the epoch it claimed */
    gint64 task_id;
    char *patch_sha; /* NULL: the empty patch */
    char *mode;      /* "strict", "compat-5", "compat-4.1" */
    char *request;   /* JSON: limits, environments, custom_id, options of the request */
    gboolean direct; /* asked for by itself, not only inside sweeps */
    gint64 created_ms, started_ms, finished_ms;
    gint64 finished_seq; /* order of finishing, 0: not finished */
    Verdict verdict;
    gboolean has_reward;
    double reward;
    gboolean mask;
    char *error_code; /* NULL: none */
    char *result;     /* JSON: components, tests, timing, usage, outcome, evidence, report, files */
    char *statuses;   /* JSON object test -> status */
    /* From a join with task, for display. */
    char *dataset, *instance_id;
} GradeRow;

typedef struct SweepRow {
    gint64 id;
    char *public_id; /* swp_... */
    char *name;
    char *dataset; /* "" when the sweep names several */
    char *mode;
    char *options; /* JSON: rejected lines and request parameters */
    gint64 n_total, n_done, n_cached, n_rejected;
    SweepState state;
    gint64 created_ms, finished_ms;
} SweepRow;

typedef struct SweepItemRow {
    gint64 sweep_id, pos;
    char *custom_id; /* NULL: none */
    char *model;
    gboolean cached;
    GradeRow *grade;
} SweepItemRow;

/* An episode; its steps are a file that whoever runs it keeps. */
typedef struct EpisodeRow {
    gint64 id;
    char *public_id; /* ep_... */
    gint64 task_id;
    char *seed;   /* a whole number */
    char *limits; /* JSON */
    guint ending; /* a number of env/episode.h; 0: open */
    gint64 steps; /* of one that has ended; of one that was forked, at its start */
    gint64 grade_id;
    char *parent; /* public id, or NULL */
    gint64 fork_step;
    char *why; /* why our machine lost it, or NULL */
    gint64 created_ms, finished_ms;
    /* From joins, for display; the grade's are zero when there is none. */
    char *dataset, *instance_id;
    char *grade;
    GradeState grade_state;
    Verdict verdict;
    gboolean has_reward;
    double reward;
    gboolean mask;
} EpisodeRow;
#define EPISODE_ENDINGS_MAX 32 /* numbers of endings are below */

typedef struct EventRow {
    gint64 seq;
    gint64 t_ms;
    char *type;    /* "grade.finished" ... */
    char *subject; /* the object's id */
    char *body;    /* JSON */
} EventRow;

void task_row_free(TaskRow *row);
void grade_row_free(GradeRow *row);
void sweep_row_free(SweepRow *row);
void sweep_item_row_free(SweepItemRow *row);
void event_row_free(EventRow *row);
void episode_row_free(EpisodeRow *row);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TaskRow, task_row_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(GradeRow, grade_row_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SweepRow, sweep_row_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SweepItemRow, sweep_item_row_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(EventRow, event_row_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(EpisodeRow, episode_row_free)
