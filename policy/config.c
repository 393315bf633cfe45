/*
 * config.json, strictly: one table of keys reads, writes and names what is wrong.
 *
 * Invariants:
 *   1. A key that changes the numbers is required; one with a single supported value is refused at
 *      any other; a key in neither list is an error. All missing or unknown keys are named at once.
 *   2. A file has one spelling. Keys of the other one are unknown.
 *   3. A size is in its range before anything is computed from it.
 *
 * Not here: tensors (tensors.c), ids with a meaning (tokenizer.c).
 */
#include "policy/config.h"

#include "base/error.h"
#include "base/fd.h"
#include "policy/file.h"

#include <stddef.h>
#include <string.h>

#define CONFIG_BYTES_MAX (1u << 20)

#define M1_VOCAB       200064u /* the published vocabulary: 200,000 base tokens, specials, */
#define M1_VOCAB_VALID 200032u /* and zero rows from here on */
#define LIGHTNING_EPS  1e-6
#define CHUNK_LARGE    64u /* tokens; of heads wider than CHUNK_HEAD_DIM */
#define CHUNK_SMALL    32u
#define CHUNK_HEAD_DIM 64u

typedef enum KeyKind {
    KEY_U32 = 0,
    KEY_U64,
    KEY_REAL,
    KEY_KINDS, /* one AttentionKind per layer */
    KEY_FIXED, /* `fixed` is the only supported value */
    KEY_CLASS, /* a list with one of `architectures` */
} KeyKind;

typedef enum KeyNeed {
    NEED_ALWAYS = 0,
    NEED_M1, /* the other spelling has no such key */
    NEED_NO,
} KeyNeed;

typedef struct ConfigKey {
    const char *name;    /* in the M1 spelling */
    const char *hf_name; /* in Hugging Face's; NULL: the same */
    KeyKind kind;
    KeyNeed need;
    size_t offset;
    double min, max;
    const char *fixed; /* JSON text */
} ConfigKey;

/* clang-format off */
#define AT(field) offsetof(ModelConfig, field)
static const ConfigKey keys[] = {
    {"architectures", NULL, KEY_CLASS, NEED_ALWAYS, 0, 0, 0, NULL},
    {"hidden_size", NULL, KEY_U32, NEED_ALWAYS, AT(hidden), 1, 65536, NULL},
    {"num_hidden_layers", NULL, KEY_U32, NEED_ALWAYS, AT(layers), 1, MODEL_LAYERS_MAX, NULL},
    {"num_attention_heads", NULL, KEY_U32, NEED_ALWAYS, AT(heads), 1, 1024, NULL},
    {"num_key_value_heads", NULL, KEY_U32, NEED_ALWAYS, AT(kv_heads), 1, 1024, NULL},
    {"head_dim", NULL, KEY_U32, NEED_ALWAYS, AT(head_dim), 2, 256, NULL},
    {"attn_type_list", "layer_types", KEY_KINDS, NEED_ALWAYS, AT(kinds), 0, 0, NULL},
    {"num_local_experts", NULL, KEY_U32, NEED_ALWAYS, AT(experts), 1, 1024, NULL},
    {"num_experts_per_tok", NULL, KEY_U32, NEED_ALWAYS, AT(experts_per_token), 1, 64, NULL},
    {"intermediate_size", NULL, KEY_U32, NEED_ALWAYS, AT(ffn), 1, 1 << 20, NULL},
    {"rms_norm_eps", NULL, KEY_REAL, NEED_ALWAYS, AT(norm_eps), 1e-12, 0.1, NULL},
    {"lightning_norm_eps", NULL, KEY_REAL, NEED_NO, AT(lightning_norm_eps), 1e-12, 0.1, NULL},
    {"layernorm_linear_attention_alpha", "linear_attn_alpha_factor", KEY_REAL, NEED_ALWAYS, AT(alpha_linear), 0, 1e3, NULL},
    {"layernorm_linear_attention_beta", "linear_attn_beta_factor", KEY_REAL, NEED_ALWAYS, AT(beta_linear), 0, 1e3, NULL},
    {"layernorm_full_attention_alpha", "full_attn_alpha_factor", KEY_REAL, NEED_ALWAYS, AT(alpha_full), 0, 1e3, NULL},
    {"layernorm_full_attention_beta", "full_attn_beta_factor", KEY_REAL, NEED_ALWAYS, AT(beta_full), 0, 1e3, NULL},
    {"layernorm_mlp_alpha", "mlp_alpha_factor", KEY_REAL, NEED_ALWAYS, AT(alpha_mlp), 0, 1e3, NULL},
    {"layernorm_mlp_beta", "mlp_beta_factor", KEY_REAL, NEED_ALWAYS, AT(beta_mlp), 0, 1e3, NULL},
    {"rotary_dim", NULL, KEY_U32, NEED_ALWAYS, AT(rotary_dim), 2, 256, NULL},
    {"rope_theta", NULL, KEY_REAL, NEED_ALWAYS, AT(rope_theta), 1, 1e15, NULL},
    {"max_position_embeddings", NULL, KEY_U64, NEED_ALWAYS, AT(context_max), 1, 1e12, NULL},
    {"vocab_size", NULL, KEY_U32, NEED_ALWAYS, AT(vocab), 2, 1 << 22, NULL},
    {"vocab_valid", NULL, KEY_U32, NEED_NO, AT(vocab_valid), 1, 1 << 22, NULL},
    {"hidden_act", NULL, KEY_FIXED, NEED_ALWAYS, 0, 0, 0, "\"silu\""},
    {"postnorm", NULL, KEY_FIXED, NEED_M1, 0, 0, 0, "true"},
    {"shared_intermediate_size", NULL, KEY_FIXED, NEED_M1, 0, 0, 0, "0"},
    {"tie_word_embeddings", NULL, KEY_FIXED, NEED_ALWAYS, 0, 0, 0, "false"},
    {"sliding_window", NULL, KEY_FIXED, NEED_M1, 0, 0, 0, "null"},
    {"attention_dropout", NULL, KEY_FIXED, NEED_NO, 0, 0, 0, "0.0"},
    {"router_jitter_noise", NULL, KEY_FIXED, NEED_NO, 0, 0, 0, "0.0"},
    {"attention_bias", NULL, KEY_FIXED, NEED_NO, 0, 0, 0, "false"},
    {"rope_scaling", NULL, KEY_FIXED, NEED_NO, 0, 0, 0, "null"},
};

/* Keys that change no number of ours, whatever they say. */
static const char *const harmless[] = {
    "_name_or_path", "auto_map", "block_size", "bos_token_id", "dtype", "eos_token_id",
    "initializer_range", "model_type", "output_router_logits", "pad_token_id",
    "router_aux_loss_coef", "shared_moe_mode", "torch_dtype", "transformers_version", "use_cache",
    NULL,
};
/* clang-format on */

static const char *const architectures[] = {"MiniMaxM1ForCausalLM", "MiniMaxText01ForCausalLM",
                                            "MiniMaxForCausalLM", NULL};
static const char *const kind_names[] = {"linear_attention", "full_attention"}; /* HF's words */

static const char *key_name(const ConfigKey *key, gboolean hf)
{
    return hf && key->hf_name != NULL ? key->hf_name : key->name;
}

static gboolean refuse(const char *name, const char *why, GError **error)
{
    return error_set(error, ASSAY_ERROR_INPUT, "%s: %s", name, why);
}

static gboolean read_number(const ConfigKey *key, const char *name, const json_t *value,
                            ModelConfig *config, GError **error)
{
    gpointer field = (guint8 *)config + key->offset;
    if (key->kind == KEY_REAL ? !json_is_number(value) : !json_is_integer(value))
        return refuse(name, key->kind == KEY_REAL ? "must be a number" : "must be an integer",
                      error);
    double number = json_number_value(value);
    if (!(number >= key->min && number <= key->max))
        return error_set(error, ASSAY_ERROR_INPUT, "%s: %.17g is not between %g and %g", name,
                         number, key->min, key->max);
    if (key->kind == KEY_REAL)
        *(double *)field = number;
    else if (key->kind == KEY_U64)
        *(guint64 *)field = (guint64)json_integer_value(value);
    else
        *(guint32 *)field = (guint32)json_integer_value(value);
    return TRUE;
}

/* The layers are known: their key stands above in the table. */
static gboolean read_kinds(const char *name, const json_t *value, ModelConfig *config,
                           GError **error)
{
    if (!json_is_array(value) || json_array_size(value) != config->layers)
        return error_set(error, ASSAY_ERROR_INPUT, "%s: has %zu entries for %u layers", name,
                         json_array_size(value), config->layers);
    for (guint32 l = 0; l < config->layers; l++) {
        const json_t *entry = json_array_get(value, l);
        const char *word = json_string_value(entry);
        int kind = -1;
        for (int i = 0; i < (int)G_N_ELEMENTS(kind_names); i++)
            if (word != NULL ? strcmp(word, kind_names[i]) == 0
                             : json_is_integer(entry) && json_integer_value(entry) == i)
                kind = i;
        if (kind < 0)
            return error_set(error, ASSAY_ERROR_INPUT, "%s: entry %u is of no known kind", name, l);
        config->kinds[l] = (guint8)kind;
    }
    return TRUE;
}

static gboolean read_fixed(const char *name, const char *fixed, const json_t *value, GError **error)
{
    g_autoptr(json_t) wanted = json_loads(fixed, JSON_DECODE_ANY, NULL);
    if (json_is_number(wanted) && json_is_number(value)
            ? json_number_value(wanted) == json_number_value(value)
            : json_equal(wanted, value))
        return TRUE;
    g_autofree char *text = json_print(value);
    return error_set(error, ASSAY_ERROR_INPUT, "%s: %.64s is not supported, only %s", name, text,
                     fixed);
}

static gboolean read_class(const char *name, const json_t *value, GError **error)
{
    for (size_t i = 0; i < json_array_size(value); i++) {
        const char *word = json_string_value(json_array_get(value, i));
        if (word != NULL && g_strv_contains(architectures, word))
            return TRUE;
    }
    g_autofree char *known = g_strjoinv(", ", (GStrv)(gsize)architectures);
    return error_set(error, ASSAY_ERROR_INPUT, "%s: names none of %s", name, known);
}

static gboolean read_key(const ConfigKey *key, const char *name, const json_t *value,
                         ModelConfig *config, GError **error)
{
    switch (key->kind) {
    case KEY_KINDS:
        return read_kinds(name, value, config, error);
    case KEY_FIXED:
        return read_fixed(name, key->fixed, value, error);
    case KEY_CLASS:
        return read_class(name, value, error);
    case KEY_U32:
    case KEY_U64:
    case KEY_REAL:
    default:
        return read_number(key, name, value, config, error);
    }
}

static gboolean is_known(const char *name, gboolean hf)
{
    for (guint i = 0; i < G_N_ELEMENTS(keys); i++)
        if (strcmp(name, key_name(&keys[i], hf)) == 0)
            return TRUE;
    return g_strv_contains(harmless, name);
}

/* Fails with all names of `list` at once, when there are any. */
static gboolean none_of(const char *what, GString *list, GError **error)
{
    return list->len == 0 || error_set(error, ASSAY_ERROR_INPUT, "%s: %s", what, list->str);
}

static void add_name(GString *list, const char *name)
{
    g_string_append_printf(list, "%s%s", list->len > 0 ? ", " : "", name);
}

static gboolean check_names(json_t *object, gboolean hf, GError **error)
{
    g_autoptr(GString) unknown = g_string_new(NULL);
    g_autoptr(GString) missing = g_string_new(NULL);
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value)
    {
        if (!is_known(name, hf))
            add_name(unknown, name);
    }
    for (guint i = 0; i < G_N_ELEMENTS(keys); i++) {
        gboolean needed = keys[i].need == NEED_ALWAYS || (keys[i].need == NEED_M1 && !hf);
        name = key_name(&keys[i], hf);
        if (needed && json_object_get(object, name) == NULL)
            add_name(missing, name);
    }
    return none_of("missing keys", missing, error) && none_of("unknown keys", unknown, error);
}

gboolean model_config_parse(const char *text, gsize len, ModelConfig *config, GError **error)
{
    g_autoptr(json_t) object = json_parse(text, len, error);
    if (object == NULL)
        return FALSE;
    if (!json_is_object(object))
        return error_set(error, ASSAY_ERROR_INPUT, "must be an object");
    gboolean hf = json_object_get(object, "layer_types") != NULL;
    if (!check_names(object, hf, error))
        return FALSE;

    ModelConfig got = {.lightning_norm_eps = LIGHTNING_EPS};
    for (guint i = 0; i < G_N_ELEMENTS(keys); i++) {
        const char *name = key_name(&keys[i], hf);
        const json_t *value = json_object_get(object, name);
        if (value != NULL && !read_key(&keys[i], name, value, &got, error))
            return FALSE;
    }
    if (!model_config_check(&got, error))
        return FALSE;
    *config = got;
    return TRUE;
}

gboolean model_config_read(const char *path, ModelConfig *config, GError **error)
{
    g_autofree char *file = model_file_in(path, "config.json");
    g_autoptr(GBytes) bytes = model_file_read(file, CONFIG_BYTES_MAX, error);
    if (bytes == NULL)
        return FALSE;
    gsize len = 0;
    const char *text = g_bytes_get_data(bytes, &len);
    if (model_config_parse(text, len, config, error))
        return TRUE;
    g_prefix_error(error, "%s: ", file);
    return FALSE;
}

gboolean model_config_check(ModelConfig *config, GError **error)
{
    const ModelConfig *c = config;
    guint64 tensors = 3 + (guint64)c->layers * (7 + 3 * (guint64)c->experts);
    if (c->heads % c->kv_heads != 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "num_key_value_heads: %u does not divide num_attention_heads %u",
                         c->kv_heads, c->heads);
    if (c->head_dim % 2 != 0 || c->rotary_dim % 2 != 0 || c->rotary_dim > c->head_dim)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "rotary_dim: %u does not fit head_dim %u (both even, not above it)",
                         c->rotary_dim, c->head_dim);
    if (c->experts_per_token > c->experts)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "num_experts_per_tok: %u is more than num_local_experts %u",
                         c->experts_per_token, c->experts);
    if (c->vocab_valid > c->vocab)
        return error_set(error, ASSAY_ERROR_INPUT, "vocab_valid: %u is more than vocab_size %u",
                         c->vocab_valid, c->vocab);
    if (tensors > MODEL_TENSORS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT,
                         "%u layers of %u experts make %" G_GUINT64_FORMAT " tensors, more than %u",
                         c->layers, c->experts, tensors, MODEL_TENSORS_MAX);

    if (config->vocab_valid == 0)
        config->vocab_valid = config->vocab == M1_VOCAB ? M1_VOCAB_VALID : config->vocab;
    config->attn_dim = config->heads * config->head_dim;
    config->kv_dim = config->kv_heads * config->head_dim;
    config->qkv_dim = 3 * config->attn_dim;
    config->chunk = config->head_dim > CHUNK_HEAD_DIM ? CHUNK_LARGE : CHUNK_SMALL;
    config->softmax_layers = 0;
    for (guint32 l = 0; l < config->layers; l++)
        config->softmax_layers += config->kinds[l] == ATTENTION_SOFTMAX;
    config->lightning_layers = config->layers - config->softmax_layers;
    config->heads_all = config->heads;
    config->experts_held = config->experts;
    config->head_first = config->expert_first = config->vocab_first = 0;
    return TRUE;
}

static json_t *write_key(const ConfigKey *key, const ModelConfig *config)
{
    gconstpointer field = (const guint8 *)config + key->offset;
    json_t *list;
    switch (key->kind) {
    case KEY_KINDS:
        list = json_array();
        for (guint32 l = 0; l < config->layers; l++)
            json_array_append_new(list, json_integer(config->kinds[l]));
        return list;
    case KEY_FIXED:
        return json_loads(key->fixed, JSON_DECODE_ANY, NULL);
    case KEY_CLASS:
        return json_pack("[s]", architectures[0]);
    case KEY_REAL:
        return json_real(*(const double *)field);
    case KEY_U64:
        return json_integer((json_int_t) * (const guint64 *)field);
    case KEY_U32:
    default:
        return json_integer(*(const guint32 *)field);
    }
}

json_t *model_config_json(const ModelConfig *config)
{
    json_t *object = json_pack("{s:s}", "model_type", "minimax_m1");
    for (guint i = 0; i < G_N_ELEMENTS(keys); i++)
        json_object_set_new(object, keys[i].name, write_key(&keys[i], config));
    return object;
}

gboolean model_config_write(const ModelConfig *config, const char *dir, GError **error)
{
    g_autofree char *path = g_build_filename(dir, "config.json", NULL);
    g_autoptr(json_t) object = model_config_json(config);
    char *text = json_dumps(object, JSON_INDENT(2));
    gboolean ok = file_write_atomic(path, text, strlen(text), error);
    free(text);
    return ok;
}
