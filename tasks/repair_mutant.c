/*
 * Bugs: tokens, the rules that change them, their order.
 *
 * Invariants:
 *   1. Only what stands inside the function is changed: in C at a depth of braces of one or more,
 *      in Python on lines that are indented.
 *   2. No two mutants of a text have the same key.
 *   3. The edits of a pair do not touch the same tokens, and go to the same share, so that no edit
 *      held out is part of a pair that is not.
 *
 * Not here: whether a mutant compiles, or differs from the right text at all (repair_facts.txt).
 */
#include "tasks/repair_mutant.h"

#include "base/digest.h"

#include <string.h>

typedef enum TokenKind { TOKEN_NAME, TOKEN_NUMBER, TOKEN_TEXT, TOKEN_SIGN } TokenKind;

typedef struct Token {
    TokenKind kind;
    const char *at;
    gsize len;
    gboolean is_inside; /* of the function */
} Token;

typedef struct Maker {
    const char *family, *code;
    gboolean is_python;
    GArray *tokens; /* Token */
    GPtrArray *mutants;
    GHashTable *keys; /* borrowed from mutants */
} Maker;

/* ---- tokens ---- */

static const char *const long_signs[] = {"<<=", ">>=", "//=", "->", "++", "--", "<<", ">>",
                                         "<=",  ">=",  "==",  "!=", "&&", "||", "+=", "-=",
                                         "*=",  "/=",  "%=",  "&=", "|=", "^=", "//"};

static gboolean is_name_byte(char c)
{
    return g_ascii_isalnum(c) || c == '_' || c == '$';
}

static gsize quoted_len(const char *at)
{
    gsize len = 1;
    while (at[len] != at[0])
        len += at[len] == '\\' ? 2 : 1;
    return len + 1;
}

static Token token_read(const char *at)
{
    Token token = {.kind = TOKEN_SIGN, .at = at, .len = 1};
    if (is_name_byte(*at)) {
        token.kind = g_ascii_isdigit(*at) ? TOKEN_NUMBER : TOKEN_NAME;
        while (is_name_byte(at[token.len]))
            token.len++;
    } else if (*at == '"' || *at == '\'') {
        token.kind = TOKEN_TEXT;
        token.len = quoted_len(at);
    } else {
        for (gsize i = 0; i < G_N_ELEMENTS(long_signs) && token.len == 1; i++)
            if (g_str_has_prefix(at, long_signs[i]))
                token.len = strlen(long_signs[i]);
    }
    return token;
}

static GArray *tokens_read(const char *code, gboolean is_python)
{
    GArray *tokens = g_array_new(FALSE, TRUE, sizeof(Token));
    int depth = 0;
    gboolean indented = FALSE;
    for (const char *at = code; *at != '\0';) {
        if (at == code || at[-1] == '\n')
            indented = *at == ' ';
        if (*at == '#') { /* a line of the preprocessor */
            at += strcspn(at, "\n");
            continue;
        }
        if (g_ascii_isspace(*at)) {
            at++;
            continue;
        }
        Token token = token_read(at);
        depth -= *at == '}';
        token.is_inside = is_python ? indented : depth > 0;
        depth += *at == '{';
        g_array_append_val(tokens, token);
        at += token.len;
    }
    return tokens;
}

guint repair_count_tokens(const char *text)
{
    g_autoptr(GArray) tokens = tokens_read(text, FALSE);
    return tokens->len;
}

static const Token *token_at(const Maker *maker, guint i)
{
    static const Token none = {.kind = TOKEN_SIGN, .at = "", .len = 0};
    return i < maker->tokens->len ? &g_array_index(maker->tokens, Token, i) : &none;
}

static gboolean token_is(const Token *token, const char *text)
{
    return token->len == strlen(text) && strncmp(token->at, text, token->len) == 0;
}

static gboolean token_is_any(const Token *token, const char *const *words)
{
    for (; *words != NULL; words++)
        if (token_is(token, *words))
            return TRUE;
    return FALSE;
}

static gboolean token_equal(const Token *a, const Token *b)
{
    return a->len == b->len && memcmp(a->at, b->at, a->len) == 0;
}

static gboolean is_role(const Token *token)
{
    return token->len == 2 && token->at[0] == '$' && g_ascii_islower(token->at[1]);
}

/* Does a value end with this token? Then a sign after it has two sides. */
static gboolean ends_value(const Token *token)
{
    static const char *const words[] = {"return", "in",  "and",  "or",       "not", "if",
                                        "else",   "int", "char", "unsigned", NULL};
    static const char *const signs[] = {")", "]", "++", "--", NULL};
    return (token->kind != TOKEN_SIGN && !token_is_any(token, words)) || token_is_any(token, signs);
}

/* ---- mutants ---- */

void repair_mutant_free(RepairMutant *mutant)
{
    if (mutant == NULL)
        return;
    for (guint i = 0; i < mutant->n_edits; i++)
        g_free(mutant->edits[i].wrong);
    g_free(mutant->key);
    g_free(mutant);
}

static guint32 key_hash(const char *family, const char *key)
{
    g_autofree char *text = g_strconcat(family, " ", key, NULL);
    g_autofree char *hex = digest_bytes(text, strlen(text));
    hex[8] = '\0';
    return (guint32)g_ascii_strtoull(hex, NULL, 16);
}

static RepairShare share_of(guint32 hash)
{
    guint percent = hash % 100;
    return percent < 70   ? REPAIR_SHARE_TRAIN
           : percent < 80 ? REPAIR_SHARE_TUNE
                          : REPAIR_SHARE_HELDOUT;
}

static void mutant_add(Maker *maker, RepairMutant *mutant)
{
    if (g_hash_table_contains(maker->keys, mutant->key)) {
        repair_mutant_free(mutant);
        return;
    }
    g_hash_table_add(maker->keys, mutant->key);
    g_ptr_array_add(maker->mutants, mutant);
}

/* Tokens `from` to `to` become `wrong`. */
static void edit_add(Maker *maker, guint from, guint to, const char *wrong, const char *kind)
{
    const Token *first = token_at(maker, from), *last = token_at(maker, to);
    RepairMutant *mutant = g_new0(RepairMutant, 1);
    RepairEdit edit = {.place = from,
                       .at = (gsize)(first->at - maker->code),
                       .len = (gsize)(last->at + last->len - first->at),
                       .wrong = g_strdup(wrong),
                       .kind = kind};
    if (wrong[0] == '\0' && first->at[edit.len] == ' ') /* a dropped word goes with its space */
        edit.len++;
    mutant->n_edits = 1;
    mutant->edits[0] = edit;
    mutant->key = g_strdup_printf("%u:%s", from, wrong);
    mutant->share = share_of(key_hash(maker->family, mutant->key));
    mutant_add(maker, mutant);
}

/* ---- the rules ---- */

static const struct {
    const char *right, *kind;
    const char *wrong[6];
} swaps[] = {
    {"<", "comparison", {"<=", ">", ">=", "=="}},
    {"<=", "comparison", {"<", ">=", ">", "=="}},
    {">", "comparison", {">=", "<", "<=", "=="}},
    {">=", "comparison", {">", "<=", "<", "=="}},
    {"==", "comparison", {"!=", "<=", ">=", "<", ">"}},
    {"!=", "comparison", {"==", "<", ">", "<=", ">="}},
    {"=", "assignment", {"+=", "-="}},
    {"+=", "assignment", {"=", "-=", "*="}},
    {"-=", "assignment", {"=", "+="}},
    {"*=", "assignment", {"=", "+=", "-="}},
    {"/=", "assignment", {"*=", "-=", "%="}},
    {"//=", "assignment", {"*=", "-=", "%="}},
    {"%=", "assignment", {"/=", "-="}},
    {"|=", "assignment", {"=", "&=", "^="}},
    {"^=", "assignment", {"=", "&=", "|="}},
    {"<<=", "assignment", {">>=", "+="}},
    {">>=", "assignment", {"<<=", "-="}},
    {"++", "assignment", {"--"}},
    {"--", "assignment", {"++"}},
    {"&&", "logic", {"||"}},
    {"||", "logic", {"&&"}},
    {"and", "logic", {"or"}},
    {"or", "logic", {"and"}},
    {"True", "constant", {"False"}},
    {"False", "constant", {"True"}},
    {"|", "bits", {"&", "^"}},
    {"^", "bits", {"&", "|"}},
    {"<<", "bits", {">>"}},
    {">>", "bits", {"<<"}},
};

/* These have two sides, or they are another sign. */
static const struct {
    const char *right, *kind;
    const char *wrong[4];
} binary_swaps[] = {
    {"+", "arithmetic", {"-", "*"}},  {"-", "arithmetic", {"+", "*"}},
    {"*", "arithmetic", {"+", "-"}},  {"/", "arithmetic", {"*", "%"}},
    {"//", "arithmetic", {"*", "%"}}, {"%", "arithmetic", {"*", "-"}},
    {"&", "bits", {"|", "^"}},
};

static void rule_swap(Maker *maker, guint i)
{
    const Token *token = token_at(maker, i);
    for (gsize row = 0; row < G_N_ELEMENTS(swaps); row++)
        for (guint w = 0; token_is(token, swaps[row].right) && swaps[row].wrong[w] != NULL; w++)
            edit_add(maker, i, i, swaps[row].wrong[w], swaps[row].kind);
    if (i == 0 || !ends_value(token_at(maker, i - 1)))
        return;
    for (gsize row = 0; row < G_N_ELEMENTS(binary_swaps); row++)
        for (guint w = 0;
             token_is(token, binary_swaps[row].right) && binary_swaps[row].wrong[w] != NULL; w++)
            edit_add(maker, i, i, binary_swaps[row].wrong[w], binary_swaps[row].kind);
}

static void rule_number(Maker *maker, guint i)
{
    const Token *token = token_at(maker, i);
    g_autofree char *text = g_strndup(token->at, token->len);
    guint64 value = 0;
    if (token->kind != TOKEN_NUMBER || !g_ascii_string_to_unsigned(text, 10, 0, 9999, &value, NULL))
        return;
    g_autofree char *more = g_strdup_printf("%u", (guint)value + 1);
    edit_add(maker, i, i, more, "constant");
    if (value == 0)
        return;
    g_autofree char *less = g_strdup_printf("%u", (guint)value - 1);
    edit_add(maker, i, i, less, "constant");
}

/* Another token of the text that could stand here, of those that `is_like` says. */
static void rule_other(Maker *maker, guint i, gboolean (*is_like)(const Maker *maker, guint i),
                       const char *kind)
{
    if (!is_like(maker, i))
        return;
    for (guint j = 0; j < maker->tokens->len; j++) {
        const Token *other = token_at(maker, j);
        if (!is_like(maker, j) || token_equal(other, token_at(maker, i)))
            continue;
        g_autofree char *wrong = g_strndup(other->at, other->len);
        edit_add(maker, i, i, wrong, kind);
    }
}

static gboolean like_variable(const Maker *maker, guint i)
{
    return is_role(token_at(maker, i));
}

static gboolean like_character(const Maker *maker, guint i)
{
    return token_at(maker, i)->at[0] == '\'';
}

static gboolean like_field(const Maker *maker, guint i)
{
    const Token *before = token_at(maker, i - 1);
    return i > 0 && !maker->is_python && token_at(maker, i)->kind == TOKEN_NAME &&
           (token_is(before, ".") || token_is(before, "->"));
}

static void rule_off_by_one(Maker *maker, guint i)
{
    static const char *const before[] = {"<", "<=",     ">", ">=", "[", "(",
                                         ",", "return", "=", "==", ":", NULL};
    static const char *const after[] = {";", ")", "]", ",", ":", NULL};
    if (i == 0 || !is_role(token_at(maker, i)) || !token_is_any(token_at(maker, i - 1), before) ||
        !token_is_any(token_at(maker, i + 1), after))
        return;
    for (const char *sign = "-+"; *sign != '\0'; sign++) {
        g_autofree char *wrong = g_strdup_printf("%.2s %c 1", token_at(maker, i)->at, *sign);
        edit_add(maker, i, i, wrong, "off by one");
    }
}

/* X, Y in a call that begins or goes on here becomes Y, X. */
static void rule_swap_arguments(Maker *maker, guint i)
{
    const Token *x = token_at(maker, i), *y = token_at(maker, i + 2);
    const Token *end = token_at(maker, i + 3);
    if (i < 2 || x->kind == TOKEN_SIGN || y->kind == TOKEN_SIGN || token_equal(x, y) ||
        !token_is(token_at(maker, i - 1), "(") || token_at(maker, i - 2)->kind != TOKEN_NAME ||
        !token_is(token_at(maker, i + 1), ",") || !(token_is(end, ")") || token_is(end, ",")))
        return;
    g_autofree char *wrong = g_strdup_printf("%.*s, %.*s", (int)y->len, y->at, (int)x->len, x->at);
    edit_add(maker, i, i + 2, wrong, "swapped arguments");
}

static void rule_drop(Maker *maker, guint i)
{
    const Token *token = token_at(maker, i);
    if (token_is(token, "!") || token_is(token, "~") || token_is(token, "not") ||
        (token_is(token, "-") && !ends_value(token_at(maker, i - 1))))
        edit_add(maker, i, i, "", "dropped negation");
}

static gboolean edits_meet(const RepairEdit *x, const RepairEdit *y)
{
    return x->at + x->len > y->at && y->at + y->len > x->at;
}

static gboolean can_join(const RepairMutant *a, const RepairMutant *b)
{
    if (a->share != b->share || a->n_edits + b->n_edits > REPAIR_EDITS_MAX)
        return FALSE;
    for (guint i = 0; i < a->n_edits; i++)
        for (guint j = 0; j < b->n_edits; j++)
            if (edits_meet(&a->edits[i], &b->edits[j]))
                return FALSE;
    return TRUE;
}

RepairMutant *repair_mutant_join(const RepairMutant *a, const RepairMutant *b)
{
    g_autoptr(GString) key = g_string_new(NULL);
    RepairMutant *mutant;
    guint i = 0, j = 0;
    if (!can_join(a, b))
        return NULL;
    mutant = g_new0(RepairMutant, 1);
    while (i < a->n_edits || j < b->n_edits) {
        gboolean from_a = j == b->n_edits || (i < a->n_edits && a->edits[i].at < b->edits[j].at);
        RepairEdit edit = from_a ? a->edits[i++] : b->edits[j++];
        edit.wrong = g_strdup(edit.wrong);
        mutant->edits[mutant->n_edits++] = edit;
        g_string_append_printf(key, "%s%u:%s", key->len > 0 ? " " : "", edit.place, edit.wrong);
    }
    mutant->key = g_strdup(key->str);
    mutant->share = a->share;
    return mutant;
}

/* One in three gets a partner, whom the hash finds. */
static void add_pairs(Maker *maker)
{
    guint n = maker->mutants->len;
    for (guint i = 0; i < n; i++) {
        const RepairMutant *mutant = maker->mutants->pdata[i];
        guint32 hash = key_hash(maker->family, mutant->key) / 100;
        if (hash % 3 != 0)
            continue;
        for (guint k = 0; k < n; k++) {
            const RepairMutant *other = maker->mutants->pdata[(hash / 3 + k) % n];
            RepairMutant *pair = repair_mutant_join(mutant, other);
            if (pair == NULL)
                continue;
            mutant_add(maker, pair);
            break;
        }
    }
}

GPtrArray *repair_mutants(const char *family, const char *language, const char *code)
{
    gboolean is_python = g_str_equal(language, "python");
    g_autoptr(GArray) tokens = tokens_read(code, is_python);
    g_autoptr(GHashTable) keys = g_hash_table_new(g_str_hash, g_str_equal);
    Maker maker = {.family = family,
                   .code = code,
                   .is_python = is_python,
                   .tokens = tokens,
                   .mutants = g_ptr_array_new_with_free_func((GDestroyNotify)repair_mutant_free),
                   .keys = keys};
    for (guint i = 0; i < tokens->len; i++) {
        if (!token_at(&maker, i)->is_inside)
            continue;
        rule_swap(&maker, i);
        rule_number(&maker, i);
        rule_other(&maker, i, like_variable, "variable");
        rule_other(&maker, i, like_character, "constant");
        rule_other(&maker, i, like_field, "field");
        rule_off_by_one(&maker, i);
        rule_swap_arguments(&maker, i);
        rule_drop(&maker, i);
    }
    add_pairs(&maker);
    return maker.mutants;
}
