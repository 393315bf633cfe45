/*
 * Numbers by parameter: memory, and the way to and from a model's packed weights.
 */
#include "policy/params.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PARAMS_PAD 16 /* elements: tensors begin at multiples of 64 bytes */

static gsize padded(const Model *m, guint tensor)
{
    return (tensors_info(&m->config, tensor).count + PARAMS_PAD - 1) / PARAMS_PAD * PARAMS_PAD;
}

gsize params_count(const Model *m)
{
    gsize count = 0;

    for (guint i = 0; i < tensors_count(&m->config); i++)
        count += padded(m, i);
    return count;
}

Params *params_part(const Model *m, gsize first, gsize end, GError **error)
{
    guint tensors = tensors_count(&m->config);
    g_autoptr(Params) params = g_new0(Params, 1);

    params->model = m;
    params->offset = g_new0(gsize, tensors);
    for (guint i = 0; i < tensors; i++) {
        params->offset[i] = params->count;
        params->count += padded(m, i);
    }
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
