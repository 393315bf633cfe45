/*
 * Tasks in the store.
 *
 * Invariant: (dataset, instance_id) is unique; content is compared by the digest that the caller
 * computed, so importing the same file twice changes nothing.
 */
#include "db/store_internal.h"

#include "base/error.h"
#include "base/id.h"

static TaskRow *task_read(sqlite3_stmt *statement)
{
    TaskRow *row = g_new0(TaskRow, 1);
    row->id = sqlite3_column_int64(statement, 0);
    row->public_id = store_column_text(statement, 1);
    row->dataset = store_column_text(statement, 2);
    row->instance_id = store_column_text(statement, 3);
    row->repo = store_column_text(statement, 4);
    row->base_commit = store_column_text(statement, 5);
    row->language = store_column_text(statement, 6);
    row->content_sha256 = store_column_text(statement, 7);
    row->spec = store_column_text(statement, 8);
    row->n_f2p = (guint)sqlite3_column_int64(statement, 9);
    row->n_p2p = (guint)sqlite3_column_int64(statement, 10);
    row->validity = (TaskValidity)sqlite3_column_int64(statement, 11);
    row->created_ms = sqlite3_column_int64(statement, 12);
    return row;
}

static TaskRow *task_missing(const char *id, GError **error)
{
    error_set(error, ASSAY_ERROR_NOT_FOUND, "task %s: not found", id);
    return NULL;
}

static gboolean task_insert(Store *store, TaskRow *row, GError **error)
{
    sqlite3_stmt *statement = store_statement_write(store, STATEMENT_TASK_INSERT, error);
    if (statement == NULL)
        return FALSE;
    const char *texts[] = {row->public_id,   row->dataset,  row->instance_id,    row->repo,
                           row->base_commit, row->language, row->content_sha256, row->spec};
    for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
        store_bind_text(statement, (int)i + 1, texts[i]);
    sqlite3_bind_int64(statement, 9, row->n_f2p);
    sqlite3_bind_int64(statement, 10, row->n_p2p);
    sqlite3_bind_int64(statement, 11, row->created_ms);
    if (!store_exec(store, statement, error))
        return FALSE;
    row->id = sqlite3_last_insert_rowid(store->db);
    return TRUE;
}

static gboolean task_update(Store *store, const TaskRow *row, GError **error)
{
    sqlite3_stmt *statement = store_statement_write(store, STATEMENT_TASK_UPDATE, error);
    if (statement == NULL)
        return FALSE;
    sqlite3_bind_int64(statement, 1, row->id);
    const char *texts[] = {row->repo, row->base_commit, row->language, row->content_sha256,
                           row->spec};
    for (guint i = 0; i < G_N_ELEMENTS(texts); i++)
        store_bind_text(statement, (int)i + 2, texts[i]);
    sqlite3_bind_int64(statement, 7, row->n_f2p);
    sqlite3_bind_int64(statement, 8, row->n_p2p);
    return store_exec(store, statement, error);
}

TaskPut task_put(Store *store, TaskRow *row, gboolean replace, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_TASK_BY_NAME, error);
    if (statement == NULL)
        return TASK_PUT_ERROR;
    store_bind_text(statement, 1, row->dataset);
    store_bind_text(statement, 2, row->instance_id);
    int found = store_step(store, statement, error);
    if (found < 0)
        return TASK_PUT_ERROR;
    if (found == 0) {
        g_free(row->public_id);
        row->public_id = id_new("task");
        row->created_ms = clock_wall_ms();
        return task_insert(store, row, error) ? TASK_PUT_NEW : TASK_PUT_ERROR;
    }
    g_autoptr(TaskRow) old = task_read(statement);
    sqlite3_reset(statement);
    row->id = old->id;
    g_free(row->public_id);
    row->public_id = g_strdup(old->public_id);
    gboolean same_grade = g_strcmp0(old->content_sha256, row->content_sha256) == 0;
    if (same_grade && g_strcmp0(old->spec, row->spec) == 0)
        return TASK_PUT_SAME;
    if (!same_grade && !replace)
        return TASK_PUT_DIFFERS;
    return task_update(store, row, error) ? TASK_PUT_NEW : TASK_PUT_ERROR;
}

/* One row by one or two text keys; NULL and no error when absent. `ret_more` when a second row. */
static TaskRow *task_one(Store *store, StatementId id, const char *a, const char *b,
                         gboolean *ret_more, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, id, error);
    if (statement == NULL)
        return NULL;
    store_bind_text(statement, 1, a);
    if (b != NULL)
        store_bind_text(statement, 2, b);
    if (store_step(store, statement, error) != 1)
        return NULL;
    TaskRow *row = task_read(statement);
    if (ret_more != NULL)
        *ret_more = store_step(store, statement, NULL) == 1;
    sqlite3_reset(statement);
    return row;
}

TaskRow *task_find(Store *store, const char *dataset, const char *any_id, GError **error)
{
    GError *why = NULL;
    gboolean several = FALSE;
    TaskRow *row = NULL;
    if (id_is(any_id, "task"))
        row = task_one(store, STATEMENT_TASK_BY_PUBLIC, any_id, NULL, NULL, &why);
    if (row == NULL && why == NULL && dataset != NULL && dataset[0] != '\0')
        row = task_one(store, STATEMENT_TASK_BY_NAME, dataset, any_id, NULL, &why);
    else if (row == NULL && why == NULL)
        row = task_one(store, STATEMENT_TASK_BY_INSTANCE, any_id, NULL, &several, &why);
    const char *slash = g_strrstr(any_id, "/");
    if (row == NULL && why == NULL && slash != NULL) {
        g_autofree char *left = g_strndup(any_id, (gsize)(slash - any_id));
        row = task_one(store, STATEMENT_TASK_BY_NAME, left, slash + 1, NULL, &why);
    }
    if (why != NULL) {
        g_propagate_error(error, why);
        return NULL;
    }
    if (row == NULL)
        return task_missing(any_id, error);
    if (several) {
        task_row_free(row);
        error_set(error, ASSAY_ERROR_CONFLICT,
                  "task %s: several datasets have it; name it DATASET/%s", any_id, any_id);
        return NULL;
    }
    return row;
}

TaskRow *task_by_id(Store *store, gint64 id, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_TASK_BY_ID, error);
    if (statement == NULL)
        return NULL;
    sqlite3_bind_int64(statement, 1, id);
    int found = store_step(store, statement, error);
    if (found < 0)
        return NULL;
    if (found == 0)
        return task_missing("row", error);
    TaskRow *row = task_read(statement);
    sqlite3_reset(statement);
    return row;
}

GPtrArray *task_list(Store *store, const char *dataset, const char *repo, const char *after,
                     guint limit, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_TASK_LIST, error);
    if (statement == NULL)
        return NULL;
    store_bind_text(statement, 1, after != NULL ? after : "");
    store_bind_text(statement, 2, dataset);
    store_bind_text(statement, 3, repo);
    sqlite3_bind_int64(statement, 4, limit);
    g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func((GDestroyNotify)task_row_free);
    int got;
    while ((got = store_step(store, statement, error)) == 1)
        g_ptr_array_add(rows, task_read(statement));
    return got < 0 ? NULL : g_steal_pointer(&rows);
}

gboolean task_set_validity(Store *store, gint64 id, TaskValidity validity, GError **error)
{
    sqlite3_stmt *statement = store_statement_write(store, STATEMENT_TASK_VALIDITY, error);
    if (statement == NULL)
        return FALSE;
    sqlite3_bind_int64(statement, 1, id);
    sqlite3_bind_int64(statement, 2, validity);
    return store_exec(store, statement, error);
}

gint64 task_count(Store *store)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_TASK_COUNT, NULL);
    if (statement == NULL || store_step(store, statement, NULL) != 1)
        return 0;
    gint64 n = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return n;
}
