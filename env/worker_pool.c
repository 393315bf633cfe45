/*
 * Worker processes on socketpairs.
 *
 * 1. The daemon never forks: posix_spawn, with the socket on the worker's descriptor 3.
 * 2. What a worker writes is hostile: lines and their number are bounded, every field is checked
 *    by who reads it; a worker that breaks the protocol is killed.
 * 3. Each grade given to a worker ends in exactly one `done` or one `lost`.
 * 4. A worker that dies is started again only when there is work, after a growing pause.
 *
 * Not here: what a result means (queue.c).
 */
#include "env/worker_pool.h"

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

typedef enum SlotState {
    SLOT_EMPTY = 0,
    SLOT_STARTING,
    SLOT_READY,
    SLOT_BUSY,
    SLOT_DYING
} SlotState;

typedef struct Slot {
    WorkerPool *pool;
    guint number;
    SlotState state;
    GPid pid;
    int fd;
    GByteArray *in, *out;
    char *grade_id;
    char *why; /* why we killed it */
    guint n_messages;
    guint in_watch, out_watch, child_watch, deadline, kill_timer, backoff_timer;
    guint backoff_ms;
} Slot;

struct WorkerPool {
    char *program;
    Slot *slots;
    guint n_slots;
    WorkerEvents events;
    gpointer user_data;
    guint64 n_lost;
    char *problem;
};

static void source_clear(guint *source)
{
    if (*source != 0)
        g_source_remove(*source);
    *source = 0;
}

WorkerPool *worker_pool_new(const char *program, guint n_slots, const WorkerEvents *events,
                            gpointer user_data)
{
    WorkerPool *pool = g_new0(WorkerPool, 1);
    pool->program = g_strdup(program);
    pool->n_slots = n_slots;
    pool->events = *events;
    pool->user_data = user_data;
    pool->slots = g_new0(Slot, n_slots);
    for (guint i = 0; i < n_slots; i++) {
        pool->slots[i].pool = pool;
        pool->slots[i].number = i;
        pool->slots[i].fd = -1;
    }
    return pool;
}

/* Forgets the process and its buffers; the slot may be used again. */
static void slot_reset(Slot *slot)
{
    source_clear(&slot->in_watch);
    source_clear(&slot->out_watch);
    source_clear(&slot->deadline);
    source_clear(&slot->kill_timer);
    if (slot->fd >= 0)
        close(slot->fd);
    slot->fd = -1;
    slot->pid = 0;
    slot->state = SLOT_EMPTY;
    slot->n_messages = 0;
    g_clear_pointer(&slot->in, g_byte_array_unref);
    g_clear_pointer(&slot->out, g_byte_array_unref);
    g_clear_pointer(&slot->grade_id, g_free);
    g_clear_pointer(&slot->why, g_free);
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

/* An idle worker leaves by itself when its socket closes, and takes its cgroups along; only what is
 * still there after WORKER_KILL_AFTER_MS is killed. */
void worker_pool_free(WorkerPool *pool)
{
    if (pool == NULL)
        return;
    gint64 until_us = g_get_monotonic_time() + WORKER_KILL_AFTER_MS * 1000;
    g_autofree pid_t *pids = g_new0(pid_t, pool->n_slots);
    for (guint i = 0; i < pool->n_slots; i++) {
        Slot *slot = &pool->slots[i];
        source_clear(&slot->child_watch);
        source_clear(&slot->backoff_timer);
        pids[i] = slot->pid;
        if (slot->pid != 0 && slot->state == SLOT_BUSY)
            kill(slot->pid, SIGKILL);
        slot_reset(slot);
    }
    for (guint i = 0; i < pool->n_slots; i++)
        if (pids[i] != 0 && !process_gone(pids[i], until_us))
            kill(pids[i], SIGKILL);
    g_free(pool->slots);
    g_free(pool->program);
    g_free(pool->problem);
    g_free(pool);
}

static gboolean slot_kill_now(gpointer user_data)
{
    Slot *slot = user_data;
    slot->kill_timer = 0;
    kill(slot->pid, SIGKILL);
    return G_SOURCE_REMOVE;
}

/* Ends the worker; the child watch does the rest. */
static void slot_kill(Slot *slot, int signal_number, const char *why)
{
    if (slot->pid == 0 || slot->state == SLOT_DYING)
        return;
    slot->state = SLOT_DYING;
    g_free(slot->why);
    slot->why = g_strdup(why);
    source_clear(&slot->in_watch);
    source_clear(&slot->out_watch);
    source_clear(&slot->deadline);
    kill(slot->pid, signal_number);
    if (signal_number != SIGKILL)
        slot->kill_timer = g_timeout_add(WORKER_KILL_AFTER_MS, slot_kill_now, slot);
}

static gboolean slot_deadline(gpointer user_data)
{
    Slot *slot = user_data;
    slot->deadline = 0;
    slot_kill(slot, SIGKILL, slot->state == SLOT_STARTING ? "did not say ready" : "hung");
    return G_SOURCE_REMOVE;
}

static gboolean slot_backoff_over(gpointer user_data)
{
    Slot *slot = user_data;
    slot->backoff_timer = 0;
    slot->pool->events.ready(slot->pool->user_data);
    return G_SOURCE_REMOVE;
}

static void slot_back_off(Slot *slot)
{
    slot->backoff_ms = CLAMP(slot->backoff_ms * 2, WORKER_BACKOFF_MIN_MS, WORKER_BACKOFF_MAX_MS);
    source_clear(&slot->backoff_timer);
    slot->backoff_timer = g_timeout_add(slot->backoff_ms, slot_backoff_over, slot);
}

static void slot_died(GPid pid, gint wait_status, gpointer user_data)
{
    Slot *slot = user_data;
    WorkerPool *pool = slot->pool;
    g_autofree char *id = g_steal_pointer(&slot->grade_id);
    g_autofree char *why = g_steal_pointer(&slot->why);
    gboolean was_starting = slot->state == SLOT_STARTING;
    slot->child_watch = 0;
    g_spawn_close_pid(pid);
    slot_reset(slot);
    if (why == NULL) {
        g_autoptr(GError) how = NULL;
        if (!g_spawn_check_wait_status(wait_status, &how))
            why = g_strdup(how->message);
        else
            why = g_strdup("exited");
    }
    if (id != NULL || was_starting) {
        pool->n_lost++;
        slot_back_off(slot);
        g_message("worker %u (pid %d): %s%s%s", slot->number, (int)pid, why,
                  id != NULL ? "; had " : "", id != NULL ? id : "");
    }
    if (was_starting) {
        g_free(pool->problem);
        pool->problem = g_strdup(why);
    }
    if (id != NULL)
        pool->events.lost(pool->user_data, id, why);
    pool->events.ready(pool->user_data);
}

static void slot_event_done(Slot *slot, const json_t *message)
{
    WorkerPool *pool = slot->pool;
    g_autofree char *id = g_steal_pointer(&slot->grade_id);
    source_clear(&slot->deadline);
    slot->state = SLOT_READY;
    slot->n_messages = 0;
    slot->backoff_ms = 0;
    pool->events.done(pool->user_data, id, message);
    pool->events.ready(pool->user_data);
}

static const char *const worker_phases[] = {"prepare", "apply", "run", "grade", NULL};

/* FALSE: the worker broke the protocol. */
static gboolean slot_message(Slot *slot, const json_t *message)
{
    WorkerPool *pool = slot->pool;
    const char *event = json_string_value(json_object_get(message, "event"));
    const char *id = json_string_value(json_object_get(message, "id"));
    if (event == NULL || ++slot->n_messages > WORKER_MESSAGES_MAX)
        return FALSE;
    if (strcmp(event, "ready") == 0 && slot->state == SLOT_STARTING) {
        source_clear(&slot->deadline);
        slot->state = SLOT_READY;
        g_clear_pointer(&pool->problem, g_free);
        pool->events.ready(pool->user_data);
        return TRUE;
    }
    if (slot->state != SLOT_BUSY || g_strcmp0(id, slot->grade_id) != 0)
        return FALSE;
    if (strcmp(event, "done") == 0) {
        slot_event_done(slot, message);
        return TRUE;
    }
    const char *phase = json_string_value(json_object_get(message, "phase"));
    if (strcmp(event, "phase") != 0 || phase == NULL || !g_strv_contains(worker_phases, phase))
        return FALSE;
    pool->events.phase(pool->user_data, id, phase);
    return TRUE;
}

/* Takes whole lines off the buffer. FALSE: garbage. */
static gboolean slot_take_lines(Slot *slot)
{
    gsize from = 0;
    while (slot->in != NULL && from < slot->in->len) {
        const char *start = (const char *)slot->in->data + from;
        const char *end = memchr(start, '\n', slot->in->len - from);
        if (end == NULL)
            break;
        g_autoptr(GError) error = NULL;
        g_autoptr(json_t) message = json_parse(start, (gsize)(end - start), &error);
        from += (gsize)(end - start) + 1;
        if (message == NULL || !json_is_object(message) || !slot_message(slot, message))
            return FALSE;
        if (slot->state == SLOT_DYING)
            return TRUE;
    }
    if (slot->in != NULL && from > 0)
        g_byte_array_remove_range(slot->in, 0, (guint)from);
    return slot->in == NULL || slot->in->len <= WORKER_LINE_MAX;
}

static gboolean slot_readable(gint fd, GIOCondition condition, gpointer user_data)
{
    (void)condition;
    Slot *slot = user_data;
    guint8 chunk[65536];
    ssize_t n = recv(fd, chunk, sizeof chunk, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return G_SOURCE_CONTINUE;
    if (n <= 0) { /* it closed its end: it is dead or will be */
        slot->in_watch = 0;
        slot_kill(slot, SIGKILL, "closed its socket");
        return G_SOURCE_REMOVE;
    }
    g_byte_array_append(slot->in, chunk, (guint)n);
    if (!slot_take_lines(slot)) {
        slot->in_watch = 0;
        slot_kill(slot, SIGKILL, "broke the protocol");
        return G_SOURCE_REMOVE;
    }
    return G_SOURCE_CONTINUE;
}

static gboolean slot_writable(gint fd, GIOCondition condition, gpointer user_data)
{
    (void)condition;
    Slot *slot = user_data;
    ssize_t n = send(fd, slot->out->data, slot->out->len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        slot->out_watch = 0; /* the read side hears of the death */
        return G_SOURCE_REMOVE;
    }
    if (n > 0)
        g_byte_array_remove_range(slot->out, 0, (guint)n);
    if (slot->out->len > 0)
        return G_SOURCE_CONTINUE;
    slot->out_watch = 0;
    return G_SOURCE_REMOVE;
}

static gboolean slot_spawn(Slot *slot, int child_fd, GError **error)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, defaults;
    char *argv[] = {slot->pool->program, NULL};
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
    int rc = posix_spawn(&slot->pid, slot->pool->program, &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (rc != 0) {
        slot->pid = 0;
        return error_set_errno(error, rc, "start %s", slot->pool->program);
    }
    return TRUE;
}

static gboolean slot_start(Slot *slot, GError **error)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set_errno(error, errno, "socketpair");
    AUTO_FD ours = pair[0];
    AUTO_FD theirs = pair[1];
    if (!slot_spawn(slot, theirs, error))
        return FALSE;
    slot->fd = fd_take(&ours);
    slot->in = g_byte_array_new();
    slot->out = g_byte_array_new();
    slot->state = SLOT_STARTING;
    slot->in_watch = g_unix_fd_add(slot->fd, G_IO_IN | G_IO_HUP | G_IO_ERR, slot_readable, slot);
    slot->child_watch = g_child_watch_add(slot->pid, slot_died, slot);
    slot->deadline = g_timeout_add_seconds(WORKER_READY_S, slot_deadline, slot);
    return TRUE;
}

void worker_pool_want(WorkerPool *pool, guint n_wanted)
{
    for (guint i = 0; i < pool->n_slots && n_wanted > 0; i++) {
        Slot *slot = &pool->slots[i];
        if (slot->state == SLOT_STARTING)
            n_wanted--;
        if (slot->state != SLOT_EMPTY || slot->backoff_timer != 0 || n_wanted == 0)
            continue;
        g_autoptr(GError) error = NULL;
        n_wanted--;
        if (slot_start(slot, &error))
            continue;
        if (g_strcmp0(pool->problem, error->message) != 0)
            g_warning("%s", error->message);
        g_free(pool->problem);
        pool->problem = g_strdup(error->message);
        slot_back_off(slot);
    }
}

static guint pool_count(const WorkerPool *pool, SlotState from, SlotState to)
{
    guint n = 0;
    for (guint i = 0; i < pool->n_slots; i++)
        n += pool->slots[i].state >= from && pool->slots[i].state <= to;
    return n;
}

guint worker_pool_n_ready(const WorkerPool *pool)
{
    return pool_count(pool, SLOT_READY, SLOT_READY);
}

guint worker_pool_n_busy(const WorkerPool *pool)
{
    return pool_count(pool, SLOT_BUSY, SLOT_BUSY);
}

guint worker_pool_n_alive(const WorkerPool *pool)
{
    return pool_count(pool, SLOT_STARTING, SLOT_DYING);
}

guint worker_pool_n_slots(const WorkerPool *pool)
{
    return pool->n_slots;
}

guint64 worker_pool_n_lost(const WorkerPool *pool)
{
    return pool->n_lost;
}

const char *worker_pool_problem(const WorkerPool *pool)
{
    return pool->problem;
}

gboolean worker_pool_send(WorkerPool *pool, const char *id, json_t *job, guint deadline_s)
{
    for (guint i = 0; i < pool->n_slots; i++) {
        Slot *slot = &pool->slots[i];
        if (slot->state != SLOT_READY)
            continue;
        json_object_set_new(job, "slot", json_integer(slot->number));
        g_autofree char *line = json_print(job);
        slot->state = SLOT_BUSY;
        slot->grade_id = g_strdup(id);
        slot->n_messages = 0;
        g_byte_array_append(slot->out, (const guint8 *)line, (guint)strlen(line));
        g_byte_array_append(slot->out, (const guint8 *)"\n", 1);
        if (slot->out_watch == 0)
            slot->out_watch = g_unix_fd_add(slot->fd, G_IO_OUT, slot_writable, slot);
        slot->deadline = g_timeout_add_seconds(deadline_s, slot_deadline, slot);
        return TRUE;
    }
    return FALSE;
}

gboolean worker_pool_cancel(WorkerPool *pool, const char *id)
{
    for (guint i = 0; i < pool->n_slots; i++) {
        Slot *slot = &pool->slots[i];
        if (slot->grade_id == NULL || strcmp(slot->grade_id, id) != 0)
            continue;
        slot_kill(slot, SIGTERM, "cancelled");
        return TRUE;
    }
    return FALSE;
}

void worker_pool_cancel_all(WorkerPool *pool)
{
    for (guint i = 0; i < pool->n_slots; i++) {
        if (pool->slots[i].state == SLOT_BUSY)
            slot_kill(&pool->slots[i], SIGTERM, "the daemon stops");
    }
}
