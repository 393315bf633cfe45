/*
 * assay-worker: does the slow and risky work of one slot, one grade at a time.
 *
 * assayd starts it with a stream socket on descriptor 3 and sends JSON lines; docs/protocol.md has
 * the messages. One crash costs one grade, which assayd gives to another worker. With --episodes it
 * is a host of episodes instead (episode_server.c).
 *
 * Invariants:
 *   1. The worker dies with assayd (parent-death signal), and its boxes die with it.
 *   2. It writes only below the grade's scratch directory and the shared stores of the state
 *      directory (repos, trees, envs), which are safe for several writers.
 *
 * Not here: queueing, retries, limits on what is believed of a reply (worker_pool.c).
 */
#include "base/error.h"
#include "base/fd.h"
#include "env/episode_server.h"
#include "env/grader.h"
#include "sandbox/box.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define WORKER_FD        3
#define WORKER_LINE_MAX  (64u << 20)
#define WORKER_PATCH_MAX (512u << 20) /* a larger one than the daemon takes */

static void event_send(json_t *event)
{
    char *text = json_dumps(event, JSON_COMPACT);
    g_autoptr(GError) error = NULL;
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    free(text);
    if (!fd_write_all(WORKER_FD, line, strlen(line), &error)) {
        g_printerr("assay-worker: %s\n", error->message);
        _exit(1); /* assayd is gone */
    }
}

static void phase_send(const char *phase, gpointer user_data)
{
    g_autoptr(json_t) event =
        json_pack("{s:s, s:s, s:s}", "event", "phase", "id", user_data, "phase", phase);
    event_send(event);
}

static json_t *failed_event(const char *id, const GError *why)
{
    return json_pack("{s:s, s:s, s:s, s:n, s:n, s:b, s:{s:s, s:s, s:b}}", "event", "done", "id", id,
                     "state", "failed", "verdict", "reward", "mask", 1, "error", "code",
                     "request_invalid", "detail", why->message, "retryable", 0);
}

static const char *const grade_keys[] = {
    "op",           "id",    "slot",           "attempt",   "state_dir",
    "scratch",      "task",  "patch_file",     "mode",      "limits",
    "environments", "repos", "allow_degraded", "run_empty", NULL};

static gboolean limit_read(const json_t *limits, const char *key, guint *ret, GError **error)
{
    gint64 value = 0;
    if (!json_opt_int(limits, key, 0, G_MAXINT32, 0, &value, error))
        return FALSE;
    *ret = (guint)value;
    return TRUE;
}

/* Fills `request` from the message; strings stay borrowed from it. */
static gboolean request_read(const json_t *message, GradeRequest *request, GError **error)
{
    gint64 slot = 0;
    const json_t *limits = json_object_get(message, "limits");
    const char *mode = json_opt_str(message, "mode", "strict", error);
    if (mode == NULL || !json_only_keys(message, grade_keys, error) ||
        !json_opt_int(message, "slot", 0, 4095, 0, &slot, error) ||
        (request->state_dir = json_want_str(message, "state_dir", error)) == NULL ||
        (request->scratch = json_want_str(message, "scratch", error)) == NULL ||
        !limit_read(limits, "wall_s", &request->wall_s, error) ||
        !limit_read(limits, "mem_mib", &request->mem_mib, error) ||
        !limit_read(limits, "pids", &request->pids, error) ||
        !limit_read(limits, "disk_mib", &request->disk_mib, error))
        return FALSE;
    if (!grade_mode_from_str(mode, &request->mode))
        return error_set(error, ASSAY_ERROR_INPUT, "field mode: unknown mode %s", mode);
    request->slot = (guint)slot;
    request->environments = json_string_value(json_object_get(message, "environments"));
    request->repos = json_string_value(json_object_get(message, "repos"));
    request->allow_degraded = json_is_true(json_object_get(message, "allow_degraded"));
    request->run_empty = json_is_true(json_object_get(message, "run_empty"));
    return TRUE;
}

static json_t *grade_do(const json_t *message, const char *id, GError **error)
{
    GradeRequest request = {.id = id};
    json_t *row = json_object_get(message, "task");
    g_autoptr(Task) task = row != NULL ? task_from_json(row, error) : NULL;
    if (row == NULL)
        error_set(error, ASSAY_ERROR_INPUT, "field task: missing");
    if (task == NULL || !request_read(message, &request, error))
        return NULL;
    request.task = task;
    const char *patch_file = json_string_value(json_object_get(message, "patch_file"));
    g_autoptr(GBytes) patch = NULL;
    if (patch_file != NULL && (patch = file_read(patch_file, WORKER_PATCH_MAX, error)) == NULL)
        return NULL;
    request.patch = patch;
    return grader_run(&request, phase_send, (gpointer)(gsize)id);
}

/* FALSE: time to go. */
static gboolean message_do(const char *line, gsize len)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(json_t) message = json_parse(line, len, &error);
    const char *op = message != NULL ? json_want_str(message, "op", &error) : NULL;
    if (g_strcmp0(op, "exit") == 0)
        return FALSE;
    const char *id = op != NULL ? json_want_str(message, "id", &error) : NULL;
    g_autoptr(json_t) done = NULL;
    if (g_strcmp0(op, "grade") == 0 && id != NULL)
        done = grade_do(message, id, &error);
    else if (error == NULL)
        error_set(&error, ASSAY_ERROR_INPUT, "field op: unknown operation");
    if (done == NULL)
        done = failed_event(id != NULL ? id : "", error);
    event_send(done);
    return TRUE;
}

static void messages_read(FILE *in)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    while ((len = getline(&line, &cap, in)) > 0)
        if (len > WORKER_LINE_MAX || !message_do(line, (gsize)len))
            break;
    free(line);
}

int main(int argc, char **argv)
{
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    if (getppid() != parent)
        return 1;
    box_sweep_stale(); /* what a killed predecessor left */
    if (argc == 2 && strcmp(argv[1], "--episodes") == 0)
        return episode_serve(WORKER_FD);
    FILE *in = fdopen(WORKER_FD, "r");
    if (in == NULL) {
        g_printerr("assay-worker: no socket on descriptor %d; assayd starts this program\n",
                   WORKER_FD);
        return 2;
    }
    g_autoptr(json_t) ready =
        json_pack("{s:s, s:I}", "event", "ready", "pid", (json_int_t)getpid());
    event_send(ready);
    messages_read(in);
    return 0;
}
