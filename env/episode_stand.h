/*
 * What the episodes of one task stand on: the task, and where its repository is not in its row,
 * the checkout and the layers of its environment, made on a thread of their own.
 *
 *     EpisodeStand *stand = episode_stand_get(stands, key, row, error);
 *     if (episode_stand_ready(stand, error)) episode_open(host, episode_stand_task(stand), ...)
 */
#pragma once

#include "env/episode.h"

typedef struct EpisodeStandOptions {
    const char *state_dir;
    const char *environments, *repos; /* NULL: none */
    guint slot;                       /* of the boxes that build environments, one at a time */
    gboolean allow_degraded;
} EpisodeStandOptions;

typedef struct EpisodeStands EpisodeStands;
typedef struct EpisodeStand EpisodeStand;

EpisodeStands *episode_stands_new(const EpisodeStandOptions *options);
/* Waits for what is being made. Every stand must have been given back. */
void episode_stands_free(EpisodeStands *stands);

/* A descriptor that is readable when a stand has got ready, or failed; episode_stands_hear empties
 * it. */
int episode_stands_fd(const EpisodeStands *stands);
void episode_stands_hear(EpisodeStands *stands);

/* The one of that key, a new reference; NULL: the row is no task. */
EpisodeStand *episode_stand_get(EpisodeStands *stands, const char *key, json_t *row,
                                GError **error);
EpisodeStand *episode_stand_ref(EpisodeStand *stand);
void episode_stand_unref(EpisodeStand *stand);

typedef enum EpisodeStandState {
    EPISODE_STAND_MAKING = 0,
    EPISODE_STAND_READY,
    EPISODE_STAND_FAILED,
} EpisodeStandState;
EpisodeStandState episode_stand_state(const EpisodeStand *stand);
/* Why it FAILED. */
const GError *episode_stand_error(const EpisodeStand *stand);
const Task *episode_stand_task(const EpisodeStand *stand);
/* Base and environment of commands; the rest is left alone. */
void episode_stand_fill(const EpisodeStand *stand, EpisodeOptions *options);
