/*
 * The shim's scheduler: fibers of one block, barriers, warp operations, the tensor product.
 *
 * Invariants
 *  1. A warp runs until each of its lanes waits at a block's barrier or has ended; then the next
 *     warp runs. Lanes of a warp go on together from a warp operation.
 *  2. A warp operation's values lie in one of two buffers in turn, so a lane that is already at its
 *     next operation overwrites nothing that another still reads.
 *  3. A warp of which some lane waits for an event is left until the event has come; when none
 *     comes and nothing else goes on, the program ends.
 *
 * Not here: what kernels see (cuemu.h), the events (hopper.cpp).
 */
#include "kernels/cuemu/fiber.h"

#include <cstdio>
#include <map>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define THREADS_MAX  CUEMU_THREADS_MAX
#define LANES        CUEMU_LANES
#define STACK_BYTES  (256u << 10)
#define GUARD_BYTES  4096u
#define FRAMES_BYTES 2048u
#define SMEM_FREE    (48u << 10) /* dynamic shared memory that no kernel must ask for */
#define VALUE_BYTES  40          /* the operands of one lane's tensor product */

enum State { RUNS, AT_BLOCK, AT_WARP, AT_EVENT, ENDED };

struct Fiber {
    dim3 thread;
    void *sp;
    char *stack;
    State state;
    const CuemuSite *site; /* where it waits; NULL in a warp operation without a site */
    unsigned turn;         /* warp operations so far */
    CuemuEvent event;
};

struct Warp {
    unsigned char values[2][LANES][VALUE_BYTES];
    float product[LANES][4];
    unsigned product_of; /* the operation that `product` belongs to */
};

dim3 threadIdx, blockIdx, blockDim, gridDim;
void *cuemu_dynamic;
int cuemu_major = 8;
long cuemu_held;

static Fiber fibers[THREADS_MAX], *now;
static Warp warps[THREADS_MAX / LANES];
static void *scheduler_sp;
static int reverse, count;
static const void *kernel_at;
static CuemuKernel kernel;
static void *const *kernel_args;
static CuemuSite *sites;
static std::map<const void *, CuemuKernel> kernels;
static std::map<const void *, size_t> allowed;

extern "C" char __start_cuemu_shared[] __attribute__((weak));
extern "C" char __stop_cuemu_shared[] __attribute__((weak));

/* Keeps the registers a callee keeps, then goes on where the other stack left off. */
extern "C" void cuemu_switch(void **from, void *to);
asm(".text\n"
    ".globl cuemu_switch\n"
    ".type cuemu_switch, @function\n"
    "cuemu_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size cuemu_switch, .-cuemu_switch\n"
    ".section .note.GNU-stack,\"\",@progbits\n"
    ".text\n");

/* ---- switching ---- */

#if defined(__SANITIZE_ADDRESS__)
static const void *scheduler_stack;
static size_t scheduler_bytes;

static void fiber_enter(Fiber *f)
{
    void *fake = nullptr;

    __sanitizer_start_switch_fiber(&fake, f->stack, STACK_BYTES);
    cuemu_switch(&scheduler_sp, f->sp);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

static void fiber_leave(Fiber *f)
{
    void *fake = nullptr;

    __sanitizer_start_switch_fiber(f->state == ENDED ? nullptr : &fake, scheduler_stack,
                                   scheduler_bytes);
    cuemu_switch(&f->sp, scheduler_sp);
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack, &scheduler_bytes);
}

static void fiber_begun(void)
{
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_bytes);
}

/* The frames that the last thread on this stack never left. */
static void fiber_clean(const Fiber *f)
{
    __asan_unpoison_memory_region(f->stack + STACK_BYTES - FRAMES_BYTES, FRAMES_BYTES);
}
#else
static void fiber_enter(Fiber *f)
{
    cuemu_switch(&scheduler_sp, f->sp);
}

static void fiber_leave(Fiber *f)
{
    cuemu_switch(&f->sp, scheduler_sp);
}

static void fiber_begun(void) {}

static void fiber_clean(const Fiber *) {}
#endif

static Fiber *current(void)
{
    return now;
}

static void fiber_main(void)
{
    fiber_begun();
    kernel.call(kernel_at, kernel_args);
    current()->state = ENDED;
    fiber_leave(current());
    abort();
}

static void fiber_start(Fiber *f, dim3 thread)
{
    if (!f->stack) {
        void *at = mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (at == MAP_FAILED || mprotect(at, GUARD_BYTES, PROT_NONE) != 0)
            abort();
        f->stack = static_cast<char *>(at) + GUARD_BYTES;
    }
    fiber_clean(f);
    f->thread = thread;
    f->state = RUNS;
    f->site = nullptr;
    f->turn = 0;
    /* six registers, the address to return to, and the alignment that a function expects */
    void **top = reinterpret_cast<void **>(f->stack + STACK_BYTES - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(fiber_main);
    top -= 6;
    memset(top, 0, 6 * sizeof *top);
    f->sp = top;
}

/* ---- what may go wrong ---- */

static const char *place(const CuemuSite *site)
{
    static char text[256];

    if (!site)
        return "a warp operation";
    snprintf(text, sizeof text, "%s:%d", site->file, site->line);
    return text;
}

void cuemu_fail(const char *what, const CuemuSite *site)
{
    fprintf(stderr, "cuemu: %s: %s at %s\n", kernel.name ? kernel.name : "no kernel", what,
            place(site));
    abort();
}

/* ---- scheduling ---- */

static int nth(int i, int n)
{
    return reverse ? n - 1 - i : i;
}

static void warp_release(int first)
{
    for (int i = 0; i < LANES; i++) {
        Fiber *f = &fibers[first + i];

        if (f->state != AT_WARP || f->site != fibers[first].site || f->turn != fibers[first].turn)
            cuemu_fail("lanes of a warp wait in different places", f->site);
        f->state = RUNS;
    }
}

/* Runs every lane that can; returns how many there were. */
static int lanes_run(int first)
{
    int ran = 0;

    for (int i = 0; i < LANES; i++) {
        Fiber *f = &fibers[first + nth(i, LANES)];

        if (f->state == AT_EVENT && cuemu_event_done(f->event))
            f->state = RUNS;
        if (f->state != RUNS)
            continue;
        now = f;
        threadIdx = f->thread;
        fiber_enter(f);
        ran++;
    }
    return ran;
}

static int lanes_in(int first, State state)
{
    int in = 0;

    for (int i = 0; i < LANES; i++)
        in += fibers[first + i].state == state;
    return in;
}

/* Until no lane goes on without other warps. Returns whether any did. */
static bool warp_run(int warp)
{
    int first = warp * LANES, ran = 0;

    for (;;) {
        ran += lanes_run(first);
        if (lanes_in(first, AT_EVENT) > 0 || lanes_in(first, AT_WARP) == 0)
            return ran > 0;
        warp_release(first);
    }
}

static void warps_run(void)
{
    bool ran;

    do {
        ran = false;
        for (int w = 0; w < count / LANES; w++)
            ran |= warp_run(nth(w, count / LANES));
    } while (ran);
    for (int i = 0; i < count; i++)
        if (fibers[i].state == AT_EVENT)
            cuemu_fail("a wait that nothing ends", fibers[i].site);
}

/* Whether the block has more to do. */
static bool block_release(void)
{
    int waiting = 0;

    for (int i = 0; i < count; i++)
        waiting += fibers[i].state == AT_BLOCK;
    if (waiting == 0)
        return false;
    for (int i = 0; i < count; i++) {
        if (fibers[i].state != AT_BLOCK || fibers[i].site != fibers[0].site)
            cuemu_fail("not all threads reach the barrier",
                       fibers[i].state == AT_BLOCK ? fibers[i].site : fibers[0].site);
        fibers[i].state = RUNS;
    }
    return true;
}

static void block_run(void)
{
    if (__start_cuemu_shared)
        memset(__start_cuemu_shared, 0xff, (size_t)(__stop_cuemu_shared - __start_cuemu_shared));
    for (int i = 0; i < count; i++) {
        unsigned n = (unsigned)i, x = blockDim.x, y = blockDim.y;

        fiber_start(&fibers[i], dim3(n % x, n / x % y, n / x / y));
    }
    for (int w = 0; w < count / LANES; w++)
        warps[w].product_of = 0;
    do {
        warps_run();
    } while (block_release());
}

void cuemu_allow(const void *kernel, size_t bytes)
{
    allowed[kernel] = bytes;
}

void cuemu_note(const void *at, const CuemuKernel &noted)
{
    kernels[at] = noted;
}

const CuemuKernel &cuemu_noted(const void *at)
{
    auto found = kernels.find(at);

    if (found == kernels.end())
        cuemu_fail("a launch of what is no kernel", nullptr);
    return found->second;
}

cudaError_t cudaLaunchKernel(const void *at, dim3 grid, dim3 block, void **args, size_t smem,
                             cudaStream_t)
{
    int blocks = (int)(grid.x * grid.y * grid.z);

    kernel = cuemu_noted(at);
    kernel_at = at;
    kernel_args = args;
    count = (int)(block.x * block.y * block.z);
    if (blocks == 0 || count == 0 || count > THREADS_MAX || count % LANES != 0)
        cuemu_fail("blocks must be whole warps, up to 1024 threads, and at least one", nullptr);
    if (smem > SMEM_FREE && smem > allowed[at])
        cuemu_fail("more dynamic shared memory than was asked for", nullptr);
    blockDim = block;
    gridDim = grid;
    for (int i = 0; i < blocks; i++) {
        unsigned n = (unsigned)nth(i, blocks);

        cuemu_dynamic = smem > 0 ? malloc(smem) : nullptr;
        if (cuemu_dynamic)
            memset(cuemu_dynamic, 0xff, smem);
        blockIdx = dim3(n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y);
        cuemu_hopper_begin(smem);
        block_run();
        cuemu_hopper_end(count);
        free(cuemu_dynamic);
    }
    now = nullptr;
    return cudaSuccess;
}

/* ---- barriers and warp operations ---- */

void cuemu_meet(CuemuSite *site)
{
    site->hits++;
    if (site->met)
        return;
    site->met = 1;
    site->next = sites;
    sites = site;
}

static void wait_at(State state, const CuemuSite *site)
{
    Fiber *f = current();

    f->state = state;
    f->site = site;
    fiber_leave(f);
}

void cuemu_wait_event(CuemuEvent event, const CuemuSite *site)
{
    current()->event = event;
    wait_at(AT_EVENT, site);
}

void cuemu_wait_warp(const CuemuSite *site)
{
    current()->turn++;
    wait_at(AT_WARP, site);
}

void cuemu_sync_block(CuemuSite *site)
{
    cuemu_meet(site);
    if (!site->skipped)
        wait_at(AT_BLOCK, site);
}

void cuemu_sync_warp(CuemuSite *site)
{
    cuemu_meet(site);
    if (!site->skipped)
        cuemu_wait_warp(site);
}

int cuemu_thread(void)
{
    return (int)(current() - fibers);
}

int cuemu_lane(void)
{
    return cuemu_thread() % LANES;
}

static Warp *warp_of(void)
{
    return &warps[(current() - fibers) / LANES];
}

/* The values of all lanes, valid until the lane's operation after the next. */
static unsigned char (*gather(const void *value, size_t bytes))[VALUE_BYTES]
{
    unsigned turn = ++current()->turn;
    unsigned char(*values)[VALUE_BYTES] = warp_of()->values[turn & 1];

    memcpy(values[cuemu_lane()], value, bytes);
    wait_at(AT_WARP, nullptr);
    return values;
}

void cuemu_exchange(unsigned mask, void *value, size_t bytes, int from)
{
    if (mask != 0xffffffffu || bytes > VALUE_BYTES || from < 0 || from >= LANES)
        cuemu_fail("only whole warps are emulated", nullptr);
    memcpy(value, gather(value, bytes)[from], bytes);
}

unsigned cuemu_ballot(unsigned mask, int predicate)
{
    unsigned bits = 0;

    if (mask != 0xffffffffu)
        cuemu_fail("only whole warps are emulated", nullptr);
    unsigned char(*values)[VALUE_BYTES] = gather(&predicate, sizeof predicate);
    for (int i = 0; i < LANES; i++) {
        int p;

        memcpy(&p, values[i], sizeof p);
        bits |= p ? 1u << i : 0;
    }
    return bits;
}

/* mma.sync.m16n8k16.row.col.f32.bf16.bf16.f32, registers as PTX lays them out: lane 4g + t holds
 * rows g and g + 8 and columns 2t, 2t + 1 of each 8 x 8 part. */
struct Operands {
    float c[4];
    uint32_t a[4], b[2];
};

static float half(uint32_t pair, int which)
{
    return __uint_as_float(which ? pair & 0xffff0000u : pair << 16);
}

static void product_of_warp(Warp *warp, unsigned char (*values)[VALUE_BYTES])
{
    float a[16][16], b[16][8], c[16][8];
    Operands o;

    for (int lane = 0; lane < LANES; lane++) {
        int g = lane / 4, t = lane % 4;

        memcpy(&o, values[lane], sizeof o);
        for (int r = 0; r < 4; r++)
            for (int h = 0; h < 2; h++)
                a[g + 8 * (r % 2)][2 * t + h + 8 * (r / 2)] = half(o.a[r], h);
        for (int r = 0; r < 2; r++)
            for (int h = 0; h < 2; h++)
                b[2 * t + h + 8 * r][g] = half(o.b[r], h);
        for (int r = 0; r < 4; r++)
            c[g + 8 * (r / 2)][2 * t + r % 2] = o.c[r];
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                c[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < LANES; lane++)
        for (int r = 0; r < 4; r++)
            warp->product[lane][r] = c[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2];
}

void cuemu_mma(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    Operands mine;
    Warp *warp = warp_of();

    static_assert(sizeof mine <= VALUE_BYTES, "operands fit");
    memcpy(mine.c, c, sizeof mine.c);
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    unsigned char(*values)[VALUE_BYTES] = gather(&mine, sizeof mine);
    if (warp->product_of != current()->turn) {
        product_of_warp(warp, values);
        warp->product_of = current()->turn;
    }
    memcpy(c, warp->product[cuemu_lane()], 4 * sizeof *c);
}

/* ---- for tests ---- */

void cuemu_reverse(int on)
{
    reverse = on;
}

void cuemu_capability(int major)
{
    cuemu_major = major;
}

long cuemu_memory(void)
{
    return cuemu_held;
}

CuemuSite *cuemu_sites(void)
{
    return sites;
}
