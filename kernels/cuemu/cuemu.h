/*
 * A shim that runs plain CUDA C on the CPU, for tests: one fiber per thread of a block.
 *
 * Invariants
 *  1. One block runs at a time, one thread at a time; a thread gives way at barriers and warp
 *     operations only. So a run is a fixed order of all threads, and a race changes bits between
 *     the two orders or meets poison.
 *  2. Shared memory is filled with 0xff (NaN in every format) before each block.
 *  3. A barrier that some thread of the block does not reach, or a warp whose lanes wait in
 *     different places, ends the program with the kernel's name and the line.
 *
 * Not here: what Hopper adds (hopper.h), warp operations of fewer than 32 lanes, clusters, timing.
 */
#pragma once

#include "kernels/cuemu/sites.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuemu_shared")))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct CuemuThread {
    dim3 thread, block, block_dim, grid_dim;
};

extern CuemuThread *cuemu_now;
extern void *cuemu_dynamic;
extern int cuemu_major;

#define threadIdx (cuemu_now->thread)
#define blockIdx  (cuemu_now->block)
#define blockDim  (cuemu_now->block_dim)
#define gridDim   (cuemu_now->grid_dim)

#define DYN_SMEM(type, name) type *name = static_cast<type *>(cuemu_dynamic)
#define LAUNCH(kernel, grid, block, smem, stream, ...)                                             \
    (static_cast<void>(stream), cuemu_launch(#kernel, reinterpret_cast<const void *>(kernel),      \
                                             grid, block, smem, [&]() { kernel(__VA_ARGS__); }))

void cuemu_launch(const char *name, const void *at, dim3 grid, dim3 block, size_t smem,
                  const std::function<void()> &kernel);

/* Lets the kernel have so much dynamic shared memory. */
void cuemu_allow(const void *kernel, size_t bytes);

void cuemu_sync_block(CuemuSite *site);
void cuemu_sync_warp(CuemuSite *site);
/* Sends `bytes` bytes of `value` and takes those of lane `from` of the calling warp. */
void cuemu_exchange(unsigned mask, void *value, size_t bytes, int from);
unsigned cuemu_ballot(unsigned mask, int predicate);
void cuemu_mma(float c[4], const uint32_t a[4], const uint32_t b[2]);
int cuemu_lane(void);

#define CUEMU_SITE(call, ...)                                                                      \
    do {                                                                                           \
        static CuemuSite cuemu_site = {__FILE__, __LINE__, 0, 0, 0, nullptr};                      \
        call(&cuemu_site, ##__VA_ARGS__);                                                          \
    } while (0)
#define __syncthreads() CUEMU_SITE(cuemu_sync_block)
#define __syncwarp()    CUEMU_SITE(cuemu_sync_warp)

template <typename T> static inline T __shfl_sync(unsigned mask, T value, int from)
{
    cuemu_exchange(mask, &value, sizeof value, from);
    return value;
}

template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int with)
{
    cuemu_exchange(mask, &value, sizeof value, cuemu_lane() ^ with);
    return value;
}

template <typename T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned by)
{
    int from = cuemu_lane() + static_cast<int>(by);

    cuemu_exchange(mask, &value, sizeof value, from < 32 ? from : cuemu_lane());
    return value;
}

static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    return cuemu_ballot(mask, predicate);
}

template <typename T> static inline T __ldg(const T *at)
{
    return *at;
}

template <typename T> static inline T atomicAdd(T *at, T by)
{
    T old = *at;

    *at = old + by;
    return old;
}

struct alignas(8) float2 {
    float x, y;
};

static inline float __uint_as_float(unsigned bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline unsigned __float_as_uint(float x)
{
    unsigned bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The runtime's calls that the host side of the kernels makes. */
#define CUDART_VERSION 13000
typedef int cudaError_t;
typedef void *cudaStream_t;
enum { cudaSuccess = 0 };
enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };

static inline cudaError_t cudaMalloc(void **at, size_t bytes)
{
    *at = nullptr;
    if (posix_memalign(at, 64, bytes) == 0)
        memset(*at, 0xff, bytes);
    return *at ? cudaSuccess : 2;
}

static inline cudaError_t cudaMallocManaged(void **at, size_t bytes)
{
    return cudaMalloc(at, bytes);
}

static inline cudaError_t cudaMallocHost(void **at, size_t bytes)
{
    return cudaMalloc(at, bytes);
}

static inline cudaError_t cudaFree(void *at)
{
    free(at);
    return cudaSuccess;
}

static inline cudaError_t cudaFreeHost(void *at)
{
    return cudaFree(at);
}

static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind,
                                          cudaStream_t stream)
{
    (void)kind;
    (void)stream;
    if (bytes > 0)
        memcpy(to, from, bytes);
    return cudaSuccess;
}

static inline cudaError_t cudaMemsetAsync(void *to, int byte, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    if (bytes > 0)
        memset(to, byte, bytes);
    return cudaSuccess;
}

static inline cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    (void)stream;
    return cudaSuccess;
}

static inline cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? cuemu_major : 0;
    return cudaSuccess;
}

static inline cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

static inline const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : "out of memory";
}

template <typename T> static inline cudaError_t cudaFuncSetAttribute(T *kernel, int name, int value)
{
    if (name == cudaFuncAttributeMaxDynamicSharedMemorySize)
        cuemu_allow(kernel, static_cast<size_t>(value));
    return cudaSuccess;
}
