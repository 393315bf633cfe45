/*
 * The forward pass: one description of the model's maths for prefill, decode, log-probabilities
 * and training alike. Results are those of ops.h's contract: a row never depends on its batch.
 *
 *     x  = E[token]
 *     h  = RMSNorm(x);  x = alpha h + beta Attention(h)        (residual: the normed stream)
 *     g  = RMSNorm(x);  x = alpha g + beta Experts(g)
 *     logits = RMSNorm(x) W_head^T
 * Source: MiniMax-AI/MiniMax-M1, modeling_minimax_m1.py; arXiv 2501.08313 section 2.
 */
#pragma once

#include "policy/model.h"

/* Rows of one or more sequences. `positions[t]` is the position of row t in its sequence. */
typedef struct Batch {
    int rows, n_spans;
    const int *ids;
    const int64_t *positions;
    const OpsSpan *spans;
    /* Experts by row and layer, [T, L, K], where somebody wants to know or to say them: */
    guint16 *chosen;      /* filled in; NULL: nobody asks */
    const guint16 *given; /* used instead of the router's own; NULL: none. A row of a layer that
                             begins with FORWARD_OWN is the router's */
    gboolean goes_on;     /* the last span has further rows on the next rank, see sequence.h */
} Batch;
#define FORWARD_OWN G_MAXUINT16

typedef struct Far Far; /* far.h */
typedef struct Seq Seq; /* sequence.h */

/* What one layer leaves for its backward pass; [T, ...] real unless said. */
typedef struct LayerActs {
    void *x_in;             /* [D] input of the layer */
    void *h, *rstd_in;      /* [D], [1] */
    void *z, *qkv;          /* lightning: [3 H d] before and after SiLU */
    void *gate, *rstd_attn; /* lightning: [H d] before the sigmoid, [1] */
    void *q, *k, *v, *lse;  /* softmax: after RoPE; [H d], [G d], [G d], [H] */
    void *o, *mixed;        /* [H d]: attention output; gated and normed (lightning) */
    void *x_mid;            /* [D] after attention */
    void *g, *rstd_post;    /* [D], [1] */
    void *router, *route;   /* [E] logits, [K] weights */
    void *a, *b, *act;      /* [K F] by sorted slot */
    void *expert_out;       /* [K D] by sorted slot */
    int *choice;            /* [K] experts of the row */
    MoePlan plan;
    void *row_sum; /* lightning: [1] scratch of shard.h */
    Seq *seq;      /* where rows are elsewhere */
    Far *far;      /* where experts are elsewhere: rows of other ranks */
} LayerActs;

/* What is kept of a forward pass. */
typedef enum ActsKeep {
    ACTS_KEEP_NOTHING = 0, /* layers share their room: inference */
    ACTS_KEEP_INPUTS,      /* each layer's input; backward makes the rest anew, layer by layer */
    ACTS_KEEP_ALL,
} ActsKeep;

/* Room for the activations of `rows_max` rows. */
typedef struct Acts {
    const Model *model;
    int rows_max;
    ActsKeep keep;
    LayerActs *layers; /* [layers]; what is not kept is the same room for all */
    void *x_out;       /* [T, D] output of the last layer */
    void *hidden;      /* [T, D] after the final norm */
    void *rstd_final;  /* [T] */
    Seq *seq;          /* of all layers, or NULL */
    Far **far;         /* [layers], [1] where layers share their room, or NULL */
    guint64 rerouted;  /* rows of layers whose router would have chosen others, in this forward */
    char *memory;
    gsize bytes;
} Acts;

Acts *acts_new(const Model *model, int rows_max, ActsKeep keep, GError **error);
void acts_free(Acts *acts);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Acts, acts_free)

/* Bytes that acts_new would take. */
gsize acts_bytes(const Model *model, int rows_max, ActsKeep keep);

/* Layer l from its input: fills acts->layers[l] and the next layer's input. It may be run again
 * with the same result where no span's state_in is the state_out of itself or of a later span. */
void forward_layer(const Model *model, Acts *acts, guint l, const Batch *batch);

/* Runs the layers; acts->hidden then holds the normed output of every row. */
void forward(const Model *model, Acts *acts, const Batch *batch);

/* logits [rows, V] = hidden W_head^T in f32 accuracy, of `rows` rows of hidden states. Ids from
 * vocab_valid on are written, and left out by whoever reads them. V is that of a rank's part where
 * ranks share the model; shard.h makes log-probabilities of it. */
void forward_logits(const Model *model, void *logits, const void *hidden, int rows);
