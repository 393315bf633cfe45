/*
 * Ranks that mpirun or srun started, over MPI's messages from one process to another.
 *
 * Invariants
 *  1. Only MPI_Isend and MPI_Irecv carry numbers; sums and their order are comm.c's, so no choice
 *     of the MPI library's shows in a bit.
 *  2. A wait looks at the clock: a rank that says nothing in time is named, and ends the run.
 *  3. MPI is begun only where several processes were started as one run, and once.
 *
 * Not here: the collectives (comm.c). Builds without MPI have comm_nompi.c.
 */
#include "kernels/comm_world.h"

#include <mpi.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PIECE  ((size_t)1 << 28) /* bytes of one message: MPI counts in int */
#define SPINS  200               /* looks before a wait gives the core away */
#define NAP_NS 20000

/* Set by the launchers of Open MPI, MPICH and Slurm for the ranks they start. */
static const char *const launched[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"};

static bool is_launched(void)
{
    for (size_t i = 0; i < sizeof launched / sizeof *launched; i++)
        if (getenv(launched[i]))
            return true;
    return false;
}

static double now_s(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static size_t pieces_of(const CommPart *parts, int n)
{
    size_t pieces = 0;

    for (int i = 0; i < n; i++)
        pieces += (parts[i].bytes + PIECE - 1) / PIECE;
    return pieces;
}

/* Begins the messages of a part; returns how many. */
static int part_begin(const CommPart *part, bool send, int group, MPI_Request *requests, int *peers)
{
    int n = 0;

    for (size_t at = 0; at < part->bytes; at += PIECE, n++) {
        int bytes = (int)(part->bytes - at < PIECE ? part->bytes - at : PIECE);
        char *data = (char *)part->data + at;

        if (send)
            MPI_Isend(data, bytes, MPI_BYTE, part->peer, group, MPI_COMM_WORLD, &requests[n]);
        else
            MPI_Irecv(data, bytes, MPI_BYTE, part->peer, group, MPI_COMM_WORLD, &requests[n]);
        peers[n] = part->peer;
    }
    return n;
}

static bool mpi_fail(CommWorld *w, const char *what, int peer, int code)
{
    char text[MPI_MAX_ERROR_STRING] = "", why[MPI_MAX_ERROR_STRING + 32];
    int length = 0;

    MPI_Error_string(code, text, &length);
    snprintf(why, sizeof why, "rank %d: %s", peer, text);
    return comm_world_fail(w, what, peer, why);
}

/* Once nothing came for a while, others get the core for a moment. */
static void rest(int looks)
{
    const struct timespec nap = {.tv_nsec = NAP_NS};

    if (looks > SPINS)
        nanosleep(&nap, NULL);
}

/* Until all of them are through. */
static bool finish(CommWorld *w, const char *what, MPI_Request *requests, const int *peers, int n)
{
    double until = now_s() + w->wait_s;
    int looks = 0, left = 0;

    while (left < n) {
        int done = 0, code = MPI_Test(&requests[left], &done, MPI_STATUS_IGNORE);
        char why[64];

        if (code != MPI_SUCCESS)
            return mpi_fail(w, what, peers[left], code);
        left += done;
        if (done)
            continue;
        if (w->wait_s > 0 && now_s() > until) {
            snprintf(why, sizeof why, "rank %d is silent for %g s", peers[left], w->wait_s);
            return comm_world_fail(w, what, peers[left], why);
        }
        rest(looks++);
    }
    return true;
}

static bool mpi_exchange(CommWorld *w, int group, const char *what, const CommPart *sends,
                         int n_sends, const CommPart *recvs, int n_recvs)
{
    size_t pieces = pieces_of(sends, n_sends) + pieces_of(recvs, n_recvs);
    MPI_Request *requests = calloc(pieces, sizeof *requests);
    int *peers = calloc(pieces, sizeof *peers), n = 0;
    bool ok = (requests && peers) || comm_world_fail(w, what, w->rank, "no memory");

    for (int i = 0; ok && i < n_recvs; i++)
        n += part_begin(&recvs[i], false, group, requests + n, peers + n);
    for (int i = 0; ok && i < n_sends; i++)
        n += part_begin(&sends[i], true, group, requests + n, peers + n);
    ok = ok && finish(w, what, requests, peers, n);
    free(requests);
    free(peers);
    return ok;
}

static void mpi_end(CommWorld *w)
{
    bool failed = w->failed;

    free(w);
    fflush(NULL);
    if (failed)
        MPI_Abort(MPI_COMM_WORLD, 1); /* the others wait for what will not come */
    MPI_Finalize();
}

static void alone_end(CommWorld *w)
{
    free(w);
}

/* MPI_Init waits for every rank and cannot be told for how long: whoever watches it ends this
 * process when it is late, and so the launcher the others. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t change;
    bool begun;
    double wait_s;
} Watch;

static void *watch_run(void *data)
{
    Watch *w = data;
    struct timespec until;
    int late = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)w->wait_s + 1;
    pthread_mutex_lock(&w->lock);
    while (!w->begun && late == 0)
        late = pthread_cond_timedwait(&w->change, &w->lock, &until);
    if (!w->begun) {
        fprintf(stderr, "not all ranks have begun within %g s: see that each runs this program\n",
                w->wait_s);
        _exit(1);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static bool mpi_init(double wait_s)
{
    Watch w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, wait_s};
    pthread_t watcher;
    int level = 0, code;

    if (pthread_create(&watcher, NULL, watch_run, &w) != 0)
        return false;
    code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    pthread_mutex_lock(&w.lock);
    w.begun = true;
    pthread_cond_signal(&w.change);
    pthread_mutex_unlock(&w.lock);
    pthread_join(watcher, NULL);
    return code == MPI_SUCCESS && level >= MPI_THREAD_FUNNELED;
}

/* Begins MPI unless this process was started alone. */
static CommWorld *world_new(double wait_s, CommFail *fail)
{
    CommWorld *w = calloc(1, sizeof *w);

    if (!w) {
        *fail = (CommFail){.text = "no memory"};
        return NULL;
    }
    *w = (CommWorld){.size = 1, .end = alone_end};
    if (!is_launched())
        return w;
    if (!mpi_init(wait_s)) {
        *fail = (CommFail){.text = "MPI does not begin, or not for programs with threads"};
        free(w);
        return NULL;
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &w->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &w->size);
    w->exchange = mpi_exchange;
    w->end = mpi_end;
    return w;
}

/* Ranks whose machines have the same name are on one. */
static bool count_here(Comm *c)
{
    enum { NAME = 256 };
    char *names = calloc((size_t)c->size, NAME), *mine = names + (size_t)c->rank * NAME;
    size_t *ends = calloc((size_t)c->size, sizeof *ends);
    bool ok = (names && ends) || comm_world_fail(c->world, "names", c->world->rank, "no memory");

    for (int r = 0; ok && r < c->size; r++)
        ends[r] = (size_t)(r + 1) * NAME;
    if (ok)
        gethostname(mine, NAME - 1);
    ok = ok && comm_all_gather(c, names, ends);
    c->world->here = 0;
    for (int r = 0; ok && r < c->size; r++)
        c->world->here += strcmp(names + (size_t)r * NAME, mine) == 0;
    free(names);
    free(ends);
    return ok;
}

void comm_about(char *text, size_t size)
{
    char about[MPI_MAX_LIBRARY_VERSION_STRING] = "MPI";
    int length = 0;

    MPI_Get_library_version(about, &length); /* may be asked before MPI begins */
    about[strcspn(about, ",\n")] = '\0';
    snprintf(text, size, "%s", about);
}

Comm *comm_launched(double wait_s, CommFail *fail)
{
    CommWorld *w = world_new(wait_s, fail);
    Comm *comm = w ? comm_world_group(w) : NULL;

    if (!comm) {
        if (w)
            *fail = (CommFail){.rank = w->rank, .text = "no memory"};
        return NULL;
    }
    comm_timeout(comm, wait_s);
    if (!comm_barrier(comm) || !count_here(comm)) {
        comm_failed(comm, fail);
        fprintf(stderr, "%s\n", fail->text); /* closing ends this process */
        comm_close(comm);
        return NULL;
    }
    comm_timeout(comm, 0);
    return comm;
}
