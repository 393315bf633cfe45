/*
 * Log-probabilities over the vocabulary, the optimiser and the norm of gradients on a card.
 *
 * Invariants
 *  1. A row's sums run in one block, as in dense.cu.
 *  2. sumsq adds SUMSQ_PARTS partial sums in order, whatever the card.
 *
 * Not here: the head's product (gemm.cu); logits are as long as the caller's slice of rows.
 */
#include "kernels/cuda/cuda.h"

#define SUMSQ_PARTS 256

static __global__ void logprob_kernel(float *logp, float *lse, float *entropy, const float *logits,
                                      const int *ids, int vocab, int valid, float beta)
{
    __shared__ float parts[3][SUM_WARPS];
    const float *z = logits + (size_t)blockIdx.x * (size_t)vocab;
    float top = -INFINITY, sum = 0, mean = 0, all;

    for (int j = (int)threadIdx.x; j < valid; j += SUM_BLOCK)
        top = fmaxf(top, z[j] * beta);
    top = block_max(top, parts[0]);
    for (int j = (int)threadIdx.x; j < valid; j += SUM_BLOCK) {
        float e = expf(z[j] * beta - top);

        sum += e;
        mean = fmaf(e, z[j] * beta, mean);
    }
    sum = block_sum(sum, parts[1]);
    mean = block_sum(mean, parts[2]);
    if (threadIdx.x > 0)
        return;
    all = top + logf(sum);
    lse[blockIdx.x] = all;
    logp[blockIdx.x] = z[ids[blockIdx.x]] * beta - all;
    if (entropy)
        entropy[blockIdx.x] = all - mean / sum;
}

static __global__ void logprob_bwd_kernel(float *logits, const float *lse, const int *ids,
                                          const float *coef, const float *bonus,
                                          const float *entropy, int vocab, int valid, float beta)
{
    size_t t = blockIdx.x;
    float *z = logits + t * (size_t)vocab, c = coef[t] * beta;
    float b = bonus ? bonus[t] * beta : 0, h = bonus ? entropy[t] : 0;

    for (int j = (int)threadIdx.x; j < vocab; j += SUM_BLOCK) {
        float log_p = z[j] * beta - lse[t];

        z[j] = j < valid ? expf(log_p) * (c + b * (log_p + h)) - (j == ids[t] ? c : 0) : 0;
    }
}

void cuda_logprob_fwd(void *logp, void *lse, void *entropy, const void *logits, const int *ids,
                      int rows, int vocab, int valid, double temperature)
{
    size_t bytes = (size_t)rows * sizeof(int);
    const void *staged;

    if (rows == 0)
        return;
    cuda_begin(stage_size(bytes), 0);
    staged = cuda_put(ids, bytes);
    cuda_send();
    LAUNCH(logprob_kernel, (unsigned)rows, SUM_BLOCK, 0, cuda_stream(), (float *)logp, (float *)lse,
           (float *)entropy, (const float *)logits, (const int *)staged, vocab, valid,
           (float)(1 / temperature));
    cuda_end("logprob_fwd");
}

void cuda_logprob_bwd(void *logits, const void *lse, const int *ids, const void *coef,
                      const void *bonus, const void *entropy, int rows, int vocab, int valid,
                      double temperature)
{
    size_t bytes = (size_t)rows * sizeof(int);
    const void *staged;

    if (rows == 0)
        return;
    cuda_begin(stage_size(bytes), 0);
    staged = cuda_put(ids, bytes);
    cuda_send();
    LAUNCH(logprob_bwd_kernel, (unsigned)rows, SUM_BLOCK, 0, cuda_stream(), (float *)logits,
           (const float *)lse, (const int *)staged, (const float *)coef, (const float *)bonus,
           (const float *)entropy, vocab, valid, (float)(1 / temperature));
    cuda_end("logprob_bwd");
}

/* c1, c2: 1 - beta^step; keep: 1 - lr * weight_decay. */
typedef struct {
    float lr, b1, b2, eps, keep, c1, c2;
} AdamwRates;

static __global__ void adamw_kernel(float *w, float *m, float *v, const float *grad, size_t n,
                                    AdamwRates r)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        float g = grad[i], first = r.b1 * m[i] + (1 - r.b1) * g;
        float second = r.b2 * v[i] + (1 - r.b2) * g * g;

        m[i] = first;
        v[i] = second;
        w[i] = w[i] * r.keep - r.lr * (first / r.c1) / (sqrtf(second / r.c2) + r.eps);
    }
}

void cuda_adamw(void *w, void *m, void *v, const void *grad, size_t n, const AdamwStep *s)
{
    float lr = (float)s->lr;
    AdamwRates rates = {lr,
                        (float)s->beta1,
                        (float)s->beta2,
                        (float)s->eps,
                        1 - lr * (float)s->weight_decay,
                        (float)(1 - pow(s->beta1, (double)s->step)),
                        (float)(1 - pow(s->beta2, (double)s->step))};

    if (n == 0)
        return;
    cuda_begin(0, 0);
    LAUNCH(adamw_kernel, blocks_for(n, FLAT_BLOCK, 4096), FLAT_BLOCK, 0, cuda_stream(), (float *)w,
           (float *)m, (float *)v, (const float *)grad, n, rates);
    cuda_end("adamw");
}

/* Part p takes the elements p * SUM_BLOCK + thread, then every SUMSQ_PARTS * SUM_BLOCK on. */
static __global__ void sumsq_kernel(double *parts, const float *x, size_t n)
{
    __shared__ double sums[SUM_BLOCK];
    double sum = 0;

    for (size_t i = (size_t)blockIdx.x * SUM_BLOCK + threadIdx.x; i < n;
         i += (size_t)SUMSQ_PARTS * SUM_BLOCK)
        sum += (double)x[i] * (double)x[i];
    sums[threadIdx.x] = sum;
    for (unsigned half = SUM_BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        parts[blockIdx.x] = sums[0];
}

double cuda_sumsq(const void *x, size_t n)
{
    double parts[SUMSQ_PARTS], sum = 0;
    void *room;

    cuda_begin(0, stage_size(sizeof parts));
    room = cuda_room(sizeof parts);
    LAUNCH(sumsq_kernel, SUMSQ_PARTS, SUM_BLOCK, 0, cuda_stream(), (double *)room, (const float *)x,
           n);
    cuda_take(parts, room, sizeof parts);
    cuda_end("sumsq");
    for (int i = 0; i < SUMSQ_PARTS; i++)
        sum += parts[i];
    return sum;
}
