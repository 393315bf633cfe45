/*
 * Numbers by parameter: memory, and the way to and from a model's packed weights.
 */
#include "policy/params.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PARAMS_PAD 16 /* elements: tensors begin at multiples of 64 bytes */

ParamsBlock params_block(const TensorInfo *tensor)
{
    if (tensor->split == SPLIT_EXPERTS)
        return PARAMS_EXPERTS;
    return tensor->split == SPLIT_NONE ? PARAMS_WHOLE : PARAMS_SPLIT;
}

gsize *params_offsets(const ModelConfig *config, gsize ends[PARAMS_BLOCKS])
{
    guint tensors = tensors_count(config);
    gsize *offset = g_new0(gsize, tensors), at = 0;

    for (guint b = 0; b < PARAMS_BLOCKS; b++) {
        for (guint i = 0; i < tensors; i++) {
            TensorInfo info = tensors_info(config, i);

            if (params_block(&info) != b)
                continue;
            offset[i] = at;
            at += (info.count + PARAMS_PAD - 1) / PARAMS_PAD * PARAMS_PAD;
        }
        ends[b] = at;
    }
    return offset;
}

gsize params_count(const Model *m)
{
    gsize ends[PARAMS_BLOCKS];

    g_free(params_offsets(&m->config, ends));
    return ends[PARAMS_BLOCKS - 1];
}

Params *params_part(const Model *m, gsize first, gsize end, GError **error)
{
    g_autoptr(Params) params = g_new0(Params, 1);

    params->model = m;
    params->offset = params_offsets(&m->config, params->ends);
    params->count = params->ends[PARAMS_BLOCKS - 1];
    params->held = end - first;
    if (posix_memalign(&params->data, 64, params_bytes(params) + 1)) {
        params->data = NULL;
        error_set_errno(error, ENOMEM, "a number for each of %" G_GSIZE_FORMAT " parameters",
                        params->held);
        return NULL;
    }
    params_zero(params);
    return g_steal_pointer(&params);
}

Params *params_new(const Model *m, GError **error)
{
    return params_part(m, 0, params_count(m), error);
}

void params_free(Params *params)
{
    if (!params)
        return;
    free(params->data);
    g_free(params->offset);
    g_free(params);
}

gsize params_bytes(const Params *params)
{
    return params->held * ops_real_size(params->model->ops->real);
}

void params_zero(Params *params)
{
    memset(params->data, 0, params_bytes(params));
}

void *params_at(const Params *params, guint tensor)
{
    g_assert(params->held == params->count);
    return (char *)params->data + params->offset[tensor] * ops_real_size(params->model->ops->real);
}

void *params_tensor(const Params *params, guint layer, TensorSlot slot, guint expert)
{
    return params_at(params, tensors_index(&params->model->config, layer, slot, expert));
}

void params_get(Params *params)
{
    const ModelConfig *c = &params->model->config;

    for (guint i = 0; i < tensors_count(c); i++) {
        TensorInfo info = tensors_info(c, i);

        model_get(params->model, &info, params_at(params, i));
    }
}

void params_set(const Params *params, Model *model)
{
    const ModelConfig *c = &model->config;

    for (guint i = 0; i < tensors_count(c); i++) {
        TensorInfo info = tensors_info(c, i);

        model_set(model, &info, params_at(params, i));
    }
}
