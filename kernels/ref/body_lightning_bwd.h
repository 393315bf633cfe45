/*
 * The backward of chunked lightning attention in scalar C (equations: ops.h, lightning_bwd).
 * A body without a guard: ref_f32.c and ref_f64.c include it after body_attention.h.
 */

/* One chunk of one head, as dense arrays. Rows before `first` came before the span. */
typedef struct {
    int first, rows; /* rows of the span: first .. rows - 1 */
    REAL k[OPS_CHUNK_MAX][OPS_DIM_MAX], v[OPS_CHUNK_MAX][OPS_DIM_MAX];
    REAL dk[OPS_CHUNK_MAX][OPS_DIM_MAX], dv[OPS_CHUNK_MAX][OPS_DIM_MAX];
} LightChunk;

/* Row j of chunk number n of the span, as a row of the span; negative before it. */
static int chunk_row(const LightHead *l, int n, int j)
{
    return (int)((int64_t)(l->span->pos0 / l->s.chunk + n) * l->s.chunk + j - l->span->pos0);
}

static void chunk_load(LightChunk *c, const LightHead *l, int n)
{
    int left = l->span->rows - chunk_row(l, n, 0);

    c->first = n == 0 ? (int)(l->span->pos0 % l->s.chunk) : 0;
    c->rows = left < l->s.chunk ? left : l->s.chunk;
    for (int j = 0; j < c->rows; j++)
        for (int i = 0; i < l->s.dim; i++) {
            int before = j < c->first, t = chunk_row(l, n, j);

            c->k[j][i] =
                before ? l->open[key_at(l->s, l->head, i, j)] : l->qkv[light_at(l, t, 1) + i];
            c->v[j][i] = before ? l->open[value_at(l->s, l->s.heads, l->head, i, j)]
                                : l->qkv[light_at(l, t, 2) + i];
            c->dk[j][i] = c->dv[j][i] = 0;
        }
}

/* states[n] = the state before chunk n of the span. */
static void chunk_states(REAL *states, LightChunk *c, const LightHead *l, int chunks)
{
    int d = l->s.dim;
    size_t one = (size_t)d * d;

    for (size_t i = 0; i < one; i++)
        states[i] = l->state_in ? l->state_in[i] : 0;
    for (int n = 0; n + 1 < chunks; n++) {
        chunk_load(c, l, n);
        for (int r = 0; r < d; r++)
            for (int i = 0; i < d; i++) {
                REAL sum = l->lambda[l->s.chunk] * states[n * one + (size_t)r * d + i];

                for (int j = 0; j < c->rows; j++)
                    sum += l->lambda[c->rows - 1 - j] * c->k[j][r] * c->v[j][i];
                states[(n + 1) * one + (size_t)r * d + i] = sum;
            }
    }
}

/* What the fold of a filled chunk hands back to its keys and values. */
static void fold_bwd(LightChunk *c, const LightHead *l, const REAL *dstate)
{
    int d = l->s.dim;

    for (int j = 0; j < c->rows; j++)
        for (int r = 0; r < d; r++)
            for (int i = 0; i < d; i++) {
                REAL g = l->lambda[c->rows - 1 - j] * dstate[(size_t)r * d + i];

                c->dk[j][r] += g * c->v[j][i];
                c->dv[j][i] += g * c->k[j][r];
            }
}

/* Row i of the chunk: dq, and its share of dk and dv. */
static void row_bwd(REAL *dq, LightChunk *c, const LightHead *l, const REAL *q, const REAL *up,
                    const REAL *state, int i)
{
    int d = l->s.dim;

    for (int r = 0; r < d; r++) {
        REAL sum = 0;

        for (int x = 0; x < d; x++)
            sum += up[x] * state[(size_t)r * d + x];
        dq[r] = l->lambda[i + 1] * sum;
    }
    for (int j = 0; j <= i; j++) {
        REAL p = 0, dp = 0;

        for (int x = 0; x < d; x++) {
            p += q[x] * c->k[j][x];
            dp += up[x] * c->v[j][x];
        }
        p *= l->lambda[i - j];
        dp *= l->lambda[i - j];
        for (int x = 0; x < d; x++) {
            dq[x] += dp * c->k[j][x];
            c->dk[j][x] += dp * q[x];
            c->dv[j][x] += p * up[x];
        }
    }
}

/* dstate <- lambda^C dstate (a filled chunk; else as it is) + sum_i lambda^(i+1) q_i^T dO_i. */
static void state_bwd(REAL *dstate, const LightChunk *c, const LightHead *l, const REAL *up, int n)
{
    int d = l->s.dim;
    REAL scale = c->rows == l->s.chunk ? l->lambda[l->s.chunk] : 1;

    for (int r = 0; r < d; r++)
        for (int i = 0; i < d; i++) {
            REAL sum = scale * dstate[(size_t)r * d + i];

            for (int j = c->first; j < c->rows; j++) {
                int t = chunk_row(l, n, j);
                size_t row = (size_t)(l->span->row0 + t) * l->s.heads + l->head;

                sum += l->lambda[j + 1] * l->qkv[light_at(l, t, 0) + r] * up[row * d + i];
            }
            dstate[(size_t)r * d + i] = sum;
        }
}

/* Gradients of the open chunk: taken from what continuations left, left for the rows before. */
static void open_bwd(LightChunk *c, const LightHead *l, REAL *dopen, int give)
{
    int from = give ? 0 : c->first, to = give ? c->first : c->rows;

    for (int j = from; j < to; j++)
        for (int i = 0; i < l->s.dim; i++) {
            REAL *k = &dopen[key_at(l->s, l->head, i, j)];
            REAL *v = &dopen[value_at(l->s, l->s.heads, l->head, i, j)];

            if (give) {
                *k += c->dk[j][i];
                *v += c->dv[j][i];
            } else {
                c->dk[j][i] += *k;
                c->dv[j][i] += *v;
            }
        }
}

static void chunk_bwd(REAL *dqkv, LightChunk *c, const LightHead *l, const REAL *up, REAL *dstate,
                      REAL *dopen, const REAL *state, int n)
{
    int d = l->s.dim, filled = c->rows == l->s.chunk;

    if (filled)
        fold_bwd(c, l, dstate);
    else if (dopen)
        open_bwd(c, l, dopen, 0);
    for (int j = c->first; j < c->rows; j++) {
        int t = chunk_row(l, n, j);
        size_t row = (size_t)(l->span->row0 + t) * l->s.heads + l->head;

        row_bwd(dqkv + light_at(l, t, 0), c, l, l->qkv + light_at(l, t, 0), up + row * d, state, j);
    }
    for (int j = c->first; j < c->rows; j++) {
        size_t at = light_at(l, chunk_row(l, n, j), 1);

        memcpy(dqkv + at, c->dk[j], (size_t)d * sizeof(REAL));
        memcpy(dqkv + at + d, c->dv[j], (size_t)d * sizeof(REAL));
    }
    state_bwd(dstate, c, l, up, n);
    if (n == 0 && c->first > 0 && dopen)
        open_bwd(c, l, dopen, 1);
}

static void ref_lightning_bwd(void *dqkv, const void *do_, const void *qkv, const OpsSpan *spans,
                              const OpsSpanGrad *grads, int n_spans, size_t state_offset,
                              size_t open_offset, const void *decay, OpsHeads s, void *scratch)
{
    static _Thread_local LightChunk chunk;
    static _Thread_local REAL dstate[OPS_DIM_MAX * OPS_DIM_MAX];
    size_t one = (size_t)s.dim * s.dim;

    for (int n = n_spans - 1; n >= 0; n--) {
        int64_t first = spans[n].pos0 / s.chunk;
        int chunks = (int)((spans[n].pos0 + spans[n].rows + s.chunk - 1) / s.chunk - first);

        for (int h = 0; h < s.heads && spans[n].rows > 0; h++) {
            LightHead l = light_head(&spans[n], h, qkv, decay, state_offset, open_offset, s);
            REAL *dopen = grads[n].dopen ? behind(grads[n].dopen, open_offset) : NULL;

            memset(dstate, 0, one * sizeof(REAL));
            if (grads[n].dstate_out)
                memcpy(dstate, behind(grads[n].dstate_out, state_offset) + h * one,
                       one * sizeof(REAL));
            chunk_states(scratch, &chunk, &l, chunks);
            for (int c = chunks - 1; c >= 0; c--) {
                chunk_load(&chunk, &l, c);
                chunk_bwd(dqkv, &chunk, &l, do_, dstate, dopen, (REAL *)scratch + c * one, c);
            }
            for (size_t i = 0; grads[n].dstate_in && i < one; i++)
                behind(grads[n].dstate_in, state_offset)[h * one + i] += dstate[i];
        }
    }
}
