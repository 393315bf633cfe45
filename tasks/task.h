/*
 * A task: a problem from a dataset. Repository, commit, statement, tests, and how to run them.
 *
 *     g_autoptr(Task) task = task_from_json(row, error);     one canonical row
 *
 * The canonical form is a SWE-bench v5 row (its field names) plus Assay's own fields; that JSON is
 * what the store keeps and what workers receive. docs/formats.md lists every field.
 */
#pragma once

#include "base/json.h"

#include <glib.h>

#define TASK_TEXT_BYTES_MAX  (64u << 20) /* any one string of a row */
#define TASK_TESTS_MAX       200000u     /* names in one test list */
#define TASK_FILES_MAX       2000u       /* files of an embedded repository */
#define TASK_FILES_BYTES_MAX (8u << 20)  /* and their bytes together */

typedef struct Task {
    char *dataset; /* "" when unknown */
    char *instance_id;
    char *repo;        /* "owner/name" */
    char *repo_url;    /* where to fetch from, https or a local path; NULL: by configuration */
    char *base_commit; /* 40 hex digits; of an embedded repository, the head of its digest */
    char *version;     /* "" when unknown */
    char *language;    /* "" when unknown */
    char *problem_statement;
    char *patch; /* gold; "" when unknown */
    char *test_patch;
    char *log_parser;   /* name in reward's registry; NULL: chosen by repo */
    gboolean fail_only; /* eval_type: the log names failures only */
    char *eval_script;
    GStrv fail_to_pass, pass_to_pass;
    char *wrong_patch, *cheat_patch; /* Assay's own format only; else NULL */
    guint wall_s;                    /* 0: the grader's default */
    const json_t *files;             /* embedded repository: path -> text; else NULL */
    json_t *json;                    /* the canonical row; owns `files` */
} Task;

/* Reads one canonical row (a v5 row is one). Errors name the field. Keeps a reference to `row`. */
Task *task_from_json(json_t *row, GError **error);
void task_free(Task *task);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Task, task_free)

/* SHA-256 of all that decides a grade: repository, commit, patches, script, parser, eval type,
 * test lists. Not the statement. 64 hex digits. */
char *task_digest(const Task *task);

/* 40 hex digits that stand for embedded files where a commit id is expected. */
char *task_files_commit(const json_t *files);

/* TRUE for names that may become a file name of ours: 1-200 of [A-Za-z0-9._-], no leading dot. */
gboolean task_name_ok(const char *name);

/* TRUE for what may be the path of a file of an embedded repository: relative, no empty, dot or
 * .git component. */
gboolean task_path_ok(const char *path);
