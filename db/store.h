/*
 * The store: one directory, one writing connection, one group commit per turn of the main loop.
 *
 *     g_autoptr(Store) store = store_open("/state", error);
 *     task_put(store, row, error);                    opens the turn's transaction
 *     store_after_commit(store, reply_now, request);  fires when it is on the disk (or is not)
 *     store_commit(store, error);                     once per turn
 *
 * Functions of the row groups return FALSE or NULL with an error only when our machine failed;
 * an object that does not exist is NULL or FALSE with ASSAY_ERROR_NOT_FOUND.
 */
#pragma once

#include "db/rows.h"

#include <glib.h>

#define STORE_BLOB_INLINE_MAX (256u * 1024)        /* smaller blobs live in the database */
#define STORE_BLOB_MAX        (512u * 1024 * 1024) /* no blob is larger */
#define STORE_WAL_CHECKPOINT  (16 * 1024 * 1024)   /* checkpoint when the WAL is larger, bytes */
#define STORE_LIST_MAX        1000                 /* rows of one listing */
#define STORE_IDEMPOTENCY_MS  (24 * 3600 * 1000LL) /* how long keys are kept */
#define STORE_EVENTS_KEEP_MS  (7 * 86400 * 1000LL) /* how long events are kept */

typedef struct Store Store;

/* `committed` FALSE: the transaction was rolled back; nothing of this turn is stored. */
typedef void (*StoreCommitFn)(gboolean committed, gpointer user_data);

typedef struct StoreStats {
    guint64 n_commits, n_operations;
    gint64 commit_us_total, commit_us_max;
    gint64 db_bytes, wal_bytes;
} StoreStats;

/* Makes DIR (0700) when absent, locks it against a second daemon (flock; the error names the pid),
 * opens DIR/assay.db, migrates. ASSAY_ERROR_CONFLICT: another daemon; ASSAY_ERROR_UNSUPPORTED: the
 * schema is newer than this program. */
Store *store_open(const char *dir, GError **error);
/* Commits what is open, checkpoints (TRUNCATE), unlocks. NULL is nothing. */
void store_close(Store *store);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Store, store_close)

const char *store_dir(const Store *store);
gboolean store_is_dirty(const Store *store); /* a transaction is open */

/* Commits the turn's transaction, then fires the callbacks in order. A failed commit (disk full)
 * rolls back, fires them with FALSE and is the error. Nothing open: TRUE. */
gboolean store_commit(Store *store, GError **error);
/* Gives up the turn's transaction; callbacks fire with FALSE. */
void store_rollback(Store *store);
/* Fires with the next commit; at once (TRUE) when no transaction is open. */
void store_after_commit(Store *store, StoreCommitFn fn, gpointer user_data);
/* A nested unit inside the turn: either all of it stays or none. Not nestable. */
gboolean store_savepoint(Store *store, GError **error);
void store_savepoint_end(Store *store, gboolean keep);

/* PASSIVE checkpoint when the WAL is larger than STORE_WAL_CHECKPOINT. Call from the loop. */
void store_checkpoint_if_due(Store *store);
void store_stats(Store *store, StoreStats *ret);
/* PRAGMA integrity_check; the message is in the error. */
gboolean store_check(Store *store, GError **error);
const char *store_engine_version(void); /* "sqlite 3.40.1" */

/* --- tasks (store_tasks.c) */

typedef enum TaskPut { TASK_PUT_ERROR = 0, TASK_PUT_NEW, TASK_PUT_SAME, TASK_PUT_DIFFERS } TaskPut;

/* Inserts; a task of the same (dataset, instance_id) with other content is left as it is
 * (TASK_PUT_DIFFERS) unless `replace`. Fills row->id and row->public_id. */
TaskPut task_put(Store *store, TaskRow *row, gboolean replace, GError **error);
/* By task_ id, by "dataset/instance_id", or by an instance_id that only one dataset has
 * (ASSAY_ERROR_CONFLICT when several have it). `dataset` NULL: any. */
TaskRow *task_find(Store *store, const char *dataset, const char *any_id, GError **error);
TaskRow *task_by_id(Store *store, gint64 id, GError **error);
/* Tasks after public id `after` (NULL: from the first) in id order, without spec. */
GPtrArray *task_list(Store *store, const char *dataset, const char *repo, const char *after,
                     guint limit, GError **error);
gboolean task_set_validity(Store *store, gint64 id, TaskValidity validity, GError **error);
gint64 task_count(Store *store);

/* --- grades (store_grades.c) */

typedef enum GradeCache {
    GRADE_CACHE_USE = 0,
    GRADE_CACHE_REFRESH = 1,
    GRADE_CACHE_ONLY = 2,
    GRADE_CACHE_OFF = 3,
} GradeCache;

/* What grade_submit did. */
typedef enum GradeSubmit {
    GRADE_SUBMIT_ERROR = 0,
    GRADE_SUBMIT_NEW,      /* a new row: it will run (or is done already: the empty patch) */
    GRADE_SUBMIT_ATTACHED, /* an equal grade is queued or running: this one shares it */
    GRADE_SUBMIT_CACHED,   /* an equal grade is done */
    GRADE_SUBMIT_ABSENT,   /* GRADE_CACHE_ONLY and there is none */
} GradeSubmit;

/* Inserts `row` (public_id, key, prio, task_id ... and, for one that needs no run, state, verdict,
 * reward), or finds the row that makes it superfluous. Fills row->id, state and public_id with
 * those of the row that stands. */
GradeSubmit grade_submit(Store *store, GradeRow *row, GradeCache cache, GError **error);
/* The next queued grade, highest priority first, then oldest, marked running: attempt and
 * lease_epoch are one more. NULL without error: nothing is queued. */
GradeRow *grade_claim(Store *store, GError **error);
/* Stores the result when the row is still running under `row->lease_epoch`. FALSE with
 * ASSAY_ERROR_CONFLICT: we lost the lease, the result must be thrown away. */
gboolean grade_finish(Store *store, GradeRow *row, GError **error);
/* Running -> queued, fenced like grade_finish. `charge` FALSE: the attempt does not count. */
gboolean grade_requeue(Store *store, gint64 id, gint64 lease_epoch, gboolean charge,
                       GError **error);
/* Failed or cancelled -> queued with no attempts used. ASSAY_ERROR_CONFLICT: another state, or an
 * equal grade is active. */
gboolean grade_retry(Store *store, gint64 id, GError **error);
/* Queued or running -> cancelled. ASSAY_ERROR_CONFLICT: it is final already. */
gboolean grade_cancel(Store *store, gint64 id, GError **error);
GradeRow *grade_find(Store *store, const char *public_id, GError **error);
GradeRow *grade_by_id(Store *store, gint64 id, GError **error);
/* Newest first, from before public id `after`. `state` < 0: any. */
GPtrArray *grade_list(Store *store, gint state, const char *after, guint limit, GError **error);
/* Every running row -> queued, attempt not charged: a daemon that starts has no leases. */
gboolean grade_recover(Store *store, guint *ret_requeued, GError **error);
/* How many are queued, counted up to `cap`. -1 on error. */
gint64 grade_n_queued(Store *store, gint64 cap, GError **error);
typedef struct GradeCounts {
    gint64 by_state[GRADE_STATE_COUNT];
    gint64 by_verdict[VERDICT_COUNT];
    gint64 oldest_queued_ms; /* created_ms of the oldest queued, 0: none */
} GradeCounts;
gboolean grade_counts(Store *store, GradeCounts *ret, GError **error);

/* --- sweeps (store_sweeps.c) */

gboolean sweep_put(Store *store, SweepRow *row, GError **error);
gboolean sweep_item_put(Store *store, gint64 sweep_id, gint64 pos, const char *custom_id,
                        const char *model, gint64 grade_id, gboolean cached, GError **error);
/* Stores how many lines of its input were rejected. */
gboolean sweep_set_rejected(Store *store, gint64 sweep_id, gint64 n_rejected, GError **error);
/* Recounts total, done and cached from the items and closes the sweep when all are final. */
gboolean sweep_recount(Store *store, gint64 sweep_id, GError **error);
/* After grade `grade_id` became final: adds 1 to each of its open sweeps. Returns those sweeps
 * (SweepRow, as they are now); one whose state is now done has just finished. */
GPtrArray *sweep_grade_finished(Store *store, gint64 grade_id, GError **error);
SweepRow *sweep_find(Store *store, const char *public_id, GError **error);
GPtrArray *sweep_list(Store *store, const char *after, guint limit, GError **error);
/* Finished items in finish order after (seq, pos); their grades have statuses only when asked. */
GPtrArray *sweep_results(Store *store, gint64 sweep_id, gint64 after_seq, gint64 after_pos,
                         guint limit, gboolean with_statuses, GError **error);
/* All items in input order after `after_pos` (-1: from the first). */
GPtrArray *sweep_items(Store *store, gint64 sweep_id, gint64 after_pos, guint limit,
                       GError **error);
gboolean sweep_counts(Store *store, gint64 sweep_id, GradeCounts *ret, GError **error);
/* Marks it cancelled; returns the ids (gint64) of grades that only this sweep wants and that are
 * not final. */
GArray *sweep_cancel(Store *store, gint64 sweep_id, GError **error);
/* Makes a closed sweep open again after one of its grades was retried. */
gboolean sweep_grade_reopened(Store *store, gint64 grade_id, GError **error);

/* --- episodes (store_episodes.c) */

/* Inserts an open one; fills id, created_ms and, unless it has one, public_id. */
gboolean episode_put(Store *store, EpisodeRow *row, GError **error);
EpisodeRow *episode_find(Store *store, const char *public_id, GError **error);
/* Newest first, from before public id `after`. `ended` < 0: any; `task_id` 0: any. */
GPtrArray *episode_list(Store *store, gint ended, gint64 task_id, const char *after, guint limit,
                        GError **error);
/* Stores ending, steps, grade_id (0: none) and why. ASSAY_ERROR_CONFLICT: it had ended. */
gboolean episode_set_ended(Store *store, const EpisodeRow *row, GError **error);
gint64 episode_n_open(Store *store, GError **error); /* -1 on error */
gboolean episode_counts(Store *store, gint64 ret_by_ending[EPISODE_ENDINGS_MAX], GError **error);

/* --- events (store_events.c) */

/* Appends; returns its number, 0 on error. */
gint64 event_put(Store *store, const char *type, const char *subject, const char *body,
                 GError **error);
GPtrArray *event_list(Store *store, gint64 after_seq, guint limit, GError **error);
gboolean event_range(Store *store, gint64 *ret_oldest, gint64 *ret_newest, GError **error);
gboolean event_prune(Store *store, gint64 before_ms, GError **error);

/* --- idempotency keys (store_events.c) */

typedef struct IdempotencyRow {
    char *body_sha; /* of method, path and body */
    guint status;
    char *reply; /* JSON */
} IdempotencyRow;
void idempotency_row_free(IdempotencyRow *row);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(IdempotencyRow, idempotency_row_free)
/* NULL without error: unknown or expired. */
IdempotencyRow *idempotency_find(Store *store, const char *key, GError **error);
gboolean idempotency_put(Store *store, const char *key, const IdempotencyRow *row, GError **error);

/* --- blobs (store_blobs.c) */

/* Stores bytes; returns 64 hex digits. Small ones ride in the transaction, large ones are files
 * that are fsynced before the row is written. */
char *blob_put(Store *store, const void *data, gsize len, GError **error);
/* Hashes `fd` (a regular file of at most `len_max` bytes, else ASSAY_ERROR_LIMIT) and stores it. */
char *blob_put_fd(Store *store, int fd, gsize len_max, gint64 *ret_len, GError **error);
GBytes *blob_get(Store *store, const char *sha, GError **error);
/* The absolute path of a file that holds the blob; an inline blob is written out first. */
char *blob_path(Store *store, const char *sha, GError **error);
