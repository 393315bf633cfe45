/*
 * The tree of a box: overlays for the root, /usr and the workspace, a small /dev.
 *
 * The keeper lives in a workshop of its own, a small tmpfs (mounted over /tmp of our private mount
 * namespace, then made the root of it), and builds everything there from descriptors that the
 * library opened:
 *
 *   l/N    lowers, attached one by one        e        an empty directory
 *   skel   generated files and mount points   proc     the keeper's own
 *   dev    device nodes, shared by all trees  etc/     the host's /etc directories for host mode
 *   g/N    generations: a tmpfs that keeps what is written: root/{upper,work}, work/{upper,work}
 *   t/N    merged trees; the newest is the box's root
 *   p, in  where an init, in its own copy of all this, has its /proc and then its tree
 *
 * A rebuilt tree is made beside the old one, which is taken down after the caller has its answer.
 *
 * Invariants:
 *   1. No path is resolved below a tree through a symlink: a layer may be hostile, so every mount
 *      point is opened with RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS and mounted on by descriptor.
 *   2. No inode of the host is shown directly, except six device nodes: host directories are
 *      always seen through an overlay, so that two boxes share no lock and no inotify event.
 *   3. Once the keeper stands in its workshop, nothing of the host has a path any more.
 *   4. A generation below the written one is never written again.
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
#define NAME_MAX_  16 /* "l/N" */

typedef char Name[NAME_MAX_];

/* What stays the same over all trees of a box. */
static struct {
    unsigned next_lower, next_gen, next_tree;
    bool in_workshop;
    Name roots[SPEC_LAYERS_MAX], layers[SPEC_LAYERS_MAX], work[SPEC_LAYERS_MAX];
    Name mounts[SPEC_MOUNTS_MAX];
    Name root_upper, work_upper; /* empty: the generation's */
} fixed;

/* One tree while it is built. */
typedef struct Tree {
    Keeper *keeper;
    SpecTree spec;
    Name name;  /* "t/N" */
    Name gen;   /* the written generation, or empty */
    Name below; /* the one that was written before, when it has just been frozen, or empty */
    Name gens[SPEC_GENS_MAX];
    uint32_t n_gens;
    int root_fd; /* the merged root, once it is mounted */
    int frozen; /* of the written generation: the detached original, -1 where it cannot be cloned */
    int gen_fd; /* the same as it is attached */
    Fail *failed;
} Tree;

#define TREE_NONE                                                                                  \
    {                                                                                              \
        .root_fd = -1, .frozen = -1, .gen_fd = -1                                                  \
    }

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

static int mount_detached(int fd, const char *name)
{
    int at = open(name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int r = at < 0 ? -1 : kernel_move_mount(fd, at);
    int err = errno;
    if (at >= 0)
        close(at);
    errno = err;
    return r;
}

static int new_dir(char *ret_name, const char *top, unsigned *next, Fail *failed)
{
    snprintf(ret_name, NAME_MAX_, "%s/%u", top, (*next)++);
    return mkdir(ret_name, 0700) < 0 ? fail(failed, "make a directory in", top) : 0;
}

/* Attaches a directory of the spec at l/N, writable only when it is an upper. */
static int attach(const SpecOpen *spec, int fd, bool writable, char *ret_name, Fail *failed)
{
    if (new_dir(ret_name, "l", &fixed.next_lower, failed) < 0)
        return -1;
    if (spec->flags & SPEC_OPEN_MOUNT_FDS)
        return mount_detached(fd, ret_name) < 0 ? fail(failed, "attach a lower (move_mount)", NULL)
                                                : 0;
    char from[64];
    int r = mount(fd_path(fd, from, sizeof from), ret_name, NULL, MS_BIND, NULL);
    if (r < 0)
        fail(failed, "bind a lower", NULL);
    if (r == 0 && !writable)
        mount(NULL, ret_name, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | BASE_FLAGS, NULL);
    return r;
}

/* Attaches a generation that the library holds, read-only. What comes as a plain descriptor is
 * cloned: the library keeps its own, for other boxes. */
static int attach_gen(const SpecOpen *spec, int fd, char *ret_name, Fail *failed)
{
    struct kernel_mount_attr read_only = {.attr_set = KERNEL_MOUNT_ATTR_RDONLY};
    int clone = -1;
    if (new_dir(ret_name, "l", &fixed.next_lower, failed) < 0)
        return -1;
    if (!(spec->flags & SPEC_OPEN_MOUNT_FDS)) {
        clone = kernel_open_tree(
            fd, "", KERNEL_OPEN_TREE_CLONE | KERNEL_OPEN_TREE_CLOEXEC | KERNEL_AT_EMPTY_PATH);
        if (clone < 0)
            return fail(failed, "clone a generation", NULL);
    }
    int use = clone >= 0 ? clone : fd;
    int r = kernel_mount_setattr(use, 0, &read_only);
    if (r == 0)
        r = mount_detached(use, ret_name);
    if (r < 0)
        fail(failed, "attach a generation", NULL);
    if (clone >= 0)
        close(clone);
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

/* Binds the host's device node NAME into our /dev. */
static int bind_device(int dev_fd, const char *name, Fail *failed)
{
    char from[32], to[64];
    snprintf(from, sizeof from, "/dev/%s", name);
    int at = openat(dev_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (at < 0)
        return fail(failed, "make", from);
    int r = mount(from, fd_path(at, to, sizeof to), NULL, MS_BIND, NULL);
    if (r < 0)
        fail(failed, "bind", from);
    close(at);
    return r;
}

/* The device directory that every tree shows; made before the host is out of reach. */
static int make_dev(uint32_t flags, Fail *failed)
{
    static const char *const nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const char *const links[][2] = {{"/proc/self/fd", "fd"},
                                           {"/proc/self/fd/0", "stdin"},
                                           {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"},
                                           {"pts/ptmx", "ptmx"}};
    if (mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,nr_inodes=64,mode=755") < 0)
        return fail(failed, "mount /dev", NULL);
    int dev = open("dev", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (dev < 0)
        return fail(failed, "open /dev", NULL);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        if (bind_device(dev, nodes[i], failed) < 0)
            return -1;
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlinkat(links[i][0], dev, links[i][1]) < 0)
            return fail(failed, "link in /dev", links[i][1]);
    if (mkdirat(dev, "pts", 0755) < 0 || mkdirat(dev, "shm", 01777) < 0)
        return fail(failed, "make directories in /dev", NULL);
    close(dev);
    /* devpts needs an id 0: a single-id box of another uid has no terminals. */
    if (mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=620") < 0 &&
        (flags & SPEC_OPEN_SETGROUPS))
        return fail(failed, "mount /dev/pts", NULL);
    if (mount(NULL, "dev", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL) <
        0)
        return fail(failed, "make /dev read-only", NULL);
    return 0;
}

/* A detached tmpfs, not seen anywhere; -1 with errno. */
static int new_tmpfs(uint64_t bytes_max, uint64_t inodes_max)
{
    char size[32], inodes[32];
    snprintf(size, sizeof size, "%llu", (unsigned long long)bytes_max);
    snprintf(inodes, sizeof inodes, "%llu", (unsigned long long)inodes_max);
    int fs = kernel_fsopen("tmpfs"), fd = -1;
    if (fs < 0)
        return -1;
    if (kernel_fs_option(fs, "size", size) == 0 && kernel_fs_option(fs, "nr_inodes", inodes) == 0 &&
        kernel_fs_option(fs, "mode", "755") == 0)
        fd = kernel_fsmount(fs, KERNEL_MOUNT_ATTR_NOSUID | KERNEL_MOUNT_ATTR_NODEV);
    int err = errno;
    close(fs);
    errno = err;
    return fd;
}

/* A fresh generation, attached at g/N. We keep the original, for when it is frozen and handed to
 * other boxes; where detached mounts cannot be cloned (before Linux 6.15) there is none. */
static int make_generation(Tree *tree)
{
    static const struct {
        const char *name;
        mode_t mode;
    } dirs[] = {{"root", 0755}, {"root/upper", 0755}, {"root/work", 0700},
                {"work", 0755}, {"work/upper", 0755}, {"work/work", 0700}};
    const SpecOpen *spec = &tree->keeper->open;
    if (new_dir(tree->gen, "g", &fixed.next_gen, tree->failed) < 0)
        return -1;
    int made = new_tmpfs(tree->spec.disk_bytes, tree->spec.inodes);
    if (made < 0)
        return fail(tree->failed, "make the tmpfs of a generation", NULL);
    tree->frozen = kernel_open_tree(
        made, "", KERNEL_OPEN_TREE_CLONE | KERNEL_OPEN_TREE_CLOEXEC | KERNEL_AT_EMPTY_PATH);
    int r = mount_detached(tree->frozen >= 0 ? tree->frozen : made, tree->gen);
    if (tree->frozen >= 0) {
        close(tree->frozen);
        tree->frozen = made;
    } else {
        close(made);
    }
    tree->gen_fd = r < 0 ? -1 : open(tree->gen, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (tree->gen_fd < 0)
        return fail(tree->failed, "attach a generation", NULL);
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        if (mkdirat(tree->gen_fd, dirs[i].name, dirs[i].mode) < 0)
            return fail(tree->failed, "make", dirs[i].name);
    if (fchownat(tree->gen_fd, "work/upper", spec->uid, spec->gid, 0) < 0)
        return fail(tree->failed, "give the workspace to the box's user", NULL);
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

static void add_upper(char *options, const char *upper, const char *work)
{
    size_t len = strlen(options);
    snprintf(options + len, OPTIONS_MAX - len, ",upperdir=%s,workdir=%s", upper, work);
}

static void add_gen(char *options, const char *gen, const char *part)
{
    char name[64];
    struct stat st;
    snprintf(name, sizeof name, "%s/%s", gen, part);
    if (gen[0] != '\0' && lstat(name, &st) == 0 && S_ISDIR(st.st_mode))
        add_lower(options, name);
}

/* Adds PART of each generation of this tree, topmost first, where it is a directory. */
static void add_gens(const Tree *tree, char *options, const char *part)
{
    add_gen(options, tree->below, part);
    for (uint32_t i = 0; i < tree->n_gens; i++)
        add_gen(options, tree->gens[i], part);
}

/* Mount flags of the overlays that make up the root. */
static unsigned long root_flags(const Tree *tree)
{
    bool read_only = tree->keeper->open.flags & SPEC_OPEN_ROOT_READ_ONLY;
    return BASE_FLAGS | (read_only ? MS_RDONLY : 0);
}

/* Where writes to the root go: a directory with "upper" and "work". */
static void root_upper(const Tree *tree, char *ret_name, size_t size)
{
    if (fixed.root_upper[0] != '\0')
        snprintf(ret_name, size, "%s", fixed.root_upper);
    else
        snprintf(ret_name, size, "%s/root", tree->gen);
}

static int ensure_dir(const char *top, const char *name, mode_t mode, char *ret_path, size_t size,
                      Fail *failed)
{
    snprintf(ret_path, size, "%s/%s", top, name);
    return mkdir(ret_path, mode) < 0 && errno != EEXIST ? fail(failed, "make", ret_path) : 0;
}

/* In host mode /usr is a second overlay, with its part of each layer and of the upper. */
static int mount_usr(Tree *tree)
{
    char options[OPTIONS_MAX] = "userxattr,lowerdir=", name[128], top[64], upper[96], work[96];
    struct stat st;
    add_gens(tree, options, "root/upper/usr");
    for (uint32_t i = 0; i < tree->keeper->open.n_layers; i++) {
        snprintf(name, sizeof name, "%s/usr", fixed.layers[i]);
        if (lstat(name, &st) == 0 && S_ISDIR(st.st_mode))
            add_lower(options, name);
    }
    add_lower(options, fixed.roots[0]);

    root_upper(tree, top, sizeof top);
    if (ensure_dir(top, "upper/usr", 0755, upper, sizeof upper, tree->failed) < 0 ||
        ensure_dir(top, "work_usr", 0700, work, sizeof work, tree->failed) < 0)
        return -1;
    add_upper(options, upper, work);
    return overlay(tree, options, "/usr", root_flags(tree), "/usr");
}

static int mount_etc_dirs(Tree *tree)
{
    char options[128], at[64];
    struct stat st;
    for (const char *const *dir = keeper_etc_dirs; *dir != NULL; dir++) {
        snprintf(at, sizeof at, "/etc/%s", *dir);
        if (lstat(at + 1, &st) < 0)
            continue;
        snprintf(options, sizeof options, "userxattr,lowerdir=%s:e", at + 1);
        if (overlay(tree, options, at, BASE_FLAGS | MS_RDONLY, at) < 0)
            return -1;
    }
    return 0;
}

static int mount_root(Tree *tree)
{
    const SpecOpen *spec = &tree->keeper->open;
    bool host = spec->flags & SPEC_OPEN_HOST_ROOT;
    char options[OPTIONS_MAX] = "userxattr,lowerdir=", top[64], upper[96], work[96];
    add_gens(tree, options, "root/upper");
    for (uint32_t i = 0; i < spec->n_layers; i++)
        add_lower(options, fixed.layers[i]);
    add_lower(options, "skel");
    for (uint32_t i = 0; !host && i < spec->n_root; i++)
        add_lower(options, fixed.roots[i]);

    root_upper(tree, top, sizeof top);
    snprintf(upper, sizeof upper, "%s/upper", top);
    snprintf(work, sizeof work, "%s/work", top);
    add_upper(options, upper, work);
    if (overlay(tree, options, tree->name, root_flags(tree), "the root") < 0)
        return -1;
    tree->root_fd = openat(AT_FDCWD, tree->name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (tree->root_fd < 0)
        return fail(tree->failed, "open the root", NULL);
    if (!host)
        return 0;
    return mount_usr(tree) < 0 ? -1 : mount_etc_dirs(tree);
}

static int mount_work(Tree *tree)
{
    const SpecOpen *spec = &tree->keeper->open;
    char options[OPTIONS_MAX] = "userxattr,lowerdir=", top[64], upper[96], work[96];
    add_gens(tree, options, "work/upper");
    for (uint32_t i = 0; i < spec->n_work; i++)
        add_lower(options, fixed.work[i]);
    if (spec->n_work == 0)
        add_lower(options, "e");

    if (fixed.work_upper[0] != '\0')
        snprintf(top, sizeof top, "%s", fixed.work_upper);
    else
        snprintf(top, sizeof top, "%s/work", tree->gen);
    snprintf(upper, sizeof upper, "%s/upper", top);
    snprintf(work, sizeof work, "%s/work", top);
    add_upper(options, upper, work);
    return overlay(tree, options, spec->work_path, BASE_FLAGS, "the workspace");
}

static int mount_given(Tree *tree)
{
    const SpecOpen *spec = &tree->keeper->open;
    char options[64];
    for (uint32_t i = 0; i < spec->n_mounts; i++) {
        snprintf(options, sizeof options, "userxattr,lowerdir=%s:e", fixed.mounts[i]);
        if (overlay(tree, options, spec->mount_paths[i], BASE_FLAGS | MS_RDONLY,
                    spec->mount_paths[i]) < 0)
            return -1;
    }
    return 0;
}

/* In the order of spec.h. */
static int attach_fixed(const SpecOpen *spec, const int *fds, Fail *failed)
{
    const int *at = fds;
    for (uint32_t i = 0; i < spec->n_root; i++)
        if (attach(spec, *at++, false, fixed.roots[i], failed) < 0)
            return -1;
    for (uint32_t i = 0; i < spec->n_layers; i++)
        if (attach(spec, *at++, false, fixed.layers[i], failed) < 0)
            return -1;
    for (uint32_t i = 0; i < spec->n_work; i++)
        if (attach(spec, *at++, false, fixed.work[i], failed) < 0)
            return -1;
    if ((spec->flags & SPEC_OPEN_ROOT_UPPER) &&
        attach(spec, *at++, true, fixed.root_upper, failed) < 0)
        return -1;
    if ((spec->flags & SPEC_OPEN_WORK_UPPER) &&
        attach(spec, *at++, true, fixed.work_upper, failed) < 0)
        return -1;
    for (uint32_t i = 0; i < spec->n_mounts; i++)
        if (attach(spec, *at++, false, fixed.mounts[i], failed) < 0)
            return -1;
    return 0;
}

/* The workshop becomes the root of our mount namespace; the host's goes. */
static int enter_workshop(Keeper *keeper, Fail *failed)
{
    if (fixed.in_workshop)
        return 0;
    if (syscall(SYS_pivot_root, ".", ".") < 0)
        return fail(failed, "pivot_root", NULL);
    if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return fail(failed, "leave the old root", NULL);
    fixed.in_workshop = true;
    keeper->layers |= BOX_LAYER_PIVOT_ROOT;
    return 0;
}

/* The host's directories of /etc, read-only, for the trees of host mode. */
static int bind_etc_dirs(uint32_t flags, Fail *failed)
{
    char from[64];
    struct stat st;
    for (const char *const *dir = keeper_etc_dirs; *dir != NULL; dir++) {
        if (dir >= keeper_etc_dirs + KEEPER_ETC_ALWAYS &&
            !(flags & (SPEC_OPEN_NET_HOST | SPEC_OPEN_NET_PROXY)))
            return 0; /* only builds need the rest */
        snprintf(from, sizeof from, "/etc/%s", *dir);
        if (stat(from, &st) < 0 || !S_ISDIR(st.st_mode))
            continue;
        if (mkdir(from + 1, 0755) < 0 || mount(from, from + 1, NULL, MS_BIND, NULL) < 0)
            return fail(failed, "bind", from);
    }
    return 0;
}

int keeper_tree_base(Keeper *keeper, uint32_t flags, Fail *failed)
{
    static const char *const dirs[] = {"e",   "l",    "g",   "t", "skel", "dev",
                                       "etc", "proc", "sys", "p", "in"};
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return fail(failed, "make mounts private", NULL);
    if (mount("tmpfs", BASE, "tmpfs", BASE_FLAGS, "size=4m,nr_inodes=4096,mode=755") < 0 ||
        chdir(BASE) < 0)
        return fail(failed, "mount the workshop", NULL);
    for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
        if (mkdir(dirs[i], 0755) < 0)
            return fail(failed, "make", dirs[i]);
    if (mount("proc", "proc", "proc", BASE_FLAGS | MS_NOEXEC, NULL) < 0)
        return fail(failed, "mount /proc", NULL);
    if (mount("tmpfs", "sys", "tmpfs", BASE_FLAGS | MS_RDONLY, "size=4k,mode=555") < 0)
        return fail(failed, "mount /sys", NULL);
    if (make_dev(flags, failed) < 0 || keeper_skeleton_base(flags, failed) < 0 ||
        ((flags & SPEC_OPEN_HOST_ROOT) && bind_etc_dirs(flags, failed) < 0))
        return -1;
    return flags & SPEC_OPEN_MOUNT_FDS ? enter_workshop(keeper, failed) : 0;
}

/* Directories sent as plain descriptors belong to the caller's mount namespace; ours has the same
 * inodes. Done before the workshop covers /tmp, where some of them may lie. */
static int reopen_all(const SpecOpen *spec, const int *fds, uint32_t n, int *ret_fds, Fail *failed)
{
    for (uint32_t i = 0; i < n; i++) {
        ret_fds[i] = spec->flags & SPEC_OPEN_MOUNT_FDS ? fds[i] : reopen_here(fds[i]);
        if (ret_fds[i] < 0)
            return fail(failed, "find a layer's directory again", NULL);
    }
    return 0;
}

static Tree current = TREE_NONE, old = TREE_NONE, spare = TREE_NONE;

static void unmount(const char *name)
{
    if (name[0] != '\0' && umount2(name, MNT_DETACH) == 0)
        rmdir(name);
}

static void take_down(Tree *tree)
{
    const int fds[] = {tree->root_fd, tree->frozen, tree->gen_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    unmount(tree->name);
    unmount(tree->gen);
    unmount(tree->below);
    for (uint32_t i = 0; i < tree->n_gens; i++)
        unmount(tree->gens[i]);
    *tree = (Tree)TREE_NONE;
}

void keeper_tree_tidy(void)
{
    take_down(&old);
}

static int attach_gens(Tree *tree, const int *gen_fds, uint32_t n_gens)
{
    for (; tree->n_gens < n_gens; tree->n_gens++)
        if (attach_gen(&tree->keeper->open, gen_fds[tree->n_gens], tree->gens[tree->n_gens],
                       tree->failed) < 0)
            return -1;
    return 0;
}

/* What a command may leave outside the generation: fresh, or that of the tree before. */
static int mount_tmp(Tree *tree)
{
    const SpecLimits *limits = &tree->keeper->open.limits;
    char options[96], from[64];
    snprintf(options, sizeof options, "size=%llu,nr_inodes=%llu,mode=1777",
             (unsigned long long)limits->tmp_bytes, (unsigned long long)limits->inodes);
    const struct {
        const char *path, *options;
    } places[] = {{"/tmp", options}, {"/dev/shm", options}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        bool keep = (tree->spec.flags & SPEC_TREE_FREEZE) && current.root_fd >= 0;
        snprintf(from, sizeof from, "%s%s", current.name, places[i].path);
        int r = keep ? mount_inside(tree, places[i].path, from, MS_BIND, NULL)
                     : mount_inside(tree, places[i].path, "tmpfs", BASE_FLAGS, places[i].options);
        if (r < 0)
            return -1;
    }
    return 0;
}

/* Where each command's init will mount its own /proc. */
static int check_proc(Tree *tree)
{
    int at = kernel_openat2(tree->root_fd, "proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0,
                            KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_SYMLINKS);
    if (at < 0)
        return fail(tree->failed, "open the mount point", "/proc");
    close(at);
    return 0;
}

static int build(Tree *tree)
{
    bool has_gen = fixed.root_upper[0] == '\0' || fixed.work_upper[0] == '\0';
    if ((has_gen && make_generation(tree) < 0) ||
        new_dir(tree->name, "t", &fixed.next_tree, tree->failed) < 0 || mount_root(tree) < 0 ||
        check_proc(tree) < 0 || mount_inside(tree, "/sys", "sys", MS_BIND, NULL) < 0 ||
        mount_inside(tree, "/dev", "dev", MS_BIND | MS_REC, NULL) < 0 || mount_tmp(tree) < 0 ||
        mount_work(tree) < 0)
        return -1;
    return mount_given(tree);
}

/* TREE is the box's from now on; FREEZE: the generation before it belongs to it as well. */
static void switch_to(Keeper *keeper, const Tree *tree, bool freeze, KeeperTree *ret)
{
    keeper->layers |= BOX_LAYER_OVERLAY;
    memcpy(keeper->tree, tree->name, sizeof tree->name);
    if (freeze)
        current.gen[0] = '\0';
    old = current;
    current = *tree;
    ret->fds[SPEC_TREE_FD_ROOT] = current.root_fd;
    ret->fds[SPEC_TREE_FD_GEN] = current.gen_fd;
    ret->fds[SPEC_TREE_FD_FROZEN] = freeze ? old.frozen : -1;
}

int keeper_tree_rebuild(Keeper *keeper, const int *gen_fds, const SpecTree *spec, KeeperTree *ret,
                        Fail *failed)
{
    Tree tree = TREE_NONE;
    bool freeze = spec->flags & SPEC_TREE_FREEZE;
    tree.keeper = keeper;
    tree.spec = *spec;
    tree.failed = failed;
    if (freeze && current.frozen < 0) {
        errno = ENOSYS;
        return fail(failed, "clone a detached mount (Linux 6.15)", NULL);
    }
    if (freeze)
        memcpy(tree.below, current.gen, sizeof tree.below);
    if (attach_gens(&tree, gen_fds, spec->n_gens) < 0 || build(&tree) < 0) {
        tree.below[0] = '\0'; /* still the current one's */
        take_down(&tree);
        return -1;
    }
    switch_to(keeper, &tree, freeze, ret);
    return 0;
}

void keeper_tree_make_spare(Keeper *keeper, const SpecTree *spec)
{
    Fail ignored = {0}; /* the tree is built when it is asked for, and says why it fails */
    take_down(&spare);
    spare.keeper = keeper;
    spare.spec = *spec;
    spare.failed = &ignored;
    if (build(&spare) < 0)
        take_down(&spare);
    spare.failed = NULL;
}

bool keeper_tree_use_spare(Keeper *keeper, const SpecTree *spec, KeeperTree *ret)
{
    if (spare.root_fd < 0 || memcmp(&spare.spec, spec, sizeof *spec) != 0)
        return false;
    switch_to(keeper, &spare, false, ret);
    spare = (Tree)TREE_NONE;
    return true;
}

int keeper_tree_open(Keeper *keeper, const int *fds, KeeperTree *ret, Fail *failed)
{
    int here[SPEC_FDS_MAX];
    const SpecOpen *spec = &keeper->open;
    uint32_t n = keeper_dir_fds(spec);
    bool has_base = spec->flags & SPEC_OPEN_MOUNT_FDS;
    if (reopen_all(spec, fds, n, here, failed) < 0 ||
        (!has_base && keeper_tree_base(keeper, spec->flags, failed) < 0) ||
        attach_fixed(spec, here, failed) < 0 || enter_workshop(keeper, failed) < 0 ||
        keeper_skeleton_box(spec, failed) < 0)
        return -1;
    const SpecTree tree = {.n_gens = spec->n_gens,
                           .disk_bytes = spec->limits.disk_bytes,
                           .inodes = spec->limits.inodes};
    return keeper_tree_rebuild(keeper, fds + n, &tree, ret, failed);
}

/* Merges tree's generations, or copies the written one where there are none. Bottom first: later
 * ones win. */
static int copy_gens(const Tree *tree, int root_fd, int work_fd)
{
    for (uint32_t i = tree->n_gens > 0 ? tree->n_gens : 1; i-- > 0;) {
        const char *name = tree->n_gens > 0 ? tree->gens[i] : current.gen;
        int from = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int r = from < 0 ? -1 : keeper_copy_layer(from, root_fd, work_fd);
        int err = errno;
        if (from >= 0)
            close(from);
        errno = err;
        if (r < 0)
            return fail(tree->failed, "copy a generation", NULL);
    }
    return 0;
}

/* A new generation to merge into; no more than what is copied will be in it. */
static int new_generation(int *ret_fd, Fail *failed)
{
    *ret_fd = new_tmpfs(0, 0);
    if (*ret_fd >= 0 && mkdirat(*ret_fd, "root", 0755) == 0 && mkdirat(*ret_fd, "work", 0755) == 0)
        return 0;
    return fail(failed, "make the tmpfs of a generation", NULL);
}

static int copy_into(const Tree *tree, int top_fd, const char *root, const char *work)
{
    int root_fd = openat(top_fd, root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int work_fd = openat(top_fd, work, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = root_fd < 0 || work_fd < 0 ? fail(tree->failed, "open where to copy to", NULL)
                                       : copy_gens(tree, root_fd, work_fd);
    if (root_fd >= 0)
        close(root_fd);
    if (work_fd >= 0)
        close(work_fd);
    return r;
}

int keeper_tree_copy(Keeper *keeper, const int *gen_fds, uint32_t n_gens, int *ret_fd, Fail *failed)
{
    Tree tree = TREE_NONE;
    bool given = fixed.root_upper[0] != '\0' && fixed.work_upper[0] != '\0';
    tree.keeper = keeper;
    tree.failed = failed;
    *ret_fd = -1;
    int r = attach_gens(&tree, gen_fds, n_gens);
    if (r == 0 && given)
        r = copy_into(&tree, AT_FDCWD, fixed.root_upper, fixed.work_upper);
    else if (r == 0 && (r = new_generation(ret_fd, failed)) == 0)
        r = copy_into(&tree, *ret_fd, "root", "work");
    take_down(&tree);
    if (r < 0 && *ret_fd >= 0)
        close(*ret_fd);
    return r;
}
