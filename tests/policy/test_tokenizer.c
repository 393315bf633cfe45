/*
 * The tokenizer: the cut, the merges, special tokens, decoding by bits. Files: test_token_file.c.
 */
#include "tests/policy/policy_lab.h"

#include "base/error.h"
#include "policy/token_split.h"
#include "policy/tokenizer_build.h"
#include "policy/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string.h>

#define VOCAB 560

static Tokenizer *shared(void)
{
    static Tokenizer *tokenizer;
    if (tokenizer == NULL)
        tokenizer = lab_tokenizer(VOCAB);
    return tokenizer;
}

static GArray *encode(const Tokenizer *tokenizer, const char *text, gsize len, TokensFlags flags)
{
    g_autoptr(GError) error = NULL;
    GArray *ids = tokens_new();
    g_assert_true(tokenizer_encode(tokenizer, text, len, flags, ids, &error));
    return ids;
}

static void assert_comes_back(const Tokenizer *tokenizer, const char *text, gsize len)
{
    g_autoptr(GArray) ids = encode(tokenizer, text, len, TOKENS_PLAIN);
    g_autoptr(GString) back = g_string_new(NULL);
    g_autoptr(GError) error = NULL;
    g_assert_true(tokenizer_decode(tokenizer, (const gint32 *)(gconstpointer)ids->data, ids->len,
                                   TOKENS_PLAIN, back, &error));
    lab_same(back->str, back->len, text, len);
}

/* A text of scraps that meet every branch of the cut, whole and broken characters mixed. */
static GString *random_text(guint64 *state, guint n_scraps)
{
    static const char *const scraps[] = {
        "a",         "the",    "Hello",       "WORLD",    "iOS",      " ",
        "  ",        "\t",     "\n",          "\r\n",     "'s",       "'S",
        "'ll",       "'re",    "'x",          "1",        "1234",     "!",
        "!!!",       "/",      "//",          "//\n",     "世界",     "é",
        "e\xcc\x81", "ß",      "Ǆ",           "ǅ",        "ʰ",        "ª",
        "½",         "٣",      "Ⅷ",           "\u00a0",   "\u3000",   "\u180e",
        "\u200d",    "\u2028", "👩‍👧", "𝒳",        "'ſ",       "\u017f",
        "\x01",      "\x7f",   "\xff",        "\xe4\xb8", "\xc0\xaf", "\xed\xa0\x80",
        "_",         "-",      "M",           "I'",       " O'",      "ビ",
        "ﷺ",         "\u0300", "\u20dd",      "\ufeff",   "ا"};
    GString *text = g_string_new(NULL);
    for (guint i = 0; i < n_scraps; i++)
        g_string_append(text, scraps[lab_below(state, G_N_ELEMENTS(scraps))]);
    if (lab_below(state, 4) == 0)
        g_string_append_c(text, '\0');
    return text;
}

static void utf8_is_told_from_what_is_not(void)
{
    static const struct {
        const char *text;
        gsize len;
        guint n;
        Utf8Kind kind;
    } rows[] = {
        {"a", 1, 1, UTF8_WHOLE},
        {"\0", 1, 1, UTF8_WHOLE},
        {"\xc3\xa9", 2, 2, UTF8_WHOLE},
        {"\xc3", 1, 1, UTF8_OPEN},
        {"\xc3x", 2, 1, UTF8_BROKEN},
        {"\x80", 1, 1, UTF8_BROKEN},
        {"\xc0\xaf", 2, 1, UTF8_BROKEN},
        {"\xe0\x80\x80", 3, 1, UTF8_BROKEN},
        {"\xed\xa0\x80", 3, 1, UTF8_BROKEN},
        {"\xe4\xb8\x96", 3, 3, UTF8_WHOLE},
        {"\xe4\xb8", 2, 2, UTF8_OPEN},
        {"\xe4\xb8x", 3, 2, UTF8_BROKEN},
        {"\xf0\x9f\x99\x82", 4, 4, UTF8_WHOLE},
        {"\xf0\x9f\x99", 3, 3, UTF8_OPEN},
        {"\xf4\x90\x80\x80", 4, 1, UTF8_BROKEN},
        {"\xf5", 1, 1, UTF8_BROKEN},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        Utf8Kind kind;
        g_assert_cmpuint(utf8_step(rows[i].text, rows[i].len, &kind), ==, rows[i].n);
        g_assert_cmpint(kind, ==, rows[i].kind);
    }
    for (gunichar c = 0; c < 0x120000; c++) {
        char text[6];
        guint n = (guint)g_unichar_to_utf8(c, text);
        Utf8Kind kind;
        gboolean is_character = c < 0x110000 && (c < 0xd800 || c > 0xdfff);
        guint step = utf8_step(text, n, &kind);
        g_assert_true((kind == UTF8_WHOLE && step == n) == is_character);
    }
}

static void any_bytes_come_back(void)
{
    guint64 state = 1;
    for (guint round = 0; round < 300; round++) {
        char bytes[300];
        guint len = lab_below(&state, sizeof bytes);
        for (guint i = 0; i < len; i++)
            bytes[i] = (char)lab_random(&state);
        assert_comes_back(shared(), bytes, len);
    }
    assert_comes_back(shared(), "", 0);
    assert_comes_back(shared(), "a\0b", 3);
}

static void all_of_unicode_comes_back(void)
{
    g_autoptr(GString) text = g_string_new(NULL);
    for (gunichar c = 0; c < 0x110000; c++)
        if (c < 0xd800 || c > 0xdfff)
            g_string_append_unichar(text, c);
    assert_comes_back(shared(), text->str, text->len);
}

static void take_piece(const char *piece, gsize len, gpointer data)
{
    GArray *ends = data;
    (void)piece;
    gsize end = len + (ends->len > 0 ? g_array_index(ends, gsize, ends->len - 1) : 0);
    g_array_append_val(ends, end);
}

static void assert_same_cut(const char *text, gsize len)
{
    g_autoptr(GArray) fast = g_array_new(FALSE, FALSE, sizeof(gsize));
    g_autoptr(GArray) slow = g_array_new(FALSE, FALSE, sizeof(gsize));
    g_autoptr(GError) error = NULL;
    g_assert_true(token_split(text, len, take_piece, fast, &error));
    lab_slow_split(text, len, slow);
    lab_same(fast->data, fast->len * sizeof(gsize), slow->data, slow->len * sizeof(gsize));
}

/* Not yet a character in the Unicode version of PCRE2 or GLib: there the two may differ. */
static gboolean is_too_new(pcre2_code *unassigned, pcre2_match_data *data, gunichar c)
{
    char text[6];
    gsize n = (gsize)g_unichar_to_utf8(c, text);
    return g_unichar_type(c) == G_UNICODE_UNASSIGNED ||
           pcre2_match(unassigned, (PCRE2_SPTR)text, n, 0, 0, data, NULL) > 0;
}

static void the_cut_is_that_of_a_scanner_by_hand(void)
{
    guint64 state = 2;
    int why;
    PCRE2_SIZE where;
    pcre2_code *unassigned =
        pcre2_compile((PCRE2_SPTR) "\\p{Cn}", PCRE2_ZERO_TERMINATED, PCRE2_UTF, &why, &where, NULL);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    for (guint round = 0; round < 4000; round++) {
        g_autoptr(GString) text = random_text(&state, 1 + lab_below(&state, 12));
        assert_same_cut(text->str, text->len);
    }
    /* every character alone, doubled after a letter, and before a space */
    g_autoptr(GString) text = g_string_new(NULL);
    for (gunichar c = 0; c < 0x110000; c++) {
        if ((0xd800 <= c && c <= 0xdfff) || is_too_new(unassigned, data, c))
            continue;
        for (const char *p = "a..  b.\n. "; *p != '\0'; p++)
            g_string_append_unichar(text, *p == '.' ? c : (gunichar)*p);
        if (text->len < 4096 && c + 1 < 0x110000)
            continue;
        assert_same_cut(text->str, text->len);
        g_string_truncate(text, 0);
    }
    pcre2_match_data_free(data);
    pcre2_code_free(unassigned);
}

static void merges_are_those_of_the_slow_way(void)
{
    guint64 state = 3;
    for (guint round = 0; round < 300; round++) {
        g_autoptr(GString) text = random_text(&state, 1 + lab_below(&state, 20));
        g_autoptr(GArray) fast = encode(shared(), text->str, text->len, TOKENS_PLAIN);
        g_autoptr(GArray) slow = tokens_new();
        lab_slow_encode(shared(), text->str, text->len, slow);
        g_autofree char *got = lab_ids(fast), *wanted = lab_ids(slow);
        g_assert_cmpstr(got, ==, wanted);
    }
    gsize len;
    g_autofree char *corpus = lab_corpus(&len);
    g_autoptr(GArray) fast = encode(shared(), corpus, len, TOKENS_PLAIN), slow = tokens_new();
    lab_slow_encode(shared(), corpus, len, slow);
    lab_same(fast->data, fast->len * 4, slow->data, slow->len * 4);
    g_assert_cmpuint(fast->len, <, len * 2 / 3);
}

static void every_token_is_reached_by_its_bytes(void)
{
    g_assert_cmpint(tokenizer_unreached(shared()), ==, -1);
}

/* One piece, and texts that make a careless pattern or merger quadratic: it ends, that is all. */
static void a_megabyte_without_a_break_is_no_trouble(void)
{
    static const char *const units[] = {"a",      "A",   "世",      " ",  "\n",  "!",
                                        "\u0300", "/",   "e\u0301", "'",  "the", "\xff",
                                        "\xe4",   " \n", "A\xff",   "!A", "\t1"};
    const gsize wanted = 1u << 20;
    for (gsize i = 0; i < G_N_ELEMENTS(units); i++) {
        g_autoptr(GString) text = g_string_sized_new(wanted + 8);
        while (text->len < wanted)
            g_string_append(text, units[i]);
        assert_comes_back(shared(), text->str, text->len);
    }
}

static void plain_text_never_becomes_a_special_token(void)
{
    static const char text[] = "a" TOKEN_EOS "\n" TOKEN_BOS "system " TOKEN_EOD TOKEN_BOD;
    g_autoptr(GArray) plain = encode(shared(), text, sizeof text - 1, TOKENS_PLAIN);
    for (guint i = 0; i < plain->len; i++)
        g_assert_false(tokenizer_is_special(shared(), g_array_index(plain, gint32, i)));
    assert_comes_back(shared(), text, sizeof text - 1);

    g_autoptr(GArray) trusted = encode(shared(), text, sizeof text - 1, TOKENS_SPECIALS);
    guint n_special = 0;
    for (guint i = 0; i < trusted->len; i++)
        n_special += tokenizer_is_special(shared(), g_array_index(trusted, gint32, i)) ? 1 : 0;
    g_assert_cmpuint(n_special, ==, 4);
    g_assert_cmpint(g_array_index(trusted, gint32, 1), ==, tokenizer_special(shared(), TOKEN_EOS));

    const gint32 *ids = (const gint32 *)(gconstpointer)trusted->data;
    g_autoptr(GString) with = g_string_new(NULL), without = g_string_new(NULL);
    g_assert_true(tokenizer_decode(shared(), ids, trusted->len, TOKENS_SPECIALS, with, NULL));
    g_assert_true(tokenizer_decode(shared(), ids, trusted->len, TOKENS_PLAIN, without, NULL));
    g_assert_cmpstr(with->str, ==, text);
    g_assert_cmpstr(without->str, ==, "a\nsystem ");
}

static void the_longest_special_token_is_taken(void)
{
    g_autoptr(Tokenizer) tokenizer = tokenizer_new();
    for (gint32 b = 0; b < 256; b++) {
        char byte = (char)b;
        g_assert_true(tokenizer_put(tokenizer, b, &byte, 1, FALSE, NULL));
    }
    static const char *const names[] = {"<a>", "<a><b>", "<a", ">"};
    for (gint32 i = 0; i < 3; i++)
        g_assert_true(tokenizer_put(tokenizer, 300 + i, names[i], strlen(names[i]), TRUE, NULL));
    g_assert_true(tokenizer_finish(tokenizer, NULL));
    g_autoptr(GArray) ids = encode(tokenizer, "x<a><b><a>y<a", 13, TOKENS_SPECIALS);
    g_autofree char *got = lab_ids(ids);
    g_assert_cmpstr(got, ==, "120 301 300 121 302");
}

static void text_by_bits_is_the_whole_text(void)
{
    guint64 state = 4;
    for (guint round = 0; round < 500; round++) {
        g_autoptr(GString) bytes = random_text(&state, 1 + lab_below(&state, 10));
        g_autoptr(GArray) ids = encode(shared(), bytes->str, bytes->len, TOKENS_PLAIN);
        g_autoptr(GString) whole = g_string_new(NULL), bits = g_string_new(NULL);
        utf8_append(whole, bytes->str, bytes->len, TRUE);
        Detokenizer detokenizer = {.tokenizer = shared()};
        for (guint i = 0; i < ids->len; i++) {
            g_assert_true(detokenizer_add(&detokenizer, g_array_index(ids, gint32, i), bits));
            g_autoptr(GString) again = g_string_new(NULL);
            g_assert_cmpuint(utf8_append(again, bits->str, bits->len, FALSE), ==, 0);
        }
        detokenizer_end(&detokenizer, bits);
        lab_same(bits->str, bits->len, whole->str, whole->len);
    }
}

static void half_a_character_waits(void)
{
    const gint32 ids[] = {0xf0, 0x9f, 0x99, 0x82, 0xe4, 'x', 0xc3};
    static const char *const after[] = {"", "", "", "🙂", "🙂", "🙂\ufffdx", "🙂\ufffdx"};
    g_autoptr(GString) text = g_string_new(NULL);
    Detokenizer detokenizer = {.tokenizer = shared()};
    for (gsize i = 0; i < G_N_ELEMENTS(ids); i++) {
        g_assert_true(detokenizer_add(&detokenizer, ids[i], text));
        g_assert_cmpstr(text->str, ==, after[i]);
    }
    detokenizer_end(&detokenizer, text);
    g_assert_cmpstr(text->str, ==, "🙂\ufffdx\ufffd");
    g_assert_false(detokenizer_add(&detokenizer, tokenizer_size(shared()), text));
    g_assert_false(detokenizer_add(&detokenizer, -1, text));
}

static void ids_outside_the_vocabulary_are_named(void)
{
    const gint32 bad[] = {-1, G_MININT32, G_MAXINT32, tokenizer_size(shared())};
    for (gsize i = 0; i < G_N_ELEMENTS(bad); i++) {
        const gint32 ids[] = {'a', bad[i]};
        g_autofree char *wanted = g_strdup_printf("token 1: there is no id %d", bad[i]);
        g_autoptr(GString) out = g_string_new("kept");
        g_autoptr(GError) error = NULL;
        g_assert_false(tokenizer_decode(shared(), ids, 2, TOKENS_PLAIN, out, &error));
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
        g_assert_cmpstr(error->message, ==, wanted);
        g_assert_cmpstr(out->str, ==, "kept");
        g_assert_false(tokenizer_is_special(shared(), bad[i]));
        gsize len;
        g_assert_null(tokenizer_bytes(shared(), bad[i], &len));
    }
}

static void a_text_over_the_limit_is_refused(void)
{
    g_autoptr(GArray) ids = tokens_new();
    g_autoptr(GError) error = NULL;
    g_assert_false(
        tokenizer_encode(shared(), "", TOKENIZER_TEXT_BYTES_MAX + 1, TOKENS_PLAIN, ids, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT);
    g_assert_cmpuint(ids->len, ==, 0);
}

/* On a vocabulary of the committed corpus: what it says today, to notice a change. */
static void a_small_vocabulary_has_known_ids(void)
{
    static const struct {
        const char *text, *ids;
    } rows[] = {
        {"", ""},
        {"the tests of the items", "116 262 371 369 270 321"},
        {"Hello's 1234!!!\n世界",
         "72 101 108 108 111 39 115 32 374 52 33 33 33 10 314 150 231 149 140"},
        {"    return amount + amount * rate\n", "263 451 337 331 337 330 423 10"},
        {"La prueba falla; Модель читает. 🙂",
         "76 97 447 97 292 303 108 97 59 269 156 208 353 180 275 354 209 140 466 46 32 316 153 "
         "130"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GArray) ids = encode(shared(), rows[i].text, strlen(rows[i].text), TOKENS_PLAIN);
        g_autofree char *got = lab_ids(ids);
        g_assert_cmpstr(got, ==, rows[i].ids);
    }
}

/* docs: the published merges give these (some also known from tests of the M2 family). */
static void m1_has_its_golden_ids(void)
{
    static const struct {
        const char *text, *ids;
    } rows[] = {
        {"Hello's 1234!!!\n世界", "19739 692 32 10010 52 66114 4083"},
        {"[PAD200063]", "91 115375 866 51821 93"},
        {"system ai_setting=assistant\nYou are a helpful assistant.",
         "28463 28609 100932 61 153156 10 2985 457 258 12473 23413 46"},
        {"user name=user\nHello, world!", "3995 1925 133646 10 19739 44 2035 33"},
        {"ai name=assistant\n", "1361 1925 61 153156 10"},
        {"<think>\n", "60 37959 1100"},
        {"</think>\n", "1579 37959 1100"},
        {"<tool_calls>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Shanghai\"}}\n"
         "</tool_calls>",
         "60 45382 144303 1100 16673 1906 2803 494 848 95 51872 1164 494 51854 2803 18396 44044 "
         "2803 494 165806 34 3037 1579 45382 144303 62"},
        {"def f(x):\n    return x + 1\n\n\n", "2601 284 4704 3345 326 1126 1905 1349 32 49 4368"},
        {"system tool_setting=tools\n", "28463 3994 100932 61 32650 10"},
        {"tool name=tools\ntool name: f\ntool result: R1\n\n",
         "45382 1925 61 32650 10 45382 1925 58 284 10 45382 1456 58 433 49 367"},
        {"<begin_of_document>", "60 1775 13640 90051 62"},
    };
    const char *dir = lab_m1_data();
    if (dir == NULL)
        return;
    g_autoptr(GError) error = NULL;
    g_autoptr(Tokenizer) tokenizer = tokenizer_load(dir, &error);
    g_assert_no_error(error);
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autoptr(GArray) ids = encode(tokenizer, rows[i].text, strlen(rows[i].text), TOKENS_PLAIN);
        g_autofree char *got = lab_ids(ids);
        g_assert_cmpstr(got, ==, rows[i].ids);
    }
    g_assert_cmpint(tokenizer_size(tokenizer), ==, 200032);
    g_assert_cmpint(tokenizer_special(tokenizer, TOKEN_BOS), ==, 200019);
    g_assert_cmpint(tokenizer_special(tokenizer, TOKEN_EOS), ==, 200020);
    g_assert_cmpint(tokenizer_special(tokenizer, TOKEN_EOD), ==, 200021);
    g_assert_cmpint(tokenizer_special(tokenizer, TOKEN_BOD), ==, -1);
    g_assert_cmpint(tokenizer_unreached(tokenizer), ==, -1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define CASE(name) g_test_add_func("/tokenizer/" #name, name)
    CASE(utf8_is_told_from_what_is_not);
    CASE(any_bytes_come_back);
    CASE(all_of_unicode_comes_back);
    CASE(the_cut_is_that_of_a_scanner_by_hand);
    CASE(merges_are_those_of_the_slow_way);
    CASE(every_token_is_reached_by_its_bytes);
    CASE(a_megabyte_without_a_break_is_no_trouble);
    CASE(plain_text_never_becomes_a_special_token);
    CASE(the_longest_special_token_is_taken);
    CASE(text_by_bits_is_the_whole_text);
    CASE(half_a_character_waits);
    CASE(ids_outside_the_vocabulary_are_named);
    CASE(a_text_over_the_limit_is_refused);
    CASE(a_small_vocabulary_has_known_ids);
    CASE(m1_has_its_golden_ids);
    return g_test_run();
}
