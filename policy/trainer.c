/*
 * One minibatch: forward, log-probabilities, coefficients, backward, step.
 *
 * The head is worked in tiles of rows, twice: coefficients need every log-probability of a rollout
 * before the first gradient, and logits of all rows would not fit.
 *
 * Invariants
 *  1. Gradients only ever add onto what stands, in the order of rows: no cut shows in the sum.
 *  2. Weights, moments and version change together in trainer_step, or not at all.
 *
 * Not here: what a loss is (loss.c), how rows are laid out (pack.c), schedules (env/).
 */
#include "policy/trainer.h"

#include "base/error.h"
#include "kernels/quant.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LOGITS_MAX    (4u << 20) /* elements of a tile */
#define HEAD_ROWS_MAX 1024

/* Numbers by target, in `scratch`. */
enum { LOGP, LSE, ENTROPY, COEF, BONUS, SCRATCHES };

static double real_get(const Trainer *t, const void *array, gsize i)
{
    return t->model->ops->real == OPS_F64 ? ((const double *)array)[i] : ((const float *)array)[i];
}

static void real_set(const Trainer *t, void *array, gsize i, double value)
{
    if (t->model->ops->real == OPS_F64)
        ((double *)array)[i] = value;
    else
        ((float *)array)[i] = (float)value;
}

static int head_rows(const Model *m, int rows_max)
{
    int fit = (int)(LOGITS_MAX / m->config.vocab);

    return CLAMP(fit, 16, MIN(rows_max, HEAD_ROWS_MAX));
}

typedef struct {
    gsize hidden, logits, scratch;
} Sizes;

static Sizes sizes_of(const Model *m, int rows_max)
{
    gsize real = ops_real_size(m->ops->real), rows = (gsize)rows_max;

    return (Sizes){.hidden = rows * m->config.hidden * real,
                   .logits = (gsize)head_rows(m, rows_max) * m->config.vocab * real,
                   .scratch = SCRATCHES * rows * real};
}

gsize trainer_bytes(const Model *m, int rows_max, ActsKeep keep)
{
    Sizes s = sizes_of(m, rows_max);
    gsize params = 0;

    for (guint i = 0; i < tensors_count(&m->config); i++)
        params += tensors_info(&m->config, i).count;
    return 4 * params * ops_real_size(m->ops->real) + acts_bytes(m, rows_max, keep) +
           backward_bytes(m, rows_max, rows_max) + 2 * s.hidden + s.logits + s.scratch +
           (gsize)rows_max * sizeof(LossToken);
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

Trainer *trainer_new(Model *m, int rows_max, ActsKeep keep, GError **error)
{
    g_autoptr(Trainer) t = g_new0(Trainer, 1);
    Sizes s = sizes_of(m, rows_max);

    if (quant_is(m->format)) {
        error_set(error, ASSAY_ERROR_UNSUPPORTED, "weights of codes cannot be trained");
        return NULL;
    }
    t->model = m;
    t->head_rows = head_rows(m, rows_max);
    if (!(t->master = params_new(m, error)) || !(t->moment1 = params_new(m, error)) ||
        !(t->moment2 = params_new(m, error)) || !(t->grads = params_new(m, error)) ||
        !(t->packer = packer_new(m, rows_max, error)) ||
        !(t->acts = acts_new(m, rows_max, keep, error)) ||
        !(t->backward = backward_new(m, rows_max, rows_max, error)) ||
        !(t->hidden = room(s.hidden, error)) || !(t->dhidden = room(s.hidden, error)) ||
        !(t->logits = room(s.logits, error)) || !(t->scratch = room(s.scratch, error)))
        return NULL;
    t->tokens = g_new0(LossToken, rows_max);
    params_get(t->master);
    return g_steal_pointer(&t);
}

void trainer_free(Trainer *t)
{
    if (!t)
        return;
    params_free(t->master);
    params_free(t->moment1);
    params_free(t->moment2);
    params_free(t->grads);
    packer_free(t->packer);
    acts_free(t->acts);
    backward_free(t->backward);
    free(t->hidden);
    free(t->dhidden);
    free(t->logits);
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

/* Logits of the targets from `from` on, in t->logits; returns how many. */
static int tile_logits(Trainer *t, const Model *m, guint from, int *ids)
{
    gsize width = m->config.hidden * ops_real_size(m->ops->real);
    int n = (int)MIN((guint)t->head_rows, t->packer->n_targets - from);

    for (int i = 0; i < n; i++)
        ids[i] = t->packer->targets[from + (guint)i].id;
    forward_logits(m, t->logits, t->hidden + from * width, n);
    return n;
}

static void head_forward(Trainer *t, const Model *m, double temperature)
{
    const ModelConfig *c = &m->config;
    int ids[HEAD_ROWS_MAX], n;

    gather(t, t->hidden, t->acts->hidden, FALSE);
    for (guint from = 0; from < t->packer->n_targets; from += (guint)n) {
        n = tile_logits(t, m, from, ids);
        m->ops->logprob_fwd(scratch_at(t, LOGP, from), scratch_at(t, LSE, from),
                            scratch_at(t, ENTROPY, from), t->logits, ids, n, (int)c->vocab,
                            (int)c->vocab_valid, temperature);
    }
}

static void head_backward(Trainer *t, double temperature, gboolean bonus)
{
    const ModelConfig *c = &t->model->config;
    gsize width = c->hidden * ops_real_size(t->model->ops->real);
    gboolean again = t->packer->n_targets > (guint)t->head_rows;
    int ids[HEAD_ROWS_MAX], n;

    for (guint from = 0; from < t->packer->n_targets; from += (guint)n) {
        if (again) {
            n = tile_logits(t, t->model, from, ids);
        } else { /* the one tile still stands */
            n = (int)t->packer->n_targets;
            for (int i = 0; i < n; i++)
                ids[i] = t->packer->targets[i].id;
        }
        t->model->ops->logprob_bwd(
            t->logits, scratch_at(t, LSE, from), ids, scratch_at(t, COEF, from),
            bonus ? scratch_at(t, BONUS, from) : NULL, scratch_at(t, ENTROPY, from), n,
            (int)c->vocab, (int)c->vocab_valid, temperature);
        /* the tile's gradient goes where its hidden states were: they are read first */
        backward_logits(t->model, t->grads, t->dhidden, t->logits, t->hidden + from * width, n);
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

static float **field_of(Rollout *r, RolloutField field)
{
    return field == ROLLOUT_ANCHOR ? &r->anchor : &r->ref;
}

gboolean trainer_logprobs(Trainer *t, const Model *model, RolloutGroup *const *groups, guint n,
                          double temperature, RolloutField field, GError **error)
{
    GError *local = NULL;
    TrainerStats stats = {0};

    packer_begin(t->packer, groups, n);
    while (packer_next(t->packer, &local)) {
        batch_forward(t, model ? model : t->model, temperature > 0 ? temperature : 1, &stats);
        for (guint i = 0; i < t->packer->n_targets; i++) {
            const PackTarget *target = &t->packer->targets[i];
            float **to = field_of(target->rollout, field);

            if (!*to)
                *to = g_new0(float, target->rollout->n);
            (*to)[target->at] = (float)real_get(t, scratch_at(t, LOGP, 0), i);
        }
    }
    if (local)
        g_propagate_error(error, local);
    return !local;
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
            .logp = real_get(t, scratch_at(t, LOGP, 0), i),
            .mu = r->mu[at],
            .anchor = r->anchor ? r->anchor[at] : r->mu[at],
            .ref = r->ref ? r->ref[at] : 0,
            .advantage = r->credit ? r->credit[at] : r->advantage,
            .entropy = real_get(t, scratch_at(t, ENTROPY, 0), i),
            .scale = r->scale,
        };
    }
    if (!loss_coefs(loss->loss, &loss->options, t->tokens, n, &stats->loss, error))
        return FALSE;
    for (guint i = 0; i < n; i++) {
        real_set(t, scratch_at(t, COEF, 0), i, t->tokens[i].coef);
        real_set(t, scratch_at(t, BONUS, 0), i, t->tokens[i].bonus);
    }
    return TRUE;
}

gboolean trainer_gradients(Trainer *t, RolloutGroup *const *groups, guint n,
                           const TrainerLoss *loss, TrainerTokensFunc func, gpointer user,
                           TrainerStats *stats, GError **error)
{
    double temperature = loss->temperature > 0 ? loss->temperature : 1;
    GError *local = NULL;

    backward_balance(t->backward, loss->balance);
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
    if (!local)
        return TRUE;
    params_zero(t->grads);
    g_propagate_error(error, local);
    return FALSE;
}

/* The square of how far the weights go. Each weight's step is its own: pieces change no bit. */
static double weights_step(Trainer *t, const AdamwStep *adamw)
{
    const Ops *ops = t->model->ops;
    gsize real = ops_real_size(ops->real), count = t->grads->count,
          piece = (gsize)t->head_rows * t->model->config.vocab;
    double far = 0;

    for (gsize from = 0; from < count; from += piece) {
        gsize n = MIN(piece, count - from), at = from * real;
        char *w = (char *)t->master->data + at;

        memcpy(t->logits, w, n * real);
        ops->adamw(w, (char *)t->moment1->data + at, (char *)t->moment2->data + at,
                   (char *)t->grads->data + at, n, adamw);
        ops->axpby(t->logits, 1, w, -1, n);
        far += ops->sumsq(t->logits, n);
    }
    return far;
}

gboolean trainer_step(Trainer *t, const TrainerStep *step, TrainerStats *stats, GError **error)
{
    const Ops *ops = t->model->ops;
    AdamwStep adamw = step->adamw;
    gint64 since = g_get_monotonic_time();

    if (stats->loss.tokens == 0)
        return TRUE;
    stats->grad_norm = sqrt(ops->sumsq(t->grads->data, t->grads->count));
    if (!isfinite(stats->grad_norm)) {
        params_zero(t->grads);
        return error_set(error, ASSAY_ERROR_INPUT, "gradient norm %g: weights are left alone",
                         stats->grad_norm);
    }
    if (step->clip_norm > 0 && stats->grad_norm > step->clip_norm)
        ops->axpby(t->grads->data, 0, t->master->data, step->clip_norm / stats->grad_norm,
                   t->grads->count);
    adamw.step = ++t->steps;
    stats->update_norm = sqrt(weights_step(t, &adamw));
    params_set(t->master, t->model);
    params_zero(t->grads);
    t->model->version++;
    stats->stepped = TRUE;
    stats->step_s += lap(&since);
    return TRUE;
}
