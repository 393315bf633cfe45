/*
 * The table of dialects, and what their turns and demonstrations share.
 */
#include "env/train_dialect.h"

#include <string.h>

const TrainDialect *const train_dialects[] = {&dialect_compact, &dialect_tools, NULL};

const TrainDialect *train_dialect(const char *name)
{
    for (guint i = 0; train_dialects[i]; i++)
        if (!strcmp(train_dialects[i]->name, name))
            return train_dialects[i];
    return NULL;
}

void turn_next(TurnEpisode *episode)
{
    episode->desk->next(episode);
}

void turn_end(TurnEpisode *episode, EpisodeEnd end, double reward)
{
    episode->desk->end(episode, end, reward);
}

static double share_of(guint64 passed, GStrv tests)
{
    guint64 named = task_calls_named((const char *const *)tests);

    return named ? (double)__builtin_popcountll(passed & named) / __builtin_popcountll(named) : 1;
}

void turn_judged(TurnEpisode *episode, const Verdict *verdict)
{
    const Task *task = episode->task->task;

    episode->f2p = share_of(verdict->passed, task->fail_to_pass);
    episode->p2p = share_of(verdict->passed, task->pass_to_pass);
}

char *turn_text(const TurnEpisode *episode)
{
    guint n = episode->ids->len - episode->turn_from - (episode->finish == FINISH_STOP);
    g_autoptr(GString) text = g_string_new(NULL);

    if (!tokenizer_decode(episode->desk->tokenizer,
                          (const gint32 *)(gpointer)episode->ids->data + episode->turn_from, n,
                          TOKENS_PLAIN, text, NULL))
        return NULL;
    return g_string_free(g_steal_pointer(&text), FALSE);
}

void demo_mask(DemoWriter *demo, gboolean learnt)
{
    guint8 value = learnt != FALSE;

    while (demo->mask->len < demo->ids->len)
        g_array_append_val(demo->mask, value);
}

gboolean demo_say(DemoWriter *demo, const char *text, gboolean learnt, GError **error)
{
    gint32 eos = tokenizer_special(demo->tokenizer, TOKEN_EOS);

    if (!tokenizer_encode(demo->tokenizer, text, strlen(text), TOKENS_PLAIN, demo->ids, error))
        return FALSE;
    g_array_append_val(demo->ids, eos);
    demo_mask(demo, learnt);
    return TRUE;
}
