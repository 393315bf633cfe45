/*
 * A sample in bytes, and back.
 *
 *     "ASSAYSEQ", u64 length of the header, header (JSON), tokens (i32), pages, state, open chunk,
 *     SHA-256 of all that
 * Numbers are little-endian. What follows the header has the length that the header's counts and
 * the model's sizes give, or the snapshot is refused.
 *
 * Invariants
 *  1. Nothing is allocated by a count of the file before it was held against the file's length.
 *  2. The header names the model's architecture, numerics and weights; any difference refuses.
 *  3. A restored sample draws what it would have drawn: position, seed and counters are in it.
 *
 * The digest finds damage. It is no signature: bytes of a stranger must not be restored.
 */
#include "policy/engine_state.h"

#include "base/error.h"
#include "base/json.h"

#include <string.h>

static const char magic[8] = {'A', 'S', 'S', 'A', 'Y', 'S', 'E', 'Q'};

#define DIGEST_BYTES    32
#define HEADER_MAX      (1u << 20)
#define SNAPSHOT_MAX    (3u << 30) /* of caches: GLib's arrays count in 32 bits */
#define SNAPSHOT_FORMAT 2

/* What the arithmetic depends on beside the weights. */
static char *numerics_id(const Model *m)
{
    return g_strdup_printf("%s chunk %u format %d", m->ops->name, m->config.chunk, m->format);
}

static Seq *seq_find(Engine *e, guint64 request, guint sample)
{
    for (guint i = 0; i < e->seqs->len; i++) {
        Seq *seq = e->seqs->pdata[i];

        if (seq->request->id == request && seq->sample == sample && !seq->done)
            return seq;
    }
    return NULL;
}

/* Bytes of the caches of `computed` tokens. */
static gsize caches_bytes(const Engine *e, gint64 computed)
{
    gint64 chunk = e->model->config.chunk;

    return (gsize)((computed + chunk - 1) / chunk) * e->pool->size[BLOCK_PAGE] +
           (computed >= chunk ? e->pool->size[BLOCK_STATE] : 0) +
           (computed % chunk != 0 ? e->pool->size[BLOCK_OPEN] : 0);
}

/* ---- writing ---- */

static json_t *ids_json(const int *ids, guint n)
{
    json_t *list = json_array();

    for (guint i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static json_t *header_json(Engine *e, const Seq *seq)
{
    const Request *r = seq->request;
    g_autofree char *numerics = numerics_id(e->model);

    return json_pack("{s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:f, s:f, s:f, "
                     "s:I, s:s, s:b}",
                     "format", SNAPSHOT_FORMAT, "numerics", numerics, "weights",
                     model_digest(e->model), "tokens", (json_int_t)seq->ids->len, "computed",
                     (json_int_t)seq->cache->length, "prompt_tokens", (json_int_t)r->prompt_len,
                     "tokens_max", (json_int_t)r->tokens_max, "tokens_min",
                     (json_int_t)r->tokens_min, "repetition", (json_int_t)r->repetition, "certain",
                     (json_int_t)seq->certain, "stops", ids_json(r->stops, r->n_stops), "allowed",
                     ids_json(r->allowed, r->n_allowed), "temperature", r->params.temperature,
                     "top_p", r->params.top_p, "min_p", r->params.min_p, "top_k",
                     (json_int_t)r->params.top_k, "seed", "", "no_prefix", (int)r->no_prefix);
}

static void append_block(GByteArray *out, const Block *block, gsize size)
{
    if (block)
        g_byte_array_append(out, block_data(block), (guint)size);
}

static void append_digest(GByteArray *out)
{
    guint8 digest[DIGEST_BYTES];
    gsize length = sizeof digest;
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);

    g_checksum_update(sum, out->data, out->len);
    g_checksum_get_digest(sum, digest, &length);
    g_byte_array_append(out, digest, sizeof digest);
}

GBytes *engine_snapshot(Engine *e, guint64 request, guint sample, GError **error)
{
    const Seq *seq = seq_find(e, request, sample);
    g_autoptr(GByteArray) out = g_byte_array_new();
    g_autofree char *seed = NULL, *text = NULL;
    json_t *header;
    guint64 length;

    if (!seq || (seq->parent && seq->request->n > 1)) {
        error_set(error, ASSAY_ERROR_NOT_FOUND,
                  "snapshot: sample %u of request %" G_GUINT64_FORMAT " is not running", sample,
                  request);
        return NULL;
    }
    if (caches_bytes(e, seq->cache->length) > SNAPSHOT_MAX) {
        error_set(error, ASSAY_ERROR_LIMIT, "snapshot: %" G_GSIZE_FORMAT " bytes, at most %u",
                  caches_bytes(e, seq->cache->length), SNAPSHOT_MAX);
        return NULL;
    }
    header = header_json(e, seq);
    seed = g_strdup_printf("%" G_GUINT64_FORMAT, seq->request->params.seed + seq->sample);
    json_object_set_new(header, "seed", json_string(seed));
    text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    length = GUINT64_TO_LE(strlen(text));
    g_byte_array_append(out, (const guint8 *)magic, sizeof magic);
    g_byte_array_append(out, (const guint8 *)&length, sizeof length);
    g_byte_array_append(out, (const guint8 *)text, (guint)strlen(text));
    g_byte_array_append(out, (const guint8 *)seq->ids->data, seq->ids->len * sizeof(int));
    for (gint64 i = 0; i * e->model->config.chunk < seq->cache->length; i++)
        append_block(out, seq->cache->pages->pdata[i], e->pool->size[BLOCK_PAGE]);
    append_block(out, seq->cache->state, e->pool->size[BLOCK_STATE]);
    if (seq->cache->length % e->model->config.chunk != 0)
        append_block(out, seq->cache->open, e->pool->size[BLOCK_OPEN]);
    append_digest(out);
    return g_byte_array_free_to_bytes(g_steal_pointer(&out));
}

/* ---- reading ---- */

/* The counts of a header; 64 bits each, checked by header_check. */
typedef struct {
    gint64 tokens, computed, prompt_len, tokens_max, tokens_min, repetition, certain, top_k;
    double temperature, top_p, min_p;
    const char *numerics, *weights, *seed;
    json_t *stops, *allowed;
    int format, no_prefix;
} Header;

static gboolean header_parse(json_t *json, Header *h, GError **error)
{
    json_error_t why;
    json_int_t n[8];

    if (json_unpack_ex(
            json, &why, JSON_STRICT,
            "{s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:F, s:F, s:F, "
            "s:I, s:s, s:b}",
            "format", &h->format, "numerics", &h->numerics, "weights", &h->weights, "tokens", &n[0],
            "computed", &n[1], "prompt_tokens", &n[2], "tokens_max", &n[3], "tokens_min", &n[4],
            "repetition", &n[5], "certain", &n[6], "stops", &h->stops, "allowed", &h->allowed,
            "temperature", &h->temperature, "top_p", &h->top_p, "min_p", &h->min_p, "top_k", &n[7],
            "seed", &h->seed, "no_prefix", &h->no_prefix) != 0)
        return error_set(error, ASSAY_ERROR_INPUT, "snapshot: header: %s", why.text);
    for (guint i = 0; i < G_N_ELEMENTS(n); i++)
        if (n[i] < 0 || n[i] > G_MAXINT32)
            return error_set(error, ASSAY_ERROR_INPUT, "snapshot: header: %lld is out of range",
                             (long long)n[i]);
    h->tokens = n[0];
    h->computed = n[1];
    h->prompt_len = n[2];
    h->tokens_max = n[3];
    h->tokens_min = n[4];
    h->repetition = n[5];
    h->certain = n[6];
    h->top_k = n[7];
    if (h->format != SNAPSHOT_FORMAT)
        return error_set(error, ASSAY_ERROR_INPUT, "snapshot: format %d, this is %d", h->format,
                         SNAPSHOT_FORMAT);
    if (h->computed >= h->tokens || h->prompt_len > h->tokens || h->prompt_len < 1)
        return error_set(error, ASSAY_ERROR_INPUT, "snapshot: header: counts that contradict");
    return TRUE;
}

static gboolean header_check(Engine *e, const Header *h, gboolean stale, GError **error)
{
    g_autofree char *numerics = numerics_id(e->model);

    if (strcmp(numerics, h->numerics) != 0)
        return error_set(error, ASSAY_ERROR_CONFLICT, "snapshot: made with %s, this is %s",
                         h->numerics, numerics);
    if (!stale && strcmp(model_digest(e->model), h->weights) != 0)
        return error_set(error, ASSAY_ERROR_CONFLICT,
                         "snapshot: made with other weights (%.12s, these are %.12s)", h->weights,
                         model_digest(e->model));
    return TRUE;
}

/* The body between header and digest, once all of the outside is checked. */
static const guint8 *body_check(GBytes *bytes, json_t **header, gsize *left, GError **error)
{
    gsize size;
    const guint8 *data = g_bytes_get_data(bytes, &size);
    guint8 digest[DIGEST_BYTES];
    gsize length = sizeof digest, prefix = sizeof magic + sizeof(guint64);
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    guint64 header_len;

    if (size < prefix + DIGEST_BYTES || memcmp(data, magic, sizeof magic) != 0) {
        error_set(error, ASSAY_ERROR_INPUT, "snapshot: not one of ours");
        return NULL;
    }
    g_checksum_update(sum, data, (gssize)(size - DIGEST_BYTES));
    g_checksum_get_digest(sum, digest, &length);
    memcpy(&header_len, data + sizeof magic, sizeof header_len);
    header_len = GUINT64_FROM_LE(header_len);
    if (memcmp(digest, data + size - DIGEST_BYTES, DIGEST_BYTES) != 0 || header_len > HEADER_MAX ||
        header_len > size - prefix - DIGEST_BYTES) {
        error_set(error, ASSAY_ERROR_INPUT, "snapshot: damaged or cut short");
        return NULL;
    }
    *header = json_parse((const char *)data + prefix, (gsize)header_len, error);
    if (!*header)
        g_prefix_error(error, "snapshot: header: ");
    *left = size - prefix - DIGEST_BYTES - (gsize)header_len;
    return *header ? data + prefix + header_len : NULL;
}

/* Numbers that are no ids become -1, which engine_request_check refuses. */
static gboolean ids_read(const json_t *list, gsize max, int **ids, guint *n, GError **error)
{
    json_t *item;
    size_t i;

    if (!json_is_array(list) || json_array_size(list) > max)
        return error_set(error, ASSAY_ERROR_INPUT, "snapshot: a list of ids");
    *n = (guint)json_array_size(list);
    *ids = g_new0(int, *n);
    json_array_foreach(list, i, item)
    {
        json_int_t id = json_is_integer(item) ? json_integer_value(item) : -1;

        (*ids)[i] = id >= 0 && id <= G_MAXINT32 ? (int)id : -1;
    }
    return TRUE;
}

static void fill_block(const guint8 **from, const Block *block, gsize size)
{
    memcpy(block_data(block), *from, size);
    *from += size;
}

/* The caches as they were: reserve gives blocks of our own, in the order they were written. */
static gboolean caches_read(Engine *e, Seq *seq, const guint8 *from, gint64 computed)
{
    gint64 chunk = e->model->config.chunk, pages = (computed + chunk - 1) / chunk;

    if (computed == 0)
        return TRUE;
    if (!engine_reserve(e, seq, (int)computed))
        return FALSE;
    for (gint64 i = 0; i < pages; i++)
        fill_block(&from, seq->cache->pages->pdata[i], e->pool->size[BLOCK_PAGE]);
    if (computed >= chunk)
        fill_block(&from, seq->cache->state_next, e->pool->size[BLOCK_STATE]);
    if (computed % chunk != 0)
        fill_block(&from, seq->cache->open, e->pool->size[BLOCK_OPEN]);
    seq_cache_advance(seq->cache, (int)computed);
    return TRUE;
}

static Request *request_of(Engine *e, const Header *h, const EngineRequest *like,
                           EngineTokenFunc on_token, gpointer user)
{
    Request *r = g_new0(Request, 1);

    *r = (Request){.id = ++e->next_id,
                   .params = like->params,
                   .prompt_len = h->prompt_len,
                   .tokens_max = h->tokens_max,
                   .tokens_min = h->tokens_min,
                   .repetition = h->repetition,
                   .stops = g_memdup2(like->stops, like->n_stops * sizeof(int)),
                   .n_stops = like->n_stops,
                   .allowed = g_memdup2(like->allowed, like->n_allowed * sizeof(int)),
                   .n_allowed = like->n_allowed,
                   .n = 1,
                   .no_prefix = h->no_prefix,
                   .on_token = on_token,
                   .user = user};
    return r;
}

static guint64 restore(Engine *e, const Header *h, const guint8 *body, gsize left, gboolean stale,
                       EngineTokenFunc on_token, gpointer user, GError **error)
{
    gsize ids_bytes = (gsize)h->tokens * sizeof(int);
    g_autofree int *stops = NULL, *allowed = NULL, *ids = NULL;
    EngineRequest like = {
        .prompt_len = h->prompt_len, .tokens_max = h->tokens_max, .tokens_min = h->tokens_min};
    Request *request;
    Seq *seq;

    if (left != ids_bytes + caches_bytes(e, h->computed)) {
        error_set(error, ASSAY_ERROR_INPUT,
                  "snapshot: %" G_GSIZE_FORMAT " bytes where %" G_GSIZE_FORMAT " belong", left,
                  ids_bytes + caches_bytes(e, h->computed));
        return 0;
    }
    like.params = (SampleParams){.temperature = h->temperature,
                                 .top_p = h->top_p,
                                 .min_p = h->min_p,
                                 .top_k = (guint32)h->top_k,
                                 .seed = g_ascii_strtoull(h->seed, NULL, 10)};
    if (!ids_read(h->stops, ENGINE_STOPS_MAX, &stops, &like.n_stops, error) ||
        !ids_read(h->allowed, ENGINE_ALLOWED_MAX, &allowed, &like.n_allowed, error))
        return 0;
    ids = g_memdup2(body, ids_bytes);
    like.prompt = ids;
    like.stops = stops;
    like.allowed = allowed;
    if (!header_check(e, h, stale, error) || !engine_request_check(e, &like, error) ||
        !engine_ids_check(e, ids, h->tokens, "snapshot", error))
        return 0;
    request = request_of(e, h, &like, on_token, user);
    seq = engine_seq_new(e, request, ids, h->tokens);
    seq->certain = h->certain;
    g_ptr_array_add(e->seqs, seq);
    if (caches_read(e, seq, body + ids_bytes, h->computed))
        return request->id;
    /* no room now: the tokens are enough, the caches will be computed again */
    seq_cache_free(seq->cache);
    seq->cache = seq_cache_new(e->pool);
    return request->id;
}

guint64 engine_restore(Engine *e, GBytes *snapshot, gboolean stale, EngineTokenFunc on_token,
                       gpointer user, GError **error)
{
    json_t *header = NULL;
    gsize left = 0;
    const guint8 *body = body_check(snapshot, &header, &left, error);
    guint64 id = 0;
    Header h;

    if (body && header_parse(header, &h, error))
        id = restore(e, &h, body, left, stale, on_token, user, error);
    json_decref(header);
    return id;
}
