/*
 * The attacker: a static program with one sub-command per attempt. Prints the errno's name, or
 * what it got. It knows nothing of boxes; the tests know what it must see.
 */
#include "tests/sandbox/payload.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static long try_clone(unsigned long flags)
{
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid;
}

static long try_clone3(void)
{
    uint64_t args[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    long pid = syscall(435, args, sizeof args);
    if (pid == 0)
        _exit(0);
    return pid;
}

static long try_setns(const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/ns/%s", name);
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : syscall(SYS_setns, fd, 0);
}

static long try_open(const char *path, int flags)
{
    return open(path, flags | O_NONBLOCK | O_NOCTTY, 0600);
}

static long try_socket(int family, int type, int protocol)
{
    return socket(family, type, protocol);
}

static long try_connect(int family, const char *address, int type, int port)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    int fd = socket(family, type, 0);
    if (fd < 0)
        return -1;
    if (family == AF_INET) {
        inet_pton(AF_INET, address, &in.sin_addr);
        return connect(fd, (struct sockaddr *)&in, sizeof in);
    }
    inet_pton(AF_INET6, address, &in6.sin6_addr);
    return connect(fd, (struct sockaddr *)&in6, sizeof in6);
}

/* A server and a client of our own on loopback. */
static long try_loopback(int family)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr *address = family == AF_INET ? (struct sockaddr *)&in : (struct sockaddr *)&in6;
    socklen_t len = family == AF_INET ? sizeof in : sizeof in6;
    int server = socket(family, SOCK_STREAM, 0), client = socket(family, SOCK_STREAM, 0);
    if (bind(server, address, len) < 0 || listen(server, 1) < 0 ||
        getsockname(server, address, &len) < 0)
        return -1;
    return connect(client, address, len);
}

static long try_netlink(int protocol)
{
    return socket(AF_NETLINK, SOCK_RAW, protocol);
}

static long try_ioctl(unsigned long request)
{
    char byte = 'x';
    return syscall(SYS_ioctl, 0, request, &byte);
}

static long try_settime(void)
{
    struct timespec now = {1, 0};
    return clock_settime(CLOCK_REALTIME, &now);
}

static long try_adjtimex(void)
{
    struct timex change = {.modes = ADJ_TICK, .tick = 10000};
    return adjtimex(&change);
}

static long try_read_other(pid_t pid)
{
    char here[8];
    struct iovec local = {here, sizeof here}, remote = {(void *)0x400000, sizeof here};
    return process_vm_readv(pid, &local, 1, &remote, 1, 0);
}

static long try_prlimit(pid_t pid)
{
    struct rlimit limit = {1, 1};
    return prlimit(pid, RLIMIT_CPU, &limit, NULL);
}

static long try_sched_fifo(void)
{
    struct sched_param param = {.sched_priority = 10};
    return sched_setscheduler(0, SCHED_FIFO, &param);
}

static long try_mlock(void)
{
    size_t size = 8 << 20;
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mlock(at, size);
}

static long try_reserve(void)
{
    void *at = mmap(NULL, 1ul << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? -1 : 0;
}

static long try_kill_all_pids(void)
{
    long hit = 0;
    for (pid_t pid = 3; pid < 70000; pid++)
        if (pid != getpid() && kill(pid, 0) == 0)
            hit++;
    errno = ESRCH;
    return hit > 0 ? hit : -1;
}

static long try_prlimit_all(void)
{
    long hit = 0;
    for (pid_t pid = 2; pid < 70000; pid++)
        if (pid != getpid() && pid != getppid())
            hit += try_prlimit(pid) == 0;
    errno = ESRCH;
    return hit > 0 ? hit : -1;
}

static long try_interfaces(void)
{
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list) < 0)
        return -1;
    for (struct ifaddrs *at = list; at != NULL; at = at->ifa_next)
        if (strcmp(at->ifa_name, "lo") != 0)
            return errno = EEXIST, -1;
    return list != NULL ? 0 : -1;
}

static long try_raise_limit(void)
{
    struct rlimit now;
    getrlimit(RLIMIT_NOFILE, &now);
    now.rlim_max++;
    return setrlimit(RLIMIT_NOFILE, &now);
}

static long try_lower_oom_score(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    return fd < 0 ? -1 : write(fd, "-1000", 5);
}

static long try_core_scheduling(void)
{
    return prctl(62, 1, 0, 0, 0);
}

static long try_mm_forge(void)
{
    return prctl(PR_SET_MM, PR_SET_MM_ARG_START, 0, 0, 0);
}

static long try_handle(void)
{
    struct file_handle *handle = calloc(1, sizeof *handle + 128);
    int mount_id;
    handle->handle_bytes = 128;
    return name_to_handle_at(AT_FDCWD, "/", handle, &mount_id, 0);
}

static long try_security_xattr(const char *name)
{
    int fd = open("xattr-target", O_CREAT | O_RDWR, 0600);
    static const uint32_t capability[5] = {0x02000001, 1 << 21, 1 << 21, 0, 0};
    return fsetxattr(fd, name, capability, sizeof capability, 0);
}

static long try_tmpfile(void)
{
    return open(getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp", O_TMPFILE | O_RDWR, 0600);
}

static long try_overwrite_program(const char *path)
{
    return open(path, O_WRONLY | O_TRUNC);
}

static long try_thread_like_clone(void)
{
    return try_clone(0);
}

static long try_x32(void)
{
#ifdef __x86_64__
    return syscall(0x40000000 | 39);
#else
    errno = ENOSYS;
    return -1;
#endif
}

static long try_int80(void)
{
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
    return result;
#else
    raise(SIGSYS);
    return 0;
#endif
}

static long try_lock(const char *path)
{
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : flock(fd, LOCK_EX | LOCK_NB);
}

static long try_abstract_connect(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path + 1, name, sizeof address.sun_path - 2);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, (struct sockaddr *)&address,
                   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)));
}

typedef struct Attempt {
    const char *name;
    long (*fn)(void);
} Attempt;

#define ATTEMPTS(X)                                                                                \
    X(unshare_user, unshare(CLONE_NEWUSER))                                                        \
    X(unshare_mnt, unshare(CLONE_NEWNS))                                                           \
    X(unshare_net, unshare(CLONE_NEWNET))                                                          \
    X(clone_user, try_clone(CLONE_NEWUSER))                                                        \
    X(clone_pid, try_clone(CLONE_NEWPID))                                                          \
    X(clone3_user, try_clone3())                                                                   \
    X(clone_plain, try_thread_like_clone() > 0 ? 0 : -1)                                           \
    X(setns_user, try_setns("user"))                                                               \
    X(setns_mnt, try_setns("mnt"))                                                                 \
    X(setns_net, try_setns("net"))                                                                 \
    X(setns_pid, try_setns("pid"))                                                                 \
    X(mount, mount("tmpfs", "/tmp", "tmpfs", 0, NULL))                                             \
    X(umount, umount2("/proc", MNT_DETACH))                                                        \
    X(remount, mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL))                         \
    X(pivot_root, syscall(SYS_pivot_root, ".", "."))                                               \
    X(chroot, chroot("/tmp"))                                                                      \
    X(open_tree, syscall(428, AT_FDCWD, "/", 1))                                                   \
    X(fsopen, syscall(430, "tmpfs", 0))                                                            \
    X(move_mount, syscall(429, AT_FDCWD, "/tmp", AT_FDCWD, "/run", 0))                             \
    X(mount_setattr, syscall(442, AT_FDCWD, "/", 0, NULL, 0))                                      \
    X(fsconfig, syscall(431, 0, 0, NULL, NULL, 0))                                                 \
    X(fsmount, syscall(432, 0, 0, 0))                                                              \
    X(fspick, syscall(433, AT_FDCWD, "/", 0))                                                      \
    X(open_tree_attr, syscall(467, AT_FDCWD, "/", 1, NULL, 0))                                     \
    X(core_pattern, try_open("/proc/sys/kernel/core_pattern", O_WRONLY))                           \
    X(modprobe_path, try_open("/proc/sys/kernel/modprobe", O_WRONLY))                              \
    X(overcommit, try_open("/proc/sys/vm/overcommit_memory", O_WRONLY))                            \
    X(net_sysctl, try_open("/proc/sys/net/ipv4/ip_forward", O_WRONLY))                             \
    X(sysrq, try_open("/proc/sysrq-trigger", O_WRONLY))                                            \
    X(mknod_char, mknod("/tmp/dev", S_IFCHR | 0666, (dev_t)(1 << 8 | 3)))                          \
    X(mknod_block, mknod("/tmp/dev", S_IFBLK | 0666, (dev_t)(8 << 8)))                             \
    X(setuid_other, setresuid(4242, 4242, 4242))                                                   \
    X(setgroups_some, syscall(SYS_setgroups, 1, (gid_t[]){4}))                                     \
    X(sethostname, sethostname("owned", 5))                                                        \
    X(settime, try_settime())                                                                      \
    X(adjtimex, try_adjtimex())                                                                    \
    X(kill_init, kill(1, SIGKILL) == 0 ? (sleep(0), 0) : -1)                                       \
    X(stop_init, kill(1, SIGSTOP))                                                                 \
    X(kill_host_pids, try_kill_all_pids())                                                         \
    X(ptrace_init, ptrace(PTRACE_ATTACH, 1, 0, 0))                                                 \
    X(ptrace_traceme, ptrace(PTRACE_TRACEME, 0, 0, 0))                                             \
    X(read_init, try_read_other(1))                                                                \
    X(pidfd_getfd, syscall(438, 1, 0, 0))                                                          \
    X(kcmp, syscall(SYS_kcmp, 1, getpid(), 0, 0, 0))                                               \
    X(prlimit_init, try_prlimit(1))                                                                \
    X(init_environ, try_open("/proc/1/environ", O_RDONLY))                                         \
    X(init_mem, try_open("/proc/1/mem", O_RDONLY))                                                 \
    X(init_maps, try_open("/proc/1/maps", O_RDONLY))                                               \
    X(init_root, try_open("/proc/1/root/etc", O_RDONLY))                                           \
    X(init_fd, try_open("/proc/1/fd", O_RDONLY | O_DIRECTORY))                                     \
    X(init_exe, try_open("/proc/1/exe", O_RDONLY))                                                 \
    X(init_cwd, try_open("/proc/1/cwd/etc", O_RDONLY))                                             \
    X(init_stack, try_open("/proc/1/stack", O_RDONLY))                                             \
    X(init_auxv, try_open("/proc/1/auxv", O_RDONLY))                                               \
    X(init_exec, execl("/proc/1/exe", "x", NULL))                                                  \
    X(prlimit_host, try_prlimit_all())                                                             \
    X(read_implies_exec, personality(READ_IMPLIES_EXEC))                                           \
    X(no_aslr, personality(ADDR_NO_RANDOMIZE))                                                     \
    X(personality_ask, personality(0xffffffff) >= 0 ? 0 : -1)                                      \
    X(x32, try_x32())                                                                              \
    X(int80, try_int80())                                                                          \
    X(nice_up, setpriority(PRIO_PROCESS, 0, -20))                                                  \
    X(sched_fifo, try_sched_fifo())                                                                \
    X(ioprio_rt, syscall(SYS_ioprio_set, 1, 0, 1 << 13))                                           \
    X(mlock_much, try_mlock())                                                                     \
    X(reserve_tib, try_reserve())                                                                  \
    X(raise_limit, try_raise_limit())                                                              \
    X(lower_oom_score, try_lower_oom_score())                                                      \
    X(userfaultfd, syscall(SYS_userfaultfd, 0))                                                    \
    X(io_uring, syscall(425, 1, NULL))                                                             \
    X(bpf, syscall(SYS_bpf, 0, NULL, 0))                                                           \
    X(perf_event, syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0))                                \
    X(memfd_secret, syscall(447, 0))                                                               \
    X(memfd_plain, syscall(SYS_memfd_create, "x", 0) >= 0 ? 0 : -1)                                \
    X(kexec, syscall(SYS_kexec_load, 0, 0, NULL, 0))                                               \
    X(init_module, syscall(SYS_init_module, NULL, 0, ""))                                          \
    X(syslog, syscall(SYS_syslog, 3, NULL, 0))                                                     \
    X(reboot, syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL))                                 \
    X(swapon, syscall(SYS_swapon, "/tmp/x", 0))                                                    \
    X(acct, syscall(SYS_acct, "/tmp/x"))                                                           \
    X(keyctl, syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 1))             \
    X(add_key, syscall(SYS_add_key, "user", "x", "y", 1, KEY_SPEC_USER_KEYRING))                   \
    X(request_key, syscall(SYS_request_key, "user", "x", NULL, 0))                                 \
    X(name_to_handle, try_handle())                                                                \
    X(open_by_handle, syscall(SYS_open_by_handle_at, AT_FDCWD, NULL, 0))                           \
    X(fanotify, syscall(SYS_fanotify_init, 0, 0))                                                  \
    X(vmsplice, syscall(SYS_vmsplice, 1, NULL, 0, 0))                                              \
    X(mbind, syscall(SYS_mbind, NULL, 0, 0, NULL, 0, 0))                                           \
    X(core_scheduling, try_core_scheduling())                                                      \
    X(mm_forge, try_mm_forge())                                                                    \
    X(trusted_xattr, try_security_xattr("trusted.overlay.opaque"))                                 \
    X(security_xattr, try_security_xattr("security.capability"))                                   \
    X(tmpfile, try_tmpfile() >= 0 ? 0 : -1)                                                        \
    X(fallocate, fallocate(try_tmpfile(), 0, 0, 40l << 20))                                        \
    X(overwrite_self, try_overwrite_program("/proc/self/exe"))                                     \
    X(overwrite_init, try_overwrite_program("/proc/1/exe"))                                        \
    X(vsock, try_socket(40, SOCK_STREAM, 0))                                                       \
    X(packet, try_socket(17, SOCK_RAW, 0))                                                         \
    X(packet_dgram, try_socket(17, SOCK_DGRAM, 0))                                                 \
    X(alg, try_socket(38, SOCK_SEQPACKET, 0))                                                      \
    X(xdp, try_socket(44, SOCK_STREAM, 0))                                                         \
    X(bluetooth, try_socket(31, SOCK_STREAM, 0))                                                   \
    X(raw_ip, try_socket(AF_INET, SOCK_RAW, IPPROTO_ICMP))                                         \
    X(mptcp, try_socket(AF_INET, SOCK_STREAM, 262))                                                \
    X(sctp, try_socket(AF_INET, SOCK_STREAM, 132))                                                 \
    X(netlink_route, try_netlink(NETLINK_ROUTE) >= 0 ? 0 : -1)                                     \
    X(netlink_audit, try_netlink(NETLINK_AUDIT))                                                   \
    X(netlink_uevent, try_netlink(NETLINK_KOBJECT_UEVENT))                                         \
    X(netlink_netfilter, try_netlink(NETLINK_NETFILTER))                                           \
    X(ping_socket, try_socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP))                                  \
    X(netlink_sock_diag, try_netlink(4))                                                           \
    X(interfaces, try_interfaces())                                                                \
    X(connect_world, try_connect(AF_INET, "1.1.1.1", SOCK_STREAM, 80))                             \
    X(connect_world6, try_connect(AF_INET6, "2001:db8::1", SOCK_STREAM, 80))                       \
    X(udp_world, try_connect(AF_INET, "1.1.1.1", SOCK_DGRAM, 53))                                  \
    X(metadata, try_connect(AF_INET, "169.254.169.254", SOCK_STREAM, 80))                          \
    X(loopback4, try_loopback(AF_INET))                                                            \
    X(loopback6, try_loopback(AF_INET6))                                                           \
    X(tiocsti, try_ioctl(TIOCSTI))                                                                 \
    X(tiocsti_high, try_ioctl(TIOCSTI | 1ul << 32))                                                \
    X(tioclinux, try_ioctl(TIOCLINUX))                                                             \
    X(tiocsetd, try_ioctl(TIOCSETD))                                                               \
    X(lock_system_file, try_lock("/usr/bin/head"))                                                 \
    X(shm_stay, shmget(0x4242, 4096, IPC_CREAT | IPC_EXCL | 0600) >= 0 ? 0 : -1)                   \
    X(sem_stay, semget(0x4242, 1, IPC_CREAT | IPC_EXCL | 0600) >= 0 ? 0 : -1)                      \
    X(unknown_syscall, syscall(1999))

#define DEFINE(name, expression)                                                                   \
    static long attempt_##name(void)                                                               \
    {                                                                                              \
        return expression;                                                                         \
    }
ATTEMPTS(DEFINE)

static const Attempt attempts[] = {
#define ROW(name, expression) {#name, attempt_##name},
    ATTEMPTS(ROW)};

/* Memory that no page table shows: what was written to pipes or sockets and never read. */
static int hog_unread(bool pipes, size_t bytes)
{
    static char block[1 << 16];
    size_t done = 0;
    for (;;) {
        int fds[2];
        if ((pipes ? pipe(fds) : socketpair(AF_UNIX, SOCK_STREAM, 0, fds)) < 0)
            break;
        if (pipes)
            fcntl(fds[1], F_SETPIPE_SZ, 1 << 20);
        fcntl(fds[1], F_SETFL, O_NONBLOCK);
        for (ssize_t n; (n = write(fds[1], block, sizeof block)) > 0;)
            done += (size_t)n;
        if (done >= bytes)
            break;
    }
    printf("survived with %zu MiB\n", done >> 20);
    return 0;
}

/* Memory in several disguises, touched. */
static int hog(const char *kind, size_t bytes)
{
    char *at = MAP_FAILED;
    if (strcmp(kind, "pipes") == 0 || strcmp(kind, "sockets") == 0)
        return hog_unread(kind[0] == 'p', bytes);
    if (strcmp(kind, "private") == 0)
        at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    else if (strcmp(kind, "shared") == 0)
        at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    else if (strcmp(kind, "sysv") == 0)
        at = shmat(shmget(IPC_PRIVATE, bytes, IPC_CREAT | 0600), NULL, 0);
    else {
        int fd = strcmp(kind, "memfd") == 0 ? (int)syscall(SYS_memfd_create, "x", 0)
                                            : open(kind, O_CREAT | O_RDWR, 0600);
        if (ftruncate(fd, (off_t)bytes) < 0)
            return 2;
        at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (at == MAP_FAILED)
        return 3;
    memset(at, 1, bytes);
    puts("survived");
    return 0;
}

static int fork_bomb(void)
{
    for (;;)
        fork(); /* keep trying when it fails: that is the point */
    return 0;
}

static int zombies(void)
{
    int n = 0;
    for (; n < 100000; n++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        if (pid < 0)
            break;
    }
    printf("%s\n", n < 100000 ? "bounded" : "unbounded");
    return 0;
}

/* Double fork, new session, ignores everything it can; holds stdout unless told otherwise. */
static int stay(int hold)
{
    if (fork() != 0)
        return 0;
    setsid();
    if (fork() != 0)
        _exit(0);
    for (int i = 1; i < 65; i++)
        signal(i, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (!hold)
        for (int i = 0; i < 3; i++)
            close(i);
    sleep(3600);
    return 0;
}

static int spin(void)
{
    signal(SIGXCPU, SIG_IGN);
    for (volatile unsigned long n = 0;; n++)
        ;
    return 0;
}

static int list_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.' && (int)strtoul(entry->d_name, NULL, 10) != dirfd(dir))
            printf("%s ", entry->d_name);
    puts("");
    return 0;
}

static int open_many(void)
{
    int n = 0;
    while (open("/dev/null", O_RDONLY) >= 0)
        n++;
    printf("%s %s\n", n < 100000 ? "bounded" : "unbounded", strerrorname_np(errno));
    return 0;
}

static int watch_many(void)
{
    int fd = inotify_init(), n = 0;
    char path[64];
    for (; n < 1000000; n++) {
        snprintf(path, sizeof path, "/tmp/w%d", n);
        if (mkdir(path, 0700) < 0 || inotify_add_watch(fd, path, IN_ALL_EVENTS) < 0)
            break;
    }
    printf("%s\n", n < 1000000 ? "bounded" : "unbounded");
    return 0;
}

/* Bytes written to PATH until it fails. */
static int fill(const char *path)
{
    static char block[1 << 16];
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    long total = 0;
    ssize_t n;
    while ((n = write(fd, block, sizeof block)) > 0)
        total += n;
    printf("%s\n", strerrorname_np(errno));
    return total > 0 ? 0 : 1;
}

static int fill_inodes(const char *top)
{
    char path[4096];
    for (long n = 0;; n++) {
        snprintf(path, sizeof path, "%s/%ld", top, n);
        int fd = open(path, O_CREAT | O_WRONLY, 0600);
        if (fd < 0) {
            printf("%s\n", strerrorname_np(errno));
            return 0;
        }
        close(fd);
    }
}

/* For ever: "real" and "away" change places. */
static int swap_dirs(void)
{
    for (;;)
        if (renameat2(AT_FDCWD, "real", AT_FDCWD, "away", RENAME_EXCHANGE) < 0)
            return 1;
}

/* Sends what standard input says to a port of loopback; prints the answer, to its end. */
static int talk(int port)
{
    static char text[1 << 20];
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct timeval patience = {5, 0};
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    ssize_t n, len = 0;
    while ((n = read(0, text + len, sizeof text - (size_t)len)) > 0)
        len += n;
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(sock, (struct sockaddr *)&to, sizeof to) < 0) {
        puts(strerrorname_np(errno));
        return 1;
    }
    (void)send(sock, text, (size_t)len, MSG_NOSIGNAL);
    while ((n = read(sock, text, sizeof text)) > 0)
        fwrite(text, 1, (size_t)n, stdout);
    if (n < 0)
        puts(strerrorname_np(errno));
    return 0;
}

/* N connections that say nothing, 200 of them at a time. */
static int talk_many(int port, int n)
{
    static int open_ones[200];
    int made = 0;
    for (int i = 0; i < n; i++) {
        struct sockaddr_in to = {.sin_family = AF_INET,
                                 .sin_port = htons((uint16_t)port),
                                 .sin_addr = {htonl(INADDR_LOOPBACK)}};
        int *slot = &open_ones[i % 200];
        if (*slot > 0)
            close(*slot);
        *slot = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        made += connect(*slot, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS;
    }
    printf("%d\n", made);
    return 0;
}

static int signal_by(const char *name)
{
    if (strcmp(name, "stack") == 0) {
        volatile char here[1 << 16];
        here[0] = 1;
        return signal_by(name) + here[0];
    }
    abort();
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *word = argc > 1 ? argv[1] : "";
    const char *arg = argc > 2 ? argv[2] : "";
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++)
        if (strcmp(word, attempts[i].name) == 0) {
            errno = 0;
            long result = attempts[i].fn();
            puts(result >= 0 ? "ok" : strerrorname_np(errno));
            return 0;
        }
    if (strcmp(word, "hog") == 0)
        return hog(arg, strtoul(argv[3], NULL, 10) << 20);
    if (strcmp(word, "talk") == 0)
        return talk((int)strtoul(arg, NULL, 10));
    if (strcmp(word, "talk_many") == 0)
        return talk_many((int)strtoul(arg, NULL, 10), (int)strtoul(argv[3], NULL, 10));
    if (strcmp(word, "fork_bomb") == 0)
        return fork_bomb();
    if (strcmp(word, "zombies") == 0)
        return zombies();
    if (strcmp(word, "stay") == 0)
        return stay(strcmp(arg, "hold") == 0);
    if (strcmp(word, "spin") == 0)
        return spin();
    if (strcmp(word, "swap_dirs") == 0)
        return swap_dirs();
    if (strcmp(word, "fds") == 0)
        return list_fds();
    if (strcmp(word, "open_many") == 0)
        return open_many();
    if (strcmp(word, "watch_many") == 0)
        return watch_many();
    if (strcmp(word, "fill") == 0)
        return fill(arg);
    if (strcmp(word, "fill_inodes") == 0)
        return fill_inodes(arg);
    if (strcmp(word, "abstract") == 0) {
        puts(try_abstract_connect(arg) >= 0 ? "ok" : strerrorname_np(errno));
        return 0;
    }
    if (strcmp(word, "layers") == 0)
        return payload_layers(argc - 2, argv + 2);
    if (strcmp(word, "stack") == 0)
        return signal_by(word);
    int status = argc > 1 ? payload_more(argc, argv) : -1;
    if (status < 0)
        fprintf(stderr, "unknown attempt %s\n", word);
    return status < 0 ? 99 : status;
}
