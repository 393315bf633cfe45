/*
 * A task: a problem from a dataset. Repository, commit, statement, tests, and how to run them.
 *
 *     g_autoptr(Task) task = task_from_json(row, error);     one row of any known format
 *
 * The canonical form is a SWE-bench v5 row (swebench field names) plus Assay's own fields; that
 * JSON is what the store keeps and what workers receive.
 */
#pragma once

#include "base/json.h"

#include <glib.h>

typedef enum EvalType {
    EVAL_PASS_AND_FAIL = 0,
    EVAL_FAIL_ONLY = 1,
} EvalType;

typedef struct Task {
    char *dataset; /* "" when unknown */
    char *instance_id;
    char *repo;        /* "owner/name" */
    char *repo_url;    /* where to fetch from: https or a local path; NULL: by configuration */
    char *base_commit; /* 40 hex digits */
    char *version;
    char *problem_statement;
    char *patch; /* gold */
    char *test_patch;
    char *language;   /* NULL when unknown */
    char *log_parser; /* registry name of reward/parsers ("pytest", "sympy", ...) */
    EvalType eval_type;
    char *eval_script;
    char *test_command; /* last line(s) of the script between the markers */
    GStrv fail_to_pass, pass_to_pass;
    char *wrong_patch, *cheat_patch; /* Assay's own format only; else NULL */
    guint wall_s;                    /* 0: the mode's own limit */
    json_t *json;                    /* the canonical row */
} Task;

/* Reads one canonical or SWE-bench v5 row. Errors name the field. */
Task *task_from_json(const json_t *row, GError **error);
void task_free(Task *task);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Task, task_free)

/* SHA-256 of what decides a grade: repo, commit, test patch, gold's file list, script, parser,
 * eval type, test lists. Not the statement. 64 hex digits. */
char *task_digest(const Task *task);

/* Called per row. A row that is bad has task == NULL and `why` set; return FALSE to stop. */
typedef gboolean (*DatasetRowFn)(Task *task, guint line, const GError *why, gpointer user_data);

/*
 * Reads a dataset in any known format (.json list or dict, .jsonl, a directory of Assay tasks).
 * v4.1 rows (no eval_script) need `spec_map` (docs/formats.md), else they are bad rows that say
 * so. FALSE: the file itself cannot be read.
 */
gboolean dataset_read(const char *path, const char *spec_map, DatasetRowFn fn, gpointer user_data,
                      GError **error);
