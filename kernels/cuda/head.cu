/*
 * Log-probabilities over the vocabulary on a card, from logits or from the head's inputs.
 *
 * Of every PART ids of a row there is one HeadPart, made by a warp from logits that lie in memory
 * or, in the same order, from the tile of the product that a block has. A warp adds a row's parts.
 *
 * Invariants
 *  1. logprob_fwd and head_fwd take the same sums: what training recomputes has the bits that
 *     sampling recorded.
 *  2. Logits are kept for a tile of OPS_HEAD_TILE ids in the backward alone.
 *
 * Not here: the products (gemm.cu).
 */
#include "kernels/cuda/gemm.h"

#define PART       TILE_N
#define PART_LANE  (PART / LANES) /* ids of a lane: its number, then every LANES on */
#define SCORE_LD   (PART + 4)
#define TILE_WARPS (TILE_BLOCK / LANES)

/* Over z = logits / temperature: the largest, and of exp(z - top) the sum and that of their z. */
typedef struct {
    float top, sum, mean;
} HeadPart;

/* Where a pass over the vocabulary leaves its parts [T, n_parts], and z of each row's id [T]. */
typedef struct {
    HeadPart *parts;
    float *own;
    const int *ids;
    int n_parts, valid;
    float beta;
} HeadSums;

/* Part `p` of row t by one warp; logits [PART], of which those before `valid` are there. */
static __device__ __forceinline__ void make_part(const HeadSums &h, const float *logits, int t,
                                                 int p)
{
    int lane = (int)threadIdx.x % LANES, id = h.ids[t] - p * PART, n = h.valid - p * PART;
    float z[PART_LANE], top = -INFINITY, sum = 0, mean = 0;

#pragma unroll
    for (int c = 0; c < PART_LANE; c++) {
        int j = lane + c * LANES;

        z[c] = j < n ? logits[j] * h.beta : -INFINITY;
        top = fmaxf(top, z[c]);
        if (j < n && j == id)
            h.own[t] = z[c];
    }
    top = warp_max(top);
#pragma unroll
    for (int c = 0; c < PART_LANE; c++) {
        float e = expf(z[c] - top);

        sum += e;
        mean = fmaf(e, e > 0 ? z[c] : 0, mean);
    }
    sum = warp_sum(sum);
    mean = warp_sum(mean);
    if (lane == 0) {
        HeadPart part = {top, sum, mean};

        h.parts[(size_t)t * (size_t)h.n_parts + p] = part;
    }
}

static __global__ void logprob_parts_kernel(HeadSums h, const float *logits, int vocab)
{
    int t = (int)blockIdx.x, p = (int)(blockIdx.y * SUM_WARPS + threadIdx.x / LANES);

    if (p < h.n_parts)
        make_part(h, logits + (size_t)t * (size_t)vocab + (size_t)p * PART, t, p);
}

template <int TB> struct HeadSmem {
    Tile<3, TB> tile;
    float scores[TILE_M][SCORE_LD];
};

/* Logits of TILE_M rows and PART ids, in the block's registers and then in shared memory. */
template <int TB>
static __device__ __forceinline__ void head_parts(const HeadSums &h, const GemmJob &job)
{
    DYN_SMEM(void, dynamic);
    HeadSmem<TB> *sm = (HeadSmem<TB> *)dynamic;
    int row0 = (int)blockIdx.x * TILE_M, p = (int)blockIdx.y, m, n;
    GemmTile at = {0, row0, job.m};
    Acc acc;

    gemm_acc<3, TB>(acc, &sm->tile, &job, at, p * PART, &m, &n);
    FOR_ACC (i, j, e, m, n)
        sm->scores[acc_row(i, e)][acc_col(j, e)] = acc[i][j][e];
    __syncthreads();
    for (int r = (int)threadIdx.x / LANES; r < m; r += TILE_WARPS)
        make_part(h, sm->scores[r], row0 + r, p);
}

static __global__ void __launch_bounds__(TILE_BLOCK) head_parts_1_kernel(HeadSums h, GemmJob job)
{
    head_parts<1>(h, job);
}

static __global__ void __launch_bounds__(TILE_BLOCK) head_parts_3_kernel(HeadSums h, GemmJob job)
{
    head_parts<3>(h, job);
}

/* A block of one warp adds the parts of a row: a lane those of its number, then every LANES on. */
static __global__ void head_sum_kernel(float *logp, float *lse, float *entropy, HeadSums h)
{
    const HeadPart *parts = h.parts + (size_t)blockIdx.x * (size_t)h.n_parts;
    float top = -INFINITY, sum = 0, mean = 0, all;

    for (int p = (int)threadIdx.x; p < h.n_parts; p += LANES)
        top = fmaxf(top, parts[p].top);
    top = warp_max(top);
    for (int p = (int)threadIdx.x; p < h.n_parts; p += LANES) {
        float by = expf(parts[p].top - top);

        sum = fmaf(parts[p].sum, by, sum);
        mean = fmaf(parts[p].mean, by, mean);
    }
    sum = warp_sum(sum);
    mean = warp_sum(mean);
    if (threadIdx.x > 0)
        return;
    all = top + logf(sum);
    lse[blockIdx.x] = all;
    logp[blockIdx.x] = h.own[blockIdx.x] - all;
    if (entropy)
        entropy[blockIdx.x] = all - mean / sum;
}

/* ---- backward ---- */

/* HeadGrad on the card; ids of the tile begin at `from`. */
typedef struct {
    const float *lse, *coef, *bonus, *entropy;
    const int *ids;
    int from;
    float beta;
} GradRows;

/* dz of TILE_M rows and PART ids of a tile of the vocabulary, to job.c. */
template <int TB>
static __device__ __forceinline__ void head_dz(const GradRows &g, const GemmJob &job)
{
    DYN_SMEM(void, dynamic);
    int row0 = (int)blockIdx.x * TILE_M, col0 = (int)blockIdx.y * PART, m, n;
    GemmTile at = {0, row0, job.m};
    Acc acc;

    gemm_acc<3, TB>(acc, (Tile<3, TB> *)dynamic, &job, at, col0, &m, &n);
    FOR_ACC (i, j, e, m, n) {
        int t = row0 + acc_row(i, e), col = col0 + acc_col(j, e);
        float log_p = acc[i][j][e] * g.beta - g.lse[t], c = g.coef[t] * g.beta;
        float b = g.bonus ? g.bonus[t] * g.beta : 0, h = g.bonus ? g.entropy[t] : 0;

        job.c[(size_t)t * job.c_row + col] =
            expf(log_p) * (c + b * (log_p + h)) - (g.from + col == g.ids[t] ? c : 0);
    }
}

static __global__ void __launch_bounds__(TILE_BLOCK) head_dz_1_kernel(GradRows g, GemmJob job)
{
    head_dz<1>(g, job);
}

static __global__ void __launch_bounds__(TILE_BLOCK) head_dz_3_kernel(GradRows g, GemmJob job)
{
    head_dz<3>(g, job);
}

/* ---- host side ---- */

static HeadSums begin_sums(const int *ids, int rows, int valid, double temperature)
{
    HeadSums h;

    cuda_op_begin();
    h.ids = (const int *)cuda_put(ids, (size_t)rows * sizeof *ids);
    h.n_parts = (int)blocks_for((size_t)valid, PART, SIZE_MAX);
    h.parts = (HeadPart *)cuda_room((size_t)rows * (size_t)h.n_parts * sizeof(HeadPart));
    h.own = (float *)cuda_room((size_t)rows * sizeof(float));
    h.valid = valid;
    h.beta = (float)(1 / temperature);
    return h;
}

static void end_sums(void *logp, void *lse, void *entropy, const HeadSums &h, int rows,
                     const char *op)
{
    LAUNCH(head_sum_kernel, (unsigned)rows, LANES, 0, (float *)logp, (float *)lse, (float *)entropy,
           h);
    cuda_op_end(op);
}

void cuda_logprob_fwd(void *logp, void *lse, void *entropy, const void *logits, const int *ids,
                      int rows, int vocab, int valid, double temperature)
{
    if (rows == 0)
        return;
    HeadSums h = begin_sums(ids, rows, valid, temperature);
    LAUNCH(logprob_parts_kernel,
           dim3((unsigned)rows, blocks_for((size_t)h.n_parts, SUM_WARPS, SIZE_MAX)), SUM_BLOCK, 0,
           h, (const float *)logits, vocab);
    end_sums(logp, lse, entropy, h, rows, "logprob_fwd");
}

/* Blocks of TILE_M rows and PART ids. */
static dim3 head_grid(int rows, int ids)
{
    return dim3(blocks_for((size_t)rows, TILE_M, SIZE_MAX),
                blocks_for((size_t)ids, PART, SIZE_MAX));
}

void cuda_head_fwd(void *logp, void *lse, void *entropy, const void *x, const OpsWeight *w,
                   const int *ids, int rows, int valid, double temperature, void *scratch)
{
    OpsWeight part = gemm_weight_part(w, 0, valid);
    GemmJob job = gemm_job_fwd(NULL, (const float *)x, &part, rows);

    (void)scratch;
    if (rows == 0)
        return;
    HeadSums h = begin_sums(ids, rows, valid, temperature);
    if (gemm_terms(w->format, GEMM_EXACT).b == 1) {
        cuda_allow_smem((const void *)head_parts_1_kernel, sizeof(HeadSmem<1>));
        LAUNCH(head_parts_1_kernel, head_grid(rows, valid), TILE_BLOCK, sizeof(HeadSmem<1>), h,
               job);
    } else {
        cuda_allow_smem((const void *)head_parts_3_kernel, sizeof(HeadSmem<3>));
        LAUNCH(head_parts_3_kernel, head_grid(rows, valid), TILE_BLOCK, sizeof(HeadSmem<3>), h,
               job);
    }
    end_sums(logp, lse, entropy, h, rows, "head_fwd");
}

static void launch_dz(const GradRows &g, const GemmJob &job, GemmTerms terms)
{
    if (job.n == 0)
        return;
    if (terms.b == 1)
        LAUNCH(head_dz_1_kernel, head_grid(job.m, job.n), TILE_BLOCK, (sizeof(Tile<3, 1>)), g, job);
    else
        LAUNCH(head_dz_3_kernel, head_grid(job.m, job.n), TILE_BLOCK, (sizeof(Tile<3, 3>)), g, job);
}

/* A tile of the vocabulary: dz, then its share of dx and its rows of dw. */
static void head_bwd_tile(float *dx, float *dw, const float *x, const OpsWeight *part,
                          const GradRows &g, int rows, float *dz)
{
    GemmJob up = gemm_job_dx(dx, dz, part, rows, g.from > 0);
    GemmJob weights =
        gemm_job_dw(dw + (size_t)g.from * (size_t)part->k, dz, x, rows, part->n, part->k);

    launch_dz(g, gemm_job_fwd(dz, x, part, rows), gemm_terms(part->format, GEMM_EXACT));
    gemm_launch(&up, gemm_rows_all(&up), gemm_terms_dx(part->format));
    gemm_launch(&weights, gemm_rows_all(&weights), gemm_terms_dw());
}

void cuda_head_bwd(void *dx, void *dw, const void *x, const OpsWeight *w, const HeadGrad *grad,
                   int rows, int valid, double temperature, void *scratch)
{
    size_t bytes = (size_t)rows * sizeof(int);
    GradRows g = {(const float *)grad->lse,
                  (const float *)grad->coef,
                  (const float *)grad->bonus,
                  (const float *)grad->entropy,
                  NULL,
                  0,
                  (float)(1 / temperature)};

    if (rows == 0)
        return;
    cuda_op_begin();
    g.ids = (const int *)cuda_put(grad->ids, bytes);
    do {
        int left = valid - g.from;
        OpsWeight part = gemm_weight_part(w, g.from, left < OPS_HEAD_TILE ? left : OPS_HEAD_TILE);

        head_bwd_tile((float *)dx, (float *)dw, (const float *)x, &part, g, rows, (float *)scratch);
        g.from += OPS_HEAD_TILE;
    } while (g.from < valid); /* without any id, dx is zero */
    cuda_op_end("head_bwd");
}
