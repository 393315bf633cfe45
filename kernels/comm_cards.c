/*
 * The change from messages between processes to messages between cards.
 *
 * Invariants
 *  1. Both ends of a message know its length, and so which way it goes: those of up to SMALL bytes
 *     as before, all others over NCCL.
 *  2. Before anything is given to a card both ends have said that they are there, so a rank that is
 *     late or dead is named by the world that launched it, and no card waits for one.
 *  3. Either every rank changes over, or none.
 *
 * Not here: NCCL itself (comm_nccl.c), collectives (comm.c).
 */
#include "kernels/comm_cards.h"

#include "kernels/comm_nccl.h"
#include "kernels/library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SMALL 4096 /* bytes */
#define WORDS 256  /* of a rank's reason */

/* What the world had before, and has besides. */
typedef struct CommCards {
    const CommNcclWay *way;
    CommNccl *nccl;
    bool (*exchange)(CommWorld *world, int group, const char *what, const CommPart *sends,
                     int n_sends, const CommPart *recvs, int n_recvs);
    void (*end)(CommWorld *world);
} CommCards;

/* ---- the library ---- */

static const CommNcclWay *way_load(const char *path, char *why, size_t why_size)
{
    void *library = library_open(path, "libassay-nccl.so", "card messages", why, why_size);
    void *entry = library ? dlsym(library, "comm_nccl") : NULL;
    const CommNcclWay *(*open)(CommNcclFail * fail);
    const CommNcclWay *way = NULL;
    CommNcclFail fail = {0};

    if (library && !entry)
        snprintf(why, why_size, "libassay-nccl.so is of another version: it lacks comm_nccl");
    if (!entry)
        return NULL;
    memcpy(&open, &entry, sizeof open);
    way = open(&fail);
    if (!way)
        snprintf(why, why_size, "NCCL: %s", fail.why);
    return way;
}

int comm_cards_version(const char *library, char *why, size_t why_size)
{
    const CommNcclWay *way = way_load(library, why, why_size);

    return way ? way->version : 0;
}

/* ---- messages ---- */

/* Moves the parts of that size to the front; returns how many. */
static int pick(const CommPart *from, int n, bool large, CommPart *to)
{
    int picked = 0;

    for (int i = 0; i < n; i++)
        if ((from[i].bytes > SMALL) == large)
            to[picked++] = from[i];
    return picked;
}

/* A byte to and from every rank that a large part goes to or comes from. */
static int greetings(const CommPart *sends, int n_sends, const CommPart *recvs, int n_recvs,
                     char *bytes, CommPart *to, CommPart *from)
{
    int n = 0;

    for (int i = 0; i < n_sends + n_recvs; i++) {
        int peer = i < n_sends ? sends[i].peer : recvs[i - n_sends].peer;
        bool known = false;

        for (int k = 0; k < n; k++)
            known |= to[k].peer == peer;
        if (known)
            continue;
        to[n] = (CommPart){peer, bytes, 1};
        from[n] = (CommPart){peer, bytes + 1 + n, 1};
        n++;
    }
    return n;
}

static bool large_exchange(CommWorld *w, int group, const char *what, const CommPart *sends,
                           int n_sends, const CommPart *recvs, int n_recvs)
{
    CommCards *cards = w->cards;
    size_t most = (size_t)(n_sends + n_recvs);
    CommPart *hello = calloc(2 * most, sizeof *hello);
    char *bytes = calloc(most + 1, 1);
    bool ok = (hello && bytes) || comm_world_fail(w, what, w->rank, "no memory");
    CommNcclFail fail = {0};
    char why[sizeof fail.why + 32];
    int n = ok ? greetings(sends, n_sends, recvs, n_recvs, bytes, hello, hello + most) : 0;

    ok = ok && cards->exchange(w, group, what, hello, n, hello + most, n);
    if (ok &&
        !cards->way->exchange(cards->nccl, w->wait_s, sends, n_sends, recvs, n_recvs, &fail)) {
        snprintf(why, sizeof why, "rank %d: %s", fail.peer, fail.why);
        ok = comm_world_fail(w, what, fail.peer, why);
    }
    free(hello);
    free(bytes);
    return ok;
}

static bool cards_exchange(CommWorld *w, int group, const char *what, const CommPart *sends,
                           int n_sends, const CommPart *recvs, int n_recvs)
{
    CommCards *cards = w->cards;
    CommPart *parts = calloc((size_t)(n_sends + n_recvs), sizeof *parts);
    bool ok = parts || comm_world_fail(w, what, w->rank, "no memory");
    int out, in;

    if (ok) {
        out = pick(sends, n_sends, true, parts);
        in = pick(recvs, n_recvs, true, parts + n_sends);
        ok = out + in == 0 || large_exchange(w, group, what, parts, out, parts + n_sends, in);
        out = pick(sends, n_sends, false, parts);
        in = pick(recvs, n_recvs, false, parts + n_sends);
        ok = ok &&
             (out + in == 0 || cards->exchange(w, group, what, parts, out, parts + n_sends, in));
    }
    free(parts);
    return ok;
}

/* ---- changing over ---- */

static void cards_end(CommWorld *w)
{
    CommCards *cards = w->cards;
    void (*end)(CommWorld *) = cards->end;

    cards->way->close(cards->nccl, w->failed);
    free(cards);
    end(w);
}

/* True where no rank has a reason; else the first one's becomes everybody's. */
static bool all_can(Comm *c, char *why, size_t why_size)
{
    char *all = calloc((size_t)c->size, WORDS);
    size_t *ends = calloc((size_t)c->size, sizeof *ends);
    bool ok = (all && ends) || comm_world_fail(c->world, "cards", c->world->rank, "no memory");

    for (int r = 0; ok && r < c->size; r++)
        ends[r] = (size_t)(r + 1) * WORDS;
    if (ok)
        snprintf(all + (size_t)c->rank * WORDS, WORDS, "%s", why);
    ok = ok && comm_all_gather(c, all, ends);
    for (int r = 0; ok && r < c->size; r++)
        if (all[(size_t)r * WORDS]) {
            snprintf(why, why_size, "rank %d: %s", r, all + (size_t)r * WORDS);
            ok = false;
        }
    free(all);
    free(ends);
    return ok;
}

/* This rank's end is open and all others' are; else the reason. */
static bool cards_open(CommCards *cards, Comm *c, const char *id, char *why, size_t why_size)
{
    CommNcclFail fail = {0};

    *why = '\0';
    cards->nccl = cards->way->open(id, c->rank, c->size, &fail);
    if (!cards->nccl)
        snprintf(why, why_size, "NCCL: %s", fail.why);
    if (!all_can(c, why, why_size))
        return false;
    if (!cards->way->ready(cards->nccl, c->world->wait_s, &fail))
        snprintf(why, why_size, "NCCL: %s", fail.why);
    return all_can(c, why, why_size);
}

bool comm_cards(Comm *c, const char *refusal, const char *library, char *why, size_t why_size)
{
    CommWorld *w = c->world;
    CommCards *cards = calloc(1, sizeof *cards);
    char id[COMM_NCCL_ID] = {0};
    CommNcclFail fail = {0};

    snprintf(why, why_size, "%s", refusal ? refusal : cards ? "" : "no memory");
    if (!*why)
        cards->way = way_load(library, why, why_size);
    if (!*why && c->rank == 0 && !cards->way->name(id, &fail))
        snprintf(why, why_size, "NCCL: %s", fail.why);
    if (!all_can(c, why, why_size) || !comm_broadcast(c, 0, id, sizeof id) ||
        !cards_open(cards, c, id, why, why_size)) {
        if (cards && cards->nccl)
            cards->way->close(cards->nccl, true);
        free(cards);
        return false;
    }
    cards->exchange = w->exchange;
    cards->end = w->end;
    w->cards = cards;
    w->exchange = cards_exchange;
    w->end = cards_end;
    return true;
}
