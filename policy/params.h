/*
 * A number for every parameter of a model: gradients, moments of the optimiser, unrounded weights.
 */
#pragma once

#include "policy/model.h"

/* Tensors that the same ranks have lie together. */
typedef enum ParamsBlock {
    PARAMS_WHOLE = 0, /* not cut by tensor parallel ranks */
    PARAMS_SPLIT,     /* cut */
    PARAMS_EXPERTS,   /* dealt out */
    PARAMS_BLOCKS,
} ParamsBlock;

/* All tensors, real, row-major, by block and then in the order of tensors.h; one allocation,
 * 64-byte aligned. */
typedef struct Params {
    const Model *model;
    gsize count; /* elements, the padding between tensors (always 0) included */
    gsize held;  /* of them, in data: all, or a part (params_part) */
    void *data;
    gsize *offset;             /* [tensors] in elements */
    gsize ends[PARAMS_BLOCKS]; /* of blocks, in elements */
} Params;

/* All zero. */
Params *params_new(const Model *model, GError **error);
/* Elements first .. end of them: one rank's share of an optimiser. No tensor of it is asked for. */
Params *params_part(const Model *model, gsize first, gsize end, GError **error);
/* Elements of all tensors, padding included. */
gsize params_count(const Model *model);
ParamsBlock params_block(const TensorInfo *tensor);
/* Where every tensor of a model of this shape begins, and its blocks end, in elements. */
gsize *params_offsets(const ModelConfig *config, gsize ends[PARAMS_BLOCKS]);
void params_free(Params *params);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Params, params_free)
void params_zero(Params *params);
void *params_tensor(const Params *params, guint layer, TensorSlot slot, guint expert);
void *params_at(const Params *params, guint tensor); /* by number, as tensors_info's */
gsize params_bytes(const Params *params);

/* Out of a model's packed weights, and into them. */
void params_get(Params *params);
void params_set(const Params *params, Model *model);
