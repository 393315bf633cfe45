/*
 * Training byte-level BPE (Sennrich, Haddow, Birch 2016): the commonest pair becomes a token, over
 * and over.
 *
 * Invariants:
 *   1. Ties go to the pair whose bytes sort first (left token, then right): no order of texts,
 *      hash or address matters.
 *   2. Tokens are distinct: a pair that spells a token that is there is never merged, so merge i
 *      makes id 256 + i and merges.txt alone tells all ids.
 *   3. The count of a pair is exact after each replacement, which takes the two pairs beside its
 *      place away and adds two: a merge costs its occurrences and a walk over their words.
 *
 * A heap holds (count, pair) as they were; an entry whose count is no longer the pair's is stale
 * and skipped, because a fresh one was pushed when it changed.
 *
 * Not here: the cut into pieces (token_split.c).
 */
#include "policy/token_train.h"

#include "base/error.h"
#include "policy/token_hash.h"
#include "policy/token_split.h"
#include "policy/tokenizer_build.h"

#include <string.h>

#define COUNT_MIN 2
#define SPECIALS  4u

G_STATIC_ASSERT(TOKEN_TRAIN_VOCAB_MIN == 256 + SPECIALS);

typedef struct Piece {
    gint64 count;
    guint32 len;
    char bytes[];
} Piece;

struct TokenTrainer {
    GHashTable *pieces; /* set of Piece, by bytes */
    guint64 n_bytes;
};

static guint piece_hash(gconstpointer key)
{
    const Piece *piece = key;
    return token_hash_bytes(piece->bytes, piece->len);
}

static gboolean piece_equal(gconstpointer a, gconstpointer b)
{
    const Piece *x = a, *y = b;
    return x->len == y->len && memcmp(x->bytes, y->bytes, x->len) == 0;
}

TokenTrainer *token_trainer_new(void)
{
    TokenTrainer *trainer = g_new0(TokenTrainer, 1);
    trainer->pieces = g_hash_table_new_full(piece_hash, piece_equal, g_free, NULL);
    return trainer;
}

void token_trainer_free(TokenTrainer *trainer)
{
    if (trainer == NULL)
        return;
    g_hash_table_unref(trainer->pieces);
    g_free(trainer);
}

static void count_piece(const char *bytes, gsize len, gpointer data)
{
    TokenTrainer *trainer = data;
    for (gsize at = 0; at < len; at += TOKEN_TRAIN_PIECE_BYTES) {
        guint32 n = (guint32)MIN(len - at, TOKEN_TRAIN_PIECE_BYTES);
        g_autofree Piece *piece = g_malloc(sizeof *piece + n);
        *piece = (Piece){.count = 1, .len = n};
        memcpy(piece->bytes, bytes + at, n);
        Piece *known = g_hash_table_lookup(trainer->pieces, piece);
        if (known != NULL)
            known->count++;
        else
            g_hash_table_add(trainer->pieces, g_steal_pointer(&piece));
    }
}

gboolean token_trainer_add(TokenTrainer *trainer, const char *text, gsize len, GError **error)
{
    if (len > TOKEN_TRAIN_BYTES_MAX - trainer->n_bytes)
        return error_set(error, ASSAY_ERROR_LIMIT, "texts: more than %llu bytes",
                         TOKEN_TRAIN_BYTES_MAX);
    trainer->n_bytes += len;
    return token_split(text, len, count_piece, trainer, error);
}

/* --- the search for merges */

typedef struct Word {
    gint64 count;
    guint32 n;
    gint32 *ids;
} Word;

typedef struct Pair {
    gint32 left, right;
    gint64 count;
    GArray *words;    /* guint32: words that have or had it */
    gboolean changed; /* listed in Search.changed */
} Pair;

typedef struct Entry {
    gint64 count; /* of the pair when it was pushed */
    Pair *pair;
} Entry;

typedef struct Search {
    Tokenizer *tokenizer;
    GArray *words;      /* Word */
    GHashTable *pairs;  /* set of Pair, by ids */
    GPtrArray *changed; /* Pair */
    GArray *heap;       /* Entry */
} Search;

static guint pair_hash(gconstpointer key)
{
    const Pair *pair = key;
    return (guint)token_hash_word((guint64)pair->left << 32 | (guint64)pair->right, 32);
}

static gboolean pair_equal(gconstpointer a, gconstpointer b)
{
    const Pair *x = a, *y = b;
    return x->left == y->left && x->right == y->right;
}

static void pair_free(gpointer ptr)
{
    Pair *pair = ptr;
    g_array_unref(pair->words);
    g_free(pair);
}

static void word_clear(gpointer ptr)
{
    g_free(((Word *)ptr)->ids);
}

static int compare_bytes(const Tokenizer *tokenizer, gint32 a, gint32 b)
{
    gsize a_len, b_len;
    const char *x = tokenizer_bytes(tokenizer, a, &a_len);
    const char *y = tokenizer_bytes(tokenizer, b, &b_len);
    int order = memcmp(x, y, MIN(a_len, b_len));
    return order != 0 ? order : (a_len > b_len) - (a_len < b_len);
}

/* TRUE when `a` is to be merged before `b`. */
static gboolean comes_first(const Search *search, const Entry *a, const Entry *b)
{
    if (a->count != b->count)
        return a->count > b->count;
    int order = compare_bytes(search->tokenizer, a->pair->left, b->pair->left);
    return order != 0 ? order < 0
                      : compare_bytes(search->tokenizer, a->pair->right, b->pair->right) < 0;
}

static void heap_push(Search *search, Entry entry)
{
    g_array_append_val(search->heap, entry);
    Entry *at = &g_array_index(search->heap, Entry, 0);
    guint i = search->heap->len - 1;
    for (; i > 0 && comes_first(search, &entry, &at[(i - 1) / 2]); i = (i - 1) / 2)
        at[i] = at[(i - 1) / 2];
    at[i] = entry;
}

static Entry heap_pop(Search *search)
{
    Entry *at = &g_array_index(search->heap, Entry, 0);
    Entry top = at[0], last = at[search->heap->len - 1];
    g_array_set_size(search->heap, search->heap->len - 1);
    guint i = 0, n = search->heap->len;
    for (guint child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && comes_first(search, &at[child + 1], &at[child]))
            child++;
        if (!comes_first(search, &at[child], &last))
            break;
        at[i] = at[child];
    }
    if (n > 0)
        at[i] = last;
    return top;
}

/* Adds to the count of a pair that stands, or stood, in the word. */
static void count_pair(Search *search, gint32 left, gint32 right, gint64 change, guint32 index)
{
    Pair key = {.left = left, .right = right};
    Pair *pair = g_hash_table_lookup(search->pairs, &key);
    if (pair == NULL) {
        pair = g_memdup2(&key, sizeof key);
        pair->words = g_array_new(FALSE, FALSE, sizeof(guint32));
        g_hash_table_add(search->pairs, pair);
    }
    pair->count += change;
    guint n = pair->words->len;
    if (change > 0 && (n == 0 || g_array_index(pair->words, guint32, n - 1) != index))
        g_array_append_val(pair->words, index);
    if (!pair->changed)
        g_ptr_array_add(search->changed, pair);
    pair->changed = TRUE;
}

static void push_changed(Search *search)
{
    for (guint i = 0; i < search->changed->len; i++) {
        Pair *pair = search->changed->pdata[i];
        pair->changed = FALSE;
        if (pair->count >= COUNT_MIN)
            heap_push(search, (Entry){.count = pair->count, .pair = pair});
    }
    g_ptr_array_set_size(search->changed, 0);
}

/* Replaces the pair in a word, from the left; the pairs beside each place change with it. */
static void merge_in_word(Search *search, const Pair *pair, gint32 id, guint32 index)
{
    Word *word = &g_array_index(search->words, Word, index);
    gint32 *ids = word->ids;
    guint32 kept = 0;
    for (guint32 from = 0; from < word->n; kept++) {
        if (ids[from] != pair->left || from + 1 == word->n || ids[from + 1] != pair->right) {
            ids[kept] = ids[from++];
            continue;
        }
        count_pair(search, pair->left, pair->right, -word->count, index);
        if (kept > 0) {
            count_pair(search, ids[kept - 1], pair->left, -word->count, index);
            count_pair(search, ids[kept - 1], id, word->count, index);
        }
        if (from + 2 < word->n) {
            count_pair(search, pair->right, ids[from + 2], -word->count, index);
            count_pair(search, id, ids[from + 2], word->count, index);
        }
        ids[kept] = id;
        from += 2;
    }
    word->n = kept;
}

/* The token that the pair becomes; -1: its bytes are a token already, or too many. */
static gint32 token_of_pair(Search *search, const Pair *pair)
{
    gsize left_len, right_len;
    const char *left = tokenizer_bytes(search->tokenizer, pair->left, &left_len);
    const char *right = tokenizer_bytes(search->tokenizer, pair->right, &right_len);
    g_autoptr(GString) both = g_string_new_len(left, (gssize)left_len);
    g_string_append_len(both, right, (gssize)right_len);
    gint32 id = tokenizer_size(search->tokenizer);
    return tokenizer_put(search->tokenizer, id, both->str, both->len, FALSE, NULL) ? id : -1;
}

static guint find_merges(Search *search, guint n_wanted)
{
    guint n_merges = 0;
    while (n_merges < n_wanted && search->heap->len > 0) {
        Entry entry = heap_pop(search);
        gint32 id = entry.count == entry.pair->count ? token_of_pair(search, entry.pair) : -1;
        if (id < 0)
            continue;
        gboolean added =
            tokenizer_merge(search->tokenizer, entry.pair->left, entry.pair->right, id, NULL);
        g_assert(added);
        for (guint i = 0; i < entry.pair->words->len; i++)
            merge_in_word(search, entry.pair, id, g_array_index(entry.pair->words, guint32, i));
        push_changed(search);
        n_merges++;
    }
    return n_merges;
}

static void add_words(Search *search, GHashTable *pieces)
{
    GHashTableIter iter;
    gpointer key;
    g_hash_table_iter_init(&iter, pieces);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        const Piece *piece = key;
        Word word = {.count = piece->count, .n = piece->len, .ids = g_new(gint32, piece->len)};
        for (guint32 i = 0; i < piece->len; i++)
            word.ids[i] = (guint8)piece->bytes[i];
        g_array_append_val(search->words, word);
    }
    for (guint32 index = 0; index < search->words->len; index++) {
        const Word *word = &g_array_index(search->words, Word, index);
        for (guint32 i = 0; i + 1 < word->n; i++)
            count_pair(search, word->ids[i], word->ids[i + 1], word->count, index);
    }
    push_changed(search);
}

Tokenizer *token_trainer_finish(const TokenTrainer *trainer, guint vocab, GError **error)
{
    if (vocab < TOKEN_TRAIN_VOCAB_MIN || vocab > TOKEN_TRAIN_VOCAB_MAX) {
        error_set(error, ASSAY_ERROR_INPUT, "vocabulary: %u is not between %u and %u", vocab,
                  TOKEN_TRAIN_VOCAB_MIN, TOKEN_TRAIN_VOCAB_MAX);
        return NULL;
    }
    g_autoptr(Tokenizer) tokenizer = tokenizer_new();
    g_autoptr(GArray) words = g_array_new(FALSE, FALSE, sizeof(Word));
    g_autoptr(GArray) heap = g_array_new(FALSE, FALSE, sizeof(Entry));
    g_autoptr(GPtrArray) changed = g_ptr_array_new();
    g_autoptr(GHashTable) pairs = g_hash_table_new_full(pair_hash, pair_equal, pair_free, NULL);
    g_array_set_clear_func(words, word_clear);
    Search search = {
        .tokenizer = tokenizer, .words = words, .pairs = pairs, .changed = changed, .heap = heap};
    for (gint32 b = 0; b < 256; b++) {
        char byte = (char)b;
        tokenizer_put(tokenizer, b, &byte, 1, FALSE, NULL);
    }
    add_words(&search, trainer->pieces);
    guint n_merges = find_merges(&search, vocab - TOKEN_TRAIN_VOCAB_MIN);
    return tokenizer_put_specials(tokenizer, n_merges, error) && tokenizer_finish(tokenizer, error)
               ? g_steal_pointer(&tokenizer)
               : NULL;
}
