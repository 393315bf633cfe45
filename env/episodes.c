/*
 * How episodes of the daemon end, and how they are shown.
 *
 * Invariants:
 *   1. An ending and its grade are stored in one transaction; either is stored once.
 *   2. An episode that our machine lost is masked and has no reward, never 0.
 *
 * Not here: hosts (episode_hosts.c), requests (api_episodes.c).
 */
#include "env/episodes.h"

#include "base/error.h"
#include "env/grade_json.h"
#include "env/queue.h"

#include <string.h>

/* The grade of what the episode leaves. */
static gboolean grade_ask(Service *service, EpisodeRow *row, GBytes *diff, GError **error)
{
    gsize len = 0;
    const char *patch = g_bytes_get_data(diff, &len);
    g_autoptr(GradeRow) grade = NULL;
    g_autoptr(TaskRow) task = task_by_id(service->store, row->task_id, error);
    const GradeAsk ask = {.mode = "strict", .cache = GRADE_CACHE_USE, .direct = TRUE};
    if (task == NULL || queue_submit(service, task, patch != NULL ? patch : "", len, &ask, &grade,
                                     error) == GRADE_SUBMIT_ERROR)
        return FALSE;
    row->grade_id = grade->id;
    return TRUE;
}

static gboolean end_store(Service *service, EpisodeRow *row, const EpisodeReply *reply,
                          GError **error)
{
    if (reply->diff != NULL && !grade_ask(service, row, reply->diff, error))
        return FALSE;
    if (!episode_set_ended(service->store, row, error))
        return FALSE;
    const char *end = episode_end_rule((EpisodeEnd)row->ending)->name;
    service_event(service, "episode.ended", row->public_id,
                  json_pack("{s:s,s:s,s:s,s:I}", "id", row->public_id, "instance_id",
                            row->instance_id, "end", end, "steps", (json_int_t)row->steps));
    service_changed(service, row->public_id);
    return TRUE;
}

gboolean episodes_end(Service *service, EpisodeRow *row, EpisodeEnd end, const EpisodeReply *reply,
                      GError **error)
{
    g_autoptr(GError) local = NULL;
    row->ending = end;
    row->steps = reply->is_known ? reply->steps : MAX(row->steps, 0);
    g_free(row->why);
    row->why = end == EPISODE_INFRASTRUCTURE && reply->error != NULL
                   ? g_strdup(reply->error->message)
                   : NULL;
    gboolean ok = store_savepoint(service->store, error);
    if (ok) {
        ok = end_store(service, row, reply, &local);
        store_savepoint_end(service->store, ok);
    }
    if (!ok && !g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_CONFLICT)) {
        if (local != NULL)
            g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    episode_hosts_forget(service->episodes, row->public_id);
    g_autoptr(EpisodeRow) now = episode_find(service->store, row->public_id, error);
    if (now == NULL)
        return FALSE;
    EpisodeRow old = *row;
    *row = *now;
    *now = old; /* freed */
    return TRUE;
}

json_t *episodes_reward(const EpisodeRow *row)
{
    switch (episode_end_rule((EpisodeEnd)row->ending)->reward) {
    case EPISODE_REWARD_ZERO:
        return json_real(0.0);
    case EPISODE_REWARD_VERDICT:
        if (row->grade_state == GRADE_DONE && row->has_reward && row->grade != NULL)
            return json_real(row->reward);
        return json_null();
    case EPISODE_REWARD_NONE:
        break;
    }
    return json_null();
}

gboolean episodes_masked(const EpisodeRow *row)
{
    const EpisodeEndRule *rule = episode_end_rule((EpisodeEnd)row->ending);
    return row->ending != EPISODE_OPEN && (rule->reward == EPISODE_REWARD_NONE || row->mask ||
                                           (row->grade != NULL && row->grade_state > GRADE_DONE));
}

json_t *episodes_json(Service *service, const EpisodeRow *row)
{
    gboolean is_open = row->ending == EPISODE_OPEN, has_grade = row->grade != NULL;
    gint64 steps = is_open ? episode_hosts_steps(service->episodes, row->public_id) : row->steps;
    g_autofree char *task = g_strconcat(row->dataset, "/", row->instance_id, NULL);
    json_t *object = json_pack(
        "{s:s,s:s,s:s,s:s,s:s,s:s?,s:s,s:o,s:s?}", "id", row->public_id, "object", "episode",
        "task", task, "instance_id", row->instance_id, "state", is_open ? "open" : "ended", "end",
        is_open ? NULL : episode_end_rule((EpisodeEnd)row->ending)->name, "seed", row->seed,
        "limits", json_parse(row->limits, strlen(row->limits), NULL), "parent", row->parent);
    json_object_set_new(object, "steps", steps >= 0 ? json_integer(steps) : json_null());
    json_object_set_new(object, "fork_step",
                        row->parent != NULL ? json_integer(row->fork_step) : json_null());
    json_object_set_new(object, "grade", has_grade ? json_string(row->grade) : json_null());
    gboolean is_judged = has_grade && row->verdict != VERDICT_NONE;
    json_object_set_new(object, "verdict",
                        is_judged ? json_string(verdict_str(row->verdict)) : json_null());
    json_object_set_new(object, "reward", episodes_reward(row));
    json_object_set_new(object, "mask", json_boolean(episodes_masked(row)));
    json_object_set_new(object, "why", row->why != NULL ? json_string(row->why) : json_null());
    json_object_set_new(object, "created_at", time_json(row->created_ms));
    json_object_set_new(object, "finished_at", time_json(row->finished_ms));
    return object;
}
