/*
 * What a payload can see of the layers around it, by trying: one word per layer that is on, the
 * words of box_layer_str. Namespaces are told apart from the host's by the inode numbers that the
 * caller gives ("user=4026531837").
 */
#include "tests/sandbox/payload.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OVERLAY_MAGIC        0x794c7630
#define NR_LANDLOCK_CREATE   444
#define NR_LANDLOCK_RESTRICT 446
#define LANDLOCK_DEPTH       16 /* rulesets that the host stacks on one process */

static char status[16384];

static void read_status(void)
{
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, status, sizeof status - 1);
    status[n > 0 ? n : 0] = '\0';
    close(fd);
}

static int status_is(const char *key, const char *value)
{
    char line[64];
    snprintf(line, sizeof line, "\n%s:\t%s\n", key, value);
    return strstr(status, line) != NULL;
}

static int is_another(const char *name, const char *host_inode)
{
    char path[64];
    struct stat st;
    snprintf(path, sizeof path, "/proc/self/ns/%s", name);
    return stat(path, &st) == 0 && st.st_ino != strtoull(host_inode, NULL, 10);
}

static int has_no_capability(void)
{
    static const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (!status_is(sets[i], "0000000000000000"))
            return 0;
    return 1;
}

/* The host stacks a known number of rulesets: if one fewer fits, one is there already. Not in a
 * child: where processes are counted per user, others may have used them up. */
static int is_landlocked(void)
{
    uint64_t handled = 1 << 9; /* making sockets: no matter to this process */
    int ruleset = (int)syscall(NR_LANDLOCK_CREATE, &handled, sizeof handled, 0), n = 0;
    while (ruleset >= 0 && n < LANDLOCK_DEPTH + 1 && syscall(NR_LANDLOCK_RESTRICT, ruleset, 0) == 0)
        n++;
    return ruleset >= 0 && errno == E2BIG && n < LANDLOCK_DEPTH;
}

/* Nothing is unshared by no flags: only a filter refuses that. */
static int is_filtered(void)
{
    return status_is("Seccomp", "2") && unshare(0) < 0 && errno == EPERM;
}

static int is_limited(void)
{
    struct rlimit core, lock;
    return getrlimit(RLIMIT_CORE, &core) == 0 && getrlimit(RLIMIT_MEMLOCK, &lock) == 0 &&
           core.rlim_max == 0 && lock.rlim_max <= 65536;
}

static int is_overlay(const char *path)
{
    struct statfs fs;
    return statfs(path, &fs) == 0 && (uint32_t)fs.f_type == OVERLAY_MAGIC;
}

int payload_layers(int n_hosts, char **hosts)
{
    static const char *const names[][2] = {{"user", "user"}, {"mnt", "mount"},       {"pid", "pid"},
                                           {"net", "net"},   {"ipc", "ipc"},         {"uts", "uts"},
                                           {"time", "time"}, {"cgroup", "cgroup_ns"}};
    read_status();
    for (int k = 0; k < n_hosts; k++)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            size_t len = strlen(names[i][0]);
            if (strncmp(hosts[k], names[i][0], len) == 0 && hosts[k][len] == '=' &&
                is_another(names[i][0], hosts[k] + len + 1))
                printf("%s ", names[i][1]);
        }
    const struct {
        const char *name;
        int is_on;
    } others[] = {{"pivot_root", is_overlay("/")}, {"overlay", is_overlay("/testbed")},
                  {"caps", has_no_capability()},   {"no_new_privs", status_is("NoNewPrivs", "1")},
                  {"landlock", is_landlocked()},   {"seccomp", is_filtered()},
                  {"rlimits", is_limited()}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (others[i].is_on)
            printf("%s ", others[i].name);
    puts("");
    return 0;
}
