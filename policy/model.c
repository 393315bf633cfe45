/*
 * A model in memory: where each tensor lies, and the constants that the maths needs beside them.
 *
 * Invariants
 *  1. One allocation holds all weights; it is sized by the walk that later lays them out.
 *  2. Router and head stay unrounded: their products are exact in f32 (GEMM_EXACT).
 *  3. Tables of decay and of rotary frequencies are made in double and rounded once.
 *
 * Not here: files (weights.c, safetensors.c), the maths (forward.c).
 */
#include "policy/model.h"

#include "base/error.h"
#include "policy/coded.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define WEIGHT_ALIGN 256
#define HUGE_PAGE    (2u << 20) /* weights are streamed: fewer pages to look up */

/* ---- slopes and frequencies ---- */

/* Head h of n on ALiBi's ladder; n beyond a power of two takes every second step of the next. */
static double ladder(guint h, guint n)
{
    guint low = 1;

    while (low * 2 <= n)
        low *= 2;
    return h < low ? exp2(-8.0 * (h + 1) / low) : exp2(-8.0 * (2 * (h - low) + 1) / (2.0 * low));
}

double model_slope(const ModelConfig *c, guint layer, guint head, OpsReal real)
{
    double slope = ladder(c->head_first + head, c->heads_all);
    double factor = 1 - (c->layers > 1 ? layer / (double)(c->layers - 1) : 0) + 1e-5;

    return real == OPS_F64 ? slope * factor : (double)((float)slope * (float)factor);
}

void model_decay(void *decay, const ModelConfig *c, guint layer, OpsReal real)
{
    for (guint h = 0; h < c->heads; h++) {
        double slope = model_slope(c, layer, h, real);

        for (guint n = 0; n <= c->chunk; n++) {
            gsize at = (gsize)h * (c->chunk + 1) + n;

            if (real == OPS_F64)
                ((double *)decay)[at] = exp(-slope * n);
            else
                ((float *)decay)[at] = (float)exp(-slope * n);
        }
    }
}

OpsHeads model_heads(const ModelConfig *c)
{
    return (OpsHeads){(int)c->heads, (int)c->kv_heads, (int)c->head_dim, (int)c->chunk};
}

/* ---- layout ---- */

/* Hands out aligned pieces; with a NULL base it only counts. */
typedef struct {
    char *base;
    gsize used;
} Arena;

static void *take(Arena *arena, gsize bytes)
{
    void *at = arena->base ? arena->base + arena->used : NULL;

    arena->used += (bytes + WEIGHT_ALIGN - 1) / WEIGHT_ALIGN * WEIGHT_ALIGN;
    return at;
}

typedef enum { PLACE_MATRIX, PLACE_VECTOR, PLACE_EXPERTS } PlaceKind;

/* Where each slot lies: in the model, or in its layer. */
static const struct {
    PlaceKind kind;
    gboolean in_layer;
    gsize offset;
} places[SLOT_COUNT] = {
#define IN_MODEL(kind, field)                                                                      \
    {                                                                                              \
        PLACE_##kind, FALSE, G_STRUCT_OFFSET(Model, field)                                         \
    }
#define IN_LAYER(kind, field)                                                                      \
    {                                                                                              \
        PLACE_##kind, TRUE, G_STRUCT_OFFSET(LayerWeights, field)                                   \
    }
    [SLOT_EMBED] = IN_MODEL(MATRIX, embed),
    [SLOT_INPUT_NORM] = IN_LAYER(VECTOR, input_norm),
    [SLOT_QKV] = IN_LAYER(MATRIX, qkv),
    [SLOT_OUTPUT_GATE] = IN_LAYER(MATRIX, gate),
    [SLOT_ATTN_NORM] = IN_LAYER(VECTOR, attn_norm),
    [SLOT_ATTN_OUT] = IN_LAYER(MATRIX, out),
    [SLOT_Q] = IN_LAYER(MATRIX, q),
    [SLOT_K] = IN_LAYER(MATRIX, k),
    [SLOT_V] = IN_LAYER(MATRIX, v),
    [SLOT_O] = IN_LAYER(MATRIX, o),
    [SLOT_POST_NORM] = IN_LAYER(VECTOR, post_norm),
    [SLOT_ROUTER] = IN_LAYER(MATRIX, router),
    [SLOT_W1] = IN_LAYER(EXPERTS, w1),
    [SLOT_W3] = IN_LAYER(EXPERTS, w3),
    [SLOT_W2] = IN_LAYER(EXPERTS, w2),
    [SLOT_FINAL_NORM] = IN_MODEL(VECTOR, final_norm),
    [SLOT_HEAD] = IN_MODEL(MATRIX, head),
};

/* The OpsWeight of a matrix, or the pointer of a norm. */
static gpointer slot_of(const Model *m, const TensorInfo *t)
{
    gpointer base =
        places[t->slot].in_layer ? (gpointer)&m->layers[t->layer] : (gpointer)(guintptr)m;
    gpointer at = G_STRUCT_MEMBER_P(base, places[t->slot].offset);

    return places[t->slot].kind == PLACE_EXPERTS ? *(OpsWeight **)at + t->expert : at;
}

static OpsWeight *model_matrix(const Model *m, const TensorInfo *t)
{
    return places[t->slot].kind == PLACE_VECTOR ? NULL : slot_of(m, t);
}

static void **model_vector(const Model *m, const TensorInfo *t)
{
    return slot_of(m, t);
}

static WeightFormat format_of(const Model *m, const TensorInfo *t)
{
    return coded_memory(t, m->format);
}

static void lay_out(Model *m, Arena *arena)
{
    gsize real = ops_real_size(m->ops->real);
    const ModelConfig *c = &m->config;

    for (guint i = 0; i < tensors_count(c); i++) {
        TensorInfo t = tensors_info(c, i);
        OpsWeight *w = model_matrix(m, &t);

        if (!w) {
            *model_vector(m, &t) = take(arena, t.count * real);
            continue;
        }
        *w = (OpsWeight){.n = (int)t.dims[0], .k = (int)t.dims[1], .format = format_of(m, &t)};
        w->data = take(arena, m->ops->weight_bytes(w->format, w->n, w->k));
    }
    for (guint l = 0; l < c->layers; l++)
        if (c->kinds[l] == ATTENTION_LIGHTNING)
            m->layers[l].decay = take(arena, (gsize)c->heads * (c->chunk + 1) * real);
}

/* Where each layer's part of the caches begins. A lightning layer has no page, and so on. */
static void cache_lay_out(Model *m)
{
    const ModelConfig *c = &m->config;
    gsize real = ops_real_size(m->ops->real);
    CacheLayout *cache = &m->cache;

    cache->page = g_new0(gsize, c->layers);
    cache->state = g_new0(gsize, c->layers);
    cache->open = g_new0(gsize, c->layers);
    for (guint l = 0; l < c->layers; l++) {
        cache->page[l] = cache->page_bytes;
        cache->state[l] = cache->state_bytes;
        cache->open[l] = cache->open_bytes;
        if (c->kinds[l] == ATTENTION_SOFTMAX) {
            cache->page_bytes += 2 * (gsize)c->kv_dim * c->chunk * real;
        } else {
            cache->state_bytes += (gsize)c->attn_dim * c->head_dim * real;
            cache->open_bytes += 2 * (gsize)c->attn_dim * c->chunk * real;
        }
    }
}

static void tables_fill(Model *m)
{
    const ModelConfig *c = &m->config;

    m->inv_freq = g_new0(double, c->rotary_dim / 2 + 1);
    for (guint i = 0; i < c->rotary_dim / 2; i++)
        m->inv_freq[i] = pow(c->rope_theta, -2.0 * i / c->rotary_dim);
    for (guint l = 0; l < c->layers; l++)
        if (c->kinds[l] == ATTENTION_LIGHTNING)
            model_decay(m->layers[l].decay, c, l, m->ops->real);
}

Model *model_shape(const Ops *ops, const ModelConfig *config, WeightFormat format)
{
    Model *m = g_new0(Model, 1);
    Arena arena = {0};

    m->ops = ops;
    m->config = *config;
    m->format = format;
    m->version = 1;
    m->layers = g_new0(LayerWeights, config->layers);
    for (guint l = 0; l < config->layers; l++) {
        m->layers[l].w1 = g_new0(OpsWeight, config->experts_held);
        m->layers[l].w3 = g_new0(OpsWeight, config->experts_held);
        m->layers[l].w2 = g_new0(OpsWeight, config->experts_held);
    }
    lay_out(m, &arena);
    m->weights_bytes = arena.used;
    cache_lay_out(m);
    return m;
}

Model *model_new(const Ops *ops, const ModelConfig *config, WeightFormat format, GError **error)
{
    g_autoptr(Model) m = model_shape(ops, config, format);
    gsize bytes = m->weights_bytes;
    Arena arena = {0};

    if (ops->weight_bytes(format, 1, 1) == 0) {
        error_set(error, ASSAY_ERROR_UNSUPPORTED, "%s has no %s weights", ops->name,
                  weight_format_name(format));
        return NULL;
    }

    if (posix_memalign((void **)&m->weights, bytes < HUGE_PAGE ? WEIGHT_ALIGN : HUGE_PAGE, bytes)) {
        m->weights = NULL;
        error_set_errno(error, ENOMEM, "weights of %" G_GSIZE_FORMAT " bytes", bytes);
        return NULL;
    }
    if (bytes >= HUGE_PAGE)
        madvise(m->weights, bytes, MADV_HUGEPAGE); /* a wish: refused, all works as well */
    memset(m->weights, 0, bytes);
    arena.base = m->weights;
    lay_out(m, &arena);
    tables_fill(m);
    return g_steal_pointer(&m);
}

void model_free(Model *m)
{
    if (!m)
        return;
    for (guint l = 0; l < m->config.layers; l++) {
        g_free(m->layers[l].w1);
        g_free(m->layers[l].w3);
        g_free(m->layers[l].w2);
    }
    g_free(m->layers);
    g_free(m->cache.page);
    g_free(m->cache.state);
    g_free(m->cache.open);
    g_free(m->inv_freq);
    g_free(m->digest);
    free(m->weights);
    g_free(m);
}

/* ---- contents ---- */

void model_set(Model *m, const TensorInfo *t, const void *rows)
{
    OpsWeight *w = model_matrix(m, t);

    if (w)
        m->ops->weight_pack(w, rows);
    else
        memcpy(*model_vector(m, t), rows, t->count * ops_real_size(m->ops->real));
}

void model_get(const Model *m, const TensorInfo *t, void *rows)
{
    OpsWeight *w = model_matrix(m, t);

    if (w)
        m->ops->weight_unpack(rows, w);
    else
        memcpy(rows, *model_vector(m, t), t->count * ops_real_size(m->ops->real));
}

Model *model_from_weights(const Ops *ops, const Weights *weights, WeightFormat format, guint chunk,
                          GError **error)
{
    ModelConfig config = *weights_config(weights);
    Model *m;

    g_assert(weights_dtype(weights) == (ops->real == OPS_F64 ? TENSOR_F64 : TENSOR_F32));
    config.chunk = chunk ? chunk : config.chunk;
    m = model_new(ops, &config, format, error);
    for (guint i = 0; m && i < tensors_count(&config); i++) {
        TensorInfo t = tensors_info(&config, i);

        model_set(m, &t, weights_at(weights, i));
    }
    return m;
}

Model *model_load(const Ops *ops, const char *dir, WeightFormat format, guint chunk, GError **error)
{
    g_autoptr(Weights) weights =
        weights_load(dir, ops->real == OPS_F64 ? TENSOR_F64 : TENSOR_F32, error);

    return weights ? model_from_weights(ops, weights, format, chunk, error) : NULL;
}

const char *model_digest(Model *m)
{
    if (m->digest && m->digest_version == m->version)
        return m->digest;
    g_free(m->digest);
    m->digest = g_compute_checksum_for_data(G_CHECKSUM_SHA256, (const guchar *)m->weights,
                                            m->weights_bytes);
    m->digest_version = m->version;
    return m->digest;
}
