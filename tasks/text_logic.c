/*
 * Puzzles: three forms, each with a maker, a check of its row and a check of answers.
 *
 * Invariants:
 *   1. The maker draws a solution and then rules that it keeps, so there is always one.
 *   2. An answer is read whole before any rule is looked at: half an answer solves nothing.
 */
#include "tasks/text_logic.h"

#include "base/error.h"

#include <string.h>

#define SIDE      4u
#define CELLS     (SIDE * SIDE)
#define GIVEN_MIN 5

static const char *const people[] = {"Ann", "Bob", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal"};

/* What an answer says: knights, 1 or 0 of each; order, the place of each; sudoku, digits. */
typedef struct Said {
    guint n;
    int of[CELLS];
} Said;

/* ---- parts of rows ---- */

static guint names_count(const json_t *puzzle)
{
    return (guint)json_array_size(json_object_get(puzzle, "names"));
}

static const char *name_at(const json_t *puzzle, gsize i)
{
    return json_string_value(json_array_get(json_object_get(puzzle, "names"), i));
}

static int name_find(const json_t *puzzle, const char *name)
{
    for (guint i = 0; i < names_count(puzzle); i++)
        if (g_str_equal(name_at(puzzle, i), name))
            return (int)i;
    return -1;
}

static int number_of(const json_t *rule, const char *key)
{
    const json_t *value = json_object_get(rule, key);
    json_int_t number = json_integer_value(value);
    return json_is_integer(value) && number >= 0 && number <= (json_int_t)LOGIC_NAMES_MAX
               ? (int)number
               : -1;
}

/* One kind of rule: its word, the people it is about, whether it has a number, what it says. */
typedef struct Rule {
    const char *word;
    guint n_people;
    gboolean has_number;
    gboolean (*holds)(const Said *said, int a, int b, int n);
    const char *text; /* with the names, or the number, in that order */
} Rule;

static gboolean rule_args_ok(const json_t *puzzle, const Rule *rule, const json_t *given)
{
    int n = (int)names_count(puzzle), a = number_of(given, "a"), b = number_of(given, "b");
    return (rule->n_people < 1 || (a >= 0 && a < n)) &&
           (rule->n_people < 2 || (b >= 0 && b < n && a != b)) &&
           (!rule->has_number || number_of(given, "n") >= 0);
}

static const Rule *rule_find(const Rule *rules, gsize n_rules, const char *word)
{
    for (gsize i = 0; word != NULL && i < n_rules; i++)
        if (g_str_equal(rules[i].word, word))
            return &rules[i];
    return NULL;
}

static gboolean rule_holds(const Rule *rule, const json_t *given, const Said *said)
{
    return rule->holds(said, number_of(given, "a"), number_of(given, "b"), number_of(given, "n"));
}

static gboolean names_ok(const json_t *puzzle, GError **error)
{
    guint n = names_count(puzzle);
    gboolean good = n >= 2 && n <= LOGIC_NAMES_MAX;
    for (guint i = 0; good && i < n; i++) {
        const char *name = name_at(puzzle, i);
        good = name != NULL && name[0] != '\0' && strlen(name) <= 32 &&
               strspn(name, G_CSET_A_2_Z G_CSET_a_2_z) == strlen(name) &&
               name_find(puzzle, name) == (int)i;
    }
    return good || error_set(error, ASSAY_ERROR_INPUT,
                             "field puzzle.names: expected 2 to %u different names of letters",
                             LOGIC_NAMES_MAX);
}

static gboolean rules_ok(const json_t *puzzle, const char *key, const char *word_key,
                         const Rule *rules, gsize n_rules, GError **error)
{
    const json_t *list = json_object_get(puzzle, key);
    gsize i;
    const json_t *given;
    if (!json_is_array(list) || json_array_size(list) > LOGIC_RULES_MAX)
        return error_set(error, ASSAY_ERROR_INPUT, "field puzzle.%s: not a list of at most %u", key,
                         LOGIC_RULES_MAX);
    json_array_foreach(list, i, given)
    {
        const Rule *rule =
            rule_find(rules, n_rules, json_string_value(json_object_get(given, word_key)));
        if (rule == NULL || !rule_args_ok(puzzle, rule, given))
            return error_set(error, ASSAY_ERROR_INPUT, "field puzzle.%s: item %zu is no rule", key,
                             i);
    }
    return TRUE;
}

/* "TEXT" with $a, $b, $n replaced. */
static void say_rule(GString *out, const Rule *rule, const char *a, const char *b, int n)
{
    for (const char *at = rule->text; *at != '\0'; at++) {
        if (*at != '$')
            g_string_append_c(out, *at);
        else if (*++at == 'n')
            g_string_append_printf(out, "%d", n);
        else
            g_string_append(out, *at == 'a' ? a : b);
    }
}

/* Lines of an answer that are not blank, without white space at their ends. */
static GStrv lines_of(const char *answer)
{
    g_auto(GStrv) all = g_strsplit(answer, "\n", -1);
    g_autoptr(GStrvBuilder) kept = g_strv_builder_new();
    for (char **line = all; *line != NULL; line++)
        if (*g_strstrip(*line) != '\0')
            g_strv_builder_add(kept, *line);
    return g_strv_builder_end(kept);
}

/* ---- knights and knaves ---- */

static gboolean claim_knight(const Said *said, int a, int b, int n)
{
    (void)b;
    (void)n;
    return said->of[a] == 1;
}

static gboolean claim_knave(const Said *said, int a, int b, int n)
{
    return !claim_knight(said, a, b, n);
}

static gboolean claim_same(const Said *said, int a, int b, int n)
{
    (void)n;
    return said->of[a] == said->of[b];
}

static gboolean claim_differ(const Said *said, int a, int b, int n)
{
    return !claim_same(said, a, b, n);
}

static gboolean claim_count(const Said *said, int a, int b, int n)
{
    int knights = 0;
    (void)a;
    (void)b;
    for (guint i = 0; i < said->n; i++)
        knights += said->of[i];
    return knights == n;
}

static const Rule claims[] = {
    {"knight", 1, FALSE, claim_knight, "$a is a knight"},
    {"knave", 1, FALSE, claim_knave, "$a is a knave"},
    {"same", 2, FALSE, claim_same, "$a and $b are of the same kind"},
    {"differ", 2, FALSE, claim_differ, "$a and $b are of different kinds"},
    {"count", 0, TRUE, claim_count, "exactly $n of us are knights"},
};

static gboolean knights_ok(const json_t *puzzle, GError **error)
{
    const json_t *given;
    gsize i;
    if (!names_ok(puzzle, error) ||
        !rules_ok(puzzle, "says", "claim", claims, G_N_ELEMENTS(claims), error))
        return FALSE;
    json_array_foreach(json_object_get(puzzle, "says"), i, given)
    {
        int by = number_of(given, "by");
        if (by < 0 || by >= (int)names_count(puzzle))
            return error_set(error, ASSAY_ERROR_INPUT, "field puzzle.says: item %zu has no speaker",
                             i);
    }
    return TRUE;
}

static gboolean knights_read(const json_t *puzzle, const char *answer, Said *said)
{
    g_auto(GStrv) lines = lines_of(answer);
    gboolean seen[LOGIC_NAMES_MAX] = {FALSE};
    said->n = names_count(puzzle);
    if (g_strv_length(lines) != said->n)
        return FALSE;
    for (char **line = lines; *line != NULL; line++) {
        char *colon = strchr(*line, ':');
        if (colon == NULL)
            return FALSE;
        *colon = '\0';
        const char *kind = g_strstrip(colon + 1);
        int who = name_find(puzzle, g_strchomp(*line));
        gboolean knight = g_ascii_strcasecmp(kind, "knight") == 0;
        if (who < 0 || seen[who] || (!knight && g_ascii_strcasecmp(kind, "knave") != 0))
            return FALSE;
        seen[who] = TRUE;
        said->of[who] = knight;
    }
    return TRUE;
}

/* A knight's claims are true, a knave's are not. */
static gboolean knights_hold(const json_t *puzzle, const Said *said)
{
    const json_t *given;
    gsize i;
    json_array_foreach(json_object_get(puzzle, "says"), i, given)
    {
        const Rule *claim = rule_find(claims, G_N_ELEMENTS(claims),
                                      json_string_value(json_object_get(given, "claim")));
        if (rule_holds(claim, given, said) != (said->of[number_of(given, "by")] == 1))
            return FALSE;
    }
    return TRUE;
}

static json_t *names_draw(TextDraw *draw, guint n)
{
    json_t *names = json_array();
    guint first = text_below(draw, G_N_ELEMENTS(people));
    for (guint i = 0; i < n; i++)
        json_array_append_new(names, json_string(people[(first + i) % G_N_ELEMENTS(people)]));
    return names;
}

/* Somebody's claim that fits: true of a knight, false of a knave. */
static json_t *claim_draw(TextDraw *draw, const Said *said, int by)
{
    for (;;) {
        const Rule *claim = &claims[text_below(draw, G_N_ELEMENTS(claims))];
        int a = (int)text_below(draw, said->n), b = (int)text_below(draw, said->n);
        int n = (int)text_below(draw, said->n + 1);
        if (a == b || a == by || claim->holds(said, a, b, n) != (said->of[by] == 1))
            continue;
        return json_pack("{s:i, s:s, s:i, s:i, s:i}", "by", by, "claim", claim->word, "a", a, "b",
                         b, "n", n);
    }
}

static json_t *knights_make(TextDraw *draw)
{
    Said said = {.n = (guint)text_between(draw, 3, 4)};
    g_autoptr(json_t) says = json_array();
    g_autoptr(json_t) names = names_draw(draw, said.n);
    g_autoptr(json_t) puzzle =
        json_pack("{s:s, s:O, s:O}", "form", "knights", "names", names, "says", says);
    g_autoptr(GString) text = g_string_new("Knights always tell the truth, knaves always lie.");
    g_autoptr(GString) solution = g_string_new(NULL);
    for (guint i = 0; i < said.n; i++)
        said.of[i] = (int)text_below(draw, 2);
    for (guint i = 0; i < said.n; i++) {
        json_t *given = claim_draw(draw, &said, (int)i);
        const Rule *claim = rule_find(claims, G_N_ELEMENTS(claims),
                                      json_string_value(json_object_get(given, "claim")));
        json_array_append_new(says, given);
        g_string_append_printf(text, "\n%s says: ", name_at(puzzle, i));
        say_rule(text, claim, name_at(puzzle, (gsize)number_of(given, "a")),
                 name_at(puzzle, (gsize)number_of(given, "b")), number_of(given, "n"));
        g_string_append_c(text, '.');
        g_string_append_printf(solution, "%s: %s\n", name_at(puzzle, i),
                               said.of[i] ? "knight" : "knave");
    }
    g_string_append(text, "\n\nWho is what? Answer with a line for each, as in \"Zoe: knight\" or "
                          "\"Zoe: knave\".");
    return json_pack("{s:s, s:O, s:s}", "problem_statement", text->str, "puzzle", puzzle,
                     "solution", solution->str);
}

/* ---- orders ---- */

static gboolean order_before(const Said *said, int a, int b, int n)
{
    (void)n;
    return said->of[a] < said->of[b];
}

static gboolean order_beside(const Said *said, int a, int b, int n)
{
    (void)n;
    return ABS(said->of[a] - said->of[b]) == 1;
}

static gboolean order_apart(const Said *said, int a, int b, int n)
{
    return !order_beside(said, a, b, n);
}

static gboolean order_at(const Said *said, int a, int b, int n)
{
    (void)b;
    return said->of[a] == n;
}

static const Rule orders[] = {
    {"before", 2, FALSE, order_before, "$a stands somewhere before $b"},
    {"beside", 2, FALSE, order_beside, "$a stands next to $b"},
    {"apart", 2, FALSE, order_apart, "$a does not stand next to $b"},
    {"at", 1, TRUE, order_at, "$a has place $n"},
};

static gboolean order_ok(const json_t *puzzle, GError **error)
{
    return names_ok(puzzle, error) &&
           rules_ok(puzzle, "rules", "rule", orders, G_N_ELEMENTS(orders), error);
}

/* One line, all names once; places count from 1. */
static gboolean order_read(const json_t *puzzle, const char *answer, Said *said)
{
    g_auto(GStrv) lines = lines_of(answer);
    said->n = names_count(puzzle);
    if (g_strv_length(lines) != 1)
        return FALSE;
    g_auto(GStrv) words = g_strsplit_set(lines[0], ", \t", -1);
    int place = 0;
    for (char **word = words; *word != NULL; word++) {
        int who = **word != '\0' ? name_find(puzzle, *word) : -1;
        if (**word == '\0')
            continue;
        if (who < 0 || said->of[who] != 0)
            return FALSE;
        said->of[who] = ++place;
    }
    return place == (int)said->n;
}

static gboolean order_holds(const json_t *puzzle, const Said *said)
{
    const json_t *given;
    gsize i;
    json_array_foreach(json_object_get(puzzle, "rules"), i, given)
    {
        const Rule *rule = rule_find(orders, G_N_ELEMENTS(orders),
                                     json_string_value(json_object_get(given, "rule")));
        if (!rule_holds(rule, given, said))
            return FALSE;
    }
    return TRUE;
}

/* A rule that the order keeps. */
static json_t *order_rule_draw(TextDraw *draw, const Said *said)
{
    for (;;) {
        const Rule *rule = &orders[text_below(draw, G_N_ELEMENTS(orders))];
        int a = (int)text_below(draw, said->n), b = (int)text_below(draw, said->n);
        int n = said->of[a];
        if (a != b && rule->holds(said, a, b, n))
            return json_pack("{s:s, s:i, s:i, s:i}", "rule", rule->word, "a", a, "b", b, "n", n);
    }
}

static json_t *order_make(TextDraw *draw)
{
    Said said = {.n = (guint)text_between(draw, 3, 5)};
    g_autoptr(json_t) rules = json_array();
    g_autoptr(json_t) names = names_draw(draw, said.n);
    g_autoptr(json_t) puzzle =
        json_pack("{s:s, s:O, s:O}", "form", "order", "names", names, "rules", rules);
    g_autoptr(GString) text = g_string_new(NULL), solution = g_string_new(NULL);
    for (guint i = 0; i < said.n; i++)
        g_string_append_printf(text, "%s%s",
                               i == 0           ? ""
                               : i + 1 < said.n ? ", "
                                                : " and ",
                               name_at(puzzle, i));
    g_string_append(text, " stand in a row.");
    for (guint place = 1; place <= said.n;) {
        guint who = text_below(draw, said.n);
        if (said.of[who] != 0)
            continue;
        said.of[who] = (int)place++;
        g_string_append_printf(solution, "%s%s", solution->len > 0 ? ", " : "",
                               name_at(puzzle, who));
    }
    for (guint i = 0; i < said.n; i++) {
        json_t *given = order_rule_draw(draw, &said);
        const Rule *rule = rule_find(orders, G_N_ELEMENTS(orders),
                                     json_string_value(json_object_get(given, "rule")));
        json_array_append_new(rules, given);
        g_string_append_c(text, '\n');
        say_rule(text, rule, name_at(puzzle, (gsize)number_of(given, "a")),
                 name_at(puzzle, (gsize)number_of(given, "b")), number_of(given, "n"));
        g_string_append_c(text, '.');
    }
    g_string_append(text, "\n\nIn which order may they stand? Answer with one line: the names from "
                          "place 1 on, with commas between.");
    return json_pack("{s:s, s:O, s:s}", "problem_statement", text->str, "puzzle", puzzle,
                     "solution", solution->str);
}

/* ---- sudoku, four by four ---- */

static gboolean sudoku_ok(const json_t *puzzle, GError **error)
{
    const char *grid = json_string_value(json_object_get(puzzle, "grid"));
    return (grid != NULL && strlen(grid) == CELLS && strspn(grid, "1234.") == CELLS) ||
           error_set(error, ASSAY_ERROR_INPUT, "field puzzle.grid: expected 16 of 1234.");
}

static gboolean sudoku_read(const json_t *puzzle, const char *answer, Said *said)
{
    g_auto(GStrv) lines = lines_of(answer);
    (void)puzzle;
    if (g_strv_length(lines) != SIDE)
        return FALSE;
    for (char **line = lines; *line != NULL; line++) {
        guint before = said->n;
        for (const char *at = *line; *at != '\0'; at++) {
            if (*at == ' ')
                continue;
            if (*at < '1' || *at > '4' || said->n - before == SIDE)
                return FALSE;
            said->of[said->n++] = *at - '0';
        }
        if (said->n - before != SIDE)
            return FALSE;
    }
    return TRUE;
}

/* Bit d of a row, a column and a box is set once d was there: twice is wrong. */
static gboolean sudoku_hold(const json_t *puzzle, const Said *said)
{
    const char *grid = json_string_value(json_object_get(puzzle, "grid"));
    guint rows[SIDE] = {0}, columns[SIDE] = {0}, boxes[SIDE] = {0};
    for (guint i = 0; i < CELLS; i++) {
        guint row = i / SIDE, column = i % SIDE, box = row / 2 * 2 + column / 2;
        guint bit = 1u << said->of[i];
        if ((grid[i] != '.' && grid[i] - '0' != said->of[i]) ||
            ((rows[row] | columns[column] | boxes[box]) & bit) != 0)
            return FALSE;
        rows[row] |= bit;
        columns[column] |= bit;
        boxes[box] |= bit;
    }
    return TRUE;
}

/* A pattern with its digits, its halves and its lines exchanged. */
static json_t *sudoku_make(TextDraw *draw)
{
    static const char pattern[] = "1234341221434321";
    char digits[] = "1234";
    g_autofree char *grid = g_malloc0(CELLS + 1);
    g_autoptr(GString) text = g_string_new("Fill in the dots: every row, every column and every "
                                           "square of two by two holds 1, 2, 3 and 4.\n\n");
    g_autoptr(GString) solution = g_string_new(NULL);
    guint swaps = text_below(draw, 64);
    for (guint i = SIDE; i > 1; i--) {
        guint k = text_below(draw, i);
        char kept = digits[i - 1];
        digits[i - 1] = digits[k];
        digits[k] = kept;
    }
    for (guint i = 0; i < CELLS; i++) {
        guint row = i / SIDE, column = i % SIDE;
        row ^= (swaps & 1) * 2u ^ (row < 2 ? swaps >> 1 & 1 : swaps >> 2 & 1);
        column ^= (swaps >> 3 & 1) * 2u ^ (column < 2 ? swaps >> 4 & 1 : swaps >> 5 & 1);
        grid[i] = digits[pattern[row * SIDE + column] - '1'];
        g_string_append_printf(solution, "%c%s", grid[i], i % SIDE + 1 == SIDE ? "\n" : " ");
    }
    for (guint left = CELLS, given = (guint)text_between(draw, GIVEN_MIN, 10); left > given;) {
        guint i = text_below(draw, CELLS);
        left -= grid[i] != '.';
        grid[i] = '.';
    }
    for (guint i = 0; i < CELLS; i++)
        g_string_append_printf(text, "%c%s", grid[i], i % SIDE + 1 == SIDE ? "\n" : " ");
    g_string_append(text, "\nAnswer with the four lines.");
    return json_pack("{s:s, s:{s:s, s:s}, s:s}", "problem_statement", text->str, "puzzle", "form",
                     "sudoku", "grid", grid, "solution", solution->str);
}

/* ---- the table ---- */

static const struct {
    const char *form;
    gboolean (*ok)(const json_t *puzzle, GError **error);
    gboolean (*read)(const json_t *puzzle, const char *answer, Said *said);
    gboolean (*hold)(const json_t *puzzle, const Said *said);
    json_t *(*make)(TextDraw *draw);
} forms[] = {
    {"knights", knights_ok, knights_read, knights_hold, knights_make},
    {"order", order_ok, order_read, order_holds, order_make},
    {"sudoku", sudoku_ok, sudoku_read, sudoku_hold, sudoku_make},
};

static int form_of(const json_t *puzzle)
{
    const char *form = json_string_value(json_object_get(puzzle, "form"));
    for (gsize i = 0; form != NULL && i < G_N_ELEMENTS(forms); i++)
        if (g_str_equal(forms[i].form, form))
            return (int)i;
    return -1;
}

gboolean logic_puzzle_ok(const json_t *puzzle, GError **error)
{
    int form = form_of(puzzle);
    if (form < 0)
        return error_set(error, ASSAY_ERROR_INPUT,
                         "field puzzle.form: expected knights, order or sudoku");
    return forms[form].ok(puzzle, error);
}

gboolean logic_solves(const json_t *puzzle, const char *answer)
{
    Said said = {0};
    int form = form_of(puzzle);
    return forms[form].read(puzzle, answer, &said) && forms[form].hold(puzzle, &said);
}

json_t *logic_make(TextDraw *draw)
{
    return forms[text_below(draw, G_N_ELEMENTS(forms))].make(draw);
}
