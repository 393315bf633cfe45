/*
 * Grades a saved log with no box and no daemon: what `assay parse` prints.
 */
#pragma once

#include "base/json.h"
#include "reward/grade.h"

/* {found, status_map, tests_status {FAIL_TO_PASS {success, failure}, ...}, resolution}, and
 * `error` when the harness would have thrown. `row` is a SWE-bench row: instance_id, repo,
 * version, log_parser, eval_type, FAIL_TO_PASS, PASS_TO_PASS (a list, or a list as JSON in a
 * string). Strict mode takes the whole log as the slice. NULL with `error` for a bad row. */
json_t *parse_cli_run(const json_t *row, const void *log, gsize log_len, GradeMode mode,
                      GError **error);

/* The test names at KEY of a row; absent or null is an empty list. */
GStrv parse_cli_tests(const json_t *row, const char *key, GError **error);

/* The `tests_status` object of a report: four lists, the last two empty. */
json_t *parse_cli_tests_status(const GradeResult *result);
