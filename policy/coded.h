/*
 * Matrices of four- and eight-bit weights in checkpoints, and which matrices those are.
 *
 *     --weights   experts   attention and gates   embedding   router, head
 *     int8        int8      bf16                  bf16        as computed with
 *     fp8         fp8       fp8                   bf16        as computed with
 *     int4        int4      fp8                   bf16        as computed with
 *
 * NAME holds the codes: I8 or F8_E4M3 [n, k], or U8 [n, (k + 1) / 2] of int4, the even column in
 * the low half. NAME_scale holds the scales of groups in BF16: [n, k / 128], [n / 128, k / 128],
 * [n, k / 32], rounded up. What they mean: kernels/quant.h. A matrix's dtype alone says that it is
 * one of codes; config.json does not.
 */
#pragma once

#include "policy/weights.h"

#include "kernels/ops.h"

/* "bf16", "f32", "int8", "fp8", "int4"; NULL: bf16. Another word is INPUT. */
gboolean weight_format_parse(const char *name, WeightFormat *format, GError **error);
const char *weight_format_name(WeightFormat format);

/* How a model of `format` keeps the tensor in memory. */
WeightFormat coded_memory(const TensorInfo *info, WeightFormat format);

/* The format whose codes a dtype holds; WEIGHT_REAL: none. */
WeightFormat coded_format(TensorDtype dtype);
/* Does NAME fit the config as a matrix of codes, NAME_scale beside it? `scale`: what there is of
 * that name, or NULL. The message has no name in it. */
gboolean coded_check(const TensorInfo *info, const SafeTensor *codes, const SafeTensor *scale,
                     GError **error);
#define CODED_SCALE "_scale"

/* Elements first .. first + n - 1 of a matrix, row-major: code times scale. */
void coded_values(const TensorInfo *info, WeightFormat format, const guint8 *codes,
                  const guint16 *scales, guint64 first, gsize n, double *values);

/* Writes the weights (F32) as a checkpoint of codes; what is not coded becomes BF16, the router
 * F32. Values that are not finite are INPUT, with the tensor's name. */
gboolean coded_save(const Weights *weights, const char *dir, WeightFormat format, GError **error);
