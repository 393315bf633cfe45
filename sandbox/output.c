/*
 * Head and tail of a stream of any length, in bounded memory.
 *
 * Invariant: at most keep/2 bytes of head and keep bytes of tail are held at any time.
 */
#include "sandbox/output.h"

void output_init(Output *output, guint64 keep)
{
    *output = (Output){.keep = keep, .head = g_byte_array_new(), .tail = g_byte_array_new()};
}

void output_add(Output *output, const void *data, gsize len)
{
    output->total += len;
    if (output->keep == 0) {
        g_byte_array_append(output->head, data, (guint)len);
        return;
    }
    gsize first = (gsize)(output->keep / 2), last = (gsize)output->keep - first;
    gsize n = MIN(first - MIN(first, output->head->len), len);
    g_byte_array_append(output->head, data, (guint)n);
    const guint8 *rest = (const guint8 *)data + n;
    len -= n;
    if (len > last) {
        rest += len - last;
        len = last;
        g_byte_array_set_size(output->tail, 0);
    }
    g_byte_array_append(output->tail, rest, (guint)len);
    if (output->tail->len > 2 * last)
        g_byte_array_remove_range(output->tail, 0, output->tail->len - (guint)last);
}

GBytes *output_finish(Output *output, gboolean *ret_truncated)
{
    gsize last = (gsize)(output->keep - output->keep / 2);
    if (output->keep > 0 && output->tail->len > last)
        g_byte_array_remove_range(output->tail, 0, output->tail->len - (guint)last);
    guint64 missing = output->total - output->head->len - output->tail->len;
    if (missing > 0) {
        g_autofree char *note =
            g_strdup_printf("\n[... %" G_GUINT64_FORMAT " bytes not kept ...]\n", missing);
        g_byte_array_append(output->head, (const guint8 *)note, (guint)strlen(note));
        *ret_truncated = TRUE;
    }
    g_byte_array_append(output->head, output->tail->data, output->tail->len);
    g_clear_pointer(&output->tail, g_byte_array_unref);
    return g_byte_array_free_to_bytes(g_steal_pointer(&output->head));
}
