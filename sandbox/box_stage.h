/*
 * Getting an init to talk to: the keeper stages it before it is needed.
 *
 *     BoxInit init;   box_stage_take(box, FALSE, &init, error);   ready to become a command
 */
#pragma once

#include "sandbox/box_private.h"

void box_init_clear(BoxInit *init);

/* Sends a request, or an order, to init; the reason why it failed to get ready becomes the
 * error. */
gboolean box_init_send(BoxInit *init, GByteArray *bytes, const int *fds, guint n_fds,
                       GError **error);
gboolean box_init_order(BoxInit *init, SpecOrder order, GError **error);

/* Asks the keeper for an init, without waiting for it; nothing while one is asked for. */
gboolean box_stage_ask(Box *box, GError **error);

/* The init for the next command: with `keep` the one that earlier commands' background processes
 * live in, if there is one. A box that is used again gets the one after it staged ahead. */
gboolean box_stage_take(Box *box, gboolean keep, BoxInit *ret_init, GError **error);

/* Keeps `init` for later commands (taken over). */
void box_stage_keep(Box *box, BoxInit *init);

/* The next box of the slot may come soon. */
void box_stage_next_box(const Box *box);

/* Is there a kept init? */
gboolean box_stage_has_session(const Box *box);

/* Drops the staged init, so that the keeper's next answer is to the next request; the other also
 * ends the kept one with everything in it. */
void box_stage_drop_staged(Box *box);
void box_stage_drop(Box *box);
