/*
 * One worker process: a socketpair, bounded JSON lines both ways, and its death.
 *
 *     static const WorkerLinkEvents events = {on_line, on_died};
 *     WorkerLink *link = worker_link_start(program, NULL, &events, slot, error);
 *     worker_link_send(link, message);
 *
 * The process is never trusted: a line that is too long or no JSON object, or that `line` refuses,
 * is its end.
 */
#pragma once

#include "base/json.h"

#define WORKER_KILL_AFTER_MS 2000 /* between SIGTERM and SIGKILL */

typedef struct WorkerLink WorkerLink;

/* Called from the main loop. */
typedef struct WorkerLinkEvents {
    gsize line_max; /* bytes of one line */
    /* FALSE: it broke the protocol and is killed. */
    gboolean (*line)(gpointer user_data, const json_t *message);
    /* It is gone and waited for; the last call. The link is freed when this returns. */
    void (*died)(gpointer user_data, const char *why);
} WorkerLinkEvents;

/* Starts `program`, with one argument unless NULL. NULL: it cannot be started. */
WorkerLink *worker_link_start(const char *program, const char *argument,
                              const WorkerLinkEvents *events, gpointer user_data, GError **error);
void worker_link_send(WorkerLink *link, const json_t *message);
/* No line is heard from now on; `died` follows, with the first `why`. */
void worker_link_kill(WorkerLink *link, int signal_number, const char *why);
gboolean worker_link_is_dying(const WorkerLink *link);
GPid worker_link_pid(const WorkerLink *link);

/* Frees links without calling back: closes their sockets, upon which an idle worker leaves and
 * takes its cgroups along; kills what is still there after WORKER_KILL_AFTER_MS. NULL ones are
 * nothing. */
void worker_links_free(WorkerLink *const *links, guint n);
