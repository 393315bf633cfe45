/*
 * What the files of one CPU build share. Each build defines its own copy of every symbol:
 * CPU(name) adds the instruction set, so that several live in one program.
 */
#pragma once

#include "kernels/ops.h"

#define CPU_PASTE2(name, isa) cpu_##name##_##isa
#define CPU_PASTE(name, isa)  CPU_PASTE2(name, isa)
#define CPU(name)             CPU_PASTE(name, CPU_ISA)

/* Work below this many multiply-adds is not worth waking another thread for. */
#define CPU_PARALLEL_WORK 65536.0

/* Columns of one packed panel. */
#define PANEL (2 * CPU_WIDTH)

/* Inputs of a bf16 panel: a multiple of what a step of the build's product takes. */
#ifdef CPU_AMX
#define K_PAD 32
#else
#define K_PAD 2
#endif

/* Inputs of a panel of numbers, and its elements. */
static inline size_t cpu_padded_k(WeightFormat format, int k)
{
    return format == WEIGHT_BF16 ? ((size_t)k + K_PAD - 1) / K_PAD * K_PAD : (size_t)k;
}

static inline size_t cpu_panel_elements(const OpsWeight *w)
{
    return cpu_padded_k(w->format, w->k) * PANEL;
}

/* Panels of quant.h's formats (quant.c); what widen gives is rounded to bf16. */
size_t CPU(quant_bytes)(WeightFormat format, int n, int k);
void CPU(quant_pack)(const OpsWeight *w, const void *rows);
void CPU(quant_widen)(float *to, const OpsWeight *w, int panel, int k, int kn);
float CPU(quant_at)(const OpsWeight *w, int n, int k);

size_t CPU(weight_bytes)(WeightFormat format, int n, int k);
void CPU(weight_pack)(const OpsWeight *w, const void *rows);
void CPU(weight_unpack)(void *rows, const OpsWeight *w);
void CPU(embed_fwd)(void *y, const OpsWeight *w, const int *ids, int rows);
void CPU(gemm_fwd)(void *y, const void *x, const OpsWeight *w, int rows, GemmPrecision precision);

/* Rows and panels of a task: as many rows as keep their inputs in the second-level cache beside a
 * panel. Rounding activations is worth more panels. */
#ifdef CPU_AMX
#define ROWS_MAX   192
#define PANELS_MAX 8
#else
#define ROWS_MAX   96
#define PANELS_MAX 4
#endif

/* `panels` panels from `panel` on of x[i] W^T for `rows` <= ROWS_MAX rows, which are given by
 * pointer so that they may be gathered. Rows of out, `ldo` apart, begin with the first of those
 * columns. */
void CPU(gemm_panels)(float *out, size_t ldo, const float *const *x, int rows, const OpsWeight *w,
                      int panel, int panels, GemmPrecision precision);
/* The same of bf16 panels by tiles of AMX, activations rounded (amx.c), in place of what is in out
 * or added to it; and that at best. */
void CPU(amx_panels)(float *out, size_t ldo, const float *const *x, int rows, const OpsWeight *w,
                     int panel, int panels, int add);
double CPU(amx_ceiling)(size_t rounds);

/* Rows k .. k + kn - 1 of a panel in f32: to [kn][PANEL]. k is even. */
void CPU(panel_widen)(float *to, const OpsWeight *w, int panel, int k, int kn);

/* out[i][c] += sum over k of a[i][k * lda] b[k * ldb + c], each element one chain over ascending k:
 * small dense matrices, any number of rows and columns. */
void CPU(product)(float *const *out, const float *const *a, size_t lda, int rows, const float *b,
                  size_t ldb, int kn, int cols);
/* The same for evenly spaced rows: out + i * ldo, a + i * row. */
void CPU(product_even)(float *out, size_t ldo, const float *a, size_t row, size_t lda, int rows,
                       const float *b, size_t ldb, int kn, int cols);
/* to[c * ldt + r] = from[r * ldf + c]. */
void CPU(transpose)(float *to, size_t ldt, const float *from, size_t ldf, int rows, int cols);

/* The array that lies `offset` bytes behind a cache's beginning. */
static inline float *cpu_behind(const void *base, size_t offset)
{
    return (float *)(uintptr_t)((const char *)base + offset);
}

void CPU(rmsnorm_fwd)(void *y, void *rstd, const void *x, const void *w, int rows, int width,
                      double eps);
void CPU(axpby)(void *y, double a, const void *x, double b, size_t n);
void CPU(silu_fwd)(void *y, const void *z, size_t n);
void CPU(gatenorm_fwd)(void *y, void *rstd, const void *o, const void *g, const void *w, int rows,
                       int width, double eps);
void CPU(logprob_fwd)(void *logp, void *lse, void *entropy, const void *logits, const int *ids,
                      int rows, int vocab, int valid, double temperature);
void CPU(head_fwd)(void *logp, void *lse, void *entropy, const void *x, const OpsWeight *w,
                   const int *ids, int rows, int valid, double temperature, void *scratch);
void CPU(attn_fwd)(void *o, void *lse, const void *q, const void *k, const void *v,
                   const OpsSpan *spans, int n_spans, size_t page_offset, OpsHeads heads);
void CPU(lightning_fwd)(void *o, const void *qkv, const OpsSpan *spans, int n_spans,
                        size_t state_offset, size_t open_offset, const void *decay, OpsHeads heads);
void CPU(moe_up_fwd)(void *a, void *b, void *act, const void *x, const MoePlan *plan,
                     const MoeWeights *w);
void CPU(moe_down_fwd)(void *y, void *expert_out, const void *act, const void *weights,
                       const MoePlan *plan, const MoeWeights *w);
double CPU(ceiling_flops)(size_t rounds, GemmPrecision precision);
float CPU(ceiling_read)(const float *from, size_t n);
