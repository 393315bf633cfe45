/*
 * Replies: JSON, text, problems, streams.
 *
 * 1. A reply made inside the turn's transaction is held until the commit (http.h).
 * 2. Every error is application/problem+json with a stable code.
 * 3. A stream keeps at most HTTP_UNSENT_MAX bytes for a slow reader; its pump is asked again when
 *    the reader has taken them.
 */
#include "env/http.h"

#include "base/error.h"
#include "base/id.h"
#include "db/store.h"
#include "env/routes.h"
#include "env/service.h"

#include <string.h>

#define PROBLEM_TYPE "https://assay.invalid/errors#"
#define WAIT_S_MAX   600

const char *request_query(Request *req, const char *key)
{
    return req->query != NULL ? g_hash_table_lookup(req->query, key) : NULL;
}

gboolean request_query_int(Request *req, const char *key, gint64 min, gint64 max, gint64 fallback,
                           gint64 *ret, GError **error)
{
    const char *text = request_query(req, key);
    *ret = fallback;
    if (text == NULL || g_ascii_string_to_signed(text, 10, min, max, ret, NULL))
        return TRUE;
    return error_set(error, ASSAY_ERROR_INPUT,
                     "query %s: \"%s\" is not between %" G_GINT64_FORMAT " and %" G_GINT64_FORMAT,
                     key, text, min, max);
}

const char *request_header(Request *req, const char *name)
{
    return soup_message_headers_get_one(soup_server_message_get_request_headers(req->msg), name);
}

void request_set_header(Request *req, const char *name, const char *value)
{
    if (req->msg != NULL)
        soup_message_headers_replace(soup_server_message_get_response_headers(req->msg), name,
                                     value);
}

guint request_wait_s(Request *req)
{
    gint64 wait_s = 0;
    const char *prefer = request_header(req, "Prefer");
    if (prefer != NULL && g_str_has_prefix(prefer, "wait=")) {
        g_auto(GStrv) parts = g_strsplit_set(prefer + strlen("wait="), ",; ", 2);
        if (g_ascii_string_to_signed(parts[0], 10, 0, WAIT_S_MAX, &wait_s, NULL) && wait_s > 0)
            request_set_header(req, "Preference-Applied", "wait");
    }
    const char *text = request_query(req, "wait_s");
    if (text != NULL)
        g_ascii_string_to_signed(text, 10, 0, WAIT_S_MAX, &wait_s, NULL);
    return (guint)wait_s;
}

static void send_now(Request *req)
{
    if (req->gone || req->msg == NULL)
        return;
    soup_server_message_unpause(req->msg);
}

static void set_common(Request *req, guint status)
{
    char code[4];
    g_snprintf(code, sizeof code, "%u", status);
    soup_server_message_set_status(req->msg, status, NULL);
    request_set_header(req, "X-Request-Id", req->id);
    request_set_header(req, "Assay-Api", HTTP_API_VERSION);
    service_count_reply(req->service, req, status);
}

static json_t *problem_new(Request *req, guint status, const char *code, const char *detail)
{
    g_autofree char *type = g_strconcat(PROBLEM_TYPE, code, NULL);
    gboolean retryable = status == 429 || status == 503 || status == 507;
    return json_pack("{s:s,s:s,s:i,s:s,s:s,s:s,s:b}", "type", type, "title",
                     soup_status_get_phrase(status), "status", (int)status, "code", code, "detail",
                     detail, "request_id", req->id, "retryable", retryable);
}

/* The commit of the turn failed: nothing of what the reply says is true. */
static void reply_after_commit(gboolean committed, gpointer user_data)
{
    g_autoptr(Request) req = user_data;
    if (req->gone || req->msg == NULL)
        return;
    if (!committed) {
        g_autoptr(json_t) problem =
            problem_new(req, 507, "storage_full", "the store could not commit; nothing was kept");
        g_autofree char *text = json_print(problem);
        soup_server_message_set_status(req->msg, 507, NULL);
        soup_message_body_truncate(soup_server_message_get_response_body(req->msg));
        soup_server_message_set_response(req->msg, "application/problem+json", SOUP_MEMORY_COPY,
                                         text, strlen(text));
    }
    send_now(req);
}

/* FALSE: there is nobody to reply to, or no more. */
static gboolean reply_set(Request *req, guint status, const char *mime, const void *data, gsize len)
{
    gboolean heard = !req->replied && req->msg != NULL && !req->gone;
    req->replied = TRUE;
    if (!heard)
        return FALSE;
    set_common(req, status);
    soup_server_message_set_response(req->msg, mime, SOUP_MEMORY_COPY, data, len);
    return TRUE;
}

static void reply(Request *req, guint status, const char *mime, const void *data, gsize len)
{
    if (!reply_set(req, status, mime, data, len))
        return;
    Store *store = req->service->store;
    if (store != NULL && store_is_dirty(store))
        store_after_commit(store, reply_after_commit, request_ref(req));
    else
        send_now(req);
}

void request_reply_alive(Request *req, const char *text)
{
    if (reply_set(req, 200, "text/plain", text, strlen(text)))
        send_now(req);
}

void request_reply_text(Request *req, guint status, const char *mime, const char *text)
{
    reply(req, status, mime, text, strlen(text));
}

void request_reply_bytes(Request *req, guint status, const char *mime, GBytes *bytes)
{
    gsize len;
    const void *data = g_bytes_get_data(bytes, &len);
    reply(req, status, mime, data != NULL ? data : "", len);
}

void request_remember(Request *req, guint status, const char *text)
{
    if (req->idempotency_key == NULL || status >= 500 || status == 429)
        return;
    IdempotencyRow row = {
        .body_sha = req->idempotency_sha, .status = status, .reply = (char *)(gsize)text};
    g_autoptr(GError) error = NULL;
    if (!idempotency_put(req->service->store, req->idempotency_key, &row, &error))
        g_warning("%s", error->message);
    g_clear_pointer(&req->idempotency_key, g_free);
}

void request_reply_json(Request *req, guint status, json_t *value)
{
    g_autoptr(json_t) owned = value;
    g_autofree char *text = json_print(owned);
    request_remember(req, status, text);
    gboolean problem = json_object_get(owned, "code") != NULL && status >= 400;
    reply(req, status, problem ? "application/problem+json" : "application/json", text,
          strlen(text));
}

void request_reply_problem(Request *req, guint status, const char *code, json_t *extra,
                           const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *detail = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *valid = g_utf8_make_valid(detail, -1);
    json_t *problem = problem_new(req, status, code, valid);
    if (extra != NULL)
        json_object_update_new(problem, extra);
    if (status == 503 || status == 429)
        request_set_header(req, "Retry-After", "5");
    request_reply_json(req, status, problem);
}

static const struct {
    guint status;
    const char *code;
} error_problems[] = {
    [ASSAY_ERROR_SYSTEM] = {500, "internal"},
    [ASSAY_ERROR_INPUT] = {400, "field_invalid"},
    [ASSAY_ERROR_NOT_FOUND] = {404, "not_found"},
    [ASSAY_ERROR_NOT_ALLOWED] = {403, "peer_not_allowed"},
    [ASSAY_ERROR_UNSUPPORTED] = {501, "not_built"},
    [ASSAY_ERROR_CONFLICT] = {409, "state_conflict"},
    [ASSAY_ERROR_LIMIT] = {507, "storage_full"},
    [ASSAY_ERROR_BUSY] = {429, "quota_boxes"},
};

void request_reply_error(Request *req, GError *error)
{
    g_autoptr(GError) owned = error;
    guint code = owned->domain == ASSAY_ERROR ? (guint)owned->code : ASSAY_ERROR_SYSTEM;
    if (code >= G_N_ELEMENTS(error_problems))
        code = ASSAY_ERROR_SYSTEM;
    const char *name = error_problems[code].code;
    if (code == ASSAY_ERROR_INPUT && strstr(owned->message, ": unknown") != NULL)
        name = "field_unknown";
    else if (code == ASSAY_ERROR_INPUT && strstr(owned->message, ": missing") != NULL)
        name = "field_missing";
    if (code == ASSAY_ERROR_SYSTEM)
        g_warning("request %s: %s", req->id, owned->message);
    request_reply_problem(req, error_problems[code].status, name, NULL, "%s", owned->message);
}

static void stream_wrote(SoupServerMessage *msg, guint n_bytes, gpointer user_data)
{
    (void)msg;
    Request *req = user_data;
    req->unsent -= MIN(req->unsent, n_bytes);
}

static void stream_wrote_chunk(SoupServerMessage *msg, gpointer user_data)
{
    (void)msg;
    Request *req = user_data;
    if (!req->gone && req->pump != NULL && !request_stream_full(req))
        req->pump(req, req->pump_data);
}

void request_stream_start(Request *req, const char *mime, StreamPumpFn pump, gpointer user_data,
                          GDestroyNotify free_fn)
{
    req->pump = pump;
    req->pump_data = user_data;
    req->pump_free = free_fn;
    req->replied = TRUE;
    if (req->msg == NULL || req->gone)
        return;
    set_common(req, 200);
    SoupMessageHeaders *headers = soup_server_message_get_response_headers(req->msg);
    soup_message_headers_set_content_type(headers, mime, NULL);
    soup_message_headers_replace(headers, "Cache-Control", "no-cache");
    soup_message_headers_set_encoding(headers, SOUP_ENCODING_CHUNKED);
    soup_message_body_set_accumulate(soup_server_message_get_response_body(req->msg), FALSE);
    g_signal_connect(req->msg, "wrote-body-data", G_CALLBACK(stream_wrote), req);
    g_signal_connect(req->msg, "wrote-chunk", G_CALLBACK(stream_wrote_chunk), req);
    soup_server_message_unpause(req->msg);
    pump(req, user_data);
}

void request_stream_write(Request *req, const void *data, gsize len)
{
    if (req->gone || req->msg == NULL || len == 0)
        return;
    req->unsent += len;
    soup_message_body_append(soup_server_message_get_response_body(req->msg), SOUP_MEMORY_COPY,
                             data, len);
    soup_server_message_unpause(req->msg);
}

void request_stream_end(Request *req)
{
    req->pump = NULL;
    if (req->gone || req->msg == NULL)
        return;
    soup_message_body_complete(soup_server_message_get_response_body(req->msg));
    soup_server_message_unpause(req->msg);
}

gboolean request_stream_full(const Request *req)
{
    return req->unsent >= HTTP_UNSENT_MAX;
}

void request_stream_wake(Request *req)
{
    if (!req->gone && req->pump != NULL && !request_stream_full(req))
        req->pump(req, req->pump_data);
}
