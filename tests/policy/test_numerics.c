/*
 * One forward, bit for bit: however a sequence is cut into calls, whoever shares its batch, on
 * however many threads, a row's logits are the same numbers. For every CPU table of this
 * machine, and for the products of AMX, emulated in C.
 */
#include "tests/policy/model_lab.h"

#include "kernels/cpu/tables.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define TOKENS 530
#define VOCAB  97

#define EMULATED "amx_emulated"

static const char *const isas[] = {"plain", "avx2", "avx512", "amx", EMULATED};

static gboolean table_of(const char *isa, Ops *ops)
{
    if (!g_str_equal(isa, EMULATED))
        return ops_cpu_table(isa, ops);
    cpu_table_amx_emulated(ops);
    return TRUE;
}

/* Odd sizes on purpose: tails of vectors and panels everywhere. */
static void config_of(ModelConfig *c, guint chunk)
{
    g_autoptr(GError) error = NULL;

    lab_golden_config(c, 0);
    c->hidden = 52;
    c->layers = 4;
    c->head_dim = 20;
    c->rotary_dim = 12;
    c->experts = 6;
    c->ffn = 44;
    c->vocab = VOCAB;
    c->vocab_valid = VOCAB - 4;
    c->context_max = 4096;
    c->alpha_linear = c->alpha_full = c->alpha_mlp = 1.7;
    memset(c->kinds, ATTENTION_LIGHTNING, sizeof c->kinds);
    c->kinds[2] = ATTENTION_SOFTMAX;
    model_config_check(c, &error);
    g_assert_no_error(error);
    c->chunk = chunk;
}

typedef struct {
    Ops ops;
    Model *model;
    Acts *acts;
    int ids[TOKENS];
    float *whole; /* logits of all tokens in one call */
} World;

static void world_open(World *w, const char *isa, guint chunk)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(LabSeq) seq = NULL;
    ModelConfig config;

    g_assert_true(table_of(isa, &w->ops));
    config_of(&config, chunk);
    w->model = lab_random_model(&w->ops, &config, WEIGHT_BF16, 7);
    w->acts = acts_new(w->model, TOKENS, ACTS_KEEP_NOTHING, &error);
    g_assert_no_error(error);
    for (int t = 0; t < TOKENS; t++)
        w->ids[t] = (t * 31 + t * t / 7) % (VOCAB - 4);
    seq = lab_seq_new(w->model, TOKENS);
    w->whole = lab_run(seq, w->acts, w->ids, TOKENS);
}

static void world_close(World *w)
{
    free(w->whole);
    acts_free(w->acts);
    model_free(w->model);
}

static void assert_rows(const World *w, const float *logits, int first, int rows, const char *what)
{
    for (int t = 0; t < rows; t++)
        if (memcmp(logits + (gsize)t * VOCAB, w->whole + (gsize)(first + t) * VOCAB,
                   VOCAB * sizeof(float)) != 0)
            g_error("%s: row %d differs", what, first + t);
}

/* Pieces of the given length, over and over. */
static void check_cut(World *w, int length)
{
    g_autoptr(LabSeq) seq = lab_seq_new(w->model, TOKENS);
    g_autofree char *what = g_strdup_printf("pieces of %d", length);

    for (int from = 0; from < TOKENS; from += length) {
        int rows = MIN(length, TOKENS - from);
        float *logits = lab_run(seq, w->acts, w->ids + from, rows);

        assert_rows(w, logits, from, rows, what);
        free(logits);
    }
}

static void check_random_cuts(World *w)
{
    g_autoptr(LabSeq) seq = lab_seq_new(w->model, TOKENS);

    for (int from = 0; from < TOKENS;) {
        int most = g_test_rand_int_range(1, 70), rows = MIN(most, TOKENS - from);
        float *logits = lab_run(seq, w->acts, w->ids + from, rows);

        assert_rows(w, logits, from, rows, "random pieces");
        free(logits);
        from += rows;
    }
}

/* 33 sequences at different positions take one step together. */
static void check_batch(World *w)
{
    enum { N = 33 };
    LabSeq *seqs[N];
    OpsSpan spans[N];
    int ids[N];
    int64_t positions[N];
    Batch batch = {.rows = N, .n_spans = N, .ids = ids, .positions = positions, .spans = spans};
    g_autofree float *logits = g_new(float, N *VOCAB);

    for (int n = 0; n < N; n++) {
        int length = 1 + n * 13;

        seqs[n] = lab_seq_new(w->model, TOKENS);
        free(lab_run(seqs[n], w->acts, w->ids, length));
        spans[n] = lab_span(seqs[n], n, 1);
        ids[n] = w->ids[length];
        positions[n] = length;
    }
    forward(w->model, w->acts, &batch);
    forward_logits(w->model, logits, w->acts->hidden, N);
    for (int n = 0; n < N; n++) {
        assert_rows(w, logits + (gsize)n * VOCAB, 1 + n * 13, 1, "a row of a batch of 33");
        lab_seq_free(seqs[n]);
    }
}

static void check_fork(World *w)
{
    g_autoptr(LabSeq) seq = lab_seq_new(w->model, TOKENS), fork = NULL;
    float *logits;

    free(lab_run(seq, w->acts, w->ids, 300));
    fork = lab_seq_copy(seq);
    free(lab_run(seq, w->acts, w->ids + 17, 200)); /* goes another way */
    logits = lab_run(fork, w->acts, w->ids + 300, 200);
    assert_rows(w, logits, 300, 200, "a copy of the caches");
    free(logits);
}

static void check_threads(World *w)
{
    int threads = omp_get_max_threads();

    for (int n = 1; n <= 3; n++) {
        g_autoptr(LabSeq) seq = lab_seq_new(w->model, TOKENS);
        float *logits;

        omp_set_num_threads(n);
        logits = lab_run(seq, w->acts, w->ids, TOKENS);
        assert_rows(w, logits, 0, TOKENS, "another number of threads");
        free(logits);
    }
    omp_set_num_threads(threads);
}

static void test_bits(gconstpointer data)
{
    static const int lengths[] = {1, 3, 4, 31, 32, 33, 64, 255, 256, 257, 511, 513};
    static const guint chunks[] = {8, 32, 64};
    Ops ops;

    if (!table_of(data, &ops)) {
        g_test_skip("this machine cannot run it");
        return;
    }
    for (guint c = 0; c < G_N_ELEMENTS(chunks); c++) {
        World w;

        if (g_str_equal(data, EMULATED) && chunks[c] != 32)
            continue; /* slow, and its products know nothing of chunks */
        world_open(&w, data, chunks[c]);
        for (guint i = chunks[c] == 32 ? 0 : G_N_ELEMENTS(lengths) - 1; i < G_N_ELEMENTS(lengths);
             i++)
            check_cut(&w, lengths[i]);
        check_random_cuts(&w);
        check_batch(&w);
        check_fork(&w);
        check_threads(&w);
        world_close(&w);
    }
}

/* The same model in f64 on the oracle: the fast path is near it, with weights of both formats. */
static void test_accuracy(gconstpointer data)
{
    gboolean rounds = g_str_has_prefix(data, "amx"); /* activations, with bf16 weights */
    ModelConfig config;
    Ops ops;

    if (!table_of(data, &ops)) {
        g_test_skip("this machine cannot run it");
        return;
    }
    config_of(&config, 32);
    for (int format = WEIGHT_REAL; format <= WEIGHT_BF16; format++) {
        World w;
        g_autoptr(GError) error = NULL;
        g_autoptr(Model) exact = lab_random_model(&ops_ref_f64, &config, WEIGHT_REAL, 7);
        g_autoptr(Model) fast = lab_random_model(&ops, &config, (WeightFormat)format, 7);
        g_autoptr(Acts) exact_acts = acts_new(exact, TOKENS, ACTS_KEEP_NOTHING, &error);
        g_autoptr(Acts) fast_acts = acts_new(fast, TOKENS, ACTS_KEEP_NOTHING, &error);
        g_autoptr(LabSeq) a = lab_seq_new(exact, TOKENS), b = lab_seq_new(fast, TOKENS);
        void *want, *got;

        for (int t = 0; t < TOKENS; t++)
            w.ids[t] = (t * 31 + t * t / 7) % (VOCAB - 4);
        want = lab_run(a, exact_acts, w.ids, 300);
        got = lab_run(b, fast_acts, w.ids, 300);
        g_test_message("%s, format %d: off by %.2g", (const char *)data, format,
                       lab_distance(fast, got, exact, want, 300 * VOCAB));
        g_assert_cmpfloat(lab_distance(fast, got, exact, want, 300 * VOCAB), <,
                          rounds && format == WEIGHT_BF16 ? 2e-2 : 2e-5);
        free(want);
        free(got);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (guint i = 0; i < G_N_ELEMENTS(isas); i++) {
        g_autofree char *bits = g_strdup_printf("/numerics/a_row_has_the_same_bits/%s", isas[i]);
        g_autofree char *near = g_strdup_printf("/numerics/near_the_oracle/%s", isas[i]);

        g_test_add_data_func(bits, isas[i], test_bits);
        g_test_add_data_func(near, isas[i], test_accuracy);
    }
    return g_test_run();
}
