/*
 * Rollouts: turns sampled, read, answered and rewarded.
 *
 * 1. A sample is a function of weights, task, seed and the tests' answers: not of who else runs.
 * 2. What could not be scored has no reward and says so; it is never a zero.
 * 3. Ids go from the sampler to the trainer as they are: no text is tokenised a second time.
 */
#include "env/train_rollout.h"

#include "env/train_kind.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

#define SEED_TURN    0x9e3779b97f4a7c15u /* between the seeds of turns */
#define BOTH_WAIT_MS 10                  /* for tests, while tools are at work as well */
#define STEP_WAIT_MS 100                 /* for tools */

typedef struct Rolling {
    TurnDesk desk;
    Roller *roller;
    const RolloutOptions *options;
    gint32 eos;
    guint open;         /* episodes without a last word */
    guint lost;         /* a server's doing */
    GQueue ended;       /* TurnEpisode: turns to be read */
    GPtrArray *samples; /* TurnEpisode */
} Rolling;

/* The desk is the first thing in it. */
static Rolling *rolling_of(const TurnEpisode *sample)
{
    return (Rolling *)(gpointer)sample->desk;
}

static void sample_close(TurnEpisode *sample)
{
    if (sample->desk->dialect->close)
        sample->desk->dialect->close(sample);
}

static void sample_free(TurnEpisode *sample)
{
    sample_close(sample);
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

/* ---- turns ---- */

static gboolean on_sample_token(TurnEpisode *sample, const EngineToken *token)
{
    if (token->token.id >= 0) {
        guint8 one = 1;

        g_array_append_val(sample->ids, token->token.id);
        g_array_append_val(sample->mask, one);
        g_array_append_val(sample->mu, token->token.logprob);
        sample->sampled++;
        sample->desk->stats->tokens++;
    }
    if (token->finish != FINISH_NONE) {
        sample->finish = token->finish;
        g_queue_push_tail(&rolling_of(sample)->ended, sample);
    }
    return TRUE;
}

/* The first turn of a group: one request, its samples next to each other. */
static gboolean on_group_token(const EngineToken *token, gpointer user)
{
    TurnEpisode *const *samples = user;

    return on_sample_token(samples[token->sample], token);
}

static gboolean on_turn_token(const EngineToken *token, gpointer user)
{
    return on_sample_token(user, token);
}

/* Tokens are read in order, some more than once: with the same weights and experts. */
static void sample_route(TurnEpisode *sample, gint64 position, const guint16 *experts)
{
    gint64 prompt = sample->task->prompt->len, at = position - prompt;
    GArray *to = at < 0 ? sample->prompt_routes : sample->routes;
    guint width = rolling_of(sample)->options->routes,
          from = (guint)(at < 0 ? position : at) * width;

    if (to->len < from + width)
        g_array_set_size(to, from + width);
    memcpy(&g_array_index(to, guint16, from), experts, width * sizeof *experts);
}

static void on_group_route(guint number, gint64 position, const guint16 *experts, gpointer user)
{
    TurnEpisode *const *samples = user;

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
    TurnEpisode *sample = all->samples->pdata[first];
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

static gboolean turn_begin(TurnEpisode *sample, GError **error)
{
    Rolling *all = rolling_of(sample);
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

static void sample_next(TurnEpisode *sample)
{
    TurnDesk *desk = sample->desk;
    guint8 none = 0;
    float zero = 0;

    sample->turn++;
    while (sample->mask->len < sample->ids->len) {
        g_array_append_val(sample->mask, none);
        g_array_append_val(sample->mu, zero);
    }
    if (!desk->error)
        turn_begin(sample, &desk->error);
}

/* ---- endings ---- */

/* DAPO's soft penalty for length (arXiv 2503.14476, 3.4), before any statistics of the group. */
static double overlong(const TurnEpisode *sample)
{
    const RolloutOptions *o = rolling_of(sample)->options;
    gint64 most = o->turns * o->tokens_max;

    if (o->overlong_from == 0 || sample->sampled <= o->overlong_from || most <= o->overlong_from)
        return 0;
    return o->overlong_penalty * (double)(sample->sampled - o->overlong_from) /
           (double)(most - o->overlong_from);
}

/* From its prompt, with the same seed. */
static void begin_again(TurnEpisode *sample)
{
    TurnDesk *desk = sample->desk;

    sample_close(sample);
    g_array_set_size(sample->ids, 0);
    g_array_set_size(sample->mask, 0);
    g_array_set_size(sample->mu, 0);
    g_array_set_size(sample->routes, 0);
    sample->turn = 0;
    sample->f2p = 0;
    sample->p2p = 1;
    sample->sampled = 0;
    sample->was_cut = FALSE;
    desk->stats->retried++;
    turn_begin(sample, &desk->error);
}

static void sample_end(TurnEpisode *sample, EpisodeEnd end, double reward)
{
    TurnDesk *desk = sample->desk;
    RolloutStats *stats = desk->stats;
    guint kind = train_kind_number(sample->task->kind);

    if (desk->error)
        return;
    if (isnan(reward) || episode_end_rule(end)->reward == EPISODE_REWARD_NONE)
        end = EPISODE_INFRASTRUCTURE;
    if (end == EPISODE_INFRASTRUCTURE && sample->tries++ < desk->dialect->retries) {
        begin_again(sample);
        return;
    }
    sample->end = end;
    sample->reward = end == EPISODE_INFRASTRUCTURE ? (double)NAN : reward - overlong(sample);
    rolling_of(sample)->open--;
    stats->episodes++;
    stats->ends[end]++;
    stats->unscorable += end == EPISODE_INFRASTRUCTURE;
    stats->passed += reward >= 1;
    stats->passed_first += reward >= 1 && sample->turn == 0;
    if (end != EPISODE_INFRASTRUCTURE) {
        stats->kind_n[kind]++;
        stats->kind_reward[kind] += sample->reward;
        stats->f2p += sample->f2p;
        stats->p2p += sample->p2p;
    }
}

/* ---- turns that were sampled ---- */

/* A server could not sample the turn, often as it was asked: it is not asked for the episode again.
 * One that the dialect has opened is ended by it, for tools may be in a box. */
static void turn_lost(TurnEpisode *sample)
{
    sample->desk->stats->lost++;
    rolling_of(sample)->lost++;
    sample->tries = sample->desk->dialect->retries;
    if (sample->own)
        sample->desk->dialect->turn(sample);
    else
        sample_end(sample, EPISODE_ABORTED, (double)NAN);
}

static void turn_read(TurnEpisode *sample)
{
    RolloutStats *stats = sample->desk->stats;

    if (sample->finish == FINISH_ABORTED) {
        turn_lost(sample);
        return;
    }
    stats->turns++;
    sample->was_cut |= sample->finish == FINISH_LENGTH;
    stats->cut += sample->finish == FINISH_LENGTH;
    stats->repeated += sample->finish == FINISH_REPETITION;
    sample->desk->dialect->turn(sample);
}

/* ---- all of them ---- */

static void samples_make(Rolling *all, TrainTask *const *tasks, guint n)
{
    for (guint g = 0; g < n; g++)
        for (guint s = 0; s < all->options->samples; s++) {
            TurnEpisode *sample = g_new0(TurnEpisode, 1);

            sample->desk = &all->desk;
            sample->task = tasks[g];
            sample->seed = all->options->seed + (guint64)g * G_MAXUINT32 + s;
            sample->p2p = 1;
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

/* What tests and tools have to say, waited for only when there is nothing to sample. */
static void hear(Rolling *all, gboolean waits)
{
    TurnDesk *desk = &all->desk;
    gboolean stepping = desk->steps && steps_under_way(desk->steps) > 0;
    gboolean testing = verdict_turn(desk->verdicts, !waits ? 0 : stepping ? BOTH_WAIT_MS : -1);
    StepJob *job;

    waits = waits && !testing && g_queue_is_empty(&all->ended);
    while (stepping && (job = steps_next(desk->steps, waits ? STEP_WAIT_MS : 0))) {
        desk->dialect->step_done(job);
        waits = FALSE;
    }
}

static void run_all(Rolling *all)
{
    TurnDesk *desk = &all->desk;

    while (all->open > 0 && !desk->error) {
        gint64 since = g_get_monotonic_time();
        guint left = sampler_step(all->roller->sampler);
        TurnEpisode *sample;

        desk->stats->sample_s += seconds_since(since);
        while (!desk->error && (sample = g_queue_pop_head(&all->ended)))
            turn_read(sample);
        since = g_get_monotonic_time();
        hear(all, left == 0 && g_queue_is_empty(&all->ended));
        desk->stats->wait_s += seconds_since(since);
    }
}

/* After an error: nothing of the sampler, the boxes and the lanes points here any more. */
static void drain(Rolling *all)
{
    TurnDesk *desk = &all->desk;
    StepJob *job;

    while (sampler_step(all->roller->sampler) > 0 || verdict_turn(desk->verdicts, -1))
        continue;
    if (!desk->steps)
        return;
    steps_abandon(desk->steps);
    while ((job = steps_next(desk->steps, -1)))
        step_job_free(job);
}

static void routes_copy(guint16 *to, const GArray *routes, gsize most)
{
    memcpy(to, routes->data, MIN(routes->len, most) * sizeof *to);
}

static void rollout_of(const Rolling *all, const TurnEpisode *sample, Rollout *rollout)
{
    const EpisodeEndRule *rule = episode_end_rule(sample->end);

    rollout_fill(rollout, (const int *)(gpointer)sample->ids->data,
                 (const guint8 *)sample->mask->data, (const float *)(gpointer)sample->mu->data,
                 (int)sample->ids->len);
    rollout->unscorable = !rule->in_baseline;
    rollout->reward = rollout->unscorable ? 0 : sample->reward;
    rollout->no_loss =
        all->options->mask_cut && (sample->was_cut || rule->in_loss == EPISODE_LOSS_OPTION);
}

static RolloutGroup *group_of(const Rolling *all, guint first)
{
    const TurnEpisode *one = all->samples->pdata[first];
    const GArray *prompt = one->task->prompt;
    RolloutGroup *group = rollout_group_new((const int *)(gpointer)prompt->data, (int)prompt->len,
                                            all->options->samples);

    for (guint s = 0; s < group->n; s++)
        rollout_of(all, all->samples->pdata[first + s], &group->rollouts[s]);
    if (all->options->routes == 0)
        return group;
    rollout_group_routes(group, all->options->routes);
    routes_copy(group->experts, one->prompt_routes, (gsize)group->prompt_n * group->width);
    for (guint s = 0; s < group->n; s++) {
        const TurnEpisode *sample = all->samples->pdata[first + s];

        routes_copy(group->rollouts[s].experts, sample->routes,
                    (gsize)group->rollouts[s].n * group->width);
    }
    return group;
}

/* A server that gave not one sample is not waited for any longer. */
static void check_server(Rolling *all)
{
    RemoteStats server = sampler_stats(all->roller->sampler);

    if (!all->desk.error && all->samples->len > 0 && all->lost == all->samples->len)
        error_set(&all->desk.error, ASSAY_ERROR_SYSTEM, "rollout.server gives no samples: %s",
                  server.why);
}

GPtrArray *rollouts_make(Roller *roller, TrainTask *const *tasks, guint n,
                         const RolloutOptions *options, RolloutStats *stats, GError **error)
{
    g_auto(Rolling) all = {.desk = {.next = sample_next,
                                    .end = sample_end,
                                    .dialect = roller->dialect,
                                    .tokenizer = roller->tokenizer,
                                    .verdicts = roller->verdicts,
                                    .steps = roller->steps,
                                    .turns_max = options->turns,
                                    .tokens_max = options->tokens_max,
                                    .context_max = options->context_max,
                                    .text_bytes_max = options->text_bytes_max,
                                    .command_s = options->command_s,
                                    .stats = stats},
                           .roller = roller,
                           .options = options,
                           .eos = tokenizer_special(roller->tokenizer, TOKEN_EOS)};
    GPtrArray *groups;

    all.samples = g_ptr_array_new_with_free_func((GDestroyNotify)sample_free);
    samples_make(&all, tasks, n);
    for (guint g = 0; g < n && !all.desk.error; g++)
        group_begin(&all, g * options->samples, &all.desk.error);
    run_all(&all);
    check_server(&all);
    if (all.desk.error) {
        drain(&all);
        g_propagate_error(error, all.desk.error);
        return NULL;
    }
    groups = g_ptr_array_new_with_free_func((GDestroyNotify)rollout_group_free);
    for (guint g = 0; g < n; g++)
        g_ptr_array_add(groups, group_of(&all, g * options->samples));
    return groups;
}
