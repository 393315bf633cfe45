/*
 * The depot of layers: what is half made is never seen, what is held is never removed.
 */
#include "sandbox/depot.h"
#include "sandbox/image.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DIGEST_A "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define DIGEST_B "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static char *scratch;

static Depot *depot_new(guint64 bytes_max)
{
    g_autoptr(GError) error = NULL;
    scratch = g_dir_make_tmp("assay-depot-XXXXXX", NULL);
    Depot *depot = depot_open(scratch, bytes_max, &error);
    g_assert_no_error(error);
    return depot;
}

static void depot_end(Depot *depot)
{
    depot_free(depot);
    g_assert_true(tree_remove(AT_FDCWD, scratch, NULL));
    g_clear_pointer(&scratch, g_free);
}

static void put_file(int dir_fd, const char *path, const char *text, mode_t mode)
{
    AUTO_FD fd = openat(dir_fd, path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    g_assert_cmpint(fd, >=, 0);
    g_assert_true(fd_write_all(fd, text, strlen(text), NULL));
    g_assert_cmpint(fchmod(fd, mode), ==, 0);
}

/* Keeps a layer with one file under DIGEST. */
static int layer_put(Depot *depot, const char *digest, const char *text, GError **error)
{
    g_autoptr(DepotStage) stage = depot_stage(depot, error);
    g_assert_nonnull(stage);
    put_file(stage->dir_fd, "upper/file", text, 0644);
    return depot_commit(depot, stage, digest, error);
}

static gboolean name_put(Depot *depot, const char *name, const char *digest, GError **error)
{
    const char *const layers[] = {digest, NULL};
    g_autoptr(json_t) data = json_object();
    return depot_name_set(depot, name, layers, data, error);
}

static guint entries_of(const char *below)
{
    g_autofree char *path = g_build_filename(scratch, below, NULL);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    guint n = 0;
    while (g_dir_read_name(dir) != NULL)
        n++;
    return n;
}

static guint collected(Depot *depot)
{
    g_autoptr(GError) error = NULL;
    guint64 bytes;
    guint n = depot_gc(depot, &bytes, &error);
    g_assert_no_error(error);
    return n;
}

static void a_layer_is_there_once_and_whole(void)
{
    g_autoptr(GError) error = NULL;
    Depot *depot = depot_new(0);
    AUTO_FD first = layer_put(depot, DIGEST_A, "one", &error);
    g_assert_no_error(error);
    AUTO_FD second = layer_put(depot, DIGEST_A, "two", &error);
    g_assert_no_error(error);
    AUTO_FD file = openat(second, "file", O_RDONLY);
    g_autoptr(GBytes) bytes = fd_read_all(file, 100, NULL);
    g_assert_cmpstr(g_bytes_get_data(bytes, NULL), ==, "one");
    g_assert_cmpuint(entries_of("layers"), ==, 1);
    g_assert_cmpuint(entries_of("tmp"), ==, 0);
    g_assert_cmpuint(depot_layer_bytes(depot, DIGEST_A), >, 0);
    g_assert_cmpint(depot_layer_open(depot, DIGEST_B, &error), ==, -1);
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
    depot_end(depot);
}

/* Killed between staging and keeping: nothing is seen, and the next stage sweeps. */
static void a_killed_process_leaves_nothing_that_counts(void)
{
    Depot *depot = depot_new(0);
    pid_t pid = fork();
    if (pid == 0) {
        DepotStage *stage = depot_stage(depot, NULL);
        put_file(stage->dir_fd, "upper/file", "half", 0644);
        _exit(0);
    }
    int status;
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_cmpint(status, ==, 0);
    g_assert_cmpuint(entries_of("tmp"), ==, 1);
    g_assert_cmpuint(entries_of("layers"), ==, 0);

    g_autoptr(DepotStage) stage = depot_stage(depot, NULL);
    g_assert_cmpuint(entries_of("tmp"), ==, 1); /* ours; the other is gone */
    g_autoptr(DepotStage) other = depot_stage(depot, NULL);
    g_assert_cmpuint(entries_of("tmp"), ==, 2); /* ours lives while we do */
    g_clear_pointer(&stage, depot_stage_free);
    g_clear_pointer(&other, depot_stage_free);
    g_assert_cmpuint(entries_of("tmp"), ==, 0);
    depot_end(depot);
}

static void what_is_named_or_open_is_not_collected(void)
{
    g_autoptr(GError) error = NULL;
    Depot *depot = depot_new(0);
    close(layer_put(depot, DIGEST_A, "a", &error));
    int open_layer = layer_put(depot, DIGEST_B, "b", &error);
    g_assert_true(name_put(depot, "image/x:1", DIGEST_A, &error));
    g_assert_cmpuint(collected(depot), ==, 0);

    close(open_layer);
    g_assert_cmpuint(collected(depot), ==, 1);
    g_assert_cmpint(depot_layer_open(depot, DIGEST_B, NULL), ==, -1);
    g_assert_true(depot_name_unset(depot, "image/x:1", &error));
    g_assert_cmpuint(collected(depot), ==, 1);
    g_assert_cmpuint(entries_of("layers") + entries_of("names") + entries_of("tmp"), ==, 0);
    g_assert_false(depot_name_unset(depot, "image/x:1", &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
    depot_end(depot);
}

static void the_quota_refuses_what_does_not_fit(void)
{
    g_autoptr(GError) error = NULL;
    Depot *depot = depot_new(20000);
    g_autofree char *large = g_strnfill(16000, 'x');
    close(layer_put(depot, DIGEST_A, large, &error));
    g_assert_no_error(error);
    g_assert_cmpint(layer_put(depot, DIGEST_B, large, &error), ==, -1);
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT);
    g_assert_cmpuint(entries_of("layers"), ==, 1);
    g_assert_cmpuint(entries_of("tmp"), ==, 0);
    depot_end(depot);
}

static void a_name_needs_its_layers_and_keeps_its_words(void)
{
    g_autoptr(GError) error = NULL;
    Depot *depot = depot_new(0);
    g_assert_false(name_put(depot, "image/x", DIGEST_A, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
    close(layer_put(depot, DIGEST_A, "a", NULL));
    static const char *const names[] = {"image/../../x", ".hidden", "a b%2F\"c", "\xc3\xa4/y"};
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        g_assert_true(name_put(depot, names[i], DIGEST_A, NULL));
        g_autoptr(DepotName) name = depot_name_get(depot, names[i], NULL);
        g_assert_cmpstr(name->name, ==, names[i]);
        g_assert_cmpstr(name->layers[0], ==, DIGEST_A);
    }
    g_assert_cmpuint(entries_of("names"), ==, G_N_ELEMENTS(names));
    g_autoptr(GPtrArray) list = depot_name_list(depot, "image/", NULL);
    g_assert_cmpuint(list->len, ==, 1);
    g_assert_false(name_put(depot, "", DIGEST_A, NULL));
    g_assert_false(name_put(depot, "line\nbreak", DIGEST_A, NULL));
    g_autofree char *big = g_strnfill(181, 'x');
    g_assert_false(name_put(depot, big, DIGEST_A, NULL));
    static const char *const bad[] = {"", "sha256:", "sha256:../../etc", "md5:00", DIGEST_A "0"};
    for (gsize i = 0; i < G_N_ELEMENTS(bad); i++)
        g_assert_cmpint(depot_layer_open(depot, bad[i], NULL), ==, -1);
    depot_end(depot);
}

static void a_changed_layer_is_found(void)
{
    g_autoptr(GError) error = NULL;
    Depot *depot = depot_new(0);
    AUTO_FD layer = layer_put(depot, DIGEST_A, "a", NULL);
    g_assert_true(depot_layer_verify(depot, DIGEST_A, &error));
    g_assert_cmpint(fchmodat(layer, "file", 0600, 0), ==, 0);
    g_assert_false(depot_layer_verify(depot, DIGEST_A, &error));
    g_assert_nonnull(strstr(error->message, "changed"));
    depot_end(depot);
}

/* What each change of a tree does to its digest. */
static void the_digest_of_a_tree_sees_everything_but_times(void)
{
    Depot *depot = depot_new(0);
    AUTO_FD dir = open(scratch, O_RDONLY | O_DIRECTORY);
    AUTO_FD tree = tree_open_dir(dir, "tree", 0755, NULL);
    put_file(tree, "b", "text", 0644);
    g_assert_cmpint(symlinkat("b", tree, "l"), ==, 0);
    g_autofree char *first = depot_tree_digest(tree, NULL);
    const struct timespec times[2] = {{1, 0}, {1, 0}};
    g_assert_cmpint(utimensat(tree, "b", times, 0), ==, 0);
    g_autofree char *touched = depot_tree_digest(tree, NULL);
    g_assert_cmpstr(first, ==, touched);

    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_hash_table_add(seen, g_strdup(first));
    for (int change = 0; change < 6; change++) {
        if (change == 0)
            g_assert_cmpint(linkat(tree, "b", tree, "c", 0), ==, 0);
        if (change == 1)
            g_assert_cmpint(unlinkat(tree, "c", 0), ==, 0);
        if (change <= 1)
            put_file(tree, change == 0 ? "d" : "c", "text", 0644); /* equal text, another file */
        if (change == 2)
            g_assert_cmpint(fchmodat(tree, "b", 0755, 0), ==, 0);
        if (change == 3)
            g_assert_cmpint(unlinkat(tree, "l", 0) | symlinkat("c", tree, "l"), ==, 0);
        if (change == 4)
            g_assert_cmpint(mkdirat(tree, "e", 0755), ==, 0);
        if (change == 5)
            g_assert_cmpint(renameat(tree, "b", tree, "e/b"), ==, 0);
        g_assert_true(g_hash_table_add(seen, depot_tree_digest(tree, NULL)));
    }
    depot_end(depot);
}

/* Two processes keep and name the same and other layers while a third collects. */
static void several_processes_share_it(void)
{
    Depot *depot = depot_new(0);
    pid_t pids[3];
    for (int who = 0; who < 3; who++) {
        pids[who] = fork();
        if (pids[who] != 0)
            continue;
        g_autoptr(Depot) own = depot_open(scratch, 0, NULL);
        for (int round = 0; round < 20; round++) {
            g_autoptr(GError) error = NULL;
            guint64 bytes;
            if (who == 2) {
                depot_gc(own, &bytes, &error);
            } else {
                int fd = layer_put(own, round % 2 == 0 ? DIGEST_A : DIGEST_B, "text", &error);
                g_autofree char *name = g_strdup_printf("image/%d", who);
                if (fd < 0 || !name_put(own, name, round % 2 == 0 ? DIGEST_A : DIGEST_B, &error))
                    _exit(1);
                close(fd);
            }
            if (error != NULL)
                _exit(2);
        }
        _exit(0);
    }
    for (int who = 0; who < 3; who++) {
        int status;
        g_assert_cmpint(waitpid(pids[who], &status, 0), ==, pids[who]);
        g_assert_cmpint(status, ==, 0);
    }
    g_autoptr(GPtrArray) list = depot_name_list(depot, "", NULL);
    g_assert_cmpuint(list->len, ==, 2);
    AUTO_FD layer = depot_layer_open(depot, DIGEST_B, NULL);
    g_assert_cmpint(layer, >=, 0);
    collected(depot);
    g_assert_cmpuint(entries_of("layers"), ==, 1);
    g_assert_cmpuint(entries_of("tmp"), ==, 0);
    depot_end(depot);
}

static void references_are_read_as_docker_reads_them(void)
{
    static const char *const rows[][2] = {
        {"debian", "docker.io/library/debian:latest"},
        {"debian:12", "docker.io/library/debian:12"},
        {"a/b", "docker.io/a/b:latest"},
        {"localhost/a", "localhost/a:latest"},
        {"h.example:5000/a/b_c:T.1", "h.example:5000/a/b_c:T.1"},
        {"a@" DIGEST_A, "docker.io/library/a@" DIGEST_A},
        {"a:1@" DIGEST_A, "docker.io/library/a:1@" DIGEST_A},
        {"index.docker.io/a/b", "docker.io/a/b:latest"},
        {"swebench/sweb.eval.x86_64.sympy_1776_sympy-20590",
         "docker.io/swebench/sweb.eval.x86_64.sympy_1776_sympy-20590:latest"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *name = image_name_normal(rows[i][0], NULL);
        g_assert_cmpstr(name, ==, rows[i][1]);
    }
    static const char *const bad[] = {
        "",     "A",        "a/../b",     "a//b",         "a:",          "a: ", "a@sha256:0",
        "a?b",  "a#b",      "h.x/a@b@c",  "http://a",     "a/b/../../c", "x\n", "-a",
        "a%2f", "user@h/a", "h.example/", "h.ex ample/a", ".a/b:c/d"};
    for (gsize i = 0; i < G_N_ELEMENTS(bad); i++)
        g_assert_null(image_name_normal(bad[i], NULL));
}

#define ADD(fn) g_test_add_func("/depot/" #fn, fn)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD(a_layer_is_there_once_and_whole);
    ADD(a_killed_process_leaves_nothing_that_counts);
    ADD(what_is_named_or_open_is_not_collected);
    ADD(the_quota_refuses_what_does_not_fit);
    ADD(a_name_needs_its_layers_and_keeps_its_words);
    ADD(a_changed_layer_is_found);
    ADD(the_digest_of_a_tree_sees_everything_but_times);
    ADD(several_processes_share_it);
    ADD(references_are_read_as_docker_reads_them);
    return g_test_run();
}
