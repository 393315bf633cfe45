/*
 * The registry of log parsers.
 *
 * Invariants: the list is parsers.inc, made by meson from one list of words; no name or alias
 * stands twice (a test checks).
 *
 * Not here: the parsers (parsers/), and deciding what a status means (grade.c).
 */
#include "reward/log_parser.h"

#include <string.h>

#define LOG_PARSERS(name) extern const LogParser log_parsers_##name[];
#include "parsers.inc"
#undef LOG_PARSERS

#define LOG_PARSERS(name) log_parsers_##name,
static const LogParser *const families[] = {
#include "parsers.inc"
};
#undef LOG_PARSERS

#define ROW_PREFIX "parse_log_"

void log_context_clear(LogContext *ctx)
{
    g_clear_pointer(&ctx->raised, g_free);
    ctx->gave_up = FALSE;
}

void log_context_raise(LogContext *ctx, const char *format, ...)
{
    if (ctx->raised != NULL)
        return;
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    ctx->raised = g_utf8_make_valid(text, -1); /* may quote half a character of the log */
}

const LogParser *log_parser_at(guint i)
{
    for (gsize f = 0; f < G_N_ELEMENTS(families); f++)
        for (const LogParser *p = families[f]; p->name != NULL; p++)
            if (i-- == 0)
                return p;
    return NULL;
}

static gboolean listed(const char *const *list, const char *word)
{
    return list != NULL && g_strv_contains(list, word);
}

const LogParser *log_parser_find(const char *name)
{
    if (g_str_has_prefix(name, ROW_PREFIX))
        name += strlen(ROW_PREFIX);
    else if (strcmp(name, "parse_plotly_js") == 0) /* the one row name without the prefix */
        name = "plotly_js";

    const LogParser *p;
    for (guint i = 0; (p = log_parser_at(i)) != NULL; i++)
        if (strcmp(p->name, name) == 0 || listed(p->aliases, name))
            return p;
    return NULL;
}

const LogParser *log_parser_for_repo(const char *repo)
{
    const LogParser *p;
    for (guint i = 0; (p = log_parser_at(i)) != NULL; i++)
        if (listed(p->repos, repo))
            return p;
    return NULL;
}
