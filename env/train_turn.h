/*
 * An episode between sampling and its dialect: who reads what the policy wrote, and what follows.
 *
 * train_rollout.c samples a turn, then calls the dialect's `turn`; that one appends to `ids` what
 * is said to the policy and calls turn_next, or calls turn_end, at once or later, from
 * turn_desk_step. Ids are only ever appended.
 */
#pragma once

#include "env/episode.h"
#include "env/train_steps.h"
#include "env/train_tasks.h"
#include "env/verdict.h"
#include "policy/engine.h"

#define TURN_KINDS_MAX 16u

/* What happened to the episodes of a batch. */
typedef struct RolloutStats {
    guint episodes, turns, invalid, cut; /* turns that said no action; that ran out of tokens */
    guint passed, passed_first;          /* reward 1; by the first turn */
    guint unscorable, repeated;          /* repeated: turns that the repetition stop ended */
    guint lost;                          /* of the unscorable: a server's doing */
    guint retried;                       /* episodes that a failure of ours began again */
    guint calls, calls_failed;           /* of tools; that did not do what they should */
    guint ends[EPISODE_ENDS];
    guint kind_n[TURN_KINDS_MAX]; /* scorable ones, by train_kind_number */
    double kind_reward[TURN_KINDS_MAX];
    double f2p, p2p; /* sums over scorable repairs: the shares of FAIL_TO_PASS and of PASS_TO_PASS
                      * that passed when an episode's files were last tested */
    guint64 tokens;  /* sampled */
    double sample_s; /* in the engine, or on a server */
    double wait_s;   /* for tests, with nothing to sample */
} RolloutStats;

typedef struct TurnEpisode TurnEpisode;

/* What episodes of one round share. */
typedef struct TurnDesk {
    void (*next)(TurnEpisode *episode); /* what turn_next and turn_end do */
    void (*end)(TurnEpisode *episode, EpisodeEnd end, double reward);
    const struct TrainDialect *dialect;
    const Tokenizer *tokenizer;
    VerdictRunner *verdicts;
    Steps *steps; /* NULL: the dialect needs none */
    guint turns_max;
    gint64 tokens_max;               /* of a turn */
    guint text_bytes_max, command_s; /* see EpisodeOptions */
    gint64 context_max; /* prompt and all turns; 0: the dialect stays within bounds by itself */
    RolloutStats *stats;
    GError *error; /* nothing goes on */
} TurnDesk;

struct TurnEpisode {
    TurnDesk *desk;
    const TrainTask *task;
    guint64 seed;
    GArray *ids, *mask, *mu; /* after the prompt; gint32, guint8, float */
    GArray *routes;          /* guint16 [layers, K] of the tokens read, if they are recorded */
    GArray *prompt_routes;   /* the same of the prompt; of a group's first episode */
    guint turn, turn_from;   /* of the turn that was sampled: its number, its first token */
    FinishReason finish;     /* of that turn */
    gboolean was_cut;        /* some turn ended at its limit */
    guint tries;             /* that failures of ours ended */
    gint64 sampled;          /* tokens */
    gpointer own;            /* the dialect's */
    double f2p, p2p;         /* see RolloutStats; 0 and 1 before the first test */
    EpisodeEnd end;
    double reward; /* NAN: none */
};

/* ---- for dialects ---- */

/* The ids say what the policy reads next: another turn is sampled. */
void turn_next(TurnEpisode *episode);
/* The last word. `reward` counts where the rule of `end` says verdict or zero; NAN: there is none,
 * which makes any ending EPISODE_INFRASTRUCTURE. */
void turn_end(TurnEpisode *episode, EpisodeEnd end, double reward);
/* Tests were run on the files as the episode has them. */
void turn_judged(TurnEpisode *episode, const Verdict *verdict);
/* What the policy wrote, the mark of the turn's end left out; NULL: it is no text. */
char *turn_text(const TurnEpisode *episode);
