/*
 * Measuring a policy on tasks it does not learn from.
 *
 * 1. Every evaluation of a run draws with the same seeds, whatever came before.
 * 2. Unscorable episodes are in no rate; how many there were is logged beside it.
 */
#include "env/train.h"

#include "policy/advantage.h"

#include <math.h>

#define EVAL_SEED 0x5eed0000u

/* Mean over tasks of pass@k, from the scorable episodes of each. */
static double pass_mean(const GPtrArray *groups, guint k)
{
    double sum = 0, tasks = 0;

    for (guint g = 0; g < groups->len; g++) {
        const RolloutGroup *group = groups->pdata[g];
        guint n = 0, c = 0;

        for (guint i = 0; i < group->n; i++) {
            n += !group->rollouts[i].unscorable;
            c += !group->rollouts[i].unscorable && group->rollouts[i].reward >= 1;
        }
        if (n == 0)
            continue;
        sum += pass_at_k(n, c, k);
        tasks++;
    }
    return tasks > 0 ? sum / tasks : (double)NAN;
}

static void put(Train *t, const char *set, const char *what, double value)
{
    g_autofree char *name = g_strdup_printf("eval/%s/%s", set, what);

    train_log_put(t->log, name, value);
}

static gboolean eval_set(Train *t, const TrainSet *set, GError **error)
{
    const TrainConfig *c = t->config;
    TrainTask *const *tasks = (TrainTask *const *)set->tasks->pdata;
    RolloutOptions options = {.samples = (guint)c->eval_samples,
                              .turns = (guint)c->rollout_turns,
                              .tokens_max = c->rollout_tokens,
                              .context_max = c->rollout_context,
                              .text_bytes_max = (guint)c->rollout_observation,
                              .command_s = (guint)c->rollout_command_s,
                              .temperature = c->rollout_temperature,
                              .seed = EVAL_SEED};
    RolloutOptions greedy = options;
    RolloutStats stats = {0}, greedy_stats = {0};
    g_autoptr(GPtrArray) sampled =
        rollouts_make(&t->roller, tasks, set->tasks->len, &options, &stats, error);
    g_autoptr(GPtrArray) best = NULL;

    greedy.samples = 1;
    greedy.temperature = 0;
    if (!sampled ||
        !(best = rollouts_make(&t->roller, tasks, set->tasks->len, &greedy, &greedy_stats, error)))
        return FALSE;
    put(t, set->name, "pass@1", pass_mean(sampled, 1));
    put(t, set->name, "pass@1_first_turn",
        (double)stats.passed_first / MAX(stats.episodes - stats.unscorable, 1));
    if (c->eval_samples > 1) {
        g_autofree char *name = g_strdup_printf("pass@%u", (guint)c->eval_samples);

        put(t, set->name, name, pass_mean(sampled, (guint)c->eval_samples));
    }
    put(t, set->name, "greedy", pass_mean(best, 1));
    put(t, set->name, "unscorable", stats.unscorable);
    return TRUE;
}

gboolean train_eval(Train *t, GError **error)
{
    gint64 since = g_get_monotonic_time();

    if (t->sets->len > 0 && !sampler_ready(t->sampler, t->trainer, error))
        return FALSE;
    for (guint i = 0; i < t->sets->len; i++)
        if (!eval_set(t, &g_array_index(t->sets, TrainSet, i), error))
            return FALSE;
    if (t->sets->len > 0)
        train_log_put(t->log, "time/eval_s", (double)(g_get_monotonic_time() - since) / 1e6);
    return train_log_end(t->log, "eval", t->warmup + t->update, error);
}
