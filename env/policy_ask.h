/*
 * What a request to assay policy serve may say: from JSON to what the engine is asked for.
 *
 * Plain functions of a body and a model: no HTTP, no engine, any thread.
 */
#pragma once

#include "env/policy_runtime.h"

#define POLICY_PROMPTS_MAX 256u       /* of one request */
#define POLICY_TOP_MAX     20u        /* likely tokens beside one */
#define POLICY_SCORES_MAX  (1u << 20) /* log-probabilities in an answer, likely ones' too */

typedef enum PolicyShape {
    SHAPE_NONE = 0,   /* no fields */
    SHAPE_COMPLETION, /* text or ids in, text out */
    SHAPE_CHAT,
    SHAPE_GENERATE, /* ids in, ids out */
    SHAPE_TOKENIZE,
    SHAPE_DETOKENIZE,
    SHAPE_UPDATE, /* weights */
} PolicyShape;

typedef struct PolicyAsk {
    PolicyShape shape;
    EngineRequest engine; /* prompt, callbacks and user are filled in by policy_call_start */
    GPtrArray *prompts;   /* GArray of gint32 */
    StopStrings *stops;
    gboolean stream, usage, ids, logprobs, raw;
    guint top;          /* likely tokens beside each drawn one */
    gint64 prompt_top;  /* the same beside each of the prompt; -1: nobody asks */
    char *reply;        /* TOKENIZE, DETOKENIZE: the answer, JSON */
    char *path;         /* UPDATE */
    gboolean recompute; /* UPDATE */
} PolicyAsk;

/* `name` is the model's. Errors begin with the field ("top_p: ...", "field top_q: unknown");
 * NOT_FOUND: another model was asked for. */
PolicyAsk *policy_ask_parse(const PolicyRuntime *runtime, const char *name, PolicyShape shape,
                            const json_t *body, GError **error);
void policy_ask_free(PolicyAsk *ask);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PolicyAsk, policy_ask_free)

/* Samples that it asks for. */
guint64 policy_ask_choices(const PolicyAsk *ask);
