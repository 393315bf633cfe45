/*
 * assay policy tokenize, detokenize, train-tokenizer: text to ids and back, and vocabularies.
 *
 * Invariants:
 *   1. No daemon is asked.
 *   2. What is read becomes special tokens only with --specials; of a chat only the template's own
 *      marks do.
 */
#include "env/cli.h"

#include "base/error.h"
#include "base/fd.h"
#include "policy/chat.h"
#include "policy/file.h"
#include "policy/token_train.h"
#include "policy/utf8.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define IDS_BYTES_MAX (256u << 20) /* of a list of ids as text */

/* The file that the command names; "-" or none is standard input. */
static GBytes *input_of(Cli *cli, gsize len_max, GError **error)
{
    const char *path = cli_arg(cli, 0);
    if (path == NULL || strcmp(path, "-") == 0)
        return fd_read_all(STDIN_FILENO, len_max, error);
    return model_file_read(path, len_max, error);
}

static const char *as_text(GBytes *bytes, gsize *ret_len)
{
    const char *text = g_bytes_get_data(bytes, ret_len);
    return text != NULL ? text : "";
}

static void print_ids(Cli *cli, const GArray *ids)
{
    if (cli->json) {
        json_t *list = json_array();
        for (guint i = 0; i < ids->len; i++)
            json_array_append_new(list, json_integer(g_array_index(ids, gint32, i)));
        g_autoptr(json_t) answer = json_pack("{s:i, s:o}", "count", (int)ids->len, "tokens", list);
        cli_print_json(answer);
        return;
    }
    for (guint i = 0; i < ids->len; i++)
        printf("%s%d", i > 0 ? " " : "", g_array_index(ids, gint32, i));
    putchar('\n');
}

/* The style that the options ask for. */
static gboolean style_wanted(Cli *cli, ChatStyle *ret_style, GError **error)
{
    const char *name = cli_option(cli, "style"), *bod = cli_option(cli, "document-start");
    const ChatStyle *style = chat_style(name != NULL ? name : "official");
    gint64 id = CHAT_BOD_DEFAULT;
    if (style == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "--style: %s is neither official nor vllm",
                         name);
    if (g_strcmp0(bod, "none") == 0)
        id = CHAT_BOD_NONE;
    else if (g_strcmp0(bod, "text") == 0)
        id = CHAT_BOD_AS_TEXT;
    else if (bod != NULL && !g_ascii_string_to_signed(bod, 10, 1, G_MAXINT32, &id, NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "--document-start: %s is no id, none or text",
                         bod);
    *ret_style = *style;
    ret_style->begin_of_document = (gint32)id;
    return TRUE;
}

/* {"messages": [...], "tools": [...]} to the ids of a prompt. */
static gboolean encode_chat(Cli *cli, const Tokenizer *tokenizer, const char *text, gsize len,
                            GArray *ids, GError **error)
{
    static const char *const keys[] = {"messages", "tools", NULL};
    ChatStyle style;
    g_autoptr(json_t) root = json_parse(text, len, error);
    return root != NULL && style_wanted(cli, &style, error) && json_only_keys(root, keys, error) &&
           chat_encode(&style, tokenizer, json_object_get(root, "messages"),
                       json_object_get(root, "tools"), CHAT_GENERATE, ids, error);
}

int cli_policy_tokenize(Cli *cli)
{
    const char *dir = cli_option(cli, "tokenizer");
    TokensFlags flags = cli_has(cli, "specials") ? TOKENS_SPECIALS : TOKENS_PLAIN;
    GError *error = NULL;
    if (dir == NULL)
        return cli_usage(cli, "tokenize needs --tokenizer DIR");
    g_autoptr(Tokenizer) tokenizer = tokenizer_load(dir, &error);
    g_autoptr(GBytes) bytes =
        tokenizer != NULL ? input_of(cli, TOKENIZER_TEXT_BYTES_MAX, &error) : NULL;
    if (bytes == NULL)
        return cli_error(cli, error, NULL);
    gsize len;
    const char *text = as_text(bytes, &len);
    g_autoptr(GArray) ids = tokens_new();
    gboolean good = cli_has(cli, "chat")
                        ? encode_chat(cli, tokenizer, text, len, ids, &error)
                        : tokenizer_encode(tokenizer, text, len, flags, ids, &error);
    if (!good)
        return cli_error(cli, error, NULL);
    print_ids(cli, ids);
    return CLI_OK;
}

gboolean cli_ids_read(const char *text, GArray *ids, GError **error)
{
    g_auto(GStrv) words = g_strsplit_set(text, " \t\r\n,[]", -1);
    for (char **word = words; *word != NULL; word++) {
        gint64 id;
        if (**word == '\0')
            continue;
        if (!g_ascii_string_to_signed(*word, 10, 0, G_MAXINT32, &id, NULL))
            return error_set(error, ASSAY_ERROR_INPUT, "%.40s: is no token id", *word);
        gint32 narrow = (gint32)id;
        g_array_append_val(ids, narrow);
    }
    return TRUE;
}

int cli_policy_detokenize(Cli *cli)
{
    const char *dir = cli_option(cli, "tokenizer");
    TokensFlags flags = cli_has(cli, "specials") ? TOKENS_SPECIALS : TOKENS_PLAIN;
    GError *error = NULL;
    if (dir == NULL)
        return cli_usage(cli, "detokenize needs --tokenizer DIR");
    g_autoptr(Tokenizer) tokenizer = tokenizer_load(dir, &error);
    g_autoptr(GBytes) bytes = tokenizer != NULL ? input_of(cli, IDS_BYTES_MAX, &error) : NULL;
    if (bytes == NULL)
        return cli_error(cli, error, NULL);
    gsize len;
    g_autoptr(GArray) ids = tokens_new();
    g_autoptr(GString) text = g_string_new(NULL), valid = g_string_new(NULL);
    if (!cli_ids_read(as_text(bytes, &len), ids, &error) ||
        !tokenizer_decode(tokenizer, (const gint32 *)(gconstpointer)ids->data, ids->len, flags,
                          text, &error))
        return cli_error(cli, error, NULL);
    if (!cli->json) {
        fwrite(text->str, 1, text->len, stdout);
        return CLI_OK;
    }
    utf8_append(valid, text->str, text->len, TRUE);
    g_autoptr(json_t) answer = json_object();
    json_object_set_new(answer, "text", json_stringn(valid->str, valid->len));
    cli_print_json(answer);
    return CLI_OK;
}

static gboolean count_file(TokenTrainer *trainer, const char *path, GError **error)
{
    gsize len;
    g_autoptr(GBytes) bytes = model_file_read(path, G_MAXINT32, error);
    if (bytes == NULL)
        return FALSE;
    const char *text = as_text(bytes, &len);
    if (!token_trainer_add(trainer, text, len, error)) {
        g_prefix_error(error, "%s: ", path);
        return FALSE;
    }
    return TRUE;
}

int cli_policy_train_tokenizer(Cli *cli)
{
    const char *out = cli_option(cli, "out"), *vocab_text = cli_option(cli, "vocab");
    guint64 vocab;
    GError *error = NULL;
    if (out == NULL || vocab_text == NULL ||
        !g_ascii_string_to_unsigned(vocab_text, 10, 0, G_MAXUINT32, &vocab, NULL))
        return cli_usage(cli, "train-tokenizer needs --vocab N and --out DIR");
    g_autoptr(TokenTrainer) trainer = token_trainer_new();
    for (guint i = 0; i < cli->args->len; i++)
        if (!count_file(trainer, cli_arg(cli, i), &error))
            return cli_error(cli, error, NULL);
    g_autoptr(Tokenizer) tokenizer = token_trainer_finish(trainer, (guint)vocab, &error);
    if (tokenizer != NULL && mkdir(out, 0755) < 0 && errno != EEXIST)
        error_set_errno(&error, errno, "mkdir %s", out);
    if (error != NULL || !tokenizer_save(tokenizer, out, &error))
        return cli_error(cli, error, NULL);
    gint32 size = tokenizer_size(tokenizer);
    if ((guint64)size < vocab)
        cli_say(cli, "the files have pairs for %d tokens only", size);
    g_autoptr(json_t) answer =
        json_pack("{s:i, s:s, s:i}", "vocab_size", size, "out", out, "end_of_sentence",
                  tokenizer_special(tokenizer, TOKEN_EOS));
    if (cli->json)
        cli_print_json(answer);
    else
        printf("%d tokens in %s\n", size, out);
    return CLI_OK;
}
