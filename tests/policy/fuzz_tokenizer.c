/*
 * What strangers may write for the tokenizer: text, tokenizer files, chats, answers of a model.
 *
 * The first byte of an input says which of these the rest is.
 */
#include "tests/policy/policy_lab.h"
#include "tests/sandbox/fuzz.h"

#include "policy/chat.h"
#include "policy/chat_parse.h"
#include "policy/tokenizer_build.h"
#include "policy/utf8.h"

#include <string.h>

#define SLOW_MAX 64 /* bytes that are encoded the slow way as well */

static Tokenizer *shared(void)
{
    static Tokenizer *tokenizer;
    if (tokenizer == NULL)
        tokenizer = lab_tokenizer(500);
    return tokenizer;
}

static const gint32 *raw(const GArray *ids)
{
    return (const gint32 *)(gconstpointer)ids->data;
}

/* Bytes come back, no plain id is special, and text by bits is the whole text. */
static void check_text(const Tokenizer *tokenizer, const char *text, gsize len)
{
    g_autoptr(GArray) ids = tokens_new(), trusted = tokens_new();
    g_autoptr(GString) back = g_string_new(NULL), whole = g_string_new(NULL);
    g_autoptr(GString) bits = g_string_new(NULL);
    g_assert_true(tokenizer_encode(tokenizer, text, len, TOKENS_PLAIN, ids, NULL));
    g_assert_true(tokenizer_decode(tokenizer, raw(ids), ids->len, TOKENS_PLAIN, back, NULL));
    lab_same(back->str, back->len, text, len);
    Detokenizer detokenizer = {.tokenizer = tokenizer};
    for (guint i = 0; i < ids->len; i++) {
        g_assert_false(tokenizer_is_special(tokenizer, raw(ids)[i]));
        g_assert_true(detokenizer_add(&detokenizer, raw(ids)[i], bits));
    }
    detokenizer_end(&detokenizer, bits);
    utf8_append(whole, text, len, TRUE);
    lab_same(bits->str, bits->len, whole->str, whole->len);

    g_string_truncate(back, 0);
    g_assert_true(tokenizer_encode(tokenizer, text, len, TOKENS_SPECIALS, trusted, NULL));
    g_assert_true(
        tokenizer_decode(tokenizer, raw(trusted), trusted->len, TOKENS_SPECIALS, back, NULL));
    lab_same(back->str, back->len, text, len);
}

static void feed_text(const char *text, gsize len)
{
    check_text(shared(), text, len);
    if (len > SLOW_MAX)
        return;
    g_autoptr(GArray) fast = tokens_new(), slow = tokens_new();
    g_assert_true(tokenizer_encode(shared(), text, len, TOKENS_PLAIN, fast, NULL));
    lab_slow_encode(shared(), text, len, slow);
    lab_same(fast->data, fast->len * sizeof(gint32), slow->data, slow->len * sizeof(gint32));
}

/* A file that is read gives a tokenizer with all the promises. */
static void feed_file(Tokenizer *read, GError *error)
{
    g_autoptr(Tokenizer) tokenizer = read;
    g_autoptr(GError) why = error;
    g_assert_true((tokenizer == NULL) == (why != NULL));
    static const char text[] = "the tests, a b c\n  世界 \xff 1234 " TOKEN_EOS;
    if (tokenizer != NULL)
        check_text(tokenizer, text, sizeof text - 1);
}

static void feed_json(const char *text, gsize len)
{
    GError *error = NULL;
    Tokenizer *tokenizer = tokenizer_from_json(text, len, &error);
    feed_file(tokenizer, error);
}

static void feed_merges(const char *text, gsize len)
{
    GError *error = NULL;
    Tokenizer *tokenizer = tokenizer_from_merges(text, len, NULL, &error);
    feed_file(tokenizer, error);
}

/* {"messages", "tools"}: the marks in the ids are those of the layout. */
static void feed_chat(const char *text, gsize len)
{
    g_autoptr(json_t) root = json_parse(text, len, NULL);
    const json_t *messages = json_object_get(root, "messages");
    const json_t *tools = json_object_get(root, "tools");
    g_autoptr(GArray) ids = tokens_new();
    g_autoptr(GError) error = NULL;
    if (!chat_encode(chat_style("official"), shared(), messages, tools, CHAT_GENERATE, ids,
                     &error)) {
        g_assert_nonnull(error);
        return;
    }
    gint32 bos = tokenizer_special(shared(), TOKEN_BOS),
           eos = tokenizer_special(shared(), TOKEN_EOS);
    gsize opened = 0, closed = 0;
    for (guint i = 0; i < ids->len; i++) {
        opened += raw(ids)[i] == bos ? 1 : 0;
        closed += raw(ids)[i] == eos ? 1 : 0;
        g_assert_true(closed <= opened && opened <= closed + 1);
    }
    g_assert_cmpuint(opened, ==, closed + 1);
    g_assert_cmpuint(opened, <=, json_array_size(messages) + 3);
}

typedef struct Heard {
    GString *text[2]; /* reasoning, content */
    GString *calls;
} Heard;

static void hear_reasoning(const char *text, gsize len, gpointer data)
{
    g_string_append_len(((Heard *)data)->text[0], text, (gssize)len);
}

static void hear_content(const char *text, gsize len, gpointer data)
{
    g_string_append_len(((Heard *)data)->text[1], text, (gssize)len);
}

static void hear_call(const ChatCall *call, gpointer data)
{
    g_autoptr(json_t) arguments = json_parse(call->arguments, strlen(call->arguments), NULL);
    g_assert_true(json_is_object(arguments));
    g_string_append_printf(((Heard *)data)->calls, "%s %s;", call->name, call->arguments);
}

/* The first byte: whether reasoning is open, and how long the pieces are. */
static void feed_answer(const char *text, gsize len)
{
    if (len == 0)
        return;
    gboolean in_reasoning = text[0] & 1;
    gsize step = 1 + ((guint8)text[0] >> 1) % 40;
    Heard heard = {{g_string_new(NULL), g_string_new(NULL)}, g_string_new(NULL)};
    const ChatSink sink = {hear_reasoning, hear_content, hear_call, &heard};
    g_autoptr(ChatParser) parser = chat_parser_new(&sink, in_reasoning);
    for (gsize at = 1; at < len; at += step)
        chat_parser_feed(parser, text + at, MIN(step, len - at));
    guint n_bad = chat_parser_end(parser);

    g_autoptr(ChatReply) reply = chat_reply_parse(text + 1, len - 1, in_reasoning);
    g_autoptr(GString) calls = g_string_new(NULL);
    for (guint i = 0; i < reply->calls->len; i++) {
        const ChatCall *call = reply->calls->pdata[i];
        g_string_append_printf(calls, "%s %s;", call->name, call->arguments);
    }
    lab_same(heard.text[0]->str, heard.text[0]->len, reply->reasoning->str, reply->reasoning->len);
    lab_same(heard.text[1]->str, heard.text[1]->len, reply->content->str, reply->content->len);
    g_assert_cmpstr(heard.calls->str, ==, calls->str);
    g_assert_cmpuint(n_bad, ==, reply->n_bad_lines);
    g_string_free(heard.text[0], TRUE);
    g_string_free(heard.text[1], TRUE);
    g_string_free(heard.calls, TRUE);
}

int LLVMFuzzerTestOneInput(const guint8 *data, gsize len)
{
    static void (*const feeds[])(const char *text, gsize len) = {feed_text, feed_json, feed_merges,
                                                                 feed_chat, feed_answer};
    if (len > 0)
        feeds[data[0] % G_N_ELEMENTS(feeds)]((const char *)data + 1, len - 1);
    return 0;
}

static void add_seed(GPtrArray *seeds, char kind, const char *text, gsize len)
{
    g_autoptr(GByteArray) seed = g_byte_array_new();
    g_byte_array_append(seed, (const guint8 *)&kind, 1);
    g_byte_array_append(seed, (const guint8 *)text, (guint)len);
    g_ptr_array_add(seeds, g_byte_array_free_to_bytes(g_steal_pointer(&seed)));
}

static void add_files(GPtrArray *seeds)
{
    g_autofree char *dir = lab_dir();
    g_autoptr(Tokenizer) tokenizer = lab_tokenizer(270);
    static const char *const names[] = {"tokenizer.json", "merges.txt"};
    g_assert_true(tokenizer_save(tokenizer, dir, NULL));
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = g_build_filename(dir, names[i], NULL), *text = NULL;
        gsize len;
        g_assert_true(g_file_get_contents(path, &text, &len, NULL));
        add_seed(seeds, (char)(1 + i), text, len);
    }
    lab_dir_remove(dir);
}

void fuzz_seeds(GPtrArray *seeds)
{
    static const struct {
        char kind;
        const char *text;
    } rows[] = {
        {0, "Hello's 1234!!!\n世界 \xff\xe4 //\n  x"},
        {0, TOKEN_BOS "system\n" TOKEN_EOS},
        {3,
         "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":"
         "[{\"type\":\"text\",\"text\":\"q " TOKEN_EOS "\"}]},{\"role\":\"assistant\","
         "\"reasoning_content\":\"r\",\"tool_calls\":[{\"id\":\"c\",\"function\":{\"name\":\"f\","
         "\"arguments\":\"{}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"c\",\"content\":\"R\"},"
         "{\"role\":\"tool\",\"content\":[{\"name\":\"f\",\"text\":\"R\"}]}],"
         "\"tools\":[{\"name\":\"f\"},{\"function\":{\"name\":\"g\"}}]}"},
        {4,
         "\x04<think>\nHm.\n</think>\nSo\n<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"a\": "
         "[\"}\\\"\", 1]}}\n\nno\n{\"name\": \"g\"}\n</tool_calls>\nrest"},
        {4, "\x01more</think>  <tool_calls>{\"arguments\":{},\"name\":\"f\"}"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++)
        add_seed(seeds, rows[i].kind, rows[i].text, strlen(rows[i].text));
    add_files(seeds);
}
