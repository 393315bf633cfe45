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

static guint16 *routes_new(int n, guint width)
{
    guint16 *routes = g_new(guint16, (gsize)n * width + 1);

    memset(routes, 0xff, (gsize)n * width * sizeof *routes); /* FORWARD_OWN */
    return routes;
}

void rollout_group_routes(RolloutGroup *group, guint width)
{
    group->width = width;
    group->experts = routes_new(group->prompt_n, width);
    for (guint i = 0; i < group->n; i++)
        group->rollouts[i].experts = routes_new(group->rollouts[i].n, width);
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
        g_free(r->experts);
        g_free(r->credit);
    }
    g_free(group->rollouts);
    g_free(group->prompt);
    g_free(group->experts);
    g_free(group);
}

int rollout_trained(const Rollout *r)
{
    int count = 0;

    for (int i = 0; i < r->n && !r->unscorable && !r->no_loss; i++)
        count += r->mask[i] != 0;
    return count;
}
