/*
 * The engine on a thread of its own, and a queue each way.
 *
 *     main loop --- jobs, each run between two steps ---> the engine's thread
 *               <-- replies, each run in the main loop --
 *
 * A step may take as long as it likes: nobody who asks the main loop waits for it.
 */
#pragma once

#include "policy/engine.h"

typedef struct PolicyThread PolicyThread;
typedef void (*PolicyJob)(PolicyThread *thread, gpointer data);

/* Called in the engine's thread after every step that may have said something. */
PolicyThread *policy_thread_new(Engine *engine, PolicyJob after_step, gpointer data);
/* After the step that it is in. Jobs and replies that are still due are run. */
void policy_thread_free(PolicyThread *thread);

/* --- from the main loop */

/* Jobs run in the order they were posted in. */
void policy_thread_post(PolicyThread *thread, PolicyJob job, gpointer data);

/* As they were after the last step or job. */
void policy_thread_stats(PolicyThread *thread, EngineStats *stats, guint64 *version);

/* --- in the engine's thread */

Engine *policy_thread_engine(PolicyThread *thread);
/* There is something to step again. */
void policy_thread_work(PolicyThread *thread);
/* A frozen one takes no steps; its jobs run. */
void policy_thread_freeze(PolicyThread *thread, gboolean frozen);
/* Replies run in the order they were made in, each until it returns G_SOURCE_REMOVE. With a few of
 * them waiting the engine does not go on, so that a busy main loop is never more than a few steps
 * behind. */
void policy_thread_reply(PolicyThread *thread, GSourceFunc reply, gpointer data);
