/*
 * Whole models on the CUDA table: the golden model's loss and gradient, its logits against the
 * oracle, and what the engine sampled against what the trainer makes of it, bit for bit.
 *
 * Not here: single ops (test_cuda_emu.c, test_cuda_card.c).
 */
#include "policy/engine.h"
#include "policy/trainer.h"
#include "tests/kernels/card.h"
#include "tests/policy/model_lab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NEAR 2e-4

enum { PROMPT = 8, ANSWER = GOLDEN_TOKENS - PROMPT, SAMPLES = 2, SAID = 9 };

static gboolean no_card(void)
{
    if (card_ops() && card_reads_host())
        return FALSE;
    g_test_skip(card_ops() ? "the card does not read memory from malloc" : card_missing());
    return TRUE;
}

static void *logits_of(Model *model)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(LabSeq) seq = lab_seq_new(model, GOLDEN_TOKENS);
    Acts *acts = acts_new(model, GOLDEN_TOKENS, ACTS_KEEP_ALL, &error);
    int ids[GOLDEN_TOKENS];
    void *logits;

    g_assert_no_error(error);
    lab_golden_ids(ids);
    logits = lab_run(seq, acts, ids, GOLDEN_TOKENS);
    acts_free(acts);
    return logits;
}

static void test_logits(void)
{
    static const guint chunks[] = {4, 16};

    if (no_card())
        return;
    for (guint i = 0; i < G_N_ELEMENTS(chunks); i++) {
        g_autoptr(Model) model = lab_golden_model(card_ops(), WEIGHT_REAL, chunks[i]);
        g_autoptr(Model) oracle = lab_golden_model(&ops_ref_f64, WEIGHT_REAL, chunks[i]);
        g_autofree void *got = logits_of(model), *want = logits_of(oracle);
        double off = lab_distance(model, got, oracle, want, GOLDEN_TOKENS * GOLDEN_VOCAB);

        g_test_message("chunk %u: logits off by %g", chunks[i], off);
        g_assert_cmpfloat(off, <, 3e-5);
    }
}

/* Matrices in codes, the same on both sides; activations of products are rounded on one. */
static void test_codes(void)
{
    if (no_card())
        return;
    for (int format = WEIGHT_INT8; format < WEIGHT_FORMATS; format++) {
        g_autoptr(Model) model = lab_golden_model(card_ops(), (WeightFormat)format, 16);
        g_autoptr(Model) oracle = lab_golden_model(&ops_ref_f64, (WeightFormat)format, 16);
        g_autofree void *got = logits_of(model), *want = logits_of(oracle);
        double off = lab_distance(model, got, oracle, want, GOLDEN_TOKENS * GOLDEN_VOCAB);

        g_test_message("format %d: logits off by %g", format, off);
        g_assert_cmpfloat(off, <, 2e-2);
    }
}

/* As tests/policy/test_trainer.c has it: 8 ids are the prompt, 12 the answer. */
static RolloutGroup *golden_group(void)
{
    static const double logprobs[] = {-4.15921839, -4.24390712, -4.67087263, -4.64820563,
                                      -3.92726424, -3.22321066, -4.14345126, -4.71987237,
                                      -1.85459679, -3.6988233,  -2.94025695, -3.29052876};
    int ids[GOLDEN_TOKENS];
    float mu[ANSWER];
    RolloutGroup *group;

    lab_golden_ids(ids);
    for (int i = 0; i < ANSWER; i++)
        mu[i] = (float)(logprobs[i] + 0.3 * sin(i + 7));
    group = rollout_group_new(ids, PROMPT, 1);
    rollout_fill(&group->rollouts[0], ids + PROMPT, NULL, mu, ANSWER);
    group->rollouts[0].advantage = 0.7;
    group->rollouts[0].scale = 1.0 / ANSWER;
    return group;
}

static TrainerStats gradients(Trainer *trainer, RolloutGroup *group, LossOptions options)
{
    g_autoptr(GError) error = NULL;
    const Loss *cispo = loss_find("cispo");
    TrainerLoss loss = {.loss = cispo, .options = loss_options(cispo, &options)};
    TrainerStats stats = {0};

    trainer_gradients(trainer, &group, 1, &loss, NULL, NULL, &stats, &error);
    g_assert_no_error(error);
    return stats;
}

static void test_update(void)
{
    const TrainerStep step = {
        .adamw = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-15, .weight_decay = 0.1}};
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = NULL;
    g_autoptr(Trainer) trainer = NULL;
    g_autoptr(RolloutGroup) group = golden_group();
    TrainerStats stats;

    if (no_card())
        return;
    model = lab_golden_model(card_ops(), WEIGHT_REAL, 8);
    trainer = trainer_new(model, 64, ACTS_KEEP_ALL, &error);
    g_assert_no_error(error);
    stats = gradients(trainer, group, (LossOptions){.is_cap = 1.2});
    g_assert_cmpfloat_with_epsilon(stats.loss.loss, 2.616977873443856, NEAR);
    g_assert_true(trainer_step(trainer, &step, &stats, &error));
    g_assert_cmpfloat_with_epsilon(stats.grad_norm, 2.220361925605827, NEAR);
    g_assert_cmpuint(model->version, ==, 2);
}

typedef struct {
    int ids[SAID], n;
    float mu[SAID];
} Said;

static gboolean on_token(const EngineToken *token, gpointer user)
{
    Said *said = (Said *)user + token->sample;

    if (token->token.id >= 0) {
        said->ids[said->n] = token->token.id;
        said->mu[said->n++] = token->token.logprob;
    }
    return TRUE;
}

/* Two samples of the golden prompt. */
static void say(Model *model, Said said[SAMPLES])
{
    const EngineLimits limits = {
        .context_max = 64, .cache_bytes = 8 << 20, .rows_max = 32, .sequences_max = 8};
    g_autoptr(GError) error = NULL;
    g_autoptr(Engine) engine = engine_new(model, &limits, &error);
    int ids[GOLDEN_TOKENS];
    EngineRequest request = {.prompt = ids,
                             .prompt_len = PROMPT + 3,
                             .n = SAMPLES,
                             .tokens_max = SAID,
                             .params = {.temperature = 1, .seed = 8},
                             .on_token = on_token,
                             .user = said};

    g_assert_no_error(error);
    lab_golden_ids(ids);
    g_assert_cmpuint(engine_submit(engine, &request, &error), >, 0);
    while (engine_step(engine) > 0)
        continue;
    for (guint i = 0; i < SAMPLES; i++)
        g_assert_cmpint(said[i].n, ==, SAID);
}

static void test_engine(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = NULL;
    g_autoptr(Trainer) trainer = NULL;
    g_autoptr(RolloutGroup) group = NULL;
    int ids[GOLDEN_TOKENS];
    Said said[SAMPLES] = {0};

    if (no_card())
        return;
    lab_golden_ids(ids);
    model = lab_golden_model(card_ops(), WEIGHT_REAL, 4);
    trainer = trainer_new(model, 64, ACTS_KEEP_ALL, &error);
    g_assert_no_error(error);
    say(model, said);
    group = rollout_group_new(ids, PROMPT + 3, SAMPLES);
    for (guint i = 0; i < SAMPLES; i++) {
        rollout_fill(&group->rollouts[i], said[i].ids, NULL, said[i].mu, said[i].n);
        group->rollouts[i].scale = 0.1;
        group->rollouts[i].advantage = i ? 1 : -1;
    }
    g_assert_cmpfloat(gradients(trainer, group, (LossOptions){0}).loss.mismatch_max, ==, 0);
}

static void nothing(void) {}

/* A pass whose ops do not wait for one another has the bits of one whose ops do. */
static void test_graphs(void)
{
    g_autoptr(Model) model = NULL, one_by_one = NULL;
    Said said[SAMPLES] = {0}, want[SAMPLES] = {0};
    long graphs = card_graphs();
    Ops waits;

#ifdef __SANITIZE_ADDRESS__
    g_test_skip("test_cuda_graph.c has it faster");
    return;
#endif
    if (no_card())
        return;
    waits = *card_ops();
    waits.begin = waits.end = nothing;
    one_by_one = lab_golden_model(&waits, WEIGHT_BF16, 4);
    model = lab_golden_model(card_ops(), WEIGHT_BF16, 4);
    say(one_by_one, want);
    g_assert_cmpint(card_graphs(), ==, graphs);
    say(model, said);
    g_assert_true(graphs < 0 || card_graphs() > graphs + SAID);
    g_assert_true(memcmp(said, want, sizeof want) == 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cuda_model/logits_as_the_oracle", test_logits);
    g_test_add_func("/cuda_model/logits_of_codes_as_the_oracle", test_codes);
    g_test_add_func("/cuda_model/the_golden_update", test_update);
    g_test_add_func("/cuda_model/samples_and_trainer_have_the_same_bits", test_engine);
    g_test_add_func("/cuda_model/samples_of_graphs_and_of_single_ops_have_the_same_bits",
                    test_graphs);
    return g_test_run();
}
