/*
 * Rollouts and groups: memory and counts.
 *
 * Not here: advantages (advantage.c), losses (loss.c), how they are made (env/).
 */
#include "policy/rollout.h"

#include <string.h>

void rollout_fill(Rollout *r, const int *ids, const guint8 *mask, const float *mu, int n)
{
    r->n = n;
    r->ids = g_memdup2(ids, (gsize)n * sizeof *ids);
    r->mask = g_malloc((gsize)n + 1);
    r->mu = g_new0(float, (gsize)n + 1);
    memset(r->mask, 1, (gsize)n);
    if (mask)
        memcpy(r->mask, mask, (gsize)n);
    if (mu)
        memcpy(r->mu, mu, (gsize)n * sizeof *mu);
}

RolloutGroup *rollout_group_new(const int *prompt, int prompt_n, guint n)
{
    RolloutGroup *group = g_new0(RolloutGroup, 1);

    group->prompt_n = prompt_n;
    group->prompt = g_memdup2(prompt, (gsize)prompt_n * sizeof *prompt);
    group->n = n;
    group->rollouts = g_new0(Rollout, n);
    return group;
}

void rollout_group_free(RolloutGroup *group)
{
    if (!group)
        return;
    for (guint i = 0; i < group->n; i++) {
        Rollout *r = &group->rollouts[i];

        g_free(r->ids);
        g_free(r->mask);
        g_free(r->mu);
        g_free(r->anchor);
        g_free(r->ref);
        g_free(r->credit);
    }
    g_free(group->rollouts);
    g_free(group->prompt);
    g_free(group);
}

int rollout_trained(const Rollout *r)
{
    int count = 0;

    for (int i = 0; i < r->n && !r->unscorable && !r->no_loss; i++)
        count += r->mask[i] != 0;
    return count;
}
