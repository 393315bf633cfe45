/*
 * A GSocketConnection whose input says the end of an idle connection in libsoup's words.
 *
 * Invariants:
 *   1. While a message is in work the input is the socket's, byte for byte: a body cut short stays
 *      cut short.
 *   2. The byte comes once, and the end after it.
 */
#include "env/connection.h"

#include <string.h>

#define NO_MESSAGE 'x' /* any byte that begins a request line, and no blank line */

/* --- the input */

#define CONNECTION_TYPE_INPUT connection_input_get_type()
G_DECLARE_FINAL_TYPE(ConnectionInput, connection_input, ASSAY, CONNECTION_INPUT, GFilterInputStream)

struct _ConnectionInput {
    GFilterInputStream parent;
    gboolean busy, ended;
};

static GPollableInputStream *base_of(gpointer input)
{
    return G_POLLABLE_INPUT_STREAM(
        g_filter_input_stream_get_base_stream(G_FILTER_INPUT_STREAM(input)));
}

static gboolean input_can_poll(GPollableInputStream *input)
{
    return g_pollable_input_stream_can_poll(base_of(input));
}

static gboolean input_is_readable(GPollableInputStream *input)
{
    return ASSAY_CONNECTION_INPUT(input)->ended ||
           g_pollable_input_stream_is_readable(base_of(input));
}

static GSource *input_create_source(GPollableInputStream *input, GCancellable *cancellable)
{
    g_autoptr(GSource) base = g_pollable_input_stream_create_source(base_of(input), NULL);
    return g_pollable_source_new_full(input, base, cancellable);
}

static gssize input_read_nonblocking(GPollableInputStream *stream, void *buffer, gsize count,
                                     GError **error)
{
    ConnectionInput *input = ASSAY_CONNECTION_INPUT(stream);
    GError *local = NULL;
    if (input->ended)
        return 0;
    gssize got =
        g_pollable_input_stream_read_nonblocking(base_of(input), buffer, count, NULL, &local);
    if (got <= 0 && !input->busy && !g_error_matches(local, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK)) {
        g_clear_error(&local);
        input->ended = TRUE;
        *(char *)buffer = NO_MESSAGE;
        return 1;
    }
    if (local != NULL)
        g_propagate_error(error, local);
    return got;
}

static void input_pollable_init(GPollableInputStreamInterface *interface)
{
    interface->can_poll = input_can_poll;
    interface->is_readable = input_is_readable;
    interface->create_source = input_create_source;
    interface->read_nonblocking = input_read_nonblocking;
}

G_DEFINE_FINAL_TYPE_WITH_CODE(ConnectionInput, connection_input, G_TYPE_FILTER_INPUT_STREAM,
                              G_IMPLEMENT_INTERFACE(G_TYPE_POLLABLE_INPUT_STREAM,
                                                    input_pollable_init))

static void connection_input_class_init(ConnectionInputClass *class)
{
    (void)class;
}

static void connection_input_init(ConnectionInput *input)
{
    input->busy = TRUE;
}

/* --- the connection */

struct _Connection {
    GSocketConnection parent;
    GSocketConnection *accepted;
    ConnectionInput *input; /* made when it is first asked for */
};

G_DEFINE_FINAL_TYPE(Connection, connection, G_TYPE_SOCKET_CONNECTION)

static GInputStream *connection_input(GIOStream *stream)
{
    Connection *connection = ASSAY_CONNECTION(stream);
    if (connection->input == NULL)
        connection->input =
            g_object_new(CONNECTION_TYPE_INPUT, "base-stream",
                         G_IO_STREAM_CLASS(connection_parent_class)->get_input_stream(stream),
                         "close-base-stream", FALSE, NULL);
    return G_INPUT_STREAM(connection->input);
}

static void connection_finalize(GObject *object)
{
    Connection *connection = ASSAY_CONNECTION(object);
    g_clear_object(&connection->input);
    g_clear_object(&connection->accepted);
    G_OBJECT_CLASS(connection_parent_class)->finalize(object);
}

static void connection_class_init(ConnectionClass *class)
{
    G_IO_STREAM_CLASS(class)->get_input_stream = connection_input;
    G_OBJECT_CLASS(class)->finalize = connection_finalize;
}

static void connection_init(Connection *connection)
{
    (void)connection;
}

Connection *connection_new(GSocketConnection *accepted)
{
    Connection *connection = g_object_new(connection_get_type(), "socket",
                                          g_socket_connection_get_socket(accepted), NULL);
    connection->accepted = g_object_ref(accepted);
    return connection;
}

void connection_set_busy(Connection *connection, gboolean busy)
{
    ASSAY_CONNECTION_INPUT(connection_input(G_IO_STREAM(connection)))->busy = busy;
}
