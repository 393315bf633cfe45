/*
 * Python's JSON form. jansson's own writer differs: upper-case escapes, U+007F left bare.
 *
 * Not here: reading (base/json.c).
 */
#include "reward/pyjson.h"

#include "reward/text.h"

typedef struct Writer {
    GString *out;
    guint indent;
    guint depth;
} Writer;

static void write_value(Writer *writer, const json_t *value);

static void write_char(GString *out, gunichar c)
{
    static const char shorts[] = {['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f',
                                  ['\r'] = 'r', ['"'] = '"',  ['\\'] = '\\'};
    if (c < sizeof shorts && shorts[c] != '\0')
        g_string_append_printf(out, "\\%c", shorts[c]);
    else if (c >= 0x20 && c < 0x7F)
        g_string_append_c(out, (char)c);
    else if (c < 0x10000)
        g_string_append_printf(out, "\\u%04x", c);
    else
        g_string_append_printf(out, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
                               0xDC00 + ((c - 0x10000) & 0x3FF));
}

static void write_string(Writer *writer, const char *text, gsize len)
{
    g_string_append_c(writer->out, '"');
    for (const char *p = text; p < text + len; p = text_next(p))
        write_char(writer->out, g_utf8_get_char(p));
    g_string_append_c(writer->out, '"');
}

static void write_break(Writer *writer)
{
    if (writer->indent == 0)
        return;
    g_string_append_c(writer->out, '\n');
    for (guint i = 0; i < writer->indent * writer->depth; i++)
        g_string_append_c(writer->out, ' ');
}

/* Between two items: "," and a new line, or ", ". */
static void write_comma(Writer *writer)
{
    g_string_append(writer->out, writer->indent == 0 ? ", " : ",");
    write_break(writer);
}

static void write_array(Writer *writer, const json_t *array)
{
    g_string_append_c(writer->out, '[');
    gsize i;
    const json_t *item;
    writer->depth++;
    json_array_foreach(array, i, item)
    {
        if (i == 0)
            write_break(writer);
        else
            write_comma(writer);
        write_value(writer, item);
    }
    writer->depth--;
    if (json_array_size(array) > 0)
        write_break(writer);
    g_string_append_c(writer->out, ']');
}

static void write_object(Writer *writer, const json_t *object)
{
    json_t *value = NULL, *mutable = json_incref((json_t *)(gsize)object);
    const char *key;
    gsize len;
    gboolean first = TRUE;
    g_string_append_c(writer->out, '{');
    writer->depth++;
    json_object_keylen_foreach(mutable, key, len, value)
    {
        if (first)
            write_break(writer);
        else
            write_comma(writer);
        first = FALSE;
        write_string(writer, key, len);
        g_string_append(writer->out, ": ");
        write_value(writer, value);
    }
    writer->depth--;
    if (!first)
        write_break(writer);
    g_string_append_c(writer->out, '}');
    json_decref(mutable);
}

static void write_value(Writer *writer, const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        write_object(writer, value);
        return;
    case JSON_ARRAY:
        write_array(writer, value);
        return;
    case JSON_STRING:
        write_string(writer, json_string_value(value), json_string_length(value));
        return;
    case JSON_INTEGER:
        g_string_append_printf(writer->out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return;
    case JSON_TRUE:
    case JSON_FALSE:
        g_string_append(writer->out, json_is_true(value) ? "true" : "false");
        return;
    case JSON_NULL:
        g_string_append(writer->out, "null");
        return;
    case JSON_REAL:
    default:
        g_assert_not_reached();
    }
}

char *pyjson_dump(const json_t *value, guint indent)
{
    Writer writer = {.out = g_string_new(NULL), .indent = indent};
    write_value(&writer, value);
    return g_string_free(writer.out, FALSE);
}
