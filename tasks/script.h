/*
 * Evaluation scripts: SWE-bench's layout, taken apart and put together.
 *
 *     g_autoptr(EvalScript) script = eval_script_parse(task->eval_script);
 *     script->state     lines that set up the shell (activate, cd, export)
 *     script->prologue  the rest before the test files are reset (git status, install ...)
 *     script->build     between the test patch and the start marker
 *     script->test      between the markers
 *
 * Source: SWE-bench/SWE-bench v4.1.0, swebench/harness/test_spec/{python,utils,javascript}.py, and
 * the eval_script field of v5 rows.
 */
#pragma once

#include <glib.h>

#define EVAL_MARKER_START ">>>>> Start Test Output"
#define EVAL_MARKER_END   ">>>>> End Test Output"
#define EVAL_HEREDOC      "EOF_114329324912"

typedef struct EvalScript {
    char *state;
    char *prologue;
    char *build;
    char *test;
} EvalScript;

/* NULL when the text has no test patch heredoc or no markers in order: `why` (static) says so. */
EvalScript *eval_script_parse(const char *text, const char **why);
void eval_script_free(EvalScript *script);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(EvalScript, eval_script_free)

/* The script as the v5 harness runs it: exit-code lines round the first end marker. */
char *eval_script_with_exit_code(const char *text);

/* What a script is made of when it is made here (v4.1 rows, Assay's own tasks). */
typedef struct EvalScriptSpec {
    const char *base_commit;
    const char *test_patch;
    const char *const *before;      /* lines after `#!/bin/bash`, `set -uxo pipefail` */
    const char *const *after_reset; /* between the reset line and the test patch */
    const char *const *build;
    const char *const *test;
    const char *apply; /* "git apply -v" or "git apply --verbose --reject" */
    const char *reset; /* the reset line, also the last line */
} EvalScriptSpec;

char *eval_script_make(const EvalScriptSpec *spec);

/* The script of a repository that travels in its row: `build` (NULL: nothing) and `test` are shell
 * commands. */
char *eval_script_embedded(const char *commit, const char *test_patch, const char *build,
                           const char *test);
