/*
 * Row-wise ops: norms, activations, the residual sum.
 *
 * Invariants
 *  1. A sum over a row runs in W lanes over ascending columns, then over the lanes in order.
 *  2. Rows are independent; threads split the rows.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

static float inverse_rms(const float *x, int width, double eps)
{
    vf sum = {0};

    for (int i = 0; i < width; i += W) {
        vf v = vload_n(x + i, width - i);

        sum = vfma(v, v, sum);
    }
    return 1.0f / sqrtf(vsum(sum) / (float)width + (float)eps);
}

void CPU(rmsnorm_fwd)(void *y, void *rstd, const void *x, const void *w, int rows, int width,
                      double eps)
{
#pragma omp parallel for schedule(static) if ((double)rows * width > CPU_PARALLEL_WORK)
    for (int t = 0; t < rows; t++) {
        const float *from = (const float *)x + (size_t)t * width;
        float *to = (float *)y + (size_t)t * width;
        float r = inverse_rms(from, width, eps);

        if (rstd)
            ((float *)rstd)[t] = r;
        for (int i = 0; i < width; i += W)
            vstore_n(to + i,
                     vload_n((const float *)w + i, width - i) * (vload_n(from + i, width - i) * r),
                     width - i);
    }
}

void CPU(gatenorm_fwd)(void *y, void *rstd, const void *o, const void *g, const void *w, int rows,
                       int width, double eps)
{
#pragma omp parallel for schedule(static) if ((double)rows * width > CPU_PARALLEL_WORK / 8)
    for (int t = 0; t < rows; t++) {
        const float *from = (const float *)o + (size_t)t * width;
        const float *gate = (const float *)g + (size_t)t * width;
        float *to = (float *)y + (size_t)t * width;
        float r = inverse_rms(from, width, eps);

        if (rstd)
            ((float *)rstd)[t] = r;
        for (int i = 0; i < width; i += W) {
            vf n = vload_n((const float *)w + i, width - i) * (vload_n(from + i, width - i) * r);

            vstore_n(to + i, n * vsigmoid(vload_n(gate + i, width - i)), width - i);
        }
    }
}

/* Elements are split into runs of this many, so that every run is whole vectors but the last. */
#define RUN 4096

void CPU(axpby)(void *y, double a, const void *x, double b, size_t n)
{
    int runs = (int)((n + RUN - 1) / RUN);
    float fa = (float)a, fb = (float)b;

#pragma omp parallel for schedule(static) if ((double)n > CPU_PARALLEL_WORK)
    for (int run = 0; run < runs; run++) {
        size_t end = (size_t)(run + 1) * RUN < n ? (size_t)(run + 1) * RUN : n;

        for (size_t i = (size_t)run * RUN; i < end; i += W) {
            int left = end - i < W ? (int)(end - i) : W;
            vf v = vload_n((const float *)x + i, left), u = vload_n((const float *)y + i, left);

            vstore_n((float *)y + i, vfma(vset(fa), v, u * fb), left);
        }
    }
}

void CPU(silu_fwd)(void *y, const void *z, size_t n)
{
    int runs = (int)((n + RUN - 1) / RUN);

#pragma omp parallel for schedule(static) if ((double)n > CPU_PARALLEL_WORK / 8)
    for (int run = 0; run < runs; run++) {
        size_t end = (size_t)(run + 1) * RUN < n ? (size_t)(run + 1) * RUN : n;

        for (size_t i = (size_t)run * RUN; i < end; i += W) {
            int left = end - i < W ? (int)(end - i) : W;
            vf v = vload_n((const float *)z + i, left);

            vstore_n((float *)y + i, v * vsigmoid(v), left);
        }
    }
}
