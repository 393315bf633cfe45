/*
 * Experts of other ranks. A layer of a model that has only some of its experts sends every row to
 * the ranks that have the row's experts, in messages of the exact lengths, and gets outputs back.
 *
 * An expert works on the rows of all ranks in the order of ranks and rows. With tp, ranks that see
 * the same rows each send what goes to experts of their own number in the tensor group, and the
 * sums of those are added up.
 */
#pragma once

#include "policy/backward.h"
#include "policy/forward.h"

/* What one layer keeps of the rows that came; see LayerActs.far. */
Far *far_new(void);
void far_free(Far *far);

/* TRUE: some experts of this model are elsewhere. */
gboolean far_is_needed(const ModelConfig *config);

/* y [T, D] = sum over a row's experts, from acts->g, plan, route; like Ops.moe_down_fwd. */
void far_forward(const Model *model, guint layer, LayerActs *acts, int rows, void *y);
/* dx [T, D] and droute [T, K], as Ops.moe_bwd has them; dw1 .. dw2 [experts held] are added to. */
void far_backward(const Model *model, guint layer, LayerActs *acts, int rows, void *dx,
                  void *droute, void *const *dw1, void *const *dw3, void *const *dw2,
                  const void *dy);
