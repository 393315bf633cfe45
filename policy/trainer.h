/*
 * The training half: log-probabilities of rollouts, gradients of a loss over them, and the step of
 * the optimiser. The forward pass, the chunk grid and the order of sums are those of the engine, so
 * the log-probabilities of a rollout are the very bits that sampling recorded.
 *
 *     advantages(groups, n, ...);  normalise(groups, n, ...);
 *     trainer_gradients(trainer, groups, n, &loss, &stats, error);
 *     trainer_step(trainer, &step, &stats, error);
 *
 * A minibatch is cut into batches of at most rows_max rows; gradients add up over them in order, so
 * the cut changes no bit. The model's weights change in place at a step, and its version rises.
 *
 * Several ranks share the work (ranks.h): a minibatch is cut into shares, rank r of R works on
 * shares r, r + R, ..., and the gradients of shares are added in the order of shares. So the bits
 * depend on the number of shares, never on that of ranks. Each rank keeps the moments of its part
 * of the parameters, steps that part and gives its weights to the others (ZeRO-1: arXiv
 * 1910.02054).
 */
#pragma once

#include "kernels/comm.h"
#include "policy/backward.h"
#include "policy/loss.h"
#include "policy/pack.h"

typedef struct TrainerLoss {
    const Loss *loss;
    LossOptions options; /* as loss_options() gives them */
    double balance;      /* weight of the routers' auxiliary loss, see backward_balance */
    double temperature;  /* of sampling; log-probabilities are taken at it. 0: 1 */
} TrainerLoss;

typedef struct TrainerStep {
    AdamwStep adamw;  /* `step` is the trainer's own business */
    double clip_norm; /* gradients longer than this are shortened to it; 0: never */
} TrainerStep;

typedef struct TrainerStats {
    LossStats loss;
    double grad_norm;      /* before clipping */
    double update_norm;    /* of the step that was taken */
    double router_peak;    /* largest load of an expert, 1: all the same */
    guint64 rerouted;      /* rows of layers that had given experts, and other ones of their own */
    guint64 rows, batches; /* worked on */
    double forward_s, head_s, backward_s;
    double step_s; /* waiting for other ranks' shares included */
    gboolean stepped;
} TrainerStats;

/* Who trains, and in how many shares. Zero: one rank, one share. */
typedef struct TrainerRanks {
    Comm *comm;    /* NULL: one rank. The caller's, for longer than the trainer */
    guint shares;  /* a multiple of the ranks; 0: as many as ranks */
    double wait_s; /* how long ranks wait for each other's work; 0: for ever */
} TrainerRanks;

typedef struct Trainer {
    Model *model;
    Params *master, *grads;    /* whole */
    Params *moment1, *moment2; /* of this rank's part */
    Params *sum;  /* of the gradients of shares, this part; NULL: one share, in grads */
    gint64 steps; /* taken */
    Comm *comm;
    gboolean alone; /* the group is the trainer's own */
    guint shares;
    double wait_s;
    gsize *ends; /* [ranks] rank r's part is elements ends[r - 1] .. ends[r] */

    Packer *packer;
    Acts *acts;
    Backward *backward;
    char *hidden, *dhidden, *head, *scratch; /* [rows, D] twice; of the head's op; by target */
    LossToken *tokens;
} Trainer;

/* Takes the model's weights as they are. Everything is allocated here. `keep`: all activations of
 * rows_max rows, or each layer's input, from which the rest is made a second time: a third more
 * work, no other bits. */
Trainer *trainer_new(Model *model, int rows_max, ActsKeep keep, GError **error);
/* The same on several ranks: this one asks, the others follow (ranks.h) until it is freed. */
Trainer *trainer_new_ranks(Model *model, int rows_max, ActsKeep keep, const TrainerRanks *ranks,
                           GError **error);
void trainer_free(Trainer *trainer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Trainer, trainer_free)

/* Bytes that each rank's trainer of this shape takes, the model apart. */
gsize trainer_bytes(const Model *model, int rows_max, ActsKeep keep, guint ranks, guint shares);
/* What of it are moments: less, the more ranks there are. */
gsize trainer_moments_bytes(const Model *model, guint ranks);
/* Refuses shares that ranks cannot deal out evenly, with both numbers. */
gboolean trainer_shares(guint ranks, guint shares, guint *ret_shares, GError **error);

/* Log-probabilities of all trained tokens into a field of each rollout that is made if need be,
 * under the present weights, or those of `model`, of the same shape and ops. Ranks share the work
 * under the trainer's own weights. */
typedef enum RolloutField { ROLLOUT_ANCHOR, ROLLOUT_REF } RolloutField;
gboolean trainer_logprobs(Trainer *trainer, const Model *model, RolloutGroup *const *groups,
                          guint n, double temperature, RolloutField field, GError **error);

/* Called with the tokens of each batch once their coefficients stand: assay train explain. */
typedef void (*TrainerTokensFunc)(const Packer *packer, const LossToken *tokens, gpointer user);

/* Adds the gradients of the groups' loss. On an error they are zeroed: nothing is left behind. */
gboolean trainer_gradients(Trainer *trainer, RolloutGroup *const *groups, guint n,
                           const TrainerLoss *loss, TrainerTokensFunc func, gpointer user,
                           TrainerStats *stats, GError **error);

/* Clips, steps, zeroes the gradients. Without any trained token since the last step nothing
 * happens: no decay of moments, no new version. A gradient that is not finite is an error that
 * leaves weights and moments alone. */
gboolean trainer_step(Trainer *trainer, const TrainerStep *step, TrainerStats *stats,
                      GError **error);

/* ---- what ranks.c and checkpoint.c are made of ---- */

/* This rank's part of a trainer over `ranks`, whichever rank it is. */
Trainer *trainer_part(Model *model, int rows_max, ActsKeep keep, const TrainerRanks *ranks,
                      GError **error);
/* What trainer_gradients and trainer_step do on each of the ranks at once, and trainer_logprobs for
 * some of the groups. */
gboolean trainer_logprobs_here(Trainer *trainer, const Model *model, RolloutGroup *const *groups,
                               guint n, double temperature, RolloutField field, GError **error);
/* The field of a rollout, NULL until it is made. */
float **trainer_field(Rollout *rollout, RolloutField field);
gboolean trainer_gradients_here(Trainer *trainer, RolloutGroup *const *groups, guint n,
                                const TrainerLoss *loss, TrainerTokensFunc func, gpointer user,
                                TrainerStats *stats, GError **error);
gboolean trainer_step_here(Trainer *trainer, const TrainerStep *step, TrainerStats *stats,
                           GError **error);
/* FALSE with the reason once the ranks have failed. */
gboolean trainer_joined(const Trainer *trainer, GError **error);
