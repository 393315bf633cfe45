/*
 * The processes of one command, as init sees them: counted, sampled, and killed where no pid
 * namespace does that.
 *
 * With a pid namespace they are everything in /proc but init. Without one they are init's
 * descendants: init is a subreaper, so whatever daemonises becomes its child and keeps a chain of
 * parents that leads to it.
 *
 * Invariant: nothing outside the command is ever signalled or read.
 */
#include "sandbox/keeper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROCS_MAX   32768
#define KILL_ROUNDS 2000

static pid_t pids[PROCS_MAX], parents[PROCS_MAX];
static bool is_ours[PROCS_MAX];

static int read_proc(const char *pid, const char *name, char *text, size_t size)
{
    char path[300];
    snprintf(path, sizeof path, "/proc/%s/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return -1;
    text[n] = '\0';
    return 0;
}

typedef struct Stat {
    char state;
    pid_t parent, session;
} Stat;

/* /proc/PID/stat after the name, which may hold anything. */
static bool read_stat(const char *pid, Stat *ret)
{
    char text[1024], *end;
    if (read_proc(pid, "stat", text, sizeof text) < 0)
        return false;
    const char *after = strrchr(text, ')');
    if (after == NULL || strlen(after) < 5)
        return false;
    ret->state = after[2];
    ret->parent = (pid_t)strtoull(after + 4, &end, 10);
    strtoull(end, &end, 10); /* the process group */
    ret->session = (pid_t)strtoull(end, NULL, 10);
    return true;
}

/* 0 for a zombie. */
static pid_t parent_of(const char *pid)
{
    Stat stat;
    return read_stat(pid, &stat) && stat.state != 'Z' ? stat.parent : 0;
}

/* Fills pids[] with the command's processes. */
static int collect(const Keeper *keeper)
{
    bool all = !(keeper->open.flags & SPEC_OPEN_DEGRADED);
    DIR *dir = opendir("/proc");
    int n = 0, found = 0;
    if (dir == NULL)
        return 0;
    for (struct dirent *entry; n < PROCS_MAX && (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
            continue;
        pids[n] = (pid_t)strtoull(entry->d_name, NULL, 10);
        parents[n] = all ? 0 : parent_of(entry->d_name);
        is_ours[n] = all && pids[n] != 1;
        n += pids[n] != getpid();
    }
    closedir(dir);
    for (bool changed = !all; changed;) {
        changed = false;
        for (int i = 0; i < n; i++) {
            bool ours = parents[i] == getpid();
            for (int k = 0; !is_ours[i] && !ours && k < n; k++)
                ours = is_ours[k] && pids[k] == parents[i];
            changed = changed || (ours && !is_ours[i]);
            is_ours[i] = is_ours[i] || ours;
        }
    }
    for (int i = 0; i < n; i++)
        if (is_ours[i])
            pids[found++] = pids[i];
    return found;
}

uint32_t keeper_procs_count(const Keeper *keeper)
{
    return (uint32_t)collect(keeper);
}

uint64_t keeper_procs_memory(const Keeper *keeper)
{
    uint64_t total = 0;
    int n = collect(keeper);
    for (int i = 0; i < n; i++) {
        char pid[16], text[1024];
        snprintf(pid, sizeof pid, "%d", (int)pids[i]);
        if (read_proc(pid, "smaps_rollup", text, sizeof text) < 0)
            continue;
        const char *pss = strstr(text, "\nPss:");
        if (pss != NULL)
            total += strtoull(pss + 5, NULL, 10) * 1024;
    }
    return total;
}

uint64_t keeper_procs_cpu_ms(const Keeper *keeper)
{
    uint64_t ticks = 0;
    int n = collect(keeper);
    for (int i = 0; i < n; i++) {
        char pid[16], text[1024];
        snprintf(pid, sizeof pid, "%d", (int)pids[i]);
        const char *at = read_proc(pid, "stat", text, sizeof text) < 0 ? NULL : strrchr(text, ')');
        for (int field = 2; at != NULL && field < 14; field++) /* to utime, then stime */
            at = strchr(at + 1, ' ');
        char *end = NULL;
        if (at != NULL) {
            ticks += strtoull(at, &end, 10);
            ticks += strtoull(end, NULL, 10);
        }
    }
    return ticks * 1000 / (uint64_t)sysconf(_SC_CLK_TCK);
}

void keeper_procs_kill(const Keeper *keeper)
{
    if (!(keeper->open.flags & SPEC_OPEN_DEGRADED)) {
        kill(-1, SIGKILL);
        return;
    }
    int n;
    for (int round = 0; round < KILL_ROUNDS && (n = collect(keeper)) > 0; round++) {
        for (int i = 0; i < n; i++)
            kill(pids[i], round == 0 ? SIGSTOP : SIGKILL); /* stopped, they cannot fork away */
        if (round == 0)
            for (int i = 0; i < n; i++)
                kill(pids[i], SIGKILL);
    }
}

void keeper_procs_kill_session(const Keeper *keeper, pid_t session)
{
    Stat stat;
    char pid[16];
    bool found = true;
    for (int round = 0; round < KILL_ROUNDS && found; round++) {
        int n = collect(keeper);
        found = false;
        for (int i = 0; i < n; i++) {
            snprintf(pid, sizeof pid, "%d", (int)pids[i]);
            if (!read_stat(pid, &stat) || stat.session != session || stat.state == 'Z')
                continue;
            found = true;
            kill(pids[i], SIGKILL);
        }
    }
}

static bool all_stand(const Keeper *keeper)
{
    Stat stat;
    char pid[16];
    int n = collect(keeper);
    for (int i = 0; i < n; i++) {
        snprintf(pid, sizeof pid, "%d", (int)pids[i]);
        if (read_stat(pid, &stat) && strchr("TtZX", stat.state) == NULL)
            return false;
    }
    return true;
}

void keeper_procs_freeze(const Keeper *keeper)
{
    const struct timespec pause = {0, 500000};
    for (int round = 0; round < KILL_ROUNDS && !all_stand(keeper); round++) {
        int n = collect(keeper);
        for (int i = 0; i < n; i++)
            kill(pids[i], SIGSTOP);
        if (round > 0) /* one that is in the kernel stops when it comes out */
            nanosleep(&pause, NULL);
    }
}

void keeper_procs_thaw(const Keeper *keeper)
{
    int n = collect(keeper);
    for (int i = 0; i < n; i++)
        kill(pids[i], SIGCONT);
}
