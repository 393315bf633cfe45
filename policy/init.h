/*
 * Random models: presets of shapes, and weights drawn from a seed.
 *
 * Values: norms 1; the embedding N(0, 0.02^2); every other matrix Xavier normal, that is
 * N(0, g^2 2 / (in + out)), where g = (8 L)^(-1/4) for v and output projections and the experts'
 * matrices, else 1 (DeepNet, arXiv 2203.00555, for decoders; with alpha = (2 L)^(1/4) at run time).
 * The fused qkv_proj is three matrices. Rows from vocab_valid on are zero, as published.
 *
 * Element j of tensor t (its number in tensors.h) is lane j mod 4 of Philox4x32-10 at counter
 * (j / 4, t) under the seed: independent of threads, shards and the order of writing.
 */
#pragma once

#include "policy/weights.h"

/* tiny (of the golden vectors), t14, t57, s2b (goals), m1 (published). Another is NOT_FOUND. */
gboolean init_preset(const char *name, ModelConfig *config, GError **error);
const char *const *init_presets(void);

/* `count` elements of tensor `index` from `first` on. */
void init_values(const ModelConfig *config, guint64 seed, guint index, guint64 first, guint64 count,
                 double *out);

/* A random model in memory, or streamed into a new checkpoint of any size. The same values. */
Weights *init_weights(const ModelConfig *config, guint64 seed, TensorDtype dtype, GError **error);
gboolean init_checkpoint(const ModelConfig *config, guint64 seed, TensorDtype dtype,
                         guint64 shard_bytes_max, const char *dir, GError **error);

/* Philox4x32-10 (Salmon et al. 2011, DEShawResearch/random123 include/Random123/philox.h). */
void philox4x32(const guint32 counter[4], const guint32 key[2], guint32 out[4]);
