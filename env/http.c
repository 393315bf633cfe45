/*
 * The unix socket and libsoup.
 *
 * 1. Peers are checked at accept (SO_PEERCRED): our uid or root, nobody else; the unmapped uid
 *    65534 is refused whatever our own uid is.
 * 2. Bodies are counted as they arrive; one that is over its route's limit is refused before it
 *    is kept.
 * 3. A Request lives until its message is finished and nobody holds a reference.
 *
 * Not here: what is replied (request.c), which handler (routes.c). What libsoup itself decides
 * (request line, header syntax) is listed in docs/protocol.md.
 */
#include "env/http.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "env/routes.h"
#include "env/service.h"
#include "env/socket_path.h"

#include <errno.h>
#include <gio/gunixsocketaddress.h>
#include <string.h>
#include <sys/stat.h>

#define HTTP_UID_UNMAPPED 65534u

struct Http {
    Service *service;
    SoupServer *server;
    GSocketService *listener;
    char *path;
    guint n_connections;
    guint64 n_rejected;
};

static const char refused[] =
    "HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    "\r\n"
    "{\"title\":\"Peer is not allowed\",\"status\":403,\"code\":\"peer_not_allowed\","
    "\"detail\":\"use your own daemon: assay up\"}\n";

static void connection_gone(gpointer user_data, GObject *connection)
{
    (void)connection;
    Http *http = user_data;
    http->n_connections--;
}

static gboolean peer_allowed(GSocketConnection *connection)
{
    g_autoptr(GCredentials) peer =
        g_socket_get_credentials(g_socket_connection_get_socket(connection), NULL);
    if (peer == NULL)
        return FALSE;
    uid_t uid = g_credentials_get_unix_user(peer, NULL);
    return uid != HTTP_UID_UNMAPPED && (uid == 0 || uid == geteuid());
}

static gboolean http_incoming(GSocketService *listener, GSocketConnection *connection,
                              GObject *source, gpointer user_data)
{
    (void)listener, (void)source;
    Http *http = user_data;
    GSocket *socket = g_socket_connection_get_socket(connection);
    if (http->n_connections >= HTTP_CONNECTIONS_MAX || !peer_allowed(connection)) {
        http->n_rejected++;
        g_socket_send(socket, refused, sizeof refused - 1, NULL, NULL);
        g_io_stream_close(G_IO_STREAM(connection), NULL, NULL);
        return TRUE;
    }
    g_socket_set_timeout(socket, HTTP_IDLE_S);
    http->n_connections++;
    g_object_weak_ref(G_OBJECT(connection), connection_gone, http);
    g_autoptr(GError) error = NULL;
    /* libsoup wants addresses that it can print; those of a unix socket have no name. */
    g_autoptr(GSocketAddress) nowhere = g_inet_socket_address_new_from_string("127.0.0.1", 0);
    if (!soup_server_accept_iostream(http->server, G_IO_STREAM(connection), nowhere, nowhere,
                                     &error))
        g_warning("accept: %s", error->message);
    return TRUE;
}

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
    req->msg = g_object_ref(msg);
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

static gboolean socket_is_live(GSocketAddress *address)
{
    g_autoptr(GSocket) probe =
        g_socket_new(G_SOCKET_FAMILY_UNIX, G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_DEFAULT, NULL);
    return probe != NULL && g_socket_connect(probe, address, NULL, NULL);
}

static gboolean http_listen(Http *http, GError **error)
{
    g_autofree char *dir = g_path_get_dirname(http->path);
    if (g_mkdir_with_parents(dir, 0700) < 0)
        return error_set_errno(error, errno, "make %s", dir);
    int fd = -1;
    g_autofree char *text = socket_path_short(http->path, &fd, error);
    AUTO_FD dir_fd = fd;
    if (text == NULL)
        return FALSE;
    g_autoptr(GSocketAddress) address = g_unix_socket_address_new(text);
    if (socket_is_live(address))
        return error_set(error, ASSAY_ERROR_CONFLICT, "%s: a daemon answers there already",
                         http->path);
    unlink(text);
    mode_t mask = umask(0177);
    gboolean ok = g_socket_listener_add_address(G_SOCKET_LISTENER(http->listener), address,
                                                G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_DEFAULT,
                                                NULL, NULL, error);
    umask(mask);
    if (!ok)
        g_prefix_error(error, "%s: ", http->path);
    return ok;
}

Http *http_open(Service *service, const char *path, GError **error)
{
    Http *http = g_new0(Http, 1);
    http->service = service;
    http->path = g_strdup(path);
    http->server = soup_server_new("server-header", "assayd", NULL);
    http->listener = g_socket_service_new();
    g_socket_listener_set_backlog(G_SOCKET_LISTENER(http->listener), 128);
    g_signal_connect(http->listener, "incoming", G_CALLBACK(http_incoming), http);
    g_signal_connect(http->server, "request-started", G_CALLBACK(http_started), http);
    soup_server_add_early_handler(http->server, NULL, http_early, http, NULL);
    soup_server_add_handler(http->server, NULL, http_handle, http, NULL);
    if (!http_listen(http, error)) {
        g_clear_pointer(&http->path, g_free); /* not ours to unlink */
        http_close(http);
        return NULL;
    }
    g_socket_service_start(http->listener);
    return http;
}

void http_close(Http *http)
{
    if (http == NULL)
        return;
    g_socket_service_stop(http->listener);
    g_socket_listener_close(G_SOCKET_LISTENER(http->listener));
    soup_server_disconnect(http->server);
    g_clear_object(&http->listener);
    g_clear_object(&http->server);
    if (http->path != NULL)
        unlink(http->path);
    g_free(http->path);
    /* Connections that outlive the server still count themselves down: leave the counter. */
}

guint http_n_connections(const Http *http)
{
    return http->n_connections;
}

guint64 http_n_rejected(const Http *http)
{
    return http->n_rejected;
}
