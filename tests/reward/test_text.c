/*
 * Python's text rules: decoding, newlines, white space, splitting, patterns.
 */
#include "reward/regex.h"
#include "reward/status_map.h"

#include <string.h>

#define F TEXT_REPLACEMENT

static void ill_formed_subparts_become_one_replacement_each(void)
{
    /* What CPython 3.11 gives for bytes.decode("utf-8", "replace"). */
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"plain", "plain"},
        {"\xff", F},
        {"a\xc3", "a" F},
        {"\xc3(", F "("},
        {"\xe2\x82", F},
        {"\xe2\x82(", F "("},
        {"\xed\xa0\x80", F F F},
        {"\xf0\x9f\x98", F},
        {"\xf0\x9f\x98x", F "x"},
        {"\xc0\xaf", F F},
        {"\xe0\x80\x80", F F F},
        {"\xf4\x90\x80\x80", F F F F},
        {"\xf5\x80", F F},
        {"\x80\xbf", F F},
        {"\xc3\xa9\xf0\x9f\x98\x80", "\xc3\xa9\xf0\x9f\x98\x80"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        gsize len;
        g_autofree char *out = text_decode(cases[i].in, strlen(cases[i].in), &len);
        g_assert_cmpstr(out, ==, cases[i].out);
        g_assert_cmpuint(len, ==, strlen(out));
    }
}

static void newlines_are_universal_and_nul_is_kept(void)
{
    static const char in[] = "a\r\nb\rc\n\r\r\nd\0e\r";
    static const char out[] = "a\nb\nc\n\n\nd\0e\n";
    gsize len;
    g_autofree char *text = text_read(in, sizeof in - 1, &len);
    g_assert_cmpmem(text, (int)len, out, (int)sizeof out - 1);
}

static void white_space_is_pythons(void)
{
    static const gunichar spaces[] = {0x9,    0xA,    0xB,    0xC,    0xD,    0x1C,   0x1D,
                                      0x1E,   0x1F,   0x20,   0x85,   0xA0,   0x1680, 0x2000,
                                      0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
    static const gunichar others[] = {0x0, 0x8, 0x1B, 0x180E, 0x200B, 0x2060, 0xFEFF, 0x1F600};
    static Regex space_re = {.pattern = "^\\s$"}, not_re = {.pattern = "^[\\S]$"};
    gboolean gave_up = FALSE;
    for (gsize i = 0; i < G_N_ELEMENTS(spaces) + G_N_ELEMENTS(others); i++) {
        gboolean is_space = i < G_N_ELEMENTS(spaces);
        gunichar c = is_space ? spaces[i] : others[i - G_N_ELEMENTS(spaces)];
        char utf8[6];
        Span text = {utf8, (gsize)g_unichar_to_utf8(c, utf8)};
        g_assert_cmpuint(span_strip(text).len, ==, is_space ? 0 : text.len);
        if (c == '\n')
            continue; /* `$` also matches before it */
        g_assert_cmpint(regex_match(&space_re, text, &gave_up, NULL), ==, is_space);
        g_assert_cmpint(regex_match(&not_re, text, &gave_up, NULL), ==, !is_space);
    }
    g_assert_false(gave_up);
}

static void words_and_pieces_split_as_in_python(void)
{
    Span words[4];
    g_assert_cmpuint(span_words(SPAN("  a\xc2\xa0"
                                     "b\x1f c "),
                                words, 4),
                     ==, 3);
    g_assert_true(span_eq(words[1], SPAN("b")));
    g_assert_cmpuint(span_words(SPAN(" \t"), words, 4), ==, 0);

    Span rest = SPAN("a::b::"), piece;
    guint n = 0;
    for (; span_cut_str(&rest, SPAN("::"), &piece); n++)
        if (n == 2)
            g_assert_cmpuint(piece.len, ==, 0);
    g_assert_cmpuint(n, ==, 3);
    g_assert_true(span_eq(span_after_last(SPAN("a/b/c"), SPAN("/")), SPAN("c")));
    g_assert_true(span_eq(span_before_last(SPAN("a/b/c"), SPAN("/")), SPAN("a/b")));
    g_assert_cmpint(span_rfind(SPAN("ababa"), SPAN("aba")), ==, 2);
    g_assert_cmpint(span_rfind(SPAN("ab"), SPAN("abc")), ==, -1);
    g_assert_cmpuint(span_indent(SPAN("\xe3\x80\x80 x")), ==, 2);
}

static void anchors_and_dots_are_pythons(void)
{
    static Regex end_re = {.pattern = "a$"}, dot_re = {.pattern = "^a.b$"},
                 lines_re = {.pattern = "^x?(.)?$", .flags = REGEX_MULTILINE},
                 caret_re = {.pattern = "^(?:y|$)", .flags = REGEX_MULTILINE};
    gboolean gave_up = FALSE;
    Match m;
    g_assert_true(regex_match(&end_re, SPAN("a\n"), &gave_up, NULL));
    g_assert_false(regex_match(&end_re, SPAN("a\n\n"), &gave_up, NULL));
    g_assert_true(regex_match(&dot_re, SPAN("a\rb"), &gave_up, NULL));
    g_assert_true(regex_match(&dot_re,
                              SPAN("a\xe2\x80\xa8"
                                   "b"),
                              &gave_up, NULL));
    g_assert_false(regex_match(&dot_re, SPAN("a\nb"), &gave_up, NULL));
    g_assert_true(regex_search(&lines_re, SPAN("no\nx"), 0, &gave_up, &m));
    g_assert_null(m.group[1].ptr);
    g_assert_true(regex_search(&caret_re, SPAN("a\n"), 0, &gave_up, &m));
    g_assert_cmpuint(m.group[0].len, ==, 0); /* the line after the last newline */
}

static void a_match_that_takes_too_long_is_told(void)
{
    static Regex slow_re = {.pattern = "^(?:a+)+(?:a*)+$"};
    g_autoptr(GString) text = g_string_new(NULL);
    for (int i = 0; i < 60; i++)
        g_string_append_c(text, 'a');
    g_string_append_c(text, '!');
    gboolean gave_up = FALSE;
    g_assert_false(regex_match(&slow_re, span_gstring(text), &gave_up, NULL));
    g_assert_true(gave_up);
}

static void a_map_keeps_first_places_and_last_statuses(void)
{
    g_autoptr(StatusMap) map = status_map_new();
    Span nul = {"t\0u", 3};
    status_map_set(map, SPAN("t"), STATUS_FAILED);
    status_map_set(map, nul, STATUS_PASSED);
    status_map_set(map, SPAN("t"), STATUS_PASSED);
    status_map_set(map, nul, STATUS_XFAIL);
    g_assert_cmpuint(status_map_len(map), ==, 2);
    g_assert_true(span_eq(status_map_at(map, 0)->name, SPAN("t")));
    g_assert_true(span_eq(status_map_at(map, 0)->status, STATUS_PASSED));
    g_assert_true(status_map_at(map, 0)->torn);
    g_assert_false(status_map_find(map, nul)->torn);
    g_assert_null(status_map_find(map, SPAN("")));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/text/ill formed subparts become one replacement each",
                    ill_formed_subparts_become_one_replacement_each);
    g_test_add_func("/text/newlines are universal and nul is kept",
                    newlines_are_universal_and_nul_is_kept);
    g_test_add_func("/text/white space is pythons", white_space_is_pythons);
    g_test_add_func("/text/words and pieces split as in python",
                    words_and_pieces_split_as_in_python);
    g_test_add_func("/regex/anchors and dots are pythons", anchors_and_dots_are_pythons);
    g_test_add_func("/regex/a match that takes too long is told",
                    a_match_that_takes_too_long_is_told);
    g_test_add_func("/map/a map keeps first places and last statuses",
                    a_map_keeps_first_places_and_last_statuses);
    return g_test_run();
}
