/*
 * What the forward and the backward of lightning attention share: where one head's numbers lie.
 * Formulas: ops.h, lightning_fwd and lightning_bwd.
 */
#pragma once

#include "kernels/cuda/product.h"

#define CHUNK_LD (OPS_CHUNK_MAX + 4)

typedef struct {
    int heads, dim, chunk;
} LightShape;

/* One chunk of a span: rows first .. rows - 1 of it are rows t0 .. of the batch. */
typedef struct {
    int first, rows, t0;
} LightChunk;

static __device__ __forceinline__ LightChunk light_chunk(int64_t pos0, int row0, int rows, int n,
                                                         int chunk)
{
    LightChunk c;
    int64_t begin = (pos0 / chunk + n) * chunk, end = pos0 + rows - begin;

    c.first = n == 0 ? (int)(pos0 % chunk) : 0;
    c.rows = end < chunk ? (int)end : chunk;
    c.t0 = row0 + (int)(begin + c.first - pos0);
    return c;
}

static __host__ __device__ __forceinline__ int light_chunks(int64_t pos0, int rows, int chunk)
{
    return rows > 0 ? (int)((pos0 + rows + chunk - 1) / chunk - pos0 / chunk) : 0;
}

/* Element of q (part 0), k (1) or v (2) of row t of the batch in qkv [T, H, 3, d]. */
static __device__ __forceinline__ size_t light_at(const LightShape &s, int head, int t, int part)
{
    return (((size_t)t * (size_t)s.heads + (size_t)head) * 3 + (size_t)part) * (size_t)s.dim;
}

/* From one row to the next: of qkv, of o. */
static __device__ __forceinline__ size_t light_qkv_row(const LightShape &s)
{
    return (size_t)s.heads * 3 * (size_t)s.dim;
}

static __device__ __forceinline__ size_t light_o_row(const LightShape &s)
{
    return (size_t)s.heads * (size_t)s.dim;
}
