/*
 * Steps that take their time: calls of tools, on threads of their own while sampling goes on.
 *
 *     g_autoptr(Steps) steps = steps_new(&options, error);
 *     Episode *episode = episode_open(steps_host(steps, lane), task, ...);
 *     steps_submit(steps, job);                       from now on only the job touches the episode
 *     StepJob *done = steps_next(steps, wait_ms);     until then; NULL: none is ready
 *
 * An episode stays in its lane, for a lane owns its boxes. A call that finds no free box waits in
 * its lane until an episode there has ended.
 */
#pragma once

#include "env/episode.h"

#define STEPS_LANES_MAX 16u

typedef struct StepsOptions {
    guint slot_first; /* of the boxes */
    guint n_boxes;    /* spread over the lanes; 0: 4 */
    gboolean allow_degraded;
} StepsOptions;

/* Calls to be made one after the other, and what was seen. */
typedef struct StepJob {
    Episode *episode;
    guint lane;
    json_t *calls;      /* array of {"name", "arguments"} */
    const char *bad;    /* there was no call at all: what is said to that; NULL: there was */
    const char *rest;   /* what is said of calls that are not made; NULL: there are none */
    EpisodeEnd finally; /* how to end it if it goes on after them; EPISODE_OPEN: not */
    gpointer user;
    /* what came of it */
    json_t *seen;    /* array of messages: {"role", "name", "content"} */
    json_t *changes; /* once it has ended; NULL: our machine failed */
    EpisodeEnd end;
    guint made, failed; /* calls; those that did not do what they should */
} StepJob;

typedef struct Steps Steps;

Steps *steps_new(const StepsOptions *options);
/* Their episodes must be gone. */
void steps_free(Steps *steps);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Steps, steps_free)

guint steps_lanes(const Steps *steps);
EpisodeHost *steps_host(const Steps *steps, guint lane);

StepJob *step_job_new(Episode *episode, guint lane, gpointer user);
void step_job_free(StepJob *job);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(StepJob, step_job_free)

/* Makes the calls on this thread: for episodes that are in no box and do not go there. */
void step_job_run(StepJob *job);

/* Takes the job. */
void steps_submit(Steps *steps, StepJob *job);
/* One that is done, waited for at most `wait_ms` (-1: as long as it takes, if any is under way). */
StepJob *steps_next(Steps *steps, int wait_ms);
guint steps_under_way(const Steps *steps);
/* What waits for a box waits no longer: its episodes end as EPISODE_ABORTED. */
void steps_abandon(Steps *steps);
