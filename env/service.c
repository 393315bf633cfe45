/*
 * The life of assayd: open, turn of the loop, drain, close.
 *
 * 1. One commit per turn: whatever the callbacks of one turn wrote is committed by `turn_source`
 *    in the next, then streams are woken and grades are claimed.
 * 2. Nothing here blocks but the store.
 * 3. SIGTERM drains; a second one stops at once. Either way running grades go back to the queue
 *    uncharged, by recovery at the next start if need be.
 */
#include "env/service.h"

#include "base/error.h"
#include "base/id.h"
#include "env/episode_hosts.h"
#include "env/queue.h"
#include "env/routes.h"

#include <string.h>
#include <sys/statvfs.h>

#define UNSAVED_RETRY_MS 1000
#define PRUNE_S          3600
#define TICK_S           5

typedef struct Waiter {
    Service *service;
    Request *req;
    char *subject;
    guint timer;
    WaitFn fn;
} Waiter;

typedef struct TurnSource {
    GSource source;
    Service *service;
} TurnSource;

static void waiter_free(Waiter *waiter)
{
    if (waiter->timer != 0)
        g_source_remove(waiter->timer);
    request_unref(waiter->req);
    g_free(waiter->subject);
    g_free(waiter);
}

static gboolean waiter_timed_out(gpointer user_data)
{
    Waiter *waiter = user_data;
    g_autoptr(Request) req = request_ref(waiter->req);
    WaitFn fn = waiter->fn;
    waiter->timer = 0;
    GPtrArray *all = g_hash_table_lookup(waiter->service->waiters, waiter->subject);
    g_ptr_array_remove(all, waiter);
    if (!req->gone)
        fn(req);
    return G_SOURCE_REMOVE;
}

void service_wait(Service *service, Request *req, const char *subject, guint wait_s, WaitFn fn)
{
    Waiter *waiter = g_new0(Waiter, 1);
    waiter->service = service;
    waiter->req = request_ref(req);
    waiter->subject = g_strdup(subject);
    waiter->fn = fn;
    waiter->timer = g_timeout_add_seconds(wait_s, waiter_timed_out, waiter);
    GPtrArray *all = g_hash_table_lookup(service->waiters, subject);
    if (all == NULL) {
        all = g_ptr_array_new_with_free_func((GDestroyNotify)waiter_free);
        g_hash_table_insert(service->waiters, g_strdup(subject), all);
    }
    g_ptr_array_add(all, waiter);
}

typedef struct Changed {
    Service *service;
    char *subject;
} Changed;

static void changed_now(gboolean committed, gpointer user_data)
{
    Changed *changed = user_data;
    gpointer key, value;
    if (committed &&
        g_hash_table_steal_extended(changed->service->waiters, changed->subject, &key, &value)) {
        g_autoptr(GPtrArray) all = value;
        g_free(key);
        for (guint i = 0; i < all->len; i++) {
            Waiter *waiter = g_ptr_array_index(all, i);
            if (!waiter->req->gone)
                waiter->fn(waiter->req);
        }
    }
    g_free(changed->subject);
    g_free(changed);
}

void service_changed(Service *service, const char *subject)
{
    Changed *changed = g_new0(Changed, 1);
    changed->service = service;
    changed->subject = g_strdup(subject);
    store_after_commit(service->store, changed_now, changed);
}

void service_event(Service *service, const char *type, const char *subject, json_t *body)
{
    g_autoptr(json_t) owned = body;
    g_autofree char *text = json_print(owned);
    g_autoptr(GError) error = NULL;
    if (event_put(service->store, type, subject, text, &error) == 0)
        g_warning("%s", error->message);
    service->events_new = TRUE;
}

void service_stream_add(Service *service, Request *req)
{
    g_ptr_array_add(service->streams, request_ref(req));
}

void service_request_finished(Service *service, Request *req)
{
    g_ptr_array_remove_fast(service->streams, req);
}

void service_count_reply(Service *service, Request *req, guint status)
{
    g_autofree char *key = g_strdup_printf("route=\"%s\",method=\"%s\",code=\"%u\"",
                                           req->route != NULL ? req->route->pattern : "?",
                                           req->route != NULL ? req->route->method : "?", status);
    guint64 *n = g_hash_table_lookup(service->replies, key);
    if (n == NULL) {
        n = g_new0(guint64, 1);
        g_hash_table_insert(service->replies, g_steal_pointer(&key), n);
    }
    ++*n;
}

static void wake_streams(Service *service)
{
    service->events_new = FALSE;
    g_autoptr(GPtrArray) streams = g_ptr_array_new_with_free_func((GDestroyNotify)request_unref);
    for (guint i = 0; i < service->streams->len; i++)
        g_ptr_array_add(streams, request_ref(g_ptr_array_index(service->streams, i)));
    for (guint i = 0; i < streams->len; i++)
        request_stream_wake(g_ptr_array_index(streams, i));
}

static gboolean turn_prepare(GSource *source, gint *timeout)
{
    *timeout = -1;
    return store_is_dirty(((TurnSource *)source)->service->store);
}

static gboolean turn_check(GSource *source)
{
    return store_is_dirty(((TurnSource *)source)->service->store);
}

static gboolean retry_unsaved(gpointer user_data)
{
    Service *service = user_data;
    if (!queue_retry_unsaved(service))
        return G_SOURCE_CONTINUE;
    service->retry_timer = 0;
    return G_SOURCE_REMOVE;
}

static gboolean turn_dispatch(GSource *source, GSourceFunc callback, gpointer user_data)
{
    (void)callback, (void)user_data;
    Service *service = ((TurnSource *)source)->service;
    g_autoptr(GError) error = NULL;
    if (!store_commit(service->store, &error)) {
        g_warning("commit: %s", error->message);
        if (service->retry_timer == 0)
            service->retry_timer = g_timeout_add(UNSAVED_RETRY_MS, retry_unsaved, service);
    }
    store_checkpoint_if_due(service->store);
    if (service->events_new)
        wake_streams(service);
    queue_kick(service);
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs turn_functions = {
    .prepare = turn_prepare,
    .check = turn_check,
    .dispatch = turn_dispatch,
};

static gboolean prune(gpointer user_data)
{
    Service *service = user_data;
    g_autoptr(GError) error = NULL;
    if (!event_prune(service->store, clock_wall_ms() - STORE_EVENTS_KEEP_MS, &error))
        g_warning("prune: %s", error->message);
    return G_SOURCE_CONTINUE;
}

/* What may have stopped the queue (a full disk) has no event of its own. */
static gboolean tick(gpointer user_data)
{
    queue_kick(user_data);
    return G_SOURCE_CONTINUE;
}

guint64 service_disk_free(const Service *service)
{
    struct statvfs fs;
    if (statvfs(store_dir(service->store), &fs) < 0)
        return 0;
    return (guint64)fs.f_bavail * fs.f_frsize;
}

const char *service_not_ready(Service *service)
{
    guint64 floor = (guint64)config_int(service->config, CONFIG_DISK_FLOOR_MIB) << 20;
    if (service->draining)
        return "draining";
    if (service_disk_free(service) < floor)
        return "disk_low";
    if (worker_pool_problem(service->pool) != NULL)
        return "no_worker";
    return NULL;
}

static void service_open_turn(Service *service)
{
    service->turn = g_source_new(&turn_functions, sizeof(TurnSource));
    ((TurnSource *)service->turn)->service = service;
    g_source_set_priority(service->turn, G_PRIORITY_DEFAULT);
    g_source_attach(service->turn, NULL);
}

Service *service_open(Config *config, GError **error)
{
    static const WorkerEvents events = {queue_phase, queue_done, queue_lost, queue_ready};
    Service *service = g_new0(Service, 1);
    service->config = config;
    service->started_ms = clock_wall_ms();
    service->loop = g_main_loop_new(NULL, FALSE);
    service->leases =
        g_hash_table_new_full(g_str_hash, g_str_equal, NULL, (GDestroyNotify)lease_free);
    service->waiters =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)g_ptr_array_unref);
    service->replies = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    service->streams = g_ptr_array_new_with_free_func((GDestroyNotify)request_unref);
    service->store = store_open(config_text(config, CONFIG_STATE), error);
    if (service->store == NULL || !queue_recover(service, error)) {
        service_close(service);
        return NULL;
    }
    service->pool = worker_pool_new(config_text(config, CONFIG_WORKER_PROGRAM),
                                    (guint)config_int(config, CONFIG_WORKERS), &events, service);
    service->episodes = episode_hosts_new(service);
    service_open_turn(service);
    service->http = http_open(service, config_text(config, CONFIG_SOCKET), error);
    if (service->http == NULL) {
        service_close(service);
        return NULL;
    }
    service->prune_timer = g_timeout_add_seconds(PRUNE_S, prune, service);
    service->tick_timer = g_timeout_add_seconds(TICK_S, tick, service);
    return service;
}

void service_close(Service *service)
{
    if (service == NULL)
        return;
    guint *timers[] = {&service->drain_timer, &service->retry_timer, &service->prune_timer,
                       &service->tick_timer};
    for (guint i = 0; i < G_N_ELEMENTS(timers); i++) {
        if (*timers[i] != 0)
            g_source_remove(*timers[i]);
    }
    http_close(service->http);
    episode_hosts_free(service->episodes);
    worker_pool_free(service->pool);
    if (service->turn != NULL) {
        g_source_destroy(service->turn);
        g_source_unref(service->turn);
    }
    store_close(service->store);
    service->store = NULL;
    g_hash_table_unref(service->waiters);
    g_ptr_array_unref(service->streams);
    g_hash_table_unref(service->leases);
    g_hash_table_unref(service->replies);
    g_main_loop_unref(service->loop);
    config_free(service->config);
    g_free(service);
}

void service_run(Service *service)
{
    queue_kick(service);
    g_main_loop_run(service->loop);
}

static void requeue_everything(Service *service)
{
    GHashTableIter iter;
    gpointer lease;
    service->stopping = TRUE;
    g_hash_table_iter_init(&iter, service->leases);
    while (g_hash_table_iter_next(&iter, NULL, &lease))
        ((Lease *)lease)->requeue_free = TRUE;
    worker_pool_cancel_all(service->pool);
    g_main_loop_quit(service->loop);
}

static gboolean drained(gpointer user_data)
{
    Service *service = user_data;
    gint64 waited_ms = clock_wall_ms() - service->drain_ms;
    if (worker_pool_n_busy(service->pool) > 0 &&
        waited_ms < config_int(service->config, CONFIG_DRAIN_S) * 1000)
        return G_SOURCE_CONTINUE;
    service->drain_timer = 0;
    requeue_everything(service);
    return G_SOURCE_REMOVE;
}

void service_stop(Service *service)
{
    if (service->draining) {
        requeue_everything(service);
        return;
    }
    service->draining = TRUE;
    service->drain_ms = clock_wall_ms();
    service_event(service, "service.draining", "service",
                  json_pack("{s:i}", "running", (int)worker_pool_n_busy(service->pool)));
    if (drained(service) == G_SOURCE_CONTINUE)
        service->drain_timer = g_timeout_add(50, drained, service);
}
