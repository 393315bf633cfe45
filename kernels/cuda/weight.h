/*
 * How a packed matrix lies on a card, and a number of it.
 *
 * Row by row. A row of numbers is filled up with zeros to a multiple of eight. A row of codes
 * (kernels/quant.h; of four bits the even column in the low half of a byte) is followed by its own
 * scales in bf16, one for each group of columns, and begins where sixteen bytes may be read: in fp8
 * each of the 128 rows of a group has the group's scale once more.
 */
#pragma once

#include "kernels/cuda/cuda.h"

#include "kernels/quant.h"

typedef struct {
    const char *data;
    size_t row; /* bytes from one row to the next */
    int scales; /* bytes from a row's beginning to its scales */
    WeightFormat format;
} Packed;

static __device__ __forceinline__ unsigned short *packed_scale(const char *row, int scales,
                                                               WeightFormat format, int col)
{
    return (unsigned short *)(uintptr_t)(row + scales) + col / quant_group_cols(format);
}

/* What the code of a column stands for, not yet rounded to bf16. */
static __device__ __forceinline__ float packed_code(const char *row, int scales,
                                                    WeightFormat format, int col)
{
    uint8_t code = ((const uint8_t *)row)[format == WEIGHT_INT4 ? col / 2 : col];

    if (format == WEIGHT_INT4)
        code = quant_nibble(code, col % 2);
    return quant_value(format, code, bf16_widen(*packed_scale(row, scales, format, col)));
}

static __device__ __forceinline__ float packed_number(const Packed &p, size_t n, int k)
{
    const char *row = p.data + n * p.row;

    if (quant_is(p.format))
        return bf16_widen(bf16_round(packed_code(row, p.scales, p.format, k)));
    return p.format == WEIGHT_BF16 ? bf16_widen(((const unsigned short *)row)[k])
                                   : ((const float *)row)[k];
}

/* ---- host side (weight.cu) ---- */

Packed packed_of(const OpsWeight *w);
