/*
 * Ranks of one process: threads that hand each other pointers.
 *
 * Invariants
 *  1. A sender waits until its parts were copied, so nobody reads what the caller took back.
 *  2. One rank's failure wakes all: the others fail with the same reason.
 *
 * One rank alone never gets here: comm.c has nothing to exchange then.
 * Not here: the collectives (comm.c), ranks of other processes (comm_mpi.c).
 */
#include "kernels/comm_world.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What lies between two ranks. */
typedef struct {
    pthread_cond_t change; /* one of the two waits for it: full, or empty */
    const void *data;      /* NULL: nothing */
    size_t bytes;
    int group;
} Slot;

typedef struct {
    pthread_mutex_t lock;
    int size, open; /* ranks, and those not ended */
    Slot *slots;    /* [from * size + to] */
    bool failed;
    CommFail fail;
} Hub;

typedef struct {
    CommWorld world; /* first */
    Hub *hub;
} LocalWorld;

static struct timespec deadline_of(const CommWorld *w)
{
    struct timespec at;

    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_sec += (time_t)w->wait_s;
    at.tv_nsec += (long)((w->wait_s - (double)(time_t)w->wait_s) * 1e9);
    if (at.tv_nsec >= 1000000000) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000;
    }
    return at;
}

static void wake_all(Hub *hub)
{
    for (int i = 0; i < hub->size * hub->size; i++)
        pthread_cond_signal(&hub->slots[i].change);
}

/* With the lock held: this rank's failure becomes everybody's, or the other way round. */
static bool fail_here(LocalWorld *w, const char *what, int rank, const char *why)
{
    if (w->hub->failed) {
        w->world.failed = true;
        w->world.fail = w->hub->fail;
        return false;
    }
    comm_world_fail(&w->world, what, rank, why);
    w->hub->failed = true;
    w->hub->fail = w->world.fail;
    wake_all(w->hub);
    return false;
}

/* Waits until the slot holds something, or nothing; with the lock held. */
static bool wait_slot(LocalWorld *w, const char *what, Slot *slot, bool full, int peer,
                      const struct timespec *deadline)
{
    Hub *hub = w->hub;
    int late = 0;
    char why[64];

    while ((slot->data != NULL) != full && !hub->failed && late == 0)
        late = w->world.wait_s > 0 ? pthread_cond_timedwait(&slot->change, &hub->lock, deadline)
                                   : pthread_cond_wait(&slot->change, &hub->lock);
    if ((slot->data != NULL) == full && !hub->failed)
        return true;
    snprintf(why, sizeof why, "rank %d is silent for %g s", peer, w->world.wait_s);
    return fail_here(w, what, peer, why);
}

static bool take(LocalWorld *w, const char *what, int group, const CommPart *part,
                 const struct timespec *deadline)
{
    Slot *slot = &w->hub->slots[part->peer * w->world.size + w->world.rank];
    char why[128];

    if (!wait_slot(w, what, slot, true, part->peer, deadline))
        return false;
    if (slot->group != group || slot->bytes != part->bytes) {
        snprintf(why, sizeof why, "rank %d sends %zu bytes in group %d, awaited are %zu in %d",
                 part->peer, slot->bytes, slot->group, part->bytes, group);
        return fail_here(w, what, part->peer, why);
    }
    memcpy(part->data, slot->data, part->bytes);
    slot->data = NULL;
    pthread_cond_signal(&slot->change);
    return true;
}

static bool local_exchange(CommWorld *world, int group, const char *what, const CommPart *sends,
                           int n_sends, const CommPart *recvs, int n_recvs)
{
    LocalWorld *w = (LocalWorld *)world;
    Hub *hub = w->hub;
    struct timespec deadline = deadline_of(world);
    Slot *mine = &hub->slots[world->rank * world->size];
    bool ok = true;

    pthread_mutex_lock(&hub->lock);
    for (int i = 0; i < n_sends; i++) {
        Slot *slot = &mine[sends[i].peer];

        slot->data = sends[i].data;
        slot->bytes = sends[i].bytes;
        slot->group = group;
        pthread_cond_signal(&slot->change);
    }
    for (int i = 0; ok && i < n_recvs; i++)
        ok = take(w, what, group, &recvs[i], &deadline);
    for (int i = 0; ok && i < n_sends; i++)
        ok = wait_slot(w, what, &mine[sends[i].peer], false, sends[i].peer, &deadline);
    pthread_mutex_unlock(&hub->lock);
    return ok;
}

static void hub_free(Hub *hub)
{
    pthread_mutex_destroy(&hub->lock);
    for (int i = 0; i < hub->size * hub->size; i++)
        pthread_cond_destroy(&hub->slots[i].change);
    free(hub->slots);
    free(hub);
}

static void local_end(CommWorld *world)
{
    LocalWorld *w = (LocalWorld *)world;
    Hub *hub = w->hub;
    bool last;

    pthread_mutex_lock(&hub->lock);
    if (world->failed && !hub->failed) { /* for a reason of its own */
        hub->failed = true;
        hub->fail = world->fail;
        wake_all(hub);
    }
    last = --hub->open == 0;
    pthread_mutex_unlock(&hub->lock);
    free(w);
    if (last)
        hub_free(hub);
}

static Hub *hub_new(int size)
{
    Hub *hub = calloc(1, sizeof *hub);
    Slot *slots = calloc((size_t)size * (size_t)size, sizeof *slots);

    if (!hub || !slots) {
        free(hub);
        free(slots);
        return NULL;
    }
    hub->size = size;
    hub->open = 1; /* until all ranks are made */
    hub->slots = slots;
    pthread_mutex_init(&hub->lock, NULL);
    for (int i = 0; i < size * size; i++)
        pthread_cond_init(&slots[i].change, NULL);
    return hub;
}

static Comm *rank_new(Hub *hub, int rank)
{
    LocalWorld *w = calloc(1, sizeof *w);
    Comm *comm;

    if (!w)
        return NULL;
    w->world =
        (CommWorld){.rank = rank, .size = hub->size, .exchange = local_exchange, .end = local_end};
    w->hub = hub;
    comm = comm_world_group(&w->world);
    hub->open += comm != NULL;
    if (!comm)
        free(w);
    return comm;
}

bool comm_local(int size, Comm **ret)
{
    Hub *hub = hub_new(size);
    bool ok = hub != NULL;

    for (int r = 0; r < size; r++)
        ret[r] = ok ? rank_new(hub, r) : NULL;
    for (int r = 0; r < size; r++)
        ok = ok && ret[r];
    for (int r = 0; r < size && !ok; r++) {
        comm_close(ret[r]);
        ret[r] = NULL;
    }
    if (hub && --hub->open == 0) /* not one was made */
        hub_free(hub);
    return ok;
}
