/* RLOO, arXiv 2402.14740: c = 1; each reward against the mean of the others (advantage.h). */
#include "policy/losses/weights.h"

const Loss loss_rloo = {
    .name = "rloo",
    .summary = "1; advantage against the mean of the other rollouts",
    .weight = weight_one,
    .advantage = ADVANTAGE_RLOO,
    .norm = NORM_SEQ_SUM,
};
