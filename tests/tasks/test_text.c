/*
 * Text tasks: numbers and puzzles, right answers and those that only look it.
 */
#include "tasks/task.h"
#include "tasks/text_logic.h"
#include "tasks/text_math.h"

#include <string.h>

static void numbers_are_read_exactly(void)
{
    static const struct {
        const char *text;
        gint64 top, bottom; /* bottom 0: it is none */
    } rows[] = {
        {"3", 3, 1},
        {" -3 ", -3, 1},
        {"+7", 7, 1},
        {"6/8", 3, 4},
        {"-6 / 8", -3, 4},
        {"6/-8", -3, 4},
        {"0/5", 0, 1},
        {"0.75", 3, 4},
        {"-0.5", -1, 2},
        {"\\frac{3}{4}", 3, 4},
        {"-\\dfrac{6}{-8}", 3, 4},
        {"999999999999999999", 999999999999999999, 1},
        {"1/999999999999999999", 1, 999999999999999999},
        {"0.000000000000000001", 0, 0},
        {"9999999999999999999", 0, 0},
        {"1/0", 0, 0},
        {"", 0, 0},
        {"-", 0, 0},
        {"1/", 0, 0},
        {"/2", 0, 0},
        {"1 2", 0, 0},
        {"1e3", 0, 0},
        {"0x10", 0, 0},
        {"1.", 0, 0},
        {".5", 0, 0},
        {"3/4/5", 0, 0},
        {"1+1", 0, 0},
        {"\\frac{3}{4", 0, 0},
        {"\\frac34", 0, 0},
        {"inf", 0, 0},
        {"nan", 0, 0},
        {"3 or 4", 0, 0},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        Rational is = {0, 0};
        gboolean good = rational_read(rows[i].text, &is);

        g_test_message("%s", rows[i].text);
        g_assert_cmpint(good, ==, rows[i].bottom != 0);
        if (good) {
            g_assert_cmpint(is.top, ==, rows[i].top);
            g_assert_cmpint(is.bottom, ==, rows[i].bottom);
        }
    }
}

static void one_answer_counts_and_no_second_one(void)
{
    static const struct {
        const char *answer;
        gboolean right; /* for 3/4 */
    } rows[] = {
        {"\\boxed{3/4}", TRUE},
        {"So it is \\boxed{\\frac{6}{8}}, as I said.", TRUE},
        {"\\boxed{0.75} and again \\boxed{3/4}", TRUE},
        {"\\boxed{1/2}\n3/4", FALSE},
        {"\\boxed{3/4} \\boxed{1/2}", FALSE},
        {"\\boxed{1/2} \\boxed{3/4}", FALSE},
        {"\\boxed{3/4", FALSE},
        {"\\boxed{}", FALSE},
        {"\\boxed{3/4 or 1/2}", FALSE},
        {"\\boxed{\\boxed{3/4}}", FALSE},
        {"I think\n3/4", TRUE},
        {"x = 3/4\n\n", TRUE},
        {"1/2 = 3/4", TRUE}, /* what follows the last sign counts */
        {"3/4\nno, 1/2", FALSE},
        {"0 1 2 3 3/4", FALSE},
        {"What is 3/4?", FALSE},
        {"", FALSE},
        {"3/4 = ", FALSE},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_test_message("%s", rows[i].answer);
        g_assert_cmpint(math_answer_is(rows[i].answer, "3/4"), ==, rows[i].right);
    }
}

static json_t *json_of(const char *text)
{
    g_autoptr(GError) error = NULL;
    json_t *value = json_parse(text, strlen(text), &error);
    g_assert_no_error(error);
    return value;
}

static void any_solution_solves_and_nothing_else(void)
{
    static const char knights[] =
        "{\"form\":\"knights\",\"names\":[\"Ann\",\"Bob\"],\"says\":["
        "{\"by\":0,\"claim\":\"differ\",\"a\":0,\"b\":1,\"n\":0}]}"; /* Bob is a knave */
    static const char order[] = "{\"form\":\"order\",\"names\":[\"Ann\",\"Bob\",\"Cid\"],\"rules\":"
                                "[{\"rule\":\"before\",\"a\":0,\"b\":2}]}";
    static const char sudoku[] = "{\"form\":\"sudoku\",\"grid\":\"1...............\"}";
    static const struct {
        const char *puzzle, *answer;
        gboolean solves;
    } rows[] = {
        {knights, "Ann: knight\nBob: knave", TRUE},
        {knights, "\n Bob : Knave \n\nAnn: knave\n", TRUE},
        {knights, "Ann: knight\nBob: knight", FALSE},
        {knights, "Bob: knave", FALSE},
        {knights, "Bob: knave\nBob: knave", FALSE},
        {knights, "Ann: knight\nBob: knave\nBob: knight", FALSE},
        {knights, "Ann: knight knave\nBob: knave", FALSE},
        {knights, "Ann: knight\nBob: knave\nI am sure.", FALSE},
        {knights, "Zoe: knight\nBob: knave", FALSE},
        {knights, "", FALSE},
        {order, "Ann, Bob, Cid", TRUE},
        {order, "Ann Cid Bob\n", TRUE},
        {order, "Cid, Bob, Ann", FALSE},
        {order, "Ann, Cid", FALSE},
        {order, "Ann, Cid, Ann", FALSE},
        {order, "Ann, Bob, Cid\nCid, Bob, Ann", FALSE},
        {order, "Ann, Bob, Cid, Dora", FALSE},
        {order, ",,,", FALSE},
        {sudoku, "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1", TRUE},
        {sudoku, "1243\n4312\n2134\n3421", TRUE},
        {sudoku, "2 1 3 4\n3 4 1 2\n1 2 4 3\n4 3 2 1", FALSE},
        {sudoku, "1 2 3 4\n1 2 3 4\n1 2 3 4\n1 2 3 4", FALSE},
        {sudoku, "1 2 3 4\n3 4 1 2\n2 1 4 3", FALSE},
        {sudoku, "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1\n1 2 3 4", FALSE},
        {sudoku, "1 2 3 4 1\n3 4 1 2\n2 1 4 3\n4 3 2", FALSE},
        {sudoku, "1 2 3 5\n3 4 1 2\n2 1 4 3\n4 3 2 1", FALSE},
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(json_t) puzzle = json_of(rows[i].puzzle);
        g_autoptr(GError) error = NULL;

        g_assert_true(logic_puzzle_ok(puzzle, &error));
        g_test_message("%s", rows[i].answer);
        g_assert_cmpint(logic_solves(puzzle, rows[i].answer), ==, rows[i].solves);
    }
}

static void broken_puzzles_are_refused(void)
{
    static const char *const rows[] = {
        "{}",
        "{\"form\":\"chess\"}",
        "{\"form\":\"sudoku\"}",
        "{\"form\":\"sudoku\",\"grid\":\"5...............\"}",
        "{\"form\":\"sudoku\",\"grid\":\"1..............\"}",
        "{\"form\":\"order\",\"names\":[\"Ann\"],\"rules\":[]}",
        "{\"form\":\"order\",\"names\":[\"Ann\",\"Ann\"],\"rules\":[]}",
        "{\"form\":\"order\",\"names\":[\"Ann\",\"B, C\"],\"rules\":[]}",
        "{\"form\":\"order\",\"names\":[\"Ann\",5],\"rules\":[]}",
        "{\"form\":\"order\",\"names\":[\"Ann\",\"Bob\"],\"rules\":[{\"rule\":\"x\"}]}",
        "{\"form\":\"order\",\"names\":[\"Ann\",\"Bob\"],\"rules\":[{\"rule\":\"at\",\"a\":0}]}",
        "{\"form\":\"order\",\"names\":[\"Ann\",\"Bob\"],\"rules\":[{\"rule\":\"before\",\"a\":0,"
        "\"b\":2}]}",
        "{\"form\":\"order\",\"names\":[\"Ann\",\"Bob\"],\"rules\":[{\"rule\":\"before\",\"a\":-1,"
        "\"b\":1}]}",
        "{\"form\":\"order\",\"names\":[\"Ann\",\"Bob\"]}",
        "{\"form\":\"knights\",\"names\":[\"Ann\",\"Bob\"],\"says\":[{\"claim\":\"knight\","
        "\"a\":0}]}",
        "{\"form\":\"knights\",\"names\":[\"Ann\",\"Bob\"],\"says\":[{\"by\":7,\"claim\":"
        "\"knight\","
        "\"a\":0}]}",
        "{\"form\":\"knights\",\"names\":[\"A\",\"B\",\"C\",\"D\",\"E\",\"F\",\"G\",\"H\",\"I\"],"
        "\"says\":[]}",
    };

    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(json_t) puzzle = json_of(rows[i]);
        g_autoptr(GError) error = NULL;

        g_assert_false(logic_puzzle_ok(puzzle, &error));
        g_test_message("%s", error->message);
        g_assert_nonnull(strstr(error->message, "field puzzle."));
    }
}

/* Every row can be read, its own answer is right, and no row is of two splits. */
static void made_tasks_are_solved_by_their_answers(void)
{
    static const char *const kinds[] = {"math", "logic"};

    for (gsize k = 0; k < G_N_ELEMENTS(kinds); k++) {
        g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

        for (guint split = TEXT_TRAIN; split <= TEXT_HELDOUT; split++) {
            g_autoptr(GError) error = NULL;
            g_autoptr(TextSource) source = text_source_new(kinds[k], 5, split, &error);

            for (guint i = 0; i < 200; i++) {
                g_autoptr(json_t) row = text_source_next(source, &error);
                g_autoptr(Task) task = row ? task_from_json(row, &error) : NULL;
                const json_t *puzzle = json_object_get(row, "puzzle");
                const char *answer = json_string_value(json_object_get(row, "answer"));

                g_assert_no_error(error);
                g_assert_true(g_hash_table_add(seen, g_strdup(task->problem_statement)));
                if (puzzle)
                    g_assert_true(
                        logic_puzzle_ok(puzzle, &error) &&
                        logic_solves(puzzle, json_string_value(json_object_get(row, "solution"))));
                else
                    g_assert_true(math_answer_is(answer, answer));
            }
        }
    }
}

static void the_same_seed_makes_the_same_tasks(void)
{
    g_autoptr(TextSource) a = text_source_new("logic", 9, TEXT_TRAIN, NULL);
    g_autoptr(TextSource) b = text_source_new("logic", 9, TEXT_TRAIN, NULL);

    for (guint i = 0; i < 50; i++) {
        g_autoptr(json_t) x = text_source_next(a, NULL), y = text_source_next(b, NULL);

        g_assert_true(json_equal(x, y));
    }
    g_assert_null(text_source_new("poetry", 1, TEXT_TRAIN, NULL));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(test) g_test_add_func("/text/" #test, test)
    ADD(numbers_are_read_exactly);
    ADD(one_answer_counts_and_no_second_one);
    ADD(any_solution_solves_and_nothing_else);
    ADD(broken_puzzles_are_refused);
    ADD(made_tasks_are_solved_by_their_answers);
    ADD(the_same_seed_makes_the_same_tasks);
    return g_test_run();
}
