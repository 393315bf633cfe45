/*
 * TensorBoard event files: scalars by tag and step.
 *
 * Records are TFRecord frames (length, masked CRC-32C of it, payload, masked CRC-32C of that) of
 * Event messages in protobuf. Source: tensorflow/tensorflow, core/lib/io/record_writer.cc and
 * core/util/event.proto.
 */
#pragma once

#include <glib.h>

typedef struct TensorBoard TensorBoard;

/* A new file in `dir`, which is made when absent. */
TensorBoard *tensorboard_open(const char *dir, GError **error);
void tensorboard_close(TensorBoard *board);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TensorBoard, tensorboard_close)

/* One event with all of them, on the disk's way when the call returns. */
gboolean tensorboard_add(TensorBoard *board, gint64 step, double wall_s, const char *const *tags,
                         const double *values, guint n, GError **error);

/* CRC-32C (Castagnoli), for tests. */
guint32 tensorboard_crc(const void *data, gsize len);
