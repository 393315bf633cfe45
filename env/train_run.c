/*
 * What a run does: updates on demonstrations, then rollouts, advantages, updates, evaluations.
 *
 * 1. All that is drawn comes from the seed, the phase and the number of the update, so a run that
 *    goes on from a checkpoint draws the same.
 * 2. The first minibatch after a rollout must have the very log-probabilities that sampling
 *    recorded; anything else is an error of ours, and the run stops.
 * 3. An update that is not finite changes nothing and ends the run.
 *
 * Not here: how a batch is sampled (train_batch.c), files (train_setup.c), measuring
 * (train_eval.c).
 */
#include "env/train.h"

#include "env/train_demos.h"
#include "env/train_record.h"

#include "base/error.h"

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

static TrainerStep step_of(const TrainConfig *c, double lr)
{
    return (TrainerStep){.adamw = {.lr = lr,
                                   .beta1 = c->optim_beta1,
                                   .beta2 = c->optim_beta2,
                                   .eps = c->optim_eps,
                                   .weight_decay = c->optim_weight_decay},
                         .clip_norm = c->optim_clip_norm};
}

/* ---- warm-up ---- */

static gboolean warmup_update(Train *t, GError **error)
{
    const TrainConfig *c = t->config;
    g_autoptr(GRand) rand = train_rand(t, TRAIN_SEED_WARMUP, t->warmup);
    const Loss *sft = loss_find("sft");
    const DemoOptions demo = {.gold = c->warmup_gold,
                              .text = c->warmup_text,
                              .read = c->warmup_read,
                              .skip_wrong = c->warmup_skip_wrong,
                              .turns = (guint)c->rollout_turns,
                              .rows_max = c->optim_rows};
    const AdvantageOptions advantage = {.kind = ADVANTAGE_REWARD};
    const NormOptions norm = {.kind = NORM_SEQ_MEAN}; /* an action weighs as much as a file */
    TrainerLoss loss = {
        .loss = sft, .options = loss_options(sft, &(LossOptions){0}), .balance = c->loss_balance};
    double lr =
        rate_at(c->warmup_lr, c->warmup_lr_end, c->warmup_lr_warmup, t->warmup, c->warmup_updates);
    TrainerStep step = step_of(c, lr);
    g_autoptr(GPtrArray) groups =
        demos_make(t->roller.dialect, t->demos, t->tokenizer, &demo, c->warmup_tokens, rand, error);
    RolloutGroup **all;
    AdvantageStats seen;
    TrainerStats stats = {0};

    if (!groups)
        return FALSE;
    all = (RolloutGroup **)groups->pdata;
    advantages(all, groups->len, &advantage, &seen);
    normalise(all, groups->len, &norm);
    if (!trainer_gradients(t->trainer, all, groups->len, &loss, NULL, NULL, &stats, error) ||
        !trainer_step(t->trainer, &step, &stats, error))
        return FALSE;
    t->warmup++;
    train_log_put(t->log, "loss/total", stats.loss.loss);
    train_log_put(t->log, "optim/lr", lr);
    train_log_put(t->log, "optim/grad_norm", stats.grad_norm);
    train_log_put(t->log, "time/update_s",
                  stats.forward_s + stats.head_s + stats.backward_s + stats.step_s);
    train_log_put(t->log, "perf/rows", (double)stats.rows);
    train_log_put(t->log, "router/peak_load", stats.router_peak);
    return train_log_end(t->log, "warmup", t->warmup, error);
}

/* ---- one update ---- */

static gboolean check_mismatch(const Train *t, const LossStats *stats, GError **error)
{
    if (t->config->run_behind || t->config->rollout_temperature != 1 || stats->mismatch_max == 0)
        return TRUE;
    return error_set(error, ASSAY_ERROR_SYSTEM,
                     "update %" G_GINT64_FORMAT
                     ": log-probabilities differ by up to %g from those that sampling recorded",
                     t->update, stats->mismatch_max);
}

static void put_loss(Train *t, const TrainerStats *s, double lr)
{
    double n = (double)MAX(s->loss.tokens, 1);

    train_log_put(t->log, "loss/total", s->loss.loss);
    train_log_put(t->log, "optim/lr", lr);
    train_log_put(t->log, "optim/grad_norm", s->grad_norm);
    train_log_put(t->log, "policy/entropy", s->loss.entropy / n);
    train_log_put(t->log, "policy/is_ratio_mean", s->loss.ratio_sum / n);
    train_log_put(t->log, "policy/is_ratio_min", s->loss.ratio_min);
    train_log_put(t->log, "policy/is_ratio_max", s->loss.ratio_max);
    train_log_put(t->log, "policy/is_clipped_frac", (double)s->loss.ratio_high / n);
    train_log_put(t->log, "policy/masked_frac", (double)s->loss.masked / n);
    train_log_put(t->log, "policy/kl", s->loss.kl3 / n);
    train_log_put(t->log, "policy/kl_reference", s->loss.kl_ref / n);
}

static void add_rows(TrainerStats *sum, const TrainerStats *one)
{
    sum->rows += one->rows;
    sum->router_peak = MAX(sum->router_peak, one->router_peak);
}

/* Every pass over the batch, in minibatches of whole groups. */
static gboolean minibatches(Train *t, GPtrArray *groups, TrainerStats *sum, GError **error)
{
    const TrainConfig *c = t->config;
    const NormOptions norm = train_config_norm(c);
    TrainerLoss loss = {.temperature = c->rollout_temperature, .balance = c->loss_balance};
    double lr = rate_at(c->optim_lr, c->optim_lr_end, c->optim_lr_warmup / c->optim_minibatches,
                        t->update, c->run_updates);
    TrainerStep step = step_of(c, lr);
    RolloutGroup **all = (RolloutGroup **)groups->pdata;
    guint parts = (guint)(c->optim_minibatches * c->optim_epochs);

    loss.options = train_config_loss(c, &loss.loss);
    if ((!strcmp(c->loss_anchor, "recomputed") &&
         !trainer_logprobs(t->trainer, NULL, all, groups->len, c->rollout_temperature,
                           ROLLOUT_ANCHOR, error)) ||
        (t->reference && !trainer_logprobs(t->trainer, t->reference, all, groups->len,
                                           c->rollout_temperature, ROLLOUT_REF, error)))
        return FALSE;
    for (guint i = 0; i < parts; i++) {
        guint m = i % (guint)c->optim_minibatches;
        guint from = groups->len * m / (guint)c->optim_minibatches;
        guint to = groups->len * (m + 1) / (guint)c->optim_minibatches;
        TrainerStats stats = {0};

        normalise(all + from, to - from, &norm);
        if (!trainer_gradients(t->trainer, all + from, to - from, &loss, NULL, NULL, &stats, error))
            return FALSE;
        if (i == 0) {
            if (!check_mismatch(t, &stats.loss, error))
                return FALSE;
            train_log_put(t->log, "policy/logp_diff_max", stats.loss.mismatch_max);
            train_log_put(t->log, "policy/logp_diff_mean",
                          stats.loss.mismatch_sum / (double)MAX(stats.loss.tokens, 1));
            train_log_put(t->log, "policy/logp_correlation", loss_correlation(&stats.loss));
        }
        if (!trainer_step(t->trainer, &step, &stats, error))
            return FALSE;
        add_rows(sum, &stats);
        if (i + 1 == parts)
            put_loss(t, &stats, lr);
    }
    engine_weights_changed(t->engine, FALSE);
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

    if (!batch)
        return FALSE;
    train_batch_log(t, batch);
    if (!keep_rollouts(t, batch, error) || !minibatches(t, batch->groups, &spent, error))
        return FALSE;
    t->update++;
    t->episodes += batch->rolled.episodes;
    t->tokens += (gint64)batch->rolled.tokens;
    train_log_put(t->log, "time/update_s", (double)(g_get_monotonic_time() - since) / 1e6);
    train_log_put(t->log, "perf/rows", (double)spent.rows);
    train_log_put(t->log, "router/peak_load", spent.router_peak);
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
    return TRUE; /* the engine has sampled nothing yet: no cache to be told */
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
