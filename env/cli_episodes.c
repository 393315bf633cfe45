/*
 * assay episode open, step, exec, diff, fork, rollback, submit, show, ls, close: episodes of the
 * daemon. A client like any other.
 *
 * Invariant: standard output is what the policy would see, an id, a diff, or with --json the
 * daemon's answer.
 *
 * Not here: episodes in this process (cli_episode.c).
 */
#include "env/cli.h"

#include "base/error.h"

#include <string.h>

#define WAIT_S 600 /* for a grade; then it goes on without us */

/* One call about the episode named first; `body` is taken, NULL: none. */
static json_t *call(Cli *cli, const char *method, const char *verb, json_t *body, GError **error)
{
    g_autoptr(json_t) owned = body;
    g_autofree char *text = owned != NULL ? json_print(owned) : NULL;
    g_autoptr(GBytes) bytes = text != NULL ? g_bytes_new(text, strlen(text)) : NULL;
    g_autofree char *id = g_uri_escape_string(cli_arg(cli, 0), NULL, FALSE);
    g_autofree char *target = g_strconcat("/v1/episodes/", id, verb, NULL);
    return client_json(cli->client, method, target, bytes, error);
}

/* A number of the command line into the body; FALSE: it is none. */
static gboolean add_number(json_t *body, const char *key, const char *text, GError **error)
{
    gint64 value = 0;
    if (text == NULL)
        return TRUE;
    if (!g_ascii_string_to_signed(text, 10, 0, G_MAXINT64, &value, NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "%s: expected a whole number, not %s", key,
                         text);
    json_object_set_new(body, key, json_integer(value));
    return TRUE;
}

static gboolean add_limits(Cli *cli, json_t *body, GError **error)
{
    static const char *const names[][2] = {{"turns", "turns"},
                                           {"bad", "bad"},
                                           {"text-bytes", "text_bytes"},
                                           {"command-s", "command_s"},
                                           {"marks", "marks"}};
    g_autoptr(json_t) limits = json_object();
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++)
        if (!add_number(limits, names[i][1], cli_option(cli, names[i][0]), error))
            return FALSE;
    if (json_object_size(limits) > 0)
        json_object_set(body, "limits", limits);
    return TRUE;
}

/* The ids of new episodes, one a line. */
static int print_new(Cli *cli, const json_t *reply)
{
    const json_t *data = json_object_get(reply, "data");
    if (cli->json)
        cli_print_json(reply);
    for (gsize i = 0; i < json_array_size(data) && !cli->json; i++)
        puts(cli_json_str(json_array_get(data, i), "id"));
    return CLI_OK;
}

int cli_episode_open(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(json_t) body = json_pack("{s:s}", "task", cli_arg(cli, 0));
    if (!add_number(body, "count", cli_option(cli, "count"), &error) ||
        !add_number(body, "seed", cli_option(cli, "seed"), &error) ||
        !add_limits(cli, body, &error))
        return cli_error(cli, error, NULL);
    g_autofree char *text = json_print(body);
    g_autoptr(GBytes) bytes = g_bytes_new(text, strlen(text));
    g_autoptr(json_t) reply = client_json(cli->client, "POST", "/v1/episodes", bytes, &error);
    return reply != NULL ? print_new(cli, reply) : cli_error(cli, error, "assay task ls");
}

/* The number of the next step, as the daemon knows it. */
static gboolean next_step(Cli *cli, json_t *body, GError **error)
{
    if (cli_has(cli, "step"))
        return add_number(body, "step", cli_option(cli, "step"), error);
    g_autoptr(json_t) episode = call(cli, "GET", "", NULL, error);
    if (episode == NULL)
        return FALSE;
    json_object_set_new(body, "step", json_integer(cli_json_int(episode, "steps") + 1));
    return TRUE;
}

static void print_text(const char *text)
{
    printf("%s%s", text, text[0] == '\0' || g_str_has_suffix(text, "\n") ? "" : "\n");
}

int cli_episode_step(Cli *cli)
{
    GError *error = NULL;
    const char *given = cli_arg(cli, 2) != NULL ? cli_arg(cli, 2) : "{}";
    g_autoptr(json_t) arguments = json_parse(given, strlen(given), &error);
    if (arguments == NULL) {
        g_prefix_error(&error, "arguments: ");
        return cli_error(cli, error, "assay episode tools");
    }
    g_autoptr(json_t) body =
        json_pack("{s:{s:s,s:O}}", "action", "tool", cli_arg(cli, 1), "arguments", arguments);
    if (cli_has(cli, "request-id"))
        json_object_set_new(body, "request_id", json_string(cli_option(cli, "request-id")));
    g_autoptr(json_t) reply =
        next_step(cli, body, &error) ? call(cli, "POST", "/step", json_incref(body), &error) : NULL;
    if (reply == NULL)
        return cli_error(cli, error, NULL);
    if (cli->json)
        cli_print_json(reply);
    else
        print_text(cli_json_str(json_object_get(reply, "observation"), "text"));
    if (json_is_true(json_object_get(reply, "done")))
        cli_say(cli, "the episode has ended: %s", cli_json_str(reply, "end"));
    return CLI_OK;
}

/* The command's output as it was, and its exit status. */
int cli_episode_exec(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(json_t) body = json_pack("{s:[]}", "argv");
    for (guint i = 1; i < cli->args->len; i++)
        json_array_append_new(json_object_get(body, "argv"), json_string(cli_arg(cli, i)));
    if (!add_number(body, "timeout_s", cli_option(cli, "timeout-s"), &error))
        return cli_error(cli, error, NULL);
    if (cli_has(cli, "cwd"))
        json_object_set_new(body, "cwd", json_string(cli_option(cli, "cwd")));
    g_autoptr(json_t) reply = call(cli, "POST", "/exec", json_incref(body), &error);
    if (reply == NULL)
        return cli_error(cli, error, NULL);
    gboolean ok = strcmp(cli_json_str(reply, "outcome"), "exited") == 0 &&
                  cli_json_int(reply, "exit_code") == 0;
    if (cli->json) {
        cli_print_json(reply);
        return CLI_OK;
    }
    fputs(cli_json_str(reply, "stdout"), stdout);
    fputs(cli_json_str(reply, "stderr"), stderr);
    if (!ok)
        cli_say(cli, "%s %lld", cli_json_str(reply, "outcome"),
                (long long)cli_json_int(reply, "exit_code"));
    return ok ? CLI_OK : CLI_FAILED;
}

/* An answer that is no JSON, as it is. */
static int print_raw(Cli *cli, const char *verb)
{
    GError *error = NULL;
    g_autofree char *id = g_uri_escape_string(cli_arg(cli, 0), NULL, FALSE);
    g_autofree char *target = g_strconcat("/v1/episodes/", id, verb, NULL);
    g_autoptr(GBytes) bytes = client_bytes(cli->client, "GET", target, &error);
    if (bytes == NULL)
        return cli_error(cli, error, NULL);
    fwrite(g_bytes_get_data(bytes, NULL), 1, g_bytes_get_size(bytes), stdout);
    return CLI_OK;
}

int cli_episode_diff(Cli *cli)
{
    return print_raw(cli, "/diff");
}

int cli_episode_steps(Cli *cli)
{
    return print_raw(cli, "/steps");
}

int cli_episode_fork(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(json_t) body = json_object();
    if (!add_number(body, "count", cli_option(cli, "count"), &error) ||
        !add_number(body, "at_step", cli_option(cli, "at-step"), &error))
        return cli_error(cli, error, NULL);
    g_autoptr(json_t) reply = call(cli, "POST", "/fork", json_incref(body), &error);
    return reply != NULL ? print_new(cli, reply) : cli_error(cli, error, NULL);
}

static int print_episode(Cli *cli, const json_t *episode)
{
    static const char *const fields[] = {"id",     "task",  "state",   "end", "seed",
                                         "parent", "grade", "verdict", "why", "finished_at"};
    if (cli->json) {
        cli_print_json(episode);
        return CLI_OK;
    }
    for (gsize i = 0; i < G_N_ELEMENTS(fields); i++)
        if (cli_json_str(episode, fields[i])[0] != '\0')
            printf("%-12s %s\n", fields[i], cli_json_str(episode, fields[i]));
    if (json_is_integer(json_object_get(episode, "steps")))
        printf("%-12s %lld\n", "steps", (long long)cli_json_int(episode, "steps"));
    g_autofree char *reward = cli_reward(episode);
    printf("%-12s %s%s\n", "reward", reward,
           json_is_true(json_object_get(episode, "mask")) ? ", masked" : "");
    return CLI_OK;
}

int cli_episode_rollback(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(json_t) body = json_object();
    if (!add_number(body, "to_step", cli_arg(cli, 1), &error))
        return cli_error(cli, error, NULL);
    g_autoptr(json_t) reply = call(cli, "POST", "/rollback", json_incref(body), &error);
    return reply != NULL ? print_episode(cli, reply) : cli_error(cli, error, NULL);
}

int cli_episode_submit(Cli *cli)
{
    GError *error = NULL;
    g_autofree char *verb =
        g_strdup_printf("/submit?wait_s=%d", cli_has(cli, "detach") ? 0 : WAIT_S);
    json_t *body = json_pack("{s:s*}", "end", cli_option(cli, "end"));
    g_autoptr(json_t) reply = call(cli, "POST", verb, body, &error);
    return reply != NULL ? print_episode(cli, reply) : cli_error(cli, error, NULL);
}

int cli_episode_show(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(json_t) reply = call(cli, "GET", "", NULL, &error);
    return reply != NULL ? print_episode(cli, reply) : cli_error(cli, error, "assay episode ls");
}

int cli_episode_ls(Cli *cli)
{
    static const char *const columns[] = {"episode", "task", "state", "end", "reward", NULL};
    static const char *const keys[] = {"task", "limit", "after"};
    GError *error = NULL;
    g_autoptr(GString) target = g_string_new("/v1/episodes?");
    if (cli_has(cli, "open") != cli_has(cli, "ended"))
        g_string_append_printf(target, "state=%s&", cli_has(cli, "open") ? "open" : "ended");
    for (gsize i = 0; i < G_N_ELEMENTS(keys); i++) {
        const char *given = cli_option(cli, keys[i]);
        g_autofree char *value = given != NULL ? g_uri_escape_string(given, NULL, FALSE) : NULL;
        if (value != NULL)
            g_string_append_printf(target, "%s=%s&", keys[i], value);
    }
    g_string_truncate(target, target->len - 1);
    g_autoptr(json_t) list = client_json(cli->client, "GET", target->str, NULL, &error);
    if (list == NULL)
        return cli_error(cli, error, NULL);
    const json_t *data = json_object_get(list, "data");
    CliTable *table = cli->json ? NULL : cli_table_new(cli, columns);
    for (gsize i = 0; i < json_array_size(data); i++) {
        const json_t *episode = json_array_get(data, i);
        g_autofree char *reward = cli_reward(episode);
        if (table == NULL)
            cli_print_json(episode);
        else
            cli_table_add(table, cli_json_str(episode, "id"), cli_json_str(episode, "task"),
                          cli_json_str(episode, "state"), cli_json_str(episode, "end"), reward,
                          NULL);
    }
    cli_list_end(cli, table, list);
    return CLI_OK;
}

int cli_episode_close(Cli *cli)
{
    GError *error = NULL;
    g_autofree char *id = g_uri_escape_string(cli_arg(cli, 0), NULL, FALSE);
    g_autofree char *target = g_strconcat("/v1/episodes/", id, NULL);
    g_autoptr(GBytes) bytes = client_bytes(cli->client, "DELETE", target, &error);
    return bytes != NULL ? CLI_OK : cli_error(cli, error, "assay episode ls");
}
