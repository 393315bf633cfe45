/*
 * The one table of endpoints. Adding one: a handler, a row here, a stanza in docs/protocol.md.
 */
#pragma once

#include "env/http.h"

#define ROUTES_ID_MAX 512u /* bytes of an id in a path */

typedef void (*RouteFn)(Request *req);

struct Route {
    const char *method;
    const char *pattern; /* with at most one {id} */
    RouteFn handler;
    gsize body_max;    /* bytes; 0: HTTP_BODY_MAX */
    gboolean json;     /* the body is one JSON object (may be absent) */
    gboolean creates;  /* takes an Idempotency-Key; refused while draining */
    const char *query; /* permitted query keys, separated by spaces */
    const char *summary;
};

/* The table, ended by a row without method. */
extern const Route routes[];

gsize route_body_max(const Route *route);
/* Finds the route when the headers are known; replies when there is none or the request is over a
 * limit. Fills req->route, subject and query. */
void routes_admit(Request *req, const char *path, GHashTable *query);
/* Parses the body and calls the handler. */
void routes_dispatch(Request *req);

void api_ping(Request *req);
void api_live(Request *req);
void api_ready(Request *req);
void api_version(Request *req);
void api_metrics(Request *req);
void api_info(Request *req);
void api_doctor(Request *req);
void api_events(Request *req);
void api_tasks_import(Request *req);
void api_tasks_list(Request *req);
void api_task_show(Request *req);
void api_task_validate(Request *req);
void api_grade_create(Request *req);
void api_grade_group(Request *req);
void api_grades_list(Request *req);
void api_grade_show(Request *req);
void api_grade_log(Request *req);
void api_grade_tests(Request *req);
void api_grade_files(Request *req);
void api_grade_explain(Request *req);
void api_grade_cancel(Request *req);
void api_grade_retry(Request *req);
void api_episodes_open(Request *req);
void api_episodes_list(Request *req);
void api_episode_step(Request *req);
void api_episode_exec(Request *req);
void api_episode_file_get(Request *req);
void api_episode_file_put(Request *req);
void api_episode_diff(Request *req);
void api_episode_fork(Request *req);
void api_episode_rollback(Request *req);
void api_episode_submit(Request *req);
void api_episode_steps(Request *req);
void api_episode_close(Request *req);
void api_episode_show(Request *req);
void api_sweep_create(Request *req);
void api_sweeps_list(Request *req);
void api_sweep_show(Request *req);
void api_sweep_results(Request *req);
void api_sweep_report(Request *req);
void api_sweep_cancel(Request *req);
