/*
 * Vectors of CPU_WIDTH floats, by the compiler's vector extension: the same source serves AVX-512
 * (16), AVX2 (8) and the plain build (4). Built once per instruction set, see kernels/meson.build.
 *
 * Sums over lanes and products go through the functions here alone, so that every kernel of one
 * build rounds alike: a product is fused where the build says so (vfma), never by the compiler
 * (-ffp-contract=off).
 */
#pragma once

#include "kernels/ops.h"

#include <math.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define W CPU_WIDTH

typedef float vf __attribute__((vector_size(4 * W)));
typedef float vf_any __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));

#define INLINE static inline __attribute__((always_inline, unused))

INLINE vf vset(float x)
{
    return x - (vf){0};
}

INLINE vf vload(const void *p)
{
    return *(const vf_any *)p;
}

INLINE void vstore(float *p, vf v)
{
    *(vf_any *)p = v;
}

/* The first n < W lanes; the others are 0. */
INLINE vf vload_part(const float *p, int n)
{
    vf v = {0};

    memcpy(&v, p, (size_t)n * sizeof(float));
    return v;
}

INLINE void vstore_part(float *p, vf v, int n)
{
    memcpy(p, &v, (size_t)n * sizeof(float));
}

INLINE vf vload_n(const float *p, int n)
{
    return n >= W ? vload(p) : vload_part(p, n);
}

INLINE void vstore_n(float *p, vf v, int n)
{
    if (n >= W)
        vstore(p, v);
    else
        vstore_part(p, v, n);
}

/* A vector of pairs of bf16: the lower halves, the upper halves. */
INLINE vf vload_low(const void *p)
{
    return (vf)((vu)vload(p) << 16);
}

INLINE vf vload_high(const void *p)
{
    return (vf)((vu)vload(p) & 0xffff0000u);
}

/* a * b + c, rounded once where the machine can. */
INLINE vf vfma(vf a, vf b, vf c)
{
#if W == 16
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif W == 8
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE vf vsqrt(vf v)
{
#if W == 16
    return (vf)_mm512_sqrt_ps((__m512)v);
#elif W == 8
    return (vf)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < W; i++)
        v[i] = sqrtf(v[i]);
    return v;
#endif
}

INLINE vf vselect(vi mask, vf yes, vf no)
{
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

INLINE vf vmax(vf a, vf b)
{
    return vselect(a > b, a, b);
}

INLINE float vsum(vf v)
{
    float sum = v[0];

    for (int i = 1; i < W; i++)
        sum += v[i];
    return sum;
}

INLINE float vtop(vf v)
{
    float top = v[0];

    for (int i = 1; i < W; i++)
        top = v[i] > top ? v[i] : top;
    return top;
}

/* exp to about 1 ulp: x = n ln 2 + r, a polynomial in r, n into the exponent. 0 below -87. */
INLINE vf vexp(vf x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vf top = vset(88.0f), bottom = vset(-87.0f);
    vf y = vselect(x > top, top, vselect(x < bottom, bottom, x));
    vf n = vfma(y, vset(1.44269504f), vset(magic)) - magic;
    vf r = vfma(n, vset(-0.693145752f), y), p = vset(1.98412698e-4f);

    r = vfma(n, vset(-1.42860677e-6f), r);
    p = vfma(p, r, vset(1.38888889e-3f));
    p = vfma(p, r, vset(8.33333333e-3f));
    p = vfma(p, r, vset(4.16666667e-2f));
    p = vfma(p, r, vset(1.66666667e-1f));
    p = vfma(p, r, vset(0.5f));
    p = vfma(p, r, vset(1.0f));
    p = vfma(p, r, vset(1.0f));
    p *= (vf)((__builtin_convertvector(n, vi) + 127) << 23);
    return vselect(x < bottom, vset(0.0f), vselect(x != x, x, p));
}

INLINE vf vsigmoid(vf z)
{
    return 1.0f / (1.0f + vexp(-z));
}

/* The square of v turned over: rows become columns. */
INLINE void vtranspose(vf v[W])
{
#pragma GCC unroll 4
    for (int h = 1; h < W; h *= 2) {
        vi low = {0}, high = {0};

#pragma GCC unroll 16
        for (int l = 0; l < W; l++) {
            low[l] = l & h ? W + l - h : l;
            high[l] = l & h ? W + l : l + h;
        }
#pragma GCC unroll 16
        for (int i = 0; i < W; i++)
            if (!(i & h)) {
                vf a = v[i], b = v[i + h];

                v[i] = __builtin_shuffle(a, b, low);
                v[i + h] = __builtin_shuffle(a, b, high);
            }
    }
}

/*
 * acc[i][j] += sum over k of a[i][k * lda] * b[k * ldb + j * W ..]: the one product of all kernels.
 * b[] has a pointer for every two vectors; mr and nv are constants at every call, so the loops
 * unroll and acc lives in registers. What lies `ahead` bytes after b is asked for meanwhile; 0:
 * nothing. Every element sums over k in ascending order: its bits do not depend on mr or nv.
 */
#define TILE_COLS 8
#if CPU_WIDTH == 16
#define TILE_ROWS 12
#define FOR_TILE_ROWS(CASE)                                                                        \
    CASE(1)                                                                                        \
    CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#else
#define TILE_ROWS           6
#define FOR_TILE_ROWS(CASE) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#endif

INLINE void tile(int mr, int nv, int kn, const float *const *a, size_t lda, const void *const *b,
                 size_t ldb, size_t ahead, vf acc[][TILE_COLS])
{
    for (int k = 0; k < kn; k++) {
        vf col[TILE_COLS];

        for (int j = 0; j < nv; j++)
            col[j] = vload((const float *)b[j / 2] + (size_t)k * ldb + j % 2 * W);
        for (int j = 0; ahead && j < nv; j += 2)
            __builtin_prefetch((const char *)((const float *)b[j / 2] + (size_t)k * ldb) + ahead, 0,
                               2);
        for (int i = 0; i < mr; i++) {
            vf x = vset(a[i][(size_t)k * lda]);

            for (int j = 0; j < nv; j++)
                acc[i][j] = vfma(x, col[j], acc[i][j]);
        }
    }
}

/* One k of tile_pairs, k even or odd as `half` says. */
INLINE void tile_half(int mr, int nv, int k, int half, const float *const *a, const void *const *b,
                      vf acc[][TILE_COLS])
{
    vf col[TILE_COLS];

    for (int j = 0; j < nv; j++) {
        const uint32_t *from = (const uint32_t *)b[j / 2] + (size_t)(k / 2 * 2 + j % 2) * W;

        col[j] = half ? vload_high(from) : vload_low(from);
    }
    for (int i = 0; i < mr; i++) {
        vf x = vset(a[i][k]);

        for (int j = 0; j < nv; j++)
            acc[i][j] = vfma(x, col[j], acc[i][j]);
    }
}

/* The same over bf16 that lies in pairs of k: b[j] is [kn / 2][2 * W] pairs, two vectors. */
INLINE void tile_pairs(int mr, int nv, int kn, const float *const *a, const void *const *b,
                       size_t ahead, vf acc[][TILE_COLS])
{
    for (int k = 0; k + 1 < kn; k += 2) {
        for (int j = 0; j < nv; j += 2)
            __builtin_prefetch((const char *)b[j / 2] + (size_t)k * 4 * W + ahead, 0, 2);
        tile_half(mr, nv, k, 0, a, b, acc);
        tile_half(mr, nv, k + 1, 1, a, b, acc);
    }
    if (kn % 2)
        tile_half(mr, nv, kn - 1, 0, a, b, acc);
}
