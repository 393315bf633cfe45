/*
 * What workers report: checked, stored, announced; and what happens when they are lost.
 *
 * 1. A result is hostile data: types, words, ranges and sizes are checked; one that is not as
 *    docs/protocol.md says counts as a lost worker.
 * 2. A lost worker costs an attempt; when none is left the grade is `failed`, masked, with no
 *    reward. Nothing here can turn a loss into a reward.
 * 3. A lease is forgotten only when what ended it is committed; until then it is tried again.
 * 4. Files are opened beneath the grade's own scratch directory, never through a link.
 */
#include "env/queue.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "base/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define RESULT_BYTES_MAX (3u * 1024 * 1024)

static const char *const object_fields[] = {"components", "tests", "timing", "usage",
                                            "outcome",    "box",   "report", NULL};

/* --- checking */

static gboolean bad_result(GError **error, const char *what)
{
    return error_set(error, ASSAY_ERROR_INPUT, "the worker's result has a bad field: %s", what);
}

static gboolean read_reward(const json_t *done, GradeRow *row, GError **error)
{
    const json_t *reward = json_object_get(done, "reward");
    const json_t *mask = json_object_get(done, "mask");
    if (mask != NULL && !json_is_boolean(mask) && !json_is_null(mask))
        return bad_result(error, "mask");
    row->mask = json_is_true(mask);
    row->has_reward = json_is_number(reward);
    row->reward = json_number_value(reward);
    if (row->has_reward && !(isfinite(row->reward) && fabs(row->reward) <= 1.0))
        return bad_result(error, "reward");
    if (!row->has_reward && row->state == GRADE_DONE)
        return bad_result(error, "reward");
    if (row->state == GRADE_FAILED) {
        row->has_reward = FALSE;
        row->mask = TRUE;
    }
    return TRUE;
}

static gboolean read_verdict(const json_t *done, GradeRow *row, GError **error)
{
    const char *state = json_string_value(json_object_get(done, "state"));
    const char *verdict = json_string_value(json_object_get(done, "verdict"));
    if (g_strcmp0(state, "done") != 0 && g_strcmp0(state, "failed") != 0)
        return bad_result(error, "state");
    row->state = strcmp(state, "done") == 0 ? GRADE_DONE : GRADE_FAILED;
    row->verdict = VERDICT_NONE;
    if (row->state == GRADE_DONE &&
        (!verdict_from_str(verdict, &row->verdict) || row->verdict == VERDICT_NONE))
        return bad_result(error, "verdict");
    return TRUE;
}

static gboolean read_statuses(const json_t *done, GradeRow *row, GError **error)
{
    json_t *statuses = json_object_get(done, "statuses");
    if (statuses == NULL || json_is_null(statuses))
        return TRUE;
    if (!json_is_object(statuses))
        return bad_result(error, "statuses");
    const char *name;
    json_t *value;
    json_object_foreach(statuses, name, value)
    {
        if (!json_is_string(value) || json_string_length(value) > 32)
            return bad_result(error, "statuses");
    }
    row->statuses = json_print(statuses);
    return strlen(row->statuses) <= QUEUE_STATUSES_MAX || bad_result(error, "statuses");
}

static gboolean read_error(const json_t *done, GradeRow *row, json_t *result,
                           gboolean *ret_retryable, GError **error)
{
    json_t *why = json_object_get(done, "error");
    if (why == NULL || json_is_null(why))
        return row->state == GRADE_DONE || bad_result(error, "error");
    const char *code = json_string_value(json_object_get(why, "code"));
    const char *detail = json_string_value(json_object_get(why, "detail"));
    if (code == NULL || detail == NULL || strlen(code) > 64 || strlen(detail) > 65536)
        return bad_result(error, "error");
    row->error_code = g_strdup(code);
    *ret_retryable = json_is_true(json_object_get(why, "retryable"));
    json_object_set_new(
        result, "error",
        json_pack("{s:s,s:s,s:b}", "code", code, "detail", detail, "retryable", *ret_retryable));
    return TRUE;
}

/* --- files */

static int open_beneath(int dir_fd, const char *path)
{
    struct open_how how = {
        .flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    return (int)syscall(SYS_openat2, dir_fd, path, &how, sizeof how);
}

/* {"sha256","bytes"} or {"problem"}; NULL: the store failed. */
static json_t *keep_file(Store *store, const Lease *lease, int scratch_fd, const char *path,
                         GError **error)
{
    gsize prefix = strlen(lease->scratch);
    if (strncmp(path, lease->scratch, prefix) != 0 || path[prefix] != '/')
        return json_pack("{s:s}", "problem", "not in the grade's directory");
    AUTO_FD fd = open_beneath(scratch_fd, path + prefix + 1);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return json_pack("{s:s}", "problem", "not a regular file");
    if (st.st_size > (off_t)QUEUE_ARTIFACT_MAX)
        return json_pack("{s:s,s:I}", "problem", "too large", "bytes", (json_int_t)st.st_size);
    gint64 len = 0;
    g_autofree char *sha = blob_put_fd(store, fd, QUEUE_ARTIFACT_MAX, &len, error);
    if (sha == NULL)
        return NULL;
    return json_pack("{s:s,s:I}", "sha256", sha, "bytes", (json_int_t)len);
}

static gboolean name_ok(const char *name)
{
    gsize len = strlen(name);
    return len >= 1 && len <= 64 && name[0] != '.' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == len;
}

static gboolean keep_files(Service *service, const Lease *lease, const json_t *done, json_t *result,
                           GError **error)
{
    json_t *files = json_object_get(done, "files");
    if (files == NULL || json_is_null(files))
        return TRUE;
    if (!json_is_object(files) || json_object_size(files) > QUEUE_ARTIFACTS_MAX)
        return bad_result(error, "files");
    AUTO_FD scratch = open(lease->scratch, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (scratch < 0)
        return error_set_errno(error, errno, "open %s", lease->scratch);
    g_autoptr(json_t) kept = json_object();
    const char *name;
    json_t *path;
    json_object_foreach(files, name, path)
    {
        if (!name_ok(name) || !json_is_string(path))
            return bad_result(error, "files");
        json_t *file = keep_file(service->store, lease, scratch, json_string_value(path), error);
        if (file == NULL)
            return FALSE;
        json_object_set_new(kept, name, file);
    }
    json_object_set(result, "files", kept);
    return TRUE;
}

/* --- the result as a row */

static gboolean read_objects(const json_t *done, const Lease *lease, json_t *result, GError **error)
{
    for (guint i = 0; object_fields[i] != NULL; i++) {
        json_t *value = json_object_get(done, object_fields[i]);
        if (value == NULL || json_is_null(value))
            continue;
        if (!json_is_object(value))
            return bad_result(error, object_fields[i]);
        json_object_set(result, object_fields[i], value);
    }
    json_t *evidence = json_object_get(done, "evidence");
    if (evidence != NULL && !json_is_null(evidence) && !json_is_array(evidence))
        return bad_result(error, "evidence");
    json_object_set(result, "evidence", evidence);
    json_t *timing = json_object_get(result, "timing");
    g_autoptr(json_t) own = timing != NULL ? json_copy(timing) : json_object();
    json_object_set_new(own, "queue_ms",
                        json_integer(MAX(lease->started_ms - lease->queued_ms, 0)));
    json_object_set(result, "timing", own);
    return TRUE;
}

/* NULL: bad (ASSAY_ERROR_INPUT) or our machine failed. */
static GradeRow *result_row(Service *service, const Lease *lease, const json_t *done,
                            gboolean *ret_retryable, GError **error)
{
    g_autoptr(GradeRow) row = grade_by_id(service->store, lease->grade_id, error);
    if (row == NULL)
        return NULL;
    g_autoptr(json_t) result = json_object();
    g_clear_pointer(&row->error_code, g_free);
    g_clear_pointer(&row->statuses, g_free);
    row->lease_epoch = lease->epoch;
    if (!read_verdict(done, row, error) || !read_reward(done, row, error) ||
        !read_statuses(done, row, error) || !read_error(done, row, result, ret_retryable, error) ||
        !read_objects(done, lease, result, error) ||
        !keep_files(service, lease, done, result, error))
        return NULL;
    g_free(row->result);
    row->result = json_print(result);
    if (strlen(row->result) > RESULT_BYTES_MAX) {
        bad_result(error, "size");
        return NULL;
    }
    return g_steal_pointer(&row);
}

/* --- ending a lease */

static void scratch_remove(Service *service, const char *scratch)
{
    g_autofree char *parent = g_path_get_dirname(scratch);
    g_autofree char *name = g_path_get_basename(scratch);
    g_autoptr(GError) error = NULL;
    (void)service;
    AUTO_FD dir = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0 && !tree_remove(dir, name, &error))
        g_warning("remove %s: %s", scratch, error->message);
}

static gboolean unsaved_timer(gpointer user_data)
{
    Service *service = user_data;
    if (!queue_retry_unsaved(service))
        return G_SOURCE_CONTINUE;
    service->retry_timer = 0;
    return G_SOURCE_REMOVE;
}

static void retry_later(Service *service)
{
    if (service->retry_timer == 0)
        service->retry_timer = g_timeout_add_seconds(1, unsaved_timer, service);
}

typedef struct Ended {
    Service *service;
    char *public_id;
    gint64 epoch;
} Ended;

static void ended_committed(gboolean committed, gpointer user_data)
{
    g_autofree Ended *ended = user_data;
    g_autofree char *id = ended->public_id;
    Service *service = ended->service;
    Lease *lease = g_hash_table_lookup(service->leases, id);
    if (lease == NULL || lease->epoch != ended->epoch)
        return;
    if (!committed) {
        retry_later(service);
        return;
    }
    scratch_remove(service, lease->scratch);
    g_hash_table_remove(service->leases, id);
}

static void lease_ended(Service *service, const Lease *lease)
{
    Ended *ended = g_new0(Ended, 1);
    ended->service = service;
    ended->public_id = g_strdup(lease->public_id);
    ended->epoch = lease->epoch;
    store_after_commit(service->store, ended_committed, ended);
}

/* TRUE: `why` only says that somebody else ended the grade (cancel): nothing to store. */
static gboolean lease_is_lost(Service *service, const Lease *lease, const GError *why)
{
    if (!g_error_matches(why, ASSAY_ERROR, ASSAY_ERROR_CONFLICT))
        return FALSE;
    service->counters[COUNT_LEASES_LOST] += !lease->cancelled;
    return TRUE;
}

/* Back to the queue, or failed when no attempt is left. */
static gboolean end_lost(Service *service, Lease *lease, const char *code, const char *why,
                         GError **error)
{
    gboolean charge = !lease->requeue_free;
    if (!charge || lease->attempt < lease->attempts_max) {
        if (!grade_requeue(service->store, lease->grade_id, lease->epoch, charge, error))
            return FALSE;
        service_event(service, "grade.queued", lease->public_id,
                      json_pack("{s:s,s:s}", "id", lease->public_id, "why", why));
        service->counters[COUNT_REQUEUED]++;
        return TRUE;
    }
    g_autoptr(GradeRow) row = grade_by_id(service->store, lease->grade_id, error);
    if (row == NULL)
        return FALSE;
    row->lease_epoch = lease->epoch;
    row->state = GRADE_FAILED;
    row->verdict = VERDICT_NONE;
    row->has_reward = FALSE;
    row->mask = TRUE;
    g_free(row->error_code);
    row->error_code = g_strdup(code);
    g_autofree char *detail = g_utf8_make_valid(why, -1);
    g_autoptr(json_t) result =
        json_pack("{s:{s:s,s:s,s:b}}", "error", "code", code, "detail", detail, "retryable", TRUE);
    g_free(row->result);
    row->result = json_print(result);
    service->counters[COUNT_FAILED]++;
    return grade_finish(service->store, row, error) && queue_announce(service, row, error);
}

static void store_lost(Service *service, Lease *lease)
{
    g_autoptr(GError) error = NULL;
    gboolean ok = store_savepoint(service->store, &error);
    if (ok) {
        ok = end_lost(service, lease, "worker_lost", lease->lost_why, &error) ||
             lease_is_lost(service, lease, error);
        store_savepoint_end(service->store, ok);
    }
    if (ok) {
        lease_ended(service, lease);
        return;
    }
    g_warning("grade %s: %s", lease->public_id, error->message);
    retry_later(service);
}

static gboolean end_done(Service *service, Lease *lease, GError **error)
{
    gboolean retryable = FALSE;
    g_autoptr(GradeRow) row = result_row(service, lease, lease->unsaved, &retryable, error);
    if (row == NULL)
        return FALSE;
    if (row->state == GRADE_FAILED && retryable && lease->attempt < lease->attempts_max)
        return end_lost(service, lease, row->error_code, row->error_code, error);
    service->counters[row->state == GRADE_DONE ? COUNT_DONE : COUNT_FAILED]++;
    return grade_finish(service->store, row, error) && queue_announce(service, row, error);
}

static void store_done(Service *service, Lease *lease)
{
    g_autoptr(GError) error = NULL;
    gboolean ok = store_savepoint(service->store, &error);
    if (ok) {
        ok = end_done(service, lease, &error) || lease_is_lost(service, lease, error);
        store_savepoint_end(service->store, ok);
    }
    if (ok) {
        lease_ended(service, lease);
    } else if (g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_INPUT)) {
        service->counters[COUNT_CANARY]++;
        g_clear_pointer(&lease->unsaved, json_decref);
        lease->lost_why = g_strdup(error->message);
        store_lost(service, lease);
    } else {
        g_warning("grade %s: %s", lease->public_id, error->message);
        retry_later(service);
    }
}

void queue_done(gpointer user_data, const char *id, const json_t *done)
{
    Service *service = user_data;
    Lease *lease = g_hash_table_lookup(service->leases, id);
    if (lease == NULL || lease->unsaved != NULL)
        return;
    lease->unsaved = json_incref((json_t *)(gsize)done);
    store_done(service, lease);
}

void queue_lost(gpointer user_data, const char *id, const char *why)
{
    Service *service = user_data;
    Lease *lease = g_hash_table_lookup(service->leases, id);
    if (lease == NULL || service->stopping)
        return;
    g_free(lease->lost_why);
    lease->lost_why = g_strdup(why);
    store_lost(service, lease);
}

gboolean queue_retry_unsaved(Service *service)
{
    g_autoptr(GPtrArray) waiting = g_ptr_array_new();
    GHashTableIter iter;
    gpointer value;
    g_hash_table_iter_init(&iter, service->leases);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        Lease *lease = value;
        if (lease->unsaved != NULL || lease->lost_why != NULL)
            g_ptr_array_add(waiting, lease);
    }
    for (guint i = 0; i < waiting->len; i++) {
        Lease *lease = g_ptr_array_index(waiting, i);
        if (lease->lost_why != NULL)
            store_lost(service, lease);
        else
            store_done(service, lease);
    }
    g_autoptr(GError) error = NULL;
    if (!store_commit(service->store, &error))
        g_warning("commit: %s", error->message);
    queue_kick(service);
    return waiting->len == 0;
}
