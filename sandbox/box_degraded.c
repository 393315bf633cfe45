/*
 * The copy that stands in for a tree where there are no mount namespaces.
 *
 *   COPY/work   the workspace         COPY/tmp   TMPDIR, and files below /tmp
 *   COPY/home   HOME                  COPY/root  files of any other path
 *
 * Invariants:
 *   1. The copy is made by descriptor, follows no link, makes no device, and is bounded by the
 *      box's disk limit.
 *   2. It belongs to the payload's host id: the store's when we are root, else our own.
 *
 * Not here: Landlock and the rest of the walls (keeper_payload.c).
 */
#include "sandbox/box_degraded.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define COPY_DEPTH_MAX 256
#define OPAQUE_XATTR   "user.overlay.opaque"
#define NOBODY_ID      65534u

typedef struct Copy {
    guint uid, gid;
    guint64 bytes, bytes_max; /* 0: unlimited */
} Copy;

static gboolean copy_dir(Copy *copy, int from, int to, int depth, GError **error);

static gboolean copy_bytes(Copy *copy, int from, int to, GError **error)
{
    guint8 chunk[65536];
    ssize_t n;
    while ((n = read(from, chunk, sizeof chunk)) > 0) {
        copy->bytes += (guint64)n;
        if (copy->bytes_max > 0 && copy->bytes > copy->bytes_max)
            return error_set(error, ASSAY_ERROR_LIMIT, "the workspace is larger than disk_bytes");
        if (!fd_write_all(to, chunk, (gsize)n, error))
            return FALSE;
    }
    return n == 0 || error_set_errno(error, errno, "read");
}

static gboolean give(const Copy *copy, int to, const char *name, GError **error)
{
    return fchownat(to, name, copy->uid, copy->gid, AT_SYMLINK_NOFOLLOW) == 0 ||
           error_set_errno(error, errno, "chown %s", name);
}

static gboolean copy_file(Copy *copy, int from, int to, const char *name, mode_t mode,
                          GError **error)
{
    AUTO_FD in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    AUTO_FD out = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (in < 0 || out < 0)
        return error_set_errno(error, errno, "copy %s", name);
    if (!copy_bytes(copy, in, out, error) || !give(copy, to, name, error))
        return FALSE;
    return fchmod(out, mode & 0777) == 0 || error_set_errno(error, errno, "chmod %s", name);
}

static gboolean copy_link(const Copy *copy, int from, int to, const char *name, GError **error)
{
    char target[4096];
    ssize_t n = readlinkat(from, name, target, sizeof target - 1);
    if (n < 0)
        return error_set_errno(error, errno, "read link %s", name);
    target[n] = '\0';
    if (symlinkat(target, to, name) < 0)
        return error_set_errno(error, errno, "make link %s", name);
    return give(copy, to, name, error);
}

static gboolean copy_sub(Copy *copy, int from, int to, const char *name, mode_t mode, int depth,
                         GError **error)
{
    AUTO_FD in = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (in < 0 || depth > COPY_DEPTH_MAX)
        return error_set_errno(error, in < 0 ? errno : ELOOP, "open %s", name);
    char opaque;
    if (fgetxattr(in, OPAQUE_XATTR, &opaque, 1) == 1 && !tree_remove(to, name, error))
        return FALSE;
    AUTO_FD out = tree_open_dir(to, name, 0700, error);
    if (out < 0 || !copy_dir(copy, in, out, depth + 1, error) || !give(copy, to, name, error))
        return FALSE;
    return fchmod(out, mode & 0777) == 0 || error_set_errno(error, errno, "chmod %s", name);
}

/* One entry of an upper layer replaces what a lower left; 0:0 devices are whiteouts. */
static gboolean copy_entry(Copy *copy, int from, int to, const char *name, int depth,
                           GError **error)
{
    struct stat st;
    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return error_set_errno(error, errno, "stat %s", name);
    if (S_ISDIR(st.st_mode))
        return copy_sub(copy, from, to, name, st.st_mode, depth, error);
    if (!tree_remove(to, name, error))
        return FALSE;
    if (S_ISREG(st.st_mode))
        return copy_file(copy, from, to, name, st.st_mode, error);
    if (S_ISLNK(st.st_mode))
        return copy_link(copy, from, to, name, error);
    return TRUE; /* whiteouts; devices, sockets and pipes have no place in a workspace */
}

static gboolean copy_dir(Copy *copy, int from, int to, int depth, GError **error)
{
    int again = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = again < 0 ? NULL : fdopendir(again);
    if (dir == NULL) {
        if (again >= 0)
            close(again);
        return error_set_errno(error, errno, "open a directory of the workspace");
    }
    gboolean ok = TRUE;
    for (struct dirent *entry; ok && (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            ok = copy_entry(copy, from, to, entry->d_name, depth, error);
    closedir(dir);
    return ok;
}

/* Payloads are never the host's root: the store's id, or nobody where that cannot be had. */
static void choose_ids(Box *box)
{
    guint uid = geteuid(), gid = getegid();
    if (uid == 0) {
        uid = box_store_uid() != 0 ? box_store_uid() : NOBODY_ID;
        gid = box_store_gid() != 0 ? box_store_gid() : NOBODY_ID;
    }
    box->ids = (BoxIds){.mode = BOX_IDS_SINGLE, .base = uid, .uid = uid, .gid = gid};
    box->ids.uids = (SpecMap){.n = 1, .lines = {{0, uid, 1}}};
    box->ids.gids = (SpecMap){.n = 1, .lines = {{0, gid, 1}}};
}

static gboolean check(const BoxSpec *spec, GError **error)
{
    if (spec->n_root > 0 || spec->n_layers > 0 || spec->root_upper_fd > 0 ||
        spec->work_upper_fd > 0 || spec->n_mounts > 0)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "without namespaces a box has only a workspace: no roots, layers, "
                         "uppers or mounts");
    return TRUE;
}

static gboolean fill(const Box *box, const BoxSpec *spec, int top, GError **error)
{
    static const char *const names[] = {"work", "tmp", "home", "root"};
    Copy copy = {box->ids.uid, box->ids.gid, 0, spec->limits.disk_bytes};
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        AUTO_FD dir = tree_open_dir(top, names[i], 0700, error);
        if (dir < 0)
            return FALSE;
        for (gsize k = spec->n_work; i == 0 && k-- > 0;)
            if (!copy_dir(&copy, spec->work_fds[k], dir, 0, error))
                return FALSE;
        if (!give(&copy, top, names[i], error))
            return FALSE;
    }
    return fchown(top, copy.uid, copy.gid) == 0 || error_set_errno(error, errno, "chown");
}

gboolean box_degraded_prepare(Box *box, const BoxSpec *spec, GError **error)
{
    if (!check(spec, error))
        return FALSE;
    choose_ids(box);
    box->copy_dir = g_dir_make_tmp("assay-box-XXXXXX", error);
    if (box->copy_dir == NULL)
        return FALSE;
    AUTO_FD top = open(box->copy_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (top < 0)
        return error_set_errno(error, errno, "open %s", box->copy_dir);
    return fill(box, spec, top, error);
}

void box_degraded_remove(Box *box)
{
    g_autoptr(GError) error = NULL;
    if (box->copy_dir != NULL && !tree_remove(AT_FDCWD, box->copy_dir, &error))
        g_warning("cannot remove %s: %s", box->copy_dir, error->message);
    g_clear_pointer(&box->copy_dir, g_free);
}

char **box_degraded_envp(const Box *box, const char *const *envp)
{
    GPtrArray *list = g_ptr_array_new();
    for (; *envp != NULL; envp++)
        if (!g_str_has_prefix(*envp, "HOME=") && !g_str_has_prefix(*envp, "TMPDIR="))
            g_ptr_array_add(list, g_strdup(*envp));
    g_ptr_array_add(list, g_strdup_printf("HOME=%s/home", box->copy_dir));
    g_ptr_array_add(list, g_strdup_printf("TMPDIR=%s/tmp", box->copy_dir));
    g_ptr_array_add(list, NULL);
    return (char **)g_ptr_array_free(list, FALSE);
}

/* What follows PREFIX in PATH: "" or "/..."; NULL when PATH is not there or below. */
static const char *below(const char *path, const char *prefix)
{
    gsize len = strlen(prefix);
    return g_str_has_prefix(path, prefix) && (path[len] == '\0' || path[len] == '/') ? path + len
                                                                                     : NULL;
}

char *box_degraded_file_path(const Box *box, const char *path)
{
    const char *rest = below(path, box->work_path);
    if (rest != NULL)
        return g_strconcat("/work", rest, NULL);
    return below(path, "/tmp") != NULL ? g_strdup(path) : g_strconcat("/root", path, NULL);
}

char *box_path_inside(const Box *box, const char *path)
{
    if (box->copy_dir == NULL || below(path, box->copy_dir) != NULL)
        return g_strdup(path);
    if (below(path, box->work_path) == NULL && below(path, "/tmp") == NULL)
        return g_strdup(path);
    g_autofree char *file = box_degraded_file_path(box, path);
    return g_strconcat(box->copy_dir, file, NULL);
}

char *box_text_inside(const Box *box, const char *text)
{
    g_autoptr(GString) out = g_string_new(text);
    if (box->copy_dir != NULL) {
        g_autofree char *tmp = box_path_inside(box, "/tmp/x");
        tmp[strlen(tmp) - 1] = '\0';
        g_autofree char *work = box_path_inside(box, box->work_path);
        g_string_replace(out, "/tmp/", tmp, 0);
        g_string_replace(out, box->work_path, work, 0);
    }
    return g_string_free(g_steal_pointer(&out), FALSE);
}
