/*
 * Which tensors a model has: one table of names, shapes and kinds, in the checkpoint's order.
 *
 *     for (guint i = 0; i < tensors_count(&config); i++) {
 *         TensorInfo info = tensors_info(&config, i);      slot, layer, expert, dims
 *         tensors_name(&info, name);                       "model.layers.7.self_attn.q_proj.weight"
 *     }
 *
 * Order: embedding; per layer the input norm, four tensors of attention, the post-attention norm,
 * the router, and w1, w3, w2 of each expert; the final norm and the head. Layers have equally many.
 * Source of the names: MiniMax-AI/MiniMax-M1, model.safetensors.index.json.
 */
#pragma once

#include "policy/config.h"
#include "policy/safetensors.h"

#define TENSOR_NAME_MAX 96

typedef enum TensorSlot {
    SLOT_EMBED = 0,  /* [V, H] */
    SLOT_INPUT_NORM, /* [H] */
    SLOT_QKV,        /* [3 heads d, H] lightning; rows by head: q, k, v of head 0, then of head 1 */
    SLOT_OUTPUT_GATE, /* [heads d, H] lightning */
    SLOT_ATTN_NORM,   /* [heads d] lightning */
    SLOT_ATTN_OUT,    /* [H, heads d] lightning */
    SLOT_Q,           /* [heads d, H] softmax */
    SLOT_K,           /* [kv_heads d, H] softmax */
    SLOT_V,           /* [kv_heads d, H] softmax */
    SLOT_O,           /* [H, heads d] softmax */
    SLOT_POST_NORM,   /* [H] */
    SLOT_ROUTER,      /* [E, H], kept in F32 in checkpoints of BF16 */
    SLOT_W1,          /* [F, H] gate projection of an expert */
    SLOT_W3,          /* [F, H] up */
    SLOT_W2,          /* [H, F] down */
    SLOT_FINAL_NORM,  /* [H] */
    SLOT_HEAD,        /* [V, H] */
    SLOT_COUNT,
} TensorSlot;

/* What memory and counting tell apart. */
typedef enum TensorClass {
    CLASS_EMBED = 0,
    CLASS_NORM,
    CLASS_LIGHTNING,
    CLASS_SOFTMAX,
    CLASS_ROUTER,
    CLASS_EXPERT,
    CLASS_HEAD,
    CLASS_COUNT,
} TensorClass;

typedef enum TensorInit {
    INIT_ONES = 0,
    INIT_EMBED,  /* normal, std 0.02, zero from vocab_valid on */
    INIT_XAVIER, /* normal, std sqrt(2 / (in + out)) */
    INIT_HEAD,   /* the same, zero from vocab_valid on */
    INIT_QKV,    /* Xavier per q, k, v of all heads; v times the DeepNorm gain */
    INIT_GAIN,   /* Xavier times the DeepNorm gain */
} TensorInit;

/* How tensor parallel ranks share it. */
typedef enum TensorSplit {
    SPLIT_NONE = 0, /* whole on each rank */
    SPLIT_ROWS,
    SPLIT_COLUMNS,
    SPLIT_KV,      /* rows by kv head; with more ranks than heads, one head each */
    SPLIT_EXPERTS, /* whole experts per rank */
} TensorSplit;

typedef struct TensorInfo {
    TensorSlot slot;
    guint32 layer, expert; /* 0 where there is none */
    guint8 rank;
    guint64 dims[2];
    guint64 count;
    TensorClass class;
    TensorInit init;
    TensorSplit split;
} TensorInfo;

guint tensors_count(const ModelConfig *config);
/* The number of a tensor. The slot must be one that the layer has. */
guint tensors_index(const ModelConfig *config, guint32 layer, TensorSlot slot, guint32 expert);
TensorInfo tensors_info(const ModelConfig *config, guint index);
void tensors_name(const TensorInfo *info, char name[TENSOR_NAME_MAX]);
/* What a checkpoint of `dtype` keeps it in: BF16 and F16 files keep the router in F32. */
TensorDtype tensors_dtype(const TensorInfo *info, TensorDtype dtype);
/* All of them as safetensors_write takes them: an array of SafeTensor that owns its names. */
GArray *tensors_plan(const ModelConfig *config, TensorDtype dtype);
const char *tensors_class_name(TensorClass class);

/* All parameters, and those a token touches: matrices of attention, router and its experts, without
 * embedding, head and norms, as the paper counts. */
guint64 tensors_params(const ModelConfig *config);
guint64 tensors_params_class(const ModelConfig *config, TensorClass class);
guint64 tensors_params_active(const ModelConfig *config);

/* Does the checkpoint have exactly these tensors? All kinds of difference are counted, the first
 * few named: "missing 2 (a, b); extra 1 (c); of another shape 1 (d: [4], the config says [8])". */
gboolean tensors_check(const ModelConfig *config, const Safetensors *st, GError **error);
/* The same for an index, names only. */
gboolean tensors_check_names(const ModelConfig *config, GHashTable *names, GError **error);
