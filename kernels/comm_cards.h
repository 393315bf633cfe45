/*
 * Ranks that were launched send their large messages from card to card.
 *
 *     if (!comm_cards(world, NULL, NULL, why, sizeof why)) ...     they go on as they did: `why`
 */
#pragma once

#include "kernels/comm.h"

/*
 * All ranks of the world call it, before any other group is made: either all of them change over
 * or none, with the reason of the first that cannot. `refusal`: this rank's, for a reason of the
 * caller's own; NULL: none. `library`: path of libassay-nccl.so, NULL to look beside the program
 * and where it was installed. No bit of any sum changes.
 */
bool comm_cards(Comm *world, const char *refusal, const char *library, char *why, size_t why_size);

/* The version of NCCL that would be used, 22809 for 2.28.9; 0 with the reason: none. */
int comm_cards_version(const char *library, char *why, size_t why_size);
