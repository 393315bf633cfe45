/*
 * The optimiser over ranks: who holds which numbers, the gradient's norm, the step.
 *
 * Invariants
 *  1. Ranks that have the same parameters (TrainerBlock) own a part each: its sums of gradients and
 *     its moments are there alone. All of them have all gradients and weights of their own rows.
 *  2. The gradient's norm is a sum of sums, SEGMENTS to a block, cut by the number of parameters
 *     alone; a parameter that several ranks have counts once.
 *  3. Weights, moments and version change together, or not at all.
 *
 * Not here: gradients (trainer.c), tensors put together again (parts.c).
 */
#include "policy/trainer.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define SEGMENTS      64u /* of the parameters of a block; a rank has whole ones */
#define SEGMENT_ALIGN 16u

/* ---- whose ---- */

/* Where segment i of `count` elements ends. */
static gsize segment_end(gsize count, guint i)
{
    gsize segment = (count / SEGMENTS / SEGMENT_ALIGN + 1) * SEGMENT_ALIGN;

    return MIN(count, segment * (i + 1));
}

/* Rank r of R has the segments before number r + 1 that no rank before has. */
static guint segments_before(guint rank, guint ranks)
{
    return SEGMENTS * rank / ranks;
}

gsize trainer_part_end(gsize count, guint rank, guint ranks)
{
    guint end = segments_before(rank + 1, ranks);

    return end > 0 ? segment_end(count, end - 1) : 0;
}

/* The most that one of `ranks` has of `count`. */
static gsize part_most(gsize count, guint ranks)
{
    gsize most = 0, before = 0;

    for (guint r = 0; r < ranks; r++) {
        gsize end = trainer_part_end(count, r, ranks);

        most = MAX(most, end - before);
        before = end;
    }
    return most;
}

static gsize own_most(const Model *part, const Layout *l)
{
    gsize ends[PARAMS_BLOCKS], most = 0;

    g_free(params_offsets(&part->config, ends));
    for (guint b = 0; b < PARAMS_BLOCKS; b++)
        most += part_most(ends[b] - (b > 0 ? ends[b - 1] : 0),
                          l->sp * l->dp / (b == PARAMS_EXPERTS ? l->ep : 1));
    return most * ops_real_size(part->ops->real);
}

gsize trainer_moments_bytes(const Model *part, const Layout *l)
{
    return 2 * own_most(part, l);
}

gsize trainer_sums_bytes(const Model *part, const Layout *l, guint shares)
{
    return shares > 1 || l->sp > 1 ? own_most(part, l) : 0;
}

gboolean trainer_shares(guint ranks, guint shares, guint *ret_shares, GError **error)
{
    *ret_shares = shares > 0 ? shares : ranks;
    if (ranks > SEGMENTS)
        return error_set(error, ASSAY_ERROR_LIMIT, "%u ranks, at most %u share a trainer", ranks,
                         SEGMENTS);
    return *ret_shares % ranks == 0 ||
           error_set(error, ASSAY_ERROR_INPUT, "%u ranks do not divide %u shares of a minibatch",
                     ranks, shares);
}

static gsize own_first(const TrainerBlock *b)
{
    return b->first + (b->comm->rank > 0 ? b->ends[b->comm->rank - 1] : 0);
}

static gsize own_end(const TrainerBlock *b)
{
    return b->first + b->ends[b->comm->rank];
}

static gboolean block_hold(Trainer *t, guint which, GError **error)
{
    TrainerBlock *b = &t->blocks[which];
    const gsize *ends = t->master->ends;
    gsize first;

    b->comm = which == PARAMS_EXPERTS ? t->groups.replicas : t->groups.data;
    b->first = which > 0 ? ends[which - 1] : 0;
    b->ends = g_new(gsize, b->comm->size);
    for (int r = 0; r < b->comm->size; r++)
        b->ends[r] = trainer_part_end(ends[which] - b->first, (guint)r, (guint)b->comm->size);
    first = own_first(b);
    return (b->moment1 = params_part(t->model, first, own_end(b), error)) &&
           (b->moment2 = params_part(t->model, first, own_end(b), error)) &&
           (trainer_sums_bytes(t->model, &t->layout, t->shares) == 0 ||
            (b->sum = params_part(t->model, first, own_end(b), error)));
}

gboolean trainer_hold(Trainer *t, GError **error)
{
    if (!(t->master = params_new(t->model, error)) || !(t->grads = params_new(t->model, error)))
        return FALSE;
    for (guint b = 0; b < PARAMS_BLOCKS; b++)
        if (!block_hold(t, b, error))
            return FALSE;
    params_get(t->master);
    return TRUE;
}

void trainer_let_go(Trainer *t)
{
    for (guint b = 0; b < PARAMS_BLOCKS; b++) {
        params_free(t->blocks[b].moment1);
        params_free(t->blocks[b].moment2);
        params_free(t->blocks[b].sum);
        g_free(t->blocks[b].ends);
    }
    params_free(t->master);
    params_free(t->grads);
}

/* ---- gradients ---- */

static gsize real_of(const Trainer *t)
{
    return ops_real_size(t->model->ops->real);
}

static char *at(const Trainer *t, const Params *params, gsize element)
{
    return (char *)params->data + element * real_of(t);
}

/* Element `element` of the block's own part: of a moment, or of the sum of all gradients. */
static char *own_at(const Trainer *t, const TrainerBlock *b, const Params *params, gsize element)
{
    return at(t, params, element - own_first(b));
}

static char *sum_at(const Trainer *t, const TrainerBlock *b, gsize element)
{
    return b->sum ? own_at(t, b, b->sum, element) : at(t, t->grads, element);
}

void trainer_reduce(Trainer *t)
{
    CommReal real = t->model->ops->real == OPS_F64 ? COMM_F64 : COMM_F32;

    for (guint i = 0; i < PARAMS_BLOCKS; i++) {
        TrainerBlock *b = &t->blocks[i];

        if (b->sum)
            comm_reduce_scatter(b->comm, real, b->sum->data, at(t, t->grads, b->first), b->ends);
    }
}

void trainer_gradients_zero(Trainer *t)
{
    params_zero(t->grads);
    for (guint b = 0; b < PARAMS_BLOCKS; b++)
        if (t->blocks[b].sum)
            params_zero(t->blocks[b].sum);
}

/* ---- the step ---- */

/* A sum of squares of elements from .. end of the weights; those of one segment. */
typedef double (*SegmentSum)(Trainer *t, const TrainerBlock *b, gsize from, gsize end,
                             gconstpointer data);

/* The block's sum over its ranks: every rank its own segments. */
static double block_sum(Trainer *t, const TrainerBlock *b, SegmentSum sum_of, gconstpointer data)
{
    guint ranks = (guint)b->comm->size, me = (guint)b->comm->rank;
    g_autofree gsize *ends = g_new(gsize, ranks);
    gsize count = b->ends[ranks - 1];
    double sums[SEGMENTS] = {0}, sum = 0;

    for (guint i = segments_before(me, ranks); i < segments_before(me + 1, ranks); i++)
        sums[i] = sum_of(t, b, b->first + (i > 0 ? segment_end(count, i - 1) : 0),
                         b->first + segment_end(count, i), data);
    for (guint r = 0; r < ranks; r++)
        ends[r] = segments_before(r + 1, ranks) * sizeof *sums;
    comm_all_gather(b->comm, sums, ends);
    for (guint i = 0; i < SEGMENTS; i++)
        sum += sums[i];
    return sum;
}

/* The root of the sum over all parameters of the whole model. The first tp ep ranks have every
 * part between them. */
static double norm_of(Trainer *t, SegmentSum sum_of, gconstpointer data)
{
    const guint parts[PARAMS_BLOCKS] = {1, t->layout.tp, t->layout.tp * t->layout.ep};
    guint ranks = (guint)t->comm->size;
    g_autofree gsize *ends = g_new(gsize, ranks);
    g_autofree double *sums = g_new0(double, PARAMS_BLOCKS *ranks);
    double sum = 0;

    for (guint b = 0; b < PARAMS_BLOCKS; b++)
        sums[PARAMS_BLOCKS * t->comm->rank + b] = block_sum(t, &t->blocks[b], sum_of, data);
    for (guint r = 0; r < ranks; r++)
        ends[r] = (r + 1) * PARAMS_BLOCKS * sizeof *sums;
    comm_all_gather(t->comm, sums, ends);
    for (guint b = 0; b < PARAMS_BLOCKS; b++)
        for (guint r = 0; r < parts[b]; r++)
            sum += sums[PARAMS_BLOCKS * r + b];
    return sqrt(sum);
}

static double gradient_squares(Trainer *t, const TrainerBlock *b, gsize from, gsize end,
                               gconstpointer unused)
{
    (void)unused;
    return t->model->ops->sumsq(sum_at(t, b, from), end - from);
}

/* Takes the step, and how far the weights go by it. Each weight's is its own: pieces change no
 * bit. */
static double step_squares(Trainer *t, const TrainerBlock *b, gsize from, gsize end,
                           gconstpointer adamw)
{
    const Ops *ops = t->model->ops;
    double far = 0;

    for (; from < end; from += t->head_n) {
        gsize n = MIN(t->head_n, end - from);
        char *w = at(t, t->master, from);

        memcpy(t->head, w, n * real_of(t));
        ops->adamw(w, own_at(t, b, b->moment1, from), own_at(t, b, b->moment2, from),
                   sum_at(t, b, from), n, adamw);
        ops->axpby(t->head, 1, w, -1, n);
        far += ops->sumsq(t->head, n);
    }
    return far;
}

/* Shortens the gradient, each rank its own. */
static void clip(Trainer *t, double factor)
{
    for (guint i = 0; i < PARAMS_BLOCKS; i++) {
        const TrainerBlock *b = &t->blocks[i];
        gsize first = own_first(b);

        t->model->ops->axpby(sum_at(t, b, first), 0, at(t, t->master, first), factor,
                             own_end(b) - first);
    }
}

/* The ranks' parts of the stepped weights become everybody's. */
static void weights_gather(Trainer *t)
{
    for (guint i = 0; i < PARAMS_BLOCKS; i++) {
        const TrainerBlock *b = &t->blocks[i];
        g_autofree gsize *ends = g_new(gsize, b->comm->size);

        for (int r = 0; r < b->comm->size; r++)
            ends[r] = b->ends[r] * real_of(t);
        comm_all_gather(b->comm, at(t, t->master, b->first), ends);
    }
}

gboolean trainer_step_here(Trainer *t, const TrainerStep *step, TrainerStats *stats, GError **error)
{
    AdamwStep adamw = step->adamw;
    gint64 since = g_get_monotonic_time();

    stats->grad_norm = norm_of(t, gradient_squares, NULL);
    if (!trainer_joined(t, error))
        return FALSE;
    if (!isfinite(stats->grad_norm)) {
        trainer_gradients_zero(t);
        return error_set(error, ASSAY_ERROR_INPUT, "gradient norm %g: weights are left alone",
                         stats->grad_norm);
    }
    if (step->clip_norm > 0 && stats->grad_norm > step->clip_norm)
        clip(t, step->clip_norm / stats->grad_norm);
    adamw.step = ++t->steps;
    stats->update_norm = norm_of(t, step_squares, &adamw);
    weights_gather(t);
    if (!trainer_joined(t, error))
        return FALSE;
    t->model->version++;
    parts_set(t);
    trainer_gradients_zero(t);
    stats->stepped = TRUE;
    stats->step_s += (double)(g_get_monotonic_time() - since) / 1e6;
    return trainer_joined(t, error);
}
