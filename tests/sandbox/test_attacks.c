/*
 * One attempt to get out, to see or to change per row: what the attacker sees, and that the host
 * is as it was.
 */
#include "tests/sandbox/lab.h"

#include <signal.h>

/* Without namespaces some walls are missing, and the threat model says which. */
#define LOST "lost without namespaces"

typedef struct Attack {
    int number;         /* of the case list, see cases.txt */
    const char *name;   /* a sentence */
    const char *word;   /* payload sub-command, or NULL */
    const char *line;   /* shell line, when there is no word */
    const char *expect; /* alternatives separated by | */
    const char *bare;   /* the same without namespaces: NULL is as `expect`, or LOST */
} Attack;

static const Attack attacks[] = {
    /* A: namespaces, ids, capabilities */
    {1, "a user namespace cannot be unshared", "unshare_user", NULL, "EPERM"},
    {1, "a mount namespace cannot be unshared", "unshare_mnt", NULL, "EPERM"},
    {1, "a network namespace cannot be unshared", "unshare_net", NULL, "EPERM"},
    {2, "clone makes no user namespace", "clone_user", NULL, "EPERM"},
    {2, "clone makes no pid namespace", "clone_pid", NULL, "EPERM"},
    {3, "clone3 is unknown", "clone3_user", NULL, "ENOSYS"},
    {3, "clone makes processes", "clone_plain", NULL, "ok"},
    {3, "threads and spawned programs work", NULL, "/payload/payload threads_and_spawn", "ok"},
    {4, "no namespace of its own can be entered again", NULL, "/payload/payload every_setns",
     "refused"},
    {4, "setns refuses the user namespace", "setns_user", NULL, "EPERM"},
    {4, "setns refuses the mount namespace", "setns_mnt", NULL, "EPERM"},
    {4, "setns refuses the network namespace", "setns_net", NULL, "EPERM"},
    {4, "setns refuses the pid namespace", "setns_pid", NULL, "EPERM"},
    {5, "mount is refused", "mount", NULL, "EPERM"},
    {5, "umount is refused", "umount", NULL, "EPERM"},
    {5, "remount is refused", "remount", NULL, "EPERM"},
    {5, "pivot_root is refused", "pivot_root", NULL, "EPERM"},
    {5, "chroot is refused", "chroot", NULL, "EPERM"},
    {5, "open_tree is refused", "open_tree", NULL, "EPERM"},
    {5, "fsopen is refused", "fsopen", NULL, "EPERM"},
    {5, "move_mount is refused", "move_mount", NULL, "EPERM"},
    {5, "fsconfig is refused", "fsconfig", NULL, "EPERM"},
    {5, "fsmount is refused", "fsmount", NULL, "EPERM"},
    {5, "fspick is refused", "fspick", NULL, "EPERM"},
    {5, "open_tree_attr is refused", "open_tree_attr", NULL, "EPERM|ENOSYS"},
    {5, "mount_setattr is refused", "mount_setattr", NULL, "EPERM"},
    {6, "no file below /proc/sys opens for writing", NULL, "/payload/payload write_tree /proc/sys",
     "0"},
    {6, "no file below /proc/irq, /proc/bus and /proc/fs opens for writing", NULL,
     "for d in irq bus fs; do /payload/payload write_tree /proc/$d; done", "0\n0\n0"},
    {6, "no file below /sys opens for writing", NULL, "/payload/payload write_tree /sys", "0"},
    {6, "there is no binfmt_misc to register with", NULL,
     "ls /proc/sys/fs/binfmt_misc/register 2>/dev/null; echo end", "end"},
    {8, "a set-id program changes no id", NULL,
     "cp /payload/payload s && chmod 6777 s && ./s ids | awk '{print ($1 == $2 && $3 == $4)}'; rm "
     "-f s",
     "1"},
    {6, "core_pattern cannot be opened for writing", "core_pattern", NULL, "EROFS|EACCES"},
    {6, "the modprobe path cannot be opened for writing", "modprobe_path", NULL,
     "EROFS|EACCES|ENOENT"},
    {6, "the overcommit sysctl cannot be opened for writing", "overcommit", NULL, "EROFS|EACCES"},
    {6, "network sysctls cannot be opened for writing", "net_sysctl", NULL, "EROFS|EACCES"},
    {6, "sysrq cannot be triggered", "sysrq", NULL, "EROFS|EACCES|ENOENT"},
    {7, "no id map line maps the host's root", NULL,
     "awk '$2 == 0 {print \"host root\"}' /proc/self/uid_map /proc/self/gid_map; echo end", "end",
     LOST},
    {10, "all five capability sets are empty", NULL,
     "grep -c '^Cap.*:.0000000000000000$' /proc/self/status", "5", "5|4"},
    {10, "no_new_privs and the filter are on", NULL,
     "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t\\n'",
     "NoNewPrivs:1Seccomp:2"},
    {7, "files of the host's root have no owner with power here", NULL, "stat -c %u /dev/null",
     "65534", LOST},
    {11, "no character device can be made", "mknod_char", NULL, "EPERM|EACCES"},
    {11, "no block device can be made", "mknod_block", NULL, "EPERM|EACCES"},
    {12, "other uids cannot be taken", "setuid_other", NULL, "EPERM|EINVAL"},
    {12, "supplementary groups cannot be set", "setgroups_some", NULL, "EPERM"},
    {13, "the host name cannot be set", "sethostname", NULL, "EPERM"},
    {13, "the host name is fixed", NULL, "uname -n", "sandbox", LOST},
    {14, "the clock cannot be set", "settime", NULL, "EPERM"},
    {14, "the clock cannot be tuned", "adjtimex", NULL, "EPERM"},
    {8, "nosuid and nodev hold on every writable mount", NULL,
     "awk '$4 ~ /^rw/ && $3 != \"proc\" && $3 != \"devpts\" && $2 !~ /^\\/(dev|proc)\\// && $4 !~ "
     "/nosuid/' /proc/self/mounts | wc -l",
     "0", LOST},

    /* B: processes and signals */
    {16, "init cannot be killed", "kill_init", NULL, "ok|EPERM"},
    {16, "init cannot be stopped", "stop_init", NULL, "ok|EPERM"},
    {17, "no host pid can be signalled", "kill_host_pids", NULL, "ESRCH"},
    {23, "init cannot be traced", "ptrace_init", NULL, "EPERM"},
    {23, "tracing is refused altogether", "ptrace_traceme", NULL, "EPERM"},
    {23, "init's memory cannot be read", "read_init", NULL, "EPERM"},
    {23, "init's descriptors cannot be taken", "pidfd_getfd", NULL, "EPERM"},
    {23, "kcmp is refused", "kcmp", NULL, "EPERM"},
    {30, "init's limits cannot be changed", "prlimit_init", NULL, "EPERM"},
    {24, "init's environment is closed", "init_environ", NULL, "EACCES|EPERM"},
    {24, "init's memory file is closed", "init_mem", NULL, "EACCES|EPERM"},
    {24, "init's map is closed", "init_maps", NULL, "EACCES|EPERM"},
    {24, "init's root is closed", "init_root", NULL, "EACCES|EPERM"},
    {24, "init's descriptor directory is closed", "init_fd", NULL, "EACCES|EPERM"},
    {24, "init's program is closed", "init_exe", NULL, "EACCES|EPERM"},
    {24, "init's working directory is closed", "init_cwd", NULL, "EACCES|EPERM"},
    {24, "init's stack is closed", "init_stack", NULL, "EACCES|EPERM|ENOENT"},
    {24, "init's vector is closed", "init_auxv", NULL, "EACCES|EPERM"},
    {27, "init's program cannot be run", "init_exec", NULL, "EACCES|EPERM"},
    {27, "a program in memory runs", NULL, "/payload/payload run_from_memory", "ok"},
    {25, "nobody outlives init", NULL, "/payload/payload outlive; echo end", "end"},
    {25, "nobody outlived init", NULL, "ps -A -o args= | grep -c '[o]utlive'", "0"},
    {30, "no limit of another process can be changed", "prlimit_host", NULL, "ESRCH"},
    {22, "threads are bounded", NULL, "/payload/payload thread_bomb", "bounded"},
    {24, "init's command line is one fixed word", NULL, "tr '\\0' '.' < /proc/1/cmdline",
     "assay-box.", LOST},
    {17, "only the box's processes are seen", NULL, "ls /proc | grep -c '^[0-9]'", "3|4|5", LOST},
    {28, "READ_IMPLIES_EXEC is refused", "read_implies_exec", NULL, "EPERM"},
    {28, "address randomisation cannot be switched off", "no_aslr", NULL, "EPERM"},
    {28, "asking for the personality is allowed", "personality_ask", NULL, "ok"},
    {29, "niceness cannot be lowered", "nice_up", NULL, "EACCES|EPERM"},
    {29, "real-time scheduling is refused", "sched_fifo", NULL, "EPERM"},
    {29, "real-time io priority is refused", "ioprio_rt", NULL, "EPERM"},
    {29, "the oom score cannot be lowered", "lower_oom_score", NULL, "EACCES|EPERM"},
    {29, "core scheduling cannot be changed", "core_scheduling", NULL, "EPERM"},
    {25, "process memory layout cannot be forged", "mm_forge", NULL, "EPERM"},

    /* C: memory and kernel interfaces */
    {34, "much locked memory is refused", "mlock_much", NULL, "ENOMEM|EPERM|EAGAIN"},
    {33, "a tebibyte may be reserved untouched", "reserve_tib", NULL, "ok"},
    {30, "hard limits cannot be raised", "raise_limit", NULL, "EPERM"},
    {44, "userfaultfd is refused", "userfaultfd", NULL, "EPERM"},
    {44, "io_uring is unknown", "io_uring", NULL, "ENOSYS"},
    {44, "bpf is refused", "bpf", NULL, "EPERM"},
    {44, "perf events are refused", "perf_event", NULL, "EPERM"},
    {44, "memfd_secret is unknown", "memfd_secret", NULL, "ENOSYS"},
    {44, "memfd_create works", "memfd_plain", NULL, "ok"},
    {44, "kexec is refused", "kexec", NULL, "EPERM"},
    {44, "modules are refused", "init_module", NULL, "EPERM"},
    {84, "the kernel log is refused", "syslog", NULL, "EPERM"},
    {44, "reboot is refused", "reboot", NULL, "EPERM"},
    {5, "swapon is refused", "swapon", NULL, "EPERM"},
    {44, "process accounting is refused", "acct", NULL, "EPERM"},
    {44, "an unknown system call is unknown", "unknown_syscall", NULL, "ENOSYS"},
    {44, "vmsplice is refused", "vmsplice", NULL, "EPERM"},
    {44, "NUMA placement is refused", "mbind", NULL, "EPERM"},

    /* D: files */
    {48, "more than the quota cannot be reserved", "fallocate", NULL, "ENOSPC", LOST},
    {47, "deep trees of long names are bounded", NULL,
     "mkdir deep && cd deep && /payload/payload deep; cd ..; rm -rf deep",
     "bounded ENOSPC|bounded ENAMETOOLONG|bounded EDQUOT", LOST},
    {56, "trusted attributes are refused", "trusted_xattr", NULL, "EPERM"},
    {9, "file capabilities are refused", "security_xattr", NULL, "EPERM"},
    {48, "unnamed temporary files work", "tmpfile", NULL, "ok"},
    {64, "the running program cannot be overwritten", "overwrite_self", NULL,
     "EROFS|ETXTBSY|EACCES"},
    {64, "init's program cannot be overwritten", "overwrite_init", NULL, "EACCES|EPERM"},
    {62, "file handles are refused", "name_to_handle", NULL, "EPERM"},
    {62, "opening by handle is refused", "open_by_handle", NULL, "EPERM"},
    {62, "fanotify is refused", "fanotify", NULL, "EPERM"},
    {63, "exactly three descriptors are inherited", NULL, "/payload/payload fds", "0 1 2 "},
    {63, "no descriptor leads further up than the root", NULL, "/payload/payload climb", "end"},
    {63, "the working directory is inside", NULL, "pwd -P; cd ../../../..; pwd -P | tr -d '\\n'",
     "/testbed\n/", LOST},
    {45, "a write to system files does not reach the host", NULL,
     "echo x >> /usr/bin/env; rm -f /usr/bin/env; echo end", "end"},
    {54, "a hard link to a system file crosses devices", NULL,
     "ln /usr/bin/env ./x 2>/dev/null && echo linked || echo refused", "refused"},
    {55, "a whiteout cannot be forged", NULL,
     "mknod /tmp/w c 0 0 2>/dev/null && echo made || echo refused", "refused"},
    {49, "no shadow file, no keys, no homes", NULL,
     "ls -d /etc/shadow /etc/ssh /root/.ssh /home/*/.ssh /var/lib/dpkg /boot /srv 2>/dev/null | wc "
     "-l",
     "0", LOST},
    {88, "the daemon's environment is nowhere", NULL,
     "cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c canary-5e1f", "0"},
    {66, "a crash leaves no core file", NULL,
     "sh -c 'kill -SEGV $$'; ls | grep -c core; find /tmp /testbed -name 'core*' | wc -l", "0\n0"},
    {5, "no control group can be reached", NULL,
     "grep -c cgroup /proc/self/mounts; ls /sys | wc -l", "0\n0", LOST},
    {66, "core dumps are off", NULL, "ulimit -c; ulimit -H -c", "0\n0"},
    {61, "mounts tell no path of the host's store", NULL, "grep -c assay-lab /proc/self/mountinfo",
     "0"},
    {65, "read-only mounts stay so", NULL,
     "echo x > /payload/x 2>/dev/null && echo written || echo refused", "refused"},
    {45, "the device directory cannot be written", NULL,
     "echo x > /dev/x 2>/dev/null && echo written || echo refused", "refused"},
    {57, "a chmod 000 tree is still ours", NULL,
     "mkdir -p t/u && chmod 000 t && chmod 700 t && rmdir t/u t && echo end", "end"},

    /* E: network */
    {71, "AF_VSOCK is refused", "vsock", NULL, "EAFNOSUPPORT"},
    {71, "AF_PACKET is refused", "packet", NULL, "EAFNOSUPPORT|EPERM"},
    {71, "AF_PACKET datagrams are refused", "packet_dgram", NULL, "EAFNOSUPPORT"},
    {71, "AF_ALG is refused", "alg", NULL, "EAFNOSUPPORT"},
    {71, "AF_XDP is refused", "xdp", NULL, "EAFNOSUPPORT"},
    {71, "AF_BLUETOOTH is refused", "bluetooth", NULL, "EAFNOSUPPORT"},
    {71, "raw sockets are refused", "raw_ip", NULL, "EPERM", "EAFNOSUPPORT"},
    {72, "MPTCP is refused", "mptcp", NULL, "EPROTONOSUPPORT", "EAFNOSUPPORT"},
    {71, "SCTP is refused", "sctp", NULL, "EPROTONOSUPPORT", "EAFNOSUPPORT"},
    {71, "route netlink works", "netlink_route", NULL, "ok", "EAFNOSUPPORT"},
    {71, "audit netlink is refused", "netlink_audit", NULL, "EPERM|EAFNOSUPPORT"},
    {71, "uevent netlink is refused", "netlink_uevent", NULL, "EPERM|EAFNOSUPPORT"},
    {71, "netfilter netlink is refused", "netlink_netfilter", NULL, "EPERM|EAFNOSUPPORT"},
    {68, "there is no socket to ping with", "ping_socket", NULL, "EACCES|EPERM", "EAFNOSUPPORT"},
    {71, "socket diagnosis is refused", "netlink_sock_diag", NULL, "EPERM|EAFNOSUPPORT",
     "EAFNOSUPPORT"},
    {71, "interfaces can be listed, and there is one", "interfaces", NULL, "ok", "EAFNOSUPPORT"},
    {68, "the world is unreachable", "connect_world", NULL, "ENETUNREACH", "EAFNOSUPPORT"},
    {68, "the world is unreachable over IPv6", "connect_world6", NULL, "ENETUNREACH|EADDRNOTAVAIL",
     "EAFNOSUPPORT"},
    {68, "the world is unreachable by datagram", "udp_world", NULL, "ENETUNREACH", "EAFNOSUPPORT"},
    {74, "the metadata service is unreachable", "metadata", NULL, "ENETUNREACH", "EAFNOSUPPORT"},
    {70, "IPv4 loopback works", "loopback4", NULL, "ok", LOST},
    {70, "IPv6 loopback works", "loopback6", NULL, "ok", LOST},
    {68, "only lo exists", NULL, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", "lo", LOST},
    {73, "name lookups fail at once", NULL, "timeout 2 getent hosts example.com; echo $?", "2"},

    /* F: terminals, keys, IPC, information */
    {77, "TIOCSTI is refused", "tiocsti", NULL, "EPERM"},
    {77, "TIOCSTI with high bits is refused", "tiocsti_high", NULL, "EPERM"},
    {77, "TIOCLINUX is refused", "tioclinux", NULL, "EPERM"},
    {77, "TIOCSETD is refused", "tiocsetd", NULL, "EPERM"},
    {78, "keyctl is refused", "keyctl", NULL, "EPERM"},
    {78, "add_key is refused", "add_key", NULL, "EPERM"},
    {78, "request_key is refused", "request_key", NULL, "EPERM"},
    {81, "open descriptors are bounded", NULL, "/payload/payload open_many", "bounded EMFILE"},
    {81, "watches and directories are bounded", NULL, "/payload/payload watch_many; rm -rf /tmp/w*",
     "bounded"},
    {81, "timers, counters, queues and semaphores are bounded", NULL, "/payload/payload objects",
     "bounded"},
    {83, "kallsyms tells nothing", NULL, "wc -c < /proc/kallsyms", "0", LOST},
    {83, "key tables tell nothing", NULL, "cat /proc/keys /proc/key-users | wc -c", "0", LOST},
    {83, "interrupts tell nothing", NULL, "wc -c < /proc/interrupts", "0", LOST},
    {83, "the kernel's memory image is closed", NULL, "head -c 1 /proc/kcore 2>/dev/null | wc -c",
     "0"},
    {85, "the uptime is the box's", NULL,
     "cut -d. -f1 /proc/uptime | awk '{print ($1 < 3600) ? \"young\" : \"old\"}'", "young", LOST},
    {59, "a lock on a system file can be had", "lock_system_file", NULL, "ok"},
    {67, "shared memory of an earlier command is gone", "shm_stay", NULL, "ok", "EPERM"},
    {67, "shared memory of an earlier command is gone (again)", "shm_stay", NULL, "ok", "EPERM"},
    {67, "semaphores of an earlier command are gone", "sem_stay", NULL, "ok", "EPERM"},
    {67, "semaphores of an earlier command are gone (again)", "sem_stay", NULL, "ok", "EPERM"},
};

static Box *boxes[2]; /* inside uid 0 and 1000 */
static const guint inside_uids[2] = {0, 1000};

static Box *box_for(int which)
{
    if (boxes[which] == NULL) {
        BoxSpec spec = lab_spec(inside_uids[which]);
        spec.slot = 100 + (guint)which;
        boxes[which] = lab_open(&spec);
    }
    return boxes[which];
}

static gboolean is_expected(const char *got, const char *expect)
{
    g_auto(GStrv) choices = g_strsplit(expect, "|", -1);
    return g_strv_contains((const char *const *)choices, got);
}

static void attempt(const Attack *attack, int which)
{
    const char *expect = lab_is_bare() && attack->bare != NULL ? attack->bare : attack->expect;
    if (g_str_equal(expect, LOST)) {
        g_test_skip(LOST);
        return;
    }
    Box *box = box_for(which);
    g_autofree char *before = lab_host_picture();
    g_auto(BoxResult) result = {0};
    g_autofree char *got = attack->word != NULL ? lab_try(box, attack->word, &result)
                                                : lab_sh(box, attack->line, &result);
    if (result.outcome != BOX_EXITED || !is_expected(got, expect))
        g_test_fail_printf("%s: expected %s, got %s (%s)", attack->name, expect, got,
                           box_outcome_str(result.outcome));
    g_autofree char *after = lab_host_picture();
    if (!g_str_equal(before, after))
        g_test_fail_printf("%s: the host changed from\n%s\nto\n%s", attack->name, before, after);
}

static void as_root_inside(gconstpointer data)
{
    attempt(data, 0);
}

static void as_user_inside(gconstpointer data)
{
    attempt(data, 1);
}

/* The filter kills foreign system call tables, and nothing else. */
static void foreign_syscall_tables_are_killed(void)
{
    static const char *const words[] = {"x32", "int80"};
    for (gsize i = 0; i < G_N_ELEMENTS(words); i++) {
        g_auto(BoxResult) result = {0};
        g_autofree char *got = lab_try(box_for(1), words[i], &result);
#ifdef __x86_64__
        g_assert_cmpint(result.outcome, ==, BOX_SIGNALED);
        g_assert_cmpint(result.signal, ==, SIGSYS);
#endif
    }
}

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    for (gsize i = 0; i < G_N_ELEMENTS(attacks); i++) {
        g_autofree char *zero = g_strdup_printf("/attack/uid0/%s", attacks[i].name);
        g_autofree char *user = g_strdup_printf("/attack/uid1000/%s", attacks[i].name);
        if (!lab_is_bare()) /* there ids are not ours to choose */
            g_test_add_data_func(zero, &attacks[i], as_root_inside);
        g_test_add_data_func(user, &attacks[i], as_user_inside);
    }
    g_test_add_func("/attack/foreign system call tables are killed",
                    foreign_syscall_tables_are_killed);
    int status = g_test_run();
    box_close(boxes[0]);
    box_close(boxes[1]);
    return lab_end(status);
}
