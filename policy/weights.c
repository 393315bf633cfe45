/*
 * Weights in memory, from and to checkpoints.
 *
 * Invariants:
 *   1. Nothing is allocated before the checkpoint has exactly the config's tensors and the machine
 *      the memory.
 *   2. A conversion rounds once, to nearest even, whatever the two types.
 *
 * Not here: the layout a backend packs them into (kernels/), random values (init.c).
 */
#include "policy/coded.h"

#include "base/error.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WEIGHTS_ALIGN 256u
#define BLOCK         512u /* elements converted at a time */

struct Weights {
    ModelConfig config;
    TensorDtype dtype;
    guint8 *base;
    gsize bytes;
    gsize *offsets; /* by number of the tensor */
};

static double load_bf16(guint16 bits)
{
    guint32 wide = (guint32)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Through F32; where that rounded onto a tie of BF16 the tie is broken towards the true value. */
static guint16 store_bf16(double value)
{
    float narrow = (float)value;
    guint32 bits;
    memcpy(&bits, &narrow, sizeof bits);
    if (isnan(value))
        return (guint16)(bits >> 16 | 0x40);
    if ((bits & 0xffff) == 0x8000 && (double)narrow != value)
        bits += fabs(value) > fabs((double)narrow) ? 1 : (guint32)-1;
    return (guint16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void decode(double *out, gconstpointer src, TensorDtype dtype, guint64 first, gsize n)
{
    switch (dtype) {
    case TENSOR_F64:
        memcpy(out, (const double *)src + first, n * sizeof *out);
        break;
    case TENSOR_F32:
        for (gsize i = 0; i < n; i++)
            out[i] = ((const float *)src)[first + i];
        break;
    case TENSOR_F16:
        for (gsize i = 0; i < n; i++)
            out[i] = (double)((const _Float16 *)src)[first + i];
        break;
    case TENSOR_BF16:
        for (gsize i = 0; i < n; i++)
            out[i] = load_bf16(((const guint16 *)src)[first + i]);
        break;
    case TENSOR_NONE:
    case TENSOR_I8:
    case TENSOR_U8:
    case TENSOR_F8_E4M3:
    default:
        g_assert_not_reached();
    }
}

static void encode(gpointer dst, TensorDtype dtype, guint64 first, const double *in, gsize n)
{
    switch (dtype) {
    case TENSOR_F64:
        memcpy((double *)dst + first, in, n * sizeof *in);
        break;
    case TENSOR_F32:
        for (gsize i = 0; i < n; i++)
            ((float *)dst)[first + i] = (float)in[i];
        break;
    case TENSOR_F16:
        for (gsize i = 0; i < n; i++)
            ((_Float16 *)dst)[first + i] = (_Float16)in[i];
        break;
    case TENSOR_BF16:
        for (gsize i = 0; i < n; i++)
            ((guint16 *)dst)[first + i] = store_bf16(in[i]);
        break;
    case TENSOR_NONE:
    case TENSOR_I8:
    case TENSOR_U8:
    case TENSOR_F8_E4M3:
    default:
        g_assert_not_reached();
    }
}

void weights_convert(gpointer dst, TensorDtype dst_dtype, gconstpointer src, TensorDtype src_dtype,
                     guint64 count)
{
    double block[BLOCK];
    if (dst_dtype == src_dtype) {
        memcpy(dst, src, count * tensor_dtype_bytes(dst_dtype));
        return;
    }
    for (guint64 first = 0; first < count; first += BLOCK) {
        gsize n = (gsize)MIN(count - first, BLOCK);
        decode(block, src, src_dtype, first, n);
        encode(dst, dst_dtype, first, block, n);
    }
}

Weights *weights_new(const ModelConfig *config, TensorDtype dtype, GError **error)
{
    g_autoptr(Weights) w = g_new0(Weights, 1);
    guint n = tensors_count(config);
    guint64 memory = (guint64)sysconf(_SC_PHYS_PAGES) * (guint64)sysconf(_SC_PAGESIZE);
    guint64 bytes = 0;
    w->config = *config;
    w->dtype = dtype;
    w->offsets = g_new(gsize, n);
    for (guint i = 0; i < n; i++) {
        guint64 one = tensors_info(config, i).count * tensor_dtype_bytes(dtype);
        w->offsets[i] = bytes;
        bytes += (one + WEIGHTS_ALIGN - 1) / WEIGHTS_ALIGN * WEIGHTS_ALIGN;
    }
    if (bytes > memory) {
        error_set(error, ASSAY_ERROR_LIMIT,
                  "the weights in %s need %.1f GiB, this machine has %.1f GiB of memory",
                  tensor_dtype_name(dtype), (double)bytes / (1 << 30), (double)memory / (1 << 30));
        return NULL;
    }
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        error_set_errno(error, errno, "allocate %" G_GUINT64_FORMAT " bytes of weights", bytes);
        return NULL;
    }
    w->base = base;
    w->bytes = bytes;
    return g_steal_pointer(&w);
}

void weights_values(const Safetensors *st, const TensorInfo *info, const SafeTensor *tensor,
                    guint64 first, gsize n, double *values)
{
    WeightFormat format = coded_format(tensor->dtype);
    if (format == WEIGHT_REAL) {
        decode(values, safetensors_data(st, tensor), tensor->dtype, first, n);
        return;
    }
    g_autofree char *name = g_strconcat(tensor->name, CODED_SCALE, NULL);
    coded_values(info, format, safetensors_data(st, tensor),
                 safetensors_data(st, safetensors_find(st, name)), first, n, values);
}

void weights_read(const Safetensors *st, const TensorInfo *info, TensorDtype dtype, void *rows)
{
    char name[TENSOR_NAME_MAX];
    double block[BLOCK];
    tensors_name(info, name);
    const SafeTensor *tensor = safetensors_find(st, name);
    if (tensor->dtype == dtype) {
        memcpy(rows, safetensors_data(st, tensor), info->count * tensor_dtype_bytes(dtype));
        return;
    }
    for (guint64 first = 0; first < info->count; first += BLOCK) {
        gsize n = (gsize)MIN(info->count - first, BLOCK);
        weights_values(st, info, tensor, first, n, block);
        encode(rows, dtype, first, block, n);
    }
}

static Weights *load(const ModelConfig *config, const char *dir, TensorDtype dtype, GError **error)
{
    g_autoptr(Safetensors) st = safetensors_open(dir, error);
    if (st == NULL)
        return NULL;
    if (!tensors_check(config, st, error)) {
        g_prefix_error(error, "%s: ", dir);
        return NULL;
    }
    Weights *w = weights_new(config, dtype, error);
    for (guint i = 0; w != NULL && i < tensors_count(config); i++) {
        TensorInfo info = tensors_info(config, i);
        weights_read(st, &info, dtype, weights_at(w, i));
    }
    return w;
}

Weights *weights_load(const char *dir, TensorDtype dtype, GError **error)
{
    ModelConfig config;
    return model_config_read(dir, &config, error) ? load(&config, dir, dtype, error) : NULL;
}

typedef struct Saving {
    const Weights *weights;
    const SafeTensor *plan;
} Saving;

static void fill_piece(guint i, guint64 first, guint64 count, gpointer out, gpointer user_data)
{
    const Saving *saving = user_data;
    TensorDtype dtype = saving->weights->dtype;
    const guint8 *src = weights_at(saving->weights, i);
    weights_convert(out, saving->plan[i].dtype, src + first * tensor_dtype_bytes(dtype), dtype,
                    count);
}

gboolean weights_save(const Weights *weights, const char *dir, TensorDtype dtype, GError **error)
{
    g_autoptr(GArray) plan = tensors_plan(&weights->config, dtype);
    Saving saving = {weights, (const SafeTensor *)(gpointer)plan->data};
    return safetensors_write(dir, saving.plan, plan->len, SAFETENSORS_SHARD_BYTES, NULL, fill_piece,
                             &saving, error) &&
           model_config_write(&weights->config, dir, error);
}

void weights_free(Weights *weights)
{
    if (weights == NULL)
        return;
    if (weights->base != NULL)
        munmap(weights->base, weights->bytes);
    g_free(weights->offsets);
    g_free(weights);
}

const ModelConfig *weights_config(const Weights *weights)
{
    return &weights->config;
}

TensorDtype weights_dtype(const Weights *weights)
{
    return weights->dtype;
}

void *weights_at(const Weights *weights, guint index)
{
    return weights->base + weights->offsets[index];
}

void *weights_tensor(const Weights *weights, guint32 layer, TensorSlot slot, guint32 expert)
{
    return weights_at(weights, tensors_index(&weights->config, layer, slot, expert));
}

gsize weights_bytes(const Weights *weights)
{
    return weights->bytes;
}
