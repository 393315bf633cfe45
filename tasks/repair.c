/*
 * Repair tasks, drawn: families, mutants and names by seed.
 *
 * Invariants:
 *   1. What is drawn depends on the seed, the split and the families asked for, on nothing of the
 *      machine.
 *   2. Only mutants that the facts call noticed are drawn, unless it is for imitation; where facts
 *      are missing there is no row.
 *   3. No row is given out twice by one source.
 *
 * Not here: what is in a row (repair_row.c), families (repair_family.c), bugs (repair_mutant.c).
 */
#include "tasks/repair.h"

#include "tasks/repair_idiom.h"
#include "tasks/repair_kind.h"

#include "base/error.h"

#include <string.h>

#define TRIES_MAX 5000u /* draws in a row that were there before */

typedef struct Choice {
    const RepairFamily *family;
    GArray *mutants; /* guint: numbers of mutants */
} Choice;

struct RepairSource {
    guint64 state;
    RepairSplit split;
    gboolean joins; /* mutants with others of the same function */
    gboolean has_idioms;
    GPtrArray *choices; /* Choice */
    GHashTable *seen;   /* keys of what was given out */
    guint n_bugs;
    gboolean is_canary;
    const char *kind; /* interned; NULL: repairs */
};

static const char *const split_names[REPAIR_SPLITS] = {"train", "tune", "tune-functions",
                                                       "heldout-bugs", "heldout-functions"};

const char *repair_split_str(RepairSplit split)
{
    return split_names[split];
}

gboolean repair_split_from_str(const char *text, RepairSplit *ret)
{
    for (guint i = 0; i < REPAIR_SPLITS; i++)
        if (g_str_equal(text, split_names[i])) {
            *ret = i;
            return TRUE;
        }
    return FALSE;
}

RepairSplit repair_split_of(const RepairFamily *family, const RepairMutant *mutant)
{
    static const RepairSplit by_share[] = {[REPAIR_SHARE_TRAIN] = REPAIR_TRAIN,
                                           [REPAIR_SHARE_TUNE] = REPAIR_TUNE,
                                           [REPAIR_SHARE_HELDOUT] = REPAIR_HELDOUT_BUGS};
    static const RepairSplit by_part[] = {[REPAIR_PART_TUNE] = REPAIR_TUNE_FUNCTIONS,
                                          [REPAIR_PART_HELDOUT] = REPAIR_HELDOUT_FUNCTIONS,
                                          [REPAIR_PART_IMITATION] = REPAIR_TRAIN};
    return family->part == REPAIR_PART_TRAIN ? by_share[mutant->share] : by_part[family->part];
}

/* splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. */
static guint64 draw_bits(RepairSource *source)
{
    guint64 z = source->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static guint draw(gpointer data, guint below)
{
    return (guint)(((draw_bits(data) >> 32) * below) >> 32);
}

static void choice_free(gpointer data)
{
    Choice *choice = data;
    g_array_unref(choice->mutants);
    g_free(choice);
}

static gboolean is_asked_for(const char *name, const char *language, const char *const *wanted)
{
    return wanted == NULL || g_strv_contains(wanted, name) || g_strv_contains(wanted, language);
}

static gboolean families_exist(const char *const *wanted, GError **error)
{
    const GPtrArray *families = repair_families();
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (guint i = 0; i < families->len; i++)
        g_ptr_array_add(names, ((RepairFamily *)families->pdata[i])->name);
    static const char *const sorts[] = {"c", "python", REPAIR_IDIOMS, NULL};
    for (gsize i = 0; i < G_N_ELEMENTS(sorts); i++)
        g_ptr_array_add(names, (gpointer)(gsize)sorts[i]);
    for (; wanted != NULL && *wanted != NULL; wanted++) {
        if (g_strv_contains((const char *const *)names->pdata, *wanted))
            continue;
        const char *near = word_nearest(*wanted, (const char *const *)names->pdata);
        return error_set(error, ASSAY_ERROR_INPUT, "there is no family %s%s%s%s", *wanted,
                         near != NULL ? "; did you mean " : "", near != NULL ? near : "",
                         near != NULL ? "?" : "");
    }
    return TRUE;
}

/* NULL: none of its mutants is of the split. */
static Choice *choice_new(RepairSplit split, const RepairFamily *family, gboolean unnoticed)
{
    Choice *choice = g_new0(Choice, 1);
    choice->family = family;
    choice->mutants = g_array_new(FALSE, FALSE, sizeof(guint));
    for (guint i = 0; i < family->mutants->len; i++)
        if ((unnoticed || family->fails[i] != 0) &&
            repair_split_of(family, family->mutants->pdata[i]) == split)
            g_array_append_val(choice->mutants, i);
    if (choice->mutants->len > 0)
        return choice;
    choice_free(choice);
    return NULL;
}

static void add_family(RepairSource *source, const RepairFamily *family, gboolean unnoticed)
{
    Choice *choice = choice_new(source->split, family, unnoticed);
    if (choice == NULL)
        return;
    source->n_bugs += choice->mutants->len;
    g_ptr_array_add(source->choices, choice);
}

RepairSource *repair_source_new(const RepairOptions *options, GError **error)
{
    const GPtrArray *families = repair_families();
    if (!families_exist(options->families, error))
        return NULL;
    g_autoptr(RepairSource) source = g_new0(RepairSource, 1);
    source->state = options->seed ^ ((guint64)options->split << 56);
    source->split = options->split;
    source->joins = options->for_imitation;
    source->is_canary = options->is_canary;
    source->kind = g_intern_string(options->kind);
    source->choices = g_ptr_array_new_with_free_func(choice_free);
    source->seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (guint i = 0; i < families->len; i++) {
        const RepairFamily *family = families->pdata[i];
        if (family->fails != NULL &&
            is_asked_for(family->name, family->language, options->families))
            add_family(source, family, options->for_imitation);
    }
    source->has_idioms = options->for_imitation && !options->is_canary &&
                         options->split == REPAIR_TRAIN &&
                         is_asked_for(REPAIR_IDIOMS, "c", options->families);
    if (source->choices->len == 0 && !source->has_idioms) {
        error_set(error, ASSAY_ERROR_NOT_FOUND, "no family that was asked for is of split %s",
                  split_names[options->split]);
        return NULL;
    }
    return g_steal_pointer(&source);
}

void repair_source_free(RepairSource *source)
{
    if (source == NULL)
        return;
    g_ptr_array_unref(source->choices);
    g_hash_table_unref(source->seen);
    g_free(source);
}

guint repair_source_bugs(const RepairSource *source)
{
    return source->n_bugs;
}

/* What makes a row: the same key, the same row. */
static char *key_of(const RepairFamily *family, const char *bug, const RepairNames *names)
{
    GString *key = g_string_new(family->name);
    g_string_append_printf(key, " %s", bug);
    for (const char *role = family->roles; *role != '\0'; role++)
        g_string_append_printf(key, " %s", names->of[(int)*role]);
    return g_string_free(key, FALSE);
}

/* The row of a mutant that cannot be repaired: the first call again, and a value that contradicts
 * it. That value is 128 drawn bits: it is not guessed, and it is in no file of the repository. */
static json_t *canary_row(RepairSource *source, const RepairFamily *family, guint mutant,
                          const RepairNames *names, GError **error)
{
    RepairFamily other = *family;
    g_autoptr(GPtrArray) calls = g_ptr_array_new(), expected = g_ptr_array_new();
    guint64 high = draw_bits(source), low = draw_bits(source);
    g_autofree char *never =
        g_strdup_printf("%016" G_GINT64_MODIFIER "x%016" G_GINT64_MODIFIER "x", high, low);
    guint fails = family->fails[mutant] | 1u << family->calls->len;
    g_ptr_array_extend(calls, family->calls, NULL, NULL);
    g_ptr_array_extend(expected, family->expected, NULL, NULL);
    g_ptr_array_add(calls, family->calls->pdata[0]);
    g_ptr_array_add(expected, never);
    other.calls = calls;
    other.expected = expected;
    json_t *row = repair_row(&other, family->mutants->pdata[mutant], fails, names, error);
    if (row == NULL)
        return NULL;
    const char *id = json_string_value(json_object_get(row, "instance_id"));
    g_autofree char *own = g_strconcat("canary-", id, NULL);
    json_object_set_new(row, "instance_id", json_string(own));
    json_object_set_new(row, "canary", json_true());
    return row;
}

/* The mutant with others of its family, one more every fifth time; NULL: by itself. */
static RepairMutant *join_more(RepairSource *source, const Choice *choice,
                               const RepairMutant *first)
{
    g_autoptr(RepairMutant) all = NULL;
    while (draw(source, 5) == 0) {
        guint i = g_array_index(choice->mutants, guint, draw(source, choice->mutants->len));
        const RepairMutant *other = choice->family->mutants->pdata[i];
        RepairMutant *more = repair_mutant_join(all != NULL ? all : first, other);
        if (more == NULL)
            continue;
        repair_mutant_free(all);
        all = more;
    }
    return g_steal_pointer(&all);
}

/* A row of one of the mutants; NULL without an error: it was there before, or is of no kind. */
static json_t *choice_row(RepairSource *source, const Choice *choice, GError **error)
{
    const RepairFamily *family = choice->family;
    guint i = g_array_index(choice->mutants, guint, draw(source, choice->mutants->len));
    const RepairMutant *mutant = family->mutants->pdata[i];
    g_autoptr(RepairMutant) joined = source->joins ? join_more(source, choice, mutant) : NULL;
    const RepairNames names = repair_names_draw(family, draw, source);
    const char *bug = joined != NULL ? joined->key : mutant->key;
    if (!g_hash_table_add(source->seen, key_of(family, bug, &names)))
        return NULL;
    guint fails = joined != NULL || family->fails == NULL ? 0 : family->fails[i];
    g_autoptr(json_t) row = source->is_canary ? canary_row(source, family, i, &names, error)
                                              : repair_row(family, joined != NULL ? joined : mutant,
                                                           fails, &names, error);
    if (row != NULL && source->kind != NULL && !repair_kind_apply(row, source->kind))
        return NULL;
    return g_steal_pointer(&row);
}

/* A row of a function made for it. */
static json_t *idiom_row(RepairSource *source, GError **error)
{
    g_autoptr(RepairFamily) family = repair_idiom_draw(draw, source);
    Choice *choice = choice_new(source->split, family, TRUE);
    if (choice == NULL)
        return NULL;
    json_t *row = choice_row(source, choice, error);
    choice_free(choice);
    return row;
}

json_t *repair_source_next(RepairSource *source, GError **error)
{
    for (guint tries = 0; tries < TRIES_MAX; tries++) {
        guint n = source->choices->len;
        gboolean is_idiom = source->has_idioms && (n == 0 || draw(source, 2) == 0);
        GError *failure = NULL;
        json_t *row = is_idiom
                          ? idiom_row(source, &failure)
                          : choice_row(source, source->choices->pdata[draw(source, n)], &failure);
        if (failure != NULL)
            g_propagate_error(error, failure);
        if (row != NULL || failure != NULL)
            return row;
    }
    error_set(error, ASSAY_ERROR_LIMIT, "no new task in %u draws, after %u; ask for more families",
              TRIES_MAX, g_hash_table_size(source->seen));
    return NULL;
}
