/*
 * Warm boxes: opened once, reset between uses, retired before they can carry anything over.
 *
 *     g_autoptr(BoxPool) pool = box_pool_new(first_slot, n_slots, 200);
 *     Box *box = box_pool_take(pool, &spec, "tenant", error);   as box_open, but usually at once
 *     ... box_exec(box, ...) ...
 *     box_pool_give(pool, box);
 */
#pragma once

#include "sandbox/box.h"

typedef struct BoxPool BoxPool;

/* Keeps up to `n_slots` boxes on slots from `slot_first` on; a box is closed after `uses_max` uses.
 * Nothing is opened yet. */
BoxPool *box_pool_new(guint slot_first, guint n_slots, guint uses_max);

/* Closes every box; all must have been given back. */
void box_pool_free(BoxPool *pool);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BoxPool, box_pool_free)

/* A box of exactly that spec (its slot aside) that only this tenant has used, with everything as
 * box_open makes it: an idle one that was reset, else a new one, for which an idle one of another
 * kind may have to go. ASSAY_ERROR_LIMIT when every slot is in use. */
Box *box_pool_take(BoxPool *pool, const BoxSpec *spec, const char *tenant, GError **error);

/* Resets the box and keeps it; or closes it: after its last use, after memory ran out or its keeper
 * died, or when it cannot be reset. No command of it may be running. */
void box_pool_give(BoxPool *pool, Box *box);

/* How many are idle, and how many were opened so far. */
guint box_pool_idle(const BoxPool *pool);
guint box_pool_opened(const BoxPool *pool);
