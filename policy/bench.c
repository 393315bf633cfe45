/*
 * Measuring the CPU path against what the machine can do.
 *
 * Invariants
 *  1. A figure and its ceiling come from one run, the ceilings taken right before and right after
 *     it, the better of each: on a shared machine they change within seconds. Figures are medians
 *     of rounds.
 *  2. Operations and bytes are counted from the config and the routing that happened, not guessed.
 *
 * Not here: correctness (tests/), printing (env/).
 */
#include "policy/bench.h"

#include "policy/backward.h"
#include "policy/init.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define READ_FLOATS (64u << 20) /* beyond any cache */
#define ROUNDS_MAX  99

typedef struct {
    const Ops *ops;
    Model *model;
    guint rounds;
    float *block;     /* READ_FLOATS to read */
    double peak;      /* operations in f32 per second, all threads */
    double rounded;   /* the same of products that may round */
    double bandwidth; /* bytes per second */
    BenchFunc func;
    gpointer user;
} Bench;

static double now(void)
{
    return (double)g_get_monotonic_time() / 1e6;
}

static int double_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Median seconds of `run` over the rounds. */
static double timed(const Bench *b, void (*run)(gpointer), gpointer data)
{
    double seconds[ROUNDS_MAX];

    run(data);
    for (guint r = 0; r < b->rounds; r++) {
        double start = now();

        run(data);
        seconds[r] = now() - start;
    }
    qsort(seconds, b->rounds, sizeof *seconds, double_compare);
    return seconds[b->rounds / 2];
}

static void report(const Bench *b, const char *group, const char *unit, double value, double bound,
                   const char *format, ...) G_GNUC_PRINTF(6, 7);
static void report(const Bench *b, const char *group, const char *unit, double value, double bound,
                   const char *format, ...)
{
    BenchRow row = {.group = group, .value = value, .unit = unit, .bound = bound};
    va_list args;

    va_start(args, format);
    g_vsnprintf(row.what, sizeof row.what, format, args);
    va_end(args);
    b->func(&row, b->user);
}

/* ---- ceilings ---- */

#define FLOPS_ROUNDS 250000u

typedef struct {
    const Ops *ops;
    GemmPrecision precision;
} Flops;

static void run_flops(gpointer data)
{
    const Flops *f = data;

#pragma omp parallel
    f->ops->ceiling_flops(FLOPS_ROUNDS, f->precision);
}

static void run_read(gpointer data)
{
    const Bench *b = data;
    float sum = 0;

#pragma omp parallel reduction(+ : sum)
    {
        size_t part = READ_FLOATS / (size_t)omp_get_num_threads();

        sum += b->ops->ceiling_read(b->block + part * (size_t)omp_get_thread_num(), part);
    }
    b->block[0] = sum; /* so that the reading is not thrown away */
}

static void run_nothing(gpointer data)
{
    (void)data;
    for (int i = 0; i < 1000; i++) {
#pragma omp parallel
        __asm__ volatile("" ::: "memory");
    }
}

static double peak_of(Bench *b, GemmPrecision precision)
{
    Flops f = {b->ops, precision};

    return b->ops->ceiling_flops(1, precision) * FLOPS_ROUNDS * omp_get_max_threads() /
           timed(b, run_flops, &f);
}

double bench_peak(const Ops *ops)
{
    Bench b = {.ops = ops, .rounds = 3};

    return peak_of(&b, GEMM_EXACT);
}

static void take_ceilings(Bench *b)
{
    b->peak = MAX(b->peak, peak_of(b, GEMM_EXACT));
    b->rounded = MAX(b->rounded, peak_of(b, GEMM_ROUNDED));
    b->bandwidth = MAX(b->bandwidth, 4.0 * READ_FLOATS / timed(b, run_read, b));
}

/* Median seconds of `run`, and the ceilings of that moment. */
static double timed_beside(Bench *b, void (*run)(gpointer), gpointer data)
{
    double seconds;

    b->peak = b->rounded = b->bandwidth = 0;
    take_ceilings(b);
    seconds = timed(b, run, data);
    take_ceilings(b);
    return seconds;
}

static void measure_ceilings(Bench *b)
{
    int threads = omp_get_max_threads();

    for (int n = 1; n <= threads; n = n < threads ? threads : n + 1) {
        omp_set_num_threads(n);
        b->peak = b->rounded = b->bandwidth = 0;
        take_ceilings(b);
        report(b, "ceiling", "GFLOP/s", b->peak / 1e9, 0, "multiply-adds in f32, %d threads", n);
        report(b, "ceiling", "GFLOP/s", b->rounded / 1e9, 0, "rounded to bf16, %d threads", n);
        report(b, "ceiling", "GB/s", b->bandwidth / 1e9, 0, "reading memory, %d threads", n);
    }
    report(b, "ceiling", "us", timed(b, run_nothing, NULL) * 1e3, 0,
           "waking and waiting for %d threads", threads);
}

/* ---- kernels ---- */

typedef struct {
    const Bench *bench;
    OpsWeight w;
    void *x, *y;
    int rows;
} Gemm;

static void run_gemm(gpointer data)
{
    const Gemm *g = data;

    g->bench->ops->gemm_fwd(g->y, g->x, &g->w, g->rows, GEMM_ROUNDED);
}

static void *aligned(gsize bytes)
{
    void *at = NULL;

    if (posix_memalign(&at, 64, bytes))
        g_error("bench: no memory for %" G_GSIZE_FORMAT " bytes", bytes);
    return memset(at, 0, bytes);
}

/* Products that may round do so with bf16 weights only. */
static double peak_for(const Bench *b, WeightFormat format)
{
    return format == WEIGHT_BF16 ? b->rounded : b->peak;
}

static void measure_gemm(Bench *b, int rows, int n, int k, WeightFormat format)
{
    Gemm g = {.bench = b, .w = {.n = n, .k = k, .format = format}, .rows = rows};
    double work = 2.0 * rows * n * k, seconds;

    g.w.data = aligned(b->ops->weight_bytes(format, n, k));
    g.x = aligned((gsize)rows * (gsize)k * sizeof(float));
    g.y = aligned((gsize)rows * (gsize)n * sizeof(float));
    seconds = timed_beside(b, run_gemm, &g);
    report(b, "kernel", "GFLOP/s", work / seconds / 1e9, peak_for(b, format) / 1e9,
           "product %d x %d x %d, %s weights", rows, n, k, format == WEIGHT_BF16 ? "bf16" : "f32");
    free(g.w.data);
    free(g.x);
    free(g.y);
}

typedef struct {
    const Bench *bench;
    OpsSpan span;
    void *qkv, *o;
} Lightning;

static void run_lightning(gpointer data)
{
    const Lightning *l = data;
    const Model *m = l->bench->model;
    const ModelConfig *c = &m->config;

    l->bench->ops->lightning_fwd(l->o, l->qkv, &l->span, 1, 0, 0, m->layers[0].decay,
                                 model_heads(c));
}

/* Per token and head: q S and the fold, 2 d^2 each; scores and their product, C d each at least. */
static void measure_lightning(Bench *b)
{
    const ModelConfig *c = &b->model->config;
    int rows = 2048;
    gsize one = (gsize)c->attn_dim * sizeof(float);
    Lightning l = {.bench = b, .span = {.rows = rows}};
    double work = rows * (double)c->attn_dim * (4.0 * c->head_dim + 2.0 * (c->chunk + 1)), seconds;

    l.span.state_in = l.span.state_out = aligned(b->model->cache.state_bytes);
    l.span.open = aligned(b->model->cache.open_bytes);
    l.qkv = aligned((gsize)rows * 3 * one);
    l.o = aligned((gsize)rows * one);
    seconds = timed_beside(b, run_lightning, &l);
    report(b, "kernel", "GFLOP/s", work / seconds / 1e9, b->peak / 1e9,
           "lightning attention, %u heads of %u, chunks of %u", c->heads, c->head_dim, c->chunk);
    free(l.span.state_out);
    free(l.span.open);
    free(l.qkv);
    free(l.o);
}

/* ---- the model ---- */

typedef struct {
    const Bench *bench;
    CachePool *pool;
    GPtrArray *seqs; /* SeqCache */
    Acts *acts;
    float *logits;
    int *ids;
    int64_t *positions;
    OpsSpan *spans;
    int rows_each;
} Step;

/* One forward of `rows_each` rows of every sequence, at the same place each time. */
static void run_step(gpointer data)
{
    Step *s = data;
    Batch batch = {.rows = (int)s->seqs->len * s->rows_each,
                   .n_spans = (int)s->seqs->len,
                   .ids = s->ids,
                   .positions = s->positions,
                   .spans = s->spans};

    forward(s->bench->model, s->acts, &batch);
    forward_logits(s->bench->model, s->logits, s->acts->hidden, (int)s->seqs->len);
}

static Step *step_new(const Bench *b, int sequences, int rows_each, gint64 context, ActsKeep keep,
                      GError **error)
{
    const ModelConfig *c = &b->model->config;
    Step *s = g_new0(Step, 1);
    int rows = sequences * rows_each;

    s->bench = b;
    s->rows_each = rows_each;
    s->pool = cache_pool_new(b->model, G_MAXSIZE);
    s->seqs = g_ptr_array_new_with_free_func((GDestroyNotify)seq_cache_free);
    s->acts = acts_new(b->model, rows, keep, error);
    s->logits = aligned((gsize)sequences * c->vocab * sizeof(float));
    s->ids = g_new0(int, rows);
    s->positions = g_new0(int64_t, rows);
    s->spans = g_new0(OpsSpan, sequences);
    for (int n = 0; n < sequences && s->acts; n++) {
        SeqCache *seq = seq_cache_new(s->pool);

        g_ptr_array_add(s->seqs, seq);
        if (context > 0 && seq_cache_reserve(seq, (int)context))
            seq_cache_advance(seq, (int)context);
        seq_cache_reserve(seq, rows_each);
        s->spans[n] = seq_cache_span(seq, n * rows_each, rows_each);
        for (int t = 0; t < rows_each; t++) {
            s->ids[n * rows_each + t] = (n * 7919 + t * 104729) % (int)c->vocab_valid;
            s->positions[n * rows_each + t] = context + t;
        }
    }
    return s;
}

static void step_free(Step *s)
{
    g_ptr_array_unref(s->seqs);
    cache_pool_free(s->pool);
    acts_free(s->acts);
    free(s->logits);
    g_free(s->ids);
    g_free(s->positions);
    g_free(s->spans);
    g_free(s);
}

static gsize weight_size(const Bench *b, const OpsWeight *w)
{
    return b->ops->weight_bytes(w->format, w->n, w->k);
}

/* Bytes of weights that one step of these rows reads: experts by the routing that happened. The
 * activations are kept for one layer, so its routing stands for all. */
static double step_bytes(const Step *s)
{
    const Model *m = s->bench->model;
    const ModelConfig *c = &m->config;
    const MoePlan *plan = &s->acts->layers[0].plan;
    double bytes = (double)weight_size(s->bench, &m->head), caches;
    guint touched = 0;

    for (guint e = 0; e < c->experts; e++)
        touched += plan->offsets[e + 1] > plan->offsets[e];
    for (guint l = 0; l < c->layers; l++) {
        const LayerWeights *w = &m->layers[l];
        const OpsWeight *dense[] = {&w->qkv, &w->gate, &w->out, &w->q,
                                    &w->k,   &w->v,    &w->o,   &w->router};

        for (guint i = 0; i < G_N_ELEMENTS(dense); i++)
            bytes += dense[i]->data ? (double)weight_size(s->bench, dense[i]) : 0;
        bytes += touched * 3.0 * (double)weight_size(s->bench, &w->w1[0]);
    }
    caches = (double)m->cache.state_bytes + (double)m->cache.open_bytes +
             (double)m->cache.page_bytes * (double)(s->positions[0] / c->chunk + 1);
    return bytes + caches * s->seqs->len;
}

/* Operations of the rows in matrices that a token meets, and which may round. */
static double step_products(const Step *s)
{
    return 2.0 * (double)tensors_params_active(&s->bench->model->config) * s->seqs->len *
           s->rows_each;
}

/* The others: states, chunks, keys and values, the head of each sequence. */
static double step_others(const Step *s)
{
    const ModelConfig *c = &s->bench->model->config;
    double rows = (double)s->seqs->len * s->rows_each, pairs = 0;
    double light = c->lightning_layers * (double)c->attn_dim * (4.0 * c->head_dim + 2.0 * c->chunk);

    for (int t = 0; t < s->rows_each; t++)
        pairs += (double)s->positions[t] + 1;
    return rows * light + 2.0 * s->seqs->len * (double)c->vocab * c->hidden +
           4.0 * c->softmax_layers * (double)c->attn_dim * pairs * s->seqs->len;
}

/* `group` at a batch; value and bound in tokens per second. */
static gboolean measure_step(Bench *b, const char *group, int sequences, int rows_each,
                             gint64 context, GError **error)
{
    Step *s = step_new(b, sequences, rows_each, context, ACTS_KEEP_NOTHING, error);
    double seconds, bound, tokens = (double)sequences * rows_each;

    if (!s->acts) {
        step_free(s);
        return FALSE;
    }
    seconds = timed_beside(b, run_step, s);
    bound = MAX(step_bytes(s) / b->bandwidth,
                step_products(s) / peak_for(b, b->model->format) + step_others(s) / b->peak);
    report(b, group, "token/s", tokens / seconds, tokens / bound,
           "%d sequences, %d rows each, at %" G_GINT64_FORMAT, sequences, rows_each, context);
    step_free(s);
    return TRUE;
}

/* ---- training ---- */

/* Gradients and the optimiser's moments of a larger model would not fit beside it. */
#define TRAIN_PARAMS_MAX (256u << 20)
#define TRAIN_ROWS       1024

typedef struct {
    Step *step; /* one sequence; its activations are kept */
    Backward *backward;
    Params *grads;
    GPtrArray *dpages;
    OpsSpanGrad caches;
    void *dhidden, *head;
    float *logp, *lse, *coef;
} Train;

static void train_free(Train *t)
{
    if (t->step)
        step_free(t->step);
    backward_free(t->backward);
    params_free(t->grads);
    g_ptr_array_unref(t->dpages);
    free(t->dhidden);
    free(t->head);
    g_free(t->logp);
    g_free(t->lse);
    g_free(t->coef);
    g_free(t);
}

static Train *train_new(const Bench *b, GError **error)
{
    const Model *m = b->model;
    Train *t = g_new0(Train, 1);

    t->dpages = g_ptr_array_new_with_free_func(free);
    t->step = step_new(b, 1, TRAIN_ROWS, 0, ACTS_KEEP_ALL, error);
    t->backward = t->step->acts ? backward_new(m, TRAIN_ROWS, TRAIN_ROWS, error) : NULL;
    t->grads = t->backward ? params_new(m, error) : NULL;
    if (!t->grads) {
        train_free(t);
        return NULL;
    }
    for (guint i = 0; i <= TRAIN_ROWS / m->config.chunk; i++)
        g_ptr_array_add(t->dpages, aligned(m->cache.page_bytes));
    t->caches.dpages = t->dpages->pdata;
    t->dhidden = aligned((gsize)TRAIN_ROWS * m->config.hidden * sizeof(float));
    t->head = aligned((gsize)TRAIN_ROWS * (OPS_HEAD_TILE + 3) * sizeof(float));
    t->logp = g_new0(float, TRAIN_ROWS);
    t->lse = g_new0(float, TRAIN_ROWS);
    t->coef = g_new0(float, TRAIN_ROWS);
    for (guint i = 0; i < TRAIN_ROWS; i++)
        t->coef[i] = 1.0f / TRAIN_ROWS;
    return t;
}

/* Forward, log-probabilities of every row, and the gradient of every weight. */
static void run_train(gpointer data)
{
    Train *t = data;
    Step *s = t->step;
    const Model *m = s->bench->model;
    int valid = (int)m->config.vocab_valid;
    HeadGrad grad = {.lse = t->lse, .ids = s->ids, .coef = t->coef};
    Batch batch = {.rows = TRAIN_ROWS,
                   .n_spans = 1,
                   .ids = s->ids,
                   .positions = s->positions,
                   .spans = s->spans};

    for (guint i = 0; i < t->dpages->len; i++)
        memset(g_ptr_array_index(t->dpages, i), 0, m->cache.page_bytes);
    forward(m, s->acts, &batch);
    m->ops->head_fwd(t->logp, t->lse, NULL, s->acts->hidden, &m->head, s->ids, TRAIN_ROWS, valid, 1,
                     t->head);
    m->ops->head_bwd(t->dhidden, params_tensor(t->grads, 0, SLOT_HEAD, 0), s->acts->hidden,
                     &m->head, &grad, TRAIN_ROWS, valid, 1, t->head);
    backward(t->backward, m, t->grads, s->acts, &batch, &t->caches, t->dhidden);
}

typedef struct {
    const Bench *bench;
    float *w, *m, *v;
    const float *grad;
    gsize n;
} Update;

static void run_update(gpointer data)
{
    const Update *u = data;
    AdamwStep step = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .step = 1};

    u->bench->ops->adamw(u->w, u->m, u->v, u->grad, u->n, &step);
}

/* Bound: three forwards, each product at the peak of its kind. The optimiser reads four numbers and
 * writes three a weight. */
static gboolean measure_train(Bench *b, GError **error)
{
    Train *t;
    Update u = {.bench = b};
    double seconds, head, bound;

    if (tensors_params(&b->model->config) > TRAIN_PARAMS_MAX)
        return TRUE;
    t = train_new(b, error);
    if (!t)
        return FALSE;
    seconds = timed_beside(b, run_train, t);
    head = 2.0 * (TRAIN_ROWS - 1) * b->model->config.vocab * b->model->config.hidden;
    bound = 3 * (step_products(t->step) / peak_for(b, b->model->format) +
                 (step_others(t->step) + head) / b->peak);
    report(b, "train", "token/s", TRAIN_ROWS / seconds, TRAIN_ROWS / bound,
           "forward and backward of %d rows", TRAIN_ROWS);
    u.n = t->grads->count;
    u.grad = t->grads->data;
    u.w = aligned(u.n * sizeof(float));
    u.m = aligned(u.n * sizeof(float));
    u.v = aligned(u.n * sizeof(float));
    seconds = timed_beside(b, run_update, &u);
    report(b, "train", "GB/s", 28.0 * (double)u.n / seconds / 1e9, b->bandwidth / 1e9,
           "optimiser, %" G_GSIZE_FORMAT " weights", u.n);
    free(u.w);
    free(u.m);
    free(u.v);
    train_free(t);
    return TRUE;
}

static gboolean model_open(Bench *b, const ModelConfig *config, WeightFormat format, GError **error)
{
    b->model = model_new(b->ops, config, format, error);
    for (guint i = 0; b->model && i < tensors_count(config); i++) {
        TensorInfo t = tensors_info(config, i);
        g_autofree double *values = g_new(double, t.count);
        g_autofree float *rows = g_new(float, t.count);

        init_values(config, 1, i, 0, t.count, values);
        for (guint64 j = 0; j < t.count; j++)
            rows[j] = (float)values[j];
        model_set(b->model, &t, rows);
    }
    return b->model != NULL;
}

/* The same model with one expert for all rows: what a batch costs that reads no more weights. */
static gboolean measure_dense(Bench *b, const ModelConfig *config, WeightFormat format,
                              GError **error)
{
    ModelConfig dense = *config;

    dense.experts = dense.experts_per_token = 1;
    return model_config_check(&dense, error) && model_open(b, &dense, format, error) &&
           measure_step(b, "dense", 1, 1, 1024, error) &&
           measure_step(b, "dense", 16, 1, 1024, error);
}

gboolean bench_run(const Ops *ops, const ModelConfig *config, WeightFormat format, guint rounds,
                   gint64 context_max, BenchFunc func, gpointer user, GError **error)
{
    static const int batches[] = {1, 16, 64};
    Bench b = {.ops = ops, .rounds = CLAMP(rounds, 1, ROUNDS_MAX), .func = func, .user = user};
    gboolean ok = model_open(&b, config, format, error);

    b.block = aligned(READ_FLOATS * sizeof(float));
    if (ok) {
        measure_ceilings(&b);
        measure_gemm(&b, 1024, 1024, 1024, WEIGHT_REAL);
        measure_gemm(&b, 1024, 1024, 1024, WEIGHT_BF16);
        measure_lightning(&b);
    }
    for (guint i = 0; ok && i < G_N_ELEMENTS(batches); i++)
        ok = measure_step(&b, "decode", batches[i], 1, 1024, error);
    ok = ok && measure_step(&b, "prefill", 1, 1024, 0, error);
    for (gint64 context = 1024; ok && context <= context_max; context *= 32)
        ok = measure_step(&b, "context", 1, 1, context, error);
    ok = ok && measure_train(&b, error);
    model_free(b.model);
    b.model = NULL;
    ok = ok && measure_dense(&b, config, format, error);
    model_free(b.model);
    free(b.block);
    return ok;
}
