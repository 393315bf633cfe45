/*
 * Sweeps in the store: many items, each pointing at a grade that others may share.
 *
 * 1. Items are written once, in the transaction that makes the sweep; sweep_recount closes it.
 * 2. n_done counts items whose grade is final; a sweep is done when all are.
 * 3. The cursor of results is (finished_seq, pos): stable, and never behind a later arrival.
 */
#include "db/store_internal.h"

#include "base/error.h"
#include "base/id.h"

static SweepRow *sweep_read(sqlite3_stmt *s)
{
    SweepRow *row = g_new0(SweepRow, 1);
    row->id = sqlite3_column_int64(s, 0);
    row->public_id = store_column_text(s, 1);
    row->name = store_column_text(s, 2);
    row->dataset = store_column_text(s, 3);
    row->mode = store_column_text(s, 4);
    row->options = store_column_text(s, 5);
    row->n_total = sqlite3_column_int64(s, 6);
    row->n_done = sqlite3_column_int64(s, 7);
    row->n_cached = sqlite3_column_int64(s, 8);
    row->n_rejected = sqlite3_column_int64(s, 9);
    row->state = (SweepState)sqlite3_column_int64(s, 10);
    row->created_ms = sqlite3_column_int64(s, 11);
    row->finished_ms = sqlite3_column_int64(s, 12);
    return row;
}

gboolean sweep_put(Store *store, SweepRow *row, GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, STATEMENT_SWEEP_INSERT, error);
    if (s == NULL)
        return FALSE;
    if (row->public_id == NULL)
        row->public_id = id_new("swp");
    row->created_ms = clock_wall_ms();
    const char *texts[] = {row->public_id, row->name, row->dataset, row->mode, row->options};
    for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
        store_bind_text(s, (int)i + 1, texts[i]);
    sqlite3_bind_int64(s, 6, row->n_rejected);
    sqlite3_bind_int64(s, 7, row->created_ms);
    if (!store_exec(store, s, error))
        return FALSE;
    row->id = sqlite3_last_insert_rowid(store->db);
    return TRUE;
}

gboolean sweep_item_put(Store *store, gint64 sweep_id, gint64 pos, const char *custom_id,
                        const char *model, gint64 grade_id, gboolean cached, GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, STATEMENT_SWEEP_ITEM_INSERT, error);
    if (s == NULL)
        return FALSE;
    sqlite3_bind_int64(s, 1, sweep_id);
    sqlite3_bind_int64(s, 2, pos);
    store_bind_text(s, 3, custom_id);
    store_bind_text(s, 4, model);
    sqlite3_bind_int64(s, 5, grade_id);
    sqlite3_bind_int(s, 6, cached);
    return store_exec(store, s, error);
}

/* Runs a write statement on a sweep with up to two integer arguments after its id. */
static gboolean sweep_write(Store *store, StatementId id, gint64 sweep_id, gint64 b, gint64 c,
                            GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, id, error);
    if (s == NULL)
        return FALSE;
    int n = sqlite3_bind_parameter_count(s);
    gint64 values[] = {sweep_id, b, c};
    for (int i = 0; i < n; i++)
        sqlite3_bind_int64(s, i + 1, values[i]);
    return store_exec(store, s, error);
}

gboolean sweep_set_rejected(Store *store, gint64 sweep_id, gint64 n_rejected, GError **error)
{
    return sweep_write(store, STATEMENT_SWEEP_REJECTED, sweep_id, n_rejected, 0, error);
}

gboolean sweep_recount(Store *store, gint64 sweep_id, GError **error)
{
    return sweep_write(store, STATEMENT_SWEEP_RECOUNT, sweep_id, 0, 0, error) &&
           sweep_write(store, STATEMENT_SWEEP_CLOSE, sweep_id, clock_wall_ms(), 0, error);
}

static GArray *ids_of(Store *store, StatementId id, gint64 argument, GError **error)
{
    sqlite3_stmt *s = store_statement(store, id, error);
    if (s == NULL)
        return NULL;
    sqlite3_bind_int64(s, 1, argument);
    g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(gint64));
    int got;
    while ((got = store_step(store, s, error)) == 1) {
        gint64 value = sqlite3_column_int64(s, 0);
        g_array_append_val(ids, value);
    }
    return got < 0 ? NULL : g_steal_pointer(&ids);
}

static SweepRow *sweep_one(Store *store, sqlite3_stmt *s, const char *noun, GError **error)
{
    int found = store_step(store, s, error);
    if (found == 0)
        error_set(error, ASSAY_ERROR_NOT_FOUND, "sweep %s: not found", noun);
    if (found != 1)
        return NULL;
    SweepRow *row = sweep_read(s);
    sqlite3_reset(s);
    return row;
}

static SweepRow *sweep_by_id(Store *store, gint64 id, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_SWEEP_BY_ID, error);
    if (s == NULL)
        return NULL;
    sqlite3_bind_int64(s, 1, id);
    return sweep_one(store, s, "row", error);
}

GPtrArray *sweep_grade_finished(Store *store, gint64 grade_id, GError **error)
{
    g_autoptr(GArray) ids = ids_of(store, STATEMENT_SWEEP_OF_GRADE, grade_id, error);
    if (ids == NULL)
        return NULL;
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)sweep_row_free);
    for (guint i = 0; i < ids->len; i++) {
        gint64 id = g_array_index(ids, gint64, i);
        if (!sweep_write(store, STATEMENT_SWEEP_ADD_DONE, id, grade_id, 1, error) ||
            !sweep_write(store, STATEMENT_SWEEP_CLOSE, id, clock_wall_ms(), 0, error))
            return NULL;
        SweepRow *row = sweep_by_id(store, id, error);
        if (row == NULL)
            return NULL;
        g_ptr_array_add(rows, row);
    }
    return g_steal_pointer(&rows);
}

gboolean sweep_grade_reopened(Store *store, gint64 grade_id, GError **error)
{
    g_autoptr(GArray) ids = ids_of(store, STATEMENT_SWEEP_OF_GRADE, grade_id, error);
    if (ids == NULL)
        return FALSE;
    for (guint i = 0; i < ids->len; i++) {
        gint64 id = g_array_index(ids, gint64, i);
        if (!sweep_write(store, STATEMENT_SWEEP_ADD_DONE, id, grade_id, -1, error) ||
            !sweep_write(store, STATEMENT_SWEEP_REOPEN, id, 0, 0, error))
            return FALSE;
    }
    return TRUE;
}

SweepRow *sweep_find(Store *store, const char *public_id, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_SWEEP_BY_PUBLIC, error);
    if (s == NULL)
        return NULL;
    store_bind_text(s, 1, public_id);
    return sweep_one(store, s, public_id, error);
}

GPtrArray *sweep_list(Store *store, const char *after, guint limit, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_SWEEP_LIST, error);
    if (s == NULL)
        return NULL;
    store_bind_text(s, 1, after != NULL ? after : "swp`");
    sqlite3_bind_int64(s, 2, limit);
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)sweep_row_free);
    int got;
    while ((got = store_step(store, s, error)) == 1)
        g_ptr_array_add(rows, sweep_read(s));
    return got < 0 ? NULL : g_steal_pointer(&rows);
}

/* The item columns follow the 26 of the grade. */
static GPtrArray *items_read(Store *store, sqlite3_stmt *s, GError **error)
{
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)sweep_item_row_free);
    int got;
    while ((got = store_step(store, s, error)) == 1) {
        SweepItemRow *row = g_new0(SweepItemRow, 1);
        row->grade = grade_row_read(s);
        row->sweep_id = sqlite3_column_int64(s, 26);
        row->pos = sqlite3_column_int64(s, 27);
        row->custom_id = store_column_text(s, 28);
        row->model = store_column_text(s, 29);
        row->cached = sqlite3_column_int(s, 30) != 0;
        g_ptr_array_add(rows, row);
    }
    return got < 0 ? NULL : g_steal_pointer(&rows);
}

GPtrArray *sweep_results(Store *store, gint64 sweep_id, gint64 after_seq, gint64 after_pos,
                         guint limit, gboolean with_statuses, GError **error)
{
    sqlite3_stmt *s = store_statement(
        store, with_statuses ? STATEMENT_SWEEP_RESULTS_FULL : STATEMENT_SWEEP_RESULTS, error);
    if (s == NULL)
        return NULL;
    gint64 values[] = {sweep_id, after_seq, after_pos, limit};
    for (guint i = 0; i < G_N_ELEMENTS(values); i++)
        sqlite3_bind_int64(s, (int)i + 1, values[i]);
    return items_read(store, s, error);
}

GPtrArray *sweep_items(Store *store, gint64 sweep_id, gint64 after_pos, guint limit, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_SWEEP_ITEMS, error);
    if (s == NULL)
        return NULL;
    sqlite3_bind_int64(s, 1, sweep_id);
    sqlite3_bind_int64(s, 2, after_pos);
    sqlite3_bind_int64(s, 3, limit);
    return items_read(store, s, error);
}

gboolean sweep_counts(Store *store, gint64 sweep_id, GradeCounts *ret, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_SWEEP_COUNTS, error);
    if (s == NULL)
        return FALSE;
    sqlite3_bind_int64(s, 1, sweep_id);
    GradeCounts counts = {0};
    int got;
    while ((got = store_step(store, s, error)) == 1) {
        gint64 state = sqlite3_column_int64(s, 0);
        gint64 verdict = sqlite3_column_int64(s, 1);
        if (state >= 0 && state < GRADE_STATE_COUNT)
            counts.by_state[state] += sqlite3_column_int64(s, 2);
        if (state == GRADE_DONE && verdict >= 0 && verdict < VERDICT_COUNT)
            counts.by_verdict[verdict] += sqlite3_column_int64(s, 2);
    }
    if (got < 0)
        return FALSE;
    *ret = counts;
    return TRUE;
}

GArray *sweep_cancel(Store *store, gint64 sweep_id, GError **error)
{
    if (!sweep_write(store, STATEMENT_SWEEP_MARK_CANCELLED, sweep_id, clock_wall_ms(), 0, error))
        return NULL;
    if (sqlite3_changes(store->db) != 1) {
        error_set(error, ASSAY_ERROR_CONFLICT, "the sweep is finished already");
        return NULL;
    }
    return ids_of(store, STATEMENT_SWEEP_SOLE_GRADES, sweep_id, error);
}
