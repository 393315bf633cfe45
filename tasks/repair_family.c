/*
 * The families of repair tasks, read from the texts that are compiled in.
 *
 * Invariants:
 *   1. The texts are ours: what is wrong in them ends the process, with the line.
 *   2. No two roles share a name, and no name is a word of C or of Python.
 *   3. Facts are believed only with the digest of what they were made from.
 */
#include "tasks/repair_family.h"

#include "base/digest.h"

#include <string.h>

static const char c_text[] =
#include "repair_c.inc"
    ;
static const char python_text[] =
#include "repair_python.inc"
    ;
static const char facts_text[] =
#include "repair_facts.inc"
    ;

/* ---- names ---- */

#define NAMES_MAX 4

static const struct {
    char role;
    const char *names[NAMES_MAX];
} pools[] = {
    {'a', {"a", "v", "xs", "data"}}, {'b', {"b", "w", "ys", "dst"}},
    {'c', {"c", "ch", "letter"}},    {'d', {"d", "digit", "rest"}},
    {'e', {"e", "item", "first"}},   {'g', {"g", "other", "given"}},
    {'h', {"hi", "high", "right"}},  {'i', {"i", "at", "pos"}},
    {'j', {"j", "end", "last"}},     {'k', {"k", "hits", "found"}},
    {'l', {"lo", "low", "left"}},    {'m', {"m", "width", "step"}},
    {'n', {"n", "count", "size"}},   {'p', {"p", "text", "line"}},
    {'q', {"q", "part", "word"}},    {'r', {"r", "res", "out", "best"}},
    {'s', {"s", "total", "acc"}},    {'t', {"t", "tmp", "old"}},
    {'u', {"u", "bits", "mask"}},    {'x', {"x", "value", "key"}},
    {'y', {"y", "limit", "want"}},   {'z', {"z", "third", "extra"}},
};

RepairNames repair_names_draw(const RepairFamily *family, RepairDraw draw, gpointer data)
{
    RepairNames names = {0};
    for (gsize i = 0; i < G_N_ELEMENTS(pools); i++) {
        guint n = 0;
        while (n < NAMES_MAX && pools[i].names[n] != NULL)
            n++;
        names.of[(int)pools[i].role] = pools[i].names[draw(data, n)];
    }
    names.of['F'] = family->names[draw(data, g_strv_length(family->names))];
    if (family->helpers != NULL)
        names.of['H'] = family->helpers[draw(data, g_strv_length(family->helpers))];
    return names;
}

void repair_fill(GString *out, const char *text, gsize len, const RepairNames *names)
{
    for (const char *at = text; at < text + len; at++) {
        if (*at != '$') {
            g_string_append_c(out, *at);
            continue;
        }
        at++;
        g_assert((guchar)*at < 128 && names->of[(int)*at] != NULL);
        g_string_append(out, names->of[(int)*at]);
    }
}

/* ---- the texts ---- */

typedef struct Reader {
    const char *language;
    GStrv lines;
    guint at; /* the line that is being read */
    GPtrArray *families;
    RepairFamily *family;
} Reader;

/* The rest of the line if it begins with that word. */
static const char *line_after(const Reader *reader, const char *word)
{
    const char *line = reader->lines[reader->at];
    gsize len = strlen(word);
    if (strncmp(line, word, len) != 0 || (line[len] != ' ' && line[len] != '\0'))
        return NULL;
    return line[len] == ' ' ? line + len + 1 : "";
}

static char *read_block(Reader *reader)
{
    g_autoptr(GString) text = g_string_new(NULL);
    for (reader->at++; line_after(reader, "end") == NULL; reader->at++)
        g_string_append_printf(text, "%s\n", reader->lines[reader->at]);
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static void read_family(Reader *reader, const char *rest)
{
    static const char *const parts[] = {"train", "tune", "heldout"};
    g_auto(GStrv) words = g_strsplit(rest, " ", 2);
    g_assert(words[1] != NULL);
    reader->family = g_new0(RepairFamily, 1);
    reader->family->name = g_strdup(words[0]);
    reader->family->language = reader->language;
    reader->family->calls = g_ptr_array_new_with_free_func(g_free);
    reader->family->expected = g_ptr_array_new_with_free_func(g_free);
    for (guint i = 0; i < G_N_ELEMENTS(parts); i++)
        if (g_str_equal(parts[i], words[1]))
            reader->family->part = i;
    g_ptr_array_add(reader->families, reader->family);
}

static void read_values(const Reader *reader, const char *rest)
{
    g_auto(GStrv) values = g_strsplit(rest, " | ", -1);
    for (char **value = values; *value != NULL; value++)
        g_ptr_array_add(reader->family->calls, g_str_equal(reader->language, "python")
                                                   ? g_strdup(*value)
                                                   : g_strdup_printf("I(%s);", *value));
}

static void read_line(Reader *reader)
{
    RepairFamily *family = reader->family;
    const struct {
        const char *word;
        char **text;
    } blocks[] = {{"header", &family->header}, {"code", &family->code}, {"also", &family->also}};
    const char *rest;
    for (gsize i = 0; i < G_N_ELEMENTS(blocks); i++)
        if (line_after(reader, blocks[i].word) != NULL) {
            *blocks[i].text = read_block(reader);
            return;
        }
    if ((rest = line_after(reader, "names")) != NULL)
        family->names = g_strsplit(rest, " ", -1);
    else if ((rest = line_after(reader, "helper")) != NULL)
        family->helpers = g_strsplit(rest, " ", -1);
    else if ((rest = line_after(reader, "says")) != NULL)
        family->says = g_strdup(rest);
    else if ((rest = line_after(reader, "I")) != NULL)
        read_values(reader, rest);
    else if ((rest = line_after(reader, "T")) != NULL)
        g_ptr_array_add(family->calls, g_strdup(rest));
    else
        g_error("repair families (%s), line %u: %s", reader->language, reader->at + 1,
                reader->lines[reader->at]);
}

static void read_text(const char *text, const char *language, GPtrArray *families)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    Reader reader = {.language = language, .lines = lines, .families = families};
    for (; lines[reader.at] != NULL; reader.at++) {
        const char *rest = line_after(&reader, "family");
        if (rest != NULL)
            read_family(&reader, rest);
        else if (lines[reader.at][0] != '\0' && lines[reader.at][0] != '#')
            read_line(&reader);
    }
}

/* ---- the facts ---- */

static char *digest_of(const RepairFamily *family)
{
    g_autoptr(Digest) digest = digest_new("assay.repair.v1");
    digest_add_str(digest, family->code);
    digest_add_str(digest, family->also);
    digest_add_str(digest, family->header);
    for (guint i = 0; i < family->calls->len; i++)
        digest_add_str(digest, family->calls->pdata[i]);
    for (guint i = 0; i < family->mutants->len; i++)
        digest_add_str(digest, ((const RepairMutant *)family->mutants->pdata[i])->key);
    g_autofree char *hex = digest_finish(digest);
    return g_strndup(hex, 16);
}

/* The roles of all texts of a family, in the order of their letters. */
static void find_roles(RepairFamily *family)
{
    const char *const texts[] = {family->code, family->also, family->header};
    guint n = 0;
    for (char role = 'A'; role <= 'z'; role++)
        for (gsize i = 0; i < G_N_ELEMENTS(texts); i++)
            if (texts[i] != NULL && strstr(texts[i], (char[]){'$', role, '\0'}) != NULL) {
                family->roles[n++] = role;
                break;
            }
}

/* Three hexadecimal digits for each mutant. */
static void read_fails(RepairFamily *family, const char *digits)
{
    g_assert(strlen(digits) == 3 * (gsize)family->mutants->len);
    family->fails = g_new0(guint16, family->mutants->len);
    for (guint i = 0; i < 3 * family->mutants->len; i++)
        family->fails[i / 3] =
            (guint16)(family->fails[i / 3] << 4 | g_ascii_xdigit_value(digits[i]));
}

/* fact NAME DIGEST, fails 0010ff..., and a line "= VALUE" for each call. */
static void read_facts(GPtrArray *families)
{
    g_auto(GStrv) lines = g_strsplit(facts_text, "\n", -1);
    RepairFamily *family = NULL;
    for (char **line = lines; *line != NULL; line++) {
        g_auto(GStrv) words = g_strsplit(*line, " ", 3);
        if (g_strcmp0(words[0], "fact") == 0) {
            family = NULL;
            for (guint i = 0; i < families->len; i++) {
                RepairFamily *candidate = families->pdata[i];
                if (g_str_equal(candidate->name, words[1]) &&
                    g_str_equal(candidate->digest, words[2]))
                    family = candidate;
            }
        } else if (family != NULL && g_strcmp0(words[0], "fails") == 0) {
            read_fails(family, words[1]);
        } else if (family != NULL && g_strcmp0(words[0], "=") == 0) {
            g_ptr_array_add(family->expected, g_strdup(*line + 2));
        }
    }
}

void repair_family_finish(RepairFamily *family)
{
    family->mutants = repair_mutants(family->name, family->language, family->code);
    find_roles(family);
}

void repair_family_free(RepairFamily *family)
{
    if (family == NULL)
        return;
    g_strfreev(family->names);
    g_strfreev(family->helpers);
    g_ptr_array_unref(family->calls);
    g_ptr_array_unref(family->expected);
    g_ptr_array_unref(family->mutants);
    char *const texts[] = {family->name, family->says,   family->code,
                           family->also, family->header, family->digest};
    for (gsize i = 0; i < G_N_ELEMENTS(texts); i++)
        g_free(texts[i]);
    g_free(family->fails);
    g_free(family);
}

const GPtrArray *repair_families(void)
{
    static GPtrArray *families;
    if (!g_once_init_enter(&families))
        return families;
    GPtrArray *list = g_ptr_array_new(); /* for the life of the process */
    read_text(c_text, "c", list);
    read_text(python_text, "python", list);
    for (guint i = 0; i < list->len; i++) {
        RepairFamily *family = list->pdata[i];
        g_assert(family->code != NULL && family->names != NULL && family->says != NULL);
        g_assert(family->calls->len >= 5 && family->calls->len <= REPAIR_CALLS_MAX);
        repair_family_finish(family);
        family->digest = digest_of(family);
    }
    read_facts(list);
    g_once_init_leave(&families, list);
    return families;
}
