/*
 * Starting and ending assay-egress.
 *
 * Invariants:
 *   1. posix_spawn, never fork: the caller may be large.
 *   2. It inherits the descriptors of egress_proxy.h and standard error, and no environment.
 *   3. After egress_start it serves; after egress_stop it is dead and reaped.
 *
 * Not here: what it does (egress_main.c).
 */
#include "sandbox/egress.h"

#include "base/error.h"
#include "base/fd.h"
#include "sandbox/box_ids.h"
#include "sandbox/egress_proxy.h"
#include "sandbox/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define PROGRAM       "assay-egress"
#define START_WAIT_MS 10000
#define STOP_WAIT_MS  1000
#define HIGH_FD       16                               /* above the numbers below */
#define PROXY_UID     (BOX_ID_BASE + BOX_ID_COUNT - 1) /* the store's last: no box can have it */

struct Egress {
    pid_t pid;
    int control;
};

gboolean egress_check(const BoxEgress *spec, GError **error)
{
    g_autoptr(EgressRules) rules = egress_rules_new(spec->allow, error);
    return rules != NULL;
}

static GPtrArray *arguments(const BoxEgress *spec)
{
    GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);
    g_ptr_array_add(argv, g_strdup(PROGRAM));
    for (const char *const *rule = spec->allow; rule != NULL && *rule != NULL; rule++)
        g_ptr_array_add(argv, g_strdup_printf("--allow=%s", *rule));
    for (const char *const *row = spec->unsafe_hosts; row != NULL && *row != NULL; row++)
        g_ptr_array_add(argv, g_strdup_printf("--unsafe-host=%s", *row));
    if (spec->unsafe_loopback)
        g_ptr_array_add(argv, g_strdup("--unsafe-loopback"));
    const struct {
        const char *name;
        guint64 value;
    } numbers[] = {{"uid", geteuid() == 0 ? PROXY_UID : 0},
                   {"bytes-max", spec->bytes_max},
                   {"head-ms", spec->head_ms},
                   {"idle-ms", spec->idle_ms}};
    for (gsize i = 0; i < G_N_ELEMENTS(numbers); i++)
        if (numbers[i].value > 0)
            g_ptr_array_add(argv, g_strdup_printf("--%s=%" G_GUINT64_FORMAT, numbers[i].name,
                                                  numbers[i].value));
    g_ptr_array_add(argv, NULL);
    return argv;
}

/* `fds` become 3, 4 and 5; -1: none. */
static gboolean spawn(char *const *argv, const int fds[3], int program, pid_t *ret_pid,
                      GError **error)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none;
    char *const envp[] = {NULL};
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", EGRESS_PROGRAM);
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
    posix_spawn_file_actions_adddup2(&actions, 0, 1);
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            posix_spawn_file_actions_adddup2(&actions, fds[i], 3 + i);
        else
            posix_spawn_file_actions_addclose(&actions, 3 + i);
    posix_spawn_file_actions_adddup2(&actions, program, EGRESS_PROGRAM);
    posix_spawn_file_actions_addclosefrom_np(&actions, EGRESS_PROGRAM + 1);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
    int r = posix_spawn(ret_pid, path, &actions, &attr, argv, envp);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    return r == 0 || error_set_errno(error, r, "start %s", PROGRAM);
}

/* A close-on-exec copy with a number that no file action of ours hits. */
static int high(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
}

/* It says one byte once it has given up its privileges and understood its rules. */
static gboolean is_ready(const Egress *egress, GError **error)
{
    struct pollfd polled = {.fd = egress->control, .events = POLLIN};
    char byte;
    if (poll(&polled, 1, START_WAIT_MS) > 0 && read(egress->control, &byte, 1) == 1)
        return TRUE;
    return error_set(error, ASSAY_ERROR_SYSTEM, "%s did not start", PROGRAM);
}

Egress *egress_start(const BoxEgress *spec, int listener, GError **error)
{
    int sv[2];
    AUTO_FD program = launch_open_program(PROGRAM, error);
    if (program < 0)
        return NULL;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0) {
        error_set_errno(error, errno, "socketpair");
        return NULL;
    }
    AUTO_FD control = sv[0];
    AUTO_FD theirs = high(sv[1]);
    AUTO_FD listening = high(listener);
    AUTO_FD log = spec->log_fd > 0 ? high(spec->log_fd) : -1;
    AUTO_FD self = high(program);
    close(sv[1]);
    if (theirs < 0 || listening < 0 || self < 0 || (spec->log_fd > 0 && log < 0)) {
        error_set_errno(error, errno, "dup");
        return NULL;
    }
    g_autoptr(GPtrArray) argv = arguments(spec);
    const int fds[] = {listening, theirs, log};
    Egress egress = {0};
    if (!spawn((char *const *)argv->pdata, fds, self, &egress.pid, error))
        return NULL;
    egress.control = fd_take(&control);
    fd_close_p(&theirs); /* so that its end is the proxy's alone */
    theirs = -1;
    Egress *started = g_memdup2(&egress, sizeof egress);
    if (is_ready(started, error))
        return started;
    egress_stop(started);
    return NULL;
}

void egress_stop(Egress *egress)
{
    if (egress == NULL)
        return;
    shutdown(egress->control, SHUT_WR);
    struct pollfd polled = {.fd = egress->control, .events = POLLIN};
    if (poll(&polled, 1, STOP_WAIT_MS) <= 0) /* its end of the pair closes with it */
        kill(egress->pid, SIGKILL);
    while (waitpid(egress->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    close(egress->control);
    g_free(egress);
}
