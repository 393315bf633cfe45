/*
 * Gradients of lightning attention on a card (equations: ops.h, lightning_bwd).
 *
 * Spans go one by one, last to first. Of a span, the states S at chunk starts and the gradients G
 * of the states after chunks are made first: a block owns a tile of one head's state and goes
 * through the chunks. All of dq, dk and dv follow at once, a block for each chunk, head and slice.
 *
 * Invariants
 *  1. What a span adds to dstate_in and dopen is there before the span that it continues runs.
 *  2. S lies in the caller's scratch; G, and keys and values in one place (a span's first chunk may
 *     begin before the span), in the backend's.
 *
 * Not here: spans of one call side by side.
 */
#include "kernels/cuda/lightning.h"

/* A span on the card; kv: [H][2][chunks * C][d], s and g: [H][chunks][d][d]. */
typedef struct {
    int row0, rows, chunks;
    int64_t pos0;
    const float *qkv, *up, *decay;
    const float *state_in, *open, *dstate_out;
    float *dqkv, *dstate_in, *dopen, *kv, *s, *g;
    LightShape shape;
} BwdSpan;

typedef struct {
    Tile<2, 2> tile;
    float scores[OPS_CHUNK_MAX][CHUNK_LD]; /* [row of the span][j] */
} BwdSmem;

/* Row r, step i of a side of a product: data[r * row + i * inner]. */
typedef struct {
    const float *data;
    size_t row, inner;
} Lie;

static __device__ __forceinline__ Lie lie(const float *data, size_t row, size_t inner)
{
    Lie l = {data, row, inner};

    return l;
}

static __device__ __forceinline__ LightChunk chunk_of(const BwdSpan &b, int n)
{
    return light_chunk(b.pos0, b.row0, b.rows, n, b.shape.chunk);
}

/* q of the chunk's first own row, as rows of channels; dO likewise. */
static __device__ __forceinline__ Lie q_rows(const BwdSpan &b, const LightChunk &c, int head)
{
    return lie(b.qkv + light_at(b.shape, head, c.t0, 0), light_qkv_row(b.shape), 1);
}

static __device__ __forceinline__ Lie up_rows(const BwdSpan &b, const LightChunk &c, int head)
{
    return lie(b.up + (size_t)c.t0 * light_o_row(b.shape) + (size_t)head * b.shape.dim,
               light_o_row(b.shape), 1);
}

/* k (part 0) or v (part 1) of all rows of chunk n. */
static __device__ __forceinline__ Lie kv_rows(const BwdSpan &b, int n, int head, int part)
{
    size_t row = (size_t)(2 * head + part) * b.chunks + (size_t)n;

    return lie(b.kv + row * b.shape.chunk * b.shape.dim, (size_t)b.shape.dim, 1);
}

/* The same numbers, columns as rows. */
static __device__ __forceinline__ Lie turned(Lie l)
{
    return lie(l.data, l.inner, l.row);
}

static __device__ __forceinline__ const float *lambda_of(const BwdSpan &b, int head)
{
    return b.decay + (size_t)head * (b.shape.chunk + 1);
}

/* acc += A B^T over k, rows of A from a0 on, of B from b0 on. */
static __device__ __forceinline__ void add_product(Acc acc, Tile<2, 2> *tile, const Lie &a, int a0,
                                                   int m, const Lie &b, int b0, int n, int k,
                                                   const float *factor, int step)
{
    rows_at(tile->a_at, m, a.data + (size_t)a0 * a.row, a.row, sizeof(float));
    rows_at(tile->b_at, n, b.data + (size_t)b0 * b.row, b.row, sizeof(float));
    tile_product<2, 2>(acc, tile, side_scaled(a.inner, factor, step), m, side(b.inner), n, k);
}

static __device__ __forceinline__ size_t open_key(const LightShape &s, int head, int j, int i)
{
    return ((size_t)head * s.dim + i) * s.chunk + j;
}

static __device__ __forceinline__ size_t open_value(const LightShape &s, int head, int j, int i)
{
    return ((size_t)(s.heads + head) * s.chunk + j) * s.dim + i;
}

/* ---- keys and values in one place ---- */

static __global__ void gather_kernel(BwdSpan b)
{
    const LightShape &s = b.shape;
    int head = (int)blockIdx.y, n = (int)blockIdx.x;
    LightChunk c = chunk_of(b, n);

    for (int at = (int)threadIdx.x; at < 2 * c.rows * s.dim; at += TILE_BLOCK) {
        int part = at / (c.rows * s.dim), j = at / s.dim % c.rows, i = at % s.dim;
        float *to = b.kv + ((size_t)((2 * head + part) * b.chunks + n) * s.chunk + j) * s.dim + i;

        if (j >= c.first)
            *to = b.qkv[light_at(s, head, c.t0 + j - c.first, 1 + part) + i];
        else
            *to = b.open[part ? open_value(s, head, j, i) : open_key(s, head, j, i)];
    }
}

/* ---- S and G: a block owns rows r0 .. and columns c0 .. of one head's ---- */

typedef struct {
    int head, r0, c0, m, n;
    size_t one; /* elements of a state */
} Owned;

static __device__ __forceinline__ Owned owned(const BwdSpan &b)
{
    int d = b.shape.dim, r0 = (int)blockIdx.y * TILE_M, c0 = (int)blockIdx.z * TILE_N;
    Owned o = {(int)blockIdx.x,
               r0,
               c0,
               d - r0 < TILE_M ? d - r0 : TILE_M,
               d - c0 < TILE_N ? d - c0 : TILE_N,
               (size_t)d * d};

    return o;
}

static __device__ __forceinline__ size_t owned_at(const Owned &o, int d, int row, int col)
{
    return (size_t)(o.r0 + row) * d + o.c0 + col;
}

/* The block's part of a state [H][d][d]; NULL is zero. */
static __device__ __forceinline__ void owned_load(Acc acc, const Owned &o, int d, const float *from)
{
    acc_zero(acc);
    FOR_ACC (i, j, e, o.m, o.n)
        acc[i][j][e] =
            from ? from[(size_t)o.head * o.one + owned_at(o, d, acc_row(i, e), acc_col(j, e))] : 0;
}

/* Chunk n's, to [H][chunks][d][d]; then times `by`. */
static __device__ __forceinline__ void owned_keep(Acc acc, const Owned &o, const BwdSpan &b,
                                                  float *to, int n, float by)
{
    to += ((size_t)o.head * b.chunks + n) * o.one;
    FOR_ACC (i, j, e, o.m, o.n) {
        to[owned_at(o, b.shape.dim, acc_row(i, e), acc_col(j, e))] = acc[i][j][e];
        acc[i][j][e] *= by;
    }
}

static __global__ void __launch_bounds__(TILE_BLOCK) lightning_states_kernel(BwdSpan b)
{
    DYN_SMEM(void, dynamic);
    Tile<2, 2> *tile = (Tile<2, 2> *)dynamic;
    Owned o = owned(b);
    int chunk = b.shape.chunk;
    const float *lambda = lambda_of(b, o.head);
    Acc acc;

    owned_load(acc, o, b.shape.dim, b.state_in);
    for (int n = 0; n < b.chunks; n++) {
        owned_keep(acc, o, b, b.s, n, lambda[chunk]);
        if (n + 1 < b.chunks)
            add_product(acc, tile, turned(kv_rows(b, n, o.head, 0)), o.r0, o.m,
                        turned(kv_rows(b, n, o.head, 1)), o.c0, o.n, chunk, lambda + chunk - 1, -1);
    }
}

static __global__ void __launch_bounds__(TILE_BLOCK) lightning_dstates_kernel(BwdSpan b)
{
    DYN_SMEM(void, dynamic);
    Tile<2, 2> *tile = (Tile<2, 2> *)dynamic;
    Owned o = owned(b);
    int d = b.shape.dim, chunk = b.shape.chunk;
    const float *lambda = lambda_of(b, o.head);
    Acc acc;

    owned_load(acc, o, d, b.dstate_out);
    for (int n = b.chunks - 1; n >= 0; n--) {
        LightChunk c = chunk_of(b, n);

        owned_keep(acc, o, b, b.g, n, c.rows == chunk ? lambda[chunk] : 1);
        add_product(acc, tile, turned(q_rows(b, c, o.head)), o.r0, o.m,
                    turned(up_rows(b, c, o.head)), o.c0, o.n, c.rows - c.first,
                    lambda + c.first + 1, 1);
    }
    if (!b.dstate_in)
        return;
    FOR_ACC (i, j, e, o.m, o.n)
        b.dstate_in[(size_t)o.head * o.one + owned_at(o, d, acc_row(i, e), acc_col(j, e))] +=
            acc[i][j][e];
}

/* ---- dq, dk, dv: a block owns a chunk, a head and TILE_N channels ---- */

/* scores [a][j] = lambda^(i-j) x_i . y_j for j <= i = first + a, else 0. */
static __device__ __forceinline__ void make_scores(BwdSmem *sm, const BwdSpan &b,
                                                   const LightChunk &c, const Lie &x, const Lie &y,
                                                   const float *lambda)
{
    int m = c.rows - c.first;
    Acc acc;

    acc_zero(acc);
    add_product(acc, &sm->tile, x, 0, m, y, 0, c.rows, b.shape.dim, NULL, 0);
    FOR_ACC (i, j, e, m, c.rows) {
        int apart = c.first + acc_row(i, e) - acc_col(j, e);

        sm->scores[acc_row(i, e)][acc_col(j, e)] = apart >= 0 ? lambda[apart] * acc[i][j][e] : 0;
    }
}

/* dq = dP k + lambda^(i+1) dO S^T. */
static __global__ void __launch_bounds__(TILE_BLOCK, 2) lightning_dq_kernel(BwdSpan b)
{
    DYN_SMEM(void, dynamic);
    BwdSmem *sm = (BwdSmem *)dynamic;
    const LightShape &s = b.shape;
    int n = (int)blockIdx.x, head = (int)blockIdx.y, c0 = (int)blockIdx.z * TILE_N;
    int width = s.dim - c0 < TILE_N ? s.dim - c0 : TILE_N;
    LightChunk c = chunk_of(b, n);
    const float *lambda = lambda_of(b, head);
    size_t d = (size_t)s.dim;
    const float *state = b.s + ((size_t)head * b.chunks + n) * d * d;
    int m = c.rows - c.first;
    Acc acc;

    make_scores(sm, b, c, up_rows(b, c, head), kv_rows(b, n, head, 1), lambda);
    acc_zero(acc);
    add_product(acc, &sm->tile, up_rows(b, c, head), 0, m, lie(state, d, 1), c0, width, s.dim, NULL,
                0);
    acc_scale(acc, lambda + c.first + 1, 1, m);
    add_product(acc, &sm->tile, lie(&sm->scores[0][0], CHUNK_LD, 1), 0, m,
                turned(kv_rows(b, n, head, 0)), c0, width, c.rows, NULL, 0);
    FOR_ACC (i, j, e, m, width)
        b.dqkv[light_at(s, head, c.t0 + acc_row(i, e), 0) + c0 + acc_col(j, e)] = acc[i][j][e];
}

/* dk (part 0) = dP^T q + lambda^(C-1-j) v G^T, dv (part 1) = P^T dO + lambda^(C-1-j) k G; what
 * belongs to rows before the span goes to dopen, what continuations left there is taken. */
static __device__ __forceinline__ void make_dkv(const BwdSpan &b, int part)
{
    DYN_SMEM(void, dynamic);
    BwdSmem *sm = (BwdSmem *)dynamic;
    const LightShape &s = b.shape;
    int n = (int)blockIdx.x, head = (int)blockIdx.y, c0 = (int)blockIdx.z * TILE_N;
    int width = s.dim - c0 < TILE_N ? s.dim - c0 : TILE_N;
    LightChunk c = chunk_of(b, n);
    const float *lambda = lambda_of(b, head);
    size_t d = (size_t)s.dim;
    Lie q = q_rows(b, c, head), up = up_rows(b, c, head);
    Lie g = lie(b.g + ((size_t)head * b.chunks + n) * d * d, d, 1);
    bool filled = c.rows == s.chunk;
    Acc acc;

    make_scores(sm, b, c, part ? q : up, kv_rows(b, n, head, part ? 0 : 1), lambda);
    acc_zero(acc);
    if (filled) {
        add_product(acc, &sm->tile, kv_rows(b, n, head, part ? 0 : 1), 0, c.rows,
                    part ? turned(g) : g, c0, width, s.dim, NULL, 0);
        acc_scale(acc, lambda + s.chunk - 1, -1, c.rows);
    }
    add_product(acc, &sm->tile, lie(&sm->scores[0][0], 1, CHUNK_LD), 0, c.rows,
                turned(part ? up : q), c0, width, c.rows - c.first, NULL, 0);
    FOR_ACC (i, j, e, c.rows, width) {
        int row = acc_row(i, e), col = c0 + acc_col(j, e);
        size_t at = part ? open_value(s, head, row, col) : open_key(s, head, row, col);

        if (row >= c.first)
            b.dqkv[light_at(s, head, c.t0 + row - c.first, 1 + part) + col] =
                acc[i][j][e] + (!filled && b.dopen ? b.dopen[at] : 0);
        else if (b.dopen)
            b.dopen[at] += acc[i][j][e];
    }
}

static __global__ void __launch_bounds__(TILE_BLOCK) lightning_dk_kernel(BwdSpan b)
{
    make_dkv(b, 0);
}

static __global__ void __launch_bounds__(TILE_BLOCK) lightning_dv_kernel(BwdSpan b)
{
    make_dkv(b, 1);
}

/* ---- host side ---- */

static float *behind(const void *base, size_t offset)
{
    return base ? (float *)(uintptr_t)((const char *)base + offset) : NULL;
}

static void launch_span(const BwdSpan &b)
{
    unsigned chunks = (unsigned)b.chunks, heads = (unsigned)b.shape.heads;
    unsigned slices = blocks_for((size_t)b.shape.dim, TILE_N, SIZE_MAX);
    dim3 tiles(heads, blocks_for((size_t)b.shape.dim, TILE_M, SIZE_MAX), slices);
    dim3 all(chunks, heads, slices);

    LAUNCH(gather_kernel, dim3(chunks, heads), TILE_BLOCK, 0, b);
    LAUNCH(lightning_states_kernel, tiles, TILE_BLOCK, (sizeof(Tile<2, 2>)), b);
    LAUNCH(lightning_dstates_kernel, tiles, TILE_BLOCK, (sizeof(Tile<2, 2>)), b);
    LAUNCH(lightning_dq_kernel, all, TILE_BLOCK, sizeof(BwdSmem), b);
    LAUNCH(lightning_dk_kernel, all, TILE_BLOCK, sizeof(BwdSmem), b);
    LAUNCH(lightning_dv_kernel, all, TILE_BLOCK, sizeof(BwdSmem), b);
}

void ENTRY(lightning_bwd)(void *dqkv, const void *do_, const void *qkv, const OpsSpan *spans,
                          const OpsSpanGrad *grads, int n_spans, size_t state_offset,
                          size_t open_offset, const void *decay, OpsHeads heads, void *scratch)
{
    LightShape s = {heads.heads, heads.dim, heads.chunk};
    size_t head_floats = (size_t)s.heads * (size_t)s.dim, kv, g;
    int most = 0;
    float *kv_room, *g_room;

    for (int n = 0; n < n_spans; n++) {
        int chunks = light_chunks(spans[n].pos0, spans[n].rows, s.chunk);

        most = chunks > most ? chunks : most;
    }
    if (most == 0)
        return;
    kv = 2 * head_floats * (size_t)most * (size_t)s.chunk * sizeof(float);
    g = head_floats * (size_t)s.dim * (size_t)most * sizeof(float);
    cuda_op_begin();
    kv_room = (float *)cuda_room(kv);
    g_room = (float *)cuda_room(g);
    cuda_allow_smem((const void *)lightning_states_kernel, sizeof(Tile<2, 2>));
    cuda_allow_smem((const void *)lightning_dstates_kernel, sizeof(Tile<2, 2>));
    cuda_allow_smem((const void *)lightning_dq_kernel, sizeof(BwdSmem));
    cuda_allow_smem((const void *)lightning_dk_kernel, sizeof(BwdSmem));
    cuda_allow_smem((const void *)lightning_dv_kernel, sizeof(BwdSmem));
    for (int n = n_spans - 1; n >= 0; n--) {
        BwdSpan b = {};

        b.row0 = spans[n].row0;
        b.rows = spans[n].rows;
        b.pos0 = spans[n].pos0;
        b.chunks = light_chunks(b.pos0, b.rows, s.chunk);
        b.qkv = (const float *)qkv;
        b.up = (const float *)do_;
        b.decay = (const float *)decay;
        b.state_in = behind(spans[n].state_in, state_offset);
        b.open = behind(spans[n].open, open_offset);
        b.dstate_out = behind(grads[n].dstate_out, state_offset);
        b.dqkv = (float *)dqkv;
        b.dstate_in = behind(grads[n].dstate_in, state_offset);
        b.dopen = behind(grads[n].dopen, open_offset);
        b.kv = kv_room;
        b.s = (float *)scratch;
        b.g = g_room;
        b.shape = s;
        if (b.chunks > 0)
            launch_span(b);
    }
    cuda_op_end("lightning_bwd");
}
