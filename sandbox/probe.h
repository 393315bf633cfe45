/*
 * What the checks behind `assay doctor` share.
 */
#pragma once

#include "sandbox/box.h"

#define PROBE_SLOT 2045 /* the last slot: no worker uses it */

typedef enum ProbeStatus { PROBE_FAIL = 0, PROBE_WARN = 1, PROBE_OK = 2 } ProbeStatus;

typedef struct Probe {
    ProbeStatus status;
    char *detail;
    GPtrArray *fixes; /* of char *, lines that a person can paste or follow */
} Probe;

/* What a real box, opened and used once, says. */
typedef struct Trial {
    Box *box;
    GError *error;
    guint layers;
    gboolean ran;
} Trial;

typedef struct ProbeCheck {
    const char *id;
    void (*fn)(const Trial *trial, gconstpointer arg, Probe *ret);
    gconstpointer arg;
} ProbeCheck;

/* Sets the status and the detail. */
void probe_say(Probe *probe, ProbeStatus status, const char *format, ...) G_GNUC_PRINTF(3, 4);
void probe_fix(Probe *probe, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* The first line of a small file, or NULL. g_free. */
char *probe_line(const char *path);

/* The lists of checks, each ended by a row without id: namespaces and mounts (probe_host.c),
 * groups (probe_cgroup.c). */
extern const ProbeCheck probe_host_checks[], probe_cgroup_checks[];

/* Runs `fn` in a child with new namespaces of these flags, in a fresh id map when CLONE_NEWUSER is
 * among them, and in the group of `cgroup_fd` when that is not -1. 0, or the errno of what failed.
 * `fn` is called after a fork: it may only make system calls. NULL: nothing to do. */
int probe_try(guint64 flags, int cgroup_fd, int (*fn)(void));

/* Has tmpfs user xattrs, in a user namespace? Asked once. Without them (Linux before 6.6) an
 * overlay whose upper is a tmpfs answers EIO when a directory of a lower is removed or made again.
 */
gboolean probe_has_tmpfs_xattr(void);

#define PROBE_FIX_CONTAINER                                                                        \
    "in a container: docker run --security-opt seccomp=unconfined --security-opt "                 \
    "systempaths=unconfined --security-opt apparmor=unconfined ..., or --privileged"
