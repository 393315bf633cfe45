/*
 * Endpoints of tasks: import, list, show, validate.
 *
 * 1. A row is stored whole or not at all; what is wrong with a bad one is reported with its line.
 * 2. on_error=stop stores nothing when any row is bad; skip (the default) stores the good rows.
 */
#include "env/routes.h"

#include "base/error.h"
#include "env/grade_json.h"
#include "env/queue.h"
#include "env/service.h"
#include "tasks/dataset.h"
#include "tasks/task.h"

#include <string.h>

#define IMPORT_SKIPPED_MAX 1000 /* reported bad rows; more are only counted */

typedef struct Import {
    Service *service;
    const char *dataset;
    gboolean replace;
    gint64 n_new, n_same, n_skipped;
    json_t *skipped;
    GError *failure; /* the store failed: stop */
} Import;

static void import_skip(Import *import, guint line, const char *instance_id, const char *code,
                        const char *detail)
{
    import->n_skipped++;
    if (json_array_size(import->skipped) >= IMPORT_SKIPPED_MAX)
        return;
    g_autofree char *valid = g_utf8_make_valid(detail, -1);
    json_array_append_new(import->skipped,
                          json_pack("{s:i,s:s?,s:s,s:s}", "line", (int)line, "instance_id",
                                    instance_id, "code", code, "detail", valid));
}

static TaskRow *task_row_new(const Task *task, const char *dataset)
{
    TaskRow *row = g_new0(TaskRow, 1);
    const char *own = task->dataset != NULL ? task->dataset : "";
    row->dataset = g_strdup(dataset != NULL && dataset[0] != '\0' ? dataset : own);
    row->instance_id = g_strdup(task->instance_id);
    row->repo = g_strdup(task->repo);
    row->base_commit = g_strdup(task->base_commit);
    row->language = g_strdup(task->language);
    row->content_sha256 = task_digest(task);
    row->spec = json_print(task->json);
    row->n_f2p = task->fail_to_pass != NULL ? g_strv_length(task->fail_to_pass) : 0;
    row->n_p2p = task->pass_to_pass != NULL ? g_strv_length(task->pass_to_pass) : 0;
    return row;
}

/* DatasetRowFn. */
static gboolean import_row(Task *task, guint line, const GError *why, gpointer user_data)
{
    Import *import = user_data;
    if (task == NULL) {
        import_skip(import, line, NULL, "task_invalid", why->message);
        return TRUE;
    }
    g_autoptr(TaskRow) row = task_row_new(task, import->dataset);
    switch (task_put(import->service->store, row, import->replace, &import->failure)) {
    case TASK_PUT_ERROR:
        return FALSE;
    case TASK_PUT_NEW:
        import->n_new++;
        break;
    case TASK_PUT_SAME:
        import->n_same++;
        break;
    case TASK_PUT_DIFFERS:
        import_skip(import, line, task->instance_id, "task_exists_differs",
                    "a task of this name has other content; import with replace=1");
        break;
    }
    return TRUE;
}

static void import_lines(Import *import, GBytes *body)
{
    gsize len;
    const char *at = g_bytes_get_data(body, &len);
    const char *end = at + len;
    for (guint line = 1; at < end; line++) {
        const char *next = memchr(at, '\n', (gsize)(end - at));
        gsize line_len = (gsize)((next != NULL ? next : end) - at);
        g_autoptr(GError) why = NULL;
        g_autoptr(Task) task = NULL;
        if (line_len > 0 && strspn(at, " \t\r\n") < line_len) {
            g_autoptr(json_t) row = json_parse(at, line_len, &why);
            if (row != NULL)
                task = task_from_json(row, &why);
            if (!import_row(task, line, why, import))
                return;
        }
        at += line_len + 1;
    }
}

/* {"path", "spec_map"?, "dataset"?} instead of rows. */
static gboolean import_path(Request *req, Import *import, const json_t *ask, GError **error)
{
    static const char *const keys[] = {"path", "spec_map", "dataset", NULL};
    const char *path = json_want_str(ask, "path", error);
    if (path == NULL || !json_only_keys(ask, keys, error))
        return FALSE;
    const char *spec_map = json_string_value(json_object_get(ask, "spec_map"));
    const char *dataset = json_string_value(json_object_get(ask, "dataset"));
    if (!g_path_is_absolute(path) || (spec_map != NULL && !g_path_is_absolute(spec_map)))
        return error_set(error, ASSAY_ERROR_INPUT, "field path: must be absolute");
    if (dataset != NULL && request_query(req, "dataset") == NULL)
        import->dataset = dataset;
    return dataset_read(path, spec_map, import_row, import, error);
}

static void import_reply(Request *req, Import *import, gboolean keep)
{
    json_t *reply =
        json_pack("{s:I,s:I,s:I,s:b,s:O}", "imported", (json_int_t)import->n_new, "unchanged",
                  (json_int_t)import->n_same, "rejected", (json_int_t)import->n_skipped, "stored",
                  keep, "skipped", import->skipped);
    request_reply_json(req, 200, reply);
}

void api_tasks_import(Request *req)
{
    Store *store = req->service->store;
    const char *dry = request_query(req, "dry_run");
    const char *on_error = request_query(req, "on_error");
    g_autoptr(json_t) skipped = json_array();
    g_autoptr(json_t) ask = NULL;
    Import import = {.service = req->service,
                     .dataset = request_query(req, "dataset"),
                     .replace = g_strcmp0(request_query(req, "replace"), "1") == 0,
                     .skipped = skipped};
    GError *error = NULL;
    gsize len;
    const char *text = g_bytes_get_data(req->body, &len);
    if (!store_savepoint(store, &error)) {
        request_reply_error(req, error);
        return;
    }
    /* A body that is one object with "path" asks for a file; all else is rows. */
    if (len > 0 && len < 65536)
        ask = json_parse(text, len, NULL);
    gboolean ok = TRUE;
    if (json_object_get(ask, "path") != NULL)
        ok = import_path(req, &import, ask, &error);
    else
        import_lines(&import, req->body);
    if (import.failure != NULL) {
        g_clear_error(&error);
        error = import.failure;
        ok = FALSE;
    }
    gboolean keep = ok && g_strcmp0(dry, "1") != 0 &&
                    !(import.n_skipped > 0 && g_strcmp0(on_error, "stop") == 0);
    store_savepoint_end(store, keep);
    if (ok)
        import_reply(req, &import, keep);
    else
        request_reply_error(req, error);
}

void api_tasks_list(Request *req)
{
    gint64 limit;
    GError *error = NULL;
    g_autoptr(GPtrArray) rows = NULL;
    if (request_query_int(req, "limit", 1, STORE_LIST_MAX, 100, &limit, &error))
        rows = task_list(req->service->store, request_query(req, "dataset"),
                         request_query(req, "repo"), request_query(req, "after"), (guint)limit,
                         &error);
    if (rows == NULL) {
        request_reply_error(req, error);
        return;
    }
    json_t *data = json_array();
    for (guint i = 0; i < rows->len; i++)
        json_array_append_new(data, task_json(g_ptr_array_index(rows, i)));
    request_reply_json(req, 200, list_json(data, (guint)limit));
}

void api_task_show(Request *req)
{
    GError *error = NULL;
    g_autoptr(TaskRow) row = task_find(req->service->store, NULL, req->subject, &error);
    if (row == NULL) {
        request_reply_error(req, error);
        return;
    }
    json_t *task = task_json(row);
    const char *include = request_query(req, "include");
    if (include != NULL) {
        g_autoptr(json_t) spec = json_parse(row->spec, strlen(row->spec), NULL);
        g_auto(GStrv) names = g_strsplit(include, ",", -1);
        for (guint i = 0; names[i] != NULL; i++) {
            if (strcmp(names[i], "row") == 0)
                json_object_set(task, "row", spec);
            json_t *value = json_object_get(spec, names[i]);
            if (value != NULL)
                json_object_set(task, names[i], value);
        }
    }
    request_reply_json(req, 200, task);
}

/* One item of a validation sweep. */
static gboolean validate_item(Request *req, const TaskRow *task, gint64 sweep_id, gint64 pos,
                              const char *kind, const char *patch, GError **error)
{
    GradeAsk ask = {.mode = "strict", .cache = GRADE_CACHE_USE, .run_empty = TRUE};
    g_autoptr(GradeRow) row = NULL;
    GradeSubmit did = queue_submit(req->service, task, patch, patch != NULL ? strlen(patch) : 0,
                                   &ask, &row, error);
    if (did == GRADE_SUBMIT_ERROR || row == NULL)
        return FALSE;
    return sweep_item_put(req->service->store, sweep_id, pos, kind, kind, row->id,
                          did == GRADE_SUBMIT_CACHED, error);
}

static gboolean validate_sweep(Request *req, const TaskRow *task, SweepRow *sweep, GError **error)
{
    g_autoptr(json_t) spec = json_parse(task->spec, strlen(task->spec), error);
    if (spec == NULL || !sweep_put(req->service->store, sweep, error))
        return FALSE;
    const char *gold = json_string_value(json_object_get(spec, "patch"));
    return validate_item(req, task, sweep->id, 0, "gold", gold, error) &&
           validate_item(req, task, sweep->id, 1, "empty", NULL, error) &&
           task_set_validity(req->service->store, task->id, TASK_CHECKING, error) &&
           sweep_recount(req->service->store, sweep->id, error);
}

void api_task_validate(Request *req)
{
    GError *error = NULL;
    Store *store = req->service->store;
    g_autoptr(TaskRow) task = task_find(store, NULL, req->subject, &error);
    g_autoptr(SweepRow) sweep = g_new0(SweepRow, 1);
    gboolean ok = task != NULL && store_savepoint(store, &error);
    if (ok) {
        sweep->name = g_strconcat("validate ", task->instance_id, NULL);
        sweep->dataset = g_strdup(task->dataset);
        sweep->mode = g_strdup("strict");
        sweep->options = g_strdup(QUEUE_VALIDATION);
        ok = validate_sweep(req, task, sweep, &error);
        store_savepoint_end(store, ok);
    }
    if (!ok) {
        request_reply_error(req, error);
        return;
    }
    service_changed(req->service, sweep->public_id);
    request_reply_json(
        req, 202,
        json_pack("{s:s,s:s,s:i}", "id", sweep->public_id, "object", "sweep", "total", 2));
}
