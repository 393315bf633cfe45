/*
 * What the row groups of the sqlite store share. Not for other rooms.
 */
#pragma once

#include "db/store.h"

#include <sqlite3.h>

typedef enum StatementId {
#define STATEMENT(name, plan, sql) STATEMENT_##name,
#include "db/statements.def"
#undef STATEMENT
    STATEMENT_COUNT,
} StatementId;

typedef struct StatementInfo {
    const char *name;
    const char *plan; /* what EXPLAIN QUERY PLAN must show; "" nothing */
    const char *sql;
} StatementInfo;
extern const StatementInfo statement_infos[STATEMENT_COUNT];

typedef struct StoreHook {
    StoreCommitFn fn;
    gpointer user_data;
} StoreHook;

struct Store {
    char *dir;
    int dir_fd, lock_fd;
    sqlite3 *db;
    sqlite3_stmt *statements[STATEMENT_COUNT];
    gboolean in_transaction;
    GArray *hooks; /* StoreHook */
    gint64 finished_seq;
    StoreStats stats;
};

/* "assay.db: WHAT: sqlite's message"; code LIMIT for a full disk, else SYSTEM. Returns FALSE. */
gboolean store_fail(Store *store, const char *what, GError **error);

/* The statement, reset, with no bindings; NULL on error. Never finalised by callers. */
sqlite3_stmt *store_statement(Store *store, StatementId id, GError **error);
/* As above for a statement that writes: opens the turn's transaction first. */
sqlite3_stmt *store_statement_write(Store *store, StatementId id, GError **error);
/* 1: a row, 0: the end (the statement is reset), -1: error. */
int store_step(Store *store, sqlite3_stmt *statement, GError **error);
/* Steps a statement that gives no row. */
gboolean store_exec(Store *store, sqlite3_stmt *statement, GError **error);

/* NULL binds NULL. The text must live until the step. */
void store_bind_text(sqlite3_stmt *statement, int index, const char *text);
/* A copy; NULL for NULL. */
char *store_column_text(sqlite3_stmt *statement, int index);

gboolean store_migrate(Store *store, GError **error);

/* Reads GRADE_COLUMNS from a row. */
GradeRow *grade_row_read(sqlite3_stmt *statement);
