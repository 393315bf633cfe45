/*
 * p5.js: mocha's failure list at the end of a log full of page source and JSON.
 *
 * Invariants: blocks are removed one at a time from the left, as the original does, because a
 * removal may create the next match; BLOCKS_MAX bounds the work.
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/javascript.py. Graded fail_only.
 */
#include "reward/parsers/ansi.h"

#define BLOCKS_MAX 20000

typedef struct JsonFilter {
    gboolean in_object, in_list;
} JsonFilter;

static gboolean json_filter_keeps(JsonFilter *filter, Span line)
{
    Span text = span_rstrip(line);
    if (span_ends(text, SPAN("{"))) {
        filter->in_object = TRUE;
        return FALSE;
    }
    if (span_ends(text, SPAN("["))) {
        filter->in_list = TRUE;
        return FALSE;
    }
    if (span_eq(text, SPAN("}")) && filter->in_object) {
        filter->in_object = FALSE;
        return FALSE;
    }
    if (span_eq(text, SPAN("]")) && filter->in_list) {
        filter->in_list = FALSE;
        return FALSE;
    }
    if (filter->in_object || filter->in_list)
        return FALSE;
    return !(span_starts(text, SPAN("{")) && span_ends(text, SPAN("}"))) &&
           !(span_starts(text, SPAN("[")) && span_ends(text, SPAN("]")));
}

static GString *json_blocks_drop(Span log)
{
    GString *out = g_string_sized_new(log.len + 1);
    JsonFilter filter = {0};
    gboolean first = TRUE;
    Span line;
    while (span_cut(&log, '\n', &line)) {
        if (!json_filter_keeps(&filter, line))
            continue;
        if (!first)
            g_string_append_c(out, '\n');
        span_append(out, line);
        first = FALSE;
    }
    return out;
}

static guint count_of(Span text, Span what)
{
    guint count = 0;
    Span piece;
    while (span_cut_str(&text, what, &piece))
        count++;
    return count - 1;
}

/* Removes <tag>...</tag>, leaving as many "<tag>" as the block opened beyond its first. */
static void xml_blocks_drop(GString *log, gboolean *gave_up)
{
    static Regex block_re = {.pattern = "<(\\w+)>[\\s\\S]*?<\\/\\1>", .flags = REGEX_MULTILINE};
    Match m;
    for (guint i = 0; regex_search(&block_re, span_gstring(log), 0, gave_up, &m); i++) {
        if (i == BLOCKS_MAX) {
            *gave_up = TRUE;
            return;
        }
        AUTO_GSTRING tag = g_string_new("<");
        span_append(tag, m.group[1]);
        g_string_append_c(tag, '>');
        guint nested = count_of(m.group[0], span_gstring(tag)) - 1;
        gssize at = m.group[0].ptr - log->str;
        g_string_erase(log, at, (gssize)m.group[0].len);
        AUTO_GSTRING again = g_string_new(NULL);
        for (guint k = 0; k < nested; k++)
            span_append(again, span_gstring(tag));
        g_string_insert_len(log, at, again->str, (gssize)again->len);
    }
}

/* Every line of a failure's name must be indented more than the one before. */
static gboolean is_failure(Span name)
{
    gsize last = 0;
    Span line;
    while (span_cut(&name, '\n', &line)) {
        gsize indent = span_indent(line);
        if (indent <= last)
            return FALSE;
        last = indent;
    }
    return TRUE;
}

static void p5js_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    static Regex failure_re = {.pattern = "^\\s*(\\d+)\\)(.{0,1000}?):",
                               .flags = REGEX_MULTILINE | REGEX_DOTALL};
    (void)self;
    AUTO_GSTRING plain = ansi_drop(log, &ctx->gave_up);
    AUTO_GSTRING text = json_blocks_drop(span_gstring(plain));
    xml_blocks_drop(text, &ctx->gave_up);

    Match m;
    gsize pos = 0;
    while (regex_next(&failure_re, span_gstring(text), &pos, &ctx->gave_up, &m)) {
        if (!is_failure(m.group[2]))
            continue;
        AUTO_GSTRING name = g_string_new(NULL);
        Span rest = m.group[2], line;
        for (gboolean first = TRUE; span_cut(&rest, '\n', &line); first = FALSE) {
            if (!first)
                g_string_append_c(name, ':');
            span_append(name, span_strip(line));
        }
        status_map_set(map, span_gstring(name), STATUS_FAILED);
    }
}

const LogParser log_parsers_p5js[] = {
    {"p5js", p5js_parse, .repos = (const char *const[]){"processing/p5.js", NULL}},
    {0},
};
