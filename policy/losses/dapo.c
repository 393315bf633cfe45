/* DAPO, arXiv 2503.14476: PPO-clip with a wider upper bound. Its mean over tokens is that of
 * advantage.h. */
#include "policy/losses/weights.h"

const Loss loss_dapo = {
    .name = "dapo",
    .summary = "PPO-clip with eps_high 0.28; with normaliser = batch_tokens",
    .weight = weight_clip,
    .defaults = {.eps_low = 0.2, .eps_high = 0.28},
    .norm = NORM_BATCH_TOKENS,
};
