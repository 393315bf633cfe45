/*
 * What a run holds in memory: weights, optimiser, activations, caches, batches.
 *
 * 1. Nothing of the size of a model is allocated here: sizes come from those who will allocate.
 * 2. A part is what it can become, not what it is at first: a run that begins can go on.
 *
 * What is not counted: files that are read, the vocabulary, code; while a model is loaded it is
 * there twice, which is less than the optimiser that comes after it.
 */
#include "env/train_plan.h"
#include "env/backend.h"

#include "base/error.h"
#include "base/fd.h"
#include "policy/trainer.h"

#include <math.h>
#include <string.h>

#define PROC_BYTES_MAX (1u << 20)
/* ids, mask, log-probability, anchor, reference of a token, while it is sampled and in its group */
#define TOKEN_BYTES 34u

gboolean train_shape(const TrainConfig *c, guint vocab, ModelConfig *shape, GError **error)
{
    guint layers = (guint)strlen(c->model_pattern);
    double alpha = pow(2.0 * layers, 0.25);

    if (layers > MODEL_LAYERS_MAX || c->model_hidden % c->model_heads != 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "model.hidden must be a multiple of model.heads, layers at most %d",
                         MODEL_LAYERS_MAX);
    *shape = (ModelConfig){.hidden = (guint32)c->model_hidden,
                           .layers = layers,
                           .heads = (guint32)c->model_heads,
                           .kv_heads = (guint32)c->model_kv_heads,
                           .head_dim = (guint32)(c->model_hidden / c->model_heads),
                           .rotary_dim = (guint32)c->model_rotary,
                           .experts = (guint32)c->model_experts,
                           .experts_per_token = (guint32)c->model_topk,
                           .ffn = (guint32)c->model_ffn,
                           .vocab = vocab,
                           .vocab_valid = vocab,
                           .context_max = 1u << 20,
                           .norm_eps = 1e-5,
                           .lightning_norm_eps = 1e-6,
                           .rope_theta = 1e4,
                           .alpha_linear = alpha,
                           .alpha_full = alpha,
                           .alpha_mlp = alpha,
                           .beta_linear = 1,
                           .beta_full = 1,
                           .beta_mlp = 1};
    for (guint l = 0; l < layers; l++)
        shape->kinds[l] = c->model_pattern[l] == 's' ? ATTENTION_SOFTMAX : ATTENTION_LIGHTNING;
    if (!model_config_check(shape, error))
        return FALSE;
    shape->chunk = (guint32)c->model_chunk;
    return TRUE;
}

gboolean train_holds_whole(const TrainConfig *c)
{
    return !*c->rollout_server || !*c->model_path || c->ranks_tp * c->ranks_ep * c->ranks_sp == 1;
}

static gboolean shape_of(const TrainConfig *c, ModelConfig *shape, GError **error)
{
    g_autofree char *path = g_build_filename(c->model_path, "config.json", NULL);

    if (!*c->model_path)
        return train_shape(c, (guint)c->model_vocab, shape, error);
    if (!model_config_read(path, shape, error))
        return FALSE;
    shape->chunk = (guint32)c->model_chunk;
    return TRUE;
}

/* ---- what there is ---- */

/* The number after `word` (or the first of the file); G_MAXUINT64: none. */
static guint64 number_in(const char *path, const char *word)
{
    g_autoptr(GBytes) bytes = file_read(path, PROC_BYTES_MAX, NULL);
    g_autofree char *text = NULL;
    const char *at;

    if (!bytes)
        return G_MAXUINT64;
    text = g_strndup(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
    at = strstr(text, word);
    at = at ? at + strlen(word) : NULL;
    while (at && g_ascii_isspace(*at))
        at++;
    return at && g_ascii_isdigit(*at) ? g_ascii_strtoull(at, NULL, 10) : G_MAXUINT64;
}

/* Memory that is free or can be made so, and what the cgroup of a container allows. */
static guint64 memory_available(void)
{
    static const char *const limits[] = {"/sys/fs/cgroup/memory.max",
                                         "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
    guint64 kib = number_in("/proc/meminfo", "MemAvailable:");
    guint64 least = kib == G_MAXUINT64 ? kib : kib * 1024;

    for (guint i = 0; i < G_N_ELEMENTS(limits); i++)
        least = MIN(least, number_in(limits[i], ""));
    return least;
}

/* ---- the plan ---- */

/* The experts of one token. */
static guint64 routes_bytes(const TrainConfig *c, const ModelConfig *shape)
{
    return c->optim_routing_replay
               ? (guint64)shape->layers * shape->experts_per_token * sizeof(guint16)
               : 0;
}

static guint64 episodes_bytes(const TrainConfig *c, const ModelConfig *shape)
{
    guint64 episodes = (guint64)c->rollout_groups * (guint64)c->rollout_samples *
                       (guint64)(c->rollout_refill + 1) * (guint64)(c->run_behind + 1);

    return episodes * (guint64)train_config_turns(c) * (guint64)c->rollout_tokens *
           (TOKEN_BYTES + 2 * routes_bytes(c, shape));
}

static guint64 engine_bytes(const TrainConfig *c, const Model *m)
{
    return ((guint64)c->rollout_cache_mib << 20) +
           acts_bytes(m, (int)MAX(c->rollout_rows, c->model_chunk), ACTS_KEEP_NOTHING);
}

gboolean train_plan(const TrainConfig *c, const TrainPlanRanks *ranks, TrainPlan *plan,
                    GError **error)
{
    const Layout wanted = train_config_layout(c);
    int rows = (int)c->optim_rows;
    ActsKeep keep = c->optim_recompute ? ACTS_KEEP_INPUTS : ACTS_KEEP_ALL;
    g_autoptr(Model) m = NULL, part = NULL;
    guint64 params, acts, trainer, moments, sums, whole, own, reference;
    ModelConfig shape, cut;
    Layout layout;
    guint shares;

    if (!shape_of(c, &shape, error) ||
        !trainer_layout(&shape, &wanted, ranks->all, &layout, error) ||
        !trainer_shares(layout.dp, (guint)c->optim_shares, &shares, error) ||
        !layout_part(&shape, &layout, layout.tp - 1, &cut, error)) /* the largest part */
        return FALSE;
    m = model_shape(backend_ops(), &shape, train_config_weights(c));
    part = model_shape(backend_ops(), &cut, train_config_weights(c));
    params = params_count(part) * ops_real_size(m->ops->real);
    acts = acts_bytes(part, (rows + (int)layout.sp - 1) / (int)layout.sp, keep);
    trainer = trainer_bytes(part, rows, keep, &layout, shares);
    moments = trainer_moments_bytes(part, &layout);
    sums = trainer_sums_bytes(part, &layout, shares);
    whole = train_holds_whole(c) ? m->weights_bytes : 0;
    own = trainer_is_cut(&layout) ? part->weights_bytes : 0; /* beside the whole one */
    reference = strcmp(c->loss_kl, "none") != 0 ? part->weights_bytes : 0;
    *plan =
        (TrainPlan){.parts = {{"weights", "ranks.tp, ranks.ep", whole + own},
                              {"unrounded weights", "", params},
                              {"moments", "", moments},
                              {"gradients", "optim.shares", params + sums},
                              {"activations", "optim.rows, optim.recompute", acts},
                              {"backward pass and head", "optim.rows",
                               trainer - 2 * params - moments - sums - acts},
                              {"reference weights", "loss.kl", reference},
                              {"engine", "rollout.cache_mib, rollout.rows",
                               *c->rollout_server ? 0 : engine_bytes(c, m)},
                              {"episodes", "rollout.groups, rollout.samples, rollout.refill",
                               episodes_bytes(c, &shape)},
                              {"other ranks", "optim.rows",
                               (ranks->here - 1) * (part->weights_bytes + reference + trainer)}},
                    .available = memory_available()};
    g_assert(trainer >= 2 * params + moments + sums + acts);
    for (guint i = 0; i < TRAIN_PLAN_PARTS; i++)
        plan->total += plan->parts[i].bytes;
    return TRUE;
}

gboolean train_plan_check(const TrainPlan *plan, GError **error)
{
    g_autoptr(GString) sum = g_string_new(NULL);

    if (plan->total <= plan->available)
        return TRUE;
    for (guint i = 0; i < TRAIN_PLAN_PARTS; i++) {
        const TrainPlanPart *part = &plan->parts[i];
        g_autofree char *size = g_format_size_full(part->bytes, G_FORMAT_SIZE_IEC_UNITS);

        if (part->bytes > 0)
            g_string_append_printf(sum, "%s%s %s%s%s%s", i ? ", " : "", part->name, size,
                                   *part->key ? " (" : "", part->key, *part->key ? ")" : "");
    }
    g_autofree char *total = g_format_size_full(plan->total, G_FORMAT_SIZE_IEC_UNITS);
    g_autofree char *available = g_format_size_full(plan->available, G_FORMAT_SIZE_IEC_UNITS);

    return error_set(error, ASSAY_ERROR_LIMIT, "the run wants %s of memory, there are %s: %s",
                     total, available, sum->str);
}
