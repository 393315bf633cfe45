/*
 * Log parsers: the text a test run printed -> a status per test name.
 *
 * One file of reward/parsers/ holds one family and exports `log_parsers_FILE`, an array that ends
 * with a row without a name. The list of files is in reward/meson.build.
 *
 *     const LogParser *parser = log_parser_find("parse_log_flask");
 *     LogContext ctx = {.version = GRADER_5, .instance_id = id};
 *     parser->parse(parser, text, &ctx, map);
 *     log_context_clear(&ctx);
 */
#pragma once

#include "reward/regex.h"
#include "reward/status_map.h"

/* Which release of the SWE-bench harness to agree with. */
typedef enum GraderVersion {
    GRADER_5 = 0, /* 5.0.2 */
    GRADER_4_1 = 1,
} GraderVersion;

typedef struct LogContext {
    GraderVersion version;
    const char *instance_id;  /* some parsers choose by the number at its end; may be NULL */
    const char *repo_version; /* the row's `version`; may be NULL */
    gboolean gave_up;         /* out: a match passed its step limit, so results may be missing */
    char *raised;             /* out: why the original would have thrown here, else NULL */
} LogContext;

void log_context_clear(LogContext *ctx);
/* Notes that the original throws; the first reason is kept. */
void log_context_raise(LogContext *ctx, const char *format, ...) G_GNUC_PRINTF(2, 3);

typedef struct LogParser LogParser;

/* Adds to `map` what `log` (from text_read) says. Total: any text is accepted. */
typedef void (*LogParserFn)(const LogParser *self, Span log, LogContext *ctx, StatusMap *map);

struct LogParser {
    const char *name; /* without "parse_log_" */
    LogParserFn parse;
    void *rules;                /* for parsers that share a function; a table of the family */
    const char *const *aliases; /* other names, without "parse_log_"; NULL-terminated or NULL */
    const char *const *repos;   /* owner/name, as v4.1 chooses; NULL-terminated or NULL */
};

/* By a row's name ("parse_log_pytest") or the bare one ("pytest"); NULL when unknown. */
const LogParser *log_parser_find(const char *name);

/* By "owner/name", case included, as release 4.1 chooses; NULL when unknown. */
const LogParser *log_parser_for_repo(const char *repo);

/* Every parser in registry order; NULL after the last. */
const LogParser *log_parser_at(guint i);
