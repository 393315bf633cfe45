/*
 * The reverse of the row-wise ops, and the optimiser.
 *
 * Invariants
 *  1. A sum over a row runs in W lanes over ascending columns, then over the lanes in order; a
 *     gradient of weights is one chain over ascending rows.
 *  2. Threads split rows, or columns, or runs of elements whose length is fixed: no number depends
 *     on how many there are.
 */
#include "kernels/cpu/train.h"

#include "kernels/cpu/vec.h"

#define COLUMNS 256 /* of a gradient of weights, by one thread */
#define RUN     4096

/* dw[i] += sum_t dy[t][i] x[t][i] r[t] for COLUMNS columns from `first` on. */
static void columns_dw(float *dw, const float *dy, const float *x, const float *r, int rows,
                       int width, int first)
{
    int end = first + COLUMNS < width ? first + COLUMNS : width;

    for (int t = 0; t < rows; t++)
        for (int i = first; i < end; i += W) {
            size_t at = (size_t)t * (size_t)width + (size_t)i;
            vf n = vload_n(x + at, end - i) * r[t];

            vstore_n(dw + i, vfma(vload_n(dy + at, end - i), n, vload_n(dw + i, end - i)), end - i);
        }
}

/* dx = r (w dy - n mean(w dy n)), n = x r; in place allowed in dy. */
static void row_dx(float *dx, const float *dy, const float *x, float r, const float *w, int width)
{
    vf sum = {0};
    float mean;

    for (int i = 0; i < width; i += W)
        sum = vfma(vload_n(w + i, width - i) * vload_n(dy + i, width - i),
                   vload_n(x + i, width - i) * r, sum);
    mean = vsum(sum) / (float)width;
    for (int i = 0; i < width; i += W) {
        vf u = vload_n(w + i, width - i) * vload_n(dy + i, width - i);

        vstore_n(dx + i, (u - vload_n(x + i, width - i) * r * mean) * r, width - i);
    }
}

/* Both; dy and dx may be one array. */
static void norm_bwd(float *dx, float *dw, const float *dy, const float *x, const float *rstd,
                     const float *w, int rows, int width)
{
    int parts = (width + COLUMNS - 1) / COLUMNS;

#pragma omp parallel if ((double)rows * width > CPU_PARALLEL_WORK)
    {
#pragma omp for schedule(static)
        for (int part = 0; part < parts; part++)
            columns_dw(dw, dy, x, rstd, rows, width, part * COLUMNS);
#pragma omp for schedule(static)
        for (int t = 0; t < rows; t++) {
            size_t at = (size_t)t * (size_t)width;

            row_dx(dx + at, dy + at, x + at, rstd[t], w, width);
        }
    }
}

void CPU(rmsnorm_bwd)(void *dx, void *dw, const void *dy, const void *x, const void *rstd,
                      const void *w, int rows, int width)
{
    norm_bwd(dx, dw, dy, x, rstd, w, rows, width);
}

/* The gradients of the gate, and of the norm's output. */
static void gate_row(float *dg, float *dn, const float *dy, const float *o, const float *g, float r,
                     const float *w, int width)
{
    for (int i = 0; i < width; i += W) {
        vf s = vsigmoid(vload_n(g + i, width - i)), up = vload_n(dy + i, width - i);
        vf n = vload_n(w + i, width - i) * (vload_n(o + i, width - i) * r);

        vstore_n(dg + i, up * n * s * (1 - s), width - i);
        vstore_n(dn + i, up * s, width - i);
    }
}

void CPU(gatenorm_bwd)(void *do_, void *dg, void *dw, const void *dy, const void *o, const void *g,
                       const void *rstd, const void *w, int rows, int width)
{
#pragma omp parallel for schedule(static) if ((double)rows * width > CPU_PARALLEL_WORK / 8)
    for (int t = 0; t < rows; t++) {
        size_t at = (size_t)t * (size_t)width;

        gate_row((float *)dg + at, (float *)do_ + at, (const float *)dy + at, (const float *)o + at,
                 (const float *)g + at, ((const float *)rstd)[t], w, width);
    }
    norm_bwd(do_, dw, do_, o, rstd, w, rows, width);
}

static int runs_of(size_t n)
{
    return (int)((n + RUN - 1) / RUN);
}

static size_t run_end(int run, size_t n)
{
    return (size_t)(run + 1) * RUN < n ? (size_t)(run + 1) * RUN : n;
}

void CPU(silu_bwd)(void *dz, const void *dy, const void *z, size_t n)
{
#pragma omp parallel for schedule(static) if ((double)n > CPU_PARALLEL_WORK / 8)
    for (int run = 0; run < runs_of(n); run++)
        for (size_t i = (size_t)run * RUN, end = run_end(run, n); i < end; i += W) {
            int left = end - i < W ? (int)(end - i) : W;
            vf v = vload_n((const float *)z + i, left), s = vsigmoid(v);
            vf up = vload_n((const float *)dy + i, left);

            vstore_n((float *)dz + i, up * s * (1 + v * (1 - s)), left);
        }
}

void CPU(adamw)(void *w, void *m, void *v, const void *grad, size_t n, const AdamwStep *s)
{
    float b1 = (float)s->beta1, b2 = (float)s->beta2, lr = (float)s->lr, eps = (float)s->eps;
    float c1 = (float)(1 - pow(s->beta1, (double)s->step));
    float c2 = (float)(1 - pow(s->beta2, (double)s->step));
    float keep = 1 - lr * (float)s->weight_decay;

#pragma omp parallel for schedule(static) if ((double)n > CPU_PARALLEL_WORK / 8)
    for (int run = 0; run < runs_of(n); run++)
        for (size_t i = (size_t)run * RUN, end = run_end(run, n); i < end; i += W) {
            int left = end - i < W ? (int)(end - i) : W;
            float *x = (float *)w + i, *first = (float *)m + i, *second = (float *)v + i;
            vf g = vload_n((const float *)grad + i, left);
            vf a = vload_n(first, left) * b1 + g * (1 - b1);
            vf b = vload_n(second, left) * b2 + g * g * (1 - b2);

            vstore_n(first, a, left);
            vstore_n(second, b, left);
            vstore_n(x, vload_n(x, left) * keep - (a / c1) / (vsqrt(b / c2) + eps) * lr, left);
        }
}

typedef double vd __attribute__((vector_size(8 * W)));

/* Elements are shared out by n alone; the shares are added up in order. */
#define SHARES 64

double CPU(sumsq)(const void *x, size_t n)
{
    size_t share = (n / SHARES + W) / W * W;
    double sums[SHARES], sum = 0;

#pragma omp parallel for schedule(static) if ((double)n > CPU_PARALLEL_WORK)
    for (int part = 0; part < SHARES; part++) {
        size_t first = (size_t)part * share < n ? (size_t)part * share : n;
        size_t end = first + share < n ? first + share : n;
        vd lanes = {0};

        for (size_t i = first; i < end; i += W) {
            vf f = vload_n((const float *)x + i, end - i < W ? (int)(end - i) : W);
            vd d = __builtin_convertvector(f, vd);

            lanes += d * d;
        }
        sums[part] = 0;
        for (int l = 0; l < W; l++)
            sums[part] += lanes[l];
    }
    for (int part = 0; part < SHARES; part++)
        sum += sums[part];
    return sum;
}
