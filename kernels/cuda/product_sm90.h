/*
 * The product of product.h by wgmma: the same tile, terms and order of sums, taken by a warpgroup.
 *
 * Invariants
 *  1. As of product.h.
 *  2. Planes come in two sets in turn: a step's numbers are loaded while the products of the step
 *     before run, and a set is filled anew only behind a barrier that follows every warp's wait for
 *     the products of it.
 *
 * A plane is made of core matrices (hopper.h): 8 rows by 8 numbers, ALONG bytes apart along k and
 * DOWN bytes down the rows, not quite side by side so that stores fall on different banks.
 */
#pragma once

#include "kernels/cuda/hopper.h"

#define PRODUCT_SM90
#define WARP_M      1
#define WARP_N      16
#define ENTRY(name) hopper_##name

#include "kernels/cuda/product.h"

#define ALONG    (2 * TILE_LD * (int)sizeof(unsigned short))
#define DOWN     (CORE * TILE_LD * (int)sizeof(unsigned short))
#define FEW_COLS 64
#define STEP_K   16

template <int TA, int TB> struct Planes {
    unsigned short a[TA][TILE_M][TILE_LD];
    unsigned short b[TB][TILE_N][TILE_LD];
};

template <int TA, int TB> struct Tile {
    const char *a_at[TILE_M];
    const char *b_at[TILE_N];
    Planes<TA, TB> planes[2];
};

static __device__ __forceinline__ int acc_row(int i, int e)
{
    return (int)threadIdx.x / LANES * 16 + i * TILE_M + (int)threadIdx.x % LANES / 4 + 8 * (e / 2);
}

static __device__ __forceinline__ int acc_col(int j, int e)
{
    return j * 8 + 2 * ((int)threadIdx.x % 4) + e % 2;
}

static __device__ __forceinline__ int plane_place(int r, int i)
{
    return r / CORE * (CORE * TILE_LD) + i / CORE * (2 * TILE_LD) + r % CORE * CORE + i % CORE;
}

/* The products of one step's planes, of the tile's first N columns, as a group. */
template <int TA, int TB, int N>
static __device__ __forceinline__ void planes_product(Acc acc, const Planes<TA, TB> *planes)
{
    acc_settle(acc[0]);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < TILE_K; kk += STEP_K)
#pragma unroll
        for (int sum = (TA > TB ? TA : TB) - 1; sum >= 0; sum--)
#pragma unroll
            for (int term = 0; term < TA; term++)
                if (sum >= term && sum - term < TB)
                    wgmma_ss<N>(
                        acc[0], matrix_at(&planes->a[term][0][0] + plane_place(0, kk), ALONG, DOWN),
                        matrix_at(&planes->b[sum - term][0][0] + plane_place(0, kk), ALONG, DOWN));
    wgmma_commit();
}

/* As product.h's. Barriers: one before anything is read, then one a step, the last after all of the
 * tables and of the last step's numbers was read. */
template <int TA, int TB>
static __device__ __forceinline__ void tile_product(Acc acc, Tile<TA, TB> *tile, const Side &a,
                                                    int m, const Side &b, int n, int k)
{
    int set = 0;

    __syncthreads();
#pragma unroll 1
    for (int k0 = 0; k0 < k; k0 += TILE_K, set ^= 1) {
        side_load<TA, TILE_M>(tile->planes[set].a, tile->a_at, a, m, k0, k);
        side_load<TB, TILE_N>(tile->planes[set].b, tile->b_at, b, n, k0, k);
        proxy_fence();
        wgmma_wait(0);
        __syncthreads();
        if (n <= FEW_COLS)
            planes_product<TA, TB, FEW_COLS>(acc, &tile->planes[set]);
        else
            planes_product<TA, TB, TILE_N>(acc, &tile->planes[set]);
    }
    wgmma_wait(0);
    acc_settle(acc[0]);
}
