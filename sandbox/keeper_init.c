/*
 * PID 1 of one command: covers /proc, writes the supervisor's files, starts the payload, reaps.
 *
 * Invariants:
 *   1. When init ends, the kernel kills everything in its pid namespace; so it ends as soon as the
 *      command's main process has.
 *   2. While files are written nothing else runs in the box; no symlink is followed.
 *   3. It is not dumpable, and with an id range it has an id that no payload ever gets.
 *   4. Its report is written once, after the main process was reaped. No report means that it was
 *      killed, which is something a command can deserve, not an error of ours.
 *
 * Not here: limits and verdicts (box.c), giving up privileges (keeper_payload.c).
 */
#include "sandbox/keeper.h"

#include "sandbox/kernel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define SAMPLE_MS 50
#define RESOLVE   (KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_SYMLINKS)

/* Files and directories of /proc that tell about the host, where others may read them: what only
 * the host's uid 0 may open is out of reach already, since it is never in a box. */
void keeper_choose_masks(ProcMasks *masks)
{
    static const char *const covers[] = {"sys", "sysrq-trigger", "irq", "bus", "fs"};
    static const char *const names[] = {
        "acpi",       "asound",      "buddyinfo",     "config.gz", "interrupts", "iomem",
        "ioports",    "kallsyms",    "kcore",         "key-users", "keys",       "kmsg",
        "kpagecount", "kpageflags",  "latency_stats", "modules",   "mtrr",       "pagetypeinfo",
        "pressure",   "sched_debug", "schedstat",     "scsi",      "slabinfo",   "softirqs",
        "timer_list", "vmallocinfo", "zoneinfo"};
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

/* The fresh /proc of this pid namespace, read-only where it configures the host, blind where it
 * tells about it. The masks' sources are our own: a device node of a read-only /dev, an empty
 * read-only tmpfs at /sys. */
static int mount_proc(const Keeper *keeper, Fail *failed)
{
    char path[64];
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
        return fail(failed, "mount /proc", NULL);
    const ProcMasks *masks = keeper->masks;
    for (int i = 0; i < masks->n_covered; i++) {
        snprintf(path, sizeof path, "/proc/%s", masks->covered[i]);
        if (mount(path, path, NULL, MS_BIND, NULL) < 0 ||
            mount(NULL, path, NULL,
                  MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
            return fail(failed, "cover", path);
    }
    for (int i = 0; i < masks->n_hidden; i++) {
        snprintf(path, sizeof path, "/proc/%s", masks->hidden[i]);
        if (mount(masks->is_dir[i] ? "/sys" : "/dev/null", path, NULL, MS_BIND, NULL) < 0)
            return fail(failed, "mask", path);
    }
    return 0;
}

/* Removes whatever stands at NAME, however deep; only called while nothing else runs. */
static int remove_any(int dir_fd, const char *name, int depth)
{
    if (unlinkat(dir_fd, name, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return -1;
    if (unlinkat(dir_fd, name, AT_REMOVEDIR) == 0)
        return 0;
    int fd = depth > 0 ? openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (dir == NULL) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    int r = 0;
    for (struct dirent *entry; r == 0 && (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = remove_any(fd, entry->d_name, depth - 1);
    closedir(dir);
    return r < 0 ? -1 : unlinkat(dir_fd, name, AT_REMOVEDIR);
}

/* The directory that holds PATH, its missing parents made and given to the box's user. */
static int open_parent(const Keeper *keeper, int top_fd, const char *path)
{
    int at = dup(top_fd);
    char part[256];
    for (const char *from = path + 1; at >= 0;) {
        size_t n = strcspn(from, "/");
        if (from[n] == '\0')
            return at;
        memcpy(part, from, n);
        part[n] = '\0';
        if (mkdirat(at, part, 0755) == 0)
            (void)!fchownat(at, part, keeper_uid(&keeper->open), keeper_gid(&keeper->open),
                            AT_SYMLINK_NOFOLLOW);
        int next = kernel_openat2(at, part, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, RESOLVE);
        int err = errno;
        close(at);
        errno = err;
        at = next;
        from += n + 1;
    }
    return -1;
}

static int write_all(int fd, const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno != EINTR)
            return -1;
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        }
    }
    return 0;
}

static int put_file(const Keeper *keeper, int top_fd, const SpecFile *file)
{
    const char *name = strrchr(file->path, '/') + 1;
    int dir = open_parent(keeper, top_fd, file->path);
    if (dir < 0)
        return -1;
    int fd = -1;
    if (remove_any(dir, name, 64) == 0)
        fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    int r = fd;
    if (fd >= 0) {
        r = write_all(fd, file->data, file->len);
        if (r == 0 && (fchown(fd, keeper_uid(&keeper->open), keeper_gid(&keeper->open)) < 0 ||
                       fchmod(fd, (mode_t)file->mode) < 0))
            r = -1;
        close(fd);
    }
    int err = errno;
    close(dir);
    errno = err;
    return r < 0 ? -1 : 0;
}

static void wanted_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGCHLD);
    sigaddset(set, SIGTERM);
}

/* A failure here is the tree's state, which a command may have caused: a start error. */
static int put_files(const Keeper *keeper, const SpecExec *exec, Fail *failed)
{
    SpecExec walk = *exec;
    const char *text;
    SpecFile file;
    for (uint32_t i = 0; i < walk.n_argv + walk.n_envp; i++)
        spec_next_str(&walk, &text);
    int top =
        keeper->copy_fd >= 0 ? dup(keeper->copy_fd) : open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = top < 0 ? fail(failed, "open the root", NULL) : 0;
    for (uint32_t i = 0; r == 0 && i < exec->n_files; i++) {
        spec_next_file(&walk, &file);
        r = put_file(keeper, top, &file);
        if (r < 0)
            fail(failed, "write file", file.path);
    }
    if (top >= 0)
        close(top);
    return r;
}

static uint64_t reaped_cpu_ms(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_CHILDREN, &usage) < 0)
        return 0;
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000;
}

static void sample(const Keeper *keeper, InitReport *report)
{
    const SpecLimits *limits = &keeper->open.limits;
    uint64_t bytes = keeper_procs_memory(keeper);
    if (bytes > report->peak_bytes)
        report->peak_bytes = bytes;
    if (limits->mem_bytes > 0 && bytes > limits->mem_bytes)
        report->sampled_oom = 1;
    if (limits->cpu_ms > 0 && keeper_procs_cpu_ms(keeper) + reaped_cpu_ms() > limits->cpu_ms)
        report->sampled_cpu = 1;
    if (report->sampled_oom || report->sampled_cpu)
        keeper_procs_kill(keeper);
}

/* Waits for the next child; watches meanwhile when that is our task. */
static pid_t wait_child(const Keeper *keeper, InitReport *report, int *ret_status)
{
    uint32_t flags = keeper->open.flags;
    if (!(flags & KEEPER_INIT_WATCHES))
        return waitpid(-1, ret_status, 0);

    sigset_t set;
    wanted_signals(&set);
    const struct timespec pause = {0, SAMPLE_MS * 1000000l};
    for (;;) {
        pid_t pid = waitpid(-1, ret_status, WNOHANG);
        if (pid != 0)
            return pid;
        if (sigtimedwait(&set, NULL, &pause) == SIGTERM)
            keeper_procs_kill(keeper);
        if (flags & SPEC_OPEN_SAMPLE)
            sample(keeper, report);
    }
}

static void send_report(const ExecFds *fds, InitReport *report)
{
    report->magic = INIT_REPORT_MAGIC;
    (void)!write(fds->report, report, sizeof *report);
    _exit(0);
}

static void report_failure(const ExecFds *fds, const Fail *failed)
{
    InitReport report = {.start_failed = 1, .start_err = failed->err};
    memcpy(report.what, failed->what, sizeof report.what);
    send_report(fds, &report);
}

/* Takes an id of its own, so that no payload can name init by owner. Capabilities stay, for the
 * payload-to-be that is forked next; init gives its own up after that. */
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
 * needs those it has, if it has any, to kill what took another id. */
static void drop_own_capabilities(const Keeper *keeper)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0}};
    if (!(keeper->open.flags & (SPEC_OPEN_SAMPLE | SPEC_OPEN_DEGRADED)))
        syscall(SYS_capset, &head, none);
}

static void reap(const Keeper *keeper, const ExecFds *fds, pid_t payload, int error_fd)
{
    InitReport report = {0};
    Fail failed = {0};
    for (;;) {
        int status = 0;
        pid_t pid = wait_child(keeper, &report, &status);
        if (pid < 0 && errno != EINTR)
            break;
        if (pid != payload)
            continue;
        report.wait_status = status;
        break;
    }
    if (read(error_fd, &failed, sizeof failed) == (ssize_t)sizeof failed) {
        report.start_failed = 1;
        report.start_err = failed.err;
        memcpy(report.what, failed.what, sizeof report.what);
    }
    report.leftover = keeper_procs_count(keeper);
    if (keeper->open.flags & KEEPER_INIT_WATCHES) {
        keeper_procs_kill(keeper);
        while (waitpid(-1, NULL, 0) > 0)
            ; /* all are dead: reaped here, their time counts and the host's init has no work */
    }
    send_report(fds, &report);
}

void keeper_init(const Keeper *keeper, const SpecExec *exec, const ExecFds *fds)
{
    Fail failed = {0};
    struct pollfd keeper_alive = {.fd = fds->report};
    int error[2];
    sigset_t set;
    bool degraded = keeper->open.flags & SPEC_OPEN_DEGRADED;

    wanted_signals(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (degraded)
        prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_PDEATHSIG, degraded ? SIGTERM : SIGKILL);
    if (poll(&keeper_alive, 1, 0) > 0)
        _exit(1); /* the keeper died before the line above */
    prctl(PR_SET_DUMPABLE, 1);
    if (!degraded &&
        (unshare((int)KERNEL_CLONE_NEWCGROUP) < 0 || mount_proc(keeper, &failed) < 0)) {
        fail(&failed, "make the cgroup namespace", NULL);
        report_failure(fds, &failed);
    }
    if (put_files(keeper, exec, &failed) < 0)
        report_failure(fds, &failed);
    if (pipe2(error, O_CLOEXEC) < 0) {
        fail(&failed, "pipe", NULL);
        report_failure(fds, &failed);
    }
    if (take_own_id(keeper, &failed) < 0)
        report_failure(fds, &failed);
    pid_t payload = fork();
    if (payload == 0)
        keeper_payload(keeper, exec, fds, error[1]);
    close(error[1]);
    if (payload < 0) {
        fail(&failed, "fork", NULL);
        report_failure(fds, &failed);
    }
    for (const int *fd = &fds->in; fd <= &fds->err; fd++)
        if (*fd >= 0)
            close(*fd);
    if (fds->pty >= 0)
        close(fds->pty);
    drop_own_capabilities(keeper);
    reap(keeper, fds, payload, error[0]);
    _exit(1);
}
