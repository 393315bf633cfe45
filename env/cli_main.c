/*
 * assay: the table of commands, and from argv to one of them.
 *
 * 1. Every command and option is a row; help, man page and suggestions are made from the rows.
 * 2. Options of the daemon (env/config.c) are accepted by every command.
 */
#include "env/cli.h"
#include "env/backend.h"
#include "env/policy_runtime.h"

#include "sandbox/box_tool.h"

#include "base/error.h"
#include "base/json.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
const CliOption cli_common[] = {
    {"json", NULL, "print JSON: one object, or one per line for lists"},
    {"quiet", NULL, "no talk on standard error"},
    {"verbose", NULL, "more talk on standard error"},
    {"header", NULL, "column names also when the output is a pipe"},
    {"color", "WHEN", "auto, always or never (also NO_COLOR)"},
    {"help", NULL, "show this help"},
    {NULL, NULL, NULL},
};

static const CliOption status_options[] = {
    {"socket-path", NULL, "print only the path of the socket"}, {NULL, NULL, NULL}};
static const CliOption import_options[] = {
    {"dataset", "NAME", "the dataset's name (else the file's)"},
    {"spec-map", "FILE", "table for SWE-bench 4.1 rows (docs/formats.md)"},
    {"replace", NULL, "let rows replace stored tasks of the same name"},
    {"on-error", "HOW", "skip (default) or stop: store nothing when a row is bad"},
    {NULL, NULL, NULL}};
static const CliOption task_ls_options[] = {
    {"dataset", "NAME", "only this dataset"}, {"repo", "NAME", "only this repository"},
    {"limit", "N", "at most N"}, {"after", "ID", "after this id"}, {NULL, NULL, NULL}};
static const CliOption task_show_options[] = {
    {"patch", NULL, "print the reference patch"}, {"tests", NULL, "print the test lists"},
    {NULL, NULL, NULL}};
static const CliOption validate_options[] = {{"detach", NULL, "do not wait"}, {NULL, NULL, NULL}};
static const CliOption grade_options[] = {
    {"gold", NULL, "grade the reference patch"}, {"empty", NULL, "grade the empty patch"},
    {"mode", "M", "strict (default), compat-4.1 or compat-5"}, {"cache", "HOW",
     "use, refresh, only or off"},
    {"environments", "FILE", "environments for this grade"}, {"repos", "DIR", "repository mirrors"},
    {"dataset", "NAME", "the task's dataset"}, {"detach", NULL, "print the id and return"},
    {"fail-on", "VERDICT", "exit 7 when the verdict is this one"}, {NULL, NULL, NULL}};
static const CliOption sweep_run_options[] = {
    {"dataset", "NAME", "the tasks' dataset"}, {"name", "NAME", "a name for the sweep"},
    {"mode", "M", "strict (default), compat-4.1 or compat-5"}, {"cache", "HOW",
     "use, refresh, only or off"},
    {"environments", "FILE", "environments for this sweep"}, {"repos", "DIR", "repository mirrors"},
    {"model", "NAME", "the model's name where a line has none"}, {"detach", NULL,
     "print the id and return"},
    {"fail-under", "R", "exit 7 when less than this share is resolved"}, {NULL, NULL, NULL}};
static const CliOption list_options[] = {
    {"limit", "N", "at most N"}, {"after", "ID", "after this id"}, {NULL, NULL, NULL}};
static const CliOption generate_options[] = {
    {"seed", "S", "what the tasks are drawn from (default 0)"},
    {"count", "N", "so many (default 100)"},
    {"split", "S", "train (default), tune, tune-functions, heldout-bugs or heldout-functions"},
    {"families", "A,B", "only these functions, or: c, python; --imitation: idioms"},
    {"out", "FILE", "write the rows there (else: standard output)"},
    {"canary", NULL, "tasks that cannot be solved: rewards for them are an alarm"},
    {"imitation", NULL, "also functions and bugs without tests: for warm-up, not for rewards"},
    {"verify", NULL, "see each one fail, and pass when fixed, in boxes"}, {NULL, NULL, NULL}};
static const CliOption results_options[] = {
    {"verdict", "V", "only this verdict"}, {"follow", NULL,
     "wait for what is not finished"}, {NULL, NULL, NULL}};
static const CliOption report_options[] = {
    {"output", "FILE", "write it there"}, {NULL, NULL, NULL}};
static const CliOption diff_options[] = {
    {"fail-on-broken", NULL, "exit 7 when a resolved one is no longer"}, {NULL, NULL, NULL}};
static const CliOption logs_options[] = {
    {"tail", "N", "only the last N lines"}, {"file", "NAME",
     "another kept file: report.json, eval.sh ..."},
    {"grep", "TEXT", "only lines with this text"}, {NULL, NULL, NULL}};
static const CliOption watch_options[] = {
    {"fail-under", "R", "exit 7 when less than this share is resolved"}, {NULL, NULL, NULL}};
static const CliOption eval_options[] = {
    {"dataset", "FILE", "task rows, or a directory of tasks"},
    {"predictions", "FILE", "predictions, or the word gold or empty"},
    {"mode", "M", "strict (default), compat-4.1 or compat-5"},
    {"spec-map", "FILE", "table for SWE-bench 4.1 rows (docs/formats.md)"},
    {"model", "NAME", "the model's name where a line has none"},
    {"run-id", "ID", "names the run in the log tree (default assay)"},
    {"instances", "A,B", "only these"}, {"out", "DIR",
     "write SWE-bench's log tree and report there"},
    {"cache", "HOW", "use, refresh, only or off"},
    {"fail-under", "R", "exit 7 when less than this share is resolved"}, {NULL, NULL, NULL}};
static const CliOption env_options[] = {
    {"dataset", "FILE", "where the task's row is"},
    {"spec-map", "FILE", "table for SWE-bench 4.1 rows (docs/formats.md)"}, {NULL, NULL, NULL}};
static const CliOption shell_options[] = {
    {"dataset", "FILE", "where the task's row is"},
    {"spec-map", "FILE", "table for SWE-bench 4.1 rows (docs/formats.md)"},
    {"diff", "FILE", "afterwards, what was changed, as a patch"}, {NULL, NULL, NULL}};
static const CliOption episode_run_options[] = {
    {"dataset", "FILE", "where the task's row is"},
    {"script", "FILE", "lines of {\"tool\": ..., \"arguments\": {...}}"},
    {"seed", "S", "what is recorded as its seed (default 0)"},
    {"record", "FILE", "write the record there"}, {NULL, NULL, NULL}};
static const CliOption episode_replay_options[] = {
    {"dataset", "FILE", "where the task's row is"},
    {"record", "FILE", "a record as episode run or episode steps writes it"},
    {NULL, NULL, NULL}};
static const CliOption episode_open_options[] = {
    {"count", "N", "so many, with seeds one after another (default 1)"},
    {"seed", "S", "what is recorded as its seed (default 0)"},
    {"turns", "N", "most steps (default 50)"},
    {"bad", "N", "most actions in a row that are none (default 3)"},
    {"text-bytes", "N", "of an observation (default 10000)"},
    {"command-s", "N", "seconds of one command (default 60)"},
    {"marks", "N", "states in a box that are kept after steps (default 0)"}, {NULL, NULL, NULL}};
static const CliOption episode_step_options[] = {
    {"step", "N", "its number (else the next)"},
    {"request-id", "ID", "what tells a repeat from another request"}, {NULL, NULL, NULL}};
static const CliOption episode_exec_options[] = {
    {"cwd", "DIR", "where (default /testbed)"}, {"timeout-s", "N", "seconds"}, {NULL, NULL, NULL}};
static const CliOption episode_fork_options[] = {
    {"count", "N", "so many (default 1)"}, {"at-step", "N", "as it was after that step (else now)"},
    {NULL, NULL, NULL}};
static const CliOption episode_submit_options[] = {
    {"end", "WORD", "why it ends: submitted (default), token_limit, time_limit, repetition, ..."},
    {"detach", NULL, "do not wait for the grade"}, {NULL, NULL, NULL}};
static const CliOption episode_ls_options[] = {
    {"open", NULL, "only open ones"}, {"ended", NULL, "only ended ones"}, {"task", "ID", "only of this task"},
    {"limit", "N", "at most N"}, {"after", "ID", "after this id"}, {NULL, NULL, NULL}};
static const CliOption gc_options[] = {
    {"older-days", "N", "not used for so many days (default 30)"}, {NULL, NULL, NULL}};
static const CliOption parse_options[] = {
    {"row", "FILE", "the task's row, one JSON object"}, {"log", "FILE", "what the tests printed"},
    {"mode", "M", "strict (default), compat-4.1 or compat-5"}, {NULL, NULL, NULL}};
static const CliOption image_options[] = {
    {"platform", "P", "os/architecture[/variant] (else this machine's)"}, {NULL, NULL, NULL}};
static const CliOption pull_options[] = {
    {"platform", "P", "os/architecture[/variant] (else this machine's)"},
    {"auth", "FILE", "credentials: a docker config.json (else ~/.docker/config.json)"},
    {"insecure", NULL, "plain http (loopback addresses need no permission)"}, {NULL, NULL, NULL}};
static const CliOption policy_init_options[] = {
    {"preset", "NAME", "tiny, t14, t57, s2b or m1"}, {"config", "FILE", "a config.json instead"},
    {"seed", "S", "what the weights are drawn from (default 0)"},
    {"dtype", "T", "bf16 (default), f16, f32 or f64"},
    {"out", "DIR", "where config.json and the tensors go"}, {NULL, NULL, NULL}};
static const CliOption policy_quantize_options[] = {
    {"weights", "T", "int8 (experts), fp8 (attention too) or int4 (experts; attention fp8)"},
    {"out", "DIR", "where the new checkpoint goes"}, {NULL, NULL, NULL}};
static const CliOption policy_serve_options[] = {
    {"model", "DIR", "config.json, tensors and tokenizer"},
    {"listen", "WHERE", "PATH of a unix socket, for this user only, or ADDRESS:PORT"},
    {"token-file", "FILE", "what callers on TCP must send as Authorization: Bearer"},
    {"name", "NAME", "of the model (else its directory's)"},
    {"style", "S", "chat template: official (default) or vllm"},
    {"ping-s", "N", "seconds of silence on a stream before a comment (default 15)"},
    POLICY_RUNTIME_OPTIONS, {NULL, NULL, NULL}};
static const CliOption policy_sample_options[] = {
    {"prompt", "TEXT", "what the samples go on with"},
    {"prompt-file", "FILE", "the same from a file, - for standard input"},
    {"ids", "LIST", "the same as token ids: 1,2,3"},
    {"n", "N", "samples (default 1); sample i draws with the seed plus i"},
    {"stop", "TEXT", "ends a sample, and is not shown"},
    {"logprobs", NULL, "with --json: of each token, as the model has it and as it was drawn"},
    POLICY_SAMPLING_OPTIONS, POLICY_RUNTIME_OPTIONS, {NULL, NULL, NULL}};
static const CliOption policy_chat_options[] = {
    {"system", "TEXT", "what the conversation begins with"},
    {"reasoning", "HOW", "dim (default) or hidden"},
    {"style", "S", "chat template: official (default) or vllm"},
    POLICY_SAMPLING_OPTIONS, POLICY_RUNTIME_OPTIONS, {NULL, NULL, NULL}};
static const CliOption policy_inspect_options[] = {
    {"context", "N", "tokens of each sequence (default 4096)"},
    {"batch", "N", "sequences at once (default 1)"},
    {"tp", "N", "ranks that share heads, vocabulary and experts"},
    {"ep", "N", "ranks with other experts and other rows"},
    {"dp", "N", "ranks with other sequences"},
    {"sp", "N", "ranks with other rows of the same sequences"},
    {"memory", "GB", "of each rank: say how many sequences fit"}, {NULL, NULL, NULL}};
static const CliOption policy_bench_options[] = {
    {"preset", "NAME", "tiny, t14 (default), t57 or s2b"},
    {"weights", "T", "bf16 (default), f32, int8, fp8 or int4"},
    {"rounds", "N", "each figure is the median of so many (default 9)"},
    {"context", "N", "decode at contexts up to this (default 1048576)"}, {NULL, NULL, NULL}};
static const CliOption train_options[] = {
    {"set", "KEY=VALUE...", "set a key of the configuration; may be repeated"},
    {NULL, NULL, NULL}};
static const CliOption train_plan_options[] = {
    {"set", "KEY=VALUE...", "set a key of the configuration; may be repeated"},
    {"ranks", "N", "as many under mpirun (default 1)"},
    {"here", "N", "of them on this machine (default all)"}, {NULL, NULL, NULL}};
static const CliOption train_episodes_options[] = {
    {"update", "N", "of this update (else the last that was kept)"},
    {"pick", "HOW", "only the best, worst or longest"}, {NULL, NULL, NULL}};
static const CliOption train_explain_options[] = {
    {"update", "N", "rollouts of this update (else the last that were kept)"},
    {"weights", "N", "under the weights of this checkpoint (else the last)"},
    {"group", "G", "a group of the batch, from 0"},
    {"rollout", "R", "a rollout of the group, from 0 (else the best of all)"}, {NULL, NULL, NULL}};
static const CliOption train_show_options[] = {
    {"metric", "TEXT", "only metrics with this in their names"}, {NULL, NULL, NULL}};
static const CliOption tokenize_options[] = {
    {"tokenizer", "DIR", "where tokenizer.json or merges.txt is"},
    {"specials", NULL, "let the text of special tokens stand for them"},
    {"chat", NULL, "the file is {\"messages\": [...], \"tools\": [...]}: the ids of a prompt"},
    {"style", "NAME", "of the chat template: official (default) or vllm"},
    {"document-start", "ID", "what a chat begins with: an id, none or text"}, {NULL, NULL, NULL}};
static const CliOption detokenize_options[] = {
    {"tokenizer", "DIR", "where tokenizer.json or merges.txt is"},
    {"specials", NULL, "print special tokens as well"}, {NULL, NULL, NULL}};
static const CliOption train_tokenizer_options[] = {
    {"vocab", "N", "ids in all: 256 bytes, 4 special tokens, merges"},
    {"out", "DIR", "where tokenizer.json and merges.txt go"}, {NULL, NULL, NULL}};
static const CliOption help_options[] = {
    {"man", NULL, "print the man page text"}, {NULL, NULL, NULL}};

const CliCommand cli_commands[] = {
    {"up", "", "start a daemon for your user", cli_up, NULL, 0, 0},
    {"down", "", "stop it; running grades are finished or requeued", cli_down, NULL, 0, 0},
    {"status", "", "one-screen overview of the daemon", cli_status, status_options, 0, 0},
    {"doctor", "", "check this machine", cli_doctor, NULL, 0, 0},
    {"eval", "",
     "grade predictions against a dataset, in one command", cli_eval, eval_options, 0, 0},
    {"task import", "FILE", "store task rows", cli_task_import, import_options, 1, 1},
    {"task ls", "", "list tasks", cli_task_ls, task_ls_options, 0, 0},
    {"task show", "TASK", "show one task", cli_task_show, task_show_options, 1, 1},
    {"task validate", "TASK...",
     "check that gold resolves and empty does not", cli_task_validate, validate_options, 1, 1000},
    {"task new", "DIR", "write a task directory to fill in", cli_task_new, NULL, 1, 1},
    {"task generate", "KIND", "make tasks from templates; assay train kinds lists kinds",
     cli_task_generate, generate_options, 1, 1},
    {"grade", "TASK [PATCH|-]", "grade one patch", cli_grade, grade_options, 1, 2},
    {"sweep run", "PREDICTIONS", "grade many predictions", cli_sweep_run, sweep_run_options, 1, 1},
    {"sweep ls", "", "list sweeps", cli_sweep_ls, list_options, 0, 0},
    {"sweep show", "SWEEP", "show one sweep", cli_show, NULL, 1, 1},
    {"sweep watch", "SWEEP", "follow a sweep to its end", cli_watch, watch_options, 1, 1},
    {"sweep results", "SWEEP",
     "its grades, in finish order", cli_sweep_results, results_options, 1, 1},
    {"sweep report", "SWEEP",
     "its report in SWE-bench's form", cli_sweep_report, report_options, 1, 1},
    {"sweep diff", "SWEEP SWEEP",
     "what became better and worse", cli_sweep_diff, diff_options, 2, 2},
    {"show", "ID", "show a task, grade or sweep", cli_show, NULL, 1, 1},
    {"watch", "ID", "follow a grade or sweep to its end", cli_watch, watch_options, 1, 1},
    {"logs", "GRADE", "what the tests printed", cli_logs, logs_options, 1, 1},
    {"cancel", "ID...", "give grades or sweeps up", cli_cancel, NULL, 1, 1000},
    {"parse", "", "grade a saved log: no box, no daemon", cli_parse, parse_options, 0, 0},
    {"env build", "INSTANCE", "build the environment of a task", cli_env_build, env_options, 1, 1},
    {"env ls", "", "list environment layers", cli_env_ls, NULL, 0, 0},
    {"env show", "DIGEST", "show layers by the head of their digest", cli_env_show, NULL, 1, 1},
    {"env shell", "INSTANCE",
     "a shell in the environment of a task", cli_env_shell, shell_options, 1, 1},
    {"env rm", "DIGEST", "remove layers", cli_env_rm, NULL, 1, 1},
    {"episode open", "TASK", "open episodes; prints their ids", cli_episode_open,
     episode_open_options, 1, 1},
    {"episode step", "EPISODE TOOL [JSON]", "call a tool; prints what the policy would see",
     cli_episode_step, episode_step_options, 2, 3},
    {"episode exec", "EPISODE COMMAND...", "run a command beside the policy",
     cli_episode_exec, episode_exec_options, 2, 1000},
    {"episode diff", "EPISODE", "what was changed, as a patch", cli_episode_diff, NULL, 1, 1},
    {"episode fork", "EPISODE", "episodes with the same past; prints their ids",
     cli_episode_fork, episode_fork_options, 1, 1},
    {"episode rollback", "EPISODE STEP", "back to what it was after that step",
     cli_episode_rollback, NULL, 2, 2},
    {"episode submit", "EPISODE", "end it and grade what it left",
     cli_episode_submit, episode_submit_options, 1, 1},
    {"episode show", "EPISODE", "show an episode", cli_episode_show, NULL, 1, 1},
    {"episode steps", "EPISODE", "its record, for episode replay", cli_episode_steps, NULL, 1, 1},
    {"episode ls", "", "list episodes, newest first", cli_episode_ls, episode_ls_options, 0, 0},
    {"episode close", "EPISODE", "give an episode up", cli_episode_close, NULL, 1, 1},
    {"episode run", "INSTANCE", "an episode of calls read from a file, and its verdict",
     cli_episode_run, episode_run_options, 1, 1},
    {"episode replay", "INSTANCE", "do again what a record says, and compare",
     cli_episode_replay, episode_replay_options, 1, 1},
    {"episode tools", "", "the tools of episodes, declared in OpenAI's form",
     cli_episode_tools, NULL, 0, 0},
    {"image pull", "REF", "bring an image from a registry", cli_image_pull, pull_options, 1, 1},
    {"image import", "FILE [NAME]", "an OCI layout, docker archive, or tar of a root file system",
     cli_image_import, image_options, 1, 2},
    {"image ls", "", "list images", cli_image_ls, NULL, 0, 0},
    {"image show", "NAME", "show an image and its configuration", cli_image_show, NULL, 1, 1},
    {"image rm", "NAME...",
     "forget images, and remove layers nothing else holds", cli_image_rm, NULL, 1, 1000},
    {"image du", "", "what the layers of each image take", cli_image_du, NULL, 0, 0},
    {"image gc", "", "remove layers that nothing holds", cli_image_gc, NULL, 0, 0},
    {"image verify", "NAME",
     "compare an image's layers with their digests", cli_image_verify, NULL, 1, 1},
    {"image erofs", "NAME", "make one read-only file of an image's layers, for boxes on it",
     cli_image_erofs, NULL, 1, 1},
    {"policy init", "", "make a random model", cli_policy_init, policy_init_options, 0, 0},
    {"policy inspect", "DIR|CONFIG", "a model's sizes, parameters and memory",
     cli_policy_inspect, policy_inspect_options, 1, 1},
    {"policy verify", "DIR",
     "read every value of a checkpoint; print its digest", cli_policy_verify, NULL, 1, 1},
    {"policy quantize", "DIR", "the checkpoint with matrices of eight or four bits",
     cli_policy_quantize, policy_quantize_options, 1, 1},
    {"policy flops", "[DIR|CONFIG]",
     "FLOPs against length: the paper's figure and exact", cli_policy_flops, NULL, 0, 1},
    {"policy bench", "", "speeds as shares of what this machine can do", cli_policy_bench,
     policy_bench_options, 0, 0},
    {"policy serve", "", "answer requests in the shapes of OpenAI's API", cli_policy_serve,
     policy_serve_options, 0, 0},
    {"policy sample", "DIR", "draw samples from a model", cli_policy_sample,
     policy_sample_options, 1, 1},
    {"policy chat", "DIR", "talk with a model; /reset begins anew", cli_policy_chat,
     policy_chat_options, 1, 1},
    {"train", "RUN.conf", "train a policy by rewards of tests", cli_train, train_options, 1, 1},
    {"train ls", "[DIR]", "list the runs below a directory", cli_train_ls, NULL, 0, 1},
    {"train show", "DIR", "the metrics of a run, as curves", cli_train_show, train_show_options, 1,
     1},
    {"train watch", "DIR", "a run under way, live, with curves", cli_train_watch, NULL, 1, 1},
    {"train compare", "DIR DIR", "where two runs differ: keys and last metrics", cli_train_compare,
     NULL, 2, 2},
    {"train episodes", "DIR", "the best, worst and longest episodes of a batch",
     cli_train_episodes, train_episodes_options, 1, 1},
    {"train explain", "DIR", "an episode token by token: ratio, weight, coefficient, why",
     cli_train_explain, train_explain_options, 1, 1},
    {"train plan", "RUN.conf", "the memory that a run will want, part by part", cli_train_plan,
     train_plan_options, 1, 1},
    {"train retry", "DIR/failed/N", "an update that failed, made again from what was kept",
     cli_train_retry, NULL, 1, 1},
    {"train keys", "", "what a RUN.conf may say", cli_train_keys, NULL, 0, 0},
    {"train dialects", "", "how tasks are put to a policy", cli_train_dialects, NULL, 0, 0},
    {"train kinds", "", "kinds of tasks: what is answered, what is rewarded", cli_train_kinds, NULL,
     0, 0},
    {"train losses", "", "the losses, and what each makes of a ratio", cli_train_losses, NULL, 0, 0},
    {"policy tokenize", "[FILE|-]", "the token ids of a text or a chat", cli_policy_tokenize,
     tokenize_options, 0, 1},
    {"policy detokenize", "[FILE|-]",
     "the text of token ids", cli_policy_detokenize, detokenize_options, 0, 1},
    {"policy train-tokenizer", "FILE...", "make a small vocabulary from texts",
     cli_policy_train_tokenizer, train_tokenizer_options, 1, 100000},
    {"repo ls", "", "list cached repositories", cli_repo_ls, NULL, 0, 0},
    {"repo add", "OWNER/NAME URL",
     "cache a repository: https, or a local path", cli_repo_add, NULL, 2, 2},
    {"repo fetch", "OWNER/NAME", "fetch it again", cli_repo_fetch, NULL, 1, 1},
    {"repo gc", "", "remove checkouts nobody used for long", cli_repo_gc, gc_options, 0, 0},
    {"demo", "", "grade the example tasks through the socket", cli_demo, NULL, 0, 0},
    {"help", "[TOPIC...]", "help on a command, or: exit-codes", cli_help, help_options, 0, 2},
    {"version", "", "version of this program", cli_version, NULL, 0, 0},
    {NULL, NULL, NULL, NULL, NULL, 0, 0},
};
/* clang-format on */

static const char exit_codes[] =
    "0    done (an unresolved patch is still 0)\n"
    "1    at least one item could not be processed\n"
    "2    bad usage or bad input file\n"
    "3    not found\n"
    "4    not allowed\n"
    "5    the daemon cannot be reached or is not ready\n"
    "6    quota, queue or disk said no\n"
    "7    a gate you asked for is not met (--fail-under, --fail-on, doctor)\n"
    "8    a time limit ran out while waiting; the work goes on\n"
    "130  interrupted\n";

const char *cli_arg(Cli *cli, guint i)
{
    return i < cli->args->len ? g_ptr_array_index(cli->args, i) : NULL;
}

const char *cli_option(Cli *cli, const char *name)
{
    return g_hash_table_lookup(cli->options, name);
}

gboolean cli_number(Cli *cli, const char *name, guint64 from, guint64 to, guint64 *number,
                    GError **error)
{
    const char *text = cli_option(cli, name);

    return text == NULL || g_ascii_string_to_unsigned(text, 10, from, to, number, NULL) ||
           error_set(error, ASSAY_ERROR_INPUT,
                     "--%s: %s is not a whole number from %" G_GUINT64_FORMAT
                     " to %" G_GUINT64_FORMAT,
                     name, text, from, to);
}

gboolean cli_has(Cli *cli, const char *name)
{
    return g_hash_table_contains(cli->options, name);
}

static const CliCommand *command_find(const char *name)
{
    for (const CliCommand *command = cli_commands; command->name != NULL; command++) {
        if (strcmp(command->name, name) == 0)
            return command;
    }
    return NULL;
}

static const CliOption *option_find(const CliOption *options, const char *name)
{
    for (; options != NULL && options->name != NULL; options++) {
        if (strcmp(options->name, name) == 0)
            return options;
    }
    return NULL;
}

static void print_options(const CliOption *options)
{
    for (; options != NULL && options->name != NULL; options++) {
        g_autofree char *left =
            g_strdup_printf("--%s%s%s", options->name, options->arg != NULL ? " " : "",
                            options->arg != NULL ? options->arg : "");
        printf("  %-24s %s\n", left, options->help);
    }
}

static void print_command_help(const CliCommand *command)
{
    printf("usage: assay %s%s%s [OPTION...]\n\n%s\n\n", command->name,
           command->args[0] != '\0' ? " " : "", command->args, command->summary);
    print_options(command->options);
    print_options(cli_common);
    g_autofree char *config = config_help();
    printf("\nAlso, for the daemon it talks to or starts:\n%s", config);
}

static void print_overview(void)
{
    printf("assay %s: environment service for software-engineering RL\n\n", ASSAY_VERSION);
    for (const CliCommand *command = cli_commands; command->name != NULL; command++) {
        g_autofree char *left = g_strdup_printf("%s %s", command->name, command->args);
        printf("  %-28s %s\n", left, command->summary);
    }
    printf("\nMore: assay help COMMAND, assay help exit-codes\n");
}

/* Text of a man page section in troff, lines that start with a dot protected. */
static void print_man(void)
{
    printf(".TH ASSAY 1 \"\" \"assay %s\"\n.SH NAME\nassay \\- grade patches against "
           "software-engineering tasks\n.SH SYNOPSIS\n.B assay\n.I COMMAND\n[OPTION...]\n"
           ".SH COMMANDS\n",
           ASSAY_VERSION);
    for (const CliCommand *command = cli_commands; command->name != NULL; command++) {
        printf(".TP\n.B %s %s\n%s\n", command->name, command->args, command->summary);
        for (const CliOption *o = command->options; o != NULL && o->name != NULL; o++)
            printf(".RS\n.TP\n.B \\-\\-%s %s\n%s\n.RE\n", o->name, o->arg != NULL ? o->arg : "",
                   o->help);
    }
    printf(".SH COMMON OPTIONS\n");
    for (const CliOption *o = cli_common; o->name != NULL; o++)
        printf(".TP\n.B \\-\\-%s %s\n%s\n", o->name, o->arg != NULL ? o->arg : "", o->help);
    printf(".SH CONFIGURATION\nFlags, ASSAY_* variables, and keys of the group [assayd] of "
           "$XDG_CONFIG_HOME/assay/assayd.conf:\n");
    for (int i = 0; i < CONFIG_KEY_COUNT; i++)
        printf(".TP\n.B %s\n%s\n", config_infos[i].name, config_infos[i].help);
    printf(".SH EXIT STATUS\n.nf\n%s.fi\n", exit_codes);
}

int cli_help(Cli *cli)
{
    if (cli_has(cli, "man")) {
        print_man();
        return CLI_OK;
    }
    if (cli->args->len == 0) {
        print_overview();
        return CLI_OK;
    }
    if (strcmp(cli_arg(cli, 0), "exit-codes") == 0) {
        fputs(exit_codes, stdout);
        return CLI_OK;
    }
    g_ptr_array_add(cli->args, NULL);
    g_autofree char *name = g_strjoinv(" ", (char **)cli->args->pdata);
    const CliCommand *command = command_find(name);
    if (command != NULL) {
        print_command_help(command);
        return CLI_OK;
    }
    gboolean any = FALSE;
    for (command = cli_commands; command->name != NULL; command++) {
        gsize len = strlen(name);
        if (strncmp(command->name, name, len) == 0 && command->name[len] == ' ') {
            printf("  %-20s %-16s %s\n", command->name, command->args, command->summary);
            any = TRUE;
        }
    }
    return any ? CLI_OK : cli_usage(cli, "there is no help on '%s'", name);
}

/* Takes the one or two words of a command off the front of args. */
static const CliCommand *take_command(Cli *cli)
{
    if (cli->args->len >= 2) {
        g_autofree char *two = g_strdup_printf("%s %s", cli_arg(cli, 0), cli_arg(cli, 1));
        const CliCommand *command = command_find(two);
        if (command != NULL) {
            g_ptr_array_remove_range(cli->args, 0, 2);
            return command;
        }
    }
    const CliCommand *command = command_find(cli_arg(cli, 0));
    if (command != NULL)
        g_ptr_array_remove_index(cli->args, 0);
    return command;
}

static int unknown_command(Cli *cli)
{
    const char *second = cli_arg(cli, 1);
    g_autofree char *name =
        g_strconcat(cli_arg(cli, 0), second != NULL ? " " : "", second != NULL ? second : "", NULL);
    const char *names[96] = {NULL};
    for (guint i = 0; cli_commands[i].name != NULL && i + 1 < G_N_ELEMENTS(names); i++)
        names[i] = cli_commands[i].name;
    const char *near = word_nearest(name, names);
    if (near == NULL)
        near = word_nearest(cli_arg(cli, 0), names);
    fprintf(stderr, "assay: there is no '%s'.%s%s%s\n  try: assay help\n", name,
            near != NULL ? "  Did you mean '" : "", near != NULL ? near : "",
            near != NULL ? "'?" : "");
    return CLI_USAGE;
}

static int unknown_option(Cli *cli, const char *name)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (const CliOption *o = cli->command->options; o != NULL && o->name != NULL; o++)
        g_ptr_array_add(names, (gpointer)(gsize)o->name);
    for (const CliOption *o = cli_common; o->name != NULL; o++)
        g_ptr_array_add(names, (gpointer)(gsize)o->name);
    g_ptr_array_add(names, NULL);
    const char *near = word_nearest(name, (const char *const *)names->pdata);
    return cli_usage(cli, "%s has no option --%s%s%s%s", cli->command->name, name,
                     near != NULL ? "; did you mean --" : "", near != NULL ? near : "",
                     near != NULL ? "?" : "");
}

/* An option whose argument ends in "..." may come again: its values are lines. */
static void option_keep(Cli *cli, const CliOption *option, const char *value)
{
    const char *before = cli_option(cli, option->name);
    gboolean again = before != NULL && g_str_has_suffix(option->arg, "...");
    g_hash_table_replace(cli->options, g_strdup(option->name),
                         again ? g_strconcat(before, "\n", value, NULL) : g_strdup(value));
}

/* Splits words into options and arguments; 0 is good. The command's words come first. */
static int parse_words(Cli *cli, int argc, char **argv)
{
    for (int i = 1; i < argc && cli->args->len < 2 && argv[i][0] != '-'; i++)
        g_ptr_array_add(cli->args, g_strdup(argv[i]));
    if (cli->args->len == 0)
        return CLI_OK;
    guint n_words = cli->args->len;
    cli->command = take_command(cli);
    if (cli->command == NULL)
        return unknown_command(cli);
    for (int i = 1 + (int)n_words; i < argc; i++) {
        if (!g_str_has_prefix(argv[i], "--") || strcmp(argv[i], "--") == 0) {
            g_ptr_array_add(cli->args, g_strdup(argv[i]));
            continue;
        }
        g_autofree char *name = g_strdup(argv[i] + 2);
        char *value = strchr(name, '=');
        if (value != NULL)
            *value++ = '\0';
        const CliOption *option = option_find(cli->command->options, name);
        if (option == NULL)
            option = option_find(cli_common, name);
        if (option == NULL)
            return unknown_option(cli, name);
        if (option->arg == NULL && value != NULL)
            return cli_usage(cli, "--%s takes no value", name);
        if (option->arg != NULL && value == NULL && ++i >= argc)
            return cli_usage(cli, "--%s needs %s", name, option->arg);
        if (option->arg != NULL && value == NULL)
            value = argv[i];
        option_keep(cli, option, value != NULL ? value : "");
    }
    return CLI_OK;
}

static void set_manners(Cli *cli)
{
    const char *when = cli_option(cli, "color");
    cli->json = cli_has(cli, "json");
    cli->quiet = cli_has(cli, "quiet");
    cli->verbose = cli_has(cli, "verbose");
    cli->header = cli_has(cli, "header");
    gboolean dumb = g_strcmp0(g_getenv("TERM"), "dumb") == 0;
    cli->out_tty = isatty(STDOUT_FILENO) && !dumb;
    cli->err_tty = isatty(STDERR_FILENO) && !dumb;
    cli->colour = cli->out_tty && g_getenv("NO_COLOR") == NULL;
    if (when != NULL)
        cli->colour = strcmp(when, "always") == 0 || (cli->colour && strcmp(when, "never") != 0);
}

static int run_command(Cli *cli)
{
    if (cli->command == NULL) {
        print_overview();
        return CLI_OK;
    }
    if (cli_has(cli, "help")) {
        print_command_help(cli->command);
        return CLI_OK;
    }
    if (cli->args->len < cli->command->args_min || cli->args->len > cli->command->args_max)
        return cli_usage(cli, "%s takes %s", cli->command->name,
                         cli->command->args[0] != '\0' ? cli->command->args : "no arguments");
    GError *error = NULL;
    gboolean models = g_str_has_prefix(cli->command->name, "policy") ||
                      g_str_has_prefix(cli->command->name, "train");
    if (models && !backend_choose(&error))
        return cli_error(cli, error, "assay doctor");
    cli->client = client_new(config_text(cli->config, CONFIG_SOCKET));
    return cli->command->run(cli);
}

/* "eval --environments FILE": relative paths mean this directory, the daemon has another. */
static gboolean config_absolute(Config *config, GError **error)
{
    static const ConfigKey keys[] = {CONFIG_STATE, CONFIG_SOCKET, CONFIG_ENVIRONMENTS, CONFIG_REPOS,
                                     CONFIG_WORKER_PROGRAM};
    for (guint i = 0; i < G_N_ELEMENTS(keys); i++) {
        const char *value = config_text(config, keys[i]);
        if (value[0] == '\0' || value[0] == '/')
            continue;
        g_autofree char *absolute = cli_absolute(value);
        g_autofree char *origin = g_strdup(config_origin(config, keys[i]));
        if (!config_set(config, keys[i], absolute, origin, error))
            return FALSE;
    }
    return TRUE;
}

int main(int argc, char **argv)
{
    GError *error = NULL;
    Cli cli = {0};
    signal(SIGPIPE, SIG_DFL);
    if (argc > 1 && strcmp(argv[1], "box") == 0)
        return box_tool_main(argc - 1, argv + 1); /* has options of its own: assay box run --help */
    cli.options = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    cli.args = g_ptr_array_new_with_free_func(g_free);
    cli.config = config_load(&argc, &argv, &error);
    int status;
    if (cli.config == NULL || !config_absolute(cli.config, &error))
        status = cli_error(&cli, error, "assay help");
    else
        status = parse_words(&cli, argc, argv);
    if (status == CLI_OK) {
        set_manners(&cli);
        status = run_command(&cli);
    }
    client_free(cli.client);
    config_free(cli.config);
    g_ptr_array_unref(cli.args);
    g_hash_table_unref(cli.options);
    return status;
}
