/*
 * Every log of the grading archive, in both compat modes, against the SWE-bench graders' answers.
 *
 * The archive is shared/data/grading.tar.xz, found through ASSAY_SHARED or beside the source root;
 * without it (or without tar and xz) the test is skipped.
 */
#include "base/fd.h"
#include "base/tree.h"
#include "reward/parse_cli.h"
#include "reward/pyjson.h"

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
}

static char *archive_path(void)
{
    const char *shared = g_getenv("ASSAY_SHARED");
    const char *root = g_getenv("ASSAY_SOURCE_ROOT");
    g_autofree char *beside = g_build_filename(root ? root : ".", "..", "shared", NULL);
    return g_build_filename(shared ? shared : beside, "data", "grading.tar.xz", NULL);
}

static void every_log_of_the_archive_grades_as_the_harness_does(void)
{
    g_autofree char *archive = archive_path();
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

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/archive/every log of the archive grades as the harness does",
                    every_log_of_the_archive_grades_as_the_harness_does);
    return g_test_run();
}
