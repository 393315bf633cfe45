/*
 * The CUDA backend's source over the shim (kernels/cuemu), against the oracle in f64.
 *
 * Invariants
 *  1. Each case gives equal bits whether blocks, warps and lanes run first to last or the other way
 *     round.
 *  2. A kernel without one of its barriers is seen: it leaves the oracle, or changes bits between
 *     the two orders, or crashes.
 *
 * Not here: anything that a card alone shows (tests/gpu.sh).
 */
#include "kernels/cuda/entry.h"
#include "kernels/cuemu/sites.h"
#include "tests/kernels/lab.h"

#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- against the oracle, in both orders ---- */

static GArray *run_in_order(guint n, int rows, WeightFormat format, int last_first)
{
    GArray *got;

    cuemu_reverse(last_first);
    got = lab_run(n, cuda_ops(), rows, format);
    cuemu_reverse(0);
    return got;
}

static gboolean same_bits(const GArray *a, const GArray *b)
{
    return a->len == b->len &&
           (a->len == 0 || memcmp(a->data, b->data, a->len * sizeof(double)) == 0);
}

/* Inputs have a bf16 of their own, so only what experts hand on is rounded where weights are. */
static double tolerance(guint n, WeightFormat format)
{
    return format != WEIGHT_REAL && strstr(lab_cases[n].name, "expert") ? 5e-3 : 1e-5;
}

/* How far the case is from the oracle; infinity where the two orders differ. */
static double off_by(guint n, int rows, WeightFormat format)
{
    WeightFormat exact = format <= WEIGHT_BF16 ? WEIGHT_REAL : format;
    g_autoptr(GArray) want = lab_run(n, &ops_ref_f64, rows, exact);
    g_autoptr(GArray) first = run_in_order(n, rows, format, 0), last = NULL;
    double off = lab_distance(first, want);

    if (!(off <= tolerance(n, format)))
        return off;
    last = run_in_order(n, rows, format, 1);
    return same_bits(first, last) ? off : INFINITY;
}

static void check_case(guint n, int rows, WeightFormat format)
{
    double off = off_by(n, rows, format);

    g_test_message("%s, %d rows, format %d: off by %g", lab_cases[n].name, rows, format, off);
    if (!(off <= tolerance(n, format)))
        g_error("%s, %d rows, format %d: off by %g", lab_cases[n].name, rows, format, off);
}

/* Rows that end within a tile, or just behind one; packed weights in bf16 once more. */
static void test_case(gconstpointer data)
{
    static const int rows[] = {0, 1, 7, 131};
    guint n = GPOINTER_TO_UINT(data);

    for (guint i = 0; i < G_N_ELEMENTS(rows) && (i == 0 || !lab_cases[n].fixed); i++)
        check_case(n, rows[i], WEIGHT_REAL);
    if (lab_cases[n].weights)
        check_case(n, 66, WEIGHT_BF16);
    for (int format = WEIGHT_INT8; format < WEIGHT_FORMATS && lab_cases[n].weights; format++)
        check_case(n, 7, (WeightFormat)format);
}

/* ---- codes ---- */

/* The product with codes is, bit for bit, that with the bf16 matrix of what they stand for. */
static void test_codes(void)
{
    enum { N = 133, K = 270, T = 3 };
    const Ops *ops = cuda_ops();
    Lab lab = {.ops = ops, .own = g_ptr_array_new_with_free_func(ops->memory_free)};
    float *rows = lab_in(&lab, N * K, 1), *x = lab_in(&lab, T * K, 1);
    float *values = lab_out(&lab, N * K), *want = lab_out(&lab, T * N), *got = lab_out(&lab, T * N);

    for (int format = WEIGHT_INT8; format < WEIGHT_FORMATS; format++) {
        OpsWeight w = {.n = N, .k = K, .format = (WeightFormat)format}, plain = w;

        plain.format = WEIGHT_BF16;
        w.data = lab_room(&lab, ops->weight_bytes(w.format, N, K));
        plain.data = lab_room(&lab, ops->weight_bytes(plain.format, N, K));
        ops->weight_pack(&w, rows);
        ops->weight_unpack(values, &w);
        ops->weight_pack(&plain, values);
        ops->gemm_fwd(want, x, &plain, T, GEMM_ROUNDED);
        ops->gemm_fwd(got, x, &w, T, GEMM_ROUNDED);
        g_assert_true(memcmp(got, want, sizeof(float) * T * N) == 0);
    }
    g_ptr_array_unref(lab.own);
}

/* ---- terms of a product ---- */

enum { WIDE_K = 150, WIDE_N = 9, WIDE_T = 5 };

/* A number that has no bf16 of its own, in every format exactly as in f32. */
static void fill_fine(float *to, gsize n, guint seed)
{
    for (gsize i = 0; i < n; i++)
        to[i] = (float)(lab_number(seed, i) + lab_number(seed + 1, i) / 300 +
                        lab_number(seed + 2, i) / 90000);
}

/* |y - W x| / |W x| of the table, W in f32. */
static double product_error(GemmPrecision precision)
{
    static float x[WIDE_T * WIDE_K], rows[WIDE_N * WIDE_K], y[WIDE_T * WIDE_N];
    g_autofree void *data = g_malloc0(cuda_ops()->weight_bytes(WEIGHT_REAL, WIDE_N, WIDE_K));
    OpsWeight w = {.data = data, .n = WIDE_N, .k = WIDE_K, .format = WEIGHT_REAL};
    double off = 0, all = 0;

    fill_fine(x, G_N_ELEMENTS(x), 5);
    fill_fine(rows, G_N_ELEMENTS(rows), 15);
    cuda_ops()->weight_pack(&w, rows);
    cuda_ops()->gemm_fwd(y, x, &w, WIDE_T, precision);
    for (int t = 0; t < WIDE_T; t++)
        for (int n = 0; n < WIDE_N; n++) {
            double sum = 0;

            for (int k = 0; k < WIDE_K; k++)
                sum += (double)x[t * WIDE_K + k] * (double)rows[n * WIDE_K + k];
            off += (y[t * WIDE_N + n] - sum) * (y[t * WIDE_N + n] - sum);
            all += sum * sum;
        }
    return sqrt(off / all);
}

static void test_terms(void)
{
    double rounded = product_error(GEMM_ROUNDED), exact = product_error(GEMM_EXACT);

    g_test_message("f32 weights: two terms off by %g, three by %g", rounded, exact);
    g_assert_cmpfloat(rounded, <, 1e-5);
    g_assert_cmpfloat(exact, <, 6e-7);
}

/* ---- a row's bits do not depend on the rows around it ---- */

typedef struct {
    OpsHeads s;
    Lab lab;
    int rows;
    float *q, *k, *v, *qkv, *decay;
} Sequence;

static void attend(Sequence *q, float *o, void **pages, int from, int to)
{
    OpsSpan span = {.row0 = from, .rows = to - from, .pos0 = from, .pages = pages};

    cuda_ops()->attn_fwd(o, NULL, q->q, q->k, q->v, &span, 1, 0, q->s);
}

static void light(Sequence *q, float *o, float *state, void *open, int from, int to)
{
    OpsSpan span = {.row0 = from,
                    .rows = to - from,
                    .pos0 = from,
                    .state_in = from >= q->s.chunk ? state : NULL,
                    .state_out = state,
                    .open = open};

    cuda_ops()->lightning_fwd(o, q->qkv, &span, 1, 0, 0, q->decay, q->s);
}

/* The sequence in calls of `piece` rows: attention and lightning attention behind one another. */
static float *in_pieces(Sequence *q, int piece)
{
    gsize d = (gsize)q->s.dim, o_size = (gsize)q->rows * q->s.heads * d;
    gsize page = 2 * (gsize)q->s.kv_heads * d * q->s.chunk;
    float *o = lab_out(&q->lab, 2 * o_size);
    void **pages = lab_blocks(&q->lab, (gsize)q->rows / q->s.chunk + 1, page);
    float *state = lab_out(&q->lab, (gsize)q->s.heads * d * d);
    void *open = lab_out(&q->lab, 2 * (gsize)q->s.heads * d * q->s.chunk);

    for (int from = 0; from < q->rows; from += piece) {
        int to = MIN(from + piece, q->rows);

        attend(q, o, pages, from, to);
        light(q, o + o_size, state, open, from, to);
    }
    return o;
}

static void test_pieces(void)
{
    static const int pieces[] = {1, 5, 16, 70, 140};
    Sequence q = {
        .s = {.heads = 4, .kv_heads = 2, .dim = 24, .chunk = 16},
        .lab = {.ops = cuda_ops(), .own = g_ptr_array_new_with_free_func(cuda_ops()->memory_free)},
        .rows = 150};
    gsize n = (gsize)q.rows * q.s.heads * q.s.dim;
    float *whole;

    q.q = lab_in(&q.lab, n, 2);
    q.k = lab_in(&q.lab, n, 2);
    q.v = lab_in(&q.lab, n, 1);
    q.qkv = lab_in(&q.lab, 3 * n, 1);
    q.decay = lab_decay(&q.lab, q.s);
    whole = in_pieces(&q, q.rows);
    for (guint i = 0; i < G_N_ELEMENTS(pieces); i++)
        g_assert_true(memcmp(in_pieces(&q, pieces[i]), whole, 2 * n * sizeof(float)) == 0);
    g_ptr_array_unref(q.lab.own);
}

/* ---- a long context, in as many launches as there is room for ---- */

enum { DEEP_HEADS = 70, DEEP_CHUNK = 32, DEEP = 1100, DEEP_PAGES = DEEP / DEEP_CHUNK + 1 };

/* One row at position DEEP of n sequences of one context, page by page the same. */
static float *deep_rows(const Ops *ops, Lab *lab, int n)
{
    const OpsHeads s = {.heads = DEEP_HEADS, .kv_heads = DEEP_HEADS, .dim = 2, .chunk = DEEP_CHUNK};
    gsize row = (gsize)s.heads * s.dim;
    float *one = lab_in(lab, 3 * row, 2), *in = lab_out(lab, 3 * row * n),
          *o = lab_out(lab, row * n);
    void **pages = lab_room(lab, DEEP_PAGES * sizeof(void *));
    OpsSpan spans[2];

    for (int i = 0; i < 3 * n; i++)
        memcpy(in + i * row, one + i / n * row, row * sizeof(float));
    for (int i = 0; i < DEEP_PAGES; i++)
        pages[i] = lab_in(lab, 2 * row * s.chunk, 2);
    for (int i = 0; i < n; i++)
        spans[i] = (OpsSpan){.row0 = i, .rows = 1, .pos0 = DEEP, .pages = pages};
    ops->attn_fwd(o, NULL, in, in + n * row, in + 2 * n * row, spans, n, 0, s);
    return o;
}

/* Two sequences leave room for half as many pieces at once. */
static void test_deep(void)
{
    Lab lab = {.ops = cuda_ops(), .own = g_ptr_array_new_with_free_func(cuda_ops()->memory_free)};
    gsize row = DEEP_HEADS * 2;
    float *alone = deep_rows(lab.ops, &lab, 1), *both, *want;

    lab.seed = 0;
    both = deep_rows(lab.ops, &lab, 2);
    lab.seed = 0;
    want = deep_rows(&ops_ref_f32, &lab, 1);
    g_assert_true(memcmp(alone, both, row * sizeof(float)) == 0);
    g_assert_true(memcmp(alone, both + row, row * sizeof(float)) == 0);
    for (gsize i = 0; i < row; i++)
        g_assert_cmpfloat_with_epsilon(alone[i], want[i], 2e-5);
    g_ptr_array_unref(lab.own);
}

/* ---- barriers ---- */

enum { SOME = 66 };

static gboolean case_shows(guint n, WeightFormat format)
{
    return !(off_by(n, SOME, format) <= tolerance(n, format));
}

static void quiet(void)
{
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

    if (null >= 0) {
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
    }
}

/* In a process of its own, since a kernel without a barrier may read through poison. */
static gboolean missing_is_seen(guint n, WeightFormat format, CuemuSite *site)
{
    int status = 0;
    pid_t child = fork();

    g_assert_cmpint(child, >=, 0);
    if (child == 0) {
        quiet();
        site->skipped = 1;
        _exit(case_shows(n, format) ? 1 : 0);
    }
    g_assert_cmpint(waitpid(child, &status, 0), ==, child);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

/* A case that meets a barrier. */
typedef struct {
    CuemuSite *site;
    guint n;
    WeightFormat format;
} Meeting;

static void note_meetings(GArray *meetings, guint n, WeightFormat format)
{
    for (CuemuSite *site = cuemu_sites(); site; site = site->next)
        site->hits = 0;
    g_array_unref(run_in_order(n, SOME, format, 0));
    for (CuemuSite *site = cuemu_sites(); site; site = site->next) {
        Meeting meeting = {site, n, format};

        if (site->hits > 0)
            g_array_append_val(meetings, meeting);
    }
}

static gboolean some_case_shows(const GArray *meetings, const CuemuSite *site)
{
    for (guint i = 0; i < meetings->len; i++) {
        const Meeting *m = &g_array_index(meetings, Meeting, i);

        if (m->site == site && missing_is_seen(m->n, m->format, m->site))
            return TRUE;
    }
    return FALSE;
}

static void test_barriers(void)
{
    g_autoptr(GArray) meetings = g_array_new(FALSE, FALSE, sizeof(Meeting));
    guint n_sites = 0;

#ifdef __SANITIZE_ADDRESS__
    g_test_skip("a plain build shows it faster");
    return;
#endif
    for (guint n = 0; n < lab_n_cases; n++) {
        note_meetings(meetings, n, WEIGHT_REAL);
        if (lab_cases[n].weights)
            note_meetings(meetings, n, WEIGHT_BF16);
    }
    for (CuemuSite *site = cuemu_sites(); site; site = site->next, n_sites++)
        if (!some_case_shows(meetings, site))
            g_error("%s:%d: no case shows that this barrier is missing", site->file, site->line);
    g_test_message("%u barriers, each left out once", n_sites);
    g_assert_cmpuint(n_sites, >, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (guint i = 0; i < lab_n_cases; i++) {
        g_autofree char *path = g_strdup_printf("/cuda_emu/%s", lab_cases[i].name);

        g_test_add_data_func(path, GUINT_TO_POINTER(i), test_case);
    }
    g_test_add_func("/cuda_emu/terms_of_f32", test_terms);
    g_test_add_func("/cuda_emu/codes_as_the_bf16_of_their_values", test_codes);
    g_test_add_func("/cuda_emu/a_sequence_in_pieces_has_the_same_bits", test_pieces);
    g_test_add_func("/cuda_emu/a_long_context_in_any_number_of_launches", test_deep);
    g_test_add_func("/cuda_emu/every_barrier_is_needed", test_barriers);
    return g_test_run();
}
