/*
 * Every mistake that other implementations of this architecture made is seen by the golden model:
 * one op of the table is exchanged for a wrong one, and the logits must no longer be the golden
 * ones. A wrong variant that went unnoticed would mean that the golden test proves little.
 */
#include "tests/policy/model_lab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 4, DIM = 8, CHUNK = 4, WIDTH = HEADS * DIM };

static const Ops *right = &ops_ref_f64;

/* Whether the logits are the golden ones, to a part in a million. */
static gboolean is_golden(const Ops *ops)
{
    static const double last[] = {0.74302903,  -0.4711058, 0.074755,
                                  -0.55819459, -0.3768468, -0.74880957};
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) m = lab_golden_model(ops, WEIGHT_REAL, CHUNK);
    g_autoptr(Acts) acts = acts_new(m, GOLDEN_TOKENS, ACTS_KEEP_ALL, &error);
    g_autoptr(LabSeq) seq = lab_seq_new(m, GOLDEN_TOKENS);
    int ids[GOLDEN_TOKENS];
    double *logits, off = 0;

    lab_golden_ids(ids);
    logits = lab_run(seq, acts, ids, GOLDEN_TOKENS);
    for (int j = 0; j < 6; j++)
        off = MAX(off, fabs(logits[19 * GOLDEN_VOCAB + j] - last[j]));
    free(logits);
    return off < 1e-6;
}

/* ---- lightning attention, wrongly ---- */

/* One span from position 0, by the recurrence; what carries over a chunk's border is off by one
 * step of decay: the kernel that went through several servers. */
static void late_decay(void *o, const void *qkv, const OpsSpan *spans, int n_spans,
                       size_t state_offset, size_t open_offset, const void *decay, OpsHeads s)
{
    const double *lambda = decay;
    double *out = o;

    right->lightning_fwd(o, qkv, spans, n_spans, state_offset, open_offset, decay, s);
    for (int h = 0; h < HEADS; h++)
        for (int t = CHUNK; t < spans[0].rows; t++)
            for (int j = 0; j < t / CHUNK * CHUNK; j++) {
                const double *q = (const double *)qkv + ((gsize)t * HEADS + h) * 3 * DIM;
                const double *k = (const double *)qkv + ((gsize)j * HEADS + h) * 3 * DIM + DIM;
                double step = lambda[h * (CHUNK + 1) + 1], dot = 0;

                for (int i = 0; i < DIM; i++)
                    dot += q[i] * k[i];
                for (int i = 0; i < DIM; i++)
                    out[((gsize)t * HEADS + h) * DIM + i] +=
                        (pow(step, t - j - 1) - pow(step, t - j)) * dot * k[DIM + i];
            }
}

/* q, k, v taken as thirds of the whole width, not of each head's. */
static void thirds(void *o, const void *qkv, const OpsSpan *spans, int n_spans, size_t state_offset,
                   size_t open_offset, const void *decay, OpsHeads s)
{
    double moved[GOLDEN_TOKENS * 3 * WIDTH];

    for (int t = 0; t < GOLDEN_TOKENS; t++)
        for (int h = 0; h < HEADS; h++)
            for (int part = 0; part < 3; part++)
                memcpy(moved + ((gsize)(t * HEADS + h) * 3 + part) * DIM,
                       (const double *)qkv + (gsize)t * 3 * WIDTH + part * WIDTH + h * DIM,
                       DIM * sizeof(double));
    right->lightning_fwd(o, moved, spans, n_spans, state_offset, open_offset, decay, s);
}

static void silu_on_q_and_k(void *y, const void *z, size_t n)
{
    right->silu_fwd(y, z, n);
    for (size_t i = 0; i < n; i++)
        if (i / DIM % 3 == 2)
            ((double *)y)[i] = ((const double *)z)[i];
}

static void norm_by_head(void *y, void *rstd, const void *o, const void *g, const void *w, int rows,
                         int width, double eps)
{
    (void)rstd, (void)width;
    for (int t = 0; t < rows; t++)
        for (int h = 0; h < HEADS; h++) {
            gsize at = (gsize)t * WIDTH + h * DIM;

            right->gatenorm_fwd((double *)y + at, NULL, (const double *)o + at,
                                (const double *)g + at, (const double *)w + h * DIM, 1, DIM, eps);
        }
}

static void gate_before_norm(void *y, void *rstd, const void *o, const void *g, const void *w,
                             int rows, int width, double eps)
{
    g_autofree double *gated = g_new(double, (gsize)rows *width);

    for (gsize i = 0; i < (gsize)rows * width; i++)
        gated[i] = ((const double *)o)[i] / (1 + exp(-((const double *)g)[i]));
    right->rmsnorm_fwd(y, rstd, gated, w, rows, width, eps);
}

static void coarse_norm(void *y, void *rstd, const void *o, const void *g, const void *w, int rows,
                        int width, double eps)
{
    right->gatenorm_fwd(y, rstd, o, g, w, rows, width, eps * 10);
}

/* ---- rotation, wrongly ---- */

static void rope_whole_head(void *x, const int64_t *positions, const double *inv_freq, int half,
                            int rows, int heads, int dim, int sign)
{
    double all[DIM / 2];

    (void)inv_freq, (void)half;
    for (int i = 0; i < DIM / 2; i++)
        all[i] = pow(1e4, -2.0 * i / DIM);
    right->rope(x, positions, all, DIM / 2, rows, heads, dim, sign);
}

static void rope_interleaved(void *x, const int64_t *positions, const double *inv_freq, int half,
                             int rows, int heads, int dim, int sign)
{
    for (int t = 0; t < rows * heads; t++)
        for (int i = 0; i < half; i++) {
            double *v = (double *)x + (gsize)t * dim + 2 * i, low = v[0], high = v[1];
            double angle = (double)positions[t / heads] * inv_freq[i];

            v[0] = low * cos(angle) - sign * high * sin(angle);
            v[1] = high * cos(angle) + sign * low * sin(angle);
        }
}

/* ---- routing and residual, wrongly ---- */

static void no_renormalising(int *ids, void *weights, const void *z, int rows, int experts,
                             int topk)
{
    right->route_fwd(ids, weights, z, rows, experts, topk);
    for (int t = 0; t < rows; t++) {
        const double *logits = (const double *)z + (gsize)t * experts;
        double all = 0;

        for (int e = 0; e < experts; e++)
            all += exp(logits[e]);
        for (int c = 0; c < topk; c++)
            ((double *)weights)[t * topk + c] = exp(logits[ids[t * topk + c]]) / all;
    }
}

/* The residual of a block is what went into its norm: pre-norm, as most other models have it. */
static const void *stream;

static void remember_input(void *y, void *rstd, const void *x, const void *w, int rows, int width,
                           double eps)
{
    stream = x;
    right->rmsnorm_fwd(y, rstd, x, w, rows, width, eps);
}

static void residual_of_input(void *y, double a, const void *x, double b, size_t n)
{
    (void)x;
    right->axpby(y, a, stream, b, n);
}

/* ---- the table ---- */

static const struct {
    const char *name;
    Ops change; /* the entries that differ */
} mutants[] = {
    {"the_decay_across_chunks_one_step_late", {.lightning_fwd = late_decay}},
    {"qkv_as_thirds", {.lightning_fwd = thirds}},
    {"silu_on_q_and_k_only", {.silu_fwd = silu_on_q_and_k}},
    {"the_norm_by_head", {.gatenorm_fwd = norm_by_head}},
    {"the_gate_before_the_norm", {.gatenorm_fwd = gate_before_norm}},
    {"the_norm_of_lightning_with_eps_1e_5", {.gatenorm_fwd = coarse_norm}},
    {"rope_over_the_whole_head", {.rope = rope_whole_head}},
    {"rope_interleaved", {.rope = rope_interleaved}},
    {"top_2_not_renormalised", {.route_fwd = no_renormalising}},
    {"the_residual_before_the_norm", {.rmsnorm_fwd = remember_input, .axpby = residual_of_input}},
};

static void test_mutant(gconstpointer data)
{
    guint n = GPOINTER_TO_UINT(data);
    Ops ops = *right;
    /* function pointers of the change lie where they lie in the table */
    void *const *change = (void *const *)(const void *)&mutants[n].change;
    void **entry = (void **)(void *)&ops;

    for (gsize i = 0; i < sizeof ops / sizeof *entry; i++)
        entry[i] = change[i] ? change[i] : entry[i];
    g_assert_false(is_golden(&ops));
}

static void test_right(void)
{
    g_assert_true(is_golden(right));
}

/* A layer index that counted lightning layers alone is invisible in a model of eight layers. */
static void test_slopes(void)
{
    static const struct {
        guint layer;
        double slopes[5]; /* heads 0, 1, 31, 62, 63 */
    } rows[] = {
        {0, {0.91701323, 0.84090483, 0.062500626, 0.0042598387, 0.0039062891}},
        {1, {0.90540558, 0.83026057, 0.061709486, 0.004205917, 0.0038568429}},
        {40, {0.45270738, 0.41513449, 0.030855056, 0.0021029799, 0.001928441}},
        {77, {0.023224462, 0.021296926, 0.0015829034, 1.0788553e-4, 9.8931465e-5}},
        {78, {0.011616816, 0.010652668, 7.9176424e-4, 5.3964064e-5, 4.9485265e-5}},
    };
    static const guint heads[] = {0, 1, 31, 62, 63};
    ModelConfig m1 = {.layers = 80, .heads = 64, .heads_all = 64};

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++)
        for (guint h = 0; h < G_N_ELEMENTS(heads); h++)
            g_assert_cmpfloat_with_epsilon(
                model_slope(&m1, rows[i].layer, heads[h], OPS_F32) / rows[i].slopes[h], 1, 1e-7);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mutants/without_a_change_the_logits_are_golden", test_right);
    for (guint i = 0; i < G_N_ELEMENTS(mutants); i++) {
        g_autofree char *path = g_strdup_printf("/mutants/seen/%s", mutants[i].name);

        g_test_add_data_func(path, GUINT_TO_POINTER(i), test_mutant);
    }
    g_test_add_func("/mutants/slopes_count_all_layers", test_slopes);
    return g_test_run();
}
