/*
 * Event files: frames, and the three protobuf messages that scalars need.
 *
 * 1. A record is written by one call, so a torn one can only be the last; readers skip it.
 * 2. Values are floats, as simple_value is; what is not finite is written as it is.
 */
#include "env/tensorboard.h"

#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* Field number and wire type of the fields in use. */
enum {
    EVENT_WALL_TIME = 0x09,
    EVENT_STEP = 0x10,
    EVENT_VERSION = 0x1a,
    EVENT_SUMMARY = 0x2a,
    SUMMARY_VALUE = 0x0a,
    VALUE_TAG = 0x0a,
    VALUE_SIMPLE = 0x15,
};

struct TensorBoard {
    int fd;
};

guint32 tensorboard_crc(const void *data, gsize len)
{
    const guint8 *bytes = data;
    guint32 crc = 0xffffffffu;

    for (gsize i = 0; i < len; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

static guint32 masked(const void *data, gsize len)
{
    guint32 crc = tensorboard_crc(data, len);

    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

static void append_bytes(GByteArray *out, const void *data, gsize len)
{
    g_byte_array_append(out, data, (guint)len);
}

static void append_u8(GByteArray *out, guint8 value)
{
    append_bytes(out, &value, 1);
}

static void append_u32(GByteArray *out, guint32 value)
{
    value = GUINT32_TO_LE(value);
    append_bytes(out, &value, sizeof value);
}

static void append_varint(GByteArray *out, guint64 value)
{
    for (; value >= 0x80; value >>= 7)
        append_u8(out, (guint8)(value | 0x80));
    append_u8(out, (guint8)value);
}

/* A field of bytes: a string or a message. */
static void append_field(GByteArray *out, guint8 field, const void *data, gsize len)
{
    append_u8(out, field);
    append_varint(out, len);
    append_bytes(out, data, len);
}

static void append_double(GByteArray *out, guint8 field, double value)
{
    guint64 bits;

    memcpy(&bits, &value, sizeof bits);
    bits = GUINT64_TO_LE(bits);
    append_u8(out, field);
    append_bytes(out, &bits, sizeof bits);
}

static gboolean write_record(TensorBoard *board, const GByteArray *event, GError **error)
{
    g_autoptr(GByteArray) frame = g_byte_array_new();
    guint64 len = GUINT64_TO_LE((guint64)event->len);

    append_bytes(frame, &len, sizeof len);
    append_u32(frame, masked(&len, sizeof len));
    append_bytes(frame, event->data, event->len);
    append_u32(frame, masked(event->data, event->len));
    return fd_write_all(board->fd, frame->data, frame->len, error);
}

static gboolean write_version(TensorBoard *board, double wall_s, GError **error)
{
    static const char version[] = "brain.Event:2";
    g_autoptr(GByteArray) event = g_byte_array_new();

    append_double(event, EVENT_WALL_TIME, wall_s);
    append_field(event, EVENT_VERSION, version, strlen(version));
    return write_record(board, event, error);
}

TensorBoard *tensorboard_open(const char *dir, GError **error)
{
    double now = (double)g_get_real_time() / 1e6;
    g_autofree char *name =
        g_strdup_printf("events.out.tfevents.%.0f.%s.%d.0", now, g_get_host_name(), (int)getpid());
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_autoptr(TensorBoard) board = g_new0(TensorBoard, 1);

    board->fd = -1;
    if (g_mkdir_with_parents(dir, 0755) != 0 ||
        (board->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) < 0) {
        error_set_errno(error, errno, "%s", path);
        return NULL;
    }
    return write_version(board, now, error) ? g_steal_pointer(&board) : NULL;
}

void tensorboard_close(TensorBoard *board)
{
    if (!board)
        return;
    if (board->fd >= 0)
        close(board->fd);
    g_free(board);
}

gboolean tensorboard_add(TensorBoard *board, gint64 step, double wall_s, const char *const *tags,
                         const double *values, guint n, GError **error)
{
    g_autoptr(GByteArray) event = g_byte_array_new(), summary = g_byte_array_new();

    for (guint i = 0; i < n; i++) {
        g_autoptr(GByteArray) value = g_byte_array_new();
        float simple = (float)values[i];
        guint32 bits;

        memcpy(&bits, &simple, sizeof bits);
        append_field(value, VALUE_TAG, tags[i], strlen(tags[i]));
        append_u8(value, VALUE_SIMPLE);
        append_u32(value, bits);
        append_field(summary, SUMMARY_VALUE, value->data, value->len);
    }
    append_double(event, EVENT_WALL_TIME, wall_s);
    append_u8(event, EVENT_STEP);
    append_varint(event, (guint64)step);
    append_field(event, EVENT_SUMMARY, summary->data, summary->len);
    return write_record(board, event, error);
}
