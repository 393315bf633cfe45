/*
 * The tools of an episode: edit, search, bash, submit.
 *
 * Invariants:
 *   1. A call that is refused changes nothing, and its observation says what to do instead.
 *   2. What a tool shows is the same whether the files are in memory or in a box.
 *
 * Not here: limits of observations, endings, the record (episode.c).
 */
#include "env/episode_private.h"

#include "base/error.h"

#include <string.h>

#define UNDOS_MAX      64u
#define MATCHES_MAX    100u
#define LINE_BYTES_MAX 200u
#define LIST_MAX       200u
#define COMMAND_BYTES  (64u << 10)
#define EDIT_CONTEXT   4u /* lines shown round an edit */
#define PATH_END       "\1"

/* ---- arguments ---- */

/* Other scaffolds' words for an argument. */
static const struct {
    const char *name, *also;
} argument_names[] = {
    {"command", "cmd"},        {"path", "file_path"},      {"pattern", "search_term"},
    {"pattern", "query"},      {"new_str", "insert_text"}, {"file_text", "content"},
    {"old_str", "old_string"}, {"new_str", "new_string"},
};

static const json_t *argument(const json_t *arguments, const char *name)
{
    const json_t *value = json_object_get(arguments, name);
    for (gsize i = 0; value == NULL && i < G_N_ELEMENTS(argument_names); i++)
        if (g_str_equal(argument_names[i].name, name))
            value = json_object_get(arguments, argument_names[i].also);
    return value;
}

/* A string without NUL. */
static const char *want_str(const json_t *arguments, const char *name, GError **error)
{
    const json_t *value = argument(arguments, name);
    const char *text = json_string_value(value);
    if (text == NULL || strlen(text) != json_string_length(value)) {
        error_set(error, ASSAY_ERROR_INPUT, "%s: %s", name,
                  value == NULL ? "missing" : "expected a string");
        return NULL;
    }
    return text;
}

static gboolean want_int(const json_t *value, const char *name, gint64 *ret, GError **error)
{
    if (!json_is_integer(value))
        return error_set(error, ASSAY_ERROR_INPUT, "%s: %s", name,
                         value == NULL ? "missing" : "expected a whole number");
    *ret = json_integer_value(value);
    return TRUE;
}

/* The path below the work directory; "" is the directory itself. */
static char *relative_path(const char *path, GError **error)
{
    gsize top = strlen(EPISODE_WORK);
    if (strncmp(path, EPISODE_WORK, top) == 0 && (path[top] == '/' || path[top] == '\0'))
        path += path[top] == '/' ? top + 1 : top;
    while (g_str_has_prefix(path, "./"))
        path += 2;
    g_autofree char *own = g_strdup(g_str_equal(path, ".") ? "" : path);
    gsize len = strlen(own);
    if (len > 0 && own[len - 1] == '/')
        own[len - 1] = '\0';
    if (own[0] != '\0' && (!task_path_ok(own) || len > 1000)) {
        error_set(error, ASSAY_ERROR_INPUT, "path: %s: expected a path below " EPISODE_WORK, path);
        return NULL;
    }
    return g_steal_pointer(&own);
}

static char *want_path(const json_t *arguments, GError **error)
{
    const char *path = want_str(arguments, "path", error);
    g_autofree char *relative = path != NULL ? relative_path(path, error) : NULL;
    if (relative != NULL && relative[0] == '\0') {
        error_set(error, ASSAY_ERROR_INPUT, "path: a file is needed, not the directory");
        return NULL;
    }
    return g_steal_pointer(&relative);
}

/* The text of a file; bytes that are none are replaced. */
static char *read_text(const Episode *episode, const char *path, GError **error)
{
    g_autoptr(GBytes) bytes = episode_tree_read(&episode->tree, path, error);
    gsize len = 0;
    if (bytes == NULL)
        return NULL;
    const char *data = g_bytes_get_data(bytes, &len);
    return g_utf8_make_valid(data != NULL ? data : "", (gssize)len);
}

/* A file to be edited must be text, or the rest of it would be damaged. */
static char *read_for_edit(const Episode *episode, const char *path, GError **error)
{
    g_autoptr(GBytes) bytes = episode_tree_read(&episode->tree, path, error);
    gsize len = 0;
    if (bytes == NULL)
        return NULL;
    const char *data = g_bytes_get_data(bytes, &len);
    if (len > 0 && !g_utf8_validate_len(data, len, NULL)) {
        error_set(error, ASSAY_ERROR_NOT_ALLOWED, "%s: not a text file", path);
        return NULL;
    }
    return g_strndup(data != NULL ? data : "", len);
}

/* ---- edit ---- */

void episode_undo_free(EpisodeUndo *undo)
{
    g_free(undo->path);
    if (undo->before != NULL)
        g_bytes_unref(undo->before);
    g_free(undo);
}

/* Writes a file and remembers what it was. */
static gboolean write_text(Episode *episode, const char *path, const char *text, gsize len,
                           GError **error)
{
    g_autoptr(GError) local = NULL;
    GBytes *before = episode_tree_read(&episode->tree, path, &local);
    if (before == NULL && !g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND)) {
        g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    EpisodeUndo *undo = g_new0(EpisodeUndo, 1);
    *undo = (EpisodeUndo){g_strdup(path), before};
    if (!episode_tree_write(&episode->tree, path, text, len, error)) {
        episode_undo_free(undo);
        return FALSE;
    }
    g_queue_push_head(&episode->undos, undo);
    if (g_queue_get_length(&episode->undos) > UNDOS_MAX)
        episode_undo_free(g_queue_pop_tail(&episode->undos));
    return TRUE;
}

/* Cuts the first line off the front; FALSE at the end. The last one may have no newline. */
static gboolean next_line(const char **text, const char **ret_line, gsize *ret_len)
{
    if (**text == '\0')
        return FALSE;
    *ret_line = *text;
    *ret_len = strcspn(*text, "\n");
    *text += *ret_len + ((*text)[*ret_len] == '\n');
    return TRUE;
}

/* Lines `from` to `to`, counted from 1, with their numbers. */
static void show_lines(GString *out, const char *text, guint from, guint to)
{
    const char *line;
    gsize len;
    for (guint i = 1; i <= to && next_line(&text, &line, &len); i++)
        if (i >= from)
            g_string_append_printf(out, "%6u\t%.*s\n", i, (int)len, line);
}

static guint count_lines(const char *text, gsize len)
{
    guint n = 0;
    for (gsize i = 0; i < len; i++)
        n += text[i] == '\n';
    return n;
}

static void show_round(GString *out, const char *path, const char *text, gsize at, gsize len)
{
    guint first = count_lines(text, at) + 1, last = first + count_lines(text + at, len);
    g_string_append_printf(out, "%s is now, round the change:\n", path);
    show_lines(out, text, first > EDIT_CONTEXT ? first - EDIT_CONTEXT : 1, last + EDIT_CONTEXT);
}

static gboolean list_dir(Episode *episode, const char *dir, GString *out, GError **error)
{
    g_autoptr(GPtrArray) paths = episode_tree_list(&episode->tree, dir, error);
    g_autofree char *prefix = dir[0] != '\0' ? g_strconcat(dir, "/", NULL) : g_strdup("");
    guint n = 0;
    for (guint i = 0; paths != NULL && i < paths->len; i++)
        if (g_str_has_prefix(paths->pdata[i], prefix) && n++ < LIST_MAX)
            g_string_append_printf(out, "%s\n", (char *)paths->pdata[i]);
    if (n > LIST_MAX)
        g_string_append_printf(out, "[%u more files]\n", n - LIST_MAX);
    if (paths != NULL && n == 0 && dir[0] != '\0')
        return error_set(error, ASSAY_ERROR_NOT_FOUND, "%s: no such file or directory", dir);
    return paths != NULL;
}

static gboolean edit_view(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    g_autoptr(GError) local = NULL;
    const json_t *range = argument(arguments, "view_range");
    gint64 from = 1, to = -1;
    const char *given = want_str(arguments, "path", error);
    g_autofree char *path = given != NULL ? relative_path(given, error) : NULL;
    if (path == NULL)
        return FALSE;
    if (range != NULL && !json_is_null(range) &&
        (json_array_size(range) != 2 ||
         !want_int(json_array_get(range, 0), "view_range", &from, NULL) ||
         !want_int(json_array_get(range, 1), "view_range", &to, NULL) || from < 1 ||
         (to != -1 && to < from)))
        return error_set(error, ASSAY_ERROR_INPUT, "view_range: expected [first, last] lines");
    g_autofree char *text = path[0] != '\0' ? read_text(episode, path, &local) : NULL;
    if (text != NULL) {
        show_lines(out, text, (guint)MIN(from, G_MAXINT32),
                   to < 0 ? G_MAXUINT32 : (guint)MIN(to, G_MAXINT32));
        return TRUE;
    }
    if (local == NULL || g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND) ||
        g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_NOT_ALLOWED))
        return list_dir(episode, path, out, error);
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
}

static gboolean edit_create(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    g_autofree char *path = want_path(arguments, error);
    const char *text = path != NULL ? want_str(arguments, "file_text", error) : NULL;
    if (text == NULL || !write_text(episode, path, text, strlen(text), error))
        return FALSE;
    g_string_append_printf(out, "%s has been written.\n", path);
    return TRUE;
}

static gboolean edit_str_replace(Episode *episode, const json_t *arguments, GString *out,
                                 GError **error)
{
    g_autofree char *path = want_path(arguments, error);
    const char *old = path != NULL ? want_str(arguments, "old_str", error) : NULL;
    const char *new = old == NULL ? NULL
                      : argument(arguments, "new_str") == NULL
                          ? ""
                          : want_str(arguments, "new_str", error);
    g_autofree char *text = new != NULL ? read_for_edit(episode, path, error) : NULL;
    if (text == NULL)
        return FALSE;
    char *at = old[0] != '\0' ? strstr(text, old) : NULL;
    if (at == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "old_str: %s",
                         old[0] == '\0' ? "empty" : "not in the file; it must match exactly");
    const char *again = strstr(at + 1, old);
    if (again != NULL)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "old_str: in the file more than once, in lines %u and %u; give more of "
                         "what stands round it",
                         count_lines(text, (gsize)(at - text)) + 1,
                         count_lines(text, (gsize)(again - text)) + 1);
    g_autoptr(GString) changed = g_string_new_len(text, at - text);
    g_string_append(changed, new);
    g_string_append(changed, at + strlen(old));
    if (!write_text(episode, path, changed->str, changed->len, error))
        return FALSE;
    show_round(out, path, changed->str, (gsize)(at - text), strlen(new));
    return TRUE;
}

static gboolean edit_insert(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    gint64 line = 0;
    g_autofree char *path = want_path(arguments, error);
    const char *new = path != NULL ? want_str(arguments, "new_str", error) : NULL;
    if (new == NULL || !want_int(argument(arguments, "insert_line"), "insert_line", &line, error))
        return FALSE;
    g_autofree char *text = read_for_edit(episode, path, error);
    if (text == NULL)
        return FALSE;
    const char *at = text;
    for (gint64 i = 0; i < line && *at != '\0'; i++) {
        const char *newline = strchr(at, '\n');
        at = newline != NULL ? newline + 1 : at + strlen(at);
    }
    if (line < 0 || line > count_lines(text, strlen(text)) + 1)
        return error_set(error, ASSAY_ERROR_INPUT, "insert_line: the file has %u lines",
                         count_lines(text, strlen(text)));
    g_autoptr(GString) changed = g_string_new_len(text, at - text);
    if (changed->len > 0 && changed->str[changed->len - 1] != '\n')
        g_string_append_c(changed, '\n');
    gsize from = changed->len;
    g_string_append_printf(changed, "%s%s%s", new, g_str_has_suffix(new, "\n") ? "" : "\n", at);
    if (!write_text(episode, path, changed->str, changed->len, error))
        return FALSE;
    show_round(out, path, changed->str, from, strlen(new));
    return TRUE;
}

static gboolean edit_undo(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    g_autofree char *path = want_path(arguments, error);
    if (path == NULL)
        return FALSE;
    for (GList *link = episode->undos.head; link != NULL; link = link->next) {
        EpisodeUndo *undo = link->data;
        if (!g_str_equal(undo->path, path))
            continue;
        gsize len = 0;
        const void *data = undo->before != NULL ? g_bytes_get_data(undo->before, &len) : NULL;
        gboolean ok =
            undo->before == NULL
                ? episode_tree_remove(&episode->tree, path, error)
                : episode_tree_write(&episode->tree, path, data != NULL ? data : "", len, error);
        if (!ok)
            return FALSE;
        g_string_append_printf(out, "%s is as it was before its last edit.\n", path);
        g_queue_delete_link(&episode->undos, link);
        episode_undo_free(undo);
        return TRUE;
    }
    return error_set(error, ASSAY_ERROR_NOT_FOUND, "%s: no edit to undo", path);
}

static gboolean tool_edit(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    static const struct {
        const char *name;
        EpisodeToolFn fn;
    } commands[] = {{"view", edit_view},     {"create", edit_create},
                    {"insert", edit_insert}, {"str_replace", edit_str_replace},
                    {"undo", edit_undo},     {"undo_edit", edit_undo}};
    const char *command = want_str(arguments, "command", error);
    if (command == NULL)
        return FALSE;
    for (gsize i = 0; i < G_N_ELEMENTS(commands); i++)
        if (g_str_equal(commands[i].name, command))
            return commands[i].fn(episode, arguments, out, error);
    return error_set(error, ASSAY_ERROR_INPUT,
                     "command: %.40s; expected view, create, str_replace, insert or undo", command);
}

/* ---- search ---- */

/* How a command ended, where that is worth a line. */
static void say_outcome(GString *out, const BoxResult *result, gint64 seconds)
{
    if (out->len > 0 && out->str[out->len - 1] != '\n')
        g_string_append_c(out, '\n');
    if (result->outcome == BOX_EXITED && result->exit_code != 0)
        g_string_append_printf(out, "[exit status %d]\n", result->exit_code);
    else if (result->outcome == BOX_SIGNALED)
        g_string_append_printf(out, "[ended by signal %d]\n", result->signal);
    else if (result->outcome == BOX_TIMED_OUT)
        g_string_append_printf(out, "[ended after %d s]\n", (int)seconds);
    else if (result->outcome != BOX_EXITED)
        g_string_append_printf(out, "[ended: %s]\n", box_outcome_str(result->outcome));
}

static void search_text(const char *path, const char *text, const char *pattern, guint *n,
                        GString *out)
{
    const char *line;
    gsize len;
    for (guint i = 1; next_line(&text, &line, &len); i++) {
        if (g_strstr_len(line, (gssize)len, pattern) == NULL || (*n)++ >= MATCHES_MAX)
            continue;
        if (len > LINE_BYTES_MAX)
            len = (gsize)(g_utf8_find_prev_char(line, line + LINE_BYTES_MAX + 1) - line);
        g_string_append_printf(out, "%s:%u:%.*s\n", path, i, (int)len, line);
    }
}

static gboolean is_in(const char *path, const char *where)
{
    gsize len = strlen(where);
    return len == 0 || (strncmp(path, where, len) == 0 && (path[len] == '\0' || path[len] == '/'));
}

static void say_matches(GString *out, guint n)
{
    if (n > MATCHES_MAX)
        g_string_append_printf(out, "[%u more matches]\n", n - MATCHES_MAX);
    else if (n == 0)
        g_string_append(out, "No matches.\n");
}

/* A checkout may have many files: its own grep looks through them, while nobody waits here. */
static gboolean grep_start(Episode *episode, const char *pattern, const char *where, GError **error)
{
    EpisodeRunning *running = &episode->running;
    g_autoptr(GStrvBuilder) words = g_strv_builder_new();
    g_strv_builder_add_many(words, "grep", "-rnIFZ", "--exclude-dir=.git", "-e", pattern, "--",
                            where[0] != '\0' ? where : ".", NULL);
    running->argv = g_strv_builder_end(words);
    running->cwd = g_strdup(EPISODE_WORK);
    running->seconds = episode->options.command_s;
    return episode_command_start(episode, error);
}

/* By what stands before the mark; lines of one file stay in their order. */
static int by_path(gconstpointer a, gconstpointer b)
{
    const char *x = *(const char *const *)a, *y = *(const char *const *)b;
    gsize x_len = strcspn(x, PATH_END), y_len = strcspn(y, PATH_END);
    int order = strncmp(x, y, MIN(x_len, y_len));
    return order != 0 ? order : (x_len > y_len) - (x_len < y_len);
}

/* Lines of "path NUL number:text", by path as in memory. */
static void grep_show(const Episode *episode, const BoxResult *result, GString *out)
{
    gsize len = 0;
    const char *data = result->out != NULL ? g_bytes_get_data(result->out, &len) : NULL;
    g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(g_free);
    for (const char *at = data, *end = data + len, *newline; at < end; at = newline + 1) {
        newline = memchr(at, '\n', (gsize)(end - at));
        if (newline == NULL)
            break;
        const char *nul = memchr(at, '\0', (gsize)(newline - at));
        if (nul == NULL)
            continue;
        const char *path = g_str_has_prefix(at, "./") ? at + 2 : at;
        gsize text_len = MIN((gsize)(newline - nul) - 1, LINE_BYTES_MAX);
        g_autofree char *text = g_utf8_make_valid(nul + 1, (gssize)text_len);
        g_ptr_array_add(found, g_strdup_printf("%s" PATH_END "%s", path, text));
    }
    g_ptr_array_sort(found, by_path);
    for (guint i = 0; i < MIN(found->len, MATCHES_MAX); i++)
        g_string_append_printf(out, "%s\n", g_strdelimit(found->pdata[i], PATH_END, ':'));
    say_matches(out, found->len);
    if (result->outcome != BOX_EXITED)
        say_outcome(out, result, episode->running.seconds);
}

static gboolean tool_search(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    const json_t *given = argument(arguments, "path");
    const char *pattern = want_str(arguments, "pattern", error);
    g_autofree char *where =
        pattern == NULL ? NULL
        : given == NULL || json_is_null(given)
            ? g_strdup("")
            : relative_path(json_is_string(given) ? json_string_value(given) : "..", error);
    guint n = 0;
    if (where == NULL)
        return FALSE;
    if (pattern[0] == '\0')
        return error_set(error, ASSAY_ERROR_INPUT, "pattern: empty");
    if (episode->options.base != NULL)
        return grep_start(episode, pattern, where, error);
    g_autoptr(GPtrArray) paths = episode_tree_list(&episode->tree, "", error);
    if (paths == NULL)
        return FALSE;
    for (guint i = 0; i < paths->len; i++) {
        g_autoptr(GError) local = NULL;
        if (!is_in(paths->pdata[i], where))
            continue;
        g_autofree char *text = read_text(episode, paths->pdata[i], &local);
        if (g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_SYSTEM)) {
            g_propagate_error(error, g_steal_pointer(&local));
            return FALSE;
        }
        if (text != NULL) /* not permitted, too large: there is nothing to find */
            search_text(paths->pdata[i], text, pattern, &n, out);
    }
    say_matches(out, n);
    return TRUE;
}

/* ---- bash, submit ---- */

/* What was written; bytes that are no UTF-8 are replaced. */
static char *text_of(GBytes *bytes)
{
    gsize len = 0;
    const char *data = bytes != NULL ? g_bytes_get_data(bytes, &len) : NULL;
    return g_utf8_make_valid(data != NULL ? data : "", (gssize)len);
}

gboolean episode_command_start(Episode *episode, GError **error)
{
    EpisodeRunning *running = &episode->running;
    if (!episode_enter_box(episode, error))
        return FALSE;
    running->command.argv = (const char *const *)running->argv;
    running->command.cwd = running->cwd;
    running->command.envp = episode->options.envp;
    running->command.wall_ms = (guint64)running->seconds * 1000;
    running->run = box_start(episode->tree.box, &running->command, error);
    return running->run != NULL;
}

void episode_running_clear(Episode *episode)
{
    EpisodeRunning *running = &episode->running;
    if (running->run != NULL) {
        g_auto(BoxResult) result = {0};
        box_run_cancel(running->run);
        box_run_finish(running->run, &result, NULL);
    }
    json_decref(running->arguments);
    g_strfreev(running->argv);
    g_free(running->cwd);
    *running = (EpisodeRunning){0};
}

static gboolean tool_bash(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    (void)out;
    gint64 seconds = episode->options.command_s;
    const json_t *timeout = argument(arguments, "timeout");
    const char *command = want_str(arguments, "command", error);
    if (command == NULL)
        return FALSE;
    if (strlen(command) > COMMAND_BYTES)
        return error_set(error, ASSAY_ERROR_LIMIT, "command: more than %u bytes", COMMAND_BYTES);
    if (timeout != NULL && !json_is_null(timeout)) {
        if (!json_is_number(timeout) || json_number_value(timeout) < 1)
            return error_set(error, ASSAY_ERROR_INPUT, "timeout: expected seconds, 1 or more");
        seconds = (gint64)MIN(json_number_value(timeout), (double)seconds);
    }
    EpisodeRunning *running = &episode->running;
    g_autoptr(GStrvBuilder) words = g_strv_builder_new();
    g_strv_builder_add_many(words, "/bin/bash", "-c", command, NULL);
    running->argv = g_strv_builder_end(words);
    running->cwd = g_strdup(EPISODE_WORK);
    running->seconds = seconds;
    running->command.merge = TRUE;
    return episode_command_start(episode, error);
}

static void bash_show(const Episode *episode, const BoxResult *result, GString *out)
{
    g_autofree char *text = text_of(result->out);
    g_string_append(out, text);
    say_outcome(out, result, episode->running.seconds);
}

static gboolean tool_submit(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    (void)arguments;
    (void)error;
    episode->end = EPISODE_SUBMITTED;
    g_string_append(out, "Submitted.\n");
    return TRUE;
}

/* ---- beside the policy ---- */

#define EXEC_ARGS_MAX  1000u
#define EXEC_BYTES_MAX (256u << 10)

/* The words of argv; NULL: they are not as they should be. */
static GStrv want_argv(const json_t *arguments, GError **error)
{
    const json_t *list = json_object_get(arguments, "argv");
    g_autoptr(GStrvBuilder) words = g_strv_builder_new();
    gsize n = json_array_size(list), bytes = 0;
    for (gsize i = 0; i < n && i < EXEC_ARGS_MAX; i++) {
        const json_t *word = json_array_get(list, i);
        const char *text = json_string_value(word);
        if (text == NULL || strlen(text) != json_string_length(word) || (i == 0 && *text == '\0')) {
            error_set(error, ASSAY_ERROR_INPUT, "argv: expected strings without NUL");
            return NULL;
        }
        bytes += strlen(text) + 1;
        g_strv_builder_add(words, text);
    }
    if (n == 0 || n > EXEC_ARGS_MAX || bytes > EXEC_BYTES_MAX) {
        error_set(error, ASSAY_ERROR_INPUT, "argv: expected 1 to %u words, %u bytes at most",
                  EXEC_ARGS_MAX, EXEC_BYTES_MAX);
        return NULL;
    }
    return g_strv_builder_end(words);
}

static gboolean side_exec(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    static const char *const keys[] = {"argv", "cwd", "timeout_s", "stdin", NULL};
    (void)out;
    EpisodeRunning *running = &episode->running;
    const json_t *input = json_object_get(arguments, "stdin");
    const char *cwd = json_opt_str(arguments, "cwd", EPISODE_WORK, error);
    if (cwd == NULL || !json_only_keys(arguments, keys, error) ||
        !json_opt_int(arguments, "timeout_s", 1, episode->options.command_s,
                      episode->options.command_s, &running->seconds, error) ||
        (running->argv = want_argv(arguments, error)) == NULL)
        return FALSE;
    if (cwd[0] != '/')
        return error_set(error, ASSAY_ERROR_INPUT, "cwd: expected an absolute path");
    if (input != NULL && !json_is_string(input))
        return error_set(error, ASSAY_ERROR_INPUT, "stdin: expected a string");
    running->cwd = g_strdup(cwd);
    running->command.stdin_data = json_string_value(input);
    running->command.stdin_len = json_string_length(input);
    return episode_command_start(episode, error);
}

static void exec_show(const Episode *episode, const BoxResult *result, GString *out)
{
    (void)episode;
    g_autofree char *out_text = text_of(result->out), *err_text = text_of(result->err);
    g_autoptr(json_t) shown =
        json_pack("{s:s, s:i, s:i, s:s, s:s, s:b}", "outcome", box_outcome_str(result->outcome),
                  "exit_code", result->exit_code, "signal", result->signal, "stdout", out_text,
                  "stderr", err_text, "truncated", result->truncated);
    g_autofree char *text = json_print(shown);
    g_string_append(out, text);
}

static gboolean side_write(Episode *episode, const json_t *arguments, GString *out, GError **error)
{
    static const char *const keys[] = {"path", "text", "base64", NULL};
    g_autofree char *path =
        json_only_keys(arguments, keys, error) ? want_path(arguments, error) : NULL;
    const json_t *text = json_object_get(arguments, "text");
    const char *base64 = json_string_value(json_object_get(arguments, "base64"));
    gsize len = json_string_length(text);
    if (path == NULL)
        return FALSE;
    if (json_is_string(text) == (base64 != NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "text, base64: expected one of them");
    g_autofree guchar *decoded = base64 != NULL ? g_base64_decode(base64, &len) : NULL;
    const void *data = base64 != NULL ? (const void *)decoded : json_string_value(text);
    g_string_append(out, "{}");
    return episode_tree_write(&episode->tree, path, data, len, error);
}

GBytes *episode_file(const Episode *episode, const char *path, GError **error)
{
    g_autofree char *relative = relative_path(path, error);
    if (relative == NULL)
        return NULL;
    if (relative[0] != '\0')
        return episode_tree_read(&episode->tree, relative, error);
    error_set(error, ASSAY_ERROR_NOT_ALLOWED, "path: a file is needed, not the directory");
    return NULL;
}

/* ---- the table ---- */

static const EpisodeTool tools[] = {
    {"edit",
     {"str_replace_editor", "str_replace_based_edit_tool", "file_editor", "text_editor"},
     tool_edit,
     "View, create and edit files. view shows a file with line numbers, or the files of a "
     "directory; str_replace replaces old_str, which must occur exactly once, by new_str; insert "
     "puts new_str after line insert_line; undo takes the last edit of the file back.",
     "{\"type\": \"object\", \"properties\": {"
     "\"command\": {\"type\": \"string\", \"enum\": [\"view\", \"create\", \"str_replace\", "
     "\"insert\", \"undo\"]},"
     "\"path\": {\"type\": \"string\", \"description\": \"below " EPISODE_WORK "\"},"
     "\"file_text\": {\"type\": \"string\", \"description\": \"of create\"},"
     "\"old_str\": {\"type\": \"string\"}, \"new_str\": {\"type\": \"string\"},"
     "\"insert_line\": {\"type\": \"integer\", \"description\": \"0: before the first\"},"
     "\"view_range\": {\"type\": \"array\", \"items\": {\"type\": \"integer\"}, "
     "\"description\": \"first and last line; -1: to the end\"}},"
     "\"required\": [\"command\", \"path\"]}"},
    {"search",
     {"grep", "search_dir", "search_file"},
     tool_search,
     "Lines of files that contain a text, literally.",
     "{\"type\": \"object\", \"properties\": {"
     "\"pattern\": {\"type\": \"string\"},"
     "\"path\": {\"type\": \"string\", \"description\": \"only this file or directory\"}},"
     "\"required\": [\"pattern\"]}",
     grep_show},
    {"bash",
     {"execute_bash", "terminal", "shell", "run_shell_command"},
     tool_bash,
     "Runs a command in " EPISODE_WORK ". Every call is a new shell; files stay. There is no "
     "network and no input.",
     "{\"type\": \"object\", \"properties\": {"
     "\"command\": {\"type\": \"string\"},"
     "\"timeout\": {\"type\": \"number\", \"description\": \"seconds\"}},"
     "\"required\": [\"command\"]}",
     bash_show},
    {"submit",
     {"finish", "done", "task_complete"},
     tool_submit,
     "Ends the work; the files are graded as they are.",
     "{\"type\": \"object\", \"properties\": {}}"},
};

static const EpisodeTool sides[] = {
    {.name = "exec", .fn = side_exec, .show = exec_show},
    {.name = "write", .fn = side_write},
};

const EpisodeTool *episode_side_find(const char *name)
{
    for (gsize i = 0; i < G_N_ELEMENTS(sides); i++)
        if (g_str_equal(sides[i].name, name))
            return &sides[i];
    return NULL;
}

const EpisodeTool *episode_tool_find(const char *name)
{
    for (gsize i = 0; i < G_N_ELEMENTS(tools); i++) {
        if (g_str_equal(tools[i].name, name))
            return &tools[i];
        for (gsize k = 0; tools[i].aliases[k] != NULL; k++)
            if (g_str_equal(tools[i].aliases[k], name))
                return &tools[i];
    }
    return NULL;
}

EpisodeToolKind episode_tool_kind(const char *name)
{
    const EpisodeTool *tool = episode_tool_find(name);
    return tool == NULL            ? EPISODE_TOOL_NONE
           : tool->fn == tool_bash ? EPISODE_TOOL_WAITS
                                   : EPISODE_TOOL_QUICK;
}

char *episode_tool_names(void)
{
    GString *names = g_string_new(NULL);
    for (gsize i = 0; i < G_N_ELEMENTS(tools); i++)
        g_string_append_printf(names, "%s%s", i > 0 ? ", " : "", tools[i].name);
    return g_string_free(names, FALSE);
}

json_t *episode_tools(void)
{
    json_t *list = json_array();
    for (gsize i = 0; i < G_N_ELEMENTS(tools); i++) {
        json_t *parameters = json_parse(tools[i].parameters, strlen(tools[i].parameters), NULL);
        g_assert(parameters != NULL);
        json_array_append_new(list, json_pack("{s:s, s:{s:s, s:s, s:o}}", "type", "function",
                                              "function", "name", tools[i].name, "description",
                                              tools[i].description, "parameters", parameters));
    }
    return list;
}
