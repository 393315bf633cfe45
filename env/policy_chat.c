/*
 * assay policy chat: a conversation on the terminal, the model in this process.
 *
 * Invariants:
 *   1. A line of standard input is a turn; "/reset" alone forgets what was said.
 *   2. Ctrl-C ends an answer and keeps what was said of it; at the prompt it drops the line. The
 *      end of input (Ctrl-D) ends the conversation.
 *   3. A turn that cannot be answered is taken back: the next one is asked without it.
 *   4. What was reasoned stays in the conversation, shown or not: it is what the model was given.
 *
 * Not here: the template (policy/chat.h), how answers are taken apart (policy/chat_parse.h).
 */
#include "env/policy_runtime.h"

#include "base/error.h"
#include "policy/chat_parse.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct Talk {
    Cli *cli;
    PolicyRuntime runtime;
    EngineRequest request;
    gint64 tokens_max; /* of an answer; 0: what the context has room for */
    json_t *messages;
    gboolean hidden, dim; /* reasoning; whether the terminal is dim now */
    /* of the answer that comes */
    SampleText text;
    ChatParser *parser;
    GString *given, *shown, *reasoning, *content;
    json_t *calls;
    gint64 tokens;
    FinishReason finish;
} Talk;

/* --- Ctrl-C: counted in a descriptor, so that it can be waited for beside input, whichever thread
 * the signal came to */

static int interrupt_fd = -1;

static void on_interrupt(int number)
{
    (void)number;
    guint64 one = 1;
    (void)!write(interrupt_fd, &one, sizeof one);
}

static gboolean interrupts_open(GError **error)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return (interrupt_fd >= 0 && sigaction(SIGINT, &action, NULL) == 0) ||
           error_set_errno(error, errno, "eventfd");
}

/* Whether there was one since it was last asked. */
static gboolean interrupted(void)
{
    guint64 count;
    return read(interrupt_fd, &count, sizeof count) == sizeof count;
}

/* --- what is shown */

static void set_dim(Talk *talk, gboolean dim)
{
    if (talk->dim != dim && talk->cli->colour)
        fputs(dim ? "\033[2m" : "\033[0m", stdout);
    talk->dim = dim;
}

static void show(Talk *talk, const char *text, gsize len, gboolean dim)
{
    set_dim(talk, dim);
    g_string_append_len(talk->shown, text, (gssize)len);
    policy_print(talk->cli, talk->shown);
}

static void said_reasoning(const char *text, gsize len, gpointer data)
{
    Talk *talk = data;
    g_string_append_len(talk->reasoning, text, (gssize)len);
    if (!talk->hidden)
        show(talk, text, len, TRUE);
}

static void said_content(const char *text, gsize len, gpointer data)
{
    Talk *talk = data;
    if (talk->content->len == 0 && talk->reasoning->len > 0 && !talk->hidden)
        show(talk, "\n", 1, FALSE);
    g_string_append_len(talk->content, text, (gssize)len);
    show(talk, text, len, FALSE);
}

static void said_call(const ChatCall *call, gpointer data)
{
    Talk *talk = data;
    g_autofree char *line = g_strdup_printf("\n[%s %s]\n", call->name, call->arguments);
    show(talk, line, strlen(line), FALSE);
    json_array_append_new(talk->calls, json_pack("{s:{s:s, s:s}}", "function", "name", call->name,
                                                 "arguments", call->arguments));
}

/* --- an answer */

static gboolean on_token(const EngineToken *token, gpointer user)
{
    Talk *talk = user;
    if (token->token.id >= 0) {
        talk->tokens++;
        sample_text_add(&talk->text, token->token.id, talk->given);
    }
    if (token->finish != FINISH_NONE) {
        talk->finish = token->finish;
        sample_text_end(&talk->text, talk->given);
    }
    chat_parser_feed(talk->parser, talk->given->str, talk->given->len);
    g_string_truncate(talk->given, 0);
    return TRUE;
}

static void answer_begin(Talk *talk)
{
    const ChatSink sink = {said_reasoning, said_content, said_call, talk};
    sample_text_init(&talk->text, talk->runtime.tokenizer, NULL);
    talk->parser = chat_parser_new(&sink, FALSE);
    g_string_truncate(talk->reasoning, 0);
    g_string_truncate(talk->content, 0);
    talk->calls = json_array();
    talk->tokens = 0;
}

static void answer_end(Talk *talk)
{
    sample_text_clear(&talk->text);
    g_clear_pointer(&talk->parser, chat_parser_free);
    g_clear_pointer(&talk->calls, json_decref);
}

/* The answer as a message of the conversation. */
static void keep_answer(Talk *talk)
{
    json_t *message = json_pack("{s:s, s:o}", "role", "assistant", "content",
                                json_stringn(talk->content->str, talk->content->len));
    if (talk->reasoning->len > 0)
        json_object_set_new(message, "reasoning_content",
                            json_stringn(talk->reasoning->str, talk->reasoning->len));
    if (json_array_size(talk->calls) > 0)
        json_object_set(message, "tool_calls", talk->calls);
    json_array_append_new(talk->messages, message);
}

static gboolean ask(Talk *talk, GArray *ids, GError **error)
{
    Engine *engine = talk->runtime.engine;
    EngineRequest request = talk->request;
    gint32 eos = tokenizer_special(talk->runtime.tokenizer, TOKEN_EOS);
    request.prompt = (const int *)(gconstpointer)ids->data;
    request.prompt_len = ids->len;
    request.tokens_max = talk->tokens_max > 0 ? talk->tokens_max
                                              : MAX(1, talk->runtime.context - request.prompt_len);
    request.stops = &eos;
    request.n_stops = 1;
    request.on_token = on_token;
    request.user = talk;
    guint64 id = engine_submit(engine, &request, error);
    while (id != 0 && engine_step(engine) > 0)
        if (interrupted())
            engine_abort(engine, id);
    return id != 0;
}

/* Says one turn and prints the answer. */
static gboolean turn(Talk *talk, const char *line, gsize len, GError **error)
{
    g_autoptr(GArray) ids = tokens_new();
    json_t *text = json_stringn(line, len);
    if (text == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "the line is no UTF-8, or has a NUL");
    json_array_append_new(talk->messages, json_pack("{s:s, s:o}", "role", "user", "content", text));
    answer_begin(talk);
    gint64 start_us = g_get_monotonic_time();
    gboolean good = chat_encode(&talk->runtime.style, talk->runtime.tokenizer, talk->messages, NULL,
                                CHAT_GENERATE, ids, error) &&
                    ask(talk, ids, error);
    if (good) {
        chat_parser_end(talk->parser);
        set_dim(talk, FALSE);
        putchar('\n');
        fflush(stdout);
        keep_answer(talk);
        double seconds = (double)(g_get_monotonic_time() - start_us) / 1e6;
        cli_say(talk->cli, "[%u + %" G_GINT64_FORMAT " tokens, %s, %.1f tokens/s]", ids->len,
                talk->tokens, finish_reason_name(talk->finish),
                (double)talk->tokens / MAX(seconds, 1e-6));
    } else {
        json_array_remove(talk->messages, json_array_size(talk->messages) - 1);
    }
    answer_end(talk);
    return good;
}

/* --- the conversation */

static void reset(Talk *talk)
{
    const char *system = cli_option(talk->cli, "system");
    json_array_clear(talk->messages);
    if (system != NULL)
        json_array_append_new(talk->messages,
                              json_pack("{s:s, s:s}", "role", "system", "content", system));
}

/* Waits for input; FALSE: Ctrl-C came first. */
static gboolean await_input(void)
{
    struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                           {.fd = interrupt_fd, .events = POLLIN}};
    while (poll(fds, G_N_ELEMENTS(fds), -1) < 0 && errno == EINTR)
        ;
    return fds[1].revents == 0 || !interrupted();
}

/* Takes the next line, without its end, from what was read into `input` and what comes. FALSE at
 * the end of input. */
static gboolean next_line(gboolean terminal, GString *input, GString *line)
{
    char piece[4096];
    gboolean ended = FALSE;
    if (terminal)
        fputs("> ", stderr);
    for (;;) {
        const char *end = memchr(input->str, '\n', input->len);
        gsize len = end != NULL ? (gsize)(end - input->str) : input->len;
        if (end != NULL || ended) {
            g_string_assign(line, "");
            g_string_append_len(line, input->str, (gssize)len);
            g_string_erase(input, 0, (gssize)(end != NULL ? len + 1 : len));
            return end != NULL || len > 0;
        }
        if (!await_input()) {
            fputs(terminal ? "\n> " : "", stderr);
            continue;
        }
        ssize_t got;
        while ((got = read(STDIN_FILENO, piece, sizeof piece)) < 0 && errno == EINTR)
            ;
        ended = got <= 0 || input->len + (gsize)got > TOKENIZER_TEXT_BYTES_MAX;
        g_string_append_len(input, piece, MAX(got, 0));
    }
}

static int talk_on(Talk *talk)
{
    gboolean terminal = isatty(STDIN_FILENO) && talk->cli->err_tty;
    g_autoptr(GString) input = g_string_new(NULL), line = g_string_new(NULL);
    int status = CLI_OK;
    reset(talk);
    while (next_line(terminal, input, line)) {
        GError *error = NULL;
        if (strcmp(line->str, "/reset") == 0)
            reset(talk);
        else if (line->len > 0 && !turn(talk, line->str, line->len, &error))
            status = cli_error(talk->cli, error, NULL);
    }
    if (terminal)
        fputc('\n', stderr);
    return terminal ? CLI_OK : status;
}

static gboolean talk_prepare(Talk *talk, GError **error)
{
    const char *reasoning = cli_option(talk->cli, "reasoning");
    const char *system = cli_option(talk->cli, "system");
    if (system != NULL && !g_utf8_validate(system, -1, NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "--system: is no UTF-8");
    talk->hidden = g_strcmp0(reasoning, "hidden") == 0;
    if (reasoning != NULL && !talk->hidden && strcmp(reasoning, "dim") != 0)
        return error_set(error, ASSAY_ERROR_INPUT, "--reasoning: dim or hidden, not %s", reasoning);
    if (!policy_options_sampling(talk->cli, &talk->request, error) ||
        !policy_runtime_open(talk->cli, cli_arg(talk->cli, 0), &talk->runtime, error) ||
        !interrupts_open(error))
        return FALSE;
    talk->tokens_max = talk->request.tokens_max;
    return TRUE;
}

int cli_policy_chat(Cli *cli)
{
    Talk talk = {.cli = cli,
                 .messages = json_array(),
                 .given = g_string_new(NULL),
                 .shown = g_string_new(NULL),
                 .reasoning = g_string_new(NULL),
                 .content = g_string_new(NULL)};
    GError *error = NULL;
    int status = talk_prepare(&talk, &error) ? talk_on(&talk) : cli_error(cli, error, NULL);
    policy_runtime_close(&talk.runtime);
    json_decref(talk.messages);
    g_string_free(talk.given, TRUE);
    g_string_free(talk.shown, TRUE);
    g_string_free(talk.reasoning, TRUE);
    g_string_free(talk.content, TRUE);
    return status;
}
