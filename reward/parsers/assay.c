/*
 * Parsers for Assay's own tasks: plain C programs, TAP as shells print it, Python's unittest.
 * They have no counterpart in SWE-bench.
 *
 * Invariants: a name keeps its first form, without numbers and timings that change between runs;
 * a unittest result that never came is recorded as ERROR, not left out.
 */
#include "reward/parsers/line_rules.h"

static LineRules plain = {
    .line = {.pattern = "^(PASS|FAIL|SKIP|ERROR|XFAIL):?\\s+(.+)$"},
    .name_group = 2,
    .status_group = 1,
    .flags = LINE_RAW | LINE_NAME_STRIP,
    .words = {{"PASS", "PASSED"},
              {"FAIL", "FAILED"},
              {"SKIP", "SKIPPED"},
              {"ERROR", "ERROR"},
              {"XFAIL", "XFAIL"}},
};

/* ---- TAP 13 and 14, top level only ---- */

static Span tap_status(gboolean ok, Span directive)
{
    if (directive.len > 0 && g_ascii_tolower(directive.ptr[0]) == 's')
        return STATUS_SKIPPED;
    if (directive.len > 0 && !ok)
        return STATUS_XFAIL;
    return ok ? STATUS_PASSED : STATUS_FAILED;
}

static void tap_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static Regex line_re = {.pattern = "^(ok|not ok)\\b\\s*(\\d*)\\s*(?:-\\s*)?(.*)$"};
    static Regex directive_re = {.pattern = "\\s*#\\s*([Ss][Kk][Ii][Pp]|[Tt][Oo][Dd][Oo])\\b"};
    (void)self;
    Span line;
    while (span_cut(&log, '\n', &line)) {
        Match m, directive = {0};
        if (!regex_match(&line_re, line, &ctx->gave_up, &m))
            continue;
        Span name = m.group[3];
        if (regex_search(&directive_re, name, 0, &ctx->gave_up, &directive))
            name.len = (gsize)(directive.group[0].ptr - name.ptr);
        name = span_strip(name);
        if (name.len == 0)
            name = m.group[2];
        status_map_set(map, name, tap_status(span_eq(m.group[1], SPAN("ok")), directive.group[1]));
    }
}

/* ---- python -m unittest -v ---- */

static const struct {
    const char *word, *status;
} unittest_words[] = {
    {"ok", "PASSED"},
    {"FAIL", "FAILED"},
    {"ERROR", "ERROR"},
    {"expected failure", "XFAIL"},
    {"unexpected success", "FAILED"},
};

static Span unittest_status(Span word)
{
    word = span_strip(word);
    if (span_starts(word, SPAN("skipped")))
        return STATUS_SKIPPED;
    for (gsize i = 0; i < G_N_ELEMENTS(unittest_words); i++)
        if (span_eq(word, span_of(unittest_words[i].word)))
            return span_of(unittest_words[i].status);
    return (Span){NULL, 0};
}

typedef struct Unittest {
    Span id;         /* the last "test_x (mod.Cls...)" line, for tests with a docstring */
    Span unfinished; /* its dots came, its word not yet */
} Unittest;

static void unittest_line(Unittest *state, Span line, LogContext *ctx, StatusMap *map)
{
    static Regex id_re = {.pattern = "^(\\w+ \\([\\w\\.]+\\))"};
    static Regex report_re = {.pattern = "^(FAIL|ERROR): (\\w+ \\([\\w\\.<>]+\\))"};
    Match m;
    if (regex_match(&report_re, line, &ctx->gave_up, &m)) {
        Span name = m.group[2];
        status_map_set(map, name, span_eq(m.group[1], SPAN("FAIL")) ? STATUS_FAILED : STATUS_ERROR);
        return;
    }
    if (regex_match(&id_re, line, &ctx->gave_up, &m))
        state->id = m.group[1];

    gssize dots = span_find(line, SPAN(" ... "), 0);
    Span status = {NULL, 0};
    if (dots >= 0 && state->id.ptr != NULL) {
        status = unittest_status(span_after_last(line, SPAN(" ... ")));
        state->unfinished = state->id;
        state->id = (Span){NULL, 0};
    } else if (state->unfinished.ptr != NULL) {
        status = unittest_status(line);
    }
    if (state->unfinished.ptr == NULL)
        return;
    if (status.ptr == NULL && dots < 0)
        return;
    status_map_set(map, state->unfinished, status.ptr == NULL ? STATUS_ERROR : status);
    if (status.ptr != NULL)
        state->unfinished = (Span){NULL, 0};
}

static void unittest_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    Unittest state = {0};
    Span line;
    while (span_cut(&log, '\n', &line))
        unittest_line(&state, line, ctx, map);
}

const LogParser log_parsers_assay[] = {
    {"assay_plain", line_rules_parse, &plain},
    {"assay_tap", tap_parse},
    {"unittest", unittest_parse},
    {0},
};
