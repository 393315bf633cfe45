/*
 * The golden model and sequences for tests: see model_lab.h.
 */
#include "tests/policy/model_lab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void lab_golden_config(ModelConfig *c, guint chunk)
{
    g_autoptr(GError) error = NULL;

    *c = (ModelConfig){
        .hidden = 16,
        .layers = 8,
        .heads = 4,
        .kv_heads = 2,
        .head_dim = 8,
        .rotary_dim = 4,
        .experts = 4,
        .experts_per_token = 2,
        .ffn = 12,
        .vocab = GOLDEN_VOCAB,
        .vocab_valid = GOLDEN_VOCAB,
        .context_max = 1024,
        .norm_eps = 1e-5,
        .lightning_norm_eps = 1e-6,
        .rope_theta = 1e4,
        .alpha_linear = 2,
        .beta_linear = 1,
        .alpha_full = 2,
        .beta_full = 1,
        .alpha_mlp = 2,
        .beta_mlp = 1,
        .kinds = {[7] = ATTENTION_SOFTMAX},
    };
    model_config_check(c, &error);
    g_assert_no_error(error);
    if (chunk)
        c->chunk = chunk;
}

static void fill(Model *m, double (*value)(guint tensor, gsize j, guint rank, guint seed),
                 guint seed)
{
    for (guint t = 0; t < tensors_count(&m->config); t++) {
        TensorInfo info = tensors_info(&m->config, t);
        g_autofree void *rows = g_malloc0(info.count * sizeof(double));

        for (gsize j = 0; j < info.count; j++) {
            double x = value(t, j, info.rank, seed);

            if (m->ops->real == OPS_F64)
                ((double *)rows)[j] = x;
            else
                ((float *)rows)[j] = (float)x;
        }
        model_set(m, &info, rows);
    }
}

static double golden_value(guint tensor, gsize j, guint rank, guint seed)
{
    double t = tensor + 1;
    double x = sin(0.37 * t + 1.7 * (double)j + 0.011 * t * (double)(j * j % 97));

    (void)seed;
    return rank == 1 ? 1 + 0.1 * x : 0.3 * x;
}

/* A hash of (seed, tensor, index) as a number in (-1, 1), scaled like an initialised weight. */
static double random_value(guint tensor, gsize j, guint rank, guint seed)
{
    guint64 h = (seed * 0x9e3779b97f4a7c15ull) ^ (tensor * 0xbf58476d1ce4e5b9ull) ^ (j + 1);
    double x;

    h = (h ^ (h >> 31)) * 0x94d049bb133111ebull;
    h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9ull;
    h ^= h >> 32;
    x = (double)(h >> 11) / 4503599627370496.0 - 1;
    /* every number has a bf16 of its own, so that both formats hold the same model */
    return (double)bf16_float(bf16_of((float)(rank == 1 ? 1 + 0.1 * x : 0.2 * x)));
}

static Model *model_of(const Ops *ops, const ModelConfig *config, WeightFormat format)
{
    g_autoptr(GError) error = NULL;
    Model *m = model_new(ops, config, format, &error);

    g_assert_no_error(error);
    return m;
}

Model *lab_golden_model(const Ops *ops, WeightFormat format, guint chunk)
{
    ModelConfig config;
    Model *m;

    lab_golden_config(&config, chunk);
    m = model_of(ops, &config, format);
    fill(m, golden_value, 0);
    return m;
}

Model *lab_random_model(const Ops *ops, const ModelConfig *config, WeightFormat format, guint seed)
{
    Model *m = model_of(ops, config, format);

    fill(m, random_value, seed);
    return m;
}

void lab_golden_ids(int ids[GOLDEN_TOKENS])
{
    for (int t = 0; t < GOLDEN_TOKENS; t++)
        ids[t] = (7 * t + 3) % 29;
}

static void *zeroed(gsize bytes)
{
    void *at = NULL;

    g_assert_cmpint(posix_memalign(&at, 64, bytes + 64), ==, 0);
    return memset(at, 0, bytes + 64);
}

/* What an op must not read before it was written. */
static void *poisoned(gsize bytes)
{
    return memset(zeroed(bytes), 0xff, bytes); /* NaN in every width */
}

LabSeq *lab_seq_new(const Model *m, int tokens_max)
{
    LabSeq *seq = g_new0(LabSeq, 1);

    seq->model = m;
    seq->n_pages = ((gsize)tokens_max + m->config.chunk - 1) / m->config.chunk;
    seq->pages = g_new0(void *, seq->n_pages);
    seq->dpages = g_new0(void *, seq->n_pages);
    for (gsize i = 0; i < seq->n_pages; i++) {
        seq->pages[i] = poisoned(m->cache.page_bytes);
        seq->dpages[i] = zeroed(m->cache.page_bytes);
    }
    seq->state = zeroed(m->cache.state_bytes);
    seq->open = poisoned(m->cache.open_bytes);
    return seq;
}

void lab_seq_free(LabSeq *seq)
{
    if (!seq)
        return;
    for (gsize i = 0; i < seq->n_pages; i++) {
        free(seq->pages[i]);
        free(seq->dpages[i]);
    }
    g_free(seq->pages);
    g_free(seq->dpages);
    free(seq->state);
    free(seq->open);
    g_free(seq);
}

LabSeq *lab_seq_copy(const LabSeq *seq)
{
    LabSeq *copy = lab_seq_new(seq->model, (int)(seq->n_pages * seq->model->config.chunk));

    for (gsize i = 0; i < seq->n_pages; i++)
        memcpy(copy->pages[i], seq->pages[i], seq->model->cache.page_bytes);
    memcpy(copy->state, seq->state, seq->model->cache.state_bytes);
    memcpy(copy->open, seq->open, seq->model->cache.open_bytes);
    copy->length = seq->length;
    return copy;
}

OpsSpan lab_span(LabSeq *seq, int row0, int rows)
{
    return (OpsSpan){.row0 = row0,
                     .rows = rows,
                     .pos0 = seq->length,
                     .pages = seq->pages,
                     .state_in = seq->state,
                     .state_out = seq->state,
                     .open = seq->open};
}

void *lab_run(LabSeq *seq, Acts *acts, const int *ids, int rows)
{
    const Model *m = seq->model;
    OpsSpan span = lab_span(seq, 0, rows);
    g_autofree int64_t *positions = g_new(int64_t, rows);
    Batch batch = {.rows = rows, .n_spans = 1, .ids = ids, .positions = positions, .spans = &span};
    void *logits = zeroed((gsize)rows * m->config.vocab * ops_real_size(m->ops->real));

    for (int t = 0; t < rows; t++)
        positions[t] = seq->length + t;
    forward(m, acts, &batch);
    seq->length += rows;
    forward_logits(m, logits, acts->hidden, rows);
    return logits;
}

double lab_number(const Model *m, const void *array, gsize i)
{
    return m->ops->real == OPS_F64 ? ((const double *)array)[i] : (double)((const float *)array)[i];
}

double lab_distance(const Model *a, const void *x, const Model *b, const void *y, gsize n)
{
    double off = 0, all = 0;

    for (gsize i = 0; i < n; i++) {
        double want = lab_number(b, y, i), d = lab_number(a, x, i) - want;

        off += d * d;
        all += want * want;
    }
    return sqrt(off / all);
}

RolloutGroup *lab_group(guint seed, int prompt_n, guint n)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    int ids[64];
    RolloutGroup *group;

    for (int i = 0; i < prompt_n; i++)
        ids[i] = g_rand_int_range(rand, 0, GOLDEN_VOCAB);
    group = rollout_group_new(ids, prompt_n, n);
    for (guint r = 0; r < n; r++) {
        int len = g_rand_int_range(rand, 1, 20);
        guint8 mask[20];
        float mu[20];

        for (int i = 0; i < len; i++) {
            ids[i] = g_rand_int_range(rand, 0, GOLDEN_VOCAB);
            mask[i] = g_rand_double(rand) < 0.7;
            mu[i] = mask[i] ? (float)(-3 - g_rand_double(rand)) : 0;
        }
        rollout_fill(&group->rollouts[r], ids, mask, mu, len);
        group->rollouts[r].advantage = g_rand_double_range(rand, -1, 1);
        group->rollouts[r].scale = 0.01;
    }
    return group;
}
