/*
 * Reporters that draw an indented outline: suites by indentation, marked lines for tests.
 *
 * Invariants: the stack holds suites of rising indentation; a suite line closes every suite that
 * is not less indented than itself.
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/javascript.py.
 */
#include "reward/parsers/ansi.h"

#include <string.h>

typedef struct Suite {
    Span name;
    gsize indent; /* characters */
} Suite;

static void outline_suite(GArray *suites, Span line)
{
    Suite suite = {span_strip(line), span_indent(line)};
    while (suites->len > 0 && g_array_index(suites, Suite, suites->len - 1).indent >= suite.indent)
        g_array_set_size(suites, suites->len - 1);
    g_array_append_val(suites, suite);
}

/* The suites' names and then `name`, with `sep` between. */
static GString *outline_name(const GArray *suites, Span name, const char *sep)
{
    GString *full = g_string_new(NULL);
    for (guint i = 0; i < suites->len; i++) {
        span_append(full, g_array_index(suites, Suite, i).name);
        g_string_append(full, sep);
    }
    span_append(full, name);
    return full;
}

static void outline_record(const GArray *suites, Span name, Span status, StatusMap *map)
{
    AUTO_GSTRING full = outline_name(suites, name, " - ");
    status_map_set(map, span_gstring(full), status);
}

/* ---- wp-calypso: jest --verbose, several commands in one log ---- */

typedef struct CalypsoMark {
    const char *mark;
    Regex timed, untimed;
    const char *status;
} CalypsoMark;

static CalypsoMark calypso_marks[] = {
    {"✓", {.pattern = "^\\s+✓\\s(.*)\\(\\d+ms\\)$"}, {.pattern = "^\\s+✓\\s(.*)"}, "PASSED"},
    {"✕", {.pattern = "^\\s+✕\\s(.*)\\(\\d+ms\\)$"}, {.pattern = "^\\s+✕\\s(.*)"}, "FAILED"},
};

static CalypsoMark *calypso_mark(Span line)
{
    Span text = span_strip(line);
    for (gsize i = 0; i < G_N_ELEMENTS(calypso_marks); i++)
        if (span_starts(text, span_of(calypso_marks[i].mark)))
            return &calypso_marks[i];
    return NULL;
}

static void calypso_result(CalypsoMark *mark, const GArray *suites, Span line, LogContext *ctx,
                           StatusMap *map)
{
    static Regex timing_re = {.pattern = "\\(\\d+ms\\)"};
    gboolean timed = regex_search(&timing_re, line, 0, &ctx->gave_up, NULL);
    Match m;
    if (!regex_match(timed ? &mark->timed : &mark->untimed, line, &ctx->gave_up, &m)) {
        log_context_raise(ctx, "calypso: a marked line of an unknown form");
        return;
    }
    AUTO_GSTRING full = outline_name(suites, m.group[1], " - ");
    if (suites->len == 0)
        g_string_prepend(full, " - ");
    status_map_set(map, span_strip(span_gstring(full)), span_of(mark->status));
}

static void calypso_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    g_autoptr(GArray) suites = g_array_new(FALSE, FALSE, sizeof(Suite));
    Span command = SPAN(" ./node_modules/.bin/jest "), piece, line;
    for (gboolean first = TRUE; span_cut_str(&log, command, &piece); first = FALSE) {
        while (!first && ctx->raised == NULL && span_cut(&piece, '\n', &line)) {
            CalypsoMark *mark = calypso_mark(line);
            if (span_starts(line, SPAN("Test Suites")) || span_starts(line, SPAN("  ● ")))
                break;
            if (mark != NULL)
                calypso_result(mark, suites, line, ctx, map);
            else if (span_indent(line) > 0)
                outline_suite(suites, line);
        }
    }
}

/* ---- alibaba next: karma under xvfb-run, or (1.27) cypress ---- */

static gboolean next_is_noise(Span line)
{
    static const char *const noise[] = {"ERROR", "LOG", "WARN", "Check", "in"};
    Span text = span_strip(line);
    for (gsize i = 0; i < G_N_ELEMENTS(noise); i++)
        if (span_starts(text, span_of(noise[i])))
            return TRUE;
    return FALSE;
}

static void next_line(GArray *suites, Span line, StatusMap *map)
{
    Span name;
    if (next_is_noise(line))
        return;
    span_split_once(line, SPAN("✗"), NULL, &name);
    if (name.ptr != NULL) {
        outline_record(suites, span_lstrip(name), STATUS_FAILED, map);
        return;
    }
    span_split_once(line, SPAN("✓"), NULL, &name);
    if (name.ptr != NULL)
        outline_record(suites, span_lstrip(name), STATUS_PASSED, map);
    else if (span_indent(line) > 0)
        outline_suite(suites, line);
}

static void next_karma(Span log, LogContext *ctx, StatusMap *map)
{
    static Regex block_re = {.pattern = "AssertionError:\\s+#([\\s\\S]*?)\\n\\n",
                             .flags = REGEX_DOTALL};
    g_autoptr(GArray) suites = g_array_new(FALSE, FALSE, sizeof(Suite));
    AUTO_GSTRING plain = ansi_drop(log, &ctx->gave_up);
    AUTO_GSTRING text = regex_replace(&block_re, span_gstring(plain), SPAN(""), &ctx->gave_up);
    Span rest = span_gstring(text), piece, line;
    for (gboolean first = TRUE; span_cut_str(&rest, SPAN(" xvfb-run "), &piece); first = FALSE) {
        piece = span_after_last(piece, SPAN("Starting browser Chrome"));
        while (!first && span_cut(&piece, '\n', &line)) {
            if (span_starts(line, SPAN("TOTAL")))
                break;
            next_line(suites, line, map);
        }
    }
}

static void next_record(Regex *regex, Span suite, Span text, Span status, LogContext *ctx,
                        StatusMap *map)
{
    Match m;
    gsize pos = 0;
    while (regex_next(regex, text, &pos, &ctx->gave_up, &m)) {
        AUTO_GSTRING name = g_string_new(NULL);
        span_append(name, suite);
        g_string_append(name, ": ");
        span_append(name, span_strip(m.group[1]));
        status_map_set(map, span_gstring(name), status);
    }
}

static void next_cypress(Span log, LogContext *ctx, StatusMap *map)
{
    static Regex suite_re = {.pattern = "Running\\:(.*)\\)\\n{3}\\s{2}(.*)\\n"};
    static Regex failure_re = {.pattern = "^\\s{4}\\d+\\)\\s(.*)", .flags = REGEX_MULTILINE};
    static Regex success_re = {.pattern = "^\\s{4}✓\\s(.*)\\(", .flags = REGEX_MULTILINE};
    Match m;
    gsize pos = 0;
    gboolean more = regex_next(&suite_re, log, &pos, &ctx->gave_up, &m);
    while (more) {
        Span suite = m.group[2];
        gsize start = pos;
        more = regex_next(&suite_re, log, &pos, &ctx->gave_up, &m);
        gsize end = more ? (gsize)(m.group[0].ptr - log.ptr) : log.len;
        Span text = span_slice(log, start, end);
        next_record(&failure_re, suite, text, STATUS_FAILED, ctx, map);
        next_record(&success_re, suite, text, STATUS_PASSED, ctx, map);
    }
}

static void next_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    if (g_strcmp0(ctx->repo_version, "1.27") == 0)
        next_cypress(log, ctx, map);
    else
        next_karma(log, ctx, map);
}

/* ---- lighthouse 9.5 to 10.2: mocha's spec reporter, several runs in one log ---- */

static gboolean mocha_result(const GArray *suites, Span text, LogContext *ctx, StatusMap *map)
{
    static struct {
        Regex line;
        const char *status;
    } forms[] = {
        {{.pattern = "✔\\s(.*)\\s\\(\\d+m+s\\)"}, "PASSED"},
        {{.pattern = "✔\\s(.*)"}, "PASSED"},
        {{.pattern = "\\d+\\)\\s(.*)\\s\\(\\d+m+s\\)"}, "FAILED"},
        {{.pattern = "\\d+\\)\\s(.*)"}, "FAILED"},
    };
    Match m;
    for (gsize i = 0; i < G_N_ELEMENTS(forms); i++) {
        if (!regex_match(&forms[i].line, text, &ctx->gave_up, &m))
            continue;
        outline_record(suites, m.group[1], span_of(forms[i].status), map);
        return TRUE;
    }
    return FALSE;
}

static void mocha_run(Span run, LogContext *ctx, StatusMap *map)
{
    static Regex passing_re = {.pattern = "\\d+\\spassing"};
    g_autoptr(GArray) suites = g_array_new(FALSE, FALSE, sizeof(Suite));
    Match m;
    if (regex_search(&passing_re, run, 0, &ctx->gave_up, &m))
        run.len = (gsize)(m.group[0].ptr - run.ptr);
    run = span_strip(run);
    Span line;
    while (span_cut(&run, '\n', &line))
        if (!mocha_result(suites, span_strip(line), ctx, map) && span_indent(line) > 0)
            outline_suite(suites, line);
}

static void lighthouse_mocha_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static Regex run_re = {.pattern = "running\\s\\d+\\stest\\sfiles"};
    (void)self;
    Match m;
    gsize pos = 0;
    gboolean more = regex_next(&run_re, log, &pos, &ctx->gave_up, &m);
    while (more) {
        gsize start = pos;
        more = regex_next(&run_re, log, &pos, &ctx->gave_up, &m);
        gsize end = more ? (gsize)(m.group[0].ptr - log.ptr) : log.len;
        mocha_run(span_slice(log, start, end), ctx, map);
    }
}

/* ---- plotly.js: "- suite :" and "* test : status"; closing one suite closes all ---- */

static gboolean plotly_is_pass(Span status)
{
    AUTO_GSTRING lower = g_string_new(NULL);
    for (const char *p = status.ptr; p < status.ptr + status.len; p = text_next(p))
        g_string_append_unichar(lower, g_unichar_tolower(g_utf8_get_char(p)));
    return span_has(span_gstring(lower), SPAN("ok")) &&
           !span_has(span_gstring(lower), SPAN("failed"));
}

static void plotly_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static Regex suite_re = {.pattern = "(\\s+)-\\s+(.*?)\\s+:"};
    static Regex test_re = {.pattern = "(\\s+)\\*\\s+(.*?)\\s+:\\s*(.*)"};
    (void)self;
    g_autoptr(GArray) suites = g_array_new(FALSE, FALSE, sizeof(Suite));
    gsize depth = 0;
    Span line;
    while (span_cut(&log, '\n', &line)) {
        Match m;
        gboolean is_suite = regex_match(&suite_re, line, &ctx->gave_up, &m);
        if (!is_suite && !regex_match(&test_re, line, &ctx->gave_up, &m))
            continue;
        gsize indent = span_chars(m.group[1]);
        if (indent <= depth)
            g_array_set_size(suites, 0);
        if (is_suite) {
            Suite suite = {m.group[2], indent};
            g_array_append_val(suites, suite);
            depth = indent;
            continue;
        }
        AUTO_GSTRING full = outline_name(suites, m.group[2], ".");
        status_map_set(map, span_gstring(full),
                       plotly_is_pass(m.group[3]) ? STATUS_PASSED : STATUS_FAILED);
    }
}

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

const LogParser log_parsers_outline[] = {
    {"calypso", calypso_parse, .repos = NAMES("Automattic/wp-calypso")},
    {"next", next_parse, .repos = NAMES("alibaba-fusion/next")},
    {"lighthouse_mocha", lighthouse_mocha_parse},
    {"plotly_js", plotly_parse, .repos = NAMES("plotly/plotly.js")},
    {0},
};
