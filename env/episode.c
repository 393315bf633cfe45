/*
 * Episodes: opening, steps, endings.
 *
 * Invariants:
 *   1. An open episode whose files are in its row holds no process and no descriptor before its
 *      first command.
 *   2. Every call is one step and one line of the record, whatever came of it, except one that
 *      found no free box.
 *   3. What our machine does wrong ends the episode as EPISODE_INFRASTRUCTURE; what the policy
 *      does, never.
 *   4. At the end the changes are read and the box is given back.
 *
 * Not here: tools (episode_tools.c), files (episode_tree.c), the record (episode_record.c).
 */
#include "env/episode_private.h"

#include "base/error.h"
#include "env/box_diff.h"

#include <string.h>

#define NOTE_BYTES    60u /* between head and tail */
#define BOXES_DEFAULT 2u
#define USES_MAX      50u /* of one box */

static const EpisodeEndRule rules[EPISODE_ENDS] = {
    [EPISODE_OPEN] = {"open", EPISODE_REWARD_NONE, FALSE, EPISODE_LOSS_NO},
    [EPISODE_SUBMITTED] = {"submitted", EPISODE_REWARD_VERDICT, TRUE, EPISODE_LOSS_YES},
    [EPISODE_TURN_LIMIT] = {"turn_limit", EPISODE_REWARD_VERDICT, TRUE, EPISODE_LOSS_OPTION},
    [EPISODE_TOKEN_LIMIT] = {"token_limit", EPISODE_REWARD_VERDICT, TRUE, EPISODE_LOSS_OPTION},
    [EPISODE_TIME_LIMIT] = {"time_limit", EPISODE_REWARD_VERDICT, FALSE, EPISODE_LOSS_NO},
    [EPISODE_REPETITION] = {"repetition", EPISODE_REWARD_ZERO, TRUE, EPISODE_LOSS_YES},
    [EPISODE_UNPARSABLE] = {"unparsable", EPISODE_REWARD_ZERO, TRUE, EPISODE_LOSS_YES},
    [EPISODE_ABORTED] = {"aborted", EPISODE_REWARD_NONE, FALSE, EPISODE_LOSS_NO},
    [EPISODE_INFRASTRUCTURE] = {"infrastructure", EPISODE_REWARD_NONE, FALSE, EPISODE_LOSS_NO},
    [EPISODE_CHEAT] = {"cheat", EPISODE_REWARD_ZERO, TRUE, EPISODE_LOSS_YES},
};

const EpisodeEndRule *episode_end_rule(EpisodeEnd end)
{
    g_assert((guint)end < EPISODE_ENDS);
    return &rules[end];
}

/* ---- the host ---- */

EpisodeHost *episode_host_new(const EpisodeHostOptions *options)
{
    EpisodeHost *host = g_new0(EpisodeHost, 1);
    host->options = *options;
    host->pool = box_pool_new(options->slot_first,
                              options->n_boxes != 0 ? options->n_boxes : BOXES_DEFAULT, USES_MAX);
    return host;
}

void episode_host_free(EpisodeHost *host)
{
    if (host == NULL)
        return;
    box_pool_free(host->pool);
    g_free(host);
}

static BoxSpec spec_of(const Episode *episode)
{
    BoxSpec spec = {.limits = box_limits_default()};
    spec.limits.mem_bytes = 1024u << 20;
    spec.limits.disk_bytes = 256u << 20;
    if (episode->options.base != NULL)
        spec = *episode->options.base;
    spec.work_path = EPISODE_WORK;
    spec.limits.output_bytes_keep = 1u << 20;
    spec.allow_degraded = episode->host->options.allow_degraded;
    return spec;
}

Box *episode_take_box(const Episode *episode, const BoxSnapshot *from, GError **error)
{
    g_autoptr(GError) local = NULL;
    BoxSpec spec = spec_of(episode);
    spec.snapshot = from;
    Box *box = box_pool_take(episode->host->pool, &spec, "episode", &local);
    if (g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_LIMIT))
        error_set(error, ASSAY_ERROR_BUSY, "no box is free: %s", local->message);
    else if (box == NULL)
        g_propagate_error(error, g_steal_pointer(&local));
    return box;
}

gboolean episode_enter_box(Episode *episode, GError **error)
{
    if (episode->tree.box != NULL)
        return TRUE;
    Box *box = episode_take_box(episode, NULL, error);
    if (box == NULL)
        return FALSE;
    if (episode->options.base != NULL)
        episode->tree.box = box;
    if (episode->options.base != NULL || episode_tree_move(&episode->tree, box, error))
        return TRUE;
    box_pool_give(episode->host->pool, box);
    return FALSE;
}

static void leave_box(Episode *episode)
{
    if (episode->tree.box != NULL)
        box_pool_give(episode->host->pool, g_steal_pointer(&episode->tree.box));
}

/* ---- opening and closing ---- */

static guint or_default(guint value, guint fallback)
{
    return value != 0 ? value : fallback;
}

Episode *episode_open(EpisodeHost *host, const Task *task, const EpisodeOptions *options,
                      GError **error)
{
    if (task->files == NULL && options->base == NULL) {
        error_set(error, ASSAY_ERROR_UNSUPPORTED,
                  "task %s: an episode needs a task whose files are in its row, or its checkout",
                  task->instance_id);
        return NULL;
    }
    g_autoptr(Episode) episode = g_new0(Episode, 1);
    episode->host = host;
    episode->tree.task = task;
    episode->options = (EpisodeOptions){
        .seed = options->seed,
        .turns_max = or_default(options->turns_max, EPISODE_TURNS_DEFAULT),
        .bad_max = or_default(options->bad_max, EPISODE_BAD_DEFAULT),
        .text_bytes_max = MAX(or_default(options->text_bytes_max, EPISODE_TEXT_BYTES_DEFAULT),
                              EPISODE_TEXT_BYTES_MIN),
        .command_s = or_default(options->command_s, EPISODE_COMMAND_S_DEFAULT),
        .base = options->base,
        .envp = options->envp};
    g_queue_init(&episode->undos);
    episode->replay_us = -1;
    episode_record_head(episode);
    if (options->base != NULL && !episode_enter_box(episode, error))
        return NULL;
    return g_steal_pointer(&episode);
}

void episode_free(Episode *episode)
{
    if (episode == NULL)
        return;
    episode_running_clear(episode);
    leave_box(episode);
    episode_tree_clear(&episode->tree);
    g_queue_clear_full(&episode->undos, (GDestroyNotify)(gpointer)episode_undo_free);
    if (episode->record != NULL)
        g_string_free(episode->record, TRUE);
    if (episode->diff != NULL)
        g_string_free(episode->diff, TRUE);
    json_decref(episode->noted);
    json_decref(episode->changes);
    g_free(episode);
}

void episode_observation_clear(EpisodeObservation *observation)
{
    g_free(observation->text);
    *observation = (EpisodeObservation){0};
}

/* ---- endings ---- */

static void forget_changes(Episode *episode)
{
    g_clear_pointer(&episode->changes, json_decref);
    if (episode->diff != NULL)
        g_string_free(g_steal_pointer(&episode->diff), TRUE);
}

/* Of a checkout. What is too much for a diff is no failure of ours. */
static GString *read_diff(Episode *episode, GError **error)
{
    g_autoptr(GError) local = NULL;
    g_autoptr(GString) diff = box_diff(episode->tree.box, &local);
    if (diff != NULL && diff->len <= EPISODE_DIFF_MAX)
        return g_steal_pointer(&diff);
    if (diff != NULL || g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_LIMIT))
        return g_string_new("The changes are too many for a diff.\n");
    g_propagate_error(error, g_steal_pointer(&local));
    return NULL;
}

/* What is changed now, in place of what was. */
static gboolean read_changes(Episode *episode, GError **error)
{
    forget_changes(episode);
    if (episode->options.base != NULL)
        episode->diff = read_diff(episode, error);
    else
        episode->changes = episode_tree_changes(&episode->tree, error);
    if (episode->changes != NULL || episode->diff != NULL)
        return TRUE;
    g_prefix_error(error, "episode of %s: ", episode->tree.task->instance_id);
    return FALSE;
}

/* The last thing: what was changed, for good; then nothing needs the box. */
static gboolean close_tree(Episode *episode, GError **error)
{
    if (episode->end == EPISODE_INFRASTRUCTURE)
        forget_changes(episode);
    else if (!read_changes(episode, error))
        episode->end = EPISODE_INFRASTRUCTURE;
    leave_box(episode);
    episode_record_end(episode);
    return episode->end != EPISODE_INFRASTRUCTURE;
}

gboolean episode_end(Episode *episode, EpisodeEnd end, GError **error)
{
    g_assert(end != EPISODE_OPEN);
    if (episode->end != EPISODE_OPEN)
        return TRUE;
    episode_running_clear(episode);
    episode->end = end;
    return close_tree(episode, error) || end == EPISODE_INFRASTRUCTURE;
}

EpisodeEnd episode_ended(const Episode *episode)
{
    return episode->end;
}

guint episode_turns(const Episode *episode)
{
    return episode->turns;
}

const json_t *episode_changes(Episode *episode, GError **error)
{
    if (episode->end == EPISODE_OPEN)
        read_changes(episode, error);
    else if (episode->changes == NULL)
        error_set(error, ASSAY_ERROR_SYSTEM, "the episode was lost to a failure of this machine");
    return episode->changes;
}

const GString *episode_diff(Episode *episode, GError **error)
{
    if (episode->end == EPISODE_OPEN && !read_changes(episode, error))
        return NULL;
    if (episode->diff == NULL && episode->changes != NULL)
        episode->diff = episode_tree_diff(&episode->tree, episode->changes, error);
    else if (episode->diff == NULL)
        error_set(error, ASSAY_ERROR_SYSTEM, "the episode was lost to a failure of this machine");
    return episode->diff;
}

/* ---- steps ---- */

/* Head and tail of a text that is too long, cut between characters, not longer than that with the
 * note between them. */
static char *head_and_tail(const char *text, gsize bytes_max)
{
    gsize len = strlen(text), keep = (bytes_max - NOTE_BYTES) / 2;
    if (len <= bytes_max)
        return g_strdup(text);
    const char *head_end = g_utf8_find_prev_char(text, text + keep + 1);
    const char *tail = g_utf8_find_next_char(text + len - keep - 1, NULL);
    return g_strdup_printf("%.*s\n[... %zu bytes are left out ...]\n%s", (int)(head_end - text),
                           text, (gsize)(tail - head_end), tail);
}

/* The step is done: limits, the record, the end. */
static gboolean step_end(Episode *episode, const EpisodeTool *tool, const json_t *arguments,
                         EpisodeObservation *seen, gint64 started_us, GError **error)
{
    gint64 us = g_get_monotonic_time() - started_us;
    gboolean is_side = tool != NULL && tool->parameters == NULL;
    episode->turns += !is_side;
    if (!is_side && episode->end == EPISODE_OPEN && episode->bad_in_row >= episode->options.bad_max)
        episode->end = EPISODE_UNPARSABLE;
    if (!is_side && episode->end == EPISODE_OPEN && episode->turns >= episode->options.turns_max)
        episode->end = EPISODE_TURN_LIMIT;
    seen->end = episode->end;
    episode_record_step(episode, tool, arguments, seen,
                        episode->replay_us >= 0 ? episode->replay_us : us);
    episode->replay_us = -1;
    if (episode->end == EPISODE_OPEN)
        return TRUE;
    gboolean ok = close_tree(episode, error);
    seen->end = episode->end;
    return ok;
}

static gboolean is_ours(const GError *error)
{
    return error->domain != ASSAY_ERROR || error->code == ASSAY_ERROR_SYSTEM ||
           error->code == ASSAY_ERROR_UNSUPPORTED;
}

/* After the end, or for a policy that asked for what is not there. */
static void refuse(EpisodeObservation *ret, EpisodeEnd end, char *text)
{
    episode_observation_clear(ret);
    *ret = (EpisodeObservation){.text = text, .is_error = TRUE, .end = end};
}

void episode_bad_action(Episode *episode, const char *why, EpisodeObservation *ret)
{
    g_autofree char *valid = g_utf8_make_valid(why, -1);
    if (episode->end != EPISODE_OPEN) {
        refuse(ret, episode->end, g_strdup("The episode has ended."));
        return;
    }
    episode->bad_in_row++;
    refuse(ret, EPISODE_OPEN, head_and_tail(valid, episode->options.text_bytes_max));
    step_end(episode, NULL, NULL, ret, g_get_monotonic_time(), NULL);
}

/* A call has done what it could: what is shown of it, and what follows. `why` is taken. */
static gboolean call_end(Episode *episode, GString *out, GError *why, EpisodeObservation *ret,
                         GError **error)
{
    g_autoptr(GError) local = why;
    const EpisodeTool *tool = episode->running.tool;
    gboolean is_side = tool->parameters == NULL, ours = why != NULL && is_ours(why);
    g_autoptr(json_t) arguments = g_steal_pointer(&episode->running.arguments);
    gint64 started_us = episode->running.started_us;
    if (g_error_matches(why, ASSAY_ERROR, ASSAY_ERROR_BUSY)) {
        episode_running_clear(episode);
        g_propagate_error(error, g_steal_pointer(&local));
        return FALSE;
    }
    if (why != NULL)
        g_string_printf(out, "Error: %s\n", why->message);
    if (ours)
        episode->end = EPISODE_INFRASTRUCTURE;
    if (!is_side)
        episode->bad_in_row = 0;
    episode_running_clear(episode);
    episode_observation_clear(ret);
    g_autofree char *valid = g_utf8_make_valid(out->str, (gssize)out->len);
    ret->text =
        is_side ? g_steal_pointer(&valid) : head_and_tail(valid, episode->options.text_bytes_max);
    ret->is_error = why != NULL;
    gboolean ended_well = step_end(episode, tool, arguments, ret, started_us, ours ? NULL : error);
    if (!ours)
        return ended_well;
    g_propagate_prefixed_error(error, g_steal_pointer(&local),
                               "episode of %s: ", episode->tree.task->instance_id);
    return FALSE;
}

static gboolean call_start(Episode *episode, const EpisodeTool *tool, const json_t *arguments,
                           EpisodeObservation *ret, GError **error)
{
    GError *local = NULL;
    g_autoptr(GString) out = g_string_new(NULL);
    g_assert(episode->running.tool == NULL);
    episode->running = (EpisodeRunning){.tool = tool,
                                        .arguments = json_incref((json_t *)(gsize)arguments),
                                        .started_us = g_get_monotonic_time()};
    tool->fn(episode, arguments, out, &local);
    return episode->running.run != NULL || call_end(episode, out, local, ret, error);
}

gboolean episode_call_start(Episode *episode, const char *name, const json_t *arguments,
                            EpisodeObservation *ret, GError **error)
{
    const EpisodeTool *tool = episode_tool_find(name);
    if (tool == NULL || episode->end != EPISODE_OPEN) {
        g_autofree char *names = episode_tool_names();
        g_autofree char *why =
            g_strdup_printf("There is no tool %.60s; there are %s.", name, names);
        episode_bad_action(episode, why, ret);
        return TRUE;
    }
    return call_start(episode, tool, arguments, ret, error);
}

gboolean episode_side_start(Episode *episode, const char *name, const json_t *arguments,
                            EpisodeObservation *ret, GError **error)
{
    const EpisodeTool *tool = episode_side_find(name);
    if (tool == NULL)
        return error_set(error, ASSAY_ERROR_INPUT, "side: %.60s: unknown", name);
    if (episode->end == EPISODE_OPEN)
        return call_start(episode, tool, arguments, ret, error);
    refuse(ret, episode->end, g_strdup("The episode has ended."));
    return TRUE;
}

gboolean episode_is_boxed(const Episode *episode)
{
    return episode->tree.box != NULL;
}

BoxRun *episode_running(const Episode *episode)
{
    return episode->running.run;
}

gboolean episode_call_finish(Episode *episode, EpisodeObservation *ret, GError **error)
{
    GError *local = NULL;
    g_auto(BoxResult) result = {0};
    g_autoptr(GString) out = g_string_new(NULL);
    g_assert(episode->running.run != NULL);
    if (box_run_finish(g_steal_pointer(&episode->running.run), &result, &local))
        episode->running.tool->show(episode, &result, out);
    return call_end(episode, out, local, ret, error);
}

gboolean episode_call(Episode *episode, const char *name, const json_t *arguments,
                      EpisodeObservation *ret, GError **error)
{
    if (!episode_call_start(episode, name, arguments, ret, error))
        return FALSE;
    return episode->running.run == NULL || episode_call_finish(episode, ret, error);
}
