/*
 * Endpoints of assay policy serve: samples, tokens, and the verbs of training loops.
 *
 * Invariants:
 *   1. A message is answered exactly once; one whose client has left is let go.
 *   2. What concerns the engine is a job for its thread, and answered when that is done.
 *   3. New weights have the same config as the old ones, or nothing is changed.
 *
 * Not here: bodies (policy_serve.c) and their fields (policy_ask.c), calls (policy_call.c).
 */
#include "env/policy_serve.h"

#include "base/error.h"
#include "env/policy_call.h"

#include <string.h>

/* --- replies */

void policy_reply_text(SoupServerMessage *msg, guint status, const char *mime, char *text,
                       gsize len)
{
    if (g_object_get_data(G_OBJECT(msg), "assay-gone") != NULL) {
        g_free(text);
        return;
    }
    soup_server_message_set_status(msg, status, NULL);
    soup_server_message_set_response(msg, mime, SOUP_MEMORY_TAKE, text, len);
    soup_server_message_unpause(msg);
}

void policy_reply(SoupServerMessage *msg, guint status, json_t *value)
{
    g_autoptr(json_t) owned = value;
    char *text = json_print(owned);
    policy_reply_text(msg, status, "application/json", text, strlen(text));
}

void policy_refuse(SoupServerMessage *msg, guint status, const char *code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    const char *message = g_str_has_prefix(valid, "field ") ? valid + strlen("field ") : valid;
    gsize len = strspn(message, "abcdefghijklmnopqrstuvwxyz_0123456789.[]");
    json_t *param =
        status == 400 && len > 0 && message[len] == ':' ? json_stringn(message, len) : json_null();
    if (status == 503)
        soup_message_headers_replace(soup_server_message_get_response_headers(msg), "Retry-After",
                                     "1");
    policy_reply(msg, status,
                 json_pack("{s:{s:s, s:s, s:o, s:s}}", "error", "message", valid, "type",
                           status < 500 ? "invalid_request_error" : "server_error", "param", param,
                           "code", code));
}

void policy_refuse_error(SoupServerMessage *msg, GError *error)
{
    g_autoptr(GError) owned = error;
    gboolean ours = owned->domain != ASSAY_ERROR || owned->code == ASSAY_ERROR_SYSTEM;
    if (owned->domain == ASSAY_ERROR && owned->code == ASSAY_ERROR_NOT_FOUND)
        policy_refuse(msg, 404, "not_found", "%s", owned->message);
    else
        policy_refuse(msg, ours ? 500 : 400, ours ? "internal" : "field_invalid", "%s",
                      owned->message);
}

/* --- samples and tokens */

static void api_sample(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                       GHashTable *query, gint64 arrived_us)
{
    (void)query;
    g_autoptr(PolicyAsk) owned = ask;
    if (g_object_get_data(G_OBJECT(msg), "assay-gone") != NULL)
        return;
    if (server->pause != PAUSE_NONE)
        policy_refuse(msg, 503, "policy_paused", "sampling is paused");
    else if (server->n_choices + policy_ask_choices(ask) > POLICY_CHOICES_MAX)
        policy_refuse(msg, 503, "queue_full", "%u samples are open, of at most %u",
                      server->n_choices, POLICY_CHOICES_MAX);
    else
        policy_call_start(server, msg, g_steal_pointer(&owned), arrived_us);
}

static void api_tokens(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                       GHashTable *query, gint64 arrived_us)
{
    (void)server, (void)query, (void)arrived_us;
    g_autoptr(PolicyAsk) owned = ask;
    gsize len = strlen(ask->reply);
    policy_reply_text(msg, 200, "application/json", g_steal_pointer(&owned->reply), len);
}

/* --- the server itself */

static json_t *model_json(PolicyServer *server)
{
    EngineStats stats;
    guint64 version;
    policy_thread_stats(server->thread, &stats, &version);
    return json_pack("{s:s, s:s, s:I, s:s, s:I, s:I}", "id", server->name, "object", "model",
                     "created", (json_int_t)server->created_s, "owned_by", "assay", "max_model_len",
                     (json_int_t)server->runtime.context, "weight_version", (json_int_t)version);
}

static void api_models(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                       GHashTable *query, gint64 arrived_us)
{
    (void)ask, (void)query, (void)arrived_us;
    policy_reply(msg, 200, json_pack("{s:s, s:[o]}", "object", "list", "data", model_json(server)));
}

static void api_model(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                      GHashTable *query, gint64 arrived_us)
{
    (void)ask, (void)query, (void)arrived_us;
    const char *path = g_uri_get_path(soup_server_message_get_uri(msg));
    if (strcmp(path + strlen("/v1/models/"), server->name) == 0) /* libsoup decodes paths */
        policy_reply(msg, 200, model_json(server));
    else
        policy_refuse(msg, 404, "model_not_found", "this server has %s only", server->name);
}

static void api_health(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                       GHashTable *query, gint64 arrived_us)
{
    (void)server, (void)ask, (void)query, (void)arrived_us;
    policy_reply(msg, 200, json_pack("{s:s}", "status", "ok"));
}

static void api_metrics(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                        GHashTable *query, gint64 arrived_us)
{
    (void)ask, (void)query, (void)arrived_us;
    EngineStats stats;
    guint64 version;
    GString *text = g_string_new(NULL);
    policy_thread_stats(server->thread, &stats, &version);
    const struct {
        const char *name;
        double value;
    } rows[] = {
        {"assay_policy_tokens_total{kind=\"prompt\"}", (double)stats.prompt_tokens},
        {"assay_policy_tokens_total{kind=\"completion\"}", (double)stats.tokens},
        {"assay_policy_requests{state=\"running\"}", stats.running},
        {"assay_policy_requests{state=\"waiting\"}", stats.waiting},
        {"assay_policy_kv_used_ratio", (double)stats.cache_bytes / (double)stats.cache_max},
        {"assay_policy_weight_version", (double)version},
        {"assay_policy_steps_total", (double)stats.steps},
        {"assay_policy_rows_total", (double)stats.rows},
        {"assay_policy_prefix_tokens_total", (double)stats.prefix_tokens},
        {"assay_policy_preempted_total", (double)stats.preempted},
        {"assay_policy_dropped_total", (double)server->n_dropped},
        {"assay_policy_http_requests_total", (double)server->n_requests},
        {"assay_policy_connections", listener_n_connections(server->listener)},
        {"assay_policy_body_bytes", (double)server->body_bytes},
        {"vllm:num_requests_running", stats.running},
        {"vllm:num_requests_waiting", stats.waiting},
        {"vllm:generation_tokens_total", (double)stats.tokens},
        {"vllm:prompt_tokens_total", (double)stats.prompt_tokens},
        {"vllm:kv_cache_usage_perc", (double)stats.cache_bytes / (double)stats.cache_max},
    };
    for (guint i = 0; i < G_N_ELEMENTS(rows); i++)
        g_string_append_printf(text, "%s %.17g\n", rows[i].name, rows[i].value);
    policy_metrics_print(&server->metrics, text);
    gsize len = text->len;
    policy_reply_text(msg, 200, "text/plain; version=0.0.4", g_string_free(text, FALSE), len);
}

/* --- verbs: what the engine's thread does, and the answer when it has */

typedef struct Verb {
    PolicyServer *server;
    SoupServerMessage *msg;
    PolicyAsk *ask;
    gboolean freeze;
    char *digest;
    guint64 version;
    GError *error;
} Verb;

static void verb_post(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask, gboolean freeze,
                      PolicyJob job)
{
    Verb *verb = g_new0(Verb, 1);
    verb->server = server;
    verb->msg = g_object_ref(msg);
    verb->ask = ask;
    verb->freeze = freeze;
    server->n_working++;
    policy_thread_post(server->thread, job, verb);
}

/* Takes `value`; NULL: the verb's error is the answer. */
static gboolean verb_end(Verb *verb, json_t *value)
{
    if (value != NULL)
        policy_reply(verb->msg, 200, value);
    else
        policy_refuse_error(verb->msg, verb->error);
    verb->server->n_working--;
    g_object_unref(verb->msg);
    policy_ask_free(verb->ask);
    g_free(verb->digest);
    g_free(verb);
    return G_SOURCE_REMOVE;
}

static gboolean frozen(gpointer data)
{
    Verb *verb = data;
    return verb_end(verb, json_pack("{s:b}", "is_paused", verb->server->pause != PAUSE_NONE));
}

static void job_freeze(PolicyThread *thread, gpointer data)
{
    policy_thread_freeze(thread, ((Verb *)data)->freeze);
    policy_thread_reply(thread, frozen, data);
}

static void abort_all(PolicyServer *server)
{
    for (guint i = 0; i < server->calls->len; i++)
        policy_call_abort(server->calls->pdata[i]);
}

void policy_server_rests(PolicyServer *server)
{
    for (guint i = 0; server->calls->len == 0 && i < server->paused->len; i++)
        policy_reply(server->paused->pdata[i], 200, json_pack("{s:b}", "is_paused", 1));
    if (server->calls->len == 0)
        g_ptr_array_set_size(server->paused, 0);
}

static void api_pause(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                      GHashTable *query, gint64 arrived_us)
{
    (void)arrived_us;
    static const struct {
        const char *name;
        PauseMode mode;
    } modes[] = {{"abort", PAUSE_ABORT}, {"wait", PAUSE_WAIT}, {"keep", PAUSE_KEEP}};
    g_autoptr(PolicyAsk) owned = ask;
    const char *given = query != NULL ? g_hash_table_lookup(query, "mode") : NULL;
    const char *mode = given != NULL ? given : "abort";
    PauseMode wanted = PAUSE_NONE;
    for (guint i = 0; i < G_N_ELEMENTS(modes); i++)
        if (strcmp(mode, modes[i].name) == 0)
            wanted = modes[i].mode;
    if (wanted == PAUSE_NONE) {
        policy_refuse(msg, 400, "field_invalid", "mode: abort, wait or keep, not %s", mode);
        return;
    }
    server->pause = wanted;
    if (wanted == PAUSE_ABORT)
        abort_all(server);
    if (wanted == PAUSE_WAIT && server->calls->len > 0) {
        g_ptr_array_add(server->paused, g_object_ref(msg));
        return;
    }
    verb_post(server, msg, g_steal_pointer(&owned), wanted == PAUSE_KEEP, job_freeze);
}

static void api_resume(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                       GHashTable *query, gint64 arrived_us)
{
    (void)query, (void)arrived_us;
    server->pause = PAUSE_NONE;
    verb_post(server, msg, ask, FALSE, job_freeze);
}

static void api_is_paused(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                          GHashTable *query, gint64 arrived_us)
{
    (void)ask, (void)query, (void)arrived_us;
    policy_reply(msg, 200, json_pack("{s:b}", "is_paused", server->pause != PAUSE_NONE));
}

static void api_abort(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                      GHashTable *query, gint64 arrived_us)
{
    (void)query, (void)arrived_us;
    g_autoptr(PolicyAsk) owned = ask;
    guint n = server->calls->len;
    abort_all(server);
    policy_reply(msg, 200, json_pack("{s:i}", "aborted", (int)n));
}

/* --- weights */

/* Reads all of the new weights before the first of the old ones is touched. */
static gboolean take_weights(Engine *engine, Model *model, const PolicyAsk *ask, GError **error)
{
    g_autoptr(Weights) weights = weights_load(ask->path, TENSOR_F32, error);
    if (weights == NULL)
        return FALSE;
    g_autoptr(json_t) new = model_config_json(weights_config(weights));
    g_autoptr(json_t) old = model_config_json(&model->config);
    if (!json_equal(new, old))
        return error_set(error, ASSAY_ERROR_INPUT, "path: the model there has another config");
    for (guint i = 0; i < tensors_count(&model->config); i++) {
        TensorInfo tensor = tensors_info(&model->config, i);
        model_set(model, &tensor, weights_at(weights, i));
    }
    engine_weights_changed(engine, ask->recompute);
    return TRUE;
}

static gboolean updated(gpointer data)
{
    Verb *verb = data;
    return verb_end(verb, verb->error != NULL
                              ? NULL
                              : json_pack("{s:I}", "weight_version", (json_int_t)verb->version));
}

static void job_update(PolicyThread *thread, gpointer data)
{
    Verb *verb = data;
    Model *model = verb->server->runtime.model;
    if (take_weights(policy_thread_engine(thread), model, verb->ask, &verb->error))
        verb->version = model->version;
    policy_thread_reply(thread, updated, verb);
}

static void api_update(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                       GHashTable *query, gint64 arrived_us)
{
    (void)query, (void)arrived_us;
    verb_post(server, msg, ask, FALSE, job_update);
}

static gboolean digested(gpointer data)
{
    Verb *verb = data;
    return verb_end(verb, json_pack("{s:I, s:s}", "weight_version", (json_int_t)verb->version,
                                    "sha256", verb->digest));
}

static void job_digest(PolicyThread *thread, gpointer data)
{
    Verb *verb = data;
    verb->digest = g_strdup(model_digest(verb->server->runtime.model));
    verb->version = verb->server->runtime.model->version;
    policy_thread_reply(thread, digested, verb);
}

static void api_weight_info(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                            GHashTable *query, gint64 arrived_us)
{
    (void)ask, (void)query, (void)arrived_us;
    verb_post(server, msg, NULL, FALSE, job_digest);
}

const PolicyRoute policy_routes[] = {
    {"GET", "/healthz", SHAPE_NONE, api_health},
    {"GET", "/metrics", SHAPE_NONE, api_metrics},
    {"GET", "/v1/models", SHAPE_NONE, api_models},
    {"GET", "/v1/models/*", SHAPE_NONE, api_model},
    {"POST", "/v1/completions", SHAPE_COMPLETION, api_sample},
    {"POST", "/v1/chat/completions", SHAPE_CHAT, api_sample},
    {"POST", "/inference/v1/generate", SHAPE_GENERATE, api_sample},
    {"POST", "/tokenize", SHAPE_TOKENIZE, api_tokens},
    {"POST", "/detokenize", SHAPE_DETOKENIZE, api_tokens},
    {"POST", "/pause", SHAPE_NONE, api_pause},
    {"POST", "/resume", SHAPE_NONE, api_resume},
    {"GET", "/is_paused", SHAPE_NONE, api_is_paused},
    {"POST", "/abort_requests", SHAPE_NONE, api_abort},
    {"POST", "/update_weights", SHAPE_UPDATE, api_update},
    {"GET", "/weight_info", SHAPE_NONE, api_weight_info},
    {NULL, NULL, SHAPE_NONE, NULL},
};
