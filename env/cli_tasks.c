/*
 * task import, ls, show, validate.
 */
#include "env/cli.h"

#include "base/error.h"

#include <string.h>

static char *dataset_name_of(const char *path)
{
    char *name = g_path_get_basename(path);
    char *dot = strrchr(name, '.');
    if (dot != NULL && dot != name)
        *dot = '\0';
    return name;
}

static char *query_text(const char *value)
{
    return g_uri_escape_string(value != NULL ? value : "", NULL, FALSE);
}

/* One line per rejected row on standard error. */
static void say_rejected(Cli *cli, const char *path, const json_t *skipped)
{
    for (gsize i = 0; i < json_array_size(skipped); i++) {
        const json_t *row = json_array_get(skipped, i);
        const char *id = cli_json_str(row, "instance_id");
        cli_say(cli, "%s:%lld: %s%s%s", path, (long long)cli_json_int(row, "line"), id,
                id[0] != '\0' ? ": " : "", cli_json_str(row, "detail"));
    }
}

int cli_task_import(Cli *cli)
{
    GError *error = NULL;
    const char *path = cli_arg(cli, 0);
    const char *spec_map = cli_option(cli, "spec-map");
    const char *on_error = cli_option(cli, "on-error");
    g_autofree char *absolute = cli_absolute(path);
    g_autofree char *spec_absolute = spec_map != NULL ? cli_absolute(spec_map) : NULL;
    g_autofree char *own_name = dataset_name_of(path);
    const char *dataset = cli_option(cli, "dataset");
    g_autoptr(json_t) ask =
        json_pack("{s:s,s:s}", "path", absolute, "dataset", dataset != NULL ? dataset : own_name);
    if (spec_absolute != NULL)
        json_object_set_new(ask, "spec_map", json_string(spec_absolute));
    g_autofree char *text = json_print(ask);
    g_autoptr(GBytes) body = g_bytes_new(text, strlen(text));
    g_autofree char *target =
        g_strdup_printf("/v1/tasks/import?on_error=%s&replace=%d",
                        on_error != NULL ? on_error : "skip", cli_has(cli, "replace"));
    g_autoptr(json_t) reply = client_json(cli->client, "POST", target, body, &error);
    if (reply == NULL)
        return cli_error(cli, error, NULL);
    json_int_t rejected = cli_json_int(reply, "rejected");
    if (cli->json) {
        cli_print_json(reply);
    } else {
        say_rejected(cli, path, json_object_get(reply, "skipped"));
        cli_say(cli, "imported %lld, unchanged %lld, rejected %lld%s",
                (long long)cli_json_int(reply, "imported"),
                (long long)cli_json_int(reply, "unchanged"), (long long)rejected,
                json_is_true(json_object_get(reply, "stored")) ? "" : "; nothing was stored");
    }
    return rejected > 0 ? CLI_USAGE : CLI_OK;
}

int cli_task_ls(Cli *cli)
{
    static const char *const columns[] = {"task", "dataset",  "repo", "f2p",
                                          "p2p",  "validity", NULL};
    GError *error = NULL;
    const char *limit = cli_option(cli, "limit");
    g_autoptr(GString) target = g_string_new("/v1/tasks?limit=");
    g_string_append(target, limit != NULL ? limit : "1000");
    static const char *const keys[] = {"dataset", "repo", "after"};
    for (guint i = 0; i < G_N_ELEMENTS(keys); i++) {
        if (cli_has(cli, keys[i])) {
            g_autofree char *value = query_text(cli_option(cli, keys[i]));
            g_string_append_printf(target, "&%s=%s", keys[i], value);
        }
    }
    g_autoptr(json_t) list = client_json(cli->client, "GET", target->str, NULL, &error);
    if (list == NULL)
        return cli_error(cli, error, NULL);
    const json_t *data = json_object_get(list, "data");
    CliTable *table = cli->json ? NULL : cli_table_new(cli, columns);
    for (gsize i = 0; i < json_array_size(data); i++) {
        const json_t *task = json_array_get(data, i);
        const json_t *tests = json_object_get(task, "tests");
        g_autofree char *f2p = g_strdup_printf("%lld", (long long)cli_json_int(tests, "f2p_count"));
        g_autofree char *p2p = g_strdup_printf("%lld", (long long)cli_json_int(tests, "p2p_count"));
        if (table == NULL)
            cli_print_json(task);
        else
            cli_table_add(table, cli_json_str(task, "instance_id"), cli_json_str(task, "dataset"),
                          cli_json_str(task, "repo"), f2p, p2p,
                          cli_json_str(json_object_get(task, "validity"), "state"), NULL);
    }
    cli_list_end(cli, table, list);
    return CLI_OK;
}

int cli_task_show(Cli *cli)
{
    GError *error = NULL;
    g_autofree char *id = g_uri_escape_string(cli_arg(cli, 0), "/", FALSE);
    g_autofree char *target = g_strdup_printf(
        "/v1/tasks/%s?include=problem_statement,patch,FAIL_TO_PASS,PASS_TO_PASS", id);
    g_autoptr(json_t) task = client_json(cli->client, "GET", target, NULL, &error);
    if (task == NULL)
        return cli_error(cli, error, "assay task ls");
    if (cli->json) {
        cli_print_json(task);
        return CLI_OK;
    }
    if (cli_has(cli, "patch")) {
        fputs(cli_json_str(task, "patch"), stdout);
        return CLI_OK;
    }
    static const char *const fields[] = {"id",   "dataset",     "instance_id",
                                         "repo", "base_commit", "language"};
    for (guint i = 0; i < G_N_ELEMENTS(fields); i++)
        printf("%-12s %s\n", fields[i], cli_json_str(task, fields[i]));
    const json_t *tests = json_object_get(task, "tests");
    printf("%-12s %lld fail-to-pass, %lld pass-to-pass\n", "tests",
           (long long)cli_json_int(tests, "f2p_count"),
           (long long)cli_json_int(tests, "p2p_count"));
    static const char *const lists[] = {"FAIL_TO_PASS", "PASS_TO_PASS"};
    for (guint i = 0; i < G_N_ELEMENTS(lists) && cli_has(cli, "tests"); i++) {
        const json_t *names = json_object_get(task, lists[i]);
        for (gsize k = 0; k < json_array_size(names); k++)
            printf("%s\t%s\n", lists[i], json_string_value(json_array_get(names, k)));
    }
    if (!cli_has(cli, "tests"))
        printf("\n%s\n", cli_json_str(task, "problem_statement"));
    return CLI_OK;
}

/* Waits for a validation and says what it found. 0 valid, 1 not. */
static int validate_report(Cli *cli, const char *task, const char *sweep_id)
{
    GError *error = NULL;
    int status = cli_follow_sweep(cli, sweep_id, 2, NULL, NULL);
    if (status != CLI_OK)
        return status;
    g_autofree char *id = g_uri_escape_string(task, "/", FALSE);
    g_autofree char *target = g_strconcat("/v1/tasks/", id, NULL);
    g_autoptr(json_t) shown = client_json(cli->client, "GET", target, NULL, &error);
    if (shown == NULL)
        return cli_error(cli, error, NULL);
    const char *state = cli_json_str(json_object_get(shown, "validity"), "state");
    if (cli->json)
        cli_print_json(shown);
    else
        printf("%s\t%s\t%s\n", task, state, sweep_id);
    return strcmp(state, "valid") == 0 ? CLI_OK : CLI_FAILED;
}

int cli_task_validate(Cli *cli)
{
    int worst = CLI_OK;
    for (guint i = 0; i < cli->args->len; i++) {
        GError *error = NULL;
        const char *task = cli_arg(cli, i);
        g_autofree char *id = g_uri_escape_string(task, "/", FALSE);
        g_autofree char *target = g_strdup_printf("/v1/tasks/%s/validate", id);
        g_autoptr(json_t) sweep = client_json(cli->client, "POST", target, NULL, &error);
        int status = CLI_OK;
        if (sweep == NULL)
            status = cli_error(cli, error, "assay task ls");
        else if (cli_has(cli, "detach"))
            puts(cli_json_str(sweep, "id"));
        else
            status = validate_report(cli, task, cli_json_str(sweep, "id"));
        worst = MAX(worst, status);
    }
    return worst;
}
