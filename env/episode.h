/*
 * Episodes: one attempt at one task by calls of tools, with a record of every step.
 *
 *     g_autoptr(EpisodeHost) host = episode_host_new(&(EpisodeHostOptions){.slot_first = 100});
 *     g_autoptr(Episode) episode = episode_open(host, task, &(EpisodeOptions){.seed = 7}, error);
 *     g_auto(EpisodeObservation) seen = {0};
 *     episode_call(episode, "edit", arguments, &seen, error);      seen.text is for the policy
 *     if (seen.end != EPISODE_OPEN) ...
 *     verdict_ask(runner, task, episode_changes(episode), ...);    the reward, env/verdict.h
 *
 * The tree is in memory while only `edit` and `search` are used; the first `bash` takes a box and
 * writes the tree into it, and from then on the box is the truth. So an open episode costs a few
 * hundred bytes, and thousands can be open.
 *
 * What the policy does wrong is an observation. FALSE with an error means that our machine failed:
 * the episode has then ended as EPISODE_INFRASTRUCTURE and has no reward. The one exception is
 * ASSAY_ERROR_BUSY, no box is free: nothing has happened, the call can be made again.
 */
#pragma once

#include "sandbox/box.h"
#include "tasks/task.h"

/* How an episode ended. Stored: never renumber. Zero is not an ending. */
typedef enum EpisodeEnd {
    EPISODE_OPEN = 0,
    EPISODE_SUBMITTED = 1,
    EPISODE_TURN_LIMIT = 2,
    EPISODE_TOKEN_LIMIT = 3,    /* of the answer, or the context is full */
    EPISODE_TIME_LIMIT = 4,     /* wall clock: perhaps our own load */
    EPISODE_REPETITION = 5,     /* the policy goes round in circles */
    EPISODE_UNPARSABLE = 6,     /* too many actions that are none */
    EPISODE_ABORTED = 7,        /* stopped from outside: to be resumed or asked for again */
    EPISODE_INFRASTRUCTURE = 8, /* our machine failed */
    EPISODE_CHEAT = 9,
} EpisodeEnd;
#define EPISODE_ENDS 10

/* What an ending means for training; reference: the table of endings in docs/episodes.md. */
typedef enum EpisodeReward {
    EPISODE_REWARD_NONE = 0,    /* null, never 0 */
    EPISODE_REWARD_VERDICT = 1, /* of the tree as it stands */
    EPISODE_REWARD_ZERO = 2,
} EpisodeReward;
typedef enum EpisodeLoss {
    EPISODE_LOSS_NO = 0,
    EPISODE_LOSS_YES = 1,
    EPISODE_LOSS_OPTION = 2, /* kept, masked or with a penalty, as the run says */
} EpisodeLoss;
typedef struct EpisodeEndRule {
    const char *name; /* "submitted", ... */
    EpisodeReward reward;
    gboolean in_baseline;
    EpisodeLoss in_loss;
} EpisodeEndRule;
const EpisodeEndRule *episode_end_rule(EpisodeEnd end);

/* ---- what episodes share ---- */

typedef struct EpisodeHostOptions {
    guint slot_first; /* of the boxes; see BoxSpec.slot */
    guint n_boxes;    /* 0: 2; how many episodes can be in a box at once */
    gboolean allow_degraded;
} EpisodeHostOptions;

typedef struct EpisodeHost EpisodeHost;
EpisodeHost *episode_host_new(const EpisodeHostOptions *options);
/* Its episodes must be gone. */
void episode_host_free(EpisodeHost *host);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(EpisodeHost, episode_host_free)

/* ---- one episode ---- */

#define EPISODE_TURNS_DEFAULT      50u
#define EPISODE_BAD_DEFAULT        3u
#define EPISODE_TEXT_BYTES_DEFAULT 10000u
#define EPISODE_TEXT_BYTES_MIN     200u
#define EPISODE_COMMAND_S_DEFAULT  60u

typedef struct EpisodeOptions {
    guint64 seed;         /* recorded; what is drawn from it is the caller's */
    guint turns_max;      /* 0: 50 */
    guint bad_max;        /* 0: 3; actions in a row that are none */
    guint text_bytes_max; /* 0: 10000; of an observation, head and tail */
    guint command_s;      /* 0: 60; of one bash, unless it asks for less */
    /* Of a task whose repository is a checkout: what its box stands on, limits and all. NULL: the
     * files are in the row. It must outlive the episode, as must what it borrows. */
    const BoxSpec *base;
    const char *const *envp; /* of commands; NULL: box_envp_default() */
} EpisodeOptions;

typedef struct EpisodeObservation {
    char *text;        /* UTF-8 */
    gboolean is_error; /* the call did not do what it should */
    EpisodeEnd end;    /* the call was the last one */
} EpisodeObservation;
void episode_observation_clear(EpisodeObservation *observation);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(EpisodeObservation, episode_observation_clear)

typedef struct Episode Episode;

/* The task must outlive the episode. UNSUPPORTED: its files are not in its row, and there is no
 * base. With a base the box is opened at once; BUSY: none is free. */
Episode *episode_open(EpisodeHost *host, const Task *task, const EpisodeOptions *options,
                      GError **error);
void episode_free(Episode *episode);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Episode, episode_free)

/* Calls a tool by its name, or by one that other scaffolds have for it. `bash` waits for its
 * command. After the end there is nothing but an error observation. */
gboolean episode_call(Episode *episode, const char *tool, const json_t *arguments,
                      EpisodeObservation *ret, GError **error);

/* The same for a main loop: a command is only started, and episode_running() is what to wait for
 * (box_run_poll, box_run_step); when it is done, episode_call_finish has the observation. Nothing
 * else may be asked of the episode meanwhile, but episode_free. */
gboolean episode_call_start(Episode *episode, const char *tool, const json_t *arguments,
                            EpisodeObservation *ret, GError **error);
gboolean episode_is_boxed(const Episode *episode);
BoxRun *episode_running(const Episode *episode); /* NULL: nothing */
gboolean episode_call_finish(Episode *episode, EpisodeObservation *ret, GError **error);

/* What whoever drives the policy does beside it: in the record, but not a step. "exec" runs
 * {argv, cwd?, timeout_s?, stdin?}, its text is {"outcome", "exit_code", "signal", "stdout",
 * "stderr", "truncated"}; "write" takes {path, text} or {path, base64}, and shows {}. Started and
 * finished as above. */
gboolean episode_side_start(Episode *episode, const char *name, const json_t *arguments,
                            EpisodeObservation *ret, GError **error);

/* A file below /testbed, at most 1 MiB. Errors: as sandbox/box.h says of files. */
GBytes *episode_file(const Episode *episode, const char *path, GError **error);

/* The policy wrote something that is no call: an observation that says so, and a step. */
void episode_bad_action(Episode *episode, const char *why, EpisodeObservation *ret);

/* What the policy said to get the next step, for its record. Pointers are not kept. */
typedef struct EpisodeTokens {
    const gint32 *ids;
    const float *logprobs; /* NULL: not known */
    gsize n;
    const char *weight_version; /* NULL: not known */
} EpisodeTokens;
void episode_note_tokens(Episode *episode, const EpisodeTokens *tokens);

/* Ends it from outside; nothing if it has ended. FALSE: the tree could not be read back, which made
 * it EPISODE_INFRASTRUCTURE. */
gboolean episode_end(Episode *episode, EpisodeEnd end, GError **error);
EpisodeEnd episode_ended(const Episode *episode);
guint episode_turns(const Episode *episode);

/* What differs from the task's files, path to text, {"base64"} or null: for verdict_ask. Borrowed,
 * until the next call. New files that are no text, or beyond limits, are left out. NULL: our
 * machine failed. */
const json_t *episode_changes(Episode *episode, GError **error);

#define EPISODE_DIFF_MAX (16u << 20)

/* The same as a diff that `git apply` takes. Of more than EPISODE_DIFF_MAX bytes, or more than a
 * diff may have otherwise, it is a line that says so, and that nothing takes: too much is the
 * policy's doing. Borrowed, until the next call. NULL as above. */
const GString *episode_diff(Episode *episode, GError **error);

/* The state of an episode in a box, frozen: to go back to, and for others to begin from. NULL with
 * UNSUPPORTED: this host has no snapshots. */
typedef struct EpisodeMark EpisodeMark;
EpisodeMark *episode_mark(Episode *episode, GError **error);
void episode_mark_free(EpisodeMark *mark);
guint episode_mark_turns(const EpisodeMark *mark);
/* Nothing has been added to the record since. */
gboolean episode_mark_is_now(const EpisodeMark *mark, const Episode *episode);
/* Back to a mark of this episode. On failure it can only be freed. */
gboolean episode_return(Episode *episode, const EpisodeMark *mark, GError **error);
/* Another episode with the same past and the same files, in a box of its own (BUSY: none is free),
 * which goes its own way. */
Episode *episode_fork(const Episode *episode, const EpisodeMark *mark, GError **error);

/* Adds a field (taken) to the line of the next step; NULL takes it away. */
void episode_note(Episode *episode, const char *key, json_t *value);

/* JSON lines: a head, a line per step, the end if there was one (docs/episodes.md). Borrowed. */
const GString *episode_record(const Episode *episode);

/* Does what the record of an episode says, and compares. The new episode's record has the same
 * bytes. CONFLICT: an observation or the tree differs, the message says where; INPUT: no record, or
 * of another task. */
Episode *episode_replay(EpisodeHost *host, const Task *task, const char *record, gsize len,
                        GError **error);

/* The same, piece by piece: WAITS means that a command runs (episode_running of the episode); when
 * it is done, or at once by who may wait, call again. The record must outlive it. */
typedef enum EpisodeReplayState {
    EPISODE_REPLAY_FAILED = 0,
    EPISODE_REPLAY_WAITS,
    EPISODE_REPLAY_DONE,
} EpisodeReplayState;
typedef struct EpisodeReplay EpisodeReplay;
/* `own` (borrowed fields) gives what a record has not: base and envp. */
EpisodeReplay *episode_replay_new(EpisodeHost *host, const Task *task, const EpisodeOptions *own,
                                  const char *record, gsize len, GError **error);
EpisodeReplayState episode_replay_next(EpisodeReplay *replay, GError **error);
Episode *episode_replay_episode(EpisodeReplay *replay);
/* Frees the replay; gives its episode to the caller, who must have seen DONE. */
Episode *episode_replay_take(EpisodeReplay *replay);
void episode_replay_free(EpisodeReplay *replay);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(EpisodeReplay, episode_replay_free)

/* ---- tools ---- */

/* The declarations in OpenAI's form, a new reference. */
json_t *episode_tools(void);

typedef enum EpisodeToolKind {
    EPISODE_TOOL_NONE = 0, /* there is no such tool */
    EPISODE_TOOL_QUICK,
    EPISODE_TOOL_WAITS, /* takes a box, and as long as its command */
} EpisodeToolKind;
EpisodeToolKind episode_tool_kind(const char *name);
