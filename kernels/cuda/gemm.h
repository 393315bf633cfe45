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
    size_t a_row, a_inner, b_row, b_inner, c_row; /* elements; of B in codes, bytes */
    const int *a_rows; /* on the card; NULL, or row r of A is number a_rows[r] / divide */
    int divide, b_bf16, add;
    WeightFormat b_codes; /* 0, or B is rows of codes: W (b_row bytes apart) or W^T (b_row is 0) */
    int b_scales;         /* Packed.scales */
    int m, n, k;
} GemmJob;

/* With `up`, c = SiLU(a) (.) b of the products a with job.b and b with `up`; else the job alone. */
typedef struct {
    GemmJob job;
    const char *up;
    float *a, *b; /* may be NULL; rows as of c */
} GatedJob;

/* Whose the rows of a list of jobs are: all are the one job's, or those from offsets[j] up to
 * offsets[j + 1] job j's. Then jobs share arrays of `rows` rows, of which offsets, on the card,
 * says whose is which. */
typedef struct {
    const int *offsets; /* NULL, or [n + 1] */
    int n, rows;
} GemmRows;

/* Rows row0 .. end - 1 of a job; of them a block takes as many as a tile has. */
typedef struct {
    int job, row0, end; /* job -1: none */
} GemmTile;

/* bf16 terms of each side (product.h). */
typedef struct {
    int a, b;
} GemmTerms;

/* The tile of block number `block` where tiles have `high` rows: job by job in ascending order. */
static __device__ __forceinline__ GemmTile gemm_tile_at(const GemmRows &rows, int block, int high)
{
    GemmTile at = {0, block * high, rows.rows}, none = {-1, 0, 0};

    for (int j = 0; rows.offsets && j < rows.n; j++) {
        int first = rows.offsets[j], tiles = (rows.offsets[j + 1] - first + high - 1) / high;

        if (block < tiles) {
            at.job = j;
            at.row0 = first + block * high;
            at.end = rows.offsets[j + 1];
            return at;
        }
        block -= tiles;
    }
    return rows.offsets ? none : at;
}

/* How many rows the block takes. */
static __device__ __forceinline__ int gemm_tile_rows(const GemmTile &at)
{
    return at.end - at.row0 < TILE_M ? at.end - at.row0 : TILE_M;
}

static __device__ __forceinline__ const char *gemm_b_row(const GemmJob *job, const char *b, int row)
{
    return b + (size_t)row * job->b_row * (job->b_codes ? 1 : job->b_bf16 ? 2 : 4);
}

/* Rows of B from `first` on. */
static __device__ __forceinline__ Side gemm_side_b(const GemmJob *job, int first)
{
    Side b = side(job->b_inner);

    b.bf16 = job->b_bf16;
    b.codes = job->b_codes;
    b.scales = job->b_scales;
    b.turned = job->b_row == 0;
    b.first = first;
    return b;
}

/* A B^T of the tile's *m rows and of columns col0 .. col0 + *n - 1. */
template <int TA, int TB>
static __device__ __forceinline__ void gemm_acc(Acc acc, Tile<TA, TB> *tile, const GemmJob *job,
                                                const GemmTile &at, int col0, int *m, int *n)
{
    Side b = gemm_side_b(job, col0);

    *m = gemm_tile_rows(at);
    *n = job->n - col0 < TILE_N ? job->n - col0 : TILE_N;
    for (int r = (int)threadIdx.x; r < *m; r += TILE_BLOCK) {
        int row = job->a_rows ? job->a_rows[at.row0 + r] / job->divide : at.row0 + r;

        tile->a_at[r] = (const char *)(job->a + (size_t)row * job->a_row);
    }
    for (int r = (int)threadIdx.x; r < *n; r += TILE_BLOCK)
        tile->b_at[r] = gemm_b_row(job, job->b, col0 + r);
    acc_zero(acc);
    tile_product<TA, TB>(acc, tile, side(job->a_inner), *m, b, *n, job->k);
}

/* Jobs of a list have the same number of columns. */
void gemm_launch(const GemmJob *jobs, GemmRows rows, GemmTerms terms);
/* The jobs of all experts' gates and ups (moe.cu). */
void moe_up_jobs(GatedJob *jobs, void *a, void *b, void *act, const void *x, const MoePlan *plan,
                 const MoeWeights *w);
/* y [T, width] = sum of each row's slots of `from`, in ascending order of expert (moe.cu). */
void moe_combine(float *y, const float *from, const float *weights, const MoePlan *plan, int width);

static inline GemmRows gemm_rows_all(const GemmJob *job)
{
    GemmRows rows = {NULL, 1, job->m};

    return rows;
}

static inline GemmRows gemm_rows_of(const MoePlan *plan)
{
    GemmRows rows = {plan->offsets, plan->experts, plan->rows};

    return rows;
}

/* The most tiles of `high` rows that there can be: as many blocks find theirs or leave. */
static inline int gemm_tiles_most(GemmRows rows, int high)
{
    int ends = rows.n < rows.rows ? rows.n : rows.rows;

    return rows.offsets ? rows.rows / high + ends : (rows.rows + high - 1) / high;
}

/* What B is where it is W (rows apart by one row of W) or W^T. */
static inline void gemm_set_weight(GemmJob *job, const OpsWeight *w, int turned)
{
    Packed p = packed_of(w);
    int codes = quant_is(w->format);
    size_t row = codes ? p.row : cuda_weight_stride(w->k);

    job->b = p.data;
    job->b_row = turned ? !codes : row;
    job->b_inner = turned ? row : 1;
    job->b_bf16 = w->format == WEIGHT_BF16;
    job->b_codes = codes ? w->format : WEIGHT_REAL;
    job->b_scales = p.scales;
}

/* y = x W^T. */
static inline GemmJob gemm_job_fwd(float *y, const float *x, const OpsWeight *w, int rows)
{
    GemmJob job = {};

    job.a = x;
    job.a_row = (size_t)w->k;
    job.a_inner = 1;
    gemm_set_weight(&job, w, 0);
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
    gemm_set_weight(&job, w, 1);
    job.c = dx;
    job.c_row = (size_t)w->k;
    job.m = rows;
    job.n = w->k;
    job.k = w->n;
    job.add = add;
    return job;
}

/* dw += dy^T x. */
static inline GemmJob gemm_job_dw(float *dw, const float *dy, const float *x, int rows, int n,
                                  int k)
{
    GemmJob job = {};

    job.a = dy;
    job.a_row = 1;
    job.a_inner = (size_t)n;
    job.b = (const char *)x;
    job.b_row = 1;
    job.b_inner = (size_t)k;
    job.c = dw;
    job.c_row = (size_t)k;
    job.m = n;
    job.n = k;
    job.k = rows;
    job.add = 1;
    return job;
}

/* Outputs from .. from + n - 1 of W, as they lie. */
static inline OpsWeight gemm_weight_part(const OpsWeight *w, int from, int n)
{
    OpsWeight part = *w;

    part.data = (char *)w->data + cuda_weight_bytes(w->format, from, w->k);
    part.n = n;
    return part;
}

GemmTerms gemm_terms(WeightFormat format, GemmPrecision precision);

static inline GemmTerms gemm_terms_dw(void)
{
    GemmTerms terms = {2, 2};

    return terms;
}

static inline GemmTerms gemm_terms_dx(WeightFormat format)
{
    GemmTerms terms = {2, format == WEIGHT_REAL ? 2 : 1};

    return terms;
}
