/*
 * SymPy's own runner: `bin/test -C --verbose`.
 *
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/python.py. The header pattern is
 * `(_*) (.*)\.py:(.*) (_*)` over the whole text; it is matched by hand because it backtracks over
 * every space of a line. Within one line its greedy match is: the first space, the last ".py:"
 * that has a space after it, the last space. No second match fits on the line.
 */
#include "reward/log_parser.h"

#include <string.h>

#define SUFFIX ".py:"

static void header_line(Span line, StatusMap *map)
{
    gssize first = span_find(line, SPAN(" "), 0), last = span_rfind(line, SPAN(" "));
    if (first < 0)
        return;
    Span middle = span_slice(line, (gsize)first, (gsize)last);
    gssize suffix = span_rfind(middle, SPAN(SUFFIX));
    if (suffix < 1)
        return;
    gsize at = (gsize)first + (gsize)suffix;
    AUTO_GSTRING name = g_string_new(NULL);
    span_append(name, span_slice(line, (gsize)first + 1, at));
    g_string_append(name, SUFFIX);
    span_append(name, span_slice(line, at + strlen(SUFFIX), (gsize)last));
    status_map_set(map, span_gstring(name), STATUS_FAILED);
}

static void result_line(Span line, StatusMap *map)
{
    static const struct {
        const char *ending, *status;
    } endings[] = {{" E", "ERROR"}, {" F", "FAILED"}, {" ok", "PASSED"}};

    line = span_strip(line);
    if (!span_starts(line, SPAN("test_")))
        return;
    for (gsize i = 0; i < G_N_ELEMENTS(endings); i++) {
        Span name;
        if (span_ends(line, span_of(endings[i].ending)) && span_words(line, &name, 1) == 1)
            status_map_set(map, name, span_of(endings[i].status));
    }
}

static void sympy_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    (void)ctx;
    Span line;
    for (Span rest = log; span_cut(&rest, '\n', &line);)
        header_line(line, map);
    for (Span rest = log; span_cut(&rest, '\n', &line);)
        result_line(line, map);
}

const LogParser log_parsers_sympy[] = {
    {"sympy", sympy_parse, .repos = (const char *const[]){"sympy/sympy", NULL}},
    {0},
};
