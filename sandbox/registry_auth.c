/*
 * Credentials of registries, from docker's config.json, and the challenge of a 401.
 *
 * Invariant: credential helpers are named, never run: they are programs of the user's, and pulls
 * of public images need none.
 */
#include "sandbox/registry_auth.h"

#include "base/error.h"
#include "base/fd.h"

#include <string.h>

#define CONFIG_BYTES_MAX    (1u << 20)
#define CHALLENGE_BYTES_MAX 4096
#define DOCKER_HUB          "https://index.docker.io/v1/"

void registry_login_clear(RegistryLogin *login)
{
    g_clear_pointer(&login->basic, g_free);
    g_clear_pointer(&login->helper, g_free);
}

void registry_challenge_clear(RegistryChallenge *challenge)
{
    g_clear_pointer(&challenge->realm, g_free);
    g_clear_pointer(&challenge->service, g_free);
    g_clear_pointer(&challenge->scope, g_free);
}

/* The entry of `host` under any of the ways docker has written it. */
static const json_t *entry_of(const json_t *entries, const char *host)
{
    gboolean hub = strcmp(host, "docker.io") == 0;
    g_autofree char *url = g_strdup_printf("https://%s", host);
    g_autofree char *v1 = g_strdup_printf("https://%s/v1/", host);
    const char *keys[] = {host, url, v1, hub ? DOCKER_HUB : host, hub ? "index.docker.io" : host};
    for (gsize i = 0; i < G_N_ELEMENTS(keys); i++) {
        const json_t *entry = json_object_get(entries, keys[i]);
        if (entry != NULL)
            return entry;
    }
    return NULL;
}

/* "user:password" in base64, from either form. NULL: the entry has none. */
static char *pair_of(const json_t *entry)
{
    const char *auth = json_string_value(json_object_get(entry, "auth"));
    const char *user = json_string_value(json_object_get(entry, "username"));
    const char *password = json_string_value(json_object_get(entry, "password"));
    if (auth != NULL && auth[0] != '\0')
        return g_strdup(auth);
    if (user == NULL || password == NULL)
        return NULL;
    g_autofree char *pair = g_strdup_printf("%s:%s", user, password);
    return g_base64_encode((const guchar *)pair, strlen(pair));
}

static gboolean take_login(const json_t *config, const char *host, RegistryLogin *ret_login,
                           GError **error)
{
    const json_t *entry = entry_of(json_object_get(config, "auths"), host);
    const char *token = json_string_value(json_object_get(entry, "identitytoken"));
    g_autofree char *pair = pair_of(entry);
    if (pair == NULL && token != NULL && token[0] != '\0')
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "identity tokens are not supported; log in with a password or an access "
                         "token");
    if (pair != NULL && strspn(pair, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                     "0123456789+/=") != strlen(pair))
        return error_set(error, ASSAY_ERROR_INPUT, "auths: %s: auth is not base64", host);
    if (pair != NULL) {
        ret_login->basic = g_strconcat("Authorization: Basic ", pair, NULL);
        return TRUE;
    }
    const char *helper = json_string_value(entry_of(json_object_get(config, "credHelpers"), host));
    if (helper == NULL)
        helper = json_string_value(json_object_get(config, "credsStore"));
    ret_login->helper = helper != NULL ? g_strconcat("docker-credential-", helper, NULL) : NULL;
    return TRUE;
}

gboolean registry_login_read(const char *path, const char *host, RegistryLogin *ret_login,
                             GError **error)
{
    const char *dir = g_getenv("DOCKER_CONFIG");
    g_autofree char *usual =
        dir != NULL && dir[0] != '\0'
            ? g_build_filename(dir, "config.json", NULL)
            : g_build_filename(g_get_home_dir(), ".docker", "config.json", NULL);
    const char *use = path != NULL ? path : usual;
    if (path == NULL && !g_file_test(usual, G_FILE_TEST_EXISTS))
        return TRUE;
    g_autoptr(GBytes) bytes = file_read(use, CONFIG_BYTES_MAX, error);
    g_autoptr(json_t) config =
        bytes == NULL ? NULL
                      : json_parse(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes), error);
    if (config != NULL && take_login(config, host, ret_login, error))
        return TRUE;
    g_prefix_error(error, "credentials in %s: ", use);
    return FALSE;
}

/* One NAME="VALUE" or NAME=VALUE at *at; moves on. FALSE: there is none. */
static gboolean next_pair(const char **at, char **ret_name, char **ret_value)
{
    *at += strspn(*at, " \t,");
    gsize len = strcspn(*at, "= \t,\"");
    if (len == 0 || (*at)[len] != '=')
        return FALSE;
    g_autofree char *name = g_ascii_strdown(*at, (gssize)len);
    g_autoptr(GString) value = g_string_new(NULL);
    const char *p = *at + len + 1;
    if (*p != '"') {
        len = strcspn(p, ", \t");
        g_string_append_len(value, p, (gssize)len);
        p += len;
    } else {
        for (p++; *p != '\0' && *p != '"'; p++) {
            if (*p == '\\' && p[1] != '\0')
                p++;
            g_string_append_c(value, *p);
        }
        if (*p != '"')
            return FALSE;
        p++;
    }
    *at = p;
    *ret_name = g_steal_pointer(&name);
    *ret_value = g_string_free(g_steal_pointer(&value), FALSE);
    return TRUE;
}

gboolean registry_challenge_parse(const char *text, RegistryChallenge *ret_challenge)
{
    if (strnlen(text, CHALLENGE_BYTES_MAX) == CHALLENGE_BYTES_MAX ||
        g_ascii_strncasecmp(text, "Bearer ", 7) != 0)
        return FALSE;
    const struct {
        const char *name;
        char **to;
    } fields[] = {{"realm", &ret_challenge->realm},
                  {"service", &ret_challenge->service},
                  {"scope", &ret_challenge->scope}};
    const char *at = text + 7;
    for (char *name, *value; next_pair(&at, &name, &value); g_free(name), g_free(value))
        for (gsize i = 0; i < G_N_ELEMENTS(fields); i++)
            if (strcmp(name, fields[i].name) == 0) {
                g_free(*fields[i].to);
                *fields[i].to = g_strdup(value);
            }
    gboolean ok =
        ret_challenge->realm != NULL && (g_str_has_prefix(ret_challenge->realm, "https://") ||
                                         g_str_has_prefix(ret_challenge->realm, "http://"));
    if (!ok) {
        registry_challenge_clear(ret_challenge);
        return FALSE;
    }
    for (gsize i = 0; i < G_N_ELEMENTS(fields); i++)
        if (*fields[i].to == NULL)
            *fields[i].to = g_strdup("");
    return TRUE;
}
