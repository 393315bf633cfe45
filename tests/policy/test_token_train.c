/*
 * Training vocabularies: the same as the plain algorithm, whatever the order of texts.
 */
#include "tests/policy/policy_lab.h"

#include "base/error.h"
#include "policy/token_split.h"
#include "policy/token_train.h"
#include "policy/tokenizer_build.h"

#include <string.h>

static Tokenizer *train(const char *const *texts, guint vocab)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(TokenTrainer) trainer = token_trainer_new();
    for (; *texts != NULL; texts++)
        g_assert_true(token_trainer_add(trainer, *texts, strlen(*texts), &error));
    Tokenizer *tokenizer = token_trainer_finish(trainer, vocab, &error);
    g_assert_no_error(error);
    return tokenizer;
}

static char *token_text(const Tokenizer *tokenizer, gint32 id)
{
    gsize len;
    const char *bytes = tokenizer_bytes(tokenizer, id, &len);
    return g_strndup(bytes, len);
}

static void the_commonest_pair_comes_first(void)
{
    g_autoptr(Tokenizer) tokenizer = train(
        (const char *const[]){"low low low lower lower newest newest newest newest", NULL}, 264);
    g_autoptr(GString) tokens = g_string_new(NULL);
    for (gint32 id = 256; id < 260; id++) {
        g_autofree char *text = token_text(tokenizer, id);
        g_string_append_printf(tokens, "%s,", text);
    }
    /* "we" 6; "lo" 5; then of the pairs that occur four times those whose bytes sort first */
    g_assert_cmpstr(tokens->str, ==, "we,lo, lo, n,");
}

static void no_token_is_made_of_what_occurs_once(void)
{
    g_autoptr(Tokenizer) tokenizer = train((const char *const[]){"abcdefg", NULL}, 4096);
    g_assert_cmpint(tokenizer_size(tokenizer), ==, TOKEN_TRAIN_VOCAB_MIN);
    g_autoptr(Tokenizer) empty = train((const char *const[]){NULL}, 4096);
    g_assert_cmpint(tokenizer_size(empty), ==, TOKEN_TRAIN_VOCAB_MIN);
    g_assert_cmpint(tokenizer_special(empty, TOKEN_BOS), ==, 256);
    g_assert_cmpint(tokenizer_special(empty, TOKEN_BOD), ==, 259);
}

static void runs_of_one_letter_are_counted(void)
{
    g_autoptr(Tokenizer) tokenizer = train((const char *const[]){"aaaaaaa aaaaaaa", NULL}, 4096);
    g_autoptr(GArray) ids = tokens_new();
    g_assert_true(tokenizer_encode(tokenizer, "aaaaaaa", 7, TOKENS_PLAIN, ids, NULL));
    g_assert_cmpuint(ids->len, ==, 1);
    g_assert_cmpint(tokenizer_unreached(tokenizer), ==, -1);
}

static void the_order_of_texts_does_not_matter(void)
{
    gsize len;
    g_autofree char *corpus = lab_corpus(&len);
    g_auto(GStrv) lines = g_strsplit(corpus, "\n", -1);
    guint n = g_strv_length(lines);
    g_autoptr(Tokenizer) forward = train((const char *const *)lines, 450);
    g_autofree const char **backward = g_new0(const char *, n + 1);
    for (guint i = 0; i < n; i++)
        backward[i] = lines[n - 1 - i];
    g_autoptr(Tokenizer) other = train(backward, 450);
    guint a_n, b_n;
    const TokenMerge *a = tokenizer_merges(forward, &a_n), *b = tokenizer_merges(other, &b_n);
    g_assert_cmpuint(a_n, ==, 450 - TOKEN_TRAIN_VOCAB_MIN);
    lab_same(a, a_n * sizeof *a, b, b_n * sizeof *b);
}

/* --- the plain algorithm: count all pairs anew before every merge */

typedef struct PlainPair {
    gint32 left, right;
    gint64 count;
} PlainPair;

static void take_piece(const char *piece, gsize len, gpointer data)
{
    GArray *all = data;
    for (gsize i = 0; i < len; i++) {
        gint32 id = (guint8)piece[i];
        g_array_append_val(all, id);
    }
    gint32 border = -1;
    g_array_append_val(all, border);
}

static void count_pairs(const GArray *all, GArray *pairs)
{
    for (guint i = 0; i + 1 < all->len; i++) {
        PlainPair pair = {g_array_index(all, gint32, i), g_array_index(all, gint32, i + 1), 1};
        guint k = 0;
        while (k < pairs->len && (g_array_index(pairs, PlainPair, k).left != pair.left ||
                                  g_array_index(pairs, PlainPair, k).right != pair.right))
            k++;
        if (pair.left < 0 || pair.right < 0)
            continue;
        if (k < pairs->len)
            g_array_index(pairs, PlainPair, k).count++;
        else
            g_array_append_val(pairs, pair);
    }
}

static int by_bytes(const Tokenizer *tokenizer, gint32 a, gint32 b)
{
    gsize a_len, b_len;
    const char *x = tokenizer_bytes(tokenizer, a, &a_len);
    const char *y = tokenizer_bytes(tokenizer, b, &b_len);
    int order = memcmp(x, y, MIN(a_len, b_len));
    return order != 0 ? order : (int)a_len - (int)b_len;
}

static gboolean spells_a_token(const Tokenizer *tokenizer, const PlainPair *pair)
{
    gsize a_len, b_len;
    const char *a = tokenizer_bytes(tokenizer, pair->left, &a_len);
    const char *b = tokenizer_bytes(tokenizer, pair->right, &b_len);
    g_autoptr(GString) both = g_string_new_len(a, (gssize)a_len);
    g_string_append_len(both, b, (gssize)b_len);
    return tokenizer_find(tokenizer, both->str, both->len) >= 0;
}

static const PlainPair *best_pair(const Tokenizer *tokenizer, const GArray *pairs)
{
    const PlainPair *best = NULL;
    for (guint i = 0; i < pairs->len; i++) {
        const PlainPair *pair = &g_array_index(pairs, PlainPair, i);
        int order = best == NULL || pair->count != best->count
                        ? 0
                        : by_bytes(tokenizer, pair->left, best->left);
        if (order == 0 && best != NULL && pair->count == best->count)
            order = by_bytes(tokenizer, pair->right, best->right);
        gboolean better =
            best == NULL || pair->count > best->count || (pair->count == best->count && order < 0);
        if (pair->count >= 2 && better && !spells_a_token(tokenizer, pair))
            best = pair;
    }
    return best;
}

static void apply_plain(GArray *all, const PlainPair *pair, gint32 id)
{
    for (guint i = 0; i + 1 < all->len; i++)
        if (g_array_index(all, gint32, i) == pair->left &&
            g_array_index(all, gint32, i + 1) == pair->right) {
            g_array_index(all, gint32, i) = id;
            g_array_remove_index(all, i + 1);
        }
}

static void assert_plainly_trained(const char *text, gsize len, guint vocab)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(TokenTrainer) trainer = token_trainer_new();
    g_assert_true(token_trainer_add(trainer, text, len, &error));
    g_autoptr(Tokenizer) fast = token_trainer_finish(trainer, vocab, &error);
    guint n;
    const TokenMerge *merges = tokenizer_merges(fast, &n);

    g_autoptr(Tokenizer) plain = tokenizer_new();
    g_autoptr(GArray) all = g_array_new(FALSE, FALSE, sizeof(gint32));
    g_assert_true(token_split(text, len, take_piece, all, &error));
    for (gint32 b = 0; b < 256; b++) {
        char byte = (char)b;
        g_assert_true(tokenizer_put(plain, b, &byte, 1, FALSE, NULL));
    }
    for (guint i = 0; i <= n && i < vocab - TOKEN_TRAIN_VOCAB_MIN; i++) {
        g_autoptr(GArray) pairs = g_array_new(FALSE, FALSE, sizeof(PlainPair));
        gint32 id = 256 + (gint32)i;
        count_pairs(all, pairs);
        const PlainPair *best = best_pair(plain, pairs);
        g_assert_true((best != NULL) == (i < n));
        if (best == NULL)
            break;
        g_assert_cmpint(best->left, ==, merges[i].left);
        g_assert_cmpint(best->right, ==, merges[i].right);
        gsize token_len;
        const char *bytes = tokenizer_bytes(fast, id, &token_len);
        g_assert_true(tokenizer_put(plain, id, bytes, token_len, FALSE, NULL));
        apply_plain(all, best, id);
    }
    g_assert_cmpint(tokenizer_unreached(fast), ==, -1);
}

static void merges_are_those_of_the_plain_algorithm(void)
{
    gsize len;
    g_autofree char *corpus = lab_corpus(&len);
    assert_plainly_trained(corpus, len, 330);
    guint64 state = 1;
    for (guint round = 0; round < 200; round++) { /* few letters: ties, runs, double spellings */
        char text[200];
        guint n = 20 + lab_below(&state, sizeof text - 20);
        for (guint i = 0; i < n; i++)
            text[i] = "aabc \xff"[lab_below(&state, 6)];
        assert_plainly_trained(text, n, 300);
    }
}

static void a_size_out_of_range_is_refused(void)
{
    g_autoptr(TokenTrainer) trainer = token_trainer_new();
    static const guint sizes[] = {0, TOKEN_TRAIN_VOCAB_MIN - 1, TOKEN_TRAIN_VOCAB_MAX + 1,
                                  G_MAXUINT};
    for (gsize i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(token_trainer_finish(trainer, sizes[i], &error));
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
    }
}

/* A megabyte without a break is no word that every merge walks through: this ends in a moment. */
static void a_hostile_text_does_not_stall_training(void)
{
    g_autoptr(GString) text = g_string_new(NULL);
    guint64 state = 2;
    for (guint i = 0; i < 1u << 20; i++)
        g_string_append_c(text, (char)('a' + lab_below(&state, 26)));
    g_autoptr(TokenTrainer) trainer = token_trainer_new();
    g_assert_true(token_trainer_add(trainer, text->str, text->len, NULL));
    g_autoptr(Tokenizer) tokenizer = token_trainer_finish(trainer, 1000, NULL);
    g_assert_cmpint(tokenizer_size(tokenizer), ==, 1000);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define CASE(name) g_test_add_func("/token_train/" #name, name)
    CASE(the_commonest_pair_comes_first);
    CASE(no_token_is_made_of_what_occurs_once);
    CASE(runs_of_one_letter_are_counted);
    CASE(the_order_of_texts_does_not_matter);
    CASE(merges_are_those_of_the_plain_algorithm);
    CASE(a_size_out_of_range_is_refused);
    CASE(a_hostile_text_does_not_stall_training);
    return g_test_run();
}
