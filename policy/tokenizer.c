/*
 * Byte-level BPE.
 *
 * Invariants:
 *   1. Every byte has a token, so any text has ids and they decode to it.
 *   2. In a piece the merge of lowest rank is done first, leftmost first: exactly the pairs listed,
 *      never two neighbours that merely spell a token.
 *   3. Special tokens are in no merge: plain text cannot become one.
 *   4. A finished tokenizer is never written to.
 *
 * The merges of a piece are found with a heap of (rank, place): a pair is pushed when it comes into
 * being and looked at again when it is popped, because a neighbour may have been merged away.
 *
 * Not here: the cut into pieces (token_split.c), files (tokenizer_file.c).
 */
#include "policy/tokenizer_build.h"

#include "base/error.h"
#include "policy/token_hash.h"
#include "policy/token_split.h"
#include "policy/utf8.h"

#include <string.h>

#define ID_BITS    20
#define ID_MASK    ((1u << ID_BITS) - 1)
#define SLOT_EMPTY G_MAXUINT64
#define SLOT_BITS  10 /* of an empty table of pairs */

G_STATIC_ASSERT(TOKENIZER_VOCAB_MAX == 1u << ID_BITS);

typedef struct Token {
    guint32 len;
    gint32 id;
    gboolean special;
    char bytes[];
} Token;

struct Tokenizer {
    GPtrArray *tokens;   /* by id; NULL is a hole */
    GHashTable *by_text; /* set of Token, by bytes */
    GPtrArray *specials; /* Token, longest first */
    GArray *merges;      /* TokenMerge, by rank */
    guint64 *slots;      /* left, right and rank in one word each; open addressing */
    guint slot_bits;
    gint32 byte_ids[256];
};

static guint token_hash(gconstpointer key)
{
    const Token *token = key;
    return token_hash_bytes(token->bytes, token->len);
}

static gboolean token_equal(gconstpointer a, gconstpointer b)
{
    const Token *x = a, *y = b;
    return x->len == y->len && memcmp(x->bytes, y->bytes, x->len) == 0;
}

static Token *token_new(gint32 id, const char *bytes, gsize len, gboolean special)
{
    Token *token = g_malloc(sizeof *token + len);
    *token = (Token){.len = (guint32)len, .id = id, .special = special};
    memcpy(token->bytes, bytes, len);
    return token;
}

Tokenizer *tokenizer_new(void)
{
    Tokenizer *tokenizer = g_new0(Tokenizer, 1);
    tokenizer->tokens = g_ptr_array_new_with_free_func(g_free);
    tokenizer->by_text = g_hash_table_new(token_hash, token_equal);
    tokenizer->specials = g_ptr_array_new();
    tokenizer->merges = g_array_new(FALSE, FALSE, sizeof(TokenMerge));
    tokenizer->slot_bits = SLOT_BITS;
    tokenizer->slots = g_new(guint64, 1u << SLOT_BITS);
    memset(tokenizer->slots, 0xff, sizeof(guint64) << SLOT_BITS);
    return tokenizer;
}

void tokenizer_free(Tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    g_hash_table_unref(tokenizer->by_text);
    g_ptr_array_unref(tokenizer->specials);
    g_ptr_array_unref(tokenizer->tokens);
    g_array_unref(tokenizer->merges);
    g_free(tokenizer->slots);
    g_free(tokenizer);
}

/* --- the table of pairs */

static guint64 slot_key(gint32 left, gint32 right)
{
    return (guint64)left << (2 * ID_BITS) | (guint64)right << ID_BITS;
}

/* The slot that holds the pair, or the empty one where it belongs. */
static guint64 *slot_find(const Tokenizer *tokenizer, guint64 key)
{
    guint64 mask = (1ull << tokenizer->slot_bits) - 1;
    guint64 at = token_hash_word(key >> ID_BITS, tokenizer->slot_bits);
    while (tokenizer->slots[at] != SLOT_EMPTY && (tokenizer->slots[at] & ~(guint64)ID_MASK) != key)
        at = (at + 1) & mask;
    return &tokenizer->slots[at];
}

static void slots_grow(Tokenizer *tokenizer)
{
    g_free(tokenizer->slots);
    tokenizer->slot_bits++;
    gsize n = (gsize)1 << tokenizer->slot_bits;
    tokenizer->slots = g_new(guint64, n);
    memset(tokenizer->slots, 0xff, n * sizeof(guint64));
    for (guint rank = 0; rank < tokenizer->merges->len; rank++) {
        const TokenMerge *merge = &g_array_index(tokenizer->merges, TokenMerge, rank);
        guint64 key = slot_key(merge->left, merge->right);
        *slot_find(tokenizer, key) = key | rank;
    }
}

/* --- building */

static const Token *token_at(const Tokenizer *tokenizer, gint32 id)
{
    return id >= 0 && (guint)id < tokenizer->tokens->len ? tokenizer->tokens->pdata[id] : NULL;
}

gboolean tokenizer_put(Tokenizer *tokenizer, gint32 id, const char *bytes, gsize len,
                       gboolean special, GError **error)
{
    if (id < 0 || (guint)id >= TOKENIZER_VOCAB_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "token id %d: not between 0 and %u", id,
                         TOKENIZER_VOCAB_MAX - 1);
    if (len == 0 || len > TOKENIZER_TOKEN_BYTES)
        return error_set(error, ASSAY_ERROR_LIMIT,
                         "token id %d: %" G_GSIZE_FORMAT " bytes, not between 1 and %u", id, len,
                         TOKENIZER_TOKEN_BYTES);
    if (special && tokenizer->specials->len >= TOKENIZER_SPECIALS_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "token id %d: more than %u special tokens", id,
                         TOKENIZER_SPECIALS_MAX);
    if (token_at(tokenizer, id) != NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "token id %d: two tokens have it", id);
    gint32 other = tokenizer_find(tokenizer, bytes, len);
    if (other >= 0)
        return error_set(error, ASSAY_ERROR_INPUT, "token id %d: the same bytes as token %d", id,
                         other);

    Token *token = token_new(id, bytes, len, special);
    if ((guint)id >= tokenizer->tokens->len)
        g_ptr_array_set_size(tokenizer->tokens, id + 1);
    tokenizer->tokens->pdata[id] = token;
    g_hash_table_add(tokenizer->by_text, token);
    if (special)
        g_ptr_array_add(tokenizer->specials, token);
    return TRUE;
}

gboolean tokenizer_merge(Tokenizer *tokenizer, gint32 left, gint32 right, gint32 id, GError **error)
{
    const Token *a = token_at(tokenizer, left), *b = token_at(tokenizer, right),
                *c = token_at(tokenizer, id);
    guint rank = tokenizer->merges->len;
    if (a == NULL || b == NULL || c == NULL || a->special || b->special || c->special)
        return error_set(error, ASSAY_ERROR_INPUT, "merge %u: not of ordinary tokens", rank);
    g_assert(a->len + b->len == c->len);
    guint64 *slot = slot_find(tokenizer, slot_key(left, right));
    if (*slot != SLOT_EMPTY)
        return error_set(error, ASSAY_ERROR_INPUT, "merge %u: the same pair as merge %u", rank,
                         (guint)(*slot & ID_MASK));
    if (rank >= TOKENIZER_VOCAB_MAX - 1)
        return error_set(error, ASSAY_ERROR_LIMIT, "merge %u: too many merges", rank);
    *slot = slot_key(left, right) | rank;
    TokenMerge merge = {.left = left, .right = right, .id = id};
    g_array_append_val(tokenizer->merges, merge);
    if ((guint64)tokenizer->merges->len * 2 > 1ull << tokenizer->slot_bits)
        slots_grow(tokenizer);
    return TRUE;
}

static gint longer_first(gconstpointer a, gconstpointer b)
{
    const Token *x = *(const Token *const *)a, *y = *(const Token *const *)b;
    return x->len != y->len ? (x->len < y->len) - (x->len > y->len) : x->id - y->id;
}

gboolean tokenizer_finish(Tokenizer *tokenizer, GError **error)
{
    for (guint b = 0; b < 256; b++) {
        char byte = (char)b;
        tokenizer->byte_ids[b] = tokenizer_find(tokenizer, &byte, 1);
        if (tokenizer->byte_ids[b] < 0 || tokenizer_is_special(tokenizer, tokenizer->byte_ids[b]))
            return error_set(error, ASSAY_ERROR_INPUT, "byte 0x%02x: has no token", b);
    }
    g_ptr_array_sort(tokenizer->specials, longer_first);
    return TRUE;
}

gboolean tokenizer_put_specials(Tokenizer *tokenizer, guint n_merges, GError **error)
{
    static const struct {
        const char *text;
        gint32 id;
    } m1[] = {{TOKEN_BOS, 200019}, {TOKEN_EOS, 200020}, {TOKEN_EOD, 200021}};
    static const char *const own[] = {TOKEN_BOS, TOKEN_EOS, TOKEN_EOD, TOKEN_BOD};
    const gint32 first = 256 + (gint32)n_merges, m1_first = 200000, m1_end = 200032;

    for (gsize i = 0; first != m1_first && i < G_N_ELEMENTS(own); i++)
        if (!tokenizer_put(tokenizer, first + (gint32)i, own[i], strlen(own[i]), TRUE, error))
            return FALSE;
    for (gint32 id = first; first == m1_first && id < m1_end; id++) {
        g_autofree char *unknown = g_strdup_printf("<special_%d>", id);
        const char *text = unknown;
        for (gsize i = 0; i < G_N_ELEMENTS(m1); i++)
            text = m1[i].id == id ? m1[i].text : text;
        if (!tokenizer_put(tokenizer, id, text, strlen(text), TRUE, error))
            return FALSE;
    }
    return TRUE;
}

/* --- looking up */

gint32 tokenizer_size(const Tokenizer *tokenizer)
{
    return (gint32)tokenizer->tokens->len;
}

const char *tokenizer_bytes(const Tokenizer *tokenizer, gint32 id, gsize *ret_len)
{
    const Token *token = token_at(tokenizer, id);
    *ret_len = token != NULL ? token->len : 0;
    return token != NULL ? token->bytes : NULL;
}

gint32 tokenizer_find(const Tokenizer *tokenizer, const char *bytes, gsize len)
{
    if (len > TOKENIZER_TOKEN_BYTES)
        return -1;
    union {
        Token token;
        char room[sizeof(Token) + TOKENIZER_TOKEN_BYTES];
    } key = {.token = {.len = (guint32)len}};
    memcpy(key.token.bytes, bytes, len);
    const Token *token = g_hash_table_lookup(tokenizer->by_text, &key.token);
    return token != NULL ? token->id : -1;
}

gint32 tokenizer_special(const Tokenizer *tokenizer, const char *text)
{
    gint32 id = tokenizer_find(tokenizer, text, strlen(text));
    return tokenizer_is_special(tokenizer, id) ? id : -1;
}

gboolean tokenizer_is_special(const Tokenizer *tokenizer, gint32 id)
{
    const Token *token = token_at(tokenizer, id);
    return token != NULL && token->special;
}

const TokenMerge *tokenizer_merges(const Tokenizer *tokenizer, guint *ret_n)
{
    *ret_n = tokenizer->merges->len;
    return (const TokenMerge *)(gconstpointer)tokenizer->merges->data;
}

/* --- encoding */

typedef struct Node {
    gint32 id;         /* -1: merged into the one before */
    gint32 prev, next; /* -1: none */
} Node;

typedef struct Encoder {
    const Tokenizer *tokenizer;
    GArray *ids;
    GArray *nodes; /* Node, one for each byte of the piece */
    GArray *heap;  /* guint64: rank, place of the left node */
} Encoder;

static void heap_push(GArray *heap, guint64 entry)
{
    g_array_append_val(heap, entry);
    guint64 *at = &g_array_index(heap, guint64, 0);
    guint i = heap->len - 1;
    for (; i > 0 && at[(i - 1) / 2] > entry; i = (i - 1) / 2)
        at[i] = at[(i - 1) / 2];
    at[i] = entry;
}

static guint64 heap_pop(GArray *heap)
{
    guint64 *at = &g_array_index(heap, guint64, 0);
    guint64 top = at[0], last = at[heap->len - 1];
    g_array_set_size(heap, heap->len - 1);
    guint i = 0, n = heap->len;
    for (guint child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && at[child + 1] < at[child])
            child++;
        if (at[child] >= last)
            break;
        at[i] = at[child];
    }
    if (n > 0)
        at[i] = last;
    return top;
}

static void push_pair(Encoder *encoder, const Node *nodes, gint32 left)
{
    gint32 right = left < 0 ? -1 : nodes[left].next;
    if (right < 0)
        return;
    guint64 slot = *slot_find(encoder->tokenizer, slot_key(nodes[left].id, nodes[right].id));
    if (slot != SLOT_EMPTY)
        heap_push(encoder->heap, (slot & ID_MASK) << 32 | (guint64)left);
}

static void merge_all(Encoder *encoder, Node *nodes)
{
    while (encoder->heap->len > 0) {
        guint64 entry = heap_pop(encoder->heap);
        const TokenMerge *merge =
            &g_array_index(encoder->tokenizer->merges, TokenMerge, entry >> 32);
        gint32 left = (gint32)(entry & G_MAXUINT32), right = nodes[left].next;
        if (nodes[left].id != merge->left || right < 0 || nodes[right].id != merge->right)
            continue;
        nodes[left].id = merge->id;
        nodes[left].next = nodes[right].next;
        nodes[right].id = -1;
        if (nodes[left].next >= 0)
            nodes[nodes[left].next].prev = left;
        push_pair(encoder, nodes, nodes[left].prev);
        push_pair(encoder, nodes, left);
    }
}

static void encode_piece(const char *piece, gsize len, gpointer data)
{
    Encoder *encoder = data;
    g_array_set_size(encoder->nodes, (guint)len);
    Node *nodes = &g_array_index(encoder->nodes, Node, 0);
    for (gint32 i = 0; i < (gint32)len; i++)
        nodes[i] = (Node){.id = encoder->tokenizer->byte_ids[(guint8)piece[i]],
                          .prev = i - 1,
                          .next = i + 1 < (gint32)len ? i + 1 : -1};
    for (gint32 i = 0; i < (gint32)len; i++)
        push_pair(encoder, nodes, i);
    merge_all(encoder, nodes);
    for (gint32 i = 0; i >= 0; i = nodes[i].next)
        g_array_append_val(encoder->ids, nodes[i].id);
}

/* The special token whose text begins here, the longest one; NULL: none. */
static const Token *special_at(const Tokenizer *tokenizer, const char *text, gsize len)
{
    for (guint i = 0; i < tokenizer->specials->len; i++) {
        const Token *token = tokenizer->specials->pdata[i];
        if (token->len <= len && memcmp(token->bytes, text, token->len) == 0)
            return token;
    }
    return NULL;
}

static gboolean encode_specials(Encoder *encoder, const char *text, gsize len, GError **error)
{
    const Tokenizer *tokenizer = encoder->tokenizer;
    gboolean starts[256] = {FALSE};
    for (guint i = 0; i < tokenizer->specials->len; i++)
        starts[(guint8)((const Token *)tokenizer->specials->pdata[i])->bytes[0]] = TRUE;

    gsize from = 0, at = 0;
    while (at < len) {
        const Token *token =
            starts[(guint8)text[at]] ? special_at(tokenizer, text + at, len - at) : NULL;
        if (token == NULL) {
            at++;
            continue;
        }
        if (!token_split(text + from, at - from, encode_piece, encoder, error))
            return FALSE;
        g_array_append_val(encoder->ids, token->id);
        from = at += token->len;
    }
    return token_split(text + from, len - from, encode_piece, encoder, error);
}

GArray *tokens_new(void)
{
    return g_array_new(FALSE, FALSE, sizeof(gint32));
}

gboolean tokenizer_encode(const Tokenizer *tokenizer, const char *text, gsize len,
                          TokensFlags flags, GArray *ids, GError **error)
{
    if (len > TOKENIZER_TEXT_BYTES_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "text: %" G_GSIZE_FORMAT " bytes, more than %u",
                         len, TOKENIZER_TEXT_BYTES_MAX);
    g_autoptr(GArray) nodes = g_array_new(FALSE, FALSE, sizeof(Node));
    g_autoptr(GArray) heap = g_array_new(FALSE, FALSE, sizeof(guint64));
    Encoder encoder = {.tokenizer = tokenizer, .ids = ids, .nodes = nodes, .heap = heap};
    guint n_before = ids->len;
    gboolean good = flags & TOKENS_SPECIALS ? encode_specials(&encoder, text, len, error)
                                            : token_split(text, len, encode_piece, &encoder, error);
    if (!good)
        g_array_set_size(ids, n_before);
    return good;
}

gint32 tokenizer_unreached(const Tokenizer *tokenizer)
{
    g_autoptr(GArray) ids = tokens_new(), nodes = g_array_new(FALSE, FALSE, sizeof(Node));
    g_autoptr(GArray) heap = g_array_new(FALSE, FALSE, sizeof(guint64));
    Encoder encoder = {.tokenizer = tokenizer, .ids = ids, .nodes = nodes, .heap = heap};
    for (guint id = 0; id < tokenizer->tokens->len; id++) {
        const Token *token = tokenizer->tokens->pdata[id];
        if (token == NULL || token->special)
            continue;
        g_array_set_size(ids, 0);
        encode_piece(token->bytes, token->len, &encoder);
        if (ids->len != 1 || g_array_index(ids, gint32, 0) != (gint32)id)
            return (gint32)id;
    }
    return -1;
}

/* --- decoding */

gboolean tokenizer_decode(const Tokenizer *tokenizer, const gint32 *ids, gsize n, TokensFlags flags,
                          GString *out, GError **error)
{
    for (gsize i = 0; i < n; i++)
        if (token_at(tokenizer, ids[i]) == NULL)
            return error_set(error, ASSAY_ERROR_INPUT,
                             "token %" G_GSIZE_FORMAT ": there is no id %d", i, ids[i]);
    for (gsize i = 0; i < n; i++) {
        const Token *token = token_at(tokenizer, ids[i]);
        if (!token->special || flags & TOKENS_SPECIALS)
            g_string_append_len(out, token->bytes, token->len);
    }
    return TRUE;
}

gboolean detokenizer_add(Detokenizer *detokenizer, gint32 id, GString *out)
{
    const Token *token = token_at(detokenizer->tokenizer, id);
    if (token == NULL)
        return FALSE;
    if (token->special && !(detokenizer->flags & TOKENS_SPECIALS))
        return TRUE;
    g_autoptr(GString) text = g_string_new_len(detokenizer->held, detokenizer->n_held);
    g_string_append_len(text, token->bytes, token->len);
    detokenizer->n_held = utf8_append(out, text->str, text->len, FALSE);
    memcpy(detokenizer->held, text->str + text->len - detokenizer->n_held, detokenizer->n_held);
    return TRUE;
}

void detokenizer_end(Detokenizer *detokenizer, GString *out)
{
    utf8_append(out, detokenizer->held, detokenizer->n_held, TRUE);
    detokenizer->n_held = 0;
}
