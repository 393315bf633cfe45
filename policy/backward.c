/*
 * The backward pass: the blocks of forward.c in reverse, each as a list of ops.
 *
 *     x_out = alpha g + beta Experts(g):  dg = alpha dx + Experts^T(beta dx), then RMSNorm^T
 *     x_mid = alpha h + beta Attention(h): the same with the attention's reverse
 *
 * Invariants
 *  1. Gradients of weights are added to; of activations, overwritten.
 *  2. Activations are read as forward kept them, or made anew from each layer's kept input: the
 *     same bits.
 *
 * Not here: losses, the optimiser.
 */
#include "policy/backward.h"

#include "policy/far.h"
#include "policy/sequence.h"
#include "policy/shard.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Gradients of one layer's activations, named as in LayerActs. */
struct Backward {
    void *dx, *dh, *dbranch;           /* [T, D] */
    void *dqkv, *dgate, *do_, *dmixed; /* [T, 3 H d], [T, H d] */
    void *dq, *dk, *dv;                /* [T, H d], [T, G d] */
    void *drouter, *droute;            /* [T, E], [T, K] */
    void *dact, *dout;                 /* [R, 2 F], [R, D] */
    void *states;                      /* scratch of lightning_bwd */
    void **dw1, **dw3, **dw2;          /* [E] */
    double balance;                    /* weight of even loads */
    char *memory;
};

/* ---- room ---- */

typedef struct {
    gsize field, elements;
} Room;

#define ROOMS 15

static void rooms_of(const Model *m, int rows_max, int64_t positions_max, Room rooms[ROOMS])
{
    const ModelConfig *c = &m->config;
    gsize rows = (gsize)rows_max, choices = rows * c->experts_per_token;
    gsize chunks = (gsize)(positions_max / c->chunk) + 2;
    const Room all[ROOMS] = {
        {G_STRUCT_OFFSET(Backward, dx), rows * c->hidden},
        {G_STRUCT_OFFSET(Backward, dh), rows * c->hidden},
        {G_STRUCT_OFFSET(Backward, dbranch), rows * c->hidden},
        {G_STRUCT_OFFSET(Backward, dqkv), rows * c->qkv_dim},
        {G_STRUCT_OFFSET(Backward, dgate), rows * c->attn_dim},
        {G_STRUCT_OFFSET(Backward, do_), rows * c->attn_dim},
        {G_STRUCT_OFFSET(Backward, dmixed), rows * c->attn_dim},
        {G_STRUCT_OFFSET(Backward, dq), rows * c->attn_dim},
        {G_STRUCT_OFFSET(Backward, dk), rows * c->kv_dim},
        {G_STRUCT_OFFSET(Backward, dv), rows * c->kv_dim},
        {G_STRUCT_OFFSET(Backward, drouter), rows * c->experts},
        {G_STRUCT_OFFSET(Backward, droute), choices},
        {G_STRUCT_OFFSET(Backward, dact), choices * 2 * c->ffn},
        {G_STRUCT_OFFSET(Backward, dout), choices * c->hidden},
        {G_STRUCT_OFFSET(Backward, states), c->heads * (chunks + 2) * c->head_dim * c->head_dim},
    };

    memcpy(rooms, all, sizeof all);
}

static gsize room_bytes(const Model *m, const Room *room)
{
    return (room->elements + 15) / 16 * 16 * ops_real_size(m->ops->real);
}

gsize backward_bytes(const Model *m, int rows_max, int64_t positions_max)
{
    Room rooms[ROOMS];
    gsize bytes = 0;

    rooms_of(m, rows_max, positions_max, rooms);
    for (guint i = 0; i < ROOMS; i++)
        bytes += room_bytes(m, &rooms[i]);
    return bytes;
}

Backward *backward_new(const Model *m, int rows_max, int64_t positions_max, GError **error)
{
    guint experts = m->config.experts;
    gsize bytes = backward_bytes(m, rows_max, positions_max), used = 0;
    g_autoptr(Backward) b = g_new0(Backward, 1);
    Room rooms[ROOMS];

    if (posix_memalign((void **)&b->memory, 64, bytes)) {
        b->memory = NULL;
        error_set_errno(error, ENOMEM, "backward pass, %" G_GSIZE_FORMAT " bytes", bytes);
        return NULL;
    }
    rooms_of(m, rows_max, positions_max, rooms);
    for (guint i = 0; i < ROOMS; i++) {
        *(void **)G_STRUCT_MEMBER_P(b, rooms[i].field) = b->memory + used;
        used += room_bytes(m, &rooms[i]);
    }
    b->dw1 = g_new0(void *, experts);
    b->dw3 = g_new0(void *, experts);
    b->dw2 = g_new0(void *, experts);
    return g_steal_pointer(&b);
}

void backward_balance(Backward *b, double weight)
{
    b->balance = weight;
}

void backward_free(Backward *b)
{
    if (!b)
        return;
    free(b->memory);
    g_free(b->dw1);
    g_free(b->dw3);
    g_free(b->dw2);
    g_free(b);
}

/* ---- blocks ---- */

/* dx (+)= dy W, and the gradient of W. */
static void linear_bwd(const Model *m, void *dx, void *dw, const void *dy, const void *x,
                       const OpsWeight *w, int rows, int add)
{
    m->ops->gemm_dw(dw, dy, x, w, rows);
    m->ops->gemm_dx(dx, dy, w, rows, add);
}

/* b->dbranch is the gradient of the block's output; adds to b->dh. */
static void attention_lightning_bwd(Backward *b, const Model *m, Params *g, guint l, LayerActs *s,
                                    const Batch *batch, const OpsSpanGrad *caches)
{
    const LayerWeights *w = &m->layers[l];
    const ModelConfig *c = &m->config;
    int rows = batch->rows;

    linear_bwd(m, b->dmixed, params_tensor(g, l, SLOT_ATTN_OUT, 0), b->dbranch, s->mixed, &w->out,
               rows, 0);
    shard_gatenorm_bwd(m, b->do_, b->dgate, params_tensor(g, l, SLOT_ATTN_NORM, 0), b->dmixed, s,
                       w->attn_norm, rows);
    seq_lightning_bwd(m, l, s, batch, caches, b->dqkv, b->do_, b->states);
    m->ops->silu_bwd(b->dqkv, b->dqkv, s->z, (size_t)rows * c->qkv_dim);
    linear_bwd(m, b->dh, params_tensor(g, l, SLOT_QKV, 0), b->dqkv, s->h, &w->qkv, rows, 1);
    linear_bwd(m, b->dh, params_tensor(g, l, SLOT_OUTPUT_GATE, 0), b->dgate, s->h, &w->gate, rows,
               1);
}

static void attention_softmax_bwd(Backward *b, const Model *m, Params *g, guint l, LayerActs *s,
                                  const Batch *batch, const OpsSpanGrad *caches)
{
    const LayerWeights *w = &m->layers[l];
    const ModelConfig *c = &m->config;
    int rows = batch->rows, half = (int)c->rotary_dim / 2;

    linear_bwd(m, b->do_, params_tensor(g, l, SLOT_O, 0), b->dbranch, s->o, &w->o, rows, 0);
    seq_attn_bwd(m, l, s, batch, caches, b->dq, b->dk, b->dv, b->do_);
    m->ops->rope(b->dq, batch->positions, m->inv_freq, half, rows, (int)c->heads, (int)c->head_dim,
                 -1);
    m->ops->rope(b->dk, batch->positions, m->inv_freq, half, rows, (int)c->kv_heads,
                 (int)c->head_dim, -1);
    linear_bwd(m, b->dh, params_tensor(g, l, SLOT_Q, 0), b->dq, s->h, &w->q, rows, 1);
    linear_bwd(m, b->dh, params_tensor(g, l, SLOT_K, 0), b->dk, s->h, &w->k, rows, 1);
    linear_bwd(m, b->dh, params_tensor(g, l, SLOT_V, 0), b->dv, s->h, &w->v, rows, 1);
}

/* dx of the experts' input into b->dh, from b->dbranch. */
static void experts_bwd(Backward *b, const Model *m, Params *g, guint l, LayerActs *s, int rows)
{
    const LayerWeights *w = &m->layers[l];
    const ModelConfig *c = &m->config;
    MoeWeights mats = {w->w1, w->w3, w->w2};

    for (guint e = 0; e < c->experts_held; e++) {
        b->dw1[e] = params_tensor(g, l, SLOT_W1, e);
        b->dw3[e] = params_tensor(g, l, SLOT_W3, e);
        b->dw2[e] = params_tensor(g, l, SLOT_W2, e);
    }
    if (s->far)
        far_backward(m, l, s, rows, b->dh, b->droute, b->dw1, b->dw3, b->dw2, b->dbranch);
    else
        m->ops->moe_bwd(b->dh, b->droute, b->dw1, b->dw3, b->dw2, b->dbranch, s->g, s->a, s->b,
                        s->act, s->expert_out, s->route, &s->plan, &mats, b->dact, b->dout);
    m->ops->route_bwd(b->drouter, b->droute, s->choice, s->route, rows, (int)c->experts,
                      (int)c->experts_per_token);
    if (b->balance > 0)
        m->ops->route_balance_bwd(b->drouter, s->router, &s->plan, b->balance);
    linear_bwd(m, b->dh, params_tensor(g, l, SLOT_ROUTER, 0), b->drouter, s->g, &w->router, rows,
               1);
}

/* dbranch = beta dx: what flows into the block beside the stream. */
static void branch(Backward *b, const Model *m, double beta, int rows)
{
    gsize n = (gsize)rows * m->config.hidden;

    memset(b->dbranch, 0, n * ops_real_size(m->ops->real));
    m->ops->axpby(b->dbranch, beta, b->dx, 0, n);
}

static void layer_bwd(Backward *b, const Model *m, Params *g, guint l, LayerActs *s,
                      const Batch *batch, const OpsSpanGrad *caches)
{
    const LayerWeights *w = &m->layers[l];
    const ModelConfig *c = &m->config;
    gboolean softmax = c->kinds[l] == ATTENTION_SOFTMAX;
    gsize n = (gsize)batch->rows * c->hidden;

    branch(b, m, c->beta_mlp, batch->rows);
    experts_bwd(b, m, g, l, s, batch->rows);
    m->ops->axpby(b->dh, c->alpha_mlp, b->dx, 1, n);
    m->ops->rmsnorm_bwd(b->dx, params_tensor(g, l, SLOT_POST_NORM, 0), b->dh, s->x_mid,
                        s->rstd_post, w->post_norm, batch->rows, (int)c->hidden);

    branch(b, m, softmax ? c->beta_full : c->beta_linear, batch->rows);
    memset(b->dh, 0, n * ops_real_size(m->ops->real));
    if (shard_is_first(m)) /* the stream beside the heads enters their sum once */
        m->ops->axpby(b->dh, softmax ? c->alpha_full : c->alpha_linear, b->dx, 0, n);
    (softmax ? attention_softmax_bwd : attention_lightning_bwd)(b, m, g, l, s, batch, caches);
    shard_sum(m, b->dh, n);
    m->ops->rmsnorm_bwd(b->dx, params_tensor(g, l, SLOT_INPUT_NORM, 0), b->dh, s->x_in, s->rstd_in,
                        w->input_norm, batch->rows, (int)c->hidden);
}

void backward(Backward *b, const Model *m, Params *g, Acts *acts, const Batch *batch,
              const OpsSpanGrad *cache_grads, const void *dhidden)
{
    const ModelConfig *c = &m->config;

    g_assert(acts->keep != ACTS_KEEP_NOTHING);
    m->ops->rmsnorm_bwd(b->dx, params_tensor(g, 0, SLOT_FINAL_NORM, 0), dhidden, acts->x_out,
                        acts->rstd_final, m->final_norm, batch->rows, (int)c->hidden);
    for (guint l = c->layers; l-- > 0;) {
        if (acts->keep == ACTS_KEEP_INPUTS)
            forward_layer(m, acts, l, batch);
        layer_bwd(b, m, g, l, &acts->layers[l], batch, cache_grads);
    }
    shard_embed_bwd(m, params_tensor(g, 0, SLOT_EMBED, 0), b->dx, batch->ids, batch->rows);
}
