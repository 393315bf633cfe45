/*
 * Answers: tokens of the engine to text, log-probabilities and tool calls, at once or as events.
 *
 * Invariants:
 *   1. Text that may be the head of a stop string is held back; a stop string is never shown, and
 *      the ids are exactly those that were drawn.
 *   2. A stream is flushed after every token; an answer at once is the same flush at the end.
 *   3. A reader more than POLICY_UNSENT_MAX bytes behind, or gone, has its samples aborted.
 *   4. A call lives until all its choices have ended, and with a message until that is finished.
 *
 * Not here: what requests may ask (policy_api.c).
 */
#include "env/policy_serve.h"

#include "base/error.h"
#include "base/id.h"
#include "policy/utf8.h"

#include <glib-unix.h>
#include <math.h>
#include <poll.h>
#include <string.h>

#define LOGPROB_LEAST (-9999.0) /* JSON has no infinity */

typedef struct Choice {
    PolicyCall *call;
    guint index;
    Detokenizer detokenizer;
    GString *held; /* text that may be the head of a stop string */
    ChatParser *parser;
    /* since the last flush */
    GString *text, *reasoning;
    GArray *ids;
    json_t *calls, *logprobs;
    /* of the whole */
    guint n_calls;
    guint64 n_ids, version, version_last;
    gboolean begun, ended;
    FinishReason finish;
    char *stop; /* the stop string that was met */
    gint32 last;
} Choice;

/* One prompt of a call, as the engine knows it. */
typedef struct Part {
    PolicyCall *call;
    guint64 request;
    guint first; /* choice */
} Part;

struct PolicyCall {
    PolicyServer *server;
    SoupServerMessage *msg;
    PolicyAsk *ask;
    char *id;
    Part *parts;
    Choice *choices;
    guint n_choices, n_open, hangup_source;
    gsize unsent;
    guint64 n_ids, n_prompt;
    gint64 created_s;
    gboolean starting, ending, gone, prompt_said;
};

PolicyAsk *policy_ask_new(void)
{
    PolicyAsk *ask = g_new0(PolicyAsk, 1);
    ask->prompts = g_ptr_array_new_with_free_func((GDestroyNotify)g_array_unref);
    ask->stops = g_ptr_array_new_with_free_func(g_free);
    return ask;
}

void policy_ask_free(PolicyAsk *ask)
{
    g_ptr_array_unref(ask->prompts);
    g_ptr_array_unref(ask->stops);
    g_free((gpointer)(gsize)ask->engine.stops);
    g_free(ask);
}

static void call_free(PolicyCall *call)
{
    for (guint i = 0; i < call->n_choices; i++) {
        Choice *choice = &call->choices[i];
        g_clear_pointer(&choice->parser, chat_parser_free);
        g_string_free(choice->held, TRUE);
        g_string_free(choice->text, TRUE);
        g_string_free(choice->reasoning, TRUE);
        g_array_unref(choice->ids);
        json_decref(choice->calls);
        json_decref(choice->logprobs);
        g_free(choice->stop);
    }
    if (call->hangup_source != 0)
        g_source_remove(call->hangup_source);
    g_clear_object(&call->msg);
    policy_ask_free(call->ask);
    g_free(call->choices);
    g_free(call->parts);
    g_free(call->id);
    g_free(call);
}

/* --- what a choice says */

static void said_reasoning(const char *text, gsize len, gpointer user_data)
{
    g_string_append_len(((Choice *)user_data)->reasoning, text, (gssize)len);
}

static void said_content(const char *text, gsize len, gpointer user_data)
{
    g_string_append_len(((Choice *)user_data)->text, text, (gssize)len);
}

static void said_call(const ChatCall *said, gpointer user_data)
{
    Choice *choice = user_data;
    g_autofree char *id = id_new("call");
    json_t *call = json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", id, "type", "function", "function",
                             "name", said->name, "arguments", said->arguments);
    if (call == NULL)
        return;
    if (choice->call->ask->stream)
        json_object_set_new(call, "index", json_integer(choice->n_calls));
    choice->n_calls++;
    json_array_append_new(choice->calls, call);
}

static void release(Choice *choice, gsize len)
{
    if (choice->parser != NULL)
        chat_parser_feed(choice->parser, choice->held->str, len);
    else
        g_string_append_len(choice->text, choice->held->str, (gssize)len);
    g_string_erase(choice->held, 0, (gssize)len);
}

/* How much of the end of `text` begins a stop string. */
static gsize head_of_stop(const GString *text, const GPtrArray *stops)
{
    gsize most = 0;
    for (guint i = 0; i < stops->len; i++) {
        const char *stop = stops->pdata[i];
        for (gsize n = MIN(strlen(stop) - 1, text->len); n > most; n--)
            if (memcmp(text->str + text->len - n, stop, n) == 0)
                most = n;
    }
    return most;
}

/* Lets text go up to the first stop string; TRUE: there was one. */
static gboolean release_checked(Choice *choice)
{
    const GPtrArray *stops = choice->call->ask->stops;
    gsize first = G_MAXSIZE;
    for (guint i = 0; i < stops->len; i++) {
        const char *stop = stops->pdata[i];
        const char *at = memmem(choice->held->str, choice->held->len, stop, strlen(stop));
        if (at == NULL || (gsize)(at - choice->held->str) >= first)
            continue;
        first = (gsize)(at - choice->held->str);
        g_free(choice->stop);
        choice->stop = g_strdup(stop);
    }
    if (choice->stop == NULL) {
        release(choice, choice->held->len - head_of_stop(choice->held, stops));
        return FALSE;
    }
    release(choice, first);
    g_string_truncate(choice->held, 0);
    return TRUE;
}

/* --- log-probabilities */

static double json_safe(double logprob)
{
    return logprob >= LOGPROB_LEAST ? logprob : LOGPROB_LEAST;
}

static json_t *token_json(const Tokenizer *tokenizer, gint32 id, double logprob)
{
    gsize len = 0;
    const char *bytes = tokenizer_bytes(tokenizer, id, &len);
    g_autoptr(GString) text = g_string_new(NULL);
    json_t *numbers = json_array();
    utf8_append(text, bytes, bytes != NULL ? len : 0, TRUE);
    for (gsize i = 0; bytes != NULL && i < len; i++)
        json_array_append_new(numbers, json_integer((guchar)bytes[i]));
    return json_pack("{s:o, s:i, s:f, s:o}", "token", json_stringn(text->str, text->len), "id",
                     (int)id, "logprob", json_safe(logprob), "bytes", numbers);
}

/* The `top` most likely tokens, by falling logit and rising id. */
static json_t *top_json(const PolicyCall *call, const EngineToken *token)
{
    gint32 best[POLICY_TOP_MAX];
    guint n = 0, top = call->ask->top;
    gint32 valid = (gint32)call->server->runtime.model->config.vocab_valid;
    for (gint32 id = 0; top > 0 && id < valid; id++) {
        guint at = n;
        while (at > 0 && token->logits[id] > token->logits[best[at - 1]])
            at--;
        if (at >= top)
            continue;
        n = MIN(n + 1, top);
        memmove(best + at + 1, best + at, (n - 1 - at) * sizeof *best);
        best[at] = id;
    }
    json_t *list = json_array();
    for (guint i = 0; i < n; i++)
        json_array_append_new(list, token_json(call->server->runtime.tokenizer, best[i],
                                               (double)(token->logits[best[i]] - token->lse)));
    return list;
}

static void note_logprob(Choice *choice, const EngineToken *token)
{
    const PolicyCall *call = choice->call;
    double logprob = (double)(call->ask->raw ? token->token.logprob : token->token.logprob_own);
    json_t *entry = token_json(call->server->runtime.tokenizer, token->token.id, logprob);
    json_object_set_new(entry, "top_logprobs", top_json(call, token));
    json_array_append_new(choice->logprobs, entry);
}

/* Legacy completions: columns instead of entries. */
static json_t *logprob_columns(const json_t *entries)
{
    json_t *tokens = json_array(), *values = json_array(), *tops = json_array(), *entry, *other;
    size_t i, j;
    json_array_foreach(entries, i, entry)
    {
        json_t *top = json_object();
        json_array_append(tokens, json_object_get(entry, "token"));
        json_array_append(values, json_object_get(entry, "logprob"));
        json_array_foreach(json_object_get(entry, "top_logprobs"), j, other)
            json_object_set(top, cli_json_str(other, "token"), json_object_get(other, "logprob"));
        json_array_append_new(tops, top);
    }
    return json_pack("{s:o, s:o, s:o}", "tokens", tokens, "token_logprobs", values, "top_logprobs",
                     tops);
}

/* --- objects */

static const char *reason_of(const Choice *choice)
{
    static const char *const names[] = {
        [FINISH_STOP] = "stop",   [FINISH_LENGTH] = "length", [FINISH_REPETITION] = "stop",
        [FINISH_CALLER] = "stop", [FINISH_ABORTED] = "abort",
    };
    const char *name = choice->stop != NULL ? "stop" : names[choice->finish];
    return choice->n_calls > 0 && strcmp(name, "stop") == 0 ? "tool_calls" : name;
}

static json_t *stop_reason_of(const Choice *choice)
{
    if (choice->stop != NULL)
        return json_string(choice->stop);
    if (choice->finish == FINISH_STOP)
        return json_integer(choice->last);
    return choice->finish == FINISH_REPETITION ? json_string("repetition") : json_null();
}

static json_t *ids_json(const GArray *ids)
{
    json_t *list = json_array();
    for (guint i = 0; i < ids->len; i++)
        json_array_append_new(list, json_integer(g_array_index(ids, gint32, i)));
    return list;
}

static json_t *take_text(GString *text)
{
    json_t *value = json_stringn(text->str, text->len);
    g_string_truncate(text, 0);
    return value;
}

/* "message", or the "delta" of a stream. */
static json_t *chat_part(Choice *choice)
{
    gboolean stream = choice->call->ask->stream;
    json_t *part = json_object();
    if (!stream || !choice->begun)
        json_object_set_new(part, "role", json_string("assistant"));
    if (choice->reasoning->len > 0)
        json_object_set_new(part, "reasoning_content", take_text(choice->reasoning));
    if (choice->text->len > 0 || (!stream && choice->n_calls == 0) || (stream && !choice->begun))
        json_object_set_new(part, "content", take_text(choice->text));
    else if (!stream)
        json_object_set_new(part, "content", json_null());
    if (json_array_size(choice->calls) > 0) {
        json_object_set(part, "tool_calls", choice->calls);
        json_decref(choice->calls);
        choice->calls = json_array();
    }
    return part;
}

/* What the choice has said since the last time. */
static json_t *choice_json(Choice *choice)
{
    const PolicyAsk *ask = choice->call->ask;
    json_t *out = json_pack("{s:i}", "index", (int)choice->index), *logprobs = json_null();
    if (ask->shape == SHAPE_CHAT)
        json_object_set_new(out, ask->stream ? "delta" : "message", chat_part(choice));
    else if (ask->shape == SHAPE_COMPLETION)
        json_object_set_new(out, "text", take_text(choice->text));
    if (ask->logprobs)
        logprobs = ask->shape == SHAPE_COMPLETION ? logprob_columns(choice->logprobs)
                                                  : json_pack("{s:O}", "content", choice->logprobs);
    json_object_set_new(out, "logprobs", logprobs);
    json_object_set_new(out, "finish_reason",
                        choice->ended ? json_string(reason_of(choice)) : json_null());
    if (choice->ended)
        json_object_set_new(out, "stop_reason", stop_reason_of(choice));
    if (ask->ids)
        json_object_set_new(out, "token_ids", ids_json(choice->ids));
    json_object_set_new(
        out, "weight_version",
        choice->version == choice->version_last
            ? json_integer((json_int_t)choice->version)
            : json_pack("[I, I]", (json_int_t)choice->version, (json_int_t)choice->version_last));
    if (ask->ids && ask->shape == SHAPE_COMPLETION && !choice->begun)
        json_object_set_new(out, "prompt_token_ids",
                            ids_json(ask->prompts->pdata[choice->index / MAX(ask->engine.n, 1)]));
    json_array_clear(choice->logprobs);
    g_array_set_size(choice->ids, 0);
    choice->begun = TRUE;
    return out;
}

static json_t *usage_json(const PolicyCall *call)
{
    return json_pack("{s:I, s:I, s:I}", "prompt_tokens", (json_int_t)call->n_prompt,
                     "completion_tokens", (json_int_t)call->n_ids, "total_tokens",
                     (json_int_t)(call->n_prompt + call->n_ids));
}

/* Takes `choices`. */
static json_t *call_json(PolicyCall *call, json_t *choices)
{
    static const char *const objects[][2] = {
        [SHAPE_COMPLETION] = {"text_completion", "text_completion"},
        [SHAPE_CHAT] = {"chat.completion", "chat.completion.chunk"},
        [SHAPE_GENERATE] = {"generation", "generation"},
    };
    const PolicyAsk *ask = call->ask;
    json_t *out = json_pack(
        "{s:s, s:s, s:I, s:s, s:o}", "id", call->id, "object", objects[ask->shape][ask->stream],
        "created", (json_int_t)call->created_s, "model", call->server->name, "choices", choices);
    if (ask->ids && ask->shape == SHAPE_CHAT && !call->prompt_said)
        json_object_set_new(out, "prompt_token_ids", ids_json(ask->prompts->pdata[0]));
    call->prompt_said = TRUE;
    return out;
}

/* --- sending */

/* Takes `value`; NULL is the end. */
static void send_event(PolicyCall *call, json_t *value)
{
    g_autoptr(json_t) owned = value;
    g_autofree char *json = owned != NULL ? json_print(owned) : g_strdup("[DONE]");
    g_autofree char *line = g_strconcat("data: ", json, "\n\n", NULL);
    if (call->gone || call->msg == NULL)
        return;
    call->unsent += strlen(line);
    soup_message_body_append(soup_server_message_get_response_body(call->msg), SOUP_MEMORY_COPY,
                             line, strlen(line));
    soup_server_message_unpause(call->msg);
}

static void on_wrote(SoupServerMessage *msg, guint n, gpointer user_data)
{
    (void)msg;
    PolicyCall *call = user_data;
    call->unsent -= MIN(call->unsent, n);
}

static void stream_begin(PolicyCall *call)
{
    SoupMessageHeaders *headers = soup_server_message_get_response_headers(call->msg);
    soup_server_message_set_status(call->msg, 200, NULL);
    soup_message_headers_replace(headers, "Content-Type", "text/event-stream; charset=utf-8");
    soup_message_headers_replace(headers, "Cache-Control", "no-cache");
    soup_message_headers_set_encoding(headers, SOUP_ENCODING_CHUNKED);
    soup_message_body_set_accumulate(soup_server_message_get_response_body(call->msg), FALSE);
    g_signal_connect(call->msg, "wrote-body-data", G_CALLBACK(on_wrote), call);
}

static void stream_flush(Choice *choice)
{
    PolicyCall *call = choice->call;
    json_t *chunk = call_json(call, json_pack("[o]", choice_json(choice)));
    if (call->ask->usage)
        json_object_set_new(chunk, "usage", json_null());
    send_event(call, chunk);
}

static void reply_whole(PolicyCall *call)
{
    json_t *choices = json_array();
    for (guint i = 0; i < call->n_choices; i++)
        json_array_append_new(choices, choice_json(&call->choices[i]));
    json_t *whole = call_json(call, choices);
    json_object_set_new(whole, "usage", usage_json(call));
    policy_reply(call->msg, 200, whole);
    soup_server_message_unpause(call->msg);
}

static void server_rests(PolicyServer *server)
{
    for (guint i = 0; i < server->paused->len; i++) {
        policy_reply(server->paused->pdata[i], 200, json_pack("{s:b}", "is_paused", 1));
        soup_server_message_unpause(server->paused->pdata[i]);
    }
    g_ptr_array_set_size(server->paused, 0);
}

/* All choices have ended. */
static void call_end(PolicyCall *call)
{
    PolicyServer *server = call->server;
    g_ptr_array_remove_fast(server->calls, call);
    if (!call->gone && call->ask->stream) {
        if (call->ask->usage) {
            json_t *last = call_json(call, json_array());
            json_object_set_new(last, "usage", usage_json(call));
            send_event(call, last);
        }
        send_event(call, NULL);
        soup_message_body_complete(soup_server_message_get_response_body(call->msg));
        soup_server_message_unpause(call->msg);
    } else if (!call->gone) {
        reply_whole(call);
    }
    if (call->msg != NULL)
        g_signal_handlers_disconnect_by_data(call->msg, call);
    if (server->calls->len == 0)
        server_rests(server);
    call_free(call);
}

static gboolean end_now(gpointer user_data)
{
    call_end(user_data);
    return G_SOURCE_REMOVE;
}

/* Outside the engine's callbacks, and once. */
static void call_end_soon(PolicyCall *call)
{
    if (!call->ending)
        g_idle_add_full(G_PRIORITY_HIGH, end_now, call, NULL);
    call->ending = TRUE;
}

/* --- the engine's side */

/* The reader is gone, or as good as. */
static void call_drop(PolicyCall *call)
{
    if (call->gone)
        return;
    call->gone = TRUE;
    call->server->n_dropped++;
    policy_call_abort(call);
}

void policy_call_abort(PolicyCall *call)
{
    guint n = call->ask->prompts->len;
    for (guint i = 0; i < n; i++)
        engine_abort(call->server->runtime.engine, call->parts[i].request);
    policy_server_work(call->server); /* the engine forgets them in a step */
}

static void choice_end(Choice *choice, const EngineToken *token)
{
    PolicyCall *call = choice->call;
    choice->ended = TRUE;
    choice->finish = token->finish;
    if (choice->stop == NULL) {
        detokenizer_end(&choice->detokenizer, choice->held);
        if (!release_checked(choice))
            release(choice, choice->held->len);
    }
    if (choice->parser != NULL)
        chat_parser_end(choice->parser);
    call->server->n_choices--;
    call->n_open--;
    if (call->n_open == 0 && !call->starting)
        call_end_soon(call);
}

static gboolean on_token(const EngineToken *token, gpointer user)
{
    Part *part = user;
    PolicyCall *call = part->call;
    Choice *choice = &call->choices[part->first + token->sample];
    gboolean on = TRUE;
    if (choice->ended)
        return FALSE;
    if (token->token.id >= 0) {
        choice->version = choice->version != 0 ? choice->version : token->version;
        choice->version_last = token->version;
        choice->last = token->token.id;
        g_array_append_val(choice->ids, choice->last);
        call->n_ids++;
        if (call->ask->logprobs)
            note_logprob(choice, token);
        if (call->ask->shape != SHAPE_GENERATE || call->ask->stops->len > 0) {
            detokenizer_add(&choice->detokenizer, choice->last, choice->held);
            on = !release_checked(choice);
        }
    }
    if (token->finish != FINISH_NONE)
        choice_end(choice, token);
    /* on a stop string the engine tells of the end in a moment */
    if (call->ask->stream && (on || choice->ended))
        stream_flush(choice);
    if (call->unsent > POLICY_UNSENT_MAX && !call->gone) {
        GSocket *socket = policy_socket(call->msg);
        if (socket != NULL)
            g_socket_shutdown(socket, TRUE, TRUE, NULL);
        call_drop(call);
    }
    return on && !call->gone;
}

/* --- begin */

static void on_finished(SoupServerMessage *msg, gpointer user_data)
{
    (void)msg;
    call_drop(user_data);
}

static gboolean on_hangup(gint fd, GIOCondition condition, gpointer user_data)
{
    (void)fd, (void)condition;
    PolicyCall *call = user_data;
    call->hangup_source = 0;
    call_drop(call);
    return G_SOURCE_REMOVE;
}

static void watch_reader(PolicyCall *call)
{
    GSocket *socket = policy_socket(call->msg);
    g_signal_connect(call->msg, "finished", G_CALLBACK(on_finished), call);
    if (socket != NULL)
        call->hangup_source =
            g_unix_fd_add(g_socket_get_fd(socket), (GIOCondition)(POLLHUP | POLLERR | POLLRDHUP),
                          on_hangup, call);
}

static void choice_init(PolicyCall *call, guint index)
{
    Choice *choice = &call->choices[index];
    const ChatSink sink = {said_reasoning, said_content, said_call, choice};
    *choice = (Choice){.call = call,
                       .index = index,
                       .detokenizer = {.tokenizer = call->server->runtime.tokenizer},
                       .held = g_string_new(NULL),
                       .text = g_string_new(NULL),
                       .reasoning = g_string_new(NULL),
                       .ids = tokens_new(),
                       .calls = json_array(),
                       .logprobs = json_array(),
                       .version = 0};
    if (call->ask->shape == SHAPE_CHAT)
        choice->parser = chat_parser_new(&sink, FALSE);
}

static gboolean submit_all(PolicyCall *call, GError **error)
{
    PolicyAsk *ask = call->ask;
    Engine *engine = call->server->runtime.engine;
    for (guint i = 0; i < ask->prompts->len; i++) {
        GArray *prompt = ask->prompts->pdata[i];
        EngineRequest request = ask->engine;
        call->parts[i] = (Part){.call = call, .first = i * MAX(request.n, 1)};
        request.prompt = (const int *)(gconstpointer)prompt->data;
        request.prompt_len = prompt->len;
        request.on_token = on_token;
        request.user = &call->parts[i];
        call->parts[i].request = engine_submit(engine, &request, error);
        if (call->parts[i].request == 0)
            return FALSE;
        call->n_prompt += prompt->len;
    }
    return TRUE;
}

gboolean policy_call_start(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                           GError **error)
{
    static const char *const prefixes[] = {
        [SHAPE_COMPLETION] = "cmpl", [SHAPE_CHAT] = "chatcmpl", [SHAPE_GENERATE] = "gen"};
    PolicyCall *call = g_new0(PolicyCall, 1);
    call->server = server;
    call->ask = ask;
    call->id = id_new(prefixes[ask->shape]);
    call->created_s = g_get_real_time() / G_USEC_PER_SEC;
    call->n_choices = call->n_open = ask->prompts->len * MAX(ask->engine.n, 1);
    call->choices = g_new0(Choice, call->n_choices);
    call->parts = g_new0(Part, ask->prompts->len);
    for (guint i = 0; i < call->n_choices; i++)
        choice_init(call, i);
    server->n_choices += call->n_choices;
    if (!submit_all(call, error)) {
        call->starting = call->gone = TRUE;
        for (guint i = 0; i < ask->prompts->len && call->parts[i].request != 0; i++)
            engine_abort(server->runtime.engine, call->parts[i].request);
        server->n_choices -= call->n_open;
        call_free(call);
        policy_server_work(server);
        return FALSE;
    }
    call->msg = g_object_ref(msg);
    g_ptr_array_add(server->calls, call);
    soup_server_message_pause(msg);
    if (ask->stream)
        stream_begin(call);
    watch_reader(call);
    policy_server_work(server);
    return TRUE;
}
