/*
 * Puzzles with rules: a solution is checked against the rules, never compared with another one.
 *
 *     "puzzle": {"form": "knights", "names": [...], "says": [{"by": 0, "claim": "knave", "a": 1}]}
 *               {"form": "order",   "names": [...], "rules": [{"rule": "before", "a": 0, "b": 2}]}
 *               {"form": "sudoku",  "grid": "1..4..2.........."}
 *
 * Answers: knights "Ann: knight", a line for each; order "Ann, Bob, Cid"; sudoku four lines of four
 * digits. Blank lines are nothing; every other line must be of that form, and nothing may be said
 * twice.
 */
#pragma once

#include "tasks/text.h"

#define LOGIC_NAMES_MAX 8u
#define LOGIC_RULES_MAX 64u

/* INPUT: the part that is wrong. */
gboolean logic_puzzle_ok(const json_t *puzzle, GError **error);

/* `puzzle` must be ok. */
gboolean logic_solves(const json_t *puzzle, const char *answer);

/* A puzzle: statement, "puzzle", "solution". */
json_t *logic_make(TextDraw *draw);
