/*
 * Calls that somebody else wrote, to be put into a driver: one function, literals for arguments.
 */
#pragma once

#include <glib.h>

#define TEST_CALL_BYTES 200u

/*
 * NAME(LITERAL, ...): whole numbers of at most five digits, strings of printable ASCII without
 * escapes; in C also A(1, 2, ...), an array and its length; in Python lists, tuples, True, False
 * and None. So nothing can be written that exits, prints, reads files or looks at the clock, and
 * nothing so large that it passes or fails by how fast the machine is.
 *
 * NULL: it is no such call. Else the kinds of the arguments, which in C must be those of the
 * function (w whole, s string, a array): a string for a number would be an address, another one in
 * every run. In Python always "".
 */
char *test_call_shape(const char *call, const char *name, gboolean is_python);
