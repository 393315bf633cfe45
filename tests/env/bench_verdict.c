/*
 * What a step of training costs beside its command: a verdict in a warm box against the same
 * compiler on the same files without one, in turns, so that both see the same machine.
 */
#include "env/verdict.h"
#include "tasks/repair.h"

#include "base/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define ROUNDS 200
#define SLOT   190

extern char **environ;

static void on_verdict(const Verdict *verdict, gpointer data)
{
    g_assert_cmpint(verdict->state, ==, VERDICT_PASSED);
    g_assert_false(verdict->is_cached);
    (*(guint *)data)++;
}

/* The fixed source of a row, which nobody asked about before. */
static json_t *changes_of(const json_t *row, int round)
{
    json_t *changes = repair_fix(row);
    const char *path;
    json_t *text;
    json_object_foreach(changes, path, text)
    {
        g_autofree char *more = g_strdup_printf("%s/* %d */\n", json_string_value(text), round);
        json_object_set_new(changes, path, json_string(more));
        break;
    }
    return changes;
}

static gint64 boxed_us(VerdictRunner *runner, const Task *task, const json_t *changes)
{
    guint heard = 0;
    gint64 since = g_get_monotonic_time();
    g_assert_true(verdict_ask(runner, task, changes, on_verdict, &heard, NULL));
    while (heard == 0)
        verdict_turn(runner, -1);
    return g_get_monotonic_time() - since;
}

static void write_in(const char *dir, const char *name, const char *text)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
}

static gint64 bare_us(const char *dir, const Task *task, const json_t *changes)
{
    g_autoptr(TaskCalls) calls = task_calls_read(task, NULL);
    g_autoptr(GPtrArray) argv = g_ptr_array_new_with_free_func(g_free);
    const char *path;
    json_t *text;
    posix_spawn_file_actions_t actions;
    pid_t pid;
    int status = 1;
    json_object_foreach((json_t *)(gsize)task->files, path, text)
        write_in(dir, path, json_string_value(text));
    json_object_foreach((json_t *)(gsize)changes, path, text)
        write_in(dir, path, json_string_value(text));
    write_in(dir, "driver.c", calls->driver);
    g_ptr_array_add(argv, g_strdup("tcc"));
    g_ptr_array_add(argv, g_strdup("-w"));
    for (char **source = calls->sources; *source != NULL; source++)
        g_ptr_array_add(argv, g_build_filename(dir, *source, NULL));
    g_ptr_array_add(argv, g_strdup("-run"));
    g_ptr_array_add(argv, g_build_filename(dir, "driver.c", NULL));
    g_ptr_array_add(argv, NULL);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    gint64 since = g_get_monotonic_time();
    g_assert_cmpint(posix_spawnp(&pid, "tcc", &actions, NULL, (char **)argv->pdata, environ), ==,
                    0);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    gint64 spent = g_get_monotonic_time() - since;
    g_assert_cmpint(status, ==, 0);
    posix_spawn_file_actions_destroy(&actions);
    return spent;
}

static int by_value(const void *a, const void *b)
{
    gint64 x = *(const gint64 *)a, y = *(const gint64 *)b;
    return (x > y) - (x < y);
}

static double median_ms(gint64 *us)
{
    qsort(us, ROUNDS, sizeof *us, by_value);
    return (double)us[ROUNDS / 2] / 1000;
}

static void a_verdict_beside_its_command(void)
{
    static const char *const families[] = {"c", NULL};
    const RepairOptions options = {.seed = 7, .families = families};
    g_autoptr(GError) error = NULL;
    g_autoptr(RepairSource) source = repair_source_new(&options, &error);
    g_autoptr(VerdictRunner) runner =
        verdict_runner_new(&(VerdictOptions){.slot_first = SLOT, .allow_degraded = TRUE}, &error);
    g_autofree char *dir = g_dir_make_tmp("assay-bench-XXXXXX", &error);
    static gint64 boxed[ROUNDS], bare[ROUNDS];
    g_assert_no_error(error);
    if (!g_str_has_prefix(verdict_compiler(runner), "tcc")) {
        g_test_skip("tcc is not installed");
        return;
    }
    for (int i = 0; i < ROUNDS; i++) {
        g_autoptr(json_t) row = repair_source_next(source, &error);
        g_autoptr(Task) task = task_from_json(row, &error);
        g_autoptr(json_t) changes = changes_of(row, i);
        boxed[i] = boxed_us(runner, task, changes);
        bare[i] = bare_us(dir, task, changes);
    }
    double box_ms = median_ms(boxed), bare_ms = median_ms(bare);
    g_test_message("verdict %.2f ms, its command alone %.2f ms: %.2f ms on top (goal 3)", box_ms,
                   bare_ms, box_ms - bare_ms);
    tree_remove(AT_FDCWD, dir, NULL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/verdict/beside_its_command", a_verdict_beside_its_command);
    return g_test_run();
}
