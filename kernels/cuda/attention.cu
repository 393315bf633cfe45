/*
 * Softmax attention over pages on a card: prefill and decode are one kernel.
 *
 * A block takes TILE_M rows of one key-value head's group (attention.h) and goes through all
 * positions up to its last row in steps, keeping for each row the largest score m, the sum l and o:
 *   m' = max(m, max_j s_j), f = exp(m - m'), l' = f l + sum_j exp(s_j - m'), o' = f o + P V
 *
 * Invariants
 *  1. Steps are counted from position 0, and a step beyond a row's position leaves the row's m, l
 *     and o as they are: bits depend neither on the tile nor on the call.
 *  2. Keys and values beyond the tile's last row are not read: they may not have been written.
 *
 * Not here: gradients (attention_bwd.cu). One sequence of few rows keeps few blocks busy.
 */
#include "kernels/cuda/attention.h"

/* Two neighbouring lanes share a row of scores. */
#define ROW_LANES (TILE_BLOCK / TILE_M)

static __global__ void pages_kernel(const float *k, const float *v, const AttnSpan *spans,
                                    AttnShape s)
{
    const AttnSpan *span = &spans[blockIdx.y];
    int n = s.kv_heads * s.dim;

    for (int t = (int)blockIdx.x; t < span->rows; t += (int)gridDim.x)
        for (int at = (int)threadIdx.x; at < n; at += TILE_BLOCK) {
            int64_t p = span->pos0 + t;
            size_t from = (size_t)(span->row0 + t) * n + at;
            int g = at / s.dim, i = at % s.dim;

            ((float *)attn_key(span, s, g, p))[(size_t)i * s.chunk] = k[from];
            ((float *)attn_value(span, s, g, p))[i] = v[from];
        }
}

/* Scores of one step to P in place; the row's m, l and factor are updated by its lanes. */
static __device__ __forceinline__ void softmax_step(AttnSmem *sm, float *top, float *sum,
                                                    float *factor, int m, int count, int64_t p0,
                                                    int64_t pos0, int x0, const AttnShape &s)
{
    int r = (int)threadIdx.x / ROW_LANES, part = (int)threadIdx.x % ROW_LANES;
    int64_t mine = pos0 + (x0 + r) / s.group;
    float best = r < m ? top[r] : 0, total = 0, f;

    for (int j = part; r < m && j < count; j += ROW_LANES)
        if (p0 + j <= mine)
            best = fmaxf(best, sm->scores[r][j] * s.scale);
    best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 1));
    for (int j = part; r < m && j < count; j += ROW_LANES) {
        float e = p0 + j <= mine ? expf(sm->scores[r][j] * s.scale - best) : 0;

        sm->scores[r][j] = e;
        total += e;
    }
    total += __shfl_xor_sync(FULL_WARP, total, 1);
    if (r >= m || part > 0)
        return;
    f = expf(top[r] - best);
    factor[r] = f;
    sum[r] = f * sum[r] + total;
    top[r] = best;
}

static __global__ void __launch_bounds__(TILE_BLOCK)
    attn_kernel(float *o, float *lse, const float *q, const AttnSpan *spans, const AttnTile *tiles,
                AttnShape s)
{
    DYN_SMEM(void, dynamic);
    __shared__ float top[TILE_M], sum[TILE_M], factor[TILE_M];
    AttnSmem *sm = (AttnSmem *)dynamic;
    AttnTile at = tiles[blockIdx.x];
    const AttnSpan *span = &spans[at.span];
    int g = (int)blockIdx.y, c0 = (int)blockIdx.z * TILE_N, left = span->rows * s.group - at.x0;
    int m = left < TILE_M ? left : TILE_M, n = s.dim - c0 < TILE_N ? s.dim - c0 : TILE_N;
    int64_t end = span->pos0 + (at.x0 + m - 1) / s.group + 1;
    Acc out;

    acc_zero(out);
    for (int r = (int)threadIdx.x; r < m; r += TILE_BLOCK) {
        top[r] = -INFINITY;
        sum[r] = 0;
    }
    for (int64_t p0 = 0; p0 < end; p0 += s.step) {
        int count = end - p0 < s.step ? (int)(end - p0) : s.step;
        Acc scores;

        for (int r = (int)threadIdx.x; r < m; r += TILE_BLOCK)
            sm->tile.a_at[r] = (const char *)(q + attn_row(span, s, g, at.x0 + r));
        for (int j = (int)threadIdx.x; j < count; j += TILE_BLOCK)
            sm->tile.b_at[j] = (const char *)attn_key(span, s, g, p0 + j);
        acc_zero(scores);
        tile_product<2, 2>(scores, &sm->tile, side(1), m, side((size_t)s.chunk), count, s.dim);
        FOR_ACC (i, j, e, m, count)
            sm->scores[acc_row(i, e)][acc_col(j, e)] = scores[i][j][e];
        __syncthreads();
        softmax_step(sm, top, sum, factor, m, count, p0, span->pos0, at.x0, s);
        rows_at(sm->tile.a_at, m, sm->scores, SCORE_LD, sizeof(float));
        for (int j = (int)threadIdx.x; j < count; j += TILE_BLOCK)
            sm->tile.b_at[j] = (const char *)(attn_value(span, s, g, p0 + j) + c0);
        __syncthreads();
        acc_scale(out, factor, 1, m);
        tile_product<2, 2>(out, &sm->tile, side(1), m, side_by_inner(1), n, count);
    }
    FOR_ACC (i, j, e, m, n)
        o[attn_row(span, s, g, at.x0 + acc_row(i, e)) + c0 + acc_col(j, e)] =
            out[i][j][e] / sum[acc_row(i, e)];
    for (int r = (int)threadIdx.x; lse && c0 == 0 && r < m; r += TILE_BLOCK)
        lse[attn_row(span, s, g, at.x0 + r) / (size_t)s.dim] = top[r] + logf(sum[r]);
}

/* ---- host side ---- */

#ifndef PRODUCT_SM90 /* one is enough for both builds */
static size_t pages_of(const OpsSpan *span, OpsHeads h)
{
    return (size_t)((span->pos0 + span->rows + h.chunk - 1) / h.chunk);
}

static int tiles_of(const OpsSpan *span, OpsHeads h)
{
    return (span->rows * (h.heads / h.kv_heads) + TILE_M - 1) / TILE_M;
}

size_t attn_stage_bytes(const OpsSpan *spans, int n_spans, OpsHeads heads)
{
    size_t bytes = stage_size((size_t)n_spans * sizeof(AttnSpan)), tiles = 0;

    for (int n = 0; n < n_spans; n++) {
        bytes += stage_size(pages_of(&spans[n], heads) * sizeof(void *));
        tiles += (size_t)tiles_of(&spans[n], heads);
    }
    return bytes + stage_size(tiles * sizeof(AttnTile));
}

const AttnSpan *attn_put_spans(const OpsSpan *spans, int n_spans, OpsHeads heads)
{
    void *fill;
    const AttnSpan *staged =
        (const AttnSpan *)cuda_put_room((size_t)n_spans * sizeof(AttnSpan), &fill);
    AttnSpan *list = (AttnSpan *)fill;

    for (int n = 0; n < n_spans; n++) {
        const void *pages =
            cuda_put(spans[n].pages, pages_of(&spans[n], heads) * sizeof *spans[n].pages);

        list[n].row0 = spans[n].row0;
        list[n].rows = spans[n].rows;
        list[n].pos0 = spans[n].pos0;
        list[n].pages = (const void *const *)pages;
    }
    return staged;
}

const AttnTile *attn_put_tiles(const OpsSpan *spans, int n_spans, OpsHeads heads, int *n_tiles)
{
    void *fill;
    const void *staged;
    int count = 0;

    for (int n = 0; n < n_spans; n++)
        count += tiles_of(&spans[n], heads);
    staged = cuda_put_room((size_t)count * sizeof(AttnTile), &fill);
    for (int n = 0, at = 0; n < n_spans; n++)
        for (int i = 0; i < tiles_of(&spans[n], heads); i++, at++) {
            ((AttnTile *)fill)[at].span = n;
            ((AttnTile *)fill)[at].x0 = i * TILE_M;
        }
    *n_tiles = count;
    return (const AttnTile *)staged;
}
#endif

void ENTRY(attn_fwd)(void *o, void *lse, const void *q, const void *k, const void *v,
                     const OpsSpan *spans, int n_spans, size_t page_offset, OpsHeads heads)
{
    AttnShape s = attn_shape(heads, page_offset);
    const AttnSpan *staged;
    const AttnTile *tiles;
    int n_tiles, most = 0;

    for (int n = 0; n < n_spans; n++)
        most = spans[n].rows > most ? spans[n].rows : most;
    if (most == 0)
        return;
    cuda_begin(attn_stage_bytes(spans, n_spans, heads), 0);
    staged = attn_put_spans(spans, n_spans, heads);
    tiles = attn_put_tiles(spans, n_spans, heads, &n_tiles);
    cuda_send();
    LAUNCH(pages_kernel, dim3((unsigned)(most < 1024 ? most : 1024), (unsigned)n_spans), TILE_BLOCK,
           0, cuda_stream(), (const float *)k, (const float *)v, staged, s);
    cuda_allow_smem((const void *)attn_kernel, sizeof(AttnSmem));
    LAUNCH(attn_kernel,
           dim3((unsigned)n_tiles, (unsigned)heads.kv_heads,
                blocks_for((size_t)heads.dim, TILE_N, SIZE_MAX)),
           TILE_BLOCK, sizeof(AttnSmem), cuda_stream(), (float *)o, (float *)lse, (const float *)q,
           staged, tiles, s);
    cuda_end("attn_fwd");
}
