/*
 * Where the ranks that share a model must meet within a pass, each point by its name. With a model
 * that is whole, every one of them is the op it stands for, or nothing.
 *
 * Ranks of CPUs: arrays are read in main memory. A failure of the ranks stays in them (comm.h): a
 * pass goes on to its end with numbers that mean nothing, and who ran it asks comm_failed.
 */
#pragma once

#include "policy/forward.h"

/* TRUE: some heads of this model are elsewhere. */
gboolean shard_is_needed(const Model *model);

/* x [n] becomes its sum over the tensor group: outputs of rows that each rank made in part, or
 * gradients of what all of them read. */
void shard_sum(const Model *model, void *x, gsize n);
/* TRUE on one rank of the tensor group: what must enter a sum once enters it there. */
gboolean shard_is_first(const Model *model);

/* Rows of the embedding, each on the rank that has it. */
void shard_embed_fwd(const Model *model, void *y, const int *ids, int rows);
void shard_embed_bwd(const Model *model, void *dw, const void *dy, const int *ids, int rows);

/* Ops.gatenorm_fwd and its reverse with the mean square, and the mean of the reverse, over all
 * heads of the group: one number a row is added up each. `mixed` as forward left it. */
void shard_gatenorm_fwd(const Model *model, LayerActs *acts, const void *w, int rows);
void shard_gatenorm_bwd(const Model *model, void *do_, void *dg, void *dw, const void *dmixed,
                        const LayerActs *acts, const void *w, int rows);

/* Ops.head_fwd and _bwd over this part of the head, ids of the whole vocabulary: three numbers a
 * row are gathered, and dx [rows, D] is summed. */
void shard_head_fwd(const Model *model, void *logp, void *lse, void *entropy, const void *x,
                    const int *ids, int rows, double temperature, void *scratch);
void shard_head_bwd(const Model *model, void *dx, void *dw, const void *x, const HeadGrad *grad,
                    int rows, double temperature, void *scratch);
