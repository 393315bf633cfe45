/*
 * Verbs that need no daemon: env, repo, parse, task new, box.
 *
 * The stores these touch (repos, trees, envs) are safe for several processes, so nobody is asked.
 *
 * Invariant: stdout carries the answer only.
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "env/box_diff.h"
#include "env/env_build.h"
#include "reward/parse_cli.h"
#include "sandbox/box_tool.h"
#include "tasks/dataset.h"
#include "tasks/repo.h"
#include "tasks/taskdir.h"

#include <string.h>

#define LOG_BYTES_MAX    (256u << 20)
#define GC_DAYS_DEFAULT  30
#define SLOT_BUILD       1000 /* boxes of the command line; workers count from 0 */
#define SLOT_SHELL       1001
#define DIGEST_CHARS_MIN 6

static const char *state_of(Cli *cli)
{
    return config_text(cli->config, CONFIG_STATE);
}

/* NULL when the key is unset. */
static const char *path_of(Cli *cli, ConfigKey key)
{
    const char *path = config_text(cli->config, key);
    return path[0] != '\0' ? path : NULL;
}

/* ---- repo ---- */

static void repo_progress(guint64 done, guint64 total, guint64 bytes, gpointer user_data)
{
    gint64 *last_us = user_data;
    gint64 now_us = g_get_monotonic_time();
    if (now_us - *last_us < 200000)
        return;
    *last_us = now_us;
    g_printerr("\r  %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT " objects, %.1f MiB ", done, total,
               (double)bytes / (1 << 20));
}

int cli_repo_ls(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(GPtrArray) list = repo_list(state_of(cli), &error);
    if (list == NULL)
        return cli_error(cli, error, NULL);
    CliTable *table =
        cli->json ? NULL : cli_table_new(cli, (const char *[]){"repository", "bytes", "url", NULL});
    for (guint i = 0; i < list->len; i++) {
        const RepoInfo *info = list->pdata[i];
        g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, info->bytes);
        const char *url = info->url != NULL ? info->url : "";
        g_autoptr(json_t) row = json_pack("{s:s, s:s, s:I}", "name", info->name, "url", url,
                                          "bytes", (json_int_t)info->bytes);
        if (table != NULL)
            cli_table_add(table, info->name, bytes, url, NULL);
        else
            cli_print_json(row);
    }
    if (table != NULL)
        cli_table_end(table);
    return CLI_OK;
}

/* A copy (local path) or fetch of a repository into the cache. */
static int repo_bring(Cli *cli, gboolean add)
{
    GError *error = NULL;
    gint64 last_us = 0;
    const RepoProgress progress = {cli->err_tty && !cli->quiet ? repo_progress : NULL, &last_us};
    const char *name = cli_arg(cli, 0);
    gboolean ok = add ? repo_add(state_of(cli), name, cli_arg(cli, 1), &progress, &error)
                      : repo_fetch(state_of(cli), name, &progress, &error);
    return ok ? CLI_OK : cli_error(cli, error, add ? NULL : "assay repo add OWNER/NAME URL");
}

int cli_repo_add(Cli *cli)
{
    return repo_bring(cli, TRUE);
}

int cli_repo_fetch(Cli *cli)
{
    return repo_bring(cli, FALSE);
}

int cli_repo_gc(Cli *cli)
{
    GError *error = NULL;
    const char *days_text = cli_option(cli, "older-days");
    gint64 days = GC_DAYS_DEFAULT;
    if (days_text != NULL && !g_ascii_string_to_signed(days_text, 10, 0, 36500, &days, NULL))
        return cli_usage(cli, "--older-days must be a number of days, not %s", days_text);
    guint n = repo_gc(state_of(cli), days * 86400, &error);
    if (error != NULL)
        return cli_error(cli, error, NULL);
    printf("%u\n", n);
    return CLI_OK;
}

/* ---- env ---- */

typedef struct FindTask {
    const char *id;
    Task *found;
} FindTask;

static gboolean on_find(Task *task, guint line, const GError *why, gpointer user_data)
{
    (void)line;
    (void)why;
    FindTask *find = user_data;
    if (task == NULL || strcmp(task->instance_id, find->id) != 0)
        return TRUE;
    find->found = task_from_json(task->json, NULL);
    return FALSE;
}

Task *cli_dataset_task(Cli *cli, const char *id, GError **error)
{
    FindTask find = {.id = id};
    const char *dataset = cli_option(cli, "dataset");
    if (dataset == NULL) {
        error_set(error, ASSAY_ERROR_INPUT, "--dataset FILE says where %s is", find.id);
        return NULL;
    }
    if (!dataset_read(dataset, cli_option(cli, "spec-map"), on_find, &find, error))
        return NULL;
    if (find.found == NULL)
        error_set(error, ASSAY_ERROR_NOT_FOUND, "%s has no task %s", dataset, find.id);
    return find.found;
}

/* Checkout and layers of one task, built when absent. */
static EnvLayers *env_prepare(Cli *cli, Environment **ret_env, GError **error)
{
    g_autoptr(Task) task = cli_dataset_task(cli, cli_arg(cli, 0), error);
    if (task == NULL)
        return NULL;
    const RepoOwner owner = {box_store_uid(), box_store_gid()};
    const EnvHost host = {.state_dir = state_of(cli),
                          .slot = SLOT_BUILD,
                          .allow_degraded = config_bool(cli->config, CONFIG_ALLOW_DEGRADED),
                          .tee_fd = cli->quiet ? 0 : 2};
    *ret_env = environment_for(task, path_of(cli, CONFIG_ENVIRONMENTS), error);
    g_autofree char *checkout =
        *ret_env != NULL
            ? repo_checkout(host.state_dir, task, path_of(cli, CONFIG_REPOS), &owner, error)
            : NULL;
    return checkout != NULL ? env_ensure(&host, *ret_env, checkout, error) : NULL;
}

int cli_env_build(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(Environment) env = NULL;
    g_autoptr(EnvLayers) layers = env_prepare(cli, &env, &error);
    if (layers == NULL)
        return cli_error(cli, error, NULL);
    g_autoptr(json_t) row = json_pack("{s:s, s:s, s:s}", "digest", env->digest, "layer",
                                      env->layer_digest, "name", env->name);
    if (cli->json)
        cli_print_json(row);
    else
        printf("%s\t%s\n", env->digest, env->name);
    return CLI_OK;
}

/* What the session changed, as a patch. */
static gboolean write_diff(const Box *box, const char *path, GError **error)
{
    g_autoptr(GString) patch = box_diff(box, error);
    return patch != NULL && file_write_atomic(path, patch->str, patch->len, error);
}

int cli_env_shell(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(Environment) env = NULL;
    g_autoptr(EnvLayers) layers = env_prepare(cli, &env, &error);
    if (layers == NULL)
        return cli_error(cli, error, NULL);
    BoxSpec spec = {.work_path = "/testbed", .slot = SLOT_SHELL, .limits = box_limits_default()};
    spec.limits.wall_ms = 0;
    spec.limits.cpu_ms = 0;
    spec.limits.idle_ms = 0;
    env_layers_apply(layers, &spec);
    g_autoptr(Box) box = box_open(&spec, &error);
    const char *argv[] = {"/bin/bash", NULL};
    const BoxCommand command = {.argv = argv, .envp = (const char *const *)layers->envp};
    g_auto(BoxResult) result = {0};
    if (box == NULL || !box_exec_terminal(box, &command, &result, &error))
        return cli_error(cli, error, "assay doctor");
    const char *diff = cli_option(cli, "diff");
    if (diff != NULL && !write_diff(box, diff, &error))
        return cli_error(cli, error, NULL);
    return result.outcome == BOX_EXITED ? result.exit_code : CLI_FAILED;
}

static void env_print(CliTable *table, const EnvInfo *info)
{
    g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, info->bytes);
    g_autoptr(json_t) row = json_pack(
        "{s:s, s:s*, s:s*, s:I, s:I}", "digest", info->digest, "name", info->name, "kind",
        info->kind, "bytes", (json_int_t)info->bytes, "built_ms", (json_int_t)info->built_ms);
    if (table != NULL)
        cli_table_add(table, info->digest, info->name, info->kind, bytes, NULL);
    else
        cli_print_json(row);
}

/* Layers whose digest begins with `digest`; "" is all. Returns how many. */
static int env_list_print(Cli *cli, const char *digest, guint *ret_n)
{
    GError *error = NULL;
    g_autoptr(GPtrArray) list = env_list(state_of(cli), &error);
    if (list == NULL)
        return cli_error(cli, error, NULL);
    CliTable *table =
        cli->json ? NULL
                  : cli_table_new(cli, (const char *[]){"digest", "name", "kind", "bytes", NULL});
    for (guint i = 0; i < list->len; i++) {
        const EnvInfo *info = list->pdata[i];
        if (!g_str_has_prefix(info->digest, digest))
            continue;
        (*ret_n)++;
        env_print(table, info);
        if (digest[0] != '\0')
            cli_say(cli, "log: %s/envs/%s/log", state_of(cli), info->digest);
    }
    if (table != NULL)
        cli_table_end(table);
    return CLI_OK;
}

int cli_env_ls(Cli *cli)
{
    guint n = 0;
    return env_list_print(cli, "", &n);
}

int cli_env_show(Cli *cli)
{
    guint n = 0;
    int status = env_list_print(cli, cli_arg(cli, 0), &n);
    if (status != CLI_OK || n > 0)
        return status;
    cli_say(cli, "assay env show: no layer begins with %s", cli_arg(cli, 0));
    return CLI_NOT_FOUND;
}

int cli_env_rm(Cli *cli)
{
    GError *error = NULL;
    if (strlen(cli_arg(cli, 0)) < DIGEST_CHARS_MIN)
        return cli_usage(cli, "give at least %d digits of the digest", DIGEST_CHARS_MIN);
    guint n = env_remove(state_of(cli), cli_arg(cli, 0), &error);
    if (error != NULL)
        return cli_error(cli, error, NULL);
    printf("%u\n", n);
    return n > 0 ? CLI_OK : CLI_NOT_FOUND;
}

/* ---- parse, task new, box ---- */

int cli_parse(Cli *cli)
{
    GError *error = NULL;
    GradeMode mode = GRADE_STRICT;
    const char *row_path = cli_option(cli, "row"), *log_path = cli_option(cli, "log");
    const char *mode_text = cli_option(cli, "mode");
    if (row_path == NULL || log_path == NULL)
        return cli_usage(cli, "parse needs --row ROW.json and --log LOG");
    if (mode_text != NULL && !grade_mode_from_str(mode_text, &mode))
        return cli_usage(cli, "--mode is %s; it must be strict, compat-4.1 or compat-5", mode_text);

    g_autoptr(GBytes) text = file_read(row_path, LOG_BYTES_MAX, &error);
    g_autoptr(GBytes) log = text != NULL ? file_read(log_path, LOG_BYTES_MAX, &error) : NULL;
    g_autoptr(json_t) row =
        log != NULL ? json_parse(g_bytes_get_data(text, NULL), g_bytes_get_size(text), &error)
                    : NULL;
    g_autoptr(json_t) answer = row != NULL ? parse_cli_run(row, g_bytes_get_data(log, NULL),
                                                           g_bytes_get_size(log), mode, &error)
                                           : NULL;
    if (answer == NULL) {
        g_prefix_error(&error, "%s: ", log == NULL && text != NULL ? log_path : row_path);
        return cli_error(cli, error, NULL);
    }
    cli_print_json(answer);
    return CLI_OK;
}

int cli_task_new(Cli *cli)
{
    GError *error = NULL;
    const char *dir = cli_arg(cli, 0);
    if (!taskdir_new(dir, &error))
        return cli_error(cli, error, NULL);
    cli_say(cli,
            "%s: fill in task.conf, issue.md, repo/, gold.patch and test.patch; then\n"
            "  assay eval --dataset %s --predictions gold",
            dir, dir);
    return CLI_OK;
}
