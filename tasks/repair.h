/*
 * Repair tasks: small repositories with one bug, made from templates and a seed.
 *
 *     const RepairOptions options = {.seed = 1, .split = REPAIR_TRAIN};
 *     g_autoptr(RepairSource) source = repair_source_new(&options, error);
 *     g_autoptr(json_t) row = repair_source_next(source, error);     a canonical row (tasks/task.h)
 *
 * The same seed gives the same rows on any machine. Splits never meet: a bug (function, place,
 * wrong token) is of one split, and whole families are kept out of training. Use the same split for
 * supervised data.
 *
 * Beside the canonical fields a row has `calls` (tasks/calls.h) and
 *
 *     repair: {"family", "split", "path", "kind", "bug", "tokens",
 *              "edits": [{"line", "offset", "wrong", "right"}]}
 *
 * where the edits are in the order of the file as it is, offsets and lines (from 1) are of that
 * file, and "right" is what belongs in the place of "wrong". Either may be empty. A canary says
 * "canary": true: its last call is its first one again, with a value that nothing has.
 */
#pragma once

#include "tasks/repair_family.h"
#include "tasks/task.h"

typedef enum RepairSplit {
    REPAIR_TRAIN = 0,
    REPAIR_TUNE = 1,              /* other bugs of the same functions */
    REPAIR_TUNE_FUNCTIONS = 2,    /* functions that are for tuning only */
    REPAIR_HELDOUT_BUGS = 3,      /* as tune, to be looked at once */
    REPAIR_HELDOUT_FUNCTIONS = 4, /* likewise */
} RepairSplit;
#define REPAIR_SPLITS 5

const char *repair_split_str(RepairSplit split); /* "train", "heldout-bugs", ... */
gboolean repair_split_from_str(const char *text, RepairSplit *ret);

typedef struct RepairOptions {
    guint64 seed;
    RepairSplit split;
    const char *const *families; /* names, or "c" and "python"; NULL: all */
    const char *kind;            /* of tasks/repair_kind.h; NULL: repairs */
    gboolean is_canary; /* with a call that no repair can satisfy: rewards for it are an alarm */
    gboolean for_imitation; /* not to be graded: half of the rows are of functions made for it
                             * (repair_idiom.h; "idioms", a part of "c") and have no `calls`, bugs
                             * are also those that no test notices, edits up to four */
} RepairOptions;

typedef struct RepairSource RepairSource;

/* INPUT: a family that is not there; NOT_FOUND: none of them is of this split. */
RepairSource *repair_source_new(const RepairOptions *options, GError **error);
void repair_source_free(RepairSource *source);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(RepairSource, repair_source_free)

/* The next row, one that was not there before. LIMIT: (almost) all have been given out. */
json_t *repair_source_next(RepairSource *source, GError **error);

/* Different bugs that the source draws from, names aside. */
guint repair_source_bugs(const RepairSource *source);

/* The split of a mutant of a family. */
RepairSplit repair_split_of(const RepairFamily *family, const RepairMutant *mutant);

/* The row of one mutant; `fails` has bit i set where call i fails. `mutant` NULL: the right text,
 * for those who make the facts. `family->expected` may be empty then. */
json_t *repair_row(const RepairFamily *family, const RepairMutant *mutant, guint fails,
                   const RepairNames *names, GError **error);

/* The changes that undo the bug of a row: an object, path to text. */
json_t *repair_fix(const json_t *row);
