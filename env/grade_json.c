/*
 * Rows as JSON objects of the API (docs/protocol.md, "Objects").
 *
 * Invariant: reward is null unless the state is done; what a worker sent under `result` was
 * checked by queue.c before it was stored.
 */
#include "env/grade_json.h"

#include "env/queue.h"

#include <string.h>

static const char *const result_fields[] = {"components", "tests",    "timing", "usage", "outcome",
                                            "box",        "evidence", "files",  "error", NULL};

json_t *time_json(gint64 ms)
{
    if (ms <= 0)
        return json_null();
    g_autoptr(GDateTime) time = g_date_time_new_from_unix_utc(ms / 1000);
    g_autofree char *text = g_date_time_format(time, "%Y-%m-%dT%H:%M:%S");
    g_autofree char *whole = g_strdup_printf("%s.%03dZ", text, (int)(ms % 1000));
    return json_string(whole);
}

static json_t *text_or_null(const char *text)
{
    return text != NULL ? json_string(text) : json_null();
}

static json_t *sha_json(const char *hex)
{
    g_autofree char *text = hex != NULL ? g_strconcat("sha256:", hex, NULL) : NULL;
    return text_or_null(text);
}

static void add_result(json_t *grade, const GradeRow *row)
{
    g_autoptr(json_t) result =
        row->result != NULL ? json_parse(row->result, strlen(row->result), NULL) : NULL;
    for (guint i = 0; result_fields[i] != NULL; i++) {
        json_t *value = json_object_get(result, result_fields[i]);
        json_object_set_new(grade, result_fields[i],
                            value != NULL ? json_incref(value) : json_null());
    }
}

static void add_request(json_t *grade, const GradeRow *row)
{
    g_autoptr(json_t) request = json_parse(row->request, strlen(row->request), NULL);
    static const char *const fields[] = {"limits", "environments", "custom_id", "patch_stats",
                                         NULL};
    for (guint i = 0; fields[i] != NULL; i++) {
        json_t *value = json_object_get(request, fields[i]);
        json_object_set_new(grade, fields[i], value != NULL ? json_incref(value) : json_null());
    }
}

json_t *grade_json(Service *service, const GradeRow *row, gboolean cached)
{
    g_autofree char *task = row->dataset[0] != '\0'
                                ? g_strconcat(row->dataset, "/", row->instance_id, NULL)
                                : g_strdup(row->instance_id);
    const Lease *lease = g_hash_table_lookup(service->leases, row->public_id);
    const char *state = row->state == GRADE_RUNNING && lease != NULL && lease->phase != NULL
                            ? lease->phase
                            : grade_state_str(row->state);
    gboolean done = row->state == GRADE_DONE;
    json_t *grade = json_pack("{s:s,s:s,s:s,s:s,s:s}", "id", row->public_id, "object", "grade",
                              "task", task, "instance_id", row->instance_id, "state", state);
    json_object_set_new(grade, "verdict",
                        row->verdict != VERDICT_NONE && row->state != GRADE_QUEUED
                            ? json_string(verdict_str(row->verdict))
                            : json_null());
    json_object_set_new(grade, "reward",
                        done && row->has_reward ? json_real(row->reward) : json_null());
    json_object_set_new(grade, "mask", json_boolean(row->mask));
    json_object_set_new(grade, "cached", json_boolean(cached));
    json_object_set_new(grade, "attempt", json_integer(row->attempt));
    json_object_set_new(grade, "repeat", json_integer(row->repeat));
    json_object_set_new(grade, "priority", json_integer(row->prio));
    json_object_set_new(grade, "key", sha_json(row->key));
    json_object_set_new(grade, "mode", json_string(row->mode));
    json_object_set_new(grade, "grader", text_or_null(QUEUE_GRADER));
    json_object_set_new(grade, "patch", sha_json(row->patch_sha));
    add_request(grade, row);
    add_result(grade, row);
    json_object_set_new(grade, "created_at", time_json(row->created_ms));
    json_object_set_new(grade, "started_at", time_json(row->started_ms));
    json_object_set_new(grade, "finished_at", time_json(row->finished_ms));
    return grade;
}

json_t *grade_json_item(Service *service, const SweepItemRow *item, const char *sweep_id,
                        gboolean statuses)
{
    json_t *grade = grade_json(service, item->grade, item->cached);
    json_object_set_new(grade, "custom_id", text_or_null(item->custom_id));
    json_object_set_new(grade, "model_name_or_path", json_string(item->model));
    json_object_set_new(grade, "sweep", json_string(sweep_id));
    json_object_set_new(grade, "pos", json_integer(item->pos));
    g_autofree char *cursor = g_strdup_printf("%" G_GINT64_FORMAT "-%" G_GINT64_FORMAT,
                                              item->grade->finished_seq, item->pos);
    json_object_set_new(grade, "cursor", json_string(cursor));
    if (statuses && item->grade->statuses != NULL) {
        json_t *map = json_parse(item->grade->statuses, strlen(item->grade->statuses), NULL);
        json_object_set_new(grade, "statuses", map != NULL ? map : json_null());
    }
    return grade;
}

json_t *task_json(const TaskRow *row)
{
    g_autofree char *sha = g_strconcat("sha256:", row->content_sha256, NULL);
    json_t *task = json_pack(
        "{s:s,s:s,s:s,s:s,s:s,s:s,s:s,s:{s:i,s:i},s:{s:s}}", "id", row->public_id, "object", "task",
        "instance_id", row->instance_id, "dataset", row->dataset, "repo", row->repo, "base_commit",
        row->base_commit, "content_sha256", sha, "tests", "f2p_count", (int)row->n_f2p, "p2p_count",
        (int)row->n_p2p, "validity", "state", task_validity_str(row->validity));
    json_object_set_new(task, "language", text_or_null(row->language));
    json_object_set_new(task, "created_at", time_json(row->created_ms));
    return task;
}

json_t *sweep_json(Service *service, const SweepRow *row, GError **error)
{
    GradeCounts counts;
    if (!sweep_counts(service->store, row->id, &counts, error))
        return NULL;
    json_t *verdicts = json_object();
    for (int i = VERDICT_RESOLVED; i < VERDICT_COUNT; i++) {
        if (counts.by_verdict[i] > 0)
            json_object_set_new(verdicts, verdict_str((Verdict)i),
                                json_integer(counts.by_verdict[i]));
    }
    gint64 end = row->finished_ms > 0 ? row->finished_ms : g_get_real_time() / 1000;
    double minutes = (double)MAX(end - row->created_ms, 1) / 60000.0;
    double rate = (double)(row->n_done - row->n_cached) / minutes;
    json_t *sweep = json_pack(
        "{s:s,s:s,s:s,s:s,s:s,s:s,s:{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I},s:o,s:f,s:f}", "id",
        row->public_id, "object", "sweep", "name", row->name, "dataset", row->dataset, "mode",
        row->mode, "state", sweep_state_str(row->state), "counts", "total",
        (json_int_t)row->n_total, "queued", (json_int_t)counts.by_state[GRADE_QUEUED], "running",
        (json_int_t)counts.by_state[GRADE_RUNNING], "done", (json_int_t)counts.by_state[GRADE_DONE],
        "failed", (json_int_t)counts.by_state[GRADE_FAILED], "cancelled",
        (json_int_t)counts.by_state[GRADE_CANCELLED], "cached", (json_int_t)row->n_cached,
        "rejected", (json_int_t)row->n_rejected, "verdicts", verdicts, "resolved_rate",
        row->n_total > 0 ? (double)counts.by_verdict[VERDICT_RESOLVED] / (double)row->n_total : 0.0,
        "throughput_per_min", rate);
    gint64 left = row->n_total - row->n_done;
    json_object_set_new(sweep, "eta_s",
                        row->state == SWEEP_RUNNING && rate > 0 && row->n_done >= 3
                            ? json_integer((json_int_t)((double)left / rate * 60.0))
                            : json_null());
    json_object_set_new(sweep, "created_at", time_json(row->created_ms));
    json_object_set_new(sweep, "finished_at", time_json(row->finished_ms));
    return sweep;
}

json_t *list_json(json_t *data, guint limit)
{
    gsize n = json_array_size(data);
    json_t *first = json_object_get(json_array_get(data, 0), "id");
    json_t *last = n > 0 ? json_object_get(json_array_get(data, n - 1), "id") : NULL;
    return json_pack("{s:s,s:o,s:O?,s:O?,s:b}", "object", "list", "data", data, "first_id", first,
                     "last_id", last, "has_more", n >= limit);
}
