/*
 * The files of an episode: in memory, or in a box.
 *
 * Errors tell whose doing it was: SYSTEM is our machine's, every other code is the policy's.
 * Paths are relative, and normal (task_path_ok).
 */
#pragma once

#include "sandbox/box.h"
#include "tasks/task.h"

#define EPISODE_FILE_BYTES_MAX (1u << 20)
#define EPISODE_TREE_BYTES_MAX (8u << 20) /* of changed files in memory */
#define EPISODE_TREE_FILES_MAX 2000u      /* that are listed, searched or changed */
#define EPISODE_WORK           "/testbed"

typedef struct EpisodeTree {
    const Task *task;
    GHashTable *changed; /* path -> GBytes, NULL: removed; the table is NULL before a change */
    gsize changed_bytes;
    Box *box; /* not NULL: the files are there */
} EpisodeTree;

void episode_tree_clear(EpisodeTree *tree);

GBytes *episode_tree_read(const EpisodeTree *tree, const char *path, GError **error);
gboolean episode_tree_write(EpisodeTree *tree, const char *path, const void *data, gsize len,
                            GError **error);
/* Undoes the making of a file. */
gboolean episode_tree_remove(EpisodeTree *tree, const char *path, GError **error);

/* Paths of regular files, sorted; directories and what is beyond limits left out. In a box only
 * those below the directory `below` ("": all) are looked for. */
GPtrArray *episode_tree_list(const EpisodeTree *tree, const char *below, GError **error);

/* Writes everything into the box, which is the truth from then on. */
gboolean episode_tree_move(EpisodeTree *tree, Box *box, GError **error);

/* What differs from the task: env/episode.h. */
json_t *episode_tree_changes(const EpisodeTree *tree, GError **error);

/* Such changes as a diff. */
GString *episode_tree_diff(const EpisodeTree *tree, const json_t *changes, GError **error);
