/*
 * Strict runs: the candidate's diff in a fresh tree, tests put in last, phases that share nothing
 * but files, boundaries and exit status that only the supervisor knows.
 *
 * Phases, each a command of its own in one box (so no process crosses):
 *   apply     the candidate's diff, release 5's chain
 *   restore   every test file and test configuration it touched goes back to the base, one by one
 *   tests     the hidden test patch; it must apply
 *   build     the script's lines between the test patch and the start marker
 *   test      the script's test lines; what it prints is the slice that is graded
 *   canary    if that slice says resolved: a test that must fail
 *
 * Invariants:
 *   1. No code of the candidate runs before the test patch is in (unless the environment asks for
 *      the script's install lines, "prologue").
 *   2. Outside the workspace nothing is writable but /tmp and the like, and /tmp is emptied before
 *      the tests: site-packages, PATH and HOME cannot be prepared.
 *   3. A test patch that does not apply is the candidate's doing only if it applies without the
 *      candidate's diff; else the task is broken and the grade fails.
 *   4. Only the slice between our own offsets is graded; marker text in it is just text.
 *
 * Not here: judging the evidence (reward/witness.h).
 */
#include "env/grade_canary.h"

#include "base/error.h"
#include "base/id.h"
#include "reward/patch_scan.h"
#include "reward/protected_path.h"
#include "tasks/diff.h"
#include "tasks/script.h"

#include <string.h>

#define TEST_PATCH_PATH "/tmp/assay-test.diff"
#define STEP_PATH       "/tmp/assay-step.sh"

/* git, with nothing of the tree's or the user's configuration running programs. */
#define GIT "git -c core.hooksPath=/dev/null -c core.fsmonitor=false "

typedef struct Strict {
    const GradeRequest *request;
    const Environment *env;
    const EnvLayers *layers;
    Box *box;
    const char *const *envp;
    GradeRun *run;
    const EvalScript *script;
    Canary *canary; /* NULL: this task's runner takes none */
    CanaryResult heard;
    const char *nonce; /* in the boundary lines of the log: 128 bits nobody inside has seen */
} Strict;

static void evidence_add(GradeRun *run, const char *code, const char *path, const char *detail)
{
    g_autofree char *shown = path != NULL ? g_utf8_make_valid(path, -1) : NULL;
    json_array_append_new(run->evidence, json_pack("{s:s, s:s*, s:s*}", "code", code, "path", shown,
                                                   "detail", detail));
}

static void log_phase(Strict *strict, const char *phase, const char *edge)
{
    g_string_append_printf(strict->run->log, "%s" GRADE_BOUNDARY " %s %s %s\n",
                           strict->run->log->len > 0 ? "\n" : "", strict->nonce, phase, edge);
}

/* Runs one phase; its output goes to the log between two boundary lines. */
static gboolean phase_exec(Strict *strict, const char *phase, const char *script,
                           BoxResult *ret_result, GError **error)
{
    log_phase(strict, phase, "begin");
    if (!grade_script_exec(strict->request, strict->box, strict->envp, STEP_PATH, script,
                           strict->run, ret_result, error)) {
        g_prefix_error(error, "phase %s: ", phase);
        return FALSE;
    }
    gsize len = 0;
    const char *out = ret_result->out != NULL ? g_bytes_get_data(ret_result->out, &len) : "";
    strict->run->slice_start = strict->run->log->len;
    g_string_append_len(strict->run->log, out, (gssize)len);
    strict->run->slice_end = strict->run->log->len;
    log_phase(strict, phase, "end");
    return TRUE;
}

static gboolean phase_ok(const BoxResult *result)
{
    return result->outcome == BOX_EXITED && result->exit_code == 0;
}

/* Adds every path that git sees as changed, ignored ones included, to `paths`. Not ok: there are
 * more than a command's output may hold, or git failed; a diff can do both. */
static gboolean changed_paths(Strict *strict, GHashTable *paths, gboolean *ret_ok, GError **error)
{
    const char *argv[] = {"/bin/bash", "-c",
                          GIT "status --porcelain=v1 -z --no-renames --ignored "
                              "--untracked-files=all",
                          NULL};
    BoxCommand command = {.argv = argv, .envp = strict->envp, .cwd = "/testbed"};
    g_auto(BoxResult) result = {0};
    if (!box_exec(strict->box, &command, &result, error))
        return FALSE;
    *ret_ok = phase_ok(&result) && !result.truncated;
    gsize len = 0;
    const char *out = *ret_ok ? g_bytes_get_data(result.out, &len) : "";
    for (const char *at = out; at < out + len; at += strlen(at) + 1)
        if (strlen(at) > 3)
            g_hash_table_add(paths, g_strdup(at + 3));
    return TRUE;
}

static void restore_line(GString *script, const char *path)
{
    g_autofree char *quoted = g_shell_quote(path);
    g_string_append_printf(script,
                           "rm -rf -- %s\n"
                           "if " GIT "cat-file -e HEAD:%s 2>/dev/null; then " GIT
                           "checkout -q HEAD -- %s || exit 1; fi\n",
                           quoted, quoted, quoted);
}

/* Shared configuration that the tool named in the test command reads. */
static const struct {
    const char *tool, *file;
} tool_files[] = {
    {"make", "makefile"},         {"make", "gnumakefile"},   {"pytest", "setup.cfg"},
    {"pytest", "pyproject.toml"}, {"py.test", "setup.cfg"},  {"npm", "package.json"},
    {"npx", "package.json"},      {"pnpm", "package.json"},  {"yarn", "package.json"},
    {"jest", "package.json"},     {"mocha", "package.json"}, {"tox", "setup.cfg"},
};

/* TRUE when the file decides how the tests run: the environment says so, the test command names it,
 * or it configures the tool that the command names. */
static gboolean path_is_runner(const char *path, const char *test_script, const Environment *env)
{
    for (char **glob = env->protect; *glob != NULL; glob++)
        if (g_pattern_match_simple(*glob, path))
            return TRUE;
    g_autofree char *base = g_path_get_basename(path);
    g_auto(GStrv) words = g_strsplit_set(test_script, " \n\t;|&()'\"", -1);
    for (char **word = words; *word != NULL; word++) {
        const char *bare = g_str_has_prefix(*word, "./") ? *word + 2 : *word;
        if (strcmp(bare, path) == 0)
            return TRUE;
        for (gsize i = 0; i < G_N_ELEMENTS(tool_files); i++)
            if (strcmp(bare, tool_files[i].tool) == 0 &&
                g_ascii_strcasecmp(base, tool_files[i].file) == 0)
                return TRUE;
    }
    return FALSE;
}

/* The restore script: test files whatever happened to them, and protected files that changed. */
static GString *restore_script(Strict *strict, GHashTable *before, GHashTable *after)
{
    const Task *task = strict->request->task;
    g_autoptr(GHashTable) tests = diff_paths(task->test_patch);
    g_autoptr(GHashTable) gold = diff_paths(task->patch);
    GString *out = g_string_new("set -u\ncd /testbed\n");

    GHashTableIter iter;
    gpointer key;
    g_hash_table_iter_init(&iter, tests);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        restore_line(out, key);
        if (g_hash_table_contains(after, key) && !g_hash_table_contains(before, key))
            evidence_add(strict->run, "test_file_edited", key, NULL);
    }
    g_hash_table_iter_init(&iter, after);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        if (g_hash_table_contains(before, key) || g_hash_table_contains(tests, key) ||
            g_hash_table_contains(gold, key))
            continue;
        if (path_class(key, tests, gold) != PATH_TEST_INFRA &&
            !path_is_runner(key, strict->script->build, strict->env) &&
            !path_is_runner(key, strict->script->test, strict->env))
            continue;
        restore_line(out, key);
        evidence_add(strict->run, "test_infrastructure_edited", key, NULL);
    }
    return out;
}

/* Does the base have this file or directory? */
static gboolean base_has(Strict *strict, const char *entry, gboolean *ret_has, GError **error)
{
    g_autofree char *name = g_strconcat("HEAD:", entry, NULL);
    const char *argv[] = {"git", "-c", "core.fsmonitor=false", "cat-file", "-e", name, NULL};
    BoxCommand command = {.argv = argv, .envp = strict->envp, .cwd = "/testbed", .merge = TRUE};
    g_auto(BoxResult) result = {0};
    if (!box_exec(strict->box, &command, &result, error))
        return FALSE;
    *ret_has = phase_ok(&result);
    return TRUE;
}

/* Removes what the candidate put before the test runner on the import path: entries the base has
 * not. A repository that is the runner has them. */
static gboolean shadow_lines(Strict *strict, GHashTable *before, GHashTable *after, GString *script,
                             GError **error)
{
    const Task *task = strict->request->task;
    g_autoptr(GHashTable) tests = diff_paths(task->test_patch);
    g_autoptr(GHashTable) gold = diff_paths(task->patch);
    g_autoptr(GHashTable) seen = diff_path_set_new();
    GHashTableIter iter;
    gpointer key;
    g_hash_table_iter_init(&iter, after);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        g_autofree char *entry = path_shadowed_entry(key, tests);
        if (entry == NULL || g_hash_table_contains(before, key) ||
            g_hash_table_contains(tests, key) || g_hash_table_contains(gold, key) ||
            g_hash_table_contains(seen, entry))
            continue;
        gboolean has = FALSE;
        if (!base_has(strict, entry, &has, error))
            return FALSE;
        g_hash_table_add(seen, g_strdup(entry));
        if (has)
            continue;
        g_autofree char *quoted = g_shell_quote(entry);
        g_string_append_printf(script, "rm -rf -- %s\n", quoted);
        evidence_add(strict->run, "runner_shadowed", entry,
                     "new, and imported before the real one");
    }
    return TRUE;
}

/* Puts every touched test file and test configuration back. Not ok: the diff left a tree in which
 * that cannot be done (no space, too many files). The base alone is always restorable, so that is
 * the candidate's doing and must not become a failure of ours. */
static gboolean restore_phase(Strict *strict, GHashTable *before, gboolean *ret_ok, GError **error)
{
    g_autoptr(GHashTable) after = diff_path_set_new();
    if (!changed_paths(strict, after, ret_ok, error))
        return FALSE;
    if (!*ret_ok)
        return TRUE;
    g_autoptr(GString) script = restore_script(strict, before, after);
    g_auto(BoxResult) result = {0};
    if (!shadow_lines(strict, before, after, script, error) ||
        !phase_exec(strict, "restore", script->str, &result, error))
        return FALSE;
    *ret_ok = phase_ok(&result);
    return TRUE;
}

/* Applies the hidden test patch in `box`. */
static gboolean test_patch_apply(Strict *strict, Box *box, gboolean *ret_ok, GError **error)
{
    const char *text = strict->request->task->test_patch;
    g_autofree char *whole = g_strconcat(text, g_str_has_suffix(text, "\n") ? "" : "\n", NULL);
    const BoxFile file = {TEST_PATCH_PATH, whole, strlen(whole), 0644};
    g_autofree char *line = box_text_inside(box, GIT "apply -v " TEST_PATCH_PATH);
    const char *argv[] = {"/bin/bash", "-c", line, NULL};
    BoxCommand command = {.argv = argv,
                          .envp = strict->envp,
                          .cwd = "/testbed",
                          .files = &file,
                          .n_files = 1,
                          .merge = TRUE};
    g_auto(BoxResult) result = {0};
    if (!box_exec(box, &command, &result, error))
        return FALSE;
    *ret_ok = phase_ok(&result);
    return TRUE;
}

/* The test patch failed: whose doing is it? A pristine tree answers. FALSE: the task is broken. */
static gboolean blame_candidate(Strict *strict, GError **error)
{
    gboolean ok = FALSE;
    g_autoptr(Box) pristine = grade_box_open(strict->request, strict->layers, TRUE, error);
    if (pristine == NULL || !test_patch_apply(strict, pristine, &ok, error))
        return FALSE;
    if (!ok)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "the task's test patch does not apply to its own base commit");
    evidence_add(strict->run, "test_patch_blocked", NULL,
                 "the test patch applies to the base but not over this diff");
    return TRUE;
}

/* Applies the candidate's diff. A hostile shape is refused before git sees it. */
static gboolean apply_phase(Strict *strict, GError **error)
{
    GradeRun *run = strict->run;
    gsize len = 0;
    const void *patch =
        strict->request->patch != NULL ? g_bytes_get_data(strict->request->patch, &len) : NULL;
    if (len == 0)
        return TRUE;
    g_autoptr(PatchScan) scan = patch_scan(patch, len);
    if (scan->hostile->len > 0) {
        const PatchFinding *worst = scan->hostile->pdata[0];
        run->apply = (ApplyResult){.log = g_string_new(">>>>> Patch Apply Failed:\n")};
        g_string_append_printf(run->apply.log, "refused: line %u: %s: %s\n", worst->line,
                               patch_hostile_to_str(worst->kind), worst->detail);
        evidence_add(run, "patch_hostile", NULL, run->apply.log->str);
        return TRUE;
    }
    return patch_apply(strict->box, strict->envp, APPLY_5, patch, len, &run->apply, error);
}

/* Runs an optional phase; what it exits with is the script's business, as it is the harness's. */
static gboolean optional_phase(Strict *strict, const char *phase, const char *lines, GError **error)
{
    if (lines[0] == '\0')
        return TRUE;
    g_autofree char *script =
        g_strconcat("set -uxo pipefail\n", strict->script->state, lines, NULL);
    g_auto(BoxResult) result = {0};
    return phase_exec(strict, phase, script, &result, error);
}

static gboolean tmp_empty(Strict *strict, GError **error)
{
    /* without a mount namespace /dev/shm is the host's: hands off */
    gboolean own_shm = (box_enforced(strict->box) & BOX_LAYER_MOUNT) != 0;
    g_autofree char *script =
        g_strdup_printf("find /tmp/ %s -mindepth 1 -delete 2>/dev/null; mkdir -p \"$HOME\"\n",
                        own_shm ? "/dev/shm/" : "");
    g_auto(BoxResult) cleaned = {0};
    return grade_script_exec(strict->request, strict->box, strict->envp, STEP_PATH, script,
                             strict->run, &cleaned, error);
}

static gboolean test_phase(Strict *strict, GError **error)
{
    if (!tmp_empty(strict, error))
        return FALSE;
    g_autofree char *script =
        g_strconcat("set -uxo pipefail\n", strict->script->state, strict->script->test, NULL);
    strict->run->eval_script = g_strdup(script);
    if (!phase_exec(strict, "test", script, &strict->run->test, error))
        return FALSE;
    strict->run->tests_ran = TRUE;
    return TRUE;
}

/* Takes the text of the test file that the canary copies, while nothing of the candidate runs. */
static gboolean canary_take(Strict *strict, GError **error)
{
    if (strict->canary == NULL)
        return TRUE;
    const char *argv[] = {"cat", "--", strict->canary->test_path, NULL};
    BoxCommand command = {.argv = argv, .envp = strict->envp, .cwd = "/testbed"};
    g_auto(BoxResult) result = {0};
    if (!box_exec(strict->box, &command, &result, error))
        return FALSE;
    if (!phase_ok(&result) || result.truncated) {
        g_clear_pointer(&strict->canary, canary_free);
        return TRUE;
    }
    gsize len = 0;
    const char *text = g_bytes_get_data(result.out, &len);
    canary_set_source(strict->canary, text, len);
    return TRUE;
}

/* Would the tests' output alone resolve the task? Only then is there anything to doubt. */
static gboolean would_resolve(Strict *strict, gboolean *ret, GError **error)
{
    const GradeInput input = grade_input_of(strict->request, strict->run);
    g_auto(GradeResult) result = {0};
    if (!grade_log(&input, &result, error))
        return FALSE;
    *ret = strict->run->test.outcome == BOX_EXITED && result.resolution == RESOLUTION_FULL;
    return TRUE;
}

static gboolean canary_phase(Strict *strict, GError **error)
{
    gboolean resolves = FALSE;
    if (strict->canary == NULL)
        return TRUE;
    if (!would_resolve(strict, &resolves, error))
        return FALSE;
    if (!resolves)
        return TRUE;
    gint64 start_ns = clock_mono_ns();
    gboolean ok = tmp_empty(strict, error) &&
                  canary_run(strict->canary, strict->request, strict->box, strict->envp,
                             strict->script->state, strict->run, &strict->heard, error);
    strict->run->canary_ns = clock_mono_ns() - start_ns;
    return ok;
}

/* From the applied diff to the end of the tests. */
static gboolean after_apply(Strict *strict, GHashTable *before, GError **error)
{
    gboolean ok = FALSE;
    if (!restore_phase(strict, before, &ok, error))
        return FALSE;
    if (!ok) {
        evidence_add(strict->run, "restore_blocked", NULL, "test files could not be put back");
        return TRUE;
    }
    if (!test_patch_apply(strict, strict->box, &ok, error))
        return FALSE;
    if (!ok)
        return blame_candidate(strict, error);
    if (!canary_take(strict, error))
        return FALSE;
    if (strict->env->prologue &&
        !optional_phase(strict, "prologue", strict->script->prologue, error))
        return FALSE;
    return optional_phase(strict, "build", strict->script->build, error) &&
           test_phase(strict, error) && canary_phase(strict, error);
}

static gboolean strict_run(Strict *strict, GradePhaseFn on_phase, gpointer user_data,
                           GError **error)
{
    GradeRun *run = strict->run;
    g_autoptr(GHashTable) before = diff_path_set_new();
    gboolean ok = TRUE;
    if (strict->layers->n_work > 1 && !changed_paths(strict, before, &ok, error))
        return FALSE;
    if (!ok)
        return error_set(error, ASSAY_ERROR_SYSTEM, "git status failed in the prepared checkout");

    on_phase("apply", user_data);
    gint64 start_ns = clock_mono_ns();
    if (!apply_phase(strict, error))
        return FALSE;
    run->apply_ns = clock_mono_ns() - start_ns;
    if (run->apply.log != NULL && !run->apply.applied)
        return TRUE;

    on_phase("run", user_data);
    start_ns = clock_mono_ns();
    ok = after_apply(strict, before, error);
    run->run_ns = clock_mono_ns() - start_ns;
    return ok;
}

/* One run in a box of its own, which is closed again. */
static gboolean strict_in_box(const Strict *base, GradePhaseFn on_phase, gpointer user_data,
                              CanaryResult *ret_heard, GError **error)
{
    Strict strict = *base;
    g_autoptr(Box) box =
        grade_box_open(strict.request, strict.layers, !strict.env->prologue, error);
    if (box == NULL)
        return FALSE;
    g_autofree char *nonce = id_new("nonce");
    strict.box = box;
    strict.nonce = nonce;
    strict.run->box_report = box_report_json(box);
    strict.canary = canary_new(strict.request->task, strict.script->test);
    gboolean ok = strict_run(&strict, on_phase, user_data, error);
    *ret_heard = strict.heard;
    g_clear_pointer(&strict.canary, canary_free);
    return ok;
}

static void no_phase(const char *phase, gpointer user_data)
{
    (void)phase;
    (void)user_data;
}

/* The canary was silent: is it heard with the reference patch, all else being equal? */
static gboolean canary_control(const Strict *base, GError **error)
{
    const char *gold = base->request->task->patch;
    g_autoptr(GBytes) patch = g_bytes_new_static(gold, strlen(gold));
    GradeRequest request = *base->request;
    request.patch = patch;
    g_auto(GradeRun) run = {0};
    grade_run_init(&run);
    Strict control = *base;
    control.request = &request;
    control.run = &run;
    CanaryResult heard = CANARY_NOT_RUN;
    if (gold[0] != '\0' && !strict_in_box(&control, no_phase, NULL, &heard, error)) {
        g_prefix_error(error, "canary control: ");
        return FALSE;
    }
    base->run->canary = heard == CANARY_HEARD ? WITNESS_CANARY_SILENT : WITNESS_CANARY_UNUSABLE;
    return TRUE;
}

gboolean grade_run_strict(const GradeRequest *request, const Environment *env,
                          const EnvLayers *layers, GradeRun *run, GradePhaseFn on_phase,
                          gpointer user_data, GError **error)
{
    const char *why = NULL;
    g_autoptr(EvalScript) script = eval_script_parse(request->task->eval_script, &why);
    if (script == NULL)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "the task's eval_script cannot be graded strictly: %s", why);
    g_auto(GStrv) envp = grade_envp(layers);
    envp = g_environ_setenv(envp, "HOME", env->prologue ? "/root" : "/tmp/home", TRUE);
    const Strict base = {.request = request,
                         .env = env,
                         .layers = layers,
                         .envp = (const char *const *)envp,
                         .run = run,
                         .script = script};
    CanaryResult heard = CANARY_NOT_RUN;
    if (!strict_in_box(&base, on_phase, user_data, &heard, error))
        return FALSE;
    if (heard == CANARY_UNCLEAR)
        run->canary = WITNESS_CANARY_UNUSABLE;
    return heard != CANARY_SILENT || canary_control(&base, error);
}
