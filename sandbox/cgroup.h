/*
 * The cgroups of one slot: what limits and what counts.
 *
 *     Cgroup *cgroup = cgroup_slot(slot);             makes what this host lets us make
 *     cgroup_attach(cgroup, starter_pid, error);      version 1: once, children inherit
 *     cgroup_limits(cgroup, &limits, error);
 *     CgroupUsage before = cgroup_usage(cgroup); ... cgroup_kill(cgroup);
 */
#pragma once

#include "sandbox/box.h"

#include <sys/types.h>

typedef struct Cgroup Cgroup;

typedef struct CgroupUsage {
    guint64 cpu_user_us, cpu_sys_us, mem_peak_bytes, oom_kills, pids_peak;
} CgroupUsage;

/* Makes the groups of `slot` below this process's own groups; never fails: what cannot be made is
 * absent and cgroup_*_by() says so. Shared by all boxes of the slot in this process. */
Cgroup *cgroup_slot(guint slot);

/* Puts a process into the version 1 groups. */
gboolean cgroup_attach(Cgroup *cgroup, pid_t pid, GError **error);

/* Sets memory, swap, pids and the CPU's share and cap, as far as groups do. */
gboolean cgroup_limits(Cgroup *cgroup, const BoxLimits *limits, GError **error);

/* Memory of an earlier box of the slot is freed in the background: waits, for a bounded time, until
 * little of it is left. */
void cgroup_wait_drained(const Cgroup *cgroup);

/* Forgets the memory peak. FALSE where the host cannot (version 2 before Linux 6.12): it may be
 * older than a command. */
gboolean cgroup_peak_reset(const Cgroup *cgroup);

/* Memory in use now. */
guint64 cgroup_memory(const Cgroup *cgroup);

CgroupUsage cgroup_usage(const Cgroup *cgroup);
/* SIGKILLs everything in the leaf, atomically. FALSE where the host cannot. */
gboolean cgroup_kill(const Cgroup *cgroup);

/* The version 2 leaf for CLONE_INTO_CGROUP, borrowed; -1 when there is none. */
int cgroup_leaf_fd(const Cgroup *cgroup);

BoxBy cgroup_mem_by(const Cgroup *cgroup);
BoxBy cgroup_pids_by(const Cgroup *cgroup);
BoxBy cgroup_swap_by(const Cgroup *cgroup);
BoxBy cgroup_cpu_by(const Cgroup *cgroup);   /* who counts CPU time */
BoxBy cgroup_share_by(const Cgroup *cgroup); /* who weighs and caps it */

/* Why memory or pids are held by nobody. g_free. */
char *cgroup_why(const Cgroup *cgroup);

/* Removes every group of this process; its starters must have ended. */
void cgroup_remove_all(void);

/* Removes groups whose owner process is gone. Returns how many. */
guint cgroup_sweep(void);
