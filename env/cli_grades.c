/*
 * grade, show, watch, logs, cancel: what works on any id.
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"

#include <string.h>

#define PATCH_MAX (128u * 1024 * 1024)

char *cli_resolve_id(Cli *cli, const char *text, const char *type, GError **error)
{
    if (id_is(text, type))
        return g_strdup(text);
    const char *path = strcmp(type, "swp") == 0 ? "/v1/sweeps" : "/v1/grades";
    gboolean last = strcmp(text, "@last") == 0;
    g_autofree char *target = g_strdup_printf("%s?limit=%d", path, last ? 1 : 1000);
    g_autoptr(json_t) list = client_json(cli->client, "GET", target, NULL, error);
    if (list == NULL)
        return NULL;
    const json_t *data = json_object_get(list, "data");
    const char *found = NULL;
    for (gsize i = 0; i < json_array_size(data); i++) {
        const char *id = cli_json_str(json_array_get(data, i), "id");
        if (!last && !g_str_has_prefix(id, text))
            continue;
        if (found != NULL) {
            error_set(error, ASSAY_ERROR_INPUT, "%s: more than one id begins so", text);
            return NULL;
        }
        found = id;
    }
    if (found == NULL) {
        error_set(error, ASSAY_ERROR_NOT_FOUND, "%s: not found", text);
        return NULL;
    }
    return g_strdup(found);
}

static GBytes *patch_read(const char *path, GError **error)
{
    return strcmp(path, "-") == 0 ? fd_read_all(STDIN_FILENO, PATCH_MAX, error)
                                  : file_read(path, PATCH_MAX, error);
}

/* The reference patch of a task. */
static GBytes *gold_read(Cli *cli, const char *task, GError **error)
{
    g_autofree char *id = g_uri_escape_string(task, "/", FALSE);
    g_autofree char *target = g_strdup_printf("/v1/tasks/%s?include=patch", id);
    g_autoptr(json_t) shown = client_json(cli->client, "GET", target, NULL, error);
    if (shown == NULL)
        return NULL;
    const char *patch = cli_json_str(shown, "patch");
    return g_bytes_new(patch, strlen(patch));
}

static GBytes *patch_of(Cli *cli, GError **error)
{
    gboolean gold = cli_has(cli, "gold");
    gboolean empty = cli_has(cli, "empty");
    if ((int)gold + (int)empty + (int)(cli->args->len == 2) != 1) {
        error_set(error, ASSAY_ERROR_INPUT, "name one of PATCH, --gold, --empty");
        return NULL;
    }
    if (gold)
        return gold_read(cli, cli_arg(cli, 0), error);
    return empty ? g_bytes_new("", 0) : patch_read(cli_arg(cli, 1), error);
}

static GBytes *grade_body(Cli *cli, GBytes *patch, GError **error)
{
    gsize len;
    const char *text = g_bytes_get_data(patch, &len);
    json_t *patch_json = json_stringn(text != NULL ? text : "", len);
    if (patch_json == NULL) {
        error_set(error, ASSAY_ERROR_INPUT, "the patch is not UTF-8");
        return NULL;
    }
    g_autoptr(json_t) ask = json_pack("{s:s,s:o}", "task", cli_arg(cli, 0), "patch", patch_json);
    static const char *const plain[] = {"mode", "cache", "dataset"};
    for (guint i = 0; i < G_N_ELEMENTS(plain); i++) {
        if (cli_has(cli, plain[i]))
            json_object_set_new(ask, plain[i], json_string(cli_option(cli, plain[i])));
    }
    static const ConfigKey paths[] = {CONFIG_ENVIRONMENTS, CONFIG_REPOS};
    for (guint i = 0; i < G_N_ELEMENTS(paths); i++) {
        const char *value = config_text(cli->config, paths[i]);
        if (value[0] != '\0')
            json_object_set_new(ask, config_infos[paths[i]].name, json_string(value));
    }
    g_autofree char *body = json_print(ask);
    return g_bytes_new(body, strlen(body));
}

static void print_grade(const json_t *grade)
{
    g_autofree char *reward = cli_reward(grade);
    const json_t *error = json_object_get(grade, "error");
    const json_t *tests = json_object_get(grade, "tests");
    const json_t *usage = json_object_get(grade, "usage");
    const json_t *timing = json_object_get(grade, "timing");
    const char *verdict = cli_json_str(grade, "verdict");
    printf("%s   %s   reward %s   %s%s\n", cli_json_str(grade, "task"),
           verdict[0] != '\0' ? verdict : cli_json_str(grade, "state"), reward,
           cli_json_str(grade, "mode"),
           json_is_true(json_object_get(grade, "cached")) ? ", cached" : "");
    printf("\n  id        %s\n", cli_json_str(grade, "id"));
    for (int i = 0; i < 2 && json_is_object(tests); i++) {
        const json_t *list = json_object_get(tests, i == 0 ? "f2p" : "p2p");
        printf("  %s  %lld passed, %lld failed, %lld missing\n",
               i == 0 ? "fail-to-pass" : "pass-to-pass", (long long)cli_json_int(list, "passed"),
               (long long)cli_json_int(list, "failed"), (long long)cli_json_int(list, "missing"));
    }
    const json_t *unexpected = json_object_get(tests, "unexpected");
    for (gsize i = 0; i < MIN(json_array_size(unexpected), 20); i++) {
        const json_t *test = json_array_get(unexpected, i);
        printf("    %s: %s, expected %s\n", cli_json_str(test, "name"), cli_json_str(test, "got"),
               cli_json_str(test, "expected"));
    }
    if (json_is_object(timing))
        printf("  time      %lld ms in all, tests %lld ms, %lld MiB at the peak\n",
               (long long)cli_json_int(timing, "wall_ms"),
               (long long)cli_json_int(timing, "run_ms"),
               (long long)(cli_json_int(usage, "mem_peak_bytes") >> 20));
    const json_t *evidence = json_object_get(grade, "evidence");
    for (gsize i = 0; i < json_array_size(evidence); i++)
        printf("  evidence  %s %s\n", cli_json_str(json_array_get(evidence, i), "code"),
               cli_json_str(json_array_get(evidence, i), "path"));
    if (json_is_object(error))
        printf("  error     %s: %s\n", cli_json_str(error, "code"), cli_json_str(error, "detail"));
    if (json_object_get(json_object_get(grade, "files"), "test_output.txt") != NULL)
        printf("  log       assay logs %s\n", cli_json_str(grade, "id"));
}

/* Prints a final grade; the exit status that its state and --fail-on ask for. */
static int grade_finish_print(Cli *cli, const json_t *grade)
{
    if (cli->json)
        cli_print_json(grade);
    else
        print_grade(grade);
    const char *gate = cli_option(cli, "fail-on");
    if (gate != NULL && strcmp(gate, cli_json_str(grade, "verdict")) == 0)
        return CLI_GATE;
    return strcmp(cli_json_str(grade, "state"), "failed") == 0 ? CLI_FAILED : CLI_OK;
}

static gboolean is_final(const json_t *grade)
{
    static const char *const words[] = {"done", "failed", "cancelled", "stale", NULL};
    return g_strv_contains(words, cli_json_str(grade, "state"));
}

/* Waits for a grade. */
static int grade_wait(Cli *cli, const char *id)
{
    g_autofree char *target = g_strdup_printf("/v1/grades/%s?wait_s=5", id);
    cli_interrupts_watch();
    for (;;) {
        GError *error = NULL;
        g_autoptr(json_t) grade = client_json(cli->client, "GET", target, NULL, &error);
        if (cli_interrupts() > 0) {
            g_clear_error(&error);
            cli_say(cli, "\nThe work goes on. Come back: assay watch %s", id);
            return CLI_INTERRUPTED;
        }
        if (grade == NULL)
            return cli_error(cli, error, NULL);
        if (is_final(grade))
            return grade_finish_print(cli, grade);
    }
}

int cli_grade(Cli *cli)
{
    GError *error = NULL;
    g_autoptr(GBytes) patch = patch_of(cli, &error);
    g_autoptr(GBytes) body = patch != NULL ? grade_body(cli, patch, &error) : NULL;
    if (body == NULL)
        return cli_error(cli, error, NULL);
    g_autoptr(json_t) grade = client_json(cli->client, "POST", "/v1/grades", body, &error);
    if (grade == NULL)
        return cli_error(cli, error, NULL);
    if (is_final(grade))
        return grade_finish_print(cli, grade);
    if (cli_has(cli, "detach")) {
        puts(cli_json_str(grade, "id"));
        return CLI_OK;
    }
    return grade_wait(cli, cli_json_str(grade, "id"));
}

static const char *kind_of(const char *text)
{
    return g_str_has_prefix(text, "swp_") || strcmp(text, "@last") == 0 ? "swp" : "grd";
}

int cli_show(Cli *cli)
{
    GError *error = NULL;
    const char *text = cli_arg(cli, 0);
    gboolean sweep =
        strcmp(cli->command->name, "sweep show") == 0 || strcmp(kind_of(text), "swp") == 0;
    if (!sweep && !g_str_has_prefix(text, "grd_"))
        return cli_task_show(cli);
    g_autofree char *id = cli_resolve_id(cli, text, sweep ? "swp" : "grd", &error);
    if (id == NULL)
        return cli_error(cli, error, NULL);
    if (sweep)
        return cli_sweep_summary(cli, id, stdout);
    g_autofree char *target = g_strconcat("/v1/grades/", id, NULL);
    g_autoptr(json_t) grade = client_json(cli->client, "GET", target, NULL, &error);
    if (grade == NULL)
        return cli_error(cli, error, NULL);
    if (cli->json)
        cli_print_json(grade);
    else
        print_grade(grade);
    return CLI_OK;
}

int cli_watch(Cli *cli)
{
    GError *error = NULL;
    const char *text = cli_arg(cli, 0);
    gboolean sweep =
        strcmp(cli->command->name, "sweep watch") == 0 || strcmp(kind_of(text), "swp") == 0;
    g_autofree char *id = cli_resolve_id(cli, text, sweep ? "swp" : "grd", &error);
    if (id == NULL)
        return cli_error(cli, error, NULL);
    if (!sweep)
        return grade_wait(cli, id);
    g_autofree char *target = g_strconcat("/v1/sweeps/", id, NULL);
    g_autoptr(json_t) shown = client_json(cli->client, "GET", target, NULL, &error);
    if (shown == NULL)
        return cli_error(cli, error, NULL);
    gint64 total = cli_json_int(json_object_get(shown, "counts"), "total");
    int status = cli_follow_sweep(cli, id, total, NULL, NULL);
    return status != CLI_OK ? status : cli_sweep_summary(cli, id, stdout);
}

static void print_matching(const char *data, gsize len, const char *wanted)
{
    const char *end = data + len;
    while (data < end) {
        const char *next = memchr(data, '\n', (gsize)(end - data));
        gsize n = (gsize)((next != NULL ? next + 1 : end) - data);
        if (memmem(data, n, wanted, strlen(wanted)) != NULL)
            fwrite(data, 1, n, stdout);
        data += n;
    }
}

int cli_logs(Cli *cli)
{
    GError *error = NULL;
    if (strcmp(cli_arg(cli, 0), "daemon") == 0) {
        g_autofree char *path =
            g_build_filename(config_text(cli->config, CONFIG_STATE), "assayd.log", NULL);
        g_autoptr(GBytes) log = file_read(path, PATCH_MAX, &error);
        if (log == NULL)
            return cli_error(cli, error, NULL);
        fwrite(g_bytes_get_data(log, NULL), 1, g_bytes_get_size(log), stdout);
        return CLI_OK;
    }
    g_autofree char *id = cli_resolve_id(cli, cli_arg(cli, 0), "grd", &error);
    if (id == NULL)
        return cli_error(cli, error, NULL);
    const char *file = cli_option(cli, "file");
    const char *tail = cli_option(cli, "tail");
    g_autofree char *target = file != NULL ? g_strdup_printf("/v1/grades/%s/files/%s", id, file)
                                           : g_strdup_printf("/v1/grades/%s/log%s%s", id,
                                                             tail != NULL ? "?tail_lines=" : "",
                                                             tail != NULL ? tail : "");
    g_autoptr(Answer) answer = client_call(cli->client, "GET", target, NULL, &error);
    if (answer != NULL && answer->status >= 400) {
        g_autoptr(json_t) problem = client_json(cli->client, "GET", target, NULL, &error);
        (void)problem;
    }
    if (error != NULL)
        return cli_error(cli, error, NULL);
    if (cli_has(cli, "grep"))
        print_matching((const char *)answer->body->data, answer->body->len,
                       cli_option(cli, "grep"));
    else
        fwrite(answer->body->data, 1, answer->body->len, stdout);
    return CLI_OK;
}

int cli_cancel(Cli *cli)
{
    int worst = CLI_OK;
    for (guint i = 0; i < cli->args->len; i++) {
        GError *error = NULL;
        const char *text = cli_arg(cli, i);
        gboolean sweep = strcmp(kind_of(text), "swp") == 0;
        g_autofree char *id = cli_resolve_id(cli, text, sweep ? "swp" : "grd", &error);
        g_autoptr(json_t) reply = NULL;
        if (id != NULL) {
            g_autofree char *target =
                g_strdup_printf("/v1/%s/%s/cancel", sweep ? "sweeps" : "grades", id);
            reply = client_json(cli->client, "POST", target, NULL, &error);
        }
        if (reply == NULL)
            worst = MAX(worst, cli_error(cli, error, NULL));
        else if (cli->json)
            cli_print_json(reply);
        else
            cli_say(cli, "%s is cancelled", id);
    }
    return worst;
}
