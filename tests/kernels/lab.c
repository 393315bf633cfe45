/*
 * Cases of the op table: a case is a function from a table to numbers.
 *
 * Invariants
 *  1. Inputs are made from a seed and are the same in every type, exactly.
 *  2. Outputs begin as NaN.
 *
 * Not here: what the numbers are held against.
 */
#include "tests/kernels/lab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* In the order of the header. */
const OpsHeads lab_shape = {.heads = 4, .kv_heads = 2, .dim = 20, .chunk = 8};

/* ---- arrays of the table's type ---- */

/* A number in (-1, 1) that has a bf16 of its own. */
double lab_number(guint seed, gsize i)
{
    guint64 h = (seed * 0x9e3779b97f4a7c15ull) ^ ((i + 1) * 0xbf58476d1ce4e5b9ull);

    h = (h ^ (h >> 31)) * 0x94d049bb133111ebull;
    h ^= h >> 29;
    return (double)bf16_float(bf16_of((float)((double)(h >> 11) / 4503599627370496.0 - 1)));
}

void *lab_room(Lab *lab, gsize bytes)
{
    void *at = NULL;

    if (lab->ops->memory_new)
        at = lab->ops->memory_new(bytes);
    else
        g_assert_cmpint(posix_memalign(&at, 64, bytes), ==, 0);
    g_assert_nonnull(at);
    g_ptr_array_add(lab->own, at);
    return memset(at, 0, bytes);
}

static void lab_put(const Lab *lab, void *array, gsize i, double x)
{
    if (lab->ops->real == OPS_F64)
        ((double *)array)[i] = x;
    else
        ((float *)array)[i] = (float)x;
}

static double lab_get(const Lab *lab, const void *array, gsize i)
{
    return lab->ops->real == OPS_F64 ? ((const double *)array)[i]
                                     : (double)((const float *)array)[i];
}

void *lab_in(Lab *lab, gsize n, double scale)
{
    void *array = lab_room(lab, n * sizeof(double));

    lab->seed++;
    for (gsize i = 0; i < n; i++)
        lab_put(lab, array, i, scale * lab_number(lab->seed, i));
    return array;
}

/* An output, poisoned: what an op leaves unwritten is seen. */
void *lab_out(Lab *lab, gsize n)
{
    void *array = lab_room(lab, n * sizeof(double));

    for (gsize i = 0; i < n; i++)
        lab_put(lab, array, i, NAN);
    return array;
}

void *lab_zeros(Lab *lab, gsize n)
{
    return lab_room(lab, n * sizeof(double));
}

/* From here on numbers may be read. */
static void lab_wait(Lab *lab)
{
    if (lab->later)
        lab->ops->end();
    lab->later = FALSE;
}

void lab_keep(Lab *lab, const void *array, gsize n)
{
    lab_wait(lab);
    for (gsize i = 0; i < n; i++) {
        double x = lab_get(lab, array, i);

        g_array_append_val(lab->out, x);
    }
}

static OpsWeight weight(Lab *lab, int n, int k)
{
    OpsWeight w = {.n = n, .k = k, .format = lab->format};

    w.data = lab_room(lab, lab->ops->weight_bytes(w.format, n, k));
    lab->ops->weight_pack(&w, lab_in(lab, (gsize)n * k, 0.5));
    return w;
}

static int *ids(Lab *lab, int n, int most)
{
    int *list = lab_room(lab, (gsize)n * sizeof(int));

    lab->seed++;
    for (int i = 0; i < n; i++)
        list[i] = (int)((lab_number(lab->seed, (gsize)i) + 1) / 2 * most) % most;
    return list;
}

/* ---- cases: dense ops ---- */

enum { WIDTH = 37, WIDE = 83 };

static void case_weight(Lab *lab)
{
    OpsWeight w = weight(lab, WIDE, WIDTH);
    void *rows = lab_out(lab, WIDE * WIDTH);

    lab->ops->weight_unpack(rows, &w);
    lab_keep(lab, rows, WIDE * WIDTH);
}

static void case_embed(Lab *lab)
{
    OpsWeight w = weight(lab, WIDE, WIDTH);
    gsize n = (gsize)lab->rows * WIDTH;
    int *id = ids(lab, lab->rows, WIDE);
    void *y = lab_out(lab, n), *dw = lab_in(lab, WIDE * WIDTH, 1);

    lab->ops->embed_fwd(y, &w, id, lab->rows);
    lab_keep(lab, y, n);
    lab->ops->embed_bwd(dw, lab_in(lab, n, 1), id, lab->rows, WIDTH);
    lab_keep(lab, dw, WIDE * WIDTH);
}

static void case_rmsnorm(Lab *lab)
{
    gsize n = (gsize)lab->rows * WIDTH;
    void *x = lab_in(lab, n, 3), *w = lab_in(lab, WIDTH, 1), *y = lab_out(lab, n),
         *r = lab_out(lab, lab->rows);
    void *dx = lab_out(lab, n), *dw = lab_in(lab, WIDTH, 1);

    lab->ops->rmsnorm_fwd(y, r, x, w, lab->rows, WIDTH, 1e-5);
    lab->ops->rmsnorm_bwd(dx, dw, lab_in(lab, n, 1), x, r, w, lab->rows, WIDTH);
    lab_keep(lab, y, n);
    lab_keep(lab, r, lab->rows);
    lab_keep(lab, dx, n);
    lab_keep(lab, dw, WIDTH);
}

static void case_gatenorm(Lab *lab)
{
    gsize n = (gsize)lab->rows * WIDTH;
    void *o = lab_in(lab, n, 3), *g = lab_in(lab, n, 4), *w = lab_in(lab, WIDTH, 1);
    void *y = lab_out(lab, n), *r = lab_out(lab, lab->rows), *dh = lab_out(lab, n),
         *dg = lab_out(lab, n);
    void *dw = lab_in(lab, WIDTH, 1);

    lab->ops->gatenorm_fwd(y, r, o, g, w, lab->rows, WIDTH, 1e-6);
    lab->ops->gatenorm_bwd(dh, dg, dw, lab_in(lab, n, 1), o, g, r, w, lab->rows, WIDTH);
    lab_keep(lab, y, n);
    lab_keep(lab, dh, n);
    lab_keep(lab, dg, n);
    lab_keep(lab, dw, WIDTH);
}

static void case_elementwise(Lab *lab)
{
    gsize n = (gsize)lab->rows * 1031;
    void *z = lab_in(lab, n, 20), *y = lab_out(lab, n), *dz = lab_out(lab, n),
         *sum = lab_in(lab, n, 1);

    lab->ops->silu_fwd(y, z, n);
    lab->ops->silu_bwd(dz, lab_in(lab, n, 1), z, n);
    lab->ops->axpby(sum, 3.5, z, -0.25, n);
    lab_keep(lab, y, n);
    lab_keep(lab, dz, n);
    lab_keep(lab, sum, n);
}

static void case_gemm(Lab *lab)
{
    static const int shapes[][2] = {{1, 1}, {5, 7}, {9, 545}, {WIDE, WIDTH}, {257, 130}, {16, 64}};

    for (guint i = 0; i < G_N_ELEMENTS(shapes); i++) {
        int n = shapes[i][0], k = shapes[i][1];
        OpsWeight w = weight(lab, n, k);
        gsize ys = (gsize)lab->rows * n, xs = (gsize)lab->rows * k;
        void *x = lab_in(lab, xs, 1), *y = lab_out(lab, ys), *dy = lab_in(lab, ys, 1),
             *dx = lab_out(lab, xs);
        void *more = lab_in(lab, xs, 1), *dw = lab_in(lab, (gsize)n * k, 1);

        lab->ops->gemm_fwd(y, x, &w, lab->rows, i % 2 ? GEMM_EXACT : GEMM_ROUNDED);
        lab->ops->gemm_dx(dx, dy, &w, lab->rows, 0);
        lab->ops->gemm_dx(more, dy, &w, lab->rows, 1);
        lab->ops->gemm_dw(dw, dy, x, &w, lab->rows);
        lab_keep(lab, y, ys);
        lab_keep(lab, dx, xs);
        lab_keep(lab, more, xs);
        lab_keep(lab, dw, (gsize)n * k);
    }
}

static void case_rope(Lab *lab)
{
    static const double freq[] = {1, 0.25, 0.01};
    gsize n = (gsize)lab->rows * 3 * 9;
    int64_t *positions = lab_room(lab, (gsize)lab->rows * sizeof(int64_t));
    void *x = lab_in(lab, n, 1);

    for (int t = 0; t < lab->rows; t++)
        positions[t] = t * 3;
    lab->ops->rope(x, positions, freq, 3, lab->rows, 3, 9, 1);
    lab_keep(lab, x, n);
    lab->ops->rope(x, positions, freq, 3, lab->rows, 3, 9, -1);
    lab_keep(lab, x, n);
}

static void case_logprob(Lab *lab)
{
    gsize n = (gsize)lab->rows * WIDE;
    int valid = WIDE - 6, *id = ids(lab, lab->rows, valid);
    void *logits = lab_in(lab, n, 12), *logp = lab_out(lab, lab->rows),
         *lse = lab_out(lab, lab->rows);
    void *entropy = lab_out(lab, lab->rows);

    lab->ops->logprob_fwd(logp, lse, entropy, logits, id, lab->rows, WIDE, valid, 0.7);
    lab_keep(lab, logp, lab->rows);
    lab_keep(lab, lse, lab->rows);
    lab_keep(lab, entropy, lab->rows);
}

/* Two tiles of the vocabulary and a bit, the last ids left out. */
enum { WORDS = OPS_HEAD_TILE + 150, VALID = WORDS - 7, HEAD_K = 5 };

/* The bits that the same numbers have where logits are kept. */
static void head_as_kept(Lab *lab, const void *x, const OpsWeight *w, const int *id,
                         const void *logp, const void *lse)
{
    gsize bytes = (gsize)lab->rows * ops_real_size(lab->ops->real);
    void *logits = lab_out(lab, (gsize)lab->rows * WORDS), *own = lab_out(lab, lab->rows);
    void *all = lab_out(lab, lab->rows);

    lab->ops->gemm_fwd(logits, x, w, lab->rows, GEMM_EXACT);
    lab->ops->logprob_fwd(own, all, NULL, logits, id, lab->rows, WORDS, VALID, 0.7);
    lab_wait(lab);
    if (memcmp(own, logp, bytes) != 0 || memcmp(all, lse, bytes) != 0)
        g_error("%s, %d rows: the head without logits has other bits", lab->ops->name, lab->rows);
}

static void case_head(Lab *lab)
{
    gsize rows = (gsize)lab->rows, n = rows * HEAD_K;
    OpsWeight w = weight(lab, WORDS, HEAD_K);
    int *id = ids(lab, lab->rows, VALID);
    void *x = lab_in(lab, n, 4), *scratch = lab_out(lab, rows * (OPS_HEAD_TILE + 3));
    void *logp = lab_out(lab, rows), *lse = lab_out(lab, rows), *entropy = lab_out(lab, rows);
    void *dx = lab_out(lab, n), *dw = lab_in(lab, WORDS * HEAD_K, 0.1);
    HeadGrad grad = {lse, id, lab_in(lab, rows, 1), lab_in(lab, rows, 1), entropy};

    lab->ops->head_fwd(logp, lse, entropy, x, &w, id, lab->rows, VALID, 0.7, scratch);
    head_as_kept(lab, x, &w, id, logp, lse);
    lab_keep(lab, logp, rows);
    lab_keep(lab, lse, rows);
    lab_keep(lab, entropy, rows);
    for (int round = 0; round < (rows < 10 ? 2 : 1); round++) {
        lab->ops->head_bwd(dx, dw, x, &w, &grad, lab->rows, VALID, 0.7, scratch);
        lab_keep(lab, dx, n);
        lab_keep(lab, dw, WORDS * HEAD_K);
        grad.bonus = grad.entropy = NULL;
        if (rows > 1)
            id[1] = -1;
    }
}

static void case_adamw(Lab *lab)
{
    gsize n = (gsize)lab->rows * 29;
    void *w = lab_in(lab, n, 1), *m = lab_in(lab, n, 0.1), *v = lab_zeros(lab, n);
    AdamwStep step = {
        .lr = 0.1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .step = 3};

    for (gsize i = 0; i < n; i++)
        lab_put(lab, v, i, fabs(lab_number(99, i)) + 0.01);
    lab->ops->adamw(w, m, v, lab_in(lab, n, 1), n, &step);
    lab_keep(lab, w, n);
    lab_keep(lab, m, n);
    lab_keep(lab, v, n);
}

/* ---- cases: attention ---- */

Family *lab_family(Lab *lab)
{
    static const int rows[] = {PROMPT, FIRST, SECOND}, row0[] = {0, PROMPT, PROMPT + FIRST};
    gsize page = (gsize)2 * lab_shape.kv_heads * lab_shape.dim * lab_shape.chunk;
    gsize open = (gsize)2 * lab_shape.heads * lab_shape.dim * lab_shape.chunk;
    gsize state = (gsize)lab_shape.heads * lab_shape.dim * lab_shape.dim;
    Family *f = lab_room(lab, sizeof *f);

    for (int s = 0; s < 3; s++) {
        for (int p = 0; p < 4; p++) {
            gboolean shared = s > 0 && p < PAGES;

            f->pages[s][p] = shared ? f->pages[0][p] : lab_zeros(lab, page);
            f->dpages[s][p] = shared ? f->dpages[0][p] : lab_zeros(lab, page);
        }
        f->state[s] = lab_zeros(lab, state);
        f->open[s] = lab_zeros(lab, open);
        f->dstate[s] = lab_zeros(lab, state);
        f->dopen[s] = lab_zeros(lab, open);
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
    Family *f = lab_family(lab);
    gsize qs = (gsize)ROWS * lab_shape.heads * lab_shape.dim,
          ks = (gsize)ROWS * lab_shape.kv_heads * lab_shape.dim;
    void *q = lab_in(lab, qs, 2), *k = lab_in(lab, ks, 2), *v = lab_in(lab, ks, 1),
         *up = lab_in(lab, qs, 1);
    void *o = lab_out(lab, qs), *lse = lab_out(lab, ROWS * lab_shape.heads);
    void *dq = lab_out(lab, qs), *dk = lab_out(lab, ks), *dv = lab_out(lab, ks);

    lab->ops->attn_fwd(o, lse, q, k, v, f->spans, 3, 0, lab_shape);
    lab->ops->attn_bwd(dq, dk, dv, up, o, lse, q, f->spans, f->grads, 3, 0, lab_shape);
    lab_keep(lab, o, qs);
    lab_keep(lab, lse, ROWS * lab_shape.heads);
    lab_keep(lab, dq, qs);
    lab_keep(lab, dk, ks);
    lab_keep(lab, dv, ks);
}

void *lab_decay(Lab *lab, OpsHeads s)
{
    void *decay = lab_zeros(lab, (gsize)s.heads * (s.chunk + 1));

    for (int h = 0; h < s.heads; h++)
        for (int n = 0; n <= s.chunk; n++)
            lab_put(lab, decay, (gsize)h * (s.chunk + 1) + n, exp(-0.9 / (1 << 2 * (h % 8)) * n));
    return decay;
}

static void case_lightning(Lab *lab)
{
    Family *f = lab_family(lab);
    gsize os = (gsize)ROWS * lab_shape.heads * lab_shape.dim;
    gsize states = (gsize)lab_shape.heads * lab_shape.dim * lab_shape.dim;
    void *qkv = lab_in(lab, 3 * os, 1), *o = lab_out(lab, os), *up = lab_in(lab, os, 1);
    void *dqkv = lab_out(lab, 3 * os), *decay = lab_decay(lab, lab_shape),
         *scratch = lab_out(lab, 8 * states);

    lab->ops->lightning_fwd(o, qkv, f->spans, 3, 0, 0, decay, lab_shape);
    lab->ops->lightning_bwd(dqkv, up, qkv, f->spans, f->grads, 3, 0, 0, decay, lab_shape, scratch);
    lab_keep(lab, o, os);
    lab_keep(lab, f->state[0], states);
    lab_keep(lab, f->state[2], states);
    lab_keep(lab, dqkv, 3 * os);
}

/* One sequence from position 0: blocks, pages and chunks that end anywhere. The second shape has
 * more query heads to a key-value head than a block takes. */
static const OpsHeads long_shapes[] = {{.heads = 4, .kv_heads = 2, .dim = 16, .chunk = 16},
                                       {.heads = 25, .kv_heads = 1, .dim = 5, .chunk = 32}};

void **lab_blocks(Lab *lab, gsize n, gsize elements)
{
    void **list = lab_room(lab, (n + 1) * sizeof(void *));

    for (gsize i = 0; i < n; i++)
        list[i] = lab_zeros(lab, elements);
    return list;
}

static void case_long_attention(Lab *lab)
{
    for (guint i = 0; i < G_N_ELEMENTS(long_shapes); i++) {
        OpsHeads s = long_shapes[i];
        gsize rows = (gsize)lab->rows, qs = rows * s.heads * s.dim, ks = rows * s.kv_heads * s.dim;
        gsize page = (gsize)2 * s.kv_heads * s.dim * s.chunk, n = rows / s.chunk + 1;
        OpsSpan span = {.rows = lab->rows, .pages = lab_blocks(lab, n, page)};
        OpsSpanGrad grad = {.dpages = lab_blocks(lab, n, page)};
        void *q = lab_in(lab, qs, 2), *k = lab_in(lab, ks, 2), *v = lab_in(lab, ks, 1),
             *o = lab_out(lab, qs);
        void *lse = lab_out(lab, rows * s.heads), *dq = lab_out(lab, qs), *dk = lab_out(lab, ks);
        void *dv = lab_out(lab, ks);

        lab->ops->attn_fwd(o, lse, q, k, v, &span, 1, 0, s);
        lab->ops->attn_bwd(dq, dk, dv, lab_in(lab, qs, 1), o, lse, q, &span, &grad, 1, 0, s);
        lab_keep(lab, o, qs);
        lab_keep(lab, lse, rows * s.heads);
        lab_keep(lab, dq, qs);
        lab_keep(lab, dk, ks);
        lab_keep(lab, dv, ks);
    }
}

/* A few rows behind contexts of several runs of pages, one of them in its first page. */
static void case_deep_attention(Lab *lab)
{
    enum { DEEP = 1290, SHORT = 3 };
    const OpsHeads s = {.heads = 4, .kv_heads = 2, .dim = 8, .chunk = 16};
    int rows = MIN(lab->rows, 9);
    gsize all = (gsize)rows + 1, qs = all * s.heads * s.dim, ks = all * s.kv_heads * s.dim;
    gsize page = (gsize)2 * s.kv_heads * s.dim * s.chunk, n = (DEEP + 9) / s.chunk + 1;
    void **pages = lab_room(lab, (n + 1) * sizeof(void *));
    void *o = lab_out(lab, qs), *lse = lab_out(lab, all * s.heads);
    OpsSpan spans[] = {{.rows = rows, .pos0 = DEEP, .pages = pages},
                       {.row0 = rows, .rows = 1, .pos0 = SHORT, .pages = pages + n}};

    for (gsize i = 0; i <= n; i++)
        pages[i] = lab_in(lab, page, 2);
    lab->ops->attn_fwd(o, lse, lab_in(lab, qs, 2), lab_in(lab, ks, 2), lab_in(lab, ks, 1), spans, 2,
                       0, s);
    lab_keep(lab, o, qs);
    lab_keep(lab, lse, all * s.heads);
}

static void case_long_lightning(Lab *lab)
{
    for (guint i = 0; i < G_N_ELEMENTS(long_shapes); i++) {
        OpsHeads s = long_shapes[i];
        gsize rows = (gsize)lab->rows, os = rows * s.heads * s.dim;
        gsize state = (gsize)s.heads * s.dim * s.dim;
        OpsSpan span = {.rows = lab->rows,
                        .state_out = lab_zeros(lab, state),
                        .open = lab_zeros(lab, (gsize)2 * s.heads * s.dim * s.chunk)};
        OpsSpanGrad grad = {.dstate_out = lab_in(lab, state, 1),
                            .dstate_in = lab_zeros(lab, state)};
        void *qkv = lab_in(lab, 3 * os, 1), *o = lab_out(lab, os), *dqkv = lab_out(lab, 3 * os);
        void *decay = lab_decay(lab, s), *scratch = lab_out(lab, (rows / s.chunk + 3) * state);

        lab->ops->lightning_fwd(o, qkv, &span, 1, 0, 0, decay, s);
        lab->ops->lightning_bwd(dqkv, lab_in(lab, os, 1), qkv, &span, &grad, 1, 0, 0, decay, s,
                                scratch);
        lab_keep(lab, o, os);
        lab_keep(lab, span.state_out, state);
        lab_keep(lab, dqkv, 3 * os);
        lab_keep(lab, grad.dstate_in, state);
    }
}

/* ---- cases: experts ---- */

static MoePlan plan_of(Lab *lab, const int *choice)
{
    gsize n = (gsize)lab->rows * TOPK;
    MoePlan plan = {.offsets = lab_room(lab, (EXPERTS + 1) * sizeof(int)),
                    .source = lab_room(lab, n * sizeof(int)),
                    .slot = lab_room(lab, n * sizeof(int)),
                    .order = lab_room(lab, n * sizeof(int))};

    lab->ops->route_plan(&plan, choice, lab->rows, TOPK, EXPERTS);
    return plan;
}

static void experts_on(Lab *lab, const int *choice, const void *route)
{
    gsize rows = (gsize)lab->rows, r = rows * TOPK;
    OpsWeight w[3][EXPERTS];
    void *dw[3][EXPERTS], *x = lab_in(lab, rows * WIDTH, 1), *y = lab_out(lab, rows * WIDTH);
    void *a = lab_out(lab, r * FFN), *b = lab_out(lab, r * FFN), *act = lab_out(lab, r * FFN);
    void *outs = lab_out(lab, r * WIDTH), *dx = lab_out(lab, rows * WIDTH),
         *droute = lab_out(lab, r);
    MoePlan plan = plan_of(lab, choice);
    MoeWeights mats = {w[0], w[1], w[2]};

    for (int e = 0; e < EXPERTS; e++)
        for (int i = 0; i < 3; i++) {
            w[i][e] = i < 2 ? weight(lab, FFN, WIDTH) : weight(lab, WIDTH, FFN);
            dw[i][e] = lab_in(lab, FFN * WIDTH, 1);
        }
    lab->ops->moe_up_fwd(a, b, act, x, &plan, &mats);
    lab->ops->moe_down_fwd(y, outs, act, route, &plan, &mats);
    lab->ops->moe_bwd(dx, droute, dw[0], dw[1], dw[2], lab_in(lab, rows * WIDTH, 1), x, a, b, act,
                      outs, route, &plan, &mats, lab_out(lab, r * 2 * FFN),
                      lab_out(lab, r * WIDTH));
    lab_keep(lab, y, rows * WIDTH);
    lab_keep(lab, dx, rows * WIDTH);
    lab_keep(lab, droute, r);
    for (int e = 0; e < EXPERTS; e++)
        for (int i = 0; i < 3; i++)
            lab_keep(lab, dw[i][e], FFN * WIDTH);
}

static void case_experts(Lab *lab)
{
    gsize n = (gsize)lab->rows * TOPK;
    int *choice = lab_room(lab, n * sizeof(int));
    void *z = lab_in(lab, (gsize)lab->rows * EXPERTS, 2), *route = lab_out(lab, n);
    void *dz = lab_out(lab, (gsize)lab->rows * EXPERTS);

    lab->ops->route_fwd(choice, route, z, lab->rows, EXPERTS, TOPK);
    lab->ops->route_bwd(dz, lab_in(lab, n, 1), choice, route, lab->rows, EXPERTS, TOPK);
    lab_keep(lab, route, n);
    lab_keep(lab, dz, (gsize)lab->rows * EXPERTS);
    experts_on(lab, choice, route);
}

/* All rows on the last two experts, the others empty. */
static void case_one_expert(Lab *lab)
{
    gsize n = (gsize)lab->rows * TOPK;
    int *choice = lab_room(lab, n * sizeof(int));
    void *route = lab_in(lab, n, 1);

    for (gsize i = 0; i < n; i++)
        choice[i] = EXPERTS - 1 - (int)(i % TOPK);
    experts_on(lab, choice, route);
}

/* ---- the list ---- */

const LabCase lab_cases[] = {
    {"weight", case_weight, TRUE, FALSE},
    {"embed", case_embed, TRUE, FALSE},
    {"rmsnorm", case_rmsnorm, FALSE, FALSE},
    {"gatenorm", case_gatenorm, FALSE, FALSE},
    {"elementwise", case_elementwise, FALSE, FALSE},
    {"gemm", case_gemm, TRUE, FALSE},
    {"rope", case_rope, FALSE, FALSE},
    {"logprob", case_logprob, FALSE, FALSE},
    {"head", case_head, TRUE, FALSE},
    {"adamw", case_adamw, FALSE, FALSE},
    {"attention", case_attention, FALSE, TRUE},
    {"lightning", case_lightning, FALSE, TRUE},
    {"long_attention", case_long_attention, FALSE, FALSE},
    {"deep_attention", case_deep_attention, FALSE, FALSE},
    {"long_lightning", case_long_lightning, FALSE, FALSE},
    {"experts", case_experts, TRUE, FALSE},
    {"one_expert", case_one_expert, TRUE, FALSE},
};

const guint lab_n_cases = G_N_ELEMENTS(lab_cases);

static GArray *run(Lab lab, guint n)
{
    lab.out = g_array_new(FALSE, FALSE, sizeof(double));
    lab.own = g_ptr_array_new_with_free_func(lab.ops->memory_free ? lab.ops->memory_free : free);
    lab.seed = n * 1000;
    if (lab.later)
        lab.ops->begin();
    lab_cases[n].run(&lab);
    lab_wait(&lab);
    g_ptr_array_unref(lab.own);
    return lab.out;
}

GArray *lab_run(guint n, const Ops *ops, int rows, WeightFormat format)
{
    return run((Lab){.ops = ops, .rows = rows, .format = format}, n);
}

GArray *lab_run_later(guint n, const Ops *ops, int rows, WeightFormat format)
{
    return run((Lab){.ops = ops, .rows = rows, .format = format, .later = TRUE}, n);
}

double lab_distance(const GArray *got, const GArray *want)
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
