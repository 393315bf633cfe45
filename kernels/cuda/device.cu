/*
 * The host side of every op: one at a time on one stream, with copies of the small host arrays.
 *
 * Invariants
 *  1. When an op returns, its outputs may be read by the host: every op waits for its kernels.
 *  2. Staging grows when an op needs more than any before it, never within an op.
 *  3. A card that fails leaves numbers that nobody may use: the program ends and names the op. What
 *     was accepted before is in the store and is taken up again.
 *
 * Not here: which card is used (table.cu).
 */
#include "kernels/cuda/cuda.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* `host` mirrors the first part of `device`; NULL where nothing is put. */
typedef struct {
    char *host, *device;
    size_t used, bytes;
} Area;

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static Area puts_area, rooms_area;

cudaStream_t cuda_stream(void)
{
    return 0;
}

void cuda_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "cuda: %s: %s\n", what, cudaGetErrorString(error));
    abort();
}

int cuda_hopper(void)
{
    const char *asked = getenv("ASSAY_CUDA");
    int major = 0, minor = 0;

    if (asked && strcmp(asked, "sm80") == 0)
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

static void area_reserve(Area *area, size_t bytes, int mirrored)
{
    area->used = 0;
    if (bytes <= area->bytes)
        return;
    if (area->bytes > 0) {
        cuda_check(cudaFree(area->device), "free staging");
        if (mirrored)
            cuda_check(cudaFreeHost(area->host), "free staging");
    }
    area->bytes = bytes;
    cuda_check(cudaMalloc((void **)&area->device, bytes), "allocate staging");
    if (mirrored)
        cuda_check(cudaMallocHost((void **)&area->host, bytes), "allocate staging");
}

static size_t area_take(Area *area, size_t bytes)
{
    size_t at = area->used;

    area->used += stage_size(bytes);
    if (area->used > area->bytes) {
        fprintf(stderr, "cuda: an op staged %zu bytes and had asked for %zu\n", area->used,
                area->bytes);
        abort();
    }
    return at;
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

void cuda_begin(size_t puts, size_t rooms)
{
    pthread_mutex_lock(&one_at_a_time);
    area_reserve(&puts_area, puts, 1);
    area_reserve(&rooms_area, rooms, 0);
}

const void *cuda_put_room(size_t bytes, void **fill)
{
    size_t at = area_take(&puts_area, bytes);

    *fill = puts_area.host + at;
    return puts_area.device + at;
}

const void *cuda_put(const void *from, size_t bytes)
{
    void *fill;
    const void *staged = cuda_put_room(bytes, &fill);

    if (bytes > 0)
        memcpy(fill, from, bytes);
    return staged;
}

const void *cuda_begin_put(const void *from, size_t bytes, size_t rooms)
{
    const void *staged;

    cuda_begin(stage_size(bytes), rooms);
    staged = cuda_put(from, bytes);
    cuda_send();
    return staged;
}

void *cuda_room(size_t bytes)
{
    return rooms_area.device + area_take(&rooms_area, bytes);
}

void cuda_send(void)
{
    cuda_check(cudaMemcpyAsync(puts_area.device, puts_area.host, puts_area.used,
                               cudaMemcpyHostToDevice, cuda_stream()),
               "copy staging");
}

void cuda_take(void *to, const void *room, size_t bytes)
{
    cuda_check(cudaMemcpyAsync(to, room, bytes, cudaMemcpyDeviceToHost, cuda_stream()),
               "copy results");
}

void cuda_end(const char *op)
{
    cuda_check(cudaGetLastError(), op);
    cuda_check(cudaStreamSynchronize(cuda_stream()), op);
    pthread_mutex_unlock(&one_at_a_time);
}
