/*
 * Products of small dense matrices, for everything that is not a packed weight: scores, states,
 * gradients. And turning a matrix over, which makes one operand fit.
 *
 * Invariants
 *  1. An element is one chain of fused multiply-adds over ascending k that begins at its old value,
 *     whatever the rows, the columns and the tiles around it.
 *  2. Nothing beyond `cols` columns of b or out is touched.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

typedef struct {
    float *const *out;
    const float *const *a;
    size_t lda, ldb;
    const float *b;
    int kn;
} Product;

/* mr rows, nv vectors of columns from `col` on; mr and nv are constants at every call. */
INLINE void block(const Product *p, int mr, int nv, int col)
{
    vf acc[TILE_ROWS][TILE_COLS];
    const void *cols[TILE_COLS / 2];

    for (int j = 0; j < nv; j += 2)
        cols[j / 2] = p->b + col + j * W;
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++)
            acc[i][j] = vload(p->out[i] + col + j * W);
    tile(mr, nv, p->kn, p->a, p->lda, cols, p->ldb, 0, acc);
    for (int i = 0; i < mr; i++)
        for (int j = 0; j < nv; j++)
            vstore(p->out[i] + col + j * W, acc[i][j]);
}

#define PAIR_CASE(mr)                                                                              \
    case mr:                                                                                       \
        block(p, mr, 2, col);                                                                      \
        break;

static void block_pair(const Product *p, int mr, int col)
{
    switch (mr) {
        FOR_TILE_ROWS(PAIR_CASE)
    default:
        break;
    }
}

#define ONE_CASE(mr)                                                                               \
    case mr:                                                                                       \
        block(p, mr, 1, col);                                                                      \
        break;

static void block_one(const Product *p, int mr, int col)
{
    switch (mr) {
        FOR_TILE_ROWS(ONE_CASE)
    default:
        break;
    }
}

/* Fewer columns than a vector has. */
static void block_rest(const Product *p, int mr, int col, int n)
{
    for (int i = 0; i < mr; i++) {
        vf acc = vload_part(p->out[i] + col, n);

        for (int k = 0; k < p->kn; k++)
            acc = vfma(vset(p->a[i][(size_t)k * p->lda]),
                       vload_part(p->b + (size_t)k * p->ldb + col, n), acc);
        vstore_part(p->out[i] + col, acc, n);
    }
}

/* Few rows take many columns at once, to have enough chains in flight. */
static void rows_of(const Product *p, int mr, int cols)
{
    int col = 0;

    if (mr == 1)
        for (; col + 8 * W <= cols; col += 8 * W)
            block(p, 1, 8, col);
    if (mr == 1)
        for (; col + 4 * W <= cols; col += 4 * W)
            block(p, 1, 4, col);
    if (mr == 2)
        for (; col + 4 * W <= cols; col += 4 * W)
            block(p, 2, 4, col);
    for (; col + 2 * W <= cols; col += 2 * W)
        block_pair(p, mr, col);
    for (; col + W <= cols; col += W)
        block_one(p, mr, col);
    if (col < cols)
        block_rest(p, mr, col, cols - col);
}

void CPU(product)(float *const *out, const float *const *a, size_t lda, int rows, const float *b,
                  size_t ldb, int kn, int cols)
{
    for (int i = 0; i < rows; i += TILE_ROWS) {
        Product p = {out + i, a + i, lda, ldb, b, kn};

        rows_of(&p, rows - i < TILE_ROWS ? rows - i : TILE_ROWS, cols);
    }
}

void CPU(product_even)(float *out, size_t ldo, const float *a, size_t row, size_t lda, int rows,
                       const float *b, size_t ldb, int kn, int cols)
{
    for (int i = 0; i < rows; i += TILE_ROWS) {
        int mr = rows - i < TILE_ROWS ? rows - i : TILE_ROWS;
        float *to[TILE_ROWS];
        const float *from[TILE_ROWS];
        Product p = {to, from, lda, ldb, b, kn};

        for (int r = 0; r < mr; r++) {
            to[r] = out + (size_t)(i + r) * ldo;
            from[r] = a + (size_t)(i + r) * row;
        }
        rows_of(&p, mr, cols);
    }
}

void CPU(transpose)(float *to, size_t ldt, const float *from, size_t ldf, int rows, int cols)
{
    int r = 0;

    for (; r + W <= rows; r += W) {
        int c = 0;

        for (; c + W <= cols; c += W) {
            vf square[W];

            for (int i = 0; i < W; i++)
                square[i] = vload(from + (size_t)(r + i) * ldf + c);
            vtranspose(square);
            for (int i = 0; i < W; i++)
                vstore(to + (size_t)(c + i) * ldt + r, square[i]);
        }
        for (; c < cols; c++)
            for (int i = r; i < r + W; i++)
                to[(size_t)c * ldt + i] = from[(size_t)i * ldf + c];
    }
    for (; r < rows; r++)
        for (int c = 0; c < cols; c++)
            to[(size_t)c * ldt + r] = from[(size_t)r * ldf + c];
}
