/*
 * Fields of requests, one function for each family of them.
 *
 * Invariants:
 *   1. Unknown fields are refused; what is refused names its field. `user` and the like are taken
 *      and not looked at, and are listed as such.
 *   2. Every count and length from outside is compared with its limit before it is used.
 *   3. Nothing is shared but the runtime's model, tokenizer and style, which nobody changes.
 *
 * Not here: ids outside the vocabulary, more context or memory than there is (engine.h).
 */
#include "env/policy_ask.h"

#include "base/error.h"
#include "base/json.h"

#include <string.h>

#define STOP_IDS_MAX   ENGINE_STOPS_MAX
#define TOKENS_DEFAULT 16 /* of completions, as OpenAI has it; a chat may fill the context */

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

/* A string or a list of them. */
static gboolean want_stops(const json_t *body, PolicyAsk *ask, GError **error)
{
    const json_t *value = json_object_get(body, "stop");
    const char *texts[STOP_STRINGS_MAX + 1];
    gsize n = json_is_array(value) ? json_array_size(value) : json_is_string(value) ? 1 : 0;
    if (value != NULL && !json_is_null(value) && !json_is_array(value) && n == 0)
        return error_set(error, ASSAY_ERROR_INPUT, "stop: must be a string or a list of strings");
    if (n > STOP_STRINGS_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "stop: %" G_GSIZE_FORMAT " strings, at most %u",
                         n, STOP_STRINGS_MAX);
    for (gsize i = 0; i < n; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, i) : value;
        texts[i] = json_string_value(item);
        if (texts[i] == NULL)
            return error_set(error, ASSAY_ERROR_INPUT,
                             "stop: the item at %" G_GSIZE_FORMAT " is no string", i);
    }
    ask->stops = stop_strings_new(texts, n, error);
    return ask->stops != NULL;
}

/* Stop tokens: those that are asked for, and the end of a turn unless ignore_eos. */
static gboolean want_stop_ids(const PolicyRuntime *runtime, const json_t *body, EngineRequest *r,
                              GError **error)
{
    const json_t *list = json_object_get(body, "stop_token_ids");
    gint32 eos = tokenizer_special(runtime->tokenizer, TOKEN_EOS);
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

static gboolean want_allowed(const json_t *body, EngineRequest *r, GError **error)
{
    const json_t *list = json_object_get(body, "allowed_token_ids");
    g_autoptr(GArray) ids = tokens_new();
    if (list == NULL || json_is_null(list))
        return TRUE;
    if (!want_ids(list, "allowed_token_ids", ENGINE_ALLOWED_MAX, ids, error))
        return FALSE;
    if (ids->len == 0)
        return error_set(error, ASSAY_ERROR_INPUT, "allowed_token_ids: must not be empty");
    r->n_allowed = ids->len;
    r->allowed = g_memdup2(ids->data, ids->len * sizeof(gint32));
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
static gboolean want_sampling(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                              gint64 tokens, GError **error)
{
    EngineRequest *r = &ask->engine;
    gint64 n, most = G_MAXINT32, seed, top_k;
    r->params = (SampleParams){.temperature = 1, .top_p = 1};
    r->repetition = POLICY_REPETITION;
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
        !json_opt_int(body, "prompt_logprobs", 0, POLICY_TOP_MAX, -1, &ask->prompt_top, error) ||
        !want_flag(body, "return_token_ids", &ask->ids, error) || !want_stops(body, ask, error) ||
        !want_stop_ids(runtime, body, r, error) || !want_allowed(body, r, error) ||
        !want_logprobs(body, ask, error))
        return FALSE;
    r->params.top_k = (guint32)MAX(top_k, 0);
    r->params.seed = (guint64)seed;
    r->n = (guint)n;
    return TRUE;
}

static gboolean add_text(const PolicyRuntime *runtime, const json_t *text, PolicyAsk *ask,
                         GError **error)
{
    GArray *ids = tokens_new();
    g_ptr_array_add(ask->prompts, ids);
    if (tokenizer_encode(runtime->tokenizer, json_string_value(text), json_string_length(text),
                         TOKENS_PLAIN, ids, error))
        return TRUE;
    g_prefix_error(error, "prompt: ");
    return FALSE;
}

static gboolean add_ids(const json_t *list, const char *key, PolicyAsk *ask, GError **error)
{
    GArray *ids = tokens_new();
    g_ptr_array_add(ask->prompts, ids);
    return want_ids(list, key, G_MAXINT32, ids, error);
}

/* A text, ids, or a list of either. */
static gboolean want_prompt(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                            GError **error)
{
    const json_t *prompt = json_object_get(body, "prompt");
    const json_t *first = json_array_get(prompt, 0);
    gsize n = json_array_size(prompt);
    if (json_is_string(prompt))
        return add_text(runtime, prompt, ask, error);
    if (json_is_integer(first))
        return add_ids(prompt, "prompt", ask, error);
    if (n == 0 || n > POLICY_PROMPTS_MAX)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "prompt: a text, token ids, or a list of 1 to %u of them",
                         POLICY_PROMPTS_MAX);
    for (gsize i = 0; i < n; i++) {
        const json_t *item = json_array_get(prompt, i);
        if (!(json_is_string(item) ? add_text(runtime, item, ask, error)
                                   : add_ids(item, "prompt", ask, error)))
            return FALSE;
    }
    return TRUE;
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

static gboolean want_messages(const PolicyRuntime *runtime, const json_t *body, GArray *ids,
                              GError **error)
{
    gboolean generate = TRUE, go_on = FALSE;
    const json_t *tools = NULL;
    if (!want_flag(body, "add_generation_prompt", &generate, error) ||
        !want_flag(body, "continue_final_message", &go_on, error) ||
        !want_tools(body, &tools, error))
        return FALSE;
    guint flags = go_on ? CHAT_CONTINUE : generate ? CHAT_GENERATE : 0;
    return chat_encode(&runtime->style, runtime->tokenizer, json_object_get(body, "messages"),
                       tools, flags, ids, error);
}

/* --- limits over several fields */

guint64 policy_ask_choices(const PolicyAsk *ask)
{
    return (guint64)ask->engine.n * ask->prompts->len;
}

/* Log-probabilities that would be kept until the answer is whole. */
static guint64 scores_of(const PolicyAsk *ask)
{
    guint64 all = 0;
    if (ask->logprobs && !ask->stream)
        all += policy_ask_choices(ask) * (guint64)ask->engine.tokens_max * (1 + ask->top);
    for (guint i = 0; ask->prompt_top >= 0 && i < ask->prompts->len; i++)
        all += ((GArray *)ask->prompts->pdata[i])->len * (guint64)(1 + ask->prompt_top);
    return all;
}

static gboolean check_whole(const PolicyRuntime *runtime, PolicyAsk *ask, GError **error)
{
    EngineRequest *r = &ask->engine;
    if (policy_ask_choices(ask) > POLICY_CHOICES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "n: %u samples of %u prompts, at most %u", r->n,
                         ask->prompts->len, POLICY_CHOICES_MAX);
    if (ask->prompt_top >= 0 && ask->stream)
        return error_set(error, ASSAY_ERROR_INPUT, "prompt_logprobs: not with stream");
    if (r->tokens_max == 0)
        r->tokens_max = MAX(1, runtime->context - (gint64)((GArray *)ask->prompts->pdata[0])->len);
    if (scores_of(ask) > POLICY_SCORES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT,
                         "%s: up to %" G_GUINT64_FORMAT " of them in one answer, at most %u: "
                         "say a smaller max_tokens, or stream",
                         ask->logprobs ? "logprobs" : "prompt_logprobs", scores_of(ask),
                         POLICY_SCORES_MAX);
    return TRUE;
}

/* --- shapes */

/* clang-format off */
#define SAMPLING_KEYS \
    "model", "temperature", "top_p", "min_p", "top_k", "n", "seed", "min_tokens", "max_tokens", \
    "max_completion_tokens", "return_token_ids", "stop", "stop_token_ids", "ignore_eos", \
    "allowed_token_ids", "logprobs", "top_logprobs", "logprob_source", "prompt_logprobs", \
    /* not looked at */ "user", "session_id", "metadata", "store"
#define STREAM_KEYS "stream", "stream_options"
#define MESSAGE_KEYS \
    "messages", "tools", "tool_choice", "add_generation_prompt", "continue_final_message"
/* clang-format on */

static gboolean ask_completion(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                               GError **error)
{
    return want_sampling(runtime, body, ask, TOKENS_DEFAULT, error) &&
           want_stream(body, ask, error) && want_prompt(runtime, body, ask, error) &&
           check_whole(runtime, ask, error);
}

static gboolean ask_chat(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                         GError **error)
{
    GArray *ids = tokens_new();
    g_ptr_array_add(ask->prompts, ids);
    return want_sampling(runtime, body, ask, 0, error) && want_stream(body, ask, error) &&
           want_messages(runtime, body, ids, error) && check_whole(runtime, ask, error);
}

static gboolean ask_generate(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                             GError **error)
{
    static const char *const keys[] = {SAMPLING_KEYS, NULL};
    g_autoptr(json_t) none = json_object();
    const json_t *sampling = json_object_get(body, "sampling_params");
    sampling = sampling != NULL ? sampling : none;
    ask->ids = TRUE;
    if (!json_is_object(sampling))
        return error_set(error, ASSAY_ERROR_INPUT, "sampling_params: must be an object");
    return json_only_keys(sampling, keys, error) &&
           want_sampling(runtime, sampling, ask, TOKENS_DEFAULT, error) &&
           want_stream(body, ask, error) &&
           add_ids(json_object_get(body, "token_ids"), "token_ids", ask, error) &&
           check_whole(runtime, ask, error);
}

static gboolean ask_tokenize(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                             GError **error)
{
    const json_t *prompt = json_object_get(body, "prompt");
    GArray *ids = tokens_new();
    g_ptr_array_add(ask->prompts, ids);
    if ((prompt == NULL) == (json_object_get(body, "messages") == NULL) ||
        (prompt != NULL && !json_is_string(prompt)))
        return error_set(error, ASSAY_ERROR_INPUT, "prompt: a text, or messages instead");
    if (prompt != NULL) {
        g_ptr_array_set_size(ask->prompts, 0);
        if (!add_text(runtime, prompt, ask, error))
            return FALSE;
        ids = ask->prompts->pdata[0];
    } else if (!want_messages(runtime, body, ids, error)) {
        return FALSE;
    }
    GString *text = g_string_new("{\"tokens\":[");
    for (guint i = 0; i < ids->len; i++)
        g_string_append_printf(text, "%s%d", i > 0 ? "," : "", g_array_index(ids, gint32, i));
    g_string_append_printf(text, "],\"count\":%u,\"max_model_len\":%" G_GINT64_FORMAT "}", ids->len,
                           runtime->context);
    ask->reply = g_string_free(text, FALSE);
    return TRUE;
}

static gboolean ask_detokenize(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                               GError **error)
{
    g_autoptr(GArray) ids = tokens_new();
    g_autoptr(GString) text = g_string_new(NULL);
    Detokenizer detokenizer = {.tokenizer = runtime->tokenizer, .flags = TOKENS_SPECIALS};
    if (!want_ids(json_object_get(body, "tokens"), "tokens", G_MAXINT32, ids, error))
        return FALSE;
    for (guint i = 0; i < ids->len; i++)
        if (!detokenizer_add(&detokenizer, g_array_index(ids, gint32, i), text))
            return error_set(error, ASSAY_ERROR_INPUT, "tokens: %d at %u is no token",
                             g_array_index(ids, gint32, i), i);
    detokenizer_end(&detokenizer, text);
    g_autoptr(json_t) reply = json_pack("{s:o}", "prompt", json_stringn(text->str, text->len));
    ask->reply = json_print(reply);
    return TRUE;
}

static gboolean ask_update(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                           GError **error)
{
    (void)runtime;
    GError *local = NULL;
    const char *kind = json_opt_str(body, "kind", "checkpoint", &local);
    if (kind == NULL || strcmp(kind, "checkpoint") != 0) {
        g_clear_error(&local);
        return error_set(error, ASSAY_ERROR_INPUT, "kind: checkpoint");
    }
    ask->path = g_strdup(json_want_str(body, "path", error));
    return ask->path != NULL && want_flag(body, "recompute", &ask->recompute, error);
}

static gboolean ask_nothing(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                            GError **error)
{
    (void)runtime, (void)body, (void)ask, (void)error;
    return TRUE;
}

static const struct {
    gboolean (*parse)(const PolicyRuntime *runtime, const json_t *body, PolicyAsk *ask,
                      GError **error);
    const char *keys[48];
} shapes[] = {
    [SHAPE_NONE] = {ask_nothing, {NULL}},
    [SHAPE_COMPLETION] = {ask_completion, {SAMPLING_KEYS, STREAM_KEYS, "prompt"}},
    [SHAPE_CHAT] = {ask_chat, {SAMPLING_KEYS, STREAM_KEYS, MESSAGE_KEYS}},
    [SHAPE_GENERATE] = {ask_generate, {"model", STREAM_KEYS, "token_ids", "sampling_params"}},
    [SHAPE_TOKENIZE] = {ask_tokenize, {"model", MESSAGE_KEYS, "prompt"}},
    [SHAPE_DETOKENIZE] = {ask_detokenize, {"model", "tokens"}},
    [SHAPE_UPDATE] = {ask_update, {"kind", "path", "recompute"}},
};

static gboolean model_known(const char *name, const json_t *body, GError **error)
{
    const json_t *model = json_object_get(body, "model");
    return model == NULL || g_strcmp0(json_string_value(model), name) == 0 ||
           error_set(error, ASSAY_ERROR_NOT_FOUND, "model: this server has %s only", name);
}

PolicyAsk *policy_ask_parse(const PolicyRuntime *runtime, const char *name, PolicyShape shape,
                            const json_t *body, GError **error)
{
    g_autoptr(PolicyAsk) ask = g_new0(PolicyAsk, 1);
    ask->shape = shape;
    ask->prompt_top = -1;
    ask->prompts = g_ptr_array_new_with_free_func((GDestroyNotify)g_array_unref);
    if (json_only_keys(body, shapes[shape].keys, error) && model_known(name, body, error) &&
        shapes[shape].parse(runtime, body, ask, error))
        return g_steal_pointer(&ask);
    return NULL;
}

void policy_ask_free(PolicyAsk *ask)
{
    if (ask == NULL)
        return;
    g_ptr_array_unref(ask->prompts);
    g_clear_pointer(&ask->stops, stop_strings_free);
    g_free((gpointer)(gsize)ask->engine.stops);
    g_free((gpointer)(gsize)ask->engine.allowed);
    g_free(ask->reply);
    g_free(ask->path);
    g_free(ask);
}
