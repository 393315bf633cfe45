/*
 * The sqlite store: opening, the turn's transaction, checkpoints.
 *
 * 1. One connection writes, in one process: the directory is locked (flock) for as long as it is
 *    open, and nothing else in the program opens the file for writing.
 * 2. WAL with synchronous=FULL: what a commit callback has reported is on the disk.
 * 3. Checkpoints run on this same connection and only between transactions; sqlite's own
 *    automatic checkpoint is off.
 * 4. All writes of one turn of the main loop are one transaction; it stands or falls as a whole,
 *    and the callbacks hear which.
 *
 * Not here: the SQL of the rows (statements.def, store_*.c) and the schema (migrations.def).
 */
#include "db/store_internal.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define STORE_BUSY_MS 2000

static const char pragmas[] = "PRAGMA journal_mode=WAL;"
                              "PRAGMA synchronous=FULL;"
                              "PRAGMA foreign_keys=ON;"
                              "PRAGMA cache_size=-65536;"
                              "PRAGMA temp_store=MEMORY;"
                              "PRAGMA wal_autocheckpoint=0;"
                              "PRAGMA journal_size_limit=67108864;"
                              "PRAGMA trusted_schema=OFF;"
                              "PRAGMA application_id=1095980377;";

const StatementInfo statement_infos[STATEMENT_COUNT] = {
#define STATEMENT(name, plan, sql) {#name, plan, sql},
#include "db/statements.def"
#undef STATEMENT
};

gboolean store_fail(Store *store, const char *what, GError **error)
{
    int code = sqlite3_errcode(store->db) & 0xff;
    gboolean full = code == SQLITE_FULL || code == SQLITE_IOERR;
    return error_set(error, full ? ASSAY_ERROR_LIMIT : ASSAY_ERROR_SYSTEM, "store: %s: %s", what,
                     sqlite3_errmsg(store->db));
}

static gboolean store_run(Store *store, const char *sql, GError **error)
{
    if (sqlite3_exec(store->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        return store_fail(store, sql, error);
    return TRUE;
}

/* The pid that a lock file names, for the message. */
static gboolean lock_refused(int fd, const char *dir, GError **error)
{
    g_autoptr(GBytes) text = fd_read_all(fd, 256, NULL);
    g_autofree char *who =
        text != NULL ? g_strstrip(g_strndup(g_bytes_get_data(text, NULL), g_bytes_get_size(text)))
                     : g_strdup("");
    return error_set(error, ASSAY_ERROR_CONFLICT, "%s: already in use by a daemon (%s)", dir,
                     who[0] != '\0' ? who : "unknown");
}

static gboolean store_lock(Store *store, GError **error)
{
    store->lock_fd = openat(store->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->lock_fd < 0)
        return error_set_errno(error, errno, "open %s/lock", store->dir);
    if (flock(store->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno == EWOULDBLOCK)
            return lock_refused(store->lock_fd, store->dir, error);
        return error_set_errno(error, errno, "lock %s", store->dir);
    }
    g_autofree char *who = g_strdup_printf("pid %d\n", (int)getpid());
    if (ftruncate(store->lock_fd, 0) < 0)
        return error_set_errno(error, errno, "truncate %s/lock", store->dir);
    return fd_write_all(store->lock_fd, who, strlen(who), error);
}

static gboolean store_connect(Store *store, GError **error)
{
    g_autofree char *path = g_build_filename(store->dir, "assay.db", NULL);
    mode_t mask = umask(0077);
    int rc = sqlite3_open_v2(
        path, &store->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL);
    umask(mask);
    if (rc != SQLITE_OK)
        return store_fail(store, path, error);
    sqlite3_busy_timeout(store->db, STORE_BUSY_MS);
    sqlite3_db_config(store->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    return store_run(store, pragmas, error);
}

static gboolean store_load_seq(Store *store, GError **error)
{
    sqlite3_stmt *statement = store_statement(store, STATEMENT_GRADE_SEQ_MAX, error);
    if (statement == NULL || store_step(store, statement, error) < 0)
        return FALSE;
    store->finished_seq = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return TRUE;
}

Store *store_open(const char *dir, GError **error)
{
    g_autoptr(Store) store = g_new0(Store, 1);
    store->dir_fd = store->lock_fd = -1;
    store->dir = g_canonicalize_filename(dir, NULL);
    store->hooks = g_array_new(FALSE, FALSE, sizeof(StoreHook));
    if (g_mkdir_with_parents(store->dir, 0700) < 0) {
        error_set_errno(error, errno, "make %s", store->dir);
        return NULL;
    }
    store->dir_fd = open(store->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->dir_fd < 0) {
        error_set_errno(error, errno, "open %s", store->dir);
        return NULL;
    }
    if (!store_lock(store, error) || !store_connect(store, error) || !store_migrate(store, error) ||
        !store_load_seq(store, error))
        return NULL;
    return g_steal_pointer(&store);
}

void store_close(Store *store)
{
    if (store == NULL)
        return;
    if (store->db != NULL) {
        g_autoptr(GError) error = NULL;
        if (!store_commit(store, &error))
            g_warning("%s", error->message);
        sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
        for (guint i = 0; i < STATEMENT_COUNT; i++)
            sqlite3_finalize(store->statements[i]);
        sqlite3_close(store->db);
    }
    fd_close_p(&store->lock_fd);
    fd_close_p(&store->dir_fd);
    g_array_unref(store->hooks);
    g_free(store->dir);
    g_free(store);
}

const char *store_dir(const Store *store)
{
    return store->dir;
}

gboolean store_is_dirty(const Store *store)
{
    return store->in_transaction;
}

sqlite3_stmt *store_statement(Store *store, StatementId id, GError **error)
{
    if (store->statements[id] == NULL &&
        sqlite3_prepare_v3(store->db, statement_infos[id].sql, -1, SQLITE_PREPARE_PERSISTENT,
                           &store->statements[id], NULL) != SQLITE_OK) {
        store_fail(store, statement_infos[id].name, error);
        return NULL;
    }
    sqlite3_reset(store->statements[id]);
    sqlite3_clear_bindings(store->statements[id]);
    return store->statements[id];
}

sqlite3_stmt *store_statement_write(Store *store, StatementId id, GError **error)
{
    if (!store->in_transaction) {
        if (!store_run(store, "BEGIN IMMEDIATE", error))
            return NULL;
        store->in_transaction = TRUE;
    }
    store->stats.n_operations++;
    return store_statement(store, id, error);
}

int store_step(Store *store, sqlite3_stmt *statement, GError **error)
{
    int rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW)
        return 1;
    if (rc == SQLITE_DONE) {
        sqlite3_reset(statement);
        return 0;
    }
    store_fail(store, "step", error);
    sqlite3_reset(statement);
    return -1;
}

gboolean store_exec(Store *store, sqlite3_stmt *statement, GError **error)
{
    return store_step(store, statement, error) == 0;
}

void store_bind_text(sqlite3_stmt *statement, int index, const char *text)
{
    sqlite3_bind_text(statement, index, text, -1, SQLITE_STATIC);
}

char *store_column_text(sqlite3_stmt *statement, int index)
{
    return g_strdup((const char *)sqlite3_column_text(statement, index));
}

/* Callbacks may open the next transaction and add callbacks of their own for it. */
static void store_fire(Store *store, gboolean committed)
{
    g_autoptr(GArray) hooks = g_steal_pointer(&store->hooks);
    store->hooks = g_array_new(FALSE, FALSE, sizeof(StoreHook));
    for (guint i = 0; i < hooks->len; i++) {
        StoreHook *hook = &g_array_index(hooks, StoreHook, i);
        hook->fn(committed, hook->user_data);
    }
}

gboolean store_commit(Store *store, GError **error)
{
    if (!store->in_transaction)
        return TRUE;
    gint64 start = clock_mono_ns();
    if (!store_run(store, "COMMIT", error)) {
        store_rollback(store);
        return FALSE;
    }
    store->in_transaction = FALSE;
    gint64 us = (clock_mono_ns() - start) / 1000;
    store->stats.n_commits++;
    store->stats.commit_us_total += us;
    store->stats.commit_us_max = MAX(store->stats.commit_us_max, us);
    store_fire(store, TRUE);
    return TRUE;
}

void store_rollback(Store *store)
{
    if (!store->in_transaction)
        return;
    if (!sqlite3_get_autocommit(store->db))
        sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
    store->in_transaction = FALSE;
    store_fire(store, FALSE);
}

void store_after_commit(Store *store, StoreCommitFn fn, gpointer user_data)
{
    if (!store->in_transaction) {
        fn(TRUE, user_data);
        return;
    }
    StoreHook hook = {.fn = fn, .user_data = user_data};
    g_array_append_val(store->hooks, hook);
}

gboolean store_savepoint(Store *store, GError **error)
{
    if (!store->in_transaction) {
        if (!store_run(store, "BEGIN IMMEDIATE", error))
            return FALSE;
        store->in_transaction = TRUE;
    }
    return store_run(store, "SAVEPOINT unit", error);
}

void store_savepoint_end(Store *store, gboolean keep)
{
    if (sqlite3_get_autocommit(store->db))
        return; /* sqlite gave up the whole transaction: the commit will say so */
    if (!keep)
        sqlite3_exec(store->db, "ROLLBACK TO unit", NULL, NULL, NULL);
    sqlite3_exec(store->db, "RELEASE unit", NULL, NULL, NULL);
}

static gint64 file_size_at(int dir_fd, const char *name)
{
    struct stat st;
    return fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 ? (gint64)st.st_size : 0;
}

void store_checkpoint_if_due(Store *store)
{
    if (store->in_transaction || file_size_at(store->dir_fd, "assay.db-wal") < STORE_WAL_CHECKPOINT)
        return;
    sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
}

void store_stats(Store *store, StoreStats *ret)
{
    *ret = store->stats;
    ret->db_bytes = file_size_at(store->dir_fd, "assay.db");
    ret->wal_bytes = file_size_at(store->dir_fd, "assay.db-wal");
}

gboolean store_check(Store *store, GError **error)
{
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(store->db, "PRAGMA integrity_check", -1, &statement, NULL) != SQLITE_OK)
        return store_fail(store, "integrity_check", error);
    gboolean ok = sqlite3_step(statement) == SQLITE_ROW &&
                  g_strcmp0((const char *)sqlite3_column_text(statement, 0), "ok") == 0;
    if (!ok)
        error_set(error, ASSAY_ERROR_SYSTEM, "store: integrity_check: %s",
                  (const char *)sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    return ok;
}

const char *store_engine_version(void)
{
    return "sqlite " SQLITE_VERSION;
}
