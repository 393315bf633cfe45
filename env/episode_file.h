/*
 * The record of an episode on disk: STATE/episodes/ID.ndjson, whole lines, appended and synced.
 */
#pragma once

#include "base/json.h"

#define EPISODE_FILE_MAX     (256u << 20) /* bytes of one record */
#define EPISODE_FILE_RESERVE (16u << 20)  /* of these, for its last lines */

/* The directory, made when absent. -1 on error. */
int episode_file_dir(const char *state_dir, GError **error);

/* The whole lines of a record; NOT_FOUND: there is none. */
GBytes *episode_file_read(int dir_fd, const char *id, GError **error);

/* Adds lines where the first `at` bytes are known to be the record; what lies beyond is half a
 * line, and is cut off. On the disk when this returns TRUE. CONFLICT: somebody else has added to
 * the record; LIMIT: the disk is full, or the record would be too long; it is as it was. */
gboolean episode_file_append(int dir_fd, const char *id, gsize at, const char *lines, gsize len,
                             GError **error);

/* Writes a whole record, in place of one if there is. */
gboolean episode_file_replace(int dir_fd, const char *id, const char *text, gsize len,
                              GError **error);

/* Bytes of the record up to the end of step `step` (0: the head). -1: it has fewer steps. */
gssize episode_file_prefix(const char *text, gsize len, guint step);

/* The line of that step, a new reference; NULL: there is none. */
json_t *episode_file_step(const char *text, gsize len, guint step);
