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
#include <type_traits>
#include <utility>

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

/* Of the thread that runs. */
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
extern void *cuemu_dynamic;
extern int cuemu_major;
extern long cuemu_held; /* pieces of memory */

#define DYN_SMEM(type, name) type *name = static_cast<type *>(cuemu_dynamic)
/* ---- kernels ---- */

/* A kernel as the runtime's calls know it: by its address alone. `call` runs one thread of it. */
struct CuemuKernel {
    const char *name;
    void (*call)(const void *kernel, void *const *args);
    const size_t *sizes; /* of its n arguments */
    size_t n;
};

void cuemu_note(const void *at, const CuemuKernel &kernel);
const CuemuKernel &cuemu_noted(const void *at);

template <typename... P, size_t... I>
static inline void cuemu_apply(const void *kernel, void *const *args, std::index_sequence<I...>)
{
    void (*call)(P...) = reinterpret_cast<void (*)(P...)>(const_cast<void *>(kernel));

    call(*static_cast<P *>(args[I])...);
}

template <typename... P> static inline void cuemu_call(const void *kernel, void *const *args)
{
    cuemu_apply<P...>(kernel, args, std::index_sequence_for<P...>());
}

/* The kernel's address, which the shim knows from now on. */
template <typename... P>
static inline const void *cuemu_kernel(const char *name, void (*kernel)(P...))
{
    static const size_t sizes[] = {sizeof(P)..., 0};
    const void *at = reinterpret_cast<const void *>(kernel);

    cuemu_note(at, {name, cuemu_call<P...>, sizes, sizeof...(P)});
    return at;
}
#define KERNEL(kernel) cuemu_kernel(#kernel, kernel)

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

static inline int __popc(unsigned bits)
{
    return __builtin_popcount(bits);
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
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };

static inline cudaError_t cudaMalloc(void **at, size_t bytes)
{
    *at = nullptr;
    if (posix_memalign(at, 64, bytes) == 0)
        memset(*at, 0xff, bytes);
    cuemu_held += *at != nullptr;
    return *at ? cudaSuccess : cudaErrorMemoryAllocation;
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
    cuemu_held -= at != nullptr;
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

static inline const char *cudaGetErrorString(cudaError_t error)
{
    static const char *const says[] = {"no error", "invalid argument", "out of memory"};

    return says[error];
}

template <typename T> static inline cudaError_t cudaFuncSetAttribute(T *kernel, int name, int value)
{
    if (name == cudaFuncAttributeMaxDynamicSharedMemorySize)
        cuemu_allow(kernel, static_cast<size_t>(value));
    return cudaSuccess;
}

/* ---- launches and graphs of them (graph.cpp) ---- */

struct cudaKernelNodeParams {
    void *func;
    dim3 gridDim, blockDim;
    unsigned sharedMemBytes;
    void **kernelParams, **extra;
};
typedef struct CuemuNode *cudaGraphNode_t;
typedef struct CuemuGraph *cudaGraph_t;
typedef struct CuemuExec *cudaGraphExec_t;

/* Runs the kernel's blocks one by one. */
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **args, size_t smem,
                             cudaStream_t stream);
cudaError_t cudaGraphCreate(cudaGraph_t *graph, unsigned flags);
/* Arguments are copied; a node comes after the one made before it, and after no other. */
cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t *node, cudaGraph_t graph,
                                   const cudaGraphNode_t *after, size_t n_after,
                                   const cudaKernelNodeParams *params);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags);
/* Of a node of the graph that `exec` was made of, which must still be there. Same kernel. */
cudaError_t cudaGraphExecKernelNodeSetParams(cudaGraphExec_t exec, cudaGraphNode_t node,
                                             const cudaKernelNodeParams *params);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

/* Runs a kernel now, for tests of the shim itself. */
template <typename... P>
static inline void cuemu_run(const void *at, void (*kernel)(P...), dim3 grid, dim3 block,
                             size_t smem, std::common_type_t<P>... p)
{
    void *args[] = {&p..., nullptr};

    static_cast<void>(kernel);
    cudaLaunchKernel(at, grid, block, args, smem, nullptr);
}
#define CUEMU_RUN(kernel, grid, block, smem, ...)                                                  \
    cuemu_run(KERNEL(kernel), kernel, grid, block, smem, ##__VA_ARGS__)
