/*
 * The table of kinds, and what several of them need.
 *
 * 1. An answer that a limit cut is judged no further: it gets 0.
 * 2. What counts as the answer is one piece of it; an answer that gives two is wrong.
 */
#include "env/train_kind.h"

#include "base/error.h"
#include "tasks/calls.h"
#include "tasks/repair.h"

#include <string.h>

const TrainKind *const train_kinds[] = {&kind_repair, &kind_diff,  &kind_locate, &kind_test,
                                        &kind_math,   &kind_logic, NULL};
G_STATIC_ASSERT(G_N_ELEMENTS(train_kinds) <= TRAIN_KINDS_MAX + 1);

const TrainKind *train_kind(const char *name)
{
    for (guint i = 0; train_kinds[i]; i++)
        if (!strcmp(train_kinds[i]->name, name))
            return train_kinds[i];
    return NULL;
}

guint train_kind_number(const TrainKind *kind)
{
    guint i = 0;

    while (train_kinds[i] != kind)
        i++;
    return i;
}

void kind_turn(TurnEpisode *episode, const char *answer)
{
    if (episode->finish == FINISH_LENGTH)
        turn_end(episode, EPISODE_TOKEN_LIMIT, 0);
    else if (episode->finish == FINISH_REPETITION)
        turn_end(episode, EPISODE_REPETITION, 0);
    else if (!answer || strlen(answer) > TRAIN_ANSWER_MAX || !g_utf8_validate(answer, -1, NULL))
        turn_end(episode, EPISODE_SUBMITTED, 0);
    else
        episode->task->kind->judge(episode, answer);
}

char *answer_block(const char *answer)
{
    g_auto(GStrv) lines = g_strsplit(answer, "\n", -1);
    g_autoptr(GString) out = g_string_new(NULL);
    guint fences = 0;

    for (guint i = 0; lines[i]; i++) {
        if (g_str_has_prefix(lines[i], "```"))
            fences++;
        else if (fences == 1)
            g_string_append_printf(out, "%s\n", lines[i]);
    }
    if (fences == 0)
        return g_strdup(answer);
    return fences == 2 ? g_string_free(g_steal_pointer(&out), FALSE) : NULL;
}

/* ---- repositories ---- */

/* The files of a row once its bug is undone. */
static json_t *files_fixed(const Task *task, GError **error)
{
    g_autoptr(json_t) changes = repair_fix(task->json);
    json_t *files = json_deep_copy(task->files);

    if (changes && json_object_update(files, changes) == 0)
        return files;
    json_decref(files);
    error_set(error, ASSAY_ERROR_UNSUPPORTED,
              "it is no repair task: it does not say what is wrong");
    return NULL;
}

/* The sources that the tests call; of a task without tests, the file that is wrong. */
static GStrv shown_paths(const Task *task, GError **error)
{
    const json_t *repair = json_object_get(task->json, "repair");
    const char *wrong = json_string_value(json_object_get(repair, "path"));

    if (!json_object_get(task->json, "calls") && wrong) {
        GStrv paths = g_new0(char *, 2);

        paths[0] = g_strdup(wrong);
        return paths;
    }
    g_autoptr(TaskCalls) calls = task_calls_read(task, error);
    return calls ? g_steal_pointer(&calls->sources) : NULL;
}

gboolean kind_open_sources(TrainTask *made, GError **error)
{
    g_auto(GStrv) paths = NULL;
    g_autoptr(json_t) files = NULL, fixed = NULL;

    if (!made->task->files)
        return error_set(error, ASSAY_ERROR_UNSUPPORTED, "its repository is not in the row");
    if (!(paths = shown_paths(made->task, error)) || !(fixed = files_fixed(made->task, error)))
        return FALSE;
    files = json_deep_copy(made->task->files);
    made->source = source_new(files, (const char *const *)paths, error);
    made->fixed = made->source ? source_new(fixed, (const char *const *)paths, error) : NULL;
    return made->fixed != NULL;
}

void kind_show_sources(const Source *source, gboolean numbered, GString *out)
{
    const char *path = NULL;

    for (guint i = 0; i < source->lines->len; i++) {
        const SourceLine *line = source->lines->pdata[i];
        const char *text = json_string_value(json_object_get(source->files, line->path));

        if (g_strcmp0(path, line->path) == 0)
            continue;
        path = line->path;
        g_string_append_printf(out, "\n%s:\n", path);
        for (guint n = 1; numbered && *text; n++) {
            gsize len = strcspn(text, "\n");

            g_string_append_printf(out, "%u\t%.*s\n", n, (int)len, text);
            text += len + (text[len] == '\n');
        }
        g_string_append(out, text);
    }
}
