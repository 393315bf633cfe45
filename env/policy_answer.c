/*
 * What a call answers, as JSON text: choices whole or in chunks, usage, log-probabilities.
 *
 * Invariants:
 *   1. An answer at once is the one chunk of a stream that was flushed at the end only.
 *   2. Long lists (ids, log-probabilities) are written as text: a number costs its digits and not
 *      an object. All text is UTF-8; what a token's bytes are not becomes U+FFFD beside "bytes".
 *   3. JSON has no infinity: the least log-probability is LOGPROB_LEAST.
 *
 * Not here: when it is sent (policy_call.c).
 */
#include "env/policy_call.h"

#include "base/id.h"
#include "policy/utf8.h"

#include <string.h>

#define LOGPROB_LEAST (-9999.0)

/* --- choices */

static void said_reasoning(const char *text, gsize len, gpointer user_data)
{
    g_string_append_len(((PolicyChoice *)user_data)->reasoning, text, (gssize)len);
}

static void said_content(const char *text, gsize len, gpointer user_data)
{
    g_string_append_len(((PolicyChoice *)user_data)->text, text, (gssize)len);
}

static void said_call(const ChatCall *said, gpointer user_data)
{
    PolicyChoice *choice = user_data;
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

void policy_choice_init(PolicyCall *call, guint index)
{
    PolicyChoice *choice = &call->choices[index];
    const ChatSink sink = {said_reasoning, said_content, said_call, choice};
    *choice = (PolicyChoice){.call = call,
                             .index = index,
                             .text = g_string_new(NULL),
                             .reasoning = g_string_new(NULL),
                             .scores = g_array_new(FALSE, FALSE, sizeof(PolicyScore)),
                             .tops = g_array_new(FALSE, FALSE, sizeof(PolicyTop)),
                             .calls = json_array()};
    if (call->ask->shape == SHAPE_CHAT)
        choice->parser = chat_parser_new(&sink, FALSE);
}

void policy_choice_clear(PolicyChoice *choice)
{
    g_clear_pointer(&choice->parser, chat_parser_free);
    g_string_free(choice->text, TRUE);
    g_string_free(choice->reasoning, TRUE);
    g_array_unref(choice->scores);
    g_array_unref(choice->tops);
    json_decref(choice->calls);
}

void policy_choice_add(PolicyChoice *choice, const PolicyToken *token)
{
    if (token->score.id >= 0) {
        choice->version = choice->version != 0 ? choice->version : token->version;
        choice->version_last = token->version;
        choice->last = token->score.id;
        if (choice->call->ask->ids || choice->call->ask->logprobs)
            g_array_append_val(choice->scores, token->score);
        if (token->tops != NULL)
            g_array_append_vals(choice->tops, token->tops, choice->call->n_tops);
    }
    choice->stop = token->stop;
    if (token->text != NULL && choice->parser != NULL)
        chat_parser_feed(choice->parser, token->text, strlen(token->text));
    else if (token->text != NULL)
        g_string_append(choice->text, token->text);
    if (token->finish == FINISH_NONE)
        return;
    choice->ended = TRUE;
    choice->finish = token->finish;
    if (choice->parser != NULL)
        chat_parser_end(choice->parser);
}

/* --- text of numbers and strings */

static void add_number(GString *out, double number)
{
    char text[G_ASCII_DTOSTR_BUF_SIZE];
    g_string_append(out, g_ascii_formatd(text, sizeof text, "%.9g",
                                         number >= LOGPROB_LEAST ? number : LOGPROB_LEAST));
}

static void add_string(GString *out, const char *text, gsize len)
{
    g_autoptr(json_t) value = json_stringn(text, len);
    g_autofree char *json = json_print(value);
    g_string_append(out, json);
}

/* The token as text in quotes; returns how many characters it has. */
static glong add_token(GString *out, const Tokenizer *tokenizer, gint32 id)
{
    gsize len = 0;
    const char *bytes = tokenizer_bytes(tokenizer, id, &len);
    g_autoptr(GString) text = g_string_new(NULL);
    utf8_append(text, bytes, bytes != NULL ? len : 0, TRUE);
    add_string(out, text->str, text->len);
    return g_utf8_strlen(text->str, (gssize)text->len);
}

static void add_ids(GString *out, const GArray *ids)
{
    g_string_append_c(out, '[');
    for (guint i = 0; i < ids->len; i++)
        g_string_append_printf(out, "%s%d", i > 0 ? "," : "", g_array_index(ids, gint32, i));
    g_string_append_c(out, ']');
}

/* `object` without its closing brace: more is written after it. Takes it. */
static void add_open(GString *out, json_t *object)
{
    g_autoptr(json_t) owned = object;
    g_autofree char *json = json_print(owned);
    g_string_append_len(out, json, (gssize)strlen(json) - 1);
}

/* --- log-probabilities */

static const Tokenizer *tokenizer_of(const PolicyCall *call)
{
    return call->server->runtime.tokenizer;
}

/* Of a chat and of ids: an object for each token, not closed. */
static void add_entry(GString *out, const Tokenizer *tokenizer, gint32 id, float logprob)
{
    gsize len = 0;
    const char *bytes = tokenizer_bytes(tokenizer, id, &len);
    g_string_append(out, "{\"token\":");
    add_token(out, tokenizer, id);
    g_string_append_printf(out, ",\"id\":%d,\"logprob\":", id);
    add_number(out, (double)logprob);
    g_string_append(out, ",\"bytes\":[");
    for (gsize i = 0; bytes != NULL && i < len; i++)
        g_string_append_printf(out, "%s%u", i > 0 ? "," : "", (guchar)bytes[i]);
    g_string_append_c(out, ']');
}

static void add_entries(GString *out, const PolicyChoice *choice)
{
    const Tokenizer *tokenizer = tokenizer_of(choice->call);
    guint n_tops = choice->call->n_tops;
    g_string_append(out, "{\"content\":[");
    for (guint i = 0; i < choice->scores->len; i++) {
        const PolicyScore *score = &g_array_index(choice->scores, PolicyScore, i);
        g_string_append(out, i > 0 ? "," : "");
        add_entry(out, tokenizer, score->id, score->logprob);
        g_string_append(out, ",\"top_logprobs\":[");
        for (guint j = 0; j < n_tops; j++) {
            const PolicyTop *top = &g_array_index(choice->tops, PolicyTop, i * n_tops + j);
            g_string_append(out, j > 0 ? "," : "");
            add_entry(out, tokenizer, top->id, top->logprob);
            g_string_append_c(out, '}');
        }
        g_string_append(out, "]}");
    }
    g_string_append(out, "]}");
}

/* {"text": logprob}; of tokens that look alike the likeliest. */
static void add_top_column(GString *out, const Tokenizer *tokenizer, const PolicyTop *tops, guint n)
{
    g_autoptr(GPtrArray) seen = g_ptr_array_new_with_free_func(g_free);
    g_string_append_c(out, '{');
    for (guint j = 0; j < n; j++) {
        GString *name = g_string_new(NULL);
        add_token(name, tokenizer, tops[j].id);
        char *text = g_string_free(name, FALSE);
        gboolean again = g_ptr_array_find_with_equal_func(seen, text, g_str_equal, NULL);
        if (!again) {
            g_string_append_printf(out, "%s%s:", seen->len > 0 ? "," : "", text);
            add_number(out, (double)tops[j].logprob);
        }
        g_ptr_array_add(seen, text);
    }
    g_string_append_c(out, '}');
}

/* Legacy completions: columns instead of entries. */
static void add_columns(GString *out, PolicyChoice *choice)
{
    const Tokenizer *tokenizer = tokenizer_of(choice->call);
    guint n_tops = choice->call->n_tops;
    g_autoptr(GString) values = g_string_new(NULL), tops = g_string_new(NULL);
    g_autoptr(GString) offsets = g_string_new(NULL);
    g_string_append(out, "{\"tokens\":[");
    for (guint i = 0; i < choice->scores->len; i++) {
        const PolicyScore *score = &g_array_index(choice->scores, PolicyScore, i);
        const char *comma = i > 0 ? "," : "";
        g_string_append(out, comma);
        g_string_append_printf(offsets, "%s%ld", comma, choice->offset);
        choice->offset += add_token(out, tokenizer, score->id);
        g_string_append(values, comma);
        add_number(values, (double)score->logprob);
        g_string_append(tops, comma);
        add_top_column(tops, tokenizer, &g_array_index(choice->tops, PolicyTop, i * n_tops),
                       n_tops);
    }
    g_string_append_printf(out,
                           "],\"token_logprobs\":[%s],\"top_logprobs\":[%s],\"text_offset\":[%s]}",
                           values->str, tops->str, offsets->str);
}

/* A prompt's: null for the first token, then {"id": {logprob, rank, decoded_token}}. */
static void add_prompt_entry(GString *out, const Tokenizer *tokenizer, gint32 id, float logprob,
                             guint rank)
{
    g_string_append_printf(out, "\"%d\":{\"logprob\":", id);
    add_number(out, (double)logprob);
    g_string_append_printf(out, ",\"rank\":%u,\"decoded_token\":", rank);
    add_token(out, tokenizer, id);
    g_string_append_c(out, '}');
}

static void add_prompt_scores(GString *out, const PolicyPart *part)
{
    const Tokenizer *tokenizer = tokenizer_of(part->call);
    guint n_tops = part->call->n_tops_prompt;
    g_string_append(out, ",\"prompt_logprobs\":[null");
    for (guint i = 0; i < part->scores->len; i++) {
        const PolicyScore *score = &g_array_index(part->scores, PolicyScore, i);
        g_string_append(out, ",{");
        add_prompt_entry(out, tokenizer, score->id, score->logprob, score->rank);
        for (guint j = 0; j < n_tops; j++) {
            const PolicyTop *top = &g_array_index(part->tops, PolicyTop, i * n_tops + j);
            if (top->id == score->id)
                continue;
            g_string_append_c(out, ',');
            add_prompt_entry(out, tokenizer, top->id, top->logprob, j + 1);
        }
        g_string_append_c(out, '}');
    }
    g_string_append_c(out, ']');
}

/* --- a choice */

static const char *reason_of(const PolicyChoice *choice)
{
    static const char *const names[] = {
        [FINISH_STOP] = "stop",   [FINISH_LENGTH] = "length", [FINISH_REPETITION] = "stop",
        [FINISH_CALLER] = "stop", [FINISH_ABORTED] = "abort",
    };
    const char *name = choice->stop != NULL ? "stop" : names[choice->finish];
    return choice->n_calls > 0 && strcmp(name, "stop") == 0 ? "tool_calls" : name;
}

static json_t *stop_reason_of(const PolicyChoice *choice)
{
    if (choice->stop != NULL)
        return json_string(choice->stop);
    if (choice->finish == FINISH_STOP)
        return json_integer(choice->last);
    return choice->finish == FINISH_REPETITION ? json_string("repetition") : json_null();
}

static json_t *take_text(GString *text)
{
    json_t *value = json_stringn(text->str, text->len);
    g_string_truncate(text, 0);
    return value;
}

/* "message", or the "delta" of a stream. */
static json_t *chat_part(PolicyChoice *choice)
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
        json_object_set_new(part, "tool_calls", choice->calls);
        choice->calls = json_array();
    }
    return part;
}

/* Those members that are small. */
static json_t *choice_json(PolicyChoice *choice)
{
    const PolicyAsk *ask = choice->call->ask;
    json_t *out = json_pack("{s:i}", "index", (int)choice->index);
    if (ask->shape == SHAPE_CHAT)
        json_object_set_new(out, ask->stream ? "delta" : "message", chat_part(choice));
    else if (ask->shape == SHAPE_COMPLETION)
        json_object_set_new(out, "text", take_text(choice->text));
    json_object_set_new(out, "finish_reason",
                        choice->ended ? json_string(reason_of(choice)) : json_null());
    if (choice->ended)
        json_object_set_new(out, "stop_reason", stop_reason_of(choice));
    json_object_set_new(
        out, "weight_version",
        choice->version == choice->version_last
            ? json_integer((json_int_t)choice->version)
            : json_pack("[I, I]", (json_int_t)choice->version, (json_int_t)choice->version_last));
    return out;
}

/* What the choice has said since the last time. */
static void add_choice(GString *out, PolicyChoice *choice)
{
    const PolicyAsk *ask = choice->call->ask;
    const PolicyPart *part = &choice->call->parts[choice->index / MAX(ask->engine.n, 1)];
    add_open(out, choice_json(choice));
    g_string_append(out, ",\"logprobs\":");
    if (!ask->logprobs)
        g_string_append(out, "null");
    else if (ask->shape == SHAPE_COMPLETION)
        add_columns(out, choice);
    else
        add_entries(out, choice);
    if (ask->ids) {
        g_string_append(out, ",\"token_ids\":[");
        for (guint i = 0; i < choice->scores->len; i++)
            g_string_append_printf(out, "%s%d", i > 0 ? "," : "",
                                   g_array_index(choice->scores, PolicyScore, i).id);
        g_string_append_c(out, ']');
    }
    if (ask->shape == SHAPE_COMPLETION && !choice->begun) {
        if (ask->ids) {
            g_string_append(out, ",\"prompt_token_ids\":");
            add_ids(out, part->prompt);
        }
        if (ask->prompt_top >= 0)
            add_prompt_scores(out, part);
    }
    g_string_append_c(out, '}');
    g_array_set_size(choice->scores, 0);
    g_array_set_size(choice->tops, 0);
    choice->begun = TRUE;
}

/* --- a call */

char *policy_answer_head(const PolicyCall *call, gint64 created_s)
{
    static const char *const objects[][2] = {
        [SHAPE_COMPLETION] = {"text_completion", "text_completion"},
        [SHAPE_CHAT] = {"chat.completion", "chat.completion.chunk"},
        [SHAPE_GENERATE] = {"generation", "generation"},
    };
    g_autoptr(GString) out = g_string_new(NULL);
    add_open(out, json_pack("{s:s, s:s, s:I, s:s}", "id", call->id, "object",
                            objects[call->ask->shape][call->ask->stream], "created",
                            (json_int_t)created_s, "model", call->server->name));
    return g_strdup(out->str);
}

static void add_usage(GString *out, const PolicyCall *call)
{
    g_string_append_printf(out,
                           ",\"usage\":{\"prompt_tokens\":%" G_GUINT64_FORMAT
                           ",\"completion_tokens\":%" G_GUINT64_FORMAT
                           ",\"total_tokens\":%" G_GUINT64_FORMAT "}",
                           call->n_prompt, call->n_ids, call->n_prompt + call->n_ids);
}

/* What stands in the first object only, beside the choices. */
static void add_prompt(GString *out, PolicyCall *call)
{
    const PolicyAsk *ask = call->ask;
    if (call->prompt_said || ask->shape == SHAPE_COMPLETION)
        return;
    call->prompt_said = TRUE;
    if (ask->ids && ask->shape == SHAPE_CHAT) {
        g_string_append(out, ",\"prompt_token_ids\":");
        add_ids(out, call->parts[0].prompt);
    }
    if (ask->prompt_top >= 0)
        add_prompt_scores(out, &call->parts[0]);
}

void policy_answer_chunk(PolicyChoice *choice, GString *out)
{
    g_string_append_printf(out, "%s,\"choices\":[", choice->call->head);
    add_choice(out, choice);
    g_string_append_c(out, ']');
    add_prompt(out, choice->call);
    g_string_append(out, choice->call->ask->usage ? ",\"usage\":null}" : "}");
}

void policy_answer_usage(PolicyCall *call, GString *out)
{
    g_string_append_printf(out, "%s,\"choices\":[]", call->head);
    add_usage(out, call);
    g_string_append_c(out, '}');
}

void policy_answer_whole(PolicyCall *call, GString *out)
{
    g_string_append_printf(out, "%s,\"choices\":[", call->head);
    for (guint i = 0; i < call->n_choices; i++) {
        g_string_append(out, i > 0 ? "," : "");
        add_choice(out, &call->choices[i]);
    }
    g_string_append_c(out, ']');
    add_prompt(out, call);
    add_usage(out, call);
    g_string_append_c(out, '}');
}
