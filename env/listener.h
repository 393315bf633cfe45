/*
 * Sockets that others connect to, in front of a SoupServer: who may, how many, and for how long.
 *
 *     Listener *listener = listener_new(soup, 1024, refusal);
 *     listener_unix(listener, "/run/user/1000/assay.sock", error);
 *     listener_start(listener);
 */
#pragma once

#include <glib.h>
#include <libsoup/soup.h>

#define LISTENER_IDLE_S 75u /* a connection with no traffic is closed after */

typedef struct Listener Listener;

/* `refusal` is sent to who may not connect before it is hung up on; NULL: nothing. Static. */
Listener *listener_new(SoupServer *soup, guint connections_max, const char *refusal,
                       GError **error);

/* A socket of mode 0600 whose peers have our uid or are root. A stale one is replaced; one where
 * somebody answers, or a file that is no socket, is ASSAY_ERROR_CONFLICT. */
gboolean listener_unix(Listener *listener, const char *path, GError **error);

/* "ADDRESS:PORT"; says where it is, for port 0. Anybody may connect: look at what they send. */
gboolean listener_tcp(Listener *listener, const char *where, char **ret_where, GError **error);

void listener_start(Listener *listener);
/* Accepts no more, disconnects everybody, removes the socket. */
void listener_close(Listener *listener);

guint listener_n_connections(const Listener *listener);
guint64 listener_n_rejected(const Listener *listener);

/* Of the connection that a message came on, while nobody has closed it. */
int listener_fd(SoupServerMessage *msg);
