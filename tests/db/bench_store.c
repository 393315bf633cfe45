/*
 * Durable enqueue + claim + finish cycles per second, with one commit per turn for all callers,
 * beside what the disk allows in the same run: bare fdatasync, and a commit for every operation.
 * Also the writer that test_torture kills.
 *
 *     bench_store                 prints the table
 *     bench_store torture DIR     cycles for ever, printing the id of each grade that is durable
 */
#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "base/tree.h"
#include "db/store.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define BENCH_SECONDS 2.0

static gint64 n_keys;

static gint64 bench_task(Store *store)
{
    g_autoptr(TaskRow) row = g_new0(TaskRow, 1);
    row->dataset = g_strdup("bench");
    row->instance_id = g_strdup("bench-1");
    row->repo = g_strdup("a/b");
    row->base_commit = g_strdup("0000000000000000000000000000000000000001");
    row->content_sha256 = g_strdup("aa");
    row->spec = g_strdup("{}");
    g_autoptr(GError) error = NULL;
    task_put(store, row, FALSE, &error);
    g_assert_no_error(error);
    return row->id;
}

static char *enqueue(Store *store, gint64 task_id)
{
    g_autoptr(GradeRow) row = g_new0(GradeRow, 1);
    row->key = g_strdup_printf("%016" G_GINT64_MODIFIER "x%048d", ++n_keys + clock_wall_ms(), 0);
    row->task_id = task_id;
    row->mode = g_strdup("strict");
    row->request = g_strdup("{\"limits\":{\"wall_s\":1800}}");
    row->attempts_max = 3;
    g_autoptr(GError) error = NULL;
    grade_submit(store, row, GRADE_CACHE_USE, &error);
    g_assert_no_error(error);
    return g_strdup(row->public_id);
}

static GradeRow *claim(Store *store)
{
    g_autoptr(GError) error = NULL;
    GradeRow *row = grade_claim(store, &error);
    g_assert_no_error(error);
    return row;
}

static void finish(Store *store, GradeRow *row)
{
    static const char statuses[] =
        "{\"test_one\":\"PASSED\",\"test_two\":\"PASSED\",\"test_three\":\"FAILED\"}";
    g_autoptr(GError) error = NULL;
    row->state = GRADE_DONE;
    row->verdict = VERDICT_RESOLVED;
    row->has_reward = TRUE;
    row->reward = 1;
    g_free(row->statuses);
    row->statuses = g_strdup(statuses);
    g_free(row->result);
    row->result = g_strdup("{\"components\":{\"f2p\":1.0}}");
    grade_finish(store, row, &error);
    g_assert_no_error(error);
}

static void commit(Store *store)
{
    g_autoptr(GError) error = NULL;
    store_commit(store, &error);
    g_assert_no_error(error);
    store_checkpoint_if_due(store);
}

/* Callers are spread over the three steps, as they are when each waits for its own commit: every
 * turn enqueues a third, claims a third and finishes a third, and commits once. */
static double cycles_per_s(Store *store, gint64 task_id, guint n_callers)
{
    g_autoptr(GPtrArray) running = g_ptr_array_new_with_free_func((GDestroyNotify)grade_row_free);
    gint64 start = clock_mono_ns();
    guint64 n_done = 0;
    guint n_queued = 0, n_running = 0;
    double seconds = 0;
    while ((seconds = (double)(clock_mono_ns() - start) / 1e9) < BENCH_SECONDS) {
        guint finished = n_running;
        for (guint i = 0; i < finished; i++)
            finish(store, g_ptr_array_index(running, i));
        g_ptr_array_set_size(running, 0);
        guint claimed = n_queued;
        for (guint i = 0; i < claimed; i++)
            g_ptr_array_add(running, claim(store));
        guint idle = n_callers - n_queued - n_running + finished;
        guint entering = MIN(idle, (n_callers + 2) / 3);
        for (guint i = 0; i < entering; i++)
            g_free(enqueue(store, task_id));
        commit(store);
        n_done += finished;
        n_running = claimed;
        n_queued = entering;
    }
    while (n_queued > 0 || n_running > 0) {
        for (guint i = 0; i < running->len; i++)
            finish(store, g_ptr_array_index(running, i));
        g_ptr_array_set_size(running, 0);
        n_running = n_queued;
        for (; n_queued > 0; n_queued--)
            g_ptr_array_add(running, claim(store));
        commit(store);
    }
    return (double)n_done / seconds;
}

static double one_by_one(Store *store, gint64 task_id)
{
    gint64 start = clock_mono_ns();
    guint64 n = 0;
    double seconds = 0;
    for (; (seconds = (double)(clock_mono_ns() - start) / 1e9) < BENCH_SECONDS / 2; n++) {
        g_free(enqueue(store, task_id));
        commit(store);
        g_autoptr(GradeRow) row = claim(store);
        commit(store);
        finish(store, row);
        commit(store);
    }
    return (double)n / seconds;
}

static double syncs_per_s(const char *dir)
{
    static const char block[4096];
    g_autofree char *path = g_build_filename(dir, "raw", NULL);
    AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    gint64 start = clock_mono_ns();
    guint64 n = 0;
    double seconds = 0;
    for (; (seconds = (double)(clock_mono_ns() - start) / 1e9) < BENCH_SECONDS / 2; n++) {
        g_assert_cmpint(pwrite(fd, block, sizeof block, (off_t)(n % 1024) * 4096), >, 0);
        g_assert_cmpint(fdatasync(fd), ==, 0);
    }
    return (double)n / seconds;
}

G_NORETURN static void torture(const char *dir)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Store) store = store_open(dir, &error);
    g_assert_no_error(error);
    guint n_requeued = 0;
    g_assert_true(grade_recover(store, &n_requeued, NULL));
    gint64 task_id = bench_task(store);
    for (;;) {
        g_autofree char *ids[16] = {NULL};
        for (guint i = 0; i < G_N_ELEMENTS(ids); i++)
            ids[i] = enqueue(store, task_id);
        commit(store);
        for (guint i = 0; i < G_N_ELEMENTS(ids); i++) {
            printf("%s\n", ids[i]);
            g_free(g_steal_pointer(&ids[i]));
        }
        fflush(stdout);
        for (guint i = 0; i < G_N_ELEMENTS(ids) / 2; i++) {
            g_autoptr(GradeRow) row = claim(store);
            commit(store);
            if (row != NULL && i % 2 == 0)
                finish(store, row);
        }
        commit(store);
    }
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "torture") == 0)
        torture(argv[2]);
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_dir_make_tmp("assay-bench-XXXXXX", &error);
    g_assert_no_error(error);
    Store *store = store_open(dir, &error);
    g_assert_no_error(error);
    gint64 task_id = bench_task(store);
    double raw = syncs_per_s(dir);
    double single = one_by_one(store, task_id);
    printf("fdatasync of 4 KiB                     %8.0f /s\n", raw);
    printf("cycles, a commit per operation         %8.0f /s\n", single);
    static const guint callers[] = {1, 16, 128};
    for (guint i = 0; i < G_N_ELEMENTS(callers); i++) {
        double rate = cycles_per_s(store, task_id, callers[i]);
        printf("cycles, %3u callers, a commit per turn %8.0f /s   %.1f x one by one, "
               "%.1f per fdatasync%s\n",
               callers[i], rate, rate / single, rate / raw,
               callers[i] == 16 ? "   (goal 5,000 /s)" : "");
    }
    store_close(store);
    int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    tree_remove(fd, dir + 1, NULL);
    close(fd);
    return 0;
}
