/*
 * M1's chat template.
 *
 * Invariants:
 *   1. The layout is one text and the marks in it; only the code below makes a mark.
 *   2. With one text part a message and the quirks of the published template (it reads only the
 *      first part, and no plain strings) the text is that template's, byte for byte. Real numbers
 *      in tools are the exception: 15 digits, not Python's shortest form.
 *
 * Not here: reading what the model answers (chat_parse.c).
 */
#include "policy/chat.h"

#include "base/error.h"

#include <string.h>

#define TOOLS_HEAD "system tool_setting=tools\nYou are provided with these tools:\n<tools>\n"
#define TOOLS_TAIL                                                                                 \
    "</tools>\n\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML "    \
    "tags, and provide tool-name and json-object of arguments, following the format below:\n"      \
    "<tool_calls>\n"
#define TOOLS_END   "\n...\n</tool_calls>"
#define REAL_DIGITS 15

static const ChatStyle styles[] = {
    {.name = "official",
     .ai_setting = "assistant",
     .ai_name = "assistant",
     .user_name = "user",
     .call_form = "{name: <tool-name-1>, arguments: <args-json-object-1>}"},
    {.name = "vllm",
     .ai_setting = "MiniMax AI",
     .ai_name = "MiniMax AI",
     .user_name = "user",
     .default_system = "You are a helpful assistant created by Minimax based on MiniMax-M1 model.",
     .call_form = "{\"name\": <tool-name>, \"arguments\": <args-json-object>}",
     .trims = TRUE},
};

const ChatStyle *chat_style(const char *name)
{
    for (gsize i = 0; i < G_N_ELEMENTS(styles); i++)
        if (strcmp(styles[i].name, name) == 0)
            return &styles[i];
    return NULL;
}

typedef struct Mark {
    gsize at; /* before this byte of the text */
    gint32 id;
    const char *text;
} Mark;

typedef struct Layout {
    const ChatStyle *style;
    const Tokenizer *tokenizer;
    const json_t *messages;
    GString *text;
    GArray *marks;
} Layout;

static void add_mark(Layout *layout, const char *text, gint32 id)
{
    Mark mark = {.at = layout->text->len, .id = id, .text = text};
    g_array_append_val(layout->marks, mark);
}

static void begin_turn(Layout *layout)
{
    add_mark(layout, TOKEN_BOS, tokenizer_special(layout->tokenizer, TOKEN_BOS));
}

static void end_turn(Layout *layout)
{
    add_mark(layout, TOKEN_EOS, tokenizer_special(layout->tokenizer, TOKEN_EOS));
    g_string_append_c(layout->text, '\n');
}

/* --- parts of messages */

static gboolean field_error(GError **error, gsize i, const char *field, const char *why)
{
    return error_set(error, ASSAY_ERROR_INPUT, "messages[%" G_GSIZE_FORMAT "].%s: %s", i, field,
                     why);
}

static void add_text(const Layout *layout, GString *out, const json_t *text)
{
    const char *from = json_string_value(text), *end = from + json_string_length(text);
    while (layout->style->trims && from < end && g_unichar_isspace(g_utf8_get_char(from)))
        from += g_utf8_skip[(guint8)*from];
    while (layout->style->trims && from < end &&
           g_unichar_isspace(g_utf8_get_char(g_utf8_prev_char(end))))
        end = g_utf8_prev_char(end);
    g_string_append_len(out, from, end - from);
}

/* The text of a part; NULL: it is no text. */
static const json_t *part_text(const json_t *part)
{
    const char *type = json_string_value(json_object_get(part, "type"));
    const json_t *text = json_object_get(part, "text");
    return (type == NULL || strcmp(type, "text") == 0) && json_is_string(text) ? text : NULL;
}

/* Appends the text of message `i`; absent or null is "". */
static gboolean add_content(const Layout *layout, gsize i, GString *out, GError **error)
{
    const json_t *content = json_object_get(json_array_get(layout->messages, i), "content");
    gsize k;
    const json_t *part;
    if (content == NULL || json_is_null(content))
        return TRUE;
    if (json_is_string(content)) {
        add_text(layout, out, content);
        return TRUE;
    }
    if (!json_is_array(content))
        return field_error(error, i, "content", "neither a string nor a list of parts");
    json_array_foreach(content, k, part)
    {
        const json_t *text = part_text(part);
        if (text == NULL)
            return field_error(error, i, "content", "a part that is not text");
        add_text(layout, out, text);
    }
    return TRUE;
}

static gboolean name_is_good(const char *name)
{
    if (name == NULL || name[0] == '\0' || strlen(name) > CHAT_NAME_BYTES)
        return FALSE;
    for (const char *p = name; *p != '\0'; p += g_utf8_skip[(guint8)*p])
        if (g_unichar_iscntrl(g_utf8_get_char(p)))
            return FALSE;
    return TRUE;
}

/* {"name": ..., "arguments": ...} as the model writes it; the arguments keep their spelling. */
static gboolean add_call(const json_t *call, GString *out)
{
    const json_t *function = json_object_get(call, "function");
    const char *name = json_string_value(json_object_get(function, "name"));
    const json_t *arguments = json_object_get(function, "arguments");
    const char *spelled = json_string_value(arguments);
    g_autoptr(json_t) parsed =
        spelled != NULL ? json_parse(spelled, json_string_length(arguments), NULL) : NULL;
    g_autofree char *dumped = json_is_object(arguments) ? json_dumps(arguments, 0) : NULL;
    if (!name_is_good(name) || (!json_is_object(parsed) && dumped == NULL) ||
        (spelled != NULL && strchr(spelled, '\n') != NULL))
        return FALSE;
    g_autoptr(json_t) value = json_string(name);
    g_autofree char *quoted = json_dumps(value, JSON_ENCODE_ANY);
    g_string_append_printf(out, "{\"name\": %s, \"arguments\": %s}\n", quoted,
                           dumped != NULL ? dumped : spelled);
    return TRUE;
}

static gboolean add_calls(const Layout *layout, gsize i, GString *out, GError **error)
{
    const json_t *calls = json_object_get(json_array_get(layout->messages, i), "tool_calls");
    gsize k;
    const json_t *call;
    if (calls == NULL || json_is_null(calls) ||
        (json_is_array(calls) && json_array_size(calls) == 0))
        return TRUE;
    if (!json_is_array(calls))
        return field_error(error, i, "tool_calls", "not a list");
    if (out->len > 0 && out->str[out->len - 1] != '\n')
        g_string_append_c(out, '\n');
    g_string_append(out, "<tool_calls>\n");
    json_array_foreach(calls, k, call)
    {
        if (!add_call(call, out))
            return field_error(error, i, "tool_calls",
                               "not {function: {name, arguments: an object on one line}}");
    }
    g_string_append(out, "</tool_calls>");
    return TRUE;
}

static gboolean add_assistant(const Layout *layout, gsize i, GError **error)
{
    const json_t *message = json_array_get(layout->messages, i);
    const char *reasoning = json_opt_str(message, "reasoning_content", "", NULL);
    g_autoptr(GString) said = g_string_new(NULL);
    if (reasoning == NULL)
        return field_error(error, i, "reasoning_content", "not a string");
    if (!add_content(layout, i, said, error) || !add_calls(layout, i, said, error))
        return FALSE;
    if (reasoning[0] != '\0')
        g_string_append_printf(layout->text, "<think>\n%s\n</think>\n", reasoning);
    g_string_append_len(layout->text, said->str, (gssize)said->len);
    return TRUE;
}

/* --- results of tools */

/* The name of the tool whose call before message `i` had this id. */
static const char *name_of_call(const Layout *layout, gsize i, const char *id)
{
    while (id != NULL && i-- > 0) {
        gsize k;
        const json_t *call;
        json_array_foreach(json_object_get(json_array_get(layout->messages, i), "tool_calls"), k,
                           call)
        {
            if (g_strcmp0(json_string_value(json_object_get(call, "id")), id) == 0)
                return json_string_value(
                    json_object_get(json_object_get(call, "function"), "name"));
        }
    }
    return NULL;
}

static gboolean add_result(Layout *layout, gsize i, const json_t *part, const json_t *text,
                           GError **error)
{
    const json_t *message = json_array_get(layout->messages, i);
    const char *name = json_string_value(json_object_get(part, "name"));
    if (name == NULL)
        name = json_string_value(json_object_get(message, "name"));
    if (name == NULL)
        name = name_of_call(layout, i, json_string_value(json_object_get(message, "tool_call_id")));
    if (name == NULL)
        return field_error(error, i, "name", "missing, and tool_call_id names no earlier call");
    if (!name_is_good(name))
        return field_error(error, i, "name", "empty, too long or with control characters");
    g_string_append_printf(layout->text, "tool name: %s\ntool result: ", name);
    g_string_append_len(layout->text, json_string_value(text), (gssize)json_string_length(text));
    g_string_append(layout->text, "\n\n");
    return TRUE;
}

static gboolean add_tool_message(Layout *layout, gsize i, GError **error)
{
    const json_t *content = json_object_get(json_array_get(layout->messages, i), "content");
    gsize k;
    const json_t *part;
    if (json_is_string(content))
        return add_result(layout, i, NULL, content, error);
    if (!json_is_array(content))
        return field_error(error, i, "content", "neither a string nor a list of parts");
    json_array_foreach(content, k, part)
    {
        const json_t *text = part_text(part);
        if (text == NULL)
            return field_error(error, i, "content", "a part that is not text");
        if (!add_result(layout, i, part, text, error))
            return FALSE;
    }
    return TRUE;
}

/* --- the whole */

typedef enum Role { ROLE_NONE = 0, ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL } Role;

static Role role_of(const Layout *layout, gsize i)
{
    static const struct {
        const char *word;
        Role role;
    } rows[] = {{"system", ROLE_SYSTEM},
                {"developer", ROLE_SYSTEM},
                {"user", ROLE_USER},
                {"assistant", ROLE_ASSISTANT},
                {"tool", ROLE_TOOL}};
    const json_t *message = json_array_get(layout->messages, i);
    const char *word = json_string_value(json_object_get(message, "role"));
    for (gsize k = 0; word != NULL && k < G_N_ELEMENTS(rows); k++)
        if (strcmp(rows[k].word, word) == 0)
            return rows[k].role;
    return ROLE_NONE;
}

static gboolean lay_system(Layout *layout, GError **error)
{
    g_autoptr(GString) system = g_string_new(NULL);
    for (gsize i = 0; i < json_array_size(layout->messages); i++)
        if (role_of(layout, i) == ROLE_SYSTEM && !add_content(layout, i, system, error))
            return FALSE;
    if (system->len == 0 && layout->style->default_system != NULL)
        g_string_append(system, layout->style->default_system);
    if (system->len == 0)
        return TRUE;
    begin_turn(layout);
    g_string_append_printf(layout->text, "system ai_setting=%s\n", layout->style->ai_setting);
    g_string_append_len(layout->text, system->str, (gssize)system->len);
    end_turn(layout);
    return TRUE;
}

static gboolean lay_tools(Layout *layout, const json_t *tools, GError **error)
{
    gsize i;
    const json_t *tool;
    if (tools == NULL || json_is_null(tools) ||
        (json_is_array(tools) && json_array_size(tools) == 0))
        return TRUE;
    if (!json_is_array(tools))
        return error_set(error, ASSAY_ERROR_INPUT, "tools: not a list");
    begin_turn(layout);
    g_string_append(layout->text, TOOLS_HEAD);
    json_array_foreach(tools, i, tool)
    {
        const json_t *function = json_object_get(tool, "function");
        if (!json_is_object(tool))
            return error_set(error, ASSAY_ERROR_INPUT, "tools[%" G_GSIZE_FORMAT "]: not an object",
                             i);
        g_autofree char *text = json_dumps(json_is_object(function) ? function : tool,
                                           JSON_REAL_PRECISION(REAL_DIGITS));
        g_string_append_printf(layout->text, "%s\n", text);
    }
    g_string_append(layout->text, TOOLS_TAIL);
    g_string_append(layout->text, layout->style->call_form);
    g_string_append(layout->text, TOOLS_END);
    end_turn(layout);
    return TRUE;
}

/* One message; results of tools share a turn with the neighbours that are results as well. */
static gboolean lay_message(Layout *layout, gsize i, gboolean open, GError **error)
{
    Role role = role_of(layout, i);
    if (role == ROLE_NONE)
        return field_error(error, i, "role", "not system, developer, user, assistant or tool");
    if (role == ROLE_SYSTEM)
        return TRUE;
    gboolean joined = role == ROLE_TOOL && i > 0 && role_of(layout, i - 1) == ROLE_TOOL;
    gboolean joins = role == ROLE_TOOL && i + 1 < json_array_size(layout->messages) &&
                     role_of(layout, i + 1) == ROLE_TOOL;
    if (!joined)
        begin_turn(layout);
    if (role == ROLE_USER)
        g_string_append_printf(layout->text, "user name=%s\n", layout->style->user_name);
    else if (role == ROLE_ASSISTANT)
        g_string_append_printf(layout->text, "ai name=%s\n", layout->style->ai_name);
    else if (!joined)
        g_string_append(layout->text, "tool name=tools\n");

    gboolean good = role == ROLE_USER        ? add_content(layout, i, layout->text, error)
                    : role == ROLE_ASSISTANT ? add_assistant(layout, i, error)
                                             : add_tool_message(layout, i, error);
    if (good && !joins && !open)
        end_turn(layout);
    return good;
}

static gboolean lay_document_start(Layout *layout, GError **error)
{
    gint32 id = layout->style->begin_of_document;
    if (id >= (gint32)TOKENIZER_VOCAB_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "begin_of_document: %d is no token id", id);
    if (id == CHAT_BOD_DEFAULT)
        id = tokenizer_special(layout->tokenizer, TOKEN_BOD);
    if (id == CHAT_BOD_AS_TEXT)
        g_string_append(layout->text, TOKEN_BOD);
    else if (id >= 0)
        add_mark(layout, TOKEN_BOD, id);
    return TRUE;
}

static gboolean lay_out(Layout *layout, const json_t *tools, guint flags, GError **error)
{
    gsize n = json_array_size(layout->messages);
    if (tokenizer_special(layout->tokenizer, TOKEN_BOS) < 0 ||
        tokenizer_special(layout->tokenizer, TOKEN_EOS) < 0)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "tokenizer: it has no %s and %s",
                         TOKEN_BOS, TOKEN_EOS);
    if (n == 0 || n > CHAT_MESSAGES_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "messages: not a list of 1 to %u",
                         CHAT_MESSAGES_MAX);
    if (flags & CHAT_CONTINUE &&
        (flags & CHAT_GENERATE || role_of(layout, n - 1) != ROLE_ASSISTANT))
        return error_set(error, ASSAY_ERROR_INPUT, "messages: the last is no assistant's to go on");
    if (!lay_document_start(layout, error) || !lay_system(layout, error) ||
        !lay_tools(layout, tools, error))
        return FALSE;
    for (gsize i = 0; i < n; i++)
        if (!lay_message(layout, i, flags & CHAT_CONTINUE && i + 1 == n, error))
            return FALSE;
    if (flags & CHAT_GENERATE) {
        begin_turn(layout);
        g_string_append_printf(layout->text, "ai name=%s\n", layout->style->ai_name);
    }
    return layout->text->len <= TOKENIZER_TEXT_BYTES_MAX ||
           error_set(error, ASSAY_ERROR_LIMIT, "messages: more than %u bytes of text",
                     TOKENIZER_TEXT_BYTES_MAX);
}

gboolean chat_encode(const ChatStyle *style, const Tokenizer *tokenizer, const json_t *messages,
                     const json_t *tools, guint flags, GArray *ids, GError **error)
{
    g_autoptr(GString) text = g_string_new(NULL);
    g_autoptr(GArray) marks = g_array_new(FALSE, FALSE, sizeof(Mark));
    Layout layout = {style, tokenizer, messages, text, marks};
    if (!lay_out(&layout, tools, flags, error))
        return FALSE;
    gsize from = 0;
    guint n_before = ids->len;
    gboolean good = TRUE;
    for (guint i = 0; good && i <= marks->len; i++) {
        const Mark *mark = i < marks->len ? &g_array_index(marks, Mark, i) : NULL;
        gsize end = mark != NULL ? mark->at : text->len;
        good = tokenizer_encode(tokenizer, text->str + from, end - from, TOKENS_PLAIN, ids, error);
        if (mark != NULL)
            g_array_append_val(ids, mark->id);
        from = end;
    }
    if (!good)
        g_array_set_size(ids, n_before);
    return good;
}

char *chat_text(const ChatStyle *style, const Tokenizer *tokenizer, const json_t *messages,
                const json_t *tools, guint flags, GError **error)
{
    g_autoptr(GString) text = g_string_new(NULL), out = g_string_new(NULL);
    g_autoptr(GArray) marks = g_array_new(FALSE, FALSE, sizeof(Mark));
    Layout layout = {style, tokenizer, messages, text, marks};
    if (!lay_out(&layout, tools, flags, error))
        return NULL;
    gsize from = 0;
    for (guint i = 0; i < marks->len; i++) {
        const Mark *mark = &g_array_index(marks, Mark, i);
        g_string_append_len(out, text->str + from, (gssize)(mark->at - from));
        g_string_append(out, mark->text);
        from = mark->at;
    }
    g_string_append_len(out, text->str + from, (gssize)(text->len - from));
    return g_string_free(g_steal_pointer(&out), FALSE);
}
