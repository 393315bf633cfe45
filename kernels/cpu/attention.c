/*
 * Softmax attention over pages and chunked lightning attention.
 *
 * Both work in blocks of ROWS_BLOCK rows whose positions share a multiple of ROWS_BLOCK, so that a
 * row meets the same columns, in the same order, whether its neighbours are in the call or not:
 * columns up to the end of its block of positions, those after it weighted with an exact 0. Pages
 * and open chunks begin as zeros, so what lies there is always finite.
 *
 * Invariants
 *  1. A row's sums run over ascending positions, page by page: prefill and decode agree in bits.
 *  2. Threads split rows and heads (softmax) or heads (lightning); no sum is split.
 *  3. A chunk's state is folded once, when its last row is written.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#define ROWS_BLOCK 4
#define CHUNK_VECS (OPS_CHUNK_MAX / W)
#define DIM_VECS   (OPS_DIM_MAX / W)

static float *behind(const void *base, size_t offset)
{
    return (float *)(uintptr_t)((const char *)base + offset);
}

/*
 * out[i][0 .. cols) (+)= a[i][0 .. kn) * b[k * ldb + col]; rows a few, cols any. Columns beyond
 * `cols` in the last vector are read only where the row of b has them (`pad`), else part-wise.
 */
INLINE void product_cols(int mr, float *const *out, const float *const *a, const float *b,
                         size_t ldb, int kn, int nv)
{
    vf acc[TILE_ROWS][TILE_COLS];
    const void *cols[TILE_COLS];

    for (int j = 0; j < nv; j++)
        cols[j] = b + j * W;
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++)
            acc[i][j] = vload(out[i] + j * W);
    tile(mr, nv, kn, a, cols, ldb, 0, acc);
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++)
            vstore(out[i] + j * W, acc[i][j]);
}

/* The columns of the last, unfilled vector: in plain numbers, each its own chain. */
static void product_rest(int mr, float *const *out, const float *const *a, const float *b,
                         size_t ldb, int kn, int col, int cols)
{
    for (int i = 0; i < mr; i++)
        for (int k = 0; k < kn; k++) {
            vf x = vset(a[i][k]), y = vload_part(b + (size_t)k * ldb + col, cols - col);

            vstore_part(out[i] + col, vfma(x, y, vload_part(out[i] + col, cols - col)), cols - col);
        }
}

static void product(int mr, float *const *out, const float *const *a, const float *b, size_t ldb,
                    int kn, int cols)
{
    int col = 0;

    for (; col + 2 * W <= cols && mr == ROWS_BLOCK; col += 2 * W) {
        float *to[ROWS_BLOCK];

        for (int i = 0; i < ROWS_BLOCK; i++)
            to[i] = out[i] + col;
        product_cols(ROWS_BLOCK, to, a, b + col, ldb, kn, 2);
    }
    for (int i = 0; i < mr; i++) {
        int at = col;

        for (; at + 4 * W <= cols; at += 4 * W)
            product_cols(1, &(float *){out[i] + at}, a + i, b + at, ldb, kn, 4);
        for (; at + W <= cols; at += W)
            product_cols(1, &(float *){out[i] + at}, a + i, b + at, ldb, kn, 1);
        if (at < cols)
            product_rest(1, out + i, a + i, b, ldb, kn, at, cols);
    }
}

/* Rows at positions pos .. pos + rows - 1 of one block; the columns that they all meet. */
static int block_rows(int64_t pos, int left)
{
    int to_end = ROWS_BLOCK - (int)(pos % ROWS_BLOCK);

    return left < to_end ? left : to_end;
}

static int block_columns(int64_t pos, int chunk)
{
    int end = (int)(pos % chunk) / ROWS_BLOCK * ROWS_BLOCK + ROWS_BLOCK;

    return end < chunk ? end : chunk;
}

/* ---- softmax attention ---- */

typedef struct {
    float top, sum;
    float out[OPS_DIM_MAX];
} Running;

static void kv_write(const OpsSpan *span, const float *k, const float *v, size_t offset, OpsHeads s)
{
    size_t keys = (size_t)s.kv_heads * s.dim * s.chunk;

    for (int t = 0; t < span->rows; t++) {
        int64_t p = span->pos0 + t;
        float *page = behind(span->pages[p / s.chunk], offset);
        size_t c = (size_t)(p % s.chunk), from = (size_t)(span->row0 + t) * s.kv_heads * s.dim;

        for (int g = 0; g < s.kv_heads; g++)
            for (int i = 0; i < s.dim; i++) {
                page[((size_t)g * s.dim + i) * s.chunk + c] = k[from + (size_t)g * s.dim + i];
                page[keys + ((size_t)g * s.chunk + c) * s.dim + i] =
                    v[from + (size_t)g * s.dim + i];
            }
    }
}

/* The running softmax of one row takes in the scores of one page; s becomes the probabilities. */
static void softmax_page(Running *run, float *s, int cols, int seen, int dim, float scale)
{
    float top = run->top, shrink;
    vf sum = {0};

    for (int c = 0; c < seen; c++) {
        s[c] *= scale;
        top = s[c] > top ? s[c] : top;
    }
    for (int c = seen; c < cols; c++)
        s[c] = -INFINITY;
    for (int c = 0; c < cols; c += W) {
        vf e = vexp(vload_n(s + c, cols - c) - top);

        for (int i = cols - c; i < W; i++)
            e[i] = 0;
        vstore_n(s + c, e, cols - c);
        sum += e;
    }
    shrink = vexp(vset(run->top - top))[0];
    if (top > run->top) {
        for (int i = 0; i < dim; i += W)
            vstore_n(run->out + i, vload_n(run->out + i, dim - i) * shrink, dim - i);
        run->sum *= shrink;
    }
    run->sum += vsum(sum);
    run->top = top;
}

/* Up to ROWS_BLOCK rows of one head. q, o: row strides of H * d. */
static void attn_block(float *o, float *lse, const float *q, int rows, int64_t pos,
                       const OpsSpan *span, size_t offset, int g, OpsHeads s)
{
    size_t stride = (size_t)s.heads * s.dim, keys = (size_t)s.kv_heads * s.dim * s.chunk;
    float scores[ROWS_BLOCK][OPS_CHUNK_MAX], scale = 1.0f / sqrtf((float)s.dim);
    Running run[ROWS_BLOCK];
    const float *in[ROWS_BLOCK] = {0}, *prob[ROWS_BLOCK] = {0};
    float *score[ROWS_BLOCK] = {0}, *out[ROWS_BLOCK] = {0};
    int64_t last = pos / s.chunk;

    for (int i = 0; i < rows; i++) {
        run[i].top = -INFINITY;
        run[i].sum = 0;
        memset(run[i].out, 0, (size_t)s.dim * sizeof(float));
        in[i] = q + i * stride;
        score[i] = scores[i];
        prob[i] = scores[i];
        out[i] = run[i].out;
    }
    for (int64_t n = 0; n <= last; n++) {
        const float *page = behind(span->pages[n], offset);
        int cols = n < last ? s.chunk : block_columns(pos, s.chunk);

        memset(scores, 0, sizeof scores);
        product(rows, score, in, page + (size_t)g * s.dim * s.chunk, (size_t)s.chunk, s.dim, cols);
        for (int i = 0; i < rows; i++)
            softmax_page(&run[i], scores[i], cols,
                         n < last ? s.chunk : (int)((pos + i) % s.chunk) + 1, s.dim, scale);
        product(rows, out, prob, page + keys + (size_t)g * s.chunk * s.dim, (size_t)s.dim, cols,
                s.dim);
    }
    for (int i = 0; i < rows; i++) {
        for (int c = 0; c < s.dim; c++)
            o[i * stride + c] = run[i].out[c] / run[i].sum;
        if (lse)
            lse[(size_t)i * s.heads] = run[i].top + logf(run[i].sum);
    }
}

/* Blocks of rows of a span, on the grid of positions. */
static int span_blocks(const OpsSpan *span)
{
    int64_t first = span->pos0 / ROWS_BLOCK;

    return span->rows ? (int)((span->pos0 + span->rows - 1) / ROWS_BLOCK - first) + 1 : 0;
}

static void attn_span(float *o, float *lse, const float *q, const OpsSpan *span, size_t offset,
                      OpsHeads s)
{
    int blocks = span_blocks(span), group = s.heads / s.kv_heads;
    double work = (double)span->rows * s.heads * s.dim * (double)(span->pos0 + span->rows);

#pragma omp parallel for schedule(static, 1) if (work > CPU_PARALLEL_WORK)
    for (int task = 0; task < blocks * s.heads; task++) {
        int h = task % s.heads, b = task / s.heads;
        int64_t pos = (span->pos0 / ROWS_BLOCK + b) * ROWS_BLOCK;
        int64_t start = pos > span->pos0 ? pos : span->pos0;
        int t = (int)(start - span->pos0);
        size_t row = (size_t)(span->row0 + t) * s.heads + h;

        attn_block(o + row * s.dim, lse ? lse + row : NULL, q + row * s.dim,
                   block_rows(start, span->rows - t), start, span, offset, h / group, s);
    }
}

void CPU(attn_fwd)(void *o, void *lse, const void *q, const void *k, const void *v,
                   const OpsSpan *spans, int n_spans, size_t page_offset, OpsHeads s)
{
    for (int n = 0; n < n_spans; n++) {
        kv_write(&spans[n], k, v, page_offset, s);
        attn_span(o, lse, q, &spans[n], page_offset, s);
    }
}

/* ---- lightning attention ---- */

/* One head of one span. */
typedef struct {
    OpsHeads s;
    const OpsSpan *span;
    const float *lambda;
    float *open_k, *open_v; /* [d][C], [C][d] */
    size_t row;             /* floats from one row of qkv to the next */
} Head;

static void open_write(const Head *h, const float *qkv, int64_t pos)
{
    int c = (int)(pos % h->s.chunk);

    for (int i = 0; i < h->s.dim; i++) {
        h->open_k[(size_t)i * h->s.chunk + c] = qkv[h->s.dim + i];
        h->open_v[(size_t)c * h->s.dim + i] = qkv[2 * h->s.dim + i];
    }
}

/* o[i] = lambda^(i+1) q_i S + sum_j lambda^(i-j) (q_i . k_j) v_j for the rows of one block. */
static void light_block(float *const *out, const float *const *q, int rows, int64_t pos,
                        const float *state, const Head *h)
{
    float weights[ROWS_BLOCK][OPS_CHUNK_MAX] = {0};
    float *to[ROWS_BLOCK] = {0};
    const float *from[ROWS_BLOCK] = {0};
    int d = h->s.dim, cols = block_columns(pos, h->s.chunk), first = (int)(pos % h->s.chunk);

    for (int i = 0; i < rows; i++) {
        memset(out[i], 0, (size_t)d * sizeof(float));
        to[i] = weights[i];
        from[i] = weights[i];
    }
    if (state) {
        product(rows, out, q, state, (size_t)d, d, d);
        for (int i = 0; i < rows; i++)
            for (int c = 0; c < d; c++)
                out[i][c] *= h->lambda[first + i + 1];
    }
    product(rows, to, q, h->open_k, (size_t)h->s.chunk, d, cols);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            weights[i][j] = j <= first + i ? weights[i][j] * h->lambda[first + i - j] : 0;
    product(rows, out, from, h->open_v, (size_t)d, cols, d);
}

/* to = lambda^C from + sum_j lambda^(C-1-j) k_j^T v_j, rows of the state a few at a time. */
static void light_fold(float *to, const float *from, const Head *h)
{
    int d = h->s.dim, chunk = h->s.chunk;
    float keys[ROWS_BLOCK][OPS_CHUNK_MAX];
    float *out[ROWS_BLOCK] = {0};
    const float *a[ROWS_BLOCK] = {0};

    for (int r = 0; r < d; r += ROWS_BLOCK) {
        int rows = d - r < ROWS_BLOCK ? d - r : ROWS_BLOCK;

        for (int i = 0; i < rows; i++) {
            out[i] = to + (size_t)(r + i) * d;
            a[i] = keys[i];
            for (int c = 0; c < d; c++)
                out[i][c] = from ? h->lambda[chunk] * from[(size_t)(r + i) * d + c] : 0;
            for (int j = 0; j < chunk; j++)
                keys[i][j] = h->lambda[chunk - 1 - j] * h->open_k[(size_t)(r + i) * chunk + j];
        }
        product(rows, out, a, h->open_v, (size_t)d, chunk, d);
    }
}

static void light_span(float *o, const float *qkv, const float *state_in, float *state_out,
                       const Head *h)
{
    const OpsSpan *span = h->span;
    size_t stride = (size_t)h->s.heads * h->s.dim;
    const float *state = state_in;

    for (int t = 0; t < span->rows;) {
        int64_t pos = span->pos0 + t;
        int rows = block_rows(pos, span->rows - t);
        float *out[ROWS_BLOCK] = {0};
        const float *q[ROWS_BLOCK] = {0};

        for (int i = 0; i < rows; i++) {
            out[i] = o + (size_t)(span->row0 + t + i) * stride;
            q[i] = qkv + (size_t)(span->row0 + t + i) * h->row;
            open_write(h, q[i], pos + i);
        }
        light_block(out, q, rows, pos, state, h);
        t += rows;
        if ((pos + rows) % h->s.chunk == 0) {
            light_fold(state_out, state, h);
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
    for (int head = 0; head < s.heads; head++)
        for (int n = 0; n < n_spans; n++) {
            size_t one = (size_t)head * s.dim * s.dim, keys = (size_t)s.heads * s.dim * s.chunk;
            float *open = behind(spans[n].open, open_offset);
            size_t at = (size_t)head * s.chunk * s.dim;
            Head h = {.s = s,
                      .span = &spans[n],
                      .lambda = (const float *)decay + (size_t)head * (s.chunk + 1),
                      .open_k = open + at,
                      .open_v = open + keys + at,
                      .row = 3 * (size_t)s.heads * s.dim};

            light_span(
                (float *)o + (size_t)head * s.dim, (const float *)qkv + 3 * (size_t)head * s.dim,
                spans[n].state_in ? behind(spans[n].state_in, state_offset) + one : NULL,
                spans[n].state_out ? behind(spans[n].state_out, state_offset) + one : NULL, &h);
        }
}
