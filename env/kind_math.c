/*
 * Mathematics: a question whose answer is one number, compared exactly.
 *
 * Not here: reading numbers and answers (tasks/text_math.c).
 */
#include "env/train_kind.h"

#include "base/error.h"
#include "tasks/text_math.h"

static gboolean open_math(TrainTask *task, GError **error)
{
    const char *text = json_want_str(task->task->json, "answer", error);
    Rational answer;

    if (!text)
        return FALSE;
    if (!rational_read(text, &answer))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field answer: \"%s\"; expected a whole number or a fraction", text);
    task->fix = g_strdup_printf("\\boxed{%s}", text);
    return TRUE;
}

static char *question(const TrainTask *task)
{
    return g_strdup_printf("%s\n\nGive a whole number or a fraction, once, in \\boxed{}.",
                           task->task->problem_statement);
}

static void judge(TurnEpisode *episode, const char *answer)
{
    const char *want = json_string_value(json_object_get(episode->task->task->json, "answer"));

    turn_end(episode, EPISODE_SUBMITTED, math_answer_is(answer, want) ? 1 : 0);
}

const TrainKind kind_math = {
    .name = "math",
    .answers = "a whole number or a fraction, in \\boxed{} or as the last line",
    .rewarded = "1: that number exactly",
    .system = "You solve problems. Think step by step, then give the answer.",
    .open = open_math,
    .question = question,
    .judge = judge,
};
