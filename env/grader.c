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
#include "reward/report.h"
#include "reward/reward.h"
#include "reward/similarity.h"
#include "reward/witness_patch.h"
#include "tasks/diff.h"
#include "tasks/environment.h"

#include <string.h>

#define UNEXPECTED_MAX     200u
#define EVIDENCE_MAX       100u
#define MISSING_BYTES_MAX  (16u << 20)
#define STATUSES_BYTES_MAX (1u << 20)

/* Times of one grade, in ns. */
typedef struct GradeTimes {
    gint64 start, prepare, grade;
} GradeTimes;

/* ---- what the log says ---- */

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

/* Adds one name if the budget of bytes lasts. */
static void status_put(json_t *out, const StatusEntry *entry, gsize *budget)
{
    gsize cost = entry->name.len + entry->status.len + 8;
    if (cost > *budget)
        return;
    g_autofree char *name = span_dup(entry->name);
    json_object_set_new(out, name, json_stringn(entry->status.ptr, entry->status.len));
    *budget -= cost;
}

/* Wanted tests first, then whatever else the log named, within STATUSES_BYTES_MAX: a candidate
 * that prints a million names must not make the answer too long to send. */
static json_t *statuses_json(const Task *task, const StatusMap *map)
{
    json_t *out = json_object();
    gsize budget = STATUSES_BYTES_MAX;
    GStrv lists[] = {task->fail_to_pass, task->pass_to_pass};
    for (gsize i = 0; map != NULL && i < G_N_ELEMENTS(lists); i++)
        for (char **name = lists[i]; *name != NULL; name++) {
            const StatusEntry *entry = status_map_find(map, span_of(*name));
            if (entry != NULL)
                status_put(out, entry, &budget);
        }
    for (guint i = 0; map != NULL && i < status_map_len(map); i++)
        status_put(out, status_map_at(map, i), &budget);
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
    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I}", "prepare_ms", (json_int_t)(times->prepare / ms),
        "apply_ms", (json_int_t)(run->apply_ns / ms), "run_ms", (json_int_t)(run->run_ns / ms),
        "canary_ms", (json_int_t)(run->canary_ns / ms), "grade_ms", (json_int_t)(times->grade / ms),
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

/* ---- evidence ---- */

/* The run's evidence and the witnesses' findings as one JSON list; TRUE: enough for "suspect". */
static gboolean evidence_judge(const GradeRequest *request, const GradeRun *run,
                               const GradeInput *input, const GradeResult *result, json_t *out)
{
    if (request->mode != GRADE_STRICT)
        return FALSE;
    g_autoptr(GPtrArray) findings = witness_findings_new();
    if (run->tests_ran)
        witness_log(
            &(WitnessInput){
                .grade = input, .result = result, .boundary = GRADE_BOUNDARY, .nonce = NULL},
            findings);
    if (run->canary == WITNESS_CANARY_SILENT)
        witness_add(findings, run->canary, WITNESS_SUSPECT, NULL, 0,
                    "a test that must fail was not reported; with the reference patch it is");
    else if (run->canary == WITNESS_CANARY_UNUSABLE)
        witness_add(findings, run->canary, WITNESS_NOTE, NULL, 0,
                    "a test that must fail was not reported; there is nothing to compare with");
    gsize len = 0;
    const void *patch = request->patch != NULL ? g_bytes_get_data(request->patch, &len) : "";
    g_autoptr(PatchScan) scan = patch_scan(patch, len);
    g_autoptr(GHashTable) tests = diff_paths(request->task->test_patch);
    g_autoptr(GHashTable) gold = diff_paths(request->task->patch);
    witness_patch(scan, tests, gold, findings);

    for (guint i = 0; i < findings->len && json_array_size(out) < EVIDENCE_MAX; i++) {
        const WitnessFinding *finding = findings->pdata[i];
        json_array_append_new(
            out, json_pack("{s:s, s:b, s:s*, s:i, s:s}", "code", witness_code_to_str(finding->code),
                           "suspect", finding->weight == WITNESS_SUSPECT, "path", finding->path,
                           "line", (int)finding->line, "detail", finding->detail));
    }
    return witness_any_suspect(findings);
}

/* ---- the whole ---- */

static Reward reward_of(const GradeRequest *request, const GradeRun *run, const GradeResult *result,
                        gboolean suspect)
{
    gsize len = 0;
    const void *patch = request->patch != NULL ? g_bytes_get_data(request->patch, &len) : "";
    const char *gold = request->task->patch;
    gboolean capped = FALSE;
    const RewardInput input = {
        .resolution = run->tests_ran ? result->resolution : RESOLUTION_NONE,
        .f2p = result->f2p_fraction,
        .p2p = result->p2p_fraction,
        .applied = run->apply.applied,
        .suspect = suspect,
        .similarity_known = gold[0] != '\0' && len > 0,
        .similarity = len > 0 ? similarity_patches(patch, len, gold, strlen(gold), &capped) : 0,
    };
    return reward_make(&input);
}

static json_t *components_json(const Reward *reward)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "binary", reward->binary, "f2p", reward->f2p,
                     "p2p", reward->p2p, "partial", reward->partial, "shaped", reward->shaped,
                     "similarity", reward->similarity);
}

/* SWE-bench's report.json: only when its harness of that release would have written one. */
static json_t *report_of(const GradeRequest *request, const GradeRun *run,
                         const GradeResult *result)
{
    if (!run->tests_ran || run->test.outcome == BOX_TIMED_OUT)
        return NULL;
    GraderVersion version = request->mode == GRADE_COMPAT_4_1 ? GRADER_4_1 : GRADER_5;
    const char *apply = run->apply.log != NULL ? run->apply.log->str : "";
    FailureClass failure = report_classify((Span){run->log->str, run->log->len}, span_of(apply));
    return report_instance(version, request->task->instance_id, request->patch == NULL, result,
                           failure);
}

/* Adds one more object or string to the answer; NULL becomes null. */
static void done_set(json_t *done, const char *key, json_t *value)
{
    json_object_set_new(done, key, value != NULL ? value : json_null());
}

static json_t *done_json(const GradeRequest *request, const GradeRun *run,
                         const GradeResult *result, gboolean suspect, const GradeTimes *times,
                         GError **error)
{
    g_autoptr(json_t) report = report_of(request, run, result);
    g_autofree char *report_text = report != NULL ? report_instance_text(report) : NULL;
    json_t *files = files_write(request, run, report_text, error);
    if (files == NULL)
        return NULL;
    const StatusMap *map = run->tests_ran && result->found ? result->map : NULL;
    const char *verdict = verdict_of(run, result, suspect);
    Reward reward = reward_of(request, run, result, suspect);
    json_t *unexpected = json_array();
    unexpected_add(unexpected, &result->f2p, map);
    unexpected_add(unexpected, &result->p2p, map);

    json_t *done = json_pack("{s:s, s:s, s:s, s:s, s:f, s:b, s:n}", "event", "done", "id",
                             request->id, "state", "done", "verdict", verdict, "reward",
                             strcmp(verdict, "resolved") == 0 ? 1.0 : 0.0, "mask", 0, "error");
    done_set(done, "components", components_json(&reward));
    done_set(done, "tests",
             json_pack("{s:o, s:o, s:o}", "f2p", list_counts(&result->f2p, map), "p2p",
                       list_counts(&result->p2p, map), "unexpected", unexpected));
    done_set(done, "statuses", statuses_json(request->task, map));
    done_set(done, "report", report != NULL ? json_incref(report) : NULL);
    done_set(done, "timing", timing_json(times, run));
    done_set(done, "usage", usage_json(run));
    done_set(done, "outcome", outcome_json(&run->test));
    done_set(done, "box", run->box_report != NULL ? json_loads(run->box_report, 0, NULL) : NULL);
    done_set(done, "applied_with", run->apply.how != NULL ? json_string(run->apply.how) : NULL);
    done_set(done, "evidence", json_incref(run->evidence));
    done_set(done, "files", files);
    return done;
}

/* Code of an infrastructure failure, and whether trying again can help. */
static json_t *failed_json(const GradeRequest *request, const GError *why)
{
    static const struct {
        const char *code;
        gboolean retryable;
    } kinds[] = {
        [ASSAY_ERROR_SYSTEM] = {"system", TRUE},
        [ASSAY_ERROR_INPUT] = {"task_broken", FALSE},
        [ASSAY_ERROR_NOT_FOUND] = {"not_found", FALSE},
        [ASSAY_ERROR_NOT_ALLOWED] = {"not_allowed", FALSE},
        [ASSAY_ERROR_UNSUPPORTED] = {"unsupported", FALSE},
        [ASSAY_ERROR_CONFLICT] = {"conflict", TRUE},
        [ASSAY_ERROR_LIMIT] = {"limit", FALSE},
        [ASSAY_ERROR_BUSY] = {"busy", TRUE},
    };
    gsize kind = why->domain == ASSAY_ERROR ? (gsize)why->code : ASSAY_ERROR_SYSTEM;
    return json_pack("{s:s, s:s, s:s, s:n, s:n, s:b, s:{s:s, s:s, s:b}}", "event", "done", "id",
                     request->id, "state", "failed", "verdict", "reward", "mask", 1, "error",
                     "code", kinds[kind].code, "detail", why->message, "retryable",
                     kinds[kind].retryable);
}

/* A checkout may lack files whose blobs the cache does not have: said with every grade on it. */
static void missing_note(const char *checkout, json_t *evidence)
{
    g_autofree char *path = g_build_filename(checkout, "missing.json", NULL);
    g_autoptr(GBytes) bytes = file_read(path, MISSING_BYTES_MAX, NULL);
    g_autoptr(json_t) list =
        bytes != NULL ? json_parse(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), NULL)
                      : NULL;
    gsize n = json_array_size(list);
    if (n == 0)
        return;
    g_autofree char *detail = g_strdup_printf(
        "%" G_GSIZE_FORMAT " files of the commit have no blob in the cache; all in %s", n, path);
    json_array_append_new(evidence, json_pack("{s:s, s:b, s:O, s:s}", "code", "checkout_incomplete",
                                              "suspect", FALSE, "path", json_array_get(list, 0),
                                              "detail", detail));
}

/* Checkout and environment, built when absent. */
static EnvLayers *grade_prepare(const GradeRequest *request, json_t *evidence,
                                Environment **ret_env, GError **error)
{
    const EnvHost host = {.state_dir = request->state_dir,
                          .slot = request->slot,
                          .allow_degraded = request->allow_degraded};
    g_autofree char *checkout = NULL;
    *ret_env = environment_for(request->task, request->environments, error);
    EnvLayers *layers = *ret_env != NULL ? env_for_task(&host, *ret_env, request->task,
                                                        request->repos, &checkout, error)
                                         : NULL;
    if (layers != NULL)
        missing_note(checkout, evidence);
    return layers;
}

/* A patch over the limit meets no tool at all: a verdict, in every mode. */
static gboolean patch_is_too_big(const GradeRequest *request, GradeRun *run)
{
    if (request->patch == NULL || g_bytes_get_size(request->patch) <= PATCH_BYTES_MAX)
        return FALSE;
    run->apply = (ApplyResult){.log = g_string_new(">>>>> Patch Apply Failed:\n")};
    g_string_append_printf(run->apply.log, "refused: more than %u bytes\n", PATCH_BYTES_MAX);
    return TRUE;
}

static gboolean run_in_mode(const GradeRequest *request, GradeRun *run, GradeTimes *times,
                            GradePhaseFn on_phase, gpointer user_data, GError **error)
{
    g_autoptr(Environment) env = NULL;
    on_phase("prepare", user_data);
    g_autoptr(EnvLayers) layers = grade_prepare(request, run->evidence, &env, error);
    if (layers == NULL)
        return FALSE;
    times->prepare = clock_mono_ns() - times->start;
    if (request->mode == GRADE_STRICT)
        return grade_run_strict(request, env, layers, run, on_phase, user_data, error);
    return grade_run_compat(request, layers, run, on_phase, user_data, error);
}

static json_t *grader_try(const GradeRequest *request, GradePhaseFn on_phase, gpointer user_data,
                          GError **error)
{
    GradeTimes times = {.start = clock_mono_ns()};
    g_auto(GradeRun) run = {0};
    grade_run_init(&run);
    gboolean empty = request->patch == NULL || g_bytes_get_size(request->patch) == 0;
    if ((!empty || request->run_empty) && !patch_is_too_big(request, &run) &&
        !run_in_mode(request, &run, &times, on_phase, user_data, error))
        return NULL;

    on_phase("grade", user_data);
    gint64 start_ns = clock_mono_ns();
    const GradeInput input = grade_input_of(request, &run);
    g_auto(GradeResult) result = {0};
    if (!grade_log(&input, &result, error))
        return NULL;
    gboolean suspect = evidence_judge(request, &run, &input, &result, run.evidence);
    times.grade = clock_mono_ns() - start_ns;
    return done_json(request, &run, &result, suspect, &times, error);
}

json_t *grader_run(const GradeRequest *request, GradePhaseFn on_phase, gpointer user_data)
{
    g_autoptr(GError) error = NULL;
    json_t *done = grader_try(request, on_phase, user_data, &error);
    return done != NULL ? done : failed_json(request, error);
}
