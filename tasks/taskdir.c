/*
 * Task directories to canonical rows.
 *
 * Invariants:
 *   1. The row is self-contained: with repo/ the files travel inside it, so that nobody reads the
 *      directory again after import.
 *   2. Symbolic links in a task directory are not followed.
 *
 * Not here: what a row's fields may hold (task.c).
 */
#include "tasks/taskdir.h"

#include "base/error.h"
#include "base/fd.h"
#include "tasks/script.h"
#include "tasks/task.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define TASKDIR_FILE_BYTES_MAX (8u << 20)

static int path_compare(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

GStrv taskdir_list(const char *path, GError **error)
{
    g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *own = g_build_filename(path, "task.conf", NULL);
    if (g_file_test(own, G_FILE_TEST_IS_REGULAR)) {
        g_ptr_array_add(found, g_strdup(path));
    } else {
        g_autoptr(GDir) dir = g_dir_open(path, 0, error);
        if (dir == NULL)
            return NULL;
        for (const char *name; (name = g_dir_read_name(dir)) != NULL;) {
            g_autofree char *conf = g_build_filename(path, name, "task.conf", NULL);
            if (g_file_test(conf, G_FILE_TEST_IS_REGULAR))
                g_ptr_array_add(found, g_build_filename(path, name, NULL));
        }
    }
    g_ptr_array_sort(found, path_compare);
    if (found->len == 0) {
        error_set(error, ASSAY_ERROR_INPUT, "%s: no task.conf in it or one level below", path);
        return NULL;
    }
    g_ptr_array_add(found, NULL);
    return (GStrv)g_ptr_array_free(g_steal_pointer(&found), FALSE);
}

/* Every key of task.conf, for "did you mean". */
static const char *const conf_keys[] = {
    "id",  "language", "parser",       "eval_type",    "test_command", "build_command", "repo",
    "url", "commit",   "fail_to_pass", "pass_to_pass", "wall_s",       "version",       NULL};

static GKeyFile *conf_load(const char *dir, GError **error)
{
    g_autofree char *path = g_build_filename(dir, "task.conf", NULL);
    g_autoptr(GKeyFile) conf = g_key_file_new();
    if (!g_key_file_load_from_file(conf, path, G_KEY_FILE_NONE, error)) {
        g_prefix_error(error, "task.conf: ");
        return NULL;
    }
    g_auto(GStrv) keys = g_key_file_get_keys(conf, "task", NULL, error);
    for (char **key = keys; key != NULL && *key != NULL; key++) {
        if (g_strv_contains(conf_keys, *key))
            continue;
        const char *near = word_nearest(*key, conf_keys);
        error_set(error, ASSAY_ERROR_INPUT, "task.conf: unknown key %s%s%s%s", *key,
                  near != NULL ? "; did you mean " : "", near != NULL ? near : "",
                  near != NULL ? "?" : "");
        return NULL;
    }
    return keys != NULL ? g_steal_pointer(&conf) : NULL;
}

/* The text of NAME in the directory; absent gives "" unless `needed`. */
static char *text_read(const char *dir, const char *name, gboolean needed, GError **error)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    if (!needed && !g_file_test(path, G_FILE_TEST_EXISTS))
        return g_strdup("");
    g_autoptr(GBytes) bytes = file_read(path, TASKDIR_FILE_BYTES_MAX, error);
    if (bytes == NULL)
        return NULL;
    gsize len = g_bytes_get_size(bytes);
    const char *text = g_bytes_get_data(bytes, NULL);
    if (!g_utf8_validate_len(text, len, NULL)) {
        error_set(error, ASSAY_ERROR_INPUT, "%s: not UTF-8 text", name);
        return NULL;
    }
    return g_strndup(text, len);
}

/* Adds the regular files below DIR to `files` as "path": {"text", "mode"}, sorted by name. */
static gboolean files_add(json_t *files, const char *dir, const char *prefix, GError **error)
{
    g_autoptr(GDir) list = g_dir_open(dir, 0, error);
    if (list == NULL)
        return FALSE;
    for (const char *name; (name = g_dir_read_name(list)) != NULL;) {
        g_autofree char *path = g_build_filename(dir, name, NULL);
        g_autofree char *inside = g_strconcat(prefix, name, NULL);
        struct stat st;
        if (lstat(path, &st) < 0)
            return error_set_errno(error, errno, "stat %s", path);
        if (S_ISDIR(st.st_mode)) {
            g_autofree char *deeper = g_strconcat(inside, "/", NULL);
            if (!files_add(files, path, deeper, error))
                return FALSE;
            continue;
        }
        if (!S_ISREG(st.st_mode))
            return error_set(error, ASSAY_ERROR_INPUT,
                             "%s: only files and directories can be "
                             "part of an embedded repository",
                             path);
        g_autofree char *text = text_read(dir, name, TRUE, error);
        if (text == NULL || json_object_size(files) >= TASK_FILES_MAX)
            return text == NULL ? FALSE
                                : error_set(error, ASSAY_ERROR_LIMIT, "%s: more than %u files", dir,
                                            TASK_FILES_MAX);
        json_object_set_new(files, inside,
                            json_pack("{s:s, s:s}", "text", text, "mode",
                                      (st.st_mode & 0100) != 0 ? "755" : "644"));
    }
    return TRUE;
}

/* Sets row[field] from the key when the key is there. */
static void conf_copy(GKeyFile *conf, const char *key, json_t *row, const char *field)
{
    g_autofree char *value = g_key_file_get_string(conf, "task", key, NULL);
    if (value != NULL)
        json_object_set_new(row, field, json_string(value));
}

static void conf_copy_list(GKeyFile *conf, const char *key, json_t *row, const char *field)
{
    g_auto(GStrv) names = g_key_file_get_string_list(conf, "task", key, NULL, NULL);
    json_t *list = json_array();
    for (char **name = names; name != NULL && *name != NULL; name++)
        json_array_append_new(list, json_string(*name));
    json_object_set_new(row, field, list);
}

/* Files of the directory that become fields. */
static const struct {
    const char *file, *field;
    gboolean needed;
} text_fields[] = {
    {"issue.md", "problem_statement", TRUE}, {"gold.patch", "patch", TRUE},
    {"test.patch", "test_patch", TRUE},      {"wrong.patch", "wrong_patch", FALSE},
    {"cheat.patch", "cheat_patch", FALSE},
};

static gboolean row_texts(const char *dir, json_t *row, GError **error)
{
    for (gsize i = 0; i < G_N_ELEMENTS(text_fields); i++) {
        g_autofree char *text = text_read(dir, text_fields[i].file, text_fields[i].needed, error);
        if (text == NULL)
            return FALSE;
        if (text[0] != '\0' || text_fields[i].needed)
            json_object_set_new(row, text_fields[i].field, json_string(text));
    }
    return TRUE;
}

/* The repository: embedded files, or a URL and a commit. Returns the commit id. */
static char *row_repository(GKeyFile *conf, const char *dir, json_t *row, GError **error)
{
    g_autofree char *commit = g_key_file_get_string(conf, "task", "commit", NULL);
    if (commit != NULL) {
        conf_copy(conf, "url", row, "repo_url");
        return g_steal_pointer(&commit);
    }
    g_autofree char *path = g_build_filename(dir, "repo", NULL);
    g_autoptr(json_t) files = json_object();
    if (!files_add(files, path, "", error))
        return NULL;
    char *head = task_files_commit(files);
    json_object_set(row, "files", files);
    return head;
}

json_t *taskdir_row(const char *dir, GError **error)
{
    g_autoptr(GKeyFile) conf = conf_load(dir, error);
    if (conf == NULL)
        return NULL;
    g_autofree char *id = g_key_file_get_string(conf, "task", "id", NULL);
    g_autofree char *test = g_key_file_get_string(conf, "task", "test_command", NULL);
    if (id == NULL || test == NULL || !g_key_file_has_key(conf, "task", "parser", NULL)) {
        error_set(error, ASSAY_ERROR_INPUT, "task.conf: id, parser and test_command are needed");
        return NULL;
    }

    g_autofree char *repo = g_strdup_printf("assay/%s", id);
    g_autoptr(json_t) row = json_pack("{s:s, s:s}", "instance_id", id, "repo", repo);
    g_autofree char *commit =
        row_texts(dir, row, error) ? row_repository(conf, dir, row, error) : NULL;
    if (commit == NULL)
        return NULL;
    json_object_set_new(row, "base_commit", json_string(commit));
    conf_copy(conf, "repo", row, "repo");
    conf_copy(conf, "language", row, "language");
    conf_copy(conf, "version", row, "version");
    conf_copy(conf, "parser", row, "log_parser");
    json_object_set_new(row, "eval_type", json_string("pass_and_fail"));
    conf_copy(conf, "eval_type", row, "eval_type");
    conf_copy_list(conf, "fail_to_pass", row, "FAIL_TO_PASS");
    conf_copy_list(conf, "pass_to_pass", row, "PASS_TO_PASS");
    gint64 wall_s = g_key_file_get_int64(conf, "task", "wall_s", NULL);
    if (wall_s > 0)
        json_object_set_new(row, "wall_s", json_integer(wall_s));
    const char *patch = json_string_value(json_object_get(row, "test_patch"));
    g_autofree char *build = g_key_file_get_string(conf, "task", "build_command", NULL);
    g_autofree char *script = eval_script_embedded(commit, patch, build, test);
    json_object_set_new(row, "eval_script", json_string(script));
    return g_steal_pointer(&row);
}

static const char new_conf[] =
    "# One task. docs/formats.md says what each key means.\n"
    "[task]\n"
    "id = my__task-1\n"
    "language = python\n"
    "# how the output of the tests is read: docs/formats.md lists the parsers\n"
    "parser = unittest\n"
    "test_command = python3 -m unittest -v test_it\n"
    "# build_command = make\n"
    "# tests that fail before the gold patch and pass after it; tests that always pass\n"
    "fail_to_pass = test_new (test_it.Case.test_new)\n"
    "pass_to_pass =\n"
    "# instead of repo/: url = https://host/owner/name  commit = 40 hex digits  repo = "
    "owner/name\n";

static const struct {
    const char *path, *text;
} new_files[] = {
    {"task.conf", new_conf},
    {"issue.md", "What is wrong, as a user would report it.\n"},
    {"gold.patch", ""},
    {"test.patch", ""},
    {"repo/README.md", "The repository at the base commit, without the fix and its tests.\n"},
};

gboolean taskdir_new(const char *dir, GError **error)
{
    g_autofree char *repo = g_build_filename(dir, "repo", NULL);
    if (g_file_test(dir, G_FILE_TEST_EXISTS))
        return error_set(error, ASSAY_ERROR_CONFLICT, "%s is there already", dir);
    if (g_mkdir_with_parents(repo, 0755) < 0)
        return error_set_errno(error, errno, "mkdir %s", repo);
    for (gsize i = 0; i < G_N_ELEMENTS(new_files); i++) {
        g_autofree char *path = g_build_filename(dir, new_files[i].path, NULL);
        if (!file_write_atomic(path, new_files[i].text, strlen(new_files[i].text), error))
            return FALSE;
    }
    return TRUE;
}
