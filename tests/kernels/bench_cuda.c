/*
 * Speeds of a card's ops as shares of what the card can do: COPY in GB/s and GEMM in TFLOP/s, both
 * measured just before by tests/kernels/gpu_ceiling.cu.
 *
 *     bench_cuda COPY GEMM
 *
 * A time is the median of ROUNDS calls after WARM, launch and wait included. A product of f32 is
 * three products of bf16 (product.h): its share is of the card's bf16 rate, each counted once.
 * Last, a token of a small model, op by op and as one graph of launches: what waits cost.
 */
#include "tests/kernels/card.h"
#include "tests/kernels/lab.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WARM = 3, ROUNDS = 21 };

/* M1's layer: arXiv 2506.13585, table 1 and the public config. */
enum {
    T = 8192,
    D = 6144,
    H = 64,
    KV = 8,
    HEAD = 128,
    C = 64,
    E = 32,
    WIDE = 9216,
    MOE_ROWS = 4096,
    WORDS = 16384, /* of a larger vocabulary */
    HEAD_ROWS = 1024
};

/* A small model's layer. */
enum { SMALL_LAYERS = 16, SMALL_D = 512, SMALL_H = 8, SMALL_E = 8 };

typedef struct {
    OpsWeight qkv, gate, out, router, w1[SMALL_E], w3[SMALL_E], w2[SMALL_E];
    int *ids;
    MoePlan plan;
} Small;

typedef struct {
    Lab lab;
    float *x, *y, *w, *rstd, *grad, *m, *v, *qkv, *o, *up, *lse, *decay, *scratch;
    OpsWeight dense, coded, head, w1[E], w2[E], w3[E];
    float *dhead;
    int *words;
    MoePlan plan;
    float *act, *out, *route;
    void **pages, **dpages;
    OpsSpan span;
    OpsSpanGrad gradient;
    Small small;
} Bench;

static const OpsHeads light = {.heads = H, .kv_heads = H, .dim = HEAD, .chunk = C};
static const OpsHeads soft = {.heads = H, .kv_heads = KV, .dim = HEAD, .chunk = C};

static float *floats(Bench *b, gsize n)
{
    float *at = lab_room(&b->lab, n * sizeof(float));

    for (gsize i = 0; i < n; i += 7)
        at[i] = (float)lab_number(1, i);
    return at;
}

/* ---- what is timed ---- */

static void run_copy(Bench *b)
{
    b->lab.ops->axpby(b->y, 0.5, b->x, 0.5, (gsize)T * D);
}

static void run_norm(Bench *b)
{
    b->lab.ops->rmsnorm_fwd(b->y, b->rstd, b->x, b->w, T, D, 1e-5);
}

static void run_norm_bwd(Bench *b)
{
    b->lab.ops->rmsnorm_bwd(b->o, b->grad, b->y, b->x, b->rstd, b->w, T, D);
}

static void run_adamw(Bench *b)
{
    const AdamwStep step = {.lr = 1e-6, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-15, .step = 2};

    b->lab.ops->adamw(b->y, b->m, b->v, b->x, (gsize)T * D, &step);
}

static void run_gemm(Bench *b)
{
    b->lab.ops->gemm_fwd(b->y, b->x, &b->dense, T, GEMM_ROUNDED);
}

static void run_gemm_dx(Bench *b)
{
    b->lab.ops->gemm_dx(b->o, b->y, &b->dense, T, 0);
}

static void run_decode(Bench *b)
{
    b->lab.ops->gemm_fwd(b->y, b->x, &b->dense, 1, GEMM_ROUNDED);
}

static void run_decode_int4(Bench *b)
{
    b->lab.ops->gemm_fwd(b->y, b->x, &b->coded, 1, GEMM_ROUNDED);
}

static void run_head(Bench *b)
{
    b->lab.ops->head_fwd(b->m, b->lse, b->v, b->x, &b->head, b->words, HEAD_ROWS, WORDS, 1,
                         b->scratch);
}

static void run_head_bwd(Bench *b)
{
    const HeadGrad grad = {.lse = b->lse, .ids = b->words, .coef = b->rstd};

    b->lab.ops->head_bwd(b->y, b->dhead, b->x, &b->head, &grad, HEAD_ROWS, WORDS, 1, b->scratch);
}

static void run_experts(Bench *b)
{
    const MoeWeights w = {b->w1, b->w3, b->w2};

    b->lab.ops->moe_up_fwd(NULL, NULL, b->act, b->x, &b->plan, &w);
    b->lab.ops->moe_down_fwd(b->y, b->out, b->act, b->route, &b->plan, &w);
}

static void run_lightning(Bench *b)
{
    b->lab.ops->lightning_fwd(b->o, b->qkv, &b->span, 1, 0, 0, b->decay, light);
}

static void run_lightning_bwd(Bench *b)
{
    b->lab.ops->lightning_bwd(b->qkv + 3 * (gsize)T * H * HEAD, b->up, b->qkv, &b->span,
                              &b->gradient, 1, 0, 0, b->decay, light, b->scratch);
}

static void run_attention(Bench *b)
{
    b->lab.ops->attn_fwd(b->o, b->lse, b->qkv, b->x, b->y, &b->span, 1, 0, soft);
}

static void run_attention_one(Bench *b)
{
    OpsSpan last = b->span;

    last.rows = 1;
    last.pos0 = T - 1;
    b->lab.ops->attn_fwd(b->o, b->lse, b->qkv, b->x, b->y, &last, 1, 0, soft);
}

static void run_attention_bwd(Bench *b)
{
    b->lab.ops->attn_bwd(b->scratch, b->m, b->v, b->up, b->o, b->lse, b->qkv, &b->span,
                         &b->gradient, 1, 0, soft);
}

#define TD     ((double)T * D)
#define THD    ((double)T * H * HEAD)
#define CAUSAL (2.0 * T * T * H * HEAD) /* q k^T and P V below the diagonal */

static void small_layer(Bench *b)
{
    const OpsHeads heads = {SMALL_H, SMALL_H, SMALL_D / SMALL_H, C};
    const Small *s = &b->small;
    const MoeWeights w = {s->w1, s->w3, s->w2};
    const Ops *ops = b->lab.ops;
    OpsSpan span = b->span;
    MoePlan plan = s->plan;

    span.rows = 1;
    ops->rmsnorm_fwd(b->x, b->rstd, b->y, b->w, 1, SMALL_D, 1e-5);
    ops->gemm_fwd(b->m, b->x, &s->qkv, 1, GEMM_ROUNDED);
    ops->silu_fwd(b->qkv, b->m, 3 * SMALL_D);
    ops->lightning_fwd(b->o, b->qkv, &span, 1, 0, 0, b->decay, heads);
    ops->gemm_fwd(b->m, b->x, &s->gate, 1, GEMM_ROUNDED);
    ops->gatenorm_fwd(b->up, b->rstd, b->o, b->m, b->w, 1, SMALL_D, 1e-5);
    ops->gemm_fwd(b->y, b->up, &s->out, 1, GEMM_ROUNDED);
    ops->axpby(b->y, 1, b->x, 1, SMALL_D);
    ops->rmsnorm_fwd(b->x, b->rstd, b->y, b->w, 1, SMALL_D, 1e-5);
    ops->gemm_fwd(b->m, b->x, &s->router, 1, GEMM_EXACT);
    ops->route_fwd(s->ids, b->route, b->m, 1, SMALL_E, 2);
    ops->route_plan(&plan, s->ids, 1, 2, SMALL_E);
    ops->moe_up_fwd(NULL, NULL, b->act, b->x, &plan, &w);
    ops->moe_down_fwd(b->y, b->out, b->act, b->route, &plan, &w);
    ops->axpby(b->y, 1, b->x, 1, SMALL_D);
}

static void run_small(Bench *b)
{
    for (int l = 0; l < SMALL_LAYERS; l++)
        small_layer(b);
}

static void run_small_graph(Bench *b)
{
    b->lab.ops->begin();
    run_small(b);
    b->lab.ops->end();
}

/* bytes: moved at least; flops: of bf16 products, as often as they are taken. */
static const struct {
    const char *name;
    void (*run)(Bench *b);
    double bytes, flops;
} cases[] = {
    {"axpby", run_copy, 12 * TD, 0},
    {"rmsnorm", run_norm, 8 * TD, 0},
    {"rmsnorm backward", run_norm_bwd, 12 * TD, 0},
    {"adamw", run_adamw, 28 * TD, 0},
    {"gemm 8192 x 6144 x 6144, bf16", run_gemm, 0, 2 * TD *D},
    {"gemm dx, two terms", run_gemm_dx, 0, 4 * TD *D},
    {"gemm, one row", run_decode, 2.0 * D *D, 0},
    {"gemm, one row, int4", run_decode_int4, 4.5 / 8 * D *D, 0},
    {"head, 1024 rows, 16384 words", run_head, 0, 6.0 * HEAD_ROWS *D *WORDS},
    {"head backward", run_head_bwd, 0, 16.0 * HEAD_ROWS *D *WORDS},
    {"experts, 256 rows each", run_experts, 0, 6.0 * MOE_ROWS * 2 * D *WIDE},
    {"lightning", run_lightning, 16 * THD, 3 * THD *(2 * C + 4.0 * HEAD)},
    {"lightning backward", run_lightning_bwd, 28 * THD, 3 * THD *(8 * C + 10.0 * HEAD)},
    {"attention", run_attention, 0, 3 * CAUSAL},
    {"attention, one row at 8191", run_attention_one, 8.0 * T *KV *HEAD, 0},
    {"attention backward", run_attention_bwd, 0, 3 * 4 * CAUSAL},
};

/* ---- arrays ---- */

static OpsWeight packed(Bench *b, WeightFormat format, int n, int k)
{
    OpsWeight w = {.n = n, .k = k, .format = format};

    w.data = lab_room(&b->lab, b->lab.ops->weight_bytes(w.format, n, k));
    b->lab.ops->weight_pack(&w, b->scratch);
    return w;
}

static MoePlan plan_room(Bench *b, int experts, int rows)
{
    return (MoePlan){.offsets = lab_room(&b->lab, ((gsize)experts + 1) * sizeof(int)),
                     .source = lab_room(&b->lab, 2 * (gsize)rows * sizeof(int)),
                     .slot = lab_room(&b->lab, 2 * (gsize)rows * sizeof(int)),
                     .order = lab_room(&b->lab, 2 * (gsize)rows * sizeof(int))};
}

static void make_small(Bench *b)
{
    Small *s = &b->small;

    s->qkv = packed(b, WEIGHT_BF16, 3 * SMALL_D, SMALL_D);
    s->gate = packed(b, WEIGHT_BF16, SMALL_D, SMALL_D);
    s->out = packed(b, WEIGHT_BF16, SMALL_D, SMALL_D);
    s->router = packed(b, WEIGHT_BF16, SMALL_E, SMALL_D);
    for (int e = 0; e < SMALL_E; e++) {
        s->w1[e] = packed(b, WEIGHT_BF16, SMALL_D, SMALL_D);
        s->w3[e] = packed(b, WEIGHT_BF16, SMALL_D, SMALL_D);
        s->w2[e] = packed(b, WEIGHT_BF16, SMALL_D, SMALL_D);
    }
    s->ids = lab_room(&b->lab, 2 * sizeof(int));
    s->plan = plan_room(b, SMALL_E, 1);
}

static void make_experts(Bench *b)
{
    int *ids = lab_room(&b->lab, 2 * MOE_ROWS * sizeof(int));

    for (int i = 0; i < 2 * MOE_ROWS; i++)
        ids[i] = (i / 2 + i % 2 * 7) % E;
    for (int e = 0; e < E; e++) {
        b->w1[e] = packed(b, WEIGHT_BF16, WIDE, D);
        b->w3[e] = packed(b, WEIGHT_BF16, WIDE, D);
        b->w2[e] = packed(b, WEIGHT_BF16, D, WIDE);
    }
    b->plan = plan_room(b, E, MOE_ROWS);
    b->lab.ops->route_plan(&b->plan, ids, MOE_ROWS, 2, E);
    b->act = floats(b, 2 * (gsize)MOE_ROWS * WIDE);
    b->out = floats(b, 2 * (gsize)MOE_ROWS * D);
    b->route = floats(b, 2 * MOE_ROWS);
}

static void make(Bench *b)
{
    gsize td = (gsize)T * D, thd = (gsize)T * H * HEAD, chunks = T / C;

    b->x = floats(b, td);
    b->y = floats(b, td);
    b->w = floats(b, D);
    b->rstd = floats(b, T);
    b->grad = floats(b, D);
    b->m = floats(b, td);
    b->v = lab_room(&b->lab, td * sizeof(float));
    b->qkv = floats(b, 6 * thd);
    b->o = floats(b, thd);
    b->up = floats(b, thd);
    b->lse = floats(b, (gsize)T * H);
    b->decay = lab_decay(&b->lab, light);
    b->scratch = floats(b, (gsize)H * (chunks + 2) * HEAD * HEAD);
    b->dense = packed(b, WEIGHT_BF16, D, D);
    b->coded = packed(b, WEIGHT_INT4, D, D);
    b->head = packed(b, WEIGHT_BF16, WORDS, D);
    b->dhead = floats(b, (gsize)WORDS * D);
    b->words = lab_room(&b->lab, HEAD_ROWS * sizeof(int));
    b->pages = lab_blocks(&b->lab, chunks, 2 * (gsize)KV * HEAD * C);
    b->dpages = lab_blocks(&b->lab, chunks, 2 * (gsize)KV * HEAD * C);
    b->span = (OpsSpan){.rows = T,
                        .pages = b->pages,
                        .state_out = floats(b, (gsize)H * HEAD * HEAD),
                        .open = floats(b, 2 * (gsize)H * HEAD * C)};
    b->gradient = (OpsSpanGrad){.dpages = b->dpages};
    make_experts(b);
    make_small(b);
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median_us(Bench *b, void (*run)(Bench *b))
{
    double us[ROUNDS];

    for (int i = -WARM; i < ROUNDS; i++) {
        gint64 start = g_get_monotonic_time();

        run(b);
        if (i >= 0)
            us[i] = (double)(g_get_monotonic_time() - start);
    }
    qsort(us, ROUNDS, sizeof us[0], by_time);
    return us[ROUNDS / 2];
}

int main(int argc, char **argv)
{
    double copy = argc == 3 ? g_ascii_strtod(argv[1], NULL) : 0;
    double gemm = argc == 3 ? g_ascii_strtod(argv[2], NULL) : 0;
    Bench b = {.lab = {.ops = card_ops()}};

    if (!(copy > 0) || !(gemm > 0)) {
        fprintf(stderr, "usage: bench_cuda COPY_GB_PER_S GEMM_TFLOP_PER_S\n");
        return 2;
    }
    if (!b.lab.ops) {
        printf("no card: %s\n", card_missing());
        return 77;
    }
    b.lab.own = g_ptr_array_new_with_free_func(b.lab.ops->memory_free);
    make(&b);
    printf("%s\n%-32s %10s %10s %12s %6s\n", b.lab.ops->name, "op", "us", "GB/s", "TFLOP/s",
           "share");
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        double us = median_us(&b, cases[i].run), speed = cases[i].bytes / us / 1e3;
        double rate = cases[i].flops / us / 1e6;
        double share = MAX(speed / copy, rate / gemm);

        printf("%-32s %10.0f %10.1f %12.2f %6.2f\n", cases[i].name, us, speed, rate, share);
    }
    printf("%-32s %10.0f us op by op, %.0f us as a graph\n", "a token of a small model",
           median_us(&b, run_small), median_us(&b, run_small_graph));
    g_ptr_array_unref(b.lab.own);
    return 0;
}
