/*
 * The engine against a naive one that runs every sample alone, a token at a time: equal streams
 * under random traces of submits, forks, aborts, small caches and speculation.
 */
#include "policy/engine.h"
#include "tests/policy/model_lab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH_MAX 160

typedef struct {
    Model *model;
    Engine *engine;
} World;

static const EngineLimits roomy = {
    .context_max = 512, .cache_bytes = 64 << 20, .rows_max = 64, .sequences_max = 256};

static World world_open(const EngineLimits *limits)
{
    g_autoptr(GError) error = NULL;
    ModelConfig config;
    World w;

    lab_golden_config(&config, 8);
    w.model = lab_random_model(ops_cpu(), &config, WEIGHT_BF16, 3);
    w.engine = engine_new(w.model, limits, &error);
    g_assert_no_error(error);
    return w;
}

static void world_close(World *w)
{
    engine_free(w->engine);
    model_free(w->model);
}

/* What one sample said. */
typedef struct {
    GArray *ids;
    GArray *logprobs;
    FinishReason finish;
    guint ends;
    gint64 stop_after; /* the caller's own end; 0: none */
} Stream;

typedef struct {
    guint64 id;
    EngineRequest request;
    int prompt[LENGTH_MAX];
    int stops[2];
    guint n;
    Stream *streams;
    GArray *prompt_logprobs;
} Ask;

static gboolean on_token(const EngineToken *token, gpointer user)
{
    Stream *s = &((Ask *)user)->streams[token->sample];

    if (token->token.id >= 0) {
        g_array_append_val(s->ids, token->token.id);
        g_array_append_val(s->logprobs, token->token.logprob);
    }
    if (token->finish != FINISH_NONE) {
        s->finish = token->finish;
        s->ends++;
    }
    return s->stop_after == 0 || s->ids->len < s->stop_after;
}

static Ask *ask_new(guint n, gint64 prompt_len, gint64 tokens_max)
{
    Ask *ask = g_new0(Ask, 1);

    for (gint64 i = 0; i < prompt_len; i++)
        ask->prompt[i] = (int)((i * i + 5 * i) % 7 + i % 13);
    ask->n = n;
    ask->streams = g_new0(Stream, n);
    ask->prompt_logprobs = g_array_new(FALSE, FALSE, sizeof(float));
    for (guint s = 0; s < n; s++) {
        ask->streams[s].ids = g_array_new(FALSE, FALSE, sizeof(int));
        ask->streams[s].logprobs = g_array_new(FALSE, FALSE, sizeof(float));
    }
    ask->request = (EngineRequest){.prompt = ask->prompt,
                                   .prompt_len = prompt_len,
                                   .n = n,
                                   .tokens_max = tokens_max,
                                   .params = {.temperature = 1, .seed = 11},
                                   .on_token = on_token,
                                   .user = ask};
    return ask;
}

static void ask_free(Ask *ask)
{
    for (guint s = 0; s < ask->n; s++) {
        g_array_unref(ask->streams[s].ids);
        g_array_unref(ask->streams[s].logprobs);
    }
    g_array_unref(ask->prompt_logprobs);
    g_free(ask->streams);
    g_free(ask);
}

static void submit(World *w, Ask *ask)
{
    g_autoptr(GError) error = NULL;

    ask->id = engine_submit(w->engine, &ask->request, &error);
    g_assert_no_error(error);
}

static void run(World *w)
{
    for (int steps = 0; engine_step(w->engine) > 0; steps++)
        g_assert_cmpint(steps, <, 100000);
}

/* The sample alone: every token from a full recomputation's last row. */
static void assert_naive(World *w, const Ask *ask, guint sample)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Acts) acts = acts_new(w->model, 512, ACTS_KEEP_NOTHING, &error);
    g_autoptr(LabSeq) seq = lab_seq_new(w->model, 512);
    const Stream *s = &ask->streams[sample];
    SampleParams params = ask->request.params;
    SampleEntry room[GOLDEN_VOCAB];
    float *logits = lab_run(seq, acts, ask->prompt, (int)ask->request.prompt_len);
    float *last = logits + (ask->request.prompt_len - 1) * GOLDEN_VOCAB;
    int zero = 0;

    params.seed += sample;
    for (guint i = 0; i < s->ids->len; i++) {
        float lse, logp;
        Sampled want;
        int id = g_array_index(s->ids, int, i);

        w->model->ops->logprob_fwd(&logp, &lse, NULL, last, &zero, 1, GOLDEN_VOCAB, GOLDEN_VOCAB,
                                   1);
        want = sample_token(last, GOLDEN_VOCAB, lse, &params, ask->request.prompt_len + i, room);
        g_assert_cmpint(id, ==, want.id);
        g_assert_true(g_array_index(s->logprobs, float, i) == want.logprob);
        free(logits);
        logits = last = lab_run(seq, acts, &id, 1);
    }
    free(logits);
}

static void test_alone(void)
{
    World w = world_open(&roomy);
    Ask *ask = ask_new(1, 37, 60);

    submit(&w, ask);
    run(&w);
    g_assert_cmpuint(ask->streams[0].ids->len, ==, 60);
    g_assert_cmpint(ask->streams[0].finish, ==, FINISH_LENGTH);
    g_assert_cmpuint(ask->streams[0].ends, ==, 1);
    assert_naive(&w, ask, 0);
    ask_free(ask);
    world_close(&w);
}

/* n samples share the prompt's pages: one prefill, and streams as if each had been alone. */
static void test_samples(void)
{
    World w = world_open(&roomy);
    Ask *ask = ask_new(16, 43, 40);
    EngineStats stats;

    submit(&w, ask);
    run(&w);
    for (guint s = 0; s < 16; s++)
        assert_naive(&w, ask, s);
    engine_stats(w.engine, &stats);
    g_assert_cmpuint(stats.rows, ==, 43 + 16 * 39);
    ask_free(ask);
    world_close(&w);
}

/* The trainer's packed pass gives the numbers that sampling recorded. */
static void test_logprobs(void)
{
    World w = world_open(&roomy);
    Ask *ask = ask_new(4, 21, 50);
    g_autoptr(GError) error = NULL;

    submit(&w, ask);
    run(&w);
    for (guint s = 0; s < 4; s++) {
        int ids[128];
        float logprobs[128];

        memcpy(ids, ask->prompt, 21 * sizeof(int));
        memcpy(ids + 21, ask->streams[s].ids->data, 50 * sizeof(int));
        g_assert_true(engine_logprobs(w.engine, ids, 71, logprobs, &error));
        for (guint i = 0; i < 50; i++)
            g_assert_true(logprobs[20 + i] == g_array_index(ask->streams[s].logprobs, float, i));
    }
    ask_free(ask);
    world_close(&w);
}

static void on_prompt(gint64 position, const float *logits, float lse, gpointer user)
{
    GArray *logprobs = ((Ask *)user)->prompt_logprobs;
    float logprob = logits[((Ask *)user)->prompt[position + 1]] - lse;

    g_assert_cmpint(position, ==, logprobs->len);
    g_array_append_val(logprobs, logprob);
}

/* Asked for beside others, in a cache that is too small for all and knows the prompt already. */
static void test_prompt_logprobs(void)
{
    EngineLimits tight = roomy;
    Ask *asks[8];
    EngineStats stats;

    tight.cache_bytes = 300000;
    tight.rows_max = 24;
    World w = world_open(&tight);
    for (guint i = 0; i < G_N_ELEMENTS(asks); i++) {
        asks[i] = ask_new(1 + i % 3, 90 + i, 40);
        asks[i]->request.on_prompt = i == 0 ? NULL : on_prompt;
        submit(&w, asks[i]);
        if (i == 0)
            run(&w);
    }
    run(&w);
    engine_stats(w.engine, &stats);
    g_assert_cmpuint(stats.preempted, >, 0);
    for (guint i = 0; i < G_N_ELEMENTS(asks); i++) {
        float want[LENGTH_MAX];

        g_assert_cmpuint(asks[i]->prompt_logprobs->len, ==, i == 0 ? 0 : 89 + i);
        g_assert_true(engine_logprobs(w.engine, asks[i]->prompt, 90 + i, want, NULL));
        for (guint t = 0; t < asks[i]->prompt_logprobs->len; t++)
            g_assert_true(g_array_index(asks[i]->prompt_logprobs, float, t) == want[t]);
        for (guint s = 0; s < asks[i]->n; s++)
            assert_naive(&w, asks[i], s);
        ask_free(asks[i]);
    }
    world_close(&w);
}

static void test_allowed(void)
{
    static const int allowed[] = {3, 17, 20};
    World w = world_open(&roomy);
    Ask *free = ask_new(4, 20, 60), *bound = ask_new(4, 20, 60), *early = ask_new(1, 20, 60);
    guint seen[GOLDEN_VOCAB] = {0};

    bound->request.allowed = early->request.allowed = allowed;
    bound->request.n_allowed = early->request.n_allowed = 3;
    early->request.stops = allowed;
    early->request.n_stops = 2;
    early->request.tokens_min = 30;
    submit(&w, free);
    submit(&w, bound);
    submit(&w, early);
    run(&w);
    for (guint s = 0; s < 4; s++) {
        int ids[80];
        float raw[80];

        assert_naive(&w, free, s); /* others in the batch do not notice */
        g_assert_cmpuint(bound->streams[s].ids->len, ==, 60);
        memcpy(ids, bound->prompt, 20 * sizeof(int));
        memcpy(ids + 20, bound->streams[s].ids->data, 60 * sizeof(int));
        g_assert_true(engine_logprobs(w.engine, ids, 80, raw, NULL));
        for (guint i = 0; i < 60; i++) {
            seen[ids[20 + i]]++;
            g_assert_true(g_array_index(bound->streams[s].logprobs, float, i) == raw[19 + i]);
        }
    }
    g_assert_cmpuint(seen[3] + seen[17] + seen[20], ==, 240);
    g_assert_true(seen[3] > 0 && seen[17] > 0 && seen[20] > 0);
    for (guint i = 0; i < 30; i++)
        g_assert_cmpint(g_array_index(early->streams[0].ids, int, i), ==, 20);
    ask_free(free);
    ask_free(bound);
    ask_free(early);
    world_close(&w);
}

static void test_prefix(void)
{
    World w = world_open(&roomy);
    Ask *first = ask_new(1, 50, 30), *again = ask_new(1, 50, 30), *other = ask_new(1, 50, 30);
    EngineStats stats;

    submit(&w, first);
    run(&w);
    submit(&w, again);
    run(&w);
    engine_stats(w.engine, &stats);
    g_assert_cmpuint(stats.prefix_tokens, ==, 48); /* whole chunks of 8 */
    g_assert_cmpuint(stats.misses[PREFIX_NEW], ==, 1);
    g_assert_cmpuint(stats.misses[PREFIX_WHOLE], ==, 1);
    assert_naive(&w, again, 0);

    other->prompt[20] ^= 1; /* parts in the third chunk, where no state is: the ladder has 2 */
    submit(&w, other);
    run(&w);
    engine_stats(w.engine, &stats);
    g_assert_cmpuint(stats.prefix_tokens, ==, 48 + 16);
    assert_naive(&w, other, 0);

    engine_weights_changed(w.engine, FALSE);
    submit(&w, again);
    g_array_set_size(again->streams[0].ids, 0);
    g_array_set_size(again->streams[0].logprobs, 0);
    run(&w);
    engine_stats(w.engine, &stats);
    g_assert_cmpuint(stats.misses[PREFIX_WEIGHTS], ==, 1);
    assert_naive(&w, again, 0);
    ask_free(first);
    ask_free(again);
    ask_free(other);
    world_close(&w);
}

static void test_drafts(void)
{
    EngineLimits limits = roomy;
    Ask *plain, *drafted;
    EngineStats stats;
    World w;

    w = world_open(&limits);
    plain = ask_new(3, 40, 100);
    plain->request.params.temperature = 0.3; /* repeats itself, so that guesses come true */
    submit(&w, plain);
    run(&w);
    world_close(&w);

    limits.draft_max = 8;
    w = world_open(&limits);
    drafted = ask_new(3, 40, 100);
    drafted->request.params.temperature = 0.3;
    submit(&w, drafted);
    run(&w);
    engine_stats(w.engine, &stats);
    g_test_message("%" G_GUINT64_FORMAT " guessed, %" G_GUINT64_FORMAT " right, %" G_GUINT64_FORMAT
                   " steps",
                   stats.drafted, stats.accepted, stats.steps);
    g_assert_cmpuint(stats.accepted, >, 0);
    for (guint s = 0; s < 3; s++) {
        g_assert_cmpmem(plain->streams[s].ids->data, 100 * sizeof(int),
                        drafted->streams[s].ids->data, 100 * sizeof(int));
        g_assert_cmpmem(plain->streams[s].logprobs->data, 100 * sizeof(float),
                        drafted->streams[s].logprobs->data, 100 * sizeof(float));
    }
    ask_free(plain);
    ask_free(drafted);
    world_close(&w);
}

static void test_ends(void)
{
    World w = world_open(&roomy);
    Ask *stop = ask_new(1, 20, 100), *caller = ask_new(2, 20, 100), *gone = ask_new(3, 20, 100);
    Ask *early = ask_new(1, 20, 60);

    submit(&w, stop);
    run(&w);
    /* the fifth token of that sample, as a stop token: it ends there or before */
    stop->stops[0] = g_array_index(stop->streams[0].ids, int, 4);
    stop->request.stops = early->request.stops = stop->stops;
    stop->request.n_stops = early->request.n_stops = 1;
    early->request.tokens_min = 30;
    g_array_set_size(stop->streams[0].ids, 0);
    g_array_set_size(stop->streams[0].logprobs, 0);
    caller->streams[1].stop_after = 7;
    submit(&w, stop);
    submit(&w, early);
    submit(&w, caller);
    submit(&w, gone);
    for (int i = 0; i < 10; i++)
        engine_step(w.engine);
    g_assert_true(engine_abort(w.engine, gone->id));
    g_assert_false(engine_abort(w.engine, gone->id));
    run(&w);
    g_assert_cmpint(stop->streams[0].finish, ==, FINISH_STOP);
    g_assert_cmpuint(stop->streams[0].ids->len, <=, 5);
    g_assert_cmpint(g_array_index(stop->streams[0].ids, int, stop->streams[0].ids->len - 1), ==,
                    stop->stops[0]);
    for (guint i = 0; i < 30; i++)
        g_assert_cmpint(g_array_index(early->streams[0].ids, int, i), !=, stop->stops[0]);
    g_assert_cmpint(caller->streams[1].finish, ==, FINISH_CALLER);
    g_assert_cmpuint(caller->streams[1].ids->len, ==, 7);
    g_assert_cmpint(caller->streams[0].finish, ==, FINISH_LENGTH);
    assert_naive(&w, caller, 0);
    for (guint s = 0; s < 3; s++) {
        g_assert_cmpint(gone->streams[s].finish, ==, FINISH_ABORTED);
        g_assert_cmpuint(gone->streams[s].ends, ==, 1);
    }
    ask_free(stop);
    ask_free(early);
    ask_free(caller);
    ask_free(gone);
    world_close(&w);
}

/* Greedy on a small model soon repeats itself with certainty once the head is multiplied, so that
 * the best token has all the probability. */
static void test_repetition(void)
{
    World w = world_open(&roomy);
    Ask *ask = ask_new(1, 10, 400);
    TensorInfo head =
        tensors_info(&w.model->config, tensors_index(&w.model->config, 0, SLOT_HEAD, 0));
    g_autofree float *rows = g_new(float, head.count);

    model_get(w.model, &head, rows);
    for (guint64 i = 0; i < head.count; i++)
        rows[i] *= 1000;
    model_set(w.model, &head, rows);
    ask->request.params.temperature = 0;
    ask->request.repetition = 30;
    submit(&w, ask);
    run(&w);
    g_assert_cmpint(ask->streams[0].finish, ==, FINISH_REPETITION);
    g_assert_cmpuint(ask->streams[0].ids->len, >=, 30);
    for (guint i = ask->streams[0].ids->len - 30; i < ask->streams[0].ids->len; i++)
        g_assert_cmpfloat(exp(g_array_index(ask->streams[0].logprobs, float, i)), >, 0.99);
    if (ask->streams[0].ids->len > 30)
        g_assert_cmpfloat(
            exp(g_array_index(ask->streams[0].logprobs, float, ask->streams[0].ids->len - 31)), <=,
            0.99);
    ask_free(ask);
    world_close(&w);
}

/* Stopped after some steps, put away, gone on with in another engine of the same weights. */
static GBytes *stopped(World *w, Ask *ask, int steps)
{
    g_autoptr(GError) error = NULL;
    GBytes *bytes;

    submit(w, ask);
    for (int i = 0; i < steps; i++)
        engine_step(w->engine);
    bytes = engine_snapshot(w->engine, ask->id, 0, &error);
    g_assert_no_error(error);
    engine_abort(w->engine, ask->id);
    run(w);
    return bytes;
}

static void test_snapshot(void)
{
    static const int steps[] = {1, 2, 5, 12, 13, 40};

    for (guint i = 0; i < G_N_ELEMENTS(steps); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(GBytes) bytes = NULL;
        World first = world_open(&roomy), second = world_open(&roomy);
        Ask *ask = ask_new(1, 19, 70);

        bytes = stopped(&first, ask, steps[i]);
        g_assert_cmpuint(ask->streams[0].ids->len, <, 70);
        ask->id = engine_restore(second.engine, bytes, FALSE, on_token, ask, &error);
        g_assert_no_error(error);
        run(&second);
        g_assert_cmpuint(ask->streams[0].ids->len, ==, 70);
        g_assert_cmpint(ask->streams[0].finish, ==, FINISH_LENGTH);
        assert_naive(&second, ask, 0);
        ask_free(ask);
        world_close(&first);
        world_close(&second);
    }
}

static void refuse_snapshot(World *w, GBytes *bytes, const char *message)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpuint(engine_restore(w->engine, bytes, FALSE, NULL, NULL, &error), ==, 0);
    g_assert_nonnull(error);
    if (!strstr(error->message, message))
        g_error("got: %s", error->message);
}

/* A snapshot with `from` in its text replaced by `to` of the same length, its digest made right. */
static GBytes *forged(GBytes *bytes, const char *from, const char *to)
{
    gsize size, length = 32;
    const guint8 *data = g_bytes_get_data(bytes, &size);
    guint8 *copy = g_memdup2(data, size);
    char *at = memmem(copy, size, from, strlen(from));
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);

    g_assert_cmpuint(strlen(from), ==, strlen(to));
    g_assert_nonnull(at);
    memcpy(at, to, strlen(to));
    g_checksum_update(sum, copy, (gssize)size - 32);
    g_checksum_get_digest(sum, copy + size - 32, &length);
    return g_bytes_new_take(copy, size);
}

static void test_snapshot_refused(void)
{
    World w = world_open(&roomy);
    Ask *ask = ask_new(1, 19, 70);
    g_autoptr(GBytes) bytes = stopped(&w, ask, 12);
    static const struct {
        const char *from, *to, *message;
    } lies[] = {
        {"\"tokens\":29", "\"tokens\":99", "bytes where"},
        {"\"computed\":28", "\"computed\":-1", "out of range"},
        {"\"computed\":28", "\"computed\":99", "contradict"},
        {"\"computed\":28", "\"computed\":22", "bytes where"},
        {"\"prompt_tokens\":19", "\"prompt_tokens\":00", "header"},
        {"\"tokens_max\":70", "\"tokens_may\":70", "header"},
        {"\"temperature\":1.0", "\"temperature\":1e9", "temperature"},
        {"chunk 8", "chunk 4", "made with"},
        {"\"format\":2", "\"format\":7", "format 7"},
        {"\"stops\":[]", "\"stops\":77", "list of ids"},
        {"\"allowed\":[]", "\"allowed\":77", "list of ids"},
    };
    gsize size = g_bytes_get_size(bytes);

    for (guint i = 0; i < G_N_ELEMENTS(lies); i++) {
        g_autoptr(GBytes) lie = forged(bytes, lies[i].from, lies[i].to);

        refuse_snapshot(&w, lie, lies[i].message);
    }
    for (gsize cut = 0; cut < size; cut += 1 + cut / 7) {
        g_autoptr(GBytes) part = g_bytes_new_from_bytes(bytes, 0, cut);

        refuse_snapshot(&w, part, "snapshot");
    }
    for (int i = 0; i < 200; i++) {
        g_autofree guint8 *copy = g_memdup2(g_bytes_get_data(bytes, NULL), size);
        g_autoptr(GBytes) flipped = NULL;

        copy[g_test_rand_int_range(0, (gint32)size)] ^= (guint8)(1 << g_test_rand_int_range(0, 8));
        flipped = g_bytes_new(copy, size);
        refuse_snapshot(&w, flipped, "snapshot");
    }
    {
        TensorInfo norm = tensors_info(&w.model->config, 1);
        float rows[16] = {1, 2, 3};

        model_set(w.model, &norm, rows);
        engine_weights_changed(w.engine, FALSE);
        refuse_snapshot(&w, bytes, "other weights");
        g_assert_cmpuint(engine_restore(w.engine, bytes, TRUE, on_token, ask, NULL), >, 0);
        run(&w);
    }
    ask_free(ask);
    world_close(&w);
}

static void refuse(World *w, EngineRequest request, const char *message)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpuint(engine_submit(w->engine, &request, &error), ==, 0);
    g_assert_nonnull(error);
    if (!strstr(error->message, message))
        g_error("got: %s", error->message);
}

static void test_refused(void)
{
    EngineLimits small = roomy;
    Ask *ask = ask_new(1, 20, 20);
    EngineRequest r = ask->request;
    int bad = GOLDEN_VOCAB; /* the first id that is none */
    World w;

    small.cache_bytes = 100000;
    w = world_open(&small);
    {
        struct {
            EngineRequest request;
            const char *message;
        } cases[] = {
            {r, "context of 512"},
            {r, "bytes of cache, there are 100000"},
            {r, "prompt: must be at least one token"},
            {r, "id 29 at 0"},
            {r, "temperature: nan"},
            {r, "top_p: 1.5"},
            {r, "stop_token_ids: 1000000"},
            {r, "n: 0 sequences are open, 300 more"},
            {r, "allowed_token_ids: id 29 at 0"},
            {r, "min_tokens: every token"},
        };

        cases[0].request.tokens_max = 1000;
        cases[1].request.tokens_max = 490;
        cases[2].request.prompt_len = 0;
        cases[3].request.prompt = &bad;
        cases[3].request.prompt_len = 1;
        cases[4].request.params.temperature = NAN;
        cases[5].request.params.top_p = 1.5;
        cases[6].request.n_stops = 1000000;
        cases[7].request.n = 300;
        cases[8].request.allowed = &bad;
        cases[9].request.allowed = cases[9].request.stops = ask->prompt;
        cases[8].request.n_allowed = cases[9].request.n_allowed = cases[9].request.n_stops = 1;
        cases[9].request.tokens_min = 1;
        for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
            refuse(&w, cases[i].request, cases[i].message);
    }
    ask_free(ask);
    world_close(&w);
}

/* Random traces under a cache that is far too small for all. */
static void test_traces(void)
{
    EngineLimits tight = roomy;

    tight.cache_bytes = 400000;
    tight.draft_max = 4;
    tight.rows_max = 24;
    for (int trace = 0; trace < 12; trace++) {
        World w = world_open(&tight);
        g_autoptr(GPtrArray) asks = g_ptr_array_new_with_free_func((GDestroyNotify)ask_free);
        EngineStats stats;

        for (int event = 0; event < 120; event++) {
            int what = g_test_rand_int_range(0, 10);

            if (what < 2) {
                Ask *ask = ask_new((guint)g_test_rand_int_range(1, 6), g_test_rand_int_range(1, 90),
                                   g_test_rand_int_range(1, 60));

                if (g_test_rand_bit())
                    ask->prompt[g_test_rand_int_range(0, 90)] = 3;
                ask->request.params.temperature = g_test_rand_bit() ? 0.2 : 1;
                ask->request.params.top_p = g_test_rand_bit() ? 0.9 : 0;
                submit(&w, ask);
                g_ptr_array_add(asks, ask);
            } else if (what == 2 && asks->len > 0) {
                Ask *ask = asks->pdata[g_test_rand_int_range(0, (gint32)asks->len)];

                engine_abort(w.engine, ask->id);
            } else {
                engine_step(w.engine);
            }
        }
        run(&w);
        for (guint i = 0; i < asks->len; i++) {
            Ask *ask = asks->pdata[i];

            for (guint s = 0; s < ask->n; s++) {
                g_assert_cmpuint(ask->streams[s].ends, ==, 1);
                assert_naive(&w, ask, s);
            }
        }
        engine_stats(w.engine, &stats);
        g_test_message("%u asks, %" G_GUINT64_FORMAT " put off, %" G_GUINT64_FORMAT
                       " tokens from prefixes",
                       asks->len, stats.preempted, stats.prefix_tokens);
        g_assert_cmpuint(stats.cache_peak, <=, tight.cache_bytes);
        g_ptr_array_set_size(asks, 0);
        world_close(&w);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/engine/a_sample_alone", test_alone);
    g_test_add_func("/engine/samples_of_one_prompt", test_samples);
    g_test_add_func("/engine/the_packed_pass_gives_the_recorded_logprobs", test_logprobs);
    g_test_add_func("/engine/logprobs_of_a_prompt_whatever_the_scheduler_does",
                    test_prompt_logprobs);
    g_test_add_func("/engine/only_allowed_tokens_are_drawn", test_allowed);
    g_test_add_func("/engine/a_known_prefix_is_not_computed_again", test_prefix);
    g_test_add_func("/engine/drafts_change_nothing_but_the_steps", test_drafts);
    g_test_add_func("/engine/every_way_to_end", test_ends);
    g_test_add_func("/engine/the_repetition_stop", test_repetition);
    g_test_add_func("/engine/what_can_never_run_is_refused", test_refused);
    g_test_add_func("/engine/a_sample_goes_on_from_its_snapshot", test_snapshot);
    g_test_add_func("/engine/a_snapshot_that_lies_is_refused", test_snapshot_refused);
    g_test_add_func("/engine/random_traces_in_a_small_cache", test_traces);
    return g_test_run();
}
