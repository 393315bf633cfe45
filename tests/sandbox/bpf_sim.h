/*
 * A small interpreter of classic BPF as seccomp uses it, to read filters without running anything.
 */
#pragma once

#include <glib.h>
#include <linux/seccomp.h>

/* The action that the program returns for that call. Fails the test on a malformed program. */
guint32 bpf_sim(GBytes *program, const struct seccomp_data *data);
