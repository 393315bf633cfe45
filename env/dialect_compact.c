/*
 * The compact dialect in training: numbered lines, one edit a turn, tests after every edit.
 *
 * 1. An edit is made on the files as the task has them: a turn never builds on a wrong one.
 * 2. Every action is final, so an episode ends as submitted, whatever the tests say.
 *
 * Not here: the language itself (dialect.c).
 */
#include "env/train_dialect.h"
#include "env/train_kind.h"

#include <math.h>

static gboolean prompt(const Tokenizer *tokenizer, const TrainTask *task, GArray *ids,
                       GError **error)
{
    g_autofree char *asked = task->kind->has_turns ? NULL : task->kind->question(task);

    return asked ? dialect_opening(tokenizer, asked, ids, error)
                 : dialect_prompt(tokenizer, task->source, ids, error);
}

static void answer(TurnEpisode *episode, const char *words)
{
    TurnDesk *desk = episode->desk;

    if (desk->error)
        return;
    if (episode->turn + 1 == desk->turns_max)
        turn_end(episode, EPISODE_SUBMITTED, 0);
    else if (dialect_answer(desk->tokenizer, words, episode->finish == FINISH_STOP, episode->ids,
                            &desk->error))
        turn_next(episode);
}

static void on_verdict(const Verdict *verdict, gpointer user)
{
    TurnEpisode *episode = user;

    turn_judged(episode, verdict);
    if (verdict->state == VERDICT_FAILED)
        answer(episode, DIALECT_FAIL);
    else
        turn_end(episode, EPISODE_SUBMITTED, verdict->state == VERDICT_PASSED ? 1 : (double)NAN);
}

static void turn(TurnEpisode *episode)
{
    TurnDesk *desk = episode->desk;
    g_autofree char *text = episode->finish == FINISH_STOP ? turn_text(episode) : NULL;
    g_autoptr(json_t) calls = NULL, changes = NULL;

    if (!episode->task->kind->has_turns) {
        kind_turn(episode, text);
        return;
    }
    if (text)
        calls = dialect_action(episode->task->source, text, &changes);
    if (calls) {
        verdict_ask(desk->verdicts, episode->task->task, changes, on_verdict, episode,
                    &desk->error);
        return;
    }
    desk->stats->invalid++;
    answer(episode, DIALECT_BAD);
}

/* ---- demonstrations ---- */

static gboolean reading(DemoWriter *demo, const TrainTask *task, GError **error)
{
    if (!dialect_prompt(demo->tokenizer, task->fixed, demo->ids, error))
        return FALSE;
    g_array_set_size(demo->ids,
                     demo->ids->len - 1); /* the turn that would begin is not part of it */
    return TRUE;
}

static gboolean demonstrate(DemoWriter *writer, const TrainTask *task, const DemoOptions *o,
                            GRand *rand, GError **error)
{
    if (!task->kind->has_turns)
        return demo_say(writer, task->fix, TRUE, error);
    for (guint i = 0; i < o->turns; i++) {
        gboolean last = i + 1 == o->turns;
        gboolean right = g_rand_double(rand) < o->gold || (last && o->skip_wrong);
        g_autofree char *action = right ? g_strdup(task->fix) : dialect_random(task->source, rand);

        if (!demo_say(writer, action, right || !o->skip_wrong, error))
            return FALSE;
        if (right || last)
            return TRUE;
        if (!dialect_answer(writer->tokenizer, DIALECT_FAIL, TRUE, writer->ids, error))
            return FALSE;
        demo_mask(writer, FALSE);
    }
    return TRUE;
}

static gboolean corpus(const TrainTask *task, guint number, GString *out, GError **error)
{
    g_autofree char *source = NULL, *fixed = NULL;

    (void)number;
    (void)error;
    if (!task->kind->has_turns) {
        source = task->kind->question(task);
        g_string_append_printf(out, "%s\n%s\n", source, task->fix ? task->fix : "");
        return TRUE;
    }
    source = dialect_text(task->source);
    fixed = dialect_text(task->fixed);
    g_string_append_printf(out, "%s\n%s\n%s\n", source, fixed, task->fix ? task->fix : "");
    return TRUE;
}

const TrainDialect dialect_compact = {
    .name = "compact",
    .summary = "numbered lines; an action is a line as it is to read; tests after every action",
    .answer_rows = 16,
    .prompt = prompt,
    .turn = turn,
    .reading = reading,
    .demo = demonstrate,
    .corpus = corpus,
};
