/*
 * What an engine is made of: shared by the files engine*.c, and by no others.
 */
#pragma once

#include "policy/engine.h"
#include "policy/forward.h"

typedef struct Request {
    guint refs;
    guint64 id;
    SampleParams params;
    gint64 prompt_len, tokens_max, tokens_min, repetition, started_us;
    int *stops, *allowed;
    guint n_stops, n_allowed, n;
    gboolean no_prefix;
    EngineTokenFunc on_token;
    EnginePromptFunc on_prompt;
    EngineRouteFunc on_route;
    gpointer user;
} Request;

/* One sample; before the prompt is computed, all samples of a request in one. */
typedef struct Seq {
    Request *request;
    guint sample;
    gboolean parent; /* stands for all n samples, until the prompt is done */
    GArray *ids;     /* int */
    SeqCache *cache;
    gint64 scored;  /* tokens of the prompt that on_prompt was told of */
    gint64 certain; /* tokens in a row above CERTAIN */
    gboolean done;
} Seq;

/* A sequence's part of a step. */
typedef struct Piece {
    Seq *seq;
    int row0, rows;
    guint drafts; /* of the rows, the last ones */
} Piece;

struct Engine {
    Model *model;
    EngineLimits limits;
    CachePool *pool;
    PrefixCache *prefix;
    Acts *acts;
    GPtrArray *seqs; /* Seq, oldest first */
    guint64 next_id;
    EngineStats stats;
    /* room of a step */
    GArray *pieces, *spans, *ids, *positions;
    float *hidden, *logits, *lse, *logp, *masked;
    SampleEntry *entries;
    int *zeros;
    guint16 *chosen; /* experts of a step's rows; NULL until somebody asks */
};

/* `n` known tokens, nothing computed; holds a reference to the request. */
Seq *engine_seq_new(Engine *engine, Request *request, const int *ids, gint64 n);
gboolean engine_ids_check(const Engine *engine, const int *ids, gint64 n, const char *what,
                          GError **error);
/* Makes room for `rows` more tokens, at the prefix cache's cost. */
gboolean engine_reserve(Engine *engine, Seq *seq, int rows);
gboolean engine_request_check(const Engine *engine, const EngineRequest *request, GError **error);
