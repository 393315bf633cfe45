/*
 * Row + log -> JSON.
 *
 * Not here: reading files and printing (env/).
 */
#include "reward/parse_cli.h"

#include "base/error.h"

#define TESTS_MAX 1000000

static json_t *strings_of(const GPtrArray *tests)
{
    json_t *list = json_array();
    for (guint i = 0; i < tests->len; i++)
        json_array_append_new(list, json_string(g_ptr_array_index(tests, i)));
    return list;
}

static void set_list(json_t *status, const char *key, const TestList *list)
{
    json_t *entry = json_object();
    json_object_set_new(entry, "success", list ? strings_of(list->success) : json_array());
    json_object_set_new(entry, "failure", list ? strings_of(list->failure) : json_array());
    json_object_set_new(status, key, entry);
}

json_t *parse_cli_tests_status(const GradeResult *result)
{
    json_t *status = json_object();
    set_list(status, "FAIL_TO_PASS", &result->f2p);
    set_list(status, "PASS_TO_PASS", &result->p2p);
    set_list(status, "FAIL_TO_FAIL", NULL);
    set_list(status, "PASS_TO_FAIL", NULL);
    return status;
}

static json_t *map_to_json(const StatusMap *map)
{
    json_t *object = json_object();
    for (guint i = 0; i < status_map_len(map); i++) {
        const StatusEntry *entry = status_map_at(map, i);
        json_object_setn_new_nocheck(object, entry->name.ptr, entry->name.len,
                                     json_stringn_nocheck(entry->status.ptr, entry->status.len));
    }
    return object;
}

static json_t *result_to_json(const GradeResult *result)
{
    json_t *object = json_object();
    json_object_set_new(object, "found", json_boolean(result->found));
    json_object_set_new(object, "status_map", map_to_json(result->map));
    json_object_set_new(object, "tests_status", parse_cli_tests_status(result));
    const char *resolution = resolution_to_str(result->resolution);
    json_object_set_new(object, "resolution",
                        resolution == NULL ? json_null() : json_string(resolution));
    if (result->raised != NULL)
        json_object_set_new(object, "error", json_string(result->raised));
    return object;
}

GStrv parse_cli_tests(const json_t *row, const char *key, GError **error)
{
    const json_t *value = json_object_get(row, key);
    g_autoptr(json_t) parsed = NULL;
    if (json_is_string(value)) {
        parsed = json_parse(json_string_value(value), json_string_length(value), error);
        if (parsed == NULL) {
            g_prefix_error(error, "field %s: ", key);
            return NULL;
        }
        value = parsed;
    }
    g_autoptr(GStrvBuilder) tests = g_strv_builder_new();
    if (value == NULL || json_is_null(value))
        return g_strv_builder_end(tests);
    if (!json_is_array(value) || json_array_size(value) > TESTS_MAX) {
        error_set(error, ASSAY_ERROR_INPUT, "field %s: must be a list of at most %d names", key,
                  TESTS_MAX);
        return NULL;
    }
    gsize i;
    const json_t *name;
    json_array_foreach(value, i, name)
    {
        if (!json_is_string(name)) {
            error_set(error, ASSAY_ERROR_INPUT, "field %s[%zu]: must be a string", key, i);
            return NULL;
        }
        g_strv_builder_add(tests, json_string_value(name));
    }
    return g_strv_builder_end(tests);
}

/* A string, NULL when absent; a number (some rows' version) is refused by name. */
static gboolean row_str(const json_t *row, const char *key, const char **ret, GError **error)
{
    const json_t *value = json_object_get(row, key);
    *ret = NULL;
    if (value == NULL || json_is_null(value))
        return TRUE;
    *ret = json_want_str(row, key, error);
    return *ret != NULL;
}

json_t *parse_cli_run(const json_t *row, const void *log, gsize log_len, GradeMode mode,
                      GError **error)
{
    GradeInput in = {.mode = mode, .log = log, .log_len = log_len, .slice_end = log_len};
    const char *eval_type;
    if (!row_str(row, "instance_id", &in.instance_id, error) ||
        !row_str(row, "repo", &in.repo, error) ||
        !row_str(row, "version", &in.repo_version, error) ||
        !row_str(row, "log_parser", &in.log_parser, error) ||
        !row_str(row, "eval_type", &eval_type, error))
        return NULL;
    if (eval_type != NULL && *eval_type != '\0' && !eval_type_from_str(eval_type, &in.eval_type)) {
        error_set(error, ASSAY_ERROR_INPUT,
                  "field eval_type: \"%s\" is neither pass_and_fail nor fail_only", eval_type);
        return NULL;
    }
    g_auto(GStrv) f2p = parse_cli_tests(row, "FAIL_TO_PASS", error);
    g_auto(GStrv) p2p = f2p == NULL ? NULL : parse_cli_tests(row, "PASS_TO_PASS", error);
    if (p2p == NULL)
        return NULL;
    in.f2p = (const char *const *)f2p;
    in.p2p = (const char *const *)p2p;

    g_auto(GradeResult) result = {0};
    if (!grade_log(&in, &result, error))
        return NULL;
    return result_to_json(&result);
}
