/*
 * The sums and gathers of tensor parallel passes, over the heads and the vocabulary.
 *
 * Invariants
 *  1. All ranks of a group call the same points in the same order, whatever their rows hold.
 *  2. What comes out of a point has the same bits on all ranks of the group.
 *
 * Not here: experts (far.c), rows of other ranks (sequence.c), who has what (layout.c).
 */
#include "policy/shard.h"

#include <math.h>
#include <string.h>

static CommReal kind_of(const Model *m)
{
    return m->ops->real == OPS_F64 ? COMM_F64 : COMM_F32;
}

gboolean shard_is_needed(const Model *m)
{
    return m->groups.tensor && m->groups.tensor->size > 1;
}

gboolean shard_is_first(const Model *m)
{
    return !shard_is_needed(m) || m->groups.tensor->rank == 0;
}

void shard_sum(const Model *m, void *x, gsize n)
{
    if (shard_is_needed(m))
        comm_all_reduce(m->groups.tensor, kind_of(m), x, n);
}

/* ---- the embedding ---- */

static gboolean has_row(const ModelConfig *c, int id)
{
    return (guint)id >= c->vocab_first && (guint)id < c->vocab_first + c->vocab;
}

void shard_embed_fwd(const Model *m, void *y, const int *ids, int rows)
{
    gsize width = m->config.hidden * ops_real_size(m->ops->real);

    if (!shard_is_needed(m)) {
        m->ops->embed_fwd(y, &m->embed, ids, rows);
        return;
    }
    for (int t = 0; t < rows; t++) {
        int id = ids[t] - (int)m->config.vocab_first;
        char *row = (char *)y + (gsize)t * width;

        if (has_row(&m->config, ids[t]))
            m->ops->embed_fwd(row, &m->embed, &id, 1);
        else
            memset(row, 0, width);
    }
    shard_sum(m, y, (gsize)rows * m->config.hidden);
}

void shard_embed_bwd(const Model *m, void *dw, const void *dy, const int *ids, int rows)
{
    int hidden = (int)m->config.hidden;

    if (!shard_is_needed(m)) {
        m->ops->embed_bwd(dw, dy, ids, rows, hidden);
        return;
    }
    for (int t = 0; t < rows; t++) {
        int id = ids[t] - (int)m->config.vocab_first;
        gsize at = (gsize)t * m->config.hidden * ops_real_size(m->ops->real);

        if (has_row(&m->config, ids[t]))
            m->ops->embed_bwd(dw, (const char *)dy + at, &id, 1, hidden);
    }
}

/* ---- the norm over all heads of a lightning layer ---- */

/* sums[t] = sum_i x[t][i] y[t][i] over the channels of all ranks. */
static void row_dots(const Model *m, void *sums, const void *x, const void *y, int rows)
{
    gsize width = m->config.attn_dim;

    for (gsize t = 0; t < (gsize)rows; t++) {
        double sum = 0;

        for (gsize i = t * width; i < (t + 1) * width; i++)
            sum += model_number(m, x, i) * model_number(m, y, i);
        model_number_set(m, sums, t, sum);
    }
    shard_sum(m, sums, (gsize)rows);
}

static double width_all(const Model *m)
{
    return (double)m->config.attn_dim * m->groups.tensor->size;
}

void shard_gatenorm_fwd(const Model *m, LayerActs *s, const void *w, int rows)
{
    const ModelConfig *c = &m->config;
    gsize width = c->attn_dim;

    m->ops->gatenorm_fwd(s->mixed, s->rstd_attn, s->o, s->gate, w, rows, (int)width,
                         c->lightning_norm_eps);
    if (!shard_is_needed(m))
        return;
    row_dots(m, s->row_sum, s->o, s->o, rows);
    for (gsize t = 0; t < (gsize)rows; t++) {
        double mean = model_number(m, s->row_sum, t) / width_all(m);
        double r = 1 / sqrt(mean + c->lightning_norm_eps),
               scale = r / model_number(m, s->rstd_attn, t);

        model_number_set(m, s->rstd_attn, t, r);
        for (gsize i = t * width; i < (t + 1) * width; i++)
            model_number_set(m, s->mixed, i, model_number(m, s->mixed, i) * scale);
    }
}

/*
 * With n = r o and u = w (.) dn, the op's do_ is r (u - n mean(u (.) n)) with the mean over this
 * part's channels. sum(u (.) n) = sum(dmixed (.) mixed), so the mean over all channels is known
 * from what is at hand, and do_ is moved by r n times the difference of the two.
 */
void shard_gatenorm_bwd(const Model *m, void *do_, void *dg, void *dw, const void *dmixed,
                        const LayerActs *s, const void *w, int rows)
{
    gsize width = m->config.attn_dim;

    m->ops->gatenorm_bwd(do_, dg, dw, dmixed, s->o, s->gate, s->rstd_attn, w, rows, (int)width);
    if (!shard_is_needed(m))
        return;
    row_dots(m, s->row_sum, dmixed, s->mixed, rows);
    for (gsize t = 0; t < (gsize)rows; t++) {
        double r = model_number(m, s->rstd_attn, t), own = 0, move;

        for (gsize i = t * width; i < (t + 1) * width; i++)
            own += model_number(m, dmixed, i) * model_number(m, s->mixed, i);
        move = r * r * (own / (double)width - model_number(m, s->row_sum, t) / width_all(m));
        for (gsize i = t * width; i < (t + 1) * width; i++)
            model_number_set(m, do_, i, model_number(m, do_, i) + move * model_number(m, s->o, i));
    }
}

/* ---- the vocabulary ---- */

/* What a rank says of a row: log of the sum of its exponentials, mean of z under its own softmax,
 * and z of the token where it is the rank's. */
typedef struct {
    double lse, mean, z;
} RowPart;

/* Ids of this part, or -1. */
static int *ids_here(const Model *m, const int *ids, int rows)
{
    int *here = g_new(int, rows + 1);

    for (int t = 0; t < rows; t++)
        here[t] = has_row(&m->config, ids[t]) ? ids[t] - (int)m->config.vocab_first : -1;
    return here;
}

/* Row t of all ranks' parts together. */
static RowPart row_of(const RowPart *parts, gsize rows, gsize t, int ranks)
{
    double most = -INFINITY, sum = 0;
    RowPart all = {0};

    for (int r = 0; r < ranks; r++)
        most = MAX(most, parts[(gsize)r * rows + t].lse);
    for (int r = 0; r < ranks; r++)
        sum += exp(parts[(gsize)r * rows + t].lse - most);
    all.lse = most + log(sum);
    for (int r = 0; r < ranks; r++) {
        const RowPart *part = &parts[(gsize)r * rows + t];

        all.mean += part->lse > -INFINITY ? exp(part->lse - all.lse) * part->mean : 0;
        all.z += part->z;
    }
    return all;
}

/* This part's numbers of every row, from the op's; an id that is not here counts as 0 there. */
static void parts_fill(const Model *m, RowPart *mine, const void *logp, const void *lse,
                       const void *entropy, const int *here, int rows)
{
    for (gsize t = 0; t < (gsize)rows; t++) {
        mine[t] = (RowPart){.lse = -INFINITY};
        if (m->config.vocab_valid == 0)
            continue;
        mine[t].lse = model_number(m, lse, t);
        mine[t].mean = mine[t].lse - model_number(m, entropy, t);
        if (here[t] >= 0)
            mine[t].z = model_number(m, logp, t) + mine[t].lse;
    }
}

static void head_parts(const Model *m, void *logp, void *lse, void *entropy, const void *x,
                       const int *ids, int rows, double temperature, void *scratch)
{
    g_autofree RowPart *parts = g_new0(RowPart, rows * m->groups.tensor->size + 1);
    g_autofree int *here = ids_here(m, ids, rows), *some = g_new(int, rows + 1);
    g_autofree gsize *ends = g_new(gsize, m->groups.tensor->size);
    Comm *comm = m->groups.tensor;

    for (int t = 0; t < rows; t++)
        some[t] = MAX(here[t], 0);
    for (int r = 0; r < comm->size; r++)
        ends[r] = (gsize)(r + 1) * (gsize)rows * sizeof *parts;
    if (m->config.vocab_valid > 0)
        m->ops->head_fwd(logp, lse, entropy, x, &m->head, some, rows, (int)m->config.vocab_valid,
                         temperature, scratch);
    parts_fill(m, parts + (gsize)comm->rank * (gsize)rows, logp, lse, entropy, here, rows);
    comm_all_gather(comm, parts, ends);
    for (gsize t = 0; t < (gsize)rows; t++) {
        RowPart all = row_of(parts, (gsize)rows, t, comm->size);

        model_number_set(m, lse, t, all.lse);
        model_number_set(m, logp, t, all.z - all.lse);
        model_number_set(m, entropy, t, all.lse - all.mean);
    }
}

void shard_head_fwd(const Model *m, void *logp, void *lse, void *entropy, const void *x,
                    const int *ids, int rows, double temperature, void *scratch)
{
    if (shard_is_needed(m))
        head_parts(m, logp, lse, entropy, x, ids, rows, temperature, scratch);
    else
        m->ops->head_fwd(logp, lse, entropy, x, &m->head, ids, rows, (int)m->config.vocab_valid,
                         temperature, scratch);
}

void shard_head_bwd(const Model *m, void *dx, void *dw, const void *x, const HeadGrad *grad,
                    int rows, double temperature, void *scratch)
{
    g_autofree int *here = ids_here(m, grad->ids, rows);
    HeadGrad part = *grad;

    part.ids = here;
    m->ops->head_bwd(dx, dw, x, &m->head, &part, rows, (int)m->config.vocab_valid, temperature,
                     scratch);
    shard_sum(m, dx, (gsize)rows * m->config.hidden);
}
