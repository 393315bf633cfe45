/*
 * sweep run, ls, results, report, diff; following a sweep; reading predictions.
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "tasks/dataset.h"

#include <math.h>
#include <string.h>

/* --- predictions */

typedef struct Predictions {
    Cli *cli;
    const char *path, *model;
    GStrv only;
    GString *lines;
    guint n_bad;
} Predictions;

/* JsonRowFn. */
static gboolean prediction_row(json_t *row, guint line, const GError *why, gpointer user_data)
{
    Predictions *all = user_data;
    g_autoptr(GError) bad = NULL;
    g_autoptr(Prediction) prediction = NULL;
    if (row != NULL && (prediction = prediction_from_json(row, &bad)) == NULL)
        why = bad;
    if (prediction == NULL) {
        all->n_bad++;
        cli_say(all->cli, "%s:%u: %s", all->path, line, why->message);
        return TRUE;
    }
    if (all->only != NULL &&
        !g_strv_contains((const char *const *)all->only, prediction->instance_id))
        return TRUE;
    const char *model =
        prediction->model != NULL && prediction->model[0] != '\0' ? prediction->model : all->model;
    g_autoptr(json_t) out =
        json_pack("{s:s,s:s?,s:s}", "instance_id", prediction->instance_id, "model_patch",
                  prediction->patch, "model_name_or_path", model);
    json_t *custom = json_object_get(row, "custom_id");
    if (json_is_string(custom))
        json_object_set(out, "custom_id", custom);
    g_autofree char *text = json_print(out);
    g_string_append_printf(all->lines, "%s\n", text);
    return TRUE;
}

GBytes *cli_predictions(Cli *cli, const char *path, const char *model, GStrv only, guint *n_bad,
                        GError **error)
{
    Predictions all = {.cli = cli,
                       .path = path,
                       .model = model != NULL ? model : "unknown",
                       .only = only,
                       .lines = g_string_new(NULL)};
    gboolean ok = json_rows_read(path, prediction_row, &all, error);
    *n_bad = all.n_bad;
    GBytes *bytes = g_string_free_to_bytes(all.lines);
    if (!ok)
        g_clear_pointer(&bytes, g_bytes_unref);
    return bytes;
}

/* --- following */

typedef struct Follow {
    Cli *cli;
    Progress progress;
    ClientLineFn fn;
    gpointer user_data;
    char *cursor;
    guint interrupts;
    gboolean stopped;
} Follow;

/* ClientLineFn. */
static gboolean follow_line(const json_t *line, gpointer user_data)
{
    Follow *follow = user_data;
    if (line != NULL) {
        progress_add(&follow->progress, line);
        g_free(follow->cursor);
        follow->cursor = g_strdup(cli_json_str(line, "cursor"));
        if (follow->fn != NULL)
            follow->fn(line, follow->user_data);
    }
    progress_draw(&follow->progress);
    follow->stopped = cli_interrupts() > 0;
    return !follow->stopped;
}

int cli_follow_sweep(Cli *cli, const char *id, gint64 total, ClientLineFn fn, gpointer user_data)
{
    GError *error = NULL;
    Follow follow = {.cli = cli, .fn = fn, .user_data = user_data};
    cli_interrupts_watch();
    progress_start(&follow.progress, cli, total);
    /* A connection that is cut (a daemon restarted) is taken up again at the cursor. */
    for (int tries = 0; tries < 10; tries++) {
        g_clear_error(&error);
        gint64 done = follow.progress.done;
        g_autofree char *target = g_strdup_printf("/v1/sweeps/%s/results?follow=1&statuses=1%s%s",
                                                  id, follow.cursor != NULL ? "&after=" : "",
                                                  follow.cursor != NULL ? follow.cursor : "");
        gboolean ok = client_lines(cli->client, target, follow_line, &follow, &error);
        if (follow.stopped || follow.progress.done >= total || (ok && follow.progress.done == done))
            break;
        if (!ok)
            g_usleep(500000);
    }
    progress_end(&follow.progress);
    g_free(follow.cursor);
    if (follow.stopped) {
        g_clear_error(&error);
        if (!cli->daemon_is_ours)
            cli_say(cli, "The work goes on. Come back: assay watch %s   give up: assay cancel %s",
                    id, id);
        return CLI_INTERRUPTED;
    }
    if (error != NULL)
        return cli_error(cli, error, NULL);
    return CLI_OK;
}

/* --- summary */

/* Wilson's interval for k of n at 95 %. */
static void interval(double k, double n, double *ret_low, double *ret_high)
{
    const double z = 1.959964;
    double p = k / n;
    double centre = (p + z * z / (2 * n)) / (1 + z * z / n);
    double half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n);
    *ret_low = MAX(centre - half, 0);
    *ret_high = MIN(centre + half, 1);
}

static void print_summary(const json_t *sweep, FILE *out)
{
    const json_t *counts = json_object_get(sweep, "counts");
    json_t *verdicts = json_object_get(sweep, "verdicts");
    json_int_t total = cli_json_int(counts, "total");
    json_int_t resolved = cli_json_int(verdicts, "resolved");
    double low = 0, high = 0;
    if (total > 0)
        interval((double)resolved, (double)total, &low, &high);
    fprintf(out, "%s  %s   %s\n", cli_json_str(sweep, "name"), cli_json_str(sweep, "id"),
            cli_json_str(sweep, "state"));
    fprintf(out, "  %-14s %lld / %lld   %.1f %%   (95 %% interval %.1f - %.1f)\n", "resolved",
            (long long)resolved, (long long)total,
            total > 0 ? 100.0 * (double)resolved / (double)total : 0.0, low * 100, high * 100);
    const char *verdict;
    json_t *n;
    json_object_foreach(verdicts, verdict, n)
    {
        if (strcmp(verdict, "resolved") != 0)
            fprintf(out, "  %-14s %lld\n", verdict, (long long)json_integer_value(n));
    }
    static const char *const others[] = {"queued",    "running", "failed",
                                         "cancelled", "cached",  "rejected"};
    for (guint i = 0; i < G_N_ELEMENTS(others); i++) {
        if (cli_json_int(counts, others[i]) > 0)
            fprintf(out, "  %-14s %lld%s\n", others[i], (long long)cli_json_int(counts, others[i]),
                    strcmp(others[i], "failed") == 0 ? "   not counted as unresolved; no reward"
                                                     : "");
    }
}

static int gate_of(Cli *cli, const json_t *sweep)
{
    const char *gate = cli_option(cli, "fail-under");
    double rate = json_number_value(json_object_get(sweep, "resolved_rate"));
    if (gate != NULL && rate < g_ascii_strtod(gate, NULL))
        return CLI_GATE;
    const json_t *counts = json_object_get(sweep, "counts");
    return cli_json_int(counts, "failed") > 0 ? CLI_FAILED : CLI_OK;
}

int cli_sweep_summary(Cli *cli, const char *id, FILE *out)
{
    GError *error = NULL;
    g_autofree char *target = g_strconcat("/v1/sweeps/", id, NULL);
    g_autoptr(json_t) sweep = client_json(cli->client, "GET", target, NULL, &error);
    if (sweep == NULL)
        return cli_error(cli, error, NULL);
    if (cli->json)
        cli_print_json(sweep);
    else
        print_summary(sweep, out);
    return gate_of(cli, sweep);
}

/* --- commands */

static char *run_target(Cli *cli)
{
    static const char *const keys[] = {"dataset", "name", "mode", "cache"};
    static const ConfigKey paths[] = {CONFIG_ENVIRONMENTS, CONFIG_REPOS};
    g_autoptr(GString) target = g_string_new("/v1/sweeps?on_error=skip");
    for (guint i = 0; i < G_N_ELEMENTS(keys); i++) {
        if (!cli_has(cli, keys[i]))
            continue;
        g_autofree char *value = g_uri_escape_string(cli_option(cli, keys[i]), NULL, FALSE);
        g_string_append_printf(target, "&%s=%s", keys[i], value);
    }
    for (guint i = 0; i < G_N_ELEMENTS(paths); i++) {
        const char *path = config_text(cli->config, paths[i]);
        g_autofree char *value = g_uri_escape_string(path, NULL, FALSE);
        if (path[0] != '\0')
            g_string_append_printf(target, "&%s=%s", config_infos[paths[i]].name, value);
    }
    return g_string_free(g_steal_pointer(&target), FALSE);
}

/* ClientLineFn: the line for a pipe. */
static gboolean print_result(const json_t *line, gpointer user_data)
{
    Cli *cli = user_data;
    if (line == NULL)
        return TRUE;
    if (cli->json) {
        cli_print_json(line);
    } else {
        g_autofree char *reward = cli_reward(line);
        const char *verdict = cli_json_str(line, "verdict");
        printf("%s\t%s\t%s\t%lld\t%s\n", cli_json_str(line, "instance_id"),
               verdict[0] != '\0' ? verdict : cli_json_str(line, "state"), reward,
               (long long)cli_json_int(json_object_get(line, "timing"), "wall_ms"),
               cli_json_str(line, "id"));
    }
    fflush(stdout);
    return TRUE;
}

int cli_sweep_run(Cli *cli)
{
    GError *error = NULL;
    guint n_bad = 0;
    const char *path = cli_arg(cli, 0);
    g_autoptr(GBytes) body =
        cli_predictions(cli, path, cli_option(cli, "model"), NULL, &n_bad, &error);
    g_autofree char *target = run_target(cli);
    g_autoptr(json_t) sweep =
        body != NULL ? client_json(cli->client, "POST", target, body, &error) : NULL;
    if (sweep == NULL)
        return cli_error(cli, error, NULL);
    const json_t *rejected = json_object_get(sweep, "rejected");
    for (gsize i = 0; i < json_array_size(rejected); i++)
        cli_say(cli, "rejected: %s: %s", cli_json_str(json_array_get(rejected, i), "instance_id"),
                cli_json_str(json_array_get(rejected, i), "detail"));
    const char *id = cli_json_str(sweep, "id");
    n_bad += (guint)cli_json_int(sweep, "rejected_count");
    if (cli_has(cli, "detach") || cli->quiet)
        puts(id);
    if (cli_has(cli, "detach"))
        return n_bad > 0 ? CLI_FAILED : CLI_OK;
    gboolean lines = !cli->out_tty && !cli->quiet;
    int status =
        cli_follow_sweep(cli, id, cli_json_int(sweep, "total"), lines ? print_result : NULL, cli);
    if (status != CLI_OK)
        return status;
    if (!lines)
        status = cli_sweep_summary(cli, id, stdout);
    else {
        g_autofree char *one = g_strconcat("/v1/sweeps/", id, NULL);
        g_autoptr(json_t) shown = client_json(cli->client, "GET", one, NULL, NULL);
        status = gate_of(cli, shown);
    }
    return status == CLI_OK && n_bad > 0 ? CLI_FAILED : status;
}

int cli_sweep_ls(Cli *cli)
{
    static const char *const columns[] = {"sweep", "name",     "state",   "done",
                                          "total", "resolved", "created", NULL};
    GError *error = NULL;
    const char *limit = cli_option(cli, "limit");
    const char *after = cli_option(cli, "after");
    g_autofree char *target =
        g_strdup_printf("/v1/sweeps?limit=%s%s%s", limit != NULL ? limit : "100",
                        after != NULL ? "&after=" : "", after != NULL ? after : "");
    g_autoptr(json_t) list = client_json(cli->client, "GET", target, NULL, &error);
    if (list == NULL)
        return cli_error(cli, error, NULL);
    const json_t *data = json_object_get(list, "data");
    CliTable *table = cli->json ? NULL : cli_table_new(cli, columns);
    for (gsize i = 0; i < json_array_size(data); i++) {
        const json_t *sweep = json_array_get(data, i);
        if (table == NULL) {
            cli_print_json(sweep);
            continue;
        }
        const json_t *counts = json_object_get(sweep, "counts");
        g_autofree char *done = g_strdup_printf(
            "%lld", (long long)(cli_json_int(counts, "done") + cli_json_int(counts, "failed")));
        g_autofree char *total = g_strdup_printf("%lld", (long long)cli_json_int(counts, "total"));
        g_autofree char *resolved = g_strdup_printf(
            "%lld", (long long)cli_json_int(json_object_get(sweep, "verdicts"), "resolved"));
        cli_table_add(table, cli_json_str(sweep, "id"), cli_json_str(sweep, "name"),
                      cli_json_str(sweep, "state"), done, total, resolved,
                      cli_json_str(sweep, "created_at"), NULL);
    }
    if (table != NULL)
        cli_table_end(table);
    return CLI_OK;
}

typedef struct ResultsPrint {
    Cli *cli;
    const char *verdict;
} ResultsPrint;

static gboolean print_wanted(const json_t *line, gpointer user_data)
{
    ResultsPrint *print = user_data;
    if (line == NULL)
        return TRUE;
    if (print->verdict != NULL && strcmp(print->verdict, cli_json_str(line, "verdict")) != 0)
        return TRUE;
    return print_result(line, print->cli);
}

int cli_sweep_results(Cli *cli)
{
    GError *error = NULL;
    ResultsPrint print = {.cli = cli, .verdict = cli_option(cli, "verdict")};
    g_autofree char *id = cli_resolve_id(cli, cli_arg(cli, 0), "swp", &error);
    if (id == NULL)
        return cli_error(cli, error, "assay sweep ls");
    g_autofree char *target =
        g_strdup_printf("/v1/sweeps/%s/results?follow=%d", id, cli_has(cli, "follow"));
    if (!client_lines(cli->client, target, print_wanted, &print, &error))
        return cli_error(cli, error, NULL);
    return CLI_OK;
}

int cli_sweep_report(Cli *cli)
{
    GError *error = NULL;
    g_autofree char *id = cli_resolve_id(cli, cli_arg(cli, 0), "swp", &error);
    g_autoptr(json_t) report = NULL;
    if (id != NULL) {
        g_autofree char *target = g_strdup_printf("/v1/sweeps/%s/report", id);
        report = client_json(cli->client, "GET", target, NULL, &error);
    }
    if (report == NULL)
        return cli_error(cli, error, "assay sweep ls");
    char *text = json_dumps(report, JSON_INDENT(4));
    g_autofree char *with_end = g_strconcat(text, "\n", NULL);
    free(text);
    const char *path = cli_option(cli, "output");
    if (path == NULL)
        fputs(with_end, stdout);
    else if (!file_write_atomic(path, with_end, strlen(with_end), &error))
        return cli_error(cli, error, NULL);
    return CLI_OK;
}

/* ClientLineFn: instance -> whether it is resolved. */
static gboolean collect_resolved(const json_t *line, gpointer user_data)
{
    if (line != NULL)
        g_hash_table_insert(
            user_data, g_strdup(cli_json_str(line, "instance_id")),
            GINT_TO_POINTER(strcmp(cli_json_str(line, "verdict"), "resolved") == 0 ? 2 : 1));
    return TRUE;
}

static GHashTable *resolved_of(Cli *cli, const char *text, GError **error)
{
    g_autofree char *id = cli_resolve_id(cli, text, "swp", error);
    if (id == NULL)
        return NULL;
    g_autofree char *target = g_strdup_printf("/v1/sweeps/%s/results", id);
    g_autoptr(GHashTable) map = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    if (!client_lines(cli->client, target, collect_resolved, map, error))
        return NULL;
    return g_steal_pointer(&map);
}

static void diff_add(json_t *diff, const char *key, const char *id)
{
    json_array_append_new(json_object_get(diff, key), json_string(id));
}

static json_t *diff_of(GHashTable *a, GHashTable *b)
{
    json_t *diff = json_pack("{s:[],s:[],s:[],s:[]}", "fixed", "broken", "only_a", "only_b");
    json_int_t same = 0;
    GHashTableIter iter;
    gpointer id, was;
    g_hash_table_iter_init(&iter, a);
    while (g_hash_table_iter_next(&iter, &id, &was)) {
        gpointer now = g_hash_table_lookup(b, id);
        if (now == NULL)
            diff_add(diff, "only_a", id);
        else if (now == was)
            same++;
        else
            diff_add(diff, GPOINTER_TO_INT(now) == 2 ? "fixed" : "broken", id);
    }
    g_hash_table_iter_init(&iter, b);
    while (g_hash_table_iter_next(&iter, &id, NULL)) {
        if (!g_hash_table_contains(a, id))
            diff_add(diff, "only_b", id);
    }
    json_object_set_new(diff, "same", json_integer(same));
    return diff;
}

int cli_sweep_diff(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(GHashTable) a = resolved_of(cli, cli_arg(cli, 0), &error);
    g_autoptr(GHashTable) b = a != NULL ? resolved_of(cli, cli_arg(cli, 1), &error) : NULL;
    if (b == NULL)
        return cli_error(cli, error, "assay sweep ls");
    g_autoptr(json_t) diff = diff_of(a, b);
    gsize n_broken = json_array_size(json_object_get(diff, "broken"));
    if (cli->json) {
        cli_print_json(diff);
    } else {
        static const char *const keys[] = {"fixed", "broken", "only_a", "only_b"};
        for (guint i = 0; i < G_N_ELEMENTS(keys); i++) {
            const json_t *ids = json_object_get(diff, keys[i]);
            for (gsize k = 0; k < json_array_size(ids); k++)
                printf("%s\t%s\n", keys[i], json_string_value(json_array_get(ids, k)));
        }
        cli_say(cli, "same %lld, fixed %zu, broken %zu", (long long)cli_json_int(diff, "same"),
                json_array_size(json_object_get(diff, "fixed")), n_broken);
    }
    return cli_has(cli, "fail-on-broken") && n_broken > 0 ? CLI_GATE : CLI_OK;
}
