/*
 * Repair tasks: facts, splits, seeds, rows. What their tests really do: tests/env/test_verdict.c.
 */
#include "base/error.h"
#include "tasks/calls.h"
#include "tasks/repair.h"
#include "tasks/repair_idiom.h"

#include <string.h>

#define FIRST_OF_SEED_1 "repair-caesar-401bba180e94"

static RepairSource *source_of(guint64 seed, RepairSplit split, const char *const *families)
{
    g_autoptr(GError) error = NULL;
    const RepairOptions options = {.seed = seed, .split = split, .families = families};
    RepairSource *source = repair_source_new(&options, &error);
    g_assert_no_error(error);
    return source;
}

static json_t *next_of(RepairSource *source)
{
    g_autoptr(GError) error = NULL;
    json_t *row = repair_source_next(source, &error);
    g_assert_no_error(error);
    return row;
}

static const char *repair_str(const json_t *row, const char *key)
{
    return json_string_value(json_object_get(json_object_get(row, "repair"), key));
}

static void every_family_has_facts_of_its_text(void)
{
    const GPtrArray *families = repair_families();
    guint n_c = 0, n_python = 0, n_heldout = 0;
    for (guint i = 0; i < families->len; i++) {
        const RepairFamily *family = families->pdata[i];
        if (family->fails == NULL || family->expected->len != family->calls->len)
            g_test_fail_printf("%s: facts are of another text: run tests/tasks/repair_bake.py",
                               family->name);
        n_c += g_str_equal(family->language, "c");
        n_python += g_str_equal(family->language, "python");
        n_heldout += family->part == REPAIR_PART_HELDOUT;
    }
    g_assert_cmpuint(n_c, >=, 40);
    g_assert_cmpuint(n_python, >=, 12);
    g_assert_cmpuint(n_heldout, >=, 4);
}

/* Where a bug that is one edit goes, all mutants of all families in one table. */
static GHashTable *edit_shares(const RepairFamily *family)
{
    GHashTable *shares = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < family->mutants->len; i++) {
        const RepairMutant *mutant = family->mutants->pdata[i];
        if (mutant->n_edits == 1)
            g_hash_table_insert(shares, mutant->key, GUINT_TO_POINTER(mutant->share + 1));
    }
    return shares;
}

static void no_edit_is_part_of_two_splits(void)
{
    const GPtrArray *families = repair_families();
    guint n_pairs = 0;
    for (guint i = 0; i < families->len; i++) {
        const RepairFamily *family = families->pdata[i];
        g_autoptr(GHashTable) shares = edit_shares(family);
        for (guint k = 0; k < family->mutants->len; k++) {
            const RepairMutant *mutant = family->mutants->pdata[k];
            g_auto(GStrv) parts = NULL;
            if (mutant->n_edits == 1)
                continue;
            n_pairs++;
            for (guint e = 0; e < 2; e++) {
                g_autofree char *key =
                    g_strdup_printf("%u:%s", mutant->edits[e].place, mutant->edits[e].wrong);
                g_assert_cmpuint(GPOINTER_TO_UINT(g_hash_table_lookup(shares, key)), ==,
                                 mutant->share + 1);
            }
        }
    }
    g_assert_cmpuint(n_pairs, >, 500);
}

static void splits_share_no_bug_and_no_heldout_function(void)
{
    g_autoptr(GHashTable) bug_split = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autoptr(GHashTable) part_of = g_hash_table_new(g_str_hash, g_str_equal);
    const GPtrArray *families = repair_families();
    for (guint i = 0; i < families->len; i++) {
        const RepairFamily *family = families->pdata[i];
        g_hash_table_insert(part_of, family->name, GUINT_TO_POINTER(family->part));
    }
    for (guint split = 0; split < REPAIR_SPLITS; split++) {
        g_autoptr(RepairSource) source = source_of(3, split, NULL);
        for (guint i = 0; i < 150; i++) {
            g_autoptr(json_t) row = next_of(source);
            const char *family = repair_str(row, "family");
            char *bug = g_strconcat(family, " ", repair_str(row, "bug"), NULL);
            gpointer before = g_hash_table_lookup(bug_split, bug);
            g_assert_true(before == NULL || before == GUINT_TO_POINTER(split + 1));
            g_hash_table_replace(bug_split, bug, GUINT_TO_POINTER(split + 1));
            g_assert_cmpstr(repair_str(row, "split"), ==, repair_split_str(split));
            RepairPart part = GPOINTER_TO_UINT(g_hash_table_lookup(part_of, family));
            g_assert_true((part == REPAIR_PART_HELDOUT) == (split == REPAIR_HELDOUT_FUNCTIONS));
            g_assert_true((part == REPAIR_PART_TUNE) == (split == REPAIR_TUNE_FUNCTIONS));
        }
    }
}

/* A joined mutant has the edits of both in order, apart, and of one share. */
static void check_joined(const RepairMutant *joined, const RepairMutant *a, const RepairMutant *b)
{
    g_assert_cmpuint(joined->n_edits, ==, a->n_edits + b->n_edits);
    g_assert_true(joined->share == a->share && joined->share == b->share);
    for (guint i = 1; i < joined->n_edits; i++)
        g_assert_cmpuint(joined->edits[i - 1].at + joined->edits[i - 1].len, <=,
                         joined->edits[i].at);
}

static void mutants_are_joined_where_they_do_not_meet(void)
{
    const RepairFamily *family = repair_families()->pdata[0];
    guint n_joined = 0, n_refused = 0;
    for (guint i = 0; i < family->mutants->len; i++)
        for (guint k = 0; k < family->mutants->len; k++) {
            const RepairMutant *a = family->mutants->pdata[i], *b = family->mutants->pdata[k];
            g_autoptr(RepairMutant) joined = repair_mutant_join(a, b);
            n_refused += joined == NULL;
            n_joined += joined != NULL;
            if (joined != NULL)
                check_joined(joined, a, b);
            if (a->share != b->share || i == k)
                g_assert_null(joined);
        }
    g_assert_cmpuint(n_joined, >, 20);
    g_assert_cmpuint(n_refused, >, 20);
}

static char *rows_text(guint64 seed, guint n)
{
    g_autoptr(RepairSource) source = source_of(seed, REPAIR_TRAIN, NULL);
    GString *text = g_string_new(NULL);
    for (guint i = 0; i < n; i++) {
        g_autoptr(json_t) row = next_of(source);
        g_autofree char *line = json_print(row);
        g_string_append(text, line);
    }
    return g_string_free(text, FALSE);
}

static void a_seed_gives_the_same_rows_again(void)
{
    g_autofree char *once = rows_text(11, 50), *again = rows_text(11, 50),
                    *other = rows_text(12, 50);
    g_assert_cmpstr(once, ==, again);
    g_assert_cmpstr(once, !=, other);
    /* and on every machine: this is what one of them gave */
    g_autoptr(RepairSource) source = source_of(1, REPAIR_TRAIN, NULL);
    g_autoptr(json_t) row = next_of(source);
    g_test_message("first row of seed 1: %s",
                   json_string_value(json_object_get(row, "instance_id")));
    g_assert_cmpstr(json_string_value(json_object_get(row, "instance_id")), ==, FIRST_OF_SEED_1);
}

static const char *text_at(const json_t *object, const char *path)
{
    const char *text = json_string_value(json_object_get(object, path));
    g_assert_nonnull(text);
    return text;
}

/* Every edit stands where it says, and undoing all of them is what the gold patch does. */
static void check_edits(const json_t *row)
{
    const json_t *edits = json_object_get(json_object_get(row, "repair"), "edits");
    const char *wrong = text_at(json_object_get(row, "files"), repair_str(row, "path"));
    g_autoptr(json_t) fix = repair_fix(row);
    const char *right = text_at(fix, repair_str(row, "path"));
    const char *patch = text_at(row, "patch");
    gsize i;
    json_t *edit;
    json_array_foreach(edits, i, edit)
    {
        gsize offset = (gsize)json_integer_value(json_object_get(edit, "offset"));
        const char *was = text_at(edit, "wrong");
        g_assert_cmpint(strncmp(wrong + offset, was, strlen(was)), ==, 0);
        g_auto(GStrv) before = g_strsplit(wrong, "\n", -1);
        guint line = (guint)json_integer_value(json_object_get(edit, "line"));
        g_autofree char *removed = g_strdup_printf("\n-%s\n", before[line - 1]);
        g_assert_nonnull(strstr(patch, removed));
    }
    g_assert_cmpstr(wrong, !=, right);
}

static void imitation_has_more_bugs_of_the_same_split(void)
{
    const RepairOptions options = {.seed = 3, .split = REPAIR_TRAIN, .for_imitation = TRUE};
    g_autoptr(RepairSource) graded = source_of(3, REPAIR_TRAIN, NULL);
    g_autoptr(RepairSource) source = repair_source_new(&options, NULL);
    guint n_unnoticed = 0, n_several = 0, n_idioms = 0;
    g_assert_cmpuint(repair_source_bugs(source), >, repair_source_bugs(graded) * 3 / 2);
    for (guint i = 0; i < 150; i++) {
        g_autoptr(json_t) row = next_of(source);
        g_assert_cmpstr(repair_str(row, "split"), ==, "train");
        const json_t *edits = json_object_get(json_object_get(row, "repair"), "edits");
        n_several += json_array_size(edits) > 2;
        gboolean is_idiom = g_str_has_prefix(repair_str(row, "family"), "idiom-");
        n_idioms += is_idiom;
        n_unnoticed += !is_idiom && json_array_size(json_object_get(row, "FAIL_TO_PASS")) == 0;
        g_assert_true(is_idiom == (json_object_get(row, "calls") == NULL));
        if (json_array_size(edits) == 1)
            check_edits(row);
    }
    g_assert_cmpuint(n_unnoticed, >, 15);
    g_assert_cmpuint(n_idioms, >, 50);
    g_assert_cmpuint(n_idioms, <, 100);
    g_assert_cmpuint(n_several, >, 10);
}

/* They have no tests: never for grading, never in another split. */
static void idioms_are_for_imitation_only(void)
{
    const char *const idioms[] = {REPAIR_IDIOMS, NULL}, *const one[] = {"sign", NULL};
    const RepairOptions refused[] = {
        {.families = idioms},
        {.families = idioms, .for_imitation = TRUE, .split = REPAIR_TUNE},
        {.families = idioms, .for_imitation = TRUE, .is_canary = TRUE},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(refused); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(repair_source_new(&refused[i], &error));
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
    }
    const RepairOptions without = {.families = one, .for_imitation = TRUE},
                        only = {.families = idioms, .for_imitation = TRUE};
    g_autoptr(RepairSource) source = repair_source_new(&without, NULL);
    g_autoptr(RepairSource) made = repair_source_new(&only, NULL);
    for (guint i = 0; i < 20; i++) {
        g_autoptr(json_t) row = next_of(source), other = next_of(made);
        g_assert_cmpstr(repair_str(row, "family"), ==, "sign");
        g_assert_true(g_str_has_prefix(repair_str(other, "family"), "idiom-"));
    }
    const RepairOptions tests = {.for_imitation = TRUE, .kind = "test"};
    g_autoptr(RepairSource) asked = repair_source_new(&tests, NULL);
    for (guint i = 0; i < 20; i++) {
        g_autoptr(json_t) row = next_of(asked);
        g_assert_nonnull(json_object_get(row, "calls"));
    }
}

static void rows_are_tasks_with_calls_and_edits(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GHashTable) kinds = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    guint tokens = 0, n = 2000;
    g_autoptr(RepairSource) source = source_of(5, REPAIR_TRAIN, NULL);
    for (guint i = 0; i < n; i++) {
        g_autoptr(json_t) row = next_of(source);
        g_autoptr(Task) task = task_from_json(row, &error);
        g_assert_no_error(error);
        g_autoptr(TaskCalls) calls = task_calls_read(task, &error);
        g_assert_no_error(error);
        g_assert_cmpuint(g_strv_length(task->fail_to_pass), >=, 1);
        g_assert_cmpuint(g_strv_length(task->fail_to_pass) + g_strv_length(task->pass_to_pass), ==,
                         calls->n);
        check_edits(row);
        tokens +=
            (guint)json_integer_value(json_object_get(json_object_get(row, "repair"), "tokens"));
        g_hash_table_add(kinds, g_strdup(repair_str(row, "kind")));
    }
    g_assert_cmpuint(tokens / n, >=, 40);
    g_assert_cmpuint(tokens / n, <=, 60);
    static const char *const wanted[] = {"arithmetic", "comparison",       "assignment",
                                         "constant",   "variable",         "off by one",
                                         "two edits",  "dropped negation", "swapped arguments"};
    for (gsize i = 0; i < G_N_ELEMENTS(wanted); i++)
        if (!g_hash_table_contains(kinds, wanted[i]))
            g_test_fail_printf("no bug of kind %s", wanted[i]);
}

static void a_source_says_when_it_has_no_more(void)
{
    g_autoptr(GError) error = NULL;
    const char *const one[] = {"sign", NULL};
    g_autoptr(RepairSource) source = source_of(1, REPAIR_TUNE, one);
    guint n = 0;
    for (json_t *row; n < 10000 && (row = repair_source_next(source, &error)) != NULL; n++)
        json_decref(row);
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_LIMIT);
    g_assert_cmpuint(n, >=, repair_source_bugs(source));
}

static void what_is_not_there_is_named(void)
{
    g_autoptr(GError) error = NULL;
    const char *const wrong[] = {"max_of_twoo", NULL}, *const elsewhere[] = {"parity", NULL};
    RepairOptions options = {.families = wrong};
    g_assert_null(repair_source_new(&options, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
    g_assert_nonnull(strstr(error->message, "did you mean max_of_two?"));
    g_clear_error(&error);
    options.families = elsewhere; /* held out: not of the training split */
    g_assert_null(repair_source_new(&options, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_NOT_FOUND);
}

/* A row with one field of `calls` replaced. */
static void refuse_calls(const char *field, const char *json)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(RepairSource) source = source_of(1, REPAIR_TRAIN, NULL);
    g_autoptr(json_t) row = next_of(source);
    json_object_set_new(json_object_get(row, "calls"), field, json_parse(json, strlen(json), NULL));
    g_autoptr(Task) task = task_from_json(row, &error);
    g_assert_no_error(error);
    g_assert_null(task_calls_read(task, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
    g_assert_nonnull(strstr(error->message, field));
}

static void malformed_calls_are_refused(void)
{
    refuse_calls("language", "\"cobol\"");
    refuse_calls("driver", "7");
    refuse_calls("expected", "[]");
    refuse_calls("expected", "[\"1\\n2\"]");
    refuse_calls("expected", "[1]");
    refuse_calls("sources", "[\"../../etc/passwd\"]");
    refuse_calls("sources", "[\"-o\"]");
    refuse_calls("sources", "\"a.c\"");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(test) g_test_add_func("/repair/" #test, test)
    ADD(every_family_has_facts_of_its_text);
    ADD(no_edit_is_part_of_two_splits);
    ADD(splits_share_no_bug_and_no_heldout_function);
    ADD(mutants_are_joined_where_they_do_not_meet);
    ADD(imitation_has_more_bugs_of_the_same_split);
    ADD(idioms_are_for_imitation_only);
    ADD(a_seed_gives_the_same_rows_again);
    ADD(rows_are_tasks_with_calls_and_edits);
    ADD(a_source_says_when_it_has_no_more);
    ADD(what_is_not_there_is_named);
    ADD(malformed_calls_are_refused);
    return g_test_run();
}
