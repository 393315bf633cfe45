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
 * Several ranks share the work (ranks.h): a minibatch is cut into shares, data rank r of R works on
 * shares r, r + R, ..., and the gradients of shares are added in the order of shares. So the bits
 * depend on the number of shares, never on that of data ranks. Ranks that have the same parameters
 * keep the moments of a part of them each, step that part and give its weights to the others
 * (ZeRO-1: arXiv 1910.02054). With tp, ep or sp (layout.h) a data rank is several ranks, and what
 * a rank computes with is its part of the model.
 */
#pragma once

#include "policy/backward.h"
#include "policy/layout.h"
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
    Layout layout; /* dp is what tp and sp leave of the ranks, whatever is said */
    guint shares;  /* a multiple of dp; 0: dp */
    double wait_s; /* how long ranks wait for each other's work; 0: for ever */
} TrainerRanks;

/* Parameters that all ranks of a group have: each of them steps with a part. */
typedef struct TrainerBlock {
    Comm *comm;
    gsize first;               /* element of Params */
    gsize *ends;               /* [ranks] from `first`: rank r has ends[r - 1] .. ends[r] */
    Params *moment1, *moment2; /* of this rank's part */
    Params *sum;               /* of all gradients, this part; NULL: those in grads are it */
} TrainerBlock;

/* The shape of one of the tp x ep different parts of a model. */
typedef struct TrainerPart {
    ModelConfig config;
    gsize *offset, ends[PARAMS_BLOCKS]; /* as in Params */
} TrainerPart;

typedef struct Trainer {
    Model *model;      /* what this rank computes with */
    ModelConfig whole; /* the shape that it is a part of, or has */
    Model *follows;    /* rank 0: the caller's whole model, or its shape; NULL: it is `model` */
    gboolean gives;    /* rank 0's whole model has weights, and gets these after each step */
    Model *reference;  /* of ROLLOUT_REF, this rank's part; NULL: none */
    gboolean is_part;  /* the model is the trainer's own */
    Params *master, *grads; /* of `model` */
    TrainerBlock blocks[PARAMS_BLOCKS];
    gint64 steps; /* taken */
    Comm *comm;
    gboolean alone; /* the group is the trainer's own */
    Layout layout;
    ModelGroups groups;
    TrainerPart *parts; /* [tp ep] */
    guint shares;
    double wait_s;

    Packer *packer;
    Acts *acts;
    Backward *backward;
    char *hidden, *dhidden, *head, *scratch; /* [rows, D] twice; of the head's op; by target */
    gsize head_n;                            /* numbers there */
    LossToken *tokens;
} Trainer;

/* Takes the model's weights as they are. Everything is allocated here. `keep`: all activations of
 * rows_max rows, or each layer's input, from which the rest is made a second time: a third more
 * work, no other bits. */
Trainer *trainer_new(Model *model, int rows_max, ActsKeep keep, GError **error);
/* The same on several ranks: this one asks, the others follow (ranks.h) until it is freed. Where
 * they have parts of it, `model` may be a shape alone (model_shape): checkpoint_load is next. */
Trainer *trainer_new_ranks(Model *model, int rows_max, ActsKeep keep, const TrainerRanks *ranks,
                           GError **error);
void trainer_free(Trainer *trainer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Trainer, trainer_free)

/* Bytes that each rank's trainer takes, the model apart; `part`: what a rank of the layout has of
 * it. */
gsize trainer_bytes(const Model *part, int rows_max, ActsKeep keep, const Layout *layout,
                    guint shares);
/* What of it are moments, and sums of gradients: less, the more ranks there are. */
gsize trainer_moments_bytes(const Model *part, const Layout *layout);
gsize trainer_sums_bytes(const Model *part, const Layout *layout, guint shares);
/* The layout that `ranks` ranks make with these tp, ep and sp. Refuses what cannot be shared so,
 * with the numbers. */
gboolean trainer_layout(const ModelConfig *whole, const Layout *wanted, guint ranks, Layout *ret,
                        GError **error);
/* Do its ranks meet within a pass? */
gboolean trainer_is_cut(const Layout *layout);
/* Refuses shares that data ranks cannot deal out evenly, with both numbers. */
gboolean trainer_shares(guint ranks, guint shares, guint *ret_shares, GError **error);

/* Log-probabilities of all trained tokens into a field of each rollout that is made if need be:
 * under the present weights, or for ROLLOUT_REF under the reference's where there is one. */
typedef enum RolloutField { ROLLOUT_ANCHOR, ROLLOUT_REF } RolloutField;
gboolean trainer_logprobs(Trainer *trainer, RolloutGroup *const *groups, guint n,
                          double temperature, RolloutField field, GError **error);

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

/* ---- what ranks.c and checkpoint.c are made of; all of it on every rank at once ---- */

/* A trainer that has joined its ranks, to be built with this rank's part of the model. */
Trainer *trainer_begin(const ModelConfig *whole, const TrainerRanks *ranks, GError **error);
gboolean trainer_build(Trainer *trainer, Model *model, int rows_max, ActsKeep keep, GError **error);
/* What trainer_gradients and trainer_step do, and trainer_logprobs for some of the groups. */
gboolean trainer_logprobs_here(Trainer *trainer, RolloutGroup *const *groups, guint n,
                               double temperature, RolloutField field, GError **error);
/* The field of a rollout, NULL until it is made. */
float **trainer_field(Rollout *rollout, RolloutField field);
gboolean trainer_gradients_here(Trainer *trainer, RolloutGroup *const *groups, guint n,
                                const TrainerLoss *loss, TrainerTokensFunc func, gpointer user,
                                TrainerStats *stats, GError **error);
gboolean trainer_step_here(Trainer *trainer, const TrainerStep *step, TrainerStats *stats,
                           GError **error);
/* FALSE with the reason once the ranks have failed. */
gboolean trainer_joined(const Trainer *trainer, GError **error);

/* --- step.c */

gboolean trainer_hold(Trainer *trainer, GError **error); /* the optimiser's numbers */
void trainer_let_go(Trainer *trainer);
/* Where the part of rank `rank` of `ranks` ends in a block of `count` elements. */
gsize trainer_part_end(gsize count, guint rank, guint ranks);
/* This rank's gradients into the sums over ranks; nothing where grads are the sum. */
void trainer_reduce(Trainer *trainer);
void trainer_gradients_zero(Trainer *trainer);

/* --- parts.c: whole tensors out of all ranks' parts, and into them */

typedef enum TrainerKept {
    KEPT_WEIGHTS = 0, /* unrounded */
    KEPT_MOMENT1,
    KEPT_MOMENT2,
    KEPT_REFERENCE, /* only put */
} TrainerKept;

/* Tensor number `tensor` of the whole model: rows [its count] of rank 0, in the type of the ops.
 * The model's own weights are set by parts_set and read by nobody here. */
void parts_get(Trainer *trainer, TrainerKept kept, guint tensor, void *rows);
void parts_put(Trainer *trainer, TrainerKept kept, guint tensor, const void *rows);
/* The unrounded weights become the model's, and the followed one's. */
void parts_set(Trainer *trainer);
