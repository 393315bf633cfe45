/*
 * Values of a checkpoint: finite, zero where they pad, and their digest.
 */
#include "policy/verify.h"

#include "policy/coded.h"

#include <math.h>
#include <string.h>

#define PIECE 4096u

static gboolean is_padded(const TensorInfo *info)
{
    return info->init == INIT_EMBED || info->init == INIT_HEAD;
}

/* Values as doubles, piece by piece. */
static void check_values(const ModelConfig *config, const Safetensors *st, const TensorInfo *info,
                         const SafeTensor *tensor, VerifyReport *report)
{
    guint64 bad = 0, filled = 0;
    guint64 padding = is_padded(info) ? config->vocab_valid * info->dims[1] : info->count;
    double values[PIECE];
    for (guint64 first = 0; first < info->count; first += PIECE) {
        guint64 n = MIN(info->count - first, PIECE);
        weights_values(st, info, tensor, first, (gsize)n, values);
        for (guint64 i = 0; i < n; i++) {
            bad += !isfinite(values[i]);
            filled += first + i >= padding && values[i] != 0;
        }
    }
    report->not_finite += bad;
    report->padding_filled += filled;
    if (bad + filled > 0 && report->first_bad == NULL)
        report->first_bad = g_strdup(tensor->name);
}

static void add_bytes(GChecksum *sum, const guint8 *data, guint64 bytes)
{
    const guint64 step = 1u << 30; /* GLib's length is signed and may be 32 bits wide */
    for (guint64 at = 0; at < bytes; at += step)
        g_checksum_update(sum, data + at, (gssize)MIN(bytes - at, step));
}

static void add_tensor(GChecksum *sum, const Safetensors *st, const SafeTensor *tensor)
{
    g_autofree char *shape = safetensor_shape_text(tensor);
    g_autofree char *head =
        g_strdup_printf("%s %s %s\n", tensor->name, tensor_dtype_name(tensor->dtype), shape);
    g_checksum_update(sum, (const guchar *)head, -1);
    add_bytes(sum, safetensors_data(st, tensor), tensor->count * tensor_dtype_bytes(tensor->dtype));
}

gboolean verify_checkpoint(const char *dir, VerifyReport *report, GError **error)
{
    ModelConfig config;
    if (!model_config_read(dir, &config, error))
        return FALSE;
    g_autoptr(Safetensors) st = safetensors_open(dir, error);
    if (st == NULL || !tensors_check(&config, st, error))
        return FALSE;
    *report = (VerifyReport){.tensors = safetensors_count(st),
                             .params = tensors_params(&config),
                             .bytes = safetensors_bytes(st)};
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    for (guint i = 0; i < tensors_count(&config); i++) {
        TensorInfo info = tensors_info(&config, i);
        char name[TENSOR_NAME_MAX];
        tensors_name(&info, name);
        const SafeTensor *tensor = safetensors_find(st, name);
        g_autofree char *beside = g_strconcat(name, CODED_SCALE, NULL);
        const SafeTensor *scale = safetensors_find(st, beside);
        add_tensor(sum, st, tensor);
        if (scale != NULL)
            add_tensor(sum, st, scale);
        check_values(&config, st, &info, tensor, report);
    }
    report->digest = g_strdup(g_checksum_get_string(sum));
    return TRUE;
}

void verify_report_clear(VerifyReport *report)
{
    g_clear_pointer(&report->first_bad, g_free);
    g_clear_pointer(&report->digest, g_free);
}
