/*
 * Parts of a model by rank.
 *
 * Invariants
 *  1. What a rank has of a tensor follows from the tensor's split (tensors.c) and the first head,
 *     expert and row of its part (ModelConfig), nowhere else.
 *  2. Every element of every tensor is some rank's; only tensors without a split are several's.
 *
 * Not here: memory by rank (plan.c), what ranks tell each other in a pass (shard.c, far.c,
 * sequence.c).
 */
#include "policy/layout.h"

#include "base/error.h"

#include <string.h>

/* ---- what fits ---- */

static gboolean divides(guint32 a, guint32 b)
{
    return a > 0 && b % a == 0;
}

static gboolean check(gboolean ok, const char *a, guint64 n, const char *b, guint64 m,
                      GError **error)
{
    return ok || error_set(error, ASSAY_ERROR_INPUT,
                           "%s = %" G_GUINT64_FORMAT " does not divide %" G_GUINT64_FORMAT " %s", a,
                           n, m, b);
}

gboolean layout_check(const ModelConfig *c, const Layout *layout, Layout *ret, GError **error)
{
    Layout l = {MAX(layout->tp, 1), MAX(layout->ep, 1), layout->dp, MAX(layout->sp, 1)};
    guint64 experts;

    l.dp = l.dp > 0 ? l.dp : divides(l.sp, l.ep) ? l.ep / l.sp : l.ep;
    l.dp = MAX(l.dp, 1);
    experts = (guint64)l.tp * l.ep;
    *ret = l;
    if ((guint64)l.tp * l.sp > G_MAXUINT16 || l.dp > G_MAXUINT16 || l.ep > G_MAXUINT16)
        return error_set(error, ASSAY_ERROR_LIMIT, "tp = %u, ep = %u, dp = %u, sp = %u: too many",
                         l.tp, l.ep, l.dp, l.sp);
    return check(divides(l.tp, c->heads), "tp", l.tp, "heads", c->heads, error) &&
           check(divides(l.tp, c->kv_heads) || divides(c->kv_heads, l.tp), "tp", l.tp, "kv heads",
                 c->kv_heads, error) &&
           check(c->experts % experts == 0 || experts % c->experts == 0, "tp x ep", experts,
                 "experts", c->experts, error) &&
           check(divides(l.ep, l.sp * l.dp), "ep", l.ep, "(sp x dp) ranks", l.sp * l.dp, error);
}

guint32 layout_ranks(const Layout *l)
{
    return l->tp * l->sp * l->dp;
}

/* ---- a part ---- */

gboolean layout_part(const ModelConfig *whole, const Layout *l, guint32 rank, ModelConfig *ret,
                     GError **error)
{
    guint32 tp = rank % l->tp, ep = rank / l->tp % l->ep;
    ModelConfig c = *whole;
    guint32 end;

    if (l->tp > whole->kv_heads || l->tp * l->ep > whole->experts)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "%u ranks cannot deal out %u kv heads, or %u ranks %u experts", l->tp,
                         whole->kv_heads, l->tp * l->ep, whole->experts);
    c.heads = whole->heads / l->tp;
    c.head_first = tp * c.heads;
    c.kv_heads = whole->kv_heads / l->tp;
    c.attn_dim = c.heads * c.head_dim;
    c.kv_dim = c.kv_heads * c.head_dim;
    c.qkv_dim = 3 * c.attn_dim;
    c.experts_held = whole->experts / (l->tp * l->ep);
    c.expert_first = (ep * l->tp + tp) * c.experts_held;
    c.vocab_first = (guint32)((guint64)whole->vocab * tp / l->tp);
    end = (guint32)((guint64)whole->vocab * (tp + 1) / l->tp);
    c.vocab = end - c.vocab_first;
    c.vocab_valid = CLAMP(whole->vocab_valid, c.vocab_first, end) - c.vocab_first;
    *ret = c;
    return TRUE;
}

guint layout_tensor(const ModelConfig *whole, const ModelConfig *part, const TensorInfo *t)
{
    guint32 expert = t->split == SPLIT_EXPERTS ? part->expert_first + t->expert : t->expert;

    return tensors_index(whole, t->layer, t->slot, expert);
}

/* The first of the whole's rows, or columns, that the part has. */
static gsize first_of(const ModelConfig *whole, const ModelConfig *part, const TensorInfo *t)
{
    gsize heads = (gsize)part->head_first * part->head_dim;

    if (t->slot == SLOT_EMBED || t->slot == SLOT_HEAD)
        return part->vocab_first;
    if (t->split == SPLIT_KV)
        return heads / (whole->heads / whole->kv_heads);
    if (t->split == SPLIT_NONE || t->split == SPLIT_EXPERTS)
        return 0;
    return t->slot == SLOT_QKV ? 3 * heads : heads;
}

void layout_copy(const ModelConfig *whole, const ModelConfig *part, const TensorInfo *t,
                 void *whole_rows, void *part_rows, gsize size, LayoutCopy way)
{
    TensorInfo all = tensors_info(whole, layout_tensor(whole, part, t));
    gboolean columns = t->split == SPLIT_COLUMNS;
    gsize first = first_of(whole, part, t), width = t->dims[1] * size;
    gsize stride = all.dims[1] * size;

    for (gsize i = 0; i < t->dims[0]; i++) {
        char *there =
            (char *)whole_rows + (columns ? i * stride + first * size : (first + i) * stride);
        char *here = (char *)part_rows + i * width;

        if (way == LAYOUT_CUT)
            memcpy(here, there, width);
        else
            memcpy(there, here, width);
    }
}

/* ---- groups ---- */

gboolean layout_groups(const Layout *l, Comm *world, ModelGroups *ret, GError **error)
{
    int rank = world->rank, tp = (int)l->tp, sp = (int)l->sp, ep = (int)l->ep;
    int data = rank / tp, mine = rank % tp;
    const struct {
        Comm **to;
        int color;
    } groups[] = {
        {&ret->tensor, data},
        {&ret->sequence, data / sp * tp + mine},
        {&ret->expert, data / ep * tp + mine},
        {&ret->data, mine},
        {&ret->replicas, data % ep * tp + mine},
    };
    CommFail fail;

    *ret = (ModelGroups){0};
    for (guint i = 0; i < G_N_ELEMENTS(groups); i++)
        *groups[i].to = comm_split(world, groups[i].color);
    if (!comm_failed(world, &fail))
        return TRUE;
    layout_groups_clear(ret);
    return error_set(error, ASSAY_ERROR_SYSTEM, "%s", fail.text);
}

void layout_groups_clear(ModelGroups *groups)
{
    comm_close(groups->tensor);
    comm_close(groups->sequence);
    comm_close(groups->expert);
    comm_close(groups->data);
    comm_close(groups->replicas);
    *groups = (ModelGroups){0};
}
