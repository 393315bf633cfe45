/*
 * The syscall filter of a box, as BPF bytes: pure, from syscalls.def.
 *
 *     g_autoptr(GBytes) bpf = filter_build(FILTER_BOX, error);
 */
#pragma once

#include <glib.h>

typedef enum FilterKind {
    FILTER_BOX = 0,  /* namespaces hold sockets, IPC objects and other processes */
    FILTER_BARE = 1, /* no namespaces: no sockets, no IPC objects, no other process */
} FilterKind;

/* An array of struct sock_filter for the native architecture, default ENOSYS, foreign
 * architectures killed. Deterministic. Built once per kind and process: the result is borrowed and
 * lives for ever. NULL: libseccomp failed. */
GBytes *filter_build(FilterKind kind, GError **error);
