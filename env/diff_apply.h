/*
 * A unified diff that a model wrote, applied to files in memory.
 *
 * As git apply does, without its moods: counts in hunk headers must be true, context must match
 * exactly, a hunk may stand at another line than it says (the nearest that fits, after the hunk
 * before it). Files are changed, made and removed; nothing is renamed, no mode is changed. All of
 * it applies, or nothing.
 */
#pragma once

#include "base/json.h"

#define DIFF_FILES_MAX 100u

/* The changed files, path to text or null for removed; NULL: it is no diff or does not apply, and
 * `*ret_why` (may be NULL) says why. Words before the first file are skipped. */
json_t *diff_apply(const json_t *files, const char *diff, char **ret_why);
