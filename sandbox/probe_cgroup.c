/*
 * Checks of control groups: which hierarchies, which controllers are ours, what the leaf can do.
 *
 * Invariant: only groups that boxes would make are made, below the places they would use.
 *
 * Not here: finding those places (cgroup_place.c).
 */
#include "sandbox/probe.h"

#include "sandbox/cgroup.h"
#include "sandbox/cgroup_place.h"
#include "sandbox/kernel.h"

#include <string.h>

static const char fix_unit[] = "as a systemd service: Delegate=memory pids cpu in its [Service]";
static const char fix_scope[] =
    "as an ordinary user: systemd-run --user --scope -p Delegate=yes assayd ...";
static const char fix_root[] =
    "else run the daemon as root; in a container: --privileged, or /sys/fs/cgroup mounted writable";

static void check_layout(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    (void)arg;
    const CgroupPlace *place = cgroup_place();
    gboolean v2 = place->parents[HIER_V2] != NULL, v1 = place->parents[HIER_MEMORY] != NULL;
    if (!v2 && !v1) {
        probe_say(ret, PROBE_WARN, "no hierarchy is mounted");
        probe_fix(ret, "mount -t cgroup2 cgroup2 /sys/fs/cgroup");
        return;
    }
    probe_say(ret, PROBE_OK, "%s",
              v2 && v1 ? "hybrid: version 1 controllers beside version 2"
              : v2     ? "version 2"
                       : "version 1");
}

typedef struct Held {
    const char *what, *without;
    BoxBy (*by)(const Cgroup *cgroup);
} Held;

static void check_held(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    const Held *held = arg;
    Cgroup *cgroup = cgroup_slot(PROBE_SLOT);
    BoxBy by = held->by(cgroup);
    if (by != BOX_BY_NOBODY) {
        probe_say(ret, PROBE_OK, "%s by %s", held->what, box_by_str(by));
        return;
    }
    g_autofree char *why = cgroup_why(cgroup);
    probe_say(ret, PROBE_WARN, "%s by no group, %s: %s", held->what, held->without, why);
    probe_fix(ret, "%s", fix_unit);
    probe_fix(ret, "%s", fix_scope);
    probe_fix(ret, "%s", fix_root);
}

/* A file of the version 2 leaf. */
static void check_file(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    const char *name = arg;
    Cgroup *cgroup = cgroup_slot(PROBE_SLOT);
    int leaf = cgroup_leaf_fd(cgroup);
    if (leaf >= 0 && faccessat(leaf, name, F_OK, 0) == 0) {
        probe_say(ret, PROBE_OK, "the version 2 leaf has %s", name);
        return;
    }
    if (g_str_equal(name, "memory.peak") && cgroup_mem_by(cgroup) == BOX_BY_CGROUP1) {
        probe_say(ret, PROBE_OK, "version 1 counts the peak: memory.max_usage_in_bytes");
        return;
    }
    probe_say(ret, PROBE_WARN, "%s",
              leaf < 0 ? "there is no version 2 leaf" : "the version 2 leaf does not have it");
    if (g_str_equal(name, "cgroup.kill"))
        probe_fix(ret, "Linux 5.14 or newer with cgroup version 2 mounted; boxes end by their pid "
                       "namespace meanwhile");
    else
        probe_fix(ret, "Linux 5.19 or newer with the memory controller delegated: %s", fix_unit);
}

static void check_clone_into(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    (void)arg;
    int leaf = cgroup_leaf_fd(cgroup_slot(PROBE_SLOT));
    int err = leaf < 0 ? 0 : probe_try(0, leaf, NULL);
    if (leaf >= 0 && err == 0) {
        probe_say(ret, PROBE_OK, "a process can be born in the version 2 leaf");
        return;
    }
    probe_say(ret, PROBE_WARN, "%s", leaf < 0 ? "there is no version 2 leaf" : g_strerror(err));
    probe_fix(ret, "Linux 5.7 or newer with cgroup version 2 mounted and writable");
    probe_fix(ret, "%s", fix_scope);
}

static void check_swap(const Trial *trial, gconstpointer arg, Probe *ret)
{
    (void)trial;
    (void)arg;
    g_autofree char *text = NULL;
    gboolean is_on = g_file_get_contents("/proc/swaps", &text, NULL, NULL) &&
                     strchr(text, '\n') != NULL && strchr(text, '\n')[1] != '\0';
    BoxBy by = cgroup_swap_by(cgroup_slot(PROBE_SLOT));
    if (!is_on || by != BOX_BY_NOBODY) {
        probe_say(ret, PROBE_OK, "%s, limited by %s", is_on ? "on" : "off", box_by_str(by));
        return;
    }
    probe_say(ret, PROBE_WARN, "on, and no group limits it: boxes may push the host into it");
    probe_fix(ret, "swapoff -a, or boot with swapaccount=1 and delegate the memory controller");
}

/* clang-format off */
static const Held memory = {"memory is held", "but sampled every 50 ms", cgroup_mem_by},
    pids = {"processes are held", "but by RLIMIT_NPROC", cgroup_pids_by},
    cpu_time = {"CPU time is counted", "but sampled", cgroup_cpu_by},
    cpu_share = {"CPU shares and caps are held", "but by affinity", cgroup_share_by};

const ProbeCheck probe_cgroup_checks[] = {
    {"cgroup_layout", check_layout, NULL},
    {"cgroup_memory", check_held, &memory},
    {"cgroup_pids", check_held, &pids},
    {"cgroup_cpu_time", check_held, &cpu_time},
    {"cgroup_cpu", check_held, &cpu_share},
    {"cgroup_kill", check_file, "cgroup.kill"},
    {"memory_peak", check_file, "memory.peak"},
    {"clone_into", check_clone_into, NULL},
    {"swap", check_swap, NULL},
    {NULL, NULL, NULL},
};
/* clang-format on */
