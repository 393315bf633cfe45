/*
 * One trainer on many ranks: the first rank trains as if alone, the others follow.
 *
 *     rank 0                                        every other rank
 *     t = trainer_new_ranks(model, ..., &ranks)     ranks_follow(comm, error)
 *     trainer_gradients(t, ...); trainer_step(t)        its shares, its part of the parameters
 *     trainer_free(t); ranks_dismiss(comm)              returns TRUE
 *
 * Followers read no file: shape, weights, moments and rollouts come from rank 0. What fails on one
 * rank fails on rank 0 with that rank's number. Log-probabilities under another model, of which the
 * followers know nothing, are rank 0's work alone.
 */
#pragma once

#include "policy/trainer.h"

/* Does what rank 0 says until it is dismissed. FALSE: it could not, or the ranks have failed. */
gboolean ranks_follow(Comm *comm, GError **error);
/* Ends every follower. Nothing where there are none. */
void ranks_dismiss(Comm *comm);

/* Moments of all parameters, to be written or read: the trainer's own where it is alone. */
typedef struct RanksMoments {
    Params *first, *second;
    gboolean lent;
} RanksMoments;

/* Room for them, and if `fill` every rank's part in it. */
gboolean ranks_moments(Trainer *trainer, gboolean fill, RanksMoments *ret, GError **error);
void ranks_moments_clear(RanksMoments *moments);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(RanksMoments, ranks_moments_clear)
/* The trainer's unrounded weights, these moments, and counts become those of all ranks. */
gboolean ranks_restore(Trainer *trainer, const RanksMoments *moments, gint64 steps, guint64 version,
                       GError **error);

/* What trainer.c tells the followers: to build the same trainer, and what to do next. */
gboolean ranks_gather(Trainer *trainer, ActsKeep keep, GError **error);
gboolean ranks_ask_gradients(Trainer *trainer, RolloutGroup *const *groups, guint n,
                             const TrainerLoss *loss, GError **error);
/* trainer_logprobs under the trainer's weights, each rank some of the groups. */
gboolean ranks_logprobs(Trainer *trainer, RolloutGroup *const *groups, guint n, double temperature,
                        RolloutField field, GError **error);
gboolean ranks_ask_step(Trainer *trainer, const TrainerStep *step, GError **error);
