/*
 * Memory by class and rank.
 *
 * Invariant: the shape of a rank's part comes from the tensor's split (tensors.c), its bytes from
 * the format alone; both round up, so a plan is never too small.
 */
#include "policy/plan.h"

#include "base/error.h"

#define CONTEXT_MAX   (1ull << 32) /* tokens */
#define BATCH_MAX     (1u << 20)
#define FP8_BLOCK     128u
#define INT4_GROUP    32u
#define STATE_BYTES   4u
#define KV_BYTES      2u
#define KEY_AND_VALUE 2u

static const char *const format_names[PLAN_FORMATS] = {"f32", "bf16", "fp8", "int4"};

const char *plan_format_name(PlanFormat format)
{
    return format_names[format];
}

static guint64 divide_up(guint64 n, guint64 by)
{
    return (n + by - 1) / by;
}

static guint32 kv_heads_of_rank(const ModelConfig *config, const Layout *layout)
{
    return (guint32)divide_up(config->kv_heads, layout->tp);
}

/* A matrix of the format, `out` rows of `in`. */
static guint64 matrix_bytes(PlanFormat format, guint64 out, guint64 in)
{
    switch (format) {
    case PLAN_FP8:
        return out * in + 2 * divide_up(out, FP8_BLOCK) * divide_up(in, FP8_BLOCK);
    case PLAN_INT4:
        return out * (divide_up(in, 2) + 2 * divide_up(in, INT4_GROUP));
    case PLAN_F32:
        return 4 * out * in;
    case PLAN_BF16:
    case PLAN_FORMATS:
    default:
        return 2 * out * in;
    }
}

static PlanFormat format_of(TensorClass class, PlanFormat format)
{
    if (class == CLASS_ROUTER)
        return PLAN_F32;
    if (format == PLAN_INT4 && class != CLASS_EXPERT)
        format = PLAN_FP8;
    gboolean small = class == CLASS_NORM || class == CLASS_EMBED || class == CLASS_HEAD;
    return small && format != PLAN_F32 ? PLAN_BF16 : format;
}

/* What the first rank, which is never the emptiest, holds of one tensor. */
static guint64 tensor_bytes(const ModelConfig *config, const TensorInfo *info, PlanFormat format,
                            const Layout *layout)
{
    guint64 out = info->dims[0], in = info->dims[1];
    switch (info->split) {
    case SPLIT_ROWS:
        out = divide_up(out, layout->tp);
        break;
    case SPLIT_COLUMNS:
        in = divide_up(in, layout->tp);
        break;
    case SPLIT_KV:
        out = (guint64)kv_heads_of_rank(config, layout) * config->head_dim;
        break;
    case SPLIT_EXPERTS:
        if (info->expert >= divide_up(config->experts, (guint64)layout->tp * layout->ep))
            return 0;
        break;
    case SPLIT_NONE:
    default:
        break;
    }
    return matrix_bytes(format_of(info->class, format), out, in);
}

static gboolean check_ask(const ModelConfig *config, const PlanAsk *ask, Layout *ret_layout,
                          GError **error)
{
    if (ask->context > CONTEXT_MAX || ask->batch > BATCH_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT,
                         "context %" G_GUINT64_FORMAT " or batch %u is over %" G_GUINT64_FORMAT
                         " and %u",
                         ask->context, ask->batch, (guint64)CONTEXT_MAX, BATCH_MAX);
    return layout_check(config, &ask->layout, ret_layout, error);
}

gboolean plan_memory(const ModelConfig *config, const PlanAsk *ask, MemoryPlan *plan,
                     GError **error)
{
    guint64 batch;
    Layout layout;

    if (!check_ask(config, ask, &layout, error))
        return FALSE;
    *plan = (MemoryPlan){0};
    for (guint i = 0; i < tensors_count(config); i++) {
        TensorInfo info = tensors_info(config, i);
        guint64 bytes = tensor_bytes(config, &info, ask->format, &layout);
        plan->weights[info.class] += bytes;
        plan->weights_sum += bytes;
    }
    guint64 width = (guint64)config->heads / layout.tp * config->head_dim;
    guint64 state = config->lightning_layers * width * config->head_dim * STATE_BYTES;
    guint64 open =
        (guint64)config->lightning_layers * config->chunk * KEY_AND_VALUE * width * KV_BYTES;
    guint64 kv_token = (guint64)config->softmax_layers * KEY_AND_VALUE * config->head_dim *
                       kv_heads_of_rank(config, &layout) * KV_BYTES;
    guint64 kv = divide_up(ask->context, config->chunk) * config->chunk * kv_token;
    plan->sequence = state + open + kv;
    batch = divide_up(ask->batch, layout.dp);
    plan->state = state * batch;
    plan->open = open * batch;
    plan->kv = kv * batch;
    plan->total = plan->weights_sum + plan->sequence * batch;
    return TRUE;
}
