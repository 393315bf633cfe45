/* Dual-clip PPO, arXiv 1912.09729: for A < 0 the objective is constant beyond r = dual_cap. */
#include "policy/losses/weights.h"

static double weight(const LossOptions *o, const LossToken *t)
{
    return t->advantage < 0 && t->ratio > o->dual_cap ? 0 : weight_clip(o, t);
}

const Loss loss_dual_clip = {
    .name = "dual_clip",
    .summary = "PPO-clip, also masked where the advantage is negative and the ratio over dual_cap",
    .weight = weight,
    .defaults = {.eps_low = 0.2, .eps_high = 0.2, .dual_cap = 3},
    .norm = NORM_BATCH_TOKENS,
};
