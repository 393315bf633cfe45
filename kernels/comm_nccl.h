/*
 * Messages from card to card: what libassay-nccl.so offers to comm_cards.c, by plain values, so
 * that neither is linked to the other.
 */
#pragma once

#include "kernels/comm_world.h"

#define COMM_NCCL_ID 128 /* bytes that name a world, from its rank 0 to all */

/* One rank's end of the messages: an NCCL communicator, a stream, room on the card. */
typedef struct CommNccl CommNccl;

/* What failed: the rank to blame, and why. */
typedef struct CommNcclFail {
    int peer;
    char why[256];
} CommNcclFail;

typedef struct CommNcclWay {
    int version; /* of NCCL: 22809 is 2.28.9 */
    bool (*name)(char id[COMM_NCCL_ID], CommNcclFail *fail);
    /* This rank of `size` on the first card that it sees; NULL: it cannot begin. */
    CommNccl *(*open)(const char *id, int rank, int size, CommNcclFail *fail);
    /* Waits until all ranks have begun. */
    bool (*ready)(CommNccl *nccl, double wait_s, CommNcclFail *fail);
    /* As CommWorld.exchange; the peers are known to be there. */
    bool (*exchange)(CommNccl *nccl, double wait_s, const CommPart *sends, int n_sends,
                     const CommPart *recvs, int n_recvs, CommNcclFail *fail);
    void (*close)(CommNccl *nccl, bool failed);
} CommNcclWay;

/* The entry of the library, by this name; NULL with the reason: there is no card. */
const CommNcclWay *comm_nccl(CommNcclFail *fail);
