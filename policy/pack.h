/*
 * Groups laid out for the model: rows of a batch, spans with their caches, and which rows predict
 * trained tokens. The whole chunks of a prompt are one span that all its rollouts continue, so a
 * prompt is worked once in both directions whatever the size of its group.
 *
 *     Packer *packer = packer_new(model, rows_max, error);
 *     packer_begin(packer, groups, n);
 *     while (packer_next(packer, error)) ... packer->batch, cache_grads, targets
 *
 * Groups come in their order, cut where a batch is full. By the contract of ops.h no number of a
 * row depends on the cut.
 */
#pragma once

#include "policy/forward.h"
#include "policy/rollout.h"

/* Row `row` predicts token `at` of `rollout`. */
typedef struct PackTarget {
    int row, id, at;
    Rollout *rollout;
    guint number; /* of the rollout in this batch */
} PackTarget;

typedef struct Packer {
    Batch batch;
    OpsSpanGrad *cache_grads; /* [n_spans] zeroed */
    PackTarget *targets;      /* [n_targets] by rollout, then by row */
    guint n_targets, n_rollouts;

    const Model *model;
    int rows_max;
    int *ids;
    gint64 *positions;
    guint16 *given; /* [rows_max, layers, K], from when it is first wanted */
    OpsSpan *spans;
    void **state_grads;    /* [n_spans] of the state after a prompt's span; NULL: not continued */
    GPtrArray *page_lists; /* what spans[].pages and cache_grads[].dpages point to */
    int padding;           /* rows of the batch that are nobody's */

    /* One rank's rows of the batch, see packer_cut. */
    Batch piece;
    int piece_row;            /* of the batch, its first */
    OpsSpanGrad *piece_grads; /* [piece.n_spans] */
    guint target_first, target_end;
    guint *target_ends; /* [ranks] of all of them */
    OpsSpan *cut_spans; /* room for pieces */
    OpsSpanGrad *cut_grads;
    struct PackBlocks *blocks;
    RolloutGroup *const *groups;
    guint n_groups, group, next; /* cursor: rollout `next` of `group` */
} Packer;

Packer *packer_new(const Model *model, int rows_max, GError **error);
void packer_free(Packer *packer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Packer, packer_free)

void packer_begin(Packer *packer, RolloutGroup *const *groups, guint n);
/* Lays out the next batch. FALSE at the end, and (with `error` set) when a rollout alone is too
 * long, or memory is short. Skipped groups and rollouts without trained tokens take no rows. */
gboolean packer_next(Packer *packer, GError **error);

/* Adds rows that predict nothing, until there are `rows` of them at least. FALSE: no memory. */
gboolean packer_pad(Packer *packer, int rows, GError **error);
/* The piece of rank `rank` of `ranks` that share the batch's rows evenly, each at least one. */
void packer_cut(Packer *packer, guint rank, guint ranks);

/* Cuts the groups into `shares` runs of about as many rows: share s is groups ends[s - 1] ..
 * ends[s], from 0 for s = 0. A function of the groups alone. */
void pack_shares(const Model *model, RolloutGroup *const *groups, guint n, guint shares,
                 guint *ends);

/* Rows of the prompt that its rollouts share: whole chunks, the last token never among them; none
 * where ranks share the rows of a batch. */
int pack_shared(const Model *model, const RolloutGroup *group);
