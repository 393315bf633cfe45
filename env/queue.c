/*
 * Submitting, claiming and announcing grades.
 *
 * 1. The store's unique index decides whether a grade is new; this file only fills the key.
 * 2. A claimed grade is sent to a worker only after the claim is committed.
 * 3. A grade is announced (event, sweeps, waiters) in the transaction that makes it final.
 *
 * Not here: results of workers (queue_result.c).
 */
#include "env/queue.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "base/tree.h"
#include "env/env_key.h"
#include "env/grade_json.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define QUEUE_LOOK_AHEAD 256 /* queued grades that decide how many workers start */

static const char *const modes[] = {"strict", "compat-4.1", "compat-5", NULL};

gboolean queue_mode_ok(const char *mode)
{
    return g_strv_contains(modes, mode);
}

gboolean queue_cache_from_str(const char *text, GradeCache *ret)
{
    static const char *const words[] = {[GRADE_CACHE_USE] = "use",
                                        [GRADE_CACHE_REFRESH] = "refresh",
                                        [GRADE_CACHE_ONLY] = "only",
                                        [GRADE_CACHE_OFF] = "off"};
    for (guint i = 0; i < G_N_ELEMENTS(words); i++) {
        if (g_strcmp0(words[i], text) == 0) {
            *ret = (GradeCache)i;
            return TRUE;
        }
    }
    return FALSE;
}

void lease_free(Lease *lease)
{
    g_free(lease->public_id);
    g_free(lease->scratch);
    g_free(lease->phase);
    g_free(lease->lost_why);
    json_decref(lease->unsaved);
    g_free(lease);
}

/* The effective limits: the request's over the configuration's. */
static json_t *limits_effective(Service *service, const TaskRow *task, const json_t *asked,
                                GError **error)
{
    static const struct {
        const char *name;
        ConfigKey key;
    } fields[] = {{"wall_s", CONFIG_WALL_S},
                  {"mem_mib", CONFIG_MEM_MIB},
                  {"pids", CONFIG_PIDS},
                  {"disk_mib", CONFIG_DISK_MIB}};
    static const char *const keys[] = {"wall_s", "mem_mib", "pids", "disk_mib", NULL};
    g_autoptr(json_t) limits = json_object();
    g_autoptr(json_t) spec = json_parse(task->spec, strlen(task->spec), error);
    if (spec == NULL)
        return NULL;
    if (asked != NULL && !json_is_object(asked)) {
        error_set(error, ASSAY_ERROR_INPUT, "field limits: must be an object");
        return NULL;
    }
    if (asked != NULL && !json_only_keys(asked, keys, error))
        return NULL;
    for (guint i = 0; i < G_N_ELEMENTS(fields); i++) {
        gint64 value = config_int(service->config, fields[i].key);
        const json_t *own = json_object_get(spec, fields[i].name);
        if (json_is_integer(own) && json_integer_value(own) > 0)
            value = json_integer_value(own);
        const ConfigInfo *info = &config_infos[fields[i].key];
        if (!json_opt_int(asked, fields[i].name, info->min, info->max, value, &value, error)) {
            g_prefix_error(error, "limits: ");
            return NULL;
        }
        json_object_set_new(limits, fields[i].name, json_integer(value));
    }
    return g_steal_pointer(&limits);
}

/* {"files","added","removed"} by the line starts of a unified diff. */
static json_t *patch_stats(const char *patch, gsize len)
{
    json_int_t files = 0, added = 0, removed = 0;
    const char *end = patch + len;
    while (patch < end) {
        const char *next = memchr(patch, '\n', (gsize)(end - patch));
        gsize line_len = (gsize)((next != NULL ? next : end) - patch);
        if (line_len >= 4 && memcmp(patch, "+++ ", 4) == 0)
            files++;
        else if (line_len >= 1 && patch[0] == '+')
            added++;
        else if (line_len >= 1 && patch[0] == '-' && !(line_len >= 4 && !memcmp(patch, "--- ", 4)))
            removed++;
        patch += line_len + 1;
    }
    return json_pack("{s:I,s:I,s:I}", "files", files, "added", added, "removed", removed);
}

static const char *either(const char *asked, const char *fallback)
{
    if (asked != NULL && asked[0] != '\0')
        return asked;
    return fallback[0] != '\0' ? fallback : NULL;
}

static json_t *request_json(Service *service, const GradeAsk *ask, json_t *limits,
                            const char *patch, gsize patch_len)
{
    const char *environments =
        either(ask->environments, config_text(service->config, CONFIG_ENVIRONMENTS));
    const char *repos = either(ask->repos, config_text(service->config, CONFIG_REPOS));
    return json_pack("{s:O,s:s?,s:s?,s:s?,s:o}", "limits", limits, "environments", environments,
                     "repos", repos, "custom_id", ask->custom_id, "patch_stats",
                     patch_stats(patch, patch_len));
}

static gboolean announce_new(Service *service, GradeRow *row, GError **error)
{
    service_event(service, "grade.queued", row->public_id,
                  json_pack("{s:s,s:s,s:s}", "id", row->public_id, "instance_id", row->instance_id,
                            "mode", row->mode));
    return row->state != GRADE_DONE || queue_announce(service, row, error);
}

GradeSubmit queue_submit(Service *service, const TaskRow *task, const char *patch, gsize patch_len,
                         const GradeAsk *ask, GradeRow **ret_row, GError **error)
{
    Store *store = service->store;
    g_autoptr(GradeRow) row = g_new0(GradeRow, 1);
    g_autoptr(json_t) limits = limits_effective(service, task, ask->limits, error);
    if (limits == NULL)
        return GRADE_SUBMIT_ERROR;
    g_autoptr(json_t) request = request_json(service, ask, limits, patch, patch_len);
    const char *environments = json_string_value(json_object_get(request, "environments"));
    if (patch_len > 0 && (row->patch_sha = blob_put(store, patch, patch_len, error)) == NULL)
        return GRADE_SUBMIT_ERROR;
    const char *what = patch_len == 0 && ask->run_empty ? "run_empty" : row->patch_sha;
    row->key = env_key_for(task, what, ask->mode, environments,
                           config_text(service->config, CONFIG_STATE), limits, error);
    if (row->key == NULL)
        return GRADE_SUBMIT_ERROR;
    row->task_id = task->id;
    row->mode = g_strdup(ask->mode);
    row->request = json_print(request);
    row->prio = ask->prio;
    row->direct = ask->direct;
    row->attempts_max = config_int(service->config, CONFIG_ATTEMPTS_MAX);
    row->instance_id = g_strdup(task->instance_id);
    row->dataset = g_strdup(task->dataset);
    if (patch_len == 0 && !ask->run_empty) {
        row->state = GRADE_DONE;
        row->verdict = VERDICT_UNRESOLVED;
        row->has_reward = TRUE;
        row->result = g_strdup("{\"components\":{\"binary\":0.0,\"f2p\":0.0,\"p2p\":0.0},"
                               "\"evidence\":[{\"code\":\"empty_patch\"}]}");
    }
    GradeSubmit did = grade_submit(store, row, ask->cache, error);
    service->counters[COUNT_CACHE_HITS] += did == GRADE_SUBMIT_CACHED;
    service->counters[COUNT_COALESCED] += did == GRADE_SUBMIT_ATTACHED;
    if (did == GRADE_SUBMIT_ERROR || did == GRADE_SUBMIT_ABSENT)
        return did;
    if (did == GRADE_SUBMIT_NEW && !announce_new(service, row, error))
        return GRADE_SUBMIT_ERROR;
    *ret_row = grade_by_id(store, row->id, error);
    return *ret_row != NULL ? did : GRADE_SUBMIT_ERROR;
}

/* A validation is over: gold (item 0) must be resolved, empty (item 1) must not. */
static gboolean close_validation(Service *service, const SweepRow *sweep, GError **error)
{
    if (strcmp(sweep->options, QUEUE_VALIDATION) != 0)
        return TRUE;
    g_autoptr(GPtrArray) items = sweep_items(service->store, sweep->id, -1, 2, error);
    if (items == NULL || items->len != 2)
        return items != NULL;
    const GradeRow *gold = ((SweepItemRow *)g_ptr_array_index(items, 0))->grade;
    const GradeRow *empty = ((SweepItemRow *)g_ptr_array_index(items, 1))->grade;
    TaskValidity validity = TASK_UNCHECKED; /* a grade that failed says nothing about the task */
    if (gold->state == GRADE_DONE && empty->state == GRADE_DONE)
        validity = gold->verdict == VERDICT_RESOLVED && empty->verdict != VERDICT_RESOLVED
                       ? TASK_VALID
                       : TASK_INVALID;
    return task_set_validity(service->store, gold->task_id, validity, error);
}

gboolean queue_announce(Service *service, const GradeRow *row, GError **error)
{
    json_t *body =
        json_pack("{s:s,s:s,s:s,s:s}", "id", row->public_id, "instance_id", row->instance_id,
                  "state", grade_state_str(row->state), "verdict", verdict_str(row->verdict));
    json_object_set_new(body, "reward",
                        row->state == GRADE_DONE && row->has_reward ? json_real(row->reward)
                                                                    : json_null());
    service_event(service, "grade.finished", row->public_id, body);
    service_changed(service, row->public_id);
    g_autoptr(GPtrArray) sweeps = sweep_grade_finished(service->store, row->id, error);
    if (sweeps == NULL)
        return FALSE;
    for (guint i = 0; i < sweeps->len; i++) {
        const SweepRow *sweep = g_ptr_array_index(sweeps, i);
        gboolean done = sweep->state == SWEEP_DONE;
        service_event(service, done ? "sweep.finished" : "sweep.progress", sweep->public_id,
                      json_pack("{s:s,s:I,s:I,s:s}", "id", sweep->public_id, "done",
                                (json_int_t)sweep->n_done, "total", (json_int_t)sweep->n_total,
                                "state", sweep_state_str(sweep->state)));
        if (done && !close_validation(service, sweep, error))
            return FALSE;
        if (done)
            service_changed(service, sweep->public_id);
    }
    return TRUE;
}

/* The line for the worker; NULL when the grade cannot even be described. */
static json_t *job_json(Service *service, const GradeRow *row, const char *scratch, GError **error)
{
    g_autoptr(TaskRow) task = task_by_id(service->store, row->task_id, error);
    if (task == NULL)
        return NULL;
    g_autoptr(json_t) spec = json_parse(task->spec, strlen(task->spec), error);
    g_autoptr(json_t) request = json_parse(row->request, strlen(row->request), error);
    if (spec == NULL || request == NULL)
        return NULL;
    g_autofree char *patch = NULL;
    if (row->patch_sha != NULL &&
        (patch = blob_path(service->store, row->patch_sha, error)) == NULL)
        return NULL;
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:O,s:s?,s:s,s:O,s:O,s:O,s:b,s:b}", "op", "grade", "id",
                     row->public_id, "attempt", (json_int_t)row->attempt, "state_dir",
                     store_dir(service->store), "scratch", scratch, "task", spec, "patch_file",
                     patch, "mode", row->mode, "limits", json_object_get(request, "limits"),
                     "environments", json_object_get(request, "environments"), "repos",
                     json_object_get(request, "repos"), "allow_degraded",
                     config_bool(service->config, CONFIG_ALLOW_DEGRADED), "run_empty",
                     patch == NULL);
}

static gboolean scratch_make(Service *service, const char *scratch, GError **error)
{
    g_autofree char *parent = g_build_filename(store_dir(service->store), "scratch", NULL);
    (void)g_mkdir_with_parents(parent, 0700);
    AUTO_FD dir = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return error_set_errno(error, errno, "open %s", parent);
    g_autofree char *name = g_path_get_basename(scratch);
    if (!tree_remove(dir, name, error))
        return FALSE;
    if (mkdirat(dir, name, 0700) < 0)
        return error_set_errno(error, errno, "make %s", scratch);
    return TRUE;
}

typedef struct Claim {
    Service *service;
    GradeRow *row;
} Claim;

static Lease *lease_new(Service *service, const GradeRow *row)
{
    Lease *lease = g_new0(Lease, 1);
    lease->grade_id = row->id;
    lease->epoch = row->lease_epoch;
    lease->public_id = g_strdup(row->public_id);
    lease->scratch = g_build_filename(store_dir(service->store), "scratch", row->public_id, NULL);
    lease->phase = g_strdup("preparing");
    lease->queued_ms = row->created_ms;
    lease->started_ms = clock_wall_ms();
    lease->attempt = row->attempt;
    lease->attempts_max = row->attempts_max;
    return lease;
}

/* The claim is on the disk: give the grade to a worker. */
static void claim_committed(gboolean committed, gpointer user_data)
{
    g_autofree Claim *claim = user_data;
    Service *service = claim->service;
    g_autoptr(GradeRow) row = claim->row;
    service->claims_pending--;
    if (!committed) /* it is still queued */
        return;
    Lease *lease = lease_new(service, row);
    g_hash_table_replace(service->leases, lease->public_id, lease);
    g_autoptr(GError) error = NULL;
    g_autoptr(json_t) job = NULL;
    if (scratch_make(service, lease->scratch, &error))
        job = job_json(service, row, lease->scratch, &error);
    if (job == NULL) {
        queue_lost(service, row->public_id, error->message);
        return;
    }
    json_t *limits = json_object_get(job, "limits");
    gint64 wall_s = json_integer_value(json_object_get(limits, "wall_s"));
    guint deadline_s = (guint)(wall_s + config_int(service->config, CONFIG_OVERHEAD_S));
    if (!worker_pool_send(service->pool, row->public_id, job, deadline_s)) {
        lease->requeue_free = TRUE;
        queue_lost(service, row->public_id, "no worker was ready");
    }
}

static gboolean may_start(Service *service)
{
    guint64 floor = (guint64)config_int(service->config, CONFIG_DISK_FLOOR_MIB) << 20;
    return service->pool != NULL && !service->draining && !service->stopping &&
           service_disk_free(service) >= floor;
}

void queue_kick(Service *service)
{
    if (!may_start(service))
        return;
    g_autoptr(GError) error = NULL;
    gint64 n_queued = grade_n_queued(service->store, QUEUE_LOOK_AHEAD, &error);
    gint64 n_ready = (gint64)worker_pool_n_ready(service->pool) - service->claims_pending;
    if (n_queued > n_ready)
        worker_pool_want(service->pool, (guint)(n_queued - MAX(n_ready, 0)));
    for (gint64 i = 0; i < MIN(n_ready, n_queued); i++) {
        GradeRow *row = grade_claim(service->store, &error);
        if (row == NULL)
            break;
        Claim *claim = g_new0(Claim, 1);
        claim->service = service;
        claim->row = row;
        service->claims_pending++;
        service_event(service, "grade.started", row->public_id,
                      json_pack("{s:s,s:s,s:I}", "id", row->public_id, "instance_id",
                                row->instance_id, "attempt", (json_int_t)row->attempt));
        store_after_commit(service->store, claim_committed, claim);
    }
    if (error != NULL)
        g_warning("claim: %s", error->message);
}

void queue_phase(gpointer user_data, const char *id, const char *phase)
{
    Service *service = user_data;
    Lease *lease = g_hash_table_lookup(service->leases, id);
    if (lease == NULL)
        return;
    g_free(lease->phase);
    if (strcmp(phase, "run") == 0)
        lease->phase = g_strdup("running");
    else
        lease->phase = g_strdup(strcmp(phase, "grade") == 0 ? "grading" : "preparing");
}

void queue_ready(gpointer user_data)
{
    queue_kick(user_data);
}

/* Sweeps whose last grade became final in the moment of a crash are closed by counting again. */
static gboolean recover_sweeps(Service *service, GError **error)
{
    g_autoptr(GPtrArray) sweeps = sweep_list(service->store, NULL, STORE_LIST_MAX, error);
    if (sweeps == NULL)
        return FALSE;
    for (guint i = 0; i < sweeps->len; i++) {
        const SweepRow *sweep = g_ptr_array_index(sweeps, i);
        if (sweep->state == SWEEP_RUNNING && !sweep_recount(service->store, sweep->id, error))
            return FALSE;
    }
    return TRUE;
}

gboolean queue_recover(Service *service, GError **error)
{
    guint n_requeued = 0;
    if (!grade_recover(service->store, &n_requeued, error) || !recover_sweeps(service, error) ||
        !store_commit(service->store, error))
        return FALSE;
    AUTO_FD dir = open(store_dir(service->store), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return error_set_errno(error, errno, "open %s", store_dir(service->store));
    if (!tree_remove(dir, "scratch", error))
        return FALSE;
    if (n_requeued > 0)
        g_message("recovered: %u running grades went back to the queue", n_requeued);
    return TRUE;
}

gboolean queue_cancel(Service *service, GradeRow *row, GError **error)
{
    if (!grade_cancel(service->store, row->id, error))
        return FALSE;
    service->counters[COUNT_CANCELLED]++;
    Lease *lease = g_hash_table_lookup(service->leases, row->public_id);
    if (lease != NULL) {
        lease->cancelled = TRUE;
        worker_pool_cancel(service->pool, row->public_id);
    }
    row->state = GRADE_CANCELLED;
    return queue_announce(service, row, error);
}

gboolean queue_retry(Service *service, GradeRow *row, GError **error)
{
    if (!grade_retry(service->store, row->id, error) ||
        !sweep_grade_reopened(service->store, row->id, error))
        return FALSE;
    row->state = GRADE_QUEUED;
    service_event(service, "grade.queued", row->public_id,
                  json_pack("{s:s,s:s}", "id", row->public_id, "instance_id", row->instance_id));
    return TRUE;
}
