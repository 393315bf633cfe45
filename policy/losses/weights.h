/* Weights that several losses share, which then differ in bounds, advantages and normalisers. */
#pragma once

#include "policy/loss.h"

/* c = r, or 0 where moving on in the direction of A would leave the region (arXiv 1707.06347). */
static inline double weight_clip(const LossOptions *o, const LossToken *t)
{
    if (t->advantage > 0 && t->ratio > 1 + o->eps_high)
        return 0;
    if (t->advantage < 0 && t->ratio < 1 - o->eps_low)
        return 0;
    return t->ratio;
}

static inline double weight_one(const LossOptions *o, const LossToken *t)
{
    (void)o, (void)t;
    return 1;
}
