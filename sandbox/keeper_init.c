/*
 * PID 1 of one command: moves into the tree, covers /proc, gets a payload ready, then waits for the
 * request, writes the supervisor's files, lets the payload go, reaps, reports.
 *
 * It is staged before the command is known, so that a command costs one message and one execve.
 *
 * Invariants:
 *   1. When init ends, the kernel kills everything in its pid namespace; so it ends as soon as the
 *      command's main process has, unless what runs in the background was to be kept.
 *   2. It ends when the library's end of its socket closes.
 *   3. It is not dumpable, and with an id range it has an id that no payload ever gets.
 *   4. Its report is sent once per command, after the main process was reaped. No report means that
 *      it was killed, which is something a command can deserve, not an error of ours.
 *
 * Not here: limits and verdicts (box_run.c), giving up privileges (keeper_payload.c).
 */
#include "sandbox/keeper.h"

#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define SAMPLE_MS 50

typedef struct Init {
    const Keeper *keeper;
    int sock, signals; /* the library; SIGCHLD and SIGTERM as a descriptor */
    pid_t payload;
    int payload_sock, error_fd; /* hands it the request; tells why it did not start */
    bool keeps;                 /* serves more than one command */
    bool is_alone;              /* has no children */
    SpecReply report;
} Init;

/* Files and directories of /proc that tell about the host, where others may read them: what only
 * the host's uid 0 may open is out of reach already, since it is never in a box. */
void keeper_choose_masks(ProcMasks *masks)
{
    static const char *const covers[] = {"sys", "sysrq-trigger"};
    static const char *const names[] = {
        "acpi",       "asound",   "buddyinfo",    "bus",        "config.gz",   "fs",
        "interrupts", "iomem",    "ioports",      "irq",        "kallsyms",    "kcore",
        "key-users",  "keys",     "kmsg",         "kpagecount", "kpageflags",  "latency_stats",
        "modules",    "mtrr",     "pagetypeinfo", "pressure",   "sched_debug", "schedstat",
        "scsi",       "slabinfo", "softirqs",     "timer_list", "vmallocinfo", "zoneinfo"};
    char path[64];
    struct stat st;
    for (size_t i = 0; i < sizeof covers / sizeof *covers; i++) {
        snprintf(path, sizeof path, "/proc/%s", covers[i]);
        if (lstat(path, &st) == 0)
            masks->covered[masks->n_covered++] = covers[i];
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "/proc/%s", names[i]);
        if (lstat(path, &st) < 0 || (st.st_mode & 0006) == 0)
            continue;
        masks->is_dir[masks->n_hidden] = S_ISDIR(st.st_mode);
        masks->hidden[masks->n_hidden++] = names[i];
    }
}

/* The fresh /proc of this pid namespace, at "p" of the workshop, read-only where it configures the
 * host, blind where it tells about it. The masks' sources are our own: a device node of a read-only
 * /dev, an empty read-only tmpfs. */
static int mount_proc(const ProcMasks *masks, Fail *failed)
{
    if (mount("proc", "p", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0 || chdir("p") < 0)
        return fail(failed, "mount /proc", NULL);
    for (int i = 0; i < masks->n_covered; i++) {
        const char *name = masks->covered[i];
        if (mount(name, name, NULL, MS_BIND, NULL) < 0 ||
            mount(NULL, name, NULL,
                  MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
            return fail(failed, "cover", name);
    }
    for (int i = 0; i < masks->n_hidden; i++)
        if (mount(masks->is_dir[i] ? "/sys" : "/dev/null", masks->hidden[i], NULL, MS_BIND, NULL) <
            0)
            return fail(failed, "mask", masks->hidden[i]);
    return chdir("/") < 0 ? fail(failed, "leave /proc", NULL) : 0;
}

/* From the workshop into the tree, /proc with us: what is outside has no path any more. */
static int move_in(int tree_fd, Fail *failed)
{
    char to[64];
    int in = open("in", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (in < 0 || kernel_move_mount(tree_fd, in) < 0)
        return fail(failed, "attach the tree (move_mount)", NULL);
    close(in);
    if (chdir("in") < 0)
        return fail(failed, "enter the tree", NULL);
    int at = kernel_openat2(AT_FDCWD, "proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0,
                            KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_SYMLINKS);
    snprintf(to, sizeof to, "/proc/self/fd/%d", at);
    if (at < 0 || mount("/p", to, NULL, MS_MOVE, NULL) < 0)
        return fail(failed, "move /proc", NULL);
    close(at);
    if (syscall(SYS_pivot_root, ".", ".") < 0)
        return fail(failed, "pivot_root", NULL);
    if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return fail(failed, "leave the workshop", NULL);
    return 0;
}

static int watch_signals(Fail *failed)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? fail(failed, "signalfd", NULL) : fd;
}

static uint64_t micros(struct timeval time)
{
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_usec;
}

static uint64_t reaped_cpu_ms(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_CHILDREN, &usage) < 0)
        return 0;
    return (micros(usage.ru_utime) + micros(usage.ru_stime)) / 1000;
}

static void sample(Init *init)
{
    const SpecLimits *limits = &init->keeper->open.limits;
    SpecReply *report = &init->report;
    uint64_t bytes = keeper_procs_memory(init->keeper);
    if (bytes > report->peak_bytes)
        report->peak_bytes = bytes;
    if (limits->mem_bytes > 0 && bytes > limits->mem_bytes)
        report->sampled_oom = 1;
    if (limits->cpu_ms > 0 && keeper_procs_cpu_ms(init->keeper) + reaped_cpu_ms() > limits->cpu_ms)
        report->sampled_cpu = 1;
    if (report->sampled_oom || report->sampled_cpu)
        keeper_procs_kill(init->keeper);
}

/* The library is gone, or wants nothing more. */
static void leave(const Init *init) __attribute__((noreturn));
static void leave(const Init *init)
{
    if (init->keeper->open.flags & KEEPER_INIT_WATCHES) {
        keeper_procs_kill(init->keeper);
        while (waitpid(-1, NULL, 0) > 0)
            ; /* all are dead: reaped here, so the host's init has no work */
    }
    _exit(0);
}

/* Forks what will be the command; it stops before it needs to know more. */
static int fork_payload(Init *init, Fail *failed)
{
    int socks[2], error[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) < 0)
        return fail(failed, "socketpair", NULL);
    if (pipe2(error, O_CLOEXEC) < 0) {
        close(socks[0]);
        close(socks[1]);
        return fail(failed, "pipe", NULL);
    }
    init->payload = fork();
    if (init->payload == 0) {
        close(init->sock);
        close(init->signals);
        close(socks[0]);
        close(error[0]);
        keeper_payload(init->keeper, socks[1], error[1]);
    }
    close(socks[1]);
    close(error[1]);
    init->payload_sock = socks[0];
    init->error_fd = error[0];
    if (init->payload > 0)
        return 0;
    init->payload = 0;
    close(socks[0]);
    close(error[0]);
    return fail(failed, "fork", NULL);
}

/* Takes an id of its own, so that no payload can name init by owner. Capabilities stay, for the
 * payload-to-be that is forked next and for the files. */
static int take_own_id(const Keeper *keeper, Fail *failed)
{
    bool degraded = keeper->open.flags & SPEC_OPEN_DEGRADED;
    if ((keeper->open.flags & SPEC_OPEN_SETGROUPS) && !degraded &&
        (setresgid(KEEPER_INIT_ID, KEEPER_INIT_ID, KEEPER_INIT_ID) < 0 ||
         setresuid(KEEPER_INIT_ID, KEEPER_INIT_ID, KEEPER_INIT_ID) < 0))
        return fail(failed, "take init's id", NULL);
    if (prctl(PR_SET_PDEATHSIG, degraded ? SIGTERM : SIGKILL) < 0 || prctl(PR_SET_DUMPABLE, 0) < 0)
        return fail(failed, "prctl", NULL);
    return 0;
}

/* A sampler needs them, to read the memory maps of what it samples; without a pid namespace init
 * needs those it has, if it has any, to kill what took another id; and with more commands to come
 * there will be more files and payloads. */
static void drop_own_capabilities(const Init *init)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    if (!(init->keeper->open.flags & KEEPER_INIT_WATCHES) && !init->keeps)
        syscall(SYS_capset, &head, none);
}

/* A terminal of the box's own devpts; never the caller's (TIOCSTI). */
static int open_terminal(const SpecExec *exec, int *ret_slave)
{
    struct winsize size = {.ws_row = (unsigned short)exec->rows,
                           .ws_col = (unsigned short)exec->cols};
    int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0)
        return -1;
    if (unlockpt(master) == 0 && (exec->rows == 0 || ioctl(master, TIOCSWINSZ, &size) == 0))
        *ret_slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*ret_slave >= 0)
        return master;
    close(master);
    return -1;
}

/* With a terminal: makes it, sends its master out and puts the slave into the request. */
static int give_terminal(const Init *init, const SpecExec *exec, Request *request, Fail *failed)
{
    int slave = -1;
    if (!(exec->flags & SPEC_EXEC_PTY))
        return 0;
    int master = open_terminal(exec, &slave);
    if (master < 0)
        return fail(failed, "make a terminal", NULL);
    SpecReply reply = keeper_reply_of(SPEC_REPLY_TERMINAL);
    int r = keeper_reply(init->sock, &reply, &master, 1);
    close(master);
    request->fds[request->n_fds++] = slave;
    return r < 0 ? fail(failed, "send the terminal", NULL) : 0;
}

/* Passes the request on: as it came, or, where it came mapped, as the same memfd. */
static int let_go(Init *init, const Request *request, Fail *failed)
{
    int fds[SPEC_FDS_MAX];
    uint32_t magic = SPEC_MAGIC_MEMFD;
    int n = 0;
    if (request->is_mapped)
        fds[n++] = request->memfd;
    memcpy(fds + n, request->fds, (size_t)request->n_fds * sizeof(int));
    n += request->n_fds;
    int r = request->is_mapped
                ? keeper_send(init->payload_sock, &magic, sizeof magic, fds, n)
                : keeper_send(init->payload_sock, request->bytes, request->len, fds, n);
    close(init->payload_sock);
    return r < 0 ? fail(failed, "hand over the request", NULL) : 0;
}

static void report_failure(Init *init, const Fail *failed)
{
    init->report.start_failed = failed->by_command ? SPEC_START_COMMAND : SPEC_START_OURS;
    init->report.err = failed->err;
    memcpy(init->report.what, failed->what, sizeof failed->what);
}

/* A payload-to-be is missing only where earlier commands left processes, files are refused by the
 * tree that commands left, terminals may all be in their hands: no failure of ours. */
static int start(Init *init, const SpecExec *exec, Request *request, Fail *failed)
{
    if ((init->payload == 0 && fork_payload(init, failed) < 0) ||
        keeper_put_files(init->keeper, exec, failed) < 0 ||
        give_terminal(init, exec, request, failed) < 0) {
        failed->by_command = true;
        return -1;
    }
    drop_own_capabilities(init);
    return let_go(init, request, failed);
}

/* Reaps what has ended; true once the main process is among it. Orphans become our children: when
 * there are none, nothing lives here but us. */
static bool reap(Init *init)
{
    int status;
    bool ended = false;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == init->payload) {
            init->report.wait_status = status;
            ended = true;
        }
    init->is_alone = pid < 0;
    return ended;
}

static void obey(Init *init, SpecOrder order)
{
    SpecReply frozen = keeper_reply_of(SPEC_REPLY_FROZEN);
    if (order == SPEC_ORDER_END && init->payload > 0)
        keeper_procs_kill_session(init->keeper, init->payload);
    if (order == SPEC_ORDER_FREEZE) {
        keeper_procs_freeze(init->keeper);
        keeper_reply(init->sock, &frozen, NULL, 0);
    }
    if (order == SPEC_ORDER_THAW)
        keeper_procs_thaw(init->keeper);
}

/* An order while a command runs; anything else is the end. */
static void take_order(Init *init)
{
    static uint8_t buffer[SPEC_INLINE_MAX];
    Request request;
    SpecOrder order;
    if (keeper_receive(init->sock, buffer, &request) < 0 ||
        !spec_get_order(request.bytes, request.len, &order))
        leave(init);
    keeper_request_free(&request);
    obey(init, order);
}

/* One wait: children, orders, samples. True when the main process has ended. */
static bool watch(Init *init)
{
    bool samples = init->keeper->open.flags & SPEC_OPEN_SAMPLE;
    struct pollfd polled[2] = {{.fd = init->signals, .events = POLLIN},
                               {.fd = init->sock, .events = POLLIN}};
    struct signalfd_siginfo got;
    bool ended = false;
    if (poll(polled, 2, samples ? SAMPLE_MS : -1) < 0)
        return false;
    if (polled[1].revents != 0)
        take_order(init);
    if (polled[0].revents != 0) {
        while (read(init->signals, &got, sizeof got) == (ssize_t)sizeof got)
            if (got.ssi_signo == SIGTERM)
                keeper_procs_kill(init->keeper);
        ended = reap(init);
    }
    if (samples)
        sample(init);
    return ended;
}

static void send_report(Init *init)
{
    struct rusage usage;
    SpecReply *report = &init->report;
    if (getrusage(RUSAGE_CHILDREN, &usage) == 0) {
        report->user_us = micros(usage.ru_utime);
        report->sys_us = micros(usage.ru_stime);
        if (report->peak_bytes == 0)
            report->peak_bytes = (uint64_t)usage.ru_maxrss * 1024;
    }
    report->has_status = 1;
    keeper_reply(init->sock, report, NULL, 0);
}

/* After the main process: why it did not start, what it left. */
static void conclude(Init *init)
{
    Fail failed = {0};
    if (read(init->error_fd, &failed, sizeof failed) == (ssize_t)sizeof failed)
        report_failure(init, &failed);
    close(init->error_fd);
    init->payload = 0;
    init->report.leftover = init->is_alone ? 0 : keeper_procs_count(init->keeper);
    if (!init->keeps && (init->keeper->open.flags & KEEPER_INIT_WATCHES)) {
        keeper_procs_kill(init->keeper);
        while (waitpid(-1, NULL, 0) > 0)
            ; /* all are dead: reaped here, their time counts */
    }
}

/* Between commands: those that ended in the background, perhaps the payload-to-be itself. */
static void rest(Init *init)
{
    struct signalfd_siginfo got;
    while (read(init->signals, &got, sizeof got) == (ssize_t)sizeof got)
        if (got.ssi_signo == SIGTERM)
            leave(init);
    if (reap(init)) {
        close(init->payload_sock);
        close(init->error_fd);
        init->payload = 0;
    }
}

/* An order, or one command from its request to its report. */
static void serve(Init *init)
{
    static uint8_t buffer[SPEC_INLINE_MAX];
    Request request;
    SpecExec exec;
    Fail failed = {0};
    if (keeper_receive(init->sock, buffer, &request) < 0)
        leave(init);
    SpecOrder order;
    if (spec_get_order(request.bytes, request.len, &order)) {
        keeper_request_free(&request);
        obey(init, order);
        return;
    }
    if (!spec_get_exec(request.bytes, request.len, &exec) ||
        request.n_fds != (exec.flags & SPEC_EXEC_PTY ? 0 : 3))
        leave(init);
    init->report = keeper_reply_of(SPEC_REPLY_DONE);
    init->keeps = exec.flags & SPEC_EXEC_KEEP;
    int r = start(init, &exec, &request, &failed);
    keeper_request_free(&request);
    if (r < 0) {
        report_failure(init, &failed);
    } else {
        while (!watch(init))
            ;
        conclude(init);
    }
    send_report(init);
    if (!init->keeps)
        leave(init);
}

/* What can be done before the spec is known. */
static int prepare(Init *init, uint32_t flags, const ProcMasks *masks, Fail *failed)
{
    bool degraded = flags & SPEC_OPEN_DEGRADED;
    prctl(PR_SET_PDEATHSIG, degraded ? SIGTERM : SIGKILL);
    if (degraded)
        prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_DUMPABLE, 1); /* for our own /proc files */
    init->signals = watch_signals(failed);
    if (init->signals < 0)
        return -1;
    return degraded ? 0 : mount_proc(masks, failed);
}

/* The spec, with the tree or the copy. */
static int take_spec(Keeper *keeper, int go)
{
    static uint8_t buffer[SPEC_INLINE_MAX]; /* the spec's strings lie here for good */
    Request request;
    if (keeper_receive(go, buffer, &request) < 0)
        _exit(0); /* the keeper is gone, or needs no init */
    if (!spec_get_open(request.bytes, request.len, &keeper->open) || request.n_fds != 1)
        _exit(1);
    close(go);
    return request.fds[0];
}

static int get_ready(Init *init, Keeper *keeper, int fd, Fail *failed)
{
    if (keeper->open.flags & SPEC_OPEN_DEGRADED)
        keeper->copy_fd = fd;
    else if (move_in(fd, failed) < 0)
        return -1;
    else
        close(fd);
    if (take_own_id(keeper, failed) < 0)
        return -1;
    return fork_payload(init, failed);
}

void keeper_init(uint32_t flags, const ProcMasks *masks, int sock, int go)
{
    static Keeper keeper = {.copy_fd = -1, .sock = -1};
    static Init init;
    Fail failed = {0};
    init = (Init){.keeper = &keeper, .sock = sock};
    int r = prepare(&init, flags, masks, &failed);
    int fd = take_spec(&keeper, go);
    if (r < 0 || get_ready(&init, &keeper, fd, &failed) < 0) {
        keeper_reply_failed(sock, &failed); /* the answer to whatever is asked */
        _exit(1);
    }
    for (;;) {
        struct pollfd polled[2] = {{.fd = sock, .events = POLLIN},
                                   {.fd = init.signals, .events = POLLIN}};
        if (poll(polled, 2, -1) < 0)
            continue;
        if (polled[1].revents != 0)
            rest(&init);
        if (polled[0].revents != 0)
            serve(&init);
    }
}
