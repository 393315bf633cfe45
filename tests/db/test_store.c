/*
 * Transitions of the store: tasks, the queue, the cache, sweeps, events, blobs, plans of queries.
 */
#include "base/error.h"
#include "base/id.h"
#include "base/tree.h"
#include "db/store_internal.h"

#include <fcntl.h>
#include <string.h>

typedef struct Fixture {
    char *dir;
    Store *store;
    TaskRow *task;
} Fixture;

static TaskRow *task_new(const char *instance_id, const char *sha)
{
    TaskRow *row = g_new0(TaskRow, 1);
    row->dataset = g_strdup("demo");
    row->instance_id = g_strdup(instance_id);
    row->repo = g_strdup("acme/calc");
    row->base_commit = g_strdup("0000000000000000000000000000000000000001");
    row->content_sha256 = g_strdup(sha);
    row->spec = g_strdup("{}");
    return row;
}

static void set_up(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(GError) error = NULL;
    fixture->dir = g_dir_make_tmp("assay-store-XXXXXX", &error);
    g_assert_no_error(error);
    fixture->store = store_open(fixture->dir, &error);
    g_assert_no_error(error);
    fixture->task = task_new("calc-1", "aa");
    g_assert_cmpint(task_put(fixture->store, fixture->task, FALSE, &error), ==, TASK_PUT_NEW);
}

static void tear_down(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    task_row_free(fixture->task);
    store_close(fixture->store);
    g_autofree char *parent = g_path_get_dirname(fixture->dir);
    g_autofree char *name = g_path_get_basename(fixture->dir);
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_assert_true(tree_remove(fd, name, NULL));
    close(fd);
    g_free(fixture->dir);
}

static GradeRow *grade_new(const Fixture *fixture, const char *key, gint64 prio)
{
    GradeRow *row = g_new0(GradeRow, 1);
    row->key = g_strdup(key);
    row->prio = prio;
    row->task_id = fixture->task->id;
    row->mode = g_strdup("strict");
    row->request = g_strdup("{}");
    row->attempts_max = 3;
    return row;
}

static GradeRow *submit(const Fixture *fixture, const char *key, gint64 prio, GradeCache cache,
                        GradeSubmit expected)
{
    g_autoptr(GError) error = NULL;
    GradeRow *row = grade_new(fixture, key, prio);
    g_assert_cmpint(grade_submit(fixture->store, row, cache, &error), ==, expected);
    g_assert_no_error(error);
    return row;
}

static void finish(const Fixture *fixture, GradeRow *row, Verdict verdict)
{
    g_autoptr(GError) error = NULL;
    row->state = GRADE_DONE;
    row->verdict = verdict;
    row->has_reward = TRUE;
    row->reward = verdict == VERDICT_RESOLVED;
    g_assert_true(grade_finish(fixture->store, row, &error));
    g_assert_no_error(error);
}

static void importing_a_task_twice_changes_nothing(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(GError) error = NULL;
    g_autoptr(TaskRow) same = task_new("calc-1", "aa");
    g_autoptr(TaskRow) other = task_new("calc-1", "bb");
    g_assert_cmpint(task_put(fixture->store, same, FALSE, &error), ==, TASK_PUT_SAME);
    g_assert_cmpstr(same->public_id, ==, fixture->task->public_id);
    g_assert_cmpint(task_put(fixture->store, other, FALSE, &error), ==, TASK_PUT_DIFFERS);
    g_assert_cmpint(task_put(fixture->store, other, TRUE, &error), ==, TASK_PUT_NEW);
    g_autoptr(TaskRow) found = task_find(fixture->store, NULL, "demo/calc-1", &error);
    g_assert_no_error(error);
    g_assert_cmpstr(found->content_sha256, ==, "bb");
    g_assert_cmpint(task_count(fixture->store), ==, 1);
}

static void a_task_is_found_by_each_of_its_names(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    const char *names[] = {fixture->task->public_id, "calc-1", "demo/calc-1"};
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(TaskRow) found = task_find(fixture->store, NULL, names[i], NULL);
        g_assert_nonnull(found);
        g_assert_cmpint(found->id, ==, fixture->task->id);
    }
    g_autoptr(GError) error = NULL;
    g_assert_null(task_find(fixture->store, NULL, "calc-2", &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
}

static void one_name_in_two_datasets_must_be_qualified(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(GError) error = NULL;
    g_autoptr(TaskRow) other = task_new("calc-1", "cc");
    g_free(other->dataset);
    other->dataset = g_strdup("other");
    g_assert_cmpint(task_put(fixture->store, other, FALSE, &error), ==, TASK_PUT_NEW);
    g_assert_null(task_find(fixture->store, NULL, "calc-1", &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
    g_autoptr(TaskRow) found = task_find(fixture->store, "other", "calc-1", NULL);
    g_assert_cmpint(found->id, ==, other->id);
}

static void an_equal_grade_is_shared_then_cached(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(GradeRow) first = submit(fixture, "k", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_autoptr(GradeRow) second = submit(fixture, "k", 5, GRADE_CACHE_USE, GRADE_SUBMIT_ATTACHED);
    g_assert_cmpstr(first->public_id, ==, second->public_id);
    g_autoptr(GradeRow) claimed = grade_claim(fixture->store, NULL);
    g_assert_cmpint(claimed->prio, ==, 5);
    g_autoptr(GradeRow) third = submit(fixture, "k", 0, GRADE_CACHE_USE, GRADE_SUBMIT_ATTACHED);
    g_assert_null(grade_claim(fixture->store, NULL));
    finish(fixture, claimed, VERDICT_RESOLVED);
    g_autoptr(GradeRow) fourth = submit(fixture, "k", 0, GRADE_CACHE_USE, GRADE_SUBMIT_CACHED);
    g_assert_cmpstr(first->public_id, ==, fourth->public_id);
    g_assert_cmpint(fourth->state, ==, GRADE_DONE);
}

static void cache_words_mean_what_they_say(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(GradeRow) absent = submit(fixture, "k", 0, GRADE_CACHE_ONLY, GRADE_SUBMIT_ABSENT);
    g_autoptr(GradeRow) first = submit(fixture, "k", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_autoptr(GradeRow) fresh = submit(fixture, "k", 0, GRADE_CACHE_REFRESH, GRADE_SUBMIT_NEW);
    g_assert_cmpint(fresh->repeat, ==, 1);
    g_autoptr(GradeRow) off = submit(fixture, "k", 0, GRADE_CACHE_OFF, GRADE_SUBMIT_NEW);
    g_assert_null(off->key);
    g_assert_cmpstr(off->public_id, !=, first->public_id);
}

static void a_failed_grade_is_never_reused(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(GradeRow) first = submit(fixture, "k", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_autoptr(GradeRow) claimed = grade_claim(fixture->store, NULL);
    claimed->state = GRADE_FAILED;
    claimed->mask = TRUE;
    g_assert_true(grade_finish(fixture->store, claimed, NULL));
    g_autoptr(GradeRow) second = submit(fixture, "k", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_assert_cmpstr(first->public_id, !=, second->public_id);
    g_autoptr(GError) error = NULL;
    g_assert_false(grade_retry(fixture->store, claimed->id, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
}

static void claims_go_by_priority_then_age(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(GradeRow) a = submit(fixture, "a", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_autoptr(GradeRow) b = submit(fixture, "b", 7, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_autoptr(GradeRow) c = submit(fixture, "c", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    gint64 order[] = {b->id, a->id, c->id};
    for (guint i = 0; i < G_N_ELEMENTS(order); i++) {
        g_autoptr(GradeRow) claimed = grade_claim(fixture->store, NULL);
        g_assert_cmpint(claimed->id, ==, order[i]);
        g_assert_cmpint(claimed->attempt, ==, 1);
    }
    g_assert_null(grade_claim(fixture->store, NULL));
}

static void an_old_lease_cannot_finish(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(GError) error = NULL;
    g_autoptr(GradeRow) row = submit(fixture, "k", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_autoptr(GradeRow) old = grade_claim(fixture->store, NULL);
    g_assert_true(grade_requeue(fixture->store, old->id, old->lease_epoch, TRUE, NULL));
    g_autoptr(GradeRow) now = grade_claim(fixture->store, NULL);
    g_assert_cmpint(now->attempt, ==, 2);
    old->state = GRADE_DONE;
    old->verdict = VERDICT_RESOLVED;
    g_assert_false(grade_finish(fixture->store, old, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
    finish(fixture, now, VERDICT_UNRESOLVED);
    g_autoptr(GradeRow) shown = grade_find(fixture->store, row->public_id, NULL);
    g_assert_cmpint(shown->verdict, ==, VERDICT_UNRESOLVED);
    g_clear_error(&error);
    g_assert_false(grade_finish(fixture->store, now, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
}

static void recovery_requeues_without_charging(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    guint n = 0;
    g_autoptr(GradeRow) row = submit(fixture, "k", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_autoptr(GradeRow) claimed = grade_claim(fixture->store, NULL);
    g_assert_cmpint(claimed->state, ==, GRADE_RUNNING);
    g_assert_true(grade_recover(fixture->store, &n, NULL));
    g_assert_cmpuint(n, ==, 1);
    g_autoptr(GradeRow) again = grade_claim(fixture->store, NULL);
    g_assert_cmpint(again->attempt, ==, 1);
    g_assert_cmpint(again->lease_epoch, ==, 2);
}

static void a_sweep_closes_when_its_last_grade_does(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    Store *store = fixture->store;
    g_autoptr(SweepRow) sweep = g_new0(SweepRow, 1);
    sweep->name = g_strdup("s");
    sweep->dataset = g_strdup("demo");
    sweep->mode = g_strdup("strict");
    sweep->options = g_strdup("{}");
    g_assert_true(sweep_put(store, sweep, NULL));
    g_autoptr(GradeRow) a = submit(fixture, "a", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_autoptr(GradeRow) b = submit(fixture, "b", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_assert_true(sweep_item_put(store, sweep->id, 0, "x", "m", a->id, FALSE, NULL));
    g_assert_true(sweep_item_put(store, sweep->id, 1, NULL, "m", b->id, FALSE, NULL));
    g_assert_true(sweep_item_put(store, sweep->id, 2, NULL, "m", b->id, FALSE, NULL));
    g_assert_true(sweep_recount(store, sweep->id, NULL));
    for (int i = 0; i < 2; i++) {
        g_autoptr(GradeRow) claimed = grade_claim(store, NULL);
        finish(fixture, claimed, VERDICT_RESOLVED);
        g_autoptr(GPtrArray) sweeps = sweep_grade_finished(store, claimed->id, NULL);
        g_assert_cmpuint(sweeps->len, ==, 1);
        SweepRow *now = g_ptr_array_index(sweeps, 0);
        g_assert_cmpint(now->n_done, ==, i == 0 ? 1 : 3);
        g_assert_cmpint(now->state, ==, i == 0 ? SWEEP_RUNNING : SWEEP_DONE);
    }
    g_autoptr(GPtrArray) items = sweep_results(store, sweep->id, 0, -1, 2, TRUE, NULL);
    g_assert_cmpuint(items->len, ==, 2);
    SweepItemRow *last = g_ptr_array_index(items, 1);
    g_autoptr(GPtrArray) rest =
        sweep_results(store, sweep->id, last->grade->finished_seq, last->pos, 10, TRUE, NULL);
    g_assert_cmpuint(rest->len, ==, 1);
}

static void cancelling_a_sweep_spares_shared_grades(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    Store *store = fixture->store;
    gint64 sweeps[2];
    g_autoptr(GradeRow) own = submit(fixture, "own", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    g_autoptr(GradeRow) shared = submit(fixture, "shared", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    for (int i = 0; i < 2; i++) {
        g_autoptr(SweepRow) sweep = g_new0(SweepRow, 1);
        sweep->name = g_strdup("s");
        sweep->dataset = g_strdup("");
        sweep->mode = g_strdup("strict");
        sweep->options = g_strdup("{}");
        g_assert_true(sweep_put(store, sweep, NULL));
        g_assert_true(sweep_item_put(store, sweep->id, 0, NULL, "m", shared->id, FALSE, NULL));
        sweeps[i] = sweep->id;
    }
    g_assert_true(sweep_item_put(store, sweeps[0], 1, NULL, "m", own->id, FALSE, NULL));
    g_autoptr(GArray) ids = sweep_cancel(store, sweeps[0], NULL);
    g_assert_cmpuint(ids->len, ==, 1);
    g_assert_cmpint(g_array_index(ids, gint64, 0), ==, own->id);
    g_autoptr(GError) error = NULL;
    g_assert_null(sweep_cancel(store, sweeps[0], &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
}

static void note(gboolean committed, gpointer user_data)
{
    *(int *)user_data = committed ? 1 : 2;
}

static void callbacks_hear_of_commit_and_rollback(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    int heard = 0;
    g_assert_true(store_is_dirty(fixture->store));
    store_after_commit(fixture->store, note, &heard);
    g_assert_cmpint(heard, ==, 0);
    g_assert_true(store_commit(fixture->store, NULL));
    g_assert_cmpint(heard, ==, 1);
    g_autoptr(GradeRow) row = submit(fixture, "k", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    store_after_commit(fixture->store, note, &heard);
    store_rollback(fixture->store);
    g_assert_cmpint(heard, ==, 2);
    g_assert_null(grade_find(fixture->store, row->public_id, NULL));
    store_after_commit(fixture->store, note, &heard);
    g_assert_cmpint(heard, ==, 1);
}

static void a_savepoint_is_all_or_nothing(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_assert_true(store_savepoint(fixture->store, NULL));
    g_autoptr(GradeRow) lost = submit(fixture, "lost", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    store_savepoint_end(fixture->store, FALSE);
    g_assert_true(store_savepoint(fixture->store, NULL));
    g_autoptr(GradeRow) kept = submit(fixture, "kept", 0, GRADE_CACHE_USE, GRADE_SUBMIT_NEW);
    store_savepoint_end(fixture->store, TRUE);
    g_assert_true(store_commit(fixture->store, NULL));
    g_assert_null(grade_find(fixture->store, lost->public_id, NULL));
    g_autoptr(GradeRow) found = grade_find(fixture->store, kept->public_id, NULL);
    g_assert_nonnull(found);
}

static void a_second_store_on_one_directory_is_refused(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(GError) error = NULL;
    g_assert_null(store_open(fixture->dir, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_CONFLICT);
    g_assert_nonnull(strstr(error->message, "pid "));
}

static void blobs_come_back_from_rows_and_from_files(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    gsize sizes[] = {0, 5, STORE_BLOB_INLINE_MAX, STORE_BLOB_INLINE_MAX + 1};
    for (guint i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autofree char *data = g_malloc0(sizes[i] + 1);
        memset(data, 'a' + (int)i, sizes[i]);
        g_autofree char *sha = blob_put(fixture->store, data, sizes[i], NULL);
        g_assert_nonnull(sha);
        g_autoptr(GBytes) bytes = blob_get(fixture->store, sha, NULL);
        g_autoptr(GBytes) expected = g_bytes_new(data, sizes[i]);
        g_assert_true(g_bytes_equal(bytes, expected));
        g_autofree char *path = blob_path(fixture->store, sha, NULL);
        g_autofree char *text = NULL;
        gsize len;
        g_assert_true(g_file_get_contents(path, &text, &len, NULL));
        g_assert_cmpuint(len, ==, sizes[i]);
        g_assert_true(memcmp(text, data, len) == 0);
        /* a file that was cut by a crash is written again */
        if (sizes[i] > 0 && sizes[i] <= STORE_BLOB_INLINE_MAX) {
            g_assert_true(g_file_set_contents(path, "", 0, NULL));
            g_autofree char *again = blob_path(fixture->store, sha, NULL);
            g_clear_pointer(&text, g_free);
            g_assert_true(g_file_get_contents(again, &text, &len, NULL));
            g_assert_cmpuint(len, ==, sizes[i]);
        }
    }
}

static void idempotency_keys_are_kept(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    g_autoptr(IdempotencyRow) row = g_new0(IdempotencyRow, 1);
    row->body_sha = g_strdup("ab");
    row->status = 202;
    row->reply = g_strdup("{}");
    g_assert_null(idempotency_find(fixture->store, "key", NULL));
    g_assert_true(idempotency_put(fixture->store, "key", row, NULL));
    g_autoptr(IdempotencyRow) found = idempotency_find(fixture->store, "key", NULL);
    g_assert_cmpuint(found->status, ==, 202);
    g_assert_cmpstr(found->body_sha, ==, "ab");
}

static void events_are_in_order_and_can_be_pruned(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    Store *store = fixture->store;
    gint64 first = event_put(store, "grade.queued", "grd_1", "{}", NULL);
    gint64 second = event_put(store, "grade.finished", "grd_1", "{}", NULL);
    g_assert_cmpint(second, ==, first + 1);
    g_autoptr(GPtrArray) rows = event_list(store, first, 10, NULL);
    g_assert_cmpuint(rows->len, ==, 1);
    g_assert_true(event_prune(store, clock_wall_ms() + 1000, NULL));
    gint64 oldest, newest;
    g_assert_true(event_range(store, &oldest, &newest, NULL));
    g_assert_cmpint(oldest, ==, 0);
    g_assert_cmpint(newest, ==, second);
}

static void every_statement_uses_the_index_it_names(Fixture *fixture, gconstpointer unused)
{
    (void)unused;
    for (guint i = 0; i < STATEMENT_COUNT; i++) {
        const StatementInfo *info = &statement_infos[i];
        g_autofree char *sql = g_strconcat("EXPLAIN QUERY PLAN ", info->sql, NULL);
        sqlite3_stmt *statement = NULL;
        g_assert_cmpint(sqlite3_prepare_v2(fixture->store->db, sql, -1, &statement, NULL), ==,
                        SQLITE_OK);
        g_autoptr(GString) plan = g_string_new(NULL);
        while (sqlite3_step(statement) == SQLITE_ROW)
            g_string_append_printf(plan, "%s; ", sqlite3_column_text(statement, 3));
        sqlite3_finalize(statement);
        if (info->plan[0] != '\0' && strstr(plan->str, info->plan) == NULL)
            g_error("%s: wanted %s, got: %s", info->name, info->plan, plan->str);
        if (info->plan[0] != '\0' && strstr(plan->str, "SCAN job;") != NULL)
            g_error("%s scans: %s", info->name, plan->str);
    }
}

static void every_word_has_one_number(Fixture *fixture, gconstpointer unused)
{
    (void)fixture, (void)unused;
    for (int i = 0; i < VERDICT_COUNT; i++) {
        Verdict verdict = VERDICT_COUNT;
        g_assert_true(verdict_from_str(verdict_str((Verdict)i), &verdict));
        g_assert_cmpint(verdict, ==, i);
    }
    for (int i = 0; i < GRADE_STATE_COUNT; i++) {
        GradeState state = GRADE_STATE_COUNT;
        g_assert_true(grade_state_from_str(grade_state_str((GradeState)i), &state));
        g_assert_cmpint(state, ==, i);
    }
    Verdict none;
    g_assert_false(verdict_from_str("passed", &none));
}

#define TEST(name) g_test_add("/store/" #name, Fixture, NULL, set_up, name, tear_down)

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    TEST(importing_a_task_twice_changes_nothing);
    TEST(a_task_is_found_by_each_of_its_names);
    TEST(one_name_in_two_datasets_must_be_qualified);
    TEST(an_equal_grade_is_shared_then_cached);
    TEST(cache_words_mean_what_they_say);
    TEST(a_failed_grade_is_never_reused);
    TEST(claims_go_by_priority_then_age);
    TEST(an_old_lease_cannot_finish);
    TEST(recovery_requeues_without_charging);
    TEST(a_sweep_closes_when_its_last_grade_does);
    TEST(cancelling_a_sweep_spares_shared_grades);
    TEST(callbacks_hear_of_commit_and_rollback);
    TEST(a_savepoint_is_all_or_nothing);
    TEST(a_second_store_on_one_directory_is_refused);
    TEST(blobs_come_back_from_rows_and_from_files);
    TEST(idempotency_keys_are_kept);
    TEST(events_are_in_order_and_can_be_pruned);
    TEST(every_statement_uses_the_index_it_names);
    TEST(every_word_has_one_number);
    return g_test_run();
}
