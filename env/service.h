/*
 * What assayd is made of: configuration, store, workers, the socket, and who waits for what.
 */
#pragma once

#include "db/store.h"
#include "env/config.h"
#include "env/http.h"
#include "env/worker_pool.h"

#include <glib.h>

/* A grade that a worker has. */
typedef struct Lease {
    gint64 grade_id, epoch;
    char *public_id;
    char *scratch;
    char *phase; /* "preparing", "running", "grading" */
    gint64 started_ms;
    gint64 queued_ms;
    gint64 attempt, attempts_max;
    gboolean requeue_free; /* the loss is ours: do not charge the attempt */
    gboolean cancelled;
    json_t *unsaved; /* a result that the store could not take yet */
    char *lost_why;  /* a loss that the store could not take yet */
} Lease;

typedef enum ServiceCounter {
    COUNT_CACHE_HITS = 0,
    COUNT_COALESCED,
    COUNT_DONE,
    COUNT_FAILED,
    COUNT_CANCELLED,
    COUNT_REQUEUED,
    COUNT_LEASES_LOST,
    COUNT_EVENTS_LAGGED,
    COUNT_EPISODE_STEPS,
    COUNT_CANARY, /* results of workers that did not have the declared shape */
    SERVICE_COUNTER_COUNT,
} ServiceCounter;

struct Service {
    Config *config;
    Store *store;
    WorkerPool *pool;
    struct EpisodeHosts *episodes;
    Http *http;
    GMainLoop *loop;
    GHashTable *leases;   /* public id -> Lease */
    GHashTable *waiters;  /* subject -> GPtrArray of Waiter */
    GPtrArray *streams;   /* Request, open streams */
    GHashTable *replies;  /* "METHOD pattern code" -> guint64 count */
    guint claims_pending; /* claimed, not yet committed and sent */
    guint64 counters[SERVICE_COUNTER_COUNT];
    gint64 started_ms, drain_ms;
    gboolean draining, stopping, events_new;
    guint drain_timer, retry_timer, prune_timer, tick_timer;
    GSource *turn;
    int exit_code;
};

/* Opens everything and recovers; the loop is not run. */
Service *service_open(Config *config, GError **error);
void service_close(Service *service);
/* Runs until stopped. */
void service_run(Service *service);
/* First call: drain. Second call: stop now. */
void service_stop(Service *service);

/* Called by the HTTP side. */
void service_count_reply(Service *service, Request *req, guint status);
void service_request_finished(Service *service, Request *req);
/* Adds an open stream: it is woken after every commit that has new events. */
void service_stream_add(Service *service, Request *req);

/* Calls `fn` (which replies) when `subject` has changed for good or wait_s have passed. */
typedef void (*WaitFn)(Request *req);
void service_wait(Service *service, Request *req, const char *subject, guint wait_s, WaitFn fn);
/* After the next commit, wakes who waits for `subject`. */
void service_changed(Service *service, const char *subject);
/* Writes an event (object taken) in the turn's transaction. */
void service_event(Service *service, const char *type, const char *subject, json_t *body);

/* Free bytes of the state directory's file system. */
guint64 service_disk_free(const Service *service);
/* Why no grade can start now; NULL when one can. */
const char *service_not_ready(Service *service);
