/*
 * The syscall filter of a box, as BPF bytes: pure, from syscalls.def.
 *
 *     g_autoptr(GBytes) bpf = filter_build(FILTER_SOCKETS_LOCAL, error);
 */
#pragma once

#include <glib.h>

typedef enum FilterKind {
    FILTER_BOX = 0,       /* unix and internet sockets: the network namespace holds them */
    FILTER_UNIX_ONLY = 1, /* no network namespace: only AF_UNIX sockets */
} FilterKind;

/* An array of struct sock_filter for the native architecture, default ENOSYS, foreign
 * architectures killed. Deterministic. Built once per kind and process: the result is borrowed and
 * lives for ever. NULL: libseccomp failed. */
GBytes *filter_build(FilterKind kind, GError **error);
