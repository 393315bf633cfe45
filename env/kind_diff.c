/*
 * Diff: the repair is written down as a unified diff, without tools.
 *
 * Not here: what a diff may say (diff_apply.c).
 */
#include "env/diff_apply.h"
#include "env/train_kind.h"

#include <math.h>

static gboolean open_diff(TrainTask *task, GError **error)
{
    const char *solution = json_opt_str(task->task->json, "solution", "", error);

    if (!solution || !kind_open_sources(task, error))
        return FALSE;
    task->fix = *solution ? g_strdup(solution) : NULL;
    return TRUE;
}

static char *question(const TrainTask *task)
{
    GString *out = g_string_new(task->task->problem_statement);

    kind_show_sources(task->source, FALSE, out);
    g_string_append(out, "\nAnswer with a unified diff between ``` fences.");
    return g_string_free(out, FALSE);
}

static void on_verdict(const Verdict *verdict, gpointer user)
{
    turn_end(user, EPISODE_SUBMITTED,
             verdict->state == VERDICT_UNSCORABLE ? (double)NAN : verdict->state == VERDICT_PASSED);
}

static void judge(TurnEpisode *episode, const char *answer)
{
    TurnDesk *desk = episode->desk;
    const Task *task = episode->task->task;
    g_autofree char *block = answer_block(answer);
    g_autoptr(json_t) changes = block ? diff_apply(task->files, block, NULL) : NULL;

    if (changes) {
        verdict_ask(desk->verdicts, task, changes, on_verdict, episode, &desk->error);
        return;
    }
    desk->stats->invalid++;
    turn_end(episode, EPISODE_SUBMITTED, 0);
}

const TrainKind kind_diff = {
    .name = "diff",
    .answers = "a unified diff, alone or between ``` fences",
    .rewarded = "1: it applies, and all tests pass",
    .system = "You repair programs. Think about the mistake, then give the diff that corrects it.",
    .open = open_diff,
    .question = question,
    .judge = judge,
};
