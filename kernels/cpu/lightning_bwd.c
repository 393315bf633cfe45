/*
 * The backward of chunked lightning attention (equations: ops.h, lightning_bwd), chunk by chunk
 * from the last to the first, each a handful of small dense products.
 *
 * Invariants
 *  1. Every sum is one chain over ascending channels or rows of its chunk.
 *  2. Threads split heads. A head's states, and its gradient of the state, lie in its own scratch.
 */
#include "kernels/cpu/train.h"

#include "kernels/cpu/vec.h"

/* One head of one span. qkv, dqkv, up begin at the head's numbers of the span's first row. */
typedef struct {
    OpsHeads s;
    const OpsSpan *span;
    const float *lambda, *qkv, *up, *open_k, *open_v;
    float *dqkv, *dopen_k, *dopen_v; /* dopen: may be NULL */
    float *states, *g, *turned;      /* [chunks][d][d]; gradient of the state; room for one */
    size_t row, up_row;              /* floats from one row of qkv, of up, to the next */
} Head;

/* One chunk of one head, as dense arrays [C][d] or, turned over, [d][C]. */
typedef struct {
    int first, rows; /* rows of the span: first .. rows - 1; those before came before the span */
    int t;           /* row of the span that is row `first` */
    float k[OPS_CHUNK_MAX * OPS_DIM_MAX], v[OPS_CHUNK_MAX * OPS_DIM_MAX];
    float turned[OPS_CHUNK_MAX * OPS_DIM_MAX];
    float dk[OPS_CHUNK_MAX * OPS_DIM_MAX], dv[OPS_CHUNK_MAX * OPS_DIM_MAX];
    float p[OPS_CHUNK_MAX * OPS_CHUNK_MAX], dp[OPS_CHUNK_MAX * OPS_CHUNK_MAX];
} Chunk;

static void scale_row(float *x, float by, int n)
{
    for (int i = 0; i < n; i += W)
        vstore_n(x + i, vload_n(x + i, n - i) * by, n - i);
}

static void copy_rows(float *to, size_t to_row, const float *from, size_t from_row, int rows, int n)
{
    for (int i = 0; i < rows; i++)
        memcpy(to + (size_t)i * to_row, from + (size_t)i * from_row, (size_t)n * sizeof(float));
}

static void zero_rows(float *to, size_t row, int rows, int n)
{
    for (int i = 0; i < rows; i++)
        memset(to + (size_t)i * row, 0, (size_t)n * sizeof(float));
}

/* Where the rows of chunk n of the span lie, and their keys and values. */
static void chunk_load(Chunk *c, const Head *h, int n)
{
    int d = h->s.dim, chunk = h->s.chunk, inside = (int)(h->span->pos0 % chunk);
    const float *from;
    int left;

    c->first = n == 0 ? inside : 0;
    c->t = n == 0 ? 0 : n * chunk - inside;
    left = h->span->rows - c->t + c->first;
    c->rows = left < chunk ? left : chunk;
    from = h->qkv + (size_t)c->t * h->row;
    CPU(transpose)(c->k, (size_t)d, h->open_k, (size_t)chunk, d, c->first);
    copy_rows(c->v, (size_t)d, h->open_v, (size_t)d, c->first, d);
    copy_rows(c->k + c->first * d, (size_t)d, from + d, h->row, c->rows - c->first, d);
    copy_rows(c->v + c->first * d, (size_t)d, from + 2 * d, h->row, c->rows - c->first, d);
}

/* The states before every chunk of the span. */
static void states_make(Chunk *c, const Head *h, int chunks, const float *state_in)
{
    int d = h->s.dim, chunk = h->s.chunk;
    size_t one = (size_t)d * d;

    memset(h->states, 0, one * sizeof(float));
    if (state_in)
        memcpy(h->states, state_in, one * sizeof(float));
    for (int n = 0; n + 1 < chunks; n++) {
        float *next = h->states + (size_t)(n + 1) * one;

        chunk_load(c, h, n);
        memcpy(next, next - one, one * sizeof(float));
        scale_row(next, h->lambda[chunk], (int)one);
        for (int j = 0; j < chunk; j++)
            scale_row(c->k + j * d, h->lambda[chunk - 1 - j], d);
        CPU(product_even)(next, (size_t)d, c->k, 1, (size_t)d, d, c->v, (size_t)d, chunk, d);
    }
}

/* p [C][C]: lambda^(i-j) (a_i . b_j) for the span's rows i of the chunk, j <= i; else 0. */
static void scores(float *p, Chunk *c, const Head *h, const float *a, size_t row, const float *b)
{
    int d = h->s.dim, rows = c->rows - c->first;
    size_t chunk = (size_t)h->s.chunk;

    CPU(transpose)(c->turned, chunk, b, (size_t)d, c->rows, d);
    zero_rows(p, chunk, rows, c->rows);
    CPU(product_even)(p, chunk, a, row, 1, rows, c->turned, chunk, d, c->rows);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < c->rows; j++)
            p[i * (int)chunk + j] =
                j <= c->first + i ? p[i * (int)chunk + j] * h->lambda[c->first + i - j] : 0;
}

/* dq = diag(lambda^(i+1)) dO S^T + dP K */
static void queries_bwd(Chunk *c, const Head *h, const float *state)
{
    int d = h->s.dim, rows = c->rows - c->first;
    float *dq = h->dqkv + (size_t)c->t * h->row;
    const float *up = h->up + (size_t)c->t * h->up_row;

    CPU(transpose)(h->turned, (size_t)d, state, (size_t)d, d, d);
    zero_rows(dq, h->row, rows, d);
    CPU(product_even)(dq, h->row, up, h->up_row, 1, rows, h->turned, (size_t)d, d, d);
    for (int i = 0; i < rows; i++)
        scale_row(dq + (size_t)i * h->row, h->lambda[c->first + i + 1], d);
    CPU(product_even)
    (dq, h->row, c->dp, (size_t)h->s.chunk, 1, rows, c->k, (size_t)d, c->rows, d);
}

/* dk, dv of all rows of the chunk: from the fold, or from what continuations left, then from the
 * span's own rows. */
static void keys_bwd(Chunk *c, const Head *h)
{
    int d = h->s.dim, chunk = h->s.chunk, rows = c->rows - c->first;
    const float *q = h->qkv + (size_t)c->t * h->row, *up = h->up + (size_t)c->t * h->up_row;

    zero_rows(c->dk, (size_t)d, c->rows, d);
    zero_rows(c->dv, (size_t)d, c->rows, d);
    if (c->rows == chunk) {
        CPU(transpose)(h->turned, (size_t)d, h->g, (size_t)d, d, d);
        CPU(product_even)(c->dk, (size_t)d, c->v, (size_t)d, 1, chunk, h->turned, (size_t)d, d, d);
        CPU(product_even)(c->dv, (size_t)d, c->k, (size_t)d, 1, chunk, h->g, (size_t)d, d, d);
        for (int j = 0; j < chunk; j++) {
            scale_row(c->dk + j * d, h->lambda[chunk - 1 - j], d);
            scale_row(c->dv + j * d, h->lambda[chunk - 1 - j], d);
        }
    } else if (h->dopen_k) {
        CPU(transpose)
        (c->dk + c->first * d, (size_t)d, h->dopen_k + c->first, (size_t)chunk, d, rows);
        copy_rows(c->dv + c->first * d, (size_t)d, h->dopen_v + c->first * d, (size_t)d, rows, d);
    }
    CPU(product_even)
    (c->dk, (size_t)d, c->dp, 1, (size_t)chunk, c->rows, q, h->row, rows, d);
    CPU(product_even)
    (c->dv, (size_t)d, c->p, 1, (size_t)chunk, c->rows, up, h->up_row, rows, d);
}

/* g <- lambda^C g (a filled chunk; else as it is) + sum_i lambda^(i+1) q_i^T dO_i */
static void state_bwd(Chunk *c, const Head *h)
{
    int d = h->s.dim, rows = c->rows - c->first;
    const float *q = h->qkv + (size_t)c->t * h->row, *up = h->up + (size_t)c->t * h->up_row;

    if (c->rows == h->s.chunk)
        scale_row(h->g, h->lambda[h->s.chunk], d * d);
    copy_rows(c->turned, (size_t)d, q, h->row, rows, d);
    for (int i = 0; i < rows; i++)
        scale_row(c->turned + i * d, h->lambda[c->first + i + 1], d);
    CPU(product_even)(h->g, (size_t)d, c->turned, 1, (size_t)d, d, up, h->up_row, rows, d);
}

/* The rows before the span get theirs through dopen. */
static void chunk_give(const Chunk *c, const Head *h)
{
    int d = h->s.dim, rows = c->rows - c->first;
    float *to = h->dqkv + (size_t)c->t * h->row;

    copy_rows(to + d, h->row, c->dk + c->first * d, (size_t)d, rows, d);
    copy_rows(to + 2 * d, h->row, c->dv + c->first * d, (size_t)d, rows, d);
    for (int j = 0; h->dopen_k && j < c->first; j++)
        for (int i = 0; i < d; i++) {
            h->dopen_k[i * h->s.chunk + j] += c->dk[j * d + i];
            h->dopen_v[j * d + i] += c->dv[j * d + i];
        }
}

static void span_bwd(const Head *h, int chunks, const float *state_in)
{
    size_t one = (size_t)h->s.dim * h->s.dim;
    Chunk c;

    states_make(&c, h, chunks, state_in);
    for (int n = chunks - 1; n >= 0; n--) {
        chunk_load(&c, h, n);
        scores(c.p, &c, h, h->qkv + (size_t)c.t * h->row, h->row, c.k);
        scores(c.dp, &c, h, h->up + (size_t)c.t * h->up_row, h->up_row, c.v);
        queries_bwd(&c, h, h->states + (size_t)n * one);
        keys_bwd(&c, h);
        state_bwd(&c, h);
        chunk_give(&c, h);
    }
}

/* Chunks that the span has rows in. */
static int span_chunks(const OpsSpan *span, int chunk)
{
    int64_t first = span->pos0 / chunk, end = (span->pos0 + span->rows + chunk - 1) / chunk;

    return span->rows ? (int)(end - first) : 0;
}

typedef struct {
    const OpsSpan *spans;
    const OpsSpanGrad *grads;
    int n_spans;
    size_t state_offset, open_offset;
} Call;

/* All spans of one head, last to first. */
static void head_bwd(Head *h, const Call *call, int head, int chunks_most)
{
    size_t d = (size_t)h->s.dim, one = d * d, at = (size_t)head * (size_t)h->s.chunk * d;
    size_t keys = (size_t)h->s.heads * d * (size_t)h->s.chunk, up = call->state_offset;
    Head base = *h;

    h->g = h->states + (size_t)chunks_most * one;
    h->turned = h->g + one;
    for (int n = call->n_spans - 1; n >= 0; n--) {
        const OpsSpan *span = &call->spans[n];
        const OpsSpanGrad *grad = &call->grads[n];
        float *open = cpu_behind(span->open, call->open_offset) + at;
        float *dopen = grad->dopen ? cpu_behind(grad->dopen, call->open_offset) + at : NULL;
        float *out = grad->dstate_in ? cpu_behind(grad->dstate_in, up) + (size_t)head * one : NULL;

        h->span = span;
        h->qkv = base.qkv + (size_t)span->row0 * h->row;
        h->dqkv = base.dqkv + (size_t)span->row0 * h->row;
        h->up = base.up + (size_t)span->row0 * h->up_row;
        h->open_k = open;
        h->open_v = open + keys;
        h->dopen_k = dopen;
        h->dopen_v = dopen ? dopen + keys : NULL;
        memset(h->g, 0, one * sizeof(float));
        if (span->rows && grad->dstate_out)
            memcpy(h->g, cpu_behind(grad->dstate_out, up) + (size_t)head * one,
                   one * sizeof(float));
        span_bwd(h, span_chunks(span, h->s.chunk),
                 span->state_in ? cpu_behind(span->state_in, up) + (size_t)head * one : NULL);
        for (size_t i = 0; out && i < one; i++)
            out[i] += h->g[i];
    }
}

void CPU(lightning_bwd)(void *dqkv, const void *do_, const void *qkv, const OpsSpan *spans,
                        const OpsSpanGrad *grads, int n_spans, size_t state_offset,
                        size_t open_offset, const void *decay, OpsHeads s, void *scratch)
{
    Call call = {spans, grads, n_spans, state_offset, open_offset};
    size_t d = (size_t)s.dim;
    int most = 1;

    for (int n = 0; n < n_spans; n++)
        most = span_chunks(&spans[n], s.chunk) > most ? span_chunks(&spans[n], s.chunk) : most;
#pragma omp parallel for schedule(static, 1)
    for (int head = 0; head < s.heads; head++) {
        Head h = {.s = s,
                  .lambda = (const float *)decay + (size_t)head * (size_t)(s.chunk + 1),
                  .qkv = (const float *)qkv + 3 * (size_t)head * d,
                  .up = (const float *)do_ + (size_t)head * d,
                  .dqkv = (float *)dqkv + 3 * (size_t)head * d,
                  .states = (float *)scratch + (size_t)head * (size_t)(most + 2) * d * d,
                  .row = 3 * (size_t)s.heads * d,
                  .up_row = (size_t)s.heads * d};

        head_bwd(&h, &call, head, most);
    }
}
