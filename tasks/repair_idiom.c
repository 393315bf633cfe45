/*
 * Functions from a grammar: reading it, expanding it, keeping clear of the families.
 *
 * Invariants:
 *   1. The grammar is ours: what is wrong in it ends the process, with the line.
 *   2. What is drawn depends on the numbers drawn, on nothing of the machine.
 */
#include "tasks/repair_idiom.h"

#include "base/digest.h"

#include <string.h>

static const char idioms_text[] =
#include "repair_idioms.inc"
    ;

#define DEPTH_MAX 16u

typedef struct Grammar {
    GHashTable *rules;    /* name to GPtrArray of texts */
    GHashTable *headers;  /* name to text */
    GHashTable *families; /* what no function may be like (likeness) */
} Grammar;

typedef struct Expansion {
    const Grammar *grammar;
    RepairDraw draw;
    gpointer data;
    GString *out;
} Expansion;

/* ---- the grammar ---- */

/* The text of a block from the line after `at` to "or" or "end"; `at` goes to that word. */
static char *block_text(char **lines, guint *at)
{
    g_autoptr(GPtrArray) block = g_ptr_array_new();
    for ((*at)++; !g_str_equal(lines[*at], "or") && !g_str_equal(lines[*at], "end"); (*at)++)
        g_ptr_array_add(block, lines[*at]);
    g_ptr_array_add(block, NULL);
    return g_strjoinv("\n", (char **)block->pdata);
}

static GPtrArray *rule_new(Grammar *grammar, const char *name)
{
    GPtrArray *texts = g_ptr_array_new_with_free_func(g_free);
    gboolean is_new = g_hash_table_insert(grammar->rules, g_strdup(name), texts);
    g_assert(is_new);
    return texts;
}

static void rule_line(Grammar *grammar, const char *line, guint at)
{
    g_auto(GStrv) sides = g_strsplit(line, " = ", 2);
    if (g_strv_length(sides) != 2)
        g_error("repair idioms, line %u: %s", at + 1, line);
    GPtrArray *texts = rule_new(grammar, sides[0]);
    g_auto(GStrv) parts = g_strsplit(sides[1], " :: ", -1);
    for (char **part = parts; *part != NULL; part++)
        g_ptr_array_add(texts, g_strdup(*part));
}

static void grammar_read(Grammar *grammar)
{
    g_auto(GStrv) lines = g_strsplit(idioms_text, "\n", -1);
    for (guint at = 0; lines[at] != NULL; at++) {
        const char *line = lines[at];
        if (line[0] == '\0' || line[0] == '#')
            continue;
        if (g_str_has_prefix(line, "header ")) {
            g_hash_table_insert(grammar->headers, g_strdup(line + strlen("header ")),
                                block_text(lines, &at));
        } else if (g_str_has_prefix(line, "rule ")) {
            GPtrArray *texts = rule_new(grammar, line + strlen("rule "));
            do
                g_ptr_array_add(texts, block_text(lines, &at));
            while (g_str_equal(lines[at], "or"));
        } else {
            rule_line(grammar, line, at);
        }
    }
}

/* ---- likeness ---- */

/* A text with its roles numbered as they come, without white space, without its header's name and
 * without what it returns last, unless that is all it does. */
static char *likeness(const char *code)
{
    if (*code == '#')
        code = strchr(code, '\n') + 1;
    const char *body = strchr(code, '{'), *last = g_strrstr(code, "return");
    gsize len = strlen(code);
    if (body != NULL && last != NULL && memchr(body, ';', (gsize)(last - body)) != NULL)
        len = (gsize)(last - code);
    GString *out = g_string_new(NULL);
    char seen[128] = {0}, n = 'a';
    for (const char *at = code; at < code + len; at++) {
        if (*at == '$' && g_ascii_islower(at[1])) {
            char *number = &seen[(int)*++at];
            if (*number == 0)
                *number = n++;
            g_string_append_printf(out, "$%c", *number);
        } else if (!g_ascii_isspace(*at)) {
            g_string_append_c(out, *at);
        }
    }
    return g_string_free(out, FALSE);
}

static const Grammar *grammar_get(void)
{
    static Grammar grammar;
    static gsize is_read;
    if (!g_once_init_enter(&is_read))
        return &grammar;
    const GPtrArray *families = repair_families();
    grammar.rules = g_hash_table_new(g_str_hash, g_str_equal); /* for the life of the process */
    grammar.headers = g_hash_table_new(g_str_hash, g_str_equal);
    grammar.families = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    grammar_read(&grammar);
    for (guint i = 0; i < families->len; i++)
        g_hash_table_add(grammar.families, likeness(((RepairFamily *)families->pdata[i])->code));
    g_once_init_leave(&is_read, 1);
    return &grammar;
}

/* ---- a function ---- */

/* The spaces that the last line of a text begins with. */
static gsize indent_of(const GString *text)
{
    const char *line = strrchr(text->str, '\n');
    return strspn(line != NULL ? line + 1 : text->str, " ");
}

static void expand(Expansion *expansion, const char *rule, guint depth)
{
    const GPtrArray *texts = g_hash_table_lookup(expansion->grammar->rules, rule);
    if (texts == NULL || depth > DEPTH_MAX)
        g_error("repair idioms: @%s is not there, or is part of itself", rule);
    GString *out = expansion->out;
    gsize indent = indent_of(out);
    const char *at = texts->pdata[expansion->draw(expansion->data, texts->len)];
    while (*at != '\0') {
        if (*at == '@') {
            gsize len = strspn(at + 1, "abcdefghijklmnopqrstuvwxyz");
            g_autofree char *name = g_strndup(at + 1, len);
            expand(expansion, name, depth + 1);
            at += 1 + len;
            continue;
        }
        g_string_append_c(out, *at);
        if (*at++ == '\n')
            g_string_append_printf(out, "%*s", (int)indent, "");
    }
}

static void drop_empty_lines(GString *text)
{
    g_auto(GStrv) lines = g_strsplit(text->str, "\n", -1);
    g_string_truncate(text, 0);
    for (char **line = lines; *line != NULL; line++)
        if ((*line)[strspn(*line, " ")] != '\0')
            g_string_append_printf(text, "%s\n", *line);
}

/* The parameters in place of the dots. */
static void open_parameters(GString *text)
{
    static const char roles[] = "xyzlhcd";
    const char *dots = strstr(text->str, "...");
    if (dots == NULL)
        return;
    gsize at = (gsize)(dots - text->str);
    g_autoptr(GString) list = g_string_new(NULL);
    for (const char *role = roles; *role != '\0'; role++)
        if (strstr(dots, (char[]){'$', *role, '\0'}) != NULL)
            g_string_append_printf(list, "%s%s $%c", list->len > 0 || dots[-1] != '(' ? ", " : "",
                                   strchr("cd", *role) != NULL ? "char" : "int", *role);
    g_string_erase(text, (gssize)at, (gssize)strlen("..."));
    g_string_insert(text, (gssize)at, list->str);
}

static char *code_draw(Expansion *expansion)
{
    g_autoptr(GString) text = expansion->out = g_string_new(NULL);
    for (;;) {
        g_string_truncate(text, 0);
        expand(expansion, "function", 0);
        drop_empty_lines(text);
        open_parameters(text);
        g_autofree char *like = likeness(text->str);
        if (!g_hash_table_contains(expansion->grammar->families, like))
            return g_strdup(text->str);
    }
}

static char *word_draw(Expansion *expansion)
{
    g_autoptr(GString) word = expansion->out = g_string_new(NULL);
    expand(expansion, "name", 0);
    return g_strdup(word->str);
}

/* The struct that the function is about goes to its header, with the prototype. */
static void take_header(RepairFamily *family, const Grammar *grammar)
{
    const char *word = strstr(family->code, "struct ");
    if (word == NULL)
        return;
    word += strlen("struct ");
    g_autofree char *name = g_strndup(word, strcspn(word, " "));
    const char *text = g_hash_table_lookup(grammar->headers, name);
    if (text == NULL)
        g_error("repair idioms: there is no header %s", name);
    family->header =
        g_strdup_printf("%s\n\n%.*s;\n", text, (int)strcspn(family->code, "\n"), family->code);
    g_autofree char *bare = family->code;
    family->code = g_strdup_printf("#include \"$F.h\"\n\n%s", bare);
}

RepairFamily *repair_idiom_draw(RepairDraw draw, gpointer data)
{
    Expansion expansion = {.grammar = grammar_get(), .draw = draw, .data = data};
    RepairFamily *family = g_new0(RepairFamily, 1);
    family->language = "c";
    family->part = REPAIR_PART_IMITATION;
    family->code = code_draw(&expansion);
    take_header(family, expansion.grammar);
    g_autofree char *digest = digest_bytes(family->code, strlen(family->code));
    family->name = g_strdup_printf("idiom-%.12s", digest);
    family->says = g_strdup("made of idioms, without a purpose");
    family->names = g_new0(char *, 2);
    family->names[0] = word_draw(&expansion);
    family->calls = g_ptr_array_new();
    family->expected = g_ptr_array_new();
    repair_family_finish(family);
    return family;
}
