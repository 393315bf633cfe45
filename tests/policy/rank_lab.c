/*
 * Ranks as threads: see rank_lab.h.
 */
#include "tests/policy/rank_lab.h"

typedef struct {
    Comm *comm;
    void (*func)(Comm *, gpointer);
    gpointer user;
} Rank;

static gpointer rank_run(gpointer data)
{
    Rank *rank = data;

    comm_timeout(rank->comm, 30);
    rank->func(rank->comm, rank->user);
    comm_close(rank->comm);
    return NULL;
}

void lab_ranks(int ranks, void (*func)(Comm *, gpointer), gpointer user)
{
    Comm *comms[LAB_RANKS_MAX];
    Rank all[LAB_RANKS_MAX];
    GThread *threads[LAB_RANKS_MAX];

    g_assert_true(comm_local(ranks, comms));
    for (int r = 0; r < ranks; r++) {
        all[r] = (Rank){comms[r], func, user};
        threads[r] = g_thread_new("rank", rank_run, &all[r]);
    }
    for (int r = 0; r < ranks; r++)
        g_thread_join(threads[r]);
}
