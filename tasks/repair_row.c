/*
 * One repair task as a canonical row: files with the bug, hidden tests, statement, gold patch.
 *
 * Invariants:
 *   1. Expected values are in the hidden test file and in calls.expected; of the files of the
 *      repository only the first SHOWN tests have theirs.
 *   2. The hidden tests and the driver make the same calls in the same order.
 */
#include "tasks/repair.h"

#include "tasks/repo_diff.h"
#include "tasks/script.h"

#include <string.h>

#define SHOWN        2u /* tests that the repository has before the hidden ones come */
#define WALL_S       20
#define C_CPU_US     "100000" /* of the driver's process; a loop without end costs no more */
#define PYTHON_CPU_S "0.25"

typedef struct Row {
    const RepairFamily *family;
    const RepairMutant *mutant; /* NULL: the right text */
    const RepairNames *names;
    gboolean is_python;
    GString *right, *wrong; /* the file with the bug, and without */
    json_t *edits;
    char *path, *header_path, *also_path, *test_path; /* header and also: NULL without */
} Row;

static char *filled(const Row *row, const char *text)
{
    GString *out = g_string_new(NULL);
    repair_fill(out, text, strlen(text), row->names);
    return g_string_free(out, FALSE);
}

static guint line_of(const GString *text, gsize offset)
{
    guint line = 1;
    for (gsize i = 0; i < offset; i++)
        line += text->str[i] == '\n';
    return line;
}

/* Both texts, and where they differ. */
static void make_texts(Row *row)
{
    const char *code = row->family->code;
    gsize at = 0;
    repair_fill(row->right, code, strlen(code), row->names);
    for (guint i = 0; row->mutant != NULL && i < row->mutant->n_edits; i++) {
        const RepairEdit *edit = &row->mutant->edits[i];
        g_autoptr(GString) right = g_string_new(NULL);
        repair_fill(row->wrong, code + at, edit->at - at, row->names);
        gsize offset = row->wrong->len;
        repair_fill(row->wrong, edit->wrong, strlen(edit->wrong), row->names);
        repair_fill(right, code + edit->at, edit->len, row->names);
        json_array_append_new(row->edits, json_pack("{s:i, s:I, s:s, s:s}", "line",
                                                    (int)line_of(row->wrong, offset), "offset",
                                                    (json_int_t)offset, "wrong",
                                                    row->wrong->str + offset, "right", right->str));
        at = edit->at + edit->len;
    }
    repair_fill(row->wrong, code + at, strlen(code) - at, row->names);
}

/* ---- tests ---- */

static const char c_includes[] = "#include <stdio.h>\n#include <string.h>\n\n";

/* The driver is compiled for every verdict: reading headers would be half of the time. */
static const char c_declares[] = "int snprintf(char *, unsigned long, const char *, ...);\n"
                                 "int dprintf(int, const char *, ...);\n"
                                 "int setitimer(int, const void *, void *);\n\n";

static const char c_show[] =
    "static char got[256];\n"
    "\n"
    "#define A(...) (int[]){__VA_ARGS__}, (int)(sizeof(int[]){__VA_ARGS__} / sizeof(int))\n"
    "#define I(value) snprintf(got, sizeof got, \"%lld\", (long long)(value))\n"
    "#define S(value) snprintf(got, sizeof got, \"%s\", value)\n"
    "#define V(array, length) show_array(array, length)\n"
    "\n"
    "static void show_array(const int *array, int length)\n"
    "{\n"
    "    int used = snprintf(got, sizeof got, \"%d:\", length);\n"
    "    for (int i = 0; i < length && i < 16; i++)\n"
    "        used += snprintf(got + used, sizeof got - used, \" %d\", array[i]);\n"
    "}\n"
    "\n";

/* The prototype, from the header or from the text up to the function's brace. */
static char *c_declaration(const Row *row)
{
    if (row->header_path != NULL)
        return g_strdup_printf("#include \"%s\"\n", row->header_path);
    const char *name = strstr(row->family->code, "$F(");
    const char *from = name;
    while (from > row->family->code && from[-1] != '\n')
        from--;
    GString *out = g_string_new(NULL);
    repair_fill(out, from, strcspn(from, "{") - 1, row->names);
    g_string_append(out, ";\n");
    return g_string_free(out, FALSE);
}

/* The quoted text as C and Python both read it: values are ASCII without control characters. */
static char *quoted(const char *text)
{
    g_autofree char *escaped = g_strescape(text, NULL);
    return g_strdup_printf("\"%s\"", escaped);
}

static char *c_tests(const Row *row, guint n, gboolean with_values)
{
    g_autofree char *declaration = c_declaration(row);
    GString *out = g_string_new(with_values ? c_includes : c_declares);
    g_string_append_printf(out, "%s\n%s", declaration, c_show);
    if (with_values)
        g_string_append(out, "#define CHECK(name, want) \\\n"
                             "    (bad |= strcmp(got, want) != 0, \\\n"
                             "     printf(\"%s %s\\n\", strcmp(got, want) ? \"FAIL\" : \"PASS\", "
                             "name), fflush(stdout))\n\n");
    g_string_append(out, "int main(void)\n{\n    int bad = 0;\n");
    if (!with_values)
        g_string_append(out, "    long limit[4] = {0, 0, 0, " C_CPU_US "};\n"
                             "    setitimer(2, limit, 0);\n");
    for (guint i = 0; i < n; i++) {
        g_autofree char *call = filled(row, row->family->calls->pdata[i]);
        g_autofree char *want = with_values ? quoted(row->family->expected->pdata[i]) : NULL;
        g_string_append_printf(out, "    { %s }\n", call);
        if (with_values)
            g_string_append_printf(out, "    CHECK(\"call_%u\", %s);\n", i + 1, want);
        else
            g_string_append(out, "    dprintf(1, \"%s\\n\", got);\n");
    }
    g_string_append(out, "    return bad;\n}\n");
    return g_string_free(out, FALSE);
}

static char *python_tests(const Row *row, guint n, gboolean with_values)
{
    const char *name = row->names->of['F'];
    GString *out = g_string_new(with_values ? "import sys\n\n" : "import _signal\nimport sys\n\n");
    if (!with_values)
        g_string_append(out, "sys.path.insert(0, sys.argv[1])\n"
                             "_signal.setitimer(_signal.ITIMER_PROF, " PYTHON_CPU_S ")\n");
    g_string_append_printf(out, "from %s import %s\n\n\n", name, name);
    g_string_append(out, "def value_of(call):\n    try:\n        return repr(call())\n"
                         "    except Exception as error:\n"
                         "        return \"raised \" + type(error).__name__\n\n\n");
    if (with_values)
        g_string_append(out, "def check(name, call, want):\n    good = value_of(call) == want\n"
                             "    print(\"PASS\" if good else \"FAIL\", name)\n"
                             "    return not good\n\n\nbad = False\n");
    for (guint i = 0; i < n; i++) {
        g_autofree char *call = filled(row, row->family->calls->pdata[i]);
        g_autofree char *want = with_values ? quoted(row->family->expected->pdata[i]) : NULL;
        if (with_values)
            g_string_append_printf(out, "bad |= check(\"call_%u\", lambda: %s, %s)\n", i + 1, call,
                                   want);
        else
            g_string_append_printf(out, "print(value_of(lambda: %s), flush=True)\n", call);
    }
    if (with_values)
        g_string_append(out, "sys.exit(bad)\n");
    return g_string_free(out, FALSE);
}

static char *tests_text(const Row *row, guint n, gboolean with_values)
{
    return (row->is_python ? python_tests : c_tests)(row, n, with_values);
}

/* ---- the row ---- */

static json_t *make_files(const Row *row)
{
    json_t *files = json_object();
    guint n = row->family->expected->len;
    g_autofree char *shown = tests_text(row, MIN(SHOWN, n), TRUE);
    json_object_set_new(files, row->path, json_string(row->wrong->str));
    json_object_set_new(files, row->test_path, json_string(shown));
    if (row->header_path != NULL) {
        g_autofree char *header = filled(row, row->family->header);
        json_object_set_new(files, row->header_path, json_string(header));
    }
    if (row->also_path != NULL) {
        g_autofree char *also = filled(row, row->family->also);
        json_object_set_new(files, row->also_path, json_string(also));
    }
    return files;
}

static char *diff_text(const char *path, const char *before, const char *after, GError **error)
{
    g_autoptr(GString) patch = g_string_new(NULL);
    const RepoDiffSide old = {0100644, before, strlen(before)};
    const RepoDiffSide new = {0100644, after, strlen(after)};
    if (!repo_diff_add(patch, path, &old, &new, error))
        return NULL;
    return g_string_free(g_steal_pointer(&patch), FALSE);
}

static json_t *test_names(guint n, guint fails, gboolean failing)
{
    json_t *names = json_array();
    for (guint i = 0; i < n; i++) {
        g_autofree char *name = g_strdup_printf("call_%u", i + 1);
        if (((fails >> i & 1) != 0) == failing)
            json_array_append_new(names, json_string(name));
    }
    return names;
}

static json_t *make_calls(const Row *row)
{
    json_t *expected = json_array(), *sources = json_array();
    g_autofree char *driver = tests_text(row, row->family->calls->len, FALSE);
    for (guint i = 0; i < row->family->expected->len; i++)
        json_array_append_new(expected, json_string(row->family->expected->pdata[i]));
    json_array_append_new(sources, json_string(row->path));
    if (row->also_path != NULL)
        json_array_append_new(sources, json_string(row->also_path));
    return json_pack("{s:s, s:o, s:s, s:o}", "language", row->family->language, "sources", sources,
                     "driver", driver, "expected", expected);
}

static json_t *make_repair(const Row *row)
{
    const RepairMutant *mutant = row->mutant;
    const char *split =
        mutant != NULL ? repair_split_str(repair_split_of(row->family, mutant)) : "none";
    const char *kind = mutant == NULL        ? "none"
                       : mutant->n_edits > 1 ? "two edits"
                                             : mutant->edits[0].kind;
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:O}", "family", row->family->name, "split",
                     split, "path", row->path, "kind", kind, "bug",
                     mutant != NULL ? mutant->key : "", "tokens",
                     (int)repair_count_tokens(row->wrong->str), "edits", row->edits);
}

static char *test_command(const Row *row)
{
    if (row->is_python)
        return g_strdup_printf("python3 %s", row->test_path);
    return g_strdup_printf("cc -w -o run_tests %s %s%s%s && ./run_tests", row->test_path, row->path,
                           row->also_path != NULL ? " " : "",
                           row->also_path != NULL ? row->also_path : "");
}

static json_t *row_json(const Row *row, guint fails, GError **error)
{
    guint n = row->family->expected->len;
    g_autoptr(json_t) files = make_files(row);
    g_autofree char *hidden = tests_text(row, n, TRUE);
    g_autofree char *gold = diff_text(row->path, row->wrong->str, row->right->str, error);
    const char *shown = json_string_value(json_object_get(files, row->test_path));
    g_autofree char *test_patch =
        gold != NULL ? diff_text(row->test_path, shown, hidden, error) : NULL;
    if (test_patch == NULL)
        return NULL;
    g_autofree char *commit = task_files_commit(files);
    g_autofree char *command = test_command(row);
    g_autofree char *script = eval_script_embedded(commit, test_patch, NULL, command);
    g_autofree char *id = g_strdup_printf("repair-%s-%.12s", row->family->name, commit);
    g_autofree char *repo = g_strdup_printf("assay/repair-%s", row->family->name);
    g_autofree char *statement =
        g_strdup_printf("%s(): %s.\n\nSome of its tests fail; the mistake is in %s.\n",
                        row->names->of['F'], row->family->says, row->path);
    json_t *out = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:O, s:i, s:o}",
        "dataset", "repair", "instance_id", id, "repo", repo, "base_commit", commit, "language",
        row->family->language, "problem_statement", statement, "patch", gold, "test_patch",
        test_patch, "log_parser", "assay_plain", "eval_type", "pass_and_fail", "eval_script",
        script, "FAIL_TO_PASS", test_names(n, fails, TRUE), "PASS_TO_PASS",
        test_names(n, fails, FALSE), "files", files, "wall_s", WALL_S, "repair", make_repair(row));
    g_assert(out != NULL); /* our own text is UTF-8 */
    if (row->family->calls->len > 0)
        json_object_set_new(out, "calls", make_calls(row));
    return out;
}

json_t *repair_row(const RepairFamily *family, const RepairMutant *mutant, guint fails,
                   const RepairNames *names, GError **error)
{
    gboolean is_python = g_str_equal(family->language, "python");
    const char *suffix = is_python ? "py" : "c", *name = names->of['F'];
    Row row = {.family = family, .mutant = mutant, .names = names, .is_python = is_python};
    g_autoptr(GString) right = row.right = g_string_new(NULL);
    g_autoptr(GString) wrong = row.wrong = g_string_new(NULL);
    g_autoptr(json_t) edits = row.edits = json_array();
    g_autofree char *path = row.path = g_strdup_printf("%s.%s", name, suffix);
    g_autofree char *test_path = row.test_path =
        is_python ? g_strdup_printf("test_%s.py", name) : g_strdup("test.c");
    g_autofree char *header = row.header_path =
        family->header != NULL ? g_strdup_printf("%s.h", name) : NULL;
    g_autofree char *also = row.also_path =
        family->also != NULL ? g_strdup_printf("%s.%s", names->of['H'], suffix) : NULL;
    make_texts(&row);
    return row_json(&row, fails, error);
}

json_t *repair_fix(const json_t *row)
{
    const json_t *repair = json_object_get(row, "repair");
    const json_t *edits = json_object_get(repair, "edits");
    const char *path = json_string_value(json_object_get(repair, "path"));
    g_autoptr(GString) text =
        g_string_new(json_string_value(json_object_get(json_object_get(row, "files"), path)));
    for (gsize i = json_array_size(edits); i > 0; i--) { /* the last first: offsets stay true */
        const json_t *edit = json_array_get(edits, i - 1);
        gssize offset = (gssize)json_integer_value(json_object_get(edit, "offset"));
        gsize len = json_string_length(json_object_get(edit, "wrong"));
        g_string_erase(text, offset, (gssize)len);
        g_string_insert(text, offset, json_string_value(json_object_get(edit, "right")));
    }
    return json_pack("{s:s}", path, text->str);
}
