/*
 * GET /v1/sweeps/{id}/report: the run report with the keys of SWE-bench, schema version 2.
 *
 * Invariants:
 * 1. Lists are sorted; an instance is in exactly one of resolved, unresolved, error, empty or
 *    incomplete.
 * 2. A grade that failed (our fault) is an error, never unresolved.
 */
#include "env/routes.h"

#include "base/error.h"
#include "env/grade_json.h"
#include "env/service.h"

#include <string.h>

typedef enum ReportList {
    LIST_COMPLETED = 0,
    LIST_INCOMPLETE,
    LIST_EMPTY_PATCH,
    LIST_SUBMITTED,
    LIST_RESOLVED,
    LIST_UNRESOLVED,
    LIST_ERROR,
    LIST_COUNT,
} ReportList;

static const char *const list_words[LIST_COUNT] = {[LIST_COMPLETED] = "completed",
                                                   [LIST_INCOMPLETE] = "incomplete",
                                                   [LIST_EMPTY_PATCH] = "empty_patch",
                                                   [LIST_SUBMITTED] = "submitted",
                                                   [LIST_RESOLVED] = "resolved",
                                                   [LIST_UNRESOLVED] = "unresolved",
                                                   [LIST_ERROR] = "error"};

typedef struct Report {
    GPtrArray *lists[LIST_COUNT]; /* of instance ids */
    gint64 n_total;
} Report;

static void report_put(Report *report, ReportList list, const char *instance_id)
{
    g_ptr_array_add(report->lists[list], g_strdup(instance_id));
}

static void report_add(Report *report, const GradeRow *grade)
{
    const char *id = grade->instance_id;
    report_put(report, LIST_SUBMITTED, id);
    if (grade->patch_sha == NULL) {
        report_put(report, LIST_EMPTY_PATCH, id);
    } else if (grade->state == GRADE_FAILED ||
               (grade->state == GRADE_DONE && grade->verdict == VERDICT_PATCH_FAILED)) {
        report_put(report, LIST_ERROR, id);
    } else if (grade->state == GRADE_DONE) {
        report_put(report, LIST_COMPLETED, id);
        report_put(report, grade->verdict == VERDICT_RESOLVED ? LIST_RESOLVED : LIST_UNRESOLVED,
                   id);
    } else {
        report_put(report, LIST_INCOMPLETE, id);
    }
}

static int compare_names(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static json_t *report_json(Report *report)
{
    json_t *object = json_object();
    static const ReportList counted[] = {LIST_SUBMITTED,  LIST_COMPLETED,   LIST_RESOLVED,
                                         LIST_UNRESOLVED, LIST_EMPTY_PATCH, LIST_ERROR};
    json_object_set_new(object, "total_instances", json_integer(report->n_total));
    for (guint i = 0; i < G_N_ELEMENTS(counted); i++) {
        g_autofree char *key = g_strconcat(list_words[counted[i]], "_instances", NULL);
        json_object_set_new(object, key, json_integer(report->lists[counted[i]]->len));
    }
    for (guint i = 0; i < LIST_COUNT; i++) {
        g_autofree char *key = g_strconcat(list_words[i], "_ids", NULL);
        json_t *ids = json_array();
        g_ptr_array_sort(report->lists[i], compare_names);
        for (guint k = 0; k < report->lists[i]->len; k++)
            json_array_append_new(ids, json_string(g_ptr_array_index(report->lists[i], k)));
        json_object_set_new(object, key, ids);
    }
    json_object_set_new(object, "schema_version", json_integer(2));
    return object;
}

static gboolean report_read(Service *service, gint64 sweep_id, Report *report, GError **error)
{
    gint64 pos = -1;
    for (;;) {
        g_autoptr(GPtrArray) items =
            sweep_items(service->store, sweep_id, pos, STORE_LIST_MAX, error);
        if (items == NULL)
            return FALSE;
        for (guint i = 0; i < items->len; i++) {
            const SweepItemRow *item = g_ptr_array_index(items, i);
            report_add(report, item->grade);
            pos = item->pos;
        }
        if (items->len < STORE_LIST_MAX)
            return TRUE;
    }
}

void api_sweep_report(Request *req)
{
    GError *error = NULL;
    const char *format = request_query(req, "format");
    if (format != NULL && strcmp(format, "swebench") != 0) {
        request_reply_problem(req, 400, "field_invalid", NULL, "query format: only swebench");
        return;
    }
    g_autoptr(SweepRow) sweep = sweep_find(req->service->store, req->subject, &error);
    if (sweep == NULL) {
        request_reply_error(req, error);
        return;
    }
    Report report = {.n_total = sweep->n_total};
    for (guint i = 0; i < LIST_COUNT; i++)
        report.lists[i] = g_ptr_array_new_with_free_func(g_free);
    if (report_read(req->service, sweep->id, &report, &error))
        request_reply_json(req, 200, report_json(&report));
    else
        request_reply_error(req, error);
    for (guint i = 0; i < LIST_COUNT; i++)
        g_ptr_array_unref(report.lists[i]);
}
