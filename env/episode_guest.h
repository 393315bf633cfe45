/*
 * One episode in a host: what is asked of it, one after another.
 *
 *     episode_guest_ask(server, id, message);      answers go to assayd, now or later
 *     episode_guest_wake(guest);                   of every busy one, when something came
 */
#pragma once

#include "env/episode_stand.h"

/* What the episodes of a host share. */
typedef struct EpisodeServer {
    int fd, dir_fd; /* of assayd; of records */
    GByteArray *in;
    gboolean is_over;
    EpisodeHost *host;
    EpisodeStands *stands;
    GHashTable *guests; /* id -> EpisodeGuest */
    GPtrArray *busy;    /* EpisodeGuest whose command runs, or whose checkout is made */
} EpisodeServer;

typedef struct EpisodeGuest EpisodeGuest;

/* Sends one line to assayd; takes `value`. */
void episode_server_send(EpisodeServer *server, json_t *value);

/* Takes `message`. */
void episode_guest_ask(EpisodeServer *server, const char *id, json_t *message);
void episode_guest_free(gpointer guest);
/* The command that a busy one waits for; NULL: its checkout. */
BoxRun *episode_guest_running(const EpisodeGuest *guest);
void episode_guest_wake(EpisodeGuest *guest);
