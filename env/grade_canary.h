/*
 * A test that must fail, put beside the hidden tests after they passed: is the runner still able to
 * report a failure while the candidate's code is imported?
 *
 *     g_autoptr(Canary) canary = canary_new(task, script);
 *     if (canary != NULL) canary_set_source(canary, text, len), then canary_run(...)
 *
 * What a heard canary shows: the runner, with the candidate's modules loaded, still compares
 * built-in values, still reports a failure by name and still exits with another status than 0. What
 * it does not show: that the hidden tests were honest. Code that tells the canary from the real
 * tests, that acts only while its functions are called, or that returns objects equal to
 * everything is not heard of here. A silent canary is evidence only if the same canary is heard
 * with the reference patch (env/grade_strict.c runs that control); else it is a note.
 */
#pragma once

#include "env/grade_run.h"
#include "tasks/script.h"

typedef enum CanaryResult {
    CANARY_NOT_RUN = 0,
    CANARY_HEARD,   /* every impossible test was reported as failed, exit status not 0 */
    CANARY_SILENT,  /* at least one was not */
    CANARY_UNCLEAR, /* ended by a limit */
} CanaryResult;

typedef struct Canary {
    char *test_path; /* the hidden test file that is copied, relative to the workspace */
    char *path;      /* the copy, beside it under a name nobody has seen */
    char *source;    /* NULL until canary_set_source() */
    char *command;   /* runs the impossible tests alone, with the task's own runner words */
    char *token;     /* 80 random bits, in the name of each of them */
    guint n_tests;
    const LogParser *parser;
} Canary;

/* A canary for this task; NULL when its runner is not pytest or unittest, or its test command names
 * no hidden Python test file in a way we can take apart. */
Canary *canary_new(const Task *task, const char *test_script);
void canary_free(Canary *canary);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Canary, canary_free)

/* The text of test_path, read before any code of the candidate could change it. */
void canary_set_source(Canary *canary, const char *text, gsize len);

/* Runs it in the box of the tests; `state` is the script's shell set-up. FALSE: the box failed. */
gboolean canary_run(const Canary *canary, const GradeRequest *request, Box *box,
                    const char *const *envp, const char *state, GradeRun *run,
                    CanaryResult *ret_result, GError **error);
