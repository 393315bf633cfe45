/*
 * Admission, batches, sampling, ends.
 *
 * Invariants
 *  1. A sequence's tokens are known before they are computed: `ids` may be longer than the cache;
 *     the difference is the work left. When nothing is left but a token, the last row is sampled.
 *  2. No result depends on the scheduler: it may put anyone off, cut prompts anywhere, or throw a
 *     cache away and compute it again.
 *  3. A draft never fills a chunk: only tokens that stay are folded into a state.
 *  4. A sequence that does not fit gives its cache up and waits; the oldest always fits, since
 *     engine_submit refused what is larger than the pool.
 *
 * Not here: the maths (forward.c), blocks (cache.c), drafts (engine_draft.c), HTTP (env/).
 */
#include "policy/engine.h"

#include "base/error.h"
#include "policy/engine_draft.h"
#include "policy/engine_state.h"

#include <math.h>
#include <string.h>

#define CERTAIN 0.99 /* above this a token counts towards the repetition stop */

/* Rows of the head at a time: bounds the memory of logits. */
#define HEAD_ROWS 64

static const char *const finish_names[] = {
    [FINISH_NONE] = "none",          [FINISH_STOP] = "stop",
    [FINISH_LENGTH] = "length",      [FINISH_REPETITION] = "repetition",
    [FINISH_CALLER] = "stop_string", [FINISH_ABORTED] = "aborted",
};

const char *finish_reason_name(FinishReason reason)
{
    return finish_names[reason];
}

/* ---- sequences ---- */

static void request_unref(Request *request)
{
    if (--request->refs > 0)
        return;
    g_free(request->stops);
    g_free(request->allowed);
    g_free(request);
}

static void seq_free(gpointer data)
{
    Seq *seq = data;

    seq_cache_free(seq->cache);
    g_array_unref(seq->ids);
    request_unref(seq->request);
    g_free(seq);
}

static gint64 seq_left(const Seq *seq)
{
    return seq->ids->len - seq->cache->length;
}

static const int *seq_ids(const Seq *seq)
{
    return (const int *)(gconstpointer)seq->ids->data;
}

Seq *engine_seq_new(Engine *e, Request *request, const int *ids, gint64 n)
{
    Seq *seq = g_new0(Seq, 1);

    request->refs++;
    seq->request = request;
    seq->ids = g_array_new(FALSE, FALSE, sizeof(int));
    g_array_append_vals(seq->ids, ids, (guint)n);
    seq->cache = seq_cache_new(e->pool);
    return seq;
}

/* ---- life of an engine ---- */

Engine *engine_new(Model *model, const EngineLimits *limits, GError **error)
{
    const ModelConfig *c = &model->config;
    g_autoptr(Engine) e = g_new0(Engine, 1);

    g_assert(model->ops->real == OPS_F32);
    e->model = model;
    e->limits = *limits;
    e->limits.rows_max = MAX(limits->rows_max, (int)c->chunk);
    if (e->limits.context_max == 0)
        e->limits.context_max = (gint64)MIN(c->context_max, G_MAXINT32);
    e->seqs = g_ptr_array_new_with_free_func(seq_free);
    e->pool = cache_pool_new(model, limits->cache_bytes);
    e->prefix = prefix_new(e->pool);
    e->pieces = g_array_new(FALSE, FALSE, sizeof(Piece));
    e->spans = g_array_new(FALSE, FALSE, sizeof(OpsSpan));
    e->ids = g_array_new(FALSE, FALSE, sizeof(int));
    e->positions = g_array_new(FALSE, FALSE, sizeof(int64_t));
    e->hidden = g_new0(float, (gsize)HEAD_ROWS * c->hidden);
    e->logits = g_new0(float, (gsize)HEAD_ROWS * c->vocab);
    e->masked = g_new0(float, c->vocab);
    e->lse = g_new0(float, HEAD_ROWS);
    e->logp = g_new0(float, HEAD_ROWS);
    e->zeros = g_new0(int, HEAD_ROWS);
    e->entries = g_new0(SampleEntry, c->vocab);
    e->acts = acts_new(model, e->limits.rows_max, ACTS_KEEP_NOTHING, error);
    return e->acts ? g_steal_pointer(&e) : NULL;
}

void engine_free(Engine *e)
{
    if (!e)
        return;
    g_ptr_array_unref(e->seqs);
    prefix_free(e->prefix);
    cache_pool_free(e->pool);
    acts_free(e->acts);
    g_array_unref(e->pieces);
    g_array_unref(e->spans);
    g_array_unref(e->ids);
    g_array_unref(e->positions);
    g_free(e->hidden);
    g_free(e->logits);
    g_free(e->masked);
    g_free(e->lse);
    g_free(e->logp);
    g_free(e->zeros);
    g_free(e->entries);
    g_free(e->chosen);
    g_free(e);
}

/* ---- requests ---- */

gboolean engine_ids_check(const Engine *e, const int *ids, gint64 n, const char *what,
                          GError **error)
{
    for (gint64 i = 0; i < n; i++)
        if (ids[i] < 0 || (guint32)ids[i] >= e->model->config.vocab_valid)
            return error_set(error, ASSAY_ERROR_INPUT,
                             "%s: id %d at %" G_GINT64_FORMAT " is outside the vocabulary of %u",
                             what, ids[i], i, e->model->config.vocab_valid);
    return TRUE;
}

/* A sequence may hold a second state and copies while it is cut off from others. */
static gsize cache_need(const Engine *e, gint64 tokens)
{
    return cache_pool_need(e->pool, tokens) + e->pool->size[BLOCK_STATE] +
           e->pool->size[BLOCK_PAGE] + e->pool->size[BLOCK_OPEN];
}

gint64 engine_context(const Engine *e)
{
    gint64 fits = 0, beyond = e->limits.context_max + 1;

    while (beyond - fits > 1) {
        gint64 middle = fits + (beyond - fits) / 2;

        *(cache_need(e, middle) <= e->pool->bytes_max ? &fits : &beyond) = middle;
    }
    return fits;
}

static guint live_count(const Engine *e)
{
    guint n = 0;

    for (guint i = 0; i < e->seqs->len; i++)
        n += ((const Seq *)e->seqs->pdata[i])->done ? 0 : 1;
    return n;
}

/* The allowed ids, and that one is left where stop tokens may not be drawn. */
static gboolean choices_check(const Engine *e, const EngineRequest *r, GError **error)
{
    guint32 vocab = e->model->config.vocab_valid, left = vocab;
    g_autofree gboolean *out = NULL;

    if (r->n_allowed > ENGINE_ALLOWED_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "allowed_token_ids: %u, at most %d",
                         r->n_allowed, ENGINE_ALLOWED_MAX);
    if (!engine_ids_check(e, r->allowed, r->n_allowed, "allowed_token_ids", error) ||
        !engine_ids_check(e, r->stops, r->n_stops, "stop_token_ids", error))
        return FALSE;
    out = g_new0(gboolean, vocab);
    for (guint32 id = 0; r->n_allowed > 0 && id < vocab; id++)
        out[id] = TRUE;
    for (guint i = 0; i < r->n_allowed; i++)
        out[r->allowed[i]] = FALSE;
    for (guint i = 0; r->tokens_min > 0 && i < r->n_stops; i++)
        out[r->stops[i]] = TRUE;
    for (guint32 id = 0; id < vocab; id++)
        left -= out[id] ? 1 : 0;
    return left > 0 || error_set(error, ASSAY_ERROR_INPUT,
                                 "min_tokens: every token that is allowed is a stop token");
}

gboolean engine_request_check(const Engine *e, const EngineRequest *r, GError **error)
{
    gint64 all = r->prompt_len + r->tokens_max;
    gsize need;

    if (r->prompt_len < 1 || r->tokens_max < 1 || r->tokens_min < 0 || r->repetition < 0)
        return error_set(error, ASSAY_ERROR_INPUT, "%s: must be at least one token long",
                         r->prompt_len < 1 ? "prompt" : "max_tokens");
    if (r->n > ENGINE_SAMPLES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "n: %u samples, at most %d", r->n,
                         ENGINE_SAMPLES_MAX);
    if (r->n_stops > ENGINE_STOPS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "stop_token_ids: %u, at most %d", r->n_stops,
                         ENGINE_STOPS_MAX);
    if (r->tokens_max > e->limits.context_max || all > e->limits.context_max)
        return error_set(error, ASSAY_ERROR_LIMIT,
                         "max_tokens: %" G_GINT64_FORMAT " after a prompt of %" G_GINT64_FORMAT
                         " are more than the context of %" G_GINT64_FORMAT,
                         r->tokens_max, r->prompt_len, e->limits.context_max);
    need = cache_need(e, all);
    if (need > e->pool->bytes_max)
        return error_set(error, ASSAY_ERROR_LIMIT,
                         "max_tokens: %" G_GINT64_FORMAT " with the prompt take %" G_GSIZE_FORMAT
                         " bytes of cache, there are %" G_GSIZE_FORMAT,
                         all, need, e->pool->bytes_max);
    if (live_count(e) + MAX(r->n, 1) > e->limits.sequences_max)
        return error_set(error, ASSAY_ERROR_LIMIT, "n: %u sequences are open, %u more pass %u",
                         live_count(e), MAX(r->n, 1), e->limits.sequences_max);
    return sample_params_check(&r->params, error) &&
           engine_ids_check(e, r->prompt, r->prompt_len, "prompt", error) &&
           choices_check(e, r, error);
}

guint64 engine_submit(Engine *e, const EngineRequest *r, GError **error)
{
    Request *request;
    Seq *seq;

    if (!engine_request_check(e, r, error))
        return 0;
    request = g_new0(Request, 1);
    *request = (Request){
        .id = ++e->next_id,
        .params = r->params,
        .prompt_len = r->prompt_len,
        .tokens_max = r->tokens_max,
        .tokens_min = r->tokens_min,
        .repetition = r->repetition,
        .stops = g_memdup2(r->stops, r->n_stops * sizeof(int)),
        .n_stops = r->n_stops,
        .allowed = g_memdup2(r->allowed, r->n_allowed * sizeof(int)),
        .n_allowed = r->n_allowed,
        .n = MAX(r->n, 1),
        .no_prefix = r->no_prefix,
        .on_token = r->on_token,
        .on_prompt = r->on_prompt,
        .on_route = r->on_route,
        .user = r->user,
    };
    seq = engine_seq_new(e, request, r->prompt, r->prompt_len);
    seq->parent = TRUE;
    g_ptr_array_add(e->seqs, seq);
    e->stats.prompt_tokens += (guint64)r->prompt_len;
    return request->id;
}

/* ---- ends ---- */

/* Tells the caller about a token, an end, or both; returns whether the sample goes on. */
static gboolean tell(Engine *e, Seq *seq, EngineToken *token)
{
    gboolean on;

    token->request = seq->request->id;
    token->sample = seq->sample;
    token->version = e->model->version;
    token->started_us = seq->request->started_us;
    on = seq->request->on_token ? seq->request->on_token(token, seq->request->user) : TRUE;
    if (!on && token->finish == FINISH_NONE && !seq->done) {
        *token = (EngineToken){.request = token->request,
                               .sample = seq->sample,
                               .position = token->position,
                               .token = {.id = -1},
                               .version = token->version,
                               .started_us = token->started_us,
                               .finish = FINISH_CALLER};
        seq->request->on_token(token, seq->request->user);
    }
    if (token->finish == FINISH_NONE)
        return !seq->done;
    seq->done = TRUE;
    e->stats.finished[token->finish]++;
    return FALSE;
}

/* The turn is over: what comes next may begin with it. */
static void keep(Engine *e, const Seq *seq)
{
    if (!seq->request->no_prefix)
        prefix_store(e->prefix, seq_ids(seq), seq->cache);
}

gboolean engine_abort(Engine *e, guint64 id)
{
    gboolean found = FALSE;

    for (guint i = 0; i < e->seqs->len; i++) {
        Seq *seq = e->seqs->pdata[i];
        guint samples = seq->parent ? seq->request->n : 1;

        if (seq->request->id != id || seq->done)
            continue;
        found = TRUE;
        seq->done = TRUE;
        for (guint s = 0; s < samples; s++) {
            EngineToken token = {
                .token = {.id = -1}, .finish = FINISH_ABORTED, .position = seq->ids->len};

            seq->sample = seq->parent ? s : seq->sample;
            tell(e, seq, &token);
        }
    }
    return found;
}

static FinishReason finish_of(const Seq *seq, int id)
{
    const Request *r = seq->request;
    gint64 made = seq->ids->len - r->prompt_len;

    for (guint i = 0; i < r->n_stops; i++)
        if (id == r->stops[i])
            return FINISH_STOP;
    if (r->repetition > 0 && seq->certain >= r->repetition)
        return FINISH_REPETITION;
    return made >= r->tokens_max ? FINISH_LENGTH : FINISH_NONE;
}

/* ---- a step: who takes part ---- */

gboolean engine_reserve(Engine *e, Seq *seq, int rows)
{
    while (!seq_cache_reserve(seq->cache, rows))
        if (!prefix_evict(e->prefix))
            return FALSE;
    return TRUE;
}

/* The youngest sequence but `self` gives up its cache. */
static gboolean preempt(Engine *e, const Seq *self)
{
    for (guint i = e->seqs->len; i-- > 0;) {
        Seq *seq = e->seqs->pdata[i];

        if (seq == self)
            return FALSE;
        if (seq->done || seq->cache->pages->len == 0)
            continue;
        for (guint p = 0; p < e->pieces->len; p++)
            if (g_array_index(e->pieces, Piece, p).seq == seq)
                return FALSE;
        seq_cache_free(seq->cache);
        seq->cache = seq_cache_new(e->pool);
        e->stats.preempted++;
        return TRUE;
    }
    return FALSE;
}

/* A prompt begins where the prefix cache ends. */
static void look_up(Engine *e, Seq *seq)
{
    PrefixMiss miss;

    if (seq->cache->length > 0 || seq->request->no_prefix || seq->request->on_route ||
        (seq->request->on_prompt && seq->scored < seq->request->prompt_len - 1))
        return;
    seq_cache_free(seq->cache);
    seq->cache = seq_cache_new(e->pool);
    e->stats.prefix_tokens +=
        (guint64)prefix_find(e->prefix, seq_ids(seq), seq->ids->len, seq->cache, &miss);
    e->stats.misses[miss]++;
}

/* Where a piece of a prompt should end: the next power of two of chunks is kept for others. */
static gint64 ladder_end(const Engine *e, const Seq *seq)
{
    gint64 chunk = e->model->config.chunk, end = chunk;

    while (end <= seq->cache->length)
        end *= 2;
    return end;
}

/* Rows of the sequence for this step, drafts aside. Pieces of prompts end on chunk borders. */
static int piece_rows(const Engine *e, const Seq *seq, int room)
{
    gint64 left = seq_left(seq), chunk = e->model->config.chunk;
    gint64 rows = MIN(left, ladder_end(e, seq) - seq->cache->length), end;

    if (rows <= room)
        return (int)rows;
    end = (seq->cache->length + room) / chunk * chunk;
    return (int)MAX(0, end - seq->cache->length);
}

static void piece_add(Engine *e, Seq *seq, int rows, const int *drafts, guint n_drafts)
{
    Piece piece = {
        .seq = seq, .row0 = (int)e->ids->len, .rows = rows + (int)n_drafts, .drafts = n_drafts};
    OpsSpan span = seq_cache_span(seq->cache, piece.row0, piece.rows);

    if (seq->request->started_us == 0)
        seq->request->started_us = g_get_monotonic_time();
    g_array_append_val(e->pieces, piece);
    g_array_append_val(e->spans, span);
    g_array_append_vals(e->ids, seq_ids(seq) + seq->cache->length, (guint)rows);
    g_array_append_vals(e->ids, drafts, n_drafts);
    for (int t = 0; t < piece.rows; t++) {
        int64_t position = seq->cache->length + t;

        g_array_append_val(e->positions, position);
    }
}

/* How many tokens may be guessed: never so many that a guess fills the chunk. */
static guint drafts_allowed(const Engine *e, const Seq *seq, int room)
{
    gint64 chunk = e->model->config.chunk, at = seq->cache->length % chunk;
    gint64 made = seq->ids->len - seq->request->prompt_len;
    gint64 allowed = MIN(chunk - 2 - at, seq->request->tokens_max - made - 1);

    return (guint)CLAMP(MIN(allowed, room - 1), 0, (gint64)e->limits.draft_max);
}

static void take_part(Engine *e, Seq *seq, gboolean decode)
{
    int drafts[ENGINE_DRAFT_MAX], room = e->limits.rows_max - (int)e->ids->len, rows;
    guint n = 0;

    if (seq->done || room <= 0 || (seq_left(seq) == 1 && seq->cache->length > 0) != decode)
        return;
    look_up(e, seq);
    rows = piece_rows(e, seq, room);
    if (rows == 0)
        return;
    if (decode)
        n = draft_find(seq_ids(seq), seq->ids->len, drafts, drafts_allowed(e, seq, room));
    while (!engine_reserve(e, seq, rows + (int)n))
        if (!preempt(e, seq))
            return;
    piece_add(e, seq, rows, drafts, n);
    e->stats.drafted += n;
}

/* ---- a step: what comes of it ---- */

/* hidden rows of the batch -> logits and their log sum of exponentials, HEAD_ROWS at most. */
static void head(Engine *e, const int *rows, int n)
{
    const ModelConfig *c = &e->model->config;

    for (int i = 0; i < n; i++)
        memcpy(e->hidden + (gsize)i * c->hidden,
               (const float *)e->acts->hidden + (gsize)rows[i] * c->hidden,
               c->hidden * sizeof(float));
    forward_logits(e->model, e->logits, e->hidden, n);
    e->model->ops->logprob_fwd(e->logp, e->lse, NULL, e->logits, e->zeros, n, (int)c->vocab,
                               (int)c->vocab_valid, 1);
}

/* The logits with all that may not be drawn put out of reach. */
static const float *masked(Engine *e, const Request *r, const float *logits, gboolean early)
{
    if (r->n_allowed == 0 && (!early || r->n_stops == 0))
        return logits;
    if (r->n_allowed == 0)
        memcpy(e->masked, logits, e->model->config.vocab * sizeof(float));
    for (guint32 id = 0; r->n_allowed > 0 && id < e->model->config.vocab; id++)
        e->masked[id] = -G_MAXFLOAT;
    for (guint i = 0; i < r->n_allowed; i++)
        e->masked[r->allowed[i]] = logits[r->allowed[i]];
    for (guint i = 0; early && i < r->n_stops; i++)
        e->masked[r->stops[i]] = -G_MAXFLOAT;
    return e->masked;
}

/* Draws the next token of a sample from one row of logits; returns whether it goes on. */
static gboolean draw(Engine *e, Seq *seq, const float *logits, float lse)
{
    const Request *r = seq->request;
    SampleParams params = r->params;
    EngineToken token = {.position = seq->ids->len, .logits = logits, .lse = lse};
    gboolean early = seq->ids->len - r->prompt_len < r->tokens_min;

    params.seed += seq->sample;
    token.token = sample_token(masked(e, r, logits, early), (int)e->model->config.vocab_valid, lse,
                               &params, token.position, e->entries);
    g_array_append_val(seq->ids, token.token.id);
    seq->certain = exp(token.token.logprob) > CERTAIN ? seq->certain + 1 : 0;
    token.finish = finish_of(seq, token.token.id);
    e->stats.tokens++;
    return tell(e, seq, &token);
}

/* The prompt is computed: its samples part. The first takes the parent over. */
static void part(Engine *e, Seq *seq, const float *logits, float lse)
{
    guint n = seq->request->n;
    g_autoptr(GPtrArray) samples = g_ptr_array_new();

    keep(e, seq);
    seq->parent = FALSE;
    g_ptr_array_add(samples, seq);
    for (guint s = 1; s < n; s++) {
        Seq *fork = g_new0(Seq, 1);

        seq->request->refs++;
        fork->request = seq->request;
        fork->sample = s;
        fork->scored = seq->scored;
        fork->ids = g_array_copy(seq->ids);
        fork->cache = seq_cache_fork(seq->cache);
        g_ptr_array_add(samples, fork);
        g_ptr_array_add(e->seqs, fork);
    }
    for (guint s = 0; s < n; s++)
        if (!((Seq *)samples->pdata[s])->done)
            draw(e, samples->pdata[s], logits, lse);
}

/* One row of logits for each row of `piece` that is sampled: the last, and those before drafts. */
static void piece_sample(Engine *e, const Piece *piece)
{
    Seq *seq = piece->seq;
    int first = piece->rows - 1 - (int)piece->drafts, rows[ENGINE_DRAFT_MAX + 1];
    int count = (int)piece->drafts + 1;

    for (int i = 0; i < count; i++)
        rows[i] = piece->row0 + first + i;
    head(e, rows, count);
    for (int i = 0; i < count && !seq->done; i++) {
        const float *logits = e->logits + (gsize)i * e->model->config.vocab;
        const int *drafts = &g_array_index(e->ids, int, (guint)rows[i]);

        if (i > 0) {
            /* the draft of this row was what came out of the row before */
            if (drafts[0] != seq_ids(seq)[seq->ids->len - 1])
                return;
            seq_cache_advance(seq->cache, 1);
            e->stats.accepted++;
        }
        if (seq->parent)
            part(e, seq, logits, e->lse[i]);
        else
            draw(e, seq, logits, e->lse[i]);
    }
}

/* Tells on_prompt of the piece's rows that it was not told of; the first is at position `from`. */
static void piece_score(Engine *e, const Piece *piece, gint64 from)
{
    Seq *seq = piece->seq;
    const Request *r = seq->request;
    gint64 end = MIN(from + piece->rows, r->prompt_len - 1);

    while (!seq->done && MAX(from, seq->scored) < end) {
        gint64 at = MAX(from, seq->scored);
        int rows[HEAD_ROWS], n = (int)MIN(HEAD_ROWS, end - at);

        for (int i = 0; i < n; i++)
            rows[i] = piece->row0 + (int)(at - from) + i;
        head(e, rows, n);
        seq->scored = at + n;
        for (int i = 0; i < n; i++)
            r->on_prompt(at + i, e->logits + (gsize)i * e->model->config.vocab, e->lse[i], r->user);
    }
}

/* Rows of [layers, K] experts. */
static gsize route_width(const Engine *e)
{
    return (gsize)e->model->config.layers * e->model->config.experts_per_token;
}

/* Tells on_route of the piece's rows but for drafts; the first is at position `from`. */
static void piece_routes(const Engine *e, const Piece *piece, gint64 from)
{
    const Request *r = piece->seq->request;

    for (int i = 0; i < piece->rows - (int)piece->drafts; i++)
        r->on_route(piece->seq->sample, from + i,
                    e->chosen + (gsize)(piece->row0 + i) * route_width(e), r->user);
}

/* Room for the experts of a step's rows, if one of those who take part asks. */
static guint16 *routes_wanted(Engine *e)
{
    for (guint i = 0; i < e->pieces->len; i++) {
        if (!g_array_index(e->pieces, Piece, i).seq->request->on_route)
            continue;
        if (!e->chosen)
            e->chosen = g_new(guint16, (gsize)e->limits.rows_max * route_width(e));
        return e->chosen;
    }
    return NULL;
}

static void piece_finish(Engine *e, const Piece *piece)
{
    Seq *seq = piece->seq;
    int rows = piece->rows - (int)piece->drafts;
    gboolean whole = rows == seq_left(seq);

    if (seq->request->on_prompt)
        piece_score(e, piece, seq->cache->length);
    if (seq->request->on_route)
        piece_routes(e, piece, seq->cache->length);
    seq_cache_advance(seq->cache, rows);
    if (seq->done)
        return;
    if (!whole) {
        if (seq->cache->length % e->model->config.chunk == 0)
            keep(e, seq);
        return;
    }
    piece_sample(e, piece);
    if (seq->done)
        keep(e, seq);
}

static void sweep(Engine *e)
{
    for (guint i = e->seqs->len; i-- > 0;)
        if (((Seq *)e->seqs->pdata[i])->done)
            g_ptr_array_remove_index(e->seqs, i);
}

guint engine_step(Engine *e)
{
    Batch batch;

    g_array_set_size(e->pieces, 0);
    g_array_set_size(e->spans, 0);
    g_array_set_size(e->ids, 0);
    g_array_set_size(e->positions, 0);
    sweep(e);
    for (int decode = 1; decode >= 0; decode--)
        for (guint i = 0; i < e->seqs->len; i++)
            take_part(e, e->seqs->pdata[i], decode);
    if (e->pieces->len == 0)
        return e->seqs->len;
    batch = (Batch){.rows = (int)e->ids->len,
                    .n_spans = (int)e->spans->len,
                    .ids = (const int *)(gconstpointer)e->ids->data,
                    .positions = (const int64_t *)(gconstpointer)e->positions->data,
                    .spans = (const OpsSpan *)(gconstpointer)e->spans->data,
                    .chosen = routes_wanted(e)};
    forward(e->model, e->acts, &batch);
    e->stats.steps++;
    e->stats.rows += (guint64)batch.rows;
    for (guint i = 0; i < e->pieces->len; i++) {
        Piece piece = g_array_index(e->pieces, Piece, i);

        piece_finish(e, &piece);
    }
    sweep(e);
    return e->seqs->len;
}

/* ---- the rest ---- */

void engine_stats(const Engine *e, EngineStats *stats)
{
    *stats = e->stats;
    stats->running = stats->waiting = 0;
    for (guint i = 0; i < e->seqs->len; i++) {
        const Seq *seq = e->seqs->pdata[i];

        *(seq->cache->length > 0 ? &stats->running : &stats->waiting) += 1;
    }
    stats->cache_bytes = e->pool->bytes;
    stats->cache_peak = e->pool->bytes_peak;
    stats->cache_max = e->pool->bytes_max;
}

const Model *engine_model(const Engine *e)
{
    return e->model;
}

void engine_weights_changed(Engine *e, gboolean recompute)
{
    e->model->version++;
    prefix_drop(e->prefix);
    for (guint i = 0; recompute && i < e->seqs->len; i++) {
        Seq *seq = e->seqs->pdata[i];

        seq_cache_free(seq->cache);
        seq->cache = seq_cache_new(e->pool);
    }
}

/* One piece of the packed pass: `rows` more tokens, and the log-probability of each next one. */
static gboolean logprobs_piece(Engine *e, SeqCache *cache, const int *ids, gint64 n, int rows,
                               float *logprobs)
{
    gint64 from = cache->length;
    OpsSpan span;
    Batch batch = {.rows = rows, .n_spans = 1, .ids = ids + from, .spans = &span};

    while (!seq_cache_reserve(cache, rows))
        if (!prefix_evict(e->prefix) && !preempt(e, NULL))
            return FALSE;
    span = seq_cache_span(cache, 0, rows);
    g_array_set_size(e->positions, 0);
    for (int64_t t = from; t < from + rows; t++)
        g_array_append_val(e->positions, t);
    batch.positions = (const int64_t *)(gconstpointer)e->positions->data;
    forward(e->model, e->acts, &batch);
    seq_cache_advance(cache, rows);
    for (int t = 0; t < rows; t += HEAD_ROWS) {
        int count = MIN(HEAD_ROWS, rows - t), at[HEAD_ROWS];

        for (int i = 0; i < count; i++)
            at[i] = t + i;
        head(e, at, count);
        for (int i = 0; i < count && from + t + i + 1 < n; i++)
            logprobs[from + t + i] =
                e->logits[(gsize)i * e->model->config.vocab + (gsize)ids[from + t + i + 1]] -
                e->lse[i];
    }
    return TRUE;
}

gboolean engine_logprobs(Engine *e, const int *ids, gint64 n, float *logprobs, GError **error)
{
    g_autoptr(SeqCache) cache = seq_cache_new(e->pool);
    EngineRequest whole = {.prompt = ids, .prompt_len = n, .tokens_max = 1};

    if (!engine_request_check(e, &whole, error))
        return FALSE;
    g_array_set_size(e->pieces, 0);
    while (cache->length < n) {
        int rows = (int)MIN(e->limits.rows_max, n - cache->length);

        if (!logprobs_piece(e, cache, ids, n, rows, logprobs))
            return error_set(error, ASSAY_ERROR_LIMIT, "log-probabilities: the cache is full");
    }
    return TRUE;
}
