/*
 * Sequences over the borders of ranks.
 *
 * Invariants
 *  1. A state crosses a border as the sum of the ranks' own states, in the order of ranks: the bits
 *     depend on the cuts alone.
 *  2. The state that a rank's rows make is folded on a grid of chunks that ends with its last row;
 *     the outputs are made on one that begins with its first. So no part of a chunk crosses a
 *     border, and no power of lambda above 1 is ever formed.
 *  3. Keys and values of earlier rows are written into the pages as the op would have written them.
 *
 * Not here: heads, experts (shard.c, far.c), which rank gets which rows (the caller).
 */
#include "policy/sequence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a rank says of its rows. */
typedef struct {
    gsize rows, last;           /* rows of the last span */
    gboolean continues, inside; /* the first span had rows before; and it is the only one */
    gboolean goes_on;
} Rows;

typedef enum {
    SEQ_OWN = 0, /* [H][d][d] of all ranks: states, or their gradients */
    SEQ_SCRATCH, /* [H][d][d] */
    SEQ_OPEN,    /* zeros: the open chunk before an end's grid */
    SEQ_ZERO,    /* [T, H d] zeros */
    SEQ_DQKV,    /* [T, 3 H d] */
    SEQ_K,       /* [all rows, G d] */
    SEQ_V,
    SEQ_ARRAYS,
} SeqArray;

struct Seq {
    Rows *ranks;
    gsize first; /* row of the batch over all ranks */
    void **in;   /* [layers] S_in, [H][d][d] */
    guint layers;
    void *array[SEQ_ARRAYS];
    gsize bytes[SEQ_ARRAYS];
};

gboolean seq_is_needed(const Model *m)
{
    return m->groups.sequence && m->groups.sequence->size > 1;
}

static gsize state_bytes(const Model *m)
{
    return (gsize)m->config.attn_dim * m->config.head_dim * ops_real_size(m->ops->real);
}

static void *room(gsize bytes)
{
    void *at = NULL;

    if (posix_memalign(&at, 64, MAX(bytes, 64)))
        g_error("sequences over ranks: no memory for %" G_GSIZE_FORMAT " bytes", bytes);
    return memset(at, 0, bytes);
}

Seq *seq_new(const Model *m)
{
    Seq *seq = g_new0(Seq, 1);

    seq->layers = m->config.layers;
    seq->ranks = g_new0(Rows, m->groups.sequence->size);
    seq->in = g_new0(void *, seq->layers);
    for (guint l = 0; l < seq->layers; l++)
        if (m->config.kinds[l] == ATTENTION_LIGHTNING)
            seq->in[l] = room(state_bytes(m));
    return seq;
}

void seq_free(Seq *seq)
{
    if (!seq)
        return;
    for (guint l = 0; l < seq->layers; l++)
        free(seq->in[l]);
    for (guint i = 0; i < SEQ_ARRAYS; i++)
        free(seq->array[i]);
    g_free(seq->in);
    g_free(seq->ranks);
    g_free(seq);
}

/* Zeroed. */
static void *take(Seq *seq, SeqArray which, gsize bytes)
{
    if (seq->bytes[which] < bytes || !seq->array[which]) {
        free(seq->array[which]);
        seq->array[which] = room(bytes);
        seq->bytes[which] = bytes;
    }
    return memset(seq->array[which], 0, bytes);
}

void seq_begin(const Model *m, Seq *seq, const Batch *b)
{
    Comm *comm = m->groups.sequence;
    Rows *mine = &seq->ranks[comm->rank];
    g_autofree gsize *ends = g_new(gsize, comm->size);

    g_assert(b->n_spans > 0);
    *mine = (Rows){.rows = (gsize)b->rows,
                   .last = (gsize)b->spans[b->n_spans - 1].rows,
                   .continues = b->spans[0].pos0 > 0,
                   .inside = b->spans[0].pos0 > 0 && b->n_spans == 1,
                   .goes_on = b->goes_on};
    for (int r = 0; r < comm->size; r++)
        ends[r] = (gsize)(r + 1) * sizeof *mine;
    comm_all_gather(comm, seq->ranks, ends);
    seq->first = 0;
    for (int r = 0; r < comm->rank; r++)
        seq->first += seq->ranks[r].rows;
}

/* ---- states over borders ---- */

/* to = add + lambda^n to, by head; n < 0: to = add. */
static void carry(const Model *m, guint l, char *to, const char *add, gint64 n)
{
    gsize one = (gsize)m->config.head_dim * m->config.head_dim;
    gsize bytes = one * ops_real_size(m->ops->real);

    for (guint h = 0; h < m->config.heads; h++) {
        double power = n < 0 ? 0 : exp(-model_slope(&m->config, l, h, m->ops->real) * (double)n);

        m->ops->axpby(to + h * bytes, 1, add + h * bytes, power, one);
    }
}

/* All ranks' own states, this rank's being at its place in SEQ_OWN. */
static const char *gather_own(const Model *m, Seq *seq)
{
    Comm *comm = m->groups.sequence;
    g_autofree gsize *ends = g_new(gsize, comm->size);

    for (int r = 0; r < comm->size; r++)
        ends[r] = (gsize)(r + 1) * state_bytes(m);
    comm_all_gather(comm, seq->array[SEQ_OWN], ends);
    return seq->array[SEQ_OWN];
}

static char *own_of(const Model *m, Seq *seq)
{
    gsize bytes = state_bytes(m);

    return (char *)take(seq, SEQ_OWN, bytes * (gsize)m->groups.sequence->size) +
           bytes * (gsize)m->groups.sequence->rank;
}

/* The last span on a grid that ends with it; nothing came before. */
static OpsSpan at_end(const Model *m, Seq *seq, const Batch *b)
{
    OpsSpan span = b->spans[b->n_spans - 1];
    int chunk = (int)m->config.chunk;
    gsize open = 2 * (gsize)m->config.attn_dim * m->config.chunk;

    span.pos0 = (chunk - span.rows % chunk) % chunk;
    span.state_in = span.state_out = NULL;
    span.open = take(seq, SEQ_OPEN, open * ops_real_size(m->ops->real));
    return span;
}

/* The first span on a grid that begins with it, after the state `in`. */
static OpsSpan at_begin(const Model *m, guint l, Seq *seq, const Batch *b)
{
    OpsSpan span = b->spans[0];

    span.pos0 = 0;
    span.state_in = seq->in[l];
    span.state_out = take(seq, SEQ_SCRATCH, state_bytes(m));
    span.open = (char *)span.open + m->cache.open[l];
    return span;
}

/* S_in of this rank into seq->in[l]. */
static void states_meet(const Model *m, guint l, LayerActs *s, const Batch *b)
{
    Seq *seq = s->seq;
    char *own = own_of(m, seq), *in = seq->in[l];
    gsize bytes = state_bytes(m);
    const char *all;

    if (b->goes_on) {
        OpsSpan span = at_end(m, seq, b);

        span.state_out = own;
        m->ops->lightning_fwd(s->mixed, s->qkv, &span, 1, 0, 0, m->layers[l].decay,
                              model_heads(&m->config));
    }
    all = gather_own(m, seq);
    memset(in, 0, bytes);
    for (int p = 0; p < m->groups.sequence->rank; p++) {
        const Rows *rows = &seq->ranks[p];

        if (rows->goes_on)
            carry(m, l, in, all + (gsize)p * bytes, rows->inside ? (gint64)rows->rows : -1);
        else
            memset(in, 0, bytes);
    }
}

void seq_lightning_fwd(const Model *m, guint l, LayerActs *s, const Batch *b)
{
    const void *decay = m->layers[l].decay;
    OpsHeads heads = model_heads(&m->config);
    int from = 0;

    if (s->seq) {
        states_meet(m, l, s, b);
        from = b->spans[0].pos0 > 0;
    }
    if (from) {
        OpsSpan span = at_begin(m, l, s->seq, b);

        m->ops->lightning_fwd(s->o, s->qkv, &span, 1, 0, 0, decay, heads);
    }
    m->ops->lightning_fwd(s->o, s->qkv, b->spans + from, b->n_spans - from, m->cache.state[l],
                          m->cache.open[l], decay, heads);
}

/* G_end of this rank into SEQ_SCRATCH, from every rank's G_L. */
static const void *gradients_meet(const Model *m, guint l, Seq *seq)
{
    const char *all = gather_own(m, seq);
    gsize bytes = state_bytes(m);
    char *end = take(seq, SEQ_SCRATCH, bytes);

    for (int p = m->groups.sequence->size - 1; p > m->groups.sequence->rank; p--) {
        const Rows *rows = &seq->ranks[p];

        if (rows->continues)
            carry(m, l, end, all + (gsize)p * bytes, rows->inside ? (gint64)rows->rows : -1);
        else
            memset(end, 0, bytes);
    }
    return end;
}

/* Adds what the end state's gradient gives to the last span's keys and values. */
static void end_bwd(const Model *m, guint l, LayerActs *s, const Batch *b, const void *dend,
                    void *dqkv, void *states)
{
    gsize real = ops_real_size(m->ops->real), rows = (gsize)b->rows;
    OpsSpanGrad grad = {.dstate_out = dend};
    OpsSpan span = at_end(m, s->seq, b);
    gsize at = (gsize)span.row0 * m->config.qkv_dim, n = (gsize)span.rows * m->config.qkv_dim;
    char *more = take(s->seq, SEQ_DQKV, rows * m->config.qkv_dim * real);
    void *zero = take(s->seq, SEQ_ZERO, rows * m->config.attn_dim * real);

    m->ops->lightning_bwd(more, zero, s->qkv, &span, &grad, 1, 0, 0, m->layers[l].decay,
                          model_heads(&m->config), states);
    m->ops->axpby((char *)dqkv + at * real, 1, more + at * real, 1, n);
}

void seq_lightning_bwd(const Model *m, guint l, LayerActs *s, const Batch *b,
                       const OpsSpanGrad *grads, void *dqkv, const void *do_, void *states)
{
    const void *decay = m->layers[l].decay;
    OpsHeads heads = model_heads(&m->config);
    int from = s->seq && b->spans[0].pos0 > 0;
    char *own = s->seq ? own_of(m, s->seq) : NULL;

    m->ops->lightning_bwd(dqkv, do_, s->qkv, b->spans + from, grads + from, b->n_spans - from,
                          m->cache.state[l], m->cache.open[l], decay, heads, states);
    if (from) {
        OpsSpan span = at_begin(m, l, s->seq, b);
        OpsSpanGrad grad = {.dstate_in = own};

        m->ops->lightning_bwd(dqkv, do_, s->qkv, &span, &grad, 1, 0, 0, decay, heads, states);
    }
    if (s->seq) {
        const void *dend = gradients_meet(m, l, s->seq);

        if (b->goes_on)
            end_bwd(m, l, s, b, dend, dqkv, states);
    }
}

/* ---- keys and values of rows before ---- */

/* Bytes from the beginning of a layer's part of a page to channel i of head g at place c. */
static gsize key_at(const ModelConfig *c, gsize g, gsize i, gsize place)
{
    return (g * c->head_dim + i) * c->chunk + place;
}

static gsize value_at(const ModelConfig *c, gsize g, gsize i, gsize place)
{
    return ((c->kv_heads + g) * c->chunk + place) * c->head_dim + i;
}

/* Keys and values of the first span's positions before its first row: from rows [.., G d] into
 * pages, or (gradients) back. `k`, `v` are the rows of position 0. */
static void earlier_move(const Model *m, guint l, void *const *pages, gsize positions, char *k,
                         char *v, gboolean into)
{
    const ModelConfig *c = &m->config;
    gsize real = ops_real_size(m->ops->real);

    for (gsize p = 0; p < positions; p++) {
        char *page = (char *)pages[p / c->chunk] + m->cache.page[l];

        for (gsize g = 0; g < c->kv_heads; g++)
            for (gsize i = 0; i < c->head_dim; i++) {
                gsize row = (p * c->kv_dim + g * c->head_dim + i) * real;
                char *key = page + key_at(c, g, i, p % c->chunk) * real;
                char *value = page + value_at(c, g, i, p % c->chunk) * real;

                memcpy(into ? key : k + row, into ? k + row : key, real);
                memcpy(into ? value : v + row, into ? v + row : value, real);
            }
    }
}

/* Where rows of all ranks end, in units of `width`. */
static gsize *row_ends(const Model *m, const Seq *seq, gsize width)
{
    int ranks = m->groups.sequence->size;
    gsize *ends = g_new(gsize, ranks), rows = 0;

    for (int r = 0; r < ranks; r++)
        ends[r] = (rows += seq->ranks[r].rows) * width;
    return ends;
}

static char *rows_all(const Model *m, Seq *seq, SeqArray which, gsize width)
{
    gsize rows = 0;

    for (int r = 0; r < m->groups.sequence->size; r++)
        rows += seq->ranks[r].rows;
    return take(seq, which, rows * width);
}

/* Pages of the first span get the keys and values of the ranks before. */
static void keys_meet(const Model *m, guint l, LayerActs *s, const Batch *b)
{
    gsize width = m->config.kv_dim * ops_real_size(m->ops->real);
    gsize before = (gsize)b->spans[0].pos0, at = s->seq->first;
    char *k = rows_all(m, s->seq, SEQ_K, width), *v = rows_all(m, s->seq, SEQ_V, width);
    g_autofree gsize *ends = row_ends(m, s->seq, width);

    memcpy(k + at * width, s->k, (gsize)b->rows * width);
    memcpy(v + at * width, s->v, (gsize)b->rows * width);
    comm_all_gather(m->groups.sequence, k, ends);
    comm_all_gather(m->groups.sequence, v, ends);
    g_assert(before <= at);
    earlier_move(m, l, b->spans[0].pages, before, k + (at - before) * width,
                 v + (at - before) * width, TRUE);
}

void seq_attn_fwd(const Model *m, guint l, LayerActs *s, const Batch *b)
{
    if (s->seq)
        keys_meet(m, l, s, b);
    m->ops->attn_fwd(s->o, s->lse, s->q, s->k, s->v, b->spans, b->n_spans, m->cache.page[l],
                     model_heads(&m->config));
}

void seq_attn_bwd(const Model *m, guint l, LayerActs *s, const Batch *b, const OpsSpanGrad *grads,
                  void *dq, void *dk, void *dv, const void *do_)
{
    gsize kv = m->config.kv_dim, width = kv * ops_real_size(m->ops->real);
    CommReal real = m->ops->real == OPS_F64 ? COMM_F64 : COMM_F32;
    gsize before = (gsize)b->spans[0].pos0;
    g_autofree gsize *ends = NULL;
    char *k, *v;

    m->ops->attn_bwd(dq, dk, dv, do_, s->o, s->lse, s->q, b->spans, grads, b->n_spans,
                     m->cache.page[l], model_heads(&m->config));
    if (!s->seq)
        return;
    k = rows_all(m, s->seq, SEQ_K, width);
    v = rows_all(m, s->seq, SEQ_V, width);
    ends = row_ends(m, s->seq, kv);
    earlier_move(m, l, grads[0].dpages, before, k + (s->seq->first - before) * width,
                 v + (s->seq->first - before) * width, FALSE);
    comm_reduce_scatter(m->groups.sequence, real, dk, k, ends);
    comm_reduce_scatter(m->groups.sequence, real, dv, v, ends);
}
