/*
 * Weights of four and eight bits: codes by their definition, packed values, products with them.
 */
#include "kernels/quant.h"

#include <glib.h>
#include <stdlib.h>
#include <string.h>

static const WeightFormat formats[] = {WEIGHT_INT8, WEIGHT_FP8, WEIGHT_INT4};
static const char *const isas[] = {"plain", "avx2", "avx512", "amx"};

/* ---- codes ---- */

/* What E4M3 says, without a trick. */
static double e4m3(guint code)
{
    int exponent = (int)(code >> 3 & 15), eighths = (int)(code & 7);
    double size = exponent == 0 ? ldexp(eighths, -9) : ldexp(8 + eighths, exponent - 10);

    return code & 0x80 ? -size : size;
}

static void every_fp8_code_is_its_value_and_back(void)
{
    for (guint code = 0; code < 256; code++) {
        if ((code & 0x7f) == 0x7f)
            continue; /* NaN: never made */
        g_assert_cmpfloat(quant_fp8_value((uint8_t)code), ==, e4m3(code));
        g_assert_cmpuint(quant_fp8_of((float)e4m3(code)), ==, code);
    }
}

/* Against a search over all codes: the nearest, the even one of two. */
static guint nearest(double x)
{
    guint best = 0;

    for (guint code = 0; code < 0x7f; code++) {
        double off = fabs(e4m3(code) - fabs(x)), least = fabs(e4m3(best) - fabs(x));

        if (off < least || (off == least && code % 2 == 0))
            best = code;
    }
    return best | (signbit(x) ? 0x80 : 0);
}

static void fp8_takes_the_nearest(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);

    for (guint i = 0; i < 20000; i++) {
        float x = (float)ldexp(g_rand_double_range(rand, -1, 1), g_rand_int_range(rand, -14, 10));

        g_assert_cmpuint(quant_fp8_of(x), ==, nearest(x));
    }
    for (guint code = 0; code < 0x7e; code++) { /* ties */
        float x = (float)((e4m3(code) + e4m3(code + 1)) / 2);

        g_assert_cmpuint(quant_fp8_of(x), ==, nearest(x));
    }
}

static void codes_stay_within_bounds(void)
{
    const float odd[] = {NAN, INFINITY, -INFINITY, 1e38f, -1e38f, 0, -0.0f, 1e-44f};

    for (guint f = 0; f < G_N_ELEMENTS(formats); f++)
        for (guint i = 0; i < G_N_ELEMENTS(odd); i++)
            for (guint j = 0; j < G_N_ELEMENTS(odd); j++) {
                float scale = bf16_float(quant_scale_of(formats[f], fabsf(odd[j])));
                uint8_t code = quant_code(formats[f], odd[i], scale);
                float value = quant_value(formats[f], code, 1);

                g_assert_true(fabsf(value) <= quant_code_most(formats[f]));
                g_assert_true(!isnan(odd[i]) || value == 0);
            }
}

/* ---- matrices ---- */

static gpointer room(gsize bytes)
{
    gpointer at = NULL;

    g_assert_cmpint(posix_memalign(&at, 64, bytes + 64), ==, 0);
    memset(at, 0xa5, bytes + 64);
    return at;
}

static OpsWeight packed(const Ops *ops, WeightFormat format, int n, int k, const float *rows)
{
    OpsWeight w = {.n = n, .k = k, .format = format};

    w.data = room(ops->weight_bytes(format, n, k));
    ops->weight_pack(&w, rows);
    return w;
}

/* Rows of very different sizes, a group of nothing, one enormous number. */
static float *matrix(int n, int k, guint32 seed)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    float *rows = g_new(float, (gsize)n *(gsize)k);

    for (int i = 0; i < n; i++) {
        double size = ldexp(1, g_rand_int_range(rand, -20, 6));

        for (int j = 0; j < k; j++)
            rows[(gsize)i * (gsize)k + (gsize)j] =
                (float)(size * g_rand_double_range(rand, -1, 1) * (i != 1 && j / 32 != 1));
    }
    rows[k - 1] = 300;
    return rows;
}

static const int shapes[][2] = {{1, 1}, {3, 31}, {16, 32}, {33, 129}, {130, 257}, {257, 200}};

static void check_bounds(WeightFormat format, const float *rows, const float *got, int n, int k)
{
    int tall = quant_group_rows(format), wide = quant_group_cols(format);

    for (int i = 0; i < n; i++)
        for (int j = 0; j < k; j++) {
            float most = 0, x = rows[i * k + j], y = got[i * k + j];
            double step;

            for (int r = i / tall * tall; r < MIN(i / tall * tall + tall, n); r++)
                for (int c = j / wide * wide; c < MIN(j / wide * wide + wide, k); c++)
                    most = MAX(most, fabsf(rows[r * k + c]));
            /* half a step of the codes; the scale's rounding and the value's */
            step = format == WEIGHT_FP8 ? MAX(fabs(x) / 16, most / 448 / 512)
                                        : most / quant_code_most(format) / 2;
            g_assert_cmpfloat(fabs(x - y), <=, 1.01 * step + fabs(x) / 128);
        }
}

static void all_tables_keep_the_same_values(void)
{
    for (guint f = 0; f < G_N_ELEMENTS(formats); f++)
        for (guint s = 0; s < G_N_ELEMENTS(shapes); s++) {
            int n = shapes[s][0], k = shapes[s][1];
            gsize bytes = (gsize)n * (gsize)k * sizeof(float);
            g_autofree float *rows = matrix(n, k, s + 1), *want = g_malloc(bytes);
            OpsWeight oracle = packed(&ops_ref_f32, formats[f], n, k, rows);

            ops_ref_f32.weight_unpack(want, &oracle);
            check_bounds(formats[f], rows, want, n, k);
            for (guint i = 0; i < G_N_ELEMENTS(isas); i++) {
                g_autofree float *got = g_malloc(bytes);
                OpsWeight w;
                Ops ops;

                if (!ops_cpu_table(isas[i], &ops))
                    continue;
                w = packed(&ops, formats[f], n, k, rows);
                ops.weight_unpack(got, &w);
                g_assert_cmpint(memcmp(got, want, bytes), ==, 0);
                free(w.data);
            }
            free(oracle.data);
        }
}

/* The exact values, code times scale, of one group. */
static void group_values(WeightFormat format, const float *from, float *to, int n, uint16_t *scale)
{
    float most = 0;

    for (int i = 0; i < n; i++)
        most = MAX(most, fabsf(from[i]));
    *scale = quant_scale_of(format, most);
    for (int i = 0; i < n; i++)
        to[i] = quant_value(format, quant_code(format, from[i], bf16_float(*scale)),
                            bf16_float(*scale));
}

static void values_packed_again_are_the_same(void)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);

    for (guint f = 0; f < G_N_ELEMENTS(formats); f++)
        for (guint round = 0; round < 5000; round++) {
            float x[32], once[32], twice[32];
            double size = ldexp(1, g_rand_int_range(rand, -30, 20));
            uint16_t a, b;

            for (guint i = 0; i < 32; i++)
                x[i] = (float)(size * g_rand_double_range(rand, -1, 1));
            group_values(formats[f], x, once, 32, &a);
            group_values(formats[f], once, twice, 32, &b);
            g_assert_cmpmem(once, sizeof once, twice, sizeof twice);
            g_assert_cmpuint(a, ==, b);
        }
}

/* A product with codes is the product with the bf16 matrix of what they stand for. */
static void products_are_those_of_the_bf16_values(void)
{
    enum { ROWS = 23, N = 150, K = 300 };
    g_autofree float *rows = matrix(N, K, 3), *x = matrix(ROWS, K, 4), *values = g_new(float, N *K);
    g_autofree float *want = g_new(float, ROWS *N), *got = g_new(float, ROWS *N);

    for (guint i = 0; i < G_N_ELEMENTS(isas); i++)
        for (guint f = 0; f < G_N_ELEMENTS(formats); f++) {
            OpsWeight w, plain;
            Ops ops;

            if (g_str_equal(isas[i], "amx") || !ops_cpu_table(isas[i], &ops))
                continue; /* tiles round activations for bf16 and not for codes */
            w = packed(&ops, formats[f], N, K, rows);
            ops.weight_unpack(values, &w);
            plain = packed(&ops, WEIGHT_BF16, N, K, values);
            for (int n = 1; n <= ROWS; n += 11) {
                ops.gemm_fwd(want, x, &plain, n, GEMM_ROUNDED);
                ops.gemm_fwd(got, x, &w, n, GEMM_ROUNDED);
                g_assert_cmpint(memcmp(got, want, sizeof(float) * (gsize)n * N), ==, 0);
            }
            free(w.data);
            free(plain.data);
        }
}

static void bits_are_as_many_as_the_table_says(void)
{
    const double bits[] = {8.125, 8.001, 4.5};

    for (guint f = 0; f < G_N_ELEMENTS(formats); f++) {
        gsize bytes = ops_cpu()->weight_bytes(formats[f], 2048, 2048);

        g_assert_cmpfloat((double)bytes * 8 / (2048.0 * 2048), <=, bits[f] + 0.01);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/quant/every_fp8_code_is_its_value_and_back",
                    every_fp8_code_is_its_value_and_back);
    g_test_add_func("/quant/fp8_takes_the_nearest", fp8_takes_the_nearest);
    g_test_add_func("/quant/codes_stay_within_bounds", codes_stay_within_bounds);
    g_test_add_func("/quant/all_tables_keep_the_same_values", all_tables_keep_the_same_values);
    g_test_add_func("/quant/values_packed_again_are_the_same", values_packed_again_are_the_same);
    g_test_add_func("/quant/products_are_those_of_the_bf16_values",
                    products_are_those_of_the_bf16_values);
    g_test_add_func("/quant/bits_are_as_many_as_the_table_says",
                    bits_are_as_many_as_the_table_says);
    return g_test_run();
}
