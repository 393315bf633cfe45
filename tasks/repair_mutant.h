/*
 * Bugs: small mutations of a right text, at the level of tokens.
 *
 *     g_autoptr(GPtrArray) mutants = repair_mutants("abs_diff", "c", code);     RepairMutant
 *
 * A mutant is one edit or two; more are made of these by joining them. Its key is "place:wrong" of
 * each edit, where the place is the number of the token. The text is a template, names are roles:
 * the key does not depend on names.
 */
#pragma once

#include <glib.h>

/* Whom a mutant is for, by the hash of family and key: 70, 10 and 20 of a hundred. */
typedef enum RepairShare {
    REPAIR_SHARE_TRAIN = 0,
    REPAIR_SHARE_TUNE = 1,
    REPAIR_SHARE_HELDOUT = 2,
} RepairShare;

typedef struct RepairEdit {
    guint place;   /* number of the first token */
    gsize at, len; /* bytes of the right text that go */
    char *wrong;   /* what comes instead; "" for a dropped word */
    const char *kind;
} RepairEdit;

#define REPAIR_EDITS_MAX 4u

typedef struct RepairMutant {
    char *key;
    RepairShare share; /* of several edits: that of all of them */
    guint n_edits;
    RepairEdit edits[REPAIR_EDITS_MAX]; /* in the order of the text */
} RepairMutant;
void repair_mutant_free(RepairMutant *mutant);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(RepairMutant, repair_mutant_free)

/* Every single edit that the rules can make, then pairs of them; always in the same order. */
GPtrArray *repair_mutants(const char *family, const char *language, const char *code);

/* The edits of both; NULL: they touch the same tokens, are of different shares, or too many. */
RepairMutant *repair_mutant_join(const RepairMutant *a, const RepairMutant *b);

/* Lexical tokens of a text: what a policy has to read. */
guint repair_count_tokens(const char *text);
