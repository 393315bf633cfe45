/*
 * config.json: both spellings, and what is refused by name.
 */
#include "base/error.h"
#include "policy/config.h"
#include "policy/init.h"

#include <string.h>

static json_t *tiny_json(void)
{
    ModelConfig config;
    g_assert_true(init_preset("tiny", &config, NULL));
    return model_config_json(&config);
}

static gboolean parse(const json_t *object, ModelConfig *config, GError **error)
{
    g_autofree char *text = json_print(object);
    return model_config_parse(text, strlen(text), config, error);
}

static void expect_refused(const json_t *object, const char *const *words)
{
    ModelConfig config;
    g_autoptr(GError) error = NULL;
    g_assert_false(parse(object, &config, &error));
    g_assert_nonnull(error);
    for (; *words != NULL; words++)
        if (strstr(error->message, *words) == NULL)
            g_error("'%s' does not say '%s'", error->message, *words);
}

static void what_is_written_reads_back_the_same(void)
{
    for (const char *const *name = init_presets(); *name != NULL; name++) {
        ModelConfig config, again;
        g_assert_true(init_preset(*name, &config, NULL));
        config.norm_eps = 1.0 / 30; /* needs all its digits */
        g_autoptr(json_t) object = model_config_json(&config);
        g_assert_true(parse(object, &again, NULL));
        g_assert_cmpmem(&config, sizeof config, &again, sizeof again);
    }
}

static void both_spellings_mean_the_same(void)
{
    static const char *const renamed[][2] = {
        {"layernorm_linear_attention_alpha", "linear_attn_alpha_factor"},
        {"layernorm_linear_attention_beta", "linear_attn_beta_factor"},
        {"layernorm_full_attention_alpha", "full_attn_alpha_factor"},
        {"layernorm_full_attention_beta", "full_attn_beta_factor"},
        {"layernorm_mlp_alpha", "mlp_alpha_factor"},
        {"layernorm_mlp_beta", "mlp_beta_factor"},
    };
    g_autoptr(json_t) object = tiny_json();
    ModelConfig one, two;
    json_object_set_new(object, "layernorm_full_attention_beta", json_real(0.5));
    g_assert_true(parse(object, &one, NULL));
    for (gsize i = 0; i < G_N_ELEMENTS(renamed); i++) {
        json_object_set(object, renamed[i][1], json_object_get(object, renamed[i][0]));
        json_object_del(object, renamed[i][0]);
    }
    json_t *types = json_array();
    for (guint l = 0; l < one.layers; l++)
        json_array_append_new(
            types,
            json_string(one.kinds[l] == ATTENTION_SOFTMAX ? "full_attention" : "linear_attention"));
    json_object_set_new(object, "layer_types", types);
    json_object_set_new(object, "architectures", json_pack("[s]", "MiniMaxForCausalLM"));
    json_object_set_new(object, "block_size", json_integer(256));
    json_object_del(object, "attn_type_list");
    json_object_del(object, "postnorm");
    json_object_del(object, "shared_intermediate_size");
    json_object_del(object, "sliding_window");
    g_autoptr(GError) error = NULL;
    parse(object, &two, &error);
    g_assert_no_error(error);
    g_assert_cmpmem(&one, sizeof one, &two, sizeof two);
    g_assert_cmpfloat(two.beta_full, ==, 0.5);

    json_object_set_new(object, "attn_type_list", json_array());
    expect_refused(object, (const char *[]){"attn_type_list", "unknown", NULL});
}

static void every_key_that_changes_numbers_is_required(void)
{
    static const char *const optional[] = {
        "model_type",          "lightning_norm_eps", "vocab_valid",  "attention_dropout",
        "router_jitter_noise", "attention_bias",     "rope_scaling", NULL};
    g_autoptr(json_t) whole = tiny_json();
    const char *key;
    json_t *value;
    guint required = 0;
    json_object_foreach(whole, key, value)
    {
        g_autoptr(json_t) less = json_copy(whole);
        ModelConfig config;
        json_object_del(less, key);
        if (g_strv_contains(optional, key)) {
            g_assert_true(parse(less, &config, NULL));
            continue;
        }
        expect_refused(less, (const char *[]){key, "missing", NULL});
        required++;
    }
    g_assert_cmpuint(required, ==, 26);
}

static void all_missing_and_all_unknown_keys_are_named_at_once(void)
{
    g_autoptr(json_t) object = tiny_json();
    json_object_del(object, "head_dim");
    json_object_del(object, "rope_theta");
    expect_refused(object, (const char *[]){"head_dim", "rope_theta", "missing", NULL});
    g_autoptr(json_t) more = tiny_json();
    json_object_set_new(more, "num_mtp_modules", json_integer(1));
    json_object_set_new(more, "quantization_config", json_object());
    json_object_set_new(more, "linear_attn_alpha_factor", json_real(1));
    expect_refused(more, (const char *[]){"num_mtp_modules", "quantization_config",
                                          "linear_attn_alpha_factor", "unknown", NULL});
}

static void what_is_not_supported_is_refused_with_its_value(void)
{
    static const struct {
        const char *key, *value, *says;
    } rows[] = {
        {"shared_intermediate_size", "9216", "9216 is not supported, only 0"},
        {"tie_word_embeddings", "true", "true is not supported"},
        {"sliding_window", "4096", "4096 is not supported, only null"},
        {"postnorm", "false", "false is not supported"},
        {"hidden_act", "\"gelu\"", "gelu"},
        {"attention_dropout", "0.1", "0.1"},
        {"rope_scaling", "{\"type\":\"yarn\"}", "yarn"},
        {"architectures", "[\"LlamaForCausalLM\"]", "MiniMaxM1ForCausalLM"},
        {"architectures", "\"MiniMaxM1ForCausalLM\"", "names none"},
        {"num_hidden_layers", "0", "0 is not between 1 and 1024"},
        {"num_hidden_layers", "1000000000000", "is not between"},
        {"num_hidden_layers", "8.0", "must be an integer"},
        {"num_hidden_layers", "9", "8 entries for 9 layers"},
        {"hidden_size", "-1", "is not between"},
        {"hidden_size", "\"16\"", "must be an integer"},
        {"vocab_size", "true", "must be an integer"},
        {"num_key_value_heads", "3", "3 does not divide num_attention_heads 4"},
        {"rotary_dim", "10", "10 does not fit head_dim 8"},
        {"rotary_dim", "3", "3 does not fit"},
        {"head_dim", "7", "head_dim 7"},
        {"num_experts_per_tok", "5", "5 is more than num_local_experts 4"},
        {"vocab_valid", "30", "30 is more than vocab_size 29"},
        {"rms_norm_eps", "0", "is not between"},
        {"rope_theta", "null", "must be a number"},
        {"layernorm_mlp_alpha", "-1", "is not between"},
        {"attn_type_list", "[0,0,0,0,0,0,0,2]", "entry 7"},
        {"attn_type_list", "[0,0,0,0,0,0,0,true]", "entry 7"},
        {"attn_type_list", "[0,0,0,0,0,0,0]", "7 entries for 8 layers"},
        {"attn_type_list", "{}", "attn_type_list"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(json_t) object = tiny_json();
        json_object_set_new(object, rows[i].key, json_loads(rows[i].value, JSON_DECODE_ANY, NULL));
        expect_refused(object, (const char *[]){rows[i].says, NULL});
    }
}

static void layers_times_experts_is_bounded(void)
{
    g_autoptr(json_t) object = tiny_json();
    json_t *kinds = json_array();
    for (int l = 0; l < 1024; l++)
        json_array_append_new(kinds, json_integer(0));
    json_object_set_new(object, "attn_type_list", kinds);
    json_object_set_new(object, "num_hidden_layers", json_integer(1024));
    json_object_set_new(object, "num_local_experts", json_integer(1024));
    expect_refused(object, (const char *[]){"3152899 tensors, more than 65536", NULL});
}

static void broken_text_is_refused_with_its_place(void)
{
    static const char *const texts[] = {
        "", "{", "[]", "7", "{\"a\":1,\"a\":1}", "{\"head_dim\":1e999}"};
    for (gsize i = 0; i < G_N_ELEMENTS(texts); i++) {
        ModelConfig config = {.hidden = 77};
        g_autoptr(GError) error = NULL;
        g_assert_false(model_config_parse(texts[i], strlen(texts[i]), &config, &error));
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
        g_assert_cmpuint(config.hidden, ==, 77); /* untouched */
    }
}

static void sizes_follow_from_the_config(void)
{
    ModelConfig m1, tiny;
    g_assert_true(init_preset("m1", &m1, NULL));
    g_assert_cmpuint(m1.attn_dim, ==, 8192);
    g_assert_cmpuint(m1.kv_dim, ==, 1024);
    g_assert_cmpuint(m1.qkv_dim, ==, 24576);
    g_assert_cmpuint(m1.chunk, ==, 64);
    g_assert_cmpuint(m1.lightning_layers, ==, 70);
    g_assert_cmpuint(m1.softmax_layers, ==, 10);
    g_assert_cmpuint(m1.vocab_valid, ==, 200032); /* of the published vocabulary alone */
    g_assert_cmpfloat(m1.alpha_mlp, ==, 3.5565588200778455);
    g_assert_true(init_preset("tiny", &tiny, NULL));
    g_assert_cmpuint(tiny.chunk, ==, 32);
    g_assert_cmpuint(tiny.vocab_valid, ==, 29);
    g_assert_cmpfloat(tiny.alpha_full, ==, 2);
}

static void the_published_config_is_read(void)
{
    const char *dir = g_getenv("ASSAY_M1_DATA");
    if (dir == NULL) {
        g_test_skip("ASSAY_M1_DATA does not name the published config.json");
        return;
    }
    ModelConfig read, preset;
    g_autoptr(GError) error = NULL;
    model_config_read(dir, &read, &error);
    g_assert_no_error(error);
    g_assert_true(init_preset("m1", &preset, NULL));
    g_assert_cmpmem(&read, sizeof read, &preset, sizeof preset);
}

static void a_file_that_is_none_is_refused(void)
{
    ModelConfig config;
    g_autoptr(GError) error = NULL, missing = NULL;
    g_assert_false(model_config_read("/dev/zero", &config, &error)); /* and not read for ever */
    g_assert_nonnull(strstr(error->message, "/dev/zero: is not a regular file"));
    g_assert_false(model_config_read("/nowhere", &config, &missing));
    g_assert_error(missing, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define T(name) g_test_add_func("/config/" #name, name)
    T(what_is_written_reads_back_the_same);
    T(both_spellings_mean_the_same);
    T(every_key_that_changes_numbers_is_required);
    T(all_missing_and_all_unknown_keys_are_named_at_once);
    T(what_is_not_supported_is_refused_with_its_value);
    T(layers_times_experts_is_bounded);
    T(broken_text_is_refused_with_its_place);
    T(sizes_follow_from_the_config);
    T(the_published_config_is_read);
    T(a_file_that_is_none_is_refused);
    return g_test_run();
}
