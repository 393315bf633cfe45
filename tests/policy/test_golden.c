/*
 * The golden model: logits, states, routing, log-probabilities, the CISPO loss and its gradients,
 * as the specification lists them (float64, made apart from this code).
 */
#include "tests/policy/model_lab.h"

#include <math.h>
#include <stdlib.h>

#define NEAR(value, want, tolerance)                                                               \
    g_assert_cmpfloat_with_epsilon(value, want, (tolerance)*MAX(1.0, fabs(want)))

/* printed with nine digits, so no test may ask more of these */
#define PRINTED 1e-8

typedef struct {
    Model *model;
    Acts *acts;
    LabSeq *seq;
    void *logits;
    int ids[GOLDEN_TOKENS];
    double tolerance;
} Golden;

static Golden golden_run(const Ops *ops, guint chunk)
{
    g_autoptr(GError) error = NULL;
    Golden g = {.model = lab_golden_model(ops, WEIGHT_REAL, chunk),
                .tolerance = ops->real == OPS_F64 ? PRINTED : 1e-4};

    lab_golden_ids(g.ids);
    g.acts = acts_new(g.model, GOLDEN_TOKENS, ACTS_KEEP_ALL, &error);
    g_assert_no_error(error);
    g.seq = lab_seq_new(g.model, GOLDEN_TOKENS);
    g.logits = lab_run(g.seq, g.acts, g.ids, GOLDEN_TOKENS);
    return g;
}

static void golden_clear(Golden *g)
{
    free(g->logits);
    lab_seq_free(g->seq);
    acts_free(g->acts);
    model_free(g->model);
}

static double logit(const Golden *g, int t, int j)
{
    return lab_number(g->model, g->logits, (gsize)t * GOLDEN_VOCAB + j);
}

static void check_logits(const Golden *g)
{
    static const double first[] = {-0.94446095, -0.09510386, 0.22166548,
                                   0.07324132,  0.86226811,  -0.34958398};
    static const double last[] = {0.74302903,  -0.4711058, 0.074755,
                                  -0.55819459, -0.3768468, -0.74880957};
    double sum = 0;

    for (int j = 0; j < 6; j++) {
        NEAR(logit(g, 0, j), first[j], g->tolerance);
        NEAR(logit(g, 19, j), last[j], g->tolerance);
    }
    for (int i = 0; i < GOLDEN_TOKENS * GOLDEN_VOCAB; i++)
        sum += pow(lab_number(g->model, g->logits, i), 2);
    g_assert_cmpfloat_with_epsilon(sum, 301.15291032649657,
                                   g->model->ops->real == OPS_F64 ? 1e-9 : 3e-2);
}

/* layer, token, then h[0..1], attention[0..2], x after it[0..1], experts[0..2], x out[0..2]. */
static const struct {
    int layer, token;
    double h[2], a[3], mid[2], m[3], out[3];
} intermediates[] = {
    {0,
     0,
     {1.27773525, 0.491630707},
     {-0.74492566, 0.439712953, 0.774442401},
     {1.81054484, 1.42297437},
     {0.0339816095, 0.291357259, -0.298678884},
     {1.80039301, 1.48639036, -1.81784759}},
    {0,
     19,
     {-1.43547401, -0.381476977},
     {1.0737218, 0.321872824, -0.197226384},
     {-1.79722623, -0.441081129},
     {-0.0734959395, 0.359270147, 0.272095378},
     {-1.9026792, -0.0271619848, 2.13001047}},
    {6,
     0,
     {0.827363709, 0.538608804},
     {-0.60508018, 0.717897418, 0.528976786},
     {1.04964724, 1.79511503},
     {-0.161825758, -0.317977557, -0.0241847373},
     {0.887213767, 1.25239388, -2.55552835}},
    {6,
     19,
     {0.206462394, 1.39934873},
     {0.128427915, 0.161243574, -0.192631876},
     {0.541352703, 2.95994103},
     {0.00580246286, -0.446285426, 0.130756577},
     {0.533361322, 2.07856288, 2.17087782}},
    {7,
     0,
     {0.429989651, 0.643244366},
     {-1.56765727, -1.1650362, 1.02529614},
     {-0.707677968, 0.12145253},
     {0.0357445853, -0.219281225, 0.268173759},
     {-0.663430225, -0.121078043, -1.05081316}},
    {7,
     19,
     {0.268650728, 1.10951964},
     {-0.605000246, 0.321071403, -1.25482695},
     {-0.0676987899, 2.54011068},
     {0.0470161198, -0.119733683, -0.0567017735},
     {-0.0303864257, 2.25708402, 0.963617354}},
};

static void check_intermediates(const Golden *g)
{
    const Model *m = g->model;

    for (guint n = 0; n < G_N_ELEMENTS(intermediates); n++) {
        int l = intermediates[n].layer;
        const LayerActs *s = &g->acts->layers[l];
        const void *out = l < 7 ? g->acts->layers[l + 1].x_in : g->acts->x_out;
        gsize at = (gsize)intermediates[n].token * 16;

        for (int i = 0; i < 3; i++) {
            double mid = lab_number(m, s->x_mid, at + i), h = lab_number(m, s->h, at + i);
            double x = lab_number(m, out, at + i), post = lab_number(m, s->g, at + i);

            NEAR(mid - 2 * h, intermediates[n].a[i], g->tolerance);
            NEAR(x - 2 * post, intermediates[n].m[i], g->tolerance);
            NEAR(x, intermediates[n].out[i], g->tolerance);
            if (i < 2) {
                NEAR(h, intermediates[n].h[i], g->tolerance);
                NEAR(mid, intermediates[n].mid[i], g->tolerance);
            }
        }
    }
}

static void check_scale(const Golden *g)
{
    static const double rms[] = {2.044626397, 2.004053349, 2.002608304, 2.074620522,
                                 2.042408467, 2.065287079, 1.943120077, 2.114833849};

    for (int l = 0; l < 8; l++) {
        const void *x = l < 7 ? g->acts->layers[l + 1].x_in : g->acts->x_out;
        double sum = 0;

        for (int i = 0; i < GOLDEN_TOKENS * 16; i++)
            sum += pow(lab_number(g->model, x, i), 2);
        NEAR(sqrt(sum / (GOLDEN_TOKENS * 16)), rms[l], g->tolerance);
    }
}

static void check_routing(const Golden *g)
{
    static const int first[][2] = {{1, 2}, {2, 0}, {3, 0}, {1, 0}, {3, 0}, {1, 2}};
    static const int last[][2] = {{0, 3}, {0, 2}, {2, 1}, {1, 0}, {1, 2}, {0, 3}};

    for (int t = 0; t < 6; t++)
        for (int c = 0; c < 2; c++) {
            g_assert_cmpint(g->acts->layers[0].choice[t * 2 + c], ==, first[t][c]);
            g_assert_cmpint(g->acts->layers[7].choice[t * 2 + c], ==, last[t][c]);
        }
}

static const double logprobs[] = {-3.61584843, -3.56009913, -4.03930059, -4.37926678, -2.26753473,
                                  -3.39187201, -3.01946992, -4.15921839, -4.24390712, -4.67087263,
                                  -4.64820563, -3.92726424, -3.22321066, -4.14345126, -4.71987237,
                                  -1.85459679, -3.6988233,  -2.94025695, -3.29052876};

/* Log-probabilities of the next token, positions 0..18, in real numbers of the ops. */
static void next_logprobs(const Golden *g, double logp[19], void *lse)
{
    gsize real = ops_real_size(g->model->ops->real);
    g_autofree void *out = g_malloc0(19 * real);

    g->model->ops->logprob_fwd(out, lse, NULL, g->logits, g->ids + 1, 19, GOLDEN_VOCAB,
                               GOLDEN_VOCAB, 1);
    for (int t = 0; t < 19; t++)
        logp[t] = lab_number(g->model, out, t);
}

static void check_logprobs(const Golden *g)
{
    double logp[19], lse[19];

    next_logprobs(g, logp, lse);
    for (int t = 0; t < 19; t++)
        NEAR(logp[t], logprobs[t], g->tolerance);
}

static void check_forward(const Ops *ops, guint chunk)
{
    Golden g = golden_run(ops, chunk);

    check_logits(&g);
    check_intermediates(&g);
    check_scale(&g);
    check_routing(&g);
    check_logprobs(&g);
    golden_clear(&g);
}

static void test_forward_f64(void)
{
    static const guint chunks[] = {1, 4, 8, 16, 64};

    for (guint i = 0; i < G_N_ELEMENTS(chunks); i++)
        check_forward(&ops_ref_f64, chunks[i]);
}

static void test_forward_f32(void)
{
    check_forward(&ops_ref_f32, 4);
    check_forward(&ops_ref_f32, 32);
}

static void test_forward_cpu(void)
{
    static const char *const isas[] = {"plain", "avx2", "avx512"};

    for (guint i = 0; i < G_N_ELEMENTS(isas); i++) {
        Ops ops;

        if (!ops_cpu_table(isas[i], &ops)) {
            g_test_message("%s: this machine cannot run it", isas[i]);
            continue;
        }
        check_forward(&ops, 4);
        check_forward(&ops, 32);
    }
}

static double head_norm(const Golden *g, gsize offset, int head)
{
    const char *state = (const char *)g->seq->state + offset;
    double sum = 0;

    for (int i = 0; i < 64; i++)
        sum += pow(lab_number(g->model, state, (gsize)head * 64 + i), 2);
    return sqrt(sum);
}

static void test_states(void)
{
    static const double first[] = {20.03395121, 42.58522368, 65.89155182, 80.98972601};
    static const double last[] = {20.43194327, 15.56426715, 13.22160899, 15.23274867};
    static const double corner[] = {-1.21328049, 4.75422809, 3.66147738};
    Golden g = golden_run(&ops_ref_f64, 4); /* 20 tokens are five folded chunks */

    for (int h = 0; h < 4; h++) {
        NEAR(head_norm(&g, g.model->cache.state[0], h), first[h], PRINTED);
        NEAR(head_norm(&g, g.model->cache.state[6], h), last[h], PRINTED);
    }
    for (int i = 0; i < 3; i++)
        NEAR(((double *)g.seq->state)[i], corner[i], PRINTED);
    golden_clear(&g);
}

/* ---- CISPO and the gradients ---- */

/* index of tensor by (slot, layer, expert), row, column, value, Frobenius norm of the tensor */
static const struct {
    TensorSlot slot;
    guint layer, expert;
    int row, col;
    double value, norm;
} gradients[] = {
    {SLOT_HEAD, 0, 0, 5, 3, 1.4137827318e-02, 8.6437954733e-01},
    {SLOT_FINAL_NORM, 0, 0, 0, 2, -1.5479718434e-02, 2.4181337480e-01},
    {SLOT_EMBED, 0, 0, 3, 1, -2.7434930440e-02, 9.8354057296e-01},
    {SLOT_INPUT_NORM, 0, 0, 0, 4, -9.9431481585e-03, 2.7722573078e-01},
    {SLOT_QKV, 0, 0, 0, 0, -2.3204089451e-03, 2.9395182153e-01},
    {SLOT_QKV, 0, 0, 9, 2, 1.2504978422e-03, 2.9395182153e-01},
    {SLOT_QKV, 0, 0, 17, 5, -1.5454316522e-03, 2.9395182153e-01},
    {SLOT_OUTPUT_GATE, 0, 0, 3, 7, 1.0497125052e-03, 1.2389381161e-01},
    {SLOT_ATTN_NORM, 0, 0, 0, 6, -4.9321555814e-03, 6.8406509730e-02},
    {SLOT_ATTN_OUT, 0, 0, 1, 30, 6.0897239414e-04, 3.4374969229e-01},
    {SLOT_QKV, 3, 0, 50, 8, -1.0910499833e-03, 2.9553763908e-01},
    {SLOT_Q, 7, 0, 0, 0, -1.9847751817e-03, 1.3911917021e-01},
    {SLOT_Q, 7, 0, 5, 4, -1.0269739080e-03, 1.3911917021e-01},
    {SLOT_K, 7, 0, 9, 9, 1.6784289257e-02, 1.3975702226e-01},
    {SLOT_V, 7, 0, 2, 11, -2.2228569395e-04, 1.9206996629e-01},
    {SLOT_O, 7, 0, 12, 20, -1.7316963920e-02, 2.1158117814e-01},
    {SLOT_POST_NORM, 7, 0, 0, 0, -2.2792278700e-02, 1.6349660366e-01},
    {SLOT_ROUTER, 2, 0, 0, 1, -3.6138834343e-03, 3.7175088882e-02},
    {SLOT_ROUTER, 2, 0, 1, 1, 2.6226468926e-03, 3.7175088882e-02},
    {SLOT_ROUTER, 7, 0, 2, 3, 2.5253731732e-02, 8.1869683680e-02},
    {SLOT_W1, 4, 0, 1, 1, -4.5841328655e-03, 5.3256717923e-02},
    {SLOT_W3, 4, 1, 2, 2, 1.2630406445e-03, 5.7006888290e-02},
    {SLOT_W2, 4, 2, 3, 3, -1.2576079646e-03, 1.1862070392e-01},
    {SLOT_W2, 7, 3, 15, 11, 1.9777234128e-03, 4.1048578137e-02},
};

/* coefficients min(r, cap) A / N of the 12 response tokens, and the loss */
static double cispo(const double logp[19], double coef[19])
{
    static const double ratios[] = {0.82111182, 0.74318708, 0.88370185, 1.17727958,
                                    1.34985484, 1.17465193, 0.88157067, 0.74290864,
                                    0.82276361, 1.09021072, 1.3343166,  1.25269368};
    double loss = 0;

    for (int t = 0; t < 19; t++) {
        double ratio = exp(logp[t] - (logp[t] + 0.3 * sin(t)));

        coef[t] = t < 7 ? 0 : MIN(ratio, 1.2) * 0.7 / 12;
        loss -= coef[t] * logp[t];
        if (t >= 7)
            NEAR(ratio, ratios[t - 7], 1e-7);
    }
    return loss;
}

typedef struct {
    Params *grads;
    double loss;
} Step;

/* Forward, loss with the given coefficients (NULL: made from the ratios), and its gradients. */
static Step golden_step(Golden *g, double coef[19], gboolean make)
{
    g_autoptr(GError) error = NULL;
    const Model *m = g->model;
    double logp[19], lse[19], dhidden[GOLDEN_TOKENS * 16] = {0};
    g_autofree double *scratch = g_new(double, 19 * (OPS_HEAD_TILE + 3));
    int64_t positions[GOLDEN_TOKENS];
    OpsSpan span = {.rows = GOLDEN_TOKENS,
                    .pages = g->seq->pages,
                    .state_out = g->seq->state,
                    .open = g->seq->open};
    OpsSpanGrad cache = {.dpages = g->seq->dpages};
    Batch batch = {
        .rows = GOLDEN_TOKENS, .n_spans = 1, .ids = g->ids, .positions = positions, .spans = &span};
    g_autoptr(Backward) b = backward_new(m, GOLDEN_TOKENS, GOLDEN_TOKENS, &error);
    Step step = {.grads = params_new(m, &error)};

    g_assert_no_error(error);
    for (int t = 0; t < GOLDEN_TOKENS; t++)
        positions[t] = t;
    next_logprobs(g, logp, lse);
    if (make) {
        step.loss = cispo(logp, coef);
    } else {
        for (int t = 0; t < 19; t++)
            step.loss -= coef[t] * logp[t];
    }
    m->ops->head_bwd(dhidden, params_tensor(step.grads, 0, SLOT_HEAD, 0), g->acts->hidden, &m->head,
                     &(HeadGrad){.lse = lse, .ids = g->ids + 1, .coef = coef}, 19, GOLDEN_VOCAB, 1,
                     scratch);
    backward(b, m, step.grads, g->acts, &batch, &cache, dhidden);
    return step;
}

static double tensor_norm(const Params *grads, guint tensor)
{
    TensorInfo info = tensors_info(&grads->model->config, tensor);
    const double *values = params_tensor(grads, info.layer, info.slot, info.expert);

    return sqrt(grads->model->ops->sumsq(values, info.count));
}

static void check_gradients(guint chunk)
{
    Golden g = golden_run(&ops_ref_f64, chunk);
    double coef[19], all = 0, least = 1;
    Step step = golden_step(&g, coef, TRUE);
    int zeros = 0;

    NEAR(step.loss, 2.616977873443856, 1e-12);
    for (guint i = 0; i < G_N_ELEMENTS(gradients); i++) {
        guint tensor = tensors_index(&g.model->config, gradients[i].layer, gradients[i].slot,
                                     gradients[i].expert);
        TensorInfo info = tensors_info(&g.model->config, tensor);
        const double *dw =
            params_tensor(step.grads, gradients[i].layer, gradients[i].slot, gradients[i].expert);
        gsize cols = info.rank == 1 ? 0 : info.dims[1];

        g_assert_cmpfloat_with_epsilon(dw[gradients[i].row * cols + gradients[i].col],
                                       gradients[i].value, PRINTED * 0.1);
        g_assert_cmpfloat_with_epsilon(tensor_norm(step.grads, tensor), gradients[i].norm, PRINTED);
    }
    for (guint t = 0; t < tensors_count(&g.model->config); t++) {
        TensorInfo info = tensors_info(&g.model->config, t);
        const double *dw = params_tensor(step.grads, info.layer, info.slot, info.expert);

        for (gsize j = 0; j < info.count; j++) {
            zeros += dw[j] == 0;
            least = dw[j] == 0 ? least : MIN(least, fabs(dw[j]));
        }
        all += pow(tensor_norm(step.grads, t), 2);
    }
    g_assert_cmpfloat_with_epsilon(sqrt(all), 2.220361925605827, 1e-11);
    g_assert_cmpint(zeros, ==, 160);
    g_assert_cmpfloat_with_epsilon(least, 2.26e-8, 1e-10);
    params_free(step.grads);
    golden_clear(&g);
}

static void test_gradients(void)
{
    static const guint chunks[] = {1, 4, 8, 16, 64};

    for (guint i = 0; i < G_N_ELEMENTS(chunks); i++)
        check_gradients(chunks[i]);
}

/* ---- one step of an optimiser, the coefficients kept ---- */

typedef void (*Update)(const Ops *ops, double *w, double *m, double *v, const double *g, gsize n,
                       int step, double eps);

static void update_sgd(const Ops *ops, double *w, double *m, double *v, const double *g, gsize n,
                       int step, double eps)
{
    (void)m, (void)v, (void)step, (void)eps;
    ops->axpby(w, -0.01, g, 1, n);
}

static void update_adamw(const Ops *ops, double *w, double *m, double *v, const double *g, gsize n,
                         int step, double eps)
{
    AdamwStep s = {
        .lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = eps, .weight_decay = 0.1, .step = step};

    ops->adamw(w, m, v, g, n, &s);
}

static void update_model(Model *m, const Params *grads, double *moments, Update update, int step,
                         double eps)
{
    gsize n = grads->count;

    for (guint t = 0; t < tensors_count(&m->config); t++) {
        TensorInfo info = tensors_info(&m->config, t);
        g_autofree double *w = g_new(double, info.count);

        model_get(m, &info, w);
        update(m->ops, w, moments + grads->offset[t], moments + n + grads->offset[t],
               params_tensor(grads, info.layer, info.slot, info.expert), info.count, step, eps);
        model_set(m, &info, w);
    }
}

/* Losses after each of two steps. */
static void optimise(Update update, double eps, double losses[2])
{
    Golden g = golden_run(&ops_ref_f64, 4);
    g_autofree double *moments = NULL;
    double coef[19];

    for (int n = 0; n < 3; n++) {
        Step step = golden_step(&g, coef, n == 0);

        if (n > 0)
            losses[n - 1] = step.loss;
        if (!moments)
            moments = g_new0(double, 2 * step.grads->count);
        update_model(g.model, step.grads, moments, update, n + 1, eps);
        params_free(step.grads);
        free(g.logits);
        lab_seq_free(g.seq);
        g.seq = lab_seq_new(g.model, GOLDEN_TOKENS);
        g.logits = lab_run(g.seq, g.acts, g.ids, GOLDEN_TOKENS);
    }
    golden_clear(&g);
}

static void test_updates(void)
{
    double losses[2];

    optimise(update_sgd, 0, losses);
    NEAR(losses[0], 2.5657998409809823, 1e-9);
    optimise(update_adamw, 1e-8, losses);
    NEAR(losses[0], 2.593893836735373, 1e-9);
    NEAR(losses[1], 2.5724419753016194, 1e-9);
    optimise(update_adamw, 1e-15, losses);
    NEAR(losses[0], 2.593893797086794, 1e-9);
    NEAR(losses[1], 2.572441897433654, 1e-9);
}

/* Gradients of 1e-14 are the rule in this kind of training (arXiv 2506.13585, 3.2). */
static void test_small_gradients(void)
{
    static const struct {
        double eps, moved;
    } cases[] = {{1e-15, 0.9}, {1e-8, 1e-6}};

    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        float w[1] = {0}, m[1] = {0}, v[1] = {0}, g[1] = {1e-14f};
        AdamwStep s = {.lr = 1, .beta1 = 0.9, .beta2 = 0.95, .eps = cases[i].eps, .step = 1};

        ops_ref_f32.adamw(w, m, v, g, 1, &s);
        g_assert_cmpfloat_with_epsilon(-(double)w[0] / cases[i].moved, 1, 0.05);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/golden/the_forward_in_f64_for_every_chunk", test_forward_f64);
    g_test_add_func("/golden/the_forward_in_f32", test_forward_f32);
    g_test_add_func("/golden/the_forward_of_every_cpu_table", test_forward_cpu);
    g_test_add_func("/golden/the_states_of_lightning_layers", test_states);
    g_test_add_func("/golden/the_gradients_of_the_cispo_loss", test_gradients);
    g_test_add_func("/golden/steps_of_sgd_and_adamw", test_updates);
    g_test_add_func("/golden/adamw_moves_under_gradients_of_1e_14", test_small_gradients);
    return g_test_run();
}
