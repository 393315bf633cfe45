/*
 * Evaluation scripts taken apart and made.
 */
#include "tasks/diff.h"
#include "tasks/script.h"

#include <string.h>

static const char script_text[] =
    "#!/bin/bash\nset -uxo pipefail\nsource /opt/miniconda3/bin/activate\n"
    "conda activate testbed\ncd /testbed\nexport LANG=en_US.UTF-8\n"
    "git config --global --add safe.directory /testbed\npython -m pip install -e .\n"
    "git checkout 0123 t.py\ngit apply -v - <<'EOF_114329324912'\n"
    "diff --git a/t.py b/t.py\n: '>>>>> Start Test Output'\n\nEOF_114329324912\n"
    "make\n: '>>>>> Start Test Output'\npytest -rA t.py\n: '>>>>> End Test Output'\n"
    "git checkout 0123 t.py\n";

static void parts_are_told_apart(void)
{
    const char *why = NULL;
    g_autoptr(EvalScript) script = eval_script_parse(script_text, &why);
    g_assert_nonnull(script);
    g_assert_cmpstr(script->state, ==,
                    "set -uxo pipefail\nsource /opt/miniconda3/bin/activate\n"
                    "conda activate testbed\ncd /testbed\nexport LANG=en_US.UTF-8\n");
    g_assert_cmpstr(script->prologue, ==,
                    "git config --global --add safe.directory /testbed\n"
                    "python -m pip install -e .\n");
    g_assert_cmpstr(script->build, ==, "make\n");
    g_assert_cmpstr(script->test, ==, "pytest -rA t.py\n");
}

static void a_script_without_its_parts_says_which(void)
{
    const char *why = NULL;
    g_assert_null(eval_script_parse("pytest\n", &why));
    g_assert_nonnull(strstr(why, "never applies"));
    g_assert_null(eval_script_parse("git apply -v - <<'EOF_114329324912'\nx\n", &why));
    g_assert_nonnull(strstr(why, "no end"));
    g_assert_null(eval_script_parse("git apply -v - <<'EOF_114329324912'\nEOF_114329324912\n"
                                    ": '>>>>> Start Test Output'\n",
                                    &why));
    g_assert_nonnull(strstr(why, "end marker"));
}

static void the_exit_code_stands_round_the_first_end_marker(void)
{
    g_autofree char *out = eval_script_with_exit_code("t\n: '>>>>> End Test Output'\nz\n");
    g_assert_cmpstr(out, ==,
                    "t\nSWEBENCH_TEST_EXIT_CODE=$?\n: '>>>>> End Test Output'\n"
                    "echo \">>>>> Test Exit Code: $SWEBENCH_TEST_EXIT_CODE\"\nz\n");
}

static void files_of_a_patch(void)
{
    g_autoptr(DiffFiles) files = diff_files_read(
        "diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,1 @@\n--- a/no\n x\n"
        "diff --git a/new b/new\nnew file mode 100644\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 "
        "@@\n+a\n"
        "diff --git a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n"
        "@@ -1 +0,0 @@\n-a\n"
        "diff --git a/o b/n\nrename from o\nrename to n\n--- a/o\n+++ b/n\n@@ -1 +1 @@\n-a\n+b\n");
    g_assert_cmpuint(files->n, ==, 4);
    g_assert_cmpstr(files->files[0].old_path, ==, "x.py");
    g_assert_null(files->files[1].old_path);
    g_assert_cmpstr(files->files[1].new_path, ==, "new");
    g_assert_null(files->files[2].new_path);
    g_assert_cmpstr(files->files[3].old_path, ==, "o");
    g_assert_cmpstr(files->files[3].new_path, ==, "n");
}

static void git_headers_give_the_new_side(void)
{
    g_auto(GStrv) paths = diff_git_headers("diff --git a/a b/c d b/e\nx\ndiff --git a/t b/t\n");
    g_assert_cmpstr(paths[0], ==, "e");
    g_assert_cmpstr(paths[1], ==, "t");
    g_assert_null(paths[2]);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/script/parts_are_told_apart", parts_are_told_apart);
    g_test_add_func("/script/a_script_without_its_parts_says_which",
                    a_script_without_its_parts_says_which);
    g_test_add_func("/script/the_exit_code_stands_round_the_first_end_marker",
                    the_exit_code_stands_round_the_first_end_marker);
    g_test_add_func("/script/files_of_a_patch", files_of_a_patch);
    g_test_add_func("/script/git_headers_give_the_new_side", git_headers_give_the_new_side);
    return g_test_run();
}
