/*
 * The dense ops in scalar C: weights, embedding, norms, products, activations, RoPE.
 * A body without a guard: ref_f32.c and ref_f64.c include it, with REAL and MATH() set.
 */

static REAL weight_at(const OpsWeight *w, size_t index)
{
    if (w->format == WEIGHT_REAL)
        return ((const REAL *)w->data)[index];
    return (REAL)bf16_float(((const uint16_t *)w->data)[index]);
}

static size_t ref_weight_bytes(WeightFormat format, int n, int k)
{
    return (size_t)n * (size_t)k * (format == WEIGHT_REAL ? sizeof(REAL) : sizeof(uint16_t));
}

/* The oracle keeps what a code stands for, not the code. */
static void group_pack(const OpsWeight *w, const REAL *rows, int n0, int k0)
{
    float values[QUANT_GROUP_MOST], scale;
    int tall = quant_group_rows(w->format), wide = quant_group_cols(w->format);

    tall = w->n - n0 < tall ? w->n - n0 : tall;
    wide = w->k - k0 < wide ? w->k - k0 : wide;
    for (int n = 0; n < tall; n++)
        for (int k = 0; k < wide; k++)
            values[n * wide + k] = (float)rows[(size_t)(n0 + n) * w->k + k0 + k];
    scale =
        bf16_float(quant_scale_of(w->format, quant_most(values, (size_t)wide, 0, tall, 0, wide)));
    for (int n = 0; n < tall; n++)
        for (int k = 0; k < wide; k++) {
            uint8_t code = quant_code(w->format, values[n * wide + k], scale);

            ((uint16_t *)w->data)[(size_t)(n0 + n) * w->k + k0 + k] =
                bf16_of(quant_value(w->format, code, scale));
        }
}

static void ref_weight_pack(const OpsWeight *w, const void *rows)
{
    size_t count = (size_t)w->n * (size_t)w->k;
    const REAL *from = rows;

    if (w->format == WEIGHT_REAL) {
        memcpy(w->data, rows, count * sizeof(REAL));
        return;
    }
    for (size_t i = 0; i < count && w->format == WEIGHT_BF16; i++)
        ((uint16_t *)w->data)[i] = bf16_of((float)from[i]);
    for (int n = 0; n < w->n && quant_is(w->format); n += quant_group_rows(w->format))
        for (int k = 0; k < w->k; k += quant_group_cols(w->format))
            group_pack(w, from, n, k);
}

static void ref_weight_unpack(void *rows, const OpsWeight *w)
{
    size_t count = (size_t)w->n * (size_t)w->k;

    for (size_t i = 0; i < count; i++)
        ((REAL *)rows)[i] = weight_at(w, i);
}

static void ref_embed_fwd(void *y, const OpsWeight *w, const int *ids, int rows)
{
    REAL *out = y;

    for (int t = 0; t < rows; t++)
        for (int i = 0; i < w->k; i++)
            out[(size_t)t * w->k + i] = weight_at(w, (size_t)ids[t] * w->k + i);
}

static void ref_embed_bwd(void *dw, const void *dy, const int *ids, int rows, int width)
{
    for (int t = 0; t < rows; t++) {
        const REAL *from = (const REAL *)dy + (size_t)t * width;
        REAL *to = (REAL *)dw + (size_t)ids[t] * width;

        for (int i = 0; i < width; i++)
            to[i] += from[i];
    }
}

static REAL inverse_rms(const REAL *x, int width, double eps)
{
    REAL sum = 0;

    for (int i = 0; i < width; i++)
        sum += x[i] * x[i];
    return 1 / MATH(sqrt)(sum / (REAL)width + (REAL)eps);
}

static void ref_rmsnorm_fwd(void *y, void *rstd, const void *x, const void *w, int rows, int width,
                            double eps)
{
    const REAL *weight = w;

    for (int t = 0; t < rows; t++) {
        const REAL *from = (const REAL *)x + (size_t)t * width;
        REAL *to = (REAL *)y + (size_t)t * width;
        REAL r = inverse_rms(from, width, eps);

        if (rstd)
            ((REAL *)rstd)[t] = r;
        for (int i = 0; i < width; i++)
            to[i] = weight[i] * (from[i] * r);
    }
}

/* One row of the backward of n = x r, y = w n: see ops.h. */
static void norm_row_bwd(REAL *dx, REAL *dw, const REAL *dy, const REAL *x, REAL r, const REAL *w,
                         int width)
{
    REAL mean = 0;

    for (int i = 0; i < width; i++)
        mean += w[i] * dy[i] * (x[i] * r);
    mean /= (REAL)width;
    for (int i = 0; i < width; i++) {
        REAL n = x[i] * r;

        dw[i] += dy[i] * n;
        dx[i] = r * (w[i] * dy[i] - n * mean);
    }
}

static void ref_rmsnorm_bwd(void *dx, void *dw, const void *dy, const void *x, const void *rstd,
                            const void *w, int rows, int width)
{
    for (int t = 0; t < rows; t++) {
        size_t at = (size_t)t * width;

        norm_row_bwd((REAL *)dx + at, dw, (const REAL *)dy + at, (const REAL *)x + at,
                     ((const REAL *)rstd)[t], w, width);
    }
}

static void ref_axpby(void *y, double a, const void *x, double b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((REAL *)y)[i] = (REAL)a * ((const REAL *)x)[i] + (REAL)b * ((REAL *)y)[i];
}

static void ref_gemm_fwd(void *y, const void *x, const OpsWeight *w, int rows,
                         GemmPrecision precision)
{
    (void)precision;
    for (int t = 0; t < rows; t++)
        for (int n = 0; n < w->n; n++) {
            const REAL *from = (const REAL *)x + (size_t)t * w->k;
            REAL sum = 0;

            for (int k = 0; k < w->k; k++)
                sum += from[k] * weight_at(w, (size_t)n * w->k + k);
            ((REAL *)y)[(size_t)t * w->n + n] = sum;
        }
}

static void ref_gemm_dx(void *dx, const void *dy, const OpsWeight *w, int rows, int add)
{
    for (int t = 0; t < rows; t++)
        for (int k = 0; k < w->k; k++) {
            REAL *to = (REAL *)dx + (size_t)t * w->k + k;
            REAL sum = 0;

            for (int n = 0; n < w->n; n++)
                sum +=
                    ((const REAL *)dy)[(size_t)t * w->n + n] * weight_at(w, (size_t)n * w->k + k);
            *to = add ? *to + sum : sum;
        }
}

static void ref_gemm_dw(void *dw, const void *dy, const void *x, const OpsWeight *w, int rows)
{
    for (int t = 0; t < rows; t++)
        for (int i = 0; i < w->n; i++) {
            REAL g = ((const REAL *)dy)[(size_t)t * w->n + i];
            const REAL *from = (const REAL *)x + (size_t)t * w->k;
            REAL *to = (REAL *)dw + (size_t)i * w->k;

            for (int j = 0; j < w->k; j++)
                to[j] += g * from[j];
        }
}

static REAL sigmoid(REAL z)
{
    return 1 / (1 + MATH(exp)(-z));
}

/* d SiLU / dz. */
static REAL silu_slope(REAL z)
{
    REAL s = sigmoid(z);

    return s * (1 + z * (1 - s));
}

static void ref_silu_fwd(void *y, const void *z, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        REAL v = ((const REAL *)z)[i];

        ((REAL *)y)[i] = v * sigmoid(v);
    }
}

static void ref_silu_bwd(void *dz, const void *dy, const void *z, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((REAL *)dz)[i] = ((const REAL *)dy)[i] * silu_slope(((const REAL *)z)[i]);
}

static void ref_gatenorm_fwd(void *y, void *rstd, const void *o, const void *g, const void *w,
                             int rows, int width, double eps)
{
    ref_rmsnorm_fwd(y, rstd, o, w, rows, width, eps);
    for (size_t i = 0; i < (size_t)rows * width; i++)
        ((REAL *)y)[i] *= sigmoid(((const REAL *)g)[i]);
}

static void ref_gatenorm_bwd(void *do_, void *dg, void *dw, const void *dy, const void *o,
                             const void *g, const void *rstd, const void *w, int rows, int width)
{
    for (int t = 0; t < rows; t++) {
        size_t at = (size_t)t * width;
        REAL r = ((const REAL *)rstd)[t];
        REAL *dn = (REAL *)do_ + at; /* the gradient of the norm's output, then of its input */

        for (int i = 0; i < width; i++) {
            REAL s = sigmoid(((const REAL *)g)[at + i]);
            REAL up = ((const REAL *)dy)[at + i];
            REAL n = ((const REAL *)w)[i] * (((const REAL *)o)[at + i] * r);

            ((REAL *)dg)[at + i] = up * n * s * (1 - s);
            dn[i] = up * s;
        }
        norm_row_bwd(dn, dw, dn, (const REAL *)o + at, r, w, width);
    }
}

static void ref_rope(void *x, const int64_t *positions, const double *inv_freq, int half, int rows,
                     int heads, int dim, int sign)
{
    for (int t = 0; t < rows; t++)
        for (int i = 0; i < half; i++) {
            REAL angle = (REAL)positions[t] * (REAL)inv_freq[i];
            REAL c = MATH(cos)(angle), s = (REAL)sign * MATH(sin)(angle);

            for (int h = 0; h < heads; h++) {
                REAL *v = (REAL *)x + ((size_t)t * heads + h) * dim;
                REAL low = v[i], high = v[i + half];

                v[i] = low * c - high * s;
                v[i + half] = high * c + low * s;
            }
        }
}
