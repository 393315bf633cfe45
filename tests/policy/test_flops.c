/*
 * FLOPs against length: the paper's coefficients and ratios, and the exact ones.
 */
#include "policy/flops.h"
#include "policy/init.h"

#include <math.h>

static void the_papers_coefficients_come_out(void)
{
    static const struct {
        const char *name;
        double a, b;
    } rows[] = {{"DeepSeek-R1", 75414503424, 3497984},
                {"Qwen3-235B-A22B", 43036704768, 2310144},
                {"MiniMax-M1", 104530968576, 196608}};
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_assert_cmpfloat(flops_model(rows[i].name)->paper_a, ==, rows[i].a);
        g_assert_cmpfloat(flops_model(rows[i].name)->paper_b, ==, rows[i].b);
    }
    g_assert_null(flops_model("another"));
}

static void the_papers_ratios_come_out(void)
{
    static const struct {
        const char *to;
        double k, ratio;
    } rows[] = {{"DeepSeek-R1", 8, 1.020},      {"DeepSeek-R1", 16, 0.812},
                {"DeepSeek-R1", 32, 0.584},     {"DeepSeek-R1", 40, 0.515},
                {"DeepSeek-R1", 64, 0.385},     {"DeepSeek-R1", 80, 0.333},
                {"DeepSeek-R1", 100, 0.2875},   {"DeepSeek-R1", 128, 0.244},
                {"Qwen3-235B-A22B", 8, 1.713},  {"Qwen3-235B-A22B", 32, 0.935},
                {"Qwen3-235B-A22B", 64, 0.604}, {"Qwen3-235B-A22B", 100, 0.446},
                {"Qwen3-235B-A22B", 128, 0.377}};
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        double length = rows[i].k * 1024;
        double ratio = flops_paper(flops_model("MiniMax-M1"), length) /
                       flops_paper(flops_model(rows[i].to), length);
        g_assert_cmpfloat_with_epsilon(ratio, rows[i].ratio, 0.0005001);
    }
}

static void the_exact_count_of_a_config_is_the_tables(void)
{
    ModelConfig config;
    g_assert_true(init_preset("m1", &config, NULL));
    const FlopsModel *m1 = flops_model("MiniMax-M1");
    g_assert_cmpfloat(m1->token, ==, 94712102912);
    g_assert_cmpfloat(m1->pair, ==, 327680);
    g_assert_cmpfloat(flops_token(&config), ==, m1->token);
    g_assert_cmpfloat(flops_pair(&config), ==, m1->pair);
    g_assert_cmpfloat(flops_model("DeepSeek-R1")->token, ==, 73249193984);
}

static void the_exact_ratios_come_out(void)
{
    static const double rows[][3] = {/* K, un-absorbed, absorbed */
                                     {8, 1.025, 0.672},  {32, 0.645, 0.285},  {64, 0.445, 0.167},
                                     {80, 0.389, 0.141}, {100, 0.339, 0.118}, {128, 0.290, 0.098}};
    const FlopsModel *m1 = flops_model("MiniMax-M1"), *r1 = flops_model("DeepSeek-R1");
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        double length = rows[i][0] * 1024, ours = flops_exact(m1->token, m1->pair, length);
        g_assert_cmpfloat_with_epsilon(ours / flops_exact(r1->token, r1->pair, length), rows[i][1],
                                       0.0005001);
        g_assert_cmpfloat_with_epsilon(ours / flops_exact(r1->token, r1->pair_absorbed, length),
                                       rows[i][2], 0.0005001);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define T(name) g_test_add_func("/flops/" #name, name)
    T(the_papers_coefficients_come_out);
    T(the_papers_ratios_come_out);
    T(the_exact_count_of_a_config_is_the_tables);
    T(the_exact_ratios_come_out);
    return g_test_run();
}
