/*
 * Layers on disk: directory trees in overlay form, kept by digest, held by names.
 *
 *     g_autoptr(Depot) depot = depot_open("/var/lib/assay/images", bytes_max, error);
 *     g_autoptr(DepotStage) stage = depot_stage(depot, error);
 *     ... fill "upper" below stage->dir_fd ...
 *     AUTO_FD layer = depot_commit(depot, stage, digest, error);
 *     depot_name_set(depot, "image/debian:12", &record, error);
 *
 * On disk:  layers/sha256-HEX/{upper,meta.json}   names/NAME.json   tmp/N   lock
 *
 * Several processes may use it. A layer lives while a name lists it, or a descriptor of it that
 * depot_commit or depot_layer_open gave is open anywhere: boxes keep theirs open.
 */
#pragma once

#include "base/json.h"

#include <glib.h>

#define DEPOT_LAYERS_MAX 128

typedef struct Depot Depot;

/* Opens it, making it when absent. `bytes_max` 0: no quota. */
Depot *depot_open(const char *dir, guint64 bytes_max, GError **error);
void depot_free(Depot *depot);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Depot, depot_free)

/* A directory of our own, gone when freed; also when we are killed, at the next depot_stage. */
typedef struct DepotStage {
    Depot *depot;
    char *name;
    int dir_fd; /* holds "upper" and "work", which belong to box_store_uid(); add what you like */
} DepotStage;
DepotStage *depot_stage(Depot *depot, GError **error);
void depot_stage_free(DepotStage *stage);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DepotStage, depot_stage_free)

/* "upper" of the stage becomes the layer of `digest` ("sha256:HEX"); a layer that is there already
 * stays. Returns its descriptor, as depot_layer_open does. LIMIT: the quota. */
int depot_commit(Depot *depot, DepotStage *stage, const char *digest, GError **error);

/* The tree of a layer, for BoxSpec; keeps it from being collected. -1: NOT_FOUND or an error. */
int depot_layer_open(Depot *depot, const char *digest, GError **error);

/* Compares a layer with the digest of its tree at commit. */
gboolean depot_layer_verify(Depot *depot, const char *digest, GError **error);

/* Who holds which layers. Names are any text without control bytes, up to 180 bytes. */
typedef struct DepotName {
    char *name;
    GStrv layers; /* digests, in the caller's order */
    json_t *data; /* the caller's own; an object */
    gint64 set_ms;
} DepotName;
void depot_name_free(DepotName *name);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DepotName, depot_name_free)

/* Every layer must be there. Replaces what the name held. */
gboolean depot_name_set(Depot *depot, const char *name, const char *const *layers,
                        const json_t *data, GError **error);
DepotName *depot_name_get(Depot *depot, const char *name, GError **error);
gboolean depot_name_unset(Depot *depot, const char *name, GError **error);
/* Those that begin with `prefix`, sorted: DepotName. */
GPtrArray *depot_name_list(Depot *depot, const char *prefix, GError **error);

/* Bytes of one layer, of all, and what may still be added. */
guint64 depot_layer_bytes(Depot *depot, const char *digest);
guint64 depot_bytes(Depot *depot);
guint64 depot_bytes_left(Depot *depot);

/* Removes layers that nothing holds. Returns how many; `ret_bytes` what they took. */
guint depot_gc(Depot *depot, guint64 *ret_bytes, GError **error);

/* "sha256:" and 64 lower-case hex digits. */
gboolean depot_digest_ok(const char *digest);

/* A digest over the entries below `dir_fd`, in order: path, type, mode, owner, xattrs, content or
 * target, and which names are one file. Times do not count. NULL: error. */
char *depot_tree_digest(int dir_fd, GError **error);
