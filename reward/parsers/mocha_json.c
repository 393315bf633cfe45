/*
 * Mocha's JSON reporter, read as JSON (prism) or by its lines (lighthouse < 3, cypress).
 *
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/javascript.py. Known difference: JSON that only
 * Python reads (NaN, lone surrogates, numbers beyond 64 bits) counts as malformed here.
 */
#include "reward/log_parser.h"

#include "base/json.h"

#include <string.h>

/* ---- prism ---- */

static void prism_list(const json_t *report, const char *key, Span status, LogContext *ctx,
                       StatusMap *map)
{
    const json_t *list = json_object_get(report, key), *test;
    if (!json_is_array(list)) {
        log_context_raise(ctx, "prismjs: the report has no list \"%s\"", key);
        return;
    }
    gsize i;
    json_array_foreach(list, i, test)
    {
        const json_t *title = json_object_get(test, "fullTitle");
        if (!json_is_string(title)) {
            log_context_raise(ctx, "prismjs: %s[%zu] has no fullTitle", key, i);
            return;
        }
        Span name = {json_string_value(title), json_string_length(title)};
        status_map_set(map, name, status);
    }
}

static void prism_report(Span piece, LogContext *ctx, StatusMap *map)
{
    Span before, after;
    span_split_once(piece, SPAN("{"), &before, &after);
    AUTO_GSTRING text = g_string_new("{");
    span_append(text, span_before_last(after.ptr == NULL ? before : after, SPAN("}")));
    g_string_append_c(text, '}');

    json_error_t why;
    g_autoptr(json_t) report = json_loadb(text->str, text->len, JSON_ALLOW_NUL, &why);
    if (report == NULL) {
        log_context_raise(ctx, "prismjs: line %d column %d: %s", why.line, why.column, why.text);
        return;
    }
    prism_list(report, "failures", STATUS_FAILED, ctx, map);
    if (ctx->raised == NULL)
        prism_list(report, "passes", STATUS_PASSED, ctx, map);
}

static void prism_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    Span command = SPAN("./node_modules/.bin/mocha tests/run.js --reporter json"), piece;
    for (gboolean first = TRUE; ctx->raised == NULL && span_cut_str(&log, command, &piece);
         first = FALSE)
        if (!first)
            prism_report(piece, ctx, map);
}

/* ---- titles by line ---- */

typedef struct TitleRules {
    const char *separator;          /* between runs */
    gboolean drop_first, drop_last; /* which piece is not a run */
    const char *lists[2];           /* where the passes and the failures begin */
    const char *ends[2];            /* the last of these ends the list */
} TitleRules;

static TitleRules lighthouse_rules = {
    "./node_modules/.bin/mocha --reporter json", TRUE,        FALSE,
    {"\"passes\": [", "\"failures\": ["},        {"]", "],"},
};

static TitleRules cypress_rules = {
    "../..", FALSE, TRUE, {"  \"passes\": [", "  \"failures\": ["}, {"  }", "  ],"},
};

static void titles_run(const TitleRules *rules, Span run, LogContext *ctx, StatusMap *map)
{
    static Regex title_re = {.pattern = "\\\"fullTitle\\\"\\:\\s\\\"(.*)\\\",\\n",
                             .flags = REGEX_MULTILINE};
    const Span statuses[] = {STATUS_PASSED, STATUS_FAILED};
    for (gsize i = 0; i < G_N_ELEMENTS(statuses); i++) {
        Span list = span_after_last(run, span_of(rules->lists[i]));
        list = span_before_last(list, span_of(rules->ends[i]));
        Match m;
        gsize pos = 0;
        while (regex_next(&title_re, list, &pos, &ctx->gave_up, &m))
            status_map_set(map, m.group[1], statuses[i]);
    }
}

static void titles_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    const TitleRules *rules = self->rules;
    Span piece;
    for (gboolean first = TRUE; span_cut_str(&log, span_of(rules->separator), &piece);
         first = FALSE) {
        gboolean last = log.ptr == NULL;
        if (!(first && rules->drop_first) && !(last && rules->drop_last))
            titles_run(rules, piece, ctx, map);
    }
}

/* ---- lighthouse chooses by its version ---- */

static const char *lighthouse_choice(const char *version)
{
    static const char *const mocha[] = {"9.5", "10.0", "10.2", NULL};
    if (version == NULL)
        return NULL;
    if (g_strv_contains(mocha, version))
        return "lighthouse_mocha";
    char *end;
    double number = g_ascii_strtod(version, &end);
    if (end == version || *end != '\0')
        return NULL;
    return number >= 3 ? "lighthouse_jest" : "lighthouse_json";
}

static void lighthouse_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    const char *choice = lighthouse_choice(ctx->repo_version);
    if (choice == NULL) {
        log_context_raise(ctx, "lighthouse: version %s is not a number",
                          ctx->repo_version == NULL ? "(none)" : ctx->repo_version);
        return;
    }
    const LogParser *chosen = log_parser_find(choice);
    chosen->parse(chosen, log, ctx, map);
}

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

const LogParser log_parsers_mocha_json[] = {
    {"prismjs", prism_parse, .repos = NAMES("PrismJS/prism")},
    {"cypress", titles_parse, &cypress_rules, .repos = NAMES("cypress-io/cypress")},
    {"lighthouse_json", titles_parse, &lighthouse_rules},
    {"lighthouse", lighthouse_parse, .repos = NAMES("GoogleChrome/lighthouse")},
    {0},
};
