/*
 * Which host ids a box has, and showing it directories as if they were its own.
 */
#pragma once

#include "sandbox/launch.h"

#include <glib.h>

#define BOX_ID_BASE  0x78000000u /* far above users, subuids and container ranges; range 0: store */
#define BOX_ID_COUNT 65536u
#define BOX_SLOT_MAX 2045u /* the last range ends below 2^31 */

typedef enum BoxIdMode {
    BOX_IDS_SINGLE = 0, /* an ordinary user: one id, its own */
    BOX_IDS_RANGE = 1,  /* a range per slot, directories idmapped into it */
    BOX_IDS_SHARED = 2, /* the store's range for all: this host or directory cannot idmap */
} BoxIdMode;

typedef struct BoxIds {
    BoxIdMode mode;
    guint base; /* first host id of the range; the own uid when single */
    guint uid, gid;
    SpecMap uids, gids;
} BoxIds;

/* The ids of a box whose commands run as uid:gid inside. FALSE: host uid 0 would be in the box. */
gboolean box_ids_choose(guint slot, guint uid, guint gid, gboolean shared, BoxIds *ret_ids,
                        GError **error);

typedef enum BoxDirKind {
    BOX_DIR_SYSTEM, /* a root file system: id 0 stays id 0 */
    BOX_DIR_OWNED,  /* a tree whose owner becomes the box's user */
    BOX_DIR_UPPER,  /* as OWNED, and writable; must be owned by box_store_uid() */
} BoxDirKind;

/* A descriptor to send for `dir_fd`: a detached, idmapped, read-only mount in range mode, else a
 * duplicate. -1 on error; ASSAY_ERROR_UNSUPPORTED: cannot be idmapped, try shared. */
int box_ids_show(const BoxIds *ids, Starter *starter, int dir_fd, BoxDirKind kind, GError **error);
