/*
 * p5.js: mocha's failure list at the end of a log full of page source and JSON.
 *
 * Invariants: blocks are removed one at a time from the left, as the original does, because a
 * removal may create the next match; WORK_BYTES_MAX bounds the work.
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/javascript.py. Graded fail_only.
 */
#include "reward/parsers/ansi.h"

#include <string.h>

#define WORK_BYTES_MAX 4000000000u

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

typedef struct Block {
    Span whole, name;
} Block;

/* The leftmost `<(\w+)>[\s\S]*?</\1>`; by hand, because the pattern rescans the rest of the log
 * for every tag that is never closed. `*work` counts the bytes looked at. */
static gboolean block_find(Span log, guint64 *work, gboolean *gave_up, Block *ret)
{
    static Regex open_re = {.pattern = "<(\\w+)>"};
    g_autoptr(GHashTable) unclosed = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    Match m;
    gsize pos = 0;
    while (*work <= WORK_BYTES_MAX && regex_next(&open_re, log, &pos, gave_up, &m)) {
        g_autofree char *close = g_strdup_printf("</%.*s>", (int)m.group[1].len, m.group[1].ptr);
        if (g_hash_table_contains(unclosed, close))
            continue;
        *work += log.len - pos;
        gssize at = span_find(log, span_of(close), pos);
        if (at >= 0) {
            gsize start = (gsize)(m.group[0].ptr - log.ptr);
            *ret = (Block){span_slice(log, start, (gsize)at + strlen(close)), m.group[1]};
            return TRUE;
        }
        g_hash_table_add(unclosed, g_steal_pointer(&close));
    }
    if (*work > WORK_BYTES_MAX)
        *gave_up = TRUE;
    *work += log.len;
    return FALSE;
}

/* Removes every block, leaving as many "<tag>" as it opened beyond its first. */
static void xml_blocks_drop(GString *log, gboolean *gave_up)
{
    guint64 work = 0;
    Block block;
    while (block_find(span_gstring(log), &work, gave_up, &block)) {
        AUTO_GSTRING tag = g_string_new("<");
        span_append(tag, block.name);
        g_string_append_c(tag, '>');
        guint nested = count_of(block.whole, span_gstring(tag)) - 1;
        AUTO_GSTRING again = g_string_new(NULL);
        for (guint k = 0; k < nested; k++)
            span_append(again, span_gstring(tag));
        gssize at = block.whole.ptr - log->str;
        work += log->len;
        g_string_erase(log, at, (gssize)block.whole.len);
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
