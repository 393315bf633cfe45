/*
 * Freezing, forking and taking back what a box wrote.
 */
#include "tests/sandbox/lab.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "sandbox/depot.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define CHILD_SLOT 120u

static char *scratch;
static int base_fd = -1;

static void put(const char *name, const char *text)
{
    g_autofree char *path = g_build_filename(scratch, "base", name, NULL);
    g_autofree char *dir = g_path_get_dirname(path);
    g_assert_cmpint(g_mkdir_with_parents(dir, 0755), ==, 0);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
}

/* The tree that boxes of these tests start from. */
static void make_base(void)
{
    g_autoptr(GError) error = NULL;
    scratch = g_dir_make_tmp("assay-snap-XXXXXX", NULL);
    g_assert_cmpint(chmod(scratch, 0755), ==, 0);
    put("a", "a\n");
    put("d/x", "x\n");
    put("d/e/y", "y\n");
    put("r/old", "old\n");
    AUTO_FD top = open(scratch, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_assert_true(tree_chown(top, "base", box_store_uid(), box_store_gid(), &error));
    g_autofree char *path = g_build_filename(scratch, "base", NULL);
    base_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static BoxSpec spec_over_base(guint uid, guint slot)
{
    BoxSpec spec = lab_spec(uid);
    spec.slot = slot;
    spec.work_fds = &base_fd;
    spec.n_work = 1;
    return spec;
}

static char *sh(Box *box, const char *line)
{
    g_auto(BoxResult) result = {0};
    char *got = lab_sh(box, line, &result);
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
    return got;
}

static void expect(Box *box, const char *line, const char *want)
{
    g_autofree char *got = sh(box, line);
    g_assert_cmpstr(got, ==, want);
}

static BoxSnapshot *freeze(Box *box)
{
    g_autoptr(GError) error = NULL;
    BoxSnapshot *snapshot = box_snapshot(box, &error);
    if (snapshot == NULL && strstr(error->message, "Linux 6.15") != NULL) {
        g_test_skip("this kernel cannot clone detached mounts");
        return NULL;
    }
    g_assert_no_error(error);
    return snapshot;
}

static void back(Box *box, const BoxSnapshot *snapshot)
{
    g_autoptr(GError) error = NULL;
    g_assert_true(box_rollback(box, snapshot, &error));
    g_assert_no_error(error);
}

static Box *child_of(const BoxSnapshot *snapshot, guint uid, guint i)
{
    BoxSpec spec = spec_over_base(uid, CHILD_SLOT + i);
    spec.snapshot = snapshot;
    return lab_open(&spec);
}

/* Everything about the tree that a program can see; inode numbers apart. Times count, so CHANGES
 * sets them to a second long gone: a copy that loses one is seen on every run. */
#define PICTURE                                                                                    \
    "find . -mindepth 1 -printf '%p %y %m %n %U:%G %s %l %T@\\n' | sed 's/ "                       \
    "\\([0-9]*\\)\\.[0-9]*$/ \\1/;"                                                                \
    "/ d /s/ [0-9]* \\([0-9]*:[0-9]*\\) [0-9]* / \\1 /' | sort; "                                  \
    "find . -type f -exec sha256sum {} + | sort -k2; getfattr -Rd . 2>/dev/null | cat; cat "       \
    "~/kept 2>&1"

#define CHANGES                                                                                    \
    "echo more >> a; rm d/x; rm -r d/e; mkdir d/e; echo new > d/e/z; rm -r r; echo file > r; "     \
    "mkdir -p n/m; echo n > n/m/f; ln n/m/f n/hard; ln -s ../a n/soft; chmod 600 n/m/f; "          \
    "chmod 711 n; mkfifo n/fifo; "                                                                 \
    "dd if=/dev/zero of=n/sparse bs=1 count=0 seek=3000000 2>/dev/null; echo end >> n/sparse; "    \
    "echo h > ~/kept; python3 -c 'import os; os.setxattr(\"n/m/f\", \"user.tag\", b\"t\")' "       \
    "2>/dev/null || true; "                                                                        \
    "touch -h -d 2001-02-03T04:05:06Z a r n/hard n/fifo n/soft n/sparse n/m n d/e/z d/e d; echo "  \
    "end"

static void a_fork_sees_what_its_parent_had(gconstpointer data)
{
    guint uid = GPOINTER_TO_UINT(data);
    BoxSpec spec = spec_over_base(uid, CHILD_SLOT - 1);
    g_autoptr(Box) parent = lab_open(&spec);
    expect(parent, CHANGES, "end");
    g_autofree char *before = sh(parent, PICTURE);
    g_autoptr(BoxSnapshot) snapshot = freeze(parent);
    if (snapshot == NULL)
        return;
    g_autofree char *after = sh(parent, PICTURE);
    g_assert_cmpstr(before, ==, after);
    g_assert_cmpuint(box_snapshot_bytes(snapshot), >, 4096);

    for (guint i = 0; i < 3; i++) {
        g_autoptr(Box) child = child_of(snapshot, uid, i);
        g_autofree char *theirs = sh(child, PICTURE);
        g_assert_cmpstr(before, ==, theirs);
        expect(child, "rm -r n && echo x > a && mkdir n && cat d/e/z && ls n | wc -l", "new\n0");
        expect(parent, "tail -1 a; cat n/m/f", "more\nn"); /* it has not seen that */
    }
    g_autofree char *still = sh(parent, PICTURE);
    g_assert_cmpstr(before, ==, still);
}

static void rollback_takes_back_exactly_what_came_later(gconstpointer data)
{
    guint uid = GPOINTER_TO_UINT(data);
    BoxSpec spec = spec_over_base(uid, CHILD_SLOT - 1);
    g_autoptr(Box) box = lab_open(&spec);
    g_autofree char *at_open = sh(box, PICTURE);
    expect(box, CHANGES, "end");
    g_autofree char *changed = sh(box, PICTURE);
    g_autoptr(BoxSnapshot) first = freeze(box);
    if (first == NULL)
        return;
    expect(box, "rm -r n d; echo over > r; mkdir d; echo q > d/q; rm ~/kept; echo end", "end");
    g_autofree char *later = sh(box, PICTURE);
    g_autoptr(BoxSnapshot) second = freeze(box);

    back(box, first);
    g_autofree char *once = sh(box, PICTURE);
    g_assert_cmpstr(once, ==, changed);
    back(box, second);
    g_autofree char *again = sh(box, PICTURE);
    g_assert_cmpstr(again, ==, later);
    g_autoptr(GError) error = NULL;
    g_assert_true(box_reset(box, &error));
    g_autofree char *reset = sh(box, PICTURE);
    g_assert_cmpstr(reset, ==, at_open);
}

/* Each step is a snapshot; beyond sixteen the stack is merged, and looks the same. */
static void a_deep_stack_is_flattened_and_looks_the_same(void)
{
    BoxSpec spec = spec_over_base(1000, CHILD_SLOT - 1);
    g_autoptr(Box) box = lab_open(&spec);
    g_autoptr(GPtrArray) taken = g_ptr_array_new_with_free_func((GDestroyNotify)box_snapshot_unref);
    g_autoptr(GPtrArray) pictures = g_ptr_array_new_with_free_func(g_free);
    expect(box, CHANGES, "end");
    for (int i = 0; i < 40; i++) {
        g_autofree char *line = g_strdup_printf(
            "echo %d >> a; rm -rf s; mkdir s; echo %d > s/f%d; rm -f n/hard; ln n/m/f n/hard; "
            "echo %d > deep%d; rm -f deep%d; mv n/soft n/s2 2>/dev/null || mv n/s2 n/soft; echo "
            "end",
            i, i, i, i, i % 7, (i + 3) % 7);
        expect(box, line, "end");
        BoxSnapshot *snapshot = freeze(box);
        if (snapshot == NULL)
            return;
        g_ptr_array_add(taken, snapshot);
        g_ptr_array_add(pictures, sh(box, PICTURE));
    }
    static const guint looks[] = {39, 0, 15, 16, 17, 31, 38};
    for (gsize i = 0; i < G_N_ELEMENTS(looks); i++) {
        back(box, g_ptr_array_index(taken, looks[i]));
        g_autofree char *got = sh(box, PICTURE);
        g_assert_cmpstr(got, ==, g_ptr_array_index(pictures, looks[i]));
    }
}

static void freezing_does_not_lift_the_disk_limit(void)
{
    BoxSpec spec = spec_over_base(1000, CHILD_SLOT - 1);
    spec.limits.disk_bytes = 4 << 20;
    g_autoptr(Box) box = lab_open(&spec);
    guint written = 0;
    for (guint i = 0; i < 8; i++) {
        g_autofree char *line =
            g_strdup_printf("dd if=/dev/urandom of=f%u bs=1M count=1 2>/dev/null; echo $?", i);
        g_autofree char *got = sh(box, line);
        written += g_str_equal(got, "0");
        g_autoptr(BoxSnapshot) snapshot = freeze(box);
        if (snapshot == NULL)
            return;
    }
    g_assert_cmpuint(written, >=, 2);
    g_assert_cmpuint(written, <=, 4);
}

static void kept_processes_go_on_through_a_snapshot(void)
{
    g_autoptr(GError) error = NULL;
    BoxSpec spec = spec_over_base(1000, CHILD_SLOT - 1);
    g_autoptr(Box) box = lab_open(&spec);
    BoxCommand command = {
        .argv =
            (const char *const[]){"/bin/sh", "-c",
                                  "exec >/dev/null 2>&1; (exec 3>log; i=0; while :; do i=$((i+1)); "
                                  "echo $i >&3; echo $i > now; done) & sleep 0.05",
                                  NULL},
        .keep_background = TRUE};
    g_auto(BoxResult) result = {0};
    g_assert_true(box_exec(box, &command, &result, &error));
    g_assert_cmpuint(result.leftover_procs, >=, 1);
    g_autoptr(BoxSnapshot) snapshot = freeze(box);
    if (snapshot == NULL)
        return;
    /* It still runs here, and writes into the file that it had open. */
    command.argv = (const char *const[]){
        "/bin/sh", "-c", "a=$(wc -l < log); sleep 0.1; b=$(wc -l < log); [ $b -gt $a ] && echo on",
        NULL};
    g_assert_true(box_exec(box, &command, &result, &error));
    g_assert_cmpmem(g_bytes_get_data(result.out, NULL), (int)g_bytes_get_size(result.out), "on\n",
                    3);
    /* The copy stands still. */
    g_autoptr(Box) child = child_of(snapshot, 1000, 0);
    expect(child,
           "a=$(cksum log now); sleep 0.1; b=$(cksum log now); [ \"$a\" = \"$b\" ] && echo still",
           "still");
    back(box, snapshot);
    expect(box, "a=$(cat now); sleep 0.1; b=$(cat now); [ \"$a\" = \"$b\" ] && echo ended",
           "ended");
}

/* One saved state: its two layers in the depot, by the digests of their trees. */
typedef struct Saved {
    int root, work;
    char *digests[2];
} Saved;

static void keep(Depot *depot, DepotStage *stage, char **ret_digest, int *ret_fd)
{
    g_autoptr(GError) error = NULL;
    AUTO_FD upper = openat(stage->dir_fd, "upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *ret_digest = depot_tree_digest(upper, &error);
    g_assert_no_error(error);
    *ret_fd = depot_commit(depot, stage, *ret_digest, &error);
    g_assert_no_error(error);
}

static Saved save(Depot *depot, const BoxSnapshot *snapshot)
{
    g_autoptr(GError) error = NULL;
    Saved saved;
    g_autoptr(DepotStage) root = depot_stage(depot, &error);
    g_autoptr(DepotStage) work = depot_stage(depot, &error);
    g_assert_true(box_snapshot_save(snapshot, CHILD_SLOT + 1, root->dir_fd, work->dir_fd, &error));
    g_assert_no_error(error);
    keep(depot, root, &saved.digests[0], &saved.root);
    keep(depot, work, &saved.digests[1], &saved.work);
    return saved;
}

static void a_saved_snapshot_is_layers_with_a_digest(gconstpointer data)
{
    guint uid = GPOINTER_TO_UINT(data);
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_build_filename(scratch, uid == 0 ? "depot0" : "depot1000", NULL);
    g_autoptr(Depot) depot = depot_open(dir, 0, &error);
    g_assert_no_error(error);
    BoxSpec spec = spec_over_base(uid, CHILD_SLOT - 1);
    g_autoptr(Box) box = lab_open(&spec);
    expect(box, CHANGES, "end");
    g_autoptr(BoxSnapshot) first = freeze(box);
    if (first == NULL)
        return;
    g_autofree char *had = sh(box, PICTURE);
    g_autoptr(BoxSnapshot) second = freeze(box); /* one generation more, the same content */
    Saved saved = save(depot, first), again = save(depot, second);
    for (int i = 0; i < 2; i++) {
        g_assert_cmpstr(saved.digests[i], ==, again.digests[i]);
        g_free(saved.digests[i]);
        g_free(again.digests[i]);
    }
    const int layers[] = {saved.root}, work[] = {saved.work, base_fd};
    BoxSpec next = lab_spec(uid);
    next.slot = CHILD_SLOT;
    next.layer_fds = layers;
    next.n_layers = 1;
    next.work_fds = work;
    next.n_work = 2;
    g_autoptr(Box) later = lab_open(&next);
    g_autofree char *has = sh(later, PICTURE);
    g_assert_cmpstr(has, ==, had);
    g_clear_pointer(&later, box_close);
    const int fds[] = {saved.root, saved.work, again.root, again.work};
    for (gsize i = 0; i < G_N_ELEMENTS(fds); i++)
        close(fds[i]);
}

static void what_cannot_be_frozen_says_why(void)
{
    g_autoptr(GError) error = NULL;
    BoxSpec spec = spec_over_base(1000, CHILD_SLOT - 1);
    g_autoptr(Box) box = lab_open(&spec);
    BoxCommand command = {.argv = (const char *const[]){"sleep", "5", NULL}};
    BoxRun *run = box_start(box, &command, &error);
    g_assert_no_error(error);
    g_assert_null(box_snapshot(box, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
    g_clear_error(&error);
    box_run_cancel(run);
    g_auto(BoxResult) result = {0};
    g_assert_true(box_run_finish(run, &result, &error));
    g_assert_cmpint(result.outcome, ==, BOX_CANCELLED);

    g_autoptr(BoxSnapshot) snapshot = freeze(box);
    if (snapshot == NULL)
        return;
    BoxSpec other = spec_over_base(0, CHILD_SLOT);
    other.snapshot = snapshot;
    g_assert_null(box_open(&other, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
}

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    make_base();
    g_test_add_data_func("/snapshot/a_fork_sees_what_its_parent_had/uid0", GUINT_TO_POINTER(0),
                         a_fork_sees_what_its_parent_had);
    g_test_add_data_func("/snapshot/a_fork_sees_what_its_parent_had/uid1000",
                         GUINT_TO_POINTER(1000), a_fork_sees_what_its_parent_had);
    g_test_add_data_func("/snapshot/rollback_takes_back_exactly_what_came_later/uid0",
                         GUINT_TO_POINTER(0), rollback_takes_back_exactly_what_came_later);
    g_test_add_data_func("/snapshot/rollback_takes_back_exactly_what_came_later/uid1000",
                         GUINT_TO_POINTER(1000), rollback_takes_back_exactly_what_came_later);
    g_test_add_func("/snapshot/a_deep_stack_is_flattened_and_looks_the_same",
                    a_deep_stack_is_flattened_and_looks_the_same);
    g_test_add_func("/snapshot/freezing_does_not_lift_the_disk_limit",
                    freezing_does_not_lift_the_disk_limit);
    g_test_add_func("/snapshot/kept_processes_go_on_through_a_snapshot",
                    kept_processes_go_on_through_a_snapshot);
    g_test_add_data_func("/snapshot/a_saved_snapshot_is_layers_with_a_digest/uid0",
                         GUINT_TO_POINTER(0), a_saved_snapshot_is_layers_with_a_digest);
    g_test_add_data_func("/snapshot/a_saved_snapshot_is_layers_with_a_digest/uid1000",
                         GUINT_TO_POINTER(1000), a_saved_snapshot_is_layers_with_a_digest);
    g_test_add_func("/snapshot/what_cannot_be_frozen_says_why", what_cannot_be_frozen_says_why);
    int status = g_test_run();
    close(base_fd);
    tree_remove(AT_FDCWD, scratch, NULL);
    return lab_end(status);
}
