/*
 * Endpoints of episodes: open, step, exec, files, diff, fork, rollback, submit, close.
 *
 * Invariants:
 *   1. What the policy does wrong is an observation in a 200; an HTTP error means that no step was
 *      made.
 *   2. An answer is sent after the step is in the record, and an ending after it is in the store.
 *   3. Of an episode that has ended, only what its record and its grade hold is shown.
 *
 * Not here: hosts (episode_hosts.c), endings (episodes.c).
 */
#include "env/routes.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "env/episode_file.h"
#include "env/episodes.h"
#include "env/grade_json.h"
#include "env/service.h"

#include <string.h>

#define COUNT_MAX      256 /* episodes of one request */
#define STEP_MAX       1000000
#define REQUEST_ID_MAX 255
#define TOOL_MAX       64
#define MIB            20

/* What a host's answer becomes: `row` is as the episode is now. */
typedef void (*AnswerFn)(Request *req, EpisodeRow *row, const EpisodeReply *reply);

typedef struct Pending {
    Request *req;
    EpisodeRow *row;
    AnswerFn fn;
} Pending;

static void pending_free(gpointer data)
{
    Pending *pending = data;
    request_unref(pending->req);
    episode_row_free(pending->row);
    g_free(pending);
}

/* ---- asking a host ---- */

static void reply_ended(Request *req, const EpisodeRow *row)
{
    const char *end = episode_end_rule((EpisodeEnd)row->ending)->name;
    request_reply_problem(req, 409, "episode_ended", json_pack("{s:s}", "end", end),
                          "episode %s has ended: %s%s%s", row->public_id, end,
                          row->why != NULL ? ": " : "", row->why != NULL ? row->why : "");
}

/* As request_reply_error, but what is said of files is about the episode's. */
static void reply_refused(Request *req, const GError *why)
{
    gboolean is_get = strcmp(req->route->method, "GET") == 0;
    if (g_error_matches(why, ASSAY_ERROR, ASSAY_ERROR_NOT_ALLOWED))
        request_reply_problem(req, 403, "path_not_allowed", NULL, "%s", why->message);
    else if (is_get && g_error_matches(why, ASSAY_ERROR, ASSAY_ERROR_LIMIT))
        request_reply_problem(req, 413, "too_large", NULL, "%s", why->message);
    else
        request_reply_error(req, g_error_copy(why));
}

static void answer_closed(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    (void)row, (void)reply;
    request_reply_text(req, 204, "text/plain", "");
}

/* Of one that cannot be loaded now its row is shown, without its steps. */
static void answer_seen(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    (void)reply;
    request_reply_json(req, 200, episodes_json(req->service, row));
}

static void on_reply(gpointer data, const EpisodeReply *reply)
{
    Pending *pending = data;
    Request *req = pending->req;
    EpisodeRow *row = pending->row;
    GError *error = NULL;
    gboolean closes = pending->fn == answer_closed;
    gboolean anyway = closes || pending->fn == answer_seen; /* whatever its host can or cannot do */
    EpisodeEnd end = reply->is_lost                         ? EPISODE_INFRASTRUCTURE
                     : closes && reply->end == EPISODE_OPEN ? EPISODE_ABORTED
                                                            : reply->end;
    gboolean was_open = row->ending == EPISODE_OPEN;
    if (was_open && end != EPISODE_OPEN && !episodes_end(req->service, row, end, reply, &error))
        request_reply_error(req, error);
    else if (reply->error != NULL && was_open && end != EPISODE_OPEN && !anyway)
        reply_ended(req, row);
    else if (reply->error != NULL && !anyway)
        reply_refused(req, reply->error);
    else
        pending->fn(req, row, reply);
}

/* Takes row and message. */
static void ask(Request *req, EpisodeRow *row, json_t *message, AnswerFn fn)
{
    Pending *pending = g_new0(Pending, 1);
    *pending = (Pending){request_ref(req), row, fn};
    const EpisodeAsk how = {on_reply, pending, pending_free};
    gboolean load = row->ending == EPISODE_OPEN;
    episode_hosts_ask(req->service->episodes, row, message, load, &how);
}

/* The episode of the path; NULL: replied. */
static EpisodeRow *row_of(Request *req)
{
    GError *error = NULL;
    EpisodeRow *row = episode_find(req->service->store, req->subject, &error);
    if (row == NULL)
        request_reply_error(req, error);
    return row;
}

/* The same, of one that is open. */
static EpisodeRow *open_row_of(Request *req)
{
    EpisodeRow *row = row_of(req);
    if (row == NULL || row->ending == EPISODE_OPEN)
        return row;
    reply_ended(req, row);
    episode_row_free(row);
    return NULL;
}

/* FALSE: the body has other keys; replied. */
static gboolean body_has_only(Request *req, const char *const *keys)
{
    GError *error = NULL;
    if (req->json == NULL)
        req->json = json_object();
    if (json_only_keys(req->json, keys, &error))
        return TRUE;
    request_reply_error(req, error);
    return FALSE;
}

/* ---- open ---- */

static const struct {
    const char *name;
    gint64 min, max, fallback;
} limit_infos[] = {
    {"turns", 1, 10000, EPISODE_TURNS_DEFAULT},
    {"bad", 1, 10000, EPISODE_BAD_DEFAULT},
    {"text_bytes", EPISODE_TEXT_BYTES_MIN, 1000000, EPISODE_TEXT_BYTES_DEFAULT},
    {"command_s", 1, 14400, EPISODE_COMMAND_S_DEFAULT},
    {"marks", 0, 64, 0},
};

static json_t *limits_read(const json_t *asked, GError **error)
{
    const char *keys[G_N_ELEMENTS(limit_infos) + 1] = {NULL};
    g_autoptr(json_t) limits = json_object();
    for (gsize i = 0; i < G_N_ELEMENTS(limit_infos); i++)
        keys[i] = limit_infos[i].name;
    if (asked != NULL && !json_is_object(asked)) {
        error_set(error, ASSAY_ERROR_INPUT, "field limits: must be an object");
        return NULL;
    }
    gboolean ok = asked == NULL || json_only_keys(asked, keys, error);
    for (gsize i = 0; i < G_N_ELEMENTS(limit_infos) && ok; i++) {
        gint64 value = 0;
        ok = json_opt_int(asked, limit_infos[i].name, limit_infos[i].min, limit_infos[i].max,
                          limit_infos[i].fallback, &value, error);
        json_object_set_new(limits, limit_infos[i].name, json_integer(value));
    }
    if (ok)
        return g_steal_pointer(&limits);
    g_prefix_error(error, "limits: ");
    return NULL;
}

/* FALSE: replied with 429 or 507. */
static gboolean room_for(Request *req, gint64 count)
{
    Service *service = req->service;
    gint64 max = config_int(service->config, CONFIG_EPISODES_MAX);
    gint64 n = episode_n_open(service->store, NULL);
    guint64 free_bytes = service_disk_free(service);
    guint64 floor = (guint64)config_int(service->config, CONFIG_DISK_FLOOR_MIB) << MIB;
    if (free_bytes < floor) {
        request_reply_problem(req, 507, "storage_full",
                              json_pack("{s:I,s:I}", "free_bytes", (json_int_t)free_bytes,
                                        "floor_bytes", (json_int_t)floor),
                              "the disk of the state directory is full");
        return FALSE;
    }
    if (n + count <= max)
        return TRUE;
    request_reply_problem(req, 429, "quota_episodes",
                          json_pack("{s:I,s:I}", "open", (json_int_t)n, "limit", (json_int_t)max),
                          "%" G_GINT64_FORMAT " episodes are open, %" G_GINT64_FORMAT
                          " more are asked for; the limit is %" G_GINT64_FORMAT,
                          n, count, max);
    return FALSE;
}

/* Puts one more row and its object into `data`. */
static gboolean row_put(Request *req, const EpisodeRow *like, json_t *data, GError **error)
{
    EpisodeRow row = *like;
    gboolean ok = episode_put(req->service->store, &row, error);
    g_autofree char *id = like->public_id == NULL ? row.public_id : NULL;
    if (ok)
        json_array_append_new(data, episodes_json(req->service, &row));
    return ok;
}

/* The rows of `count` episodes, with seeds one after another. */
static json_t *open_all(Request *req, const TaskRow *task, gint64 count, gint64 seed,
                        const json_t *limits, GError **error)
{
    g_autoptr(json_t) data = json_array();
    g_autofree char *text = json_print(limits);
    for (gint64 i = 0; i < count; i++) {
        g_autofree char *own = g_strdup_printf("%" G_GINT64_FORMAT, seed + i);
        const EpisodeRow row = {.task_id = task->id,
                                .seed = own,
                                .limits = text,
                                .dataset = task->dataset,
                                .instance_id = task->instance_id};
        if (!row_put(req, &row, data, error))
            return NULL;
    }
    return g_steal_pointer(&data);
}

void api_episodes_open(Request *req)
{
    static const char *const keys[] = {"task", "dataset", "count", "seed", "limits", NULL};
    GError *error = NULL;
    gint64 count = 0, seed = 0;
    g_autoptr(TaskRow) task = NULL;
    g_autoptr(json_t) limits = NULL;
    json_t *data = NULL;
    Store *store = req->service->store;
    if (!body_has_only(req, keys))
        return;
    const char *id = json_want_str(req->json, "task", &error);
    const char *dataset = id != NULL ? json_opt_str(req->json, "dataset", "", &error) : NULL;
    if (dataset != NULL && json_opt_int(req->json, "count", 1, COUNT_MAX, 1, &count, &error) &&
        json_opt_int(req->json, "seed", 0, G_MAXINT64 - COUNT_MAX, 0, &seed, &error) &&
        (limits = limits_read(json_object_get(req->json, "limits"), &error)) != NULL)
        task = task_find(store, dataset, id, &error);
    if (task != NULL && !room_for(req, count))
        return;
    if (task != NULL && store_savepoint(store, &error)) {
        data = open_all(req, task, count, seed, limits, &error);
        store_savepoint_end(store, data != NULL);
    }
    if (data == NULL) {
        request_reply_error(req, error);
        return;
    }
    g_autoptr(json_t) spec = json_parse(task->spec, strlen(task->spec), NULL);
    request_reply_json(req, 201,
                       json_pack("{s:o,s:O*,s:o}", "data", data, "observation",
                                 json_object_get(spec, "problem_statement"), "tools",
                                 episode_tools()));
}

/* ---- step ---- */

static void answer_step(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    gboolean is_over = row->ending != EPISODE_OPEN;
    req->service->counters[COUNT_EPISODE_STEPS]++;
    request_reply_json(req, 200,
                       json_pack("{s:s,s:O,s:{s:O,s:O},s:b,s:s?,s:s?}", "id", row->public_id,
                                 "step", json_object_get(reply->data, "step"), "observation",
                                 "text", json_object_get(reply->data, "text"), "error",
                                 json_object_get(reply->data, "error"), "done", is_over, "end",
                                 is_over ? episode_end_rule((EpisodeEnd)row->ending)->name : NULL,
                                 "grade", row->grade));
}

/* The message of a step; NULL: a field is bad. */
static json_t *step_message(const json_t *body, gboolean is_open, GError **error)
{
    static const char *const action_keys[] = {"tool", "arguments", NULL};
    gint64 step = 0;
    const json_t *action = json_object_get(body, "action");
    json_t *arguments = json_object_get(action, "arguments");
    const char *request_id = json_opt_str(body, "request_id", "", error);
    if (request_id == NULL || !json_opt_int(body, "step", 1, STEP_MAX, 0, &step, error))
        return NULL;
    const char *what = step == 0                             ? "field step: missing"
                       : strlen(request_id) > REQUEST_ID_MAX ? "field request_id: too long"
                       : !json_is_object(action)             ? "field action: must be an object"
                       : arguments != NULL && !json_is_object(arguments)
                           ? "field action.arguments: must be an object"
                           : NULL;
    if (what != NULL) {
        error_set(error, ASSAY_ERROR_INPUT, "%s", what);
        return NULL;
    }
    const char *tool =
        json_only_keys(action, action_keys, error) ? json_want_str(action, "tool", error) : NULL;
    if (tool == NULL || strlen(tool) > TOOL_MAX) {
        if (tool != NULL)
            error_set(error, ASSAY_ERROR_INPUT, "field action.tool: too long");
        g_prefix_error(error, "action: ");
        return NULL;
    }
    json_t *message = json_pack("{s:s,s:I,s:s,s:o}", "op", is_open ? "step" : "recall", "step",
                                (json_int_t)step, "tool", tool, "arguments",
                                arguments != NULL ? json_incref(arguments) : json_object());
    if (request_id[0] != '\0')
        json_object_set_new(message, "request_id", json_string(request_id));
    return message;
}

void api_episode_step(Request *req)
{
    static const char *const keys[] = {"step", "request_id", "action", NULL};
    GError *error = NULL;
    g_autoptr(EpisodeRow) row = row_of(req);
    if (row == NULL || !body_has_only(req, keys))
        return;
    gboolean is_open = row->ending == EPISODE_OPEN;
    json_t *message = step_message(req->json, is_open, &error);
    if (message == NULL)
        request_reply_error(req, error);
    else if (!is_open && json_integer_value(json_object_get(message, "step")) > row->steps) {
        json_decref(message);
        reply_ended(req, row);
    } else {
        ask(req, g_steal_pointer(&row), message, answer_step);
    }
}

/* ---- exec, files, diff ---- */

/* A side's text says what came of it, or what was wrong with what was asked. FALSE: replied. */
static gboolean side_is_good(Request *req, const EpisodeReply *reply)
{
    if (!json_is_true(json_object_get(reply->data, "error")))
        return TRUE;
    g_autofree char *text = g_strdup(json_string_value(json_object_get(reply->data, "text")));
    const char *why = text != NULL && g_str_has_prefix(text, "Error: ") ? text + 7 : "refused";
    request_reply_problem(req, 400, "field_invalid", NULL, "%s", g_strchomp((char *)(gsize)why));
    return FALSE;
}

static void answer_exec(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    (void)row;
    const json_t *text = json_object_get(reply->data, "text");
    if (!side_is_good(req, reply))
        return;
    json_t *shown = json_parse(json_string_value(text), json_string_length(text), NULL);
    request_reply_json(req, 200, shown != NULL ? shown : json_object());
}

/* Types alone: nothing nested gets to the host. Values are checked there. */
static gboolean exec_types_ok(const json_t *body, GError **error)
{
    static const struct {
        const char *key;
        json_type type;
        const char *what;
    } fields[] = {{"shell", JSON_STRING, "a string"},
                  {"argv", JSON_ARRAY, "a list of strings"},
                  {"cwd", JSON_STRING, "a string"},
                  {"stdin", JSON_STRING, "a string"},
                  {"timeout_s", JSON_INTEGER, "a whole number"}};
    const json_t *argv = json_object_get(body, "argv");
    for (gsize i = 0; i < G_N_ELEMENTS(fields); i++) {
        const json_t *value = json_object_get(body, fields[i].key);
        if (value != NULL && json_typeof(value) != fields[i].type)
            return error_set(error, ASSAY_ERROR_INPUT, "field %s: expected %s", fields[i].key,
                             fields[i].what);
    }
    for (gsize i = 0; i < json_array_size(argv); i++)
        if (!json_is_string(json_array_get(argv, i)))
            return error_set(error, ASSAY_ERROR_INPUT, "field argv: expected a list of strings");
    return (argv == NULL) != (json_object_get(body, "shell") == NULL) ||
           error_set(error, ASSAY_ERROR_INPUT, "field argv, shell: expected one of them");
}

/* The arguments of the side "exec"; a shell line is an argv of its own. */
static json_t *exec_arguments(const json_t *body, GError **error)
{
    const json_t *shell = json_object_get(body, "shell");
    if (!exec_types_ok(body, error))
        return NULL;
    g_autoptr(json_t) arguments = json_copy((json_t *)(gsize)body);
    if (shell != NULL) {
        json_object_del(arguments, "shell");
        json_object_set_new(arguments, "argv", json_pack("[s,s,O]", "/bin/bash", "-c", shell));
    }
    return g_steal_pointer(&arguments);
}

void api_episode_exec(Request *req)
{
    static const char *const keys[] = {"argv", "shell", "cwd", "timeout_s", "stdin", NULL};
    GError *error = NULL;
    g_autoptr(EpisodeRow) row = open_row_of(req);
    if (row == NULL || !body_has_only(req, keys))
        return;
    json_t *arguments = exec_arguments(req->json, &error);
    if (arguments == NULL)
        request_reply_error(req, error);
    else
        ask(req, g_steal_pointer(&row),
            json_pack("{s:s,s:s,s:o}", "op", "side", "name", "exec", "arguments", arguments),
            answer_exec);
}

static void answer_bytes(Request *req, const EpisodeReply *reply, const char *mime)
{
    gsize len = 0;
    const char *base64 = json_string_value(json_object_get(reply->data, "base64"));
    guchar *data = g_base64_decode(base64 != NULL ? base64 : "", &len);
    g_autoptr(GBytes) bytes = g_bytes_new_take(data, len);
    request_reply_bytes(req, 200, mime, bytes);
}

static void answer_file(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    (void)row;
    answer_bytes(req, reply, "application/octet-stream");
}

/* NULL: replied. */
static const char *path_of(Request *req)
{
    const char *path = request_query(req, "path");
    if (path != NULL && path[0] != '\0' && g_utf8_validate(path, -1, NULL))
        return path;
    request_reply_problem(req, 400, "field_missing", NULL, "query path: missing");
    return NULL;
}

void api_episode_file_get(Request *req)
{
    const char *path = path_of(req);
    EpisodeRow *row = path != NULL ? open_row_of(req) : NULL;
    if (row != NULL)
        ask(req, row, json_pack("{s:s,s:s}", "op", "read", "path", path), answer_file);
}

static void answer_written(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    (void)row;
    if (side_is_good(req, reply))
        request_reply_json(req, 200,
                           json_pack("{s:s,s:I}", "path", request_query(req, "path"), "bytes",
                                     (json_int_t)g_bytes_get_size(req->body)));
}

void api_episode_file_put(Request *req)
{
    gsize len;
    const char *path = path_of(req);
    EpisodeRow *row = path != NULL ? open_row_of(req) : NULL;
    if (row == NULL)
        return;
    const guchar *data = g_bytes_get_data(req->body, &len);
    g_autofree char *base64 = g_base64_encode(len > 0 ? data : (const guchar *)"", len);
    ask(req, row,
        json_pack("{s:s,s:s,s:{s:s,s:s}}", "op", "side", "name", "write", "arguments", "path", path,
                  "base64", base64),
        answer_written);
}

static void answer_diff(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    (void)row;
    answer_bytes(req, reply, "text/x-diff; charset=utf-8");
}

/* What an ended episode left is what was graded. */
static void reply_graded_diff(Request *req, const EpisodeRow *row)
{
    GError *error = NULL;
    g_autoptr(GradeRow) grade =
        row->grade_id != 0 ? grade_by_id(req->service->store, row->grade_id, &error) : NULL;
    g_autoptr(GBytes) bytes = NULL;
    if (grade != NULL && grade->patch_sha != NULL)
        bytes = blob_get(req->service->store, grade->patch_sha, &error);
    else if (grade != NULL)
        bytes = g_bytes_new_static("", 0);
    if (bytes != NULL)
        request_reply_bytes(req, 200, "text/x-diff; charset=utf-8", bytes);
    else if (error != NULL)
        request_reply_error(req, error);
    else
        reply_ended(req, row);
}

void api_episode_diff(Request *req)
{
    EpisodeRow *row = row_of(req);
    if (row == NULL)
        return;
    if (row->ending == EPISODE_OPEN) {
        ask(req, row, json_pack("{s:s}", "op", "diff"), answer_diff);
        return;
    }
    reply_graded_diff(req, row);
    episode_row_free(row);
}

/* ---- fork, rollback ---- */

/* The children's records are written: now they exist. */
static void answer_fork(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    GError *error = NULL;
    Store *store = req->service->store;
    const json_t *children = json_object_get(req->json, "children");
    json_int_t at = json_integer_value(json_object_get(reply->data, "at_step"));
    g_autoptr(json_t) data = json_array();
    gboolean begun = store_savepoint(store, &error), ok = begun;
    for (gsize i = 0; i < json_array_size(children) && ok; i++) {
        EpisodeRow child = *row;
        child.public_id = (char *)(gsize)json_string_value(json_array_get(children, i));
        child.parent = row->public_id;
        child.fork_step = child.steps = at;
        child.ending = EPISODE_OPEN;
        child.grade = child.why = NULL;
        child.finished_ms = 0;
        ok = row_put(req, &child, data, &error);
        if (ok && json_is_true(json_object_get(reply->data, "here")))
            episode_hosts_follow(req->service->episodes, &child, row->public_id);
    }
    if (begun)
        store_savepoint_end(store, ok);
    if (ok)
        request_reply_json(req, 201, json_pack("{s:O}", "data", data));
    else
        request_reply_error(req, error);
}

void api_episode_fork(Request *req)
{
    static const char *const keys[] = {"count", "at_step", NULL};
    GError *error = NULL;
    gint64 count = 1, at = -1;
    EpisodeRow *row = row_of(req);
    g_autoptr(EpisodeRow) owned = row;
    if (row == NULL || !body_has_only(req, keys))
        return;
    if (!json_opt_int(req->json, "count", 1, COUNT_MAX, 1, &count, &error) ||
        !json_opt_int(req->json, "at_step", 0, STEP_MAX, -1, &at, &error)) {
        request_reply_error(req, error);
        return;
    }
    if (row->ending != EPISODE_OPEN && (at < 0 || at >= row->steps)) {
        reply_ended(req, row); /* its last step ended it: before that it can be forked */
        return;
    }
    if (!room_for(req, count))
        return;
    json_t *message = json_pack("{s:s,s:[]}", "op", "fork", "children");
    for (gint64 i = 0; i < count; i++) {
        g_autofree char *id = id_new("ep");
        json_array_append_new(json_object_get(message, "children"), json_string(id));
    }
    if (at >= 0)
        json_object_set_new(message, "at_step", json_integer(at));
    json_object_set(req->json, "children", json_object_get(message, "children"));
    ask(req, g_steal_pointer(&owned), message, answer_fork);
}

static void answer_rolled_back(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    answer_seen(req, row, reply);
}

void api_episode_rollback(Request *req)
{
    static const char *const keys[] = {"to_step", NULL};
    GError *error = NULL;
    gint64 to = -1;
    g_autoptr(EpisodeRow) row = open_row_of(req);
    if (row == NULL || !body_has_only(req, keys))
        return;
    if (!json_opt_int(req->json, "to_step", 0, STEP_MAX, -1, &to, &error))
        request_reply_error(req, error);
    else if (to < 0)
        request_reply_problem(req, 400, "field_missing", NULL, "field to_step: missing");
    else
        ask(req, g_steal_pointer(&row),
            json_pack("{s:s,s:I}", "op", "rollback", "to_step", (json_int_t)to),
            answer_rolled_back);
}

/* ---- submit, close ---- */

static void show_now(Request *req)
{
    g_autoptr(EpisodeRow) row = row_of(req);
    if (row != NULL)
        request_reply_json(req, 200, episodes_json(req->service, row));
}

/* Now, or when the grade is final, if the request would wait for that. */
static void show_or_wait(Request *req, const EpisodeRow *row)
{
    guint wait_s = request_wait_s(req);
    if (wait_s == 0 || row->grade == NULL || grade_state_is_final(row->grade_state))
        request_reply_json(req, 200, episodes_json(req->service, row));
    else
        service_wait(req->service, req, row->grade, wait_s, show_now);
}

static void answer_waiting(Request *req, EpisodeRow *row, const EpisodeReply *reply)
{
    (void)reply;
    show_or_wait(req, row);
}

/* The endings that whoever drives the policy may give; the others are ours to see. OPEN: none. */
static EpisodeEnd end_asked(const char *word)
{
    static const EpisodeEnd ends[] = {EPISODE_SUBMITTED,  EPISODE_TOKEN_LIMIT, EPISODE_TIME_LIMIT,
                                      EPISODE_REPETITION, EPISODE_UNPARSABLE,  EPISODE_CHEAT};
    for (gsize i = 0; i < G_N_ELEMENTS(ends); i++)
        if (strcmp(episode_end_rule(ends[i])->name, word) == 0)
            return ends[i];
    return EPISODE_OPEN;
}

void api_episode_submit(Request *req)
{
    static const char *const keys[] = {"end", NULL};
    GError *error = NULL;
    g_autoptr(EpisodeRow) row = row_of(req);
    if (row == NULL || !body_has_only(req, keys))
        return;
    const char *word = json_opt_str(req->json, "end", "submitted", &error);
    EpisodeEnd end = word != NULL ? end_asked(word) : EPISODE_OPEN;
    if (word != NULL && end == EPISODE_OPEN)
        error_set(&error, ASSAY_ERROR_INPUT,
                  "field end: \"%s\" is not submitted, token_limit, time_limit, repetition, "
                  "unparsable or cheat",
                  word);
    if (error != NULL)
        request_reply_error(req, error);
    else if (row->ending == EPISODE_OPEN)
        ask(req, g_steal_pointer(&row), json_pack("{s:s,s:s}", "op", "end", "end", word),
            answer_waiting);
    else if (row->ending == end)
        show_or_wait(req, row);
    else
        reply_ended(req, row);
}

void api_episode_close(Request *req)
{
    EpisodeRow *row = row_of(req);
    if (row == NULL)
        return;
    if (row->ending == EPISODE_OPEN) {
        ask(req, row, json_pack("{s:s,s:s}", "op", "end", "end", "aborted"), answer_closed);
        return;
    }
    answer_closed(req, row, NULL);
    episode_row_free(row);
}

/* ---- showing ---- */

void api_episode_show(Request *req)
{
    g_autoptr(EpisodeRow) row = row_of(req);
    if (row == NULL)
        return;
    if (row->ending != EPISODE_OPEN)
        show_or_wait(req, row);
    else if (episode_hosts_steps(req->service->episodes, row->public_id) >= 0)
        request_reply_json(req, 200, episodes_json(req->service, row));
    else
        ask(req, g_steal_pointer(&row), json_pack("{s:s}", "op", "show"), answer_seen);
}

void api_episodes_list(Request *req)
{
    GError *error = NULL;
    gint64 limit = 0, task_id = 0;
    const char *state = request_query(req, "state"), *task = request_query(req, "task");
    g_autoptr(GPtrArray) rows = NULL;
    g_autoptr(TaskRow) found = NULL;
    if (state != NULL && strcmp(state, "open") != 0 && strcmp(state, "ended") != 0) {
        request_reply_problem(req, 400, "field_invalid", NULL,
                              "query state: expected open or ended");
        return;
    }
    gboolean ok = request_query_int(req, "limit", 1, STORE_LIST_MAX, 100, &limit, &error);
    if (ok && task != NULL) {
        found = task_find(req->service->store, NULL, task, &error);
        task_id = found != NULL ? found->id : 0;
        ok = found != NULL;
    }
    if (ok)
        rows = episode_list(req->service->store, state != NULL ? strcmp(state, "ended") == 0 : -1,
                            task_id, request_query(req, "after"), (guint)limit, &error);
    if (rows == NULL) {
        request_reply_error(req, error);
        return;
    }
    json_t *data = json_array();
    for (guint i = 0; i < rows->len; i++)
        json_array_append_new(data, episodes_json(req->service, rows->pdata[i]));
    request_reply_json(req, 200, list_json(data, (guint)limit));
}

void api_episode_steps(Request *req)
{
    GError *error = NULL;
    g_autoptr(EpisodeRow) row = row_of(req);
    if (row == NULL)
        return;
    AUTO_FD dir = episode_file_dir(store_dir(req->service->store), &error);
    g_autoptr(GBytes) record = dir >= 0 ? episode_file_read(dir, row->public_id, &error) : NULL;
    if (g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND)) { /* nothing was asked of it */
        g_clear_error(&error);
        record = g_bytes_new_static("", 0);
    }
    if (record != NULL)
        request_reply_bytes(req, 200, "application/x-ndjson", record);
    else
        request_reply_error(req, error);
}
