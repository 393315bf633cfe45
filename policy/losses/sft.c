/* Imitation: c = 1. The advantage of a demonstration is its weight, mostly 1. */
#include "policy/losses/weights.h"

const Loss loss_sft = {
    .name = "sft",
    .summary = "1: the tokens of demonstrations, weighted by their reward",
    .weight = weight_one,
    .advantage = ADVANTAGE_REWARD,
    .norm = NORM_BATCH_TOKENS,
};
