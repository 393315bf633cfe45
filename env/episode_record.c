/*
 * The record of an episode as JSON lines, and doing it again.
 *
 *     {"episode": 1, "task", "digest", "seed": "7", "limits": {...}}
 *     {"step": 1, "tool": "edit", "arguments": {...}, "observation", "error": false, "us": 41,
 *      "token_ids"?, "logprobs"?, "weight_version"?}
 *     {"side": "exec", "arguments": {...}, "observation", "error", "us"}
 *     {"end": "submitted", "steps": 3, "tree": SHA-256 of the changes}
 *
 * Invariants:
 *   1. A line is whole: it is written at once, at the end of its step.
 *   2. "us" is all that depends on the clock; a replay takes it from the record.
 *
 * Not here: files on disk; whoever keeps records writes the text.
 */
#include "env/episode_private.h"

#include "base/digest.h"
#include "base/error.h"

#include <math.h>
#include <string.h>

#define RECORD_VERSION   1
#define RECORD_BYTES_MAX (256u << 20)

static void line_add(Episode *episode, json_t *line)
{
    g_assert(line != NULL); /* every text in it is UTF-8 */
    char *text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9));
    g_string_append_printf(episode->record, "%s\n", text);
    free(text);
    json_decref(line);
}

void episode_record_head(Episode *episode)
{
    const EpisodeOptions *options = &episode->options;
    g_autofree char *digest = task_digest(episode->tree.task);
    g_autofree char *seed = g_strdup_printf("%" G_GUINT64_FORMAT, options->seed);
    episode->record = g_string_new(NULL);
    line_add(episode,
             json_pack("{s:i, s:s, s:s, s:s, s:{s:i, s:i, s:i, s:i}}", "episode", RECORD_VERSION,
                       "task", episode->tree.task->instance_id, "digest", digest, "seed", seed,
                       "limits", "turns", (int)options->turns_max, "bad", (int)options->bad_max,
                       "text_bytes", (int)options->text_bytes_max, "command_s",
                       (int)options->command_s));
}

void episode_note_tokens(Episode *episode, const EpisodeTokens *tokens)
{
    json_t *ids = json_array(), *logprobs = json_array();
    for (gsize i = 0; i < tokens->n; i++) {
        json_array_append_new(ids, json_integer(tokens->ids[i]));
        if (tokens->logprobs != NULL)
            json_array_append_new(logprobs, isfinite(tokens->logprobs[i])
                                                ? json_real((double)tokens->logprobs[i])
                                                : json_null());
    }
    g_clear_pointer(&episode->noted, json_decref);
    episode_note(episode, "token_ids", ids);
    if (tokens->logprobs != NULL)
        episode_note(episode, "logprobs", json_incref(logprobs));
    if (tokens->weight_version != NULL)
        episode_note(episode, "weight_version", json_string(tokens->weight_version));
    json_decref(logprobs);
}

void episode_note(Episode *episode, const char *key, json_t *value)
{
    if (episode->noted == NULL)
        episode->noted = json_object();
    if (value != NULL)
        json_object_set_new(episode->noted, key, value);
    else
        json_object_del(episode->noted, key);
}

void episode_record_step(Episode *episode, const EpisodeTool *tool, const json_t *arguments,
                         const EpisodeObservation *seen, gint64 us)
{
    gboolean is_side = tool != NULL && tool->parameters == NULL;
    json_t *line = is_side ? json_pack("{s:s}", "side", tool->name)
                           : json_pack("{s:i, s:s}", "step", (int)episode->turns, "tool",
                                       tool != NULL ? tool->name : "");
    g_autoptr(json_t) rest =
        json_pack("{s:o, s:s, s:b, s:I}", "arguments",
                  arguments != NULL ? json_deep_copy(arguments) : json_null(), "observation",
                  seen->text, "error", seen->is_error, "us", (json_int_t)us);
    json_object_update(line, rest);
    if (!is_side && episode->noted != NULL)
        json_object_update(line, episode->noted);
    if (!is_side)
        g_clear_pointer(&episode->noted, json_decref);
    line_add(episode, line);
}

void episode_record_end(Episode *episode)
{
    g_autofree char *digest = NULL;
    if (episode->changes != NULL) {
        char *text = json_dumps(episode->changes, JSON_COMPACT | JSON_SORT_KEYS);
        digest = digest_bytes(text, strlen(text));
        free(text);
    } else if (episode->diff != NULL) {
        digest = digest_bytes(episode->diff->str, episode->diff->len);
    }
    line_add(episode, json_pack("{s:s, s:i, s:s?}", "end", episode_end_rule(episode->end)->name,
                                "steps", (int)episode->turns, "tree", digest));
}

/* ---- doing it again ---- */

static gboolean head_read(const json_t *line, const Task *task, EpisodeOptions *options,
                          GError **error)
{
    const json_t *limits = json_object_get(line, "limits");
    const char *seed = json_want_str(line, "seed", error);
    const char *digest = seed != NULL ? json_want_str(line, "digest", error) : NULL;
    gint64 version, turns, bad, text_bytes, command_s;
    if (digest == NULL || !json_opt_int(line, "episode", 1, RECORD_VERSION, 0, &version, error) ||
        !json_opt_int(limits, "turns", 1, G_MAXINT32, 1, &turns, error) ||
        !json_opt_int(limits, "bad", 1, G_MAXINT32, 1, &bad, error) ||
        !json_opt_int(limits, "text_bytes", 1, G_MAXINT32, 1, &text_bytes, error) ||
        !json_opt_int(limits, "command_s", 1, G_MAXINT32, 1, &command_s, error))
        return FALSE;
    *options = (EpisodeOptions){.turns_max = (guint)turns,
                                .bad_max = (guint)bad,
                                .text_bytes_max = (guint)text_bytes,
                                .command_s = (guint)command_s};
    g_autofree char *own = task_digest(task);
    if (version != RECORD_VERSION ||
        !g_ascii_string_to_unsigned(seed, 10, 0, G_MAXUINT64, &options->seed, NULL))
        return error_set(error, ASSAY_ERROR_INPUT, "not the head of an episode");
    return g_str_equal(own, digest) || error_set(error, ASSAY_ERROR_INPUT,
                                                 "the record is of another task, or another state "
                                                 "of %s",
                                                 task->instance_id);
}

/* Puts the recorded tokens where the step will find them. */
static void note_again(Episode *episode, const json_t *line)
{
    static const char *const keys[] = {"token_ids", "logprobs", "weight_version", "request_id"};
    for (gsize i = 0; i < G_N_ELEMENTS(keys); i++) {
        json_t *value = json_object_get(line, keys[i]);
        if (value != NULL)
            episode_note(episode, keys[i], json_incref(value));
    }
}

struct EpisodeReplay {
    Episode *episode;
    const char *record, *at, *end;
    json_t *line; /* the step that runs, or NULL */
};

/* The tool or side of a line, and what it showed. */
static const char *line_call(const json_t *line, const char **ret_want, GError **error)
{
    const char *key = json_object_get(line, "side") != NULL ? "side" : "tool";
    const char *name = json_want_str(line, key, error);
    *ret_want = name != NULL ? json_want_str(line, "observation", error) : NULL;
    return *ret_want != NULL ? name : NULL;
}

/* A step that was begun again is over: does it show the same? */
static gboolean step_compare(EpisodeReplay *replay, const EpisodeObservation *seen, GError **error)
{
    g_autoptr(json_t) line = g_steal_pointer(&replay->line);
    const char *want = NULL, *name = line_call(line, &want, error);
    return name != NULL &&
           (g_strcmp0(seen->text, want) == 0 ||
            error_set(error, ASSAY_ERROR_CONFLICT, "step %u: %s shows something else",
                      replay->episode->turns, name));
}

static gboolean step_again(EpisodeReplay *replay, json_t *line, GError **error)
{
    g_auto(EpisodeObservation) seen = {0};
    Episode *episode = replay->episode;
    gint64 us = 0;
    const json_t *arguments = json_object_get(line, "arguments");
    const char *want = NULL, *name = line_call(line, &want, error);
    gboolean ok = name != NULL && json_opt_int(line, "us", 0, G_MAXINT64, 0, &us, error);
    if (!ok)
        return FALSE;
    note_again(episode, line);
    episode->replay_us = us;
    replay->line = json_incref(line);
    if (json_object_get(line, "side") != NULL)
        ok = episode_side_start(episode, name, arguments, &seen, error);
    else if (name[0] == '\0')
        episode_bad_action(episode, want, &seen);
    else
        ok = episode_call_start(episode, name, arguments, &seen, error);
    return ok && (episode_running(episode) != NULL || step_compare(replay, &seen, error));
}

/* An end that came from outside comes again; every other has come by itself. */
static gboolean end_again(Episode *episode, const json_t *line, GError **error)
{
    const char *name = json_want_str(line, "end", error);
    if (name == NULL)
        return FALSE;
    for (EpisodeEnd end = 1; end < EPISODE_ENDS && episode->end == EPISODE_OPEN; end++)
        if (g_str_equal(episode_end_rule(end)->name, name) && !episode_end(episode, end, error))
            return FALSE;
    return g_str_equal(episode_end_rule(episode->end)->name, name) ||
           error_set(error, ASSAY_ERROR_CONFLICT, "the end is %s, not %s",
                     episode_end_rule(episode->end)->name, name);
}

static gboolean line_again(EpisodeReplay *replay, const char *text, gsize len, GError **error)
{
    g_autoptr(json_t) line = json_parse(text, len, error);
    if (line == NULL)
        return FALSE;
    return json_object_get(line, "end") != NULL ? end_again(replay->episode, line, error)
                                                : step_again(replay, line, error);
}

EpisodeReplay *episode_replay_new(EpisodeHost *host, const Task *task, const EpisodeOptions *own,
                                  const char *record, gsize len, GError **error)
{
    EpisodeOptions options;
    const char *newline = memchr(record, '\n', len);
    if (newline == NULL || len > RECORD_BYTES_MAX) {
        error_set(error, ASSAY_ERROR_INPUT, "no record of an episode");
        return NULL;
    }
    g_autoptr(json_t) head = json_parse(record, (gsize)(newline - record), error);
    if (head == NULL || !head_read(head, task, &options, error))
        return NULL;
    options.base = own->base;
    options.envp = own->envp;
    Episode *episode = episode_open(host, task, &options, error);
    if (episode == NULL)
        return NULL;
    EpisodeReplay *replay = g_new0(EpisodeReplay, 1);
    *replay = (EpisodeReplay){
        .episode = episode, .record = record, .at = newline + 1, .end = record + len};
    return replay;
}

static gboolean same_bytes(const EpisodeReplay *replay)
{
    const GString *own = replay->episode->record;
    return own->len == (gsize)(replay->at - replay->record) &&
           memcmp(own->str, replay->record, own->len) == 0;
}

EpisodeReplayState episode_replay_next(EpisodeReplay *replay, GError **error)
{
    for (;;) {
        if (replay->line != NULL) {
            g_auto(EpisodeObservation) seen = {0};
            if (!episode_call_finish(replay->episode, &seen, error) ||
                !step_compare(replay, &seen, error))
                return EPISODE_REPLAY_FAILED;
        }
        const char *newline = replay->at < replay->end
                                  ? memchr(replay->at, '\n', (gsize)(replay->end - replay->at))
                                  : NULL;
        if (newline == NULL) /* the end, or a line that was being written when it came */
            break;
        if (!line_again(replay, replay->at, (gsize)(newline - replay->at), error))
            return EPISODE_REPLAY_FAILED;
        replay->at = newline + 1;
        if (replay->line != NULL)
            return EPISODE_REPLAY_WAITS;
    }
    if (same_bytes(replay))
        return EPISODE_REPLAY_DONE;
    error_set(error, ASSAY_ERROR_CONFLICT, "the tree at the end is another");
    return EPISODE_REPLAY_FAILED;
}

Episode *episode_replay_episode(EpisodeReplay *replay)
{
    return replay->episode;
}

void episode_replay_free(EpisodeReplay *replay)
{
    if (replay == NULL)
        return;
    episode_free(replay->episode);
    json_decref(replay->line);
    g_free(replay);
}

Episode *episode_replay_take(EpisodeReplay *replay)
{
    Episode *episode = g_steal_pointer(&replay->episode);
    episode_replay_free(replay);
    return episode;
}

Episode *episode_replay(EpisodeHost *host, const Task *task, const char *record, gsize len,
                        GError **error)
{
    EpisodeReplayState state = EPISODE_REPLAY_FAILED;
    g_autoptr(EpisodeReplay) replay =
        episode_replay_new(host, task, &(EpisodeOptions){0}, record, len, error);
    do
        state = replay != NULL ? episode_replay_next(replay, error) : EPISODE_REPLAY_FAILED;
    while (state == EPISODE_REPLAY_WAITS);
    return state == EPISODE_REPLAY_DONE ? episode_replay_take(g_steal_pointer(&replay)) : NULL;
}

const GString *episode_record(const Episode *episode)
{
    return episode->record;
}
