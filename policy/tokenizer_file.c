/*
 * Tokenizers as files: tokenizer.json, or merges.txt with tokenizer_config.json.
 *
 * Invariants:
 *   1. A field that would make Hugging Face's tokenizers answer otherwise (a normaliser, another
 *      split, dropout, byte fallback ...) is refused by its name, never ignored.
 *   2. Sizes are checked before anything of that size is made.
 *
 * Not here: what an id means (tokenizer.c).
 */
#include "policy/tokenizer_build.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/json.h"
#include "policy/file.h"
#include "policy/token_alphabet.h"
#include "policy/token_split.h"

#include <string.h>

#define FILE_BYTES_MAX (128u << 20)
#define VERSION_LINE   "#version"
#define MERGE_BYTES    (4u * TOKENIZER_TOKEN_BYTES + 1) /* of a line: two halves, spelled */

/* The file's bytes; NULL without an error: there is none, or it is empty. */
static GBytes *read_optional(const char *dir, const char *name, GError **error)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    if (!g_file_test(path, G_FILE_TEST_EXISTS))
        return NULL;
    g_autoptr(GBytes) bytes = model_file_read(path, FILE_BYTES_MAX, error);
    return bytes == NULL || g_bytes_get_size(bytes) == 0 ? NULL : g_steal_pointer(&bytes);
}

/* --- what must be as it is here */

static gboolean is_off(const json_t *value)
{
    return value == NULL || json_is_null(value) || json_is_false(value) ||
           (json_is_string(value) && json_string_length(value) == 0) ||
           (json_is_number(value) && json_number_value(value) == 0);
}

/* Each named field of `object` is absent, null, false, zero or empty. */
static gboolean all_off(const json_t *object, const char *where, const char *const *names,
                        GError **error)
{
    for (; *names != NULL; names++)
        if (!is_off(json_object_get(object, *names)))
            return error_set(error, ASSAY_ERROR_UNSUPPORTED, "%s%s: not supported", where, *names);
    return TRUE;
}

static gboolean type_is(const json_t *object, const char *type)
{
    return g_strcmp0(json_string_value(json_object_get(object, "type")), type) == 0;
}

static gboolean check_split(const json_t *split, GError **error)
{
    const json_t *pattern = json_object_get(json_object_get(split, "pattern"), "Regex");
    const char *behaviour = json_string_value(json_object_get(split, "behavior"));
    gboolean inverted = json_is_true(json_object_get(split, "invert"));
    if (!type_is(split, "Split") || g_strcmp0(json_string_value(pattern), token_split_pattern) != 0)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "pre_tokenizer: its Split is not by the pattern of M1");
    if (g_strcmp0(behaviour, inverted ? "Removed" : "Isolated") != 0)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "pre_tokenizer.behavior: not supported");
    return TRUE;
}

/* Sequence of Split and ByteLevel. */
static gboolean check_pre_tokenizer(const json_t *pre, GError **error)
{
    static const char *const off[] = {"add_prefix_space", "use_regex", NULL};
    const json_t *list = json_object_get(pre, "pretokenizers");
    const json_t *bytes = json_array_get(list, 1);
    if (!type_is(pre, "Sequence") || json_array_size(list) != 2 || !type_is(bytes, "ByteLevel"))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED,
                         "pre_tokenizer: not a Sequence of Split and ByteLevel");
    if (!json_is_false(json_object_get(bytes, "use_regex")))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "pre_tokenizer.use_regex: must be false");
    return check_split(json_array_get(list, 0), error) &&
           all_off(bytes, "pre_tokenizer.", off, error);
}

static gboolean check_file(const json_t *root, GError **error)
{
    static const char *const root_off[] = {"truncation", "padding", "normalizer", NULL};
    static const char *const model_off[] = {"dropout", "continuing_subword_prefix",
                                            "end_of_word_suffix", "byte_fallback", NULL};
    const json_t *model = json_object_get(root, "model");
    const json_t *post = json_object_get(root, "post_processor");
    const json_t *decoder = json_object_get(root, "decoder");
    if (!type_is(model, "BPE"))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "model.type: not BPE");
    if (!is_off(post) && !type_is(post, "ByteLevel"))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "post_processor: not supported");
    if (!is_off(decoder) && !type_is(decoder, "ByteLevel"))
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "decoder: not ByteLevel");
    return all_off(root, "", root_off, error) && all_off(model, "model.", model_off, error) &&
           check_pre_tokenizer(json_object_get(root, "pre_tokenizer"), error);
}

/* --- tokenizer.json */

static gboolean put_added(Tokenizer *tokenizer, const json_t *entry, gint64 id, GError **error)
{
    static const char *const off[] = {"single_word", "lstrip", "rstrip", NULL};
    const char *content = json_want_str(entry, "content", error);
    return content != NULL && all_off(entry, "", off, error) &&
           tokenizer_put(tokenizer, (gint32)CLAMP(id, -1, G_MAXINT32), content, strlen(content),
                         TRUE, error);
}

static gboolean put_added_tokens(Tokenizer *tokenizer, const json_t *list, GError **error)
{
    gsize i;
    const json_t *entry;
    json_array_foreach(list, i, entry)
    {
        gint64 id;
        if (!json_opt_int(entry, "id", 0, TOKENIZER_VOCAB_MAX - 1, -1, &id, error) ||
            !put_added(tokenizer, entry, id, error)) {
            g_prefix_error(error, "added_tokens %" G_GSIZE_FORMAT ": ", i);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean put_vocab(Tokenizer *tokenizer, json_t *vocab, GError **error)
{
    const char *key;
    gsize len;
    json_t *value;
    g_autoptr(GString) bytes = g_string_new(NULL);
    if (json_object_size(vocab) > TOKENIZER_VOCAB_MAX)
        return error_set(error, ASSAY_ERROR_LIMIT, "model.vocab: more than %u tokens",
                         TOKENIZER_VOCAB_MAX);
    json_object_keylen_foreach(vocab, key, len, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        gint32 added = tokenizer_find(tokenizer, key, len);
        if (added >= 0 && added == id && tokenizer_is_special(tokenizer, added))
            continue; /* some files list special tokens here as well */
        g_string_truncate(bytes, 0);
        if (!token_alphabet_read(key, len, bytes))
            return error_set(error, ASSAY_ERROR_INPUT,
                             "model.vocab %s: a character that stands for no byte", key);
        if (!tokenizer_put(tokenizer, (gint32)CLAMP(id, -1, G_MAXINT32), bytes->str, bytes->len,
                           FALSE, error)) {
            g_prefix_error(error, "model.vocab %s: ", key);
            return FALSE;
        }
    }
    return TRUE;
}

/* The two halves of "left right", in bytes. */
static gboolean read_halves(const char *text, gsize len, GString *left, GString *right)
{
    const char *space = len > MERGE_BYTES ? NULL : memchr(text, ' ', len);
    if (space == NULL)
        return FALSE;
    gsize n = (gsize)(space - text);
    return token_alphabet_read(text, n, left) &&
           token_alphabet_read(space + 1, len - n - 1, right) && left->len > 0 && right->len > 0;
}

/* A merge is "left right" or ["left", "right"]. */
static gboolean read_merge(const json_t *merge, GString *left, GString *right)
{
    const json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
    if (json_is_string(merge))
        return read_halves(json_string_value(merge), json_string_length(merge), left, right);
    return json_array_size(merge) == 2 && json_is_string(a) && json_is_string(b) &&
           token_alphabet_read(json_string_value(a), json_string_length(a), left) &&
           token_alphabet_read(json_string_value(b), json_string_length(b), right);
}

static gboolean put_merges(Tokenizer *tokenizer, const json_t *merges, GError **error)
{
    gsize i;
    const json_t *merge;
    g_autoptr(GString) left = g_string_new(NULL), right = g_string_new(NULL);
    json_array_foreach(merges, i, merge)
    {
        g_string_truncate(left, 0);
        g_string_truncate(right, 0);
        if (!read_merge(merge, left, right))
            return error_set(error, ASSAY_ERROR_INPUT,
                             "model.merges %" G_GSIZE_FORMAT ": not a pair of tokens", i);
        gint32 a = tokenizer_find(tokenizer, left->str, left->len);
        gint32 b = tokenizer_find(tokenizer, right->str, right->len);
        g_string_append_len(left, right->str, (gssize)right->len);
        gint32 c = tokenizer_find(tokenizer, left->str, left->len);
        if (a < 0 || b < 0 || c < 0)
            return error_set(error, ASSAY_ERROR_INPUT,
                             "model.merges %" G_GSIZE_FORMAT ": a token that is not in the vocab",
                             i);
        if (!tokenizer_merge(tokenizer, a, b, c, error))
            return FALSE;
    }
    return TRUE;
}

/* Hugging Face's switch that takes a piece whole when it is a token. Where every token comes out
 * of the merges it changes nothing, and only then it is accepted. */
static gboolean check_ignore_merges(const Tokenizer *tokenizer, const json_t *model, GError **error)
{
    if (is_off(json_object_get(model, "ignore_merges")))
        return TRUE;
    gint32 id = tokenizer_unreached(tokenizer);
    return id < 0 || error_set(error, ASSAY_ERROR_UNSUPPORTED,
                               "model.ignore_merges: matters for token %d, not supported", id);
}

static Tokenizer *from_root(const json_t *root, GError **error)
{
    g_autoptr(Tokenizer) tokenizer = tokenizer_new();
    const json_t *model = json_object_get(root, "model");
    json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges");
    const json_t *added = json_object_get(root, "added_tokens");
    if (!check_file(root, error))
        return NULL;
    if (!json_is_object(vocab) || !json_is_array(merges)) {
        error_set(error, ASSAY_ERROR_INPUT, "model: vocab and merges are missing");
        return NULL;
    }
    if (!put_added_tokens(tokenizer, added, error) || !put_vocab(tokenizer, vocab, error) ||
        !put_merges(tokenizer, merges, error) || !tokenizer_finish(tokenizer, error) ||
        !check_ignore_merges(tokenizer, model, error))
        return NULL;
    return g_steal_pointer(&tokenizer);
}

Tokenizer *tokenizer_from_json(const char *text, gsize len, GError **error)
{
    g_autoptr(json_t) root = json_parse(text, len, error);
    Tokenizer *tokenizer = root != NULL ? from_root(root, error) : NULL;
    if (tokenizer == NULL)
        g_prefix_error(error, "tokenizer.json: ");
    return tokenizer;
}

/* --- merges.txt */

static gboolean put_line(Tokenizer *tokenizer, const char *line, gsize len, GString *left,
                         GString *right, GError **error)
{
    guint n_merges;
    tokenizer_merges(tokenizer, &n_merges);
    g_string_truncate(left, 0);
    g_string_truncate(right, 0);
    if (!read_halves(line, len, left, right))
        return error_set(error, ASSAY_ERROR_INPUT, "not a pair of tokens");
    gint32 a = tokenizer_find(tokenizer, left->str, left->len);
    gint32 b = tokenizer_find(tokenizer, right->str, right->len);
    if (a < 0 || b < 0)
        return error_set(error, ASSAY_ERROR_INPUT, "a token that no line before it makes");
    g_string_append_len(left, right->str, (gssize)right->len);
    gint32 id = 256 + (gint32)n_merges;
    return tokenizer_put(tokenizer, id, left->str, left->len, FALSE, error) &&
           tokenizer_merge(tokenizer, a, b, id, error);
}

static gboolean put_lines(Tokenizer *tokenizer, const char *text, gsize len, GError **error)
{
    g_autoptr(GString) left = g_string_new(NULL), right = g_string_new(NULL);
    const char *end = text + len, *line = text;
    for (guint number = 1; line < end; number++) {
        const char *stop = memchr(line, '\n', (gsize)(end - line));
        gsize n = (gsize)((stop != NULL ? stop : end) - line);
        gboolean version = number == 1 && n >= strlen(VERSION_LINE) &&
                           memcmp(line, VERSION_LINE, strlen(VERSION_LINE)) == 0;
        if (!version && !put_line(tokenizer, line, n, left, right, error)) {
            g_prefix_error(error, "line %u: ", number);
            return FALSE;
        }
        line += n + 1;
    }
    return TRUE;
}

/* Special tokens as tokenizer_config.json lists them, else M1's. */
static gboolean put_listed(Tokenizer *tokenizer, const json_t *config, GError **error)
{
    const char *key;
    json_t *value, *added = json_object_get(config, "added_tokens_decoder");
    guint n_merges;
    tokenizer_merges(tokenizer, &n_merges);
    if (json_object_size(added) == 0)
        return tokenizer_put_specials(tokenizer, n_merges, error);
    json_object_foreach(added, key, value)
    {
        guint64 id;
        if (!g_ascii_string_to_unsigned(key, 10, 0, TOKENIZER_VOCAB_MAX - 1, &id, error) ||
            !put_added(tokenizer, value, (gint64)id, error)) {
            g_prefix_error(error, "tokenizer_config.json: added_tokens_decoder %s: ", key);
            return FALSE;
        }
    }
    return TRUE;
}

Tokenizer *tokenizer_from_merges(const char *text, gsize len, const json_t *config, GError **error)
{
    g_autoptr(Tokenizer) tokenizer = tokenizer_new();
    for (gint32 b = 0; b < 256; b++) {
        char byte = (char)b;
        tokenizer_put(tokenizer, b, &byte, 1, FALSE, NULL);
    }
    if (!put_lines(tokenizer, text, len, error)) {
        g_prefix_error(error, "merges.txt: ");
        return NULL;
    }
    return put_listed(tokenizer, config, error) && tokenizer_finish(tokenizer, error)
               ? g_steal_pointer(&tokenizer)
               : NULL;
}

static Tokenizer *load_merges(const char *dir, GBytes *merges, GError **error)
{
    gsize len, config_len;
    GError *local = NULL;
    const char *text = g_bytes_get_data(merges, &len);
    g_autoptr(GBytes) bytes = read_optional(dir, "tokenizer_config.json", &local);
    const char *config_text = bytes != NULL ? g_bytes_get_data(bytes, &config_len) : NULL;
    g_autoptr(json_t) config =
        config_text != NULL ? json_parse(config_text, config_len, &local) : NULL;
    if (local != NULL) {
        g_propagate_prefixed_error(error, local, "tokenizer_config.json: ");
        return NULL;
    }
    return tokenizer_from_merges(text, len, config, error);
}

static Tokenizer *load(const char *dir, GError **error)
{
    GError *local = NULL;
    g_autoptr(GBytes) json = read_optional(dir, "tokenizer.json", &local);
    g_autoptr(GBytes) merges =
        json == NULL && local == NULL ? read_optional(dir, "merges.txt", &local) : NULL;
    if (local != NULL) {
        g_propagate_error(error, local);
        return NULL;
    }
    if (json != NULL)
        return tokenizer_from_json(g_bytes_get_data(json, NULL), g_bytes_get_size(json), error);
    if (merges != NULL)
        return load_merges(dir, merges, error);
    error_set(error, ASSAY_ERROR_NOT_FOUND, "no tokenizer.json and no merges.txt");
    return NULL;
}

Tokenizer *tokenizer_load(const char *dir, GError **error)
{
    Tokenizer *tokenizer = load(dir, error);
    if (tokenizer == NULL)
        g_prefix_error(error, "tokenizer %s: ", dir);
    return tokenizer;
}

/* --- writing */

static char *spelled(const Tokenizer *tokenizer, gint32 id)
{
    gsize len;
    const char *bytes = tokenizer_bytes(tokenizer, id, &len);
    GString *text = g_string_new(NULL);
    token_alphabet_write(bytes, len, text);
    return g_string_free(text, FALSE);
}

static json_t *frame_json(void)
{
    return json_pack(
        "{s:s, s:n, s:n, s:[], s:n, s:{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, {s:s, s:b, s:b, s:b}]},"
        " s:n, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:{}, s:[]}}",
        "version", "1.0", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
        "type", "Sequence", "pretokenizers", "type", "Split", "pattern", "Regex",
        token_split_pattern, "behavior", "Isolated", "invert", FALSE, "type", "ByteLevel",
        "add_prefix_space", FALSE, "trim_offsets", TRUE, "use_regex", FALSE, "post_processor",
        "decoder", "type", "ByteLevel", "add_prefix_space", FALSE, "trim_offsets", TRUE,
        "use_regex", FALSE, "model", "type", "BPE", "dropout", "unk_token",
        "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", FALSE, "byte_fallback",
        FALSE, "ignore_merges", FALSE, "vocab", "merges");
}

static json_t *to_json(const Tokenizer *tokenizer)
{
    json_t *root = frame_json(), *model = json_object_get(root, "model");
    g_assert(root != NULL);
    json_t *added = json_object_get(root, "added_tokens"), *vocab = json_object_get(model, "vocab");
    for (gint32 id = 0; id < tokenizer_size(tokenizer); id++) {
        gsize len;
        const char *bytes = tokenizer_bytes(tokenizer, id, &len);
        if (bytes == NULL)
            continue;
        g_autofree char *text = spelled(tokenizer, id);
        if (!tokenizer_is_special(tokenizer, id))
            json_object_set_new(vocab, text, json_integer(id));
        else
            json_array_append_new(added, json_pack("{s:i, s:s%, s:b, s:b, s:b, s:b, s:b}", "id", id,
                                                   "content", bytes, len, "single_word", FALSE,
                                                   "lstrip", FALSE, "rstrip", FALSE, "normalized",
                                                   FALSE, "special", TRUE));
    }
    guint n;
    const TokenMerge *merges = tokenizer_merges(tokenizer, &n);
    for (guint i = 0; i < n; i++) {
        g_autofree char *left = spelled(tokenizer, merges[i].left);
        g_autofree char *right = spelled(tokenizer, merges[i].right);
        g_autofree char *both = g_strconcat(left, " ", right, NULL);
        json_array_append_new(json_object_get(model, "merges"), json_string(both));
    }
    return root;
}

/* merges.txt, or NULL when it alone would not give the same ids. */
static GString *to_merges(const Tokenizer *tokenizer)
{
    guint n;
    const TokenMerge *merges = tokenizer_merges(tokenizer, &n);
    g_autoptr(Tokenizer) again = NULL;
    GString *text = g_string_new(VERSION_LINE ": 0.2\n");
    for (guint i = 0; i < n; i++) {
        g_autofree char *left = spelled(tokenizer, merges[i].left);
        g_autofree char *right = spelled(tokenizer, merges[i].right);
        g_string_append_printf(text, "%s %s\n", left, right);
    }
    again = tokenizer_from_merges(text->str, text->len, NULL, NULL);
    gboolean same = again != NULL && tokenizer_size(again) == tokenizer_size(tokenizer);
    for (gint32 id = 0; same && id < tokenizer_size(tokenizer); id++) {
        gsize len, other_len;
        const char *bytes = tokenizer_bytes(tokenizer, id, &len);
        const char *other = tokenizer_bytes(again, id, &other_len);
        same = len == other_len && (len == 0 || memcmp(bytes, other, len) == 0) &&
               tokenizer_is_special(again, id) == tokenizer_is_special(tokenizer, id);
    }
    if (!same)
        g_string_free(g_steal_pointer(&text), TRUE);
    return text;
}

gboolean tokenizer_save(const Tokenizer *tokenizer, const char *dir, GError **error)
{
    g_autofree char *json_path = g_build_filename(dir, "tokenizer.json", NULL);
    g_autofree char *merges_path = g_build_filename(dir, "merges.txt", NULL);
    g_autoptr(json_t) root = to_json(tokenizer);
    g_autofree char *text = json_dumps(root, JSON_INDENT(1));
    g_autoptr(GString) merges = to_merges(tokenizer);
    return file_write_atomic(json_path, text, strlen(text), error) &&
           (merges == NULL || file_write_atomic(merges_path, merges->str, merges->len, error));
}
