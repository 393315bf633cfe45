/*
 * Log-probabilities over the vocabulary, from logits or from the head's inputs.
 *
 * The head's product is made a tile of the vocabulary at a time, for all rows: its weights and
 * their gradient go by once, and logits of all ids are never there.
 *
 * Invariants
 *  1. A row's sums run tile by tile over ascending ids, whether its logits come from memory or from
 *     the product: what training recomputes has the bits that sampling recorded.
 *  2. dx is one chain over ascending ids, dw one over ascending rows: tiles do not show in them.
 *
 * Not here: the products (gemm.c, train.c).
 */
#include "kernels/cpu/train.h"

#include "kernels/cpu/vec.h"

/* What a row has so far: the largest z, and over exp(z - top) their sum and the sum of their z. */
typedef struct {
    float top, sum, mean;
} RowSums;

/* Lanes beyond `left` become the value that changes neither a maximum nor a sum of exponentials. */
static vf load_logits(const float *z, int left, float beta)
{
    vf v = vload_n(z, left) * beta;

    for (int i = left; i < W; i++)
        v[i] = -INFINITY;
    return v;
}

/* One more tile: the sums so far and the tile's own, both brought to the larger of the two tops. */
static void row_tile(RowSums *row, const float *z, int n, float beta)
{
    vf most = vset(-INFINITY), sum = {0}, mean = {0};
    float peak, top, before, now;

    for (int j = 0; j < n; j += W)
        most = vmax(most, load_logits(z + j, n - j, beta));
    peak = vtop(most);
    for (int j = 0; j < n; j += W) {
        vf v = load_logits(z + j, n - j, beta), e = vexp(v - peak);

        sum += e;
        mean = vfma(e, vselect(e > 0, v, vset(0)), mean);
    }
    top = fmaxf(row->top, peak);
    before = expf(row->top - top);
    now = expf(peak - top);
    *row =
        (RowSums){top, row->sum * before + vsum(sum) * now, row->mean * before + vsum(mean) * now};
}

/* z is that of the row's id. */
static void row_end(const RowSums *row, float z, float *logp, float *lse, float *entropy)
{
    *lse = row->top + logf(row->sum);
    *logp = z - *lse;
    if (entropy)
        *entropy = *lse - row->mean / row->sum;
}

static int tile_ids(int from, int valid)
{
    return valid - from < OPS_HEAD_TILE ? valid - from : OPS_HEAD_TILE;
}

void CPU(logprob_fwd)(void *logp, void *lse, void *entropy, const void *logits, const int *ids,
                      int rows, int vocab, int valid, double temperature)
{
    float beta = (float)(1 / temperature);

#pragma omp parallel for schedule(static) if ((double)rows * vocab > CPU_PARALLEL_WORK / 8)
    for (int t = 0; t < rows; t++) {
        const float *z = (const float *)logits + (size_t)t * (size_t)vocab;
        RowSums row = {.top = -INFINITY};

        for (int from = 0; from < valid; from += OPS_HEAD_TILE)
            row_tile(&row, z + from, tile_ids(from, valid), beta);
        row_end(&row, z[ids[t]] * beta, (float *)logp + t, (float *)lse + t,
                entropy ? (float *)entropy + t : NULL);
    }
}

/* Outputs from .. from + n - 1 of W, as they lie. */
static OpsWeight weight_part(const OpsWeight *w, int from, int n)
{
    return (OpsWeight){.data = (char *)w->data + CPU(weight_bytes)(w->format, from, w->k),
                       .n = n,
                       .k = w->k,
                       .format = w->format};
}

/* Logits of a tile, z [T, n]; `part` is its share of W. */
static void tile_logits(float *z, OpsWeight *part, const void *x, const OpsWeight *w, int from,
                        int rows, int valid)
{
    *part = weight_part(w, from, tile_ids(from, valid));
    CPU(gemm_fwd)(z, x, part, rows, GEMM_EXACT);
}

void CPU(head_fwd)(void *logp, void *lse, void *entropy, const void *x, const OpsWeight *w,
                   const int *ids, int rows, int valid, double temperature, void *scratch)
{
    float beta = (float)(1 / temperature), *z = scratch, *own = logp;
    RowSums *sums = (RowSums *)(void *)(z + (size_t)rows * OPS_HEAD_TILE);

    for (int t = 0; t < rows; t++)
        sums[t] = (RowSums){.top = -INFINITY};
    for (int from = 0; from < valid; from += OPS_HEAD_TILE) {
        OpsWeight part;

        tile_logits(z, &part, x, w, from, rows, valid);
#pragma omp parallel for schedule(static) if ((double)rows * part.n > CPU_PARALLEL_WORK / 8)
        for (int t = 0; t < rows; t++) {
            const float *row = z + (size_t)t * (size_t)part.n;

            row_tile(&sums[t], row, part.n, beta);
            if (ids[t] >= from && ids[t] - from < part.n)
                own[t] = row[ids[t] - from] * beta;
        }
    }
    for (int t = 0; t < rows; t++)
        row_end(&sums[t], own[t], own + t, (float *)lse + t, entropy ? (float *)entropy + t : NULL);
}

/* z, which becomes dz: ids of the tile begin at `from`. */
static void row_bwd(float *z, const HeadGrad *grad, int t, int from, int n, float beta)
{
    float c = ((const float *)grad->coef)[t] * beta, all = ((const float *)grad->lse)[t];
    float b = grad->bonus ? ((const float *)grad->bonus)[t] * beta : 0;
    float h = grad->bonus ? ((const float *)grad->entropy)[t] : 0;
    int id = grad->ids[t] - from;

    for (int j = 0; j < n; j += W) {
        vf log_p = vload_n(z + j, n - j) * beta - all;

        vstore_n(z + j, vexp(log_p) * (c + b * (log_p + h)), n - j);
    }
    if (grad->ids[t] >= from && id < n)
        z[id] -= c;
}

void CPU(head_bwd)(void *dx, void *dw, const void *x, const OpsWeight *w, const HeadGrad *grad,
                   int rows, int valid, double temperature, void *scratch)
{
    float beta = (float)(1 / temperature), *z = scratch;
    int from = 0;

    do {
        OpsWeight part;

        tile_logits(z, &part, x, w, from, rows, valid);
#pragma omp parallel for schedule(static) if ((double)rows * part.n > CPU_PARALLEL_WORK / 8)
        for (int t = 0; t < rows; t++)
            row_bwd(z + (size_t)t * (size_t)part.n, grad, t, from, part.n, beta);
        CPU(product_dx)(dx, z, &part, rows, from > 0, GEMM_EXACT);
        CPU(product_dw)
        ((float *)dw + (size_t)from * (size_t)w->k, z, x, &part, rows, GEMM_EXACT);
        from += OPS_HEAD_TILE;
    } while (from < valid); /* without any id, dx is zero */
}
