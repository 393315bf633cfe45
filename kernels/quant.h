/*
 * Weights of four and eight bits: codes, and one scale for each group of them.
 *
 *     format       code          group of W [n, k]  scale       bits a weight
 *     WEIGHT_INT8  -127 .. 127   1 x 128            most / 127  8.125
 *     WEIGHT_FP8   E4M3, to 448  128 x 128          most / 448  8.001
 *     WEIGHT_INT4  -7 .. 7       1 x 32             most / 7    4.5
 *
 * `most` is the largest magnitude of the group, the scale its bf16; codes are the nearest, ties to
 * even. A code times its scale is exact in f32, and packing such values again gives the same codes
 * and scales (a scale of f16 would not, where it is subnormal): what is kept in a file and what is
 * packed on loading are the same numbers.
 *
 * Products do not use that value but its rounding to bf16, so a quantised model computes what the
 * bf16 model of those values does. Sources: int4 by groups of 32 as llama.cpp's Q4_0 (-8 .. 7),
 * fp8 by blocks of 128 x 128 as DeepSeek-V3 (arXiv 2412.19437, section 3.3), E4M3 as OCP's 8-bit
 * floating point specification 1.0 (no infinities; 0x7f is NaN).
 */
#pragma once

#include "kernels/ops.h"

#include <math.h>

#define QUANT_FP8_MOST   448.0f
#define QUANT_GROUP_MOST (128 * 128) /* weights of the largest group */

OPS_INLINE int quant_is(WeightFormat format)
{
    return format >= WEIGHT_INT8;
}

OPS_INLINE int quant_group_rows(WeightFormat format)
{
    return format == WEIGHT_FP8 ? 128 : 1;
}

OPS_INLINE int quant_group_cols(WeightFormat format)
{
    return format == WEIGHT_INT4 ? 32 : 128;
}

OPS_INLINE float quant_code_most(WeightFormat format)
{
    return format == WEIGHT_INT4 ? 7 : format == WEIGHT_INT8 ? 127 : QUANT_FP8_MOST;
}

/* ---- scales: bf16 ---- */

/* Largest magnitude in rows r0 .. r1, columns c0 .. c1 of a matrix; NaN counts as 0. */
static inline float quant_most(const float *rows, size_t width, int r0, int r1, int c0, int c1)
{
    float most = 0;

    for (int r = r0; r < r1; r++)
        for (int c = c0; c < c1; c++) {
            float size = fabsf(rows[(size_t)r * width + (size_t)c]);

            most = size > most ? size : most;
        }
    return most;
}

/* The scale of a group whose largest magnitude is `most`. */
OPS_INLINE uint16_t quant_scale_of(WeightFormat format, float most)
{
    float scale = most / quant_code_most(format);

    return isfinite(scale) ? bf16_of(scale) : 0x7f7f; /* the largest that there is */
}

/* ---- codes: a byte, two's complement or E4M3 ---- */

/* Subnormal codes come out as subnormal floats, which the product makes normal. */
OPS_INLINE float quant_fp8_value(uint8_t code)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)(code & 0x80) << 24 | (uint32_t)(code & 0x7f) << 20};

    return v.f * 0x1p120f;
}

OPS_INLINE uint8_t quant_fp8_of(float x)
{
    uint8_t sign = signbit(x) ? 0x80 : 0;
    float size = fabsf(x);
    int exponent = 0, eighths;

    if (!(size < QUANT_FP8_MOST))
        return sign | 0x7e;
    if (size == 0)
        return sign;
    frexpf(size, &exponent);
    exponent = exponent - 1 < -6 ? -6 : exponent - 1;
    eighths = (int)nearbyintf(ldexpf(size, 3 - exponent)); /* 8 .. 16 where it is normal */
    return sign | (uint8_t)(eighths + (exponent + 6) * 8);
}

/* The code of x in a group of this scale; NaN is 0. */
OPS_INLINE uint8_t quant_code(WeightFormat format, float x, float scale)
{
    float most = quant_code_most(format), code = scale > 0 ? x / scale : 0;

    if (!(fabsf(code) <= most))
        code = code > 0 ? most : code < 0 ? -most : 0;
    return format == WEIGHT_FP8 ? quant_fp8_of(code) : (uint8_t)(int8_t)nearbyintf(code);
}

/* One of the two codes of four bits in a byte, as a byte. */
OPS_INLINE uint8_t quant_nibble(uint8_t pair, int high)
{
    return (uint8_t)((int8_t)(high ? pair : (uint8_t)(pair << 4)) >> 4);
}

OPS_INLINE float quant_value(WeightFormat format, uint8_t code, float scale)
{
    return (format == WEIGHT_FP8 ? quant_fp8_value(code) : (float)(int8_t)code) * scale;
}
