/*
 * The backward products with bf16 weights, in tiles of AMX-BF16: what is multiplied is rounded to
 * bf16, sums are f32.
 *
 * dx = dy W is the product of amx.c with W turned over, some outputs at a time. dw += dy^T x sums
 * over rows: x becomes pairs of rows, as a panel has pairs of k, and dy is turned over.
 *
 * Invariants
 *  1. dx[t, k] sums over ascending pairs of n, whatever the rows around it.
 *  2. dw[n, k] sums over ascending pairs of rows, which begin at the call's first, or an expert's.
 *  3. Tiles are configured on entry and released on return.
 */
#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/train.h"

#define TURN_N 512 /* outputs that are turned over at a time */

/* ---- dx ---- */

/* Panels of the transpose of W: outputs n .. n + kn - 1, zeros up to a whole step, are what it sums
 * over, columns k .. k + cols - 1 its outputs. n and k begin panels. */
static void turn_over(uint16_t *to, const OpsWeight *w, int n, int kn, int k, int cols)
{
    uint16_t rows[PANEL * AMX_COLS] __attribute__((aligned(64)));
    size_t from_panel = cpu_panel_elements(w);
    int whole = whole_steps(kn), panels = (cols + PANEL - 1) / PANEL, i = 0;

    for (; i < kn; i += PANEL) {
        const uint16_t *from = (const uint16_t *)w->data + (size_t)((n + i) / PANEL) * from_panel;

        CPU(transpose)
        ((float *)rows, AMX_COLS / 2, (const float *)(from + (size_t)k * PANEL), PANEL,
         panels * PANEL / 2, PANEL);
        for (int j = 0; j < PANEL; j += 2)
            for (int p = 0; p < panels; p++)
                amx_pairs(to + (size_t)(p * whole + i + j) * PANEL, rows + j * AMX_COLS + p * PANEL,
                          rows + (j + 1) * AMX_COLS + p * PANEL, PANEL);
    }
    for (int p = 0; i < whole && p < panels; p++)
        memset(to + (size_t)(p * whole + i) * PANEL, 0, (size_t)(whole - i) * PANEL * sizeof *to);
}

void CPU(amx_dx)(float *dx, const float *dy, int rows, const OpsWeight *w, int k, int cols, int add)
{
    uint16_t turned[TURN_N * AMX_COLS] __attribute__((aligned(64)));

    for (int n = 0; rows > 0 && n < w->n; n += TURN_N) {
        int kn = w->n - n < TURN_N ? w->n - n : TURN_N;
        OpsWeight part = {.data = turned, .n = cols, .k = kn, .format = WEIGHT_BF16};

        turn_over(turned, w, n, kn, k, cols);
        for (int t = 0; t < rows; t += ROWS_MAX) {
            int count = rows - t < ROWS_MAX ? rows - t : ROWS_MAX;
            const float *from[ROWS_MAX] = {0};

            for (int i = 0; i < count; i++)
                from[i] = dy + (size_t)(t + i) * w->n + n;
            CPU(amx_panels)
            (dx + (size_t)t * w->k + k, w->k, from, count, &part, 0, (cols + PANEL - 1) / PANEL,
             add || n > 0);
        }
    }
}

/* ---- dw ---- */

/* Columns c .. c + cols - 1 of rows t .. t + count - 1 as pairs of rows, zeros up to a whole step:
 * a panel's width [BLOCK_K / 2][PANEL] at a time. */
static void rows_pair(uint16_t *to, const Rows *rows, int width, int t, int count, int c, int cols)
{
    static const float zeros[AMX_COLS];

    for (int i = 0; i < whole_steps(count); i += 2) {
        const float *even = i < count ? row_at(rows, t + i, width) + c : zeros;
        const float *odd = i + 1 < count ? row_at(rows, t + i + 1, width) + c : zeros;

        for (int p = 0; p < cols; p += PANEL)
            amx_round_pairs(to + (size_t)p * BLOCK_K + (size_t)i * PANEL, even + p, odd + p,
                            cols - p < PANEL ? cols - p : PANEL);
    }
}

/* Columns n .. of dy, turned over: a [PAIR_ROWS][BLOCK_K]. */
static void rows_turn(uint16_t *a, const Rows *dy, int width, int t, int count, int n, int outs)
{
    uint16_t pairs[PAIR_ROWS * BLOCK_K] __attribute__((aligned(64))) = {0};

    rows_pair(pairs, dy, width, t, count, n, outs);
    for (int c = 0; c < PAIR_ROWS; c += PANEL)
        CPU(transpose)
    ((float *)(a + c * BLOCK_K), BLOCK_K / 2, (const float *)(pairs + c * BLOCK_K), PANEL,
     whole_steps(count) / 2, PANEL);
}

/* dw [PAIR_ROWS][PANEL], rows ld apart, += a times a panel of pairs. The next panel and the sums
 * that it meets are asked for meanwhile. */
static void tile_dw(float *dw, size_t ld, const uint16_t *a, const uint16_t *pairs, int steps)
{
    const int step_bytes = STEP_K * PANEL * (int)sizeof *a, rows = (PAIR_ROWS + steps - 1) / steps;

    sums_load(dw, ld, 1);
    for (int s = 0; s < steps; s++) {
        fetch(pairs + (size_t)(BLOCK_K + s * STEP_K) * PANEL, step_bytes);
        for (int i = s * rows; i < (s + 1) * rows; i++) {
            __builtin_prefetch(dw + (size_t)i * ld + PANEL, 1);
            __builtin_prefetch(dw + (size_t)i * ld + PANEL + CPU_WIDTH, 1);
        }
        step(a + s * STEP_K, BLOCK_K * sizeof *a, pairs + (size_t)s * STEP_K * PANEL, 1);
    }
    sums_store(dw, ld, 1);
}

/* The same where dw has fewer rows or columns. */
static void edge_dw(float *dw, size_t ld, int rows, int cols, const uint16_t *a,
                    const uint16_t *pairs, int steps)
{
    float sums[PAIR_ROWS * PANEL] __attribute__((aligned(64))) = {0};

    for (int i = 0; i < rows; i++)
        memcpy(sums + i * PANEL, dw + (size_t)i * ld, (size_t)cols * sizeof *sums);
    tile_dw(sums, PANEL, a, pairs, steps);
    for (int i = 0; i < rows; i++)
        memcpy(dw + (size_t)i * ld, sums + i * PANEL, (size_t)cols * sizeof *sums);
}

void CPU(amx_dw)(float *dw, const Rows *dy, const Rows *x, int rows, const OpsWeight *w, int k,
                 int cols)
{
    uint16_t in[AMX_COLS * BLOCK_K] __attribute__((aligned(64)));
    uint16_t up[PAIR_ROWS * BLOCK_K] __attribute__((aligned(64)));
    AmxShape shape;

    shape_set(&shape, PAIR_ROWS);
    amx_configure(&shape);
    for (int t = 0; t < rows; t += BLOCK_K) {
        int count = rows - t < BLOCK_K ? rows - t : BLOCK_K, steps = whole_steps(count) / STEP_K;

        rows_pair(in, x, w->k, t, count, k, cols);
        for (int n = 0; n < w->n; n += PAIR_ROWS) {
            int outs = w->n - n < PAIR_ROWS ? w->n - n : PAIR_ROWS;

            rows_turn(up, dy, w->n, t, count, n, outs);
            for (int c = 0; c < cols; c += PANEL) {
                float *to = dw + (size_t)n * w->k + k + c;

                if (outs == PAIR_ROWS && cols - c >= PANEL)
                    tile_dw(to, (size_t)w->k, up, in + (size_t)c * BLOCK_K, steps);
                else
                    edge_dw(to, (size_t)w->k, outs, cols - c < PANEL ? cols - c : PANEL, up,
                            in + (size_t)c * BLOCK_K, steps);
            }
        }
    }
    amx_release();
}
