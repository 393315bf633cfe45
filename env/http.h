/*
 * The HTTP side: a unix socket, libsoup, and one Request per message.
 *
 *     static void api_ping(Request *req) { request_reply_alive(req, "OK\n"); }
 *
 * A handler replies exactly once, now or later; while it has not, it holds a reference. A reply
 * made while the store has an open transaction is sent when that is committed, and becomes 507
 * when it is not: what a client hears is on the disk.
 */
#pragma once

#include "base/json.h"
#include "env/listener.h"

#include <glib.h>
#include <libsoup/soup.h>

#define HTTP_BODY_MAX (1u * 1024 * 1024) /* bytes, unless the route says otherwise */
#define HTTP_BODY_MAX_GRADE                                                                        \
    (160u * 1024 * 1024) /* a patch may be large: it is a verdict, not a 413 */
#define HTTP_BODY_MAX_BULK   (256u * 1024 * 1024) /* predictions and datasets */
#define HTTP_DRAIN_MAX       (16u * 1024 * 1024)  /* of a refused body that is read and dropped */
#define HTTP_TARGET_MAX      8192u                /* bytes of path and query */
#define HTTP_HEADERS_MAX     64u                  /* header fields */
#define HTTP_HEADER_BYTES    (16u * 1024)         /* all header fields together */
#define HTTP_CONNECTIONS_MAX 1024u
#define HTTP_UNSENT_MAX      (1024u * 1024) /* bytes queued on one stream before it is paused */
#define HTTP_API_VERSION     "1.0"

typedef struct Service Service;
typedef struct Http Http;
typedef struct Route Route;
typedef struct Request Request;
typedef void (*StreamPumpFn)(Request *req, gpointer user_data);

/* One per message. Handlers read the first group. */
struct Request {
    Service *service;
    char *subject;     /* what {id} in the pattern matched, decoded; NULL */
    GHashTable *query; /* decoded; may be NULL */
    GBytes *body;
    json_t *json; /* the body of a route that takes JSON; NULL when there was none */
    const Route *route;
    /* ours */
    char *id;
    SoupServerMessage *msg;
    gboolean gone;    /* the client left or the reply is complete */
    gboolean replied; /* a reply was made (perhaps not sent yet) */
    gboolean too_large;
    guint64 body_bytes;
    gint64 start_ns;
    char *idempotency_key, *idempotency_sha;
    guint64 unsent; /* bytes of a stream that the client has not taken */
    StreamPumpFn pump;
    gpointer pump_data;
    GDestroyNotify pump_free;
};

Request *request_ref(Request *req);
void request_unref(Request *req);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Request, request_unref)

/* Starts listening at `path` (its directory is made 0700, a stale socket is replaced; a live one
 * is ASSAY_ERROR_CONFLICT). */
Http *http_open(Service *service, const char *path, GError **error);
void http_close(Http *http);
const Listener *http_listener(const Http *http);

/* Value of a query key, or NULL. */
const char *request_query(Request *req, const char *key);
gboolean request_query_int(Request *req, const char *key, gint64 min, gint64 max, gint64 fallback,
                           gint64 *ret, GError **error);
const char *request_header(Request *req, const char *name);
void request_set_header(Request *req, const char *name, const char *value);
/* Seconds of "Prefer: wait=N" or ?wait_s=N, at most 600; 0: none. */
guint request_wait_s(Request *req);

/* Takes `value`. */
void request_reply_json(Request *req, guint status, json_t *value);
void request_reply_text(Request *req, guint status, const char *mime, const char *text);
/* 200, and says nothing of the store: unlike the others it does not wait until the turn's changes
 * are committed, and arrives when they cannot be. */
void request_reply_alive(Request *req, const char *text);
void request_reply_bytes(Request *req, guint status, const char *mime, GBytes *bytes);
/* application/problem+json. `extra` (taken, may be NULL) is merged into the object. */
void request_reply_problem(Request *req, guint status, const char *code, json_t *extra,
                           const char *format, ...) G_GNUC_PRINTF(5, 6);
/* The problem that fits a GError; frees it. */
void request_reply_error(Request *req, GError *error);

/* Keeps an answer under the request's Idempotency-Key, if it has one and none was kept; every JSON
 * reply does. For a reply that is made later, in another turn than the work. */
void request_remember(Request *req, guint status, const char *text);

/* Makes the reply a chunked stream. `pump` is called when the client can take more, and by
 * request_stream_wake; it appends with request_stream_write and ends with request_stream_end. */
void request_stream_start(Request *req, const char *mime, StreamPumpFn pump, gpointer user_data,
                          GDestroyNotify free_fn);
void request_stream_write(Request *req, const void *data, gsize len);
void request_stream_end(Request *req);
gboolean request_stream_full(const Request *req);
void request_stream_wake(Request *req);
