/*
 * HTTP over the unix socket with libcurl.
 *
 * Invariant: an HTTP error becomes a GError whose code is the kind (NOT_FOUND, INPUT, ...), so
 * that the exit status follows from it.
 */
#include "env/client.h"

#include "base/error.h"
#include "base/fd.h"
#include "env/socket_path.h"

#include <curl/curl.h>
#include <string.h>

struct Client {
    char *path;
    char *short_path;
    int dir_fd;
    CURL *curl;
};

typedef struct Lines {
    GByteArray *buffer;
    ClientLineFn fn;
    gpointer user_data;
    CURL *curl;
    GByteArray *problem;
    gboolean stopped;
} Lines;

void answer_free(Answer *answer)
{
    if (answer == NULL)
        return;
    g_byte_array_unref(answer->body);
    g_free(answer);
}

Client *client_new(const char *socket_path)
{
    Client *client = g_new0(Client, 1);
    client->path = g_strdup(socket_path);
    client->dir_fd = -1;
    client->short_path = socket_path_short(socket_path, &client->dir_fd, NULL);
    client->curl = curl_easy_init();
    g_assert(client->curl != NULL);
    return client;
}

void client_free(Client *client)
{
    if (client == NULL)
        return;
    curl_easy_cleanup(client->curl);
    fd_close_p(&client->dir_fd);
    g_free(client->short_path);
    g_free(client->path);
    g_free(client);
}

const char *client_socket(const Client *client)
{
    return client->path;
}

static size_t keep_body(char *data, size_t size, size_t n, void *user_data)
{
    GByteArray *body = user_data;
    gsize len = size * n;
    if (body->len + len > CLIENT_BODY_MAX)
        return 0;
    g_byte_array_append(body, (const guint8 *)data, (guint)len);
    return len;
}

/* The common options; the method, the body and the writer are the caller's. */
static struct curl_slist *prepare(Client *client, const char *method, const char *target,
                                  GBytes *body)
{
    g_autofree char *url = g_strconcat("http://assay", target, NULL);
    gboolean is_post = strcmp(method, "POST") == 0;
    curl_easy_reset(client->curl);
    curl_easy_setopt(client->curl, CURLOPT_UNIX_SOCKET_PATH, client->short_path);
    curl_easy_setopt(client->curl, CURLOPT_URL, url);
    curl_easy_setopt(client->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(client->curl, CURLOPT_PROXY, "");
    curl_easy_setopt(client->curl, CURLOPT_CONNECTTIMEOUT, 10L);
    if (is_post) {
        gsize len = 0;
        const char *data = body != NULL ? g_bytes_get_data(body, &len) : "";
        curl_easy_setopt(client->curl, CURLOPT_POST, 1L);
        curl_easy_setopt(client->curl, CURLOPT_POSTFIELDS, data != NULL ? data : "");
        curl_easy_setopt(client->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)len);
    }
    if (!is_post)
        curl_easy_setopt(client->curl, CURLOPT_CUSTOMREQUEST, method);
    struct curl_slist *headers = curl_slist_append(NULL, "Expect:");
    headers = curl_slist_append(headers, "Content-Type: application/json");
    curl_easy_setopt(client->curl, CURLOPT_HTTPHEADER, headers);
    return headers;
}

static gboolean unreachable(Client *client, CURLcode code, GError **error)
{
    return error_set(error, ASSAY_ERROR_UNSUPPORTED, "cannot reach the daemon at %s: %s",
                     client->path, curl_easy_strerror(code));
}

Answer *client_call(Client *client, const char *method, const char *target, GBytes *body,
                    GError **error)
{
    if (client->short_path == NULL) {
        unreachable(client, CURLE_COULDNT_CONNECT, error);
        return NULL;
    }
    g_autoptr(Answer) answer = g_new0(Answer, 1);
    answer->body = g_byte_array_new();
    struct curl_slist *headers = prepare(client, method, target, body);
    curl_easy_setopt(client->curl, CURLOPT_WRITEFUNCTION, keep_body);
    curl_easy_setopt(client->curl, CURLOPT_WRITEDATA, answer->body);
    CURLcode code = curl_easy_perform(client->curl);
    curl_slist_free_all(headers);
    if (code != CURLE_OK) {
        unreachable(client, code, error);
        return NULL;
    }
    long status = 0;
    curl_easy_getinfo(client->curl, CURLINFO_RESPONSE_CODE, &status);
    answer->status = (guint)status;
    g_byte_array_append(answer->body, (const guint8 *)"", 1);
    answer->body->len--;
    return g_steal_pointer(&answer);
}

static const struct {
    guint status;
    AssayErrorCode code;
} status_codes[] = {
    {400, ASSAY_ERROR_INPUT},       {403, ASSAY_ERROR_NOT_ALLOWED}, {404, ASSAY_ERROR_NOT_FOUND},
    {405, ASSAY_ERROR_INPUT},       {409, ASSAY_ERROR_CONFLICT},    {413, ASSAY_ERROR_INPUT},
    {414, ASSAY_ERROR_INPUT},       {422, ASSAY_ERROR_INPUT},       {429, ASSAY_ERROR_LIMIT},
    {501, ASSAY_ERROR_UNSUPPORTED}, {503, ASSAY_ERROR_LIMIT},       {507, ASSAY_ERROR_LIMIT},
};

static gboolean problem_error(guint status, const GByteArray *body, GError **error)
{
    g_autoptr(json_t) problem = json_parse((const char *)body->data, body->len, NULL);
    const char *detail = json_string_value(json_object_get(problem, "detail"));
    const char *near = json_string_value(json_object_get(problem, "did_you_mean"));
    AssayErrorCode code = ASSAY_ERROR_SYSTEM;
    for (guint i = 0; i < G_N_ELEMENTS(status_codes); i++) {
        if (status_codes[i].status == status)
            code = status_codes[i].code;
    }
    return error_set(error, code, "%s%s%s%s", detail != NULL ? detail : "the daemon failed",
                     near != NULL ? "; did you mean " : "", near != NULL ? near : "",
                     near != NULL ? "?" : "");
}

json_t *client_json(Client *client, const char *method, const char *target, GBytes *body,
                    GError **error)
{
    g_autoptr(Answer) answer = client_call(client, method, target, body, error);
    if (answer == NULL)
        return NULL;
    if (answer->status >= 400) {
        problem_error(answer->status, answer->body, error);
        return NULL;
    }
    return json_parse((const char *)answer->body->data, answer->body->len, error);
}

GBytes *client_bytes(Client *client, const char *method, const char *target, GError **error)
{
    g_autoptr(Answer) answer = client_call(client, method, target, NULL, error);
    if (answer == NULL)
        return NULL;
    if (answer->status < 400)
        return g_bytes_new(answer->body->data, answer->body->len);
    problem_error(answer->status, answer->body, error);
    return NULL;
}

static gboolean lines_take(Lines *lines)
{
    gsize from = 0;
    gboolean more = TRUE;
    while (more) {
        const guint8 *start = lines->buffer->data + from;
        const guint8 *end =
            lines->buffer->len > from ? memchr(start, '\n', lines->buffer->len - from) : NULL;
        if (end == NULL)
            break;
        g_autoptr(json_t) line = json_parse((const char *)start, (gsize)(end - start), NULL);
        from += (gsize)(end - start) + 1;
        if (line != NULL)
            more = lines->fn(line, lines->user_data);
    }
    if (from > 0)
        g_byte_array_remove_range(lines->buffer, 0, (guint)from);
    lines->stopped = !more;
    return more;
}

static size_t lines_body(char *data, size_t size, size_t n, void *user_data)
{
    Lines *lines = user_data;
    long status = 0;
    curl_easy_getinfo(lines->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status >= 400)
        return keep_body(data, size, n, lines->problem);
    g_byte_array_append(lines->buffer, (const guint8 *)data, (guint)(size * n));
    return lines_take(lines) ? size * n : 0;
}

static int lines_idle(void *user_data, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)a, (void)b, (void)c, (void)d;
    Lines *lines = user_data;
    if (lines->fn(NULL, lines->user_data))
        return 0;
    lines->stopped = TRUE;
    return 1;
}

gboolean client_lines(Client *client, const char *target, ClientLineFn fn, gpointer user_data,
                      GError **error)
{
    g_autoptr(GByteArray) buffer = g_byte_array_new();
    g_autoptr(GByteArray) problem = g_byte_array_new();
    Lines lines = {.buffer = buffer,
                   .problem = problem,
                   .fn = fn,
                   .user_data = user_data,
                   .curl = client->curl};
    if (client->short_path == NULL)
        return unreachable(client, CURLE_COULDNT_CONNECT, error);
    struct curl_slist *headers = prepare(client, "GET", target, NULL);
    curl_easy_setopt(client->curl, CURLOPT_WRITEFUNCTION, lines_body);
    curl_easy_setopt(client->curl, CURLOPT_WRITEDATA, &lines);
    curl_easy_setopt(client->curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(client->curl, CURLOPT_XFERINFOFUNCTION, lines_idle);
    curl_easy_setopt(client->curl, CURLOPT_XFERINFODATA, &lines);
    CURLcode code = curl_easy_perform(client->curl);
    long status = 0;
    curl_easy_getinfo(client->curl, CURLINFO_RESPONSE_CODE, &status);
    curl_slist_free_all(headers);
    if (lines.stopped)
        return TRUE;
    if (code != CURLE_OK)
        return unreachable(client, code, error);
    return status < 400 || problem_error((guint)status, problem, error);
}
