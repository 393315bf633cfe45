/*
 * The last steps of a payload: it gives up everything, waits for the command, becomes it.
 *
 * Order matters (reference: man pages of capabilities, seccomp, landlock):
 *   session, limits, ids and capabilities, no_new_privs, Landlock, filter; then the request:
 *   terminal, descriptors, directory, execve.
 *
 * Invariants:
 *   1. Every step is checked; a step that fails ends the payload before execve.
 *   2. What it does for a request it does as powerless as the command will be.
 *   3. Exactly descriptors 0, 1 and 2 survive execve.
 *
 * Not here: the tree and /proc (keeper_tree.c, keeper_init.c), building the filter (filter.c).
 */
#include "sandbox/keeper.h"

#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define SECURE_BITS                                                                                \
    (SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |                               \
     SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |       \
     SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED)

int keeper_landlock_abi;

static char *arg_list[SPEC_ARGV_MAX + 1];
static char *env_list[SPEC_ENVP_MAX + 1];

/* Three descriptors, or one terminal. */
static int stdio(const Request *request, Fail *failed)
{
    bool is_terminal = request->n_fds == 1;
    if (is_terminal && ioctl(request->fds[0], TIOCSCTTY, 0) < 0)
        return fail(failed, "take the terminal", NULL);
    for (int i = 0; i < 3; i++)
        if (dup2(request->fds[is_terminal ? 0 : i], i) < 0)
            return fail(failed, "dup2", NULL);
    return 0;
}

/* Lowers one limit; what the host has set lower already stays (raising needs a capability). */
static int limit(int resource, uint64_t soft, uint64_t hard)
{
    struct rlimit now;
    if (getrlimit((__rlimit_resource_t)resource, &now) < 0)
        return -1;
    struct rlimit want = {soft, hard};
    if (now.rlim_max < want.rlim_max)
        want.rlim_max = now.rlim_max;
    if (want.rlim_cur > want.rlim_max)
        want.rlim_cur = want.rlim_max;
    return setrlimit((__rlimit_resource_t)resource, &want);
}

static int limits(const SpecLimits *limits, Fail *failed)
{
    uint64_t cpu_s = limits->cpu_ms / 1000 + 2;
    const struct {
        int resource;
        uint64_t value; /* 0: leave */
        bool always;
    } rows[] = {
        {RLIMIT_CORE, 0, true},
        {RLIMIT_NOFILE, limits->nofile, false},
        {RLIMIT_FSIZE, limits->file_bytes, false},
        {RLIMIT_STACK, limits->stack_bytes, false},
        {RLIMIT_NPROC, limits->pids > 0 ? limits->pids + 8 : 0, false},
        {RLIMIT_CPU, limits->cpu_ms > 0 ? cpu_s : 0, false},
        {RLIMIT_MEMLOCK, 65536, true},
        {RLIMIT_MSGQUEUE, 819200, true},
        {RLIMIT_SIGPENDING, 4096, true},
        {RLIMIT_RTPRIO, 0, true},
        {RLIMIT_NICE, 0, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t value = rows[i].value;
        uint64_t hard = rows[i].resource == RLIMIT_CPU ? value + 5 : value;
        if ((rows[i].always || value > 0) && limit(rows[i].resource, value, hard) < 0)
            return fail(failed, "setrlimit", NULL);
    }
    return 0;
}

/* Some of the CPUs that we may use, counted round from a first one, so that boxes spread. */
static int pin(const SpecLimits *limits, Fail *failed)
{
    cpu_set_t given, want;
    uint64_t skip, left = limits->cpus;
    CPU_ZERO(&want);
    if (left == 0)
        return 0;
    if (sched_getaffinity(0, sizeof given, &given) < 0)
        return fail(failed, "ask for CPUs", NULL);
    skip = limits->cpu_first % (uint64_t)CPU_COUNT(&given);
    for (int i = 0; i < 2 * CPU_SETSIZE && left > 0; i++) {
        int cpu = i % CPU_SETSIZE;
        if (!CPU_ISSET(cpu, &given))
            continue;
        if (skip > 0) {
            skip--;
            continue;
        }
        CPU_SET(cpu, &want);
        left--;
    }
    return sched_setaffinity(0, sizeof want, &want) < 0 ? fail(failed, "choose CPUs", NULL) : 0;
}

int keeper_lock_capabilities(Fail *failed)
{
    for (int cap = 0; cap < 64; cap++)
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
            if (errno == EINVAL)
                break;
            return fail(failed, "drop the bounding set", NULL);
        }
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECUREBITS, SECURE_BITS, 0, 0, 0) < 0)
        return fail(failed, "set securebits", NULL);
    return 0;
}

static int drop_capabilities(const SpecOpen *open, Fail *failed)
{
    if ((open->flags & SPEC_OPEN_DEGRADED) && keeper_lock_capabilities(failed) < 0)
        return -1;
    if (prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) != SECURE_BITS ||
        prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) != 0) {
        errno = EPERM;
        return fail(failed, "capabilities are not locked", NULL);
    }
    if (open->flags & SPEC_OPEN_SETGROUPS) {
        uid_t uid = keeper_uid(open);
        gid_t gid = keeper_gid(open);
        if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0)
            return fail(failed, "take the box user's ids", NULL);
    }

    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capset, &head, data) < 0 || syscall(SYS_capget, &head, data) < 0)
        return fail(failed, "capset", NULL);
    if ((data[0].effective | data[0].permitted | data[0].inheritable | data[1].effective |
         data[1].permitted | data[1].inheritable) != 0) {
        errno = EPERM;
        return fail(failed, "capabilities remain", NULL);
    }
    return 0;
}

static int no_capabilities_left(const SpecOpen *open, Fail *failed)
{
    bool had_none = (open->flags & SPEC_OPEN_DEGRADED) && !(open->flags & SPEC_OPEN_SETGROUPS);
    if (!had_none && drop_capabilities(open, failed) < 0)
        return -1;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
        return fail(failed, "no_new_privs", NULL);
    return 0;
}

static uint64_t landlock_fs(int abi)
{
    uint64_t all = (1ull << 13) - 1;
    if (abi >= 2)
        all |= 1ull << 13;
    if (abi >= 3)
        all |= KERNEL_LANDLOCK_TRUNCATE;
    if (abi >= 5)
        all |= KERNEL_LANDLOCK_IOCTL_DEV;
    return all;
}

static int landlock_allow(int ruleset, const char *path, uint64_t allowed)
{
    struct kernel_landlock_path rule = {allowed, open(path, O_PATH | O_CLOEXEC)};
    if (rule.parent_fd < 0)
        return errno == ENOENT ? 0 : -1;
    int r = (int)syscall(KERNEL_NR_LANDLOCK_ADD, ruleset, 1, &rule, 0);
    close(rule.parent_fd);
    return r;
}

/* Inside our own tree: everything but device nodes and device control. */
static int landlock_tree(int ruleset, uint64_t all)
{
    static const char *const devices[] = {"/dev/tty", "/dev/pts"};
    uint64_t no_devices =
        KERNEL_LANDLOCK_MAKE_CHAR | KERNEL_LANDLOCK_MAKE_BLOCK | KERNEL_LANDLOCK_IOCTL_DEV;
    if (landlock_allow(ruleset, "/", all & ~no_devices) < 0)
        return -1;
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if ((all & KERNEL_LANDLOCK_IOCTL_DEV) &&
            landlock_allow(ruleset, devices[i], KERNEL_LANDLOCK_IOCTL_DEV) < 0)
            return -1;
    return 0;
}

/* Without a tree of our own: the host's programs to read, the copy to write, nothing else. */
static int landlock_host(int ruleset, uint64_t all, int copy_fd)
{
    static const char *const readable[] = {"/usr",   "/bin",    "/sbin", "/lib", "/lib32",
                                           "/lib64", "/libx32", "/etc",  "/opt", "/proc"};
    static const char *const devices[] = {"/dev/null",   "/dev/zero",    "/dev/full",
                                          "/dev/random", "/dev/urandom", "/dev/tty"};
    const uint64_t read_exec =
        KERNEL_LANDLOCK_EXECUTE | KERNEL_LANDLOCK_READ_FILE | KERNEL_LANDLOCK_READ_DIR;
    const uint64_t device = KERNEL_LANDLOCK_READ_FILE | KERNEL_LANDLOCK_WRITE_FILE |
                            (all & (KERNEL_LANDLOCK_TRUNCATE | KERNEL_LANDLOCK_IOCTL_DEV));
    for (size_t i = 0; i < sizeof readable / sizeof *readable; i++)
        if (landlock_allow(ruleset, readable[i], read_exec) < 0)
            return -1;
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        if (landlock_allow(ruleset, devices[i], device) < 0)
            return -1;
    struct kernel_landlock_path copy = {
        all & ~(KERNEL_LANDLOCK_MAKE_CHAR | KERNEL_LANDLOCK_MAKE_BLOCK), copy_fd};
    return (int)syscall(KERNEL_NR_LANDLOCK_ADD, ruleset, 1, &copy, 0);
}

static int landlock(const Keeper *keeper, Fail *failed)
{
    bool degraded = keeper->open.flags & SPEC_OPEN_DEGRADED;
    int abi = keeper_landlock_abi;
    if (abi == 0) {
        errno = ENOSYS; /* reported as missing, unless it is the only wall */
        return degraded ? fail(failed, "landlock", NULL) : 0;
    }
    uint64_t all = landlock_fs(abi);
    struct kernel_landlock_ruleset rules = {.fs = all};
    if (abi >= 4 && degraded)
        rules.net = KERNEL_LANDLOCK_NET_TCP; /* with a network namespace, lo must work */
    if (abi >= 6)
        rules.scoped = KERNEL_LANDLOCK_SCOPES;
    size_t size = abi >= 6 ? sizeof rules : abi >= 4 ? 16 : 8;
    int ruleset = (int)syscall(KERNEL_NR_LANDLOCK_CREATE, &rules, size, 0);
    if (ruleset < 0)
        return fail(failed, "landlock_create_ruleset", NULL);
    int r = degraded ? landlock_host(ruleset, all, keeper->copy_fd) : landlock_tree(ruleset, all);
    if (r < 0 || syscall(KERNEL_NR_LANDLOCK_RESTRICT, ruleset, 0) < 0)
        return fail(failed, "landlock", NULL);
    close(ruleset);
    return 0;
}

static int filter(const SpecOpen *open, Fail *failed)
{
    struct sock_fprog program = {
        .len = (unsigned short)(open->filter_len / sizeof(struct sock_filter)),
        .filter = (struct sock_filter *)(uintptr_t)open->filter};
    if (program.len == 0)
        return 0;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
        return fail(failed, "seccomp", NULL);
    return 0;
}

/* What the starter, the keeper and init changed. */
static void signals_reset(void)
{
    sigset_t none;
    signal(SIGPIPE, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void load_lists(const SpecExec *exec)
{
    SpecExec walk = *exec;
    const char *text;
    for (uint32_t i = 0; i < exec->n_argv; i++) {
        spec_next_str(&walk, &text);
        arg_list[i] = (char *)(uintptr_t)text;
    }
    for (uint32_t i = 0; i < exec->n_envp; i++) {
        spec_next_str(&walk, &text);
        env_list[i] = (char *)(uintptr_t)text;
    }
}

static const char *search_path(void)
{
    for (char **at = env_list; *at != NULL; at++)
        if (strncmp(*at, "PATH=", 5) == 0)
            return *at + 5;
    return "/usr/bin:/bin";
}

/* Returns only on failure, with errno: ENOENT unless something better was met on the way. */
static void exec_search(void)
{
    if (strchr(arg_list[0], '/') != NULL) {
        execve(arg_list[0], arg_list, env_list);
        return;
    }
    int best = ENOENT;
    char full[4096];
    for (const char *at = search_path(); at != NULL;) {
        size_t n = strcspn(at, ":");
        if (n > 0 && n + strlen(arg_list[0]) + 2 < sizeof full) {
            snprintf(full, sizeof full, "%.*s/%s", (int)n, at, arg_list[0]);
            execve(full, arg_list, env_list);
            if (errno != ENOENT && errno != ENOTDIR)
                best = errno;
        }
        at = at[n] == ':' ? at + n + 1 : NULL;
    }
    errno = best;
}

static void die(int error_fd, const Fail *failed) __attribute__((noreturn));
static void die(int error_fd, const Fail *failed)
{
    (void)!write(error_fd, failed, sizeof *failed);
    _exit(127);
}

/* Everything that does not depend on the command. */
static int give_up(const Keeper *keeper, Fail *failed)
{
    if (setsid() < 0)
        return fail(failed, "setsid", NULL);
    if (limits(&keeper->open.limits, failed) < 0 || pin(&keeper->open.limits, failed) < 0 ||
        no_capabilities_left(&keeper->open, failed) < 0)
        return -1;
    if (landlock(keeper, failed) < 0)
        return -1;
    if (kernel_close_range(3, ~0u, KERNEL_CLOSE_RANGE_CLOEXEC) < 0)
        return fail(failed, "close descriptors", NULL);
    return filter(&keeper->open, failed);
}

void keeper_payload(const Keeper *keeper, int sock, int error_fd)
{
    static uint8_t buffer[SPEC_INLINE_MAX];
    Request request;
    SpecExec exec;
    Fail failed = {0};
    signals_reset();
    prctl(PR_SET_DUMPABLE, 1); /* for our own /proc files; execve sets it again */
    keeper_write_text("/proc/self/oom_score_adj", "1000");
    int r = give_up(keeper, &failed);

    if (keeper_receive(sock, buffer, &request) < 0)
        _exit(0); /* nothing to become */
    if (r < 0 || !spec_get_exec(request.bytes, request.len, &exec) || stdio(&request, &failed) < 0)
        die(error_fd, &failed);
    load_lists(&exec);
    failed.by_command = true; /* from here on it is about what it named */
    if (chdir(exec.cwd) < 0) {
        fail(&failed, "enter", exec.cwd);
        die(error_fd, &failed);
    }
    exec_search();
    fail(&failed, KEEPER_EXEC_STAGE, arg_list[0]);
    die(error_fd, &failed);
}
