/*
 * Messages of the daemon's socket, from libsoup.
 *
 * 1. Bodies are counted as they arrive; one that is over its route's limit is refused before it
 *    is kept.
 * 2. A Request lives until its message is finished and nobody holds a reference.
 *
 * Not here: who may connect (listener.c), what is replied (request.c), which handler (routes.c).
 * What libsoup itself decides (request line, header syntax) is listed in docs/protocol.md.
 */
#include "env/http.h"

#include "base/error.h"
#include "base/id.h"
#include "env/routes.h"
#include "env/service.h"

#include <errno.h>
#include <string.h>

struct Http {
    Service *service;
    SoupServer *server;
    Listener *listener;
};

static const char refused[] =
    "HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    "\r\n"
    "{\"title\":\"Peer is not allowed\",\"status\":403,\"code\":\"peer_not_allowed\","
    "\"detail\":\"use your own daemon: assay up\"}\n";

static void request_clear(gpointer data)
{
    Request *req = data;
    if (req->pump_free != NULL)
        req->pump_free(req->pump_data);
    g_clear_object(&req->msg);
    g_clear_pointer(&req->body, g_bytes_unref);
    g_clear_pointer(&req->query, g_hash_table_unref);
    json_decref(req->json);
    g_free(req->subject);
    g_free(req->id);
    g_free(req->idempotency_key);
    g_free(req->idempotency_sha);
}

Request *request_ref(Request *req)
{
    return g_rc_box_acquire(req);
}

void request_unref(Request *req)
{
    g_rc_box_release_full(req, request_clear);
}

static Request *request_of(SoupServerMessage *msg)
{
    return g_object_get_data(G_OBJECT(msg), "assay-request");
}

/* The message is over: sent, or the client left. */
static void message_finished(SoupServerMessage *msg, gpointer user_data)
{
    (void)msg;
    Request *req = user_data;
    req->gone = TRUE;
    service_request_finished(req->service, req);
    g_clear_object(&req->msg); /* it holds us through its data: break the circle */
}

static void message_got_chunk(SoupServerMessage *msg, GBytes *chunk, gpointer user_data)
{
    (void)msg;
    Request *req = user_data;
    req->body_bytes += g_bytes_get_size(chunk);
    gsize limit = req->route != NULL ? route_body_max(req->route) : HTTP_BODY_MAX;
    if (req->body_bytes <= limit || req->too_large)
        return;
    req->too_large = TRUE;
    SoupMessageBody *body = soup_server_message_get_request_body(msg);
    soup_message_body_set_accumulate(body, FALSE);
    soup_message_body_truncate(body);
}

static void http_started(SoupServer *server, SoupServerMessage *msg, gpointer user_data)
{
    (void)server;
    Http *http = user_data;
    Request *req = g_rc_box_new0(Request);
    req->service = http->service;
    req->id = id_new("req");
    req->start_ns = clock_mono_ns();
    g_object_set_data_full(G_OBJECT(msg), "assay-request", req, (GDestroyNotify)request_unref);
    g_signal_connect(msg, "got-chunk", G_CALLBACK(message_got_chunk), req);
    g_signal_connect(msg, "finished", G_CALLBACK(message_finished), req);
}

/* Sends a refusal and hangs up: libsoup would first read the body that is refused. */
static gboolean refuse_now(gpointer user_data)
{
    g_autoptr(Request) req = user_data;
    if (req->gone || req->msg == NULL)
        return G_SOURCE_REMOVE;
    g_autoptr(SoupServerMessage) msg = g_object_ref(req->msg);
    g_autoptr(GBytes) body = soup_message_body_flatten(soup_server_message_get_response_body(msg));
    g_autofree char *head = g_strdup_printf(
        "HTTP/1.1 %u %s\r\nContent-Type: application/problem+json\r\nX-Request-Id: %s\r\n"
        "Assay-Api: %s\r\nConnection: close\r\nContent-Length: %" G_GSIZE_FORMAT "\r\n\r\n",
        soup_server_message_get_status(msg),
        soup_status_get_phrase(soup_server_message_get_status(msg)), req->id, HTTP_API_VERSION,
        g_bytes_get_size(body));
    g_autoptr(GIOStream) stream = soup_server_message_steal_connection(msg);
    if (stream == NULL)
        return G_SOURCE_REMOVE;
    GOutputStream *out = g_io_stream_get_output_stream(stream);
    g_output_stream_write_all(out, head, strlen(head), NULL, NULL, NULL);
    g_output_stream_write_all(out, g_bytes_get_data(body, NULL), g_bytes_get_size(body), NULL, NULL,
                              NULL);
    g_io_stream_close(stream, NULL, NULL);
    return G_SOURCE_REMOVE;
}

/* A small refused body is read and dropped, so that its sender gets to the reply; one that is
 * large, or whose end we do not trust, is not waited for. */
static gboolean body_is_awaited(SoupServerMessage *msg)
{
    SoupMessageHeaders *headers = soup_server_message_get_request_headers(msg);
    const char *lengths = soup_message_headers_get_list(headers, "Content-Length");
    guint64 len = 0;
    if (soup_message_headers_get_list(headers, "Transfer-Encoding") != NULL)
        return FALSE;
    return lengths == NULL ||
           g_ascii_string_to_unsigned(lengths, 10, 0, HTTP_DRAIN_MAX, &len, NULL);
}

/* Headers are complete, the body is not read: the place to refuse. */
static void http_early(SoupServer *server, SoupServerMessage *msg, const char *path,
                       GHashTable *query, gpointer user_data)
{
    (void)server, (void)user_data;
    Request *req = request_of(msg);
    req->msg = g_object_ref(msg); /* not before: a message that never comes is never finished */
    routes_admit(req, path, query);
    if (!req->replied)
        return;
    soup_message_headers_replace(soup_server_message_get_response_headers(msg), "Connection",
                                 "close");
    if (!body_is_awaited(msg)) {
        soup_server_message_pause(msg);
        g_idle_add_full(G_PRIORITY_HIGH, refuse_now, request_ref(req), NULL);
    }
}

static void http_handle(SoupServer *server, SoupServerMessage *msg, const char *path,
                        GHashTable *query, gpointer user_data)
{
    (void)server, (void)path, (void)query, (void)user_data;
    Request *req = request_of(msg);
    if (req->replied)
        return;
    g_autoptr(Request) hold = request_ref(req);
    soup_server_message_pause(msg);
    if (req->too_large) {
        request_reply_problem(req, 413, "body_too_large", NULL,
                              "the body is larger than %" G_GSIZE_FORMAT " bytes",
                              route_body_max(req->route));
        return;
    }
    SoupMessageBody *body = soup_server_message_get_request_body(msg);
    req->body = soup_message_body_flatten(body);
    routes_dispatch(req);
}

Http *http_open(Service *service, const char *path, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(path);
    if (g_mkdir_with_parents(dir, 0700) < 0) {
        error_set_errno(error, errno, "make %s", dir);
        return NULL;
    }
    Http *http = g_new0(Http, 1);
    http->service = service;
    http->server = soup_server_new("server-header", "assayd", NULL);
    http->listener = listener_new(http->server, HTTP_CONNECTIONS_MAX, refused, error);
    g_signal_connect(http->server, "request-started", G_CALLBACK(http_started), http);
    soup_server_add_early_handler(http->server, NULL, http_early, http, NULL);
    soup_server_add_handler(http->server, NULL, http_handle, http, NULL);
    if (http->listener == NULL || !listener_unix(http->listener, path, error)) {
        http_close(http);
        return NULL;
    }
    listener_start(http->listener);
    return http;
}

void http_close(Http *http)
{
    if (http == NULL)
        return;
    listener_close(http->listener);
    g_object_unref(http->server);
    g_free(http);
}

const Listener *http_listener(const Http *http)
{
    return http->listener;
}
