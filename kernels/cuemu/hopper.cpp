/*
 * Barriers in shared memory, bulk copies and the products of a warpgroup, for one block at a time.
 *
 * Invariants
 *  1. A barrier's state lies here, found by its place in shared memory; the eight bytes there stay
 *     poison.
 *  2. A copy poisons its room when it is asked for and lands when a thread waits for its barrier's
 *     phase; then it counts.
 *  3. Products read `view`, what the asynchronous side knows of shared memory: copies land in both,
 *     and a proxy fence brings what threads wrote.
 *  4. The four warps of a group take the same products, each for its 16 of the 64 rows.
 *
 * Source: PTX ISA 8.0, "Asynchronous Warpgroup Level Matrix", "mbarrier", "cp.async.bulk".
 * Not here: swizzled matrices, matrices whose inner index is not the contiguous one, clusters.
 */
#include "kernels/cuemu/hopper.h"

#include "kernels/cuemu/fiber.h"

#include <vector>

#define WARPS         (CUEMU_THREADS_MAX / CUEMU_LANES)
#define GROUP_WARPS   4
#define BARRIERS_MAX  64
#define N_MAX         256
#define SUMS_LD       (N_MAX + 8) /* rows do not fall on the same lines of the cache */
#define INNER         16
#define ROWS          16 /* of a warp */
#define CORE_ROW      16 /* bytes of a row of a core matrix, 8 rows by 16 bytes */
#define SMEM_MAX      (227u << 10)
#define ADDRESS_FIELD 0x3fffu

struct Copy {
    size_t to;
    const void *from;
    uint32_t bytes;
};

struct Barrier {
    size_t at;
    int arrivals, pending, parity;
    int64_t bytes; /* expected and not landed */
    unsigned fences;
    std::vector<Copy> copies;
};

struct Product {
    int n;
    uint64_t a_at, b_at;
    float *acc[CUEMU_LANES];
    const uint32_t *a[CUEMU_LANES];
};

/* Lanes of a warp make the same products; the first to come makes the entry. */
struct WarpProducts {
    std::vector<Product> made;
    std::vector<size_t> groups; /* products made by the end of each */
    size_t taken;
    size_t lane_made[CUEMU_LANES], lane_groups[CUEMU_LANES];
    bool fenced[CUEMU_LANES];
};

static unsigned char view[SMEM_MAX];
static bool view_is_open; /* poison where nothing is */
static size_t smem_bytes;
static unsigned fences, view_fences;
static Barrier barriers[BARRIERS_MAX];
static int n_barriers;
static WarpProducts warps[WARPS];

void cuemu_hopper_begin(size_t smem)
{
    for (int i = 0; i < n_barriers; i++)
        barriers[i].copies.clear();
    n_barriers = 0;
    fences = view_fences = 0;
    smem_bytes = smem;
    if (smem > SMEM_MAX)
        cuemu_fail("more shared memory than a card has", nullptr);
    view_is_open = false;
}

void cuemu_hopper_end(int threads)
{
    for (int w = 0; w < threads / CUEMU_LANES; w++) {
        WarpProducts *warp = &warps[w], *first = &warps[w / GROUP_WARPS * GROUP_WARPS];

        if (warp->taken != warp->made.size())
            cuemu_fail("a product that nobody waited for", nullptr);
        if (warp->taken != first->taken)
            cuemu_fail("warps of a group take different products", nullptr);
    }
    for (WarpProducts &warp : warps) {
        warp.made.clear();
        warp.groups.clear();
        warp.taken = 0;
        memset(warp.lane_made, 0, sizeof warp.lane_made);
        memset(warp.lane_groups, 0, sizeof warp.lane_groups);
        memset(warp.fenced, 0, sizeof warp.fenced);
    }
    for (int i = 0; i < n_barriers; i++)
        if (!barriers[i].copies.empty())
            cuemu_fail("a copy that nobody waited for", nullptr);
}

/* ---- shared memory ---- */

static void view_open(void)
{
    if (!view_is_open)
        memset(view, 0xff, smem_bytes);
    view_is_open = true;
}

static size_t place_of(const void *at, size_t bytes)
{
    uintptr_t from = (uintptr_t)cuemu_dynamic, to = (uintptr_t)at;

    if (to < from || to - from > smem_bytes || bytes > smem_bytes - (to - from))
        cuemu_fail("outside dynamic shared memory", nullptr);
    return to - from;
}

uint32_t cuemu_smem_at(const void *at)
{
    return (uint32_t)place_of(at, 0);
}

void cuemu_proxy_fence(CuemuSite *site)
{
    cuemu_meet(site);
    if (!site->skipped)
        fences++;
}

/* ---- barriers and copies ---- */

void cuemu_barrier_init(uint64_t *barrier, int arrivals)
{
    size_t at = place_of(barrier, sizeof *barrier);

    if (n_barriers == BARRIERS_MAX || at % sizeof *barrier != 0 || arrivals < 1)
        cuemu_fail("a barrier that cannot be", nullptr);
    Barrier *b = &barriers[n_barriers++];
    b->at = at;
    b->arrivals = b->pending = arrivals;
    b->parity = 0;
    b->bytes = 0;
    b->fences = fences;
}

static int barrier_of(const uint64_t *barrier, const CuemuSite *site)
{
    size_t at = place_of(barrier, sizeof *barrier);

    for (int i = 0; i < n_barriers; i++)
        if (barriers[i].at == at)
            return i;
    cuemu_fail("a barrier that is not set up", site);
}

static void settle(Barrier *b)
{
    if (b->pending > 0 || b->bytes != 0)
        return;
    b->pending = b->arrivals;
    b->parity ^= 1;
}

static void arrive(Barrier *b, const CuemuSite *site)
{
    if (b->pending == 0)
        cuemu_fail("more arrivals than the barrier's phase takes", site);
    b->pending--;
    settle(b);
}

void cuemu_barrier_arrive(CuemuSite *site, uint64_t *barrier)
{
    cuemu_meet(site);
    if (!site->skipped)
        arrive(&barriers[barrier_of(barrier, site)], site);
}

void cuemu_barrier_expect(CuemuSite *site, uint64_t *barrier, uint32_t bytes)
{
    cuemu_meet(site);
    if (site->skipped)
        return;
    Barrier *b = &barriers[barrier_of(barrier, site)];
    b->bytes += bytes;
    arrive(b, site);
}

void cuemu_bulk_copy(void *to, const void *from, uint32_t bytes, uint64_t *barrier)
{
    Barrier *b = &barriers[barrier_of(barrier, nullptr)];
    size_t at = place_of(to, bytes);

    if (at % 16 != 0 || (uintptr_t)from % 16 != 0 || bytes % 16 != 0 || bytes == 0)
        cuemu_fail("a bulk copy needs ends and a size that are multiples of 16", nullptr);
    if (b->fences == fences)
        cuemu_fail("a bulk copy to a barrier without a proxy fence between", nullptr);
    view_open();
    memset(to, 0xff, bytes);
    memset(view + at, 0xff, bytes);
    b->copies.push_back({at, from, bytes});
}

bool cuemu_event_done(CuemuEvent event)
{
    Barrier *b = &barriers[event.barrier];

    if (b->parity != event.parity)
        return true;
    if (b->pending > 0 || b->copies.empty())
        return false;
    for (const Copy &copy : b->copies) {
        memcpy((char *)cuemu_dynamic + copy.to, copy.from, copy.bytes);
        memcpy(view + copy.to, copy.from, copy.bytes);
        b->bytes -= copy.bytes;
    }
    b->copies.clear();
    settle(b);
    return b->parity != event.parity;
}

void cuemu_barrier_wait(CuemuSite *site, uint64_t *barrier, int parity)
{
    cuemu_meet(site);
    if (site->skipped)
        return;
    CuemuEvent event = {barrier_of(barrier, site), parity};
    while (!cuemu_event_done(event))
        cuemu_wait_event(event, site);
}

/* ---- products ---- */

static WarpProducts *warp_of(void)
{
    return &warps[cuemu_thread() / CUEMU_LANES];
}

void cuemu_wgmma_fence(CuemuSite *site)
{
    cuemu_meet(site);
    if (!site->skipped)
        warp_of()->fenced[cuemu_lane()] = true;
}

void cuemu_wgmma(int n, float *acc, const uint32_t *a, uint64_t a_at, uint64_t b_at)
{
    WarpProducts *warp = warp_of();
    int lane = cuemu_lane();
    size_t at = warp->lane_made[lane]++;

    if (!warp->fenced[lane])
        cuemu_fail("a group of products without a fence before it", nullptr);
    if (n % 8 != 0 || n < 8 || n > N_MAX)
        cuemu_fail("no product has so many columns", nullptr);
    if (at == warp->made.size())
        warp->made.push_back({n, a_at, b_at, {}, {}});
    Product *p = &warp->made[at];
    if (p->n != n || p->a_at != a_at || p->b_at != b_at)
        cuemu_fail("lanes of a warp take different products", nullptr);
    p->acc[lane] = acc;
    p->a[lane] = a;
}

void cuemu_wgmma_commit(CuemuSite *site)
{
    WarpProducts *warp = warp_of();
    int lane = cuemu_lane();

    cuemu_meet(site);
    if (site->skipped)
        return;
    if (warp->lane_groups[lane]++ == warp->groups.size())
        warp->groups.push_back(warp->lane_made[lane]);
    if (warp->groups[warp->lane_groups[lane] - 1] != warp->lane_made[lane])
        cuemu_fail("lanes of a warp close different groups", site);
    warp->fenced[lane] = false;
}

/* A matrix of core matrices: eight rows of 16 bytes, one behind the other. */
struct Matrix {
    const unsigned char *start;
    size_t along, down;
};

static Matrix matrix_of(uint64_t at, int rows)
{
    size_t start = (at & ADDRESS_FIELD) << 4;
    Matrix m = {view + start, (at >> 16 & ADDRESS_FIELD) << 4, (at >> 32 & ADDRESS_FIELD) << 4};

    if (at >> 62 != 0)
        cuemu_fail("swizzled matrices are not emulated", nullptr);
    if (start + (size_t)(rows / 8 - 1) * m.down + m.along + 8 * CORE_ROW > smem_bytes)
        cuemu_fail("a matrix reaches beyond shared memory", nullptr);
    return m;
}

/* Row r. */
static void read_row(float x[INNER], const Matrix *m, int r)
{
    const unsigned char *row = m->start + (size_t)(r / 8) * m->down + (size_t)(r % 8) * CORE_ROW;

    for (int i = 0; i < INNER; i++) {
        uint16_t bits;

        memcpy(&bits, row + (size_t)(i / 8) * m->along + (size_t)(i % 8) * 2, sizeof bits);
        x[i] = __uint_as_float((uint32_t)bits << 16);
    }
}

/* a [row][i] of a warp's 16 rows: registers as of mma.sync, or rows 16 w of the matrix at a_at. */
static void read_a(float a[ROWS][INNER], const Product *p, int warp)
{
    if (!p->a[0]) {
        Matrix m = matrix_of(p->a_at, GROUP_WARPS * ROWS);

        for (int r = 0; r < ROWS; r++)
            read_row(a[r], &m, warp % GROUP_WARPS * ROWS + r);
        return;
    }
    for (int lane = 0; lane < CUEMU_LANES; lane++)
        for (int e = 0; e < 8; e++) {
            uint32_t pair = p->a[lane][e / 2];
            int row = lane / 4 + 8 * (e / 2 % 2), col = 2 * (lane % 4) + e % 2 + 8 * (e / 4);

            a[row][col] = __uint_as_float(e % 2 ? pair & 0xffff0000u : pair << 16);
        }
}

static void read_sums(float c[ROWS][SUMS_LD], const Product *p)
{
    for (int lane = 0; lane < CUEMU_LANES; lane++)
        for (int e = 0; e < p->n / 2; e++)
            c[lane / 4 + 8 * (e / 2 % 2)][e / 4 * 8 + 2 * (lane % 4) + e % 2] = p->acc[lane][e];
}

static void write_sums(const Product *p, const float c[ROWS][SUMS_LD])
{
    for (int lane = 0; lane < CUEMU_LANES; lane++)
        for (int e = 0; e < p->n / 2; e++)
            p->acc[lane][e] = c[lane / 4 + 8 * (e / 2 % 2)][e / 4 * 8 + 2 * (lane % 4) + e % 2];
}

/* b [i][j] of the N rows j of the matrix at b_at. */
static void read_b(float b[INNER][SUMS_LD], const Product *p)
{
    Matrix m = matrix_of(p->b_at, p->n);

    for (int j0 = 0; j0 < p->n; j0 += 8)
        for (int i = 0; i < INNER; i++) {
            const unsigned char *from = m.start + (size_t)(j0 / 8) * m.down +
                                        (size_t)(i / 8) * m.along + (size_t)(i % 8) * 2;

            for (int j = 0; j < 8; j++) {
                uint16_t bits;

                memcpy(&bits, from + j * CORE_ROW, sizeof bits);
                b[i][j0 + j] = __uint_as_float((uint32_t)bits << 16);
            }
        }
}

static void add_product(float c[ROWS][SUMS_LD], const Product *p, int warp)
{
    static float a[ROWS][INNER], b[INNER][SUMS_LD];

    read_a(a, p, warp);
    read_b(b, p);
    for (int r = 0; r < ROWS; r++)
        for (int j0 = 0; j0 < p->n; j0 += 8)
            for (int i = 0; i < INNER; i++)
                for (int j = j0; j < j0 + 8; j++)
                    c[r][j] += a[r][i] * b[i][j];
}

/* Products up to number `end`; sums of products in a row go through memory once. */
static void take(WarpProducts *warp, size_t end, int number)
{
    static float c[ROWS][SUMS_LD];

    for (const Product *last = nullptr; warp->taken < end; warp->taken++) {
        const Product *p = &warp->made[warp->taken];

        if (!last || last->acc[0] != p->acc[0] || last->n != p->n) {
            if (last)
                write_sums(last, c);
            read_sums(c, p);
        }
        add_product(c, p, number);
        last = p;
        if (warp->taken + 1 == end)
            write_sums(p, c);
    }
}

void cuemu_wgmma_wait(CuemuSite *site, int pending)
{
    WarpProducts *warp = warp_of();
    size_t closed = warp->lane_groups[cuemu_lane()];

    cuemu_meet(site);
    if (site->skipped)
        return;
    cuemu_wait_warp(site);
    warp->fenced[cuemu_lane()] = false;
    if (closed <= (size_t)pending)
        return;
    view_open();
    if (fences != view_fences)
        memcpy(view, cuemu_dynamic, smem_bytes);
    view_fences = fences;
    take(warp, warp->groups[closed - 1 - (size_t)pending], cuemu_thread() / CUEMU_LANES);
}
