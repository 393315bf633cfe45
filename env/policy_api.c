/*
 * Endpoints of assay policy serve: what a request may ask, and the verbs of training loops.
 *
 * Invariants:
 *   1. Unknown fields are refused; what is refused names its field. Only /v1/chat/completions'
 *      `user` and the like are taken and not looked at, and are listed as such.
 *   2. Every count and length from outside is compared with its limit before it is used.
 *   3. New weights have the same config as the old ones, or nothing is changed.
 *
 * Not here: sockets and tokens (policy_serve.c), answers (policy_stream.c).
 */
#include "env/policy_serve.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define STOP_IDS_MAX   ENGINE_STOPS_MAX
#define REPETITION     3000 /* tokens in a row that are all but certain */
#define TOKENS_DEFAULT 16   /* of completions, as OpenAI has it; a chat may fill the context */

/* --- replies */

void policy_reply(SoupServerMessage *msg, guint status, json_t *value)
{
    g_autoptr(json_t) owned = value;
    g_autofree char *text = json_print(owned);
    soup_server_message_set_status(msg, status, NULL);
    soup_server_message_set_response(msg, "application/json", SOUP_MEMORY_COPY, text, strlen(text));
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

/* --- fields */

static gboolean want_number(const json_t *body, const char *key, double max, double *ret,
                            GError **error)
{
    const json_t *value = json_object_get(body, key);
    if (value == NULL || json_is_null(value))
        return TRUE;
    *ret = json_number_value(value);
    return (json_is_number(value) && *ret >= 0 && *ret <= max) ||
           error_set(error, ASSAY_ERROR_INPUT, "%s: must be a number in 0 .. %g", key, max);
}

static gboolean want_flag(const json_t *body, const char *key, gboolean *ret, GError **error)
{
    const json_t *value = json_object_get(body, key);
    if (value == NULL || json_is_null(value))
        return TRUE;
    *ret = json_is_true(value);
    return json_is_boolean(value) ||
           error_set(error, ASSAY_ERROR_INPUT, "%s: must be true or false", key);
}

/* Appends a list of token ids; whether the vocabulary has them the engine says. */
static gboolean want_ids(const json_t *list, const char *key, gsize max, GArray *ids,
                         GError **error)
{
    if (!json_is_array(list) || json_array_size(list) > max)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "%s: must be a list of at most %" G_GSIZE_FORMAT " token ids", key, max);
    for (gsize i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t value = json_integer_value(item);
        gint32 id = (gint32)value;
        if (!json_is_integer(item) || value < 0 || value > G_MAXINT32)
            return error_set(error, ASSAY_ERROR_INPUT,
                             "%s: the item at %" G_GSIZE_FORMAT " is no token id", key, i);
        g_array_append_val(ids, id);
    }
    return TRUE;
}

static gboolean add_stop(GPtrArray *stops, const json_t *value, GError **error)
{
    gsize len = json_string_length(value);
    if (!json_is_string(value) || len == 0 || len > POLICY_STOP_BYTES_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "stop: a stop string has 1 to %u bytes",
                         POLICY_STOP_BYTES_MAX);
    g_ptr_array_add(stops, g_strdup(json_string_value(value)));
    return TRUE;
}

static gboolean want_stops(const json_t *body, GPtrArray *stops, GError **error)
{
    const json_t *value = json_object_get(body, "stop");
    if (value == NULL || json_is_null(value))
        return TRUE;
    if (!json_is_array(value))
        return add_stop(stops, value, error);
    if (json_array_size(value) > POLICY_STOPS_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "stop: %zu strings, at most %u",
                         json_array_size(value), POLICY_STOPS_MAX);
    for (gsize i = 0; i < json_array_size(value); i++)
        if (!add_stop(stops, json_array_get(value, i), error))
            return FALSE;
    return TRUE;
}

/* Stop tokens: those that are asked for, and the end of a turn unless ignore_eos. */
static gboolean want_stop_ids(const PolicyServer *server, const json_t *body, EngineRequest *r,
                              GError **error)
{
    const json_t *list = json_object_get(body, "stop_token_ids");
    gint32 eos = tokenizer_special(server->runtime.tokenizer, TOKEN_EOS);
    gboolean ignore = FALSE;
    g_autoptr(GArray) ids = tokens_new();
    if (!want_flag(body, "ignore_eos", &ignore, error) ||
        (list != NULL && !json_is_null(list) &&
         !want_ids(list, "stop_token_ids", STOP_IDS_MAX - 1, ids, error)))
        return FALSE;
    if (!ignore && eos >= 0)
        g_array_append_val(ids, eos);
    r->n_stops = ids->len;
    r->stops = g_memdup2(ids->data, ids->len * sizeof(gint32));
    return TRUE;
}

static gboolean want_stream(const json_t *body, PolicyAsk *ask, GError **error)
{
    static const char *const keys[] = {"include_usage", NULL};
    const json_t *options = json_object_get(body, "stream_options");
    if (!want_flag(body, "stream", &ask->stream, error))
        return FALSE;
    if (options == NULL || json_is_null(options))
        return TRUE;
    if (!json_is_object(options) || !ask->stream)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "stream_options: an object, and only with stream");
    return json_only_keys(options, keys, error) &&
           want_flag(options, "include_usage", &ask->usage, error);
}

/* A chat says logprobs: true and top_logprobs: k, completions say logprobs: k. */
static gboolean want_logprobs(const json_t *body, PolicyAsk *ask, GError **error)
{
    GError *local = NULL;
    gint64 top = 0, columns = -1;
    const char *source = json_opt_str(body, "logprob_source", "sampler", &local);
    if (source == NULL) {
        g_propagate_error(error, local);
        return FALSE;
    }
    if (strcmp(source, "raw") != 0 && strcmp(source, "sampler") != 0)
        return error_set(error, ASSAY_ERROR_INPUT, "logprob_source: sampler or raw");
    ask->raw = strcmp(source, "raw") == 0;
    if (ask->shape == SHAPE_COMPLETION) {
        if (json_object_get(body, "top_logprobs") != NULL)
            return error_set(error, ASSAY_ERROR_INPUT, "top_logprobs: here logprobs is a number");
        if (!json_opt_int(body, "logprobs", 0, POLICY_TOP_MAX, -1, &columns, error))
            return FALSE;
        ask->logprobs = columns >= 0;
        ask->top = (guint)MAX(columns, 0);
        return TRUE;
    }
    if (!want_flag(body, "logprobs", &ask->logprobs, error) ||
        !json_opt_int(body, "top_logprobs", 0, POLICY_TOP_MAX, 0, &top, error))
        return FALSE;
    ask->top = (guint)top;
    return top == 0 || ask->logprobs ||
           error_set(error, ASSAY_ERROR_INPUT, "top_logprobs: only with logprobs");
}

/* What all shapes share. `tokens` is what max_tokens is when not said; 0: what the context has. */
static gboolean want_sampling(PolicyServer *server, const json_t *body, PolicyAsk *ask,
                              gint64 tokens, GError **error)
{
    EngineRequest *r = &ask->engine;
    gint64 n, most = G_MAXINT32, seed, top_k;
    r->params = (SampleParams){.temperature = 1, .top_p = 1};
    r->repetition = REPETITION;
    if (!want_number(body, "temperature", 100, &r->params.temperature, error) ||
        !want_number(body, "top_p", 1, &r->params.top_p, error) ||
        !want_number(body, "min_p", 1, &r->params.min_p, error) ||
        !json_opt_int(body, "top_k", -1, G_MAXINT32, 0, &top_k, error) ||
        !json_opt_int(body, "n", 1, POLICY_CHOICES_MAX, 1, &n, error) ||
        !json_opt_int(body, "seed", G_MININT64, G_MAXINT64, g_random_int(), &seed, error) ||
        !json_opt_int(body, "min_tokens", 0, most, 0, &r->tokens_min, error) ||
        !json_opt_int(body, "max_tokens", 1, most, tokens, &r->tokens_max, error) ||
        !json_opt_int(body, "max_completion_tokens", 1, most, r->tokens_max, &r->tokens_max,
                      error) ||
        !want_flag(body, "return_token_ids", &ask->ids, error) ||
        !want_stops(body, ask->stops, error) || !want_stop_ids(server, body, r, error) ||
        !want_logprobs(body, ask, error))
        return FALSE;
    r->params.top_k = (guint32)MAX(top_k, 0);
    r->params.seed = (guint64)seed;
    r->n = (guint)n;
    return TRUE;
}

static gboolean add_text(PolicyServer *server, const json_t *text, PolicyAsk *ask, GError **error)
{
    GArray *ids = tokens_new();
    g_ptr_array_add(ask->prompts, ids);
    return tokenizer_encode(server->runtime.tokenizer, json_string_value(text),
                            json_string_length(text), TOKENS_PLAIN, ids, error);
}

static gboolean add_ids(const json_t *list, const char *key, PolicyAsk *ask, GError **error)
{
    GArray *ids = tokens_new();
    g_ptr_array_add(ask->prompts, ids);
    return want_ids(list, key, G_MAXINT32, ids, error);
}

/* A text, ids, or a list of either. */
static gboolean want_prompt(PolicyServer *server, const json_t *body, PolicyAsk *ask,
                            GError **error)
{
    const json_t *prompt = json_object_get(body, "prompt");
    const json_t *first = json_array_get(prompt, 0);
    gsize n = json_array_size(prompt);
    if (json_is_string(prompt))
        return add_text(server, prompt, ask, error);
    if (json_is_integer(first))
        return add_ids(prompt, "prompt", ask, error);
    if (n == 0 || n > POLICY_PROMPTS_MAX)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "prompt: a text, token ids, or a list of 1 to %u of them",
                         POLICY_PROMPTS_MAX);
    for (gsize i = 0; i < n; i++) {
        const json_t *item = json_array_get(prompt, i);
        if (!(json_is_string(item) ? add_text(server, item, ask, error)
                                   : add_ids(item, "prompt", ask, error)))
            return FALSE;
    }
    return TRUE;
}

/* --- generation */

/* Takes the ask. */
static void start(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask)
{
    g_autoptr(PolicyAsk) owned = ask;
    EngineRequest *r = &ask->engine;
    guint64 choices = (guint64)r->n * ask->prompts->len;
    GError *error = NULL;
    if (server->pause != PAUSE_NONE) {
        policy_refuse(msg, 503, "policy_paused", "sampling is paused");
        return;
    }
    if (choices > POLICY_CHOICES_MAX) {
        policy_refuse(msg, 400, "field_invalid", "n: %u samples of %u prompts, at most %u together",
                      r->n, ask->prompts->len, POLICY_CHOICES_MAX);
        return;
    }
    if (server->n_choices + choices > POLICY_CHOICES_MAX) {
        policy_refuse(msg, 503, "queue_full", "%u samples are open, of at most %u",
                      server->n_choices, POLICY_CHOICES_MAX);
        return;
    }
    if (r->tokens_max == 0)
        r->tokens_max =
            MAX(1, server->runtime.context - (gint64)((GArray *)ask->prompts->pdata[0])->len);
    if (!policy_call_start(server, msg, g_steal_pointer(&owned), &error))
        policy_refuse_error(msg, error);
}

static gboolean model_known(PolicyServer *server, SoupServerMessage *msg, const json_t *body)
{
    const json_t *model = json_object_get(body, "model");
    if (model == NULL || g_strcmp0(json_string_value(model), server->name) == 0)
        return TRUE;
    policy_refuse(msg, 404, "model_not_found", "model: this server has %s only", server->name);
    return FALSE;
}

/* clang-format off */
#define SAMPLING_KEYS \
    "model", "temperature", "top_p", "min_p", "top_k", "n", "seed", "min_tokens", "max_tokens", \
    "max_completion_tokens", "return_token_ids", "stop", "stop_token_ids", "ignore_eos", \
    "logprobs", "top_logprobs", "logprob_source", "stream", "stream_options", \
    /* not looked at */ "user", "session_id", "metadata", "store"
/* clang-format on */

static void api_completions(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                            GHashTable *query)
{
    (void)query;
    static const char *const keys[] = {SAMPLING_KEYS, "prompt", NULL};
    g_autoptr(PolicyAsk) ask = policy_ask_new();
    GError *error = NULL;
    if (!model_known(server, msg, body))
        return;
    if (!json_only_keys(body, keys, &error) ||
        !want_sampling(server, body, ask, TOKENS_DEFAULT, &error) ||
        !want_stream(body, ask, &error) || !want_prompt(server, body, ask, &error))
        policy_refuse_error(msg, error);
    else
        start(server, msg, g_steal_pointer(&ask));
}

/* The tools that the model is shown: all, or with tool_choice "none" none. */
static gboolean want_tools(const json_t *body, const json_t **ret_tools, GError **error)
{
    GError *local = NULL;
    const char *choice = json_opt_str(body, "tool_choice", "auto", &local);
    if (choice == NULL || (strcmp(choice, "auto") != 0 && strcmp(choice, "none") != 0)) {
        g_clear_error(&local);
        return error_set(error, ASSAY_ERROR_INPUT, "tool_choice: auto or none");
    }
    *ret_tools = strcmp(choice, "auto") == 0 ? json_object_get(body, "tools") : NULL;
    return TRUE;
}

static gboolean encode_messages(PolicyServer *server, const json_t *body, GArray *ids,
                                GError **error)
{
    gboolean generate = TRUE, go_on = FALSE;
    const json_t *tools = NULL;
    if (!want_flag(body, "add_generation_prompt", &generate, error) ||
        !want_flag(body, "continue_final_message", &go_on, error) ||
        !want_tools(body, &tools, error))
        return FALSE;
    guint flags = go_on ? CHAT_CONTINUE : generate ? CHAT_GENERATE : 0;
    return chat_encode(&server->runtime.style, server->runtime.tokenizer,
                       json_object_get(body, "messages"), tools, flags, ids, error);
}

static void api_chat(PolicyServer *server, SoupServerMessage *msg, json_t *body, GHashTable *query)
{
    (void)query;
    static const char *const keys[] = {SAMPLING_KEYS,
                                       "messages",
                                       "tools",
                                       "tool_choice",
                                       "add_generation_prompt",
                                       "continue_final_message",
                                       NULL};
    g_autoptr(PolicyAsk) ask = policy_ask_new();
    GError *error = NULL;
    GArray *ids = tokens_new();
    ask->shape = SHAPE_CHAT;
    g_ptr_array_add(ask->prompts, ids);
    if (!model_known(server, msg, body))
        return;
    if (!json_only_keys(body, keys, &error) || !want_sampling(server, body, ask, 0, &error) ||
        !want_stream(body, ask, &error) || !encode_messages(server, body, ids, &error))
        policy_refuse_error(msg, error);
    else
        start(server, msg, g_steal_pointer(&ask));
}

static void api_generate(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                         GHashTable *query)
{
    (void)query;
    static const char *const keys[] = {"token_ids",      "sampling_params", "stream",
                                       "stream_options", "model",           NULL};
    static const char *const params[] = {SAMPLING_KEYS, NULL};
    g_autoptr(PolicyAsk) ask = policy_ask_new();
    g_autoptr(json_t) none = json_object();
    const json_t *sampling = json_object_get(body, "sampling_params");
    GError *error = NULL;
    sampling = sampling != NULL ? sampling : none;
    ask->shape = SHAPE_GENERATE;
    if (!model_known(server, msg, body))
        return;
    if (!json_is_object(sampling))
        error_set(&error, ASSAY_ERROR_INPUT, "sampling_params: must be an object");
    if (error != NULL || !json_only_keys(body, keys, &error) ||
        !json_only_keys(sampling, params, &error) ||
        !want_sampling(server, sampling, ask, TOKENS_DEFAULT, &error) ||
        !want_stream(body, ask, &error) ||
        !add_ids(json_object_get(body, "token_ids"), "token_ids", ask, &error)) {
        policy_refuse_error(msg, error);
        return;
    }
    ask->ids = TRUE;
    start(server, msg, g_steal_pointer(&ask));
}

/* --- tokens */

static void api_tokenize(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                         GHashTable *query)
{
    (void)query;
    static const char *const keys[] = {"model",
                                       "prompt",
                                       "messages",
                                       "tools",
                                       "tool_choice",
                                       "add_generation_prompt",
                                       "continue_final_message",
                                       NULL};
    g_autoptr(GArray) ids = tokens_new();
    const json_t *prompt = json_object_get(body, "prompt");
    GError *error = NULL;
    if ((prompt == NULL) == (json_object_get(body, "messages") == NULL) ||
        (prompt != NULL && !json_is_string(prompt)))
        error_set(&error, ASSAY_ERROR_INPUT, "prompt: a text, or messages instead");
    if (error != NULL || !json_only_keys(body, keys, &error) ||
        !(prompt != NULL ? tokenizer_encode(server->runtime.tokenizer, json_string_value(prompt),
                                            json_string_length(prompt), TOKENS_PLAIN, ids, &error)
                         : encode_messages(server, body, ids, &error))) {
        policy_refuse_error(msg, error);
        return;
    }
    json_t *list = json_array();
    for (guint i = 0; i < ids->len; i++)
        json_array_append_new(list, json_integer(g_array_index(ids, gint32, i)));
    policy_reply(msg, 200,
                 json_pack("{s:o, s:i, s:I}", "tokens", list, "count", (int)ids->len,
                           "max_model_len", (json_int_t)server->runtime.context));
}

static void api_detokenize(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                           GHashTable *query)
{
    (void)query;
    static const char *const keys[] = {"model", "tokens", NULL};
    g_autoptr(GArray) ids = tokens_new();
    g_autoptr(GString) text = g_string_new(NULL);
    Detokenizer detokenizer = {.tokenizer = server->runtime.tokenizer, .flags = TOKENS_SPECIALS};
    GError *error = NULL;
    gboolean good = json_only_keys(body, keys, &error) &&
                    want_ids(json_object_get(body, "tokens"), "tokens", G_MAXINT32, ids, &error);
    for (guint i = 0; good && i < ids->len; i++)
        good = detokenizer_add(&detokenizer, g_array_index(ids, gint32, i), text) ||
               error_set(&error, ASSAY_ERROR_INPUT, "tokens: %d at %u is no token",
                         g_array_index(ids, gint32, i), i);
    if (!good) {
        policy_refuse_error(msg, error);
        return;
    }
    detokenizer_end(&detokenizer, text);
    policy_reply(msg, 200, json_pack("{s:o}", "prompt", json_stringn(text->str, text->len)));
}

/* --- the server itself */

static void api_models(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                       GHashTable *query)
{
    (void)body, (void)query;
    policy_reply(msg, 200,
                 json_pack("{s:s, s:[{s:s, s:s, s:I, s:s, s:I, s:I}]}", "object", "list", "data",
                           "id", server->name, "object", "model", "created",
                           (json_int_t)server->created_s, "owned_by", "assay", "max_model_len",
                           (json_int_t)server->runtime.context, "weight_version",
                           (json_int_t)server->runtime.model->version));
}

static void api_health(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                       GHashTable *query)
{
    (void)server, (void)body, (void)query;
    policy_reply(msg, 200, json_pack("{s:s}", "status", "ok"));
}

static void api_metrics(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                        GHashTable *query)
{
    (void)body, (void)query;
    EngineStats stats;
    g_autoptr(GString) text = g_string_new(NULL);
    engine_stats(server->runtime.engine, &stats);
    const struct {
        const char *name;
        double value;
    } rows[] = {
        {"assay_policy_tokens_total{kind=\"prompt\"}", (double)stats.prompt_tokens},
        {"assay_policy_tokens_total{kind=\"completion\"}", (double)stats.tokens},
        {"assay_policy_requests{state=\"running\"}", stats.running},
        {"assay_policy_requests{state=\"waiting\"}", stats.waiting},
        {"assay_policy_kv_used_ratio", (double)stats.cache_bytes / (double)stats.cache_max},
        {"assay_policy_weight_version", (double)server->runtime.model->version},
        {"assay_policy_steps_total", (double)stats.steps},
        {"assay_policy_prefix_tokens_total", (double)stats.prefix_tokens},
        {"assay_policy_dropped_total", (double)server->n_dropped},
        {"assay_policy_http_requests_total", (double)server->n_requests},
        {"assay_policy_connections", server->n_connections},
        {"vllm:num_requests_running", stats.running},
        {"vllm:num_requests_waiting", stats.waiting},
        {"vllm:generation_tokens_total", (double)stats.tokens},
        {"vllm:kv_cache_usage_perc", (double)stats.cache_bytes / (double)stats.cache_max},
    };
    for (guint i = 0; i < G_N_ELEMENTS(rows); i++)
        g_string_append_printf(text, "%s %.17g\n", rows[i].name, rows[i].value);
    soup_server_message_set_status(msg, 200, NULL);
    soup_server_message_set_response(msg, "text/plain; version=0.0.4", SOUP_MEMORY_COPY, text->str,
                                     text->len);
}

static void abort_all(PolicyServer *server)
{
    for (guint i = 0; i < server->calls->len; i++)
        policy_call_abort(server->calls->pdata[i]);
}

static void api_pause(PolicyServer *server, SoupServerMessage *msg, json_t *body, GHashTable *query)
{
    (void)body;
    static const struct {
        const char *name;
        PauseMode mode;
    } modes[] = {{"abort", PAUSE_ABORT}, {"wait", PAUSE_WAIT}, {"keep", PAUSE_KEEP}};
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
        policy_server_work(server);
        soup_server_message_pause(msg);
        g_ptr_array_add(server->paused, g_object_ref(msg));
        return;
    }
    policy_reply(msg, 200, json_pack("{s:b}", "is_paused", 1));
}

static void api_resume(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                       GHashTable *query)
{
    (void)body, (void)query;
    server->pause = PAUSE_NONE;
    policy_server_work(server);
    policy_reply(msg, 200, json_pack("{s:b}", "is_paused", 0));
}

static void api_is_paused(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                          GHashTable *query)
{
    (void)body, (void)query;
    policy_reply(msg, 200, json_pack("{s:b}", "is_paused", server->pause != PAUSE_NONE));
}

static void api_abort(PolicyServer *server, SoupServerMessage *msg, json_t *body, GHashTable *query)
{
    (void)body, (void)query;
    guint n = server->calls->len;
    abort_all(server);
    policy_reply(msg, 200, json_pack("{s:i}", "aborted", (int)n));
}

/* Reads all of the new weights before the first of the old ones is touched. */
static gboolean take_weights(PolicyServer *server, const char *path, gboolean recompute,
                             GError **error)
{
    Model *model = server->runtime.model;
    g_autoptr(Weights) weights = weights_load(path, TENSOR_F32, error);
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
    engine_weights_changed(server->runtime.engine, recompute);
    return TRUE;
}

static void api_update(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                       GHashTable *query)
{
    (void)query;
    static const char *const keys[] = {"kind", "path", "recompute", NULL};
    GError *error = NULL;
    gboolean recompute = FALSE;
    const char *path = NULL;
    const char *kind = json_opt_str(body, "kind", "checkpoint", &error);
    if (kind != NULL && strcmp(kind, "checkpoint") != 0)
        error_set(&error, ASSAY_ERROR_INPUT, "kind: checkpoint");
    if (error == NULL)
        path = json_want_str(body, "path", &error);
    if (path == NULL || !json_only_keys(body, keys, &error) ||
        !want_flag(body, "recompute", &recompute, &error) ||
        !take_weights(server, path, recompute, &error)) {
        policy_refuse_error(msg, error);
        return;
    }
    policy_reply(msg, 200,
                 json_pack("{s:I}", "weight_version", (json_int_t)server->runtime.model->version));
}

static void api_weight_info(PolicyServer *server, SoupServerMessage *msg, json_t *body,
                            GHashTable *query)
{
    (void)body, (void)query;
    policy_reply(msg, 200,
                 json_pack("{s:I, s:s}", "weight_version",
                           (json_int_t)server->runtime.model->version, "sha256",
                           model_digest(server->runtime.model)));
}

const PolicyRoute policy_routes[] = {
    {"GET", "/healthz", api_health},
    {"GET", "/metrics", api_metrics},
    {"GET", "/v1/models", api_models},
    {"POST", "/v1/completions", api_completions},
    {"POST", "/v1/chat/completions", api_chat},
    {"POST", "/inference/v1/generate", api_generate},
    {"POST", "/tokenize", api_tokenize},
    {"POST", "/detokenize", api_detokenize},
    {"POST", "/pause", api_pause},
    {"POST", "/resume", api_resume},
    {"GET", "/is_paused", api_is_paused},
    {"POST", "/abort_requests", api_abort},
    {"POST", "/update_weights", api_update},
    {"GET", "/weight_info", api_weight_info},
    {NULL, NULL, NULL},
};
