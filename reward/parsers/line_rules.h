/*
 * Parsers that need one line and one pattern: a table row each.
 */
#pragma once

#include "reward/log_parser.h"

typedef enum LineFlag {
    LINE_RAW = 1 << 0,        /* do not strip the line first */
    LINE_NAME_STRIP = 1 << 1, /* strip the name in both releases */
    LINE_NAME_STRIP_5 = 1 << 2,
    LINE_DROP_PATH = 1 << 3, /* cut " in PATH" off the names of failed tests */
} LineFlag;

typedef struct LineRules {
    Regex line;
    guint name_group;
    guint status_group; /* 0: every match has the status of the first word */
    guint flags;
    struct {
        const char *word; /* as it stands in the line; "" where status_group is 0 */
        const char *status;
    } words[7];
} LineRules;

/* The LogParserFn of every parser whose rules are a LineRules. */
void line_rules_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map);
