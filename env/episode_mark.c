/*
 * States of an episode in a box: frozen, gone back to, given to others.
 *
 * Invariants:
 *   1. A mark is a state between two calls: files, counters, and where the record ended.
 *   2. Nothing an episode does later changes its marks.
 *
 * Not here: episodes in memory, which do their steps again at once (episode_record.c).
 */
#include "env/episode_private.h"

#include "base/error.h"

struct EpisodeMark {
    guint turns, bad_in_row;
    gsize record_len;
    BoxSnapshot *files;
    GQueue undos;
};

static void copy_undos(const GQueue *from, GQueue *to)
{
    g_queue_clear_full(to, (GDestroyNotify)(gpointer)episode_undo_free);
    for (GList *link = from->head; link != NULL; link = link->next) {
        const EpisodeUndo *undo = link->data;
        EpisodeUndo *own = g_new0(EpisodeUndo, 1);
        *own = (EpisodeUndo){g_strdup(undo->path),
                             undo->before != NULL ? g_bytes_ref(undo->before) : NULL};
        g_queue_push_tail(to, own);
    }
}

EpisodeMark *episode_mark(Episode *episode, GError **error)
{
    g_assert(episode->tree.box != NULL && episode->running.run == NULL);
    BoxSnapshot *files = box_snapshot(episode->tree.box, error);
    if (files == NULL)
        return NULL;
    EpisodeMark *mark = g_new0(EpisodeMark, 1);
    *mark = (EpisodeMark){.turns = episode->turns,
                          .bad_in_row = episode->bad_in_row,
                          .record_len = episode->record->len,
                          .files = files};
    copy_undos(&episode->undos, &mark->undos);
    return mark;
}

void episode_mark_free(EpisodeMark *mark)
{
    if (mark == NULL)
        return;
    box_snapshot_unref(mark->files);
    g_queue_clear_full(&mark->undos, (GDestroyNotify)(gpointer)episode_undo_free);
    g_free(mark);
}

guint episode_mark_turns(const EpisodeMark *mark)
{
    return mark->turns;
}

gboolean episode_mark_is_now(const EpisodeMark *mark, const Episode *episode)
{
    return mark->record_len == episode->record->len;
}

static void take_counters(const EpisodeMark *mark, Episode *episode)
{
    episode->turns = mark->turns;
    episode->bad_in_row = mark->bad_in_row;
    copy_undos(&mark->undos, &episode->undos);
}

gboolean episode_return(Episode *episode, const EpisodeMark *mark, GError **error)
{
    g_assert(episode->end == EPISODE_OPEN && mark->record_len <= episode->record->len);
    if (!box_rollback(episode->tree.box, mark->files, error))
        return FALSE;
    g_string_truncate(episode->record, mark->record_len);
    take_counters(mark, episode);
    return TRUE;
}

Episode *episode_fork(const Episode *episode, const EpisodeMark *mark, GError **error)
{
    g_autoptr(Episode) child = g_new0(Episode, 1);
    child->host = episode->host;
    child->options = episode->options;
    child->tree.task = episode->tree.task;
    child->record = g_string_new_len(episode->record->str, (gssize)mark->record_len);
    child->replay_us = -1;
    g_queue_init(&child->undos);
    take_counters(mark, child);
    child->tree.box = episode_take_box(child, mark->files, error);
    return child->tree.box != NULL ? g_steal_pointer(&child) : NULL;
}
