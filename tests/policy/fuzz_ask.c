/*
 * What strangers may ask of assay policy serve: bodies of every endpoint that has fields.
 *
 * The first byte of an input says which endpoint, and whether the rest is JSON or a list of pairs,
 * a field and a value for it: so nearly every input is an object, and gets past the parser.
 */
#include "env/policy_ask.h"
#include "tests/policy/model_lab.h"
#include "tests/policy/policy_lab.h"
#include "tests/sandbox/fuzz.h"

#include "base/json.h"

#include <math.h>
#include <string.h>

#define VOCAB 400

static PolicyRuntime *shared(void)
{
    static PolicyRuntime runtime;
    if (runtime.engine != NULL)
        return &runtime;
    static const EngineLimits limits = {
        .context_max = 512, .cache_bytes = 16 << 20, .rows_max = 64, .sequences_max = 4096};
    ModelConfig config;
    lab_golden_config(&config, 8);
    config.vocab = config.vocab_valid = VOCAB;
    runtime.tokenizer = lab_tokenizer(300);
    runtime.style = *chat_style("official");
    runtime.context = limits.context_max;
    runtime.model = lab_random_model(ops_cpu(), &config, WEIGHT_BF16, 1);
    runtime.engine = engine_new(runtime.model, &limits, NULL);
    return &runtime;
}

/* "field ANY: ..." or "known.field: ..." */
static gboolean names_field(const GError *error)
{
    const char *text = error->message;
    gsize len = strspn(text, "abcdefghijklmnopqrstuvwxyz_0123456789.[]");
    return g_str_has_prefix(text, "field ") || (len > 0 && text[len] == ':');
}

/* What an ask promises the engine and the answer. */
static void check_ask(PolicyRuntime *runtime, PolicyAsk *ask)
{
    if (ask->shape == SHAPE_TOKENIZE || ask->shape == SHAPE_DETOKENIZE) {
        g_autoptr(json_t) reply = json_parse(ask->reply, strlen(ask->reply), NULL);
        g_assert_true(json_is_object(reply));
        return;
    }
    g_assert_true(ask->shape != SHAPE_UPDATE || ask->path != NULL);
    if (ask->shape == SHAPE_UPDATE || ask->shape == SHAPE_NONE)
        return;
    g_assert_cmpuint(policy_ask_choices(ask), >=, 1);
    g_assert_cmpuint(policy_ask_choices(ask), <=, POLICY_CHOICES_MAX);
    g_assert_cmpuint(ask->top, <=, POLICY_TOP_MAX);
    g_assert_true(ask->top == 0 || ask->logprobs);
    g_assert_cmpint(ask->prompt_top, <=, POLICY_TOP_MAX);
    g_assert_true(!ask->usage || ask->stream);
    g_assert_cmpint(ask->engine.tokens_max, >=, 1);
    g_assert_nonnull(ask->stops);
    for (guint i = 0; i < ask->prompts->len; i++) {
        const GArray *prompt = ask->prompts->pdata[i];
        g_autoptr(GError) error = NULL;
        EngineRequest request = ask->engine;
        request.prompt = (const int *)(gconstpointer)prompt->data;
        request.prompt_len = prompt->len;
        guint64 id = engine_submit(runtime->engine, &request, &error);
        g_assert_true((id == 0) == (error != NULL));
        g_assert_true(id != 0 || names_field(error));
        engine_abort(runtime->engine, id);
    }
    engine_step(runtime->engine);
}

static const char *const keys[] = {"model",
                                   "prompt",
                                   "messages",
                                   "tools",
                                   "tool_choice",
                                   "temperature",
                                   "top_p",
                                   "min_p",
                                   "top_k",
                                   "n",
                                   "seed",
                                   "min_tokens",
                                   "max_tokens",
                                   "max_completion_tokens",
                                   "return_token_ids",
                                   "stop",
                                   "stop_token_ids",
                                   "ignore_eos",
                                   "allowed_token_ids",
                                   "logprobs",
                                   "top_logprobs",
                                   "logprob_source",
                                   "prompt_logprobs",
                                   "user",
                                   "stream",
                                   "stream_options",
                                   "add_generation_prompt",
                                   "continue_final_message",
                                   "token_ids",
                                   "sampling_params",
                                   "tokens",
                                   "kind",
                                   "path",
                                   "recompute",
                                   "nothing"};

static const char *const values[] = {
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "2",
    "20",
    "21",
    "0.5",
    "1e308",
    "-1e-308",
    "2147483647",
    "2147483648",
    "9223372036854775807",
    "-9223372036854775808",
    "\"\"",
    "\"x\"",
    "\"auto\"",
    "\"none\"",
    "\"raw\"",
    "\"m\"",
    "\"checkpoint\"",
    "\"\\ufffd\\ud83d\\ude00\"",
    "[]",
    "[1]",
    "[1,2,3]",
    "[-1]",
    "[399]",
    "[400]",
    "[2147483648]",
    "[1.5]",
    "[null]",
    "[[1],[2]]",
    "[\"a\",\"ab\",\"b\"]",
    "[\"\"]",
    "[[]]",
    "[\"x\",[1]]",
    "{}",
    "{\"include_usage\":true}",
    "{\"n\":2,\"stop\":[\"x\"]}",
    "{\"temperature\":0,\"max_tokens\":3}",
    "{\"stream\":true}",
    "[{\"role\":\"user\",\"content\":\"x\"}]",
    "[{\"role\":\"user\"}]",
    "[{\"role\":1}]",
    "[{}]",
    "[{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
    "\"arguments\":\"{}\"}}]}]",
    "[{\"role\":\"assistant\",\"content\":[{\"type\":\"image\"}]}]",
    "[{\"name\":\"f\"}]",
    "[{\"type\":\"function\",\"function\":{\"name\":\"\"}}]",
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"a\":[{}]}}}]"};

/* What makes a body of each shape whole. */
static const char *const bases[] = {
    [SHAPE_NONE] = "{}",
    [SHAPE_COMPLETION] = "{\"prompt\":\"x\"}",
    [SHAPE_CHAT] = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
    [SHAPE_GENERATE] = "{\"token_ids\":[1,2],\"sampling_params\":{}}",
    [SHAPE_TOKENIZE] = "{\"prompt\":\"x\"}",
    [SHAPE_DETOKENIZE] = "{\"tokens\":[65]}",
    [SHAPE_UPDATE] = "{\"path\":\"x\"}",
};

/* Whether the shape has a field of that name. */
static gboolean is_known(PolicyShape shape, guint key)
{
    static gint8 known[SHAPE_UPDATE + 1][G_N_ELEMENTS(keys)]; /* 0: not asked yet */
    if (known[shape][key] == 0) {
        g_autoptr(json_t) body = json_pack("{s:n}", keys[key]);
        g_autoptr(GError) error = NULL;
        g_autoptr(PolicyAsk) ask = policy_ask_parse(shared(), "m", shape, body, &error);
        known[shape][key] = ask == NULL && strstr(error->message, "unknown") != NULL ? -1 : 1;
    }
    return known[shape][key] > 0;
}

/* Pairs of bytes to an object; the last of two equal fields counts. Fields of other shapes come
 * from values above 0xf0 only: one of them is the end of everything else. */
static json_t *composed(PolicyShape shape, const guint8 *data, gsize len)
{
    json_t *object = json_loads(bases[shape], 0, NULL);
    json_t *inner = json_object_get(object, "sampling_params");
    for (gsize i = 0; i + 1 < len; i += 2) {
        guint key = data[i] % G_N_ELEMENTS(keys);
        const char *value = values[data[i + 1] % G_N_ELEMENTS(values)];
        if (is_known(shape, key) || data[i + 1] > 0xf0)
            json_object_set_new(object, keys[key], json_loads(value, JSON_DECODE_ANY, NULL));
        else if (inner != NULL && is_known(SHAPE_COMPLETION, key))
            json_object_set_new(inner, keys[key], json_loads(value, JSON_DECODE_ANY, NULL));
    }
    return object;
}

int LLVMFuzzerTestOneInput(const guint8 *data, gsize len)
{
    if (len == 0)
        return 0;
    PolicyRuntime *runtime = shared();
    g_autoptr(GError) error = NULL;
    PolicyShape shape = (PolicyShape)((data[0] & 0x7f) % (SHAPE_UPDATE + 1));
    g_autoptr(json_t) body = data[0] & 0x80 ? json_parse((const char *)data + 1, len - 1, NULL)
                                            : composed(shape, data + 1, len - 1);
    if (!json_is_object(body))
        return 0;
    g_autoptr(PolicyAsk) ask = policy_ask_parse(runtime, "m", shape, body, &error);
    g_assert_true((ask == NULL) == (error != NULL));
    if (ask != NULL)
        check_ask(runtime, ask);
    else if (!names_field(error))
        g_error("names no field: %s", error->message);
    return 0;
}

static void add_seed(GPtrArray *seeds, guint8 kind, const char *text, gsize len)
{
    g_autoptr(GByteArray) seed = g_byte_array_new();
    g_byte_array_append(seed, &kind, 1);
    g_byte_array_append(seed, (const guint8 *)text, (guint)len);
    g_ptr_array_add(seeds, g_byte_array_free_to_bytes(g_steal_pointer(&seed)));
}

void fuzz_seeds(GPtrArray *seeds)
{
    static const struct {
        PolicyShape shape;
        const char *json;
    } rows[] = {
        {SHAPE_NONE, "{}"},
        {SHAPE_COMPLETION,
         "{\"model\":\"m\",\"prompt\":[\"a\",\"b\"],\"n\":2,\"temperature\":0.5,\"top_p\":0.9,"
         "\"top_k\":5,"
         "\"min_p\":0.1,\"seed\":7,\"stop\":[\"x\",\"yz\"],\"stop_token_ids\":[3],\"logprobs\":2,"
         "\"logprob_source\":\"raw\",\"return_token_ids\":true,\"stream\":true,"
         "\"stream_options\":{\"include_usage\":true}}"},
        {SHAPE_CHAT,
         "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":[{"
         "\"type\":"
         "\"text\",\"text\":\"q\"}]}],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":"
         "\"f\","
         "\"parameters\":{}}}],\"tool_choice\":\"auto\",\"logprobs\":true,\"top_logprobs\":3,"
         "\"prompt_logprobs\":1,\"max_completion_tokens\":9}"},
        {SHAPE_GENERATE,
         "{\"token_ids\":[1,2,3],\"sampling_params\":{\"max_tokens\":4,\"allowed_token_ids\":[5,6],"
         "\"min_tokens\":2,\"ignore_eos\":true}}"},
        {SHAPE_TOKENIZE, "{\"prompt\":\"Hello 世界\"}"},
        {SHAPE_DETOKENIZE, "{\"tokens\":[72,105,256]}"},
        {SHAPE_UPDATE, "{\"kind\":\"checkpoint\",\"path\":\"/m\",\"recompute\":true}"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        char pairs[12];
        add_seed(seeds, (guint8)(0x80 | rows[i].shape), rows[i].json, strlen(rows[i].json));
        for (gsize j = 0; j < sizeof pairs; j++)
            pairs[j] = (char)(j * (7 + i));
        for (gsize n = 0; n <= sizeof pairs; n += 4)
            add_seed(seeds, (guint8)rows[i].shape, pairs, n);
    }
}
