/*
 * The attacker's second file.
 */
#pragma once

/* Runs argv[1], if it is one of the longer attempts: its exit status, else -1. */
int payload_more(int argc, char **argv);
