/*
 * What a box costs, as ratios taken in one interleaved run: a bare spawn, a one-shot box with every
 * layer, a warm box, a command in an open box; bubblewrap, crun and runc where they are installed
 * and run; and a workspace by overlay against `git worktree add`.
 *
 * Between any two there is a pause, so that what one leaves to be done in the background is not
 * counted to the next; bench_live.c has rates, which count everything. Taken under SCHED_FIFO
 * where that is permitted, so that other work on the machine does not count; children inherit it,
 * so both sides of every ratio have it. runc cannot run under it: for runc, set
 * ASSAY_BENCH_PLAIN=1.
 * Figures are TAP diagnostics. Fails when the one-shot median is above that of bubblewrap, which
 * has fewer layers.
 */
#include "tests/sandbox/lab.h"

#include "base/fd.h"
#include "base/id.h"
#include "base/tree.h"
#include "sandbox/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS      80
#define PAUSE_US    3000
#define WORK_FILES  2000
#define WORK_ROUNDS 5

extern char **environ;

static int program(const char *const *argv)
{
    pid_t pid;
    int status = 0;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    int r = posix_spawnp(&pid, argv[0], &actions, NULL, (char *const *)(gsize)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (r != 0)
        return -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int bare(void)
{
    return program((const char *const[]){"/bin/true", NULL});
}

static const char *const true_argv[] = {"/bin/true", NULL};

static gboolean ended_well(const BoxResult *result)
{
    return result->outcome == BOX_EXITED && result->exit_code == 0;
}

static int one_shot(void)
{
    BoxSpec spec = {.work_path = "/testbed",
                    .uid = 1000,
                    .gid = 1000,
                    .slot = 110,
                    .limits = box_limits_default()};
    g_autoptr(Box) box = box_open(&spec, NULL);
    BoxCommand command = {.argv = true_argv};
    g_auto(BoxResult) result = {0};
    return box != NULL && box_exec(box, &command, &result, NULL) && ended_well(&result) ? 0 : -1;
}

static Box *open_box;

static int warm(void)
{
    BoxCommand command = {.argv = true_argv};
    g_auto(BoxResult) result = {0};
    return box_exec(open_box, &command, &result, NULL) && ended_well(&result) ? 0 : -1;
}

static BoxPool *pool;

static int warm_box(void)
{
    BoxSpec spec = {
        .work_path = "/testbed", .uid = 1000, .gid = 1000, .limits = box_limits_default()};
    Box *box = box_pool_take(pool, &spec, "bench", NULL);
    BoxCommand command = {.argv = true_argv};
    g_auto(BoxResult) result = {0};
    gboolean ok = box_exec(box, &command, &result, NULL) && ended_well(&result);
    box_pool_give(pool, box);
    return ok ? 0 : -1;
}

/* A bundle for crun and runc: /usr, /proc, an empty /dev, five namespaces. */
static char *bundle_dir;

static void make_bundle(void)
{
    static const char config[] =
        "{\"ociVersion\":\"1.0.2\",\"process\":{\"user\":{\"uid\":0,\"gid\":0},\"args\":[\"/bin/"
        "true\"],"
        "\"cwd\":\"/\",\"env\":[\"PATH=/usr/bin:/bin\"],\"noNewPrivileges\":true},"
        "\"root\":{\"path\":\"rootfs\",\"readonly\":true},\"mounts\":["
        "{\"destination\":\"/proc\",\"type\":\"proc\",\"source\":\"proc\"},"
        "{\"destination\":\"/dev\",\"type\":\"tmpfs\",\"source\":\"tmpfs\"},"
        "{\"destination\":\"/usr\",\"type\":\"none\",\"source\":\"/"
        "usr\",\"options\":[\"rbind\",\"ro\"]}],"
        "\"linux\":{\"namespaces\":[{\"type\":\"pid\"},{\"type\":\"ipc\"},{\"type\":\"uts\"},"
        "{\"type\":\"mount\"},{\"type\":\"network\"}]}}";
    static const char *const links[] = {"bin", "lib", "lib64", "sbin"};
    static const char *const dirs[] = {"usr", "proc", "dev"};
    bundle_dir = g_dir_make_tmp("assay-bundle-XXXXXX", NULL);
    g_autofree char *root = g_build_filename(bundle_dir, "rootfs", NULL);
    g_autofree char *path = g_build_filename(bundle_dir, "config.json", NULL);
    g_assert_true(g_file_set_contents(path, config, -1, NULL));
    for (gsize i = 0; i < G_N_ELEMENTS(dirs); i++) {
        g_autofree char *dir = g_build_filename(root, dirs[i], NULL);
        g_assert_cmpint(g_mkdir_with_parents(dir, 0755), ==, 0);
    }
    for (gsize i = 0; i < G_N_ELEMENTS(links); i++) {
        g_autofree char *link = g_build_filename(root, links[i], NULL);
        g_autofree char *target = g_build_filename("usr", links[i], NULL);
        g_assert_cmpint(symlink(target, link), ==, 0);
    }
}

static int oci(const char *name, const char *first)
{
    static int n;
    g_autofree char *id = g_strdup_printf("assay-bench-%d-%d", (int)getpid(), n++);
    const char *const with[] = {name, first, "run", "-b", bundle_dir, id, NULL};
    const char *const without[] = {name, "run", "-b", bundle_dir, id, NULL};
    return program(first != NULL ? with : without);
}

static int crun(void)
{
    return oci("crun", "--cgroup-manager=disabled");
}

static int runc(void)
{
    return oci("runc", NULL);
}

static int bwrap(void)
{
    return program((const char *const[]){
        "bwrap",     "--unshare-all", "--ro-bind",  "/usr",  "/usr",          "--ro-bind", "/etc",
        "/etc",      "--symlink",     "usr/bin",    "/bin",  "--symlink",     "usr/lib",   "/lib",
        "--symlink", "usr/lib64",     "/lib64",     "--dev", "/dev",          "--proc",    "/proc",
        "--tmpfs",   "/tmp",          "--cap-drop", "ALL",   "--new-session", "/bin/true", NULL});
}

typedef struct Variant {
    const char *name;
    int (*fn)(void);
    gint64 ns[ROUNDS];
    gboolean skipped;
} Variant;

static int by_value(const void *a, const void *b)
{
    gint64 x = *(const gint64 *)a, y = *(const gint64 *)b;
    return (x > y) - (x < y);
}

static double median_us(Variant *variant, double *ret_p90)
{
    qsort(variant->ns, ROUNDS, sizeof variant->ns[0], by_value);
    *ret_p90 = (double)variant->ns[ROUNDS * 9 / 10] / 1000;
    return (double)variant->ns[ROUNDS / 2] / 1000;
}

static gint64 timed(int (*fn)(void))
{
    gint64 start = clock_mono_ns();
    int status = fn();
    g_assert_cmpint(status, ==, 0);
    return clock_mono_ns() - start;
}

static void starts_are_cheap(void)
{
    Variant variants[] = {{.name = "posix_spawn /bin/true", .fn = bare},
                          {.name = "one-shot box", .fn = one_shot},
                          {.name = "warm box", .fn = warm_box},
                          {.name = "command in an open box", .fn = warm},
                          {.name = "bwrap", .fn = bwrap},
                          {.name = "crun, no cgroup", .fn = crun},
                          {.name = "runc", .fn = runc}};
    BoxSpec spec = {.work_path = "/testbed",
                    .uid = 1000,
                    .gid = 1000,
                    .slot = 111,
                    .limits = box_limits_default()};
    open_box = lab_open(&spec);
    pool = box_pool_new(113, 1, 1000000);
    make_bundle();
    g_assert_cmpint(warm_box() + warm_box(), ==, 0); /* the first one is opened */
    for (gsize v = 0; v < G_N_ELEMENTS(variants); v++)
        variants[v].skipped = variants[v].fn() != 0; /* also warms up */
    g_assert_false(variants[0].skipped || variants[1].skipped || variants[2].skipped);
    for (int i = 0; i < ROUNDS; i++)
        for (gsize v = 0; v < G_N_ELEMENTS(variants); v++)
            if (!variants[v].skipped) {
                g_usleep(PAUSE_US);
                variants[v].ns[i] = timed(variants[v].fn);
            }
    g_clear_pointer(&open_box, box_close);
    g_clear_pointer(&pool, box_pool_free);
    tree_remove(AT_FDCWD, bundle_dir, NULL);

    double p90, base = median_us(&variants[0], &p90), ours = 0, theirs = G_MAXDOUBLE;
    for (gsize v = 0; v < G_N_ELEMENTS(variants); v++) {
        if (variants[v].skipped) {
            g_test_message("%s: not here", variants[v].name);
            continue;
        }
        double median = v == 0 ? base : median_us(&variants[v], &p90);
        g_test_message("%s: median %.0f us, p90 %.0f us, ratio %.2f (p90 %.2f)", variants[v].name,
                       median, p90, median / base, p90 / base);
        if (variants[v].fn == one_shot)
            ours = median;
        if (variants[v].fn == bwrap)
            theirs = median;
    }
    g_test_message("goals: one-shot 3.0, warm 2.0, p90 within 1.5 times the median");
    g_assert_cmpfloat(ours, <=, theirs);
}

static char *repo_dir;

static void git(const char *first, ...) G_GNUC_NULL_TERMINATED;
static void git(const char *first, ...)
{
    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    va_list list;
    va_start(list, first);
    g_ptr_array_add(argv, (gpointer)(gsize) "git");
    g_ptr_array_add(argv, (gpointer)(gsize) "-C");
    g_ptr_array_add(argv, repo_dir);
    for (const char *word = first; word != NULL; word = va_arg(list, const char *))
        g_ptr_array_add(argv, (gpointer)(gsize)word);
    va_end(list);
    g_ptr_array_add(argv, NULL);
    g_assert_cmpint(program((const char *const *)argv->pdata), ==, 0);
}

static void make_repo(void)
{
    for (int i = 0; i < WORK_FILES; i++) {
        g_autofree char *dir = g_strdup_printf("%s/d%d", repo_dir, i % 100);
        g_autofree char *path = g_strdup_printf("%s/f%d.txt", dir, i);
        g_autofree char *text = g_strnfill(2000 + i, 'x');
        g_assert_cmpint(g_mkdir_with_parents(dir, 0755), ==, 0);
        g_assert_true(g_file_set_contents(path, text, -1, NULL));
    }
    git("init", "-q", NULL);
    git("add", "-A", NULL);
    git("-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "all", NULL);
}

static gint64 worktree_ns(int i)
{
    g_autofree char *path = g_strdup_printf("%s-w%d", repo_dir, i);
    gint64 start = clock_mono_ns();
    git("worktree", "add", "-q", "--detach", path, NULL);
    gint64 ns = clock_mono_ns() - start;
    tree_remove(AT_FDCWD, path, NULL);
    git("worktree", "prune", NULL);
    return ns;
}

/* A whole box, with the repository as its workspace: more than the overlay alone. */
static gint64 open_ns(int dir_fd)
{
    BoxSpec spec = {.work_path = "/testbed",
                    .slot = 112,
                    .limits = box_limits_default(),
                    .work_fds = &dir_fd,
                    .n_work = dir_fd >= 0 ? 1 : 0};
    gint64 start = clock_mono_ns();
    g_autoptr(Box) box = lab_open(&spec);
    return clock_mono_ns() - start;
}

static void a_workspace_is_cheap(void)
{
    if (program((const char *const[]){"git", "--version", NULL}) != 0) {
        g_test_skip("git is not installed");
        return;
    }
    g_autofree char *top = g_dir_make_tmp("assay-bench-XXXXXX", NULL);
    g_assert_cmpint(chmod(top, 0755), ==, 0);
    repo_dir = g_build_filename(top, "repo", NULL);
    g_assert_cmpint(mkdir(repo_dir, 0755), ==, 0);
    make_repo();
    AUTO_FD dir = open(repo_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    Variant with = {0};
    gint64 worktree = G_MAXINT64;
    open_ns(dir);
    for (int i = 0; i < ROUNDS; i++)
        with.ns[i] = open_ns(dir);
    for (int i = 0; i < WORK_ROUNDS; i++)
        worktree = MIN(worktree, worktree_ns(i));
    double p90, a = median_us(&with, &p90);
    double tree_us = (double)worktree / 1000;
    g_test_message("git worktree add of %d files: best of %d %.0f us", WORK_FILES, WORK_ROUNDS,
                   tree_us);
    g_test_message("whole box with that workspace: median %.0f us, %.0f times less", a,
                   tree_us / a);

    g_assert_cmpfloat(tree_us / a, >=, 5);
    tree_remove(AT_FDCWD, top, NULL);
    g_free(repo_dir);
}

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    struct sched_param param = {.sched_priority = 10};
    if (g_getenv("ASSAY_BENCH_PLAIN") != NULL || sched_setscheduler(0, SCHED_FIFO, &param) < 0)
        g_printerr("# at ordinary priority: other work on this machine counts\n");
    g_test_add_func("/bench/starts_are_cheap", starts_are_cheap);
    g_test_add_func("/bench/a_workspace_is_cheap", a_workspace_is_cheap);
    return lab_end(g_test_run());
}
