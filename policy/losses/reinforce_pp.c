/* REINFORCE++, arXiv 2501.03262: PPO-clip with advantages whitened over the batch. */
#include "policy/losses/weights.h"

const Loss loss_reinforce_pp = {
    .name = "reinforce++",
    .summary = "PPO-clip; advantage whitened over the tokens of the batch",
    .weight = weight_clip,
    .defaults = {.eps_low = 0.2, .eps_high = 0.2},
    .advantage = ADVANTAGE_REINFORCE_PP,
    .norm = NORM_BATCH_TOKENS,
};
