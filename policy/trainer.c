/*
 * One minibatch: forward, log-probabilities, coefficients, backward, step.
 *
 * The head is worked twice: coefficients need every log-probability of a rollout before the first
 * gradient, and logits are not kept.
 *
 * Invariants
 *  1. Gradients only ever add onto what stands, in the order of rows: no cut shows in the sum.
 *  2. All ranks take part in every sum over ranks, a rank whose share failed with zeros.
 *  3. Ranks that meet within a pass make as many passes: who has no rows left works on padding,
 *     who failed goes on to the end of the pass and says so before the next.
 *
 * Not here: what a loss is (loss.c), how rows are laid out (pack.c), the optimiser (step.c), what
 * ranks are told (ranks.c), schedules (env/).
 */
#include "policy/trainer.h"

#include "policy/ranks.h"
#include "policy/sequence.h"
#include "policy/shard.h"

#include "base/error.h"
#include "kernels/quant.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_ROWS_MAX 1024 /* of the head at once: bounds its scratch */

/* Numbers by target, in `scratch`. */
enum { LOGP, LSE, ENTROPY, COEF, BONUS, SCRATCHES };

/* Of the scratch of Ops.head_fwd. */
static gsize head_numbers(int rows)
{
    return (gsize)MIN(rows, HEAD_ROWS_MAX) * (OPS_HEAD_TILE + 3);
}

/* Rows of a batch that are this rank's. */
static int rows_here(const Layout *l, int rows_max)
{
    return (rows_max + (int)l->sp - 1) / (int)l->sp;
}

typedef struct {
    gsize hidden, head, scratch;
} Sizes;

static Sizes sizes_of(const Model *m, const Layout *l, int rows_max)
{
    gsize real = ops_real_size(m->ops->real), rows = (gsize)rows_here(l, rows_max);

    return (Sizes){.hidden = rows * m->config.hidden * real,
                   .head = head_numbers((int)rows) * real,
                   .scratch = SCRATCHES * (gsize)rows_max * real};
}

gsize trainer_bytes(const Model *m, int rows_max, ActsKeep keep, const Layout *l, guint shares)
{
    int rows = rows_here(l, rows_max);
    Sizes s = sizes_of(m, l, rows_max);

    return 2 * params_count(m) * ops_real_size(m->ops->real) + trainer_moments_bytes(m, l) +
           trainer_sums_bytes(m, l, shares) + acts_bytes(m, rows, keep) +
           backward_bytes(m, rows, rows_max) + 2 * s.hidden + s.head + s.scratch +
           (gsize)rows_max * sizeof(LossToken);
}

/* ---- ranks ---- */

gboolean trainer_is_cut(const Layout *l)
{
    return l->tp * l->ep * l->sp > 1;
}

gboolean trainer_layout(const ModelConfig *whole, const Layout *wanted, guint ranks, Layout *ret,
                        GError **error)
{
    Layout l = *wanted;
    guint64 each = (guint64)MAX(l.tp, 1) * MAX(l.sp, 1);
    ModelConfig part;

    if (ranks % each != 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "tp = %u and sp = %u want a multiple of %" G_GUINT64_FORMAT
                         " ranks, there are %u",
                         MAX(l.tp, 1), MAX(l.sp, 1), each, ranks);
    l.dp = ranks / (guint)each;
    return layout_check(whole, &l, ret, error) && layout_part(whole, ret, 0, &part, error);
}

static gboolean parts_make(Trainer *t, GError **error)
{
    guint parts = t->layout.tp * t->layout.ep;

    t->parts = g_new0(TrainerPart, parts);
    for (guint p = 0; p < parts; p++) {
        if (!layout_part(&t->whole, &t->layout, p, &t->parts[p].config, error))
            return FALSE;
        t->parts[p].offset = params_offsets(&t->parts[p].config, t->parts[p].ends);
    }
    return TRUE;
}

Trainer *trainer_begin(const ModelConfig *whole, const TrainerRanks *ranks, GError **error)
{
    g_autoptr(Trainer) t = g_new0(Trainer, 1);

    t->whole = *whole;
    t->alone = ranks->comm == NULL;
    t->comm = ranks->comm;
    t->wait_s = ranks->wait_s;
    if (t->alone && !comm_local(1, &t->comm)) {
        error_set_errno(error, ENOMEM, "a group of one rank");
        return NULL;
    }
    if (!trainer_layout(whole, &ranks->layout, (guint)t->comm->size, &t->layout, error) ||
        !trainer_shares(t->layout.dp, ranks->shares, &t->shares, error) || !parts_make(t, error) ||
        !layout_groups(&t->layout, t->comm, &t->groups, error))
        return NULL;
    return g_steal_pointer(&t);
}

/* Which of the ranks that work on the same shares this is; the first speaks for them. */
static guint mate_of(const Trainer *t, guint rank)
{
    return rank % (t->layout.tp * t->layout.sp);
}

static guint worker_of(const Trainer *t, guint rank)
{
    return rank / (t->layout.tp * t->layout.sp);
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

gboolean trainer_build(Trainer *t, Model *m, int rows_max, ActsKeep keep, GError **error)
{
    int rows = rows_here(&t->layout, rows_max);
    Sizes s;

    if (quant_is(m->format))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "weights of codes cannot be trained");
    if (rows_max < (int)t->layout.sp)
        return error_set(error, ASSAY_ERROR_INPUT, "%d rows cannot be shared by sp = %u", rows_max,
                         t->layout.sp);
    t->model = m;
    s = sizes_of(m, &t->layout, rows_max);
    t->head_n = head_numbers(rows);
    if (!trainer_hold(t, error) || !(t->packer = packer_new(m, rows_max, error)) ||
        !(t->acts = acts_new(m, rows, keep, error)) ||
        !(t->backward = backward_new(m, rows, rows_max, error)) ||
        !(t->hidden = room(s.hidden, error)) || !(t->dhidden = room(s.hidden, error)) ||
        !(t->head = room(s.head, error)) || !(t->scratch = room(s.scratch, error)))
        return FALSE;
    t->tokens = g_new0(LossToken, rows_max);
    return TRUE;
}

Trainer *trainer_new_ranks(Model *m, int rows_max, ActsKeep keep, const TrainerRanks *ranks,
                           GError **error)
{
    g_autoptr(Trainer) t = NULL;

    if (ranks->comm && ranks->comm->size > 1)
        return ranks_gather(m, rows_max, keep, ranks, error);
    t = trainer_begin(&m->config, ranks, error);
    return t && trainer_build(t, m, rows_max, keep, error) ? g_steal_pointer(&t) : NULL;
}

Trainer *trainer_new(Model *m, int rows_max, ActsKeep keep, GError **error)
{
    return trainer_new_ranks(m, rows_max, keep, &(TrainerRanks){0}, error);
}

void trainer_free(Trainer *t)
{
    if (!t)
        return;
    trainer_let_go(t);
    packer_free(t->packer);
    acts_free(t->acts);
    backward_free(t->backward);
    free(t->hidden);
    free(t->dhidden);
    free(t->head);
    free(t->scratch);
    g_free(t->tokens);
    model_free(t->reference);
    if (t->is_part)
        model_free(t->model);
    layout_groups_clear(&t->groups);
    for (guint p = 0; t->parts && p < t->layout.tp * t->layout.ep; p++)
        g_free(t->parts[p].offset);
    g_free(t->parts);
    if (t->alone)
        comm_close(t->comm);
    g_free(t);
}

/* ---- the head, over the rows that predict trained tokens ---- */

/* Of a number for each target. */
static gsize numbers_bytes(const Trainer *t)
{
    return (gsize)t->packer->rows_max * ops_real_size(t->model->ops->real);
}

static char *scratch_at(const Trainer *t, int which, guint i)
{
    return t->scratch + (gsize)which * numbers_bytes(t) + i * ops_real_size(t->model->ops->real);
}

/* The targets in this rank's rows. */
static const PackTarget *targets_here(const Trainer *t, guint *n)
{
    *n = t->packer->target_end - t->packer->target_first;
    return t->packer->targets + t->packer->target_first;
}

/* The targets' rows of [rows, D], one after the other, or back. */
static void gather(const Trainer *t, char *packed, char *rows, gboolean back)
{
    gsize width = t->model->config.hidden * ops_real_size(t->model->ops->real);
    guint n;
    const PackTarget *targets = targets_here(t, &n);

    for (guint i = 0; i < n; i++) {
        char *row = rows + (gsize)(targets[i].row - t->packer->piece_row) * width;

        memcpy(back ? row : packed + i * width, back ? packed + i * width : row, width);
    }
}

/* The ids of the targets from `from` on, HEAD_ROWS_MAX at most; returns how many. */
static int slice_ids(const Trainer *t, guint from, int *ids)
{
    guint all;
    const PackTarget *targets = targets_here(t, &all);
    int n = (int)MIN(HEAD_ROWS_MAX, all - from);

    for (int i = 0; i < n; i++)
        ids[i] = targets[from + (guint)i].id;
    return n;
}

/* What other ranks found of the targets in their rows. */
static void targets_meet(Trainer *t)
{
    static const int told[] = {LOGP, ENTROPY};
    Comm *comm = t->groups.sequence;
    g_autofree gsize *ends = g_new(gsize, comm->size);

    for (int r = 0; r < comm->size; r++)
        ends[r] = t->packer->target_ends[r] * ops_real_size(t->model->ops->real);
    for (guint i = 0; i < G_N_ELEMENTS(told); i++)
        comm_all_gather(comm, scratch_at(t, told[i], 0), ends);
}

static void head_forward(Trainer *t, const Model *m, double temperature)
{
    gsize width = m->config.hidden * ops_real_size(m->ops->real);
    int ids[HEAD_ROWS_MAX], n;
    guint all, first = t->packer->target_first;

    targets_here(t, &all);
    gather(t, t->hidden, t->acts->hidden, FALSE);
    for (guint from = 0; from < all; from += (guint)n) {
        n = slice_ids(t, from, ids);
        shard_head_fwd(m, scratch_at(t, LOGP, first + from), scratch_at(t, LSE, first + from),
                       scratch_at(t, ENTROPY, first + from), t->hidden + from * width, ids, n,
                       temperature, t->head);
    }
    targets_meet(t);
}

static void head_backward(Trainer *t, double temperature, gboolean bonus)
{
    gsize width = t->model->config.hidden * ops_real_size(t->model->ops->real);
    void *dw = params_tensor(t->grads, 0, SLOT_HEAD, 0);
    int ids[HEAD_ROWS_MAX], n;
    guint all;

    targets_here(t, &all);
    for (guint from = 0; from < all; from += (guint)n) {
        guint at = t->packer->target_first + from;
        HeadGrad grad = {.lse = scratch_at(t, LSE, at),
                         .ids = ids,
                         .coef = scratch_at(t, COEF, at),
                         .bonus = bonus ? scratch_at(t, BONUS, at) : NULL,
                         .entropy = scratch_at(t, ENTROPY, at)};

        n = slice_ids(t, from, ids);
        /* the slice's gradient goes where its hidden states were: they are read first */
        shard_head_bwd(t->model, t->dhidden, dw, t->hidden + from * width, &grad, n, temperature,
                       t->head);
        memcpy(t->hidden + from * width, t->dhidden, (gsize)n * width);
    }
    memset(t->dhidden, 0, (gsize)t->packer->piece.rows * width);
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
    double even = (double)t->packer->piece.rows * m->config.experts_per_token / m->config.experts;
    int most = 0;

    for (guint l = 0; l < m->config.layers; l++) {
        const int *offsets = t->acts->layers[l].plan.offsets;

        for (guint e = 0; e < m->config.experts; e++)
            most = MAX(most, offsets[e + 1] - offsets[e]);
    }
    return most / even;
}

/* This rank's rows of the batch that are not padding. */
static int rows_true(const Trainer *t)
{
    const Packer *p = t->packer;

    return CLAMP(p->batch.rows - p->padding - p->piece_row, 0, p->piece.rows);
}

static void batch_forward(Trainer *t, const Model *m, double temperature, TrainerStats *stats)
{
    gint64 since = g_get_monotonic_time();
    int rows = rows_true(t);

    if (m != t->model)
        t->packer->piece.given = NULL; /* another model has a routing of its own */
    forward(m, t->acts, &t->packer->piece);
    stats->rerouted += t->acts->rerouted;
    stats->forward_s += lap(&since);
    head_forward(t, m, temperature);
    stats->head_s += lap(&since);
    stats->rows += (guint64)rows;
    stats->batches += rows > 0;
    if (rows > 0)
        stats->router_peak = MAX(stats->router_peak, router_peak(t, m));
}

typedef enum { BATCH_NONE = 0, BATCH_THERE, BATCH_FAILED } BatchState;

/* The next batch and this rank's piece of it. Ranks that meet within a pass go on while one of them
 * has a batch and none has failed; `own` is this rank's failure, which may be set already. */
static gboolean batch_next(Trainer *t, GError **own)
{
    guint ranks = (guint)t->comm->size;
    g_autofree guint8 *states = g_new0(guint8, ranks);
    g_autofree gsize *ends = g_new(gsize, ranks);
    BatchState mine = *own ? BATCH_FAILED : packer_next(t->packer, own) ? BATCH_THERE : BATCH_NONE;
    gboolean any = mine == BATCH_THERE, failed;

    if (trainer_is_cut(&t->layout)) {
        if (*own || !packer_pad(t->packer, (int)t->layout.sp, own))
            mine = BATCH_FAILED;
        states[t->comm->rank] = (guint8)mine;
        for (guint r = 0; r < ranks; r++)
            ends[r] = r + 1;
        failed = !comm_all_gather(t->comm, states, ends);
        for (guint r = 0; r < ranks; r++) {
            any |= states[r] == BATCH_THERE;
            failed |= states[r] == BATCH_FAILED;
        }
        any = any && !failed;
    }
    if (any)
        packer_cut(t->packer, (guint)t->groups.sequence->rank, t->layout.sp);
    return any && !*own;
}

float **trainer_field(Rollout *r, RolloutField field)
{
    return field == ROLLOUT_ANCHOR ? &r->anchor : &r->ref;
}

gboolean trainer_logprobs_here(Trainer *t, RolloutGroup *const *groups, guint n, double temperature,
                               RolloutField field, GError **error)
{
    const Model *m = field == ROLLOUT_REF && t->reference ? t->reference : t->model;
    GError *local = NULL;
    TrainerStats stats = {0};

    packer_begin(t->packer, groups, n);
    while (batch_next(t, &local)) {
        batch_forward(t, m, temperature > 0 ? temperature : 1, &stats);
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

gboolean trainer_logprobs(Trainer *t, RolloutGroup *const *groups, guint n, double temperature,
                          RolloutField field, GError **error)
{
    return t->comm->size == 1 ? trainer_logprobs_here(t, groups, n, temperature, field, error)
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
    while (batch_next(t, &local)) {
        gint64 since;

        batch_forward(t, t->model, temperature, stats);
        if (!coefficients(t, loss, stats, &local)) /* to the end of the pass, for the others */
            memset(scratch_at(t, COEF, 0), 0, (BONUS + 1 - COEF) * numbers_bytes(t));
        else if (func)
            func(t->packer, t->tokens, user);
        since = g_get_monotonic_time();
        head_backward(t, temperature, loss->options.entropy != 0);
        stats->head_s += lap(&since);
        backward(t->backward, t->model, t->grads, t->acts, &t->packer->piece,
                 t->packer->piece_grads, t->dhidden);
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

/* Adds what a rank found. All tensor parallel ranks say the same of the same rows; those of a
 * sequence the same of all targets. */
static void stats_add(const Trainer *t, guint rank, TrainerStats *sum, const TrainerStats *part)
{
    if (mate_of(t, rank) == 0) {
        loss_stats_add(&sum->loss, &part->loss);
        sum->batches += part->batches;
    }
    if (rank % t->layout.tp == 0) {
        sum->rerouted += part->rerouted;
        sum->rows += part->rows;
    }
    sum->router_peak = MAX(sum->router_peak, part->router_peak);
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
        stats_add(t, r, stats, &reports[r].stats);
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

gboolean trainer_gradients_here(Trainer *t, RolloutGroup *const *groups, guint n,
                                const TrainerLoss *loss, TrainerTokensFunc func, gpointer user,
                                TrainerStats *stats, GError **error)
{
    gboolean summed = trainer_sums_bytes(t->model, &t->layout, t->shares) > 0;
    g_autofree guint *ends = g_new0(guint, t->shares);
    gboolean ok = TRUE;

    if (loss->balance > 0 && t->layout.ep * t->layout.sp > 1)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "even loads of experts are those of one rank's rows: not with ep or sp");
    backward_balance(t->backward, loss->balance);
    pack_shares(t->model, groups, n, t->shares, ends);
    for (guint first = 0; ok && first < t->shares; first += t->layout.dp) {
        guint share = first + worker_of(t, (guint)t->comm->rank);
        guint from = share > 0 ? ends[share - 1] : 0;
        TrainerStats one = {0};
        GError *own = NULL;
        gint64 since;

        if (summed)
            params_zero(t->grads);
        if (!share_gradients(t, groups + from, ends[share] - from, loss, func, user, &one, &own))
            params_zero(t->grads);
        since = g_get_monotonic_time();
        trainer_reduce(t);
        ok = round_end(t, &one, own, stats, error);
        stats->step_s += lap(&since);
    }
    if (!ok)
        trainer_gradients_zero(t);
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

gboolean trainer_step(Trainer *t, const TrainerStep *step, TrainerStats *stats, GError **error)
{
    return stats->loss.tokens == 0 ||
           (ranks_ask_step(t, step, error) && trainer_step_here(t, step, stats, error));
}
