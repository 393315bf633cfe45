/*
 * An episode in a host.
 *
 * Invariants:
 *   1. Requests for one episode are done one after another, in the order they came.
 *   2. What a step did is on the disk before it is answered; a step that is in the record is
 *      answered from it, and not done again.
 *   3. An episode whose load failed, or that our machine lost, answers with that until it is
 *      dropped.
 *
 * Not here: tools and records (episode.h), files (episode_file.c), what a checkout needs
 * (episode_stand.c), the loop (episode_server.c).
 */
#include "env/episode_guest.h"

#include "base/error.h"
#include "env/episode_file.h"

#include <string.h>

struct EpisodeGuest {
    EpisodeServer *server;
    char *id;
    EpisodeStand *stand;
    Episode *episode;      /* NULL: not loaded yet */
    EpisodeReplay *replay; /* while it is loaded, or rolled back */
    GBytes *record;        /* what is replayed */
    gsize saved;           /* bytes of the episode's record that are on the disk */
    guint marks_max;       /* how many are kept after steps */
    GPtrArray *marks;      /* EpisodeMark, of its last states in a box */
    GError *failed;        /* why it is not here */
    gboolean is_lost;      /* that cannot be mended by loading it again */
    GQueue waiting;        /* json_t messages */
    json_t *message;       /* in work */
    EpisodeObservation seen;
};

void episode_guest_free(gpointer data)
{
    EpisodeGuest *guest = data;
    g_ptr_array_remove(guest->server->busy, guest);
    episode_replay_free(guest->replay);
    g_ptr_array_unref(guest->marks);
    episode_free(guest->episode);
    episode_stand_unref(guest->stand);
    if (guest->record != NULL)
        g_bytes_unref(guest->record);
    g_clear_error(&guest->failed);
    g_queue_clear_full(&guest->waiting, (GDestroyNotify)json_decref);
    json_decref(guest->message);
    episode_observation_clear(&guest->seen);
    g_free(guest->id);
    g_free(guest);
}

static EpisodeGuest *guest_of(EpisodeServer *server, const char *id)
{
    EpisodeGuest *guest = g_hash_table_lookup(server->guests, id);
    if (guest != NULL)
        return guest;
    guest = g_new0(EpisodeGuest, 1);
    guest->server = server;
    guest->id = g_strdup(id);
    guest->marks = g_ptr_array_new_with_free_func((GDestroyNotify)episode_mark_free);
    g_queue_init(&guest->waiting);
    g_hash_table_insert(server->guests, guest->id, guest);
    return guest;
}

/* ---- answers ---- */

static void add_base64(json_t *object, const char *key, const void *data, gsize len)
{
    g_autofree char *text = g_base64_encode(len > 0 ? data : (const void *)"", len);
    json_object_set_new(object, key, json_string(text));
}

/* What every answer says of the episode; of one that is over, what it leaves to be graded. */
static json_t *answer_new(EpisodeGuest *guest)
{
    Episode *episode = guest->episode;
    json_t *answer = json_pack("{s:O}", "seq", json_object_get(guest->message, "seq"));
    if (episode == NULL)
        return answer;
    EpisodeEnd end = episode_ended(episode);
    json_object_set_new(answer, "steps", json_integer(episode_turns(episode)));
    json_object_set_new(answer, "end", json_string(episode_end_rule(end)->name));
    const GString *diff = episode_end_rule(end)->reward == EPISODE_REWARD_VERDICT
                              ? episode_diff(episode, NULL)
                              : NULL;
    if (diff != NULL)
        add_base64(answer, "diff", diff->str, diff->len);
    return answer;
}

/* Takes `data`. */
static void answer(EpisodeGuest *guest, json_t *data)
{
    json_t *all = answer_new(guest);
    json_object_set_new(all, "data", data);
    episode_server_send(guest->server, all);
    g_clear_pointer(&guest->message, json_decref);
}

/* The request failed; the episode is as it was, unless it is lost. */
static void answer_error(EpisodeGuest *guest, const GError *why)
{
    json_t *all = answer_new(guest);
    json_object_set_new(all, "error",
                        json_pack("{s:i, s:s, s:b, s:b}", "code",
                                  why->domain == ASSAY_ERROR ? why->code : ASSAY_ERROR_SYSTEM,
                                  "detail", why->message, "gone", guest->failed != NULL, "lost",
                                  guest->is_lost));
    episode_server_send(guest->server, all);
    g_clear_pointer(&guest->message, json_decref);
}

/* ---- the record ---- */

/* The episode is not here, and every answer says why, until it is dropped. */
static void guest_fail(EpisodeGuest *guest, const GError *why, gboolean is_lost)
{
    g_ptr_array_set_size(guest->marks, 0);
    g_clear_pointer(&guest->episode, episode_free);
    if (guest->failed == NULL)
        guest->failed = g_error_copy(why);
    guest->is_lost = is_lost;
}

/* Puts what is new in the record on the disk. On failure the episode is forgotten: the record is
 * the truth, and who loads it again goes on from there. */
static gboolean save(EpisodeGuest *guest, GError **error)
{
    g_autoptr(GError) local = NULL;
    const GString *record = episode_record(guest->episode);
    gboolean is_open = episode_ended(guest->episode) == EPISODE_OPEN;
    if (is_open && record->len > EPISODE_FILE_MAX - EPISODE_FILE_RESERVE)
        error_set(&local, ASSAY_ERROR_LIMIT, "the record is full: the episode can only end");
    else if (episode_file_append(guest->server->dir_fd, guest->id, guest->saved,
                                 record->str + guest->saved, record->len - guest->saved, &local)) {
        guest->saved = record->len;
        return TRUE;
    }
    guest_fail(guest, local, FALSE);
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
}

/* ---- marks ---- */

/* Keeps the state after a step; after the answer, while the policy thinks. Where that cannot be
 * done, steps are done again instead. */
static void mark_keep(EpisodeGuest *guest)
{
    Episode *episode = guest->episode;
    if (episode == NULL || !episode_is_boxed(episode) || episode_ended(episode) != EPISODE_OPEN)
        return;
    EpisodeMark *mark = episode_mark(episode, NULL);
    if (mark == NULL)
        return;
    if (guest->marks->len >= MAX(guest->marks_max, 1))
        g_ptr_array_remove_index(guest->marks, 0);
    g_ptr_array_add(guest->marks, mark);
}

/* That of the step; -1: the state now. NULL: there is none. */
static const EpisodeMark *mark_find(EpisodeGuest *guest, json_int_t step)
{
    for (guint i = guest->marks->len; i > 0; i--) {
        const EpisodeMark *mark = guest->marks->pdata[i - 1];
        if (step < 0 ? episode_mark_is_now(mark, guest->episode)
                     : episode_mark_turns(mark) == (guint)step)
            return mark;
    }
    if (step >= 0)
        return NULL;
    mark_keep(guest);
    const EpisodeMark *last =
        guest->marks->len > 0 ? guest->marks->pdata[guest->marks->len - 1] : NULL;
    return last != NULL && episode_mark_is_now(last, guest->episode) ? last : NULL;
}

/* ---- steps ---- */

static json_t *step_json(guint step, const json_t *line)
{
    return json_pack("{s:i, s:O, s:O}", "step", (int)step, "text",
                     json_object_get(line, "observation"), "error", json_object_get(line, "error"));
}

/* A step that the record has: the same answer, if it is the same request. */
static json_t *step_recall(const char *text, gsize len, const json_t *message, GError **error)
{
    guint step = (guint)json_integer_value(json_object_get(message, "step"));
    g_autoptr(json_t) line = episode_file_step(text, len, step);
    json_t *asked = json_object_get(message, "request_id");
    json_t *had = json_object_get(line, "request_id");
    if (line == NULL) {
        error_set(error, ASSAY_ERROR_CONFLICT, "step %u: there is no such step", step);
        return NULL;
    }
    if (asked != NULL && had != NULL && !json_equal(asked, had)) {
        error_set(error, ASSAY_ERROR_CONFLICT, "step %u: was done for request_id %s", step,
                  json_string_value(had));
        return NULL;
    }
    return step_json(step, line);
}

/* The command of a step or side is over, or there was none. */
static void call_over(EpisodeGuest *guest, gboolean ok, GError *why)
{
    g_autoptr(GError) local = why;
    gboolean is_side =
        g_str_equal(json_string_value(json_object_get(guest->message, "op")), "side");
    g_auto(EpisodeObservation) seen = guest->seen;
    guest->seen = (EpisodeObservation){0};
    gboolean is_again = g_error_matches(local, ASSAY_ERROR, ASSAY_ERROR_BUSY);
    if ((ok || !is_again) && !save(guest, ok ? &local : NULL))
        ok = FALSE;
    if (!ok) {
        answer_error(guest, local);
        return;
    }
    json_t *data = json_pack("{s:s, s:b}", "text", seen.text, "error", seen.is_error);
    if (!is_side)
        json_object_set_new(data, "step", json_integer(episode_turns(guest->episode)));
    answer(guest, data);
    if (!is_side && guest->marks_max > 0)
        mark_keep(guest);
}

static void watch(EpisodeGuest *guest)
{
    g_ptr_array_add(guest->server->busy, guest);
}

static void do_step(EpisodeGuest *guest, const json_t *message)
{
    GError *error = NULL;
    Episode *episode = guest->episode;
    const GString *record = episode_record(episode);
    json_int_t step = json_integer_value(json_object_get(message, "step"));
    json_t *request_id = json_object_get(message, "request_id");
    json_t *data = NULL;
    if (step <= episode_turns(episode))
        data = step_recall(record->str, record->len, message, &error);
    else if (step > episode_turns(episode) + 1 || episode_ended(episode) != EPISODE_OPEN)
        error_set(&error, ASSAY_ERROR_CONFLICT, "step %d: the next one is %u", (int)step,
                  episode_turns(episode) + 1);
    if (data != NULL || error != NULL) {
        if (data != NULL)
            answer(guest, data);
        else
            answer_error(guest, error);
        g_clear_error(&error);
        return;
    }
    episode_note(episode, "request_id", json_incref(request_id));
    gboolean ok = episode_call_start(episode, json_string_value(json_object_get(message, "tool")),
                                     json_object_get(message, "arguments"), &guest->seen, &error);
    if (ok && episode_running(episode) != NULL)
        watch(guest);
    else
        call_over(guest, ok, error);
}

static void do_side(EpisodeGuest *guest, const json_t *message)
{
    GError *error = NULL;
    gboolean ok =
        episode_side_start(guest->episode, json_string_value(json_object_get(message, "name")),
                           json_object_get(message, "arguments"), &guest->seen, &error);
    if (ok && episode_running(guest->episode) != NULL)
        watch(guest);
    else
        call_over(guest, ok, error);
}

/* ---- the rest of an open episode ---- */

static void answer_either(EpisodeGuest *guest, json_t *data, const GError *error)
{
    if (data != NULL)
        answer(guest, data);
    else
        answer_error(guest, error);
}

static void do_read(EpisodeGuest *guest, const json_t *message)
{
    g_autoptr(GError) error = NULL;
    const char *path = json_string_value(json_object_get(message, "path"));
    g_autoptr(GBytes) bytes = episode_file(guest->episode, path, &error);
    json_t *data = bytes != NULL ? json_object() : NULL;
    if (bytes != NULL)
        add_base64(data, "base64", g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
    answer_either(guest, data, error);
}

static void do_diff(EpisodeGuest *guest, const json_t *message)
{
    (void)message;
    g_autoptr(GError) error = NULL;
    const GString *diff = episode_diff(guest->episode, &error);
    json_t *data = diff != NULL ? json_object() : NULL;
    if (diff != NULL)
        add_base64(data, "base64", diff->str, diff->len);
    answer_either(guest, data, error);
}

static void do_show(EpisodeGuest *guest, const json_t *message)
{
    (void)message;
    answer(guest, json_object());
}

static void do_end(EpisodeGuest *guest, const json_t *message)
{
    g_autoptr(GError) error = NULL;
    const char *name = json_string_value(json_object_get(message, "end"));
    for (EpisodeEnd end = 1; end < EPISODE_ENDS; end++)
        if (g_strcmp0(episode_end_rule(end)->name, name) == 0)
            episode_end(guest->episode, end, NULL);
    gboolean ok = save(guest, &error);
    answer_either(guest, ok ? json_object() : NULL, error);
}

/* ---- loading, rolling back ---- */

/* The replay stops: at a command that runs, at its end, or because it cannot go on. */
static void replay_go(EpisodeGuest *guest)
{
    g_autoptr(GError) error = NULL;
    gboolean is_load = guest->episode == NULL;
    EpisodeReplayState state = episode_replay_next(guest->replay, &error);
    if (state == EPISODE_REPLAY_WAITS) {
        watch(guest);
        return;
    }
    gboolean ok = state == EPISODE_REPLAY_DONE;
    g_autoptr(EpisodeReplay) replay = g_steal_pointer(&guest->replay);
    const GString *record = episode_record(episode_replay_episode(replay));
    if (ok && !is_load)
        ok = episode_file_replace(guest->server->dir_fd, guest->id, record->str, record->len,
                                  &error);
    if (ok) {
        g_ptr_array_set_size(guest->marks, 0);
        episode_free(guest->episode);
        guest->saved = record->len;
        guest->episode = episode_replay_take(g_steal_pointer(&replay));
    } else if (is_load) {
        guest_fail(guest, error, !g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_BUSY));
    }
    g_clear_pointer(&guest->record, g_bytes_unref);
    answer_either(guest, ok ? json_object() : NULL, error);
}

/* Begins a replay of the record's first bytes. */
static gboolean replay_start(EpisodeGuest *guest, GBytes *record, gsize len, GError **error)
{
    EpisodeOptions own = {0};
    episode_stand_fill(guest->stand, &own);
    guest->record = g_bytes_new_from_bytes(record, 0, len);
    guest->replay = episode_replay_new(guest->server->host, episode_stand_task(guest->stand), &own,
                                       g_bytes_get_data(guest->record, NULL), len, error);
    if (guest->replay != NULL)
        return TRUE;
    g_clear_pointer(&guest->record, g_bytes_unref);
    return FALSE;
}

/* Of an episode that has no record yet. */
static gboolean load_new(EpisodeGuest *guest, GError **error)
{
    static const char *const names[] = {"turns", "bad", "text_bytes", "command_s"};
    EpisodeOptions options = {0};
    guint *const fields[] = {&options.turns_max, &options.bad_max, &options.text_bytes_max,
                             &options.command_s};
    const json_t *limits = json_object_get(guest->message, "limits");
    const char *seed = json_want_str(guest->message, "seed", error);
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++)
        *fields[i] = (guint)json_integer_value(json_object_get(limits, names[i]));
    if (seed == NULL || !g_ascii_string_to_unsigned(seed, 10, 0, G_MAXUINT64, &options.seed, error))
        return FALSE;
    episode_stand_fill(guest->stand, &options);
    guest->episode =
        episode_open(guest->server->host, episode_stand_task(guest->stand), &options, error);
    return guest->episode != NULL && save(guest, error);
}

/* What the episode stands on is there: from its record, or as new. */
static void load_go(EpisodeGuest *guest)
{
    g_autoptr(GError) error = NULL;
    if (episode_stand_state(guest->stand) == EPISODE_STAND_FAILED) {
        error_set(&error, ASSAY_ERROR_SYSTEM, "prepare %s: %s",
                  episode_stand_task(guest->stand)->instance_id,
                  episode_stand_error(guest->stand)->message);
        guest_fail(guest, error, FALSE);
        answer_error(guest, error);
        return;
    }
    g_autoptr(GBytes) record = episode_file_read(guest->server->dir_fd, guest->id, &error);
    gboolean is_new = record != NULL ? g_bytes_get_size(record) == 0
                                     : g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
    if (is_new)
        g_clear_error(&error);
    if (!is_new && record != NULL &&
        replay_start(guest, record, g_bytes_get_size(record), &error)) {
        replay_go(guest);
        return;
    }
    if (is_new && load_new(guest, &error)) {
        answer(guest, json_object());
        return;
    }
    guest_fail(guest, error, g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_INPUT));
    answer_error(guest, error);
}

static void do_load(EpisodeGuest *guest, const json_t *message)
{
    g_autoptr(GError) error = NULL;
    const char *key = json_string_value(json_object_get(message, "task_key"));
    if (guest->episode != NULL) { /* it was forked here */
        answer(guest, json_object());
        return;
    }
    const json_t *limits = json_object_get(message, "limits");
    guest->marks_max = (guint)json_integer_value(json_object_get(limits, "marks"));
    guest->stand =
        episode_stand_get(guest->server->stands, key, json_object_get(message, "task"), &error);
    if (guest->stand == NULL) {
        guest_fail(guest, error, TRUE);
        answer_error(guest, error);
    } else if (episode_stand_state(guest->stand) == EPISODE_STAND_MAKING) {
        watch(guest);
    } else {
        load_go(guest);
    }
}

/* To a mark: at once. Later marks go. */
static void return_to(EpisodeGuest *guest, const EpisodeMark *mark)
{
    g_autoptr(GError) error = NULL;
    const GString *record = episode_record(guest->episode);
    gboolean ok =
        episode_return(guest->episode, mark, &error) &&
        episode_file_replace(guest->server->dir_fd, guest->id, record->str, record->len, &error);
    if (ok) {
        guest->saved = record->len;
        while (guest->marks->pdata[guest->marks->len - 1] != mark)
            g_ptr_array_remove_index(guest->marks, guest->marks->len - 1);
    } else {
        guest_fail(guest, error, FALSE);
    }
    answer_either(guest, ok ? json_object() : NULL, error);
}

/* Without a mark the new state is made beside the old one, which stays when that fails. */
static void do_rollback(EpisodeGuest *guest, const json_t *message)
{
    g_autoptr(GError) error = NULL;
    const GString *now = episode_record(guest->episode);
    guint step = (guint)json_integer_value(json_object_get(message, "to_step"));
    const EpisodeMark *mark = mark_find(guest, step);
    if (mark != NULL) {
        return_to(guest, mark);
        return;
    }
    gssize len = episode_file_prefix(now->str, now->len, step);
    g_autoptr(GBytes) record = g_bytes_new(now->str, now->len);
    if (len < 0)
        error_set(&error, ASSAY_ERROR_CONFLICT, "to_step: %u: there are %u steps", step,
                  episode_turns(guest->episode));
    else if (replay_start(guest, record, (gsize)len, &error)) {
        replay_go(guest);
        return;
    }
    answer_error(guest, error);
}

/* ---- from the record alone ---- */

/* The children of an episode in a box, in boxes of their own; none where its state at that step is
 * not kept, and steps will be done again. NULL: no box is free, or our machine failed. */
static GPtrArray *fork_boxes(EpisodeGuest *guest, json_int_t step, gsize count, GError **error)
{
    g_autoptr(GPtrArray) forked =
        g_ptr_array_new_with_free_func((GDestroyNotify)(gpointer)episode_free);
    Episode *episode = guest->episode;
    const EpisodeMark *mark =
        episode != NULL && episode_is_boxed(episode) ? mark_find(guest, step) : NULL;
    for (gsize i = 0; i < count && mark != NULL; i++) {
        Episode *child = episode_fork(episode, mark, error);
        if (child == NULL)
            return NULL;
        g_ptr_array_add(forked, child);
    }
    return g_steal_pointer(&forked);
}

/* A child that is here before anybody asks for it. */
static void guest_adopt(EpisodeGuest *parent, const char *id, Episode *episode)
{
    EpisodeGuest *child = guest_of(parent->server, id);
    child->stand = episode_stand_ref(parent->stand);
    child->marks_max = parent->marks_max;
    child->episode = episode;
    child->saved = episode_record(episode)->len;
}

static json_int_t step_of(const json_t *at)
{
    return json_is_integer(at) ? json_integer_value(at) : -1;
}

/* Children begin with the parent's first steps. */
static json_t *fork_files(EpisodeGuest *guest, const json_t *message, GError **error)
{
    int dir_fd = guest->server->dir_fd;
    const json_t *children = json_object_get(message, "children");
    const json_t *at = json_object_get(message, "at_step");
    g_autoptr(GBytes) record = episode_file_read(dir_fd, guest->id, error);
    if (record != NULL && !json_is_integer(at) && guest->episode == NULL)
        error_set(error, ASSAY_ERROR_CONFLICT, "at_step: the episode is not open");
    if (record == NULL || (!json_is_integer(at) && guest->episode == NULL))
        return NULL;
    const char *text = g_bytes_get_data(record, NULL);
    gssize len = (gssize)g_bytes_get_size(record);
    guint step = (guint)json_integer_value(at);
    if (json_is_integer(at) && (len = episode_file_prefix(text, (gsize)len, step)) < 0) {
        error_set(error, ASSAY_ERROR_CONFLICT, "at_step: %u: there is no such step", step);
        return NULL;
    }
    g_autoptr(GPtrArray) forked = fork_boxes(guest, step_of(at), json_array_size(children), error);
    if (forked == NULL)
        return NULL;
    for (gsize i = 0; i < json_array_size(children); i++)
        if (!episode_file_replace(dir_fd, json_string_value(json_array_get(children, i)), text,
                                  (gsize)len, error))
            return NULL;
    for (guint i = 0; i < forked->len; i++)
        guest_adopt(guest, json_string_value(json_array_get(children, i)),
                    g_steal_pointer(&forked->pdata[i]));
    json_int_t steps =
        json_is_integer(at) ? json_integer_value(at) : (json_int_t)episode_turns(guest->episode);
    return json_pack("{s:I, s:b}", "at_step", steps, "here", forked->len > 0);
}

static void do_fork(EpisodeGuest *guest, const json_t *message)
{
    g_autoptr(GError) error = NULL;
    json_t *data = fork_files(guest, message, &error);
    answer_either(guest, data, error);
}

static void do_recall(EpisodeGuest *guest, const json_t *message)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GBytes) record = episode_file_read(guest->server->dir_fd, guest->id, &error);
    json_t *data = record != NULL ? step_recall(g_bytes_get_data(record, NULL),
                                                g_bytes_get_size(record), message, &error)
                                  : NULL;
    answer_either(guest, data, error);
}

/* ---- requests ---- */

static const struct {
    const char *name;
    void (*fn)(EpisodeGuest *guest, const json_t *message);
    gboolean by_record; /* the episode need not be here */
} operations[] = {
    {"load", do_load, TRUE},     {"step", do_step, FALSE},         {"side", do_side, FALSE},
    {"read", do_read, FALSE},    {"diff", do_diff, FALSE},         {"show", do_show, FALSE},
    {"end", do_end, FALSE},      {"rollback", do_rollback, FALSE}, {"fork", do_fork, TRUE},
    {"recall", do_recall, TRUE},
};

static void guest_do(EpisodeGuest *guest)
{
    const char *op = json_string_value(json_object_get(guest->message, "op"));
    g_autoptr(json_t) message = json_incref(guest->message);
    g_autoptr(GError) error = NULL;
    for (gsize i = 0; i < G_N_ELEMENTS(operations); i++) {
        if (g_strcmp0(operations[i].name, op) != 0)
            continue;
        if (guest->failed != NULL && !operations[i].by_record)
            answer_error(guest, guest->failed);
        else if (guest->episode == NULL && !operations[i].by_record)
            break;
        else
            operations[i].fn(guest, message);
        return;
    }
    error_set(&error, ASSAY_ERROR_INPUT, "op %s: unknown, or the episode is not loaded", op);
    answer_error(guest, error);
}

/* Does what waits, until something must be waited for. Who was here only for its record leaves. */
static void guest_go_on(EpisodeGuest *guest)
{
    while (guest->message == NULL && (guest->message = g_queue_pop_head(&guest->waiting)) != NULL)
        guest_do(guest);
    if (guest->message == NULL && guest->stand == NULL && guest->failed == NULL)
        g_hash_table_remove(guest->server->guests, guest->id);
}

static gboolean is_abort(const json_t *message)
{
    const char *abort = episode_end_rule(EPISODE_ABORTED)->name;
    return g_strcmp0(json_string_value(json_object_get(message, "end")), abort) == 0;
}

/* Nobody wants to know what a running command comes to; those that wait before the end stay. */
static void cut_short(EpisodeGuest *guest)
{
    BoxRun *run = guest->episode != NULL ? episode_running(guest->episode) : NULL;
    if (run != NULL)
        box_run_cancel(run);
}

BoxRun *episode_guest_running(const EpisodeGuest *guest)
{
    Episode *episode =
        guest->replay != NULL ? episode_replay_episode(guest->replay) : guest->episode;
    return episode != NULL ? episode_running(episode) : NULL;
}

void episode_guest_ask(EpisodeServer *server, const char *id, json_t *message)
{
    EpisodeGuest *guest = guest_of(server, id);
    if (is_abort(message))
        cut_short(guest);
    g_queue_push_tail(&guest->waiting, message);
    guest_go_on(guest);
}

void episode_guest_wake(EpisodeGuest *guest)
{
    GError *error = NULL;
    BoxRun *run = episode_guest_running(guest);
    if (run == NULL && episode_stand_state(guest->stand) == EPISODE_STAND_MAKING)
        return;
    if (run != NULL && box_run_step(run, NULL) && !box_run_is_done(run))
        return;
    g_ptr_array_remove(guest->server->busy, guest);
    if (run == NULL) {
        load_go(guest);
    } else if (guest->replay != NULL) {
        replay_go(guest);
    } else {
        gboolean ok = episode_call_finish(guest->episode, &guest->seen, &error);
        call_over(guest, ok, error);
    }
    guest_go_on(guest);
}
