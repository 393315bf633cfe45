/*
 * What differs in a workspace from its layers, read from the writable layers alone.
 *
 * The layers of one directory are walked together, topmost first: what the box wrote (the written
 * generation, those below it) and what it was given. Only names that the box's own layers hold are
 * looked at, so the cost is that of the changes. Overlay form: see keeper_copy.c.
 *
 * Invariants:
 *   1. No program runs over the tree, and no link is followed: one name at a time, by descriptor.
 *   2. Entries, bytes and depth are bounded; beyond the bounds nothing is reported as "all".
 *   3. A file whose bytes and mode are as before is no change, however it came into the layer.
 *
 * Not here: writing the changes down as a diff (env).
 */
#include "sandbox/box_private.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/kernel.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define DEPTH_MAX  512
#define STACK_MAX  (SPEC_GENS_MAX + 1 + SPEC_LAYERS_MAX)
#define OPAQUE     "user.overlay.opaque"
#define NAMES_MAX  1000000u
#define ALL_LAYERS STACK_MAX

typedef struct Walk {
    BoxChangeFunc fn;
    gpointer data;
    guint n, n_max, n_names;
    guint64 bytes, bytes_max;
    GString *path;
} Walk;

/* One directory in every layer that has it, topmost first; the first n_written are the box's. */
typedef struct Stack {
    int fds[STACK_MAX];
    guint n, n_written;
} Stack;

static void stack_clear(Stack *stack)
{
    for (guint i = 0; i < stack->n; i++)
        close(stack->fds[i]);
    stack->n = stack->n_written = 0;
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Stack, stack_clear)

static gboolean is_whiteout(const struct stat *st)
{
    return S_ISCHR(st->st_mode) && st->st_rdev == makedev(0, 0);
}

static gboolean is_opaque(int dir_fd)
{
    char value;
    return fgetxattr(dir_fd, OPAQUE, &value, 1) == 1 && value == 'y';
}

/* The layer that decides what NAME is, among `from`..`to`; -1: none has it. */
static int find(const Stack *stack, const char *name, guint from, guint to, struct stat *ret_st)
{
    for (guint i = from; i < MIN(to, stack->n); i++)
        if (fstatat(stack->fds[i], name, ret_st, AT_SYMLINK_NOFOLLOW) == 0)
            return (int)i;
    return -1;
}

/* What the stack below the box's own layers shows. An opaque directory of the box hides the names
 * of the layers below it, not that they were there. */
static int find_before(const Stack *stack, const char *name, struct stat *ret_st)
{
    int at = find(stack, name, stack->n_written, ALL_LAYERS, ret_st);
    return at >= 0 && is_whiteout(ret_st) ? -1 : at;
}

/* NAME as a directory in every layer that shows it. */
static void descend(const Stack *stack, const char *name, Stack *ret_inner)
{
    gboolean hidden = FALSE; /* for what the box shows; what was before counts in any case */
    for (guint i = 0; i < stack->n; i++) {
        struct stat st;
        gboolean is_ours = i < stack->n_written;
        if (i == stack->n_written)
            hidden = FALSE;
        if (hidden || fstatat(stack->fds[i], name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        int fd = S_ISDIR(st.st_mode)
                     ? openat(stack->fds[i], name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                     : -1;
        if (fd < 0 || is_opaque(fd))
            hidden = TRUE;
        if (fd < 0)
            continue;
        ret_inner->fds[ret_inner->n++] = fd;
        ret_inner->n_written += is_ours;
    }
}

static gboolean read_side(Walk *walk, int dir_fd, const char *name, const struct stat *st,
                          BoxSide *ret, GError **error)
{
    char target[4096];
    ret->mode = st->st_mode;
    if (S_ISLNK(st->st_mode)) {
        ssize_t n = readlinkat(dir_fd, name, target, sizeof target);
        if (n < 0)
            return error_set_errno(error, errno, "read a link");
        ret->data = g_bytes_new(target, (gsize)n);
        return TRUE;
    }
    AUTO_FD fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(error, errno, "open a changed file");
    ret->data = fd_read_all(fd, walk->bytes_max - walk->bytes, error);
    if (ret->data == NULL)
        return FALSE;
    walk->bytes += g_bytes_get_size(ret->data);
    return TRUE;
}

static gboolean has_content(const struct stat *st)
{
    return S_ISREG(st->st_mode) || S_ISLNK(st->st_mode);
}

static gboolean same(const BoxSide *a, const BoxSide *b)
{
    return a->mode == b->mode && (a->data == NULL) == (b->data == NULL) &&
           (a->data == NULL || g_bytes_equal(a->data, b->data));
}

/* One name that is a file or a link on either side. */
static gboolean report(Walk *walk, const Stack *stack, const char *name, int before_at,
                       const struct stat *before, int after_at, const struct stat *after,
                       GError **error)
{
    BoxChange change = {.path = walk->path->str};
    gboolean ok = TRUE;
    if (before_at >= 0 && has_content(before))
        ok = read_side(walk, stack->fds[before_at], name, before, &change.before, error);
    if (ok && after_at >= 0 && has_content(after))
        ok = read_side(walk, stack->fds[after_at], name, after, &change.after, error);
    if (ok && !same(&change.before, &change.after)) {
        if (walk->n++ == walk->n_max)
            ok =
                error_set(error, ASSAY_ERROR_LIMIT, "more than %u files were changed", walk->n_max);
        ok = ok && walk->fn(&change, walk->data, error);
    }
    g_clear_pointer(&change.before.data, g_bytes_unref);
    g_clear_pointer(&change.after.data, g_bytes_unref);
    return ok;
}

static gboolean add_names(Walk *walk, int dir_fd, GHashTable *names, GError **error)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (dir == NULL)
        return error_set_errno(error, errno, "read a changed directory");
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            walk->n_names <= NAMES_MAX)
            walk->n_names += g_hash_table_add(names, g_strdup(entry->d_name));
    closedir(dir);
    return walk->n_names <= NAMES_MAX ||
           error_set(error, ASSAY_ERROR_LIMIT, "more than %u names were written", NAMES_MAX);
}

static gboolean walk_dir(Walk *walk, const Stack *stack, gboolean gone, int depth, GError **error);

static gboolean walk_name(Walk *walk, const Stack *stack, const char *name, gboolean gone,
                          int depth, GError **error)
{
    struct stat before = {0}, after = {0};
    int before_at = find_before(stack, name, &before);
    int after_at = gone ? -1 : find(stack, name, 0, stack->n_written, &after);
    gboolean is_deleted = after_at < 0 || is_whiteout(&after);
    gsize len = walk->path->len;
    g_string_append_printf(walk->path, "%s%s", len > 0 ? "/" : "", name);

    gboolean ok = TRUE;
    gboolean was_file = before_at >= 0 && has_content(&before);
    gboolean is_file = !is_deleted && has_content(&after);
    if (was_file || is_file)
        ok = report(walk, stack, name, was_file ? before_at : -1, &before, is_file ? after_at : -1,
                    &after, error);
    gboolean is_dir = !is_deleted && S_ISDIR(after.st_mode);
    if (ok && (is_dir || (before_at >= 0 && S_ISDIR(before.st_mode)))) {
        g_auto(Stack) inner = {0};
        descend(stack, name, &inner);
        ok = walk_dir(walk, &inner, !is_dir, depth - 1, error);
    }
    g_string_truncate(walk->path, len);
    return ok;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* `gone`: nothing of this directory is shown any more, so all that was before is deleted. Where the
 * box replaced a directory (opaque), what was below is looked at as well. */
static gboolean walk_dir(Walk *walk, const Stack *stack, gboolean gone, int depth, GError **error)
{
    g_autoptr(GHashTable) names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    gboolean replaced = gone || stack->n_written == 0;
    if (depth == 0)
        return error_set(error, ASSAY_ERROR_LIMIT, "%s: deeper than %d directories",
                         "the workspace", DEPTH_MAX);
    for (guint i = 0; i < stack->n_written; i++) {
        replaced = replaced || is_opaque(stack->fds[i]);
        if (!add_names(walk, stack->fds[i], names, error))
            return FALSE;
    }
    for (guint i = stack->n_written; replaced && i < stack->n; i++)
        if (!add_names(walk, stack->fds[i], names, error))
            return FALSE;
    guint n;
    g_autofree gpointer *sorted = g_hash_table_get_keys_as_array(names, &n);
    qsort(sorted, n, sizeof *sorted, by_bytes);
    for (guint i = 0; i < n; i++)
        if (!walk_name(walk, stack, sorted[i], gone, depth, error))
            return FALSE;
    return TRUE;
}

static gboolean push(Stack *stack, int top_fd, const char *part, GError **error)
{
    int fd = openat(top_fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(error, errno, "open a layer of the workspace");
    stack->fds[stack->n++] = fd;
    return TRUE;
}

static gboolean push_all(const Box *box, Stack *stack, GError **error)
{
    if (!push(stack, box->work_upper_fd >= 0 ? box->work_upper_fd : box->written_fd,
              box->work_upper_fd >= 0 ? "upper" : "work/upper", error))
        return FALSE;
    for (guint i = 0; i < box->below->len; i++) {
        const BoxGen *gen = g_ptr_array_index(box->below, i);
        if (!push(stack, gen->fd, "work/upper", error))
            return FALSE;
    }
    stack->n_written = stack->n;
    for (guint i = 0; i < box->work_fds->len; i++)
        if (!push(stack, g_array_index(box->work_fds, int, i), ".", error))
            return FALSE;
    return TRUE;
}

gboolean box_changes(const Box *box, guint n_max, guint64 bytes_max, BoxChangeFunc fn,
                     gpointer data, GError **error)
{
    g_auto(Stack) stack = {0};
    if (box->copy_dir != NULL || (box->written_fd < 0 && box->work_upper_fd < 0))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "without namespaces there is no layer to read changes from");
    if (!push_all(box, &stack, error))
        return FALSE;
    g_autoptr(GString) path = g_string_new(NULL);
    Walk walk = {.fn = fn, .data = data, .n_max = n_max, .bytes_max = bytes_max, .path = path};
    return walk_dir(&walk, &stack, FALSE, DEPTH_MAX, error);
}
