/*
 * Softmax attention over pages, forward.
 *
 * The pages of a row are cut into at most RANGES runs of whole pages, by the row's position alone.
 * Each run is a softmax of its own, and the runs are put together in ascending order: so a long
 * context can be shared out among threads without a sum that depends on their number.
 *
 * A block is the rows of one page, and the query heads of one key-value head, that are worked
 * together: keys and values are read once for all of them.
 *
 * Invariants
 *  1. A row's sums run over ascending positions within a run, then over ascending runs: prefill and
 *     decode agree in bits. Columns after the row, which others of its block want, weigh an
 *     exact 0; what was never written is not read.
 *  2. All keys and values of a call are written before any are read.
 *
 * Not here: the backward (attention_bwd.c).
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

#define RANGES      16
#define RANGE_PAGES 8  /* a run is not shorter */
#define BLOCK_MAX   24 /* rows times heads of a block: whole tiles of every build */

/* The softmax so far of every row of a block. */
typedef struct {
    float top[BLOCK_MAX], sum[BLOCK_MAX];
    float out[BLOCK_MAX][OPS_DIM_MAX];
} Running;

/* Rows at positions pos .. of one page, `heads` heads from the h-th on, of key-value head g. */
typedef struct {
    OpsHeads s;
    const OpsSpan *span;
    size_t offset;
    int64_t pos;
    int row, rows, h, heads, g;
    const float *q;
    float *o, *lse;
} Block;

static void kv_write(const OpsSpan *span, const float *k, const float *v, size_t offset, OpsHeads s)
{
    size_t keys = (size_t)s.kv_heads * s.dim * s.chunk, row = (size_t)s.kv_heads * s.dim;

    for (int t = 0; t < span->rows;) {
        int64_t p = span->pos0 + t;
        int c = (int)(p % s.chunk), left = span->rows - t;
        int rows = left < s.chunk - c ? left : s.chunk - c;
        float *page = cpu_behind(span->pages[p / s.chunk], offset);

        for (int g = 0; g < s.kv_heads; g++) {
            size_t from = (size_t)(span->row0 + t) * row + (size_t)g * s.dim;
            float *to = page + keys + ((size_t)g * s.chunk + c) * s.dim;

            CPU(transpose)
            (page + (size_t)g * s.dim * s.chunk + c, (size_t)s.chunk, k + from, row, rows, s.dim);
            for (int i = 0; i < rows; i++)
                memcpy(to + (size_t)i * s.dim, v + from + (size_t)i * row,
                       (size_t)s.dim * sizeof(float));
        }
        t += rows;
    }
}

static void rescale(float *out, int dim, float by)
{
    for (int i = 0; i < dim; i += W)
        vstore_n(out + i, vload_n(out + i, dim - i) * by, dim - i);
}

/* Row i takes in its scores of one page, of which it sees the first `seen`; they become weights. */
static void softmax_page(Running *run, int i, float *s, int cols, int seen, int dim, float scale)
{
    vf high = vset(-INFINITY), sum = {0};
    float top = run->top[i];

    for (int c = seen; c < cols; c++)
        s[c] = -INFINITY;
    for (int c = 0; c < cols; c += W) {
        vf v = vload_n(s + c, cols - c) * scale;

        for (int n = cols - c; n < W; n++)
            v[n] = -INFINITY;
        vstore_n(s + c, v, cols - c);
        high = vmax(v, high);
    }
    top = vtop(high) > top ? vtop(high) : top;
    for (int c = 0; c < cols; c += W) {
        vf e = vexp(vload_n(s + c, cols - c) - top);

        for (int n = cols - c; n < W; n++)
            e[n] = 0;
        vstore_n(s + c, e, cols - c);
        sum += e;
    }
    if (top > run->top[i]) {
        float shrink = vexp(vset(run->top[i] - top))[0];

        rescale(run->out[i], dim, shrink);
        run->sum[i] *= shrink;
        run->top[i] = top;
    }
    run->sum[i] += vsum(sum);
}

/* The softmax of the block's rows over pages first .. end - 1. */
static void range_run(Running *run, const Block *b, int64_t first, int64_t end)
{
    float scores[BLOCK_MAX][OPS_CHUNK_MAX], scale = 1.0f / sqrtf((float)b->s.dim);
    const float *in[BLOCK_MAX] = {0}, *prob[BLOCK_MAX] = {0};
    float *score[BLOCK_MAX] = {0}, *out[BLOCK_MAX] = {0};
    int n = b->rows * b->heads, d = b->s.dim, chunk = b->s.chunk;
    int last = (int)(b->pos % chunk) + b->rows;
    size_t keys = (size_t)b->s.kv_heads * d * chunk;

    for (int i = 0; i < n; i++) {
        run->top[i] = -INFINITY;
        run->sum[i] = 0;
        memset(run->out[i], 0, (size_t)d * sizeof(float));
        in[i] =
            b->q + ((size_t)(b->row + i / b->heads) * b->s.heads + b->h + i % b->heads) * (size_t)d;
        score[i] = scores[i];
        prob[i] = scores[i];
        out[i] = run->out[i];
    }
    for (int64_t p = first; p < end; p++) {
        const float *page = cpu_behind(b->span->pages[p], b->offset);
        int whole = p < b->pos / chunk, cols = whole ? chunk : (last + W - 1) / W * W;

        cols = cols < chunk ? cols : chunk;
        for (int i = 0; i < n; i++)
            memset(scores[i], 0, (size_t)cols * sizeof(float));
        CPU(product)
        (score, in, 1, n, page + (size_t)b->g * d * chunk, (size_t)chunk, d, cols);
        for (int i = 0; i < n; i++)
            softmax_page(run, i, scores[i], cols,
                         whole ? cols : (int)(b->pos % chunk) + i / b->heads + 1, d, scale);
        CPU(product)
        (out, prob, 1, n, page + keys + (size_t)b->g * chunk * d, (size_t)d, whole ? chunk : last,
         d);
    }
}

/* `run` takes in the softmax of the positions after its own. */
static void range_add(Running *run, const Running *more, int rows, int dim)
{
    for (int i = 0; i < rows; i++) {
        float top = more->top[i] > run->top[i] ? more->top[i] : run->top[i];
        float mine = vexp(vset(run->top[i] - top))[0], theirs = vexp(vset(more->top[i] - top))[0];

        run->top[i] = top;
        run->sum[i] = run->sum[i] * mine + more->sum[i] * theirs;
        for (int c = 0; c < dim; c += W) {
            vf a = vload_n(run->out[i] + c, dim - c), b = vload_n(more->out[i] + c, dim - c);

            vstore_n(run->out[i] + c, vfma(b, vset(theirs), a * mine), dim - c);
        }
    }
}

static void block_end(const Running *run, const Block *b)
{
    for (int i = 0; i < b->rows * b->heads; i++) {
        size_t at = (size_t)(b->row + i / b->heads) * b->s.heads + b->h + i % b->heads;

        for (int c = 0; c < b->s.dim; c++)
            b->o[at * b->s.dim + c] = run->out[i][c] / run->sum[i];
        if (b->lse)
            b->lse[at] = run->top[i] + logf(run->sum[i]);
    }
}

static int64_t range_pages(int64_t pages)
{
    int64_t even = (pages + RANGES - 1) / RANGES;

    return even > RANGE_PAGES ? even : RANGE_PAGES;
}

static void block_run(const Block *b)
{
    int64_t pages = b->pos / b->s.chunk + 1, length = range_pages(pages);
    Running run, more;

    for (int64_t p = 0; p < pages; p += length) {
        range_run(p ? &more : &run, b, p, p + length < pages ? p + length : pages);
        if (p)
            range_add(&run, &more, b->rows * b->heads, b->s.dim);
    }
    block_end(&run, b);
}

/* The same, its runs of pages shared out. */
static void block_run_wide(const Block *b)
{
    int64_t pages = b->pos / b->s.chunk + 1, length = range_pages(pages);
    int ranges = (int)((pages + length - 1) / length);
    Running runs[RANGES];

#pragma omp parallel for schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        range_run(&runs[r], b, r * length, (r + 1) * length < pages ? (r + 1) * length : pages);
    for (int r = 1; r < ranges; r++)
        range_add(&runs[0], &runs[r], b->rows * b->heads, b->s.dim);
    block_end(&runs[0], b);
}

/* ---- sharing out ---- */

/* How the heads of a group and the rows of a page are cut into blocks. */
typedef struct {
    int group, heads, parts; /* heads of a group; of a block; blocks across a group */
    int rows;                /* of a block, at most */
} Cut;

static Cut cut_of(OpsHeads s)
{
    Cut cut = {.group = s.heads / s.kv_heads};

    cut.heads = cut.group < BLOCK_MAX ? cut.group : BLOCK_MAX;
    cut.parts = (cut.group + cut.heads - 1) / cut.heads;
    cut.rows = BLOCK_MAX / cut.heads;
    return cut;
}

/* Rows of the span's block that begins at row t: no more than its page has. */
static int rows_at(const OpsSpan *span, const Cut *cut, OpsHeads s, int t)
{
    int c = (int)((span->pos0 + t) % s.chunk), rows = cut->rows;

    rows = rows < span->rows - t ? rows : span->rows - t;
    return rows < s.chunk - c ? rows : s.chunk - c;
}

typedef struct {
    void (*run)(const Block *b);
    int index, every; /* does the blocks whose number is index modulo every */
    int blocks;       /* how many there were */
} Walk;

/* All blocks of a call in order. */
static void walk(Walk *w, const Block *call, const OpsSpan *spans, int n_spans)
{
    Cut cut = cut_of(call->s);
    Block b = *call;

    for (int n = 0; n < n_spans; n++)
        for (int t = 0; t < spans[n].rows; t += b.rows) {
            b.span = &spans[n];
            b.pos = spans[n].pos0 + t;
            b.row = spans[n].row0 + t;
            b.rows = rows_at(&spans[n], &cut, b.s, t);
            for (int part = 0; part < b.s.kv_heads * cut.parts; part++) {
                int first = part % cut.parts * cut.heads;

                b.g = part / cut.parts;
                b.h = b.g * cut.group + first;
                b.heads = cut.group - first < cut.heads ? cut.group - first : cut.heads;
                if (w->run && w->blocks % w->every == w->index)
                    w->run(&b);
                w->blocks++;
            }
        }
}

/* Blocks this few are not worth sharing out whole. */
#define BLOCKS_FEW 16

void CPU(attn_fwd)(void *o, void *lse, const void *q, const void *k, const void *v,
                   const OpsSpan *spans, int n_spans, size_t page_offset, OpsHeads s)
{
    Block call = {.s = s, .offset = page_offset, .q = q, .o = o, .lse = lse};
    Walk count = {.every = 1};
    double work = 0;
    int64_t longest = 0;

    for (int n = 0; n < n_spans; n++) {
        int64_t end = spans[n].pos0 + spans[n].rows;

        kv_write(&spans[n], k, v, page_offset, s);
        work += (double)spans[n].rows * s.heads * s.dim * (double)end;
        longest = end > longest ? end : longest;
    }
    walk(&count, &call, spans, n_spans);
    if (count.blocks < BLOCKS_FEW && longest > 4 * RANGE_PAGES * s.chunk &&
        work > CPU_PARALLEL_WORK) {
        walk(&(Walk){.run = block_run_wide, .every = 1}, &call, spans, n_spans);
        return;
    }
#pragma omp parallel for schedule(static, 1) if (work > CPU_PARALLEL_WORK)
    for (int i = 0; i < BLOCKS_FEW; i++)
        walk(&(Walk){.run = block_run, .index = i, .every = BLOCKS_FEW}, &call, spans, n_spans);
}
