/*
 * cgroups, whichever of versions 1 and 2 this host has and lets us use.
 *
 * A slot has one group per hierarchy: memory and pids limit it (version 2 where those controllers
 * are delegated to us, else version 1), and a version 2 leaf counts CPU time and kills, with or
 * without controllers. Moving a process into a version 1 group takes about 10 ms, so it is done
 * once, for the starter; what it forks is inside already. The leaf is entered by CLONE_INTO_CGROUP.
 *
 * Invariants:
 *   1. Groups are made only below this process's own group, and only those are ever written to.
 *   2. A group's name carries its owner: assay-box-PID-STARTTIME-sSLOT, so that leftovers of a dead
 *      process can be told from live ones, pid reuse included.
 *   3. Nothing here is required: absence is reported, never guessed.
 *
 * Not here: deciding from the numbers (box.c), sampling where there is no group (keeper_init.c).
 */
#include "sandbox/cgroup.h"

#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define PREFIX        "assay-box-"
#define RMDIR_TRIES   200
#define RMDIR_WAIT_US 5000
#define TEXT_MAX      4096 /* these files are short */
#define DRAINED_BYTES (32u << 20)
#define DRAIN_TRIES   100

typedef enum Hierarchy { HIER_V2, HIER_MEMORY, HIER_PIDS, HIER_COUNT } Hierarchy;

struct Cgroup {
    char *dirs[HIER_COUNT]; /* NULL: absent */
    int fds[HIER_COUNT];
    gboolean v2_controls;    /* memory and pids are limited by the leaf */
    guint64 mem_bytes, pids; /* the limits that are set */
    gboolean is_limited;
};

static GHashTable *slots;

static char *read_text(int dir_fd, const char *name)
{
    AUTO_FD fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    char text[TEXT_MAX];
    ssize_t n = read(fd, text, sizeof text - 1);
    return n < 0 ? NULL : g_strndup(text, (gsize)n);
}

static gboolean write_text(int dir_fd, const char *name, const char *text)
{
    AUTO_FD fd = openat(dir_fd, name, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, text, strlen(text)) == (gssize)strlen(text);
}

/* Where a hierarchy is mounted: NAME is a version 1 controller, or NULL for version 2. */
static char *mount_point(const char *name)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL))
        return NULL;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line != NULL; line++) {
        const char *dash = strstr(*line, " - ");
        g_auto(GStrv) left = g_strsplit(*line, " ", 6);
        g_auto(GStrv) right = dash == NULL ? NULL : g_strsplit(dash + 3, " ", 3);
        if (right == NULL || g_strv_length(left) < 6 || g_strv_length(right) < 3)
            continue;
        gboolean hit = FALSE;
        if (name == NULL) {
            hit = g_str_equal(right[0], "cgroup2");
        } else if (g_str_equal(right[0], "cgroup")) {
            g_auto(GStrv) options = g_strsplit(right[2], ",", -1);
            hit = g_strv_contains((const char *const *)options, name);
        }
        if (hit && g_str_equal(left[3], "/"))
            return g_strdup(left[4]);
    }
    return NULL;
}

/* This process's own path in a hierarchy, from /proc/self/cgroup. */
static char *own_path(const char *name)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents("/proc/self/cgroup", &text, NULL, NULL))
        return NULL;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line != NULL; line++) {
        g_auto(GStrv) parts = g_strsplit(*line, ":", 3);
        if (g_strv_length(parts) != 3)
            continue;
        g_auto(GStrv) names = g_strsplit(parts[1], ",", -1);
        if (name == NULL ? parts[1][0] == '\0' && g_str_equal(parts[0], "0")
                         : g_strv_contains((const char *const *)names, name))
            return g_strdup(parts[2]);
    }
    return NULL;
}

static const char *const hierarchy_names[HIER_COUNT] = {NULL, "memory", "pids"};

static char *parent_dir(Hierarchy hierarchy)
{
    g_autofree char *mounted = mount_point(hierarchy_names[hierarchy]);
    g_autofree char *own = own_path(hierarchy_names[hierarchy]);
    return mounted == NULL || own == NULL ? NULL : g_build_filename(mounted, own, NULL);
}

/* Field 22 of /proc/PID/stat: with the pid it names a process for ever. */
static guint64 start_time(guint64 pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%" G_GUINT64_FORMAT "/stat", pid);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return 0;
    const char *after = strrchr(text, ')');
    g_auto(GStrv) fields = after == NULL ? NULL : g_strsplit(after + 2, " ", 21);
    return fields == NULL || g_strv_length(fields) < 20 ? 0
                                                        : g_ascii_strtoull(fields[19], NULL, 10);
}

static void make_group(Cgroup *cgroup, Hierarchy hierarchy, const char *name)
{
    cgroup->fds[hierarchy] = -1;
    g_autofree char *parent = parent_dir(hierarchy);
    if (parent == NULL)
        return;
    g_autofree char *dir = g_build_filename(parent, name, NULL);
    if (mkdir(dir, 0755) < 0 && errno != EEXIST)
        return;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        rmdir(dir);
        return;
    }
    cgroup->fds[hierarchy] = fd;
    cgroup->dirs[hierarchy] = g_steal_pointer(&dir);
}

/* Version 2 limits need the controllers in the parent; asking for them may be refused. */
static gboolean v2_controllers(const Cgroup *cgroup)
{
    if (cgroup->fds[HIER_V2] < 0)
        return FALSE;
    if (faccessat(cgroup->fds[HIER_V2], "memory.max", W_OK, 0) == 0)
        return TRUE;
    write_text(cgroup->fds[HIER_V2], "../cgroup.subtree_control", "+memory +pids");
    return faccessat(cgroup->fds[HIER_V2], "memory.max", W_OK, 0) == 0;
}

Cgroup *cgroup_slot(guint slot)
{
    if (slots == NULL)
        slots = g_hash_table_new(NULL, NULL);
    Cgroup *cgroup = g_hash_table_lookup(slots, GUINT_TO_POINTER(slot));
    if (cgroup != NULL)
        return cgroup;

    g_autofree char *name = g_strdup_printf(PREFIX "%d-%" G_GUINT64_FORMAT "-s%u", (int)getpid(),
                                            start_time((guint64)getpid()), slot);
    cgroup = g_new0(Cgroup, 1);
    for (int i = 0; i < HIER_COUNT; i++)
        make_group(cgroup, (Hierarchy)i, name);
    cgroup->v2_controls = v2_controllers(cgroup);
    g_hash_table_insert(slots, GUINT_TO_POINTER(slot), cgroup);
    return cgroup;
}

gboolean cgroup_attach(Cgroup *cgroup, pid_t pid, GError **error)
{
    g_autofree char *text = g_strdup_printf("%d", (int)pid);
    for (int i = HIER_MEMORY; i < HIER_COUNT; i++)
        if (cgroup->fds[i] >= 0 && !cgroup->v2_controls &&
            !write_text(cgroup->fds[i], "cgroup.procs", text))
            return error_set_errno(error, errno, "enter %s", cgroup->dirs[i]);
    return TRUE;
}

static gboolean set_number(int fd, const char *name, guint64 value, const char *none)
{
    g_autofree char *text =
        value == 0 ? g_strdup(none) : g_strdup_printf("%" G_GUINT64_FORMAT, value);
    return write_text(fd, name, text);
}

/* The starter, the keeper and init are inside the limited group. */
#define PIDS_OURS 3

static gboolean set_limits(const Cgroup *cgroup, guint64 mem_bytes, guint64 pids, GError **error)
{
    int v2 = cgroup->fds[HIER_V2], memory = cgroup->fds[HIER_MEMORY],
        count = cgroup->fds[HIER_PIDS];
    if (cgroup->v2_controls) {
        write_text(v2, "memory.swap.max", "0");
        if (!set_number(v2, "memory.max", mem_bytes, "max") ||
            !set_number(v2, "pids.max", pids > 0 ? pids + PIDS_OURS : 0, "max"))
            return error_set_errno(error, errno, "limit %s", cgroup->dirs[HIER_V2]);
        return TRUE;
    }
    if (memory >= 0) {
        write_text(memory, "memory.swappiness", "0");
        if (!set_number(memory, "memory.limit_in_bytes", mem_bytes, "-1"))
            return error_set_errno(error, errno, "limit %s", cgroup->dirs[HIER_MEMORY]);
    }
    if (count >= 0 && !set_number(count, "pids.max", pids > 0 ? pids + PIDS_OURS : 0, "max"))
        return error_set_errno(error, errno, "limit %s", cgroup->dirs[HIER_PIDS]);
    return TRUE;
}

static guint64 read_number(int dir_fd, const char *name)
{
    g_autofree char *text = dir_fd < 0 ? NULL : read_text(dir_fd, name);
    return text == NULL ? 0 : g_ascii_strtoull(text, NULL, 10);
}

gboolean cgroup_limits(Cgroup *cgroup, guint64 mem_bytes, guint64 pids, GError **error)
{
    if (cgroup->is_limited && cgroup->mem_bytes == mem_bytes && cgroup->pids == pids)
        return TRUE;
    cgroup->is_limited = set_limits(cgroup, mem_bytes, pids, error);
    cgroup->mem_bytes = mem_bytes;
    cgroup->pids = pids;
    return cgroup->is_limited;
}

void cgroup_wait_drained(const Cgroup *cgroup)
{
    int fd = cgroup->fds[cgroup->v2_controls ? HIER_V2 : HIER_MEMORY];
    const char *name = cgroup->v2_controls ? "memory.current" : "memory.usage_in_bytes";
    for (int i = 0; i < DRAIN_TRIES && read_number(fd, name) > DRAINED_BYTES; i++) {
        if (!cgroup->v2_controls)
            write_text(fd, "memory.force_empty", "0"); /* page cache does not count */
        g_usleep(RMDIR_WAIT_US);
    }
}

void cgroup_peak_reset(const Cgroup *cgroup)
{
    if (cgroup->v2_controls)
        write_text(cgroup->fds[HIER_V2], "memory.peak", "reset");
    else if (cgroup->fds[HIER_MEMORY] >= 0)
        write_text(cgroup->fds[HIER_MEMORY], "memory.max_usage_in_bytes", "0");
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
    g_autofree char *text = dir_fd < 0 ? NULL : read_text(dir_fd, name);
    return find_key(text, key);
}

CgroupUsage cgroup_usage(const Cgroup *cgroup)
{
    int v2 = cgroup->fds[HIER_V2], memory = cgroup->fds[HIER_MEMORY];
    g_autofree char *cpu = v2 < 0 ? NULL : read_text(v2, "cpu.stat");
    CgroupUsage usage = {
        .cpu_user_us = find_key(cpu, "user_usec"),
        .cpu_sys_us = find_key(cpu, "system_usec"),
    };
    if (cgroup->v2_controls) {
        usage.mem_peak_bytes = read_number(v2, "memory.peak");
        usage.oom_kills = read_key(v2, "memory.events", "oom_kill");
        usage.pids_peak = read_number(v2, "pids.peak");
    } else {
        usage.mem_peak_bytes = read_number(memory, "memory.max_usage_in_bytes");
        usage.oom_kills = read_key(memory, "memory.oom_control", "oom_kill");
    }
    return usage;
}

gboolean cgroup_kill(const Cgroup *cgroup)
{
    return cgroup->fds[HIER_V2] >= 0 && write_text(cgroup->fds[HIER_V2], "cgroup.kill", "1");
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

BoxBy cgroup_cpu_by(const Cgroup *cgroup)
{
    return cgroup->fds[HIER_V2] >= 0 ? BOX_BY_CGROUP2 : BOX_BY_NOBODY;
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
        g_free(cgroup);
    }
    g_clear_pointer(&slots, g_hash_table_unref);
}

/* assay-box-PID-START-sSLOT: is that process gone? */
static gboolean is_stale(const char *name)
{
    if (!g_str_has_prefix(name, PREFIX))
        return FALSE;
    g_auto(GStrv) parts = g_strsplit(name + strlen(PREFIX), "-", 3);
    if (g_strv_length(parts) != 3)
        return FALSE;
    guint64 pid = g_ascii_strtoull(parts[0], NULL, 10);
    guint64 started = g_ascii_strtoull(parts[1], NULL, 10);
    return pid > 0 && started > 0 && start_time(pid) != started;
}

guint cgroup_sweep(void)
{
    guint n = 0;
    for (int i = 0; i < HIER_COUNT; i++) {
        g_autofree char *parent = parent_dir((Hierarchy)i);
        g_autoptr(GDir) dir = parent == NULL ? NULL : g_dir_open(parent, 0, NULL);
        const char *name;
        while (dir != NULL && (name = g_dir_read_name(dir)) != NULL) {
            if (!is_stale(name))
                continue;
            g_autofree char *path = g_build_filename(parent, name, NULL);
            AUTO_FD fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (fd >= 0)
                write_text(fd, "cgroup.kill", "1");
            n += remove_group(path);
        }
    }
    return n;
}
