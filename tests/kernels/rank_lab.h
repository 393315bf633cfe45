/*
 * Ranks for tests of what many of them do together: as threads, or as processes under mpirun.
 */
#pragma once

#include "kernels/comm.h"

#include <glib.h>

#define LAB_RANKS_MAX 16

/* Runs `func` once per rank, each on a thread of its own with a group of all of them. */
void lab_ranks(int ranks, void (*func)(Comm *comm, gpointer user), gpointer user);

/* `mpirun -n RANKS PROGRAM WORD`: what it said, and its status. FALSE, the test skipped with the
 * reason: there is no mpirun, or this build has no MPI. */
gboolean lab_mpirun(const char *ranks, const char *program, const char *word, char **output,
                    int *status);
