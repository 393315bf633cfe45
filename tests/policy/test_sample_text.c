/*
 * Stop strings in the text of a sample, against a search of the whole text.
 */
#include "tests/policy/policy_lab.h"

#include "policy/sample_text.h"

#include <string.h>

/* A vocabulary of bytes and a few longer tokens. */
static Tokenizer *shared(void)
{
    static Tokenizer *tokenizer;
    if (tokenizer == NULL)
        tokenizer = lab_tokenizer(300);
    return tokenizer;
}

/* Where the text is to be cut: before the stop string that ends first. -1: nowhere. */
static gssize naive_cut(const char *text, const char *const *stops, gsize n)
{
    gssize end = -1, cut = -1;
    for (gsize i = 0; i < n; i++) {
        const char *at = strstr(text, stops[i]);
        gssize start = at != NULL ? at - text : -1, stop = start + (gssize)strlen(stops[i]);
        if (at == NULL || (end >= 0 && (stop > end || (stop == end && start > cut))))
            continue;
        end = stop;
        cut = start;
    }
    return cut;
}

static gboolean begins_stop(const char *tail, const char *const *stops, gsize n)
{
    for (gsize i = 0; i < n; i++)
        if (g_str_has_prefix(stops[i], tail))
            return TRUE;
    return FALSE;
}

static void any_pieces_are_cut_at_the_same_byte(void)
{
    guint64 state = 7;
    for (guint round = 0; round < 20000; round++) {
        /* two letters, so that everything repeats and overlaps */
        char text[40] = "", stops[4][8];
        const char *list[4] = {stops[0], stops[1], stops[2], stops[3]};
        gsize len = lab_below(&state, 39), n = lab_below(&state, 5);
        for (gsize i = 0; i < len; i++)
            text[i] = (char)('a' + lab_below(&state, 2));
        for (gsize i = 0; i < n; i++) {
            gsize stop_len = 1 + lab_below(&state, 7);
            for (gsize j = 0; j < stop_len; j++)
                stops[i][j] = (char)('a' + lab_below(&state, 2));
            stops[i][stop_len] = '\0';
        }
        g_autoptr(StopStrings) set = stop_strings_new(list, n, NULL);
        g_autoptr(GString) out = g_string_new(NULL);
        SampleText sample;
        gboolean on = TRUE;
        sample_text_init(&sample, shared(), set);
        for (gsize i = 0; i < len && on; i++) {
            on = sample_text_add(&sample, (guchar)text[i], out); /* bytes are tokens */
            if (on) {
                /* all but the longest end that begins a stop string is out */
                gsize from = 0;
                char saved = text[i + 1];
                text[i + 1] = '\0';
                while (!begins_stop(text + from, list, n) && from <= i)
                    from++;
                g_assert_cmpuint(out->len, ==, n > 0 ? from : i + 1);
                text[i + 1] = saved;
            }
        }
        on = sample_text_end(&sample, out) && on;
        gssize cut = naive_cut(text, list, n);
        g_assert_true(on == (cut < 0));
        g_assert_true((sample.stop != NULL) == (cut >= 0));
        lab_same(out->str, out->len, text, cut < 0 ? len : (gsize)cut);
        sample_text_clear(&sample);
    }
}

static void a_character_cut_by_tokens_is_held_until_it_is_whole(void)
{
    static const char *const stops[] = {"世", "\xef\xbf\xbd!"};
    static const guchar text[] = "a\xe4\xb8\x96 b";
    g_autoptr(StopStrings) set = stop_strings_new(stops, 2, NULL);
    g_autoptr(GString) out = g_string_new(NULL);
    SampleText sample;
    sample_text_init(&sample, shared(), set);
    for (guint i = 0; i < 3; i++)
        g_assert_true(sample_text_add(&sample, text[i], out));
    g_assert_cmpstr(out->str, ==, "a");
    g_assert_false(sample_text_add(&sample, text[3], out));
    g_assert_cmpstr(out->str, ==, "a");
    g_assert_cmpstr(sample.stop, ==, "世");
    g_assert_false(sample_text_end(&sample, out));
    sample_text_clear(&sample);

    sample_text_init(&sample, shared(), set);
    g_assert_true(sample_text_add(&sample, 0xe4, out)); /* and no more */
    g_assert_cmpstr(out->str, ==, "a");
    g_assert_true(sample_text_end(&sample, out));
    g_assert_cmpstr(out->str, ==, "a\xef\xbf\xbd");
    sample_text_clear(&sample);
}

static void bad_stop_strings_are_refused(void)
{
    g_autofree char *longer = g_strnfill(STOP_STRING_BYTES_MAX + 1, 'x');
    const char *bad[] = {"", longer, "\xff"}, *many[STOP_STRINGS_MAX + 1];
    for (gsize i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(stop_strings_new(&bad[i], 1, &error));
        g_assert_true(g_str_has_prefix(error->message, "stop: "));
    }
    for (gsize i = 0; i < G_N_ELEMENTS(many); i++)
        many[i] = "x";
    g_autoptr(GError) error = NULL;
    g_assert_null(stop_strings_new(many, G_N_ELEMENTS(many), &error));
    g_assert_true(g_str_has_prefix(error->message, "stop: "));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/sample_text/any pieces are cut at the same byte",
                    any_pieces_are_cut_at_the_same_byte);
    g_test_add_func("/sample_text/a character cut by tokens is held until it is whole",
                    a_character_cut_by_tokens_is_held_until_it_is_whole);
    g_test_add_func("/sample_text/bad stop strings are refused", bad_stop_strings_are_refused);
    return g_test_run();
}
