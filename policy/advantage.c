/*
 * Advantages and normalisers, as advantage.h lists them.
 *
 * Invariants
 *  1. Unscorable rollouts are in no mean, no deviation and no Z, and have advantage 0.
 *  2. Equal rewards give exactly 0: the group is skipped before anything is divided.
 *
 * Not here: penalties for length and the like, which change rewards before this (env/).
 */
#include "policy/advantage.h"

#include <math.h>

static const char *const advantage_names[ADVANTAGE_KINDS] = {
    [ADVANTAGE_GRPO] = "grpo",
    [ADVANTAGE_DR_GRPO] = "dr_grpo",
    [ADVANTAGE_RLOO] = "rloo",
    [ADVANTAGE_BATCH_STD] = "batch_std",
    [ADVANTAGE_REINFORCE_PP] = "reinforce++",
    [ADVANTAGE_REINFORCE_PP_BASELINE] = "reinforce++_baseline",
    [ADVANTAGE_MAX_RL] = "max_rl",
    [ADVANTAGE_PASSK] = "passk",
    [ADVANTAGE_REWARD] = "reward",
};

static const char *const norm_names[NORM_KINDS] = {
    [NORM_GROUP_TOKENS] = "group_tokens", [NORM_BATCH_TOKENS] = "batch_tokens",
    [NORM_SEQ_MEAN] = "seq_mean",         [NORM_CONST] = "const",
    [NORM_SEQ_SUM] = "seq_sum",
};

const char *advantage_name(AdvantageKind kind)
{
    return advantage_names[kind];
}

const char *norm_name(NormKind kind)
{
    return norm_names[kind];
}

/* ---- one group ---- */

typedef struct {
    guint n; /* scorable */
    double sum, mean, deviation, least, best, second;
} Spread;

static double deviation_of(double squares, double n, gboolean population)
{
    double by = population ? n : n - 1;

    return by > 0 ? sqrt(squares / by) : 0;
}

static Spread spread_of(const RolloutGroup *group, gboolean population)
{
    Spread s = {.least = INFINITY, .best = -INFINITY, .second = -INFINITY};
    double squares = 0;

    for (guint i = 0; i < group->n; i++) {
        const Rollout *r = &group->rollouts[i];

        if (r->unscorable)
            continue;
        s.n++;
        s.sum += r->reward;
        s.least = MIN(s.least, r->reward);
        s.second = r->reward > s.best ? s.best : MAX(s.second, r->reward);
        s.best = MAX(s.best, r->reward);
    }
    s.mean = s.n ? s.sum / s.n : 0;
    for (guint i = 0; i < group->n; i++)
        if (!group->rollouts[i].unscorable)
            squares += pow(group->rollouts[i].reward - s.mean, 2);
    s.deviation = deviation_of(squares, s.n, population);
    return s;
}

/* Before the batch has its say. */
static double advantage_in_group(AdvantageKind kind, const Spread *s, double reward, double eps)
{
    double above = reward - s->mean;
    const double by_kind[ADVANTAGE_KINDS] = {
        [ADVANTAGE_GRPO] = above / (s->deviation + eps),
        [ADVANTAGE_DR_GRPO] = above,
        [ADVANTAGE_RLOO] = above * s->n / MAX(s->n - 1, 1),
        [ADVANTAGE_BATCH_STD] = above,
        [ADVANTAGE_REINFORCE_PP] = reward,
        [ADVANTAGE_REINFORCE_PP_BASELINE] = above,
        [ADVANTAGE_MAX_RL] = s->mean > 0 ? above / s->mean : 0,
        [ADVANTAGE_PASSK] = reward == s->best ? s->best - s->second : 0,
        [ADVANTAGE_REWARD] = reward,
    };

    return by_kind[kind];
}

static gboolean is_group_relative(AdvantageKind kind)
{
    return kind != ADVANTAGE_REWARD && kind != ADVANTAGE_REINFORCE_PP;
}

/* ---- over the batch ---- */

typedef void (*RolloutFunc)(Rollout *rollout, double *data);

static void each_used(RolloutGroup *const *groups, guint n, RolloutFunc func, double *data)
{
    for (guint g = 0; g < n; g++)
        for (guint i = 0; !groups[g]->skipped && i < groups[g]->n; i++)
            if (!groups[g]->rollouts[i].unscorable)
                func(&groups[g]->rollouts[i], data);
}

enum { WEIGHT, SUM, SQUARES, FACTOR, TOKENS, NUMBERS };

static double batch_weight(const Rollout *r, const double *data)
{
    return data[TOKENS] != 0 ? rollout_trained(r) : 1;
}

static void batch_sum(Rollout *r, double *data)
{
    data[WEIGHT] += batch_weight(r, data);
    data[SUM] += batch_weight(r, data) * r->advantage;
}

static void batch_squares(Rollout *r, double *data)
{
    data[SQUARES] += batch_weight(r, data) * pow(r->advantage - data[SUM], 2);
}

static void batch_apply(Rollout *r, double *data)
{
    r->advantage = (r->advantage - data[SUM]) * data[FACTOR];
}

/* Divides by the deviation over the used part of the batch; with `tokens` every rollout weighs as
 * its trained tokens do, and the mean is taken off as well. */
static void whiten(RolloutGroup *const *groups, guint n, const AdvantageOptions *o, double eps,
                   gboolean tokens)
{
    double data[NUMBERS] = {[TOKENS] = tokens};

    each_used(groups, n, batch_sum, data);
    data[SUM] = tokens && data[WEIGHT] > 0 ? data[SUM] / data[WEIGHT] : 0;
    each_used(groups, n, batch_squares, data);
    data[FACTOR] = 1 / (deviation_of(data[SQUARES], data[WEIGHT], o->population) + eps);
    each_used(groups, n, batch_apply, data);
}

/* Sums until stats_end: mean of rewards, std of their squares. */
static void reward_add(AdvantageStats *stats, double reward)
{
    gboolean first = stats->rollouts == stats->unscorable;

    stats->rollouts++;
    stats->reward_mean += reward;
    stats->reward_std += reward * reward;
    stats->reward_max = first ? reward : MAX(stats->reward_max, reward);
}

static void stats_end(AdvantageStats *stats)
{
    double n = stats->rollouts - stats->unscorable, mean;

    if (n == 0)
        return;
    mean = stats->reward_mean / n;
    stats->reward_std = sqrt(MAX(stats->reward_std / n - mean * mean, 0));
    stats->reward_mean = mean;
}

static void group_advantages(RolloutGroup *group, const AdvantageOptions *o, double eps,
                             AdvantageStats *stats)
{
    Spread s = spread_of(group, o->population);
    gboolean flat = s.n < 2 || s.least == s.best;

    group->skipped = s.n == 0 || (flat && is_group_relative(o->kind));
    stats->groups++;
    stats->skipped += group->skipped;
    stats->solve_none += s.n > 0 && s.best <= 0;
    stats->solve_all += s.n > 0 && s.least >= 1;
    stats->rollouts += group->n - s.n;
    stats->unscorable += group->n - s.n;
    for (guint i = 0; i < group->n; i++) {
        Rollout *r = &group->rollouts[i];

        if (!r->unscorable)
            reward_add(stats, r->reward);
        r->advantage =
            group->skipped || r->unscorable ? 0 : advantage_in_group(o->kind, &s, r->reward, eps);
    }
}

void advantages(RolloutGroup *const *groups, guint n, const AdvantageOptions *o,
                AdvantageStats *stats)
{
    double eps = o->eps > 0 ? o->eps : 1e-4;

    *stats = (AdvantageStats){0};
    for (guint g = 0; g < n; g++)
        group_advantages(groups[g], o, eps, stats);
    if (o->kind == ADVANTAGE_BATCH_STD)
        whiten(groups, n, o, eps, FALSE);
    if (o->kind == ADVANTAGE_REINFORCE_PP || o->kind == ADVANTAGE_REINFORCE_PP_BASELINE)
        whiten(groups, n, o, eps, TRUE);
    stats_end(stats);
}

/* ---- normalisers ---- */

static double group_tokens(const RolloutGroup *group)
{
    double tokens = 0;

    for (guint i = 0; i < group->n; i++)
        tokens += rollout_trained(&group->rollouts[i]);
    return tokens;
}

void normalise(RolloutGroup *const *groups, guint n, const NormOptions *o)
{
    double used = 0, rollouts = 0, tokens = 0;

    for (guint g = 0; g < n; g++) {
        double in_group = groups[g]->skipped && !o->over_all ? 0 : group_tokens(groups[g]);

        used += in_group > 0;
        tokens += in_group;
        for (guint i = 0; in_group > 0 && i < groups[g]->n; i++)
            rollouts += rollout_trained(&groups[g]->rollouts[i]) > 0;
    }
    for (guint g = 0; g < n; g++) {
        double in_group = group_tokens(groups[g]);

        for (guint i = 0; i < groups[g]->n; i++) {
            Rollout *r = &groups[g]->rollouts[i];
            int own = rollout_trained(r);
            const double z[NORM_KINDS] = {
                [NORM_GROUP_TOKENS] = in_group * used,
                [NORM_BATCH_TOKENS] = tokens,
                [NORM_SEQ_MEAN] = own * rollouts,
                [NORM_CONST] = rollouts * o->length,
                [NORM_SEQ_SUM] = rollouts,
            };

            r->scale = own > 0 && !groups[g]->skipped && z[o->kind] > 0 ? 1 / z[o->kind] : 0;
        }
    }
}

double pass_at_k(guint n, guint c, guint k)
{
    double none = 1;

    if (n - c < k)
        return 1;
    for (guint i = n - c + 1; i <= n; i++)
        none *= 1 - (double)k / i;
    return 1 - none;
}
