/*
 * Messages over NCCL: libassay-nccl.so, opened by comm_cards.c and linked to by nothing.
 *
 * Invariants
 *  1. Only ncclSend and ncclRecv carry numbers, in groups; sums and their order are comm.c's.
 *  2. Arrays lie in main memory: they go through room on the card in pieces of PIECE bytes, on one
 *     stream. Both ends of a message cut it alike.
 *  3. NCCL never blocks a thread: communicators are made non-blocking, every wait looks at the
 *     clock and at the communicator's own errors.
 *  4. After a failure a communicator is aborted, never used or waited for.
 *
 * Not here: who is there and who is late, small messages (comm_cards.c), collectives (comm.c).
 * Source of the interface: NVIDIA/nccl, src/nccl.h.in.
 */
#include "kernels/comm_nccl.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef PIECE
#define PIECE ((size_t)4 << 20) /* bytes of a message at a time */
#endif
#define SPINS  200 /* looks before a wait gives the core away */
#define NAP_NS 20000

struct CommNccl {
    ncclComm_t comm;
    cudaStream_t stream;
    int rank;
    char *room; /* on the card: a piece of every message */
    size_t room_bytes;
};

static double now_s(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static void rest(int looks)
{
    const struct timespec nap = {.tv_nsec = NAP_NS};

    if (looks > SPINS)
        nanosleep(&nap, NULL);
}

/* ---- failure ---- */

/* Always false. */
static bool refuse(CommNcclFail *fail, int peer, const char *what, const char *why)
{
    fail->peer = peer;
    snprintf(fail->why, sizeof fail->why, "%s: %s", what, why);
    return false;
}

static bool cuda_ok(cudaError_t code, const char *what, int rank, CommNcclFail *fail)
{
    return code == cudaSuccess || refuse(fail, rank, what, cudaGetErrorString(code));
}

static bool nccl_ok(ncclResult_t code, ncclComm_t comm, const char *what, int peer,
                    CommNcclFail *fail)
{
    char why[200];

    if (code == ncclSuccess || code == ncclInProgress)
        return true;
    snprintf(why, sizeof why, "%s (%s)", ncclGetErrorString(code), ncclGetLastError(comm));
    return refuse(fail, peer, what, why);
}

static bool late(double until, double wait_s, const char *what, int peer, CommNcclFail *fail)
{
    char why[64];

    if (wait_s <= 0 || now_s() <= until)
        return false;
    snprintf(why, sizeof why, "nothing for %g s", wait_s);
    refuse(fail, peer, what, why);
    return true;
}

/* Until the communicator has done what it was told. */
static bool settle(ncclComm_t comm, double wait_s, const char *what, int peer, CommNcclFail *fail)
{
    double until = now_s() + wait_s;
    ncclResult_t state = ncclInProgress;

    for (int looks = 0;; rest(looks++)) {
        ncclResult_t code = ncclCommGetAsyncError(comm, &state);

        if (!nccl_ok(code, comm, what, peer, fail) || !nccl_ok(state, comm, what, peer, fail))
            return false;
        if (state == ncclSuccess)
            return true;
        if (late(until, wait_s, what, peer, fail))
            return false;
    }
}

/* Until the stream is empty. */
static bool drain(CommNccl *n, double wait_s, int peer, CommNcclFail *fail)
{
    double until = now_s() + wait_s;

    for (int looks = 0;; rest(looks++)) {
        cudaError_t code = cudaStreamQuery(n->stream);
        ncclResult_t state = ncclSuccess;

        if (code == cudaSuccess)
            return true;
        if (code != cudaErrorNotReady)
            return cuda_ok(code, "messages", peer, fail);
        if (!nccl_ok(ncclCommGetAsyncError(n->comm, &state), n->comm, "messages", peer, fail) ||
            !nccl_ok(state, n->comm, "messages", peer, fail) ||
            late(until, wait_s, "messages", peer, fail))
            return false;
    }
}

/* ---- beginning and end ---- */

static bool way_name(char id[COMM_NCCL_ID], CommNcclFail *fail)
{
    ncclUniqueId name;

    _Static_assert(sizeof name == COMM_NCCL_ID, "a world's name");
    if (!nccl_ok(ncclGetUniqueId(&name), NULL, "a name for the ranks", 0, fail))
        return false;
    memcpy(id, &name, sizeof name);
    return true;
}

static void way_close(CommNccl *n, bool failed)
{
    CommNcclFail unused;

    if (n->comm && (failed || ncclCommFinalize(n->comm) > ncclInProgress ||
                    !settle(n->comm, 1, "end", n->rank, &unused)))
        ncclCommAbort(n->comm);
    else if (n->comm)
        ncclCommDestroy(n->comm);
    cudaFree(n->room);
    if (n->stream)
        cudaStreamDestroy(n->stream);
    free(n);
}

static CommNccl *way_open(const char *id, int rank, int size, CommNcclFail *fail)
{
    CommNccl *n = calloc(1, sizeof *n);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId name;

    if (!n) {
        refuse(fail, rank, "begin", "no memory");
        return NULL;
    }
    config.blocking = 0;
    memcpy(&name, id, sizeof name);
    n->rank = rank;
    if (cuda_ok(cudaStreamCreateWithFlags(&n->stream, cudaStreamNonBlocking), "a stream", rank,
                fail) &&
        nccl_ok(ncclCommInitRankConfig(&n->comm, size, name, rank, &config), NULL, "begin", rank,
                fail))
        return n;
    way_close(n, true);
    return NULL;
}

static bool way_ready(CommNccl *n, double wait_s, CommNcclFail *fail)
{
    return settle(n->comm, wait_s, "begin", n->rank, fail);
}

/* ---- messages ---- */

static size_t piece_of(const CommPart *part, size_t at)
{
    size_t left = part->bytes > at ? part->bytes - at : 0;

    return left < PIECE ? left : PIECE;
}

static bool room_for(CommNccl *n, int parts, CommNcclFail *fail)
{
    size_t bytes = (size_t)parts * PIECE;

    if (n->room_bytes >= bytes)
        return true;
    cudaFree(n->room);
    n->room = NULL;
    n->room_bytes = 0;
    if (!cuda_ok(cudaMalloc((void **)&n->room, bytes), "room on the card", n->rank, fail))
        return false;
    n->room_bytes = bytes;
    return true;
}

/* A piece of every part between main memory and the card. */
static bool copy(CommNccl *n, const CommPart *parts, int count, char *room, size_t at, bool out,
                 CommNcclFail *fail)
{
    bool ok = true;

    for (int i = 0; ok && i < count; i++) {
        char *here = (char *)parts[i].data + at, *there = room + (size_t)i * PIECE;
        size_t bytes = piece_of(&parts[i], at);

        ok = bytes == 0 || cuda_ok(cudaMemcpyAsync(out ? here : there, out ? there : here, bytes,
                                                   cudaMemcpyDefault, n->stream),
                                   "copy", n->rank, fail);
    }
    return ok;
}

/* A piece of every message, in one group. */
static bool group(CommNccl *n, const CommPart *sends, int n_sends, const CommPart *recvs,
                  int n_recvs, size_t at, CommNcclFail *fail)
{
    ncclResult_t ended;
    bool ok = nccl_ok(ncclGroupStart(), n->comm, "group", n->rank, fail);

    for (int i = 0; ok && i < n_sends + n_recvs; i++) {
        bool out = i < n_sends;
        const CommPart *part = out ? &sends[i] : &recvs[i - n_sends];
        size_t bytes = piece_of(part, at);
        char *room = n->room + (size_t)i * PIECE;

        if (bytes > 0)
            ok = nccl_ok(out ? ncclSend(room, bytes, ncclUint8, part->peer, n->comm, n->stream)
                             : ncclRecv(room, bytes, ncclUint8, part->peer, n->comm, n->stream),
                         n->comm, out ? "send" : "receive", part->peer, fail);
    }
    ended = ncclGroupEnd(); /* whatever went before */
    return ok && nccl_ok(ended, n->comm, "group", n->rank, fail);
}

static bool way_exchange(CommNccl *n, double wait_s, const CommPart *sends, int n_sends,
                         const CommPart *recvs, int n_recvs, CommNcclFail *fail)
{
    int peer = n_recvs > 0 ? recvs[0].peer : sends[0].peer;
    size_t longest = 0;
    bool ok = room_for(n, n_sends + n_recvs, fail);

    for (int i = 0; i < n_sends + n_recvs; i++) {
        const CommPart *part = i < n_sends ? &sends[i] : &recvs[i - n_sends];

        longest = part->bytes > longest ? part->bytes : longest;
    }
    for (size_t at = 0; ok && at < longest; at += PIECE)
        ok = copy(n, sends, n_sends, n->room, at, false, fail) &&
             group(n, sends, n_sends, recvs, n_recvs, at, fail) &&
             settle(n->comm, wait_s, "messages", peer, fail) && drain(n, wait_s, peer, fail) &&
             copy(n, recvs, n_recvs, n->room + (size_t)n_sends * PIECE, at, true, fail) &&
             drain(n, wait_s, peer, fail);
    return ok;
}

const CommNcclWay *comm_nccl(CommNcclFail *fail)
{
    static CommNcclWay way = {.name = way_name,
                              .open = way_open,
                              .ready = way_ready,
                              .exchange = way_exchange,
                              .close = way_close};
    int cards = 0;

    if (!cuda_ok(cudaGetDeviceCount(&cards), "cards", 0, fail))
        return NULL;
    if (cards == 0) {
        refuse(fail, 0, "cards", "none is seen");
        return NULL;
    }
    return nccl_ok(ncclGetVersion(&way.version), NULL, "version", 0, fail) ? &way : NULL;
}
