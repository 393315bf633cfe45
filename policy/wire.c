/*
 * Groups of rollouts written one after the other, and read back.
 *
 * Invariants
 *  1. A length is held against what is left before anything is allocated for it.
 *  2. What is read back trains as what was written: all fields, to the bit.
 *
 * Not here: who sends it (ranks.c).
 */
#include "policy/wire.h"

#include "base/error.h"

#include <string.h>

/* The numbers of a group and of a rollout, as they go over the wire. */
typedef struct {
    gint32 prompt_n;
    guint32 n, width;
    gboolean skipped, has_experts;
} GroupHead;

typedef struct {
    gint32 n;
    gboolean has_anchor, has_ref, has_credit, has_experts, unscorable, no_loss;
    double reward, advantage, scale;
} RolloutHead;

typedef struct {
    const guint8 *at;
    gsize left;
    gboolean bad;
} Reader;

static void put(GByteArray *to, const void *data, gsize bytes)
{
    if (bytes > 0)
        g_byte_array_append(to, data, (guint)bytes);
}

static void get(Reader *from, void *data, gsize bytes)
{
    from->bad |= bytes > from->left;
    if (from->bad || bytes == 0)
        return;
    memcpy(data, from->at, bytes);
    from->at += bytes;
    from->left -= bytes;
}

/* An array of its own, or NULL where there is none. */
static void *get_array(Reader *from, gboolean there, gsize count, gsize size)
{
    void *array;

    from->bad |= there && count * size > from->left;
    if (!there || from->bad)
        return NULL;
    array = g_malloc0(count * size + size);
    get(from, array, count * size);
    return array;
}

static void put_rollout(GByteArray *to, const Rollout *r, guint width)
{
    gsize n = (gsize)r->n;
    RolloutHead head = {.n = r->n,
                        .has_anchor = r->anchor != NULL,
                        .has_ref = r->ref != NULL,
                        .has_credit = r->credit != NULL,
                        .has_experts = r->experts != NULL && width > 0,
                        .unscorable = r->unscorable,
                        .no_loss = r->no_loss,
                        .reward = r->reward,
                        .advantage = r->advantage,
                        .scale = r->scale};

    put(to, &head, sizeof head);
    put(to, r->ids, n * sizeof *r->ids);
    put(to, r->mask, n);
    put(to, r->mu, n * sizeof *r->mu);
    put(to, r->anchor, head.has_anchor ? n * sizeof *r->anchor : 0);
    put(to, r->ref, head.has_ref ? n * sizeof *r->ref : 0);
    put(to, r->credit, head.has_credit ? n * sizeof *r->credit : 0);
    put(to, r->experts, head.has_experts ? n * width * sizeof *r->experts : 0);
}

void wire_put(GByteArray *to, RolloutGroup *const *groups, guint n)
{
    put(to, &n, sizeof n);
    for (guint g = 0; g < n; g++) {
        const RolloutGroup *group = groups[g];
        GroupHead head = {.prompt_n = group->prompt_n,
                          .n = group->n,
                          .width = group->width,
                          .skipped = group->skipped,
                          .has_experts = group->experts != NULL && group->width > 0};
        gsize prompt = (gsize)group->prompt_n;

        put(to, &head, sizeof head);
        put(to, group->prompt, prompt * sizeof *group->prompt);
        put(to, group->experts, head.has_experts ? prompt * group->width * sizeof(guint16) : 0);
        for (guint i = 0; i < group->n; i++)
            put_rollout(to, &group->rollouts[i], group->width);
    }
}

static void get_rollout(Reader *from, Rollout *r, guint width)
{
    RolloutHead head = {0};
    gsize n;

    get(from, &head, sizeof head);
    from->bad |= head.n < 0;
    n = from->bad ? 0 : (gsize)head.n;
    *r = (Rollout){.n = (int)n,
                   .unscorable = head.unscorable,
                   .no_loss = head.no_loss,
                   .reward = head.reward,
                   .advantage = head.advantage,
                   .scale = head.scale};
    r->ids = get_array(from, TRUE, n, sizeof *r->ids);
    r->mask = get_array(from, TRUE, n, sizeof *r->mask);
    r->mu = get_array(from, TRUE, n, sizeof *r->mu);
    r->anchor = get_array(from, head.has_anchor, n, sizeof *r->anchor);
    r->ref = get_array(from, head.has_ref, n, sizeof *r->ref);
    r->credit = get_array(from, head.has_credit, n, sizeof *r->credit);
    r->experts = get_array(from, head.has_experts, n, width * sizeof *r->experts);
}

static RolloutGroup *get_group(Reader *from)
{
    GroupHead head = {0};
    RolloutGroup *group = g_new0(RolloutGroup, 1);

    get(from, &head, sizeof head);
    from->bad |=
        head.prompt_n < 0 || head.width > G_MAXUINT16 || head.n > from->left / sizeof(RolloutHead);
    if (from->bad)
        return group;
    group->prompt_n = head.prompt_n;
    group->width = head.width;
    group->skipped = head.skipped;
    group->prompt = get_array(from, TRUE, (gsize)head.prompt_n, sizeof *group->prompt);
    group->experts = get_array(from, head.has_experts, (gsize)head.prompt_n,
                               head.width * sizeof *group->experts);
    group->rollouts = g_new0(Rollout, head.n);
    for (; group->n < head.n && !from->bad; group->n++)
        get_rollout(from, &group->rollouts[group->n], head.width);
    return group;
}

GPtrArray *wire_get(const guint8 *data, gsize bytes, GError **error)
{
    g_autoptr(GPtrArray) groups =
        g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);
    Reader from = {.at = data, .left = bytes};
    guint n = 0;

    get(&from, &n, sizeof n);
    for (guint g = 0; g < n && !from.bad; g++)
        g_ptr_array_add(groups, get_group(&from));
    if (!from.bad && from.left == 0)
        return g_steal_pointer(&groups);
    error_set(error, ASSAY_ERROR_INPUT,
              "rollouts from another rank: group %u of %u does not fit %" G_GSIZE_FORMAT " bytes",
              groups->len, n, bytes);
    return NULL;
}
