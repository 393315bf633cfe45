/*
 * assay-erofs UID N BYTES: becomes mkfs.erofs over the merge of N layers.
 *
 * Descriptors: 3 is the directory that gets the file, 4 and on are the layers, topmost first. What
 * a box's command never has, this program needs: a capability, to read what only other users of the
 * image may. So it is none, and confines itself: a root of its own that holds the host's programs,
 * the merge and the directory, no network, the store's uid, that one capability, the box's filter.
 *
 * Invariants:
 *   1. Nothing reads the tree before all of that is done.
 *   2. The merge is mounted read-only, and no process of a box can write to its layers.
 *   3. The file is at most BYTES long.
 *
 * Not here: who may mount the file, and when (image_erofs.c).
 */
#include "sandbox/filter.h"
#include "sandbox/image.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define TOP         "/tmp" /* of our own mount namespace */
#define CPU_SECONDS 3600
#define OUT_FD      3
#define ATTRS       (KERNEL_MOUNT_ATTR_RDONLY | KERNEL_MOUNT_ATTR_NOSUID | KERNEL_MOUNT_ATTR_NODEV)

static int clone_dir(int dir_fd, const char *path)
{
    return kernel_open_tree(
        dir_fd, path, KERNEL_OPEN_TREE_CLONE | KERNEL_OPEN_TREE_CLOEXEC | KERNEL_AT_EMPTY_PATH);
}

/* A detached overlay of the layers; one without an upper has at least two lowers. */
static int mount_merge(guint n_layers)
{
    AUTO_FD empty_fs = kernel_fsopen("tmpfs");
    AUTO_FD empty = empty_fs < 0 ? -1 : kernel_fsmount(empty_fs, ATTRS);
    AUTO_FD fs = empty < 0 ? -1 : kernel_fsopen("overlay");
    gboolean ok = fs >= 0 && kernel_fs_flag(fs, "userxattr") == 0;
    for (guint i = 0; ok && i <= n_layers; i++) {
        g_autofree char *path =
            g_strdup_printf("/proc/self/fd/%d", i < n_layers ? OUT_FD + 1 + (int)i : empty);
        ok = kernel_fs_option(fs, "lowerdir+", path) == 0;
    }
    return ok ? kernel_fsmount(fs, ATTRS | KERNEL_MOUNT_ATTR_NOEXEC) : -1;
}

static gboolean attach(int tree, const char *at, guint64 attrs, GError **error)
{
    struct kernel_mount_attr attr = {.attr_set = attrs};
    g_autofree char *path = g_strconcat(TOP, at, NULL);
    AUTO_FD to = mkdir(path, 0755) < 0 ? -1 : open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return (to >= 0 && tree >= 0 && kernel_mount_setattr(tree, 0, &attr) == 0 &&
            kernel_move_mount(tree, to) == 0) ||
           error_set_errno(error, errno, "attach %s", at);
}

/* The directories are opened in the host's mount namespace, and are its mounts: what is made of
 * them comes before our own. */
static gboolean enter_root(guint n_layers, GError **error)
{
    static const char *const dirs[] = {"/usr", "/lib", "/lib64"};
    guint64 news = KERNEL_CLONE_NEWNS | KERNEL_CLONE_NEWNET | KERNEL_CLONE_NEWIPC;
    AUTO_FD out = clone_dir(OUT_FD, "");
    AUTO_FD merge = mount_merge(n_layers);
    if (out < 0 || merge < 0)
        return error_set_errno(error, errno, "mount the merge of %u layers", n_layers);
    if (syscall(SYS_unshare, news) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", TOP, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755") < 0)
        return error_set_errno(error, errno, "make a root");
    for (gsize i = 0; i < G_N_ELEMENTS(dirs); i++) {
        AUTO_FD tree = clone_dir(AT_FDCWD, dirs[i]);
        if (access(dirs[i], F_OK) == 0 && !attach(tree, dirs[i], ATTRS, error))
            return FALSE;
    }
    guint64 writable = ATTRS & ~(guint64)KERNEL_MOUNT_ATTR_RDONLY;
    if (!attach(merge, "/image", ATTRS, error) || !attach(out, "/out", writable, error))
        return FALSE;
    return (kernel_close_range(3, ~0u, KERNEL_CLOSE_RANGE_CLOEXEC) == 0 && chroot(TOP) == 0 &&
            chdir("/") == 0) ||
           error_set_errno(error, errno, "enter the root");
}

static gboolean limit(guint64 bytes, GError **error)
{
    const struct rlimit size = {bytes, bytes}, cpu = {CPU_SECONDS, CPU_SECONDS}, none = {0, 0};
    return (setrlimit(RLIMIT_FSIZE, &size) == 0 && setrlimit(RLIMIT_CPU, &cpu) == 0 &&
            setrlimit(RLIMIT_CORE, &none) == 0) ||
           error_set_errno(error, errno, "set limits");
}

/* The store's user, who may read and search everything that he can name, and nothing else. */
static gboolean give_up(uid_t uid, GError **error)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    const guint32 one = 1u << CAP_DAC_READ_SEARCH;
    struct __user_cap_data_struct data[2] = {{one, one, one}, {0}};
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (cap != CAP_DAC_READ_SEARCH && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            return error_set_errno(error, errno, "drop the bounding set");
    return (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0 && setgroups(0, NULL) == 0 &&
            setresgid(uid, uid, uid) == 0 && setresuid(uid, uid, uid) == 0 &&
            syscall(SYS_capset, &head, data) == 0 &&
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH, 0, 0) == 0 &&
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0) ||
           error_set_errno(error, errno, "give up privileges");
}

static gboolean filter(GBytes *rules, GError **error)
{
    gsize len;
    const void *bytes = g_bytes_get_data(rules, &len);
    const struct sock_fprog program = {(unsigned short)(len / sizeof(struct sock_filter)),
                                       (struct sock_filter *)(gsize)bytes};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0 ||
           error_set_errno(error, errno, "load the filter");
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    static const char *const words[] = {"mkfs.erofs",        "--quiet", "--preserve-mtime",
                                        "/out/" IMAGE_EROFS, "/image",  NULL};
    static char *const envp[] = {NULL};
    guint64 numbers[3] = {0};
    for (int i = 0; argc == 4 && i < 3; i++)
        if (!g_ascii_string_to_unsigned(argv[i + 1], 10, 1, G_MAXINT64, &numbers[i], NULL))
            argc = 0;
    GBytes *rules = argc == 4 ? filter_build(FILTER_BOX, &error) : NULL;
    if (argc != 4)
        error_set(&error, ASSAY_ERROR_INPUT, "usage: assay-erofs UID N BYTES");
    if (rules == NULL || !enter_root((guint)numbers[1], &error) || !limit(numbers[2], &error) ||
        !give_up((uid_t)numbers[0], &error) || !filter(rules, &error)) {
        fprintf(stderr, "%s\n", error->message);
        return 125;
    }
    execve(IMAGE_EROFS_MKFS, (char *const *)(gsize)words, envp);
    fprintf(stderr, "execute it: %s\n", g_strerror(errno));
    return 127;
}
