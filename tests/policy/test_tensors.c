/*
 * The table of tensors against the published checkpoint; weights; memory plans.
 */
#include "base/digest.h"
#include "base/error.h"
#include "base/tree.h"
#include "policy/init.h"
#include "policy/plan.h"
#include "policy/verify.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

/* Of MiniMaxAI/MiniMax-M1-40k's index: its names sorted, one a line; the same with the shapes. */
#define M1_NAMES  "3d20d6112af29f8b2de4b84dccffc240d0824fa487e280b17132c645f970c9a0"
#define M1_SHAPES "e431626182323193ff287913c316a3d145acaefcd4ed57aa973d40676d7cb5ed"

static char *scratch_new(void)
{
    char *dir = g_dir_make_tmp("assay-tensors-XXXXXX", NULL);
    g_assert_nonnull(dir);
    return dir;
}

static void scratch_end(char **dir)
{
    g_assert_true(tree_remove(AT_FDCWD, *dir, NULL));
    g_free(*dir);
}
#define AUTO_SCRATCH __attribute__((cleanup(scratch_end))) char *

static ModelConfig preset(const char *name)
{
    ModelConfig config;
    g_assert_true(init_preset(name, &config, NULL));
    return config;
}

static int compare_words(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static char *digest_lines(GPtrArray *lines)
{
    g_autoptr(GString) text = g_string_new(NULL);
    g_ptr_array_sort(lines, compare_words);
    for (guint i = 0; i < lines->len; i++)
        g_string_append_printf(text, "%s\n", (char *)lines->pdata[i]);
    return digest_bytes(text->str, text->len);
}

static void names_and_shapes_are_the_published_ones(void)
{
    ModelConfig m1 = preset("m1");
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GPtrArray) shapes = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GArray) plan = tensors_plan(&m1, TENSOR_BF16);
    guint64 bytes = 0;
    for (guint i = 0; i < plan->len; i++) {
        const SafeTensor *tensor = &g_array_index(plan, SafeTensor, i);
        g_autofree char *shape = safetensor_shape_text(tensor);
        g_ptr_array_add(names, g_strdup(tensor->name));
        g_ptr_array_add(shapes, g_strdup_printf("%s %s", tensor->name, shape));
        bytes += tensor->count * tensor_dtype_bytes(tensor->dtype);
    }
    g_autofree char *names_digest = digest_lines(names);
    g_autofree char *shapes_digest = digest_lines(shapes);
    g_assert_cmpuint(names->len, ==, 8243);
    g_assert_cmpstr(names_digest, ==, M1_NAMES);
    g_assert_cmpstr(shapes_digest, ==, M1_SHAPES);
    g_assert_cmpuint(bytes, ==, 912210767872); /* the index's total_size: routers in F32 */
}

static void the_published_index_has_exactly_our_names(void)
{
    const char *dir = g_getenv("ASSAY_M1_DATA");
    if (dir == NULL) {
        g_test_skip("ASSAY_M1_DATA does not name the published index");
        return;
    }
    ModelConfig config;
    g_autoptr(GError) error = NULL;
    g_assert_true(model_config_read(dir, &config, NULL));
    g_autoptr(GHashTable) index = safetensors_read_index(dir, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(g_hash_table_size(index), ==, 8243);
    tensors_check_names(&config, index, &error);
    g_assert_no_error(error);
    g_hash_table_remove(index, "model.layers.7.self_attn.q_proj.weight");
    g_hash_table_insert(index, g_strdup("model.mtp.weight"), g_strdup("x"));
    g_assert_false(tensors_check_names(&config, index, &error));
    g_assert_nonnull(strstr(error->message, "1 missing (model.layers.7.self_attn.q_proj.weight)"));
    g_assert_nonnull(strstr(error->message, "1 extra (model.mtp.weight)"));
}

static void parameters_are_counted_as_the_paper_does(void)
{
    static const struct {
        const char *name;
        double total; /* as the goals state it, rounded */
    } rows[] = {{"t14", 14e6}, {"t57", 57e6}, {"s2b", 1.76e9}};
    ModelConfig m1 = preset("m1"), tiny = preset("tiny");
    g_assert_cmpuint(tensors_params(&m1), ==, 456089655296);
    g_assert_cmpuint(tensors_params_active(&m1), ==, 45943357440);
    g_assert_cmpuint(tensors_params(&tiny), ==, 39824);
    g_assert_cmpuint(tensors_count(&tiny), ==, 155);
    g_assert_cmpuint(tensors_params_class(&m1, CLASS_LIGHTNING), ==, 70 * 251658240ull);
    g_assert_cmpuint(tensors_params_class(&m1, CLASS_SOFTMAX), ==, 10 * 113246208ull);
    g_assert_cmpuint(tensors_params_class(&m1, CLASS_EXPERT), ==, 80 * 32 * 169869312ull);
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        ModelConfig config = preset(rows[i].name);
        g_assert_cmpfloat_with_epsilon((double)tensors_params(&config) / rows[i].total, 1, 0.03);
    }
}

static void a_number_leads_to_its_tensor_and_back(void)
{
    ModelConfig tiny = preset("tiny");
    static const struct {
        guint index;
        const char *name;
    } rows[] = {{0, "model.embed_tokens.weight"},
                {1, "model.layers.0.input_layernorm.weight"},
                {2, "model.layers.0.self_attn.qkv_proj.weight"},
                {3, "model.layers.0.self_attn.output_gate.weight"},
                {4, "model.layers.0.self_attn.norm.weight"},
                {5, "model.layers.0.self_attn.out_proj.weight"},
                {6, "model.layers.0.post_attention_layernorm.weight"},
                {7, "model.layers.0.block_sparse_moe.gate.weight"},
                {8, "model.layers.0.block_sparse_moe.experts.0.w1.weight"},
                {9, "model.layers.0.block_sparse_moe.experts.0.w3.weight"},
                {10, "model.layers.0.block_sparse_moe.experts.0.w2.weight"},
                {11, "model.layers.0.block_sparse_moe.experts.1.w1.weight"},
                {20, "model.layers.1.input_layernorm.weight"},
                {135, "model.layers.7.self_attn.q_proj.weight"},
                {136, "model.layers.7.self_attn.k_proj.weight"},
                {137, "model.layers.7.self_attn.v_proj.weight"},
                {138, "model.layers.7.self_attn.o_proj.weight"},
                {152, "model.layers.7.block_sparse_moe.experts.3.w2.weight"},
                {153, "model.norm.weight"},
                {154, "lm_head.weight"}};
    char name[TENSOR_NAME_MAX];
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        TensorInfo info = tensors_info(&tiny, rows[i].index);
        tensors_name(&info, name);
        g_assert_cmpstr(name, ==, rows[i].name);
    }
    for (guint i = 0; i < tensors_count(&tiny); i++) {
        TensorInfo info = tensors_info(&tiny, i);
        g_assert_cmpuint(tensors_index(&tiny, info.layer, info.slot, info.expert), ==, i);
    }
}

/* The golden model's value of flat element j of tensor t (its number from 0). */
static double golden_value(const TensorInfo *info, guint t, guint64 j)
{
    double x = sin(0.37 * (t + 1) + 1.7 * (double)j + 0.011 * (t + 1) * (double)(j * j % 97));
    return info->rank == 1 ? 1 + 0.1 * x : 0.3 * x;
}

static Weights *golden_weights(void)
{
    ModelConfig tiny = preset("tiny");
    Weights *w = weights_new(&tiny, TENSOR_F64, NULL);
    g_assert_nonnull(w);
    for (guint i = 0; i < tensors_count(&tiny); i++) {
        TensorInfo info = tensors_info(&tiny, i);
        for (guint64 j = 0; j < info.count; j++)
            ((double *)weights_at(w, i))[j] = golden_value(&info, i, j);
    }
    return w;
}

static void the_golden_models_weights_lie_where_they_should(void)
{
    g_autoptr(Weights) w = golden_weights();
    const double *embed = weights_tensor(w, 0, SLOT_EMBED, 0);
    const double *qkv = weights_tensor(w, 0, SLOT_QKV, 0);
    const double *head = weights_tensor(w, 0, SLOT_HEAD, 0);
    const double *w2 = weights_tensor(w, 7, SLOT_W2, 3);
    g_assert_cmpfloat_with_epsilon(embed[0], 0.10848463, 5e-9);
    g_assert_cmpfloat_with_epsilon(embed[3], -0.19650061, 5e-9);
    g_assert_cmpfloat_with_epsilon(qkv[5 * 16 + 3], -0.2358034479, 5e-11);
    g_assert_cmpfloat_with_epsilon(head[28 * 16 + 15], 0.0947235242, 5e-11);
    g_assert_cmpfloat_with_epsilon(w2[15 * 12 + 11], 0.1734122307, 5e-11);
}

static void weights_are_aligned_and_do_not_overlap(void)
{
    ModelConfig tiny = preset("tiny");
    g_autoptr(Weights) w = weights_new(&tiny, TENSOR_F32, NULL);
    guint8 *end = weights_at(w, 0);
    for (guint i = 0; i < tensors_count(&tiny); i++) {
        guint8 *at = weights_at(w, i);
        g_assert_cmpuint(GPOINTER_TO_SIZE(at) % 256, ==, 0);
        g_assert_true(at >= end);
        end = at + tensors_info(&tiny, i).count * sizeof(float);
    }
    g_assert_true(end <= (guint8 *)weights_at(w, 0) + weights_bytes(w));
}

static void a_saved_model_loads_as_the_same_bits(void)
{
    static const TensorDtype dtypes[] = {TENSOR_F64, TENSOR_F32, TENSOR_BF16, TENSOR_F16};
    AUTO_SCRATCH scratch = scratch_new();
    g_autoptr(Weights) w = golden_weights();
    for (gsize i = 0; i < G_N_ELEMENTS(dtypes); i++) {
        g_autofree char *dir = g_strdup_printf("%s/%zu", scratch, i);
        g_autofree char *twice = g_strdup_printf("%s/%zu-again", scratch, i);
        g_autoptr(GError) error = NULL;
        weights_save(w, dir, dtypes[i], &error);
        g_assert_no_error(error);
        g_autoptr(Weights) read = weights_load(dir, TENSOR_F64, &error);
        g_assert_no_error(error);
        weights_save(read, twice, dtypes[i], &error);
        g_assert_no_error(error);
        g_auto(VerifyReport) one = {0}, two = {0};
        g_assert_true(verify_checkpoint(dir, &one, NULL));
        g_assert_true(verify_checkpoint(twice, &two, NULL));
        g_assert_cmpstr(one.digest, ==, two.digest);
        if (dtypes[i] == TENSOR_F64)
            g_assert_cmpint(memcmp(weights_at(w, 0), weights_at(read, 0), weights_bytes(w)), ==, 0);
    }
}

static void a_bf16_checkpoint_keeps_its_routers_in_f32(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    g_autoptr(Weights) w = golden_weights();
    g_autofree char *dir = g_build_filename(scratch, "m", NULL);
    g_assert_true(weights_save(w, dir, TENSOR_BF16, NULL));
    g_autoptr(Safetensors) st = safetensors_open(dir, NULL);
    for (guint i = 0; i < safetensors_count(st); i++) {
        const SafeTensor *tensor = safetensors_at(st, i);
        gboolean router =
            strstr(tensor->name, "gate.weight") != NULL && strstr(tensor->name, "moe") != NULL;
        g_assert_cmpuint(tensor->dtype, ==, router ? TENSOR_F32 : TENSOR_BF16);
    }
}

static void conversions_round_once_to_nearest_even(void)
{
    static const struct {
        double value;
        guint16 bf16;
    } rows[] = {
        {0, 0},
        {-0.0, 0x8000},
        {1, 0x3f80},
        {1 + 1.0 / 256, 0x3f80},                      /* a tie: down to even */
        {1 + 3.0 / 256, 0x3f82},                      /* a tie: up to even */
        {1 + 1.0 / 256 + 1.0 / (1ull << 40), 0x3f81}, /* no tie, though F32 would make it one */
        {1 + 3.0 / 256 - 1.0 / (1ull << 40), 0x3f81},
        {-(1 + 1.0 / 256 + 1.0 / (1ull << 40)), 0xbf81},
        {3.3961775292304601e38, 0x7f80}, /* above the largest: infinity */
        {3.38953138925153547590470800371487866880e38, 0x7f7f},
        {INFINITY, 0x7f80},
        {-INFINITY, 0xff80},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        guint16 got;
        weights_convert(&got, TENSOR_BF16, &rows[i].value, TENSOR_F64, 1);
        g_assert_cmphex(got, ==, rows[i].bf16);
    }
    double nan = NAN, back;
    guint16 narrow;
    weights_convert(&narrow, TENSOR_BF16, &nan, TENSOR_F64, 1);
    weights_convert(&back, TENSOR_F64, &narrow, TENSOR_BF16, 1);
    g_assert_true(isnan(back));
    for (guint bits = 0; bits < 0x10000; bits++) { /* every number there and back, both types */
        static const TensorDtype halves[] = {TENSOR_BF16, TENSOR_F16};
        for (int k = 0; k < 2; k++) {
            guint16 in = (guint16)bits, out;
            double wide;
            weights_convert(&wide, TENSOR_F64, &in, halves[k], 1);
            weights_convert(&out, halves[k], &wide, TENSOR_F64, 1);
            g_assert_true(isnan(wide) || in == out);
        }
    }
}

/* Writes the golden checkpoint with one line of its config changed. */
static void expect_load_refused(const char *key, json_t *value, const char *says)
{
    AUTO_SCRATCH scratch = scratch_new();
    g_autoptr(Weights) w = golden_weights();
    g_autofree char *dir = g_build_filename(scratch, "m", NULL);
    g_autofree char *path = g_build_filename(dir, "config.json", NULL);
    g_assert_true(weights_save(w, dir, TENSOR_F32, NULL));
    g_autoptr(json_t) object = model_config_json(weights_config(w));
    json_object_set_new(object, key, value);
    g_autofree char *text = json_print(object);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    g_autoptr(GError) error = NULL;
    g_autoptr(Weights) read = weights_load(dir, TENSOR_F32, &error);
    g_assert_null(read);
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
    if (strstr(error->message, says) == NULL)
        g_error("'%s' does not say '%s'", error->message, says);
}

static void a_config_that_contradicts_the_tensors_is_refused(void)
{
    expect_load_refused("num_local_experts", json_integer(5),
                        "24 missing (model.layers.0.block_sparse_moe.experts.4.w1.weight, ");
    expect_load_refused("num_local_experts", json_integer(3), "24 extra (");
    expect_load_refused("vocab_size", json_integer(30),
                        "2 of another shape (model.embed_tokens.weight: [29, 16], the config says "
                        "[30, 16], lm_head.weight: ");
    expect_load_refused("attn_type_list", json_pack("[i,i,i,i,i,i,i,i]", 0, 0, 0, 0, 0, 0, 0, 0),
                        "4 missing (model.layers.7.self_attn.qkv_proj.weight");
    expect_load_refused("num_hidden_layers", json_integer(4), "attn_type_list: has 8 entries");
    expect_load_refused("intermediate_size", json_integer(1 << 20), "96 of another shape");
}

static void weights_beyond_the_machines_memory_are_refused_with_the_numbers(void)
{
    ModelConfig m1 = preset("m1");
    g_autoptr(GError) error = NULL;
    g_autoptr(Weights) w = weights_new(&m1, TENSOR_F64, &error);
    g_assert_null(w);
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT);
    g_assert_nonnull(strstr(error->message, "in F64 need 3398"));
}

static void verify_names_what_is_not_finite_and_what_fills_the_padding(void)
{
    AUTO_SCRATCH scratch = scratch_new();
    ModelConfig config = preset("tiny");
    config.vocab_valid = 25;
    g_autoptr(Weights) w = init_weights(&config, 3, TENSOR_F32, NULL);
    ((float *)weights_tensor(w, 4, SLOT_W1, 2))[5] = NAN;
    ((float *)weights_tensor(w, 5, SLOT_QKV, 0))[0] = INFINITY;
    ((float *)weights_tensor(w, 0, SLOT_HEAD, 0))[25 * 16] = 1;
    g_autofree char *dir = g_build_filename(scratch, "m", NULL);
    g_assert_true(weights_save(w, dir, TENSOR_BF16, NULL));
    g_auto(VerifyReport) report = {0};
    g_assert_true(verify_checkpoint(dir, &report, NULL));
    g_assert_cmpuint(report.not_finite, ==, 2);
    g_assert_cmpuint(report.padding_filled, ==, 1);
    g_assert_cmpstr(report.first_bad, ==, "model.layers.4.block_sparse_moe.experts.2.w1.weight");
}

static void a_plan_for_eight_cards_says_what_fits(void)
{
    ModelConfig m1 = preset("m1");
    static const struct {
        PlanFormat format;
        double weights_gb; /* of all ranks */
    } rows[] = {{PLAN_BF16, 912}, {PLAN_FP8, 459}, {PLAN_INT4, 268}};
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        MemoryPlan plan;
        const PlanAsk ask = {rows[i].format, 16384, 64, {.tp = 8}};
        g_assert_true(plan_memory(&m1, &ask, &plan, NULL));
        g_assert_cmpfloat_with_epsilon((double)plan.weights_sum * 8 / 1e9, rows[i].weights_gb, 1);
        g_assert_cmpuint(plan.state * 8, ==, 64 * 293601280ull);
        g_assert_cmpuint(plan.open * 8, ==, 64 * 146800640ull);
        g_assert_cmpuint(plan.kv * 8, ==, 64 * 16384 * 40960ull);
        g_assert_cmpuint(plan.total, ==, plan.weights_sum + plan.state + plan.open + plan.kv);
        g_assert_true(plan.total < 141000000000);
    }
}

static void a_plan_of_one_rank_is_the_checkpoint_and_the_caches(void)
{
    ModelConfig m1 = preset("m1");
    MemoryPlan one, many, page;
    const PlanAsk alone = {PLAN_BF16, 1 << 20, 1, {0}};
    const PlanAsk spread = {PLAN_BF16, 1 << 20, 1, {.tp = 16}}, first = {PLAN_BF16, 1, 1, {0}};
    g_assert_true(plan_memory(&m1, &alone, &one, NULL));
    g_assert_cmpuint(one.weights_sum, ==, 912210767872);
    g_assert_cmpuint(one.kv, ==, 40ull << 30);
    g_assert_true(plan_memory(&m1, &spread, &many, NULL));
    g_assert_cmpuint(many.kv, ==, (40ull << 30) / 8); /* 8 kv heads: one each, held twice */
    g_assert_true(plan_memory(&m1, &first, &page, NULL));
    g_assert_cmpuint(page.kv, ==, 64 * 40960); /* whole pages */
}

static void a_plan_deals_out_experts_and_sequences(void)
{
    ModelConfig m1 = preset("m1");
    MemoryPlan one, many;
    const PlanAsk alone = {PLAN_BF16, 4096, 64, {0}};
    const PlanAsk spread = {PLAN_BF16, 4096, 64, {.tp = 2, .ep = 4, .sp = 2}}; /* dp 2: 8 ranks */
    g_assert_true(plan_memory(&m1, &alone, &one, NULL));
    g_assert_true(plan_memory(&m1, &spread, &many, NULL));
    g_assert_cmpuint(many.weights[CLASS_EXPERT], ==, one.weights[CLASS_EXPERT] / 8);
    g_assert_cmpuint(many.weights[CLASS_LIGHTNING], ==, one.weights[CLASS_LIGHTNING] / 2);
    g_assert_cmpuint(many.weights[CLASS_ROUTER], ==, one.weights[CLASS_ROUTER]);
    g_assert_cmpuint(many.state, ==, one.state / 4);
    g_assert_cmpuint(many.kv, ==, one.kv / 4);
}

static void a_plan_that_cannot_be_is_refused_with_the_numbers(void)
{
    ModelConfig m1 = preset("m1");
    static const struct {
        PlanAsk ask;
        const char *says;
    } rows[] = {{{PLAN_BF16, 1, 1, {.tp = 7}}, "tp = 7 does not divide 64 heads"},
                {{PLAN_BF16, 1, 1, {.tp = 3}}, "tp = 3 does not divide 64 heads"},
                {{PLAN_BF16, 1, 1, {.ep = 5}}, "tp x ep = 5 does not divide 32 experts"},
                {{PLAN_BF16, 1, 1, {.ep = 4, .dp = 6}}, "ep = 4 does not divide 6 (sp x dp) ranks"},
                {{PLAN_BF16, 1, 1, {.sp = G_MAXUINT32}}, "sp = 4294967295: too many"},
                {{PLAN_BF16, G_MAXUINT64, 1, {0}}, "18446744073709551615"},
                {{PLAN_BF16, 1, G_MAXUINT32, {0}}, "4294967295"}};
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        MemoryPlan plan;
        g_autoptr(GError) error = NULL;
        g_assert_false(plan_memory(&m1, &rows[i].ask, &plan, &error));
        g_assert_nonnull(strstr(error->message, rows[i].says));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define T(name) g_test_add_func("/tensors/" #name, name)
    T(names_and_shapes_are_the_published_ones);
    T(the_published_index_has_exactly_our_names);
    T(parameters_are_counted_as_the_paper_does);
    T(a_number_leads_to_its_tensor_and_back);
    T(the_golden_models_weights_lie_where_they_should);
    T(weights_are_aligned_and_do_not_overlap);
    T(a_saved_model_loads_as_the_same_bits);
    T(a_bf16_checkpoint_keeps_its_routers_in_f32);
    T(conversions_round_once_to_nearest_even);
    T(a_config_that_contradicts_the_tensors_is_refused);
    T(weights_beyond_the_machines_memory_are_refused_with_the_numbers);
    T(verify_names_what_is_not_finite_and_what_fills_the_padding);
    T(a_plan_for_eight_cards_says_what_fits);
    T(a_plan_of_one_rank_is_the_checkpoint_and_the_caches);
    T(a_plan_deals_out_experts_and_sequences);
    T(a_plan_that_cannot_be_is_refused_with_the_numbers);
    return g_test_run();
}
