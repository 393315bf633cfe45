/*
 * Canaries: tasks that cannot be solved. Whoever is rewarded for one has found a way round the
 * tests, and would be taught to go on.
 *
 * 1. Nothing is learnt from them, and no draw of the run depends on whether there are any.
 * 2. A reward is said on standard error however quiet the run is, and the batch that earned it is
 *    kept.
 */
#include "env/train.h"

#include "env/train_record.h"

#include "base/error.h"

#include <errno.h>

static gboolean keep(const Train *t, TrainTask *const *tasks, const GPtrArray *groups,
                     gint64 number, GError **error)
{
    g_autofree char *dir = g_build_filename(t->dir, "canaries", NULL);
    g_autofree char *name = g_strdup_printf("%06" G_GINT64_FORMAT ".jsonl", number + 1);
    g_autofree char *path = g_build_filename(dir, name, NULL);

    g_printerr("ALARM: a task that cannot be solved got a reward, see %s: tests can be got round\n",
               path);
    if (g_mkdir_with_parents(dir, 0755) != 0)
        return error_set_errno(error, errno, "%s", dir);
    return record_write(path, tasks, groups, t->tokenizer, error);
}

gboolean train_canaries_sample(Train *t, TrainBatch *batch, gint64 number, GError **error)
{
    RolloutOptions options = train_rollout_options(t);
    guint n = (guint)t->config->tasks_canary_groups;
    g_autoptr(GRand) rand = train_rand(t, TRAIN_SEED_CANARIES, number);
    g_autofree TrainTask **tasks = g_new0(TrainTask *, n);
    g_autoptr(GPtrArray) groups = NULL;

    if (!t->canaries)
        return TRUE;
    for (guint i = 0; i < n; i++)
        tasks[i] = t->canaries->pdata[g_rand_int_range(rand, 0, (gint32)t->canaries->len)];
    options.seed = train_seed(t, TRAIN_SEED_CANARIES, number);
    groups = rollouts_make(&t->roller, tasks, n, &options, &batch->canaries, error);
    return groups && (batch->canaries.passed == 0 || keep(t, tasks, groups, number, error));
}

void train_canaries_log(Train *t, const RolloutStats *stats)
{
    if (t->canaries)
        train_log_put(t->log, "canary/reward",
                      (double)stats->passed / MAX(stats->episodes - stats->unscorable, 1));
}
