/*
 * The processes that hold open episodes, and who asks them what.
 *
 *     hosts = episode_hosts_new(service);
 *     episode_hosts_ask(hosts, row, json_pack("{s:s}", "op", "diff"), TRUE, &on_reply);
 *
 * An episode is loaded into a host by the first request for it. When a host dies, what was asked of
 * it is asked of another, which begins from the record. The messages are docs/protocol.md, "Episode
 * hosts".
 */
#pragma once

#include "env/episode.h"
#include "env/service.h"

#define EPISODE_ASKS_MAX 16u /* requests of one episode that wait */
#define EPISODE_LOSSES   3u  /* hosts that may die in a row with requests of one episode */

typedef struct EpisodeHosts EpisodeHosts;

/* What a host said, checked; borrowed. */
typedef struct EpisodeReply {
    gboolean is_known; /* steps and end are */
    gint64 steps;
    EpisodeEnd end;
    GBytes *diff;       /* of one whose ending has a verdict; else NULL */
    const json_t *data; /* an object; NULL: see error */
    GError *error;      /* why the request was not done */
    gboolean is_lost;   /* the episode cannot go on: our machine failed */
} EpisodeReply;

typedef struct EpisodeAsk {
    void (*fn)(gpointer user_data, const EpisodeReply *reply); /* later, or at once */
    gpointer user_data;
    GDestroyNotify free_fn; /* after fn, or instead of it when the daemon stops */
} EpisodeAsk;

EpisodeHosts *episode_hosts_new(Service *service);
/* Ends every host. */
void episode_hosts_free(EpisodeHosts *hosts);

/* Takes `message`, which gets seq and id. `load` FALSE: the record is enough for it. */
void episode_hosts_ask(EpisodeHosts *hosts, const EpisodeRow *row, json_t *message, gboolean load,
                       const EpisodeAsk *ask);
/* The children of a fork are where their parent is, if that is in a host. */
void episode_hosts_follow(EpisodeHosts *hosts, const EpisodeRow *child, const char *parent);
/* Nothing more will be asked of it. */
void episode_hosts_forget(EpisodeHosts *hosts, const char *id);

/* Its steps, as far as is known without asking; -1: not known. */
gint64 episode_hosts_steps(const EpisodeHosts *hosts, const char *id);
guint episode_hosts_n_alive(const EpisodeHosts *hosts);
guint episode_hosts_n_loaded(const EpisodeHosts *hosts);
guint64 episode_hosts_n_lost(const EpisodeHosts *hosts);
