/*
 * Events (a total order by row number) and idempotency keys.
 *
 * Invariant: an event is written in the transaction of the change that it reports, so a reader
 * that has seen it can also see the change.
 */
#include "db/store_internal.h"

#include "base/error.h"
#include "base/id.h"

gint64 event_put(Store *store, const char *type, const char *subject, const char *body,
                 GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, STATEMENT_EVENT_INSERT, error);
    if (s == NULL)
        return 0;
    sqlite3_bind_int64(s, 1, clock_wall_ms());
    store_bind_text(s, 2, type);
    store_bind_text(s, 3, subject);
    store_bind_text(s, 4, body);
    if (!store_exec(store, s, error))
        return 0;
    return sqlite3_last_insert_rowid(store->db);
}

GPtrArray *event_list(Store *store, gint64 after_seq, guint limit, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_EVENT_LIST, error);
    if (s == NULL)
        return NULL;
    sqlite3_bind_int64(s, 1, after_seq);
    sqlite3_bind_int64(s, 2, limit);
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)event_row_free);
    int got;
    while ((got = store_step(store, s, error)) == 1) {
        EventRow *row = g_new0(EventRow, 1);
        row->seq = sqlite3_column_int64(s, 0);
        row->t_ms = sqlite3_column_int64(s, 1);
        row->type = store_column_text(s, 2);
        row->subject = store_column_text(s, 3);
        row->body = store_column_text(s, 4);
        g_ptr_array_add(rows, row);
    }
    return got < 0 ? NULL : g_steal_pointer(&rows);
}

gboolean event_range(Store *store, gint64 *ret_oldest, gint64 *ret_newest, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_EVENT_RANGE, error);
    if (s == NULL || store_step(store, s, error) != 1)
        return FALSE;
    *ret_oldest = sqlite3_column_int64(s, 0);
    *ret_newest = sqlite3_column_int64(s, 1);
    sqlite3_reset(s);
    return TRUE;
}

static gboolean prune(Store *store, StatementId id, gint64 before_ms, GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, id, error);
    if (s == NULL)
        return FALSE;
    sqlite3_bind_int64(s, 1, before_ms);
    return store_exec(store, s, error);
}

gboolean event_prune(Store *store, gint64 before_ms, GError **error)
{
    return prune(store, STATEMENT_EVENT_PRUNE, before_ms, error) &&
           prune(store, STATEMENT_IDEMPOTENCY_PRUNE, clock_wall_ms() - STORE_IDEMPOTENCY_MS, error);
}

void idempotency_row_free(IdempotencyRow *row)
{
    if (row == NULL)
        return;
    g_free(row->body_sha);
    g_free(row->reply);
    g_free(row);
}

IdempotencyRow *idempotency_find(Store *store, const char *key, GError **error)
{
    sqlite3_stmt *s = store_statement(store, STATEMENT_IDEMPOTENCY_FIND, error);
    if (s == NULL)
        return NULL;
    store_bind_text(s, 1, key);
    sqlite3_bind_int64(s, 2, clock_wall_ms() - STORE_IDEMPOTENCY_MS);
    if (store_step(store, s, error) != 1)
        return NULL;
    IdempotencyRow *row = g_new0(IdempotencyRow, 1);
    row->body_sha = store_column_text(s, 0);
    row->status = (guint)sqlite3_column_int(s, 1);
    row->reply = store_column_text(s, 2);
    sqlite3_reset(s);
    return row;
}

gboolean idempotency_put(Store *store, const char *key, const IdempotencyRow *row, GError **error)
{
    sqlite3_stmt *s = store_statement_write(store, STATEMENT_IDEMPOTENCY_PUT, error);
    if (s == NULL)
        return FALSE;
    store_bind_text(s, 1, key);
    store_bind_text(s, 2, row->body_sha);
    sqlite3_bind_int64(s, 3, row->status);
    store_bind_text(s, 4, row->reply);
    sqlite3_bind_int64(s, 5, clock_wall_ms());
    return store_exec(store, s, error);
}
