/*
 * What the model answered, taken apart while it comes: reasoning, content, tool calls.
 *
 *     <think>\n reasoning \n</think>\n content \n<tool_calls>\n one call a line \n</tool_calls>
 *
 * Each part may be missing. Fed in any pieces the result is the same.
 */
#pragma once

#include <glib.h>

#define CHAT_CALL_BYTES_MAX (1u << 20) /* of one line; a longer one is no call */
#define CHAT_CALLS_MAX      128u       /* of one answer; the lines after are no calls */

typedef struct ChatCall {
    char *name;
    char *arguments; /* a JSON object as the model spelled it */
} ChatCall;

/* Parts come in order; those of content and reasoning in bits of valid UTF-8 if it was fed so. */
typedef struct ChatSink {
    void (*reasoning)(const char *text, gsize len, gpointer data);
    void (*content)(const char *text, gsize len, gpointer data);
    void (*call)(const ChatCall *call, gpointer data);
    gpointer data;
} ChatSink;

typedef struct ChatParser ChatParser;

/* `in_reasoning`: the prompt already opened <think>. */
ChatParser *chat_parser_new(const ChatSink *sink, gboolean in_reasoning);
void chat_parser_feed(ChatParser *parser, const char *text, gsize len);
/* No more comes: hands out what was held back. Returns the lines between the tags that were no
 * calls: not JSON, no name, arguments that are no object, or over a limit. */
guint chat_parser_end(ChatParser *parser);
void chat_parser_free(ChatParser *parser);

/* The same at once. */
typedef struct ChatReply {
    GString *reasoning, *content;
    GPtrArray *calls; /* ChatCall */
    guint n_bad_lines;
} ChatReply;

ChatReply *chat_reply_parse(const char *text, gsize len, gboolean in_reasoning);
void chat_reply_free(ChatReply *reply);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(ChatParser, chat_parser_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ChatReply, chat_reply_free)
