/*
 * The one product of all kernels: a tile of A B^T by tensor cores, from numbers lying anywhere.
 *
 * A number goes into the product as a sum of bf16 terms, each the rounding of what the terms before
 * left: one term is bf16, two keep 17 bits, three all of f32. Of two sides with TA and TB terms the
 * products a_i b_j with i + j < max(TA, TB) are taken, smallest first.
 *
 * Invariants
 *  1. An element of the tile is one chain over ascending k in steps of 16, whatever the rows and
 *     columns around it; steps are counted from the first k of the call.
 *  2. What lies outside a side's rows or k counts as zero and is not read.
 *
 * Two ways to take the products: mma.sync, here, and wgmma (product_sm90.h, which includes this
 * file). Kernels are written once over what both have: Acc, FOR_ACC, Tile, tile_product, ENTRY.
 *
 * Not here: where rows lie (each kernel fills the tables), what becomes of the tile.
 */
#pragma once

#include "kernels/cuda/weight.h"

#define TILE_M     64
#define TILE_N     128
#define TILE_K     32
#define PAIRS      (TILE_K / 2)
#define TILE_BLOCK 128
#define TILE_LD    (TILE_K + 8) /* rows of fragments fall on different banks */
#ifndef PRODUCT_SM90
#define WARP_M      2 /* tiles of 16 rows and of 8 columns that a warp holds */
#define WARP_N      8
#define ENTRY(name) cuda_##name
#endif

typedef float Acc[WARP_M][WARP_N][4];

/* How a side of the product is read: element (r, i) lies at table[r] + i * stride, or, by_inner, at
 * table[i] + r * stride (elements, not bytes). A NULL in the table is a row of zeros. */
typedef struct {
    size_t stride;
    int by_inner;
    int bf16;
    const float *factor; /* NULL, or element (r, i) is multiplied by factor[i * factor_step] */
    int factor_step;
    /* Not 0: rows of codes (weight.h). Column i of the row at table[r]; turned, column first + r of
     * the row at table[r] + i * stride (bytes). `factor` is not for them. */
    WeightFormat codes;
    int scales, turned, first;
} Side;

static __device__ __forceinline__ Side side(size_t stride)
{
    Side s = {stride, 0, 0, NULL, 0, WEIGHT_REAL, 0, 0, 0};

    return s;
}

static __device__ __forceinline__ Side side_by_inner(size_t stride)
{
    Side s = {stride, 1, 0, NULL, 0, WEIGHT_REAL, 0, 0, 0};

    return s;
}

static __device__ __forceinline__ Side side_scaled(size_t stride, const float *factor, int step)
{
    Side s = {stride, 0, 0, factor, step, WEIGHT_REAL, 0, 0, 0};

    return s;
}

static __device__ __forceinline__ void acc_zero(Acc acc)
{
#pragma unroll
    for (int i = 0; i < WARP_M; i++)
#pragma unroll
        for (int j = 0; j < WARP_N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                acc[i][j][e] = 0;
}

/* Row and column of the tile that a thread's acc[i][j][e] belongs to. */
static __device__ __forceinline__ int acc_row(int i, int e);
static __device__ __forceinline__ int acc_col(int j, int e);
/* Where element (r, i) of a plane lies in it. */
static __device__ __forceinline__ int plane_place(int r, int i);

/* Every element of a thread's part of the tile that lies within m rows and n columns. */
#define FOR_ACC(i, j, e, m, n)                                                                     \
    _Pragma("unroll") for (int i = 0; i < WARP_M; i++)                                             \
        _Pragma("unroll") for (int j = 0; j < WARP_N; j++) _Pragma(                                \
            "unroll") for (int e = 0; e < 4; e++) if (acc_row(i, e) < (m) && acc_col(j, e) < (n))

/* acc[i][j][e] *= by[row] for every element; by [TILE_M]. */
static __device__ __forceinline__ void acc_scale(Acc acc, const float *by, int step, int m)
{
    FOR_ACC (i, j, e, m, TILE_N)
        acc[i][j][e] *= by[acc_row(i, e) * step];
}

static __device__ __forceinline__ float side_number(const char *from, size_t off, int bf16)
{
    return bf16 ? bf16_widen(((const unsigned short *)from)[off]) : ((const float *)from)[off];
}

static __device__ __forceinline__ float side_code(const char *row, const Side &s, int r, int i)
{
    const char *at = s.turned ? row + (size_t)i * s.stride : row;

    return packed_code(at, s.scales, s.codes, s.turned ? s.first + r : i);
}

/* Elements (r, i) and (r, i + 1) of a side of codes. */
static __device__ __forceinline__ float2 code_pair(const char *row, const Side &s, int r, int i,
                                                   int k)
{
    float2 x = {0, 0};

    if (row) {
        x.x = side_code(row, s, r, i);
        x.y = i + 1 < k ? side_code(row, s, r, i + 1) : 0;
    }
    return x;
}

/* Elements (r, i) and (r, i + 1) of a side; what lies at or beyond k is zero. */
static __device__ __forceinline__ float2 side_pair(const char *const *at, const Side &s, int r,
                                                   int i, int k)
{
    const char *first = at[s.by_inner ? i : r], *second = first;
    size_t off = (size_t)(s.by_inner ? r : i) * s.stride, next = s.by_inner ? off : off + s.stride;
    size_t element = s.bf16 ? sizeof(unsigned short) : sizeof(float);
    bool both = first && i + 1 < k && !s.by_inner && s.stride == 1 &&
                ((uintptr_t)first + off * element) % (2 * element) == 0;
    float2 x = {0, 0};

    if (i + 1 >= k)
        second = NULL;
    else if (s.by_inner)
        second = at[i + 1];
    if (both && s.bf16) {
        uint32_t pair = *(const uint32_t *)((const unsigned short *)first + off);

        x.x = __uint_as_float(pair << 16);
        x.y = __uint_as_float(pair & 0xffff0000u);
    } else if (both) {
        x = *(const float2 *)((const float *)first + off);
    } else {
        x.x = first ? side_number(first, off, s.bf16) : 0;
        x.y = second ? side_number(second, next, s.bf16) : 0;
    }
    if (s.factor) {
        x.x *= s.factor[i * s.factor_step];
        x.y *= i + 1 < k ? s.factor[(i + 1) * s.factor_step] : 0;
    }
    return x;
}

template <int TERMS, int ROWS>
static __device__ __forceinline__ void side_load(unsigned short planes[TERMS][ROWS][TILE_LD],
                                                 const char *const *at, const Side &s, int rows,
                                                 int k0, int k)
{
    bool along_rows = s.codes ? s.turned : s.by_inner || s.stride != 1;
    int used = (rows + 15) / 16 * 16;

#pragma unroll 4
    for (int step = 0; step < ROWS * PAIRS / TILE_BLOCK; step++) {
        int n = step * TILE_BLOCK + (int)threadIdx.x;
        int r = along_rows ? n % ROWS : n / PAIRS, i = 2 * (along_rows ? n / ROWS : n % PAIRS);
        float2 x = {0, 0};

        if (r >= used)
            continue;
        if (r < rows && k0 + i < k)
            x = s.codes ? code_pair(at[r], s, r, k0 + i, k) : side_pair(at, s, r, k0 + i, k);
#pragma unroll
        for (int term = 0; term < TERMS; term++) {
            uint32_t part = bf16_pair(x.x, x.y);

            *reinterpret_cast<uint32_t *>(&planes[term][0][0] + plane_place(r, i)) = part;
            x.x -= __uint_as_float(part << 16);
            x.y -= __uint_as_float(part & 0xffff0000u);
        }
    }
}

/* The table of rows that lie `row` elements apart, from row `first` on. */
static __device__ __forceinline__ void rows_at(const char **at, int most, const void *data,
                                               size_t row, size_t element)
{
    for (int r = (int)threadIdx.x; r < most; r += TILE_BLOCK)
        at[r] = (const char *)data + (size_t)r * row * element;
}

#ifndef PRODUCT_SM90
/* ---- by mma.sync: warp w holds rows 32 (w / 2) and columns 64 (w % 2) of the tile on ---- */

template <int TA, int TB> struct Tile {
    const char *a_at[TILE_M];
    const char *b_at[TILE_N];
    unsigned short a[TA][TILE_M][TILE_LD];
    unsigned short b[TB][TILE_N][TILE_LD];
};

static __device__ __forceinline__ int acc_row(int i, int e)
{
    int warp = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;

    return warp / 2 * 32 + i * 16 + lane / 4 + 8 * (e / 2);
}

static __device__ __forceinline__ int acc_col(int j, int e)
{
    int warp = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;

    return warp % 2 * 64 + j * 8 + 2 * (lane % 4) + e % 2;
}

static __device__ __forceinline__ int plane_place(int r, int i)
{
    return r * TILE_LD + i;
}

/* Two neighbouring bf16 of a row, as a register of a fragment. */
static __device__ __forceinline__ uint32_t pair_at(const unsigned short *row, int k)
{
    return *reinterpret_cast<const uint32_t *>(row + k);
}

template <int TA, int TB>
static __device__ __forceinline__ void tile_step(Acc acc, const Tile<TA, TB> *tile, int kk, int m,
                                                 int n)
{
    int warp = (int)threadIdx.x / LANES, g = (int)threadIdx.x % LANES / 4;
    int row0 = warp / 2 * 32, col0 = warp % 2 * 64, at = kk + 2 * ((int)threadIdx.x % 4);
    uint32_t a[TA][WARP_M][4];

    if (row0 >= m || col0 >= n)
        return;
#pragma unroll
    for (int term = 0; term < TA; term++)
#pragma unroll
        for (int i = 0; i < WARP_M; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                a[term][i][e] =
                    pair_at(tile->a[term][row0 + i * 16 + g + 8 * (e % 2)], at + 8 * (e / 2));
#pragma unroll
    for (int j = 0; j < WARP_N; j++) {
        uint32_t b[TB][2];

        if (col0 + j * 8 >= n)
            break;
#pragma unroll
        for (int term = 0; term < TB; term++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                b[term][e] = pair_at(tile->b[term][col0 + j * 8 + g], at + 8 * e);
#pragma unroll
        for (int i = 0; i < WARP_M; i++) {
            if (row0 + i * 16 >= m)
                break;
#pragma unroll
            for (int sum = (TA > TB ? TA : TB) - 1; sum >= 0; sum--)
#pragma unroll
                for (int term = 0; term < TA; term++)
                    if (sum >= term && sum - term < TB)
                        tensor_mma(acc[i][j], a[term][i], b[sum - term]);
        }
    }
}

/* acc += A [m, k] B [n, k]^T; m <= TILE_M, n <= TILE_N. The caller has filled the tables (k <=
 * their length for a side by_inner) and may fill them anew as soon as the call returns. Barriers:
 * one before anything is read, one after all of the tables and of the last step's numbers was. */
template <int TA, int TB>
static __device__ __forceinline__ void tile_product(Acc acc, Tile<TA, TB> *tile, const Side &a,
                                                    int m, const Side &b, int n, int k)
{
#pragma unroll 1
    for (int k0 = 0; k0 < k; k0 += TILE_K) {
        __syncthreads();
        side_load<TA, TILE_M>(tile->a, tile->a_at, a, m, k0, k);
        side_load<TB, TILE_N>(tile->b, tile->b_at, b, n, k0, k);
        __syncthreads();
#pragma unroll
        for (int kk = 0; kk < TILE_K; kk += 16)
            tile_step<TA, TB>(acc, tile, kk, m, n);
    }
}
#endif
