/*
 * The cache key of a grade (docs/protocol.md, "Reuse").
 */
#pragma once

#include "env/queue.h"

/* 64 hex digits over task content, patch, environment, its image, grader, mode, box rules and
 * limits. */
char *env_key_for(const TaskRow *task, const char *patch_sha, const char *mode,
                  const char *environments, const char *state_dir, const json_t *limits,
                  GError **error);
