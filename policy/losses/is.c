/* Importance sampling, arXiv 2506.13585 equation 3 with its token sum: c = r, without any bound. */
#include "policy/loss.h"

static double weight(const LossOptions *o, const LossToken *t)
{
    (void)o;
    return t->ratio;
}

const Loss loss_is = {
    .name = "is",
    .summary = "the ratio, unbounded",
    .weight = weight,
};
