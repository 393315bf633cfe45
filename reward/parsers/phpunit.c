/*
 * PHPUnit's --testdox: a suite line, then one marked line per test.
 *
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/php.py. Before the first suite line the suite's
 * name is the word None.
 */
#include "reward/log_parser.h"

static Span mark_status(Span mark)
{
    if (span_eq(mark, SPAN("✔")))
        return STATUS_PASSED;
    return span_eq(mark, SPAN("✘")) ? STATUS_FAILED : STATUS_SKIPPED;
}

static void phpunit_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static Regex suite_re = {.pattern = "^(\\w.+) \\(.+\\)$"};
    static Regex test_re = {.pattern = "^\\s*([✔✘↩])\\s*(.*)$"};
    (void)self;
    Span suite = SPAN("None"), line;
    while (span_cut(&log, '\n', &line)) {
        Match m;
        if (regex_match(&suite_re, line, &ctx->gave_up, &m)) {
            suite = m.group[1];
            continue;
        }
        if (!regex_match(&test_re, line, &ctx->gave_up, &m))
            continue;
        AUTO_GSTRING name = g_string_new(NULL);
        span_append(name, suite);
        g_string_append(name, " > ");
        span_append(name, m.group[2]);
        status_map_set(map, span_gstring(name), mark_status(m.group[1]));
    }
}

const LogParser log_parsers_phpunit[] = {
    {"phpunit", phpunit_parse,
     .repos = (const char *const[]){"phpoffice/phpspreadsheet", "laravel/framework",
                                    "php-cs-fixer/php-cs-fixer", "briannesbitt/carbon", NULL}},
    {0},
};
