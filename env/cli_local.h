/*
 * Commands that work on the state directory or on files, without a daemon.
 *
 * Each takes its own argument vector (argv[0] is the verb) and returns an exit code
 * (docs/protocol.md, "Exit codes"). Answers go to stdout, talk to stderr.
 */
#pragma once

/* assay env build|ls|show|shell|rm */
int cli_env(int argc, char **argv);
/* assay repo ls|add|fetch|gc */
int cli_repo(int argc, char **argv);
/* assay parse --row FILE --log FILE --mode MODE */
int cli_parse(int argc, char **argv);
/* assay task new DIR */
int cli_task_new(int argc, char **argv);
