/*
 * What boxes that live cost: reset, snapshot, fork and rollback with 250 changed files; warm and
 * one-shot starts per second from two processes against bare spawns; and a thousand open boxes,
 * their memory and a command in one of them. Each figure stands beside a baseline of the same run.
 */
#include "tests/sandbox/lab.h"

#include "base/fd.h"
#include "base/id.h"
#include "sandbox/pool.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define ROUNDS      60
#define CHANGED     250
#define RATE_MS     2000
#define RATE_PROCS  2
#define OPEN_BOXES  1000u
#define OPEN_PROBES 200

extern char **environ;

static const char *const true_argv[] = {"/bin/true", NULL};

static gboolean bare(void)
{
    pid_t pid;
    int status = 1;
    char *const argv[] = {(char *)(gsize)true_argv[0], NULL};
    if (posix_spawn(&pid, true_argv[0], NULL, NULL, argv, environ) != 0)
        return FALSE;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status == 0;
}

static gboolean command_in(Box *box)
{
    BoxCommand command = {.argv = true_argv};
    g_auto(BoxResult) result = {0};
    return box_exec(box, &command, &result, NULL) && result.outcome == BOX_EXITED &&
           result.exit_code == 0;
}

static BoxSpec plain_spec(guint slot)
{
    return (BoxSpec){.work_path = "/testbed",
                     .uid = 1000,
                     .gid = 1000,
                     .slot = slot,
                     .limits = box_limits_default()};
}

static int by_value(const void *a, const void *b)
{
    gint64 x = *(const gint64 *)a, y = *(const gint64 *)b;
    return (x > y) - (x < y);
}

static double median_us(gint64 *ns, guint n)
{
    qsort(ns, n, sizeof *ns, by_value);
    return (double)ns[n / 2] / 1000;
}

static void say(const char *what, gint64 *ns, guint n, double base_us)
{
    double median = median_us(ns, n);
    g_test_message("%s: median %.0f us, p90 %.0f us, %.2f of a spawn", what, median,
                   (double)ns[n * 9 / 10] / 1000, median / base_us);
}

/* Background work of the step before must not count to the next. */
static void settle(void)
{
    g_usleep(4000);
}

typedef struct Steps {
    gint64 spawn[ROUNDS], reset[ROUNDS], freeze[ROUNDS], fork[ROUNDS], rollback[ROUNDS];
} Steps;

static gint64 since(gint64 *start)
{
    gint64 now = clock_mono_ns(), took = now - *start;
    *start = now;
    return took;
}

static gboolean one_round(Steps *steps, int i, Box *box)
{
    g_auto(BoxResult) result = {0};
    g_autofree char *line = g_strdup_printf(
        "i=0; while [ $i -lt %d ]; do echo $i > f$i; i=$((i+1)); done; echo end", CHANGED);
    settle();
    gint64 start = clock_mono_ns();
    g_assert_true(bare());
    steps->spawn[i] = since(&start);
    g_assert_true(box_reset(box, NULL));
    steps->reset[i] = since(&start);
    g_autofree char *end = lab_sh(box, line, &result);
    g_assert_cmpstr(end, ==, "end");
    settle();
    start = clock_mono_ns();
    g_autoptr(BoxSnapshot) snapshot = box_snapshot(box, NULL);
    steps->freeze[i] = since(&start);
    if (snapshot == NULL)
        return FALSE;
    settle();
    start = clock_mono_ns();
    BoxSpec spec = plain_spec(151);
    spec.snapshot = snapshot;
    Box *child = lab_open(&spec);
    steps->fork[i] = since(&start);
    box_close(child);
    settle();
    start = clock_mono_ns();
    g_assert_true(box_rollback(box, snapshot, NULL));
    steps->rollback[i] = since(&start);
    return TRUE;
}

static void forks_are_cheap(void)
{
    static Steps steps;
    BoxSpec spec = plain_spec(150);
    g_autoptr(Box) box = lab_open(&spec);
    g_assert_true(box_reset(box, NULL)); /* from the second on the next tree is made ahead */
    for (int i = 0; i < ROUNDS; i++)
        if (!one_round(&steps, i, box)) {
            g_test_skip("no snapshots on this kernel");
            return;
        }
    double base = median_us(steps.spawn, ROUNDS);
    g_test_message("posix_spawn /bin/true: median %.0f us", base);
    say("reset (goal 100 us)", steps.reset, ROUNDS, base);
    say("snapshot of 250 changed files", steps.freeze, ROUNDS, base);
    say("fork: a box opened from it (goal 2000 us)", steps.fork, ROUNDS, base);
    say("rollback (goal 2000 us)", steps.rollback, ROUNDS, base);
}

static gboolean spawns(guint slot)
{
    (void)slot;
    return bare();
}

static gboolean warm_starts(guint slot)
{
    static BoxPool *pool;
    BoxSpec spec = plain_spec(0);
    if (pool == NULL)
        pool = box_pool_new(slot, 1, 1000000);
    Box *box = box_pool_take(pool, &spec, "bench", NULL);
    gboolean ok = box != NULL && command_in(box);
    box_pool_give(pool, box);
    return ok;
}

static gboolean commands(guint slot)
{
    static Box *box;
    BoxSpec spec = plain_spec(slot);
    if (box == NULL)
        box = lab_open(&spec);
    return command_in(box);
}

static gboolean one_shots(guint slot)
{
    BoxSpec spec = plain_spec(slot);
    g_autoptr(Box) box = box_open(&spec, NULL);
    return box != NULL && command_in(box);
}

/* Runs of FN within RATE_MS, in this process. */
static guint count_runs(gboolean (*fn)(guint), guint slot)
{
    guint n = 0;
    for (int i = 0; i < 3; i++)
        g_assert_true(fn(slot));
    gint64 end = clock_mono_ns() + (gint64)RATE_MS * 1000000;
    while (clock_mono_ns() < end) {
        g_assert_true(fn(slot));
        n++;
    }
    return n;
}

/* Per second, from RATE_PROCS processes at once. Forked before this process has any box. */
static double rate(gboolean (*fn)(guint))
{
    int ends[2];
    guint total = 0, n;
    g_assert_cmpint(pipe(ends), ==, 0);
    for (guint i = 0; i < RATE_PROCS; i++)
        if (fork() == 0) {
            n = count_runs(fn, 160 + i);
            (void)!write(ends[1], &n, sizeof n);
            box_shutdown();
            _exit(0);
        }
    for (guint i = 0; i < RATE_PROCS; i++) {
        g_assert_cmpint(read(ends[0], &n, sizeof n), ==, sizeof n);
        total += n;
    }
    while (wait(NULL) > 0)
        ;
    close(ends[0]);
    close(ends[1]);
    return total * 1000.0 / RATE_MS;
}

static void starts_per_second(void)
{
    const struct {
        const char *name;
        gboolean (*fn)(guint);
    } rows[] = {{"warm box: take, command, give back (goal 0.4)", warm_starts},
                {"command in an open box", commands},
                {"one-shot box", one_shots}};
    box_shutdown();
    double base = rate(spawns);
    g_test_message("posix_spawn /bin/true from %d processes: %.0f per second", RATE_PROCS, base);
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        double got = rate(rows[i].fn);
        g_test_message("%s: %.0f per second, %.2f of bare spawns", rows[i].name, got, got / base);
    }
}

static guint64 available_kib(void)
{
    g_autofree char *text = NULL;
    g_assert_true(g_file_get_contents("/proc/meminfo", &text, NULL, NULL));
    const char *line = strstr(text, "MemAvailable:");
    return line == NULL ? 0 : g_ascii_strtoull(line + 13, NULL, 10);
}

static void a_thousand_boxes(void)
{
    static Box *boxes[OPEN_BOXES];
    static gint64 ns[OPEN_PROBES], spawn_ns[OPEN_PROBES];
    guint64 before = available_kib();
    gint64 start = clock_mono_ns();
    for (guint i = 0; i < OPEN_BOXES; i++) {
        BoxSpec spec = plain_spec(200 + i);
        boxes[i] = lab_open(&spec);
        g_assert_true(command_in(boxes[i]));
    }
    double open_us = (double)(clock_mono_ns() - start) / 1000 / OPEN_BOXES;
    guint64 after = available_kib();
    for (guint i = 0; i < OPEN_PROBES; i++) {
        start = clock_mono_ns();
        g_assert_true(bare());
        spawn_ns[i] = since(&start);
        g_assert_true(command_in(boxes[(i * 7919) % OPEN_BOXES]));
        ns[i] = since(&start);
    }
    double base = median_us(spawn_ns, OPEN_PROBES);
    g_test_message("%u open boxes, each used once: %.2f MiB of memory each (goal 1.5), %.0f us to "
                   "open and use one",
                   OPEN_BOXES, (double)(before - MIN(after, before)) / 1024 / OPEN_BOXES, open_us);
    g_test_message("posix_spawn /bin/true beside them: median %.0f us", base);
    say("command in one of them (goal 3000 us)", ns, OPEN_PROBES, base);
    for (guint i = 0; i < OPEN_BOXES; i++)
        box_close(boxes[i]);
}

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    g_test_add_func("/bench/starts_per_second", starts_per_second);
    g_test_add_func("/bench/forks_are_cheap", forks_are_cheap);
    g_test_add_func("/bench/a_thousand_boxes", a_thousand_boxes);
    return lab_end(g_test_run());
}
