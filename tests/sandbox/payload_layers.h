/*
 * The layers that a payload finds around itself.
 */
#pragma once

/* Prints one word per layer. `hosts` are "NAME=INODE" of the host's namespaces. */
int payload_layers(int n_hosts, char **hosts);
