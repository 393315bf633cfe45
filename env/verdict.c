/*
 * Fast verdicts: jobs, lanes of warm boxes, the cache.
 *
 * A job is one content: files after the changes, driver, expected values, compiler. A lane is one
 * box at work on one job. Jobs wait in a queue in the order they were asked.
 *
 * Invariants:
 *   1. Expected values stay in the job; only files and the driver go into a box, the driver last.
 *   2. Nothing that the program does gives VERDICT_UNSCORABLE: that takes an error of the box, or
 *      wall limits that a trivial program ran into as well.
 *   3. What is unscorable is not cached.
 *   4. Every waiter is called once, after its job has left the tables: it may ask again.
 *
 * Not here: the field itself (tasks/calls.c), how boxes are reset (sandbox/pool.h).
 */
#include "env/verdict.h"

#include "base/digest.h"
#include "base/error.h"
#include "sandbox/pool.h"

#include <string.h>

#define N_BOXES_DEFAULT   2u
#define WALL_MS_DEFAULT   10000u
#define USES_MAX          2000u /* of one box */
#define ERRORS_MAX        3u
#define TIMEOUTS_MAX      2u
#define CACHE_ENTRIES_MAX 500000u
#define FILES_MAX         (TASK_FILES_MAX + VERDICT_NEW_FILES_MAX)
#define FILES_BYTES_MAX   (TASK_FILES_BYTES_MAX + (4u << 20))
#define PATH_BYTES_MAX    200u
#define PATH_DEPTH_MAX    16u
#define WORK              "/work/"
#define DRIVER_C          "assay_driver.c"
#define DRIVER_PYTHON     "assay_driver.py"
#define PROBE_BYTES_MAX   4096u

typedef struct Waiter {
    VerdictFn fn;
    gpointer data;
} Waiter;

typedef struct Job {
    char *key; /* NULL: a control */
    TaskCalls *calls;
    char *driver;
    GPtrArray *paths; /* absolute inside, sorted; the driver's is last */
    GPtrArray *texts; /* GBytes, in the same order */
    GArray *waiters;  /* Waiter */
    guint n_errors, n_timeouts;
    gboolean is_control_next; /* it has timed out: a trivial program runs in its place */
} Job;

typedef struct Lane {
    Job *job; /* NULL: free */
    Box *box;
    BoxRun *run;
    BoxCommand command;
    GArray *files;   /* BoxFile */
    GPtrArray *argv; /* owned strings and NULL */
    gint64 taken_us;
} Lane;

typedef struct Known {
    VerdictState state;
    BoxOutcome outcome;
    int exit_code;
    guint64 passed;
} Known;

struct VerdictRunner {
    BoxPool *pool;
    BoxSpec spec;
    Lane *lanes;
    guint n_lanes;
    GQueue *queue;
    GHashTable *jobs;  /* key -> Job, queued or running */
    GHashTable *cache; /* key -> Known */
    char *compiler;    /* "tcc", "gcc", "none" */
    char *version;     /* all that is installed, as it calls itself */
    VerdictStats stats;
};

const char *verdict_state_str(VerdictState state)
{
    static const char *const words[] = {"unscorable", "failed", "passed"};
    return words[state];
}

/* ---- jobs ---- */

static void job_free(gpointer data)
{
    Job *job = data;
    if (job == NULL)
        return;
    g_free(job->key);
    task_calls_free(job->calls);
    g_free(job->driver);
    g_ptr_array_unref(job->paths);
    g_ptr_array_unref(job->texts);
    g_array_unref(job->waiters);
    g_free(job);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Job, job_free)

static Job *job_new(void)
{
    Job *job = g_new0(Job, 1);
    job->paths = g_ptr_array_new_with_free_func(g_free);
    job->texts = g_ptr_array_new_with_free_func((GDestroyNotify)g_bytes_unref);
    job->waiters = g_array_new(FALSE, FALSE, sizeof(Waiter));
    return job;
}

static int by_text(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The bytes of a file: text, {"text"} as a task has it, or {"base64"}. NULL: none of them. */
static GBytes *file_bytes(const json_t *value)
{
    const json_t *base64 = json_object_get(value, "base64");
    const json_t *text = json_is_object(value) ? json_object_get(value, "text") : value;
    if (json_is_string(base64)) {
        gsize len;
        guchar *data = g_base64_decode(json_string_value(base64), &len);
        return g_bytes_new_take(data, len);
    }
    return json_is_string(text) ? g_bytes_new(json_string_value(text), json_string_length(text))
                                : NULL;
}

/* A path that no box can fail to make. */
gboolean verdict_path_ok(const char *path)
{
    guint depth = 0;
    for (const char *at = path; *at != '\0'; at++)
        depth += *at == '/';
    return task_path_ok(path) && strlen(path) <= PATH_BYTES_MAX && depth < PATH_DEPTH_MAX &&
           !g_str_has_prefix(path, "assay_driver");
}

/* Paths of the tree after the changes, sorted. Borrowed. */
static GPtrArray *paths_after(const Task *task, const json_t *changes)
{
    GPtrArray *paths = g_ptr_array_new();
    const char *path;
    json_t *value;
    json_object_foreach((json_t *)(gsize)task->files, path,
                        value) if (json_object_get(changes, path) == NULL)
        g_ptr_array_add(paths, (gpointer)(gsize)path);
    json_object_foreach((json_t *)(gsize)changes, path, value) if (!json_is_null(value))
        g_ptr_array_add(paths, (gpointer)(gsize)path);
    g_ptr_array_sort(paths, by_text);
    return paths;
}

/* Is one of the directories on the way to paths[i] itself a file? */
static gboolean is_below_a_file(const GPtrArray *paths, guint i)
{
    g_autofree char *path = g_strdup(paths->pdata[i]);
    for (char *slash; (slash = strrchr(path, '/')) != NULL;) {
        *slash = '\0';
        if (bsearch(&path, paths->pdata, paths->len, sizeof(gpointer), by_text) != NULL)
            return TRUE;
    }
    return FALSE;
}

/* What no box could make is refused here. NOT_ALLOWED: the changes are at fault. */
static gboolean paths_ok(const GPtrArray *paths, const json_t *changes, GError **error)
{
    if (paths->len > FILES_MAX)
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "more than %u files", FILES_MAX);
    for (guint i = 0; i < paths->len; i++) {
        const char *path = paths->pdata[i];
        gboolean is_changed = json_object_get(changes, path) != NULL;
        if (!verdict_path_ok(path))
            return error_set(error, is_changed ? ASSAY_ERROR_NOT_ALLOWED : ASSAY_ERROR_INPUT,
                             "%s: not a normal path of at most %u bytes and %u names, or the "
                             "driver's",
                             path, PATH_BYTES_MAX, PATH_DEPTH_MAX);
        if (is_below_a_file(paths, i))
            return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "%s: lies below a file", path);
    }
    return TRUE;
}

static gboolean files_add(Job *job, const Task *task, const json_t *changes, GError **error)
{
    g_autoptr(GPtrArray) paths = paths_after(task, changes);
    gsize bytes = 0;
    if (!paths_ok(paths, changes, error))
        return FALSE;
    for (guint i = 0; i < paths->len; i++) {
        const char *path = paths->pdata[i];
        const json_t *changed = json_object_get(changes, path);
        GBytes *data = file_bytes(changed != NULL ? changed : json_object_get(task->files, path));
        if (data == NULL)
            return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "%s: not text", path);
        g_ptr_array_add(job->paths, g_strconcat(WORK, path, NULL));
        g_ptr_array_add(job->texts, data);
        bytes += g_bytes_get_size(data);
    }
    return bytes <= FILES_BYTES_MAX || error_set(error, ASSAY_ERROR_NOT_ALLOWED,
                                                 "files of more than %u bytes", FILES_BYTES_MAX);
}

static char *key_of(const VerdictRunner *runner, const Job *job)
{
    g_autoptr(Digest) digest = digest_new("assay.verdict.v1");
    digest_add_str(digest, runner->version);
    digest_add(digest, &job->calls->language, sizeof job->calls->language);
    digest_add_str(digest, job->driver);
    GStrv lists[] = {job->calls->expected, job->calls->sources};
    for (gsize i = 0; i < G_N_ELEMENTS(lists); i++) {
        for (char **text = lists[i]; *text != NULL; text++)
            digest_add_str(digest, *text);
        digest_add_str(digest, NULL);
    }
    for (guint i = 0; i < job->paths->len; i++) {
        gsize len;
        const void *data = g_bytes_get_data(job->texts->pdata[i], &len);
        digest_add_str(digest, job->paths->pdata[i]);
        digest_add(digest, data, len);
    }
    return digest_finish(digest);
}

/* ---- commands ---- */

static void argv_add(Lane *lane, const char *word)
{
    g_ptr_array_add(lane->argv, g_strdup(word));
}

static void argv_add_sources(Lane *lane, const Job *job)
{
    for (char **source = job->calls->sources; !job->is_control_next && *source != NULL; source++)
        g_ptr_array_add(lane->argv, g_strconcat(WORK, *source, NULL));
}

static void lane_set_argv(const VerdictRunner *runner, Lane *lane)
{
    const Job *job = lane->job;
    const char *const python[] = {"python3", "-I", "-S", "-B", WORK DRIVER_PYTHON, WORK, NULL};
    const char *const gcc[] = {"/bin/sh", "-c",          "gcc -w -O0 -o run \"$@\" && exec ./run",
                               "sh",      WORK DRIVER_C, NULL};
    if (job->calls->language == CALLS_PYTHON) {
        for (gsize i = 0; python[i] != NULL; i++)
            argv_add(lane, python[i]);
    } else if (g_str_equal(runner->compiler, "tcc")) {
        argv_add(lane, "tcc");
        argv_add(lane, "-w");
        argv_add_sources(lane, job);
        argv_add(lane, "-run");
        argv_add(lane, WORK DRIVER_C);
    } else {
        for (gsize i = 0; gcc[i] != NULL; i++)
            argv_add(lane, gcc[i]);
        argv_add_sources(lane, job);
    }
    g_ptr_array_add(lane->argv, NULL);
}

static void lane_add_file(Lane *lane, const char *path, const void *data, gsize len)
{
    const BoxFile file = {path, data, len, 0644};
    g_array_append_val(lane->files, file);
}

/* What a control runs: as little as there is. */
static const char *const controls[] = {
    [CALLS_C] = "int main(void) { return 0; }\n", [CALLS_PYTHON] = "pass\n"};

static void lane_set_files(Lane *lane)
{
    const Job *job = lane->job;
    CallsLanguage language = job->calls->language;
    const char *driver = job->is_control_next ? controls[language] : job->driver;
    for (guint i = 0; i < job->paths->len && !job->is_control_next; i++) {
        gsize len;
        const void *data = g_bytes_get_data(job->texts->pdata[i], &len);
        lane_add_file(lane, job->paths->pdata[i], data != NULL ? data : "", len);
    }
    lane_add_file(lane, language == CALLS_C ? WORK DRIVER_C : WORK DRIVER_PYTHON, driver,
                  strlen(driver));
}

/* Gives the box back; the run is over. */
static void lane_clear(VerdictRunner *runner, Lane *lane)
{
    if (lane->box != NULL) {
        box_pool_give(runner->pool, lane->box);
        runner->stats.box_us += (guint64)(g_get_monotonic_time() - lane->taken_us);
    }
    g_clear_pointer(&lane->files, g_array_unref);
    g_clear_pointer(&lane->argv, g_ptr_array_unref);
    *lane = (Lane){0};
}

static gboolean lane_start(VerdictRunner *runner, Lane *lane, Job *job, GError **error)
{
    *lane = (Lane){.job = job,
                   .files = g_array_new(FALSE, FALSE, sizeof(BoxFile)),
                   .argv = g_ptr_array_new_with_free_func(g_free),
                   .taken_us = g_get_monotonic_time()};
    lane_set_argv(runner, lane);
    lane_set_files(lane);
    lane->command = (BoxCommand){.argv = (const char *const *)lane->argv->pdata,
                                 .files = (const BoxFile *)(gpointer)lane->files->data,
                                 .n_files = lane->files->len};
    runner->stats.run++;
    lane->box = box_pool_take(runner->pool, &runner->spec, "verdict", error);
    lane->run = lane->box != NULL ? box_start(lane->box, &lane->command, error) : NULL;
    return lane->run != NULL;
}

/* ---- answers ---- */

static void tell(VerdictRunner *runner, const Waiter *waiter, const Known *known, guint n_calls,
                 gboolean is_cached, const char *why)
{
    const Verdict verdict = {.state = known->state,
                             .n_calls = n_calls,
                             .passed = known->passed,
                             .outcome = known->outcome,
                             .exit_code = known->exit_code,
                             .is_cached = is_cached,
                             .why = why};
    guint64 *const counters[] = {&runner->stats.unscorable, &runner->stats.failed,
                                 &runner->stats.passed};
    ++*counters[known->state];
    waiter->fn(&verdict, waiter->data);
}

static void job_end(VerdictRunner *runner, Job *given, const Known *known, const char *why)
{
    g_autoptr(Job) job = given;
    g_hash_table_remove(runner->jobs, job->key);
    if (known->state != VERDICT_UNSCORABLE) {
        if (g_hash_table_size(runner->cache) >= CACHE_ENTRIES_MAX)
            g_hash_table_remove_all(runner->cache);
        g_hash_table_replace(runner->cache, g_strdup(job->key), g_memdup2(known, sizeof *known));
    }
    for (guint i = 0; i < job->waiters->len; i++)
        tell(runner, &g_array_index(job->waiters, Waiter, i), known, job->calls->n, FALSE, why);
}

/* Our machine failed: another try, then no verdict. */
static void job_error(VerdictRunner *runner, Job *job, const char *why)
{
    if (++job->n_errors < ERRORS_MAX)
        g_queue_push_head(runner->queue, job);
    else
        job_end(runner, job, &(Known){0}, why);
}

/* Line by line: a call passes if its line is there, whole, in its place. */
static Known judge(const Job *job, const BoxResult *result)
{
    Known known = {
        .state = VERDICT_FAILED, .outcome = result->outcome, .exit_code = result->exit_code};
    gsize len = 0;
    const char *at = result->out != NULL ? g_bytes_get_data(result->out, &len) : "";
    const char *end = at + len;
    guint n_passed = 0;
    for (guint i = 0; i < job->calls->n && !result->truncated; i++) {
        gsize want = strlen(job->calls->expected[i]);
        const char *newline = at < end ? memchr(at, '\n', (gsize)(end - at)) : NULL;
        if (newline == NULL)
            break;
        if ((gsize)(newline - at) == want && memcmp(at, job->calls->expected[i], want) == 0) {
            known.passed |= (guint64)1 << i;
            n_passed++;
        }
        at = newline + 1;
    }
    if (n_passed == job->calls->n && at == end && !result->truncated &&
        result->outcome == BOX_EXITED && result->exit_code == 0)
        known.state = VERDICT_PASSED;
    return known;
}

/* A wall limit: once more, then a control, then we know whose doing it was. */
static void job_timed_out(VerdictRunner *runner, Job *job)
{
    job->is_control_next = ++job->n_timeouts >= TIMEOUTS_MAX;
    g_queue_push_head(runner->queue, job);
}

static void control_ended(VerdictRunner *runner, Job *job, const BoxResult *result)
{
    gboolean in_time = result->outcome == BOX_EXITED && result->exit_code == 0 &&
                       result->wall_us / 1000 < runner->spec.limits.wall_ms / 2;
    const Known known = {.state = in_time ? VERDICT_FAILED : VERDICT_UNSCORABLE,
                         .outcome = BOX_TIMED_OUT};
    job_end(runner, job, &known, in_time ? "" : "a trivial program did not run in time either");
}

static void lane_finish(VerdictRunner *runner, Lane *lane)
{
    g_autoptr(GError) error = NULL;
    g_auto(BoxResult) result = {0};
    Job *job = lane->job;
    gboolean ok = box_run_finish(g_steal_pointer(&lane->run), &result, &error);
    lane_clear(runner, lane);
    if (!ok)
        job_error(runner, job, error->message);
    else if (job->is_control_next)
        control_ended(runner, job, &result);
    else if (result.outcome == BOX_TIMED_OUT)
        job_timed_out(runner, job);
    else {
        const Known known = judge(job, &result);
        job_end(runner, job, &known, "");
    }
}

/* ---- the loop ---- */

static void start_jobs(VerdictRunner *runner)
{
    for (guint i = 0; i < runner->n_lanes; i++)
        while (runner->lanes[i].job == NULL && !g_queue_is_empty(runner->queue)) {
            g_autoptr(GError) error = NULL;
            Job *job = g_queue_pop_head(runner->queue);
            if (lane_start(runner, &runner->lanes[i], job, &error))
                break;
            lane_clear(runner, &runner->lanes[i]);
            job_error(runner, job, error->message);
        }
}

static void wait_for_lanes(const VerdictRunner *runner, int wait_ms)
{
    GPollFD polled[VERDICT_BOXES_MAX * BOX_RUN_FDS];
    guint n = 0;
    for (guint i = 0; i < runner->n_lanes; i++) {
        int lane_ms = -1;
        if (runner->lanes[i].run == NULL)
            continue;
        box_run_poll(runner->lanes[i].run, &polled[n], &lane_ms);
        n += BOX_RUN_FDS;
        if (lane_ms >= 0 && (wait_ms < 0 || lane_ms < wait_ms))
            wait_ms = lane_ms;
    }
    if (n > 0)
        g_poll(polled, n, wait_ms);
}

gboolean verdict_turn(VerdictRunner *runner, int wait_ms)
{
    start_jobs(runner);
    wait_for_lanes(runner, wait_ms);
    for (guint i = 0; i < runner->n_lanes; i++) {
        Lane *lane = &runner->lanes[i];
        if (lane->run == NULL)
            continue;
        if (!box_run_step(lane->run, NULL) || box_run_is_done(lane->run))
            lane_finish(runner, lane);
    }
    start_jobs(runner);
    return g_hash_table_size(runner->jobs) > 0;
}

gboolean verdict_ask(VerdictRunner *runner, const Task *task, const json_t *changes, VerdictFn fn,
                     gpointer data, GError **error)
{
    g_autoptr(GError) local = NULL;
    const Waiter waiter = {fn, data};
    g_autoptr(Job) job = job_new();
    job->calls = task_calls_read(task, error);
    if (job->calls == NULL)
        return FALSE;
    if (job->calls->language == CALLS_C && g_str_equal(runner->compiler, "none"))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "neither tcc nor gcc compiles in a box: install one");
    if (!files_add(job, task, changes, &local)) {
        const Known failed = {.state = VERDICT_FAILED};
        if (!g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_NOT_ALLOWED)) {
            g_propagate_prefixed_error(error, g_steal_pointer(&local),
                                       "task %s: ", task->instance_id);
            return FALSE;
        }
        runner->stats.asked++;
        tell(runner, &waiter, &failed, job->calls->n, FALSE, local->message);
        return TRUE;
    }
    job->driver = g_strdup(job->calls->driver);
    job->calls->driver = job->driver; /* the task may go before the job */
    job->key = key_of(runner, job);
    runner->stats.asked++;

    const Known *known = g_hash_table_lookup(runner->cache, job->key);
    Job *same = g_hash_table_lookup(runner->jobs, job->key);
    if (known != NULL) {
        const Known copy = *known;
        runner->stats.cached++;
        tell(runner, &waiter, &copy, job->calls->n, TRUE, "");
    } else if (same != NULL) {
        runner->stats.joined++;
        g_array_append_val(same->waiters, waiter);
    } else {
        g_array_append_val(job->waiters, waiter);
        g_hash_table_insert(runner->jobs, job->key, job);
        g_queue_push_tail(runner->queue, g_steal_pointer(&job));
    }
    return TRUE;
}

/* ---- the runner ---- */

/* What is installed in the boxes. */
static gboolean probe(VerdictRunner *runner, const char *wanted, GError **error)
{
    static const char script[] =
        "for cc in \"$@\"; do command -v $cc >/dev/null && break; cc=none; done\n"
        "echo $cc; $cc -v 2>&1 | tail -n 1; python3 -V 2>&1; true";
    const char *argv[] = {"/bin/sh",
                          "-c",
                          script,
                          "sh",
                          wanted != NULL ? wanted : "tcc",
                          wanted != NULL ? NULL : "gcc",
                          NULL};
    const BoxCommand command = {.argv = argv};
    g_auto(BoxResult) result = {0};
    Box *box = box_pool_take(runner->pool, &runner->spec, "verdict", error);
    if (box == NULL)
        return FALSE;
    gboolean ok = box_exec(box, &command, &result, error);
    box_pool_give(runner->pool, box);
    if (!ok)
        return FALSE;
    gsize len = 0;
    const char *out = result.out != NULL ? g_bytes_get_data(result.out, &len) : "";
    runner->version = g_strndup(out, MIN(len, PROBE_BYTES_MAX));
    runner->compiler = g_strndup(runner->version, strcspn(runner->version, "\n"));
    return runner->compiler[0] != '\0' ||
           error_set(error, ASSAY_ERROR_SYSTEM, "a shell in a box says nothing (%s)",
                     box_outcome_str(result.outcome));
}

VerdictRunner *verdict_runner_new(const VerdictOptions *options, GError **error)
{
    const guint64 mib = 1 << 20;
    g_autoptr(VerdictRunner) runner = g_new0(VerdictRunner, 1);
    runner->n_lanes =
        MIN(options->n_boxes != 0 ? options->n_boxes : N_BOXES_DEFAULT, VERDICT_BOXES_MAX);
    runner->lanes = g_new0(Lane, runner->n_lanes);
    runner->pool = box_pool_new(options->slot_first, runner->n_lanes, USES_MAX);
    runner->queue = g_queue_new();
    runner->jobs = g_hash_table_new(g_str_hash, g_str_equal);
    runner->cache = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    runner->spec =
        (BoxSpec){.work_path = "/work",
                  .root_read_only = TRUE,
                  .allow_degraded = options->allow_degraded,
                  .limits = {.wall_ms = options->wall_ms != 0 ? options->wall_ms : WALL_MS_DEFAULT,
                             .cpu_ms = 1000,
                             .mem_bytes = 256 * mib,
                             .disk_bytes = 16 * mib,
                             .inodes = 32768,
                             .tmp_bytes = 16 * mib,
                             .file_bytes = 16 * mib,
                             .pids = 16,
                             .nofile = 64,
                             .stack_bytes = 8 * mib,
                             .output_bytes_keep = 64 << 10,
                             .output_bytes_kill = 256 << 10}};
    if (!probe(runner, options->compiler, error)) {
        g_prefix_error(error, "verdicts: ");
        return NULL;
    }
    return g_steal_pointer(&runner);
}

void verdict_runner_free(VerdictRunner *runner)
{
    if (runner == NULL)
        return;
    for (guint i = 0; i < runner->n_lanes; i++) {
        Lane *lane = &runner->lanes[i];
        g_auto(BoxResult) result = {0};
        if (lane->run != NULL) {
            box_run_cancel(lane->run);
            box_run_finish(g_steal_pointer(&lane->run), &result, NULL);
        }
        g_clear_pointer(&lane->job, job_free);
        lane_clear(runner, lane);
    }
    g_queue_free_full(runner->queue, job_free);
    g_hash_table_unref(runner->jobs);
    g_hash_table_unref(runner->cache);
    box_pool_free(runner->pool);
    g_free(runner->lanes);
    g_free(runner->compiler);
    g_free(runner->version);
    g_free(runner);
}

VerdictStats verdict_stats(const VerdictRunner *runner)
{
    return runner->stats;
}

const char *verdict_compiler(const VerdictRunner *runner)
{
    return runner->version;
}
