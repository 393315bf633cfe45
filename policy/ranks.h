/*
 * One trainer on many ranks: the first rank trains as if alone, the others follow.
 *
 *     rank 0                                        every other rank
 *     t = trainer_new_ranks(model, ..., &ranks)     ranks_follow(comm, ops, error)
 *     trainer_gradients(t, ...); trainer_step(t)        its shares, its part of the parameters
 *     trainer_free(t); ranks_dismiss(comm)              returns TRUE
 *
 * Followers read no file: shape, weights, moments and rollouts come from rank 0, tensor by tensor.
 * What fails on one rank fails on rank 0 with that rank's number. Where ranks have parts of the
 * model, rank 0's own whole one follows: it gets the weights after every step.
 */
#pragma once

#include "policy/trainer.h"

/* Does what rank 0 says, with the same ops, until it is dismissed. FALSE: it could not, or the
 * ranks have failed. */
gboolean ranks_follow(Comm *comm, const Ops *ops, GError **error);
/* Ends every follower. Nothing where there are none. */
void ranks_dismiss(Comm *comm);

/* One tensor of the whole model, as a checkpoint has it (parts_get, parts_put), asked by rank 0. */
gboolean ranks_get(Trainer *trainer, TrainerKept kept, guint tensor, void *rows, GError **error);
gboolean ranks_put(Trainer *trainer, TrainerKept kept, guint tensor, const void *rows,
                   GError **error);
/* The unrounded weights that were put are the model's, with these counts, on all ranks. */
gboolean ranks_restore(Trainer *trainer, gint64 steps, guint64 version, GError **error);

/* What trainer.c tells the followers: to build the same trainer, and what to do next. */
Trainer *ranks_gather(Model *model, int rows_max, ActsKeep keep, const TrainerRanks *ranks,
                      GError **error);
/* Room for the weights of a reference, to be put. */
gboolean ranks_reference(Trainer *trainer, GError **error);
gboolean ranks_ask_gradients(Trainer *trainer, RolloutGroup *const *groups, guint n,
                             const TrainerLoss *loss, GError **error);
/* trainer_logprobs, each rank some of the groups. */
gboolean ranks_logprobs(Trainer *trainer, RolloutGroup *const *groups, guint n, double temperature,
                        RolloutField field, GError **error);
gboolean ranks_ask_step(Trainer *trainer, const TrainerStep *step, GError **error);
