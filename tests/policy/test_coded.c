/*
 * Checkpoints of codes: what is read back is what was packed, through the whole model.
 */
#include "tests/policy/model_lab.h"

#include "base/tree.h"
#include "kernels/quant.h"
#include "policy/coded.h"
#include "policy/init.h"
#include "policy/trainer.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#define TOKENS 9

static const WeightFormat formats[] = {WEIGHT_INT8, WEIGHT_FP8, WEIGHT_INT4};

typedef struct {
    char *top, *plain, *coded[G_N_ELEMENTS(formats)];
} Dirs;

/* A model with matrices that are no whole groups, and its three checkpoints of codes. */
static void dirs_make(Dirs *d, gconstpointer unused)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Weights) weights = NULL;
    ModelConfig config;

    (void)unused;
    g_assert_true(init_preset("tiny", &config, &error));
    config.ffn = 37;
    g_assert_true(model_config_check(&config, &error));
    d->top = g_dir_make_tmp("assay-coded-XXXXXX", NULL);
    d->plain = g_build_filename(d->top, "plain", NULL);
    g_assert_true(
        init_checkpoint(&config, 3, TENSOR_BF16, SAFETENSORS_SHARD_BYTES, d->plain, &error));
    weights = weights_load(d->plain, TENSOR_F32, &error);
    g_assert_no_error(error);
    for (guint f = 0; f < G_N_ELEMENTS(formats); f++) {
        d->coded[f] = g_build_filename(d->top, weight_format_name(formats[f]), NULL);
        g_assert_true(coded_save(weights, d->coded[f], formats[f], &error));
    }
}

static void dirs_clear(Dirs *d, gconstpointer unused)
{
    (void)unused;
    g_assert_true(tree_remove(AT_FDCWD, d->top, NULL));
    for (guint f = 0; f < G_N_ELEMENTS(formats); f++)
        g_free(d->coded[f]);
    g_free(d->plain);
    g_free(d->top);
}

/* Logits of a few tokens, as they lie in memory. */
static GBytes *logits_of(const Ops *ops, const char *dir, WeightFormat format)
{
    static const int ids[TOKENS] = {3, 1, 4, 1, 5, 9, 2, 6, 5};
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = model_load(ops, dir, format, 4, &error);
    g_autoptr(LabSeq) seq = NULL;
    g_autoptr(Acts) acts = NULL;

    g_assert_no_error(error);
    seq = lab_seq_new(model, TOKENS);
    acts = acts_new(model, TOKENS, ACTS_KEEP_NOTHING, &error);
    g_assert_no_error(error);
    return g_bytes_new_take(lab_run(seq, acts, ids, TOKENS),
                            (gsize)TOKENS * model->config.vocab * sizeof(float));
}

static void packed_from_file_or_from_weights_is_the_same(Dirs *d, gconstpointer unused)
{
    (void)unused;
    for (guint f = 0; f < G_N_ELEMENTS(formats); f++) {
        g_autoptr(GBytes) from_weights = logits_of(ops_cpu(), d->plain, formats[f]);
        g_autoptr(GBytes) from_file = logits_of(ops_cpu(), d->coded[f], formats[f]);
        g_autoptr(GBytes) exact = logits_of(ops_cpu(), d->plain, WEIGHT_REAL);

        g_assert_true(g_bytes_equal(from_weights, from_file));
        g_assert_false(g_bytes_equal(from_weights, exact));
    }
}

/* But for tiles: they round activations beside bf16, and not beside codes. */
static void the_bf16_model_of_the_codes_says_the_same(Dirs *d, gconstpointer unused)
{
    Ops plain_c;

    (void)unused;
    g_assert_true(ops_cpu_table("plain", &plain_c));
    for (guint f = 0; f < G_N_ELEMENTS(formats); f++) {
        g_autoptr(GBytes) codes = logits_of(&plain_c, d->coded[f], formats[f]);
        g_autoptr(GBytes) plain = logits_of(&plain_c, d->coded[f], WEIGHT_BF16);

        g_assert_true(g_bytes_equal(codes, plain));
    }
}

static void values_are_near_and_small_formats_are_small(Dirs *d, gconstpointer unused)
{
    static const double near[] = {0.01, 0.05, 0.12};
    gsize before = G_MAXSIZE;

    (void)unused;
    for (guint f = 0; f < G_N_ELEMENTS(formats); f++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Weights) exact = weights_load(d->plain, TENSOR_F32, &error),
                           coded = weights_load(d->coded[f], TENSOR_F32, &error);
        const float *x = weights_tensor(exact, 1, SLOT_W2, 1),
                    *y = weights_tensor(coded, 1, SLOT_W2, 1);
        guint number = tensors_index(weights_config(exact), 1, SLOT_W2, 1);
        guint64 n = tensors_info(weights_config(exact), number).count;
        g_autoptr(Safetensors) st = safetensors_open(d->coded[f], &error);
        double off = 0, all = 0;

        g_assert_no_error(error);
        for (guint64 i = 0; i < n; i++) {
            off += (x[i] - y[i]) * (x[i] - y[i]);
            all += x[i] * x[i];
        }
        g_assert_cmpfloat(sqrt(off / all), >, 0);
        g_assert_cmpfloat(sqrt(off / all), <, near[f]);
        g_assert_cmpuint(safetensors_bytes(st), <, before);
        before = safetensors_bytes(st);
    }
}

static void what_is_not_finite_is_named(Dirs *d, gconstpointer unused)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Weights) weights = weights_load(d->plain, TENSOR_F32, &error);
    g_autofree char *out = g_build_filename(d->top, "bad", NULL);

    (void)unused;
    ((float *)weights_tensor(weights, 2, SLOT_W1, 0))[5] = NAN;
    g_assert_false(coded_save(weights, out, WEIGHT_INT4, &error));
    g_assert_nonnull(strstr(error->message, "model.layers.2.block_sparse_moe.experts.0.w1.weight"));
    g_assert_cmpint(g_access(out, F_OK), ==, -1);
}

static void codes_are_not_trained(Dirs *d, gconstpointer unused)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) model = model_load(ops_cpu(), d->plain, WEIGHT_INT8, 4, &error);

    (void)unused;
    g_assert_null(trainer_new(model, 16, ACTS_KEEP_ALL, &error));
    g_assert_nonnull(strstr(error->message, "cannot be trained"));
}

#define ADD(test) g_test_add("/coded/" #test, Dirs, NULL, dirs_make, test, dirs_clear)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    ADD(packed_from_file_or_from_weights_is_the_same);
    ADD(the_bf16_model_of_the_codes_says_the_same);
    ADD(values_are_near_and_small_formats_are_small);
    ADD(what_is_not_finite_is_named);
    ADD(codes_are_not_trained);
    return g_test_run();
}
