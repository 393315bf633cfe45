/*
 * The supervisor's files, written before a command starts.
 *
 * Invariants:
 *   1. Nothing else runs in the box meanwhile, except what the caller asked to keep alive; no
 *      symlink is followed either way.
 *   2. What stands at a file's place is removed, whatever it is; what is written belongs to the
 *      box's user.
 *
 * Not here: what the files are for (the library's BoxFile).
 */
#include "sandbox/keeper.h"

#include "sandbox/kernel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define RESOLVE (KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_SYMLINKS)

int keeper_remove_any(int dir_fd, const char *name, int depth)
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
            r = keeper_remove_any(fd, entry->d_name, depth - 1);
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
    if (keeper_remove_any(dir, name, 64) == 0)
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

int keeper_put_files(const Keeper *keeper, const SpecExec *exec, Fail *failed)
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
