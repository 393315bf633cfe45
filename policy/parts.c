/*
 * Whole tensors and the ranks' parts of them: a checkpoint knows of no layout, ranks of no whole.
 *
 * Invariants
 *  1. One whole tensor is in memory at a time, besides what a trainer holds anyway.
 *  2. A number comes from the rank that steps with it, and goes to every rank that has it.
 *  3. What all tensor parallel ranks have is the first one's to say: they have the same bits.
 *
 * Not here: which part is whose (layout.c), who steps with what (step.c), files (checkpoint.c).
 */
#include "policy/trainer.h"

#include <string.h>

/* What a rank has of a tensor of the whole model. */
typedef struct {
    const ModelConfig *config; /* of its part */
    guint tensor;              /* the part's number */
    TensorInfo info;
    gsize first, n; /* elements of the part's tensor that it steps with */
} Slice;

static gsize real_of(const Trainer *t)
{
    return ops_real_size(t->model->ops->real);
}

static guint parts_of(const Trainer *t)
{
    return t->layout.tp * t->layout.ep;
}

/* FALSE: the tensor is an expert of others. */
static gboolean slice_of(const Trainer *t, guint rank, const TensorInfo *whole, Slice *ret)
{
    const TrainerPart *part = &t->parts[rank % parts_of(t)];
    ParamsBlock block = params_block(whole);
    guint alike = block == PARAMS_EXPERTS ? parts_of(t) : t->layout.tp;
    guint ranks = (guint)t->comm->size / alike, me = rank / alike;
    guint32 expert = whole->expert;
    gsize begin, end, from, to, count;

    if (block == PARAMS_EXPERTS) {
        if (expert - part->config.expert_first >= part->config.experts_held)
            return FALSE;
        expert -= part->config.expert_first;
    }
    *ret = (Slice){.config = &part->config,
                   .tensor = tensors_index(&part->config, whole->layer, whole->slot, expert)};
    ret->info = tensors_info(&part->config, ret->tensor);
    begin = block > 0 ? part->ends[block - 1] : 0;
    count = part->ends[block] - begin;
    from = me > 0 ? trainer_part_end(count, me - 1, ranks) : 0;
    to = trainer_part_end(count, me, ranks);
    begin = part->offset[ret->tensor] - begin; /* in the block */
    end = begin + ret->info.count;
    ret->first = CLAMP(from, begin, end) - begin;
    ret->n = CLAMP(to, begin, end) - begin - ret->first;
    return TRUE;
}

/* Which of the equal tensors of several parts the rank's is. */
static guint cut_of(const Trainer *t, guint rank, const TensorInfo *whole)
{
    return rank % (params_block(whole) == PARAMS_EXPERTS ? parts_of(t) : t->layout.tp);
}

/* Bytes that the rank tells rank 0 of the tensor. */
static gsize told(const Trainer *t, guint rank, const TensorInfo *whole, Slice *slice)
{
    if (!slice_of(t, rank, whole, slice) ||
        (params_block(whole) == PARAMS_WHOLE && cut_of(t, rank, whole) > 0))
        return 0;
    return slice->n * real_of(t);
}

/* The slice's numbers in this rank's memory. */
static char *slice_at(const Trainer *t, TrainerKept kept, const Slice *s)
{
    const TrainerBlock *b = &t->blocks[params_block(&s->info)];
    gsize element = t->master->offset[s->tensor] + s->first;
    gsize own = b->first + (b->comm->rank > 0 ? b->ends[b->comm->rank - 1] : 0);
    const Params *moment = kept == KEPT_MOMENT1 ? b->moment1 : b->moment2;

    return kept == KEPT_WEIGHTS ? (char *)t->master->data + element * real_of(t)
                                : (char *)moment->data + (element - own) * real_of(t);
}

/* One part's tensor from what its ranks told, at `landed` by rank, into the whole rows. */
static void part_paste(const Trainer *t, guint cut, const TensorInfo *whole, const char *landed,
                       const gsize *ends, void *rows)
{
    g_autofree char *part = NULL;
    Slice slice, any = {0};

    for (guint r = 0; r < (guint)t->comm->size; r++) {
        gsize bytes = told(t, r, whole, &slice);

        if (bytes == 0 || cut_of(t, r, whole) != cut)
            continue;
        any = slice;
        if (!part)
            part = g_malloc0(slice.info.count * real_of(t));
        memcpy(part + slice.first * real_of(t), landed + ends[r] - bytes, bytes);
    }
    if (part)
        layout_copy(&t->whole, any.config, &any.info, rows, part, real_of(t), LAYOUT_PASTE);
}

void parts_get(Trainer *t, TrainerKept kept, guint tensor, void *rows)
{
    guint ranks = (guint)t->comm->size;
    TensorInfo whole = tensors_info(&t->whole, tensor);
    g_autofree gsize *sent = g_new0(gsize, ranks), *ends = g_new0(gsize, ranks);
    g_autofree char *landed = NULL;
    Slice mine;
    gsize bytes = told(t, (guint)t->comm->rank, &whole, &mine), all = 0;

    for (guint r = 0; r < ranks; r++) {
        Slice theirs;

        sent[r] = bytes; /* all of it to rank 0 */
        if (t->comm->rank == 0)
            ends[r] = all += told(t, r, &whole, &theirs);
    }
    landed = g_malloc(all + 1);
    comm_all_to_all(t->comm, bytes > 0 ? slice_at(t, kept, &mine) : NULL, sent, landed, ends);
    for (guint cut = 0; t->comm->rank == 0 && cut < parts_of(t); cut++)
        part_paste(t, cut, &whole, landed, ends, rows);
}

void parts_put(Trainer *t, TrainerKept kept, guint tensor, const void *rows)
{
    TensorInfo whole = tensors_info(&t->whole, tensor);
    gsize real = real_of(t);
    g_autofree char *all = g_malloc(whole.count * real), *cut = NULL;
    Slice mine;

    if (t->comm->rank == 0)
        memcpy(all, rows, whole.count * real);
    comm_broadcast(t->comm, 0, all, whole.count * real);
    if (!slice_of(t, (guint)t->comm->rank, &whole, &mine))
        return;
    cut = g_malloc(mine.info.count * real);
    layout_copy(&t->whole, mine.config, &mine.info, all, cut, real, LAYOUT_CUT);
    if (kept == KEPT_REFERENCE)
        model_set(t->reference, &mine.info, cut);
    else if (kept == KEPT_WEIGHTS)
        memcpy(params_at(t->master, mine.tensor), cut, mine.info.count * real);
    else if (mine.n > 0)
        memcpy(slice_at(t, kept, &mine), cut + mine.first * real, mine.n * real);
}

void parts_set(Trainer *t)
{
    params_set(t->master, t->model);
    for (guint i = 0; t->gives && i < tensors_count(&t->whole); i++) {
        TensorInfo info = tensors_info(&t->whole, i);
        g_autofree void *rows = g_malloc(t->follows ? info.count * real_of(t) : 1);

        parts_get(t, KEPT_WEIGHTS, i, rows);
        if (t->follows)
            model_set(t->follows, &info, rows);
    }
    if (t->follows)
        t->follows->version = t->model->version;
}
