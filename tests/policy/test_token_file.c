/*
 * Tokenizers as files: what is read and written, and what is refused.
 */
#include "tests/policy/policy_lab.h"

#include "base/error.h"
#include "base/json.h"
#include "policy/tokenizer_build.h"

#include <glib/gstdio.h>
#include <string.h>

static void write_file(const char *dir, const char *name, const char *text, gssize len)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_assert_true(g_file_set_contents(path, text, len, NULL));
}

static char *read_file(const char *dir, const char *name)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    char *text = NULL;
    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    return text;
}

static void remove_file(const char *dir, const char *name)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_assert_cmpint(g_remove(path), ==, 0);
}

static Tokenizer *load(const char *dir)
{
    g_autoptr(GError) error = NULL;
    Tokenizer *tokenizer = tokenizer_load(dir, &error);
    g_assert_no_error(error);
    return tokenizer;
}

static void assert_same(const Tokenizer *a, const Tokenizer *b)
{
    g_assert_cmpint(tokenizer_size(a), ==, tokenizer_size(b));
    for (gint32 id = 0; id < tokenizer_size(a); id++) {
        gsize a_len, b_len;
        const char *x = tokenizer_bytes(a, id, &a_len), *y = tokenizer_bytes(b, id, &b_len);
        lab_same(x, a_len, y, b_len);
        g_assert_cmpint(tokenizer_is_special(a, id), ==, tokenizer_is_special(b, id));
    }
    guint a_n, b_n;
    const TokenMerge *x = tokenizer_merges(a, &a_n), *y = tokenizer_merges(b, &b_n);
    lab_same(x, a_n * sizeof *x, y, b_n * sizeof *y);
}

static void files_give_the_same_tokenizer(void)
{
    g_autofree char *dir = lab_dir();
    g_autoptr(GError) error = NULL;
    g_autoptr(Tokenizer) made = lab_tokenizer(500);
    g_assert_true(tokenizer_save(made, dir, &error));
    g_autoptr(Tokenizer) from_json = load(dir);
    assert_same(from_json, made);

    write_file(dir, "tokenizer.json", "", 0); /* as in MiniMax's repository */
    g_autoptr(Tokenizer) from_merges = load(dir);
    assert_same(from_merges, made);
    lab_dir_remove(dir);
}

/* Hugging Face writes merges as pairs, and lists special tokens in the vocab as well. */
static void other_spellings_are_read(void)
{
    g_autofree char *dir = lab_dir();
    g_autoptr(Tokenizer) made = lab_tokenizer(300);
    g_assert_true(tokenizer_save(made, dir, NULL));
    g_autofree char *text = read_file(dir, "tokenizer.json");
    g_autoptr(json_t) root = json_parse(text, strlen(text), NULL);
    json_t *model = json_object_get(root, "model"), *merges = json_object_get(model, "merges");
    for (gsize i = 0; i < json_array_size(merges); i++) {
        g_auto(GStrv) halves = g_strsplit(json_string_value(json_array_get(merges, i)), " ", 2);
        json_array_set_new(merges, i, json_pack("[s, s]", halves[0], halves[1]));
    }
    json_object_set_new(json_object_get(model, "vocab"), TOKEN_EOS,
                        json_integer(tokenizer_special(made, TOKEN_EOS)));
    json_object_set_new(model, "ignore_merges", json_true());
    json_t *split =
        json_array_get(json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers"), 0);
    json_object_set_new(split, "behavior", json_string("Removed"));
    json_object_set_new(split, "invert", json_true());
    json_object_set_new(root, "post_processor", json_pack("{s:s}", "type", "ByteLevel"));
    g_autofree char *other = json_print(root);
    write_file(dir, "tokenizer.json", other, -1);
    g_autoptr(Tokenizer) read = load(dir);
    assert_same(read, made);
    lab_dir_remove(dir);
}

static void special_tokens_are_listed_beside_merges(void)
{
    g_autofree char *dir = lab_dir();
    write_file(dir, "merges.txt", "#version: 0.2\na b\nab c\n\xc4\xa0 x", -1);
    g_autoptr(Tokenizer) plain = load(dir);
    g_assert_cmpint(tokenizer_find(plain, "abc", 3), ==, 257);
    g_assert_cmpint(tokenizer_find(plain, " x", 2), ==, 258);
    g_assert_cmpint(tokenizer_special(plain, TOKEN_BOS), ==, 259);
    g_assert_cmpint(tokenizer_special(plain, TOKEN_EOS), ==, 260);
    g_assert_cmpint(tokenizer_special(plain, TOKEN_BOD), ==, 262);

    write_file(dir, "tokenizer_config.json",
               "{\"added_tokens_decoder\":{\"400\":{\"content\":\"<x>\",\"special\":true}}}", -1);
    g_autoptr(Tokenizer) listed = load(dir);
    g_assert_cmpint(tokenizer_special(listed, "<x>"), ==, 400);
    g_assert_cmpint(tokenizer_special(listed, TOKEN_BOS), ==, -1);
    g_assert_cmpint(tokenizer_size(listed), ==, 401);
    gsize len;
    g_assert_null(tokenizer_bytes(listed, 300, &len)); /* a hole */
    lab_dir_remove(dir);
}

static void assert_refused(const char *dir, const char *why)
{
    g_autoptr(GError) error = NULL;
    g_assert_null(tokenizer_load(dir, &error));
    g_assert_nonnull(error);
    if (!g_str_has_suffix(error->message, why))
        g_error("got \"%s\", wanted \"%s\"", error->message, why);
    g_assert_true(g_str_has_prefix(error->message, "tokenizer "));
}

/* One change of a good tokenizer.json, and what is said about it. NULL takes the field away. */
static const struct {
    const char *path; /* keys and places from the root */
    const char *value, *why;
} changes[] = {
    {"truncation", "{\"max_length\":4}", "truncation: not supported"},
    {"padding", "{}", "padding: not supported"},
    {"normalizer", "{\"type\":\"NFC\"}", "normalizer: not supported"},
    {"post_processor", "{\"type\":\"TemplateProcessing\"}", "post_processor: not supported"},
    {"decoder", "{\"type\":\"Metaspace\"}", "decoder: not ByteLevel"},
    {"pre_tokenizer", NULL, "pre_tokenizer: not a Sequence of Split and ByteLevel"},
    {"pre_tokenizer", "{\"type\":\"ByteLevel\"}",
     "pre_tokenizer: not a Sequence of Split and ByteLevel"},
    {"pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\\\\w+\"",
     "pre_tokenizer: its Split is not by the pattern of M1"},
    {"pre_tokenizer/pretokenizers/0/pattern", "{\"String\":\" \"}",
     "pre_tokenizer: its Split is not by the pattern of M1"},
    {"pre_tokenizer/pretokenizers/0/behavior", "\"MergedWithNext\"",
     "pre_tokenizer.behavior: not supported"},
    {"pre_tokenizer/pretokenizers/0/invert", "true", "pre_tokenizer.behavior: not supported"},
    {"pre_tokenizer/pretokenizers/1/use_regex", "true", "pre_tokenizer.use_regex: must be false"},
    {"pre_tokenizer/pretokenizers/1/use_regex", NULL, "pre_tokenizer.use_regex: must be false"},
    {"pre_tokenizer/pretokenizers/1/add_prefix_space", "true",
     "pre_tokenizer.add_prefix_space: not supported"},
    {"model/type", "\"Unigram\"", "model.type: not BPE"},
    {"model/dropout", "0.1", "model.dropout: not supported"},
    {"model/byte_fallback", "true", "model.byte_fallback: not supported"},
    {"model/continuing_subword_prefix", "\"##\"", "model.continuing_subword_prefix: not supported"},
    {"model/end_of_word_suffix", "\"</w>\"", "model.end_of_word_suffix: not supported"},
    {"model/vocab", "[]", "model: vocab and merges are missing"},
    {"model/merges", NULL, "model: vocab and merges are missing"},
    {"model/vocab/e", NULL, "a token that is not in the vocab"},
    {"model/vocab/\xc4\x80", NULL, "byte 0x00: has no token"},
    {"model/vocab/q", "1048576", "model.vocab q: token id 1048576: not between 0 and 1048575"},
    {"model/vocab/q", "99999999999", "not between 0 and 1048575"},
    {"model/vocab/q", "-1", "model.vocab q: token id -1: not between 0 and 1048575"},
    {"model/vocab/q", "\"x\"", "model.vocab q: token id -1: not between 0 and 1048575"},
    {"model/vocab/q", "97", "token id 97: two tokens have it"},
    {"model/vocab/q q", "5000", "model.vocab q q: a character that stands for no byte"},
    {"model/vocab/", "5000", "model.vocab : token id 5000: 0 bytes, not between 1 and 4096"},
    {"model/merges/0", "\"e\"", "model.merges 0: not a pair of tokens"},
    {"model/merges/0", "[\"e\"]", "model.merges 0: not a pair of tokens"},
    {"model/merges/0", "7", "model.merges 0: not a pair of tokens"},
    {"model/merges/0", "\"q q\"", "model.merges 0: a token that is not in the vocab"},
    {"model/merges/1", "\"= =\"", "a token that is not in the vocab"},
    {"added_tokens/0/content", "3", "added_tokens 0: field content: must be a string"},
    {"added_tokens/0/content", "\"e\"", "token id 101: the same bytes as token 296"},
    {"added_tokens/0/id", "-5", "added_tokens 0: field id: -5 is not between 0 and 1048575"},
    {"added_tokens/0/id", NULL, "added_tokens 0: token id -1: not between 0 and 1048575"},
    {"added_tokens/0/lstrip", "true", "added_tokens 0: lstrip: not supported"},
    {"added_tokens/0/single_word", "true", "added_tokens 0: single_word: not supported"},
};

static void what_tokenises_otherwise_is_refused_by_name(void)
{
    g_autofree char *dir = lab_dir();
    g_autoptr(Tokenizer) made = lab_tokenizer(300);
    g_assert_true(tokenizer_save(made, dir, NULL));
    g_autofree char *good = read_file(dir, "tokenizer.json");
    for (gsize i = 0; i < G_N_ELEMENTS(changes); i++) {
        g_autoptr(json_t) root = json_parse(good, strlen(good), NULL);
        g_auto(GStrv) keys = g_strsplit(changes[i].path, "/", -1);
        guint n = g_strv_length(keys);
        json_t *at = root;
        for (guint k = 0; k + 1 < n; k++)
            at = json_is_array(at) ? json_array_get(at, (gsize)g_ascii_strtoull(keys[k], NULL, 10))
                                   : json_object_get(at, keys[k]);
        g_assert_nonnull(at);
        json_t *value = changes[i].value != NULL
                            ? json_parse(changes[i].value, strlen(changes[i].value), NULL)
                            : NULL;
        if (json_is_array(at))
            json_array_set_new(at, (gsize)g_ascii_strtoull(keys[n - 1], NULL, 10), value);
        else if (value != NULL)
            json_object_set_new(at, keys[n - 1], value);
        else
            json_object_del(at, keys[n - 1]);
        g_autofree char *bad = json_print(root);
        write_file(dir, "tokenizer.json", bad, -1);
        assert_refused(dir, changes[i].why);
    }
    lab_dir_remove(dir);
}

static void bad_merges_are_refused_with_their_line(void)
{
    static const struct {
        const char *text, *why;
    } rows[] = {
        {"a b\na b\n", "merges.txt: line 2: token id 257: the same bytes as token 256"},
        {"ab c\n", "merges.txt: line 1: a token that no line before it makes"},
        {"a b c\n", "merges.txt: line 1: not a pair of tokens"},
        {"ab\n", "merges.txt: line 1: not a pair of tokens"},
        {"a \n", "merges.txt: line 1: not a pair of tokens"},
        {" a\n", "merges.txt: line 1: not a pair of tokens"},
        {"a b\n\nc d\n", "merges.txt: line 2: not a pair of tokens"},
        {"a b\r\n", "merges.txt: line 1: not a pair of tokens"},
        {"a \xff\n", "merges.txt: line 1: not a pair of tokens"},
        {"a b\n#version: 0.2\n", "merges.txt: line 2: a token that no line before it makes"},
    };
    g_autofree char *dir = lab_dir();
    assert_refused(dir, "no tokenizer.json and no merges.txt");
    for (gsize i = 0; i < G_N_ELEMENTS(rows); i++) {
        write_file(dir, "merges.txt", rows[i].text, -1);
        assert_refused(dir, rows[i].why);
    }
    write_file(dir, "merges.txt", "a\0b c\n", 6);
    assert_refused(dir, "merges.txt: line 1: not a pair of tokens");

    g_autoptr(GString) doubling = g_string_new(NULL); /* each line twice as long as the last */
    for (guint n = 1; n <= 4096; n *= 2) {
        g_autofree char *half = g_strnfill(n, 'a');
        g_string_append_printf(doubling, "%s %s\n", half, half);
    }
    write_file(dir, "merges.txt", doubling->str, -1);
    assert_refused(dir, "merges.txt: line 13: token id 268: 8192 bytes, not between 1 and 4096");

    write_file(dir, "merges.txt", "a b\n", -1);
    write_file(dir, "tokenizer_config.json",
               "{\"added_tokens_decoder\":{\"256\":{\"content\":\"<x>\"}}}", -1);
    assert_refused(dir, "added_tokens_decoder 256: token id 256: two tokens have it");
    write_file(dir, "tokenizer_config.json",
               "{\"added_tokens_decoder\":{\"x\":{\"content\":\"<x>\"}}}", -1);
    g_autoptr(GError) error = NULL;
    g_assert_null(tokenizer_load(dir, &error));
    lab_dir_remove(dir);
}

/* A switch of Hugging Face's that matters only where merges do not lead to every token. */
static void ignore_merges_is_refused_where_it_matters(void)
{
    g_autofree char *dir = lab_dir();
    g_autoptr(Tokenizer) made = tokenizer_new();
    for (gint32 b = 0; b < 256; b++) {
        char byte = (char)b;
        g_assert_true(tokenizer_put(made, b, &byte, 1, FALSE, NULL));
    }
    g_assert_true(tokenizer_put(made, 256, "xyz", 3, FALSE, NULL));
    g_assert_true(tokenizer_finish(made, NULL));
    g_assert_cmpint(tokenizer_unreached(made), ==, 256);
    g_assert_true(tokenizer_save(made, dir, NULL));
    g_autofree char *merges = g_build_filename(dir, "merges.txt", NULL);
    g_assert_false(g_file_test(merges, G_FILE_TEST_EXISTS)); /* it would not give the same ids */

    g_autoptr(Tokenizer) read = load(dir);
    assert_same(read, made);
    g_autofree char *text = read_file(dir, "tokenizer.json");
    char *flag = strstr(text, "\"ignore_merges\": false");
    g_assert_nonnull(flag);
    memcpy(flag, "\"ignore_merges\": true ", strlen("\"ignore_merges\": false"));
    write_file(dir, "tokenizer.json", text, -1);
    assert_refused(dir, "model.ignore_merges: matters for token 256, not supported");
    lab_dir_remove(dir);
}

static void m1_is_read_and_written_the_same(void)
{
    const char *data = lab_m1_data();
    if (data == NULL)
        return;
    g_autofree char *dir = lab_dir();
    g_autoptr(GError) error = NULL;
    g_autoptr(Tokenizer) published = load(data);
    g_assert_true(tokenizer_save(published, dir, &error));
    g_autoptr(Tokenizer) from_json = load(dir);
    assert_same(from_json, published);
    remove_file(dir, "tokenizer.json");
    g_autoptr(Tokenizer) from_merges = load(dir);
    assert_same(from_merges, published);
    lab_dir_remove(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define CASE(name) g_test_add_func("/token_file/" #name, name)
    CASE(files_give_the_same_tokenizer);
    CASE(other_spellings_are_read);
    CASE(special_tokens_are_listed_beside_merges);
    CASE(what_tokenises_otherwise_is_refused_by_name);
    CASE(bad_merges_are_refused_with_their_line);
    CASE(ignore_merges_is_refused_where_it_matters);
    CASE(m1_is_read_and_written_the_same);
    return g_test_run();
}
