/*
 * assay policy serve: options, who may talk, bodies, the life of the server.
 *
 * Invariants:
 *   1. On TCP every request carries the token, and without a token file there is no TCP. Of a
 *      request without it nothing is kept.
 *   2. Bodies are counted as they arrive, each and all together; one over a limit is not kept.
 *   3. A body is parsed by a thread of GLib's pool: the loop never works on what may be long.
 *
 * Not here: sockets (listener.c), what endpoints do (policy_api.c), calls (policy_call.c).
 */
#include "env/policy_serve.h"

#include "env/policy_call.h"

#include "base/error.h"
#include "base/fd.h"

#include <glib-unix.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#define TOKEN_BYTES_MIN 16u
#define TOKEN_BYTES_MAX 4096u
#define FILES_WANTED    8192u
#define PING_S          15
#define BODY_LARGE      (4u << 20) /* one such at a time: as values it takes 16 times its bytes */

/* --- bodies */

/* Of one message, from its headers until its parse is over. */
typedef struct Body {
    PolicyServer *server;
    gsize held;
    guint status; /* 0: good so far */
} Body;

static void body_free(gpointer data)
{
    Body *body = data;
    body->server->body_bytes -= body->held;
    g_free(body);
}

/* What has come is dropped, and what comes. */
static void body_refuse(Body *body, SoupServerMessage *msg, guint status)
{
    SoupMessageBody *kept = soup_server_message_get_request_body(msg);
    soup_message_body_set_accumulate(kept, FALSE);
    soup_message_body_truncate(kept);
    body->server->body_bytes -= body->held;
    body->held = 0;
    body->status = status;
}

static void on_chunk(SoupServerMessage *msg, GBytes *chunk, gpointer user_data)
{
    PolicyServer *server = user_data;
    Body *body = g_object_get_data(G_OBJECT(msg), "assay-body");
    gsize len = g_bytes_get_size(chunk);
    if (body->status != 0)
        return;
    if (soup_server_message_get_status(msg) != 0) { /* libsoup refuses it, and asks nobody */
        body_refuse(body, msg, 400);
        return;
    }
    body->held += len;
    server->body_bytes += len;
    if (body->held > POLICY_BODY_MAX)
        body_refuse(body, msg, 413);
    else if (server->body_bytes > POLICY_BODIES_MAX)
        body_refuse(body, msg, 503);
}

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

/* Headers are complete: of a stranger no body is kept. */
static void on_headers(SoupServer *soup, SoupServerMessage *msg, const char *path,
                       GHashTable *query, gpointer user_data)
{
    (void)soup, (void)path, (void)query;
    if (!token_matches(user_data, msg))
        body_refuse(g_object_get_data(G_OBJECT(msg), "assay-body"), msg, 401);
}

static void on_finished(SoupServerMessage *msg, gpointer user_data)
{
    (void)user_data;
    g_object_set_data(G_OBJECT(msg), "assay-gone", msg);
}

static void on_started(SoupServer *soup, SoupServerMessage *msg, gpointer user_data)
{
    (void)soup;
    Body *body = g_new0(Body, 1);
    body->server = user_data;
    g_object_set_data_full(G_OBJECT(msg), "assay-body", body, body_free);
    g_signal_connect(msg, "got-chunk", G_CALLBACK(on_chunk), user_data);
    g_signal_connect(msg, "finished", G_CALLBACK(on_finished), NULL);
}

/* A request on its way through the pool. */
typedef struct Work {
    PolicyServer *server;
    SoupServerMessage *msg;
    const PolicyRoute *route;
    GHashTable *query;
    GBytes *body;
    gint64 arrived_us;
} Work;

static void work_free(gpointer data)
{
    Work *work = data;
    g_object_unref(work->msg);
    g_bytes_unref(work->body);
    g_clear_pointer(&work->query, g_hash_table_unref);
    g_free(work);
}

static PolicyAsk *parse_text(const Work *work, const char *text, gsize len, GError **error)
{
    g_autoptr(json_t) json = len > 0 ? json_parse(text, len, error) : json_object();
    if (json == NULL)
        return NULL;
    if (json_is_object(json))
        return policy_ask_parse(&work->server->runtime, work->server->name, work->route->shape,
                                json, error);
    error_set(error, ASSAY_ERROR_INPUT, "the body must be a JSON object");
    return NULL;
}

static void parse(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    (void)source, (void)cancellable;
    static GMutex large;
    const Work *work = data;
    gsize len;
    const char *text = g_bytes_get_data(work->body, &len);
    GError *error = NULL;
    if (len > BODY_LARGE)
        g_mutex_lock(&large);
    PolicyAsk *ask = parse_text(work, text, len, &error);
    if (len > BODY_LARGE)
        g_mutex_unlock(&large);
    if (ask != NULL)
        g_task_return_pointer(task, ask, (GDestroyNotify)policy_ask_free);
    else
        g_task_return_error(task, error);
}

static void parsed(GObject *source, GAsyncResult *result, gpointer data)
{
    (void)source;
    Work *work = data;
    GError *error = NULL;
    g_autoptr(PolicyAsk) ask = g_task_propagate_pointer(G_TASK(result), &error);
    work->server->n_working--;
    g_object_set_data(G_OBJECT(work->msg), "assay-body", NULL);
    if (ask != NULL)
        work->route->handle(work->server, work->msg, g_steal_pointer(&ask), work->query,
                            work->arrived_us);
    else if (g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND))
        policy_refuse(work->msg, 404, "model_not_found", "%s", error->message);
    else
        policy_refuse_error(work->msg, g_steal_pointer(&error));
    g_clear_error(&error);
    work_free(work);
}

static void parse_later(PolicyServer *server, SoupServerMessage *msg, const PolicyRoute *route,
                        GHashTable *query, gint64 arrived_us)
{
    SoupMessageBody *body = soup_server_message_get_request_body(msg);
    Work *work = g_new(Work, 1);
    *work = (Work){.server = server,
                   .msg = g_object_ref(msg),
                   .route = route,
                   .query = query != NULL ? g_hash_table_ref(query) : NULL,
                   .body = soup_message_body_flatten(body),
                   .arrived_us = arrived_us};
    soup_message_body_truncate(body); /* the message may wait long for its answer */
    g_autoptr(GTask) task = g_task_new(NULL, NULL, parsed, work);
    g_task_set_task_data(task, work, NULL);
    server->n_working++;
    g_task_run_in_thread(task, parse);
}

/* --- messages */

/* A pattern that ends with a star takes anything in its place. */
static gboolean path_matches(const char *pattern, const char *path)
{
    gsize len = strlen(pattern) - 1;
    return strcmp(pattern, path) == 0 ||
           (pattern[len] == '*' && strncmp(pattern, path, len) == 0 && path[len] != '\0');
}

static const PolicyRoute *route_of(SoupServerMessage *msg, const char *path)
{
    const char *method = soup_server_message_get_method(msg);
    const PolicyRoute *same_path = NULL;
    for (const PolicyRoute *route = policy_routes; route->path != NULL; route++) {
        if (!path_matches(route->path, path))
            continue;
        if (strcmp(route->method, method) == 0)
            return route;
        same_path = route;
    }
    if (same_path != NULL)
        policy_refuse(msg, 405, "method_not_allowed", "%s takes %s", path, same_path->method);
    else
        policy_refuse(msg, 404, "route_unknown", "there is no %s", path);
    return NULL;
}

static void handle(SoupServer *soup, SoupServerMessage *msg, const char *path, GHashTable *query,
                   gpointer user_data)
{
    (void)soup;
    PolicyServer *server = user_data;
    guint status = ((Body *)g_object_get_data(G_OBJECT(msg), "assay-body"))->status;
    gint64 arrived_us = g_get_monotonic_time();
    server->n_requests++;
    soup_server_message_pause(msg);
    if (status == 401) {
        policy_refuse(msg, 401, "token_unknown", "Authorization: Bearer and the token are needed");
        return;
    }
    const PolicyRoute *route = route_of(msg, path);
    if (route == NULL)
        return;
    if (status == 413)
        policy_refuse(msg, 413, "body_too_large", "the body has more than %u bytes",
                      POLICY_BODY_MAX);
    else if (status != 0)
        policy_refuse(msg, status, "queue_full", "bodies of %u bytes are being read",
                      POLICY_BODIES_MAX);
    else if (strcmp(route->method, "POST") == 0)
        parse_later(server, msg, route, query, arrived_us);
    else
        route->handle(server, msg, NULL, query, arrived_us);
}

/* --- options */

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
    server->listener = listener_new(server->soup, POLICY_CONNECTIONS_MAX, NULL, error);
    if (server->listener == NULL)
        return FALSE;
    g_signal_connect(server->soup, "request-started", G_CALLBACK(on_started), server);
    soup_server_add_early_handler(server->soup, NULL, on_headers, server, NULL);
    soup_server_add_handler(server->soup, NULL, handle, server, NULL);
    if (local)
        *ret_where = g_strdup(where);
    gboolean ok = local ? listener_unix(server->listener, where, error)
                        : listener_tcp(server->listener, where, ret_where, error);
    if (!ok)
        g_prefix_error(error, "--listen: ");
    return ok;
}

static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < FILES_WANTED) {
        limit.rlim_cur = MIN(limit.rlim_max, FILES_WANTED);
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* --- the life */

static gboolean on_ping(gpointer user_data)
{
    PolicyServer *server = user_data;
    gint64 now_us = g_get_monotonic_time();
    for (guint i = 0; i < server->calls->len; i++)
        policy_call_ping(server->calls->pdata[i], now_us, server->ping_us);
    return G_SOURCE_CONTINUE;
}

static gboolean on_signal(gpointer user_data)
{
    g_main_loop_quit(((PolicyServer *)user_data)->loop);
    return G_SOURCE_CONTINUE;
}

static void server_close(PolicyServer *server)
{
    server->pause = PAUSE_ABORT; /* what is still being parsed does not begin */
    for (guint i = 0; i < server->calls->len; i++)
        policy_call_abort(server->calls->pdata[i]);
    while (server->calls->len > 0 || server->n_working > 0) /* their ends are due in the loop */
        g_main_context_iteration(NULL, TRUE);
    policy_thread_free(server->thread);
    if (server->ping_source != 0)
        g_source_remove(server->ping_source);
    listener_close(server->listener);
    while (g_main_context_iteration(NULL, FALSE)) /* libsoup lets go of connections */
        ;
    g_clear_object(&server->soup);
    g_ptr_array_unref(server->calls);
    g_ptr_array_unref(server->paused);
    g_array_unref(server->batch);
    g_clear_pointer(&server->loop, g_main_loop_unref);
    policy_runtime_close(&server->runtime);
    g_free(server->token);
    g_free(server->name);
}

static gboolean server_open(PolicyServer *server, Cli *cli, char **ret_where, GError **error)
{
    const char *name = cli_option(cli, "name"), *model = cli_option(cli, "model");
    gint64 ping_s = PING_S;
    if (!policy_option_int(cli, "ping-s", 1, 3600, &ping_s, error) ||
        !policy_runtime_open(cli, model, &server->runtime, error) ||
        !server_listen(server, cli, ret_where, error))
        return FALSE;
    server->name = name != NULL ? g_strdup(name) : g_path_get_basename(model);
    if (!g_utf8_validate(server->name, -1, NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "--name: is no UTF-8");
    server->ping_us = ping_s * G_USEC_PER_SEC;
    server->thread = policy_thread_new(server->runtime.engine, policy_calls_flush, server);
    server->ping_source = g_timeout_add_seconds(1, on_ping, server);
    return TRUE;
}

int cli_policy_serve(Cli *cli)
{
    static PolicyServer the_one; /* messages may outlive this function */
    PolicyServer *server = &the_one;
    g_autofree char *where = NULL;
    GError *error = NULL;
    if (cli_option(cli, "model") == NULL)
        return cli_usage(cli, "serve needs --model DIR");
    server->calls = g_ptr_array_new();
    server->paused = g_ptr_array_new_with_free_func(g_object_unref);
    server->batch = g_array_new(FALSE, FALSE, sizeof(PolicyToken));
    server->created_s = g_get_real_time() / G_USEC_PER_SEC;
    raise_file_limit();
    fd_ignore_sigpipe();
    if (!server_open(server, cli, &where, &error)) {
        server_close(server);
        return cli_error(cli, error, NULL);
    }
    server->loop = g_main_loop_new(NULL, FALSE);
    guint int_source = g_unix_signal_add(SIGINT, on_signal, server);
    guint term_source = g_unix_signal_add(SIGTERM, on_signal, server);
    listener_start(server->listener);
    printf("ready %s\n", where);
    fflush(stdout);
    g_main_loop_run(server->loop);
    g_source_remove(int_source);
    g_source_remove(term_source);
    server_close(server);
    return CLI_OK;
}
