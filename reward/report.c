/*
 * report.json and the run summary.
 *
 * Invariants: keys appear in the order the harness inserts them; ids are sorted by code point
 * (which is byte order in UTF-8).
 *
 * Not here: writing files.
 */
#include "reward/report.h"

#include "reward/parse_cli.h"
#include "reward/pyjson.h"

#include <string.h>

#define INDENT 4

static struct {
    const char *reason;
    FailureTier tier;
    Regex regex;
} signatures[] = {
    {"browser_launch_failed",
     FAILURE_TIER_ENVIRONMENT,
     {"Failed to launch|Failed to connect to the bus", REGEX_MULTILINE, 0}},
    {"display_unavailable",
     FAILURE_TIER_ENVIRONMENT,
     {"cannot open display|Missing X server|unable to open X display", REGEX_MULTILINE, 0}},
    {"out_of_memory",
     FAILURE_TIER_ENVIRONMENT,
     {"Cannot allocate memory|OutOfMemoryError|^Killed$", REGEX_MULTILINE, 0}},
    {"container_unavailable",
     FAILURE_TIER_ENVIRONMENT,
     {"Error response from daemon|Cannot connect to the Docker daemon", REGEX_MULTILINE, 0}},
    {"network_unreachable",
     FAILURE_TIER_ENVIRONMENT,
     {"Could not resolve host|Temporary failure in name resolution", REGEX_MULTILINE, 0}},
    {"missing_module",
     FAILURE_TIER_AMBIGUOUS,
     {"Cannot find module|MODULE_NOT_FOUND|ModuleNotFoundError", REGEX_MULTILINE, 0}},
    {"no_tests_collected",
     FAILURE_TIER_AMBIGUOUS,
     {"no tests ran|collected 0 items", REGEX_MULTILINE, 0}},
    {"tests_timed_out",
     FAILURE_TIER_AMBIGUOUS,
     {"Timeout error: \\d+ seconds exceeded", REGEX_MULTILINE, 0}},
};

FailureClass report_classify(Span test_output, Span run_log)
{
    AUTO_GSTRING text = g_string_sized_new(test_output.len + run_log.len + 2);
    span_append(text, test_output);
    g_string_append_c(text, '\n');
    span_append(text, run_log);
    gboolean gave_up = FALSE;
    for (gsize i = 0; i < G_N_ELEMENTS(signatures); i++)
        if (regex_search(&signatures[i].regex, span_gstring(text), 0, &gave_up, NULL))
            return (FailureClass){signatures[i].tier, signatures[i].reason};
    return (FailureClass){0};
}

json_t *report_instance(GraderVersion version, const char *instance_id, gboolean patch_is_null,
                        const GradeResult *result, FailureClass failure)
{
    gboolean found = !patch_is_null && result != NULL && result->found;
    json_t *entry = json_object();
    json_object_set_new(entry, "patch_is_None", json_boolean(patch_is_null));
    json_object_set_new(entry, "patch_exists", json_boolean(!patch_is_null));
    json_object_set_new(entry, "patch_successfully_applied", json_boolean(found));
    json_object_set_new(entry, "resolved",
                        json_boolean(found && result->resolution == RESOLUTION_FULL));
    if (version == GRADER_5) {
        gboolean told = !patch_is_null && !found && failure.tier != FAILURE_TIER_NONE;
        json_object_set_new(entry, "infra_failure",
                            json_boolean(told && failure.tier == FAILURE_TIER_ENVIRONMENT));
        if (told)
            json_object_set_new(entry, "infra_failure_reason", json_string(failure.reason));
    }
    if (found)
        json_object_set_new(entry, "tests_status", parse_cli_tests_status(result));
    json_t *report = json_object();
    json_object_set_new(report, instance_id, entry);
    return report;
}

/* ---- the run ---- */

static int by_id(gconstpointer a, gconstpointer b)
{
    return strcmp((*(const ReportRow *const *)a)->instance_id,
                  (*(const ReportRow *const *)b)->instance_id);
}

typedef gboolean (*RowTest)(const ReportRow *row);

static gboolean in_dataset(const ReportRow *row)
{
    return row->outcome != REPORT_NOT_IN_DATASET;
}

static gboolean submitted(const ReportRow *row)
{
    return row->outcome != REPORT_INCOMPLETE;
}

static gboolean completed(const ReportRow *row)
{
    return row->outcome == REPORT_RESOLVED || row->outcome == REPORT_UNRESOLVED;
}

static gboolean incomplete(const ReportRow *row)
{
    return row->outcome == REPORT_INCOMPLETE;
}

static gboolean empty_patch(const ReportRow *row)
{
    return row->outcome == REPORT_EMPTY_PATCH;
}

static gboolean resolved(const ReportRow *row)
{
    return row->outcome == REPORT_RESOLVED;
}

static gboolean unresolved(const ReportRow *row)
{
    return row->outcome == REPORT_UNRESOLVED;
}

static gboolean errored(const ReportRow *row)
{
    return row->outcome == REPORT_ERROR;
}

static gboolean classified(const ReportRow *row)
{
    return (unresolved(row) || errored(row)) && row->failure.tier != FAILURE_TIER_NONE;
}

static gboolean infra(const ReportRow *row)
{
    return classified(row) && row->failure.tier == FAILURE_TIER_ENVIRONMENT;
}

static gboolean ambiguous(const ReportRow *row)
{
    return classified(row) && row->failure.tier == FAILURE_TIER_AMBIGUOUS;
}

/* A field of the summary: a count or a sorted list of the rows that pass a test. */
typedef struct RunField {
    const char *key;
    RowTest test;
    gboolean is_list;
    gboolean only_5;
} RunField;

static const RunField fields[] = {
    {"total_instances", in_dataset},
    {"submitted_instances", submitted},
    {"completed_instances", completed},
    {"resolved_instances", resolved},
    {"unresolved_instances", unresolved},
    {"infra_failure_instances", infra, FALSE, TRUE},
    {"ambiguous_failure_instances", ambiguous, FALSE, TRUE},
    {"empty_patch_instances", empty_patch},
    {"error_instances", errored},
    {"completed_ids", completed, TRUE},
    {"incomplete_ids", incomplete, TRUE},
    {"empty_patch_ids", empty_patch, TRUE},
    {"submitted_ids", submitted, TRUE},
    {"resolved_ids", resolved, TRUE},
    {"unresolved_ids", unresolved, TRUE},
    {"infra_failure_ids", infra, TRUE, TRUE},
    {"ambiguous_failure_ids", ambiguous, TRUE, TRUE},
    {"failure_reasons", NULL, FALSE, TRUE},
    {"error_ids", errored, TRUE},
};

static json_t *ids_of(const GPtrArray *rows, RowTest test)
{
    json_t *list = json_array();
    for (guint i = 0; i < rows->len; i++) {
        const ReportRow *row = g_ptr_array_index(rows, i);
        if (test(row))
            json_array_append_new(list, json_string(row->instance_id));
    }
    return list;
}

static json_t *reasons_of(const GPtrArray *rows)
{
    json_t *reasons = json_object();
    for (guint i = 0; i < rows->len; i++) {
        const ReportRow *row = g_ptr_array_index(rows, i);
        if (classified(row))
            json_object_set_new(reasons, row->instance_id, json_string(row->failure.reason));
    }
    return reasons;
}

static json_t *field_value(const RunField *field, const GPtrArray *sorted)
{
    if (field->test == NULL)
        return reasons_of(sorted);
    json_t *ids = ids_of(sorted, field->test);
    if (field->is_list)
        return ids;
    json_t *count = json_integer((json_int_t)json_array_size(ids));
    json_decref(ids);
    return count;
}

json_t *report_run(GraderVersion version, const ReportRow *rows, gsize n_rows)
{
    g_autoptr(GPtrArray) sorted = g_ptr_array_new();
    for (gsize i = 0; i < n_rows; i++)
        g_ptr_array_add(sorted, (gpointer)(gsize)&rows[i]);
    g_ptr_array_sort(sorted, by_id);

    json_t *report = json_object();
    for (gsize i = 0; i < G_N_ELEMENTS(fields); i++)
        if (!fields[i].only_5 || version == GRADER_5)
            json_object_set_new(report, fields[i].key, field_value(&fields[i], sorted));
    json_object_set_new(report, "schema_version", json_integer(2));
    if (version == GRADER_4_1) {
        json_object_set_new(report, "unstopped_instances", json_integer(0));
        json_object_set_new(report, "unstopped_containers", json_array());
        json_object_set_new(report, "unremoved_images", json_array());
    }
    return report;
}

char *report_instance_text(const json_t *report)
{
    return pyjson_dump(report, INDENT);
}

char *report_run_text(const json_t *report)
{
    g_autofree char *text = pyjson_dump(report, INDENT);
    return g_strconcat(text, "\n", NULL);
}

char *report_model_folder(const char *model)
{
    GString *folder = g_string_new(model);
    g_string_replace(folder, "/", "__", 0);
    return g_string_free(folder, FALSE);
}

char *report_run_file_name(const char *model, const char *run_id)
{
    g_autofree char *folder = report_model_folder(model);
    return g_strconcat(folder, ".", run_id, ".json", NULL);
}
