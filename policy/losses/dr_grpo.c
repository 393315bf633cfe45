/* Dr. GRPO, arXiv 2503.20783: PPO-clip; neither deviation nor length divide (advantage.h). */
#include "policy/losses/weights.h"

const Loss loss_dr_grpo = {
    .name = "dr_grpo",
    .summary = "PPO-clip; advantage less the mean alone, over a fixed length",
    .weight = weight_clip,
    .defaults = {.eps_low = 0.2, .eps_high = 0.2},
    .advantage = ADVANTAGE_DR_GRPO,
    .norm = NORM_CONST,
};
