/*
 * The files the SWE-bench harness leaves: report.json of an instance, <model>.<run_id>.json of a
 * run, byte for byte as release 4.1.0 or 5.0.2 writes them (json.dumps, indent 4).
 *
 * Source: SWE-bench/SWE-bench, swebench/harness/{grading,reporting,infra_failure}.py.
 */
#pragma once

#include "base/json.h"
#include "reward/grade.h"

/* Release 5's advisory guess at why a run failed; it never changes a count of resolved. */
typedef enum FailureTier {
    FAILURE_TIER_NONE = 0,
    FAILURE_TIER_ENVIRONMENT = 1, /* cannot plausibly come from a patch of the repository */
    FAILURE_TIER_AMBIGUOUS = 2,
} FailureTier;

typedef struct FailureClass {
    FailureTier tier;
    const char *reason; /* static, NULL when tier is NONE */
} FailureClass;

/* First signature found in the test output, a line feed and the run's own log (may be empty). */
FailureClass report_classify(Span test_output, Span run_log);

/* The object of report.json. `result` is NULL when there was nothing to grade: the prediction is
 * null (`patch_is_null`). `failure` counts only for release 5 and only when not found. */
json_t *report_instance(GraderVersion version, const char *instance_id, gboolean patch_is_null,
                        const GradeResult *result, FailureClass failure);

/* What became of one instance of a run. */
typedef enum ReportOutcome {
    REPORT_INCOMPLETE = 0, /* no prediction for it */
    REPORT_EMPTY_PATCH,    /* the prediction is "" or null: counted, never run */
    REPORT_ERROR,          /* run, but without a report.json */
    REPORT_UNRESOLVED,
    REPORT_RESOLVED,
    REPORT_NOT_IN_DATASET, /* a prediction for an instance the dataset does not hold */
} ReportOutcome;

typedef struct ReportRow {
    const char *instance_id;
    ReportOutcome outcome;
    FailureClass failure; /* of errors and unresolved ones; release 5 */
} ReportRow;

/* The object of the run summary. Release 4.1 run without Docker adds its three empty "un..."
 * fields; release 5 does not. */
json_t *report_run(GraderVersion version, const ReportRow *rows, gsize n_rows);

/* The text of either file: report.json ends without a line feed, the summary with one. */
char *report_instance_text(const json_t *report);
char *report_run_text(const json_t *report);

/* "<model, / as __>.<run_id>.json". */
char *report_run_file_name(const char *model, const char *run_id);
/* The model's name as a folder: / becomes __. */
char *report_model_folder(const char *model);
