/*
 * Rows of one batch on several ranks, cut anywhere: what a rank needs of the rows before its own,
 * and what it gives back to them in the reverse. With a model whose rows are all here, each
 * function is the op of its name.
 *
 * Lightning layers (LASP+, arXiv 2501.08313 section 3.2): with n_r tokens of a sequence on rank r,
 * S_L^r the state that they alone make, G_L^r the gradient that their outputs give to the state
 * before them,
 *
 *     S_in^(r+1) = S_L^r + lambda^(n_r) S_in^r        G_end^(r-1) = G_L^r + lambda^(n_r) G_end^r
 *
 * each only where a sequence goes on over the border, the second term only where the rank lies
 * wholly inside one. S_L and G_L of all ranks are gathered, the sums made in the order of ranks
 * on every rank. Softmax layers gather keys and values, and add up their gradients.
 *
 * Sequences are whole: a span begins at position 0, or is the first of a rank and continues the
 * last one of the rank before (Batch.goes_on there). Every rank has a row. The numbers are those of
 * one rank up to rounding: chunks are counted from a rank's first row, not from position 0.
 */
#pragma once

#include "policy/backward.h"
#include "policy/forward.h"

/* Room for what the passes over one Acts need. */
Seq *seq_new(const Model *model);
void seq_free(Seq *seq);
gboolean seq_is_needed(const Model *model);

/* Before the layers of a pass: who has which rows. */
void seq_begin(const Model *model, Seq *seq, const Batch *batch);

/* acts->o from acts->qkv; acts->mixed is used on the way. */
void seq_lightning_fwd(const Model *model, guint layer, LayerActs *acts, const Batch *batch);
void seq_lightning_bwd(const Model *model, guint layer, LayerActs *acts, const Batch *batch,
                       const OpsSpanGrad *grads, void *dqkv, const void *do_, void *states);
/* acts->o, lse from acts->q, k, v. */
void seq_attn_fwd(const Model *model, guint layer, LayerActs *acts, const Batch *batch);
void seq_attn_bwd(const Model *model, guint layer, LayerActs *acts, const Batch *batch,
                  const OpsSpanGrad *grads, void *dq, void *dk, void *dv, const void *do_);
