/*
 * highlight.js: mocha's spec reporter, read up to its "N passing" summary.
 *
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/javascript.py. Any other line that starts with
 * two spaces becomes the one suite name; deeper suites never stack there.
 */
#include "reward/log_parser.h"

#define TICK       SPAN("✓")
#define HEAVY_TICK SPAN("✔")

static void record(Span suite, Span name, Span status, LogContext *ctx, StatusMap *map)
{
    static Regex timing_re = {.pattern = "\\(\\d+ms\\)"};
    AUTO_GSTRING bare = regex_replace(&timing_re, name, SPAN(""), &ctx->gave_up);
    AUTO_GSTRING full = g_string_new(NULL);
    if (suite.ptr != NULL) {
        span_append(full, suite);
        g_string_append_c(full, '.');
    }
    span_append(full, span_strip(span_gstring(bare)));
    status_map_set(map, span_gstring(full), status);
}

static void highlightjs_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static Regex summary_re = {.pattern = "\\n[ \\t]*\\d+ passing"};
    static Regex failure_re = {.pattern = "^\\d+\\)"};
    (void)self;
    Match m;
    if (regex_search(&summary_re, log, 0, &ctx->gave_up, &m))
        log.len = (gsize)(m.group[0].ptr - log.ptr);

    Span suite = {NULL, 0}, line, name;
    while (span_cut(&log, '\n', &line)) {
        Span text = span_strip(line);
        if (span_starts(text, TICK) || span_starts(text, HEAVY_TICK)) {
            span_split_once(line, span_starts(text, TICK) ? TICK : HEAVY_TICK, NULL, &name);
            record(suite, name, STATUS_PASSED, ctx, map);
        } else if (regex_match(&failure_re, text, &ctx->gave_up, NULL)) {
            span_split_once(line, SPAN(")"), NULL, &name);
            record(suite, name, STATUS_FAILED, ctx, map);
        } else if (span_starts(line, SPAN("  "))) {
            suite = text.len == 0 ? SPAN("") : text;
        }
    }
}

const LogParser log_parsers_highlightjs[] = {
    {"highlightjs", highlightjs_parse,
     .repos = (const char *const[]){"highlightjs/highlight.js", NULL}},
    {0},
};
