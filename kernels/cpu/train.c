/*
 * The backward products with packed weights, those of the experts among them.
 *
 * Invariants
 *  1. dx[t, k] is one chain over ascending n, whatever the rows around it.
 *  2. dw[n, k] is one chain over ascending rows; threads split k, so no element has two writers.
 * Where a build has tiles of AMX, products with bf16 weights are those of amx_bwd.c.
 */
#include "kernels/cpu/train.h"

#include "kernels/cpu/vec.h"

#include <omp.h>

/* Columns of dx or dw that a task has. */
#define COLS 64

/* Outputs of a block of W that is turned over for dx: 16 KiB. */
#define DX_N (64 / PANEL * PANEL)

/* dx[i][0 .. cols) += sum over n of dy[i][n] W[n][k ..]; dx[i] points at column k. */
static void block_dx(float *const *dx, const float *const *dy, int rows, const OpsWeight *w, int k,
                     int cols)
{
    float panel[COLS * PANEL] __attribute__((aligned(64))), turned[DX_N * COLS];
    const float *from[ROWS_MAX];

    for (int n = 0; n < w->n; n += DX_N) {
        int kn = w->n - n < DX_N ? w->n - n : DX_N;

        for (int p = 0; p * PANEL < kn; p++) {
            CPU(panel_widen)(panel, w, n / PANEL + p, k, cols);
            CPU(transpose)(turned + p * PANEL * COLS, COLS, panel, PANEL, cols, PANEL);
        }
        for (int i = 0; i < rows; i++)
            from[i] = dy[i] + n;
        CPU(product)(dx, from, 1, rows, turned, COLS, kn, cols);
    }
}

static int parts_of(int n, int part)
{
    return (n + part - 1) / part;
}

static int is_rounded(const OpsWeight *w, GemmPrecision precision)
{
#ifdef CPU_AMX
    return w->format == WEIGHT_BF16 && precision == GEMM_ROUNDED;
#else
    (void)w;
    (void)precision;
    return 0;
#endif
}

/* Columns of a task, of which there are `others` times as many as blocks of columns. Tiles are
 * worth more, since a task turns over or pairs anew what it multiplies them with. */
static int task_columns(const OpsWeight *w, int others, GemmPrecision precision)
{
    int cols = is_rounded(w, precision) ? AMX_COLS : COLS, threads = omp_get_max_threads();

    while (cols > COLS && parts_of(w->k, cols) * others < threads)
        cols /= 2;
    return cols;
}

/* Rows of a task. */
static int task_rows(const OpsWeight *w, int rows, int parts, GemmPrecision precision)
{
    int each =
        is_rounded(w, precision) ? parts_of(rows, parts_of(omp_get_max_threads(), parts)) : 0;

    return each > ROWS_MAX ? each : ROWS_MAX;
}

/* `cols` columns of dx from k on, of rows `first` to `end`. */
static void rows_dx(float *dx, const float *dy, int first, int end, const OpsWeight *w, int k,
                    int cols, int add, GemmPrecision precision)
{
    float *to[ROWS_MAX];
    const float *from[ROWS_MAX];

    cols = w->k - k < cols ? w->k - k : cols;
    if (is_rounded(w, precision)) {
        CPU(amx_dx)
        (dx + (size_t)first * w->k, dy + (size_t)first * w->n, end - first, w, k, cols, add);
        return;
    }
    for (; first < end; first += ROWS_MAX) {
        int count = end - first < ROWS_MAX ? end - first : ROWS_MAX;

        for (int i = 0; i < count; i++) {
            to[i] = dx + (size_t)(first + i) * w->k + k;
            from[i] = dy + (size_t)(first + i) * w->n;
            if (!add)
                memset(to[i], 0, (size_t)cols * sizeof(float));
        }
        block_dx(to, from, count, w, k, cols);
    }
}

void CPU(product_dx)(void *dx, const void *dy, const OpsWeight *w, int rows, int add,
                     GemmPrecision precision)
{
    int cols = task_columns(w, 1, precision), parts = parts_of(w->k, cols);
    int each = task_rows(w, rows, parts, precision), blocks = parts_of(rows, each);

#pragma omp parallel for schedule(static) if ((double)rows * w->n * w->k > CPU_PARALLEL_WORK)
    for (int task = 0; task < parts * blocks; task++) {
        int first = task / parts * each, end = first + each < rows ? first + each : rows;

        rows_dx(dx, dy, first, end, w, task % parts * cols, cols, add, precision);
    }
}

void CPU(gemm_dx)(void *dx, const void *dy, const OpsWeight *w, int rows, int add)
{
    CPU(product_dx)(dx, dy, w, rows, add, GEMM_ROUNDED);
}

/* Rows, outputs and inputs of a block of dw; outputs that stay in the second-level cache while the
 * rows go by. */
#define DW_ROWS 128
#define DW_N    48
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
    int cols = shape->k - k < COLS ? shape->k - k : COLS;

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

/* `cols` columns of dw += dy^T x from k on; of `shape` only n, k and the format are read. */
static void columns_dw(float *dw, const Rows *dy, const Rows *x, int rows, const OpsWeight *shape,
                       int k, int cols, GemmPrecision precision)
{
    float in[DW_ROWS * COLS];

    cols = shape->k - k < cols ? shape->k - k : cols;
    if (is_rounded(shape, precision)) {
        CPU(amx_dw)(dw, dy, x, rows, shape, k, cols);
        return;
    }
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

void CPU(product_dw)(void *dw, const void *dy, const void *x, const OpsWeight *w, int rows,
                     GemmPrecision precision)
{
    Rows up = {.at = dy}, in = {.at = x};
    int cols = task_columns(w, 1, precision);

#pragma omp parallel for schedule(static) if ((double)rows * w->n * w->k > CPU_PARALLEL_WORK)
    for (int part = 0; part < parts_of(w->k, cols); part++)
        columns_dw(dw, &up, &in, rows, w, part * cols, cols, precision);
}

void CPU(gemm_dw)(void *dw, const void *dy, const void *x, const OpsWeight *w, int rows)
{
    CPU(product_dw)(dw, dy, x, w, rows, GEMM_ROUNDED);
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

/* Columns of the tasks of a pass over the experts' matrices that are shaped like w. */
typedef struct {
    int cols, parts; /* of an expert */
} ExpertTasks;

static ExpertTasks expert_tasks(const OpsWeight *w, int experts)
{
    int cols = task_columns(w, experts, GEMM_ROUNDED);

    return (ExpertTasks){.cols = cols, .parts = parts_of(w->k, cols)};
}

/* to (+)= from W for the slots of expert e, columns k ... */
static void expert_dx(const ExpertBwd *b, int e, const OpsWeight *w, float *to, const float *from,
                      int k, int cols, int add)
{
    rows_dx(to, from, b->plan->offsets[e], b->plan->offsets[e + 1], w, k, cols, add, GEMM_ROUNDED);
}

/* Columns k .. of the gradients of w1, w3 (x's side) or w2 (act's side) of expert e. */
static void expert_dw(const ExpertBwd *b, int e, int down, int k, int cols)
{
    const OpsWeight *w = down ? &b->w->w2[e] : &b->w->w1[e];
    int first = b->plan->offsets[e], rows = b->plan->offsets[e + 1] - first;
    size_t inner = (size_t)b->w->w2[0].k;
    Rows up = {.at = down ? b->dout + (size_t)first * w->n : b->dact + (size_t)first * w->n};
    Rows in = {.at = down ? b->act + (size_t)first * w->k : b->x,
               .source = down ? NULL : b->plan->source + first,
               .topk = b->plan->topk};

    columns_dw(down ? b->dw2[e] : b->dw1[e], &up, &in, rows, w, k, cols, GEMM_ROUNDED);
    if (down)
        return;
    up.at += (size_t)b->plan->rows * inner;
    columns_dw(b->dw3[e], &up, &in, rows, w, k, cols, GEMM_ROUNDED);
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
    ExpertTasks wide = expert_tasks(w->w1, plan->experts);
    ExpertTasks deep = expert_tasks(w->w2, plan->experts);
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
        for (int i = 0; i < plan->experts * deep.parts; i++) {
            int e = i / deep.parts, k = i % deep.parts * deep.cols;

            expert_dx(&all, e, &w->w2[e], dact, dout, k, deep.cols, 0);
            expert_dw(&all, e, 1, k, deep.cols);
        }
#pragma omp for schedule(static)
        for (int r = 0; r < plan->rows; r++)
            slot_act(&all, r);
            /* dout is spent: dw2 has it; each row's dx goes there until all are added up */
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < plan->experts * wide.parts; i++) {
            int e = i / wide.parts, k = i % wide.parts * wide.cols;

            expert_dx(&all, e, &w->w1[e], dout, dact, k, wide.cols, 0);
            expert_dx(&all, e, &w->w3[e], dout, db, k, wide.cols, 1);
            expert_dw(&all, e, 0, k, wide.cols);
        }
#pragma omp for schedule(static)
        for (int t = 0; t < rows; t++)
            row_sum((float *)dx + (size_t)t * width, &all, t);
    }
}
