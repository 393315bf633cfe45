/*
 * Rollouts as bytes, from one rank of a run to the others.
 *
 * Both ends are the same program on the same kind of machine, so numbers go as they lie in memory.
 */
#pragma once

#include "policy/rollout.h"

/* All that a trainer reads of the groups. */
void wire_put(GByteArray *to, RolloutGroup *const *groups, guint n);
/* The groups of wire_put, each to be freed by rollout_group_free. NULL: cut short, or lengths that
 * cannot be. */
GPtrArray *wire_get(const guint8 *data, gsize bytes, GError **error);
