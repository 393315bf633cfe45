/*
 * Ids, digests, JSON, hostile trees.
 */
#include "base/digest.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "base/json.h"
#include "base/tree.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

static void ids_sort_in_the_order_of_making(void)
{
    g_autofree char *before = id_new("grd");
    for (int i = 0; i < 5000; i++) {
        char *after = id_new("grd");
        g_assert_true(id_is(after, "grd"));
        g_assert_cmpstr(before, <, after);
        g_free(before);
        before = after;
    }
    g_assert_false(id_is("grd_", "grd"));
    g_assert_false(id_is(before, "swp"));
}

static void field_lists_do_not_collide(void)
{
    const char *lists[][3] = {{"ab", "c", ""}, {"a", "bc", ""}, {"abc", "", ""}, {"abc", NULL, ""}};
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (gsize i = 0; i < G_N_ELEMENTS(lists); i++) {
        g_autoptr(Digest) digest = digest_new("test");
        for (gsize k = 0; k < 3; k++)
            digest_add_str(digest, lists[i][k]);
        g_assert_true(g_hash_table_add(seen, digest_finish(digest)));
    }
}

static void json_errors_name_the_place(void)
{
    static const char *const bad[] = {"{\"a\":1,\"a\":2}", "{",      "[1,]",
                                      "\"\\ud800\"",       "1e9999", ""};
    for (gsize i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(json_parse(bad[i], strlen(bad[i]), &error));
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
        g_assert_true(g_str_has_prefix(error->message, "line "));
    }
    const char *keys[] = {"workers", "mode", NULL};
    g_autoptr(json_t) object = json_pack("{s:i}", "worker", 1);
    g_autoptr(GError) error = NULL;
    g_assert_false(json_only_keys(object, keys, &error));
    g_assert_nonnull(strstr(error->message, "did you mean workers?"));
}

static void a_removed_tree_takes_nothing_else_along(void)
{
    g_autofree char *dir = g_dir_make_tmp("assay-tree-XXXXXX", NULL);
    g_autofree char *outside = g_build_filename(dir, "outside", NULL);
    g_autofree char *deep = g_build_filename(dir, "victim/a/b", NULL);
    g_autofree char *link = g_build_filename(dir, "victim/link", NULL);
    g_autofree char *locked = g_build_filename(dir, "victim/a", NULL);
    g_assert_true(g_file_set_contents(outside, "kept", -1, NULL));
    g_assert_cmpint(g_mkdir_with_parents(deep, 0755), ==, 0);
    g_assert_cmpint(symlink("../outside", link), ==, 0);
    g_assert_cmpint(chmod(locked, 0000), ==, 0);

    AUTO_FD fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_autoptr(GError) error = NULL;
    g_assert_true(tree_remove(fd, "victim", &error));
    g_assert_no_error(error);
    g_assert_true(tree_remove(fd, "victim", &error)); /* absent is success */
    g_assert_true(g_file_test(outside, G_FILE_TEST_EXISTS));
    unlink(outside);
    rmdir(dir);
}

static void a_read_stops_at_its_limit(void)
{
    g_autofree char *path = NULL;
    AUTO_FD fd = g_file_open_tmp("assay-read-XXXXXX", &path, NULL);
    g_assert_true(fd_write_all(fd, "0123456789", 10, NULL));
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) whole = file_read(path, 10, &error);
    g_assert_cmpuint(g_bytes_get_size(whole), ==, 10);
    g_assert_null(file_read(path, 9, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT);
    unlink(path);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/base/ids_sort_in_the_order_of_making", ids_sort_in_the_order_of_making);
    g_test_add_func("/base/field_lists_do_not_collide", field_lists_do_not_collide);
    g_test_add_func("/base/json_errors_name_the_place", json_errors_name_the_place);
    g_test_add_func("/base/a_removed_tree_takes_nothing_else_along",
                    a_removed_tree_takes_nothing_else_along);
    g_test_add_func("/base/a_read_stops_at_its_limit", a_read_stops_at_its_limit);
    return g_test_run();
}
