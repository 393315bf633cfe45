/*
 * Packing: which rows, in which spans, over which blocks.
 *
 * Invariants
 *  1. A rollout's own span begins on a chunk border, so no open chunk is ever shared.
 *  2. The row that predicts a rollout's first token is in the rollout's own span.
 *  3. Blocks are kept from batch to batch; those of gradients are zeroed when handed out.
 *
 * Not here: what is done with the rows (trainer.c).
 */
#include "policy/pack.h"

#include "policy/sequence.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE, PAGE_GRAD, STATE, STATE_GRAD, OPEN, KINDS };

struct PackBlocks {
    GPtrArray *all; /* malloc'ed */
    guint used;
    gsize size;
    gboolean zero;
};

Packer *packer_new(const Model *m, int rows_max, GError **error)
{
    const struct {
        gsize size;
        gboolean zero;
    } kinds[KINDS] = {
        [PAGE] = {m->cache.page_bytes, FALSE},   [PAGE_GRAD] = {m->cache.page_bytes, TRUE},
        [STATE] = {m->cache.state_bytes, FALSE}, [STATE_GRAD] = {m->cache.state_bytes, TRUE},
        [OPEN] = {m->cache.open_bytes, FALSE},
    };
    Packer *p;

    if (rows_max < (int)m->config.chunk) {
        error_set(error, ASSAY_ERROR_INPUT, "%d rows are less than a chunk of %u", rows_max,
                  m->config.chunk);
        return NULL;
    }
    p = g_new0(Packer, 1);
    p->model = m;
    p->rows_max = rows_max;
    p->ids = g_new(int, rows_max);
    p->positions = g_new(gint64, rows_max);
    p->spans = g_new(OpsSpan, rows_max);
    p->cache_grads = g_new(OpsSpanGrad, rows_max);
    p->state_grads = g_new0(void *, rows_max);
    p->cut_spans = g_new(OpsSpan, rows_max);
    p->cut_grads = g_new(OpsSpanGrad, rows_max);
    p->targets = g_new(PackTarget, rows_max);
    p->page_lists = g_ptr_array_new_with_free_func(g_free);
    p->blocks = g_new0(struct PackBlocks, KINDS);
    for (guint k = 0; k < KINDS; k++)
        p->blocks[k] = (struct PackBlocks){.all = g_ptr_array_new_with_free_func(free),
                                           .size = MAX(kinds[k].size, 64),
                                           .zero = kinds[k].zero};
    return p;
}

void packer_free(Packer *p)
{
    if (!p)
        return;
    for (guint k = 0; k < KINDS; k++)
        g_ptr_array_unref(p->blocks[k].all);
    g_ptr_array_unref(p->page_lists);
    g_free(p->blocks);
    g_free(p->targets);
    g_free(p->cache_grads);
    g_free(p->state_grads);
    g_free(p->spans);
    g_free(p->cut_spans);
    g_free(p->cut_grads);
    g_free(p->target_ends);
    g_free(p->positions);
    g_free(p->given);
    g_free(p->ids);
    g_free(p);
}

/* NULL when there is no memory. */
static void *take(Packer *p, int kind)
{
    struct PackBlocks *b = &p->blocks[kind];
    void *block = NULL;

    if (b->used == b->all->len) {
        if (posix_memalign(&block, 64, (b->size + 63) / 64 * 64))
            return NULL;
        g_ptr_array_add(b->all, block);
    }
    block = b->all->pdata[b->used++];
    if (b->zero)
        memset(block, 0, b->size);
    return block;
}

/* ---- one span ---- */

/* Pages for positions 0 .. end: the first `n_shared` are `shared`'s, the others new. */
static void **pages_for(Packer *p, int kind, int64_t end, void *const *shared, int n_shared)
{
    int chunk = (int)p->model->config.chunk, n = (int)((end + chunk - 1) / chunk);
    void **pages = g_new0(void *, n + 1);

    g_ptr_array_add(p->page_lists, pages);
    for (int i = 0; i < n; i++) {
        pages[i] = i < n_shared ? shared[i] : take(p, kind);
        if (!pages[i])
            return NULL;
    }
    return pages;
}

/* `before`, and the gradients of its caches, are the span it continues; NULL: none. */
static gboolean add_span(Packer *p, int row0, int rows, int64_t pos0, int before)
{
    int chunk = (int)p->model->config.chunk, n_shared = (int)(pos0 / chunk);
    const OpsSpan *from = before >= 0 ? &p->spans[before] : NULL;
    OpsSpanGrad *from_grad = before >= 0 ? &p->cache_grads[before] : NULL;
    void **pages = pages_for(p, PAGE, pos0 + rows, from ? from->pages : NULL, n_shared);
    void **dpages =
        pages_for(p, PAGE_GRAD, pos0 + rows, from_grad ? from_grad->dpages : NULL, n_shared);
    OpsSpan span = {.row0 = row0,
                    .rows = rows,
                    .pos0 = pos0,
                    .pages = pages,
                    .state_in = from ? from->state_out : NULL,
                    .state_out = take(p, STATE),
                    .open = take(p, OPEN)};
    OpsSpanGrad grad = {.dpages = dpages};

    if (!pages || !dpages || !span.state_out || !span.open)
        return FALSE;
    if (from) {
        if (!p->state_grads[before])
            p->state_grads[before] = take(p, STATE_GRAD);
        from_grad->dstate_out = grad.dstate_in = p->state_grads[before];
        if (!grad.dstate_in)
            return FALSE;
    }
    p->state_grads[p->batch.n_spans] = NULL;
    p->spans[p->batch.n_spans] = span;
    p->cache_grads[p->batch.n_spans++] = grad;
    p->batch.rows = row0 + rows;
    return TRUE;
}

/* ---- groups ---- */

int pack_shared(const Model *m, const RolloutGroup *group)
{
    int chunk = (int)m->config.chunk;

    return seq_is_needed(m) ? 0 : (group->prompt_n - 1) / chunk * chunk;
}

static gboolean is_trained(const Rollout *r, int at)
{
    return r->mask[at] && !r->unscorable && !r->no_loss;
}

/* Tokens of the rollout that must be read to predict all trained ones; -1: none is trained. */
static int tokens_read(const Rollout *r)
{
    int at = r->n - 1;

    while (at >= 0 && !is_trained(r, at))
        at--;
    return at;
}

/* As packer_next will lay it out, were it never cut. */
static guint64 rows_of(const Model *m, const RolloutGroup *group)
{
    int shared = pack_shared(m, group);
    guint64 rows = 0;

    for (guint i = 0; i < group->n && !group->skipped; i++) {
        int read = tokens_read(&group->rollouts[i]);

        rows += read < 0 ? 0 : (guint64)(group->prompt_n - shared + read);
    }
    return rows > 0 ? rows + (guint64)shared : 0;
}

void pack_shares(const Model *m, RolloutGroup *const *groups, guint n, guint shares, guint *ends)
{
    guint64 all = 0, before = 0;
    guint share = 0;

    for (guint g = 0; g < n; g++)
        all += rows_of(m, groups[g]);
    for (guint g = 0; g < n; g++) {
        guint64 rows = rows_of(m, groups[g]), middle = 2 * before + rows;

        while (share + 1 < shares && middle * shares >= 2 * all * (share + 1))
            ends[share++] = g;
        before += rows;
    }
    while (share < shares)
        ends[share++] = n;
}

/* The experts that sampling chose for the row's token; the router's own where not known. */
static void row_experts(Packer *p, int row, int64_t position, const RolloutGroup *group,
                        const Rollout *r)
{
    gsize width = (gsize)p->model->config.layers * p->model->config.experts_per_token;
    gboolean prompt = position < group->prompt_n;
    const guint16 *from = prompt ? group->experts : r->experts;
    gsize at = (gsize)(prompt ? position : position - group->prompt_n);

    if (!group->width && !p->batch.given)
        return;
    if (!p->given)
        p->given = g_new(guint16, (gsize)p->rows_max * width);
    if (!p->batch.given) {
        memset(p->given, 0xff, (gsize)p->rows_max * width * sizeof *p->given); /* FORWARD_OWN */
        p->batch.given = p->given;
    }
    if (from && group->width)
        memcpy(p->given + (gsize)row * width, from + at * width, width * sizeof *from);
}

static void row_set(Packer *p, int row, int64_t position, const RolloutGroup *group,
                    const Rollout *r)
{
    p->positions[row] = position;
    p->ids[row] =
        position < group->prompt_n ? group->prompt[position] : r->ids[position - group->prompt_n];
    row_experts(p, row, position, group, r);
}

static gboolean add_prompt(Packer *p, const RolloutGroup *group, int shared)
{
    int row0 = p->batch.rows;

    for (int i = 0; i < shared; i++)
        row_set(p, row0 + i, i, group, NULL);
    return add_span(p, row0, shared, 0, -1);
}

static gboolean add_rollout(Packer *p, RolloutGroup *group, Rollout *r, int shared, int before)
{
    int row0 = p->batch.rows, rows = group->prompt_n - shared + tokens_read(r);

    for (int i = 0; i < rows; i++) {
        int at = shared + i + 1 - group->prompt_n; /* the token that this row predicts */

        row_set(p, row0 + i, shared + i, group, r);
        if (at >= 0 && is_trained(r, at))
            p->targets[p->n_targets++] = (PackTarget){
                .row = row0 + i, .id = r->ids[at], .at = at, .rollout = r, .number = p->n_rollouts};
    }
    p->n_rollouts++;
    return add_span(p, row0, rows, shared, before);
}

void packer_begin(Packer *p, RolloutGroup *const *groups, guint n)
{
    p->groups = groups;
    p->n_groups = n;
    p->group = p->next = 0;
}

static void batch_clear(Packer *p)
{
    for (guint k = 0; k < KINDS; k++)
        p->blocks[k].used = 0;
    g_ptr_array_set_size(p->page_lists, 0);
    p->n_targets = p->n_rollouts = 0;
    p->padding = 0;
    p->batch = (Batch){.ids = p->ids, .positions = p->positions, .spans = p->spans};
}

static gboolean too_long(const Packer *p, const RolloutGroup *group, const Rollout *r, int rows,
                         GError **error)
{
    return error_set(error, ASSAY_ERROR_LIMIT,
                     "a rollout of %d tokens after a prompt of %d needs %d rows, the limit is %d",
                     r->n, group->prompt_n, rows, p->rows_max);
}

/* [tokens, layers, K]: nothing or K different experts for each layer. They may come from a file. */
static gboolean routes_ok(const ModelConfig *c, const guint16 *experts, int tokens)
{
    guint k = c->experts_per_token;

    for (gsize i = 0; i < (gsize)tokens * c->layers; i++, experts += k)
        for (guint a = 0; a < k && experts[0] != FORWARD_OWN; a++) {
            if (experts[a] >= c->experts)
                return FALSE;
            for (guint b = 0; b < a; b++)
                if (experts[a] == experts[b])
                    return FALSE;
        }
    return TRUE;
}

static gboolean check_routes(const Packer *p, const RolloutGroup *group, GError **error)
{
    const ModelConfig *c = &p->model->config;
    gboolean ok = group->width == 0 || (group->width == c->layers * c->experts_per_token &&
                                        routes_ok(c, group->experts, group->prompt_n));

    for (guint i = 0; ok && group->width && i < group->n; i++)
        ok = routes_ok(c, group->rollouts[i].experts, group->rollouts[i].n);
    return ok || error_set(error, ASSAY_ERROR_INPUT, "the experts recorded are not of this model");
}

/* Adds what fits of the group at the cursor. TRUE: all of it went in. */
static gboolean add_group(Packer *p, GError **error)
{
    RolloutGroup *group = p->groups[p->group];
    int shared = pack_shared(p->model, group), prompt = shared, before = -1;

    if (p->next == 0 && !check_routes(p, group, error))
        return FALSE;
    for (; p->next < group->n && !group->skipped; p->next++) {
        Rollout *r = &group->rollouts[p->next];
        int read = tokens_read(r), rows = prompt + group->prompt_n - shared + read;
        gboolean ok = TRUE;

        if (read < 0)
            continue;
        if (p->batch.rows + rows > p->rows_max)
            return p->batch.rows > 0 ? FALSE : too_long(p, group, r, rows, error);
        if (prompt > 0) {
            ok = add_prompt(p, group, shared);
            before = p->batch.n_spans - 1;
            prompt = 0;
        }
        if (!ok || !add_rollout(p, group, r, shared, before))
            return error_set_errno(error, ENOMEM, "caches of %d rows", p->batch.rows);
    }
    return TRUE;
}

gboolean packer_next(Packer *p, GError **error)
{
    GError *local = NULL;

    batch_clear(p);
    while (p->group < p->n_groups && add_group(p, &local)) {
        p->group++;
        p->next = 0;
    }
    if (local) {
        g_prefix_error(&local, "group %u, rollout %u: ", p->group, p->next);
        g_propagate_error(error, local);
        return FALSE;
    }
    return p->batch.rows > 0;
}

gboolean packer_pad(Packer *p, int rows, GError **error)
{
    gsize width = (gsize)p->model->config.layers * p->model->config.experts_per_token;

    while (p->batch.rows < rows) {
        int row = p->batch.rows;

        p->ids[row] = 0;
        p->positions[row] = 0;
        if (p->batch.given)
            memset(p->given + (gsize)row * width, 0xff, width * sizeof *p->given);
        if (!add_span(p, row, 1, 0, -1))
            return error_set_errno(error, ENOMEM, "caches of %d rows", row);
        p->padding++;
    }
    return TRUE;
}

/* The spans of rows from .. to, which may begin and end within one. */
static void cut_spans(Packer *p, int from, int to)
{
    Batch *piece = &p->piece;

    for (int s = 0; s < p->batch.n_spans; s++) {
        OpsSpan span = p->spans[s];
        int first = MAX(span.row0, from), end = MIN(span.row0 + span.rows, to);

        if (first >= end)
            continue;
        piece->goes_on = end < span.row0 + span.rows;
        span.pos0 += first - span.row0;
        span.rows = end - first;
        span.row0 = first - from;
        p->cut_spans[piece->n_spans] = span;
        p->cut_grads[piece->n_spans++] = p->cache_grads[s];
    }
}

void packer_cut(Packer *p, guint rank, guint ranks)
{
    gsize rows = (gsize)p->batch.rows, width = p->model->config.experts_per_token;
    int from = (int)(rows * rank / ranks), to = (int)(rows * (rank + 1) / ranks);

    p->target_ends = g_renew(guint, p->target_ends, ranks);
    for (guint r = 0, n = 0; r < ranks; r++) {
        while (n < p->n_targets && p->targets[n].row < (int)(rows * (r + 1) / ranks))
            n++;
        p->target_ends[r] = n;
    }
    p->target_first = rank > 0 ? p->target_ends[rank - 1] : 0;
    p->target_end = p->target_ends[rank];
    p->piece = p->batch;
    p->piece_grads = p->cache_grads;
    p->piece_row = from;
    if (ranks == 1)
        return;
    p->piece = (Batch){.rows = to - from,
                       .ids = p->ids + from,
                       .positions = p->positions + from,
                       .spans = p->cut_spans};
    if (p->batch.given)
        p->piece.given = p->given + (gsize)from * p->model->config.layers * width;
    p->piece_grads = p->cut_grads;
    cut_spans(p, from, to);
}
