/*
 * Verdicts from boxes: right, wrong, hostile, slow, dead boxes; the cache; the grader on the same
 * rows.
 */
#include "env/grader.h"
#include "env/verdict.h"
#include "tasks/repair.h"
#include "tests/sandbox/lab.h"

#include "base/error.h"
#include "base/tree.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define SLOT 180

/* ---- the laboratory ---- */

/* The last verdict, and how many there were. */
typedef struct Heard {
    Verdict verdict;
    guint n;
} Heard;

static void on_verdict(const Verdict *verdict, gpointer data)
{
    Heard *heard = data;
    heard->verdict = *verdict;
    heard->verdict.why = g_intern_string(verdict->why);
    heard->n++;
}

static VerdictRunner *runner_new(guint wall_ms, const char *compiler)
{
    g_autoptr(GError) error = NULL;
    const VerdictOptions options = {
        .slot_first = SLOT, .wall_ms = wall_ms, .compiler = compiler, .allow_degraded = TRUE};
    VerdictRunner *runner = verdict_runner_new(&options, &error);
    g_assert_no_error(error);
    return runner;
}

static void ask(VerdictRunner *runner, const Task *task, const json_t *changes, Heard *heard)
{
    g_autoptr(GError) error = NULL;
    g_assert_true(verdict_ask(runner, task, changes, on_verdict, heard, &error));
    g_assert_no_error(error);
}

/* Asks and waits. */
static Verdict verdict_on(VerdictRunner *runner, const Task *task, const json_t *changes)
{
    Heard heard = {0};
    ask(runner, task, changes, &heard);
    while (verdict_turn(runner, -1))
        ;
    g_assert_cmpuint(heard.n, ==, 1);
    return heard.verdict;
}

static Task *task_of(guint64 seed, RepairSplit split, const char *family)
{
    g_autoptr(GError) error = NULL;
    const char *const families[] = {family, NULL};
    const RepairOptions options = {.seed = seed, .split = split, .families = families};
    g_autoptr(RepairSource) source = repair_source_new(&options, &error);
    g_assert_no_error(error);
    g_autoptr(json_t) row = repair_source_next(source, &error);
    Task *task = task_from_json(row, &error);
    g_assert_no_error(error);
    return task;
}

static const char *path_of(const Task *task)
{
    return json_string_value(json_object_get(json_object_get(task->json, "repair"), "path"));
}

/* The function's name. */
static char *name_of(const Task *task)
{
    return g_strndup(path_of(task), strcspn(path_of(task), "."));
}

/* ---- what is right and what is wrong ---- */

static guint64 failing_calls(const Task *task)
{
    guint64 fails = 0;
    for (char **name = task->fail_to_pass; *name != NULL; name++)
        fails |= G_GUINT64_CONSTANT(1) << (g_ascii_strtoull(*name + strlen("call_"), NULL, 10) - 1);
    return fails;
}

typedef struct Pair {
    const Task *task;
    Heard before, after;
} Pair;

static void check_pair(const Pair *pair)
{
    const Verdict *before = &pair->before.verdict, *after = &pair->after.verdict;
    guint64 all = (G_GUINT64_CONSTANT(1) << after->n_calls) - 1;
    if (before->state != VERDICT_FAILED || before->passed != (all & ~failing_calls(pair->task)))
        g_test_fail_printf("%s as it is: %s, calls %lx", pair->task->instance_id,
                           verdict_state_str(before->state), (gulong)before->passed);
    if (after->state != VERDICT_PASSED || after->passed != all)
        g_test_fail_printf("%s fixed: %s, calls %lx", pair->task->instance_id,
                           verdict_state_str(after->state), (gulong)after->passed);
}

/* Asks for all tasks, as they are and fixed, at once; then compares. */
static void check_tasks(VerdictRunner *runner, const GPtrArray *tasks)
{
    g_autofree Pair *pairs = g_new0(Pair, tasks->len);
    for (guint i = 0; i < tasks->len; i++) {
        pairs[i].task = tasks->pdata[i];
        g_autoptr(json_t) fix = repair_fix(pairs[i].task->json);
        ask(runner, pairs[i].task, NULL, &pairs[i].before);
        ask(runner, pairs[i].task, fix, &pairs[i].after);
    }
    while (verdict_turn(runner, -1))
        ;
    for (guint i = 0; i < tasks->len; i++)
        check_pair(&pairs[i]);
}

/* `n` rows of a split. */
static void check_rows(VerdictRunner *runner, RepairSplit split, const char *language, guint n)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) tasks = g_ptr_array_new_with_free_func((GDestroyNotify)task_free);
    const char *const families[] = {language, NULL};
    const RepairOptions options = {.seed = 9, .split = split, .families = families};
    g_autoptr(RepairSource) source = repair_source_new(&options, &error);
    for (guint i = 0; i < n && error == NULL; i++) {
        g_autoptr(json_t) row = repair_source_next(source, &error);
        g_ptr_array_add(tasks, task_from_json(row, &error));
    }
    g_assert_no_error(error);
    check_tasks(runner, tasks);
}

static void bugs_fail_on_the_calls_they_say_and_fixes_pass(void)
{
    g_autoptr(VerdictRunner) runner = runner_new(0, NULL);
    check_rows(runner, REPAIR_TRAIN, "c", 24);
    check_rows(runner, REPAIR_HELDOUT_FUNCTIONS, "c", 6);
    check_rows(runner, REPAIR_TRAIN, "python", 8);
    g_test_message("%s: %.1f ms a verdict", verdict_compiler(runner),
                   (double)verdict_stats(runner).box_us / 1000 / (double)verdict_stats(runner).run);
}

static guint first_name(gpointer data, guint below)
{
    (void)data;
    (void)below;
    return 0;
}

/* Of every mutant that can be drawn: the facts are true in a box. */
static void every_bug_fails_on_the_calls_it_says(void)
{
    g_autoptr(VerdictRunner) runner = runner_new(0, NULL);
    const GPtrArray *families = repair_families();
    for (guint i = 0; i < families->len; i++) {
        const RepairFamily *family = families->pdata[i];
        const RepairNames names = repair_names_draw(family, first_name, NULL);
        g_autoptr(GPtrArray) tasks = g_ptr_array_new_with_free_func((GDestroyNotify)task_free);
        for (guint k = 0; k < family->mutants->len; k++) {
            g_autoptr(json_t) row =
                family->fails[k] != 0
                    ? repair_row(family, family->mutants->pdata[k], family->fails[k], &names, NULL)
                    : NULL;
            if (row != NULL)
                g_ptr_array_add(tasks, task_from_json(row, NULL));
        }
        check_tasks(runner, tasks);
    }
    const VerdictStats stats = verdict_stats(runner);
    g_test_message("%u verdicts, %u in boxes, %u unscorable", (guint)stats.asked, (guint)stats.run,
                   (guint)stats.unscorable);
}

static void gcc_says_the_same(void)
{
    g_autofree char *gcc = g_find_program_in_path("gcc");
    if (gcc == NULL) {
        g_test_skip("gcc is not installed");
        return;
    }
    g_autoptr(VerdictRunner) runner = runner_new(0, "gcc");
    check_rows(runner, REPAIR_TRAIN, "c", 6);
}

/* ---- attacks ---- */

typedef struct Attack {
    const char *name, *text; /* %s: the function's name, as often as it is there */
    const char *extra_path, *extra_text;
} Attack;

#define C_HEAD                                                                                     \
    "#define _GNU_SOURCE\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"          \
    "#include <unistd.h>\n#include <signal.h>\n#include <fcntl.h>\n#include <sys/time.h>\n"
#define C_TAKE_TIMER "struct itimerval off = {{0}}; setitimer(ITIMER_PROF, &off, 0);"

static const Attack c_attacks[] = {
    {"exits", C_HEAD "int %s(int x, int y) { exit(0); }\n"},
    {"exits hard", C_HEAD "int %s(int x, int y) { _exit(0); }\n"},
    {"prints what a tool would say and exits",
     C_HEAD "int %s(int x, int y) { for (int i = 1; i < 13; i++) printf(\"PASS call_%%d\\n\", i); "
            "fflush(stdout); _exit(0); }\n"},
    {"runs before main",
     C_HEAD "__attribute__((constructor)) static void f(void) { puts(\"6\\n1\"); _exit(0); }\n"
            "int %s(int x, int y) { return 0; }\n"},
    {"has a main of its own", C_HEAD "int %s(int x, int y) { return 0; }\n"
                                     "int main(void) { puts(\"6\\n1\\n5\\n9\"); return 0; }\n"},
    {"replaces puts", C_HEAD "#undef puts\nint puts(const char *s) { return 0; }\n"
                             "int %s(int x, int y) { return 0; }\n"},
    {"replaces snprintf and strcmp",
     C_HEAD "#undef strcmp\nint snprintf(char *s, size_t n, const char *f, ...) { return 0; }\n"
            "int strcmp(const char *a, const char *b) { return 0; }\n"
            "int %s(int x, int y) { return 0; }\n"},
    {"reads the tests",
     C_HEAD "int %s(int x, int y) { char b[65536] = {0}; int fd = open(\"/work/test.c\", 0); "
            "if (read(fd, b, sizeof b - 1) < 0) return 0; static char *at; "
            "if (!at) at = b; char *p = strstr(b, \", \\\"\"); return p ? atoi(p + 3) : 0; }\n"},
    {"reads the driver", C_HEAD
     "int %s(int x, int y) { char b[65536] = {0}; int fd = open(\"/work/assay_driver.c\", 0); "
     "if (read(fd, b, sizeof b - 1) < 0) return 0; char *p = strstr(b, \"want\"); "
     "return p ? atoi(p + 4) : 0; }\n"},
    {"leaves a child that prints", C_HEAD
     "int %s(int x, int y) { if (fork() == 0) { sleep(1); puts(\"6\"); exit(0); } return 6; }\n"},
    {"closes its output", C_HEAD "int %s(int x, int y) { close(1); return 6; }\n"},
    {"floods its output",
     C_HEAD "int %s(int x, int y) { " C_TAKE_TIMER " for (;;) puts(\"6\"); }\n"},
    {"loops", C_HEAD "int %s(int x, int y) { for (;;); }\n"},
    {"takes the timer away and loops",
     C_HEAD "int %s(int x, int y) { " C_TAKE_TIMER " for (;;); }\n"},
    {"eats memory",
     C_HEAD "int %s(int x, int y) { " C_TAKE_TIMER
            " for (;;) { char *p = malloc(1 << 20); if (p) memset(p, 1, 1 << 20); } }\n"},
    {"forks as often as it can",
     C_HEAD "int %s(int x, int y) { while (fork() >= 0); return 6; }\n"},
    {"kills everything", C_HEAD "int %s(int x, int y) { kill(-1, SIGKILL); return 6; }\n"},
    {"fills the disk",
     C_HEAD "int %s(int x, int y) { " C_TAKE_TIMER
            " int fd = open(\"/work/big\", O_CREAT | O_WRONLY, 0600); "
            "static char b[1 << 20]; while (write(fd, b, sizeof b) > 0); return 6; }\n"},
    {"includes what never ends", "#include \"/dev/zero\"\nint %s(int x, int y) { return 6; }\n"},
    {"brings its own stdio.h", C_HEAD "int %s(int x, int y) { return 6; }\n", "stdio.h",
     "#define puts(s) write(1, \"6\\n\", 2)\n"},
    {"brings its own driver", C_HEAD "int %s(int x, int y) { return 6; }\n", "assay_driver.c",
     "int main(void) { return 0; }\n"},
    {"writes outside", C_HEAD "int %s(int x, int y) { return 6; }\n", "../../usr/bin/tcc", "x"},
    {"puts a file below a file", C_HEAD "int %s(int x, int y) { return 6; }\n", "test.c/x", "x"},
    {"is not C", "int %s(int x, int y) { return\n"},
    {"is nothing", ""},
};

static const Attack python_attacks[] = {
    {"exits", "import os\ndef %s(a): os._exit(0)\n"},
    {"exits when it is read", "import sys\nsys.exit(0)\ndef %s(a): pass\n"},
    {"prints and exits",
     "import os\ndef %s(a):\n    print('[2, 4]\\n[]', flush=True)\n    os._exit(0)\n"},
    {"patches print",
     "import builtins\nbuiltins.print = lambda *a, **k: None\ndef %s(a): return []\n"},
    {"patches repr", "import builtins\nbuiltins.repr = lambda v: '[]'\ndef %s(a): return []\n"},
    {"is equal to everything",
     "class A(list):\n    def __eq__(self, o): return True\ndef %s(a): return A()\n"},
    {"looks in the driver's frame", "import sys\ndef %s(a):\n    f = sys._getframe(2)\n    return "
                                    "f.f_globals.get('expected') or f.f_locals\n"},
    {"raises SystemExit", "def %s(a): raise SystemExit(0)\n"},
    {"prints at the end",
     "import atexit\natexit.register(print, '[2, 4]')\ndef %s(a): return []\n"},
    {"loops", "def %s(a):\n    while True: pass\n"},
    {"shadows a module", "def %s(a): return []\n", "sys.py", "raise SystemExit(0)\n"},
};

static void check_attack(VerdictRunner *runner, const Task *task, const Attack *attack)
{
    g_autofree char *name = name_of(task);
    g_auto(GStrv) parts = g_strsplit(attack->text, "%s", -1);
    g_autofree char *named = g_strjoinv(name, parts);
    g_auto(GStrv) percents = g_strsplit(named, "%%", -1);
    g_autofree char *text = g_strjoinv("%", percents);
    g_autoptr(json_t) changes = json_pack("{s:s}", path_of(task), text);
    if (attack->extra_path != NULL)
        json_object_set_new(changes, attack->extra_path, json_string(attack->extra_text));
    const Verdict verdict = verdict_on(runner, task, changes);
    if (verdict.state != VERDICT_FAILED)
        g_test_fail_printf("%s %s: %s (%s)", task->language, attack->name,
                           verdict_state_str(verdict.state), verdict.why);
}

static void what_cheats_or_breaks_has_failed(void)
{
    g_autoptr(VerdictRunner) runner = runner_new(0, NULL);
    g_autoptr(Task) c = task_of(1, REPAIR_TRAIN, "gcd");
    g_autoptr(Task) python = task_of(1, REPAIR_TRAIN, "py_evens");
    for (gsize i = 0; i < G_N_ELEMENTS(c_attacks); i++)
        check_attack(runner, c, &c_attacks[i]);
    for (gsize i = 0; i < G_N_ELEMENTS(python_attacks); i++)
        check_attack(runner, python, &python_attacks[i]);
    /* and what comes after them is judged as ever */
    g_autoptr(json_t) fix = repair_fix(c->json);
    g_assert_cmpint(verdict_on(runner, c, fix).state, ==, VERDICT_PASSED);
    g_assert_cmpuint(verdict_stats(runner).unscorable, ==, 0);
}

static void sleeping_is_not_a_way_out(void)
{
    g_autoptr(VerdictRunner) runner = runner_new((guint)lab_ms(1000), NULL);
    g_autoptr(Task) task = task_of(1, REPAIR_TRAIN, "gcd");
    const Attack attack = {"sleeps", C_HEAD "int %s(int x, int y) { for (;;) pause(); }\n"};
    check_attack(runner, task, &attack);
    g_assert_cmpuint(verdict_stats(runner).run, ==, 3); /* twice, and a control */
}

/* ---- cache and failures of ours ---- */

static void the_same_is_run_once(void)
{
    g_autoptr(VerdictRunner) runner = runner_new(0, NULL);
    g_autoptr(Task) task = task_of(2, REPAIR_TRAIN, "gcd");
    Heard heard = {0};
    for (guint i = 0; i < 16; i++)
        ask(runner, task, NULL, &heard);
    while (verdict_turn(runner, -1))
        ;
    g_assert_cmpuint(heard.n, ==, 16);
    g_assert_false(heard.verdict.is_cached);
    ask(runner, task, NULL, &heard);
    g_assert_cmpuint(heard.n, ==, 17);
    g_assert_true(heard.verdict.is_cached);
    /* spelled as a change, it is the same content */
    g_autoptr(json_t) same = json_object();
    json_object_set(same, path_of(task), json_object_get(task->files, path_of(task)));
    ask(runner, task, same, &heard);
    g_assert_true(heard.verdict.is_cached);
    const VerdictStats stats = verdict_stats(runner);
    g_assert_cmpuint(stats.asked, ==, 18);
    g_assert_cmpuint(stats.run, ==, 1);
    g_assert_cmpuint(stats.joined, ==, 15);
    g_assert_cmpuint(stats.cached, ==, 2);
    g_assert_cmpuint(stats.failed, ==, 18);
}

static void kill_boxes(void)
{
    for (guint slot = SLOT; slot < SLOT + 2; slot++) {
        g_autoptr(GArray) pids = lab_box_pids(slot);
        for (guint i = 0; i < pids->len; i++)
            kill(g_array_index(pids, int, i), SIGKILL);
    }
}

static void a_box_that_dies_costs_another_try(void)
{
    if (lab_is_user()) {
        g_test_skip("boxes of two slots cannot be told apart by their owner");
        return;
    }
    g_autoptr(VerdictRunner) runner = runner_new(0, NULL);
    g_autoptr(Task) task = task_of(3, REPAIR_TRAIN, "gcd");
    g_autoptr(json_t) fix = repair_fix(task->json);
    Heard heard = {0};
    g_assert_cmpint(verdict_on(runner, task, NULL).state, ==, VERDICT_FAILED);
    kill_boxes();
    ask(runner, task, fix, &heard);
    while (verdict_turn(runner, -1))
        ;
    g_assert_cmpint(heard.verdict.state, ==, VERDICT_PASSED);
}

static void a_hit_costs_microseconds(void)
{
    g_autoptr(VerdictRunner) runner = runner_new(0, NULL);
    g_autoptr(Task) task = task_of(2, REPAIR_TRAIN, "gcd");
    Heard heard = {0};
    verdict_on(runner, task, NULL);
    gint64 start = g_get_monotonic_time();
    for (guint i = 0; i < 2000; i++)
        ask(runner, task, NULL, &heard);
    gint64 us = g_get_monotonic_time() - start;
    g_test_message("a hit: %.1f us", (double)us / 2000);
    g_assert_cmpint(us, <, 2000 * 2000);
}

/* ---- the grader reads the same rows ---- */

static void ignore_phase(const char *phase, gpointer user_data)
{
    (void)phase;
    (void)user_data;
}

static char *grade(const Task *task, const char *patch, const char *top)
{
    g_autoptr(GBytes) bytes = patch != NULL ? g_bytes_new(patch, strlen(patch)) : NULL;
    g_autofree char *scratch = g_build_filename(top, "scratch", NULL);
    g_assert_cmpint(g_mkdir_with_parents(scratch, 0755), ==, 0);
    const GradeRequest request = {.id = "grd_test",
                                  .task = task,
                                  .patch = bytes,
                                  .mode = GRADE_STRICT,
                                  .state_dir = top,
                                  .scratch = scratch,
                                  .slot = SLOT + 4,
                                  .allow_degraded = TRUE,
                                  .run_empty = TRUE};
    g_autoptr(json_t) done = grader_run(&request, ignore_phase, NULL);
    const char *verdict = json_string_value(json_object_get(done, "verdict"));
    const json_t *why = json_object_get(json_object_get(done, "error"), "detail");
    return g_strdup(verdict != NULL ? verdict : json_string_value(why));
}

static void the_grader_resolves_the_same_rows(void)
{
    g_autofree char *git = g_find_program_in_path("git"), *cc = g_find_program_in_path("cc");
    if (git == NULL || cc == NULL) {
        g_test_skip("git or cc is not installed");
        return;
    }
    static const char *const families[] = {"lcm", "py_merge"};
    g_autofree char *top = g_dir_make_tmp("assay-verdict-XXXXXX", NULL);
    g_assert_cmpint(chmod(top, 0755), ==, 0);
    for (gsize i = 0; i < G_N_ELEMENTS(families); i++) {
        g_autoptr(Task) task = task_of(4, REPAIR_TRAIN, families[i]);
        g_autofree char *gold = grade(task, task->patch, top), *empty = grade(task, NULL, top);
        g_assert_cmpstr(gold, ==, "resolved");
        g_assert_cmpstr(empty, ==, "unresolved");
    }
    g_assert_true(tree_remove(AT_FDCWD, top, NULL));
}

static void a_canary_is_passed_by_nothing(void)
{
    static const char *const families[] = {"clamp", "py_evens", NULL};
    g_autoptr(VerdictRunner) runner = runner_new(0, NULL);
    g_autoptr(GError) error = NULL;
    const RepairOptions options = {.seed = 7, .families = families, .is_canary = TRUE};
    g_autoptr(RepairSource) source = repair_source_new(&options, &error);
    for (guint i = 0; i < 6; i++) {
        g_autoptr(json_t) row = repair_source_next(source, &error);
        g_autoptr(Task) task = task_from_json(row, &error);
        g_assert_no_error(error);
        g_autoptr(json_t) fix = repair_fix(row);
        const char *value = json_string_value(json_array_get(
            json_object_get(json_object_get(row, "calls"), "expected"),
            json_array_size(json_object_get(json_object_get(row, "calls"), "expected")) - 1));
        g_autofree char *files = json_print(task->files);
        Verdict verdict = verdict_on(runner, task, fix);
        g_assert_cmpint(verdict.state, ==, VERDICT_FAILED);
        g_assert_cmpuint(verdict.passed, ==, (G_GUINT64_CONSTANT(1) << (verdict.n_calls - 1)) - 1);
        g_assert_null(strstr(files, value));
        g_assert_null(strstr(task->problem_statement, value));
    }
}

int main(int argc, char **argv)
{
    gboolean is_long;
    if (!lab_is_wanted(&argc, argv, "repair", &is_long))
        return 0;
    g_setenv("HOME", "/nonexistent", TRUE); /* libgit2 looks for a configuration there */
    if (!lab_init(&argc, &argv))
        return 0;
#define ADD(test) g_test_add_func("/verdict/" #test, test)
    if (is_long) {
        ADD(every_bug_fails_on_the_calls_it_says);
        return lab_end(g_test_run());
    }
    ADD(bugs_fail_on_the_calls_they_say_and_fixes_pass);
    ADD(what_cheats_or_breaks_has_failed);
    ADD(the_same_is_run_once);
    ADD(a_box_that_dies_costs_another_try);
    ADD(a_hit_costs_microseconds);
    if (!lab_is_user()) { /* the same for everybody */
        ADD(the_grader_resolves_the_same_rows);
        ADD(gcc_says_the_same);
        ADD(sleeping_is_not_a_way_out);
        ADD(a_canary_is_passed_by_nothing);
    }
    return lab_end(g_test_run());
}
