/*
 * The tools dialect against a policy that follows a script: what its turns become, how episodes
 * end, what hostile turns cost.
 */
#include "env/train_dialect.h"
#include "env/train_kind.h"
#include "policy/chat.h"
#include "policy/token_train.h"
#include "tasks/repair.h"
#include "tests/sandbox/lab.h"

#include "base/error.h"

#include <math.h>
#include <signal.h>
#include <string.h>

#define SLOT_VERDICTS 200
#define SLOT_STEPS    210

/* ---- the laboratory ---- */

static Tokenizer *tokenizer;
static VerdictRunner *verdicts;
static Steps *steps;

/* What came of a script. */
typedef struct Played {
    TurnEpisode episode;
    RolloutStats stats;
    TurnDesk desk;
    gboolean waits; /* for the next turn */
    gboolean is_over;
    TrainTask task;
} Played;

static void on_next(TurnEpisode *episode)
{
    ((Played *)(gpointer)episode)->waits = TRUE;
    episode->turn++;
}

static void on_end(TurnEpisode *episode, EpisodeEnd end, double reward)
{
    ((Played *)(gpointer)episode)->is_over = TRUE;
    episode->end = end;
    episode->reward = reward;
}

static TrainTask *repair_task(const char *family)
{
    g_autoptr(GError) error = NULL;
    const char *const families[] = {family, NULL};
    g_autoptr(RepairSource) source =
        repair_source_new(&(RepairOptions){.seed = 4, .families = families}, &error);
    g_autoptr(json_t) row = repair_source_next(source, &error);
    TrainTask *task = train_task_new(row, &error);

    g_assert_no_error(error);
    task->prompt = tokens_new();
    g_assert_true(dialect_tools.prompt(tokenizer, task, task->prompt, &error));
    return task;
}

static Played *played_new(const TrainTask *task, guint turns, gint64 context_max)
{
    Played *played = g_new0(Played, 1);

    played->desk = (TurnDesk){.next = on_next,
                              .end = on_end,
                              .dialect = &dialect_tools,
                              .tokenizer = tokenizer,
                              .verdicts = verdicts,
                              .steps = steps,
                              .turns_max = turns,
                              .tokens_max = 100,
                              .text_bytes_max = 300,
                              .command_s = 5,
                              .context_max = context_max,
                              .stats = &played->stats};
    played->episode = (TurnEpisode){.desk = &played->desk,
                                    .task = task,
                                    .seed = 1,
                                    .ids = tokens_new(),
                                    .mask = g_array_new(FALSE, FALSE, 1),
                                    .mu = g_array_new(FALSE, FALSE, sizeof(float))};
    return played;
}

static void played_free(Played *played)
{
    dialect_tools.close(&played->episode);
    g_array_unref(played->episode.ids);
    g_array_unref(played->episode.mask);
    g_array_unref(played->episode.mu);
    g_clear_error(&played->desk.error);
    g_free(played);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Played, played_free)

/* As if it had been sampled. */
static void write_turn(Played *played, const char *text, FinishReason finish)
{
    TurnEpisode *episode = &played->episode;
    gint32 eos = tokenizer_special(tokenizer, TOKEN_EOS);

    episode->turn_from = episode->ids->len;
    episode->finish = finish;
    g_assert_true(
        tokenizer_encode(tokenizer, text, strlen(text), TOKENS_PLAIN, episode->ids, NULL));
    if (finish == FINISH_STOP)
        g_array_append_val(episode->ids, eos);
    played->waits = FALSE;
}

/* One turn of the policy, and all that follows from it. */
static void say(Played *played, const char *text, FinishReason finish)
{
    TurnEpisode *episode = &played->episode;
    StepJob *job;

    write_turn(played, text, finish);
    dialect_tools.turn(episode);
    while (!played->waits && !played->is_over && !played->desk.error) {
        if ((job = steps_next(steps, -1)))
            dialect_tools.step_done(job);
        verdict_turn(verdicts, -1);
    }
    g_assert_no_error(played->desk.error);
}

/* What the policy has read and said since its first turn. */
static char *text_of(const Played *played)
{
    g_autoptr(GString) text = g_string_new(NULL);

    g_assert_true(tokenizer_decode(tokenizer, (const gint32 *)(gpointer)played->episode.ids->data,
                                   played->episode.ids->len, TOKENS_SPECIALS, text, NULL));
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static void expect_part(const Played *played, const char *part)
{
    g_autofree char *text = text_of(played);

    if (!strstr(text, part))
        g_test_message("%s", text);
    g_assert_nonnull(strstr(text, part));
}

static char *call_text(const char *name, json_t *given)
{
    g_autoptr(json_t) arguments = given;
    g_autofree char *spelled = json_dumps(arguments, 0);

    return g_strdup_printf("<tool_calls>\n{\"name\": \"%s\", \"arguments\": %s}\n</tool_calls>",
                           name, spelled);
}

static char *bash_text(const char *command)
{
    return call_text("bash", json_pack("{s:s}", "command", command));
}

/* The calls that undo the bug. */
static char *fix_text(const TrainTask *task)
{
    g_autoptr(json_t) calls = dialect_action(task->source, task->fix, NULL);
    GString *out = g_string_new("<tool_calls>\n");
    const json_t *call;
    size_t i;

    json_array_foreach(calls, i, call)
    {
        g_autofree char *arguments = json_dumps(call, 0);

        g_string_append_printf(out, "{\"name\": \"edit\", \"arguments\": %s}\n", arguments);
    }
    g_string_append(out, "</tool_calls>");
    return g_string_free(out, FALSE);
}

#define SUBMIT "<tool_calls>\n{\"name\": \"submit\", \"arguments\": {}}\n</tool_calls>"

/* ---- what is rewarded ---- */

static void a_fix_is_rewarded_and_ids_only_grow(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autoptr(Played) played = played_new(task, 5, 100000);
    g_autofree char *fix = fix_text(task);
    g_autoptr(json_t) tools = episode_tools();
    g_autoptr(GArray) whole = tokens_new();
    ChatStyle style = *chat_style("official");
    const char *seen;

    say(played, fix, FINISH_STOP);
    g_assert_true(played->waits);
    expect_part(played, "tool name: edit\ntool result: ");
    {
        /* what was appended is what the template makes of the whole conversation */
        g_autofree char *text = text_of(played);
        g_autofree char *result = g_strdup(strstr(text, "tool result: ") + 13);
        g_autoptr(json_t) messages = NULL;

        *strstr(result, "\n\n" TOKEN_EOS) = '\0';
        seen = result;
        messages = json_pack("[{s:s, s:s}, {s:s, s:s}, {s:s, s:s}, {s:s, s:s, s:s}]", "role",
                             "system", "content", kind_repair.system, "role", "user", "content",
                             task->task->problem_statement, "role", "assistant", "content", fix,
                             "role", "tool", "name", "edit", "content", seen);
        g_assert_true(chat_encode(&style, tokenizer, messages, tools, CHAT_GENERATE, whole, NULL));
        g_assert_cmpuint(whole->len, ==, task->prompt->len + played->episode.ids->len);
        g_assert_true(memcmp(whole->data + task->prompt->len * sizeof(gint32),
                             played->episode.ids->data,
                             played->episode.ids->len * sizeof(gint32)) == 0);
    }
    say(played, SUBMIT, FINISH_STOP);
    g_assert_cmpint(played->episode.end, ==, EPISODE_SUBMITTED);
    g_assert_cmpfloat(played->episode.reward, ==, 1);
    g_assert_cmpuint(played->stats.calls, >=, 2);
}

static void nothing_done_and_wrong_is_not(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autoptr(Played) played = played_new(task, 5, 100000);

    say(played, SUBMIT, FINISH_STOP);
    g_assert_cmpint(played->episode.end, ==, EPISODE_SUBMITTED);
    g_assert_cmpfloat(played->episode.reward, ==, 0);
}

static void several_calls_of_a_turn_are_made_in_order(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autoptr(Played) played = played_new(task, 1, 100000);
    g_autofree char *fix = fix_text(task);
    g_autofree char *both = NULL;

    *strstr(fix, "</tool_calls>") = '\0';
    both = g_strconcat("<think>\nfix, then submit\n</think>\n", fix,
                       "{\"name\": \"finish\"}\n</tool_calls>", NULL);
    say(played, both, FINISH_STOP);
    g_assert_cmpint(played->episode.end, ==, EPISODE_SUBMITTED);
    g_assert_cmpfloat(played->episode.reward, ==, 1);
}

/* ---- in boxes ---- */

static void commands_run_in_a_box_and_count(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autoptr(Played) played = played_new(task, 5, 100000);
    g_autoptr(json_t) fixed = repair_fix(task->task->json);
    const char *path = json_object_iter_key(json_object_iter(fixed));
    g_autofree char *quoted = g_shell_quote(json_string_value(json_object_get(fixed, path)));
    g_autofree char *command = g_strdup_printf("printf %%s %s > %s; echo done", quoted, path);
    g_autofree char *text = bash_text(command);

    say(played, text, FINISH_STOP);
    expect_part(played, "tool result: done\n");
    say(played, SUBMIT, FINISH_STOP);
    g_assert_cmpint(played->episode.end, ==, EPISODE_SUBMITTED);
    g_assert_cmpfloat(played->episode.reward, ==, 1);
}

static void more_episodes_than_boxes_wait_for_each_other(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autofree char *text = bash_text("echo here");
    Played *played[6];
    guint over = 0;
    StepJob *job;

    for (guint i = 0; i < 6; i++) {
        played[i] = played_new(task, 1, 100000); /* the first turn is the last one */
        write_turn(played[i], text, FINISH_STOP);
        dialect_tools.turn(&played[i]->episode);
    }
    while ((job = steps_next(steps, -1)))
        dialect_tools.step_done(job);
    while (verdict_turn(verdicts, -1))
        continue;
    for (guint i = 0; i < 6; i++) {
        over += played[i]->is_over && played[i]->episode.end == EPISODE_TURN_LIMIT &&
                played[i]->episode.reward == 0 && played[i]->stats.calls == 1;
        played_free(played[i]);
    }
    g_assert_cmpuint(over, ==, 6);
}

static void others_go_on_while_a_command_runs(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autoptr(Played) slow = played_new(task, 1, 100000), quick = played_new(task, 5, 100000);
    g_autofree char *text = bash_text("sleep 0.3"), *fix = fix_text(task);
    StepJob *job;

    write_turn(slow, text, FINISH_STOP);
    dialect_tools.turn(&slow->episode);
    g_assert_null(steps_next(steps, 0));
    write_turn(quick, fix, FINISH_STOP);
    dialect_tools.turn(&quick->episode);
    g_assert_true(quick->waits);
    g_assert_false(slow->is_over);
    g_assert_cmpuint(steps_under_way(steps), ==, 1);
    g_assert_nonnull(job = steps_next(steps, -1));
    dialect_tools.step_done(job);
    while (verdict_turn(verdicts, -1))
        continue;
    g_assert_true(slow->is_over);
}

static void a_command_gets_no_more_time_than_there_is(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autoptr(Played) played = played_new(task, 2, 100000);
    g_autofree char *text =
        call_text("bash", json_pack("{s:s, s:i}", "command", "sleep 100", "timeout", 600));

    played->desk.command_s = 1;
    say(played, text, FINISH_STOP);
    expect_part(played, "[ended after 1 s]");
}

static void a_dead_box_gives_no_reward(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autoptr(Played) played = played_new(task, 5, 100000);
    g_autofree char *first = bash_text("echo here"), *second = bash_text("echo again");
    g_autoptr(GArray) pids = NULL;

    say(played, first, FINISH_STOP);
    g_assert_true(played->waits);
    pids = g_array_new(FALSE, FALSE, sizeof(int));
    for (guint slot = SLOT_STEPS; slot < SLOT_STEPS + 2; slot++) {
        g_autoptr(GArray) of_slot = lab_box_pids(slot);

        g_array_append_vals(pids, of_slot->data, of_slot->len);
    }
    for (guint i = 0; i < pids->len; i++)
        kill(g_array_index(pids, int, i), SIGKILL);
    say(played, second, FINISH_STOP);
    g_assert_true(played->is_over);
    g_assert_cmpint(episode_end_rule(played->episode.end)->reward, ==, EPISODE_REWARD_NONE);
}

/* ---- what a policy may write ---- */

static void what_is_no_call_is_said_and_ends_it_at_last(void)
{
    static const char *const rows[] = {
        "",
        "I think it works.",
        "<tool_calls>\nedit(x)\n</tool_calls>",
        "<tool_calls>\n{\"name\": \"edit\", \"arguments\": \"x\"}\n</tool_calls>",
        "<think>\n<tool_calls>\n{\"name\": \"submit\"}\n</tool_calls>",
        "\xff\xfe\x80",
        "<tool_calls>\n{\"name\": \"\", \"arguments\": {}}\n</tool_calls>"};
    g_autoptr(TrainTask) task = repair_task("clamp");

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(Played) played = played_new(task, 9, 100000);

        for (guint n = 0; n < 3; n++) {
            g_assert_false(played->is_over);
            say(played, rows[i], FINISH_STOP);
        }
        g_assert_cmpint(played->episode.end, ==, EPISODE_UNPARSABLE);
        g_assert_cmpfloat(played->episode.reward, ==, 0);
        g_assert_cmpuint(played->stats.invalid, ==, 3);
        expect_part(played, "user name=user\nThere was no tool call.");
    }
}

static void unknown_tools_are_named_but_never_in_a_turn_mark(void)
{
    static const char *const names[] = {"rm", "a\\nb\\u0001", TOKEN_EOS, "\\u0000"};
    g_autoptr(TrainTask) task = repair_task("clamp");

    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(Played) played = played_new(task, 9, 100000);
        g_autofree char *text = g_strdup_printf(
            "<tool_calls>\n{\"name\": \"%s\", \"arguments\": {}}\n</tool_calls>", names[i]);
        guint marks = 0;
        gint32 bos = tokenizer_special(tokenizer, TOKEN_BOS);

        say(played, text, FINISH_STOP);
        g_assert_true(played->waits);
        for (guint k = 0; k < played->episode.ids->len; k++)
            marks += g_array_index(played->episode.ids, gint32, k) == bos;
        g_assert_cmpuint(marks, ==, 2);
    }
}

static void endless_calls_are_cut_at_eight(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autoptr(Played) played = played_new(task, 4, 100000);
    g_autoptr(GString) text = g_string_new("<tool_calls>\n");

    for (guint i = 0; i < 200; i++)
        g_string_append(text, "{\"name\": \"search\", \"arguments\": {\"pattern\": \"int\"}}\n");
    for (guint i = 0; i < 4; i++) {
        g_assert_false(played->is_over);
        say(played, text->str, FINISH_STOP);
        g_assert_cmpuint(played->stats.calls, ==, 8 * (i + 1));
    }
    expect_part(played, "more than 8 calls");
    g_assert_cmpint(played->episode.end, ==, EPISODE_TURN_LIMIT);
    g_assert_cmpfloat(played->episode.reward, ==, 0);
}

static void long_observations_are_cut_between_characters(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autoptr(Played) played = played_new(task, 4, 100000);
    g_autofree char *text = bash_text("for i in 1 2 3; do head -c 350000 /dev/zero | tr '\\0' x | "
                                      "sed 's/x/\\xe2\\x82\\xac/g'; done");
    g_autofree char *all = NULL;

    say(played, text, FINISH_STOP);
    g_assert_true(played->waits);
    all = text_of(played);
    g_assert_true(g_utf8_validate(all, -1, NULL));
    g_assert_null(strstr(all, "\xef\xbf\xbd"));
    g_assert_nonnull(strstr(all, "bytes are left out"));
    g_assert_cmpuint(strlen(all), <, 1000);
}

static void a_full_context_ends_it_on_the_tree_as_it_stands(void)
{
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autofree char *fix = fix_text(task);
    g_autoptr(Played) played = played_new(task, 9, task->prompt->len + strlen(fix) + 150);

    say(played, fix, FINISH_STOP);
    g_assert_cmpint(played->episode.end, ==, EPISODE_TOKEN_LIMIT);
    g_assert_cmpfloat(played->episode.reward, ==, 1);
    g_assert_cmpuint(played->episode.ids->len, ==, strlen(fix) + 1); /* nothing is left half said */
}

static void limits_of_a_turn_are_endings(void)
{
    static const struct {
        FinishReason finish;
        EpisodeEnd end;
        double reward;
    } rows[] = {{FINISH_LENGTH, EPISODE_TOKEN_LIMIT, 1},
                {FINISH_REPETITION, EPISODE_REPETITION, 0}};
    g_autoptr(TrainTask) task = repair_task("clamp");
    g_autofree char *fix = fix_text(task);

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(Played) played = played_new(task, 9, 100000);

        say(played, fix, FINISH_STOP);
        say(played, SUBMIT, rows[i].finish); /* not a whole turn: its calls are not made */
        g_assert_cmpint(played->episode.end, ==, rows[i].end);
        g_assert_cmpfloat(played->episode.reward, ==, rows[i].reward);
    }
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(TokenTrainer) trainer = NULL;
    int status;

    if (!lab_init(&argc, &argv))
        return 0;
    trainer = token_trainer_new();
    tokenizer = token_trainer_finish(trainer, 260, &error);
    verdicts = verdict_runner_new(
        &(VerdictOptions){.slot_first = SLOT_VERDICTS, .allow_degraded = TRUE}, &error);
    g_assert_no_error(error);
    steps =
        steps_new(&(StepsOptions){.slot_first = SLOT_STEPS, .n_boxes = 2, .allow_degraded = TRUE});
#define ADD(test) g_test_add_func("/train_tools/" #test, test)
    ADD(a_fix_is_rewarded_and_ids_only_grow);
    ADD(nothing_done_and_wrong_is_not);
    ADD(several_calls_of_a_turn_are_made_in_order);
    ADD(commands_run_in_a_box_and_count);
    ADD(more_episodes_than_boxes_wait_for_each_other);
    ADD(others_go_on_while_a_command_runs);
    ADD(a_command_gets_no_more_time_than_there_is);
    ADD(a_dead_box_gives_no_reward);
    ADD(what_is_no_call_is_said_and_ends_it_at_last);
    ADD(unknown_tools_are_named_but_never_in_a_turn_mark);
    ADD(endless_calls_are_cut_at_eight);
    ADD(long_observations_are_cut_between_characters);
    ADD(a_full_context_ends_it_on_the_tree_as_it_stands);
    ADD(limits_of_a_turn_are_endings);
    status = g_test_run();
    steps_free(steps);
    verdict_runner_free(verdicts);
    tokenizer_free(tokenizer);
    return lab_end(status);
}
