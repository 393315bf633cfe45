/*
 * `assay box run`, `assay box shell` and `assay box probe`: boxes from the command line.
 */
#pragma once

/* argv[0] is the word before "run" or "shell". Returns the exit status: the command's own; 128 +
 * signal; 124 at the wall limit; 125 when a box could not be had; 126 and 127 when the command
 * could not be started; 137 after running out of memory. */
int box_tool_main(int argc, char **argv);
