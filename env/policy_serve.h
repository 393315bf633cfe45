/*
 * assay policy serve: one model behind HTTP, in the shapes of OpenAI's API.
 *
 * One thread: the main loop reads requests, and between them the engine takes steps. What is said
 * on the wire: docs/policy.md.
 */
#pragma once

#include "env/policy_runtime.h"
#include "policy/chat_parse.h"

#include <libsoup/soup.h>

#define POLICY_BODY_MAX        (32u << 20)
#define POLICY_CONNECTIONS_MAX 4096u
#define POLICY_UNSENT_MAX      (1u << 20) /* bytes a reader of a stream may be behind */
#define POLICY_PROMPTS_MAX     256u       /* of one request */
#define POLICY_STOPS_MAX       64u        /* stop strings */
#define POLICY_STOP_BYTES_MAX  1024u      /* of one */
#define POLICY_TOP_MAX         20u        /* top_logprobs */

typedef enum PauseMode {
    PAUSE_NONE = 0,
    PAUSE_ABORT, /* samples were ended, their callers have what there was */
    PAUSE_WAIT,  /* samples run to their ends */
    PAUSE_KEEP,  /* samples stand still */
} PauseMode;

typedef struct PolicyServer {
    PolicyRuntime runtime;
    char *name;  /* of the model */
    char *token; /* NULL: on a unix socket peers are known by their uid */
    char *path;  /* the socket, unlinked at the end */
    SoupServer *soup;
    GSocketService *listener;
    GMainLoop *loop;
    guint step_source; /* 0: nothing to step */
    PauseMode pause;
    GPtrArray *calls;  /* PolicyCall, unfinished ones */
    GPtrArray *paused; /* messages of /pause?mode=wait */
    guint n_choices;   /* unfinished, of all calls */
    guint n_connections;
    guint64 n_requests, n_dropped;
    gint64 created_s;
} PolicyServer;

/* Steps the engine from the main loop while there is work and no pause. */
void policy_server_work(PolicyServer *server);

/* Of the connection that the message came on; NULL when it is gone. */
GSocket *policy_socket(SoupServerMessage *msg);

/* --- policy_api.c */

typedef struct PolicyRoute {
    const char *method, *path;
    /* Replies, or pauses the message and replies later. `body` is an object, NULL for GET. */
    void (*handle)(PolicyServer *server, SoupServerMessage *msg, json_t *body, GHashTable *query);
} PolicyRoute;

extern const PolicyRoute policy_routes[];

/* Takes `value`. */
void policy_reply(SoupServerMessage *msg, guint status, json_t *value);
/* {"error": {message, type, param, code}}; `param` is the field that the message begins with. */
void policy_refuse(SoupServerMessage *msg, guint status, const char *code, const char *format, ...)
    G_GNUC_PRINTF(4, 5);
/* 400 for what the caller did, 500 for what happened to us. Takes the error. */
void policy_refuse_error(SoupServerMessage *msg, GError *error);

/* --- policy_stream.c */

typedef enum PolicyShape {
    SHAPE_COMPLETION = 0,
    SHAPE_CHAT,
    SHAPE_GENERATE, /* ids in, ids out */
} PolicyShape;

typedef struct PolicyCall PolicyCall;

/* What a request asked for, beside what the engine needs to know. */
typedef struct PolicyAsk {
    PolicyShape shape;
    EngineRequest engine; /* prompt, callback and user are filled in by call_start */
    GPtrArray *prompts;   /* GArray of gint32 */
    GPtrArray *stops;     /* char *, not empty */
    gboolean stream, usage, ids, logprobs, raw;
    guint top;
} PolicyAsk;

PolicyAsk *policy_ask_new(void);
void policy_ask_free(PolicyAsk *ask);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PolicyAsk, policy_ask_free)

/* Submits, and replies when there is what to reply. Takes the ask. FALSE: nothing was begun and
 * nothing replied. */
gboolean policy_call_start(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                           GError **error);
void policy_call_abort(PolicyCall *call);
