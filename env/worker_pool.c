/*
 * The slots of grades: a worker process each, started on demand.
 *
 * 1. The number of a worker's lines is bounded; one that breaks the protocol is killed.
 * 2. Each grade given to a worker ends in exactly one `done` or one `lost`.
 * 3. A worker that dies is started again only when there is work, after a growing pause.
 *
 * Not here: processes and lines (worker_link.c), what a result means (queue.c).
 */
#include "env/worker_pool.h"

#include "env/worker_link.h"

#include <signal.h>
#include <string.h>

typedef enum SlotState {
    SLOT_EMPTY = 0,
    SLOT_STARTING,
    SLOT_READY,
    SLOT_BUSY,
} SlotState;

typedef struct Slot {
    WorkerPool *pool;
    guint number;
    SlotState state;
    WorkerLink *link;
    char *grade_id;
    guint n_messages;
    guint deadline, backoff_timer;
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
    }
    return pool;
}

void worker_pool_free(WorkerPool *pool)
{
    if (pool == NULL)
        return;
    g_autofree WorkerLink **links = g_new0(WorkerLink *, pool->n_slots);
    for (guint i = 0; i < pool->n_slots; i++) {
        Slot *slot = &pool->slots[i];
        source_clear(&slot->deadline);
        source_clear(&slot->backoff_timer);
        links[i] = slot->link;
        if (slot->link != NULL && slot->state == SLOT_BUSY)
            worker_link_kill(slot->link, SIGKILL, "the daemon stops");
        g_free(slot->grade_id);
    }
    worker_links_free(links, pool->n_slots);
    g_free(pool->slots);
    g_free(pool->program);
    g_free(pool->problem);
    g_free(pool);
}

/* Ends the worker; slot_died does the rest. */
static void slot_kill(Slot *slot, int signal_number, const char *why)
{
    source_clear(&slot->deadline);
    worker_link_kill(slot->link, signal_number, why);
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

static void slot_died(gpointer user_data, const char *why)
{
    Slot *slot = user_data;
    WorkerPool *pool = slot->pool;
    g_autofree char *id = g_steal_pointer(&slot->grade_id);
    gboolean was_starting = slot->state == SLOT_STARTING;
    GPid pid = worker_link_pid(slot->link);
    source_clear(&slot->deadline);
    slot->link = NULL;
    slot->state = SLOT_EMPTY;
    slot->n_messages = 0;
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
static gboolean slot_message(gpointer user_data, const json_t *message)
{
    Slot *slot = user_data;
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

static gboolean slot_start(Slot *slot, GError **error)
{
    static const WorkerLinkEvents events = {WORKER_LINE_MAX, slot_message, slot_died};
    slot->link = worker_link_start(slot->pool->program, NULL, &events, slot, error);
    if (slot->link == NULL)
        return FALSE;
    slot->state = SLOT_STARTING;
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

static guint pool_count(const WorkerPool *pool, SlotState state)
{
    guint n = 0;
    for (guint i = 0; i < pool->n_slots; i++) {
        const Slot *slot = &pool->slots[i];
        n += slot->state == state && !worker_link_is_dying(slot->link);
    }
    return n;
}

guint worker_pool_n_ready(const WorkerPool *pool)
{
    return pool_count(pool, SLOT_READY);
}

guint worker_pool_n_busy(const WorkerPool *pool)
{
    return pool_count(pool, SLOT_BUSY);
}

guint worker_pool_n_alive(const WorkerPool *pool)
{
    guint n = 0;
    for (guint i = 0; i < pool->n_slots; i++)
        n += pool->slots[i].link != NULL;
    return n;
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
        if (slot->state != SLOT_READY || worker_link_is_dying(slot->link))
            continue;
        json_object_set_new(job, "slot", json_integer(slot->number));
        slot->state = SLOT_BUSY;
        slot->grade_id = g_strdup(id);
        slot->n_messages = 0;
        worker_link_send(slot->link, job);
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
