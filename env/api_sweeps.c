/*
 * Endpoints of sweeps: NDJSON predictions in, NDJSON grades out.
 *
 * 1. A sweep is accepted whole, in one unit of the store: its good lines, and the list of lines
 *    that were rejected and why.
 * 2. Results are streamed in finish order from a cursor; a slow reader costs a cursor.
 */
#include "env/routes.h"

#include "base/error.h"
#include "env/grade_json.h"
#include "env/queue.h"
#include "env/service.h"

#include <string.h>

#define RESULTS_PAGE 64
#define REJECTED_MAX 1000 /* reported lines; more are only counted */
#define SWEEP_LINES  200000

typedef struct SweepBuild {
    Request *req;
    SweepRow *sweep;
    GradeAsk ask;
    const char *dataset;
    gboolean stop_on_error;
    gint64 n_items, n_cached, n_duplicate, n_empty;
    json_t *rejected;
} SweepBuild;

static void reject(SweepBuild *build, guint line, const char *instance_id, const char *code,
                   const char *detail)
{
    build->sweep->n_rejected++;
    if (json_array_size(build->rejected) >= REJECTED_MAX)
        return;
    g_autofree char *valid = g_utf8_make_valid(detail, -1);
    json_array_append_new(build->rejected,
                          json_pack("{s:i,s:s?,s:s,s:s}", "line", (int)line, "instance_id",
                                    instance_id, "code", code, "detail", valid));
}

/* Submits one prediction. FALSE: the store failed. */
static gboolean add_grade(SweepBuild *build, const TaskRow *task, const json_t *prediction,
                          GError **error)
{
    Service *service = build->req->service;
    const json_t *patch = json_object_get(prediction, "model_patch");
    const char *custom_id = json_string_value(json_object_get(prediction, "custom_id"));
    const char *model = json_string_value(json_object_get(prediction, "model_name_or_path"));
    gsize len = json_is_string(patch) ? json_string_length(patch) : 0;
    g_autoptr(GradeRow) row = NULL;
    GradeSubmit did = queue_submit(service, task, len > 0 ? json_string_value(patch) : "", len,
                                   &build->ask, &row, error);
    if (did == GRADE_SUBMIT_ERROR)
        return FALSE;
    if (did == GRADE_SUBMIT_ABSENT)
        return TRUE;
    build->n_cached += did == GRADE_SUBMIT_CACHED;
    build->n_duplicate += did == GRADE_SUBMIT_ATTACHED;
    build->n_empty += len == 0;
    return sweep_item_put(service->store, build->sweep->id, build->n_items++, custom_id,
                          model != NULL ? model : "unknown", row->id, did == GRADE_SUBMIT_CACHED,
                          error);
}

static gboolean prediction_check(const json_t *prediction, GError **error)
{
    if (!json_is_object(prediction))
        return error_set(error, ASSAY_ERROR_INPUT, "must be a JSON object");
    if (json_want_str(prediction, "instance_id", error) == NULL)
        return FALSE;
    const json_t *patch = json_object_get(prediction, "model_patch");
    if (patch == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "field model_patch: missing");
    if (!json_is_string(patch) && !json_is_null(patch))
        return error_set(error, ASSAY_ERROR_INPUT, "field model_patch: must be a string or null");
    if (json_string_length(patch) > QUEUE_PATCH_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "field model_patch: longer than %u bytes",
                         QUEUE_PATCH_MAX);
    return json_opt_str(prediction, "model_name_or_path", "", error) != NULL &&
           json_opt_str(prediction, "custom_id", "", error) != NULL;
}

/* One line. FALSE: the store failed. */
static gboolean add_line(SweepBuild *build, const char *text, gsize len, guint line, GError **error)
{
    g_autoptr(GError) why = NULL;
    g_autoptr(json_t) prediction = json_parse(text, len, &why);
    const char *id = json_string_value(json_object_get(prediction, "instance_id"));
    if (prediction == NULL || !prediction_check(prediction, &why)) {
        reject(build, line, id, prediction == NULL ? "json_invalid" : "field_invalid",
               why->message);
        return TRUE;
    }
    g_autoptr(TaskRow) task = task_find(build->req->service->store, build->dataset, id, &why);
    if (task == NULL) {
        if (g_error_matches(why, ASSAY_ERROR, ASSAY_ERROR_SYSTEM)) {
            g_propagate_error(error, g_steal_pointer(&why));
            return FALSE;
        }
        reject(build, line, id, "task_unknown", why->message);
        return TRUE;
    }
    GError *failed = NULL;
    if (add_grade(build, task, prediction, &failed))
        return TRUE;
    if (g_error_matches(failed, ASSAY_ERROR, ASSAY_ERROR_INPUT)) {
        reject(build, line, id, "task_invalid", failed->message);
        g_error_free(failed);
        return TRUE;
    }
    g_propagate_error(error, failed);
    return FALSE;
}

static gboolean add_lines(SweepBuild *build, GError **error)
{
    gsize len;
    const char *at = g_bytes_get_data(build->req->body, &len);
    const char *end = at + len;
    for (guint line = 1; at < end; line++) {
        const char *next = memchr(at, '\n', (gsize)(end - at));
        gsize line_len = (gsize)((next != NULL ? next : end) - at);
        gboolean blank = TRUE;
        for (gsize i = 0; i < line_len && blank; i++)
            blank = g_ascii_isspace(at[i]);
        if (line > SWEEP_LINES)
            return error_set(error, ASSAY_ERROR_INPUT, "more than %d lines", SWEEP_LINES);
        if (!blank && !add_line(build, at, line_len, line, error))
            return FALSE;
        at += line_len + 1;
    }
    return TRUE;
}

static gboolean build_ask(SweepBuild *build, GError **error)
{
    Request *req = build->req;
    const char *mode = request_query(req, "mode");
    const char *cache = request_query(req, "cache");
    const char *on_error = request_query(req, "on_error");
    build->ask.mode = mode != NULL ? mode : "strict";
    build->dataset = request_query(req, "dataset");
    build->ask.environments = request_query(req, "environments");
    build->ask.repos = request_query(req, "repos");
    build->ask.run_empty = g_strcmp0(request_query(req, "run_empty"), "1") == 0;
    build->stop_on_error = g_strcmp0(on_error, "stop") == 0;
    if (!queue_mode_ok(build->ask.mode))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "query mode: \"%s\" is not strict, compat-4.1 or compat-5", mode);
    if (cache != NULL && !queue_cache_from_str(cache, &build->ask.cache))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "query cache: \"%s\" is not use, refresh, only or off", cache);
    if (on_error != NULL && !build->stop_on_error && strcmp(on_error, "skip") != 0)
        return error_set(error, ASSAY_ERROR_INPUT, "query on_error: \"%s\" is not stop or skip",
                         on_error);
    const char *paths[] = {build->ask.environments, build->ask.repos};
    for (guint i = 0; i < G_N_ELEMENTS(paths); i++) {
        if (paths[i] != NULL && paths[i][0] != '\0' && !g_path_is_absolute(paths[i]))
            return error_set(error, ASSAY_ERROR_INPUT,
                             "query environments, repos: must be absolute paths");
    }
    return request_query_int(req, "priority", -100, 100, 0, &build->ask.prio, error);
}

/* Everything in one unit. */
static gboolean build_sweep(SweepBuild *build, GError **error)
{
    Store *store = build->req->service->store;
    SweepRow *sweep = build->sweep;
    sweep->name = g_strdup(
        request_query(build->req, "name") != NULL ? request_query(build->req, "name") : "sweep");
    sweep->dataset = g_strdup(build->dataset != NULL ? build->dataset : "");
    sweep->mode = g_strdup(build->ask.mode);
    sweep->options = g_strdup("{}");
    return sweep_put(store, sweep, error) && add_lines(build, error) &&
           sweep_set_rejected(store, sweep->id, sweep->n_rejected, error) &&
           sweep_recount(store, sweep->id, error);
}

void api_sweep_create(Request *req)
{
    GError *error = NULL;
    Store *store = req->service->store;
    g_autoptr(SweepRow) sweep = g_new0(SweepRow, 1);
    g_autoptr(json_t) rejected = json_array();
    SweepBuild build = {.req = req, .sweep = sweep, .rejected = rejected};
    gboolean ok = build_ask(&build, &error) && store_savepoint(store, &error);
    if (!ok) {
        request_reply_error(req, error);
        return;
    }
    ok = build_sweep(&build, &error);
    gboolean refuse = ok && ((build.stop_on_error && sweep->n_rejected > 0) ||
                             (build.n_items == 0 && sweep->n_rejected > 0));
    store_savepoint_end(store, ok && !refuse);
    if (!ok) {
        request_reply_error(req, error);
    } else if (refuse) {
        request_reply_problem(
            req, 400, "ndjson_line_invalid", json_pack("{s:O}", "rejected", rejected),
            "%" G_GINT64_FORMAT " lines are rejected; nothing was accepted", sweep->n_rejected);
    } else {
        service_changed(req->service, sweep->public_id);
        request_reply_json(req, 202,
                           json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:O}", "id", sweep->public_id,
                                     "object", "sweep", "total", (json_int_t)build.n_items,
                                     "duplicate", (json_int_t)build.n_duplicate, "cached",
                                     (json_int_t)build.n_cached, "empty", (json_int_t)build.n_empty,
                                     "rejected_count", (json_int_t)sweep->n_rejected, "rejected",
                                     rejected));
    }
}

void api_sweeps_list(Request *req)
{
    gint64 limit;
    GError *error = NULL;
    g_autoptr(GPtrArray) rows = NULL;
    if (request_query_int(req, "limit", 1, STORE_LIST_MAX, 100, &limit, &error))
        rows = sweep_list(req->service->store, request_query(req, "after"), (guint)limit, &error);
    g_autoptr(json_t) data = json_array();
    for (guint i = 0; rows != NULL && i < rows->len; i++) {
        json_t *sweep = sweep_json(req->service, g_ptr_array_index(rows, i), &error);
        if (sweep == NULL)
            break;
        json_array_append_new(data, sweep);
    }
    if (error != NULL)
        request_reply_error(req, error);
    else
        request_reply_json(req, 200, list_json(g_steal_pointer(&data), (guint)limit));
}

/* The sweep of the path; NULL: replied. */
static SweepRow *sweep_of(Request *req)
{
    GError *error = NULL;
    SweepRow *row = sweep_find(req->service->store, req->subject, &error);
    if (row == NULL)
        request_reply_error(req, error);
    return row;
}

static void sweep_reply(Request *req, const SweepRow *row)
{
    GError *error = NULL;
    json_t *sweep = sweep_json(req->service, row, &error);
    if (sweep == NULL)
        request_reply_error(req, error);
    else
        request_reply_json(req, 200, sweep);
}

static void sweep_show_now(Request *req)
{
    g_autoptr(SweepRow) row = sweep_of(req);
    if (row != NULL)
        sweep_reply(req, row);
}

void api_sweep_show(Request *req)
{
    g_autoptr(SweepRow) row = sweep_of(req);
    if (row == NULL)
        return;
    guint wait_s = request_wait_s(req);
    if (wait_s > 0 && row->state == SWEEP_RUNNING)
        service_wait(req->service, req, row->public_id, wait_s, sweep_show_now);
    else
        sweep_reply(req, row);
}

/* --- results */

typedef struct Results {
    gint64 sweep_id;
    char *public_id;
    gint64 seq, pos;
    gboolean follow, statuses, input_order;
    gint64 left;
} Results;

static void results_free(gpointer data)
{
    Results *results = data;
    g_free(results->public_id);
    g_free(results);
}

static GPtrArray *results_page(Request *req, Results *results, GError **error)
{
    guint page = (guint)MIN(results->left, RESULTS_PAGE);
    if (results->input_order)
        return sweep_items(req->service->store, results->sweep_id, results->pos, page, error);
    return sweep_results(req->service->store, results->sweep_id, results->seq, results->pos, page,
                         results->statuses, error);
}

static void results_send(Request *req, Results *results, const SweepItemRow *item)
{
    g_autoptr(json_t) line =
        grade_json_item(req->service, item, results->public_id, results->statuses);
    g_autofree char *text = json_print(line);
    request_stream_write(req, text, strlen(text));
    request_stream_write(req, "\n", 1);
    results->seq = item->grade->finished_seq;
    results->pos = item->pos;
    results->left--;
}

/* StreamPumpFn. Reading while the turn's transaction is open would show what may be undone. */
static void results_pump(Request *req, gpointer user_data)
{
    Results *results = user_data;
    g_autoptr(GError) error = NULL;
    if (store_is_dirty(req->service->store)) {
        req->service->events_new = TRUE; /* ask again after the commit */
        return;
    }
    while (!request_stream_full(req)) {
        g_autoptr(GPtrArray) items = results_page(req, results, &error);
        if (items == NULL) {
            g_warning("results: %s", error->message);
            request_stream_end(req);
            return;
        }
        for (guint i = 0; i < items->len; i++)
            results_send(req, results, g_ptr_array_index(items, i));
        if (items->len > 0 && results->left > 0)
            continue;
        g_autoptr(SweepRow) sweep = sweep_find(req->service->store, results->public_id, NULL);
        if (!results->follow || results->left <= 0 || sweep == NULL ||
            sweep->state != SWEEP_RUNNING)
            request_stream_end(req);
        return;
    }
}

void api_sweep_results(Request *req)
{
    g_autoptr(SweepRow) row = sweep_of(req);
    if (row == NULL)
        return;
    GError *error = NULL;
    gint64 limit;
    if (!request_query_int(req, "limit", 1, G_MAXINT32, G_MAXINT32, &limit, &error)) {
        request_reply_error(req, error);
        return;
    }
    Results *results = g_new0(Results, 1);
    results->sweep_id = row->id;
    results->public_id = g_strdup(row->public_id);
    results->follow = g_strcmp0(request_query(req, "follow"), "1") == 0;
    results->statuses = g_strcmp0(request_query(req, "statuses"), "1") == 0;
    results->input_order = g_strcmp0(request_query(req, "order"), "input") == 0;
    results->pos = -1;
    results->left = limit;
    const char *after = request_query(req, "after");
    if (after != NULL) {
        g_auto(GStrv) parts = g_strsplit(after, "-", 2);
        if (parts[0] == NULL || parts[1] == NULL ||
            !g_ascii_string_to_signed(parts[0], 10, 0, G_MAXINT64, &results->seq, NULL) ||
            !g_ascii_string_to_signed(parts[1], 10, 0, G_MAXINT64, &results->pos, NULL)) {
            results_free(results);
            request_reply_problem(req, 400, "field_invalid", NULL,
                                  "query after: must be the cursor of a line");
            return;
        }
    }
    service_stream_add(req->service, req);
    request_stream_start(req, "application/x-ndjson", results_pump, results, results_free);
}

/* --- cancel */

static gboolean cancel_grades(Request *req, const GArray *ids, GError **error)
{
    for (guint i = 0; i < ids->len; i++) {
        gint64 id = g_array_index(ids, gint64, i);
        g_autoptr(GradeRow) row = grade_by_id(req->service->store, id, error);
        if (row == NULL || !queue_cancel(req->service, row, error))
            return FALSE;
    }
    return TRUE;
}

void api_sweep_cancel(Request *req)
{
    GError *error = NULL;
    Store *store = req->service->store;
    g_autoptr(SweepRow) row = sweep_of(req);
    if (row == NULL)
        return;
    gboolean ok = store_savepoint(store, &error);
    if (ok) {
        g_autoptr(GArray) ids = sweep_cancel(store, row->id, &error);
        ok = ids != NULL && cancel_grades(req, ids, &error);
        store_savepoint_end(store, ok);
    }
    if (!ok) {
        request_reply_error(req, error);
        return;
    }
    service_event(req->service, "sweep.finished", row->public_id,
                  json_pack("{s:s,s:s}", "id", row->public_id, "state", "cancelled"));
    service_changed(req->service, row->public_id);
    sweep_show_now(req);
}
