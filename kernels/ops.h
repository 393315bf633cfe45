/*
 * The op table: everything that a model's maths asks of a machine, and the contract of each op.
 * policy/ is written once against it; a backend (ref/, cpu/, cuda/) fills it.
 *
 * Rules for every entry
 *  - Plain pointers and ints. Arrays are row-major and contiguous; shapes stand in brackets.
 *    T rows of a packed batch, D hidden width, H query heads, G key-value heads, d head width,
 *    C chunk (= page) length, E experts, K experts per token, F expert width, V vocabulary.
 *  - `real` is the element of activations, norms, states and gradients: f32 or f64, see Ops.real.
 *    Matrices of weights are opaque: made by weight_pack, read by gemm, embed and moe entries.
 *  - When an op returns, the host may read what it wrote, unless it was called between `begin` and
 *    `end`. One op of a table runs at a time.
 *  - Buffers are aligned to 64 bytes, owned by the caller; no op allocates, none keeps a pointer.
 *    Outputs may not overlap inputs unless the entry says "in place".
 *  - A backward entry that writes into a gradient of weights or of cached keys, values or states
 *    ADDS to it; gradients of activations are overwritten unless the entry says "adds".
 *
 * Order of sums (the numerics contract)
 *  - A row of an output depends on that row's inputs and the weights alone: never on the number of
 *    rows, on their order, on where a sequence was cut into calls, or on the number of threads.
 *  - Products sum over their inner index in one ascending order, whatever the number of rows.
 *  - Lightning attention works on chunks counted from position 0 of the sequence. A state is
 *    folded forward when the last row of its chunk is written, at no other time.
 *  - Experts are combined in ascending order of their number.
 *  So prefill, decode, speculation and the trainer's packed pass give equal bits within a backend.
 *
 * Equations: arXiv 2501.08313 section 2 and the public model code (MiniMax-AI/MiniMax-M1,
 * modeling_minimax_m1.py). Each formula stands at its entry.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define OPS_CHUNK_MAX   64
#define OPS_DIM_MAX     256
#define OPS_EXPERTS_MAX 256
#define OPS_TOPK_MAX    8
#define OPS_HEAD_TILE   1024

typedef enum { OPS_F32 = 0, OPS_F64 } OpsReal;

/* How a packed matrix keeps its numbers. */
typedef enum {
    WEIGHT_REAL = 0, /* as Ops.real */
    WEIGHT_BF16,     /* rounded to nearest even; half the memory and bandwidth */
    WEIGHT_INT8,     /* quant.h: codes and scales, used as their values in bf16; not for training */
    WEIGHT_FP8,
    WEIGHT_INT4,
} WeightFormat;
#define WEIGHT_FORMATS 5

/* A packed matrix W [n, k]: n outputs, k inputs. `data` belongs to whoever packed it. */
typedef struct {
    void *data;
    int n, k;
    WeightFormat format;
} OpsWeight;

/* How exact a product must be where a backend has a faster, rounded way. */
typedef enum {
    GEMM_ROUNDED = 0, /* activations may be rounded to bf16 */
    GEMM_EXACT,       /* f32 accuracy: the router and the head */
} GemmPrecision;

typedef struct {
    int heads, kv_heads, dim, chunk; /* H, G (lightning: unused), d, C */
} OpsHeads;

/*
 * The rows of one sequence in a packed batch, and its caches. A row at position p belongs to
 * chunk p / C. Caches of all layers lie behind one pointer; ops take the layer's byte offset.
 *  pages[i]   keys and values of chunk i: K [G][d][C], then V [G][C][d]
 *  state_in   lightning state [H][d][d] (key channel, value channel) before chunk pos0 / C; read
 *  state_out  where the first fold lands, and every later one; may equal state_in
 *  open       k, v of the open chunk: K [H][d][C], then V [H][C][d]
 * Spans of one call are worked in order, so a span may read what an earlier one wrote.
 */
typedef struct {
    int row0, rows;
    int64_t pos0;
    void *const *pages;
    const void *state_in;
    void *state_out;
    void *open;
} OpsSpan;

/*
 * Gradients of a span's caches, laid out like the caches. Spans are worked last to first, so that
 * continuations of one prompt add up in it. Any may be NULL where nothing flows.
 *  dpages     of keys and values; the span's own rows are read back from here
 *  dstate_out of the state after the span's last fold; read
 *  dstate_in  of state_in; added to
 *  dopen      of the open chunk. In: what continuations left for this span's last, unfilled chunk.
 *             Out: for the rows of the first chunk that came before the span
 */
typedef struct {
    void *const *dpages;
    const void *dstate_out;
    void *dstate_in;
    void *dopen;
} OpsSpanGrad;

/* Rows sorted by expert: made once per layer by route_plan, read by the moe entries. R = T * K. The
 * arrays lie in memory that the table's kernels read. */
typedef struct {
    int rows, topk, experts; /* R, K, E */
    int *offsets;            /* [E + 1] first sorted slot of each expert */
    int *source;             /* [R] sorted slot -> t * K + c */
    int *slot;               /* [R] t * K + c -> sorted slot */
    int *order;              /* [R] the c of row t in ascending order of expert */
} MoePlan;

/* The three matrices of every expert: up [F, D], gate [F, D], down [D, F]. */
typedef struct {
    const OpsWeight *w1; /* [E] gate projection */
    const OpsWeight *w3; /* [E] up projection */
    const OpsWeight *w2; /* [E] down projection */
} MoeWeights;

/* What the gradient of log-probabilities is made of, each [T]: see head_bwd. */
typedef struct {
    const void *lse;
    const int *ids;
    const void *coef;
    const void *bonus, *entropy; /* bonus may be NULL, and then entropy */
} HeadGrad;

typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
    int64_t step; /* from 1 */
} AdamwStep;

typedef struct Ops {
    const char *name; /* "ref", "cpu-avx2" ...; part of the numerics id */
    OpsReal real;

    /* Memory that the table's kernels read; NULL where any memory of the process will do. The host
     * reads and writes it, too. memory_new: NULL where there is none. */
    void *(*memory_new)(size_t bytes);
    void (*memory_free)(void *memory);

    /* Ops that need not wait. Between begin and end an op may return before its work is done: what
     * it wrote may be read, and real arrays that it reads may be changed or freed, after end. Ops
     * keep their order. Positions, spans, page tables, descriptions of matrices and ids other than
     * the router's are copied when the op is called. begin and end do not nest; what is between
     * them is one thread's, and ops of other threads wait; sumsq may not be there. */
    void (*begin)(void);
    void (*end)(void);

    /* Weights. rows: real [n, k]. 0 bytes: the table cannot keep them that way. */
    size_t (*weight_bytes)(WeightFormat format, int n, int k);
    void (*weight_pack)(const OpsWeight *w, const void *rows);
    void (*weight_unpack)(void *rows, const OpsWeight *w);

    /* y[t] = W[ids[t]]; backward adds dy[t] to dw[ids[t]], rows in ascending t. dw real [V, D]. */
    void (*embed_fwd)(void *y, const OpsWeight *w, const int *ids, int rows);
    void (*embed_bwd)(void *dw, const void *dy, const int *ids, int rows, int width);

    /* n = x * r, r = 1 / sqrt(mean(x^2) + eps), y = w (.) n.  [T, D], w [D], rstd [T].
     * u = w (.) dy: dx = r (u - n mean(u (.) n)), dw += sum_t dy (.) n */
    void (*rmsnorm_fwd)(void *y, void *rstd, const void *x, const void *w, int rows, int width,
                        double eps);
    void (*rmsnorm_bwd)(void *dx, void *dw, const void *dy, const void *x, const void *rstd,
                        const void *w, int rows, int width);

    /* y = a x + b y, in place in y. */
    void (*axpby)(void *y, double a, const void *x, double b, size_t n);

    /* y [T, n] = x [T, k] W^T; dx [T, k] = dy W (adds if `add`); dw [n, k] += dy^T x. Where W is
     * bf16, dy and the x of dw may be rounded to bf16; dw reads W's shape and format alone. A sum
     * over rows may then depend on where rows were cut into calls. */
    void (*gemm_fwd)(void *y, const void *x, const OpsWeight *w, int rows, GemmPrecision precision);
    void (*gemm_dx)(void *dx, const void *dy, const OpsWeight *w, int rows, int add);
    void (*gemm_dw)(void *dw, const void *dy, const void *x, const OpsWeight *w, int rows);

    /* y = z sigmoid(z), in place allowed; dz = dy s (1 + z (1 - s)), in place allowed in dy. */
    void (*silu_fwd)(void *y, const void *z, size_t n);
    void (*silu_bwd)(void *dz, const void *dy, const void *z, size_t n);

    /* y = sigmoid(g) (.) rmsnorm(o; w, eps): the output path of lightning layers. [T, D]. */
    void (*gatenorm_fwd)(void *y, void *rstd, const void *o, const void *g, const void *w, int rows,
                         int width, double eps);
    void (*gatenorm_bwd)(void *do_, void *dg, void *dw, const void *dy, const void *o,
                         const void *g, const void *rstd, const void *w, int rows, int width);

    /* Rotates the first 2 * half of d channels of x [T, heads, d] in place, pairs (i, i + half), by
     * positions[t] * inv_freq[i] * sign; sign -1 is the backward. f32: the angle is the f32 product
     * of the rounded factors, as the public code has it. */
    void (*rope)(void *x, const int64_t *positions, const double *inv_freq, int half, int rows,
                 int heads, int dim, int sign);

    /* Softmax attention, causal, grouped: writes k, v [T, G, d] into the pages, then
     * o [T, H, d] = softmax(q k^T / sqrt(d)) v over positions 0..p; lse [T, H] may be NULL. */
    void (*attn_fwd)(void *o, void *lse, const void *q, const void *k, const void *v,
                     const OpsSpan *spans, int n_spans, size_t page_offset, OpsHeads heads);
    /* Adds to dpages for every position seen; dk, dv [T, G, d] are then read back from them. */
    void (*attn_bwd)(void *dq, void *dk, void *dv, const void *do_, const void *o, const void *lse,
                     const void *q, const OpsSpan *spans, const OpsSpanGrad *grads, int n_spans,
                     size_t page_offset, OpsHeads heads);

    /*
     * Lightning attention. qkv [T, H, 3, d]; decay [H][C + 1] = lambda^n, real. Row i of a chunk
     * with state S before it:
     *   o_i = lambda^(i+1) q_i S + sum_{j <= i} lambda^(i-j) (q_i . k_j) v_j
     * and a filled chunk folds S <- lambda^C S + sum_j lambda^(C-1-j) k_j^T v_j.
     */
    void (*lightning_fwd)(void *o, const void *qkv, const OpsSpan *spans, int n_spans,
                          size_t state_offset, size_t open_offset, const void *decay,
                          OpsHeads heads);
    /* With P = (Q K^T) (.) D, dP = (dO V^T) (.) D, G the gradient of the state after the chunk:
     *   dQ = dP K + diag(lambda^(i+1)) dO S^T      dK = dP^T Q + diag(lambda^(C-1-j)) V G^T
     *   dV = P^T dO + diag(lambda^(C-1-j)) K G     G <- lambda^C G + sum_i lambda^(i+1) q_i^T dO_i
     * (the terms with G only for a filled chunk). The states at chunk starts are made anew from
     * state_in into scratch, real [H][N + 2][d][d], N the most chunks that a span has rows in, at
     * least 1. `spans[].open` holds k, v of the rows of the first chunk that came before it. */
    void (*lightning_bwd)(void *dqkv, const void *do_, const void *qkv, const OpsSpan *spans,
                          const OpsSpanGrad *grads, int n_spans, size_t state_offset,
                          size_t open_offset, const void *decay, OpsHeads heads, void *scratch);

    /* ids [T, K] = the K largest of softmax(z [T, E]), ties to the lower number, largest first;
     * weights [T, K] = their probabilities divided by their sum. Backward: dz_i = w_i (dw_i - sum_j
     * w_j dw_j) for the chosen, 0 for the rest. ids lie in memory that the kernels read. */
    void (*route_fwd)(int *ids, void *weights, const void *z, int rows, int experts, int topk);
    void (*route_bwd)(void *dz, const void *dweights, const int *ids, const void *weights, int rows,
                      int experts, int topk);
    /* The plan of ids [T, K], as moe_plan makes it. Ids and the plan's arrays lie in memory that
     * the kernels read; plan->rows, topk and experts are set when it returns. */
    void (*route_plan)(MoePlan *plan, const int *ids, int rows, int topk, int experts);

    /* Even loads: with f_e the share of the plan's choices that expert e got and P_e the mean over
     * rows of p = softmax(z), L = scale E sum_e f_e P_e, f without gradient (arXiv 2101.03961,
     * 2.2). Adds dL/dz = scale E / T p_te (f_e - sum_j f_j p_tj) to dz [T, E]. */
    void (*route_balance_bwd)(void *dz, const void *z, const MoePlan *plan, double scale);

    /* Sorted slot r of expert e: a = W1 x, b = W3 x, act = SiLU(a) (.) b. a, b may be NULL (not
     * kept). x [T, D]; a, b, act [R, F]. Then y [T, D] = sum_c weights[t, c] W2 act. */
    void (*moe_up_fwd)(void *a, void *b, void *act, const void *x, const MoePlan *plan,
                       const MoeWeights *w);
    void (*moe_down_fwd)(void *y, void *expert_out, const void *act, const void *weights,
                         const MoePlan *plan, const MoeWeights *w);
    /* expert_out [R, D] as moe_down_fwd left it. Scratch: dact [R, 2F], dout [R, D]. dw1..dw2:
     * [E] gradients, real, like the rows of the matrices. */
    void (*moe_bwd)(void *dx, void *dweights, void *const *dw1, void *const *dw3, void *const *dw2,
                    const void *dy, const void *x, const void *a, const void *b, const void *act,
                    const void *expert_out, const void *weights, const MoePlan *plan,
                    const MoeWeights *w, void *dact, void *dout);

    /* Over z = logits / temperature, ids >= valid left out: lse [T], logp [T] of ids, entropy [T]
     * (may be NULL). Exponentials are summed tile by tile of OPS_HEAD_TILE ids, ascending. */
    void (*logprob_fwd)(void *logp, void *lse, void *entropy, const void *logits, const int *ids,
                        int rows, int vocab, int valid, double temperature);
    /* The same of hidden rows x [T, k] and the head's W [V, k], bit for bit what logprob_fwd makes
     * of the exact product's logits, which are never there: a tile of the vocabulary at a time.
     * Backward: with p the softmax and
     *   dz = coef[t] (p - [j = id]) / temperature, and where `bonus` is not NULL (then `entropy` is
     *        as left by fwd) + bonus[t] p (log p + entropy[t]) / temperature, the gradient of
     *        -bonus times the entropy; 0 from `valid` on, an id of -1 is none of these,
     * dx = dz W, dw real [V, k] += dz^T x, tiles in ascending order. Scratch of either: real
     * [T, OPS_HEAD_TILE + 3]. */
    void (*head_fwd)(void *logp, void *lse, void *entropy, const void *x, const OpsWeight *w,
                     const int *ids, int rows, int valid, double temperature, void *scratch);
    void (*head_bwd)(void *dx, void *dw, const void *x, const OpsWeight *w, const HeadGrad *grad,
                     int rows, int valid, double temperature, void *scratch);

    /* Decoupled weight decay, bias correction, eps outside the root (arXiv 1711.05101). */
    void (*adamw)(void *w, void *m, void *v, const void *grad, size_t n, const AdamwStep *step);
    double (*sumsq)(const void *x, size_t n);

    /* Ceilings for benchmarks, on the calling thread; NULL in the oracle. `ceiling_flops` does
     * nothing but multiply-adds, as products with bf16 weights of that precision do them at best,
     * and returns how many operations they were; `ceiling_read` reads n floats, four places at
     * once. */
    double (*ceiling_flops)(size_t rounds, GemmPrecision precision);
    float (*ceiling_read)(const float *from, size_t n);
} Ops;

/* Scalar C, the oracle. */
extern const Ops ops_ref_f32;
extern const Ops ops_ref_f64;

/* The fastest table this machine may run (CPUID and what the host permits); never NULL. */
const Ops *ops_cpu(void);
/* The table of one instruction set, "plain", "avx2", "avx512" or "amx"; 0 where it cannot run. */
int ops_cpu_table(const char *isa, Ops *ops);

/* Sorts rows by expert; ids [rows, topk]. The arrays of `plan` are the caller's. What route_plan is
 * in tables of the CPU. */
void moe_plan(MoePlan *plan, const int *ids, int rows, int topk, int experts);

static inline size_t ops_real_size(OpsReal real)
{
    return real == OPS_F64 ? sizeof(double) : sizeof(float);
}

/* Of functions that kernels on a card call, too. */
#ifdef __CUDACC__
#define OPS_INLINE static inline __host__ __device__
#else
#define OPS_INLINE static inline
#endif

/* bf16 is the upper half of an f32; rounding to nearest even, NaN kept. */
OPS_INLINE uint16_t bf16_of(float x)
{
    union {
        float f;
        uint32_t u;
    } v = {x};
    if ((v.u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((v.u >> 16) | 0x40u);
    return (uint16_t)((v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16);
}

OPS_INLINE float bf16_float(uint16_t x)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)x << 16};
    return v.f;
}
