/*
 * From a request to a stored grade, from a queued grade to a worker, from a worker to a result.
 */
#pragma once

#include "db/store.h"
#include "env/service.h"

#define QUEUE_PATCH_MAX     (128u * 1024 * 1024) /* bytes of one patch */
#define QUEUE_ARTIFACT_MAX  (64u * 1024 * 1024)  /* bytes kept of one file of a worker */
#define QUEUE_ARTIFACTS_MAX 16u
#define QUEUE_STATUSES_MAX  (2u * 1024 * 1024) /* bytes of the status map as JSON */
#define QUEUE_GRADER        "assay-grader@1"   /* part of the cache key: raise it with the grader */
#define QUEUE_BOX           "box@1"            /* part of the cache key: raise with box rules */

#define QUEUE_VALIDATION "{\"validate\":true}" /* options of a sweep that checks a task */

/* What may be asked of one grade; the same for grades, groups and sweeps. */
typedef struct GradeAsk {
    const char *mode;
    const char *environments, *repos; /* NULL: the daemon's */
    const char *custom_id;
    json_t *limits; /* borrowed; NULL: defaults */
    gint64 prio;
    GradeCache cache;
    gboolean direct;
    gboolean run_empty; /* run the tests even for the empty patch */
} GradeAsk;

/* "strict" | "compat-4.1" | "compat-5". */
gboolean queue_mode_ok(const char *mode);
gboolean queue_cache_from_str(const char *text, GradeCache *ret);

/* Submits one patch (NULL or "": the empty patch, unresolved without running). The row that
 * stands is in *ret_row. ABSENT is not an error. */
GradeSubmit queue_submit(Service *service, const TaskRow *task, const char *patch, gsize patch_len,
                         const GradeAsk *ask, GradeRow **ret_row, GError **error);

/* Claims and sends as many grades as workers are ready. */
void queue_kick(Service *service);
/* Callbacks of the pool. */
void queue_phase(gpointer service, const char *id, const char *phase);
void queue_done(gpointer service, const char *id, const json_t *done);
void queue_lost(gpointer service, const char *id, const char *why);
void queue_ready(gpointer service);

/* Running -> queued, scratch directories removed, sweeps closed that are complete. */
gboolean queue_recover(Service *service, GError **error);
gboolean queue_cancel(Service *service, GradeRow *row, GError **error);
gboolean queue_retry(Service *service, GradeRow *row, GError **error);
/* Tries again to store results that the store refused (full disk). TRUE: none is left. */
gboolean queue_retry_unsaved(Service *service);
/* Tells events, sweeps and waiters that a grade is final. */
gboolean queue_announce(Service *service, const GradeRow *row, GError **error);
void lease_free(Lease *lease);
