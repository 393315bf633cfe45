/* REINFORCE: c = 1, whatever the ratio. Right only for the policy that sampled. */
#include "policy/losses/weights.h"

const Loss loss_reinforce = {
    .name = "reinforce",
    .summary = "1: the ratio is left out",
    .weight = weight_one,
};
