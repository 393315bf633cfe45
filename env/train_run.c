/*
 * What a run does: updates on demonstrations, then rollouts, advantages, updates, evaluations.
 *
 * 1. All that is drawn comes from the seed, the phase and the number of the update, so a run that
 *    goes on from a checkpoint draws the same.
 * 2. The first minibatch after a rollout must have the very log-probabilities that sampling
 *    recorded; anything else is an error of ours, and the run stops.
 * 3. An update that is not finite changes nothing and ends the run; its minibatch is kept.
 *
 * Not here: where rewards come from (verdict.c), files (train_setup.c), measuring (train_eval.c).
 */
#include "env/train.h"

#include "env/train_demos.h"
#include "env/train_record.h"

#include "base/error.h"
#include "policy/advantage.h"
#include "policy/init.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define FAIL_WORDS      "fail"
#define WARMUP_LOG_STEP 10

enum { PHASE_WARMUP = 1, PHASE_TASKS, PHASE_ROLLOUT, PHASE_SHUFFLE };

static guint64 seed_of(const Train *t, guint64 phase, gint64 step)
{
    const guint32 counter[4] = {(guint32)step, (guint32)(step >> 32), (guint32)phase, 0};
    const guint32 key[2] = {(guint32)t->config->run_seed, (guint32)(t->config->run_seed >> 32)};
    guint32 out[4];

    philox4x32(counter, key, out);
    return (guint64)out[1] << 32 | out[0];
}

static GRand *rand_of(const Train *t, guint64 phase, gint64 step)
{
    guint64 seed = seed_of(t, phase, step);
    const guint32 words[2] = {(guint32)seed, (guint32)(seed >> 32)};

    return g_rand_new_with_seed_array(words, 2);
}

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
    g_autoptr(GRand) rand = rand_of(t, PHASE_WARMUP, t->warmup);
    const Loss *sft = loss_find("sft");
    const DemoOptions demo = {c->warmup_gold, c->warmup_text, (guint)c->rollout_turns, FAIL_WORDS};
    const AdvantageOptions advantage = {.kind = ADVANTAGE_REWARD};
    const NormOptions norm = {.kind = NORM_SEQ_MEAN}; /* an action weighs as much as a file */
    TrainerLoss loss = {
        .loss = sft, .options = loss_options(sft, &(LossOptions){0}), .balance = c->loss_balance};
    double lr =
        rate_at(c->warmup_lr, c->warmup_lr_end, c->warmup_lr_warmup, t->warmup, c->warmup_updates);
    TrainerStep step = step_of(c, lr);
    g_autoptr(GPtrArray) groups =
        demos_make(t->tasks, t->tokenizer, &demo, c->warmup_tokens, rand, error);
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

/* ---- tasks of a batch ---- */

/* Tasks without replacement; those whose last pass rate leaves nothing to learn come last. */
static TrainTask **draw_tasks(const Train *t, guint n, gint64 step)
{
    g_autoptr(GRand) rand = rand_of(t, PHASE_TASKS, step);
    g_autofree guint *order = g_new(guint, t->tasks->len);
    TrainTask **drawn = g_new0(TrainTask *, n);
    guint got = 0;

    for (guint i = 0; i < t->tasks->len; i++)
        order[i] = i;
    for (guint i = 0; i < t->tasks->len && got < n; i++) {
        guint j = (guint)g_rand_int_range(rand, (gint32)i, (gint32)t->tasks->len);
        TrainTask *task = t->tasks->pdata[order[j]];
        gboolean flat = task->rate >= 0 && (task->rate < t->config->rollout_rate_low ||
                                            task->rate > t->config->rollout_rate_high);

        order[j] = order[i];
        if (!flat || g_rand_double(rand) < 0.1)
            drawn[got++] = task;
    }
    while (got < n) /* fewer are left than a batch wants */
        drawn[got++] = t->tasks->pdata[g_rand_int_range(rand, 0, (gint32)t->tasks->len)];
    return drawn;
}

static void keep_rates(TrainTask *const *tasks, const GPtrArray *groups)
{
    for (guint g = 0; g < groups->len; g++) {
        const RolloutGroup *group = groups->pdata[g];
        double sum = 0, n = 0;

        for (guint i = 0; i < group->n; i++) {
            n += !group->rollouts[i].unscorable;
            sum += group->rollouts[i].reward;
        }
        if (n > 0)
            tasks[g]->rate = sum / n;
    }
}

/* ---- one update ---- */

static gboolean check_mismatch(const Train *t, const LossStats *stats, GError **error)
{
    if (t->config->rollout_temperature != 1 || stats->mismatch_max == 0)
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
    train_log_put(t->log, "policy/is_ratio_max", s->loss.ratio_max);
    train_log_put(t->log, "policy/is_clipped_frac", (double)s->loss.ratio_high / n);
    train_log_put(t->log, "policy/masked_frac", (double)s->loss.masked / n);
    train_log_put(t->log, "policy/kl", s->loss.kl3 / n);
    train_log_put(t->log, "policy/kl_reference", s->loss.kl_ref / n);
}

static void add_times(TrainerStats *sum, const TrainerStats *one)
{
    sum->forward_s += one->forward_s;
    sum->head_s += one->head_s;
    sum->backward_s += one->backward_s;
    sum->step_s += one->step_s;
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
            train_log_put(t->log, "policy/logp_correlation", loss_correlation(&stats.loss));
        }
        if (!trainer_step(t->trainer, &step, &stats, error))
            return FALSE;
        add_times(sum, &stats);
        if (i + 1 == parts)
            put_loss(t, &stats, lr);
    }
    engine_weights_changed(t->engine, FALSE);
    return TRUE;
}

static void put_rollouts(Train *t, const RolloutStats *r, const AdvantageStats *a)
{
    double episodes = MAX(r->episodes, 1), turns = MAX(r->turns, 1);

    train_log_put(t->log, "reward/mean", a->reward_mean);
    train_log_put(t->log, "reward/resolved", r->passed / episodes);
    train_log_put(t->log, "reward/resolved_first_turn", r->passed_first / episodes);
    train_log_put(t->log, "signal/zero_std_groups", (double)a->skipped / MAX(a->groups, 1));
    train_log_put(t->log, "signal/solve_none", (double)a->solve_none / MAX(a->groups, 1));
    train_log_put(t->log, "signal/solve_all", (double)a->solve_all / MAX(a->groups, 1));
    train_log_put(t->log, "signal/groups_used", a->groups - a->skipped);
    train_log_put(t->log, "episode/steps_mean", r->turns / episodes);
    train_log_put(t->log, "episode/invalid_action_frac", r->invalid / turns);
    train_log_put(t->log, "length/limit_hit_frac", r->cut / turns);
    train_log_put(t->log, "length/repetition_frac", r->repeated / turns);
    train_log_put(t->log, "length/completion_mean", (double)r->tokens / episodes);
    train_log_put(t->log, "mask/infra_frac", r->unscorable / episodes);
    train_log_put(t->log, "time/rollout_s", r->sample_s);
    train_log_put(t->log, "time/grade_s", r->wait_s);
}

static gboolean is_due(gint64 step, gint64 every, gint64 last)
{
    return step % every == 0 || step == last;
}

/* The batches that stand beside a checkpoint are kept. */
static gboolean keep_rollouts(const Train *t, TrainTask *const *tasks, const GPtrArray *groups,
                              GError **error)
{
    g_autofree char *dir = g_build_filename(t->dir, "rollouts", NULL);
    g_autofree char *name = g_strdup_printf("%06" G_GINT64_FORMAT ".jsonl", t->update + 1);
    g_autofree char *path = g_build_filename(dir, name, NULL);

    if (!is_due(t->update + 1, t->config->run_checkpoint_every, t->config->run_updates))
        return TRUE;
    if (g_mkdir_with_parents(dir, 0755) != 0)
        return error_set_errno(error, errno, "%s", dir);
    return record_write(path, tasks, groups, error);
}

/* A batch of rollouts, and what was rolled out to get it. */
typedef struct {
    GPtrArray *tasks;  /* TrainTask, of each group */
    GPtrArray *groups; /* RolloutGroup */
    RolloutStats rolled;
    AdvantageStats seen;
} Gathered;

static void gathered_clear(Gathered *g)
{
    g_clear_pointer(&g->tasks, g_ptr_array_unref);
    g_clear_pointer(&g->groups, g_ptr_array_unref);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Gathered, gathered_clear)

/* One round of tasks and their groups. */
static gboolean gather_round(Train *t, Gathered *g, gint64 round, GError **error)
{
    const TrainConfig *c = t->config;
    gint64 step = t->update * (c->rollout_refill + 1) + round;
    RolloutOptions options = {.samples = (guint)c->rollout_samples,
                              .turns = (guint)c->rollout_turns,
                              .tokens_max = c->rollout_tokens,
                              .repetition = c->rollout_repetition,
                              .mask_cut = !strcmp(c->rollout_cut, "mask"),
                              .overlong_from = c->rollout_overlong_from,
                              .overlong_penalty = c->rollout_overlong_penalty,
                              .temperature = c->rollout_temperature,
                              .seed = seed_of(t, PHASE_ROLLOUT, step)};
    guint n = (guint)c->rollout_groups;
    g_autofree TrainTask **tasks = draw_tasks(t, n, step);
    g_autoptr(GPtrArray) groups = rollouts_make(&t->roller, tasks, n, &options, &g->rolled, error);

    if (!groups)
        return FALSE;
    keep_rates(tasks, groups);
    for (guint i = 0; i < n; i++)
        g_ptr_array_add(g->tasks, tasks[i]);
    g_ptr_array_extend_and_steal(g->groups, g_steal_pointer(&groups));
    return TRUE;
}

/* Keeps the first `most` groups that have a spread. */
static void keep_used(Gathered *g, guint most)
{
    guint used = 0;

    for (guint i = 0; i < g->groups->len;) {
        const RolloutGroup *group = g->groups->pdata[i];

        if (!group->skipped && used < most) {
            used++;
            i++;
            continue;
        }
        g_ptr_array_remove_index(g->groups, i);
        g_ptr_array_remove_index(g->tasks, i);
    }
}

/* With rollout.refill: rounds until as many groups have a spread as a batch wants, and those alone
 * (dynamic sampling, arXiv 2503.14476, 3.2). */
static gboolean gather(Train *t, Gathered *g, GError **error)
{
    const TrainConfig *c = t->config;
    const AdvantageOptions advantage = train_config_advantage(c);
    AdvantageStats kept;
    guint most = (guint)c->rollout_groups;

    g->tasks = g_ptr_array_new();
    g->groups = g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);
    for (gint64 round = 0; round <= c->rollout_refill; round++) {
        if (!gather_round(t, g, round, error))
            return FALSE;
        advantages((RolloutGroup **)g->groups->pdata, g->groups->len, &advantage, &g->seen);
        if (g->seen.groups - g->seen.skipped >= most)
            break;
    }
    if (c->rollout_refill > 0) {
        keep_used(g, most);
        advantages((RolloutGroup **)g->groups->pdata, g->groups->len, &advantage, &kept);
    }
    return TRUE;
}

/* What the boxes did since `before`. */
static void put_verdicts(Train *t, const VerdictStats *before, double seconds, guint episodes)
{
    VerdictStats now = verdict_stats(t->roller.verdicts);
    double asked = (double)(now.asked - before->asked), run = (double)(now.run - before->run);

    train_log_put(t->log, "verdict/run", run);
    train_log_put(t->log, "verdict/cached_frac",
                  (double)(now.cached - before->cached + now.joined - before->joined) /
                      MAX(asked, 1));
    train_log_put(t->log, "verdict/ms", (double)(now.box_us - before->box_us) / 1e3 / MAX(run, 1));
    train_log_put(t->log, "perf/episodes_per_s", episodes / seconds);
}

static gboolean update(Train *t, GError **error)
{
    g_auto(Gathered) g = {0};
    VerdictStats before = verdict_stats(t->roller.verdicts);
    gint64 since = g_get_monotonic_time();
    TrainerStats spent = {0};

    if (!gather(t, &g, error))
        return FALSE;
    put_rollouts(t, &g.rolled, &g.seen);
    put_verdicts(t, &before, (double)(g_get_monotonic_time() - since) / 1e6, g.rolled.episodes);
    since = g_get_monotonic_time();
    if (!keep_rollouts(t, (TrainTask *const *)g.tasks->pdata, g.groups, error) ||
        !minibatches(t, g.groups, &spent, error))
        return FALSE;
    t->update++;
    t->episodes += g.rolled.episodes;
    t->tokens += (gint64)g.rolled.tokens;
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
    if (t->update == 0 && !g_atomic_int_get(&t->stop) && !train_eval(t, error))
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
