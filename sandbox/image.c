/*
 * Images of the depot, and making one from blobs.
 *
 * Invariants:
 *   1. A name is set when all its layers are there, and the layers' descriptors are held until
 *      then, so that no collection comes between.
 *   2. A layer is kept under the digest of its uncompressed archive, which the configuration names
 *      and the unpacking confirms.
 *
 * Not here: where blobs come from (image_import.c, registry.c), what manifests say
 * (image_manifest.c).
 */
#include "sandbox/image.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/fd.h"
#include "sandbox/box.h"

#include <string.h>
#include <sys/xattr.h>

#define PREFIX "image/"

void image_free(Image *image)
{
    if (image == NULL)
        return;
    g_free(image->name);
    g_free(image->id);
    g_free(image->platform);
    g_strfreev(image->layers);
    g_free(image->erofs);
    json_decref(image->config);
    g_free(image);
}

static Image *from_record(DepotName *record)
{
    Image *image = g_new0(Image, 1);
    const char *id = json_string_value(json_object_get(record->data, "id"));
    const char *platform = json_string_value(json_object_get(record->data, "platform"));
    json_t *config = json_object_get(record->data, "config");
    image->name = g_strdup(record->name + strlen(PREFIX));
    image->id = g_strdup(id != NULL ? id : "");
    image->platform = g_strdup(platform != NULL ? platform : "");
    image->layers = g_strdupv(record->layers);
    guint n = g_strv_length(image->layers);
    if (json_is_true(json_object_get(record->data, "erofs")) && n > 0)
        image->erofs = g_steal_pointer(&image->layers[n - 1]); /* it is the last of them */
    image->config = json_is_object(config) ? json_incref(config) : json_object();
    image->set_ms = record->set_ms;
    return image;
}

static char *record_name(const char *name, GError **error)
{
    g_autofree char *normal = image_name_normal(name, error);
    return normal == NULL ? NULL : g_strconcat(PREFIX, normal, NULL);
}

Image *image_get(Depot *depot, const char *name, GError **error)
{
    g_autofree char *key = record_name(name, error);
    g_autoptr(DepotName) record = key == NULL ? NULL : depot_name_get(depot, key, error);
    if (record == NULL) {
        g_prefix_error(error, "image %s: ", name);
        return NULL;
    }
    return from_record(record);
}

GPtrArray *image_list(Depot *depot, GError **error)
{
    g_autoptr(GPtrArray) records = depot_name_list(depot, PREFIX, error);
    if (records == NULL)
        return NULL;
    GPtrArray *images = g_ptr_array_new_with_free_func((GDestroyNotify)image_free);
    for (guint i = 0; i < records->len; i++)
        g_ptr_array_add(images, from_record(records->pdata[i]));
    return images;
}

gboolean image_remove(Depot *depot, const char *name, GError **error)
{
    g_autofree char *key = record_name(name, error);
    return key != NULL && depot_name_unset(depot, key, error);
}

gboolean image_layers_open(Depot *depot, const Image *image, int ret_fds[IMAGE_LAYERS_MAX],
                           gsize *ret_n, GError **error)
{
    gsize n = g_strv_length(image->layers);
    int whole = image->erofs != NULL ? image_erofs_open(depot, image->erofs, NULL) : -1;
    if (whole >= 0) {
        ret_fds[0] = whole;
        *ret_n = 1;
        return TRUE;
    }
    if (n > IMAGE_LAYERS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "image %s: more than %d layers", image->name,
                         IMAGE_LAYERS_MAX);
    for (gsize i = 0; i < n; i++) {
        ret_fds[i] = depot_layer_open(depot, image->layers[n - 1 - i], error);
        char opaque; /* of the top itself, which overlay does not look at */
        if (ret_fds[i] >= 0 && fgetxattr(ret_fds[i], "user.overlay.opaque", &opaque, 1) == 1)
            n = i + 1;
        if (ret_fds[i] >= 0)
            continue;
        while (i-- > 0)
            close(ret_fds[i]);
        g_prefix_error(error, "image %s: ", image->name);
        return FALSE;
    }
    *ret_n = n;
    return TRUE;
}

/* ---- configuration ---- */

GStrv image_config_envp(const Image *image, guint uid)
{
    GStrv envp = g_strdupv((char **)(gsize)box_envp_default(uid));
    const json_t *list = json_object_get(image->config, "Env"), *item;
    size_t i;
    json_array_foreach(list, i, item)
    {
        const char *pair = json_string_value(item);
        const char *equals = pair != NULL ? strchr(pair, '=') : NULL;
        if (equals == NULL || equals == pair)
            continue;
        g_autofree char *key = g_strndup(pair, (gsize)(equals - pair));
        if (strcmp(key, "HOME") != 0)
            envp = g_environ_setenv(envp, key, equals + 1, TRUE);
    }
    return envp;
}

const char *image_config_str(const Image *image, const char *key)
{
    const char *text = json_string_value(json_object_get(image->config, key));
    return text != NULL ? text : "";
}

GStrv image_config_argv(const Image *image)
{
    g_autoptr(GStrvBuilder) argv = g_strv_builder_new();
    static const char *const keys[] = {"Entrypoint", "Cmd"};
    for (gsize k = 0; k < G_N_ELEMENTS(keys); k++) {
        const json_t *list = json_object_get(image->config, keys[k]), *item;
        size_t i;
        json_array_foreach(list, i, item) if (json_is_string(item))
            g_strv_builder_add(argv, json_string_value(item));
    }
    return g_strv_builder_end(argv);
}

/* ---- making one ---- */

Image *image_keep(Depot *depot, const char *name, const ImageParts *parts, GError **error)
{
    g_autofree char *key = record_name(name, error);
    g_autoptr(GStrvBuilder) layers = g_strv_builder_new();
    if (key == NULL)
        return NULL;
    g_strv_builder_addv(layers, (const char **)(gsize)parts->layers);
    if (parts->erofs != NULL)
        g_strv_builder_add(layers, parts->erofs);
    g_auto(GStrv) held = g_strv_builder_end(layers);
    g_autoptr(json_t) empty = json_object();
    g_autoptr(json_t) data = json_pack("{s:s, s:s, s:b, s:O}", "id", parts->id, "platform",
                                       parts->platform, "erofs", parts->erofs != NULL, "config",
                                       json_is_object(parts->config) ? parts->config : empty);
    if (data == NULL || !depot_name_set(depot, key, (const char *const *)held, data, error))
        return NULL;
    return image_get(depot, name, error);
}

static void progress(const ImageOptions *options, ImageStep step, const char *digest)
{
    if (options->progress != NULL)
        options->progress(step, digest, 0, 0, options->progress_data);
}

/* The layer DIFF_ID, from the depot or from its blob. -1 on error. */
static int layer_ensure(Depot *depot, ImageSource *source, const ImageBlob *blob,
                        const char *diff_id, GError **error)
{
    g_autoptr(GError) local = NULL;
    int have = depot_layer_open(depot, diff_id, &local);
    if (have >= 0 || !g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND)) {
        if (have < 0)
            g_propagate_error(error, g_steal_pointer(&local));
        else
            progress(source->options, IMAGE_STEP_HAVE, diff_id);
        return have;
    }
    g_autoptr(DepotStage) stage = depot_stage(depot, error);
    AUTO_FD in = stage == NULL ? -1 : image_stage_in(stage, error);
    g_auto(ImageUnpacked) unpacked = {0};
    if (in < 0 || !source->fetch(source, blob, in, error))
        return -1;
    progress(source->options, IMAGE_STEP_UNPACK, diff_id);
    if (!image_unpack(stage, in, source->options, &unpacked, error))
        return -1;
    if (strcmp(unpacked.diff_id, diff_id) != 0) {
        error_set(error, ASSAY_ERROR_INPUT, "its uncompressed digest is %s", unpacked.diff_id);
        return -1;
    }
    return depot_commit(depot, stage, diff_id, error);
}

static gboolean layers_ensure(Depot *depot, ImageSource *source, const ImageManifest *manifest,
                              char *const *diff_ids, GArray *held, GError **error)
{
    for (guint i = 0; i < manifest->layers->len; i++) {
        const ImageBlob *blob = &g_array_index(manifest->layers, ImageBlob, i);
        int fd = layer_ensure(depot, source, blob, diff_ids[i], error);
        if (fd < 0) {
            g_prefix_error(error, "layer %u (%s): ", i + 1, diff_ids[i]);
            return FALSE;
        }
        g_array_append_val(held, fd);
    }
    return TRUE;
}

static char *platform_of(const json_t *config)
{
    const char *os = json_string_value(json_object_get(config, "os"));
    const char *arch = json_string_value(json_object_get(config, "architecture"));
    const char *variant = json_string_value(json_object_get(config, "variant"));
    return g_strdup_printf("%s/%s%s%s", os != NULL ? os : "linux", arch != NULL ? arch : "unknown",
                           variant != NULL ? "/" : "", variant != NULL ? variant : "");
}

Image *image_install(Depot *depot, const char *name, const ImageManifest *manifest,
                     ImageSource *source, GError **error)
{
    g_autoptr(GBytes) bytes = source->read(source, &manifest->config, error);
    g_autoptr(json_t) config =
        bytes == NULL ? NULL
                      : json_parse(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), error);
    g_auto(GStrv) diff_ids =
        config == NULL ? NULL : image_diff_ids(config, manifest->layers->len, error);
    if (diff_ids == NULL) {
        g_prefix_error(error, "the image's configuration: ");
        return NULL;
    }
    g_autofree char *hex = digest_bytes(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
    g_autofree char *id = g_strconcat("sha256:", hex, NULL);
    g_autofree char *platform = platform_of(config);
    g_autoptr(GArray) held = g_array_new(FALSE, FALSE, sizeof(int));
    Image *image = NULL;
    const ImageParts parts = {.id = id,
                              .platform = platform,
                              .layers = (const char *const *)diff_ids,
                              .config = json_object_get(config, "config")};
    if (layers_ensure(depot, source, manifest, diff_ids, held, error))
        image = image_keep(depot, name, &parts, error);
    for (guint i = 0; i < held->len; i++)
        close(g_array_index(held, int, i));
    return image;
}
