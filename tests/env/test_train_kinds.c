/*
 * Kinds of tasks: right answers, wrong ones, and those that try to be taken for right.
 */
#include "env/diff_apply.h"
#include "env/train_kind.h"
#include "tasks/repair.h"
#include "tasks/repair_kind.h"
#include "tests/sandbox/lab.h"

#include <math.h>
#include <string.h>

#define SLOT 220

static VerdictRunner *verdicts;

/* ---- judging ---- */

typedef struct Judged {
    TurnEpisode episode;
    guint n; /* last words */
} Judged;

static void on_next(TurnEpisode *episode)
{
    (void)episode;
    g_assert_not_reached();
}

static void on_end(TurnEpisode *episode, EpisodeEnd end, double reward)
{
    ((Judged *)(gpointer)episode)->n++;
    episode->end = end;
    episode->reward = reward;
}

static double reward_of(const TrainTask *task, const char *answer)
{
    RolloutStats stats = {0};
    TurnDesk desk = {.next = on_next, .end = on_end, .verdicts = verdicts, .stats = &stats};
    Judged judged = {.episode = {.desk = &desk, .task = task, .finish = FINISH_STOP}};

    kind_turn(&judged.episode, answer);
    while (verdict_turn(verdicts, -1))
        continue;
    g_assert_no_error(desk.error);
    g_assert_cmpuint(judged.n, ==, 1);
    g_assert_cmpint(judged.episode.end, ==, EPISODE_SUBMITTED);
    return judged.episode.reward;
}

static TrainTask *task_of(const char *kind, const char *family, guint64 seed)
{
    g_autoptr(GError) error = NULL;
    const char *const families[] = {family, NULL};
    const RepairOptions options = {.seed = seed, .families = families, .kind = kind};
    g_autoptr(RepairSource) source = repair_source_new(&options, &error);
    g_autoptr(json_t) row = repair_source_next(source, &error);
    TrainTask *task = train_task_new(row, &error);

    g_assert_no_error(error);
    g_assert_cmpstr(task->kind->name, ==, kind);
    return task;
}

static TrainTask *task_from(const char *text, GError **error)
{
    g_autoptr(json_t) row = json_parse(text, strlen(text), NULL);
    g_autoptr(json_t) common =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:[], s:[], s:{}}", "instance_id", "t", "repo", "o/n",
                  "base_commit", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "test_patch", "",
                  "eval_script", "x", "FAIL_TO_PASS", "PASS_TO_PASS", "files");

    g_assert_nonnull(row);
    json_object_update(row, common);
    return train_task_new(row, error);
}

/* ---- what holds of every kind ---- */

static void made_tasks_are_solved_by_their_solutions(void)
{
    static const char *const kinds[] = {"diff", "locate", "test"};
    static const char *const families[] = {"clamp", "py_unique", "array_sum"};

    for (guint k = 0; k < G_N_ELEMENTS(kinds); k++)
        for (guint f = 0; f < G_N_ELEMENTS(families); f++) {
            g_autoptr(TrainTask) task = task_of(kinds[k], families[f], 11);
            g_autofree char *asked = task->kind->question(task);

            g_test_message("%s %s", kinds[k], task->fix);
            g_assert_cmpfloat(reward_of(task, task->fix), ==, 1);
            g_assert_cmpfloat(reward_of(task, asked), ==, 0); /* what was asked, said again */
            g_assert_cmpfloat(reward_of(task, ""), ==, 0);
            g_assert_cmpfloat(reward_of(task, "\xff"), ==, 0);
            g_assert_null(strstr(asked, task->fix));
        }
}

static void limits_end_answers_without_a_judge(void)
{
    g_autoptr(TrainTask) task = task_of("locate", "clamp", 11);
    RolloutStats stats = {0};
    TurnDesk desk = {.next = on_next, .end = on_end, .stats = &stats};
    Judged judged = {.episode = {.desk = &desk, .task = task, .finish = FINISH_LENGTH}};

    kind_turn(&judged.episode, task->fix);
    g_assert_cmpint(judged.episode.end, ==, EPISODE_TOKEN_LIMIT);
    g_assert_cmpfloat(judged.episode.reward, ==, 0);
    judged.episode.finish = FINISH_REPETITION;
    kind_turn(&judged.episode, task->fix);
    g_assert_cmpint(judged.episode.end, ==, EPISODE_REPETITION);
    g_assert_cmpfloat(judged.episode.reward, ==, 0);
}

static void one_pair_of_fences_counts(void)
{
    static const struct {
        const char *answer, *block;
    } rows[] = {
        {"a\nb", "a\nb"},
        {"so\n```\na\n```\nthat is it", "a\n"},
        {"```diff\na\n\nb\n```", "a\n\nb\n"},
        {"```\na\n```\n```\nb\n```", NULL},
        {"```\na", NULL},
        {"```\na\n```\n```", NULL},
        {"", ""},
    };

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *block = answer_block(rows[i].answer);

        g_assert_cmpstr(block, ==, rows[i].block);
    }
}

static void broken_rows_are_refused(void)
{
    static const char *const rows[] = {
        "{\"kind\": \"poetry\"}",
        "{\"kind\": 5}",
        "{\"kind\": \"math\"}",
        "{\"kind\": \"math\", \"answer\": \"about 3\"}",
        "{\"kind\": \"logic\"}",
        "{\"kind\": \"logic\", \"puzzle\": {\"form\": \"sudoku\", \"grid\": \"1...............\"}, "
        "\"solution\": \"1 2 3 4\"}",
        "{\"kind\": \"diff\"}",
        "{\"kind\": \"locate\", \"locate\": {\"lines\": []}}",
        "{\"kind\": \"test\"}",
    };

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_null(task_from(rows[i], &error));
        g_test_message("%s", error->message);
        g_assert_nonnull(strstr(error->message, "task t: "));
    }
}

static void words_round_a_number_change_nothing(void)
{
    g_autoptr(TrainTask) task = task_from("{\"kind\": \"math\", \"answer\": \"3/4\"}", NULL);

    g_assert_cmpfloat(reward_of(task, "It is \\boxed{6/8}."), ==, 1);
    g_assert_cmpfloat(reward_of(task, "\\boxed{3/4} or \\boxed{4/3}"), ==, 0);
    g_assert_cmpfloat(reward_of(task, task->task->problem_statement), ==, 0);
}

/* ---- locate ---- */

static void naming_everything_earns_nothing(void)
{
    g_autoptr(TrainTask) task = task_of("locate", "clamp", 11);
    g_autoptr(GString) all = g_string_new(NULL), twice = g_string_new(task->fix);
    g_autofree char *with_words = g_strdup_printf("It is %s", task->fix);
    g_autofree char *more = NULL;
    const SourceLine *first = task->source->lines->pdata[0];

    for (guint i = 1; i <= 9; i++)
        g_string_append_printf(all, "%s:%u\n", first->path, i);
    g_assert_cmpfloat(reward_of(task, all->str), ==, 0);
    g_string_append_printf(twice, "\n%s\n", task->fix);
    g_assert_cmpfloat(reward_of(task, twice->str), ==, 1); /* a set */
    g_assert_cmpfloat(reward_of(task, with_words), ==, 0);
    more = g_strdup_printf("%s\n%s:%u", task->fix, first->path, 1);
    g_assert_cmpfloat(reward_of(task, more), >, 0.5);
    g_assert_cmpfloat(reward_of(task, more), <, 1);
    g_assert_cmpfloat(reward_of(task, "../../etc/passwd:1"), ==, 0);
    g_assert_cmpfloat(reward_of(task, "clamp.c:99999999999999999999"), ==, 0);
}

/* ---- test ---- */

static void tests_that_test_nothing_are_worth_nothing(void)
{
    static const char *const rows[] = {
        "$(5, 1, 9) => 5\n$(1, 2) => 3", /* not as the function is called */
        "$(5, 1, 9) => PASS",
        "$(5, 1, 9)",
        "$() => 5",
        "exit(0) => 0",
        "$(exit(0), 1, 9) => 5",
        "$(5, 1, 9)); exit(0 => 5",
        "$(5, 1, 9)); } printf(\"5\\n\"); { I(0 => 5",
        "$(A(1), 1) => 1", /* an address, another one in every run */
        "$(\"x\", 1, 9) => 1",
        "$(999999, 1, 9) => 9",
        "$(5, 1, 9) => 5 => 5",
        "PASS call_1",
        "",
        "$(1+1, 1, 9) => 2",
        "$($(5, 1, 9), 1, 9) => 5",
    };
    g_autoptr(TrainTask) task = task_of("test", "clamp", 11);
    const char *call =
        json_string_value(json_object_get(json_object_get(task->task->json, "harness"), "call"));

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_auto(GStrv) parts = g_strsplit(rows[i], "$", -1);
        g_autofree char *answer = g_strjoinv(call, parts);

        g_test_message("%s", answer);
        g_assert_cmpfloat(reward_of(task, answer), ==, 0);
    }
}

static void python_tests_are_literals_as_well(void)
{
    static const char *const rows[] = {
        "$([1, 1]) => [1, 1]", /* wrong for the right code */
        "$([]) => []",         /* right for both, or wrong for both */
        "$(__import__(\"os\")._exit(0)) => 0",
        "$([1, 2, 1] * 3) => [1, 2]",
        "$([x for x in [1]]) => [1]",
        "$(open(\"unique.py\").read()) => 1",
        "$(\"\\n\") => 1",
        "$(1, 2, 3, 4) => raised TypeError", /* the same for both */
        "$([[[[[[1]]]]]]) => 1",
        "$(lambda: 1) => 1",
    };
    g_autoptr(TrainTask) task = task_of("test", "py_unique", 11);
    const char *call =
        json_string_value(json_object_get(json_object_get(task->task->json, "harness"), "call"));

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_auto(GStrv) parts = g_strsplit(rows[i], "$", -1);
        g_autofree char *answer = g_strjoinv(call, parts);

        g_test_message("%s", answer);
        g_assert_cmpfloat(reward_of(task, answer), ==, 0);
    }
}

/* ---- diff ---- */

static const char text_a[] = "one\ntwo\nthree\nfour\nfive\nsix\n";

static json_t *files_new(void)
{
    return json_pack("{s:s, s:s}", "a.c", text_a, "d/b.c", "x\ny");
}

static void diffs_apply_whole_or_not_at_all(void)
{
    static const struct {
        const char *diff, *path, *after; /* after NULL: it is gone; path NULL: it does not apply */
    } rows[] = {
        {"--- a/a.c\n+++ b/a.c\n@@ -2,1 +2,1 @@\n-two\n+2\n", "a.c",
         "one\n2\nthree\nfour\nfive\nsix\n"},
        {"Here it is:\n\ndiff --git a/a.c b/a.c\nindex 1..2 100644\n--- a/a.c\n+++ b/a.c\n"
         "@@ -1,2 +1,3 @@ int\n one\n+1.5\n two\n",
         "a.c", "one\n1.5\ntwo\nthree\nfour\nfive\nsix\n"},
        {"--- a/a.c\n+++ b/a.c\n@@ -90 +2 @@\n-two\n+2\n", "a.c",
         "one\n2\nthree\nfour\nfive\nsix\n"}, /* the place is found */
        {"--- a/a.c\t2020\n+++ b/a.c\t2020\n@@ -1 +1 @@\n-one\n+1\n@@ -6 +6 @@\n-six\n+6\n", "a.c",
         "1\ntwo\nthree\nfour\nfive\n6\n"},
        {"--- a/a.c\n+++ b/a.c\n@@ -2,0 +3,1 @@\n+2.5\n", "a.c",
         "one\ntwo\n2.5\nthree\nfour\nfive\nsix\n"},
        {"--- a/d/b.c\n+++ b/d/b.c\n@@ -2 +2 @@\n-y\n\\ No newline at end of file\n+z\n", "d/b.c",
         "x\nz\n"},
        {"--- /dev/null\n+++ b/new.c\n@@ -0,0 +1,2 @@\n+p\n+q\n", "new.c", "p\nq\n"},
        {"--- a/d/b.c\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-x\n-y\n\\ No newline at end of file\n",
         "d/b.c", NULL},
        /* what does not */
        {"--- a/d/b.c\n+++ b/d/b.c\n@@ -2,0 +3 @@\n+z\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-one\n+1\n\\ No newline\n", NULL, NULL},
        {"", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -2,1 +2,1 @@\n-TWO\n+2\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -2,2 +2,1 @@\n-two\n+2\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -2,1 +2,1 @@\n-two\n+2\n+3\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -2,1 +2,1 @@\n-two\n+2\nand so on\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -6 +6 @@\n-six\n+6\n@@ -1 +1 @@\n-one\n+1\n", NULL, NULL},
        {"--- a/../a.c\n+++ b/../a.c\n@@ -1 +1 @@\n-one\n+1\n", NULL, NULL},
        {"--- /etc/passwd\n+++ /etc/passwd\n@@ -1 +1 @@\n-one\n+1\n", NULL, NULL},
        {"--- /dev/null\n+++ b/../../x\n@@ -0,0 +1 @@\n+p\n", NULL, NULL},
        {"--- /dev/null\n+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+p\n", NULL, NULL},
        {"--- /dev/null\n+++ b/a.c\n@@ -0,0 +1 @@\n+p\n", NULL, NULL},
        {"--- a/none.c\n+++ b/none.c\n@@ -1 +1 @@\n-one\n+1\n", NULL, NULL},
        {"--- a/a.c\n+++ b/c.c\n@@ -1 +1 @@\n-one\n+1\n", NULL, NULL},
        {"--- /dev/null\n+++ /dev/null\n@@ -0,0 +1 @@\n+p\n", NULL, NULL},
        {"--- a/a.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-one\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-one\n+1\n--- a/a.c\n+++ b/a.c\n@@ -2 +2 "
         "@@\n-two\n+2\n",
         NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -99999999999999999999 +1 @@\n-one\n+1\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -1,4294967297 +1 @@\n-one\n+1\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -0,0 +0,0 @@\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n\\ No newline\n", NULL, NULL},
        {"--- a/a.c\n+++ b/a.c\n@@ -1 +1 @@\n-one\n+1\nrename from a\nrename to b\n", NULL, NULL},
        {"--- a/a.c", NULL, NULL},
    };
    g_autoptr(json_t) files = files_new();

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *why = NULL;
        g_autoptr(json_t) changes = diff_apply(files, rows[i].diff, &why);

        g_test_message("%s", why ? why : rows[i].diff);
        if (!rows[i].path) {
            g_assert_null(changes);
            g_assert_nonnull(why);
            continue;
        }
        g_assert_nonnull(changes);
        g_assert_cmpuint(json_object_size(changes), ==, 1);
        g_assert_nonnull(json_object_get(changes, rows[i].path));
        g_assert_cmpstr(json_string_value(json_object_get(changes, rows[i].path)), ==,
                        rows[i].after);
    }
}

/* Every cut of a good diff, and every byte of it changed, is read to an end. */
static void damaged_diffs_are_read_to_an_end(void)
{
    static const char good[] =
        "--- a/a.c\n+++ b/a.c\n@@ -1,2 +1,3 @@\n one\n+1.5\n two\n@@ -5,2 +6,1 @@\n five\n-six\n"
        "--- a/d/b.c\n+++ b/d/b.c\n@@ -2 +2 @@\n-y\n\\ No newline\n+z\n";
    static const char bytes[] = "\n @+-\\9,\xc3";
    g_autoptr(json_t) files = files_new();
    guint applied = 0;

    for (gsize i = 0; i < sizeof good - 1; i++) {
        g_autofree char *cut = g_strndup(good, i);
        g_autoptr(json_t) changes = diff_apply(files, cut, NULL);

        applied += changes != NULL;
        for (gsize b = 0; b < sizeof bytes - 1; b++) {
            g_autofree char *bad = g_strdup(good);
            g_autoptr(json_t) other = NULL;

            bad[i] = bytes[b];
            other = diff_apply(files, bad, NULL);
            applied += other != NULL;
        }
    }
    g_assert_cmpuint(applied, >, 0);
}

static void a_diff_of_the_tests_changes_no_verdict(void)
{
    g_autoptr(TrainTask) task = task_of("diff", "clamp", 11);

    g_assert_cmpfloat(
        reward_of(task, "--- /dev/null\n+++ b/assay_driver.c\n@@ -0,0 +1 @@\n+int main(){}\n"), ==,
        0);
    g_assert_cmpfloat(reward_of(task, "--- /dev/null\n+++ b/x/y\n@@ -0,0 +1 @@\n+PASS\n"), ==, 0);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    int status;

    if (!lab_init(&argc, &argv))
        return 0;
    verdicts =
        verdict_runner_new(&(VerdictOptions){.slot_first = SLOT, .allow_degraded = TRUE}, &error);
    g_assert_no_error(error);
#define ADD(test) g_test_add_func("/train_kinds/" #test, test)
    ADD(made_tasks_are_solved_by_their_solutions);
    ADD(limits_end_answers_without_a_judge);
    ADD(one_pair_of_fences_counts);
    ADD(broken_rows_are_refused);
    ADD(words_round_a_number_change_nothing);
    ADD(naming_everything_earns_nothing);
    ADD(tests_that_test_nothing_are_worth_nothing);
    ADD(python_tests_are_literals_as_well);
    ADD(diffs_apply_whole_or_not_at_all);
    ADD(damaged_diffs_are_read_to_an_end);
    ADD(a_diff_of_the_tests_changes_no_verdict);
    status = g_test_run();
    verdict_runner_free(verdicts);
    return lab_end(status);
}
