/*
 * Python's `re` on PCRE2: same characters, same anchors, bounded work.
 *
 *     static Regex line_re = {.pattern = "^--- (PASS|FAIL): (.+)$"};
 *     Match m;
 *     if (regex_match(&line_re, line, &gave_up, &m))
 *         ... m.group[1] ...
 *
 * Patterns are written as Python writes them; \s \S \w \d are replaced by Python's sets of
 * characters before PCRE2 sees them. A match that passes MATCH_STEPS_MAX is reported as no match
 * and sets `*gave_up`, which a caller must never read as "the test did not fail".
 */
#pragma once

#include "reward/text.h"

#define MATCH_GROUPS_MAX 6

typedef enum RegexFlag {
    REGEX_MULTILINE = 1 << 0, /* re.MULTILINE */
    REGEX_DOTALL = 1 << 1,    /* re.DOTALL */
} RegexFlag;

/* Define as a static with .pattern (and .flags); the rest is filled on first use. */
typedef struct Regex {
    const char *pattern;
    guint flags;
    gsize code; /* pcre2_code *, set once */
} Regex;

/* group[0] is the whole match; a group that took no part has ptr NULL. Spans of the subject. */
typedef struct Match {
    Span group[MATCH_GROUPS_MAX];
} Match;

/* re.match: at the start of `subject`. `ret` may be NULL; untouched when there is no match. */
gboolean regex_match(Regex *regex, Span subject, gboolean *gave_up, Match *ret);

/* re.search from byte `from` on (look-behind and ^ still see what is before it). */
gboolean regex_search(Regex *regex, Span subject, gsize from, gboolean *gave_up, Match *ret);

/* re.finditer: start with `*pos` = 0; FALSE after the last match. No pattern used with it may
 * match the empty string. */
gboolean regex_next(Regex *regex, Span subject, gsize *pos, gboolean *gave_up, Match *ret);

/* re.sub with a literal replacement; the pattern never matches the empty string. */
GString *regex_replace(Regex *regex, Span subject, Span with, gboolean *gave_up);

/* The PCRE2 form of a Python pattern; for tests. */
char *regex_translate(const char *pattern);
