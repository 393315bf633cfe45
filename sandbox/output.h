/*
 * What is kept of a stream: its first half and its last half, within a cap.
 *
 *     output_add(&out, data, n); ... GBytes *kept = output_finish(&out, &truncated);
 */
#pragma once

#include <glib.h>

typedef struct Output {
    guint64 keep; /* bytes kept at most; 0: all */
    guint64 total;
    GByteArray *head, *tail; /* tail: up to two halves, trimmed when full */
} Output;

void output_init(Output *output, guint64 keep);
void output_add(Output *output, const void *data, gsize len);

/* Head, a line that says how many bytes are missing, tail. Frees the buffers. */
GBytes *output_finish(Output *output, gboolean *ret_truncated);
