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

void CPU(gemm_dx)(void *dx, const void *dy, const OpsWeight *w, int rows, int add);
void CPU(gemm_dw)(void *dw, const void *dy, const void *x, int rows, int n, int k);
void CPU(moe_bwd)(void *dx, void *dweights, void *const *dw1, void *const *dw3, void *const *dw2,
                  const void *dy, const void *x, const void *a, const void *b, const void *act,
                  const void *expert_out, const void *weights, const MoePlan *plan,
                  const MoeWeights *w, void *dact, void *dout);
