/*
 * Every op of every table that this machine runs, against the oracle in f64: odd sizes, no or one
 * row, outputs that begin as NaN. A case is a function from an op table to numbers; inputs are made
 * from a seed and are the same in every type, exactly.
 */
#include "kernels/ops.h"

#include "kernels/cpu/tables.h"

#include <glib.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* ---- arrays of the table's type ---- */

typedef struct {
    const Ops *ops;
    int rows;
    WeightFormat format;
    guint seed;
    GArray *out;    /* double: what the op gave */
    GPtrArray *own; /* everything allocated */
} Lab;

/* A number in (-1, 1) that has a bf16 of its own. */
static double number(guint seed, gsize i)
{
    guint64 h = (seed * 0x9e3779b97f4a7c15ull) ^ ((i + 1) * 0xbf58476d1ce4e5b9ull);

    h = (h ^ (h >> 31)) * 0x94d049bb133111ebull;
    h ^= h >> 29;
    return (double)bf16_float(bf16_of((float)((double)(h >> 11) / 4503599627370496.0 - 1)));
}

static void *room(Lab *lab, gsize bytes)
{
    void *at = NULL;

    g_assert_cmpint(posix_memalign(&at, 64, bytes + 64), ==, 0);
    g_ptr_array_add(lab->own, at);
    return memset(at, 0, bytes + 64);
}

static void put(const Lab *lab, void *array, gsize i, double x)
{
    if (lab->ops->real == OPS_F64)
        ((double *)array)[i] = x;
    else
        ((float *)array)[i] = (float)x;
}

static double get(const Lab *lab, const void *array, gsize i)
{
    return lab->ops->real == OPS_F64 ? ((const double *)array)[i]
                                     : (double)((const float *)array)[i];
}

static void *in(Lab *lab, gsize n, double scale)
{
    void *array = room(lab, n * sizeof(double));

    lab->seed++;
    for (gsize i = 0; i < n; i++)
        put(lab, array, i, scale * number(lab->seed, i));
    return array;
}

/* An output, poisoned: what an op leaves unwritten is seen. */
static void *out(Lab *lab, gsize n)
{
    void *array = room(lab, n * sizeof(double));

    for (gsize i = 0; i < n; i++)
        put(lab, array, i, NAN);
    return array;
}

static void *zeros(Lab *lab, gsize n)
{
    return room(lab, n * sizeof(double));
}

static void keep(Lab *lab, const void *array, gsize n)
{
    for (gsize i = 0; i < n; i++) {
        double x = get(lab, array, i);

        g_array_append_val(lab->out, x);
    }
}

static OpsWeight weight(Lab *lab, int n, int k)
{
    OpsWeight w = {.n = n, .k = k, .format = lab->format};

    w.data = room(lab, lab->ops->weight_bytes(w.format, n, k));
    lab->ops->weight_pack(&w, in(lab, (gsize)n * k, 0.5));
    return w;
}

static int *ids(Lab *lab, int n, int most)
{
    int *list = room(lab, (gsize)n * sizeof(int));

    lab->seed++;
    for (int i = 0; i < n; i++)
        list[i] = (int)((number(lab->seed, (gsize)i) + 1) / 2 * most) % most;
    return list;
}

/* ---- cases: dense ops ---- */

enum { WIDTH = 37, WIDE = 83 };

static void case_weight(Lab *lab)
{
    OpsWeight w = weight(lab, WIDE, WIDTH);
    void *rows = out(lab, WIDE * WIDTH);

    lab->ops->weight_unpack(rows, &w);
    keep(lab, rows, WIDE * WIDTH);
}

static void case_embed(Lab *lab)
{
    OpsWeight w = weight(lab, WIDE, WIDTH);
    gsize n = (gsize)lab->rows * WIDTH;
    int *id = ids(lab, lab->rows, WIDE);
    void *y = out(lab, n), *dw = in(lab, WIDE * WIDTH, 1);

    lab->ops->embed_fwd(y, &w, id, lab->rows);
    keep(lab, y, n);
    lab->ops->embed_bwd(dw, in(lab, n, 1), id, lab->rows, WIDTH);
    keep(lab, dw, WIDE * WIDTH);
}

static void case_rmsnorm(Lab *lab)
{
    gsize n = (gsize)lab->rows * WIDTH;
    void *x = in(lab, n, 3), *w = in(lab, WIDTH, 1), *y = out(lab, n), *r = out(lab, lab->rows);
    void *dx = out(lab, n), *dw = in(lab, WIDTH, 1);

    lab->ops->rmsnorm_fwd(y, r, x, w, lab->rows, WIDTH, 1e-5);
    lab->ops->rmsnorm_bwd(dx, dw, in(lab, n, 1), x, r, w, lab->rows, WIDTH);
    keep(lab, y, n);
    keep(lab, r, lab->rows);
    keep(lab, dx, n);
    keep(lab, dw, WIDTH);
}

static void case_gatenorm(Lab *lab)
{
    gsize n = (gsize)lab->rows * WIDTH;
    void *o = in(lab, n, 3), *g = in(lab, n, 4), *w = in(lab, WIDTH, 1);
    void *y = out(lab, n), *r = out(lab, lab->rows), *dh = out(lab, n), *dg = out(lab, n);
    void *dw = in(lab, WIDTH, 1);

    lab->ops->gatenorm_fwd(y, r, o, g, w, lab->rows, WIDTH, 1e-6);
    lab->ops->gatenorm_bwd(dh, dg, dw, in(lab, n, 1), o, g, r, w, lab->rows, WIDTH);
    keep(lab, y, n);
    keep(lab, dh, n);
    keep(lab, dg, n);
    keep(lab, dw, WIDTH);
}

static void case_elementwise(Lab *lab)
{
    gsize n = (gsize)lab->rows * 1031;
    void *z = in(lab, n, 20), *y = out(lab, n), *dz = out(lab, n), *sum = in(lab, n, 1);

    lab->ops->silu_fwd(y, z, n);
    lab->ops->silu_bwd(dz, in(lab, n, 1), z, n);
    lab->ops->axpby(sum, 3.5, z, -0.25, n);
    keep(lab, y, n);
    keep(lab, dz, n);
    keep(lab, sum, n);
}

static void case_gemm(Lab *lab)
{
    static const int shapes[][2] = {{1, 1}, {5, 7}, {9, 545}, {WIDE, WIDTH}, {257, 130}, {16, 64}};

    for (guint i = 0; i < G_N_ELEMENTS(shapes); i++) {
        int n = shapes[i][0], k = shapes[i][1];
        OpsWeight w = weight(lab, n, k);
        gsize ys = (gsize)lab->rows * n, xs = (gsize)lab->rows * k;
        void *x = in(lab, xs, 1), *y = out(lab, ys), *dy = in(lab, ys, 1), *dx = out(lab, xs);
        void *more = in(lab, xs, 1), *dw = in(lab, (gsize)n * k, 1);

        lab->ops->gemm_fwd(y, x, &w, lab->rows, i % 2 ? GEMM_EXACT : GEMM_ROUNDED);
        lab->ops->gemm_dx(dx, dy, &w, lab->rows, 0);
        lab->ops->gemm_dx(more, dy, &w, lab->rows, 1);
        lab->ops->gemm_dw(dw, dy, x, lab->rows, n, k);
        keep(lab, y, ys);
        keep(lab, dx, xs);
        keep(lab, more, xs);
        keep(lab, dw, (gsize)n * k);
    }
}

static void case_rope(Lab *lab)
{
    static const double freq[] = {1, 0.25, 0.01};
    gsize n = (gsize)lab->rows * 3 * 9;
    int64_t *positions = room(lab, (gsize)lab->rows * sizeof(int64_t));
    void *x = in(lab, n, 1);

    for (int t = 0; t < lab->rows; t++)
        positions[t] = t * 3;
    lab->ops->rope(x, positions, freq, 3, lab->rows, 3, 9, 1);
    keep(lab, x, n);
    lab->ops->rope(x, positions, freq, 3, lab->rows, 3, 9, -1);
    keep(lab, x, n);
}

static void case_logprob(Lab *lab)
{
    gsize n = (gsize)lab->rows * WIDE;
    int valid = WIDE - 6, *id = ids(lab, lab->rows, valid);
    void *logits = in(lab, n, 12), *logp = out(lab, lab->rows), *lse = out(lab, lab->rows);
    void *entropy = out(lab, lab->rows);

    lab->ops->logprob_fwd(logp, lse, entropy, logits, id, lab->rows, WIDE, valid, 0.7);
    keep(lab, logp, lab->rows);
    keep(lab, lse, lab->rows);
    keep(lab, entropy, lab->rows);
    lab->ops->logprob_bwd(logits, lse, id, in(lab, lab->rows, 1), in(lab, lab->rows, 1), entropy,
                          lab->rows, WIDE, valid, 0.7);
    keep(lab, logits, n);
    lab->ops->logprob_bwd(logits, lse, id, in(lab, lab->rows, 1), NULL, NULL, lab->rows, WIDE,
                          valid, 0.7);
    keep(lab, logits, n);
}

static void case_adamw(Lab *lab)
{
    gsize n = (gsize)lab->rows * 29;
    void *w = in(lab, n, 1), *m = in(lab, n, 0.1), *v = zeros(lab, n);
    AdamwStep step = {
        .lr = 0.1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .step = 3};

    for (gsize i = 0; i < n; i++)
        put(lab, v, i, fabs(number(99, i)) + 0.01);
    lab->ops->adamw(w, m, v, in(lab, n, 1), n, &step);
    keep(lab, w, n);
    keep(lab, m, n);
    keep(lab, v, n);
}

/* ---- cases: attention ---- */

static const OpsHeads shape = {.heads = 4, .kv_heads = 2, .dim = 20, .chunk = 8};

/* A prompt of two chunks, and two samples that go on from it; rows 0..15, 16..20, 21..31. */
enum { PROMPT = 16, FIRST = 5, SECOND = 11, ROWS = PROMPT + FIRST + SECOND, PAGES = 2 };

typedef struct {
    void *pages[3][4], *dpages[3][4];
    void *state[3], *open[3], *dstate[3], *dopen[3];
    OpsSpan spans[3];
    OpsSpanGrad grads[3];
} Family;

static Family *family(Lab *lab)
{
    static const int rows[] = {PROMPT, FIRST, SECOND}, row0[] = {0, PROMPT, PROMPT + FIRST};
    gsize page = (gsize)2 * shape.kv_heads * shape.dim * shape.chunk;
    gsize open = (gsize)2 * shape.heads * shape.dim * shape.chunk;
    gsize state = (gsize)shape.heads * shape.dim * shape.dim;
    Family *f = room(lab, sizeof *f);

    for (int s = 0; s < 3; s++) {
        for (int p = 0; p < 4; p++) {
            gboolean shared = s > 0 && p < PAGES;

            f->pages[s][p] = shared ? f->pages[0][p] : zeros(lab, page);
            f->dpages[s][p] = shared ? f->dpages[0][p] : zeros(lab, page);
        }
        f->state[s] = zeros(lab, state);
        f->open[s] = zeros(lab, open);
        f->dstate[s] = zeros(lab, state);
        f->dopen[s] = zeros(lab, open);
        f->spans[s] = (OpsSpan){.row0 = row0[s],
                                .rows = rows[s],
                                .pos0 = s ? PROMPT : 0,
                                .pages = f->pages[s],
                                .state_in = s ? f->state[0] : NULL,
                                .state_out = f->state[s],
                                .open = f->open[s]};
        f->grads[s] = (OpsSpanGrad){.dpages = f->dpages[s],
                                    .dstate_out = s ? NULL : f->dstate[0],
                                    .dstate_in = s ? f->dstate[0] : NULL,
                                    .dopen = f->dopen[s]};
    }
    return f;
}

static void case_attention(Lab *lab)
{
    Family *f = family(lab);
    gsize qs = (gsize)ROWS * shape.heads * shape.dim, ks = (gsize)ROWS * shape.kv_heads * shape.dim;
    void *q = in(lab, qs, 2), *k = in(lab, ks, 2), *v = in(lab, ks, 1), *up = in(lab, qs, 1);
    void *o = out(lab, qs), *lse = out(lab, ROWS * shape.heads);
    void *dq = out(lab, qs), *dk = out(lab, ks), *dv = out(lab, ks);

    lab->ops->attn_fwd(o, lse, q, k, v, f->spans, 3, 0, shape);
    lab->ops->attn_bwd(dq, dk, dv, up, o, lse, q, f->spans, f->grads, 3, 0, shape);
    keep(lab, o, qs);
    keep(lab, lse, ROWS * shape.heads);
    keep(lab, dq, qs);
    keep(lab, dk, ks);
    keep(lab, dv, ks);
}

static void *decay_table(Lab *lab, OpsHeads s)
{
    void *decay = zeros(lab, (gsize)s.heads * (s.chunk + 1));

    for (int h = 0; h < s.heads; h++)
        for (int n = 0; n <= s.chunk; n++)
            put(lab, decay, (gsize)h * (s.chunk + 1) + n, exp(-0.9 / (1 << 2 * (h % 8)) * n));
    return decay;
}

static void case_lightning(Lab *lab)
{
    Family *f = family(lab);
    gsize os = (gsize)ROWS * shape.heads * shape.dim;
    gsize states = (gsize)shape.heads * shape.dim * shape.dim;
    void *qkv = in(lab, 3 * os, 1), *o = out(lab, os), *up = in(lab, os, 1);
    void *dqkv = out(lab, 3 * os), *decay = decay_table(lab, shape),
         *scratch = out(lab, 8 * states);

    lab->ops->lightning_fwd(o, qkv, f->spans, 3, 0, 0, decay, shape);
    lab->ops->lightning_bwd(dqkv, up, qkv, f->spans, f->grads, 3, 0, 0, decay, shape, scratch);
    keep(lab, o, os);
    keep(lab, f->state[0], states);
    keep(lab, f->state[2], states);
    keep(lab, dqkv, 3 * os);
}

/* One sequence from position 0: blocks, pages and chunks that end anywhere. The second shape has
 * more query heads to a key-value head than a block takes. */
static const OpsHeads long_shapes[] = {{.heads = 4, .kv_heads = 2, .dim = 16, .chunk = 16},
                                       {.heads = 25, .kv_heads = 1, .dim = 5, .chunk = 32}};

static void **blocks(Lab *lab, gsize n, gsize elements)
{
    void **list = room(lab, (n + 1) * sizeof(void *));

    for (gsize i = 0; i < n; i++)
        list[i] = zeros(lab, elements);
    return list;
}

static void case_long_attention(Lab *lab)
{
    for (guint i = 0; i < G_N_ELEMENTS(long_shapes); i++) {
        OpsHeads s = long_shapes[i];
        gsize rows = (gsize)lab->rows, qs = rows * s.heads * s.dim, ks = rows * s.kv_heads * s.dim;
        gsize page = (gsize)2 * s.kv_heads * s.dim * s.chunk, n = rows / s.chunk + 1;
        OpsSpan span = {.rows = lab->rows, .pages = blocks(lab, n, page)};
        OpsSpanGrad grad = {.dpages = blocks(lab, n, page)};
        void *q = in(lab, qs, 2), *k = in(lab, ks, 2), *v = in(lab, ks, 1), *o = out(lab, qs);
        void *lse = out(lab, rows * s.heads), *dq = out(lab, qs), *dk = out(lab, ks);
        void *dv = out(lab, ks);

        lab->ops->attn_fwd(o, lse, q, k, v, &span, 1, 0, s);
        lab->ops->attn_bwd(dq, dk, dv, in(lab, qs, 1), o, lse, q, &span, &grad, 1, 0, s);
        keep(lab, o, qs);
        keep(lab, lse, rows * s.heads);
        keep(lab, dq, qs);
        keep(lab, dk, ks);
        keep(lab, dv, ks);
    }
}

static void case_long_lightning(Lab *lab)
{
    for (guint i = 0; i < G_N_ELEMENTS(long_shapes); i++) {
        OpsHeads s = long_shapes[i];
        gsize rows = (gsize)lab->rows, os = rows * s.heads * s.dim;
        gsize state = (gsize)s.heads * s.dim * s.dim;
        OpsSpan span = {.rows = lab->rows,
                        .state_out = zeros(lab, state),
                        .open = zeros(lab, (gsize)2 * s.heads * s.dim * s.chunk)};
        OpsSpanGrad grad = {.dstate_out = in(lab, state, 1), .dstate_in = zeros(lab, state)};
        void *qkv = in(lab, 3 * os, 1), *o = out(lab, os), *dqkv = out(lab, 3 * os);
        void *decay = decay_table(lab, s), *scratch = out(lab, (rows / s.chunk + 3) * state);

        lab->ops->lightning_fwd(o, qkv, &span, 1, 0, 0, decay, s);
        lab->ops->lightning_bwd(dqkv, in(lab, os, 1), qkv, &span, &grad, 1, 0, 0, decay, s,
                                scratch);
        keep(lab, o, os);
        keep(lab, span.state_out, state);
        keep(lab, dqkv, 3 * os);
        keep(lab, grad.dstate_in, state);
    }
}

/* ---- cases: experts ---- */

enum { EXPERTS = 6, TOPK = 2, FFN = 43 };

static MoePlan plan_of(Lab *lab, const int *choice)
{
    gsize n = (gsize)lab->rows * TOPK;
    MoePlan plan = {.offsets = room(lab, (EXPERTS + 1) * sizeof(int)),
                    .source = room(lab, n * sizeof(int)),
                    .slot = room(lab, n * sizeof(int)),
                    .order = room(lab, n * sizeof(int))};

    moe_plan(&plan, choice, lab->rows, TOPK, EXPERTS);
    return plan;
}

static void experts_on(Lab *lab, const int *choice, const void *route)
{
    gsize rows = (gsize)lab->rows, r = rows * TOPK;
    OpsWeight w[3][EXPERTS];
    void *dw[3][EXPERTS], *x = in(lab, rows * WIDTH, 1), *y = out(lab, rows * WIDTH);
    void *a = out(lab, r * FFN), *b = out(lab, r * FFN), *act = out(lab, r * FFN);
    void *outs = out(lab, r * WIDTH), *dx = out(lab, rows * WIDTH), *droute = out(lab, r);
    MoePlan plan = plan_of(lab, choice);
    MoeWeights mats = {w[0], w[1], w[2]};

    for (int e = 0; e < EXPERTS; e++)
        for (int i = 0; i < 3; i++) {
            w[i][e] = i < 2 ? weight(lab, FFN, WIDTH) : weight(lab, WIDTH, FFN);
            dw[i][e] = in(lab, FFN * WIDTH, 1);
        }
    lab->ops->moe_up_fwd(a, b, act, x, &plan, &mats);
    lab->ops->moe_down_fwd(y, outs, act, route, &plan, &mats);
    lab->ops->moe_bwd(dx, droute, dw[0], dw[1], dw[2], in(lab, rows * WIDTH, 1), x, a, b, act, outs,
                      route, &plan, &mats, out(lab, r * 2 * FFN), out(lab, r * WIDTH));
    keep(lab, y, rows * WIDTH);
    keep(lab, dx, rows * WIDTH);
    keep(lab, droute, r);
    for (int e = 0; e < EXPERTS; e++)
        for (int i = 0; i < 3; i++)
            keep(lab, dw[i][e], FFN * WIDTH);
}

static void case_experts(Lab *lab)
{
    gsize n = (gsize)lab->rows * TOPK;
    int *choice = room(lab, n * sizeof(int));
    void *z = in(lab, (gsize)lab->rows * EXPERTS, 2), *route = out(lab, n);
    void *dz = out(lab, (gsize)lab->rows * EXPERTS);

    lab->ops->route_fwd(choice, route, z, lab->rows, EXPERTS, TOPK);
    lab->ops->route_bwd(dz, in(lab, n, 1), choice, route, lab->rows, EXPERTS, TOPK);
    keep(lab, route, n);
    keep(lab, dz, (gsize)lab->rows * EXPERTS);
    experts_on(lab, choice, route);
}

/* All rows on the last two experts, the others empty. */
static void case_one_expert(Lab *lab)
{
    gsize n = (gsize)lab->rows * TOPK;
    int *choice = room(lab, n * sizeof(int));
    void *route = in(lab, n, 1);

    for (gsize i = 0; i < n; i++)
        choice[i] = EXPERTS - 1 - (int)(i % TOPK);
    experts_on(lab, choice, route);
}

/* ---- the tables against the oracle ---- */

static const struct {
    const char *name;
    void (*run)(Lab *lab);
} cases[] = {
    {"weight", case_weight},
    {"embed", case_embed},
    {"rmsnorm", case_rmsnorm},
    {"gatenorm", case_gatenorm},
    {"elementwise", case_elementwise},
    {"gemm", case_gemm},
    {"rope", case_rope},
    {"logprob", case_logprob},
    {"adamw", case_adamw},
    {"attention", case_attention},
    {"lightning", case_lightning},
    {"long_attention", case_long_attention},
    {"long_lightning", case_long_lightning},
    {"experts", case_experts},
    {"one_expert", case_one_expert},
};

static GArray *run_case(guint n, const Ops *ops, int rows, WeightFormat format)
{
    Lab lab = {.ops = ops, .rows = rows, .format = format, .seed = n * 1000};

    lab.out = g_array_new(FALSE, FALSE, sizeof(double));
    lab.own = g_ptr_array_new_with_free_func(free);
    cases[n].run(&lab);
    g_ptr_array_unref(lab.own);
    return lab.out;
}

/* |got - want| / |want|; NaN where an output was left unwritten. */
static double distance(const GArray *got, const GArray *want)
{
    double off = 0, all = 1e-30;

    g_assert_cmpuint(got->len, ==, want->len);
    for (guint i = 0; i < got->len; i++) {
        double x = g_array_index(got, double, i), y = g_array_index(want, double, i);

        off += (x - y) * (x - y);
        all += y * y;
    }
    return sqrt(off / all);
}

/* Products whose activations were rounded to bf16; the inputs of the plain ones have a bf16 of
 * their own, so only what experts hand on is rounded. */
static double tolerance(guint n, const Ops *ops, WeightFormat format)
{
    gboolean rounds = g_str_has_prefix(ops->name, "cpu-amx") && format == WEIGHT_BF16;

    return rounds && strstr(cases[n].name, "expert") ? 5e-3 : 1e-5;
}

static void compare(guint n, const Ops *ops)
{
    static const int rows[] = {0, 1, 2, 3, 7, 64, 131};

    for (guint i = 0; i < G_N_ELEMENTS(rows); i++)
        for (WeightFormat format = WEIGHT_REAL; format < WEIGHT_FORMATS; format++) {
            WeightFormat exact = format <= WEIGHT_BF16 ? WEIGHT_REAL : format;
            g_autoptr(GArray) want = run_case(n, &ops_ref_f64, rows[i], exact);
            g_autoptr(GArray) got = run_case(n, ops, rows[i], format);
            double off = distance(got, want);

            if (!(off <= tolerance(n, ops, format)))
                g_error("%s, %s, %d rows, format %d: off by %g", ops->name, cases[n].name, rows[i],
                        format, off);
        }
}

static const char *const isas[] = {"plain", "avx2", "avx512", "amx"};

static void test_case(gconstpointer data)
{
    guint n = GPOINTER_TO_UINT(data);
    Ops emulated;

    cpu_table_amx_emulated(&emulated);
    compare(n, &emulated);
    compare(n, &ops_ref_f32);
    for (guint i = 0; i < G_N_ELEMENTS(isas); i++) {
        Ops ops;

        if (ops_cpu_table(isas[i], &ops))
            compare(n, &ops);
        else
            g_test_message("%s: this machine cannot run it", isas[i]);
    }
}

/* ---- identities ---- */

static double dot(const double *a, const double *b, gsize rows, gsize stride, gsize from, gsize n)
{
    double sum = 0;

    for (gsize r = 0; r < rows; r++)
        for (gsize i = 0; i < n; i++)
            sum += a[r * stride + from + i] * b[r * stride + from + i];
    return sum;
}

/* Linear in q, k and v: dQ.Q = dK.K = dV.V = dO.O where the state begins at zero. */
static void test_lightning_identity(void)
{
    Lab lab = {.ops = &ops_ref_f64,
               .out = g_array_new(FALSE, FALSE, sizeof(double)),
               .own = g_ptr_array_new_with_free_func(free)};
    Family *f = family(&lab);
    gsize rows = (gsize)ROWS * shape.heads, d = shape.dim, os = rows * d;
    double *qkv = in(&lab, 3 * os, 1), *o = out(&lab, os), *up = in(&lab, os, 1);
    double *dqkv = out(&lab, 3 * os), *decay = decay_table(&lab, shape), want;

    lab.ops->lightning_fwd(o, qkv, f->spans, 3, 0, 0, decay, shape);
    lab.ops->lightning_bwd(dqkv, up, qkv, f->spans, f->grads, 3, 0, 0, decay, shape,
                           out(&lab, 8 * shape.heads * d * d));
    want = dot(up, o, rows, d, 0, d);
    for (gsize part = 0; part < 3; part++)
        g_assert_cmpfloat_with_epsilon(dot(dqkv, qkv, rows, 3 * d, part * d, d), want, 1e-9);
    g_array_unref(lab.out);
    g_ptr_array_unref(lab.own);
}

/* o_t = sum_j lambda^(t-j) (q_t . k_j) v_j, in a sample that continues a shared prompt. */
static void test_lightning_closed_form(void)
{
    Lab lab = {.ops = &ops_ref_f64,
               .out = g_array_new(FALSE, FALSE, sizeof(double)),
               .own = g_ptr_array_new_with_free_func(free)};
    Family *f = family(&lab);
    gsize d = shape.dim, row = 3 * (gsize)shape.heads * d, os = (gsize)ROWS * shape.heads * d;
    double *qkv = in(&lab, 3 * os, 1), *o = out(&lab, os), *decay = decay_table(&lab, shape);

    lab.ops->lightning_fwd(o, qkv, f->spans, 3, 0, 0, decay, shape);
    for (int h = 0; h < shape.heads; h++)
        for (int t = 0; t < PROMPT + SECOND; t++)
            for (gsize c = 0; c < d; c++) {
                int at = t < PROMPT ? t : t + FIRST;
                double lambda = decay[h * (shape.chunk + 1) + 1], sum = 0;

                for (int j = 0; j <= t; j++) {
                    const double *q = qkv + (gsize)at * row + (gsize)h * 3 * d;
                    const double *k =
                        qkv + (gsize)(j < PROMPT ? j : j + FIRST) * row + (gsize)h * 3 * d + d;
                    double qk = 0;

                    for (gsize i = 0; i < d; i++)
                        qk += q[i] * k[i];
                    sum += pow(lambda, t - j) * qk * k[d + c];
                }
                g_assert_cmpfloat_with_epsilon(o[((gsize)at * shape.heads + h) * d + c], sum, 1e-9);
            }
    g_array_unref(lab.out);
    g_ptr_array_unref(lab.own);
}

/* Runs of many pages each: the rows of one call against the last of them alone. */
static void long_rows(const Ops *ops)
{
    enum { TOKENS = 1300, LAST = 9 };
    const OpsHeads s = {.heads = 4, .kv_heads = 1, .dim = 8, .chunk = 8};
    Lab lab = {.ops = ops, .own = g_ptr_array_new_with_free_func(free)};
    gsize row = (gsize)s.heads * s.dim, n = TOKENS / s.chunk + 1;
    void **pages = blocks(&lab, n, (gsize)2 * s.dim * s.chunk);
    float *q = in(&lab, TOKENS * row, 2), *k = in(&lab, TOKENS * s.dim, 2);
    float *v = in(&lab, TOKENS * s.dim, 1), *all = out(&lab, TOKENS * row);
    float *one = out(&lab, TOKENS * row);
    OpsSpan span = {.rows = TOKENS, .pages = pages};
    int threads = omp_get_max_threads();

    ops->attn_fwd(all, NULL, q, k, v, &span, 1, 0, s);
    for (int t = TOKENS - LAST; t < TOKENS; t++) {
        span = (OpsSpan){.row0 = t, .rows = 1, .pos0 = t, .pages = pages};
        omp_set_num_threads(t % 3 + 1);
        ops->attn_fwd(one, NULL, q, k, v, &span, 1, 0, s);
        g_assert_true(memcmp(one + t * row, all + t * row, row * sizeof(float)) == 0);
    }
    omp_set_num_threads(threads);
    g_ptr_array_unref(lab.own);
}

static void test_long_rows(void)
{
    for (guint i = 0; i < G_N_ELEMENTS(isas); i++) {
        Ops ops;

        if (ops_cpu_table(isas[i], &ops))
            long_rows(&ops);
    }
}

static void test_ties(void)
{
    const double z[] = {1, 5, 5, 0, 5, 1}, flat[EXPERTS] = {0};
    double w[2];
    int id[2];

    ops_ref_f64.route_fwd(id, w, z, 1, EXPERTS, TOPK);
    g_assert_cmpint(id[0], ==, 1);
    g_assert_cmpint(id[1], ==, 2);
    g_assert_true(w[0] == 0.5 && w[1] == 0.5);
    ops_ref_f64.route_fwd(id, w, flat, 1, EXPERTS, TOPK);
    g_assert_cmpint(id[0], ==, 0);
    g_assert_cmpint(id[1], ==, 1);
}

/* L of route_balance_bwd's formula, the shares as the plan has them. */
static double balance_loss(const double *z, const MoePlan *plan, double scale)
{
    double sum = 0;

    for (int t = 0; t < plan->rows / TOPK; t++) {
        double all = 0;

        for (int e = 0; e < EXPERTS; e++)
            all += exp(z[t * EXPERTS + e]);
        for (int e = 0; e < EXPERTS; e++)
            sum += (plan->offsets[e + 1] - plan->offsets[e]) * exp(z[t * EXPERTS + e]) / all;
    }
    return scale * EXPERTS * sum / plan->rows / (plan->rows / TOPK);
}

static void test_balance(void)
{
    enum { FEW = 9 };
    double z[FEW * EXPERTS], dz[FEW * EXPERTS] = {0}, w[FEW * TOPK];
    int id[FEW * TOPK], offsets[EXPERTS + 1], source[FEW * TOPK], slot[FEW * TOPK];
    int order[FEW * TOPK];
    MoePlan plan = {.offsets = offsets, .source = source, .slot = slot, .order = order};

    for (int i = 0; i < FEW * EXPERTS; i++)
        z[i] = number(7, (gsize)i);
    ops_ref_f64.route_fwd(id, w, z, FEW, EXPERTS, TOPK);
    moe_plan(&plan, id, FEW, TOPK, EXPERTS);
    ops_ref_f64.route_balance_bwd(dz, z, &plan, 0.3);
    for (int i = 0; i < FEW * EXPERTS; i++) {
        double at = z[i], h = 1e-5, up, down;

        z[i] = at + h;
        up = balance_loss(z, &plan, 0.3);
        z[i] = at - h;
        down = balance_loss(z, &plan, 0.3);
        z[i] = at;
        g_assert_cmpfloat_with_epsilon(dz[i], (up - down) / (2 * h), 1e-9);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *path = g_strdup_printf("/ops/as_the_oracle/%s", cases[i].name);

        g_test_add_data_func(path, GUINT_TO_POINTER(i), test_case);
    }
    g_test_add_func("/ops/lightning/sums_of_gradients_are_equal", test_lightning_identity);
    g_test_add_func("/ops/lightning/the_closed_form", test_lightning_closed_form);
    g_test_add_func("/ops/route/the_loss_of_uneven_loads", test_balance);
    g_test_add_func("/ops/attention/a_long_context_has_the_same_bits_cut_and_shared_out",
                    test_long_rows);
    g_test_add_func("/ops/route/ties_go_to_the_lower_number", test_ties);
    return g_test_run();
}
