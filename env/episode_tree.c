/*
 * The files of an episode.
 *
 * Invariants:
 *   1. In memory nothing is copied that is as the task has it.
 *   2. With a box every read and write goes by sandbox/box_files: no link is followed, whatever the
 *      policy put there.
 *   3. What the policy leaves in its tree, of any kind and size, cannot keep the changes from being
 *      read: what has no place in them is left out.
 *
 * Not here: what tools show of files (episode_tools.c).
 */
#include "env/episode_tree.h"

#include "base/error.h"
#include "env/verdict.h"
#include "tasks/repo_diff.h"

#include <string.h>

#define DEPTH_MAX     16u
#define WRITE_WALL_MS 60000u

void episode_tree_clear(EpisodeTree *tree)
{
    g_clear_pointer(&tree->changed, g_hash_table_unref);
    *tree = (EpisodeTree){0};
}

static void bytes_free(gpointer data)
{
    if (data != NULL)
        g_bytes_unref(data);
}

/* A file as the task has it, borrowed; NULL: it has none of that name. */
static const char *original(const EpisodeTree *tree, const char *path, gsize *ret_len)
{
    const json_t *value = json_object_get(tree->task->files, path);
    const json_t *text = json_is_object(value) ? json_object_get(value, "text") : value;
    *ret_len = json_string_length(text);
    return json_string_value(text);
}

/* ---- reading ---- */

static gboolean set_absent(GError **error, const char *path)
{
    return error_set(error, ASSAY_ERROR_NOT_FOUND, "%s: no such file", path);
}

static GBytes *memory_read(const EpisodeTree *tree, const char *path, GError **error)
{
    gpointer key, bytes;
    gsize len;
    if (tree->changed != NULL && g_hash_table_lookup_extended(tree->changed, path, &key, &bytes)) {
        if (bytes == NULL)
            set_absent(error, path);
        return bytes != NULL ? g_bytes_ref(bytes) : NULL;
    }
    const char *text = original(tree, path, &len);
    if (text == NULL)
        set_absent(error, path);
    return text != NULL ? g_bytes_new(text, len) : NULL;
}

GBytes *episode_tree_read(const EpisodeTree *tree, const char *path, GError **error)
{
    if (tree->box == NULL)
        return memory_read(tree, path, error);
    GBytes *bytes = box_file_read(tree->box, path, EPISODE_FILE_BYTES_MAX, error);
    if (bytes == NULL)
        g_prefix_error(error, "%s: ", path);
    return bytes;
}

static int by_path(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static gboolean is_removed(const EpisodeTree *tree, const char *path)
{
    return tree->changed != NULL && g_hash_table_contains(tree->changed, path);
}

static void memory_list(const EpisodeTree *tree, GPtrArray *paths)
{
    const char *path;
    json_t *value;
    json_object_foreach((json_t *)(gsize)tree->task->files, path,
                        value) if (!is_removed(tree, path)) g_ptr_array_add(paths, g_strdup(path));
    GHashTableIter iter;
    gpointer key, bytes;
    if (tree->changed == NULL)
        return;
    g_hash_table_iter_init(&iter, tree->changed);
    while (g_hash_table_iter_next(&iter, &key, &bytes))
        if (bytes != NULL)
            g_ptr_array_add(paths, g_strdup(key));
}

/* Regular files below `dir` ("" is the top). A directory that cannot be listed has none. */
static gboolean box_list(const EpisodeTree *tree, const char *dir, guint depth, GPtrArray *paths,
                         GError **error)
{
    g_autoptr(GError) local = NULL;
    g_autoptr(GPtrArray) entries = box_file_list(tree->box, dir[0] != '\0' ? dir : EPISODE_WORK,
                                                 EPISODE_TREE_FILES_MAX, &local);
    if (entries == NULL && !g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_SYSTEM))
        return TRUE;
    if (entries == NULL) {
        g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    for (guint i = 0; i < entries->len && paths->len < EPISODE_TREE_FILES_MAX; i++) {
        const BoxFileInfo *info = entries->pdata[i];
        g_autofree char *path =
            dir[0] != '\0' ? g_strconcat(dir, "/", info->name, NULL) : g_strdup(info->name);
        if (!g_utf8_validate(path, -1, NULL) || !task_path_ok(path))
            continue;
        if (info->kind == BOX_FILE_REGULAR)
            g_ptr_array_add(paths, g_steal_pointer(&path));
        else if (info->kind == BOX_FILE_DIR && depth < DEPTH_MAX &&
                 !box_list(tree, path, depth + 1, paths, error))
            return FALSE;
    }
    return TRUE;
}

GPtrArray *episode_tree_list(const EpisodeTree *tree, const char *below, GError **error)
{
    g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
    if (tree->box == NULL)
        memory_list(tree, paths);
    else if (!box_list(tree, below, 0, paths, error))
        return NULL;
    g_ptr_array_sort(paths, by_path);
    return g_steal_pointer(&paths);
}

/* ---- writing ---- */

/* Is there a file where `path` needs a directory, or a directory where it needs a file? */
static gboolean in_the_way(const EpisodeTree *tree, const char *path)
{
    g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
    memory_list(tree, paths);
    for (guint i = 0; i < paths->len; i++) {
        const char *other = paths->pdata[i];
        gsize len = strlen(other), own = strlen(path);
        if ((g_str_has_prefix(path, other) && path[len] == '/') ||
            (g_str_has_prefix(other, path) && other[own] == '/'))
            return TRUE;
    }
    return FALSE;
}

/* `bytes` NULL: removed. */
static void memory_put(EpisodeTree *tree, const char *path, GBytes *bytes)
{
    if (tree->changed == NULL)
        tree->changed = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, bytes_free);
    GBytes *old = g_hash_table_lookup(tree->changed, path);
    tree->changed_bytes -= old != NULL ? g_bytes_get_size(old) : 0;
    tree->changed_bytes += bytes != NULL ? g_bytes_get_size(bytes) : 0;
    g_hash_table_replace(tree->changed, g_strdup(path), bytes);
}

static gboolean memory_write(EpisodeTree *tree, const char *path, const void *data, gsize len,
                             GError **error)
{
    if (tree->changed_bytes + len > EPISODE_TREE_BYTES_MAX ||
        (tree->changed != NULL && g_hash_table_size(tree->changed) >= EPISODE_TREE_FILES_MAX))
        return error_set(error, ASSAY_ERROR_LIMIT, "too much has been written");
    if (in_the_way(tree, path))
        return error_set(error, ASSAY_ERROR_NOT_ALLOWED, "%s: a file is a directory's name", path);
    memory_put(tree, path, g_bytes_new(data, len));
    return TRUE;
}

/* A write that may need directories: the supervisor's files come with theirs. */
static gboolean box_write_deep(EpisodeTree *tree, const char *path, const void *data, gsize len,
                               GError **error)
{
    g_autofree char *inside = g_strconcat(EPISODE_WORK "/", path, NULL);
    g_autofree char *dir = g_path_get_dirname(inside);
    g_auto(BoxResult) result = {0};
    const BoxCommand command = {.argv = (const char *const[]){"/bin/mkdir", "-p", "--", dir, NULL},
                                .wall_ms = WRITE_WALL_MS};
    if (!box_exec(tree->box, &command, &result, error))
        return FALSE;
    return box_file_write(tree->box, path, data, len, 0644, error);
}

gboolean episode_tree_write(EpisodeTree *tree, const char *path, const void *data, gsize len,
                            GError **error)
{
    g_autoptr(GError) local = NULL;
    if (len > EPISODE_FILE_BYTES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "%s: more than %u bytes", path,
                         EPISODE_FILE_BYTES_MAX);
    if (tree->box == NULL)
        return memory_write(tree, path, data, len, error);
    gboolean ok = box_file_write(tree->box, path, data, len, 0644, &local);
    if (!ok && g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND)) {
        g_clear_error(&local);
        ok = box_write_deep(tree, path, data, len, &local);
    }
    if (!ok)
        g_propagate_prefixed_error(error, g_steal_pointer(&local), "%s: ", path);
    return ok;
}

gboolean episode_tree_remove(EpisodeTree *tree, const char *path, GError **error)
{
    if (tree->box == NULL) {
        memory_put(tree, path, NULL);
        return TRUE;
    }
    g_auto(BoxResult) result = {0};
    const BoxCommand command = {.argv = (const char *const[]){"/bin/rm", "-f", "--", path, NULL},
                                .wall_ms = WRITE_WALL_MS};
    return box_exec(tree->box, &command, &result, error);
}

/* ---- into a box ---- */

gboolean episode_tree_move(EpisodeTree *tree, Box *box, GError **error)
{
    g_autoptr(GPtrArray) paths = episode_tree_list(tree, "", error);
    g_autoptr(GArray) files = g_array_new(FALSE, FALSE, sizeof(BoxFile));
    g_autoptr(GPtrArray) held = g_ptr_array_new_with_free_func(bytes_free);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    for (guint i = 0; paths != NULL && i < paths->len; i++) {
        const json_t *value = json_object_get(tree->task->files, paths->pdata[i]);
        const char *mode = json_string_value(json_object_get(value, "mode"));
        GBytes *bytes = memory_read(tree, paths->pdata[i], error);
        if (bytes == NULL)
            return FALSE;
        g_ptr_array_add(held, bytes);
        g_ptr_array_add(names, g_strconcat(EPISODE_WORK "/", paths->pdata[i], NULL));
        BoxFile file = {names->pdata[i], "", 0, g_strcmp0(mode, "755") == 0 ? 0755 : 0644};
        const void *data = g_bytes_get_data(bytes, &file.len);
        file.data = data != NULL ? data : "";
        g_array_append_val(files, file);
    }
    g_auto(BoxResult) result = {0};
    const BoxCommand command = {.argv = (const char *const[]){"/bin/true", NULL},
                                .files = (const BoxFile *)(gpointer)files->data,
                                .n_files = files->len,
                                .wall_ms = WRITE_WALL_MS};
    if (paths == NULL || !box_exec(box, &command, &result, error))
        return FALSE;
    if (result.outcome != BOX_EXITED || result.exit_code != 0)
        return error_set(error, ASSAY_ERROR_SYSTEM, "write the files into a box: %s",
                         box_outcome_str(result.outcome));
    tree->box = box;
    g_clear_pointer(&tree->changed, g_hash_table_unref);
    tree->changed_bytes = 0;
    return TRUE;
}

/* ---- changes ---- */

static gboolean is_text(const char *data, gsize len)
{
    return g_utf8_validate_len(data, len, NULL);
}

/* The text of a file, or {"base64"} of what is none. */
static json_t *change_value(GBytes *bytes)
{
    gsize len;
    const char *data = g_bytes_get_data(bytes, &len);
    if (is_text(data != NULL ? data : "", len))
        return json_stringn(data != NULL ? data : "", len);
    g_autofree char *base64 = g_base64_encode((const guchar *)data, len);
    return json_pack("{s:s}", "base64", base64);
}

/* One file of the task: as it is (nothing to add), changed, or gone. */
static gboolean add_old(const EpisodeTree *tree, const char *path, json_t *changes, GError **error)
{
    g_autoptr(GError) local = NULL;
    gsize len, old_len;
    const char *old = original(tree, path, &old_len);
    g_autoptr(GBytes) bytes = episode_tree_read(tree, path, &local);
    if (g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_SYSTEM)) {
        g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    const void *data = bytes != NULL ? g_bytes_get_data(bytes, &len) : NULL;
    if (bytes == NULL)
        json_object_set_new(changes, path, json_null());
    else if (len != old_len || (len > 0 && memcmp(data, old, len) != 0))
        json_object_set_new(changes, path, change_value(bytes));
    return TRUE;
}

/* A file that the task has not: taken if a verdict can take it. */
static gboolean add_new(const EpisodeTree *tree, const char *path, json_t *changes, gsize *left,
                        GError **error)
{
    g_autoptr(GError) local = NULL;
    g_autoptr(GBytes) bytes = episode_tree_read(tree, path, &local);
    if (g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_SYSTEM)) {
        g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    gsize len = 0;
    const char *data = bytes != NULL ? g_bytes_get_data(bytes, &len) : NULL;
    if (bytes == NULL || len > *left || !is_text(data != NULL ? data : "", len))
        return TRUE;
    *left -= len;
    json_object_set_new(changes, path, change_value(bytes));
    return TRUE;
}

json_t *episode_tree_changes(const EpisodeTree *tree, GError **error)
{
    g_autoptr(json_t) changes = json_object();
    g_autoptr(GPtrArray) paths = episode_tree_list(tree, "", error);
    gsize left = VERDICT_NEW_BYTES_MAX;
    guint n_new = 0;
    const char *path;
    json_t *value;
    if (paths == NULL)
        return NULL;
    json_object_foreach((json_t *)(gsize)tree->task->files, path,
                        value) if (!add_old(tree, path, changes, error)) return NULL;
    for (guint i = 0; i < paths->len; i++)
        if (json_object_get(tree->task->files, paths->pdata[i]) == NULL &&
            verdict_path_ok(paths->pdata[i]) && n_new++ < VERDICT_NEW_FILES_MAX &&
            !add_new(tree, paths->pdata[i], changes, &left, error))
            return NULL;
    return g_steal_pointer(&changes);
}

/* ---- as a diff ---- */

static guint mode_of(const EpisodeTree *tree, const char *path)
{
    const json_t *value = json_object_get(tree->task->files, path);
    const char *mode = json_string_value(json_object_get(value, "mode"));
    return g_strcmp0(mode, "755") == 0 ? 0100755 : 0100644;
}

/* The bytes of a change; NULL: the file is gone. */
static GBytes *change_bytes(const json_t *value)
{
    gsize len = 0;
    if (json_is_string(value))
        return g_bytes_new(json_string_value(value), json_string_length(value));
    const char *base64 = json_string_value(json_object_get(value, "base64"));
    guchar *data = base64 != NULL ? g_base64_decode(base64, &len) : NULL;
    return data != NULL ? g_bytes_new_take(data, len) : NULL;
}

GString *episode_tree_diff(const EpisodeTree *tree, const json_t *changes, GError **error)
{
    g_autoptr(GString) patch = g_string_new(NULL);
    g_autoptr(GPtrArray) paths = g_ptr_array_new();
    const char *path;
    json_t *value;
    json_object_foreach((json_t *)(gsize)changes, path, value)
        g_ptr_array_add(paths, (gpointer)(gsize)path);
    g_ptr_array_sort(paths, by_path);
    for (guint i = 0; i < paths->len; i++) {
        RepoDiffSide before = {0}, after = {0};
        g_autoptr(GBytes) bytes = change_bytes(json_object_get(changes, paths->pdata[i]));
        before.data = original(tree, paths->pdata[i], &before.len);
        before.mode = before.data != NULL ? mode_of(tree, paths->pdata[i]) : 0;
        if (bytes != NULL) {
            after.mode = before.mode != 0 ? before.mode : 0100644;
            after.data = g_bytes_get_data(bytes, &after.len);
        }
        before.data = before.data != NULL ? before.data : "";
        after.data = after.data != NULL ? after.data : "";
        if (!repo_diff_add(patch, paths->pdata[i], &before, &after, error))
            return NULL;
    }
    return g_steal_pointer(&patch);
}
