/*
 * Endpoints of grades.
 *
 * Invariant: a patch that does not apply, a timeout, an empty patch are values in a 200, never an
 * HTTP error; an HTTP error means that nothing was accepted.
 */
#include "env/routes.h"

#include "base/error.h"
#include "env/grade_json.h"
#include "env/queue.h"
#include "env/service.h"

#include <string.h>

#define GROUP_MAX 4096 /* patches of one group */

static const char *const grade_keys[] = {"task",     "patch",   "mode",      "limits",
                                         "priority", "cache",   "custom_id", "environments",
                                         "repos",    "dataset", "run_empty", NULL};
static const char *const group_keys[] = {"task",  "patches",      "mode",  "limits",  "priority",
                                         "cache", "environments", "repos", "dataset", NULL};

/* FALSE: replied with 429. */
static gboolean queue_has_room(Request *req)
{
    gint64 max = config_int(req->service->config, CONFIG_QUEUED_MAX);
    gint64 n = grade_n_queued(req->service->store, max, NULL);
    if (n < max)
        return TRUE;
    request_reply_problem(req, 429, "quota_queued", json_pack("{s:I}", "queued", (json_int_t)n),
                          "%" G_GINT64_FORMAT " grades are queued; the limit is %" G_GINT64_FORMAT,
                          n, max);
    return FALSE;
}

static gboolean ask_read(const json_t *json, GradeAsk *ask, GError **error)
{
    const char *cache = json_opt_str(json, "cache", "use", error);
    ask->mode = cache != NULL ? json_opt_str(json, "mode", "strict", error) : NULL;
    if (cache == NULL || ask->mode == NULL)
        return FALSE;
    if (!queue_mode_ok(ask->mode))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field mode: \"%s\" is not strict, compat-4.1 or compat-5", ask->mode);
    if (!queue_cache_from_str(cache, &ask->cache))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field cache: \"%s\" is not use, refresh, only or off", cache);
    const char *environments = json_opt_str(json, "environments", "", error);
    const char *repos = environments != NULL ? json_opt_str(json, "repos", "", error) : NULL;
    if (environments == NULL || repos == NULL)
        return FALSE;
    if ((environments[0] != '\0' && !g_path_is_absolute(environments)) ||
        (repos[0] != '\0' && !g_path_is_absolute(repos)))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field environments, repos: must be absolute paths");
    ask->environments = environments;
    ask->repos = repos;
    ask->limits = json_object_get(json, "limits");
    if (json_is_null(ask->limits))
        ask->limits = NULL;
    ask->direct = TRUE;
    ask->run_empty = json_is_true(json_object_get(json, "run_empty"));
    return json_opt_int(json, "priority", -100, 100, 0, &ask->prio, error);
}

static TaskRow *ask_task(Request *req, const json_t *json, GError **error)
{
    const char *id = json_want_str(json, "task", error);
    const char *dataset = id != NULL ? json_opt_str(json, "dataset", "", error) : NULL;
    if (id == NULL || dataset == NULL)
        return NULL;
    return task_find(req->service->store, dataset, id, error);
}

/* One patch of a request; the item may have its own custom_id. */
static GradeSubmit submit_one(Request *req, const TaskRow *task, const json_t *item,
                              const GradeAsk *common, GradeRow **ret_row, GError **error)
{
    GradeAsk ask = *common;
    const json_t *patch = json_object_get(item, "patch");
    ask.custom_id = json_string_value(json_object_get(item, "custom_id"));
    if (patch == NULL || !(json_is_string(patch) || json_is_null(patch))) {
        error_set(error, ASSAY_ERROR_INPUT, "field patch: %s",
                  patch == NULL ? "missing" : "must be a string or null");
        return GRADE_SUBMIT_ERROR;
    }
    gsize len = json_is_string(patch) ? json_string_length(patch) : 0;
    if (len > QUEUE_PATCH_MAX) {
        error_set(error, ASSAY_ERROR_INPUT, "field patch: longer than %u bytes", QUEUE_PATCH_MAX);
        return GRADE_SUBMIT_ERROR;
    }
    return queue_submit(req->service, task, len > 0 ? json_string_value(patch) : "", len, &ask,
                        ret_row, error);
}

static void show_now(Request *req)
{
    GError *error = NULL;
    g_autoptr(GradeRow) row = grade_find(req->service->store, req->subject, &error);
    if (row == NULL)
        request_reply_error(req, error);
    else
        request_reply_json(req, grade_state_is_final(row->state) ? 200 : 202,
                           grade_json(req->service, row, FALSE));
}

void api_grade_create(Request *req)
{
    GError *error = NULL;
    GradeAsk ask = {0};
    g_autoptr(GradeRow) row = NULL;
    Store *store = req->service->store;
    if (!queue_has_room(req))
        return;
    g_autoptr(TaskRow) task = NULL;
    if (json_only_keys(req->json, grade_keys, &error) && ask_read(req->json, &ask, &error))
        task = ask_task(req, req->json, &error);
    GradeSubmit did = GRADE_SUBMIT_ERROR;
    if (task != NULL && store_savepoint(store, &error)) {
        did = submit_one(req, task, req->json, &ask, &row, &error);
        store_savepoint_end(store, did != GRADE_SUBMIT_ERROR);
    }
    if (did == GRADE_SUBMIT_ERROR) {
        request_reply_error(req, error);
    } else if (did == GRADE_SUBMIT_ABSENT) {
        request_reply_problem(req, 404, "not_found", NULL, "no such grade is stored");
    } else if (grade_state_is_final(row->state) || request_wait_s(req) == 0) {
        request_reply_json(req, grade_state_is_final(row->state) ? 200 : 202,
                           grade_json(req->service, row, did == GRADE_SUBMIT_CACHED));
    } else {
        req->subject = g_strdup(row->public_id);
        service_wait(req->service, req, row->public_id, request_wait_s(req), show_now);
    }
}

/* All patches, in one unit. */
static json_t *group_submit(Request *req, const TaskRow *task, const GradeAsk *ask,
                            const json_t *patches, gboolean *ret_final, GError **error)
{
    g_autoptr(json_t) data = json_array();
    *ret_final = TRUE;
    for (gsize i = 0; i < json_array_size(patches); i++) {
        g_autoptr(GradeRow) row = NULL;
        const json_t *item = json_array_get(patches, i);
        static const char *const keys[] = {"patch", "custom_id", NULL};
        if (!json_is_object(item)) {
            error_set(error, ASSAY_ERROR_INPUT, "patches[%zu]: must be an object", i);
            return NULL;
        }
        GradeSubmit did = GRADE_SUBMIT_ERROR;
        if (json_only_keys(item, keys, error))
            did = submit_one(req, task, item, ask, &row, error);
        if (did == GRADE_SUBMIT_ERROR) {
            g_prefix_error(error, "patches[%zu]: ", i);
            return NULL;
        }
        if (did == GRADE_SUBMIT_ABSENT) {
            json_array_append_new(data, json_null());
            continue;
        }
        *ret_final = *ret_final && grade_state_is_final(row->state);
        json_t *grade = grade_json(req->service, row, did == GRADE_SUBMIT_CACHED);
        json_object_set(grade, "custom_id", json_object_get(item, "custom_id"));
        json_array_append_new(data, grade);
    }
    return g_steal_pointer(&data);
}

void api_grade_group(Request *req)
{
    GError *error = NULL;
    GradeAsk ask = {0};
    g_autoptr(TaskRow) task = NULL;
    Store *store = req->service->store;
    if (!queue_has_room(req))
        return;
    const json_t *patches = json_object_get(req->json, "patches");
    gsize n = json_array_size(patches);
    if (json_only_keys(req->json, group_keys, &error) && ask_read(req->json, &ask, &error))
        task = ask_task(req, req->json, &error);
    if (task != NULL && (n == 0 || n > GROUP_MAX)) {
        error_set(&error, ASSAY_ERROR_INPUT, "field patches: must be a list of 1 to %d", GROUP_MAX);
        g_clear_pointer(&task, task_row_free);
    }
    json_t *data = NULL;
    gboolean final = FALSE;
    if (task != NULL && store_savepoint(store, &error)) {
        data = group_submit(req, task, &ask, patches, &final, &error);
        store_savepoint_end(store, data != NULL);
    }
    if (data == NULL)
        request_reply_error(req, error);
    else
        request_reply_json(req, final ? 200 : 202, json_pack("{s:o}", "data", data));
}

void api_grades_list(Request *req)
{
    gint64 limit;
    GError *error = NULL;
    GradeState state = GRADE_QUEUED;
    const char *wanted = request_query(req, "state");
    if (wanted != NULL && !grade_state_from_str(wanted, &state)) {
        request_reply_problem(req, 400, "field_invalid", NULL, "query state: unknown state");
        return;
    }
    g_autoptr(GPtrArray) rows = NULL;
    if (request_query_int(req, "limit", 1, STORE_LIST_MAX, 100, &limit, &error))
        rows = grade_list(req->service->store, wanted != NULL ? (gint)state : -1,
                          request_query(req, "after"), (guint)limit, &error);
    if (rows == NULL) {
        request_reply_error(req, error);
        return;
    }
    json_t *data = json_array();
    for (guint i = 0; i < rows->len; i++)
        json_array_append_new(data, grade_json(req->service, g_ptr_array_index(rows, i), FALSE));
    request_reply_json(req, 200, list_json(data, (guint)limit));
}

/* The grade of the path; NULL: replied. */
static GradeRow *grade_of(Request *req)
{
    GError *error = NULL;
    GradeRow *row = grade_find(req->service->store, req->subject, &error);
    if (row == NULL)
        request_reply_error(req, error);
    return row;
}

static void show_final(Request *req)
{
    g_autoptr(GradeRow) row = grade_of(req);
    if (row != NULL)
        request_reply_json(req, 200, grade_json(req->service, row, FALSE));
}

void api_grade_show(Request *req)
{
    g_autoptr(GradeRow) row = grade_of(req);
    if (row == NULL)
        return;
    guint wait_s = request_wait_s(req);
    if (wait_s > 0 && !grade_state_is_final(row->state))
        service_wait(req->service, req, row->public_id, wait_s, show_final);
    else
        request_reply_json(req, 200, grade_json(req->service, row, FALSE));
}

/* The bytes of a kept file; NULL: replied. */
static GBytes *file_of(Request *req, const GradeRow *row, const char *name)
{
    GError *error = NULL;
    g_autoptr(json_t) result =
        row->result != NULL ? json_parse(row->result, strlen(row->result), NULL) : NULL;
    const json_t *file = json_object_get(json_object_get(result, "files"), name);
    const char *sha = json_string_value(json_object_get(file, "sha256"));
    if (sha == NULL) {
        request_reply_problem(req, 404, "not_found", NULL, "grade %s has no %s", row->public_id,
                              name);
        return NULL;
    }
    GBytes *bytes = blob_get(req->service->store, sha, &error);
    if (bytes == NULL)
        request_reply_error(req, error);
    return bytes;
}

static gsize tail_start(const char *data, gsize len, gint64 lines)
{
    gsize at = len;
    while (at > 0 && lines >= 0) {
        if (data[at - 1] == '\n' && at != len && --lines < 0)
            break;
        if (at == len && lines == 0)
            break;
        at--;
        if (at > 0 && data[at - 1] == '\n' && --lines == 0)
            break;
    }
    return at;
}

void api_grade_log(Request *req)
{
    GError *error = NULL;
    gint64 from = 0, tail = -1;
    g_autoptr(GradeRow) row = grade_of(req);
    if (row == NULL)
        return;
    if (!request_query_int(req, "from_byte", 0, G_MAXINT64, 0, &from, &error) ||
        !request_query_int(req, "tail_lines", 0, 1000000, -1, &tail, &error)) {
        request_reply_error(req, error);
        return;
    }
    g_autoptr(GBytes) bytes = file_of(req, row, "test_output.txt");
    if (bytes == NULL)
        return;
    gsize len;
    const char *data = g_bytes_get_data(bytes, &len);
    gsize start = MIN((gsize)from, len);
    if (tail >= 0)
        start = MAX(start, tail_start(data, len, tail));
    g_autoptr(GBytes) part = g_bytes_new_from_bytes(bytes, start, len - start);
    request_reply_bytes(req, 200, "text/plain; charset=utf-8", part);
}

void api_grade_files(Request *req)
{
    char *slash = strchr(req->subject, '/');
    g_autofree char *name = g_strdup(slash + strlen("/files/"));
    *slash = '\0';
    g_autoptr(GradeRow) row = grade_of(req);
    g_autoptr(GBytes) bytes = row != NULL ? file_of(req, row, name) : NULL;
    if (bytes != NULL)
        request_reply_bytes(req, 200, "application/octet-stream", bytes);
}

/* "f2p", "p2p" or "other" for a test name. */
static const char *list_of(const json_t *f2p, const json_t *p2p, const char *name)
{
    if (json_object_get(f2p, name) != NULL)
        return "f2p";
    return json_object_get(p2p, name) != NULL ? "p2p" : "other";
}

/* The names of a list field of a task row (a JSON list, or a string that holds one) as a set. */
static json_t *names_of(const json_t *spec, const char *field)
{
    json_t *names = json_object();
    const json_t *list = json_object_get(spec, field);
    g_autoptr(json_t) parsed = NULL;
    if (json_is_string(list))
        list = parsed = json_parse(json_string_value(list), json_string_length(list), NULL);
    for (gsize i = 0; i < json_array_size(list); i++)
        json_object_set_new(names, json_string_value(json_array_get(list, i)), json_true());
    return names;
}

static void add_test(GString *lines, const char *name, const char *list, const char *status)
{
    g_autoptr(json_t) line =
        json_pack("{s:s,s:s,s:s}", "name", name, "list", list, "status", status);
    json_object_set_new(line, "expected",
                        strcmp(list, "other") == 0 ? json_null() : json_string("PASSED"));
    g_autofree char *text = json_print(line);
    g_string_append_printf(lines, "%s\n", text);
}

static void add_missing(GString *lines, json_t *names, const char *list, const json_t *statuses)
{
    const char *name;
    json_t *value;
    json_object_foreach(names, name, value)
    {
        if (json_object_get(statuses, name) == NULL)
            add_test(lines, name, list, "MISSING");
    }
}

void api_grade_tests(Request *req)
{
    GError *error = NULL;
    g_autoptr(GradeRow) row = grade_of(req);
    if (row == NULL)
        return;
    g_autoptr(TaskRow) task = task_by_id(req->service->store, row->task_id, &error);
    if (task == NULL) {
        request_reply_error(req, error);
        return;
    }
    g_autoptr(json_t) spec = json_parse(task->spec, strlen(task->spec), NULL);
    g_autoptr(json_t) statuses =
        row->statuses != NULL ? json_parse(row->statuses, strlen(row->statuses), NULL) : NULL;
    g_autoptr(json_t) f2p = names_of(spec, "FAIL_TO_PASS");
    g_autoptr(json_t) p2p = names_of(spec, "PASS_TO_PASS");
    g_autoptr(GString) lines = g_string_new(NULL);
    const char *name;
    json_t *status;
    json_object_foreach(statuses, name, status)
    {
        add_test(lines, name, list_of(f2p, p2p, name), json_string_value(status));
    }
    if (row->state == GRADE_DONE) {
        add_missing(lines, f2p, "f2p", statuses);
        add_missing(lines, p2p, "p2p", statuses);
    }
    request_reply_text(req, 200, "application/x-ndjson", lines->str);
}

static const char *const explanations[VERDICT_COUNT] = {
    [VERDICT_NONE] = "nothing has been found yet",
    [VERDICT_RESOLVED] = "every test that had to pass passed",
    [VERDICT_UNRESOLVED] = "some test that had to pass did not",
    [VERDICT_PATCH_FAILED] = "the patch did not apply",
    [VERDICT_NO_TESTS_RAN] = "no test of the lists ran",
    [VERDICT_TIMED_OUT] = "the tests did not end within the wall limit",
    [VERDICT_OUT_OF_MEMORY] = "the tests used more memory than the limit",
    [VERDICT_DISK_FULL] = "the tests wrote more than the limit",
    [VERDICT_SUSPECT] = "there is evidence of tampering",
};

/* The first test that had to pass and did not, or NULL (taken). */
static json_t *first_failure(const json_t *result)
{
    json_t *unexpected = json_object_get(json_object_get(result, "tests"), "unexpected");
    json_t *first = json_array_get(unexpected, 0);
    return first != NULL ? json_incref(first) : json_null();
}

void api_grade_explain(Request *req)
{
    g_autoptr(GradeRow) row = grade_of(req);
    if (row == NULL)
        return;
    g_autoptr(json_t) result =
        row->result != NULL ? json_parse(row->result, strlen(row->result), NULL) : NULL;
    json_t *evidence = json_object_get(result, "evidence");
    json_t *why = json_object_get(result, "error");
    const char *detail = json_string_value(json_object_get(why, "detail"));
    const char *summary = row->state == GRADE_FAILED && detail != NULL
                              ? detail
                              : explanations[row->verdict < VERDICT_COUNT ? row->verdict : 0];
    if (json_is_array(evidence) &&
        g_strcmp0(json_string_value(json_object_get(json_array_get(evidence, 0), "code")),
                  "empty_patch") == 0)
        summary = "the patch is empty: unresolved without running";
    g_autofree char *reproduce = g_strdup_printf("assay grade %s PATCH --mode %s --cache refresh",
                                                 row->instance_id, row->mode);
    request_reply_json(req, 200,
                       json_pack("{s:s,s:s,s:s,s:s,s:o,s:O?,s:O?,s:s}", "id", row->public_id,
                                 "state", grade_state_str(row->state), "verdict",
                                 verdict_str(row->verdict), "summary", summary, "first_failure",
                                 first_failure(result), "evidence", evidence, "error", why,
                                 "reproduce", reproduce));
}

static void act(Request *req, gboolean (*action)(Service *, GradeRow *, GError **))
{
    GError *error = NULL;
    g_autoptr(GradeRow) row = grade_of(req);
    if (row == NULL)
        return;
    gint64 id = row->id;
    gboolean ok = store_savepoint(req->service->store, &error);
    if (ok) {
        ok = action(req->service, row, &error);
        store_savepoint_end(req->service->store, ok);
    }
    g_autoptr(GradeRow) now = ok ? grade_by_id(req->service->store, id, &error) : NULL;
    if (now == NULL)
        request_reply_error(req, error);
    else
        request_reply_json(req, 200, grade_json(req->service, now, FALSE));
}

void api_grade_cancel(Request *req)
{
    act(req, queue_cancel);
}

void api_grade_retry(Request *req)
{
    act(req, queue_retry);
}
