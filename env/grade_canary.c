/*
 * The impossible tests: their text, their command, and whether the runner reported them.
 *
 * Invariants:
 *   1. A result that can have an honest cause (a limit) is never CANARY_SILENT.
 *   2. The command is the task's own test command with other names in it; one that holds shell
 *      syntax is not taken apart: no canary then.
 *   3. The copy is put in place by a command in the box, not by the supervisor: what the candidate
 *      left in its way can spoil the canary, never the grade's machinery.
 *
 * Not here: when it is run, and the control with the reference patch (grade_strict.c).
 */
#include "env/grade_canary.h"

#include "base/error.h"
#include "base/id.h"
#include "tasks/diff.h"

#include <string.h>

#define CANARY_STEP   "/tmp/assay-step.sh"
#define CANARY_SOURCE "/tmp/assay-source.py"

/* Words of a line of the test script; no quoting is undone, because words are only left out. */
#define SHELL_SYNTAX ";|&<>()$`\\"

/* Unittest tests, which both runners report; pytest gets a bare function too. `%s` is the token. */
static const char unittest_source[] = "\n\nimport unittest as _unittest_%s\n\n\n"
                                      "class Test%s(_unittest_%s.TestCase):\n"
                                      "    def test_1_%s(self):\n"
                                      "        self.assertEqual(1, 2)\n\n"
                                      "    def test_2_%s(self):\n"
                                      "        self.assertEqual('left', 'right')\n\n"
                                      "    def test_3_%s(self):\n"
                                      "        assert [1] == [2]\n";
static const char pytest_source[] = "\n\ndef test_4_%s():\n    assert 'left' == 'right'\n";

typedef enum Runner {
    RUNNER_NONE = 0,
    RUNNER_PYTEST,
    RUNNER_UNITTEST,
} Runner;

static const struct {
    const char *parser;
    Runner runner;
} runners[] = {
    {"pytest", RUNNER_PYTEST},     {"pytest_options", RUNNER_PYTEST}, {"pytest_v2", RUNNER_PYTEST},
    {"matplotlib", RUNNER_PYTEST}, {"seaborn", RUNNER_PYTEST},        {"unittest", RUNNER_UNITTEST},
};

void canary_free(Canary *canary)
{
    g_free(canary->test_path);
    g_free(canary->path);
    g_free(canary->source);
    g_free(canary->command);
    g_free(canary->token);
    g_free(canary);
}

/* "pkg/test_a.py" -> "pkg.test_a". */
static char *module_of(const char *path)
{
    char *module = g_strndup(path, strlen(path) - strlen(".py"));
    return g_strdelimit(module, "/", '.');
}

/* Does a word of a pytest command name a file of tests? */
static gboolean word_is_file(const char *word)
{
    return word[0] != '-' && (g_str_has_suffix(word, ".py") || strstr(word, ".py::") != NULL);
}

static gboolean word_names(const char *word, const char *target, const char *separator)
{
    if (g_str_has_prefix(word, "./"))
        word += 2;
    gsize len = strlen(target);
    return strncmp(word, target, len) == 0 &&
           (word[len] == '\0' || g_str_has_prefix(word + len, separator));
}

/* The words of `line` with the tests' own left out; NULL when none of them is `path`. */
static GString *pytest_words(char *const *words, const char *path)
{
    g_autoptr(GString) out = g_string_new(NULL);
    gboolean named = FALSE, is_pytest = FALSE;
    for (; *words != NULL; words++) {
        is_pytest |= strstr(*words, "pytest") != NULL || strstr(*words, "py.test") != NULL;
        named |= word_names(*words, path, "::");
        if (**words != '\0' && !word_is_file(*words))
            g_string_append_printf(out, "%s ", *words);
    }
    return named && is_pytest ? g_steal_pointer(&out) : NULL;
}

static GString *unittest_words(char *const *words, const char *path)
{
    g_autofree char *module = module_of(path);
    g_autoptr(GString) out = g_string_new(NULL);
    gboolean named = FALSE, behind = FALSE;
    for (; *words != NULL; words++) {
        named |= behind && (word_names(*words, module, ".") || strcmp(*words, path) == 0);
        if (**words != '\0' && (!behind || **words == '-'))
            g_string_append_printf(out, "%s ", *words);
        behind |= strcmp(*words, "unittest") == 0;
    }
    return named ? g_steal_pointer(&out) : NULL;
}

static void command_finish(Canary *canary, Runner runner, GString *words)
{
    g_autofree char *module = module_of(canary->path);
    for (guint i = 1; i <= canary->n_tests; i++) {
        if (runner == RUNNER_UNITTEST)
            g_string_append_printf(words, "%s.Test%s.test_%u_%s ", module, canary->token, i,
                                   canary->token);
        else if (i <= 3)
            g_string_append_printf(words, "%s::Test%s::test_%u_%s ", canary->path, canary->token, i,
                                   canary->token);
        else
            g_string_append_printf(words, "%s::test_%u_%s ", canary->path, i, canary->token);
    }
    canary->command = g_strdup(words->str);
}

static Canary *canary_for(const char *path, char *const *words, Runner runner,
                          const LogParser *parser)
{
    g_autoptr(GString) kept =
        runner == RUNNER_PYTEST ? pytest_words(words, path) : unittest_words(words, path);
    if (kept == NULL)
        return NULL;
    Canary *canary = g_new0(Canary, 1);
    g_autofree char *name = id_new("c"), *token = id_new("t");
    g_autofree char *stem = g_strndup(path, strlen(path) - strlen(".py"));
    g_strdelimit(name, "-", '_');
    canary->test_path = g_strdup(path);
    canary->path = g_strdup_printf("%s_%s.py", stem, name);
    canary->token = g_steal_pointer(&token);
    g_strdelimit(canary->token, "-", '_');
    canary->n_tests = runner == RUNNER_PYTEST ? 4 : 3;
    canary->parser = parser;
    command_finish(canary, runner, kept);
    return canary;
}

Canary *canary_new(const Task *task, const char *test_script)
{
    Runner runner = RUNNER_NONE;
    const LogParser *parser = task->log_parser != NULL ? log_parser_find(task->log_parser)
                                                       : log_parser_for_repo(task->repo);
    for (gsize i = 0; parser != NULL && i < G_N_ELEMENTS(runners); i++)
        if (strcmp(runners[i].parser, parser->name) == 0)
            runner = runners[i].runner;
    if (runner == RUNNER_NONE)
        return NULL;
    g_autoptr(DiffFiles) files = diff_files_read(task->test_patch);
    g_auto(GStrv) lines = g_strsplit(test_script, "\n", -1);
    for (char **line = lines; *line != NULL; line++) {
        if (strpbrk(*line, SHELL_SYNTAX) != NULL)
            continue;
        g_auto(GStrv) words = g_strsplit_set(*line, " \t", -1);
        for (guint i = 0; i < files->n; i++) {
            const char *path = files->files[i].new_path;
            Canary *canary = path != NULL && g_str_has_suffix(path, ".py")
                                 ? canary_for(path, words, runner, parser)
                                 : NULL;
            if (canary != NULL)
                return canary;
        }
    }
    return NULL;
}

void canary_set_source(Canary *canary, const char *text, gsize len)
{
    GString *out = g_string_new_len(text, (gssize)len);
    const char *t = canary->token;
    g_string_append_printf(out, unittest_source, t, t, t, t, t, t);
    if (canary->n_tests > 3)
        g_string_append_printf(out, pytest_source, t);
    canary->source = g_string_free(out, FALSE);
}

/* Was every impossible test reported as failed, and by the exit status too? */
static CanaryResult canary_judge(const Canary *canary, const BoxResult *result)
{
    if (result->outcome != BOX_EXITED && result->outcome != BOX_SIGNALED)
        return CANARY_UNCLEAR;
    gsize len = 0, text_len = 0;
    const char *out = result->out != NULL ? g_bytes_get_data(result->out, &len) : "";
    g_autofree char *text = text_read(out, len, &text_len);
    g_autoptr(StatusMap) map = status_map_new();
    LogContext ctx = {.version = GRADER_5};
    canary->parser->parse(canary->parser, (Span){text, text_len}, &ctx, map);
    log_context_clear(&ctx);
    guint failed = 0;
    for (guint i = 0; i < status_map_len(map); i++) {
        const StatusEntry *entry = status_map_at(map, i);
        failed += span_has(entry->name, span_of(canary->token)) && status_is_fail(entry->status);
    }
    gboolean heard =
        failed >= canary->n_tests && result->outcome == BOX_EXITED && result->exit_code != 0;
    return heard ? CANARY_HEARD : CANARY_SILENT;
}

gboolean canary_run(const Canary *canary, const GradeRequest *request, Box *box,
                    const char *const *envp, const char *state, GradeRun *run,
                    CanaryResult *ret_result, GError **error)
{
    g_assert(canary->source != NULL);
    g_autofree char *quoted = g_shell_quote(canary->path);
    g_autofree char *script =
        g_strdup_printf("set -uo pipefail\n%s\ncp " CANARY_SOURCE " %s || exit 0\n%s\n", state,
                        quoted, canary->command);
    g_autofree char *inside = box_text_inside(box, script);
    const char *argv[] = {"/bin/bash", CANARY_STEP, NULL};
    const BoxFile files[] = {{CANARY_STEP, inside, strlen(inside), 0755},
                             {CANARY_SOURCE, canary->source, strlen(canary->source), 0644}};
    BoxCommand command = {.argv = argv,
                          .envp = envp,
                          .cwd = "/testbed",
                          .files = files,
                          .n_files = G_N_ELEMENTS(files),
                          .merge = TRUE,
                          .wall_ms = grade_wall_left_ms(request, run)};
    g_auto(BoxResult) result = {0};
    if (!box_exec(box, &command, &result, error)) {
        g_prefix_error(error, "canary: ");
        return FALSE;
    }
    run->cpu_us += result.cpu_user_us + result.cpu_sys_us;
    *ret_result = canary_judge(canary, &result);
    return TRUE;
}
