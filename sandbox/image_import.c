/*
 * Images from files: OCI layouts, docker archives, tars of root file systems.
 *
 * A tar is unpacked in a box first, whatever it is; what came out says what it was.
 *
 * Invariants:
 *   1. Files of a layout are opened beneath its directory, whatever paths and links say, and only
 *      when they are regular.
 *   2. Every blob is hashed before it is used, and used from where it was hashed.
 *
 * Not here: what manifests say (image_manifest.c), layers (image.c).
 */
#include "sandbox/image.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define BENEATH (KERNEL_RESOLVE_BENEATH | KERNEL_RESOLVE_NO_MAGICLINKS)

typedef struct Layout {
    ImageSource source;
    int dir_fd;
} Layout;

static int open_regular(int dir_fd, const char *path, GError **error)
{
    struct stat st;
    AUTO_FD fd =
        kernel_openat2(dir_fd, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0, BENEATH);
    if (fd < 0 || fstat(fd, &st) < 0) {
        if (errno == ENOENT)
            error_set(error, ASSAY_ERROR_NOT_FOUND, "it has no %s", path);
        else
            error_set_errno(error, errno, "open %s", path);
        return -1;
    }
    if (!S_ISREG(st.st_mode)) {
        error_set(error, ASSAY_ERROR_INPUT, "%s is not a regular file", path);
        return -1;
    }
    return fd_take(&fd);
}

static char *blob_path(const ImageBlob *blob)
{
    return blob->path != NULL ? g_strdup(blob->path)
                              : g_strconcat("blobs/sha256/", blob->digest + 7, NULL);
}

static gboolean check_sum(const ImageBlob *blob, const char *hex, guint64 size, GError **error)
{
    if (blob->size >= 0 && size != (guint64)blob->size)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "blob %s has %" G_GUINT64_FORMAT " bytes, not %" G_GINT64_FORMAT,
                         blob->digest, size, blob->size);
    return blob->digest == NULL || strcmp(hex, blob->digest + 7) == 0 ||
           error_set(error, ASSAY_ERROR_INPUT, "blob %s has the digest sha256:%s", blob->digest,
                     hex);
}

static GBytes *layout_read(ImageSource *source, const ImageBlob *blob, GError **error)
{
    const Layout *layout = (const Layout *)source;
    g_autofree char *path = blob_path(blob);
    AUTO_FD fd = open_regular(layout->dir_fd, path, error);
    g_autoptr(GBytes) bytes = fd < 0 ? NULL : fd_read_all(fd, IMAGE_JSON_MAX, error);
    if (bytes == NULL)
        return NULL;
    g_autofree char *hex = g_compute_checksum_for_bytes(G_CHECKSUM_SHA256, bytes);
    return check_sum(blob, hex, g_bytes_get_size(bytes), error) ? g_steal_pointer(&bytes) : NULL;
}

static gboolean is_cancelled(const ImageOptions *options)
{
    GPollFD poll = {.fd = options->cancel_fd, .events = G_IO_IN};
    return options->cancel_fd > 0 && g_poll(&poll, 1, 0) > 0;
}

/* A copy: the file may be on another file system, unreadable in the box, or change. */
static gboolean copy_file(int from, int to, const ImageOptions *options, const char *digest,
                          GChecksum *sum, guint64 *ret_size, GError **error)
{
    g_autofree guint8 *chunk = g_malloc(1 << 20);
    struct stat st;
    guint64 total = fstat(from, &st) == 0 ? (guint64)st.st_size : 0;
    for (;;) {
        ssize_t n = read(from, chunk, 1 << 20);
        if (n < 0)
            return error_set_errno(error, errno, "read");
        if (n == 0)
            return TRUE;
        *ret_size += (guint64)n;
        if (*ret_size > (guint64)IMAGE_BLOB_BYTES)
            return error_set(error, ASSAY_ERROR_LIMIT, "more than %lld bytes", IMAGE_BLOB_BYTES);
        if (is_cancelled(options))
            return error_set(error, ASSAY_ERROR_CONFLICT, "interrupted");
        g_checksum_update(sum, chunk, n);
        if (!fd_write_all(to, chunk, (gsize)n, error))
            return FALSE;
        if (options->progress != NULL)
            options->progress(IMAGE_STEP_FETCH, digest, *ret_size, total, options->progress_data);
    }
}

static gboolean blob_copy(int from, const ImageBlob *blob, int dir_fd, const ImageOptions *options,
                          GError **error)
{
    guint64 size = 0;
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    AUTO_FD to = openat(dir_fd, "blob", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (to < 0 || fchmod(to, 0644) < 0)
        return error_set_errno(error, errno, "create a file in the image store");
    const char *shown = blob->digest != NULL ? blob->digest : blob->path;
    return copy_file(from, to, options, shown, sum, &size, error) &&
           check_sum(blob, g_checksum_get_string(sum), size, error);
}

static gboolean layout_fetch(ImageSource *source, const ImageBlob *blob, int dir_fd, GError **error)
{
    const Layout *layout = (const Layout *)source;
    g_autofree char *path = blob_path(blob);
    AUTO_FD from = open_regular(layout->dir_fd, path, error);
    return from >= 0 && blob_copy(from, blob, dir_fd, source->options, error);
}

static json_t *json_below(int dir_fd, const char *path, GError **error)
{
    AUTO_FD fd = open_regular(dir_fd, path, error);
    g_autoptr(GBytes) bytes = fd < 0 ? NULL : fd_read_all(fd, IMAGE_JSON_MAX, error);
    json_t *value = bytes == NULL
                        ? NULL
                        : json_parse(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), error);
    if (value == NULL && bytes != NULL)
        g_prefix_error(error, "%s: ", path);
    return value;
}

/* ---- OCI ---- */

/* Follows indexes down to a manifest. */
static gboolean oci_manifest(Layout *layout, const json_t *index, const char *platform,
                             const char *tag, ImageManifest *ret_manifest, GError **error)
{
    g_autoptr(json_t) value = json_incref((json_t *)(gsize)index);
    for (guint depth = 0; depth < IMAGE_INDEX_MAX && image_is_index(value); depth++) {
        ImageBlob blob = {0};
        if (!image_index_pick(value, platform, depth == 0 ? tag : NULL, &blob, error))
            return FALSE;
        g_autoptr(GBytes) bytes = layout_read(&layout->source, &blob, error);
        image_blob_clear(&blob);
        json_decref(value);
        value = bytes == NULL
                    ? NULL
                    : json_parse(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), error);
        if (value == NULL)
            return FALSE;
    }
    return image_manifest_parse(value, ret_manifest, error);
}

/* The tag that the layout itself gives its only image. */
static const char *only_tag(const json_t *index)
{
    const json_t *list = json_object_get(index, "manifests");
    const json_t *item = json_array_size(list) == 1 ? json_array_get(list, 0) : NULL;
    return json_string_value(
        json_object_get(json_object_get(item, "annotations"), "org.opencontainers.image.ref.name"));
}

static Image *import_oci(Depot *depot, Layout *layout, const char *name, const char *fallback,
                         GError **error)
{
    const ImageOptions *options = layout->source.options;
    g_autofree char *host = image_platform_host();
    g_auto(ImageManifest) manifest = {0};
    g_autoptr(json_t) index = json_below(layout->dir_fd, "index.json", error);
    if (index == NULL)
        return NULL;
    if (!image_is_index(index)) {
        error_set(error, ASSAY_ERROR_INPUT, "index.json has no list of manifests");
        return NULL;
    }
    const char *tag = only_tag(index);
    g_autofree char *made = g_strdup_printf("%s:%s", fallback, tag != NULL ? tag : "latest");
    g_autofree char *whole = tag != NULL ? image_name_normal(tag, NULL) : NULL;
    /* containerd writes whole references as tags, umoci and skopeo only the part after ":" */
    const char *use = name != NULL                                  ? name
                      : whole != NULL && strpbrk(tag, ":/") != NULL ? tag
                                                                    : made;
    g_auto(ImageRef) ref = {0};
    if (!image_ref_parse(use, &ref, error))
        return NULL;
    gboolean many = json_array_size(json_object_get(index, "manifests")) > 1;
    const char *want = name != NULL && many && ref.tag != NULL ? ref.tag : NULL;
    const char *platform = options->platform != NULL ? options->platform : host;
    g_autoptr(GError) local = NULL;
    if (!oci_manifest(layout, index, platform, want, &manifest, &local)) {
        /* an index over platforms has no tags */
        if (want == NULL || !g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND) ||
            !oci_manifest(layout, index, platform, NULL, &manifest, NULL)) {
            g_propagate_error(error, g_steal_pointer(&local));
            return NULL;
        }
    }
    return image_install(depot, use, &manifest, &layout->source, error);
}

/* ---- docker save ---- */

static Image *import_docker(Depot *depot, Layout *layout, const char *name, const char *fallback,
                            GError **error)
{
    g_auto(ImageManifest) manifest = {0};
    g_autofree char *tag = NULL, *normal = name != NULL ? image_name_normal(name, error) : NULL;
    g_autoptr(json_t) value =
        name != NULL && normal == NULL ? NULL : json_below(layout->dir_fd, "manifest.json", error);
    if (value == NULL || !image_docker_parse(value, normal, &manifest, &tag, error))
        return NULL;
    return image_install(depot,
                         name != NULL  ? name
                         : tag != NULL ? tag
                                       : fallback,
                         &manifest, &layout->source, error);
}

/* ---- what it is ---- */

static gboolean has(int dir_fd, const char *name)
{
    struct stat st;
    return fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

static gboolean is_layout(int dir_fd)
{
    return (has(dir_fd, "index.json") || has(dir_fd, "manifest.json")) && !has(dir_fd, "etc") &&
           !has(dir_fd, "usr");
}

static Image *import_layout(Depot *depot, int dir_fd, const char *name, const char *fallback,
                            const ImageOptions *options, GError **error)
{
    Layout layout = {{layout_read, layout_fetch, options}, dir_fd};
    /* `docker save` of today writes both; its manifest.json has the tags. */
    return has(dir_fd, "manifest.json") ? import_docker(depot, &layout, name, fallback, error)
                                        : import_oci(depot, &layout, name, fallback, error);
}

static Image *import_rootfs(Depot *depot, DepotStage *stage, const char *name, const char *diff_id,
                            GError **error)
{
    const char *const layers[] = {diff_id, NULL};
    g_autofree char *platform = image_platform_host();
    AUTO_FD layer = depot_commit(depot, stage, diff_id, error);
    const ImageParts parts = {.id = diff_id, .platform = platform, .layers = layers};
    return layer < 0 ? NULL : image_keep(depot, name, &parts, error);
}

static Image *import_tar(Depot *depot, int fd, const char *name, const char *fallback,
                         const ImageOptions *options, GError **error)
{
    g_autoptr(DepotStage) stage = depot_stage(depot, error);
    AUTO_FD in = stage == NULL ? -1 : image_stage_in(stage, error);
    g_auto(ImageUnpacked) unpacked = {0};
    const ImageBlob blob = {.path = (char *)(gsize)fallback, .size = -1};
    if (in < 0 || !blob_copy(fd, &blob, in, options, error) ||
        !image_unpack(stage, in, options, &unpacked, error))
        return NULL;
    unlinkat(in, "blob", 0);
    AUTO_FD tree = openat(stage->dir_fd, "upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (tree < 0) {
        error_set_errno(error, errno, "open what was unpacked");
        return NULL;
    }
    return is_layout(tree) ? import_layout(depot, tree, name, fallback, options, error)
                           : import_rootfs(depot, stage, name != NULL ? name : fallback,
                                           unpacked.diff_id, error);
}

/* "dir/Debian_12.tar.gz" becomes "debian_12". */
static char *fallback_name(const char *path)
{
    g_autofree char *base = g_path_get_basename(path);
    g_autofree char *lower = g_ascii_strdown(base, -1);
    char *dot = strstr(lower, ".tar");
    if (dot == NULL)
        dot = strstr(lower, ".tgz");
    if (dot != NULL && dot > lower)
        *dot = '\0';
    g_strcanon(lower, "abcdefghijklmnopqrstuvwxyz0123456789._-", '-');
    return g_steal_pointer(&lower);
}

Image *image_import(Depot *depot, const char *path, const char *name, const ImageOptions *options,
                    GError **error)
{
    struct stat st;
    g_autofree char *fallback = fallback_name(path);
    g_autofree char *normal = name != NULL ? image_name_normal(name, error) : NULL;
    if (name != NULL && normal == NULL)
        return NULL;
    AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0) {
        error_set_errno(error, errno, "open %s", path);
        return NULL;
    }
    Image *image = NULL;
    if (S_ISREG(st.st_mode))
        image = import_tar(depot, fd, name, fallback, options, error);
    else if (S_ISDIR(st.st_mode) && is_layout(fd))
        image = import_layout(depot, fd, name, fallback, options, error);
    else
        error_set(error, ASSAY_ERROR_INPUT, "it is neither an archive nor an OCI layout");
    if (image == NULL)
        g_prefix_error(error, "%s: ", path);
    return image;
}
