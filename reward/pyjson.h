/*
 * JSON written byte for byte as Python's json.dumps(value, indent=N) writes it.
 */
#pragma once

#include "base/json.h"

/* Insertion order, ASCII only, lower-case \u escapes, no final newline. `indent` 0 is Python's
 * indent=None (", " and ": " on one line). No reals: the reports have none (asserted). */
char *pyjson_dump(const json_t *value, guint indent);
