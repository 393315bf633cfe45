/*
 * A model's weights in memory: one allocation, every tensor at a multiple of 256 bytes.
 *
 *     g_autoptr(Weights) w = weights_load("models/tiny", TENSOR_F32, error);
 *     const float *q = weights_tensor(w, 7, SLOT_Q, 0);        [heads d, H]
 */
#pragma once

#include "policy/tensors.h"

typedef struct Weights Weights;

/* All zero. F32 and F64 are computed with; F16 and BF16 may be held too. More than the machine has
 * memory is refused with the numbers, before any allocation. */
Weights *weights_new(const ModelConfig *config, TensorDtype dtype, GError **error);
/* Reads DIR/config.json and the checkpoint beside it; values become the nearest of `dtype`. */
Weights *weights_load(const char *dir, TensorDtype dtype, GError **error);
/* Writes both; `dtype` as tensors_dtype means it. The directory may hold no checkpoint yet. */
gboolean weights_save(const Weights *weights, const char *dir, TensorDtype dtype, GError **error);
void weights_free(Weights *weights);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Weights, weights_free)

const ModelConfig *weights_config(const Weights *weights);
TensorDtype weights_dtype(const Weights *weights);
/* One tensor, row major. `layer` and `expert` are 0 where the slot has none. */
void *weights_tensor(const Weights *weights, guint32 layer, TensorSlot slot, guint32 expert);
void *weights_at(const Weights *weights, guint index); /* by number, as tensors_info's */
gsize weights_bytes(const Weights *weights);

/* Elements first .. first + n - 1 of a checked checkpoint's tensor, codes decoded. */
void weights_values(const Safetensors *st, const TensorInfo *info, const SafeTensor *tensor,
                    guint64 first, gsize n, double *values);
/* One tensor of a checked checkpoint, whole, as `dtype`. */
void weights_read(const Safetensors *st, const TensorInfo *info, TensorDtype dtype, void *rows);
/* dst[i] = src[i], rounded to nearest even where dst is narrower; NaN stays NaN. */
void weights_convert(gpointer dst, TensorDtype dst_dtype, gconstpointer src, TensorDtype src_dtype,
                     guint64 count);
