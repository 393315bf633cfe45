/*
 * Lightning attention on a card: a block takes one head of one span, chunk after chunk.
 *
 * Invariants
 *  1. Keys and values of a chunk are read from `open`, where the call's own rows were put first: a
 *     row has the same sums whether its chunk came in one call or in many.
 *  2. A state is folded when the last row of its chunk is written, at no other time.
 *  3. A product's barriers (product.h) part what a chunk writes from what is read of it: its first
 *     comes before anything is read, its last after everything was.
 *  4. Spans that read what an earlier one writes run after it (waves); all others run together.
 *
 * Not here: gradients (lightning_bwd.cu).
 */
#include "kernels/cuda/lightning.h"

typedef struct {
    int row0, rows;
    int64_t pos0;
    const float *state_in; /* NULL: zero */
    float *state_out;
    float *open;
} LightSpan;

typedef struct {
    Tile<2, 2> tile;
    float scores[OPS_CHUNK_MAX][CHUNK_LD];
} LightSmem;

/* The open chunk: keys [H][d][C], then values [H][C][d]. */
static __device__ __forceinline__ float *open_keys(const LightSpan *span, const LightShape &s,
                                                   int head)
{
    return span->open + (size_t)head * s.dim * s.chunk;
}

static __device__ __forceinline__ float *open_values(const LightSpan *span, const LightShape &s,
                                                     int head)
{
    return span->open + (size_t)(s.heads + head) * s.dim * s.chunk;
}

static __device__ __forceinline__ void keep_rows(const LightSpan *span, const LightShape &s,
                                                 int head, const LightChunk &c, const float *qkv)
{
    float *keys = open_keys(span, s, head), *values = open_values(span, s, head);
    int n = (c.rows - c.first) * s.dim;

    for (int at = (int)threadIdx.x; at < n; at += TILE_BLOCK) {
        int j = at / s.dim, i = at % s.dim;

        keys[(size_t)i * s.chunk + c.first + j] = qkv[light_at(s, head, c.t0 + j, 1) + i];
        values[(size_t)(c.first + j) * s.dim + i] = qkv[light_at(s, head, c.t0 + j, 2) + i];
    }
}

/* scores [a][j] = lambda^(i-j) q_i . k_j for j <= i = first + a, else 0. */
static __device__ __forceinline__ void chunk_scores(LightSmem *sm, const LightSpan *span,
                                                    const LightShape &s, int head,
                                                    const LightChunk &c, const float *qkv,
                                                    const float *lambda)
{
    int m = c.rows - c.first;
    Acc acc;

    rows_at(sm->tile.a_at, m, qkv + light_at(s, head, c.t0, 0), light_qkv_row(s), sizeof(float));
    rows_at(sm->tile.b_at, c.rows, open_keys(span, s, head), 1, sizeof(float));
    acc_zero(acc);
    tile_product<2, 2>(acc, &sm->tile, side(1), m, side((size_t)s.chunk), c.rows, s.dim);
    FOR_ACC (i, j, e, m, c.rows) {
        int apart = c.first + acc_row(i, e) - acc_col(j, e);

        sm->scores[acc_row(i, e)][acc_col(j, e)] = apart >= 0 ? lambda[apart] * acc[i][j][e] : 0;
    }
}

/* o = lambda^(i+1) q S + scores V, for TILE_N channels from c0 on. */
static __device__ __forceinline__ void chunk_out(LightSmem *sm, const LightSpan *span,
                                                 const LightShape &s, int head, const LightChunk &c,
                                                 float *o, const float *qkv, const float *lambda,
                                                 const float *state, int c0)
{
    int m = c.rows - c.first, n = s.dim - c0 < TILE_N ? s.dim - c0 : TILE_N;
    Acc acc;

    acc_zero(acc);
    if (state) {
        rows_at(sm->tile.a_at, m, qkv + light_at(s, head, c.t0, 0), light_qkv_row(s),
                sizeof(float));
        rows_at(sm->tile.b_at, n, state + c0, 1, sizeof(float));
        tile_product<2, 2>(acc, &sm->tile, side(1), m, side((size_t)s.dim), n, s.dim);
        acc_scale(acc, lambda + c.first + 1, 1, m);
    }
    rows_at(sm->tile.a_at, m, sm->scores, CHUNK_LD, sizeof(float));
    rows_at(sm->tile.b_at, n, open_values(span, s, head) + c0, 1, sizeof(float));
    tile_product<2, 2>(acc, &sm->tile, side(1), m, side((size_t)s.dim), n, c.rows);
    FOR_ACC (i, j, e, m, n)
        o[(size_t)(c.t0 + acc_row(i, e)) * light_o_row(s) + (size_t)head * s.dim + c0 +
          acc_col(j, e)] = acc[i][j][e];
}

/* to = lambda^C from (or nothing) + sum_j lambda^(C-1-j) k_j^T v_j. */
static __device__ __forceinline__ void chunk_fold(LightSmem *sm, const LightSpan *span,
                                                  const LightShape &s, int head,
                                                  const float *lambda, float *to, const float *from)
{
    float keep = lambda[s.chunk];

    for (int r0 = 0; r0 < s.dim; r0 += TILE_M)
        for (int c0 = 0; c0 < s.dim; c0 += TILE_N) {
            int m = s.dim - r0 < TILE_M ? s.dim - r0 : TILE_M;
            int n = s.dim - c0 < TILE_N ? s.dim - c0 : TILE_N;
            Acc acc;

            acc_zero(acc);
            if (from)
                FOR_ACC (i, j, e, m, n)
                    acc[i][j][e] = from[(size_t)(r0 + acc_row(i, e)) * s.dim + c0 + acc_col(j, e)];
            FOR_ACC (i, j, e, m, n)
                acc[i][j][e] *= keep;
            rows_at(sm->tile.a_at, m, open_keys(span, s, head) + (size_t)r0 * s.chunk,
                    (size_t)s.chunk, sizeof(float));
            rows_at(sm->tile.b_at, n, open_values(span, s, head) + c0, 1, sizeof(float));
            tile_product<2, 2>(acc, &sm->tile, side_scaled(1, lambda + s.chunk - 1, -1), m,
                               side((size_t)s.dim), n, s.chunk);
            FOR_ACC (i, j, e, m, n)
                to[(size_t)(r0 + acc_row(i, e)) * s.dim + c0 + acc_col(j, e)] = acc[i][j][e];
        }
}

static __global__ void __launch_bounds__(TILE_BLOCK)
    lightning_kernel(float *o, const float *qkv, const LightSpan *spans, const int *wave,
                     const float *decay, LightShape s)
{
    DYN_SMEM(void, dynamic);
    LightSmem *sm = (LightSmem *)dynamic;
    const LightSpan *span = &spans[wave[blockIdx.y]];
    int head = (int)blockIdx.x, chunks = light_chunks(span->pos0, span->rows, s.chunk);
    size_t one = (size_t)head * s.dim * s.dim;
    const float *lambda = decay + (size_t)head * (s.chunk + 1);
    const float *state = span->state_in ? span->state_in + one : NULL;

    for (int n = 0; n < chunks; n++) {
        LightChunk c = light_chunk(span->pos0, span->row0, span->rows, n, s.chunk);

        keep_rows(span, s, head, c, qkv);
        chunk_scores(sm, span, s, head, c, qkv, lambda);
        for (int c0 = 0; c0 < s.dim; c0 += TILE_N)
            chunk_out(sm, span, s, head, c, o, qkv, lambda, state, c0);
        if (c.rows < s.chunk)
            continue;
        chunk_fold(sm, span, s, head, lambda, span->state_out + one, state);
        state = span->state_out + one;
    }
}

/* ---- host side ---- */

static const void *behind(const void *base, size_t offset)
{
    return base ? (const char *)base + offset : NULL;
}

/* Whether `later` must run after `span`. */
static int follows(const OpsSpan *later, const OpsSpan *span)
{
    return later->open == span->open || later->state_in == span->state_out ||
           (later->state_out && later->state_out == span->state_out) ||
           (later->state_out && later->state_out == span->state_in);
}

/* waves[n] = how many spans must run before span n, one after the other; returns their number. */
static int waves_of(int *waves, const OpsSpan *spans, int n_spans)
{
    int most = 0;

    for (int n = 0; n < n_spans; n++) {
        waves[n] = 0;
        for (int m = 0; m < n; m++)
            if (waves[m] >= waves[n] && follows(&spans[n], &spans[m]))
                waves[n] = waves[m] + 1;
        most = waves[n] + 1 > most ? waves[n] + 1 : most;
    }
    return most;
}

static const LightSpan *put_spans(const OpsSpan *spans, int n_spans, size_t state_offset,
                                  size_t open_offset)
{
    void *fill;
    const void *staged = cuda_put_room((size_t)n_spans * sizeof(LightSpan), &fill);
    LightSpan *list = (LightSpan *)fill;

    for (int n = 0; n < n_spans; n++) {
        list[n].row0 = spans[n].row0;
        list[n].rows = spans[n].rows;
        list[n].pos0 = spans[n].pos0;
        list[n].state_in = (const float *)behind(spans[n].state_in, state_offset);
        list[n].state_out = (float *)behind(spans[n].state_out, state_offset);
        list[n].open = (float *)behind(spans[n].open, open_offset);
    }
    return (const LightSpan *)staged;
}

void ENTRY(lightning_fwd)(void *o, const void *qkv, const OpsSpan *spans, int n_spans,
                          size_t state_offset, size_t open_offset, const void *decay,
                          OpsHeads heads)
{
    LightShape s = {heads.heads, heads.dim, heads.chunk};
    const LightSpan *staged;
    const int *order;
    void *fill, *room;
    int waves, *wave_of, from = 0;

    if (n_spans == 0)
        return;
    cuda_op_begin();
    staged = put_spans(spans, n_spans, state_offset, open_offset);
    order = (const int *)cuda_put_room((size_t)n_spans * sizeof(int), &fill);
    cuda_put_room((size_t)n_spans * sizeof(int), &room);
    wave_of = (int *)room;
    waves = waves_of(wave_of, spans, n_spans);
    for (int w = 0, at = 0; w < waves; w++)
        for (int n = 0; n < n_spans; n++)
            if (wave_of[n] == w)
                ((int *)fill)[at++] = n;
    cuda_allow_smem((const void *)lightning_kernel, sizeof(LightSmem));
    for (int w = 0; w < waves; w++) {
        int count = 0;

        for (int n = 0; n < n_spans; n++)
            count += wave_of[n] == w;
        LAUNCH(lightning_kernel, dim3((unsigned)s.heads, (unsigned)count), TILE_BLOCK,
               sizeof(LightSmem), (float *)o, (const float *)qkv, staged, order + from,
               (const float *)decay, s);
        from += count;
    }
    cuda_op_end("lightning_fwd");
}
