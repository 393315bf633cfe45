/*
 * Repositories: one bare object cache each, and prepared checkouts made from it.
 *
 *     repo_add(state_dir, "sympy/sympy", "https://host/sympy/sympy", NULL, error)
 *     char *dir = repo_checkout(state_dir, task, &owner, error);   dir/tree, dir/missing.json
 *
 * A prepared checkout is the tree of one commit with a .git that holds one synthetic commit and
 * nothing newer; it is never changed again, and boxes share it as an overlay lower.
 */
#pragma once

#include "tasks/task.h"

#include <sys/types.h>

/* Called now and then while objects arrive; total may be 0 when unknown. */
typedef void (*RepoProgressFn)(guint64 objects_done, guint64 objects_total, guint64 bytes,
                               gpointer user_data);

typedef struct RepoProgress {
    RepoProgressFn fn; /* NULL: silent */
    gpointer user_data;
} RepoProgress;

/*
 * Makes or updates the cache of NAME ("owner/name") from `url`: https, file:// or a local path. A
 * local repository is taken object file by object file, so a broken-off copy resumes and a partial
 * clone (missing blobs) is welcome. The URL is remembered for repo_fetch().
 */
gboolean repo_add(const char *state_dir, const char *name, const char *url,
                  const RepoProgress *progress, GError **error);

/* Fetches again from the remembered URL. */
gboolean repo_fetch(const char *state_dir, const char *name, const RepoProgress *progress,
                    GError **error);

typedef struct RepoInfo {
    char *name, *url;
    guint64 bytes;
} RepoInfo;
void repo_info_free(RepoInfo *info);

/* Every cached repository, by name: RepoInfo*. */
GPtrArray *repo_list(const char *state_dir, GError **error);

/* Who must own the checkout's files (sandbox/box.h, box_store_uid). */
typedef struct RepoOwner {
    uid_t uid;
    gid_t gid;
} RepoOwner;

/*
 * The directory of the prepared checkout of the task's commit, made when absent: STATE/trees/KEY
 * with `tree` and `missing.json` (paths whose blob the cache lacks: a list). A repository that is
 * not cached is added from task->repo_url, else from `repos` (a directory that holds owner/name,
 * owner/name.git, owner__name.git or owner+name/repo), else from https://github.com/owner/name.
 * Safe to call from several processes.
 */
char *repo_checkout(const char *state_dir, const Task *task, const char *repos,
                    const RepoOwner *owner, GError **error);

/* Removes checkouts not in use for `age_s` seconds. Returns how many. */
guint repo_gc(const char *state_dir, gint64 age_s, GError **error);
