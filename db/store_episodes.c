/*
 * Episodes in the store: who they are and how they ended.
 *
 * 1. An ending is stored once; nothing opens an episode again.
 * 2. Verdict and reward are the grade's, read with it.
 *
 * Not here: steps, which are files (env/episode_file.c).
 */
#include "db/store_internal.h"

#include "base/error.h"
#include "base/id.h"

static EpisodeRow *episode_read(sqlite3_stmt *s)
{
    EpisodeRow *row = g_new0(EpisodeRow, 1);
    row->id = sqlite3_column_int64(s, 0);
    row->public_id = store_column_text(s, 1);
    row->task_id = sqlite3_column_int64(s, 2);
    row->seed = store_column_text(s, 3);
    row->limits = store_column_text(s, 4);
    row->ending = (guint)sqlite3_column_int(s, 5);
    row->steps = sqlite3_column_int64(s, 6);
    row->grade_id = sqlite3_column_int64(s, 7);
    row->parent = store_column_text(s, 8);
    row->fork_step = sqlite3_column_int64(s, 9);
    row->why = store_column_text(s, 10);
    row->created_ms = sqlite3_column_int64(s, 11);
    row->finished_ms = sqlite3_column_int64(s, 12);
    row->dataset = store_column_text(s, 13);
    row->instance_id = store_column_text(s, 14);
    row->grade = store_column_text(s, 15);
    row->grade_state = (GradeState)sqlite3_column_int(s, 16);
    row->verdict = (Verdict)sqlite3_column_int(s, 17);
    row->has_reward = sqlite3_column_type(s, 18) != SQLITE_NULL;
    row->reward = sqlite3_column_double(s, 18);
    row->mask = sqlite3_column_int(s, 19) != 0;
    return row;
}

gboolean episode_put(Store *store, EpisodeRow *row, GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, STATEMENT_EPISODE_INSERT, error);
    if (s == NULL)
        return FALSE;
    if (row->public_id == NULL)
        row->public_id = id_new("ep");
    row->created_ms = clock_wall_ms();
    store_bind_text(s, 1, row->public_id);
    sqlite3_bind_int64(s, 2, row->task_id);
    store_bind_text(s, 3, row->seed);
    store_bind_text(s, 4, row->limits);
    store_bind_text(s, 5, row->parent);
    sqlite3_bind_int64(s, 6, row->fork_step);
    sqlite3_bind_int64(s, 7, row->steps);
    sqlite3_bind_int64(s, 8, row->created_ms);
    if (!store_exec(store, s, error))
        return FALSE;
    row->id = sqlite3_last_insert_rowid(store->db);
    return TRUE;
}

EpisodeRow *episode_find(Store *store, const char *public_id, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_EPISODE_BY_PUBLIC, error);
    if (s == NULL)
        return NULL;
    store_bind_text(s, 1, public_id);
    int found = store_step(store, s, error);
    if (found == 0)
        error_set(error, ASSAY_ERROR_NOT_FOUND, "episode %s: not found", public_id);
    if (found != 1)
        return NULL;
    EpisodeRow *row = episode_read(s);
    sqlite3_reset(s);
    return row;
}

GPtrArray *episode_list(Store *store, gint ended, gint64 task_id, const char *after, guint limit,
                        GError **error)
{
    StatementId id = task_id != 0 ? STATEMENT_EPISODE_LIST_TASK : STATEMENT_EPISODE_LIST;
    sqlite3_stmt *s = store_statement(store, id, error);
    if (s == NULL)
        return NULL;
    store_bind_text(s, 1, after != NULL ? after : "~");
    sqlite3_bind_int(s, 2, ended);
    sqlite3_bind_int64(s, 3, limit);
    if (task_id != 0)
        sqlite3_bind_int64(s, 4, task_id);
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)episode_row_free);
    int got;
    while ((got = store_step(store, s, error)) == 1)
        g_ptr_array_add(rows, episode_read(s));
    return got < 0 ? NULL : g_steal_pointer(&rows);
}

gboolean episode_set_ended(Store *store, const EpisodeRow *row, GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, STATEMENT_EPISODE_END, error);
    if (s == NULL)
        return FALSE;
    sqlite3_bind_int64(s, 1, row->id);
    sqlite3_bind_int64(s, 2, row->ending);
    sqlite3_bind_int64(s, 3, row->steps);
    if (row->grade_id != 0)
        sqlite3_bind_int64(s, 4, row->grade_id);
    store_bind_text(s, 5, row->why);
    sqlite3_bind_int64(s, 6, clock_wall_ms());
    if (!store_exec(store, s, error))
        return FALSE;
    return sqlite3_changes(store->db) == 1 ||
           error_set(error, ASSAY_ERROR_CONFLICT, "episode %s: has ended", row->public_id);
}

gint64 episode_n_open(Store *store, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_EPISODE_N_OPEN, error);
    if (s == NULL || store_step(store, s, error) != 1)
        return -1;
    gint64 n = sqlite3_column_int64(s, 0);
    sqlite3_reset(s);
    return n;
}

gboolean episode_counts(Store *store, gint64 ret_by_ending[EPISODE_ENDINGS_MAX], GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_EPISODE_COUNTS, error);
    int got = s != NULL ? 1 : -1;
    while (s != NULL && (got = store_step(store, s, error)) == 1) {
        gint64 ending = sqlite3_column_int64(s, 0);
        if (ending >= 0 && ending < EPISODE_ENDINGS_MAX)
            ret_by_ending[ending] = sqlite3_column_int64(s, 1);
    }
    return got == 0;
}
