/*
 * The object caches: cloning, copying, fetching, listing. The other libgit2 file is
 * repo_checkout.c.
 *
 * Invariants:
 *   1. A cache only grows; an interrupted fetch or copy leaves a usable cache.
 *   2. Only objects and the remembered URL come from a remote: no hooks, no configuration.
 *
 * Not here: credentials. A private repository is added from a local clone.
 */
#include "tasks/repo.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "tasks/repo_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <git2.h>
#include <string.h>
#include <sys/stat.h>

G_DEFINE_AUTOPTR_CLEANUP_FUNC(git_remote, git_remote_free)

gboolean repo_error(GError **error, const char *what)
{
    const git_error *last = git_error_last();
    return error_set(error, ASSAY_ERROR_SYSTEM, "%s: %s", what,
                     last != NULL ? last->message : "libgit2 gave no reason");
}

void repo_library_init(void)
{
    static gsize once;
    if (g_once_init_enter(&once)) {
        git_libgit2_init();
        git_libgit2_opts(GIT_OPT_SET_OWNER_VALIDATION, 0); /* mirrors may belong to others */
        /* the index is filled before the pack with its blobs is written (repo_checkout.c) */
        git_libgit2_opts(GIT_OPT_ENABLE_STRICT_OBJECT_CREATION, 0);
        g_once_init_leave(&once, 1);
    }
}

static gboolean name_split(const char *name, GStrv *ret, GError **error)
{
    *ret = g_strsplit(name, "/", 3);
    if (g_strv_length(*ret) == 2 && task_name_ok((*ret)[0]) && task_name_ok((*ret)[1]))
        return TRUE;
    return error_set(error, ASSAY_ERROR_INPUT, "repository \"%s\": expected owner/name", name);
}

char *repo_cache_path(const char *state_dir, const char *name)
{
    g_auto(GStrv) parts = g_strsplit(name, "/", 2);
    g_autofree char *file = g_strconcat(parts[0], "__", parts[1], ".git", NULL);
    return g_build_filename(state_dir, "repos", file, NULL);
}

/* The git directory at a local path: the path itself or its .git; NULL when there is none. */
static char *local_git_dir(const char *url)
{
    const char *path = g_str_has_prefix(url, "file://") ? url + 7 : url;
    if (path[0] != '/' && path[0] != '.')
        return NULL;
    g_autofree char *inner = g_build_filename(path, ".git", NULL);
    const char *candidates[] = {inner, path};
    for (gsize i = 0; i < G_N_ELEMENTS(candidates); i++) {
        g_autofree char *objects = g_build_filename(candidates[i], "objects", NULL);
        if (g_file_test(objects, G_FILE_TEST_IS_DIR))
            return g_strdup(candidates[i]);
    }
    return NULL;
}

static gboolean file_copy(int from_dir, int to_dir, const char *name, GError **error)
{
    if (faccessat(to_dir, name, F_OK, 0) == 0 || linkat(from_dir, name, to_dir, name, 0) == 0)
        return TRUE;
    AUTO_FD in = openat(from_dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    g_autofree char *tmp = g_strconcat(name, ".tmp", NULL);
    AUTO_FD out = in < 0 ? -1 : openat(to_dir, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0444);
    if (in < 0 || out < 0)
        return error_set_errno(error, errno, "copy object file %s", name);
    for (;;) {
        ssize_t n = copy_file_range(in, NULL, out, NULL, 64 << 20, 0);
        if (n < 0)
            return error_set_errno(error, errno, "copy object file %s", name);
        if (n == 0)
            break;
    }
    if (renameat(to_dir, tmp, to_dir, name) < 0)
        return error_set_errno(error, errno, "copy object file %s", name);
    return TRUE;
}

/* TRUE for directory names of objects/ that hold objects: "pack" and two hex digits. */
static gboolean is_object_dir(const char *name)
{
    return strcmp(name, "pack") == 0 ||
           (strlen(name) == 2 && strspn(name, "0123456789abcdef") == 2);
}

static gboolean objects_copy_dir(const char *from, const char *to, GError **error)
{
    g_autoptr(GDir) dir = g_dir_open(from, 0, error);
    if (dir == NULL)
        return FALSE;
    g_mkdir_with_parents(to, 0755);
    AUTO_FD from_fd = open(from, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    AUTO_FD to_fd = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (from_fd < 0 || to_fd < 0)
        return error_set_errno(error, errno, "open %s", from_fd < 0 ? from : to);
    for (const char *name; (name = g_dir_read_name(dir)) != NULL;)
        if (!g_str_has_suffix(name, ".promisor") && !g_str_has_suffix(name, ".lock") &&
            !g_str_has_prefix(name, "tmp_") && !file_copy(from_fd, to_fd, name, error))
            return FALSE;
    return TRUE;
}

static gboolean cache_copy_local(const char *git_dir, const char *cache, GError **error)
{
    g_autofree char *objects = g_build_filename(git_dir, "objects", NULL);
    g_autofree char *alternates = g_build_filename(objects, "info", "alternates", NULL);
    if (g_file_test(alternates, G_FILE_TEST_EXISTS))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "%s borrows objects from another repository; run `git repack -a -d` "
                         "there and delete objects/info/alternates",
                         git_dir);
    g_autoptr(GDir) dir = g_dir_open(objects, 0, error);
    if (dir == NULL)
        return FALSE;
    for (const char *name; (name = g_dir_read_name(dir)) != NULL;) {
        g_autofree char *from = g_build_filename(objects, name, NULL);
        g_autofree char *to = g_build_filename(cache, "objects", name, NULL);
        if (is_object_dir(name) && !objects_copy_dir(from, to, error))
            return FALSE;
    }
    return TRUE;
}

static int on_transfer(const git_indexer_progress *stats, void *payload)
{
    const RepoProgress *progress = payload;
    if (progress != NULL && progress->fn != NULL)
        progress->fn(stats->received_objects, stats->total_objects, stats->received_bytes,
                     progress->user_data);
    return 0;
}

static gboolean cache_fetch_remote(git_repository *repo, const char *url,
                                   const RepoProgress *progress, GError **error)
{
    g_autoptr(git_remote) remote = NULL;
    if (git_remote_create_anonymous(&remote, repo, url) < 0)
        return repo_error(error, url);
    git_fetch_options options = GIT_FETCH_OPTIONS_INIT;
    options.download_tags = GIT_REMOTE_DOWNLOAD_TAGS_NONE;
    options.callbacks.transfer_progress = on_transfer;
    options.callbacks.payload = (void *)(gsize)progress;
    char *specs[] = {(char *)(gsize) "+refs/heads/*:refs/heads/*",
                     (char *)(gsize) "+refs/tags/*:refs/tags/*"};
    const git_strarray refspecs = {specs, G_N_ELEMENTS(specs)};
    if (git_remote_fetch(remote, &refspecs, &options, NULL) < 0)
        return repo_error(error, url);
    return TRUE;
}

gboolean repo_add(const char *state_dir, const char *name, const char *url,
                  const RepoProgress *progress, GError **error)
{
    g_auto(GStrv) parts = NULL;
    if (!name_split(name, &parts, error))
        return FALSE;
    repo_library_init();

    g_autofree char *cache = repo_cache_path(state_dir, name);
    g_autofree char *parent = g_path_get_dirname(cache);
    if (g_mkdir_with_parents(parent, 0700) < 0)
        return error_set_errno(error, errno, "mkdir %s", parent);
    g_autoptr(git_repository) repo = NULL;
    if (git_repository_init(&repo, cache, 1) < 0)
        return repo_error(error, cache);

    g_autofree char *local = local_git_dir(url);
    gboolean ok = local != NULL ? cache_copy_local(local, cache, error)
                                : cache_fetch_remote(repo, url, progress, error);
    if (!ok) {
        g_prefix_error(error, "repository %s: ", name);
        return FALSE;
    }
    g_autofree char *remembered = g_build_filename(cache, "assay-url", NULL);
    return file_write_atomic(remembered, url, strlen(url), error);
}

static char *url_remembered(const char *cache)
{
    g_autofree char *path = g_build_filename(cache, "assay-url", NULL);
    char *url = NULL;
    return g_file_get_contents(path, &url, NULL, NULL) ? url : NULL;
}

gboolean repo_fetch(const char *state_dir, const char *name, const RepoProgress *progress,
                    GError **error)
{
    g_auto(GStrv) parts = NULL;
    if (!name_split(name, &parts, error))
        return FALSE;
    g_autofree char *cache = repo_cache_path(state_dir, name);
    g_autofree char *url = url_remembered(cache);
    if (url == NULL)
        return error_set(error, ASSAY_ERROR_NOT_FOUND, "repository %s: not added yet", name);
    return repo_add(state_dir, name, url, progress, error);
}

void repo_info_free(RepoInfo *info)
{
    if (info == NULL)
        return;
    g_free(info->name);
    g_free(info->url);
    g_free(info);
}

static int info_compare(gconstpointer a, gconstpointer b)
{
    const RepoInfo *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

GPtrArray *repo_list(const char *state_dir, GError **error)
{
    g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func((GDestroyNotify)repo_info_free);
    g_autofree char *path = g_build_filename(state_dir, "repos", NULL);
    if (!g_file_test(path, G_FILE_TEST_IS_DIR))
        return g_steal_pointer(&list);
    g_autoptr(GDir) dir = g_dir_open(path, 0, error);
    if (dir == NULL)
        return NULL;
    for (const char *file; (file = g_dir_read_name(dir)) != NULL;) {
        const char *middle = strstr(file, "__");
        if (middle == NULL || !g_str_has_suffix(file, ".git"))
            continue;
        g_autofree char *cache = g_build_filename(path, file, NULL);
        AUTO_FD fd = open(cache, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        RepoInfo *info = g_new0(RepoInfo, 1);
        info->name = g_strdup_printf("%.*s/%.*s", (int)(middle - file), file,
                                     (int)(strlen(middle) - 6), middle + 2);
        info->url = url_remembered(cache);
        info->bytes = fd >= 0 ? tree_bytes(fd) : 0;
        g_ptr_array_add(list, info);
    }
    g_ptr_array_sort(list, info_compare);
    return g_steal_pointer(&list);
}
