/*
 * Shared parts of the tokenizer's tests, among them a second tokenizer that is slow and plain.
 *
 * The slow cut is written from the words of the pattern's branches with GLib's Unicode tables, and
 * knows no regular expressions; the slow encoder looks at all pairs before every merge.
 */
#include "tests/policy/policy_lab.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/tree.h"
#include "policy/token_train.h"
#include "policy/tokenizer_build.h"

#include <fcntl.h>
#include <string.h>

char *lab_corpus(gsize *ret_len)
{
    g_autofree char *path =
        g_build_filename(g_getenv("ASSAY_SOURCE_ROOT"), "tests/policy/corpus.txt", NULL);
    char *text = NULL;
    g_assert_true(g_file_get_contents(path, &text, ret_len, NULL));
    return text;
}

Tokenizer *lab_tokenizer(guint vocab)
{
    gsize len;
    g_autofree char *text = lab_corpus(&len);
    g_autoptr(GError) error = NULL;
    g_autoptr(TokenTrainer) trainer = token_trainer_new();
    g_assert_true(token_trainer_add(trainer, text, len, &error));
    Tokenizer *tokenizer = token_trainer_finish(trainer, vocab, &error);
    g_assert_no_error(error);
    return tokenizer;
}

const char *lab_m1_data(void)
{
    const char *dir = g_getenv("ASSAY_M1_DATA");
    if (dir == NULL)
        g_test_skip("ASSAY_M1_DATA names no directory with M1's merges.txt");
    return dir;
}

char *lab_dir(void)
{
    g_autoptr(GError) error = NULL;
    char *dir = g_dir_make_tmp("assay-policy-XXXXXX", &error);
    g_assert_no_error(error);
    return dir;
}

void lab_dir_remove(const char *dir)
{
    g_autoptr(GError) error = NULL;
    tree_remove(AT_FDCWD, dir, &error);
    g_assert_no_error(error);
}

guint64 lab_random(guint64 *state)
{
    guint64 z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

guint lab_below(guint64 *state, guint n)
{
    return (guint)(lab_random(state) % n);
}

void lab_same(const void *a, gsize a_len, const void *b, gsize b_len)
{
    g_assert_cmpuint(a_len, ==, b_len);
    g_assert_true(a_len == 0 || memcmp(a, b, a_len) == 0);
}

char *lab_ids(const GArray *ids)
{
    g_autoptr(GString) text = g_string_new(NULL);
    for (guint i = 0; i < ids->len; i++)
        g_string_append_printf(text, "%s%d", i > 0 ? " " : "", g_array_index(ids, gint32, i));
    return g_string_free(g_steal_pointer(&text), FALSE);
}

/* --- the slow cut */

typedef struct Letter {
    gunichar c;
    gsize end; /* where the next one starts */
    gboolean upper, lower, letter, number, space, line_end;
} Letter;

static Letter classify(gunichar c, gsize end)
{
    static const gunichar spaces[] = {0x20,   0x85,   0xa0,   0x1680, 0x2028,
                                      0x2029, 0x202f, 0x205f, 0x3000};
    Letter it = {.c = c, .end = end};
    GUnicodeType type = g_unichar_type(c);
    gboolean mark = type == G_UNICODE_NON_SPACING_MARK || type == G_UNICODE_SPACING_MARK ||
                    type == G_UNICODE_ENCLOSING_MARK;
    gboolean both = type == G_UNICODE_MODIFIER_LETTER || type == G_UNICODE_OTHER_LETTER || mark;
    it.upper = both || type == G_UNICODE_UPPERCASE_LETTER || type == G_UNICODE_TITLECASE_LETTER;
    it.lower = both || type == G_UNICODE_LOWERCASE_LETTER;
    it.letter = (it.upper || it.lower) && !mark;
    it.number = type == G_UNICODE_DECIMAL_NUMBER || type == G_UNICODE_LETTER_NUMBER ||
                type == G_UNICODE_OTHER_NUMBER;
    it.line_end = c == '\r' || c == '\n';
    it.space = (9 <= c && c <= 13) || (0x2000 <= c && c <= 0x200a);
    for (gsize i = 0; i < G_N_ELEMENTS(spaces); i++)
        it.space = it.space || c == spaces[i];
    return it;
}

static gunichar lower_ascii(gunichar c)
{
    return c == 0x17f ? 's' : c < 128 ? (gunichar)g_ascii_tolower((char)c) : c;
}

/* Letters of a contraction at `at`, apostrophe included; 0: none. */
static guint contraction(const Letter *text, guint at, guint n)
{
    static const char *const all[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (at >= n || text[at].c != '\'')
        return 0;
    for (gsize i = 0; i < G_N_ELEMENTS(all); i++) {
        guint len = (guint)strlen(all[i]), same = 0;
        while (same < len && at + 1 + same < n &&
               lower_ascii(text[at + 1 + same].c) == (gunichar)all[i][same])
            same++;
        if (same == len)
            return len + 1;
    }
    return 0;
}

/* End of a word at `at`; 0: none. `need_lower`: the first branch, else the second. */
static guint word_end(const Letter *text, guint at, guint n, gboolean need_lower)
{
    guint upper = at;
    while (upper < n && text[upper].upper)
        upper++;
    if (!need_lower && upper == at)
        return 0;
    for (guint from = upper;; from--) {
        guint end = from;
        while (end < n && text[end].lower)
            end++;
        if (end > from || !need_lower)
            return end + contraction(text, end, n);
        if (from == at)
            return 0;
    }
}

static guint any_word_end(const Letter *text, guint at, guint n)
{
    gboolean lead = !text[at].line_end && !text[at].letter && !text[at].number;
    for (int need_lower = 1; need_lower >= 0; need_lower--)
        for (guint skip = lead ? 1 : 0;; skip--) {
            guint end = at + skip < n ? word_end(text, at + skip, n, need_lower) : 0;
            if (end > 0)
                return end;
            if (skip == 0)
                break;
        }
    return 0;
}

static guint piece_end(const Letter *text, guint at, guint n)
{
    guint end = any_word_end(text, at, n);
    if (end > 0)
        return end;
    for (end = at; end < n && end < at + 3 && text[end].number;)
        end++;
    if (end > at)
        return end;
    guint from = at + (text[at].c == ' ' ? 1 : 0);
    for (end = from; end < n && !text[end].space && !text[end].letter && !text[end].number;)
        end++;
    if (end > from) {
        while (end < n && (text[end].line_end || text[end].c == '/'))
            end++;
        return end;
    }
    guint last_line = 0;
    for (end = at; end < n && text[end].space; end++)
        last_line = text[end].line_end ? end + 1 : last_line;
    if (last_line > 0)
        return last_line;
    return end < n && end > at + 1 ? end - 1 : end;
}

void lab_slow_split(const char *text, gsize len, GArray *ret_ends)
{
    g_autoptr(GArray) letters = g_array_new(FALSE, FALSE, sizeof(Letter));
    for (gsize at = 0; at < len;) {
        gunichar c = g_utf8_get_char_validated(text + at, (gssize)(len - at));
        if (text[at] == '\0')
            c = 0;
        gboolean valid = c != (gunichar)-1 && c != (gunichar)-2;
        if (valid) {
            at += (gsize)g_unichar_to_utf8(c, NULL);
            Letter letter = classify(c, at);
            g_array_append_val(letters, letter);
        }
        if (valid && at < len)
            continue;
        const Letter *run = (const Letter *)(gconstpointer)letters->data;
        for (guint i = 0; i < letters->len;) {
            i = piece_end(run, i, letters->len);
            g_array_append_val(ret_ends, run[i - 1].end);
        }
        g_array_set_size(letters, 0);
        if (!valid) {
            at++;
            g_array_append_val(ret_ends, at);
        }
    }
}

/* --- the slow merges */

static gint32 rank_of(const TokenMerge *merges, guint n, gint32 left, gint32 right)
{
    for (guint i = 0; i < n; i++)
        if (merges[i].left == left && merges[i].right == right)
            return (gint32)i;
    return -1;
}

static void slow_piece(const Tokenizer *tokenizer, const char *piece, gsize len, GArray *ids)
{
    guint n, first = ids->len;
    const TokenMerge *merges = tokenizer_merges(tokenizer, &n);
    for (gsize i = 0; i < len; i++) {
        gint32 id = tokenizer_find(tokenizer, piece + i, 1);
        g_array_append_val(ids, id);
    }
    for (;;) {
        gint32 best = -1;
        guint place = 0;
        for (guint i = first; i + 1 < ids->len; i++) {
            gint32 rank = rank_of(merges, n, g_array_index(ids, gint32, i),
                                  g_array_index(ids, gint32, i + 1));
            if (rank >= 0 && (best < 0 || rank < best)) {
                best = rank;
                place = i;
            }
        }
        if (best < 0)
            return;
        g_array_index(ids, gint32, place) = merges[best].id;
        g_array_remove_index(ids, place + 1);
    }
}

void lab_slow_encode(const Tokenizer *tokenizer, const char *text, gsize len, GArray *ids)
{
    g_autoptr(GArray) ends = g_array_new(FALSE, FALSE, sizeof(gsize));
    lab_slow_split(text, len, ends);
    gsize from = 0;
    for (guint i = 0; i < ends->len; i++) {
        gsize end = g_array_index(ends, gsize, i);
        slow_piece(tokenizer, text + from, end - from, ids);
        from = end;
    }
    g_assert_cmpuint(from, ==, len);
}
