/*
 * Builds without MPI: one rank. One of several that a launcher started refuses to be the only one.
 *
 * Not here: comm_mpi.c, what other builds have in its place.
 */
#include "kernels/comm_world.h"

#include <stdio.h>
#include <stdlib.h>

void comm_about(char *text, size_t size)
{
    snprintf(text, size, "built without MPI: one rank");
}

Comm *comm_launched(double wait_s, CommFail *fail)
{
    Comm *comm = NULL;

    (void)wait_s;
    if (getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE") || getenv("PMIX_RANK"))
        *fail = (CommFail){.text = "started as one of several ranks, but built without MPI"};
    else if (!comm_local(1, &comm))
        *fail = (CommFail){.text = "no memory"};
    return comm;
}
