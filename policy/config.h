/*
 * What a model of the MiniMax-M1 architecture is: config.json as numbers, sizes derived once.
 *
 *     ModelConfig config;
 *     if (!model_config_read("models/m1", &config, error))
 *         return FALSE;         "models/m1/config.json: missing keys: head_dim, rope_theta"
 *
 * Source: MiniMax-AI/MiniMax-M1, configuration_minimax_m1.py and config.json. Its class has
 * defaults of another model, so no key that changes the numbers is ever defaulted here.
 */
#pragma once

#include "base/json.h"

#include <glib.h>

#define MODEL_LAYERS_MAX  1024 /* the limits of the other sizes stand in config.c's table */
#define MODEL_TENSORS_MAX (1u << 16)

typedef enum AttentionKind {
    ATTENTION_LIGHTNING = 0, /* as attn_type_list writes them */
    ATTENTION_SOFTMAX = 1,
} AttentionKind;

typedef struct ModelConfig {
    guint32 hidden;   /* H */
    guint32 layers;   /* L */
    guint32 heads;    /* of both kinds of attention */
    guint32 kv_heads; /* softmax layers only; divides heads */
    guint32 head_dim; /* d; heads * head_dim need not be hidden */
    guint32 rotary_dim;
    guint32 experts; /* E */
    guint32 experts_per_token;
    guint32 ffn;         /* F, of one expert */
    guint32 vocab;       /* V, rows of the embedding */
    guint32 vocab_valid; /* ids from here on are padding: never sampled, never normalised over */
    guint64 context_max; /* positions the model was made for */
    double norm_eps;
    double lightning_norm_eps; /* of the norm inside lightning layers: 1e-6 unless said */
    double rope_theta;
    /* x = alpha * h + beta * f(h), where h is the normed stream (postnorm, the only form known) */
    double alpha_linear, beta_linear; /* f is lightning attention */
    double alpha_full, beta_full;     /* softmax attention */
    double alpha_mlp, beta_mlp;       /* the experts */
    guint8 kinds[MODEL_LAYERS_MAX];   /* AttentionKind by layer */

    /* derived by model_config_check */
    guint32 attn_dim; /* heads * head_dim */
    guint32 kv_dim;   /* kv_heads * head_dim */
    guint32 qkv_dim;  /* 3 * attn_dim: rows of a lightning layer's qkv_proj */
    guint32 chunk;    /* tokens of a chunk, a KV page, a step of the checkpoint grid */
    guint32 lightning_layers, softmax_layers;

    /* Which part of a model that ranks share this is (layout.h); model_config_check: the whole.
     * heads, kv_heads, vocab and what is derived from them are then the part's, experts is not. */
    guint32 heads_all, head_first;
    guint32 experts_held, expert_first;
    guint32 vocab_first;
} ModelConfig;

/* Reads PATH, or PATH/config.json when it is a directory. Both spellings: M1 and Text-01's own, and
 * the one of Hugging Face's `minimax` class. */
gboolean model_config_read(const char *path, ModelConfig *config, GError **error);
gboolean model_config_parse(const char *text, gsize len, ModelConfig *config, GError **error);

/* Refuses contradictions with their numbers and fills in the derived sizes, as reading does. */
gboolean model_config_check(ModelConfig *config, GError **error);

/* As config.json in the M1 spelling. What it writes reads back as the same bits. */
json_t *model_config_json(const ModelConfig *config);
gboolean model_config_write(const ModelConfig *config, const char *dir, GError **error);
