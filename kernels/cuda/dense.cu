/*
 * Flat ops, norms, embedding and RoPE on a card.
 *
 * Invariants
 *  1. A row's sum runs in one block: each thread ascending over its columns, then a fixed tree.
 *  2. Gradients of norms and embeddings are summed over ascending rows by the thread that owns the
 *     column; of norms in STRANDS interleaved chains, added in order.
 *
 * Not here: products (gemm.cu), the head and the optimiser (train.cu).
 */
#include "kernels/cuda/weight.h"

#define FLAT_BLOCKS_MAX 4096
#define STRANDS         8
#define EMBED_BLOCK     128
#define EMBED_SHARES    32

#define FOR_FLAT(i, n)                                                                             \
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);                        \
         i += (size_t)gridDim.x * blockDim.x)

/* ---- flat ---- */

static __global__ void axpby_kernel(float *y, float a, const float *x, float b, size_t n)
{
    FOR_FLAT (i, n)
        y[i] = a * x[i] + b * y[i];
}

static __global__ void silu_kernel(float *y, const float *z, size_t n)
{
    FOR_FLAT (i, n)
        y[i] = z[i] * sigmoid(z[i]);
}

static __global__ void silu_bwd_kernel(float *dz, const float *dy, const float *z, size_t n)
{
    FOR_FLAT (i, n)
        dz[i] = dy[i] * silu_slope(z[i]);
}

static unsigned flat_blocks(size_t n)
{
    return blocks_for(n, FLAT_BLOCK, FLAT_BLOCKS_MAX);
}

void cuda_axpby(void *y, double a, const void *x, double b, size_t n)
{
    if (n == 0)
        return;
    cuda_op_begin();
    LAUNCH(axpby_kernel, flat_blocks(n), FLAT_BLOCK, 0, (float *)y, (float)a, (const float *)x,
           (float)b, n);
    cuda_op_end("axpby");
}

void cuda_silu_fwd(void *y, const void *z, size_t n)
{
    if (n == 0)
        return;
    cuda_op_begin();
    LAUNCH(silu_kernel, flat_blocks(n), FLAT_BLOCK, 0, (float *)y, (const float *)z, n);
    cuda_op_end("silu_fwd");
}

void cuda_silu_bwd(void *dz, const void *dy, const void *z, size_t n)
{
    if (n == 0)
        return;
    cuda_op_begin();
    LAUNCH(silu_bwd_kernel, flat_blocks(n), FLAT_BLOCK, 0, (float *)dz, (const float *)dy,
           (const float *)z, n);
    cuda_op_end("silu_bwd");
}

/* ---- norms ---- */

/* y = w (.) n, times sigmoid(g) where `g` is not NULL. */
static __global__ void norm_kernel(float *y, float *rstd, const float *x, const float *g,
                                   const float *w, int width, float eps)
{
    __shared__ float parts[SUM_WARPS];
    size_t at = (size_t)blockIdx.x * (size_t)width;
    float sum = 0, r;

    for (int i = (int)threadIdx.x; i < width; i += SUM_BLOCK)
        sum = fmaf(x[at + i], x[at + i], sum);
    r = 1 / sqrtf(block_sum(sum, parts) / (float)width + eps);
    if (rstd && threadIdx.x == 0)
        rstd[blockIdx.x] = r;
    for (int i = (int)threadIdx.x; i < width; i += SUM_BLOCK) {
        float n = w[i] * (x[at + i] * r);

        y[at + i] = g ? n * sigmoid(g[at + i]) : n;
    }
}

/* The gradient of w (.) n at one element. */
static __device__ __forceinline__ float norm_up(const float *dy, const float *g, size_t at)
{
    return g ? dy[at] * sigmoid(g[at]) : dy[at];
}

static __global__ void norm_dx_kernel(float *dx, float *dg, const float *dy, const float *x,
                                      const float *g, const float *rstd, const float *w, int width)
{
    __shared__ float parts[SUM_WARPS];
    size_t at = (size_t)blockIdx.x * (size_t)width;
    float r = rstd[blockIdx.x], mean = 0;

    for (int i = (int)threadIdx.x; i < width; i += SUM_BLOCK)
        mean = fmaf(w[i] * norm_up(dy, g, at + i), x[at + i] * r, mean);
    mean = block_sum(mean, parts) / (float)width;
    for (int i = (int)threadIdx.x; i < width; i += SUM_BLOCK) {
        float n = x[at + i] * r, up = norm_up(dy, g, at + i);

        if (g) {
            float s = sigmoid(g[at + i]);

            dg[at + i] = dy[at + i] * (w[i] * n) * s * (1 - s);
        }
        dx[at + i] = r * (w[i] * up - n * mean);
    }
}

static __global__ void norm_dw_kernel(float *dw, const float *dy, const float *x, const float *g,
                                      const float *rstd, int rows, int width)
{
    __shared__ float parts[STRANDS][LANES];
    int i = (int)(blockIdx.x * LANES + threadIdx.x);
    float sum = 0;

    for (int t = (int)threadIdx.y; i < width && t < rows; t += STRANDS) {
        size_t at = (size_t)t * (size_t)width + (size_t)i;

        sum = fmaf(norm_up(dy, g, at), x[at] * rstd[t], sum);
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || i >= width)
        return;
    for (int s = 1; s < STRANDS; s++)
        sum += parts[s][threadIdx.x];
    dw[i] += sum;
}

static void norm_fwd(void *y, void *rstd, const void *x, const void *g, const void *w, int rows,
                     int width, double eps, const char *op)
{
    if (rows == 0)
        return;
    cuda_op_begin();
    LAUNCH(norm_kernel, (unsigned)rows, SUM_BLOCK, 0, (float *)y, (float *)rstd, (const float *)x,
           (const float *)g, (const float *)w, width, (float)eps);
    cuda_op_end(op);
}

static void norm_bwd(void *dx, void *dg, void *dw, const void *dy, const void *x, const void *g,
                     const void *rstd, const void *w, int rows, int width, const char *op)
{
    if (rows == 0)
        return;
    cuda_op_begin();
    LAUNCH(norm_dx_kernel, (unsigned)rows, SUM_BLOCK, 0, (float *)dx, (float *)dg,
           (const float *)dy, (const float *)x, (const float *)g, (const float *)rstd,
           (const float *)w, width);
    LAUNCH(norm_dw_kernel, (unsigned)(width + LANES - 1) / LANES, dim3(LANES, STRANDS), 0,
           (float *)dw, (const float *)dy, (const float *)x, (const float *)g, (const float *)rstd,
           rows, width);
    cuda_op_end(op);
}

void cuda_rmsnorm_fwd(void *y, void *rstd, const void *x, const void *w, int rows, int width,
                      double eps)
{
    norm_fwd(y, rstd, x, NULL, w, rows, width, eps, "rmsnorm_fwd");
}

void cuda_rmsnorm_bwd(void *dx, void *dw, const void *dy, const void *x, const void *rstd,
                      const void *w, int rows, int width)
{
    norm_bwd(dx, NULL, dw, dy, x, NULL, rstd, w, rows, width, "rmsnorm_bwd");
}

void cuda_gatenorm_fwd(void *y, void *rstd, const void *o, const void *g, const void *w, int rows,
                       int width, double eps)
{
    norm_fwd(y, rstd, o, g, w, rows, width, eps, "gatenorm_fwd");
}

void cuda_gatenorm_bwd(void *do_, void *dg, void *dw, const void *dy, const void *o, const void *g,
                       const void *rstd, const void *w, int rows, int width)
{
    norm_bwd(do_, dg, dw, dy, o, g, rstd, w, rows, width, "gatenorm_bwd");
}

/* ---- embedding, RoPE ---- */

static __global__ void embed_kernel(float *y, Packed table, const int *ids, int width)
{
    for (int i = (int)threadIdx.x; i < width; i += EMBED_BLOCK)
        y[(size_t)blockIdx.x * (size_t)width + i] =
            packed_number(table, (size_t)ids[blockIdx.x], i);
}

/* A block adds the rows of every EMBED_SHARES-th id: no other block touches them. */
static __global__ void embed_bwd_kernel(float *dw, const float *dy, const int *ids, int rows,
                                        int width)
{
    int i = (int)(blockIdx.x * EMBED_BLOCK + threadIdx.x);

    for (int t = 0; i < width && t < rows; t++)
        if (ids[t] % EMBED_SHARES == (int)blockIdx.y)
            dw[(size_t)ids[t] * (size_t)width + i] += dy[(size_t)t * (size_t)width + i];
}

static __global__ void rope_kernel(float *x, const int64_t *positions, const float *inv_freq,
                                   int half, int heads, int dim, float sign)
{
    for (int at = (int)threadIdx.x; at < half * heads; at += EMBED_BLOCK) {
        int i = at % half;
        float *v = x + ((size_t)blockIdx.x * (size_t)heads + (size_t)(at / half)) * (size_t)dim;
        float angle = (float)positions[blockIdx.x] * inv_freq[i];
        float c = cosf(angle), s = sign * sinf(angle), low = v[i], high = v[i + half];

        v[i] = low * c - high * s;
        v[i + half] = high * c + low * s;
    }
}

void cuda_embed_fwd(void *y, const OpsWeight *w, const int *ids, int rows)
{
    size_t bytes = (size_t)rows * sizeof(int);
    const void *staged;

    if (rows == 0)
        return;
    cuda_op_begin();
    staged = cuda_put(ids, bytes);
    LAUNCH(embed_kernel, (unsigned)rows, EMBED_BLOCK, 0, (float *)y, packed_of(w),
           (const int *)staged, w->k);
    cuda_op_end("embed_fwd");
}

void cuda_embed_bwd(void *dw, const void *dy, const int *ids, int rows, int width)
{
    size_t bytes = (size_t)rows * sizeof(int);
    const void *staged;

    if (rows == 0)
        return;
    cuda_op_begin();
    staged = cuda_put(ids, bytes);
    LAUNCH(embed_bwd_kernel, dim3(blocks_for((size_t)width, EMBED_BLOCK, SIZE_MAX), EMBED_SHARES),
           EMBED_BLOCK, 0, (float *)dw, (const float *)dy, (const int *)staged, rows, width);
    cuda_op_end("embed_bwd");
}

void cuda_rope(void *x, const int64_t *positions, const double *inv_freq, int half, int rows,
               int heads, int dim, int sign)
{
    size_t bytes = (size_t)rows * sizeof(int64_t);
    const void *where, *rates;
    float freq[OPS_DIM_MAX];

    if (rows == 0 || half == 0)
        return;
    for (int i = 0; i < half; i++)
        freq[i] = (float)inv_freq[i];
    cuda_op_begin();
    where = cuda_put(positions, bytes);
    rates = cuda_put(freq, (size_t)half * sizeof *freq);
    LAUNCH(rope_kernel, (unsigned)rows, EMBED_BLOCK, 0, (float *)x, (const int64_t *)where,
           (const float *)rates, half, heads, dim, (float)sign);
    cuda_op_end("rope");
}
