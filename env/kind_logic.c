/*
 * Logic: puzzles with rules; whatever keeps all of them is right.
 *
 * Not here: the puzzles and their rules (tasks/text_logic.c).
 */
#include "env/train_kind.h"

#include "base/error.h"
#include "tasks/text_logic.h"

static gboolean open_logic(TrainTask *task, GError **error)
{
    const json_t *puzzle = json_object_get(task->task->json, "puzzle");
    const char *solution = json_opt_str(task->task->json, "solution", "", error);

    if (!solution || !logic_puzzle_ok(puzzle, error))
        return FALSE;
    if (*solution && !logic_solves(puzzle, solution))
        return error_set(error, ASSAY_ERROR_INPUT, "field solution: it does not solve the puzzle");
    task->fix = *solution ? g_strdup(solution) : NULL;
    return TRUE;
}

static char *question(const TrainTask *task)
{
    return g_strdup(task->task->problem_statement);
}

static void judge(TurnEpisode *episode, const char *answer)
{
    const json_t *puzzle = json_object_get(episode->task->task->json, "puzzle");
    g_autofree char *block = answer_block(answer);

    turn_end(episode, EPISODE_SUBMITTED, block && logic_solves(puzzle, block) ? 1 : 0);
}

const TrainKind kind_logic = {
    .name = "logic",
    .answers = "lines in the puzzle's form, alone or between ``` fences",
    .rewarded = "1: every rule is kept",
    .system = "You solve puzzles. Think step by step, then give the answer.",
    .open = open_logic,
    .question = question,
    .judge = judge,
};
