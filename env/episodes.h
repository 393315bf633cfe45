/*
 * Episodes of the daemon: from what a host says to rows, grades and objects of the API.
 */
#pragma once

#include "env/episode_hosts.h"

/* Stores how an episode ended, and asks for the grade of what it leaves, if its ending has a
 * verdict; in the turn's transaction. `row` is filled as it is then. TRUE too when it had ended
 * before. */
gboolean episodes_end(Service *service, EpisodeRow *row, EpisodeEnd end, const EpisodeReply *reply,
                      GError **error);

/* The object of the API. `steps` < 0: not known. */
json_t *episodes_json(Service *service, const EpisodeRow *row);

/* The words of an ending's meaning: null, 0.0 or the grade's. */
json_t *episodes_reward(const EpisodeRow *row);
gboolean episodes_masked(const EpisodeRow *row);
