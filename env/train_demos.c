/*
 * Demonstrations: drawn, encoded, masked.
 *
 * 1. A function of the tasks, the options and the generator's state.
 * 2. A task whose fix the dialect cannot say gives code to read, never an action.
 */
#include "env/train_demos.h"

#include <string.h>

typedef struct {
    GArray *ids;  /* gint32 */
    GArray *mask; /* guint8 */
} Demo;

static void demo_mask(Demo *demo, gboolean learnt)
{
    guint8 value = learnt != FALSE;

    while (demo->mask->len < demo->ids->len)
        g_array_append_val(demo->mask, value);
}

static RolloutGroup *demo_group(const Demo *demo, guint prompt_n)
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

static gboolean add_action(Demo *demo, const Tokenizer *tokenizer, const char *action,
                           gboolean learnt, GError **error)
{
    gint32 eos = tokenizer_special(tokenizer, TOKEN_EOS);

    if (!tokenizer_encode(tokenizer, action, strlen(action), TOKENS_PLAIN, demo->ids, error))
        return FALSE;
    g_array_append_val(demo->ids, eos);
    demo_mask(demo, learnt);
    return TRUE;
}

static gboolean add_turns(Demo *demo, const TrainTask *task, const Tokenizer *tokenizer,
                          const DemoOptions *o, GRand *rand, GError **error)
{
    for (guint turn = 0; turn < o->turns; turn++) {
        gboolean last = turn + 1 == o->turns;
        gboolean right = g_rand_double(rand) < o->gold || (last && o->skip_wrong);
        g_autofree char *action = right ? g_strdup(task->fix) : dialect_random(task->source, rand);

        if (!add_action(demo, tokenizer, action, right || !o->skip_wrong, error))
            return FALSE;
        if (right || last)
            return TRUE;
        if (!dialect_answer(tokenizer, DIALECT_FAIL, TRUE, demo->ids, error))
            return FALSE;
        demo_mask(demo, FALSE);
    }
    return TRUE;
}

static RolloutGroup *demo_make(const TrainTask *task, const Tokenizer *tokenizer,
                               const DemoOptions *o, GRand *rand, GError **error)
{
    g_autoptr(GArray) ids = tokens_new(), mask = g_array_new(FALSE, FALSE, 1);
    gboolean text = g_rand_double(rand) < o->text || !task->fix || !*task->fix;
    Demo demo = {ids, mask};
    RolloutGroup *group;

    if (text) {
        if (!dialect_prompt(tokenizer, task->fixed, ids, error))
            return NULL;
        g_array_set_size(ids, ids->len - 1); /* the turn that would begin is not part of it */
        demo_mask(&demo, TRUE);
        return demo_group(&demo, 1); /* all but the first token can be learnt */
    }
    g_array_append_vals(ids, task->prompt->data, task->prompt->len);
    demo_mask(&demo, o->read > 0);
    if (!add_turns(&demo, task, tokenizer, o, rand, error))
        return NULL;
    group = demo_group(&demo, o->read > 0 ? 1 : task->prompt->len);
    if (o->read > 0)
        demo_weigh(group, task->prompt->len, o->read);
    return group;
}

GPtrArray *demos_make(const GPtrArray *tasks, const Tokenizer *tokenizer, const DemoOptions *o,
                      gint64 tokens, GRand *rand, GError **error)
{
    g_autoptr(GPtrArray) groups =
        g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);

    while (tokens > 0) {
        guint i = (guint)g_rand_int_range(rand, 0, (gint32)tasks->len);
        RolloutGroup *group = demo_make(tasks->pdata[i], tokenizer, o, rand, error);

        if (!group)
            return NULL;
        tokens -= group->prompt_n + group->rollouts[0].n;
        g_ptr_array_add(groups, group);
    }
    return g_steal_pointer(&groups);
}

void demos_corpus(const GPtrArray *tasks, GString *out)
{
    for (guint i = 0; i < tasks->len; i++) {
        const TrainTask *task = tasks->pdata[i];
        g_autofree char *source = dialect_text(task->source), *fixed = dialect_text(task->fixed);

        g_string_append_printf(out, "%s\n%s\n%s\n", source, fixed, task->fix ? task->fix : "");
    }
}
