/*
 * Images: a stack of layers of the depot, with a configuration, under a name.
 *
 *     ImageOptions options = {.slot = 1002};
 *     g_autoptr(Image) image = image_import(depot, "debian.tar", NULL, &options, error);
 *     image_layers_open(depot, image, fds, error)      for BoxSpec.root_fds
 *
 * Layers are unpacked inside a box; the digests of manifests, blobs and uncompressed layers are
 * checked on the way.
 */
#pragma once

#include "sandbox/depot.h"

#define IMAGE_LAYERS_MAX 60 /* what a box can stand on */
#define IMAGE_NAME_MAX   180

typedef struct Image {
    char *name;     /* "docker.io/library/debian:12" */
    char *id;       /* digest of the configuration; of the tar, for a plain root file system */
    char *platform; /* "linux/amd64" */
    GStrv layers;   /* digests of uncompressed layers, bottom first */
    char *erofs;    /* the layer that holds the erofs form; NULL: there is none */
    json_t *config; /* an object: Env, WorkingDir, User, Cmd, Entrypoint; may be empty */
    gint64 set_ms;
} Image;
void image_free(Image *image);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Image, image_free)

typedef enum ImageStep {
    IMAGE_STEP_FETCH = 0,  /* done and total are bytes of one layer */
    IMAGE_STEP_UNPACK = 1, /* begins */
    IMAGE_STEP_HAVE = 2,   /* the layer was there already */
} ImageStep;
typedef void (*ImageProgress)(ImageStep step, const char *digest, guint64 done, guint64 total,
                              gpointer data);

typedef struct ImageOptions {
    guint slot;           /* of the box that unpacks */
    const char *platform; /* NULL: this machine's */
    const char *auth;     /* registry credentials: a docker config.json; NULL: the usual one */
    gboolean insecure;    /* plain http also beyond loopback */
    int cancel_fd;        /* > 0: readable means stop */
    ImageProgress progress;
    gpointer progress_data;
} ImageOptions;

/* An OCI layout (directory or tar), a `docker save` archive, or a tar of a root file system (plain,
 * gzip, zstd, xz). `name` NULL: what the archive says, else the file's name. */
Image *image_import(Depot *depot, const char *path, const char *name, const ImageOptions *options,
                    GError **error);

/* From a registry: NAME[:TAG][@DIGEST] as docker reads it. */
Image *image_pull(Depot *depot, const char *ref, const ImageOptions *options, GError **error);

/* By name, with or without the defaults that image_name_normal adds. */
Image *image_get(Depot *depot, const char *name, GError **error);
GPtrArray *image_list(Depot *depot, GError **error);
/* The name only; depot_gc takes the layers. */
gboolean image_remove(Depot *depot, const char *name, GError **error);

/* Opens the erofs form where there is one and it can be mounted, else the layers, topmost first:
 * BoxSpec.root_fds. Close them after the box. */
gboolean image_layers_open(Depot *depot, const Image *image, int ret_fds[IMAGE_LAYERS_MAX],
                           gsize *ret_n, GError **error);

/* box_envp_default with the image's Env over it; HOME stays the box's. */
GStrv image_config_envp(const Image *image, guint uid);
/* WorkingDir, User: "" when the image does not say. */
const char *image_config_str(const Image *image, const char *key);
/* Its User by the passwd and group of the layers that image_layers_open gave. An image that names
 * none leaves both as they are. */
gboolean image_config_ids(const Image *image, const int *layers, gsize n, guint *ret_uid,
                          guint *ret_gid, GError **error);
/* Entrypoint and Cmd, one after the other; possibly empty. */
GStrv image_config_argv(const Image *image);

/* One read-only file of all layers, for image_layers_open; an image that has it stays as it is.
 * Such files are made here and nowhere else. */
#define IMAGE_EROFS      "image.erofs"
#define IMAGE_EROFS_MKFS "/usr/bin/mkfs.erofs"
Image *image_erofs_make(Depot *depot, const char *name, GError **error);
/* Can this process make and mount them? The error says what is missing. */
gboolean image_erofs_check(GError **error);

/* ---- for image_*.c and registry.c */

/* "debian" is docker.io/library/debian:latest. NULL: not a reference. */
typedef struct ImageRef {
    char *host, *repo; /* "docker.io", "library/debian" */
    char *tag;         /* NULL when there is a digest and no tag */
    char *digest;      /* NULL: by tag */
} ImageRef;
gboolean image_ref_parse(const char *text, ImageRef *ret_ref, GError **error);
void image_ref_clear(ImageRef *ref);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ImageRef, image_ref_clear)
char *image_ref_str(const ImageRef *ref);
char *image_name_normal(const char *text, GError **error);

/* A blob to be had: by digest, or of a docker archive by path. */
typedef struct ImageBlob {
    char *digest; /* NULL: not known beforehand */
    char *path;   /* of a docker archive */
    gint64 size;  /* -1: not known */
} ImageBlob;
void image_blob_clear(ImageBlob *blob);

typedef struct ImageManifest {
    ImageBlob config;
    GArray *layers; /* ImageBlob, bottom first */
} ImageManifest;
void image_manifest_clear(ImageManifest *manifest);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ImageManifest, image_manifest_clear)

#define IMAGE_JSON_MAX   (8u << 20) /* one manifest or configuration */
#define IMAGE_INDEX_MAX  4          /* indexes in indexes */
#define IMAGE_BLOB_BYTES (64ll << 30)

/* Which manifest of an index is for `platform`, or has the tag `tag` (may be NULL). */
gboolean image_index_pick(const json_t *index, const char *platform, const char *tag,
                          ImageBlob *ret_blob, GError **error);
gboolean image_is_index(const json_t *value);
gboolean image_manifest_parse(const json_t *value, ImageManifest *ret_manifest, GError **error);
/* manifest.json of `docker save`: its only image, or the one with the tag `name`. */
gboolean image_docker_parse(const json_t *value, const char *name, ImageManifest *ret_manifest,
                            char **ret_tag, GError **error);
/* The diff_ids of a configuration; their number must be `n_layers`. */
GStrv image_diff_ids(const json_t *config, guint n_layers, GError **error);
char *image_platform_host(void);

/* Where blobs come from. Both check size and digest when the blob has them. */
typedef struct ImageSource ImageSource;
struct ImageSource {
    GBytes *(*read)(ImageSource *source, const ImageBlob *blob, GError **error);
    /* Makes the file "blob" in `dir_fd`, readable by everyone. */
    gboolean (*fetch)(ImageSource *source, const ImageBlob *blob, int dir_fd, GError **error);
    const ImageOptions *options;
};
/* Fetches, unpacks and names. */
Image *image_install(Depot *depot, const char *name, const ImageManifest *manifest,
                     ImageSource *source, GError **error);

/* Unpacks "blob" of `in_fd` into "upper" of the stage, in a box. */
typedef struct ImageUnpacked {
    char *diff_id; /* "sha256:..." */
    guint64 entries, bytes;
    guint skipped; /* devices and the like */
} ImageUnpacked;
void image_unpacked_clear(ImageUnpacked *unpacked);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ImageUnpacked, image_unpacked_clear)
gboolean image_unpack(DepotStage *stage, int in_fd, const ImageOptions *options,
                      ImageUnpacked *ret_unpacked, GError **error);
/* The directory "in" of a stage, for the blob. */
int image_stage_in(DepotStage *stage, GError **error);

/* The name record of an image, set; consumes nothing. */
typedef struct ImageParts {
    const char *id, *platform;
    const char *const *layers;
    const char *erofs;    /* may be NULL */
    const json_t *config; /* likewise */
} ImageParts;
Image *image_keep(Depot *depot, const char *name, const ImageParts *parts, GError **error);

/* The mount of the erofs form that this layer holds; -1. */
int image_erofs_open(Depot *depot, const char *digest, GError **error);
