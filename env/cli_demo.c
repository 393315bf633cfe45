/*
 * assay demo: the example tasks, graded through the socket of a daemon of its own.
 *
 * Every task is graded four times: with its reference patch, a plausible wrong one, none, and a
 * cheating one. The state directory is temporary and removed.
 *
 * Invariant: the demo never uses or changes the user's own daemon and state.
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "sandbox/box.h"
#include "tasks/dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* What is graded, and whether it should be rewarded. */
static const struct {
    const char *name, *field;
    gboolean rewarded;
} kinds[] = {
    {"gold", "patch", TRUE},
    {"wrong", "wrong_patch", FALSE},
    {"empty", NULL, FALSE},
    {"cheating", "cheat_patch", FALSE},
};

typedef struct Demo {
    Cli *cli;
    GString *predictions;
    guint n_tasks, n_grades, n_surprises;
} Demo;

/* The shipped tasks: in the build tree or installed. */
static char *examples_find(void)
{
    g_autofree char *exe = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *dir = g_path_get_dirname(exe != NULL ? exe : "/");
    const char *const places[] = {"../../examples/tasks", "../share/assay/examples/tasks"};
    for (gsize i = 0; i < G_N_ELEMENTS(places); i++) {
        char *path = g_canonicalize_filename(places[i], dir);
        if (g_file_test(path, G_FILE_TEST_IS_DIR))
            return path;
        g_free(path);
    }
    return NULL;
}

static gboolean on_task(Task *task, guint line, const GError *why, gpointer user_data)
{
    Demo *demo = user_data;
    if (task == NULL) {
        cli_say(demo->cli, "example %u: %s", line, why->message);
        return TRUE;
    }
    demo->n_tasks++;
    for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++) {
        const char *patch = kinds[i].field != NULL ? cli_json_str(task->json, kinds[i].field) : "";
        g_autofree char *custom = g_strdup_printf("%s %s", task->instance_id, kinds[i].name);
        g_autoptr(json_t) prediction = json_pack(
            "{s:s, s:s, s:s, s:s}", "instance_id", task->instance_id, "model_name_or_path",
            kinds[i].name, "model_patch", patch, "custom_id", custom);
        g_autofree char *text = json_print(prediction);
        g_string_append_printf(demo->predictions, "%s\n", text);
    }
    return TRUE;
}

static gboolean is_rewarded_kind(const char *custom_id)
{
    for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (g_str_has_suffix(custom_id, kinds[i].name))
            return kinds[i].rewarded;
    return FALSE;
}

/* One line per wanted test of a grade. */
static gboolean tests_print(Demo *demo, const char *id)
{
    g_autofree char *target = g_strdup_printf("/v1/grades/%s/tests", id);
    g_autoptr(GError) error = NULL;
    g_autoptr(Client) client = client_new(client_socket(demo->cli->client));
    g_autoptr(Answer) answer = client_call(client, "GET", target, NULL, &error);
    if (answer == NULL || answer->status != 200)
        return FALSE;
    g_auto(GStrv) lines = g_strsplit((const char *)answer->body->data, "\n", -1);
    for (char **line = lines; *line != NULL; line++) {
        g_autoptr(json_t) test = json_parse(*line, strlen(*line), NULL);
        const char *list = cli_json_str(test, "list");
        if (strcmp(list, "f2p") == 0 || strcmp(list, "p2p") == 0)
            printf("      %s  %-8s %s\n", list, cli_json_str(test, "status"),
                   cli_json_str(test, "name"));
    }
    return TRUE;
}

/* ClientLineFn */
static gboolean on_grade(const json_t *line, gpointer user_data)
{
    Demo *demo = user_data;
    if (line == NULL)
        return TRUE;
    demo->n_grades++;
    if (demo->cli->json) {
        cli_print_json(line);
    } else {
        g_autofree char *reward = cli_reward(line);
        const char *verdict = cli_json_str(line, "verdict");
        const json_t *why = json_object_get(line, "error");
        printf("  %-24s %-14s reward %s   %5lld ms  %s\n", cli_json_str(line, "custom_id"),
               verdict[0] != '\0' ? verdict : cli_json_str(line, "state"), reward,
               (long long)cli_json_int(json_object_get(line, "timing"), "wall_ms"),
               json_is_object(why) ? cli_json_str(why, "detail") : "");
        tests_print(demo, cli_json_str(line, "id"));
        fflush(stdout);
    }
    gboolean rewarded = json_number_value(json_object_get(line, "reward")) > 0;
    demo->n_surprises += rewarded != is_rewarded_kind(cli_json_str(line, "custom_id"));
    return TRUE;
}

static int demo_sweep(Demo *demo, const char *examples)
{
    Cli *cli = demo->cli;
    GError *error = NULL;
    if (!dataset_read(examples, NULL, on_task, demo, &error))
        return cli_error(cli, error, NULL);
    g_autoptr(json_t) ask = json_pack("{s:s, s:s}", "path", examples, "dataset", "examples");
    g_autofree char *text = json_print(ask);
    g_autoptr(GBytes) body = g_bytes_new(text, strlen(text));
    g_autoptr(json_t) imported = client_json(cli->client, "POST", "/v1/tasks/import", body, &error);
    if (imported == NULL)
        return cli_error(cli, error, NULL);
    cli_say(cli, "imported   %u tasks from %s", demo->n_tasks, examples);

    g_autoptr(GBytes) lines = g_bytes_new(demo->predictions->str, demo->predictions->len);
    g_autoptr(json_t) sweep = client_json(
        cli->client, "POST", "/v1/sweeps?dataset=examples&name=demo&run_empty=1", lines, &error);
    if (sweep == NULL)
        return cli_error(cli, error, NULL);
    return cli_follow_sweep(cli, cli_json_str(sweep, "id"), cli_json_int(sweep, "total"), on_grade,
                            demo);
}

/* Without namespaces the demo still shows the main job, and says loudly what is missing. */
static void degraded_permit(Cli *cli)
{
    BoxSpec spec = {.limits = box_limits_default()};
    g_autoptr(GError) error = NULL;
    g_autoptr(Box) box = box_open(&spec, &error);
    if (box != NULL)
        return;
    cli_say(
        cli,
        "*** This host refuses namespaces: %s\n"
        "*** The demo goes on with Landlock, a syscall filter and rlimits only. Patches can see\n"
        "*** this machine's processes and files. Never grade patches you do not trust this way.\n"
        "*** assay doctor says what is missing.",
        error->message);
    config_set(cli->config, CONFIG_ALLOW_DEGRADED, "true", "demo", NULL);
}

static gboolean demo_config(Cli *cli, const char *state, GError **error)
{
    g_autofree char *socket = g_build_filename(state, "api.sock", NULL);
    if (!config_set(cli->config, CONFIG_STATE, state, "demo", error) ||
        !config_set(cli->config, CONFIG_SOCKET, socket, "demo", error))
        return FALSE;
    g_clear_pointer(&cli->client, client_free);
    cli->client = client_new(socket);
    return TRUE;
}

static int demo_run(Demo *demo, const char *examples, const char *state)
{
    Cli *cli = demo->cli;
    GError *error = NULL;
    degraded_permit(cli);
    if (!demo_config(cli, state, &error) || !cli_daemon_start(cli, FALSE, &error))
        return cli_error(cli, error, "assay doctor");
    int status = demo_sweep(demo, examples);
    g_autoptr(GError) stop_error = NULL;
    if (!cli_daemon_stop(cli, &stop_error))
        cli_say(cli, "%s", stop_error->message);
    if (status != CLI_OK)
        return status;
    if (demo->n_surprises > 0 || demo->n_grades != demo->n_tasks * G_N_ELEMENTS(kinds)) {
        cli_say(cli, "%u of %u grades are not what they should be.", demo->n_surprises,
                demo->n_grades);
        return CLI_FAILED;
    }
    cli_say(cli, "Everything works: gold is rewarded, wrong, empty and cheating patches are not.\n"
                 "Next: assay up, assay task import ROWS.jsonl, or assay help eval");
    return CLI_OK;
}

int cli_demo(Cli *cli)
{
    g_autofree char *examples = examples_find();
    g_autoptr(GError) error = NULL;
    g_autofree char *state = examples != NULL ? g_dir_make_tmp("assay-demo-XXXXXX", &error) : NULL;
    if (state == NULL)
        return cli_usage(cli, "%s",
                         examples == NULL ? "the example tasks are not installed" : error->message);
    Demo demo = {.cli = cli, .predictions = g_string_new(NULL)};
    int status = demo_run(&demo, examples, state);
    g_string_free(demo.predictions, TRUE);

    AUTO_FD parent = open(g_get_tmp_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_autofree char *name = g_path_get_basename(state);
    if (status == CLI_OK && parent >= 0 && !tree_remove(parent, name, &error))
        cli_say(cli, "%s is left: %s", state, error->message);
    else if (status != CLI_OK)
        cli_say(cli, "the daemon's log: %s/assayd.log", state);
    return status;
}
