/*
 * What was changed in a box's workspace, as a diff.
 */
#pragma once

#include "sandbox/box.h"

/* A patch that `git apply` takes on the workspace's layers; empty when nothing changed. Read from
 * the writable layer alone: nothing runs over the tree. `.git` is left out. LIMIT: more changes, or
 * bytes in them, than a patch may have. */
GString *box_diff(const Box *box, GError **error);
