/*
 * The reverse of forward.h: gradients of every weight from the gradient of the hidden states.
 *
 * A training step is: forward (activations kept), log-probabilities and coefficients, the head's
 * reverse (shard.h), backward, then the optimiser. Whole sequences only: each span begins at
 * position 0, or continues a span of the same batch (a prompt shared by its samples).
 * Equations: reference of ops.h; the skeleton's reverse stands in backward.c.
 */
#pragma once

#include "policy/forward.h"
#include "policy/params.h"

/* Room for the gradients of activations: as many rows as `acts`. */
typedef struct Backward Backward;
Backward *backward_new(const Model *model, int rows_max, int64_t positions_max, GError **error);
gsize backward_bytes(const Model *model, int rows_max, int64_t positions_max);
void backward_free(Backward *backward);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Backward, backward_free)
/* Weight of the auxiliary loss that evens out the loads of experts (route_balance_bwd), over the
 * rows of each batch. 0 at first. */
void backward_balance(Backward *backward, double weight);

/* dhidden [T, D] as left by shard_head_bwd; adds to every tensor's gradient. `acts` must have been
 * kept (all, or inputs), from the same batch, and the caches of its spans must be as forward left
 * them. `cache_grads` are the gradients of the spans' caches, zero at first. */
void backward(Backward *backward, const Model *model, Params *grads, Acts *acts, const Batch *batch,
              const OpsSpanGrad *cache_grads, const void *dhidden);
