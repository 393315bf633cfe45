/*
 * Rollouts: what the policy wrote, as a trainer reads it. A group is one prompt and the rollouts
 * that answer it; its advantages compare them with each other.
 *
 * A rollout's ids follow the prompt and hold both what the policy sampled (mask 1) and what the
 * environment said in between (mask 0: read as context, never trained on).
 */
#pragma once

#include <glib.h>

typedef struct Rollout {
    int n;
    int *ids;         /* [n] */
    guint8 *mask;     /* [n] 1: sampled by the policy */
    float *mu;        /* [n] log-probability when sampled; 0 where mask is 0 */
    float *anchor;    /* [n] log-probability that ratios are taken against; NULL: mu */
    guint16 *experts; /* [n, layers, K] that sampling chose for each token read, see forward.h;
                         NULL: not recorded */
    float *ref;       /* [n] log-probability under the reference model; NULL: none */
    double *credit;   /* [n] advantage by token; NULL: `advantage` for all */
    double reward;
    gboolean unscorable; /* no reward could be found: neither in the baseline nor in the loss */
    gboolean no_loss;    /* counts in the baseline, trains nothing */
    double advantage;    /* set by advantages() */
    double scale;        /* 1 / Z of its tokens, set by normalise() */
} Rollout;

typedef struct RolloutGroup {
    int prompt_n;
    int *prompt; /* [prompt_n] */
    guint n;
    guint16 *experts;  /* [prompt_n, layers, K] of the prompt; NULL: not recorded */
    guint width;       /* layers K; 0: no experts are recorded */
    Rollout *rollouts; /* [n] */
    gboolean skipped;  /* nothing to compare: set by advantages() */
} RolloutGroup;

/* Copies; `mask` and `mu` may be NULL (all 1, all 0: demonstrations). */
void rollout_fill(Rollout *rollout, const int *ids, const guint8 *mask, const float *mu, int n);
RolloutGroup *rollout_group_new(const int *prompt, int prompt_n, guint n);
/* Room for experts, `width` = layers K of each token; none of them is known yet. */
void rollout_group_routes(RolloutGroup *group, guint width);
void rollout_group_free(RolloutGroup *group);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(RolloutGroup, rollout_group_free)

/* Tokens that the loss is about: mask 1, of a rollout that is scorable and trained on. */
int rollout_trained(const Rollout *rollout);
