/*
 * The CUDA backend's source over the shim (kernels/cuemu), against the oracle in f64.
 *
 * Invariants
 *  1. Each case gives equal bits whether blocks, warps and lanes run first to last or the other way
 *     round, and equal bits with the kernels of sm_80 and with those of sm_90a.
 *  2. A kernel without one of its barriers, waits, arrivals or fences is seen: it leaves the
 *     oracle, or changes bits between the two orders, or crashes.
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

/* Compute capabilities, major.0. */
enum { AMPERE = 8, HOPPER = 9 };

/* Rows of more than one tile. */
enum { SOME = 66 };

/* Those that have a kernel of their own for sm_90a. */
static gboolean on_hopper(guint n)
{
    static const char *const names[] = {"gemm",           "attention",      "lightning",
                                        "long_attention", "deep_attention", "long_lightning",
                                        "experts",        "one_expert",     NULL};

    return g_strv_contains(names, lab_cases[n].name);
}

static GArray *run_in_order(guint n, int rows, WeightFormat format, int major, int last_first)
{
    GArray *got;

    cuemu_reverse(last_first);
    cuemu_capability(major);
    got = lab_run(n, cuda_ops(), rows, format);
    cuemu_capability(AMPERE);
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

/* Orders of blocks, warps and lanes that are compared; sanitizers see the same accesses in one. */
#ifdef __SANITIZE_ADDRESS__
#define ORDERS 1
#else
#define ORDERS 2
#endif

/* How far the case is from the oracle; infinity where orders differ. *got: its numbers. */
static double off_by(guint n, int rows, WeightFormat format, int major, GArray **got)
{
    WeightFormat exact = format <= WEIGHT_BF16 ? WEIGHT_REAL : format;
    g_autoptr(GArray) want = lab_run(n, &ops_ref_f64, rows, exact);
    g_autoptr(GArray) first = run_in_order(n, rows, format, major, 0);
    double off = lab_distance(first, want);

    *got = g_array_ref(first);
    for (int order = 1; order < ORDERS && off <= tolerance(n, format); order++) {
        g_autoptr(GArray) last = run_in_order(n, rows, format, major, order);

        off = same_bits(first, last) ? off : INFINITY;
    }
    return off;
}

/* `want`: what sm_80's kernels gave. */
static void check_hopper(guint n, int rows, WeightFormat format, const GArray *want)
{
    for (int order = 0; order < ORDERS; order++) {
        g_autoptr(GArray) got = run_in_order(n, rows, format, HOPPER, order);

        if (!same_bits(got, want))
            g_error("%s, %d rows, format %d: sm_90a has other bits than sm_80", lab_cases[n].name,
                    rows, format);
    }
}

static void check_case(guint n, int rows, WeightFormat format)
{
    g_autoptr(GArray) got = NULL;
    double off = off_by(n, rows, format, AMPERE, &got);

    g_test_message("%s, %d rows, format %d: off by %g", lab_cases[n].name, rows, format, off);
    if (!(off <= tolerance(n, format)))
        g_error("%s, %d rows, format %d: off by %g", lab_cases[n].name, rows, format, off);
    if (on_hopper(n) && (rows >= SOME || format > WEIGHT_BF16))
        check_hopper(n, rows, format, got);
}

/* Rows that end within a tile, or just behind one; packed weights in bf16 once more. */
static void test_case(gconstpointer data)
{
    static const int rows[] = {0, 1, 7, 131};
    guint n = GPOINTER_TO_UINT(data);

    for (guint i = 0; i < G_N_ELEMENTS(rows) && (i == 0 || !lab_cases[n].fixed); i++)
        check_case(n, rows[i], WEIGHT_REAL);
    if (lab_cases[n].weights)
        check_case(n, SOME, WEIGHT_BF16);
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

/* ---- which kernels run ---- */

static void test_choice(void)
{
    static const struct {
        int major;
        const char *asked, *name;
    } choices[] = {{AMPERE, NULL, "cuda"},
                   {HOPPER, NULL, "cuda-sm90"},
                   {HOPPER, "sm80", "cuda"},
                   {HOPPER + 1, NULL, "cuda"}};

    for (guint i = 0; i < G_N_ELEMENTS(choices); i++) {
        cuemu_capability(choices[i].major);
        if (choices[i].asked)
            g_setenv("ASSAY_CUDA", choices[i].asked, TRUE);
        g_assert_cmpstr(cuda_ops()->name, ==, choices[i].name);
        g_unsetenv("ASSAY_CUDA");
    }
    cuemu_capability(AMPERE);
}

/* ---- a row's bits do not depend on the rows around it ---- */

enum { BATCH = 19, BATCH_K = 70, BATCH_N = 5 };

static void product(float *y, const float *x, int rows, WeightFormat format,
                    GemmPrecision precision, int major)
{
    static float numbers[BATCH_N * BATCH_K];
    const Ops *ops;
    OpsWeight w = {.n = BATCH_N, .k = BATCH_K, .format = format};

    cuemu_capability(major);
    ops = cuda_ops();
    w.data = ops->memory_new(ops->weight_bytes(format, BATCH_N, BATCH_K));
    fill_fine(numbers, G_N_ELEMENTS(numbers), 15);
    ops->weight_pack(&w, numbers);
    ops->gemm_fwd(y, x, &w, rows, precision);
    ops->memory_free(w.data);
    cuemu_capability(AMPERE);
}

/* Few rows and many are cut differently on Hopper; numbers have all their terms. */
static void test_alone(void)
{
    static float x[BATCH * BATCH_K], want[BATCH * BATCH_N], got[BATCH * BATCH_N];

    fill_fine(x, G_N_ELEMENTS(x), 5);
    for (int which = 0; which < 4; which++) {
        WeightFormat format = which % 2 ? WEIGHT_BF16 : WEIGHT_REAL;
        GemmPrecision precision = which / 2 ? GEMM_EXACT : GEMM_ROUNDED;

        product(want, x, BATCH, format, precision, AMPERE);
        for (int major = AMPERE; major <= HOPPER; major++)
            for (int piece = 1; piece <= BATCH; piece += BATCH - 1) {
                for (int t = 0; t < BATCH; t += piece)
                    product(got + t * BATCH_N, x + t * BATCH_K, piece, format, precision, major);
                g_assert_cmpmem(got, sizeof got, want, sizeof want);
            }
    }
}

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
    for (int major = AMPERE; major <= HOPPER; major++) {
        cuemu_capability(major);
        for (guint i = 0; i < G_N_ELEMENTS(pieces); i++)
            g_assert_true(memcmp(in_pieces(&q, pieces[i]), whole, 2 * n * sizeof(float)) == 0);
    }
    cuemu_capability(AMPERE);
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
    float *alone = deep_rows(lab.ops, &lab, 1), *want;

    for (int major = AMPERE; major <= HOPPER; major++) {
        float *both;

        cuemu_capability(major);
        lab.seed = 0;
        both = deep_rows(cuda_ops(), &lab, 2);
        g_assert_true(memcmp(alone, both, row * sizeof(float)) == 0);
        g_assert_true(memcmp(alone, both + row, row * sizeof(float)) == 0);
    }
    cuemu_capability(AMPERE);
    lab.seed = 0;
    want = deep_rows(&ops_ref_f32, &lab, 1);
    for (gsize i = 0; i < row; i++)
        g_assert_cmpfloat_with_epsilon(alone[i], want[i], 2e-5);
    g_ptr_array_unref(lab.own);
}

/* ---- barriers ---- */

/* A case that meets a barrier. */
typedef struct {
    CuemuSite *site;
    guint n;
    WeightFormat format;
    int major;
} Meeting;

static gboolean case_shows(const Meeting *m)
{
    g_autoptr(GArray) got = NULL;

    return !(off_by(m->n, SOME, m->format, m->major, &got) <= tolerance(m->n, m->format));
}

/* Instances of a template have a site each for the same line. */
static gboolean same_line(const CuemuSite *a, const CuemuSite *b)
{
    return a->line == b->line && strcmp(a->file, b->file) == 0;
}

static void skip_line(const CuemuSite *line)
{
    for (CuemuSite *site = cuemu_sites(); site; site = site->next)
        site->skipped |= same_line(site, line);
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
static gboolean missing_is_seen(const Meeting *m)
{
    int status = 0;
    pid_t child = fork();

    g_assert_cmpint(child, >=, 0);
    if (child == 0) {
        quiet();
        skip_line(m->site);
        _exit(case_shows(m) ? 1 : 0);
    }
    g_assert_cmpint(waitpid(child, &status, 0), ==, child);
    return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

static void note_meetings(GArray *meetings, guint n, WeightFormat format, int major)
{
    for (CuemuSite *site = cuemu_sites(); site; site = site->next)
        site->hits = 0;
    g_array_unref(run_in_order(n, SOME, format, major, 0));
    for (CuemuSite *site = cuemu_sites(); site; site = site->next) {
        Meeting meeting = {site, n, format, major};

        if (site->hits > 0)
            g_array_append_val(meetings, meeting);
    }
}

static gboolean some_case_shows(const GArray *meetings, const CuemuSite *site)
{
    for (guint i = 0; i < meetings->len; i++) {
        const Meeting *m = &g_array_index(meetings, Meeting, i);

        if (same_line(m->site, site) && missing_is_seen(m))
            return TRUE;
    }
    return FALSE;
}

/* Whether an earlier site of the list is of the same line. */
static gboolean line_is_done(const CuemuSite *site)
{
    for (CuemuSite *other = cuemu_sites(); other != site; other = other->next)
        if (same_line(other, site))
            return TRUE;
    return FALSE;
}

static void test_barriers(void)
{
    g_autoptr(GArray) meetings = g_array_new(FALSE, FALSE, sizeof(Meeting));
    guint n_lines = 0;

#ifdef __SANITIZE_ADDRESS__
    g_test_skip("a plain build shows it faster");
    return;
#endif
    for (guint n = 0; n < lab_n_cases; n++)
        for (int format = WEIGHT_REAL; format <= (lab_cases[n].weights ? WEIGHT_BF16 : WEIGHT_REAL);
             format++)
            for (int major = AMPERE; major <= (on_hopper(n) ? HOPPER : AMPERE); major++)
                note_meetings(meetings, n, (WeightFormat)format, major);
    for (CuemuSite *site = cuemu_sites(); site; site = site->next) {
        if (line_is_done(site))
            continue;
        if (!some_case_shows(meetings, site))
            g_error("%s:%d: no case shows that this is missing", site->file, site->line);
        n_lines++;
    }
    g_test_message("%u lines with barriers, waits, arrivals or fences, each left out once",
                   n_lines);
    g_assert_cmpuint(n_lines, >, 0);
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
    g_test_add_func("/cuda_emu/the_card_says_which_kernels", test_choice);
    g_test_add_func("/cuda_emu/a_row_alone_has_the_same_bits", test_alone);
    g_test_add_func("/cuda_emu/a_sequence_in_pieces_has_the_same_bits", test_pieces);
    g_test_add_func("/cuda_emu/a_long_context_in_any_number_of_launches", test_deep);
    g_test_add_func("/cuda_emu/every_barrier_is_needed", test_barriers);
    return g_test_run();
}
