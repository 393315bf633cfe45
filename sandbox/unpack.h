/*
 * A layer archive made into a directory tree. Runs inside a box (unpack_main.c); tests and the
 * fuzz driver call it directly.
 */
#pragma once

#include <glib.h>

#define UNPACK_DEPTH_MAX   256
#define UNPACK_PATH_MAX    4096
#define UNPACK_ENTRIES_MAX 1000000u
#define UNPACK_ID_NOBODY   65534u

/* What the tree cannot say itself, for image_unpack.c: one record each, in the order of the
 * archive. Kinds are the first byte of a record. */
typedef enum UnpackNote {
    UNPACK_WHITEOUT = 'W', /* the path is deleted from layers below */
    UNPACK_OPAQUE = 'O',   /* nothing of layers below shows in this directory */
    UNPACK_OWNER = 'U',    /* the path belongs to uid:gid */
    UNPACK_SKIPPED = 'S',  /* a device, pipe or socket: not made */
} UnpackNote;

typedef struct UnpackLimits {
    guint64 entries_max;
    guint64 bytes_max; /* of file contents, holes included */
} UnpackLimits;

typedef void (*UnpackNoteFn)(UnpackNote kind, const char *path, guint uid, guint gid,
                             gpointer data);

typedef struct UnpackSums {
    guint64 entries, bytes;
    char diff_id[65]; /* SHA-256 of the uncompressed archive */
} UnpackSums;

/* Reads a tar (plain, gzip, zstd, xz) from `in_fd` to its end and makes its entries below `out_fd`,
 * an empty directory. The process must be in the C locale, in which libarchive leaves names byte by
 * byte as they are. FALSE: INPUT or LIMIT with the entry's name, or SYSTEM; what was made stays. */
gboolean unpack_tar(int in_fd, int out_fd, const UnpackLimits *limits, UnpackNoteFn note,
                    gpointer data, UnpackSums *ret_sums, GError **error);
