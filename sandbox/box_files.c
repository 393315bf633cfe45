/*
 * Files of a box from outside.
 *
 * Invariants:
 *   1. Every path is opened with RESOLVE_BENEATH | NO_SYMLINKS | NO_MAGICLINKS below a descriptor
 *      of the merged tree (or of the copy), never by a path of the host.
 *   2. Nothing but a regular file is ever read; opening waits for nothing (a FIFO) and takes no
 *      terminal.
 *   3. What is written is written with the box user's file system ids: as that user could, owned by
 *      it, within its quota.
 *   4. Names are bytes, hostile ones; nothing here prints them.
 *
 * Not here: files for a command (keeper_files.c), what has changed (box_changes.c).
 */
#include "sandbox/box_private.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/kernel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define RESOLVE (KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_SYMLINKS | KERNEL_RESOLVE_NO_MAGICLINKS)

/* The path below root_fd; NULL when it is not one that can exist. */
static char *below_root(const Box *box, const char *path, GError **error)
{
    g_autofree char *full =
        path[0] == '/' ? g_strdup(path) : g_strconcat(box->work_path, "/", path, NULL);
    gsize len = strlen(full);
    if (len > 1 && full[len - 1] == '/')
        full[len - 1] = '\0';
    if (!spec_path_ok(full)) {
        error_set(error, ASSAY_ERROR_INPUT, "not an absolute, normal path, nor one relative to %s",
                  box->work_path);
        return NULL;
    }
    if (box->copy_dir == NULL)
        return g_strdup(full[1] == '\0' ? "." : full + 1);
    g_autofree char *inside = box_path_inside(box, full);
    gsize copy_len = strlen(box->copy_dir);
    if (strncmp(inside, box->copy_dir, copy_len) != 0 || inside[copy_len] != '/') {
        error_set(error, ASSAY_ERROR_NOT_ALLOWED,
                  "without namespaces only the workspace and /tmp are the box's");
        return NULL;
    }
    return g_strdup(inside + copy_len + 1);
}

static gboolean set_open_error(GError **error, int err)
{
    switch (err) {
    case ENOENT:
    case ENOTDIR:
        return error_set(error, ASSAY_ERROR_NOT_FOUND, "no such file");
    case ELOOP:
    case EXDEV:
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "a link is on the way");
    case ENXIO: /* a socket */
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "not a regular file");
    case EACCES:
    case EPERM:
    case EROFS:
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "%s", g_strerror(err));
    case ENOSPC:
    case EDQUOT:
        return error_set(error, ASSAY_ERROR_LIMIT, "the box's disk is full");
    default:
        return error_set_errno(error, err, "open a file of the box");
    }
}

static int open_below(int top_fd, const char *path, guint64 flags, GError **error)
{
    int fd = kernel_openat2(top_fd, path, flags | O_CLOEXEC, 0, RESOLVE);
    if (fd < 0)
        set_open_error(error, errno);
    return fd;
}

static int open_path(const Box *box, const char *path, guint64 flags, GError **error)
{
    g_autofree char *below = below_root(box, path, error);
    return below == NULL ? -1 : open_below(box->root_fd, below, flags, error);
}

void box_file_info_free(BoxFileInfo *info)
{
    g_free(info->name);
    g_free(info);
}

static BoxFileInfo *info_new(const char *name, const struct stat *st)
{
    BoxFileInfo *info = g_new0(BoxFileInfo, 1);
    *info =
        (BoxFileInfo){.name = g_strdup(name),
                      .kind = S_ISREG(st->st_mode)   ? BOX_FILE_REGULAR
                              : S_ISDIR(st->st_mode) ? BOX_FILE_DIR
                              : S_ISLNK(st->st_mode) ? BOX_FILE_SYMLINK
                                                     : BOX_FILE_OTHER,
                      .mode = st->st_mode & 07777,
                      .size = (guint64)st->st_size,
                      .mtime_ns = (gint64)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec};
    return info;
}

/* The last component of a path below the root, its directory opened. */
static int open_parent(const Box *box, const char *path, char **ret_name, GError **error)
{
    g_autofree char *below = below_root(box, path, error);
    if (below == NULL)
        return -1;
    char *slash = strrchr(below, '/');
    *ret_name = g_strdup(slash == NULL ? below : slash + 1);
    if (slash != NULL)
        *slash = '\0';
    return open_below(box->root_fd, slash == NULL ? "." : below, O_PATH | O_DIRECTORY, error);
}

BoxFileInfo *box_file_stat(const Box *box, const char *path, GError **error)
{
    g_autofree char *name = NULL;
    struct stat st;
    AUTO_FD dir = open_parent(box, path, &name, error);
    if (dir < 0)
        return NULL;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        set_open_error(error, errno);
        return NULL;
    }
    return info_new(name, &st);
}

GBytes *box_file_read(const Box *box, const char *path, gsize len_max, GError **error)
{
    struct stat st;
    AUTO_FD fd = open_path(box, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, error);
    if (fd < 0)
        return NULL;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        error_set(error, ASSAY_ERROR_NOT_ALLOWED, "not a regular file");
        return NULL;
    }
    return fd_read_all(fd, len_max, error);
}

static int by_name(gconstpointer a, gconstpointer b)
{
    return strcmp((*(BoxFileInfo *const *)a)->name, (*(BoxFileInfo *const *)b)->name);
}

GPtrArray *box_file_list(const Box *box, const char *path, guint n_max, GError **error)
{
    g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func((GDestroyNotify)box_file_info_free);
    int fd = open_path(box, path, O_RDONLY | O_DIRECTORY, error);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (dir == NULL)
        return NULL;
    struct stat st;
    for (struct dirent *entry; list->len <= n_max && (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            fstatat(fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            g_ptr_array_add(list, info_new(entry->d_name, &st));
    closedir(dir);
    if (list->len > n_max) {
        error_set(error, ASSAY_ERROR_LIMIT, "the directory has more than %u entries", n_max);
        return NULL;
    }
    g_ptr_array_sort(list, by_name);
    return g_steal_pointer(&list);
}

/* This thread's file system ids: root gives its own up for the box user's; anybody else has them
 * already. */
static void become(const Box *box, gboolean box_user)
{
    if (geteuid() != 0)
        return;
    guint base = box->ids.mode == BOX_IDS_SINGLE ? 0 : box->ids.base;
    guint uid = box->copy_dir != NULL ? box->ids.uids.lines[0][1] : base + box->uid;
    guint gid = box->copy_dir != NULL ? box->ids.gids.lines[0][1] : base + box->gid;
    /* In this order each way: without uid 0 the group could not be changed. */
    if (!box_user)
        syscall(SYS_setfsuid, 0);
    syscall(SYS_setfsgid, box_user ? gid : getegid());
    if (box_user)
        syscall(SYS_setfsuid, uid);
}

static gboolean write_new(int dir, const char *name, const void *data, gsize len, guint mode,
                          GError **error)
{
    g_autofree char *temporary = g_strdup_printf(".%.200s.%08x", name, g_random_int());
    AUTO_FD fd = openat(dir, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return set_open_error(error, errno);
    struct stat st;
    gboolean ok = TRUE;
    gsize done = 0;
    for (ssize_t n; ok && done < len; done += (gsize)MAX(n, 0))
        ok = (n = write(fd, (const char *)data + done, len - done)) >= 0 || errno == EINTR;
    ok = ok && fchmod(fd, mode & 0777) == 0;
    if (ok && fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(st.st_mode)) {
        unlinkat(dir, temporary, 0);
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "not a regular file");
    }
    if (ok && renameat(dir, temporary, dir, name) == 0)
        return TRUE;
    int err = errno;
    unlinkat(dir, temporary, 0);
    return set_open_error(error, err);
}

gboolean box_file_write(const Box *box, const char *path, const void *data, gsize len, guint mode,
                        GError **error)
{
    g_autofree char *name = NULL;
    AUTO_FD dir = open_parent(box, path, &name, error);
    if (dir < 0)
        return FALSE;
    if (g_str_equal(name, "."))
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "not a regular file");
    become(box, TRUE);
    gboolean ok = write_new(dir, name, data, len, mode, error);
    become(box, FALSE);
    return ok;
}
