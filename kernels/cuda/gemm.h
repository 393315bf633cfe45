/*
 * Products as lists of jobs: plain ones are a list of one, experts' have one for each expert.
 */
#pragma once

#include "kernels/cuda/product.h"

/* c [m, n] = (or +=) A B^T over k; element (r, i) of a side lies at row * r + inner * i. */
typedef struct {
    const float *a;
    const char *b;
    float *c;
    size_t a_row, a_inner, b_row, b_inner, c_row; /* elements */
    const int *a_rows; /* on the card; NULL, or row r of A is number a_rows[r] / divide */
    int divide, b_bf16, add;
    int m, n, k;
} GemmJob;

typedef struct {
    int job, row0;
} GemmTile;

/* bf16 terms of each side (product.h). */
typedef struct {
    int a, b;
} GemmTerms;

/* What gemm_launch stages for jobs of `rows` rows together. */
size_t gemm_stage_bytes(int jobs, int rows);
void gemm_launch(const GemmJob *jobs, int n_jobs, GemmTerms terms);
/* y [T, width] = sum of each row's slots of `from`, in ascending order of expert; `order` and
 * `slot` are staged (moe.cu). */
void moe_combine(float *y, const float *from, const float *weights, const int *order,
                 const int *slot, const MoePlan *plan, int width);
/* The staged list of every job's row tiles. */
const GemmTile *gemm_tiles(const GemmJob *jobs, int n_jobs, int *n_tiles);

static inline size_t weight_element(WeightFormat format)
{
    return format == WEIGHT_BF16 ? sizeof(uint16_t) : sizeof(float);
}

/* y = x W^T. */
static inline GemmJob gemm_job_fwd(float *y, const float *x, const OpsWeight *w, int rows)
{
    GemmJob job = {};

    job.a = x;
    job.a_row = (size_t)w->k;
    job.a_inner = 1;
    job.b = (const char *)w->data;
    job.b_row = cuda_weight_stride(w->k);
    job.b_inner = 1;
    job.b_bf16 = w->format == WEIGHT_BF16;
    job.c = y;
    job.c_row = (size_t)w->n;
    job.m = rows;
    job.n = w->n;
    job.k = w->k;
    return job;
}

/* dx = dy W. */
static inline GemmJob gemm_job_dx(float *dx, const float *dy, const OpsWeight *w, int rows, int add)
{
    GemmJob job = {};

    job.a = dy;
    job.a_row = (size_t)w->n;
    job.a_inner = 1;
    job.b = (const char *)w->data;
    job.b_row = 1;
    job.b_inner = cuda_weight_stride(w->k);
    job.b_bf16 = w->format == WEIGHT_BF16;
    job.c = dx;
    job.c_row = (size_t)w->k;
    job.m = rows;
    job.n = w->k;
    job.k = w->n;
    job.add = add;
    return job;
}

GemmTerms gemm_terms(WeightFormat format, GemmPrecision precision);

static inline GemmTerms gemm_terms_dx(WeightFormat format)
{
    GemmTerms terms = {2, format == WEIGHT_BF16 ? 1 : 2};

    return terms;
}
