/*
 * The erofs form of an image: its layers merged into one read-only file, mounted from that file.
 *
 * The file is the only entry of a layer of its own in the depot; the image's record names it after
 * the image's layers, so that it is counted, verified and collected like them.
 *
 * Invariants:
 *   1. No file is mounted but one that image_erofs_make made here: none comes with an image.
 *   2. The mount is detached and read-only, without devices and set-id programs. It lives as long
 *      as a descriptor or a box that uses it, and keeps the file alive.
 *   3. Owners in it are the store's, as in layers: what shows those shows this.
 *
 * Not here: what reads the layers (erofs_main.c), images (image.c).
 */
#include "sandbox/image.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/box.h"
#include "sandbox/box_ids.h"
#include "sandbox/kernel.h"
#include "sandbox/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define PROGRAM       "assay-erofs"
#define OUT_FD        3
#define MESSAGE_BYTES 65536

#define ATTRS (KERNEL_MOUNT_ATTR_RDONLY | KERNEL_MOUNT_ATTR_NOSUID | KERNEL_MOUNT_ATTR_NODEV)

/* ---- mounting ---- */

/* A detached mount of the file at PATH; -1 and errno. */
static int mount_file(const char *path)
{
    AUTO_FD fs = kernel_fsopen("erofs");
    return fs < 0 || kernel_fs_option(fs, "source", path) < 0 ? -1 : kernel_fsmount(fs, ATTRS);
}

/* Boxes get a copy of a mount, and one that is attached nowhere can be copied since Linux 6.15. */
static gboolean can_clone_detached(void)
{
    AUTO_FD fs = kernel_fsopen("tmpfs");
    AUTO_FD mount = fs < 0 ? -1 : kernel_fsmount(fs, ATTRS);
    AUTO_FD copy = mount < 0 ? -1
                             : kernel_open_tree(mount, "",
                                                KERNEL_OPEN_TREE_CLONE | KERNEL_OPEN_TREE_CLOEXEC |
                                                    KERNEL_AT_EMPTY_PATH);
    return copy >= 0;
}

gboolean image_erofs_check(GError **error)
{
    if (box_store_uid() != BOX_ID_BASE)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "only root can mount it; layers are used");
    AUTO_FD mount = mount_file("/proc/self/exe"); /* a file that is none: how far does it get? */
    if (mount < 0 && errno == ENODEV)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "this kernel has no erofs");
    if (mount < 0 && errno == ENOTBLK)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "this kernel mounts erofs from block devices only");
    if (mount < 0 && errno != EINVAL)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "it cannot be mounted: %s",
                         g_strerror(errno));
    if (!can_clone_detached())
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "this kernel cannot clone detached mounts");
    return access(IMAGE_EROFS_MKFS, X_OK) == 0 ||
           error_set(error, ASSAY_ERROR_UNSUPPORTED, "there is no " IMAGE_EROFS_MKFS);
}

int image_erofs_open(Depot *depot, const char *digest, GError **error)
{
    struct stat st;
    AUTO_FD layer = depot_layer_open(depot, digest, error);
    if (layer < 0)
        return -1;
    AUTO_FD file = openat(layer, IMAGE_EROFS, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", file);
    int mount = file >= 0 && fstat(file, &st) == 0 && S_ISREG(st.st_mode) ? mount_file(path) : -1;
    if (mount < 0)
        error_set_errno(error, errno, "mount the erofs form");
    return mount;
}

/* ---- making ---- */

static gboolean run_program(const int *fds, guint n_fds, guint64 bytes_max, GError **error)
{
    g_autofree char *uid = g_strdup_printf("%u", box_store_uid());
    g_autofree char *n = g_strdup_printf("%u", n_fds - 1);
    g_autofree char *bytes = g_strdup_printf("%" G_GUINT64_FORMAT, bytes_max);
    int targets[1 + IMAGE_LAYERS_MAX], said_fd = -1, status = 0;
    GPid pid;
    for (guint i = 0; i < n_fds; i++)
        targets[i] = OUT_FD + (int)i;
    AUTO_FD program = launch_open_program(PROGRAM, error);
    if (program < 0)
        return FALSE;
    g_autofree char *path = g_strdup_printf("/proc/%d/fd/%d", (int)getpid(), program);
    const char *argv[] = {path, uid, n, bytes, NULL}, *envp[] = {NULL};
    if (!g_spawn_async_with_pipes_and_fds(
            NULL, argv, envp, G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL,
            -1, -1, -1, fds, targets, n_fds, &pid, NULL, NULL, &said_fd, error))
        return FALSE;
    AUTO_FD said = said_fd;
    g_autoptr(GBytes) words = fd_read_all(said, MESSAGE_BYTES, NULL);
    if (words == NULL)
        kill(pid, SIGKILL); /* it says more than there is to say */
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return TRUE;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ)
        return error_set(error, ASSAY_ERROR_LIMIT, "it is larger than %" G_GUINT64_FORMAT " bytes",
                         bytes_max);
    g_autofree char *text = words == NULL
                                ? g_strdup("?")
                                : g_strndup(g_bytes_get_data(words, NULL), g_bytes_get_size(words));
    return error_set(error, ASSAY_ERROR_SYSTEM, "mkfs.erofs: %s", g_strstrip(text));
}

static gboolean fill_stage(Depot *depot, const Image *image, const DepotStage *stage,
                           GError **error)
{
    int fds[1 + IMAGE_LAYERS_MAX];
    gsize n = 0;
    if (!image_layers_open(depot, image, fds + 1, &n, error))
        return FALSE;
    fds[0] = openat(stage->dir_fd, "upper", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    gboolean ok = fds[0] >= 0 ? run_program(fds, 1 + (guint)n,
                                            MIN(depot_bytes_left(depot), IMAGE_BLOB_BYTES), error)
                              : error_set_errno(error, errno, "open the stage's tree");
    for (gsize i = 0; i <= n; i++)
        fd_close_p(&fds[i]);
    return ok;
}

static Image *make(Depot *depot, const Image *image, GError **error)
{
    g_autoptr(DepotStage) stage = depot_stage(depot, error);
    if (stage == NULL || !fill_stage(depot, image, stage, error))
        return NULL;
    AUTO_FD upper = openat(stage->dir_fd, "upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_autofree char *digest = upper < 0 ? NULL : depot_tree_digest(upper, error);
    AUTO_FD layer = digest == NULL ? -1 : depot_commit(depot, stage, digest, error);
    AUTO_FD mount = layer < 0 ? -1 : image_erofs_open(depot, digest, error);
    if (mount < 0)
        return NULL;
    const ImageParts parts = {.id = image->id,
                              .platform = image->platform,
                              .layers = (const char *const *)image->layers,
                              .erofs = digest,
                              .config = image->config};
    return image_keep(depot, image->name, &parts, error);
}

Image *image_erofs_make(Depot *depot, const char *name, GError **error)
{
    Image *image = image_get(depot, name, error);
    if (image == NULL || image->erofs != NULL)
        return image;
    Image *made = image_erofs_check(error) ? make(depot, image, error) : NULL;
    image_free(image);
    if (made == NULL)
        g_prefix_error(error, "image %s: erofs form: ", name);
    return made;
}
