/*
 * SWE-bench v4.1 rows: no script; it is made from the spec of (repo, version), as the v4.1 harness
 * makes it. The table of specs is not ours: docs/formats.md has the line of Python that exports it.
 *
 * Source: SWE-bench/SWE-bench v4.1.0, swebench/harness/test_spec/{python,utils,javascript}.py.
 *
 * Not here: Automattic/wp-calypso, whose commands v4.1 computes with code of its own; such rows are
 * refused by name.
 */
#include "tasks/format.h"

#include "base/error.h"
#include "tasks/diff.h"
#include "tasks/script.h"

#include <string.h>

/* Files of a test patch with these ends are not given to the test command. */
static const char *const non_test_ends[] = {".json", ".png", ".csv", ".txt",  ".md",  ".jpg",
                                            ".jpeg", ".pkl", ".yml", ".yaml", ".toml"};

static gboolean sniff(const json_t *row)
{
    return json_object_get(row, "repo") != NULL && json_object_get(row, "base_commit") != NULL;
}

/* Appends a spec entry that is a string or a list of strings. */
static void spec_lines(const json_t *spec, const char *key, GPtrArray *out)
{
    const json_t *value = json_object_get(spec, key);
    if (json_is_string(value))
        g_ptr_array_add(out, g_strdup(json_string_value(value)));
    gsize i;
    json_t *item;
    json_array_foreach((json_t *)(gsize)value, i, item) if (json_is_string(item))
        g_ptr_array_add(out, g_strdup(json_string_value(item)));
}

static void line_add(GPtrArray *lines, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void line_add(GPtrArray *lines, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_ptr_array_add(lines, g_strdup_vprintf(format, args));
    va_end(args);
}

static gboolean is_test_file(const char *path)
{
    for (gsize i = 0; i < G_N_ELEMENTS(non_test_ends); i++)
        if (g_str_has_suffix(path, non_test_ends[i]))
            return FALSE;
    return TRUE;
}

/* What is given to the test command for one touched file; Django wants dotted module names. */
static char *directive_for(const char *repo, const char *path)
{
    if (strcmp(repo, "django/django") != 0)
        return g_strdup(path);
    g_autofree char *stem =
        g_str_has_suffix(path, ".py") ? g_strndup(path, strlen(path) - 3) : g_strdup(path);
    char *dotted = g_strdup(g_str_has_prefix(stem, "tests/") ? stem + 6 : stem);
    return g_strdelimit(dotted, "/", '.');
}

static char *reset_line(const char *base, const DiffFiles *touched, gboolean python)
{
    g_autoptr(GPtrArray) old = g_ptr_array_new();
    for (guint i = 0; i < touched->n; i++)
        if (touched->files[i].old_path != NULL)
            g_ptr_array_add(old, touched->files[i].old_path);
    if (old->len == 0 && !python)
        return g_strdup("echo \"No test files to reset\"");
    g_ptr_array_add(old, NULL);
    g_autofree char *paths = g_strjoinv(" ", (char **)old->pdata);
    return g_strdup_printf("git checkout %s %s", base, paths);
}

/* The last test command with the touched test files behind it (Python repositories only). */
static void python_test(GPtrArray *test, const char *repo, const char *test_patch)
{
    g_auto(GStrv) headers = diff_git_headers(test_patch);
    for (char **path = headers; *path != NULL; path++) {
        if (!is_test_file(*path))
            continue;
        g_autofree char *directive = directive_for(repo, *path);
        char *last = test->pdata[test->len - 1];
        test->pdata[test->len - 1] = g_strdup_printf("%s %s", last, directive);
        g_free(last);
    }
}

static void python_before(GPtrArray *before, const json_t *spec, const char *base)
{
    line_add(before, "source /opt/miniconda3/bin/activate");
    line_add(before, "conda activate testbed");
    line_add(before, "cd /testbed");
    spec_lines(spec, "eval_commands", before);
    line_add(before, "git config --global --add safe.directory /testbed");
    line_add(before, "cd /testbed");
    line_add(before, "git status");
    line_add(before, "git show");
    line_add(before, "git -c core.fileMode=false diff %s", base);
    line_add(before, "source /opt/miniconda3/bin/activate");
    line_add(before, "conda activate testbed");
    spec_lines(spec, "install", before);
}

/* Multimodal rows fetch the images of their test patch. */
static void assets_after_reset(const json_t *row, GPtrArray *out)
{
    const json_t *assets = json_object_get(row, "image_assets");
    g_autoptr(json_t) inner = NULL;
    if (json_is_string(assets))
        assets = inner = json_parse(json_string_value(assets), json_string_length(assets), NULL);
    gsize i;
    json_t *item;
    json_array_foreach(json_object_get(assets, "test_patch"), i, item)
    {
        const char *path = json_string_value(json_object_get(item, "path"));
        const char *url = json_string_value(json_object_get(item, "url"));
        if (path == NULL || url == NULL)
            continue;
        g_autofree char *folder = g_path_get_dirname(path);
        line_add(out, "mkdir -p %s", folder);
        line_add(out, "curl -o %s %s", path, url);
        line_add(out, "chmod 777 %s", path);
    }
}

/* The spec of (repo, version), and whether the repository is a Python one. NULL with `error`. */
static const json_t *spec_find(const json_t *row, const json_t *specs, gboolean *ret_python,
                               GError **error)
{
    const char *repo = json_want_str(row, "repo", error);
    const char *version = repo != NULL ? json_want_str(row, "version", error) : NULL;
    if (version == NULL)
        return NULL;
    if (specs == NULL) {
        error_set(error, ASSAY_ERROR_INPUT,
                  "field eval_script: missing: this is a v4.1 row, which needs --spec-map FILE "
                  "(docs/formats.md)");
        return NULL;
    }
    if (strcmp(repo, "Automattic/wp-calypso") == 0) {
        error_set(error, ASSAY_ERROR_UNSUPPORTED,
                  "field repo: v4.1 rows of %s have no fixed test command; use a v5 row", repo);
        return NULL;
    }
    const json_t *spec =
        json_object_get(json_object_get(json_object_get(specs, "specs"), repo), version);
    if (!json_is_object(spec)) {
        error_set(error, ASSAY_ERROR_INPUT, "field version: the spec map has no %s version %s",
                  repo, version);
        return NULL;
    }
    const char *ext = json_string_value(json_object_get(json_object_get(specs, "ext"), repo));
    *ret_python = g_strcmp0(ext, "py") == 0;
    return spec;
}

static json_t *convert(json_t *row, const json_t *specs, GError **error)
{
    gboolean python = FALSE;
    const json_t *spec = spec_find(row, specs, &python, error);
    const char *test_patch = spec != NULL ? json_want_str(row, "test_patch", error) : NULL;
    const char *base = test_patch != NULL ? json_want_str(row, "base_commit", error) : NULL;
    if (base == NULL)
        return NULL;

    g_autoptr(GPtrArray) before = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) after = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) build = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) test = g_ptr_array_new_with_free_func(g_free);
    spec_lines(spec, "test_cmd", test);
    if (test->len == 0) {
        error_set(error, ASSAY_ERROR_INPUT, "the spec map's entry has no test_cmd");
        return NULL;
    }
    if (python) {
        python_before(before, spec, base);
        python_test(test, json_string_value(json_object_get(row, "repo")), test_patch);
    } else {
        line_add(before, "cd /testbed");
        line_add(before, "git config --global --add safe.directory /testbed");
        line_add(before, "cd /testbed");
        assets_after_reset(row, after);
        spec_lines(spec, "build", build);
    }
    GPtrArray *all[] = {before, after, build, test};
    for (gsize i = 0; i < G_N_ELEMENTS(all); i++)
        g_ptr_array_add(all[i], NULL);

    g_autoptr(DiffFiles) touched = diff_files_read(test_patch);
    g_autofree char *reset = reset_line(base, touched, python);
    g_autofree char *script = eval_script_make(&(EvalScriptSpec){
        .base_commit = base,
        .test_patch = test_patch,
        .before = (const char *const *)before->pdata,
        .after_reset = (const char *const *)after->pdata,
        .build = (const char *const *)build->pdata,
        .test = (const char *const *)test->pdata,
        .apply = python ? "git apply -v" : "git apply --verbose --reject",
        .reset = reset,
    });
    json_t *canonical = json_copy(row);
    json_object_set_new(canonical, "eval_script", json_string(script));
    return canonical;
}

const TaskFormat task_format_swe_bench_4 = {"swe_bench_4", sniff, convert};
