/*
 * What the forward and the backward of softmax attention share.
 *
 * Rows of a key-value head's group are numbered x = t * group + c: row t of the span, head
 * g * group + c. Positions go by in steps of STEP counted from 0; STEP is a multiple of the page.
 */
#pragma once

#include "kernels/cuda/product.h"

#define SCORE_LD (TILE_N + 4)

/* A span on the card. `pages` are its first n_pages pages. */
typedef struct {
    int row0, rows;
    int64_t pos0;
    const void *const *pages;
} AttnSpan;

/* One block's rows: x0 .. x0 + TILE_M - 1 of a span. */
typedef struct {
    int span, x0;
} AttnTile;

typedef struct {
    int heads, kv_heads, dim, chunk, group, step;
    size_t offset; /* bytes from a page's beginning to the layer's */
    float scale;   /* 1 / sqrt(d) */
} AttnShape;

typedef struct {
    Tile<2, 2> tile;
    float scores[TILE_M][SCORE_LD];
} AttnSmem;

/* Element at which row x of key-value head g begins in an array [T, H, d]. */
static __device__ __forceinline__ size_t attn_row(const AttnSpan *span, const AttnShape &s, int g,
                                                  int x)
{
    size_t row = (size_t)(span->row0 + x / s.group) * (size_t)s.heads;

    return (row + (size_t)(g * s.group + x % s.group)) * (size_t)s.dim;
}

static __device__ __forceinline__ const float *attn_page(const AttnSpan *span, const AttnShape &s,
                                                         int64_t p)
{
    return (const float *)((const char *)span->pages[p / s.chunk] + s.offset);
}

/* Keys [G][d][C]: channel i of position p lies at key + i * C. */
static __device__ __forceinline__ const float *attn_key(const AttnSpan *span, const AttnShape &s,
                                                        int g, int64_t p)
{
    return attn_page(span, s, p) + (size_t)g * s.dim * s.chunk + (size_t)(p % s.chunk);
}

/* Values [G][C][d], behind the keys. */
static __device__ __forceinline__ const float *attn_value(const AttnSpan *span, const AttnShape &s,
                                                          int g, int64_t p)
{
    size_t keys = (size_t)s.kv_heads * s.dim * s.chunk;

    return attn_page(span, s, p) + keys + ((size_t)g * s.chunk + (size_t)(p % s.chunk)) * s.dim;
}

/* ---- host side ---- */

static inline AttnShape attn_shape(OpsHeads h, size_t offset)
{
    AttnShape s;

    s.heads = h.heads;
    s.kv_heads = h.kv_heads;
    s.dim = h.dim;
    s.chunk = h.chunk;
    s.group = h.heads / h.kv_heads;
    s.step = TILE_N / h.chunk * h.chunk;
    s.offset = offset;
    s.scale = 1 / sqrtf((float)h.dim);
    return s;
}

/* Stages spans with their pages, and the list of row tiles. */
const AttnSpan *attn_put_spans(const OpsSpan *spans, int n_spans, OpsHeads heads);
const AttnTile *attn_put_tiles(const OpsSpan *spans, int n_spans, OpsHeads heads, int *n_tiles);
