/*
 * What a card can do: bytes per second of a copy (read and written) and bf16 products per second of
 * cuBLAS at 8192 cubed. Prints both as "COPY GEMM", in GB/s and TFLOP/s: medians of ROUNDS.
 *
 *     nvcc -O3 gpu_ceiling.cu -lcublas -o gpu_ceiling
 */
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

#define ROUNDS     21
#define COPY_BYTES ((size_t)2 << 30)
#define N          8192

#define CHECK(call)                                                                                \
    do {                                                                                           \
        int status = (int)(call);                                                                  \
        if (status) {                                                                              \
            fprintf(stderr, "%s: %d\n", #call, status);                                            \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

typedef struct {
    cublasHandle_t blas;
    void *a, *b, *c;
} Bench;

static void copy(Bench *b)
{
    CHECK(cudaMemcpyAsync(b->a, b->b, COPY_BYTES, cudaMemcpyDeviceToDevice));
}

static void gemm(Bench *b)
{
    float one = 1, zero = 0;

    CHECK(cublasGemmEx(b->blas, CUBLAS_OP_T, CUBLAS_OP_N, N, N, N, &one, b->a, CUDA_R_16BF, N, b->b,
                       CUDA_R_16BF, N, &zero, b->c, CUDA_R_16BF, N, CUBLAS_COMPUTE_32F,
                       CUBLAS_GEMM_DEFAULT));
}

static int by_time(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return x < y ? -1 : x > y;
}

static double median_ms(Bench *b, void (*run)(Bench *b))
{
    cudaEvent_t from, to;
    float ms[ROUNDS];

    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    for (int i = -3; i < ROUNDS; i++) {
        float took;

        CHECK(cudaEventRecord(from));
        run(b);
        CHECK(cudaEventRecord(to));
        CHECK(cudaEventSynchronize(to));
        CHECK(cudaEventElapsedTime(&took, from, to));
        if (i >= 0)
            ms[i] = took;
    }
    qsort(ms, ROUNDS, sizeof ms[0], by_time);
    return ms[ROUNDS / 2];
}

int main(void)
{
    Bench b;

    CHECK(cublasCreate(&b.blas));
    CHECK(cudaMalloc(&b.a, COPY_BYTES));
    CHECK(cudaMalloc(&b.b, COPY_BYTES));
    CHECK(cudaMalloc(&b.c, COPY_BYTES));
    CHECK(cudaMemset(b.a, 0x3c, COPY_BYTES));
    CHECK(cudaMemset(b.b, 0x3d, COPY_BYTES));
    double copy_ms = median_ms(&b, copy), gemm_ms = median_ms(&b, gemm);
    printf("%.0f %.1f\n", 2.0 * COPY_BYTES / copy_ms / 1e6, 2.0 * N * N * N / gemm_ms / 1e9);
    return 0;
}
