/*
 * What Hopper (sm_90a) adds, by one name each: barriers in shared memory, bulk copies, products of
 * a warpgroup of 128 threads. Inline PTX for nvcc; kernels/cuemu/hopper.h over the shim.
 *
 *  barrier_init     one thread; phase 0 ends after `arrivals` arrivals and all bytes expected. Then
 *                   proxy_fence and a barrier of the block, before anyone uses it
 *  barrier_expect   arrives and adds `bytes` to what the phase waits for
 *  barrier_wait     until the phase of that parity is over
 *  bulk_copy        global to shared memory; ends and size are multiples of 16 bytes. Who waits at
 *                   the barrier sees it, as do products
 *  proxy_fence      what this thread wrote to shared memory is seen by products and copies that
 *                   begin after a barrier
 *  wgmma_fence      before the first product of a group
 *  wgmma_wait(n)    until at most n groups are under way; no register of theirs is touched before.
 *                   acc_settle then, before the sums are read, and between what writes them and
 *                   the fence
 *  wgmma_rs, _ss    acc [64, N] += A [64, 16] B [N, 16]^T, bf16 into f32, by all of a warpgroup
 *
 * A matrix in shared memory is made of core matrices, 8 rows of 16 bytes one behind the other
 * (matrix_at). Warp w of a group holds rows 16 w on, with registers of A as mma.sync has them;
 * acc[j][e] is row lane / 4 + 8 (e / 2) and column 8 j + 2 (lane % 4) + e % 2.
 *
 * Source: PTX ISA 8.0, wgmma.mma_async, mbarrier, cp.async.bulk, fence.proxy.
 * Not here: tensor maps, clusters, swizzled matrices: packed weights and rows need none of them.
 */
#pragma once

#include "kernels/cuda/cuda.h"

#define WARPGROUP 128
#define CORE      8 /* rows of a core matrix, and its bf16 along k */

#ifdef CUEMU
#include "kernels/cuemu/hopper.h"
#define barrier_init                  cuemu_barrier_init
#define barrier_arrive(barrier)       CUEMU_SITE(cuemu_barrier_arrive, barrier)
#define barrier_expect(barrier, size) CUEMU_SITE(cuemu_barrier_expect, barrier, size)
#define barrier_wait(barrier, parity) CUEMU_SITE(cuemu_barrier_wait, barrier, parity)
#define bulk_copy                     cuemu_bulk_copy
#define proxy_fence()                 CUEMU_SITE(cuemu_proxy_fence)
#define wgmma_fence()                 CUEMU_SITE(cuemu_wgmma_fence)
#define wgmma_commit()                CUEMU_SITE(cuemu_wgmma_commit)
#define wgmma_wait(pending)           CUEMU_SITE(cuemu_wgmma_wait, pending)
#define smem_at                       cuemu_smem_at
#define acc_settle(acc)               static_cast<void>(acc)

template <int N> static inline void wgmma_rs(float acc[N / 8][4], const uint32_t a[4], uint64_t b)
{
    cuemu_wgmma(N, acc[0], a, 0, b);
}

template <int N> static inline void wgmma_ss(float acc[N / 8][4], uint64_t a, uint64_t b)
{
    cuemu_wgmma(N, acc[0], NULL, a, b);
}
#else
static __device__ __forceinline__ uint32_t smem_at(const void *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

static __device__ __forceinline__ void barrier_init(uint64_t *barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_at(barrier)), "r"(arrivals)
                 : "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_at(barrier)) : "memory");
}

static __device__ __forceinline__ void barrier_expect(uint64_t *barrier, uint32_t size)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_at(barrier)),
                 "r"(size)
                 : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint64_t *barrier, int parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(smem_at(barrier)),
                 "r"(parity)
                 : "memory");
}

static __device__ __forceinline__ void bulk_copy(void *to, const void *from, uint32_t bytes,
                                                 uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(smem_at(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(smem_at(barrier))
                 : "memory");
}

static __device__ __forceinline__ void proxy_fence(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

#define wgmma_wait(pending)                                                                        \
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory")

/* Keeps what reads the sums behind the wait for them, what writes them before the next fence. */
template <int J> static __device__ __forceinline__ void acc_settle(float (&acc)[J][4])
{
#pragma unroll
    for (int j = 0; j < J; j++)
        asm volatile(""
                     : "+f"(acc[j][0]), "+f"(acc[j][1]), "+f"(acc[j][2]),
                       "+f"(acc[j][3])::"memory");
}

/* Of N columns, for the N that kernels use. */
template <int N>
static __device__ __forceinline__ void wgmma_rs(float acc[N / 8][4], const uint32_t a[4],
                                                uint64_t b);
template <int N>
static __device__ __forceinline__ void wgmma_ss(float acc[N / 8][4], uint64_t a, uint64_t b);

#define ACC4(j) "+f"(acc[j][0]), "+f"(acc[j][1]), "+f"(acc[j][2]), "+f"(acc[j][3])
/* clang-format off */

template <>
__device__ __forceinline__ void wgmma_rs<16>(float acc[2][4], const uint32_t a[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                 "{%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}"
                 : ACC4(0), ACC4(1)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void wgmma_rs<128>(float acc[16][4], const uint32_t a[4], uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
                 "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
                 "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
                 "%62, %63}, "
                 "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}"
                 : ACC4(0), ACC4(1), ACC4(2), ACC4(3), ACC4(4), ACC4(5), ACC4(6), ACC4(7),
                   ACC4(8), ACC4(9), ACC4(10), ACC4(11), ACC4(12), ACC4(13), ACC4(14), ACC4(15)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void wgmma_ss<128>(float acc[16][4], uint64_t a, uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
                 "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
                 "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
                 "%62, %63}, "
                 "%64, %65, p, 1, 1, 0, 0;\n}"
                 : ACC4(0), ACC4(1), ACC4(2), ACC4(3), ACC4(4), ACC4(5), ACC4(6), ACC4(7),
                   ACC4(8), ACC4(9), ACC4(10), ACC4(11), ACC4(12), ACC4(13), ACC4(14), ACC4(15)
                 : "l"(a), "l"(b));
}

template <>
__device__ __forceinline__ void wgmma_ss<64>(float acc[8][4], uint64_t a, uint64_t b)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
                 "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, p, 1, 1, 0, 0;\n}"
                 : ACC4(0), ACC4(1), ACC4(2), ACC4(3), ACC4(4), ACC4(5), ACC4(6), ACC4(7)
                 : "l"(a), "l"(b));
}
/* clang-format on */
#undef ACC4
#endif

/* A matrix in shared memory whose core matrices lie `along` bytes apart along k and `down` bytes
 * apart along rows. */
static __device__ __forceinline__ uint64_t matrix_at(const void *at, uint32_t along, uint32_t down)
{
    return ((uint64_t)(smem_at(at) & 0x3ffffu) >> 4) | (uint64_t)(along >> 4) << 16 |
           (uint64_t)(down >> 4) << 32;
}
