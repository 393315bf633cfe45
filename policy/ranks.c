/*
 * What rank 0 of a trainer asks of the others, and their answers.
 *
 * Invariants
 *  1. An order is its kind and the length of what follows, to all ranks at once; then all of them
 *     do the same collectives.
 *  2. A follower waits for an order as long as it takes, and for everything else as long as
 *     TrainerRanks says.
 *  3. Moments lie on the rank that steps with them; they are in one place only for a checkpoint.
 *
 * Not here: gradients and steps (trainer.c), how messages travel (kernels/comm.h).
 */
#include "policy/ranks.h"

#include "policy/wire.h"

#include "base/error.h"

#include <string.h>

typedef enum {
    ORDER_SHAPE = 1,
    ORDER_GRADIENTS,
    ORDER_STEP,
    ORDER_LOGPROBS,
    ORDER_MOMENTS,
    ORDER_RESTORE,
    ORDER_END
} OrderKind;

typedef struct {
    OrderKind kind;
    guint64 bytes; /* of what follows */
} Order;

/* What a follower needs to build the same trainer. */
typedef struct {
    ModelConfig config;
    WeightFormat format;
    OpsReal real;
    char ops[32];
    int rows_max;
    ActsKeep keep;
    guint shares;
    double wait_s;
} Shape;

typedef struct {
    char loss[64];
    LossOptions options;
    double balance, temperature;
} LossWords;

typedef struct {
    double temperature;
    RolloutField field;
} LogprobWords;

typedef struct {
    gint64 steps;
    guint64 version;
} Counts;

/* ---- orders ---- */

static gboolean ask(Trainer *t, OrderKind kind, const void *data, gsize bytes, GError **error)
{
    Order order = {kind, bytes};

    if (t->comm->size == 1)
        return TRUE;
    comm_timeout(t->comm, t->wait_s);
    comm_broadcast(t->comm, 0, &order, sizeof order);
    comm_broadcast(t->comm, 0, (gpointer)(gsize)data, bytes);
    return trainer_joined(t, error);
}

gboolean ranks_ask_gradients(Trainer *t, RolloutGroup *const *groups, guint n,
                             const TrainerLoss *loss, GError **error)
{
    LossWords words = {
        .options = loss->options, .balance = loss->balance, .temperature = loss->temperature};
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    if (t->comm->size == 1)
        return TRUE;
    g_strlcpy(words.loss, loss->loss->name, sizeof words.loss);
    g_byte_array_append(bytes, (const guint8 *)&words, sizeof words);
    wire_put(bytes, groups, n);
    return ask(t, ORDER_GRADIENTS, bytes->data, bytes->len, error);
}

gboolean ranks_ask_step(Trainer *t, const TrainerStep *step, GError **error)
{
    return ask(t, ORDER_STEP, step, sizeof *step, error);
}

void ranks_dismiss(Comm *comm)
{
    Order order = {ORDER_END, 0};

    if (comm->size > 1 && comm->rank == 0)
        comm_broadcast(comm, 0, &order, sizeof order);
}

/* ---- moments ---- */

/* Every rank's part of `whole` goes from rank 0, or there. */
static void parts_move(Trainer *t, Params *whole, Params *part, gboolean out)
{
    guint ranks = (guint)t->comm->size;
    gsize real = ops_real_size(t->model->ops->real);
    g_autofree gsize *cut = g_new0(gsize, ranks), *own = g_new0(gsize, ranks);
    gboolean first = t->comm->rank == 0;

    for (guint r = 0; r < ranks; r++) {
        cut[r] = first ? t->ends[r] * real : 0;
        own[r] = params_bytes(part); /* all of it with rank 0 */
    }
    if (out)
        comm_all_to_all(t->comm, first ? whole->data : NULL, cut, part->data, own);
    else
        comm_all_to_all(t->comm, part->data, own, first ? whole->data : NULL, cut);
}

static void moments_move(Trainer *t, const RanksMoments *moments, gboolean out)
{
    parts_move(t, moments->first, t->moment1, out);
    parts_move(t, moments->second, t->moment2, out);
}

gboolean ranks_moments(Trainer *t, gboolean fill, RanksMoments *ret, GError **error)
{
    *ret = (RanksMoments){t->moment1, t->moment2, TRUE};
    if (t->comm->size == 1)
        return TRUE;
    *ret = (RanksMoments){0};
    if (!(ret->first = params_new(t->model, error)) || !(ret->second = params_new(t->model, error)))
        return FALSE;
    if (!fill)
        return TRUE;
    if (!ask(t, ORDER_MOMENTS, NULL, 0, error))
        return FALSE;
    moments_move(t, ret, FALSE);
    return trainer_joined(t, error);
}

void ranks_moments_clear(RanksMoments *moments)
{
    if (!moments->lent) {
        params_free(moments->first);
        params_free(moments->second);
    }
    *moments = (RanksMoments){0};
}

/* On every rank. */
static void restore_here(Trainer *t, const RanksMoments *moments, const Counts *counts)
{
    if (t->comm->size > 1) {
        comm_broadcast(t->comm, 0, t->master->data, params_bytes(t->master));
        moments_move(t, moments, TRUE);
    }
    t->steps = counts->steps;
    t->model->version = counts->version;
    params_set(t->master, t->model);
}

gboolean ranks_restore(Trainer *t, const RanksMoments *moments, gint64 steps, guint64 version,
                       GError **error)
{
    Counts counts = {steps, version};

    if (!ask(t, ORDER_RESTORE, &counts, sizeof counts, error))
        return FALSE;
    restore_here(t, moments, &counts);
    return trainer_joined(t, error);
}

/* ---- beginning ---- */

/* Every rank's word on whether it can take part: "" or a reason. */
static gboolean all_ready(Comm *comm, const char *why, GError **error)
{
    enum { WORDS = 256 };
    g_autofree char *all = g_new0(char, WORDS * comm->size);
    g_autofree gsize *ends = g_new(gsize, comm->size);
    CommFail fail;

    for (int r = 0; r < comm->size; r++)
        ends[r] = (gsize)(r + 1) * WORDS;
    g_strlcpy(all + WORDS * comm->rank, why, WORDS);
    comm_all_gather(comm, all, ends);
    if (comm_failed(comm, &fail))
        return error_set(error, ASSAY_ERROR_SYSTEM, "%s", fail.text);
    for (int r = 0; r < comm->size; r++)
        if (all[WORDS * r])
            return error_set(error, ASSAY_ERROR_SYSTEM, "rank %d: %s", r, all + WORDS * r);
    return TRUE;
}

gboolean ranks_gather(Trainer *t, ActsKeep keep, GError **error)
{
    Shape shape = {.config = t->model->config,
                   .format = t->model->format,
                   .real = t->model->ops->real,
                   .rows_max = t->packer->rows_max,
                   .keep = keep,
                   .shares = t->shares,
                   .wait_s = t->wait_s};
    g_auto(RanksMoments) none = {0};

    g_strlcpy(shape.ops, t->model->ops->name, sizeof shape.ops);
    return ask(t, ORDER_SHAPE, &shape, sizeof shape, error) && all_ready(t->comm, "", error) &&
           ranks_moments(t, FALSE, &none, error) &&
           ranks_restore(t, &none, t->steps, t->model->version, error);
}

/* ---- log-probabilities ---- */

/* Numbers of the rollouts of groups from .. to, one after the other; `out`: into the rollouts. */
static void field_move(RolloutGroup *const *groups, guint from, guint to, RolloutField field,
                       float *flat, gboolean out)
{
    for (guint g = from; g < to; g++)
        for (guint i = 0; i < groups[g]->n; i++) {
            Rollout *r = &groups[g]->rollouts[i];
            float **at = trainer_field(r, field);
            gsize bytes = (gsize)r->n * sizeof(float);

            if (out && !*at && !groups[g]->skipped && rollout_trained(r) > 0)
                *at = g_new0(float, r->n);
            if (*at && bytes > 0)
                memcpy(out ? *at : flat, out ? flat : *at, bytes);
            flat += r->n;
        }
}

/* Where the rollouts of each part of the groups end in field_move's array, in bytes. */
static gsize *field_ends(RolloutGroup *const *groups, const guint *cut, guint parts)
{
    gsize *ends = g_new0(gsize, parts), tokens = 0;

    for (guint p = 0, g = 0; p < parts; p++) {
        for (; g < cut[p]; g++)
            for (guint i = 0; i < groups[g]->n; i++)
                tokens += (gsize)groups[g]->rollouts[i].n;
        ends[p] = tokens * sizeof(float);
    }
    return ends;
}

/* On every rank: part r of the groups is rank r's, then all have all. No row's number depends on
 * the cut. */
static gboolean logprobs_here(Trainer *t, RolloutGroup *const *groups, guint n,
                              const LogprobWords *words, GError **error)
{
    guint ranks = (guint)t->comm->size, me = (guint)t->comm->rank, from;
    g_autofree guint *cut = g_new0(guint, ranks);
    g_autofree gsize *ends = NULL;
    g_autofree float *flat = NULL;
    g_autoptr(GError) own = NULL;

    pack_shares(t->model, groups, n, ranks, cut);
    ends = field_ends(groups, cut, ranks);
    from = me > 0 ? cut[me - 1] : 0;
    trainer_logprobs_here(t, NULL, groups + from, cut[me] - from, words->temperature, words->field,
                          &own);
    if (!all_ready(t->comm, own ? own->message : "", error))
        return FALSE;
    flat = g_malloc0(ends[ranks - 1] + sizeof *flat);
    field_move(groups, from, cut[me], words->field,
               flat + (me > 0 ? ends[me - 1] / sizeof *flat : 0), FALSE);
    comm_all_gather(t->comm, flat, ends);
    field_move(groups, 0, n, words->field, flat, TRUE);
    return trainer_joined(t, error);
}

gboolean ranks_logprobs(Trainer *t, RolloutGroup *const *groups, guint n, double temperature,
                        RolloutField field, GError **error)
{
    LogprobWords words = {temperature, field};
    g_autoptr(GByteArray) bytes = g_byte_array_new();

    g_byte_array_append(bytes, (const guint8 *)&words, sizeof words);
    wire_put(bytes, groups, n);
    return ask(t, ORDER_LOGPROBS, bytes->data, bytes->len, error) &&
           logprobs_here(t, groups, n, &words, error);
}

/* ---- following ---- */

/* The next order and its bytes; NULL: the ranks have failed. */
static guint8 *order_wait(Comm *comm, double wait_s, Order *order, GError **error)
{
    g_autofree guint8 *data = NULL;
    CommFail fail;

    comm_timeout(comm, 0);
    if (comm_broadcast(comm, 0, order, sizeof *order)) {
        comm_timeout(comm, wait_s);
        data = g_try_malloc(order->bytes + 1);
        if (!data)
            comm_fail(comm, "no memory for what rank 0 sends");
        else
            comm_broadcast(comm, 0, data, order->bytes);
    }
    if (!comm_failed(comm, &fail))
        return g_steal_pointer(&data);
    error_set(error, ASSAY_ERROR_SYSTEM, "%s", fail.text);
    return NULL;
}

static Model *model_like(const Shape *shape, GError **error)
{
    const Ops *ops = shape->real == OPS_F64 ? &ops_ref_f64 : ops_cpu();
    Model *model = model_new(ops, &shape->config, shape->format, error);

    if (model && strcmp(ops->name, shape->ops) != 0) {
        error_set(error, ASSAY_ERROR_SYSTEM, "computes with %s, rank 0 with %s: bits would differ",
                  ops->name, shape->ops);
        g_clear_pointer(&model, model_free);
    }
    return model;
}

static gboolean follow_gradients(Trainer *t, const guint8 *data, gsize bytes, GError **error)
{
    LossWords words;
    TrainerStats stats = {0};
    TrainerLoss loss = {0};
    g_autoptr(GPtrArray) groups = NULL;
    g_autoptr(GError) told = NULL; /* rank 0 says it aloud */

    if (bytes < sizeof words)
        return error_set(error, ASSAY_ERROR_INPUT, "an order of %" G_GSIZE_FORMAT " bytes", bytes);
    memcpy(&words, data, sizeof words);
    words.loss[sizeof words.loss - 1] = '\0';
    loss = (TrainerLoss){.loss = loss_find(words.loss),
                         .options = words.options,
                         .balance = words.balance,
                         .temperature = words.temperature};
    groups = wire_get(data + sizeof words, bytes - sizeof words, error);
    if (!groups || !loss.loss)
        return loss.loss || error_set(error, ASSAY_ERROR_INPUT, "no loss is called %s", words.loss);
    trainer_gradients_here(t, (RolloutGroup *const *)groups->pdata, groups->len, &loss, NULL, NULL,
                           &stats, &told);
    return TRUE;
}

static gboolean follow_logprobs(Trainer *t, const guint8 *data, gsize bytes, GError **error)
{
    LogprobWords words;
    g_autoptr(GPtrArray) groups = NULL;
    g_autoptr(GError) told = NULL;

    if (bytes < sizeof words)
        return error_set(error, ASSAY_ERROR_INPUT, "an order of %" G_GSIZE_FORMAT " bytes", bytes);
    memcpy(&words, data, sizeof words);
    groups = wire_get(data + sizeof words, bytes - sizeof words, error);
    if (groups)
        logprobs_here(t, (RolloutGroup *const *)groups->pdata, groups->len, &words, &told);
    return groups != NULL;
}

/* TRUE: whatever came of it, the next order may come. */
static gboolean follow_one(Trainer *t, const Order *order, const guint8 *data, GError **error)
{
    const RanksMoments none = {0};
    TrainerStats stats = {0};
    g_autoptr(GError) told = NULL;
    TrainerStep step;
    Counts counts;

    switch (order->kind) {
    case ORDER_GRADIENTS:
        return follow_gradients(t, data, order->bytes, error);
    case ORDER_STEP:
        memcpy(&step, data, sizeof step);
        trainer_step_here(t, &step, &stats, &told);
        return TRUE;
    case ORDER_LOGPROBS:
        return follow_logprobs(t, data, order->bytes, error);
    case ORDER_MOMENTS:
        moments_move(t, &none, FALSE);
        return TRUE;
    case ORDER_RESTORE:
        memcpy(&counts, data, sizeof counts);
        restore_here(t, &none, &counts);
        return TRUE;
    case ORDER_SHAPE:
    case ORDER_END:
    default:
        return error_set(error, ASSAY_ERROR_INPUT, "order %d of rank 0", (int)order->kind);
    }
}

static gboolean follow_all(Comm *comm, const Shape *shape, GError **error)
{
    TrainerRanks ranks = {comm, shape->shares, shape->wait_s};
    g_autoptr(GError) why = NULL;
    g_autoptr(Model) model = model_like(shape, &why);
    g_autoptr(Trainer) t =
        model ? trainer_part(model, shape->rows_max, shape->keep, &ranks, &why) : NULL;

    if (!all_ready(comm, t ? "" : why->message, error))
        return FALSE;
    for (;;) {
        Order order = {0};
        g_autofree guint8 *data = order_wait(comm, shape->wait_s, &order, error);

        if (!data || order.kind == ORDER_END)
            return data != NULL;
        if (!follow_one(t, &order, data, error)) {
            comm_fail(comm, error && *error ? (*error)->message : "an order not understood");
            return FALSE;
        }
    }
}

gboolean ranks_follow(Comm *comm, GError **error)
{
    Order order = {0};
    g_autofree guint8 *data = order_wait(comm, 0, &order, error);
    Shape shape;

    if (!data || order.kind == ORDER_END)
        return data != NULL;
    if (order.bytes != sizeof shape)
        return error_set(error, ASSAY_ERROR_INPUT, "rank 0 is of another version");
    memcpy(&shape, data, sizeof shape);
    return follow_all(comm, &shape, error);
}
