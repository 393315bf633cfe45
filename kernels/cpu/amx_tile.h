/*
 * A product of two by two tiles: how tiles are numbered, shaped, loaded and multiplied. Shared by
 * the products of amx.c and amx_bwd.c; the instructions are in amx.h.
 */
#pragma once

#include "kernels/cpu/amx.h"
#include "kernels/cpu/cpu.h"

#define PAIR_ROWS (2 * AMX_ROWS)
#define BLOCK_K   256 /* 16 KiB of a pair's activations, and as much of a panel */
#define STEP_K    32  /* of one load */
#define AHEAD     4   /* steps */

static inline int whole_steps(int n)
{
    return (n + STEP_K - 1) / STEP_K * STEP_K;
}

/* Tiles: sums 0 .. 3 (row of tiles * 2 + column of tiles), activations 4, 5, weights 6, 7. */
static inline void shape_set(AmxShape *shape, int rows)
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

/* Sums of a pair, rows `ld` numbers apart. */
static inline void sums_load(const float *sums, size_t ld, int low)
{
    size_t row = ld * sizeof *sums;

    amx_load(0, sums, row);
    amx_load(1, sums + CPU_WIDTH, row);
    if (low) {
        amx_load(2, sums + AMX_ROWS * ld, row);
        amx_load(3, sums + AMX_ROWS * ld + CPU_WIDTH, row);
    }
}

static inline void sums_zero(int low)
{
    amx_zero(0);
    amx_zero(1);
    if (low) {
        amx_zero(2);
        amx_zero(3);
    }
}

static inline void sums_store(float *sums, size_t ld, int low)
{
    size_t row = ld * sizeof *sums;

    amx_store(0, sums, row);
    amx_store(1, sums + CPU_WIDTH, row);
    if (low) {
        amx_store(2, sums + AMX_ROWS * ld, row);
        amx_store(3, sums + AMX_ROWS * ld + CPU_WIDTH, row);
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

/* Asks for a line from each of `n` bytes. */
static inline void fetch(const void *at, int n)
{
    for (int i = 0; i < n; i += AMX_BYTES)
        __builtin_prefetch((const char *)at + i);
}
