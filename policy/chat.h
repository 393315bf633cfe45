/*
 * M1's chat template: messages to token ids.
 *
 *     ChatStyle style = *chat_style("official");
 *     chat_encode(&style, tokenizer, messages, tools, CHAT_GENERATE, ids, &error);
 *
 * Turn marks are put in as ids and everything else is encoded as plain text, so nothing that a
 * message, a tool or a name says can open or close a turn.
 *
 * Messages are OpenAI's: an array of {role, content}, content a string or a list of text parts;
 * tools are a list of {name, description, parameters}, or of {type: function, function: that}.
 *
 *   system, developer   from anywhere in the list, joined at the front
 *   user
 *   assistant           content, with reasoning_content before it in <think> and tool_calls after
 *                       it in <tool_calls>, as the model writes them
 *   tool                neighbours make one turn; the tool is called by the part's name, the
 *                       message's, or its tool_call_id
 */
#pragma once

#include "policy/tokenizer.h"

#include "base/json.h"

#define CHAT_MESSAGES_MAX 100000u
#define CHAT_NAME_BYTES   256u /* of a tool's name; no control characters */
#define CHAT_BOD_DEFAULT  0    /* the special token, if the tokenizer has it, else nothing */
#define CHAT_BOD_NONE     (-1)
#define CHAT_BOD_AS_TEXT  (-2) /* spelled in ordinary tokens */

/* What a template may vary. Training and serving must use the same. */
typedef struct ChatStyle {
    const char *name;
    const char *ai_setting; /* in the system turn */
    const char *ai_name, *user_name;
    const char *default_system; /* where no message has a system text; NULL: none */
    const char *call_form;      /* the line of the tools turn that shows a call */
    gboolean trims;             /* white space around texts goes */
    gint32 begin_of_document;   /* an id (M1's is not published), or CHAT_BOD_* */
} ChatStyle;

/* "official" is MiniMax's published template, "vllm" the one in vLLM's examples. NULL: neither. */
const ChatStyle *chat_style(const char *name);

typedef enum ChatFlags {
    CHAT_GENERATE = 1, /* end with the opening of the assistant's turn */
    CHAT_CONTINUE = 2, /* leave the last turn, the assistant's, open */
} ChatFlags;

/* Appends the ids. INPUT: the message and field at fault ("messages[2].role: ..."); UNSUPPORTED:
 * the tokenizer lacks the turn marks. `tools` may be NULL. */
gboolean chat_encode(const ChatStyle *style, const Tokenizer *tokenizer, const json_t *messages,
                     const json_t *tools, guint flags, GArray *ids, GError **error);

/* The same as text, turn marks spelled out: to look at. */
char *chat_text(const ChatStyle *style, const Tokenizer *tokenizer, const json_t *messages,
                const json_t *tools, guint flags, GError **error);
