/*
 * One attempt to get out, to see or to change per row: what the attacker sees, and that the host
 * is as it was.
 */
#include "tests/sandbox/lab.h"

#include <signal.h>

typedef struct Attack {
    const char *name;   /* a sentence */
    const char *word;   /* payload sub-command, or NULL */
    const char *line;   /* shell line, when there is no word */
    const char *expect; /* alternatives separated by | */
} Attack;

static const Attack attacks[] = {
    /* A: namespaces, ids, capabilities */
    {"a user namespace cannot be unshared", "unshare_user", NULL, "EPERM"},
    {"a mount namespace cannot be unshared", "unshare_mnt", NULL, "EPERM"},
    {"a network namespace cannot be unshared", "unshare_net", NULL, "EPERM"},
    {"clone makes no user namespace", "clone_user", NULL, "EPERM"},
    {"clone makes no pid namespace", "clone_pid", NULL, "EPERM"},
    {"clone3 is unknown", "clone3_user", NULL, "ENOSYS"},
    {"clone makes processes", "clone_plain", NULL, "ok"},
    {"setns refuses the user namespace", "setns_user", NULL, "EPERM"},
    {"setns refuses the mount namespace", "setns_mnt", NULL, "EPERM"},
    {"setns refuses the network namespace", "setns_net", NULL, "EPERM"},
    {"setns refuses the pid namespace", "setns_pid", NULL, "EPERM"},
    {"mount is refused", "mount", NULL, "EPERM"},
    {"umount is refused", "umount", NULL, "EPERM"},
    {"remount is refused", "remount", NULL, "EPERM"},
    {"pivot_root is refused", "pivot_root", NULL, "EPERM"},
    {"chroot is refused", "chroot", NULL, "EPERM"},
    {"open_tree is refused", "open_tree", NULL, "EPERM"},
    {"fsopen is refused", "fsopen", NULL, "EPERM"},
    {"move_mount is refused", "move_mount", NULL, "EPERM"},
    {"mount_setattr is refused", "mount_setattr", NULL, "EPERM"},
    {"core_pattern cannot be opened for writing", "core_pattern", NULL, "EROFS|EACCES"},
    {"the modprobe path cannot be opened for writing", "modprobe_path", NULL,
     "EROFS|EACCES|ENOENT"},
    {"the overcommit sysctl cannot be opened for writing", "overcommit", NULL, "EROFS|EACCES"},
    {"network sysctls cannot be opened for writing", "net_sysctl", NULL, "EROFS|EACCES"},
    {"sysrq cannot be triggered", "sysrq", NULL, "EROFS|EACCES|ENOENT"},
    {"no id map line maps the host's root", NULL,
     "awk '$2 == 0 {print \"host root\"}' /proc/self/uid_map /proc/self/gid_map; echo end", "end"},
    {"all five capability sets are empty", NULL,
     "grep -c '^Cap.*:.0000000000000000$' /proc/self/status", "5"},
    {"no_new_privs and the filter are on", NULL,
     "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t\\n'",
     "NoNewPrivs:1Seccomp:2"},
    {"files of the host's root have no owner with power here", NULL, "stat -c %u /dev/null",
     "65534"},
    {"no character device can be made", "mknod_char", NULL, "EPERM|EACCES"},
    {"no block device can be made", "mknod_block", NULL, "EPERM|EACCES"},
    {"other uids cannot be taken", "setuid_other", NULL, "EPERM|EINVAL"},
    {"supplementary groups cannot be set", "setgroups_some", NULL, "EPERM"},
    {"the host name cannot be set", "sethostname", NULL, "EPERM"},
    {"the host name is fixed", NULL, "uname -n", "sandbox"},
    {"the clock cannot be set", "settime", NULL, "EPERM"},
    {"the clock cannot be tuned", "adjtimex", NULL, "EPERM"},
    {"nosuid and nodev hold on every writable mount", NULL,
     "awk '$4 ~ /^rw/ && $3 != \"proc\" && $3 != \"devpts\" && $2 !~ /^\\/(dev|proc)\\// && $4 !~ "
     "/nosuid/' /proc/self/mounts | wc -l",
     "0"},

    /* B: processes and signals */
    {"init cannot be killed", "kill_init", NULL, "ok|EPERM"},
    {"init cannot be stopped", "stop_init", NULL, "ok|EPERM"},
    {"no host pid can be signalled", "kill_host_pids", NULL, "ESRCH"},
    {"init cannot be traced", "ptrace_init", NULL, "EPERM"},
    {"tracing is refused altogether", "ptrace_traceme", NULL, "EPERM"},
    {"init's memory cannot be read", "read_init", NULL, "EPERM"},
    {"init's descriptors cannot be taken", "pidfd_getfd", NULL, "EPERM"},
    {"kcmp is refused", "kcmp", NULL, "EPERM"},
    {"init's limits cannot be changed", "prlimit_init", NULL, "EPERM"},
    {"init's environment is closed", "init_environ", NULL, "EACCES|EPERM"},
    {"init's memory file is closed", "init_mem", NULL, "EACCES|EPERM"},
    {"init's map is closed", "init_maps", NULL, "EACCES|EPERM"},
    {"init's root is closed", "init_root", NULL, "EACCES|EPERM"},
    {"init's descriptor directory is closed", "init_fd", NULL, "EACCES|EPERM"},
    {"init's program is closed", "init_exe", NULL, "EACCES|EPERM"},
    {"init's command line is one fixed word", NULL, "tr '\\0' '.' < /proc/1/cmdline", "assay-box."},
    {"only the box's processes are seen", NULL, "ls /proc | grep -c '^[0-9]'", "4|5"},
    {"READ_IMPLIES_EXEC is refused", "read_implies_exec", NULL, "EPERM"},
    {"address randomisation cannot be switched off", "no_aslr", NULL, "EPERM"},
    {"asking for the personality is allowed", "personality_ask", NULL, "ok"},
    {"niceness cannot be lowered", "nice_up", NULL, "EACCES|EPERM"},
    {"real-time scheduling is refused", "sched_fifo", NULL, "EPERM"},
    {"real-time io priority is refused", "ioprio_rt", NULL, "EPERM"},
    {"the oom score cannot be lowered", "lower_oom_score", NULL, "EACCES|EPERM"},
    {"core scheduling cannot be changed", "core_scheduling", NULL, "EPERM"},
    {"process memory layout cannot be forged", "mm_forge", NULL, "EPERM"},

    /* C: memory and kernel interfaces */
    {"much locked memory is refused", "mlock_much", NULL, "ENOMEM|EPERM|EAGAIN"},
    {"a tebibyte may be reserved untouched", "reserve_tib", NULL, "ok"},
    {"hard limits cannot be raised", "raise_limit", NULL, "EPERM"},
    {"userfaultfd is refused", "userfaultfd", NULL, "EPERM"},
    {"io_uring is unknown", "io_uring", NULL, "ENOSYS"},
    {"bpf is refused", "bpf", NULL, "EPERM"},
    {"perf events are refused", "perf_event", NULL, "EPERM"},
    {"memfd_secret is unknown", "memfd_secret", NULL, "ENOSYS"},
    {"memfd_create works", "memfd_plain", NULL, "ok"},
    {"kexec is refused", "kexec", NULL, "EPERM"},
    {"modules are refused", "init_module", NULL, "EPERM"},
    {"the kernel log is refused", "syslog", NULL, "EPERM"},
    {"reboot is refused", "reboot", NULL, "EPERM"},
    {"swapon is refused", "swapon", NULL, "EPERM"},
    {"process accounting is refused", "acct", NULL, "EPERM"},
    {"an unknown system call is unknown", "unknown_syscall", NULL, "ENOSYS"},
    {"vmsplice is refused", "vmsplice", NULL, "EPERM"},
    {"NUMA placement is refused", "mbind", NULL, "EPERM"},

    /* D: files */
    {"trusted attributes are refused", "trusted_xattr", NULL, "EPERM"},
    {"file capabilities are refused", "security_xattr", NULL, "EPERM"},
    {"unnamed temporary files work", "tmpfile", NULL, "ok"},
    {"the running program cannot be overwritten", "overwrite_self", NULL, "EROFS|ETXTBSY|EACCES"},
    {"init's program cannot be overwritten", "overwrite_init", NULL, "EACCES|EPERM"},
    {"file handles are refused", "name_to_handle", NULL, "EPERM"},
    {"opening by handle is refused", "open_by_handle", NULL, "EPERM"},
    {"fanotify is refused", "fanotify", NULL, "EPERM"},
    {"exactly three descriptors are inherited", NULL, "/payload/payload fds", "0 1 2 "},
    {"the working directory is inside", NULL, "pwd -P; cd ../../../..; pwd -P | tr -d '\\n'",
     "/testbed\n/"},
    {"a write to system files does not reach the host", NULL,
     "echo x >> /usr/bin/env; rm -f /usr/bin/env; echo end", "end"},
    {"a hard link to a system file crosses devices", NULL,
     "ln /usr/bin/env ./x 2>/dev/null && echo linked || echo refused", "refused"},
    {"a whiteout cannot be forged", NULL,
     "mknod /tmp/w c 0 0 2>/dev/null && echo made || echo refused", "refused"},
    {"no shadow file, no keys, no homes", NULL,
     "ls -d /etc/shadow /etc/ssh /root/.ssh /home/*/.ssh /var/lib/dpkg /boot /srv 2>/dev/null | wc "
     "-l",
     "0"},
    {"the daemon's environment is nowhere", NULL,
     "cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c canary-5e1f", "0"},
    {"core dumps are off", NULL, "ulimit -c; ulimit -H -c", "0\n0"},
    {"mounts tell no path of the host's store", NULL, "grep -c assay-lab /proc/self/mountinfo",
     "0"},
    {"read-only mounts stay so", NULL,
     "echo x > /payload/x 2>/dev/null && echo written || echo refused", "refused"},
    {"the device directory cannot be written", NULL,
     "echo x > /dev/x 2>/dev/null && echo written || echo refused", "refused"},
    {"a chmod 000 tree is still ours", NULL,
     "mkdir -p t/u && chmod 000 t && chmod 700 t && rmdir t/u t && echo end", "end"},

    /* E: network */
    {"AF_VSOCK is refused", "vsock", NULL, "EAFNOSUPPORT"},
    {"AF_PACKET is refused", "packet", NULL, "EAFNOSUPPORT|EPERM"},
    {"AF_PACKET datagrams are refused", "packet_dgram", NULL, "EAFNOSUPPORT"},
    {"AF_ALG is refused", "alg", NULL, "EAFNOSUPPORT"},
    {"AF_XDP is refused", "xdp", NULL, "EAFNOSUPPORT"},
    {"AF_BLUETOOTH is refused", "bluetooth", NULL, "EAFNOSUPPORT"},
    {"raw sockets are refused", "raw_ip", NULL, "EPERM"},
    {"MPTCP is refused", "mptcp", NULL, "EPROTONOSUPPORT"},
    {"SCTP is refused", "sctp", NULL, "EPROTONOSUPPORT"},
    {"route netlink works", "netlink_route", NULL, "ok"},
    {"audit netlink is refused", "netlink_audit", NULL, "EPERM|EAFNOSUPPORT"},
    {"uevent netlink is refused", "netlink_uevent", NULL, "EPERM|EAFNOSUPPORT"},
    {"netfilter netlink is refused", "netlink_netfilter", NULL, "EPERM|EAFNOSUPPORT"},
    {"the world is unreachable", "connect_world", NULL, "ENETUNREACH"},
    {"the world is unreachable over IPv6", "connect_world6", NULL, "ENETUNREACH|EADDRNOTAVAIL"},
    {"the world is unreachable by datagram", "udp_world", NULL, "ENETUNREACH"},
    {"the metadata service is unreachable", "metadata", NULL, "ENETUNREACH"},
    {"IPv4 loopback works", "loopback4", NULL, "ok"},
    {"IPv6 loopback works", "loopback6", NULL, "ok"},
    {"only lo exists", NULL, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", "lo"},
    {"name lookups fail at once", NULL, "timeout 2 getent hosts example.com; echo $?", "2"},

    /* F: terminals, keys, IPC, information */
    {"TIOCSTI is refused", "tiocsti", NULL, "EPERM"},
    {"TIOCSTI with high bits is refused", "tiocsti_high", NULL, "EPERM"},
    {"TIOCLINUX is refused", "tioclinux", NULL, "EPERM"},
    {"TIOCSETD is refused", "tiocsetd", NULL, "EPERM"},
    {"keyctl is refused", "keyctl", NULL, "EPERM"},
    {"add_key is refused", "add_key", NULL, "EPERM"},
    {"request_key is refused", "request_key", NULL, "EPERM"},
    {"open descriptors are bounded", NULL, "/payload/payload open_many", "bounded EMFILE"},
    {"watches and directories are bounded", NULL, "/payload/payload watch_many; rm -rf /tmp/w*",
     "bounded"},
    {"kallsyms tells nothing", NULL, "wc -c < /proc/kallsyms", "0"},
    {"key tables tell nothing", NULL, "cat /proc/keys /proc/key-users | wc -c", "0"},
    {"interrupts tell nothing", NULL, "wc -c < /proc/interrupts", "0"},
    {"the kernel's memory image is closed", NULL, "head -c 1 /proc/kcore 2>/dev/null | wc -c", "0"},
    {"the uptime is the box's", NULL,
     "cut -d. -f1 /proc/uptime | awk '{print ($1 < 3600) ? \"young\" : \"old\"}'", "young"},
    {"a lock on a system file can be had", "lock_system_file", NULL, "ok"},
    {"shared memory of an earlier command is gone", "shm_stay", NULL, "ok"},
    {"shared memory of an earlier command is gone (again)", "shm_stay", NULL, "ok"},
    {"semaphores of an earlier command are gone", "sem_stay", NULL, "ok"},
    {"semaphores of an earlier command are gone (again)", "sem_stay", NULL, "ok"},
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
    Box *box = box_for(which);
    g_autofree char *before = lab_host_picture();
    g_auto(BoxResult) result = {0};
    g_autofree char *got = attack->word != NULL ? lab_try(box, attack->word, &result)
                                                : lab_sh(box, attack->line, &result);
    if (result.outcome != BOX_EXITED || !is_expected(got, attack->expect))
        g_test_fail_printf("%s: expected %s, got %s (%s)", attack->name, attack->expect, got,
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
        g_autofree char *got = lab_try(box_for(0), words[i], &result);
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
