/*
 * Router and experts on a card: grouped products over the rows of each expert.
 *
 * Invariants
 *  1. A slot's numbers depend on its row and its expert alone; slots are combined in ascending
 *     order of expert (MoePlan.order), without atomics.
 *  2. All experts of a call keep their weights in one format.
 *  3. The plan is read where it lies, on the card: no launch depends on how many rows an expert
 *     has.
 *
 * Not here: the products' tiles (gemm.h, product.h).
 */
#include "kernels/cuda/gemm.h"

#include <stdlib.h>
#include <string.h>

#define ROUTE_BLOCK 64

/* ---- the router: a thread for each row ---- */

static __global__ void route_kernel(int *ids, float *weights, const float *z, int rows, int experts,
                                    int topk)
{
    int t = (int)(blockIdx.x * ROUTE_BLOCK + threadIdx.x), *best = ids + (size_t)t * (size_t)topk;
    const float *logits = z + (size_t)t * (size_t)experts;
    float *w = weights + (size_t)t * (size_t)topk, sum = 0;

    if (t >= rows)
        return;
    for (int c = 0; c < topk; c++) {
        int top = -1;

        for (int e = 0; e < experts; e++) {
            int taken = 0;

            for (int b = 0; b < c; b++)
                taken |= best[b] == e;
            if (!taken && (top < 0 || logits[e] > logits[top]))
                top = e;
        }
        best[c] = top;
        w[c] = expf(logits[top] - logits[best[0]]);
        sum += w[c];
    }
    for (int c = 0; c < topk; c++)
        w[c] /= sum;
}

static __global__ void route_bwd_kernel(float *dz, const float *dweights, const int *ids,
                                        const float *weights, int rows, int experts, int topk)
{
    int t = (int)(blockIdx.x * ROUTE_BLOCK + threadIdx.x);
    size_t at = (size_t)t * (size_t)topk;
    float mean = 0;

    if (t >= rows)
        return;
    for (int e = 0; e < experts; e++)
        dz[(size_t)t * (size_t)experts + e] = 0;
    for (int c = 0; c < topk; c++)
        mean += weights[at + c] * dweights[at + c];
    for (int c = 0; c < topk; c++)
        dz[(size_t)t * (size_t)experts + ids[at + c]] = weights[at + c] * (dweights[at + c] - mean);
}

/* load(e) = share of all choices that expert e got. */
static __global__ void balance_kernel(float *dz, const float *z, const int *offsets, int rows,
                                      int experts, float share, float by)
{
    int t = (int)(blockIdx.x * ROUTE_BLOCK + threadIdx.x);
    const float *row = z + (size_t)t * (size_t)experts;
    float top, sum = 0, mean = 0;

    if (t >= rows)
        return;
    top = row[0];
    for (int e = 1; e < experts; e++)
        top = fmaxf(top, row[e]);
    for (int e = 0; e < experts; e++)
        sum += expf(row[e] - top);
    for (int e = 0; e < experts; e++)
        mean += (float)(offsets[e + 1] - offsets[e]) * share * (expf(row[e] - top) / sum);
    for (int e = 0; e < experts; e++)
        dz[(size_t)t * (size_t)experts + e] +=
            by * (expf(row[e] - top) / sum) * ((float)(offsets[e + 1] - offsets[e]) * share - mean);
}

static unsigned route_blocks(int rows)
{
    return blocks_for((size_t)rows, ROUTE_BLOCK, SIZE_MAX);
}

void cuda_route_fwd(int *ids, void *weights, const void *z, int rows, int experts, int topk)
{
    if (rows == 0)
        return;
    cuda_op_begin();
    LAUNCH(route_kernel, route_blocks(rows), ROUTE_BLOCK, 0, ids, (float *)weights,
           (const float *)z, rows, experts, topk);
    cuda_op_end("route_fwd");
}

void cuda_route_bwd(void *dz, const void *dweights, const int *ids, const void *weights, int rows,
                    int experts, int topk)
{
    if (rows == 0)
        return;
    cuda_op_begin();
    LAUNCH(route_bwd_kernel, route_blocks(rows), ROUTE_BLOCK, 0, (float *)dz,
           (const float *)dweights, ids, (const float *)weights, rows, experts, topk);
    cuda_op_end("route_bwd");
}

/* ---- the plan: a warp for each expert ---- */

/* Its slots begin where those of lower experts end, and go to its choices in their order: each
 * lane looks at its choice of 32, and the warp counts those before. */
static __global__ void plan_kernel(MoePlan plan, const int *ids)
{
    int e = (int)blockIdx.x, lane = (int)threadIdx.x, lower = 0;

    for (int r = lane; r < plan.rows; r += LANES)
        lower += ids[r] < e;
    for (int by = LANES / 2; by > 0; by /= 2)
        lower += __shfl_xor_sync(FULL_WARP, lower, by);
    if (lane == 0)
        plan.offsets[e] = lower;
    for (int from = 0; from < plan.rows; from += LANES) {
        int r = from + lane, mine = r < plan.rows && ids[r] == e;
        unsigned all = __ballot_sync(FULL_WARP, mine);

        if (mine) {
            int first = r / plan.topk * plan.topk, rank = 0;
            int slot = lower + __popc(all & ((1u << lane) - 1));

            for (int c = first; c < first + plan.topk; c++)
                rank += ids[c] < e || (ids[c] == e && c < r);
            plan.slot[r] = slot;
            plan.source[slot] = r;
            plan.order[first + rank] = r - first;
        }
        lower += __popc(all);
    }
    if (lane == 0 && e == plan.experts - 1)
        plan.offsets[plan.experts] = lower;
}

void cuda_route_plan(MoePlan *plan, const int *ids, int rows, int topk, int experts)
{
    plan->rows = rows * topk;
    plan->topk = topk;
    plan->experts = experts;
    cuda_op_begin();
    LAUNCH(plan_kernel, (unsigned)experts, LANES, 0, *plan, ids);
    cuda_op_end("route_plan");
}

void cuda_route_balance_bwd(void *dz, const void *z, const MoePlan *plan, double scale)
{
    int rows = plan->rows / plan->topk;

    if (rows == 0)
        return;
    cuda_op_begin();
    LAUNCH(balance_kernel, route_blocks(rows), ROUTE_BLOCK, 0, (float *)dz, (const float *)z,
           plan->offsets, rows, plan->experts, (float)1 / (float)plan->rows,
           (float)scale * (float)plan->experts / (float)rows);
    cuda_op_end("route_balance_bwd");
}

/* ---- experts, forward ---- */

/* A warp's first 32 columns of a tile are the gate's, its last 32 the same columns of the other. */
static __device__ __forceinline__ int up_col(int j, int e)
{
    return acc_col(j, e) / 64 * 32 + acc_col(j, e) % 32;
}

template <int T>
static __device__ __forceinline__ void up_tile(const GatedJob *job, int row0, int m, int col0)
{
    DYN_SMEM(void, smem);
    Tile<T, T> *tile = (Tile<T, T> *)smem;
    const GemmJob *g = &job->job;
    int n = g->n - col0;
    Side b = gemm_side_b(g, col0);
    Acc acc;

    for (int r = (int)threadIdx.x; r < m; r += TILE_BLOCK)
        tile->a_at[r] = (const char *)(g->a + (size_t)(g->a_rows[row0 + r] / g->divide) * g->a_row);
    for (int r = (int)threadIdx.x; r < TILE_N; r += TILE_BLOCK) {
        int col = r / 64 * 32 + r % 32;
        const char *from = r % 64 < 32 ? g->b : job->up;

        tile->b_at[r] = col < n ? gemm_b_row(g, from, col0 + col) : NULL;
    }
    acc_zero(acc);
    tile_product<T, T>(acc, tile, side(1), m, b, TILE_N, g->k);
#pragma unroll
    for (int i = 0; i < WARP_M; i++)
#pragma unroll
        for (int j = 0; j < WARP_N / 2; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float a = acc[i][j][e], up = acc[i][j + WARP_N / 2][e];
                size_t at;

                if (acc_row(i, e) >= m || up_col(j, e) >= n)
                    continue;
                at = (size_t)(row0 + acc_row(i, e)) * g->c_row + col0 + up_col(j, e);
                if (job->a)
                    job->a[at] = a;
                if (job->b)
                    job->b[at] = up;
                g->c[at] = a * sigmoid(a) * up;
            }
}

static __global__ void __launch_bounds__(TILE_BLOCK)
    moe_up_1_kernel(const GatedJob *jobs, GemmRows rows)
{
    GemmTile at = gemm_tile_at(rows, (int)blockIdx.x, TILE_M);

    if (at.job >= 0)
        up_tile<1>(&jobs[at.job], at.row0, gemm_tile_rows(at), (int)blockIdx.y * TILE_N / 2);
}

static __global__ void __launch_bounds__(TILE_BLOCK)
    moe_up_2_kernel(const GatedJob *jobs, GemmRows rows)
{
    GemmTile at = gemm_tile_at(rows, (int)blockIdx.x, TILE_M);

    if (at.job >= 0)
        up_tile<2>(&jobs[at.job], at.row0, gemm_tile_rows(at), (int)blockIdx.y * TILE_N / 2);
}

/* y[t] = sum of the row's choices c in `order` of weights[t, c] (or 1) from[slot]. */
static __global__ void combine_kernel(float *y, const float *from, const float *weights,
                                      const int *order, const int *slot, int topk, int width)
{
    const int *row = order + (size_t)blockIdx.x * (size_t)topk;

    for (int i = (int)threadIdx.x; i < width; i += FLAT_BLOCK) {
        float sum = 0;

        for (int c = 0; c < topk; c++) {
            size_t choice = (size_t)blockIdx.x * (size_t)topk + (size_t)row[c];

            sum = fmaf(weights ? weights[choice] : 1, from[(size_t)slot[choice] * width + i], sum);
        }
        y[(size_t)blockIdx.x * width + i] = sum;
    }
}

void moe_combine(float *y, const float *from, const float *weights, const MoePlan *plan, int width)
{
    LAUNCH(combine_kernel, (unsigned)(plan->rows / plan->topk), FLAT_BLOCK, 0, y, from, weights,
           plan->order, plan->slot, plan->topk, width);
}

void moe_up_jobs(GatedJob *jobs, void *a, void *b, void *act, const void *x, const MoePlan *plan,
                 const MoeWeights *w)
{
    for (int e = 0; e < plan->experts; e++) {
        GemmJob gate = gemm_job_fwd((float *)act, (const float *)x, &w->w1[e], plan->rows);

        gate.a_rows = plan->source;
        gate.divide = plan->topk;
        jobs[e] = (GatedJob){gate, (const char *)w->w3[e].data, (float *)a, (float *)b};
    }
}

void cuda_moe_up_fwd(void *a, void *b, void *act, const void *x, const MoePlan *plan,
                     const MoeWeights *w)
{
    GatedJob jobs[OPS_EXPERTS_MAX];
    int width = w->w1[0].n, two = w->w1[0].format == WEIGHT_REAL;
    GemmRows rows = gemm_rows_of(plan);
    const GatedJob *staged;

    if (plan->rows == 0)
        return;
    moe_up_jobs(jobs, a, b, act, x, plan, w);
    cuda_op_begin();
    staged = (const GatedJob *)cuda_put(jobs, (size_t)plan->experts * sizeof *jobs);
    dim3 grid((unsigned)gemm_tiles_most(rows, TILE_M),
              blocks_for((size_t)width, TILE_N / 2, SIZE_MAX));
    if (two)
        LAUNCH(moe_up_2_kernel, grid, TILE_BLOCK, (sizeof(Tile<2, 2>)), staged, rows);
    else
        LAUNCH(moe_up_1_kernel, grid, TILE_BLOCK, (sizeof(Tile<1, 1>)), staged, rows);
    cuda_op_end("moe_up_fwd");
}

void cuda_moe_down_fwd(void *y, void *expert_out, const void *act, const void *weights,
                       const MoePlan *plan, const MoeWeights *w)
{
    GemmJob jobs[OPS_EXPERTS_MAX];

    if (plan->rows == 0)
        return;
    for (int e = 0; e < plan->experts; e++)
        jobs[e] = gemm_job_fwd((float *)expert_out, (const float *)act, &w->w2[e], plan->rows);
    cuda_op_begin();
    gemm_launch(jobs, gemm_rows_of(plan), gemm_terms(w->w2[0].format, GEMM_ROUNDED));
    moe_combine((float *)y, (const float *)expert_out, (const float *)weights, plan, w->w2[0].n);
    cuda_op_end("moe_down_fwd");
}

/* ---- experts, backward ---- */

/* What a slot takes from its row: dweights and dout = weight dy. */
static __global__ void slot_kernel(float *dweights, float *dout, const float *dy, const float *out,
                                   const float *weights, const int *source, int topk, int width)
{
    __shared__ float parts[SUM_WARPS];
    size_t to = (size_t)blockIdx.x * (size_t)width;
    int choice = source[blockIdx.x];
    const float *up = dy + (size_t)(choice / topk) * (size_t)width;
    float dot = 0;

    for (int i = (int)threadIdx.x; i < width; i += SUM_BLOCK) {
        dot = fmaf(up[i], out[to + i], dot);
        dout[to + i] = weights[choice] * up[i];
    }
    dot = block_sum(dot, parts);
    if (threadIdx.x == 0)
        dweights[choice] = dot;
}

/* dact [R, 2 F] holds the gradient of act in its first half: it becomes da, then db. */
static __global__ void dact_kernel(float *dact, const float *a, const float *b, int inner)
{
    size_t from = (size_t)blockIdx.x * (size_t)inner;
    float *da = dact + 2 * from;

    for (int f = (int)threadIdx.x; f < inner; f += FLAT_BLOCK) {
        float up = da[f];

        da[f] = up * b[from + f] * silu_slope(a[from + f]);
        da[inner + f] = up * a[from + f] * sigmoid(a[from + f]);
    }
}

/* c [m, n] += sum over an expert's slots r of a[r][0 .. m) b[r][0 .. n): the gradient of one of its
 * three matrices. */
typedef struct {
    const float *a, *b;
    float *c;
    size_t a_row, b_row;
    const int *b_rows; /* NULL, or slot r's row of b is number b_rows[r] / divide */
    int divide, m, n;
} DwJob;

static __global__ void __launch_bounds__(TILE_BLOCK)
    moe_dw_kernel(const DwJob *jobs, const int *offsets)
{
    DYN_SMEM(void, smem);
    typedef Tile<2, 2> T22;
    T22 *tile = (T22 *)smem;
    DwJob job = jobs[blockIdx.z];
    int first = offsets[blockIdx.z / 3], end = offsets[blockIdx.z / 3 + 1];
    int row0 = (int)blockIdx.x * TILE_M, col0 = (int)blockIdx.y * TILE_N;
    int m = job.m - row0 < TILE_M ? job.m - row0 : TILE_M;
    int n = job.n - col0 < TILE_N ? job.n - col0 : TILE_N;
    Acc acc;

    acc_zero(acc);
    if (m <= 0 || n <= 0 || first == end)
        return;
    for (int from = first; from < end; from += TILE_M) {
        int count = end - from < TILE_M ? end - from : TILE_M;

        for (int r = (int)threadIdx.x; r < count; r += TILE_BLOCK) {
            int at = job.b_rows ? job.b_rows[from + r] / job.divide : from + r;

            tile->a_at[r] = (const char *)(job.a + (size_t)(from + r) * job.a_row + row0);
            tile->b_at[r] = (const char *)(job.b + (size_t)at * job.b_row + col0);
        }
        tile_product<2, 2>(acc, tile, side_by_inner(1), m, side_by_inner(1), n, count);
    }
    FOR_ACC (i, j, e, m, n)
        job.c[(size_t)(row0 + acc_row(i, e)) * (size_t)job.n + col0 + acc_col(j, e)] +=
            acc[i][j][e];
}

/* What moe_bwd's steps share. */
typedef struct {
    const MoePlan *plan;
    const MoeWeights *w;
    const float *x, *act;
    float *dact, *dout;
    int width, inner;
} Bwd;

/* From dout through W2 to da and db. */
static void bwd_act(const Bwd *s, const float *a, const float *b)
{
    GemmJob jobs[OPS_EXPERTS_MAX];

    for (int e = 0; e < s->plan->experts; e++) {
        jobs[e] = gemm_job_dx(s->dact, s->dout, &s->w->w2[e], s->plan->rows, 0);
        jobs[e].c_row = 2 * (size_t)s->inner;
    }
    gemm_launch(jobs, gemm_rows_of(s->plan), gemm_terms_dx(s->w->w2[0].format));
    LAUNCH(dact_kernel, (unsigned)s->plan->rows, FLAT_BLOCK, 0, s->dact, a, b, s->inner);
}

static void bwd_weights(const Bwd *s, void *const *dw1, void *const *dw3, void *const *dw2)
{
    DwJob jobs[3 * OPS_EXPERTS_MAX];
    int n = 3 * s->plan->experts, most = s->width > s->inner ? s->width : s->inner;
    size_t width = (size_t)s->width, inner = (size_t)s->inner;
    DwJob gate = {s->dact,         s->x,          NULL,     2 * inner, width,
                  s->plan->source, s->plan->topk, s->inner, s->width};
    DwJob down = {s->dout, s->act, NULL, width, inner, NULL, 1, s->width, s->inner};
    DwJob up = gate;
    const DwJob *staged;

    up.a += s->inner;
    for (int e = 0; e < s->plan->experts; e++) {
        gate.c = (float *)dw1[e];
        up.c = (float *)dw3[e];
        down.c = (float *)dw2[e];
        jobs[3 * e] = gate;
        jobs[3 * e + 1] = up;
        jobs[3 * e + 2] = down;
    }
    staged = (const DwJob *)cuda_put(jobs, (size_t)n * sizeof *jobs);
    LAUNCH(moe_dw_kernel,
           dim3(blocks_for((size_t)most, TILE_M, SIZE_MAX),
                blocks_for((size_t)most, TILE_N, SIZE_MAX), (unsigned)n),
           TILE_BLOCK, (sizeof(Tile<2, 2>)), staged, s->plan->offsets);
}

/* Each slot's share of dx, into dout: da W1 + db W3. */
static void bwd_rows(const Bwd *s)
{
    GemmJob jobs[OPS_EXPERTS_MAX];

    for (int part = 0; part < 2; part++) {
        for (int e = 0; e < s->plan->experts; e++) {
            jobs[e] = gemm_job_dx(s->dout, s->dact + part * s->inner,
                                  part ? &s->w->w3[e] : &s->w->w1[e], s->plan->rows, part);
            jobs[e].a_row = 2 * (size_t)s->inner;
        }
        gemm_launch(jobs, gemm_rows_of(s->plan), gemm_terms_dx(s->w->w1[0].format));
    }
}

void cuda_moe_bwd(void *dx, void *dweights, void *const *dw1, void *const *dw3, void *const *dw2,
                  const void *dy, const void *x, const void *a, const void *b, const void *act,
                  const void *expert_out, const void *weights, const MoePlan *plan,
                  const MoeWeights *w, void *dact, void *dout)
{
    Bwd s = {plan,          w,          (const float *)x, (const float *)act, (float *)dact,
             (float *)dout, w->w2[0].n, w->w2[0].k};

    if (plan->rows == 0)
        return;
    cuda_op_begin();
    LAUNCH(slot_kernel, (unsigned)plan->rows, SUM_BLOCK, 0, (float *)dweights, (float *)dout,
           (const float *)dy, (const float *)expert_out, (const float *)weights, plan->source,
           plan->topk, s.width);
    bwd_act(&s, (const float *)a, (const float *)b);
    bwd_weights(&s, dw1, dw3, dw2);
    bwd_rows(&s);
    moe_combine((float *)dx, (const float *)dout, NULL, plan, s.width);
    cuda_op_end("moe_bwd");
}
