/*
 * A connection that libsoup 3.2 lets go of.
 *
 * After a first request libsoup 3.2 keeps a connection for good when its peer closes it, or says
 * nothing for too long: the message that it waits for has not started, and nobody is told of its
 * end (mended in 3.3, commit d20c6601, "do not leak idle connections closed by the client"). Where
 * no message is in work these connections therefore end with a byte of none: the message starts,
 * is seen to be cut short, and libsoup hangs up.
 */
#pragma once

#include <gio/gio.h>

G_DECLARE_FINAL_TYPE(Connection, connection, ASSAY, CONNECTION, GSocketConnection)

/* Over one that was accepted; closes with it. */
Connection *connection_new(GSocketConnection *accepted);

/* A message has started on it, or is over. It begins as busy: libsoup awaits the first one well. */
void connection_set_busy(Connection *connection, gboolean busy);
