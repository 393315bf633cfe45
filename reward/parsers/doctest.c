/*
 * C++ doctest's XML report (-s -r=xml): every SubCase below every TestCase.
 *
 * Invariants: XML that is not well-formed is refused, as the original's reader (expat) does, and
 * then nothing is recorded. The text begins at "<doctest" and ends with the first "</doctest>", so
 * neither a prolog nor a DOCTYPE can occur.
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/c.py; XML 1.0 (fifth edition).
 *
 * Not here: namespaces; a report that declares one is read by its plain names.
 */
#include "reward/log_parser.h"

#include <string.h>

typedef struct Element {
    Span tag;
    guint depth;
    GString *name;    /* attribute "name", NULL when absent */
    gboolean success; /* attribute success="true" */
} Element;

typedef struct Reader {
    Span text;
    gsize at;
    GArray *elements; /* Element, in document order */
    GArray *open;     /* guint: indices of the elements not yet closed */
} Reader;

static void element_clear(gpointer ptr)
{
    gstring_free_p(&((Element *)ptr)->name);
}

static gboolean at_end(const Reader *reader)
{
    return reader->at >= reader->text.len;
}

static char peek(const Reader *reader)
{
    return at_end(reader) ? '\0' : reader->text.ptr[reader->at];
}

static gboolean take(Reader *reader, Span what)
{
    if (!span_starts(span_from(reader->text, reader->at), what))
        return FALSE;
    reader->at += what.len;
    return TRUE;
}

static gboolean skip_past(Reader *reader, Span what)
{
    gssize at = span_find(reader->text, what, reader->at);
    if (at < 0)
        return FALSE;
    reader->at = (gsize)at + what.len;
    return TRUE;
}

static gboolean skip_space(Reader *reader)
{
    gsize start = reader->at;
    while (!at_end(reader) && strchr(" \t\n", reader->text.ptr[reader->at]) != NULL &&
           reader->text.ptr[reader->at] != '\0')
        reader->at++;
    return reader->at > start;
}

static gboolean is_xml_char(gunichar c)
{
    return c == '\t' || c == '\n' || c == '\r' || (c >= 0x20 && c != 0xFFFE && c != 0xFFFF);
}

static gboolean all_xml_chars(Span text)
{
    for (const char *p = text.ptr; p < text.ptr + text.len; p = text_next(p))
        if (!is_xml_char(g_utf8_get_char(p)))
            return FALSE;
    return TRUE;
}

/* expat knows names of XML's fourth edition: the letters of the first plane. */
static gboolean is_name_char(gunichar c, gboolean first)
{
    if (c == '_' || c == ':' || (c < 0x10000 && g_unichar_isalpha(c)))
        return TRUE;
    return !first && (c == '-' || c == '.' || c == 0xB7 || (c < 0x10000 && g_unichar_isdigit(c)) ||
                      (c < 0x10000 && g_unichar_ismark(c)));
}

static gboolean take_name(Reader *reader, Span *ret_name)
{
    gsize start = reader->at;
    while (!at_end(reader)) {
        const char *p = reader->text.ptr + reader->at;
        if (!is_name_char(g_utf8_get_char(p), reader->at == start))
            break;
        reader->at += (gsize)(text_next(p) - p);
    }
    *ret_name = span_slice(reader->text, start, reader->at);
    return ret_name->len > 0;
}

/* "#10" or "#x1F" of "&#10;". */
static gboolean char_reference(Span body, gunichar *ret)
{
    gboolean hex = span_starts(body, SPAN("#x"));
    guint64 value = 0;
    gsize i = hex ? 2 : 1;
    if (i >= body.len)
        return FALSE;
    for (; i < body.len; i++) {
        int digit = hex ? g_ascii_xdigit_value(body.ptr[i]) : g_ascii_digit_value(body.ptr[i]);
        if (digit < 0)
            return FALSE;
        value = value * (hex ? 16 : 10) + (guint64)digit;
        if (value > 0x10FFFF)
            return FALSE;
    }
    *ret = (gunichar)value;
    return is_xml_char(*ret) && (*ret < 0xD800 || *ret > 0xDFFF);
}

/* At '&': appends what the reference stands for. */
static gboolean take_reference(Reader *reader, GString *to)
{
    static const struct {
        const char *name;
        char c;
    } known[] = {{"lt", '<'}, {"gt", '>'}, {"amp", '&'}, {"apos", '\''}, {"quot", '"'}};

    gsize start = ++reader->at;
    if (!skip_past(reader, SPAN(";")))
        return FALSE;
    Span body = span_slice(reader->text, start, reader->at - 1);
    gunichar c;
    if (span_starts(body, SPAN("#"))) {
        if (!char_reference(body, &c))
            return FALSE;
        g_string_append_unichar(to, c);
        return TRUE;
    }
    for (gsize i = 0; i < G_N_ELEMENTS(known); i++) {
        if (span_eq(body, span_of(known[i].name))) {
            g_string_append_c(to, known[i].c);
            return TRUE;
        }
    }
    return FALSE;
}

static gboolean take_value(Reader *reader, GString *to)
{
    char quote = peek(reader);
    if (quote != '"' && quote != '\'')
        return FALSE;
    reader->at++;
    while (!at_end(reader)) {
        char c = peek(reader);
        if (c == quote) {
            reader->at++;
            return TRUE;
        }
        if (c == '<' || (c == '&' && !take_reference(reader, to)))
            return FALSE;
        if (c == '&')
            continue;
        g_string_append_c(to, c == '\n' || c == '\t' ? ' ' : c);
        reader->at++;
    }
    return FALSE;
}

static gboolean take_attribute(Reader *reader, Element *element, GPtrArray *seen)
{
    Span name;
    if (!take_name(reader, &name))
        return FALSE;
    char *key = span_dup(name);
    gboolean again = g_ptr_array_find_with_equal_func(seen, key, g_str_equal, NULL);
    g_ptr_array_add(seen, key);
    skip_space(reader);
    if (again || !take(reader, SPAN("=")))
        return FALSE;
    skip_space(reader);

    AUTO_GSTRING value = g_string_new(NULL);
    if (!take_value(reader, value))
        return FALSE;
    if (span_eq(name, SPAN("name")))
        element->name = g_steal_pointer(&value);
    else if (span_eq(name, SPAN("success")))
        element->success = span_eq(span_gstring(value), SPAN("true"));
    return TRUE;
}

static gboolean take_start_tag(Reader *reader)
{
    Element element = {.depth = reader->open->len};
    if (!take_name(reader, &element.tag))
        return FALSE;
    g_autoptr(GPtrArray) seen = g_ptr_array_new_with_free_func(g_free);
    gboolean ok = TRUE, spaced = skip_space(reader);
    while (ok && !at_end(reader) && peek(reader) != '>' && peek(reader) != '/') {
        ok = spaced && take_attribute(reader, &element, seen);
        spaced = ok && skip_space(reader);
    }
    guint index = reader->elements->len;
    g_array_append_val(reader->elements, element);
    if (ok && take(reader, SPAN("/>")))
        return TRUE;
    if (!ok || !take(reader, SPAN(">")))
        return FALSE;
    g_array_append_val(reader->open, index);
    return TRUE;
}

static gboolean take_end_tag(Reader *reader)
{
    Span name;
    if (!take_name(reader, &name) || reader->open->len == 0)
        return FALSE;
    skip_space(reader);
    guint index = g_array_index(reader->open, guint, reader->open->len - 1);
    g_array_set_size(reader->open, reader->open->len - 1);
    return take(reader, SPAN(">")) &&
           span_eq(g_array_index(reader->elements, Element, index).tag, name);
}

static gboolean take_comment(Reader *reader)
{
    return skip_past(reader, SPAN("--")) && take(reader, SPAN(">"));
}

static gboolean take_instruction(Reader *reader)
{
    Span target;
    if (!take_name(reader, &target) ||
        (target.len == 3 && g_ascii_strncasecmp(target.ptr, "xml", 3) == 0))
        return FALSE;
    return take(reader, SPAN("?>")) || (skip_space(reader) && skip_past(reader, SPAN("?>")));
}

static gboolean take_text(Reader *reader)
{
    AUTO_GSTRING ignored = g_string_new(NULL);
    while (!at_end(reader) && peek(reader) != '<') {
        if (peek(reader) == '&') {
            if (!take_reference(reader, ignored))
                return FALSE;
            continue;
        }
        if (span_starts(span_from(reader->text, reader->at), SPAN("]]>")))
            return FALSE;
        reader->at++;
    }
    return TRUE;
}

static gboolean read_document(Reader *reader)
{
    if (!all_xml_chars(reader->text))
        return FALSE;
    gboolean ok = take(reader, SPAN("<")) && take_start_tag(reader);
    while (ok && reader->open->len > 0) {
        ok = take_text(reader) && !at_end(reader);
        if (!ok)
            break;
        if (take(reader, SPAN("</")))
            ok = take_end_tag(reader);
        else if (take(reader, SPAN("<!--")))
            ok = take_comment(reader);
        else if (take(reader, SPAN("<![CDATA[")))
            ok = skip_past(reader, SPAN("]]>"));
        else if (take(reader, SPAN("<?")))
            ok = take_instruction(reader);
        else
            ok = take(reader, SPAN("<")) && take_start_tag(reader);
    }
    return ok && at_end(reader);
}

static const Element *element_at(const Reader *reader, guint i)
{
    return &g_array_index(reader->elements, Element, i);
}

/* The first index after `i` that is no descendant of element `i`. */
static guint subtree_end(const Reader *reader, guint i)
{
    guint end = i + 1;
    while (end < reader->elements->len &&
           element_at(reader, end)->depth > element_at(reader, i)->depth)
        end++;
    return end;
}

static void append_name(GString *to, const Element *element)
{
    span_append(to, element->name == NULL ? SPAN("None") : span_gstring(element->name));
}

static void record_subcase(const Reader *reader, guint testcase, guint subcase, StatusMap *map)
{
    gboolean passed = TRUE;
    for (guint i = subcase + 1; i < subtree_end(reader, subcase); i++)
        if (span_eq(element_at(reader, i)->tag, SPAN("Expression")))
            passed = passed && element_at(reader, i)->success;
    AUTO_GSTRING name = g_string_new(NULL);
    append_name(name, element_at(reader, testcase));
    g_string_append(name, " > ");
    append_name(name, element_at(reader, subcase));
    status_map_set(map, span_gstring(name), passed ? STATUS_PASSED : STATUS_FAILED);
}

static void record_all(const Reader *reader, StatusMap *map)
{
    for (guint i = 1; i < reader->elements->len; i++) {
        if (!span_eq(element_at(reader, i)->tag, SPAN("TestCase")))
            continue;
        guint end = subtree_end(reader, i);
        for (guint k = i + 1; k < end; k++)
            if (span_eq(element_at(reader, k)->tag, SPAN("SubCase")))
                record_subcase(reader, i, k, map);
    }
}

static void doctest_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    const Span end_tag = SPAN("</doctest>");
    gssize start = span_find(log, SPAN("<doctest"), 0);
    if (start < 0)
        return;
    gssize end = span_find(log, end_tag, (gsize)start);
    g_autoptr(GArray) elements = g_array_new(FALSE, FALSE, sizeof(Element));
    g_array_set_clear_func(elements, element_clear);
    g_autoptr(GArray) open = g_array_new(FALSE, FALSE, sizeof(guint));
    Reader reader = {.elements = elements, .open = open};
    if (end >= 0)
        reader.text = span_slice(log, (gsize)start, (gsize)end + end_tag.len);
    if (end < 0 || !read_document(&reader)) {
        log_context_raise(ctx, "doctest: the report is not well-formed XML");
        return;
    }
    record_all(&reader, map);
}

const LogParser log_parsers_doctest[] = {
    {"doctest", doctest_parse, .repos = (const char *const[]){"nlohmann/json", NULL}},
    {0},
};
