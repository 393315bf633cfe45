/*
 * Sorting the rows of a batch by expert: the host side of every mixture-of-experts layer.
 *
 * Invariants
 *  1. Within an expert, slots stand in ascending order of row: equal inputs, equal plan.
 *  2. `order` lists a row's choices by ascending expert: the order in which they are combined.
 */
#include "kernels/ops.h"

#include <string.h>

void moe_plan(MoePlan *plan, const int *ids, int rows, int topk, int experts)
{
    int next[OPS_EXPERTS_MAX];

    plan->rows = rows * topk;
    plan->topk = topk;
    plan->experts = experts;
    memset(plan->offsets, 0, (size_t)(experts + 1) * sizeof(int));
    for (int r = 0; r < plan->rows; r++)
        plan->offsets[ids[r] + 1]++;
    for (int e = 0; e < experts; e++) {
        plan->offsets[e + 1] += plan->offsets[e];
        next[e] = plan->offsets[e];
    }
    for (int r = 0; r < plan->rows; r++) {
        plan->slot[r] = next[ids[r]]++;
        plan->source[plan->slot[r]] = r;
    }
    for (int t = 0; t < rows; t++) {
        int *order = plan->order + (size_t)t * topk;
        const int *id = ids + (size_t)t * topk;

        for (int c = 0; c < topk; c++) {
            int at = c;

            for (; at > 0 && id[order[at - 1]] > id[c]; at--)
                order[at] = order[at - 1];
            order[at] = c;
        }
    }
}
