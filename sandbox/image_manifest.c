/*
 * What the JSON files of an image say: index, manifest, configuration, docker's manifest.json.
 *
 * Invariants:
 *   1. Pure: values in, values out. Every digest is checked for its form, every size and count has
 *      a limit, before anything is fetched.
 *   2. Layers of kinds that we cannot unpack are refused by name, not skipped.
 */
#include "sandbox/image.h"

#include "base/error.h"

#include <string.h>
#include <sys/utsname.h>

#define LIST_MAX 1000

void image_blob_clear(ImageBlob *blob)
{
    g_clear_pointer(&blob->digest, g_free);
    g_clear_pointer(&blob->path, g_free);
}

void image_manifest_clear(ImageManifest *manifest)
{
    image_blob_clear(&manifest->config);
    g_clear_pointer(&manifest->layers, g_array_unref);
}

static GArray *blobs_new(void)
{
    GArray *blobs = g_array_new(FALSE, TRUE, sizeof(ImageBlob));
    g_array_set_clear_func(blobs, (GDestroyNotify)image_blob_clear);
    return blobs;
}

char *image_platform_host(void)
{
    static const char *const names[][2] = {
        {"x86_64", "linux/amd64"},    {"aarch64", "linux/arm64"},   {"armv7l", "linux/arm/v7"},
        {"riscv64", "linux/riscv64"}, {"ppc64le", "linux/ppc64le"}, {"s390x", "linux/s390x"}};
    struct utsname name;
    uname(&name);
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++)
        if (strcmp(name.machine, names[i][0]) == 0)
            return g_strdup(names[i][1]);
    return g_strdup_printf("linux/%s", name.machine);
}

/* {"digest","size"} of a descriptor. */
static gboolean descriptor_read(const json_t *value, gint64 size_max, ImageBlob *ret_blob,
                                GError **error)
{
    gint64 size;
    if (!json_is_object(value))
        return error_set(error, ASSAY_ERROR_INPUT, "a descriptor is not an object");
    const char *digest = json_want_str(value, "digest", error);
    if (digest == NULL)
        return FALSE;
    if (!depot_digest_ok(digest))
        return error_set(error, ASSAY_ERROR_INPUT, "digest %.100s is not sha256", digest);
    if (!json_opt_int(value, "size", 0, size_max, -1, &size, error))
        return FALSE;
    *ret_blob = (ImageBlob){.digest = g_strdup(digest), .size = size};
    return TRUE;
}

gboolean image_is_index(const json_t *value)
{
    return json_is_array(json_object_get(value, "manifests"));
}

/* "os/architecture[/variant]" against a descriptor's platform; one without a platform fits all. */
static gboolean platform_fits(const json_t *descriptor, const char *platform)
{
    const json_t *has = json_object_get(descriptor, "platform");
    if (!json_is_object(has))
        return TRUE;
    g_auto(GStrv) want = g_strsplit(platform, "/", 3);
    static const char *const keys[] = {"os", "architecture", "variant"};
    for (gsize i = 0; i < G_N_ELEMENTS(keys) && want[i] != NULL; i++)
        if (g_strcmp0(json_string_value(json_object_get(has, keys[i])), want[i]) != 0)
            return FALSE;
    return TRUE;
}

static const char *tag_of(const json_t *descriptor)
{
    return json_string_value(json_object_get(json_object_get(descriptor, "annotations"),
                                             "org.opencontainers.image.ref.name"));
}

gboolean image_index_pick(const json_t *index, const char *platform, const char *tag,
                          ImageBlob *ret_blob, GError **error)
{
    const json_t *list = json_object_get(index, "manifests"), *item, *found = NULL;
    g_autoptr(GString) seen = g_string_new(NULL);
    size_t i;
    if (json_array_size(list) > LIST_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "an index of more than %d manifests", LIST_MAX);
    json_array_foreach(list, i, item)
    {
        const json_t *has = json_object_get(item, "platform");
        const char *os = json_string_value(json_object_get(has, "os"));
        const char *arch = json_string_value(json_object_get(has, "architecture"));
        if (seen->len < 400)
            g_string_append_printf(seen, "%s%s/%s%s%s", seen->len > 0 ? ", " : "",
                                   os != NULL ? os : "?", arch != NULL ? arch : "?",
                                   tag_of(item) != NULL ? " " : "",
                                   tag_of(item) != NULL ? tag_of(item) : "");
        gboolean fits =
            platform_fits(item, platform) && (tag == NULL || g_strcmp0(tag_of(item), tag) == 0);
        if (fits && found == NULL)
            found = item;
    }
    if (found == NULL)
        return error_set(error, ASSAY_ERROR_NOT_FOUND, "no manifest for %s%s%s; there are: %s",
                         platform, tag != NULL ? " with the tag " : "", tag != NULL ? tag : "",
                         seen->len > 0 ? seen->str : "none");
    return descriptor_read(found, IMAGE_JSON_MAX, ret_blob, error);
}

static gboolean layer_kind_ok(const json_t *descriptor, GError **error)
{
    static const char *const kinds[] = {"application/vnd.oci.image.layer.v1.tar",
                                        "application/vnd.oci.image.layer.v1.tar+gzip",
                                        "application/vnd.oci.image.layer.v1.tar+zstd",
                                        "application/vnd.docker.image.rootfs.diff.tar",
                                        "application/vnd.docker.image.rootfs.diff.tar.gzip",
                                        NULL};
    const char *kind = json_string_value(json_object_get(descriptor, "mediaType"));
    return kind == NULL || g_strv_contains(kinds, kind) ||
           error_set(error, ASSAY_ERROR_UNSUPPORTED, "layers of type %.100s cannot be unpacked",
                     kind);
}

gboolean image_manifest_parse(const json_t *value, ImageManifest *ret_manifest, GError **error)
{
    g_auto(ImageManifest) manifest = {.layers = blobs_new()};
    const json_t *list = json_object_get(value, "layers"), *item;
    size_t i;
    if (json_array_size(json_object_get(value, "fsLayers")) > 0)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "a manifest of docker's old schema 1; push the image again");
    if (!json_is_array(list) || json_array_size(list) > DEPOT_LAYERS_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "field layers: not a list of at most %d layers",
                         DEPOT_LAYERS_MAX);
    if (!descriptor_read(json_object_get(value, "config"), IMAGE_JSON_MAX, &manifest.config,
                         error)) {
        g_prefix_error(error, "field config: ");
        return FALSE;
    }
    json_array_foreach(list, i, item)
    {
        ImageBlob blob;
        if (!layer_kind_ok(item, error) || !descriptor_read(item, IMAGE_BLOB_BYTES, &blob, error)) {
            g_prefix_error(error, "layer %zu: ", i + 1);
            return FALSE;
        }
        g_array_append_val(manifest.layers, blob);
    }
    *ret_manifest = manifest;
    manifest = (ImageManifest){0};
    return TRUE;
}

static gboolean has_tag(const json_t *item, const char *name)
{
    const json_t *tags = json_object_get(item, "RepoTags"), *tag;
    size_t i;
    json_array_foreach(tags, i, tag)
    {
        g_autofree char *normal =
            json_is_string(tag) ? image_name_normal(json_string_value(tag), NULL) : NULL;
        if (normal != NULL && strcmp(normal, name) == 0)
            return TRUE;
    }
    return FALSE;
}

/* A path of the archive is only ever opened beneath it; this is for the message. */
static gboolean path_blob(const json_t *value, ImageBlob *ret_blob, GError **error)
{
    const char *path = json_string_value(value);
    if (path == NULL || path[0] == '\0' || strlen(path) > 1024)
        return error_set(error, ASSAY_ERROR_INPUT, "a path of the archive is missing or too long");
    *ret_blob = (ImageBlob){.path = g_strdup(path), .size = -1};
    return TRUE;
}

gboolean image_docker_parse(const json_t *value, const char *name, ImageManifest *ret_manifest,
                            char **ret_tag, GError **error)
{
    g_auto(ImageManifest) manifest = {.layers = blobs_new()};
    const json_t *found = json_array_size(value) == 1 ? json_array_get(value, 0) : NULL, *item;
    size_t i;
    if (found == NULL && name != NULL)
        json_array_foreach(value, i, item) if (found == NULL && has_tag(item, name)) found = item;
    if (found == NULL)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "manifest.json lists %zu images; name one of its tags",
                         json_array_size(value));
    const json_t *layers = json_object_get(found, "Layers");
    if (!json_is_array(layers) || json_array_size(layers) > DEPOT_LAYERS_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "field Layers: not a list of at most %d layers",
                         DEPOT_LAYERS_MAX);
    if (!path_blob(json_object_get(found, "Config"), &manifest.config, error))
        return FALSE;
    json_array_foreach(layers, i, item)
    {
        ImageBlob blob;
        if (!path_blob(item, &blob, error))
            return FALSE;
        g_array_append_val(manifest.layers, blob);
    }
    *ret_tag = g_strdup(json_string_value(json_array_get(json_object_get(found, "RepoTags"), 0)));
    *ret_manifest = manifest;
    manifest = (ImageManifest){0};
    return TRUE;
}

GStrv image_diff_ids(const json_t *config, guint n_layers, GError **error)
{
    const json_t *list = json_object_get(json_object_get(config, "rootfs"), "diff_ids"), *item;
    g_autoptr(GStrvBuilder) ids = g_strv_builder_new();
    size_t i;
    if (json_array_size(list) != n_layers || n_layers == 0) {
        error_set(error, ASSAY_ERROR_INPUT, "it names %zu layers, the manifest %u",
                  json_array_size(list), n_layers);
        return NULL;
    }
    json_array_foreach(list, i, item)
    {
        const char *id = json_string_value(item);
        if (id == NULL || !depot_digest_ok(id)) {
            error_set(error, ASSAY_ERROR_INPUT, "diff_ids: not a sha256 digest");
            return NULL;
        }
        g_strv_builder_add(ids, id);
    }
    return g_strv_builder_end(ids);
}
