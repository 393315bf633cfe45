/* GRPO, arXiv 2402.03300: PPO-clip. Its advantages and its mean by rollout are advantage.h's. */
#include "policy/losses/weights.h"

const Loss loss_grpo = {
    .name = "grpo",
    .summary = "PPO-clip; with advantage = grpo, normaliser = seq_mean",
    .weight = weight_clip,
    .defaults = {.eps_low = 0.2, .eps_high = 0.2},
    .norm = NORM_SEQ_MEAN,
};
