/*
 * Calls: submitted to the engine, followed, answered at once or as events.
 *
 * Invariants:
 *   1. Text that may be the head of a stop string is held back; a stop string is never shown, and
 *      the ids are exactly those that were drawn.
 *   2. A stream is flushed after every token; its headers go out when the engine has taken the
 *      call, so that what the engine refuses is still a status.
 *   3. A reader more than POLICY_UNSENT_MAX bytes behind, or gone, has its samples aborted.
 *   4. Every choice of a call that was taken ends exactly once, in the order of the engine's
 *      tokens; the call is answered after the last. Aborts hold a reference: they may be late.
 *   5. Answers at once are written by a thread of GLib's pool: they may be long.
 *
 * Not here: what requests may ask (policy_ask.c), the JSON (policy_answer.c).
 */
#include "env/policy_call.h"

#include "base/error.h"
#include "base/id.h"

#include <glib-unix.h>
#include <poll.h>
#include <string.h>

#define TOKENS_A_TURN 64 /* of the main loop: a chunk of a stream takes some 10 us */

/* --- life */

static void call_clear(gpointer data)
{
    PolicyCall *call = data;
    g_assert(call->msg == NULL);
    for (guint i = 0; i < call->n_choices; i++) {
        policy_choice_clear(&call->choices[i]);
        sample_text_clear(&call->texts[i]);
    }
    for (guint i = 0; i < call->ask->prompts->len; i++) {
        g_array_unref(call->parts[i].scores);
        g_array_unref(call->parts[i].tops);
    }
    g_string_free(call->said, TRUE);
    policy_ask_free(call->ask);
    g_free(call->choices);
    g_free(call->texts);
    g_free(call->parts);
    g_free(call->head);
    g_free(call->id);
}

static void call_unref(PolicyCall *call)
{
    g_atomic_rc_box_release_full(call, call_clear);
}

/* Takes the ask. */
static PolicyCall *call_new(PolicyServer *server, PolicyAsk *ask)
{
    static const char *const prefixes[] = {
        [SHAPE_COMPLETION] = "cmpl", [SHAPE_CHAT] = "chatcmpl", [SHAPE_GENERATE] = "gen"};
    PolicyCall *call = g_atomic_rc_box_new0(PolicyCall);
    guint valid = server->runtime.model->config.vocab_valid, n = MAX(ask->engine.n, 1);
    call->server = server;
    call->ask = ask;
    call->id = id_new(prefixes[ask->shape]);
    call->head = policy_answer_head(call, g_get_real_time() / G_USEC_PER_SEC);
    call->said = g_string_new(NULL);
    call->n_choices = call->n_open = ask->prompts->len * n;
    call->n_tops = MIN(ask->top, valid);
    call->n_tops_prompt = (guint)CLAMP(ask->prompt_top, 0, (gint64)valid);
    call->choices = g_new0(PolicyChoice, call->n_choices);
    call->texts = g_new0(SampleText, call->n_choices);
    call->parts = g_new0(PolicyPart, ask->prompts->len);
    for (guint i = 0; i < call->n_choices; i++) {
        policy_choice_init(call, i);
        sample_text_init(&call->texts[i], server->runtime.tokenizer, ask->stops);
    }
    for (guint i = 0; i < ask->prompts->len; i++) {
        call->parts[i] = (PolicyPart){.call = call,
                                      .prompt = ask->prompts->pdata[i],
                                      .first = i * n,
                                      .scores = g_array_new(FALSE, FALSE, sizeof(PolicyScore)),
                                      .tops = g_array_new(FALSE, FALSE, sizeof(PolicyTop))};
        call->n_prompt += call->parts[i].prompt->len;
    }
    return call;
}

/* --- the engine's thread: scores and text of tokens */

/* The `n` most likely tokens, by falling logit and rising id. */
static void find_tops(const float *logits, float lse, gint32 valid, guint n, PolicyTop *tops)
{
    guint have = 0;
    for (gint32 id = 0; n > 0 && id < valid; id++) {
        guint at = have;
        while (at > 0 && logits[id] > tops[at - 1].logprob)
            at--;
        if (at >= n)
            continue;
        have = MIN(have + 1, n);
        memmove(tops + at + 1, tops + at, (have - 1 - at) * sizeof *tops);
        tops[at] = (PolicyTop){id, logits[id]};
    }
    for (guint i = 0; i < have; i++)
        tops[i].logprob -= lse;
}

static gint32 vocab_of(const PolicyCall *call)
{
    return (gint32)call->server->runtime.model->config.vocab_valid;
}

static void on_prompt(gint64 position, const float *logits, float lse, gpointer user)
{
    PolicyPart *part = user;
    guint n = part->call->n_tops_prompt;
    gint32 id = g_array_index(part->prompt, gint32, position + 1);
    PolicyScore score = {.id = id, .logprob = logits[id] - lse, .rank = 1};
    for (gint32 other = 0; other < vocab_of(part->call); other++)
        score.rank += logits[other] > logits[id] ? 1 : 0;
    g_array_append_val(part->scores, score);
    g_array_set_size(part->tops, part->tops->len + n);
    if (n > 0)
        find_tops(logits, lse, vocab_of(part->call), n,
                  &g_array_index(part->tops, PolicyTop, part->tops->len - n));
}

static gboolean on_token(const EngineToken *token, gpointer user)
{
    PolicyPart *part = user;
    PolicyCall *call = part->call;
    const PolicyAsk *ask = call->ask;
    PolicyToken out = {
        .call = call,
        .choice = part->first + token->sample,
        .score = {.id = token->token.id,
                  .logprob = ask->raw ? token->token.logprob : token->token.logprob_own},
        .version = token->version,
        .finish = token->finish,
        .started_us = token->started_us,
        .now_us = g_get_monotonic_time()};
    SampleText *text = &call->texts[out.choice];
    gboolean on = TRUE;
    if (call->refused)
        return TRUE;
    if (out.score.id >= 0 && ask->logprobs && call->n_tops > 0) {
        out.tops = g_new(PolicyTop, call->n_tops);
        find_tops(token->logits, token->lse, vocab_of(call), call->n_tops, out.tops);
    }
    if (ask->shape != SHAPE_GENERATE || stop_strings_count(ask->stops) > 0) {
        if (out.score.id >= 0)
            on = sample_text_add(text, out.score.id, call->said);
        if (out.finish != FINISH_NONE)
            sample_text_end(text, call->said);
        if (call->said->len > 0)
            out.text = g_strndup(call->said->str, call->said->len);
        g_string_truncate(call->said, 0);
        out.stop = text->stop;
    }
    g_array_append_val(call->server->batch, out);
    return on;
}

/* --- the engine's thread: jobs */

typedef struct Batch {
    GArray *tokens; /* PolicyToken */
    guint next;
} Batch;

static gboolean came(gpointer data);

void policy_calls_flush(PolicyThread *thread, gpointer data)
{
    PolicyServer *server = data;
    if (server->batch->len == 0)
        return;
    Batch *batch = g_new(Batch, 1);
    *batch = (Batch){.tokens = server->batch};
    server->batch = g_array_new(FALSE, FALSE, sizeof(PolicyToken));
    policy_thread_reply(thread, came, batch);
}

typedef struct Refusal {
    PolicyCall *call;
    GError *error;
} Refusal;

static gboolean refused(gpointer data);
static gboolean taken(gpointer data);

static gboolean submit_all(PolicyCall *call, Engine *engine, GError **error)
{
    PolicyAsk *ask = call->ask;
    for (guint i = 0; i < ask->prompts->len; i++) {
        PolicyPart *part = &call->parts[i];
        EngineRequest request = ask->engine;
        request.prompt = (const int *)(gconstpointer)part->prompt->data;
        request.prompt_len = part->prompt->len;
        request.on_token = on_token;
        request.on_prompt = ask->prompt_top >= 0 ? on_prompt : NULL;
        request.user = part;
        part->request = engine_submit(engine, &request, error);
        if (part->request == 0)
            return FALSE;
    }
    return TRUE;
}

static void abort_all(PolicyCall *call, Engine *engine)
{
    for (guint i = 0; i < call->ask->prompts->len; i++)
        if (call->parts[i].request != 0)
            engine_abort(engine, call->parts[i].request);
}

static void job_submit(PolicyThread *thread, gpointer data)
{
    PolicyCall *call = data;
    GError *error = NULL;
    policy_thread_work(thread);
    if (submit_all(call, policy_thread_engine(thread), &error)) {
        policy_thread_reply(thread, taken, call);
        return;
    }
    call->refused = TRUE;
    abort_all(call, policy_thread_engine(thread));
    Refusal *refusal = g_new(Refusal, 1);
    *refusal = (Refusal){call, error};
    policy_thread_reply(thread, refused, refusal);
}

static void job_abort(PolicyThread *thread, gpointer data)
{
    PolicyCall *call = data;
    abort_all(call, policy_thread_engine(thread));
    policy_thread_work(thread); /* the engine forgets them in a step */
    policy_calls_flush(thread, call->server);
    call_unref(call);
}

/* --- the main loop: sending */

/* Takes `line`. */
static void send_line(PolicyCall *call, char *line)
{
    gsize len = strlen(line);
    if (call->gone) {
        g_free(line);
        return;
    }
    call->unsent += len;
    call->sent_us = g_get_monotonic_time();
    soup_message_body_append(soup_server_message_get_response_body(call->msg), SOUP_MEMORY_TAKE,
                             line, len);
    soup_server_message_unpause(call->msg);
}

static void send_event(PolicyCall *call, const char *json)
{
    send_line(call, g_strconcat("data: ", json, "\n\n", NULL));
}

void policy_call_ping(PolicyCall *call, gint64 now_us, gint64 after_us)
{
    if (call->ask->stream && call->sent_us != 0 && now_us - call->sent_us >= after_us)
        send_line(call, g_strdup(": ping\n\n"));
}

static void on_wrote(SoupServerMessage *msg, guint n, gpointer user_data)
{
    (void)msg;
    PolicyCall *call = user_data;
    call->unsent -= MIN(call->unsent, n);
}

static gboolean taken(gpointer data)
{
    PolicyCall *call = data;
    if (call->gone || !call->ask->stream)
        return G_SOURCE_REMOVE;
    SoupMessageHeaders *headers = soup_server_message_get_response_headers(call->msg);
    soup_server_message_set_status(call->msg, 200, NULL);
    soup_message_headers_replace(headers, "Content-Type", "text/event-stream; charset=utf-8");
    soup_message_headers_replace(headers, "Cache-Control", "no-cache");
    soup_message_headers_set_encoding(headers, SOUP_ENCODING_CHUNKED);
    soup_message_body_set_accumulate(soup_server_message_get_response_body(call->msg), FALSE);
    g_signal_connect(call->msg, "wrote-body-data", G_CALLBACK(on_wrote), call);
    call->sent_us = g_get_monotonic_time();
    soup_server_message_unpause(call->msg);
    return G_SOURCE_REMOVE;
}

/* --- the main loop: ends */

static void unwatch(PolicyCall *call)
{
    g_signal_handlers_disconnect_by_data(call->msg, call);
    if (call->hangup_source != 0)
        g_source_remove(call->hangup_source);
    call->hangup_source = 0;
}

/* The main loop is done with it; a late abort may not be. */
static void let_go(PolicyCall *call)
{
    unwatch(call);
    g_clear_object(&call->msg);
    call_unref(call);
}

static void write_whole(GTask *task, gpointer source, gpointer data, GCancellable *cancellable)
{
    (void)source, (void)cancellable;
    GString *out = g_string_new(NULL);
    policy_answer_whole(data, out);
    g_task_return_pointer(task, out, NULL);
}

static void whole_written(GObject *source, GAsyncResult *result, gpointer data)
{
    (void)source;
    PolicyCall *call = data;
    GString *out = g_task_propagate_pointer(G_TASK(result), NULL);
    gsize len = out->len;
    char *text = g_string_free(out, FALSE);
    policy_reply_text(call->msg, 200, "application/json", text, len);
    call->server->n_working--;
    let_go(call);
}

/* All choices have ended. */
static void call_end(PolicyCall *call)
{
    PolicyServer *server = call->server;
    g_autoptr(GString) usage = g_string_new(NULL);
    g_ptr_array_remove_fast(server->calls, call);
    policy_metrics_add(&server->metrics, LATENCY_CALL, call->arrived_us, g_get_monotonic_time());
    if (!call->gone && !call->ask->stream) {
        g_autoptr(GTask) task = g_task_new(NULL, NULL, whole_written, call);
        unwatch(call);
        server->n_working++;
        g_task_set_task_data(task, call, NULL);
        g_task_run_in_thread(task, write_whole);
        policy_server_rests(server);
        return;
    }
    if (!call->gone) {
        if (call->ask->usage) {
            policy_answer_usage(call, usage);
            send_event(call, usage->str);
        }
        send_event(call, "[DONE]");
        soup_message_body_complete(soup_server_message_get_response_body(call->msg));
        soup_server_message_unpause(call->msg);
    }
    policy_server_rests(server);
    let_go(call);
}

static gboolean refused(gpointer data)
{
    g_autofree Refusal *refusal = data;
    PolicyCall *call = refusal->call;
    PolicyServer *server = call->server;
    g_ptr_array_remove_fast(server->calls, call);
    server->n_choices -= call->n_open;
    if (call->ask->shape == SHAPE_GENERATE && g_str_has_prefix(refusal->error->message, "prompt:"))
        g_prefix_error(&refusal->error, "token_ids: the ");
    if (call->gone)
        g_error_free(refusal->error);
    else
        policy_refuse_error(call->msg, refusal->error);
    policy_server_rests(server);
    let_go(call);
    return G_SOURCE_REMOVE;
}

void policy_call_abort(PolicyCall *call)
{
    policy_thread_post(call->server->thread, job_abort, g_atomic_rc_box_acquire(call));
}

/* The reader is gone, or as good as. libsoup, which waits for us and not for the socket, would keep
 * the connection for good. */
static void call_drop(PolicyCall *call)
{
    call->gone = TRUE;
    call->server->n_dropped++;
    policy_call_abort(call);
    unwatch(call);
    if (g_object_get_data(G_OBJECT(call->msg), "assay-gone") != NULL)
        return;
    g_object_set_data(G_OBJECT(call->msg), "assay-gone", call->msg);
    g_autoptr(GIOStream) stream = soup_server_message_steal_connection(call->msg);
    if (stream != NULL)
        g_io_stream_close(stream, NULL, NULL);
}

static void note_latency(PolicyChoice *choice, const PolicyToken *token)
{
    PolicyCall *call = choice->call;
    PolicyMetrics *metrics = &call->server->metrics;
    if (token->score.id < 0)
        return;
    if (call->n_ids++ == 0) {
        policy_metrics_add(metrics, LATENCY_QUEUE, call->arrived_us, token->started_us);
        policy_metrics_add(metrics, LATENCY_FIRST_TOKEN, call->arrived_us, token->now_us);
    }
    if (choice->last_us != 0)
        policy_metrics_add(metrics, LATENCY_TOKEN, choice->last_us, token->now_us);
    choice->last_us = token->now_us;
}

static void take_token(const PolicyToken *token)
{
    PolicyCall *call = token->call;
    PolicyChoice *choice = &call->choices[token->choice];
    note_latency(choice, token);
    policy_choice_add(choice, token);
    /* on a stop string the engine tells of the end in a moment */
    if (call->ask->stream && !call->gone && (token->stop == NULL || choice->ended)) {
        g_autoptr(GString) chunk = g_string_new(NULL);
        policy_answer_chunk(choice, chunk);
        send_event(call, chunk->str);
    }
    if (call->unsent > POLICY_UNSENT_MAX && !call->gone)
        call_drop(call);
    if (!choice->ended)
        return;
    call->server->n_choices--;
    if (--call->n_open == 0)
        call_end(call);
}

static gboolean came(gpointer data)
{
    Batch *batch = data;
    guint end = MIN(batch->tokens->len, batch->next + TOKENS_A_TURN);
    for (; batch->next < end; batch->next++) {
        PolicyToken token = g_array_index(batch->tokens, PolicyToken, batch->next);
        take_token(&token);
        g_free(token.text);
        g_free(token.tops);
    }
    if (end < batch->tokens->len)
        return G_SOURCE_CONTINUE;
    g_array_unref(batch->tokens);
    g_free(batch);
    return G_SOURCE_REMOVE;
}

/* --- the main loop: begin */

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

void policy_call_start(PolicyServer *server, SoupServerMessage *msg, PolicyAsk *ask,
                       gint64 arrived_us)
{
    PolicyCall *call = call_new(server, ask);
    call->arrived_us = arrived_us;
    call->msg = g_object_ref(msg);
    server->n_choices += call->n_choices;
    g_ptr_array_add(server->calls, call);
    g_signal_connect(msg, "finished", G_CALLBACK(on_finished), call);
    call->hangup_source = g_unix_fd_add(
        listener_fd(msg), (GIOCondition)(POLLHUP | POLLERR | POLLRDHUP), on_hangup, call);
    policy_thread_post(server->thread, job_submit, call);
}
