/*
 * Sampling: cut off, normalise, draw.
 *
 * Invariants
 *  1. Order: temperature, top_k, top_p, min_p, each over what the one before left, as vLLM has it.
 *  2. Candidates stand by falling logit, equal ones by rising id; sums run in that order, in
 *     double: the result depends on nothing else.
 *  3. The draw is one number of Philox keyed by the seed, counted by the position.
 *
 * Not here: log-probabilities of given tokens (ops.h, logprob_fwd), when to stop (engine.c).
 */
#include "policy/sample.h"

#include "base/error.h"
#include "policy/init.h"

#include <math.h>
#include <stdlib.h>

gboolean sample_params_check(const SampleParams *p, GError **error)
{
    const struct {
        const char *name;
        double value, most;
    } fields[] = {
        {"temperature", p->temperature, 100}, {"top_p", p->top_p, 1}, {"min_p", p->min_p, 1}};

    for (guint i = 0; i < G_N_ELEMENTS(fields); i++)
        if (!(fields[i].value >= 0 && fields[i].value <= fields[i].most))
            return error_set(error, ASSAY_ERROR_INPUT, "%s: %g is not in 0 .. %g", fields[i].name,
                             fields[i].value, fields[i].most);
    return TRUE;
}

double sample_uniform(guint64 seed, gint64 position)
{
    guint32 counter[4] = {(guint32)position, (guint32)((guint64)position >> 32), 0, 0};
    guint32 key[2] = {(guint32)seed, (guint32)(seed >> 32)}, out[4];

    philox4x32(counter, key, out);
    return out[0] / 4294967296.0;
}

static int entry_compare(const void *a, const void *b)
{
    const SampleEntry *x = a, *y = b;

    if (x->z != y->z)
        return x->z > y->z ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static Sampled greedy(const float *logits, int valid, float lse)
{
    int best = 0;

    for (int i = 1; i < valid; i++)
        best = logits[i] > logits[best] ? i : best;
    return (Sampled){.id = best, .logprob = logits[best] - lse, .logprob_own = 0};
}

/* Tokens that could be among the kept ones, in order. Those left out by `least` together weigh less
 * than 1 - top_p, or than min_p allows. */
static int candidates(SampleEntry *room, const float *logits, int valid, double top, double sum,
                      const SampleParams *p)
{
    double tail = p->top_p > 0 && p->top_p < 1 ? (1 - p->top_p) * sum / valid : 0;
    double least = MAX(tail, p->min_p > 0 ? p->min_p * 0.999 : 0);
    int n = 0;

    for (int i = 0; i < valid; i++) {
        float z = (float)(logits[i] / p->temperature);

        if (least == 0 || exp(z - top) >= least)
            room[n++] = (SampleEntry){z, i};
    }
    qsort(room, (size_t)n, sizeof *room, entry_compare);
    return n;
}

/* How many of the sorted candidates stay, and what they weigh. */
static int cut(const SampleEntry *room, int n, double top, double sum, const SampleParams *p,
               double *weight)
{
    int count = p->top_k > 0 && p->top_k < (guint)n ? (int)p->top_k : n;
    double kept = 0, all = count < n ? 0 : sum;

    for (int i = 0; count < n && i < count; i++)
        all += exp(room[i].z - top);
    for (int i = 0; i < count; i++) {
        double e = exp(room[i].z - top);

        if (i > 0 && ((p->top_p > 0 && kept >= p->top_p * all) || e < p->min_p)) {
            count = i;
            break;
        }
        kept += e;
    }
    *weight = kept;
    return count;
}

Sampled sample_token(const float *logits, int valid, float lse, const SampleParams *p,
                     gint64 position, SampleEntry *room)
{
    double u = sample_uniform(p->seed, position), top = -INFINITY, sum = 0, weight, passed = 0;
    gboolean whole = p->top_k == 0 && (p->top_p == 0 || p->top_p == 1) && p->min_p == 0;
    int n, at = 0;

    if (p->temperature == 0)
        return greedy(logits, valid, lse);
    for (int i = 0; i < valid; i++)
        top = MAX(top, (double)(float)(logits[i] / p->temperature));
    for (int i = 0; i < valid; i++)
        sum += exp((float)(logits[i] / p->temperature) - top);
    if (whole) {
        for (int i = 0; i < valid; i++)
            room[i] = (SampleEntry){(float)(logits[i] / p->temperature), i};
        n = valid;
        weight = sum;
    } else {
        n = candidates(room, logits, valid, top, sum, p);
        n = cut(room, n, top, sum, p, &weight);
    }
    for (int i = 0; i < n; i++) {
        double e = exp(room[i].z - top);

        at = e > 0 ? i : at; /* rounding may leave u * weight beyond the last: take that one */
        passed += e;
        if (passed > u * weight)
            break;
    }
    float logprob = logits[room[at].id] - lse;

    /* drawn from the softmax itself, the two are one number and not two roundings of it */
    return (Sampled){.id = room[at].id,
                     .logprob = logprob,
                     .logprob_own = whole && p->temperature == 1
                                        ? logprob
                                        : (float)(room[at].z - top - log(weight))};
}
