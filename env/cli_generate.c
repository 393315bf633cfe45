/*
 * assay task generate: tasks made from templates.
 *
 * Invariants:
 *   1. Which rows come out depends on the options alone; --verify can only leave rows out.
 *   2. A row that --verify passes fails in a box as it is, on the calls it says, and passes once it
 *      is fixed.
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "env/verdict.h"
#include "tasks/repair.h"

#include <string.h>

#define SLOT_VERIFY 1010 /* boxes of the command line; workers count from 0 */
#define COUNT_MAX   1000000
#define WAITING_MAX 64u /* verdicts asked for and not there yet */

typedef struct Generated {
    json_t *row;
    guint64 fails;   /* calls that must fail */
    gboolean is_bad; /* the boxes say otherwise */
} Generated;

typedef struct Verify {
    VerdictRunner *runner;
    guint n_waiting;
    const char *unscorable; /* why, of one */
} Verify;

/* One verdict that is awaited. */
typedef struct Check {
    Verify *verify;
    Generated *made;
    gboolean is_fixed;
} Check;

static void generated_free(gpointer data)
{
    Generated *made = data;
    json_decref(made->row);
    g_free(made);
}

static void on_verdict(const Verdict *verdict, gpointer data)
{
    Check *check = data;
    guint64 all = (G_GUINT64_CONSTANT(1) << verdict->n_calls) - 1;
    guint64 want = check->is_fixed ? all : all & ~check->made->fails;
    check->verify->n_waiting--;
    if (verdict->state == VERDICT_UNSCORABLE)
        check->verify->unscorable = g_intern_string(verdict->why);
    else if (verdict->passed != want || (verdict->state == VERDICT_PASSED) != check->is_fixed)
        check->made->is_bad = TRUE;
    g_free(check);
}

static gboolean check_start(Verify *verify, Generated *made, const Task *task, gboolean is_fixed,
                            GError **error)
{
    g_autoptr(json_t) changes = is_fixed ? repair_fix(made->row) : NULL;
    Check *check = g_new0(Check, 1);
    *check = (Check){verify, made, is_fixed};
    verify->n_waiting++;
    if (verdict_ask(verify->runner, task, changes, on_verdict, check, error))
        return TRUE;
    g_free(check);
    return FALSE;
}

static guint64 fails_of(const Task *task)
{
    guint64 fails = 0, number = 0;
    for (char **name = task->fail_to_pass; *name != NULL; name++)
        if (g_ascii_string_to_unsigned(*name + strlen("call_"), 10, 1, 64, &number, NULL))
            fails |= G_GUINT64_CONSTANT(1) << (number - 1);
    return fails;
}

/* Asks for both verdicts on a row; answers come with later turns. */
static gboolean verify_row(Verify *verify, Generated *made, GError **error)
{
    g_autoptr(Task) task = task_from_json(made->row, error);
    if (task == NULL)
        return FALSE;
    made->fails = fails_of(task);
    if (!check_start(verify, made, task, FALSE, error) ||
        !check_start(verify, made, task, TRUE, error))
        return FALSE;
    while (verify->n_waiting > WAITING_MAX)
        verdict_turn(verify->runner, -1);
    return TRUE;
}

/* Takes out what the boxes did not confirm, saying so. */
static void leave_out_bad(Cli *cli, GPtrArray *rows)
{
    for (guint i = 0; i < rows->len;) {
        const Generated *made = rows->pdata[i];
        if (!made->is_bad) {
            i++;
            continue;
        }
        cli_say(cli, "%s: left out: its tests do not fail and pass as they should",
                cli_json_str(made->row, "instance_id"));
        g_ptr_array_remove_index(rows, i);
    }
}

/* Draws rows until there are `count` good ones. */
static gboolean make_rows(Cli *cli, RepairSource *source, Verify *verify, guint count,
                          GPtrArray *rows, GError **error)
{
    while (rows->len < count) {
        while (rows->len < count) {
            Generated *made = g_new0(Generated, 1);
            g_ptr_array_add(rows, made);
            made->row = repair_source_next(source, error);
            if (made->row == NULL || (verify->runner != NULL && !verify_row(verify, made, error)))
                return FALSE;
        }
        while (verify->runner != NULL && verdict_turn(verify->runner, -1))
            ;
        if (verify->unscorable != NULL)
            return error_set(error, ASSAY_ERROR_SYSTEM, "a verdict could not be had: %s",
                             verify->unscorable);
        leave_out_bad(cli, rows);
    }
    return TRUE;
}

static gboolean write_rows(const GPtrArray *rows, const char *path, GError **error)
{
    g_autoptr(GString) out = g_string_new(NULL);
    for (guint i = 0; i < rows->len; i++) {
        g_autofree char *line = json_print(((Generated *)rows->pdata[i])->row);
        g_string_append_printf(out, "%s\n", line);
    }
    return path != NULL ? file_write_atomic(path, out->str, out->len, error)
                        : fd_write_all(1, out->str, out->len, error);
}

static gboolean options_read(Cli *cli, RepairOptions *options, guint *ret_count)
{
    const char *seed = cli_option(cli, "seed"), *count = cli_option(cli, "count");
    const char *split = cli_option(cli, "split");
    guint64 number = 100;
    if (split != NULL && !repair_split_from_str(split, &options->split)) {
        cli_usage(cli,
                  "--split is %s; it must be train, tune, tune-functions, heldout-bugs or "
                  "heldout-functions",
                  split);
        return FALSE;
    }
    if ((seed != NULL &&
         !g_ascii_string_to_unsigned(seed, 10, 0, G_MAXUINT64, &options->seed, NULL)) ||
        (count != NULL && !g_ascii_string_to_unsigned(count, 10, 1, COUNT_MAX, &number, NULL))) {
        cli_usage(cli, "--seed and --count must be whole numbers, --count 1 to %d", COUNT_MAX);
        return FALSE;
    }
    *ret_count = (guint)number;
    return TRUE;
}

int cli_task_generate(Cli *cli)
{
    GError *error = NULL;
    RepairOptions options = {0};
    guint count;
    g_auto(GStrv) families = NULL;
    if (!g_str_equal(cli_arg(cli, 0), "repair"))
        return cli_usage(cli, "there is no generator %s; there is: repair", cli_arg(cli, 0));
    if (!options_read(cli, &options, &count))
        return CLI_USAGE;
    if (cli_option(cli, "families") != NULL)
        families = g_strsplit(cli_option(cli, "families"), ",", -1);
    options.families = (const char *const *)families;
    options.for_imitation = cli_has(cli, "imitation");
    options.is_canary = cli_has(cli, "canary");
    if ((options.for_imitation || options.is_canary) && cli_has(cli, "verify"))
        return cli_usage(cli, "%s: there is nothing to --verify",
                         options.is_canary ? "a --canary passes no tests"
                                           : "--imitation takes bugs that tests do not notice");
    g_autoptr(RepairSource) source = repair_source_new(&options, &error);
    g_autoptr(VerdictRunner) runner = NULL;
    if (source != NULL && cli_has(cli, "verify")) {
        const VerdictOptions how = {.slot_first = SLOT_VERIFY,
                                    .allow_degraded =
                                        config_bool(cli->config, CONFIG_ALLOW_DEGRADED)};
        runner = verdict_runner_new(&how, &error);
    }
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func(generated_free);
    Verify verify = {.runner = runner};
    if (error != NULL || !make_rows(cli, source, &verify, count, rows, &error) ||
        !write_rows(rows, cli_option(cli, "out"), &error))
        return cli_error(cli, error, NULL);
    cli_say(cli, "%u tasks of %u bugs%s", rows->len, repair_source_bugs(source),
            runner != NULL ? ", each failed and fixed in a box" : "");
    return CLI_OK;
}
