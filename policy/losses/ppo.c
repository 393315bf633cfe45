/* PPO-clip, arXiv 1707.06347. */
#include "policy/losses/weights.h"

const Loss loss_ppo = {
    .name = "ppo",
    .summary = "the ratio, masked outside 1 - eps_low .. 1 + eps_high",
    .weight = weight_clip,
    .defaults = {.eps_low = 0.2, .eps_high = 0.2},
    .norm = NORM_SEQ_MEAN,
};
