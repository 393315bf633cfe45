/*
 * Opening a model to sample from it, and what the command line says about sampling.
 *
 * Invariant: an option that is no number, or out of range, is refused by its name; nothing is
 * clamped.
 */
#include "env/policy_runtime.h"
#include "env/backend.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define ROWS_MAX  256
#define DRAFT_MAX 4
#define CACHE_MIB 1024

gboolean policy_option_int(Cli *cli, const char *name, gint64 min, gint64 max, gint64 *number,
                           GError **error)
{
    const char *text = cli_option(cli, name);
    return text == NULL || g_ascii_string_to_signed(text, 10, min, max, number, NULL) ||
           error_set(error, ASSAY_ERROR_INPUT,
                     "--%s: %s is no number in %" G_GINT64_FORMAT " .. %" G_GINT64_FORMAT, name,
                     text, min, max);
}

static gboolean option_real(Cli *cli, const char *name, double max, double *number, GError **error)
{
    const char *text = cli_option(cli, name);
    char *end = NULL;
    if (text == NULL)
        return TRUE;
    *number = g_ascii_strtod(text, &end);
    return (end != text && *end == '\0' && *number >= 0 && *number <= max) ||
           error_set(error, ASSAY_ERROR_INPUT, "--%s: %s is no number in 0 .. %g", name, text, max);
}

gboolean policy_options_sampling(Cli *cli, EngineRequest *request, GError **error)
{
    SampleParams *params = &request->params;
    gint64 top_k = 0, seed = g_random_int();
    *params = (SampleParams){.temperature = 1, .top_p = 1};
    request->repetition = POLICY_REPETITION;
    if (!policy_option_int(cli, "max-tokens", 1, G_MAXINT32, &request->tokens_max, error) ||
        !option_real(cli, "temperature", 100, &params->temperature, error) ||
        !policy_option_int(cli, "top-k", 0, G_MAXINT32, &top_k, error) ||
        !option_real(cli, "top-p", 1, &params->top_p, error) ||
        !option_real(cli, "min-p", 1, &params->min_p, error) ||
        !policy_option_int(cli, "seed", G_MININT64, G_MAXINT64, &seed, error))
        return FALSE;
    params->top_k = (guint32)top_k;
    params->seed = (guint64)seed;
    if (!cli_has(cli, "seed"))
        cli_say(cli, "seed %" G_GINT64_FORMAT, seed);
    return TRUE;
}

gboolean policy_weights_wanted(Cli *cli, WeightFormat *format, GError **error)
{
    gboolean ok = weight_format_parse(cli_option(cli, "weights"), format, error);
    if (!ok)
        g_prefix_error(error, "--weights: ");
    return ok;
}

/* --weights and --chunk. */
static Model *model_wanted(Cli *cli, const char *dir, GError **error)
{
    WeightFormat format;
    gint64 chunk = 0;
    if (!policy_weights_wanted(cli, &format, error) ||
        !policy_option_int(cli, "chunk", 1, 64, &chunk, error))
        return NULL;
    return model_load(backend_ops(), dir, format, (guint)chunk, error);
}

gboolean policy_runtime_open(Cli *cli, const char *dir, PolicyRuntime *runtime, GError **error)
{
    const char *words = cli_option(cli, "tokenizer");
    const char *style = cli_option(cli, "style");
    gint64 context = 0, mib = CACHE_MIB;
    *runtime = (PolicyRuntime){0};
    if (chat_style(style != NULL ? style : "official") == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "--style: %s is neither official nor vllm",
                         style);
    if (!policy_option_int(cli, "context", 1, G_MAXINT32, &context, error) ||
        !policy_option_int(cli, "cache-mib", 1, 1 << 24, &mib, error))
        return FALSE;
    runtime->style = *chat_style(style != NULL ? style : "official");
    runtime->tokenizer = tokenizer_load(words != NULL ? words : dir, error);
    if (runtime->tokenizer == NULL)
        return FALSE;
    runtime->model = model_wanted(cli, dir, error);
    if (runtime->model == NULL)
        return FALSE;
    guint valid = runtime->model->config.vocab_valid;
    if ((guint)tokenizer_size(runtime->tokenizer) > valid)
        return error_set(error, ASSAY_ERROR_INPUT, "tokenizer: %d ids, the model has %u",
                         tokenizer_size(runtime->tokenizer), valid);
    EngineLimits limits = {.context_max = context,
                           .cache_bytes = (gsize)mib << 20,
                           .rows_max = ROWS_MAX,
                           .sequences_max = POLICY_CHOICES_MAX,
                           .draft_max = DRAFT_MAX};
    runtime->engine = engine_new(runtime->model, &limits, error);
    if (runtime->engine == NULL)
        return FALSE;
    runtime->context = engine_context(runtime->engine);
    return context <= runtime->context ||
           error_set(error, ASSAY_ERROR_LIMIT,
                     "--context: %" G_GINT64_FORMAT " tokens, --cache-mib %" G_GINT64_FORMAT
                     " has room for %" G_GINT64_FORMAT,
                     context, mib, runtime->context);
}

void policy_runtime_close(PolicyRuntime *runtime)
{
    g_clear_pointer(&runtime->engine, engine_free);
    g_clear_pointer(&runtime->model, model_free);
    g_clear_pointer(&runtime->tokenizer, tokenizer_free);
}

void policy_print(Cli *cli, GString *text)
{
    for (const char *p = text->str; p < text->str + text->len;) {
        gunichar c = g_utf8_get_char_validated(p, text->str + text->len - p);
        gboolean valid = c != (gunichar)-1 && c != (gunichar)-2;
        gsize len = valid ? (gsize)g_unichar_to_utf8(c, NULL) : 1;
        if (!cli->out_tty || c == '\n' || c == '\t' || (valid && !g_unichar_iscntrl(c)))
            fwrite(p, 1, len, stdout);
        else
            for (gsize i = 0; i < len; i++)
                printf("\\x%02x", (guchar)p[i]);
        p += len;
    }
    fflush(stdout);
    g_string_truncate(text, 0);
}
