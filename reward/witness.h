/*
 * Strict mode's evidence: does what the log says fit what else is known of the run.
 *
 *     g_autoptr(GPtrArray) findings = witness_findings_new();
 *     witness_log(&(WitnessInput){...}, findings);
 *     witness_patch(scan, findings);                      witness_patch.h
 *     if (witness_any_suspect(findings)) ...
 *
 * Pure functions of their inputs. A finding is evidence, not a verdict: `weight` says whether it
 * is enough to distrust the grade, or only worth showing.
 */
#pragma once

#include "reward/grade.h"

/* Numbers are stored and sent: never renumber. */
typedef enum WitnessCode {
    WITNESS_NONE = 0,
    WITNESS_TESTS_MISSING = 1,    /* wanted tests left no line */
    WITNESS_TALLY_MISSING = 2,    /* the runner's own count is not there: it never finished */
    WITNESS_TALLY_DIFFERS = 3,    /* more passes read than the runner counted, or no failure */
    WITNESS_EXIT_DIFFERS = 4,     /* exit status and results disagree */
    WITNESS_FORGED_MARKER = 5,    /* phase boundaries inside the candidate's output */
    WITNESS_RESULTS_CONFLICT = 6, /* one test, two results */
    WITNESS_COUNT_DROPPED = 7,    /* far fewer tests than the gold run */
    WITNESS_CODE_EXITS = 8,       /* patch: ends the process */
    WITNESS_CODE_EQUALS = 9,      /* patch: an object equal to everything */
    WITNESS_CODE_PATCHES_RUNNER = 10,
    WITNESS_CODE_HOOKS_RUNNER = 11,
    WITNESS_CODE_CONSTRUCTOR = 12, /* patch: code before main() */
    WITNESS_CODE_DETECTS_TEST = 13,
    WITNESS_CODE_PRINTS_RESULT = 14,
    WITNESS_FILE_AT_START = 15,   /* patch: a file the interpreter reads before any test */
    WITNESS_FILE_SHIM = 16,       /* patch: a file named like a tool of the run */
    WITNESS_FILE_TEST = 17,       /* patch: edits a test or test infrastructure */
    WITNESS_CANARY_SILENT = 18,   /* a test that must fail was not reported (env/grade_canary.h) */
    WITNESS_CANARY_UNUSABLE = 19, /* nor was it with the reference patch, or there is none */
    WITNESS_CODE_COUNT = 20,
} WitnessCode;

typedef enum WitnessWeight {
    WITNESS_NOTE = 0,
    WITNESS_SUSPECT = 1,
} WitnessWeight;

typedef struct WitnessFinding {
    WitnessCode code;
    WitnessWeight weight;
    char *path;   /* file of the patch, or NULL */
    guint line;   /* in that file, or of the log slice; from 1, 0 unknown */
    char *detail; /* one line of valid UTF-8 */
} WitnessFinding;

typedef struct WitnessInput {
    const GradeInput *grade;   /* strict: log, slice, exit status, wanted tests */
    const GradeResult *result; /* of grade_log on it */
    guint gold_tests;          /* results the gold run had; 0 unknown */
    const char *boundary;      /* how the supervisor's boundary lines begin, or NULL */
    const char *nonce;         /* what must follow `boundary`; NULL: nothing may */
} WitnessInput;

/* A list that frees its WitnessFinding's. */
GPtrArray *witness_findings_new(void);
void witness_add(GPtrArray *findings, WitnessCode code, WitnessWeight weight, const char *path,
                 guint line, const char *format, ...) G_GNUC_PRINTF(6, 7);
gboolean witness_any_suspect(const GPtrArray *findings);
/* "tests_missing" ... */
const char *witness_code_to_str(WitnessCode code);

/* Looks at the log slice and the results. */
void witness_log(const WitnessInput *in, GPtrArray *findings);
