/*
 * Faults by seccomp's user notification (reference: Linux, Documentation/userspace-api/
 * seccomp_filter.rst).
 *
 * Invariants:
 *   1. The thread that answers was started before the filter, so that it never waits for itself.
 *   2. A call that is not to fail goes on in the host exactly as it was made.
 *
 * Not here: what a fault must lead to (test_faults.c).
 */
#include "tests/sandbox/fault.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

const FaultKind fault_kinds[] = {
#define KIND(name)                                                                                 \
    {                                                                                              \
#name, SYS_##name                                                                          \
    }
    KIND(clone),
    {"clone3", 435},
    KIND(mount),
    KIND(umount2),
    {"open_tree", 428},
    {"move_mount", 429},
    {"mount_setattr", 442},
    KIND(pivot_root),
    KIND(unshare),
    KIND(openat),
    {"openat2", 437},
    KIND(mkdirat),
    KIND(symlinkat),
#ifdef SYS_mkdir
    KIND(mkdir),
    KIND(symlink),
    KIND(chown),
    KIND(chmod),
    KIND(dup2),
#endif
    KIND(fchownat),
    KIND(fchown),
    KIND(fchmod),
    KIND(readlinkat),
    KIND(chdir),
    KIND(fchdir),
    KIND(socket),
    KIND(socketpair),
    KIND(pipe2),
    KIND(memfd_create),
    KIND(sendmsg),
    KIND(ioctl),
    KIND(write),
    KIND(setsid),
    KIND(setresuid),
    KIND(setresgid),
    KIND(setgroups),
    KIND(sethostname),
    KIND(setdomainname),
    KIND(prlimit64),
    KIND(capset),
    KIND(capget),
    KIND(prctl),
    {"landlock_create_ruleset", 444},
    {"landlock_add_rule", 445},
    {"landlock_restrict_self", 446},
    {"close_range", 436},
    KIND(seccomp),
    KIND(execve),
#undef KIND
};
const guint fault_n_kinds = G_N_ELEMENTS(fault_kinds);
G_STATIC_ASSERT(G_N_ELEMENTS(fault_kinds) <= FAULT_KINDS_MAX);

static struct {
    FaultPlan plan;
    FaultTally *tally;
} watcher; /* one per process */

static void name_of(int pid, char *ret_name, gsize size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    g_autofree char *text = NULL;
    if (g_file_get_contents(path, &text, NULL, NULL))
        g_strlcpy(ret_name, g_strstrip(text), size);
    else
        *ret_name = '\0';
}

/* The error that this call gets; 0: it goes on. */
static int answer(const struct seccomp_notif *call)
{
    FaultTally *tally = watcher.tally;
    char name[sizeof tally->comm];
    name_of((int)call->pid, name, sizeof name);
    if (g_str_equal(name, "payload"))
        return 0;
    for (guint i = 0; i < fault_n_kinds; i++) {
        if (fault_kinds[i].nr != call->data.nr)
            continue;
        guint n = ++tally->seen[i], nth = (guint)g_atomic_int_get(&watcher.plan.nth);
        if (i != watcher.plan.kind || (nth != FAULT_ALWAYS && nth != n))
            return 0;
        tally->n_injected++;
        g_strlcpy(tally->comm, name, sizeof tally->comm);
        return watcher.plan.err;
    }
    return 0;
}

static gpointer watch(gpointer ready)
{
    int listener = GPOINTER_TO_INT(g_async_queue_pop(ready));
    while (listener >= 0) {
        struct pollfd polled = {.fd = listener, .events = POLLIN};
        struct seccomp_notif call = {0};
        if (poll(&polled, 1, -1) < 0 || !(polled.revents & POLLIN) ||
            ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
            continue; /* the caller was killed meanwhile */
        int err = answer(&call);
        struct seccomp_notif_resp reply = {
            .id = call.id, .error = -err, .flags = err == 0 ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0};
        (void)ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &reply);
    }
    return NULL;
}

static int install(void)
{
    struct sock_filter code[2 * FAULT_KINDS_MAX + 2];
    guint n = 0;
    code[n++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (guint i = 0; i < fault_n_kinds; i++) {
        code[n++] =
            (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (guint)fault_kinds[i].nr, 0, 1);
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {.len = (unsigned short)n, .filter = code};
    if (geteuid() != 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
                        &program);
}

gboolean fault_watch(const FaultPlan *plan, FaultTally *tally)
{
    watcher.plan = *plan;
    watcher.tally = tally;
    GAsyncQueue *ready = g_async_queue_new(); /* a futex, which is not watched; lives for ever */
    g_thread_unref(g_thread_new("watch", watch, ready));
    int listener = install();
    if (listener >= 0)
        g_async_queue_push(ready, GINT_TO_POINTER(listener));
    return listener >= 0;
}

void fault_stop(void)
{
    g_atomic_int_set(&watcher.plan.nth, 0);
}
