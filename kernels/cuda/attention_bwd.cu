/*
 * Gradients of softmax attention on a card. With s the scores, P = exp(s - lse), D = rowsum(dO o):
 *   dV = P^T dO    dS = P (.) (dO V^T - D) / sqrt(d)    dQ = dS K    dK = dS^T Q
 *
 * Invariants
 *  1. A page's gradients are summed by the blocks that own the page: over spans last to first, rows
 *     ascending, and added to the page once. No atomics.
 *  2. A product's barriers (product.h) part what a step writes from what the step before read.
 *  3. A page is known by where its gradients lie: continuations of a prompt share them.
 *
 * Not here: lightning attention (lightning_bwd.cu).
 */
#include "kernels/cuda/attention.h"

#include <stdlib.h>

/* A span that sees a page: its page number `page`, from which rows x >= from see it. */
typedef struct {
    void *dpage;
    int span, page;
} PageUse;

/* Uses first .. first + count - 1 are of one page. */
typedef struct {
    int first, count;
} PageOwner;

enum Part { KEYS, VALUES };

/* Rows x0 .. x0 + n - 1 of one span against a page: what the columns of the tile stand for. */
typedef struct {
    float lse[TILE_N], delta[TILE_N];
    size_t row[TILE_N];
    int64_t pos[TILE_N];
} Columns;

typedef struct {
    AttnSmem attn;
    Columns columns;
} BwdSmem;

static __global__ void delta_kernel(float *delta, const float *up, const float *o, int dim)
{
    size_t at = (size_t)blockIdx.x * (size_t)dim;
    float sum = 0;

    for (int i = (int)threadIdx.x; i < dim; i += LANES)
        sum = fmaf(up[at + i], o[at + i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x == 0)
        delta[blockIdx.x] = sum;
}

/* ---- dk, dv: a block owns a page, a head and TILE_N channels of one part ---- */

typedef struct {
    const float *q, *up, *lse, *delta;
    const AttnSpan *spans;
    const PageUse *uses;
    AttnShape s;
} BwdIn;

/* scores [page's positions][rows] = P^T or dS^T. */
static __device__ __forceinline__ void page_scores(BwdSmem *sm, const BwdIn &in,
                                                   const AttnSpan *span, int64_t p0, int m, int n,
                                                   int g, Part part)
{
    const Columns *c = &sm->columns;
    Acc acc;

    for (int j = (int)threadIdx.x; j < m; j += TILE_BLOCK)
        sm->attn.tile.a_at[j] = (const char *)attn_key(span, in.s, g, p0 + j);
    for (int x = (int)threadIdx.x; x < n; x += TILE_BLOCK)
        sm->attn.tile.b_at[x] = (const char *)(in.q + c->row[x]);
    acc_zero(acc);
    tile_product<2, 2>(acc, &sm->attn.tile, side((size_t)in.s.chunk), m, side(1), n, in.s.dim);
    FOR_ACC (i, j, e, m, n) {
        int row = acc_row(i, e), x = acc_col(j, e);

        sm->attn.scores[row][x] =
            p0 + row <= c->pos[x] ? expf(acc[i][j][e] * in.s.scale - c->lse[x]) : 0;
    }
    if (part == VALUES)
        return;
    for (int j = (int)threadIdx.x; j < m; j += TILE_BLOCK)
        sm->attn.tile.a_at[j] = (const char *)attn_value(span, in.s, g, p0 + j);
    for (int x = (int)threadIdx.x; x < n; x += TILE_BLOCK)
        sm->attn.tile.b_at[x] = (const char *)(in.up + c->row[x]);
    acc_zero(acc);
    tile_product<2, 2>(acc, &sm->attn.tile, side(1), m, side(1), n, in.s.dim);
    FOR_ACC (i, j, e, m, n) {
        float *to = &sm->attn.scores[acc_row(i, e)][acc_col(j, e)];

        *to *= (acc[i][j][e] - c->delta[acc_col(j, e)]) * in.s.scale;
    }
}

/* One span's rows that see the page, added to acc [positions][channels]. */
static __device__ __forceinline__ void page_span(Acc acc, BwdSmem *sm, const BwdIn &in,
                                                 const PageUse *use, int g, int c0, Part part)
{
    const AttnSpan *span = &in.spans[use->span];
    const AttnShape &s = in.s;
    int64_t p0 = (int64_t)use->page * s.chunk, end = span->pos0 + span->rows;
    int m = end - p0 < s.chunk ? (int)(end - p0) : s.chunk, rows = span->rows * s.group;
    int first = p0 > span->pos0 ? (int)(p0 - span->pos0) * s.group : 0;
    int channels = s.dim - c0 < TILE_N ? s.dim - c0 : TILE_N;

    for (int x0 = first; x0 < rows; x0 += TILE_N) {
        int n = rows - x0 < TILE_N ? rows - x0 : TILE_N;
        const float *from = part == KEYS ? in.q : in.up;

        for (int x = (int)threadIdx.x; x < n; x += TILE_BLOCK) {
            size_t row = attn_row(span, s, g, x0 + x);

            sm->columns.row[x] = row;
            sm->columns.lse[x] = in.lse[row / (size_t)s.dim];
            sm->columns.delta[x] = in.delta[row / (size_t)s.dim];
            sm->columns.pos[x] = span->pos0 + (x0 + x) / s.group;
        }
        page_scores(sm, in, span, p0, m, n, g, part);
        rows_at(sm->attn.tile.a_at, m, sm->attn.scores, SCORE_LD, sizeof(float));
        for (int x = (int)threadIdx.x; x < n; x += TILE_BLOCK)
            sm->attn.tile.b_at[x] = (const char *)(from + sm->columns.row[x] + c0);
        tile_product<2, 2>(acc, &sm->attn.tile, side(1), m, side_by_inner(1), channels, n);
    }
}

static __device__ __forceinline__ void page_kernel_part(const PageOwner *owners, const BwdIn &in,
                                                        Part part)
{
    DYN_SMEM(void, dynamic);
    BwdSmem *sm = (BwdSmem *)dynamic;
    PageOwner mine = owners[blockIdx.x];
    const AttnShape &s = in.s;
    int g = (int)blockIdx.y, c0 = (int)blockIdx.z * TILE_N;
    int n = s.dim - c0 < TILE_N ? s.dim - c0 : TILE_N;
    float *keys = (float *)((char *)in.uses[mine.first].dpage + s.offset);
    float *values = keys + (size_t)(s.kv_heads + g) * s.dim * s.chunk;
    Acc acc;

    keys += (size_t)g * s.dim * s.chunk;
    acc_zero(acc);
    for (int i = 0; i < mine.count; i++)
        page_span(acc, sm, in, &in.uses[mine.first + i], g, c0, part);
    FOR_ACC (i, j, e, s.chunk, n) {
        int row = acc_row(i, e), c = c0 + acc_col(j, e);

        if (part == KEYS)
            keys[(size_t)c * s.chunk + row] += acc[i][j][e];
        else
            values[(size_t)row * s.dim + c] += acc[i][j][e];
    }
}

static __global__ void __launch_bounds__(TILE_BLOCK)
    attn_dk_kernel(const PageOwner *owners, BwdIn in)
{
    page_kernel_part(owners, in, KEYS);
}

static __global__ void __launch_bounds__(TILE_BLOCK)
    attn_dv_kernel(const PageOwner *owners, BwdIn in)
{
    page_kernel_part(owners, in, VALUES);
}

/* The span's own rows, read back from the pages. */
static __global__ void read_back_kernel(float *dk, float *dv, const AttnSpan *spans,
                                        const void *const *const *dpages, AttnShape s)
{
    AttnSpan span = spans[blockIdx.y];
    int n = s.kv_heads * s.dim;

    span.pages = dpages[blockIdx.y];
    for (int t = (int)blockIdx.x; t < span.rows; t += (int)gridDim.x)
        for (int at = (int)threadIdx.x; at < n; at += TILE_BLOCK) {
            int64_t p = span.pos0 + t;
            size_t to = (size_t)(span.row0 + t) * n + at;
            int g = at / s.dim, i = at % s.dim;

            dk[to] = attn_key(&span, s, g, p)[(size_t)i * s.chunk];
            dv[to] = attn_value(&span, s, g, p)[i];
        }
}

/* ---- dq: a block owns rows, a head and TILE_N channels ---- */

static __global__ void __launch_bounds__(TILE_BLOCK)
    attn_dq_kernel(float *dq, const AttnTile *tiles, BwdIn in)
{
    DYN_SMEM(void, dynamic);
    __shared__ float lse[TILE_M], delta[TILE_M];
    AttnSmem *sm = (AttnSmem *)dynamic;
    const AttnShape &s = in.s;
    AttnTile at = tiles[blockIdx.x];
    const AttnSpan *span = &in.spans[at.span];
    int g = (int)blockIdx.y, c0 = (int)blockIdx.z * TILE_N, left = span->rows * s.group - at.x0;
    int m = left < TILE_M ? left : TILE_M, n = s.dim - c0 < TILE_N ? s.dim - c0 : TILE_N;
    int64_t end = span->pos0 + (at.x0 + m - 1) / s.group + 1;
    Acc out;

    acc_zero(out);
    for (int r = (int)threadIdx.x; r < m; r += TILE_BLOCK) {
        size_t row = attn_row(span, s, g, at.x0 + r) / (size_t)s.dim;

        lse[r] = in.lse[row];
        delta[r] = in.delta[row];
    }
    for (int64_t p0 = 0; p0 < end; p0 += s.step) {
        int count = end - p0 < s.step ? (int)(end - p0) : s.step;
        Acc acc;

        for (int r = (int)threadIdx.x; r < m; r += TILE_BLOCK)
            sm->tile.a_at[r] = (const char *)(in.q + attn_row(span, s, g, at.x0 + r));
        for (int j = (int)threadIdx.x; j < count; j += TILE_BLOCK)
            sm->tile.b_at[j] = (const char *)attn_key(span, s, g, p0 + j);
        acc_zero(acc);
        tile_product<2, 2>(acc, &sm->tile, side(1), m, side((size_t)s.chunk), count, s.dim);
        FOR_ACC (i, j, e, m, count) {
            int r = acc_row(i, e), x = acc_col(j, e);
            int seen = p0 + x <= span->pos0 + (at.x0 + r) / s.group;

            sm->scores[r][x] = seen ? expf(acc[i][j][e] * s.scale - lse[r]) : 0;
        }
        for (int r = (int)threadIdx.x; r < m; r += TILE_BLOCK)
            sm->tile.a_at[r] = (const char *)(in.up + attn_row(span, s, g, at.x0 + r));
        for (int j = (int)threadIdx.x; j < count; j += TILE_BLOCK)
            sm->tile.b_at[j] = (const char *)attn_value(span, s, g, p0 + j);
        acc_zero(acc);
        tile_product<2, 2>(acc, &sm->tile, side(1), m, side(1), count, s.dim);
        FOR_ACC (i, j, e, m, count) {
            float *to = &sm->scores[acc_row(i, e)][acc_col(j, e)];

            *to *= (acc[i][j][e] - delta[acc_row(i, e)]) * s.scale;
        }
        rows_at(sm->tile.a_at, m, sm->scores, SCORE_LD, sizeof(float));
        for (int j = (int)threadIdx.x; j < count; j += TILE_BLOCK)
            sm->tile.b_at[j] = (const char *)(attn_key(span, s, g, p0 + j) + (size_t)c0 * s.chunk);
        tile_product<2, 2>(out, &sm->tile, side(1), m, side_by_inner((size_t)s.chunk), n, count);
    }
    FOR_ACC (i, j, e, m, n)
        dq[attn_row(span, s, g, at.x0 + acc_row(i, e)) + c0 + acc_col(j, e)] = out[i][j][e];
}

/* ---- host side ---- */

/* By page, then span last to first. */
static int use_order(const void *a, const void *b)
{
    const PageUse *x = (const PageUse *)a, *y = (const PageUse *)b;

    if (x->dpage != y->dpage)
        return (uintptr_t)x->dpage < (uintptr_t)y->dpage ? -1 : 1;
    return y->span - x->span;
}

static size_t pages_seen(const OpsSpan *span, OpsHeads h)
{
    return span->rows > 0 ? (size_t)((span->pos0 + span->rows + h.chunk - 1) / h.chunk) : 0;
}

static size_t all_pages_seen(const OpsSpan *spans, int n_spans, OpsHeads h)
{
    size_t n = 0;

    for (int i = 0; i < n_spans; i++)
        n += pages_seen(&spans[i], h);
    return n;
}

/* Fills and sorts the uses; returns how many owners there are. */
static int uses_fill(PageUse *uses, PageOwner *owners, const OpsSpan *spans,
                     const OpsSpanGrad *grads, int n_spans, OpsHeads h)
{
    int n = 0, n_owners = 0;

    for (int i = 0; i < n_spans; i++)
        for (size_t p = 0; p < pages_seen(&spans[i], h); p++, n++) {
            uses[n].dpage = grads[i].dpages[p];
            uses[n].span = i;
            uses[n].page = (int)p;
        }
    qsort(uses, (size_t)n, sizeof *uses, use_order);
    for (int i = 0; i < n; i++) {
        if (i == 0 || uses[i].dpage != uses[i - 1].dpage)
            owners[n_owners++].first = i;
        owners[n_owners - 1].count = i + 1 - owners[n_owners - 1].first;
    }
    return n_owners;
}

static const void *put_dpages(const OpsSpan *spans, const OpsSpanGrad *grads, int n_spans,
                              OpsHeads h)
{
    void *fill;
    const void *staged = cuda_put_room((size_t)n_spans * sizeof(void *), &fill);

    for (int i = 0; i < n_spans; i++)
        ((const void **)fill)[i] =
            cuda_put(grads[i].dpages, pages_seen(&spans[i], h) * sizeof(void *));
    return staged;
}

static void launch_bwd(void *dq, void *dk, void *dv, const BwdIn *in, const AttnTile *tiles,
                       int n_tiles, const PageOwner *owners, int n_owners, const void *dpages,
                       int n_spans, int most)
{
    unsigned slices = blocks_for((size_t)in->s.dim, TILE_N, SIZE_MAX);
    unsigned kv = (unsigned)in->s.kv_heads;

    cuda_allow_smem((const void *)attn_dk_kernel, sizeof(BwdSmem));
    cuda_allow_smem((const void *)attn_dv_kernel, sizeof(BwdSmem));
    cuda_allow_smem((const void *)attn_dq_kernel, sizeof(AttnSmem));
    LAUNCH(attn_dk_kernel, dim3((unsigned)n_owners, kv, slices), TILE_BLOCK, sizeof(BwdSmem),
           owners, *in);
    LAUNCH(attn_dv_kernel, dim3((unsigned)n_owners, kv, slices), TILE_BLOCK, sizeof(BwdSmem),
           owners, *in);
    LAUNCH(attn_dq_kernel, dim3((unsigned)n_tiles, kv, slices), TILE_BLOCK, sizeof(AttnSmem),
           (float *)dq, tiles, *in);
    LAUNCH(read_back_kernel, dim3((unsigned)(most < 1024 ? most : 1024), (unsigned)n_spans),
           TILE_BLOCK, 0, (float *)dk, (float *)dv, in->spans, (const void *const *const *)dpages,
           in->s);
}

void ENTRY(attn_bwd)(void *dq, void *dk, void *dv, const void *do_, const void *o, const void *lse,
                     const void *q, const OpsSpan *spans, const OpsSpanGrad *grads, int n_spans,
                     size_t page_offset, OpsHeads heads)
{
    size_t uses = all_pages_seen(spans, n_spans, heads), rows = 0;
    BwdIn in = {(const float *)q,
                (const float *)do_,
                (const float *)lse,
                NULL,
                NULL,
                NULL,
                attn_shape(heads, page_offset)};
    const void *owners, *dpages;
    void *fill, *fill_owners, *delta;
    const AttnTile *tiles;
    int n_tiles, n_owners, most = 0;

    for (int n = 0; n < n_spans; n++) {
        size_t end = (size_t)(spans[n].row0 + spans[n].rows);

        most = spans[n].rows > most ? spans[n].rows : most;
        rows = end > rows ? end : rows;
    }
    if (most == 0)
        return;
    cuda_op_begin();
    in.spans = attn_put_spans(spans, n_spans, heads);
    tiles = attn_put_tiles(spans, n_spans, heads, &n_tiles);
    in.uses = (const PageUse *)cuda_put_room(uses * sizeof(PageUse), &fill);
    owners = cuda_put_room(uses * sizeof(PageOwner), &fill_owners);
    n_owners = uses_fill((PageUse *)fill, (PageOwner *)fill_owners, spans, grads, n_spans, heads);
    dpages = put_dpages(spans, grads, n_spans, heads);
    delta = cuda_room(rows * (size_t)heads.heads * sizeof(float));
    in.delta = (const float *)delta;
    LAUNCH(delta_kernel, (unsigned)(rows * (size_t)heads.heads), LANES, 0, (float *)delta,
           (const float *)do_, (const float *)o, heads.dim);
    launch_bwd(dq, dk, dv, &in, tiles, n_tiles, (const PageOwner *)owners, n_owners, dpages,
               n_spans, most);
    cuda_op_end("attn_bwd");
}
