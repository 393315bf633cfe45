/* The backward entries of one CPU build, and what its expert pass carries around. */
#pragma once

#include "kernels/cpu/cpu.h"

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
void CPU(gemm_dx)(void *dx, const void *dy, const OpsWeight *w, int rows, int add);
void CPU(gemm_dw)(void *dw, const void *dy, const void *x, int rows, int n, int k);
void CPU(moe_bwd)(void *dx, void *dweights, void *const *dw1, void *const *dw3, void *const *dw2,
                  const void *dy, const void *x, const void *a, const void *b, const void *act,
                  const void *expert_out, const void *weights, const MoePlan *plan,
                  const MoeWeights *w, void *dact, void *dout);
