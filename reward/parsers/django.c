/*
 * Django's runner at verbosity 2: "test_x (a.b.C) ... ok", with output that may stand between
 * the dots and the word.
 *
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/python.py.
 */
#include "reward/log_parser.h"

typedef struct DjangoState {
    Span prev; /* what stood before the last " ... "; NULL before the first */
} DjangoState;

static Span before(Span line, Span sep)
{
    Span head;
    span_split_once(line, sep, &head, NULL);
    return head;
}

/* Returns the line, cut by the 7188 rule when that rule fired. */
static Span pass_line(Span line, StatusMap *map)
{
    static const char *const endings[] = {" ... ok", " ... OK", " ...  OK"};
    for (gsize i = 0; i < G_N_ELEMENTS(endings); i++) {
        Span ending = span_of(endings[i]);
        if (!span_ends(line, ending))
            continue;
        if (span_starts(line,
                        SPAN("Applying sites.0002_alter_domain_unique...test_no_migrations"))) {
            Span tail;
            span_split_once(line, SPAN("..."), NULL, &tail);
            line = span_strip(tail);
        }
        status_map_set(map, span_before_last(line, ending), STATUS_PASSED);
        break;
    }
    return line;
}

/* "FAIL: name ..." and "ERROR: name ...": the second word, which the original takes unchecked. */
static void report_line(Span line, Span prefix, Span status, LogContext *ctx, StatusMap *map)
{
    Span words[2];
    if (!span_starts(line, prefix))
        return;
    if (span_words(line, words, 2) == 2)
        status_map_set(map, words[1], status);
    else
        log_context_raise(ctx, "django: a %.*s line without a name", (int)prefix.len, prefix.ptr);
}

static void django_line(DjangoState *state, Span line, LogContext *ctx, StatusMap *map)
{
    line = span_strip(line);
    if (span_has(line, SPAN("--version is equivalent to version")))
        status_map_set(map, SPAN("--version is equivalent to version"), STATUS_PASSED);
    if (span_has(line, SPAN(" ... ")))
        state->prev = before(line, SPAN(" ... "));

    line = pass_line(line, map);
    if (span_has(line, SPAN(" ... skipped")))
        status_map_set(map, before(line, SPAN(" ... skipped")), STATUS_SKIPPED);
    if (span_ends(line, SPAN(" ... FAIL")))
        status_map_set(map, before(line, SPAN(" ... FAIL")), STATUS_FAILED);
    report_line(line, SPAN("FAIL:"), STATUS_FAILED, ctx, map);
    if (ctx->raised != NULL)
        return;
    if (span_ends(line, SPAN(" ... ERROR")))
        status_map_set(map, before(line, SPAN(" ... ERROR")), STATUS_ERROR);
    report_line(line, SPAN("ERROR:"), STATUS_ERROR, ctx, map);

    if (ctx->raised == NULL && state->prev.ptr != NULL &&
        span_starts(span_lstrip(line), SPAN("ok")))
        status_map_set(map, state->prev, STATUS_PASSED);
}

static void django_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static Regex interrupted[] = {
        {"^(.*?)\\s\\.\\.\\.\\sTesting\\ against\\ Django\\ installed\\ in\\ ((?s:.*?))"
         "\\ silenced\\)\\.\\nok$",
         REGEX_MULTILINE, 0},
        {"^(.*?)\\s\\.\\.\\.\\sInternal\\ Server\\ Error:\\ \\/(.*)\\/\\nok$", REGEX_MULTILINE, 0},
        {"^(.*?)\\s\\.\\.\\.\\sSystem check identified no issues \\(0 silenced\\)\\nok$",
         REGEX_MULTILINE, 0},
    };
    (void)self;
    DjangoState state = {0};
    Span line;
    for (Span rest = log; ctx->raised == NULL && span_cut(&rest, '\n', &line);)
        django_line(&state, line, ctx, map);
    for (gsize i = 0; ctx->raised == NULL && i < G_N_ELEMENTS(interrupted); i++) {
        Match m;
        gsize pos = 0;
        while (regex_next(&interrupted[i], log, &pos, &ctx->gave_up, &m))
            status_map_set(map, m.group[1], STATUS_PASSED);
    }
}

const LogParser log_parsers_django[] = {
    {"django", django_parse, .repos = (const char *const[]){"django/django", NULL}},
    {0},
};
