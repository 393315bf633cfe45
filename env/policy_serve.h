/*
 * assay policy serve: one model behind HTTP, in the shapes of OpenAI's API.
 *
 * The main loop talks, the engine has a thread of its own (policy_thread.h), and bodies are read
 * and long answers written by GLib's pool of threads: nobody waits for what another one asked. What
 * is said on the wire: docs/policy.md.
 */
#pragma once

#include "env/listener.h"
#include "env/policy_ask.h"
#include "env/policy_metrics.h"
#include "env/policy_thread.h"

#include <libsoup/soup.h>

#define POLICY_BODY_MAX        (32u << 20)
#define POLICY_BODIES_MAX      (512u << 20) /* of all requests that are being read or parsed */
#define POLICY_CONNECTIONS_MAX 4096u
#define POLICY_UNSENT_MAX      (1u << 20) /* bytes a reader of a stream may be behind */

typedef enum PauseMode {
    PAUSE_NONE = 0,
    PAUSE_ABORT, /* samples were ended, their callers have what there was */
    PAUSE_WAIT,  /* samples run to their ends */
    PAUSE_KEEP,  /* samples stand still */
} PauseMode;

typedef struct PolicyServer {
    PolicyRuntime runtime; /* the engine is the thread's */
    PolicyThread *thread;
    char *name;  /* of the model */
    char *token; /* NULL: on a unix socket peers are known by their uid */
    SoupServer *soup;
    Listener *listener;
    GMainLoop *loop;
    PauseMode pause;
    GPtrArray *calls;  /* PolicyCall, unfinished ones */
    GPtrArray *paused; /* messages of /pause?mode=wait */
    guint n_choices;   /* unfinished, of all calls */
    guint n_working;   /* bodies and answers with the pool */
    guint64 n_requests, n_dropped;
    gsize body_bytes; /* of all requests that are being read or parsed */
    gint64 created_s, ping_us;
    guint ping_source;
    PolicyMetrics metrics;
    GArray *batch; /* PolicyToken; the engine's thread */
} PolicyServer;

/* --- policy_api.c */

typedef struct PolicyRoute {
    const char *method, *path;
    PolicyShape shape; /* of a POST's body */
    /* Replies, or keeps the message, which is paused, and replies later. Takes the ask; NULL for
     * GET. */
    void (*handle)(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask, GHashTable *query,
                   gint64 arrived_us);
} PolicyRoute;

extern const PolicyRoute policy_routes[];

/* Each of these ends the message, unless its client has left. Takes `text`. */
void policy_reply_text(SoupServerMessage *msg, guint status, const char *mime, char *text,
                       gsize len);
/* Takes `value`. */
void policy_reply(SoupServerMessage *msg, guint status, json_t *value);
/* {"error": {message, type, param, code}}; `param` is the field that the message begins with. */
void policy_refuse(SoupServerMessage *msg, guint status, const char *code, const char *format, ...)
    G_GNUC_PRINTF(4, 5);
/* 400 for what the caller did, 500 for what happened to us. Takes the error. */
void policy_refuse_error(SoupServerMessage *msg, GError *error);

/* Answers who waits for the last call to end, when it has. */
void policy_server_rests(PolicyServer *server);

/* --- policy_call.c */

typedef struct PolicyCall PolicyCall;

/* Submits, and replies when there is what to reply. Takes the ask. */
void policy_call_start(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                       gint64 arrived_us);
void policy_call_abort(PolicyCall *call);
/* A comment on a stream on which nothing was said for so long. */
void policy_call_ping(PolicyCall *call, gint64 now_us, gint64 after_us);
/* After a step: hands the tokens of all calls to the main loop. A PolicyJob; data: the server. */
void policy_calls_flush(PolicyThread *thread, gpointer data);
