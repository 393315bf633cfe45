/*
 * Rows of JSON to tasks, and what identifies a task.
 *
 * Invariants:
 *   1. A Task that exists is usable: every field that grading reads is present and has its type.
 *   2. instance_id and repo are safe as parts of file names (task_name_ok on each component).
 *   3. Nothing here opens a file.
 *
 * Not here: dataset files (dataset.c), other formats (formats/), scripts (script.c).
 */
#include "tasks/task.h"

#include "base/digest.h"
#include "base/error.h"

#include <string.h>

gboolean task_name_ok(const char *name)
{
    gsize len = strlen(name);
    return len >= 1 && len <= 200 && name[0] != '.' &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == len;
}

static gboolean task_repo_ok(const char *repo)
{
    g_auto(GStrv) parts = g_strsplit(repo, "/", 3);
    return g_strv_length(parts) == 2 && task_name_ok(parts[0]) && task_name_ok(parts[1]);
}

/* Copies the string at KEY into *ret; absent or null gives a copy of `fallback` (may be NULL). */
static gboolean field_str(const json_t *row, const char *key, const char *fallback, char **ret,
                          GError **error)
{
    const json_t *value = json_object_get(row, key);
    if (value == NULL || json_is_null(value)) {
        *ret = g_strdup(fallback);
        return TRUE;
    }
    const char *text = json_want_str(row, key, error);
    if (text == NULL)
        return FALSE;
    if (json_string_length(value) > TASK_TEXT_BYTES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "field %s: more than %u bytes", key,
                         TASK_TEXT_BYTES_MAX);
    *ret = g_strdup(text);
    return TRUE;
}

static gboolean field_want(const json_t *row, const char *key, char **ret, GError **error)
{
    return json_want_str(row, key, error) != NULL && field_str(row, key, NULL, ret, error);
}

/* A list of test names: a JSON array, or a string that holds one (SWE-bench's Python sets). */
static gboolean field_tests(const json_t *row, const char *key, GStrv *ret, GError **error)
{
    const json_t *list = json_object_get(row, key);
    g_autoptr(json_t) inner = NULL;
    if (json_is_string(list)) {
        inner = json_parse(json_string_value(list), json_string_length(list), error);
        if (inner == NULL) {
            g_prefix_error(error, "field %s: ", key);
            return FALSE;
        }
        list = inner;
    }
    if (!json_is_array(list))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field %s: %s; expected a list of test names, or a string holding one",
                         key, list == NULL ? "missing" : "has another type");
    if (json_array_size(list) > TASK_TESTS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "field %s: more than %u names", key,
                         TASK_TESTS_MAX);

    g_autoptr(GStrvBuilder) names = g_strv_builder_new();
    gsize i;
    json_t *name;
    json_array_foreach(list, i, name)
    {
        if (!json_is_string(name))
            return error_set(error, ASSAY_ERROR_INPUT, "field %s: item %zu is not a string", key,
                             i);
        g_strv_builder_add(names, json_string_value(name));
    }
    *ret = g_strv_builder_end(names);
    return TRUE;
}

static gboolean field_eval_type(const json_t *row, Task *task, GError **error)
{
    const char *text = json_opt_str(row, "eval_type", "", error);
    if (text == NULL)
        return FALSE;
    task->fail_only = strcmp(text, "fail_only") == 0;
    if (text[0] != '\0' && strcmp(text, "fail_only") != 0 && strcmp(text, "pass_and_fail") != 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field eval_type: \"%s\"; expected pass_and_fail or fail_only", text);
    return TRUE;
}

gboolean task_path_ok(const char *path)
{
    g_auto(GStrv) parts = g_strsplit(path, "/", -1);
    for (char **part = parts; *part != NULL; part++)
        if (**part == '\0' || strcmp(*part, ".") == 0 || strcmp(*part, "..") == 0 ||
            g_ascii_strcasecmp(*part, ".git") == 0)
            return FALSE;
    return parts[0] != NULL;
}

/* files: {"path": "text" | {"text": "...", "mode": "755"}}. */
static gboolean field_files(const json_t *row, Task *task, GError **error)
{
    task->files = json_object_get(row, "files");
    if (task->files == NULL)
        return TRUE;
    if (!json_is_object(task->files) || json_object_size(task->files) > TASK_FILES_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "field files: expected an object of at most %u",
                         TASK_FILES_MAX);

    gsize bytes = 0;
    const char *path;
    json_t *value;
    json_object_foreach((json_t *)(gsize)task->files, path, value)
    {
        const json_t *text = json_is_object(value) ? json_object_get(value, "text") : value;
        if (!task_path_ok(path) || !json_is_string(text))
            return error_set(error, ASSAY_ERROR_INPUT,
                             "field files: \"%s\": expected a relative path and its text", path);
        bytes += json_string_length(text);
    }
    if (bytes > TASK_FILES_BYTES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "field files: more than %u bytes",
                         TASK_FILES_BYTES_MAX);
    return TRUE;
}

static gboolean task_check(const Task *task, GError **error)
{
    if (!task_name_ok(task->instance_id))
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field instance_id: \"%s\"; expected 1-200 of letters, digits, . _ -",
                         task->instance_id);
    if (!task_repo_ok(task->repo))
        return error_set(error, ASSAY_ERROR_INPUT, "field repo: \"%s\"; expected owner/name",
                         task->repo);
    if (strlen(task->base_commit) != 40 || strspn(task->base_commit, "0123456789abcdef") != 40)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field base_commit: \"%s\"; expected 40 lower-case hex digits",
                         task->base_commit);
    if (task->eval_script[0] == '\0')
        return error_set(error, ASSAY_ERROR_INPUT, "field eval_script: empty");
    return TRUE;
}

static gboolean task_read(const json_t *row, Task *task, GError **error)
{
    gint64 wall_s = 0;
    gboolean ok = field_want(row, "instance_id", &task->instance_id, error) &&
                  field_want(row, "repo", &task->repo, error) &&
                  field_want(row, "base_commit", &task->base_commit, error) &&
                  field_str(row, "dataset", "", &task->dataset, error) &&
                  field_str(row, "repo_url", NULL, &task->repo_url, error) &&
                  field_str(row, "version", "", &task->version, error) &&
                  field_str(row, "language", "", &task->language, error) &&
                  field_str(row, "problem_statement", "", &task->problem_statement, error) &&
                  field_str(row, "patch", "", &task->patch, error) &&
                  field_want(row, "test_patch", &task->test_patch, error) &&
                  field_str(row, "log_parser", NULL, &task->log_parser, error) &&
                  field_want(row, "eval_script", &task->eval_script, error) &&
                  field_str(row, "wrong_patch", NULL, &task->wrong_patch, error) &&
                  field_str(row, "cheat_patch", NULL, &task->cheat_patch, error) &&
                  field_tests(row, "FAIL_TO_PASS", &task->fail_to_pass, error) &&
                  field_tests(row, "PASS_TO_PASS", &task->pass_to_pass, error) &&
                  field_eval_type(row, task, error) && field_files(row, task, error) &&
                  json_opt_int(row, "wall_s", 0, 14400, 0, &wall_s, error) &&
                  task_check(task, error);
    task->wall_s = (guint)wall_s;
    return ok;
}

Task *task_from_json(json_t *row, GError **error)
{
    if (!json_is_object(row)) {
        error_set(error, ASSAY_ERROR_INPUT, "a task row must be a JSON object");
        return NULL;
    }
    g_autoptr(Task) task = g_new0(Task, 1);
    task->json = json_incref(row);
    return task_read(row, task, error) ? g_steal_pointer(&task) : NULL;
}

void task_free(Task *task)
{
    if (task == NULL)
        return;
    char *owned[] = {task->dataset,     task->instance_id,       task->repo,
                     task->repo_url,    task->base_commit,       task->version,
                     task->language,    task->problem_statement, task->patch,
                     task->test_patch,  task->log_parser,        task->eval_script,
                     task->wrong_patch, task->cheat_patch};
    for (gsize i = 0; i < G_N_ELEMENTS(owned); i++)
        g_free(owned[i]);
    g_strfreev(task->fail_to_pass);
    g_strfreev(task->pass_to_pass);
    json_decref(task->json);
    g_free(task);
}

char *task_digest(const Task *task)
{
    g_autoptr(Digest) digest = digest_new("assay.task.v1");
    const char *fields[] = {task->repo,       task->base_commit, task->patch,  task->test_patch,
                            task->log_parser, task->eval_script, task->version};
    for (gsize i = 0; i < G_N_ELEMENTS(fields); i++)
        digest_add_str(digest, fields[i]);
    digest_add_str(digest, task->fail_only ? "fail_only" : "pass_and_fail");

    GStrv lists[] = {task->fail_to_pass, task->pass_to_pass};
    for (gsize i = 0; i < G_N_ELEMENTS(lists); i++) {
        for (char **name = lists[i]; *name != NULL; name++)
            digest_add_str(digest, *name);
        digest_add_str(digest, NULL);
    }
    return digest_finish(digest);
}

char *task_files_commit(const json_t *files)
{
    char *text = json_dumps(files, JSON_SORT_KEYS | JSON_COMPACT);
    g_autofree char *sha = digest_bytes(text, strlen(text));
    free(text);
    return g_strndup(sha, 40);
}
