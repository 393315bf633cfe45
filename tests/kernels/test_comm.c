/*
 * Ranks: every collective against a plain sum or copy, by threads and, where there is an mpirun, by
 * processes; what happens when a rank is silent, wrong or dead.
 *
 * Started by mpirun it is a rank itself: `test_comm collectives`, `silent`, `killed`, `absent`.
 */
#include "kernels/comm_cards.h"
#include "tests/kernels/rank_lab.h"

#include <glib.h>

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define RANKS_MAX 4 /* of tests with threads */
#define SHARES    4

static const gsize lengths[] = {0, 1, 2, 3, 7, 1000, 300001};

/* Number i of rank r: large and small ones, so that the order of a sum shows. */
static double number(guint r, gsize i)
{
    guint64 h = (r + 1) * 0x9e3779b97f4a7c15ull ^ (i + 1) * 0xbf58476d1ce4e5b9ull;

    h = (h ^ (h >> 31)) * 0x94d049bb133111ebull;
    h ^= h >> 29;
    return ((double)(h >> 11) / 4503599627370496.0 - 1) * (double)(1u << (h % 24));
}

static void put(CommReal real, void *x, gsize i, double value)
{
    if (real == COMM_F64)
        ((double *)x)[i] = value;
    else
        ((float *)x)[i] = (float)value;
}

static gsize size_of(CommReal real)
{
    return real == COMM_F64 ? sizeof(double) : sizeof(float);
}

static void fill(CommReal real, void *x, guint r, gsize n)
{
    for (gsize i = 0; i < n; i++)
        put(real, x, i, number(r, i));
}

/* ((x_0 + x_1) + x_2) + ..., one element after the other. */
static void plain_sum(CommReal real, void *sum, guint ranks, gsize n)
{
    g_autofree void *x = g_malloc0(n * size_of(real) + 1);

    fill(real, sum, 0, n);
    for (guint r = 1; r < ranks; r++) {
        fill(real, x, r, n);
        for (gsize i = 0; i < n; i++)
            if (real == COMM_F64)
                ((double *)sum)[i] += ((double *)x)[i];
            else
                ((float *)sum)[i] += ((float *)x)[i];
    }
}

static void check_all_reduce(Comm *c, CommReal real, gsize n)
{
    g_autofree void *x = g_malloc0(n * size_of(real) + 1);
    g_autofree void *want = g_malloc0(n * size_of(real) + 1);

    fill(real, x, (guint)c->rank, n);
    plain_sum(real, want, (guint)c->size, n);
    g_assert_true(comm_all_reduce(c, real, x, n));
    g_assert_cmpint(memcmp(x, want, n * size_of(real)), ==, 0);
}

/* Parts of uneven lengths, the first empty. */
static void uneven(gsize *ends, int ranks, gsize n)
{
    for (int r = 0; r < ranks; r++)
        ends[r] = r + 1 == ranks ? n : n * (gsize)r / (gsize)(ranks + r);
}

/* Four shares on 1, 2 or 4 ranks: the same order of sums, so the same bits. */
static void check_shares(Comm *c, CommReal real, gsize n)
{
    g_autofree void *x = g_malloc0(n * size_of(real) + 1);
    g_autofree void *own = g_malloc0(n * size_of(real) + 1);
    g_autofree char *want = g_malloc0(n * size_of(real) + 1);
    gsize ends[RANKS_MAX], from;

    if (SHARES % c->size != 0)
        return;
    uneven(ends, c->size, n);
    from = c->rank > 0 ? ends[c->rank - 1] : 0;
    plain_sum(real, want, SHARES, n);
    for (int round = 0; round < SHARES / c->size; round++) {
        fill(real, x, (guint)(round * c->size + c->rank), n);
        g_assert_true(comm_reduce_scatter(c, real, own, x, ends));
    }
    g_assert_cmpint(
        memcmp(own, want + from * size_of(real), (ends[c->rank] - from) * size_of(real)), ==, 0);
}

static void check_all_gather(Comm *c, gsize n)
{
    g_autofree guint8 *data = g_malloc0(n + 1);
    gsize ends[RANKS_MAX];

    uneven(ends, c->size, n);
    for (gsize i = c->rank > 0 ? ends[c->rank - 1] : 0; i < ends[c->rank]; i++)
        data[i] = (guint8)(i % 251);
    g_assert_true(comm_all_gather(c, data, ends));
    for (gsize i = 0; i < n; i++)
        g_assert_cmpuint(data[i], ==, i % 251);
}

static void check_broadcast(Comm *c, gsize n)
{
    g_autofree double *data = g_new0(double, n + 1);

    for (int root = 0; root < c->size; root++) {
        fill(COMM_F64, data, (guint)(c->rank == root ? 17 + root : c->rank), n);
        g_assert_true(comm_broadcast(c, root, data, n * sizeof *data));
        for (gsize i = 0; i < n; i++)
            g_assert_cmpfloat(data[i], ==, number((guint)(17 + root), i));
    }
}

/* Bytes from rank a to rank b: some, none, and to oneself. */
static gsize bytes_between(int a, int b, gsize n)
{
    return (a * 3 + b) % 4 == 1 ? 0 : n / (gsize)(1 + a) + (gsize)b;
}

static void check_all_to_all(Comm *c, gsize n)
{
    gsize send_ends[RANKS_MAX], recv_ends[RANKS_MAX], sent = 0, got = 0, at = 0;
    g_autofree guint8 *send = NULL, *recv = NULL;

    for (int r = 0; r < c->size; r++) {
        send_ends[r] = sent += bytes_between(c->rank, r, n);
        recv_ends[r] = got += bytes_between(r, c->rank, n);
    }
    send = g_malloc0(sent + 1);
    recv = g_malloc0(got + 1);
    for (int r = 0; r < c->size; r++)
        for (gsize i = 0; i < bytes_between(c->rank, r, n); i++)
            send[at++] = (guint8)(c->rank * 64 + r * 16 + (int)(i % 13));
    g_assert_true(comm_all_to_all(c, send, send_ends, recv, recv_ends));
    at = 0;
    for (int r = 0; r < c->size; r++)
        for (gsize i = 0; i < bytes_between(r, c->rank, n); i++)
            g_assert_cmpuint(recv[at++], ==, (guint8)(r * 64 + c->rank * 16 + (int)(i % 13)));
}

static void check_first(Comm *c, guint n)
{
    for (guint i = 0; i < n; i++) {
        for (CommReal real = COMM_F32; real <= COMM_F64; real++) {
            check_all_reduce(c, real, lengths[i]);
            check_shares(c, real, lengths[i]);
        }
        check_all_gather(c, lengths[i]);
        check_broadcast(c, lengths[i]);
        check_all_to_all(c, lengths[i]);
    }
    g_assert_true(comm_barrier(c));
}

static void check_all(Comm *c)
{
    check_first(c, G_N_ELEMENTS(lengths));
}

/* Groups of groups: even and odd ranks, and within each its first and the rest. */
static void check_splits(Comm *world)
{
    Comm *half = comm_split(world, world->rank % 2), *part;

    g_assert_nonnull(half);
    g_assert_cmpint(half->members[half->rank], ==, world->rank);
    g_assert_cmpint(half->size, ==, (world->size + 1 - world->rank % 2) / 2);
    check_first(half, 6);
    part = comm_split(half, half->rank > 0);
    g_assert_nonnull(part);
    check_first(part, 6);
    check_first(world, 6); /* groups do not disturb each other */
    comm_close(part);
    comm_close(half);
}

/* ---- threads ---- */

static void rank_checks(Comm *c, gpointer user)
{
    (void)user;
    check_all(c);
}

static void rank_splits(Comm *c, gpointer user)
{
    (void)user;
    check_splits(c);
}

static void test_collectives(void)
{
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
        lab_ranks(ranks, rank_checks, NULL);
}

static void test_splits(void)
{
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
        lab_ranks(ranks, rank_splits, NULL);
}

/* Rank 2 never comes: the others say so, and all that follows fails at once. */
static void one_silent(Comm *c, gpointer user)
{
    float x[3] = {1, 2, 3};
    CommFail fail;

    (void)user;
    if (c->rank == 2)
        return;
    comm_timeout(c, 0.2);
    g_assert_false(comm_all_reduce(c, COMM_F32, x, 3));
    g_assert_true(comm_failed(c, &fail));
    g_assert_nonnull(strstr(fail.text, "is silent for 0.2 s"));
    g_assert_cmpint(fail.rank, ==, 2);
    g_assert_false(comm_barrier(c));
    g_assert_null(comm_split(c, 0));
}

static void test_silent(void)
{
    lab_ranks(3, one_silent, NULL);
}

/* Rank 1 sends another length: named, with both numbers, instead of read past an end. */
static void one_wrong(Comm *c, gpointer user)
{
    char data[8] = {0};
    gsize ends[2] = {4, c->rank == 1 ? 6 : 8};
    CommFail fail;

    (void)user;
    g_assert_false(comm_all_gather(c, data, ends) && comm_barrier(c));
    g_assert_true(comm_failed(c, &fail));
    g_assert_cmpint(fail.rank, ==, 1);
    g_assert_nonnull(strstr(fail.text, "rank 1 sends 2 bytes in group 0, awaited are 4 in 0"));
}

static void test_wrong(void)
{
    lab_ranks(2, one_wrong, NULL);
}

/* A reason of its own that rank 0 gives is what rank 1 hears. */
static void one_gives_up(Comm *c, gpointer user)
{
    CommFail fail;

    (void)user;
    if (c->rank == 0) {
        comm_fail(c, "no more tea");
        return;
    }
    g_assert_false(comm_barrier(c));
    g_assert_true(comm_failed(c, &fail));
    g_assert_cmpstr(fail.text, ==, "rank 0 of 2: stopped: no more tea");
    g_assert_cmpint(fail.rank, ==, 0);
}

static void test_gives_up(void)
{
    lab_ranks(2, one_gives_up, NULL);
}

static void test_alone(void)
{
    CommFail fail;
    Comm *c = comm_launched(1, &fail);

    g_assert_nonnull(c);
    g_assert_cmpint(c->size, ==, 1);
    check_all(c);
    check_splits(c);
    comm_close(c);
}

/* ---- cards, by the fake of NCCL ---- */

typedef struct {
    const char *library, *refusal;
    const char *says; /* why ranks go on as they did; NULL: they change over */
    void (*then)(Comm *c);
} Cards;

static void rank_cards(Comm *c, gpointer user)
{
    const Cards *what = user;
    char why[512] = "";
    gboolean changed =
        comm_cards(c, c->rank == 1 ? what->refusal : NULL, what->library, why, sizeof why);

    g_assert_cmpint(changed, ==, what->says == NULL);
    if (what->says)
        g_assert_cmpstr(why, ==, what->says);
    what->then(c);
}

static void checks(Comm *c)
{
    check_all(c);
    check_splits(c);
}

/* The fake's variable of that name; NULL: the test is skipped. */
static void *fake(Cards *what, const char *name)
{
    what->library = g_getenv("ASSAY_FAKE_NCCL");
    if (what->library)
        return dlsym(dlopen(what->library, RTLD_NOW), name);
    g_test_skip("ASSAY_FAKE_NCCL does not say where the fake is");
    return NULL;
}

/* The same sums as without; small messages stay where they were. */
static void test_cards(void)
{
    Cards what = {.then = checks};
    const gsize *smallest = fake(&what, "fake_nccl_smallest");
    const gsize *pieces = fake(&what, "fake_nccl_pieces");

    if (!pieces)
        return;
    for (int ranks = 1; ranks <= RANKS_MAX; ranks++)
        lab_ranks(ranks, rank_cards, &what);
    g_assert_cmpuint(*pieces, >, 1000);
    g_assert_cmpuint(*smallest, <, 65536); /* the end of one that was cut */
}

static void test_cards_refused(void)
{
    static const struct {
        const char *fake, *refusal, *says;
    } rows[] = {
        {"none", NULL, "rank 0: NCCL: cards: none is seen"},
        {"begin 1", NULL, "rank 1: NCCL: begin: internal error (at the beginning)"},
        {NULL, "models run on a processor", "rank 1: models run on a processor"},
    };
    Cards what = {.then = checks};
    const char **wrong = fake(&what, "fake_nccl_wrong");

    for (guint i = 0; wrong && i < G_N_ELEMENTS(rows); i++) {
        what.refusal = rows[i].refusal;
        what.says = rows[i].says;
        *wrong = rows[i].fake;
        lab_ranks(2, rank_cards, &what);
        *wrong = NULL;
    }
    what = (Cards){.library = "/nowhere.so",
                   .then = checks,
                   .says = "rank 0: no card messages: /nowhere.so: cannot open shared object file: "
                           "No such file or directory"};
    lab_ranks(2, rank_cards, &what);
}

/* Rank 1 fails within a sum over cards: what NCCL says, or nothing for a while. */
static void sum_fails(Comm *c)
{
    gsize n = 100000;
    g_autofree double *x = g_new0(double, n);
    CommFail fail;

    comm_timeout(c, 0.3);
    g_assert_false(comm_all_reduce(c, COMM_F64, x, n) && comm_all_reduce(c, COMM_F64, x, n));
    g_assert_true(comm_failed(c, &fail));
    g_assert_nonnull(strstr(fail.text, ": messages: ")); /* this rank's words, or the other's */
    g_test_message("%s", fail.text);
    g_assert_false(comm_barrier(c));
}

static void test_cards_fail(void)
{
    static const char *const ways[] = {"async 1", "stuck 1"};
    Cards what = {.then = sum_fails};
    const char **wrong = fake(&what, "fake_nccl_wrong");

    for (guint i = 0; wrong && i < G_N_ELEMENTS(ways); i++) {
        *wrong = ways[i];
        lab_ranks(2, rank_cards, &what);
        *wrong = NULL;
    }
}

/* A rank that never comes is named, and nothing was given to a card. */
static void third_silent(Comm *c)
{
    g_autofree float *x = g_new0(float, 100000);
    CommFail fail;

    if (c->rank == 2)
        return;
    comm_timeout(c, 0.2);
    g_assert_false(comm_all_reduce(c, COMM_F32, x, 100000));
    g_assert_true(comm_failed(c, &fail));
    g_assert_cmpint(fail.rank, ==, 2);
    g_assert_nonnull(strstr(fail.text, "rank 2 is silent for 0.2 s"));
}

static void test_cards_silent(void)
{
    Cards what = {.then = third_silent};

    if (fake(&what, "fake_nccl_wrong"))
        lab_ranks(3, rank_cards, &what);
}

/* ---- processes ---- */

static char *self;

static void test_processes(gconstpointer ranks)
{
    g_autofree char *output = NULL, *want = NULL;
    int status;

    if (!lab_mpirun(ranks, self, "collectives", &output, &status))
        return;
    want = g_strdup_printf("all well on %s ranks", (const char *)ranks);
    g_test_message("%s", output);
    g_assert_cmpint(status, ==, 0);
    g_assert_nonnull(strstr(output, want));
}

/* Rank 1 is another program, that never says a word: rank 0 does not wait for ever. */
static void test_absent(void)
{
    g_autofree char *output = NULL;
    int status;

    if (!lab_mpirun("2", self, "absent", &output, &status))
        return;
    g_test_message("%s", output);
    g_assert_cmpint(status, !=, 0);
    g_assert_nonnull(strstr(output, "not all ranks have begun within 1 s"));
}

/* The run ends, not well, and somebody says which rank it was. */
static void test_ends(gconstpointer how)
{
    gboolean killed = !strcmp(how, "killed");
    g_autofree char *output = NULL;
    int status;

    if (!lab_mpirun("2", self, how, &output, &status))
        return;
    g_test_message("%s", output);
    g_assert_cmpint(status, !=, 0);
    g_assert_nonnull(strstr(output, killed ? "rank 1" : "rank 1 is silent for 1 s"));
}

/* One of the ranks that mpirun started. */
static int be_rank(const char *what)
{
    gboolean absent = !strcmp(what, "absent");
    CommFail fail;
    Comm *c;

    if (absent && !g_strcmp0(g_getenv("OMPI_COMM_WORLD_RANK"), "1"))
        return 0;
    c = comm_launched(absent ? 1 : 10, &fail);
    g_assert_nonnull(c);
    if (!strcmp(what, "collectives")) {
        check_all(c);
        check_splits(c);
        if (c->rank == 0)
            printf("all well on %d ranks\n", c->size);
    } else if (c->rank == 1) {
        raise(!strcmp(what, "killed") ? SIGKILL : SIGSTOP);
    } else {
        comm_timeout(c, !strcmp(what, "killed") ? 20 : 1);
        comm_barrier(c);
        if (comm_failed(c, &fail))
            fprintf(stderr, "%s\n", fail.text);
    }
    comm_close(c);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && argv[1][0] != '-')
        return be_rank(argv[1]);
    g_test_init(&argc, &argv, NULL);
    self = argv[0];
    g_test_add_func("/comm/collectives", test_collectives);
    g_test_add_func("/comm/splits", test_splits);
    g_test_add_func("/comm/silent", test_silent);
    g_test_add_func("/comm/wrong", test_wrong);
    g_test_add_func("/comm/gives-up", test_gives_up);
    g_test_add_func("/comm/alone", test_alone);
    g_test_add_func("/comm/cards/collectives", test_cards);
    g_test_add_func("/comm/cards/refused", test_cards_refused);
    g_test_add_func("/comm/cards/fail", test_cards_fail);
    g_test_add_func("/comm/cards/silent", test_cards_silent);
    g_test_add_data_func("/comm/processes/2", "2", test_processes);
    g_test_add_data_func("/comm/processes/4", "4", test_processes);
    g_test_add_func("/comm/absent", test_absent);
    g_test_add_data_func("/comm/ends/silent", "silent", test_ends);
    g_test_add_data_func("/comm/ends/killed", "killed", test_ends);
    return g_test_run();
}
