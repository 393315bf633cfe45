/*
 * Products with packed weights on Hopper: a ring of stages that one warp fills by bulk copies, and
 * two warpgroups that take products from it.
 *
 * The sides are turned over: rows of W are the 64 rows of a warpgroup's product, which it has in
 * registers, rows of x are its columns. So few rows of x cost little, and W is copied as it lies.
 * Rows of x are first written as bf16 terms (product.h) into planes, whose tiles of STAGE_K numbers
 * lie as products read them, filled up with zeros:
 *   [tile][stage][term][TN / 8][STAGE_K / 8][8 rows][8 numbers]
 *
 * Invariants
 *  1. The sums are those of gemm.cu, in its order: steps of 16 over ascending k from 0, of each the
 *     pairs of terms smallest first. They depend neither on TN nor on the number of rows.
 *  2. A stage is filled anew only when both warpgroups have waited for their products of it.
 *  3. What no copy filled reaches no sum: k ends by zeros, and rows of W beyond the last give
 *     columns that are not written.
 *
 * Not here: weights in codes, products over columns of W (gemm.cu, moe.cu), and exact products: the
 * bits of logits are those that head.cu makes of the same tile as gemm.cu.
 */
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/hopper.h"

#define STAGE_K    64
#define STEP_K     16
#define STEPS      (STAGE_K / STEP_K)
#define BLOCK_N    128             /* rows of W that a block takes */
#define W_LD       (STAGE_K + 8)   /* rows of fragments fall on different banks */
#define CONSUMERS  (2 * WARPGROUP) /* threads */
#define ROWS_FEW   16
#define ROWS_MANY  128
#define RING_BYTES (204 << 10)
#define PACK_BLOCK 128

template <int TX, int TW, int TN> struct Stage {
    unsigned char w[BLOCK_N * W_LD * (TW == 1 ? 2 : 4)];
    unsigned short x[TX][TN * STAGE_K];
};

template <int TX, int TW, int TN> struct Ring {
    static const int fit = RING_BYTES / (int)sizeof(Stage<TX, TW, TN>);
    static const int stages = fit < 4 ? fit : 4;

    Stage<TX, TW, TN> stage[stages];
    uint64_t full[stages], empty[stages];
};

/* ---- rows of x as planes ---- */

/* Eight numbers of a row, those at or beyond k as zeros. */
static __device__ __forceinline__ void row_part(float x[CORE], const float *row, int k0, int k)
{
#pragma unroll
    for (int i = 0; i < CORE; i++)
        x[i] = row && k0 + i < k ? row[k0 + i] : 0;
}

/* One stage of one tile: [TX][tn / 8][STAGE_K / 8][8][8]. */
static __global__ void __launch_bounds__(PACK_BLOCK)
    planes_kernel(unsigned short *planes, const GatedJob *jobs, GemmRows rows, int tn, int terms)
{
    GemmTile at = gemm_tile_at(rows, (int)blockIdx.x, tn);
    const GemmJob *job = &jobs[at.job].job;
    size_t plane = (size_t)tn * STAGE_K;
    unsigned short *stage =
        planes + ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * (size_t)terms * plane;

    if (at.job < 0)
        return;
    for (int part = (int)threadIdx.x; part < tn * STAGE_K / CORE; part += PACK_BLOCK) {
        int r = part / (STAGE_K / CORE), i = part % (STAGE_K / CORE), row = at.row0 + r;
        int from = row < at.end && job->a_rows ? job->a_rows[row] / job->divide : row;
        unsigned short *to =
            stage + (r / CORE * (STAGE_K / CORE) + i) * CORE * CORE + r % CORE * CORE;
        float x[CORE];

        row_part(x, row < at.end ? job->a + (size_t)from * job->a_row : NULL,
                 (int)blockIdx.y * STAGE_K + i * CORE, job->k);
        for (int term = 0; term < terms; term++, to += plane)
#pragma unroll
            for (int e = 0; e < CORE; e += 2) {
                uint32_t both = bf16_pair(x[e], x[e + 1]);

                *(uint32_t *)(to + e) = both;
                x[e] -= __uint_as_float(both << 16);
                x[e + 1] -= __uint_as_float(both & 0xffff0000u);
            }
    }
}

/* ---- the warp that copies ---- */

/* Row r of the block's rows of W: with `up`, eight of the gate in turn with eight of the other, so
 * that a thread holds both of a column. */
template <int UP> static __device__ __forceinline__ int w_column(int r)
{
    return UP ? r / 16 * 8 + r % 8 : r;
}

template <int UP>
static __device__ __forceinline__ const char *w_row(const GatedJob *job, int col0, int r)
{
    const char *w = UP && r % 16 >= 8 ? job->up : job->job.b;

    return w + (size_t)(col0 + w_column<UP>(r)) * job->job.b_row * (job->job.b_bf16 ? 2 : 4);
}

template <int TX, int TW, int TN, int UP>
static __device__ __forceinline__ void produce(Ring<TX, TW, TN> *ring, const GatedJob *job,
                                               const unsigned short *planes, int col0, int steps)
{
    const int element = TW == 1 ? 2 : 4, most = UP ? BLOCK_N / 2 : BLOCK_N;
    int lane = (int)threadIdx.x % LANES, cols = job->job.n - col0;
    int rows = (cols < most ? cols : most) * (UP ? 2 : 1);

    for (int s = 0; s < steps; s++) {
        int at = s % Ring<TX, TW, TN>::stages, round = s / Ring<TX, TW, TN>::stages;
        int left = (int)job->job.b_row - s * STAGE_K;
        uint32_t bytes = (uint32_t)((left < STAGE_K ? left : STAGE_K) * element);
        Stage<TX, TW, TN> *stage = &ring->stage[at];

        barrier_wait(&ring->empty[at], (round & 1) ^ 1);
        if (lane == 0) {
            barrier_expect(&ring->full[at], (uint32_t)rows * bytes + (uint32_t)sizeof stage->x);
            bulk_copy(stage->x, planes + (size_t)s * TX * TN * STAGE_K, sizeof stage->x,
                      &ring->full[at]);
        }
        for (int r = lane; r < BLOCK_N; r += LANES)
            if (col0 + w_column<UP>(r) < job->job.n)
                bulk_copy(stage->w + r * W_LD * element,
                          w_row<UP>(job, col0, r) + (size_t)s * STAGE_K * element, bytes,
                          &ring->full[at]);
    }
}

/* ---- the warpgroups that take products ---- */

/* The thread's registers of its warp's 16 rows of W; what lies at or beyond `left` is zero. */
template <int TW>
static __device__ __forceinline__ void w_registers(uint32_t a[TW][STEPS][4], const unsigned char *w,
                                                   int left)
{
    int row0 = (int)threadIdx.x / LANES * 16 + (int)threadIdx.x % LANES / 4;

#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int i = step * STEP_K + 2 * ((int)threadIdx.x % 4) + 8 * (e / 2);
            int at = (row0 + 8 * (e % 2)) * W_LD + i;

            if (TW == 1) {
                a[0][step][e] = i < left ? ((const uint32_t *)w)[at / 2] : 0;
                continue;
            }
            float2 x = {0, 0};

            if (i < left)
                x = ((const float2 *)w)[at / 2];
#pragma unroll
            for (int term = 0; term < TW; term++) {
                uint32_t both = bf16_pair(x.x, x.y);

                a[term][step][e] = both;
                x.x -= __uint_as_float(both << 16);
                x.y -= __uint_as_float(both & 0xffff0000u);
            }
        }
}

template <int TX, int TW, int TN>
static __device__ __forceinline__ void stage_products(float acc[TN / 8][4],
                                                      const Stage<TX, TW, TN> *stage, int left)
{
    uint32_t a[TW][STEPS][4];

    w_registers<TW>(a, stage->w, left);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
        for (int sum = (TX > TW ? TX : TW) - 1; sum >= 0; sum--)
#pragma unroll
            for (int term = 0; term < TX; term++)
                if (sum >= term && sum - term < TW)
                    wgmma_rs<TN>(acc, a[sum - term][step],
                                 matrix_at(stage->x[term] + step * (STEP_K / CORE) * CORE * CORE,
                                           CORE * CORE * 2, STAGE_K * CORE * 2));
    wgmma_commit();
    wgmma_wait(0);
}

/* Row of x and row of W, within the tile, of a thread's acc[j][e]. */
static __device__ __forceinline__ int x_of(int j, int e)
{
    return j * 8 + 2 * ((int)threadIdx.x % 4) + e % 2;
}

static __device__ __forceinline__ int w_of(int e)
{
    return (int)threadIdx.x / LANES * 16 + (int)threadIdx.x % LANES / 4 + 8 * (e / 2);
}

template <int TN>
static __device__ __forceinline__ void write_rows(const GatedJob *job, float acc[TN / 8][4],
                                                  GemmTile at, int col0)
{
    const GemmJob *g = &job->job;

#pragma unroll
    for (int j = 0; j < TN / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (at.row0 + x_of(j, e) < at.end && col0 + w_of(e) < g->n)
                g->c[(size_t)(at.row0 + x_of(j, e)) * g->c_row + col0 + w_of(e)] = acc[j][e];
}

template <int TN>
static __device__ __forceinline__ void write_gated(const GatedJob *job, float acc[TN / 8][4],
                                                   GemmTile tile, int col0)
{
    const GemmJob *g = &job->job;
    int col = col0 + w_column<1>(w_of(0));

#pragma unroll
    for (int j = 0; j < TN / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float a = acc[j][e], b = acc[j][e + 2];
            size_t at = (size_t)(tile.row0 + x_of(j, e)) * g->c_row + col;

            if (tile.row0 + x_of(j, e) >= tile.end || col >= g->n)
                continue;
            if (job->a)
                job->a[at] = a;
            if (job->b)
                job->b[at] = b;
            g->c[at] = a * sigmoid(a) * b;
        }
}

template <int TX, int TW, int TN, int UP>
static __global__ void __launch_bounds__(CONSUMERS + LANES, 1)
    wgmma_kernel(const GatedJob *jobs, GemmRows rows, const unsigned short *planes, int steps)
{
    typedef Ring<TX, TW, TN> R;
    DYN_SMEM(R, ring);
    GemmTile at = gemm_tile_at(rows, (int)blockIdx.x, TN);
    const GatedJob *job = &jobs[at.job];
    int col0 = (int)blockIdx.y * (UP ? BLOCK_N / 2 : BLOCK_N);
    float acc[TN / 8][4];

    if (at.job < 0 || col0 >= job->job.n)
        return;
    if (threadIdx.x == 0) {
        for (int i = 0; i < R::stages; i++) {
            barrier_init(&ring->full[i], 1);
            barrier_init(&ring->empty[i], CONSUMERS);
        }
        proxy_fence();
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        produce<TX, TW, TN, UP>(ring, job,
                                planes + (size_t)blockIdx.x * (size_t)steps * TX * TN * STAGE_K,
                                col0, steps);
        return;
    }
#pragma unroll
    for (int j = 0; j < TN / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            acc[j][e] = 0;
#pragma unroll 1
    for (int s = 0; s < steps; s++) {
        barrier_wait(&ring->full[s % R::stages], s / R::stages & 1);
        stage_products<TX, TW, TN>(acc, &ring->stage[s % R::stages], job->job.k - s * STAGE_K);
        barrier_arrive(&ring->empty[s % R::stages]);
    }
    acc_settle(acc);
    if (UP)
        write_gated<TN>(job, acc, at, col0);
    else
        write_rows<TN>(job, acc, at, col0);
}

/* ---- host side ---- */

#define HOPPER_ROW(TX, TW, TN, UP)                                                                 \
    {                                                                                              \
        TX, TW, TN, UP, sizeof(Ring<TX, TW, TN>), wgmma_kernel<TX, TW, TN, UP>                     \
    }
#define HOPPER_ROWS(TX, TW, UP) HOPPER_ROW(TX, TW, ROWS_FEW, UP), HOPPER_ROW(TX, TW, ROWS_MANY, UP)

static const struct {
    int x, w, tn, up;
    size_t smem;
    void (*kernel)(const GatedJob *jobs, GemmRows rows, const unsigned short *planes, int steps);
} kernels[] = {HOPPER_ROWS(1, 1, 0), HOPPER_ROWS(2, 2, 0), HOPPER_ROWS(1, 1, 1),
               HOPPER_ROWS(2, 2, 1)};

/* Tiles are as wide as an even share of the rows asks for: bits do not depend on it. */
static void launch(const GatedJob *jobs, GemmRows rows, GemmTerms terms)
{
    const GatedJob *staged = (const GatedJob *)cuda_put(jobs, (size_t)rows.n * sizeof *jobs);
    int tn = rows.rows > ROWS_FEW * rows.n ? ROWS_MANY : ROWS_FEW, up = jobs[0].up != NULL;
    int steps = (jobs[0].job.k + STAGE_K - 1) / STAGE_K, tiles = gemm_tiles_most(rows, tn);
    size_t stage = (size_t)terms.a * (size_t)tn * STAGE_K * sizeof(unsigned short);
    unsigned short *planes = (unsigned short *)cuda_room((size_t)tiles * (size_t)steps * stage);
    dim3 grid((unsigned)tiles,
              blocks_for((size_t)jobs[0].job.n, up ? BLOCK_N / 2 : BLOCK_N, SIZE_MAX));

    LAUNCH(planes_kernel, dim3((unsigned)tiles, (unsigned)steps), PACK_BLOCK, 0, planes, staged,
           rows, tn, terms.a);
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
        if (kernels[i].x == terms.a && kernels[i].w == terms.b && kernels[i].tn == tn &&
            kernels[i].up == up) {
            cuda_allow_smem((const void *)kernels[i].kernel, kernels[i].smem);
            LAUNCH(kernels[i].kernel, grid, CONSUMERS + LANES, kernels[i].smem, staged, rows,
                   planes, steps);
        }
}

void hopper_gemm_fwd(void *y, const void *x, const OpsWeight *w, int rows, GemmPrecision precision)
{
    GatedJob job = {};

    if (w->format > WEIGHT_BF16 || precision == GEMM_EXACT) {
        cuda_gemm_fwd(y, x, w, rows, precision);
        return;
    }
    if (rows == 0 || w->n == 0)
        return;
    job.job = gemm_job_fwd((float *)y, (const float *)x, w, rows);
    cuda_op_begin();
    launch(&job, gemm_rows_all(&job.job), gemm_terms(w->format, precision));
    cuda_op_end("gemm_fwd");
}

void hopper_moe_up_fwd(void *a, void *b, void *act, const void *x, const MoePlan *plan,
                       const MoeWeights *w)
{
    GatedJob jobs[OPS_EXPERTS_MAX];

    if (w->w1[0].format > WEIGHT_BF16) {
        cuda_moe_up_fwd(a, b, act, x, plan, w);
        return;
    }
    if (plan->rows == 0)
        return;
    moe_up_jobs(jobs, a, b, act, x, plan, w);
    cuda_op_begin();
    launch(jobs, gemm_rows_of(plan), gemm_terms(w->w1[0].format, GEMM_ROUNDED));
    cuda_op_end("moe_up_fwd");
}

void hopper_moe_down_fwd(void *y, void *expert_out, const void *act, const void *weights,
                         const MoePlan *plan, const MoeWeights *w)
{
    GatedJob jobs[OPS_EXPERTS_MAX] = {};

    if (w->w2[0].format > WEIGHT_BF16) {
        cuda_moe_down_fwd(y, expert_out, act, weights, plan, w);
        return;
    }
    if (plan->rows == 0)
        return;
    for (int e = 0; e < plan->experts; e++)
        jobs[e].job = gemm_job_fwd((float *)expert_out, (const float *)act, &w->w2[e], plan->rows);
    cuda_op_begin();
    launch(jobs, gemm_rows_of(plan), gemm_terms(w->w2[0].format, GEMM_ROUNDED));
    moe_combine((float *)y, (const float *)expert_out, (const float *)weights, plan, w->w2[0].n);
    cuda_op_end("moe_down_fwd");
}
