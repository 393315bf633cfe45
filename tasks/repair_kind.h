/*
 * Other questions about a repair row: the same repository and bug, something else to answer.
 *
 *     diff     the repair as a unified diff
 *     locate   "locate": {"lines": ["PATH:LINE", ...], "score": "f1"}: which lines are wrong
 *     test     "harness": {"call", "head", "before", "after", "tail"}: calls of the function `call`
 *              that tell right from wrong, between head and tail, each between before and after
 *
 * Every one has "kind" and "solution", an answer that is right.
 */
#pragma once

#include "base/json.h"

gboolean repair_has_kind(const char *kind);

/* Makes the row one of that kind, if it can be: "test" needs calls that are expressions. */
gboolean repair_kind_apply(json_t *row, const char *kind);
