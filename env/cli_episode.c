/*
 * assay episode run, replay, tools: episodes by hand.
 *
 * Invariant: with --json standard output is the record, and the verdict's line after it; without,
 * what the policy would have seen.
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "env/episode.h"
#include "env/verdict.h"
#include "tasks/dataset.h"

#include <string.h>

#define SLOT_EPISODE     1020 /* boxes of the command line; workers count from 0 */
#define SLOT_VERDICT     1022
#define RECORD_BYTES_MAX (256u << 20)

static EpisodeHost *host_new(Cli *cli)
{
    return episode_host_new(
        &(EpisodeHostOptions){.slot_first = SLOT_EPISODE,
                              .n_boxes = 1,
                              .allow_degraded = config_bool(cli->config, CONFIG_ALLOW_DEGRADED)});
}

typedef struct Script {
    Cli *cli;
    Episode *episode;
    GError *error;
} Script;

/* One line of the script. */
static gboolean call_line(json_t *row, guint line, const GError *why, gpointer data)
{
    static const char *const keys[] = {"tool", "arguments", NULL};
    Script *script = data;
    g_auto(EpisodeObservation) seen = {0};
    g_autoptr(GError) error = why != NULL ? g_error_copy(why) : NULL;
    const char *tool = row != NULL && json_only_keys(row, keys, &error)
                           ? json_want_str(row, "tool", &error)
                           : NULL;
    if (tool == NULL ||
        !episode_call(script->episode, tool, json_object_get(row, "arguments"), &seen, &error)) {
        g_propagate_prefixed_error(&script->error, g_steal_pointer(&error),
                                   "script, line %u: ", line);
        return FALSE;
    }
    if (!script->cli->json)
        printf("%s%s", seen.text, g_str_has_suffix(seen.text, "\n") ? "" : "\n");
    return seen.end == EPISODE_OPEN;
}

static void on_verdict(const Verdict *verdict, gpointer data)
{
    json_t *line = json_pack("{s:s, s:i, s:[]}", "verdict", verdict_state_str(verdict->state),
                             "calls", (int)verdict->n_calls, "passed");
    for (guint i = 0; i < verdict->n_calls; i++)
        if ((verdict->passed >> i & 1) != 0)
            json_array_append_new(json_object_get(line, "passed"), json_integer(i + 1));
    *(json_t **)data = line;
}

/* The verdict on what the episode left, where the task has calls. */
static gboolean say_verdict(Cli *cli, Episode *episode, const Task *task, GError **error)
{
    g_autoptr(json_t) line = NULL;
    const VerdictOptions how = {.slot_first = SLOT_VERDICT,
                                .n_boxes = 1,
                                .allow_degraded = config_bool(cli->config, CONFIG_ALLOW_DEGRADED)};
    if (json_object_get(task->json, "calls") == NULL)
        return TRUE;
    const json_t *changes = episode_changes(episode, error);
    g_autoptr(VerdictRunner) runner = changes != NULL ? verdict_runner_new(&how, error) : NULL;
    if (runner == NULL || !verdict_ask(runner, task, changes, on_verdict, &line, error))
        return FALSE;
    while (verdict_turn(runner, -1))
        ;
    if (cli->json)
        cli_print_json(line);
    else
        printf("%s\n", cli_json_str(line, "verdict"));
    return TRUE;
}

static gboolean run_script(Cli *cli, Episode *episode, const Task *task, GError **error)
{
    Script script = {.cli = cli, .episode = episode};
    if (!json_rows_read(cli_option(cli, "script"), call_line, &script, error))
        return FALSE;
    const char *path = cli_option(cli, "record");
    const GString *record = episode_record(episode);
    if (path != NULL && !file_write_atomic(path, record->str, record->len, error))
        return FALSE;
    if (cli->json)
        fputs(record->str, stdout);
    if (script.error == NULL)
        return say_verdict(cli, episode, task, error);
    g_propagate_error(error, script.error);
    return FALSE;
}

int cli_episode_run(Cli *cli)
{
    GError *error = NULL;
    EpisodeOptions options = {0};
    const char *seed = cli_option(cli, "seed");
    if (cli_option(cli, "script") == NULL)
        return cli_usage(cli, "episode run needs --script FILE");
    if (seed != NULL && !g_ascii_string_to_unsigned(seed, 10, 0, G_MAXUINT64, &options.seed, NULL))
        return cli_usage(cli, "--seed must be a whole number, not %s", seed);
    g_autoptr(Task) task = cli_dataset_task(cli, cli_arg(cli, 0), &error);
    g_autoptr(EpisodeHost) host = host_new(cli);
    g_autoptr(Episode) episode = task != NULL ? episode_open(host, task, &options, &error) : NULL;
    if (episode == NULL || !run_script(cli, episode, task, &error))
        return cli_error(cli, error, NULL);
    return CLI_OK;
}

int cli_episode_replay(Cli *cli)
{
    GError *error = NULL;
    const char *path = cli_option(cli, "record");
    if (path == NULL)
        return cli_usage(cli, "episode replay needs --record FILE");
    g_autoptr(Task) task = cli_dataset_task(cli, cli_arg(cli, 0), &error);
    g_autoptr(GBytes) record = task != NULL ? file_read(path, RECORD_BYTES_MAX, &error) : NULL;
    g_autoptr(EpisodeHost) host = host_new(cli);
    g_autoptr(Episode) episode = record != NULL
                                     ? episode_replay(host, task, g_bytes_get_data(record, NULL),
                                                      g_bytes_get_size(record), &error)
                                     : NULL;
    if (episode == NULL)
        return cli_error(cli, error, NULL);
    cli_say(cli, "%u steps, the same", episode_turns(episode));
    return CLI_OK;
}

int cli_episode_tools(Cli *cli)
{
    (void)cli;
    g_autoptr(json_t) tools = episode_tools();
    cli_print_json(tools);
    return CLI_OK;
}
