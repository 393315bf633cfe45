/*
 * Prepared checkouts: one commit's files, and a .git that knows nothing else.
 *
 * The index is filled while the files are written, blob by blob; its tree becomes the one synthetic
 * commit, so history cannot leak by construction. The dataset's commit id still resolves, by a
 * replace ref, because evaluation scripts name it.
 *
 * Invariants:
 *   1. A checkout directory that exists under its final name is complete (rename after the work).
 *   2. Every file is created O_EXCL below a directory descriptor we made: no link of the repository
 *      is ever followed.
 *   3. A blob that the cache lacks is left out and listed, never replaced by an empty file.
 */
#include "tasks/repo.h"

#include "base/digest.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "tasks/repo_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define CHECKOUT_DEPTH_MAX 200
#define CHECKOUT_EPOCH     1577836800 /* 2020-01-01: the time of embedded repositories */

G_DEFINE_AUTOPTR_CLEANUP_FUNC(git_tree, git_tree_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(git_commit, git_commit_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(git_blob, git_blob_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(git_index, git_index_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(git_signature, git_signature_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(git_reference, git_reference_free)
G_DEFINE_AUTOPTR_CLEANUP_FUNC(git_packbuilder, git_packbuilder_free)

/* One checkout being made. */
typedef struct Checkout {
    const Task *task;
    git_repository *cache; /* NULL for an embedded repository */
    git_repository *made;
    git_index *index;
    git_packbuilder *pack; /* of the cache: blobs to take along */
    json_t *missing;
    git_oid commit; /* whose .gitattributes rule */
    gint64 time_s;  /* mtime of every file, time of the commit */
} Checkout;

static gboolean name_ok(const char *name)
{
    return name[0] != '\0' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           g_ascii_strcasecmp(name, ".git") != 0 && strchr(name, '/') == NULL;
}

/* Writes one file or link below `dir_fd` and enters it into the index under `path`. */
static gboolean file_write(Checkout *out, int dir_fd, const char *name, const char *path,
                           guint mode, const git_oid *oid, const void *data, gsize len,
                           GError **error)
{
    if (mode == GIT_FILEMODE_LINK) {
        g_autofree char *target = g_strndup(data, len);
        if (symlinkat(target, dir_fd, name) < 0)
            return error_set_errno(error, errno, "symlink %s", path);
    } else {
        guint bits = mode == GIT_FILEMODE_BLOB_EXECUTABLE ? 0755 : 0644;
        AUTO_FD fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, bits);
        if (fd < 0)
            return error_set_errno(error, errno, "create %s", path);
        if (!fd_write_all(fd, data, len, error))
            return FALSE;
        fchmod(fd, bits);
    }
    const struct timespec times[2] = {{.tv_sec = out->time_s}, {.tv_sec = out->time_s}};
    struct stat st;
    if (utimensat(dir_fd, name, times, AT_SYMLINK_NOFOLLOW) < 0 ||
        fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return error_set_errno(error, errno, "stat %s", path);

    git_index_entry entry = {.mode = mode, .path = path, .id = *oid};
    entry.mtime.seconds = (gint32)out->time_s;
    entry.file_size = (guint32)st.st_size;
    if (git_index_add(out->index, &entry) < 0)
        return repo_error(error, path);
    return TRUE;
}

static gboolean blob_write(Checkout *out, int dir_fd, const git_tree_entry *entry, const char *path,
                           GError **error)
{
    const git_oid *oid = git_tree_entry_id(entry);
    guint mode = git_tree_entry_filemode(entry);
    g_autoptr(git_blob) blob = NULL;
    if (git_blob_lookup(&blob, out->cache, oid) < 0) {
        json_array_append_new(out->missing, json_string(path));
        return TRUE;
    }
    if (git_packbuilder_insert(out->pack, oid, path) < 0)
        return repo_error(error, path);

    git_buf filtered = GIT_BUF_INIT;
    git_blob_filter_options options = GIT_BLOB_FILTER_OPTIONS_INIT;
    options.flags = GIT_BLOB_FILTER_NO_SYSTEM_ATTRIBUTES | GIT_BLOB_FILTER_ATTRIBUTES_FROM_COMMIT;
    options.attr_commit_id = out->commit;
    gboolean plain =
        mode == GIT_FILEMODE_LINK || git_blob_filter(&filtered, blob, path, &options) < 0;
    const void *data = plain ? git_blob_rawcontent(blob) : filtered.ptr;
    gsize len = plain ? (gsize)git_blob_rawsize(blob) : filtered.size;
    gboolean ok =
        file_write(out, dir_fd, git_tree_entry_name(entry), path, mode, oid, data, len, error);
    git_buf_dispose(&filtered);
    return ok;
}

static gboolean tree_write(Checkout *out, int dir_fd, const git_tree *tree, const char *prefix,
                           guint depth, GError **error)
{
    if (depth > CHECKOUT_DEPTH_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "%s: deeper than %d directories", prefix,
                         CHECKOUT_DEPTH_MAX);
    for (gsize i = 0; i < git_tree_entrycount(tree); i++) {
        const git_tree_entry *entry = git_tree_entry_byindex(tree, i);
        const char *name = git_tree_entry_name(entry);
        g_autofree char *path = g_strconcat(prefix, name, NULL);
        if (!name_ok(name))
            return error_set(error, ASSAY_ERROR_INPUT, "the commit holds a forbidden name: %s",
                             path);
        if (git_tree_entry_type(entry) == GIT_OBJECT_BLOB) {
            if (!blob_write(out, dir_fd, entry, path, error))
                return FALSE;
            continue;
        }
        AUTO_FD sub = tree_open_dir(dir_fd, name, 0755, error);
        if (sub < 0)
            return FALSE;
        if (git_tree_entry_type(entry) == GIT_OBJECT_COMMIT)
            continue; /* a submodule stays an empty directory */
        g_autoptr(git_tree) below = NULL;
        g_autofree char *deeper = g_strconcat(path, "/", NULL);
        if (git_tree_lookup(&below, out->cache, git_tree_entry_id(entry)) < 0)
            return repo_error(error, path);
        if (!tree_write(out, sub, below, deeper, depth + 1, error))
            return FALSE;
    }
    return TRUE;
}

/* Writes the files that the task itself carries. */
static gboolean embedded_write(Checkout *out, int root_fd, GError **error)
{
    const char *path;
    json_t *value;
    json_object_foreach((json_t *)(gsize)out->task->files, path, value)
    {
        const json_t *text = json_is_object(value) ? json_object_get(value, "text") : value;
        const char *mode = json_string_value(json_object_get(value, "mode"));
        g_auto(GStrv) parts = g_strsplit(path, "/", -1);
        AUTO_FD dir_fd = dup(root_fd);
        guint last = g_strv_length(parts) - 1;
        for (guint i = 0; i < last; i++) {
            int next = tree_open_dir(dir_fd, parts[i], 0755, error);
            if (next < 0)
                return FALSE;
            close(dir_fd);
            dir_fd = next;
        }
        git_oid oid;
        gsize len = json_string_length(text);
        if (git_blob_create_from_buffer(&oid, out->made, json_string_value(text), len) < 0)
            return repo_error(error, path);
        guint bits = g_strcmp0(mode, "755") == 0 ? GIT_FILEMODE_BLOB_EXECUTABLE : GIT_FILEMODE_BLOB;
        if (!file_write(out, dir_fd, parts[last], path, bits, &oid, json_string_value(text), len,
                        error))
            return FALSE;
    }
    return TRUE;
}

/* Writes the files of the task's commit, and their blobs into the made repository's pack. */
static gboolean commit_write(Checkout *out, int root_fd, GError **error)
{
    git_oid oid;
    g_autoptr(git_commit) commit = NULL;
    g_autoptr(git_tree) tree = NULL;
    g_autoptr(git_packbuilder) pack = NULL;
    if (git_oid_fromstr(&oid, out->task->base_commit) < 0 ||
        git_commit_lookup(&commit, out->cache, &oid) < 0 || git_commit_tree(&tree, commit) < 0 ||
        git_packbuilder_new(&pack, out->cache) < 0)
        return repo_error(error, out->task->base_commit);
    out->time_s = git_commit_time(commit);
    out->pack = pack;
    out->commit = oid;
    if (!tree_write(out, root_fd, tree, "", 0, error))
        return FALSE;

    g_autofree char *packs =
        g_build_filename(git_repository_path(out->made), "objects", "pack", NULL);
    git_packbuilder_set_threads(pack, 1);
    if (git_packbuilder_object_count(pack) > 0 &&
        git_packbuilder_write(pack, packs, 0, NULL, NULL) < 0)
        return repo_error(error, "writing the pack");
    return TRUE;
}

/* The one commit, the branch, and the replace ref for the dataset's commit id. */
static gboolean history_write(Checkout *out, GError **error)
{
    git_oid tree_oid, commit_oid;
    g_autoptr(git_tree) tree = NULL;
    g_autoptr(git_signature) who = NULL;
    g_autoptr(git_reference) replace = NULL;
    g_autofree char *ref = g_strconcat("refs/replace/", out->task->base_commit, NULL);
    git_odb *odb = NULL;

    if (git_repository_odb(&odb, out->made) == 0) {
        git_odb_refresh(odb);
        git_odb_free(odb);
    }
    if (git_index_write(out->index) < 0 || git_index_write_tree(&tree_oid, out->index) < 0 ||
        git_tree_lookup(&tree, out->made, &tree_oid) < 0 ||
        git_signature_new(&who, "Assay", "assay@localhost", out->time_s, 0) < 0 ||
        git_commit_create(&commit_oid, out->made, "HEAD", who, who, NULL, "base\n", tree, 0, NULL) <
            0 ||
        git_reference_create(&replace, out->made, ref, &commit_oid, 1, NULL) < 0)
        return repo_error(error, "writing the commit");
    return TRUE;
}

static const char checkout_config[] = "[core]\n"
                                      "\trepositoryformatversion = 0\n"
                                      "\tfilemode = true\n"
                                      "\tbare = false\n"
                                      "\tlogallrefupdates = false\n"
                                      "\tcheckStat = minimal\n"
                                      "\ttrustctime = false\n"
                                      "[gc]\n"
                                      "\tauto = 0\n"
                                      "[user]\n"
                                      "\tname = Assay\n"
                                      "\temail = assay@localhost\n";

static gboolean checkout_make(Checkout *out, const char *dir, GError **error)
{
    g_autofree char *tree = g_build_filename(dir, "tree", NULL);
    git_repository_init_options init = GIT_REPOSITORY_INIT_OPTIONS_INIT;
    init.flags = GIT_REPOSITORY_INIT_MKPATH | GIT_REPOSITORY_INIT_NO_REINIT;
    init.initial_head = "main";
    g_autoptr(git_repository) made = NULL;
    g_autoptr(git_index) index = NULL;
    if (git_repository_init_ext(&made, tree, &init) < 0 || git_repository_index(&index, made) < 0)
        return repo_error(error, tree);
    out->made = made;
    out->index = index;

    AUTO_FD root_fd = open(tree, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root_fd < 0)
        return error_set_errno(error, errno, "open %s", tree);
    fchmod(root_fd, 0755);
    gboolean written = out->cache != NULL ? commit_write(out, root_fd, error)
                                          : embedded_write(out, root_fd, error);
    if (!written || !history_write(out, error))
        return FALSE;

    g_autofree char *config = g_build_filename(tree, ".git", "config", NULL);
    g_autofree char *missing = g_build_filename(dir, "missing.json", NULL);
    g_autofree char *list = json_print(out->missing);
    return file_write_atomic(config, checkout_config, sizeof checkout_config - 1, error) &&
           file_write_atomic(missing, list, strlen(list), error);
}

/* Where a repository that is not cached is fetched from. */
static char *url_find(const Task *task, const char *repos)
{
    if (task->repo_url != NULL)
        return g_strdup(task->repo_url);
    g_auto(GStrv) parts = g_strsplit(task->repo, "/", 2);
    static const char *const shapes[] = {"%s/%s/%s", "%s/%s/%s.git", "%s/%s__%s.git", "%s/%s__%s",
                                         "%s/%s+%s/repo"};
    for (gsize i = 0; repos != NULL && i < G_N_ELEMENTS(shapes); i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        g_autofree char *path = g_strdup_printf(shapes[i], repos, parts[0], parts[1]);
#pragma GCC diagnostic pop
        if (g_file_test(path, G_FILE_TEST_IS_DIR))
            return g_steal_pointer(&path);
    }
    return g_strdup_printf("https://github.com/%s", task->repo);
}

static gboolean cache_has(git_repository *repo, const char *commit)
{
    git_oid oid;
    g_autoptr(git_commit) found = NULL;
    return git_oid_fromstr(&oid, commit) == 0 && git_commit_lookup(&found, repo, &oid) == 0;
}

/* The cache, opened, holding the task's commit; fetched when it does not. */
static git_repository *cache_open(const char *state_dir, const Task *task, const char *repos,
                                  GError **error)
{
    g_autofree char *path = repo_cache_path(state_dir, task->repo);
    g_autoptr(git_repository) repo = NULL;
    if (git_repository_open_bare(&repo, path) == 0 && cache_has(repo, task->base_commit))
        return g_steal_pointer(&repo);

    g_autofree char *url = url_find(task, repos);
    if (!repo_add(state_dir, task->repo, url, NULL, error))
        return NULL;
    g_clear_pointer(&repo, git_repository_free);
    if (git_repository_open_bare(&repo, path) < 0) {
        repo_error(error, path);
        return NULL;
    }
    if (!cache_has(repo, task->base_commit)) {
        error_set(error, ASSAY_ERROR_NOT_FOUND, "repository %s (%s) has no commit %s", task->repo,
                  url, task->base_commit);
        return NULL;
    }
    return g_steal_pointer(&repo);
}

/* Opens STATE/trees/.KEY.lock exclusively; the descriptor is the lock. */
static int key_lock(const char *trees, const char *key, GError **error)
{
    g_autofree char *path = g_strdup_printf("%s/.%s.lock", trees, key);
    AUTO_FD fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) < 0) {
        error_set_errno(error, errno, "lock %s", path);
        return -1;
    }
    return fd_take(&fd);
}

static gboolean checkout_build(const char *state_dir, const Task *task, const char *repos,
                               const RepoOwner *owner, const char *dir, GError **error)
{
    g_autoptr(git_repository) cache = NULL;
    if (task->files == NULL && (cache = cache_open(state_dir, task, repos, error)) == NULL)
        return FALSE;

    g_autofree char *trees = g_path_get_dirname(dir);
    g_autofree char *key = g_path_get_basename(dir);
    g_autofree char *tmp_name = g_strdup_printf(".%s.tmp", key);
    g_autofree char *tmp = g_build_filename(trees, tmp_name, NULL);
    AUTO_FD trees_fd = open(trees, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (trees_fd < 0)
        return error_set_errno(error, errno, "open %s", trees);
    if (!tree_remove(trees_fd, tmp_name, error))
        return FALSE;

    g_autoptr(json_t) missing = json_array();
    Checkout out = {.task = task, .cache = cache, .missing = missing, .time_s = CHECKOUT_EPOCH};
    AUTO_FD tmp_fd = -1;
    gboolean ok = (tmp_fd = tree_open_dir(trees_fd, tmp_name, 0700, error)) >= 0 &&
                  checkout_make(&out, tmp, error) &&
                  tree_chown(tmp_fd, "tree", owner->uid, owner->gid, error);
    if (ok && rename(tmp, dir) < 0)
        ok = error_set_errno(error, errno, "rename %s", dir);
    if (!ok)
        tree_remove(trees_fd, tmp_name, NULL);
    return ok;
}

char *repo_checkout(const char *state_dir, const Task *task, const char *repos,
                    const RepoOwner *owner, GError **error)
{
    repo_library_init();
    g_autofree char *flat = g_strdelimit(g_strdup(task->repo), "/", '_');
    g_autofree char *key = g_strdup_printf("%s@%s", flat, task->base_commit);
    g_autofree char *trees = g_build_filename(state_dir, "trees", NULL);
    g_autofree char *dir = g_build_filename(trees, key, NULL);
    if (g_mkdir_with_parents(trees, 0711) < 0) {
        error_set_errno(error, errno, "mkdir %s", trees);
        return NULL;
    }
    AUTO_FD lock = key_lock(trees, key, error);
    if (lock < 0)
        return NULL;
    if (!g_file_test(dir, G_FILE_TEST_IS_DIR) &&
        !checkout_build(state_dir, task, repos, owner, dir, error)) {
        g_prefix_error(error, "preparing %s: ", key);
        return NULL;
    }
    utimensat(AT_FDCWD, dir, NULL, 0); /* last used: what repo_gc() goes by */
    return g_steal_pointer(&dir);
}

guint repo_gc(const char *state_dir, gint64 age_s, GError **error)
{
    g_autofree char *trees = g_build_filename(state_dir, "trees", NULL);
    AUTO_FD fd = open(trees, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    g_autoptr(GDir) dir = fd >= 0 ? g_dir_open(trees, 0, error) : NULL;
    guint removed = 0;
    for (const char *key; dir != NULL && (key = g_dir_read_name(dir)) != NULL;) {
        struct stat st;
        if (key[0] == '.' || fstatat(fd, key, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            st.st_mtime + age_s > g_get_real_time() / G_USEC_PER_SEC)
            continue;
        AUTO_FD lock = key_lock(trees, key, error);
        if (lock >= 0 && tree_remove(fd, key, error))
            removed++;
    }
    return removed;
}
