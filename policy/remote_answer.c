/*
 * What a server of token ids is asked, and whether its answer is one.
 *
 * 1. An answer has every sample once: 1 to tokens_max ids of the vocabulary, as many finite
 *    log-probabilities that are not above 0, an end that fits the ids. Else it is no answer at all.
 * 2. Stop ids are the last of a sample that they ended, and nowhere else.
 *
 * Not here: when it is asked again (remote.c).
 */
#include "policy/remote.h"

#include "base/error.h"
#include "base/json.h"

#include <math.h>
#include <string.h>

#define LOGPROB_LEAST (-1000.0) /* below this nothing is drawn: it stands for minus infinity */
#define LOGPROB_SLACK 1e-3      /* above 0: rounding of those who count in half precision */

void remote_choice_free(RemoteChoice *choice)
{
    if (!choice)
        return;
    g_clear_pointer(&choice->ids, g_array_unref);
    g_clear_pointer(&choice->logprobs, g_array_unref);
    g_free(choice);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(RemoteChoice, remote_choice_free)

/* ---- asking ---- */

static json_t *ids_json(const int *ids, gint64 n)
{
    json_t *list = json_array();

    for (gint64 i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

/* All that a server might otherwise have its own mind about. */
static json_t *sampling_json(const EngineRequest *r)
{
    return json_pack("{s:i, s:I, s:f, s:I, s:i, s:i, s:o}", "n", (int)MAX(r->n, 1), "max_tokens",
                     (json_int_t)r->tokens_max, "temperature", r->params.temperature, "seed",
                     (json_int_t)r->params.seed, "top_p", 1, "top_k", -1, "stop_token_ids",
                     ids_json(r->stops, r->n_stops));
}

char *remote_ask(RemoteApi api, const char *model, const EngineRequest *r)
{
    g_autoptr(json_t) body = NULL;
    json_t *sampling = sampling_json(r);

    if (api == REMOTE_GENERATE) {
        json_object_set_new(sampling, "logprobs", json_true());
        body = json_pack("{s:o, s:o}", "token_ids", ids_json(r->prompt, r->prompt_len),
                         "sampling_params", sampling);
    } else {
        body = sampling;
        json_object_set_new(body, "prompt", ids_json(r->prompt, r->prompt_len));
        json_object_set_new(body, "logprobs", json_integer(0));
        json_object_set_new(body, "return_token_ids", json_true());
    }
    if (*model)
        json_object_set_new(body, "model", json_string(model));
    return json_print(body);
}

/* ---- reading ---- */

static gboolean no_answer(GError **error, const char *what)
{
    return error_set(error, ASSAY_ERROR_INPUT, "the answer is none: %s", what);
}

static gboolean is_stop(const EngineRequest *r, gint32 id)
{
    for (guint i = 0; i < r->n_stops; i++)
        if (r->stops[i] == id)
            return TRUE;
    return FALSE;
}

static gboolean read_ids(const json_t *list, const EngineRequest *r, int vocab, RemoteChoice *c,
                         GError **error)
{
    gsize n = json_array_size(list);

    if (n == 0 || n > (gsize)r->tokens_max)
        return no_answer(error, "no token ids, or more than were asked for");
    for (gsize i = 0; i < n; i++) {
        const json_t *value = json_array_get(list, i);
        gint32 id = (gint32)json_integer_value(value);

        if (!json_is_integer(value) || json_integer_value(value) < 0 ||
            json_integer_value(value) >= vocab)
            return no_answer(error, "an id is outside the vocabulary");
        if (is_stop(r, id) != (i + 1 == n && c->finish == FINISH_STOP))
            return no_answer(error, "a stop id is not where the sample ends");
        g_array_append_val(c->ids, id);
    }
    return TRUE;
}

/* {"token_logprobs": [l, ...]}, or {"content": [{"logprob": l}, ...]}. */
static gboolean read_logprobs(const json_t *logprobs, RemoteChoice *c, GError **error)
{
    const json_t *columns = json_object_get(logprobs, "token_logprobs");
    const json_t *list = columns ? columns : json_object_get(logprobs, "content");

    if (!json_is_array(list) || json_array_size(list) != c->ids->len)
        return no_answer(error, "not one log-probability for each token");
    for (guint i = 0; i < c->ids->len; i++) {
        const json_t *entry = json_array_get(list, i);
        const json_t *value = columns ? entry : json_object_get(entry, "logprob");
        double logprob = json_number_value(value);
        float kept = (float)MIN(logprob, 0);

        if (!json_is_number(value) || !isfinite(logprob) || logprob < LOGPROB_LEAST ||
            logprob > LOGPROB_SLACK)
            return no_answer(error, "a log-probability is none");
        g_array_append_val(c->logprobs, kept);
    }
    return TRUE;
}

/* A server may say how it read the prompt. */
static gboolean same_prompt(const json_t *choice, const EngineRequest *r, GError **error)
{
    const json_t *ids = json_object_get(choice, "prompt_token_ids");

    if (!json_is_array(ids))
        return TRUE;
    if (json_array_size(ids) != (gsize)r->prompt_len)
        return no_answer(error, "it is to another prompt");
    for (gint64 i = 0; i < r->prompt_len; i++)
        if (json_integer_value(json_array_get(ids, (gsize)i)) != r->prompt[i])
            return no_answer(error, "it is to another prompt");
    return TRUE;
}

static gboolean same_weights(const json_t *choice, gint64 version, GError **error)
{
    const json_t *said = json_object_get(choice, "weight_version");

    if (version == 0 || !said || (json_is_integer(said) && json_integer_value(said) == version))
        return TRUE;
    return error_set(error, ASSAY_ERROR_CONFLICT, "the answer is of other weights");
}

static RemoteChoice *read_choice(const json_t *json, const EngineRequest *r, int vocab,
                                 gint64 version, GError **error)
{
    g_autoptr(RemoteChoice) c = g_new0(RemoteChoice, 1);
    const char *why = json_string_value(json_object_get(json, "finish_reason"));

    c->ids = g_array_new(FALSE, FALSE, sizeof(gint32));
    c->logprobs = g_array_new(FALSE, FALSE, sizeof(float));
    c->finish = !g_strcmp0(why, "stop")     ? FINISH_STOP
                : !g_strcmp0(why, "length") ? FINISH_LENGTH
                                            : FINISH_NONE;
    if (!same_weights(json, version, error))
        return NULL;
    if (c->finish == FINISH_NONE) {
        no_answer(error, "a sample has no end");
        return NULL;
    }
    if (!same_prompt(json, r, error) ||
        !read_ids(json_object_get(json, "token_ids"), r, vocab, c, error) ||
        !read_logprobs(json_object_get(json, "logprobs"), c, error))
        return NULL;
    return g_steal_pointer(&c);
}

GPtrArray *remote_read(const char *text, gsize len, const EngineRequest *r, int vocab,
                       gint64 version, GError **error)
{
    json_error_t why;
    /* the text of a token may be a NUL */
    g_autoptr(json_t) body = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    const json_t *list = json_object_get(body, "choices");
    guint n = MAX(r->n, 1);
    g_autoptr(GPtrArray) choices = g_ptr_array_new_full(n, (GDestroyNotify)remote_choice_free);

    if (!body) {
        no_answer(error, why.text);
        return NULL;
    }
    if (json_array_size(list) != n) {
        no_answer(error, "not as many samples as were asked for");
        return NULL;
    }
    g_ptr_array_set_size(choices, (gint)n);
    for (guint i = 0; i < n; i++) {
        const json_t *json = json_array_get(list, i), *index = json_object_get(json, "index");
        json_int_t at = json_integer_value(index);

        if (!json_is_integer(index) || at < 0 || at >= n || choices->pdata[at]) {
            no_answer(error, "a sample is there twice, or none");
            return NULL;
        }
        if (!(choices->pdata[at] = read_choice(json, r, vocab, version, error)))
            return NULL;
    }
    return g_steal_pointer(&choices);
}
