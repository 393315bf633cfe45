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
#include "kernels/cpu/amx_tile.h"

#define CHUNK_K 2048 /* of rounded activations, in the second-level cache */

/* Of x [rows], the numbers from k on as bf16: [..][BLOCK_K] for each block of k, zeros up to a
 * whole step and up to `full` rows. */
static void round_chunk(uint16_t a[][ROWS_MAX * BLOCK_K], const float *const *x, int rows, int full,
                        int k, int end)
{
    for (; k < end; k += BLOCK_K, a++) {
        int kn = end - k < BLOCK_K ? end - k : BLOCK_K;
        int whole = whole_steps(kn);

        for (int i = 0; i < rows; i++) {
            uint16_t *row = *a + (size_t)i * BLOCK_K;

            amx_round(row, x[i] + k, kn);
            memset(row + kn, 0, (size_t)(whole - kn) * sizeof *row);
        }
        memset(*a + (size_t)rows * BLOCK_K, 0, (size_t)(full - rows) * BLOCK_K * sizeof **a);
    }
}

/* A block of k of a panel, and what is worked on next: a load of tiles that misses the first-level
 * cache costs as much as ten that do not, so the next is asked for in time. */
typedef struct {
    const uint16_t *pairs, *next_pairs;
    float *sums, *next_sums, *to; /* rows of `to`, which may be sums, are ld apart */
    size_t ld;
    int steps, low, none; /* none: there are no sums yet */
} Block;

/* to [PAIR_ROWS] = sums [PAIR_ROWS][PANEL] + a times the block. */
static void block_sums(const uint16_t *a, const Block *b)
{
    const int step_bytes = STEP_K * PANEL * (int)sizeof *a;
    const int sums_bytes = PAIR_ROWS * PANEL * (int)sizeof(float) / (BLOCK_K / STEP_K);
    const int rows = PAIR_ROWS / (BLOCK_K / STEP_K); /* of `to`, to be asked for in each step */

    b->none ? sums_zero(b->low) : sums_load(b->sums, PANEL, b->low);
    for (int s = 0; s < b->steps; s++) {
        int ahead = s + AHEAD - b->steps;
        const uint16_t *next = ahead < 0 ? b->pairs : b->next_pairs;

        fetch(next + (size_t)(ahead < 0 ? s + AHEAD : ahead) * STEP_K * PANEL, step_bytes);
        fetch((const char *)b->next_sums + s * sums_bytes, sums_bytes);
        for (int i = s * rows; b->to != b->sums && i < (s + 1) * rows; i++) {
            __builtin_prefetch(b->to + (size_t)i * b->ld, 1);
            __builtin_prefetch(b->to + (size_t)i * b->ld + CPU_WIDTH, 1);
        }
        step(a + s * STEP_K, BLOCK_K * sizeof *a, b->pairs + (size_t)s * STEP_K * PANEL, b->low);
    }
    sums_store(b->to, b->ld, b->low);
}

/* Panels whose sums lie together between blocks of k. After the last block of a chunk they are in
 * out, where the next chunk finds them, and the first if it is to add. */
typedef struct {
    float sums[PANELS_MAX][ROWS_MAX * PANEL] __attribute__((aligned(64)));
    const uint16_t *data;
    size_t whole; /* elements of a panel */
    float *out;
    size_t ldo;
    int panels, cols, rows, full, add;
} Group;

/* Panel p's sums of the pair at row r, to out or back. */
static void pair_copy(Group *g, int r, int p, int back)
{
    int left = g->cols - p * PANEL, cols = left < PANEL ? left : PANEL;

    for (int i = r; i < r + PAIR_ROWS && i < g->rows; i++) {
        float *to = g->out + (size_t)i * g->ldo + p * PANEL, *sums = g->sums[p] + i * PANEL;

        memcpy(back ? sums : to, back ? to : sums, (size_t)cols * sizeof *sums);
    }
}

/* Tiles are whole: may they be written to out? */
static int is_whole(const Group *g, int r, int p)
{
    int end = g->full < r + PAIR_ROWS ? g->full : r + PAIR_ROWS;

    return g->cols >= (p + 1) * PANEL && g->rows >= end;
}

/* The group's sums += a block of k, a [full][BLOCK_K], pair by pair of tiles' rows. `last`: of the
 * chunk. */
static void group_sums(Group *g, const uint16_t *a, int k, int kn, int last)
{
    const uint16_t *first = g->data + (size_t)k * PANEL;
    Block b = {.steps = whole_steps(kn) / STEP_K, .none = k == 0 && !g->add};

    for (int r = 0; r < g->full; r += PAIR_ROWS)
        for (int p = 0; p < g->panels; p++) {
            int ends = p + 1 == g->panels, low = r + PAIR_ROWS < g->full ? r + PAIR_ROWS : 0;
            int out = last && is_whole(g, r, p);

            b.low = g->full - r > AMX_ROWS;
            b.pairs = first + (size_t)p * g->whole;
            b.next_pairs = !ends ? b.pairs + g->whole : low ? first : first + (size_t)kn * PANEL;
            b.sums = g->sums[p] + r * PANEL;
            b.next_sums = ends ? g->sums[0] + low * PANEL : g->sums[p + 1] + r * PANEL;
            b.to = out ? g->out + (size_t)r * g->ldo + p * PANEL : b.sums;
            b.ld = out ? g->ldo : PANEL;
            block_sums(a + (size_t)r * BLOCK_K, &b);
            if (last && !out)
                pair_copy(g, r, p, 0);
        }
}

/* A chunk of rounded activations, from `from` to `end` of k, times the group's panels. */
static void group_chunk(Group *g, uint16_t a[][ROWS_MAX * BLOCK_K], int from, int end)
{
    for (int r = 0; (from > 0 || g->add) && r < g->full; r += PAIR_ROWS)
        for (int p = 0; p < g->panels; p++)
            pair_copy(g, r, p, 1);
    for (int k = from; k < end; k += BLOCK_K)
        group_sums(g, a[(k - from) / BLOCK_K], k, end - k < BLOCK_K ? end - k : BLOCK_K,
                   k + BLOCK_K >= end);
}

void CPU(amx_panels)(float *out, size_t ldo, const float *const *x, int rows, const OpsWeight *w,
                     int panel, int panels, int add)
{
    uint16_t a[CHUNK_K / BLOCK_K][ROWS_MAX * BLOCK_K] __attribute__((aligned(64)));
    Group g;
    AmxShape shape;

    g.whole = cpu_panel_elements(w);
    g.ldo = ldo;
    g.rows = rows;
    g.add = add;

    /* beyond one pair tiles are whole: rows that are not there count as zeros */
    g.full = rows > PAIR_ROWS ? (rows + AMX_ROWS - 1) / AMX_ROWS * AMX_ROWS : rows;
    shape_set(&shape, g.full < PAIR_ROWS ? g.full : PAIR_ROWS);
    amx_configure(&shape);
    for (int from = 0; from < w->k; from += CHUNK_K) {
        int end = w->k - from < CHUNK_K ? w->k : from + CHUNK_K;

        round_chunk(a, x, rows, g.full, from, end);
        for (int first = 0; first < panels; first += PANELS_MAX) {
            g.panels = panels - first < PANELS_MAX ? panels - first : PANELS_MAX;
            g.cols = w->n - (panel + first) * PANEL;
            g.data = (const uint16_t *)w->data + (size_t)(panel + first) * g.whole;
            g.out = out + (size_t)first * PANEL;
            group_chunk(&g, a, from, end);
        }
    }
    amx_release();
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
    sums_load(sums, PANEL, 1);
    for (size_t r = 0; r < rounds; r++)
        step(a, STEP_K * sizeof *a, b, 1);
    sums_store(sums, PANEL, 1);
    amx_release();
    return sums[0] == 12345 ? 0 : 2.0 * PAIR_ROWS * PANEL * STEP_K * (double)rounds;
}
