/*
 * assay policy serve: options, socket, who may talk, the loop.
 *
 * Invariants:
 *   1. A unix socket is 0600 and its peers have our uid or are root; on TCP every request carries
 *      the token, and without a token file there is no TCP.
 *   2. Bodies are counted as they arrive; one over POLICY_BODY_MAX is not kept.
 *   3. The engine is touched by this thread only.
 *
 * Not here: what endpoints do (policy_api.c), how answers are put together (policy_stream.c).
 */
#include "env/policy_serve.h"

#include "base/error.h"
#include "base/fd.h"
#include "env/http.h"
#include "env/socket_path.h"

#include <errno.h>
#include <gio/gunixsocketaddress.h>
#include <glib-unix.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define TOKEN_BYTES_MIN 16u
#define TOKEN_BYTES_MAX 4096u
#define FILES_WANTED    8192u

/* --- steps */

static gboolean step(gpointer user_data)
{
    PolicyServer *server = user_data;
    if (server->pause != PAUSE_KEEP && engine_step(server->runtime.engine) > 0)
        return G_SOURCE_CONTINUE;
    server->step_source = 0;
    return G_SOURCE_REMOVE;
}

/* At the priority of the sockets, so that neither can starve the other. */
void policy_server_work(PolicyServer *server)
{
    if (server->step_source == 0 && server->pause != PAUSE_KEEP)
        server->step_source = g_idle_add_full(G_PRIORITY_DEFAULT, step, server, NULL);
}

/* --- messages */

static gboolean token_matches(const PolicyServer *server, SoupServerMessage *msg)
{
    const char *given =
        soup_message_headers_get_one(soup_server_message_get_request_headers(msg), "Authorization");
    if (server->token == NULL)
        return TRUE;
    if (given == NULL || !g_str_has_prefix(given, "Bearer "))
        return FALSE;
    /* digests, so that the time says nothing about where they differ */
    g_autofree char *a = g_compute_checksum_for_string(G_CHECKSUM_SHA256, given + 7, -1);
    g_autofree char *b = g_compute_checksum_for_string(G_CHECKSUM_SHA256, server->token, -1);
    return strcmp(a, b) == 0;
}

static const PolicyRoute *route_of(SoupServerMessage *msg, const char *path)
{
    const char *method = soup_server_message_get_method(msg);
    const PolicyRoute *found = NULL;
    for (const PolicyRoute *route = policy_routes; found == NULL && route->path != NULL; route++)
        if (strcmp(route->path, path) == 0 && strcmp(route->method, method) == 0)
            found = route;
    for (const PolicyRoute *route = policy_routes; found == NULL && route->path != NULL; route++)
        if (strcmp(route->path, path) == 0) {
            policy_refuse(msg, 405, "method_not_allowed", "%s takes %s", path, route->method);
            return NULL;
        }
    if (found == NULL)
        policy_refuse(msg, 404, "route_unknown", "there is no %s", path);
    return found;
}

static void on_chunk(SoupServerMessage *msg, GBytes *chunk, gpointer user_data)
{
    (void)user_data;
    gsize *seen = g_object_get_data(G_OBJECT(msg), "assay-seen");
    if (seen == NULL) {
        seen = g_new0(gsize, 1);
        g_object_set_data_full(G_OBJECT(msg), "assay-seen", seen, g_free);
    }
    *seen += g_bytes_get_size(chunk);
    if (*seen <= POLICY_BODY_MAX)
        return;
    SoupMessageBody *body = soup_server_message_get_request_body(msg);
    soup_message_body_set_accumulate(body, FALSE);
    soup_message_body_truncate(body);
}

static void on_started(SoupServer *soup, SoupServerMessage *msg, gpointer user_data)
{
    (void)soup;
    g_signal_connect(msg, "got-chunk", G_CALLBACK(on_chunk), user_data);
}

static void handle(SoupServer *soup, SoupServerMessage *msg, const char *path, GHashTable *query,
                   gpointer user_data)
{
    (void)soup;
    PolicyServer *server = user_data;
    const gsize *seen = g_object_get_data(G_OBJECT(msg), "assay-seen");
    server->n_requests++;
    /* libsoup hangs up after one message on a stream that it was given: say so */
    soup_message_headers_replace(soup_server_message_get_response_headers(msg), "Connection",
                                 "close");
    if (!token_matches(server, msg)) {
        policy_refuse(msg, 401, "token_unknown", "Authorization: Bearer and the token are needed");
        return;
    }
    const PolicyRoute *route = route_of(msg, path);
    if (route == NULL)
        return;
    if (seen != NULL && *seen > POLICY_BODY_MAX) {
        policy_refuse(msg, 413, "body_too_large", "the body has more than %u bytes",
                      POLICY_BODY_MAX);
        return;
    }
    g_autoptr(json_t) json = NULL;
    if (strcmp(route->method, "POST") == 0) {
        g_autoptr(GBytes) body =
            soup_message_body_flatten(soup_server_message_get_request_body(msg));
        gsize len;
        const char *text = g_bytes_get_data(body, &len);
        GError *error = NULL;
        json = len > 0 ? json_parse(text, len, &error) : json_object();
        if (!json_is_object(json)) {
            policy_refuse(msg, 400, "json_invalid", "%s",
                          error != NULL ? error->message : "the body must be a JSON object");
            g_clear_error(&error);
            return;
        }
    }
    route->handle(server, msg, json, query);
}

/* --- the socket */

static void connection_gone(gpointer user_data, GObject *connection)
{
    (void)connection;
    ((PolicyServer *)user_data)->n_connections--;
}

static gboolean peer_allowed(const PolicyServer *server, GSocket *socket)
{
    if (server->token != NULL)
        return TRUE;
    g_autoptr(GCredentials) peer = g_socket_get_credentials(socket, NULL);
    uid_t uid = peer != NULL ? g_credentials_get_unix_user(peer, NULL) : (uid_t)-1;
    return peer != NULL && (uid == 0 || uid == geteuid());
}

GSocket *policy_socket(SoupServerMessage *msg)
{
    GSocketAddress *address = soup_server_message_get_local_address(msg);
    return address != NULL ? g_object_get_data(G_OBJECT(address), "assay-socket") : NULL;
}

static gboolean on_incoming(GSocketService *listener, GSocketConnection *connection,
                            GObject *source, gpointer user_data)
{
    (void)listener, (void)source;
    PolicyServer *server = user_data;
    GSocket *socket = g_socket_connection_get_socket(connection);
    if (server->n_connections >= POLICY_CONNECTIONS_MAX || !peer_allowed(server, socket)) {
        g_io_stream_close(G_IO_STREAM(connection), NULL, NULL);
        return TRUE;
    }
    g_socket_set_timeout(socket, LISTENER_IDLE_S);
    server->n_connections++;
    g_object_weak_ref(G_OBJECT(connection), connection_gone, server);
    g_autoptr(GError) error = NULL;
    /* libsoup wants addresses that it can print; those of a unix socket have no name. */
    g_autoptr(GSocketAddress) nowhere = g_inet_socket_address_new_from_string("127.0.0.1", 0);
    /* nor does it keep the socket of a stream that it was given: policy_socket wants it */
    g_object_set_data_full(G_OBJECT(nowhere), "assay-socket", g_object_ref(socket), g_object_unref);
    if (!soup_server_accept_iostream(server->soup, G_IO_STREAM(connection), nowhere, nowhere,
                                     &error))
        g_warning("accept: %s", error->message);
    return TRUE;
}

static gboolean listen_unix(PolicyServer *server, const char *path, GError **error)
{
    int fd = -1;
    g_autofree char *text = socket_path_short(path, &fd, error);
    AUTO_FD dir_fd = fd;
    if (text == NULL)
        return FALSE;
    g_autoptr(GSocketAddress) address = g_unix_socket_address_new(text);
    g_autoptr(GSocket) probe =
        g_socket_new(G_SOCKET_FAMILY_UNIX, G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_DEFAULT, NULL);
    struct stat st;
    if (probe != NULL && g_socket_connect(probe, address, NULL, NULL))
        return error_set(error, ASSAY_ERROR_CONFLICT, "%s: somebody answers there already", path);
    if (lstat(text, &st) == 0 && !S_ISSOCK(st.st_mode))
        return error_set(error, ASSAY_ERROR_CONFLICT, "%s: is there, and no socket", path);
    unlink(text);
    mode_t mask = umask(0177);
    gboolean ok = g_socket_listener_add_address(G_SOCKET_LISTENER(server->listener), address,
                                                G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_DEFAULT,
                                                NULL, NULL, error);
    umask(mask);
    if (ok)
        server->path = g_strdup(path);
    return ok;
}

static gboolean listen_tcp(PolicyServer *server, const char *text, char **ret_where, GError **error)
{
    g_autoptr(GSocketConnectable) where = g_network_address_parse(text, 0, error);
    if (where == NULL)
        return FALSE;
    const char *host = g_network_address_get_hostname(G_NETWORK_ADDRESS(where));
    g_autoptr(GSocketAddress) address = g_inet_socket_address_new_from_string(
        host, g_network_address_get_port(G_NETWORK_ADDRESS(where)));
    g_autoptr(GSocketAddress) bound = NULL;
    if (address == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "--listen: %s is no address", host);
    if (!g_socket_listener_add_address(G_SOCKET_LISTENER(server->listener), address,
                                       G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_DEFAULT, NULL,
                                       &bound, error))
        return FALSE;
    *ret_where = g_strdup_printf("%s:%u", host,
                                 g_inet_socket_address_get_port(G_INET_SOCKET_ADDRESS(bound)));
    return TRUE;
}

static gboolean read_token(PolicyServer *server, const char *path, GError **error)
{
    g_autoptr(GBytes) bytes = file_read(path, TOKEN_BYTES_MAX, error);
    if (bytes == NULL)
        return FALSE;
    server->token = g_strstrip(g_strdup(g_bytes_get_data(bytes, NULL)));
    return strlen(server->token) >= TOKEN_BYTES_MIN ||
           error_set(error, ASSAY_ERROR_INPUT, "%s: a token has at least %u characters", path,
                     TOKEN_BYTES_MIN);
}

static gboolean server_listen(PolicyServer *server, Cli *cli, char **ret_where, GError **error)
{
    const char *where = cli_option(cli, "listen"), *token = cli_option(cli, "token-file");
    gboolean local = where != NULL && strchr(where, '/') != NULL;
    if (where == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "--listen: say where");
    if (local != (token == NULL))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "--token-file: with --listen ADDRESS:PORT, and only then");
    if (token != NULL && !read_token(server, token, error))
        return FALSE;
    server->soup = soup_server_new("server-header", "assay-policy", NULL);
    server->listener = g_socket_service_new();
    g_socket_listener_set_backlog(G_SOCKET_LISTENER(server->listener), 1024);
    g_signal_connect(server->listener, "incoming", G_CALLBACK(on_incoming), server);
    g_signal_connect(server->soup, "request-started", G_CALLBACK(on_started), server);
    soup_server_add_handler(server->soup, NULL, handle, server, NULL);
    if (!local)
        return listen_tcp(server, where, ret_where, error);
    *ret_where = g_strdup(where);
    return listen_unix(server, where, error);
}

/* --- the life */

static gboolean on_signal(gpointer user_data)
{
    g_main_loop_quit(((PolicyServer *)user_data)->loop);
    return G_SOURCE_CONTINUE;
}

static void server_close(PolicyServer *server)
{
    for (guint i = 0; i < server->calls->len; i++)
        policy_call_abort(server->calls->pdata[i]);
    while (server->calls->len > 0) /* their ends are due in the loop */
        g_main_context_iteration(NULL, TRUE);
    if (server->step_source != 0)
        g_source_remove(server->step_source);
    if (server->listener != NULL) {
        g_socket_service_stop(server->listener);
        g_socket_listener_close(G_SOCKET_LISTENER(server->listener));
        soup_server_disconnect(server->soup);
    }
    /* connections count themselves down when libsoup lets go of them */
    while (g_main_context_iteration(NULL, FALSE))
        ;
    g_clear_object(&server->listener);
    g_clear_object(&server->soup);
    if (server->path != NULL)
        unlink(server->path);
    g_ptr_array_unref(server->calls);
    g_ptr_array_unref(server->paused);
    g_clear_pointer(&server->loop, g_main_loop_unref);
    policy_runtime_close(&server->runtime);
    g_free(server->path);
    g_free(server->token);
    g_free(server->name);
}

static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < FILES_WANTED) {
        limit.rlim_cur = MIN(limit.rlim_max, FILES_WANTED);
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int cli_policy_serve(Cli *cli)
{
    static PolicyServer the_one; /* connections may outlive this function */
    PolicyServer *server = &the_one;
    g_autofree char *where = NULL;
    GError *error = NULL;
    const char *name = cli_option(cli, "name"), *model = cli_option(cli, "model");
    if (model == NULL)
        return cli_usage(cli, "serve needs --model DIR");
    server->calls = g_ptr_array_new();
    server->paused = g_ptr_array_new_with_free_func(g_object_unref);
    server->created_s = g_get_real_time() / G_USEC_PER_SEC;
    raise_file_limit();
    fd_ignore_sigpipe();
    if (!policy_runtime_open(cli, model, &server->runtime, &error) ||
        !server_listen(server, cli, &where, &error)) {
        server_close(server);
        return cli_error(cli, error, NULL);
    }
    server->name = name != NULL ? g_strdup(name) : g_path_get_basename(cli_option(cli, "model"));
    server->loop = g_main_loop_new(NULL, FALSE);
    guint int_source = g_unix_signal_add(SIGINT, on_signal, server);
    guint term_source = g_unix_signal_add(SIGTERM, on_signal, server);
    g_socket_service_start(server->listener);
    printf("ready %s\n", where);
    fflush(stdout);
    g_main_loop_run(server->loop);
    g_source_remove(int_source);
    g_source_remove(term_source);
    server_close(server);
    return CLI_OK;
}
