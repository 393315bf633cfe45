/*
 * Ratcliff-Obershelp similarity as Python's difflib computes it.
 *
 * Invariants: ties are broken as difflib breaks them, the earliest in a, then the earliest in b;
 * the work is bounded and passing the bound is told.
 *
 * Not here: reading patches (patch_scan.c).
 */
#include "reward/similarity.h"

#include "reward/patch_scan.h"

#include <string.h>

/* A text as symbols: equal symbol, equal character (or line). */
typedef struct Symbols {
    guint32 *at;
    gsize n;
} Symbols;

typedef struct Matcher {
    Symbols a, b;
    guint32 *first; /* symbol -> its first place in b, or NONE */
    guint32 *next;  /* place in b -> the next place with the same symbol, or NONE */
    guint32 *run;   /* by place in b: length of the match ending here, for the row before */
    guint32 *fresh; /* the same for this row; all zero outside the places of `touched` */
    guint64 steps;
} Matcher;

typedef struct Range {
    gsize a_from, a_to, b_from, b_to;
} Range;

typedef struct Block {
    gsize a, b, n;
} Block;

#define NONE G_MAXUINT32

static void matcher_index(Matcher *m, gsize n_symbols)
{
    m->first = g_new(guint32, n_symbols + 1);
    m->next = g_new(guint32, m->b.n + 1);
    m->run = g_new0(guint32, m->b.n + 1);
    m->fresh = g_new0(guint32, m->b.n + 1);
    for (gsize s = 0; s < n_symbols; s++)
        m->first[s] = NONE;
    for (gsize j = m->b.n; j-- > 0;) {
        m->next[j] = m->first[m->b.at[j]];
        m->first[m->b.at[j]] = (guint32)j;
    }
}

static void matcher_clear(Matcher *m)
{
    g_free(m->first);
    g_free(m->next);
    g_free(m->run);
    g_free(m->fresh);
}

/* Clears what the row of a[i] wrote. */
static void row_clear(Matcher *m, guint32 *row, gsize i)
{
    for (guint32 j = m->first[m->a.at[i]]; j != NONE; j = m->next[j])
        row[j + 1] = 0;
}

/* The longest match inside `r`; n = 0 when there is none. run[j + 1] is the length of the match
 * that ends at b[j]. */
static Block longest(Matcher *m, Range r)
{
    Block best = {r.a_from, r.b_from, 0};
    for (gsize i = r.a_from; i < r.a_to; i++) {
        for (guint32 j = m->first[m->a.at[i]]; j != NONE && j < r.b_to; j = m->next[j]) {
            m->steps++;
            if (j < r.b_from)
                continue;
            guint32 k = (j > r.b_from ? m->run[j] : 0) + 1;
            m->fresh[j + 1] = k;
            if (k > best.n)
                best = (Block){i + 1 - k, j + 1 - k, k};
        }
        if (i > r.a_from)
            row_clear(m, m->run, i - 1);
        guint32 *swap = m->run;
        m->run = m->fresh;
        m->fresh = swap;
        if (m->steps > SIMILARITY_STEPS_MAX)
            break;
    }
    if (r.a_to > r.a_from)
        row_clear(m, m->run, r.a_to - 1);
    return best;
}

/* Total length of all matching blocks. */
static gboolean matcher_total(Matcher *m, gsize *ret_total)
{
    g_autoptr(GArray) queue = g_array_new(FALSE, FALSE, sizeof(Range));
    Range all = {0, m->a.n, 0, m->b.n};
    g_array_append_val(queue, all);
    gsize total = 0;
    while (queue->len > 0) {
        Range r = g_array_index(queue, Range, queue->len - 1);
        g_array_set_size(queue, queue->len - 1);
        Block best = longest(m, r);
        if (m->steps > SIMILARITY_STEPS_MAX)
            return FALSE;
        if (best.n == 0)
            continue;
        total += best.n;
        Range left = {r.a_from, best.a, r.b_from, best.b};
        Range right = {best.a + best.n, r.a_to, best.b + best.n, r.b_to};
        if (left.a_from < left.a_to && left.b_from < left.b_to)
            g_array_append_val(queue, left);
        if (right.a_from < right.a_to && right.b_from < right.b_to)
            g_array_append_val(queue, right);
    }
    *ret_total = total;
    return TRUE;
}

/* The symbols of `text`: its characters, or its lines. `known` maps what was seen to its number. */
static Symbols symbols_of(Span text, gboolean by_line, GHashTable *known)
{
    Symbols symbols = {g_new(guint32, text.len + 1), 0};
    while (text.len > 0) {
        gsize n = (gsize)(text_next(text.ptr) - text.ptr);
        if (by_line) {
            gssize end = span_find(text, SPAN("\n"), 0);
            n = end < 0 ? text.len : (gsize)end + 1;
        }
        GBytes *key = g_bytes_new(text.ptr, n);
        gpointer number;
        if (!g_hash_table_lookup_extended(known, key, NULL, &number)) {
            number = GUINT_TO_POINTER(g_hash_table_size(known));
            g_hash_table_insert(known, g_bytes_ref(key), number);
        }
        g_bytes_unref(key);
        symbols.at[symbols.n++] = GPOINTER_TO_UINT(number);
        text = span_from(text, n);
    }
    return symbols;
}

static gboolean ratio(Span a, Span b, gboolean by_line, double *ret_ratio)
{
    g_autoptr(GHashTable) known =
        g_hash_table_new_full(g_bytes_hash, g_bytes_equal, (GDestroyNotify)g_bytes_unref, NULL);
    Matcher m = {.a = symbols_of(a, by_line, known)};
    m.b = symbols_of(b, by_line, known);
    matcher_index(&m, g_hash_table_size(known));
    gsize total;
    gboolean ok = matcher_total(&m, &total);
    gsize n = m.a.n + m.b.n;
    if (ok)
        *ret_ratio = n == 0 ? 1.0 : 2.0 * (double)total / (double)n;
    matcher_clear(&m);
    g_free(m.a.at);
    g_free(m.b.at);
    return ok;
}

gboolean similarity_ratio(Span a, Span b, double *ret_ratio)
{
    if (span_chars(a) > SIMILARITY_CHARS_MAX || span_chars(b) > SIMILARITY_CHARS_MAX)
        return FALSE;
    return ratio(a, b, FALSE, ret_ratio);
}

/* ---- patches ---- */

/* What SWE-RL compares of one file; NULL for a binary one. */
static char *text_of(const PatchFile *file)
{
    if (file->is_binary)
        return NULL;
    AUTO_GSTRING whole = g_string_new(NULL);
    if (file->is_renamed)
        g_string_append_printf(whole, "rename from %s to %s", file->old_path, file->new_path);
    g_string_append_printf(whole, "\n%s", file->hunks->str);
    gsize len;
    g_autofree char *text = text_decode(whole->str, whole->len, &len);
    return span_dup(span_strip((Span){text, len}));
}

static const char *key_of(const PatchFile *file)
{
    return file->is_renamed ? file->old_path : patch_file_path(file);
}

/* Path -> text of every file of a patch. */
static GHashTable *texts_of(const void *bytes, gsize len)
{
    GHashTable *texts = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    g_autoptr(PatchScan) scan = patch_scan(bytes, len);
    for (guint i = 0; !scan->malformed && i < scan->files->len; i++) {
        const PatchFile *file = g_ptr_array_index(scan->files, i);
        char *text = text_of(file);
        if (text != NULL)
            g_hash_table_replace(texts, g_strdup(key_of(file)), text);
    }
    return texts;
}

static double text_similarity(const char *a, const char *b, gboolean *ret_capped)
{
    double value = 0;
    if (*a == '\0' || *b == '\0')
        return 0;
    if (similarity_ratio(span_of(a), span_of(b), &value))
        return value;
    *ret_capped = TRUE;
    return ratio(span_of(a), span_of(b), TRUE, &value) ? value : 0.0;
}

double similarity_patches(const void *predicted, gsize predicted_len, const void *oracle,
                          gsize oracle_len, gboolean *ret_capped)
{
    g_autoptr(GHashTable) mine = texts_of(predicted, predicted_len);
    g_autoptr(GHashTable) theirs = texts_of(oracle, oracle_len);
    double sum = 0;
    guint n = g_hash_table_size(mine) + g_hash_table_size(theirs);
    *ret_capped = FALSE;

    GHashTableIter iter;
    gpointer path, text;
    g_hash_table_iter_init(&iter, mine);
    while (g_hash_table_iter_next(&iter, &path, &text)) {
        const char *other = g_hash_table_lookup(theirs, path);
        if (other == NULL)
            continue;
        n--;
        sum += text_similarity(text, other, ret_capped);
    }
    return n == 0 ? 1.0 : sum / n;
}
