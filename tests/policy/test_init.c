/*
 * Random models: the generator, the statistics of each kind of tensor, independence of the way.
 */
#include "base/error.h"
#include "base/tree.h"
#include "policy/init.h"
#include "policy/verify.h"

#include <fcntl.h>
#include <math.h>
#include <string.h>

/* random123's known answers for philox4x32 of 10 rounds (tests/kat_vectors). */
static void philox_gives_the_published_vectors(void)
{
    static const struct {
        guint32 counter[4], key[2], out[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        guint32 out[4];
        philox4x32(rows[i].counter, rows[i].key, out);
        g_assert_cmpmem(out, sizeof out, rows[i].out, sizeof out);
    }
}

typedef struct Moments {
    double mean, std;
} Moments;

static Moments moments_of(const ModelConfig *config, guint32 layer, TensorSlot slot, guint64 first,
                          guint64 count)
{
    g_autofree double *values = g_new(double, count);
    double sum = 0, squares = 0;
    init_values(config, 7, tensors_index(config, layer, slot, 0), first, count, values);
    for (guint64 i = 0; i < count; i++) {
        sum += values[i];
        squares += values[i] * values[i];
    }
    double mean = sum / (double)count;
    return (Moments){mean, sqrt(squares / (double)count - mean * mean)};
}

static void expect_std(const ModelConfig *config, guint32 layer, TensorSlot slot, guint64 first,
                       guint64 count, double std)
{
    Moments m = moments_of(config, layer, slot, first, count);
    double tolerance = 4 * std / sqrt((double)count); /* four standard errors */
    g_assert_cmpfloat_with_epsilon(m.mean, 0, tolerance);
    g_assert_cmpfloat_with_epsilon(m.std, std, tolerance);
}

static void each_kind_of_tensor_has_its_spread(void)
{
    ModelConfig c;
    g_assert_true(init_preset("t14", &c, NULL));
    double gain = pow(8.0 * c.layers, -0.25), square = sqrt(2.0 / (128 + 128));
    double kv = sqrt(2.0 / (128 + 32));
    guint64 head = 3 * 32 * 128, part = 32 * 128;        /* elements of one head's q, k, v rows */
    expect_std(&c, 0, SLOT_QKV, 2 * head, part, square); /* q, k, v of the third head */
    expect_std(&c, 0, SLOT_QKV, 2 * head + part, part, square);
    expect_std(&c, 0, SLOT_QKV, 2 * head + 2 * part, part, square * gain);
    expect_std(&c, 0, SLOT_OUTPUT_GATE, 0, 128 * 128, square);
    expect_std(&c, 0, SLOT_ATTN_OUT, 0, 128 * 128, square * gain);
    expect_std(&c, 7, SLOT_Q, 0, 128 * 128, square);
    expect_std(&c, 7, SLOT_K, 0, 32 * 128, kv);
    expect_std(&c, 7, SLOT_V, 0, 32 * 128, kv * gain);
    expect_std(&c, 7, SLOT_O, 0, 128 * 128, square * gain);
    expect_std(&c, 3, SLOT_ROUTER, 0, 32 * 128, kv);
    expect_std(&c, 3, SLOT_W1, 0, 128 * 128, square * gain);
    expect_std(&c, 3, SLOT_W3, 0, 128 * 128, square * gain);
    expect_std(&c, 3, SLOT_W2, 0, 128 * 128, square * gain);
    expect_std(&c, 0, SLOT_EMBED, 0, 4096 * 128, 0.02);
    expect_std(&c, 0, SLOT_HEAD, 0, 4096 * 128, sqrt(2.0 / (4096 + 128)));
    Moments norm = moments_of(&c, 2, SLOT_ATTN_NORM, 0, 128);
    g_assert_cmpfloat(norm.mean, ==, 1);
    g_assert_cmpfloat(norm.std, ==, 0);
}

static void a_value_does_not_depend_on_how_it_is_asked_for(void)
{
    ModelConfig config;
    g_assert_true(init_preset("tiny", &config, NULL));
    for (guint i = 0; i < tensors_count(&config); i++) {
        guint64 count = tensors_info(&config, i).count;
        g_autofree double *whole = g_new(double, count);
        init_values(&config, 42, i, 0, count, whole);
        for (guint64 first = 0; first < count; first += 7) {
            double part[7];
            guint64 n = MIN(count - first, 7);
            init_values(&config, 42, i, first, n, part);
            g_assert_cmpint(memcmp(part, whole + first, n * sizeof *part), ==, 0);
        }
    }
}

static void padded_rows_are_zero_and_the_others_are_not(void)
{
    ModelConfig config;
    g_assert_true(init_preset("tiny", &config, NULL));
    config.vocab_valid = 20;
    double values[29 * 16];
    const TensorSlot slots[] = {SLOT_EMBED, SLOT_HEAD};
    for (gsize s = 0; s < G_N_ELEMENTS(slots); s++) {
        init_values(&config, 1, tensors_index(&config, 0, slots[s], 0), 0, 29 * 16, values);
        for (int i = 0; i < 29 * 16; i++) {
            g_assert_true((values[i] != 0) == (i < 20 * 16));
            g_assert_true(i < 20 * 16 || !signbit(values[i]));
        }
    }
}

static char *scratch_new(void)
{
    char *dir = g_dir_make_tmp("assay-init-XXXXXX", NULL);
    g_assert_nonnull(dir);
    return dir;
}

static void scratch_end(char **dir)
{
    g_assert_true(tree_remove(AT_FDCWD, *dir, NULL));
    g_free(*dir);
}
#define AUTO_SCRATCH __attribute__((cleanup(scratch_end))) char *

static void expect_same(const Weights *a, const Weights *b)
{
    g_assert_cmpuint(weights_bytes(a), ==, weights_bytes(b));
    g_assert_cmpint(memcmp(weights_at(a, 0), weights_at(b, 0), weights_bytes(a)), ==, 0);
}

static void the_model_is_the_same_in_memory_in_one_file_and_in_shards(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    ModelConfig config;
    g_assert_true(init_preset("tiny", &config, NULL));
    g_autofree char *one = g_build_filename(scratch, "one", NULL);
    g_autofree char *many = g_build_filename(scratch, "many", NULL);
    g_assert_true(init_checkpoint(&config, 5, TENSOR_BF16, SAFETENSORS_SHARD_BYTES, one, NULL));
    g_assert_true(init_checkpoint(&config, 5, TENSOR_BF16, 10000, many, NULL));
    g_autoptr(Weights) made = init_weights(&config, 5, TENSOR_BF16, NULL);
    g_autoptr(Weights) a = weights_load(one, TENSOR_BF16, NULL);
    g_autoptr(Weights) b = weights_load(many, TENSOR_BF16, NULL);
    g_autoptr(Weights) other = init_weights(&config, 6, TENSOR_BF16, NULL);
    expect_same(a, b);
    expect_same(a, made);
    g_assert_cmpint(memcmp(weights_at(a, 0), weights_at(other, 0), weights_bytes(a)), !=, 0);

    g_auto(VerifyReport) first = {0}, second = {0};
    g_assert_true(verify_checkpoint(one, &first, NULL));
    g_assert_true(verify_checkpoint(many, &second, NULL));
    g_assert_cmpstr(first.digest, ==, second.digest);
}

/* A committed digest: a change of generator, order or gain must be meant. */
static void a_seed_gives_the_model_it_always_gave(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    ModelConfig config;
    g_assert_true(init_preset("tiny", &config, NULL));
    g_autofree char *dir = g_build_filename(scratch, "m", NULL);
    g_assert_true(init_checkpoint(&config, 1, TENSOR_F32, SAFETENSORS_SHARD_BYTES, dir, NULL));
    g_auto(VerifyReport) report = {0};
    g_assert_true(verify_checkpoint(dir, &report, NULL));
    g_assert_cmpuint(report.params, ==, 39824);
    g_assert_cmpuint(report.not_finite, ==, 0);
    g_assert_cmpstr(report.digest, ==,
                    "8817de7516e4ed7df29d7a8f729739a553b30392ed62923962feaf73a5b0ffcf");
}

static void an_unknown_preset_is_answered_with_the_known_ones(void)
{
    ModelConfig config;
    g_autoptr(GError) error = NULL;
    g_assert_false(init_preset("gpt", &config, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
    g_assert_nonnull(strstr(error->message, "tiny, t14, t57, s2b, m1"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define T(name) g_test_add_func("/init/" #name, name)
    T(philox_gives_the_published_vectors);
    T(each_kind_of_tensor_has_its_spread);
    T(a_value_does_not_depend_on_how_it_is_asked_for);
    T(padded_rows_are_zero_and_the_others_are_not);
    T(the_model_is_the_same_in_memory_in_one_file_and_in_shards);
    T(a_seed_gives_the_model_it_always_gave);
    T(an_unknown_preset_is_answered_with_the_known_ones);
    return g_test_run();
}
