/*
 * Karma's mocha reporter: an indented outline of suites with ✔ and ✖ lines.
 *
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/javascript.py. The original pops one suite per
 * line that is less indented, and throws when there is none left.
 */
#include "reward/log_parser.h"

typedef struct Karma {
    GPtrArray *suites; /* char * */
    gssize indent;     /* of the last suite line, in characters; -1 before the first */
    gboolean started;
} Karma;

static void karma_result(const Karma *karma, Span mark, Span name, StatusMap *map)
{
    AUTO_GSTRING full = g_string_new(NULL);
    for (guint i = 0; i < karma->suites->len; i++) {
        const GString *suite = g_ptr_array_index(karma->suites, i);
        span_append(full, span_gstring(suite));
        g_string_append(full, " > ");
    }
    span_append(full, name);
    status_map_set(map, span_gstring(full),
                   span_eq(mark, SPAN("✔")) ? STATUS_PASSED : STATUS_FAILED);
}

static void karma_suite(Karma *karma, Span indent, Span name, LogContext *ctx)
{
    gssize chars = (gssize)span_chars(indent);
    if (chars > karma->indent)
        g_ptr_array_add(karma->suites, g_string_new_len(name.ptr, (gssize)name.len));
    else if (chars < karma->indent && karma->suites->len == 0)
        log_context_raise(ctx, "karma: a suite line that closes more suites than are open");
    else if (chars < karma->indent)
        g_ptr_array_set_size(karma->suites, (gint)karma->suites->len - 1);
    karma->indent = chars;
}

static void karma_line(Karma *karma, Span line, LogContext *ctx, StatusMap *map)
{
    static Regex line_re = {.pattern = "^(\\s*)?([✔✖])?\\s(.*)$"};
    if (span_has(line, SPAN("Starting browser"))) {
        karma->started = TRUE;
        return;
    }
    Match m;
    if (!karma->started || !regex_match(&line_re, line, &ctx->gave_up, &m))
        return;
    if (m.group[2].ptr != NULL)
        karma_result(karma, m.group[2], m.group[3], map);
    else if (m.group[1].len > 0)
        karma_suite(karma, m.group[1], m.group[3], ctx);
}

static void gstring_free(gpointer string)
{
    g_string_free(string, TRUE);
}

static void karma_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    g_autoptr(GPtrArray) suites = g_ptr_array_new_with_free_func(gstring_free);
    Karma karma = {.suites = suites, .indent = -1};
    Span line;
    while (ctx->raised == NULL && span_cut(&log, '\n', &line)) {
        if (span_starts(line, SPAN("SUMMARY:")))
            return;
        karma_line(&karma, line, ctx, map);
    }
}

const LogParser log_parsers_karma[] = {
    {"karma", karma_parse, .repos = (const char *const[]){"preactjs/preact", NULL}},
    {0},
};
