/*
 * Dataset files: every format, every mistake with its line.
 */
#include "base/fd.h"
#include "tasks/dataset.h"

#include <string.h>

typedef struct Seen {
    GString *text; /* "LINE id|" for tasks, "LINE !why|" for bad rows */
} Seen;

static gboolean on_row(Task *task, guint line, const GError *why, gpointer user_data)
{
    GString *text = ((Seen *)user_data)->text;
    if (task != NULL)
        g_string_append_printf(text, "%u %s|", line, task->instance_id);
    else
        g_string_append_printf(text, "%u !%s|", line, why->message);
    return TRUE;
}

#define ROW(id)                                                                                    \
    "{\"instance_id\":\"" id "\",\"repo\":\"o/n\",\"base_commit\":"                                \
    "\"0123456789012345678901234567890123456789\",\"test_patch\":\"\",\"eval_script\":\"x\","      \
    "\"FAIL_TO_PASS\":\"[\\\"t\\\"]\",\"PASS_TO_PASS\":[]}"

static char *read_text(const char *suffix, const char *text)
{
    g_autofree char *name = g_strconcat("assay-rows-XXXXXX", suffix, NULL);
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp(name, &path, NULL);
    g_assert_true(fd_write_all(fd, text, strlen(text), NULL));
    close(fd);
    Seen seen = {g_string_new(NULL)};
    g_autoptr(GError) error = NULL;
    if (!dataset_read(path, NULL, on_row, &seen, &error))
        g_string_append_printf(seen.text, "unreadable: %s", strstr(error->message, ": "));
    unlink(path);
    return g_string_free(seen.text, FALSE);
}

static void rows_are_read_from_every_shape(void)
{
    static const struct {
        const char *suffix, *text, *want;
    } cases[] = {
        {".jsonl", ROW("a") "\n\n" ROW("b"), "1 a|3 b|"},
        {".json", "[" ROW("a") "," ROW("b") "]", "1 a|2 b|"},
        {".json", "{\"a\":" ROW("a") "}", "1 a|"},
        {".json", ROW("a"), "1 a|"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *got = read_text(cases[i].suffix, cases[i].text);
        g_assert_cmpstr(got, ==, cases[i].want);
    }
}

static void a_bad_row_is_named_and_the_rest_is_read(void)
{
    static const struct {
        const char *row, *want;
    } cases[] = {
        {"{\"repo\":", "1 !line 1 column"},
        {"[1]", "1 !not a task row"},
        {"{\"eval_script\":\"x\"}", "1 !field instance_id: missing"},
        {"{\"instance_id\":7,\"eval_script\":\"x\"}", "1 !field instance_id: must be a string"},
        {"{\"repo\":\"o/n\",\"base_commit\":\"1\",\"version\":\"1\"}", "1 !field eval_script"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text = g_strconcat(cases[i].row, "\n" ROW("good") "\n", NULL);
        g_autofree char *got = read_text(".jsonl", text);
        if (!g_str_has_prefix(got, cases[i].want) || !g_str_has_suffix(got, "|2 good|"))
            g_error("%s -> %s", cases[i].row, got);
    }
}

/* ROW with one part replaced. */
static char *row_with(const char *old, const char *new)
{
    g_autoptr(GString) row = g_string_new(ROW("a"));
    g_assert_cmpuint(g_string_replace(row, old, new, 1), ==, 1);
    return read_text(".jsonl", row->str);
}

static void hostile_fields_are_refused(void)
{
    static const struct {
        const char *old, *new, *want;
    } cases[] = {
        {"\"a\"", "\"../a\"", "field instance_id"},
        {"\"a\"", "\"\"", "field instance_id"},
        {"o/n", "o/n/p", "field repo"},
        {"o/n", "../n", "field repo"},
        {"0123456789012345678901234567890123456789", "HEAD", "field base_commit"},
        {"\"[\\\"t\\\"]\"", "[1]", "field FAIL_TO_PASS: item 0"},
        {"\"[\\\"t\\\"]\"", "\"[\"", "field FAIL_TO_PASS: line 1"},
        {"\"x\"", "\"x\",\"eval_type\":\"all\"", "field eval_type"},
        {"\"x\"", "\"x\",\"files\":{\"a/../b\":\"\"}", "field files"},
        {"\"x\"", "\"x\",\"files\":{\".GIT/config\":\"\"}", "field files"},
        {"\"x\"", "\"x\",\"repo\":\"twice/x\"", "duplicate"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *got = row_with(cases[i].old, cases[i].new);
        if (!g_str_has_prefix(got, "1 !") || strstr(got, cases[i].want) == NULL)
            g_error("%s: %s", cases[i].new, got);
    }
}

static void an_unreadable_file_is_an_error(void)
{
    g_autofree char *empty = read_text(".jsonl", "");
    g_assert_nonnull(strstr(empty, "the file is empty"));
    Seen seen = {g_string_new(NULL)};
    g_autoptr(GError) error = NULL;
    g_assert_false(dataset_read("/nonexistent/x.jsonl", NULL, on_row, &seen, &error));
    g_string_free(seen.text, TRUE);
}

static void a_v4_row_gets_its_script_from_the_spec_map(void)
{
    static const char specs[] =
        "{\"specs\":{\"o/n\":{\"1\":{\"test_cmd\":\"pytest -rA\",\"install\":\"pip install .\"}}},"
        "\"ext\":{\"o/n\":\"py\"}}";
    static const char row[] =
        "{\"instance_id\":\"a\",\"repo\":\"o/n\",\"version\":\"1\",\"base_commit\":"
        "\"0123456789012345678901234567890123456789\",\"test_patch\":"
        "\"diff --git a/t/x.py b/t/x.py\\n--- a/t/x.py\\n+++ b/t/x.py\\n@@ -1 +1 @@\\n-a\\n+b\\n"
        "diff --git a/t/d.json b/t/d.json\\nnew file mode 100644\\n--- /dev/null\\n+++ "
        "b/t/d.json\\n"
        "@@ -0,0 +1 @@\\n+b\\n\",\"FAIL_TO_PASS\":[],\"PASS_TO_PASS\":[]}";
    g_autoptr(json_t) map = json_parse(specs, strlen(specs), NULL);
    g_autoptr(json_t) value = json_parse(row, strlen(row), NULL);
    g_autoptr(GError) error = NULL;
    g_autoptr(Task) task = dataset_row(value, map, &error);
    g_assert_no_error(error);
    g_assert_nonnull(strstr(task->eval_script,
                            "\npip install .\ngit checkout 0123456789012345678901"
                            "234567890123456789 t/x.py\ngit apply -v - <<"));
    g_assert_nonnull(strstr(task->eval_script, "\npytest -rA t/x.py\n"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/dataset/rows_are_read_from_every_shape", rows_are_read_from_every_shape);
    g_test_add_func("/dataset/a_bad_row_is_named_and_the_rest_is_read",
                    a_bad_row_is_named_and_the_rest_is_read);
    g_test_add_func("/dataset/hostile_fields_are_refused", hostile_fields_are_refused);
    g_test_add_func("/dataset/an_unreadable_file_is_an_error", an_unreadable_file_is_an_error);
    g_test_add_func("/dataset/a_v4_row_gets_its_script_from_the_spec_map",
                    a_v4_row_gets_its_script_from_the_spec_map);
    return g_test_run();
}
