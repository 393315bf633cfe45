/*
 * Rows on their way to experts of other ranks, and back.
 *
 *     origin   slots of a peer's experts, ascending -> counts, rows
 *     owner    rows by expert, then rank, then row  -> the moe ops with one expert a row
 *     origin   outputs into the slots they left     -> the sum by ascending expert
 *
 * Invariants
 *  1. Slots are sorted by expert (MoePlan), so what a peer gets is one run of them.
 *  2. Lengths are those of the counts that were told first: nothing is padded, nothing dropped.
 *  3. Rows of an expert come in the order of ranks, then in their own: the order of a single rank
 *     that has all rows, so the expert's gradients have its bits where ranks hold runs of rows.
 *
 * Room grows to the rows that come and stays.
 * Not here: the router (forward.c), what an expert computes (ops.h).
 */
#include "policy/far.h"

#include "policy/shard.h"

#include <stdlib.h>
#include <string.h>

/* Arrays by row that came. */
typedef enum {
    FAR_X = 0, /* [D] */
    FAR_A,     /* [F] */
    FAR_B,
    FAR_ACT,
    FAR_OUT,     /* [D] by sorted slot */
    FAR_Y,       /* [D] what goes back */
    FAR_DY,      /* [D] */
    FAR_DX,      /* [D] */
    FAR_WEIGHT,  /* [1] */
    FAR_DWEIGHT, /* [1] */
    FAR_DACT,    /* [2 F] */
    FAR_DOUT,    /* [D] */
    FAR_INTS,    /* expert, source, slot, order */
    FAR_SEND,    /* [D] by slot that leaves */
    FAR_BACK,    /* [D] by slot that left */
    FAR_ARRAYS,
} FarArray;

struct Far {
    void *array[FAR_ARRAYS];
    gsize bytes[FAR_ARRAYS];
    int sent, came;     /* rows */
    gsize *send, *recv; /* [ranks] rows, summed up */
    MoePlan plan;       /* of the rows that came; one expert each */
    int *offsets;
};

Far *far_new(void)
{
    return g_new0(Far, 1);
}

void far_free(Far *far)
{
    if (!far)
        return;
    for (guint i = 0; i < FAR_ARRAYS; i++)
        free(far->array[i]);
    g_free(far->send);
    g_free(far->recv);
    g_free(far->offsets);
    g_free(far);
}

gboolean far_is_needed(const ModelConfig *c)
{
    return c->experts_held < c->experts;
}

/* An array of at least `bytes`; what was in it is gone if it grew. */
static void *take(Far *far, FarArray which, gsize bytes)
{
    if (far->bytes[which] < bytes || !far->array[which]) {
        free(far->array[which]);
        far->bytes[which] = MAX(bytes, 64);
        if (posix_memalign(&far->array[which], 64, far->bytes[which]))
            g_error("rows of other ranks: no memory for %" G_GSIZE_FORMAT " bytes", bytes);
    }
    return far->array[which];
}

/* ---- who gets what ---- */

static int tensor_ranks(const Model *m)
{
    return m->groups.tensor->size;
}

/* The first expert of peer p of the expert group, as this rank's number in the tensor group has
 * it. */
static int expert_of(const Model *m, int p)
{
    return (p * tensor_ranks(m) + m->groups.tensor->rank) * (int)m->config.experts_held;
}

/* Does expert e belong to a rank of this one's number in the tensor group? */
static gboolean is_ours(const Model *m, int e)
{
    int block = e / (int)m->config.experts_held;

    return block % tensor_ranks(m) == m->groups.tensor->rank;
}

/* The rows of every held expert that each peer sends, [ranks][held], after telling it ours. */
static int *counts_tell(const Model *m, const MoePlan *plan)
{
    gsize ranks = (gsize)m->groups.expert->size, held = m->config.experts_held;
    g_autofree int *ours = g_new(int, ranks *held);
    int *theirs = g_new0(int, ranks *held);
    g_autofree gsize *ends = g_new(gsize, ranks);

    for (gsize p = 0; p < ranks; p++) {
        const int *at = plan->offsets + expert_of(m, (int)p);

        for (gsize e = 0; e < held; e++)
            ours[p * held + e] = at[e + 1] - at[e];
        ends[p] = (p + 1) * held * sizeof(int);
    }
    comm_all_to_all(m->groups.expert, ours, ends, theirs, ends);
    return theirs;
}

/* Where the rows of peers end, here and there, and the plan of those that come. */
static void meet(const Model *m, Far *far, const MoePlan *plan)
{
    gsize ranks = (gsize)m->groups.expert->size, held = m->config.experts_held;
    g_autofree int *counts = counts_tell(m, plan);
    int *expert;

    far->send = g_renew(gsize, far->send, ranks);
    far->recv = g_renew(gsize, far->recv, ranks);
    far->sent = far->came = 0;
    for (gsize p = 0; p < ranks; p++) {
        int first = expert_of(m, (int)p);

        far->sent += plan->offsets[first + (int)held] - plan->offsets[first];
        for (gsize e = 0; e < held; e++)
            far->came += counts[p * held + e];
        far->send[p] = (gsize)far->sent;
        far->recv[p] = (gsize)far->came;
    }
    expert = take(far, FAR_INTS, 4 * (gsize)far->came * sizeof(int));
    far->offsets = g_renew(int, far->offsets, held + 1);
    far->plan = (MoePlan){.offsets = far->offsets,
                          .source = expert + far->came,
                          .slot = expert + 2 * far->came,
                          .order = expert + 3 * far->came};
    for (gsize p = 0, t = 0; p < ranks; p++)
        for (gsize e = 0; e < held; e++)
            for (int i = 0; i < counts[p * held + e]; i++)
                expert[t++] = (int)e;
    m->ops->route_plan(&far->plan, expert, far->came, 1, (int)held);
}

/* Rows of `width` bytes: to the experts, or back to where they came from. */
static void rows_move(const Model *m, const Far *far, const void *from, void *to, gsize width,
                      gboolean back)
{
    gsize ranks = (gsize)m->groups.expert->size;
    g_autofree gsize *left = g_new(gsize, ranks), *landed = g_new(gsize, ranks);

    for (gsize p = 0; p < ranks; p++) {
        left[p] = (back ? far->recv[p] : far->send[p]) * width;
        landed[p] = (back ? far->send[p] : far->recv[p]) * width;
    }
    comm_all_to_all(m->groups.expert, from, left, to, landed);
}

/* Calls for every slot that leaves, in the order of leaving. */
typedef struct {
    const Model *m;
    const MoePlan *plan;
    int peer, slot, n;
} Leaving;

static gboolean leaving_next(Leaving *at)
{
    int ranks = at->m->groups.expert->size, held = (int)at->m->config.experts_held;

    for (at->slot++; at->peer < ranks; at->peer++) {
        int first = expert_of(at->m, at->peer);

        at->slot = MAX(at->slot, at->plan->offsets[first]);
        if (at->slot < at->plan->offsets[first + held]) {
            at->n++;
            return TRUE;
        }
    }
    return FALSE;
}

static Leaving leaving_begin(const Model *m, const MoePlan *plan)
{
    return (Leaving){.m = m, .plan = plan, .slot = -1, .n = -1};
}

/* Rows [T, width] by slot that leaves, to the experts. */
static void send_rows(const Model *m, Far *far, const MoePlan *plan, const void *rows, void *to)
{
    gsize width = m->config.hidden * ops_real_size(m->ops->real);
    char *out = take(far, FAR_SEND, (gsize)far->sent * width);

    for (Leaving at = leaving_begin(m, plan); leaving_next(&at);)
        memcpy(out + (gsize)at.n * width,
               (const char *)rows + (gsize)(plan->source[at.slot] / plan->topk) * width, width);
    rows_move(m, far, out, to, width, FALSE);
}

static MoeWeights weights_of(const LayerWeights *w)
{
    return (MoeWeights){w->w1, w->w3, w->w2};
}

/* ---- forward ---- */

/* The experts of this rank over the rows that came. */
static void work(const Model *m, guint l, Far *far)
{
    gsize real = ops_real_size(m->ops->real), rows = (gsize)far->came;
    gsize wide = rows * m->config.hidden * real, inner = rows * m->config.ffn * real;
    MoeWeights mats = weights_of(&m->layers[l]);
    char *one = take(far, FAR_WEIGHT, rows * real);

    for (gsize i = 0; i < rows; i++)
        model_number_set(m, one, i, 1);
    take(far, FAR_A, inner);
    take(far, FAR_B, inner);
    take(far, FAR_ACT, inner);
    m->ops->moe_up_fwd(far->array[FAR_A], far->array[FAR_B], far->array[FAR_ACT], far->array[FAR_X],
                       &far->plan, &mats);
    m->ops->moe_down_fwd(take(far, FAR_Y, wide), take(far, FAR_OUT, wide), far->array[FAR_ACT], one,
                         &far->plan, &mats);
}

/* y[t] = sum of weight times output over the experts that are ours, ascending. */
static void combine(const Model *m, const LayerActs *s, int rows, char *y)
{
    gsize n = m->config.hidden, width = n * ops_real_size(m->ops->real);
    const MoePlan *plan = &s->plan;

    memset(y, 0, (gsize)rows * width);
    for (int t = 0; t < rows; t++)
        for (int c = 0; c < plan->topk; c++) {
            int choice = t * plan->topk + plan->order[t * plan->topk + c];

            if (is_ours(m, s->choice[choice]))
                m->ops->axpby(y + (gsize)t * width, model_number(m, s->route, (gsize)choice),
                              (char *)s->expert_out + (gsize)plan->slot[choice] * width, 1, n);
        }
}

void far_forward(const Model *m, guint l, LayerActs *s, int rows, void *y)
{
    gsize width = m->config.hidden * ops_real_size(m->ops->real);
    Far *far = s->far;
    const char *back;

    meet(m, far, &s->plan);
    send_rows(m, far, &s->plan, s->g, take(far, FAR_X, (gsize)far->came * width));
    work(m, l, far);
    back = take(far, FAR_BACK, (gsize)far->sent * width);
    rows_move(m, far, far->array[FAR_Y], far->array[FAR_BACK], width, TRUE);
    for (Leaving at = leaving_begin(m, &s->plan); leaving_next(&at);)
        memcpy((char *)s->expert_out + (gsize)at.slot * width, back + (gsize)at.n * width, width);
    combine(m, s, rows, y);
    shard_sum(m, y, (gsize)rows * m->config.hidden);
}

/* ---- backward ---- */

/* The weights of slots that leave, by the same way. */
static void send_weights(const Model *m, Far *far, const LayerActs *s)
{
    gsize real = ops_real_size(m->ops->real);
    char *out = take(far, FAR_SEND, (gsize)far->sent * real);

    for (Leaving at = leaving_begin(m, &s->plan); leaving_next(&at);)
        memcpy(out + (gsize)at.n * real,
               (const char *)s->route + (gsize)s->plan.source[at.slot] * real, real);
    rows_move(m, far, out, take(far, FAR_WEIGHT, (gsize)far->came * real), real, FALSE);
}

/* dx[t] = the sum of what came back for the row, by ascending expert. */
static void add_back(const Model *m, Far *far, const MoePlan *plan, int rows, char *dx)
{
    gsize n = m->config.hidden, width = n * ops_real_size(m->ops->real);
    char *back = take(far, FAR_BACK, (gsize)far->sent * width);

    rows_move(m, far, far->array[FAR_DX], back, width, TRUE);
    memset(dx, 0, (gsize)rows * width);
    for (Leaving at = leaving_begin(m, plan); leaving_next(&at);)
        m->ops->axpby(dx + (gsize)(plan->source[at.slot] / plan->topk) * width, 1,
                      back + (gsize)at.n * width, 1, n);
}

static void route_back(const Model *m, Far *far, const MoePlan *plan, int rows, char *droute)
{
    gsize real = ops_real_size(m->ops->real);
    char *back = take(far, FAR_BACK, (gsize)far->sent * real);

    rows_move(m, far, far->array[FAR_DWEIGHT], back, real, TRUE);
    memset(droute, 0, (gsize)rows * (gsize)plan->topk * real);
    for (Leaving at = leaving_begin(m, plan); leaving_next(&at);)
        memcpy(droute + (gsize)plan->source[at.slot] * real, back + (gsize)at.n * real, real);
}

void far_backward(const Model *m, guint l, LayerActs *s, int rows, void *dx, void *droute,
                  void *const *dw1, void *const *dw3, void *const *dw2, const void *dy)
{
    gsize real = ops_real_size(m->ops->real), topk = (gsize)s->plan.topk;
    Far *far = s->far;
    gsize came = (gsize)far->came, wide = came * m->config.hidden * real;
    MoeWeights mats = weights_of(&m->layers[l]);

    send_rows(m, far, &s->plan, dy, take(far, FAR_DY, wide));
    send_weights(m, far, s);
    m->ops->moe_bwd(take(far, FAR_DX, wide), take(far, FAR_DWEIGHT, came * real), dw1, dw3, dw2,
                    far->array[FAR_DY], far->array[FAR_X], far->array[FAR_A], far->array[FAR_B],
                    far->array[FAR_ACT], far->array[FAR_OUT], far->array[FAR_WEIGHT], &far->plan,
                    &mats, take(far, FAR_DACT, 2 * came * m->config.ffn * real),
                    take(far, FAR_DOUT, wide));
    add_back(m, far, &s->plan, rows, dx);
    route_back(m, far, &s->plan, rows, droute);
    shard_sum(m, dx, (gsize)rows * m->config.hidden);
    shard_sum(m, droute, (gsize)rows * topk);
}
