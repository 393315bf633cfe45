/*
 * Images from registries: the pull half of the distribution protocol, over libcurl.
 *
 * Invariants:
 *   1. Nothing is believed but digests: a manifest by the digest that was asked for, or that the
 *      registry names in its header; a blob by size and digest while it streams.
 *   2. Credentials and tokens go to the registry, and credentials to the token server it names;
 *      redirects are followed by hand and lose them on another host or port.
 *   3. Plain http only to loopback addresses, or when asked for, at every hop; https never leads
 *      to http.
 *   4. Every wait has an end: tries without progress, cuts, redirects and the sum of waits are
 *      limited, and a server that drips is cut.
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

#define IDLE_TRIES_MAX   6  /* in a row that brought nothing */
#define TRIES_MAX        64 /* of one request */
#define REDIRECTS_MAX    5  /* of one try */
#define RETRY_WAIT_MAX_S 120
#define BACKOFF_MS       250
#define CONNECT_S        30
#define STALL_S          60   /* this long below ... */
#define STALL_BYTES_S    1024 /* ... this many bytes a second is a cut */
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
    gboolean begun; /* a byte of the present answer was seen */
    gboolean too_long, wrong_range;
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

static const char *header(const Registry *registry, const char *name, gsize index)
{
    struct curl_header *found;
    CURLHcode code = curl_easy_header(registry->curl, name, index, CURLH_HEADER, -1, &found);
    return code == CURLHE_OK ? found->value : NULL;
}

static gboolean file_restart(Answer *answer)
{
    if (lseek(answer->fd, 0, SEEK_SET) < 0 || ftruncate(answer->fd, 0) < 0) {
        answer->write_errno = errno;
        return FALSE;
    }
    g_checksum_reset(answer->sum);
    answer->done = 0;
    return TRUE;
}

/* The first byte: a partial answer must go on where we stopped; a whole one starts again. */
static gboolean file_begin(Answer *answer)
{
    answer->begun = TRUE;
    if (answer->status == 200)
        return answer->done == 0 || file_restart(answer);
    const char *range = header(answer->registry, "Content-Range", 0);
    g_autofree char *want = g_strdup_printf("bytes %" G_GUINT64_FORMAT "-", answer->done);
    answer->wrong_range = range == NULL || !g_str_has_prefix(range, want);
    return !answer->wrong_range;
}

static gboolean file_take(Answer *answer, const char *data, gsize len)
{
    if (!answer->begun && !file_begin(answer))
        return FALSE;
    answer->too_long = len > answer->total - answer->done;
    if (answer->too_long)
        return FALSE;
    if (!fd_write_all(answer->fd, data, len, NULL)) {
        answer->write_errno = errno;
        return FALSE;
    }
    g_checksum_update(answer->sum, (const guchar *)data, (gssize)len);
    answer->done += len;
    return TRUE;
}

static size_t on_body(char *data, size_t one, size_t n, void *user_data)
{
    Answer *answer = user_data;
    gsize len = one * n;
    curl_easy_getinfo(answer->registry->curl, CURLINFO_RESPONSE_CODE, &answer->status);
    gboolean good = answer->status == 200 || answer->status == 206;
    if (good && answer->fd >= 0)
        return file_take(answer, data, len) ? len : 0;
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

/* Whether a request may go there at all. */
static gboolean url_allowed(const Registry *registry, const char *url, gboolean *ret_loopback,
                            GError **error)
{
    CURLU *parsed = curl_url();
    char *scheme = NULL, *host = NULL, *user = NULL;
    if (curl_url_set(parsed, CURLUPART_URL, url, 0) == CURLUE_OK) {
        curl_url_get(parsed, CURLUPART_SCHEME, &scheme, 0);
        curl_url_get(parsed, CURLUPART_HOST, &host, 0);
        curl_url_get(parsed, CURLUPART_USER, &user, 0);
    }
    gboolean plain = g_strcmp0(scheme, "http") == 0;
    gboolean usable = host != NULL && user == NULL && (plain || g_strcmp0(scheme, "https") == 0);
    *ret_loopback = usable && registry_host_is_loopback(host);
    gboolean allowed = !plain || registry->options->insecure || (registry->plain && *ret_loopback);
    curl_free(scheme);
    curl_free(host);
    curl_free(user);
    curl_url_cleanup(parsed);
    if (!usable)
        return error_set(error, ASSAY_ERROR_INPUT, "%.200s: not a usable http or https URL", url);
    return allowed || error_set(error, ASSAY_ERROR_NOT_ALLOWED,
                                "%.200s: plain http is not allowed there", url);
}

static void set_options(Registry *registry, const char *url, gboolean loopback, Answer *answer)
{
    CURL *curl = registry->curl;
    curl_easy_reset(curl);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, registry->plain ? "http,https" : "https");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, (long)STALL_BYTES_S);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, (long)STALL_S);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "assay/" ASSAY_VERSION);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, answer);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    if (loopback) /* else as the user's http_proxy and no_proxy say */
        curl_easy_setopt(curl, CURLOPT_PROXY, "");
}

/* FALSE: not allowed. */
static gboolean transfer(Registry *registry, const char *url, const char *authorization,
                         Answer *answer, CURLcode *ret_code, GError **error)
{
    gboolean loopback;
    if (!url_allowed(registry, url, &loopback, error))
        return FALSE;
    struct curl_slist *headers = curl_slist_append(NULL, ACCEPT);
    if (authorization != NULL)
        headers = curl_slist_append(headers, authorization);
    if (answer->fd >= 0 && answer->done > 0) {
        g_autofree char *range =
            g_strdup_printf("Range: bytes=%" G_GUINT64_FORMAT "-", answer->done);
        headers = curl_slist_append(headers, range);
    }
    set_options(registry, url, loopback, answer);
    curl_easy_setopt(registry->curl, CURLOPT_HTTPHEADER, headers);
    answer->status = 0;
    answer->begun = answer->too_long = FALSE;
    g_byte_array_set_size(answer->body, 0);
    *ret_code = curl_easy_perform(registry->curl);
    curl_easy_getinfo(registry->curl, CURLINFO_RESPONSE_CODE, &answer->status);
    curl_slist_free_all(headers);
    return TRUE;
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
        const char *why = registry->login.why;
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED,
                         "the registry refuses (%ld)%s%s%s; log in, or give --auth FILE",
                         answer->status, text, why != NULL ? "; " : "", why != NULL ? why : "");
    }
    return error_set(error, ASSAY_ERROR_SYSTEM, "the registry answers %ld%s", answer->status, text);
}

static gboolean set_curl_error(const Registry *registry, CURLcode code, const Answer *answer,
                               GError **error)
{
    if (code == CURLE_ABORTED_BY_CALLBACK || is_cancelled(registry, 0))
        return error_set(error, ASSAY_ERROR_CONFLICT, "interrupted");
    if (answer->too_long)
        return error_set(error, ASSAY_ERROR_INPUT, "it is longer than announced");
    if (answer->wrong_range)
        return error_set(error, ASSAY_ERROR_INPUT, "a range that was not asked for");
    if (answer->write_errno != 0)
        return error_set_errno(error, answer->write_errno, "write");
    return error_set(error, ASSAY_ERROR_SYSTEM, "%s", curl_easy_strerror(code));
}

/* ---- after a try ---- */

typedef struct Tries {
    guint idle, all;
    guint64 waited_ms;
    gboolean fresh; /* the registry has not yet answered to the present token */
} Tries;

typedef enum Next { NEXT_FAILED = 0, NEXT_DONE, NEXT_AGAIN, NEXT_AUTHORIZE } Next;

/* Waits before another try, unless there were enough: then it fails for `why`. */
static Next try_again(Registry *registry, Tries *tries, gboolean progress, const GError *why,
                      GError **error)
{
    curl_off_t asked_s = 0;
    curl_easy_getinfo(registry->curl, CURLINFO_RETRY_AFTER, &asked_s);
    tries->idle = progress ? 0 : tries->idle + 1;
    tries->all++;
    tries->fresh = FALSE;
    guint64 wait_ms = tries->idle > 0 ? BACKOFF_MS << (tries->idle - 1) : 0;
    if (asked_s > 0)
        wait_ms = (guint64)MIN(asked_s, RETRY_WAIT_MAX_S + 1) * 1000;
    tries->waited_ms += wait_ms;
    if (tries->idle >= IDLE_TRIES_MAX || tries->all >= TRIES_MAX ||
        tries->waited_ms > RETRY_WAIT_MAX_S * 1000) {
        g_propagate_prefixed_error(error, g_error_copy(why),
                                   "given up after %u tries: ", tries->all);
        return NEXT_FAILED;
    }
    if (!is_cancelled(registry, (int)wait_ms))
        return NEXT_AGAIN;
    error_set(error, ASSAY_ERROR_CONFLICT, "interrupted");
    return NEXT_FAILED;
}

/* Ends after which the rest can be asked for. */
static gboolean is_cut(CURLcode code)
{
    static const CURLcode cuts[] = {
        CURLE_PARTIAL_FILE, CURLE_RECV_ERROR,   CURLE_SEND_ERROR,         CURLE_GOT_NOTHING,
        CURLE_HTTP2,        CURLE_HTTP2_STREAM, CURLE_OPERATION_TIMEDOUT,
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cuts); i++)
        if (cuts[i] == code)
            return TRUE;
    return FALSE;
}

static gboolean is_passing(long status)
{
    static const long passing[] = {408, 429, 500, 502, 503, 504};
    for (gsize i = 0; i < G_N_ELEMENTS(passing); i++)
        if (passing[i] == status)
            return TRUE;
    return FALSE;
}

/* What to do after a try that began with `from` bytes. */
static Next judge(Registry *registry, CURLcode code, Answer *answer, guint64 from, Tries *tries,
                  GError **error)
{
    g_autoptr(GError) why = NULL;
    gboolean again;
    if (code != CURLE_OK) {
        if (answer->fd >= 0 && answer->done == answer->total && !answer->too_long)
            return NEXT_DONE; /* cut behind the last byte */
        set_curl_error(registry, code, answer, &why);
        again = is_cut(code);
    } else {
        if (answer->status == 200 || answer->status == 206)
            return NEXT_DONE;
        if (answer->status == 401 && !tries->fresh)
            return NEXT_AUTHORIZE;
        set_status_error(registry, answer, &why);
        again = is_passing(answer->status);
        if (answer->status == 416 && answer->fd >= 0 && answer->done > 0) /* no resuming */
            again = file_restart(answer);
    }
    if (again)
        return try_again(registry, tries, answer->done > from, why, error);
    g_propagate_error(error, g_steal_pointer(&why));
    return NEXT_FAILED;
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

/* It is put into a header as it is: one word of printable ASCII. */
static gboolean token_ok(const char *token)
{
    gsize n = 0;
    while (g_ascii_isgraph(token[n]))
        n++;
    return n > 0 && token[n] == '\0';
}

static const char *or_empty(const char *text)
{
    return text != NULL ? text : "";
}

static char *token_url(const RegistryChallenge *challenge)
{
    g_autofree char *service = curl_easy_escape(NULL, or_empty(challenge->service), 0);
    g_autofree char *scope = curl_easy_escape(NULL, or_empty(challenge->scope), 0);
    return g_strdup_printf("%s%sservice=%s&scope=%s", challenge->realm,
                           strchr(challenge->realm, '?') != NULL ? "&" : "?", service, scope);
}

static gboolean get_token(Registry *registry, const RegistryChallenge *challenge, GError **error)
{
    g_autoptr(GByteArray) body = g_byte_array_new();
    Answer answer = {.registry = registry, .body = body, .body_max = TOKEN_BYTES_MAX, .fd = -1};
    g_autofree char *url = token_url(challenge);
    Tries tries = {0};
    Next next = NEXT_AGAIN;
    for (CURLcode code; next == NEXT_AGAIN;)
        next = transfer(registry, url, registry->login.basic, &answer, &code, error)
                   ? judge(registry, code, &answer, 0, &tries, error)
                   : NEXT_FAILED;
    if (next == NEXT_AUTHORIZE)
        set_status_error(registry, &answer, error);
    if (next != NEXT_DONE) {
        g_prefix_error(error, "token from %.200s: ", challenge->realm);
        return FALSE;
    }
    g_autoptr(json_t) value = json_parse((const char *)body->data, body->len, error);
    const char *token = json_string_value(json_object_get(value, "token"));
    if (token == NULL)
        token = json_string_value(json_object_get(value, "access_token"));
    if (token == NULL || !token_ok(token)) {
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
    for (gsize i = 0; (text = header(registry, "WWW-Authenticate", i)) != NULL; i++)
        registry_challenge_parse(text, &challenge);
    if (challenge.scheme == REGISTRY_SCHEME_BEARER)
        return get_token(registry, &challenge, error);
    if (challenge.scheme != REGISTRY_SCHEME_BASIC || registry->login.basic == NULL)
        return set_status_error(registry, answer, error);
    g_free(registry->authorization);
    registry->authorization = g_strdup(registry->login.basic);
    return TRUE;
}

/* ---- a request to its end ---- */

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

static gboolean request(Registry *registry, const char *path, Answer *answer, GError **error)
{
    g_autofree char *home = g_strconcat(registry->base, path, NULL), *url = g_strdup(home);
    Tries tries = {0};
    for (guint redirects = 0;;) {
        CURLcode code;
        guint64 from = answer->done;
        gboolean ours = same_origin(url, registry->base);
        if (!transfer(registry, url, ours ? registry->authorization : NULL, answer, &code, error))
            return FALSE;
        if (code == CURLE_OK && answer->status >= 301 && answer->status <= 308 &&
            answer->status != 304) {
            if (++redirects > REDIRECTS_MAX)
                return error_set(error, ASSAY_ERROR_INPUT, "more than %d redirects", REDIRECTS_MAX);
            if (!redirect(registry, &url, error))
                return FALSE;
            continue;
        }
        Next next = judge(registry, code, answer, from, &tries, error);
        if (next == NEXT_AUTHORIZE) {
            if (!ours)
                return set_status_error(registry, answer, error);
            if (!authorize(registry, answer, error))
                return FALSE;
            tries.fresh = TRUE;
        } else if (next != NEXT_AGAIN) {
            return next == NEXT_DONE;
        }
        g_free(url); /* a link of a store may have run out: ask the registry again */
        url = g_strdup(home);
        redirects = 0;
    }
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

Image *image_pull(Depot *depot, const char *ref, const ImageOptions *options, GError **error)
{
    g_auto(Registry) registry = {.source = {read_blob, fetch_blob, options}, .options = options};
    g_auto(ImageManifest) manifest = {0};
    if (!image_ref_parse(ref, &registry.ref, error))
        return NULL;
    fd_ignore_sigpipe(); /* a server may hang up while TLS writes */
    const char *host = registry.ref.host;
    registry.plain = options->insecure || registry_host_is_loopback(host);
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
