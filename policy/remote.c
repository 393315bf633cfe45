/*
 * Requests to a server on their way: many at once, each with a deadline, asked again when nothing
 * came of it.
 *
 *     waiting (for its turn, or for a pause to end) -> in flight -> answered | lost | waiting
 *
 * 1. Every sample that was submitted ends, answered or aborted, whatever the server does: attempts
 *    are counted, an attempt has a deadline, an answer has a size.
 * 2. Tokens of a request are handed on together and once, after its answer was found to be one.
 * 3. What was refused as such (4xx) is not asked again; what may be otherwise next time is, after a
 *    pause that doubles.
 *
 * Not here: what an answer has to be (remote_answer.c); what a lost sample means (env/).
 */
#include "policy/remote.h"

#include "base/error.h"
#include "base/json.h"

#include <curl/curl.h>
#include <poll.h>
#include <string.h>

#define ANSWER_BYTES_MAX (256u << 20)
#define UPDATE_BYTES_MAX (1u << 20)
#define UPDATE_WAIT_MS   600000L
#define CONNECT_WAIT_MS  10000L
#define PAUSE_US_FIRST   50000
#define PAUSE_US_MAX     5000000
#define SOCKET_PATH_MAX  107u

static const char *const api_names[REMOTE_APIS] = {"completions", "generate"};
static const char *const api_paths[REMOTE_APIS] = {"/v1/completions", "/inference/v1/generate"};

const char *remote_api_name(RemoteApi api)
{
    return api_names[api];
}

typedef struct Answer {
    GByteArray *bytes;
    guint max;
} Answer;

typedef struct Call {
    EngineRequest request; /* prompt and stops are its own */
    guint64 number;
    char *body;
    Answer answer;
    CURL *easy; /* NULL: waits */
    guint attempts;
    gint64 not_before_us;
} Call;

struct Remote {
    char *url, *socket, *model; /* socket: NULL over TCP */
    RemoteApi api;
    guint flight_max, attempts_max;
    gint64 wait_ms;
    int vocab;
    CURLM *multi;
    struct curl_slist *headers;
    GPtrArray *calls; /* Call: open, oldest first */
    guint in_flight;
    guint64 number;
    char *weights;  /* where those that were given are; NULL: none were */
    gint64 version; /* of them, as the server says; 0: it does not */
    gboolean stale; /* the server may have others */
    guint update_attempts;
    gint64 update_not_before_us;
    RemoteStats stats;
    char *why;
};

static void call_free(gpointer data)
{
    Call *call = data;

    if (call->easy)
        curl_easy_cleanup(call->easy);
    g_free((int *)(gintptr)call->request.prompt);
    g_free((int *)(gintptr)call->request.stops);
    g_byte_array_unref(call->answer.bytes);
    g_free(call->body);
    g_free(call);
}

/* ---- life ---- */

static gboolean take_url(Remote *r, const char *url, GError **error)
{
    gboolean is_unix = g_str_has_prefix(url, "unix:");

    if (is_unix && strlen(url + 5) > SOCKET_PATH_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "%s: the path of a socket has at most %u bytes",
                         url, SOCKET_PATH_MAX);
    if (!is_unix && !g_str_has_prefix(url, "http://") && !g_str_has_prefix(url, "https://"))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "%s: a server is http://HOST:PORT, https://HOST or unix:PATH", url);
    r->socket = is_unix ? g_strdup(url + 5) : NULL;
    r->url = g_strdup(is_unix ? "http://policy" : url);
    if (g_str_has_suffix(r->url, "/"))
        r->url[strlen(r->url) - 1] = '\0';
    return TRUE;
}

Remote *remote_new(const RemoteOptions *o, GError **error)
{
    g_autoptr(Remote) r = g_new0(Remote, 1);
    g_autofree char *bearer = o->key ? g_strconcat("Authorization: Bearer ", o->key, NULL) : NULL;

    r->calls = g_ptr_array_new_with_free_func(call_free);
    r->api = o->api;
    r->flight_max = MAX(o->flight_max, 1);
    r->attempts_max = MAX(o->attempts_max, 1);
    r->wait_ms = o->wait_ms;
    r->vocab = o->vocab;
    r->model = g_strdup(o->model);
    r->multi = curl_multi_init();
    g_assert(r->multi);
    r->headers = curl_slist_append(r->headers, "Expect:");
    r->headers = curl_slist_append(r->headers, "Content-Type: application/json");
    if (bearer)
        r->headers = curl_slist_append(r->headers, bearer);
    return take_url(r, o->url, error) ? g_steal_pointer(&r) : NULL;
}

void remote_free(Remote *r)
{
    if (!r)
        return;
    for (guint i = 0; i < r->calls->len; i++) {
        Call *call = r->calls->pdata[i];

        if (call->easy)
            curl_multi_remove_handle(r->multi, call->easy);
    }
    g_ptr_array_unref(r->calls);
    curl_multi_cleanup(r->multi);
    curl_slist_free_all(r->headers);
    g_free(r->url);
    g_free(r->socket);
    g_free(r->model);
    g_free(r->weights);
    g_free(r->why);
    g_free(r);
}

/* ---- one transfer ---- */

static size_t on_body(char *data, size_t size, size_t n, void *user)
{
    Answer *answer = user;

    if (size * n > answer->max - answer->bytes->len)
        return 0; /* ends the transfer */
    g_byte_array_append(answer->bytes, (const guint8 *)data, (guint)(size * n));
    return size * n;
}

static CURL *transfer_new(const Remote *r, const char *path, const char *body, gint64 wait_ms,
                          Answer *answer)
{
    g_autofree char *url = g_strconcat(r->url, path, NULL);
    CURL *easy = curl_easy_init();

    g_assert(easy);
    g_byte_array_set_size(answer->bytes, 0);
    curl_easy_setopt(easy, CURLOPT_URL, url);
    if (r->socket)
        curl_easy_setopt(easy, CURLOPT_UNIX_SOCKET_PATH, r->socket);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_WAIT_MS);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long)wait_ms);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, r->headers);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, answer);
    return easy;
}

/* ---- requests ---- */

void remote_submit(Remote *r, const EngineRequest *request)
{
    Call *call = g_new0(Call, 1);

    g_assert(!request->allowed && !request->on_prompt && !request->repetition);
    call->request = *request;
    call->request.prompt =
        g_memdup2(request->prompt, (gsize)request->prompt_len * sizeof *request->prompt);
    call->request.stops = g_memdup2(request->stops, request->n_stops * sizeof *request->stops);
    call->number = ++r->number;
    call->body = remote_ask(r->api, r->model, request);
    call->answer = (Answer){g_byte_array_new(), ANSWER_BYTES_MAX};
    g_ptr_array_add(r->calls, call);
    r->stats.asked++;
}

static void call_begin(Remote *r, Call *call)
{
    call->attempts++;
    call->easy = transfer_new(r, api_paths[r->api], call->body, r->wait_ms, &call->answer);
    curl_easy_setopt(call->easy, CURLOPT_PRIVATE, call);
    g_assert(curl_multi_add_handle(r->multi, call->easy) == CURLM_OK);
    r->in_flight++;
}

/* What an answer adds, or without one that all samples were aborted. `call` is in no list any
 * more: those who are told may submit. */
static void call_tell(Call *call, const GPtrArray *choices)
{
    const EngineRequest *request = &call->request;

    for (guint s = 0; s < MAX(request->n, 1); s++) {
        const RemoteChoice *c = choices ? choices->pdata[s] : NULL;
        EngineToken token = {.request = call->number, .sample = s};

        for (guint i = 0; c && i < c->ids->len; i++) {
            token.position = request->prompt_len + i;
            token.token.id = g_array_index(c->ids, gint32, i);
            token.token.logprob = token.token.logprob_own = g_array_index(c->logprobs, float, i);
            token.finish = i + 1 == c->ids->len ? c->finish : FINISH_NONE;
            request->on_token(&token, request->user);
        }
        if (!c) {
            token.token.id = -1;
            token.finish = FINISH_ABORTED;
            request->on_token(&token, request->user);
        }
    }
}

static void call_end(Remote *r, Call *call, const GPtrArray *choices)
{
    guint at;

    g_assert(g_ptr_array_find(r->calls, call, &at));
    g_ptr_array_steal_index(r->calls, at);
    r->stats.lost += choices == NULL;
    call_tell(call, choices);
    call_free(call);
}

static gint64 pause_us(guint attempts)
{
    return MIN(PAUSE_US_MAX, (gint64)PAUSE_US_FIRST << MIN(attempts - 1, 10));
}

/* The attempt is over and was none: again after a pause, or never. */
static void call_failed(Remote *r, Call *call, gboolean for_good, const char *why)
{
    g_free(r->why);
    r->why = g_strdup(why);
    if (for_good || call->attempts >= r->attempts_max) {
        call_end(r, call, NULL);
        return;
    }
    r->stats.retried++;
    call->not_before_us = g_get_monotonic_time() + pause_us(call->attempts);
}

/* A status that says: this request, whenever. */
static gboolean is_refusal(long status)
{
    return status >= 400 && status < 500 && status != 408 && status != 425 && status != 429;
}

static char *answer_head(const Answer *answer)
{
    g_autofree char *text =
        g_strndup((const char *)answer->bytes->data, MIN(answer->bytes->len, 200));

    return g_strescape(text ? text : "", NULL);
}

static void call_ended(Remote *r, Call *call, CURLcode code)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) choices = NULL;
    long status = 0;

    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_multi_remove_handle(r->multi, call->easy);
    g_clear_pointer(&call->easy, curl_easy_cleanup);
    r->in_flight--;
    if (code != CURLE_OK) {
        r->stale |= r->weights && code != CURLE_OPERATION_TIMEDOUT;
        call_failed(r, call, FALSE, curl_easy_strerror(code));
    } else if (status != 200) {
        g_autofree char *head = answer_head(&call->answer);
        g_autofree char *why = g_strdup_printf("HTTP %ld %s", status, head);

        call_failed(r, call, is_refusal(status), why);
    } else if ((choices =
                    remote_read((const char *)call->answer.bytes->data, call->answer.bytes->len,
                                &call->request, r->vocab, r->version, &error))) {
        call_end(r, call, choices);
    } else {
        r->stale |= g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
        call_failed(r, call, FALSE, error->message);
    }
}

/* Begins what may begin; returns the milliseconds until the next one may, at most `wait_ms`. */
static int begin_all(Remote *r, int wait_ms)
{
    gint64 now = g_get_monotonic_time();

    for (guint i = 0; i < r->calls->len && r->in_flight < r->flight_max; i++) {
        Call *call = r->calls->pdata[i];

        if (call->easy)
            continue;
        if (call->not_before_us <= now)
            call_begin(r, call);
        else
            wait_ms = (int)MIN(wait_ms, (call->not_before_us - now) / 1000 + 1);
    }
    return wait_ms;
}

/* ---- weights ---- */

static gboolean update_once(Remote *r, GError **error)
{
    g_autoptr(json_t) ask = json_pack("{s:s}", "path", r->weights);
    g_autofree char *body = json_print(ask);
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    Answer answer = {bytes, UPDATE_BYTES_MAX};
    CURL *easy = transfer_new(r, "/update_weights", body, UPDATE_WAIT_MS, &answer);
    CURLcode code = curl_easy_perform(easy);
    g_autoptr(json_t) said = NULL;
    long status = 0;

    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_cleanup(easy);
    if (code != CURLE_OK)
        return error_set(error, ASSAY_ERROR_SYSTEM, "new weights: %s", curl_easy_strerror(code));
    if (status != 200) {
        g_autofree char *head = answer_head(&answer);

        return error_set(error, ASSAY_ERROR_SYSTEM, "new weights: HTTP %ld %s", status, head);
    }
    said = json_parse((const char *)bytes->data, bytes->len, NULL);
    r->version = json_integer_value(json_object_get(said, "weight_version"));
    r->stale = FALSE;
    return TRUE;
}

/* Weights that the server may not have are given to it, as often as anything is tried and with the
 * same pauses; `wait_ms` is at most what is left of one. FALSE: given up, for this time. */
static gboolean update_due(Remote *r, int *wait_ms, GError **error)
{
    gint64 now = g_get_monotonic_time();
    g_autoptr(GError) why = NULL;

    if (now < r->update_not_before_us) {
        *wait_ms = (int)MIN(*wait_ms, (r->update_not_before_us - now) / 1000 + 1);
        return TRUE;
    }
    if (update_once(r, &why)) {
        r->update_attempts = 0;
        return TRUE;
    }
    if (++r->update_attempts < r->attempts_max) {
        r->update_not_before_us = now + pause_us(r->update_attempts);
        *wait_ms = MIN(*wait_ms, (int)(pause_us(r->update_attempts) / 1000));
        return TRUE;
    }
    r->update_attempts = 0;
    g_propagate_error(error, g_steal_pointer(&why));
    return FALSE;
}

gboolean remote_update(Remote *r, const char *dir, GError **error)
{
    g_free(r->weights);
    r->weights = g_strdup(dir);
    r->stale = TRUE;
    r->update_not_before_us = 0;
    while (r->stale) {
        int wait_ms = G_MAXINT;

        if (!update_due(r, &wait_ms, error))
            return FALSE;
        if (r->stale)
            poll(NULL, 0, wait_ms);
    }
    return TRUE;
}

/* The server may have forgotten the weights it was given: before it has them nothing is begun. */
static void give_again(Remote *r, int *wait_ms)
{
    g_autoptr(GError) error = NULL;

    if (update_due(r, wait_ms, &error))
        return;
    g_free(r->why);
    r->why = g_strdup(error->message);
    for (guint i = r->calls->len; i > 0; i--) { /* those who are told add to the end */
        Call *call = r->calls->pdata[i - 1];

        if (!call->easy)
            call_end(r, call, NULL);
    }
}

/* ---- steps ---- */

guint remote_step(Remote *r, int wait_ms)
{
    int running = 0, left;
    CURLMsg *message;

    if (r->stale)
        give_again(r, &wait_ms);
    if (!r->stale)
        wait_ms = begin_all(r, wait_ms);
    curl_multi_perform(r->multi, &running);
    if (r->calls->len > 0 && wait_ms > 0) {
        curl_multi_poll(r->multi, NULL, 0, wait_ms, NULL);
        curl_multi_perform(r->multi, &running);
    }
    while ((message = curl_multi_info_read(r->multi, &left))) {
        char *call = NULL;

        if (message->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &call);
        call_ended(r, (Call *)(gpointer)call, message->data.result);
    }
    return r->calls->len;
}

RemoteStats remote_stats(const Remote *r)
{
    RemoteStats stats = r->stats;

    stats.why = r->why;
    return stats;
}
