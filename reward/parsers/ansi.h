/*
 * Terminal escapes, as the graders drop them.
 */
#pragma once

#include "reward/log_parser.h"

/* The text without ESC sequences (SWE-bench/SWE-bench, swebench/utils.py, ansi_escape). */
static inline GString *ansi_drop(Span text, gboolean *gave_up)
{
    static Regex escape_re = {.pattern = "\\x1B(?:[@-Z\\\\-_]|\\[[0-?]*[ -/]*[@-~])"};
    return regex_replace(&escape_re, text, SPAN(""), gave_up);
}
