/*
 * Our own robustness: nothing leaks, and nothing survives the death of a keeper or a worker.
 */
#include "tests/sandbox/lab.h"

#include "base/fd.h"
#include "sandbox/box_ids.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORKER_SLOT 101u

static guint count_mounts(void)
{
    g_autofree char *text = NULL;
    guint n = 0;
    g_assert_true(g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL));
    for (const char *at = text; *at != '\0'; at++)
        n += *at == '\n';
    return n;
}

static void one_run(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    g_auto(BoxResult) result = {0};
    g_autofree char *text = lab_sh(box, "echo x > file; sleep 100 &", &result);
    g_assert_cmpint(result.outcome, ==, BOX_EXITED);
}

static void fifty_boxes_leave_nothing_behind(void)
{
    one_run(); /* what is made once per process */
    box_shutdown();
    guint fds = lab_count_fds(), mounts = count_mounts();
    for (int i = 0; i < 50; i++)
        one_run();
    box_shutdown();
    g_autoptr(GArray) left = lab_box_pids(100);
    g_assert_cmpuint(lab_count_fds(), ==, fds);
    g_assert_cmpuint(count_mounts(), ==, mounts);
    g_assert_cmpuint(lab_count_groups(getpid()), ==, 0);
    g_assert_true(lab_wait_gone(left, 5000)); /* a spare keeper dies with its starter */
}

static void shutting_down_removes_every_group(void)
{
    one_run();
    box_shutdown();
    g_assert_cmpuint(lab_count_groups(getpid()), ==, 0);
    one_run(); /* and boxes still work afterwards */
}

typedef struct Killer {
    int ready_fd;
    guint slot;
    GArray *pids;
} Killer;

/* Is it PID 1 of an outer pid namespace (two levels), as keepers are, spare ones too? */
static gboolean is_keeper(int pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
    g_autofree char *status = NULL;
    if (!g_file_get_contents(path, &status, NULL, NULL))
        return FALSE;
    const char *line = strstr(status, "\nNSpid:\t");
    g_auto(GStrv) lines = line == NULL ? NULL : g_strsplit(line + 8, "\n", 2);
    g_auto(GStrv) levels = lines == NULL ? NULL : g_strsplit(lines[0], "\t", -1);
    return levels != NULL && g_strv_length(levels) == 2 && g_str_equal(levels[1], "1");
}

/* Kills the keepers once the command says that it runs. */
static gpointer kill_keeper(gpointer data)
{
    Killer *killer = data;
    char byte;
    guint n = 0;
    g_assert_cmpint(read(killer->ready_fd, &byte, 1), ==, 1);
    killer->pids = lab_box_pids(killer->slot);
    for (guint i = 0; i < killer->pids->len; i++) {
        int pid = g_array_index(killer->pids, int, i);
        if (is_keeper(pid))
            n += kill(pid, SIGKILL) == 0;
    }
    g_assert_cmpuint(n, >, 0);
    return NULL;
}

static void nothing_survives_a_killed_keeper(void)
{
    int ends[2];
    g_assert_cmpint(pipe2(ends, O_CLOEXEC), ==, 0);
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) box = lab_open(&spec);
    Killer killer = {ends[0], spec.slot, NULL};
    GThread *thread = g_thread_new("killer", kill_keeper, &killer);
    BoxCommand command = {
        .argv =
            (const char *const[]){"/bin/sh", "-c",
                                  "/payload/payload stay; sleep 1000 & echo x; sleep 1000", NULL},
        .tee_fd = ends[1]};
    g_auto(BoxResult) result = {0};
    g_autoptr(GError) error = NULL;
    gboolean ok = box_exec(box, &command, &result, &error);
    g_thread_join(thread);
    g_assert_false(ok); /* the box failed, and says so */
    g_assert_nonnull(error);
    if (!lab_is_user()) /* an ordinary user's picture holds processes that are not of the box */
        g_assert_true(lab_wait_gone(killer.pids, 5000));
    g_array_unref(killer.pids);
    close(ends[0]);
    close(ends[1]);
    one_run(); /* the slot is usable again */
}

/* A worker of our own, killed while its box runs a command. */
static pid_t start_worker(int ready_fd)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    BoxSpec spec = lab_spec(1000);
    spec.slot = WORKER_SLOT;
    Box *box = box_open(&spec, NULL);
    BoxCommand command = {
        .argv =
            (const char *const[]){"/bin/sh", "-c",
                                  "/payload/payload stay; sleep 1000 & echo x; sleep 1000", NULL},
        .tee_fd = ready_fd};
    BoxResult result = {0};
    if (box != NULL)
        box_exec(box, &command, &result, NULL);
    _exit(1);
}

static void nothing_survives_a_killed_worker(void)
{
    int ends[2];
    char byte;
    g_assert_cmpint(pipe2(ends, O_CLOEXEC), ==, 0);
    g_autoptr(GArray) ours = lab_box_pids(WORKER_SLOT);
    pid_t worker = start_worker(ends[1]);
    close(ends[1]);
    g_assert_cmpint(read(ends[0], &byte, 1), ==, 1);
    g_autoptr(GArray) all = lab_box_pids(WORKER_SLOT);
    g_autoptr(GArray) pids = g_array_new(FALSE, FALSE, sizeof(int));
    for (guint i = 0; i < all->len; i++) {
        gboolean known = FALSE;
        for (guint k = 0; k < ours->len; k++)
            known = known || g_array_index(ours, int, k) == g_array_index(all, int, i);
        if (!known)
            g_array_append_val(pids, g_array_index(all, int, i));
    }
    g_assert_cmpuint(pids->len, >=, 4); /* keeper, init, shell, daemon, sleeps */
    kill(worker, SIGKILL);
    g_assert_cmpint(waitpid(worker, NULL, 0), ==, worker);
    g_assert_true(lab_wait_gone(pids, 5000));

    gboolean left = lab_count_groups(worker) > 0;
    guint swept = box_sweep_stale(); /* a delegated group may lie deeper than we count */
    g_assert_true(swept >= 1 || !left);
    g_assert_cmpuint(lab_count_groups(worker), ==, 0);
    close(ends[0]);
}

static void files_that_use_up_memory_are_the_commands_fault(void)
{
    BoxSpec spec = lab_spec(0);
    spec.limits.mem_bytes = 48 << 20;
    spec.limits.tmp_bytes = spec.limits.disk_bytes = 512 << 20;
    g_autoptr(Box) box = lab_open(&spec);
    for (int i = 0; i < 4; i++) {
        g_autoptr(GError) error = NULL;
        BoxCommand command = {
            .argv = (const char *const[]){"/bin/sh", "-c",
                                          "/payload/payload fill /tmp/x; /payload/payload fill "
                                          "/dev/shm/x; /payload/payload fill ./x",
                                          NULL},
            .wall_ms = lab_ms(5000)};
        g_auto(BoxResult) result = {0};
        gboolean ok = box_exec(box, &command, &result, &error);
        g_assert_no_error(error);
        g_assert_true(ok);
        if (result.mem_by == BOX_BY_CGROUP1 || result.mem_by == BOX_BY_CGROUP2)
            g_assert_cmpint(result.outcome, ==, BOX_OUT_OF_MEMORY);
    }
    g_clear_pointer(&box, box_close);
    one_run();
}

static void two_boxes_share_nothing(void)
{
    BoxSpec a_spec = lab_spec(1000), b_spec = lab_spec(1000);
    b_spec.slot = 102;
    g_autoptr(Box) a = lab_open(&a_spec);
    g_autoptr(Box) b = lab_open(&b_spec);
    g_auto(BoxResult) one = {0}, two = {0};
    g_autofree char *text = lab_sh(a, "echo a > /tmp/x; echo a > /dev/shm/x; echo a > y", &one);
    g_autofree char *seen = lab_sh(b, "ls /tmp /dev/shm . | grep -c '^[xy]$'", &two);
    g_assert_cmpstr(seen, ==, "0");
}

/* What a box reports must be what its command sees. */
static void missing_layers_refuse_a_box(void)
{
    BoxSpec spec = lab_spec(0);
    spec.net = BOX_NET_HOST;
    spec.require = BOX_LAYER_NET | BOX_LAYER_SECCOMP;
    g_autoptr(GError) error = NULL;
    g_assert_null(box_open(&spec, &error));
    g_assert_nonnull(strstr(error->message, "net"));
    g_assert_null(strstr(error->message, "seccomp"));
}

static void hostile_specs_are_refused(void)
{
    static const char *const paths[] = {"relative", "/", "/a/../b", "/a//b", "/a/", ""};
    for (gsize i = 0; i < G_N_ELEMENTS(paths); i++) {
        BoxSpec spec = lab_spec(0);
        spec.work_path = paths[i];
        g_autoptr(GError) error = NULL;
        g_assert_null(box_open(&spec, &error));
        g_assert_nonnull(error);
    }
    BoxSpec spec = lab_spec(70000);
    g_assert_null(box_open(&spec, NULL));
    spec = lab_spec(0);
    spec.slot = 5000;
    g_assert_null(box_open(&spec, NULL));
}

#define ADD(fn) g_test_add_func("/robust/" #fn, fn)

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    ADD(fifty_boxes_leave_nothing_behind);
    ADD(shutting_down_removes_every_group);
    ADD(nothing_survives_a_killed_keeper);
    ADD(nothing_survives_a_killed_worker);
    ADD(files_that_use_up_memory_are_the_commands_fault);
    ADD(two_boxes_share_nothing);
    ADD(missing_layers_refuse_a_box);
    ADD(hostile_specs_are_refused);
    return lab_end(g_test_run());
}
