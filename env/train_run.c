/*
 * What a run does: updates on demonstrations, then rollouts, advantages, updates, evaluations.
 *
 * 1. All that is drawn comes from the seed, the phase and the number of the update, so a run that
 *    goes on from a checkpoint draws the same.
 * 2. The first minibatch after a rollout must have the very log-probabilities that sampling
 *    recorded; anything else is an error of ours, and the run stops. Where training's sums are cut
 *    (ranks.tp, ranks.sp) or a server samples, the difference is logged instead.
 * 3. An update that is not finite changes nothing and ends the run.
 *
 * Not here: how a batch is sampled (train_batch.c), files (train_setup.c), measuring
 * (train_eval.c), what is kept of an update that failed (train_failed.c).
 */
#include "env/train.h"

#include "env/train_demos.h"
#include "env/train_record.h"

#include "base/error.h"
#include "policy/flops.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define WARMUP_LOG_STEP 10

/* Rising over the first `rise` steps, then linear from `from` to `to`. */
static double rate_at(double from, double to, gint64 rise, gint64 step, gint64 steps)
{
    double share = steps > 1 ? (double)step / (double)(steps - 1) : 0;
    double up = rise > 0 ? MIN(1, (double)(step + 1) / (double)rise) : 1;

    return up * (from + (to - from) * share);
}

TrainerStep train_step(const TrainConfig *c, double lr)
{
    return (TrainerStep){.adamw = {.lr = lr,
                                   .beta1 = c->optim_beta1,
                                   .beta2 = c->optim_beta2,
                                   .eps = c->optim_eps,
                                   .weight_decay = c->optim_weight_decay},
                         .clip_norm = c->optim_clip_norm};
}

TrainerLoss train_loss(const TrainConfig *c, TrainPhase phase, NormOptions *ret_norm)
{
    TrainerLoss loss = {.balance = c->loss_balance};

    if (phase == TRAIN_WARMUP) {
        loss.loss = loss_find("sft");
        loss.options = loss_options(loss.loss, &(LossOptions){0});
        *ret_norm = (NormOptions){.kind = NORM_SEQ_MEAN}; /* an action weighs as much as a file */
        return loss;
    }
    loss.temperature = c->rollout_temperature;
    loss.options = train_config_loss(c, &loss.loss);
    *ret_norm = train_config_norm(c);
    return loss;
}

static gboolean check_mismatch(const Train *t, const LossStats *stats, GError **error)
{
    if (!sampler_is_exact(t->sampler) || t->config->run_behind ||
        t->config->ranks_tp * t->config->ranks_sp > 1 || t->config->rollout_temperature != 1 ||
        stats->mismatch_max == 0)
        return TRUE;
    return error_set(error, ASSAY_ERROR_SYSTEM,
                     "update %" G_GINT64_FORMAT
                     ": log-probabilities differ by up to %g from those that sampling recorded",
                     t->update, stats->mismatch_max);
}

/* Gradients and step; what cannot be stepped on is kept to be looked at. */
static gboolean learn(Train *t, const TrainMinibatch *m, TrainerStats *stats, GError **error)
{
    TrainerStep step = train_step(t->config, m->lr);
    NormOptions norm;
    TrainerLoss loss = train_loss(t->config, m->phase, &norm);
    g_autoptr(GError) why = NULL;

    normalise(m->groups, m->n, &norm);
    if (trainer_gradients(t->trainer, m->groups, m->n, &loss, NULL, NULL, stats, &why) &&
        (!m->first || check_mismatch(t, &stats->loss, &why)) &&
        trainer_step(t->trainer, &step, stats, &why))
        return TRUE;
    return train_failed(t, m, g_steal_pointer(&why), error);
}

/* ---- warm-up ---- */

static gboolean warmup_update(Train *t, GError **error)
{
    const TrainConfig *c = t->config;
    g_autoptr(GRand) rand = train_rand(t, TRAIN_SEED_WARMUP, t->warmup);
    const DemoOptions demo = {.gold = c->warmup_gold,
                              .text = c->warmup_text,
                              .read = c->warmup_read,
                              .skip_wrong = c->warmup_skip_wrong,
                              .turns = (guint)c->rollout_turns,
                              .rows_max = c->optim_rows};
    const AdvantageOptions advantage = {.kind = ADVANTAGE_REWARD};
    double lr =
        rate_at(c->warmup_lr, c->warmup_lr_end, c->warmup_lr_warmup, t->warmup, c->warmup_updates);
    TrainMinibatch minibatch = {.phase = TRAIN_WARMUP, .lr = lr};
    g_autoptr(GPtrArray) groups =
        demos_make(t->roller.dialect, t->demos, t->tokenizer, &demo, c->warmup_tokens, rand, error);
    AdvantageStats seen;
    TrainerStats stats = {0};

    if (!groups)
        return FALSE;
    minibatch.groups = (RolloutGroup **)groups->pdata;
    minibatch.n = groups->len;
    advantages(minibatch.groups, minibatch.n, &advantage, &seen);
    if (!learn(t, &minibatch, &stats, error))
        return FALSE;
    t->warmup++;
    train_log_put(t->log, "loss/total", stats.loss.loss);
    train_log_put(t->log, "optim/lr", lr);
    train_log_put(t->log, "optim/grad_norm", stats.grad_norm);
    train_log_put(t->log, "optim/update_norm", stats.update_norm);
    train_log_put(t->log, "time/update_s",
                  stats.forward_s + stats.head_s + stats.backward_s + stats.step_s);
    train_log_put(t->log, "perf/rows", (double)stats.rows);
    train_log_put(t->log, "router/peak_load", stats.router_peak);
    return train_log_end(t->log, "warmup", t->warmup, error);
}

/* ---- one update ---- */

/* Sampled against recomputed, under the weights that sampled. */
static void put_mismatch(Train *t, const LossStats *s)
{
    double n = (double)MAX(s->tokens, 1);

    train_log_put(t->log, "policy/logp_diff_max", s->mismatch_max);
    train_log_put(t->log, "policy/logp_diff_mean", s->mismatch_sum / n);
    train_log_put(t->log, "policy/logp_correlation", loss_correlation(s));
    train_log_put(t->log, "policy/mismatch_k1", s->mismatch_k1 / n);
    train_log_put(t->log, "policy/mismatch_k3", s->mismatch_k3 / n);
}

static void put_loss(Train *t, const TrainerStats *s, double lr)
{
    double n = (double)MAX(s->loss.tokens, 1);

    train_log_put(t->log, "loss/total", s->loss.loss);
    train_log_put(t->log, "optim/lr", lr);
    train_log_put(t->log, "optim/grad_norm", s->grad_norm);
    train_log_put(t->log, "optim/update_norm", s->update_norm);
    train_log_put(t->log, "policy/entropy", s->loss.entropy / n);
    train_log_put(t->log, "policy/is_ratio_mean", s->loss.ratio_sum / n);
    train_log_put(t->log, "policy/is_ratio_min", s->loss.ratio_min);
    train_log_put(t->log, "policy/is_ratio_p99", loss_ratio_quantile(&s->loss, 0.99));
    train_log_put(t->log, "policy/is_ratio_max", s->loss.ratio_max);
    train_log_put(t->log, "policy/is_clipped_frac", (double)s->loss.ratio_high / n);
    train_log_put(t->log, "policy/masked_frac", (double)s->loss.masked / n);
    train_log_put(t->log, "policy/kl", s->loss.kl3 / n);
    train_log_put(t->log, "policy/kl_reference", s->loss.kl_ref / n);
}

static void add_rows(TrainerStats *sum, const TrainerStats *one)
{
    sum->rows += one->rows;
    sum->rerouted += one->rerouted;
    sum->router_peak = MAX(sum->router_peak, one->router_peak);
}

/* What a rollout's tokens are compared with, where that is not what sampling recorded. */
static gboolean anchors(Train *t, GPtrArray *groups, GError **error)
{
    const TrainConfig *c = t->config;
    RolloutGroup **all = (RolloutGroup **)groups->pdata;

    return (strcmp(c->loss_anchor, "recomputed") != 0 ||
            trainer_logprobs(t->trainer, all, groups->len, c->rollout_temperature, ROLLOUT_ANCHOR,
                             error)) &&
           (!t->trainer->reference || trainer_logprobs(t->trainer, all, groups->len,
                                                       c->rollout_temperature, ROLLOUT_REF, error));
}

/* Every pass over the batch, in minibatches of whole groups. */
static gboolean minibatches(Train *t, const TrainBatch *batch, TrainerStats *sum, GError **error)
{
    const TrainConfig *c = t->config;
    guint parts = (guint)(c->optim_minibatches * c->optim_epochs), groups = batch->groups->len;
    TrainMinibatch m = {.phase = TRAIN_RL};

    m.lr = rate_at(c->optim_lr, c->optim_lr_end, c->optim_lr_warmup / c->optim_minibatches,
                   t->update, c->run_updates);
    if (!anchors(t, batch->groups, error))
        return FALSE;
    for (guint i = 0; i < parts; i++) {
        guint at = i % (guint)c->optim_minibatches;
        guint from = groups * at / (guint)c->optim_minibatches;
        TrainerStats stats = {0};

        m.first = i == 0;
        m.groups = (RolloutGroup **)batch->groups->pdata + from;
        m.tasks = (TrainTask *const *)batch->tasks->pdata + from;
        m.n = groups * (at + 1) / (guint)c->optim_minibatches - from;
        if (!learn(t, &m, &stats, error))
            return FALSE;
        if (i == 0) {
            put_mismatch(t, &stats.loss);
        }
        add_rows(sum, &stats);
        if (i + 1 == parts)
            put_loss(t, &stats, m.lr);
    }
    sampler_weights_changed(t->sampler);
    return TRUE;
}

static gboolean is_due(gint64 step, gint64 every, gint64 last)
{
    return step % every == 0 || step == last;
}

/* The batches that stand beside a checkpoint are kept. */
static gboolean keep_rollouts(const Train *t, const TrainBatch *batch, GError **error)
{
    g_autofree char *dir = g_build_filename(t->dir, "rollouts", NULL);
    g_autofree char *name = g_strdup_printf("%06" G_GINT64_FORMAT ".jsonl", t->update + 1);
    g_autofree char *path = g_build_filename(dir, name, NULL);

    if (!is_due(t->update + 1, t->config->run_checkpoint_every, t->config->run_updates))
        return TRUE;
    if (g_mkdir_with_parents(dir, 0755) != 0)
        return error_set_errno(error, errno, "%s", dir);
    return record_write(path, (TrainTask *const *)batch->tasks->pdata, batch->groups, t->tokenizer,
                        error);
}

/* The batch to learn from now. One step behind, it was sampled with the weights before the last
 * update, and the next one is sampled before this update. */
static TrainBatch *batch_now(Train *t, GError **error)
{
    gboolean behind = t->config->run_behind != 0, more = t->update + 1 < t->config->run_updates;
    g_autoptr(TrainBatch) now = g_steal_pointer(&t->pending);

    if (!now && !(now = train_batch_sample(t, t->update, error)))
        return NULL;
    if (behind && more && !(t->pending = train_batch_sample(t, t->update + 1, error)))
        return NULL;
    return g_steal_pointer(&now);
}

static gboolean update(Train *t, GError **error)
{
    g_autoptr(TrainBatch) batch = batch_now(t, error);
    gint64 since = g_get_monotonic_time();
    TrainerStats spent = {0};
    double seconds;

    if (!batch)
        return FALSE;
    train_batch_log(t, batch);
    if (!keep_rollouts(t, batch, error) || !minibatches(t, batch, &spent, error))
        return FALSE;
    t->update++;
    if (window_add(&t->window, t->config, &batch->window))
        train_log_say(t->log, "turns of up to %" G_GINT64_FORMAT " tokens from now on",
                      window_tokens(t->config, t->window.at));
    t->episodes += batch->rolled.episodes;
    t->tokens += (gint64)batch->rolled.tokens;
    seconds = (double)(g_get_monotonic_time() - since) / 1e6;
    train_log_put(t->log, "time/update_s", seconds);
    train_log_put(t->log, "perf/rows", (double)spent.rows);
    train_log_put(t->log, "perf/mfu",
                  3 * flops_token(&t->model->config) * (double)spent.rows / seconds / t->peak);
    train_log_put(t->log, "router/peak_load", spent.router_peak);
    if (t->config->optim_routing_replay)
        train_log_put(t->log, "router/rerouted_frac",
                      (double)spent.rerouted /
                          ((double)MAX(spent.rows, 1) * t->model->config.layers));
    return train_log_end(t->log, "rl", t->warmup + t->update, error);
}

/* ---- the run ---- */

static gboolean warmup_all(Train *t, GError **error)
{
    while (t->warmup < t->config->warmup_updates && !g_atomic_int_get(&t->stop)) {
        if (!warmup_update(t, error))
            return FALSE;
        if (is_due(t->warmup, t->config->run_checkpoint_every * WARMUP_LOG_STEP,
                   t->config->warmup_updates) &&
            !train_checkpoint(t, error))
            return FALSE;
    }
    return TRUE; /* nothing was sampled yet: no cache to be told */
}

gboolean train_run(Train *t, GError **error)
{
    const TrainConfig *c = t->config;

    if (!warmup_all(t, error))
        return FALSE;
    if (t->warmup < c->warmup_updates) /* stopped */
        return train_checkpoint(t, error);
    if (!train_reference(t, error))
        return FALSE;
    if (t->update == 0 && train_log_eval_last(t->log) < t->warmup && !g_atomic_int_get(&t->stop) &&
        !train_eval(t, error))
        return FALSE;
    while (t->update < c->run_updates && !g_atomic_int_get(&t->stop)) {
        if (!update(t, error))
            return FALSE;
        if (is_due(t->update, c->eval_every, c->run_updates) && !train_eval(t, error))
            return FALSE;
        if (is_due(t->update, c->run_checkpoint_every, c->run_updates) &&
            !train_checkpoint(t, error))
            return FALSE;
    }
    return !g_atomic_int_get(&t->stop) || train_checkpoint(t, error);
}
