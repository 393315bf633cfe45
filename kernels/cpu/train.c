/*
 * The backward products with packed weights, those of the experts among them.
 *
 * Invariants
 *  1. dx[t, k] is one chain over ascending n, whatever the rows around it.
 *  2. dw[n, k] is one chain over ascending rows; threads split k, so no element has two writers.
 */
#include "kernels/cpu/train.h"

#include "kernels/cpu/vec.h"

/* Outputs and inputs of a block of W that is turned over for dx: 16 KiB. */
#define DX_N (64 / PANEL * PANEL)
#define DX_K 64

/* dx[i][0 .. cols) += sum over n of dy[i][n] W[n][k ..]; dx[i] points at column k. */
static void block_dx(float *const *dx, const float *const *dy, int rows, const OpsWeight *w, int k,
                     int cols)
{
    float panel[DX_K * PANEL] __attribute__((aligned(64))), turned[DX_N * DX_K];
    const float *from[ROWS_MAX];

    for (int n = 0; n < w->n; n += DX_N) {
        int kn = w->n - n < DX_N ? w->n - n : DX_N;

        for (int p = 0; p * PANEL < kn; p++) {
            CPU(panel_widen)(panel, w, n / PANEL + p, k, cols);
            CPU(transpose)(turned + p * PANEL * DX_K, DX_K, panel, PANEL, cols, PANEL);
        }
        for (int i = 0; i < rows; i++)
            from[i] = dy[i] + n;
        CPU(product)(dx, from, 1, rows, turned, DX_K, kn, cols);
    }
}

/* Rows of a call, or of one expert: sorted slots, or where they were gathered from. */
typedef struct {
    const float *at;
    const int *source; /* NULL: row i is row i */
    int topk;          /* else: source[i] / topk */
} Rows;

static const float *row_at(const Rows *rows, int i, int width)
{
    return rows->at + (size_t)(rows->source ? rows->source[i] / rows->topk : i) * (size_t)width;
}

/* Columns k .. of dx for rows first .. first + count - 1; count <= ROWS_MAX. */
static void rows_dx(float *dx, const float *dy, int first, int count, const OpsWeight *w, int k,
                    int add)
{
    int cols = w->k - k < DX_K ? w->k - k : DX_K;
    float *to[ROWS_MAX];
    const float *from[ROWS_MAX];

    for (int i = 0; i < count; i++) {
        to[i] = dx + (size_t)(first + i) * w->k + k;
        from[i] = dy + (size_t)(first + i) * w->n;
        if (!add)
            memset(to[i], 0, (size_t)cols * sizeof(float));
    }
    block_dx(to, from, count, w, k, cols);
}

static int parts_of(int n, int part)
{
    return (n + part - 1) / part;
}

void CPU(gemm_dx)(void *dx, const void *dy, const OpsWeight *w, int rows, int add)
{
    int parts = parts_of(w->k, DX_K), blocks = parts_of(rows, ROWS_MAX);

#pragma omp parallel for schedule(static) if ((double)rows * w->n * w->k > CPU_PARALLEL_WORK)
    for (int task = 0; task < parts * blocks; task++) {
        int first = task / parts * ROWS_MAX;
        int count = rows - first < ROWS_MAX ? rows - first : ROWS_MAX;

        rows_dx(dx, dy, first, count, w, task % parts * DX_K, add);
    }
}

/* Rows, outputs and inputs of a block of dw; outputs that stay in the second-level cache while the
 * rows go by. */
#define DW_ROWS 128
#define DW_N    48
#define DW_K    64
#define DW_STAY (4 * DW_N)

/* Columns k .. of rows n .. n + outs - 1 of dw += dy^T x for rows t .. t + count - 1, whose columns
 * of x lie in `in`, a panel's width at a time. What is read is packed, so that no stride meets the
 * cache's own. */
static void block_dw(float *dw, const Rows *dy, const float *in, int t, int count, int n, int outs,
                     const OpsWeight *shape, int k)
{
    float up[DW_ROWS * DW_N];
    float *to[DW_N];
    const float *from[DW_N];
    int cols = shape->k - k < DW_K ? shape->k - k : DW_K;

    for (int i = 0; i < count; i++)
        memcpy(up + i * DW_N, row_at(dy, t + i, shape->n) + n, (size_t)outs * sizeof(float));
    for (int i = 0; i < outs; i++) {
        to[i] = dw + (size_t)(n + i) * shape->k + k;
        from[i] = up + i;
    }
    for (int c = 0; c < cols; c += PANEL) {
        CPU(product)
        (to, from, DW_N, outs, in + c * DW_ROWS, PANEL, count, cols - c < PANEL ? cols - c : PANEL);
        for (int i = 0; i < outs; i++)
            to[i] += PANEL;
    }
}

/* Columns k .. of dw += dy^T x; of `shape` only n and k are read. */
static void columns_dw(float *dw, const Rows *dy, const Rows *x, int rows, const OpsWeight *shape,
                       int k)
{
    float in[DW_ROWS * DW_K];
    int cols = shape->k - k < DW_K ? shape->k - k : DW_K;

    for (int stay = 0; stay < shape->n; stay += DW_STAY)
        for (int t = 0; t < rows; t += DW_ROWS) {
            int count = rows - t < DW_ROWS ? rows - t : DW_ROWS;
            int end = stay + DW_STAY < shape->n ? stay + DW_STAY : shape->n;

            for (int i = 0; i < count; i++)
                for (int c = 0; c < cols; c += PANEL)
                    memcpy(in + (c * DW_ROWS + i * PANEL), row_at(x, t + i, shape->k) + k + c,
                           (size_t)(cols - c < PANEL ? cols - c : PANEL) * sizeof(float));
            for (int n = stay; n < end; n += DW_N)
                block_dw(dw, dy, in, t, count, n, end - n < DW_N ? end - n : DW_N, shape, k);
        }
}

void CPU(gemm_dw)(void *dw, const void *dy, const void *x, int rows, int n, int k)
{
    Rows up = {.at = dy}, in = {.at = x};

#pragma omp parallel for schedule(static) if ((double)rows * n * k > CPU_PARALLEL_WORK)
    for (int part = 0; part < parts_of(k, DW_K); part++)
        columns_dw(dw, &up, &in, rows, &(OpsWeight){.n = n, .k = k}, part * DW_K);
}

/* ---- experts ---- */

/* dout = weight dy of every slot, and the gradient of its weight. */
static void slot_up(const ExpertBwd *b, int r)
{
    int choice = b->plan->source[r], width = b->w->w2[0].n;
    const float *up = b->dy + (size_t)(choice / b->plan->topk) * width;
    const float *out = b->expert_out + (size_t)r * width;
    vf dot = {0};

    for (int i = 0; i < width; i += W) {
        vf g = vload_n(up + i, width - i);

        dot = vfma(g, vload_n(out + i, width - i), dot);
        vstore_n(b->dout + (size_t)r * width + i, g * b->weights[choice], width - i);
    }
    b->dweights[choice] = vsum(dot);
}

/* d of SiLU(a) (.) b, from da's place, which holds the gradient of act. */
static void slot_act(const ExpertBwd *b, int r)
{
    int inner = b->w->w2[0].k;
    size_t at = (size_t)r * inner;
    float *da = b->dact + at, *db = da + (size_t)b->plan->rows * inner;

    for (int f = 0; f < inner; f += W) {
        vf g = vload_n(da + f, inner - f), a = vload_n(b->a + at + f, inner - f);
        vf s = vsigmoid(a);

        vstore_n(db + f, g * a * s, inner - f);
        vstore_n(da + f, g * vload_n(b->b + at + f, inner - f) * s * (1 + a * (1 - s)), inner - f);
    }
}

/* to (+)= from W for the slots of expert e, columns k ... */
static void expert_dx(const ExpertBwd *b, int e, const OpsWeight *w, float *to, const float *from,
                      int k, int add)
{
    int end = b->plan->offsets[e + 1];

    for (int r = b->plan->offsets[e]; r < end; r += ROWS_MAX)
        rows_dx(to, from, r, end - r < ROWS_MAX ? end - r : ROWS_MAX, w, k, add);
}

/* Columns k .. of the gradients of w1, w3 (x's side) or w2 (act's side) of expert e. */
static void expert_dw(const ExpertBwd *b, int e, int down, int k)
{
    const OpsWeight *w = down ? &b->w->w2[e] : &b->w->w1[e];
    int first = b->plan->offsets[e], rows = b->plan->offsets[e + 1] - first;
    size_t inner = (size_t)b->w->w2[0].k;
    Rows up = {.at = down ? b->dout + (size_t)first * w->n : b->dact + (size_t)first * w->n};
    Rows in = {.at = down ? b->act + (size_t)first * w->k : b->x,
               .source = down ? NULL : b->plan->source + first,
               .topk = b->plan->topk};

    columns_dw(down ? b->dw2[e] : b->dw1[e], &up, &in, rows, w, k);
    if (down)
        return;
    up.at += (size_t)b->plan->rows * inner;
    columns_dw(b->dw3[e], &up, &in, rows, w, k);
}

/* dx of a row: the sum over its experts, ascending. */
static void row_sum(float *dx, const ExpertBwd *b, int t)
{
    int width = b->w->w2[0].n, topk = b->plan->topk;

    for (int i = 0; i < width; i += W) {
        vf sum = {0};

        for (int c = 0; c < topk; c++) {
            int r = b->plan->slot[t * topk + b->plan->order[t * topk + c]];

            sum += vload_n(b->dout + (size_t)r * width + i, width - i);
        }
        vstore_n(dx + i, sum, width - i);
    }
}

void CPU(moe_bwd)(void *dx, void *dweights, void *const *dw1, void *const *dw3, void *const *dw2,
                  const void *dy, const void *x, const void *a, const void *b, const void *act,
                  const void *expert_out, const void *weights, const MoePlan *plan,
                  const MoeWeights *w, void *dact, void *dout)
{
    int width = w->w2[0].n, inner = w->w2[0].k, rows = plan->rows / plan->topk;
    int wide = parts_of(width, DW_K), deep = parts_of(inner, DW_K);
    float *db = (float *)dact + (size_t)plan->rows * inner;
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

#pragma omp parallel if ((double)plan->rows * width * inner > CPU_PARALLEL_WORK)
    {
#pragma omp for schedule(static)
        for (int r = 0; r < plan->rows; r++)
            slot_up(&all, r);
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < plan->experts * deep; i++) {
            int e = i / deep, k = i % deep * DW_K;

            expert_dx(&all, e, &w->w2[e], dact, dout, k, 0);
            expert_dw(&all, e, 1, k);
        }
#pragma omp for schedule(static)
        for (int r = 0; r < plan->rows; r++)
            slot_act(&all, r);
            /* dout is spent: dw2 has it; each row's dx goes there until all are added up */
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < plan->experts * wide; i++) {
            int e = i / wide, k = i % wide * DW_K;

            expert_dx(&all, e, &w->w1[e], dout, dact, k, 0);
            expert_dx(&all, e, &w->w3[e], dout, db, k, 1);
            expert_dw(&all, e, 0, k);
        }
#pragma omp for schedule(static)
        for (int t = 0; t < rows; t++)
            row_sum((float *)dx + (size_t)t * width, &all, t);
    }
}
