/* The unified form, arXiv 2506.13585 equations 6 and 7: CISPO's weight, but 0 where PPO would clip.
 * With an endless cap it is PPO's gradient, with an endless region CISPO's. */
#include "policy/loss.h"

static double weight(const LossOptions *o, const LossToken *t)
{
    if (t->advantage > 0 && t->ratio > 1 + o->eps_high)
        return 0;
    if (t->advantage < 0 && t->ratio < 1 - o->eps_low)
        return 0;
    return CLAMP(t->ratio, o->is_floor, MAX(o->is_cap, o->is_floor));
}

const Loss loss_cispo_mask = {
    .name = "cispo_mask",
    .summary = "cispo, masked outside 1 - eps_low .. 1 + eps_high as PPO does",
    .weight = weight,
    .defaults = {.is_cap = 5, .eps_low = 0.2, .eps_high = 0.28},
};
