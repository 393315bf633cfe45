/*
 * Chunked lightning attention: whole chunks in register tiles, a decoded row as a chunk of one row.
 *
 * Invariants
 *  1. A row's sums run over ascending channels and ascending positions of its chunk. Columns after
 *     the row, which its neighbours in a tile want, weigh an exact 0; what lies there is finite.
 *  2. Threads split heads; no sum is split.
 *  3. A chunk's state is folded once, when its last row is written.
 *
 * Not here: the backward (lightning_bwd.c).
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

/* One head of one span. */
typedef struct {
    OpsHeads s;
    const OpsSpan *span;
    const float *lambda;        /* lambda[n] = decay^n, n = 0 .. C */
    float after[OPS_CHUNK_MAX]; /* after[j] = lambda[C - 1 - j] */
    float *open_k, *open_v;     /* [d][C], [C][d] */
    size_t row;                 /* floats from one row of qkv to the next */
} Head;

/* Keys and values of rows t .. t + rows - 1, which lie from column c of the chunk on. */
static void open_write(const Head *h, const float *qkv, int c, int rows)
{
    int d = h->s.dim;

    CPU(transpose)(h->open_k + c, (size_t)h->s.chunk, qkv + d, h->row, rows, d);
    for (int t = 0; t < rows; t++)
        memcpy(h->open_v + (size_t)(c + t) * d, qkv + (size_t)t * h->row + 2 * d,
               (size_t)d * sizeof(float));
}

/* Row i of the chunk: its scores of columns 0 .. cols - 1 become weights. */
static void decay_scores(float *score, int i, int cols, const Head *h)
{
    const float *after = h->after + h->s.chunk - 1 - i;

    for (int j = 0; j <= i; j++)
        score[j] *= after[j];
    for (int j = i + 1; j < cols; j++)
        score[j] = 0;
}

/* o_i = lambda^(i+1) q_i S + sum_j lambda^(i-j) (q_i . k_j) v_j for a tile of rows from `first`. */
static void tile_rows(float *const *out, const float *const *q, int first, int rows,
                      const float *state, const Head *h)
{
    float weights[TILE_ROWS][OPS_CHUNK_MAX];
    float *to[TILE_ROWS] = {0};
    const float *from[TILE_ROWS] = {0};
    int d = h->s.dim, chunk = h->s.chunk, seen = first + rows;
    int cols = (seen + W - 1) / W * W < chunk ? (seen + W - 1) / W * W : chunk;

    for (int i = 0; i < rows; i++) {
        memset(out[i], 0, (size_t)d * sizeof(float));
        memset(weights[i], 0, (size_t)cols * sizeof(float));
        to[i] = weights[i];
        from[i] = weights[i];
    }
    if (state) {
        CPU(product)(out, q, 1, rows, state, (size_t)d, d, d);
        for (int i = 0; i < rows; i++)
            for (int c = 0; c < d; c++)
                out[i][c] *= h->lambda[first + i + 1];
    }
    CPU(product)(to, q, 1, rows, h->open_k, (size_t)chunk, d, cols);
    for (int i = 0; i < rows; i++)
        decay_scores(weights[i], first + i, seen, h);
    CPU(product)(out, from, 1, rows, h->open_v, (size_t)d, seen, d);
}

/* to = lambda^C from + sum_j lambda^(C-1-j) k_j^T v_j, rows of the state a few at a time. */
static void fold(float *to, const float *from, const Head *h)
{
    int d = h->s.dim, chunk = h->s.chunk;
    float keys[TILE_ROWS][OPS_CHUNK_MAX];
    float *out[TILE_ROWS] = {0};
    const float *a[TILE_ROWS] = {0};

    for (int r = 0; r < d; r += TILE_ROWS) {
        int rows = d - r < TILE_ROWS ? d - r : TILE_ROWS;

        for (int i = 0; i < rows; i++) {
            out[i] = to + (size_t)(r + i) * d;
            a[i] = keys[i];
            for (int c = 0; c < d; c++)
                out[i][c] = from ? h->lambda[chunk] * from[(size_t)(r + i) * d + c] : 0;
            for (int j = 0; j < chunk; j++)
                keys[i][j] = h->after[j] * h->open_k[(size_t)(r + i) * chunk + j];
        }
        CPU(product)(out, a, 1, rows, h->open_v, (size_t)d, chunk, d);
    }
}

static void span_rows(float *o, const float *qkv, const float *state_in, float *state_out,
                      const Head *h)
{
    const OpsSpan *span = h->span;
    size_t stride = (size_t)h->s.heads * h->s.dim;
    const float *state = state_in;

    for (int t = 0; t < span->rows;) {
        int c = (int)((span->pos0 + t) % h->s.chunk), left = span->rows - t;
        int end = left < h->s.chunk - c ? t + left : t + h->s.chunk - c;

        open_write(h, qkv + (size_t)(span->row0 + t) * h->row, c, end - t);
        while (t < end) {
            int rows = end - t < TILE_ROWS ? end - t : TILE_ROWS;
            float *out[TILE_ROWS] = {0};
            const float *q[TILE_ROWS] = {0};

            for (int i = 0; i < rows; i++) {
                out[i] = o + (size_t)(span->row0 + t + i) * stride;
                q[i] = qkv + (size_t)(span->row0 + t + i) * h->row;
            }
            tile_rows(out, q, c, rows, state, h);
            t += rows;
            c += rows;
        }
        if (c == h->s.chunk) {
            fold(state_out, state, h);
            state = state_out;
        }
    }
}

void CPU(lightning_fwd)(void *o, const void *qkv, const OpsSpan *spans, int n_spans,
                        size_t state_offset, size_t open_offset, const void *decay, OpsHeads s)
{
    double work = 0;

    for (int n = 0; n < n_spans; n++)
        work += 2.0 * spans[n].rows * s.heads * s.dim * s.dim;
#pragma omp parallel for schedule(static, 1) if (work > CPU_PARALLEL_WORK)
    for (int head = 0; head < s.heads; head++) {
        size_t one = (size_t)head * s.dim * s.dim, keys = (size_t)s.heads * s.dim * s.chunk;
        size_t at = (size_t)head * s.chunk * s.dim;
        Head h = {.s = s,
                  .lambda = (const float *)decay + (size_t)head * (s.chunk + 1),
                  .row = 3 * (size_t)s.heads * s.dim};

        for (int j = 0; j < s.chunk; j++)
            h.after[j] = h.lambda[s.chunk - 1 - j];
        for (int n = 0; n < n_spans; n++) {
            h.span = &spans[n];
            h.open_k = cpu_behind(spans[n].open, open_offset) + at;
            h.open_v = h.open_k + keys;
            span_rows(
                (float *)o + (size_t)head * s.dim, (const float *)qkv + 3 * (size_t)head * s.dim,
                spans[n].state_in ? cpu_behind(spans[n].state_in, state_offset) + one : NULL,
                spans[n].state_out ? cpu_behind(spans[n].state_out, state_offset) + one : NULL, &h);
        }
    }
}
