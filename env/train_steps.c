/*
 * Lanes: a thread, its boxes and its queue each.
 *
 * 1. A lane's boxes are opened and closed on its thread: a box dies with the thread it came from.
 * 2. An episode is touched by one thread at a time: by its job's lane while the job is under way,
 *    else by the thread that submits jobs.
 * 3. A call for which no box is free has not been made; it is made when a box is free.
 *
 * Not here: what a call does (episode.c), what it is answered with (dialect_tools.c).
 */
#include "env/train_steps.h"

#include "base/error.h"

#include <string.h>

#define BOXES_DEFAULT 4u
#define BOXES_A_LANE                                                                               \
    2u /* boxes wait for each other's commands; more lanes only where there are more */

typedef struct Lane {
    struct Steps *steps;
    EpisodeHost *host;
    GThread *thread;
    GAsyncQueue *jobs; /* StepJob, or &stop */
    GQueue waiting;    /* StepJob: for a box */
} Lane;

struct Steps {
    Lane lanes[STEPS_LANES_MAX];
    guint n_lanes;
    GAsyncQueue *done;
    guint under_way; /* submitted and not yet taken back */
    gint abandon;
};

static StepJob stop, wake;

/* ---- one job ---- */

StepJob *step_job_new(Episode *episode, guint lane, gpointer user)
{
    StepJob *job = g_new0(StepJob, 1);

    job->episode = episode;
    job->lane = lane;
    job->user = user;
    job->calls = json_array();
    job->seen = json_array();
    return job;
}

void step_job_free(StepJob *job)
{
    if (!job)
        return;
    json_decref(job->calls);
    json_decref(job->seen);
    json_decref(job->changes);
    g_free(job);
}

static void see(StepJob *job, const char *role, const char *name, const char *text)
{
    json_array_append_new(
        job->seen, json_pack("{s:s, s:s, s:s}", "role", role, "name", name, "content", text));
}

/* One call; FALSE: no box is free, or nothing can follow. */
static gboolean call_make(StepJob *job, gboolean *ret_waits)
{
    const json_t *call = json_array_get(job->calls, job->made);
    const char *name = json_string_value(json_object_get(call, "name"));
    g_auto(EpisodeObservation) seen = {0};
    g_autoptr(GError) error = NULL;

    if (!episode_call(job->episode, name, json_object_get(call, "arguments"), &seen, &error)) {
        *ret_waits = g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_BUSY);
        return FALSE;
    }
    job->made++;
    job->failed += seen.is_error;
    see(job, "tool", episode_tool_kind(name) != EPISODE_TOOL_NONE ? name : "none", seen.text);
    return seen.end == EPISODE_OPEN;
}

static void bad_make(StepJob *job)
{
    g_auto(EpisodeObservation) seen = {0};

    episode_bad_action(job->episode, job->bad, &seen);
    see(job, "user", "none", seen.text);
}

/* FALSE: it waits for a box. */
static gboolean job_run(StepJob *job)
{
    gboolean waits = FALSE;
    const json_t *changes;

    if (job->bad)
        bad_make(job);
    while (job->made < json_array_size(job->calls) && call_make(job, &waits))
        continue;
    if (waits)
        return FALSE;
    if (job->rest)
        see(job, "tool", "none", job->rest);
    if (job->finally != EPISODE_OPEN)
        episode_end(job->episode, job->finally, NULL);
    job->end = episode_ended(job->episode);
    changes = job->end != EPISODE_OPEN ? episode_changes(job->episode, NULL) : NULL;
    job->changes = changes ? json_deep_copy(changes) : NULL;
    return TRUE;
}

void step_job_run(StepJob *job)
{
    gboolean ran = job_run(job);

    g_assert(ran);
}

/* ---- lanes ---- */

static void lane_try(Lane *lane, StepJob *job)
{
    if (g_atomic_int_get(&lane->steps->abandon)) {
        json_array_clear(job->calls);
        job->finally = EPISODE_ABORTED;
    }
    if (!job_run(job))
        g_queue_push_tail(&lane->waiting, job);
    else
        g_async_queue_push(lane->steps->done, job);
}

static gpointer lane_run(gpointer data)
{
    Lane *lane = data;
    StepJob *job;

    while ((job = g_async_queue_pop(lane->jobs)) != &stop) {
        guint n = g_queue_get_length(&lane->waiting);

        if (job != &wake)
            lane_try(lane, job);
        while (n-- > 0) /* that one may have given its box back */
            lane_try(lane, g_queue_pop_head(&lane->waiting));
    }
    g_clear_pointer(&lane->host, episode_host_free);
    return NULL;
}

Steps *steps_new(const StepsOptions *options)
{
    Steps *steps = g_new0(Steps, 1);
    guint boxes = options->n_boxes != 0 ? options->n_boxes : BOXES_DEFAULT;

    steps->n_lanes = CLAMP(boxes / BOXES_A_LANE, 1, STEPS_LANES_MAX);
    steps->done = g_async_queue_new();
    for (guint i = 0, slot = options->slot_first; i < steps->n_lanes; i++) {
        Lane *lane = &steps->lanes[i];
        EpisodeHostOptions host = {.slot_first = slot,
                                   .n_boxes = boxes / steps->n_lanes + (i < boxes % steps->n_lanes),
                                   .allow_degraded = options->allow_degraded};

        slot += host.n_boxes;
        lane->steps = steps;
        lane->host = episode_host_new(&host);
        lane->jobs = g_async_queue_new();
        lane->thread = g_thread_new("steps", lane_run, lane);
    }
    return steps;
}

void steps_free(Steps *steps)
{
    if (!steps)
        return;
    g_assert(steps->under_way == 0);
    for (guint i = 0; i < steps->n_lanes; i++) {
        g_async_queue_push(steps->lanes[i].jobs, &stop);
        g_thread_join(steps->lanes[i].thread);
        g_async_queue_unref(steps->lanes[i].jobs);
    }
    g_async_queue_unref(steps->done);
    g_free(steps);
}

guint steps_lanes(const Steps *steps)
{
    return steps->n_lanes;
}

EpisodeHost *steps_host(const Steps *steps, guint lane)
{
    return steps->lanes[lane].host;
}

void steps_submit(Steps *steps, StepJob *job)
{
    steps->under_way++;
    g_async_queue_push(steps->lanes[job->lane].jobs, job);
}

StepJob *steps_next(Steps *steps, int wait_ms)
{
    StepJob *job;

    if (steps->under_way == 0)
        return NULL;
    job = wait_ms < 0 ? g_async_queue_pop(steps->done)
                      : g_async_queue_timeout_pop(steps->done, (guint64)wait_ms * 1000);
    steps->under_way -= job != NULL;
    return job;
}

guint steps_under_way(const Steps *steps)
{
    return steps->under_way;
}

void steps_abandon(Steps *steps)
{
    g_atomic_int_set(&steps->abandon, 1);
    for (guint i = 0; i < steps->n_lanes; i++)
        g_async_queue_push(steps->lanes[i].jobs, &wake);
}
