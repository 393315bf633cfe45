/*
 * The frame of all losses: ratios, corrections, the reference penalty, statistics.
 *
 * Invariants
 *  1. Numbers here are constants to the gradient: only log pi is differentiated, by the head.
 *  2. A coefficient that is not finite ends the update before any gradient is made.
 *
 * Not here: what a loss makes of a ratio (losses/), advantages and Z (advantage.c).
 */
#include "policy/loss.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define EXPONENT_MAX 20.0

#define LOSS(name) extern const Loss loss_##name;
#include "losses.inc"
#undef LOSS

#define LOSS(name) &loss_##name,
const Loss *const losses[] = {
#include "losses.inc"
    NULL,
};
#undef LOSS

static const char *const mismatch_names[MISMATCH_KINDS] = {
    [MISMATCH_NONE] = "none",       [MISMATCH_TIS] = "tis",           [MISMATCH_ICEPOP] = "icepop",
    [MISMATCH_SEQ_TIS] = "seq_tis", [MISMATCH_SEQ_MASK] = "seq_mask",
};

static const char *const kl_names[KL_KINDS] = {
    [KL_NONE] = "none",
    [KL_K2] = "k2",
    [KL_K3] = "k3",
};

const char *mismatch_name(MismatchKind kind)
{
    return mismatch_names[kind];
}

const char *kl_name(KlKind kind)
{
    return kl_names[kind];
}

const Loss *loss_find(const char *name)
{
    for (guint i = 0; losses[i]; i++)
        if (!strcmp(losses[i]->name, name))
            return losses[i];
    return NULL;
}

LossOptions loss_options(const Loss *loss, const LossOptions *options)
{
    LossOptions o = *options;
    struct {
        double *value, fallback;
    } rows[] = {
        {&o.is_floor, loss->defaults.is_floor},
        {&o.is_cap, loss->defaults.is_cap},
        {&o.eps_low, loss->defaults.eps_low},
        {&o.eps_high, loss->defaults.eps_high},
        {&o.dual_cap, loss->defaults.dual_cap},
        {&o.tv_max, loss->defaults.tv_max},
        {&o.mismatch_cap, 2},
        {&o.mismatch_floor, 0.5},
    };

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++)
        if (*rows[i].value == 0)
            *rows[i].value = rows[i].fallback;
    return o;
}

static double bounded_exp(double x)
{
    return exp(CLAMP(x, -EXPONENT_MAX, EXPONENT_MAX));
}

/* ---- per rollout ---- */

typedef struct {
    double drift;   /* sum of logp - anchor */
    double strange; /* sum of anchor - mu */
    guint n;
} Sums;

static Sums rollout_sums(const LossToken *t, gsize n)
{
    Sums sums = {0};

    for (; sums.n < n && t[sums.n].rollout == t[0].rollout; sums.n++) {
        sums.drift += t[sums.n].logp - t[sums.n].anchor;
        sums.strange += t[sums.n].anchor - t[sums.n].mu;
    }
    return sums;
}

static double correction_of(const LossOptions *o, const LossToken *t, const Sums *sums)
{
    double token = bounded_exp(t->anchor - t->mu), mean = bounded_exp(sums->strange / sums->n);

    if (o->mismatch == MISMATCH_TIS)
        return MIN(token, o->mismatch_cap);
    if (o->mismatch == MISMATCH_ICEPOP)
        return token >= o->mismatch_floor && token <= o->mismatch_cap ? token : 0;
    if (o->mismatch == MISMATCH_SEQ_TIS)
        return MIN(bounded_exp(sums->strange), o->mismatch_cap);
    if (o->mismatch == MISMATCH_SEQ_MASK)
        return mean >= o->mismatch_floor && mean <= o->mismatch_cap;
    return 1;
}

/* What the penalty beta KL adds to -w c A, as d/d logp. */
static double penalty_of(const LossOptions *o, const LossToken *t)
{
    if (o->kl == KL_K2)
        return o->kl_beta * (t->logp - t->ref);
    if (o->kl == KL_K3)
        return o->kl_beta * (1 - bounded_exp(t->ref - t->logp));
    return 0;
}

/* ---- all tokens ---- */

static guint ratio_bin(double log_ratio)
{
    double steps = log_ratio / LOSS_BIN, middle = LOSS_BINS / 2;

    return (guint)(middle + CLAMP(round(steps), -middle, middle));
}

static void stats_add(LossStats *s, const LossToken *t, const LossOptions *o)
{
    double log_ratio = t->logp - t->anchor, x = exp(t->mu), y = exp(t->logp);

    s->tokens++;
    s->loss -= t->coef * t->logp + t->bonus * t->entropy;
    s->entropy += t->entropy;
    s->masked += t->weight == 0;
    s->ratio_high += t->weight != 0 && t->weight < t->ratio;
    s->ratio_low += t->weight > t->ratio;
    s->ratio_sum += t->ratio;
    s->ratio_max = MAX(s->ratio_max, t->ratio);
    s->ratio_min = s->tokens == 1 ? t->ratio : MIN(s->ratio_min, t->ratio);
    s->ratio_bins[ratio_bin(log_ratio)]++;
    s->kl3 += t->ratio - 1 - log_ratio;
    s->mismatch_k1 += t->mu - t->logp;
    s->mismatch_k3 += bounded_exp(t->logp - t->mu) - 1 - (t->logp - t->mu);
    s->mismatch_sum += fabs(t->logp - t->mu);
    s->mismatch_max = MAX(s->mismatch_max, fabs(t->logp - t->mu));
    s->x += x;
    s->y += y;
    s->xx += x * x;
    s->yy += y * y;
    s->xy += x * y;
    s->kl_ref += o->kl ? bounded_exp(t->ref - t->logp) - 1 + t->logp - t->ref : 0;
}

gboolean loss_coefs(const Loss *loss, const LossOptions *o, LossToken *tokens, gsize n,
                    LossStats *stats, GError **error)
{
    Sums sums;

    for (gsize from = 0; from < n; from += sums.n) {
        sums = rollout_sums(tokens + from, n - from);
        stats->rollouts++;
        for (gsize i = from; i < from + sums.n; i++) {
            LossToken *t = &tokens[i];

            t->ratio = bounded_exp(t->logp - t->anchor);
            t->sequence = bounded_exp(sums.drift / sums.n);
            t->weight = loss->weight(o, t);
            t->correction = correction_of(o, t, &sums);
            t->coef = t->scale * (t->correction * t->weight * t->advantage - penalty_of(o, t));
            t->bonus = t->scale * o->entropy;
            if (!isfinite(t->coef) || !isfinite(t->logp))
                return error_set(error, ASSAY_ERROR_INPUT,
                                 "token %" G_GSIZE_FORMAT " of rollout %u: coefficient %g "
                                 "(log-probability %g, anchor %g, advantage %g)",
                                 i - from, t->rollout, t->coef, t->logp, t->anchor, t->advantage);
            stats_add(stats, t, o);
        }
    }
    return TRUE;
}

void loss_stats_add(LossStats *sum, const LossStats *part)
{
    static const gsize sums[] = {G_STRUCT_OFFSET(LossStats, loss),
                                 G_STRUCT_OFFSET(LossStats, entropy),
                                 G_STRUCT_OFFSET(LossStats, ratio_sum),
                                 G_STRUCT_OFFSET(LossStats, kl3),
                                 G_STRUCT_OFFSET(LossStats, mismatch_sum),
                                 G_STRUCT_OFFSET(LossStats, mismatch_k1),
                                 G_STRUCT_OFFSET(LossStats, mismatch_k3),
                                 G_STRUCT_OFFSET(LossStats, x),
                                 G_STRUCT_OFFSET(LossStats, y),
                                 G_STRUCT_OFFSET(LossStats, xx),
                                 G_STRUCT_OFFSET(LossStats, yy),
                                 G_STRUCT_OFFSET(LossStats, xy),
                                 G_STRUCT_OFFSET(LossStats, kl_ref)};

    if (part->tokens == 0)
        return;
    sum->ratio_min = sum->tokens == 0 ? part->ratio_min : MIN(sum->ratio_min, part->ratio_min);
    sum->ratio_max = MAX(sum->ratio_max, part->ratio_max);
    sum->mismatch_max = MAX(sum->mismatch_max, part->mismatch_max);
    sum->tokens += part->tokens;
    sum->rollouts += part->rollouts;
    sum->ratio_high += part->ratio_high;
    sum->ratio_low += part->ratio_low;
    sum->masked += part->masked;
    for (guint i = 0; i < LOSS_BINS; i++)
        sum->ratio_bins[i] += part->ratio_bins[i];
    for (guint i = 0; i < G_N_ELEMENTS(sums); i++)
        G_STRUCT_MEMBER(double, sum, sums[i]) +=
            *(const double *)(gconstpointer)((const guint8 *)part + sums[i]);
}

double loss_correlation(const LossStats *s)
{
    double n = (double)s->tokens, xx = n * s->xx - s->x * s->x, yy = n * s->yy - s->y * s->y;

    if (s->mismatch_max == 0 || xx <= 0 || yy <= 0)
        return 1;
    return (n * s->xy - s->x * s->y) / sqrt(xx * yy);
}

double loss_ratio_quantile(const LossStats *s, double share)
{
    double left = share * (double)s->tokens;
    int bin = 0;

    if (s->tokens == 0)
        return 0;
    while (bin + 1 < LOSS_BINS && (left -= s->ratio_bins[bin]) > 0)
        bin++;
    return exp((bin - LOSS_BINS / 2) * LOSS_BIN);
}

const char *loss_reason(const LossToken *t)
{
    if (t->scale == 0)
        return "skipped";
    if (t->advantage == 0)
        return "no advantage";
    if (t->correction == 0)
        return "mismatch";
    if (t->weight == 0)
        return t->advantage > 0 ? "above the region" : "below the region";
    return t->weight < t->ratio ? "capped" : t->weight > t->ratio ? "raised" : "";
}
