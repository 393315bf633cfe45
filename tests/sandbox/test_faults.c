/*
 * Every call that sets a box up fails once: an error that says something, or an outcome that is
 * documented; never a hang, a leak, or a command that runs with a wall missing.
 *
 * A child process puts a filter over itself that asks us about each of those calls
 * (SECCOMP_RET_USER_NOTIF), then opens a box, runs one command and closes it, twice. The filter is
 * inherited by the starter, the keeper, init and the payload, so their calls are asked about too.
 * We let all of them go on but one, which gets an errno. The second time nothing fails, and all must
 * be as if nothing had happened.
 *
 * In the default suite one call of each kind fails; "--long" fails every one, with each errno.
 */
#include "tests/sandbox/lab.h"

#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOT     108u
#define PHASE    0x41535359 /* prctl: the second attempt begins */
#define HANG_MS  15000
#define TICK_MS  5 /* how often the dead are looked for */
#define TEXT_MAX 512

typedef struct Call {
    const char *name;
    int nr;
} Call;

/* Numbers that the C library has no names for are given as they are everywhere. */
static const Call calls[] = {
    {"clone", SYS_clone},
    {"clone3", 435},
    {"unshare", SYS_unshare},
    {"setns", SYS_setns},
    {"mount", SYS_mount},
    {"umount2", SYS_umount2},
    {"pivot_root", SYS_pivot_root},
    {"open_tree", 428},
    {"move_mount", 429},
    {"fsopen", 430},
    {"fsconfig", 431},
    {"fsmount", 432},
    {"mount_setattr", 442},
    {"mkdirat", SYS_mkdirat},
    {"symlinkat", SYS_symlinkat},
    {"socketpair", SYS_socketpair},
    {"pipe2", SYS_pipe2},
    {"memfd_create", SYS_memfd_create},
    {"sendmsg", SYS_sendmsg},
    {"openat2", 437},
    {"setresuid", SYS_setresuid},
    {"setresgid", SYS_setresgid},
    {"setgroups", SYS_setgroups},
    {"capset", SYS_capset},
    {"capget", SYS_capget},
    {"prctl", SYS_prctl},
    {"seccomp", SYS_seccomp},
    {"landlock_create_ruleset", 444},
    {"landlock_add_rule", 445},
    {"landlock_restrict_self", 446},
    {"prlimit64", SYS_prlimit64},
    {"close_range", 436},
    {"sethostname", SYS_sethostname},
    {"setsid", SYS_setsid},
    {"chdir", SYS_chdir},
    {"fchdir", SYS_fchdir},
    {"dup3", SYS_dup3},
    {"execve", SYS_execve},
#ifdef __x86_64__
    {"mkdir", SYS_mkdir},
    {"symlink", SYS_symlink},
    {"dup2", SYS_dup2},
    {"chown", SYS_chown},
    {"fork", SYS_fork},
#endif
};
#define N_CALLS G_N_ELEMENTS(calls)

static const int errnos[] = {EPERM, ENOMEM, EMFILE, ENOSPC, EAGAIN, EINTR};

/* What the child says at its end, as exit status. */
typedef enum Said {
    SAID_FINE = 0,
    SAID_OPEN_FAILED = 10, /* with a message, which it has written */
    SAID_EXEC_FAILED = 11,
    SAID_START_ERROR = 12,
    SAID_WALL_MISSING = 20,
    SAID_NO_MESSAGE = 21,
    SAID_WRONG_OUTCOME = 22,
    SAID_AGAIN_FAILED = 23, /* the second attempt */
    SAID_LEAKED = 24,
} Said;

/* The call that fails: the nth (from 0) of a kind, or every one. */
typedef struct Fault {
    int nr, err;
    guint nth;
    gboolean always;
    gboolean library_only; /* only in the child itself, not in assay-box */
} Fault;

typedef struct Seen {
    guint n[N_CALLS]; /* of the first attempt */
    Said said;
    gboolean hung, injected;
    char text[TEXT_MAX];
} Seen;

/* --- the child ------------------------------------------------------------------------------- */

static int ask_about_calls(void)
{
    struct sock_filter code[2 * N_CALLS + 4];
    gsize n = 0;
    code[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (gsize i = 0; i < N_CALLS; i++) {
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].nr, 0, 1);
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)n, code};
    if (geteuid() != 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
                        &program);
}

static void say(int out, const char *text)
{
    (void)!write(out, text, strlen(text));
}

/* The walls that a command must see when the box has those layers. */
static gboolean walls_stand(const char *seen, guint layers, int out)
{
    static const struct {
        const char *name;
        guint layer; /* 0: always */
    } rows[] = {{"caps ", 0},
                {"no_new_privs ", 0},
                {"seccomp ", 0},
                {"landlock ", BOX_LAYER_LANDLOCK},
                {"rlimits ", 0},
                {"fds ", 0},
                {"sys ", 0},
                {"masks ", BOX_LAYER_MOUNT},
                {"pid ", BOX_LAYER_PID},
                {"net ", BOX_LAYER_NET},
                {"root ", BOX_LAYER_MOUNT},
                {"hostname ", BOX_LAYER_UTS},
                {"user ", 0}};
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++)
        if ((rows[i].layer == 0 || (layers & rows[i].layer)) && !strstr(seen, rows[i].name)) {
            say(out, "missing: ");
            say(out, rows[i].name);
            return FALSE;
        }
    return TRUE;
}

static Said attempt(guint require, guint *ret_layers, int out)
{
    g_autoptr(GError) error = NULL;
    BoxSpec spec = lab_spec(1000);
    spec.slot = SLOT;
    spec.require = require;
    g_autoptr(Box) box = box_open(&spec, &error);
    if (box == NULL) {
        say(out, error != NULL ? error->message : "");
        return error != NULL && strlen(error->message) > 12 ? SAID_OPEN_FAILED : SAID_NO_MESSAGE;
    }
    *ret_layers = box_enforced(box);
    BoxCommand command = {.argv = (const char *const[]){"/payload/payload", "walls", NULL}};
    g_auto(BoxResult) result = {0};
    if (!box_exec(box, &command, &result, &error)) {
        say(out, error != NULL ? error->message : "");
        return error != NULL && strlen(error->message) > 3 ? SAID_EXEC_FAILED : SAID_NO_MESSAGE;
    }
    if (result.outcome == BOX_START_ERROR)
        return result.start_errno != 0 ? SAID_START_ERROR : SAID_NO_MESSAGE;
    gsize len = 0;
    const char *data = g_bytes_get_data(result.out, &len);
    g_autofree char *seen = g_strndup(data != NULL ? data : "", len);
    if (result.outcome != BOX_EXITED || result.exit_code != 0) {
        say(out, box_outcome_str(result.outcome));
        return SAID_WRONG_OUTCOME;
    }
    return walls_stand(seen, *ret_layers, out) ? SAID_FINE : SAID_WALL_MISSING;
}

static guint count_fds(void)
{
    guint n = 0;
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    while (g_dir_read_name(dir) != NULL)
        n++;
    return n;
}

/* The sealed program is kept for the life of a process: one descriptor. */
static void child_main(int tell, int go, int out, guint require) __attribute__((noreturn));
static void child_main(int tell, int go, int out, guint require)
{
    char byte;
    guint layers = 0, again = 0;
    guint fds = count_fds();
    int listener = ask_about_calls();
    (void)!write(tell, &listener, sizeof listener);
    (void)!read(go, &byte, 1); /* until we have its other end */
    if (listener < 0)
        _exit(77);
    close(listener);
    Said said = attempt(require, &layers, out);
    prctl(PHASE, 0, 0, 0, 0);
    if (said < SAID_WALL_MISSING && require == 0) {
        Said second = attempt(0, &again, out);
        if (second != SAID_FINE)
            said = SAID_AGAIN_FAILED;
    }
    box_shutdown();
    if (said < SAID_WALL_MISSING && count_fds() > fds + 1)
        said = SAID_LEAKED;
    (void)!write(tell, &layers, sizeof layers);
    _exit((int)said);
}

/* --- us -------------------------------------------------------------------------------------- */

static gsize index_of(int nr)
{
    gsize i = 0;
    while (i < N_CALLS - 1 && calls[i].nr != nr)
        i++;
    return i;
}

static gboolean is_hit(const Fault *fault, const struct seccomp_notif *asked, guint nth,
                       pid_t child)
{
    return fault != NULL && fault->nr == asked->data.nr &&
           (!fault->library_only || (pid_t)asked->pid == child) &&
           (fault->always || fault->nth == nth);
}

/* Answers one question. */
static void answer(int listener, const Fault *fault, pid_t child, gboolean *first, Seen *seen)
{
    struct seccomp_notif asked = {0};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked) < 0)
        return; /* whoever asked is dead */
    struct seccomp_notif_resp reply = {.id = asked.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    gsize i = index_of(asked.data.nr);
    if (asked.data.nr == SYS_prctl && asked.data.args[0] == PHASE)
        *first = FALSE;
    else if ((*first || fault == NULL || fault->always) &&
             is_hit(fault, &asked, seen->n[i], child)) {
        reply = (struct seccomp_notif_resp){.id = asked.id, .error = -fault->err};
        seen->injected = TRUE;
    }
    if (*first)
        seen->n[i]++;
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &reply);
}

static gint64 now_ms(void)
{
    return g_get_monotonic_time() / 1000;
}

/* Reaps what has ended; orphans are children of ours too (we are the subreaper). FALSE: nobody is
 * left. */
static gboolean reap(pid_t child, int flags, Seen *seen)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, flags)) > 0)
        if (pid == child)
            seen->said = WIFEXITED(status) ? (Said)WEXITSTATUS(status) : SAID_WRONG_OUTCOME;
    return pid == 0;
}

/* Answers until the child and everything of it have ended. */
static void supervise(int listener, pid_t child, const Fault *fault, Seen *seen)
{
    gboolean first = TRUE;
    gint64 end = now_ms() + HANG_MS;
    while (reap(child, WNOHANG, seen)) {
        struct pollfd polled = {.fd = listener, .events = POLLIN};
        if (poll(&polled, 1, TICK_MS) > 0 && (polled.revents & POLLIN))
            answer(listener, fault, child, &first, seen);
        if (now_ms() > end) {
            seen->hung = TRUE;
            kill(child, SIGKILL);
            return;
        }
    }
}

/* One child with that fault, to its end. */
static gboolean run(const Fault *fault, guint require, guint *ret_layers, Seen *seen)
{
    int tell[2], go[2], out[2], number = -1;
    *seen = (Seen){0};
    g_assert_cmpint(pipe2(tell, O_CLOEXEC), ==, 0);
    g_assert_cmpint(pipe2(go, O_CLOEXEC), ==, 0);
    g_assert_cmpint(pipe2(out, O_CLOEXEC), ==, 0);
    pid_t child = fork();
    if (child == 0) {
        close(go[1]); /* its end is what the child waits for */
        child_main(tell[1], go[0], out[1], require);
    }
    close(tell[1]);
    close(go[0]);
    close(out[1]);
    g_assert_cmpint(read(tell[0], &number, sizeof number), ==, sizeof number);
    AUTO_FD process = (int)syscall(SYS_pidfd_open, child, 0);
    AUTO_FD listener = number < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, process, number, 0);
    close(go[1]);
    if (listener >= 0)
        supervise(listener, child, fault, seen);
    reap(child, 0, seen);
    if (ret_layers != NULL)
        (void)!read(tell[0], ret_layers, sizeof *ret_layers);
    ssize_t n = read(out[0], seen->text, sizeof seen->text - 1);
    seen->text[MAX(n, 0)] = '\0';
    close(tell[0]);
    close(out[0]);
    return listener >= 0;
}

static void check(const Fault *fault, guint *counts)
{
    Seen seen;
    g_autofree char *before = lab_host_picture();
    run(fault, 0, NULL, &seen);
    g_autofree char *after = lab_host_picture();
    const char *name = calls[index_of(fault->nr)].name;
    counts[0] += seen.injected;
    counts[1] += seen.said == SAID_OPEN_FAILED || seen.said == SAID_EXEC_FAILED;
    counts[2] += seen.said == SAID_START_ERROR;
    if (seen.hung || seen.said >= SAID_WALL_MISSING || !g_str_equal(before, after))
        g_test_fail_printf("%s number %u with %s: %s, said %d: %s%s", name, fault->nth,
                           g_strerror(fault->err), seen.hung ? "hung" : "ended", seen.said,
                           seen.text, g_str_equal(before, after) ? "" : "; the host changed");
    else
        g_test_message("%s number %u with %s: %d %s", name, fault->nth, g_strerror(fault->err),
                       seen.said, seen.text);
}

static gboolean is_long;

static void every_call_that_fails_is_an_error_or_a_known_outcome(void)
{
    Seen clean;
    guint counts[3] = {0}, total = 0, turn = 0;
    if (!run(NULL, 0, NULL, &clean)) {
        g_test_skip("system calls cannot be asked about here");
        return;
    }
    if (clean.said != SAID_FINE || clean.hung)
        g_error("without a fault it says %d: %s", clean.said, clean.text);
    for (gsize i = 0; i < N_CALLS; i++) {
        /* In the default suite the last one: it is the nearest to the payload. */
        guint from = is_long || clean.n[i] == 0 ? 0 : clean.n[i] - 1;
        g_test_message("%s: %u calls", calls[i].name, clean.n[i]);
        for (guint nth = from; nth < clean.n[i]; nth++)
            for (guint e = 0; e < (is_long ? G_N_ELEMENTS(errnos) : 1); e++) {
                Fault fault = {
                    .nr = calls[i].nr, .err = errnos[(turn++) % G_N_ELEMENTS(errnos)], .nth = nth};
                check(&fault, counts);
                total++;
            }
    }
    g_test_message("%u faults, %u met, %u errors, %u start errors", total, counts[0], counts[1],
                   counts[2]);
    g_assert_cmpuint(counts[0], >=, total / 2); /* what helpers do ahead varies a little */
}

typedef struct Lack {
    const char *name;
    Fault fault;
    gboolean refused; /* no box at all */
    guint layer;      /* else: that layer is not reported, and cannot be required */
} Lack;

static const Lack lacks[] = {
    {"no Landlock", {.nr = 444, .err = ENOSYS, .always = TRUE}, FALSE, BOX_LAYER_LANDLOCK},
    {"no user namespaces", {.nr = 435, .err = ENOSPC, .always = TRUE}, TRUE, 0},
    {"no overlay", {.nr = SYS_mount, .err = ENODEV, .always = TRUE}, TRUE, 0},
    {"no filter", {.nr = SYS_seccomp, .err = EINVAL, .always = TRUE}, TRUE, 0},
    {"no pivot_root", {.nr = SYS_pivot_root, .err = EPERM, .always = TRUE}, TRUE, 0},
    {"no capset", {.nr = SYS_capset, .err = EPERM, .always = TRUE}, TRUE, 0},
};

static void a_layer_that_cannot_be_had_is_not_reported(void)
{
    for (gsize i = 0; i < G_N_ELEMENTS(lacks); i++) {
        const Lack *lack = &lacks[i];
        Seen seen;
        guint layers = 0;
        if (!run(&lack->fault, 0, &layers, &seen)) {
            g_test_skip("system calls cannot be asked about here");
            return;
        }
        gboolean ran = seen.said == SAID_FINE;
        if (seen.hung || (!lack->refused && (!ran || (layers & lack->layer))) ||
            (lack->refused && ran))
            g_test_fail_printf("%s: %s, said %d, layers %#x: %s", lack->name,
                               seen.hung ? "hung" : "ended", seen.said, layers, seen.text);
        if (lack->refused)
            continue;
        run(&lack->fault, lack->layer, &layers, &seen);
        if (seen.said != SAID_OPEN_FAILED)
            g_test_fail_printf("%s and required: said %d", lack->name, seen.said);
    }
}

#define ADD(fn) g_test_add_func("/faults/" #fn, fn)

int main(int argc, char **argv)
{
    if (!lab_is_wanted(&argc, argv, "faults", &is_long) || !lab_init(&argc, &argv))
        return 0;
    box_shutdown(); /* children start with nothing */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    ADD(every_call_that_fails_is_an_error_or_a_known_outcome);
    ADD(a_layer_that_cannot_be_had_is_not_reported);
    return lab_end(g_test_run());
}
