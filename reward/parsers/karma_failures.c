/*
 * Runners whose logs name only the tests that failed: every match of a few patterns over the
 * whole text. Graded fail_only.
 *
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/javascript.py.
 */
#include "reward/parsers/ansi.h"

typedef enum FailureFlag {
    FAILURE_ANSI = 1 << 0,     /* drop terminal escapes first */
    FAILURE_COLLAPSE = 1 << 1, /* runs of white space become one space, ends stripped */
} FailureFlag;

typedef struct FailureRules {
    guint flags;
    struct {
        Regex regex;
        guint name_group;
    } patterns[5];
} FailureRules;

static FailureRules bpmn_js = {
    .patterns =
        {
            {{"2KPhantomJS\\s[\\d\\.]+\\s\\(Linux\\s[\\d\\.]+\\)\\s(.*)FAILED\\n", 0, 0}, 1},
            {{"2KPhantomJS\\s[\\d\\.]+\\s\\(Linux\\sx86\\_64\\)\\s(.*)FAILED\\n", 0, 0}, 1},
            {{"Chrome\\sHeadless\\s(.*)\\s\\(Linux\\sx86\\_64\\)\\s(.*)FAILED\\n", 0, 0}, 2},
            {{"HeadlessChrome\\s[\\d\\.]+\\s\\(Linux\\s[\\d\\.]+\\)\\s(.*)FAILED\\n", 0, 0}, 1},
        },
};

static FailureRules openlayers = {
    .flags = FAILURE_COLLAPSE,
    .patterns =
        {
            {{"Chrome\\sHeadless\\s[\\d\\.]+\\s\\(Linux\\s[\\d\\.\\_\\S]+\\)\\s(.*)\\sFAILED\\n",
              REGEX_MULTILINE, 0},
             1},
            {{"Chrome\\s[\\d\\.]+\\s\\(Linux\\s[\\d\\.\\_\\S]+\\)\\s(.*)FAILED\\n", REGEX_MULTILINE,
              0},
             1},
            {{"^\\s{2}\\d+\\)([\\s\\S]*?)Error:", REGEX_MULTILINE, 0}, 1},
            {{"^case\\s(.*):\\smismatch", REGEX_MULTILINE, 0}, 1},
        },
};

static FailureRules eslint = {
    .flags = FAILURE_COLLAPSE,
    .patterns = {{{"(\\s{2}\\d+\\))([\\s\\S]*?)\\s+(?:(.*)Error)", 0, 0}, 2}},
};

static FailureRules chart_js = {
    .flags = FAILURE_ANSI,
    .patterns =
        {
            {{"Chrome\\s[\\d\\.]+[^\\S\\r\\n]\\(.+?\\)[^\\S\\r\\n](.*)FAILED$", REGEX_MULTILINE, 0},
             1},
        },
};

static void failures_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    FailureRules *rules = self->rules;
    AUTO_GSTRING plain = NULL;
    if (rules->flags & FAILURE_ANSI) {
        plain = ansi_drop(log, &ctx->gave_up);
        log = span_gstring(plain);
    }
    for (gsize i = 0; rules->patterns[i].regex.pattern != NULL; i++) {
        Match m;
        gsize pos = 0;
        while (regex_next(&rules->patterns[i].regex, log, &pos, &ctx->gave_up, &m)) {
            Span name = m.group[rules->patterns[i].name_group];
            if (!(rules->flags & FAILURE_COLLAPSE)) {
                status_map_set(map, name, STATUS_FAILED);
                continue;
            }
            AUTO_GSTRING collapsed = span_join_words(name, SPAN(" "));
            status_map_set(map, span_gstring(collapsed), STATUS_FAILED);
        }
    }
}

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

const LogParser log_parsers_karma_failures[] = {
    {"bpmn_js", failures_parse, &bpmn_js, .repos = NAMES("bpmn-io/bpmn-js")},
    {"openlayers", failures_parse, &openlayers, .repos = NAMES("openlayers/openlayers")},
    {"eslint", failures_parse, &eslint, .repos = NAMES("eslint/eslint")},
    {"chart_js", failures_parse, &chart_js, .repos = NAMES("chartjs/Chart.js")},
    {0},
};
