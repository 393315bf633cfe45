/*
 * Many boxes, one after another and at once: afterwards this process has the descriptors, mounts,
 * groups, helpers and memory that it had after the first.
 *
 * 300 and 40 of them; with "--long", an opt-in suite, 10,000 and 200.
 */
#include "tests/sandbox/lab.h"

#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOT          107u
#define PARALLEL_SLOT 300u
#define GROWN_MAX     (256 << 10) /* bytes that an allocator may keep back */

static guint n_sequential, n_parallel;

/* What must be the same. */
typedef struct Held {
    guint fds, mounts, groups, helpers, spaces;
    gint64 heap_bytes, helper_pages;
} Held;

static guint count_dir(const char *path, const char *prefix)
{
    guint n = 0;
    const char *name;
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    while (dir != NULL && (name = g_dir_read_name(dir)) != NULL)
        n += g_str_has_prefix(name, prefix);
    return n;
}

/* Groups of ours in any hierarchy, wherever it is mounted. */
static guint count_groups(const char *mounts)
{
    g_autofree char *prefix = g_strdup_printf("assay-box-%d-", (int)getpid());
    g_auto(GStrv) lines = g_strsplit(mounts, "\n", -1);
    guint n = 0;
    for (char **line = lines; *line != NULL; line++) {
        g_auto(GStrv) words = g_strsplit(*line, " ", -1);
        if (g_strv_length(words) > 4 && strstr(*line, " - cgroup") != NULL)
            n += count_dir(words[4], prefix);
    }
    return n;
}

/* Is PID a descendant of this process? */
static gboolean descends(gint64 pid)
{
    for (int depth = 0; pid > 1 && depth < 16; depth++) {
        g_autofree char *path = g_strdup_printf("/proc/%" G_GINT64_FORMAT "/status", pid);
        g_autofree char *text = NULL;
        if (!g_file_get_contents(path, &text, NULL, NULL))
            return FALSE;
        const char *line = strstr(text, "\nPPid:");
        pid = line == NULL ? 0 : g_ascii_strtoll(line + 6, NULL, 10);
        if (pid == getpid())
            return TRUE;
    }
    return FALSE;
}

static void add_helper(Held *held, const char *pid, GHashTable *spaces)
{
    static const char *const kinds[] = {"user", "mnt", "pid",    "net",
                                        "ipc",  "uts", "cgroup", "time"};
    g_autofree char *statm = g_build_filename("/proc", pid, "statm", NULL);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(statm, &text, NULL, NULL))
        return;
    const char *resident = strchr(text, ' ');
    held->helpers++;
    held->helper_pages += resident == NULL ? 0 : g_ascii_strtoll(resident, NULL, 10);
    for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++) {
        g_autofree char *path = g_build_filename("/proc", pid, "ns", kinds[i], NULL);
        char *space = g_file_read_link(path, NULL);
        if (space != NULL)
            g_hash_table_add(spaces, space);
    }
}

static Held look(void)
{
    Held held = {.fds = count_dir("/proc/self/fd", "")};
    g_autoptr(GHashTable) spaces = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autofree char *mounts = NULL;
    g_assert_true(g_file_get_contents("/proc/self/mountinfo", &mounts, NULL, NULL));
    for (const char *at = mounts; *at != '\0'; at++)
        held.mounts += *at == '\n';
    held.groups = count_groups(mounts);
    held.heap_bytes = (gint64)mallinfo2().uordblks;
    g_autoptr(GDir) dir = g_dir_open("/proc", 0, NULL);
    const char *name;
    while ((name = g_dir_read_name(dir)) != NULL)
        if (g_ascii_isdigit(name[0]) && descends(g_ascii_strtoll(name, NULL, 10)))
            add_helper(&held, name, spaces);
    held.spaces = g_hash_table_size(spaces);
    return held;
}

static void say(const char *when, const Held *held)
{
    g_test_message("%s: %u descriptors, %u mounts, %u groups, %u helpers with %" G_GINT64_FORMAT
                   " pages in %u namespaces, %" G_GINT64_FORMAT " bytes",
                   when, held->fds, held->mounts, held->groups, held->helpers, held->helper_pages,
                   held->spaces, held->heap_bytes);
}

static gboolean run_once(guint slot, GError **error)
{
    BoxSpec spec = lab_spec(1000);
    spec.slot = slot;
    g_autoptr(Box) box = box_open(&spec, error);
    BoxCommand command = {
        .argv = (const char *const[]){"/bin/sh", "-c", "echo x > f; sleep 100 & exit 5", NULL}};
    g_auto(BoxResult) result = {0};
    if (box == NULL || !box_exec(box, &command, &result, error))
        return FALSE;
    if (result.outcome == BOX_EXITED && result.exit_code == 5)
        return TRUE;
    g_set_error(error, g_quark_from_static_string("endurance"), 1, "outcome %s",
                box_outcome_str(result.outcome));
    return FALSE;
}

static void many_boxes_one_after_another_leave_nothing(void)
{
    g_autoptr(GError) error = NULL;
    Held first = {0}, last = {0};
    for (guint i = 0; i < n_sequential; i++) {
        g_assert_true(run_once(SLOT, &error));
        if (i == n_sequential / 10)
            first = look();
    }
    last = look();
    say("after a tenth", &first);
    say("after all", &last);
    /* Ending boxes, and helpers that are made ahead, are in flight: a few, not more each time. */
    const guint slack = 16;
    g_assert_cmpuint(last.fds, <=, first.fds + slack);
    g_assert_cmpuint(last.mounts, ==, first.mounts);
    g_assert_cmpuint(last.groups, ==, first.groups);
    g_assert_cmpuint(last.helpers, <=, first.helpers + slack);
    g_assert_cmpuint(last.spaces, <=, first.spaces + 8 * slack);
    g_assert_cmpint(last.heap_bytes, <=, first.heap_bytes + GROWN_MAX);

    box_shutdown();
    Held none = look();
    say("after the shutdown", &none);
    g_assert_cmpuint(none.helpers, ==, 0);
    g_assert_cmpuint(none.groups, ==, 0);
    g_assert_cmpuint(none.mounts, ==, first.mounts);
}

/* A worker with a slot of its own; it opens its box when all are there. */
static pid_t start_worker(guint i, int go_fd)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    char byte;
    g_autoptr(GError) error = NULL;
    (void)!read(go_fd, &byte, 1);
    gboolean ok = run_once(PARALLEL_SLOT + i, &error);
    if (!ok)
        fprintf(stderr, "# worker %u: %s\n", i, error != NULL ? error->message : "?");
    box_shutdown();
    Held held = look();
    _exit(!ok ? 1 : held.helpers > 0 ? 2 : held.groups > 0 ? 3 : 0);
}

static void many_boxes_at_once_leave_nothing(void)
{
    int go[2];
    g_autofree pid_t *workers = g_new(pid_t, n_parallel);
    box_shutdown(); /* so that no worker inherits a helper */
    Held before = look();
    g_assert_cmpint(pipe(go), ==, 0);
    for (guint i = 0; i < n_parallel; i++) {
        workers[i] = start_worker(i, go[0]);
        g_assert_cmpint(workers[i], >, 0);
    }
    g_autofree char *signals = g_strnfill(n_parallel, 'x');
    g_assert_cmpint(write(go[1], signals, n_parallel), ==, n_parallel);
    for (guint i = 0; i < n_parallel; i++) {
        int status = -1;
        g_assert_cmpint(waitpid(workers[i], &status, 0), ==, workers[i]);
        if (status != 0)
            g_test_fail_printf("worker %u ended with %#x", i, status);
    }
    close(go[0]);
    close(go[1]);
    Held after = look();
    say("before", &before);
    say("after", &after);
    g_assert_cmpuint(after.fds, ==, before.fds);
    g_assert_cmpuint(after.mounts, ==, before.mounts);
    g_assert_cmpuint(after.helpers, ==, 0);
}

#define ADD(fn) g_test_add_func("/endurance/" #fn, fn)

int main(int argc, char **argv)
{
    gboolean is_long;
    if (!lab_is_wanted(&argc, argv, "endurance", &is_long) || !lab_init(&argc, &argv))
        return 0;
    n_sequential = is_long ? 10000 : lab_is_user() ? 100 : 300;
    n_parallel = is_long ? 200 : lab_is_user() ? 20 : 40;
    ADD(many_boxes_one_after_another_leave_nothing);
    ADD(many_boxes_at_once_leave_nothing);
    return lab_end(g_test_run());
}
