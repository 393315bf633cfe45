/*
 * The host side of every op: its launches as a list, with copies of the small host arrays.
 *
 * An op lists its launches and ends. Then staging goes up in one copy, the kernels are launched one
 * after the other, and the host waits. Between `begin` and `end` of the table an op's end does
 * nothing: the list grows, and `end` runs all of it as one graph (graph.cu), with one wait. With
 * "wait" in ASSAY_CUDA every op is alone.
 *
 * Invariants
 *  1. When an op returns, or `end`, what was written may be read by the host.
 *  2. The lock is held from an op's beginning to its end, or from `begin` to `end`: the list and
 *     the areas are one thread's, and ops of others wait.
 *  3. What was taken from an area stays where it is until the list has run. Where an area is full a
 *     further block is added; when the list has run its blocks become one of the whole size, so
 *     sizes settle after one round of the same work.
 *  4. Scratch begins anew with each op, since what a list launches runs one after the other.
 *  5. A card that fails leaves numbers that nobody may use: the program ends and names the op, or
 *     says that it was a list. What was accepted before is in the store and is taken up again.
 *
 * Not here: which card is used (table.cu).
 */
#include "kernels/cuda/launch.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Each block of an area is at least twice the one before it. */
#define BLOCK_LEAST (16 << 10)
#define BLOCKS_MAX  40
#define ARG_ALIGN   16

/* `host` mirrors `device`; NULL where nothing is put. */
typedef struct {
    char *host, *device;
    size_t used, bytes;
} Block;

/* taken: since the area began anew; most: the most of that so far. */
typedef struct {
    Block blocks[BLOCKS_MAX];
    int n;
    size_t taken, most;
} Area;

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static thread_local int between; /* this thread has begun and not ended */
static Area puts_area, rooms_area;
static Launches list;

void cuda_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "cuda: %s: %s\n", what, cudaGetErrorString(error));
    abort();
}

static void misused(const char *what)
{
    fprintf(stderr, "cuda: %s\n", what);
    abort();
}

static int asked_for(const char *word)
{
    const char *asked = getenv("ASSAY_CUDA");

    return asked && strstr(asked, word);
}

int cuda_hopper(void)
{
    int major = 0, minor = 0;

    if (asked_for("sm80"))
        return 0;
    cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0),
               "ask the card");
    cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0),
               "ask the card");
    return major == 9 && minor == 0;
}

void cuda_allow_smem(const void *kernel, size_t bytes)
{
    cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
        "ask for shared memory");
}

/* Managed: pages go to whoever touches them. */
void *cuda_memory_new(size_t bytes)
{
    void *memory = NULL;

    return cudaMallocManaged(&memory, bytes) == cudaSuccess ? memory : NULL;
}

void cuda_memory_free(void *memory)
{
    cuda_check(cudaFree(memory), "free memory");
}

/* ---- areas ---- */

static void block_add(Area *area, size_t bytes)
{
    Block *block = &area->blocks[area->n++];

    if (area->n > BLOCKS_MAX)
        misused("more staging than any card has");
    *block = (Block){NULL, NULL, 0, bytes};
    cuda_check(cudaMalloc((void **)&block->device, bytes), "allocate staging");
    if (area == &puts_area)
        cuda_check(cudaMallocHost((void **)&block->host, bytes), "allocate staging");
}

/* The block that has room for so many bytes, the last one. */
static Block *area_take(Area *area, size_t bytes, size_t *at)
{
    Block *last = area->n > 0 ? &area->blocks[area->n - 1] : NULL;

    bytes = (bytes + STAGE_ALIGN - 1) / STAGE_ALIGN * STAGE_ALIGN;
    if (!last || last->bytes - last->used < bytes) {
        size_t least = last ? 2 * last->bytes : BLOCK_LEAST;

        block_add(area, bytes > least ? bytes : least);
        last = &area->blocks[area->n - 1];
    }
    *at = last->used;
    last->used += bytes;
    area->taken += bytes;
    area->most = area->taken > area->most ? area->taken : area->most;
    return last;
}

static void area_begin(Area *area)
{
    if (area->n > 0)
        area->blocks[area->n - 1].used = 0;
    area->taken = 0;
}

/* Nothing of the area is used any more. */
static void area_settle(Area *area)
{
    if (area->n > 1) {
        for (int i = 0; i < area->n; i++) {
            cuda_check(cudaFree(area->blocks[i].device), "free staging");
            if (area->blocks[i].host)
                cuda_check(cudaFreeHost(area->blocks[i].host), "free staging");
        }
        area->n = 0;
        block_add(area, area->most);
    }
    area_begin(area);
}

const void *cuda_put_room(size_t bytes, void **fill)
{
    size_t at;
    Block *block = area_take(&puts_area, bytes, &at);

    *fill = block->host + at;
    return block->device + at;
}

const void *cuda_put(const void *from, size_t bytes)
{
    void *fill;
    const void *staged = cuda_put_room(bytes, &fill);

    if (bytes > 0)
        memcpy(fill, from, bytes);
    return staged;
}

void *cuda_room(size_t bytes)
{
    size_t at;
    Block *block = area_take(&rooms_area, bytes, &at);

    return block->device + at;
}

/* ---- the list ---- */

/* At least `need` elements of `each` bytes at `at`, of which there is *room. */
static void *grown(void *at, size_t *room, size_t need, size_t each)
{
    if (need <= *room)
        return at;
    *room = 2 * need;
    at = realloc(at, *room * each);
    if (!at)
        cuda_check(cudaErrorMemoryAllocation, "list a launch");
    return at;
}

void cuda_list(const void *kernel, dim3 grid, dim3 block, size_t smem, int n,
               const void *const *args, const size_t *sizes)
{
    Launch launch = {kernel, grid, block, smem, list.args_used, 0, n, {}};

    if (n > LAUNCH_ARGS_MAX)
        misused("a kernel has too many arguments");
    for (int a = 0; a < n; a++) {
        launch.at[a] = (int)launch.bytes;
        launch.bytes += (sizes[a] + ARG_ALIGN - 1) / ARG_ALIGN * ARG_ALIGN;
    }
    list.items = (Launch *)grown(list.items, &list.items_room, list.n + 1, sizeof *list.items);
    list.args = (char *)grown(list.args, &list.args_room, list.args_used + launch.bytes, 1);
    memset(list.args + launch.first, 0, launch.bytes);
    for (int a = 0; a < n; a++)
        memcpy(list.args + launch.first + launch.at[a], args[a], sizes[a]);
    list.items[list.n++] = launch;
    list.args_used += launch.bytes;
}

static void launch_each(const char *what)
{
    void *args[LAUNCH_ARGS_MAX];

    for (size_t i = 0; i < list.n; i++) {
        const Launch *launch = &list.items[i];

        launch_args(args, &list, i);
        cuda_check(
            cudaLaunchKernel(launch->kernel, launch->grid, launch->block, args, launch->smem, 0),
            what);
    }
}

/* Everything that was put and listed so far, onto the stream. */
static void list_run(const char *what)
{
    for (int i = 0; i < puts_area.n; i++) {
        const Block *block = &puts_area.blocks[i];

        cuda_check(
            cudaMemcpyAsync(block->device, block->host, block->used, cudaMemcpyHostToDevice, 0),
            "copy staging");
    }
    if (between && list.n > 0)
        graph_run(&list);
    else
        launch_each(what);
    list.n = list.args_used = 0;
}

static void list_end(const char *what)
{
    list_run(what);
    cuda_check(cudaStreamSynchronize(0), what);
    area_settle(&puts_area);
    area_settle(&rooms_area);
}

/* ---- ops ---- */

void cuda_op_begin(void)
{
    if (!between)
        pthread_mutex_lock(&one_at_a_time);
    area_begin(&rooms_area);
}

void cuda_take(void *to, const void *room, size_t bytes)
{
    if (between)
        misused("an op that returns a number is called between begin and end");
    list_run("copy results");
    cuda_check(cudaMemcpyAsync(to, room, bytes, cudaMemcpyDeviceToHost, 0), "copy results");
}

void cuda_op_end(const char *op)
{
    if (between)
        return;
    list_end(op);
    pthread_mutex_unlock(&one_at_a_time);
}

void cuda_begin(void)
{
    if (between)
        misused("begin within begin");
    if (asked_for("wait"))
        return;
    pthread_mutex_lock(&one_at_a_time);
    between = 1;
}

void cuda_end(void)
{
    if (!between)
        return;
    list_end("a list of ops");
    between = 0;
    pthread_mutex_unlock(&one_at_a_time);
}
