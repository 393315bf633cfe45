/*
 * assay policy sample: text or ids in, samples out, in this process.
 *
 * Invariants:
 *   1. One sample is printed as it comes, several whole and in their order; with --json each is one
 *      object on one line. What is printed are functions of weights, prompt, options and seed.
 *   2. Standard output is text of the samples only: speed and seed go to standard error.
 *
 * Not here: conversations (policy_chat.c), HTTP (policy_serve.c).
 */
#include "env/policy_runtime.h"

#include "base/error.h"
#include "base/fd.h"
#include "policy/file.h"

#include <string.h>
#include <unistd.h>

typedef struct Work Work;

typedef struct Sample {
    Work *work;
    SampleText text;
    GString *shown; /* not printed yet */
    GArray *ids;
    json_t *logprobs, *sampler_logprobs;
    FinishReason finish;
} Sample;

struct Work {
    Cli *cli;
    PolicyRuntime runtime;
    StopStrings *stops;
    GArray *prompt;
    EngineRequest request;
    Sample *samples;
    guint next;    /* to be printed */
    gint64 tokens; /* made */
};

/* --- the prompt */

static gboolean text_prompt(Work *work, const char *text, gsize len, GError **error)
{
    return tokenizer_encode(work->runtime.tokenizer, text, len, TOKENS_PLAIN, work->prompt, error);
}

static gboolean prompt_of(Work *work, GError **error)
{
    const char *text = cli_option(work->cli, "prompt"),
               *path = cli_option(work->cli, "prompt-file");
    const char *ids = cli_option(work->cli, "ids");
    if ((text != NULL) + (path != NULL) + (ids != NULL) != 1)
        return error_set(error, ASSAY_ERROR_INPUT, "one of --prompt, --prompt-file and --ids");
    if (ids != NULL)
        return cli_ids_read(ids, work->prompt, error);
    if (text != NULL)
        return text_prompt(work, text, strlen(text), error);
    g_autoptr(GBytes) bytes = strcmp(path, "-") == 0
                                  ? fd_read_all(STDIN_FILENO, TOKENIZER_TEXT_BYTES_MAX, error)
                                  : model_file_read(path, TOKENIZER_TEXT_BYTES_MAX, error);
    gsize len;
    if (bytes == NULL)
        return FALSE;
    text = g_bytes_get_data(bytes, &len);
    return text_prompt(work, text != NULL ? text : "", len, error);
}

/* --- what comes */

static void print_object(Work *work, Sample *sample)
{
    g_autoptr(json_t) object = json_pack(
        "{s:i, s:i, s:o, s:s, s:s?}", "sample", (int)(sample - work->samples), "prompt_tokens",
        (int)work->prompt->len, "text", json_stringn(sample->shown->str, sample->shown->len),
        "finish_reason", finish_reason_name(sample->finish), "stop_reason", sample->text.stop);
    json_t *ids = json_array();
    for (guint i = 0; i < sample->ids->len; i++)
        json_array_append_new(ids, json_integer(g_array_index(sample->ids, gint32, i)));
    json_object_set_new(object, "token_ids", ids);
    if (cli_has(work->cli, "logprobs")) {
        json_object_set(object, "logprobs", sample->logprobs);
        json_object_set(object, "sampler_logprobs", sample->sampler_logprobs);
    }
    cli_print_json(object);
}

/* Those that have ended, up to the first that has not. */
static void print_ended(Work *work)
{
    for (; work->next < work->request.n; work->next++) {
        Sample *sample = &work->samples[work->next];
        if (sample->finish == FINISH_NONE)
            return;
        if (work->cli->json) {
            print_object(work, sample);
            continue;
        }
        if (work->request.n > 1)
            printf("--- %u\n", work->next);
        policy_print(work->cli, sample->shown);
        putchar('\n');
    }
}

static void note(Sample *sample, const EngineToken *token)
{
    g_array_append_val(sample->ids, token->token.id);
    sample->work->tokens++;
    if (!cli_has(sample->work->cli, "logprobs"))
        return;
    json_array_append_new(sample->logprobs, json_real((double)token->token.logprob));
    json_array_append_new(sample->sampler_logprobs, json_real((double)token->token.logprob_own));
}

static gboolean on_token(const EngineToken *token, gpointer user)
{
    Work *work = user;
    Sample *sample = &work->samples[token->sample];
    gboolean on = TRUE;
    if (token->token.id >= 0) {
        note(sample, token);
        on = sample_text_add(&sample->text, token->token.id, sample->shown);
    }
    if (token->finish != FINISH_NONE) {
        sample->finish = token->finish;
        sample_text_end(&sample->text, sample->shown);
        print_ended(work);
    } else if (work->request.n == 1 && !work->cli->json) {
        policy_print(work->cli, sample->shown);
    }
    return on;
}

/* --- the command */

static void samples_new(Work *work)
{
    work->samples = g_new0(Sample, work->request.n);
    for (guint i = 0; i < work->request.n; i++) {
        Sample *sample = &work->samples[i];
        *sample = (Sample){.work = work,
                           .shown = g_string_new(NULL),
                           .ids = tokens_new(),
                           .logprobs = json_array(),
                           .sampler_logprobs = json_array()};
        sample_text_init(&sample->text, work->runtime.tokenizer, work->stops);
    }
}

static void work_clear(Work *work)
{
    for (guint i = 0; work->samples != NULL && i < work->request.n; i++) {
        sample_text_clear(&work->samples[i].text);
        g_string_free(work->samples[i].shown, TRUE);
        g_array_unref(work->samples[i].ids);
        json_decref(work->samples[i].logprobs);
        json_decref(work->samples[i].sampler_logprobs);
    }
    g_free(work->samples);
    g_array_unref(work->prompt);
    g_clear_pointer(&work->stops, stop_strings_free);
    policy_runtime_close(&work->runtime);
}

static gboolean work_prepare(Work *work, GError **error)
{
    const char *stop = cli_option(work->cli, "stop");
    EngineRequest *request = &work->request;
    gint64 n = 1;
    if (!policy_option_int(work->cli, "n", 1, POLICY_CHOICES_MAX, &n, error) ||
        !policy_options_sampling(work->cli, request, error))
        return FALSE;
    work->stops = stop_strings_new(&stop, stop != NULL ? 1 : 0, error);
    if (work->stops == NULL ||
        !policy_runtime_open(work->cli, cli_arg(work->cli, 0), &work->runtime, error) ||
        !prompt_of(work, error))
        return FALSE;
    request->n = (guint)n;
    if (request->tokens_max == 0)
        request->tokens_max = MAX(1, work->runtime.context - (gint64)work->prompt->len);
    return TRUE;
}

int cli_policy_sample(Cli *cli)
{
    Work work = {.cli = cli, .prompt = tokens_new()};
    GError *error = NULL;
    if (cli_has(cli, "logprobs") && !cli->json)
        return cli_usage(cli, "--logprobs goes with --json");
    if (!work_prepare(&work, &error)) {
        work_clear(&work);
        return cli_error(cli, error, NULL);
    }
    gint32 eos = tokenizer_special(work.runtime.tokenizer, TOKEN_EOS);
    EngineRequest *request = &work.request;
    samples_new(&work);
    request->prompt = (const int *)(gconstpointer)work.prompt->data;
    request->prompt_len = work.prompt->len;
    request->stops = &eos;
    request->n_stops = eos >= 0 ? 1 : 0;
    request->on_token = on_token;
    request->user = &work;
    gint64 start_us = g_get_monotonic_time();
    if (engine_submit(work.runtime.engine, request, &error) == 0) {
        work_clear(&work);
        return cli_error(cli, error, NULL);
    }
    while (engine_step(work.runtime.engine) > 0)
        ;
    double seconds = (double)(g_get_monotonic_time() - start_us) / 1e6;
    cli_say(cli, "%" G_GINT64_FORMAT " tokens, %u of prompt, in %.2f s: %.1f tokens/s", work.tokens,
            work.prompt->len, seconds, (double)work.tokens / MAX(seconds, 1e-6));
    work_clear(&work);
    return CLI_OK;
}
