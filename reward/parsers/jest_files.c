/*
 * Jest without --verbose: one PASS or FAIL line per test file.
 *
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/javascript.py. `carbon` reads line by line;
 * `grommet` and `emotion` read the whole text, all FAIL lines before all PASS lines.
 */
#include "reward/log_parser.h"

static void carbon_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static struct {
        Regex line;
        const char *status;
    } forms[] = {
        {{.pattern = "^PASS\\s(.*)\\s\\([\\d\\.]+ms\\)"}, "PASSED"},
        {{.pattern = "^PASS\\s(.*)\\s\\([\\d\\.]+\\ss\\)"}, "PASSED"},
        {{.pattern = "^PASS\\s(.*)\\s\\([\\d\\.]+s\\)"}, "PASSED"},
        {{.pattern = "^PASS\\s(.*)"}, "PASSED"},
        {{.pattern = "^FAIL\\s(.*)\\s\\([\\d\\.]+ms\\)"}, "FAILED"},
        {{.pattern = "^FAIL\\s(.*)\\s\\([\\d\\.]+\\ss\\)"}, "FAILED"},
        {{.pattern = "^FAIL\\s(.*)\\s\\([\\d\\.]+s\\)"}, "FAILED"},
        {{.pattern = "^FAIL\\s(.*)"}, "FAILED"},
    };
    (void)self;
    Span line;
    while (span_cut(&log, '\n', &line)) {
        if (!span_starts(line, SPAN("PASS")) && !span_starts(line, SPAN("FAIL")))
            continue;
        Match m;
        for (gsize i = 0; i < G_N_ELEMENTS(forms); i++) {
            if (!regex_match(&forms[i].line, line, &ctx->gave_up, &m))
                continue;
            status_map_set(map, m.group[1], span_of(forms[i].status));
            break;
        }
    }
}

static void record_all(Regex *regex, gboolean drop_timing, Span status, Span log, LogContext *ctx,
                       StatusMap *map)
{
    static Regex timing_re = {.pattern = "\\s\\([\\d\\.]+\\s?(?:ms|s)\\)$"};
    Match m, timing;
    gsize pos = 0;
    while (regex_next(regex, log, &pos, &ctx->gave_up, &m)) {
        Span name = span_strip(m.group[1]);
        if (drop_timing && regex_search(&timing_re, name, 0, &ctx->gave_up, &timing))
            name.len = (gsize)(timing.group[0].ptr - name.ptr);
        status_map_set(map, name, status);
    }
}

static void whole_text_parse(Span log, gboolean drop_timing, LogContext *ctx, StatusMap *map)
{
    static Regex fail_re = {.pattern = "^FAIL\\s(.*)", .flags = REGEX_MULTILINE};
    static Regex pass_re = {.pattern = "^PASS\\s(.*)", .flags = REGEX_MULTILINE};
    record_all(&fail_re, drop_timing, STATUS_FAILED, log, ctx, map);
    record_all(&pass_re, drop_timing, STATUS_PASSED, log, ctx, map);
}

static void grommet_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    whole_text_parse(log, TRUE, ctx, map);
}

static void emotion_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    whole_text_parse(log, FALSE, ctx, map);
}

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

const LogParser log_parsers_jest_files[] = {
    {"carbon", carbon_parse, NULL, NAMES("react_pdf", "scratch_gui", "lighthouse_jest", "prettier"),
     NAMES("diegomura/react-pdf", "carbon-design-system/carbon", "prettier/prettier",
           "scratchfoundation/scratch-gui")},
    {"grommet", grommet_parse, .repos = NAMES("grommet/grommet")},
    {"emotion", emotion_parse, .repos = NAMES("emotion-js/emotion")},
    {0},
};
