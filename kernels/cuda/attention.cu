/*
 * Softmax attention over pages on a card: prefill and decode are one kernel.
 *
 * Positions are cut into pieces of PIECE_STEPS steps, counted from 0. A block takes TILE_M rows of
 * one key-value head's group (attention.h) and one piece, and goes through its steps, keeping for
 * each row the largest score m, the sum l and o:
 *   m' = max(m, m_s), f = exp(m - m'), g = exp(m_s - m'), l' = f l + g l_s, o' = f o + g o_s
 * where a step has m_s = m' (its exponentials are taken from there), l_s = sum_j exp(s_j - m') and
 * o_s = P V. A row's pieces are then put together by the same formula, ascending. Where rows are
 * few, many pieces run side by side; where they fill the card, one after the other.
 *
 * Invariants
 *  1. Steps and pieces are counted from position 0. A step beyond a row's position leaves the row's
 *     m, l and o as they are, a piece beyond it is not added: bits depend neither on the tile, nor
 *     on the call, nor on how many pieces run at once.
 *  2. Keys and values beyond the tile's last row are not read: they may not have been written.
 *
 * Not here: gradients (attention_bwd.cu).
 */
#include "kernels/cuda/attention.h"

#define PIECE_STEPS 4
/* Blocks of a launch where there is a choice: two for each multiprocessor of a large card. */
#define BLOCKS 264

/* The pieces of one launch, and where they go: room [tile][G][pieces][TILE_M][d + 2], o then m and
 * l. A row's m and l of the pieces so far: totals [T, H, 2]; o of them lies in o. `room` is NULL
 * where one piece is all there is: it gives o and lse. */
typedef struct {
    float *room, *totals, *next;  /* next: where the launch leaves totals */
    int first, pieces, positions; /* positions of a piece */
} Pieces;

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

/* Where row r of a tile's piece lies. */
static __device__ __forceinline__ float *piece_row(const Pieces &w, const AttnShape &s, int tile,
                                                   int g, int piece, int r)
{
    size_t at = ((size_t)tile * s.kv_heads + g) * w.pieces + (piece - w.first);

    return w.room + (at * TILE_M + r) * (s.dim + 2);
}

/* Positions p0 .. end - 1 for m rows from at.x0 on: sums in top and sum, o in `out`. */
static __device__ __forceinline__ void attn_steps(Acc out, AttnSmem *sm, float *top, float *sum,
                                                  float *factor, const float *q,
                                                  const AttnSpan *span, const AttnShape &s, int x0,
                                                  int m, int c0, int n, int64_t p0, int64_t end)
{
    int g = (int)blockIdx.y;

    for (; p0 < end; p0 += s.step) {
        int count = end - p0 < s.step ? (int)(end - p0) : s.step;
        Acc scores;

        for (int r = (int)threadIdx.x; r < m; r += TILE_BLOCK)
            sm->tile.a_at[r] = (const char *)(q + attn_row(span, s, g, x0 + r));
        for (int j = (int)threadIdx.x; j < count; j += TILE_BLOCK)
            sm->tile.b_at[j] = (const char *)attn_key(span, s, g, p0 + j);
        acc_zero(scores);
        tile_product<2, 2>(scores, &sm->tile, side(1), m, side((size_t)s.chunk), count, s.dim);
        FOR_ACC (i, j, e, m, count)
            sm->scores[acc_row(i, e)][acc_col(j, e)] = scores[i][j][e];
        __syncthreads();
        softmax_step(sm, top, sum, factor, m, count, p0, span->pos0, x0, s);
        rows_at(sm->tile.a_at, m, sm->scores, SCORE_LD, sizeof(float));
        for (int j = (int)threadIdx.x; j < count; j += TILE_BLOCK)
            sm->tile.b_at[j] = (const char *)(attn_value(span, s, g, p0 + j) + c0);
        __syncthreads();
        acc_scale(out, factor, 1, m);
        tile_product<2, 2>(out, &sm->tile, side(1), m, side_by_inner(1), n, count);
    }
}

static __global__ void __launch_bounds__(TILE_BLOCK)
    attn_kernel(float *o, float *lse, const float *q, const AttnSpan *spans, const AttnTile *tiles,
                AttnShape s, Pieces w)
{
    DYN_SMEM(void, dynamic);
    __shared__ float top[TILE_M], sum[TILE_M], factor[TILE_M];
    AttnTile at = tiles[blockIdx.x];
    const AttnSpan *span = &spans[at.span];
    int g = (int)blockIdx.y, piece = w.first + (int)blockIdx.z % w.pieces;
    int c0 = (int)blockIdx.z / w.pieces * TILE_N, left = span->rows * s.group - at.x0;
    int m = left < TILE_M ? left : TILE_M, n = s.dim - c0 < TILE_N ? s.dim - c0 : TILE_N;
    int64_t p0 = (int64_t)piece * w.positions, end = span->pos0 + (at.x0 + m - 1) / s.group + 1;
    Acc out;

    if (p0 >= end)
        return;
    acc_zero(out);
    for (int r = (int)threadIdx.x; r < m; r += TILE_BLOCK) {
        top[r] = -INFINITY;
        sum[r] = 0;
    }
    attn_steps(out, (AttnSmem *)dynamic, top, sum, factor, q, span, s, at.x0, m, c0, n, p0,
               end - p0 < w.positions ? end : p0 + w.positions);
    FOR_ACC (i, j, e, m, n) {
        int r = acc_row(i, e), c = c0 + acc_col(j, e);

        if (w.room)
            piece_row(w, s, (int)blockIdx.x, g, piece, r)[c] = out[i][j][e];
        else
            o[attn_row(span, s, g, at.x0 + r) + c] = out[i][j][e] / sum[r];
    }
    for (int r = (int)threadIdx.x; c0 == 0 && r < m; r += TILE_BLOCK) {
        if (w.room) {
            float *sums = piece_row(w, s, (int)blockIdx.x, g, piece, r) + s.dim;

            sums[0] = top[r];
            sums[1] = sum[r];
        } else if (lse) {
            lse[attn_row(span, s, g, at.x0 + r) / (size_t)s.dim] = top[r] + logf(sum[r]);
        }
    }
}

/* Adds the launch's pieces to one row of a tile, blockIdx.z: a thread has every TILE_BLOCK-th
 * channel, the first one the row's m and l as well. */
static __global__ void pieces_kernel(float *o, float *lse, const AttnSpan *spans,
                                     const AttnTile *tiles, AttnShape s, Pieces w)
{
    AttnTile at = tiles[blockIdx.x];
    const AttnSpan *span = &spans[at.span];
    int g = (int)blockIdx.y, r = (int)blockIdx.z, x = at.x0 + r;
    int last = (int)((span->pos0 + x / s.group) / w.positions), end = w.first + w.pieces;
    size_t row = attn_row(span, s, g, x);
    float *totals = w.totals + 2 * (row / (size_t)s.dim);

    if (x >= span->rows * s.group || last < w.first)
        return;
    end = last < end ? last + 1 : end;
    for (int i = (int)threadIdx.x; i < s.dim; i += TILE_BLOCK) {
        float top = w.first > 0 ? totals[0] : -INFINITY, sum = w.first > 0 ? totals[1] : 0;
        float all = w.first > 0 ? o[row + i] : 0;

        for (int p = w.first; p < end; p++) {
            const float *part = piece_row(w, s, (int)blockIdx.x, g, p, r);
            float best = fmaxf(top, part[s.dim]), f = expf(top - best);
            float by = expf(part[s.dim] - best);

            sum = fmaf(f, sum, by * part[s.dim + 1]);
            all = fmaf(f, all, by * part[i]);
            top = best;
        }
        o[row + i] = end > last ? all / sum : all;
        if (i > 0)
            continue;
        w.next[2 * (row / (size_t)s.dim)] = top;
        w.next[2 * (row / (size_t)s.dim) + 1] = sum;
        if (lse && end > last)
            lse[row / (size_t)s.dim] = top + logf(sum);
    }
}

/* ---- host side ---- */

static int tiles_of(const OpsSpan *span, OpsHeads h)
{
    return (span->rows * (h.heads / h.kv_heads) + TILE_M - 1) / TILE_M;
}

/* How large a call is: its rows, the most of a span, tiles, positions of the longest context. */
typedef struct {
    int rows, most, tiles;
    int64_t positions;
} AttnCall;

static AttnCall attn_call(const OpsSpan *spans, int n_spans, OpsHeads heads)
{
    AttnCall call = {0, 0, 0, 0};

    for (int n = 0; n < n_spans; n++) {
        int64_t end = spans[n].pos0 + spans[n].rows;
        int last = spans[n].row0 + spans[n].rows;

        call.rows = last > call.rows ? last : call.rows;
        call.most = spans[n].rows > call.most ? spans[n].rows : call.most;
        call.tiles += tiles_of(&spans[n], heads);
        call.positions = end > call.positions ? end : call.positions;
    }
    return call;
}

#ifndef PRODUCT_SM90 /* one is enough for both builds */
static size_t pages_of(const OpsSpan *span, OpsHeads h)
{
    return (size_t)((span->pos0 + span->rows + h.chunk - 1) / h.chunk);
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

/* What all launches of a call share. */
typedef struct {
    float *o, *lse;
    const float *q;
    const AttnSpan *spans;
    const AttnTile *tiles;
    int n_tiles, slices, rows; /* rows: the most of a tile */
    AttnShape s;
} Attn;

/* The pieces from w->first on, and their sums onto what stands. */
static void launch_pieces(const Attn &a, const Pieces &w)
{
    dim3 blocks((unsigned)a.n_tiles, (unsigned)a.s.kv_heads, (unsigned)(a.slices * w.pieces));

    LAUNCH(attn_kernel, blocks, TILE_BLOCK, sizeof(AttnSmem), a.o, a.lse, a.q, a.spans, a.tiles,
           a.s, w);
    if (!w.room)
        return;
    blocks.z = (unsigned)a.rows;
    LAUNCH(pieces_kernel, blocks, TILE_BLOCK, 0, a.o, a.lse, a.spans, a.tiles, a.s, w);
}

/* Pieces that run side by side, of `all`. */
static int pieces_at_once(const Attn &a, int all)
{
    int blocks = a.n_tiles * a.s.kv_heads * a.slices, fit = (BLOCKS + blocks - 1) / blocks;

    return fit < all ? fit : all;
}

static size_t room_bytes(const Attn &a, int pieces)
{
    size_t rows = (size_t)a.n_tiles * (size_t)a.s.kv_heads * (size_t)pieces * TILE_M;

    return rows * (size_t)(a.s.dim + 2) * sizeof(float);
}

void ENTRY(attn_fwd)(void *o, void *lse, const void *q, const void *k, const void *v,
                     const OpsSpan *spans, int n_spans, size_t page_offset, OpsHeads heads)
{
    Attn a = {(float *)o,
              (float *)lse,
              (const float *)q,
              NULL,
              NULL,
              0,
              0,
              0,
              attn_shape(heads, page_offset)};
    Pieces w = {NULL, NULL, NULL, 0, 1, PIECE_STEPS * a.s.step};
    AttnCall call = attn_call(spans, n_spans, heads);
    int pieces = (int)((call.positions + w.positions - 1) / w.positions);
    size_t totals = 2 * (size_t)call.rows * (size_t)heads.heads * sizeof(float);

    if (call.most == 0)
        return;
    a.n_tiles = call.tiles;
    a.slices = (int)blocks_for((size_t)heads.dim, TILE_N, SIZE_MAX);
    a.rows = call.most * a.s.group < TILE_M ? call.most * a.s.group : TILE_M;
    w.pieces = pieces_at_once(a, pieces);
    cuda_op_begin();
    a.spans = attn_put_spans(spans, n_spans, heads);
    a.tiles = attn_put_tiles(spans, n_spans, heads, &a.n_tiles);
    if (pieces > 1) {
        w.room = (float *)cuda_room(room_bytes(a, w.pieces));
        w.totals = (float *)cuda_room(totals);
        w.next = (float *)cuda_room(totals);
    }
    LAUNCH(pages_kernel, dim3((unsigned)(call.most < 1024 ? call.most : 1024), (unsigned)n_spans),
           TILE_BLOCK, 0, (const float *)k, (const float *)v, a.spans, a.s);
    cuda_allow_smem((const void *)attn_kernel, sizeof(AttnSmem));
    for (; w.first < pieces; w.first += w.pieces) {
        float *spent = w.totals;

        launch_pieces(a, w);
        w.totals = w.next;
        w.next = spent;
    }
    cuda_op_end("attn_fwd");
}
