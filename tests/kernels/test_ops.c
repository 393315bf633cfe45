/*
 * Every op of every table that this machine runs, against the oracle in f64: odd sizes, no or one
 * row, outputs that begin as NaN (tests/kernels/lab.h).
 */
#include "tests/kernels/lab.h"

#include "kernels/cpu/tables.h"

#include <glib.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* ---- the tables against the oracle ---- */

/* Products of what was rounded to bf16; the inputs of the plain ones have a bf16 of their own, so
 * only what experts hand on is rounded. */
static double tolerance(guint n, const Ops *ops, WeightFormat format)
{
    gboolean rounds = g_str_has_prefix(ops->name, "cpu-amx") && format == WEIGHT_BF16;

    return rounds && strstr(lab_cases[n].name, "expert") ? 5e-3 : 1e-5;
}

static void compare(guint n, const Ops *ops)
{
    static const int rows[] = {0, 1, 2, 3, 7, 64, 131};

    for (guint i = 0; i < G_N_ELEMENTS(rows) && (i == 0 || !lab_cases[n].fixed); i++)
        for (WeightFormat format = WEIGHT_REAL; format < WEIGHT_FORMATS; format++) {
            WeightFormat exact = format <= WEIGHT_BF16 ? WEIGHT_REAL : format;

            if (format != WEIGHT_REAL && !lab_cases[n].weights)
                continue;
            g_autoptr(GArray) want = lab_run(n, &ops_ref_f64, rows[i], exact);
            g_autoptr(GArray) got = lab_run(n, ops, rows[i], format);
            double off = lab_distance(got, want);

            if (!(off <= tolerance(n, ops, format)))
                g_error("%s, %s, %d rows, format %d: off by %g", ops->name, lab_cases[n].name,
                        rows[i], format, off);
        }
}

static const char *const isas[] = {"plain", "avx2", "avx512", "amx"};

static void test_case(gconstpointer data)
{
    guint n = GPOINTER_TO_UINT(data);
    Ops emulated;

    cpu_table_amx_emulated(&emulated);
    compare(n, &emulated);
    compare(n, &ops_ref_f32);
    for (guint i = 0; i < G_N_ELEMENTS(isas); i++) {
        Ops ops;

        if (ops_cpu_table(isas[i], &ops))
            compare(n, &ops);
        else
            g_test_message("%s: this machine cannot run it", isas[i]);
    }
}

#define TABLES (G_N_ELEMENTS(isas) + 1)

/* Those that this machine runs, and the emulated one; returns how many. */
static guint tables_here(Ops tables[TABLES])
{
    guint count = 0;

    cpu_table_amx_emulated(&tables[count++]);
    for (guint i = 0; i < G_N_ELEMENTS(isas); i++)
        count += ops_cpu_table(isas[i], &tables[count]);
    return count;
}

/* ---- weights that have no bf16 of their own ---- */

static const float *patterns(gsize n)
{
    static const uint32_t edges[] = {0x3f808000, 0x3f818000, 0x3f807fff, 0x3f808001, 0x7f7fffff,
                                     0x7f800000, 0xff800000, 0x00000001, 0x80008000, 0x7f800001};
    uint32_t *bits = g_new(uint32_t, n);

    for (gsize i = 0; i < n; i++)
        bits[i] = i < G_N_ELEMENTS(edges) ? edges[i] : (uint32_t)(i * 2654435761u);
    return (const float *)bits;
}

static void check_rounding(const Ops *ops)
{
    const int n = 45, k = 131;
    OpsWeight w = {.n = n, .k = k, .format = WEIGHT_BF16};
    g_autofree const float *rows = patterns((gsize)n * k);
    g_autofree float *got = g_new(float, (gsize)n *k);

    g_assert_cmpint(posix_memalign(&w.data, 64, ops->weight_bytes(w.format, n, k)), ==, 0);
    ops->weight_pack(&w, rows);
    ops->weight_unpack(got, &w);
    for (gsize i = 0; i < (gsize)n * k; i++) {
        float want = bf16_float(bf16_of(rows[i]));

        if (memcmp(&got[i], &want, sizeof want) != 0)
            g_error("%s: %a is kept as %a and not %a", ops->name, (double)rows[i], (double)got[i],
                    (double)want);
    }
    free(w.data);
}

static void test_rounding(void)
{
    Ops tables[TABLES];

    for (guint i = tables_here(tables); i-- > 0;)
        check_rounding(&tables[i]);
}

/* ---- products larger than any block of a table ---- */

/* Whole numbers: every sum is exact, in whatever order and however factors are rounded. */
static float *whole_numbers(gsize n, gsize seed)
{
    float *numbers = g_new(float, n);

    for (gsize i = 0; i < n; i++)
        numbers[i] = (float)((int)((i + seed) * 2654435761u >> 7 & 7) - 3);
    return numbers;
}

/* got [rows][cols] is the sum over i < n of a[row * ar + i * ai] b[i * bi + col * bc], and more. */
static void check_sums(const char *what, const float *got, int rows, int cols, int n,
                       const float *a, gsize ar, gsize ai, const float *b, gsize bi, gsize bc,
                       int more)
{
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            float sum = (float)more, is = got[(gsize)r * cols + c];

            for (int i = 0; i < n; i++)
                sum += a[r * ar + i * ai] * b[i * bi + c * bc];
            if (is != sum)
                g_error("%s: row %d, column %d is %g and not %g", what, r, c, (double)is,
                        (double)sum);
        }
}

static float *all_same(gsize n, float value)
{
    float *numbers = g_new(float, n);

    for (gsize i = 0; i < n; i++)
        numbers[i] = value;
    return numbers;
}

static void product_large(const Ops *ops, WeightFormat format, int rows, int n, int k)
{
    gsize ys = (gsize)rows * n, xs = (gsize)rows * k, ws = (gsize)n * k;
    OpsWeight w = {.n = n, .k = k, .format = format};
    g_autofree float *x = whole_numbers(xs, 0), *wide = whole_numbers(ws, 12345);
    g_autofree float *dy = whole_numbers(ys, 777), *y = all_same(ys, NAN);
    g_autofree float *dx = all_same(xs, NAN), *more = all_same(xs, 5), *dw = all_same(ws, 7);
    g_autofree char *what =
        g_strdup_printf("%s, %d x %d x %d, format %d", ops->name, rows, k, n, format);

    g_assert_cmpint(posix_memalign(&w.data, 64, ops->weight_bytes(format, n, k)), ==, 0);
    ops->weight_pack(&w, wide);
    ops->gemm_fwd(y, x, &w, rows, GEMM_ROUNDED);
    ops->gemm_dx(dx, dy, &w, rows, 0);
    ops->gemm_dx(more, dy, &w, rows, 1);
    ops->gemm_dw(dw, dy, x, &w, rows);
    check_sums(what, y, rows, n, k, x, (gsize)k, 1, wide, 1, (gsize)k, 0);
    check_sums(what, dx, rows, k, n, dy, (gsize)n, 1, wide, (gsize)k, 1, 0);
    check_sums(what, more, rows, k, n, dy, (gsize)n, 1, wide, (gsize)k, 1, 5);
    check_sums(what, dw, n, k, rows, dy, 1, (gsize)n, x, (gsize)k, 1, 7);
    free(w.data);
}

static void test_large(void)
{
    static const int shapes[][3] = {
        {200, 70, 300}, {33, 300, 257}, {49, 33, 4100}, {16, 64, 2049}, {300, 600, 40}};
    Ops tables[TABLES];
    guint count = tables_here(tables);

    for (guint i = 0; i < count; i++)
        for (guint s = 0; s < G_N_ELEMENTS(shapes); s++)
            for (WeightFormat format = WEIGHT_REAL; format <= WEIGHT_BF16; format++)
                product_large(&tables[i], format, shapes[s][0], shapes[s][1], shapes[s][2]);
}

/* ---- identities ---- */

static double dot(const double *a, const double *b, gsize rows, gsize stride, gsize from, gsize n)
{
    double sum = 0;

    for (gsize r = 0; r < rows; r++)
        for (gsize i = 0; i < n; i++)
            sum += a[r * stride + from + i] * b[r * stride + from + i];
    return sum;
}

/* Linear in q, k and v: dQ.Q = dK.K = dV.V = dO.O where the state begins at zero. */
static void test_lightning_identity(void)
{
    Lab lab = {.ops = &ops_ref_f64,
               .out = g_array_new(FALSE, FALSE, sizeof(double)),
               .own = g_ptr_array_new_with_free_func(free)};
    Family *f = lab_family(&lab);
    gsize rows = (gsize)ROWS * lab_shape.heads, d = lab_shape.dim, os = rows * d;
    double *qkv = lab_in(&lab, 3 * os, 1), *o = lab_out(&lab, os), *up = lab_in(&lab, os, 1);
    double *dqkv = lab_out(&lab, 3 * os), *decay = lab_decay(&lab, lab_shape), want;

    lab.ops->lightning_fwd(o, qkv, f->spans, 3, 0, 0, decay, lab_shape);
    lab.ops->lightning_bwd(dqkv, up, qkv, f->spans, f->grads, 3, 0, 0, decay, lab_shape,
                           lab_out(&lab, 8 * lab_shape.heads * d * d));
    want = dot(up, o, rows, d, 0, d);
    for (gsize part = 0; part < 3; part++)
        g_assert_cmpfloat_with_epsilon(dot(dqkv, qkv, rows, 3 * d, part * d, d), want, 1e-9);
    g_array_unref(lab.out);
    g_ptr_array_unref(lab.own);
}

/* o_t = sum_j lambda^(t-j) (q_t . k_j) v_j, in a sample that continues a shared prompt. */
static void test_lightning_closed_form(void)
{
    Lab lab = {.ops = &ops_ref_f64,
               .out = g_array_new(FALSE, FALSE, sizeof(double)),
               .own = g_ptr_array_new_with_free_func(free)};
    Family *f = lab_family(&lab);
    gsize d = lab_shape.dim, row = 3 * (gsize)lab_shape.heads * d,
          os = (gsize)ROWS * lab_shape.heads * d;
    double *qkv = lab_in(&lab, 3 * os, 1), *o = lab_out(&lab, os),
           *decay = lab_decay(&lab, lab_shape);

    lab.ops->lightning_fwd(o, qkv, f->spans, 3, 0, 0, decay, lab_shape);
    for (int h = 0; h < lab_shape.heads; h++)
        for (int t = 0; t < PROMPT + SECOND; t++)
            for (gsize c = 0; c < d; c++) {
                int at = t < PROMPT ? t : t + FIRST;
                double lambda = decay[h * (lab_shape.chunk + 1) + 1], sum = 0;

                for (int j = 0; j <= t; j++) {
                    const double *q = qkv + (gsize)at * row + (gsize)h * 3 * d;
                    const double *k =
                        qkv + (gsize)(j < PROMPT ? j : j + FIRST) * row + (gsize)h * 3 * d + d;
                    double qk = 0;

                    for (gsize i = 0; i < d; i++)
                        qk += q[i] * k[i];
                    sum += pow(lambda, t - j) * qk * k[d + c];
                }
                g_assert_cmpfloat_with_epsilon(o[((gsize)at * lab_shape.heads + h) * d + c], sum,
                                               1e-9);
            }
    g_array_unref(lab.out);
    g_ptr_array_unref(lab.own);
}

/* Runs of many pages each: the rows of one call against the last of them alone. */
static void long_rows(const Ops *ops)
{
    enum { TOKENS = 1300, LAST = 9 };
    const OpsHeads s = {.heads = 4, .kv_heads = 1, .dim = 8, .chunk = 8};
    Lab lab = {.ops = ops, .own = g_ptr_array_new_with_free_func(free)};
    gsize row = (gsize)s.heads * s.dim, n = TOKENS / s.chunk + 1;
    void **pages = lab_blocks(&lab, n, (gsize)2 * s.dim * s.chunk);
    float *q = lab_in(&lab, TOKENS * row, 2), *k = lab_in(&lab, TOKENS * s.dim, 2);
    float *v = lab_in(&lab, TOKENS * s.dim, 1), *all = lab_out(&lab, TOKENS * row);
    float *one = lab_out(&lab, TOKENS * row);
    OpsSpan span = {.rows = TOKENS, .pages = pages};
    int threads = omp_get_max_threads();

    ops->attn_fwd(all, NULL, q, k, v, &span, 1, 0, s);
    for (int t = TOKENS - LAST; t < TOKENS; t++) {
        span = (OpsSpan){.row0 = t, .rows = 1, .pos0 = t, .pages = pages};
        omp_set_num_threads(t % 3 + 1);
        ops->attn_fwd(one, NULL, q, k, v, &span, 1, 0, s);
        g_assert_true(memcmp(one + t * row, all + t * row, row * sizeof(float)) == 0);
    }
    omp_set_num_threads(threads);
    g_ptr_array_unref(lab.own);
}

static void test_long_rows(void)
{
    for (guint i = 0; i < G_N_ELEMENTS(isas); i++) {
        Ops ops;

        if (ops_cpu_table(isas[i], &ops))
            long_rows(&ops);
    }
}

static void test_ties(void)
{
    const double z[] = {1, 5, 5, 0, 5, 1}, flat[EXPERTS] = {0};
    double w[2];
    int id[2];

    ops_ref_f64.route_fwd(id, w, z, 1, EXPERTS, TOPK);
    g_assert_cmpint(id[0], ==, 1);
    g_assert_cmpint(id[1], ==, 2);
    g_assert_true(w[0] == 0.5 && w[1] == 0.5);
    ops_ref_f64.route_fwd(id, w, flat, 1, EXPERTS, TOPK);
    g_assert_cmpint(id[0], ==, 0);
    g_assert_cmpint(id[1], ==, 1);
}

/* L of route_balance_bwd's formula, the shares as the plan has them. */
static double balance_loss(const double *z, const MoePlan *plan, double scale)
{
    double sum = 0;

    for (int t = 0; t < plan->rows / TOPK; t++) {
        double all = 0;

        for (int e = 0; e < EXPERTS; e++)
            all += exp(z[t * EXPERTS + e]);
        for (int e = 0; e < EXPERTS; e++)
            sum += (plan->offsets[e + 1] - plan->offsets[e]) * exp(z[t * EXPERTS + e]) / all;
    }
    return scale * EXPERTS * sum / plan->rows / (plan->rows / TOPK);
}

static void test_balance(void)
{
    enum { FEW = 9 };
    double z[FEW * EXPERTS], dz[FEW * EXPERTS] = {0}, w[FEW * TOPK];
    int id[FEW * TOPK], offsets[EXPERTS + 1], source[FEW * TOPK], slot[FEW * TOPK];
    int order[FEW * TOPK];
    MoePlan plan = {.offsets = offsets, .source = source, .slot = slot, .order = order};

    for (int i = 0; i < FEW * EXPERTS; i++)
        z[i] = lab_number(7, (gsize)i);
    ops_ref_f64.route_fwd(id, w, z, FEW, EXPERTS, TOPK);
    moe_plan(&plan, id, FEW, TOPK, EXPERTS);
    ops_ref_f64.route_balance_bwd(dz, z, &plan, 0.3);
    for (int i = 0; i < FEW * EXPERTS; i++) {
        double at = z[i], h = 1e-5, up, down;

        z[i] = at + h;
        up = balance_loss(z, &plan, 0.3);
        z[i] = at - h;
        down = balance_loss(z, &plan, 0.3);
        z[i] = at;
        g_assert_cmpfloat_with_epsilon(dz[i], (up - down) / (2 * h), 1e-9);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (guint i = 0; i < lab_n_cases; i++) {
        g_autofree char *path = g_strdup_printf("/ops/as_the_oracle/%s", lab_cases[i].name);

        g_test_add_data_func(path, GUINT_TO_POINTER(i), test_case);
    }
    g_test_add_func("/ops/weights/are_rounded_to_nearest_even", test_rounding);
    g_test_add_func("/ops/products/larger_than_any_block", test_large);
    g_test_add_func("/ops/lightning/sums_of_gradients_are_equal", test_lightning_identity);
    g_test_add_func("/ops/lightning/the_closed_form", test_lightning_closed_form);
    g_test_add_func("/ops/route/the_loss_of_uneven_loads", test_balance);
    g_test_add_func("/ops/attention/a_long_context_has_the_same_bits_cut_and_shared_out",
                    test_long_rows);
    g_test_add_func("/ops/route/ties_go_to_the_lower_number", test_ties);
    return g_test_run();
}
