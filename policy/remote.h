/*
 * A policy in another process: sampled over HTTP by token ids, asked and answered like the engine.
 *
 *     g_autoptr(Remote) remote = remote_new(&options, error);
 *     remote_submit(remote, &request);                         n samples of one prompt
 *     while (remote_step(remote, 100) > 0) ;                   tokens arrive at request.on_token
 *
 * Any server of the shape of OpenAI's /v1/completions that takes and gives token ids and their
 * log-probabilities (return_token_ids), or of /inference/v1/generate. What it says is not believed:
 * an answer with other samples than were asked for, ids outside the vocabulary, log-probabilities
 * that are none, is asked for again, and so is one that does not come. A sample that was asked for
 * often enough ends with FINISH_ABORTED.
 */
#pragma once

#include "policy/engine.h"

typedef enum RemoteApi { REMOTE_COMPLETIONS = 0, REMOTE_GENERATE, REMOTE_APIS } RemoteApi;
const char *remote_api_name(RemoteApi api);

typedef struct RemoteOptions {
    const char *url;   /* http://HOST:PORT, https://..., or unix:PATH */
    const char *key;   /* sent as a bearer token; NULL: none */
    const char *model; /* its name there; "": whatever it has */
    RemoteApi api;
    guint flight_max;   /* requests at once */
    guint attempts_max; /* for one answer */
    gint64 wait_ms;     /* for one answer */
    int vocab;          /* ids are below */
} RemoteOptions;

typedef struct RemoteStats {
    guint64 asked, retried, lost; /* requests */
    const char *why;              /* of the last attempt that failed; NULL: none did */
} RemoteStats;

typedef struct Remote Remote;

/* Connects to nobody yet. */
Remote *remote_new(const RemoteOptions *options, GError **error);
void remote_free(Remote *remote);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Remote, remote_free)

/* Copies what it needs. Not every field of a request is one of the API: prompt, n, tokens_max,
 * temperature, seed, stops and on_token are looked at, and no other may be set. */
void remote_submit(Remote *remote, const EngineRequest *request);

/* Sends and receives, waiting at most so long for it; returns the requests that are open. */
guint remote_step(Remote *remote, int wait_ms);

/* The server is to take the weights of a directory that it can read; waits for it, and asks again
 * as for anything else. From then on answers of other weights are none, where the server says of
 * which they are, and a server that was gone in between is given them again: they must stay. */
gboolean remote_update(Remote *remote, const char *dir, GError **error);

RemoteStats remote_stats(const Remote *remote);

/* --- remote_answer.c: JSON, no HTTP */

typedef struct RemoteChoice {
    GArray *ids;      /* gint32, the stop id included */
    GArray *logprobs; /* float, as many */
    FinishReason finish;
} RemoteChoice;
void remote_choice_free(RemoteChoice *choice);

/* The body of a request. */
char *remote_ask(RemoteApi api, const char *model, const EngineRequest *request);

/* The choices of an answer, by sample; anything but the samples that were asked for is INPUT, of
 * other weights than `version` (0: any) CONFLICT. */
GPtrArray *remote_read(const char *text, gsize len, const EngineRequest *request, int vocab,
                       gint64 version, GError **error);
