/*
 * Router, experts, log-probabilities and the optimiser in scalar C.
 * A body without a guard: ref_f32.c and ref_f64.c include it after body_dense.h.
 */

static void ref_route_fwd(int *ids, void *weights, const void *z, int rows, int experts, int topk)
{
    for (int t = 0; t < rows; t++) {
        const REAL *logits = (const REAL *)z + (size_t)t * experts;
        REAL *w = (REAL *)weights + (size_t)t * topk, sum = 0;
        int *best = ids + (size_t)t * topk;

        for (int c = 0; c < topk; c++) {
            best[c] = -1;
            for (int e = 0; e < experts; e++) {
                int taken = 0;

                for (int b = 0; b < c; b++)
                    taken |= best[b] == e;
                if (!taken && (best[c] < 0 || logits[e] > logits[best[c]]))
                    best[c] = e;
            }
            w[c] = MATH(exp)(logits[best[c]] - logits[best[0]]);
            sum += w[c];
        }
        for (int c = 0; c < topk; c++)
            w[c] /= sum;
    }
}

static void ref_route_balance_bwd(void *dz, const void *z, const MoePlan *plan, double scale)
{
    int e_n = plan->experts, rows = plan->rows / plan->topk;
    REAL share = (REAL)1 / (REAL)plan->rows, p[OPS_EXPERTS_MAX];
    REAL by = (REAL)scale * (REAL)e_n / (REAL)rows;

    for (int t = 0; t < rows; t++) {
        const REAL *row = (const REAL *)z + (size_t)t * e_n;
        REAL top = row[0], sum = 0, mean = 0;

        for (int e = 1; e < e_n; e++)
            top = MATH(fmax)(top, row[e]);
        for (int e = 0; e < e_n; e++)
            sum += p[e] = MATH(exp)(row[e] - top);
        for (int e = 0; e < e_n; e++) {
            p[e] /= sum;
            mean += (REAL)(plan->offsets[e + 1] - plan->offsets[e]) * share * p[e];
        }
        for (int e = 0; e < e_n; e++)
            ((REAL *)dz)[(size_t)t * e_n + e] +=
                by * p[e] * ((REAL)(plan->offsets[e + 1] - plan->offsets[e]) * share - mean);
    }
}

static void ref_route_bwd(void *dz, const void *dweights, const int *ids, const void *weights,
                          int rows, int experts, int topk)
{
    memset(dz, 0, (size_t)rows * experts * sizeof(REAL));
    for (int t = 0; t < rows; t++) {
        const REAL *w = (const REAL *)weights + (size_t)t * topk;
        const REAL *dw = (const REAL *)dweights + (size_t)t * topk;
        REAL mean = 0;

        for (int c = 0; c < topk; c++)
            mean += w[c] * dw[c];
        for (int c = 0; c < topk; c++)
            ((REAL *)dz)[(size_t)t * experts + ids[(size_t)t * topk + c]] = w[c] * (dw[c] - mean);
    }
}

/* out [n] = W x for one row. */
static void matvec(REAL *out, const OpsWeight *w, const REAL *x)
{
    ref_gemm_fwd(out, x, w, 1, GEMM_EXACT);
}

static void ref_moe_up_fwd(void *a, void *b, void *act, const void *x, const MoePlan *plan,
                           const MoeWeights *w)
{
    int width = w->w1[0].n, inner = w->w1[0].k;

    for (int e = 0; e < plan->experts; e++)
        for (int r = plan->offsets[e]; r < plan->offsets[e + 1]; r++) {
            const REAL *row = (const REAL *)x + (size_t)(plan->source[r] / plan->topk) * inner;
            REAL *out = (REAL *)act + (size_t)r * width;

            for (int f = 0; f < width; f++) {
                REAL up = 0, gate = 0;

                for (int i = 0; i < inner; i++) {
                    gate += row[i] * weight_at(&w->w1[e], (size_t)f * inner + i);
                    up += row[i] * weight_at(&w->w3[e], (size_t)f * inner + i);
                }
                if (a)
                    ((REAL *)a)[(size_t)r * width + f] = gate;
                if (b)
                    ((REAL *)b)[(size_t)r * width + f] = up;
                out[f] = gate * sigmoid(gate) * up;
            }
        }
}

static void ref_moe_down_fwd(void *y, void *expert_out, const void *act, const void *weights,
                             const MoePlan *plan, const MoeWeights *w)
{
    int width = w->w2[0].n, inner = w->w2[0].k, rows = plan->rows / plan->topk;
    REAL *outs = expert_out;

    for (int e = 0; e < plan->experts; e++)
        for (int r = plan->offsets[e]; r < plan->offsets[e + 1]; r++)
            matvec(outs + (size_t)r * width, &w->w2[e], (const REAL *)act + (size_t)r * inner);
    memset(y, 0, (size_t)rows * width * sizeof(REAL));
    for (int t = 0; t < rows; t++)
        for (int c = 0; c < plan->topk; c++) {
            int choice = t * plan->topk + plan->order[t * plan->topk + c];
            const REAL *from = outs + (size_t)plan->slot[choice] * width;

            for (int i = 0; i < width; i++)
                ((REAL *)y)[(size_t)t * width + i] += ((const REAL *)weights)[choice] * from[i];
        }
}

/* One sorted slot: gt = W2^T (weight dy), da and db from it, then the gradients and dx. */
static void expert_row_bwd(REAL *dx, REAL *da, REAL *db, REAL *dout, const REAL *dy, const REAL *x,
                           const REAL *a, const REAL *b, const REAL *act, REAL weight,
                           REAL *const dw[3], const OpsWeight *const w[3])
{
    int width = w[2]->n, inner = w[2]->k;

    for (int i = 0; i < width; i++)
        dout[i] = weight * dy[i];
    ref_gemm_dx(da, dout, w[2], 1, 0);
    for (int f = 0; f < inner; f++) {
        REAL gt = da[f];

        da[f] = gt * b[f] * silu_slope(a[f]);
        db[f] = gt * a[f] * sigmoid(a[f]);
    }
    ref_gemm_dw(dw[0], da, x, w[0], 1);
    ref_gemm_dw(dw[1], db, x, w[1], 1);
    ref_gemm_dw(dw[2], dout, act, w[2], 1);
    ref_gemm_dx(dx, da, w[0], 1, 1);
    ref_gemm_dx(dx, db, w[1], 1, 1);
}

static void ref_moe_bwd(void *dx, void *dweights, void *const *dw1, void *const *dw3,
                        void *const *dw2, const void *dy, const void *x, const void *a,
                        const void *b, const void *act, const void *expert_out, const void *weights,
                        const MoePlan *plan, const MoeWeights *w, void *dact, void *dout)
{
    int width = w->w2[0].n, inner = w->w2[0].k, rows = plan->rows / plan->topk;

    memset(dx, 0, (size_t)rows * width * sizeof(REAL));
    for (int e = 0; e < plan->experts; e++)
        for (int r = plan->offsets[e]; r < plan->offsets[e + 1]; r++) {
            size_t row = (size_t)(plan->source[r] / plan->topk) * width, at = (size_t)r * inner;
            REAL *const dw[3] = {dw1[e], dw3[e], dw2[e]};
            const OpsWeight *const mats[3] = {&w->w1[e], &w->w3[e], &w->w2[e]};
            const REAL *up = (const REAL *)dy + row;
            REAL *da = (REAL *)dact + 2 * at, dot = 0;

            for (int i = 0; i < width; i++)
                dot += up[i] * ((const REAL *)expert_out)[(size_t)r * width + i];
            ((REAL *)dweights)[plan->source[r]] = dot;
            expert_row_bwd((REAL *)dx + row, da, da + inner, (REAL *)dout + (size_t)r * width, up,
                           (const REAL *)x + row, (const REAL *)a + at, (const REAL *)b + at,
                           (const REAL *)act + at, ((const REAL *)weights)[plan->source[r]], dw,
                           mats);
        }
}

/* Largest z, and over exp(z - top): their sum, and the sum of their z. */
typedef struct {
    REAL top, sum, mean;
} RowSums;

/* One more tile: the sums so far and the tile's own, both brought to the larger of the two tops. */
static void row_tile(RowSums *row, const REAL *z, int n, REAL beta)
{
    RowSums tile = {.top = -(REAL)INFINITY};
    REAL top, before, now;

    for (int j = 0; j < n; j++)
        tile.top = MATH(fmax)(tile.top, z[j] * beta);
    for (int j = 0; j < n; j++) {
        REAL e = MATH(exp)(z[j] * beta - tile.top);

        tile.sum += e;
        tile.mean += e * (z[j] * beta);
    }
    top = MATH(fmax)(row->top, tile.top);
    before = MATH(exp)(row->top - top);
    now = MATH(exp)(tile.top - top);
    *row = (RowSums){top, row->sum * before + tile.sum * now, row->mean * before + tile.mean * now};
}

/* z is that of the row's id. */
static void row_end(const RowSums *row, int t, REAL z, void *logp, void *lse, void *entropy)
{
    REAL all = row->top + MATH(log)(row->sum);

    ((REAL *)lse)[t] = all;
    ((REAL *)logp)[t] = z - all;
    if (entropy)
        ((REAL *)entropy)[t] = all - row->mean / row->sum;
}

static void ref_logprob_fwd(void *logp, void *lse, void *entropy, const void *logits,
                            const int *ids, int rows, int vocab, int valid, double temperature)
{
    REAL beta = (REAL)(1 / temperature);

    for (int t = 0; t < rows; t++) {
        const REAL *z = (const REAL *)logits + (size_t)t * vocab;
        RowSums row = {.top = -(REAL)INFINITY};

        for (int from = 0; from < valid; from += OPS_HEAD_TILE)
            row_tile(&row, z + from, valid - from < OPS_HEAD_TILE ? valid - from : OPS_HEAD_TILE,
                     beta);
        row_end(&row, t, z[ids[t]] * beta, logp, lse, entropy);
    }
}

/* A row of logits, made anew whenever it is asked for. */
typedef struct {
    const REAL *x;
    const OpsWeight *w;
    REAL beta;
} HeadRow;

static REAL head_z(const HeadRow *row, int j)
{
    REAL sum = 0;

    for (int k = 0; k < row->w->k; k++)
        sum += row->x[k] * weight_at(row->w, (size_t)j * row->w->k + k);
    return sum * row->beta;
}

static void ref_head_fwd(void *logp, void *lse, void *entropy, const void *x, const OpsWeight *w,
                         const int *ids, int rows, int valid, double temperature, void *scratch)
{
    REAL *z = scratch;

    for (int t = 0; t < rows; t++) {
        HeadRow row = {(const REAL *)x + (size_t)t * w->k, w, (REAL)(1 / temperature)};
        RowSums sums = {.top = -(REAL)INFINITY};

        for (int from = 0; from < valid; from += OPS_HEAD_TILE) {
            int n = valid - from < OPS_HEAD_TILE ? valid - from : OPS_HEAD_TILE;

            for (int j = 0; j < n; j++)
                z[j] = head_z(&row, from + j);
            row_tile(&sums, z, n, 1);
        }
        row_end(&sums, t, head_z(&row, ids[t]), logp, lse, entropy);
    }
}

static void ref_head_bwd(void *dx, void *dw, const void *x, const OpsWeight *w,
                         const HeadGrad *grad, int rows, int valid, double temperature,
                         void *scratch)
{
    REAL beta = (REAL)(1 / temperature);

    (void)scratch;
    memset(dx, 0, (size_t)rows * w->k * sizeof(REAL));
    for (int t = 0; t < rows; t++) {
        HeadRow row = {(const REAL *)x + (size_t)t * w->k, w, beta};
        REAL *to = (REAL *)dx + (size_t)t * w->k, c = ((const REAL *)grad->coef)[t] * beta;
        REAL b = grad->bonus ? ((const REAL *)grad->bonus)[t] * beta : 0;
        REAL h = grad->bonus ? ((const REAL *)grad->entropy)[t] : 0;

        for (int j = 0; j < valid; j++) {
            REAL log_p = head_z(&row, j) - ((const REAL *)grad->lse)[t];
            REAL dz = MATH(exp)(log_p) * (c + b * (log_p + h)) - (j == grad->ids[t] ? c : 0);

            for (int k = 0; k < w->k; k++) {
                to[k] += dz * weight_at(w, (size_t)j * w->k + k);
                ((REAL *)dw)[(size_t)j * w->k + k] += dz * row.x[k];
            }
        }
    }
}

static void ref_adamw(void *w, void *m, void *v, const void *grad, size_t n, const AdamwStep *s)
{
    double c1 = 1 - pow(s->beta1, (double)s->step), c2 = 1 - pow(s->beta2, (double)s->step);
    REAL b1 = (REAL)s->beta1, b2 = (REAL)s->beta2, lr = (REAL)s->lr;

    for (size_t i = 0; i < n; i++) {
        REAL g = ((const REAL *)grad)[i];
        REAL *first = (REAL *)m + i, *second = (REAL *)v + i, *x = (REAL *)w + i;

        *first = b1 * *first + (1 - b1) * g;
        *second = b2 * *second + (1 - b2) * g * g;
        *x = *x * (1 - lr * (REAL)s->weight_decay) -
             lr * (*first / (REAL)c1) / (MATH(sqrt)(*second / (REAL)c2) + (REAL)s->eps);
    }
}

static double ref_sumsq(const void *x, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++) {
        double v = (double)((const REAL *)x)[i];

        sum += v * v;
    }
    return sum;
}
