/* TOPR, arXiv 2503.14286: 1 for what went well, the ratio within [0, 1] for what did not. */
#include "policy/loss.h"

static double weight(const LossOptions *o, const LossToken *t)
{
    (void)o;
    return t->advantage >= 0 ? 1 : MIN(t->ratio, 1);
}

const Loss loss_topr = {
    .name = "topr",
    .summary = "1 where the advantage is positive, else the ratio up to 1",
    .weight = weight,
};
