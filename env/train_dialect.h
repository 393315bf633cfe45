/*
 * Dialects: how a task is put to a policy, how its turns are read and what it is answered.
 *
 *     const TrainDialect *dialect = train_dialect("tools");
 *
 * One file and one row of the table each.
 */
#pragma once

#include "env/train_demos.h"
#include "env/train_turn.h"

/* A demonstration that is being written: ids, and which of them are learnt. */
typedef struct DemoWriter {
    const Tokenizer *tokenizer;
    GArray *ids;  /* gint32 */
    GArray *mask; /* guint8 */
} DemoWriter;

typedef struct TrainDialect {
    const char *name, *summary;
    guint retries;     /* of an episode that a failure of ours ended */
    guint answer_rows; /* that an answer takes at most; 0: it takes what it needs */
    /* Appends the task's prompt, up to where the policy's turn begins. */
    gboolean (*prompt)(const Tokenizer *tokenizer, const TrainTask *task, GArray *ids,
                       GError **error);
    /* Reads the turn that was sampled; see train_turn.h. */
    void (*turn)(TurnEpisode *episode);
    /* A step that `turn` began is done. Takes the job. NULL: the dialect begins none. */
    void (*step_done)(StepJob *job);
    /* Frees `own`, if there is any; NULL: there never is. No step of the episode is under way. */
    void (*close)(TurnEpisode *episode);
    /* Appends something right to read, without a task; then turns that solve a task, or try to. */
    gboolean (*reading)(DemoWriter *demo, const TrainTask *task, GError **error);
    gboolean (*demo)(DemoWriter *demo, const TrainTask *task, const DemoOptions *options,
                     GRand *rand, GError **error);
    /* All that may be said of a task: to train a vocabulary on. */
    gboolean (*corpus)(const TrainTask *task, guint number, GString *out, GError **error);
} TrainDialect;

extern const TrainDialect dialect_compact, dialect_tools;
extern const TrainDialect *const train_dialects[];   /* ended by NULL */
const TrainDialect *train_dialect(const char *name); /* NULL: there is none */

/* For demonstrations: an action of the policy with its end, and the mask of what was appended. */
gboolean demo_say(DemoWriter *demo, const char *text, gboolean learnt, GError **error);
void demo_mask(DemoWriter *demo, gboolean learnt);
