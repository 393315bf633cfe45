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
#include "tasks/repair_kind.h"
#include "tasks/text.h"

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

/* Where rows come from. */
typedef struct Rows {
    json_t *(*next)(gpointer of, GError **error);
    gpointer of;
    void (*free)(gpointer of);
    guint n_bugs; /* 0: it is not about bugs */
} Rows;

static void rows_clear(Rows *rows)
{
    if (rows->of != NULL)
        rows->free(rows->of);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Rows, rows_clear)

static json_t *next_repair(gpointer of, GError **error)
{
    return repair_source_next(of, error);
}

static void free_repair(gpointer of)
{
    repair_source_free(of);
}

static gboolean open_repair(Cli *cli, const RepairOptions *given, Rows *rows, GError **error)
{
    RepairOptions options = *given;
    const char *words = cli_option(cli, "families");
    g_auto(GStrv) families = words != NULL ? g_strsplit(words, ",", -1) : NULL;
    options.families = (const char *const *)families;
    options.kind = repair_has_kind(cli_arg(cli, 0)) ? cli_arg(cli, 0) : NULL;
    RepairSource *source = repair_source_new(&options, error);
    *rows =
        (Rows){next_repair, source, free_repair, source != NULL ? repair_source_bugs(source) : 0};
    return source != NULL;
}

static json_t *next_text(gpointer of, GError **error)
{
    return text_source_next(of, error);
}

static void free_text(gpointer of)
{
    text_source_free(of);
}

static gboolean open_text(Cli *cli, const RepairOptions *options, Rows *rows, GError **error)
{
    static const TextSplit splits[REPAIR_SPLITS] = {[REPAIR_TRAIN] = TEXT_TRAIN,
                                                    [REPAIR_TUNE] = TEXT_TUNE,
                                                    [REPAIR_TUNE_FUNCTIONS] = TEXT_TUNE,
                                                    [REPAIR_HELDOUT_BUGS] = TEXT_HELDOUT,
                                                    [REPAIR_HELDOUT_FUNCTIONS] = TEXT_HELDOUT};
    *rows = (Rows){next_text,
                   text_source_new(cli_arg(cli, 0), options->seed, splits[options->split], error),
                   free_text, 0};
    return rows->of != NULL;
}

/* What makes rows of each kind; those of repair can be canaries, be verified, and so on. */
static const struct {
    const char *kind;
    gboolean (*open)(Cli *cli, const RepairOptions *options, Rows *rows, GError **error);
    gboolean is_repair;
} generators[] = {
    {"repair", open_repair, TRUE}, {"diff", open_repair, TRUE}, {"locate", open_repair, TRUE},
    {"test", open_repair, TRUE},   {"math", open_text, FALSE},  {"logic", open_text, FALSE},
};

static int generator_find(const char *kind)
{
    for (guint i = 0; i < G_N_ELEMENTS(generators); i++)
        if (g_str_equal(generators[i].kind, kind))
            return (int)i;
    return -1;
}

static int generator_unknown(Cli *cli)
{
    g_autoptr(GString) all = g_string_new(NULL);
    for (guint i = 0; i < G_N_ELEMENTS(generators); i++)
        g_string_append_printf(all, "%s%s", i > 0 ? ", " : "", generators[i].kind);
    return cli_usage(cli, "there is no generator %s; there are: %s", cli_arg(cli, 0), all->str);
}

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

/* Asks for both verdicts on a row; answers come with later turns. */
static gboolean verify_row(Verify *verify, Generated *made, GError **error)
{
    g_autoptr(Task) task = task_from_json(made->row, error);
    if (task == NULL)
        return FALSE;
    made->fails = task_calls_named((const char *const *)task->fail_to_pass);
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
static gboolean make_rows(Cli *cli, const Rows *source, Verify *verify, guint count,
                          GPtrArray *rows, GError **error)
{
    while (rows->len < count) {
        while (rows->len < count) {
            Generated *made = g_new0(Generated, 1);
            g_ptr_array_add(rows, made);
            made->row = source->next(source->of, error);
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

/* FALSE: they do not go together; said already. */
static gboolean options_agree(Cli *cli, gboolean is_repair, const RepairOptions *options)
{
    static const char *const only_repair[] = {"verify", "canary", "imitation", "families"};
    for (guint i = 0; !is_repair && i < G_N_ELEMENTS(only_repair); i++)
        if (cli_has(cli, only_repair[i]) || cli_option(cli, only_repair[i]) != NULL) {
            cli_usage(cli, "--%s is for tasks about repairs", only_repair[i]);
            return FALSE;
        }
    if (options->is_canary && !g_str_equal(cli_arg(cli, 0), "repair")) {
        cli_usage(cli, "--canary is for repair");
        return FALSE;
    }
    if (!(options->for_imitation || options->is_canary) || !cli_has(cli, "verify"))
        return TRUE;
    cli_usage(cli, "%s: there is nothing to --verify",
              options->is_canary ? "a --canary passes no tests"
                                 : "--imitation takes bugs that tests do not notice");
    return FALSE;
}

int cli_task_generate(Cli *cli)
{
    GError *error = NULL;
    RepairOptions options = {0};
    int kind = generator_find(cli_arg(cli, 0));
    guint count;
    if (kind < 0)
        return generator_unknown(cli);
    if (!options_read(cli, &options, &count))
        return CLI_USAGE;
    options.for_imitation = cli_has(cli, "imitation");
    options.is_canary = cli_has(cli, "canary");
    if (!options_agree(cli, generators[kind].is_repair, &options))
        return CLI_USAGE;
    g_auto(Rows) source = {0};
    g_autoptr(VerdictRunner) runner = NULL;
    if (generators[kind].open(cli, &options, &source, &error) && cli_has(cli, "verify")) {
        const VerdictOptions how = {.slot_first = SLOT_VERIFY,
                                    .allow_degraded =
                                        config_bool(cli->config, CONFIG_ALLOW_DEGRADED)};
        runner = verdict_runner_new(&how, &error);
    }
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func(generated_free);
    Verify verify = {.runner = runner};
    if (error != NULL || !make_rows(cli, &source, &verify, count, rows, &error) ||
        !write_rows(rows, cli_option(cli, "out"), &error))
        return cli_error(cli, error, NULL);
    if (source.n_bugs > 0)
        cli_say(cli, "%u tasks of %u bugs%s", rows->len, source.n_bugs,
                runner != NULL ? ", each failed and fixed in a box" : "");
    else
        cli_say(cli, "%u tasks", rows->len);
    return CLI_OK;
}
