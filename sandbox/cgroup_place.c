/*
 * Finding the directories below which this process may make groups.
 *
 * Version 1: our own group of each controller's hierarchy. Version 2 limits memory and pids only
 * below a group that hands those controllers down, and no group but the root may hold processes
 * and hand controllers down. So the parent is the first of: our own group, if it hands them down or
 * lets us make it do so; our own group after all of it, which must be us alone, moved into a
 * "supervisor" child (a service with Delegate=yes, a scope of our own); the nearest group above
 * that hands them down and that we may write (what a worker below a supervisor finds, and a root
 * shell whose scope holds other processes).
 *
 * Invariants:
 *   1. Of existing groups only cgroup.subtree_control is written, and only to add controllers.
 *   2. No process is moved but this one and its descendants.
 *   3. When nothing works, `why` says what was refused, by which directory.
 *
 * Not here: groups of slots and their limits (cgroup.c).
 */
#include "sandbox/cgroup_place.h"

#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define TEXT_MAX     4096 /* these files are short */
#define MOVE_ROUNDS  4    /* a process may fork while its group is emptied */
#define ANCESTOR_MAX 64

static const char *const controllers[HIER_COUNT] = {NULL, "memory", "pids", "cpu", "cpuacct"};

char *cgroup_read(int dir_fd, const char *name)
{
    AUTO_FD fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    char text[TEXT_MAX];
    ssize_t n = read(fd, text, sizeof text - 1);
    return n < 0 ? NULL : g_strndup(text, (gsize)n);
}

gboolean cgroup_write(int dir_fd, const char *name, const char *text)
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

static char *own_dir(Hierarchy hierarchy)
{
    g_autofree char *mounted = mount_point(controllers[hierarchy]);
    g_autofree char *own = own_path(controllers[hierarchy]);
    if (mounted == NULL || own == NULL || strstr(own, "/..") != NULL)
        return NULL; /* outside what this namespace shows */
    g_autofree char *dir =
        own[1] == '\0' ? g_strdup(mounted) : g_build_filename(mounted, own, NULL);
    struct statfs fs;
    gboolean is_ours =
        statfs(dir, &fs) == 0 &&
        fs.f_type == (hierarchy == HIER_V2 ? CGROUP2_SUPER_MAGIC : CGROUP_SUPER_MAGIC);
    return is_ours ? g_steal_pointer(&dir) : NULL; /* else something covers it */
}

/* The fields after the name in /proc/PID/stat: [0] is the state. */
static GStrv stat_fields(guint64 pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%" G_GUINT64_FORMAT "/stat", pid);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return NULL;
    const char *after = strrchr(text, ')');
    return after == NULL ? NULL : g_strsplit(after + 2, " ", 21);
}

guint64 cgroup_start_time(guint64 pid)
{
    g_auto(GStrv) fields = stat_fields(pid);
    return fields == NULL || g_strv_length(fields) < 20 ? 0
                                                        : g_ascii_strtoull(fields[19], NULL, 10);
}

char *cgroup_name(const char *last)
{
    return g_strdup_printf(CGROUP_PREFIX "%d-%" G_GUINT64_FORMAT "-%s", (int)getpid(),
                           cgroup_start_time((guint64)getpid()), last);
}

/* This process or one below it. */
static gboolean is_ours(guint64 pid)
{
    for (int i = 0; i < ANCESTOR_MAX && pid > 1; i++) {
        if (pid == (guint64)getpid())
            return TRUE;
        g_auto(GStrv) fields = stat_fields(pid);
        if (fields == NULL || g_strv_length(fields) < 2)
            return FALSE;
        pid = g_ascii_strtoull(fields[1], NULL, 10);
    }
    return FALSE;
}

/* Does the file (cgroup.controllers, cgroup.subtree_control) name the controller? */
static gboolean lists(int dir_fd, const char *file, const char *controller)
{
    g_autofree char *text = cgroup_read(dir_fd, file);
    if (text == NULL)
        return FALSE;
    g_auto(GStrv) names = g_strsplit(g_strstrip(text), " ", -1);
    return g_strv_contains((const char *const *)names, controller);
}

static gboolean hands_down(int dir_fd)
{
    return lists(dir_fd, "cgroup.subtree_control", "memory") &&
           lists(dir_fd, "cgroup.subtree_control", "pids");
}

/* Makes DIR hand down memory and pids, and cpu if it has it. FALSE with errno. */
static gboolean hand_down(int dir_fd)
{
    if (!hands_down(dir_fd) && !cgroup_write(dir_fd, "cgroup.subtree_control", "+memory +pids"))
        return FALSE;
    if (!lists(dir_fd, "cgroup.subtree_control", "cpu"))
        cgroup_write(dir_fd, "cgroup.subtree_control", "+cpu");
    return TRUE;
}

/* A process that is in DIR itself and not ours; 0: none. */
static guint64 stranger_in(int dir_fd)
{
    g_autofree char *text = cgroup_read(dir_fd, "cgroup.procs");
    g_auto(GStrv) lines = g_strsplit(text != NULL ? text : "", "\n", -1);
    for (char **line = lines; *line != NULL; line++)
        if (**line != '\0' && !is_ours(g_ascii_strtoull(*line, NULL, 10)))
            return MAX(g_ascii_strtoull(*line, NULL, 10), 1);
    return 0;
}

static void move_all(int from_fd, int to_fd)
{
    for (int round = 0; round < MOVE_ROUNDS; round++) {
        g_autofree char *text = cgroup_read(from_fd, "cgroup.procs");
        g_auto(GStrv) lines = g_strsplit(text != NULL ? text : "", "\n", -1);
        if (lines[0] == NULL || lines[0][0] == '\0')
            return;
        for (char **line = lines; *line != NULL; line++)
            if (**line != '\0')
                cgroup_write(to_fd, "cgroup.procs", *line);
    }
}

/* Empties our own group into a child of it, so that it may hand controllers down. */
static gboolean supervise(int own_fd)
{
    g_autofree char *name = cgroup_name(CGROUP_SUPERVISOR);
    if (mkdirat(own_fd, name, 0755) < 0 && errno != EEXIST)
        return FALSE;
    AUTO_FD child = openat(own_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (child < 0)
        return FALSE;
    move_all(own_fd, child);
    if (hand_down(own_fd))
        return TRUE;
    int err = errno;
    move_all(child, own_fd);
    unlinkat(own_fd, name, AT_REMOVEDIR);
    errno = err;
    return FALSE;
}

/* The nearest directory above DIR that hands controllers down to groups that we may make. */
static char *ancestor_of(const char *dir)
{
    g_autofree char *top = mount_point(NULL);
    g_autofree char *at = g_strdup(dir);
    while (top != NULL && strlen(at) > strlen(top)) {
        char *up = g_path_get_dirname(at);
        g_free(at);
        at = up;
        AUTO_FD fd = open(at, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0 && hands_down(fd) && faccessat(fd, ".", W_OK, AT_EACCESS) == 0 &&
            faccessat(fd, "cgroup.procs", W_OK, AT_EACCESS) == 0)
            return g_steal_pointer(&at);
    }
    return NULL;
}

static void find_v2(CgroupPlace *place)
{
    g_autofree char *own = own_dir(HIER_V2);
    AUTO_FD fd = own == NULL ? -1 : open(own, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        place->why = g_strdup("no cgroup version 2 hierarchy is mounted");
        return;
    }
    place->parents[HIER_V2] = g_strdup(own);
    if (!lists(fd, "cgroup.controllers", "memory") || !lists(fd, "cgroup.controllers", "pids")) {
        place->why = g_strdup_printf("%s has no memory and pids controllers", own);
        return;
    }
    gboolean may_write = faccessat(fd, "cgroup.subtree_control", W_OK, AT_EACCESS) == 0;
    guint64 stranger = 0;
    int err = errno;
    gboolean ok = may_write && hand_down(fd);
    if (may_write && !ok) {
        err = errno;
        stranger = stranger_in(fd);
        ok = place->v2_moved = err == EBUSY && stranger == 0 && supervise(fd);
    }
    if (!ok) {
        char *above = ancestor_of(own);
        if (above == NULL) {
            place->why = stranger > 0
                             ? g_strdup_printf("%s holds other processes (%" G_GUINT64_FORMAT ")",
                                               own, stranger)
                             : g_strdup_printf("%s: %s", own, g_strerror(err));
            return;
        }
        g_free(place->parents[HIER_V2]);
        place->parents[HIER_V2] = above;
    }
    AUTO_FD parent = open(place->parents[HIER_V2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    place->v2_controls = TRUE;
    place->v2_cpu = parent >= 0 && lists(parent, "cgroup.subtree_control", "cpu");
}

const CgroupPlace *cgroup_place(void)
{
    static CgroupPlace place;
    static gsize found;
    if (g_once_init_enter(&found)) {
        for (int i = HIER_MEMORY; i < HIER_COUNT; i++)
            place.parents[i] = own_dir((Hierarchy)i);
        find_v2(&place);
        g_once_init_leave(&found, 1);
    }
    return &place;
}
