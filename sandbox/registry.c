/*
 * Images from registries: the pull half of the distribution protocol, over libcurl.
 *
 * Invariants:
 *   1. Nothing is believed but digests: a manifest by the digest that was asked for, or that the
 *      registry names in its header; a blob by size and digest while it streams.
 *   2. Credentials and tokens go to the registry, and credentials to the token server it names;
 *      redirects are followed by hand and lose them on another host or port.
 *   3. Plain http only to loopback addresses, or when asked for; https never leads to http.
 *   4. Every wait has an end: tries, redirects and the sum of Retry-After are limited.
 *
 * Not here: what manifests say (image_manifest.c), credentials on disk (registry_auth.c).
 */
#include "sandbox/registry_auth.h"

#include "base/error.h"
#include "base/fd.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define TRIES_MAX        6 /* of one request: cut, busy or redirected starts count */
#define REDIRECTS_MAX    5
#define RETRY_WAIT_MAX_S 120
#define CONNECT_S        30
#define STALL_S          60
#define TOKEN_BYTES_MAX  65536
#define ERROR_BYTES_MAX  4096

#define ACCEPT                                                                                     \
    "Accept: application/vnd.oci.image.index.v1+json, "                                            \
    "application/vnd.docker.distribution.manifest.list.v2+json, "                                  \
    "application/vnd.oci.image.manifest.v1+json, "                                                 \
    "application/vnd.docker.distribution.manifest.v2+json"

typedef struct Registry {
    ImageSource source;
    const ImageOptions *options;
    ImageRef ref;
    CURL *curl;
    char *base;          /* "https://host:port" */
    char *authorization; /* "Authorization: ..." or NULL */
    gboolean plain;      /* http */
    RegistryLogin login;
} Registry;

/* One answer: a body in memory, or a file that grows. */
typedef struct Answer {
    Registry *registry;
    GByteArray *body; /* also of errors */
    gsize body_max;
    int fd; /* >= 0: successful bodies go here */
    GChecksum *sum;
    guint64 done, total;
    const char *digest; /* for progress */
    long status;
    gboolean too_long;
    int write_errno;
} Answer;

static void registry_clear(Registry *registry)
{
    image_ref_clear(&registry->ref);
    registry_login_clear(&registry->login);
    if (registry->curl != NULL)
        curl_easy_cleanup(registry->curl);
    g_free(registry->base);
    g_free(registry->authorization);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Registry, registry_clear)

static gboolean is_cancelled(const Registry *registry, int wait_ms)
{
    GPollFD poll = {.fd = registry->options->cancel_fd, .events = G_IO_IN};
    return g_poll(&poll, registry->options->cancel_fd > 0 ? 1 : 0, wait_ms) > 0;
}

/* ---- one transfer ---- */

static size_t on_body(char *data, size_t one, size_t n, void *user_data)
{
    Answer *answer = user_data;
    gsize len = one * n;
    curl_easy_getinfo(answer->registry->curl, CURLINFO_RESPONSE_CODE, &answer->status);
    gboolean good = answer->status == 200 || answer->status == 206;
    if (good && answer->fd >= 0) {
        if (len > answer->total - answer->done) {
            answer->too_long = TRUE;
            return 0;
        }
        if (!fd_write_all(answer->fd, data, len, NULL)) {
            answer->write_errno = errno;
            return 0;
        }
        g_checksum_update(answer->sum, (const guchar *)data, (gssize)len);
        answer->done += len;
        return len;
    }
    gsize max = good ? answer->body_max : ERROR_BYTES_MAX;
    if (answer->body->len + len > max) {
        answer->too_long = good;
        return good ? 0 : len;
    }
    g_byte_array_append(answer->body, (const guint8 *)data, (guint)len);
    return len;
}

static int on_progress(void *user_data, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up_now)
{
    const Answer *answer = user_data;
    const ImageOptions *options = answer->registry->options;
    (void)total, (void)now, (void)up_total, (void)up_now;
    if (options->progress != NULL && answer->fd >= 0)
        options->progress(IMAGE_STEP_FETCH, answer->digest, answer->done, answer->total,
                          options->progress_data);
    return is_cancelled(answer->registry, 0);
}

static void set_options(Registry *registry, const char *url, Answer *answer)
{
    CURL *curl = registry->curl;
    curl_easy_reset(curl);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, registry->plain ? "http,https" : "https");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, (long)STALL_S);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "assay/" ASSAY_VERSION);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, answer);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    if (registry->plain)
        curl_easy_setopt(curl, CURLOPT_NOPROXY, "localhost,127.0.0.1,::1");
}

static CURLcode transfer(Registry *registry, const char *url, const char *authorization,
                         Answer *answer)
{
    struct curl_slist *headers = curl_slist_append(NULL, ACCEPT);
    if (authorization != NULL)
        headers = curl_slist_append(headers, authorization);
    if (answer->fd >= 0 && answer->done > 0) {
        g_autofree char *range =
            g_strdup_printf("Range: bytes=%" G_GUINT64_FORMAT "-", answer->done);
        headers = curl_slist_append(headers, range);
    }
    set_options(registry, url, answer);
    curl_easy_setopt(registry->curl, CURLOPT_HTTPHEADER, headers);
    answer->status = 0;
    answer->too_long = FALSE;
    g_byte_array_set_size(answer->body, 0);
    CURLcode code = curl_easy_perform(registry->curl);
    curl_easy_getinfo(registry->curl, CURLINFO_RESPONSE_CODE, &answer->status);
    curl_slist_free_all(headers);
    return code;
}

static const char *header(const Registry *registry, const char *name, gsize index)
{
    struct curl_header *found;
    CURLHcode code = curl_easy_header(registry->curl, name, index, CURLH_HEADER, -1, &found);
    return code == CURLHE_OK ? found->value : NULL;
}

/* ---- errors and waits ---- */

/* {"errors":[{"code","message"}]}, or nothing. */
static char *error_text(const Answer *answer)
{
    g_autoptr(json_t) value = json_parse((const char *)answer->body->data, answer->body->len, NULL);
    const json_t *first = json_array_get(json_object_get(value, "errors"), 0);
    const char *message = json_string_value(json_object_get(first, "message"));
    return message != NULL ? g_strdup_printf(": %.200s", message) : g_strdup("");
}

static gboolean set_status_error(const Registry *registry, const Answer *answer, GError **error)
{
    g_autofree char *text = error_text(answer);
    if (answer->status == 404)
        return error_set(error, ASSAY_ERROR_NOT_FOUND, "the registry has none%s", text);
    if (answer->status == 401 || answer->status == 403) {
        const char *helper = registry->login.helper;
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED,
                         "the registry refuses (%ld)%s%s%s%s; log in, or give --auth FILE",
                         answer->status, text, helper != NULL ? "; credentials are kept by " : "",
                         helper != NULL ? helper : "",
                         helper != NULL ? ", which is not asked" : "");
    }
    return error_set(error, ASSAY_ERROR_SYSTEM, "the registry answers %ld%s", answer->status, text);
}

/* FALSE: it will not get better. */
static gboolean wait_retry(const Registry *registry, const Answer *answer, guint try,
                           guint *waited_s, GError **error)
{
    const char *after = header(registry, "Retry-After", 0);
    guint64 seconds = 1u << try;
    if (after != NULL && !g_ascii_string_to_unsigned(after, 10, 0, 86400, &seconds, NULL))
        seconds = 1u << try; /* a date */
    if (*waited_s + seconds > RETRY_WAIT_MAX_S)
        return set_status_error(registry, answer, error);
    *waited_s += (guint)seconds;
    return !is_cancelled(registry, (int)seconds * 1000) ||
           error_set(error, ASSAY_ERROR_CONFLICT, "interrupted");
}

static gboolean set_curl_error(const Registry *registry, CURLcode code, const Answer *answer,
                               GError **error)
{
    if (code == CURLE_ABORTED_BY_CALLBACK || is_cancelled(registry, 0))
        return error_set(error, ASSAY_ERROR_CONFLICT, "interrupted");
    if (answer->too_long)
        return error_set(error, ASSAY_ERROR_INPUT, "it is longer than announced");
    if (answer->write_errno != 0)
        return error_set_errno(error, answer->write_errno, "write");
    return error_set(error, ASSAY_ERROR_SYSTEM, "%s", curl_easy_strerror(code));
}

/* ---- tokens ---- */

static gboolean same_origin(const char *a, const char *b)
{
    static const CURLUPart parts[] = {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT};
    CURLU *left = curl_url(), *right = curl_url();
    gboolean same = curl_url_set(left, CURLUPART_URL, a, 0) == CURLUE_OK &&
                    curl_url_set(right, CURLUPART_URL, b, 0) == CURLUE_OK;
    for (gsize i = 0; i < G_N_ELEMENTS(parts); i++) {
        char *x = NULL, *y = NULL;
        curl_url_get(left, parts[i], &x, CURLU_DEFAULT_PORT);
        curl_url_get(right, parts[i], &y, CURLU_DEFAULT_PORT);
        same = same && x != NULL && y != NULL && g_ascii_strcasecmp(x, y) == 0;
        curl_free(x);
        curl_free(y);
    }
    curl_url_cleanup(left);
    curl_url_cleanup(right);
    return same;
}

static char *token_url(const RegistryChallenge *challenge)
{
    g_autofree char *service = curl_easy_escape(NULL, challenge->service, 0);
    g_autofree char *scope = curl_easy_escape(NULL, challenge->scope, 0);
    return g_strdup_printf("%s%sservice=%s&scope=%s", challenge->realm,
                           strchr(challenge->realm, '?') != NULL ? "&" : "?", service, scope);
}

static gboolean get_token(Registry *registry, const RegistryChallenge *challenge, GError **error)
{
    g_autoptr(GByteArray) body = g_byte_array_new();
    Answer answer = {.registry = registry, .body = body, .body_max = TOKEN_BYTES_MAX, .fd = -1};
    g_autofree char *url = token_url(challenge);
    CURLcode code = transfer(registry, url, registry->login.basic, &answer);
    if (code != CURLE_OK || answer.status != 200) {
        gboolean r = code != CURLE_OK ? set_curl_error(registry, code, &answer, error)
                                      : set_status_error(registry, &answer, error);
        g_prefix_error(error, "token from %s: ", challenge->realm);
        return r;
    }
    g_autoptr(json_t) value = json_parse((const char *)body->data, body->len, error);
    const char *token = json_string_value(json_object_get(value, "token"));
    if (token == NULL)
        token = json_string_value(json_object_get(value, "access_token"));
    if (token == NULL || strpbrk(token, "\r\n") != NULL) {
        g_clear_error(error);
        return error_set(error, ASSAY_ERROR_INPUT, "token from %s: there is none",
                         challenge->realm);
    }
    g_free(registry->authorization);
    registry->authorization = g_strconcat("Authorization: Bearer ", token, NULL);
    return TRUE;
}

/* After a 401: the way in that the registry names. */
static gboolean authorize(Registry *registry, const Answer *answer, GError **error)
{
    g_auto(RegistryChallenge) challenge = {0};
    const char *text;
    for (gsize i = 0; (text = header(registry, "WWW-Authenticate", i)) != NULL; i++) {
        if (registry_challenge_parse(text, &challenge))
            return get_token(registry, &challenge, error);
        if (g_ascii_strncasecmp(text, "Basic", 5) == 0 && registry->login.basic != NULL) {
            g_free(registry->authorization);
            registry->authorization = g_strdup(registry->login.basic);
            return TRUE;
        }
    }
    return set_status_error(registry, answer, error);
}

/* ---- a request to its end ---- */

/* A partial answer must go on where we stopped; a whole one starts again. */
static gboolean begin_file(Answer *answer, GError **error)
{
    if (answer->done == 0)
        return TRUE;
    if (lseek(answer->fd, 0, SEEK_SET) < 0 || ftruncate(answer->fd, 0) < 0)
        return error_set_errno(error, errno, "start again");
    g_checksum_reset(answer->sum);
    answer->done = 0;
    return TRUE;
}

typedef enum Next { NEXT_FAILED, NEXT_DONE, NEXT_AGAIN } Next;

static Next after_status(Registry *registry, Answer *answer, char **url, guint try, guint *waited_s,
                         GError **error)
{
    if (answer->status == 200 || answer->status == 206)
        return NEXT_DONE;
    if (answer->status == 401 && same_origin(*url, registry->base) && try < 2)
        return authorize(registry, answer, error) ? NEXT_AGAIN : NEXT_FAILED;
    if (answer->status == 429 || answer->status == 503)
        return wait_retry(registry, answer, try, waited_s, error) ? NEXT_AGAIN : NEXT_FAILED;
    if (answer->status == 416 && answer->fd >= 0 && answer->done > 0) /* resuming is refused */
        return begin_file(answer, error) ? NEXT_AGAIN : NEXT_FAILED;
    set_status_error(registry, answer, error);
    return NEXT_FAILED;
}

/* Follows one redirect. */
static gboolean redirect(Registry *registry, char **url, GError **error)
{
    char *to = NULL;
    curl_easy_getinfo(registry->curl, CURLINFO_REDIRECT_URL, &to);
    if (to == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "a redirect to nowhere");
    if (g_str_has_prefix(*url, "https:") && !g_str_has_prefix(to, "https:"))
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "a redirect from https to %.100s", to);
    char *old = *url;
    *url = g_strdup(to);
    g_free(old);
    return TRUE;
}

/* A server that does not resume answers 200 with everything; that must be known before the first
 * byte is written, so a resumed request checks first and starts over when it must. */
static gboolean resume_refused(const Registry *registry, const Answer *answer, guint64 from)
{
    const char *range = header(registry, "Content-Range", 0);
    g_autofree char *want = g_strdup_printf("bytes %" G_GUINT64_FORMAT "-", from);
    return from > 0 &&
           (answer->status == 200 ||
            (answer->status == 206 && (range == NULL || !g_str_has_prefix(range, want))));
}

static gboolean request(Registry *registry, const char *path, Answer *answer, GError **error)
{
    g_autofree char *home = g_strconcat(registry->base, path, NULL), *url = g_strdup(home);
    guint redirects = 0, waited_s = 0;
    for (guint try = 0; try < TRIES_MAX;) {
        guint64 from = answer->done;
        gboolean ours = same_origin(url, registry->base);
        CURLcode code = transfer(registry, url, ours ? registry->authorization : NULL, answer);
        if (resume_refused(registry, answer, from)) {
            if (!begin_file(answer, error))
                return FALSE;
            try++;
            continue;
        }
        if (code != CURLE_OK) {
            gboolean cut = !answer->too_long && answer->write_errno == 0 &&
                           code != CURLE_ABORTED_BY_CALLBACK && ++try < TRIES_MAX;
            if (!cut || is_cancelled(registry, answer->done > from ? 0 : 200 << try))
                return set_curl_error(registry, code, answer, error);
            g_free(url); /* a link of a store may have run out: ask the registry again */
            url = g_strdup(home);
            continue;
        }
        if (answer->status >= 301 && answer->status <= 308 && answer->status != 304) {
            if (++redirects > REDIRECTS_MAX)
                return error_set(error, ASSAY_ERROR_INPUT, "more than %d redirects", REDIRECTS_MAX);
            if (!redirect(registry, &url, error))
                return FALSE;
            continue;
        }
        Next next = after_status(registry, answer, &url, try++, &waited_s, error);
        if (next != NEXT_AGAIN)
            return next == NEXT_DONE;
    }
    return set_status_error(registry, answer, error);
}

/* ---- blobs and manifests ---- */

static gboolean digest_is(const char *digest, const char *hex)
{
    return depot_digest_ok(digest) && strcmp(digest + 7, hex) == 0;
}

static GBytes *get_bytes(Registry *registry, const char *path, const char *digest, GError **error)
{
    GByteArray *body = g_byte_array_new();
    Answer answer = {.registry = registry, .body = body, .body_max = IMAGE_JSON_MAX, .fd = -1};
    gboolean ok = request(registry, path, &answer, error);
    g_autofree char *named = ok ? g_strdup(header(registry, "Docker-Content-Digest", 0)) : NULL;
    g_autoptr(GBytes) bytes = g_byte_array_free_to_bytes(body);
    if (!ok)
        return NULL;
    g_autofree char *hex = g_compute_checksum_for_bytes(G_CHECKSUM_SHA256, bytes);
    const char *want = digest != NULL ? digest : named;
    if (want != NULL && !digest_is(want, hex)) {
        error_set(error, ASSAY_ERROR_INPUT, "%.80s has the digest sha256:%s", want, hex);
        return NULL;
    }
    return g_steal_pointer(&bytes);
}

static GBytes *read_blob(ImageSource *source, const ImageBlob *blob, GError **error)
{
    Registry *registry = (Registry *)source;
    g_autofree char *path = g_strdup_printf("/v2/%s/blobs/%s", registry->ref.repo, blob->digest);
    return get_bytes(registry, path, blob->digest, error);
}

static gboolean fetch_blob(ImageSource *source, const ImageBlob *blob, int dir_fd, GError **error)
{
    Registry *registry = (Registry *)source;
    g_autofree char *path = g_strdup_printf("/v2/%s/blobs/%s", registry->ref.repo, blob->digest);
    g_autoptr(GByteArray) body = g_byte_array_new();
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    AUTO_FD fd = openat(dir_fd, "blob", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 || fchmod(fd, 0644) < 0)
        return error_set_errno(error, errno, "create a file in the image store");
    Answer answer = {.registry = registry,
                     .body = body,
                     .fd = fd,
                     .sum = sum,
                     .total = blob->size >= 0 ? (guint64)blob->size : (guint64)IMAGE_BLOB_BYTES,
                     .digest = blob->digest};
    if (!request(registry, path, &answer, error)) {
        g_prefix_error(error, "blob %s: ", blob->digest);
        return FALSE;
    }
    if (blob->size >= 0 && answer.done != answer.total)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "blob %s has %" G_GUINT64_FORMAT " bytes, not %" G_GINT64_FORMAT,
                         blob->digest, answer.done, blob->size);
    return digest_is(blob->digest, g_checksum_get_string(sum)) ||
           error_set(error, ASSAY_ERROR_INPUT, "blob %s has the digest sha256:%s", blob->digest,
                     g_checksum_get_string(sum));
}

static gboolean get_manifest(Registry *registry, ImageManifest *ret_manifest, GError **error)
{
    g_autofree char *host = image_platform_host();
    const char *platform = registry->options->platform != NULL ? registry->options->platform : host;
    g_autofree char *digest = g_strdup(registry->ref.digest);
    for (guint depth = 0; depth <= IMAGE_INDEX_MAX; depth++) {
        g_autofree char *path = g_strdup_printf("/v2/%s/manifests/%s", registry->ref.repo,
                                                digest != NULL ? digest : registry->ref.tag);
        g_autoptr(GBytes) bytes = get_bytes(registry, path, digest, error);
        g_autoptr(json_t) value = bytes == NULL ? NULL
                                                : json_parse(g_bytes_get_data(bytes, NULL),
                                                             g_bytes_get_size(bytes), error);
        if (value == NULL)
            return FALSE;
        if (!image_is_index(value))
            return image_manifest_parse(value, ret_manifest, error);
        ImageBlob blob = {0};
        if (!image_index_pick(value, platform, NULL, &blob, error))
            return FALSE;
        g_free(digest);
        digest = g_steal_pointer(&blob.digest);
    }
    return error_set(error, ASSAY_ERROR_INPUT, "indexes in indexes");
}

static gboolean is_loopback(const char *host)
{
    return g_str_has_prefix(host, "127.") || g_str_has_prefix(host, "[::1]") ||
           strcmp(host, "localhost") == 0 || g_str_has_prefix(host, "localhost:");
}

Image *image_pull(Depot *depot, const char *ref, const ImageOptions *options, GError **error)
{
    g_auto(Registry) registry = {.source = {read_blob, fetch_blob, options}, .options = options};
    g_auto(ImageManifest) manifest = {0};
    if (!image_ref_parse(ref, &registry.ref, error))
        return NULL;
    const char *host = registry.ref.host;
    registry.plain = options->insecure || is_loopback(host);
    registry.base = g_strdup_printf("%s://%s", registry.plain ? "http" : "https",
                                    strcmp(host, "docker.io") == 0 ? "registry-1.docker.io" : host);
    registry.curl = curl_easy_init();
    if (registry.curl == NULL) {
        error_set(error, ASSAY_ERROR_SYSTEM, "libcurl does not start");
        return NULL;
    }
    g_autofree char *name = image_ref_str(&registry.ref);
    Image *image = NULL;
    if (registry_login_read(options->auth, host, &registry.login, error) &&
        get_manifest(&registry, &manifest, error))
        image = image_install(depot, name, &manifest, &registry.source, error);
    if (image == NULL)
        g_prefix_error(error, "pull %s: ", name);
    return image;
}
