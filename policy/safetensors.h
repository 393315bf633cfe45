/*
 * Safetensors: files of named tensors, read by mmap, written shard by shard.
 *
 *     g_autoptr(Safetensors) st = safetensors_open("models/m1", error);
 *     const SafeTensor *t = safetensors_find(st, "model.norm.weight");
 *     const guint16 *bf16 = safetensors_data(st, t);
 *
 * A file is: u64 header length (little endian), a JSON header, the data. A checkpoint is one file
 * model.safetensors, or shards named by model.safetensors.index.json.
 * Source: huggingface/safetensors, README.md.
 */
#pragma once

#include <glib.h>

#define SAFETENSORS_RANK_MAX    8
#define SAFETENSORS_TENSORS_MAX (1u << 16)
#define SAFETENSORS_SHARD_BYTES (4ull << 30) /* where a new shard begins, unless told otherwise */
#define SAFETENSORS_INDEX       "model.safetensors.index.json"
#define SAFETENSORS_SINGLE      "model.safetensors"

typedef enum TensorDtype {
    TENSOR_NONE = 0,
    TENSOR_F64,
    TENSOR_F32,
    TENSOR_F16,
    TENSOR_BF16,
    TENSOR_I8, /* codes, see coded.h: never converted */
    TENSOR_U8,
    TENSOR_F8_E4M3,
} TensorDtype;

/* "BF16" */
const char *tensor_dtype_name(TensorDtype dtype);
TensorDtype tensor_dtype_parse(const char *name); /* TENSOR_NONE: unknown */
gsize tensor_dtype_bytes(TensorDtype dtype);

typedef struct SafeTensor {
    char *name;
    TensorDtype dtype;
    guint8 rank;
    guint64 dims[SAFETENSORS_RANK_MAX]; /* row major, slowest first */
    guint64 count;                      /* elements */
    guint32 file;
    guint64 offset; /* of its bytes in the file; a multiple of the element's size */
} SafeTensor;

/* "[24576, 6144]" */
char *safetensor_shape_text(const SafeTensor *tensor);

typedef struct Safetensors Safetensors;

/* Opens a file, or the checkpoint in a directory, and checks every header. A malformed or lying
 * file is ASSAY_ERROR_INPUT: "FILE: tensor NAME: why". */
Safetensors *safetensors_open(const char *path, GError **error);
void safetensors_free(Safetensors *st);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Safetensors, safetensors_free)

guint safetensors_count(const Safetensors *st);
const SafeTensor *safetensors_at(const Safetensors *st, guint i);            /* in file order */
const SafeTensor *safetensors_find(const Safetensors *st, const char *name); /* NULL: none */
/* The tensor's bytes: little endian, aligned to its element. */
const void *safetensors_data(const Safetensors *st, const SafeTensor *tensor);
guint safetensors_files(const Safetensors *st);
guint64 safetensors_bytes(const Safetensors *st); /* of all tensors */
/* A value of the first file's __metadata__; NULL: none. */
const char *safetensors_metadata(const Safetensors *st, const char *key);

/* The header alone, LEN bytes of JSON before DATA_BYTES of data that starts at DATA_OFFSET: an
 * array of SafeTensor in order of their bytes. METADATA (string to string) may be NULL. */
GPtrArray *safetensors_parse_header(const char *header, gsize len, guint64 data_offset,
                                    guint64 data_bytes, GHashTable *metadata, GError **error);

/* The index of a directory, tensor name to file name; works where the shards are absent. */
GHashTable *safetensors_read_index(const char *dir, GError **error);
GHashTable *safetensors_parse_index(const char *text, gsize len, GError **error);

/* --- safetensors_write.c */

/* Writes elements FIRST.. of tensor number I, COUNT of them, to OUT in the tensor's dtype. */
typedef void (*SafetensorsFill)(guint i, guint64 first, guint64 count, gpointer out,
                                gpointer user_data);

/* Writes `n` tensors (name, dtype, rank, dims, count are read) into `dir`, which is made when
 * absent and may hold no checkpoint yet. One file when all fit into shard_bytes_max, else shards
 * and then their index: what is under a final name is complete. METADATA: pairs of strings, NULL
 * terminated. */
gboolean safetensors_write(const char *dir, const SafeTensor *tensors, guint n,
                           guint64 shard_bytes_max, const char *const *metadata,
                           SafetensorsFill fill, gpointer user_data, GError **error);
