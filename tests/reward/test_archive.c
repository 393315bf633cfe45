/*
 * Every log of the grading archive, in both compat modes, against the SWE-bench graders' answers.
 *
 * The archive is shared/data/grading.tar.xz, found through ASSAY_SHARED or beside the source root;
 * without it (or without tar and xz) the test is skipped. The same honest logs, and the gold
 * patches beside them, must give no SUSPECT finding.
 */
#include "base/fd.h"
#include "base/tree.h"
#include "reward/parse_cli.h"
#include "reward/pyjson.h"
#include "reward/protected_path.h"
#include "reward/witness_patch.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>

#define FILE_BYTES_MAX (64u * 1024 * 1024)

static json_t *read_json(const char *dir, const char *name)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_autoptr(GBytes) bytes = file_read(path, FILE_BYTES_MAX, &error);
    g_assert_no_error(error);
    gsize len;
    const char *text = g_bytes_get_data(bytes, &len);
    json_t *value = json_parse(text, len, &error);
    g_assert_no_error(error);
    return value;
}

static void show(const char *where, const GPtrArray *findings)
{
    for (guint i = 0; i < findings->len; i++) {
        const WitnessFinding *finding = g_ptr_array_index(findings, i);
        if (finding->weight == WITNESS_SUSPECT)
            g_test_message("%s: %s %s:%u %s", where, witness_code_to_str(finding->code),
                           finding->path ? finding->path : "log", finding->line, finding->detail);
    }
}

/* The bytes between the lines of the start and the end marker, as the supervisor cuts them. */
static gboolean find_slice(Span log, GradeInput *in)
{
    gssize start = span_find(log, SPAN(">>>>> Start Test Output"), 0);
    gssize end = start < 0 ? -1 : span_find(log, SPAN(">>>>> End Test Output"), (gsize)start);
    if (end < 0)
        return FALSE;
    gssize first = span_find(log, SPAN("\n"), (gsize)start);
    Span before = span_slice(log, 0, (gsize)end);
    gssize last = span_rfind(before, SPAN("\n"));
    in->slice_start = (gsize)first + 1;
    in->slice_end = MAX((gsize)last + 1, in->slice_start);
    return TRUE;
}

static void check_honest(const char *dir, const json_t *row, Span log)
{
    g_autoptr(GError) error = NULL;
    g_auto(GStrv) f2p = parse_cli_tests(row, "FAIL_TO_PASS", &error);
    g_auto(GStrv) p2p = parse_cli_tests(row, "PASS_TO_PASS", &error);
    GradeInput in = {
        .mode = GRADE_STRICT,
        .instance_id = json_want_str(row, "instance_id", &error),
        .repo_version = json_want_str(row, "version", &error),
        .log_parser = json_want_str(row, "log_parser", &error),
        .f2p = (const char *const *)f2p,
        .p2p = (const char *const *)p2p,
        .log = log.ptr,
        .log_len = log.len,
    };
    if (!find_slice(log, &in))
        return;
    g_auto(GradeResult) result = {0};
    g_assert_true(grade_log(&in, &result, &error));
    if (!result.found)
        return;
    g_autoptr(GPtrArray) findings = witness_findings_new();
    witness_log(&(WitnessInput){.grade = &in, .result = &result}, findings);
    show(dir, findings);
    g_assert_false(witness_any_suspect(findings));
}

static void check_case(const char *dir)
{
    g_autoptr(json_t) row = read_json(dir, "row.json");
    g_autoptr(json_t) expect = read_json(dir, "expect.json");
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(dir, "log", NULL);
    g_autoptr(GBytes) log = file_read(path, FILE_BYTES_MAX, &error);
    g_assert_no_error(error);

    const GradeMode modes[] = {GRADE_COMPAT_4_1, GRADE_COMPAT_5};
    for (gsize i = 0; i < G_N_ELEMENTS(modes); i++) {
        gsize len;
        const void *data = g_bytes_get_data(log, &len);
        g_autoptr(json_t) got = parse_cli_run(row, data, len, modes[i], &error);
        g_assert_no_error(error);
        const json_t *want = json_object_get(expect, grade_mode_to_str(modes[i]));
        g_assert_nonnull(want);
        g_autofree char *got_text = pyjson_dump(got, 1), *want_text = pyjson_dump(want, 1);
        if (strcmp(got_text, want_text) != 0)
            g_test_message("%s in %s differs", dir, grade_mode_to_str(modes[i]));
        g_assert_cmpstr(got_text, ==, want_text);
    }
    Span text;
    text.ptr = g_bytes_get_data(log, &text.len);
    check_honest(dir, row, text);
}

static char *archive_path(const char *name)
{
    const char *shared = g_getenv("ASSAY_SHARED");
    const char *root = g_getenv("ASSAY_SOURCE_ROOT");
    g_autofree char *beside = g_build_filename(root ? root : ".", "..", "shared", NULL);
    return g_build_filename(shared ? shared : beside, "data", name, NULL);
}

static void every_log_of_the_archive_grades_as_the_harness_does(void)
{
    g_autofree char *archive = archive_path("grading.tar.xz");
    if (!g_file_test(archive, G_FILE_TEST_IS_REGULAR)) {
        g_test_skip("no grading.tar.xz (set ASSAY_SHARED)");
        return;
    }
    g_autoptr(GError) error = NULL;
    g_autofree char *tmp = g_dir_make_tmp("assay-grading-XXXXXX", &error);
    g_assert_no_error(error);
    const char *argv[] = {"tar", "-xJf", archive, "-C", tmp, NULL};
    int status = -1;
    gboolean ran = g_spawn_sync(NULL, (char **)(gsize)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL,
                                NULL, NULL, &status, NULL);
    if (!ran || status != 0) {
        g_test_skip("tar cannot unpack grading.tar.xz here");
    } else {
        g_autofree char *top = g_build_filename(tmp, "grading", NULL);
        g_autoptr(GDir) dir = g_dir_open(top, 0, &error);
        g_assert_no_error(error);
        guint cases = 0;
        for (const char *name; (name = g_dir_read_name(dir)) != NULL; cases++) {
            g_autofree char *path = g_build_filename(top, name, NULL);
            check_case(path);
        }
        g_test_message("%u cases in two modes", cases);
        g_assert_cmpuint(cases, >=, 129);
    }
    AUTO_FD at = open(g_get_tmp_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_autofree char *base = g_path_get_basename(tmp);
    g_assert_true(tree_remove(at, base, &error));
}

/* Would strict mode undo any of an honest patch? Asked without telling it what the gold touches. */
static void check_nothing_goes_back(const char *id, const PatchScan *scan)
{
    for (guint i = 0; i < scan->files->len; i++) {
        const PatchFile *file = g_ptr_array_index(scan->files, i);
        const char *path = patch_file_path(file);
        g_autofree char *entry = file->is_new ? path_shadowed_entry(path, NULL) : NULL;
        gboolean back = entry != NULL || path_class(path, NULL, NULL) == PATH_TEST_INFRA;
        if (back)
            g_test_message("%s: %s would be restored", id, path);
        g_assert_false(back);
    }
}

static void check_gold(const json_t *row)
{
    const char *id = json_string_value(json_object_get(row, "instance_id"));
    const json_t *patch = json_object_get(row, "patch");
    g_autoptr(PatchScan) scan = patch_scan(json_string_value(patch), json_string_length(patch));
    g_assert_cmpuint(scan->files->len, >, 0);
    g_assert_cmpuint(scan->hostile->len, ==, 0);
    g_assert_false(scan->malformed);
    g_autoptr(GPtrArray) findings = witness_findings_new();
    witness_patch(scan, NULL, NULL, findings);
    show(id, findings);
    g_assert_false(witness_any_suspect(findings));
    check_nothing_goes_back(id, scan);
}

static void gold_patches_of_the_dev_rows_raise_no_suspicion(void)
{
    g_autofree char *path = archive_path("swebench/dev.jsonl");
    if (!g_file_test(path, G_FILE_TEST_IS_REGULAR)) {
        g_test_skip("no swebench/dev.jsonl (set ASSAY_SHARED)");
        return;
    }
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) bytes = file_read(path, FILE_BYTES_MAX, &error);
    g_assert_no_error(error);
    Span rest, line;
    rest.ptr = g_bytes_get_data(bytes, &rest.len);
    guint rows = 0;
    while (span_cut(&rest, '\n', &line)) {
        if (line.len == 0)
            continue;
        g_autoptr(json_t) row = json_parse(line.ptr, line.len, &error);
        g_assert_no_error(error);
        check_gold(row);
        rows++;
    }
    g_assert_cmpuint(rows, >, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/archive/every log of the archive grades as the harness does",
                    every_log_of_the_archive_grades_as_the_harness_does);
    g_test_add_func("/archive/gold patches of the dev rows raise no suspicion",
                    gold_patches_of_the_dev_rows_raise_no_suspicion);
    return g_test_run();
}
