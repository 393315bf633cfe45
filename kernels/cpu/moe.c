/*
 * The experts: products over rows gathered by expert, in place of a loop over sequences.
 *
 * Invariants
 *  1. A task is one expert's group of panels; its rows are read where they lie, by pointer.
 *  2. A row's experts are added up in ascending order of their number.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

/* The experts that have rows, and the tasks of each. */
typedef struct {
    int active[OPS_EXPERTS_MAX];
    int count, panels, groups;
} Tasks;

static void tasks_make(Tasks *tasks, const MoePlan *plan, int n)
{
    tasks->count = 0;
    tasks->panels = (n + PANEL - 1) / PANEL;
    tasks->groups = (tasks->panels + PANELS_MAX - 1) / PANELS_MAX;
    for (int e = 0; e < plan->experts; e++)
        if (plan->offsets[e + 1] > plan->offsets[e])
            tasks->active[tasks->count++] = e;
}

static void silu_mul(float *act, float *a, float *b, const float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i += W) {
        vf g = vload_n(gate + i, n - i), u = vload_n(up + i, n - i);

        if (a)
            vstore_n(a + i, g, n - i);
        if (b)
            vstore_n(b + i, u, n - i);
        vstore_n(act + i, g * vsigmoid(g) * u, n - i);
    }
}

/* Sorted slots first .. first + rows - 1 of one expert, one group of panels. */
static void up_block(float *a, float *b, float *act, const float *x, const MoePlan *plan,
                     const OpsWeight *w1, const OpsWeight *w3, int first, int rows, int panel,
                     int panels)
{
    float gate[ROWS_MAX][PANELS_MAX * PANEL], up[ROWS_MAX][PANELS_MAX * PANEL];
    const float *in[ROWS_MAX] = {0};
    int col = panel * PANEL, width = w1->n;
    int n = width - col < panels * PANEL ? width - col : panels * PANEL;

    for (int i = 0; i < rows; i++)
        in[i] = x + (size_t)(plan->source[first + i] / plan->topk) * w1->k;
    CPU(gemm_panels)(gate[0], PANELS_MAX * PANEL, in, rows, w1, panel, panels, GEMM_ROUNDED);
    CPU(gemm_panels)(up[0], PANELS_MAX * PANEL, in, rows, w3, panel, panels, GEMM_ROUNDED);
    for (int i = 0; i < rows; i++) {
        size_t at = (size_t)(first + i) * width + col;

        silu_mul(act + at, a ? a + at : NULL, b ? b + at : NULL, gate[i], up[i], n);
    }
}

void CPU(moe_up_fwd)(void *a, void *b, void *act, const void *x, const MoePlan *plan,
                     const MoeWeights *w)
{
    Tasks tasks;
    double work = 2.0 * plan->rows * w->w1[0].n * w->w1[0].k;

    tasks_make(&tasks, plan, w->w1[0].n);
#pragma omp parallel for schedule(static) if (work > CPU_PARALLEL_WORK)
    for (int task = 0; task < tasks.count * tasks.groups; task++) {
        int e = tasks.active[task / tasks.groups], panel = task % tasks.groups * PANELS_MAX;
        int panels = tasks.panels - panel < PANELS_MAX ? tasks.panels - panel : PANELS_MAX;

        for (int r = plan->offsets[e]; r < plan->offsets[e + 1]; r += ROWS_MAX) {
            int left = plan->offsets[e + 1] - r;

            up_block(a, b, act, x, plan, &w->w1[e], &w->w3[e], r, left < ROWS_MAX ? left : ROWS_MAX,
                     panel, panels);
        }
    }
}

static void combine(float *y, const float *outs, const float *weights, const MoePlan *plan, int t,
                    int width)
{
    for (int i = 0; i < width; i += W) {
        vf sum = {0};

        for (int c = 0; c < plan->topk; c++) {
            int choice = t * plan->topk + plan->order[t * plan->topk + c];
            const float *from = outs + (size_t)plan->slot[choice] * width;

            sum = vfma(vset(weights[choice]), vload_n(from + i, width - i), sum);
        }
        vstore_n(y + i, sum, width - i);
    }
}

void CPU(moe_down_fwd)(void *y, void *expert_out, const void *act, const void *weights,
                       const MoePlan *plan, const MoeWeights *w)
{
    int width = w->w2[0].n, inner = w->w2[0].k, rows = plan->rows / plan->topk;
    double work = (double)plan->rows * width * inner;
    Tasks tasks;

    tasks_make(&tasks, plan, width);
#pragma omp parallel for schedule(static) if (work > CPU_PARALLEL_WORK)
    for (int task = 0; task < tasks.count * tasks.groups; task++) {
        int e = tasks.active[task / tasks.groups], panel = task % tasks.groups * PANELS_MAX;
        int panels = tasks.panels - panel < PANELS_MAX ? tasks.panels - panel : PANELS_MAX;
        const float *in[ROWS_MAX] = {0};

        for (int r = plan->offsets[e]; r < plan->offsets[e + 1]; r += ROWS_MAX) {
            int left = plan->offsets[e + 1] - r, count = left < ROWS_MAX ? left : ROWS_MAX;

            for (int i = 0; i < count; i++)
                in[i] = (const float *)act + (size_t)(r + i) * inner;
            CPU(gemm_panels)
            ((float *)expert_out + (size_t)r * width + panel * PANEL, width, in, count, &w->w2[e],
             panel, panels, GEMM_ROUNDED);
        }
    }
#pragma omp parallel for schedule(static) if ((double)rows * width > CPU_PARALLEL_WORK)
    for (int t = 0; t < rows; t++)
        combine((float *)y + (size_t)t * width, expert_out, weights, plan, t, width);
}
