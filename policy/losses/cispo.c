/* CISPO, arXiv 2506.13585 equations 4 and 5: c = min(max(r, floor), cap). Every token keeps a
 * gradient; the cap, an absolute number, only bounds its size. */
#include "policy/loss.h"

static double weight(const LossOptions *o, const LossToken *t)
{
    return CLAMP(t->ratio, o->is_floor, MAX(o->is_cap, o->is_floor));
}

const Loss loss_cispo = {
    .name = "cispo",
    .summary = "the ratio, at least is_floor and at most is_cap; nothing is masked",
    .weight = weight,
    .defaults = {.is_cap = 5},
};
