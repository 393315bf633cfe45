/*
 * Processes of open episodes.
 *
 * Invariants:
 *   1. An episode is in one host at most: another gets it only after the first one's process is
 *      waited for.
 *   2. Every request is answered once, or freed when the daemon stops.
 *   3. A request is asked again only after its host died; what was done then is in the record, and
 *      the next host answers from it.
 *   4. What a host says is hostile: fields are checked; one that breaks the protocol is killed.
 *
 * Not here: what an answer means for the episode (episodes.c).
 */
#include "env/episode_hosts.h"

#include "base/error.h"
#include "env/worker_link.h"

#include <signal.h>
#include <string.h>

#define LINE_MAX_BYTES (48u << 20) /* of a host: a diff in base64 is the longest */
#define SLOT_FIRST     256u        /* of the boxes: workers count from 0 */
#define BACKOFF_MIN_MS 100u
#define BACKOFF_MAX_MS 10000u

typedef struct Host {
    EpisodeHosts *hosts;
    guint number;
    WorkerLink *link; /* NULL: not started */
    gboolean is_ready;
    guint n_live;
    guint backoff_ms;
    gint64 not_before_us;
} Host;

/* An episode that is in a host, or about to be. */
typedef struct Live {
    char *id;
    Host *host; /* NULL: its host died */
    gint64 task_id;
    char *seed, *limits;
    guint deadline_s;
    guint n_asks, n_lost;
    gint64 steps; /* -1: not known */
    gboolean is_gone;
} Live;

typedef struct Ask {
    EpisodeHosts *hosts;
    gint64 seq;
    char *id;
    Host *host;
    json_t *message;
    gboolean is_load, is_counted; /* counted: in n_asks of its episode */
    EpisodeAsk how;
    guint deadline;
} Ask;

struct EpisodeHosts {
    Service *service;
    Host *all;
    guint n;
    GHashTable *live; /* id -> Live */
    GHashTable *asks; /* seq -> Ask */
    gint64 seq;
    guint64 n_lost;
    char *problem; /* why the last host could not start */
};

static void live_free(gpointer data)
{
    Live *live = data;
    if (live->host != NULL)
        live->host->n_live--;
    g_free(live->id);
    g_free(live->seed);
    g_free(live->limits);
    g_free(live);
}

static void ask_free(gpointer data)
{
    Ask *ask = data;
    if (ask->deadline != 0)
        g_source_remove(ask->deadline);
    if (ask->how.free_fn != NULL)
        ask->how.free_fn(ask->how.user_data);
    json_decref(ask->message);
    g_free(ask->id);
    g_free(ask);
}

EpisodeHosts *episode_hosts_new(Service *service)
{
    EpisodeHosts *hosts = g_new0(EpisodeHosts, 1);
    hosts->service = service;
    hosts->n = (guint)config_int(service->config, CONFIG_EPISODE_HOSTS);
    hosts->all = g_new0(Host, hosts->n);
    for (guint i = 0; i < hosts->n; i++)
        hosts->all[i] = (Host){.hosts = hosts, .number = i};
    hosts->live = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, live_free);
    hosts->asks = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, ask_free);
    return hosts;
}

void episode_hosts_free(EpisodeHosts *hosts)
{
    if (hosts == NULL)
        return;
    g_autofree WorkerLink **links = g_new0(WorkerLink *, hosts->n);
    for (guint i = 0; i < hosts->n; i++)
        links[i] = hosts->all[i].link;
    worker_links_free(links, hosts->n);
    g_hash_table_unref(hosts->asks);
    g_hash_table_unref(hosts->live);
    g_free(hosts->all);
    g_free(hosts->problem);
    g_free(hosts);
}

/* ---- answers ---- */

/* Everybody that asked of it has an answer: the host may forget it. */
static void live_settle(EpisodeHosts *hosts, Live *live)
{
    if (!live->is_gone || live->n_asks > 0)
        return;
    g_autoptr(json_t) drop = json_pack("{s:s, s:s}", "op", "drop", "id", live->id);
    if (live->host != NULL && live->host->link != NULL)
        worker_link_send(live->host->link, drop);
    g_hash_table_remove(hosts->live, live->id);
}

/* Ends an ask. */
static void ask_answer(Ask *ask, const EpisodeReply *reply)
{
    EpisodeHosts *hosts = ask->hosts;
    g_hash_table_steal(hosts->asks, &ask->seq);
    Live *live = g_hash_table_lookup(hosts->live, ask->id);
    if (live != NULL && ask->is_counted) {
        live->n_asks--;
        if (reply->is_known)
            live->steps = reply->steps;
    }
    if (ask->how.fn != NULL)
        ask->how.fn(ask->how.user_data, reply);
    live = g_hash_table_lookup(hosts->live, ask->id);
    if (live != NULL)
        live_settle(hosts, live);
    ask_free(ask);
}

static void ask_fail(Ask *ask, AssayErrorCode code, const char *why, gboolean is_lost)
{
    g_autoptr(GError) error = NULL;
    error_set(&error, code, "%s", why);
    const EpisodeReply reply = {.error = error, .is_lost = is_lost};
    Live *live = g_hash_table_lookup(ask->hosts->live, ask->id);
    if (live != NULL)
        live->is_gone = TRUE;
    ask_answer(ask, &reply);
}

static gboolean read_error(const json_t *message, EpisodeReply *reply, gboolean *ret_is_gone)
{
    const json_t *why = json_object_get(message, "error");
    const char *detail = json_string_value(json_object_get(why, "detail"));
    gint64 code = json_integer_value(json_object_get(why, "code"));
    if (why == NULL)
        return TRUE;
    if (detail == NULL || code < 0 || code > ASSAY_ERROR_BUSY)
        return FALSE;
    error_set(&reply->error, (AssayErrorCode)code, "%s", detail);
    *ret_is_gone = json_is_true(json_object_get(why, "gone"));
    reply->is_lost = json_is_true(json_object_get(why, "lost"));
    return TRUE;
}

static gboolean read_diff(const json_t *message, EpisodeReply *reply)
{
    gsize len = 0;
    const char *text = json_string_value(json_object_get(message, "diff"));
    if (episode_end_rule(reply->end)->reward != EPISODE_REWARD_VERDICT)
        return TRUE;
    guchar *data = text != NULL ? g_base64_decode(text, &len) : NULL;
    reply->diff = data != NULL ? g_bytes_new_take(data, len) : NULL;
    return reply->diff != NULL;
}

/* FALSE: not as docs/protocol.md says. */
static gboolean read_reply(const json_t *message, EpisodeReply *reply, gboolean *ret_is_gone)
{
    const char *end = json_string_value(json_object_get(message, "end"));
    const json_t *steps = json_object_get(message, "steps");
    reply->data = json_object_get(message, "data");
    if (!read_error(message, reply, ret_is_gone) ||
        (reply->error == NULL && !json_is_object(reply->data)))
        return FALSE;
    if (end == NULL)
        return TRUE;
    while (reply->end < EPISODE_ENDS && strcmp(episode_end_rule(reply->end)->name, end) != 0)
        reply->end++;
    if (reply->end == EPISODE_ENDS || !json_is_integer(steps) || json_integer_value(steps) < 0)
        return FALSE;
    reply->is_known = TRUE;
    reply->steps = json_integer_value(steps);
    return read_diff(message, reply);
}

static gboolean host_line(gpointer user_data, const json_t *message)
{
    Host *host = user_data;
    EpisodeReply reply = {0};
    gboolean is_gone = FALSE;
    if (!host->is_ready) {
        host->is_ready = TRUE;
        host->backoff_ms = 0;
        return g_strcmp0(json_string_value(json_object_get(message, "event")), "ready") == 0;
    }
    gint64 seq = json_integer_value(json_object_get(message, "seq"));
    Ask *ask = g_hash_table_lookup(host->hosts->asks, &seq);
    gboolean ok = ask != NULL && ask->host == host && read_reply(message, &reply, &is_gone);
    if (ok) {
        Live *live = g_hash_table_lookup(host->hosts->live, ask->id);
        if (live != NULL) {
            live->is_gone = live->is_gone || is_gone;
            live->n_lost = ask->is_load ? live->n_lost : 0;
        }
        ask_answer(ask, &reply);
    }
    g_clear_error(&reply.error);
    if (reply.diff != NULL)
        g_bytes_unref(reply.diff);
    return ok;
}

/* ---- hosts ---- */

static void ask_send(Ask *ask);

static gint by_seq(gconstpointer a, gconstpointer b)
{
    const Ask *x = *(Ask *const *)a, *y = *(Ask *const *)b;
    return (x->seq > y->seq) - (x->seq < y->seq);
}

/* What was asked of a dead host, in order; loads are not kept. */
static GPtrArray *asks_of(Host *host)
{
    GPtrArray *asks = g_ptr_array_new();
    GHashTableIter iter;
    gpointer value;
    g_hash_table_iter_init(&iter, host->hosts->asks);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        Ask *ask = value;
        if (ask->host != host)
            continue;
        ask->host = NULL;
        Live *live = g_hash_table_lookup(host->hosts->live, ask->id);
        if (!ask->is_load) {
            g_ptr_array_add(asks, ask);
            continue;
        }
        live->n_asks--;
        g_hash_table_iter_remove(&iter);
    }
    g_ptr_array_sort(asks, by_seq);
    return asks;
}

/* Its episodes have no host; those that nobody asks for are forgotten until somebody does. */
static void orphan_all(Host *host)
{
    GHashTableIter iter;
    gpointer value;
    g_hash_table_iter_init(&iter, host->hosts->live);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        Live *live = value;
        if (live->host != host)
            continue;
        live->host = NULL;
        live->n_lost++;
        if (live->n_asks == 0)
            g_hash_table_iter_remove(&iter);
    }
    host->n_live = 0;
}

static void host_died(gpointer user_data, const char *why)
{
    Host *host = user_data;
    EpisodeHosts *hosts = host->hosts;
    g_message("episode host %u (pid %d): %s", host->number, (int)worker_link_pid(host->link), why);
    host->link = NULL;
    hosts->n_lost++;
    if (!host->is_ready) {
        host->backoff_ms = CLAMP(host->backoff_ms * 2, BACKOFF_MIN_MS, BACKOFF_MAX_MS);
        host->not_before_us = g_get_monotonic_time() + host->backoff_ms * 1000;
        g_free(hosts->problem);
        hosts->problem = g_strdup(why);
    }
    host->is_ready = FALSE;
    g_autoptr(GPtrArray) asks = asks_of(host);
    orphan_all(host);
    for (guint i = 0; i < asks->len; i++) {
        Ask *ask = asks->pdata[i];
        const Live *live = g_hash_table_lookup(hosts->live, ask->id);
        if (live != NULL && live->n_lost >= EPISODE_LOSSES)
            ask_fail(ask, ASSAY_ERROR_SYSTEM, "every host that had the episode died", TRUE);
        else
            ask_send(ask);
    }
}

static gboolean host_start(Host *host, GError **error)
{
    static const WorkerLinkEvents events = {LINE_MAX_BYTES, host_line, host_died};
    const Config *config = host->hosts->service->config;
    guint boxes = (guint)config_int(config, CONFIG_EPISODE_BOXES);
    guint own = MAX((boxes + host->hosts->n - 1) / host->hosts->n, 1);
    const char *environments = config_text(config, CONFIG_ENVIRONMENTS);
    const char *repos = config_text(config, CONFIG_REPOS);
    host->link = worker_link_start(config_text(config, CONFIG_WORKER_PROGRAM), "--episodes",
                                   &events, host, error);
    if (host->link == NULL)
        return FALSE;
    g_autoptr(json_t) start = json_pack(
        "{s:s, s:s, s:i, s:i, s:b, s:s*, s:s*}", "op", "start", "state_dir",
        store_dir(host->hosts->service->store), "slot_first",
        (int)(SLOT_FIRST + host->number * (own + 1)), "boxes", (int)own, "allow_degraded",
        config_bool(config, CONFIG_ALLOW_DEGRADED), "environments",
        environments[0] != '\0' ? environments : NULL, "repos", repos[0] != '\0' ? repos : NULL);
    worker_link_send(host->link, start);
    return TRUE;
}

/* The one with the fewest episodes that is there or can be started; NULL: none. */
static Host *host_choose(EpisodeHosts *hosts)
{
    Host *best = NULL;
    gint64 now_us = g_get_monotonic_time();
    for (guint i = 0; i < hosts->n; i++) {
        Host *host = &hosts->all[i];
        gboolean usable =
            host->link != NULL ? !worker_link_is_dying(host->link) : now_us >= host->not_before_us;
        if (usable && (best == NULL || host->n_live < best->n_live))
            best = host;
    }
    g_autoptr(GError) error = NULL;
    if (best == NULL || best->link != NULL || host_start(best, &error))
        return best;
    best->not_before_us = now_us + BACKOFF_MAX_MS * 1000;
    g_free(hosts->problem);
    hosts->problem = g_strdup(error->message);
    return NULL;
}

/* ---- asking ---- */

static gboolean ask_late(gpointer user_data)
{
    Ask *ask = user_data;
    ask->deadline = 0;
    if (ask->host != NULL && ask->host->link != NULL)
        worker_link_kill(ask->host->link, SIGKILL, "hung");
    return G_SOURCE_REMOVE;
}

static Ask *ask_new(EpisodeHosts *hosts, const char *id, json_t *message)
{
    Ask *ask = g_new0(Ask, 1);
    ask->hosts = hosts;
    ask->seq = ++hosts->seq;
    ask->id = g_strdup(id);
    ask->message = message;
    json_object_set_new(message, "seq", json_integer(ask->seq));
    json_object_set_new(message, "id", json_string(id));
    g_hash_table_insert(hosts->asks, &ask->seq, ask);
    return ask;
}

/* The message that puts an episode into a host; NULL: the store failed. */
static json_t *load_message(EpisodeHosts *hosts, const Live *live, GError **error)
{
    g_autoptr(TaskRow) task = task_by_id(hosts->service->store, live->task_id, error);
    if (task == NULL)
        return NULL;
    g_autoptr(json_t) spec = json_parse(task->spec, strlen(task->spec), error);
    g_autoptr(json_t) limits = json_parse(live->limits, strlen(live->limits), error);
    if (spec == NULL || limits == NULL)
        return NULL;
    g_autofree char *key = g_strconcat(task->public_id, task->content_sha256, NULL);
    return json_pack("{s:s, s:s, s:O, s:s, s:O}", "op", "load", "task_key", key, "task", spec,
                     "seed", live->seed, "limits", limits);
}

static gboolean live_load(EpisodeHosts *hosts, Live *live, Host *host, GError **error)
{
    json_t *message = load_message(hosts, live, error);
    if (message == NULL)
        return FALSE;
    Ask *load = ask_new(hosts, live->id, message);
    load->is_load = load->is_counted = TRUE;
    load->host = live->host = host;
    load->deadline = g_timeout_add_seconds(live->deadline_s, ask_late, load);
    live->n_asks++;
    host->n_live++;
    worker_link_send(host->link, message);
    return TRUE;
}

static void ask_send(Ask *ask)
{
    EpisodeHosts *hosts = ask->hosts;
    g_autoptr(GError) error = NULL;
    Live *live = g_hash_table_lookup(hosts->live, ask->id);
    Host *host = live != NULL && live->host != NULL ? live->host : host_choose(hosts);
    if (host == NULL) {
        g_autofree char *why = g_strdup_printf("no episode host runs: %s", hosts->problem);
        ask_fail(ask, ASSAY_ERROR_BUSY, why, FALSE);
        return;
    }
    if (live != NULL && live->host == NULL && !live_load(hosts, live, host, &error)) {
        ask_fail(ask, ASSAY_ERROR_SYSTEM, error->message, FALSE);
        return;
    }
    ask->host = host;
    if (ask->deadline == 0 && live != NULL)
        ask->deadline = g_timeout_add_seconds(live->deadline_s, ask_late, ask);
    worker_link_send(host->link, ask->message);
}

/* A load may do every step again, each as long as its command may take. */
static guint deadline_of(EpisodeHosts *hosts, const EpisodeRow *row)
{
    g_autoptr(json_t) limits = json_parse(row->limits, strlen(row->limits), NULL);
    gint64 turns = json_integer_value(json_object_get(limits, "turns"));
    gint64 command_s = json_integer_value(json_object_get(limits, "command_s"));
    gint64 all = config_int(hosts->service->config, CONFIG_OVERHEAD_S) + turns * command_s;
    return (guint)MIN(all, 7 * 86400);
}

static Live *live_new(EpisodeHosts *hosts, const EpisodeRow *row)
{
    Live *live = g_new0(Live, 1);
    *live = (Live){.id = g_strdup(row->public_id),
                   .task_id = row->task_id,
                   .seed = g_strdup(row->seed),
                   .limits = g_strdup(row->limits),
                   .deadline_s = deadline_of(hosts, row),
                   .steps = -1};
    g_hash_table_insert(hosts->live, live->id, live);
    return live;
}

void episode_hosts_follow(EpisodeHosts *hosts, const EpisodeRow *child, const char *parent)
{
    g_autoptr(GError) error = NULL;
    const Live *older = g_hash_table_lookup(hosts->live, parent);
    if (older == NULL || older->host == NULL ||
        g_hash_table_contains(hosts->live, child->public_id))
        return;
    Live *live = live_new(hosts, child);
    if (live_load(hosts, live, older->host, &error))
        return;
    g_warning("episode %s: %s", child->public_id, error->message);
    g_hash_table_remove(hosts->live, live->id);
}

void episode_hosts_ask(EpisodeHosts *hosts, const EpisodeRow *row, json_t *message, gboolean load,
                       const EpisodeAsk *how)
{
    Live *live = g_hash_table_lookup(hosts->live, row->public_id);
    Ask *ask = ask_new(hosts, row->public_id, message);
    ask->how = *how;
    if (live == NULL && load)
        live = live_new(hosts, row);
    ask->is_counted = live != NULL;
    if (live != NULL && ++live->n_asks > EPISODE_ASKS_MAX) {
        g_autoptr(GError) error = NULL;
        error_set(&error, ASSAY_ERROR_BUSY, "%u requests of the episode are waiting",
                  EPISODE_ASKS_MAX);
        ask_answer(ask, &(EpisodeReply){.error = error});
        return;
    }
    ask_send(ask);
}

void episode_hosts_forget(EpisodeHosts *hosts, const char *id)
{
    Live *live = g_hash_table_lookup(hosts->live, id);
    if (live == NULL)
        return;
    live->is_gone = TRUE;
    live_settle(hosts, live);
}

gint64 episode_hosts_steps(const EpisodeHosts *hosts, const char *id)
{
    const Live *live = g_hash_table_lookup(hosts->live, id);
    return live != NULL ? live->steps : -1;
}

guint episode_hosts_n_alive(const EpisodeHosts *hosts)
{
    guint n = 0;
    for (guint i = 0; i < hosts->n; i++)
        n += hosts->all[i].link != NULL;
    return n;
}

guint episode_hosts_n_loaded(const EpisodeHosts *hosts)
{
    return g_hash_table_size(hosts->live);
}

guint64 episode_hosts_n_lost(const EpisodeHosts *hosts)
{
    return hosts->n_lost;
}
