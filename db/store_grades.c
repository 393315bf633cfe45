/*
 * Grades in the store: the queue, the cache and the results are one table.
 *
 * 1. At most one row per (key, repeat) is queued, running or done: the unique partial index, and
 *    not this code, guarantees that one grade never runs twice.
 * 2. Only who holds the current lease_epoch may finish or requeue a running row.
 * 3. `done` rows are reusable, `failed` and `cancelled` rows never are.
 * 4. finished_seq is given once, in the order in which rows became final.
 *
 * Not here: leases (they live in the daemon's memory; a daemon that starts has none).
 */
#include "db/store_internal.h"

#include "base/error.h"
#include "base/id.h"

#include <string.h>

GradeRow *grade_row_read(sqlite3_stmt *s)
{
    GradeRow *row = g_new0(GradeRow, 1);
    row->id = sqlite3_column_int64(s, 0);
    row->public_id = store_column_text(s, 1);
    row->key = store_column_text(s, 2);
    row->repeat = sqlite3_column_int64(s, 3);
    row->state = (GradeState)sqlite3_column_int64(s, 4);
    row->prio = sqlite3_column_int64(s, 5);
    row->attempt = sqlite3_column_int64(s, 6);
    row->attempts_max = sqlite3_column_int64(s, 7);
    row->lease_epoch = sqlite3_column_int64(s, 8);
    row->task_id = sqlite3_column_int64(s, 9);
    row->patch_sha = store_column_text(s, 10);
    row->mode = store_column_text(s, 11);
    row->request = store_column_text(s, 12);
    row->direct = sqlite3_column_int(s, 13) != 0;
    row->created_ms = sqlite3_column_int64(s, 14);
    row->started_ms = sqlite3_column_int64(s, 15);
    row->finished_ms = sqlite3_column_int64(s, 16);
    row->finished_seq = sqlite3_column_int64(s, 17);
    row->verdict = (Verdict)sqlite3_column_int64(s, 18);
    row->has_reward = sqlite3_column_type(s, 19) != SQLITE_NULL;
    row->reward = sqlite3_column_double(s, 19);
    row->mask = sqlite3_column_int(s, 20) != 0;
    row->error_code = store_column_text(s, 21);
    row->result = store_column_text(s, 22);
    row->statuses = store_column_text(s, 23);
    row->dataset = store_column_text(s, 24);
    row->instance_id = store_column_text(s, 25);
    return row;
}

static void bind_reward(sqlite3_stmt *statement, int index, const GradeRow *row)
{
    if (row->has_reward)
        sqlite3_bind_double(statement, index, row->reward);
    else
        sqlite3_bind_null(statement, index);
}

/* Takes id, public id and state of the row that stands from columns 0-2. */
static GradeSubmit submit_adopt(GradeRow *row, sqlite3_stmt *statement)
{
    row->id = sqlite3_column_int64(statement, 0);
    const char *stands = (const char *)sqlite3_column_text(statement, 1);
    gboolean is_new = strcmp(stands, row->public_id) == 0;
    if (!is_new) {
        g_free(row->public_id);
        row->public_id = g_strdup(stands);
    }
    row->state = (GradeState)sqlite3_column_int64(statement, 2);
    if (is_new)
        return GRADE_SUBMIT_NEW;
    return row->state == GRADE_DONE ? GRADE_SUBMIT_CACHED : GRADE_SUBMIT_ATTACHED;
}

static GradeSubmit submit_insert(Store *store, GradeRow *row, GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, STATEMENT_GRADE_INSERT, error);
    if (s == NULL)
        return GRADE_SUBMIT_ERROR;
    gboolean is_final = grade_state_is_final(row->state);
    store_bind_text(s, 1, row->public_id);
    store_bind_text(s, 2, row->key);
    sqlite3_bind_int64(s, 3, row->repeat);
    sqlite3_bind_int64(s, 4, row->state);
    sqlite3_bind_int64(s, 5, row->prio);
    sqlite3_bind_int64(s, 6, row->attempts_max);
    sqlite3_bind_int64(s, 7, row->task_id);
    store_bind_text(s, 8, row->patch_sha);
    store_bind_text(s, 9, row->mode);
    store_bind_text(s, 10, row->request);
    sqlite3_bind_int(s, 11, row->direct);
    sqlite3_bind_int64(s, 12, row->created_ms);
    sqlite3_bind_int64(s, 13, is_final ? row->created_ms : 0);
    if (is_final)
        sqlite3_bind_int64(s, 14, ++store->finished_seq);
    sqlite3_bind_int64(s, 15, row->verdict);
    bind_reward(s, 16, row);
    sqlite3_bind_int(s, 17, row->mask);
    store_bind_text(s, 18, row->result);
    if (store_step(store, s, error) != 1)
        return GRADE_SUBMIT_ERROR;
    GradeSubmit did = submit_adopt(row, s);
    return store_exec(store, s, error) ? did : GRADE_SUBMIT_ERROR;
}

/* The newest active or done row of the key. One that is done (or any, when `only`) is adopted; of
 * an active one only the repeat is taken: the insert attaches to it and raises its priority. */
static GradeSubmit submit_look(Store *store, GradeRow *row, gboolean only, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_GRADE_BY_KEY, error);
    if (statement == NULL)
        return GRADE_SUBMIT_ERROR;
    store_bind_text(statement, 1, row->key);
    int found = store_step(store, statement, error);
    if (found != 1)
        return found == 0 ? GRADE_SUBMIT_ABSENT : GRADE_SUBMIT_ERROR;
    row->repeat = sqlite3_column_int64(statement, 3);
    GradeSubmit did = GRADE_SUBMIT_ATTACHED;
    if (only || sqlite3_column_int64(statement, 2) == GRADE_DONE)
        did = submit_adopt(row, statement);
    sqlite3_reset(statement);
    return did;
}

GradeSubmit grade_submit(Store *store, GradeRow *row, GradeCache cache, GError **error)
{
    if (row->public_id == NULL)
        row->public_id = id_new("grd");
    if (row->created_ms == 0)
        row->created_ms = clock_wall_ms();
    if (cache == GRADE_CACHE_OFF)
        g_clear_pointer(&row->key, g_free);
    if (cache == GRADE_CACHE_ONLY)
        return submit_look(store, row, TRUE, error);
    if (cache == GRADE_CACHE_USE && row->key != NULL) {
        GradeSubmit did = submit_look(store, row, FALSE, error);
        if (did == GRADE_SUBMIT_ERROR || did == GRADE_SUBMIT_CACHED)
            return did;
    }
    if (cache == GRADE_CACHE_REFRESH) {
        sqlite3_stmt *statement = store_statement(store, STATEMENT_GRADE_LAST_REPEAT, error);
        if (statement == NULL)
            return GRADE_SUBMIT_ERROR;
        store_bind_text(statement, 1, row->key);
        if (store_step(store, statement, error) != 1)
            return GRADE_SUBMIT_ERROR;
        if (sqlite3_column_type(statement, 0) != SQLITE_NULL)
            row->repeat = sqlite3_column_int64(statement, 0) + 1;
        sqlite3_reset(statement);
    }
    return submit_insert(store, row, error);
}

GradeRow *grade_claim(Store *store, GError **error)
{
    sqlite3_stmt *statement = store_statement_write(store, STATEMENT_GRADE_CLAIM, error);
    if (statement == NULL)
        return NULL;
    sqlite3_bind_int64(statement, 1, clock_wall_ms());
    if (store_step(store, statement, error) != 1)
        return NULL;
    gint64 id = sqlite3_column_int64(statement, 0);
    if (!store_exec(store, statement, error))
        return NULL;
    return grade_by_id(store, id, error);
}

static gboolean lease_held(Store *store, gint64 id, GError **error)
{
    if (sqlite3_changes(store->db) == 1)
        return TRUE;
    return error_set(error, ASSAY_ERROR_CONFLICT,
                     "grade row %" G_GINT64_FORMAT ": the lease is lost", id);
}

gboolean grade_finish(Store *store, GradeRow *row, GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, STATEMENT_GRADE_FINISH, error);
    if (s == NULL)
        return FALSE;
    row->finished_ms = clock_wall_ms();
    row->finished_seq = ++store->finished_seq;
    sqlite3_bind_int64(s, 1, row->id);
    sqlite3_bind_int64(s, 2, row->lease_epoch);
    sqlite3_bind_int64(s, 3, row->state);
    sqlite3_bind_int64(s, 4, row->verdict);
    bind_reward(s, 5, row);
    sqlite3_bind_int(s, 6, row->mask);
    store_bind_text(s, 7, row->error_code);
    store_bind_text(s, 8, row->result);
    store_bind_text(s, 9, row->statuses);
    sqlite3_bind_int64(s, 10, row->finished_ms);
    sqlite3_bind_int64(s, 11, row->finished_seq);
    return store_exec(store, s, error) && lease_held(store, row->id, error);
}

gboolean grade_requeue(Store *store, gint64 id, gint64 lease_epoch, gboolean charge, GError **error)
{
    sqlite3_stmt *statement = store_statement_write(store, STATEMENT_GRADE_REQUEUE, error);
    if (statement == NULL)
        return FALSE;
    sqlite3_bind_int64(statement, 1, id);
    sqlite3_bind_int64(statement, 2, lease_epoch);
    sqlite3_bind_int(statement, 3, charge ? 0 : 1);
    return store_exec(store, statement, error) && lease_held(store, id, error);
}

gboolean grade_retry(Store *store, gint64 id, GError **error)
{
    sqlite3_stmt *statement = store_statement_write(store, STATEMENT_GRADE_RETRY, error);
    if (statement == NULL)
        return FALSE;
    sqlite3_bind_int64(statement, 1, id);
    GError *why = NULL;
    if (!store_exec(store, statement, &why)) {
        if (sqlite3_errcode(store->db) == SQLITE_CONSTRAINT) {
            g_error_free(why);
            return error_set(error, ASSAY_ERROR_CONFLICT, "an equal grade is active or done");
        }
        g_propagate_error(error, why);
        return FALSE;
    }
    if (sqlite3_changes(store->db) == 1)
        return TRUE;
    return error_set(error, ASSAY_ERROR_CONFLICT,
                     "only a failed or cancelled grade can be retried");
}

gboolean grade_cancel(Store *store, gint64 id, GError **error)
{
    sqlite3_stmt *statement = store_statement_write(store, STATEMENT_GRADE_CANCEL, error);
    if (statement == NULL)
        return FALSE;
    sqlite3_bind_int64(statement, 1, id);
    sqlite3_bind_int64(statement, 2, clock_wall_ms());
    sqlite3_bind_int64(statement, 3, ++store->finished_seq);
    if (!store_exec(store, statement, error))
        return FALSE;
    if (sqlite3_changes(store->db) == 1)
        return TRUE;
    return error_set(error, ASSAY_ERROR_CONFLICT, "the grade is final already");
}

static GradeRow *grade_one(Store *store, sqlite3_stmt *statement, const char *noun, GError **error)
{
    int found = store_step(store, statement, error);
    if (found == 0)
        error_set(error, ASSAY_ERROR_NOT_FOUND, "grade %s: not found", noun);
    if (found != 1)
        return NULL;
    GradeRow *row = grade_row_read(statement);
    sqlite3_reset(statement);
    return row;
}

GradeRow *grade_find(Store *store, const char *public_id, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_GRADE_BY_PUBLIC, error);
    if (statement == NULL)
        return NULL;
    store_bind_text(statement, 1, public_id);
    return grade_one(store, statement, public_id, error);
}

GradeRow *grade_by_id(Store *store, gint64 id, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_GRADE_BY_ID, error);
    if (statement == NULL)
        return NULL;
    sqlite3_bind_int64(statement, 1, id);
    return grade_one(store, statement, "row", error);
}

GPtrArray *grade_list(Store *store, gint state, const char *after, guint limit, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_GRADE_LIST, error);
    if (statement == NULL)
        return NULL;
    store_bind_text(statement, 1, after != NULL ? after : "grd`");
    sqlite3_bind_int(statement, 2, state);
    sqlite3_bind_int64(statement, 3, limit);
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)grade_row_free);
    int got;
    while ((got = store_step(store, statement, error)) == 1)
        g_ptr_array_add(rows, grade_row_read(statement));
    return got < 0 ? NULL : g_steal_pointer(&rows);
}

gboolean grade_recover(Store *store, guint *ret_requeued, GError **error)
{
    sqlite3_stmt *statement = store_statement_write(store, STATEMENT_GRADE_RECOVER, error);
    if (statement == NULL || !store_exec(store, statement, error))
        return FALSE;
    *ret_requeued = (guint)sqlite3_changes(store->db);
    return TRUE;
}

gboolean grade_counts(Store *store, GradeCounts *ret, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_GRADE_COUNTS, error);
    if (statement == NULL)
        return FALSE;
    GradeCounts counts = {0};
    int got;
    while ((got = store_step(store, statement, error)) == 1) {
        gint64 state = sqlite3_column_int64(statement, 0);
        gint64 verdict = sqlite3_column_int64(statement, 1);
        gint64 n = sqlite3_column_int64(statement, 2);
        if (state >= 0 && state < GRADE_STATE_COUNT)
            counts.by_state[state] += n;
        if (state == GRADE_DONE && verdict >= 0 && verdict < VERDICT_COUNT)
            counts.by_verdict[verdict] += n;
    }
    if (got < 0)
        return FALSE;
    statement = store_statement(store, STATEMENT_GRADE_OLDEST, error);
    if (statement == NULL)
        return FALSE;
    if (store_step(store, statement, error) == 1)
        counts.oldest_queued_ms = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    *ret = counts;
    return TRUE;
}

gint64 grade_n_queued(Store *store, gint64 cap, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_GRADE_N_QUEUED, error);
    if (statement == NULL)
        return -1;
    sqlite3_bind_int64(statement, 1, cap);
    if (store_step(store, statement, error) != 1)
        return -1;
    gint64 n = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return n;
}
