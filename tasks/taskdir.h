/*
 * Assay's own task format: a directory, for people who bring their own repository.
 *
 *     NAME/task.conf    what it is (docs/formats.md)
 *     NAME/issue.md     the statement
 *     NAME/repo/        the repository's files at the base; or task.conf names a URL and a commit
 *     NAME/gold.patch  NAME/test.patch  [NAME/wrong.patch]  [NAME/cheat.patch]
 */
#pragma once

#include "base/json.h"

/* PATH itself when it holds task.conf, else its sub-directories that do, sorted. */
GStrv taskdir_list(const char *path, GError **error);

/* The canonical row of one task directory. Errors name the file and the key. */
json_t *taskdir_row(const char *dir, GError **error);

/* Writes a new task directory to be filled in: every file, with comments. Refuses to overwrite. */
gboolean taskdir_new(const char *dir, GError **error);
