/*
 * assay train: a run from a configuration file, and what there is to configure.
 *
 * 1. No daemon is asked: policy, boxes and trainer are of this process.
 * 2. Ctrl-C ends the run after the update under way, with a checkpoint; twice: at once.
 */
#include "env/backend.h"
#include "env/cli.h"

#include "env/train.h"
#include "env/train_kind.h"
#include "env/train_plan.h"

#include "base/error.h"
#include "kernels/comm_cards.h"
#include "policy/ranks.h"

#include <glib-unix.h>

#include <signal.h>
#include <string.h>
#include <unistd.h>

#define SLOT_FIRST   300u /* of the boxes, spread over pids: two runs rarely share one */
#define SLOT_PAIRS   350u
#define SLOT_TOOLS   1100u /* of the boxes of tools, likewise; at most 64 */
#define SLOT_RUNS    55u
#define SLOT_STRIDE  16u
#define WARMUP_EVERY 50 /* steps from line to line */
#define LAUNCH_S     60 /* for all ranks to be there */

static Train *running;

static void on_signal(int number)
{
    if (running->stop)
        _exit(128 + number);
    running->stop = 1;
}

static void watch_signals(Train *train)
{
    const struct sigaction action = {.sa_handler = on_signal};

    running = train;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static int finish(Cli *cli, const Train *train)
{
    if (cli->json) {
        g_autoptr(json_t) end =
            json_pack("{s:s, s:I, s:I, s:I, s:I, s:b}", "dir", train->dir, "warmup",
                      (json_int_t)train->warmup, "update", (json_int_t)train->update, "episodes",
                      (json_int_t)train->episodes, "tokens", (json_int_t)train->tokens, "complete",
                      train->update >= train->config->run_updates);
        cli_print_json(end);
    }
    if (!train->stop)
        return CLI_OK;
    cli_say(cli, "stopped at update %" G_GINT64_FORMAT "; the same command goes on", train->update);
    return CLI_INTERRUPTED;
}

/* RUN.conf and --set. */
static TrainConfig *config_wanted(Cli *cli, GError **error)
{
    const char *set = cli_option(cli, "set");
    g_auto(GStrv) settings = g_strsplit(set ? set : "", "\n", -1);

    return train_config_load(cli_arg(cli, 0), (const char *const *)settings, error);
}

/* Boxes to test in; first what a run that was killed has left of its own. */
static VerdictRunner *boxes_open(Cli *cli, GError **error)
{
    VerdictOptions boxes = {.slot_first = SLOT_FIRST + 2 * ((guint)getpid() % SLOT_PAIRS),
                            .allow_degraded = config_bool(cli->config, CONFIG_ALLOW_DEGRADED)};

    box_sweep_stale();
    return verdict_runner_new(&boxes, error);
}

/* Another rank than the first: it ends when that one says so. */
static int follow(Cli *cli, Comm *comm)
{
    const struct sigaction ignore = {.sa_handler = SIG_IGN};
    GError *error = NULL;

    sigaction(SIGINT, &ignore, NULL);
    sigaction(SIGTERM, &ignore, NULL);
    return ranks_follow(comm, backend_ops(), &error) ? CLI_OK : cli_error(cli, error, NULL);
}

static int lead(Cli *cli, Comm *comm)
{
    GError *error = NULL;
    g_autoptr(TrainConfig) config = config_wanted(cli, &error);
    g_autoptr(VerdictRunner) verdicts = config ? boxes_open(cli, &error) : NULL;
    const EpisodeHostOptions tools = {
        .slot_first = SLOT_TOOLS + SLOT_STRIDE * ((guint)getpid() % SLOT_RUNS),
        .allow_degraded = config_bool(cli->config, CONFIG_ALLOW_DEGRADED)};
    g_autoptr(Train) train = verdicts ? train_open(config, verdicts, &tools, comm, &error) : NULL;

    if (!train)
        return cli_error(cli, error, "assay train keys");
    if (!cli->quiet)
        train_log_talk(train->log, WARMUP_EVERY);
    cli_say(cli, "%s: %u tasks, %" G_GSIZE_FORMAT " parameters, %s, loss %s", train->dir,
            train->tasks->len, (gsize)tensors_params(&train->model->config),
            train->model->ops->name, config->loss_name);
    if (comm->size > 1)
        cli_say(
            cli,
            "%d ranks, %d on this machine: tp %u, ep %u, sp %u, dp %u; %u shares of a minibatch",
            comm->size, comm_here(comm), train->trainer->layout.tp, train->trainer->layout.ep,
            train->trainer->layout.sp, train->trainer->layout.dp, train->trainer->shares);
    if (*config->rollout_server)
        cli_say(cli, "rollouts from %s; its weights %s", config->rollout_server,
                config->rollout_server_update ? "are given to it before each batch"
                                              : "stay as they are (rollout.server_update)");
    watch_signals(train);
    if (!train_run(train, &error))
        return cli_error(cli, error, NULL);
    return finish(cli, train);
}

/* Ranks whose models are on cards send arrays from card to card, where NCCL is there. */
static void use_cards(Cli *cli, Comm *comm)
{
    char why[512];

    if (comm->size == 1)
        return;
    comm_timeout(comm, LAUNCH_S);
    if (comm_cards(comm, backend_is_card() ? NULL : "models run on the processor", NULL, why,
                   sizeof why))
        g_strlcpy(why, "NCCL", sizeof why);
    if (backend_is_card() && comm->rank == 0)
        cli_say(cli, "arrays between ranks: %s", why);
    comm_timeout(comm, 0);
}

int cli_train(Cli *cli)
{
    CommFail fail;
    Comm *comm = comm_launched(LAUNCH_S, &fail);
    GError *error = NULL;
    int code;

    if (!comm) {
        error_set(&error, ASSAY_ERROR_SYSTEM, "%s", fail.text);
        return cli_error(cli, error, NULL);
    }
    use_cards(cli, comm);
    code = comm->rank == 0 ? lead(cli, comm) : follow(cli, comm);
    ranks_dismiss(comm);
    comm_close(comm);
    return code;
}

static void plan_row(CliTable *table, json_t *json, const char *part, guint64 bytes,
                     const char *key)
{
    g_autofree char *size = g_format_size_full(bytes, G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *number = g_strdup_printf("%" G_GUINT64_FORMAT, bytes);

    json_object_set_new(json, part, json_integer((json_int_t)MIN(bytes, G_MAXINT64)));
    if (table)
        cli_table_add(table, part, number, size, key, NULL);
}

/* --ranks and --here: as mpirun would start them. */
static gboolean ranks_wanted(Cli *cli, TrainPlanRanks *ranks, GError **error)
{
    const char *all = cli_option(cli, "ranks"), *here = cli_option(cli, "here");
    guint64 n = 1, of_them;

    if (all && !g_ascii_string_to_unsigned(all, 10, 1, 65536, &n, error))
        return FALSE;
    of_them = n;
    if (here && !g_ascii_string_to_unsigned(here, 10, 1, n, &of_them, error))
        return FALSE;
    *ranks = (TrainPlanRanks){(guint)n, (guint)of_them};
    return TRUE;
}

int cli_train_plan(Cli *cli)
{
    static const char *const columns[] = {"part", "bytes", "size", "keys", NULL};
    GError *error = NULL;
    g_autoptr(TrainConfig) config = config_wanted(cli, &error);
    g_autoptr(json_t) json = json_object();
    TrainPlanRanks ranks;
    TrainPlan plan;
    CliTable *table;

    if (!config || !ranks_wanted(cli, &ranks, &error) || !train_plan(config, &ranks, &plan, &error))
        return cli_error(cli, error, "assay train keys");
    table = cli->json ? NULL : cli_table_new(cli, columns);
    for (guint i = 0; i < TRAIN_PLAN_PARTS; i++)
        plan_row(table, json, plan.parts[i].name, plan.parts[i].bytes, plan.parts[i].key);
    plan_row(table, json, "all", plan.total, "");
    plan_row(table, json, "available", plan.available, "");
    if (table)
        cli_table_end(table);
    else
        cli_print_json(json);
    return train_plan_check(&plan, &error) ? CLI_OK : cli_error(cli, error, NULL);
}

int cli_train_retry(Cli *cli)
{
    GError *error = NULL;
    TrainerStats stats = {0};
    g_autoptr(json_t) json = NULL;

    if (!train_retry(cli_arg(cli, 0), &stats, &error))
        return cli_error(cli, error, NULL);
    json = json_pack("{s:f, s:f, s:I, s:f}", "loss", stats.loss.loss, "grad_norm", stats.grad_norm,
                     "tokens", (json_int_t)stats.loss.tokens, "logp_diff_max",
                     stats.loss.mismatch_max);
    if (cli->json)
        cli_print_json(json);
    else
        printf("loss %g, gradient %g over %" G_GUINT64_FORMAT
               " tokens, log-probabilities differ by up to %g\n",
               stats.loss.loss, stats.grad_norm, stats.loss.tokens, stats.loss.mismatch_max);
    return CLI_OK;
}

int cli_train_keys(Cli *cli)
{
    static const char *const columns[] = {"key", "default", "from", "to", "meaning", NULL};
    CliTable *table = cli_table_new(cli, columns);

    for (const TrainKey *key = train_keys; key->name; key++) {
        gboolean bounded = key->type == TRAIN_INT || key->type == TRAIN_NUMBER;
        g_autofree char *min = bounded ? g_strdup_printf("%g", key->min) : g_strdup("");
        g_autofree char *max = bounded ? g_strdup_printf("%g", key->max) : g_strdup("");

        cli_table_add(table, key->name, key->fallback, min, max, key->help, NULL);
    }
    cli_table_end(table);
    return CLI_OK;
}

int cli_train_losses(Cli *cli)
{
    static const char *const columns[] = {"loss", "advantage", "normaliser", "weight", NULL};
    CliTable *table = cli_table_new(cli, columns);

    for (guint i = 0; losses[i]; i++)
        cli_table_add(table, losses[i]->name, advantage_name(losses[i]->advantage),
                      norm_name(losses[i]->norm), losses[i]->summary, NULL);
    cli_table_end(table);
    return CLI_OK;
}

int cli_train_dialects(Cli *cli)
{
    static const char *const columns[] = {"dialect", "what", NULL};
    CliTable *table = cli_table_new(cli, columns);

    for (guint i = 0; train_dialects[i]; i++)
        cli_table_add(table, train_dialects[i]->name, train_dialects[i]->summary, NULL);
    cli_table_end(table);
    return CLI_OK;
}

int cli_train_kinds(Cli *cli)
{
    static const char *const columns[] = {"kind", "answer", "reward", NULL};
    CliTable *table = cli_table_new(cli, columns);

    for (guint i = 0; train_kinds[i]; i++)
        cli_table_add(table, train_kinds[i]->name, train_kinds[i]->answers,
                      train_kinds[i]->rewarded, NULL);
    cli_table_end(table);
    return CLI_OK;
}
