/*
 * Listening, accepting, and giving connections to libsoup.
 *
 * Invariants:
 *   1. Peers of a unix socket are checked at accept (SO_PEERCRED): our uid or root, nobody else;
 *      the unmapped uid 65534 is refused whatever our own uid is.
 *   2. A connection counts until libsoup lets go of it, even when that is after listener_close.
 *   3. Only a socket that this listener made is unlinked.
 *
 * Accepting is ours and not libsoup's: its listener looks at no peer, and gives up for good at the
 * first accept that fails, as when descriptors run out.
 *
 * Not here: what is said on a connection (http.c, policy_serve.c).
 */
#include "env/listener.h"

#include "base/error.h"
#include "base/fd.h"
#include "env/connection.h"
#include "env/socket_path.h"

#include <errno.h>
#include <gio/gunixsocketaddress.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define UID_UNMAPPED 65534u
#define BACKLOG      1024

struct Listener {
    SoupServer *soup;
    GSocketService *service;
    char *path; /* of the unix socket, NULL: none */
    const char *refusal;
    guint connections_max, n_connections;
    guint64 n_rejected;
    int idle_fd; /* the other end of libsoup's own listener */
};

static void connection_gone(gpointer user_data, GObject *connection)
{
    (void)connection;
    Listener *listener = user_data;
    listener->n_connections--;
    g_rc_box_release(listener);
}

static gboolean peer_allowed(GSocket *socket)
{
    if (g_socket_get_family(socket) != G_SOCKET_FAMILY_UNIX)
        return TRUE;
    g_autoptr(GCredentials) peer = g_socket_get_credentials(socket, NULL);
    if (peer == NULL)
        return FALSE;
    uid_t uid = g_credentials_get_unix_user(peer, NULL);
    return uid != UID_UNMAPPED && (uid == 0 || uid == geteuid());
}

static gboolean on_incoming(GSocketService *service, GSocketConnection *connection, GObject *source,
                            gpointer user_data)
{
    (void)service, (void)source;
    Listener *listener = user_data;
    GSocket *socket = g_socket_connection_get_socket(connection);
    if (listener->n_connections >= listener->connections_max || !peer_allowed(socket)) {
        listener->n_rejected++;
        if (listener->refusal != NULL)
            g_socket_send(socket, listener->refusal, strlen(listener->refusal), NULL, NULL);
        g_io_stream_close(G_IO_STREAM(connection), NULL, NULL);
        return TRUE;
    }
    g_socket_set_timeout(socket, LISTENER_IDLE_S);
    listener->n_connections++;
    g_autoptr(Connection) ours = connection_new(connection);
    g_object_weak_ref(G_OBJECT(ours), connection_gone, g_rc_box_acquire(listener));
    g_autoptr(GError) error = NULL;
    /* libsoup wants addresses that it can print; those of a unix socket have no name. */
    g_autoptr(GSocketAddress) nowhere = g_inet_socket_address_new_from_string("127.0.0.1", 0);
    /* nor does it tell which stream a message came on: its address does */
    g_object_set_data_full(G_OBJECT(nowhere), "assay-connection", g_object_ref(ours),
                           g_object_unref);
    if (!soup_server_accept_iostream(listener->soup, G_IO_STREAM(ours), nowhere, nowhere, &error))
        g_warning("accept: %s", error->message);
    return TRUE;
}

static Connection *connection_of(SoupServerMessage *msg)
{
    GSocketAddress *address = soup_server_message_get_local_address(msg);
    return g_object_get_data(G_OBJECT(address), "assay-connection");
}

int listener_fd(SoupServerMessage *msg)
{
    GSocketConnection *connection = G_SOCKET_CONNECTION(connection_of(msg));
    return g_socket_get_fd(g_socket_connection_get_socket(connection));
}

static void on_finished(SoupServerMessage *msg, gpointer user_data)
{
    (void)user_data;
    connection_set_busy(connection_of(msg), FALSE);
}

static void on_started(SoupServer *soup, SoupServerMessage *msg, gpointer user_data)
{
    (void)soup, (void)user_data;
    connection_set_busy(connection_of(msg), TRUE);
    g_signal_connect(msg, "finished", G_CALLBACK(on_finished), NULL);
}

/* libsoup keeps a connection for a second request only while it has a listener of its own (its
 * request_finished). It gets one that nobody can reach: an end of a socket pair, ever silent. */
static gboolean keep_connections(Listener *listener, GError **error)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set_errno(error, errno, "socketpair");
    listener->idle_fd = pair[0];
    g_autoptr(GSocket) silent = g_socket_new_from_fd(pair[1], error);
    if (silent == NULL)
        close(pair[1]);
    return silent != NULL && soup_server_listen_socket(listener->soup, silent, 0, error);
}

Listener *listener_new(SoupServer *soup, guint connections_max, const char *refusal, GError **error)
{
    Listener *listener = g_rc_box_new0(Listener);
    listener->soup = g_object_ref(soup);
    listener->connections_max = connections_max;
    listener->refusal = refusal;
    listener->idle_fd = -1;
    listener->service = g_socket_service_new();
    g_socket_service_stop(listener->service);
    g_socket_listener_set_backlog(G_SOCKET_LISTENER(listener->service), BACKLOG);
    g_signal_connect(listener->service, "incoming", G_CALLBACK(on_incoming), listener);
    g_signal_connect(soup, "request-started", G_CALLBACK(on_started), NULL);
    if (keep_connections(listener, error))
        return listener;
    listener_close(listener);
    return NULL;
}

static gboolean is_live(GSocketAddress *address)
{
    g_autoptr(GSocket) probe =
        g_socket_new(G_SOCKET_FAMILY_UNIX, G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_DEFAULT, NULL);
    return probe != NULL && g_socket_connect(probe, address, NULL, NULL);
}

static gboolean add_address(Listener *listener, GSocketAddress *address, GSocketAddress **ret_bound,
                            GError **error)
{
    return g_socket_listener_add_address(G_SOCKET_LISTENER(listener->service), address,
                                         G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_DEFAULT, NULL,
                                         ret_bound, error);
}

gboolean listener_unix(Listener *listener, const char *path, GError **error)
{
    int fd = -1;
    g_autofree char *text = socket_path_short(path, &fd, error);
    AUTO_FD dir_fd = fd;
    if (text == NULL)
        return FALSE;
    g_autoptr(GSocketAddress) address = g_unix_socket_address_new(text);
    struct stat st;
    if (is_live(address))
        return error_set(error, ASSAY_ERROR_CONFLICT, "%s: somebody answers there already", path);
    if (lstat(text, &st) == 0 && !S_ISSOCK(st.st_mode))
        return error_set(error, ASSAY_ERROR_CONFLICT, "%s: is there, and no socket", path);
    unlink(text);
    mode_t mask = umask(0177);
    gboolean ok = add_address(listener, address, NULL, error);
    umask(mask);
    if (ok)
        listener->path = g_strdup(path);
    else
        g_prefix_error(error, "%s: ", path);
    return ok;
}

gboolean listener_tcp(Listener *listener, const char *where, char **ret_where, GError **error)
{
    g_autoptr(GSocketConnectable) parsed = g_network_address_parse(where, 0, error);
    if (parsed == NULL)
        return FALSE;
    const char *host = g_network_address_get_hostname(G_NETWORK_ADDRESS(parsed));
    g_autoptr(GSocketAddress) address = g_inet_socket_address_new_from_string(
        host, g_network_address_get_port(G_NETWORK_ADDRESS(parsed)));
    g_autoptr(GSocketAddress) bound = NULL;
    if (address == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "%s: is no address", host);
    if (!add_address(listener, address, &bound, error))
        return FALSE;
    *ret_where = g_strdup_printf("%s:%u", host,
                                 g_inet_socket_address_get_port(G_INET_SOCKET_ADDRESS(bound)));
    return TRUE;
}

void listener_start(Listener *listener)
{
    g_socket_service_start(listener->service);
}

void listener_close(Listener *listener)
{
    if (listener == NULL)
        return;
    g_signal_handlers_disconnect_by_data(listener->service, listener);
    g_socket_service_stop(listener->service);
    g_socket_listener_close(G_SOCKET_LISTENER(listener->service));
    soup_server_disconnect(listener->soup);
    g_clear_object(&listener->service);
    g_clear_object(&listener->soup);
    if (listener->path != NULL)
        unlink(listener->path);
    g_clear_pointer(&listener->path, g_free);
    if (listener->idle_fd >= 0)
        close(listener->idle_fd);
    g_rc_box_release(listener);
}

guint listener_n_connections(const Listener *listener)
{
    return listener->n_connections;
}

guint64 listener_n_rejected(const Listener *listener)
{
    return listener->n_rejected;
}
