/*
 * Runs in boxes: what the modes share, and the compat modes.
 *
 * Invariants:
 *   1. Every command of a grade runs without network.
 *   2. Compat runs nothing that the harness of that release does not run.
 */
#include "env/grade_run.h"

#include "base/error.h"
#include "base/id.h"
#include "tasks/script.h"

#include <string.h>

/* Keeps installers from waiting for a network that is not there. PIP_NO_BUILD_ISOLATION=0 is pip's
 * way of saying "no isolation": isolation would download setuptools. */
static const char *const offline_envp[][2] = {
    {"PIP_NO_INDEX", "1"},
    {"PIP_NO_BUILD_ISOLATION", "0"},
    {"PIP_DISABLE_PIP_VERSION_CHECK", "1"},
    {"npm_config_offline", "true"},
    {"GIT_TERMINAL_PROMPT", "0"},
};

void grade_run_init(GradeRun *run)
{
    *run = (GradeRun){.log = g_string_new(NULL), .evidence = json_array()};
}

void grade_run_clear(GradeRun *run)
{
    apply_result_clear(&run->apply);
    box_result_clear(&run->test);
    if (run->log != NULL)
        g_string_free(run->log, TRUE);
    json_decref(run->evidence);
    g_free(run->box_report);
    g_free(run->eval_script);
    *run = (GradeRun){0};
}

GStrv grade_envp(const EnvLayers *layers)
{
    GStrv envp = g_strdupv(layers->envp);
    for (gsize i = 0; i < G_N_ELEMENTS(offline_envp); i++)
        envp = g_environ_setenv(envp, offline_envp[i][0], offline_envp[i][1], FALSE);
    return envp;
}

static guint64 or_default(guint value, guint fallback)
{
    return value != 0 ? value : fallback;
}

guint64 grade_wall_ms(const GradeRequest *request)
{
    guint task_s = request->task->wall_s != 0 ? request->task->wall_s : GRADE_WALL_S_DEFAULT;
    return or_default(request->wall_s, task_s) * 1000;
}

guint64 grade_wall_left_ms(const GradeRequest *request, const GradeRun *run)
{
    guint64 all_ms = grade_wall_ms(request), spent_ms = run->spent_us / 1000;
    guint64 left_ms = spent_ms < all_ms ? all_ms - spent_ms : 0;
    return MAX(left_ms, MIN(all_ms, GRADE_WALL_LEFT_MS_MIN));
}

Box *grade_box_open(const GradeRequest *request, const EnvLayers *layers, gboolean root_read_only,
                    GError **error)
{
    BoxSpec spec = {.work_path = "/testbed",
                    .net = BOX_NET_NONE,
                    .slot = request->slot,
                    .limits = box_limits_default(),
                    .root_read_only = root_read_only,
                    .allow_degraded = request->allow_degraded};
    spec.limits.wall_ms = grade_wall_ms(request);
    spec.limits.cpu_ms = 0;
    spec.limits.idle_ms = 0;
    spec.limits.mem_bytes = or_default(request->mem_mib, GRADE_MEM_MIB_DEFAULT) << 20;
    spec.limits.pids = or_default(request->pids, GRADE_PIDS_DEFAULT);
    spec.limits.disk_bytes = or_default(request->disk_mib, GRADE_DISK_MIB_DEFAULT) << 20;
    spec.limits.file_bytes = spec.limits.disk_bytes;
    env_layers_apply(layers, &spec);
    return box_open(&spec, error);
}

gboolean grade_script_exec(const GradeRequest *request, Box *box, const char *const *envp,
                           const char *path, const char *script, GradeRun *run,
                           BoxResult *ret_result, GError **error)
{
    g_autofree char *inside = box_text_inside(box, script);
    const char *argv[] = {"/bin/bash", path, NULL};
    const BoxFile file = {path, inside, strlen(inside), 0755};
    BoxCommand command = {.argv = argv,
                          .envp = envp,
                          .cwd = "/testbed",
                          .files = &file,
                          .n_files = 1,
                          .merge = TRUE,
                          .wall_ms = grade_wall_left_ms(request, run)};
    if (!box_exec(box, &command, ret_result, error))
        return FALSE;
    run->spent_us += ret_result->wall_us;
    run->cpu_us += ret_result->cpu_user_us + ret_result->cpu_sys_us;
    run->mem_peak_bytes = MAX(run->mem_peak_bytes, ret_result->mem_peak_bytes);
    run->pids_peak = MAX(run->pids_peak, ret_result->pids_peak);
    return TRUE;
}

GradeInput grade_input_of(const GradeRequest *request, const GradeRun *run)
{
    const Task *task = request->task;
    gboolean exited = run->test.outcome == BOX_EXITED;
    return (GradeInput){
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
}

static void log_add_output(GString *log, const BoxResult *result)
{
    gsize len = 0;
    const char *out = result->out != NULL ? g_bytes_get_data(result->out, &len) : "";
    g_string_append_len(log, out, (gssize)len);
}

gboolean grade_run_compat(const GradeRequest *request, const EnvLayers *layers, GradeRun *run,
                          GradePhaseFn on_phase, gpointer user_data, GError **error)
{
    g_autoptr(Box) box = grade_box_open(request, layers, FALSE, error);
    if (box == NULL)
        return FALSE;
    run->box_report = box_report_json(box);
    g_auto(GStrv) envp = grade_envp(layers);
    const char *const *vars = (const char *const *)envp;

    on_phase("apply", user_data);
    gint64 start_ns = clock_mono_ns();
    gsize len = 0;
    const void *patch = request->patch != NULL ? g_bytes_get_data(request->patch, &len) : "";
    gboolean is_5 = request->mode == GRADE_COMPAT_5;
    if (len > 0 &&
        !patch_apply(box, vars, is_5 ? APPLY_5 : APPLY_4_1, patch, len, &run->apply, error))
        return FALSE;
    run->apply_ns = clock_mono_ns() - start_ns;
    if (len > 0 && !run->apply.applied)
        return TRUE;

    on_phase("run", user_data);
    start_ns = clock_mono_ns();
    run->eval_script = is_5 ? eval_script_with_exit_code(request->task->eval_script)
                            : g_strdup(request->task->eval_script);
    if (!grade_script_exec(request, box, vars, "/eval.sh", run->eval_script, run, &run->test,
                           error))
        return FALSE;
    run->run_ns = clock_mono_ns() - start_ns;
    run->tests_ran = TRUE;
    log_add_output(run->log, &run->test);
    if (run->test.outcome == BOX_TIMED_OUT)
        g_string_append_printf(run->log,
                               "\n\nTimeout error: %" G_GUINT64_FORMAT " seconds exceeded.",
                               grade_wall_ms(request) / 1000);
    return TRUE;
}
