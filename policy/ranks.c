/*
 * What rank 0 of a trainer asks of the others, and their answers.
 *
 * Invariants
 *  1. An order is its kind and the length of what follows, to all ranks at once; then all of them
 *     do the same collectives.
 *  2. A follower waits for an order as long as it takes, and for everything else as long as
 *     TrainerRanks says.
 *  3. A follower builds its part of the model empty; every weight comes as a tensor that is put.
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
    ORDER_GET,
    ORDER_PUT,
    ORDER_RESTORE,
    ORDER_REFERENCE,
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
    char ops[32];
    int rows_max;
    ActsKeep keep;
    Layout layout;
    gboolean gives;
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

typedef struct {
    TrainerKept kept;
    guint tensor;
} TensorWords;

/* ---- orders ---- */

static gboolean ask_all(Comm *comm, double wait_s, OrderKind kind, const void *data, gsize bytes,
                        GError **error)
{
    Order order = {kind, bytes};
    CommFail fail;

    if (comm->size == 1)
        return TRUE;
    comm_timeout(comm, wait_s);
    comm_broadcast(comm, 0, &order, sizeof order);
    comm_broadcast(comm, 0, (gpointer)(gsize)data, bytes);
    return !comm_failed(comm, &fail) || error_set(error, ASSAY_ERROR_SYSTEM, "%s", fail.text);
}

static gboolean ask(Trainer *t, OrderKind kind, const void *data, gsize bytes, GError **error)
{
    return ask_all(t->comm, t->wait_s, kind, data, bytes, error);
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

/* ---- tensors ---- */

gboolean ranks_get(Trainer *t, TrainerKept kept, guint tensor, void *rows, GError **error)
{
    TensorWords words = {kept, tensor};

    if (!ask(t, ORDER_GET, &words, sizeof words, error))
        return FALSE;
    parts_get(t, kept, tensor, rows);
    return trainer_joined(t, error);
}

gboolean ranks_put(Trainer *t, TrainerKept kept, guint tensor, const void *rows, GError **error)
{
    TensorWords words = {kept, tensor};

    if (!ask(t, ORDER_PUT, &words, sizeof words, error))
        return FALSE;
    parts_put(t, kept, tensor, rows);
    return trainer_joined(t, error);
}

/* On every rank. */
static void restore_here(Trainer *t, const Counts *counts)
{
    t->steps = counts->steps;
    t->model->version = counts->version;
    parts_set(t);
}

gboolean ranks_restore(Trainer *t, gint64 steps, guint64 version, GError **error)
{
    Counts counts = {steps, version};

    if (!ask(t, ORDER_RESTORE, &counts, sizeof counts, error))
        return FALSE;
    restore_here(t, &counts);
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

/* This rank's part of a model that is empty so far, or of no part: `whole` itself. */
static Model *model_part(const Trainer *t, const Ops *ops, const Shape *shape, GError **error)
{
    const ModelConfig *config =
        &t->parts[t->comm->rank % (int)(t->layout.tp * t->layout.ep)].config;
    Model *model;

    if (strcmp(ops->name, shape->ops) != 0) {
        error_set(error, ASSAY_ERROR_SYSTEM, "computes with %s, rank 0 with %s: bits would differ",
                  ops->name, shape->ops);
        return NULL;
    }
    model = model_new(ops, config, shape->format, error);
    if (model && trainer_is_cut(&t->layout))
        model->groups = t->groups;
    return model;
}

/* The same trainer on every rank, rank 0 having `whole`. */
static Trainer *build(Comm *comm, const Ops *ops, const Shape *shape, Model *whole, GError **error)
{
    const TrainerRanks ranks = {comm, shape->layout, shape->shares, shape->wait_s};
    g_autoptr(Trainer) t = trainer_begin(&shape->config, &ranks, error);
    g_autoptr(GError) why = NULL;
    Model *model = whole;

    if (!t)
        return NULL;
    if (!whole || trainer_is_cut(&t->layout)) {
        t->is_part = TRUE;
        t->gives = shape->gives;
        t->follows = whole;
        t->model = model = model_part(t, ops, shape, &why);
    }
    if (model)
        trainer_build(t, model, shape->rows_max, shape->keep, &why);
    return all_ready(comm, why ? why->message : "", error) ? g_steal_pointer(&t) : NULL;
}

Trainer *ranks_gather(Model *m, int rows_max, ActsKeep keep, const TrainerRanks *ranks,
                      GError **error)
{
    Shape shape = {.config = m->config,
                   .format = m->format,
                   .rows_max = rows_max,
                   .keep = keep,
                   .layout = ranks->layout,
                   .shares = ranks->shares,
                   .wait_s = ranks->wait_s};
    g_autoptr(Trainer) t = NULL;
    Layout layout;
    guint shares;

    g_strlcpy(shape.ops, m->ops->name, sizeof shape.ops);
    if (!trainer_layout(&m->config, &ranks->layout, (guint)ranks->comm->size, &layout, error) ||
        !trainer_shares(layout.dp, ranks->shares, &shares, error))
        return NULL;
    g_assert(m->weights || trainer_is_cut(&layout));
    shape.gives = m->weights && trainer_is_cut(&layout);
    if (!ask_all(ranks->comm, ranks->wait_s, ORDER_SHAPE, &shape, sizeof shape, error) ||
        !(t = build(ranks->comm, m->ops, &shape, m, error)))
        return NULL;
    for (guint i = 0; m->weights && i < tensors_count(&m->config); i++) {
        TensorInfo info = tensors_info(&m->config, i);
        g_autofree void *rows = g_malloc(info.count * ops_real_size(m->ops->real));

        model_get(m, &info, rows);
        if (!ranks_put(t, KEPT_WEIGHTS, i, rows, error))
            return NULL;
    }
    return ranks_restore(t, 0, m->version, error) ? g_steal_pointer(&t) : NULL;
}

/* On every rank. */
static gboolean reference_here(Trainer *t, GError **error)
{
    g_autoptr(GError) why = NULL;

    g_clear_pointer(&t->reference, model_free);
    t->reference = model_new(t->model->ops, &t->model->config, t->model->format, &why);
    if (t->reference)
        t->reference->groups = t->model->groups;
    return all_ready(t->comm, why ? why->message : "", error);
}

gboolean ranks_reference(Trainer *t, GError **error)
{
    return ask(t, ORDER_REFERENCE, NULL, 0, error) && reference_here(t, error);
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

/* Where the rollouts of each part of the groups end in field_move's array, in bytes: by rank, of
 * the ranks that work on a part the first has it. */
static gsize *field_ends(const Trainer *t, RolloutGroup *const *groups, const guint *cut)
{
    guint ranks = (guint)t->comm->size, each = ranks / t->layout.dp;
    gsize *ends = g_new0(gsize, ranks), tokens = 0;

    for (guint r = 0, g = 0; r < ranks; r++) {
        for (; g < cut[r / each]; g++)
            for (guint i = 0; i < groups[g]->n; i++)
                tokens += (gsize)groups[g]->rollouts[i].n;
        ends[r] = tokens * sizeof(float);
    }
    return ends;
}

/* On every rank: part r of the groups is data rank r's, then all have all. No row's number depends
 * on the cut. */
static gboolean logprobs_here(Trainer *t, RolloutGroup *const *groups, guint n,
                              const LogprobWords *words, GError **error)
{
    guint ranks = (guint)t->comm->size, each = ranks / t->layout.dp, from;
    guint rank = (guint)t->comm->rank, me = rank / each;
    g_autofree guint *cut = g_new0(guint, t->layout.dp);
    g_autofree gsize *ends = NULL;
    g_autofree float *flat = NULL;
    g_autoptr(GError) own = NULL;

    pack_shares(t->model, groups, n, t->layout.dp, cut);
    ends = field_ends(t, groups, cut);
    from = me > 0 ? cut[me - 1] : 0;
    trainer_logprobs_here(t, groups + from, cut[me] - from, words->temperature, words->field, &own);
    if (!all_ready(t->comm, own ? own->message : "", error))
        return FALSE;
    flat = g_malloc0(ends[ranks - 1] + sizeof *flat);
    if (rank % each == 0)
        field_move(groups, from, cut[me], words->field,
                   flat + (rank > 0 ? ends[rank - 1] / sizeof *flat : 0), FALSE);
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
    TrainerStats stats = {0};
    g_autoptr(GError) told = NULL;
    TrainerStep step;
    TensorWords words;
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
    case ORDER_GET:
    case ORDER_PUT:
        memcpy(&words, data, sizeof words);
        if (order->kind == ORDER_GET)
            parts_get(t, words.kept, words.tensor, NULL);
        else
            parts_put(t, words.kept, words.tensor, NULL);
        return TRUE;
    case ORDER_RESTORE:
        memcpy(&counts, data, sizeof counts);
        restore_here(t, &counts);
        return TRUE;
    case ORDER_REFERENCE:
        reference_here(t, &told);
        return TRUE;
    case ORDER_SHAPE:
    case ORDER_END:
    default:
        return error_set(error, ASSAY_ERROR_INPUT, "order %d of rank 0", (int)order->kind);
    }
}

static gboolean follow_all(Comm *comm, const Ops *ops, const Shape *shape, GError **error)
{
    g_autoptr(Trainer) t = build(comm, ops, shape, NULL, error);

    if (!t)
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

gboolean ranks_follow(Comm *comm, const Ops *ops, GError **error)
{
    Order order = {0};
    g_autofree guint8 *data = order_wait(comm, 0, &order, error);
    Shape shape;

    if (!data || order.kind == ORDER_END)
        return data != NULL;
    if (order.bytes != sizeof shape)
        return error_set(error, ASSAY_ERROR_INPUT, "rank 0 is of another version");
    memcpy(&shape, data, sizeof shape);
    return follow_all(comm, ops, &shape, error);
}
