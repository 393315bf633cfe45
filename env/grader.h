/*
 * One grade, start to end: checkout, environment, box, patch, tests, verdict.
 *
 *     GradeRequest request = {.id = "grd_...", .task = task, .patch = bytes, ...};
 *     json_t *done = grader_run(&request, on_phase, state);    never NULL; docs/protocol.md
 *
 * This is where tasks, sandbox and reward meet.
 */
#pragma once

#include "base/json.h"
#include "reward/grade.h"
#include "tasks/task.h"

#include <glib.h>

typedef struct GradeRequest {
    const char *id;
    const Task *task;
    GBytes *patch; /* NULL or empty: an empty patch, unresolved without running */
    GradeMode mode;
    const char *state_dir;
    const char *scratch;      /* a directory of this grade alone; result files go there */
    const char *environments; /* a file, or NULL */
    const char *repos;        /* a directory of mirrors, or NULL */
    guint slot;
    guint wall_s;                  /* 0: the task's, else the default below */
    guint mem_mib, pids, disk_mib; /* 0: defaults */
    gboolean allow_degraded;
    gboolean run_empty; /* run the tests for an empty patch too: validation */
} GradeRequest;

#define GRADE_WALL_S_DEFAULT   1800u
#define GRADE_MEM_MIB_DEFAULT  4096u
#define GRADE_PIDS_DEFAULT     1024u
#define GRADE_DISK_MIB_DEFAULT 2048u

/* Told when "prepare", "apply", "run" and "grade" begin. */
typedef void (*GradePhaseFn)(const char *phase, gpointer user_data);

/* The "done" event of the worker protocol, a new reference. An infrastructure failure is state
 * "failed", mask true, reward null. */
json_t *grader_run(const GradeRequest *request, GradePhaseFn on_phase, gpointer user_data);
