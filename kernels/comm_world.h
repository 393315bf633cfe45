/*
 * What a way to reach other ranks has to offer: one exchange of messages. comm.c makes the rest.
 */
#pragma once

#include "kernels/comm.h"

/* A message to or from a rank of the world; at most one each way between two ranks at a time. */
typedef struct CommPart {
    int peer;
    void *data; /* only read where it is sent */
    size_t bytes;
} CommPart;

struct CommWorld {
    int rank, size;
    int groups;    /* made so far */
    int open;      /* groups not closed */
    int here;      /* ranks on this machine */
    double wait_s; /* 0: for ever */
    bool failed;
    CommFail fail;
    struct CommCards *cards; /* of comm_cards.c; NULL: none */
    char *scratch;           /* of sums */
    size_t scratch_bytes;
    /* Sends and receives all parts, or fails by comm_world_fail within wait_s. */
    bool (*exchange)(CommWorld *world, int group, const char *what, const CommPart *sends,
                     int n_sends, const CommPart *recvs, int n_recvs);
    void (*end)(CommWorld *world); /* frees what is its own, and the world */
};

/* A group of all ranks; NULL when memory is short. */
Comm *comm_world_group(CommWorld *world);
/* Always false. The first reason stays. `rank`: who is to blame. */
bool comm_world_fail(CommWorld *world, const char *what, int rank, const char *why);
