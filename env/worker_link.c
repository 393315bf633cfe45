/*
 * A worker process on a socketpair.
 *
 * 1. The daemon never forks: posix_spawn, with the socket on the worker's descriptor 3.
 * 2. What a worker writes is hostile: lines are bounded, every field is checked by who reads it.
 * 3. `died` comes once, after the process is waited for: what it held is free then.
 *
 * Not here: what is said (worker_pool.c, episode_hosts.c).
 */
#include "env/worker_link.h"

#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define POLL_GONE_US 5000

extern char **environ;

struct WorkerLink {
    WorkerLinkEvents events;
    gpointer user_data;
    GPid pid;
    int fd;
    GByteArray *in, *out;
    gsize scanned; /* bytes of `in` that hold no end of a line */
    char *why;     /* why we killed it; NULL: we did not */
    guint in_watch, out_watch, child_watch, kill_timer;
};

static void source_clear(guint *source)
{
    if (*source != 0)
        g_source_remove(*source);
    *source = 0;
}

static void link_free(WorkerLink *link)
{
    source_clear(&link->in_watch);
    source_clear(&link->out_watch);
    source_clear(&link->child_watch);
    source_clear(&link->kill_timer);
    if (link->fd >= 0)
        close(link->fd);
    g_byte_array_unref(link->in);
    g_byte_array_unref(link->out);
    g_free(link->why);
    g_free(link);
}

/* Waits until the process is gone, at most so long; TRUE: it is. */
static gboolean process_gone(pid_t pid, gint64 until_us)
{
    while (waitpid(pid, NULL, WNOHANG) == 0) {
        if (g_get_monotonic_time() > until_us)
            return FALSE;
        g_usleep(POLL_GONE_US);
    }
    return TRUE;
}

void worker_links_free(WorkerLink *const *links, guint n)
{
    gint64 until_us = g_get_monotonic_time() + WORKER_KILL_AFTER_MS * 1000;
    g_autofree pid_t *pids = g_new0(pid_t, n);
    for (guint i = 0; i < n; i++) {
        if (links[i] == NULL)
            continue;
        pids[i] = links[i]->pid;
        link_free(links[i]);
    }
    for (guint i = 0; i < n; i++)
        if (pids[i] != 0 && !process_gone(pids[i], until_us))
            kill(pids[i], SIGKILL);
}

static gboolean kill_now(gpointer user_data)
{
    WorkerLink *link = user_data;
    link->kill_timer = 0;
    kill(link->pid, SIGKILL);
    return G_SOURCE_REMOVE;
}

void worker_link_kill(WorkerLink *link, int signal_number, const char *why)
{
    if (link->why != NULL)
        return;
    link->why = g_strdup(why);
    source_clear(&link->in_watch);
    source_clear(&link->out_watch);
    kill(link->pid, signal_number);
    if (signal_number != SIGKILL)
        link->kill_timer = g_timeout_add(WORKER_KILL_AFTER_MS, kill_now, link);
}

gboolean worker_link_is_dying(const WorkerLink *link)
{
    return link->why != NULL;
}

GPid worker_link_pid(const WorkerLink *link)
{
    return link->pid;
}

static void link_died(GPid pid, gint wait_status, gpointer user_data)
{
    WorkerLink *link = user_data;
    g_autofree char *why = g_steal_pointer(&link->why);
    link->child_watch = 0;
    g_spawn_close_pid(pid);
    if (why == NULL) {
        g_autoptr(GError) how = NULL;
        gboolean ok = g_spawn_check_wait_status(wait_status, &how);
        why = g_strdup(ok ? "exited" : how->message);
    }
    link->events.died(link->user_data, why);
    link_free(link);
}

/* Takes whole lines off the buffer. FALSE: garbage. */
static gboolean take_lines(WorkerLink *link)
{
    gsize from = 0;
    while (from < link->in->len && link->why == NULL) {
        const char *start = (const char *)link->in->data + from;
        gsize known = from == 0 ? link->scanned : 0;
        const char *end = memchr(start + known, '\n', link->in->len - from - known);
        if (end == NULL)
            break;
        g_autoptr(json_t) message = json_parse(start, (gsize)(end - start), NULL);
        from += (gsize)(end - start) + 1;
        if (message == NULL || !json_is_object(message) ||
            !link->events.line(link->user_data, message))
            return FALSE;
    }
    if (from > 0)
        g_byte_array_remove_range(link->in, 0, (guint)from);
    link->scanned = link->in->len;
    return link->in->len <= link->events.line_max;
}

static gboolean link_readable(gint fd, GIOCondition condition, gpointer user_data)
{
    (void)condition;
    WorkerLink *link = user_data;
    guint8 chunk[65536];
    ssize_t n = recv(fd, chunk, sizeof chunk, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return G_SOURCE_CONTINUE;
    if (n > 0) {
        g_byte_array_append(link->in, chunk, (guint)n);
        if (take_lines(link))
            return link->why == NULL ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
    }
    if (link->why == NULL) {
        link->in_watch = 0;
        worker_link_kill(link, SIGKILL, n > 0 ? "broke the protocol" : "closed its socket");
    }
    return G_SOURCE_REMOVE;
}

static gboolean link_writable(gint fd, GIOCondition condition, gpointer user_data)
{
    (void)condition;
    WorkerLink *link = user_data;
    ssize_t n = send(fd, link->out->data, link->out->len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        link->out_watch = 0; /* the read side hears of the death */
        return G_SOURCE_REMOVE;
    }
    if (n > 0)
        g_byte_array_remove_range(link->out, 0, (guint)n);
    if (link->out->len > 0)
        return G_SOURCE_CONTINUE;
    link->out_watch = 0;
    return G_SOURCE_REMOVE;
}

void worker_link_send(WorkerLink *link, const json_t *message)
{
    g_autofree char *line = json_print(message);
    g_byte_array_append(link->out, (const guint8 *)line, (guint)strlen(line));
    g_byte_array_append(link->out, (const guint8 *)"\n", 1);
    if (link->out_watch == 0 && link->why == NULL)
        link->out_watch = g_unix_fd_add(link->fd, G_IO_OUT, link_writable, link);
}

static gboolean link_spawn(WorkerLink *link, const char *program, const char *argument,
                           int child_fd, GError **error)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, defaults;
    char *argv[] = {(char *)(gsize)program, (char *)(gsize)argument, NULL};
    sigemptyset(&none);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, 2, 1); /* our stdout is our own */
    posix_spawn_file_actions_adddup2(&actions, child_fd, 3);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                              POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setpgroup(&attributes, 0);
    int rc = posix_spawn(&link->pid, program, &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return rc == 0 || error_set_errno(error, rc, "start %s", program);
}

WorkerLink *worker_link_start(const char *program, const char *argument,
                              const WorkerLinkEvents *events, gpointer user_data, GError **error)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        error_set_errno(error, errno, "socketpair");
        return NULL;
    }
    AUTO_FD theirs = pair[1];
    WorkerLink *link = g_new0(WorkerLink, 1);
    *link = (WorkerLink){.events = *events,
                         .user_data = user_data,
                         .fd = pair[0],
                         .in = g_byte_array_new(),
                         .out = g_byte_array_new()};
    if (!link_spawn(link, program, argument, theirs, error)) {
        link_free(link);
        return NULL;
    }
    link->in_watch = g_unix_fd_add(link->fd, G_IO_IN | G_IO_HUP | G_IO_ERR, link_readable, link);
    link->child_watch = g_child_watch_add(link->pid, link_died, link);
    return link;
}
