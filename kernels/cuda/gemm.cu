/*
 * The products with packed weights, on tensor cores.
 *
 * How many bf16 terms (product.h) a side has: weights in bf16 or codes one, in f32 two, three where
 * the product is exact; activations one where both they may be rounded and the weights have one,
 * else as many as f32 weights; gradients two.
 *
 * Invariants
 *  1. One kernel for any number of rows: decode and prefill take the same sums.
 *
 * Not here: the tile itself (product.h), how weights lie (weight.h), experts (moe.cu).
 */
#include "kernels/cuda/gemm.h"

/* ---- the kernel ---- */

template <int TA, int TB>
static __device__ __forceinline__ void gemm_tile(const GemmJob *job, GemmTile at, int col0)
{
    DYN_SMEM(void, smem);
    int m, n;
    Acc acc;

    gemm_acc<TA, TB>(acc, (Tile<TA, TB> *)smem, job, at, col0, &m, &n);
    FOR_ACC (i, j, e, m, n) {
        float *to = job->c + (size_t)(at.row0 + acc_row(i, e)) * job->c_row + col0 + acc_col(j, e);

        *to = job->add ? *to + acc[i][j][e] : acc[i][j][e];
    }
}

#define GEMM_KERNEL(TA, TB)                                                                        \
    static __global__ void __launch_bounds__(TILE_BLOCK)                                           \
        gemm_##TA##TB##_kernel(const GemmJob *jobs, GemmRows rows)                                 \
    {                                                                                              \
        GemmTile at = gemm_tile_at(rows, (int)blockIdx.x, TILE_M);                                 \
                                                                                                   \
        if (at.job >= 0)                                                                           \
            gemm_tile<TA, TB>(&jobs[at.job], at, (int)blockIdx.y * TILE_N);                        \
    }

GEMM_KERNEL(1, 1)
GEMM_KERNEL(2, 1)
GEMM_KERNEL(2, 2)
GEMM_KERNEL(3, 1)
GEMM_KERNEL(3, 3)

#define GEMM_ROW(TA, TB)                                                                           \
    {                                                                                              \
        TA, TB, sizeof(Tile<TA, TB>), gemm_##TA##TB##_kernel                                       \
    }

static const struct {
    int a, b;
    size_t smem;
    void (*kernel)(const GemmJob *jobs, GemmRows rows);
} kernels[] = {GEMM_ROW(1, 1), GEMM_ROW(2, 1), GEMM_ROW(2, 2), GEMM_ROW(3, 1), GEMM_ROW(3, 3)};

void gemm_launch(const GemmJob *jobs, GemmRows rows, GemmTerms terms)
{
    const GemmJob *staged = (const GemmJob *)cuda_put(jobs, (size_t)rows.n * sizeof *jobs);
    dim3 grid((unsigned)gemm_tiles_most(rows, TILE_M),
              blocks_for((size_t)jobs[0].n, TILE_N, SIZE_MAX));

    if (rows.rows == 0 || jobs[0].n == 0)
        return;
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++)
        if (kernels[i].a == terms.a && kernels[i].b == terms.b)
            LAUNCH(kernels[i].kernel, grid, TILE_BLOCK, kernels[i].smem, staged, rows);
}

/* ---- the ops ---- */

GemmTerms gemm_terms(WeightFormat format, GemmPrecision precision)
{
    int exact = precision == GEMM_EXACT;
    GemmTerms bf16 = {exact ? 3 : 1, 1}, real = {exact ? 3 : 2, exact ? 3 : 2};

    return format == WEIGHT_REAL ? real : bf16;
}

static void gemm_one(const GemmJob *job, GemmTerms terms, const char *op)
{
    cuda_op_begin();
    gemm_launch(job, gemm_rows_all(job), terms);
    cuda_op_end(op);
}

void cuda_gemm_fwd(void *y, const void *x, const OpsWeight *w, int rows, GemmPrecision precision)
{
    GemmJob job = gemm_job_fwd((float *)y, (const float *)x, w, rows);

    gemm_one(&job, gemm_terms(w->format, precision), "gemm_fwd");
}

void cuda_gemm_dx(void *dx, const void *dy, const OpsWeight *w, int rows, int add)
{
    GemmJob job = gemm_job_dx((float *)dx, (const float *)dy, w, rows, add);

    gemm_one(&job, gemm_terms_dx(w->format), "gemm_dx");
}

void cuda_gemm_dw(void *dw, const void *dy, const void *x, const OpsWeight *w, int rows)
{
    GemmJob job = gemm_job_dw((float *)dw, (const float *)dy, (const float *)x, rows, w->n, w->k);

    gemm_one(&job, gemm_terms_dw(), "gemm_dw");
}
