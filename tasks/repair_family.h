/*
 * The families of repair tasks: templates of small functions, their tests, and what is known of
 * their bugs. tasks/repair_c.txt and tasks/repair_python.txt hold them:
 *
 *     family NAME train|tune|heldout
 *     names A B                what the function may be called
 *     helper A B               likewise, of the function in `also`
 *     says TEXT                what it gives or does
 *     header ... end           a file NAME.h (C)
 *     code ... end             the file that holds the bug
 *     also ... end             a second source file, always right
 *     I expression | ...       tests: values that are shown
 *     T statements             a test that shows one itself: I(value), S(string), V(array, length)
 *
 * `$x` is a role: every task has other names for them. $F is the function, $H the helper.
 *
 * tasks/repair_facts.txt is made by tests/tasks/repair_bake.py, which runs everything: what the
 * tests show, and which mutants they notice.
 */
#pragma once

#include "tasks/repair_mutant.h"

typedef enum RepairPart {
    REPAIR_PART_TRAIN = 0,
    REPAIR_PART_TUNE = 1,      /* occurs in tuning only */
    REPAIR_PART_HELDOUT = 2,   /* occurs in no phase of training, nor in tuning */
    REPAIR_PART_IMITATION = 3, /* made for imitation (repair_idiom.h), all its bugs for training */
} RepairPart;

#define REPAIR_CALLS_MAX 12u

typedef struct RepairFamily {
    char *name, *says;
    const char *language; /* "c", "python" */
    RepairPart part;
    GStrv names, helpers;       /* helpers: NULL without `also` */
    char *code, *also, *header; /* NULL: there is none */
    char roles[128];            /* the letters of those that occur */
    GPtrArray *calls;           /* statements, one text each */
    GPtrArray *mutants;         /* RepairMutant */
    char *digest;               /* of all that the facts depend on; NULL: there can be none */
    GPtrArray *expected;        /* what each call shows */
    guint16 *fails;             /* per mutant: bit i for call i; 0: the tests do not notice it, or
                                 * not on every machine. NULL: facts are missing or outdated, or
                                 * there are no calls */
} RepairFamily;

/* All of them, read once. A mistake in the files is a bug. */
const GPtrArray *repair_families(void);

/* Finds the mutants and roles of a family that has its texts. */
void repair_family_finish(RepairFamily *family);

/* For families that are not of that list. */
void repair_family_free(RepairFamily *family);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(RepairFamily, repair_family_free)

/* Names of roles, by letter. */
typedef struct RepairNames {
    const char *of[128];
} RepairNames;

/* Names for one task; `draw` gives a number below its argument. */
typedef guint (*RepairDraw)(gpointer data, guint below);
RepairNames repair_names_draw(const RepairFamily *family, RepairDraw draw, gpointer data);

/* Appends text with its roles replaced. */
void repair_fill(GString *out, const char *text, gsize len, const RepairNames *names);
