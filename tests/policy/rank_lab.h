/*
 * Ranks as threads, for tests of what many ranks do together.
 */
#pragma once

#include "kernels/comm.h"

#include <glib.h>

#define LAB_RANKS_MAX 8

/* Runs `func` once per rank, each on a thread of its own with a group of all of them. */
void lab_ranks(int ranks, void (*func)(Comm *comm, gpointer user), gpointer user);
