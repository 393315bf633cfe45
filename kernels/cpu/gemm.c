/*
 * Packed weights and the products with them.
 *
 * A matrix W [n, k] is kept as panels of PANEL outputs, each [k][PANEL], the last one filled up
 * with zeros: a product streams it once, in order, for any number of rows. In bf16 a panel is
 * [k / 2][PANEL][2], k filled up to whole K_PAD: a vector of pairs is widened by one operation for
 * each half, and tiles of AMX read it as it lies. Codes of four and eight bits: quant.c.
 *
 * Invariants
 *  1. y[t, n] is one chain of fused multiply-adds over ascending k, whatever the rows around it
 *     (the products of AMX: amx.c).
 *  2. Threads split the columns; no sum is ever split.
 *
 * Not here: gathering rows by expert (moe.c).
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "kernels/quant.h"

#ifdef CPU_AMX
#include <omp.h>
#endif

static int panels_of(int n)
{
    return (n + PANEL - 1) / PANEL;
}

static size_t element_size(WeightFormat format)
{
    return format == WEIGHT_BF16 ? sizeof(uint16_t) : sizeof(float);
}

static const char *panel_at(const OpsWeight *w, int panel)
{
    return (const char *)w->data + (size_t)panel * cpu_panel_elements(w) * element_size(w->format);
}

size_t CPU(weight_bytes)(WeightFormat format, int n, int k)
{
    if (quant_is(format))
        return CPU(quant_bytes)(format, n, k);
    return (size_t)panels_of(n) * PANEL * cpu_padded_k(format, k) * element_size(format);
}

static size_t index_of(const OpsWeight *w, int n, int k)
{
    size_t at = (size_t)(n / PANEL) * cpu_panel_elements(w), c = (size_t)(n % PANEL);

    if (w->format == WEIGHT_BF16)
        return at + ((size_t)(k / 2) * PANEL + c) * 2 + (size_t)(k % 2);
    return at + (size_t)k * PANEL + c;
}

/* Inputs of a panel that are packed at a time. */
#define PACK_K 64

/* to [kn / 2][PANEL][2] of from [kn][PANEL]; kn is even. */
static void pairs_pack(uint32_t *to, const float *from, int kn)
{
    for (int i = 0; i < kn / 2; i++)
        for (int c = 0; c < PANEL; c++) {
            const float *even = from + 2 * i * PANEL + c;

            to[i * PANEL + c] = bf16_of(even[0]) | (uint32_t)bf16_of(even[PANEL]) << 16;
        }
}

static void panel_pack(const OpsWeight *w, const float *rows, int panel)
{
    int n = w->n - panel * PANEL < PANEL ? w->n - panel * PANEL : PANEL;
    char *to = (char *)w->data + (size_t)panel * cpu_panel_elements(w) * element_size(w->format);
    const float *from = rows + (size_t)panel * PANEL * (size_t)w->k;
    float some[PACK_K * PANEL] __attribute__((aligned(64))) = {0};

    for (int k = 0; k < w->k; k += PACK_K) {
        int kn = w->k - k < PACK_K ? w->k - k : PACK_K;
        int whole = k + kn < w->k ? kn : (int)cpu_padded_k(w->format, w->k) - k;

        CPU(transpose)(some, PANEL, from + k, (size_t)w->k, n, kn);
        memset(some + kn * PANEL, 0, (size_t)(whole - kn) * PANEL * sizeof *some);
        if (w->format == WEIGHT_BF16)
            pairs_pack((uint32_t *)to + (size_t)k / 2 * PANEL, some, whole);
        else
            memcpy((float *)to + (size_t)k * PANEL, some, (size_t)whole * PANEL * sizeof *some);
    }
}

void CPU(weight_pack)(const OpsWeight *w, const void *rows)
{
    if (quant_is(w->format)) {
        CPU(quant_pack)(w, rows);
        return;
    }
#pragma omp parallel for schedule(static) if ((double)w->n * w->k > CPU_PARALLEL_WORK)
    for (int panel = 0; panel < panels_of(w->n); panel++)
        panel_pack(w, rows, panel);
}

static float weight_at(const OpsWeight *w, int n, int k)
{
    size_t at = index_of(w, n, k);

    if (quant_is(w->format))
        return CPU(quant_at)(w, n, k);
    return w->format == WEIGHT_BF16 ? bf16_float(((const uint16_t *)w->data)[at])
                                    : ((const float *)w->data)[at];
}

void CPU(weight_unpack)(void *rows, const OpsWeight *w)
{
    for (int n = 0; n < w->n; n++)
        for (int k = 0; k < w->k; k++)
            ((float *)rows)[(size_t)n * w->k + k] = weight_at(w, n, k);
}

void CPU(embed_fwd)(void *y, const OpsWeight *w, const int *ids, int rows)
{
    for (int t = 0; t < rows; t++)
        for (int k = 0; k < w->k; k++)
            ((float *)y)[(size_t)t * w->k + k] = weight_at(w, ids[t], k);
}

/* mr rows times np panels; mr, np and bf16 are constants at every call. */
INLINE void block(float *out, size_t ldo, const float *const *x, const OpsWeight *w, int panel,
                  int mr, int np, int bf16)
{
    vf acc[TILE_ROWS][TILE_COLS] = {0};
    const void *cols[TILE_COLS / 2];
    size_t ahead = (size_t)np * cpu_panel_elements(w) * element_size(w->format);

    for (int j = 0; j < np; j++)
        cols[j] = panel_at(w, panel + j);
    if (bf16)
        tile_pairs(mr, 2 * np, w->k, x, cols, ahead, acc);
    else
        tile(mr, 2 * np, w->k, x, 1, cols, PANEL, ahead, acc);
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < 2 * np; j++) {
            int n = panel * PANEL + j * W;

            if (n < w->n)
                vstore_n(out + (size_t)i * ldo + j * W, acc[i][j], w->n - n);
        }
}

/* Few rows take many panels at once, to have enough chains in flight. */
#define BLOCK_CASE(mr)                                                                             \
    case mr:                                                                                       \
        bf16 ? block(out, ldo, x, w, panel, mr, 1, 1) : block(out, ldo, x, w, panel, mr, 1, 0);    \
        break;

static void block_tall(float *out, size_t ldo, const float *const *x, const OpsWeight *w, int panel,
                       int mr, int bf16)
{
    switch (mr) {
        FOR_TILE_ROWS(BLOCK_CASE)
    default:
        break;
    }
}

static void block_wide(float *out, size_t ldo, const float *const *x, const OpsWeight *w, int panel,
                       int mr, int bf16)
{
    if (mr == 1)
        bf16 ? block(out, ldo, x, w, panel, 1, 4, 1) : block(out, ldo, x, w, panel, 1, 4, 0);
    else
        bf16 ? block(out, ldo, x, w, panel, 2, 2, 1) : block(out, ldo, x, w, panel, 2, 2, 0);
}

void CPU(panel_widen)(float *to, const OpsWeight *w, int panel, int k, int kn)
{
    const char *from = panel_at(w, panel) + (size_t)k * PANEL * element_size(w->format);

    if (quant_is(w->format))
        CPU(quant_widen)(to, w, panel, k, kn);
    if (w->format == WEIGHT_REAL)
        memcpy(to, from, (size_t)kn * PANEL * sizeof(float));
    for (int i = 0; w->format == WEIGHT_BF16 && i < kn; i += 2)
        for (int c = 0; c < PANEL; c += W) {
            const uint32_t *pairs = (const uint32_t *)from + (size_t)(i / 2) * PANEL + c;

            vstore(to + (size_t)i * PANEL + c, vload_low(pairs));
            if (i + 1 < kn)
                vstore(to + (size_t)(i + 1) * PANEL + c, vload_high(pairs));
        }
}

/* Many rows are worth widening bf16 once for all of them, and any number of rows codes, as much of
 * k as stays in the first-level cache. The chains are the same. */
#define WIDEN_ROWS (2 * TILE_ROWS)
#define WIDEN_K    192

static void panels_widened(float *out, size_t ldo, const float *const *x, int rows,
                           const OpsWeight *w, int panel, int panels)
{
    float wide[WIDEN_K * PANEL] __attribute__((aligned(64)));
    float *to[ROWS_MAX];
    const float *from[ROWS_MAX];

    for (int p = 0; p < panels; p++) {
        int n = w->n - (panel + p) * PANEL, cols = n < PANEL ? n : PANEL;

        for (int i = 0; i < rows; i++) {
            to[i] = out + (size_t)i * ldo + p * PANEL;
            memset(to[i], 0, (size_t)cols * sizeof(float));
        }
        for (int k = 0; k < w->k; k += WIDEN_K) {
            int kn = w->k - k < WIDEN_K ? w->k - k : WIDEN_K;

            for (int i = 0; i < rows; i++)
                from[i] = x[i] + k;
            CPU(panel_widen)(wide, w, panel + p, k, kn);
            CPU(product)(to, from, 1, rows, wide, PANEL, kn, cols);
        }
    }
}

void CPU(gemm_panels)(float *out, size_t ldo, const float *const *x, int rows, const OpsWeight *w,
                      int panel, int panels, GemmPrecision precision)
{
    int bf16 = w->format == WEIGHT_BF16;

#ifdef CPU_AMX
    if (bf16 && precision == GEMM_ROUNDED) {
        CPU(amx_panels)(out, ldo, x, rows, w, panel, panels, 0);
        return;
    }
#else
    (void)precision;
#endif
    if (quant_is(w->format) || (bf16 && rows >= WIDEN_ROWS)) {
        panels_widened(out, ldo, x, rows, w, panel, panels);
        return;
    }

    for (int t = 0; t < rows; t += TILE_ROWS) {
        int mr = rows - t < TILE_ROWS ? rows - t : TILE_ROWS;
        int wide = mr == 1 ? 4 : mr == 2 ? 2 : 1, p = 0;

        for (; wide > 1 && p + wide <= panels; p += wide)
            block_wide(out + (size_t)t * ldo + p * PANEL, ldo, x + t, w, panel + p, mr, bf16);
        for (; p < panels; p++)
            block_tall(out + (size_t)t * ldo + p * PANEL, ldo, x + t, w, panel + p, mr, bf16);
    }
}

/* Panels of a task. Each task rounds its rows anew: there are as few as occupy all threads. */
static int task_panels(const OpsWeight *w, int panels, int blocks, GemmPrecision precision)
{
#ifdef CPU_AMX
    if (w->format == WEIGHT_BF16 && precision == GEMM_ROUNDED) {
        int threads = omp_get_max_threads(), groups = 1;

        while (blocks * groups % threads != 0 && blocks * groups < 4 * threads)
            groups++;
        return (panels + groups - 1) / groups;
    }
#else
    (void)w;
    (void)blocks;
    (void)precision;
#endif
    return panels < PANELS_MAX ? panels : PANELS_MAX;
}

void CPU(gemm_fwd)(void *y, const void *x, const OpsWeight *w, int rows, GemmPrecision precision)
{
    int blocks = (rows + ROWS_MAX - 1) / ROWS_MAX, panels = panels_of(w->n);
    int each = task_panels(w, panels, blocks, precision), groups = (panels + each - 1) / each;
    double work = (double)rows * w->n * w->k;

#pragma omp parallel for schedule(static) if (work > CPU_PARALLEL_WORK)
    for (int task = 0; task < groups * blocks; task++) {
        int panel = task % groups * each, row0 = task / groups * ROWS_MAX;
        int count = rows - row0 < ROWS_MAX ? rows - row0 : ROWS_MAX;
        const float *in[ROWS_MAX] = {0};

        for (int t = 0; t < count; t++)
            in[t] = (const float *)x + (size_t)(row0 + t) * w->k;
        CPU(gemm_panels)
        ((float *)y + (size_t)row0 * w->n + panel * PANEL, w->n, in, count, w, panel,
         panels - panel < each ? panels - panel : each, precision);
    }
}
