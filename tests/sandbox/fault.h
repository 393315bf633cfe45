/*
 * System calls that fail on demand, in a process and all that it starts.
 *
 *     fault_watch(&plan, tally);          in a process of its own, before it opens a box
 *     ... box_open(), box_exec() ...      the nth call of that kind fails with plan.err
 *
 * A filter hands the calls of set-up to a thread of the same process, which lets them go on or
 * answers in the host's place.
 */
#pragma once

#include <glib.h>

#define FAULT_KINDS_MAX 64
#define FAULT_ALWAYS    G_MAXUINT

typedef struct FaultKind {
    const char *name;
    int nr;
} FaultKind;

/* The calls that are watched. */
extern const FaultKind fault_kinds[];
extern const guint fault_n_kinds;

typedef struct FaultPlan {
    guint kind;
    guint nth; /* 1: the first; FAULT_ALWAYS: each; 0: none */
    int err;
} FaultPlan;

/* In memory shared with the process that looks on. */
typedef struct FaultTally {
    guint seen[FAULT_KINDS_MAX];
    guint n_injected;
    char comm[32]; /* of the process that failed last */
} FaultTally;

/* From here on calls of this thread, and of everything it starts, are counted and answered; calls
 * of processes named "payload" are neither. FALSE with errno: the host has no such filters. */
gboolean fault_watch(const FaultPlan *plan, FaultTally *tally);

/* No call fails from here on. */
void fault_stop(void);
