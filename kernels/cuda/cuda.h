/*
 * What the files of the CUDA backend share: the compiler's words, sums of a block, staging.
 *
 * Invariants
 *  1. The same source is compiled by nvcc for a card and by g++ over kernels/cuemu for tests.
 *  2. No atomics on floats; every sum has one order, fixed by shapes.
 *  3. Fusing multiply and add is written (fmaf), never the compiler's choice (-fmad=false).
 *
 * Arrays of `real`, the data of packed matrices, the router's ids and plans lie in memory that the
 * card reads (Ops.memory_new). Other ids, positions, spans and matrices' descriptions may lie
 * anywhere: ops stage copies.
 */
#pragma once

#ifdef CUEMU
#include "kernels/cuemu/cuemu.h"
#define tensor_mma cuemu_mma
#else
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <type_traits>
#define DYN_SMEM(type, name)                                                                       \
    extern __shared__ __align__(16) unsigned char dynamic_smem[];                                  \
    type *name = reinterpret_cast<type *>(dynamic_smem)
#define KERNEL(kernel) reinterpret_cast<const void *>(kernel)

/* c [16, 8] += a [16, 16] b [16, 8] over a warp, bf16 into f32. */
static __device__ __forceinline__ void tensor_mma(float c[4], const uint32_t a[4],
                                                  const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

extern "C" {
#include "kernels/ops.h"
}

#define LANES      32
#define FULL_WARP  0xffffffffu
#define SUM_BLOCK  256 /* threads of a block that sums */
#define SUM_WARPS  (SUM_BLOCK / LANES)
#define FLAT_BLOCK 256

/* ---- host side (device.cu) ---- */

/* An op begins, puts and takes what its kernels need, launches, ends. */
#define STAGE_ALIGN 64
void cuda_op_begin(void);
/* A copy of host memory for kernels to read: what is launched from here to the op's end. */
const void *cuda_put(const void *from, size_t bytes);
/* The same for memory that the caller fills before the op's end, through *fill. */
const void *cuda_put_room(size_t bytes, void **fill);
/* Scratch that begins undefined, the op's own. */
void *cuda_room(size_t bytes);
/* Copies scratch back, after what was launched so far; read it after the op's end. Such an op may
 * not be called between the table's begin and end. */
void cuda_take(void *to, const void *room, size_t bytes);
/* Runs what was launched and waits until all is done, unless the table's `end` is still to come; a
 * failure of the card ends the program and names `op`. */
void cuda_op_end(const char *op);
void cuda_check(cudaError_t error, const char *what);
/* Whether kernels for sm_90a run here: compute capability 9.0, and not "sm80" in ASSAY_CUDA. */
int cuda_hopper(void);
/* Lets a kernel have more dynamic shared memory than 48 KiB. */
void cuda_allow_smem(const void *kernel, size_t bytes);
/* Lists a launch with copies of its n arguments. */
void cuda_list(const void *kernel, dim3 grid, dim3 block, size_t smem, int n,
               const void *const *args, const size_t *sizes);

/* Arguments become what the kernel's parameters are, so their bytes are the kernel's. */
template <typename... P>
static inline void cuda_launch(void (*kernel)(P...), const void *at, dim3 grid, dim3 block,
                               size_t smem, std::common_type_t<P>... p)
{
    const void *const args[] = {&p...};
    const size_t sizes[] = {sizeof p...};

    (void)kernel;
    cuda_list(at, grid, block, smem, (int)sizeof...(P), args, sizes);
}
#define LAUNCH(kernel, grid, block, smem, ...)                                                     \
    cuda_launch(kernel, KERNEL(kernel), grid, block, smem, __VA_ARGS__)

static inline unsigned blocks_for(size_t n, size_t per_block, size_t most)
{
    size_t blocks = (n + per_block - 1) / per_block;

    return (unsigned)(blocks < most ? blocks : most);
}

/* ---- device side ---- */

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int by = LANES / 2; by > 0; by /= 2)
        x += __shfl_xor_sync(FULL_WARP, x, by);
    return x;
}

static __device__ __forceinline__ float warp_max(float x)
{
    for (int by = LANES / 2; by > 0; by /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, by));
    return x;
}

/* Of one value per thread of a block of SUM_BLOCK; every thread gets it. `parts` is shared, and of
 * this call alone: [SUM_WARPS]. */
static __device__ __forceinline__ float block_sum(float x, float *parts)
{
    float all;

    x = warp_sum(x);
    if (threadIdx.x % LANES == 0)
        parts[threadIdx.x / LANES] = x;
    __syncthreads();
    all = parts[0];
    for (int i = 1; i < SUM_WARPS; i++)
        all += parts[i];
    return all;
}

static __device__ __forceinline__ float block_max(float x, float *parts)
{
    float all;

    x = warp_max(x);
    if (threadIdx.x % LANES == 0)
        parts[threadIdx.x / LANES] = x;
    __syncthreads();
    all = parts[0];
    for (int i = 1; i < SUM_WARPS; i++)
        all = fmaxf(all, parts[i]);
    return all;
}

static __device__ __forceinline__ float sigmoid(float z)
{
    return 1 / (1 + expf(-z));
}

/* d SiLU / dz. */
static __device__ __forceinline__ float silu_slope(float z)
{
    float s = sigmoid(z);

    return s * (1 + z * (1 - s));
}

static __device__ __forceinline__ float bf16_widen(unsigned short x)
{
    return __uint_as_float((unsigned)x << 16);
}

/* To nearest even; NaN kept. */
static __device__ __forceinline__ unsigned short bf16_round(float x)
{
    unsigned u = __float_as_uint(x);

    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (unsigned short)((u >> 16) | 0x40u);
    return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* Elements from one row of a packed matrix to the next: rows begin where eight may be read. */
static inline size_t cuda_weight_stride(int k)
{
    return ((size_t)k + 7) / 8 * 8;
}

/* Both rounded, the first in the lower half. */
static __device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
#ifdef CUEMU
    return bf16_round(low) | (uint32_t)bf16_round(high) << 16;
#else
    uint32_t both;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#endif
}

/* ---- entries of the table (table.cu) ---- */

void *cuda_memory_new(size_t bytes);
void cuda_memory_free(void *memory);
void cuda_begin(void);
void cuda_end(void);
size_t cuda_weight_bytes(WeightFormat format, int n, int k);
void cuda_weight_pack(const OpsWeight *w, const void *rows);
void cuda_weight_unpack(void *rows, const OpsWeight *w);
void cuda_embed_fwd(void *y, const OpsWeight *w, const int *ids, int rows);
void cuda_embed_bwd(void *dw, const void *dy, const int *ids, int rows, int width);
void cuda_rmsnorm_fwd(void *y, void *rstd, const void *x, const void *w, int rows, int width,
                      double eps);
void cuda_rmsnorm_bwd(void *dx, void *dw, const void *dy, const void *x, const void *rstd,
                      const void *w, int rows, int width);
void cuda_axpby(void *y, double a, const void *x, double b, size_t n);
void cuda_gemm_fwd(void *y, const void *x, const OpsWeight *w, int rows, GemmPrecision precision);
void cuda_gemm_dx(void *dx, const void *dy, const OpsWeight *w, int rows, int add);
void cuda_gemm_dw(void *dw, const void *dy, const void *x, const OpsWeight *w, int rows);
void cuda_silu_fwd(void *y, const void *z, size_t n);
void cuda_silu_bwd(void *dz, const void *dy, const void *z, size_t n);
void cuda_gatenorm_fwd(void *y, void *rstd, const void *o, const void *g, const void *w, int rows,
                       int width, double eps);
void cuda_gatenorm_bwd(void *do_, void *dg, void *dw, const void *dy, const void *o, const void *g,
                       const void *rstd, const void *w, int rows, int width);
void cuda_rope(void *x, const int64_t *positions, const double *inv_freq, int half, int rows,
               int heads, int dim, int sign);
void cuda_attn_fwd(void *o, void *lse, const void *q, const void *k, const void *v,
                   const OpsSpan *spans, int n_spans, size_t page_offset, OpsHeads heads);
void cuda_attn_bwd(void *dq, void *dk, void *dv, const void *do_, const void *o, const void *lse,
                   const void *q, const OpsSpan *spans, const OpsSpanGrad *grads, int n_spans,
                   size_t page_offset, OpsHeads heads);
void cuda_lightning_fwd(void *o, const void *qkv, const OpsSpan *spans, int n_spans,
                        size_t state_offset, size_t open_offset, const void *decay, OpsHeads heads);
void cuda_lightning_bwd(void *dqkv, const void *do_, const void *qkv, const OpsSpan *spans,
                        const OpsSpanGrad *grads, int n_spans, size_t state_offset,
                        size_t open_offset, const void *decay, OpsHeads heads, void *scratch);
void cuda_route_fwd(int *ids, void *weights, const void *z, int rows, int experts, int topk);
void cuda_route_bwd(void *dz, const void *dweights, const int *ids, const void *weights, int rows,
                    int experts, int topk);
void cuda_route_plan(MoePlan *plan, const int *ids, int rows, int topk, int experts);
void cuda_route_balance_bwd(void *dz, const void *z, const MoePlan *plan, double scale);
void cuda_moe_up_fwd(void *a, void *b, void *act, const void *x, const MoePlan *plan,
                     const MoeWeights *w);
void cuda_moe_down_fwd(void *y, void *expert_out, const void *act, const void *weights,
                       const MoePlan *plan, const MoeWeights *w);
void cuda_moe_bwd(void *dx, void *dweights, void *const *dw1, void *const *dw3, void *const *dw2,
                  const void *dy, const void *x, const void *a, const void *b, const void *act,
                  const void *expert_out, const void *weights, const MoePlan *plan,
                  const MoeWeights *w, void *dact, void *dout);
void cuda_logprob_fwd(void *logp, void *lse, void *entropy, const void *logits, const int *ids,
                      int rows, int vocab, int valid, double temperature);
void cuda_head_fwd(void *logp, void *lse, void *entropy, const void *x, const OpsWeight *w,
                   const int *ids, int rows, int valid, double temperature, void *scratch);
void cuda_head_bwd(void *dx, void *dw, const void *x, const OpsWeight *w, const HeadGrad *grad,
                   int rows, int valid, double temperature, void *scratch);
void cuda_adamw(void *w, void *m, void *v, const void *grad, size_t n, const AdamwStep *step);
double cuda_sumsq(const void *x, size_t n);

/* The same on Hopper (*_sm90.cu). */
void hopper_gemm_fwd(void *y, const void *x, const OpsWeight *w, int rows, GemmPrecision precision);
void hopper_moe_up_fwd(void *a, void *b, void *act, const void *x, const MoePlan *plan,
                       const MoeWeights *w);
void hopper_moe_down_fwd(void *y, void *expert_out, const void *act, const void *weights,
                         const MoePlan *plan, const MoeWeights *w);
void hopper_attn_fwd(void *o, void *lse, const void *q, const void *k, const void *v,
                     const OpsSpan *spans, int n_spans, size_t page_offset, OpsHeads heads);
void hopper_attn_bwd(void *dq, void *dk, void *dv, const void *do_, const void *o, const void *lse,
                     const void *q, const OpsSpan *spans, const OpsSpanGrad *grads, int n_spans,
                     size_t page_offset, OpsHeads heads);
void hopper_lightning_fwd(void *o, const void *qkv, const OpsSpan *spans, int n_spans,
                          size_t state_offset, size_t open_offset, const void *decay,
                          OpsHeads heads);
void hopper_lightning_bwd(void *dqkv, const void *do_, const void *qkv, const OpsSpan *spans,
                          const OpsSpanGrad *grads, int n_spans, size_t state_offset,
                          size_t open_offset, const void *decay, OpsHeads heads, void *scratch);
