/* The backward entries of one CPU build, and what its expert pass carries around. */
#pragma once

#include "kernels/cpu/cpu.h"

/* Rows of a call, or of one expert: sorted slots, or where they were gathered from. */
typedef struct {
    const float *at;
    const int *source; /* NULL: row i is row i */
    int topk;          /* else: source[i] / topk */
} Rows;

static inline const float *row_at(const Rows *rows, int i, int width)
{
    return rows->at + (size_t)(rows->source ? rows->source[i] / rows->topk : i) * (size_t)width;
}

/* Products with bf16 weights by tiles of AMX (amx_bwd.c), at most AMX_COLS columns from k on:
 * dx [rows, w->k] = dy W, or adds it; dw += dy^T x. */
#define AMX_COLS 256
void CPU(amx_dx)(float *dx, const float *dy, int rows, const OpsWeight *w, int k, int cols,
                 int add);
void CPU(amx_dw)(float *dw, const Rows *dy, const Rows *x, int rows, const OpsWeight *w, int k,
                 int cols);

/* The arguments of moe_bwd, as ops.h names them. */
typedef struct {
    float *dweights, *dact, *dout;
    void *const *dw1, *const *dw3, *const *dw2;
    const float *dy, *x, *a, *b, *act, *expert_out, *weights;
    const MoePlan *plan;
    const MoeWeights *w;
} ExpertBwd;

void CPU(rmsnorm_bwd)(void *dx, void *dw, const void *dy, const void *x, const void *rstd,
                      const void *w, int rows, int width);
void CPU(gatenorm_bwd)(void *do_, void *dg, void *dw, const void *dy, const void *o, const void *g,
                       const void *rstd, const void *w, int rows, int width);
void CPU(silu_bwd)(void *dz, const void *dy, const void *z, size_t n);
void CPU(head_bwd)(void *dx, void *dw, const void *x, const OpsWeight *w, const HeadGrad *grad,
                   int rows, int valid, double temperature, void *scratch);
void CPU(adamw)(void *w, void *m, void *v, const void *grad, size_t n, const AdamwStep *step);
double CPU(sumsq)(const void *x, size_t n);
void CPU(attn_bwd)(void *dq, void *dk, void *dv, const void *do_, const void *o, const void *lse,
                   const void *q, const OpsSpan *spans, const OpsSpanGrad *grads, int n_spans,
                   size_t page_offset, OpsHeads heads);
void CPU(lightning_bwd)(void *dqkv, const void *do_, const void *qkv, const OpsSpan *spans,
                        const OpsSpanGrad *grads, int n_spans, size_t state_offset,
                        size_t open_offset, const void *decay, OpsHeads heads, void *scratch);
/* gemm_dx and gemm_dw, which may round where they may. */
void CPU(product_dx)(void *dx, const void *dy, const OpsWeight *w, int rows, int add,
                     GemmPrecision precision);
void CPU(product_dw)(void *dw, const void *dy, const void *x, const OpsWeight *w, int rows,
                     GemmPrecision precision);
void CPU(gemm_dx)(void *dx, const void *dy, const OpsWeight *w, int rows, int add);
void CPU(gemm_dw)(void *dw, const void *dy, const void *x, const OpsWeight *w, int rows);
void CPU(moe_bwd)(void *dx, void *dweights, void *const *dw1, void *const *dw3, void *const *dw2,
                  const void *dy, const void *x, const void *a, const void *b, const void *act,
                  const void *expert_out, const void *weights, const MoePlan *plan,
                  const MoeWeights *w, void *dact, void *dout);
