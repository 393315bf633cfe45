/*
 * Checks of this machine: what `assay doctor` and GET /v1/doctor show.
 */
#pragma once

#include "base/json.h"

/* {"checks":[{"id","group","status":"ok|warn|fail|skip","detail","fix":[..],"ms"}],"failures":n,
 * "warnings":n}. `state_dir` may not exist yet. */
json_t *doctor_json(const char *state_dir);
