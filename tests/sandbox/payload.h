/*
 * The attacker's second file.
 */
#pragma once

/* Runs argv[1], if it is one of the longer attempts: its exit status, else -1. */
int payload_more(int argc, char **argv);

/* One word per layer that it finds around itself (payload_layers.c). `hosts` are "NAME=INODE" of
 * the host's namespaces. */
int payload_layers(int n_hosts, char **hosts);
