/*
 * `assay env`, `assay repo`, `assay parse`, `assay task new`.
 *
 * The stores these touch (repos, trees, envs) are safe for several processes, so no daemon is asked.
 *
 * Invariant: stdout carries the answer only; every error is one line on stderr with what to do.
 */
#include "env/cli_local.h"

#include "base/error.h"
#include "base/fd.h"
#include "env/config.h"
#include "env/env_build.h"
#include "reward/parse_cli.h"
#include "sandbox/box.h"
#include "tasks/dataset.h"
#include "tasks/repo.h"
#include "tasks/taskdir.h"

#include <stdio.h>
#include <string.h>

#define EXIT_USAGE     2
#define EXIT_FAILED    1
#define EXIT_NOT_FOUND 3

#define LOG_BYTES_MAX (256u << 20)

/* Options of all local verbs; each verb names the ones it takes. */
typedef struct Local {
    char *state, *row, *log, *mode, *environments, *dataset, *repos;
    gboolean json, network;
    gint64 older_days;
    char **rest;
} Local;

static void local_clear(Local *local)
{
    char *owned[] = {local->state,        local->row,     local->log,  local->mode,
                     local->environments, local->dataset, local->repos};
    for (gsize i = 0; i < G_N_ELEMENTS(owned); i++)
        g_free(owned[i]);
    g_strfreev(local->rest);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Local, local_clear)

static int complain(const char *verb, const GError *error, int code)
{
    g_printerr("assay %s: %s\n", verb, error->message);
    return code;
}

/* Parses options; what remains is local->rest. Returns 0 or an exit code. */
static int local_parse(Local *local, const char *usage, int argc, char **argv)
{
    const GOptionEntry entries[] = {
        {"state", 0, 0, G_OPTION_ARG_FILENAME, &local->state, "State directory", "DIR"},
        {"row", 0, 0, G_OPTION_ARG_FILENAME, &local->row, "Task row, a JSON file", "FILE"},
        {"log", 0, 0, G_OPTION_ARG_FILENAME, &local->log, "Test log", "FILE"},
        {"mode", 0, 0, G_OPTION_ARG_STRING, &local->mode, "strict, compat-4.1, compat-5", "MODE"},
        {"environments", 0, 0, G_OPTION_ARG_FILENAME, &local->environments, "Environment file",
         "FILE"},
        {"dataset", 0, 0, G_OPTION_ARG_FILENAME, &local->dataset, "Where the task's row is",
         "FILE"},
        {"repos", 0, 0, G_OPTION_ARG_FILENAME, &local->repos, "Directory of mirrors", "DIR"},
        {"older-days", 0, 0, G_OPTION_ARG_INT64, &local->older_days, "Unused for so long", "N"},
        {"json", 0, 0, G_OPTION_ARG_NONE, &local->json, "JSON on stdout", NULL},
        {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &local->rest, NULL, NULL},
        {0}};
    g_autoptr(GOptionContext) context = g_option_context_new(usage);
    g_option_context_add_main_entries(context, entries, NULL);
    g_autoptr(GError) error = NULL;
    if (!g_option_context_parse(context, &argc, &argv, &error))
        return complain(argv[0], error, EXIT_USAGE);
    if (local->state != NULL)
        return 0;
    g_autoptr(Config) config = config_load(NULL, NULL, &error);
    if (config == NULL)
        return complain(argv[0], error, EXIT_USAGE);
    local->state = g_strdup(config_text(config, CONFIG_STATE));
    return 0;
}

static int usage_error(const char *usage)
{
    g_printerr("usage: %s\n", usage);
    return EXIT_USAGE;
}

/* The n-th word behind the verb, or NULL. */
static const char *word(const Local *local, guint n)
{
    return local->rest != NULL && g_strv_length(local->rest) > n ? local->rest[n] : NULL;
}

static void print_json(json_t *value)
{
    g_autofree char *text = json_print(value);
    puts(text);
    json_decref(value);
}

/* ---- repo ---- */

#define REPO_USAGE "assay repo ls | add OWNER/NAME URL | fetch OWNER/NAME | gc [--older-days N]"

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

static int repo_ls(const Local *local)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) list = repo_list(local->state, &error);
    if (list == NULL)
        return complain("repo ls", error, EXIT_FAILED);
    for (guint i = 0; i < list->len; i++) {
        const RepoInfo *info = list->pdata[i];
        if (local->json)
            print_json(json_pack("{s:s, s:s*, s:I}", "name", info->name, "url", info->url, "bytes",
                                 (json_int_t)info->bytes));
        else
            printf("%s\t%" G_GUINT64_FORMAT "\t%s\n", info->name, info->bytes,
                   info->url != NULL ? info->url : "-");
    }
    return 0;
}

int cli_repo(int argc, char **argv)
{
    g_auto(Local) local = {.older_days = 30};
    int code = local_parse(&local, "ls|add|fetch|gc", argc, argv);
    if (code != 0)
        return code;
    const char *verb = word(&local, 0), *name = word(&local, 1), *url = word(&local, 2);
    g_autoptr(GError) error = NULL;
    gint64 last_us = 0;
    const RepoProgress progress = {repo_progress, &last_us};
    if (g_strcmp0(verb, "ls") == 0)
        return repo_ls(&local);
    if (g_strcmp0(verb, "add") == 0 && url != NULL) {
        if (!repo_add(local.state, name, url, &progress, &error))
            return complain("repo add", error, EXIT_FAILED);
        return 0;
    }
    if (g_strcmp0(verb, "fetch") == 0 && name != NULL) {
        if (repo_fetch(local.state, name, &progress, &error))
            return 0;
        gboolean absent = g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
        return complain("repo fetch", error, absent ? EXIT_NOT_FOUND : EXIT_FAILED);
    }
    if (g_strcmp0(verb, "gc") == 0) {
        printf("%u\n", repo_gc(local.state, local.older_days * 86400, &error));
        return error != NULL ? complain("repo gc", error, EXIT_FAILED) : 0;
    }
    return usage_error(REPO_USAGE);
}

/* ---- env ---- */

#define ENV_USAGE                                                                                  \
    "assay env ls | show DIGEST | rm DIGEST |\n"                                                   \
    "       assay env build|shell INSTANCE --dataset FILE [--environments FILE] [--repos DIR]"

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

/* Checkout and layers of one task, built when absent. */
static EnvLayers *env_prepare(const Local *local, const char *id, Environment **ret_env,
                              GError **error)
{
    FindTask find = {.id = id};
    if (!dataset_read(local->dataset, NULL, on_find, &find, error))
        return NULL;
    g_autoptr(Task) task = find.found;
    if (task == NULL) {
        error_set(error, ASSAY_ERROR_NOT_FOUND, "%s has no task %s", local->dataset, id);
        return NULL;
    }
    const RepoOwner owner = {box_store_uid(), box_store_gid()};
    const EnvHost host = {.state_dir = local->state, .slot = 1000, .tee_fd = 2};
    *ret_env = environment_for(task, local->environments, error);
    g_autofree char *checkout =
        *ret_env != NULL ? repo_checkout(local->state, task, local->repos, &owner, error) : NULL;
    return checkout != NULL ? env_ensure(&host, task, *ret_env, checkout, error) : NULL;
}

static int env_shell(const EnvLayers *layers)
{
    BoxSpec spec = {.work_path = "/testbed", .slot = 1001, .limits = box_limits_default()};
    spec.limits.wall_ms = 0;
    spec.limits.cpu_ms = 0;
    spec.limits.idle_ms = 0;
    env_layers_apply(layers, &spec);
    g_autoptr(GError) error = NULL;
    g_autoptr(Box) box = box_open(&spec, &error);
    const char *argv[] = {"/bin/bash", NULL};
    const BoxCommand command = {
        .argv = argv, .envp = (const char *const *)layers->envp, .interactive = TRUE};
    g_auto(BoxResult) result = {0};
    if (box == NULL || !box_exec(box, &command, &result, &error))
        return complain("env shell", error, EXIT_FAILED);
    return result.outcome == BOX_EXITED ? result.exit_code : EXIT_FAILED;
}

static int env_of_task(const Local *local, const char *verb, const char *id)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Environment) env = NULL;
    g_autoptr(EnvLayers) layers = env_prepare(local, id, &env, &error);
    if (layers == NULL)
        return complain(verb, error,
                        g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND) ? EXIT_NOT_FOUND
                                                                                   : EXIT_FAILED);
    if (strcmp(verb, "env shell") == 0)
        return env_shell(layers);
    printf("%s\t%s\n", env->digest, env->name);
    return 0;
}

static int env_ls(const Local *local, const char *digest)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) list = env_list(local->state, &error);
    guint shown = 0;
    for (guint i = 0; list != NULL && i < list->len; i++) {
        const EnvInfo *info = list->pdata[i];
        if (digest != NULL && !g_str_has_prefix(info->digest, digest))
            continue;
        shown++;
        if (local->json)
            print_json(json_pack("{s:s, s:s*, s:s*, s:I, s:I}", "digest", info->digest, "name",
                                 info->name, "kind", info->kind, "bytes", (json_int_t)info->bytes,
                                 "built_ms", (json_int_t)info->built_ms));
        else
            printf("%s\t%s\t%s\t%" G_GUINT64_FORMAT "\n", info->digest, info->name, info->kind,
                   info->bytes);
        if (digest != NULL) {
            g_autofree char *log =
                g_build_filename(local->state, "envs", info->digest, "log", NULL);
            g_printerr("log: %s\n", log);
        }
    }
    if (list == NULL)
        return complain("env ls", error, EXIT_FAILED);
    if (digest != NULL && shown == 0) {
        g_printerr("assay env show: no layer begins with %s\n", digest);
        return EXIT_NOT_FOUND;
    }
    return 0;
}

int cli_env(int argc, char **argv)
{
    g_auto(Local) local = {0};
    int code = local_parse(&local, "build|ls|show|shell|rm", argc, argv);
    if (code != 0)
        return code;
    const char *verb = word(&local, 0), *what = word(&local, 1);
    if (g_strcmp0(verb, "ls") == 0)
        return env_ls(&local, NULL);
    if (g_strcmp0(verb, "show") == 0 && what != NULL)
        return env_ls(&local, what);
    if (g_strcmp0(verb, "rm") == 0 && what != NULL && strlen(what) >= 6) {
        g_autoptr(GError) error = NULL;
        guint n = env_remove(local.state, what, &error);
        if (error != NULL)
            return complain("env rm", error, EXIT_FAILED);
        printf("%u\n", n);
        return n > 0 ? 0 : EXIT_NOT_FOUND;
    }
    if (what != NULL && local.dataset != NULL) {
        if (g_strcmp0(verb, "build") == 0)
            return env_of_task(&local, "env build", what);
        if (g_strcmp0(verb, "shell") == 0)
            return env_of_task(&local, "env shell", what);
    }
    return usage_error(ENV_USAGE);
}

/* ---- parse, task new ---- */

int cli_parse(int argc, char **argv)
{
    g_auto(Local) local = {0};
    int code = local_parse(&local, "--row FILE --log FILE [--mode MODE]", argc, argv);
    if (code != 0)
        return code;
    GradeMode mode = GRADE_STRICT;
    if (local.row == NULL || local.log == NULL ||
        (local.mode != NULL && !grade_mode_from_str(local.mode, &mode)))
        return usage_error(
            "assay parse --row ROW.json --log LOG --mode compat-4.1|compat-5|strict");

    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) row_bytes = file_read(local.row, LOG_BYTES_MAX, &error);
    g_autoptr(GBytes) log = row_bytes != NULL ? file_read(local.log, LOG_BYTES_MAX, &error) : NULL;
    if (log == NULL)
        return complain("parse", error, EXIT_USAGE);
    g_autoptr(json_t) row =
        json_parse(g_bytes_get_data(row_bytes, NULL), g_bytes_get_size(row_bytes), &error);
    json_t *answer = row != NULL ? parse_cli_run(row, g_bytes_get_data(log, NULL),
                                                 g_bytes_get_size(log), mode, &error)
                                 : NULL;
    if (answer == NULL) {
        g_prefix_error(&error, "%s: ", local.row);
        return complain("parse", error, EXIT_USAGE);
    }
    print_json(answer);
    return 0;
}

int cli_task_new(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    if (argc != 2)
        return usage_error("assay task new DIR");
    if (!taskdir_new(argv[1], &error))
        return complain("task new", error, EXIT_FAILED);
    g_printerr("%s: fill in task.conf, issue.md, repo/, gold.patch and test.patch; then\n"
               "  assay eval --dataset %s --predictions gold\n",
               argv[1], argv[1]);
    return 0;
}
