/*
 * The CLI's side of the socket: libcurl over AF_UNIX.
 *
 *     g_autoptr(Client) client = client_new("/run/.../api.sock");
 *     g_autoptr(Answer) answer = client_call(client, "GET", "/v1/info", NULL, error);
 */
#pragma once

#include "base/json.h"

#include <glib.h>

#define CLIENT_BODY_MAX (512u * 1024 * 1024) /* bytes of one answer that is kept whole */

typedef struct Client Client;

typedef struct Answer {
    guint status;
    GByteArray *body; /* with a NUL after it that is not counted */
} Answer;
void answer_free(Answer *answer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Answer, answer_free)

Client *client_new(const char *socket_path);
void client_free(Client *client);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Client, client_free)
const char *client_socket(const Client *client);

/* One call. `body` may be NULL. NULL with ASSAY_ERROR_UNSUPPORTED: nobody answers at the socket
 * (the message says why); HTTP errors are answers. */
Answer *client_call(Client *client, const char *method, const char *target, GBytes *body,
                    GError **error);
/* As above, and the answer's JSON; an HTTP error is an error: its code tells the kind, its
 * message is the problem's detail. */
json_t *client_json(Client *client, const char *method, const char *target, GBytes *body,
                    GError **error);
/* As above, and the answer's bytes. */
GBytes *client_bytes(Client *client, const char *method, const char *target, GError **error);
/* Called per line of an NDJSON answer as it arrives, and with NULL now and then (about 10 times a
 * second) when nothing does. FALSE ends the call. */
typedef gboolean (*ClientLineFn)(const json_t *line, gpointer user_data);
gboolean client_lines(Client *client, const char *target, ClientLineFn fn, gpointer user_data,
                      GError **error);
