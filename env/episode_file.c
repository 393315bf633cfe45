/*
 * Records of episodes on disk.
 *
 * Invariants:
 *   1. What was appended is synced before anybody hears of it; a line is never changed.
 *   2. Who appends names how long the record was, under a lock: a host that was taken for dead
 *      cannot add a step that another has done.
 *
 * Not here: what a line says (episode_record.c).
 */
#include "env/episode_file.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define OPEN_FLAGS (O_CLOEXEC | O_NOFOLLOW)

static char *name_of(const char *id)
{
    return g_strconcat(id, ".ndjson", NULL);
}

int episode_file_dir(const char *state_dir, GError **error)
{
    AUTO_FD state = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (state < 0) {
        error_set_errno(error, errno, "open %s", state_dir);
        return -1;
    }
    return tree_open_dir(state, "episodes", 0700, error);
}

/* Bytes of whole lines. */
static gsize whole_lines(const char *text, gsize len)
{
    const char *last = len > 0 ? memrchr(text, '\n', len) : NULL;
    return last != NULL ? (gsize)(last - text) + 1 : 0;
}

GBytes *episode_file_read(int dir_fd, const char *id, GError **error)
{
    g_autofree char *name = name_of(id);
    AUTO_FD fd = openat(dir_fd, name, O_RDONLY | OPEN_FLAGS);
    if (fd < 0 && errno == ENOENT)
        error_set(error, ASSAY_ERROR_NOT_FOUND, "episode %s has no record", id);
    else if (fd < 0)
        error_set_errno(error, errno, "open %s", name);
    g_autoptr(GBytes) all = fd >= 0 ? fd_read_all(fd, EPISODE_FILE_MAX, error) : NULL;
    if (all == NULL)
        return NULL;
    return g_bytes_new_from_bytes(all, 0,
                                  whole_lines(g_bytes_get_data(all, NULL), g_bytes_get_size(all)));
}

/* Writes from `at` on and syncs. */
static gboolean write_at(int fd, gsize at, const char *lines, gsize len, GError **error)
{
    if (ftruncate(fd, (off_t)at) < 0 || lseek(fd, (off_t)at, SEEK_SET) < 0)
        return error_set_errno(error, errno, "cut the record");
    if (fd_write_all(fd, lines, len, error) && fdatasync(fd) == 0)
        return TRUE;
    gboolean is_full = errno == ENOSPC || errno == EDQUOT;
    g_clear_error(error);
    int cut = ftruncate(fd, (off_t)at);
    return is_full && cut == 0 ? error_set(error, ASSAY_ERROR_LIMIT, "the disk is full")
                               : error_set_errno(error, errno, "write the record");
}

gboolean episode_file_append(int dir_fd, const char *id, gsize at, const char *lines, gsize len,
                             GError **error)
{
    struct stat st;
    g_autofree char *name = name_of(id);
    if (at + len > EPISODE_FILE_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "the record would be longer than %u bytes",
                         EPISODE_FILE_MAX);
    AUTO_FD fd = openat(dir_fd, name, O_RDWR | O_CREAT | OPEN_FLAGS, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) < 0 || fstat(fd, &st) < 0)
        return error_set_errno(error, errno, "open %s", name);
    if ((gsize)st.st_size > at) {
        g_autoptr(GBytes) all = fd_read_all(fd, EPISODE_FILE_MAX, error);
        if (all == NULL)
            return FALSE;
        if (whole_lines(g_bytes_get_data(all, NULL), g_bytes_get_size(all)) != at)
            return error_set(error, ASSAY_ERROR_CONFLICT, "the record has grown");
    } else if ((gsize)st.st_size < at) {
        return error_set(error, ASSAY_ERROR_CONFLICT, "the record has been cut");
    }
    if (!write_at(fd, at, lines, len, error))
        return FALSE;
    return at > 0 || fsync(dir_fd) == 0 || error_set_errno(error, errno, "sync the directory");
}

gboolean episode_file_replace(int dir_fd, const char *id, const char *text, gsize len,
                              GError **error)
{
    g_autofree char *name = name_of(id), *new_name = g_strconcat(name, ".new", NULL);
    AUTO_FD fd = openat(dir_fd, new_name, O_RDWR | O_CREAT | OPEN_FLAGS, 0600);
    if (fd < 0)
        return error_set_errno(error, errno, "open %s", new_name);
    if (!write_at(fd, 0, text, len, error))
        return FALSE;
    return (renameat(dir_fd, new_name, dir_fd, name) == 0 && fsync(dir_fd) == 0) ||
           error_set_errno(error, errno, "rename %s", new_name);
}

/* Where the line of a step begins and ends; FALSE: there is none. Step 0 is the head. */
static gboolean find_step(const char *text, gsize len, guint step, json_t **ret_line,
                          gsize *ret_end)
{
    gsize at = 0;
    const char *newline;
    while (at < len && (newline = memchr(text + at, '\n', len - at)) != NULL) {
        g_autoptr(json_t) line = json_parse(text + at, (gsize)(newline - text) - at, NULL);
        const json_t *n = json_object_get(line, "step");
        gboolean is_head = at == 0;
        at = (gsize)(newline - text) + 1;
        if (step == 0 ? !is_head : json_integer_value(n) != (json_int_t)step)
            continue;
        *ret_end = at;
        *ret_line = g_steal_pointer(&line);
        return TRUE;
    }
    return FALSE;
}

gssize episode_file_prefix(const char *text, gsize len, guint step)
{
    gsize end = 0;
    g_autoptr(json_t) line = NULL;
    return find_step(text, len, step, &line, &end) ? (gssize)end : -1;
}

json_t *episode_file_step(const char *text, gsize len, guint step)
{
    gsize end = 0;
    json_t *line = NULL;
    return step > 0 && find_step(text, len, step, &line, &end) ? line : NULL;
}
