/*
 * Repair rows as diff, locate and test tasks.
 *
 * Invariant: what is taken from the driver is what repair_row.c wrote there; a row of any other
 * shape is left alone.
 */
#include "tasks/repair_kind.h"

#include "tasks/test_call.h"

#include <string.h>

static const char *text_at(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

/* ---- diff ---- */

static gboolean make_diff(json_t *row)
{
    const char *from = strstr(text_at(row, "patch"), "--- ");
    if (from == NULL)
        return FALSE;
    g_autofree char *solution = g_strdup_printf("```diff\n%s```", from);
    return json_object_set_new(row, "solution", json_string(solution)) == 0;
}

/* ---- locate ---- */

static gboolean make_locate(json_t *row)
{
    const json_t *repair = json_object_get(row, "repair");
    g_autoptr(json_t) lines = json_array();
    g_autoptr(GString) solution = g_string_new(NULL);
    gint64 last = 0;
    gsize i;
    const json_t *edit;
    json_array_foreach(json_object_get(repair, "edits"), i, edit)
    {
        gint64 line = json_integer_value(json_object_get(edit, "line"));
        g_autofree char *name =
            g_strdup_printf("%s:%" G_GINT64_FORMAT, text_at(repair, "path"), line);
        if (line == last) /* two edits of one line */
            continue;
        last = line;
        json_array_append_new(lines, json_string(name));
        g_string_append_printf(solution, "%s%s", i > 0 ? "\n" : "", name);
    }
    json_object_set_new(row, "locate", json_pack("{s:O, s:s}", "lines", lines, "score", "f1"));
    return json_object_set_new(row, "solution", json_string(solution->str)) == 0;
}

/* ---- test ---- */

/* What stands round a call in the drivers of repair_row.c. */
static const struct {
    const char *language, *before, *after;
} forms[] = {
    {"c", "    { I(", "); }\n    dprintf(1, \"%s\\n\", got);\n"},
    {"python", "print(value_of(lambda: ", "), flush=True)\n"},
};

/* Cuts the next call off the front; NULL: there is none. */
static char *call_next(const char **at, const char *before, const char *after)
{
    const char *end = g_str_has_prefix(*at, before) ? strstr(*at, after) : NULL;
    if (end == NULL || memchr(*at, '\n', (gsize)(end - *at)) != NULL)
        return NULL;
    const char *from = *at + strlen(before);
    *at = end + strlen(after);
    return g_strndup(from, end - from);
}

static gboolean is_failing(const json_t *row, gsize call)
{
    g_autofree char *name = g_strdup_printf("call_%zu", call + 1);
    gsize i;
    const json_t *failing;
    json_array_foreach(json_object_get(row, "FAIL_TO_PASS"), i, failing)
    {
        if (g_str_equal(json_string_value(failing), name))
            return TRUE;
    }
    return FALSE;
}

static gboolean make_test(json_t *row)
{
    const json_t *calls = json_object_get(row, "calls"), *expected;
    if (calls == NULL) /* a function without tests */
        return FALSE;
    const char *driver = text_at(calls, "driver");
    gsize form = g_str_equal(text_at(calls, "language"), "python");
    const char *before = forms[form].before, *after = forms[form].after;
    const char *first = strstr(driver, before), *at = first;
    g_autofree char *solution = NULL, *name = NULL, *shape = NULL;
    expected = json_object_get(calls, "expected");
    for (gsize i = 0; i < json_array_size(expected); i++) {
        g_autofree char *call = at != NULL ? call_next(&at, before, after) : NULL;
        if (call == NULL)
            return FALSE;
        if (name == NULL)
            name = g_strndup(call, strcspn(call, "("));
        if (solution == NULL && is_failing(row, i) &&
            (shape = test_call_shape(call, name, form == 1)) != NULL)
            solution =
                g_strdup_printf("%s => %s", call, json_string_value(json_array_get(expected, i)));
    }
    if (solution == NULL)
        return FALSE;
    g_autofree char *head = g_strndup(driver, first - driver);
    json_object_set_new(row, "harness",
                        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "call", name, "shape", shape,
                                  "head", head, "before", before, "after", after, "tail", at));
    return json_object_set_new(row, "solution", json_string(solution)) == 0;
}

/* ---- the table ---- */

static const struct {
    const char *kind;
    gboolean (*make)(json_t *row);
} kinds[] = {{"diff", make_diff}, {"locate", make_locate}, {"test", make_test}};

gboolean repair_has_kind(const char *kind)
{
    for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (g_str_equal(kinds[i].kind, kind))
            return TRUE;
    return FALSE;
}

gboolean repair_kind_apply(json_t *row, const char *kind)
{
    g_autofree char *id = g_strdup_printf("%s-%s", kind, text_at(row, "instance_id"));
    for (gsize i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (g_str_equal(kinds[i].kind, kind) && kinds[i].make(row)) {
            json_object_set_new(row, "kind", json_string(kind));
            json_object_set_new(row, "instance_id", json_string(id));
            return TRUE;
        }
    return FALSE;
}
