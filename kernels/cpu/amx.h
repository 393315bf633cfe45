/*
 * Wrappers around the tiles of AMX-BF16 and the rounding beside them, and the same in plain C, so
 * that the product written against them (amx.c) can be built and held against the oracle on any
 * processor.
 *
 * A tile is up to 16 rows of up to 64 bytes. amx_multiply adds to the f32 tile c, row by row, the
 * products of pairs: c[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1], k ascending.
 * Numbers of tiles are constants. amx_round rounds n floats to nearest even. amx_pairs writes the
 * numbers of two rows in turns, n a multiple of CPU_WIDTH; amx_round_pairs rounds any n first, and
 * may write zeros up to a multiple of 16.
 * Source: Intel SDM volume 2, LDTILECFG, TILELOADD, TDPBF16PS, VCVTNEPS2BF16.
 */
#pragma once

#include "kernels/ops.h"

#include <string.h>

#define AMX_TILES 8
#define AMX_ROWS  16
#define AMX_BYTES 64

/* Rows and bytes of a row of each tile: what LDTILECFG reads. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) AmxShape;

#ifndef CPU_AMX_EMULATED

#include <immintrin.h>

#define amx_configure(shape)      _tile_loadconfig(shape)
#define amx_zero(t)               _tile_zero(t)
#define amx_load(t, from, stride) _tile_loadd(t, from, stride)
#define amx_multiply(c, a, b)     _tile_dpbf16ps(c, a, b)
#define amx_store(t, to, stride)  _tile_stored(t, to, stride)
#define amx_release()             _tile_release()

static inline void amx_round(uint16_t *to, const float *from, int n)
{
    int i = 0;

    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16),
                                                                 _mm512_loadu_ps(from + i)));
    for (; i < n; i += 16) {
        uint32_t left = n - i < 16 ? (1u << (n - i)) - 1 : 0xffff;
        __mmask16 lanes = (__mmask16)left;
        __m256bh low = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, from + i));

        _mm256_mask_storeu_epi16(to + i, lanes, (__m256i)low);
    }
}

/* The halves of v, 16 numbers each, in turns. */
static inline __m512i amx_in_turns(__m512i v)
{
    static const uint16_t order[32] __attribute__((aligned(64))) = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

    return _mm512_permutexvar_epi16(_mm512_load_si512(order), v);
}

static inline void amx_pairs(uint16_t *to, const uint16_t *even, const uint16_t *odd, int n)
{
    for (int i = 0; i < n; i += 16) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(even + i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(odd + i));

        _mm512_storeu_si512(to + 2 * i,
                            amx_in_turns(_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1)));
    }
}

static inline void amx_round_pairs(uint16_t *to, const float *even, const float *odd, int n)
{
    for (int i = 0; i < n; i += 16) {
        uint32_t left = n - i < 16 ? (1u << (n - i)) - 1 : 0xffff;
        __mmask16 lanes = (__mmask16)left;
        __m512bh v = _mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(lanes, odd + i),
                                         _mm512_maskz_loadu_ps(lanes, even + i));

        _mm512_storeu_si512(to + 2 * i, amx_in_turns((__m512i)v));
    }
}

#else

typedef union {
    uint16_t pairs[AMX_BYTES / 2];
    float sums[AMX_BYTES / 4];
} AmxRow;

static _Thread_local AmxShape amx_shape;
static _Thread_local AmxRow amx_tile[AMX_TILES][AMX_ROWS];

static inline void amx_configure(const AmxShape *shape)
{
    amx_shape = *shape;
    memset(amx_tile, 0, sizeof amx_tile);
}

static inline void amx_zero(int t)
{
    memset(amx_tile[t], 0, sizeof amx_tile[t]);
}

static inline void amx_load(int t, const void *from, size_t stride)
{
    memset(amx_tile[t], 0, sizeof amx_tile[t]);
    for (int r = 0; r < amx_shape.rows[t]; r++)
        memcpy(&amx_tile[t][r], (const char *)from + (size_t)r * stride, amx_shape.bytes[t]);
}

static inline void amx_store(int t, void *to, size_t stride)
{
    for (int r = 0; r < amx_shape.rows[t]; r++)
        memcpy((char *)to + (size_t)r * stride, &amx_tile[t][r], amx_shape.bytes[t]);
}

static inline void amx_multiply(int c, int a, int b)
{
    for (int m = 0; m < amx_shape.rows[c]; m++)
        for (int k = 0; k < amx_shape.bytes[a] / 4; k++) {
            const uint16_t *x = amx_tile[a][m].pairs + 2 * k, *y = amx_tile[b][k].pairs;
            float *sums = amx_tile[c][m].sums;

            for (int n = 0; n < amx_shape.bytes[c] / 4; n++) {
                sums[n] += bf16_float(x[0]) * bf16_float(y[2 * n]);
                sums[n] += bf16_float(x[1]) * bf16_float(y[2 * n + 1]);
            }
        }
}

static inline void amx_round(uint16_t *to, const float *from, int n)
{
    for (int i = 0; i < n; i++)
        to[i] = bf16_of(from[i]);
}

static inline void amx_pairs(uint16_t *to, const uint16_t *even, const uint16_t *odd, int n)
{
    for (int i = 0; i < n; i++) {
        to[2 * i] = even[i];
        to[2 * i + 1] = odd[i];
    }
}

static inline void amx_round_pairs(uint16_t *to, const float *even, const float *odd, int n)
{
    for (int i = 0; i < n; i++) {
        to[2 * i] = bf16_of(even[i]);
        to[2 * i + 1] = bf16_of(odd[i]);
    }
}

static inline void amx_release(void)
{
    memset(&amx_shape, 0, sizeof amx_shape);
}

#endif
