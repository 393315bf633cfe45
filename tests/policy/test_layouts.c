/*
 * The golden model shared by ranks, as threads: log-probabilities, logits, loss and every gradient
 * under tp, ep, dp, sp and all of them together against one rank's. Started by mpirun with the word
 * "rank" it is one of the ranks.
 */
#include "policy/backward.h"
#include "policy/layout.h"
#include "policy/shard.h"
#include "tests/policy/model_lab.h"
#include "tests/kernels/rank_lab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SEQUENCES 5
#define ROWS_MAX  160
#define CHUNK     4
#define ROUNDS    2

/* Sequences one after the other, the token that each row is asked about, and its coefficient. */
typedef struct {
    int rows, begin[SEQUENCES + 1];
    int ids[ROWS_MAX], next[ROWS_MAX];
    double coef[ROWS_MAX], bonus[ROWS_MAX];
} Packed;

/* What a pass over some of the rows gave, as doubles. */
typedef struct {
    double logits[ROWS_MAX * GOLDEN_VOCAB], logp[ROWS_MAX], entropy[ROWS_MAX];
    double *grads; /* [count] of the whole model's Params */
    gsize count;
    double loss;
} Result;

static void packed_fill(Packed *p, guint seed)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);

    *p = (Packed){0};
    for (int s = 0; s < SEQUENCES; s++) {
        int rows = g_rand_int_range(rand, 1, ROWS_MAX / SEQUENCES);

        p->begin[s] = p->rows;
        p->rows += rows;
    }
    p->begin[SEQUENCES] = p->rows;
    for (int t = 0; t < p->rows; t++) {
        p->ids[t] = g_rand_int_range(rand, 0, GOLDEN_VOCAB);
        p->next[t] = g_rand_int_range(rand, 0, GOLDEN_VOCAB);
        p->coef[t] = g_rand_double_range(rand, -0.2, 0.2);
        p->bonus[t] = g_rand_double_range(rand, 0, 0.01);
    }
}

/* ---- a pass over rows from .. to ---- */

typedef struct {
    int rows, from;
    int64_t positions[ROWS_MAX];
    LabSeq *seqs[SEQUENCES];
    OpsSpan spans[SEQUENCES];
    OpsSpanGrad grads[SEQUENCES];
    Batch batch;
} Piece;

static void piece_make(Piece *piece, const Model *m, const Packed *p, int from, int to)
{
    *piece = (Piece){.rows = to - from, .from = from};
    for (int s = 0, n = 0; s < SEQUENCES; s++) {
        int first = MAX(p->begin[s], from), end = MIN(p->begin[s + 1], to);

        if (first >= end)
            continue;
        for (int t = first; t < end; t++)
            piece->positions[t - from] = t - p->begin[s];
        piece->seqs[n] = lab_seq_new(m, p->begin[s + 1] - p->begin[s]);
        piece->seqs[n]->length = first - p->begin[s];
        piece->spans[n] = lab_span(piece->seqs[n], first - from, end - first);
        piece->spans[n].state_in = NULL;
        piece->grads[n] = (OpsSpanGrad){.dpages = piece->seqs[n]->dpages};
        piece->batch.n_spans = ++n;
    }
    piece->batch.rows = piece->rows;
    piece->batch.ids = p->ids + from;
    piece->batch.positions = piece->positions;
    for (int s = 0; s < SEQUENCES; s++)
        piece->batch.goes_on |= p->begin[s] < to && to < p->begin[s + 1];
    piece->batch.spans = piece->spans;
}

static void piece_clear(Piece *piece)
{
    for (int n = 0; n < piece->batch.n_spans; n++)
        lab_seq_free(piece->seqs[n]);
}

static void put(const Model *m, void *x, gsize i, double value)
{
    if (m->ops->real == OPS_F64)
        ((double *)x)[i] = value;
    else
        ((float *)x)[i] = (float)value;
}

/* Rows of numbers for the head. */
typedef struct {
    void *logits, *dhidden, *logp, *lse, *entropy, *coef, *bonus, *scratch;
} Head;

static void *numbers(const Model *m, gsize n)
{
    void *at = NULL;

    g_assert_cmpint(posix_memalign(&at, 64, (n + 16) * ops_real_size(m->ops->real)), ==, 0);
    return at;
}

static Head head_new(const Model *m, const Packed *p, const Piece *piece)
{
    gsize rows = (gsize)piece->rows;
    Head h = {.logits = numbers(m, rows * m->config.vocab),
              .dhidden = numbers(m, rows * m->config.hidden),
              .logp = numbers(m, rows),
              .lse = numbers(m, rows),
              .entropy = numbers(m, rows),
              .coef = numbers(m, rows),
              .bonus = numbers(m, rows),
              .scratch = numbers(m, rows * (OPS_HEAD_TILE + 3))};

    for (gsize t = 0; t < rows; t++) {
        put(m, h.coef, t, p->coef[(gsize)piece->from + t]);
        put(m, h.bonus, t, p->bonus[(gsize)piece->from + t]);
    }
    return h;
}

static void head_clear(Head *h)
{
    void *all[] = {h->logits,  h->dhidden, h->logp,  h->lse,
                   h->entropy, h->coef,    h->bonus, h->scratch};

    for (guint i = 0; i < G_N_ELEMENTS(all); i++)
        free(all[i]);
}

static void note(Result *r, const Model *m, const Head *h, const Piece *piece)
{
    const ModelConfig *c = &m->config;

    for (int t = 0; t < piece->rows; t++) {
        gsize row = (gsize)(piece->from + t);

        for (guint j = 0; j < c->vocab; j++)
            r->logits[row * GOLDEN_VOCAB + c->vocab_first + j] =
                lab_number(m, h->logits, (gsize)t * c->vocab + j);
        r->logp[row] = lab_number(m, h->logp, (gsize)t);
        r->entropy[row] = lab_number(m, h->entropy, (gsize)t);
    }
}

/* Forward, loss, backward; `grads` are added to. */
static void pass(Result *r, const Model *m, const Packed *p, int from, int to, ActsKeep keep,
                 Params *grads)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Acts) acts = acts_new(m, MAX(to - from, 1), keep, &error);
    g_autoptr(Backward) back = backward_new(m, MAX(to - from, 1), ROWS_MAX, &error);
    Piece piece;
    Head h;

    piece_make(&piece, m, p, from, to);
    h = head_new(m, p, &piece);
    forward(m, acts, &piece.batch);
    forward_logits(m, h.logits, acts->hidden, piece.rows);
    shard_head_fwd(m, h.logp, h.lse, h.entropy, acts->hidden, p->next + from, piece.rows, 0.8,
                   h.scratch);
    note(r, m, &h, &piece);
    shard_head_bwd(m, h.dhidden, params_tensor(grads, 0, SLOT_HEAD, 0), acts->hidden,
                   &(HeadGrad){h.lse, p->next + from, h.coef, h.bonus, h.entropy}, piece.rows, 0.8,
                   h.scratch);
    backward(back, m, grads, acts, &piece.batch, piece.grads, h.dhidden);
    head_clear(&h);
    piece_clear(&piece);
}

/* ---- one rank and many ---- */

typedef struct {
    const Model *whole;
    const Packed *packed;
    const Layout *layout;
    ActsKeep keep;
    guint seed;
    Params *grads; /* of the whole model, put together */
    GMutex lock;
    Result *result;
    char *why;
} Sharing;

/* The rows of data rank `data` of `n`: whole sequences. */
static int cut_of(const Packed *p, int data, int n)
{
    return p->begin[SEQUENCES * data / n];
}

/* Rows from .. to for `ranks` ranks, each at least one, cut at random. */
static void cut_anywhere(int *cuts, int ranks, int from, int to, guint seed)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);

    cuts[0] = from;
    for (int r = 1; r < ranks; r++)
        cuts[r] = g_rand_int_range(rand, cuts[r - 1] + 1, to - (ranks - r) + 1);
    cuts[ranks] = to;
}

/* The rows of a rank: whole sequences by dp, then cut by sp. */
static void rows_of(const Model *part, const Layout *l, const Packed *p, guint seed, int *from,
                    int *to)
{
    int data = part->groups.data->rank / (int)l->sp, mine = part->groups.sequence->rank;
    int cuts[LAB_RANKS_MAX + 1];

    cut_anywhere(cuts, (int)l->sp, cut_of(p, data, (int)l->dp), cut_of(p, data + 1, (int)l->dp),
                 seed);
    *from = cuts[mine];
    *to = cuts[mine + 1];
}

static void keep_gradients(Sharing *s, const Model *part, const Params *grads)
{
    gsize real = ops_real_size(part->ops->real);

    g_mutex_lock(&s->lock);
    for (guint i = 0; i < tensors_count(&part->config); i++) {
        TensorInfo t = tensors_info(&part->config, i);
        guint whole = layout_tensor(&s->whole->config, &part->config, &t);

        layout_copy(&s->whole->config, &part->config, &t, params_at(s->grads, whole),
                    params_at(grads, i), real, LAYOUT_PASTE);
    }
    g_mutex_unlock(&s->lock);
}

/* The rank's part of the whole model, with groups to be cleared. */
static Model *part_of(const Model *whole, const Layout *l, Comm *world)
{
    g_autoptr(GError) error = NULL;
    gsize real = ops_real_size(whole->ops->real);
    ModelConfig config;
    Model *m;

    g_assert_true(layout_part(&whole->config, l, (guint32)world->rank, &config, &error));
    m = model_new(whole->ops, &config, whole->format, &error);
    g_assert_no_error(error);
    for (guint i = 0; i < tensors_count(&config); i++) {
        TensorInfo t = tensors_info(&config, i);
        TensorInfo all = tensors_info(&whole->config, layout_tensor(&whole->config, &config, &t));
        g_autofree void *rows = g_malloc(all.count * real), *cut = g_malloc(t.count * real);

        model_get(whole, &all, rows);
        layout_copy(&whole->config, &config, &t, rows, cut, real, LAYOUT_CUT);
        model_set(m, &t, cut);
    }
    g_assert_true(layout_groups(l, world, &m->groups, &error));
    return m;
}

/* Every gradient becomes its sum over the ranks that saw other rows. */
static void sum_gradients(const Model *m, const Params *grads)
{
    CommReal real = m->ops->real == OPS_F64 ? COMM_F64 : COMM_F32;

    for (guint i = 0; i < tensors_count(&m->config); i++) {
        TensorInfo t = tensors_info(&m->config, i);

        comm_all_reduce(t.class == CLASS_EXPERT ? m->groups.replicas : m->groups.data, real,
                        params_at(grads, i), t.count);
    }
}

static void rank_shares(Comm *world, gpointer user)
{
    Sharing *s = user;
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) part = part_of(s->whole, s->layout, world);
    g_autoptr(Params) grads = params_new(part, &error);
    int from, to;

    rows_of(part, s->layout, s->packed, s->seed, &from, &to);
    pass(s->result, part, s->packed, from, to, s->keep, grads);
    sum_gradients(part, grads);
    g_assert_false(comm_failed(world, NULL));
    keep_gradients(s, part, grads);
    layout_groups_clear(&part->groups);
}

static void result_end(Result *r, const Model *m, const Packed *p, const Params *grads)
{
    r->count = grads->count;
    r->grads = g_new(double, r->count);
    for (gsize i = 0; i < r->count; i++)
        r->grads[i] = lab_number(m, grads->data, i);
    for (int t = 0; t < p->rows; t++)
        r->loss -= p->coef[t] * r->logp[t] + p->bonus[t] * r->entropy[t];
}

static Result *shared(const Model *whole, const Packed *p, const Layout *layout, ActsKeep keep,
                      guint seed)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Params) grads = params_new(whole, &error);
    Result *r = g_new0(Result, 1);
    Sharing s = {.whole = whole,
                 .packed = p,
                 .layout = layout,
                 .keep = keep,
                 .seed = seed,
                 .grads = grads,
                 .result = r};

    g_mutex_init(&s.lock);
    memset(r->logits, 0xff, sizeof r->logits); /* what no rank has stays NaN */
    memset(grads->data, 0xff, params_bytes(grads));
    lab_ranks((int)layout_ranks(layout), rank_shares, &s);
    for (guint i = 0; i < tensors_count(&whole->config); i++) { /* padding is nobody's */
        gsize n = tensors_info(&whole->config, i).count, real = ops_real_size(whole->ops->real);

        memset((char *)params_at(grads, i) + n * real, 0, (16 - n % 16) % 16 * real);
    }
    g_mutex_clear(&s.lock);
    result_end(r, whole, p, grads);
    return r;
}

static Result *alone(const Model *m, const Packed *p)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Params) grads = params_new(m, &error);
    Result *r = g_new0(Result, 1);

    pass(r, m, p, 0, p->rows, ACTS_KEEP_ALL, grads);
    result_end(r, m, p, grads);
    return r;
}

static void result_free(Result *r)
{
    if (!r)
        return;
    g_free(r->grads);
    g_free(r);
}

static double apart(const double *x, const double *y, gsize n)
{
    double off = 0, all = 0;

    for (gsize i = 0; i < n; i++) {
        off += (x[i] - y[i]) * (x[i] - y[i]);
        all += y[i] * y[i];
    }
    return sqrt(off / all);
}

/* Two single ranks in f32 differ in their gradients by up to 5e-6 (backends, against f64): where
 * ranks share a row's sums, they must be as near to f64 as one rank is, within a factor of two. */
static void compare(const Result *r, const Result *want, const Result *exact, const Packed *p,
                    double tolerance, const char *name)
{
    gsize rows = (gsize)p->rows;
    double logits = apart(r->logits, want->logits, rows * GOLDEN_VOCAB);
    double logp = apart(r->logp, want->logp, rows);
    double entropy = apart(r->entropy, want->entropy, rows);
    double grads = apart(r->grads, want->grads, want->count);
    double one = apart(want->grads, exact->grads, want->count);
    double many = apart(r->grads, exact->grads, want->count);

    g_test_message("%s: logits %.1e, log-probabilities %.1e, entropy %.1e, gradients %.1e; to f64 "
                   "%.1e, one rank %.1e",
                   name, logits, logp, entropy, grads, many, one);
    g_assert_cmpfloat(logits, <, tolerance);
    g_assert_cmpfloat(logp, <, tolerance);
    g_assert_cmpfloat(entropy, <, tolerance);
    g_assert_true(grads < tolerance || many < 2 * one);
    g_assert_cmpfloat(fabs(r->loss / want->loss - 1), <, 10 * tolerance);
}

static const Layout layouts[] = {
    {.tp = 2},
    {.dp = 2},
    {.dp = 3},
    {.ep = 2, .dp = 2},
    {.ep = 4, .dp = 4},
    {.tp = 2, .dp = 2},
    {.tp = 2, .ep = 2, .dp = 2},
    {.ep = 2, .dp = 4},
    {.sp = 2},
    {.sp = 4},
    {.sp = 8},
    {.sp = 2, .dp = 2},
    {.tp = 2, .sp = 2},
    {.tp = 2, .sp = 4},
    {.ep = 2, .sp = 4},
    {.tp = 2, .ep = 2, .dp = 2, .sp = 2},
};

/* What one rank makes of case n in f64: the same for both tests. */
static const Result *exact_of(guint n, const Packed *p)
{
    static Result *kept[ROUNDS * G_N_ELEMENTS(layouts)];

    if (!kept[n]) {
        g_autoptr(Model) f64 = lab_golden_model(&ops_ref_f64, WEIGHT_REAL, CHUNK);

        kept[n] = alone(f64, p);
    }
    return kept[n];
}

static void check_layouts(const Ops *ops, double tolerance)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) whole = lab_golden_model(ops, WEIGHT_REAL, CHUNK);

    for (guint n = 0; n < ROUNDS * G_N_ELEMENTS(layouts); n++) {
        guint i = n % G_N_ELEMENTS(layouts);
        g_autofree char *name = NULL;
        Layout l;
        Packed p;
        const Result *exact;
        Result *own, *got;

        packed_fill(&p, n + 1);
        g_assert_true(layout_check(&whole->config, &layouts[i], &l, &error));
        name = g_strdup_printf("%s, tp %u ep %u dp %u sp %u", ops->name, l.tp, l.ep, l.dp, l.sp);
        exact = exact_of(n, &p);
        own = ops->real == OPS_F64 ? NULL : alone(whole, &p);
        got = shared(whole, &p, &l,
                     (n + n / G_N_ELEMENTS(layouts)) % 2 ? ACTS_KEEP_INPUTS : ACTS_KEEP_ALL, n);
        compare(got, own ? own : exact, exact, &p, tolerance, name);
        result_free(own);
        result_free(got);
    }
}

static void test_f64(void)
{
    check_layouts(&ops_ref_f64, 1e-10);
}

static void test_f32(void)
{
    check_layouts(ops_cpu(), 1e-6);
}

/* ---- processes ---- */

/* The rank's rows and its part of every gradient against what one rank makes of all. */
static void compare_own(const Model *part, const Model *whole, const Params *grads,
                        const Result *got, const Result *want, int from, int to)
{
    const ModelConfig *c = &part->config;
    gsize real = ops_real_size(whole->ops->real);
    g_autoptr(Params) all = params_new(whole, NULL);
    double off = 0, norm = 0;

    for (int t = from; t < to; t++)
        g_assert_cmpfloat(fabs(got->logp[t] / want->logp[t] - 1), <, 1e-10);
    g_assert_cmpuint(all->count, ==, want->count);
    memcpy(all->data, want->grads, want->count * sizeof(double));
    for (guint i = 0; i < tensors_count(c); i++) {
        TensorInfo t = tensors_info(c, i);
        g_autofree double *cut = g_new0(double, t.count);
        const double *own = params_at(grads, i);

        layout_copy(&whole->config, c, &t, params_at(all, layout_tensor(&whole->config, c, &t)),
                    cut, real, LAYOUT_CUT);
        for (gsize j = 0; j < t.count; j++) {
            off += (own[j] - cut[j]) * (own[j] - cut[j]);
            norm += cut[j] * cut[j];
        }
    }
    g_assert_cmpfloat(sqrt(off / norm), <, 1e-10);
}

static void process_layout(Comm *world, const Layout *layout, guint seed)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Model) whole = lab_golden_model(&ops_ref_f64, WEIGHT_REAL, CHUNK);
    g_autoptr(Model) part = part_of(whole, layout, world);
    g_autoptr(Params) grads = NULL;
    Result *got = g_new0(Result, 1), *want;
    int from, to;
    Packed p;

    packed_fill(&p, seed);
    want = alone(whole, &p);
    grads = params_new(part, &error);
    rows_of(part, layout, &p, seed, &from, &to);
    pass(got, part, &p, from, to, ACTS_KEEP_ALL, grads);
    sum_gradients(part, grads);
    g_assert_false(comm_failed(world, NULL));
    compare_own(part, whole, grads, got, want, from, to);
    layout_groups_clear(&part->groups);
    result_free(want);
    result_free(got);
}

/* One of the ranks that mpirun started: every layout of as many ranks. */
static int be_rank(void)
{
    CommFail fail;
    Comm *world = comm_launched(30, &fail);
    guint done = 0;

    g_assert_nonnull(world);
    comm_timeout(world, 30);
    for (guint i = 0; i < G_N_ELEMENTS(layouts); i++) {
        ModelConfig config;
        Layout l;

        lab_golden_config(&config, CHUNK);
        g_assert_true(layout_check(&config, &layouts[i], &l, NULL));
        if (layout_ranks(&l) != (guint)world->size)
            continue;
        process_layout(world, &l, i + 1);
        done++;
    }
    if (world->rank == 0)
        printf("%u layouts hold on %d ranks\n", done, world->size);
    comm_close(world);
    return 0;
}

static char *self;

static void test_processes(gconstpointer ranks)
{
    g_autofree char *output = NULL, *want = NULL;
    int status;

    if (!lab_mpirun(ranks, self, "rank", &output, &status))
        return;
    want = g_strdup_printf("layouts hold on %s ranks", (const char *)ranks);
    g_test_message("%s", output);
    g_assert_cmpint(status, ==, 0);
    g_assert_nonnull(strstr(output, want));
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "rank"))
        return be_rank();
    self = argv[0];
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/layouts/f64", test_f64);
    g_test_add_func("/layouts/f32", test_f32);
    g_test_add_data_func("/layouts/processes/2", "2", test_processes);
    g_test_add_data_func("/layouts/processes/4", "4", test_processes);
    return g_test_run();
}
