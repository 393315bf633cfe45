/*
 * Locate: which lines are wrong. The reward is their overlap with the gold lines.
 *
 * 1. Lines that do not exist, more lines than LOCATED_MAX, and words beside the lines are 0: who
 *    names everything earns nothing.
 */
#include "env/train_kind.h"

#include "base/error.h"

#include <string.h>

#define LOCATED_MAX 8u

static gboolean score_is_exact(const TrainTask *task)
{
    const json_t *locate = json_object_get(task->task->json, "locate");

    return !g_strcmp0(json_string_value(json_object_get(locate, "score")), "exact");
}

static const json_t *gold_of(const TrainTask *task)
{
    return json_object_get(json_object_get(task->task->json, "locate"), "lines");
}

/* "PATH:LINE" of a line that is shown and not blank. */
static gboolean line_exists(const TrainTask *task, const char *name)
{
    for (guint i = 0; i < task->source->lines->len; i++) {
        const SourceLine *line = task->source->lines->pdata[i];
        g_autofree char *own = g_strdup_printf("%s:%u", line->path, line->number + 1);

        if (g_str_equal(own, name))
            return TRUE;
    }
    return FALSE;
}

static gboolean open_locate(TrainTask *task, GError **error)
{
    const json_t *locate = json_object_get(task->task->json, "locate"), *line;
    const char *score = json_opt_str(locate, "score", "f1", error);
    const char *solution = json_opt_str(task->task->json, "solution", "", error);
    gsize i, n = json_array_size(gold_of(task));

    if (!score || !solution || !kind_open_sources(task, error))
        return FALSE;
    if ((strcmp(score, "f1") != 0 && strcmp(score, "exact") != 0) || n == 0 || n > LOCATED_MAX)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field locate: expected 1 to %u lines, and score f1 or exact",
                         LOCATED_MAX);
    json_array_foreach(gold_of(task), i, line)
    {
        if (!json_is_string(line) || !line_exists(task, json_string_value(line)))
            return error_set(error, ASSAY_ERROR_INPUT, "field locate.lines: item %zu is no line",
                             i);
    }
    task->fix = *solution ? g_strdup(solution) : NULL;
    return TRUE;
}

static char *question(const TrainTask *task)
{
    GString *out = g_string_new(task->task->problem_statement);

    kind_show_sources(task->source, TRUE, out);
    g_string_append(out, "\nWhich lines are wrong? Answer with one a line, as in file.c:12.");
    return g_string_free(out, FALSE);
}

/* How many lines are named, and how many of them are gold; FALSE: it is no answer. */
static gboolean count(const TrainTask *task, const char *block, guint *ret_named, guint *ret_hits)
{
    g_auto(GStrv) lines = g_strsplit(block, "\n", -1);
    g_autoptr(GHashTable) named = g_hash_table_new(g_str_hash, g_str_equal);
    const json_t *gold;
    gsize i;

    for (char **line = lines; *line; line++) {
        if (!*g_strstrip(*line))
            continue;
        if (g_hash_table_size(named) >= LOCATED_MAX || !line_exists(task, *line))
            return FALSE;
        g_hash_table_add(named, *line);
    }
    *ret_named = g_hash_table_size(named);
    *ret_hits = 0;
    json_array_foreach(gold_of(task), i, gold) *ret_hits +=
        g_hash_table_contains(named, json_string_value(gold));
    return TRUE;
}

static void judge(TurnEpisode *episode, const char *answer)
{
    const TrainTask *task = episode->task;
    g_autofree char *block = answer_block(answer);
    guint named = 0, hits = 0, gold = (guint)json_array_size(gold_of(task));
    double f1 = 0;

    if (block && count(task, block, &named, &hits))
        f1 = 2.0 * hits / (named + gold);
    turn_end(episode, EPISODE_SUBMITTED, score_is_exact(task) ? f1 >= 1 : f1);
}

const TrainKind kind_locate = {
    .name = "locate",
    .answers = "one to eight lines as PATH:LINE",
    .rewarded = "F1 with the lines that are wrong, or 1 only for exactly those",
    .system = "You look for mistakes in programs. Think, then name the lines.",
    .open = open_locate,
    .question = question,
    .judge = judge,
};
