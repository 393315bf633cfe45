/*
 * Policy losses. All of them are one formula with another number in it:
 *
 *     dL = -(1/Z) sum_t  w_t c_t A_t  d log pi(y_t)        over the trained tokens t
 *
 * c is the loss (a function of the ratio, without gradient), w corrects for an engine that sampled
 * under other numerics, and the penalty for leaving a reference model adds to c A. Here these
 * numbers are made, apart from any model; update.c feeds them to the head's backward pass.
 *
 * Ratios: r = exp(logp - anchor), the exponent kept within +-20; s of a rollout = exp of the mean
 * of logp - anchor over its trained tokens.
 *
 * To add one: losses/NAME.c with `loss_NAME`, and the word in meson.build.
 */
#pragma once

#include "policy/advantage.h"

typedef enum MismatchKind {
    MISMATCH_NONE = 0,
    MISMATCH_TIS,      /* min(exp(anchor - mu), cap) by token                */
    MISMATCH_ICEPOP,   /* that weight where it is in [floor, cap], 0 outside */
    MISMATCH_SEQ_TIS,  /* min(exp(sum (anchor - mu)), cap) by rollout        */
    MISMATCH_SEQ_MASK, /* 0 for rollouts whose geometric mean is outside     */
    MISMATCH_KINDS,
} MismatchKind;

typedef enum KlKind {
    KL_NONE = 0,
    KL_K2, /* (logp - ref)^2 / 2: adds beta (logp - ref)      */
    KL_K3, /* exp(ref - logp) - 1 + logp - ref: beta (1 - exp(ref - logp)) */
    KL_KINDS,
} KlKind;

const char *mismatch_name(MismatchKind kind);
const char *kl_name(KlKind kind);

/* What the losses are told. 0 stands for a loss's own default, see Loss.defaults. */
typedef struct LossOptions {
    double is_floor, is_cap;  /* absolute bounds of the ratio: CISPO */
    double eps_low, eps_high; /* trust region 1 - eps_low .. 1 + eps_high */
    double dual_cap;          /* dual-clip, above 1 */
    double tv_max;            /* DPPO: largest step of a probability */
    MismatchKind mismatch;
    double mismatch_floor, mismatch_cap;
    KlKind kl;
    double kl_beta;
    double entropy; /* weight of a bonus for entropy, beside the loss */
} LossOptions;

/* One trained token. */
typedef struct LossToken {
    guint rollout; /* tokens of one rollout follow each other */
    double logp;   /* log-probability now */
    double anchor, mu, ref, entropy;
    double advantage;
    double scale; /* 1 / Z */
    /* set by loss_coefs: */
    double ratio, sequence; /* r, s */
    double weight;          /* c */
    double correction;      /* w */
    double coef, bonus;     /* of -d log pi and -d entropy: what logprob_bwd takes */
} LossToken;

typedef struct Loss {
    const char *name, *summary;
    double (*weight)(const LossOptions *options, const LossToken *token); /* c; 0: no gradient */
    LossOptions defaults;
    AdvantageKind advantage; /* what it was published with */
    NormKind norm;
} Loss;

/* NULL-terminated, in the order of meson.build. */
extern const Loss *const losses[];
const Loss *loss_find(const char *name);
/* `options` with the loss's defaults where they are 0. */
LossOptions loss_options(const Loss *loss, const LossOptions *options);

#define LOSS_BIN  0.01 /* of log r */
#define LOSS_BINS 1001

/* What a minibatch looked like: sums over its tokens. */
typedef struct LossStats {
    guint64 tokens, rollouts;
    double loss; /* -sum coef logp + bonus entropy, those frozen */
    double entropy;
    guint64 ratio_high, ratio_low; /* weight held below, above the ratio */
    guint64 masked;                /* c = 0 */
    double ratio_sum, ratio_max;   /* of r */
    double ratio_min;              /* 0: no token yet */
    guint32 ratio_bins[LOSS_BINS]; /* tokens by log r, in steps of LOSS_BIN around the middle one */
    double kl3;                    /* of pi against the anchor: r - 1 - log r */
    double mismatch_sum;           /* |logp - mu| */
    double mismatch_max;
    double mismatch_k1,
        mismatch_k3;         /* KL of mu against pi: mu - logp; e^d - 1 - d, d = logp - mu */
    double x, y, xx, yy, xy; /* sums over exp(mu), exp(logp): Pearson's correlation */
    double kl_ref;           /* against the reference */
} LossStats;

/* Sets the lower half of every token and adds to `stats`. FALSE when a coefficient is not finite:
 * the message names the token, nothing may be trained on. */
gboolean loss_coefs(const Loss *loss, const LossOptions *options, LossToken *tokens, gsize n,
                    LossStats *stats, GError **error);

/* Adds what another part of the minibatch looked like. */
void loss_stats_add(LossStats *sum, const LossStats *part);

/* Correlation of probabilities when sampled and now; 1 where all are equal. */
double loss_correlation(const LossStats *stats);

/* The ratio that `share` of the tokens do not exceed, to half a percent; 0: there are none. */
double loss_ratio_quantile(const LossStats *stats, double share);

/* Why a token does or does not pull: a word for `assay train explain`. */
const char *loss_reason(const LossToken *token);
