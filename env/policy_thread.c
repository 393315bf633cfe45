/*
 * The engine's thread and its two queues.
 *
 * Invariants:
 *   1. Only the thread touches the engine, from policy_thread_new to policy_thread_free.
 *   2. No step begins while REPLIES_MAX replies wait for the main loop: what the loop has not read
 *      is bounded.
 *   3. With nothing to step, or frozen, the thread sleeps in its queue.
 *
 * Not here: what jobs do (policy_call.c, policy_api.c).
 */
#include "env/policy_thread.h"

#define REPLIES_MAX 8

typedef struct Letter {
    PolicyThread *thread;
    PolicyJob job;     /* to the engine */
    GSourceFunc reply; /* or to the main loop */
    gpointer data;
} Letter;

struct PolicyThread {
    Engine *engine;
    PolicyJob after_step;
    gpointer data;
    GThread *thread;
    GAsyncQueue *jobs, *replies; /* Letter */
    Letter *current;             /* a reply that wants another turn; the main loop's */
    gint n_replies;              /* waiting; atomic */
    gboolean work, frozen, stop; /* the thread's */
    GMutex lock;                 /* of what follows */
    EngineStats stats;
    guint64 version;
};

static void note_stats(PolicyThread *thread)
{
    EngineStats stats;
    engine_stats(thread->engine, &stats);
    g_mutex_lock(&thread->lock);
    thread->stats = stats;
    thread->version = engine_model(thread->engine)->version;
    g_mutex_unlock(&thread->lock);
}

static gpointer run(gpointer data)
{
    PolicyThread *thread = data;
    while (!thread->stop) {
        gboolean rests =
            !thread->work || thread->frozen || g_atomic_int_get(&thread->n_replies) >= REPLIES_MAX;
        g_autofree Letter *letter =
            rests ? g_async_queue_pop(thread->jobs) : g_async_queue_try_pop(thread->jobs);
        if (letter != NULL) {
            letter->job(thread, letter->data);
        } else {
            thread->work = engine_step(thread->engine) > 0;
            thread->after_step(thread, thread->data);
        }
        note_stats(thread);
    }
    return NULL;
}

PolicyThread *policy_thread_new(Engine *engine, PolicyJob after_step, gpointer data)
{
    PolicyThread *thread = g_new0(PolicyThread, 1);
    thread->engine = engine;
    thread->after_step = after_step;
    thread->data = data;
    thread->jobs = g_async_queue_new();
    thread->replies = g_async_queue_new();
    g_mutex_init(&thread->lock);
    note_stats(thread);
    thread->thread = g_thread_new("engine", run, thread);
    return thread;
}

static void job_stop(PolicyThread *thread, gpointer data)
{
    (void)data;
    thread->stop = TRUE;
}

void policy_thread_free(PolicyThread *thread)
{
    if (thread == NULL)
        return;
    policy_thread_post(thread, job_stop, NULL);
    g_thread_join(thread->thread);
    while (g_atomic_int_get(&thread->n_replies) > 0)
        g_main_context_iteration(NULL, TRUE);
    g_async_queue_unref(thread->jobs);
    g_async_queue_unref(thread->replies);
    g_mutex_clear(&thread->lock);
    g_free(thread);
}

void policy_thread_post(PolicyThread *thread, PolicyJob job, gpointer data)
{
    Letter *letter = g_new0(Letter, 1);
    letter->job = job;
    letter->data = data;
    g_async_queue_push(thread->jobs, letter);
}

void policy_thread_stats(PolicyThread *thread, EngineStats *stats, guint64 *version)
{
    g_mutex_lock(&thread->lock);
    *stats = thread->stats;
    *version = thread->version;
    g_mutex_unlock(&thread->lock);
}

Engine *policy_thread_engine(PolicyThread *thread)
{
    return thread->engine;
}

void policy_thread_work(PolicyThread *thread)
{
    thread->work = TRUE;
}

void policy_thread_freeze(PolicyThread *thread, gboolean frozen)
{
    thread->frozen = frozen;
}

static void job_nothing(PolicyThread *thread, gpointer data)
{
    (void)thread, (void)data;
}

/* A turn of the loop for each reply, or as many as it wants: sockets have theirs in between. There
 * is one source for each letter, and none overtakes another. */
static gboolean deliver(gpointer data)
{
    PolicyThread *thread = data;
    Letter *letter = g_steal_pointer(&thread->current);
    if (letter == NULL)
        letter = g_async_queue_pop(thread->replies);
    if (letter->reply(letter->data) == G_SOURCE_CONTINUE) {
        thread->current = letter;
        return G_SOURCE_CONTINUE;
    }
    g_free(letter);
    if (g_atomic_int_add(&thread->n_replies, -1) >= REPLIES_MAX)
        policy_thread_post(thread, job_nothing, NULL); /* it may sleep for want of room */
    return G_SOURCE_REMOVE;
}

void policy_thread_reply(PolicyThread *thread, GSourceFunc reply, gpointer data)
{
    Letter *letter = g_new0(Letter, 1);
    letter->reply = reply;
    letter->data = data;
    note_stats(thread); /* who hears of an end and asks sees it in the figures */
    g_atomic_int_inc(&thread->n_replies);
    g_async_queue_push(thread->replies, letter);
    g_idle_add_full(G_PRIORITY_DEFAULT, deliver, thread, NULL);
}
