/*
 * The training half: the golden loss through it, prompts shared or not, cuts into batches that
 * change no bit, the engine's own log-probabilities, and what stops an update.
 */
#include "base/error.h"
#include "policy/engine.h"
#include "policy/trainer.h"
#include "tests/policy/model_lab.h"

#include <math.h>
#include <string.h>

#define NEAR(value, want, tolerance)                                                               \
    g_assert_cmpfloat_with_epsilon(value, want, (tolerance)*MAX(1.0, fabs((double)(want))))

static Trainer *trainer_for(Model *model, int rows_max)
{
    g_autoptr(GError) error = NULL;
    Trainer *trainer = trainer_new(model, rows_max, ACTS_KEEP_ALL, &error);

    g_assert_no_error(error);
    return trainer;
}

static TrainerLoss loss_of(const char *name, LossOptions options)
{
    const Loss *loss = loss_find(name);

    return (TrainerLoss){.loss = loss, .options = loss_options(loss, &options)};
}

static TrainerStats gradients(Trainer *trainer, RolloutGroup *const *groups, guint n,
                              const TrainerLoss *loss)
{
    g_autoptr(GError) error = NULL;
    TrainerStats stats = {0};

    trainer_gradients(trainer, groups, n, loss, NULL, NULL, &stats, &error);
    g_assert_no_error(error);
    return stats;
}

/* ---- the golden loss ---- */

static const double golden_logprobs[] = {-4.15921839, -4.24390712, -4.67087263, -4.64820563,
                                         -3.92726424, -3.22321066, -4.14345126, -4.71987237,
                                         -1.85459679, -3.6988233,  -2.94025695, -3.29052876};

/* The first 8 ids are the prompt, the other 12 the answer. */
static RolloutGroup *golden_group(void)
{
    int ids[GOLDEN_TOKENS];
    float mu[12];
    RolloutGroup *group;

    lab_golden_ids(ids);
    for (int i = 0; i < 12; i++)
        mu[i] = (float)(golden_logprobs[i] + 0.3 * sin(i + 7));
    group = rollout_group_new(ids, 8, 1);
    rollout_fill(&group->rollouts[0], ids + 8, NULL, mu, 12);
    group->rollouts[0].advantage = 0.7;
    group->rollouts[0].scale = 1.0 / 12;
    return group;
}

/* -sum coef logp under the present weights. */
static double frozen_loss(Trainer *trainer, RolloutGroup *group, const double *coef)
{
    g_autoptr(GError) error = NULL;
    double loss = 0;

    g_assert_true(trainer_logprobs(trainer, &group, 1, 1, ROLLOUT_REF, &error));
    for (int i = 0; i < 12; i++)
        loss -= coef[i] * group->rollouts[0].ref[i];
    return loss;
}

static void keep_coefs(const Packer *packer, const LossToken *tokens, gpointer user)
{
    for (guint i = 0; i < packer->n_targets; i++)
        ((double *)user)[packer->targets[i].at] = tokens[i].coef;
}

static void test_golden(void)
{
    static const guint chunks[] = {1, 4, 8, 16};
    const TrainerStep step = {
        .adamw = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-15, .weight_decay = 0.1}};

    for (guint c = 0; c < G_N_ELEMENTS(chunks); c++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Model) model = lab_golden_model(&ops_ref_f64, WEIGHT_REAL, chunks[c]);
        g_autoptr(Trainer) trainer = trainer_for(model, 64);
        g_autoptr(RolloutGroup) group = golden_group();
        TrainerLoss loss = loss_of("cispo", (LossOptions){.is_cap = 1.2});
        TrainerStats stats = {0};
        double coef[12];

        g_assert_true(
            trainer_gradients(trainer, &group, 1, &loss, keep_coefs, coef, &stats, &error));
        NEAR(stats.loss.loss, 2.616977873443856, 1e-7);
        g_assert_cmpuint(stats.loss.ratio_high, ==, 3);
        g_assert_true(trainer_step(trainer, &step, &stats, &error));
        NEAR(stats.grad_norm, 2.220361925605827, 1e-7);
        NEAR(frozen_loss(trainer, group, coef), 2.593893797086794, 1e-6);
        g_assert_cmpuint(model->version, ==, 2);
    }
}

static void test_update_norm(void)
{
    const TrainerStep step = {.adamw = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-15}};
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = lab_golden_model(&ops_ref_f64, WEIGHT_REAL, 4);
    g_autoptr(Trainer) trainer = trainer_for(model, 64);
    g_autoptr(RolloutGroup) group = golden_group();
    TrainerLoss loss = loss_of("cispo", (LossOptions){.is_cap = 1.2});
    TrainerStats stats = {0};
    gsize n = trainer->master->count;
    g_autofree double *before = g_memdup2(trainer->master->data, n * sizeof *before);
    const double *now = trainer->master->data;
    double far = 0;

    g_assert_true(trainer_gradients(trainer, &group, 1, &loss, NULL, NULL, &stats, &error));
    g_assert_true(trainer_step(trainer, &step, &stats, &error));
    for (gsize i = 0; i < n; i++)
        far += (now[i] - before[i]) * (now[i] - before[i]);
    g_assert_cmpfloat(far, >, 0);
    NEAR(stats.update_norm, sqrt(far), 1e-12);
}

/* ---- groups of random rollouts ---- */

static ModelConfig config_with_chunk(guint chunk)
{
    ModelConfig config;

    lab_golden_config(&config, chunk);
    return config;
}

static ModelConfig config_with_vocab(guint32 vocab)
{
    ModelConfig config = config_with_chunk(8);

    config.vocab = config.vocab_valid = vocab;
    return config;
}

/* The same rollouts, each with a prompt of its own. */
static GPtrArray *split_group(const RolloutGroup *group)
{
    GPtrArray *alone = g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);

    for (guint r = 0; r < group->n; r++) {
        RolloutGroup *one = rollout_group_new(group->prompt, group->prompt_n, 1);
        const Rollout *from = &group->rollouts[r];

        rollout_fill(one->rollouts, from->ids, from->mask, from->mu, from->n);
        one->rollouts[0].advantage = from->advantage;
        one->rollouts[0].scale = from->scale;
        g_ptr_array_add(alone, one);
    }
    return alone;
}

static double difference(const Params *a, const Params *b)
{
    const double *x = a->data, *y = b->data;
    double apart = 0, all = 0;

    for (gsize i = 0; i < a->count; i++) {
        apart += pow(x[i] - y[i], 2);
        all += y[i] * y[i];
    }
    return sqrt(apart / all);
}

static void test_shared_prompts(void)
{
    static const int prompts[] = {1, 3, 4, 5, 8, 13};

    for (guint i = 0; i < G_N_ELEMENTS(prompts); i++) {
        ModelConfig config = config_with_chunk(4);
        g_autoptr(Model) model = lab_random_model(&ops_ref_f64, &config, WEIGHT_REAL, 5);
        g_autoptr(Trainer) shared = trainer_for(model, 200), apart = trainer_for(model, 200);
        g_autoptr(RolloutGroup) group = lab_group(i, prompts[i], 6);
        g_autoptr(GPtrArray) alone = split_group(group);
        TrainerLoss loss = loss_of("cispo", (LossOptions){0});
        TrainerStats a = gradients(shared, &group, 1, &loss);
        TrainerStats b = gradients(apart, (RolloutGroup **)alone->pdata, alone->len, &loss);

        g_assert_cmpuint(a.loss.tokens, ==, b.loss.tokens);
        g_assert_cmpuint(a.rows, ==,
                         b.rows - (a.loss.rollouts - 1) * (guint)pack_shared(model, group));
        NEAR(a.loss.loss, b.loss.loss, 1e-12);
        g_assert_cmpfloat(difference(shared->grads, apart->grads), <, 1e-12);
    }
}

/* ---- central differences ---- */

typedef struct {
    double coef[200]; /* as they were at the first call */
    double frozen;    /* the loss with those */
    guint n, at;
} Losses;

static void frozen_add(const Packer *packer, const LossToken *tokens, gpointer user)
{
    Losses *l = user;

    for (guint i = 0; i < packer->n_targets; i++, l->at++) {
        if (l->at == l->n)
            l->coef[l->n++] = tokens[i].coef;
        l->frozen -= l->coef[l->at] * tokens[i].logp + tokens[i].bonus * tokens[i].entropy;
    }
}

/* The losses at weights + h direction, coefficients frozen in l->frozen, made anew returned. */
static double loss_at(Trainer *trainer, RolloutGroup *group, const double *direction, double h,
                      const TrainerLoss *loss, Losses *l)
{
    double *w = trainer->master->data;
    g_autoptr(GError) error = NULL;
    TrainerStats stats = {0};

    l->at = 0;
    l->frozen = 0;
    for (gsize i = 0; i < trainer->master->count; i++)
        w[i] += h * direction[i];
    params_set(trainer->master, trainer->model);
    g_assert_true(trainer_gradients(trainer, &group, 1, loss, frozen_add, l, &stats, &error));
    for (gsize i = 0; i < trainer->master->count; i++)
        w[i] -= h * direction[i];
    return stats.loss.loss;
}

/* Experts for every row, whatever the routers would say. */
static void random_routes(RolloutGroup *group, const ModelConfig *c)
{
    guint k = c->experts_per_token, first = 3;

    rollout_group_routes(group, c->layers * k);
    for (guint i = 0; i < (guint)group->prompt_n * group->width; i++)
        group->experts[i] = (guint16)((first += 2 - i % k) % c->experts);
    for (guint r = 0; r < group->n; r++)
        for (guint i = 0; i < (guint)group->rollouts[r].n * group->width; i++)
            group->rollouts[r].experts[i] = (guint16)((first += 2 - i % k) % c->experts);
}

static void check_differences(gboolean routed)
{
    ModelConfig config = config_with_chunk(4);
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);
    g_autoptr(Model) model = lab_random_model(&ops_ref_f64, &config, WEIGHT_REAL, 9);
    g_autoptr(Trainer) trainer = trainer_for(model, 200);
    g_autoptr(RolloutGroup) group = lab_group(3, 6, 4);
    TrainerLoss loss = loss_of("cispo", (LossOptions){.is_cap = 100, .entropy = 0.5});
    g_autofree double *direction = g_new0(double, trainer->grads->count);
    double slope = 0, frozen, live;
    const double h = 1e-6;
    Losses l = {.n = 0};

    if (routed)
        random_routes(group, &config);
    for (guint t = 0; t < tensors_count(&config); t++)
        for (gsize i = 0; i < tensors_info(&config, t).count; i++)
            direction[trainer->grads->offset[t] + i] = g_rand_double_range(rand, -1, 1);
    loss_at(trainer, group, direction, 0, &loss, &l);
    for (gsize i = 0; i < trainer->grads->count; i++)
        slope += ((double *)trainer->grads->data)[i] * direction[i];
    live = loss_at(trainer, group, direction, h, &loss, &l);
    frozen = l.frozen;
    live = (live - loss_at(trainer, group, direction, -h, &loss, &l)) / (2 * h);
    frozen = (frozen - l.frozen) / (2 * h);
    NEAR(frozen / slope, 1, 1e-7);
    g_assert_cmpfloat(fabs(live / slope - 1), >, 0.05); /* coefficients carry no gradient */
}

static void test_differences(void)
{
    check_differences(FALSE);
    check_differences(TRUE);
}

/* ---- bits ---- */

/* Gradients of the same groups, by a trainer of `rows_max` rows. */
static Params *bits_of(Model *model, int rows_max, ActsKeep keep, RolloutGroup *const *groups,
                       guint n, guint64 *batches)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Trainer) trainer = trainer_new(model, rows_max, keep, &error);
    TrainerLoss loss = loss_of("cispo", (LossOptions){0});
    TrainerStats stats = gradients(trainer, groups, n, &loss);

    *batches = stats.batches;
    return g_steal_pointer(&trainer->grads);
}

static void check_cuts(const Ops *ops)
{
    ModelConfig config = config_with_chunk(8);
    g_autoptr(Model) model = lab_random_model(ops, &config, WEIGHT_REAL, 5);
    RolloutGroup *groups[8];
    guint64 whole_batches, cut_batches;
    g_autoptr(Params) whole = NULL, cut = NULL;

    for (guint g = 0; g < 8; g++) /* one rollout each: no prompt is worked twice by a cut */
        groups[g] = lab_group(g, 3 + (int)g * 4, 1);
    whole = bits_of(model, 600, ACTS_KEEP_ALL, groups, 8, &whole_batches);
    cut = bits_of(model, 64, ACTS_KEEP_ALL, groups, 8, &cut_batches);
    g_assert_cmpuint(whole_batches, ==, 1);
    g_assert_cmpuint(cut_batches, >, 3);
    g_assert_true(memcmp(whole->data, cut->data, params_bytes(whole)) == 0);
    for (guint g = 0; g < 8; g++)
        rollout_group_free(groups[g]);
}

static void test_cuts_change_no_bit(void)
{
    check_cuts(&ops_ref_f64);
    check_cuts(&ops_ref_f32);
    check_cuts(ops_cpu());
}

/* More trained tokens in a batch than the head takes at once. */
static void test_slices_change_no_bit(void)
{
    enum { GROUPS = 200, SLICE = 1024 };
    ModelConfig config = config_with_chunk(8);
    g_autoptr(Model) model = lab_random_model(ops_cpu(), &config, WEIGHT_REAL, 5);
    RolloutGroup *groups[GROUPS];
    guint64 whole_batches, cut_batches;
    g_autoptr(Params) whole = NULL, cut = NULL;
    int trained = 0;

    for (guint g = 0; g < GROUPS; g++) {
        const Rollout *r;

        groups[g] = lab_group(g, 3, 1);
        r = groups[g]->rollouts;
        for (int i = 0; i < r->n; i++)
            trained += r->mask[i];
    }
    whole = bits_of(model, 4000, ACTS_KEEP_ALL, groups, GROUPS, &whole_batches);
    cut = bits_of(model, 600, ACTS_KEEP_ALL, groups, GROUPS, &cut_batches);
    g_assert_cmpint(trained, >, SLICE);
    g_assert_cmpuint(whole_batches, ==, 1);
    g_assert_cmpuint(cut_batches, >, 3);
    g_assert_true(memcmp(whole->data, cut->data, params_bytes(whole)) == 0);
    for (guint g = 0; g < GROUPS; g++)
        rollout_group_free(groups[g]);
}

static void check_recompute(const Ops *ops)
{
    ModelConfig config = config_with_chunk(8);
    g_autoptr(Model) model = lab_random_model(ops, &config, WEIGHT_REAL, 5);
    RolloutGroup *const groups[] = {lab_group(1, 21, 5), lab_group(2, 9, 3)};
    guint64 batches;
    g_autoptr(Params) kept = bits_of(model, 600, ACTS_KEEP_ALL, groups, 2, &batches);
    g_autoptr(Params) made = bits_of(model, 600, ACTS_KEEP_INPUTS, groups, 2, &batches);
    const Layout one = {1, 1, 1, 1};

    g_assert_true(memcmp(kept->data, made->data, params_bytes(kept)) == 0);
    g_assert_cmpuint(trainer_bytes(model, 600, ACTS_KEEP_INPUTS, &one, 1), <,
                     trainer_bytes(model, 600, ACTS_KEEP_ALL, &one, 1) * 2 / 3);
    rollout_group_free(groups[0]);
    rollout_group_free(groups[1]);
}

static void test_recompute(void)
{
    check_recompute(&ops_ref_f64);
    check_recompute(ops_cpu());
}

typedef struct {
    int ids[40];
    float mu[40];
    int n;
} Said;

static gboolean on_token(const EngineToken *token, gpointer user)
{
    Said *said = (Said *)user + token->sample;

    if (token->token.id < 0)
        return TRUE;
    said->ids[said->n] = token->token.id;
    said->mu[said->n++] = token->token.logprob;
    return TRUE;
}

static void check_engine(WeightFormat format, guint32 vocab)
{
    const EngineLimits limits = {
        .context_max = 256, .cache_bytes = 32 << 20, .rows_max = 32, .sequences_max = 64};
    ModelConfig config = config_with_vocab(vocab);
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = lab_random_model(ops_cpu(), &config, format, 4);
    g_autoptr(Engine) engine = engine_new(model, &limits, &error);
    g_autoptr(Trainer) trainer = trainer_for(model, 64);
    g_autoptr(RolloutGroup) prompt = lab_group(2, 21, 1), group = NULL;
    TrainerLoss loss = loss_of("grpo", (LossOptions){0});
    Said said[4] = {0};
    EngineRequest request = {.prompt = prompt->prompt,
                             .prompt_len = prompt->prompt_n,
                             .n = 4,
                             .tokens_max = 40,
                             .params = {.temperature = 1, .seed = 8},
                             .on_token = on_token,
                             .user = said};
    TrainerStats stats;

    g_assert_cmpuint(engine_submit(engine, &request, &error), >, 0);
    while (engine_step(engine) > 0)
        continue;
    group = rollout_group_new(prompt->prompt, prompt->prompt_n, 4);
    for (guint r = 0; r < 4; r++) {
        g_assert_cmpint(said[r].n, ==, 40);
        rollout_fill(&group->rollouts[r], said[r].ids, NULL, said[r].mu, said[r].n);
        group->rollouts[r].scale = 0.01;
        group->rollouts[r].advantage = r % 2 ? 1 : -1;
    }
    stats = gradients(trainer, &group, 1, &loss);
    g_assert_cmpuint(stats.loss.tokens, ==, 160);
    g_assert_cmpfloat(stats.loss.mismatch_max, ==, 0);
    g_assert_cmpfloat(stats.loss.ratio_max, ==, 1);
    g_assert_cmpfloat(loss_correlation(&stats.loss), ==, 1);
}

static void test_engine_and_trainer_agree(void)
{
    check_engine(WEIGHT_REAL, GOLDEN_VOCAB);
    check_engine(WEIGHT_BF16, GOLDEN_VOCAB);
    check_engine(WEIGHT_BF16, OPS_HEAD_TILE + 100); /* more than one tile of the head */
}

/* ---- routing replay ---- */

typedef struct {
    RolloutGroup *group;
    Said said[4];
    guint16 *prompt, *routes[4];
} Routed;

static gboolean on_routed_token(const EngineToken *token, gpointer user)
{
    return on_token(token, ((Routed *)user)->said);
}

static void on_route(guint sample, gint64 position, const guint16 *experts, gpointer user)
{
    Routed *r = user;
    gint64 prompt_n = r->group->prompt_n, width = r->group->width;
    guint16 *to = position < prompt_n ? r->prompt + position * width
                                      : r->routes[sample] + (position - prompt_n) * width;

    g_assert_cmpint(position, <, prompt_n + 40);
    memcpy(to, experts, (gsize)width * sizeof *experts);
}

/* Four rollouts that the engine sampled, with the experts it chose; and the same without them. */
static RolloutGroup *sampled_group(Model *model, RolloutGroup **ret_plain)
{
    const EngineLimits limits = {
        .context_max = 256, .cache_bytes = 32 << 20, .rows_max = 32, .sequences_max = 64};
    guint width = model->config.layers * model->config.experts_per_token;
    g_autoptr(GError) error = NULL;
    g_autoptr(Engine) engine = engine_new(model, &limits, &error);
    RolloutGroup *group = lab_group(2, 21, 4);
    Routed routed = {.group = group};
    EngineRequest request = {.prompt = group->prompt,
                             .prompt_len = group->prompt_n,
                             .n = 4,
                             .tokens_max = 40,
                             .params = {.temperature = 1, .seed = 8},
                             .on_token = on_routed_token,
                             .on_route = on_route,
                             .user = &routed};

    group->width = width;
    routed.prompt = g_new(guint16, 21 * width);
    for (guint i = 0; i < 4; i++)
        routed.routes[i] = g_new(guint16, 40 * width);
    g_assert_cmpuint(engine_submit(engine, &request, &error), >, 0);
    while (engine_step(engine) > 0)
        continue;
    *ret_plain = rollout_group_new(group->prompt, group->prompt_n, 4);
    rollout_group_free(group);
    group = rollout_group_new((*ret_plain)->prompt, (*ret_plain)->prompt_n, 4);
    for (guint i = 0; i < 8; i++) {
        Rollout *r = &(i < 4 ? group : *ret_plain)->rollouts[i % 4];

        rollout_fill(r, routed.said[i % 4].ids, NULL, routed.said[i % 4].mu, 40);
        r->scale = 0.01;
        r->advantage = i % 2 ? 1 : -1;
    }
    rollout_group_routes(group, width);
    memcpy(group->experts, routed.prompt, 21 * width * sizeof(guint16));
    for (guint i = 0; i < 4; i++) /* the last token is never read */
        memcpy(group->rollouts[i].experts, routed.routes[i], 39 * width * sizeof(guint16));
    for (guint i = 0; i < 4; i++)
        g_free(routed.routes[i]);
    g_free(routed.prompt);
    return group;
}

/* The experts that the last forward took are those that were recorded. */
static void check_taken(const Trainer *t)
{
    const ModelConfig *c = &t->model->config;
    gsize k = c->experts_per_token;

    for (int row = 0; row < t->packer->batch.rows; row++)
        for (guint l = 0; l < c->layers; l++)
            for (gsize i = 0; i < k; i++)
                g_assert_cmpint(t->acts->layers[l].choice[(gsize)row * k + i], ==,
                                t->packer->given[((gsize)row * c->layers + l) * k + i]);
}

static void test_replay(void)
{
    ModelConfig config = config_with_chunk(8);
    g_autoptr(Model) model = lab_random_model(ops_cpu(), &config, WEIGHT_REAL, 4);
    g_autoptr(Model) other = lab_random_model(ops_cpu(), &config, WEIGHT_REAL, 5);
    g_autoptr(RolloutGroup) plain = NULL, routed = sampled_group(model, &plain);
    g_autoptr(Trainer) trainer = trainer_for(model, 400);
    g_autoptr(Params) without = NULL, with = NULL, again = NULL;
    g_autofree float *router = g_new(float, (gsize)config.experts *config.hidden);
    TrainerLoss loss = loss_of("cispo", (LossOptions){0});
    TrainerStats stats;
    guint64 batches;

    without = bits_of(model, 400, ACTS_KEEP_ALL, &plain, 1, &batches);
    with = bits_of(model, 400, ACTS_KEEP_ALL, &routed, 1, &batches);
    g_assert_true(memcmp(without->data, with->data, params_bytes(with)) == 0);
    for (guint i = 0; i < tensors_count(&config); i++) { /* routers that would choose others */
        TensorInfo info = tensors_info(&config, i);

        if (info.class != CLASS_ROUTER)
            continue;
        model_get(other, &info, router);
        model_set(model, &info, router);
    }
    stats = gradients(trainer, &routed, 1, &loss);
    g_assert_cmpuint(stats.rerouted, >, 20);
    g_assert_cmpfloat(stats.loss.mismatch_max, >, 0); /* weights of the experts are of now */
    check_taken(trainer);
    params_free(g_steal_pointer(&with));
    with = bits_of(model, 400, ACTS_KEEP_ALL, &routed, 1, &batches);
    again = bits_of(model, 400, ACTS_KEEP_INPUTS, &routed, 1, &batches);
    g_assert_true(memcmp(with->data, again->data, params_bytes(with)) == 0);
    params_zero(trainer->grads);
    g_assert_cmpuint(gradients(trainer, &plain, 1, &loss).rerouted, ==, 0);
}

static void test_replay_of_others(void)
{
    ModelConfig config = config_with_chunk(8);
    g_autoptr(Model) model = lab_random_model(ops_cpu(), &config, WEIGHT_REAL, 4);
    g_autoptr(RolloutGroup) group = lab_group(2, 21, 4);
    g_autoptr(Trainer) trainer = trainer_for(model, 400);
    TrainerLoss loss = loss_of("cispo", (LossOptions){0});

    random_routes(group, &config);
    for (guint i = 0; i < 3; i++) {
        g_autoptr(GError) error = NULL;
        TrainerStats stats = {0};
        guint16 *experts = group->rollouts[3].experts, was = experts[1];

        experts[1] = i == 0 ? (guint16)config.experts : i == 1 ? experts[0] : was;
        group->width += i == 2;
        g_assert_false(trainer_gradients(trainer, &group, 1, &loss, NULL, NULL, &stats, &error));
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
        experts[1] = was;
    }
}

/* ---- what is read and what is trained ---- */

static void test_observations(void)
{
    static const guint8 mask[] = {1, 1, 0, 0, 1};
    ModelConfig config = config_with_chunk(4);
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = lab_random_model(&ops_ref_f64, &config, WEIGHT_REAL, 5);
    g_autoptr(Trainer) trainer = trainer_for(model, 64);
    g_autoptr(RolloutGroup) group = rollout_group_new((const int[]){1, 2, 3}, 3, 2);
    TrainerLoss loss = loss_of("cispo", (LossOptions){0});
    const float *a, *b;

    rollout_fill(&group->rollouts[0], (const int[]){4, 5, 6, 7, 8}, mask, NULL, 5);
    rollout_fill(&group->rollouts[1], (const int[]){4, 5, 9, 7, 8}, mask, NULL, 5);
    g_assert_true(trainer_logprobs(trainer, &group, 1, 1, ROLLOUT_ANCHOR, &error));
    a = group->rollouts[0].anchor;
    b = group->rollouts[1].anchor;
    g_assert_cmpfloat(a[0], ==, b[0]);
    g_assert_cmpfloat(a[1], ==, b[1]);
    g_assert_cmpfloat(a[2], ==, 0); /* never asked for */
    g_assert_cmpfloat(fabsf(a[4] - b[4]), >, 1e-4f);
    g_assert_cmpuint(gradients(trainer, &group, 1, &loss).loss.tokens, ==, 6);
}

static void test_nothing_to_train(void)
{
    static const guint8 none[8];
    ModelConfig config = config_with_chunk(4);
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = lab_random_model(&ops_ref_f32, &config, WEIGHT_REAL, 5);
    g_autoptr(Trainer) trainer = trainer_for(model, 64);
    g_autoptr(RolloutGroup) skipped = lab_group(1, 4, 2), masked = lab_group(1, 4, 1);
    RolloutGroup *const groups[] = {skipped, masked};
    TrainerLoss loss = loss_of("cispo", (LossOptions){0});
    const TrainerStep step = {.adamw = {.lr = 1, .beta1 = 0.9, .beta2 = 0.95, .weight_decay = 1}};
    g_autofree void *before = NULL;
    TrainerStats stats;

    skipped->skipped = TRUE;
    memcpy(masked->rollouts[0].mask, none, MIN(8, (gsize)masked->rollouts[0].n));
    masked->rollouts[0].n = MIN(8, masked->rollouts[0].n);
    before = g_memdup2(trainer->master->data, params_bytes(trainer->master));
    stats = gradients(trainer, groups, 2, &loss);
    g_assert_cmpuint(stats.rows, ==, 0);
    g_assert_true(trainer_step(trainer, &step, &stats, &error));
    g_assert_false(stats.stepped);
    g_assert_cmpint(trainer->steps, ==, 0);
    g_assert_cmpuint(model->version, ==, 1);
    g_assert_true(memcmp(before, trainer->master->data, params_bytes(trainer->master)) == 0);
}

static void test_not_finite(void)
{
    ModelConfig config = config_with_chunk(4);
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = lab_random_model(&ops_ref_f32, &config, WEIGHT_REAL, 5);
    g_autoptr(Trainer) trainer = trainer_for(model, 64);
    g_autoptr(RolloutGroup) group = lab_group(1, 4, 3);
    TrainerLoss loss = loss_of("cispo", (LossOptions){0});
    const TrainerStep step = {.adamw = {.lr = 1, .beta1 = 0.9, .beta2 = 0.95}};
    g_autofree void *before = g_memdup2(trainer->master->data, params_bytes(trainer->master));
    TrainerStats stats = {0};

    group->rollouts[2].advantage = NAN;
    g_assert_false(trainer_gradients(trainer, &group, 1, &loss, NULL, NULL, &stats, &error));
    g_assert_nonnull(strstr(error->message, "of rollout 2"));
    g_clear_error(&error);
    group->rollouts[2].advantage = 1;
    stats = gradients(trainer, &group, 1, &loss);
    ((float *)trainer->grads->data)[7] = INFINITY;
    g_assert_false(trainer_step(trainer, &step, &stats, &error));
    g_assert_nonnull(strstr(error->message, "gradient norm inf"));
    g_assert_true(memcmp(before, trainer->master->data, params_bytes(trainer->master)) == 0);
    for (gsize i = 0; i < trainer->grads->count; i++)
        g_assert_cmpfloat(((float *)trainer->grads->data)[i], ==, 0);
    g_assert_cmpuint(model->version, ==, 1);
}

static void test_too_long(void)
{
    ModelConfig config = config_with_chunk(4);
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = lab_random_model(&ops_ref_f32, &config, WEIGHT_REAL, 5);
    g_autoptr(Trainer) trainer = trainer_for(model, 24);
    g_autoptr(RolloutGroup) fits = lab_group(1, 4, 1), group = lab_group(1, 30, 2);
    RolloutGroup *const groups[] = {fits, group};
    TrainerLoss loss = loss_of("cispo", (LossOptions){0});
    TrainerStats stats = {0};

    g_assert_false(trainer_gradients(trainer, groups, 2, &loss, NULL, NULL, &stats, &error));
    g_assert_nonnull(strstr(error->message, "group 1, rollout 0: a rollout of"));
    g_assert_nonnull(strstr(error->message, "the limit is 24"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/trainer/the_golden_loss_and_step", test_golden);
    g_test_add_func("/trainer/a_step_says_how_far_it_went", test_update_norm);
    g_test_add_func("/trainer/a_shared_prompt_gives_the_same_gradients", test_shared_prompts);
    g_test_add_func("/trainer/gradients_are_those_of_frozen_coefficients", test_differences);
    g_test_add_func("/trainer/cuts_into_batches_change_no_bit", test_cuts_change_no_bit);
    g_test_add_func("/trainer/slices_of_the_head_change_no_bit", test_slices_change_no_bit);
    g_test_add_func("/trainer/activations_made_again_change_no_bit", test_recompute);
    g_test_add_func("/trainer/log_probabilities_are_the_engines", test_engine_and_trainer_agree);
    g_test_add_func("/trainer/recorded_experts_are_taken_again", test_replay);
    g_test_add_func("/trainer/experts_of_another_model_are_refused", test_replay_of_others);
    g_test_add_func("/trainer/observations_are_read_and_not_trained", test_observations);
    g_test_add_func("/trainer/without_tokens_no_step", test_nothing_to_train);
    g_test_add_func("/trainer/what_is_not_finite_changes_nothing", test_not_finite);
    g_test_add_func("/trainer/too_long_is_refused_with_the_numbers", test_too_long);
    return g_test_run();
}
