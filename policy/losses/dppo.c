/* DPPO with total variation, as PrimeIntellect-ai/prime-rl has it: the ratio, or 0 where the
 * probability has already moved by more than tv_max in the direction of A. */
#include "policy/loss.h"

#include <math.h>

static double weight(const LossOptions *o, const LossToken *t)
{
    double moved = exp(t->logp) - exp(t->anchor);

    if (t->advantage > 0 && moved > o->tv_max)
        return 0;
    if (t->advantage < 0 && moved < -o->tv_max)
        return 0;
    return t->ratio;
}

const Loss loss_dppo = {
    .name = "dppo",
    .summary = "the ratio, masked where a probability moved by more than tv_max",
    .weight = weight,
    .defaults = {.tv_max = 0.2},
    .advantage = ADVANTAGE_DR_GRPO,
    .norm = NORM_BATCH_TOKENS,
};
