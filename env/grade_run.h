/*
 * The part of a grade that happens in boxes: shared by the modes, private to the grader.
 */
#pragma once

#include "env/apply.h"
#include "env/env_build.h"
#include "env/grader.h"
#include "reward/witness.h"

/* How the supervisor's boundary lines in a strict log begin; a nonce and the phase follow. */
#define GRADE_BOUNDARY ">>>>> assay"

/* What a run leaves for grading. Filled by grade_run_compat() or grade_run_strict(). */
typedef struct GradeRun {
    ApplyResult apply;
    gboolean tests_ran;                 /* the test command was started */
    BoxResult test;                     /* its outcome and usage; zero when it never ran */
    GString *log;                       /* test_output.txt */
    gsize slice_start, slice_end;       /* strict: what the test command printed, within `log` */
    json_t *evidence;                   /* findings: {"code", "path"?, "detail"?} */
    char *box_report;                   /* box_report_json() */
    char *eval_script;                  /* what was run as eval.sh; NULL before */
    WitnessCode canary;                 /* WITNESS_CANARY_*, or NONE: heard, or not run */
    gint64 apply_ns, run_ns, canary_ns; /* run_ns includes the canary */
    guint64 spent_us;                   /* wall time of scripts so far */
    guint64 cpu_us, mem_peak_bytes;
    guint32 pids_peak;
} GradeRun;

void grade_run_init(GradeRun *run);
void grade_run_clear(GradeRun *run);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(GradeRun, grade_run_clear)

/* The environment of every command of a grade: the layers' and what keeps tools off the network. */
GStrv grade_envp(const EnvLayers *layers);

/* A box for this grade; `root_read_only` as strict wants it. */
Box *grade_box_open(const GradeRequest *request, const EnvLayers *layers, gboolean root_read_only,
                    GError **error);

/* The wall limit of this grade: what its scripts may take together. */
guint64 grade_wall_ms(const GradeRequest *request);

/* What is left of it: all scripts of a grade share one wall limit, so that a candidate cannot make
 * a grade outlive its worker's deadline, which would be a failure of ours. */
#define GRADE_WALL_LEFT_MS_MIN 10000u
guint64 grade_wall_left_ms(const GradeRequest *request, const GradeRun *run);

/* What grade_log() needs to know of this run; borrows from both. */
GradeInput grade_input_of(const GradeRequest *request, const GradeRun *run);

/* Runs a script by bash with its output merged; adds its usage to `run`. */
gboolean grade_script_exec(const GradeRequest *request, Box *box, const char *const *envp,
                           const char *path, const char *script, GradeRun *run,
                           BoxResult *ret_result, GError **error);

/* One of the harness releases, as it is: apply, then the whole script in one go. */
gboolean grade_run_compat(const GradeRequest *request, const EnvLayers *layers, GradeRun *run,
                          GradePhaseFn on_phase, gpointer user_data, GError **error);

/* Phase by phase, with the defences of docs/grading.md. `env` says whether the script's own install
 * lines are run. */
gboolean grade_run_strict(const GradeRequest *request, const Environment *env,
                          const EnvLayers *layers, GradeRun *run, GradePhaseFn on_phase,
                          gpointer user_data, GError **error);
