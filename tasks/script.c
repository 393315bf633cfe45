/*
 * The anatomy of an evaluation script, line by line.
 *
 * Invariants:
 *   1. Pure: text in, text out; the script is never run here.
 *   2. Only lines of known shape become `state`: they are repeated before the tests by strict
 *      grading, so nothing that runs the candidate's code may be among them.
 */
#include "tasks/script.h"

#include "tasks/diff.h"

#include <string.h>

/* Lines that only set up the shell, by their beginning. */
static const char *const state_heads[] = {
    "source /opt/miniconda3/bin/activate",
    "source $NVM_DIR/nvm.sh",
    "conda activate ",
    "cd ",
    "export ",
    "set -",
    "locale-gen",
    "umask ",
    "ulimit ",
};

static gboolean line_is_state(const char *line)
{
    for (gsize i = 0; i < G_N_ELEMENTS(state_heads); i++)
        if (g_str_has_prefix(line, state_heads[i]))
            return TRUE;
    return FALSE;
}

static gboolean line_is_reset(const char *line)
{
    return g_str_has_prefix(line, "git checkout ") || g_str_has_prefix(line, "rm -f ") ||
           g_str_has_prefix(line, "echo \"No test files to reset\"");
}

/* TRUE for `: 'MARKER'`, the line whose xtrace prints the marker. */
static gboolean line_is_marker(const char *line, const char *marker)
{
    return line[0] == ':' && strstr(line, marker) != NULL;
}

static gboolean line_opens_patch(const char *line)
{
    return g_str_has_prefix(line, "git apply ") && strstr(line, "<<'" EVAL_HEREDOC "'") != NULL;
}

typedef enum ScriptPart {
    PART_PROLOGUE,
    PART_PATCH,
    PART_BUILD,
    PART_TEST,
    PART_AFTER,
} ScriptPart;

static void line_add(GString *out, const char *line)
{
    g_string_append(out, line);
    g_string_append_c(out, '\n');
}

EvalScript *eval_script_parse(const char *text, const char **why)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autoptr(GString) state = g_string_new(NULL), prologue = g_string_new(NULL);
    g_autoptr(GString) build = g_string_new(NULL), test = g_string_new(NULL);
    ScriptPart part = PART_PROLOGUE;

    for (char **line = lines; *line != NULL; line++) {
        if (part == PART_PROLOGUE && line_opens_patch(*line))
            part = PART_PATCH;
        else if (part == PART_PROLOGUE && line_is_state(*line))
            line_add(state, *line);
        else if (part == PART_PROLOGUE && !line_is_reset(*line) && (*line)[0] != '#')
            line_add(prologue, *line);
        else if (part == PART_PATCH && strcmp(*line, EVAL_HEREDOC) == 0)
            part = PART_BUILD;
        else if (part == PART_BUILD && line_is_marker(*line, EVAL_MARKER_START))
            part = PART_TEST;
        else if (part == PART_TEST && line_is_marker(*line, EVAL_MARKER_END))
            part = PART_AFTER;
        else if (part == PART_BUILD || part == PART_TEST)
            line_add(part == PART_BUILD ? build : test, *line);
    }

    static const char *const missing[] = {
        [PART_PROLOGUE] = "it never applies a test patch (git apply ... <<'" EVAL_HEREDOC "')",
        [PART_PATCH] = "the test patch has no end",
        [PART_BUILD] = "it has no start marker",
        [PART_TEST] = "it has no end marker",
        [PART_AFTER] = NULL,
    };
    *why = missing[part];
    if (*why != NULL)
        return NULL;

    EvalScript *script = g_new0(EvalScript, 1);
    script->state = g_strdup(state->str);
    script->prologue = g_strdup(prologue->str);
    script->build = g_strdup(build->str);
    script->test = g_strdup(test->str);
    return script;
}

void eval_script_free(EvalScript *script)
{
    if (script == NULL)
        return;
    g_free(script->state);
    g_free(script->prologue);
    g_free(script->build);
    g_free(script->test);
    g_free(script);
}

char *eval_script_with_exit_code(const char *text)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_autoptr(GString) out = g_string_new(NULL);
    gboolean done = FALSE;

    for (char **line = lines; *line != NULL; line++) {
        gboolean here = !done && strstr(*line, EVAL_MARKER_END) != NULL;
        if (here)
            g_string_append(out, "SWEBENCH_TEST_EXIT_CODE=$?\n");
        g_string_append(out, *line);
        if (here)
            g_string_append(out, "\necho \">>>>> Test Exit Code: $SWEBENCH_TEST_EXIT_CODE\"");
        if (line[1] != NULL)
            g_string_append_c(out, '\n');
        done = done || here;
    }
    return g_string_free(g_steal_pointer(&out), FALSE);
}

static void lines_add(GString *out, const char *const *lines)
{
    for (; lines != NULL && *lines != NULL; lines++)
        line_add(out, *lines);
}

char *eval_script_make(const EvalScriptSpec *spec)
{
    GString *out = g_string_new("#!/bin/bash\nset -uxo pipefail\n");
    lines_add(out, spec->before);
    line_add(out, spec->reset);
    lines_add(out, spec->after_reset);
    g_string_append_printf(out, "%s - <<'" EVAL_HEREDOC "'\n%s\n" EVAL_HEREDOC "\n", spec->apply,
                           spec->test_patch);
    lines_add(out, spec->build);
    line_add(out, ": '" EVAL_MARKER_START "'");
    lines_add(out, spec->test);
    line_add(out, ": '" EVAL_MARKER_END "'");
    line_add(out, spec->reset);
    return g_string_free(out, FALSE);
}

/* What resets the test files: old ones from the commit, new ones removed; as v5 rows do it. */
static char *reset_line(const char *commit, const char *test_patch)
{
    g_autoptr(DiffFiles) touched = diff_files_read(test_patch);
    g_autoptr(GString) old = g_string_new(NULL), added = g_string_new(NULL);
    for (guint i = 0; i < touched->n; i++) {
        const DiffFile *file = &touched->files[i];
        GString *list = file->old_path != NULL ? old : added;
        g_string_append_printf(list, " %s", file->old_path ? file->old_path : file->new_path);
    }
    g_autoptr(GString) line = g_string_new(NULL);
    if (old->len > 0)
        g_string_append_printf(line, "git checkout %s%s", commit, old->str);
    if (added->len > 0)
        g_string_append_printf(line, "%srm -f%s", line->len > 0 ? "\n" : "", added->str);
    return g_string_free(g_steal_pointer(&line), FALSE);
}

char *eval_script_embedded(const char *commit, const char *test_patch, const char *build,
                           const char *test)
{
    g_autofree char *reset = reset_line(commit, test_patch);
    g_autofree char *diff = g_strdup_printf("git -c core.fileMode=false diff %s", commit);
    const char *before[] = {"cd /testbed", "git config --global --add safe.directory /testbed",
                            "git status",  "git show",
                            diff,          NULL};
    const char *build_lines[] = {build, NULL};
    const char *test_lines[] = {test, NULL};
    return eval_script_make(&(EvalScriptSpec){
        .base_commit = commit,
        .test_patch = test_patch,
        .before = before,
        .build = build_lines,
        .test = test_lines,
        .apply = "git apply -v",
        .reset = reset,
    });
}
