/*
 * The optimiser and the norm of gradients on a card.
 *
 * Invariants
 *  1. sumsq adds SUMSQ_PARTS partial sums in order, whatever the card.
 *
 * Not here: gradients.
 */
#include "kernels/cuda/cuda.h"

#define SUMSQ_PARTS 256

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
    cuda_op_begin();
    LAUNCH(adamw_kernel, blocks_for(n, FLAT_BLOCK, 4096), FLAT_BLOCK, 0, (float *)w, (float *)m,
           (float *)v, (const float *)grad, n, rates);
    cuda_op_end("adamw");
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

    cuda_op_begin();
    room = cuda_room(sizeof parts);
    LAUNCH(sumsq_kernel, SUMSQ_PARTS, SUM_BLOCK, 0, (double *)room, (const float *)x, n);
    cuda_take(parts, room, sizeof parts);
    cuda_op_end("sumsq");
    for (int i = 0; i < SUMSQ_PARTS; i++)
        sum += parts[i];
    return sum;
}
