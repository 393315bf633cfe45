/*
 * Reads safetensors files that anybody may have written.
 *
 * Invariants:
 *   1. Every number of a header is checked against the file's true length before it is used, and
 *      the JSON's depth and number of values before it is parsed: memory stays within a small
 *      multiple of the header.
 *   2. The tensors of a file cover its data exactly: no overlap, no hole, nothing behind the last.
 *   3. A tensor's bytes are aligned to its element, so that data is used where it is mapped.
 *   4. Names are unique in a checkpoint; index and shards say the same.
 *
 * A file that is cut short while it is mapped ends the process (SIGBUS), as with any mapped file.
 *
 * Not here: writing (safetensors_write.c), which tensors a model has (tensors.c).
 */
#include "policy/safetensors.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "policy/file.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define HEADER_BYTES_MAX (100u << 20) /* the format's own limit */
#define INDEX_BYTES_MAX  (64u << 20)
#define NAME_BYTES_MAX   512u
#define FILES_MAX        4096u
#define HEADER_DEPTH_MAX 3u                              /* object, tensor, shape */
#define VALUES_MAX       (12u * SAFETENSORS_TENSORS_MAX) /* of a tensor: 3 keys, dims, offsets */

typedef struct Mapped {
    char *name;
    guint8 *base;
    gsize len;
} Mapped;

struct Safetensors {
    GArray *files;      /* Mapped */
    GPtrArray *tensors; /* SafeTensor */
    GHashTable *by_name;
    GHashTable *metadata; /* of the first file */
    guint64 bytes;
};

static const struct {
    const char *name;
    gsize bytes;
} dtypes[] = {
    [TENSOR_NONE] = {"none", 0}, [TENSOR_F64] = {"F64", 8},         [TENSOR_F32] = {"F32", 4},
    [TENSOR_F16] = {"F16", 2},   [TENSOR_BF16] = {"BF16", 2},       [TENSOR_I8] = {"I8", 1},
    [TENSOR_U8] = {"U8", 1},     [TENSOR_F8_E4M3] = {"F8_E4M3", 1},
};

const char *tensor_dtype_name(TensorDtype dtype)
{
    return dtypes[dtype].name;
}

gsize tensor_dtype_bytes(TensorDtype dtype)
{
    return dtypes[dtype].bytes;
}

TensorDtype tensor_dtype_parse(const char *name)
{
    for (guint i = 1; i < G_N_ELEMENTS(dtypes); i++)
        if (strcmp(name, dtypes[i].name) == 0)
            return (TensorDtype)i;
    return TENSOR_NONE;
}

char *safetensor_shape_text(const SafeTensor *tensor)
{
    g_autoptr(GString) text = g_string_new("[");
    for (guint i = 0; i < tensor->rank; i++)
        g_string_append_printf(text, "%s%" G_GUINT64_FORMAT, i > 0 ? ", " : "", tensor->dims[i]);
    g_string_append_c(text, ']');
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static void tensor_free(gpointer data)
{
    SafeTensor *tensor = data;
    if (tensor != NULL)
        g_free(tensor->name);
    g_free(tensor);
}

/* Depth, members of one container and values in all, by the brackets and commas outside strings. */
static gboolean is_small_json(const char *text, gsize len, GError **error)
{
    guint members[HEADER_DEPTH_MAX + 1] = {0}, depth = 0, values = 0;
    gboolean quoted = FALSE;
    for (gsize i = 0; i < len; i++) {
        char c = text[i];
        if (quoted) {
            i += c == '\\';
            quoted = c != '"';
            continue;
        }
        quoted = c == '"';
        if ((c == '{' || c == '[') && ++depth > HEADER_DEPTH_MAX)
            return error_set(error, ASSAY_ERROR_LIMIT, "nested deeper than %u", HEADER_DEPTH_MAX);
        if (c == '{' || c == '[')
            members[depth] = 0;
        if ((c == '}' || c == ']') && depth > 0)
            depth--;
        values += c == ',' || c == '{' || c == '[';
        if (c == ',' && ++members[depth] > SAFETENSORS_TENSORS_MAX)
            return error_set(error, ASSAY_ERROR_LIMIT, "more than %u members in a row",
                             SAFETENSORS_TENSORS_MAX);
    }
    return values <= VALUES_MAX ||
           error_set(error, ASSAY_ERROR_LIMIT, "%u values, more than %u", values, VALUES_MAX);
}

/* A list of LEN_MIN..LEN_MAX integers that are not negative. */
static gboolean read_numbers(const json_t *list, const char *what, guint len_min, guint len_max,
                             guint64 *ret_numbers, GError **error)
{
    if (!json_is_array(list) || json_array_size(list) < len_min || json_array_size(list) > len_max)
        return error_set(error, ASSAY_ERROR_INPUT, "%s: must be a list of %u to %u integers", what,
                         len_min, len_max);
    for (guint i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            return error_set(error, ASSAY_ERROR_INPUT, "%s: entry %u is not a whole number", what,
                             i);
        ret_numbers[i] = (guint64)json_integer_value(value);
    }
    return TRUE;
}

/* dtype, shape and offsets of one tensor, each against the others. */
static gboolean read_tensor(const json_t *value, guint64 data_offset, guint64 data_bytes,
                            SafeTensor *tensor, GError **error)
{
    static const char *const known[] = {"dtype", "shape", "data_offsets", NULL};
    guint64 ends[2], bytes;
    if (!json_is_object(value))
        return error_set(error, ASSAY_ERROR_INPUT, "must be an object");
    const char *dtype = json_want_str(value, "dtype", error);
    const json_t *shape = json_object_get(value, "shape");
    if (dtype == NULL || !json_only_keys(value, known, error) ||
        !read_numbers(shape, "shape", 0, SAFETENSORS_RANK_MAX, tensor->dims, error) ||
        !read_numbers(json_object_get(value, "data_offsets"), "data_offsets", 2, 2, ends, error))
        return FALSE;

    tensor->dtype = tensor_dtype_parse(dtype);
    if (tensor->dtype == TENSOR_NONE)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "dtype %.16s is none of F64, F32, F16, BF16, I8, U8, F8_E4M3", dtype);
    gsize size = tensor_dtype_bytes(tensor->dtype);
    tensor->rank = (guint8)json_array_size(shape);
    tensor->count = 1;
    for (guint i = 0; i < tensor->rank; i++)
        if (!g_uint64_checked_mul(&tensor->count, tensor->count, tensor->dims[i]))
            return error_set(error, ASSAY_ERROR_INPUT, "shape: its product overflows");
    if (!g_uint64_checked_mul(&bytes, tensor->count, size))
        return error_set(error, ASSAY_ERROR_INPUT, "shape: its bytes overflow");
    if (ends[0] > ends[1] || ends[1] > data_bytes)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "data_offsets: %" G_GUINT64_FORMAT "..%" G_GUINT64_FORMAT
                         " is outside the %" G_GUINT64_FORMAT " bytes of data",
                         ends[0], ends[1], data_bytes);
    if (ends[1] - ends[0] != bytes)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "data_offsets: %" G_GUINT64_FORMAT
                         " bytes, but shape and dtype need %" G_GUINT64_FORMAT,
                         ends[1] - ends[0], bytes);
    tensor->offset = data_offset + ends[0];
    if (tensor->offset % size != 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "data_offsets: byte %" G_GUINT64_FORMAT
                         " of the file is not aligned to %s",
                         tensor->offset, dtype);
    return TRUE;
}

static int compare_offsets(gconstpointer a, gconstpointer b)
{
    const SafeTensor *x = *(SafeTensor *const *)a, *y = *(SafeTensor *const *)b;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    /* of an empty one and its neighbour, the empty one comes first */
    return x->count != y->count ? (x->count < y->count ? -1 : 1) : strcmp(x->name, y->name);
}

/* No overlap, no hole: each begins where the one before ended. */
static gboolean check_cover(const GPtrArray *tensors, guint64 data_offset, guint64 data_bytes,
                            GError **error)
{
    guint64 at = data_offset;
    for (guint i = 0; i < tensors->len; i++) {
        const SafeTensor *tensor = tensors->pdata[i];
        if (tensor->offset != at)
            return error_set(error, ASSAY_ERROR_INPUT, "tensor %s: %s the tensor before it",
                             tensor->name,
                             tensor->offset < at ? "overlaps" : "leaves a hole after");
        at += tensor->count * tensor_dtype_bytes(tensor->dtype);
    }
    return at == data_offset + data_bytes ||
           error_set(error, ASSAY_ERROR_INPUT, "%" G_GUINT64_FORMAT " bytes behind the last tensor",
                     data_offset + data_bytes - at);
}

static gboolean read_metadata(const json_t *value, GHashTable *metadata, GError **error)
{
    const char *key;
    json_t *entry;
    if (!json_is_object(value))
        return error_set(error, ASSAY_ERROR_INPUT, "__metadata__: must be an object");
    json_object_foreach((json_t *)(gsize)value, key, entry)
    {
        if (!json_is_string(entry))
            return error_set(error, ASSAY_ERROR_INPUT, "__metadata__: %s: must be a string", key);
        if (metadata != NULL)
            g_hash_table_replace(metadata, g_strdup(key), g_strdup(json_string_value(entry)));
    }
    return TRUE;
}

static gboolean check_name(const char *name, GError **error)
{
    gsize len = strlen(name);
    return (len > 0 && len <= NAME_BYTES_MAX) ||
           error_set(error, ASSAY_ERROR_LIMIT, "a tensor's name has %zu bytes, not 1 to %u", len,
                     NAME_BYTES_MAX);
}

GPtrArray *safetensors_parse_header(const char *header, gsize len, guint64 data_offset,
                                    guint64 data_bytes, GHashTable *metadata, GError **error)
{
    if (!is_small_json(header, len, error))
        return NULL;
    g_autoptr(json_t) object = json_parse(header, len, error);
    if (object == NULL)
        return NULL;
    if (!json_is_object(object) || json_object_size(object) > SAFETENSORS_TENSORS_MAX) {
        error_set(error, ASSAY_ERROR_INPUT, "must be an object of at most %u tensors",
                  SAFETENSORS_TENSORS_MAX);
        return NULL;
    }
    g_autoptr(GPtrArray) tensors = g_ptr_array_new_with_free_func(tensor_free);
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        if (strcmp(name, "__metadata__") == 0) {
            if (!read_metadata(value, metadata, error))
                return NULL;
            continue;
        }
        if (!check_name(name, error))
            return NULL;
        SafeTensor *tensor = g_new0(SafeTensor, 1);
        tensor->name = g_strdup(name);
        g_ptr_array_add(tensors, tensor);
        if (!read_tensor(value, data_offset, data_bytes, tensor, error)) {
            g_prefix_error(error, "tensor %s: ", name);
            return NULL;
        }
    }
    g_ptr_array_sort(tensors, compare_offsets);
    return check_cover(tensors, data_offset, data_bytes, error) ? g_steal_pointer(&tensors) : NULL;
}

/* Maps a file and finds its header. */
static gboolean map_file(const char *path, Mapped *mapped, guint64 *ret_header, GError **error)
{
    guint64 bytes = 0, header = 0;
    AUTO_FD fd = model_file_open(path, &bytes, error);
    if (fd < 0)
        return FALSE;
    if (bytes < sizeof header)
        return error_set(error, ASSAY_ERROR_INPUT, "%s: %" G_GUINT64_FORMAT " bytes hold no header",
                         path, bytes);
    mapped->base = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped->base == MAP_FAILED) {
        mapped->base = NULL;
        return error_set_errno(error, errno, "map %s", path);
    }
    mapped->len = bytes;
    memcpy(&header, mapped->base, sizeof header);
    header = GUINT64_FROM_LE(header);
    if (header > HEADER_BYTES_MAX || header > bytes - sizeof header)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "%s: a header of %" G_GUINT64_FORMAT
                         " bytes is more than the file holds or %u",
                         path, header, HEADER_BYTES_MAX);
    *ret_header = header;
    return TRUE;
}

static gboolean add_tensors(Safetensors *st, GPtrArray *tensors, guint file, GError **error)
{
    for (guint i = 0; i < tensors->len; i++) {
        SafeTensor *tensor = tensors->pdata[i];
        if (g_hash_table_contains(st->by_name, tensor->name))
            return error_set(error, ASSAY_ERROR_INPUT, "tensor %s: is in another file too",
                             tensor->name);
        tensor->file = file;
        st->bytes += tensor->count * tensor_dtype_bytes(tensor->dtype);
        g_hash_table_insert(st->by_name, tensor->name, tensor);
        g_ptr_array_add(st->tensors, tensor);
        tensors->pdata[i] = NULL;
    }
    return st->tensors->len <= SAFETENSORS_TENSORS_MAX ||
           error_set(error, ASSAY_ERROR_LIMIT, "more than %u tensors", SAFETENSORS_TENSORS_MAX);
}

static gboolean add_file(Safetensors *st, const char *path, const char *name, GError **error)
{
    guint64 header = 0;
    guint file = st->files->len;
    Mapped empty = {.name = g_strdup(name)};
    g_array_append_val(st->files, empty);
    Mapped *mapped = &g_array_index(st->files, Mapped, file);
    if (!map_file(path, mapped, &header, error))
        return FALSE;
    guint64 data_offset = sizeof header + header;
    g_autoptr(GPtrArray) tensors =
        safetensors_parse_header((const char *)mapped->base + sizeof header, header, data_offset,
                                 mapped->len - data_offset, file == 0 ? st->metadata : NULL, error);
    if (tensors != NULL && add_tensors(st, tensors, file, error))
        return TRUE;
    g_prefix_error(error, "%s: ", path);
    return FALSE;
}

/* A file name of an index stays in its directory. */
static gboolean is_shard_name(const char *name)
{
    return g_str_has_suffix(name, ".safetensors") && name[0] != '.' && strchr(name, '/') == NULL &&
           strlen(name) < 256;
}

GHashTable *safetensors_parse_index(const char *text, gsize len, GError **error)
{
    if (!is_small_json(text, len, error))
        return NULL;
    g_autoptr(json_t) object = json_parse(text, len, error);
    if (object == NULL)
        return NULL;
    json_t *map = json_object_get(object, "weight_map");
    if (!json_is_object(map) || json_object_size(map) > SAFETENSORS_TENSORS_MAX) {
        error_set(error, ASSAY_ERROR_INPUT, "weight_map: must be an object of at most %u tensors",
                  SAFETENSORS_TENSORS_MAX);
        return NULL;
    }
    g_autoptr(GHashTable) index = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        const char *file = json_string_value(value);
        if (!check_name(name, error))
            return NULL;
        if (file == NULL || !is_shard_name(file)) {
            error_set(error, ASSAY_ERROR_INPUT,
                      "weight_map: %s: is not in a file NAME.safetensors beside the index", name);
            return NULL;
        }
        g_hash_table_insert(index, g_strdup(name), g_strdup(file));
    }
    return g_steal_pointer(&index);
}

GHashTable *safetensors_read_index(const char *dir, GError **error)
{
    g_autofree char *path = g_build_filename(dir, SAFETENSORS_INDEX, NULL);
    g_autoptr(GBytes) bytes = model_file_read(path, INDEX_BYTES_MAX, error);
    if (bytes == NULL)
        return NULL;
    gsize len = 0;
    const char *text = g_bytes_get_data(bytes, &len);
    GHashTable *index = safetensors_parse_index(text, len, error);
    if (index == NULL)
        g_prefix_error(error, "%s: ", path);
    return index;
}

static int compare_words(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Both ways: what the index names is where it says, and nothing is beside it. */
static gboolean check_index(const Safetensors *st, GHashTable *index, GError **error)
{
    for (guint i = 0; i < st->tensors->len; i++) {
        const SafeTensor *tensor = st->tensors->pdata[i];
        const char *said = g_hash_table_lookup(index, tensor->name);
        const char *is = g_array_index(st->files, Mapped, tensor->file).name;
        if (g_strcmp0(said, is) != 0)
            return error_set(error, ASSAY_ERROR_INPUT, "tensor %s: is in %s, the index says %s",
                             tensor->name, is, said != NULL ? said : "nothing");
    }
    GHashTableIter iter;
    gpointer name, file;
    g_hash_table_iter_init(&iter, index);
    while (g_hash_table_iter_next(&iter, &name, &file))
        if (!g_hash_table_contains(st->by_name, name))
            return error_set(error, ASSAY_ERROR_INPUT, "tensor %s: is not in %s", (char *)name,
                             (char *)file);
    return TRUE;
}

static gboolean open_shards(Safetensors *st, const char *dir, GError **error)
{
    g_autoptr(GHashTable) index = safetensors_read_index(dir, error);
    if (index == NULL)
        return FALSE;
    g_autoptr(GHashTable) distinct = g_hash_table_new(g_str_hash, g_str_equal);
    GHashTableIter iter;
    gpointer file;
    g_hash_table_iter_init(&iter, index);
    while (g_hash_table_iter_next(&iter, NULL, &file))
        g_hash_table_add(distinct, file);
    if (g_hash_table_size(distinct) > FILES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "%s: %u files, more than %u", dir,
                         g_hash_table_size(distinct), FILES_MAX);
    guint n = 0;
    g_autofree gpointer *names = g_hash_table_get_keys_as_array(distinct, &n);
    qsort(names, n, sizeof *names, compare_words);
    for (guint i = 0; i < n; i++) {
        g_autofree char *path = g_build_filename(dir, names[i], NULL);
        if (!add_file(st, path, names[i], error))
            return FALSE;
    }
    if (check_index(st, index, error))
        return TRUE;
    g_prefix_error(error, "%s: ", dir);
    return FALSE;
}

Safetensors *safetensors_open(const char *path, GError **error)
{
    g_autoptr(Safetensors) st = g_new0(Safetensors, 1);
    st->files = g_array_new(FALSE, TRUE, sizeof(Mapped));
    st->tensors = g_ptr_array_new_with_free_func(tensor_free);
    st->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    st->metadata = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);

    g_autofree char *index = g_build_filename(path, SAFETENSORS_INDEX, NULL);
    g_autofree char *single = model_file_in(path, SAFETENSORS_SINGLE);
    gboolean sharded = g_file_test(index, G_FILE_TEST_EXISTS);
    if (sharded && g_file_test(single, G_FILE_TEST_EXISTS)) {
        error_set(error, ASSAY_ERROR_INPUT, "%s: has both %s and %s: which is meant?", path,
                  SAFETENSORS_SINGLE, SAFETENSORS_INDEX);
        return NULL;
    }
    gboolean ok =
        sharded ? open_shards(st, path, error) : add_file(st, single, SAFETENSORS_SINGLE, error);
    return ok ? g_steal_pointer(&st) : NULL;
}

void safetensors_free(Safetensors *st)
{
    if (st == NULL)
        return;
    for (guint i = 0; i < st->files->len; i++) {
        Mapped *mapped = &g_array_index(st->files, Mapped, i);
        if (mapped->base != NULL)
            munmap(mapped->base, mapped->len);
        g_free(mapped->name);
    }
    g_array_unref(st->files);
    g_hash_table_unref(st->by_name);
    g_ptr_array_unref(st->tensors);
    g_hash_table_unref(st->metadata);
    g_free(st);
}

guint safetensors_count(const Safetensors *st)
{
    return st->tensors->len;
}

const SafeTensor *safetensors_at(const Safetensors *st, guint i)
{
    return st->tensors->pdata[i];
}

const SafeTensor *safetensors_find(const Safetensors *st, const char *name)
{
    return g_hash_table_lookup(st->by_name, name);
}

const void *safetensors_data(const Safetensors *st, const SafeTensor *tensor)
{
    return g_array_index(st->files, Mapped, tensor->file).base + tensor->offset;
}

guint safetensors_files(const Safetensors *st)
{
    return st->files->len;
}

guint64 safetensors_bytes(const Safetensors *st)
{
    return st->bytes;
}

const char *safetensors_metadata(const Safetensors *st, const char *key)
{
    return g_hash_table_lookup(st->metadata, key);
}
