/*
 * The keeper of one box: builds it, then runs one init per command.
 *
 * Invariants:
 *   1. It is born inside the box's user, mount, UTS and network namespaces and never leaves them.
 *   2. When the library's end of the socket closes, the running init is killed and the keeper ends;
 *      the kernel then kills the pid namespace, and the tree goes with the mount namespace.
 *   3. It never runs foreign code and reads no file that a command could have written.
 *   4. DONE is sent only after init has been reaped: by then every process of the command is dead.
 *
 * Not here: the tree (keeper_tree.c), what happens inside a pid namespace (keeper_init.c).
 */
#include "sandbox/keeper.h"

#include "sandbox/kernel.h"
#include "sandbox/layer.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

static int loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0)
        return -1;
    int r = ioctl(sock, SIOCSIFFLAGS, &request);
    close(sock);
    return r;
}

/* Later children live in a time namespace whose monotonic clocks start at zero. Best effort. */
static bool time_namespace(void)
{
    struct timespec mono, boot;
    char text[128];
    if (clock_gettime(CLOCK_MONOTONIC, &mono) < 0 || clock_gettime(CLOCK_BOOTTIME, &boot) < 0 ||
        unshare((int)KERNEL_CLONE_NEWTIME) < 0)
        return false;
    snprintf(text, sizeof text, "monotonic -%lld 0\nboottime -%lld 0\n", (long long)mono.tv_sec,
             (long long)boot.tv_sec);
    return keeper_write_text("/proc/self/timens_offsets", text) == 0;
}

/* Inside the new namespaces, once the maps are written. */
static int enter(Keeper *keeper, uint32_t flags, int maps_ready_fd, Fail *failed)
{
    char byte;
    if (read(maps_ready_fd, &byte, 1) != 1)
        return fail(failed, "wait for the id maps", NULL);
    close(maps_ready_fd);

    /* With a single id there is nothing to change to, and the capabilities are ours already. */
    if ((flags & SPEC_OPEN_SETGROUPS) &&
        (setresgid(0, 0, 0) < 0 || setgroups(0, NULL) < 0 || setresuid(0, 0, 0) < 0))
        return fail(failed, "take id 0 of the box", NULL);
    /* The id change cleared both; our own /proc files are needed until the tree stands. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || prctl(PR_SET_DUMPABLE, 1) < 0)
        return fail(failed, "prctl", NULL);
    if (!(flags & SPEC_OPEN_NET_HOST)) {
        if (loopback_up() < 0)
            return fail(failed, "bring the loopback interface up", NULL);
        keeper->layers |= BOX_LAYER_NET;
    }
    if (time_namespace())
        keeper->layers |= BOX_LAYER_TIME;
    /* A second wall behind the filter: no user namespace below ours. */
    keeper_write_text("/proc/sys/user/max_user_namespaces", "0");
    keeper->layers |= BOX_LAYER_USER | BOX_LAYER_MOUNT | BOX_LAYER_UTS;
    return 0;
}

/* Where the box's programs find the proxy. The proxy is a process of the host's network that is
 * given this socket; nothing else crosses. */
static int listen_for_proxy(Fail *failed)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons(SPEC_PROXY_PORT),
                             .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sock < 0 || bind(sock, (struct sockaddr *)&at, sizeof at) < 0 || listen(sock, 128) < 0)
        return fail(failed, "listen for the proxy", NULL);
    return sock;
}

static SpecReply reply_of(SpecReplyKind kind)
{
    return (SpecReply){.magic = SPEC_MAGIC_REPLY, .version = SPEC_VERSION, .kind = kind};
}

static void send_failure(const Keeper *keeper, const Fail *failed)
{
    SpecReply reply = reply_of(SPEC_REPLY_FAILED);
    reply.err = failed->err;
    memcpy(reply.what, failed->what, sizeof reply.what);
    keeper_reply(keeper->sock, &reply, -1, -1);
}

/* Layers that every payload gets or does not start. */
static uint32_t payload_layers(const Keeper *keeper)
{
    uint32_t layers = BOX_LAYER_NO_NEW_PRIVS | BOX_LAYER_RLIMITS | BOX_LAYER_CAPS;
    if ((keeper->open.flags & SPEC_OPEN_DEGRADED) && geteuid() != 0)
        layers &= ~(uint32_t)BOX_LAYER_CAPS; /* there were none to drop */
    if (keeper->open.filter_len > 0)
        layers |= BOX_LAYER_SECCOMP;
    if (kernel_landlock_abi() > 0)
        layers |= BOX_LAYER_LANDLOCK;
    if (!(keeper->open.flags & SPEC_OPEN_DEGRADED))
        layers |= BOX_LAYER_PID | BOX_LAYER_IPC | BOX_LAYER_CGROUP_NS;
    return layers;
}

static pid_t clone_init(const Keeper *keeper, int *ret_pidfd)
{
    struct kernel_clone_args args = {.flags = KERNEL_CLONE_PIDFD,
                                     .pidfd = (uint64_t)(uintptr_t)ret_pidfd,
                                     .exit_signal = SIGCHLD};
    if (!(keeper->open.flags & SPEC_OPEN_DEGRADED))
        args.flags |= KERNEL_CLONE_NEWPID | KERNEL_CLONE_NEWIPC;
    return kernel_clone3(&args);
}

/* Waits for init; kills it when the library goes away. */
static void wait_init(const Keeper *keeper, pid_t pid, int pidfd, int *ret_status,
                      struct rusage *ret_usage)
{
    struct pollfd polled[2] = {{.fd = pidfd, .events = POLLIN},
                               {.fd = keeper->sock, .events = POLLRDHUP}};
    bool killed = false;
    while (polled[0].revents == 0) {
        int n = poll(polled, killed ? 1 : 2, -1);
        if (n < 0 && errno != EINTR)
            break;
        if (!killed && n > 0 && polled[1].revents != 0) {
            kernel_pidfd_kill(pidfd, keeper->open.flags & SPEC_OPEN_DEGRADED ? SIGTERM : SIGKILL);
            killed = true;
        }
    }
    while (wait4(pid, ret_status, 0, ret_usage) < 0 && errno == EINTR)
        ;
    if (killed)
        _exit(0);
}

static uint64_t micros(struct timeval time)
{
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_usec;
}

static void send_done(const Keeper *keeper, int report_fd, const struct rusage *usage)
{
    InitReport report = {0};
    SpecReply reply = reply_of(SPEC_REPLY_DONE);
    if (read(report_fd, &report, sizeof report) == (ssize_t)sizeof report &&
        report.magic == INIT_REPORT_MAGIC) {
        reply.has_status = 1;
        reply.wait_status = report.wait_status;
        reply.start_failed = report.start_failed;
        reply.err = report.start_err;
        reply.leftover = report.leftover;
        reply.sampled_oom = report.sampled_oom;
        reply.sampled_cpu = report.sampled_cpu;
        reply.peak_bytes = report.peak_bytes;
        memcpy(reply.what, report.what, sizeof reply.what);
    }
    reply.user_us = micros(usage->ru_utime);
    reply.sys_us = micros(usage->ru_stime);
    if (reply.peak_bytes == 0)
        reply.peak_bytes = (uint64_t)usage->ru_maxrss * 1024;
    keeper_reply(keeper->sock, &reply, -1, -1);
}

/* fds of the request: stdin, stdout, stderr; none with a terminal. */
static bool exec_fds(const SpecExec *exec, const int *fds, int n, ExecFds *ret_fds)
{
    *ret_fds = (ExecFds){-1, -1, -1, -1, -1};
    if (exec->flags & SPEC_EXEC_PTY)
        return n == 0;
    if (n != 3)
        return false;
    ret_fds->in = fds[0];
    ret_fds->out = fds[1];
    ret_fds->err = fds[2];
    return true;
}

/* A terminal of the box's own devpts; never the caller's (TIOCSTI). */
static int open_terminal(const SpecExec *exec, int *ret_slave)
{
    char name[64];
    int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0)
        return -1;
    struct winsize size = {.ws_row = (unsigned short)exec->rows,
                           .ws_col = (unsigned short)exec->cols};
    if (unlockpt(master) < 0 || ptsname_r(master, name, sizeof name) != 0 ||
        (exec->rows > 0 && ioctl(master, TIOCSWINSZ, &size) < 0) ||
        (*ret_slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
        close(master);
        return -1;
    }
    return master;
}

/* An earlier command's /proc and its masks come off in one piece; what it showed is dead. */
static void uncover_proc(const Keeper *keeper)
{
    struct stat st;
    while (!(keeper->open.flags & SPEC_OPEN_DEGRADED) && stat("/proc", &st) == 0 &&
           st.st_dev != keeper->proc_dev && umount2("/proc", MNT_DETACH) == 0)
        ;
}

static int run_command(const Keeper *keeper, SpecExec *exec, ExecFds *fds, Fail *failed)
{
    int report[2], pidfd = -1, master = -1, status = 0;
    struct rusage usage = {0};
    if (pipe2(report, O_CLOEXEC) < 0)
        return fail(failed, "pipe", NULL);
    if ((exec->flags & SPEC_EXEC_PTY) && (master = open_terminal(exec, &fds->pty)) < 0)
        return fail(failed, "make a terminal", NULL);

    fds->report = report[1];
    uncover_proc(keeper);
    pid_t pid = clone_init(keeper, &pidfd);
    if (pid == 0) {
        close(keeper->sock);
        close(report[0]);
        if (master >= 0)
            close(master);
        keeper_init(keeper, exec, fds);
    }
    close(report[1]);
    if (pid < 0) {
        close(report[0]);
        return fail(failed, "start init (clone3)", NULL);
    }
    SpecReply started = reply_of(SPEC_REPLY_STARTED);
    keeper_reply(keeper->sock, &started, pidfd, master);
    if (master >= 0)
        close(master);
    if (fds->pty >= 0)
        close(fds->pty);

    wait_init(keeper, pid, pidfd, &status, &usage);
    send_done(keeper, report[0], &usage);
    close(pidfd);
    close(report[0]);
    return 0;
}

/* One request; false ends the keeper. */
static bool serve_one(const Keeper *keeper)
{
    static uint8_t buffer[SPEC_INLINE_MAX];
    Request request;
    SpecExec exec;
    ExecFds named;
    Fail failed = {0};

    if (keeper_receive(keeper->sock, buffer, &request) < 0 ||
        !spec_get_exec(request.bytes, request.len, &exec) ||
        !exec_fds(&exec, request.fds, request.n_fds, &named))
        return false;
    int r = run_command(keeper, &exec, &named, &failed);
    if (r < 0)
        send_failure(keeper, &failed);
    keeper_request_free(&request);
    return true;
}

/* Descriptors of an open request: socket, cgroup, root, layers, work, uppers, mounts. */
uint32_t keeper_open_fds(const SpecOpen *open)
{
    return 2 + open->n_layers + open->n_work + open->n_mounts +
           ((open->flags & SPEC_OPEN_CGROUP) != 0) + ((open->flags & SPEC_OPEN_ROOT_UPPER) != 0) +
           ((open->flags & SPEC_OPEN_WORK_UPPER) != 0);
}

/* What can be done before the spec is known. */
static int prepare(Keeper *keeper, uint32_t flags, int maps_ready_fd, Fail *failed)
{
    signal(SIGCHLD, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid();
    if (flags & SPEC_OPEN_DEGRADED)
        return 0;
    if (enter(keeper, flags, maps_ready_fd, failed) < 0 || keeper_lock_capabilities(failed) < 0)
        return -1;
    return flags & SPEC_OPEN_MOUNT_FDS ? keeper_tree_base(flags, failed) : 0;
}

static int build(Keeper *keeper, const int *dirs, Fail *failed)
{
    const SpecOpen *open = &keeper->open;
    struct stat st;
    if (open->flags & SPEC_OPEN_DEGRADED) {
        keeper->copy_fd = dirs[0];
    } else {
        if (sethostname(open->hostname, strlen(open->hostname)) < 0 ||
            setdomainname("(none)", 6) < 0)
            return fail(failed, "set the host name", NULL);
        if (keeper_tree_build(keeper, dirs, failed) < 0)
            return -1;
        if (stat("/proc", &st) < 0)
            return fail(failed, "look at /proc", NULL);
        keeper->proc_dev = st.st_dev;
    }
    return prctl(PR_SET_DUMPABLE, 0) < 0 ? fail(failed, "prctl", NULL) : 0;
}

void keeper_serve(int spec_sock, uint32_t flags, int maps_ready_fd, const ProcMasks *masks)
{
    static uint8_t buffer[SPEC_INLINE_MAX]; /* the spec's strings lie here for good */
    static Request request;
    static Keeper keeper;
    Fail failed = {0};
    keeper.masks = masks;
    keeper.copy_fd = -1;
    int r = prepare(&keeper, flags, maps_ready_fd, &failed);
    if (keeper_receive(spec_sock, buffer, &request) < 0 ||
        !spec_get_open(request.bytes, request.len, &keeper.open) ||
        (uint32_t)request.n_fds != keeper_open_fds(&keeper.open))
        _exit(1); /* the starter is gone, or dropped us */
    close(spec_sock);
    keeper.sock = request.fds[0];
    const int *dirs = request.fds + 1 + ((keeper.open.flags & SPEC_OPEN_CGROUP) != 0);
    bool proxied = keeper.open.flags & SPEC_OPEN_NET_PROXY;
    int listener = -1;
    if (r < 0 || build(&keeper, dirs, &failed) < 0 ||
        (proxied && (listener = listen_for_proxy(&failed)) < 0)) {
        send_failure(&keeper, &failed);
        _exit(1);
    }
    SpecReply opened = reply_of(SPEC_REPLY_OPENED);
    opened.layers = keeper.layers | payload_layers(&keeper);
    opened.landlock_abi = (uint32_t)(kernel_landlock_abi() > 0 ? kernel_landlock_abi() : 0);
    keeper_reply(keeper.sock, &opened, listener, -1);
    if (listener >= 0)
        close(listener);

    while (serve_one(&keeper))
        ;
    _exit(0);
}
