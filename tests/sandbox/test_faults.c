/*
 * A fault at each call that sets a box up: an error that names the step, or a box that says what it
 * lacks; nothing leaks, nothing hangs, and no payload runs with a layer less than was reported.
 *
 * Each try is a process of its own that opens a box, runs one command and closes the box, while one
 * call (fault.h) fails. The command lists the layers it finds around itself.
 *
 * ASSAY_OPTIN=faults fails every single call with every error; else a sample of them.
 */
#include "tests/sandbox/fault.h"
#include "tests/sandbox/lab.h"

#include "base/id.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOT        120u
#define HANG_S      40u /* more than any wait of the library */
#define SLOW_MS     8000
#define SAMPLE      5u /* calls of a kind that are tried by default */
#define LEAVING_MS  5000
#define MESSAGE_MAX 512
#define LAYERS_MAX  512

typedef struct Try {
    FaultTally tally;
    gboolean is_degraded, is_supported, is_open, is_run;
    BoxOutcome outcome;
    int exit_code, start_errno;
    guint enforced;
    gint64 took_ms;
    guint fds_before, fds_after, groups_before, groups_after;
    gboolean is_left; /* a process of ours lives */
    char message[MESSAGE_MAX], seen[LAYERS_MAX];
} Try;

static const int faults[] = {EPERM, ENOMEM, ENOSPC, EMFILE, EAGAIN};
static char hosts[8][64]; /* NAME=INODE */

static void name_hosts(void)
{
    static const char *const names[] = {"user", "mnt", "pid",  "net",
                                        "ipc",  "uts", "time", "cgroup"};
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_strdup_printf("/proc/self/ns/%s", names[i]);
        g_autofree char *target = g_file_read_link(path, NULL);
        const char *number = target == NULL ? NULL : strchr(target, '[');
        g_snprintf(hosts[i], sizeof hosts[i], "%s=%s", names[i], number == NULL ? "" : number + 1);
    }
}

static void run_in(Box *box, const BoxFile *program, Try *ret)
{
    const char *argv[2 + G_N_ELEMENTS(hosts) + 1] = {program->path, "layers"};
    for (gsize i = 0; i < G_N_ELEMENTS(hosts); i++)
        argv[2 + i] = hosts[i];
    g_autoptr(GError) error = NULL;
    g_auto(BoxResult) result = {0};
    BoxCommand command = {
        .argv = argv, .files = program, .n_files = 1, .stdin_data = "x", .stdin_len = 1};
    ret->is_run = box_exec(box, &command, &result, &error);
    if (!ret->is_run) {
        g_strlcpy(ret->message, error->message, sizeof ret->message);
        return;
    }
    gsize len = 0;
    const char *out = g_bytes_get_data(result.out, &len);
    if (len > 0)
        memcpy(ret->seen, out, MIN(len, sizeof ret->seen - 1));
    ret->outcome = result.outcome;
    ret->exit_code = result.exit_code;
    ret->start_errno = result.start_errno;
}

/* The whole life of a box in this process; the command is the payload, sent as a file. */
static void live(const BoxFile *program, Try *ret)
{
    BoxSpec spec = lab_spec(0);
    spec.slot = SLOT;
    spec.n_mounts = 0;
    spec.allow_degraded = ret->is_degraded;
    g_autoptr(GError) error = NULL;
    gint64 then = clock_mono_ns();
    Box *box = box_open(&spec, &error);
    ret->is_open = box != NULL;
    if (box != NULL) {
        ret->enforced = box_enforced(box);
        run_in(box, program, ret);
    } else {
        g_strlcpy(ret->message, error->message, sizeof ret->message);
    }
    box_close(box);
    box_shutdown();
    ret->took_ms = (clock_mono_ns() - then) / 1000000;
}

/* Orphans come to us: when there is no child left, nothing of the box lives. */
static gboolean is_alone(void)
{
    for (int i = 0; i < LEAVING_MS / 10; i++) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0)
            return TRUE;
        if (pid == 0)
            g_usleep(10000);
    }
    return FALSE;
}

static void try_here(const FaultPlan *plan, const BoxFile *program, Try *ret)
{
    alarm(HANG_S);
    g_log_set_always_fatal(G_LOG_FATAL_MASK); /* what cannot be removed is a warning */
    if (ret->is_degraded)
        g_setenv("ASSAY_BOX_FORCE", "landlock", TRUE);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    ret->fds_before = lab_count_fds() + 1;           /* the listener */
    ret->groups_before = lab_count_groups(getpid()); /* of a process that had our number */
    ret->is_supported = fault_watch(plan, &ret->tally);
    if (!ret->is_supported)
        return;
    live(program, ret);
    fault_stop();
    ret->is_left = !is_alone();
    ret->fds_after = lab_count_fds();
    ret->groups_after = lab_count_groups(getpid());
}

/* One try in a process of its own; how that process ended. */
static int try_one(const FaultPlan *plan, const BoxFile *program, Try *ret)
{
    int status = 0;
    *ret = (Try){.is_degraded = ret->is_degraded};
    pid_t pid = fork();
    if (pid == 0) {
        try_here(plan, program, ret);
        _exit(0);
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    return status;
}

/* Every reported layer is one that the command found; a cgroup cannot be seen from inside. */
static char *layers_not_seen(const Try *try)
{
    g_autoptr(GString) list = g_string_new(NULL);
    g_auto(GStrv) seen = g_strsplit(try->seen, " ", -1);
    for (guint bit = 1; bit < BOX_LAYER_CGROUP; bit <<= 1) {
        const char *name = box_layer_str((BoxLayer)bit);
        if ((try->enforced & bit) && !g_strv_contains((const char *const *)seen, name))
            g_string_append_printf(list, "%s ", name);
    }
    return g_string_free(g_steal_pointer(&list), FALSE);
}

/* What is wrong with how it went, or NULL. */
static char *verdict(const Try *try, int status, int err)
{
    if (status != 0)
        return g_strdup_printf("the process ended with wait status %d", status);
    if (try->took_ms > SLOW_MS)
        return g_strdup_printf("it took %d ms (%s)", (int)try->took_ms, try->message);
    if (try->is_left)
        return g_strdup("a process was left behind");
    if (try->fds_after > try->fds_before)
        return g_strdup_printf("%u descriptors became %u", try->fds_before, try->fds_after);
    if (try->groups_after > try->groups_before)
        return g_strdup_printf("%u cgroups were left behind",
                               try->groups_after - try->groups_before);
    if (!try->is_open || !try->is_run) {
        gsize most = strlen("run a command: ");
        return strlen(try->message) > most ? NULL : g_strdup("an error without a reason");
    }
    if (try->outcome == BOX_START_ERROR)
        return try->start_errno == err ? NULL : g_strdup("a start error with another errno");
    g_autofree char *lacking = layers_not_seen(try);
    if (try->outcome != BOX_EXITED || try->exit_code != 0)
        return g_strdup_printf("outcome %s, exit code %d", box_outcome_str(try->outcome),
                               try->exit_code);
    return *lacking == '\0' ? NULL : g_strdup_printf("layers reported but not there: %s", lacking);
}

static void judge(const FaultPlan *plan, const Try *try, int status)
{
    g_autofree char *wrong = verdict(try, status, plan->err);
    if (g_test_verbose())
        g_printerr("%s %u %s in %s: %s %s\n", fault_kinds[plan->kind].name, plan->nth,
                   g_strerror(plan->err), try->tally.comm,
                   try->is_run ? box_outcome_str(try->outcome) : "error", try->message);
    if (wrong != NULL)
        g_test_message("call %u of %s fails with \"%s\" in %s: %s", plan->nth,
                       fault_kinds[plan->kind].name, g_strerror(plan->err), try->tally.comm, wrong);
    if (wrong != NULL)
        g_test_fail();
}

typedef struct Bench {
    BoxFile program;
    Try *try;
    Try clean;
} Bench;

static gboolean wants_all(void)
{
    const char *asked = g_getenv("ASSAY_OPTIN");
    return asked != NULL && (g_str_equal(asked, "1") || strstr(asked, "faults") != NULL);
}

/* Which of N calls are tried: all, or a sample that has the first and the last. */
static gboolean is_picked(guint nth, guint n)
{
    return wants_all() || n <= SAMPLE || nth == n || (nth - 1) % (n / SAMPLE + 1) == 0;
}

static void try_kind(Bench *bench, guint kind, guint *n_hit, guint *n_tried)
{
    guint n = bench->clean.tally.seen[kind];
    for (guint nth = 1; nth <= n; nth++)
        for (guint e = 0; e < (wants_all() ? G_N_ELEMENTS(faults) : 1); e++) {
            FaultPlan plan = {kind, nth, faults[(nth + kind + e) % G_N_ELEMENTS(faults)]};
            if (!is_picked(nth, n))
                continue;
            int status = try_one(&plan, &bench->program, bench->try);
            judge(&plan, bench->try, status);
            *n_hit += bench->try->tally.n_injected > 0;
            (*n_tried)++;
        }
}

static void bench_open(Bench *bench, gboolean is_degraded)
{
    g_autofree char *data = NULL;
    gsize len = 0;
    g_assert_true(g_file_get_contents(g_getenv("ASSAY_TEST_PAYLOAD"), &data, &len, NULL));
    bench->program = (BoxFile){"/tmp/payload", g_steal_pointer(&data), len, 0755};
    bench->try =
        mmap(NULL, sizeof *bench->try, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    g_assert_true(bench->try != MAP_FAILED);
    bench->try->is_degraded = is_degraded;
}

static void bench_close(Bench *bench)
{
    munmap(bench->try, sizeof *bench->try);
    g_free((void *)(gsize)bench->program.data);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Bench, bench_close)

/* The run without a fault: what there is to fail. */
static gboolean bench_clean(Bench *bench)
{
    int status = try_one(&(FaultPlan){0}, &bench->program, bench->try);
    if (!bench->try->is_supported) {
        g_test_skip("this host does not hand system calls to a supervisor");
        return FALSE;
    }
    g_autofree char *wrong = verdict(bench->try, status, 0);
    g_assert_cmpstr(wrong, ==, NULL);
    g_assert_cmpint(bench->try->outcome, ==, BOX_EXITED);
    bench->clean = *bench->try;
    return TRUE;
}

static void every_call_that_fails_is_an_error_or_a_known_outcome(gconstpointer is_degraded)
{
    g_auto(Bench) bench = {0};
    guint n_hit = 0, n_tried = 0;
    bench_open(&bench, is_degraded != NULL);
    if (!bench_clean(&bench))
        return;
    for (guint kind = 0; kind < fault_n_kinds; kind++)
        try_kind(&bench, kind, &n_hit, &n_tried);
    g_test_message("%u calls failed of %u tried", n_hit, n_tried);
    g_assert_cmpuint(n_hit * 10, >=, n_tried * 9); /* scheduling moves a few */
}

/* A host that lacks a call altogether: a box that says so, or none. */
static void a_layer_that_cannot_be_had_is_not_reported(gconstpointer is_degraded)
{
    g_auto(Bench) bench = {0};
    bench_open(&bench, is_degraded != NULL);
    if (!bench_clean(&bench))
        return;
    for (guint kind = 0; kind < fault_n_kinds; kind++) {
        FaultPlan plan = {kind, FAULT_ALWAYS, ENOSYS};
        if (bench.clean.tally.seen[kind] == 0)
            continue;
        int status = try_one(&plan, &bench.program, bench.try);
        judge(&plan, bench.try, status);
    }
}

#define ADD(fn)                                                                                    \
    g_test_add_data_func("/faults/namespaces/" #fn, NULL, fn);                                     \
    g_test_add_data_func("/faults/landlock/" #fn, "yes", fn)

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    name_hosts();
    box_shutdown(); /* no starter of ours is to be inherited */
    ADD(every_call_that_fails_is_an_error_or_a_known_outcome);
    ADD(a_layer_that_cannot_be_had_is_not_reported);
    return lab_end(g_test_run());
}
