/*
 * Repair: files with a mistake are changed, turn by turn, until their tests pass.
 *
 * Not here: turns (dialect_compact.c, dialect_tools.c).
 */
#include "env/train_kind.h"

static gboolean open_repair(TrainTask *task, GError **error)
{
    if (!kind_open_sources(task, error))
        return FALSE;
    task->fix = dialect_fix(task->source, task->fixed);
    return TRUE;
}

static char *question(const TrainTask *task)
{
    GString *out = g_string_new(task->task->problem_statement);

    if (task->shows)
        kind_show_sources(task->source, FALSE, out);
    return g_string_free(out, FALSE);
}

const TrainKind kind_repair = {
    .name = "repair",
    .answers = "edits, by tools or in the compact form",
    .rewarded = "1: all tests pass",
    .has_turns = TRUE,
    .system =
        "You repair programs. Look at the files, correct the mistake with the tools, then submit.",
    .open = open_repair,
    .question = question,
};
