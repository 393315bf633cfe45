/*
 * Rollouts: turns sampled, read, answered and rewarded.
 *
 * 1. A sample is a function of weights, task, seed and the tests' answers: not of who else runs.
 * 2. What could not be scored has no reward and says so; it is never a zero.
 * 3. Ids go from the sampler to the trainer as they are: no text is tokenised a second time.
 */
#include "env/train_rollout.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define SEED_TURN 0x9e3779b97f4a7c15u /* between the seeds of turns */

/* One episode. */
typedef struct {
    struct Rolling *all;
    const TrainTask *task;
    guint64 seed;
    GArray *ids, *mask, *mu; /* after the prompt; gint32, guint8, float */
    GArray *routes;          /* guint16 [layers, K] of the tokens read, if they are recorded */
    GArray *prompt_routes;   /* the same of the prompt; of a group's first sample */
    guint turn, turn_from;   /* of the turn that is sampled: its number, its first token */
    FinishReason finish;     /* of that turn */
    gboolean was_cut;        /* some turn ended at its limit */
    gint64 sampled;          /* tokens */
    double reward;
} Sample;

typedef struct Rolling {
    Roller *roller;
    const RolloutOptions *options;
    RolloutStats *stats;
    gint32 eos;
    guint open;   /* episodes without a reward */
    guint lost;   /* a server's doing */
    GQueue ended; /* Sample: turns to be read */
    GPtrArray *samples;
    GError *error;
} Rolling;

static void sample_free(Sample *sample)
{
    g_array_unref(sample->ids);
    g_array_unref(sample->mask);
    g_array_unref(sample->mu);
    g_array_unref(sample->routes);
    g_array_unref(sample->prompt_routes);
    g_free(sample);
}

static void rolling_clear(Rolling *all)
{
    g_queue_clear(&all->ended);
    g_clear_pointer(&all->samples, g_ptr_array_unref);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Rolling, rolling_clear)

/* ---- ends ---- */

/* DAPO's soft penalty for length (arXiv 2503.14476, 3.4), before any statistics of the group. */
static double overlong(const Sample *sample)
{
    const RolloutOptions *o = sample->all->options;
    gint64 most = o->turns * o->tokens_max;

    if (o->overlong_from == 0 || sample->sampled <= o->overlong_from || most <= o->overlong_from)
        return 0;
    return o->overlong_penalty * (double)(sample->sampled - o->overlong_from) /
           (double)(most - o->overlong_from);
}

static void episode_end(Sample *sample, double reward)
{
    RolloutStats *stats = sample->all->stats;

    sample->reward = reward - overlong(sample);
    sample->all->open--;
    stats->episodes++;
    stats->unscorable += isnan(reward) != 0;
    stats->passed += reward > 0;
    stats->passed_first += reward > 0 && sample->turn == 0;
}

/* ---- turns ---- */

static gboolean on_sample_token(Sample *sample, const EngineToken *token)
{
    if (token->token.id >= 0) {
        guint8 one = 1;

        g_array_append_val(sample->ids, token->token.id);
        g_array_append_val(sample->mask, one);
        g_array_append_val(sample->mu, token->token.logprob);
        sample->sampled++;
        sample->all->stats->tokens++;
    }
    if (token->finish == FINISH_ABORTED) {
        sample->all->stats->lost++;
        sample->all->lost++;
        episode_end(sample, (double)NAN);
    } else if (token->finish != FINISH_NONE) {
        sample->finish = token->finish;
        g_queue_push_tail(&sample->all->ended, sample);
    }
    return TRUE;
}

/* The first turn of a group: one request, its samples next to each other. */
static gboolean on_group_token(const EngineToken *token, gpointer user)
{
    Sample *const *samples = user;

    return on_sample_token(samples[token->sample], token);
}

static gboolean on_turn_token(const EngineToken *token, gpointer user)
{
    return on_sample_token(user, token);
}

/* Tokens are read in order, some more than once: with the same weights and experts. */
static void sample_route(Sample *sample, gint64 position, const guint16 *experts)
{
    gint64 prompt = sample->task->prompt->len, at = position - prompt;
    GArray *to = at < 0 ? sample->prompt_routes : sample->routes;
    guint width = sample->all->options->routes, from = (guint)(at < 0 ? position : at) * width;

    if (to->len < from + width)
        g_array_set_size(to, from + width);
    memcpy(&g_array_index(to, guint16, from), experts, width * sizeof *experts);
}

static void on_group_route(guint number, gint64 position, const guint16 *experts, gpointer user)
{
    Sample *const *samples = user;

    sample_route(samples[number], position, experts);
}

static void on_turn_route(guint number, gint64 position, const guint16 *experts, gpointer user)
{
    (void)number;
    sample_route(user, position, experts);
}

static EngineRequest request_of(const Rolling *all, const int *prompt, gint64 prompt_len)
{
    return (EngineRequest){.prompt = prompt,
                           .prompt_len = prompt_len,
                           .n = 1,
                           .tokens_max = all->options->tokens_max,
                           .params = {.temperature = all->options->temperature},
                           .repetition = all->options->repetition,
                           .stops = &all->eos,
                           .n_stops = 1};
}

static gboolean group_begin(Rolling *all, guint first, GError **error)
{
    Sample *sample = all->samples->pdata[first];
    const GArray *prompt = sample->task->prompt;
    EngineRequest request =
        request_of(all, (const int *)(gpointer)prompt->data, (gint64)prompt->len);

    request.n = all->options->samples;
    request.params.seed = sample->seed;
    request.on_token = on_group_token;
    request.on_route = all->options->routes ? on_group_route : NULL;
    request.user = &all->samples->pdata[first];
    return sampler_submit(all->roller->sampler, &request, error);
}

static gboolean turn_begin(Sample *sample, GError **error)
{
    Rolling *all = sample->all;
    g_autoptr(GArray) ids = tokens_new();
    EngineRequest request;

    g_array_append_vals(ids, sample->task->prompt->data, sample->task->prompt->len);
    g_array_append_vals(ids, sample->ids->data, sample->ids->len);
    request = request_of(all, (const int *)(gpointer)ids->data, (gint64)ids->len);
    request.params.seed = sample->seed + sample->turn * SEED_TURN;
    request.on_token = on_turn_token;
    request.on_route = all->options->routes ? on_turn_route : NULL;
    request.user = sample;
    sample->turn_from = sample->ids->len;
    return sampler_submit(all->roller->sampler, &request, error);
}

/* ---- answers ---- */

static void answer(Sample *sample, const char *words)
{
    Rolling *all = sample->all;
    GError *error = NULL;
    guint8 none = 0;
    float zero = 0;

    if (all->error)
        return;
    if (sample->turn + 1 == all->options->turns) {
        episode_end(sample, 0);
        return;
    }
    sample->turn++;
    if (!dialect_answer(all->roller->tokenizer, words, sample->finish == FINISH_STOP, sample->ids,
                        &error)) {
        all->error = error;
        return;
    }
    while (sample->mask->len < sample->ids->len) {
        g_array_append_val(sample->mask, none);
        g_array_append_val(sample->mu, zero);
    }
    if (!turn_begin(sample, &error))
        all->error = error;
}

static void on_verdict(const Verdict *verdict, gpointer user)
{
    Sample *sample = user;

    if (verdict->state == VERDICT_FAILED)
        answer(sample, DIALECT_FAIL);
    else
        episode_end(sample, verdict->state == VERDICT_PASSED ? 1 : (double)NAN);
}

static void turn_read(Sample *sample)
{
    Rolling *all = sample->all;
    guint n = sample->ids->len - sample->turn_from - (sample->finish == FINISH_STOP);
    g_autoptr(GString) text = g_string_new(NULL);
    g_autoptr(json_t) calls = NULL, changes = NULL;

    all->stats->turns++;
    sample->was_cut |= sample->finish == FINISH_LENGTH;
    all->stats->cut += sample->finish == FINISH_LENGTH;
    all->stats->repeated += sample->finish == FINISH_REPETITION;
    if (sample->finish == FINISH_STOP &&
        tokenizer_decode(all->roller->tokenizer,
                         &g_array_index(sample->ids, gint32, sample->turn_from), n, TOKENS_PLAIN,
                         text, NULL))
        calls = dialect_action(sample->task->source, text->str, &changes);
    if (!calls) {
        all->stats->invalid++;
        answer(sample, DIALECT_BAD);
        return;
    }
    verdict_ask(all->roller->verdicts, sample->task->task, changes, on_verdict, sample,
                &all->error);
}

/* ---- all of them ---- */

static void samples_make(Rolling *all, TrainTask *const *tasks, guint n)
{
    for (guint g = 0; g < n; g++)
        for (guint s = 0; s < all->options->samples; s++) {
            Sample *sample = g_new0(Sample, 1);

            sample->all = all;
            sample->task = tasks[g];
            sample->seed = all->options->seed + (guint64)g * G_MAXUINT32 + s;
            sample->ids = tokens_new();
            sample->mask = g_array_new(FALSE, FALSE, sizeof(guint8));
            sample->mu = g_array_new(FALSE, FALSE, sizeof(float));
            sample->routes = g_array_new(FALSE, FALSE, sizeof(guint16));
            sample->prompt_routes = g_array_new(FALSE, FALSE, sizeof(guint16));
            g_ptr_array_add(all->samples, sample);
            all->open++;
        }
}

static double seconds_since(gint64 since)
{
    return (double)(g_get_monotonic_time() - since) / 1e6;
}

static void run_all(Rolling *all)
{
    while (all->open > 0 && !all->error) {
        gint64 since = g_get_monotonic_time();
        guint left = sampler_step(all->roller->sampler);
        Sample *sample;

        all->stats->sample_s += seconds_since(since);
        while (!all->error && (sample = g_queue_pop_head(&all->ended)))
            turn_read(sample);
        since = g_get_monotonic_time();
        /* tests are waited for only when there is nothing to sample */
        verdict_turn(all->roller->verdicts, left == 0 && g_queue_is_empty(&all->ended) ? -1 : 0);
        all->stats->wait_s += seconds_since(since);
    }
}

static void routes_copy(guint16 *to, const GArray *routes, gsize most)
{
    memcpy(to, routes->data, MIN(routes->len, most) * sizeof *to);
}

static RolloutGroup *group_of(const Rolling *all, guint first)
{
    const Sample *one = all->samples->pdata[first];
    const GArray *prompt = one->task->prompt;
    RolloutGroup *group = rollout_group_new((const int *)(gpointer)prompt->data, (int)prompt->len,
                                            all->options->samples);

    for (guint s = 0; s < group->n; s++) {
        const Sample *sample = all->samples->pdata[first + s];

        rollout_fill(&group->rollouts[s], (const int *)(gpointer)sample->ids->data,
                     (const guint8 *)sample->mask->data, (const float *)(gpointer)sample->mu->data,
                     (int)sample->ids->len);
        group->rollouts[s].unscorable = isnan(sample->reward) != 0;
        group->rollouts[s].reward = group->rollouts[s].unscorable ? 0 : sample->reward;
        group->rollouts[s].no_loss = all->options->mask_cut && sample->was_cut;
    }
    if (all->options->routes == 0)
        return group;
    rollout_group_routes(group, all->options->routes);
    routes_copy(group->experts, one->prompt_routes, (gsize)group->prompt_n * group->width);
    for (guint s = 0; s < group->n; s++)
        routes_copy(group->rollouts[s].experts, ((Sample *)all->samples->pdata[first + s])->routes,
                    (gsize)group->rollouts[s].n * group->width);
    return group;
}

/* A server that gave not one sample is not waited for any longer. */
static void check_server(Rolling *all)
{
    RemoteStats server = sampler_stats(all->roller->sampler);

    if (!all->error && all->samples->len > 0 && all->lost == all->samples->len)
        error_set(&all->error, ASSAY_ERROR_SYSTEM, "rollout.server gives no samples: %s",
                  server.why);
}

GPtrArray *rollouts_make(Roller *roller, TrainTask *const *tasks, guint n,
                         const RolloutOptions *options, RolloutStats *stats, GError **error)
{
    g_auto(Rolling) all = {.roller = roller,
                           .options = options,
                           .stats = stats,
                           .eos = tokenizer_special(roller->tokenizer, TOKEN_EOS)};
    GPtrArray *groups;

    all.samples = g_ptr_array_new_with_free_func((GDestroyNotify)sample_free);
    samples_make(&all, tasks, n);
    for (guint g = 0; g < n && !all.error; g++)
        group_begin(&all, g * options->samples, &all.error);
    run_all(&all);
    check_server(&all);
    if (all.error) {
        while (sampler_step(roller->sampler) > 0 || verdict_turn(roller->verdicts, -1))
            continue;
        g_propagate_error(error, all.error);
        return NULL;
    }
    groups = g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);
    for (guint g = 0; g < n; g++)
        g_ptr_array_add(groups, group_of(&all, g * options->samples));
    return groups;
}
