/*
 * Both attentions in scalar C, row by row as the equations stand, backward included.
 * A body without a guard: ref_f32.c and ref_f64.c include it after body_dense.h.
 */

/* Where channel i of position p lies within one head's block of a page or an open chunk. */
static size_t key_at(OpsHeads s, int head, int i, int64_t p)
{
    return ((size_t)head * s.dim + i) * s.chunk + (size_t)(p % s.chunk);
}

static size_t value_at(OpsHeads s, int heads, int head, int i, int64_t p)
{
    size_t keys = (size_t)heads * s.dim * s.chunk;

    return keys + ((size_t)head * s.chunk + (size_t)(p % s.chunk)) * s.dim + i;
}

static REAL *behind(const void *base, size_t offset)
{
    return (REAL *)(uintptr_t)((const char *)base + offset);
}

/* ---- softmax attention ---- */

static REAL *page_of(const OpsSpan *span, int64_t p, size_t offset, OpsHeads s)
{
    return behind(span->pages[p / s.chunk], offset);
}

static void pages_write(const OpsSpan *span, const REAL *k, const REAL *v, size_t offset,
                        OpsHeads s)
{
    for (int t = 0; t < span->rows; t++) {
        int64_t p = span->pos0 + t;
        REAL *page = page_of(span, p, offset, s);

        for (int g = 0; g < s.kv_heads; g++)
            for (int i = 0; i < s.dim; i++) {
                size_t from = ((size_t)(span->row0 + t) * s.kv_heads + g) * s.dim + i;

                page[key_at(s, g, i, p)] = k[from];
                page[value_at(s, s.kv_heads, g, i, p)] = v[from];
            }
    }
}

/* q . k / sqrt(d) of one head against position p. */
static REAL score(const REAL *q, const REAL *page, int g, int64_t p, OpsHeads s)
{
    REAL sum = 0;

    for (int i = 0; i < s.dim; i++)
        sum += q[i] * page[key_at(s, g, i, p)];
    return sum / MATH(sqrt)((REAL)s.dim);
}

static void attn_row(REAL *o, REAL *lse, const REAL *q, const OpsSpan *span, int64_t last, int g,
                     size_t offset, OpsHeads s)
{
    REAL top = -(REAL)INFINITY, sum = 0;

    for (int64_t p = 0; p <= last; p++)
        top = MATH(fmax)(top, score(q, page_of(span, p, offset, s), g, p, s));
    memset(o, 0, (size_t)s.dim * sizeof(REAL));
    for (int64_t p = 0; p <= last; p++) {
        const REAL *page = page_of(span, p, offset, s);
        REAL e = MATH(exp)(score(q, page, g, p, s) - top);

        sum += e;
        for (int i = 0; i < s.dim; i++)
            o[i] += e * page[value_at(s, s.kv_heads, g, i, p)];
    }
    for (int i = 0; i < s.dim; i++)
        o[i] /= sum;
    if (lse)
        *lse = top + MATH(log)(sum);
}

static void ref_attn_fwd(void *o, void *lse, const void *q, const void *k, const void *v,
                         const OpsSpan *spans, int n_spans, size_t page_offset, OpsHeads s)
{
    int group = s.heads / s.kv_heads;

    for (int n = 0; n < n_spans; n++) {
        pages_write(&spans[n], k, v, page_offset, s);
        for (int t = 0; t < spans[n].rows; t++)
            for (int h = 0; h < s.heads; h++) {
                size_t row = (size_t)(spans[n].row0 + t) * s.heads + h;

                attn_row((REAL *)o + row * s.dim, lse ? (REAL *)lse + row : NULL,
                         (const REAL *)q + row * s.dim, &spans[n], spans[n].pos0 + t, h / group,
                         page_offset, s);
            }
    }
}

static void attn_row_bwd(REAL *dq, const REAL *up, const REAL *o, REAL lse, const REAL *q,
                         const OpsSpan *span, const OpsSpanGrad *grad, int64_t last, int g,
                         size_t offset, OpsHeads s)
{
    REAL scale = 1 / MATH(sqrt)((REAL)s.dim), delta = 0;

    for (int i = 0; i < s.dim; i++)
        delta += up[i] * o[i];
    memset(dq, 0, (size_t)s.dim * sizeof(REAL));
    for (int64_t p = 0; p <= last; p++) {
        const REAL *page = page_of(span, p, offset, s);
        REAL *dpage = behind(grad->dpages[p / s.chunk], offset);
        REAL prob = MATH(exp)(score(q, page, g, p, s) - lse), dot = 0;

        for (int i = 0; i < s.dim; i++) {
            dot += up[i] * page[value_at(s, s.kv_heads, g, i, p)];
            dpage[value_at(s, s.kv_heads, g, i, p)] += prob * up[i];
        }
        for (int i = 0; i < s.dim; i++) {
            REAL ds = prob * (dot - delta) * scale;

            dq[i] += ds * page[key_at(s, g, i, p)];
            dpage[key_at(s, g, i, p)] += ds * q[i];
        }
    }
}

static void ref_attn_bwd(void *dq, void *dk, void *dv, const void *do_, const void *o,
                         const void *lse, const void *q, const OpsSpan *spans,
                         const OpsSpanGrad *grads, int n_spans, size_t page_offset, OpsHeads s)
{
    int group = s.heads / s.kv_heads;

    for (int n = n_spans - 1; n >= 0; n--) {
        const OpsSpan *span = &spans[n];

        for (int t = 0; t < span->rows; t++)
            for (int h = 0; h < s.heads; h++) {
                size_t row = (size_t)(span->row0 + t) * s.heads + h, at = row * s.dim;

                attn_row_bwd((REAL *)dq + at, (const REAL *)do_ + at, (const REAL *)o + at,
                             ((const REAL *)lse)[row], (const REAL *)q + at, span, &grads[n],
                             span->pos0 + t, h / group, page_offset, s);
            }
        for (int t = 0; t < span->rows; t++) {
            int64_t p = span->pos0 + t;
            const REAL *dpage = behind(grads[n].dpages[p / s.chunk], page_offset);

            for (int g = 0; g < s.kv_heads; g++)
                for (int i = 0; i < s.dim; i++) {
                    size_t to = ((size_t)(span->row0 + t) * s.kv_heads + g) * s.dim + i;

                    ((REAL *)dk)[to] = dpage[key_at(s, g, i, p)];
                    ((REAL *)dv)[to] = dpage[value_at(s, s.kv_heads, g, i, p)];
                }
        }
    }
}

/* ---- lightning attention ---- */

/* One head of one span: where its numbers lie. */
typedef struct {
    OpsHeads s;
    int head;
    const OpsSpan *span;
    const REAL *qkv, *lambda; /* lambda[n] = decay^n */
    const REAL *state_in;
    REAL *state_out, *open;
} LightHead;

static LightHead light_head(const OpsSpan *span, int head, const void *qkv, const void *decay,
                            size_t state_offset, size_t open_offset, OpsHeads s)
{
    size_t one = (size_t)head * s.dim * s.dim;

    return (LightHead){
        .s = s,
        .head = head,
        .span = span,
        .qkv = qkv,
        .lambda = (const REAL *)decay + (size_t)head * (s.chunk + 1),
        .state_in = span->state_in ? behind(span->state_in, state_offset) + one : NULL,
        .state_out = span->state_out ? behind(span->state_out, state_offset) + one : NULL,
        .open = behind(span->open, open_offset),
    };
}

/* q (part 0), k (1) or v (2) of row t of the span. */
static size_t light_at(const LightHead *l, int t, int part)
{
    return (((size_t)(l->span->row0 + t) * l->s.heads + l->head) * 3 + part) * l->s.dim;
}

static void light_keep(const LightHead *l, int t)
{
    int64_t p = l->span->pos0 + t;

    for (int i = 0; i < l->s.dim; i++) {
        l->open[key_at(l->s, l->head, i, p)] = l->qkv[light_at(l, t, 1) + i];
        l->open[value_at(l->s, l->s.heads, l->head, i, p)] = l->qkv[light_at(l, t, 2) + i];
    }
}

static void light_row(REAL *o, const LightHead *l, int t, const REAL *state)
{
    int d = l->s.dim, i = (int)((l->span->pos0 + t) % l->s.chunk);
    const REAL *q = l->qkv + light_at(l, t, 0);

    for (int c = 0; c < d; c++) {
        REAL sum = 0;

        for (int r = 0; state && r < d; r++)
            sum += q[r] * state[(size_t)r * d + c];
        o[c] = l->lambda[i + 1] * sum;
    }
    for (int j = 0; j <= i; j++) {
        REAL dot = 0;

        for (int r = 0; r < d; r++)
            dot += q[r] * l->open[key_at(l->s, l->head, r, j)];
        for (int c = 0; c < d; c++)
            o[c] += l->lambda[i - j] * dot * l->open[value_at(l->s, l->s.heads, l->head, c, j)];
    }
}

/* to = lambda^C from + sum_j lambda^(C-1-j) k_j^T v_j; from NULL is the zero state. */
static void light_fold(const LightHead *l, REAL *to, const REAL *from)
{
    int d = l->s.dim, chunk = l->s.chunk;

    for (int r = 0; r < d; r++)
        for (int c = 0; c < d; c++) {
            REAL sum = from ? l->lambda[chunk] * from[(size_t)r * d + c] : 0;

            for (int j = 0; j < chunk; j++)
                sum += l->lambda[chunk - 1 - j] * l->open[key_at(l->s, l->head, r, j)] *
                       l->open[value_at(l->s, l->s.heads, l->head, c, j)];
            to[(size_t)r * d + c] = sum;
        }
}

static void ref_lightning_fwd(void *o, const void *qkv, const OpsSpan *spans, int n_spans,
                              size_t state_offset, size_t open_offset, const void *decay,
                              OpsHeads s)
{
    for (int n = 0; n < n_spans; n++)
        for (int h = 0; h < s.heads; h++) {
            LightHead l = light_head(&spans[n], h, qkv, decay, state_offset, open_offset, s);
            const REAL *state = l.state_in;

            for (int t = 0; t < spans[n].rows; t++) {
                size_t row = (size_t)(spans[n].row0 + t) * s.heads + h;

                light_keep(&l, t);
                light_row((REAL *)o + row * s.dim, &l, t, state);
                if ((spans[n].pos0 + t) % s.chunk == s.chunk - 1) {
                    light_fold(&l, l.state_out, state);
                    state = l.state_out;
                }
            }
        }
}
