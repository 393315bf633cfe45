/*
 * From a log to an answer: which of the wanted tests pass, and is the task resolved.
 *
 *     GradeInput in = {.mode = GRADE_COMPAT_5, .log_parser = "parse_log_pytest", ...};
 *     g_auto(GradeResult) result = {0};
 *     if (!grade_log(&in, &result, error))
 *         return FALSE;
 *
 * Modes compat-4.1 and compat-5 give what the SWE-bench harness of that release gives for the same
 * log. Strict uses release 5's parsers and rules on a slice whose bounds the supervisor recorded:
 * no marker in the log counts, nothing outside the slice is read, and the exit status is the one
 * wait() told. Source: SWE-bench/SWE-bench, swebench/harness/grading.py (v4.1.0 and 5.0.2).
 */
#pragma once

#include "reward/log_parser.h"

/* Numbers are stored and sent: never renumber. */
typedef enum GradeMode {
    GRADE_STRICT = 0,
    GRADE_COMPAT_4_1 = 1,
    GRADE_COMPAT_5 = 2,
} GradeMode;

typedef enum EvalType {
    EVAL_PASS_AND_FAIL = 0,
    EVAL_FAIL_ONLY = 1, /* the log names failures only: absent means passed */
} EvalType;

typedef enum Resolution {
    RESOLUTION_NONE = 0, /* the log was not valid: nothing was graded */
    RESOLUTION_NO = 1,
    RESOLUTION_PARTIAL = 2,
    RESOLUTION_FULL = 3,
} Resolution;

/* A log longer than this is refused (ASSAY_ERROR_LIMIT). */
#define GRADE_LOG_BYTES_MAX (256u * 1024 * 1024)

typedef struct GradeInput {
    GradeMode mode;
    const char *repo;         /* owner/name; 4.1 chooses parser and eval type by it */
    const char *instance_id;  /* may be NULL */
    const char *repo_version; /* the row's `version`; may be NULL */
    const char *log_parser;   /* the row's name or a bare one */
    EvalType eval_type;
    const char *const *f2p; /* NULL-terminated; FAIL_TO_PASS */
    const char *const *p2p; /* NULL-terminated; PASS_TO_PASS */
    const void *log;        /* bytes as they came from the run */
    gsize log_len;
    gsize slice_start, slice_end; /* strict: bytes of `log` the test command printed */
    gboolean exit_known;          /* strict: exit_code is from wait() */
    int exit_code;
} GradeInput;

typedef struct TestList {
    GPtrArray *success, *failure; /* char *, in the order of the task's list */
} TestList;

typedef struct GradeResult {
    gboolean found;                    /* the log shows a run that can be graded */
    const char *why_not;               /* static; NULL when found */
    char *raised;                      /* why the harness would have thrown here, else NULL */
    gboolean gave_up;                  /* a match passed its limit; implies not found */
    StatusMap *map;                    /* never NULL; empty unless found */
    TestList f2p, p2p;                 /* as graded from `map`, also when not found */
    double f2p_fraction, p2p_fraction; /* success / (success + failure), 1 when both are empty */
    Resolution resolution;
} GradeResult;

/* Grades. FALSE only when the task itself cannot be graded: an unknown parser
 * (ASSAY_ERROR_NOT_FOUND), too long a log, a slice outside it. Whatever the log holds is a
 * result. */
gboolean grade_log(const GradeInput *in, GradeResult *ret, GError **error);
void grade_result_clear(GradeResult *result);

/* "strict", "compat-4.1", "compat-5". */
const char *grade_mode_to_str(GradeMode mode);
gboolean grade_mode_from_str(const char *text, GradeMode *ret_mode);
/* "pass_and_fail", "fail_only". */
gboolean eval_type_from_str(const char *text, EvalType *ret_type);
/* "RESOLVED_FULL" ...; NULL for RESOLUTION_NONE. */
const char *resolution_to_str(Resolution resolution);

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(GradeResult, grade_result_clear)
