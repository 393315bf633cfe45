/*
 * The pool of worker processes: started on demand, spoken to in JSON lines, never trusted.
 *
 *     pool = worker_pool_new(program, 2, &events, service);
 *     if (worker_pool_ready(pool)) worker_pool_send(pool, id, job, deadline_s);
 *
 * The protocol is docs/protocol.md, "Workers".
 */
#pragma once

#include "base/json.h"

#include <glib.h>

#define WORKER_LINE_MAX       (4u * 1024 * 1024) /* bytes of one line from a worker */
#define WORKER_MESSAGES_MAX   10000u             /* lines of one grade */
#define WORKER_READY_S        20                 /* a started worker says "ready" within */
#define WORKER_BACKOFF_MIN_MS 100
#define WORKER_BACKOFF_MAX_MS 10000

typedef struct WorkerPool WorkerPool;

/* Called from the main loop. `id` is the grade that the worker has; strings are borrowed. */
typedef struct WorkerEvents {
    void (*phase)(gpointer user_data, const char *id, const char *phase);
    /* The worker is free again when this returns. */
    void (*done)(gpointer user_data, const char *id, const json_t *done);
    /* The worker that had `id` is gone (crash, hang, garbage, cancel); `why` says how. */
    void (*lost)(gpointer user_data, const char *id, const char *why);
    /* A slot can take a grade. */
    void (*ready)(gpointer user_data);
} WorkerEvents;

/* Nothing is started yet. `state_dir` becomes the workers' ASSAY_STATE. */
WorkerPool *worker_pool_new(const char *program, guint n_slots, const WorkerEvents *events,
                            gpointer user_data);
/* Kills every worker, without calling back. */
void worker_pool_free(WorkerPool *pool);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(WorkerPool, worker_pool_free)

/* Starts up to `n_wanted` more workers where none is alive and back-off permits. */
void worker_pool_want(WorkerPool *pool, guint n_wanted);
/* How many slots could take a grade now. */
guint worker_pool_n_ready(const WorkerPool *pool);
guint worker_pool_n_busy(const WorkerPool *pool);
guint worker_pool_n_alive(const WorkerPool *pool);
guint worker_pool_n_slots(const WorkerPool *pool);
guint64 worker_pool_n_lost(const WorkerPool *pool);
/* Why the last start failed; NULL when workers start. */
const char *worker_pool_problem(const WorkerPool *pool);
/* Gives the grade to a ready slot; "slot" is added to `job`. The worker is killed when it has not
 * answered after deadline_s. FALSE: no slot is ready. */
gboolean worker_pool_send(WorkerPool *pool, const char *id, json_t *job, guint deadline_s);
/* SIGTERM now, SIGKILL a while later; `lost` follows. FALSE: nobody has that id. */
gboolean worker_pool_cancel(WorkerPool *pool, const char *id);
/* Cancels everything that runs. */
void worker_pool_cancel_all(WorkerPool *pool);
