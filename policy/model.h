/*
 * A model of the MiniMax-M1 architecture in memory: packed weights by layer, and the layout of the
 * caches that its sequences need. The maths over them is in forward.c.
 *
 *     g_autoptr(Model) model = model_load(ops_cpu(), "models/tiny", WEIGHT_BF16, 0, error);
 *
 * Names and shapes of the tensors: tensors.h.
 */
#pragma once

#include "kernels/comm.h"
#include "kernels/ops.h"
#include "policy/weights.h"

#include <glib.h>

typedef struct LayerWeights {
    void *input_norm, *post_norm; /* [D] */
    OpsWeight qkv, gate, out;     /* lightning: [3 H d, D], [H d, D], [D, H d] */
    void *attn_norm;              /* lightning: [H d] */
    OpsWeight q, k, v, o;         /* softmax: [H d, D], [G d, D] twice, [D, H d] */
    OpsWeight router;             /* [E, D], never rounded */
    OpsWeight *w1, *w3, *w2;      /* [E] */
    void *decay;                  /* lightning: real [H][C + 1], lambda^n */
} LayerWeights;

/* Byte offsets of each layer's part of a page, a state and an open chunk; see ops.h, OpsSpan. */
typedef struct CacheLayout {
    gsize page_bytes, state_bytes, open_bytes;
    gsize *page, *state, *open; /* [layers] */
} CacheLayout;

/* The ranks that share a model, as layout_groups makes them; NULL: this one alone. */
typedef struct ModelGroups {
    Comm *tensor;   /* other heads, experts and vocabulary, the same rows */
    Comm *sequence; /* the rows before and after */
    Comm *expert;   /* other rows and other experts */
    Comm *data;     /* other rows, the same heads: gradients of all but experts add up */
    Comm *replicas; /* other rows, the same experts: gradients of those add up */
} ModelGroups;

typedef struct Model {
    const Ops *ops;
    ModelConfig config;
    WeightFormat format; /* of the matrices, router and head apart */
    OpsWeight embed, head;
    void *final_norm;
    LayerWeights *layers;
    CacheLayout cache;
    ModelGroups groups; /* the caller's */
    double *inv_freq;   /* [rotary_dim / 2] */
    char *weights;      /* one allocation behind every pointer above */
    gsize weights_bytes;
    guint64 version; /* of the weights; 1 at first, raised by every update */
    char *digest;    /* of `digest_version`, once asked for */
    guint64 digest_version;
} Model;

/* A model without weights, for those who ask how large things will be: ops, shape, sizes. */
Model *model_shape(const Ops *ops, const ModelConfig *config, WeightFormat format);
/* Every weight zero. Fails when the memory is not to be had. */
Model *model_new(const Ops *ops, const ModelConfig *config, WeightFormat format, GError **error);
void model_free(Model *model);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Model, model_free)

/* Packs one tensor from real rows, row-major, or unpacks it. */
void model_set(Model *model, const TensorInfo *tensor, const void *rows);
void model_get(const Model *model, const TensorInfo *tensor, void *rows);

/* The same for all of them. `weights` is in the type of the ops (F32, F64) and may be freed.
 * `chunk` is that of its caches and sums, part of the numerics; 0: the config's. */
Model *model_from_weights(const Ops *ops, const Weights *weights, WeightFormat format, guint chunk,
                          GError **error);
/* config.json and checkpoint of a directory. */
Model *model_load(const Ops *ops, const char *dir, WeightFormat format, guint chunk,
                  GError **error);

/* SHA-256 of the packed weights, in hex: reads all of them once for every version. */
const char *model_digest(Model *model);

/* Element i of an array in the type of the ops. */
static inline double model_number(const Model *model, const void *array, gsize i)
{
    return model->ops->real == OPS_F64 ? ((const double *)array)[i]
                                       : (double)((const float *)array)[i];
}

static inline void model_number_set(const Model *model, void *array, gsize i, double value)
{
    if (model->ops->real == OPS_F64)
        ((double *)array)[i] = value;
    else
        ((float *)array)[i] = (float)value;
}

/* The sizes that the attention ops want. */
OpsHeads model_heads(const ModelConfig *config);

/* exp(-slope n), n = 0..C, for every head of layer `layer` as ops.h wants it. The slopes: ALiBi's
 * ladder times 1 - layer / (L - 1) + 1e-5, counted over all layers (m1: modeling_minimax_m1.py,
 * _build_slope_tensor). In f32 slope and factor are rounded to f32 first, as published. */
void model_decay(void *decay, const ModelConfig *config, guint layer, OpsReal real);
double model_slope(const ModelConfig *config, guint layer, guint head, OpsReal real);
