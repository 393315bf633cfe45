/*
 * Packing matrices, and what was packed.
 *
 * Invariants
 *  1. Codes and scales are those of every other table (kernels/quant.h makes them), so one file
 *     gives all of them the same numbers.
 *
 * Not here: products (gemm.cu), the embedding (dense.cu).
 */
#include "kernels/cuda/weight.h"

#define ROW_ALIGN 16

static size_t element_size(WeightFormat format)
{
    return format == WEIGHT_BF16 ? sizeof(uint16_t) : sizeof(float);
}

/* Bytes of a row's codes; its scales follow. */
static size_t code_bytes(WeightFormat format, int k)
{
    size_t bytes = format == WEIGHT_INT4 ? ((size_t)k + 1) / 2 : (size_t)k;

    return (bytes + 1) / 2 * 2;
}

static size_t row_bytes(WeightFormat format, int k)
{
    size_t groups = ((size_t)k + quant_group_cols(format) - 1) / quant_group_cols(format);
    size_t bytes = code_bytes(format, k) + groups * sizeof(uint16_t);

    if (!quant_is(format))
        return cuda_weight_stride(k) * element_size(format);
    return (bytes + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN;
}

Packed packed_of(const OpsWeight *w)
{
    Packed p = {(const char *)w->data, row_bytes(w->format, w->k), (int)code_bytes(w->format, w->k),
                w->format};

    return p;
}

static __global__ void pack_kernel(Packed p, const float *from, int k)
{
    char *row = (char *)(uintptr_t)p.data + blockIdx.x * p.row;
    int n = (int)(p.row / (p.format == WEIGHT_BF16 ? 2 : 4));

    for (int i = (int)threadIdx.x; i < n; i += FLAT_BLOCK) {
        float x = i < k ? from[blockIdx.x * (size_t)k + i] : 0;

        if (p.format == WEIGHT_BF16)
            ((unsigned short *)row)[i] = bf16_round(x);
        else
            ((float *)row)[i] = x;
    }
}

/* Largest magnitude in rows r0 .. r1, columns c0 .. c1, by a warp; NaN counts as 0. */
static __device__ __forceinline__ float group_most(const float *rows, int k, int r0, int r1, int c0,
                                                   int c1)
{
    float most = 0;

    for (int r = r0; r < r1; r++)
        for (int c = c0 + (int)threadIdx.x; c < c1; c += LANES)
            most = fmaxf(most, fabsf(rows[(size_t)r * (size_t)k + c]));
    return warp_max(most);
}

/* A warp packs one row's part of one group. */
static __global__ void pack_codes_kernel(Packed p, const float *from, int n, int k)
{
    int r = (int)blockIdx.x, tall = quant_group_rows(p.format), r0 = r / tall * tall;
    int wide = quant_group_cols(p.format), c0 = (int)blockIdx.y * wide;
    int c1 = c0 + wide < k ? c0 + wide : k;
    uint8_t *row = (uint8_t *)(uintptr_t)p.data + (size_t)r * p.row;
    float most = group_most(from, k, r0, r0 + tall < n ? r0 + tall : n, c0, c1), scale;
    unsigned short bits = quant_scale_of(p.format, most);
    const float *x = from + (size_t)r * (size_t)k;

    scale = bf16_widen(bits);
    if (threadIdx.x == 0)
        *packed_scale((const char *)row, p.scales, p.format, c0) = bits;
    for (int c = c0 + (int)threadIdx.x; p.format != WEIGHT_INT4 && c < c1; c += LANES)
        row[c] = quant_code(p.format, x[c], scale);
    for (int c = c0 + 2 * (int)threadIdx.x; p.format == WEIGHT_INT4 && c < c1; c += 2 * LANES) {
        int high = c + 1 < c1 ? quant_code(p.format, x[c + 1], scale) : 0;

        row[c / 2] = (uint8_t)((quant_code(p.format, x[c], scale) & 0x0f) | high << 4);
    }
}

static __global__ void unpack_kernel(float *to, Packed p, int k)
{
    for (int i = (int)threadIdx.x; i < k; i += FLAT_BLOCK)
        to[blockIdx.x * (size_t)k + i] = packed_number(p, blockIdx.x, i);
}

size_t cuda_weight_bytes(WeightFormat format, int n, int k)
{
    return (size_t)n * row_bytes(format, k);
}

void cuda_weight_pack(const OpsWeight *w, const void *rows)
{
    Packed p = packed_of(w);

    cuda_op_begin();
    if (quant_is(w->format))
        LAUNCH(pack_codes_kernel,
               dim3((unsigned)w->n,
                    blocks_for((size_t)w->k, (size_t)quant_group_cols(w->format), SIZE_MAX)),
               LANES, 0, p, (const float *)rows, w->n, w->k);
    else
        LAUNCH(pack_kernel, (unsigned)w->n, FLAT_BLOCK, 0, p, (const float *)rows, w->k);
    cuda_op_end("weight_pack");
}

void cuda_weight_unpack(void *rows, const OpsWeight *w)
{
    cuda_op_begin();
    LAUNCH(unpack_kernel, (unsigned)w->n, FLAT_BLOCK, 0, (float *)rows, packed_of(w), w->k);
    cuda_op_end("weight_unpack");
}
