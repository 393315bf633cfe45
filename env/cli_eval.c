/*
 * assay eval: dataset and predictions in, rewards, SWE-bench's log tree and report out.
 *
 * 1. It uses the daemon that answers, or starts one of its own and stops it at the end.
 * 2. A bad row or prediction is reported with its line; the rest runs.
 * 3. Files under --out have the names and bytes of SWE-bench's harness (reward/report.h).
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "reward/report.h"
#include "tasks/dataset.h"
#include "tasks/environment.h"
#include "tasks/task.h"

#include <errno.h>
#include <string.h>

#define PREDICTIONS_MAX (256u * 1024 * 1024)

typedef struct Eval {
    Cli *cli;
    const char *dataset_path, *out, *run_id, *mode;
    char *dataset_name;
    GStrv only;
    const char *canned; /* "gold" or "empty"; NULL: a file */
    const char *model;
    GString *lines;       /* NDJSON predictions */
    GPtrArray *ids;       /* instances of the dataset, in order */
    GHashTable *outcomes; /* instance -> ReportOutcome */
    GHashTable *models;   /* instance -> model */
    GHashTable *patches;  /* instance -> patch, when --out asks for patch.diff */
    guint n_bad;
    GError *failure;
} Eval;

static gboolean wanted(const Eval *eval, const char *instance_id)
{
    return eval->only == NULL || g_strv_contains((const char *const *)eval->only, instance_id);
}

static void add_canned(Eval *eval, const Task *task)
{
    gboolean gold = strcmp(eval->canned, "gold") == 0;
    g_autoptr(json_t) line = json_pack(
        "{s:s,s:s,s:s}", "instance_id", task->instance_id, "model_patch",
        gold && task->patch != NULL ? task->patch : "", "model_name_or_path", eval->model);
    g_autofree char *text = json_print(line);
    g_string_append_printf(eval->lines, "%s\n", text);
}

/* DatasetRowFn: which instances there are; the daemon reports bad rows itself. */
static gboolean dataset_seen(Task *task, guint line, const GError *why, gpointer user_data)
{
    Eval *eval = user_data;
    if (task == NULL) {
        eval->n_bad++;
        cli_say(eval->cli, "%s:%u: %s", eval->dataset_path, line, why->message);
        return TRUE;
    }
    if (!wanted(eval, task->instance_id))
        return TRUE;
    g_ptr_array_add(eval->ids, g_strdup(task->instance_id));
    if (eval->canned != NULL)
        add_canned(eval, task);
    return TRUE;
}

/* JsonRowFn over our own NDJSON: remembers patches and models for the log tree. */
static void remember_predictions(Eval *eval, GBytes *body)
{
    g_auto(GStrv) lines = g_strsplit(g_bytes_get_data(body, NULL), "\n", -1);
    for (guint i = 0; lines[i] != NULL; i++) {
        g_autoptr(json_t) line = json_parse(lines[i], strlen(lines[i]), NULL);
        const char *id = json_string_value(json_object_get(line, "instance_id"));
        if (id == NULL)
            continue;
        g_hash_table_replace(eval->patches, g_strdup(id),
                             g_strdup(cli_json_str(line, "model_patch")));
        g_hash_table_replace(eval->models, g_strdup(id),
                             g_strdup(cli_json_str(line, "model_name_or_path")));
    }
}

static gboolean import_dataset(Eval *eval, GError **error)
{
    Cli *cli = eval->cli;
    const char *spec_map = cli_option(cli, "spec-map");
    g_autofree char *path = cli_absolute(eval->dataset_path);
    g_autofree char *spec = spec_map != NULL ? cli_absolute(spec_map) : NULL;
    g_autoptr(json_t) ask =
        json_pack("{s:s,s:s,s:s?}", "path", path, "dataset", eval->dataset_name, "spec_map", spec);
    if (spec == NULL)
        json_object_del(ask, "spec_map");
    g_autofree char *text = json_print(ask);
    g_autoptr(GBytes) body = g_bytes_new(text, strlen(text));
    g_autoptr(json_t) reply =
        client_json(cli->client, "POST", "/v1/tasks/import?replace=1", body, error);
    return reply != NULL;
}

/* --- the log tree */

static char *instance_dir(const Eval *eval, const char *instance_id)
{
    const char *model = g_hash_table_lookup(eval->models, instance_id);
    g_autofree char *folder = report_model_folder(model != NULL ? model : "unknown");
    return g_build_filename(eval->out, "logs", "run_evaluation", eval->run_id, folder, instance_id,
                            NULL);
}

static gboolean tree_file(const char *dir, const char *name, const void *data, gsize len,
                          GError **error)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    return file_write_atomic(path, data, len, error);
}

/* The files that the grade kept, and patch.diff. */
static gboolean tree_write(Eval *eval, const json_t *grade, GError **error)
{
    const char *instance_id = cli_json_str(grade, "instance_id");
    const char *patch = g_hash_table_lookup(eval->patches, instance_id);
    g_autofree char *dir = instance_dir(eval, instance_id);
    if (strchr(instance_id, '/') != NULL || g_mkdir_with_parents(dir, 0755) < 0)
        return error_set_errno(error, errno, "make %s", dir);
    if (patch != NULL && !tree_file(dir, "patch.diff", patch, strlen(patch), error))
        return FALSE;
    const char *name;
    json_t *file;
    json_t *files = json_object_get(grade, "files");
    json_object_foreach(files, name, file)
    {
        if (json_object_get(file, "sha256") == NULL)
            continue;
        g_autofree char *target =
            g_strdup_printf("/v1/grades/%s/files/%s", cli_json_str(grade, "id"), name);
        g_autoptr(Client) client = client_new(client_socket(eval->cli->client));
        g_autoptr(Answer) answer = client_call(client, "GET", target, NULL, error);
        if (answer == NULL)
            return FALSE;
        if (answer->status == 200 &&
            !tree_file(dir, name, answer->body->data, answer->body->len, error))
            return FALSE;
    }
    return TRUE;
}

/* --- results */

static ReportOutcome outcome_of(const json_t *grade)
{
    const char *verdict = cli_json_str(grade, "verdict");
    if (json_is_null(json_object_get(grade, "patch")))
        return REPORT_EMPTY_PATCH;
    if (strcmp(cli_json_str(grade, "state"), "done") != 0 || strcmp(verdict, "patch_failed") == 0)
        return REPORT_ERROR;
    return strcmp(verdict, "resolved") == 0 ? REPORT_RESOLVED : REPORT_UNRESOLVED;
}

/* ClientLineFn. */
static gboolean eval_line(const json_t *line, gpointer user_data)
{
    Eval *eval = user_data;
    if (line == NULL)
        return TRUE;
    g_hash_table_replace(eval->outcomes, g_strdup(cli_json_str(line, "instance_id")),
                         GINT_TO_POINTER(outcome_of(line)));
    if (eval->out != NULL && eval->failure == NULL)
        tree_write(eval, line, &eval->failure);
    if (eval->cli->json) {
        cli_print_json(line);
    } else if (!eval->cli->out_tty) {
        g_autofree char *reward = cli_reward(line);
        const char *verdict = cli_json_str(line, "verdict");
        const json_t *why = json_object_get(line, "error");
        printf("%s\t%s\t%s\t%lld\t%s%s%s\n", cli_json_str(line, "instance_id"),
               verdict[0] != '\0' ? verdict : cli_json_str(line, "state"), reward,
               (long long)cli_json_int(json_object_get(line, "timing"), "wall_ms"),
               cli_json_str(line, "id"), json_is_object(why) ? "\t" : "",
               json_is_object(why) ? cli_json_str(why, "detail") : "");
    }
    fflush(stdout);
    return TRUE;
}

/* <model>.<run_id>.json, as the harness writes it. */
static gboolean run_report(Eval *eval, GError **error)
{
    g_autofree ReportRow *rows = g_new0(ReportRow, eval->ids->len);
    const char *model = NULL;
    for (guint i = 0; i < eval->ids->len; i++) {
        const char *id = g_ptr_array_index(eval->ids, i);
        rows[i].instance_id = id;
        rows[i].outcome = (ReportOutcome)GPOINTER_TO_INT(g_hash_table_lookup(eval->outcomes, id));
        if (model == NULL)
            model = g_hash_table_lookup(eval->models, id);
    }
    GraderVersion version = strcmp(eval->mode, "compat-4.1") == 0 ? GRADER_4_1 : GRADER_5;
    g_autoptr(json_t) report = report_run(version, rows, eval->ids->len);
    g_autofree char *text = report_run_text(report);
    g_autofree char *name = report_run_file_name(model != NULL ? model : "unknown", eval->run_id);
    g_autofree char *path = g_build_filename(eval->out, name, NULL);
    if (!file_write_atomic(path, text, strlen(text), error))
        return FALSE;
    cli_say(eval->cli, "report: %s", path);
    return TRUE;
}

static char *sweep_target(Eval *eval)
{
    Cli *cli = eval->cli;
    const char *cache = cli_option(cli, "cache");
    g_autofree char *dataset = g_uri_escape_string(eval->dataset_name, NULL, FALSE);
    g_autofree char *name = g_uri_escape_string(eval->run_id, NULL, FALSE);
    g_autofree char *environments =
        g_uri_escape_string(config_text(cli->config, CONFIG_ENVIRONMENTS), NULL, FALSE);
    g_autofree char *repos =
        g_uri_escape_string(config_text(cli->config, CONFIG_REPOS), NULL, FALSE);
    gboolean run_empty = g_strcmp0(eval->canned, "empty") == 0;
    return g_strdup_printf("/v1/sweeps?on_error=skip&dataset=%s&name=%s&mode=%s&environments=%s"
                           "&repos=%s&cache=%s&run_empty=%d",
                           dataset, name, eval->mode, environments, repos,
                           cache != NULL ? cache : "use", run_empty);
}

/* Submits, follows, reports. */
static int eval_sweep(Eval *eval, GBytes *body)
{
    Cli *cli = eval->cli;
    GError *error = NULL;
    g_autofree char *target = sweep_target(eval);
    g_autoptr(json_t) sweep = client_json(cli->client, "POST", target, body, &error);
    if (sweep == NULL)
        return cli_error(cli, error, NULL);
    const json_t *rejected = json_object_get(sweep, "rejected");
    for (gsize i = 0; i < json_array_size(rejected); i++)
        cli_say(cli, "prediction %lld: %s: %s",
                (long long)cli_json_int(json_array_get(rejected, i), "line"),
                cli_json_str(json_array_get(rejected, i), "instance_id"),
                cli_json_str(json_array_get(rejected, i), "detail"));
    const char *id = cli_json_str(sweep, "id");
    int status = cli_follow_sweep(cli, id, cli_json_int(sweep, "total"), eval_line, eval);
    if (status != CLI_OK)
        return status;
    if (eval->out != NULL && eval->failure == NULL)
        run_report(eval, &eval->failure);
    if (eval->failure != NULL)
        return cli_error(cli, g_steal_pointer(&eval->failure), NULL);
    /* In a pipe, standard output is the lines of the grades and nothing else. */
    status = cli_sweep_summary(cli, id, cli->out_tty ? stdout : stderr);
    eval->n_bad += (guint)cli_json_int(sweep, "rejected_count");
    return status == CLI_OK && eval->n_bad > 0 ? CLI_FAILED : status;
}

static GBytes *eval_predictions(Eval *eval, GError **error)
{
    guint n_bad = 0;
    if (eval->canned != NULL)
        return g_string_free_to_bytes(g_steal_pointer(&eval->lines));
    GBytes *body = cli_predictions(eval->cli, cli_option(eval->cli, "predictions"), eval->model,
                                   eval->only, &n_bad, error);
    eval->n_bad += n_bad;
    return body;
}

/* Everything between "the daemon answers" and "it may go". */
static int eval_run(Eval *eval)
{
    GError *error = NULL;
    const char *spec_map = cli_option(eval->cli, "spec-map");
    const char *environments = config_text(eval->cli->config, CONFIG_ENVIRONMENTS);
    if (environments[0] != '\0' && !environment_conf_check(environments, &error))
        return cli_error(eval->cli, error, "docs/formats.md");
    if (!dataset_read(eval->dataset_path, spec_map, dataset_seen, eval, &error) ||
        !import_dataset(eval, &error))
        return cli_error(eval->cli, error, NULL);
    if (eval->ids->len == 0)
        return cli_usage(eval->cli, "%s has no usable task%s", eval->dataset_path,
                         eval->only != NULL ? " among --instances" : "");
    g_autoptr(GBytes) body = eval_predictions(eval, &error);
    if (body == NULL)
        return cli_error(eval->cli, error, NULL);
    /* NDJSON ends with a NUL of its GString: it can be read as text. */
    remember_predictions(eval, body);
    return eval_sweep(eval, body);
}

static int eval_with_daemon(Eval *eval)
{
    Cli *cli = eval->cli;
    GError *error = NULL;
    gboolean ours = !cli_daemon_answers(cli);
    if (ours && !cli_daemon_start(cli, TRUE, &error))
        return cli_error(cli, error, "assay doctor");
    if (!ours && strcmp(config_origin(cli->config, CONFIG_WORKERS), "flag") == 0)
        cli_say(cli, "note: the running daemon keeps its own number of workers");
    cli->daemon_is_ours = ours;
    int status = eval_run(eval);
    gboolean interrupted = status == CLI_INTERRUPTED;
    if (ours && interrupted)
        cli_say(cli, "Stopping; the same command goes on where this one was.");
    if (ours && !cli_daemon_stop(cli, interrupted, &error)) {
        int stop_status = cli_error(cli, error, NULL);
        status = status == CLI_OK ? stop_status : status;
    }
    return status;
}

int cli_eval(Cli *cli)
{
    const char *predictions = cli_option(cli, "predictions");
    const char *instances = cli_option(cli, "instances");
    const char *out = cli_option(cli, "out");
    Eval eval = {.cli = cli, .dataset_path = cli_option(cli, "dataset")};
    if (eval.dataset_path == NULL || predictions == NULL)
        return cli_usage(cli, "eval needs --dataset and --predictions");
    gboolean canned = strcmp(predictions, "gold") == 0 || strcmp(predictions, "empty") == 0;
    g_autofree char *out_absolute = out != NULL ? cli_absolute(out) : NULL;
    g_autofree char *name = g_path_get_basename(eval.dataset_path);
    g_auto(GStrv) only = instances != NULL ? g_strsplit(instances, ",", -1) : NULL;
    char *dot = strrchr(name, '.');
    if (dot != NULL && dot != name)
        *dot = '\0';
    eval.out = out_absolute;
    eval.dataset_name = name;
    eval.only = only;
    eval.canned = canned ? predictions : NULL;
    eval.run_id = cli_option(cli, "run-id") != NULL ? cli_option(cli, "run-id") : "assay";
    eval.mode = cli_option(cli, "mode") != NULL ? cli_option(cli, "mode") : "strict";
    eval.model = cli_option(cli, "model") != NULL ? cli_option(cli, "model")
                 : canned                         ? predictions
                                                  : "unknown";
    if (strchr(eval.run_id, '/') != NULL || eval.run_id[0] == '.')
        return cli_usage(cli, "--run-id must be a plain name");
    eval.lines = g_string_new(NULL);
    eval.ids = g_ptr_array_new_with_free_func(g_free);
    eval.outcomes = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    eval.models = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    eval.patches = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    int status = eval_with_daemon(&eval);
    if (eval.lines != NULL)
        g_string_free(eval.lines, TRUE);
    g_ptr_array_unref(eval.ids);
    g_hash_table_unref(eval.outcomes);
    g_hash_table_unref(eval.models);
    g_hash_table_unref(eval.patches);
    g_clear_error(&eval.failure);
    return status;
}
