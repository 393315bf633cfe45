/*
 * Where groups can be made: which hierarchies this host has, and which directory of each is ours.
 */
#pragma once

#include <glib.h>

#define CGROUP_PREFIX     "assay-box-"
#define CGROUP_SUPERVISOR "supervisor" /* the last part of the group that we move ourselves to */

typedef enum Hierarchy {
    HIER_V2,
    HIER_MEMORY,
    HIER_PIDS,
    HIER_CPU,
    HIER_CPUACCT,
    HIER_COUNT
} Hierarchy;

typedef struct CgroupPlace {
    char *parents[HIER_COUNT]; /* groups are made below these; NULL: no such hierarchy */
    gboolean v2_controls;      /* memory and pids of groups below parents[HIER_V2] can be limited */
    gboolean v2_cpu;           /* CPU shares and caps as well */
    gboolean v2_moved;         /* this process moved itself to a supervisor group */
    char *why;                 /* why v2_controls is not set */
} CgroupPlace;

/* Looked for once per process; the first call may move this process into a supervisor group. */
const CgroupPlace *cgroup_place(void);

/* assay-box-PID-STARTTIME-LAST for this process. */
char *cgroup_name(const char *last);

/* Field 22 of /proc/PID/stat: with the pid it names a process for ever. 0: there is none. */
guint64 cgroup_start_time(guint64 pid);

/* A file of a group as text; NULL when it cannot be read. */
char *cgroup_read(int dir_fd, const char *name);

/* FALSE with errno. */
gboolean cgroup_write(int dir_fd, const char *name, const char *text);
