/*
 * Reward vector.
 *
 * Invariants: a zeroed input gives zeros (and a similarity of 0); suspect gives no positive part.
 */
#include "reward/reward.h"

#define PARTIAL_REWARD 0.2
#define F2P_SHARE      0.2
#define APPLIED_BONUS  0.05
#define FORMAT_PENALTY 0.05

static double shaped(const RewardInput *in)
{
    if (in->resolution == RESOLUTION_FULL)
        return 1.0;
    double value = -(in->invalid_format ? FORMAT_PENALTY : 0.0);
    if (in->resolution != RESOLUTION_NONE && in->p2p >= 1)
        value += F2P_SHARE * in->f2p + (in->applied ? APPLIED_BONUS : 0.0);
    return value;
}

Reward reward_make(const RewardInput *in)
{
    Reward reward = {.similarity = in->similarity_known ? in->similarity : 0};
    if (in->invalid_format)
        reward.similarity = -1;
    if (in->suspect) {
        reward.similarity = MIN(reward.similarity, 0);
        reward.shaped = in->invalid_format ? -FORMAT_PENALTY : 0;
        return reward;
    }
    reward.shaped = shaped(in);
    if (in->resolution == RESOLUTION_NONE)
        return reward;
    reward.f2p = in->f2p;
    reward.p2p = in->p2p;
    reward.binary = in->resolution == RESOLUTION_FULL ? 1 : 0;
    reward.partial = in->resolution == RESOLUTION_FULL      ? 1
                     : in->resolution == RESOLUTION_PARTIAL ? PARTIAL_REWARD
                                                            : 0;
    return reward;
}
