/*
 * The engine: many sequences over one model, a step at a time (continuous batching).
 *
 *     g_autoptr(Engine) engine = engine_new(model, &limits, error);
 *     guint64 id = engine_submit(engine, &request, error);     n samples of one prompt
 *     while (engine_step(engine, error) > 0) ;                 tokens arrive at request.on_token
 *
 * A step takes one row of every sequence that decodes (more where a draft is at hand), and fills up
 * with pieces of prompts. By the numerics contract of ops.h no sequence can tell who else was in
 * its batch: a sample is a function of weights, prompt, settings and seed.
 *
 * One thread owns an engine. Callbacks run inside engine_step and may submit and abort.
 */
#pragma once

#include "policy/prefix.h"
#include "policy/sample.h"

#define ENGINE_STOPS_MAX   1024
#define ENGINE_SAMPLES_MAX 4096
#define ENGINE_ALLOWED_MAX 65536

typedef enum FinishReason {
    FINISH_NONE = 0,
    FINISH_STOP,       /* a stop token */
    FINISH_LENGTH,     /* tokens_max */
    FINISH_REPETITION, /* too many tokens in a row that were all but certain */
    FINISH_CALLER,     /* on_token said so: a stop string, say */
    FINISH_ABORTED,
} FinishReason;

const char *finish_reason_name(FinishReason reason);

/* One token of one sample, or (finish != NONE) its end; both at once for the last one. */
typedef struct EngineToken {
    guint64 request;
    guint sample;    /* 0 .. n - 1 */
    gint64 position; /* in the sequence, prompt included */
    Sampled token;   /* token.id < 0: an end without a token */
    guint64 version; /* of the weights that made it */
    FinishReason finish;
    const float *logits; /* [vocab], for who wants the next likely ones; NULL without a token */
    float lse;
    gint64 started_us; /* monotonic: when the first token of the prompt was computed; 0: not yet */
} EngineToken;

/* FALSE ends the sample with FINISH_CALLER. */
typedef gboolean (*EngineTokenFunc)(const EngineToken *token, gpointer user);

/* What the model makes of a prompt: `logits` [vocab] of the token after prompt[position], and their
 * log sum of exponentials. For each position but the last, once and in order. */
typedef void (*EnginePromptFunc)(gint64 position, const float *logits, float lse, gpointer user);

/* The experts [layers, K] of the token at `position`, read by `sample`; a prompt's are told once,
 * as sample 0's. Told again where a cache had to be made again. */
typedef void (*EngineRouteFunc)(guint sample, gint64 position, const guint16 *experts,
                                gpointer user);

typedef struct EngineRequest {
    const int *prompt;
    gint64 prompt_len;
    guint n;             /* samples; 0 counts as 1 */
    gint64 tokens_max;   /* to generate, each */
    gint64 tokens_min;   /* stop tokens are not drawn before */
    SampleParams params; /* sample i draws with seed + i */
    const int *stops;    /* ids that end a sample; the id is part of it */
    guint n_stops;
    const int *allowed; /* the only ids that are drawn; n_allowed 0: all. The raw log-probability */
    guint n_allowed;    /* of a token does not know of it */
    gint64 repetition;  /* that many tokens in a row above 0.99 end it; 0: never */
    gboolean no_prefix; /* neither look up nor keep */
    EngineTokenFunc on_token;
    EnginePromptFunc on_prompt; /* NULL: nobody asks. Else all of the prompt is computed */
    EngineRouteFunc on_route;   /* the same */
    gpointer user;
} EngineRequest;

typedef struct EngineLimits {
    gint64 context_max;  /* 0: the model's */
    gsize cache_bytes;   /* pages, states, open chunks */
    int rows_max;        /* of a step: decode rows and pieces of prompts together */
    guint sequences_max; /* known at once, waiting ones included */
    guint draft_max;     /* tokens guessed from the text so far; 0: none */
} EngineLimits;

typedef struct EngineStats {
    guint64 steps, rows, prompt_tokens, prefix_tokens, tokens, drafted, accepted, preempted;
    guint64 misses[PREFIX_MISSES];
    guint64 finished[FINISH_ABORTED + 1];
    guint running, waiting;
    gsize cache_bytes, cache_peak, cache_max;
} EngineStats;

typedef struct Engine Engine;

/* The ops of the model must compute in f32. */
Engine *engine_new(Model *model, const EngineLimits *limits, GError **error);
void engine_free(Engine *engine);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Engine, engine_free)

/* Tokens of the longest sequence that can run: the context, or what the cache has room for. */
gint64 engine_context(const Engine *engine);

/* Copies what it needs. Refuses what can never run, with the numbers: ids outside the vocabulary,
 * more context or memory than there is. 0 on error. */
guint64 engine_submit(Engine *engine, const EngineRequest *request, GError **error);
/* Ends all samples of it with FINISH_ABORTED; FALSE when it is not known (any more). */
gboolean engine_abort(Engine *engine, guint64 request);

/* One step; returns the sequences still to be worked on. */
guint engine_step(Engine *engine);

void engine_stats(const Engine *engine, EngineStats *stats);
const Model *engine_model(const Engine *engine);

/* The weights of the model were changed in place: the version rises, the prefix cache is dropped.
 * Running sequences go on; with `recompute` their caches are made anew under the new weights. */
void engine_weights_changed(Engine *engine, gboolean recompute);

/* Log-probabilities of ids[i + 1] given ids[0..i], n - 1 of them, as sampling recorded them
 * (temperature 1): the trainer's packed pass, through the same forward. */
gboolean engine_logprobs(Engine *engine, const int *ids, gint64 n, float *logprobs, GError **error);

/* ---- snapshots (engine_snapshot.c) ---- */

/* A running sample as bytes: tokens, caches, settings, and which weights and numerics they belong
 * to. NULL when the sample is not running, or still shares its prompt's computation. */
GBytes *engine_snapshot(Engine *engine, guint64 request, guint sample, GError **error);

/* Goes on with it as if it had never stopped, as sample 0 of a new request. Refuses damaged bytes,
 * another architecture or numerics, and other weights unless `stale`: then the caches of the old
 * weights are gone on with, and the tokens carry the new version. */
guint64 engine_restore(Engine *engine, GBytes *snapshot, gboolean stale, EngineTokenFunc on_token,
                       gpointer user, GError **error);
