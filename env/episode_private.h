/*
 * What an open episode is: shared by episode.c, episode_tools.c and episode_record.c.
 */
#pragma once

#include "env/episode.h"
#include "env/episode_tree.h"
#include "sandbox/pool.h"

struct EpisodeHost {
    BoxPool *pool;
    EpisodeHostOptions options;
};

/* What a file was before an edit, for undo. */
typedef struct EpisodeUndo {
    char *path;
    GBytes *before; /* NULL: it was not there */
} EpisodeUndo;

typedef struct EpisodeTool EpisodeTool;

/* A call that has begun, and the command it waits for. */
typedef struct EpisodeRunning {
    const EpisodeTool *tool;
    json_t *arguments;
    gint64 started_us;
    BoxRun *run; /* NULL: none */
    BoxCommand command;
    GStrv argv;
    char *cwd;
    gint64 seconds;
} EpisodeRunning;

struct Episode {
    EpisodeHost *host;
    EpisodeOptions options; /* defaults filled in */
    EpisodeTree tree;
    EpisodeEnd end;
    guint turns, bad_in_row;
    GQueue undos;    /* EpisodeUndo, the last first */
    GString *record; /* JSON lines */
    json_t *noted;   /* fields of the next step, or NULL */
    json_t *changes; /* at the end, or asked for; NULL: to be read, or there is a base */
    GString *diff;   /* likewise; of an episode with a base always read with the changes */
    EpisodeRunning running;
    gint64 replay_us; /* >= 0: the next step takes so long, for the record */
};

/* ---- tools ---- */

/* FALSE: SYSTEM and UNSUPPORTED are our machine's failure, BUSY is a call to be made again, the
 * rest is the policy's and is shown to it. */
typedef gboolean (*EpisodeToolFn)(Episode *episode, const json_t *arguments, GString *out,
                                  GError **error);

struct EpisodeTool {
    const char *name;
    const char *aliases[8];
    EpisodeToolFn fn; /* may leave a command running */
    const char *description;
    const char *parameters; /* JSON schema; NULL: not for policies */
    /* What is shown of a command that `fn` started. */
    void (*show)(const Episode *episode, const BoxResult *result, GString *out);
};

/* By name or alias; NULL: there is none. */
const EpisodeTool *episode_tool_find(const char *name);
/* Of those beside the policy. */
const EpisodeTool *episode_side_find(const char *name);
/* Starts what `episode->running` describes. */
gboolean episode_command_start(Episode *episode, GError **error);
/* Ends it and forgets the call. */
void episode_running_clear(Episode *episode);
/* Their names, for a policy that asked for another. */
char *episode_tool_names(void);

void episode_undo_free(EpisodeUndo *undo);

/* Moves the tree into a box, if it is in none. */
gboolean episode_enter_box(Episode *episode, GError **error);

/* NULL with BUSY: none is free. `from` NULL: as new. */
Box *episode_take_box(const Episode *episode, const BoxSnapshot *from, GError **error);

/* ---- the record ---- */

void episode_record_head(Episode *episode);
/* `tool` NULL: the policy wrote no call. */
void episode_record_step(Episode *episode, const EpisodeTool *tool, const json_t *arguments,
                         const EpisodeObservation *seen, gint64 us);
void episode_record_end(Episode *episode);
