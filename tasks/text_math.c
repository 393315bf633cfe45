/*
 * Mathematics: numbers read exactly, answers found, problems made.
 *
 * Invariants:
 *   1. What is read is never more than 18 digits, and no product of it is taken that does not fit.
 *   2. What stands outside the one place that counts changes nothing.
 */
#include "tasks/text_math.h"

#include <string.h>

#define BOXED "\\boxed{"

/* ---- numbers ---- */

static gint64 gcd(gint64 a, gint64 b)
{
    while (b != 0) {
        gint64 rest = a % b;
        a = b;
        b = rest;
    }
    return a < 0 ? -a : a;
}

/* FALSE: the bottom is 0. Both are far from the ends of their type. */
static gboolean reduce(gint64 top, gint64 bottom, Rational *ret)
{
    if (bottom == 0)
        return FALSE;
    gint64 by = gcd(top, bottom);
    *ret = (Rational){top / by, bottom / by};
    if (ret->bottom < 0)
        *ret = (Rational){-ret->top, -ret->bottom};
    return TRUE;
}

static const char *skip_space(const char *text)
{
    while (g_ascii_isspace(*text))
        text++;
    return text;
}

/* Digits, at most so many in all with those before. */
static gboolean read_digits(const char **text, gint64 *value, guint *n)
{
    const char *from = *text;
    for (; g_ascii_isdigit(**text); (*text)++) {
        if (++*n > RATIONAL_DIGITS_MAX)
            return FALSE;
        *value = *value * 10 + (**text - '0');
    }
    return *text > from;
}

static gboolean read_sign(const char **text)
{
    gboolean minus = **text == '-';
    *text = skip_space(*text + (minus || **text == '+'));
    return minus;
}

/* A whole number with its sign. */
static gboolean read_whole(const char **text, gint64 *ret)
{
    guint n = 0;
    gboolean minus = read_sign(text);
    *ret = 0;
    if (!read_digits(text, ret, &n))
        return FALSE;
    *ret = minus ? -*ret : *ret;
    return TRUE;
}

/* "\frac{a}{b}", after its sign. */
static gboolean read_frac(const char **text, gint64 *top, gint64 *bottom)
{
    static const char *const heads[] = {"\\frac{", "\\dfrac{", "\\tfrac{"};
    for (gsize i = 0; i < G_N_ELEMENTS(heads); i++) {
        if (!g_str_has_prefix(*text, heads[i]))
            continue;
        *text = skip_space(*text + strlen(heads[i]));
        if (!read_whole(text, top) || !g_str_has_prefix(*text, "}{"))
            return FALSE;
        *text = skip_space(*text + 2);
        if (!read_whole(text, bottom) || **text != '}')
            return FALSE;
        ++*text;
        return TRUE;
    }
    return FALSE;
}

gboolean rational_read(const char *text, Rational *ret)
{
    const char *at = skip_space(text);
    gint64 top = 0, bottom = 1;
    guint n = 0;
    gboolean minus = read_sign(&at);
    if (*at == '\\') {
        if (!read_frac(&at, &top, &bottom))
            return FALSE;
    } else if (!read_digits(&at, &top, &n)) {
        return FALSE;
    } else if (*at == '.' && g_ascii_isdigit(at[1])) {
        guint whole = n;
        at++;
        if (!read_digits(&at, &top, &n))
            return FALSE;
        for (; n > whole; n--)
            bottom *= 10;
    } else if (*skip_space(at) == '/') {
        at = skip_space(skip_space(at) + 1);
        if (!read_whole(&at, &bottom))
            return FALSE;
    }
    return *skip_space(at) == '\0' && reduce(minus ? -top : top, bottom, ret);
}

char *rational_text(const Rational *number)
{
    return number->bottom == 1 ? g_strdup_printf("%" G_GINT64_FORMAT, number->top)
                               : g_strdup_printf("%" G_GINT64_FORMAT "/%" G_GINT64_FORMAT,
                                                 number->top, number->bottom);
}

/* ---- answers ---- */

/* What is in the braces that begin at `text`, after the first; NULL: they do not end. */
static char *in_braces(const char *text)
{
    guint depth = 1;
    for (const char *at = text; *at != '\0'; at++) {
        depth += *at == '{';
        depth -= *at == '}';
        if (depth == 0)
            return g_strndup(text, at - text);
    }
    return NULL;
}

/* All boxes must hold the same number. FALSE: they do not, or hold none. */
static gboolean boxed_number(const char *answer, Rational *ret)
{
    gboolean is_first = TRUE;
    for (const char *at = answer; (at = strstr(at, BOXED)) != NULL; is_first = FALSE) {
        Rational one;
        at += strlen(BOXED);
        g_autofree char *inside = in_braces(at);
        if (inside == NULL || !rational_read(inside, &one) ||
            (!is_first && (one.top != ret->top || one.bottom != ret->bottom)))
            return FALSE;
        *ret = one;
    }
    return !is_first;
}

static gboolean last_number(const char *answer, Rational *ret)
{
    g_autofree char *text = g_strchomp(g_strdup(answer));
    char *newline = strrchr(text, '\n');
    char *line = newline != NULL ? newline + 1 : text, *equals = strrchr(line, '=');
    return rational_read(equals != NULL ? equals + 1 : line, ret);
}

gboolean math_answer_is(const char *answer, const char *want)
{
    Rational is, should;
    gboolean boxed = strstr(answer, BOXED) != NULL;
    return rational_read(want, &should) &&
           (boxed ? boxed_number(answer, &is) : last_number(answer, &is)) && is.top == should.top &&
           is.bottom == should.bottom;
}

/* ---- problems ---- */

static json_t *problem(char *text, Rational answer)
{
    g_autofree char *statement = text, *number = rational_text(&answer);
    return json_pack("{s:s, s:s}", "problem_statement", statement, "answer", number);
}

static Rational whole(gint64 value)
{
    return (Rational){value, 1};
}

static json_t *make_chain(TextDraw *draw)
{
    int a = text_between(draw, -99, 99), b = text_between(draw, 2, 99);
    int c = text_between(draw, 2, 20), d = text_between(draw, 1, 99);
    return problem(g_strdup_printf("What is %d + %d * %d - %d?", a, b, c, d), whole(a + b * c - d));
}

static json_t *make_fractions(TextDraw *draw)
{
    static const char signs[] = "+-*";
    gint64 a = text_between(draw, 1, 12), b = text_between(draw, 2, 12);
    gint64 c = text_between(draw, 1, 12), d = text_between(draw, 2, 12);
    guint op = text_below(draw, 3);
    Rational sum = {0, 1};
    if (op == 2)
        reduce(a * c, b * d, &sum);
    else
        reduce(a * d + (op == 0 ? b * c : -b * c), b * d, &sum);
    return problem(
        g_strdup_printf("What is %d/%d %c %d/%d?", (int)a, (int)b, signs[op], (int)c, (int)d), sum);
}

static json_t *make_equation(TextDraw *draw)
{
    int a = text_between(draw, 2, 15), b = text_between(draw, -30, 30);
    int c = text_between(draw, -60, 60);
    Rational x = {0, 1};
    reduce(c - b, a, &x);
    return problem(g_strdup_printf("Solve %d x %c %d = %d for x.", a, b < 0 ? '-' : '+', ABS(b), c),
                   x);
}

static json_t *make_rest(TextDraw *draw)
{
    int a = text_between(draw, 100, 9999), b = text_between(draw, 3, 97);
    return problem(g_strdup_printf("What is the remainder when %d is divided by %d?", a, b),
                   whole(a % b));
}

static json_t *make_divisor(TextDraw *draw)
{
    int by = text_between(draw, 2, 30);
    int a = by * text_between(draw, 2, 40), b = by * text_between(draw, 2, 40);
    return problem(g_strdup_printf("What is the greatest common divisor of %d and %d?", a, b),
                   whole(gcd(a, b)));
}

static json_t *make_shopping(TextDraw *draw)
{
    static const char *const things[] = {"pencils", "apples", "tickets", "books", "stamps"};
    int n = text_between(draw, 2, 12), price = text_between(draw, 2, 25);
    int more = text_between(draw, 1, 40), paid = n * price + more;
    return problem(g_strdup_printf("%d %s and a bag cost %d together; the bag costs %d. They all "
                                   "have one price: which?",
                                   n, things[text_below(draw, G_N_ELEMENTS(things))], paid, more),
                   whole(price));
}

json_t *math_make(TextDraw *draw)
{
    static json_t *(*const forms[])(TextDraw *) = {make_chain, make_fractions, make_equation,
                                                   make_rest,  make_divisor,   make_shopping};
    return forms[text_below(draw, G_N_ELEMENTS(forms))](draw);
}
