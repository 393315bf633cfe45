/*
 * The backward products with packed weights. The other backward ops need no packed matrix and are
 * the oracle's (table.c).
 *
 * Invariants
 *  1. dx[t, k] sums over ascending panels in lanes, then over the lanes: independent of the rows.
 *  2. dw[n, k] sums over ascending rows; threads split n, so no element has two writers.
 */
#include "kernels/cpu/train.h"

#include "kernels/cpu/vec.h"

INLINE vf load_panel(const OpsWeight *w, size_t at)
{
    return w->format == WEIGHT_BF16 ? vload_bf16((const uint16_t *)w->data + at)
                                    : vload((const float *)w->data + at);
}

/* One row of dx; dy [n] is padded with zeros by part-wise loads. */
static void row_dx(float *dx, const float *dy, const OpsWeight *w, int add)
{
    for (int k = 0; k < w->k; k++) {
        vf sum = {0};

        for (int n = 0; n < w->n; n += W) {
            size_t at = (size_t)(n / PANEL) * w->k * PANEL + (size_t)k * PANEL + n % PANEL;

            sum = vfma(vload_n(dy + n, w->n - n), load_panel(w, at), sum);
        }
        dx[k] = vsum(sum) + (add ? dx[k] : 0);
    }
}

void CPU(gemm_dx)(void *dx, const void *dy, const OpsWeight *w, int rows, int add)
{
#pragma omp parallel for schedule(static) if ((double)rows * w->n * w->k > CPU_PARALLEL_WORK)
    for (int t = 0; t < rows; t++)
        row_dx((float *)dx + (size_t)t * w->k, (const float *)dy + (size_t)t * w->n, w, add);
}

void CPU(gemm_dw)(void *dw, const void *dy, const void *x, int rows, int n, int k)
{
#pragma omp parallel for schedule(static) if ((double)rows * n * k > CPU_PARALLEL_WORK)
    for (int i = 0; i < n; i++)
        for (int t = 0; t < rows; t++) {
            const float *from = (const float *)x + (size_t)t * k;
            float *to = (float *)dw + (size_t)i * k;
            vf g = vset(((const float *)dy)[(size_t)t * n + i]);

            for (int j = 0; j < k; j += W)
                vstore_n(to + j, vfma(g, vload_n(from + j, k - j), vload_n(to + j, k - j)), k - j);
        }
}

/* ---- experts ---- */

/* dact of the slots of one expert: W2^T (weight dy), then da and db beside each other. */
static void expert_rows(const ExpertBwd *b, int e, int first, int rows)
{
    const OpsWeight *w1 = &b->w->w1[e], *w3 = &b->w->w3[e], *w2 = &b->w->w2[e];
    int width = w2->n, inner = w2->k;

    for (int r = first; r < first + rows; r++) {
        int choice = b->plan->source[r];
        const float *up = b->dy + (size_t)(choice / b->plan->topk) * width;
        float *dout = b->dout + (size_t)r * width, *da = b->dact + (size_t)r * 2 * inner;
        float *db = da + inner;
        vf dot = {0};

        for (int i = 0; i < width; i += W) {
            vf g = vload_n(up + i, width - i);

            dot = vfma(g, vload_n(b->expert_out + (size_t)r * width + i, width - i), dot);
            vstore_n(dout + i, g * b->weights[choice], width - i);
        }
        b->dweights[choice] = vsum(dot);
        row_dx(da, dout, w2, 0);
        for (int f = 0; f < inner; f += W) {
            size_t at = (size_t)r * inner + f;
            vf gt = vload_n(da + f, inner - f), a = vload_n(b->a + at, inner - f);
            vf s = vsigmoid(a);

            vstore_n(db + f, gt * a * s, inner - f);
            vstore_n(da + f, gt * vload_n(b->b + at, inner - f) * s * (1 + a * (1 - s)), inner - f);
        }
        /* dout is spent once dw2 has it; the row's dx goes there until all are added up */
        CPU(gemm_dw)(b->dw2[e], dout, b->act + (size_t)r * inner, 1, width, inner);
        CPU(gemm_dw)
        (b->dw1[e], da, b->x + (size_t)(choice / b->plan->topk) * width, 1, inner, width);
        CPU(gemm_dw)
        (b->dw3[e], db, b->x + (size_t)(choice / b->plan->topk) * width, 1, inner, width);
        row_dx(dout, da, w1, 0);
        row_dx(dout, db, w3, 1);
    }
}

void CPU(moe_bwd)(void *dx, void *dweights, void *const *dw1, void *const *dw3, void *const *dw2,
                  const void *dy, const void *x, const void *a, const void *b, const void *act,
                  const void *expert_out, const void *weights, const MoePlan *plan,
                  const MoeWeights *w, void *dact, void *dout)
{
    int width = w->w2[0].n, rows = plan->rows / plan->topk;
    ExpertBwd all = {.dweights = dweights,
                     .dact = dact,
                     .dout = dout,
                     .dw1 = dw1,
                     .dw3 = dw3,
                     .dw2 = dw2,
                     .dy = dy,
                     .x = x,
                     .a = a,
                     .b = b,
                     .act = act,
                     .expert_out = expert_out,
                     .weights = weights,
                     .plan = plan,
                     .w = w};

#pragma omp parallel for schedule(static, 1)
    for (int e = 0; e < plan->experts; e++)
        expert_rows(&all, e, plan->offsets[e], plan->offsets[e + 1] - plan->offsets[e]);
    for (int t = 0; t < rows; t++)
        for (int i = 0; i < width; i += W) {
            vf sum = {0};

            for (int c = 0; c < plan->topk; c++) {
                int r = plan->slot[t * plan->topk + plan->order[t * plan->topk + c]];

                sum += vload_n((const float *)dout + (size_t)r * width + i, width - i);
            }
            vstore_n((float *)dx + (size_t)t * width + i, sum, width - i);
        }
}
