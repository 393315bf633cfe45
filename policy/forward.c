/*
 * The forward pass as a list of ops: one function for each kind of block.
 *
 * Invariants
 *  1. Nothing here looks at numbers: every value is made by an op, so the numerics contract of
 *     ops.h is the contract of the model.
 *  2. No allocation: activations live in Acts, sized once.
 *  3. Layers that keep nothing share their room, and a layer may overwrite its input.
 *  4. A layer run again from its input writes the bits that stand there.
 *  5. Where nothing on the host looks in between, the ops of a pass need not wait for one another.
 *
 * Not here: caches and scheduling (engine.c), the reverse (backward.c).
 */
#include "policy/far.h"
#include "policy/sequence.h"
#include "policy/shard.h"

#include "base/error.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

/* ---- room for activations ---- */

/* Elements per row of every field of LayerActs; `kind` -1 stands for both kinds of layer. */
typedef struct {
    gsize field;
    int kind;
    gsize (*width)(const ModelConfig *c);
} ActField;

#define WIDTH(name, expression)                                                                    \
    static gsize name(const ModelConfig *c)                                                        \
    {                                                                                              \
        return expression;                                                                         \
    }
WIDTH(width_one, (gsize)(c->layers > 0))
WIDTH(width_hidden, c->hidden)
WIDTH(width_attn, c->attn_dim)
WIDTH(width_qkv, c->qkv_dim)
WIDTH(width_kv, c->kv_dim)
WIDTH(width_heads, c->heads)
WIDTH(width_experts, c->experts)
WIDTH(width_topk, c->experts_per_token)
WIDTH(width_up, (gsize)c->experts_per_token * c->ffn)
WIDTH(width_down, (gsize)c->experts_per_token * c->hidden)

#define FIELD(name, kind, width)                                                                   \
    {                                                                                              \
        G_STRUCT_OFFSET(LayerActs, name), kind, width                                              \
    }
static const ActField fields[] = {
    FIELD(x_in, -1, width_hidden),
    FIELD(h, -1, width_hidden),
    FIELD(rstd_in, -1, width_one),
    FIELD(z, ATTENTION_LIGHTNING, width_qkv),
    FIELD(qkv, ATTENTION_LIGHTNING, width_qkv),
    FIELD(gate, ATTENTION_LIGHTNING, width_attn),
    FIELD(rstd_attn, ATTENTION_LIGHTNING, width_one),
    FIELD(q, ATTENTION_SOFTMAX, width_attn),
    FIELD(k, ATTENTION_SOFTMAX, width_kv),
    FIELD(v, ATTENTION_SOFTMAX, width_kv),
    FIELD(lse, ATTENTION_SOFTMAX, width_heads),
    FIELD(o, -1, width_attn),
    FIELD(mixed, ATTENTION_LIGHTNING, width_attn),
    FIELD(row_sum, ATTENTION_LIGHTNING, width_one),
    FIELD(x_mid, -1, width_hidden),
    FIELD(g, -1, width_hidden),
    FIELD(rstd_post, -1, width_one),
    FIELD(router, -1, width_experts),
    FIELD(route, -1, width_topk),
    FIELD(a, -1, width_up),
    FIELD(b, -1, width_up),
    FIELD(act, -1, width_up),
    FIELD(expert_out, -1, width_down),
};

#define ACTS_ALIGN 64

/* Takes `bytes` from the arena at *used; a NULL base only counts. */
static void *arena_take(char *base, gsize *used, gsize bytes)
{
    char *at = base ? base + *used : NULL;

    *used += (bytes + ACTS_ALIGN - 1) / ACTS_ALIGN * ACTS_ALIGN;
    return at;
}

static void layer_lay_out(LayerActs *layer, const Model *model, int kind, int rows, char *base,
                          gsize *used)
{
    const ModelConfig *c = &model->config;
    gsize real = ops_real_size(model->ops->real), choices = (gsize)rows * c->experts_per_token;
    LayerActs none;

    layer = layer ? layer : &none;
    for (guint i = 0; i < G_N_ELEMENTS(fields); i++)
        if (kind < 0 || fields[i].kind < 0 || fields[i].kind == kind)
            *(void **)G_STRUCT_MEMBER_P(layer, fields[i].field) =
                arena_take(base, used, (gsize)rows * fields[i].width(c) * real);
    layer->choice = arena_take(base, used, choices * sizeof(int));
    layer->plan.source = arena_take(base, used, choices * sizeof(int));
    layer->plan.slot = arena_take(base, used, choices * sizeof(int));
    layer->plan.order = arena_take(base, used, choices * sizeof(int));
    layer->plan.offsets = arena_take(base, used, (c->experts + 1) * sizeof(int));
}

/* Room of the layers: one each, or one that all share (but for inputs that are kept). */
static void layers_lay_out(Acts *acts, const Model *model, int rows, ActsKeep keep, char *base,
                           gsize *used)
{
    const ModelConfig *c = &model->config;
    gsize width = (gsize)rows * c->hidden * ops_real_size(model->ops->real);

    for (guint l = 0; l < c->layers; l++) {
        LayerActs *layer = acts ? &acts->layers[l] : NULL;

        if (keep == ACTS_KEEP_ALL || l == 0)
            layer_lay_out(layer, model, keep == ACTS_KEEP_ALL ? c->kinds[l] : -1, rows, base, used);
        else if (acts)
            *layer = acts->layers[0];
        if (keep == ACTS_KEEP_INPUTS && l > 0) {
            void *x_in = arena_take(base, used, width);

            if (acts)
                layer->x_in = x_in;
        }
    }
}

/* Lays everything out from `base`; with NULLs only counts the bytes. */
static gsize lay_out(Acts *acts, const Model *model, int rows, ActsKeep keep, char *base)
{
    const ModelConfig *c = &model->config;
    gsize real = ops_real_size(model->ops->real), used = 0;
    gsize width = (gsize)rows * c->hidden * real;
    void *x_out, *hidden, *rstd;

    layers_lay_out(acts, model, rows, keep, base, &used);
    x_out = arena_take(base, &used, width);
    hidden = arena_take(base, &used, width);
    rstd = arena_take(base, &used, (gsize)rows * real);
    if (acts) {
        acts->x_out = x_out;
        acts->hidden = hidden;
        acts->rstd_final = rstd;
    }
    return used;
}

gsize acts_bytes(const Model *model, int rows_max, ActsKeep keep)
{
    return lay_out(NULL, model, rows_max, keep, NULL);
}

static guint far_count(const Acts *acts)
{
    return acts->keep == ACTS_KEEP_ALL ? acts->model->config.layers : 1;
}

static void far_lay_out(Acts *acts)
{
    guint n = far_count(acts);

    if (!far_is_needed(&acts->model->config))
        return;
    acts->far = g_new0(Far *, n);
    for (guint i = 0; i < n; i++)
        acts->far[i] = far_new();
    for (guint l = 0; l < acts->model->config.layers; l++)
        acts->layers[l].far = acts->far[l % n];
}

Acts *acts_new(const Model *model, int rows_max, ActsKeep keep, GError **error)
{
    g_autoptr(Acts) acts = g_new0(Acts, 1);

    acts->model = model;
    acts->rows_max = rows_max;
    acts->keep = keep;
    acts->bytes = acts_bytes(model, rows_max, keep);
    acts->layers = g_new0(LayerActs, model->config.layers);
    if (posix_memalign((void **)&acts->memory, ACTS_ALIGN, acts->bytes)) {
        acts->memory = NULL;
        error_set_errno(error, ENOMEM, "activations of %d rows, %" G_GSIZE_FORMAT " bytes",
                        rows_max, acts->bytes);
        return NULL;
    }
    lay_out(acts, model, rows_max, keep, acts->memory);
    far_lay_out(acts);
    if (seq_is_needed(model))
        acts->seq = seq_new(model);
    for (guint l = 0; l < model->config.layers; l++)
        acts->layers[l].seq = acts->seq;
    return g_steal_pointer(&acts);
}

void acts_free(Acts *acts)
{
    if (!acts)
        return;
    for (guint i = 0; acts->far && i < far_count(acts); i++)
        far_free(acts->far[i]);
    g_free(acts->far);
    seq_free(acts->seq);
    free(acts->memory);
    g_free(acts->layers);
    g_free(acts);
}

/* ---- blocks ---- */

/* y = W_out ( sigmoid(W_gate h) (.) RMSNorm(lightning(SiLU(W_qkv h))) ) */
static void attention_lightning(const Model *m, guint l, LayerActs *s, const Batch *b, void *y)
{
    const LayerWeights *w = &m->layers[l];
    const ModelConfig *c = &m->config;
    const Ops *ops = m->ops;

    ops->gemm_fwd(s->z, s->h, &w->qkv, b->rows, GEMM_ROUNDED);
    ops->silu_fwd(s->qkv, s->z, (size_t)b->rows * c->qkv_dim);
    seq_lightning_fwd(m, l, s, b);
    ops->gemm_fwd(s->gate, s->h, &w->gate, b->rows, GEMM_ROUNDED);
    shard_gatenorm_fwd(m, s, w->attn_norm, b->rows);
    ops->gemm_fwd(y, s->mixed, &w->out, b->rows, GEMM_ROUNDED);
    shard_sum(m, y, (gsize)b->rows * c->hidden);
}

/* y = W_o softmax(rope(q) rope(k)^T / sqrt(d)) v */
static void attention_softmax(const Model *m, guint l, LayerActs *s, const Batch *b, void *y)
{
    const LayerWeights *w = &m->layers[l];
    const ModelConfig *c = &m->config;
    const Ops *ops = m->ops;
    int half = (int)c->rotary_dim / 2;

    ops->gemm_fwd(s->q, s->h, &w->q, b->rows, GEMM_ROUNDED);
    ops->gemm_fwd(s->k, s->h, &w->k, b->rows, GEMM_ROUNDED);
    ops->gemm_fwd(s->v, s->h, &w->v, b->rows, GEMM_ROUNDED);
    ops->rope(s->q, b->positions, m->inv_freq, half, b->rows, (int)c->heads, (int)c->head_dim, 1);
    ops->rope(s->k, b->positions, m->inv_freq, half, b->rows, (int)c->kv_heads, (int)c->head_dim,
              1);
    seq_attn_fwd(m, l, s, b);
    ops->gemm_fwd(y, s->o, &w->o, b->rows, GEMM_ROUNDED);
    shard_sum(m, y, (gsize)b->rows * c->hidden);
}

/* weights [K] = softmax(z)[ids] / its sum, as route_fwd has them for ids of its own. */
static void weights_of(const Model *m, const int *ids, const void *z, gsize row, void *weights)
{
    const ModelConfig *c = &m->config;
    gsize k = c->experts_per_token, zs = row * c->experts;
    double most = -G_MAXDOUBLE, sum = 0;

    for (gsize i = 0; i < k; i++)
        most = MAX(most, model_number(m, z, zs + (gsize)ids[i]));
    for (gsize i = 0; i < k; i++)
        sum += exp(model_number(m, z, zs + (gsize)ids[i]) - most);
    for (gsize i = 0; i < k; i++) {
        model_number_set(m, weights, row * k + i,
                         exp(model_number(m, z, zs + (gsize)ids[i]) - most) / sum);
    }
}

/* The given experts take the place of the router's; where they are the same no bit changes. */
static guint64 reroute(const Model *m, guint l, LayerActs *s, const Batch *b)
{
    const ModelConfig *c = &m->config;
    gsize k = c->experts_per_token;
    guint64 rerouted = 0;

    for (int t = 0; t < b->rows; t++) {
        const guint16 *given = b->given + ((gsize)t * c->layers + l) * k;
        int *choice = s->choice + (gsize)t * k;
        gboolean same = TRUE;

        for (gsize i = 0; i < k && given[0] != FORWARD_OWN; i++) {
            same &= choice[i] == given[i];
            choice[i] = given[i];
        }
        if (!same) {
            weights_of(m, choice, s->router, (gsize)t, s->route);
            rerouted++;
        }
    }
    return rerouted;
}

static void note_choice(const Model *m, guint l, const LayerActs *s, const Batch *b)
{
    gsize k = m->config.experts_per_token;

    for (int t = 0; t < b->rows; t++)
        for (gsize i = 0; i < k; i++)
            b->chosen[((gsize)t * m->config.layers + l) * k + i] =
                (guint16)s->choice[(gsize)t * k + i];
}

static void experts(const Model *m, guint l, Acts *acts, const Batch *b, void *y)
{
    LayerActs *s = &acts->layers[l];
    const LayerWeights *w = &m->layers[l];
    const ModelConfig *c = &m->config;
    const Ops *ops = m->ops;
    MoeWeights mats = {w->w1, w->w3, w->w2};

    ops->gemm_fwd(s->router, s->g, &w->router, b->rows, GEMM_EXACT);
    ops->route_fwd(s->choice, s->route, s->router, b->rows, (int)c->experts,
                   (int)c->experts_per_token);
    if (b->given)
        acts->rerouted += reroute(m, l, s, b);
    if (b->chosen)
        note_choice(m, l, s, b);
    ops->route_plan(&s->plan, s->choice, b->rows, (int)c->experts_per_token, (int)c->experts);
    if (s->far) {
        far_forward(m, l, s, b->rows, y);
        return;
    }
    ops->moe_up_fwd(s->a, s->b, s->act, s->g, &s->plan, &mats);
    ops->moe_down_fwd(y, s->expert_out, s->act, s->route, &s->plan, &mats);
}

/* Where layer l leaves its output. */
static void *output_of(const Model *m, Acts *acts, guint l)
{
    return l + 1 < m->config.layers ? acts->layers[l + 1].x_in : acts->x_out;
}

void forward_layer(const Model *m, Acts *acts, guint l, const Batch *b)
{
    const ModelConfig *c = &m->config;
    const Ops *ops = m->ops;
    const LayerWeights *w = &m->layers[l];
    LayerActs *s = &acts->layers[l];
    void *next = output_of(m, acts, l);
    gboolean softmax = c->kinds[l] == ATTENTION_SOFTMAX;
    gsize width = (gsize)b->rows * c->hidden;

    ops->rmsnorm_fwd(s->h, s->rstd_in, s->x_in, w->input_norm, b->rows, (int)c->hidden,
                     c->norm_eps);
    (softmax ? attention_softmax : attention_lightning)(m, l, s, b, s->x_mid);
    ops->axpby(s->x_mid, softmax ? c->alpha_full : c->alpha_linear, s->h,
               softmax ? c->beta_full : c->beta_linear, width);
    ops->rmsnorm_fwd(s->g, s->rstd_post, s->x_mid, w->post_norm, b->rows, (int)c->hidden,
                     c->norm_eps);
    experts(m, l, acts, b, next);
    ops->axpby(next, c->alpha_mlp, s->g, c->beta_mlp, width);
}

static void layers(const Model *m, Acts *acts, const Batch *b)
{
    const ModelConfig *c = &m->config;

    shard_embed_fwd(m, acts->layers[0].x_in, b->ids, b->rows);
    for (guint l = 0; l < c->layers; l++)
        forward_layer(m, acts, l, b);
    m->ops->rmsnorm_fwd(acts->hidden, acts->rstd_final, acts->x_out, m->final_norm, b->rows,
                        (int)c->hidden, c->norm_eps);
}

/* Whether something between two ops reads or writes on the host: sums over ranks, rows on their way
 * to others, the routing. */
static gboolean host_looks(const Model *m, const Acts *acts, const Batch *b)
{
    return shard_is_needed(m) || acts->far || acts->seq || b->given || b->chosen;
}

void forward(const Model *m, Acts *acts, const Batch *b)
{
    g_assert(b->rows <= acts->rows_max);
    acts->rerouted = 0;
    if (acts->seq)
        seq_begin(m, acts->seq, b);
    if (host_looks(m, acts, b)) {
        layers(m, acts, b);
        return;
    }
    m->ops->begin();
    layers(m, acts, b);
    m->ops->end();
}

void forward_logits(const Model *m, void *logits, const void *hidden, int rows)
{
    m->ops->gemm_fwd(logits, hidden, &m->head, rows, GEMM_EXACT);
}
