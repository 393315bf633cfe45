/*
 * `assay box run`, `shell`, `probe` and `help`: boxes from the command line.
 */
#pragma once

/* argv[0] is the word before "run" or "shell". Returns the exit status: the command's own, or those
 * of box_options.h. */
int box_tool_main(int argc, char **argv);
