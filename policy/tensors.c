/*
 * The table of tensors, and a checkpoint held against it.
 *
 * Invariants:
 *   1. Name, shape, class, start value and split of a tensor come from its one row.
 *   2. Every layer has 7 tensors and 3 per expert, whatever its kind, so that a number is computed
 *      from (layer, slot, expert) and back without a list.
 *
 * Not here: memory for them (weights.c), their values (init.c).
 */
#include "policy/tensors.h"

#include "base/error.h"
#include "policy/coded.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define LAYER_FIXED  7u /* tensors of a layer beside its experts' */
#define EXPERT_FIXED 3u
#define NAMED_MAX    5u /* of each kind of difference */

typedef struct TensorRow {
    const char *name; /* less what its place adds */
    gint16 place;     /* within the layer; PLACE_EXPERT + n: within the expert; < 0: outside */
    guint8 rank;
    size_t rows, columns; /* fields of ModelConfig */
    TensorClass class;
    TensorInit init;
    TensorSplit split;
} TensorRow;

enum { PLACE_EXPERT = 100, PLACE_FIRST = -1, PLACE_LAST_NORM = -2, PLACE_LAST = -3 };

/* clang-format off */
#define AT(field) offsetof(ModelConfig, field)
static const TensorRow rows[SLOT_COUNT] = {
    [SLOT_EMBED] = {"model.embed_tokens", PLACE_FIRST, 2, AT(vocab), AT(hidden), CLASS_EMBED, INIT_EMBED, SPLIT_ROWS},
    [SLOT_INPUT_NORM] = {"input_layernorm", 0, 1, AT(hidden), 0, CLASS_NORM, INIT_ONES, SPLIT_NONE},
    [SLOT_QKV] = {"self_attn.qkv_proj", 1, 2, AT(qkv_dim), AT(hidden), CLASS_LIGHTNING, INIT_QKV, SPLIT_ROWS},
    [SLOT_OUTPUT_GATE] = {"self_attn.output_gate", 2, 2, AT(attn_dim), AT(hidden), CLASS_LIGHTNING, INIT_XAVIER, SPLIT_ROWS},
    [SLOT_ATTN_NORM] = {"self_attn.norm", 3, 1, AT(attn_dim), 0, CLASS_NORM, INIT_ONES, SPLIT_ROWS},
    [SLOT_ATTN_OUT] = {"self_attn.out_proj", 4, 2, AT(hidden), AT(attn_dim), CLASS_LIGHTNING, INIT_GAIN, SPLIT_COLUMNS},
    [SLOT_Q] = {"self_attn.q_proj", 1, 2, AT(attn_dim), AT(hidden), CLASS_SOFTMAX, INIT_XAVIER, SPLIT_ROWS},
    [SLOT_K] = {"self_attn.k_proj", 2, 2, AT(kv_dim), AT(hidden), CLASS_SOFTMAX, INIT_XAVIER, SPLIT_KV},
    [SLOT_V] = {"self_attn.v_proj", 3, 2, AT(kv_dim), AT(hidden), CLASS_SOFTMAX, INIT_GAIN, SPLIT_KV},
    [SLOT_O] = {"self_attn.o_proj", 4, 2, AT(hidden), AT(attn_dim), CLASS_SOFTMAX, INIT_GAIN, SPLIT_COLUMNS},
    [SLOT_POST_NORM] = {"post_attention_layernorm", 5, 1, AT(hidden), 0, CLASS_NORM, INIT_ONES, SPLIT_NONE},
    [SLOT_ROUTER] = {"block_sparse_moe.gate", 6, 2, AT(experts), AT(hidden), CLASS_ROUTER, INIT_XAVIER, SPLIT_NONE},
    [SLOT_W1] = {"w1", PLACE_EXPERT, 2, AT(ffn), AT(hidden), CLASS_EXPERT, INIT_GAIN, SPLIT_EXPERTS},
    [SLOT_W3] = {"w3", PLACE_EXPERT + 1, 2, AT(ffn), AT(hidden), CLASS_EXPERT, INIT_GAIN, SPLIT_EXPERTS},
    [SLOT_W2] = {"w2", PLACE_EXPERT + 2, 2, AT(hidden), AT(ffn), CLASS_EXPERT, INIT_GAIN, SPLIT_EXPERTS},
    [SLOT_FINAL_NORM] = {"model.norm", PLACE_LAST_NORM, 1, AT(hidden), 0, CLASS_NORM, INIT_ONES, SPLIT_NONE},
    [SLOT_HEAD] = {"lm_head", PLACE_LAST, 2, AT(vocab), AT(hidden), CLASS_HEAD, INIT_HEAD, SPLIT_ROWS},
};
/* clang-format on */

static const char *const class_names[CLASS_COUNT] = {"embedding", "norms",   "lightning", "softmax",
                                                     "router",    "experts", "head"};

/* Slots of a layer by place, for each AttentionKind. */
static const TensorSlot layer_slots[2][LAYER_FIXED] = {
    {SLOT_INPUT_NORM, SLOT_QKV, SLOT_OUTPUT_GATE, SLOT_ATTN_NORM, SLOT_ATTN_OUT, SLOT_POST_NORM,
     SLOT_ROUTER},
    {SLOT_INPUT_NORM, SLOT_Q, SLOT_K, SLOT_V, SLOT_O, SLOT_POST_NORM, SLOT_ROUTER},
};
static const TensorSlot expert_slots[EXPERT_FIXED] = {SLOT_W1, SLOT_W3, SLOT_W2};

const char *tensors_class_name(TensorClass class)
{
    return class_names[class];
}

static guint layer_tensors(const ModelConfig *config)
{
    return LAYER_FIXED + EXPERT_FIXED * config->experts_held;
}

guint tensors_count(const ModelConfig *config)
{
    return 3 + config->layers * layer_tensors(config);
}

guint tensors_index(const ModelConfig *config, guint32 layer, TensorSlot slot, guint32 expert)
{
    int place = rows[slot].place;
    if (place == PLACE_FIRST)
        return 0;
    if (place < 0)
        return tensors_count(config) - (place == PLACE_LAST ? 1 : 2);
    g_assert(layer < config->layers);
    guint first = 1 + layer * layer_tensors(config);
    if (place < PLACE_EXPERT) {
        g_assert(layer_slots[config->kinds[layer]][place] == slot);
        return first + (guint)place;
    }
    g_assert(expert < config->experts_held);
    return first + LAYER_FIXED + EXPERT_FIXED * expert + (guint)(place - PLACE_EXPERT);
}

static guint32 size_at(const ModelConfig *config, size_t offset)
{
    return *(const guint32 *)((const guint8 *)config + offset);
}

static TensorInfo make_info(const ModelConfig *config, TensorSlot slot, guint32 layer,
                            guint32 expert)
{
    const TensorRow *row = &rows[slot];
    TensorInfo info = {.slot = slot,
                       .layer = layer,
                       .expert = expert,
                       .rank = row->rank,
                       .dims = {size_at(config, row->rows), 1},
                       .class = row->class,
                       .init = row->init,
                       .split = row->split};
    if (row->rank == 2)
        info.dims[1] = size_at(config, row->columns);
    info.count = info.dims[0] * info.dims[1];
    return info;
}

TensorInfo tensors_info(const ModelConfig *config, guint index)
{
    guint n = tensors_count(config), per_layer = layer_tensors(config);
    g_assert(index < n);
    if (index == 0)
        return make_info(config, SLOT_EMBED, 0, 0);
    if (index >= n - 2)
        return make_info(config, index == n - 1 ? SLOT_HEAD : SLOT_FINAL_NORM, 0, 0);
    guint layer = (index - 1) / per_layer, place = (index - 1) % per_layer;
    if (place < LAYER_FIXED)
        return make_info(config, layer_slots[config->kinds[layer]][place], layer, 0);
    place -= LAYER_FIXED;
    return make_info(config, expert_slots[place % EXPERT_FIXED], layer, place / EXPERT_FIXED);
}

void tensors_name(const TensorInfo *info, char name[TENSOR_NAME_MAX])
{
    const TensorRow *row = &rows[info->slot];
    if (row->place < 0)
        g_snprintf(name, TENSOR_NAME_MAX, "%s.weight", row->name);
    else if (row->place < PLACE_EXPERT)
        g_snprintf(name, TENSOR_NAME_MAX, "model.layers.%u.%s.weight", info->layer, row->name);
    else
        g_snprintf(name, TENSOR_NAME_MAX, "model.layers.%u.block_sparse_moe.experts.%u.%s.weight",
                   info->layer, info->expert, row->name);
}

TensorDtype tensors_dtype(const TensorInfo *info, TensorDtype dtype)
{
    return info->class == CLASS_ROUTER && tensor_dtype_bytes(dtype) < 4 ? TENSOR_F32 : dtype;
}

static void clear_name(gpointer data)
{
    g_free(((SafeTensor *)data)->name);
}

GArray *tensors_plan(const ModelConfig *config, TensorDtype dtype)
{
    GArray *plan = g_array_new(FALSE, FALSE, sizeof(SafeTensor));
    g_array_set_clear_func(plan, clear_name);
    for (guint i = 0; i < tensors_count(config); i++) {
        TensorInfo info = tensors_info(config, i);
        char name[TENSOR_NAME_MAX];
        tensors_name(&info, name);
        SafeTensor tensor = {.name = g_strdup(name),
                             .dtype = tensors_dtype(&info, dtype),
                             .rank = info.rank,
                             .dims = {info.dims[0], info.dims[1]},
                             .count = info.count};
        g_array_append_val(plan, tensor);
    }
    return plan;
}

guint64 tensors_params_class(const ModelConfig *config, TensorClass class)
{
    guint64 sum = 0;
    for (guint i = 0; i < tensors_count(config); i++) {
        TensorInfo info = tensors_info(config, i);
        sum += info.class == class ? info.count : 0;
    }
    return sum;
}

guint64 tensors_params(const ModelConfig *config)
{
    guint64 sum = 0;
    for (guint i = 0; i < tensors_count(config); i++)
        sum += tensors_info(config, i).count;
    return sum;
}

guint64 tensors_params_active(const ModelConfig *config)
{
    return tensors_params_class(config, CLASS_LIGHTNING) +
           tensors_params_class(config, CLASS_SOFTMAX) +
           tensors_params_class(config, CLASS_ROUTER) +
           tensors_params_class(config, CLASS_EXPERT) / config->experts * config->experts_per_token;
}

typedef struct Difference {
    guint n;
    GString *names;
} Difference;

static void difference_add(Difference *difference, const char *name, const char *more)
{
    if (difference->names == NULL)
        difference->names = g_string_new(NULL);
    if (difference->n++ < NAMED_MAX)
        g_string_append_printf(difference->names, "%s%s%s", difference->n > 1 ? ", " : "", name,
                               more);
}

typedef struct Findings {
    Difference missing, extra, shape;
} Findings;

/* What differs becomes one message. */
static gboolean findings_end(Findings *f, GError **error)
{
    const struct {
        const char *what;
        Difference *difference;
    } all[] = {{"missing", &f->missing}, {"extra", &f->extra}, {"of another shape", &f->shape}};
    g_autoptr(GString) text = g_string_new(NULL);
    for (guint i = 0; i < G_N_ELEMENTS(all); i++) {
        Difference *d = all[i].difference;
        if (d->n == 0)
            continue;
        g_string_append_printf(text, "%s%u %s (%s%s)", text->len > 0 ? "; " : "", d->n, all[i].what,
                               d->names->str, d->n > NAMED_MAX ? ", ..." : "");
        g_string_free(d->names, TRUE);
    }
    return text->len == 0 ||
           error_set(error, ASSAY_ERROR_INPUT, "tensors and config.json differ: %s", text->str);
}

static gboolean shape_fits(const TensorInfo *info, const SafeTensor *tensor)
{
    return tensor->rank == info->rank && tensor->dims[0] == info->dims[0] &&
           (info->rank < 2 || tensor->dims[1] == info->dims[1]);
}

static void note_shape(Difference *difference, const TensorInfo *info, const SafeTensor *tensor)
{
    SafeTensor ours = {.rank = info->rank, .dims = {info->dims[0], info->dims[1]}};
    g_autofree char *is = safetensor_shape_text(tensor);
    g_autofree char *wanted = safetensor_shape_text(&ours);
    g_autofree char *more = g_strdup_printf(": %s, the config says %s", is, wanted);
    difference_add(difference, tensor->name, more);
}

/* A matrix of codes has a tensor of scales beside it. */
static void note_codes(Difference *difference, GHashTable *ours, const TensorInfo *info,
                       const SafeTensor *codes, const Safetensors *st)
{
    g_autofree char *name = g_strconcat(codes->name, CODED_SCALE, NULL);
    const SafeTensor *scale = safetensors_find(st, name);
    g_autoptr(GError) why = NULL;

    if (scale != NULL)
        g_hash_table_add(ours, scale->name);
    if (!coded_check(info, codes, scale, &why)) {
        g_autofree char *more = g_strdup_printf(": %s", why->message);
        difference_add(difference, codes->name, more);
    }
}

gboolean tensors_check(const ModelConfig *config, const Safetensors *st, GError **error)
{
    Findings findings = {0};
    g_autoptr(GHashTable) ours = g_hash_table_new(g_str_hash, g_str_equal);
    char name[TENSOR_NAME_MAX];
    for (guint i = 0; i < tensors_count(config); i++) {
        TensorInfo info = tensors_info(config, i);
        tensors_name(&info, name);
        const SafeTensor *tensor = safetensors_find(st, name);
        if (tensor == NULL) {
            difference_add(&findings.missing, name, "");
            continue;
        }
        g_hash_table_add(ours, tensor->name);
        if (coded_format(tensor->dtype) != WEIGHT_REAL)
            note_codes(&findings.shape, ours, &info, tensor, st);
        else if (!shape_fits(&info, tensor))
            note_shape(&findings.shape, &info, tensor);
    }
    for (guint i = 0; i < safetensors_count(st); i++)
        if (!g_hash_table_contains(ours, safetensors_at(st, i)->name))
            difference_add(&findings.extra, safetensors_at(st, i)->name, "");
    return findings_end(&findings, error);
}

static int compare_words(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

gboolean tensors_check_names(const ModelConfig *config, GHashTable *names, GError **error)
{
    Findings findings = {0};
    g_autoptr(GHashTable) ours = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    char name[TENSOR_NAME_MAX];
    for (guint i = 0; i < tensors_count(config); i++) {
        TensorInfo info = tensors_info(config, i);
        tensors_name(&info, name);
        if (!g_hash_table_contains(names, name))
            difference_add(&findings.missing, name, "");
        g_hash_table_add(ours, g_strdup(name));
    }
    guint n = 0;
    g_autofree gpointer *given = g_hash_table_get_keys_as_array(names, &n);
    qsort(given, n, sizeof *given, compare_words);
    for (guint i = 0; i < n; i++)
        if (!g_hash_table_contains(ours, given[i]))
            difference_add(&findings.extra, given[i], "");
    return findings_end(&findings, error);
}
