/*
 * Image references as docker reads them: [HOST[:PORT]/]REPO[:TAG][@sha256:HEX].
 *
 * Invariant: what comes out is in the alphabet of the distribution specification; nothing in it
 * can add a path component, a query or a host to a URL.
 */
#include "sandbox/image.h"

#include "base/error.h"

#include <string.h>

#define TAG_BYTES_MAX  128
#define REPO_BYTES_MAX 200

void image_ref_clear(ImageRef *ref)
{
    g_clear_pointer(&ref->host, g_free);
    g_clear_pointer(&ref->repo, g_free);
    g_clear_pointer(&ref->tag, g_free);
    g_clear_pointer(&ref->digest, g_free);
}

static gboolean host_ok(const char *host)
{
    gsize len = strlen(host);
    return len > 0 && len < 256 && host[0] != '-' && host[0] != ':' &&
           strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:[]") ==
               len;
}

static gboolean tag_ok(const char *tag)
{
    gsize len = strlen(tag);
    return len > 0 && len <= TAG_BYTES_MAX && tag[0] != '.' && tag[0] != '-' &&
           strspn(tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == len;
}

/* Lower-case words between slashes; marks stand alone, "__" and "--" excepted, inside a word. */
static gboolean repo_ok(const char *repo)
{
    if (strlen(repo) > REPO_BYTES_MAX)
        return FALSE;
    g_auto(GStrv) parts = g_strsplit(repo, "/", -1);
    for (char **part = parts; *part != NULL; part++) {
        gsize len = strlen(*part);
        if (len == 0 || strspn(*part, "abcdefghijklmnopqrstuvwxyz0123456789._-") != len ||
            strstr(*part, "..") != NULL || strchr("._-", (*part)[0]) != NULL ||
            strchr("._-", (*part)[len - 1]) != NULL)
            return FALSE;
    }
    return parts[0] != NULL;
}

/* The first component is a host when it could be none else. */
static void split_host(const char *text, ImageRef *ref)
{
    const char *slash = strchr(text, '/');
    g_autofree char *first = slash != NULL ? g_strndup(text, (gsize)(slash - text)) : g_strdup("");
    if (strchr(first, '.') != NULL || strchr(first, ':') != NULL ||
        strcmp(first, "localhost") == 0) {
        ref->host = g_strdup(first);
        ref->repo = g_strdup(slash + 1);
    } else {
        ref->host = g_strdup("docker.io");
        ref->repo = g_strdup(text);
    }
    if (strcmp(ref->host, "index.docker.io") == 0) {
        g_free(ref->host);
        ref->host = g_strdup("docker.io");
    }
    if (strcmp(ref->host, "docker.io") == 0 && strchr(ref->repo, '/') == NULL) {
        char *bare = ref->repo;
        ref->repo = g_strconcat("library/", bare, NULL);
        g_free(bare);
    }
}

gboolean image_ref_parse(const char *text, ImageRef *ret_ref, GError **error)
{
    g_auto(ImageRef) ref = {0};
    g_autofree char *rest = g_strdup(text);
    char *at = strchr(rest, '@');
    if (at != NULL) {
        *at = '\0';
        ref.digest = g_strdup(at + 1);
    }
    char *colon = strrchr(rest, ':');
    if (colon != NULL && strchr(colon, '/') == NULL) {
        *colon = '\0';
        ref.tag = g_strdup(colon + 1);
    }
    split_host(rest, &ref);
    if (ref.tag == NULL && ref.digest == NULL)
        ref.tag = g_strdup("latest");
    if (!host_ok(ref.host) || !repo_ok(ref.repo) || (ref.tag != NULL && !tag_ok(ref.tag)) ||
        (ref.digest != NULL && !depot_digest_ok(ref.digest)))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "%.200s is not an image reference: [HOST/]NAME[:TAG][@sha256:HEX]", text);
    *ret_ref = ref;
    ref = (ImageRef){0};
    return TRUE;
}

char *image_ref_str(const ImageRef *ref)
{
    return g_strdup_printf("%s/%s%s%s%s%s", ref->host, ref->repo, ref->tag != NULL ? ":" : "",
                           ref->tag != NULL ? ref->tag : "", ref->digest != NULL ? "@" : "",
                           ref->digest != NULL ? ref->digest : "");
}

char *image_name_normal(const char *text, GError **error)
{
    g_auto(ImageRef) ref = {0};
    if (!image_ref_parse(text, &ref, error))
        return NULL;
    g_autofree char *name = image_ref_str(&ref);
    if (strlen(name) > IMAGE_NAME_MAX - 8) {
        error_set(error, ASSAY_ERROR_LIMIT, "%.200s is longer than an image's name may be", text);
        return NULL;
    }
    return g_steal_pointer(&name);
}
