/*
 * Quarto's Deno tests: "[smoke] > name ... ok (1s)" with colours; temporary paths are numbered in
 * order of appearance so that names stay equal between runs.
 *
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/javascript.py.
 */
#include "reward/log_parser.h"

typedef struct Quarto {
    GHashTable *numbers; /* path as printed -> number */
    LogContext *ctx;
} Quarto;

/* The line with every path of the form `regex` replaced by the number of the first one. */
static GString *number_paths(Quarto *quarto, Regex *regex, GString *line)
{
    Match m;
    if (!regex_search(regex, span_gstring(line), 0, &quarto->ctx->gave_up, &m))
        return line;
    g_autofree char *path = span_dup(m.group[0]);
    gpointer number;
    if (!g_hash_table_lookup_extended(quarto->numbers, path, NULL, &number)) {
        number = GUINT_TO_POINTER(g_hash_table_size(quarto->numbers));
        g_hash_table_insert(quarto->numbers, g_strdup(path), number);
    }
    g_autofree char *with = g_strdup_printf("/tmp/%u", GPOINTER_TO_UINT(number));
    GString *out = regex_replace(regex, span_gstring(line), span_of(with), &quarto->ctx->gave_up);
    g_string_free(line, TRUE);
    return out;
}

static gboolean is_rejected(Span line)
{
    return span_starts(line, SPAN("test result:")) || span_has(line, SPAN("34mINFO")) ||
           (span_has(line, SPAN("passed")) && span_has(line, SPAN("failed")) &&
            span_has(line, SPAN("steps")));
}

static void quarto_line(Quarto *quarto, Span raw, StatusMap *map)
{
    static Regex document_re = {.pattern = "/tmp/(\\w+)\\.qmd"};
    static Regex folder_re = {.pattern = "/tmp/(\\w+)/"};
    AUTO_GSTRING numbered = g_string_new_len(raw.ptr, (gssize)raw.len);
    numbered = number_paths(quarto, &document_re, numbered);
    numbered = number_paths(quarto, &folder_re, numbered);

    Span line = span_gstring(numbered), name;
    if (is_rejected(line))
        return;
    span_split_once(line, SPAN("..."), &name, NULL);
    name = span_strip(name);
    if (span_has(line, SPAN("32mok")))
        status_map_set(map, name, STATUS_PASSED);
    else if (span_has(line, SPAN("31mFAILED")) || status_map_find(map, name) == NULL)
        status_map_set(map, name, STATUS_FAILED);
}

static void quarto_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    g_autoptr(GHashTable) numbers = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    Quarto quarto = {numbers, ctx};
    Span line;
    while (span_cut(&log, '\n', &line)) {
        if (span_has(line, SPAN("ERRORS")) || span_has(line, SPAN("failures:")))
            return;
        if (span_has(line, SPAN("[smoke]")) || span_has(line, SPAN("[unit]")))
            quarto_line(&quarto, line, map);
    }
}

const LogParser log_parsers_quarto_cli[] = {
    {"quarto_cli", quarto_parse, .repos = (const char *const[]){"quarto-dev/quarto-cli", NULL}},
    {0},
};
