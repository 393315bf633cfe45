/*
 * Checks of namespaces, mounts and system calls: each is tried, in a child where it has effects.
 *
 * Invariants:
 *   1. Nothing is inferred from a kernel version.
 *   2. Nothing outside the child's own namespaces is changed.
 *   3. Between fork and exit a child makes system calls only: this process may have threads.
 *
 * Not here: groups (probe_cgroup.c), what a whole box says (probe.c).
 */
#include "sandbox/probe.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/box_ids.h"
#include "sandbox/filter.h"
#include "sandbox/image.h"
#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>

static int write_proc(pid_t pid, const char *name, const char *text)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/%s", (int)pid, name);
    AUTO_FD fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, text, strlen(text)) >= 0 ? 0 : errno;
}

/* As a box's: a range of ids, or our own id alone. */
static int write_maps(pid_t pid)
{
    BoxIds ids;
    if (!box_ids_choose(PROBE_SLOT, 0, 0, FALSE, &ids, NULL))
        return EPERM;
    const SpecMap *maps[] = {&ids.uids, &ids.gids};
    int err = ids.mode == BOX_IDS_SINGLE ? write_proc(pid, "setgroups", "deny") : 0;
    for (int i = 0; err == 0 && i < 2; i++) {
        const guint32 *line = maps[i]->lines[0];
        g_autofree char *text = g_strdup_printf("%u %u %u\n", line[0], line[1], line[2]);
        err = write_proc(pid, i == 0 ? "uid_map" : "gid_map", text);
    }
    return err;
}

static void child_main(guint64 flags, int go_fd, int (*fn)(void)) G_GNUC_NORETURN;
static void child_main(guint64 flags, int go_fd, int (*fn)(void))
{
    char byte;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (read(go_fd, &byte, 1) != 1)
        _exit(ECANCELED);
    if ((flags & KERNEL_CLONE_NEWUSER) && (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0))
        _exit(errno);
    if (fn != NULL && (flags & KERNEL_CLONE_NEWNS) &&
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        _exit(errno);
    _exit(fn != NULL && fn() < 0 ? errno : 0);
}

int probe_try(guint64 flags, int cgroup_fd, int (*fn)(void))
{
    int go[2], status = 0, err = 0;
    struct kernel_clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
    if (cgroup_fd >= 0) {
        args.flags |= KERNEL_CLONE_INTO_CGROUP;
        args.cgroup = (guint64)cgroup_fd;
    }
    if (pipe2(go, O_CLOEXEC) < 0)
        return errno;
    pid_t pid = kernel_clone3(&args);
    if (pid == 0) {
        close(go[1]);
        child_main(flags, go[0], fn);
    }
    err = pid < 0 ? errno : 0;
    close(go[0]);
    if (pid > 0 && (flags & KERNEL_CLONE_NEWUSER))
        err = write_maps(pid);
    if (pid > 0 && err == 0)
        (void)!write(go[1], "", 1);
    close(go[1]);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return err != 0 || pid < 0 ? err : WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

/* ---- namespaces ---- */

typedef struct Namespace {
    const char *word; /* of user.max_WORD_namespaces and of what is said */
    guint64 flag;
    const char *config;
    ProbeStatus without;
} Namespace;

static gboolean is_zero(const char *path)
{
    g_autofree char *text = probe_line(path);
    return text != NULL && g_str_equal(text, "0");
}

/* Why a user namespace may not be made, where the kernel says EPERM. */
static void fix_refused_user(Probe *ret)
{
    g_autofree char *apparmor =
        probe_line("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
    if (is_zero("/proc/sys/kernel/unprivileged_userns_clone"))
        probe_fix(ret, "sysctl -w kernel.unprivileged_userns_clone=1");
    else if (apparmor != NULL && g_str_equal(apparmor, "1"))
        probe_fix(ret, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor "
                       "profile with userns for the programs of Assay");
    else
        probe_fix(ret, PROBE_FIX_CONTAINER);
}

static void fix_namespace(const Namespace *ns, int err, Probe *ret)
{
    if (err == ENOSPC)
        probe_fix(ret, "sysctl -w user.max_%s_namespaces=15000", ns->word);
    else if (err == EINVAL)
        probe_fix(ret, "a kernel with %s is needed", ns->config);
    else if (err == ENOSYS)
        probe_fix(ret, "the call clone3 is refused, by a filter or by a Linux older than "
                       "5.3; " PROBE_FIX_CONTAINER);
    else if (ns->flag == KERNEL_CLONE_NEWUSER)
        fix_refused_user(ret);
    else
        probe_fix(ret, PROBE_FIX_CONTAINER);
}

static void check_namespace(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    const Namespace *ns = arg;
    int err = probe_try(KERNEL_CLONE_NEWUSER | ns->flag, -1, NULL);
    if (err == 0) {
        probe_say(ret, PROBE_OK, "a new %s namespace can be made", ns->word);
        return;
    }
    if (ns->flag != KERNEL_CLONE_NEWUSER && probe_try(KERNEL_CLONE_NEWUSER, -1, NULL) != 0) {
        probe_say(ret, ns->without, "needs a user namespace");
        probe_fix(ret, "mend ns_user first");
        return;
    }
    probe_say(ret, ns->without, "no new %s namespace: %s", ns->word, g_strerror(err));
    fix_namespace(ns, err, ret);
}

/* ---- mounts ---- */

static int try_proc(void)
{
    return mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

static int try_tmpfs(void)
{
    return mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m") < 0 ? -1
                                                                                : chdir("/tmp");
}

static int try_overlay(void)
{
    static const char *const dirs[] = {"l", "u", "w", "m"};
    if (try_tmpfs() < 0)
        return -1;
    for (gsize i = 0; i < G_N_ELEMENTS(dirs); i++)
        if (mkdir(dirs[i], 0755) < 0)
            return -1;
    return mount("overlay", "m", "overlay", 0, "userxattr,lowerdir=l,upperdir=u,workdir=w");
}

static int try_xattr(void)
{
    if (try_tmpfs() < 0 || mkdir("d", 0755) < 0)
        return -1;
    return setxattr("d", "user.assay", "x", 1, 0);
}

gboolean probe_has_tmpfs_xattr(void)
{
    static gsize known; /* 1: no, 2: yes */
    if (g_once_init_enter(&known)) {
        int err = probe_try(KERNEL_CLONE_NEWUSER | KERNEL_CLONE_NEWNS, -1, try_xattr);
        g_once_init_leave(&known, err == 0 ? 2 : 1);
    }
    return known == 2;
}

static int try_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return sock < 0 ? -1 : ioctl(sock, SIOCSIFFLAGS, &request);
}

typedef struct Experiment {
    guint64 flags;
    int (*fn)(void);
    const char *ok, *bad;
    ProbeStatus without;
    const struct {
        int err; /* 0: any */
        const char *fix;
    } fixes[3];
} Experiment;

static void check_experiment(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    const Experiment *experiment = arg;
    if (probe_try(KERNEL_CLONE_NEWUSER | experiment->flags, -1, NULL) != 0) {
        probe_say(ret, experiment->without, "needs namespaces that cannot be made");
        probe_fix(ret, "mend the namespaces first");
        return;
    }
    int err = probe_try(KERNEL_CLONE_NEWUSER | experiment->flags, -1, experiment->fn);
    if (err == 0) {
        probe_say(ret, PROBE_OK, "%s", experiment->ok);
        return;
    }
    probe_say(ret, experiment->without, "%s: %s", experiment->bad, g_strerror(err));
    for (gsize i = 0; i < G_N_ELEMENTS(experiment->fixes); i++)
        if (experiment->fixes[i].fix != NULL &&
            (experiment->fixes[i].err == err ||
             (experiment->fixes[i].err == 0 && ret->fixes->len == 0)))
            probe_fix(ret, "%s", experiment->fixes[i].fix);
}

static const Experiment proc_experiment = {
    KERNEL_CLONE_NEWNS | KERNEL_CLONE_NEWPID,
    try_proc,
    "a private /proc can be mounted",
    "no private /proc",
    PROBE_FAIL,
    {{EPERM, "parts of /proc are covered, as container engines do: docker run --security-opt "
             "systempaths=unconfined ..., procMount: Unmasked in Kubernetes, or --privileged"},
     {0, "a kernel with CONFIG_PROC_FS and CONFIG_PID_NS is needed"}}};

static const Experiment overlay_experiment = {
    KERNEL_CLONE_NEWNS,
    try_overlay,
    "overlays can be mounted in a user namespace",
    "no overlay",
    PROBE_FAIL,
    {{ENODEV, "modprobe overlay"},
     {EPERM, "Linux 5.11 or newer mounts overlays in user namespaces"},
     {0, "a kernel with CONFIG_OVERLAY_FS, 5.11 or newer, is needed"}}};

static const Experiment xattr_experiment = {
    KERNEL_CLONE_NEWNS,
    try_xattr,
    "tmpfs has user xattrs: directories of lower layers can be removed",
    "tmpfs has no user xattrs: directories of lower layers cannot be removed (EIO)",
    PROBE_WARN,
    {{0, "Linux 6.6 or newer, or uppers on a disk (assay box run --keep-upper DIR)"}}};

static const Experiment loopback_experiment = {
    KERNEL_CLONE_NEWNET,   try_loopback, "loopback of a new network can be brought up",
    "loopback stays down", PROBE_FAIL,   {{0, PROBE_FIX_CONTAINER}}};

/* ---- ids ---- */

static void check_ids(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    (void)arg;
    BoxIds ids;
    g_autoptr(GError) error = NULL;
    if (!box_ids_choose(PROBE_SLOT, 1000, 1000, FALSE, &ids, &error)) {
        probe_say(ret, PROBE_FAIL, "%s", error->message);
        probe_fix(ret, "run as an ordinary user, or as root of a user namespace without the "
                       "host's root in it");
    } else if (ids.mode == BOX_IDS_SINGLE) {
        probe_say(ret, PROBE_WARN, "single: boxes share uid %u", geteuid());
        probe_fix(ret, "run the daemon as root: boxes then get unprivileged id ranges of their "
                       "own");
    } else {
        probe_say(ret, PROBE_OK, "a range of 65536 ids per slot from %u", box_store_uid());
    }
}

/* Shows the directory as a box would see it; nothing is attached anywhere. */
static void check_idmap(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    const char *path = arg;
    BoxIds ids;
    struct statfs fs;
    g_autoptr(GError) error = NULL;
    AUTO_FD dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (!box_ids_choose(PROBE_SLOT, 1000, 1000, FALSE, &ids, &error) || ids.mode != BOX_IDS_RANGE) {
        probe_say(ret, PROBE_OK, "not used with a single id");
        return;
    }
    gboolean wants_tmpfs = !g_str_equal(path, "/usr");
    if (dir < 0 || fstatfs(dir, &fs) < 0 || (wants_tmpfs && fs.f_type != TMPFS_MAGIC)) {
        probe_say(ret, PROBE_OK, "no such file system at %s to try", path);
        return;
    }
    Starter *starter = launch_starter(PROBE_SLOT, &error);
    AUTO_FD shown = starter == NULL ? -1 : box_ids_show(&ids, starter, dir, BOX_DIR_SYSTEM, &error);
    if (shown >= 0) {
        probe_say(ret, PROBE_OK, "%s can be shown with other owners", path);
        return;
    }
    probe_say(ret, PROBE_WARN, "%s: %s; boxes of all slots share one id range", path,
              error->message);
    probe_fix(ret, "%s",
              wants_tmpfs ? "Linux 6.3 or newer maps ids of tmpfs; else keep the state "
                            "directory on ext4, xfs or btrfs"
                          : "keep /usr and the state directory on ext4, xfs or btrfs, "
                            "with Linux 5.12 or newer");
}

/* ---- system calls ---- */

static void check_seccomp(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    (void)arg;
    g_autoptr(GError) error = NULL;
    guint32 action = SECCOMP_RET_ERRNO;
    GBytes *filter = filter_build(FILTER_BOX, &error);
    if (filter == NULL) {
        probe_say(ret, PROBE_FAIL, "%s", error->message);
        probe_fix(ret, "install libseccomp 2.5 or newer");
    } else if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) < 0) {
        probe_say(ret, PROBE_FAIL, "the kernel refuses filters: %s", g_strerror(errno));
        probe_fix(ret, "a kernel with CONFIG_SECCOMP_FILTER is needed");
    } else {
        probe_say(ret, PROBE_OK, "%" G_GSIZE_FORMAT " instructions", g_bytes_get_size(filter) / 8);
    }
}

static void check_landlock(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    (void)arg;
    int abi = kernel_landlock_abi();
    if (abi >= 6) {
        probe_say(ret, PROBE_OK, "ABI %d, errata aside", abi);
        return;
    }
    if (abi > 0)
        probe_say(ret, PROBE_WARN, "ABI %d: no signal and socket scopes", abi);
    else
        probe_say(ret, PROBE_WARN, "absent or not enabled: %s", g_strerror(errno));
    probe_fix(ret, "%s",
              abi > 0 ? "Linux 6.12 or newer adds the scopes"
                      : "boot with lsm=landlock added, on Linux 5.13 or newer");
}

static int call_openat2(void)
{
    return kernel_openat2(AT_FDCWD, "/", O_PATH | O_CLOEXEC, 0, KERNEL_RESOLVE_NO_SYMLINKS);
}

static int call_pidfd(void)
{
    return (int)syscall(SYS_pidfd_open, getpid(), 0);
}

static int call_close_range(void)
{
    return kernel_close_range(~0u, ~0u, KERNEL_CLOSE_RANGE_CLOEXEC);
}

/* Whoever may not clone a tree is told EPERM; a kernel without the call says ENOSYS. */
static int call_open_tree(void)
{
    return kernel_open_tree(AT_FDCWD, "/", KERNEL_OPEN_TREE_CLOEXEC);
}

typedef struct Call {
    int (*fn)(void);
    const char *name, *since;
} Call;

static void check_call(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    const Call *call = arg;
    int r = call->fn();
    if (r > 0)
        close(r);
    if (r >= 0) {
        probe_say(ret, PROBE_OK, "%s works", call->name);
        return;
    }
    probe_say(ret, PROBE_FAIL, "%s: %s", call->name, g_strerror(errno));
    probe_fix(ret,
              "Linux %s or newer is needed, and a container filter that allows it: "
              "docker run --security-opt seccomp=unconfined ...",
              call->since);
}

static void check_core_pattern(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    (void)arg;
    g_autofree char *pattern = probe_line("/proc/sys/kernel/core_pattern");
    if (pattern == NULL || pattern[0] != '|') {
        probe_say(ret, PROBE_OK, "core dumps are files: the limit of 0 holds");
        return;
    }
    probe_say(ret, PROBE_WARN, "core dumps are piped to a program of the host");
    probe_fix(ret, "sysctl -w kernel.core_pattern=core, or accept that crashes in boxes are seen "
                   "by the host's crash handler");
}

static void check_erofs(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    (void)arg;
    g_autoptr(GError) error = NULL;
    if (image_erofs_check(&error)) {
        probe_say(ret, PROBE_OK, "images can be one read-only file (assay image erofs)");
        return;
    }
    probe_say(ret, PROBE_WARN, "images stay stacks of layers: %s", error->message);
    probe_fix(ret, "as root, with the package erofs-utils, on Linux 6.15 or newer with erofs; "
                   "layers hold the same");
}

/* clang-format off */
static const Namespace ns_user = {"user", KERNEL_CLONE_NEWUSER, "CONFIG_USER_NS", PROBE_FAIL},
    ns_mnt = {"mnt", KERNEL_CLONE_NEWNS, "CONFIG_NAMESPACES", PROBE_FAIL},
    ns_pid = {"pid", KERNEL_CLONE_NEWPID, "CONFIG_PID_NS", PROBE_FAIL},
    ns_net = {"net", KERNEL_CLONE_NEWNET, "CONFIG_NET_NS", PROBE_FAIL},
    ns_ipc = {"ipc", KERNEL_CLONE_NEWIPC, "CONFIG_IPC_NS", PROBE_FAIL},
    ns_uts = {"uts", KERNEL_CLONE_NEWUTS, "CONFIG_UTS_NS", PROBE_FAIL},
    ns_cgroup = {"cgroup", KERNEL_CLONE_NEWCGROUP, "CONFIG_CGROUPS", PROBE_FAIL},
    ns_time = {"time", KERNEL_CLONE_NEWTIME, "CONFIG_TIME_NS", PROBE_WARN};
static const Call openat2_call = {call_openat2, "openat2", "5.6"},
    pidfd_call = {call_pidfd, "pidfd_open", "5.3"},
    close_range_call = {call_close_range, "close_range", "5.11"},
    mount_call = {call_open_tree, "open_tree", "5.2"};

const ProbeCheck probe_host_checks[] = {
    {"ns_user", check_namespace, &ns_user},
    {"ns_mnt", check_namespace, &ns_mnt},
    {"ns_pid", check_namespace, &ns_pid},
    {"ns_net", check_namespace, &ns_net},
    {"ns_ipc", check_namespace, &ns_ipc},
    {"ns_uts", check_namespace, &ns_uts},
    {"ns_cgroup", check_namespace, &ns_cgroup},
    {"ns_time", check_namespace, &ns_time},
    {"ids", check_ids, NULL},
    {"idmap_disk", check_idmap, "/usr"},
    {"idmap_tmpfs", check_idmap, "/dev/shm"},
    {"proc", check_experiment, &proc_experiment},
    {"overlay", check_experiment, &overlay_experiment},
    {"overlay_xattr", check_experiment, &xattr_experiment},
    {"loopback", check_experiment, &loopback_experiment},
    {"seccomp", check_seccomp, NULL},
    {"landlock", check_landlock, NULL},
    {"openat2", check_call, &openat2_call},
    {"pidfd", check_call, &pidfd_call},
    {"close_range", check_call, &close_range_call},
    {"mount_api", check_call, &mount_call},
    {"core_pattern", check_core_pattern, NULL},
    {"erofs", check_erofs, NULL},
    {NULL, NULL, NULL},
};
/* clang-format on */
