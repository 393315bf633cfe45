/*
 * From rewards to numbers per token: advantages, and the normaliser Z of the loss.
 *
 * Advantages, with m and s the mean and deviation over the group's scorable rollouts:
 *     grpo         (R - m) / (s + eps)                      arXiv 2402.03300; M1 section 3.1
 *     dr_grpo      R - m                                    arXiv 2503.20783
 *     rloo         R - mean of the others = n/(n-1) (R - m) arXiv 2402.14740
 *     batch_std    (R - m) / (s over the batch + eps)       arXiv 2510.13786 (ScaleRL)
 *     reinforce++  R less the batch's token-weighted mean, over its deviation   arXiv 2501.03262
 *     reinforce++_baseline  R - m, then whitened as above
 *     max_rl       (R - m) / m, 0 where m is not above 0
 *     passk        best minus second best, for the best one only
 *     reward       R itself
 * Deviations are those of a sample (n - 1) unless said otherwise.
 *
 * Normalisers, Z of a token; the minibatch's, over all micro-batches and ranks:
 *     group_tokens  trained tokens of its group, times groups     M1's equation 4
 *     batch_tokens  trained tokens of the minibatch               DAPO, arXiv 2503.14476
 *     seq_mean      trained tokens of its rollout, times rollouts GRPO
 *     const         rollouts times a fixed length                 Dr. GRPO
 *     seq_sum       rollouts
 */
#pragma once

#include "policy/rollout.h"

typedef enum AdvantageKind {
    ADVANTAGE_GRPO = 0,
    ADVANTAGE_DR_GRPO,
    ADVANTAGE_RLOO,
    ADVANTAGE_BATCH_STD,
    ADVANTAGE_REINFORCE_PP,
    ADVANTAGE_REINFORCE_PP_BASELINE,
    ADVANTAGE_MAX_RL,
    ADVANTAGE_PASSK,
    ADVANTAGE_REWARD,
    ADVANTAGE_KINDS,
} AdvantageKind;

typedef enum NormKind {
    NORM_GROUP_TOKENS = 0,
    NORM_BATCH_TOKENS,
    NORM_SEQ_MEAN,
    NORM_CONST,
    NORM_SEQ_SUM,
    NORM_KINDS,
} NormKind;

const char *advantage_name(AdvantageKind kind);
const char *norm_name(NormKind kind);

typedef struct AdvantageOptions {
    AdvantageKind kind;
    double eps;          /* beside the deviation; 0: 1e-4 */
    gboolean population; /* deviations divide by n, not n - 1 */
} AdvantageOptions;

typedef struct AdvantageStats {
    guint groups, skipped;       /* skipped: solve_none, solve_all and others without a spread */
    guint solve_none, solve_all; /* every scorable reward at most 0; at least 1 */
    guint rollouts, unscorable;
    double reward_mean, reward_std, reward_max; /* of the scorable; std divides by n */
} AdvantageStats;

/* Sets `advantage` of every rollout and `skipped` of every group: a group without two scorable
 * rollouts, or whose rewards are all the same, has nothing to say (its advantages are 0). With
 * ADVANTAGE_REWARD and ADVANTAGE_REINFORCE_PP only groups without scorable rollouts are skipped. */
void advantages(RolloutGroup *const *groups, guint n, const AdvantageOptions *options,
                AdvantageStats *stats);

typedef struct NormOptions {
    NormKind kind;
    gboolean over_all; /* skipped groups count in Z too */
    int length;        /* NORM_CONST */
} NormOptions;

/* Sets `scale` of every rollout. Masks alone decide, so it comes before any forward pass. */
void normalise(RolloutGroup *const *groups, guint n, const NormOptions *options);

/* Unbiased estimate of the chance that one of k draws passes, c of n passed (arXiv 2107.03374). */
double pass_at_k(guint n, guint c, guint k);
