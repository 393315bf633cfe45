/*
 * What boxes keep, what they show, and what they leave alone.
 */
#include "tests/sandbox/lab.h"

#include "base/digest.h"
#include "base/fd.h"
#include "base/json.h"
#include "base/tree.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A scratch directory on disk; its trees belong to the store. */
static char *scratch;

static int store_dir(const char *name)
{
    g_autofree char *path = g_build_filename(scratch, name, NULL);
    g_assert_cmpint(g_mkdir_with_parents(path, 0755), ==, 0);
    g_assert_cmpint(chown(path, box_store_uid(), box_store_gid()), ==, 0);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    return fd;
}

static void store_file(const char *name, const char *text, guint owner)
{
    g_autofree char *path = g_build_filename(scratch, name, NULL);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    g_assert_cmpint(chown(path, owner, owner), ==, 0);
}

static void scratch_new(void)
{
    g_autoptr(GError) error = NULL;
    scratch = g_dir_make_tmp("assay-layers-XXXXXX", &error);
    g_assert_no_error(error);
    g_assert_cmpint(chmod(scratch, 0755), ==, 0);
}

static void scratch_remove(void)
{
    g_assert_true(tree_remove(AT_FDCWD, scratch, NULL));
    g_clear_pointer(&scratch, g_free);
}

/* "upper" and "work" in a new directory NAME. */
static int upper_dir(const char *name)
{
    g_autofree char *upper = g_build_filename(name, "upper", NULL);
    g_autofree char *work = g_build_filename(name, "work", NULL);
    int top = store_dir(name);
    close(store_dir(upper));
    close(store_dir(work));
    return top;
}

static void expect(const BoxSpec *spec, const char *line, const char *want)
{
    g_autoptr(Box) box = lab_open(spec);
    g_auto(BoxResult) result = {0};
    g_autofree char *got = lab_sh(box, line, &result);
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
    g_assert_cmpstr(got, ==, want);
}

static void a_directory_of_a_lower_can_be_removed_or_the_report_says_eio(void)
{
    scratch_new();
    int tree = store_dir("tree");
    close(store_dir("tree/d"));
    store_file("tree/d/old", "old\n", box_store_uid());
    BoxSpec spec = lab_spec(1000);
    spec.work_fds = &tree;
    spec.n_work = 1;
    g_autoptr(Box) box = lab_open(&spec);
    g_autofree char *text = box_report_json(box);
    g_autoptr(json_t) report = json_parse(text, strlen(text), NULL);
    const char *note = json_want_str(json_object_get(report, "notes"), "remove_dir", NULL);
    g_auto(BoxResult) result = {0};
    g_autofree char *said = lab_sh(box, "rm -r d && mkdir d && ls d && echo anew", &result);
    g_assert_cmpstr(said, ==, g_str_equal(note, "ok") ? "anew" : "");
    close(tree);
    g_clear_pointer(&box, box_close);
    scratch_remove();
}

static void a_kept_upper_is_a_layer_of_the_next_box(void)
{
    static const guint uids[] = {0, 1000};
    for (gsize i = 0; i < G_N_ELEMENTS(uids); i++) {
        scratch_new();
        int tree = store_dir("tree"), root_upper = upper_dir("root"),
            work_upper = upper_dir("work");
        store_file("tree/changed", "old\n", box_store_uid());
        store_file("tree/deleted", "old\n", box_store_uid());
        BoxSpec spec = lab_spec(uids[i]);
        spec.work_fds = &tree;
        spec.n_work = 1;
        spec.root_upper_fd = root_upper;
        spec.work_upper_fd = work_upper;
        expect(&spec,
               "echo new >> changed && rm deleted && mkdir -p a/b && echo x > a/b/made && "
               "echo home > ~/kept && echo end",
               "end");

        g_autofree char *root_path = g_build_filename(scratch, "root/upper", NULL);
        g_autofree char *work_path = g_build_filename(scratch, "work/upper", NULL);
        const int layer = open(root_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        const int work[] = {open(work_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), tree};
        BoxSpec next = lab_spec(uids[i]);
        next.slot = 103;
        next.layer_fds = &layer;
        next.n_layers = 1;
        next.work_fds = work;
        next.n_work = 2;
        expect(&next,
               "cat changed a/b/made ~/kept; ls | tr '\n' ' '; echo more >> changed && "
               "echo more >> ~/kept && rm a/b/made && echo end",
               "old\nnew\nx\nhome\na changed end");
        expect(&next, "cat changed a/b/made | tr '\\n' ' '", "old new x "); /* gone with its box */
        close(layer);
        close(work[0]);
        close(tree);
        close(root_upper);
        close(work_upper);
        scratch_remove();
    }
}

static void a_layer_shows_below_usr_local(void)
{
    if (lab_is_user()) {
        g_test_skip("an ordinary user's box cannot write below the host's /usr");
        return;
    }
    scratch_new();
    int root_upper = upper_dir("root");
    BoxSpec spec = lab_spec(0);
    spec.root_upper_fd = root_upper;
    expect(&spec,
           "mkdir -p /usr/local/lib/mine && echo lib > /usr/local/lib/mine/f && "
           "printf '#!/bin/sh\\necho tool\\n' > /usr/local/bin/mine && "
           "chmod 755 /usr/local/bin/mine && echo opt > /opt/f && echo etc > /etc/f && mine",
           "tool");
    g_autofree char *path = g_build_filename(scratch, "root/upper", NULL);
    const int layer = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    BoxSpec next = lab_spec(0);
    next.layer_fds = &layer;
    next.n_layers = 1;
    expect(&next, "mine; cat /usr/local/lib/mine/f /opt/f /etc/f; ls /usr/bin/env",
           "tool\nlib\nopt\netc\n/usr/bin/env");
    g_assert_false(g_file_test("/usr/local/bin/mine", G_FILE_TEST_EXISTS));
    close(layer);
    close(root_upper);
    scratch_remove();
}

/* Whoever owns a tree on disk, its owner is the box's user inside, and the tree stays as it was. */
static void any_owners_tree_is_writable_inside_and_untouched_outside(void)
{
    static const guint uids[] = {0, 1000};
    const guint owners[] = {box_store_uid(), geteuid()};
    for (gsize i = 0; i < 4; i++) {
        scratch_new();
        int tree = store_dir("tree");
        g_autofree char *top = g_build_filename(scratch, "tree", NULL);
        g_assert_cmpint(chown(top, owners[i / 2], owners[i / 2]), ==, 0);
        store_file("tree/file", "old\n", owners[i / 2]);
        BoxSpec spec = lab_spec(uids[i % 2]);
        spec.work_fds = &tree;
        spec.n_work = 1;
        g_autofree char *want = g_strdup_printf("old\nnew\n%u\n%u", uids[i % 2], uids[i % 2]);
        expect(&spec,
               "echo new >> file && chmod 600 file && mkdir d && touch d/x && mv file d/file && "
               "cat d/file && stat -c %u d/file . && rm -r d",
               want);
        g_autofree char *path = g_build_filename(scratch, "tree/file", NULL);
        g_autofree char *after = NULL;
        struct stat st;
        g_assert_true(g_file_get_contents(path, &after, NULL, NULL));
        g_assert_cmpstr(after, ==, "old\n");
        g_assert_cmpint(stat(path, &st), ==, 0);
        g_assert_cmpuint(st.st_uid, ==, owners[i / 2]);
        close(tree);
        scratch_remove();
    }
}

/* A root directory that has only one program, at PATH. */
static int root_with_payload(const char *name, const char *path)
{
    g_autofree char *data = NULL;
    gsize len = 0;
    int root = store_dir(name);
    g_autofree char *bin = g_build_filename(name, "bin", NULL);
    close(store_dir(bin));
    g_autofree char *to = g_build_filename(scratch, name, path, NULL);
    g_assert_true(g_file_get_contents(g_getenv("ASSAY_TEST_PAYLOAD"), &data, &len, NULL));
    g_assert_true(g_file_set_contents(to, data, (gssize)len, NULL));
    g_assert_cmpint(chmod(to, 0755), ==, 0);
    return root;
}

static void root_directories_stack_and_replace_the_hosts(void)
{
    scratch_new();
    const int roots[] = {root_with_payload("top", "bin/above"),
                         root_with_payload("bottom", "bin/below")};
    BoxSpec spec = lab_spec(1000);
    spec.root_fds = roots;
    spec.n_root = G_N_ELEMENTS(roots);
    g_autoptr(Box) box = lab_open(&spec);
    static const char *const rows[][2] = {{"/bin/above", "exited"},
                                          {"/bin/below", "exited"},
                                          {"/bin/sh", "start_error"},
                                          {"/usr/bin/env", "start_error"}};
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        BoxCommand command = {.argv = (const char *const[]){rows[i][0], "fds", NULL}};
        g_auto(BoxResult) result = {0};
        g_assert_true(box_exec(box, &command, &result, NULL));
        g_assert_cmpstr(box_outcome_str(result.outcome), ==, rows[i][1]);
    }
    g_clear_pointer(&box, box_close);
    for (gsize i = 0; i < G_N_ELEMENTS(roots); i++)
        close(roots[i]);
    scratch_remove();
}

/* A layer may be hostile: its links must not lead a mount, or a file of ours, anywhere. */
static void a_layer_with_links_for_mount_points_is_refused(void)
{
    static const char *const names[] = {"tmp", "dev", "proc", "testbed"};
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        scratch_new();
        int layer = store_dir("layer");
        g_assert_cmpint(symlinkat("/etc", layer, names[i]), ==, 0);
        BoxSpec spec = lab_spec(0);
        spec.layer_fds = &layer;
        spec.n_layers = 1;
        g_autoptr(GError) error = NULL;
        Box *box = box_open(&spec, &error);
        g_assert_null(box);
        g_assert_nonnull(strstr(error->message, names[i]));
        close(layer);
        scratch_remove();
    }
}

static void an_upper_of_somebody_else_is_refused(void)
{
    if (lab_is_user()) {
        g_test_skip("an ordinary user has one owner only");
        return;
    }
    scratch_new();
    int upper = upper_dir("root");
    g_autofree char *path = g_build_filename(scratch, "root", NULL);
    g_assert_cmpint(chown(path, 0, 0), ==, 0);
    BoxSpec spec = lab_spec(0);
    spec.root_upper_fd = upper;
    g_assert_null(box_open(&spec, NULL));
    close(upper);
    scratch_remove();
}

typedef struct Holder {
    Box *box;
    int ready_fd, cancel_fd;
} Holder;

static gpointer hold_lock(gpointer data)
{
    Holder *holder = data;
    BoxCommand command = {
        .argv =
            (const char *const[]){"/bin/sh", "-c",
                                  "exec 9< /usr/bin/head; flock 9; echo held; sleep 1000", NULL},
        .tee_fd = holder->ready_fd,
        .cancel_fd = holder->cancel_fd};
    g_auto(BoxResult) result = {0};
    g_assert_true(box_exec(holder->box, &command, &result, NULL));
    g_assert_cmpint(result.outcome, ==, BOX_CANCELLED);
    return NULL;
}

static void a_lock_in_one_box_is_not_seen_in_another(void)
{
    int ready[2], cancel[2];
    char byte;
    g_assert_cmpint(pipe2(ready, O_CLOEXEC), ==, 0);
    g_assert_cmpint(pipe2(cancel, O_CLOEXEC), ==, 0);
    BoxSpec a_spec = lab_spec(1000), b_spec = lab_spec(1000);
    b_spec.slot = 104;
    g_autoptr(Box) a = lab_open(&a_spec);
    g_autoptr(Box) b = lab_open(&b_spec);
    Holder holder = {a, ready[1], cancel[0]};
    GThread *thread = g_thread_new("holder", hold_lock, &holder);
    g_assert_cmpint(read(ready[0], &byte, 1), ==, 1);
    g_auto(BoxResult) result = {0};
    g_autofree char *got = lab_sh(b, "flock -n /usr/bin/head true && echo free", &result);
    g_assert_cmpstr(got, ==, "free");
    close(cancel[1]);
    g_thread_join(thread);
    close(cancel[0]);
    close(ready[0]);
    close(ready[1]);
}

#define ADD(fn) g_test_add_func("/layers/" #fn, fn)

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    ADD(a_directory_of_a_lower_can_be_removed_or_the_report_says_eio);
    ADD(a_kept_upper_is_a_layer_of_the_next_box);
    ADD(a_layer_shows_below_usr_local);
    ADD(any_owners_tree_is_writable_inside_and_untouched_outside);
    ADD(root_directories_stack_and_replace_the_hosts);
    ADD(a_layer_with_links_for_mount_points_is_refused);
    ADD(an_upper_of_somebody_else_is_refused);
    ADD(a_lock_in_one_box_is_not_seen_in_another);
    return lab_end(g_test_run());
}
