/*
 * From a request to a verdict; the only place where a run in boxes becomes a reward.
 *
 * Invariants:
 *   1. A failure of ours (GError) is state "failed", mask true, reward null: never a reward.
 *   2. Nothing the candidate's code does can make a GError: timeouts, memory, signals, garbage are
 *      verdicts with reward 0.
 *   3. Evidence can only lower a reward: a resolved grade with evidence of forgery is "suspect".
 *
 * Not here: how boxes are run (grade_run.c, grade_strict.c), how logs are read (reward/).
 */
#include "env/grader.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "env/grade_run.h"
#include "tasks/environment.h"
#include "tasks/repo.h"

#include <string.h>

#define UNEXPECTED_MAX 200u

/* Times of one grade, in ns. */
typedef struct GradeTimes {
    gint64 start, prepare, grade;
} GradeTimes;

/* ---- what the log says ---- */

static gboolean log_grade(const GradeRequest *request, const GradeRun *run, GradeResult *ret,
                          GError **error)
{
    const Task *task = request->task;
    gboolean exited = run->test.outcome == BOX_EXITED;
    const GradeInput input = {
        .mode = request->mode,
        .repo = task->repo,
        .instance_id = task->instance_id,
        .repo_version = task->version,
        .log_parser = task->log_parser,
        .eval_type = task->fail_only ? EVAL_FAIL_ONLY : EVAL_PASS_AND_FAIL,
        .f2p = (const char *const *)task->fail_to_pass,
        .p2p = (const char *const *)task->pass_to_pass,
        .log = run->log->str,
        .log_len = run->log->len,
        .slice_start = run->slice_start,
        .slice_end = run->slice_end,
        .exit_known = exited,
        .exit_code = exited ? run->test.exit_code : 0,
    };
    return grade_log(&input, ret, error);
}

/* Outcomes of the test command that are verdicts by themselves. */
static const struct {
    BoxOutcome outcome;
    const char *verdict;
} outcome_verdicts[] = {
    {BOX_TIMED_OUT, "timed_out"},  {BOX_CPU_LIMIT, "timed_out"},
    {BOX_IDLE_LIMIT, "timed_out"}, {BOX_OUT_OF_MEMORY, "out_of_memory"},
    {BOX_DISK_FULL, "disk_full"},
};

static const char *verdict_of(const GradeRun *run, const GradeResult *result, gboolean suspect)
{
    if (run->apply.log != NULL && !run->apply.applied)
        return "patch_failed";
    if (!run->tests_ran)
        return "unresolved";
    for (gsize i = 0; i < G_N_ELEMENTS(outcome_verdicts); i++)
        if (run->test.outcome == outcome_verdicts[i].outcome)
            return outcome_verdicts[i].verdict;
    if (!result->found)
        return "no_tests_ran";
    if (result->resolution != RESOLUTION_FULL)
        return "unresolved";
    return suspect ? "suspect" : "resolved";
}

/* ---- the answer as JSON ---- */

static json_t *list_counts(const TestList *list, const StatusMap *map)
{
    guint missing = 0;
    for (guint i = 0; list->failure != NULL && i < list->failure->len; i++)
        missing += map == NULL || status_map_find(map, span_of(list->failure->pdata[i])) == NULL;
    guint passed = list->success != NULL ? list->success->len : 0;
    guint failed = list->failure != NULL ? list->failure->len - missing : 0;
    return json_pack("{s:i, s:i, s:i}", "passed", (int)passed, "failed", (int)failed, "missing",
                     (int)missing);
}

static void unexpected_add(json_t *out, const TestList *list, const StatusMap *map)
{
    for (guint i = 0; list->failure != NULL && i < list->failure->len; i++) {
        if (json_array_size(out) >= UNEXPECTED_MAX)
            return;
        const char *name = list->failure->pdata[i];
        const StatusEntry *entry = map != NULL ? status_map_find(map, span_of(name)) : NULL;
        g_autofree char *got = entry != NULL ? span_dup(entry->status) : g_strdup("missing");
        json_array_append_new(
            out, json_pack("{s:s, s:s, s:s}", "name", name, "expected", "PASSED", "got", got));
    }
}

static json_t *statuses_json(const StatusMap *map)
{
    json_t *out = json_object();
    for (guint i = 0; map != NULL && i < status_map_len(map); i++) {
        const StatusEntry *entry = status_map_at(map, i);
        g_autofree char *name = span_dup(entry->name);
        json_object_set_new(out, name, json_stringn(entry->status.ptr, entry->status.len));
    }
    return out;
}

static json_t *usage_json(const GradeRun *run)
{
    return json_pack("{s:I, s:I, s:i}", "cpu_ms", (json_int_t)(run->cpu_us / 1000),
                     "mem_peak_bytes", (json_int_t)run->mem_peak_bytes, "pids_peak",
                     (int)run->pids_peak);
}

static json_t *outcome_json(const BoxResult *test)
{
    static const char *const killers[] = {
        [BOX_TIMED_OUT] = "wall",       [BOX_CPU_LIMIT] = "cpu",       [BOX_IDLE_LIMIT] = "idle",
        [BOX_OUT_OF_MEMORY] = "memory", [BOX_OUTPUT_LIMIT] = "output", [BOX_CANCELLED] = "daemon",
        [BOX_START_ERROR] = NULL};
    json_t *out = json_pack("{s:s}", "how", box_outcome_str(test->outcome));
    json_object_set_new(out, "exit_code",
                        test->outcome == BOX_EXITED ? json_integer(test->exit_code) : json_null());
    json_object_set_new(out, "signal",
                        test->outcome == BOX_SIGNALED ? json_integer(test->signal) : json_null());
    const char *killer = killers[test->outcome];
    json_object_set_new(out, "killed_by", json_string(killer != NULL ? killer : "none"));
    return out;
}

static json_t *timing_json(const GradeTimes *times, const GradeRun *run)
{
    const gint64 ms = 1000000;
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "prepare_ms", (json_int_t)(times->prepare / ms),
                     "apply_ms", (json_int_t)(run->apply_ns / ms), "run_ms",
                     (json_int_t)(run->run_ns / ms), "grade_ms", (json_int_t)(times->grade / ms),
                     "wall_ms", (json_int_t)((clock_mono_ns() - times->start) / ms));
}

/* ---- files of the grade ---- */

static gboolean file_add(const GradeRequest *request, json_t *files, const char *name,
                         const void *data, gsize len, GError **error)
{
    g_autofree char *path = g_build_filename(request->scratch, name, NULL);
    if (!file_write_atomic(path, data, len, error))
        return FALSE;
    json_object_set_new(files, name, json_string(path));
    return TRUE;
}

static json_t *files_write(const GradeRequest *request, const GradeRun *run, const char *report,
                           GError **error)
{
    g_autoptr(json_t) files = json_object();
    gsize patch_len = 0;
    const void *patch = request->patch != NULL ? g_bytes_get_data(request->patch, &patch_len) : "";
    const char *apply = run->apply.log != NULL ? run->apply.log->str : "";
    gboolean ok =
        file_add(request, files, "patch.diff", patch, patch_len, error) &&
        file_add(request, files, "run_instance.log", apply, strlen(apply), error) &&
        (!run->tests_ran ||
         file_add(request, files, "test_output.txt", run->log->str, run->log->len, error)) &&
        (run->eval_script == NULL ||
         file_add(request, files, "eval.sh", run->eval_script, strlen(run->eval_script), error)) &&
        (report == NULL || file_add(request, files, "report.json", report, strlen(report), error));
    return ok ? g_steal_pointer(&files) : NULL;
}
