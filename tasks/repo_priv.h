/*
 * Shared by the two libgit2 files, repo.c and repo_checkout.c; nobody else includes this.
 */
#pragma once

#include <git2.h>
#include <glib.h>

G_DEFINE_AUTOPTR_CLEANUP_FUNC(git_repository, git_repository_free)

/* Starts libgit2 once per process. */
void repo_library_init(void);

/* Sets `error` to "WHAT: libgit2's last message". Returns FALSE. */
gboolean repo_error(GError **error, const char *what);

/* STATE/repos/owner__name.git */
char *repo_cache_path(const char *state_dir, const char *name);
