/*
 * The product of rounded activations with bf16 panels, in tiles of AMX-BF16.
 *
 * Activations are rounded to bf16, all rows of a block and some of k at a time; sums are f32. Four
 * tiles of sums, two of activations and two of weights make 2 x 2 products for every four loads. A
 * panel is two tiles wide and lies as they read it (gemm.c). Of k there is so much at a time that
 * two tiles' rows of activations and a panel stay in the first-level cache together.
 *
 * Invariants
 *  1. y[t, n] sums over ascending pairs of k, whatever the rows around it: sums leave their tiles
 *     between blocks of k as f32, which rounds nothing.
 *  2. Tiles are configured on entry and released on return: no state outlives a call.
 */
#include "kernels/cpu/amx.h"
#include "kernels/cpu/cpu.h"

#define PAIR_ROWS (2 * AMX_ROWS)
#define BLOCK_K   256 /* 16 KiB of a pair's activations, and as much of a panel */
#define STEP_K    32  /* of one load */

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

/* rows of x from k on as bf16, [..][BLOCK_K], zeros up to a whole step. */
static void round_rows(uint16_t *to, const float *const *x, int rows, int k, int kn)
{
    int end = (kn + STEP_K - 1) / STEP_K * STEP_K;

    for (int i = 0; i < rows; i++) {
        uint16_t *row = to + (size_t)i * BLOCK_K;

        amx_round(row, x[i] + k, kn);
        memset(row + kn, 0, (size_t)(end - kn) * sizeof *row);
    }
}

static void sums_load(const float *sums, int low)
{
    const size_t row = PANEL * sizeof(float);

    amx_load(0, sums, row);
    amx_load(1, sums + CPU_WIDTH, row);
    if (low) {
        amx_load(2, sums + AMX_ROWS * PANEL, row);
        amx_load(3, sums + AMX_ROWS * PANEL + CPU_WIDTH, row);
    }
}

static void sums_store(float *sums, int low)
{
    const size_t row = PANEL * sizeof(float);

    amx_store(0, sums, row);
    amx_store(1, sums + CPU_WIDTH, row);
    if (low) {
        amx_store(2, sums + AMX_ROWS * PANEL, row);
        amx_store(3, sums + AMX_ROWS * PANEL + CPU_WIDTH, row);
    }
}

/* The tiles of sums += those of a, whose rows are a_row bytes apart, and of a panel's pairs. */
static inline void step(const uint16_t *a, size_t a_row, const uint16_t *pairs, int low)
{
    const size_t row = PANEL * sizeof(float);

    amx_load(6, pairs, row);
    amx_load(7, pairs + 2 * CPU_WIDTH, row);
    amx_load(4, a, a_row);
    amx_multiply(0, 4, 6);
    amx_multiply(1, 4, 7);
    if (low) {
        amx_load(5, (const char *)a + AMX_ROWS * a_row, a_row);
        amx_multiply(2, 5, 6);
        amx_multiply(3, 5, 7);
    }
}

/* sums [PAIR_ROWS][PANEL] += a b over `steps` steps of k; `low`: there are more than 16 rows. */
static void panel_sums(float *sums, const uint16_t *a, const uint16_t *b, int steps, int low)
{
    sums_load(sums, low);
    for (int s = 0; s < steps; s++)
        step(a + s * STEP_K, BLOCK_K * sizeof *a, b + (size_t)s * STEP_K * PANEL, low);
    sums_store(sums, low);
}

void CPU(amx_panels)(float *const *out, const float *const *x, int rows, const OpsWeight *w,
                     int panel, int panels)
{
    uint16_t a[ROWS_MAX * BLOCK_K] __attribute__((aligned(64)));
    float sums[PANELS_MAX][ROWS_MAX * PANEL] __attribute__((aligned(64)));
    size_t whole = (size_t)(w->k + K_PAD - 1) / K_PAD * K_PAD * PANEL;
    /* beyond one pair tiles are whole: rows that are not there count as zeros */
    int full = rows > PAIR_ROWS ? (rows + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS : rows;
    AmxShape shape;

    shape_set(&shape, full < PAIR_ROWS ? full : PAIR_ROWS);
    amx_configure(&shape);
    memset(a + (size_t)rows * BLOCK_K, 0, (size_t)(full - rows) * BLOCK_K * sizeof *a);
    for (int p = 0; p < panels; p++)
        memset(sums[p], 0, (size_t)full * PANEL * sizeof(float));
    for (int k = 0; k < w->k; k += BLOCK_K) {
        int kn = w->k - k < BLOCK_K ? w->k - k : BLOCK_K;

        round_rows(a, x, rows, k, kn);
        for (int p = 0; p < panels; p++)
            for (int r = 0; r < full; r += PAIR_ROWS)
                panel_sums(sums[p] + r * PANEL, a + r * BLOCK_K,
                           (const uint16_t *)w->data + (size_t)(panel + p) * whole +
                               (size_t)k * PANEL,
                           (kn + STEP_K - 1) / STEP_K, full - r > AMX_ROWS);
    }
    amx_release();
    for (int p = 0; p < panels; p++) {
        int left = w->n - (panel + p) * PANEL, cols = left < PANEL ? left : PANEL;

        for (int i = 0; i < rows; i++)
            memcpy(out[i] + p * PANEL, sums[p] + i * PANEL, (size_t)cols * sizeof(float));
    }
}

/* Tiles that stay in the first-level cache. */
double CPU(amx_ceiling)(size_t rounds)
{
    uint16_t a[PAIR_ROWS * STEP_K] __attribute__((aligned(64))) = {0};
    uint16_t b[STEP_K * PANEL] __attribute__((aligned(64))) = {0};
    float sums[PAIR_ROWS * PANEL] __attribute__((aligned(64))) = {0};
    AmxShape shape;

    shape_set(&shape, PAIR_ROWS);
    amx_configure(&shape);
    sums_load(sums, 1);
    for (size_t r = 0; r < rounds; r++)
        step(a, STEP_K * sizeof *a, b, 1);
    sums_store(sums, 1);
    amx_release();
    return sums[0] == 12345 ? 0 : 2.0 * PAIR_ROWS * PANEL * STEP_K * (double)rounds;
}
