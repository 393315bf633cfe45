/*
 * Routing: from method and path to a handler, and what is refused before any handler runs.
 *
 * 1. Unknown routes, methods, query keys, oversized or malformed bodies end here, as problems.
 * 2. A POST that creates and carries an Idempotency-Key is answered from the store when its key
 *    is known: the same body gets the first answer, another body gets 422.
 */
#include "env/routes.h"

#include "base/digest.h"
#include "base/error.h"
#include "db/store.h"
#include "env/episode_tree.h"
#include "env/service.h"

#include <string.h>

#define PAGE "limit after "

/* clang-format off */
const Route routes[] = {
    {"GET", "/_ping", api_ping, 0, FALSE, FALSE, "", "is anybody there"},
    {"GET", "/livez", api_live, 0, FALSE, FALSE, "verbose", "the process works"},
    {"GET", "/readyz", api_ready, 0, FALSE, FALSE, "verbose", "grades can run"},
    {"GET", "/health", api_ready, 0, FALSE, FALSE, "verbose", "the same, under its common name"},
    {"GET", "/version", api_version, 0, FALSE, FALSE, "",
     "versions of the program and what it uses"},
    {"GET", "/metrics", api_metrics, 0, FALSE, FALSE, "", "Prometheus text"},
    {"GET", "/v1/info", api_info, 0, FALSE, FALSE, "", "host, slots, limits, disk"},
    {"GET", "/v1/doctor", api_doctor, 0, FALSE, FALSE, "", "checks of this machine, with remedies"},
    {"GET", "/v1/events", api_events, 0, FALSE, FALSE, "since types subject",
     "events as they happen (SSE)"},
    {"POST", "/v1/tasks/import", api_tasks_import, HTTP_BODY_MAX_BULK, FALSE, TRUE,
     "dataset on_error dry_run replace", "tasks from rows or a file"},
    {"GET", "/v1/tasks", api_tasks_list, 0, FALSE, FALSE, PAGE "dataset repo", "tasks"},
    {"POST", "/v1/tasks/{id}/validate", api_task_validate, 0, TRUE, TRUE, "",
     "gold must resolve, empty must not"},
    {"GET", "/v1/tasks/{id}", api_task_show, 0, FALSE, FALSE, "include", "one task"},
    {"POST", "/v1/grades/group", api_grade_group, HTTP_BODY_MAX_BULK, TRUE, TRUE, "wait_s",
     "many patches of one task"},
    {"POST", "/v1/grades", api_grade_create, HTTP_BODY_MAX_GRADE, TRUE, TRUE, "wait_s",
     "grade one patch"},
    {"GET", "/v1/grades", api_grades_list, 0, FALSE, FALSE, PAGE "state", "grades, newest first"},
    {"GET", "/v1/grades/{id}/log", api_grade_log, 0, FALSE, FALSE, "tail_lines from_byte",
     "what the tests printed"},
    {"GET", "/v1/grades/{id}/tests", api_grade_tests, 0, FALSE, FALSE, "",
     "status of every test (NDJSON)"},
    {"GET", "/v1/grades/{id}/files/{name}", api_grade_files, 0, FALSE, FALSE, "",
     "one kept file of a grade"},
    {"GET", "/v1/grades/{id}/explain", api_grade_explain, 0, FALSE, FALSE, "", "why this verdict"},
    {"POST", "/v1/grades/{id}/cancel", api_grade_cancel, 0, TRUE, FALSE, "", "give a grade up"},
    {"POST", "/v1/grades/{id}/retry", api_grade_retry, 0, TRUE, FALSE, "",
     "run a failed grade again"},
    {"GET", "/v1/grades/{id}", api_grade_show, 0, FALSE, FALSE, "wait_s", "one grade"},
    {"POST", "/v1/sweeps", api_sweep_create, HTTP_BODY_MAX_BULK, FALSE, TRUE,
     "dataset name mode cache on_error environments priority repos run_empty",
     "grade many predictions"},
    {"GET", "/v1/sweeps", api_sweeps_list, 0, FALSE, FALSE, PAGE, "sweeps, newest first"},
    {"GET", "/v1/sweeps/{id}/results", api_sweep_results, 0, FALSE, FALSE,
     "follow after order limit statuses", "grades in finish order (NDJSON)"},
    {"GET", "/v1/sweeps/{id}/report", api_sweep_report, 0, FALSE, FALSE, "format",
     "SWE-bench run report"},
    {"POST", "/v1/sweeps/{id}/cancel", api_sweep_cancel, 0, TRUE, FALSE, "", "give a sweep up"},
    {"GET", "/v1/sweeps/{id}", api_sweep_show, 0, FALSE, FALSE, "wait_s", "one sweep"},
    {"POST", "/v1/episodes", api_episodes_open, 0, TRUE, TRUE, "", "open episodes of a task"},
    {"GET", "/v1/episodes", api_episodes_list, 0, FALSE, FALSE, PAGE "state task",
     "episodes, newest first"},
    {"POST", "/v1/episodes/{id}/step", api_episode_step, 0, TRUE, FALSE, "", "one call of a tool"},
    {"POST", "/v1/episodes/{id}/exec", api_episode_exec, 0, TRUE, FALSE, "",
     "a command beside the policy"},
    {"GET", "/v1/episodes/{id}/files", api_episode_file_get, 0, FALSE, FALSE, "path",
     "one file of an open episode"},
    {"PUT", "/v1/episodes/{id}/files", api_episode_file_put, EPISODE_FILE_BYTES_MAX, FALSE, FALSE,
     "path", "write one file"},
    {"GET", "/v1/episodes/{id}/diff", api_episode_diff, 0, FALSE, FALSE, "",
     "what was changed, as a patch"},
    {"POST", "/v1/episodes/{id}/fork", api_episode_fork, 0, TRUE, TRUE, "",
     "episodes with the same past"},
    {"POST", "/v1/episodes/{id}/rollback", api_episode_rollback, 0, TRUE, FALSE, "",
     "back to an earlier step"},
    {"POST", "/v1/episodes/{id}/submit", api_episode_submit, 0, TRUE, FALSE, "wait_s",
     "end it and grade what it left"},
    {"GET", "/v1/episodes/{id}/steps", api_episode_steps, 0, FALSE, FALSE, "",
     "the record (NDJSON)"},
    {"DELETE", "/v1/episodes/{id}", api_episode_close, 0, FALSE, FALSE, "", "give an episode up"},
    {"GET", "/v1/episodes/{id}", api_episode_show, 0, FALSE, FALSE, "wait_s", "one episode"},
    {NULL, NULL, NULL, 0, FALSE, FALSE, NULL, NULL},
};
/* clang-format on */

gsize route_body_max(const Route *route)
{
    return route != NULL && route->body_max > 0 ? route->body_max : HTTP_BODY_MAX;
}

/* Matches "/a/{id}/b"; the id of a task may contain one '/', as may {id}/files/{name}. */
static gboolean pattern_matches(const char *pattern, const char *path, char **ret_subject)
{
    const char *open = strchr(pattern, '{');
    if (open == NULL)
        return strcmp(pattern, path) == 0;
    gsize before = (gsize)(open - pattern);
    const char *tail = strchr(open, '}') + 1;
    gboolean has_name = strstr(tail, "/{name}") != NULL;
    gsize path_len = strlen(path);
    gsize tail_len = has_name ? 0 : strlen(tail);
    if (strncmp(pattern, path, before) != 0 || path_len <= before + tail_len ||
        (!has_name && strcmp(path + path_len - tail_len, tail) != 0))
        return FALSE;
    g_autofree char *subject = g_strndup(path + before, path_len - before - tail_len);
    const char *slash = strchr(subject, '/');
    gboolean slash_ok = g_str_has_prefix(pattern, "/v1/tasks/");
    if (has_name)
        slash_ok = slash != NULL && g_str_has_prefix(slash, "/files/") && slash[7] != '\0';
    if ((slash != NULL || has_name) && !slash_ok)
        return FALSE;
    *ret_subject = g_steal_pointer(&subject);
    return TRUE;
}

/* All methods of the path, for Allow. */
static const Route *route_find(const char *method, const char *path, char **ret_subject,
                               GString *allow)
{
    gboolean is_head = strcmp(method, "HEAD") == 0;
    for (const Route *route = routes; route->method != NULL; route++) {
        g_autofree char *subject = NULL;
        if (!pattern_matches(route->pattern, path, &subject))
            continue;
        if (strcmp(route->method, is_head ? "GET" : method) == 0) {
            *ret_subject = g_steal_pointer(&subject);
            return route;
        }
        if (strstr(allow->str, route->method) == NULL)
            g_string_append_printf(allow, "%s%s", allow->len > 0 ? ", " : "", route->method);
    }
    return NULL;
}

static void reply_no_route(Request *req, const char *path, const GString *allow)
{
    if (allow->len > 0) {
        request_set_header(req, "Allow", allow->str);
        request_reply_problem(req, 405, "method_not_allowed", NULL, "%s allows %s", path,
                              allow->str);
        return;
    }
    const char *patterns[64] = {NULL};
    guint n = 0;
    for (const Route *route = routes; route->method != NULL && n + 1 < G_N_ELEMENTS(patterns);
         route++)
        patterns[n++] = route->pattern;
    const char *near = word_nearest(path, patterns);
    request_reply_problem(req, 404, "route_unknown",
                          near != NULL ? json_pack("{s:s}", "did_you_mean", near) : NULL,
                          "there is no %s", path);
}

static void count_header(const char *name, const char *value, gpointer user_data)
{
    gsize *totals = user_data;
    totals[0]++;
    totals[1] += strlen(name) + strlen(value) + 4;
}

/* FALSE: replied. */
static gboolean admit_headers(Request *req)
{
    SoupMessageHeaders *headers = soup_server_message_get_request_headers(req->msg);
    gsize totals[2] = {0, 0};
    soup_message_headers_foreach(headers, count_header, totals);
    if (totals[0] > HTTP_HEADERS_MAX || totals[1] > HTTP_HEADER_BYTES) {
        request_reply_problem(req, 431, "headers_too_large", NULL,
                              "at most %u header fields and %u bytes", HTTP_HEADERS_MAX,
                              HTTP_HEADER_BYTES);
        return FALSE;
    }
    const char *lengths = soup_message_headers_get_list(headers, "Content-Length");
    if (lengths != NULL && strspn(lengths, "0123456789") != strlen(lengths)) {
        request_reply_problem(req, 400, "header_invalid", NULL,
                              "Content-Length must be one decimal number");
        return FALSE;
    }
    const char *coding = soup_message_headers_get_list(headers, "Transfer-Encoding");
    if (coding != NULL && (lengths != NULL || g_ascii_strcasecmp(coding, "chunked") != 0)) {
        request_reply_problem(req, 400, "header_invalid", NULL,
                              "Transfer-Encoding must be \"chunked\", without Content-Length");
        return FALSE;
    }
    guint64 len = 0;
    if (lengths != NULL && (!g_ascii_string_to_unsigned(lengths, 10, 0, G_MAXINT64, &len, NULL) ||
                            len > route_body_max(req->route))) {
        request_reply_problem(
            req, 413, "body_too_large",
            json_pack("{s:I}", "limit_bytes", (json_int_t)route_body_max(req->route)),
            "the body is %s bytes; the limit is %" G_GSIZE_FORMAT, lengths,
            route_body_max(req->route));
        return FALSE;
    }
    return TRUE;
}

/* FALSE: replied. */
static gboolean admit_query(Request *req)
{
    if (req->query == NULL)
        return TRUE;
    g_auto(GStrv) known = g_strsplit(req->route->query, " ", -1);
    GHashTableIter iter;
    gpointer key;
    g_hash_table_iter_init(&iter, req->query);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        if (((char *)key)[0] != '\0' && g_strv_contains((const char *const *)known, key))
            continue;
        const char *near = word_nearest(key, (const char *const *)known);
        request_reply_problem(
            req, 400, "field_unknown",
            near != NULL && near[0] != '\0' ? json_pack("{s:s}", "did_you_mean", near) : NULL,
            "query %s: unknown", (char *)key);
        return FALSE;
    }
    return TRUE;
}

void routes_admit(Request *req, const char *path, GHashTable *query)
{
    GUri *uri = soup_server_message_get_uri(req->msg);
    const char *query_text = g_uri_get_query(uri);
    if (strlen(path) + (query_text != NULL ? strlen(query_text) : 0) > HTTP_TARGET_MAX) {
        request_reply_problem(req, 414, "target_too_long", NULL, "at most %u bytes",
                              HTTP_TARGET_MAX);
        return;
    }
    g_autofree char *decoded = g_uri_unescape_string(path, NULL);
    if (decoded == NULL || !g_utf8_validate(decoded, -1, NULL) ||
        g_regex_match_simple("(^|/)\\.\\.?(/|$)|[\\x00-\\x1f\\x7f]", decoded, 0, 0)) {
        request_reply_problem(req, 400, "header_invalid", NULL,
                              "the path has NUL, control characters, dots or is not UTF-8");
        return;
    }
    g_autoptr(GString) allow = g_string_new(NULL);
    req->route =
        route_find(soup_server_message_get_method(req->msg), decoded, &req->subject, allow);
    req->query = query != NULL ? g_hash_table_ref(query) : NULL;
    if (req->route == NULL)
        reply_no_route(req, decoded, allow);
    else if (req->subject != NULL && strlen(req->subject) > ROUTES_ID_MAX)
        request_reply_problem(req, 414, "target_too_long", NULL, "an id has at most %u bytes",
                              ROUTES_ID_MAX);
    else if (admit_headers(req))
        admit_query(req);
}

/* TRUE: replied from the store, or refused. */
static gboolean replay(Request *req)
{
    const char *key = request_header(req, "Idempotency-Key");
    if (key == NULL || !req->route->creates)
        return FALSE;
    gsize len = strlen(key);
    if (len == 0 || len > 255 || strspn(key, " ") == len) {
        request_reply_problem(req, 400, "header_invalid", NULL,
                              "Idempotency-Key must be 1 to 255 printable characters");
        return TRUE;
    }
    g_autoptr(Digest) digest = digest_new("assay.idempotency.v1");
    g_autofree char *target = g_uri_to_string(soup_server_message_get_uri(req->msg));
    digest_add_str(digest, req->route->method);
    digest_add_str(digest, target);
    digest_add(digest, g_bytes_get_data(req->body, NULL), g_bytes_get_size(req->body));
    g_autofree char *sha = digest_finish(digest);
    GError *error = NULL;
    g_autoptr(IdempotencyRow) row = idempotency_find(req->service->store, key, &error);
    if (error != NULL) {
        request_reply_error(req, error);
        return TRUE;
    }
    if (row == NULL) {
        req->idempotency_key = g_strdup(key);
        req->idempotency_sha = g_steal_pointer(&sha);
        return FALSE;
    }
    if (strcmp(row->body_sha, sha) != 0) {
        request_reply_problem(req, 422, "idempotency_reused", NULL,
                              "this Idempotency-Key was used for another request");
        return TRUE;
    }
    request_set_header(req, "Idempotency-Replayed", "true");
    g_autoptr(json_t) first = json_parse(row->reply, strlen(row->reply), NULL);
    request_reply_json(req, row->status, first != NULL ? json_incref(first) : json_object());
    return TRUE;
}

/* FALSE: replied. */
static gboolean parse_body(Request *req)
{
    if (!req->route->json)
        return TRUE;
    gsize len;
    const char *text = g_bytes_get_data(req->body, &len);
    if (len == 0)
        return TRUE;
    GError *error = NULL;
    req->json = json_parse(text, len, &error);
    if (req->json != NULL && json_is_object(req->json))
        return TRUE;
    if (error != NULL)
        request_reply_problem(req, 400, "json_invalid", NULL, "body: %s", error->message);
    else
        request_reply_problem(req, 400, "json_invalid", NULL, "body: must be a JSON object");
    g_clear_error(&error);
    return FALSE;
}

void routes_dispatch(Request *req)
{
    if (req->route->creates && req->service->draining) {
        request_reply_problem(req, 503, "draining", NULL, "the daemon is stopping");
        return;
    }
    if (!parse_body(req) || replay(req))
        return;
    req->route->handler(req);
}
