/*
 * Libraries of ours that are opened at run time, where a machine has what they need.
 */
#pragma once

#include <stddef.h>

/* `path`, or where that is NULL `file` beside the program as in a build tree, else where it was
 * installed. NULL with the reason: "no NOUN: ...". Nothing is closed again: threads of a driver may
 * live until the program ends. */
void *library_open(const char *path, const char *file, const char *noun, char *why,
                   size_t why_size);
