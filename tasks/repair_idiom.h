/*
 * Functions made at random of the idioms of C, for imitation: a policy that knows thousands of them
 * reads code, where one that knows a hundred families remembers it.
 *
 * tasks/repair_idioms.txt is their grammar, and "function" its start:
 *
 *     NAME = TEXT :: TEXT ...        a rule: one of these, each as likely; spaces count
 *     rule NAME                      likewise, with texts of several lines
 *     TEXT
 *     or
 *     TEXT
 *     end
 *     header NAME ... end            the header of functions that say "struct NAME"
 *
 * In a text @NAME is what a rule gives, indented like the line it stands on; lines left empty go.
 * `...` in a signature becomes the parameters that the function uses: of $x $y $z $l $h (int) and
 * $c $d (char) those that occur.
 *
 * They have no tests: nobody knows what they should do.
 */
#pragma once

#include "tasks/repair_family.h"

#define REPAIR_IDIOMS "idioms" /* what to ask for */

/* A function that is none of the families', not even up to what it returns last. */
RepairFamily *repair_idiom_draw(RepairDraw draw, gpointer data);
