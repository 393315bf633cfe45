/*
 * The record of an episode as JSON lines, and doing it again.
 *
 *     {"episode": 1, "task", "digest", "seed": "7", "limits": {...}}
 *     {"step": 1, "tool": "edit", "arguments": {...}, "observation", "error": false, "us": 41,
 *      "token_ids"?, "logprobs"?, "weight_version"?}
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
    json_decref(episode->noted);
    episode->noted = json_pack("{s:o}", "token_ids", ids);
    if (tokens->logprobs != NULL)
        json_object_set(episode->noted, "logprobs", logprobs);
    if (tokens->weight_version != NULL)
        json_object_set_new(episode->noted, "weight_version", json_string(tokens->weight_version));
    json_decref(logprobs);
}

void episode_record_step(Episode *episode, const char *tool, const json_t *arguments,
                         const EpisodeObservation *seen, gint64 us)
{
    json_t *line =
        json_pack("{s:i, s:s, s:o, s:s, s:b, s:I}", "step", (int)episode->turns, "tool", tool,
                  "arguments", arguments != NULL ? json_deep_copy(arguments) : json_null(),
                  "observation", seen->text, "error", seen->is_error, "us", (json_int_t)us);
    if (episode->noted != NULL)
        json_object_update(line, episode->noted);
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
    static const char *const keys[] = {"token_ids", "logprobs", "weight_version"};
    for (gsize i = 0; i < G_N_ELEMENTS(keys); i++) {
        json_t *value = json_object_get(line, keys[i]);
        if (value == NULL)
            continue;
        if (episode->noted == NULL)
            episode->noted = json_object();
        json_object_set(episode->noted, keys[i], value);
    }
}

static gboolean step_again(Episode *episode, const json_t *line, GError **error)
{
    g_auto(EpisodeObservation) seen = {0};
    gint64 us = 0;
    const char *tool = json_want_str(line, "tool", error);
    const char *want = tool != NULL ? json_want_str(line, "observation", error) : NULL;
    if (want == NULL || !json_opt_int(line, "us", 0, G_MAXINT64, 0, &us, error))
        return FALSE;
    note_again(episode, line);
    episode->replay_us = us;
    if (tool[0] == '\0')
        episode_bad_action(episode, want, &seen);
    else if (!episode_call(episode, tool, json_object_get(line, "arguments"), &seen, error))
        return FALSE;
    return g_str_equal(seen.text, want) ||
           error_set(error, ASSAY_ERROR_CONFLICT, "step %u: %s shows something else",
                     episode->turns, tool);
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

static gboolean line_again(Episode *episode, const char *text, gsize len, GError **error)
{
    g_autoptr(json_t) line = json_parse(text, len, error);
    if (line == NULL)
        return FALSE;
    return json_object_get(line, "end") != NULL ? end_again(episode, line, error)
                                                : step_again(episode, line, error);
}

Episode *episode_replay(EpisodeHost *host, const Task *task, const char *record, gsize len,
                        GError **error)
{
    EpisodeOptions options;
    const char *at = record, *end = record + len;
    const char *newline = memchr(at, '\n', len);
    if (newline == NULL || len > RECORD_BYTES_MAX) {
        error_set(error, ASSAY_ERROR_INPUT, "no record of an episode");
        return NULL;
    }
    g_autoptr(json_t) head = json_parse(at, (gsize)(newline - at), error);
    if (head == NULL || !head_read(head, task, &options, error))
        return NULL;
    g_autoptr(Episode) episode = episode_open(host, task, &options, error);
    for (at = newline + 1; episode != NULL && at < end; at = newline + 1) {
        newline = memchr(at, '\n', (gsize)(end - at));
        if (newline == NULL) /* a line that was being written when the end came */
            break;
        if (!line_again(episode, at, (gsize)(newline - at), error))
            return NULL;
    }
    if (episode != NULL && (episode->record->len != (gsize)(at - record) ||
                            memcmp(episode->record->str, record, episode->record->len) != 0)) {
        error_set(error, ASSAY_ERROR_CONFLICT, "the tree at the end is another");
        return NULL;
    }
    return g_steal_pointer(&episode);
}

const GString *episode_record(const Episode *episode)
{
    return episode->record;
}
