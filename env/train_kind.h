/*
 * Kinds of tasks: what is asked, what a right answer is, who judges.
 *
 * A row says its kind ("kind"; without one it is "repair"). Repair is done turn by turn, in the
 * dialect's own way; every other kind is a question, answered once in words, in any dialect. One
 * file and one row of the table each.
 */
#pragma once

#include "env/train_turn.h"

#define TRAIN_KINDS_MAX  TURN_KINDS_MAX
#define TRAIN_ANSWER_MAX (256u << 10) /* bytes; a longer one is wrong */

typedef struct TrainKind {
    const char *name, *answers, *rewarded; /* for people */
    gboolean has_turns;
    const char *system; /* of a chat */
    /* Reads what is the kind's own of a row whose task is there, and keeps `fix`. */
    gboolean (*open)(TrainTask *task, GError **error);
    char *(*question)(const TrainTask *task);
    /* Calls turn_end, at once or from the verdicts. NULL: the dialect reads the turns. */
    void (*judge)(TurnEpisode *episode, const char *answer);
} TrainKind;

extern const TrainKind kind_repair, kind_diff, kind_locate, kind_test, kind_math, kind_logic;
extern const TrainKind *const train_kinds[];   /* ended by NULL */
const TrainKind *train_kind(const char *name); /* NULL: there is none */
guint train_kind_number(const TrainKind *kind);

/* The turn of a kind without turns: `answer` is what was written, NULL if that is no text. */
void kind_turn(TurnEpisode *episode, const char *answer);

/* What counts of an answer: what is between its fences (lines that begin with ```), if it has a
 * pair of them, else all of it. NULL: there are other fences. */
char *answer_block(const char *answer);

/* ---- for kinds about a repository with a mistake ---- */

/* Reads the sources as they are and as they should be. */
gboolean kind_open_sources(TrainTask *task, GError **error);
/* Appends the files that tests call, each after its name; their lines numbered if asked for. */
void kind_show_sources(const Source *source, gboolean numbered, GString *out);
