/*
 * The shim itself: what it emulates is right, and what it does not is refused.
 */
#include "kernels/cuemu/cuemu.h"

#include <glib.h>

#define WHOLE 0xffffffffu

/* ---- identities and memory ---- */

static __global__ void number_kernel(int *out)
{
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;

    out[block * blockDim.x * blockDim.y + thread] = (int)(block * 1000 + thread);
}

static void test_numbers(void)
{
    int out[12 * 64];

    CUEMU_RUN(number_kernel, dim3(2, 3, 2), dim3(16, 4), 0, out);
    for (int i = 0; i < 12 * 64; i++)
        g_assert_cmpint(out[i], ==, i / 64 * 1000 + i % 64);
}

static __global__ void poison_kernel(unsigned char *out)
{
    __shared__ unsigned char fixed[32];
    DYN_SMEM(unsigned char, dynamic);

    out[threadIdx.x] = fixed[threadIdx.x] & dynamic[threadIdx.x];
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 0;
}

static void test_poison(void)
{
    unsigned char out[32] = {0};

    for (int i = 0; i < 2; i++) {
        CUEMU_RUN(poison_kernel, 2, 32, 32, out);
        for (int t = 0; t < 32; t++)
            g_assert_cmpuint(out[t], ==, 0xff);
    }
}

/* ---- warp operations ---- */

static __global__ void warp_kernel(int *out, unsigned *votes)
{
    int lane = (int)threadIdx.x % 32, x = lane * lane;

    out[threadIdx.x] = __shfl_xor_sync(WHOLE, x, 5) + 10000 * __shfl_sync(WHOLE, x, 3) +
                       1000000 * __shfl_down_sync(WHOLE, lane, 30);
    if (lane == 0)
        votes[threadIdx.x / 32] = 0;
    __syncwarp();
    unsigned vote = __ballot_sync(WHOLE, lane % 3 == 0);
    if (lane == 0)
        votes[threadIdx.x / 32] = vote;
}

static void test_warp(void)
{
    int out[64];
    unsigned votes[2], thirds = 0;

    CUEMU_RUN(warp_kernel, 1, 64, 0, out, votes);
    for (int t = 0; t < 64; t++) {
        int lane = t % 32, with = lane ^ 5, down = lane + 30 < 32 ? lane + 30 : lane;

        g_assert_cmpint(out[t], ==, with * with + 90000 + 1000000 * down);
        if (t < 32 && t % 3 == 0)
            thirds |= 1u << t;
    }
    g_assert_cmphex(votes[0], ==, thirds);
    g_assert_cmphex(votes[1], ==, thirds);
}

static uint32_t two(const float *x, int stride)
{
    return __float_as_uint(x[0]) >> 16 | (__float_as_uint(x[stride]) & 0xffff0000u);
}

/* c [16, 8] = a [16, 16] b [16, 8], by the register layout of PTX. */
static __global__ void mma_kernel(float *c, const float *a, const float *b)
{
    int g = (int)threadIdx.x / 4, t = 2 * ((int)threadIdx.x % 4);
    uint32_t as[4] = {two(a + g * 16 + t, 1), two(a + (g + 8) * 16 + t, 1),
                      two(a + g * 16 + t + 8, 1), two(a + (g + 8) * 16 + t + 8, 1)};
    uint32_t bs[2] = {two(b + t * 8 + g, 8), two(b + (t + 8) * 8 + g, 8)};
    float cs[4] = {1, 1, 1, 1};

    cuemu_mma(cs, as, bs);
    cuemu_mma(cs, as, bs);
    for (int i = 0; i < 4; i++)
        c[(g + 8 * (i / 2)) * 8 + t + i % 2] = cs[i];
}

static void test_mma(void)
{
    float a[256], b[128], c[128];

    for (int i = 0; i < 256; i++)
        a[i] = (float)(i * 7 % 31 - 15);
    for (int i = 0; i < 128; i++)
        b[i] = (float)(i * 5 % 23 - 11);
    CUEMU_RUN(mma_kernel, 1, 32, 0, c, a, b);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float sum = 0;

            for (int k = 0; k < 16; k++)
                sum += a[i * 16 + k] * b[k * 8 + j];
            g_assert_cmpfloat(c[i * 8 + j], ==, 1 + 2 * sum);
        }
}

/* ---- order ---- */

static __global__ void race_kernel(int *out)
{
    *out = (int)threadIdx.x;
}

static void test_race(void)
{
    int first, last;

    CUEMU_RUN(race_kernel, 1, 64, 0, &first);
    cuemu_reverse(1);
    CUEMU_RUN(race_kernel, 1, 64, 0, &last);
    cuemu_reverse(0);
    g_assert_cmpint(first, ==, 63);
    g_assert_cmpint(last, ==, 0);
}

static __global__ void neighbour_kernel(int *out)
{
    __shared__ int x[64];

    x[threadIdx.x] = (int)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = x[63 - threadIdx.x];
}

static void test_skipped(void)
{
    int out[64];
    CuemuSite *site;

    CUEMU_RUN(neighbour_kernel, 1, 64, 0, out);
    for (int i = 0; i < 64; i++)
        g_assert_cmpint(out[i], ==, 63 - i);
    site = cuemu_sites();
    g_assert_nonnull(site);
    g_assert_cmpint((int)site->hits, >=, 64);
    site->skipped = 1;
    CUEMU_RUN(neighbour_kernel, 1, 64, 0, out);
    site->skipped = 0;
    g_assert_cmpint(out[0], ==, -1);
}

/* ---- refusals ---- */

static __global__ void divided_kernel()
{
    if (threadIdx.x < 40)
        __syncthreads();
}

static __global__ void split_kernel(int *out)
{
    if (threadIdx.x < 16)
        __syncthreads();
    else
        *out = __shfl_sync(WHOLE, 1, 0);
}

static __global__ void partial_kernel(int *out)
{
    *out = __shfl_sync(0xffffu, 1, 0);
}

static void refused(void (*launch)(void), const char *message)
{
    if (g_test_subprocess()) {
        launch();
        return;
    }
    g_test_trap_subprocess(nullptr, 0, static_cast<GTestSubprocessFlags>(0));
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr(message);
}

static void launch_divided(void)
{
    CUEMU_RUN(divided_kernel, 1, 64, 0);
}

static void launch_split(void)
{
    int out;

    CUEMU_RUN(split_kernel, 1, 32, 0, &out);
}

static void launch_partial(void)
{
    int out;

    CUEMU_RUN(partial_kernel, 1, 32, 0, &out);
}

static void launch_odd(void)
{
    CUEMU_RUN(divided_kernel, 1, 33, 0);
}

static void test_divided(void)
{
    refused(launch_divided, "*divided_kernel: not all threads reach the barrier at *:*");
}

static void test_split(void)
{
    refused(launch_split, "*split_kernel: lanes of a warp wait in different places*");
}

static void test_partial(void)
{
    refused(launch_partial, "*partial_kernel: only whole warps*");
}

static void test_odd(void)
{
    refused(launch_odd, "*divided_kernel: blocks must be whole warps*");
}

/* ---- graphs ---- */

static __global__ void add_kernel(int *at, int by)
{
    if (threadIdx.x == 0)
        *at = *at * 10 + by;
}

static cudaKernelNodeParams adding(void **args)
{
    cudaKernelNodeParams params = {};

    params.func = const_cast<void *>(KERNEL(add_kernel));
    params.gridDim = 1;
    params.blockDim = 32;
    params.kernelParams = args;
    return params;
}

/* A chain of two nodes, of which the second is changed; only what was copied counts. */
static void test_graph(void)
{
    int x = 0, by = 1, *at = &x;
    void *args[] = {&at, &by};
    cudaGraph_t graph, other;
    cudaGraphNode_t first, second;
    cudaGraphExec_t exec;
    cudaKernelNodeParams params = adding(args), wrong = params;

    wrong.func = const_cast<void *>(KERNEL(number_kernel));
    g_assert_cmpint(cudaGraphCreate(&graph, 0), ==, cudaSuccess);
    g_assert_cmpint(cudaGraphAddKernelNode(&first, graph, nullptr, 0, &params), ==, cudaSuccess);
    by = 2;
    g_assert_cmpint(cudaGraphAddKernelNode(&second, graph, nullptr, 0, &params), ==,
                    cudaErrorInvalidValue);
    g_assert_cmpint(cudaGraphAddKernelNode(&second, graph, &first, 1, &params), ==, cudaSuccess);
    g_assert_cmpint(cudaGraphInstantiate(&exec, graph, 0), ==, cudaSuccess);
    by = 3;
    g_assert_cmpint(x, ==, 0);
    cudaGraphLaunch(exec, nullptr);
    g_assert_cmpint(x, ==, 12);
    g_assert_cmpint(cudaGraphExecKernelNodeSetParams(exec, second, &wrong), ==,
                    cudaErrorInvalidValue);
    g_assert_cmpint(cudaGraphExecKernelNodeSetParams(exec, second, &params), ==, cudaSuccess);
    by = 4;
    cudaGraphLaunch(exec, nullptr);
    g_assert_cmpint(x, ==, 1213);
    cudaGraphCreate(&other, 0);
    cudaGraphAddKernelNode(&first, other, nullptr, 0, &params);
    g_assert_cmpint(cudaGraphExecKernelNodeSetParams(exec, first, &params), ==,
                    cudaErrorInvalidValue);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaGraphDestroy(other);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cuemu/graphs_of_launches", test_graph);
    g_test_add_func("/cuemu/threads_and_blocks_have_numbers", test_numbers);
    g_test_add_func("/cuemu/shared_memory_begins_as_poison", test_poison);
    g_test_add_func("/cuemu/warp_operations", test_warp);
    g_test_add_func("/cuemu/the_tensor_product", test_mma);
    g_test_add_func("/cuemu/a_race_differs_between_the_orders", test_race);
    g_test_add_func("/cuemu/a_barrier_left_out_is_seen", test_skipped);
    g_test_add_func("/cuemu/refuses/a_barrier_that_not_all_reach", test_divided);
    g_test_add_func("/cuemu/refuses/a_warp_split_over_two_waits", test_split);
    g_test_add_func("/cuemu/refuses/a_partial_warp", test_partial);
    g_test_add_func("/cuemu/refuses/a_partial_block", test_odd);
    return g_test_run();
}
