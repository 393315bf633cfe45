/*
 * Writes safetensors: plan the shards, stream each into a temporary file, rename, index last.
 *
 * Invariants:
 *   1. A file under its final name is complete and on the disk; shards without their index are no
 *      checkpoint, so a crash leaves none or a whole one.
 *   2. No hole, as the format demands: in a shard wide elements come first, and spaces pad the
 *      header so that the data begins at a multiple of 64. So tensors are aligned to their element.
 *   3. Memory is one piece, whatever a tensor's size.
 */
#include "policy/safetensors.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#define DATA_ALIGN  64u
#define PIECE_BYTES (4u << 20)

G_STATIC_ASSERT(G_BYTE_ORDER == G_LITTLE_ENDIAN); /* data is written as it lies in memory */

typedef struct Writing {
    const char *dir;
    const SafeTensor *tensors;
    const char *const *metadata;
    SafetensorsFill fill;
    gpointer user_data;
    guint8 *piece;
} Writing;

static guint64 tensor_bytes(const SafeTensor *tensor)
{
    return tensor->count * tensor_dtype_bytes(tensor->dtype);
}

/* Numbers of a shard's tensors, elements of 8 bytes first. */
static GArray *sort_shard(const Writing *w, guint first, guint end)
{
    GArray *order = g_array_new(FALSE, FALSE, sizeof(guint));
    for (gsize size = 8; size > 0; size /= 2)
        for (guint i = first; i < end; i++)
            if (tensor_dtype_bytes(w->tensors[i].dtype) == size)
                g_array_append_val(order, i);
    return order;
}

/* Length, JSON, spaces up to the alignment. */
static GString *make_header(const Writing *w, const GArray *order)
{
    g_autoptr(json_t) object = json_object();
    json_t *metadata = json_pack("{s:s}", "format", "pt"); /* what Hugging Face's loader asks for */
    for (const char *const *pair = w->metadata; pair != NULL && *pair != NULL; pair += 2)
        json_object_set_new(metadata, pair[0], json_string(pair[1]));
    json_object_set_new(object, "__metadata__", metadata);
    guint64 at = 0;
    for (guint k = 0; k < order->len; k++) {
        const SafeTensor *tensor = &w->tensors[g_array_index(order, guint, k)];
        json_t *shape = json_array();
        for (guint i = 0; i < tensor->rank; i++)
            json_array_append_new(shape, json_integer((json_int_t)tensor->dims[i]));
        guint64 end = at + tensor_bytes(tensor);
        json_object_set_new(object, tensor->name,
                            json_pack("{s:s, s:o, s:[I, I]}", "dtype",
                                      tensor_dtype_name(tensor->dtype), "shape", shape,
                                      "data_offsets", (json_int_t)at, (json_int_t)end));
        at = end;
    }
    g_autofree char *text = json_print(object);
    GString *header = g_string_new_len("\0\0\0\0\0\0\0\0", 8);
    g_string_append(header, text);
    while (header->len % DATA_ALIGN != 0)
        g_string_append_c(header, ' ');
    guint64 len = GUINT64_TO_LE(header->len - 8);
    memcpy(header->str, &len, sizeof len);
    return header;
}

static gboolean write_tensor(const Writing *w, int fd, guint i, GError **error)
{
    const SafeTensor *tensor = &w->tensors[i];
    gsize size = tensor_dtype_bytes(tensor->dtype);
    for (guint64 first = 0; first < tensor->count;) {
        guint64 count = MIN(tensor->count - first, PIECE_BYTES / size);
        w->fill(i, first, count, w->piece, w->user_data);
        if (!fd_write_all(fd, w->piece, count * size, error))
            return FALSE;
        first += count;
    }
    return TRUE;
}

static gboolean write_data(const Writing *w, int fd, const GArray *order, GError **error)
{
    g_autoptr(GString) header = make_header(w, order);
    if (!fd_write_all(fd, header->str, header->len, error))
        return FALSE;
    for (guint k = 0; k < order->len; k++)
        if (!write_tensor(w, fd, g_array_index(order, guint, k), error))
            return FALSE;
    return fsync(fd) == 0 || error_set_errno(error, errno, "fsync");
}

/* Tensors first..end-1 under a final name. */
static gboolean write_file(const Writing *w, const char *name, guint first, guint end,
                           GError **error)
{
    g_autofree char *path = g_build_filename(w->dir, name, NULL);
    g_autofree char *tmp = g_strdup_printf("%s.%d.tmp", path, (int)getpid());
    g_autoptr(GArray) order = sort_shard(w, first, end);
    AUTO_FD fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return error_set_errno(error, errno, "create %s", tmp);
    if (!write_data(w, fd, order, error)) {
        g_prefix_error(error, "%s: ", path);
        unlink(tmp);
        return FALSE;
    }
    if (rename(tmp, path) < 0) {
        int saved = errno;
        unlink(tmp);
        return error_set_errno(error, saved, "rename %s", path);
    }
    return TRUE;
}

/* The first number of each shard, and n at the end. */
static GArray *plan_shards(const SafeTensor *tensors, guint n, guint64 shard_bytes_max)
{
    GArray *firsts = g_array_new(FALSE, FALSE, sizeof(guint));
    guint64 bytes = 0;
    for (guint i = 0; i < n; i++) {
        guint64 one = tensor_bytes(&tensors[i]);
        if (i == 0 || (bytes > 0 && bytes + one > shard_bytes_max)) {
            g_array_append_val(firsts, i);
            bytes = 0;
        }
        bytes += one;
    }
    g_array_append_val(firsts, n);
    return firsts;
}

static gboolean write_index(const Writing *w, json_t *map, guint64 total, GError **error)
{
    g_autofree char *path = g_build_filename(w->dir, SAFETENSORS_INDEX, NULL);
    g_autoptr(json_t) index =
        json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    char *text = json_dumps(index, JSON_INDENT(2));
    gboolean ok = file_write_atomic(path, text, strlen(text), error);
    free(text);
    return ok;
}

static char *shard_name(guint shard, guint shards)
{
    return g_strdup_printf("model-%05u-of-%05u.safetensors", shard, shards);
}

static void remove_shards(const Writing *w, guint n, guint shards)
{
    for (guint s = 0; s < n; s++) {
        g_autofree char *name = shard_name(s, shards);
        g_autofree char *path = g_build_filename(w->dir, name, NULL);
        unlink(path);
    }
}

static gboolean write_shards(const Writing *w, const GArray *firsts, GError **error)
{
    g_autoptr(json_t) map = json_object();
    guint shards = firsts->len - 1;
    guint64 total = 0;
    for (guint s = 0; s < shards; s++) {
        guint first = g_array_index(firsts, guint, s), end = g_array_index(firsts, guint, s + 1);
        g_autofree char *name = shard_name(s, shards);
        if (!write_file(w, name, first, end, error)) {
            remove_shards(w, s, shards); /* a full disk gets its room back */
            return FALSE;
        }
        for (guint i = first; i < end; i++) {
            json_object_set_new(map, w->tensors[i].name, json_string(name));
            total += tensor_bytes(&w->tensors[i]);
        }
    }
    return write_index(w, map, total, error);
}

/* Refuses a directory that holds a checkpoint: two would be one lie. */
static gboolean check_empty(const char *dir, GError **error)
{
    static const char *const held[] = {SAFETENSORS_SINGLE, SAFETENSORS_INDEX};
    for (guint i = 0; i < G_N_ELEMENTS(held); i++) {
        g_autofree char *path = g_build_filename(dir, held[i], NULL);
        if (g_file_test(path, G_FILE_TEST_EXISTS))
            return error_set(error, ASSAY_ERROR_CONFLICT, "%s: is there already", path);
    }
    return TRUE;
}

/* Better now than after an hour of writing. The directory need not be there yet. */
static gboolean check_room(const char *dir, const SafeTensor *tensors, guint n, GError **error)
{
    struct statvfs fs;
    guint64 needed = 0;
    g_autofree char *there = g_canonicalize_filename(dir, NULL);
    for (guint i = 0; i < n; i++)
        needed += tensor_bytes(&tensors[i]);
    while (!g_file_test(there, G_FILE_TEST_EXISTS)) {
        char *parent = g_path_get_dirname(there);
        g_free(there);
        there = parent;
    }
    if (statvfs(there, &fs) < 0)
        return error_set_errno(error, errno, "statvfs %s", there);
    guint64 room = (guint64)fs.f_bavail * fs.f_frsize;
    return needed <= room ||
           error_set(error, ASSAY_ERROR_LIMIT, "%s: the tensors take %.1f GB, the disk has %.1f GB",
                     dir, (double)needed / 1e9, (double)room / 1e9);
}

static gboolean sync_dir(const char *dir, GError **error)
{
    AUTO_FD fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return (fd >= 0 && fsync(fd) == 0) || error_set_errno(error, errno, "fsync %s", dir);
}

gboolean safetensors_write(const char *dir, const SafeTensor *tensors, guint n,
                           guint64 shard_bytes_max, const char *const *metadata,
                           SafetensorsFill fill, gpointer user_data, GError **error)
{
    g_assert(n > 0 && n <= SAFETENSORS_TENSORS_MAX);
    if (!check_empty(dir, error) || !check_room(dir, tensors, n, error))
        return FALSE;
    if (g_mkdir_with_parents(dir, 0755) < 0)
        return error_set_errno(error, errno, "make %s", dir);
    g_autofree guint8 *piece = g_malloc(PIECE_BYTES);
    const Writing writing = {dir, tensors, metadata, fill, user_data, piece};
    g_autoptr(GArray) firsts = plan_shards(tensors, n, shard_bytes_max);
    gboolean ok = firsts->len == 2 ? write_file(&writing, SAFETENSORS_SINGLE, 0, n, error)
                                   : write_shards(&writing, firsts, error);
    return ok && sync_dir(dir, error);
}
