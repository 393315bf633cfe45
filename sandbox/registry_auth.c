/*
 * Credentials of registries, from docker's config.json, and the challenge of a 401.
 *
 * Invariants:
 *   1. A credential helper is the user's program, run as the user who pulls, found by PATH alone.
 *   2. One that fails ends no pull: public images need no credentials. Why it failed is told when
 *      the registry refuses.
 */
#include "sandbox/registry_auth.h"

#include "base/error.h"
#include "base/fd.h"

#include <gio/gio.h>
#include <string.h>

#define CONFIG_BYTES_MAX    (1u << 20)
#define CHALLENGE_BYTES_MAX 4096
#define DOCKER_HUB          "https://index.docker.io/v1/"

void registry_login_clear(RegistryLogin *login)
{
    g_clear_pointer(&login->basic, g_free);
    g_clear_pointer(&login->why, g_free);
}

void registry_challenge_clear(RegistryChallenge *challenge)
{
    g_clear_pointer(&challenge->realm, g_free);
    g_clear_pointer(&challenge->service, g_free);
    g_clear_pointer(&challenge->scope, g_free);
    challenge->scheme = REGISTRY_SCHEME_NONE;
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

static char *pair_of_words(const char *user, const char *password)
{
    g_autofree char *pair = g_strdup_printf("%s:%s", user, password);
    return g_base64_encode((const guchar *)pair, strlen(pair));
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
    return pair_of_words(user, password);
}

static gboolean no_identity_tokens(GError **error)
{
    return error_set(
        error, ASSAY_ERROR_UNSUPPORTED,
        "identity tokens are not supported; log in with a password or an access token");
}

static void keep_pair(const char *pair, RegistryLogin *ret_login)
{
    ret_login->basic = g_strconcat("Authorization: Basic ", pair, NULL);
}

/* What `program` answers to "get", by docker's protocol: the registry goes in, {"Username",
 * "Secret"} comes out, or words and a status. NULL: `ret_why` is why. */
static json_t *ask_helper(const char *program, const char *host, char **ret_why)
{
    const char *asked = strcmp(host, "docker.io") == 0 ? DOCKER_HUB : host;
    g_autoptr(GError) failed = NULL;
    g_autofree char *said = NULL;
    g_autoptr(GSubprocess) helper =
        g_subprocess_new(G_SUBPROCESS_FLAGS_STDIN_PIPE | G_SUBPROCESS_FLAGS_STDOUT_PIPE, &failed,
                         program, "get", NULL);
    if (helper == NULL ||
        !g_subprocess_communicate_utf8(helper, asked, NULL, &said, NULL, &failed)) {
        *ret_why = g_strdup_printf("%s: %s", program, failed->message);
        return NULL;
    }
    g_autoptr(json_t) answer = json_parse(said, strlen(said), NULL);
    if (g_subprocess_get_successful(helper) &&
        json_is_string(json_object_get(answer, "Username")) &&
        json_is_string(json_object_get(answer, "Secret")))
        return g_steal_pointer(&answer);
    /* an object that cannot be used may hold a secret all the same */
    gboolean words = said[0] != '\0' && strchr(said, '{') == NULL;
    *ret_why = g_strdup_printf("%s: %.200s", program,
                               words ? g_strstrip(said) : "it gives no credentials");
    return NULL;
}

static gboolean take_helped(const char *name, const char *host, RegistryLogin *ret_login,
                            GError **error)
{
    g_autofree char *program = g_strconcat("docker-credential-", name, NULL);
    if (strchr(name, '/') != NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "\"%s\" is no name of a credential helper",
                         name);
    g_autoptr(json_t) answer = ask_helper(program, host, &ret_login->why);
    if (answer == NULL)
        return TRUE;
    const char *user = json_string_value(json_object_get(answer, "Username"));
    if (strcmp(user, "<token>") == 0)
        return no_identity_tokens(error);
    g_autofree char *pair =
        pair_of_words(user, json_string_value(json_object_get(answer, "Secret")));
    keep_pair(pair, ret_login);
    return TRUE;
}

static gboolean take_login(const json_t *config, const char *host, RegistryLogin *ret_login,
                           GError **error)
{
    const json_t *entry = entry_of(json_object_get(config, "auths"), host);
    const char *token = json_string_value(json_object_get(entry, "identitytoken"));
    g_autofree char *pair = pair_of(entry);
    if (pair == NULL && token != NULL && token[0] != '\0')
        return no_identity_tokens(error);
    if (pair != NULL && strspn(pair, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                     "0123456789+/=") != strlen(pair))
        return error_set(error, ASSAY_ERROR_INPUT, "auths: %s: auth is not base64", host);
    if (pair != NULL) {
        keep_pair(pair, ret_login);
        return TRUE;
    }
    const char *helper = json_string_value(entry_of(json_object_get(config, "credHelpers"), host));
    if (helper == NULL)
        helper = json_string_value(json_object_get(config, "credsStore"));
    return helper == NULL || helper[0] == '\0' || take_helped(helper, host, ret_login, error);
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

gboolean registry_host_is_loopback(const char *host)
{
    const char *end = *host == '[' ? strchr(host, ']') : NULL;
    gsize n = end != NULL ? (gsize)(end - host) + 1 : strcspn(host, ":");
    if (host[n] != '\0' && host[n] != ':')
        return FALSE;
    g_autofree char *name = g_strndup(host, n);
    if (g_ascii_strcasecmp(name, "localhost") == 0 || strcmp(name, "[::1]") == 0)
        return TRUE;
    /* "127." alone would also match 127.example.org */
    return g_str_has_prefix(name, "127.") && g_hostname_is_ip_address(name);
}

/* RFC 9110 tchar, and "/+" for base64-like tokens, which no parameter name of ours has. */
static gsize token_span(const char *text)
{
    gsize n = 0;
    while (g_ascii_isalnum(text[n]) || (text[n] != '\0' && strchr("!#$%&'*+-.^_`|~/", text[n])))
        n++;
    return n;
}

/* A token or a quoted string at `*at`, which moves behind it; NULL when there is neither. */
static char *take_value(const char **at)
{
    if (**at != '"') {
        gsize n = token_span(*at);
        const char *start = *at;
        *at += n;
        return n == 0 ? NULL : g_strndup(start, n);
    }
    g_autoptr(GString) value = g_string_new(NULL);
    for ((*at)++; **at != '"'; (*at)++) {
        if (**at == '\\')
            (*at)++;
        if (**at == '\0')
            return NULL;
        g_string_append_c(value, **at);
    }
    (*at)++;
    return g_string_free(g_steal_pointer(&value), FALSE);
}

static RegistryScheme scheme_of(const char *word)
{
    if (g_ascii_strcasecmp(word, "bearer") == 0)
        return REGISTRY_SCHEME_BEARER;
    return g_ascii_strcasecmp(word, "basic") == 0 ? REGISTRY_SCHEME_BASIC : REGISTRY_SCHEME_NONE;
}

static void keep_param(RegistryChallenge *challenge, const char *name, const char *value)
{
    const struct {
        const char *name;
        char **slot;
    } params[] = {{"realm", &challenge->realm},
                  {"service", &challenge->service},
                  {"scope", &challenge->scope}};
    for (guint i = 0; i < G_N_ELEMENTS(params); i++) {
        if (g_ascii_strcasecmp(params[i].name, name) != 0 || *params[i].slot != NULL)
            continue;
        *params[i].slot = g_strdup(value);
    }
}

/* `current` is done: the better of it and what was found before stays in `best`. */
static void settle(RegistryChallenge *best, RegistryChallenge *current)
{
    gboolean usable = current->scheme == REGISTRY_SCHEME_BASIC ||
                      (current->scheme == REGISTRY_SCHEME_BEARER && current->realm != NULL);
    if (usable && current->scheme > best->scheme) {
        registry_challenge_clear(best);
        *best = *current;
        *current = (RegistryChallenge){0};
    } else {
        registry_challenge_clear(current);
    }
}

void registry_challenge_parse(const char *header, RegistryChallenge *best)
{
    if (strnlen(header, CHALLENGE_BYTES_MAX) == CHALLENGE_BYTES_MAX)
        return;
    RegistryChallenge current = {0};
    for (const char *at = header + strspn(header, " \t,"); *at != '\0'; at += strspn(at, " \t,")) {
        g_autofree char *word = take_value(&at);
        const char *after = at + strspn(at, " \t");
        if (word != NULL && *after != '=') { /* a word without "=" begins the next challenge */
            settle(best, &current);
            current.scheme = scheme_of(word);
            continue;
        }
        at = word == NULL ? at : after + 1 + strspn(after + 1, " \t");
        g_autofree char *value = word == NULL ? NULL : take_value(&at);
        if (value == NULL) { /* what is malformed spoils the challenge it stands in */
            registry_challenge_clear(&current);
            break;
        }
        keep_param(&current, word, value);
    }
    settle(best, &current);
}
