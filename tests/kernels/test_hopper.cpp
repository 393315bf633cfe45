/*
 * Hopper's part of the shim: copies, barriers and products of a warpgroup are right, each happens
 * as late as it may, and what a card would leave undefined is refused or seen.
 */
#include "kernels/cuda/hopper.h"

#include <glib.h>

enum { ROWS = 64, COLS = 128, INNER = 16, STEPS = 5, RING = 2 };

/* Bytes of a step's matrix of `rows` rows: core matrices along k, then down the rows. */
#define MATRIX_BYTES(rows) ((rows)*INNER * 2)
#define ALONG              128
#define DOWN               256

static unsigned short a_all[STEPS][ROWS * INNER], b_all[STEPS][COLS * INNER];
static float a_wide[STEPS][ROWS][INNER], b_wide[STEPS][COLS][INNER];

static void core_put(unsigned short *to, int r, int i, float x)
{
    to[r / CORE * (DOWN / 2) + i / CORE * (ALONG / 2) + r % CORE * CORE + i % CORE] = bf16_round(x);
}

static void fill(void)
{
    for (int s = 0; s < STEPS; s++) {
        for (int r = 0; r < COLS; r++)
            for (int i = 0; i < INNER; i++) {
                b_wide[s][r][i] = (float)((r * 5 + i * 3 + s) % 23 - 11);
                core_put(b_all[s], r, i, b_wide[s][r][i]);
            }
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < INNER; i++) {
                a_wide[s][r][i] = (float)((r * 7 + i + 2 * s) % 31 - 15);
                core_put(a_all[s], r, i, a_wide[s][r][i]);
            }
    }
}

static float expected(int r, int c)
{
    float sum = 0;

    for (int s = 0; s < STEPS; s++)
        for (int i = 0; i < INNER; i++)
            sum += a_wide[s][r][i] * b_wide[s][c][i];
    return sum;
}

/* ---- a ring of stages: one warp copies, a warpgroup takes products ---- */

struct Stage {
    unsigned short a[ROWS * INNER], b[COLS * INNER];
};

struct Ring {
    Stage stages[RING];
    uint64_t full[RING], empty[RING];
};

static __device__ void produce(Ring *ring, const unsigned short *a, const unsigned short *b)
{
    for (int s = 0; s < STEPS; s++) {
        int at = s % RING, round = s / RING;

        barrier_wait(&ring->empty[at], (round & 1) ^ 1);
        barrier_expect(&ring->full[at], sizeof(Stage));
        bulk_copy(ring->stages[at].a, a + s * ROWS * INNER, MATRIX_BYTES(ROWS), &ring->full[at]);
        bulk_copy(ring->stages[at].b, b + s * COLS * INNER, MATRIX_BYTES(COLS), &ring->full[at]);
    }
}

/* Registers of the 16 rows of A that the thread's warp holds, from core matrices. */
static __device__ void a_registers(uint32_t a[4], const unsigned short *from)
{
    int warp = (int)threadIdx.x / LANES % 4, g = (int)threadIdx.x % LANES / 4;

    for (int e = 0; e < 4; e++) {
        int r = warp * 16 + g + 8 * (e % 2), i = 2 * ((int)threadIdx.x % 4) + 8 * (e / 2);

        memcpy(&a[e],
               from + r / CORE * (DOWN / 2) + i / CORE * (ALONG / 2) + r % CORE * CORE + i % CORE,
               sizeof a[e]);
    }
}

template <int IN_REGISTERS>
static __global__ void ring_kernel(float *out, const unsigned short *a, const unsigned short *b)
{
    DYN_SMEM(Ring, ring);
    float acc[COLS / 8][4];

    if (threadIdx.x == 0) {
        for (int i = 0; i < RING; i++) {
            barrier_init(&ring->full[i], 1);
            barrier_init(&ring->empty[i], WARPGROUP);
        }
        proxy_fence();
    }
    __syncthreads();
    if (threadIdx.x >= WARPGROUP) {
        if (threadIdx.x == WARPGROUP)
            produce(ring, a, b);
        return;
    }
    memset(acc, 0, sizeof acc);
    for (int s = 0; s < STEPS; s++) {
        int at = s % RING;
        uint32_t part[4];

        barrier_wait(&ring->full[at], s / RING & 1);
        a_registers(part, ring->stages[at].a);
        wgmma_fence();
        if (IN_REGISTERS)
            wgmma_rs<COLS>(acc, part, matrix_at(ring->stages[at].b, ALONG, DOWN));
        else
            wgmma_ss<COLS>(acc, matrix_at(ring->stages[at].a, ALONG, DOWN),
                           matrix_at(ring->stages[at].b, ALONG, DOWN));
        wgmma_commit();
        wgmma_wait(0);
        barrier_arrive(&ring->empty[at]);
    }
    acc_settle(acc);
    for (int j = 0; j < COLS / 8; j++)
        for (int e = 0; e < 4; e++) {
            int lane = (int)threadIdx.x % LANES;
            int r = (int)threadIdx.x / LANES * 16 + lane / 4 + 8 * (e / 2);

            out[r * COLS + j * 8 + 2 * (lane % 4) + e % 2] = acc[j][e];
        }
}

static bool ring_is_right(int in_registers)
{
    static float out[ROWS * COLS];
    bool right = true;

    memset(out, 0xff, sizeof out);
    if (in_registers)
        CUEMU_RUN(ring_kernel<1>, 1, WARPGROUP + LANES, sizeof(Ring), out, a_all[0], b_all[0]);
    else
        CUEMU_RUN(ring_kernel<0>, 1, WARPGROUP + LANES, sizeof(Ring), out, a_all[0], b_all[0]);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLS; c++)
            right &= out[r * COLS + c] == expected(r, c);
    return right;
}

static void test_ring(void)
{
    for (int reverse = 0; reverse < 2; reverse++)
        for (int in_registers = 0; in_registers < 2; in_registers++) {
            cuemu_reverse(reverse);
            g_assert_true(ring_is_right(in_registers));
        }
    cuemu_reverse(0);
}

/* ---- each wait, arrival and fence left out ---- */

static CuemuSite *nth_site(int n)
{
    CuemuSite *site = cuemu_sites();

    for (int i = 0; site && i < n; i++)
        site = site->next;
    return site;
}

/* The n-th site left out: right numbers in both orders would mean that nothing showed. */
static void without(int n)
{
    CuemuSite *site;

    ring_is_right(0);
    ring_is_right(1);
    site = nth_site(n);
    site->skipped = 1;
    g_test_message("%s:%d", site->file, site->line);
    for (int reverse = 0; reverse < 2; reverse++)
        for (int in_registers = 0; in_registers < 2; in_registers++) {
            cuemu_reverse(reverse);
            if (!ring_is_right(in_registers))
                abort();
        }
}

static void test_without(gconstpointer n)
{
    if (g_test_subprocess()) {
        without(GPOINTER_TO_INT(n));
        return;
    }
    g_test_trap_subprocess(nullptr, 0, static_cast<GTestSubprocessFlags>(0));
    g_test_trap_assert_failed();
}

/* ---- lateness ---- */

struct Late {
    uint32_t room[4];
    uint64_t barrier;
};

static __global__ void late_kernel(uint32_t *seen, const uint32_t *from)
{
    DYN_SMEM(Late, late);

    if (threadIdx.x > 0)
        return;
    memset(late->room, 0, sizeof late->room);
    barrier_init(&late->barrier, 1);
    proxy_fence();
    barrier_expect(&late->barrier, sizeof late->room);
    bulk_copy(late->room, from, sizeof late->room, &late->barrier);
    seen[0] = late->room[0];
    barrier_wait(&late->barrier, 0);
    seen[1] = late->room[0];
}

static void test_late(void)
{
    alignas(16) uint32_t from[4] = {7, 7, 7, 7};
    uint32_t seen[2];

    CUEMU_RUN(late_kernel, 1, 32, sizeof(Late), seen, from);
    g_assert_cmphex(seen[0], ==, 0xffffffffu);
    g_assert_cmphex(seen[1], ==, 7);
}

/* A product that reads what threads wrote, with and without the fence; and A's registers changed
 * between product and wait. */
static __global__ void written_kernel(float *out, int fenced, int changed)
{
    DYN_SMEM(unsigned short, b);
    float acc[2][4] = {};
    uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};

    for (int i = (int)threadIdx.x; i < 16 * INNER; i += WARPGROUP)
        b[i] = 0x3f80;
    if (fenced)
        proxy_fence();
    __syncthreads();
    wgmma_fence();
    wgmma_rs<16>(acc, ones, matrix_at(b, ALONG, DOWN));
    wgmma_commit();
    if (changed)
        memset(ones, 0, sizeof ones);
    wgmma_wait(0);
    out[threadIdx.x] = acc[0][0];
}

static float written(int fenced, int changed)
{
    float out[WARPGROUP];

    CUEMU_RUN(written_kernel, 1, WARPGROUP, MATRIX_BYTES(16), out, fenced, changed);
    return out[5];
}

static void test_written(void)
{
    g_assert_cmpfloat(written(1, 0), ==, 16);
    g_assert_true(std::isnan(written(0, 0)));
    g_assert_cmpfloat(written(1, 1), ==, 0);
}

/* ---- refusals ---- */

static __global__ void odd_copy_kernel(const char *from, int off, uint32_t bytes)
{
    DYN_SMEM(Late, late);

    barrier_init(&late->barrier, 32);
    proxy_fence();
    bulk_copy(late->room, from + off, bytes, &late->barrier);
}

static __global__ void unfenced_kernel(const char *from)
{
    DYN_SMEM(Late, late);

    barrier_init(&late->barrier, 32);
    bulk_copy(late->room, from, 16, &late->barrier);
}

static __global__ void endless_kernel()
{
    DYN_SMEM(Late, late);

    if (threadIdx.x == 0)
        barrier_init(&late->barrier, 33);
    __syncwarp();
    barrier_arrive(&late->barrier);
    barrier_wait(&late->barrier, 0);
}

static __global__ void unknown_kernel()
{
    DYN_SMEM(Late, late);

    barrier_wait(&late->barrier, 0);
}

static __global__ void product_kernel(uint64_t at, int fence, int commit)
{
    float acc[2][4] = {};

    if (fence)
        wgmma_fence();
    wgmma_ss<16>(acc, at, at);
    if (commit)
        wgmma_commit();
    wgmma_wait(0);
}

static const struct {
    const char *name, *message;
    void (*launch)(const char *from);
} refusals[] = {
    {"copy_from_between", "*multiples of 16*",
     [](const char *from) { CUEMU_RUN(odd_copy_kernel, 1, 32, sizeof(Late), from, 8, 16); }},
    {"copy_of_odd_bytes", "*multiples of 16*",
     [](const char *from) { CUEMU_RUN(odd_copy_kernel, 1, 32, sizeof(Late), from, 0, 8); }},
    {"copy_beyond", "*outside dynamic shared memory*",
     [](const char *from) { CUEMU_RUN(odd_copy_kernel, 1, 32, sizeof(Late), from, 0, 32); }},
    {"barrier_without_fence", "*without a proxy fence*",
     [](const char *from) { CUEMU_RUN(unfenced_kernel, 1, 32, sizeof(Late), from); }},
    {"wait_without_end", "*a wait that nothing ends at *:*",
     [](const char *) { CUEMU_RUN(endless_kernel, 1, 32, sizeof(Late)); }},
    {"barrier_not_set_up", "*not set up at *:*",
     [](const char *) { CUEMU_RUN(unknown_kernel, 1, 32, sizeof(Late)); }},
    {"product_without_fence", "*without a fence before it*",
     [](const char *) { CUEMU_RUN(product_kernel, 1, 128, 4096, 0, 0, 1); }},
    {"product_without_wait", "*nobody waited for*",
     [](const char *) { CUEMU_RUN(product_kernel, 1, 128, 4096, 0, 1, 0); }},
    {"product_beyond", "*beyond shared memory*",
     [](const char *) { CUEMU_RUN(product_kernel, 1, 128, 64, 0, 1, 1); }},
    {"swizzle", "*swizzled*",
     [](const char *) { CUEMU_RUN(product_kernel, 1, 128, 4096, 1ull << 62, 1, 1); }},
};

static void test_refusal(gconstpointer n)
{
    alignas(16) static const char from[64] = {0};

    if (g_test_subprocess()) {
        refusals[GPOINTER_TO_UINT(n)].launch(from);
        return;
    }
    g_test_trap_subprocess(nullptr, 0, static_cast<GTestSubprocessFlags>(0));
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr(refusals[GPOINTER_TO_UINT(n)].message);
}

int main(int argc, char **argv)
{
    int n_sites = 0;

    g_test_init(&argc, &argv, NULL);
    fill();
    ring_is_right(0);
    ring_is_right(1);
    for (CuemuSite *site = cuemu_sites(); site; site = site->next, n_sites++) {
        g_autofree char *path = g_strdup_printf("/hopper/without/%d", n_sites);

        g_test_add_data_func(path, GINT_TO_POINTER(n_sites), test_without);
    }
    g_test_add_func("/hopper/a_ring_of_stages", test_ring);
    g_test_add_func("/hopper/a_copy_lands_at_the_wait", test_late);
    g_test_add_func("/hopper/a_product_reads_what_was_fenced", test_written);
    for (guint i = 0; i < G_N_ELEMENTS(refusals); i++) {
        g_autofree char *path = g_strdup_printf("/hopper/refuses/%s", refusals[i].name);

        g_test_add_data_func(path, GUINT_TO_POINTER(i), test_refusal);
    }
    return g_test_run();
}
