/*
 * How ranks share one model: which heads, experts, rows of the vocabulary and tokens are whose.
 *
 *     ranks = tp sp dp, rank = (dp' sp + sp') tp + tp'
 *
 *  tp  tensor: heads of both kinds of attention, rows of embedding and head, experts. Its ranks see
 *      the same tokens, and add up what each made of them
 *  sp  sequence: consecutive rows of one batch, cut anywhere
 *  dp  data: other batches
 *  ep  expert: groups of ep ranks out of the sp dp that differ in tokens; each token goes to the
 *      rank that has its expert, and back
 *
 * A rank's part is a model with fewer heads and experts, see ModelConfig; forward.c and backward.c
 * run it like any other, and call shard.h where ranks must meet.
 */
#pragma once

#include "kernels/comm.h"
#include "policy/model.h"

typedef struct Layout {
    guint32 tp, ep, dp, sp; /* 0 is 1, but dp 0 is what ep needs */
} Layout;

/* With all four set, at least 1 each. Refuses what does not divide: tp the heads, tp and kv heads
 * one the other, tp ep and experts one the other, ep the sp dp. */
gboolean layout_check(const ModelConfig *config, const Layout *layout, Layout *ret, GError **error);
guint32 layout_ranks(const Layout *layout);

/* The config of rank `rank`'s part. Refuses more ranks than kv heads or experts to deal out, which
 * can be planned for and not yet be run. */
gboolean layout_part(const ModelConfig *whole, const Layout *layout, guint32 rank, ModelConfig *ret,
                     GError **error);
/* Between a tensor of the whole model and a rank's part of it, rows of `size` bytes an element. */
typedef enum LayoutCopy { LAYOUT_CUT = 0, LAYOUT_PASTE } LayoutCopy;
void layout_copy(const ModelConfig *whole, const ModelConfig *part, const TensorInfo *of_part,
                 void *whole_rows, void *part_rows, gsize size, LayoutCopy way);
/* The number in the whole model of the part's tensor. */
guint layout_tensor(const ModelConfig *whole, const ModelConfig *part, const TensorInfo *of_part);

/* Splits `world`; FALSE when it has failed. Every group is closed by layout_groups_clear. */
gboolean layout_groups(const Layout *layout, Comm *world, ModelGroups *ret, GError **error);
void layout_groups_clear(ModelGroups *groups);
