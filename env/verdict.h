/*
 * Fast verdicts: the calls of a task (tasks/calls.h), run over a changed tree in warm boxes.
 *
 *     g_autoptr(VerdictRunner) runner = verdict_runner_new(&(VerdictOptions){0}, error);
 *     verdict_ask(runner, task, changes, on_verdict, state, error);      any number of them
 *     while (verdict_turn(runner, -1)) ;                                 on_verdict is called
 *
 * Two boxes work at once on the calling thread; what was asked before, or is being asked, is run
 * once.
 *
 * What holds. The box gets the tree, then the driver, and prints values; what they should be is
 * compared here and never enters a box. So exiting early, printing lines of one's own, changing the
 * driver, a header or the C library, running before main or after it: none of it makes a call pass
 * whose value is not printed, in order, with nothing between. Nothing survives from one verdict to
 * the next. Neither sleeping nor breaking things makes a failure unscorable: see below.
 *
 * What does not hold. A program that knows the answers passes: it can single out the arguments, as
 * it can under every test, and it can guess. Calls whose values repeat are guessed more easily.
 * Memory of the driver is the program's own: it may learn which call is under way.
 *
 * Passed, failed, or unscorable. CPU time, memory, output and processes are limited, and beyond
 * them a verdict is failed. Wall time is only a backstop: a machine under load may use it up. What
 * runs into it twice has failed if a trivial program runs in good time after it, and is unscorable
 * if not. Failures of the box itself are tried three times.
 */
#pragma once

#include "sandbox/box.h"
#include "tasks/calls.h"

typedef enum VerdictState {
    VERDICT_UNSCORABLE = 0, /* nothing was learnt: no reward, not a zero */
    VERDICT_FAILED = 1,
    VERDICT_PASSED = 2,
} VerdictState;
const char *verdict_state_str(VerdictState state);

typedef struct Verdict {
    VerdictState state;
    guint n_calls;
    guint64 passed;     /* bit i: call i gave its value */
    BoxOutcome outcome; /* of the run */
    int exit_code;      /* EXITED */
    gboolean is_cached;
    const char *why; /* of UNSCORABLE, or of what failed without being run; else "" */
} Verdict;

typedef struct VerdictOptions {
    guint slot_first; /* of the boxes; see BoxSpec.slot */
    guint n_boxes;    /* 0: 2 */
    guint wall_ms;    /* 0: 10 s */
    gboolean allow_degraded;
    const char *compiler; /* "tcc", "gcc"; NULL: tcc where it is installed */
} VerdictOptions;
#define VERDICT_BOXES_MAX 64u

typedef struct VerdictStats {
    guint64 asked, cached, joined; /* joined: another one of the same was under way */
    guint64 run;                   /* in boxes, retries included */
    guint64 passed, failed, unscorable;
    guint64 box_us; /* from taking a box to giving it back, all together */
} VerdictStats;

typedef struct VerdictRunner VerdictRunner;

/* Opens a box to see what is installed. */
VerdictRunner *verdict_runner_new(const VerdictOptions *options, GError **error);
/* Verdicts under way are dropped; nobody is called. */
void verdict_runner_free(VerdictRunner *runner);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VerdictRunner, verdict_runner_free)

/* Files that a verdict may have beside the task's own, and their bytes together. */
#define VERDICT_NEW_FILES_MAX 100u
#define VERDICT_NEW_BYTES_MAX (1u << 20)

/* Can a verdict have a file of that path? Not too long, not too deep, normal, not the driver's. */
gboolean verdict_path_ok(const char *path);

/* `verdict` lives for the call. */
typedef void (*VerdictFn)(const Verdict *verdict, gpointer data);

/*
 * The verdict on the task's files with `changes` (an object, path to text, {"base64": ...}, or null
 * for removed; NULL: none). `fn` is called once, from verdict_turn, or before this returns if the
 * answer is known. Changes that no box could be given (paths, sizes) have failed. FALSE: the task
 * is at fault and `fn` will not be called: INPUT or NOT_FOUND (task_calls_read), UNSUPPORTED (no
 * compiler). The task need not live on.
 */
gboolean verdict_ask(VerdictRunner *runner, const Task *task, const json_t *changes, VerdictFn fn,
                     gpointer data, GError **error);

/* Does what there is to do, waiting for it at most `wait_ms` (-1: as long as it takes). FALSE when
 * nothing is under way any more. */
gboolean verdict_turn(VerdictRunner *runner, int wait_ms);

VerdictStats verdict_stats(const VerdictRunner *runner);

/* What compiles C here, with its version; part of the cache key. */
const char *verdict_compiler(const VerdictRunner *runner);
