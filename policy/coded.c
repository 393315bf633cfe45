/*
 * Matrices of codes and their scales, from and to checkpoints.
 *
 * Invariants:
 *   1. Values that were read and are packed again (kernels/) become the codes of the file.
 *   2. Nothing is decoded before both tensors have the shapes that the config asks for.
 *
 * Not here: what a code means (kernels/quant.h), panels of them in memory (kernels/cpu/quant.c).
 */
#include "policy/coded.h"

#include "base/error.h"
#include "kernels/quant.h"

#include <string.h>

static const struct {
    const char *name;
    TensorDtype dtype; /* of codes; NONE: the format has none */
} formats[WEIGHT_FORMATS] = {
    [WEIGHT_REAL] = {"f32", TENSOR_NONE}, [WEIGHT_BF16] = {"bf16", TENSOR_NONE},
    [WEIGHT_INT8] = {"int8", TENSOR_I8},  [WEIGHT_FP8] = {"fp8", TENSOR_F8_E4M3},
    [WEIGHT_INT4] = {"int4", TENSOR_U8},
};

gboolean weight_format_parse(const char *name, WeightFormat *format, GError **error)
{
    *format = WEIGHT_BF16;
    if (name == NULL)
        return TRUE;
    for (guint i = 0; i < WEIGHT_FORMATS; i++)
        if (strcmp(name, formats[i].name) == 0) {
            *format = (WeightFormat)i;
            return TRUE;
        }
    return error_set(error, ASSAY_ERROR_INPUT, "%s is none of bf16, f32, int8, fp8, int4", name);
}

const char *weight_format_name(WeightFormat format)
{
    return formats[format].name;
}

WeightFormat coded_memory(const TensorInfo *info, WeightFormat format)
{
    if (info->class == CLASS_ROUTER || info->class == CLASS_HEAD)
        return WEIGHT_REAL;
    if (!quant_is(format) || info->class == CLASS_EXPERT)
        return format;
    return info->class == CLASS_EMBED || format == WEIGHT_INT8 ? WEIGHT_BF16 : WEIGHT_FP8;
}

WeightFormat coded_format(TensorDtype dtype)
{
    for (guint i = 0; i < WEIGHT_FORMATS; i++)
        if (dtype != TENSOR_NONE && formats[i].dtype == dtype)
            return (WeightFormat)i;
    return WEIGHT_REAL;
}

/* ---- shapes ---- */

static guint64 groups_of(guint64 n, int of)
{
    return (n + (guint64)of - 1) / (guint64)of;
}

/* The two tensors of a matrix as they stand in a file; names are the caller's. */
static void shapes(const TensorInfo *info, WeightFormat format, SafeTensor *codes,
                   SafeTensor *scale)
{
    guint64 n = info->dims[0], k = info->dims[1];

    *codes = (SafeTensor){.dtype = formats[format].dtype,
                          .rank = 2,
                          .dims = {n, format == WEIGHT_INT4 ? (k + 1) / 2 : k}};
    *scale = (SafeTensor){
        .dtype = TENSOR_BF16,
        .rank = 2,
        .dims = {groups_of(n, quant_group_rows(format)), groups_of(k, quant_group_cols(format))}};
    codes->count = codes->dims[0] * codes->dims[1];
    scale->count = scale->dims[0] * scale->dims[1];
}

static gboolean same_shape(const SafeTensor *is, const SafeTensor *want, const char *what,
                           GError **error)
{
    g_autofree char *given = safetensor_shape_text(is), *ours = safetensor_shape_text(want);

    return (is->rank == want->rank && is->dims[0] == want->dims[0] &&
            is->dims[1] == want->dims[1] && is->dtype == want->dtype) ||
           error_set(error, ASSAY_ERROR_INPUT, "%s %s %s, the config says %s %s", what,
                     tensor_dtype_name(is->dtype), given, tensor_dtype_name(want->dtype), ours);
}

gboolean coded_check(const TensorInfo *info, const SafeTensor *codes, const SafeTensor *scale,
                     GError **error)
{
    SafeTensor want_codes, want_scale;
    WeightFormat format = coded_format(codes->dtype);

    if (coded_memory(info, format) == WEIGHT_REAL || info->class == CLASS_EMBED || info->rank != 2)
        return error_set(error, ASSAY_ERROR_INPUT, "%s: this tensor is never one of codes",
                         tensor_dtype_name(codes->dtype));
    if (scale == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "%s without a tensor of scales",
                         tensor_dtype_name(codes->dtype));
    shapes(info, format, &want_codes, &want_scale);
    return same_shape(codes, &want_codes, "codes", error) &&
           same_shape(scale, &want_scale, "scales", error);
}

/* ---- reading ---- */

void coded_values(const TensorInfo *info, WeightFormat format, const guint8 *codes,
                  const guint16 *scales, guint64 first, gsize n, double *values)
{
    guint64 width = info->dims[1], groups = groups_of(width, quant_group_cols(format));
    guint64 pitch = format == WEIGHT_INT4 ? (width + 1) / 2 : width;

    for (gsize i = 0; i < n; i++) {
        guint64 row = (first + i) / width, col = (first + i) % width;
        guint64 group = row / (guint64)quant_group_rows(format) * groups +
                        col / (guint64)quant_group_cols(format);
        guint8 code = codes[row * pitch + (format == WEIGHT_INT4 ? col / 2 : col)];

        if (format == WEIGHT_INT4)
            code = quant_nibble(code, col % 2);
        values[i] = (double)quant_value(format, code, bf16_float(scales[group]));
    }
}

/* ---- writing ---- */

typedef struct Saving {
    const Weights *weights;
    GArray *plan;    /* SafeTensor */
    GArray *numbers; /* guint: the tensor behind each row of the plan */
    guint encoded;   /* the tensor whose codes are in the buffers; G_MAXUINT: none */
    GByteArray *codes;
    GArray *scales; /* guint16 */
} Saving;

static void saving_clear(Saving *s)
{
    for (guint i = 0; i < s->plan->len; i++)
        g_free(g_array_index(s->plan, SafeTensor, i).name);
    g_array_unref(s->plan);
    g_array_unref(s->numbers);
    g_byte_array_unref(s->codes);
    g_array_unref(s->scales);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Saving, saving_clear)

static void plan_add(Saving *s, guint number, const char *name, const SafeTensor *shape)
{
    SafeTensor tensor = *shape;

    tensor.name = g_strdup(name);
    g_array_append_val(s->plan, tensor);
    g_array_append_val(s->numbers, number);
}

static void plan_make(Saving *s, const ModelConfig *config, WeightFormat format)
{
    for (guint i = 0; i < tensors_count(config); i++) {
        TensorInfo info = tensors_info(config, i);
        WeightFormat kept = info.rank == 2 ? coded_memory(&info, format) : WEIGHT_BF16;
        char name[TENSOR_NAME_MAX];
        SafeTensor one = {.dtype = tensors_dtype(&info, TENSOR_BF16),
                          .rank = info.rank,
                          .dims = {info.dims[0], info.dims[1]},
                          .count = info.count};

        tensors_name(&info, name);
        if (quant_is(kept)) {
            g_autofree char *beside = g_strconcat(name, CODED_SCALE, NULL);
            SafeTensor scale;

            shapes(&info, kept, &one, &scale);
            plan_add(s, i, name, &one);
            plan_add(s, i, beside, &scale);
        } else {
            plan_add(s, i, name, &one);
        }
    }
}

static void group_encode(Saving *s, const TensorInfo *info, WeightFormat format, guint64 row0,
                         guint64 col0, guint64 pitch)
{
    const float *rows = weights_at(s->weights, s->encoded);
    guint64 width = info->dims[1];
    guint64 row1 = MIN(row0 + (guint64)quant_group_rows(format), info->dims[0]);
    guint64 col1 = MIN(col0 + (guint64)quant_group_cols(format), width);
    guint16 scale =
        quant_scale_of(format, quant_most(rows, width, (int)row0, (int)row1, (int)col0, (int)col1));

    g_array_append_val(s->scales, scale);
    for (guint64 r = row0; r < row1; r++)
        for (guint64 c = col0; c < col1; c++) {
            guint8 code = quant_code(format, rows[r * width + c], bf16_float(scale));
            guint8 *at = s->codes->data + r * pitch + (format == WEIGHT_INT4 ? c / 2 : c);

            if (format != WEIGHT_INT4)
                *at = code;
            else if (c % 2)
                *at = (guint8)(*at | code << 4);
            else
                *at = code & 0x0f;
        }
}

/* All codes of a tensor, while its pieces are asked for. */
static void encode(Saving *s, guint number, WeightFormat format)
{
    const ModelConfig *config = weights_config(s->weights);
    TensorInfo info = tensors_info(config, number);
    SafeTensor codes, scale;

    if (s->encoded == number)
        return;
    shapes(&info, format, &codes, &scale);
    s->encoded = number;
    g_byte_array_set_size(s->codes, (guint)codes.count);
    g_array_set_size(s->scales, 0);
    for (guint64 r = 0; r < info.dims[0]; r += (guint64)quant_group_rows(format))
        for (guint64 c = 0; c < info.dims[1]; c += (guint64)quant_group_cols(format))
            group_encode(s, &info, format, r, c, codes.dims[1]);
}

static void fill_piece(guint i, guint64 first, guint64 count, gpointer out, gpointer user_data)
{
    Saving *s = user_data;
    guint number = g_array_index(s->numbers, guint, i);
    const SafeTensor *tensor = &g_array_index(s->plan, SafeTensor, i);
    gboolean scales = g_str_has_suffix(tensor->name, CODED_SCALE);
    const SafeTensor *codes = tensor - (scales ? 1 : 0);
    WeightFormat format = coded_format(codes->dtype);
    const float *from = weights_at(s->weights, number);

    if (format == WEIGHT_REAL) {
        weights_convert(out, tensor->dtype, from + first, TENSOR_F32, count);
        return;
    }
    encode(s, number, format);
    if (scales)
        memcpy(out, (const guint16 *)(gconstpointer)s->scales->data + first,
               count * sizeof(guint16));
    else
        memcpy(out, s->codes->data + first, count);
}

static gboolean all_finite(const Weights *weights, GError **error)
{
    const ModelConfig *config = weights_config(weights);

    for (guint i = 0; i < tensors_count(config); i++) {
        TensorInfo info = tensors_info(config, i);
        const float *x = weights_at(weights, i);
        char name[TENSOR_NAME_MAX];

        for (guint64 j = 0; j < info.count; j++)
            if (!isfinite(x[j])) {
                tensors_name(&info, name);
                return error_set(error, ASSAY_ERROR_INPUT, "%s: a value is not finite", name);
            }
    }
    return TRUE;
}

gboolean coded_save(const Weights *weights, const char *dir, WeightFormat format, GError **error)
{
    g_auto(Saving) s = {.weights = weights,
                        .plan = g_array_new(FALSE, FALSE, sizeof(SafeTensor)),
                        .numbers = g_array_new(FALSE, FALSE, sizeof(guint)),
                        .encoded = G_MAXUINT,
                        .codes = g_byte_array_new(),
                        .scales = g_array_new(FALSE, FALSE, sizeof(guint16))};

    g_assert(weights_dtype(weights) == TENSOR_F32);
    plan_make(&s, weights_config(weights), format);
    return all_finite(weights, error) &&
           safetensors_write(dir, (const SafeTensor *)(gpointer)s.plan->data, s.plan->len,
                             SAFETENSORS_SHARD_BYTES, NULL, fill_piece, &s, error) &&
           model_config_write(weights_config(weights), dir, error);
}
