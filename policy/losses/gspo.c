/* GSPO, arXiv 2507.18071: PPO-clip with the ratio of the whole rollout, exp of the mean over its
 * trained tokens, for each of them. */
#include "policy/losses/weights.h"

static double weight(const LossOptions *o, const LossToken *t)
{
    LossToken whole = *t;

    whole.ratio = t->sequence;
    return weight_clip(o, &whole);
}

const Loss loss_gspo = {
    .name = "gspo",
    .summary = "the ratio of the whole rollout, masked as PPO does; with normaliser = seq_mean",
    .weight = weight,
    .defaults = {.eps_low = 3e-4, .eps_high = 4e-4},
    .norm = NORM_SEQ_MEAN,
};
