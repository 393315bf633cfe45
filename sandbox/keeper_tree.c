/*
 * The tree of a box: overlays for the root, /usr and the workspace, a small /dev, then pivot_root.
 *
 * Everything is built on one small tmpfs (mounted over /tmp of our private mount namespace), from
 * descriptors that the library opened:
 *
 *   l/N    lowers, attached one by one        e     an empty directory
 *   skel   generated files and mount points   r, w  tmpfs uppers of root and workspace
 *   root   the merged root, the future "/"
 *
 * Invariants:
 *   1. No path is resolved below `root` through a symlink: a layer may be hostile, so every mount
 *      point is opened with RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS and mounted on by descriptor.
 *   2. No inode of the host is shown directly, except six device nodes: host directories are
 *      always seen through an overlay, so that two boxes share no lock and no inotify event.
 *   3. After pivot_root the old root is detached; nothing of the host has a path any more.
 *
 * Not here: /proc and its masks, which belong to each command's pid namespace (keeper_init.c).
 */
#include "sandbox/keeper.h"

#include "sandbox/kernel.h"
#include "sandbox/layer.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define BASE_FLAGS (MS_NOSUID | MS_NODEV)
#define BASE       "/tmp"

typedef struct Tree {
    Keeper *keeper;
    const int *fds;
    int next_lower;
    int root_fd; /* the merged root, once it is mounted */
    Fail *failed;
} Tree;

/* The descriptor of FD as a path that mount(2) accepts. */
static const char *fd_path(int fd, char *buffer, size_t size)
{
    snprintf(buffer, size, "/proc/self/fd/%d", fd);
    return buffer;
}

/* A host directory that the library opened, seen from our own mount namespace: the same inode. */
static int reopen_here(int fd)
{
    char link[64], path[PATH_MAX];
    struct stat theirs, ours;
    ssize_t n = readlink(fd_path(fd, link, sizeof link), path, sizeof path - 1);
    if (n < 0)
        return -1;
    path[n] = '\0';
    int again = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (again < 0)
        return -1;
    if (fstat(fd, &theirs) == 0 && fstat(again, &ours) == 0 && theirs.st_dev == ours.st_dev &&
        theirs.st_ino == ours.st_ino)
        return again;
    close(again);
    errno = ESTALE;
    return -1;
}

/* Where each kind of descriptor starts in the spec's list (spec.h). */
static uint32_t work_index(const SpecOpen *open)
{
    return 1 + open->n_layers;
}

static uint32_t root_upper_index(const SpecOpen *open)
{
    return work_index(open) + open->n_work;
}

static uint32_t work_upper_index(const SpecOpen *open)
{
    return root_upper_index(open) + ((open->flags & SPEC_OPEN_ROOT_UPPER) != 0);
}

static uint32_t mounts_index(const SpecOpen *open)
{
    return work_upper_index(open) + ((open->flags & SPEC_OPEN_WORK_UPPER) != 0);
}

/* Attaches descriptor INDEX of the spec at l/N, writable only when it is an upper. */
static int attach(Tree *tree, uint32_t index, bool writable, char *ret_name, size_t size)
{
    int fd = tree->fds[index];
    snprintf(ret_name, size, "l/%d", tree->next_lower++);
    if (mkdir(ret_name, 0700) < 0)
        return fail(tree->failed, "make a lower's directory", NULL);

    if (tree->keeper->open.flags & SPEC_OPEN_MOUNT_FDS) {
        int at = open(ret_name, O_PATH | O_DIRECTORY | O_CLOEXEC);
        int r = at < 0 ? -1 : kernel_move_mount(fd, at);
        if (r < 0)
            fail(tree->failed, "attach a lower (move_mount)", NULL);
        if (at >= 0)
            close(at);
        return r;
    }
    char from[64];
    int r = mount(fd_path(fd, from, sizeof from), ret_name, NULL, MS_BIND, NULL);
    if (r < 0)
        fail(tree->failed, "bind a lower", NULL);
    if (r == 0 && !writable)
        mount(NULL, ret_name, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | BASE_FLAGS, NULL);
    return r;
}

/* Mounts on the directory (or file) PATH of the merged root, by invariant 1. */
static int mount_inside(Tree *tree, const char *path, const char *type, unsigned long flags,
                        const char *options)
{
    char to[64];
    int at = kernel_openat2(tree->root_fd, path + 1, O_PATH | O_CLOEXEC, 0,
                            KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_SYMLINKS);
    if (at < 0)
        return fail(tree->failed, "open the mount point", path);
    int r = mount(type, fd_path(at, to, sizeof to), type, flags, options);
    if (r < 0)
        fail(tree->failed, "mount", path);
    close(at);
    return r;
}

/* Binds the host path FROM, as our own namespace has it, on PATH of the merged root or of /dev. */
static int bind_device(Tree *tree, int dev_fd, const char *name)
{
    char from[32], to[64];
    snprintf(from, sizeof from, "/dev/%s", name);
    int at = openat(dev_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (at < 0)
        return fail(tree->failed, "make", from);
    int r = mount(from, fd_path(at, to, sizeof to), NULL, MS_BIND, NULL);
    if (r < 0)
        fail(tree->failed, "bind", from);
    close(at);
    return r;
}

static int make_dev(Tree *tree)
{
    static const char *const nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const char *const links[][2] = {{"/proc/self/fd", "fd"},
                                           {"/proc/self/fd/0", "stdin"},
                                           {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"},
                                           {"pts/ptmx", "ptmx"}};
    char options[96];
    if (mount_inside(tree, "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC,
                     "size=64k,nr_inodes=64,mode=755") < 0)
        return -1;
    int dev = openat(tree->root_fd, "dev", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (dev < 0)
        return fail(tree->failed, "open /dev", NULL);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        if (bind_device(tree, dev, nodes[i]) < 0)
            return -1;
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlinkat(links[i][0], dev, links[i][1]) < 0)
            return fail(tree->failed, "link in /dev", links[i][1]);
    if (mkdirat(dev, "pts", 0755) < 0 || mkdirat(dev, "shm", 01777) < 0)
        return fail(tree->failed, "make directories in /dev", NULL);
    close(dev);

    snprintf(options, sizeof options, "size=%llu,mode=1777",
             (unsigned long long)tree->keeper->open.limits.tmp_bytes);
    /* devpts needs an id 0: a single-id box of another uid has no terminals. */
    bool has_root = tree->keeper->open.flags & SPEC_OPEN_SETGROUPS || tree->keeper->open.uid == 0;
    if (has_root && mount_inside(tree, "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
                                 "newinstance,ptmxmode=0666,mode=620") < 0)
        return -1;
    if (mount_inside(tree, "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, options) < 0)
        return -1;
    return mount_inside(tree, "/dev", NULL,
                        MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL);
}

static int tmpfs_upper(Tree *tree, const char *name)
{
    const SpecLimits *limits = &tree->keeper->open.limits;
    char options[128];
    int n = snprintf(options, sizeof options, "mode=700,size=%llu",
                     (unsigned long long)limits->disk_bytes);
    if (limits->inodes > 0)
        snprintf(options + n, sizeof options - (size_t)n, ",nr_inodes=%llu",
                 (unsigned long long)limits->inodes);
    if (mkdir(name, 0700) < 0 || mount("tmpfs", name, "tmpfs", BASE_FLAGS, options) < 0)
        return fail(tree->failed, "mount the upper's tmpfs", name);
    return 0;
}

static int overlay(Tree *tree, const char *options, const char *at, unsigned long flags,
                   const char *what)
{
    int r = tree->root_fd >= 0 ? mount_inside(tree, at, "overlay", flags, options)
                               : mount("overlay", at, "overlay", flags, options);
    return r < 0 ? fail(tree->failed, "mount the overlay of", what) : 0;
}

#define OPTIONS_MAX 4000 /* a page, less what the kernel adds */

/* Appends a lower to an option string that starts "lowerdir=". */
static void add_lower(char *options, const char *lower)
{
    size_t len = strlen(options);
    snprintf(options + len, OPTIONS_MAX - len, "%s%s", options[len - 1] == '=' ? "" : ":", lower);
}

/* The upper's directory: "r" or "w" (a fresh tmpfs), or an attached directory of the library. */
static int make_upper(Tree *tree, bool given, uint32_t index, const char *fresh, char *ret_dir,
                      size_t size)
{
    char name[64];
    if (given)
        return attach(tree, index, true, ret_dir, size);
    snprintf(ret_dir, size, "%s", fresh);
    if (tmpfs_upper(tree, fresh) < 0)
        return -1;
    snprintf(name, sizeof name, "%s/upper", fresh);
    if (mkdir(name, 0755) < 0)
        return fail(tree->failed, "make", name);
    snprintf(name, sizeof name, "%s/work", fresh);
    return mkdir(name, 0700) < 0 ? fail(tree->failed, "make", name) : 0;
}

/* Mount flags of the overlays that make up the root. */
static unsigned long root_flags(const Tree *tree)
{
    bool read_only = tree->keeper->open.flags & SPEC_OPEN_ROOT_READ_ONLY;
    return BASE_FLAGS | (read_only ? MS_RDONLY : 0);
}

/* In host mode /usr is a second overlay, with its part of each layer and of the upper. */
static int mount_usr(Tree *tree, const char *host_usr, char (*layers)[16], uint32_t n_layers,
                     const char *upper)
{
    char options[OPTIONS_MAX] = "userxattr,lowerdir=", name[128];
    struct stat st;
    for (uint32_t i = 0; i < n_layers; i++) {
        snprintf(name, sizeof name, "%.15s/usr", layers[i]);
        if (lstat(name, &st) == 0 && S_ISDIR(st.st_mode))
            add_lower(options, name);
    }
    add_lower(options, host_usr);

    snprintf(name, sizeof name, "%s/upper/usr", upper);
    if (mkdir(name, 0755) < 0 && errno != EEXIST)
        return fail(tree->failed, "make", name);
    snprintf(name, sizeof name, "%s/work_usr", upper);
    if (mkdir(name, 0700) < 0 && errno != EEXIST)
        return fail(tree->failed, "make", name);
    size_t len = strlen(options);
    snprintf(options + len, sizeof options - len, ",upperdir=%s/upper/usr,workdir=%s/work_usr",
             upper, upper);
    return overlay(tree, options, "/usr", root_flags(tree), "/usr");
}

static int mount_etc_dirs(Tree *tree)
{
    char options[128], at[64];
    struct stat st;
    for (const char *const *dir = keeper_etc_dirs; *dir != NULL; dir++) {
        if (dir > keeper_etc_dirs &&
            !(tree->keeper->open.flags & (SPEC_OPEN_NET_HOST | SPEC_OPEN_NET_PROXY)))
            return 0; /* only builds need more than the alternatives */
        snprintf(at, sizeof at, "/etc/%s", *dir);
        if (stat(at, &st) < 0 || !S_ISDIR(st.st_mode))
            continue;
        snprintf(options, sizeof options, "userxattr,lowerdir=%s:e", at);
        if (overlay(tree, options, at, BASE_FLAGS | MS_RDONLY, at) < 0)
            return -1;
    }
    return 0;
}

static int mount_root(Tree *tree)
{
    const SpecOpen *open = &tree->keeper->open;
    bool host = open->flags & SPEC_OPEN_HOST_ROOT;
    char base[16], upper[16], layers[SPEC_LAYERS_MAX][16];
    char options[OPTIONS_MAX] = "userxattr,lowerdir=";

    if (attach(tree, 0, false, base, sizeof base) < 0)
        return -1;
    for (uint32_t i = 0; i < open->n_layers; i++) {
        if (attach(tree, 1 + i, false, layers[i], sizeof layers[i]) < 0)
            return -1;
        add_lower(options, layers[i]);
    }
    add_lower(options, "skel");
    if (!host)
        add_lower(options, base);

    if (make_upper(tree, open->flags & SPEC_OPEN_ROOT_UPPER, root_upper_index(open), "r", upper,
                   sizeof upper) < 0)
        return -1;
    size_t len = strlen(options);
    snprintf(options + len, sizeof options - len, ",upperdir=%s/upper,workdir=%s/work", upper,
             upper);
    if (overlay(tree, options, "root", root_flags(tree), "the root") < 0)
        return -1;
    tree->root_fd = openat(AT_FDCWD, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (tree->root_fd < 0)
        return fail(tree->failed, "open the root", NULL);
    if (!host)
        return 0;
    return mount_usr(tree, base, layers, open->n_layers, upper) < 0 ? -1 : mount_etc_dirs(tree);
}

static int mount_work(Tree *tree)
{
    const SpecOpen *open = &tree->keeper->open;
    char options[OPTIONS_MAX] = "userxattr,lowerdir=", lower[16], upper[16], name[64];
    for (uint32_t i = 0; i < open->n_work; i++) {
        if (attach(tree, work_index(open) + i, false, lower, sizeof lower) < 0)
            return -1;
        add_lower(options, lower);
    }
    if (open->n_work == 0)
        add_lower(options, "e");

    bool given = open->flags & SPEC_OPEN_WORK_UPPER;
    if (make_upper(tree, given, work_upper_index(open), "w", upper, sizeof upper) < 0)
        return -1;
    snprintf(name, sizeof name, "%s/upper", upper);
    if (!given && chown(name, open->uid, open->gid) < 0)
        return fail(tree->failed, "give the workspace to the box's user", NULL);
    size_t len = strlen(options);
    snprintf(options + len, sizeof options - len, ",upperdir=%s/upper,workdir=%s/work", upper,
             upper);
    return overlay(tree, options, open->work_path, BASE_FLAGS, "the workspace");
}

static int mount_given(Tree *tree)
{
    const SpecOpen *open = &tree->keeper->open;
    char options[64], lower[16];
    for (uint32_t i = 0; i < open->n_mounts; i++) {
        if (attach(tree, mounts_index(open) + i, false, lower, sizeof lower) < 0)
            return -1;
        snprintf(options, sizeof options, "userxattr,lowerdir=%s:e", lower);
        if (overlay(tree, options, open->mount_paths[i], BASE_FLAGS | MS_RDONLY,
                    open->mount_paths[i]) < 0)
            return -1;
    }
    return 0;
}

static int pivot(Tree *tree)
{
    if (fchdir(tree->root_fd) < 0)
        return fail(tree->failed, "enter the root", NULL);
    close(tree->root_fd);
    if (syscall(SYS_pivot_root, ".", ".") < 0)
        return fail(tree->failed, "pivot_root", NULL);
    if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return fail(tree->failed, "leave the old root", NULL);
    tree->keeper->layers |= BOX_LAYER_PIVOT_ROOT | BOX_LAYER_OVERLAY;
    return 0;
}

/* Directories sent as plain descriptors belong to the caller's mount namespace; ours has the same
 * inodes. Done before the base tmpfs covers /tmp, where some of them may lie. */
static int reopen_all(const SpecOpen *open, const int *fds, int *ret_fds, Fail *failed)
{
    uint32_t n = mounts_index(open) + open->n_mounts;
    for (uint32_t i = 0; i < n; i++) {
        ret_fds[i] = open->flags & SPEC_OPEN_MOUNT_FDS ? fds[i] : reopen_here(fds[i]);
        if (ret_fds[i] < 0)
            return fail(failed, "find a layer's directory again", NULL);
    }
    return 0;
}

int keeper_tree_base(uint32_t flags, Fail *failed)
{
    static const char *const dirs[] = {"e", "l", "skel", "root"};
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return fail(failed, "make mounts private", NULL);
    if (mount("tmpfs", BASE, "tmpfs", BASE_FLAGS, "size=4m,nr_inodes=2048,mode=755") < 0 ||
        chdir(BASE) < 0)
        return fail(failed, "mount the base tmpfs", NULL);
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        if (mkdir(dirs[i], 0755) < 0)
            return fail(failed, "make", dirs[i]);
    return keeper_skeleton_base(flags, failed);
}

int keeper_tree_build(Keeper *keeper, const int *fds, Fail *failed)
{
    int here[SPEC_FDS_MAX];
    Tree tree = {.keeper = keeper, .fds = here, .root_fd = -1, .failed = failed};
    const SpecLimits *limits = &keeper->open.limits;
    char tmp_options[96];
    snprintf(tmp_options, sizeof tmp_options, "size=%llu,nr_inodes=%llu,mode=1777",
             (unsigned long long)limits->tmp_bytes, (unsigned long long)limits->inodes);

    bool has_base = keeper->open.flags & SPEC_OPEN_MOUNT_FDS;
    if (reopen_all(&keeper->open, fds, here, failed) < 0 ||
        (!has_base && keeper_tree_base(keeper->open.flags, failed) < 0) ||
        keeper_skeleton_box(&keeper->open, failed) < 0 || mount_root(&tree) < 0 ||
        mount_inside(&tree, "/proc", "proc", BASE_FLAGS | MS_NOEXEC, NULL) < 0 ||
        mount_inside(&tree, "/tmp", "tmpfs", BASE_FLAGS, tmp_options) < 0 ||
        mount_inside(&tree, "/run", "tmpfs", BASE_FLAGS, "size=16m,mode=755") < 0 ||
        mount_inside(&tree, "/sys", "tmpfs", BASE_FLAGS | MS_RDONLY, "size=4k,mode=555") < 0 ||
        make_dev(&tree) < 0 || mount_work(&tree) < 0)
        return -1;
    return mount_given(&tree) < 0 || pivot(&tree) < 0 ? -1 : 0;
}
