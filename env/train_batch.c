/*
 * A batch: tasks drawn, episodes sampled, groups kept, advantages; as JSON, for checkpoints of runs
 * that sample ahead.
 *
 * 1. A batch is a function of its number, the weights it is sampled with and the pass rates so far.
 * 2. What is read back is the batch that was written, but for how long it took.
 *
 * Not here: episodes (train_rollout.c), what is learnt from them (train_run.c).
 */
#include "env/train.h"

#include "env/train_kind.h"
#include "env/train_record.h"

#include "base/error.h"
#include "policy/init.h"

#include <math.h>
#include <string.h>

/* ---- what is drawn ---- */

guint64 train_seed(const Train *t, TrainSeed phase, gint64 step)
{
    const guint32 counter[4] = {(guint32)step, (guint32)(step >> 32), (guint32)phase, 0};
    const guint32 key[2] = {(guint32)t->config->run_seed, (guint32)(t->config->run_seed >> 32)};
    guint32 out[4];

    philox4x32(counter, key, out);
    return (guint64)out[1] << 32 | out[0];
}

GRand *train_rand(const Train *t, TrainSeed phase, gint64 step)
{
    guint64 seed = train_seed(t, phase, step);
    const guint32 words[2] = {(guint32)seed, (guint32)(seed >> 32)};

    return g_rand_new_with_seed_array(words, 2);
}

/* Tasks without replacement; those whose last pass rate leaves nothing to learn come last. */
static TrainTask **draw_tasks(const Train *t, guint n, gint64 step)
{
    g_autoptr(GRand) rand = train_rand(t, TRAIN_SEED_TASKS, step);
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

RolloutOptions train_rollout_options(const Train *t)
{
    const TrainConfig *c = t->config;
    const ModelConfig *model = &t->model->config;

    return (RolloutOptions){
        .samples = (guint)c->rollout_samples,
        .turns = (guint)train_config_turns(c),
        .tokens_max = window_tokens(c, t->window.at),
        .context_max = c->rollout_context,
        .text_bytes_max = (guint)c->rollout_observation,
        .command_s = (guint)c->rollout_command_s,
        .repetition = c->rollout_repetition,
        .mask_cut = !strcmp(c->rollout_cut, "mask"),
        .overlong_from = c->rollout_overlong_from,
        .overlong_penalty = c->rollout_overlong_penalty,
        .temperature = c->rollout_temperature,
        .routes = c->optim_routing_replay ? model->layers * model->experts_per_token : 0};
}

/* One round of tasks and their groups. */
static gboolean sample_round(Train *t, TrainBatch *g, gint64 number, gint64 round, GError **error)
{
    const TrainConfig *c = t->config;
    gint64 step = number * (c->rollout_refill + 1) + round;
    RolloutOptions options = train_rollout_options(t);
    guint n = (guint)c->rollout_groups;
    g_autofree TrainTask **tasks = draw_tasks(t, n, step);
    g_autoptr(GPtrArray) groups = NULL;

    options.seed = train_seed(t, TRAIN_SEED_ROLLOUT, step);
    if (!(groups = rollouts_make(&t->roller, tasks, n, &options, &g->rolled, error)))
        return FALSE;
    keep_rates(tasks, groups);
    for (guint i = 0; i < n; i++)
        g_ptr_array_add(g->tasks, tasks[i]);
    g_ptr_array_extend_and_steal(g->groups, g_steal_pointer(&groups));
    return TRUE;
}

/* Keeps the first `most` groups that have a spread. */
static void keep_used(TrainBatch *g, guint most)
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
static gboolean sample_rounds(Train *t, TrainBatch *g, gint64 number, GError **error)
{
    const TrainConfig *c = t->config;
    const AdvantageOptions advantage = train_config_advantage(c);
    AdvantageStats kept;
    guint most = (guint)c->rollout_groups;

    g->tasks = g_ptr_array_new();
    g->groups = g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);
    for (gint64 round = 0; round <= c->rollout_refill; round++) {
        if (!sample_round(t, g, number, round, error))
            return FALSE;
        advantages((RolloutGroup **)g->groups->pdata, g->groups->len, &advantage, &g->seen);
        if (g->seen.groups - g->seen.skipped >= most)
            break;
    }
    g->window = window_measure(t->window.at, g->groups);
    if (c->rollout_refill > 0) {
        keep_used(g, most);
        advantages((RolloutGroup **)g->groups->pdata, g->groups->len, &advantage, &kept);
    }
    return TRUE;
}

static VerdictStats verdicts_since(const VerdictStats *before, const VerdictStats *now)
{
    return (VerdictStats){.asked = now->asked - before->asked,
                          .cached = now->cached - before->cached,
                          .joined = now->joined - before->joined,
                          .run = now->run - before->run,
                          .box_us = now->box_us - before->box_us};
}

TrainBatch *train_batch_sample(Train *t, gint64 number, GError **error)
{
    VerdictStats before = verdict_stats(t->roller.verdicts), now;
    gint64 since = g_get_monotonic_time();
    g_autoptr(TrainBatch) batch = g_new0(TrainBatch, 1);

    batch->version = t->model->version;
    if (!sampler_ready(t->sampler, t->trainer, error))
        return NULL;
    batch->sync_s = (double)(g_get_monotonic_time() - since) / 1e6;
    if (!sample_rounds(t, batch, number, error) || !train_canaries_sample(t, batch, number, error))
        return NULL;
    now = verdict_stats(t->roller.verdicts);
    batch->verdicts = verdicts_since(&before, &now);
    batch->seconds = (double)(g_get_monotonic_time() - since) / 1e6;
    return g_steal_pointer(&batch);
}

void train_batch_free(TrainBatch *batch)
{
    if (!batch)
        return;
    g_clear_pointer(&batch->tasks, g_ptr_array_unref);
    g_clear_pointer(&batch->groups, g_ptr_array_unref);
    g_free(batch);
}

/* ---- what is said of it ---- */

static void put_rollouts(Train *t, const RolloutStats *r, const AdvantageStats *a)
{
    double episodes = MAX(r->episodes, 1), turns = MAX(r->turns, 1);

    train_log_put(t->log, "reward/mean", a->reward_mean);
    train_log_put(t->log, "reward/std", a->reward_std);
    train_log_put(t->log, "reward/max", a->reward_max);
    train_log_put(t->log, "reward/resolved", r->passed / episodes);
    train_log_put(t->log, "reward/resolved_first_turn", r->passed_first / episodes);
    for (guint i = 0; train_kinds[i]; i++) {
        g_autofree char *name = g_strconcat("reward/", train_kinds[i]->name, NULL);

        if (r->kind_n[i] == 0)
            continue;
        train_log_put(t->log, name, r->kind_reward[i] / r->kind_n[i]);
        if (train_kinds[i]->has_turns) {
            train_log_put(t->log, "reward/f2p", r->f2p / r->kind_n[i]);
            train_log_put(t->log, "reward/p2p", r->p2p / r->kind_n[i]);
        }
    }
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
    train_log_put(t->log, "episode/retried", r->retried);
    train_log_put(t->log, "episode/calls_mean", r->calls / episodes);
    train_log_put(t->log, "episode/tool_error_frac", (double)r->calls_failed / MAX(r->calls, 1));
    for (guint end = EPISODE_SUBMITTED; end < EPISODE_ENDS; end++) {
        g_autofree char *name =
            g_strconcat("ending/", episode_end_rule((EpisodeEnd)end)->name, NULL);

        train_log_put(t->log, name, r->ends[end] / episodes);
    }
    train_log_put(t->log, "mask/server_frac", r->lost / episodes);
    train_log_put(t->log, "time/rollout_s", r->sample_s);
    train_log_put(t->log, "time/grade_s", r->wait_s);
}

/* What the boxes did for it. */
static void put_verdicts(Train *t, const TrainBatch *b)
{
    const VerdictStats *v = &b->verdicts;
    double asked = (double)v->asked, run = (double)v->run;

    train_log_put(t->log, "verdict/run", run);
    train_log_put(t->log, "verdict/cached_frac", (double)(v->cached + v->joined) / MAX(asked, 1));
    train_log_put(t->log, "verdict/ms", (double)v->box_us / 1e3 / MAX(run, 1));
    train_log_put(t->log, "perf/episodes_per_s", b->rolled.episodes / b->seconds);
    train_log_put(t->log, "perf/episodes_per_h", b->rolled.episodes * 3600.0 / b->seconds);
    train_log_put(t->log, "perf/tokens_per_s", (double)b->rolled.tokens / b->seconds);
}

static int by_number(gconstpointer a, gconstpointer b)
{
    int x = *(const int *)a, y = *(const int *)b;

    return (x > y) - (x < y);
}

static void put_p95(Train *t, const char *name, GArray *lengths)
{
    g_array_sort(lengths, by_number);
    if (lengths->len > 0)
        train_log_put(t->log, name, g_array_index(lengths, int, (lengths->len - 1) * 95 / 100));
}

/* Of the groups that are learnt from. */
static void put_lengths(Train *t, const TrainBatch *batch)
{
    g_autoptr(GArray) prompts = g_array_new(FALSE, FALSE, sizeof(int));
    g_autoptr(GArray) sampled = g_array_new(FALSE, FALSE, sizeof(int));
    double sum = 0;

    for (guint g = 0; g < batch->groups->len; g++) {
        const RolloutGroup *group = batch->groups->pdata[g];

        sum += group->prompt_n;
        g_array_append_val(prompts, group->prompt_n);
        for (guint i = 0; i < group->n; i++) {
            int n = rollout_trained(&group->rollouts[i]);

            g_array_append_val(sampled, n);
        }
    }
    train_log_put(t->log, "length/prompt_mean", sum / MAX(batch->groups->len, 1));
    put_p95(t, "length/prompt_p95", prompts);
    put_p95(t, "length/completion_p95", sampled);
}

void train_batch_log(Train *t, const TrainBatch *batch)
{
    if (batch->rolled.lost > 0)
        train_log_say(t->log, "rollout.server: %u episodes lost, the last time: %s",
                      batch->rolled.lost, sampler_stats(t->sampler).why);
    put_rollouts(t, &batch->rolled, &batch->seen);
    put_verdicts(t, batch);
    put_lengths(t, batch);
    train_canaries_log(t, &batch->canaries);
    train_log_put(t->log, "window/tokens", (double)window_tokens(t->config, batch->window.window));
    train_log_put(t->log, "window/perplexity", exp(batch->window.nll));
    train_log_put(t->log, "window/length_p99", batch->window.p99);
    train_log_put(t->log, "time/sync_s", batch->sync_s);
    train_log_put(t->log, "policy/stale_versions", (double)(t->model->version - batch->version));
}

/* ---- as JSON ---- */

/* The counters of RolloutStats, by name. */
#define COUNTER(name)                                                                              \
    {                                                                                              \
#name, G_STRUCT_OFFSET(RolloutStats, name)                                                 \
    }
static const struct {
    const char *name;
    gsize offset;
} counters[] = {
    COUNTER(episodes), COUNTER(turns),        COUNTER(invalid),    COUNTER(cut),
    COUNTER(passed),   COUNTER(passed_first), COUNTER(unscorable), COUNTER(repeated),
    COUNTER(retried),  COUNTER(calls),        COUNTER(lost),       COUNTER(calls_failed),
};

static json_t *numbers_json(const guint *numbers, guint n)
{
    json_t *list = json_array();

    for (guint i = 0; i < n; i++)
        json_array_append_new(list, json_integer(numbers[i]));
    return list;
}

static void numbers_read(const json_t *list, guint *numbers, guint n)
{
    for (guint i = 0; i < n; i++)
        numbers[i] = (guint)json_integer_value(json_array_get(list, i));
}

static json_t *stats_json(const RolloutStats *stats)
{
    json_t *rewards = json_array();
    json_t *json = json_pack("{s:I, s:o, s:o, s:o, s:f, s:f}", "tokens", (json_int_t)stats->tokens,
                             "ends", numbers_json(stats->ends, EPISODE_ENDS), "kind_n",
                             numbers_json(stats->kind_n, TURN_KINDS_MAX), "kind_reward", rewards,
                             "f2p", stats->f2p, "p2p", stats->p2p);

    for (guint i = 0; i < TURN_KINDS_MAX; i++)
        json_array_append_new(rewards, json_real(stats->kind_reward[i]));

    for (guint i = 0; i < G_N_ELEMENTS(counters); i++) {
        const char *at = (const char *)stats + counters[i].offset;

        json_object_set_new(json, counters[i].name,
                            json_integer(*(const guint *)(gconstpointer)at));
    }
    return json;
}

static void stats_read(const json_t *json, RolloutStats *stats)
{
    const json_t *rewards = json_object_get(json, "kind_reward");

    stats->tokens = (guint64)json_integer_value(json_object_get(json, "tokens"));
    stats->f2p = json_number_value(json_object_get(json, "f2p"));
    stats->p2p = json_number_value(json_object_get(json, "p2p"));
    numbers_read(json_object_get(json, "ends"), stats->ends, EPISODE_ENDS);
    numbers_read(json_object_get(json, "kind_n"), stats->kind_n, TURN_KINDS_MAX);
    for (guint i = 0; i < TURN_KINDS_MAX; i++)
        stats->kind_reward[i] = json_number_value(json_array_get(rewards, i));
    for (guint i = 0; i < G_N_ELEMENTS(counters); i++)
        *(guint *)G_STRUCT_MEMBER_P(stats, counters[i].offset) =
            (guint)json_integer_value(json_object_get(json, counters[i].name));
}

json_t *train_batch_json(const TrainBatch *batch)
{
    return json_pack("{s:I, s:o, s:o, s:o, s:o}", "version", (json_int_t)batch->version, "window",
                     window_seen_json(&batch->window), "rolled", stats_json(&batch->rolled),
                     "canaries", stats_json(&batch->canaries), "groups",
                     record_json((TrainTask *const *)batch->tasks->pdata, batch->groups));
}

static TrainTask *task_named(const Train *t, const char *name)
{
    for (guint i = 0; i < t->tasks->len; i++)
        if (!strcmp(((TrainTask *)t->tasks->pdata[i])->task->instance_id, name))
            return t->tasks->pdata[i];
    return NULL;
}

TrainBatch *train_batch_read(Train *t, const json_t *json, GError **error)
{
    g_autoptr(TrainBatch) batch = g_new0(TrainBatch, 1);
    const AdvantageOptions advantage = train_config_advantage(t->config);
    g_auto(GStrv) names = NULL;

    batch->version = (guint64)json_integer_value(json_object_get(json, "version"));
    stats_read(json_object_get(json, "rolled"), &batch->rolled);
    stats_read(json_object_get(json, "canaries"), &batch->canaries);
    batch->seconds = 1;
    if (!window_seen_read(json_object_get(json, "window"), &batch->window, error))
        return NULL;
    batch->tasks = g_ptr_array_new();
    batch->groups = record_groups(json_object_get(json, "groups"), &names, error);
    if (!batch->groups)
        return NULL;
    for (guint i = 0; names[i]; i++) {
        TrainTask *task = task_named(t, names[i]);

        if (!task) {
            error_set(error, ASSAY_ERROR_CONFLICT, "there is no task %s any more", names[i]);
            return NULL;
        }
        g_ptr_array_add(batch->tasks, task);
    }
    advantages((RolloutGroup **)batch->groups->pdata, batch->groups->len, &advantage, &batch->seen);
    return g_steal_pointer(&batch);
}
