/*
 * What a server of token ids may answer: whatever is taken for an answer is one, and anything else
 * says why it is none.
 */
#include "tests/sandbox/fuzz.h"

#include "policy/remote.h"

#include <math.h>
#include <string.h>

#define VOCAB   50
#define VERSION 3

static const int prompt[] = {4, 5, 6}, stops[] = {2, 7};
static const EngineRequest request = {.prompt = prompt,
                                      .prompt_len = G_N_ELEMENTS(prompt),
                                      .n = 2,
                                      .tokens_max = 4,
                                      .stops = stops,
                                      .n_stops = G_N_ELEMENTS(stops)};

static gboolean is_stop(gint32 id)
{
    return id == stops[0] || id == stops[1];
}

static void check_choice(const RemoteChoice *c)
{
    g_assert_nonnull(c);
    g_assert_true(c->finish == FINISH_STOP || c->finish == FINISH_LENGTH);
    g_assert_cmpuint(c->ids->len, >=, 1);
    g_assert_cmpuint(c->ids->len, <=, request.tokens_max);
    g_assert_cmpuint(c->logprobs->len, ==, c->ids->len);
    for (guint i = 0; i < c->ids->len; i++) {
        gint32 id = g_array_index(c->ids, gint32, i);
        float logprob = g_array_index(c->logprobs, float, i);
        gboolean last = i + 1 == c->ids->len;

        g_assert_cmpint(id, >=, 0);
        g_assert_cmpint(id, <, VOCAB);
        g_assert_cmpint(is_stop(id), ==, last && c->finish == FINISH_STOP);
        g_assert_true(isfinite(logprob) && logprob <= 0);
    }
}

int LLVMFuzzerTestOneInput(const guint8 *data, gsize len)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) choices =
        remote_read((const char *)data, len, &request, VOCAB, VERSION, &error);

    g_assert_true((choices != NULL) == (error == NULL));
    if (!choices) {
        g_assert_cmpuint(strlen(error->message), >, 0);
        return 0;
    }
    g_assert_cmpuint(choices->len, ==, request.n);
    for (guint i = 0; i < choices->len; i++)
        check_choice(choices->pdata[i]);
    return 0;
}

void fuzz_seeds(GPtrArray *seeds)
{
    static const char *const answers[] = {
        "{\"choices\":[{\"index\":0,\"finish_reason\":\"stop\",\"token_ids\":[9,2],\"logprobs\":"
        "{\"token_logprobs\":[-0.5,-0.25]},\"weight_version\":3},{\"index\":1,\"finish_reason\":"
        "\"length\",\"token_ids\":[1,3,8,49],\"logprobs\":{\"token_logprobs\":[-1,-2,0,-1e-3]},"
        "\"prompt_token_ids\":[4,5,6]}]}",
        "{\"choices\":[{\"index\":1,\"finish_reason\":\"stop\",\"token_ids\":[7],\"logprobs\":"
        "{\"content\":[{\"token\":\"\\u0000\",\"logprob\":-3.5}]}},{\"index\":0,\"finish_reason\":"
        "\"length\",\"token_ids\":[0],\"logprobs\":{\"content\":[{\"logprob\":-1e-9}]}}]}",
        "{\"choices\":[{\"index\":0,\"finish_reason\":\"abort\",\"token_ids\":[],\"logprobs\":null}"
        "]}",
    };

    for (gsize i = 0; i < G_N_ELEMENTS(answers); i++)
        g_ptr_array_add(seeds, g_bytes_new_static(answers[i], strlen(answers[i])));
}
