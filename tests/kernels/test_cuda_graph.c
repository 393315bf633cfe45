/*
 * Ops that wait for nobody: lists of launches and graphs of them, over the shim.
 *
 * Invariants
 *  1. What a list gives has the bits of the same ops one by one, and is not there before its end.
 *  2. A graph is made for kernels that were not met in that order, and for nothing else.
 *
 * Not here: whole models (test_cuda_model.c), single ops against the oracle (test_cuda_emu.c).
 */
#include "kernels/cuda/entry.h"
#include "kernels/cuemu/sites.h"
#include "tests/kernels/lab.h"

#include <math.h>
#include <string.h>

enum { AMPERE = 8, HOPPER = 9 };

/* ---- staging that grows within a list ---- */

enum { GROW_OPS = 7, GROW_ROWS = 1500, GROW_WIDTH = 2, GROW_WORDS = 97 };

/* Each op is told its ids in the same array. */
static void embed_all(const Ops *ops, const OpsWeight *w, float *const *y)
{
    int ids[GROW_ROWS];

    for (int op = 0; op < GROW_OPS; op++) {
        for (int t = 0; t < GROW_ROWS; t++)
            ids[t] = (t * (op + 3) + op) % GROW_WORDS;
        ops->embed_fwd(y[op], w, ids, GROW_ROWS);
    }
}

/* Runs first, while there is little staging. A second time there is room for all of it. */
static void test_growth(void)
{
    Lab lab = {.ops = cuda_ops(), .own = g_ptr_array_new_with_free_func(cuda_ops()->memory_free)};
    gsize n = GROW_ROWS * GROW_WIDTH;
    OpsWeight w = {.n = GROW_WORDS, .k = GROW_WIDTH};
    float *want[GROW_OPS], *got[GROW_OPS];
    long held;

    w.data = lab_room(&lab, lab.ops->weight_bytes(w.format, w.n, w.k));
    lab.ops->weight_pack(&w, lab_in(&lab, GROW_WORDS * GROW_WIDTH, 1));
    for (int op = 0; op < GROW_OPS; op++) {
        want[op] = lab_out(&lab, n);
        got[op] = lab_out(&lab, n);
    }
    embed_all(lab.ops, &w, want);
    held = cuemu_memory();
    for (int round = 0; round < 2; round++) {
        lab.ops->begin();
        embed_all(lab.ops, &w, got);
        g_assert_true(round ? cuemu_memory() == held : cuemu_memory() > held);
        lab.ops->end();
        g_assert_cmpint(cuemu_memory(), ==, held);
    }
    for (int op = 0; op < GROW_OPS; op++)
        g_assert_true(memcmp(got[op], want[op], n * sizeof(float)) == 0);
    g_ptr_array_unref(lab.own);
}

/* ---- every op of every case ---- */

static GArray *case_in_order(guint n, WeightFormat format, int major, int last_first,
                             gboolean later)
{
    GArray *got;

    cuemu_reverse(last_first);
    cuemu_capability(major);
    got = (later ? lab_run_later : lab_run)(n, cuda_ops(), 2, format);
    cuemu_capability(AMPERE);
    cuemu_reverse(0);
    return got;
}

/* The list runs in orders from `from` on. */
static void check_case(guint n, WeightFormat format, int major, int from)
{
    g_autoptr(GArray) want = case_in_order(n, format, major, 0, FALSE);

    for (int last_first = from; last_first < 2; last_first++) {
        g_autoptr(GArray) got = case_in_order(n, format, major, last_first, TRUE);

        g_assert_cmpuint(got->len, ==, want->len);
        if (memcmp(got->data, want->data, want->len * sizeof(double)) != 0)
            g_error("%s, format %d, sm_%d0: a list has other bits", lab_cases[n].name, format,
                    major);
    }
}

static void test_cases(void)
{
    long launched = cuemu_graphs().launched;

    for (guint n = 0; n < lab_n_cases; n++) {
        check_case(n, WEIGHT_REAL, AMPERE, 0);
        check_case(n, lab_cases[n].weights ? WEIGHT_BF16 : WEIGHT_REAL, HOPPER, 1);
    }
    g_assert_cmpint(cuemu_graphs().launched, >, launched);
}

/* ---- a layer ---- */

enum {
    H = 2,
    DIM = 8,
    CHUNK = 4,
    WIDTH = H * DIM,
    WORDS = 11,
    FEED = 12,
    ROWS_MAX = 12,
    SPANS_MAX = 4,
    SEQ_PAGES = 4,
    ARRAYS = 11
};

/* Sequences with rows at the end of a context; their number of waves and pieces is what a list's
 * kernels depend on. */
typedef struct {
    int n, pos0[SPANS_MAX], rows[SPANS_MAX];
} Round;

/* Arrays that the layer's ops write, in their order. */
typedef struct {
    const Ops *ops;
    Lab lab;
    OpsWeight embed, in, out, router, w1[EXPERTS], w3[EXPERTS], w2[EXPERTS];
    float *norm, *decay, *array[ARRAYS];
    gsize elements[ARRAYS];
    void *pages[SPANS_MAX][SEQ_PAGES];
    float *state[SPANS_MAX], *open[SPANS_MAX];
    MoePlan plan;
    int *choice;
} Layer;

enum { X = 0, RSTD, QKV, O, LSE, LIGHT, LOGITS, ROUTE, ACT, OUT, Y };

static const OpsHeads heads = {.heads = H, .kv_heads = H, .dim = DIM, .chunk = CHUNK};

static OpsWeight packed(Layer *l, WeightFormat format, int n, int k)
{
    OpsWeight w = {.n = n, .k = k, .format = format};

    w.data = lab_room(&l->lab, l->ops->weight_bytes(format, n, k));
    l->ops->weight_pack(&w, lab_in(&l->lab, (gsize)n * k, 0.5));
    return w;
}

static void make_arrays(Layer *l)
{
    static const int widths[ARRAYS] = {
        [X] = WIDTH,         [RSTD] = 1,           [QKV] = 3 * WIDTH,  [O] = WIDTH,
        [LSE] = H,           [LIGHT] = WIDTH,      [LOGITS] = EXPERTS, [ROUTE] = TOPK,
        [ACT] = TOPK * FEED, [OUT] = TOPK * WIDTH, [Y] = WIDTH};

    for (int i = 0; i < ARRAYS; i++) {
        l->elements[i] = (gsize)ROWS_MAX * widths[i];
        l->array[i] = lab_out(&l->lab, l->elements[i]);
    }
    for (int s = 0; s < SPANS_MAX; s++) {
        l->state[s] = lab_zeros(&l->lab, H * DIM * DIM);
        l->open[s] = lab_zeros(&l->lab, 2 * H * DIM * CHUNK);
        for (int p = 0; p < SEQ_PAGES; p++)
            l->pages[s][p] = lab_zeros(&l->lab, 2 * H * DIM * CHUNK);
    }
}

static Layer *layer_new(int major)
{
    Layer *l = g_new0(Layer, 1);
    gsize choices = ROWS_MAX * TOPK * sizeof(int);

    cuemu_capability(major);
    l->ops = l->lab.ops = cuda_ops();
    l->lab.own = g_ptr_array_new_with_free_func(l->ops->memory_free);
    l->embed = packed(l, WEIGHT_BF16, WORDS, WIDTH);
    l->in = packed(l, WEIGHT_BF16, 3 * WIDTH, WIDTH);
    l->out = packed(l, WEIGHT_BF16, WIDTH, WIDTH);
    l->router = packed(l, WEIGHT_BF16, EXPERTS, WIDTH);
    for (int e = 0; e < EXPERTS; e++) {
        l->w1[e] = packed(l, WEIGHT_BF16, FEED, WIDTH);
        l->w3[e] = packed(l, WEIGHT_BF16, FEED, WIDTH);
        l->w2[e] = packed(l, WEIGHT_BF16, WIDTH, FEED);
    }
    l->norm = lab_in(&l->lab, WIDTH, 1);
    l->decay = lab_decay(&l->lab, heads);
    make_arrays(l);
    l->choice = lab_room(&l->lab, choices);
    l->plan = (MoePlan){.offsets = lab_room(&l->lab, (EXPERTS + 1) * sizeof(int)),
                        .source = lab_room(&l->lab, choices),
                        .slot = lab_room(&l->lab, choices),
                        .order = lab_room(&l->lab, choices)};
    return l;
}

static void layer_free(Layer *l)
{
    g_ptr_array_unref(l->lab.own);
    g_free(l);
    cuemu_capability(AMPERE);
}

/* Outputs are poison, caches hold what their numbers say. */
static void begin_anew(Layer *l)
{
    for (int i = 0; i < ARRAYS; i++)
        memset(l->array[i], 0xff, l->elements[i] * sizeof(float));
    for (int s = 0; s < SPANS_MAX; s++) {
        for (int p = 0; p < SEQ_PAGES; p++)
            for (int i = 0; i < 2 * H * DIM * CHUNK; i++)
                ((float *)l->pages[s][p])[i] = (float)lab_number((guint)(5 * s + p), (gsize)i);
        memset(l->open[s], 0, 2 * H * DIM * CHUNK * sizeof(float));
        for (int i = 0; i < H * DIM * DIM; i++)
            l->state[s][i] = (float)lab_number((guint)(90 + s), (gsize)i);
    }
}

/* Small host arrays are on the stack, and gone when the ops have been called. */
static void list_ops(Layer *l, const Round *round)
{
    const MoeWeights mats = {l->w1, l->w3, l->w2};
    const Ops *ops = l->ops;
    int ids[ROWS_MAX], rows = 0;
    int64_t positions[ROWS_MAX];
    OpsSpan spans[SPANS_MAX];
    float **a = l->array;

    for (int s = 0; s < round->n; s++) {
        spans[s] = (OpsSpan){.row0 = rows,
                             .rows = round->rows[s],
                             .pos0 = round->pos0[s],
                             .pages = l->pages[s],
                             .state_in = l->state[s],
                             .state_out = l->state[s],
                             .open = l->open[s]};
        for (int i = 0; i < round->rows[s]; i++, rows++) {
            positions[rows] = round->pos0[s] + i;
            ids[rows] = (int)(positions[rows] * 3 + s) % WORDS;
        }
    }
    ops->embed_fwd(a[X], &l->embed, ids, rows);
    ops->rmsnorm_fwd(a[Y], a[RSTD], a[X], l->norm, rows, WIDTH, 1e-5);
    ops->gemm_fwd(a[QKV], a[Y], &l->in, rows, GEMM_ROUNDED);
    ops->rope(a[X], positions, (const double[]){1, 0.5}, 2, rows, H, DIM, 1);
    ops->attn_fwd(a[O], a[LSE], a[X], a[Y], a[X], spans, round->n, 0, heads);
    ops->lightning_fwd(a[LIGHT], a[QKV], spans, round->n, 0, 0, l->decay, heads);
    ops->axpby(a[O], 1, a[LIGHT], 0.5, (gsize)rows * WIDTH);
    ops->gemm_fwd(a[X], a[O], &l->out, rows, GEMM_ROUNDED);
    ops->gemm_fwd(a[LOGITS], a[X], &l->router, rows, GEMM_EXACT);
    ops->route_fwd(l->choice, a[ROUTE], a[LOGITS], rows, EXPERTS, TOPK);
    ops->route_plan(&l->plan, l->choice, rows, TOPK, EXPERTS);
    ops->moe_up_fwd(NULL, NULL, a[ACT], a[X], &l->plan, &mats);
    ops->moe_down_fwd(a[Y], a[OUT], a[ACT], a[ROUTE], &l->plan, &mats);
    memset(ids, 0x55, sizeof ids);
    memset(positions, 0x55, sizeof positions);
    memset(spans, 0x55, sizeof spans);
}

static void assert_poison(const Layer *l)
{
    for (int i = 0; i < ARRAYS; i++)
        for (gsize n = 0; n < l->elements[i]; n++)
            g_assert_true(isnan(l->array[i][n]));
}

static GByteArray *numbers_of(const Layer *l)
{
    GByteArray *all = g_byte_array_new();

    for (int i = 0; i < ARRAYS; i++)
        g_byte_array_append(all, (const guint8 *)l->array[i],
                            (guint)(l->elements[i] * sizeof(float)));
    for (int s = 0; s < SPANS_MAX; s++)
        g_byte_array_append(all, (const guint8 *)l->state[s], H * DIM * DIM * sizeof(float));
    for (int s = 0; s < SPANS_MAX; s++)
        for (int p = 0; p < SEQ_PAGES; p++)
            g_byte_array_append(all, l->pages[s][p], 2 * H * DIM * CHUNK * sizeof(float));
    return all;
}

static GByteArray *one_by_one(Layer *l, const Round *round)
{
    begin_anew(l);
    list_ops(l, round);
    return numbers_of(l);
}

static GByteArray *as_list(Layer *l, const Round *round)
{
    begin_anew(l);
    l->ops->begin();
    list_ops(l, round);
    assert_poison(l);
    l->ops->end();
    return numbers_of(l);
}

/* The round as a list has the bits of its ops one by one, and makes so many graphs. */
static void check_round(Layer *l, const Round *round, long made)
{
    g_autoptr(GByteArray) want = one_by_one(l, round), got = NULL;
    CuemuGraphs before = cuemu_graphs();

    got = as_list(l, round);
    g_assert_cmpmem(got->data, got->len, want->data, want->len);
    g_assert_cmpint(cuemu_graphs().launched - before.launched, ==, 1);
    g_assert_cmpint(cuemu_graphs().made - before.made, ==, made);
}

/* Decoding, other sequences at other places, a prompt; then the first once more. */
static const Round decode = {2, {5, 3}, {1, 1}}, others = {2, {9, 6}, {1, 1}},
                   more = {3, {2, 12, 7}, {1, 1, 1}}, prompt = {1, {4}, {9}};

static void test_rounds(gconstpointer data)
{
    Layer *l = layer_new(GPOINTER_TO_INT(data));

    for (int last_first = 0; last_first < 2; last_first++) {
        cuemu_reverse(last_first);
        check_round(l, &decode, last_first ? 0 : 1);
        check_round(l, &others, 0);
        check_round(l, &more, 0);
        check_round(l, &decode, 0);
        check_round(l, &prompt, 0);
    }
    cuemu_reverse(0);
    layer_free(l);
}

/* Staging, scratch and graphs are those of the first rounds; what is the same is not changed. */
static void test_many(void)
{
    Layer *l = layer_new(AMPERE);
    CuemuGraphs before, after;
    long memory, changed;

    g_byte_array_unref(as_list(l, &more));
    g_byte_array_unref(as_list(l, &prompt));
    before = cuemu_graphs();
    memory = cuemu_memory();
    for (int i = 0; i < 20; i++)
        g_byte_array_unref(as_list(l, i % 2 ? &more : &decode));
    after = cuemu_graphs();
    g_assert_cmpint(after.made, ==, before.made);
    g_assert_cmpint(after.held, ==, before.held);
    g_assert_cmpint(cuemu_memory(), ==, memory);
    changed = (after.changed - before.changed) / 20;
    g_byte_array_unref(as_list(l, &more));
    g_assert_cmpint(cuemu_graphs().changed - after.changed, <, changed);
    layer_free(l);
}

/* ---- which graphs are kept ---- */

enum { KEPT = 8 };

/* y[0] = -y[0], n times. Returns how many graphs were made for it. */
static long negate(const Ops *ops, float *y, int n)
{
    long made = cuemu_graphs().made;
    float want = n % 2 ? -y[0] : y[0];

    ops->begin();
    for (int i = 0; i < n; i++)
        ops->axpby(y, 0, y + 1, -1, 1);
    ops->end();
    g_assert_true(y[0] == want);
    return cuemu_graphs().made - made;
}

static void test_kept(void)
{
    const Ops *ops = cuda_ops();
    float *y = ops->memory_new(2 * sizeof *y);

    y[0] = y[1] = 3;
    for (int n = 1; n <= KEPT + 1; n++)
        g_assert_cmpint(negate(ops, y, n), ==, 1);
    g_assert_cmpint(cuemu_graphs().held, ==, KEPT);
    g_assert_cmpint(negate(ops, y, 2), ==, 0);
    g_assert_cmpint(negate(ops, y, 1), ==, 1); /* in the place of 3 */
    g_assert_cmpint(negate(ops, y, 2), ==, 0);
    g_assert_cmpint(negate(ops, y, 3), ==, 1);
    g_assert_cmpint(negate(ops, y, 0), ==, 0);
    g_assert_cmpint(cuemu_graphs().held, ==, KEPT);
    ops->memory_free(y);
}

/* ---- what is asked for, and what is refused ---- */

static void test_wait(void)
{
    Layer *l = layer_new(AMPERE);
    g_autoptr(GByteArray) want = one_by_one(l, &decode), got = NULL;
    long launched = cuemu_graphs().launched;

    g_setenv("ASSAY_CUDA", "wait", TRUE);
    begin_anew(l);
    l->ops->begin();
    list_ops(l, &decode);
    got = numbers_of(l);
    l->ops->end();
    g_unsetenv("ASSAY_CUDA");
    g_assert_cmpmem(got->data, got->len, want->data, want->len);
    g_assert_cmpint(cuemu_graphs().launched, ==, launched);
    layer_free(l);
}

/* ---- two threads ---- */

typedef struct {
    const Ops *ops;
    float *y;  /* [2], the second is 1 */
    gint here; /* the other thread is about to call */
} Pair;

static gpointer call_double(gpointer data)
{
    Pair *p = data;

    g_atomic_int_set(&p->here, 1);
    p->ops->axpby(p->y, 1, p->y + 1, 2, 1);
    return NULL;
}

/* An op of another thread waits for the end: what it finds is what the list left. */
static void test_threads(void)
{
    Pair p = {.ops = cuda_ops()};
    GThread *thread;

    p.y = p.ops->memory_new(2 * sizeof *p.y);
    p.y[0] = 3;
    p.y[1] = 1;
    p.ops->begin();
    p.ops->axpby(p.y, 0, p.y + 1, -1, 1);
    thread = g_thread_new("other", call_double, &p);
    while (!g_atomic_int_get(&p.here))
        g_thread_yield();
    p.ops->axpby(p.y, 2, p.y + 1, 5, 1);
    p.ops->end();
    g_thread_join(thread);
    g_assert_cmpfloat(p.y[0], ==, -25);
    p.ops->memory_free(p.y);
}

static void test_refuses(void)
{
    static const char *const says[] = {"*begin within begin*", "*returns a number*"};
    static const char *const paths[] = {"/cuda_graph/refuses/subprocess/nested",
                                        "/cuda_graph/refuses/subprocess/number"};

    for (guint i = 0; i < G_N_ELEMENTS(paths); i++) {
        g_test_trap_subprocess(paths[i], 0, 0);
        g_test_trap_assert_failed();
        g_test_trap_assert_stderr(says[i]);
    }
}

static void nest(void)
{
    cuda_ops()->begin();
    cuda_ops()->begin();
}

static void ask_number(void)
{
    float x = 1;

    cuda_ops()->begin();
    cuda_ops()->sumsq(&x, 1);
}

/* ---- plans of experts ---- */

static void check_plan(int rows, int topk, int experts)
{
    Lab lab = {.ops = cuda_ops(), .own = g_ptr_array_new_with_free_func(cuda_ops()->memory_free)};
    gsize n = (gsize)rows * (gsize)topk, bytes = n * sizeof(int);
    gsize ends = ((gsize)experts + 1) * sizeof(int);
    int *ids = lab_room(&lab, bytes);
    MoePlan plan[2];

    for (gsize i = 0; i < n; i++)
        ids[i] = (int)(fabs(lab_number((guint)(rows + topk), i)) * (experts * 0.7)) % experts;
    for (int i = 0; i < 2; i++) {
        plan[i] = (MoePlan){.offsets = lab_room(&lab, ends),
                            .source = lab_room(&lab, bytes),
                            .slot = lab_room(&lab, bytes),
                            .order = lab_room(&lab, bytes)};
        (i ? lab.ops->route_plan : moe_plan)(&plan[i], ids, rows, topk, experts);
    }
    g_assert_cmpint(plan[1].rows, ==, plan[0].rows);
    g_assert_cmpint(plan[1].topk, ==, topk);
    g_assert_cmpint(plan[1].experts, ==, experts);
    g_assert_true(memcmp(plan[1].offsets, plan[0].offsets, ends) == 0);
    g_assert_true(memcmp(plan[1].source, plan[0].source, bytes) == 0);
    g_assert_true(memcmp(plan[1].slot, plan[0].slot, bytes) == 0);
    g_assert_true(memcmp(plan[1].order, plan[0].order, bytes) == 0);
    g_ptr_array_unref(lab.own);
}

/* The upper experts stay empty; a row may have an expert twice, whose choices keep their order. */
static void test_plans(void)
{
    static const int rows[] = {0, 1, 33, 100}, topk[] = {1, 2, OPS_TOPK_MAX},
                     experts[] = {1, 6, OPS_EXPERTS_MAX};

    for (int last_first = 0; last_first < 2; last_first++) {
        cuemu_reverse(last_first);
        for (guint r = 0; r < G_N_ELEMENTS(rows); r++)
            for (guint k = 0; k < G_N_ELEMENTS(topk); k++)
                for (guint e = 0; e < G_N_ELEMENTS(experts); e++)
                    check_plan(rows[r], topk[k], experts[e]);
    }
    cuemu_reverse(0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cuda_graph/staging_that_grows_within_a_list", test_growth);
    g_test_add_func("/cuda_graph/every_case_as_a_list", test_cases);
    g_test_add_data_func("/cuda_graph/rounds_of_a_layer", GINT_TO_POINTER(AMPERE), test_rounds);
    g_test_add_data_func("/cuda_graph/rounds_of_a_layer_on_hopper", GINT_TO_POINTER(HOPPER),
                         test_rounds);
    g_test_add_func("/cuda_graph/many_rounds", test_many);
    g_test_add_func("/cuda_graph/which_graphs_are_kept", test_kept);
    g_test_add_func("/cuda_graph/every_op_waits_where_that_is_asked_for", test_wait);
    g_test_add_func("/cuda_graph/ops_of_another_thread_wait", test_threads);
    g_test_add_func("/cuda_graph/refuses", test_refuses);
    g_test_add_func("/cuda_graph/refuses/subprocess/nested", nest);
    g_test_add_func("/cuda_graph/refuses/subprocess/number", ask_number);
    g_test_add_func("/cuda_graph/plans_as_the_host_makes_them", test_plans);
    return g_test_run();
}
