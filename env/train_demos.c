/*
 * Demonstrations: drawn, encoded, masked.
 *
 * 1. A function of the tasks, the options and the generator's state.
 * 2. A task whose fix the dialect cannot say gives code to read, never an action.
 * 3. Questions are answered right: there is no random wrong answer worth reading.
 */
#include "env/train_dialect.h"

#include "base/error.h"

static RolloutGroup *demo_group(const DemoWriter *demo, guint prompt_n)
{
    const int *ids = (const int *)(gpointer)demo->ids->data;
    RolloutGroup *group = rollout_group_new(ids, (int)prompt_n, 1);

    rollout_fill(group->rollouts, ids + prompt_n, (guint8 *)demo->mask->data + prompt_n, NULL,
                 (int)(demo->ids->len - prompt_n));
    group->rollouts[0].reward = 1;
    return group;
}

/* The prompt is learnt as well: its tokens weigh `read` together, the others 1. */
static void demo_weigh(RolloutGroup *group, guint n_prompt, double read)
{
    Rollout *r = group->rollouts;
    double n = rollout_trained(r), n_read = n_prompt - 1;

    r->credit = g_new(double, r->n);
    for (int i = 0; i < r->n; i++)
        r->credit[i] = (guint)i + 1 < n_prompt ? read * n / n_read : n / (n - n_read);
}

static RolloutGroup *demo_make(const TrainDialect *dialect, const TrainTask *task,
                               const Tokenizer *tokenizer, const DemoOptions *o, GRand *rand,
                               GError **error)
{
    g_autoptr(GArray) ids = tokens_new(), mask = g_array_new(FALSE, FALSE, 1);
    gboolean has_fix = task->fix && *task->fix;
    gboolean text = g_rand_double(rand) < o->text || !has_fix;
    DemoWriter demo = {tokenizer, ids, mask};
    RolloutGroup *group;

    if (!has_fix && !task->fixed) {
        error_set(error, ASSAY_ERROR_UNSUPPORTED,
                  "task %s: its row has no solution, and nothing else can be demonstrated",
                  task->task->instance_id);
        return NULL;
    }
    if (text && task->fixed) {
        if (!dialect->reading(&demo, task, error))
            return NULL;
        demo_mask(&demo, TRUE);
        return demo_group(&demo, 1); /* all but the first token can be learnt */
    }
    g_array_append_vals(ids, task->prompt->data, task->prompt->len);
    demo_mask(&demo, o->read > 0);
    if (!dialect->demo(&demo, task, o, rand, error))
        return NULL;
    group = demo_group(&demo, o->read > 0 ? 1 : task->prompt->len);
    if (o->read > 0)
        demo_weigh(group, task->prompt->len, o->read);
    return group;
}

static gboolean fits(const RolloutGroup *group, const TrainTask *task, const DemoOptions *o,
                     GError **error)
{
    int n = group->prompt_n + group->rollouts[0].n;

    if (o->rows_max == 0 || n <= o->rows_max)
        return TRUE;
    return error_set(error, ASSAY_ERROR_LIMIT,
                     "task %s: a demonstration has %d tokens, optim.rows is %" G_GINT64_FORMAT,
                     task->task->instance_id, n, o->rows_max);
}

GPtrArray *demos_make(const TrainDialect *dialect, const GPtrArray *tasks,
                      const Tokenizer *tokenizer, const DemoOptions *o, gint64 tokens, GRand *rand,
                      GError **error)
{
    g_autoptr(GPtrArray) groups =
        g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);

    while (tokens > 0) {
        guint i = (guint)g_rand_int_range(rand, 0, (gint32)tasks->len);
        RolloutGroup *group = demo_make(dialect, tasks->pdata[i], tokenizer, o, rand, error);

        if (!group || !fits(group, tasks->pdata[i], o, error)) {
            rollout_group_free(group);
            return NULL;
        }
        tokens -= group->prompt_n + group->rollouts[0].n;
        g_ptr_array_add(groups, group);
    }
    return g_steal_pointer(&groups);
}

gboolean demos_corpus(const TrainDialect *dialect, const GPtrArray *tasks, GString *out,
                      GError **error)
{
    for (guint i = 0; i < tasks->len; i++)
        if (!dialect->corpus(tasks->pdata[i], i, out, error))
            return FALSE;
    return TRUE;
}
