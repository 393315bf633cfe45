/*
 * Problems with one number as their answer, and the reading of such answers.
 *
 * An answer is what stands in \boxed{}, else its last line that is not blank, or what follows the
 * last "=" of it. Numbers are whole, fractions (3/4, \frac{3}{4}) or decimal (0.75), compared as
 * rationals; nothing is computed from what is written. Two different boxes are no answer.
 */
#pragma once

#include "tasks/text.h"

typedef struct Rational {
    gint64 top, bottom; /* in lowest terms, bottom above 0 */
} Rational;

#define RATIONAL_DIGITS_MAX 18u

/* FALSE: it is no such number, or too large. The text is a number and white space around it. */
gboolean rational_read(const char *text, Rational *ret);
char *rational_text(const Rational *number);

/* Is that the answer which `answer` gives? */
gboolean math_answer_is(const char *answer, const char *want);

/* A problem: statement, "answer", "solution". */
json_t *math_make(TextDraw *draw);
