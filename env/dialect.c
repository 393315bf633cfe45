/*
 * The compact dialect: lexemes of lines, prompts, actions in both directions.
 *
 * 1. Whatever the model writes is data: an action that does not parse or apply is no action.
 * 2. dialect_fix and dialect_random write only what dialect_action reads.
 * 3. Layout is not the model's business, but for Python's indentation, which is shown as `>`.
 *
 * Not here: episodes and tools (episode.c), sampling (train_rollout.c).
 */
#include "env/dialect.h"

#include "base/error.h"

#include <string.h>

/* ---- lexemes ---- */

static guint lexeme_len(const char *s)
{
    static const char *const operators[] = {
        "<<=", ">>=", "**=", "//=", "...", "->", "++", "--", "<<", ">>", "<=", ">=", "==",
        "!=",  "&&",  "||",  "+=",  "-=",  "*=", "/=", "%=", "&=", "|=", "^=", "**", "//"};
    guint n = 1;

    if (g_ascii_isalnum(*s) || *s == '_') {
        while (g_ascii_isalnum(s[n]) || s[n] == '_' || (g_ascii_isdigit(*s) && s[n] == '.'))
            n++;
        return n;
    }
    if (*s == '"' || *s == '\'') {
        while (s[n] && s[n] != *s)
            n += s[n] == '\\' && s[n + 1] ? 2 : 1;
        return s[n] ? n + 1 : n;
    }
    for (guint i = 0; i < G_N_ELEMENTS(operators); i++)
        if (g_str_has_prefix(s, operators[i]))
            return (guint)strlen(operators[i]);
    while ((s[n] & 0xc0) == 0x80) /* a character of several bytes stays whole */
        n++;
    return n;
}

static GArray *lexemes_of(const char *text)
{
    GArray *lexemes = g_array_new(FALSE, FALSE, sizeof(Lexeme));

    for (const char *s = text; *s && lexemes->len < DIALECT_TOKENS_MAX;) {
        Lexeme lexeme = {(guint32)(s - text), 0};

        if (g_ascii_isspace(*s)) {
            s++;
            continue;
        }
        lexeme.len = lexeme_len(s);
        g_array_append_val(lexemes, lexeme);
        s += lexeme.len;
    }
    return lexemes;
}

static const Lexeme *lexeme_at(const SourceLine *line, guint i)
{
    return &g_array_index(line->lexemes, Lexeme, i);
}

static char *lexeme_text(const SourceLine *line, guint i)
{
    return g_strndup(line->text + lexeme_at(line, i)->at, lexeme_at(line, i)->len);
}

static gboolean lexeme_equal(const SourceLine *a, guint i, const SourceLine *b, guint j)
{
    const Lexeme *x = lexeme_at(a, i), *y = lexeme_at(b, j);

    return x->len == y->len && !memcmp(a->text + x->at, b->text + y->at, x->len);
}

/* ---- the lines shown ---- */

static void line_free(SourceLine *line)
{
    g_array_unref(line->lexemes);
    g_free(line->path);
    g_free(line->text);
    g_free(line);
}

static gboolean add_file(Source *source, const char *path, const char *text, GError **error)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    for (guint i = 0; lines[i]; i++) {
        SourceLine *line = g_new0(SourceLine, 1);

        line->path = g_strdup(path);
        line->number = i;
        line->text = g_strdup(lines[i]);
        line->lexemes = lexemes_of(lines[i]);
        if (line->lexemes->len == 0) {
            line_free(line);
            continue;
        }
        g_ptr_array_add(source->lines, line);
        if (source->lines->len > DIALECT_LINES_MAX)
            return error_set(error, ASSAY_ERROR_LIMIT, "%s: more than %u lines to show", path,
                             DIALECT_LINES_MAX);
    }
    return TRUE;
}

Source *source_new(json_t *files, const char *const *paths, GError **error)
{
    g_autoptr(Source) source = g_new0(Source, 1);

    source->lines = g_ptr_array_new_with_free_func((GDestroyNotify)line_free);
    source->files = json_incref(files);
    for (guint i = 0; paths[i]; i++) {
        const char *text = json_string_value(json_object_get(files, paths[i]));

        if (!text) {
            error_set(error, ASSAY_ERROR_INPUT, "there is no file %s", paths[i]);
            return NULL;
        }
        if (!add_file(source, paths[i], text, error))
            return NULL;
    }
    return g_steal_pointer(&source);
}

void source_free(Source *source)
{
    if (!source)
        return;
    g_ptr_array_unref(source->lines);
    json_decref(source->files);
    g_free(source);
}

/* ---- to the model ---- */

static void append_indent(GString *out, const SourceLine *line)
{
    guint spaces = 0;

    if (!g_str_has_suffix(line->path, ".py"))
        return;
    while (line->text[spaces] == ' ')
        spaces++;
    for (guint i = 0; i < spaces / 4; i++)
        g_string_append(out, " >");
}

static void append_lexemes(GString *out, const SourceLine *line, guint from, guint n)
{
    for (guint i = from; i < from + n; i++) {
        g_string_append_c(out, ' ');
        g_string_append_len(out, line->text + lexeme_at(line, i)->at, lexeme_at(line, i)->len);
    }
}

char *dialect_text(const Source *source)
{
    GString *out = g_string_new(NULL);

    for (guint i = 0; i < source->lines->len; i++) {
        const SourceLine *line = source->lines->pdata[i];

        g_string_append_printf(out, "%u", i + 1);
        append_indent(out, line);
        append_lexemes(out, line, 0, line->lexemes->len);
        g_string_append_c(out, '\n');
    }
    return g_string_free(out, FALSE);
}

/* Ends the turn that stands (unless it has ended), says `words`, opens the next turn. */
static gboolean append_turn(const Tokenizer *tokenizer, const char *words, gboolean end,
                            GArray *ids, GError **error)
{
    gint32 bos = tokenizer_special(tokenizer, TOKEN_BOS);
    gint32 eos = tokenizer_special(tokenizer, TOKEN_EOS);

    if (bos < 0 || eos < 0)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "the tokenizer has no turn marks");
    if (end)
        g_array_append_val(ids, eos);
    g_array_append_val(ids, bos);
    if (!tokenizer_encode(tokenizer, words, strlen(words), TOKENS_PLAIN, ids, error))
        return FALSE;
    g_array_append_val(ids, eos);
    g_array_append_val(ids, bos);
    return TRUE;
}

gboolean dialect_opening(const Tokenizer *tokenizer, const char *text, GArray *ids, GError **error)
{
    return append_turn(tokenizer, text, FALSE, ids, error);
}

gboolean dialect_prompt(const Tokenizer *tokenizer, const Source *source, GArray *ids,
                        GError **error)
{
    g_autofree char *text = dialect_text(source);

    return dialect_opening(tokenizer, text, ids, error);
}

gboolean dialect_answer(const Tokenizer *tokenizer, const char *words, gboolean ended, GArray *ids,
                        GError **error)
{
    return append_turn(tokenizer, words, !ended, ids, error);
}

/* ---- from the model ---- */

/* One line that is to read otherwise. */
typedef struct LineEdit {
    guint line; /* from 1, as shown */
    const char *text;
} LineEdit;

/* "12 a = b - c ;"; FALSE: not of that form. */
static gboolean edit_parse(const char *text, LineEdit *edit)
{
    const char *space = strchr(text, ' ');
    g_autofree char *number = space ? g_strndup(text, space - text) : NULL;
    guint64 line;

    if (!number || !g_ascii_string_to_unsigned(number, 10, 1, DIALECT_LINES_MAX, &line, NULL))
        return FALSE;
    edit->line = (guint)line;
    edit->text = space + 1;
    return strlen(edit->text) < DIALECT_TOKENS_MAX;
}

static gboolean lines_equal(const SourceLine *a, const SourceLine *b)
{
    guint n = a->lexemes->len, at = 0;

    while (at < n && n == b->lexemes->len && lexeme_equal(a, at, b, at))
        at++;
    return at == n && n == b->lexemes->len;
}

/* Lexemes [from, a_end) of `a` and [from, b_end) of `b`: where the lines differ, which they do,
 * with one lexeme around it where one of the two would be empty. */
static void lines_differ(const SourceLine *a, const SourceLine *b, guint *from, guint *a_end,
                         guint *b_end)
{
    guint na = a->lexemes->len, nb = b->lexemes->len, at = 0, same = 0;

    while (at < na && at < nb && lexeme_equal(a, at, b, at))
        at++;
    while (at + same < na && at + same < nb && lexeme_equal(a, na - 1 - same, b, nb - 1 - same))
        same++;
    if (at > 0 && (at + same == na || at + same == nb))
        at--;
    else if (at + same == na || at + same == nb)
        same--;
    *from = at;
    *a_end = na - same;
    *b_end = nb - same;
}

/* Where lexemes [from, to) of the line stand in its text. */
static gsize piece_at(const SourceLine *line, guint from, guint to, gsize *len)
{
    const Lexeme *first = lexeme_at(line, from), *last = lexeme_at(line, to - 1);

    *len = last->at + last->len - first->at;
    return first->at;
}

/* The line's text with the lexemes of the edit's, and its own layout where they are the same; NULL:
 * they all are, or the edit has none. */
static char *edit_apply(const char *text, const LineEdit *edit)
{
    g_autoptr(GArray) of_line = lexemes_of(text), of_edit = lexemes_of(edit->text);
    g_autofree char *line_text = g_strdup(text), *new_text = g_strdup(edit->text);
    SourceLine line = {.text = line_text, .lexemes = of_line};
    SourceLine new = {.text = new_text, .lexemes = of_edit};
    guint from, line_end, new_end;
    gsize line_at, line_len, new_at, new_len;

    if (of_edit->len == 0 || lines_equal(&line, &new))
        return NULL;
    lines_differ(&line, &new, &from, &line_end, &new_end);
    line_at = piece_at(&line, from, line_end, &line_len);
    new_at = piece_at(&new, from, new_end, &new_len);
    return g_strdup_printf("%.*s%.*s%s", (int)line_at, text, (int)new_len, new_text + new_at,
                           text + line_at + line_len);
}

/* How often `part` occurs in `text`, at most 2. */
static guint occurrences(const char *text, const char *part)
{
    const char *first = strstr(text, part);

    return !first ? 0 : strstr(first + 1, part) ? 2 : 1;
}

static char *lines_joined(GStrv lines, guint from, guint to)
{
    GString *out = g_string_new(NULL);

    for (guint i = from; i <= to; i++)
        g_string_append_printf(out, "%s%s", lines[i], i < to ? "\n" : "");
    return g_string_free(out, FALSE);
}

/* Arguments of a str_replace of line `number`, with neighbours until the place is the only one. */
static json_t *replace_call(const char *path, const char *text, guint number, const char *line)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    guint n = g_strv_length(lines), from = number, to = number;
    g_autofree char *old = lines_joined(lines, from, to), *new = NULL;

    while (occurrences(text, old) > 1 && (from > 0 || to + 1 < n)) {
        from -= from > 0;
        to += to + 1 < n;
        g_free(old);
        old = lines_joined(lines, from, to);
    }
    g_free(lines[number]);
    lines[number] = g_strdup(line);
    new = lines_joined(lines, from, to);
    return json_pack("{s:s, s:s, s:s, s:s}", "command", "str_replace", "path", path, "old_str", old,
                     "new_str", new);
}

static char *text_replaced(const char *text, const char *old, const char *new)
{
    const char *at = strstr(text, old);

    return g_strdup_printf("%.*s%s%s", (int)(at - text), text, new, at + strlen(old));
}

/* Adds the call of one edit to `calls` and its file to `changes`; FALSE: it does not apply. */
static gboolean add_call(const Source *source, json_t *changes, const LineEdit *edit, json_t *calls)
{
    const SourceLine *line;
    const json_t *before;
    const char *text;
    g_autofree char *changed = NULL, *after = NULL;
    g_auto(GStrv) lines = NULL;
    json_t *call;

    if (edit->line > source->lines->len)
        return FALSE;
    line = source->lines->pdata[edit->line - 1];
    before = json_object_get(changes, line->path);
    text = json_string_value(before ? before : json_object_get(source->files, line->path));
    lines = g_strsplit(text, "\n", -1);
    changed = edit_apply(lines[line->number], edit);
    if (!changed)
        return FALSE;
    call = replace_call(line->path, text, line->number, changed);
    after = text_replaced(text, json_string_value(json_object_get(call, "old_str")),
                          json_string_value(json_object_get(call, "new_str")));
    json_object_set_new(changes, line->path, json_string(after));
    return json_array_append_new(calls, call) == 0;
}

json_t *dialect_action(const Source *source, const char *text, json_t **ret_changes)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", DIALECT_EDITS_MAX + 1);
    g_autoptr(json_t) changes = json_object(), calls = json_array();
    guint n = g_strv_length(lines);

    if (n > 1 && !*lines[n - 1]) /* the last line may be ended */
        n--;
    if (n == 0 || n > DIALECT_EDITS_MAX || !g_utf8_validate(text, -1, NULL))
        return NULL;
    for (guint i = 0; i < n; i++) {
        LineEdit edit;

        if (!edit_parse(lines[i], &edit) || !add_call(source, changes, &edit, calls))
            return NULL;
    }
    if (ret_changes)
        *ret_changes = g_steal_pointer(&changes);
    return g_steal_pointer(&calls);
}

/* ---- demonstrations ---- */

char *dialect_fix(const Source *source, const Source *fixed)
{
    g_autoptr(GString) out = g_string_new(NULL);

    if (source->lines->len != fixed->lines->len)
        return NULL;
    for (guint i = 0; i < source->lines->len; i++) {
        const SourceLine *line = fixed->lines->pdata[i];

        if (lines_equal(source->lines->pdata[i], line))
            continue;
        g_string_append_printf(out, "%s%u", out->len ? "\n" : "", i + 1);
        append_lexemes(out, line, 0, line->lexemes->len);
    }
    return g_string_free(g_steal_pointer(&out), FALSE);
}

/* Another word of the same kind as lexeme `text`; NULL: of no kind that is exchanged. */
static char *other_of_kind(const Source *source, const char *text, GRand *rand)
{
    static const char *const kinds[][8] = {{"+", "-", "*", "/", "%", NULL},
                                           {"<", "<=", ">", ">=", "==", "!=", NULL},
                                           {"+=", "-=", "*=", "/=", NULL},
                                           {"&&", "||", NULL},
                                           {"and", "or", NULL},
                                           {"&", "|", "^", NULL},
                                           {"<<", ">>", NULL},
                                           {"++", "--", NULL},
                                           {"0", "1", "2", "3", NULL}};
    const SourceLine *line;
    guint at;

    for (guint k = 0; k < G_N_ELEMENTS(kinds); k++)
        if (g_strv_contains(kinds[k], text)) {
            gint32 n = 0;

            while (kinds[k][n])
                n++;
            return g_strdup(kinds[k][g_rand_int_range(rand, 0, n)]);
        }
    if (!g_ascii_isalpha(*text))
        return NULL;
    line = source->lines->pdata[g_rand_int_range(rand, 0, (gint32)source->lines->len)];
    at = (guint)g_rand_int_range(rand, 0, (gint32)line->lexemes->len);
    return g_ascii_isalpha(line->text[lexeme_at(line, at)->at]) ? lexeme_text(line, at) : NULL;
}

/* Line `number` with `word` in the place of lexeme `at`. */
static char *action_with(guint number, const SourceLine *line, guint at, const char *word)
{
    GString *out = g_string_new(NULL);

    g_string_append_printf(out, "%u", number);
    append_lexemes(out, line, 0, at);
    g_string_append_printf(out, " %s", word);
    append_lexemes(out, line, at + 1, line->lexemes->len - at - 1);
    return g_string_free(out, FALSE);
}

char *dialect_random(const Source *source, GRand *rand)
{
    for (int tries = 0; tries < 1000; tries++) {
        guint number = (guint)g_rand_int_range(rand, 0, (gint32)source->lines->len);
        const SourceLine *line = source->lines->pdata[number];
        guint at = (guint)g_rand_int_range(rand, 0, (gint32)line->lexemes->len);
        g_autofree char *word = lexeme_text(line, at), *other = other_of_kind(source, word, rand);

        if (other && strcmp(word, other) != 0)
            return action_with(number + 1, line, at, other);
    }
    return g_strdup("1 ;");
}
