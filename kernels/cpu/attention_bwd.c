/*
 * Softmax attention over pages, backward: with p = exp(q k^T / sqrt(d) - lse), dp = dO v^T and
 * ds = p (dp - dO . o) / sqrt(d),
 *
 *     dq = ds k          dk = ds^T q          dv = p^T dO
 *
 * in two passes, one over rows for dq, one over pages for dk and dv. Both make p and ds anew: two
 * products more than one pass would need, and no element has two writers.
 *
 * Invariants
 *  1. A row's dq is a sum over ascending positions; a position's dk and dv over ascending heads of
 *     its group, then ascending rows.
 *  2. Threads split rows and key-value heads, then pages and key-value heads.
 */
#include "kernels/cpu/train.h"

#include "kernels/cpu/vec.h"

#define BLOCK_ROWS 32

typedef struct {
    OpsHeads s;
    const OpsSpan *span;
    const OpsSpanGrad *grad;
    size_t offset;
    const float *q, *o, *up, *lse; /* of the span's first row */
    float *dq;
} Call;

/* Rows t .. t + rows - 1 of head h of the span against the first `cols` columns of one page. */
typedef struct {
    int t, rows, h, cols;
    int64_t start;       /* position of the page's first column */
    const float *keys;   /* [d][C] */
    const float *values; /* turned over, [d][C] */
    float p[BLOCK_ROWS * OPS_CHUNK_MAX], ds[BLOCK_ROWS * OPS_CHUNK_MAX];
} Block;

static size_t row_of(const Call *call, const Block *b, int i)
{
    return ((size_t)(b->t + i) * (size_t)call->s.heads + (size_t)b->h) * (size_t)call->s.dim;
}

static float dot(const float *a, const float *b, int n)
{
    vf sum = {0};

    for (int i = 0; i < n; i += W)
        sum = vfma(vload_n(a + i, n - i), vload_n(b + i, n - i), sum);
    return vsum(sum);
}

/* p and ds of a block. */
static void block_probs(const Call *call, Block *b)
{
    int d = call->s.dim, chunk = call->s.chunk;
    size_t row = (size_t)call->s.heads * (size_t)d, at = row_of(call, b, 0);
    float scale = 1.0f / sqrtf((float)d);

    memset(b->p, 0, (size_t)(b->rows * chunk) * sizeof(float));
    memset(b->ds, 0, (size_t)(b->rows * chunk) * sizeof(float));
    CPU(product_even)
    (b->p, (size_t)chunk, call->q + at, row, 1, b->rows, b->keys, (size_t)chunk, d, b->cols);
    CPU(product_even)
    (b->ds, (size_t)chunk, call->up + at, row, 1, b->rows, b->values, (size_t)chunk, d, b->cols);
    for (int i = 0; i < b->rows; i++) {
        float *p = b->p + i * chunk, *ds = b->ds + i * chunk;
        float delta = dot(call->up + at + (size_t)i * row, call->o + at + (size_t)i * row, d);
        float lse = call->lse[(size_t)(b->t + i) * (size_t)call->s.heads + (size_t)b->h];
        int64_t seen = call->span->pos0 + b->t + i - b->start + 1;

        for (int c = 0; c < b->cols; c += W) {
            vf e = vexp(vload_n(p + c, b->cols - c) * scale - lse);
            vf g = vload_n(ds + c, b->cols - c);

            for (int64_t n = seen > c ? seen - c : 0; n < W; n++)
                e[n] = 0;
            vstore_n(p + c, e, b->cols - c);
            vstore_n(ds + c, e * (g - delta) * scale, b->cols - c);
        }
    }
}

/* The page's keys [C][d] and values [d][C]: what the products want the other way round. */
static void page_turn(const Call *call, int64_t p, int g, Block *b, float *keys, float *values)
{
    size_t d = (size_t)call->s.dim, chunk = (size_t)call->s.chunk, all = d * chunk;
    const float *page = cpu_behind(call->span->pages[p], call->offset);

    b->start = p * call->s.chunk;
    b->keys = page + (size_t)g * all;
    b->values = values;
    CPU(transpose)
    (values, chunk, page + ((size_t)call->s.kv_heads + (size_t)g) * all, d, call->s.chunk,
     call->s.dim);
    if (keys)
        CPU(transpose)(keys, d, b->keys, chunk, call->s.dim, call->s.chunk);
}

/* dq of rows t .. of all heads of group g. */
static void rows_bwd(const Call *call, int t, int rows, int g)
{
    float keys[OPS_CHUNK_MAX * OPS_DIM_MAX], values[OPS_CHUNK_MAX * OPS_DIM_MAX];
    int d = call->s.dim, chunk = call->s.chunk, group = call->s.heads / call->s.kv_heads;
    int64_t last = call->span->pos0 + t + rows - 1;
    size_t row = (size_t)call->s.heads * (size_t)d;
    Block b = {.t = t, .rows = rows};

    for (b.h = g * group; b.h < (g + 1) * group; b.h++)
        for (int i = 0; i < rows; i++)
            memset(call->dq + row_of(call, &b, i), 0, (size_t)d * sizeof(float));
    for (int64_t p = 0; p <= last / chunk; p++) {
        page_turn(call, p, g, &b, keys, values);
        b.cols = last - b.start < chunk ? (int)(last - b.start) + 1 : chunk;
        for (b.h = g * group; b.h < (g + 1) * group; b.h++) {
            block_probs(call, &b);
            CPU(product_even)
            (call->dq + row_of(call, &b, 0), row, b.ds, (size_t)chunk, 1, rows, keys, (size_t)d,
             b.cols, d);
        }
    }
}

/* dk and dv of one page and group, from all rows that see it. */
static void page_bwd(const Call *call, int64_t p, int g)
{
    float values[OPS_CHUNK_MAX * OPS_DIM_MAX];
    int d = call->s.dim, chunk = call->s.chunk, group = call->s.heads / call->s.kv_heads;
    size_t row = (size_t)call->s.heads * (size_t)d, all = (size_t)d * (size_t)chunk;
    int64_t end = call->span->pos0 + call->span->rows;
    float *dkeys = cpu_behind(call->grad->dpages[p], call->offset) + (size_t)g * all;
    float *dvalues = dkeys + (size_t)call->s.kv_heads * all;
    Block b;

    page_turn(call, p, g, &b, NULL, values);
    b.cols = end - b.start < chunk ? (int)(end - b.start) : chunk;
    for (b.h = g * group; b.h < (g + 1) * group; b.h++)
        for (b.t = b.start > call->span->pos0 ? (int)(b.start - call->span->pos0) : 0;
             b.t < call->span->rows; b.t += BLOCK_ROWS) {
            size_t at = row_of(call, &b, 0);
            int left = call->span->rows - b.t;

            b.rows = left < BLOCK_ROWS ? left : BLOCK_ROWS;
            block_probs(call, &b);
            CPU(product_even)
            (dvalues, (size_t)d, b.p, 1, (size_t)chunk, b.cols, call->up + at, row, b.rows, d);
            CPU(product_even)
            (dkeys, (size_t)chunk, call->q + at, 1, row, d, b.ds, (size_t)chunk, b.rows, b.cols);
        }
}

/* dk, dv of the span's own rows, out of the gradients of their pages. */
static void rows_give(const Call *call, float *dk, float *dv, int g)
{
    size_t d = (size_t)call->s.dim, chunk = (size_t)call->s.chunk;
    size_t row = (size_t)call->s.kv_heads * d;

    for (int t = 0; t < call->span->rows; t++) {
        int64_t p = call->span->pos0 + t;
        size_t c = (size_t)(p % call->s.chunk);
        const float *page = cpu_behind(call->grad->dpages[p / call->s.chunk], call->offset);
        const float *values = page + ((size_t)call->s.kv_heads * chunk + (size_t)g * chunk + c) * d;
        float *to = dk + ((size_t)(call->span->row0 + t) * row + (size_t)g * d);

        for (size_t i = 0; i < d; i++)
            to[i] = page[((size_t)g * d + i) * chunk + c];
        memcpy(dv + ((size_t)(call->span->row0 + t) * row + (size_t)g * d), values,
               d * sizeof(float));
    }
}

void CPU(attn_bwd)(void *dq, void *dk, void *dv, const void *do_, const void *o, const void *lse,
                   const void *q, const OpsSpan *spans, const OpsSpanGrad *grads, int n_spans,
                   size_t page_offset, OpsHeads s)
{
    for (int n = n_spans - 1; n >= 0; n--) {
        const OpsSpan *span = &spans[n];
        size_t row = (size_t)span->row0 * (size_t)s.heads, at = row * (size_t)s.dim;
        Call call = {.s = s,
                     .span = span,
                     .grad = &grads[n],
                     .offset = page_offset,
                     .q = (const float *)q + at,
                     .o = (const float *)o + at,
                     .up = (const float *)do_ + at,
                     .lse = (const float *)lse + row,
                     .dq = (float *)dq + at};
        int blocks = (span->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
        int pages = span->rows ? (int)((span->pos0 + span->rows - 1) / s.chunk) + 1 : 0;

#pragma omp parallel
        {
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < blocks * s.kv_heads; i++) {
                int t = i / s.kv_heads * BLOCK_ROWS, left = span->rows - t;

                rows_bwd(&call, t, left < BLOCK_ROWS ? left : BLOCK_ROWS, i % s.kv_heads);
            }
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < pages * s.kv_heads; i++)
                page_bwd(&call, i / s.kv_heads, i % s.kv_heads);
#pragma omp for schedule(static)
            for (int g = 0; g < s.kv_heads; g++)
                rows_give(&call, dk, dv, g);
        }
    }
}
