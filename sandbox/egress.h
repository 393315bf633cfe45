/*
 * The egress proxy of one box, as its owner sees it: started with the box, ended with it.
 */
#pragma once

#include "sandbox/box.h"

typedef struct Egress Egress;

/* Starts assay-egress on `listener`, a socket inside the box's network (borrowed). */
Egress *egress_start(const BoxEgress *spec, int listener, GError **error);

/* Ends it and waits for its death. NULL is nothing. */
void egress_stop(Egress *egress);

/* Checks the rules without starting anything. */
gboolean egress_check(const BoxEgress *spec, GError **error);
