/*
 * The groups of one slot, whichever of versions 1 and 2 this host has and lets us use.
 *
 * A slot has one group per hierarchy: memory and pids limit it (version 2 where those controllers
 * are handed down to us, else version 1), cpu shares and caps it likewise, and a version 2 leaf
 * counts CPU time and kills, with or without controllers; where there is no version 2 at all,
 * cpuacct counts. Moving a process into version 1 groups takes milliseconds, so it is done once,
 * for the starter; what it forks is inside already. The leaf is entered by CLONE_INTO_CGROUP.
 *
 * Invariants:
 *   1. Groups are made only below the directories of cgroup_place.c, and only those are written to.
 *   2. A group's name carries its owner: assay-box-PID-STARTTIME-sSLOT, so that leftovers of a dead
 *      process can be told from live ones, pid reuse included.
 *   3. Nothing here is required: absence is reported, never guessed.
 *   4. memory.oom.group stays off: the keeper is in the leaf and must outlive a command that is
 *      killed for memory. Killing the rest of the command is box_exec.c's, on both versions.
 *
 * Not here: where groups may be made (cgroup_place.c), deciding from the numbers (box_exec.c),
 * sampling where there is no group (keeper_init.c).
 */
#include "sandbox/cgroup.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/cgroup_place.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define RMDIR_TRIES   200
#define RMDIR_WAIT_US 5000
#define DRAINED_BYTES (32u << 20)
#define DRAIN_TRIES   100
#define PERIOD_US     100000 /* of CPU caps */

struct Cgroup {
    char *dirs[HIER_COUNT]; /* NULL: absent */
    int fds[HIER_COUNT];
    int peak_fd;          /* of memory.peak: version 2 resets it for one descriptor only */
    gboolean v2_controls; /* memory and pids are limited by the leaf */
    gboolean v2_cpu;      /* CPU shares and caps too */
    gboolean has_swap;    /* swap can be limited */
    BoxLimits limits;     /* those that are set */
    gboolean is_limited;
    char *why; /* why memory or pids are held by nobody */
};

static GHashTable *slots;

/* Is this hierarchy needed, given what version 2 does already? */
static gboolean is_wanted(const CgroupPlace *place, Hierarchy hierarchy)
{
    switch (hierarchy) {
    case HIER_V2:
        return TRUE;
    case HIER_MEMORY:
    case HIER_PIDS:
        return !place->v2_controls;
    case HIER_CPU:
        return !place->v2_cpu;
    case HIER_CPUACCT:
        return place->parents[HIER_V2] == NULL;
    case HIER_COUNT:
    default:
        return FALSE;
    }
}

static void note_why(Cgroup *cgroup, Hierarchy hierarchy, const char *parent, int err)
{
    if (cgroup->why == NULL && (hierarchy == HIER_MEMORY || hierarchy == HIER_PIDS))
        cgroup->why = g_strdup_printf("make a group in %s: %s", parent, g_strerror(err));
}

static void make_group(Cgroup *cgroup, Hierarchy hierarchy, const char *name)
{
    const CgroupPlace *place = cgroup_place();
    const char *parent = place->parents[hierarchy];
    cgroup->fds[hierarchy] = -1;
    if (parent == NULL || !is_wanted(place, hierarchy))
        return;
    g_autofree char *dir = g_build_filename(parent, name, NULL);
    if (mkdir(dir, 0755) < 0 && errno != EEXIST) {
        note_why(cgroup, hierarchy, parent, errno);
        return;
    }
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        rmdir(dir);
        return;
    }
    cgroup->fds[hierarchy] = fd;
    cgroup->dirs[hierarchy] = g_steal_pointer(&dir);
}

static gboolean is_writable(int dir_fd, const char *name)
{
    return dir_fd >= 0 && faccessat(dir_fd, name, W_OK, AT_EACCESS) == 0;
}

Cgroup *cgroup_slot(guint slot)
{
    if (slots == NULL)
        slots = g_hash_table_new(NULL, NULL);
    Cgroup *cgroup = g_hash_table_lookup(slots, GUINT_TO_POINTER(slot));
    if (cgroup != NULL)
        return cgroup;

    const CgroupPlace *place = cgroup_place();
    g_autofree char *last = g_strdup_printf("s%u", slot);
    g_autofree char *name = cgroup_name(last);
    cgroup = g_new0(Cgroup, 1);
    for (int i = 0; i < HIER_COUNT; i++)
        make_group(cgroup, (Hierarchy)i, name);
    int v2 = cgroup->fds[HIER_V2];
    cgroup->v2_controls = place->v2_controls && is_writable(v2, "memory.max");
    cgroup->v2_cpu = place->v2_cpu && is_writable(v2, "cpu.max");
    cgroup->peak_fd = openat(v2, "memory.peak", O_RDWR | O_CLOEXEC);
    if (cgroup->peak_fd < 0)
        cgroup->peak_fd = openat(v2, "memory.peak", O_RDONLY | O_CLOEXEC);
    cgroup->has_swap = is_writable(v2, "memory.swap.max") ||
                       is_writable(cgroup->fds[HIER_MEMORY], "memory.memsw.limit_in_bytes");
    g_hash_table_insert(slots, GUINT_TO_POINTER(slot), cgroup);
    return cgroup;
}

gboolean cgroup_attach(Cgroup *cgroup, pid_t pid, GError **error)
{
    g_autofree char *text = g_strdup_printf("%d", (int)pid);
    for (int i = HIER_MEMORY; i < HIER_COUNT; i++) {
        if (cgroup->fds[i] < 0 || cgroup_write(cgroup->fds[i], "cgroup.procs", text))
            continue;
        if (i != HIER_CPU)
            return error_set_errno(error, errno, "enter %s", cgroup->dirs[i]);
        /* A group without real-time budget takes no real-time task: then nobody shares CPUs out. */
        close(cgroup->fds[i]);
        cgroup->fds[i] = -1;
    }
    return TRUE;
}

static gboolean fail_limit(const Cgroup *cgroup, Hierarchy hierarchy, GError **error)
{
    return error_set_errno(error, errno, "limit %s", cgroup->dirs[hierarchy]);
}

static gboolean set_number(int fd, const char *name, guint64 value, const char *none)
{
    g_autofree char *text =
        value == 0 ? g_strdup(none) : g_strdup_printf("%" G_GUINT64_FORMAT, value);
    return cgroup_write(fd, name, text);
}

static gboolean set_memory_v2(const Cgroup *cgroup, const BoxLimits *limits, GError **error)
{
    int v2 = cgroup->fds[HIER_V2];
    guint64 swap = limits->swap_bytes;
    if ((cgroup->has_swap && !set_number(v2, "memory.swap.max", swap, "0")) ||
        !set_number(v2, "memory.max", limits->mem_bytes, "max"))
        return fail_limit(cgroup, HIER_V2, error);
    return TRUE;
}

/* memory.memsw counts both, and may never be below the memory limit. */
static gboolean set_memory_v1(const Cgroup *cgroup, const BoxLimits *limits, GError **error)
{
    int memory = cgroup->fds[HIER_MEMORY];
    guint64 both = limits->mem_bytes == 0 ? 0 : limits->mem_bytes + limits->swap_bytes;
    if (memory < 0)
        return TRUE;
    cgroup_write(memory, "memory.swappiness", limits->swap_bytes == 0 ? "0" : "60");
    if ((cgroup->has_swap && !set_number(memory, "memory.memsw.limit_in_bytes", 0, "-1")) ||
        !set_number(memory, "memory.limit_in_bytes", limits->mem_bytes, "-1") ||
        (cgroup->has_swap && !set_number(memory, "memory.memsw.limit_in_bytes", both, "-1")))
        return fail_limit(cgroup, HIER_MEMORY, error);
    return TRUE;
}

/* Inside the limited group: the starter, its spare keeper with an init, the keeper, the init of the
 * running command, the staged one with its payload-to-be, and the one for the next reset. */
#define PIDS_OURS 8

static gboolean set_pids(const Cgroup *cgroup, const BoxLimits *limits, GError **error)
{
    Hierarchy hierarchy = cgroup->v2_controls ? HIER_V2 : HIER_PIDS;
    guint64 pids = limits->pids > 0 ? limits->pids + PIDS_OURS : 0;
    if (cgroup->fds[hierarchy] >= 0 && !set_number(cgroup->fds[hierarchy], "pids.max", pids, "max"))
        return fail_limit(cgroup, hierarchy, error);
    return TRUE;
}

/* Weights are version 2's, 1..10000 with 100 as the default; 1024 shares are as much. */
static gboolean set_cpu(const Cgroup *cgroup, const BoxLimits *limits, GError **error)
{
    int v2 = cgroup->fds[HIER_V2], v1 = cgroup->fds[HIER_CPU];
    guint64 weight = limits->cpu_weight > 0 ? limits->cpu_weight : 100;
    guint64 quota_us = limits->cpu_milli * PERIOD_US / 1000;
    if (cgroup->v2_cpu) {
        g_autofree char *most =
            quota_us == 0 ? g_strdup_printf("max %d", PERIOD_US)
                          : g_strdup_printf("%" G_GUINT64_FORMAT " %d", quota_us, PERIOD_US);
        return (set_number(v2, "cpu.weight", weight, "100") && cgroup_write(v2, "cpu.max", most)) ||
               fail_limit(cgroup, HIER_V2, error);
    }
    return v1 < 0 ||
           (set_number(v1, "cpu.shares", MAX(weight * 1024 / 100, 2), "1024") &&
            set_number(v1, "cpu.cfs_quota_us", quota_us, "-1")) ||
           fail_limit(cgroup, HIER_CPU, error);
}

static gboolean same_limits(const BoxLimits *a, const BoxLimits *b)
{
    return a->mem_bytes == b->mem_bytes && a->swap_bytes == b->swap_bytes && a->pids == b->pids &&
           a->cpu_weight == b->cpu_weight && a->cpu_milli == b->cpu_milli;
}

gboolean cgroup_limits(Cgroup *cgroup, const BoxLimits *limits, GError **error)
{
    if (cgroup->is_limited && same_limits(&cgroup->limits, limits))
        return TRUE;
    cgroup->is_limited = (cgroup->v2_controls ? set_memory_v2(cgroup, limits, error)
                                              : set_memory_v1(cgroup, limits, error)) &&
                         set_pids(cgroup, limits, error) && set_cpu(cgroup, limits, error);
    cgroup->limits = *limits;
    return cgroup->is_limited;
}

static guint64 read_number(int dir_fd, const char *name)
{
    g_autofree char *text = dir_fd < 0 ? NULL : cgroup_read(dir_fd, name);
    return text == NULL ? 0 : g_ascii_strtoull(text, NULL, 10);
}

void cgroup_wait_drained(const Cgroup *cgroup)
{
    for (int i = 0; i < DRAIN_TRIES && cgroup_memory(cgroup) > DRAINED_BYTES; i++) {
        if (!cgroup->v2_controls)
            cgroup_write(cgroup->fds[HIER_MEMORY], "memory.force_empty", "0"); /* not page cache */
        g_usleep(RMDIR_WAIT_US);
    }
}

gboolean cgroup_peak_reset(const Cgroup *cgroup)
{
    if (cgroup->v2_controls)
        return write(cgroup->peak_fd, "0", 1) == 1;
    return cgroup->fds[HIER_MEMORY] < 0 ||
           cgroup_write(cgroup->fds[HIER_MEMORY], "memory.max_usage_in_bytes", "0");
}

guint64 cgroup_memory(const Cgroup *cgroup)
{
    return cgroup->v2_controls ? read_number(cgroup->fds[HIER_V2], "memory.current")
                               : read_number(cgroup->fds[HIER_MEMORY], "memory.usage_in_bytes");
}

/* The number after KEY in "key value" lines. */
static guint64 find_key(const char *text, const char *key)
{
    gsize len = strlen(key);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, key, len) == 0 && line[len] == ' ')
            return g_ascii_strtoull(line + len + 1, NULL, 10);
        line = strchr(line, '\n');
        line = line == NULL ? NULL : line + 1;
    }
    return 0;
}

static guint64 read_key(int dir_fd, const char *name, const char *key)
{
    g_autofree char *text = dir_fd < 0 ? NULL : cgroup_read(dir_fd, name);
    return find_key(text, key);
}

static guint64 read_peak(const Cgroup *cgroup)
{
    char text[32] = "";
    ssize_t n = pread(cgroup->peak_fd, text, sizeof text - 1, 0);
    return n > 0 ? g_ascii_strtoull(text, NULL, 10) : 0;
}

CgroupUsage cgroup_usage(const Cgroup *cgroup)
{
    int v2 = cgroup->fds[HIER_V2], memory = cgroup->fds[HIER_MEMORY];
    int acct = cgroup->fds[HIER_CPUACCT];
    CgroupUsage usage = {0};
    if (v2 >= 0) {
        g_autofree char *cpu = cgroup_read(v2, "cpu.stat");
        usage.cpu_user_us = find_key(cpu, "user_usec");
        usage.cpu_sys_us = find_key(cpu, "system_usec");
    } else {
        usage.cpu_user_us = read_number(acct, "cpuacct.usage_user") / 1000;
        usage.cpu_sys_us = read_number(acct, "cpuacct.usage_sys") / 1000;
    }
    if (cgroup->v2_controls) {
        usage.mem_peak_bytes = read_peak(cgroup);
        usage.oom_kills = read_key(v2, "memory.events", "oom_kill");
        usage.pids_peak = read_number(v2, "pids.peak");
    } else {
        usage.mem_peak_bytes = read_number(memory, "memory.max_usage_in_bytes");
        usage.oom_kills = read_key(memory, "memory.oom_control", "oom_kill");
        usage.pids_peak = read_number(cgroup->fds[HIER_PIDS], "pids.peak");
    }
    return usage;
}

gboolean cgroup_kill(const Cgroup *cgroup)
{
    return cgroup->fds[HIER_V2] >= 0 && cgroup_write(cgroup->fds[HIER_V2], "cgroup.kill", "1");
}

int cgroup_leaf_fd(const Cgroup *cgroup)
{
    return cgroup->fds[HIER_V2];
}

BoxBy cgroup_mem_by(const Cgroup *cgroup)
{
    if (cgroup->v2_controls)
        return BOX_BY_CGROUP2;
    return cgroup->fds[HIER_MEMORY] >= 0 ? BOX_BY_CGROUP1 : BOX_BY_NOBODY;
}

BoxBy cgroup_pids_by(const Cgroup *cgroup)
{
    if (cgroup->v2_controls)
        return BOX_BY_CGROUP2;
    return cgroup->fds[HIER_PIDS] >= 0 ? BOX_BY_CGROUP1 : BOX_BY_NOBODY;
}

BoxBy cgroup_swap_by(const Cgroup *cgroup)
{
    return cgroup->has_swap ? cgroup_mem_by(cgroup) : BOX_BY_NOBODY;
}

BoxBy cgroup_cpu_by(const Cgroup *cgroup)
{
    if (cgroup->fds[HIER_V2] >= 0)
        return BOX_BY_CGROUP2;
    return cgroup->fds[HIER_CPUACCT] >= 0 ? BOX_BY_CGROUP1 : BOX_BY_NOBODY;
}

BoxBy cgroup_share_by(const Cgroup *cgroup)
{
    if (cgroup->v2_cpu)
        return BOX_BY_CGROUP2;
    return cgroup->fds[HIER_CPU] >= 0 ? BOX_BY_CGROUP1 : BOX_BY_NOBODY;
}

char *cgroup_why(const Cgroup *cgroup)
{
    const char *v2 = cgroup_place()->why;
    return g_strdup_printf("%s%s%s", v2 != NULL ? v2 : "the group cannot be limited",
                           cgroup->why != NULL ? "; " : "", cgroup->why != NULL ? cgroup->why : "");
}

/* A group that held processes a moment ago may still be busy: a bounded number of retries. */
static gboolean remove_group(const char *dir)
{
    for (int i = 0; i < RMDIR_TRIES; i++) {
        if (rmdir(dir) == 0 || errno == ENOENT)
            return TRUE;
        if (errno != EBUSY)
            break;
        g_usleep(RMDIR_WAIT_US);
    }
    g_warning("cannot remove cgroup %s: %s", dir, g_strerror(errno));
    return FALSE;
}

void cgroup_remove_all(void)
{
    GHashTableIter iter;
    gpointer value;
    if (slots == NULL)
        return;
    g_hash_table_iter_init(&iter, slots);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        Cgroup *cgroup = value;
        for (int i = 0; i < HIER_COUNT; i++) {
            if (cgroup->fds[i] < 0)
                continue;
            close(cgroup->fds[i]);
            remove_group(cgroup->dirs[i]);
            g_free(cgroup->dirs[i]);
        }
        fd_close_p(&cgroup->peak_fd);
        g_free(cgroup->why);
        g_free(cgroup);
    }
    g_clear_pointer(&slots, g_hash_table_unref);
}

/* assay-box-PID-START-LAST: is that process gone? */
static gboolean is_stale(const char *name)
{
    if (!g_str_has_prefix(name, CGROUP_PREFIX))
        return FALSE;
    g_auto(GStrv) parts = g_strsplit(name + strlen(CGROUP_PREFIX), "-", 3);
    if (g_strv_length(parts) != 3)
        return FALSE;
    guint64 pid = g_ascii_strtoull(parts[0], NULL, 10);
    guint64 started = g_ascii_strtoull(parts[1], NULL, 10);
    return pid > 0 && started > 0 && cgroup_start_time(pid) != started;
}

/* A slot's group is killed. A supervisor's goes once it is empty: it may hold survivors. Another
 * user's is left to that user. */
static guint sweep_one(const char *parent, const char *name)
{
    g_autofree char *path = g_build_filename(parent, name, NULL);
    struct stat st;
    if (lstat(path, &st) < 0 || (geteuid() != 0 && st.st_uid != geteuid()))
        return 0;
    if (g_str_has_suffix(name, "-" CGROUP_SUPERVISOR))
        return rmdir(path) == 0;
    AUTO_FD fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        cgroup_write(fd, "cgroup.kill", "1");
    return remove_group(path);
}

guint cgroup_sweep(void)
{
    guint n = 0;
    for (int i = 0; i < HIER_COUNT; i++) {
        const char *parent = cgroup_place()->parents[i];
        g_autoptr(GDir) dir = parent == NULL ? NULL : g_dir_open(parent, 0, NULL);
        const char *name;
        while (dir != NULL && (name = g_dir_read_name(dir)) != NULL)
            if (is_stale(name))
                n += sweep_one(parent, name);
    }
    return n;
}
