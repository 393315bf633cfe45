/*
 * The command line: one table of commands and options, which also makes the help, the man page
 * and the suggestions. Adding a command: a function and a row in cli_main.c.
 *
 * Standard output is the answer, standard error is everything else.
 */
#pragma once

#include "env/client.h"
#include "env/config.h"
#include "tasks/task.h"

#include <glib.h>
#include <stdio.h>

/* Exit statuses, as `assay help exit-codes` lists them. Never renumber. */
typedef enum CliExit {
    CLI_OK = 0,
    CLI_FAILED = 1, /* at least one item could not be processed */
    CLI_USAGE = 2,  /* bad usage or bad input file */
    CLI_NOT_FOUND = 3,
    CLI_NOT_ALLOWED = 4,
    CLI_UNREACHABLE = 5, /* the daemon cannot be reached or is not ready */
    CLI_NO_ROOM = 6,     /* quota, queue or disk said no */
    CLI_GATE = 7,        /* a gate that was asked for is not met */
    CLI_TIMEOUT = 8,
    CLI_INTERRUPTED = 130,
    CLI_BROKEN_PIPE = 141,
} CliExit;

typedef struct CliOption {
    const char *name; /* "dataset" */
    const char *arg;  /* "NAME"; NULL: a switch */
    const char *help;
} CliOption;

typedef struct Cli Cli;
typedef int (*CliFn)(Cli *cli);

typedef struct CliCommand {
    const char *name; /* "sweep run" */
    const char *args; /* "PREDICTIONS" */
    const char *summary;
    CliFn run;
    const CliOption *options; /* ended by a NULL name; NULL: none */
    guint args_min, args_max;
} CliCommand;
extern const CliCommand cli_commands[];
extern const CliOption cli_common[];

struct Cli {
    const CliCommand *command;
    GHashTable *options; /* name -> value ("" for a switch) */
    GPtrArray *args;
    Config *config;
    Client *client; /* of the configured socket */
    gboolean json, quiet, verbose, header;
    gboolean out_tty, err_tty, colour;
    gboolean daemon_is_ours; /* started by this command, and stopped at its end */
};

const char *cli_arg(Cli *cli, guint i); /* NULL when there are fewer */
const char *cli_option(Cli *cli, const char *name);
/* A whole number in from .. to; without the option `number` stays as it is. INPUT: it is none. */
gboolean cli_number(Cli *cli, const char *name, guint64 from, guint64 to, guint64 *number,
                    GError **error);
gboolean cli_has(Cli *cli, const char *name);

/* --- cli_out.c */

/* Three lines on standard error: what failed, and what to type (may be NULL). Returns the exit
 * status that fits; frees the error. */
int cli_error(Cli *cli, GError *error, const char *hint);
int cli_usage(Cli *cli, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* A line of talk on standard error, unless --quiet. */
void cli_say(Cli *cli, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* Prints a JSON object as one line. */
void cli_print_json(const json_t *value);
/* NULL-terminated columns; TTY: aligned, pipe: tabs, --json: an object of strings for each row.
 * Call cli_table_end to print. */
typedef struct CliTable CliTable;
CliTable *cli_table_new(Cli *cli, const char *const *columns);
void cli_table_add(CliTable *table, ...) G_GNUC_NULL_TERMINATED;
void cli_table_end(CliTable *table);
/* Of a list of the API: prints the table, if there is one, and says where the rest begins. */
void cli_list_end(Cli *cli, CliTable *table, const json_t *list);
const char *cli_json_str(const json_t *object, const char *key); /* "" when absent or null */
json_int_t cli_json_int(const json_t *object, const char *key);
/* "1", "0.5", "-" for null. */
char *cli_reward(const json_t *grade);
/* The absolute form of a path, for the daemon. */
char *cli_absolute(const char *path);

/* Counts of a sweep as they come in; a block on a terminal, plain lines in a pipe. */
typedef struct Progress {
    Cli *cli;
    gint64 total, done, resolved, unresolved, failed, other;
    gint64 start_ns, drawn_ns, line_done;
    gboolean drawn;
} Progress;
void progress_start(Progress *progress, Cli *cli, gint64 total);
void progress_add(Progress *progress, const json_t *grade);
void progress_draw(Progress *progress);
void progress_end(Progress *progress);

/* Ctrl-C: how often it was pressed since cli_interrupts_watch. */
void cli_interrupts_watch(void);
guint cli_interrupts(void);

/* --- shared by commands */

/* "grd_..." from an id, "@last", or an unambiguous prefix. NULL: error. `type` "grd" or "swp". */
char *cli_resolve_id(Cli *cli, const char *text, const char *type, GError **error);
/* Follows a sweep to its end. `fn` gets each line (may be NULL). Returns the exit status. */
int cli_follow_sweep(Cli *cli, const char *id, gint64 total, ClientLineFn fn, gpointer user_data);
/* The end of a sweep: a summary block on `out`, or the sweep object on standard output with
 * --json; checks --fail-under. */
int cli_sweep_summary(Cli *cli, const char *id, FILE *out);
/* Reads a predictions file (JSON lines, list or dict) into NDJSON. NULL: error. `n_bad` counts
 * lines that were reported and left out. */
GBytes *cli_predictions(Cli *cli, const char *path, const char *model, GStrv only, guint *n_bad,
                        GError **error);

/* Appends token ids between white space, commas and brackets: a JSON array is a list as well. */
gboolean cli_ids_read(const char *text, GArray *ids, GError **error);

/* Starts assayd with the configuration of this CLI; its standard error goes to STATE/assayd.log.
 * `private`: said to nobody, and it ends when this process does. */
gboolean cli_daemon_start(Cli *cli, gboolean private, GError **error);
gboolean cli_daemon_answers(Cli *cli);
/* SIGTERM (twice when `now`: running grades are not waited for) and wait for its end. */
gboolean cli_daemon_stop(Cli *cli, gboolean now, GError **error);

/* The task of that id in the file of --dataset (and --spec-map). NULL: error. */
Task *cli_dataset_task(Cli *cli, const char *id, GError **error);

int cli_up(Cli *cli);
int cli_down(Cli *cli);
int cli_status(Cli *cli);
int cli_doctor(Cli *cli);
int cli_version(Cli *cli);
int cli_help(Cli *cli);
int cli_task_import(Cli *cli);
int cli_task_ls(Cli *cli);
int cli_task_show(Cli *cli);
int cli_task_validate(Cli *cli);
int cli_grade(Cli *cli);
int cli_show(Cli *cli);
int cli_watch(Cli *cli);
int cli_logs(Cli *cli);
int cli_cancel(Cli *cli);
int cli_sweep_run(Cli *cli);
int cli_sweep_ls(Cli *cli);
int cli_sweep_results(Cli *cli);
int cli_sweep_report(Cli *cli);
int cli_sweep_diff(Cli *cli);
int cli_eval(Cli *cli);
int cli_episode_open(Cli *cli);
int cli_episode_step(Cli *cli);
int cli_episode_exec(Cli *cli);
int cli_episode_diff(Cli *cli);
int cli_episode_steps(Cli *cli);
int cli_episode_fork(Cli *cli);
int cli_episode_rollback(Cli *cli);
int cli_episode_submit(Cli *cli);
int cli_episode_show(Cli *cli);
int cli_episode_ls(Cli *cli);
int cli_episode_close(Cli *cli);
int cli_episode_run(Cli *cli);
int cli_episode_replay(Cli *cli);
int cli_episode_tools(Cli *cli);
int cli_repo_ls(Cli *cli);
int cli_repo_add(Cli *cli);
int cli_repo_fetch(Cli *cli);
int cli_repo_gc(Cli *cli);
int cli_env_build(Cli *cli);
int cli_env_ls(Cli *cli);
int cli_env_show(Cli *cli);
int cli_env_shell(Cli *cli);
int cli_env_rm(Cli *cli);
int cli_image_import(Cli *cli);
int cli_image_pull(Cli *cli);
int cli_image_ls(Cli *cli);
int cli_image_show(Cli *cli);
int cli_image_rm(Cli *cli);
int cli_image_du(Cli *cli);
int cli_image_gc(Cli *cli);
int cli_image_verify(Cli *cli);
int cli_image_erofs(Cli *cli);
int cli_parse(Cli *cli);
int cli_policy_init(Cli *cli);
int cli_policy_inspect(Cli *cli);
int cli_policy_verify(Cli *cli);
int cli_policy_quantize(Cli *cli);
int cli_policy_flops(Cli *cli);
int cli_policy_bench(Cli *cli);
int cli_policy_serve(Cli *cli);
int cli_policy_sample(Cli *cli);
int cli_policy_chat(Cli *cli);
int cli_policy_tokenize(Cli *cli);
int cli_policy_detokenize(Cli *cli);
int cli_policy_train_tokenizer(Cli *cli);
int cli_train(Cli *cli);
int cli_train_ls(Cli *cli);
int cli_train_show(Cli *cli);
int cli_train_watch(Cli *cli);
int cli_train_compare(Cli *cli);
int cli_train_episodes(Cli *cli);
int cli_train_explain(Cli *cli);
int cli_train_plan(Cli *cli);
int cli_train_retry(Cli *cli);
int cli_train_keys(Cli *cli);
int cli_train_losses(Cli *cli);
int cli_train_dialects(Cli *cli);
int cli_train_kinds(Cli *cli);
int cli_task_new(Cli *cli);
int cli_task_generate(Cli *cli);
int cli_demo(Cli *cli);
