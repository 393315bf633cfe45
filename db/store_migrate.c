/*
 * Numbered migrations: forward only, each in its own transaction, each with a checksum.
 *
 * 1. Steps run in order, once; the row of table `migration` is written in the same transaction.
 * 2. A step whose stored checksum differs from ours, or that we do not know, is refused.
 */
#include "db/store_internal.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/id.h"

#include <string.h>

static const struct {
    int version;
    const char *sql;
} migrations[] = {
#define MIGRATION(version, sql) {version, sql},
#include "db/migrations.def"
#undef MIGRATION
};

static gboolean migration_apply(Store *store, guint i, const char *sha, GError **error)
{
    g_autofree char *record =
        g_strdup_printf("INSERT INTO migration VALUES(%d,%" G_GINT64_FORMAT ",'%s','%s')",
                        migrations[i].version, clock_wall_ms(), ASSAY_VERSION, sha);
    const char *steps[] = {"BEGIN IMMEDIATE", migrations[i].sql, record, "COMMIT"};
    for (guint k = 0; k < G_N_ELEMENTS(steps); k++) {
        if (sqlite3_exec(store->db, steps[k], NULL, NULL, NULL) != SQLITE_OK) {
            store_fail(store, "migrate", error);
            sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
            return FALSE;
        }
    }
    return TRUE;
}

/* The stored checksum of a version, "" when it has not run. NULL on error. */
static char *migration_stored(Store *store, int version, GError **error)
{
    g_autofree char *sql =
        g_strdup_printf("SELECT checksum FROM migration WHERE version=%d", version);
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(store->db, sql, -1, &statement, NULL) != SQLITE_OK) {
        store_fail(store, "migration", error);
        return NULL;
    }
    char *sha =
        sqlite3_step(statement) == SQLITE_ROW ? store_column_text(statement, 0) : g_strdup("");
    sqlite3_finalize(statement);
    return sha;
}

static gboolean migration_refuse_newer(Store *store, GError **error)
{
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(
            store->db, "SELECT version,app_version FROM migration ORDER BY version DESC LIMIT 1",
            -1, &statement, NULL) != SQLITE_OK)
        return store_fail(store, "migration", error);
    int ours = migrations[G_N_ELEMENTS(migrations) - 1].version;
    gboolean ok = TRUE;
    if (sqlite3_step(statement) == SQLITE_ROW && sqlite3_column_int(statement, 0) > ours)
        ok = error_set(error, ASSAY_ERROR_UNSUPPORTED,
                       "store: schema %d was written by assay %s; this is assay %s with schema %d",
                       sqlite3_column_int(statement, 0),
                       (const char *)sqlite3_column_text(statement, 1), ASSAY_VERSION, ours);
    sqlite3_finalize(statement);
    return ok;
}

gboolean store_migrate(Store *store, GError **error)
{
    if (sqlite3_exec(store->db,
                     "CREATE TABLE IF NOT EXISTS migration(version INTEGER PRIMARY KEY,"
                     " applied_ms INTEGER NOT NULL, app_version TEXT NOT NULL,"
                     " checksum TEXT NOT NULL) STRICT",
                     NULL, NULL, NULL) != SQLITE_OK)
        return store_fail(store, "migration", error);
    if (!migration_refuse_newer(store, error))
        return FALSE;
    for (guint i = 0; i < G_N_ELEMENTS(migrations); i++) {
        g_autofree char *sha = digest_bytes(migrations[i].sql, strlen(migrations[i].sql));
        g_autofree char *stored = migration_stored(store, migrations[i].version, error);
        if (stored == NULL)
            return FALSE;
        if (stored[0] == '\0') {
            if (!migration_apply(store, i, sha, error))
                return FALSE;
        } else if (strcmp(stored, sha) != 0) {
            return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                             "store: migration %d differs from the one that was applied",
                             migrations[i].version);
        }
    }
    return TRUE;
}
