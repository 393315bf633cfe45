/*
 * The product of rounded activations with bf16 panels, in tiles of AMX-BF16.
 *
 * Activations are rounded to bf16, a block of rows and of k at a time; sums are f32. Four tiles of
 * sums, two of activations and two of weights make 2 x 2 products for every four loads. A panel is
 * two tiles wide and lies as they read it (gemm.c).
 *
 * Invariants
 *  1. y[t, n] sums over ascending pairs of k, whatever the rows around it: sums leave their tiles
 *     between blocks of k as f32, which rounds nothing.
 *  2. Tiles are configured on entry and released on return: no state outlives a call.
 *
 * Never run on hardware yet: built against the emulation of amx.h it is held against the oracle.
 */
#include "kernels/cpu/amx.h"
#include "kernels/cpu/cpu.h"

#define BLOCK_ROWS (2 * AMX_ROWS)
#define BLOCK_K    512 /* activations of a block: 32 KiB of bf16 */
#define STEP_K     32  /* of one load */

/* Tiles: sums 0 .. 3 (row of tiles * 2 + column of tiles), activations 4, 5, weights 6, 7. */
static void shape_set(AmxShape *shape, int rows)
{
    static const uint16_t bytes[AMX_TILES] = {4 * CPU_WIDTH, 4 * CPU_WIDTH, 4 * CPU_WIDTH,
                                              4 * CPU_WIDTH, 2 * STEP_K,    2 * STEP_K,
                                              4 * CPU_WIDTH, 4 * CPU_WIDTH};
    int high = rows < AMX_ROWS ? rows : AMX_ROWS, low = rows - high;
    const int count[AMX_TILES] = {high, high, low, low, high, low, STEP_K / 2, STEP_K / 2};

    memset(shape, 0, sizeof *shape);
    shape->palette = 1;
    for (int t = 0; t < AMX_TILES; t++) {
        shape->rows[t] = (uint8_t)count[t];
        shape->bytes[t] = count[t] ? bytes[t] : 0;
    }
}

/* rows of x from k on as bf16, [BLOCK_ROWS][BLOCK_K], zeros up to a whole step. */
static void round_rows(uint16_t *to, const float *const *x, int rows, int k, int kn)
{
    int end = (kn + STEP_K - 1) / STEP_K * STEP_K;

    for (int i = 0; i < rows; i++) {
        uint16_t *row = to + (size_t)i * BLOCK_K;

        amx_round(row, x[i] + k, kn);
        memset(row + kn, 0, (size_t)(end - kn) * sizeof *row);
    }
}

/* sums [BLOCK_ROWS][PANEL] += a b over `steps` steps of k; `low`: there are more than 16 rows. */
static void panel_sums(float *sums, const uint16_t *a, const uint16_t *b, int steps, int low)
{
    const size_t row = PANEL * sizeof(float), a_row = BLOCK_K * sizeof *a;

    amx_load(0, sums, row);
    amx_load(1, sums + CPU_WIDTH, row);
    if (low) {
        amx_load(2, sums + AMX_ROWS * PANEL, row);
        amx_load(3, sums + AMX_ROWS * PANEL + CPU_WIDTH, row);
    }
    for (int s = 0; s < steps; s++) {
        const uint16_t *pairs = b + (size_t)s * STEP_K * PANEL;

        amx_load(6, pairs, row);
        amx_load(7, pairs + 2 * CPU_WIDTH, row);
        amx_load(4, a + s * STEP_K, a_row);
        amx_multiply(0, 4, 6);
        amx_multiply(1, 4, 7);
        if (low) {
            amx_load(5, a + s * STEP_K + AMX_ROWS * BLOCK_K, a_row);
            amx_multiply(2, 5, 6);
            amx_multiply(3, 5, 7);
        }
    }
    amx_store(0, sums, row);
    amx_store(1, sums + CPU_WIDTH, row);
    if (low) {
        amx_store(2, sums + AMX_ROWS * PANEL, row);
        amx_store(3, sums + AMX_ROWS * PANEL + CPU_WIDTH, row);
    }
}

/* Up to BLOCK_ROWS rows of all panels. */
static void block_panels(float *const *out, const float *const *x, int rows, const OpsWeight *w,
                         const uint16_t *data, int panel, int panels)
{
    uint16_t a[BLOCK_ROWS * BLOCK_K] __attribute__((aligned(64)));
    float sums[PANELS_MAX][BLOCK_ROWS * PANEL] __attribute__((aligned(64)));
    size_t whole = (size_t)(w->k + K_PAD - 1) / K_PAD * K_PAD * PANEL;

    memset(sums, 0, sizeof sums);
    for (int k = 0; k < w->k; k += BLOCK_K) {
        int kn = w->k - k < BLOCK_K ? w->k - k : BLOCK_K;

        round_rows(a, x, rows, k, kn);
        for (int p = 0; p < panels; p++)
            panel_sums(sums[p], a, data + (size_t)(panel + p) * whole + (size_t)k * PANEL,
                       (kn + STEP_K - 1) / STEP_K, rows > AMX_ROWS);
    }
    for (int p = 0; p < panels; p++) {
        int left = w->n - (panel + p) * PANEL, cols = left < PANEL ? left : PANEL;

        for (int i = 0; i < rows; i++)
            memcpy(out[i] + p * PANEL, sums[p] + i * PANEL, (size_t)cols * sizeof(float));
    }
}

void CPU(amx_panels)(float *const *out, const float *const *x, int rows, const OpsWeight *w,
                     int panel, int panels)
{
    for (int t = 0; t < rows; t += BLOCK_ROWS) {
        int count = rows - t < BLOCK_ROWS ? rows - t : BLOCK_ROWS;
        AmxShape shape;

        shape_set(&shape, count);
        amx_configure(&shape);
        block_panels(out + t, x + t, count, w, w->data, panel, panels);
    }
    amx_release();
}
