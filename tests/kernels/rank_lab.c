/*
 * Ranks as threads and as processes: see rank_lab.h.
 */
#include "tests/kernels/rank_lab.h"

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

gboolean lab_mpirun(const char *ranks, const char *program, const char *word, char **output,
                    int *status)
{
    /* Open MPI: as root, more ranks than cores, shared memory without a right containers take away.
     * What the MPI library keeps to its end is not ours. */
    static const char *const more[][2] = {
        {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
        {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
        {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
        {"OMPI_MCA_btl", "self,vader,tcp"},
        {"OMPI_MCA_btl_vader_single_copy_mechanism", "none"},
        {"LSAN_OPTIONS", "print_suppressions=0:suppressions=" LEAKS}};
    g_autofree char *mpirun = g_find_program_in_path("mpirun");
    const char *argv[] = {mpirun, "-n", ranks, program, word, NULL};
    g_auto(GStrv) envp = g_get_environ();
    g_autofree char *errors = NULL, *said = NULL;
    g_autoptr(GError) error = NULL;

    if (!mpirun || !g_strcmp0(MPI, "no")) {
        g_test_skip(mpirun ? "built without MPI" : "no mpirun");
        return FALSE;
    }
    for (guint i = 0; i < G_N_ELEMENTS(more); i++)
        envp = g_environ_setenv(envp, more[i][0], more[i][1], TRUE);
    g_spawn_sync(NULL, (char **)(gsize)argv, envp, G_SPAWN_DEFAULT, NULL, NULL, &said, &errors,
                 status, &error);
    g_assert_no_error(error);
    *output = g_strconcat(said, errors, NULL);
    return TRUE;
}
