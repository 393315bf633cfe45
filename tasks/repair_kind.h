/*
 * Other questions about a repair row: the same repository and bug, something else to answer.
 *
 *     diff     the repair as a unified diff
 *     locate   which lines are wrong: "locate": {"lines": ["PATH:LINE", ...], "score": "f1"}
 *     test     calls that tell right from wrong, of one function with arguments of one shape
 *              (test_call.h), each between `before` and `after`, all between `head` and `tail`:
 *              "harness": {"call", "shape", "head", "before", "after", "tail"}
 *
 * Every one has "kind" and "solution", an answer that is right.
 */
#pragma once

#include "base/json.h"

gboolean repair_has_kind(const char *kind);

/* Makes the row one of that kind, if it can be: "test" needs a call of literals that fails. */
gboolean repair_kind_apply(json_t *row, const char *kind);
