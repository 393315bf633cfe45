/*
 * The numbers made from a verdict. All are stored side by side, so that any other can be made.
 */
#pragma once

#include "reward/grade.h"

typedef struct RewardInput {
    Resolution resolution;
    double f2p, p2p;         /* fractions, 0..1 */
    gboolean applied;        /* the candidate patch applied */
    gboolean invalid_format; /* the policy's answer could not be read as a patch */
    gboolean suspect;        /* strict mode found evidence of forgery: every part is 0 */
    gboolean similarity_known;
    double similarity; /* to the gold patch, 0..1; read when known */
} RewardInput;

/*
 *   binary     = [FULL]
 *   f2p, p2p   = the fractions, 0 when nothing was graded
 *   partial    = 1 FULL, 0.2 PARTIAL, else 0                         (NeMo-Gym swerl_gen)
 *   shaped     = 1 FULL, else 0.2 [p2p = 1] f2p + 0.05 [applied] - 0.05 [invalid_format]
 *   similarity = SWE-RL's, -1 for an invalid format; 0 when not computed
 *
 * A patch that breaks a passing test never earns more than doing nothing: with p2p < 1 shaped is
 * at most 0. An infrastructure failure has no reward at all; callers mask it and do not come here.
 */
typedef struct Reward {
    double binary, f2p, p2p, partial, shaped, similarity;
} Reward;

Reward reward_make(const RewardInput *in);
