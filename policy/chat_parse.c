/*
 * The parser of answers: a state machine over text that may stop anywhere.
 *
 * Rules (MiniMax's guide to function calls, and what its template writes):
 *   1. Reasoning runs from a <think> at the very start to the first </think>; without that to the
 *      end. What it says about tools calls nothing.
 *   2. Calls are in the first <tool_calls> after it, up to the first </tool_calls>, also one inside
 *      a string; a block that is not closed counts as far as it came. Later blocks are content.
 *   3. One JSON object a line, {"name": a string, "arguments": an object}; no arguments are {}.
 *      Blank lines are nothing; other lines, and what strict JSON refuses (a key twice, integers
 *      over 64 bits), are counted and left out.
 *   4. White space around the parts is no part: one newline after <think> and one before
 *      </think>, all of it at the start of content, up to WHITE_MAX bytes before <tool_calls>.
 *
 * Invariant: only what could still turn out to be (part of) a tag or such white space is held, and
 * held text is searched once.
 *
 * Not here: writing such text (chat.c).
 */
#include "policy/chat_parse.h"

#include "base/json.h"

#include <string.h>

#define THINK      "<think>"
#define THINK_END  "</think>"
#define CALLS      "<tool_calls>"
#define CALLS_END  "</tool_calls>"
#define WHITE      " \t\r\n"
#define WHITE_MAX  256u
#define NAME_BYTES 256u

typedef enum State {
    STATE_START = 0,  /* is it <think>? */
    STATE_THINK_HEAD, /* the newline after it */
    STATE_THINK,
    STATE_CONTENT_HEAD, /* white space before content */
    STATE_CONTENT,      /* up to <tool_calls> */
    STATE_CALLS,
    STATE_REST_HEAD, /* after </tool_calls> */
    STATE_REST,
} State;

struct ChatParser {
    ChatSink sink;
    State state;
    GString *held;
    gsize searched; /* no tag starts before this byte of `held` */
    guint n_calls, n_bad;
};

ChatParser *chat_parser_new(const ChatSink *sink, gboolean in_reasoning)
{
    ChatParser *parser = g_new0(ChatParser, 1);
    parser->sink = *sink;
    parser->state = in_reasoning ? STATE_THINK_HEAD : STATE_START;
    parser->held = g_string_new(NULL);
    return parser;
}

void chat_parser_free(ChatParser *parser)
{
    if (parser == NULL)
        return;
    g_string_free(parser->held, TRUE);
    g_free(parser);
}

/* --- held text */

static void drop(ChatParser *parser, gsize n)
{
    g_string_erase(parser->held, 0, (gssize)n);
    parser->searched -= MIN(parser->searched, n);
}

static void emit(ChatParser *parser, gsize n)
{
    if (n > 0 && parser->state <= STATE_THINK)
        parser->sink.reasoning(parser->held->str, n, parser->sink.data);
    else if (n > 0)
        parser->sink.content(parser->held->str, n, parser->sink.data);
    drop(parser, n);
}

/* Where `tag` stands in the held text; FALSE: not yet. */
static gboolean find_tag(ChatParser *parser, const char *tag, gsize *ret_at)
{
    const GString *held = parser->held;
    gsize tag_len = strlen(tag);
    const char *at =
        memmem(held->str + parser->searched, held->len - parser->searched, tag, tag_len);
    if (at == NULL) {
        parser->searched = MAX(parser->searched, held->len - MIN(held->len, tag_len - 1));
        return FALSE;
    }
    *ret_at = (gsize)(at - held->str);
    return TRUE;
}

/* Bytes at the end of the held text that may begin `tag`. */
static gsize tag_head(const GString *held, const char *tag)
{
    for (gsize n = MIN(held->len, strlen(tag) - 1); n > 0; n--)
        if (memcmp(held->str + held->len - n, tag, n) == 0)
            return n;
    return 0;
}

/* Bytes of white space that end at `end`, at most WHITE_MAX. */
static gsize white_before(const GString *held, gsize end)
{
    gsize n = 0;
    while (n < end && n < WHITE_MAX && held->str[end - n - 1] != '\0' &&
           strchr(WHITE, held->str[end - n - 1]) != NULL)
        n++;
    return n;
}

static gsize white_at_start(const GString *held)
{
    return strspn(held->str, WHITE);
}

/* --- calls */

static gsize skip_string(const char *text, gsize at)
{
    for (at++; text[at] != '"'; at++)
        at += text[at] == '\\' ? 1 : 0;
    return at + 1;
}

/* End of the value at `at`, in text that is valid JSON. */
static gsize skip_value(const char *text, gsize at)
{
    guint depth = 0;
    do {
        if (text[at] == '"') {
            at = skip_string(text, at);
            continue;
        }
        depth += strchr("{[", text[at]) != NULL ? 1 : 0;
        depth -= strchr("}]", text[at]) != NULL ? 1 : 0;
        at++;
    } while (depth > 0 || (text[at] != ',' && text[at] != '}'));
    return at;
}

/* The value of the member "arguments" as it is spelled; `line` is a valid JSON object. NULL: the
 * member is not there, or its name is spelled with escapes. */
static char *spelled_arguments(const char *line)
{
    static const char key[] = "\"arguments\"";
    for (gsize at = strcspn(line, "{") + 1; line[at] != '\0' && line[at] != '}';) {
        at += strspn(line + at, WHITE ",");
        gsize name = at;
        at = skip_string(line, at);
        gsize name_len = at - name;
        at += strspn(line + at, WHITE ":");
        gsize end = skip_value(line, at);
        if (name_len == strlen(key) && memcmp(line + name, key, name_len) == 0) {
            g_autofree char *value = g_strndup(line + at, end - at);
            return g_strdup(g_strchomp(value));
        }
        at = end + strspn(line + end, WHITE ",");
    }
    return NULL;
}

static gboolean call_read(const char *line, gsize len, ChatCall *ret_call)
{
    g_autoptr(json_t) root = len <= CHAT_CALL_BYTES_MAX ? json_parse(line, len, NULL) : NULL;
    const json_t *arguments = json_object_get(root, "arguments");
    const json_t *name = json_object_get(root, "name");
    gsize name_len = json_string_length(name);
    if (name_len == 0 || name_len > NAME_BYTES || (arguments != NULL && !json_is_object(arguments)))
        return FALSE;
    for (gsize i = 0; i < name_len; i++)
        if (g_ascii_iscntrl(json_string_value(name)[i]))
            return FALSE;
    g_autofree char *text = g_strndup(line, len);
    ret_call->arguments = arguments != NULL ? spelled_arguments(text) : g_strdup("{}");
    if (ret_call->arguments == NULL)
        ret_call->arguments = json_dumps(arguments, 0);
    ret_call->name = g_strdup(json_string_value(name));
    return TRUE;
}

static void take_line(ChatParser *parser, const char *line, gsize len)
{
    ChatCall call = {0};
    while (len > 0 && strchr(WHITE, line[len - 1]) != NULL && line[len - 1] != '\0')
        len--;
    if (len == 0)
        return;
    if (parser->n_calls >= CHAT_CALLS_MAX || !call_read(line, len, &call)) {
        parser->n_bad++;
        return;
    }
    parser->n_calls++;
    parser->sink.call(&call, parser->sink.data);
    g_free(call.name);
    g_free(call.arguments);
}

/* Takes the lines that end before `end`; with `all` also the last one without a newline. */
static void take_lines(ChatParser *parser, gsize end, gboolean all)
{
    const char *text = parser->held->str;
    gsize from = 0;
    for (;;) {
        const char *stop = memchr(text + from, '\n', end - from);
        if (stop == NULL)
            break;
        take_line(parser, text + from, (gsize)(stop - text) - from);
        from = (gsize)(stop - text) + 1;
    }
    if (all)
        take_line(parser, text + from, end - from);
    drop(parser, all ? end : from);
}

/* --- states: each does what it can, and returns TRUE when it moved on to another */

static gboolean move(ChatParser *parser, State state, gsize n_dropped)
{
    drop(parser, n_dropped);
    parser->searched = 0;
    parser->state = state;
    return TRUE;
}

static gboolean do_start(ChatParser *parser)
{
    drop(parser, white_at_start(parser->held));
    gsize same = MIN(parser->held->len, strlen(THINK));
    if (memcmp(parser->held->str, THINK, same) != 0)
        return move(parser, STATE_CONTENT_HEAD, 0);
    return same == strlen(THINK) && move(parser, STATE_THINK_HEAD, same);
}

static gboolean do_think_head(ChatParser *parser)
{
    return parser->held->len > 0 && move(parser, STATE_THINK, parser->held->str[0] == '\n' ? 1 : 0);
}

static gboolean do_think(ChatParser *parser)
{
    gsize at;
    if (find_tag(parser, THINK_END, &at)) {
        gsize newline = at > 0 && parser->held->str[at - 1] == '\n' ? 1 : 0;
        emit(parser, at - newline);
        return move(parser, STATE_CONTENT_HEAD, newline + strlen(THINK_END));
    }
    emit(parser, parser->held->len - MAX(tag_head(parser->held, THINK_END),
                                         tag_head(parser->held, "\n" THINK_END)));
    return FALSE;
}

static gboolean do_content(ChatParser *parser)
{
    gsize at;
    if (find_tag(parser, CALLS, &at)) {
        gsize white = white_before(parser->held, at);
        emit(parser, at - white);
        return move(parser, STATE_CALLS, white + strlen(CALLS));
    }
    gsize end = parser->held->len - tag_head(parser->held, CALLS);
    emit(parser, end - white_before(parser->held, end));
    return FALSE;
}

static gboolean do_calls(ChatParser *parser)
{
    const GString *held = parser->held;
    gsize at, fresh = parser->searched; /* there is no newline before */
    if (find_tag(parser, CALLS_END, &at)) {
        take_lines(parser, at, TRUE);
        return move(parser, STATE_REST_HEAD, strlen(CALLS_END));
    }
    if (memchr(held->str + fresh, '\n', held->len - fresh) != NULL)
        take_lines(parser, held->len, FALSE);
    return FALSE;
}

static gboolean skip_white(ChatParser *parser, State next)
{
    drop(parser, white_at_start(parser->held));
    return parser->held->len > 0 && move(parser, next, 0);
}

static gboolean step(ChatParser *parser)
{
    switch (parser->state) {
    case STATE_START:
        return do_start(parser);
    case STATE_THINK_HEAD:
        return do_think_head(parser);
    case STATE_THINK:
        return do_think(parser);
    case STATE_CONTENT_HEAD:
        return skip_white(parser, STATE_CONTENT);
    case STATE_CONTENT:
        return do_content(parser);
    case STATE_CALLS:
        return do_calls(parser);
    case STATE_REST_HEAD:
        return skip_white(parser, STATE_REST);
    case STATE_REST:
    default:
        emit(parser, parser->held->len);
        return FALSE;
    }
}

void chat_parser_feed(ChatParser *parser, const char *text, gsize len)
{
    g_string_append_len(parser->held, text, (gssize)len);
    while (step(parser)) {
    }
}

guint chat_parser_end(ChatParser *parser)
{
    if (parser->state == STATE_CALLS)
        take_lines(parser, parser->held->len, TRUE);
    else if (parser->state == STATE_START)
        move(parser, STATE_CONTENT, 0);
    emit(parser, parser->held->len);
    return parser->n_bad;
}

/* --- at once */

static void keep_reasoning(const char *text, gsize len, gpointer data)
{
    g_string_append_len(((ChatReply *)data)->reasoning, text, (gssize)len);
}

static void keep_content(const char *text, gsize len, gpointer data)
{
    g_string_append_len(((ChatReply *)data)->content, text, (gssize)len);
}

static void keep_call(const ChatCall *call, gpointer data)
{
    ChatCall *kept = g_new(ChatCall, 1);
    *kept = (ChatCall){.name = g_strdup(call->name), .arguments = g_strdup(call->arguments)};
    g_ptr_array_add(((ChatReply *)data)->calls, kept);
}

static void call_free(gpointer ptr)
{
    ChatCall *call = ptr;
    g_free(call->name);
    g_free(call->arguments);
    g_free(call);
}

ChatReply *chat_reply_parse(const char *text, gsize len, gboolean in_reasoning)
{
    ChatReply *reply = g_new0(ChatReply, 1);
    reply->reasoning = g_string_new(NULL);
    reply->content = g_string_new(NULL);
    reply->calls = g_ptr_array_new_with_free_func(call_free);
    const ChatSink sink = {keep_reasoning, keep_content, keep_call, reply};
    g_autoptr(ChatParser) parser = chat_parser_new(&sink, in_reasoning);
    chat_parser_feed(parser, text, len);
    reply->n_bad_lines = chat_parser_end(parser);
    return reply;
}

void chat_reply_free(ChatReply *reply)
{
    if (reply == NULL)
        return;
    g_string_free(reply->reasoning, TRUE);
    g_string_free(reply->content, TRUE);
    g_ptr_array_unref(reply->calls);
    g_free(reply);
}
