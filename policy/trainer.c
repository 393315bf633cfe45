/*
 * One minibatch: forward, log-probabilities, coefficients, backward, step.
 *
 * The head is worked twice: coefficients need every log-probability of a rollout before the first
 * gradient, and logits are not kept.
 *
 * Invariants
 *  1. Gradients only ever add onto what stands, in the order of rows: no cut shows in the sum.
 *  2. Weights, moments and version change together in trainer_step, or not at all.
 *  3. All ranks take part in every sum over ranks, a rank whose share failed with zeros.
 *  4. The gradient's norm is a sum of SEGMENTS sums, cut by the number of parameters alone.
 *
 * Not here: what a loss is (loss.c), how rows are laid out (pack.c), what ranks are told (ranks.c),
 * schedules (env/).
 */
#include "policy/trainer.h"

#include "policy/ranks.h"
#include "policy/shard.h"

#include "base/error.h"
#include "kernels/quant.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_ROWS_MAX 1024 /* of the head at once: bounds its scratch */
#define SEGMENTS      64u  /* of the parameters; a rank has whole ones */
#define SEGMENT_ALIGN 16u

/* Numbers by target, in `scratch`. */
enum { LOGP, LSE, ENTROPY, COEF, BONUS, SCRATCHES };

/* Of the scratch of Ops.head_fwd. */
static gsize head_numbers(int rows_max)
{
    return (gsize)MIN(rows_max, HEAD_ROWS_MAX) * (OPS_HEAD_TILE + 3);
}

typedef struct {
    gsize hidden, head, scratch;
} Sizes;

static Sizes sizes_of(const Model *m, int rows_max)
{
    gsize real = ops_real_size(m->ops->real), rows = (gsize)rows_max;

    return (Sizes){.hidden = rows * m->config.hidden * real,
                   .head = head_numbers(rows_max) * real,
                   .scratch = SCRATCHES * rows * real};
}

/* Where segment i of the parameters ends. */
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

static gsize part_first(const Trainer *t)
{
    return t->comm->rank > 0 ? t->ends[t->comm->rank - 1] : 0;
}

gsize trainer_moments_bytes(const Model *m, guint ranks)
{
    gsize count = params_count(m), most = 0;

    for (guint r = 0; r < ranks; r++) {
        guint first = segments_before(r, ranks), end = segments_before(r + 1, ranks);
        gsize from = first > 0 ? segment_end(count, first - 1) : 0;

        most = MAX(most, end > first ? segment_end(count, end - 1) - from : 0);
    }
    return 2 * most * ops_real_size(m->ops->real);
}

gsize trainer_bytes(const Model *m, int rows_max, ActsKeep keep, guint ranks, guint shares)
{
    Sizes s = sizes_of(m, rows_max);

    return 2 * params_count(m) * ops_real_size(m->ops->real) +
           trainer_moments_bytes(m, ranks) * (shares > 1 ? 3 : 2) / 2 +
           acts_bytes(m, rows_max, keep) + backward_bytes(m, rows_max, rows_max) + 2 * s.hidden +
           s.head + s.scratch + (gsize)rows_max * sizeof(LossToken);
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

static char *room(gsize bytes, GError **error)
{
    void *memory = NULL;

    if (posix_memalign(&memory, 64, bytes)) {
        error_set_errno(error, ENOMEM, "training, %" G_GSIZE_FORMAT " bytes", bytes);
        return NULL;
    }
    return memory;
}

/* The group, the shares, and which parameters are this rank's. */
static gboolean join(Trainer *t, const TrainerRanks *ranks, GError **error)
{
    gsize count = params_count(t->model);

    t->alone = ranks->comm == NULL;
    t->comm = ranks->comm;
    t->wait_s = ranks->wait_s;
    if (t->alone && !comm_local(1, &t->comm))
        return error_set_errno(error, ENOMEM, "a group of one rank");
    if (!trainer_shares((guint)t->comm->size, ranks->shares, &t->shares, error))
        return FALSE;
    t->ends = g_new0(gsize, t->comm->size);
    for (int r = 0; r < t->comm->size; r++) {
        guint end = segments_before((guint)r + 1, (guint)t->comm->size);

        t->ends[r] = end > 0 ? segment_end(count, end - 1) : 0;
    }
    return TRUE;
}

/* The optimiser's numbers. */
static gboolean hold(Trainer *t, GError **error)
{
    const Model *m = t->model;
    gsize first = part_first(t), end = t->ends[t->comm->rank];

    return (t->master = params_new(m, error)) && (t->grads = params_new(m, error)) &&
           (t->moment1 = params_part(m, first, end, error)) &&
           (t->moment2 = params_part(m, first, end, error)) &&
           (t->shares == 1 || (t->sum = params_part(m, first, end, error)));
}

Trainer *trainer_part(Model *m, int rows_max, ActsKeep keep, const TrainerRanks *ranks,
                      GError **error)
{
    g_autoptr(Trainer) t = g_new0(Trainer, 1);
    Sizes s = sizes_of(m, rows_max);

    if (quant_is(m->format)) {
        error_set(error, ASSAY_ERROR_UNSUPPORTED, "weights of codes cannot be trained");
        return NULL;
    }
    t->model = m;
    if (!join(t, ranks, error) || !hold(t, error) ||
        !(t->packer = packer_new(m, rows_max, error)) ||
        !(t->acts = acts_new(m, rows_max, keep, error)) ||
        !(t->backward = backward_new(m, rows_max, rows_max, error)) ||
        !(t->hidden = room(s.hidden, error)) || !(t->dhidden = room(s.hidden, error)) ||
        !(t->head = room(s.head, error)) || !(t->scratch = room(s.scratch, error)))
        return NULL;
    t->tokens = g_new0(LossToken, rows_max);
    params_get(t->master);
    return g_steal_pointer(&t);
}

Trainer *trainer_new_ranks(Model *m, int rows_max, ActsKeep keep, const TrainerRanks *ranks,
                           GError **error)
{
    g_autoptr(Trainer) t = trainer_part(m, rows_max, keep, ranks, error);

    if (t && t->comm->size > 1 && !ranks_gather(t, keep, error))
        return NULL;
    return g_steal_pointer(&t);
}

Trainer *trainer_new(Model *m, int rows_max, ActsKeep keep, GError **error)
{
    return trainer_new_ranks(m, rows_max, keep, &(TrainerRanks){0}, error);
}

void trainer_free(Trainer *t)
{
    if (!t)
        return;
    params_free(t->master);
    params_free(t->moment1);
    params_free(t->moment2);
    params_free(t->grads);
    params_free(t->sum);
    if (t->alone)
        comm_close(t->comm);
    g_free(t->ends);
    packer_free(t->packer);
    acts_free(t->acts);
    backward_free(t->backward);
    free(t->hidden);
    free(t->dhidden);
    free(t->head);
    free(t->scratch);
    g_free(t->tokens);
    g_free(t);
}

/* ---- the head, over the rows that predict trained tokens ---- */

static char *scratch_at(const Trainer *t, int which, guint i)
{
    gsize real = ops_real_size(t->model->ops->real);

    return t->scratch + ((gsize)which * (gsize)t->packer->rows_max + i) * real;
}

/* The targets' rows of [rows, D], one after the other, or back. */
static void gather(const Trainer *t, char *packed, char *rows, gboolean back)
{
    gsize width = t->model->config.hidden * ops_real_size(t->model->ops->real);

    for (guint i = 0; i < t->packer->n_targets; i++) {
        char *row = rows + (gsize)t->packer->targets[i].row * width;

        memcpy(back ? row : packed + i * width, back ? packed + i * width : row, width);
    }
}

/* The ids of the targets from `from` on, HEAD_ROWS_MAX at most; returns how many. */
static int slice_ids(const Trainer *t, guint from, int *ids)
{
    int n = (int)MIN(HEAD_ROWS_MAX, t->packer->n_targets - from);

    for (int i = 0; i < n; i++)
        ids[i] = t->packer->targets[from + (guint)i].id;
    return n;
}

static void head_forward(Trainer *t, const Model *m, double temperature)
{
    gsize width = m->config.hidden * ops_real_size(m->ops->real);
    int ids[HEAD_ROWS_MAX], n;

    gather(t, t->hidden, t->acts->hidden, FALSE);
    for (guint from = 0; from < t->packer->n_targets; from += (guint)n) {
        n = slice_ids(t, from, ids);
        shard_head_fwd(m, scratch_at(t, LOGP, from), scratch_at(t, LSE, from),
                       scratch_at(t, ENTROPY, from), t->hidden + from * width, ids, n, temperature,
                       t->head);
    }
}

static void head_backward(Trainer *t, double temperature, gboolean bonus)
{
    gsize width = t->model->config.hidden * ops_real_size(t->model->ops->real);
    void *dw = params_tensor(t->grads, 0, SLOT_HEAD, 0);
    int ids[HEAD_ROWS_MAX], n;

    for (guint from = 0; from < t->packer->n_targets; from += (guint)n) {
        HeadGrad grad = {.lse = scratch_at(t, LSE, from),
                         .ids = ids,
                         .coef = scratch_at(t, COEF, from),
                         .bonus = bonus ? scratch_at(t, BONUS, from) : NULL,
                         .entropy = scratch_at(t, ENTROPY, from)};

        n = slice_ids(t, from, ids);
        /* the slice's gradient goes where its hidden states were: they are read first */
        shard_head_bwd(t->model, t->dhidden, dw, t->hidden + from * width, &grad, n, temperature,
                       t->head);
        memcpy(t->hidden + from * width, t->dhidden, (gsize)n * width);
    }
    memset(t->dhidden, 0, (gsize)t->packer->batch.rows * width);
    gather(t, t->hidden, t->dhidden, TRUE);
}

/* ---- passes ---- */

static double lap(gint64 *since)
{
    gint64 now = g_get_monotonic_time(), spent = now - *since;

    *since = now;
    return (double)spent / 1e6;
}

/* The most choices that an expert of any layer got, in multiples of an even share; of the last
 * layer alone where the others' are not kept. */
static double router_peak(const Trainer *t, const Model *m)
{
    double even = (double)t->packer->batch.rows * m->config.experts_per_token / m->config.experts;
    int most = 0;

    for (guint l = 0; l < m->config.layers; l++) {
        const int *offsets = t->acts->layers[l].plan.offsets;

        for (guint e = 0; e < m->config.experts; e++)
            most = MAX(most, offsets[e + 1] - offsets[e]);
    }
    return most / even;
}

static void batch_forward(Trainer *t, const Model *m, double temperature, TrainerStats *stats)
{
    gint64 since = g_get_monotonic_time();

    if (m != t->model)
        t->packer->batch.given = NULL; /* another model has a routing of its own */
    forward(m, t->acts, &t->packer->batch);
    stats->rerouted += t->acts->rerouted;
    stats->forward_s += lap(&since);
    head_forward(t, m, temperature);
    stats->head_s += lap(&since);
    stats->rows += (guint64)t->packer->batch.rows;
    stats->batches++;
    stats->router_peak = MAX(stats->router_peak, router_peak(t, m));
}

float **trainer_field(Rollout *r, RolloutField field)
{
    return field == ROLLOUT_ANCHOR ? &r->anchor : &r->ref;
}

gboolean trainer_logprobs_here(Trainer *t, const Model *model, RolloutGroup *const *groups, guint n,
                               double temperature, RolloutField field, GError **error)
{
    GError *local = NULL;
    TrainerStats stats = {0};

    packer_begin(t->packer, groups, n);
    while (packer_next(t->packer, &local)) {
        batch_forward(t, model ? model : t->model, temperature > 0 ? temperature : 1, &stats);
        for (guint i = 0; i < t->packer->n_targets; i++) {
            const PackTarget *target = &t->packer->targets[i];
            float **to = trainer_field(target->rollout, field);

            if (!*to)
                *to = g_new0(float, target->rollout->n);
            (*to)[target->at] = (float)model_number(t->model, scratch_at(t, LOGP, 0), i);
        }
    }
    if (local)
        g_propagate_error(error, local);
    return !local;
}

gboolean trainer_logprobs(Trainer *t, const Model *model, RolloutGroup *const *groups, guint n,
                          double temperature, RolloutField field, GError **error)
{
    return model || t->comm->size == 1
               ? trainer_logprobs_here(t, model, groups, n, temperature, field, error)
               : ranks_logprobs(t, groups, n, temperature, field, error);
}

/* What the loss is told of each target, and the coefficients it answers with. */
static gboolean coefficients(Trainer *t, const TrainerLoss *loss, TrainerStats *stats,
                             GError **error)
{
    guint n = t->packer->n_targets;

    for (guint i = 0; i < n; i++) {
        const PackTarget *target = &t->packer->targets[i];
        const Rollout *r = target->rollout;
        int at = target->at;

        t->tokens[i] = (LossToken){
            .rollout = target->number,
            .logp = model_number(t->model, scratch_at(t, LOGP, 0), i),
            .mu = r->mu[at],
            .anchor = r->anchor ? r->anchor[at] : r->mu[at],
            .ref = r->ref ? r->ref[at] : 0,
            .advantage = r->credit ? r->credit[at] : r->advantage,
            .entropy = model_number(t->model, scratch_at(t, ENTROPY, 0), i),
            .scale = r->scale,
        };
    }
    if (!loss_coefs(loss->loss, &loss->options, t->tokens, n, &stats->loss, error))
        return FALSE;
    for (guint i = 0; i < n; i++) {
        model_number_set(t->model, scratch_at(t, COEF, 0), i, t->tokens[i].coef);
        model_number_set(t->model, scratch_at(t, BONUS, 0), i, t->tokens[i].bonus);
    }
    return TRUE;
}

/* One share's gradients, added to t->grads. */
static gboolean share_gradients(Trainer *t, RolloutGroup *const *groups, guint n,
                                const TrainerLoss *loss, TrainerTokensFunc func, gpointer user,
                                TrainerStats *stats, GError **error)
{
    double temperature = loss->temperature > 0 ? loss->temperature : 1;
    GError *local = NULL;

    packer_begin(t->packer, groups, n);
    while (packer_next(t->packer, &local)) {
        gint64 since;

        batch_forward(t, t->model, temperature, stats);
        if (!coefficients(t, loss, stats, &local))
            break;
        if (func)
            func(t->packer, t->tokens, user);
        since = g_get_monotonic_time();
        head_backward(t, temperature, loss->options.entropy != 0);
        stats->head_s += lap(&since);
        backward(t->backward, t->model, t->grads, t->acts, &t->packer->batch,
                 t->packer->cache_grads, t->dhidden);
        stats->backward_s += lap(&since);
    }
    if (local)
        g_propagate_error(error, local);
    return !local;
}

/* What a rank says of its share. */
typedef struct {
    TrainerStats stats;
    gboolean failed;
    char why[256];
} ShareReport;

static void stats_add(TrainerStats *sum, const TrainerStats *part)
{
    loss_stats_add(&sum->loss, &part->loss);
    sum->router_peak = MAX(sum->router_peak, part->router_peak);
    sum->rerouted += part->rerouted;
    sum->rows += part->rows;
    sum->batches += part->batches;
}

/* The ranks' reports of one round, in the order of shares. `own` is this rank's error, taken. */
static gboolean round_end(Trainer *t, const TrainerStats *one, GError *own, TrainerStats *stats,
                          GError **error)
{
    guint ranks = (guint)t->comm->size, me = (guint)t->comm->rank;
    g_autofree ShareReport *reports = g_new0(ShareReport, ranks);
    g_autofree gsize *ends = g_new(gsize, ranks);

    for (guint r = 0; r < ranks; r++)
        ends[r] = (r + 1) * sizeof *reports;
    reports[me].stats = *one;
    reports[me].failed = own != NULL;
    g_strlcpy(reports[me].why, own ? own->message : "", sizeof reports[me].why);
    comm_all_gather(t->comm, reports, ends);
    for (guint r = 0; r < ranks; r++)
        stats_add(stats, &reports[r].stats);
    stats->forward_s += one->forward_s;
    stats->head_s += one->head_s;
    stats->backward_s += one->backward_s;
    if (own) {
        g_propagate_error(error, own);
        return FALSE;
    }
    if (!trainer_joined(t, error))
        return FALSE;
    for (guint r = 0; r < ranks; r++)
        if (reports[r].failed)
            return error_set(error, ASSAY_ERROR_INPUT, "rank %u: %s", r, reports[r].why);
    return TRUE;
}

gboolean trainer_joined(const Trainer *t, GError **error)
{
    CommFail fail;

    return !comm_failed(t->comm, &fail) || error_set(error, ASSAY_ERROR_SYSTEM, "%s", fail.text);
}

static void gradients_zero(Trainer *t)
{
    params_zero(t->grads);
    if (t->sum)
        params_zero(t->sum);
}

gboolean trainer_gradients_here(Trainer *t, RolloutGroup *const *groups, guint n,
                                const TrainerLoss *loss, TrainerTokensFunc func, gpointer user,
                                TrainerStats *stats, GError **error)
{
    CommReal real = t->model->ops->real == OPS_F64 ? COMM_F64 : COMM_F32;
    g_autofree guint *ends = g_new0(guint, t->shares);
    guint ranks = (guint)t->comm->size;
    gboolean ok = TRUE;

    backward_balance(t->backward, loss->balance);
    pack_shares(t->model, groups, n, t->shares, ends);
    for (guint first = 0; ok && first < t->shares; first += ranks) {
        guint share = first + (guint)t->comm->rank, from = share > 0 ? ends[share - 1] : 0;
        TrainerStats one = {0};
        GError *own = NULL;
        gint64 since;

        if (t->sum)
            params_zero(t->grads);
        if (!share_gradients(t, groups + from, ends[share] - from, loss, func, user, &one, &own))
            params_zero(t->grads);
        since = g_get_monotonic_time();
        if (t->sum)
            comm_reduce_scatter(t->comm, real, t->sum->data, t->grads->data, t->ends);
        ok = round_end(t, &one, own, stats, error);
        stats->step_s += lap(&since);
    }
    if (!ok)
        gradients_zero(t);
    return ok;
}

gboolean trainer_gradients(Trainer *t, RolloutGroup *const *groups, guint n,
                           const TrainerLoss *loss, TrainerTokensFunc func, gpointer user,
                           TrainerStats *stats, GError **error)
{
    return ranks_ask_gradients(t, groups, n, loss, error) &&
           trainer_gradients_here(t, groups, n, loss, func, user, stats, error);
}

/* ---- the step ---- */

/* A sum of squares of elements from .. end of the weights; those of one segment. */
typedef double (*SegmentSum)(Trainer *t, gsize from, gsize end, gconstpointer data);

/* The root of all ranks' sums: every rank its own segments. */
static double norm_of(Trainer *t, SegmentSum sum_of, gconstpointer data)
{
    guint ranks = (guint)t->comm->size, me = (guint)t->comm->rank;
    g_autofree gsize *ends = g_new(gsize, ranks);
    double sums[SEGMENTS] = {0}, sum = 0;

    for (guint i = segments_before(me, ranks); i < segments_before(me + 1, ranks); i++)
        sums[i] = sum_of(t, i > 0 ? segment_end(t->master->count, i - 1) : 0,
                         segment_end(t->master->count, i), data);
    for (guint r = 0; r < ranks; r++)
        ends[r] = segments_before(r + 1, ranks) * sizeof *sums;
    comm_all_gather(t->comm, sums, ends);
    for (guint i = 0; i < SEGMENTS; i++)
        sum += sums[i];
    return sqrt(sum);
}

/* The sum of all ranks' gradients, this rank's part of it. */
static Params *gradients_own(const Trainer *t)
{
    return t->sum ? t->sum : t->grads;
}

static char *own_at(const Trainer *t, const Params *params, gsize element)
{
    return (char *)params->data + (element - part_first(t)) * ops_real_size(t->model->ops->real);
}

static double gradient_squares(Trainer *t, gsize from, gsize end, gconstpointer unused)
{
    (void)unused;
    return t->model->ops->sumsq(own_at(t, gradients_own(t), from), end - from);
}

/* Takes the step, and how far the weights go by it. Each weight's is its own: pieces change no
 * bit. */
static double step_squares(Trainer *t, gsize from, gsize end, gconstpointer adamw)
{
    const Ops *ops = t->model->ops;
    gsize real = ops_real_size(ops->real), piece = head_numbers(t->packer->rows_max);
    double far = 0;

    for (; from < end; from += piece) {
        gsize n = MIN(piece, end - from);
        char *w = (char *)t->master->data + from * real;

        memcpy(t->head, w, n * real);
        ops->adamw(w, own_at(t, t->moment1, from), own_at(t, t->moment2, from),
                   own_at(t, gradients_own(t), from), n, adamw);
        ops->axpby(t->head, 1, w, -1, n);
        far += ops->sumsq(t->head, n);
    }
    return far;
}

/* The ranks' parts of the stepped weights become everybody's. */
static void weights_gather(Trainer *t)
{
    gsize real = ops_real_size(t->model->ops->real);
    g_autofree gsize *ends = g_new(gsize, t->comm->size);

    for (int r = 0; r < t->comm->size; r++)
        ends[r] = t->ends[r] * real;
    comm_all_gather(t->comm, t->master->data, ends);
}

gboolean trainer_step_here(Trainer *t, const TrainerStep *step, TrainerStats *stats, GError **error)
{
    const Ops *ops = t->model->ops;
    Params *grads = gradients_own(t);
    gsize n = grads->held;
    char *master = (char *)t->master->data + part_first(t) * ops_real_size(ops->real);
    AdamwStep adamw = step->adamw;
    gint64 since = g_get_monotonic_time();

    stats->grad_norm = norm_of(t, gradient_squares, NULL);
    if (!trainer_joined(t, error))
        return FALSE;
    if (!isfinite(stats->grad_norm)) {
        gradients_zero(t);
        return error_set(error, ASSAY_ERROR_INPUT, "gradient norm %g: weights are left alone",
                         stats->grad_norm);
    }
    if (step->clip_norm > 0 && stats->grad_norm > step->clip_norm)
        ops->axpby(grads->data, 0, master, step->clip_norm / stats->grad_norm, n);
    adamw.step = ++t->steps;
    stats->update_norm = norm_of(t, step_squares, &adamw);
    weights_gather(t);
    if (!trainer_joined(t, error))
        return FALSE;
    params_set(t->master, t->model);
    gradients_zero(t);
    t->model->version++;
    stats->stepped = TRUE;
    stats->step_s += lap(&since);
    return TRUE;
}

gboolean trainer_step(Trainer *t, const TrainerStep *step, TrainerStats *stats, GError **error)
{
    return stats->loss.tokens == 0 ||
           (ranks_ask_step(t, step, error) && trainer_step_here(t, step, stats, error));
}
