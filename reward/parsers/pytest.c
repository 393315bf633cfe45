/*
 * The pytest family: summaries of `pytest -rA`, and seaborn's progress lines.
 *
 * Invariants: a status is whatever word stands in its place (a line "ERROR: no such file" records
 * the status "ERROR:", as the original does); grading gives such words no meaning.
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/python.py.
 */
#include "reward/log_parser.h"

static const char *const status_words[] = {"FAILED", "PASSED", "SKIPPED", "ERROR", "XFAIL"};

typedef enum PytestFlag {
    PYTEST_OPTIONS = 1 << 0,       /* shorten paths in the brackets of a name */
    PYTEST_MOUSE_BUTTONS = 1 << 1, /* matplotlib's enum prints by name or by number */
} PytestFlag;

typedef struct PytestRules {
    guint flags;
} PytestRules;

static gboolean starts_with_status(Span line)
{
    for (gsize i = 0; i < G_N_ELEMENTS(status_words); i++)
        if (span_starts(line, span_of(status_words[i])))
            return TRUE;
    return FALSE;
}

static gboolean ends_with_status(Span line)
{
    for (gsize i = 0; i < G_N_ELEMENTS(status_words); i++)
        if (span_ends(line, span_of(status_words[i])))
            return TRUE;
    return FALSE;
}

/* "SKIPPED [3] file.py:7: reason" is a summary, not a test; release 4.1 took it for one. */
static gboolean is_skip_summary(Span status, Span name, LogContext *ctx)
{
    static Regex count_re = {.pattern = "^\\[\\d+\\]$"};
    return ctx->version == GRADER_5 && span_eq(status, STATUS_SKIPPED) &&
           regex_match(&count_re, name, &ctx->gave_up, NULL);
}

/* "t.py::f[/tmp/a/b.py]" -> "t.py::f[/b.py]", unless the option starts "//" or holds a "*". */
static GString *shorten_option(Span name, LogContext *ctx)
{
    static Regex option_re = {.pattern = "(.*?)\\[(.*)\\]"};
    GString *out = g_string_sized_new(name.len + 1);
    Match m;
    if (!regex_search(&option_re, name, 0, &ctx->gave_up, &m)) {
        span_append(out, name);
        return out;
    }
    Span option = m.group[2];
    gboolean shorten = span_starts(option, SPAN("/")) && !span_starts(option, SPAN("//")) &&
                       !span_has(option, SPAN("*"));
    span_append(out, m.group[1]);
    g_string_append(out, shorten ? "[/" : "[");
    span_append(out, shorten ? span_after_last(option, SPAN("/")) : option);
    g_string_append_c(out, ']');
    return out;
}

static void pytest_line(Span line, guint flags, LogContext *ctx, StatusMap *map)
{
    if (!starts_with_status(line))
        return;
    AUTO_GSTRING spaced = NULL;
    if (span_starts(line, STATUS_FAILED)) {
        spaced = span_replace(line, SPAN(" - "), SPAN(" "));
        line = span_gstring(spaced);
    }
    Span words[2];
    if (span_words(line, words, 2) < 2 || is_skip_summary(words[0], words[1], ctx))
        return;
    if (!(flags & PYTEST_OPTIONS)) {
        status_map_set(map, words[1], words[0]);
        return;
    }
    AUTO_GSTRING name = shorten_option(words[1], ctx);
    status_map_set(map, span_gstring(name), words[0]);
}

static void pytest_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    guint flags = ((const PytestRules *)self->rules)->flags;
    Span line;
    while (span_cut(&log, '\n', &line)) {
        if (!(flags & PYTEST_MOUSE_BUTTONS)) {
            pytest_line(line, flags, ctx, map);
            continue;
        }
        AUTO_GSTRING left = span_replace(line, SPAN("MouseButton.LEFT"), SPAN("1"));
        AUTO_GSTRING both = span_replace(span_gstring(left), SPAN("MouseButton.RIGHT"), SPAN("3"));
        pytest_line(span_gstring(both), flags, ctx, map);
    }
}

/* The line without "[NNm" and without the characters U+0001 to U+001F. */
static GString *drop_colours(Span line, LogContext *ctx)
{
    static Regex colour_re = {.pattern = "\\[(\\d+)m"};
    GString *out = regex_replace(&colour_re, line, SPAN(""), &ctx->gave_up);
    gsize to = 0;
    for (gsize i = 0; i < out->len; i++)
        if (out->str[i] == '\0' || (guchar)out->str[i] >= 0x20)
            out->str[to++] = out->str[i];
    g_string_truncate(out, to);
    return out;
}

/* 5: the name is every word but the status, so that parameters may hold spaces. */
static void v2_line_5(Span line, LogContext *ctx, StatusMap *map)
{
    gboolean leading = starts_with_status(line);
    if (span_starts(line, STATUS_FAILED))
        span_split_once(line, SPAN(" - "), &line, NULL);
    else if (!leading && !ends_with_status(line))
        return;

    AUTO_GSTRING words = span_join_words(line, SPAN(" "));
    Span joined = span_gstring(words), status, name;
    gssize at = leading ? span_find(joined, SPAN(" "), 0) : span_rfind(joined, SPAN(" "));
    if (at < 0)
        return;
    Span before = span_slice(joined, 0, (gsize)at), after = span_from(joined, (gsize)at + 1);
    status = leading ? before : after;
    name = leading ? after : before;
    if (leading) {
        Span second;
        span_split_once(name, SPAN(" "), &second, NULL);
        if (is_skip_summary(status, second, ctx))
            return;
    }
    status_map_set(map, name, status);
}

static void v2_line_4(Span line, StatusMap *map)
{
    gboolean leading = starts_with_status(line);
    if (!leading && !ends_with_status(line))
        return;
    AUTO_GSTRING spaced = NULL;
    if (span_starts(line, STATUS_FAILED)) {
        spaced = span_replace(line, SPAN(" - "), SPAN(" "));
        line = span_gstring(spaced);
    }
    Span words[2];
    if (span_words(line, words, 2) == 2)
        status_map_set(map, words[leading ? 1 : 0], words[leading ? 0 : 1]);
}

static void pytest_v2_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    Span line;
    while (span_cut(&log, '\n', &line)) {
        AUTO_GSTRING plain = drop_colours(line, ctx);
        if (ctx->version == GRADER_5)
            v2_line_5(span_gstring(plain), ctx, map);
        else
            v2_line_4(span_gstring(plain), map);
    }
}

static void seaborn_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    (void)self;
    Span line;
    while (ctx->raised == NULL && span_cut(&log, '\n', &line)) {
        gboolean failed = span_starts(line, STATUS_FAILED);
        gboolean inside = span_has(line, SPAN(" PASSED "));
        if (!failed && !inside && !span_starts(line, STATUS_PASSED))
            continue;

        Span words[2];
        if (span_words(line, words, 2) < 2) {
            if (ctx->version == GRADER_4_1)
                log_context_raise(ctx, "seaborn: a result line with fewer than two words");
            continue;
        }
        if (failed)
            status_map_set(map, words[1], STATUS_FAILED);
        else if (!inside)
            status_map_set(map, words[1], STATUS_PASSED);
        else if (span_eq(words[1], STATUS_PASSED))
            status_map_set(map, words[0], STATUS_PASSED);
    }
}

static PytestRules plain_rules, options_rules = {PYTEST_OPTIONS},
                                matplotlib_rules = {PYTEST_MOUSE_BUTTONS};

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

const LogParser log_parsers_pytest[] = {
    {"pytest", pytest_parse, &plain_rules,
     NAMES("astroid", "flask", "marshmallow", "pvlib", "pyvista", "sqlfluff", "xarray"),
     NAMES("pylint-dev/astroid", "pallets/flask", "marshmallow-code/marshmallow",
           "pvlib/pvlib-python", "pyvista/pyvista", "sqlfluff/sqlfluff", "pydata/xarray",
           "pytest-dev/pytest")},
    {"pytest_options", pytest_parse, &options_rules, NAMES("pydicom", "requests", "pylint"),
     NAMES("pydicom/pydicom", "psf/requests", "pylint-dev/pylint")},
    {"pytest_v2", pytest_v2_parse, NULL, NAMES("astropy", "scikit", "sphinx"),
     NAMES("astropy/astropy", "scikit-learn/scikit-learn", "sphinx-doc/sphinx")},
    {"matplotlib", pytest_parse, &matplotlib_rules, NULL, NAMES("matplotlib/matplotlib")},
    {"seaborn", seaborn_parse, NULL, NULL, NAMES("mwaskom/seaborn")},
    {0},
};
