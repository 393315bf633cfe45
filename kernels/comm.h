/*
 * Ranks that work on one thing: sums over them and moves between them, in main memory.
 *
 *     CommFail fail;
 *     Comm *world = comm_launched(30, &fail);       one rank, or those that mpirun started
 *     Comm *pair = comm_split(world, world->rank / 2);
 *     comm_all_reduce(pair, COMM_F32, dw, n);
 *     if (comm_failed(world, &fail)) ...            "rank 0: all-reduce: rank 3 is silent for 30 s"
 *
 * Rules for every entry
 *  - All ranks of a group call the same entries in the same order, from one thread each.
 *  - A sum is ((x_0 + x_1) + x_2) + ..., by rank of the group, element by element: the same bits on
 *    every rank, whatever the length of the array and however it is cut into messages.
 *  - A group of one rank moves nothing and changes nothing. Lengths may be 0, on some ranks alone.
 *  - Failures are values that stay: once an entry of a world has failed, all of its groups' entries
 *    return false at once and leave arrays in any state. So a long piece of maths may look once, at
 *    its end. A world that failed cannot be used again; comm_close then ends the other ranks, too.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

typedef enum { COMM_F32 = 0, COMM_F64 } CommReal;

typedef struct CommFail {
    int rank;       /* of the world: whose absence or error it was */
    char text[256]; /* who says it, what was under way, why */
} CommFail;

typedef struct CommWorld CommWorld;

/* A group of ranks as one of them sees it. */
typedef struct Comm {
    int rank, size; /* in the group */
    int *members;   /* [size] ranks of the world */
    int number;     /* of the group: its messages are told from others' by it */
    CommWorld *world;
} Comm;

/* The ranks that mpirun or srun started, this process being one; without them, one rank. Waits at
 * most `wait_s` for all to answer. NULL: `fail` says which did not, or that this build has no MPI
 * although it was started as one of several. */
Comm *comm_launched(double wait_s, CommFail *fail);
/* `size` ranks of this process, each for a thread of its own: ret[0] .. ret[size - 1]. False when
 * memory is short. */
bool comm_local(int size, Comm **ret);
/* The ranks that give the same color, in their order. NULL: it failed. */
Comm *comm_split(Comm *comm, int color);
/* Frees a group. With its last group a world ends: quietly, or, once it has failed, by ending
 * every process of it. */
void comm_close(Comm *comm);

/* Who carries messages between launched ranks: the MPI library's own word on itself, or that this
 * build has none. */
void comm_about(char *text, size_t size);

/* Ranks of the world on this machine, this one included. */
int comm_here(const Comm *comm);
/* How long a rank waits for the others before it fails, in seconds; 0, at first: for ever. */
void comm_timeout(Comm *comm, double seconds);
/* Has the world failed? `fail` may be NULL. */
bool comm_failed(const Comm *comm, CommFail *fail);
/* Makes the world fail on this rank, for a reason of the caller's own. */
void comm_fail(Comm *comm, const char *why);

bool comm_barrier(Comm *comm);
/* `bytes` of rank `root` become everybody's. */
bool comm_broadcast(Comm *comm, int root, void *data, size_t bytes);
/* Rank r has data[ends[r - 1] .. ends[r]), in bytes and from 0 for r = 0; then all have all. */
bool comm_all_gather(Comm *comm, void *data, const size_t *ends);
/* x [n] becomes the sum over ranks. */
bool comm_all_reduce(Comm *comm, CommReal real, void *x, size_t n);
/* Adds elements ends[r - 1] .. ends[r] of every rank's x onto own [..] of rank r, rank 0's first:
 * ((own + x_0) + x_1) + ... */
bool comm_reduce_scatter(Comm *comm, CommReal real, void *own, const void *x, const size_t *ends);
/* send[send_ends[r - 1] .. send_ends[r]) goes to rank r; what comes from rank r lands in
 * recv[recv_ends[r - 1] .. recv_ends[r]). In bytes; both sides know the lengths. */
bool comm_all_to_all(Comm *comm, const void *send, const size_t *send_ends, void *recv,
                     const size_t *recv_ends);
