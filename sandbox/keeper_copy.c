/*
 * One layer in overlay form put over another, so that the result shows what both showed stacked.
 *
 * Overlay form (Documentation/filesystems/overlayfs.rst, with userxattr): a character device 0:0 is
 * a whiteout; a directory with user.overlay.opaque=y hides what lies below it.
 *
 * Invariants:
 *   1. Everything is reached by descriptor, one name at a time, no link followed; both sides are
 *      file systems that only this box wrote and that nothing is writing now.
 *   2. Whiteouts and opaque marks stay: there may be layers below that they hide.
 *   3. Names of one inode stay names of one inode, as far as one layer goes.
 *   4. Depth is bounded; beyond it the copy fails, whole.
 *
 * Not here: which layers (keeper_tree.c).
 */
#include "sandbox/keeper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define DEPTH_MAX   1024
#define XATTRS_MAX  65536
#define OPAQUE      "user.overlay.opaque"
#define OVERLAY     "user.overlay."
#define PATH_LENGTH 4096

/* An inode with several names, and where the first of them was put. */
typedef struct Link {
    ino_t inode;
    char path[]; /* below the part's top */
} Link;

typedef struct Copy {
    int top_fd;
    void *links;            /* tsearch(3) tree of Link */
    char path[PATH_LENGTH]; /* of the directory we are in, below the top */
} Copy;

/* One directory on both sides. */
typedef struct Pair {
    int from, to;
} Pair;

static bool is_whiteout(const struct stat *st)
{
    return S_ISCHR(st->st_mode) && st->st_rdev == makedev(0, 0);
}

/* user.* attributes; of overlayfs's own only the opaque mark, which is content. */
static int copy_xattrs(int from, int to)
{
    static char names[XATTRS_MAX], value[XATTRS_MAX];
    ssize_t len = flistxattr(from, names, sizeof names);
    if (len < 0)
        return errno == ENOTSUP ? 0 : -1;
    for (const char *name = names; name < names + len; name += strlen(name) + 1) {
        if (strncmp(name, "user.", 5) != 0 ||
            (strncmp(name, OVERLAY, sizeof OVERLAY - 1) == 0 && strcmp(name, OPAQUE) != 0))
            continue;
        ssize_t size = fgetxattr(from, name, value, sizeof value);
        if (size < 0 || fsetxattr(to, name, value, (size_t)size, 0) < 0)
            return -1;
    }
    return 0;
}

static bool is_opaque(int dir_fd)
{
    char value;
    return fgetxattr(dir_fd, OPAQUE, &value, 1) == 1 && value == 'y';
}

/* Owner before mode: a change of owner clears set-id bits. */
static int copy_attributes(int from, int to, const struct stat *st)
{
    const struct timespec times[2] = {st->st_atim, st->st_mtim};
    if (fchown(to, st->st_uid, st->st_gid) < 0 || fchmod(to, st->st_mode & 07777) < 0 ||
        copy_xattrs(from, to) < 0)
        return -1;
    return futimens(to, times);
}

/* Data only, holes stay holes. */
static int copy_data(int from, int to, off_t size)
{
    off_t at = 0;
    if (ftruncate(to, size) < 0)
        return -1;
    while (at < size && (at = lseek(from, at, SEEK_DATA)) >= 0) {
        off_t end = lseek(from, at, SEEK_HOLE);
        if (lseek(to, at, SEEK_SET) < 0)
            return -1;
        while (at < end)
            if (sendfile(to, from, &at, (size_t)(end - at)) <= 0)
                return -1;
    }
    return at < 0 && errno != ENXIO ? -1 : 0; /* ENXIO: a hole up to the end */
}

static int by_inode(const void *a, const void *b)
{
    ino_t x = ((const Link *)a)->inode, y = ((const Link *)b)->inode;
    return (x > y) - (x < y);
}

static const char *known_link(Copy *copy, const struct stat *st)
{
    const Link key = {.inode = st->st_ino};
    Link *const *found = st->st_nlink > 1 ? tfind(&key, &copy->links, by_inode) : NULL;
    return found == NULL ? NULL : (*found)->path;
}

static int remember_link(Copy *copy, const struct stat *st, const char *name)
{
    if (st->st_nlink < 2)
        return 0;
    size_t size = strlen(copy->path) + strlen(name) + 2;
    Link *link = malloc(sizeof *link + size);
    if (link == NULL)
        return -1;
    link->inode = st->st_ino;
    snprintf(link->path, size, "%s/%s", copy->path + 1, name);
    if (tsearch(link, &copy->links, by_inode) != NULL)
        return 0;
    free(link);
    return -1;
}

static int copy_file(Copy *copy, Pair dirs, const char *name, const struct stat *st)
{
    const char *first = known_link(copy, st);
    if (first != NULL)
        return linkat(copy->top_fd, first, dirs.to, name, 0);
    int from = openat(dirs.from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    int to = from < 0 ? -1 : openat(dirs.to, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int r = to < 0 || copy_data(from, to, st->st_size) < 0 || copy_attributes(from, to, st) < 0
                ? -1
                : remember_link(copy, st, name);
    int err = errno;
    if (from >= 0)
        close(from);
    if (to >= 0)
        close(to);
    errno = err;
    return r;
}

static int copy_symlink(Pair dirs, const char *name, const struct stat *st)
{
    char target[PATH_LENGTH];
    const struct timespec times[2] = {st->st_atim, st->st_mtim};
    ssize_t n = readlinkat(dirs.from, name, target, sizeof target - 1);
    if (n < 0)
        return -1;
    target[n] = '\0';
    if (symlinkat(target, dirs.to, name) < 0 ||
        fchownat(dirs.to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    return utimensat(dirs.to, name, times, AT_SYMLINK_NOFOLLOW);
}

/* Whiteouts, FIFOs and sockets; no box can make another kind. */
static int copy_node(Pair dirs, const char *name, const struct stat *st)
{
    const struct timespec times[2] = {st->st_atim, st->st_mtim};
    if (mknodat(dirs.to, name, st->st_mode, st->st_rdev) < 0)
        return -1;
    if (is_whiteout(st))
        return 0;
    if (fchownat(dirs.to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW) < 0 ||
        fchmodat(dirs.to, name, st->st_mode & 07777, 0) < 0)
        return -1;
    return utimensat(dirs.to, name, times, AT_SYMLINK_NOFOLLOW);
}

static int copy_entries(Copy *copy, Pair dirs, int depth);

/* A directory over a directory is merged unless it is opaque; over anything else it replaces. */
static int copy_dir(Copy *copy, Pair dirs, const char *name, const struct stat *st, int depth)
{
    struct stat there;
    Pair inner = {openat(dirs.from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), -1};
    size_t len = strlen(copy->path);
    int r = inner.from < 0 || depth == 0 || len + strlen(name) + 2 > sizeof copy->path ? -1 : 0;
    bool merge = r == 0 && fstatat(dirs.to, name, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
                 S_ISDIR(there.st_mode) && !is_opaque(inner.from);
    if (r == 0 && !merge)
        r = keeper_remove_any(dirs.to, name, DEPTH_MAX) < 0 ? -1 : mkdirat(dirs.to, name, 0700);
    if (r == 0)
        inner.to = openat(dirs.to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (inner.to >= 0) {
        snprintf(copy->path + len, sizeof copy->path - len, "/%s", name);
        r = copy_entries(copy, inner, depth - 1);
        copy->path[len] = '\0';
        r = r < 0 ? -1 : copy_attributes(inner.from, inner.to, st);
        close(inner.to);
    } else {
        r = -1;
    }
    if (inner.from >= 0)
        close(inner.from);
    return r;
}

static int copy_entry(Copy *copy, Pair dirs, const char *name, int depth)
{
    struct stat st;
    if (fstatat(dirs.from, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    if (S_ISDIR(st.st_mode))
        return copy_dir(copy, dirs, name, &st, depth);
    if (keeper_remove_any(dirs.to, name, DEPTH_MAX) < 0)
        return -1;
    if (S_ISREG(st.st_mode))
        return copy_file(copy, dirs, name, &st);
    return S_ISLNK(st.st_mode) ? copy_symlink(dirs, name, &st) : copy_node(dirs, name, &st);
}

static int copy_entries(Copy *copy, Pair dirs, int depth)
{
    int fd = dup(dirs.from);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    int r = dir == NULL ? -1 : 0;
    for (struct dirent *entry; r == 0 && (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = copy_entry(copy, dirs, entry->d_name, depth);
    int err = errno;
    if (dir != NULL)
        closedir(dir);
    errno = err;
    return r;
}

static int copy_part(int from_fd, const char *part, int to_fd)
{
    static Copy copy;
    struct stat st;
    Pair dirs = {openat(from_fd, part, O_RDONLY | O_DIRECTORY | O_CLOEXEC), to_fd};
    if (dirs.from < 0)
        return -1;
    copy = (Copy){.top_fd = to_fd};
    int r = fstatat(dirs.from, "upper", &st, 0) < 0
                ? -1
                : copy_dir(&copy, dirs, "upper", &st, DEPTH_MAX);
    int err = errno;
    tdestroy(copy.links, free);
    close(dirs.from);
    errno = err;
    return r;
}

int keeper_copy_layer(int from_fd, int root_fd, int work_fd)
{
    return copy_part(from_fd, "root", root_fd) < 0 ? -1 : copy_part(from_fd, "work", work_fd);
}
